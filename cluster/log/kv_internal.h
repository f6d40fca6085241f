/* kv_internal.h - what the files of the kv share: kv_ops.c takes operations in
 * and tells their ends, kv.c makes batches of them, commits and forwards them.
 *
 * Life of an operation: in the inbox -> in the queue -> in a batch (a local
 * list of the committer or a forwarder) -> ended (on a list of ended ones) ->
 * told; from a batch it may go back to the queue. What the queue decides is in
 * put_queue.h.
 *
 * Ownership: see kv.h.
 * Threads:   "with kv->lock held" stands at the functions that want it.
 * Errors:    see kv.h.
 * Units:     milliseconds.
 * Limits:    see kv.h. */
#ifndef CLUSTER_LOG_KV_INTERNAL_H
#define CLUSTER_LOG_KV_INTERNAL_H

#include "cluster/log/put_queue.h"

#include <pthread.h>
#include <stdatomic.h>

#define FORWARDERS 2
#define IDLE_MS 1000u
#define RETRY_MS 20u

struct kv {
    struct kv_options o;
    atomic_uint_fast64_t revision; /* The last one committed here. */

    /* New operations, the latest first: hundreds of threads that are woken at
     * once would wait for each other at a lock. Whoever finds it empty wakes
     * the others. */
    _Atomic(struct kv_op *) inbox;
    atomic_size_t n_inbox;
    atomic_size_t n_live;    /* Operations asked for and not told. */
    atomic_size_t n_callers; /* Threads that wait for their own. */
    atomic_bool refusing;

    pthread_mutex_t lock; /* All that follows. */
    pthread_cond_t work;  /* For the committer: something to look at. */
    pthread_cond_t far;   /* For the forwarders. */
    pthread_cond_t news;  /* For followers, and who waits for budget. */
    pthread_cond_t settled;
    struct put_queue q; /* What has been taken out of the inbox; its budget is
                         * anybody's. */
    uint64_t n_puts, n_transactions; /* Committed. */
    bool busy;                       /* Somebody commits. */
    uint64_t raised; /* The token that the term has been raised to. */

    /* What calls that wait sleep on, by turns: those that come during a commit
     * are not woken by its end. */
    atomic_uint words[2];
    atomic_uint forming;

    struct list done; /* For the completer. */
    pthread_cond_t to_complete;

    atomic_size_t last_batch; /* Operations of the last commit. */
    struct engine_put *batch; /* The committer's. */

    unsigned n_threads;
    pthread_t threads[FORWARDERS + 2];
};

/* --- kv.c --- */

/* How long a forwarder sleeps whom nobody wakes. */
extern unsigned kv_far_idle_ms;

/* When nobody else is there, the caller commits by itself, which saves it two
 * changes of threads. false: it has to wait in line; else *status is how it
 * ended. */
bool kv_commit_here(struct kv *kv, struct kv_op *op, int *status);

/* --- kv_ops.c --- */

void kv_cond_init(pthread_cond_t *c);
/* false: the time has come. */
bool kv_sleep_ns(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns);
bool kv_sleep_ms(pthread_cond_t *c, pthread_mutex_t *m, uint64_t ms);

/* Give ids to puts that have none. */
void kv_make_ids(struct engine_put *puts, size_t n);

/* With kv->lock held, which may be dropped meanwhile: threads that wait are
 * woken from here; what takes longer is the completer's, beside the next
 * commit. */
void kv_hand_out(struct kv *kv, struct list *ended);
/* With kv->lock held: what is new goes to the end of the queue. */
void kv_open_inbox(struct kv *kv);
/* With kv->lock held: fail what waits and cannot wait any longer, or not for
 * somebody else. true: there was such, and the lock was dropped meanwhile. */
bool kv_weed(struct kv *kv, bool leads, uint64_t token);

void *kv_completer_main(void *arg);

#endif
