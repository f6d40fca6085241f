/* tier.h - one place where blocks can be stored (disk, a peer) behind one
 * interface. The store asks its tiers in order until one takes the block.
 *
 * Ownership: the caller owns the request and the bytes behind `data` and keeps
 *            both valid and unchanged until the callback has run.
 * Threads:   any thread may call; the callback runs on the thread that reaps
 *            the operation, never inside the call, and must not block.
 * Errors:    0 promises exactly one callback, an error promises none. The
 *            outcome is req->status: 0 or a hedge code.
 * Units:     bytes.
 * Limits:    `data` is 4096-aligned and its allocation reaches to the next
 *            multiple of 4096 after `len`; the tier may write zeros there. */
#ifndef STORE_TIER_H
#define STORE_TIER_H

#include "store/base/error.h"
#include "store/base/list.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Names one block anywhere in the cluster. */
struct block_id {
    uint64_t generation;
    uint64_t sequence;
    uint32_t writer;
};

static inline bool block_id_equal(const struct block_id *a,
                                  const struct block_id *b)
{
    return a->generation == b->generation && a->writer == b->writer &&
           a->sequence == b->sequence;
}

/* Where a tier has put a block; means something to that tier only. */
struct tier_place {
    uint64_t addr;
    uint32_t unit;
    uint32_t kind;
};

/* What a tier on another node is told about the store of a block. */
struct tier_store {
    const char *name;
    uint64_t mem_limit, disk_limit; /* Per node, 0: none of its own. */
    uint64_t ttl_ms;
};

#define TIER_COPIES_MAX 4

struct tier_req;
typedef void (*tier_cb)(struct tier_req *req);

struct tier_req {
    struct list link;        /* The tier's while the request is with it. */
    struct block_id id;      /* In. */
    void *data;              /* In: the bytes to store, or room for them. */
    size_t len;              /* In: the length of header and payload. */
    struct tier_place place; /* Put: out. Get: in. */
    /* In: for puts; must outlive the request. */
    const struct tier_store *store;
    /* In: units (nodes) that hold a copy already and must not be used. */
    uint32_t avoid[TIER_COPIES_MAX];
    unsigned n_avoid;
    /* In: for puts. One of several copies: they are spread over the units, so
     * that none is full while others have room for one copy and not for two. */
    bool spread;
    int status;               /* Out. */
    struct hedge_error error; /* Out, when status is not 0. */
    tier_cb cb;
    void *ctx;
    void *impl; /* The tier's while the request is with it. */
};

struct tier_use {
    uint64_t used;  /* Bytes taken, padding included. */
    uint64_t free;  /* Bytes that may still be taken. */
    uint64_t limit; /* As configured. */
};

struct tier;

struct tier_ops {
    const char *name;
    /* Store a block. Status HEDGE_ENOSPC or HEDGE_EREFUSED: no room here, the
     * next tier may have some; HEDGE_EIO and others: it went wrong. */
    int (*put)(struct tier *t, struct tier_req *req);
    /* Fetch the `len` bytes at `place` into `data`. The tier does not verify
     * them; the caller does. */
    int (*get)(struct tier *t, struct tier_req *req);
    /* Give one block back. Must not race a get or put of the same block.
     * Cannot fail for the caller; the tier retries or logs. */
    void (*drop)(struct tier *t, const struct block_id *id,
                 const struct tier_place *place, size_t len);
    /* Give back everything of one generation; gets in flight still end. */
    void (*drop_store)(struct tier *t, uint64_t generation);
    void (*use)(struct tier *t, struct tier_use *out);
    /* Names for people: the node and its tier ("memory", "disk"). NULL: this
     * node's. The strings live as long as the tier. */
    void (*describe)(struct tier *t, const struct tier_place *place,
                     const char **node, const char **kind);
    /* How many nodes there are now, full ones too. NULL: one. */
    unsigned (*nodes)(struct tier *t);
    /* Is what is there gone for good, with its node? NULL: never. */
    bool (*lost)(struct tier *t, const struct tier_place *place);
    /* The node is about to stop: who does not answer is not waited for any
     * more. NULL: nobody ever is. */
    void (*hurry)(struct tier *t);
    /* Waits for what is in flight, then frees. */
    void (*free)(struct tier *t);
};

/* What has become of the requests so far; of puts and gets that were begun. */
struct tier_counts {
    atomic_uint_fast64_t puts, put_bytes, gets, get_bytes;
    atomic_uint_fast64_t refusals; /* Puts: no room there. */
    atomic_uint_fast64_t failures;
};

struct tier {
    const struct tier_ops *ops;
    struct tier_counts counts;
};

/* Whoever made a request and has its outcome calls this once. */
static inline void tier_count(struct tier *t, const struct tier_req *req,
                              bool put)
{
    struct tier_counts *c = &t->counts;
    atomic_uint_fast64_t *what =
        req->status == HEDGE_ENOSPC || req->status == HEDGE_EREFUSED
            ? &c->refusals
        : req->status != 0 ? &c->failures
        : put              ? &c->puts
                           : &c->gets;

    atomic_fetch_add_explicit(what, 1, memory_order_relaxed);
    if (req->status == 0) {
        atomic_fetch_add_explicit(put ? &c->put_bytes : &c->get_bytes, req->len,
                                  memory_order_relaxed);
    }
}

static inline int tier_put(struct tier *t, struct tier_req *req)
{
    return t->ops->put(t, req);
}

static inline int tier_get(struct tier *t, struct tier_req *req)
{
    return t->ops->get(t, req);
}

static inline void tier_drop(struct tier *t, const struct block_id *id,
                             const struct tier_place *place, size_t len)
{
    t->ops->drop(t, id, place, len);
}

static inline void tier_drop_store(struct tier *t, uint64_t generation)
{
    t->ops->drop_store(t, generation);
}

static inline void tier_use(struct tier *t, struct tier_use *out)
{
    t->ops->use(t, out);
}

static inline void tier_hurry(struct tier *t)
{
    if (t != NULL && t->ops->hurry != NULL) {
        t->ops->hurry(t);
    }
}

static inline void tier_free(struct tier *t)
{
    if (t != NULL) {
        t->ops->free(t);
    }
}

#endif
