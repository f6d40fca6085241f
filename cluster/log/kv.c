#include "cluster/log/kv_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <signal.h>
#include <string.h>

/* How long a turn to write is waited for, whatever the deadlines say. */
#define TURN_MS 5000u
/* Those who were just answered mostly come again at once, and waiting for them
 * saves them a commit. That pays as long as it takes less than what a commit
 * costs however small it is, for which stands a part of what the last one took;
 * it ends early when nobody has come for a smaller part. Where they need longer
 * (many threads, a client far away or slow) it is better to let them wait by
 * turns, half of them while the others are on their way: then it is tried again
 * after so many commits. */
#define GATHER_PART 4u
#define GAP_PART 8u
#define GATHER_AGAIN 64u
#define GAP_MIN_NS 50000u
#define GAP_MAX_NS 500000u

/* --- batches ----------------------------------------------------------------
 */

/* May it be appended under this token (here), or be sent (0)? */
static bool fits(const struct kv_op *op, uint64_t token)
{
    return token != 0 ? op->token == 0 || op->token == token
                      : op->token == 0 && (op->flags & KV_LEADER_ONLY) == 0;
}

/* With kv->lock held: what is appended together. Returns the puts. */
static size_t take(struct kv *kv, uint64_t token, struct list *batch,
                   uint64_t *deadline_ms)
{
    size_t n = 0, bytes = 0;
    struct list *l, *tmp;

    *deadline_ms = UINT64_MAX;
    list_foreach_safe (l, tmp, &kv->queue) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        if (!fits(op, token)) {
            continue; /* kv_weed()'s. */
        }
        if (!list_empty(batch) &&
            (bytes + op->bytes > KV_BATCH_BYTES || n + op->n > KV_BATCH_PUTS)) {
            break;
        }
        list_remove(l);
        list_push(batch, l);
        kv->n_queued--;
        n += op->n;
        bytes += op->bytes;
        if (op->deadline_ms < *deadline_ms) {
            *deadline_ms = op->deadline_ms;
        }
    }
    return n;
}

/* With kv->lock held: they wait again, before all others. */
static void put_back(struct kv *kv, struct list *batch)
{
    struct list *l;

    while (!list_empty(batch)) {
        l = batch->prev;
        list_remove(l);
        list_push_front(&kv->queue, l);
        kv->n_queued++;
    }
}

static void copy_in(struct engine_put *to, struct list *batch)
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

static void copy_out(const struct engine_put *from, struct list *batch)
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

static uint64_t left_ms(uint64_t deadline_ms)
{
    uint64_t now = clock_mono_ms();

    return deadline_ms > now + SLACK_MS ? deadline_ms - now - SLACK_MS : 1;
}

/* With kv->lock held: the batch has failed in a way that may pass. */
static void retry(struct kv *kv, struct list *batch,
                  const struct hedge_error *why, bool sent, bool give_up)
{
    uint64_t now = clock_mono_ms();
    struct list ended, *l, *tmp;

    list_init(&ended);
    list_foreach_safe (l, tmp, batch) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        op->sent = op->sent || sent;
        op->error = *why;
        if (give_up || now + GIVE_UP_MS >= op->deadline_ms) {
            list_remove(l);
            kv_op_end(kv, op,
                      give_up ? why->code : kv_late_error(op, kv->leading),
                      NULL, &ended);
        }
    }
    put_back(kv, batch);
    if (!list_empty(&ended)) {
        kv_hand_out(kv, &ended);
    }
}

static void end_batch(struct kv *kv, struct list *batch, int status,
                      const struct hedge_error *e)
{
    struct list ended, *l;

    list_init(&ended);
    while ((l = list_pop(batch)) != NULL) {
        kv_op_end(kv, container_of(l, struct kv_op, link), status, e, &ended);
    }
    kv_hand_out(kv, &ended);
}

/* --- committing -------------------------------------------------------------
 */

/* With kv->lock held: give those who have just been answered the time to come
 * again, as long as they do come. */
static void gather(struct kv *kv)
{
    uint64_t commit_ns = kv->last_commit_ns, now_ns = clock_mono_ns();
    uint64_t until_ns = now_ns + commit_ns / GATHER_PART;
    uint64_t gap_ns = commit_ns / GAP_PART;
    size_t before, wanted = kv->expected;

    if (atomic_load(&kv->last_batch) < 2 || kv->gather_later > 0) {
        kv->gather_later -= kv->gather_later > 0;
        return;
    }
    gap_ns = gap_ns < GAP_MIN_NS ? GAP_MIN_NS : gap_ns;
    gap_ns = gap_ns > GAP_MAX_NS ? GAP_MAX_NS : gap_ns;
    while (kv->n_queued < wanted && now_ns < until_ns && !kv->closing) {
        before = kv->n_queued;
        atomic_store(&kv->gather_for, wanted - before);
        if (atomic_load(&kv->n_inbox) < wanted - before) {
            (void)kv_sleep_ns(&kv->work, &kv->lock, now_ns + gap_ns);
        }
        kv_open_inbox(kv);
        now_ns = clock_mono_ns();
        if (kv->n_queued == before) {
            break;
        }
    }
    atomic_store(&kv->gather_for, 0);
    kv_open_inbox(kv);
    if (kv->n_queued < wanted - wanted / 4) {
        kv->gather_later = GATHER_AGAIN;
    }
}

static void note_revision(struct kv *kv, const struct engine_put *puts,
                          size_t n)
{
    uint64_t last = n > 0 ? puts[n - 1].revision : 0;

    if (last > atomic_load(&kv->revision)) {
        atomic_store(&kv->revision, last);
    }
}

/* With kv->lock held. */
static void note_commit(struct kv *kv, uint64_t took_ns, size_t ops)
{
    kv->last_commit_ns = took_ns;
    kv->expected = ops + kv->n_queued + atomic_load(&kv->n_inbox);
    atomic_store(&kv->last_batch, ops);
}

/* What an append may wait for its turn. */
static uint64_t turn_ms(uint64_t deadline_ms)
{
    uint64_t left = left_ms(deadline_ms);

    return left < TURN_MS ? left : TURN_MS;
}

bool kv_commit_here(struct kv *kv, struct kv_op *op, int *status)
{
    uint64_t token = 0, start_ns, took_ns;
    bool mine;
    int rv;

    /* Many callers are not to meet at the lock. */
    if (atomic_load(&kv->last_batch) > 1 || atomic_load(&kv->inbox) != NULL) {
        return false;
    }
    pthread_mutex_lock(&kv->lock);
    mine = kv->leading && !kv->busy && !kv->closing && kv->n_queued == 0 &&
           kv->o.leads(kv->o.ctx, &token) && token == kv->raised &&
           fits(op, token);
    kv->busy = kv->busy || mine;
    pthread_mutex_unlock(&kv->lock);
    if (!mine) {
        return false;
    }
    start_ns = clock_mono_ns();
    rv = engine_append(kv->o.engine, token, kv->o.id, op->puts, op->n,
                       turn_ms(op->deadline_ms), &op->error);
    if (rv == 0) {
        note_revision(kv, op->puts, op->n);
    }
    took_ns = clock_mono_ns() - start_ns;
    pthread_mutex_lock(&kv->lock);
    note_commit(kv, took_ns, 1);
    kv->busy = false;
    kv->n_transactions += rv == 0;
    kv->n_puts += rv == 0 ? op->n : 0;
    if (kv->n_queued > 0 || atomic_load(&kv->inbox) != NULL) {
        pthread_cond_signal(&kv->work);
    }
    pthread_cond_broadcast(&kv->news);
    pthread_mutex_unlock(&kv->lock);
    *status = rv;
    /* What may pass is the committer's to try again. */
    return rv != HEDGE_ETIMEDOUT && rv != HEDGE_EFENCED;
}

/* May one operation of a batch have made all of it fail? Then nothing was
 * written. */
static bool may_be_one(int rv)
{
    return rv == HEDGE_ECORRUPT || rv == HEDGE_ENOSPC || rv == HEDGE_ETOOBIG ||
           rv == HEDGE_EINVAL;
}

/* With kv->lock held, which is dropped meanwhile: each operation in a
 * transaction of its own. */
static void commit_apart(struct kv *kv, struct list *batch, uint64_t token)
{
    struct list ended, again, *l;

    list_init(&ended);
    list_init(&again);
    while ((l = list_pop(batch)) != NULL) {
        struct kv_op *op = container_of(l, struct kv_op, link);
        int rv;

        pthread_mutex_unlock(&kv->lock);
        rv = engine_append(kv->o.engine, token, kv->o.id, op->puts, op->n,
                           turn_ms(op->deadline_ms), &op->error);
        if (rv == 0) {
            note_revision(kv, op->puts, op->n);
        }
        pthread_mutex_lock(&kv->lock);
        kv->n_transactions += rv == 0;
        kv->n_puts += rv == 0 ? op->n : 0;
        if (rv == HEDGE_ETIMEDOUT || rv == HEDGE_EFENCED) {
            list_push(&again, l);
        } else {
            kv_op_end(kv, op, rv, NULL, &ended);
        }
    }
    put_back(kv, &again);
    if (!list_empty(&ended)) {
        kv_hand_out(kv, &ended);
    }
}

/* With kv->lock held. */
static void commit(struct kv *kv, uint64_t token)
{
    struct hedge_error e = {0};
    struct list batch;
    uint64_t deadline_ms, start_ns, took_ns, timeout_ms;
    size_t n, ops = kv->n_queued;
    int rv;

    list_init(&batch);
    n = take(kv, token, &batch, &deadline_ms);
    ops -= kv->n_queued;
    if (ops == 0) {
        return;
    }
    (void)atomic_fetch_xor(&kv->forming, 1);
    kv->busy = true;
    pthread_mutex_unlock(&kv->lock);
    timeout_ms = turn_ms(deadline_ms);
    copy_in(kv->batch, &batch);
    start_ns = clock_mono_ns();
    rv = engine_append(kv->o.engine, token, kv->o.id, kv->batch, n, timeout_ms,
                       &e);
    took_ns = clock_mono_ns() - start_ns;
    if (rv == 0) {
        copy_out(kv->batch, &batch);
        note_revision(kv, kv->batch, n);
    }
    pthread_mutex_lock(&kv->lock);
    note_commit(kv, took_ns, ops);
    kv->n_transactions += rv == 0;
    kv->n_puts += rv == 0 ? n : 0;
    if (may_be_one(rv) && ops > 1) {
        commit_apart(kv, &batch, token);
        kv->busy = false;
        return;
    }
    kv->busy = false;
    if (rv == HEDGE_ETIMEDOUT) {
        retry(kv, &batch, &e, false, timeout_ms >= TURN_MS);
    } else if (rv == HEDGE_EFENCED) {
        /* Nothing was written: whoever leads now is to do it. */
        log_warn("kv", "%s", e.text);
        kv->leading = false;
        retry(kv, &batch, &e, false, false);
        (void)kv_sleep_ms(&kv->work, &kv->lock, RETRY_MS);
    } else {
        if (rv != 0) {
            log_warn("kv", "the log: %s", e.text);
        }
        end_batch(kv, &batch, rv, &e);
    }
}

/* With kv->lock held, which is dropped meanwhile. */
static void raise_term(struct kv *kv, uint64_t token)
{
    struct hedge_error e = {0};
    int rv;

    kv->busy = true;
    pthread_mutex_unlock(&kv->lock);
    rv = engine_append(kv->o.engine, token, kv->o.id, NULL, 0, TURN_MS, &e);
    pthread_mutex_lock(&kv->lock);
    kv->busy = false;
    if (rv != 0) {
        log_warn("kv", "raising the term: %s", e.text);
    }
    kv->raised = token; /* Each append does it again. */
}

static void *committer_main(void *arg)
{
    struct kv *kv = arg;
    uint64_t token = 0;

    pthread_mutex_lock(&kv->lock);
    while (!kv->closing || kv->n_queued > 0) {
        bool leads = !kv->closing && kv->o.leads(kv->o.ctx, &token);

        if (leads != kv->leading) {
            kv->leading = leads;
            pthread_cond_broadcast(&kv->far);
        }
        if (kv->busy) { /* A caller commits by itself. */
            (void)kv_sleep_ms(&kv->work, &kv->lock, RETRY_MS);
            continue;
        }
        if (leads && token != kv->raised) {
            raise_term(kv, token);
            continue;
        }
        if (kv_weed(kv, leads, token)) {
            continue; /* It may not lead any more. */
        }
        if (leads && kv->n_queued > 0) {
            gather(kv);
            if (!kv->busy) {
                commit(kv, token);
            }
        } else if (!kv->closing && atomic_load(&kv->inbox) == NULL) {
            (void)kv_sleep_ms(&kv->work, &kv->lock,
                              kv->n_queued > 0 ? RETRY_MS : IDLE_MS);
        }
    }
    pthread_mutex_unlock(&kv->lock);
    return NULL;
}

/* --- forwarding -------------------------------------------------------------
 */

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

/* With kv->lock held. */
static void forward(struct kv *kv, struct engine_put *puts)
{
    struct hedge_error e = {0};
    struct list batch, *l;
    uint64_t deadline_ms;
    size_t n;
    int rv;

    list_init(&batch);
    n = take(kv, 0, &batch, &deadline_ms);
    pthread_mutex_unlock(&kv->lock);
    list_foreach (l, &batch) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        kv_make_ids(op->puts, op->n);
    }
    copy_in(puts, &batch);
    rv = kv->o.forward(kv->o.ctx, puts, n, left_ms(deadline_ms), &e);
    if (rv == 0) {
        copy_out(puts, &batch);
    }
    pthread_mutex_lock(&kv->lock);
    if (may_pass(rv)) {
        retry(kv, &batch, &e, was_sent(rv), false);
        pthread_cond_signal(&kv->work);
        if (!kv->closing) {
            (void)kv_sleep_ms(&kv->far, &kv->lock, RETRY_MS);
        }
    } else {
        end_batch(kv, &batch, rv, &e);
    }
}

/* Something is there that may be sent. */
static bool for_others(struct kv *kv)
{
    const struct kv_op *op;

    if (kv->leading || kv->closing) {
        return false;
    }
    kv_open_inbox(kv);
    if (list_empty(&kv->queue)) {
        return false;
    }
    op = container_of(kv->queue.next, struct kv_op, link);
    return fits(op, 0);
}

static void *forwarder_main(void *arg)
{
    struct kv *kv = arg;
    struct engine_put *puts = mem_alloc(KV_BATCH_PUTS * sizeof *puts);

    pthread_mutex_lock(&kv->lock);
    while (!kv->closing) {
        if (puts == NULL || !for_others(kv)) {
            (void)kv_sleep_ms(&kv->far, &kv->lock, IDLE_MS);
        } else {
            forward(kv, puts);
        }
    }
    pthread_mutex_unlock(&kv->lock);
    mem_free(puts);
    return NULL;
}

/* --- life -------------------------------------------------------------------
 */

void kv_wake(struct kv *kv)
{
    pthread_mutex_lock(&kv->lock);
    pthread_cond_broadcast(&kv->work);
    pthread_cond_broadcast(&kv->far);
    pthread_mutex_unlock(&kv->lock);
}

static int start_thread(struct kv *kv, void *(*fn)(void *), const char *name)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&kv->threads[kv->n_threads], NULL, fn, kv);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(kv->threads[kv->n_threads], name);
    kv->n_threads++;
    return 0;
}

int kv_new(const struct kv_options *o, struct kv **out)
{
    struct kv *kv = mem_calloc(1, sizeof *kv);
    uint64_t token;
    int rv;

    *out = NULL;
    if (kv == NULL) {
        return HEDGE_ENOMEM;
    }
    kv->o = *o;
    kv->leading = o->leads(o->ctx, &token);
    pthread_mutex_init(&kv->lock, NULL);
    kv_cond_init(&kv->work);
    kv_cond_init(&kv->far);
    kv_cond_init(&kv->news);
    kv_cond_init(&kv->settled);
    kv_cond_init(&kv->to_complete);
    list_init(&kv->queue);
    list_init(&kv->done);
    kv->batch = mem_alloc(KV_BATCH_PUTS * sizeof *kv->batch);
    rv = kv->batch != NULL ? 0 : HEDGE_ENOMEM;
    rv = rv != 0 ? rv : start_thread(kv, committer_main, "hedge-kv-commit");
    rv = rv != 0 ? rv : start_thread(kv, kv_completer_main, "hedge-kv-done");
    for (unsigned i = 0; rv == 0 && i < FORWARDERS; i++) {
        rv = start_thread(kv, forwarder_main, "hedge-kv-send");
    }
    if (rv != 0) {
        kv_free(kv);
        return rv;
    }
    *out = kv;
    return 0;
}

void kv_stop(struct kv *kv)
{
    atomic_store(&kv->refusing, true);
    pthread_mutex_lock(&kv->lock);
    kv->closing = true;
    pthread_cond_broadcast(&kv->work);
    pthread_cond_broadcast(&kv->far);
    pthread_cond_broadcast(&kv->news);
    pthread_cond_broadcast(&kv->to_complete);
    while (atomic_load(&kv->n_live) + atomic_load(&kv->n_callers) > 0) {
        (void)kv_sleep_ms(&kv->settled, &kv->lock, RETRY_MS);
        (void)kv_weed(kv, false, 0);
    }
    pthread_mutex_unlock(&kv->lock);
}

void kv_free(struct kv *kv)
{
    if (kv == NULL) {
        return;
    }
    kv_stop(kv);
    for (unsigned i = 0; i < kv->n_threads; i++) {
        (void)pthread_join(kv->threads[i], NULL);
    }
    assert(kv->n_queued == 0 && list_empty(&kv->done));
    pthread_cond_destroy(&kv->work);
    pthread_cond_destroy(&kv->far);
    pthread_cond_destroy(&kv->news);
    pthread_cond_destroy(&kv->settled);
    pthread_cond_destroy(&kv->to_complete);
    pthread_mutex_destroy(&kv->lock);
    mem_free(kv->batch);
    mem_free(kv);
}
