/* put_queue.h - the core of a node's way to the log: which puts wait, which of
 * them go together, to this node's own log or to the leader, and what becomes
 * of them when that has failed. kv.c gives it threads and a clock.
 *
 * A batch that was taken is handed back with put_queue_appended() or
 * put_queue_forwarded(). What has come to its end goes to the list `ended`,
 * with its status, for the caller to tell.
 *
 * Ownership: init in place; nothing to release. Operations are the caller's.
 * Threads:   one at a time; kv.c holds its lock.
 * Errors:    HEDGE_ECLOSED, HEDGE_EEXHAUSTED as kv.h says them.
 * Units:     bytes; milliseconds of whatever clock the caller gives.
 * Limits:    as kv.h. */
#ifndef CLUSTER_PUT_QUEUE_H
#define CLUSTER_PUT_QUEUE_H

#include "cluster/log/kv.h"

struct put_queue {
    struct list ops;
    size_t n_queued;                 /* Operations. */
    uint64_t used_bytes, read_bytes; /* The second: of the first, readers'. */
    uint64_t budget_bytes;
    bool closing;
    bool leading; /* As the caller last knew. */
};

void put_queue_init(struct put_queue *q, uint64_t budget_bytes);
/* Made ready for put_queue_add(), which may be tried more than once. */
void put_queue_op_init(struct kv_op *op);
int put_queue_add(struct put_queue *q, struct kv_op *op, struct hedge_error *e);
/* Readers wait for their clients' pace: half of the budget is not for them. One
 * of each kind may be larger than what there is. */
bool put_queue_has_room(const struct put_queue *q, uint64_t bytes,
                        bool reading);

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
