/* hedge.h - the public interface of libhedge: a node in your program.
 *
 * Ownership: what a _new or _open function hands out is ended by the matching
 *            _free or _close. Strings and options are copied. Pointers that a
 *            call hands out say how long they live.
 * Threads:   a node may be used by any thread; a writer or a reader by one
 *            thread at a time. Callbacks run on a thread of the node and must
 *            not block it for long.
 * Errors:    0 or a negative HEDGE_E... code (hedge/errors.h); where there is
 *            a struct hedge_error, it holds a sentence for people. It may be
 *            NULL.
 * Units:     bytes, milliseconds (_ms).
 * Limits:    records of 0 bytes to 1 GiB; names of 1 to 255 bytes; keys of 1
 *            to HEDGE_KEY_MAX bytes, values of up to 16 MiB; messages of up to
 *            64 MiB.
 *
 * A program that embeds a node calls hedge_process_setup() first in main(). */
#ifndef HEDGE_H
#define HEDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(HEDGE_BUILD)
#include "store/base/errors.h"
#else
#include <hedge/errors.h>
#endif

#define HEDGE_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* What belongs to the process and not to a library: malloc thresholds that
 * keep network buffers warm, and SIGPIPE ignored. */
HEDGE_API void hedge_process_setup(void);

HEDGE_API const char *hedge_version(void);

/* --- a node ----------------------------------------------------------------
 */

enum hedge_io { HEDGE_IO_AUTO, HEDGE_IO_URING, HEDGE_IO_THREADS };

#define HEDGE_UNLIMITED UINT64_MAX

/* A message as a handler or a receiver sees it: everything in it lives until
 * the handler returns, or the next receive on that stream. */
struct hedge_meta {
    const char *key, *value;
};
struct hedge_message {
    const void *data;
    size_t len;
    const char *from; /* The node it comes from; "" for a client. */
    const struct hedge_meta *meta; /* On streams; may be NULL. */
    size_t n_meta;
};

/* The reply a handler is making. */
struct hedge_answer;
/* Append to the reply; copied. HEDGE_ETOOBIG past 64 MiB, HEDGE_EEXHAUSTED
 * past the node's message limit. */
HEDGE_API int hedge_answer_write(struct hedge_answer *a, const void *data,
                                 size_t len);
/* The caller has gone or its time is up: nobody waits for this reply. */
HEDGE_API bool hedge_answer_is_cancelled(const struct hedge_answer *a);

/* Answers one message. Runs on a thread of the handlers' pool and may block:
 * others go on beside it, up to handlers_max. Other than 0 is a failure that
 * the sender sees as HEDGE_EHANDLER with the text in `e`. */
typedef int (*hedge_handler_fn)(void *data, const struct hedge_message *m,
                                struct hedge_answer *a, struct hedge_error *e);

/* One call per stream, on a thread of its own, until it returns: receive with
 * hedge_stream_recv() until HEDGE_EEND, reply with hedge_stream_send() at any
 * time. Other than 0 fails the stream with the text in `e`. */
struct hedge_stream;
typedef int (*hedge_stream_fn)(void *data, struct hedge_stream *s,
                               struct hedge_error *e);

enum hedge_log_level {
    HEDGE_LOG_AS_IS, /* As another node of the process has set it: info. */
    HEDGE_LOG_DEBUG,
    HEDGE_LOG_INFO,
    HEDGE_LOG_WARN,
    HEDGE_LOG_ERROR,
    HEDGE_LOG_OFF
};
/* One line, without its end; from any thread. `area` is the part that speaks.
 */
typedef void (*hedge_log_fn)(void *data, enum hedge_log_level level,
                             const char *area, const char *text);

/* hedge_options_init() fills in the defaults. */
struct hedge_options {
    const char *listen;       /* "host:port", the node's id. */
    const char *grpc_address; /* NULL: the same host, port + 1. */
    const char *group;        /* "default" */
    const char *engine;       /* "lmdb:DIR"; NULL: a directory of the user's. */
    const char *data_dir;     /* NULL: a directory of the user's. */
    uint64_t mem_limit;       /* 0: a quarter of what there is. */
    uint64_t disk_limit;      /* 10 GiB; 0: no disk tier. */
    uint64_t disk_reserve;    /* Left free; HEDGE_UNLIMITED: by itself. */
    uint64_t lend_mem, lend_disk; /* For other nodes; all of it. */
    uint64_t message_limit;       /* 64 MiB */
    size_t block_size;            /* 1 MiB; one for the whole group. */
    uint64_t lease_ms;            /* 10,000 */
    uint64_t sync_interval_ms;    /* 2,000; at least 100. */
    uint64_t block_lease_ms;      /* 0: two leases. */
    enum hedge_io io;
    /* The log is one for the process, on stderr unless there is `log`, which
     * must stay callable when the node has ended. */
    enum hedge_log_level log_level;
    hedge_log_fn log;
    void *log_data;

    /* Called when this node starts or stops to lead. */
    void (*on_leader)(void *data, bool is_leader, uint64_t token);
    /* Called on every node for each join and leave, */
    void (*on_member)(void *data, bool joined, const char *id);
    /* and when another node leads, or this one; "": nobody, as far as it is
     * known here. */
    void (*on_new_leader)(void *data, const char *id, uint64_t token);
    /* Called once for each grant of this node's semaphores that is lost: taken
     * away, or its time was up before it could be renewed; not for what has
     * been given back. hedge_semaphore_remaining_ms() is 0 for it from then on;
     * it is still to be released. Perhaps before the call that acquires it has
     * returned. On the thread that renews all grants of the node: release it
     * from another one. Never once hedge_node_stop() has returned. */
    void (*on_lost)(void *data, const char *semaphore, uint64_t token);
    void *data; /* For these and the handlers. */

    /* Who answers hedge_send() while this node leads, and hedge_broadcast() at
     * any time; streams likewise. NULL: the sender gets HEDGE_ENOHANDLER. */
    hedge_handler_fn leader_handler, broadcast_handler;
    hedge_stream_fn leader_stream_handler, broadcast_stream_handler;
    unsigned handlers_max; /* At a time, of each kind; 64. */
    bool line_protocol;    /* The reference's, on the listen address; on. */
};

struct hedge_node;

HEDGE_API void hedge_options_init(struct hedge_options *o);
/* Could a node start with these, as far as that can be said without touching
 * anything? */
HEDGE_API int hedge_options_check(const struct hedge_options *o,
                                  struct hedge_error *e);

/* Check the options, claim the data directory, bind the addresses and serve.
 * When it returns 0 the node runs; it may not have met a leader yet. */
HEDGE_API int hedge_node_start(const struct hedge_options *o,
                               struct hedge_node **out, struct hedge_error *e);
/* Leave the group, stop serving, free everything. Writers, readers and
 * semaphores must be closed. NULL is fine. */
HEDGE_API void hedge_node_stop(struct hedge_node *node);

/* hedge_node_start(), then block until `stop` (polled ten times a second) is
 * true, then hedge_node_stop(). `*out`, when not NULL, is the node while it
 * runs. */
HEDGE_API int hedge_node_run(const struct hedge_options *o,
                             const volatile bool *stop, struct hedge_node **out,
                             struct hedge_error *e);
HEDGE_API bool hedge_node_is_running(const struct hedge_node *node);
/* "node ID of group G, leader, ..." for people; returns what snprintf does. */
HEDGE_API int hedge_node_describe(struct hedge_node *node, char *out,
                                  size_t size);
/* Is the node in its group? HEDGE_EAGAIN: it has not met it yet. Otherwise the
 * leader has refused it for what it is, such as a block size or a version that
 * differ: it stays outside. */
HEDGE_API int hedge_node_joined(struct hedge_node *node, struct hedge_error *e);

/* Live as long as the node. */
HEDGE_API const char *hedge_node_name(const struct hedge_node *node);
HEDGE_API const char *hedge_node_grpc_address(const struct hedge_node *node);

/* --- the cluster ------------------------------------------------------------
 */

/* Is this node the leader now? *token (may be NULL) is the fencing token. */
HEDGE_API bool hedge_has_lock(struct hedge_node *node, uint64_t *token);

struct hedge_leader {
    char id[264];
    char grpc_address[264];
    uint64_t token;
};
/* HEDGE_ENOLEADER when none is known. */
HEDGE_API int hedge_leader(struct hedge_node *node, struct hedge_leader *out);
HEDGE_API uint64_t hedge_lease_ms(const struct hedge_node *node);
HEDGE_API uint64_t hedge_election_rounds(struct hedge_node *node);

struct hedge_member {
    char id[264];
    char grpc_address[264];
    uint64_t incarnation;
    bool leader;
    uint64_t mem_free, disk_free; /* What other nodes may still use. */
};
struct hedge_members {
    size_t n;
    uint64_t version;
    struct hedge_member member[];
};
/* A snapshot, to be freed. NULL: no memory. */
HEDGE_API struct hedge_members *hedge_members(struct hedge_node *node);
HEDGE_API void hedge_members_free(struct hedge_members *m);

/* --- SoS, the spill-over store
 * ------------------------------------------------ */

enum hedge_compression {
    HEDGE_COMPRESS_AUTO,
    HEDGE_COMPRESS_NONE,
    HEDGE_COMPRESS_ZSTD
};

struct hedge_sos_options {
    uint64_t mem_limit, disk_limit; /* Per node; 0: none of its own. */
    uint64_t ttl_ms;   /* Kept this long after the last use; 30,000. */
    unsigned replicas; /* Copies, on as many nodes; 1. They guard against the
                        * loss of other nodes; with this one the store goes. */
    enum hedge_compression compression;
    int compression_level; /* zstd's; 0: its default here. */
};
HEDGE_API void hedge_sos_options_init(struct hedge_sos_options *o);

struct hedge_manifest {
    uint64_t records, bytes;
    unsigned char digest[16];
};

struct hedge_sos;
struct hedge_sos_writer;
struct hedge_sos_reader;

/* Open the store of this name: the one there is, wherever its owner is, or a
 * new one owned by this node. `options` may be NULL (defaults for a new store,
 * whatever it has for an existing one); others than an existing store has are
 * HEDGE_EINVAL with the difference. */
HEDGE_API int hedge_sos_open(struct hedge_node *node, const char *name,
                             const struct hedge_sos_options *options,
                             uint64_t timeout_ms, struct hedge_sos **out,
                             struct hedge_error *e);
/* The store itself stays until its TTL has passed. */
HEDGE_API void hedge_sos_close(struct hedge_sos *sos);
/* End a store now, wherever it is. */
HEDGE_API int hedge_sos_remove(struct hedge_node *node, const char *name,
                               uint64_t timeout_ms, struct hedge_error *e);

HEDGE_API int hedge_sos_writer_open(struct hedge_sos *sos,
                                    struct hedge_sos_writer **out,
                                    struct hedge_error *e);
/* Append one record, copied. Waits while everything is busy; HEDGE_EFULL when
 * no node has room: this record is not stored, all before it are. */
HEDGE_API int hedge_sos_write(struct hedge_sos_writer *w, const void *data,
                              size_t len);
/* Let readers see what has been written so far. */
HEDGE_API int hedge_sos_flush(struct hedge_sos_writer *w);
/* The text of the last error. Lives as long as the writer. */
HEDGE_API const char *hedge_sos_writer_error(const struct hedge_sos_writer *w);
/* Wait until all is stored, and end the writer. The manifest tells what is
 * kept, also after HEDGE_EFULL. `out` may be NULL. */
HEDGE_API int hedge_sos_writer_close(struct hedge_sos_writer *w,
                                     struct hedge_manifest *out,
                                     struct hedge_error *e);
/* Instead of that: not all there is will be written. The store is aborted:
 * whoever reads it gets its whole records and then HEDGE_EABORTED. */
HEDGE_API void hedge_sos_writer_abort(struct hedge_sos_writer *w);

enum { HEDGE_SOS_FOLLOW = 1, HEDGE_SOS_DISCARD = 2 };

/* A record, or a part of one: `data` lives until the next call. */
struct hedge_piece {
    const void *data;
    size_t len;
    bool first, last;
};

HEDGE_API int hedge_sos_reader_open(struct hedge_sos *sos, unsigned flags,
                                    struct hedge_sos_reader **out,
                                    struct hedge_error *e);
/* The next piece. HEDGE_EEND: all of it was read and matches the manifest;
 * HEDGE_ETIMEDOUT: nothing yet (follow); any other error means that data are
 * missing or wrong, never just the end. */
HEDGE_API int hedge_sos_next(struct hedge_sos_reader *r, uint64_t timeout_ms,
                             struct hedge_piece *out);
HEDGE_API const char *hedge_sos_reader_error(const struct hedge_sos_reader *r);
HEDGE_API void hedge_sos_reader_close(struct hedge_sos_reader *r);

/* --- the log
 * ------------------------------------------------------------------
 *
 * A table of versions: each put adds one. Keys and values are bytes. A
 * revision is global and only grows; a timestamp never goes back. Any node
 * answers reads by itself, complete up to the last acknowledged put; puts go
 * to the leader, wherever they are made. */

/* A byte 0x00 in a key counts twice. */
#define HEDGE_KEY_MAX 500u
#define HEDGE_VALUE_MAX ((size_t)16 << 20)

/* Hide the latest version for good, then add the new one. */
enum { HEDGE_PUT_NO_APPEND = 1 };

struct hedge_put {
    const void *key;
    size_t key_len;
    const void *value;
    size_t value_len;
    unsigned flags;
    /* A put repeated with the same id within 10 minutes is the same put. All
     * zeros: one is made. */
    unsigned char request[16];
    /* Out. */
    uint64_t revision, timestamp_ms;
};

/* On 0 it is on disk, and *revision (may be NULL) is its version. Waits for a
 * leader until the deadline (HEDGE_ENOLEADER); HEDGE_ETIMEDOUT: it may yet
 * happen. HEDGE_EINVAL: an empty or too long key, or one that begins with the
 * reserved byte 0x00 or "__hedge/". HEDGE_ETOOBIG: the value. */
HEDGE_API int hedge_put(struct hedge_node *node, const void *key,
                        size_t key_len, const void *value, size_t value_len,
                        unsigned flags, uint64_t timeout_ms, uint64_t *revision,
                        struct hedge_error *e);
/* Several at once, in order, all or none of them, at most 8 MiB together or
 * one of any size. */
HEDGE_API int hedge_put_batch(struct hedge_node *node, struct hedge_put *puts,
                              size_t n, uint64_t timeout_ms,
                              struct hedge_error *e);

struct hedge_entry {
    const void *key;
    size_t key_len;
    const void *value;
    size_t value_len;
    uint64_t revision, timestamp_ms;
    uint64_t token;     /* Of the leader that wrote it, */
    const char *leader; /* and its id. */
};

/* What hedge_get() takes as its limit; n > 0: the newest n, newest first. */
enum { HEDGE_GET_LATEST = 0, HEDGE_GET_ALL = -1, HEDGE_GET_OLDEST = -2 };

struct hedge_entries {
    size_t n;
    struct hedge_entry entry[];
};

/* HEDGE_ENOTFOUND: no version of this key. `*out` is to be freed.
 * HEDGE_EEXHAUSTED: more than the message limit holds; read the rest with
 * hedge_log_open(). */
HEDGE_API int hedge_get(struct hedge_node *node, const void *key,
                        size_t key_len, long limit, struct hedge_entries **out,
                        struct hedge_error *e);
HEDGE_API void hedge_entries_free(struct hedge_entries *entries);

/* hedge_query_init(): everything, oldest first. */
struct hedge_query {
    const void *key; /* This key, or with `prefix` all that begin with it. */
    size_t key_len;
    bool prefix;
    bool latest; /* Only the latest version of each key, in order of keys. */
    bool newest; /* Newest first. Not with follow. */
    bool follow; /* At the end wait for more: each visible version once. */
    uint64_t from_revision; /* From this one on, inclusive; 0: the first. */
    uint64_t at_revision;   /* As of: none after it; 0: now. */
    uint64_t since_ms;      /* Unix time; from then on, inclusive; 0: all. */
    uint64_t until_ms;      /* Before then, as of then; 0: now. */
    uint64_t limit;         /* 0: none. */
};
HEDGE_API void hedge_query_init(struct hedge_query *q);

struct hedge_log;
/* A consistent answer, as of the moment it is opened or of at_revision.
 * HEDGE_EEXPIRED: what is asked for has been compacted away, with the oldest
 * revision there is. HEDGE_EINVAL: a revision of the future. */
HEDGE_API int hedge_log_open(struct hedge_node *node,
                             const struct hedge_query *q,
                             struct hedge_log **out, struct hedge_error *e);
/* The next entry; it lives until the next call. HEDGE_EEND; with follow
 * HEDGE_ETIMEDOUT when there is nothing new. */
HEDGE_API int hedge_log_next(struct hedge_log *l, uint64_t timeout_ms,
                             struct hedge_entry *out, struct hedge_error *e);
HEDGE_API void hedge_log_close(struct hedge_log *l);

/* Remove versions before a revision or a time (the other one 0), but keep the
 * newest `keep` of each key (at least 1). *removed may be NULL. HEDGE_EINVAL: a
 * revision of the future, or a time more than a minute ahead. */
HEDGE_API int hedge_log_compact(struct hedge_node *node,
                                uint64_t before_revision, uint64_t before_ms,
                                uint64_t keep, uint64_t timeout_ms,
                                uint64_t *removed, struct hedge_error *e);

/* --- messages
 * -----------------------------------------------------------------
 *
 * Errors tell apart: HEDGE_ENOLEADER, HEDGE_ENOHANDLER, HEDGE_EHANDLER,
 * HEDGE_ETIMEDOUT (it may have run), HEDGE_EUNAVAILABLE (the connection was
 * lost; it may have run), HEDGE_EBUSY (all handlers were busy; it has not run),
 * HEDGE_EEXHAUSTED (no room for the message or its reply). What surely has not
 * run, for want of a leader or of room, is tried again until the deadline.
 * HEDGE_ETOOBIG: over 64 MiB. */

struct hedge_reply {
    const char *id; /* Who answers. */
    int error;      /* 0 or a code, */
    const char *error_text;
    const void *data;
    size_t len;
};

/* To the leader, this node itself too; *reply is to be freed with
 * hedge_reply_free(). Waits for a leader until the deadline. */
HEDGE_API int hedge_send(struct hedge_node *node, const void *data, size_t len,
                         uint64_t timeout_ms, struct hedge_reply **reply,
                         struct hedge_error *e);
/* The same, repeated after a failure that may pass (no leader, not the leader
 * any more, connection lost) up to `retries` times with back-off; negative:
 * until the deadline. The handler may run more than once. */
HEDGE_API int hedge_send_to_leader(struct hedge_node *node, const void *data,
                                   size_t len, int retries, uint64_t timeout_ms,
                                   struct hedge_reply **reply,
                                   struct hedge_error *e);
HEDGE_API void hedge_reply_free(struct hedge_reply *reply);

struct hedge_broadcast_options {
    bool skip_self;
    const char *const *only; /* Up to 1024 ids; NULL: all members. */
    size_t n_only;
    /* Called for each reply as it comes, one at a time, on the thread that
     * waits; `r` lives until it returns. NULL: the replies are collected. */
    void (*on_reply)(void *ctx, const struct hedge_reply *r);
    void *ctx;
};
struct hedge_replies {
    size_t n;
    struct hedge_reply reply[];
};
/* To every member, one reply or error of each; returns when all have answered
 * or the deadline has passed (those get HEDGE_ETIMEDOUT). `options` may be
 * NULL, `*out` (NULL with on_reply) is to be freed. */
HEDGE_API int hedge_broadcast(struct hedge_node *node, const void *data,
                              size_t len,
                              const struct hedge_broadcast_options *options,
                              uint64_t timeout_ms, struct hedge_replies **out,
                              struct hedge_error *e);
HEDGE_API void hedge_replies_free(struct hedge_replies *replies);

/* Full duplex, to the leader's stream handler or to that of every member (each
 * its own stream; what is received says from whom). One thread sends and one
 * receives at a time. */
HEDGE_API int hedge_stream_to_leader(struct hedge_node *node,
                                     uint64_t timeout_ms,
                                     struct hedge_stream **out,
                                     struct hedge_error *e);
HEDGE_API int hedge_stream_broadcast(struct hedge_node *node, bool skip_self,
                                     uint64_t timeout_ms,
                                     struct hedge_stream **out,
                                     struct hedge_error *e);
/* Only data and meta are sent; copied. Up to 256 pairs, of 64 KiB together,
 * else HEDGE_ETOOBIG, and of valid UTF-8, else HEDGE_EINVAL. Waits until all
 * have taken the message before: back-pressure. HEDGE_ETIMEDOUT: nothing was
 * sent, or, of a message over 1 MiB, the stream has ended. On a broadcast it
 * goes to the members that have not failed, and one that takes nothing for 5 s
 * has; HEDGE_ECLOSED when there is none left. */
HEDGE_API int hedge_stream_send(struct hedge_stream *s,
                                const struct hedge_message *m,
                                uint64_t timeout_ms);
HEDGE_API int hedge_stream_close_send(struct hedge_stream *s);
/* HEDGE_EEND: all have ended in good order. A member that failed is told once
 * with its error, `out->from` and a text in `e`; the others go on. */
HEDGE_API int hedge_stream_recv(struct hedge_stream *s, uint64_t timeout_ms,
                                struct hedge_message *out,
                                struct hedge_error *e);
/* Also cancels; not for handlers, whose stream ends when they return. */
HEDGE_API void hedge_stream_close(struct hedge_stream *s);

/* --- semaphores
 * ---------------------------------------------------------------
 *
 * A grant belongs to the session of its node and is lost with it: when the
 * node cannot renew for the session's lease (15 s), others get the permits.
 * Tokens only grow from grant to grant of a semaphore: hand them to what is
 * protected, and let that refuse lower ones. A lock is a semaphore of one. */

struct hedge_semaphore;

/* Another limit than the existing one is HEDGE_EINVAL that names both. A limit
 * is 1 to 2^31 - 1. A semaphore without holders and waiters is forgotten. */
HEDGE_API int hedge_semaphore_open(struct hedge_node *node, const char *name,
                                   uint32_t limit, uint64_t timeout_ms,
                                   struct hedge_semaphore **out,
                                   struct hedge_error *e);
/* Waits in line, first come first served. HEDGE_ETIMEDOUT: not got, and not in
 * line any more. */
HEDGE_API int hedge_semaphore_acquire(struct hedge_semaphore *s,
                                      uint32_t permits, uint64_t timeout_ms,
                                      uint64_t *token, struct hedge_error *e);
/* HEDGE_EBUSY: not now. */
HEDGE_API int hedge_semaphore_try_acquire(struct hedge_semaphore *s,
                                          uint32_t permits, uint64_t timeout_ms,
                                          uint64_t *token,
                                          struct hedge_error *e);
/* HEDGE_EFENCED: that grant was lost before. */
HEDGE_API int hedge_semaphore_release(struct hedge_semaphore *s, uint64_t token,
                                      uint64_t timeout_ms,
                                      struct hedge_error *e);
/* How long the grant is sure to be held without hearing from the leader; 0:
 * lost, or revoked and to be given back: its permits are free with the release,
 * at the latest when the lease would have ended. The option `on_lost` says
 * when. */
HEDGE_API uint64_t hedge_semaphore_remaining_ms(struct hedge_semaphore *s,
                                                uint64_t token);
/* Gives back what is still held. */
HEDGE_API void hedge_semaphore_close(struct hedge_semaphore *s);

struct hedge_semaphore_holder {
    char holder[264]; /* The session's node, or the client's name for itself. */
    uint64_t token;   /* 0: a waiter. */
    uint32_t permits;
    uint64_t remaining_ms;
};
struct hedge_semaphore_info {
    char name[256];
    uint32_t limit, n_holders, n_waiters;
    struct hedge_semaphore_holder *holders, *waiters;
};
struct hedge_semaphores {
    size_t n;
    struct hedge_semaphore_info semaphore[];
};
/* `name` NULL: all, by name. Asked for in pages, each claim as of the first;
 * when the leader changes meanwhile, or has to read its disk again, who is
 * granted may be listed as waiting and as holding. `*out` is to be freed. */
HEDGE_API int hedge_semaphores(struct hedge_node *node, const char *name,
                               uint64_t timeout_ms,
                               struct hedge_semaphores **out,
                               struct hedge_error *e);
HEDGE_API void hedge_semaphores_free(struct hedge_semaphores *s);
/* Take a grant away, whoever holds it: it is not renewed any more, so that it
 * ends with its lease or when its holder, who is told, gives it back. What was
 * taken for a fixed time (hedgectl sem acquire) ends at once. HEDGE_ENOTFOUND.
 */
HEDGE_API int hedge_semaphore_revoke(struct hedge_node *node, const char *name,
                                     uint64_t token, uint64_t timeout_ms,
                                     struct hedge_error *e);

#ifdef __cplusplus
}
#endif

#endif
