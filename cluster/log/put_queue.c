#include "cluster/log/put_queue.h"

#include <string.h>

/* What is left of a deadline when it counts as passed: an error with a reason
 * is to get back before the caller gives up. */
#define SLACK_MS 20u
#define GIVE_UP_MS 40u /* What is not worth another try. */

void put_queue_init(struct put_queue *q, uint64_t budget_bytes)
{
    *q = (struct put_queue){.budget_bytes = budget_bytes};
    list_init(&q->ops);
}

/* --- coming -----------------------------------------------------------------
 */

static size_t op_bytes(const struct kv_op *op)
{
    size_t bytes = 0;

    for (size_t i = 0; i < op->n; i++) {
        bytes += op->puts[i].key_len + op->puts[i].value_len;
    }
    return bytes;
}

void put_queue_op_init(struct kv_op *op)
{
    op->bytes = op_bytes(op);
    op->charge = (op->flags & KV_RESERVED) != 0
                     ? 0
                     : op->bytes + op->n * sizeof *op->puts;
    op->sent = false;
    op->status = 0;
    error_clear(&op->error);
    list_init(&op->link);
}

/* Beside what is held by the same kind, and by the other one. */
static bool has_room(const struct put_queue *q, uint64_t held, uint64_t others,
                     uint64_t bytes, bool reading)
{
    uint64_t half = q->budget_bytes / 2;

    if (held + others + bytes <= q->budget_bytes &&
        (!reading || held + bytes <= half)) {
        return true;
    }
    return held == 0 && (!reading || others <= half);
}

/* Only what fits is ever added: a sum that is too large for a moment would have
 * somebody else refused who has room. */
int put_queue_charge(struct put_queue *q, uint64_t bytes, bool reading,
                     struct hedge_error *e)
{
    atomic_uint_fast64_t *mine = reading ? &q->read_bytes : &q->put_bytes;
    atomic_uint_fast64_t *other = reading ? &q->put_bytes : &q->read_bytes;
    uint_fast64_t held = atomic_load(mine);

    do {
        uint64_t others = atomic_load(other), all = held + others;

        if (bytes > 0 && !has_room(q, held, others, bytes, reading)) {
            return error_set(e, HEDGE_EEXHAUSTED,
                             "the message limit is used up: puts of %llu bytes "
                             "wait already",
                             (unsigned long long)all);
        }
    } while (!atomic_compare_exchange_weak(mine, &held, held + bytes));
    return 0;
}

void put_queue_uncharge(struct put_queue *q, uint64_t bytes, bool reading)
{
    (void)atomic_fetch_sub(reading ? &q->read_bytes : &q->put_bytes, bytes);
}

void put_queue_push(struct put_queue *q, struct kv_op *op)
{
    q->n_queued++;
    list_push(&q->ops, &op->link);
}

/* --- ending -----------------------------------------------------------------
 */

void put_queue_end(struct put_queue *q, struct kv_op *op, int status,
                   const struct hedge_error *e, struct list *ended)
{
    op->status = status;
    if (status != 0 && e != NULL) {
        op->error = *e;
    }
    put_queue_uncharge(q, op->charge, false);
    list_push(ended, &op->link);
}

/* What was sent to a leader may be with it still, also when that one, or the
 * next one, has since said of another attempt that it wrote nothing. */
static int late_error(struct kv_op *op, bool leads)
{
    if (op->sent) {
        if (op->error.text[0] == '\0') {
            return error_set(&op->error, HEDGE_ETIMEDOUT,
                             "the leader has not answered in time; the put "
                             "may yet happen");
        }
        (void)error_prefix(&op->error,
                           "no leader has acknowledged the put, which may "
                           "yet happen; last attempt");
        op->error.code = HEDGE_ETIMEDOUT;
        return HEDGE_ETIMEDOUT;
    }
    if (op->error.code == HEDGE_ETIMEDOUT) {
        return HEDGE_ETIMEDOUT; /* With its reason. */
    }
    if (leads && op->error.code == 0) { /* It had no turn yet. */
        return error_set(&op->error, HEDGE_ETIMEDOUT,
                         "the log was busy with what came before for all the "
                         "time there was; nothing was written");
    }
    return error_set(&op->error, HEDGE_ENOLEADER,
                     "the group has no leader at present");
}

void put_queue_weed(struct put_queue *q, bool leads, uint64_t token,
                    uint64_t now_ms, struct list *ended)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, &q->ops) {
        struct kv_op *op = container_of(l, struct kv_op, link);
        int rv = 0;

        if (q->closing) {
            rv = error_set(&op->error, HEDGE_ECLOSED, "the node stops");
        } else if (op->token != 0 && (!leads || op->token != token)) {
            rv = error_set(&op->error, HEDGE_EFENCED,
                           "token %llu is not this node's any more",
                           (unsigned long long)op->token);
        } else if ((op->flags & KV_LEADER_ONLY) != 0 && !leads) {
            rv = error_set(&op->error, HEDGE_ENOTLEADER,
                           "this node is not the leader");
        } else if (now_ms + SLACK_MS >= op->deadline_ms) {
            rv = late_error(op, leads);
        }
        if (rv != 0) {
            list_remove(l);
            q->n_queued--;
            put_queue_end(q, op, rv, NULL, ended);
        }
    }
}

/* --- batches ----------------------------------------------------------------
 */

bool put_queue_fits(const struct kv_op *op, uint64_t token)
{
    return token != 0 ? op->token == 0 || op->token == token
                      : op->token == 0 && (op->flags & KV_LEADER_ONLY) == 0;
}

size_t put_queue_take(struct put_queue *q, uint64_t token, struct list *batch,
                      uint64_t *deadline_ms)
{
    size_t n = 0, bytes = 0;
    struct list *l, *tmp;

    *deadline_ms = UINT64_MAX;
    list_foreach_safe (l, tmp, &q->ops) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        if (!put_queue_fits(op, token)) {
            continue; /* put_queue_weed()'s. */
        }
        if (!list_empty(batch) &&
            (bytes + op->bytes > KV_BATCH_BYTES || n + op->n > KV_BATCH_PUTS)) {
            break;
        }
        list_remove(l);
        list_push(batch, l);
        q->n_queued--;
        n += op->n;
        bytes += op->bytes;
        if (op->deadline_ms < *deadline_ms) {
            *deadline_ms = op->deadline_ms;
        }
    }
    return n;
}

bool put_queue_for_others(const struct put_queue *q)
{
    if (q->leading || q->closing || list_empty(&q->ops)) {
        return false;
    }
    return put_queue_fits(container_of(q->ops.next, struct kv_op, link), 0);
}

void put_queue_copy_in(struct engine_put *to, struct list *batch)
{
    struct list *l;

    list_foreach (l, batch) {
        const struct kv_op *op = container_of(l, struct kv_op, link);

        if (op->n > 0) {
            memcpy(to, op->puts, op->n * sizeof *to);
            to += op->n;
        }
    }
}

void put_queue_copy_out(const struct engine_put *from, struct list *batch)
{
    struct list *l;

    list_foreach (l, batch) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        for (size_t i = 0; i < op->n; i++) {
            op->puts[i].revision = from[i].revision;
            op->puts[i].timestamp_ms = from[i].timestamp_ms;
            op->puts[i].repeated = from[i].repeated;
        }
        from += op->n;
    }
}

uint64_t put_queue_left_ms(uint64_t deadline_ms, uint64_t now_ms)
{
    return deadline_ms > now_ms + SLACK_MS ? deadline_ms - now_ms - SLACK_MS
                                           : 1;
}

/* --- what became of a batch -------------------------------------------------
 */

void put_queue_put_back(struct put_queue *q, struct list *batch)
{
    struct list *l;

    while (!list_empty(batch)) {
        l = batch->prev;
        list_remove(l);
        list_push_front(&q->ops, l);
        q->n_queued++;
    }
}

/* It has failed in a way that may pass. */
static void retry(struct put_queue *q, struct list *batch,
                  const struct hedge_error *why, bool sent, bool give_up,
                  uint64_t now_ms, struct list *ended)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, batch) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        op->sent = op->sent || sent;
        op->error = *why;
        if (give_up || now_ms + GIVE_UP_MS >= op->deadline_ms) {
            list_remove(l);
            put_queue_end(q, op,
                          give_up ? why->code : late_error(op, q->leading),
                          NULL, ended);
        }
    }
    put_queue_put_back(q, batch);
}

static void end_batch(struct put_queue *q, struct list *batch, int status,
                      const struct hedge_error *e, struct list *ended)
{
    struct list *l;

    while ((l = list_pop(batch)) != NULL) {
        put_queue_end(q, container_of(l, struct kv_op, link), status, e, ended);
    }
}

bool put_queue_appended(struct put_queue *q, struct list *batch, int rv,
                        const struct hedge_error *e, bool give_up,
                        uint64_t now_ms, struct list *ended)
{
    if (rv == HEDGE_EFENCED) {
        /* Nothing was written: whoever leads now is to do it. */
        q->leading = false;
    } else if (rv != HEDGE_ETIMEDOUT) { /* That: no turn, nothing written. */
        end_batch(q, batch, rv, e, ended);
        return false;
    }
    retry(q, batch, e, false, give_up && rv == HEDGE_ETIMEDOUT, now_ms, ended);
    return true;
}

static bool may_pass(int rv)
{
    return rv == HEDGE_ENOTLEADER || rv == HEDGE_ENOLEADER ||
           rv == HEDGE_EUNAVAILABLE || rv == HEDGE_ECANCELED ||
           rv == HEDGE_ECLOSED || rv == HEDGE_ETIMEDOUT ||
           rv == HEDGE_EEXHAUSTED || rv == HEDGE_EFENCED;
}

static bool was_sent(int rv)
{
    return rv != HEDGE_ENOTLEADER && rv != HEDGE_ENOLEADER &&
           rv != HEDGE_EEXHAUSTED && rv != HEDGE_EFENCED;
}

bool put_queue_forwarded(struct put_queue *q, struct list *batch, int rv,
                         const struct hedge_error *e, uint64_t now_ms,
                         struct list *ended)
{
    if (!may_pass(rv)) {
        end_batch(q, batch, rv, e, ended);
        return false;
    }
    retry(q, batch, e, was_sent(rv), false, now_ms, ended);
    return true;
}
