/* put_queue.h - the core of a node's way to the log: which puts may wait, which
 * of them go together, to this node's own log or to the leader, and what
 * becomes of them when that has failed. kv.c gives it threads and a clock.
 *
 * A batch that was taken is handed back with put_queue_appended() or
 * put_queue_forwarded(). What has come to its end goes to the list `ended`,
 * with its status, for the caller to tell.
 *
 * Ownership: init in place; nothing to release. Operations are the caller's.
 * Threads:   the budget: any. The rest: one at a time; kv.c holds its lock.
 * Errors:    HEDGE_EEXHAUSTED as kv.h says it.
 * Units:     bytes; milliseconds of whatever clock the caller gives.
 * Limits:    as kv.h. */
#ifndef CLUSTER_PUT_QUEUE_H
#define CLUSTER_PUT_QUEUE_H

#include "cluster/log/kv.h"

#include <stdatomic.h>

struct put_queue {
    struct list ops;
    size_t n_queued; /* Operations. */
    bool closing;
    bool leading; /* As the caller last knew. */
    uint64_t budget_bytes;
    atomic_uint_fast64_t put_bytes, read_bytes; /* Taken of it. */
};

void put_queue_init(struct put_queue *q, uint64_t budget_bytes);

/* A part of the budget. Readers wait for their clients' pace: half of it is not
 * for them. One of each kind may be larger than what there is, and a put and a
 * reader that come at the very same moment may both get the last of it. */
int put_queue_charge(struct put_queue *q, uint64_t bytes, bool reading,
                     struct hedge_error *e);
void put_queue_uncharge(struct put_queue *q, uint64_t bytes, bool reading);

/* Make an operation ready; what it wants of the budget is its `charge`, which
 * the caller takes before put_queue_push(), and its end gives back. */
void put_queue_op_init(struct kv_op *op);
void put_queue_push(struct put_queue *q, struct kv_op *op);

/* May it be appended under this token, or be sent to the leader (0)? */
bool put_queue_fits(const struct kv_op *op, uint64_t token);
/* End what waits and cannot wait any longer, or not for somebody else. */
void put_queue_weed(struct put_queue *q, bool leads, uint64_t token,
                    uint64_t now_ms, struct list *ended);
/* What is appended together under this token, or sent to the leader (0), in
 * order. Returns the puts; *deadline_ms is the first of theirs. */
size_t put_queue_take(struct put_queue *q, uint64_t token, struct list *batch,
                      uint64_t *deadline_ms);
/* Something is there that may be sent. */
bool put_queue_for_others(const struct put_queue *q);
/* How long an attempt may take, so that its reason gets back in time. */
uint64_t put_queue_left_ms(uint64_t deadline_ms, uint64_t now_ms);

/* The puts of a batch, side by side, and their results. */
void put_queue_copy_in(struct engine_put *to, struct list *batch);
void put_queue_copy_out(const struct engine_put *from, struct list *batch);

/* One operation of a batch by itself: it is over but for telling its owner. */
void put_queue_end(struct put_queue *q, struct kv_op *op, int status,
                   const struct hedge_error *e, struct list *ended);
/* They wait again, before all others. */
void put_queue_put_back(struct put_queue *q, struct list *batch);

/* The log said `rv`. With `give_up` who had no turn to write has waited for it
 * long enough. true: worth another try, after a pause when it was fenced. */
bool put_queue_appended(struct put_queue *q, struct list *batch, int rv,
                        const struct hedge_error *e, bool give_up,
                        uint64_t now_ms, struct list *ended);
/* The leader said `rv`, or nobody did. true: worth another try. All the puts
 * have request ids: one that got there is not made twice. */
bool put_queue_forwarded(struct put_queue *q, struct list *batch, int rv,
                         const struct hedge_error *e, uint64_t now_ms,
                         struct list *ended);

#endif
