/* engine.h - where the cluster's truth lives: the lease that elects a leader,
 * and the log, behind one table of operations.
 *
 * An engine belongs to one group. Its lease has at most one holder. Every
 * acquisition yields a fencing token that is greater than all before it, over
 * restarts and reboots too; renewing and releasing need the current one.
 *
 * Ownership: a struct engine is a value; engine_open() fills it and
 *            engine_close() ends it. Strings are copied.
 * Threads:   any; every call may block (on a disk, a network, or another
 *            process), so none belongs on the loop. The lease calls are made
 *            for a thread of their own: see the engine's header for how long.
 * Errors:    hedge codes with a sentence in `e`, which may be NULL.
 *            HEDGE_EFENCED: the token is not the current one, or its lease
 *            has run out. HEDGE_EBUSY: another node holds the lease.
 *            HEDGE_ETIMEDOUT: the engine did not answer; whether the call
 *            took effect is not known.
 * Units:     milliseconds (_ms).
 * Limits:    ids and addresses of ENGINE_ID_SIZE - 1 bytes, group names of
 *            ENGINE_GROUP_MAX; leases of 100 ms to 1 h. */
#ifndef CLUSTER_ENGINE_ENGINE_H
#define CLUSTER_ENGINE_ENGINE_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A host name of 253 bytes, a colon, a port, the terminator. */
#define ENGINE_ID_SIZE 264
#define ENGINE_GROUP_MAX 255
#define ENGINE_LEASE_MIN_MS 100u
#define ENGINE_LEASE_MAX_MS 3600000u

/* Who asks for the lease. The incarnation tells a node's lives apart: the same
 * life may acquire again at once (its last answer may have been lost), a new
 * life waits like everybody else. */
struct engine_holder {
    const char *id;
    const char *address; /* Where the others reach it: gRPC. */
    uint64_t incarnation;
};

struct engine_lease {
    bool held;
    char holder[ENGINE_ID_SIZE]; /* The last holder, also when not held. */
    char address[ENGINE_ID_SIZE];
    uint64_t incarnation;
    uint64_t token;        /* The last one given out; 0 = none ever. */
    uint64_t remaining_ms; /* 0 when not held. */
    /* How long nobody has held it; 0 when held, UINT64_MAX when nobody has
     * since the machine started. Nodes that were alive would have taken it. */
    uint64_t idle_ms;
};

struct engine_health {
    unsigned readers_cleared; /* Slots of dead processes, freed just now. */
    unsigned readers;         /* Slots in use. */
    uint64_t oldest_reader;   /* Transactions the oldest reader is behind. */
};

/* --- the log --- */

#define ENGINE_REQUEST_SIZE 16
#define ENGINE_KEY_MAX 500u /* A byte 0x00 counts twice. */
#define ENGINE_VALUE_MAX ((size_t)16 << 20)

/* Hide the latest version of the key for good. */
enum { ENGINE_REPLACE = 1, ENGINE_DELETE = 2 };

struct engine_put {
    const void *key;
    size_t key_len;
    const void *value;
    size_t value_len;
    /* ENGINE_REPLACE; ENGINE_DELETE (for our own reserved keys only): hide all
     * versions of the key, add none. */
    unsigned flags;
    unsigned char request[ENGINE_REQUEST_SIZE]; /* Zeros: none. */
    /* Out. A repeated request gets what the first one got. */
    uint64_t revision, timestamp_ms;
    bool repeated;
};

struct engine_entry {
    const void *key;
    size_t key_len;
    const void *value;
    size_t value_len;
    uint64_t revision, timestamp_ms, token;
    const char *leader;
};

#define ENGINE_RESUME_MAX 528

struct engine_query {
    const void *key; /* This key, or all that begin with it. */
    size_t key_len;  /* 0: all keys. */
    bool prefix;
    bool latest;   /* One version per key, in order of keys. */
    bool newest;   /* Newest first; not with latest. */
    bool reserved; /* Reserved keys too; without it they do not exist. */
    uint64_t from_revision;      /* Inclusive. */
    uint64_t at_revision;        /* Inclusive; 0: now. */
    uint64_t since_ms, until_ms; /* [since, until); 0: none. */
    uint64_t limit;              /* 0: none; counted down. */
    uint64_t snapshot; /* Out: the last revision as of the first page. */
    /* Where the last page ended, as engine_scan() left it; empty at first. It
     * is checked, and may come from a client. */
    unsigned char resume[ENGINE_RESUME_MAX];
    size_t resume_len;
};

/* What a callback says: go on, end the page with this entry, or end it before
 * this entry, which comes again. */
enum { ENGINE_GO_ON = 0, ENGINE_END = 1, ENGINE_REFUSE = -1 };
/* The entry lives until it returns. */
typedef int (*engine_entry_fn)(void *ctx, const struct engine_entry *entry);

struct engine_log_state {
    uint64_t revision; /* The last one. */
    uint64_t timestamp_ms;
    uint64_t floor; /* All before it may have been compacted away. */
    uint64_t term;  /* The highest token that has written. */
};

/* Versions before a revision or a time (the other one 0) go, but for the
 * newest `keep` of each key and what a reader as of that point can see. */
struct engine_compaction {
    uint64_t before_revision, before_ms, keep;
    uint64_t removed; /* Out: by this step. */
    bool done;        /* Out: there is no more to do. */
    /* The engine's: where the next step goes on; zeros at first. */
    uint64_t point, newer, seen;
    unsigned char at[ENGINE_RESUME_MAX];
    size_t at_len;
};

/* Every operation may block, and may be called from any thread. All but
 * acquire may be repeated without further effect. */
struct engine_ops {
    const char *name; /* The scheme of its URLs. */

    int (*acquire)(void *ctx, const struct engine_holder *who,
                   uint64_t lease_ms, uint64_t *token,
                   struct engine_lease *before, struct hedge_error *e);
    int (*renew)(void *ctx, uint64_t token, uint64_t lease_ms,
                 struct hedge_error *e);
    int (*release)(void *ctx, uint64_t token, struct hedge_error *e);
    int (*look)(void *ctx, struct engine_lease *out, struct hedge_error *e);

    int (*append)(void *ctx, uint64_t token, const char *leader,
                  struct engine_put *puts, size_t n, uint64_t timeout_ms,
                  struct hedge_error *e);
    int (*latest)(void *ctx, const void *key, size_t key_len,
                  engine_entry_fn fn, void *fn_ctx, struct hedge_error *e);
    int (*scan)(void *ctx, struct engine_query *q, engine_entry_fn fn,
                void *fn_ctx, bool *more, struct hedge_error *e);
    int (*compact)(void *ctx, uint64_t token, const char *leader,
                   struct engine_compaction *c, uint64_t timeout_ms,
                   struct hedge_error *e);
    int (*log_state)(void *ctx, struct engine_log_state *out,
                     struct hedge_error *e);

    int (*maintain)(void *ctx, struct engine_health *out,
                    struct hedge_error *e);
    void (*close)(void *ctx);
};

struct engine_meter;

struct engine {
    const struct engine_ops *ops;
    void *ctx;
    struct engine_meter *meter; /* NULL: nobody counts. */
};

/* What has been asked of an engine since it was opened. The time of the last
 * two kinds is not taken: they are made by the million. */
enum engine_call {
    ENGINE_ACQUIRE,
    ENGINE_RENEW,
    ENGINE_RELEASE,
    ENGINE_LOOK,
    ENGINE_APPEND,
    ENGINE_SCAN,
    ENGINE_COMPACT,
    ENGINE_MAINTAIN,
    ENGINE_LATEST,
    ENGINE_LOG_STATE,
    ENGINE_CALLS
};
struct engine_use {
    uint64_t calls, failures, nanos;
};
const char *engine_call_name(enum engine_call call);
void engine_use(const struct engine *g, enum engine_call call,
                struct engine_use *out);

/* Is there such an engine? Opens nothing. */
int engine_check(const char *url, const char *group, struct hedge_error *e);
/* Open the engine of `url` ("lmdb:DIR") for one group. A scheme that is not
 * built in is HEDGE_ENOTSUP, anything else HEDGE_EINVAL. */
int engine_open(const char *url, const char *group, struct engine *out,
                struct hedge_error *e);
/* No call may be in progress. An engine that is all zeros is fine. */
void engine_close(struct engine *g);

/* Take the lease if nobody holds it. On 0 *token is the new token, and
 * *before says how the lease was found (who had it last, idle_ms). On
 * HEDGE_EBUSY *before is the lease that stands in the way. */
int engine_acquire(const struct engine *g, const struct engine_holder *who,
                   uint64_t lease_ms, uint64_t *token,
                   struct engine_lease *before, struct hedge_error *e);

/* Let the lease run for lease_ms from now (a moment after this call began, so
 * whoever counts from its beginning is on the safe side). */
int engine_renew(const struct engine *g, uint64_t token, uint64_t lease_ms,
                 struct hedge_error *e);

/* Give the lease back. HEDGE_EFENCED, and nothing changed, when `token` is
 * not the current one. */
int engine_release(const struct engine *g, uint64_t token,
                   struct hedge_error *e);

/* Cheap and never behind a writer: made to be called a few times a second. */
int engine_look(const struct engine *g, struct engine_lease *out,
                struct hedge_error *e);

/* Append all puts, in order, in one synced transaction, or none. `token` is
 * compared, and raises the term, in that transaction: HEDGE_EFENCED when a
 * higher one has written. n = 0 only raises the term: what a new leader does
 * first, so that nothing of an older one comes after what it reads.
 * HEDGE_ETIMEDOUT: another process did not let this one write within
 * timeout_ms; the text has its pid, and nothing was written. */
int engine_append(const struct engine *g, uint64_t token, const char *leader,
                  struct engine_put *puts, size_t n, uint64_t timeout_ms,
                  struct hedge_error *e);

/* Call `fn` with the newest version of a key. HEDGE_ENOTFOUND. Never blocks
 * but for pages that have to be read from disk. */
int engine_latest(const struct engine *g, const void *key, size_t key_len,
                  engine_entry_fn fn, void *ctx, struct hedge_error *e);

/* Call `fn` for each entry of a page, from one snapshot, which it looks at for
 * a bounded time; *more: there is more, call again with the same `q`, whose
 * resume (and limit) go on from there. The first page fixes what is seen: later
 * ones are as of then. HEDGE_EEXPIRED: what is asked for was compacted away.
 * HEDGE_EINVAL: a revision of the future, a key too long, a bad token. */
int engine_scan(const struct engine *g, struct engine_query *q,
                engine_entry_fn fn, void *ctx, bool *more,
                struct hedge_error *e);

/* One bounded step of a compaction; call again until it is done. */
int engine_compact(const struct engine *g, uint64_t token, const char *leader,
                   struct engine_compaction *c, uint64_t timeout_ms,
                   struct hedge_error *e);

/* Cheap: a few of these a millisecond are fine. */
int engine_log_state(const struct engine *g, struct engine_log_state *out,
                     struct hedge_error *e);

/* Housekeeping; the leader calls it once per sync interval. `out` may be
 * NULL. */
int engine_maintain(const struct engine *g, struct engine_health *out,
                    struct hedge_error *e);

#endif
