/* errors.h - every error hedge can return, in one table.
 *
 * Ownership: hedge_strerror() returns static text; struct hedge_error is a
 *            value the caller owns.
 * Threads:   any thread may call; no state.
 * Errors:    all codes are negative; 0 is success.
 * Units:     none.
 * Limits:    an error's text is at most HEDGE_ERROR_TEXT_MAX - 1 bytes. */
#ifndef HEDGE_ERRORS_H
#define HEDGE_ERRORS_H

#define HEDGE_ERROR_MAP(X)                                          \
    X(ENOMEM, 1, "out of memory")                                   \
    X(EINVAL, 2, "invalid argument")                                \
    X(EIO, 3, "input/output error")                                 \
    X(ENOSPC, 4, "no space left on the device")                     \
    X(EFULL, 5, "no node has room for the data")                    \
    X(EBUSY, 6, "all blocks or slots are in use")                   \
    X(ECANCELED, 7, "the operation was canceled")                   \
    X(ETIMEDOUT, 8, "the deadline has passed")                      \
    X(ENOTFOUND, 9, "not found")                                    \
    X(EEXISTS, 10, "already exists")                                \
    X(ECORRUPT, 11, "data does not match its checksum or manifest") \
    X(ELOST, 12, "data was lost with the node that held it")        \
    X(EABORTED, 13, "the writer vanished before it closed")         \
    X(EEXPIRED, 14, "the store has expired")                        \
    X(EFENCED, 15, "the fencing token is stale")                    \
    X(ENOLEADER, 16, "there is no leader")                          \
    X(ENOTLEADER, 17, "this node is not the leader")                \
    X(EUNAVAILABLE, 18, "the peer cannot be reached")               \
    X(EREFUSED, 19, "the peer refused")                             \
    X(EPROTO, 20, "malformed or unexpected message")                \
    X(EVERSION, 21, "incompatible version")                         \
    X(ECLOSED, 22, "closed")                                        \
    X(ENOTSUP, 23, "not supported here")                            \
    X(ETOOBIG, 24, "larger than the limit")                         \
    X(EPERM, 25, "permission denied")                               \
    X(EEXHAUSTED, 26, "the message budget is used up")              \
    X(ENOHANDLER, 27, "no handler for the message")                 \
    X(EHANDLER, 28, "the handler failed")                           \
    X(EINTERNAL, 29, "internal error")                              \
    X(EEND, 30, "end of the data")                                  \
    X(EAGAIN, 31, "nothing there yet")

enum hedge_errno {
    HEDGE_OK = 0,
#define X(name, value, text) HEDGE_##name = -(value),
    HEDGE_ERROR_MAP(X)
#undef X
};

#define HEDGE_ERROR_TEXT_MAX 512

/* A code for programs and a sentence for people. */
struct hedge_error {
    int code;
    char text[HEDGE_ERROR_TEXT_MAX];
};

/* The text of a code, never NULL; "unknown error" for others. */
const char *hedge_strerror(int code);

/* The code's name, such as "EFULL"; "UNKNOWN" for others. */
const char *hedge_errname(int code);

#endif
