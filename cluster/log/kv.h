/* kv.h - a node's way to the log: group commit on the leader, forwarding to it
 * from the others. (Reads go straight to the engine.)
 *
 * Puts wait in one queue. While this node leads, one thread takes all that
 * wait together and appends them in one synced transaction. While another node
 * leads, two threads take them and send them there, again and again until the
 * deadline; each then carries a request id, so that one whose answer was lost
 * is not made twice.
 *
 * Ownership: one per node; kv_new() / kv_free(). Keys, values and operations
 *            stay the caller's and must live, unchanged, until the call returns
 *            or the operation is done.
 * Threads:   any. kv_append() and kv_put() block; kv_submit() does not.
 * Errors:    as hedge_put() in hedge.h. HEDGE_EFENCED: the token is stale, and
 *            nothing was written. HEDGE_EEXHAUSTED: too much waits already.
 * Units:     milliseconds; deadlines on the monotonic clock.
 * Limits:    as hedge.h; KV_BATCH_BYTES a transaction, or one put of any size.
 */
#ifndef CLUSTER_KV_H
#define CLUSTER_KV_H

#include "cluster/engine/engine.h"
#include "store/base/list.h"

struct kv;

/* Keys of our own: users can neither write nor see them. */
#define KV_RESERVED_PREFIX "__hedge/"
#define KV_BATCH_BYTES ((size_t)4 << 20)
#define KV_BATCH_PUTS 4096u

struct kv_options {
    const struct engine *engine;
    const char *id;        /* Named as the leader in what this node appends. */
    uint64_t budget_bytes; /* Of puts that wait, with keys and values. */
    void *ctx;
    /* Does this node lead now, and with which token? Must not block. */
    bool (*leads)(void *ctx, uint64_t *token);
    /* Have the leader append; all the puts have request ids. Blocks up to
     * timeout_ms. HEDGE_ENOTLEADER, HEDGE_ENOLEADER, HEDGE_EUNAVAILABLE,
     * HEDGE_ECANCELED, HEDGE_ECLOSED and HEDGE_ETIMEDOUT are tried again. */
    int (*forward)(void *ctx, struct engine_put *puts, size_t n,
                   uint64_t timeout_ms, struct hedge_error *e);
};

int kv_new(const struct kv_options *o, struct kv **out);
/* Refuse what comes and fail what waits with HEDGE_ECLOSED; when it returns
 * all operations are done. */
void kv_stop(struct kv *kv);
/* NULL is fine. Stops first. */
void kv_free(struct kv *kv);
/* Leadership may have changed. */
void kv_wake(struct kv *kv);

enum {
    KV_LEADER_ONLY = 1, /* HEDGE_ENOTLEADER rather than forward. */
    KV_RESERVED = 2     /* Their bytes have been reserved by kv_reserve(). */
};

/* A set of puts that is appended as a whole, or not. */
struct kv_op;
/* Runs once, on a thread of the kv, and must not block. */
typedef void (*kv_done_fn)(struct kv_op *op, int status);
struct kv_op {
    struct engine_put *puts;
    size_t n;
    uint64_t deadline_ms;
    uint64_t token; /* 0: whoever leads; else only here, under this one. */
    unsigned flags;
    kv_done_fn done;
    struct hedge_error error; /* Out. */
    /* The kv's: */
    struct list link;
    struct kv_op *next;
    size_t bytes, charge; /* Of the budget. */
    bool sent;            /* It may have reached a leader. */
    int status;
};

/* Can a user put this? HEDGE_EINVAL or HEDGE_ETOOBIG with the reason. */
int kv_check_put(const struct engine_put *p, struct hedge_error *e);
/* HEDGE_EINVAL: an empty or too long key, or one of the cluster's own. */
int kv_check_key(const void *key, size_t len, struct hedge_error *e);

/* 0: `done` will run. The puts have been checked. */
int kv_submit(struct kv *kv, struct kv_op *op, struct hedge_error *e);
/* For users, wherever the leader is; checks the puts. */
int kv_put(struct kv *kv, struct engine_put *puts, size_t n, unsigned flags,
           uint64_t timeout_ms, struct hedge_error *e);
/* On the leader: append under this token. For the services that keep their
 * state in reserved keys; durable when it returns 0. n = 0: raise the term, as
 * engine_append(). */
int kv_append(struct kv *kv, uint64_t token, struct engine_put *puts, size_t n,
              uint64_t timeout_ms, struct hedge_error *e);

struct kv_use {
    uint64_t revision;                /* The last one heard of here. */
    uint64_t puts, transactions;      /* Committed here. */
    size_t queued, live;              /* Operations. */
    uint64_t used_bytes, limit_bytes; /* Of the budget. */
};
void kv_use(struct kv *kv, struct kv_use *out);

/* Wait until the log has a revision above `seen`, up to timeout_ms; *now is
 * the last one. HEDGE_ETIMEDOUT, HEDGE_ECLOSED. */
int kv_wait(struct kv *kv, uint64_t seen, uint64_t timeout_ms, uint64_t *now,
            struct hedge_error *e);

/* A part of the budget, for values that are held while they arrive: wait for it
 * up to timeout_ms. HEDGE_EEXHAUSTED. */
int kv_reserve(struct kv *kv, uint64_t bytes, uint64_t timeout_ms,
               struct hedge_error *e);
void kv_release(struct kv *kv, uint64_t bytes);
/* For what leaves, at the pace of whoever reads: at most half of the budget, so
 * that slow readers do not keep others from putting. */
int kv_reserve_read(struct kv *kv, uint64_t bytes, uint64_t timeout_ms,
                    struct hedge_error *e);
void kv_release_read(struct kv *kv, uint64_t bytes);

#endif
