/* handlers.h - where the users' handlers run: on threads of their own, so many
 * of each kind at a time, each message with a deadline.
 *
 * A message gets a thread at once while fewer than `max` handlers of its kind
 * run; else it waits in line. When its deadline passes it is answered at once,
 * whether it waits (HEDGE_EBUSY: it has not run) or runs (HEDGE_ETIMEDOUT: the
 * handler keeps its thread until it returns, and what it says is dropped). A
 * handler that hangs therefore costs its slot and nothing else.
 *
 * Ownership: messages are copied. What `done` is given is its own to move.
 * Threads:   any. `done` runs on a handler's thread, or on the one that watches
 *            the deadlines; inside handlers_submit() only with `lend`.
 * Errors:    HEDGE_ENOHANDLER: there is none for this kind. HEDGE_ENOTLEADER:
 *            a leader's handler runs only while this node leads. HEDGE_EBUSY,
 *            HEDGE_ETIMEDOUT as above; HEDGE_EHANDLER with the handler's own
 *            text; HEDGE_EEXHAUSTED: no room for the copy; HEDGE_ECLOSED: the
 *            node stops.
 * Units:     bytes, milliseconds.
 * Limits:    `max` messages and `max` streams of each kind at a time;
 *            HANDLERS_QUEUE_MAX messages in line of each kind, then HEDGE_EBUSY
 *            at once. */
#ifndef CLUSTER_HANDLERS_H
#define CLUSTER_HANDLERS_H

#include "cluster/messages/msg_buffer.h"

#define HANDLERS_QUEUE_MAX 1024
#define HANDLERS_MAX_DEFAULT 64

enum handler_kind { HANDLER_LEADER, HANDLER_BROADCAST, HANDLER_KINDS };

struct handlers;

struct handlers_options {
    const char *id; /* The node's; lives as long as the handlers. */
    hedge_handler_fn handler[HANDLER_KINDS];
    hedge_stream_fn stream[HANDLER_KINDS];
    void *data;
    unsigned max;
    struct msg_budget *budget;
    bool (*leads)(void *ctx); /* NULL: always. */
    void *ctx;
};

int handlers_new(const struct handlers_options *o, struct handlers **out);
/* Refuse new messages, let those that run go on for grace_ms, then answer what
 * is left with HEDGE_ECLOSED and have its handlers see that they are cancelled.
 * Does not wait for them. */
void handlers_stop(struct handlers *h, uint64_t grace_ms);
/* Waits for every handler to return. NULL is fine. */
void handlers_free(struct handlers *h);

/* The handlers of a node, for the services of a daemon; they live as long as
 * it. */
struct handlers *node_handlers(struct hedge_node *node);
const char *handler_kind_name(enum handler_kind kind);

/* Run the handler for one message and wait for its reply: the way in for any
 * protocol. `from`: the sender's node, "" for a client. On 0 *reply is to be
 * freed with hedge_reply_free(). */
int handlers_run(struct handlers *h, enum handler_kind kind, const void *data,
                 size_t len, const char *from, uint64_t timeout_ms,
                 struct hedge_reply **reply, struct hedge_error *e);

/* The same without waiting. `e` has a code and a text when rv is not 0. */
typedef void (*handlers_done_fn)(void *arg, int rv, const struct hedge_error *e,
                                 struct msg_buf *reply);
/* Has the one who waits gone? Asked now and then, for
 * hedge_answer_is_cancelled(), and not after `done` has begun; must not block
 * and not call back. */
typedef bool (*handlers_gone_fn)(void *arg);

struct handlers_message {
    enum handler_kind kind;
    const void *data;
    size_t len;
    /* Instead of data: kept, not copied; or NULL. */
    struct msg_shared *shared;
    struct msg_buf *own; /* Instead of data: moved, also on errors; or NULL. */
    const char *from;
    uint64_t timeout_ms;
    /* Takes the calling thread for a handler that is known to be quick: true
     * when it may block from then on. `done` then runs inside
     * handlers_submit(). NULL: never. */
    bool (*lend)(void);
    handlers_done_fn done;
    handlers_gone_fn gone; /* NULL: never. */
    void *arg;
};
/* 0 promises exactly one `done`; an error none. */
int handlers_submit(struct handlers *h, const struct handlers_message *m,
                    struct hedge_error *e);

/* Would a message of this kind be taken? 0 or the error that would be. */
int handlers_check(struct handlers *h, enum handler_kind kind,
                   struct hedge_error *e);

/* Nobody waits for this `arg` any more: its `done` runs soon, with
 * HEDGE_ECANCELED unless it was on its way. */
void handlers_cancel(struct handlers *h, const void *arg);

struct handlers_use {
    unsigned running, queued, streams, max;
};
void handlers_use(struct handlers *h, enum handler_kind kind,
                  struct handlers_use *out);

/* Run the stream handler of a kind on the calling thread, which is the
 * stream's own. HEDGE_EBUSY when `max` of them run; where the handler fails,
 * HEDGE_EHANDLER with its text. */
int handlers_run_stream(struct handlers *h, enum handler_kind kind,
                        struct hedge_stream *s, struct hedge_error *e);

#endif
