/* pool.h - a bounded pool of worker threads with one queue.
 *
 * Ownership: the caller embeds struct work and keeps it until `fn` has
 *            started; the pool never touches it afterwards.
 * Threads:   any thread submits; `fn` runs on a worker and may block.
 * Errors:    HEDGE_ECLOSED once closing has begun; then `fn` never runs.
 * Units:     none.
 * Limits:    the queue is as long as its users make it: each bounds its own. */
#ifndef STORE_BASE_POOL_H
#define STORE_BASE_POOL_H

#include "store/base/list.h"

struct pool;
struct work;
typedef void (*work_fn)(struct work *w);

struct work {
    struct list link;
    work_fn fn;
};

/* Starts `n_threads` threads, named `name` for debuggers. */
int pool_new(unsigned n_threads, const char *name, struct pool **out);
int pool_submit(struct pool *p, struct work *w, work_fn fn);
struct pool_use {
    unsigned threads, busy, queued;
};
void pool_use(struct pool *p, struct pool_use *out);
/* Refuses new work, runs what is queued, joins the threads. NULL is fine. */
void pool_free(struct pool *p);

#endif
