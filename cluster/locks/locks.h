/* locks.h - a node's way to the group's semaphores: calls go to whoever leads,
 * and again to the next leader when that one is gone.
 *
 * The loop owns everything. While this node leads, its calls, and those that
 * other nodes relay, are steps of the core (semaphore.h) in the loop; else they
 * travel over one stream to the leader, opened with the first call.
 *
 * Ownership: a struct lock_call is the caller's before locks_submit() and from
 *            `done` on. What the answer points to (held, list) is freed by
 *            lock_call_release().
 * Threads:   any thread but the loop calls; `done` runs on the loop or, once
 *            the node stops, inside locks_submit(), and must not block.
 * Errors:    the core's; HEDGE_ENOLEADER: none was known until the deadline;
 *            HEDGE_ETIMEDOUT: no answer, it may have happened; HEDGE_ECLOSED:
 *            the node stops.
 * Units:     milliseconds.
 * Limits:    LOCK_CALLS_MAX calls at a time, then HEDGE_EEXHAUSTED. */
#ifndef CLUSTER_LOCKS_H
#define CLUSTER_LOCKS_H

#include "cluster/locks/semaphore.h"

#define LOCK_CALLS_MAX 8192u

struct hedge_node;
struct locks;

struct lock_call;
typedef void (*lock_done_fn)(struct lock_call *c);

/* lock_call_init(), then the fields of `call` that semaphore.h names for its
 * operation: also strings. */
struct lock_call {
    struct semaphore_call call; /* First; request and answer. */
    /* How long to look for a leader and wait for its answer; beside wait_ms of
     * those that wait in line. */
    uint64_t timeout_ms;
    lock_done_fn done;
    void *ctx;
    uint64_t id; /* One of its own in this process. */

    /* The loop's. */
    struct list link, by_id;
    unsigned state;
    bool was_sent;
    uint64_t start_ms, wait_ms;
};

void lock_call_init(struct lock_call *c, enum semaphore_op op,
                    uint64_t timeout_ms);
/* false: it does not fit. */
bool lock_call_name(struct lock_call *c, const char *name);
void lock_call_release(struct lock_call *c);

void locks_submit(struct hedge_node *n, struct lock_call *c);
/* The same, and wait; returns its status with the text in `e`. */
int locks_call(struct hedge_node *n, struct lock_call *c,
               struct hedge_error *e);
/* Nobody waits for the call of this id any more: if it is not done yet it is
 * done with HEDGE_ECANCELED, and what it asked for is given up. */
void locks_abandon(struct hedge_node *n, uint64_t id);

/* --- for the node --- */
int locks_new(struct hedge_node *n, struct hedge_error *e);
/* With the loop initialised, before it runs. */
int locks_open(struct hedge_node *n);
/* On the loop: this node leads with `token`, or (0) does not. */
void locks_lead(struct hedge_node *n, uint64_t token);
/* Answer everything; from here on calls are refused. The loop still runs, if
 * it ever did. */
void locks_stop(struct hedge_node *n);
/* When neither loop nor server are left. */
void locks_free(struct hedge_node *n);

#endif
