#include "cluster/log/kv_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

/* How long a turn to write is waited for, whatever the deadlines say. */
#define TURN_MS 5000u

unsigned kv_far_idle_ms = 1000;

/* --- committing -------------------------------------------------------------
 */

/* With kv->lock held, which is dropped meanwhile: those who have just been
 * answered mostly come again, and those of them who only wait for this
 * processor now come in time for this batch. */
static void let_come(struct kv *kv)
{
    if (atomic_load(&kv->last_batch) > 1) {
        pthread_mutex_unlock(&kv->lock);
        (void)sched_yield();
        pthread_mutex_lock(&kv->lock);
        kv_open_inbox(kv);
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

/* What an append may wait for its turn. */
static uint64_t turn_ms(uint64_t deadline_ms)
{
    uint64_t left = put_queue_left_ms(deadline_ms, clock_mono_ms());

    return left < TURN_MS ? left : TURN_MS;
}

bool kv_commit_here(struct kv *kv, struct kv_op *op, int *status)
{
    uint64_t token = 0;
    bool mine;
    int rv;

    /* Many callers are not to meet at the lock. */
    if (atomic_load(&kv->last_batch) > 1 || atomic_load(&kv->inbox) != NULL) {
        return false;
    }
    pthread_mutex_lock(&kv->lock);
    mine = kv->q.leading && !kv->busy && !kv->q.closing &&
           kv->q.n_queued == 0 && kv->o.leads(kv->o.ctx, &token) &&
           token == kv->raised && put_queue_fits(op, token);
    kv->busy = kv->busy || mine;
    pthread_mutex_unlock(&kv->lock);
    if (!mine) {
        return false;
    }
    rv = engine_append(kv->o.engine, token, kv->o.id, op->puts, op->n,
                       turn_ms(op->deadline_ms), &op->error);
    if (rv == 0) {
        note_revision(kv, op->puts, op->n);
    }
    pthread_mutex_lock(&kv->lock);
    atomic_store(&kv->last_batch, 1);
    kv->busy = false;
    kv->n_transactions += rv == 0;
    kv->n_puts += rv == 0 ? op->n : 0;
    if (kv->q.n_queued > 0 || atomic_load(&kv->inbox) != NULL) {
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
            put_queue_end(&kv->q, op, rv, NULL, &ended);
        }
    }
    put_queue_put_back(&kv->q, &again);
    if (!list_empty(&ended)) {
        kv_hand_out(kv, &ended);
    }
}

/* With kv->lock held. */
static void commit(struct kv *kv, uint64_t token)
{
    struct hedge_error e = {0};
    struct list batch, ended;
    uint64_t deadline_ms, timeout_ms;
    size_t n, ops = kv->q.n_queued;
    bool again;
    int rv;

    list_init(&batch);
    n = put_queue_take(&kv->q, token, &batch, &deadline_ms);
    ops -= kv->q.n_queued;
    if (ops == 0) {
        return;
    }
    (void)atomic_fetch_xor(&kv->forming, 1);
    kv->busy = true;
    pthread_mutex_unlock(&kv->lock);
    timeout_ms = turn_ms(deadline_ms);
    put_queue_copy_in(kv->batch, &batch);
    rv = engine_append(kv->o.engine, token, kv->o.id, kv->batch, n, timeout_ms,
                       &e);
    if (rv == 0) {
        put_queue_copy_out(kv->batch, &batch);
        note_revision(kv, kv->batch, n);
    }
    pthread_mutex_lock(&kv->lock);
    atomic_store(&kv->last_batch, ops);
    kv->n_transactions += rv == 0;
    kv->n_puts += rv == 0 ? n : 0;
    if (may_be_one(rv) && ops > 1) {
        commit_apart(kv, &batch, token);
        kv->busy = false;
        return;
    }
    kv->busy = false;
    if (rv != 0 && rv != HEDGE_ETIMEDOUT) {
        log_warn("kv", "the log: %s", e.text);
    }
    list_init(&ended);
    again = put_queue_appended(&kv->q, &batch, rv, &e, timeout_ms >= TURN_MS,
                               clock_mono_ms(), &ended);
    if (!list_empty(&ended)) {
        kv_hand_out(kv, &ended);
    }
    if (again && rv == HEDGE_EFENCED) {
        uint64_t until_ns = clock_mono_ns() + (uint64_t)RETRY_MS * 1000000u;

        pthread_cond_broadcast(&kv->far); /* It may be theirs now. */
        /* All of it: they wake this one when it is not. */
        while (!kv->q.closing && kv_sleep_ns(&kv->work, &kv->lock, until_ns)) {
        }
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
    while (!kv->q.closing || kv->q.n_queued > 0) {
        bool leads = !kv->q.closing && kv->o.leads(kv->o.ctx, &token);

        if (leads != kv->q.leading) {
            kv->q.leading = leads;
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
        if (leads && kv->q.n_queued > 0) {
            let_come(kv);
            if (!kv->busy) {
                commit(kv, token);
            }
        } else if (!kv->q.closing && atomic_load(&kv->inbox) == NULL) {
            (void)kv_sleep_ms(&kv->work, &kv->lock,
                              kv->q.n_queued > 0 ? RETRY_MS : IDLE_MS);
        }
    }
    pthread_mutex_unlock(&kv->lock);
    return NULL;
}

/* --- forwarding -------------------------------------------------------------
 */

/* With kv->lock held. */
static void forward(struct kv *kv, struct engine_put *puts)
{
    struct hedge_error e = {0};
    struct list batch, ended, *l;
    uint64_t deadline_ms;
    bool again;
    size_t n;
    int rv;

    list_init(&batch);
    n = put_queue_take(&kv->q, 0, &batch, &deadline_ms);
    pthread_mutex_unlock(&kv->lock);
    list_foreach (l, &batch) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        kv_make_ids(op->puts, op->n);
    }
    put_queue_copy_in(puts, &batch);
    rv = kv->o.forward(kv->o.ctx, puts, n,
                       put_queue_left_ms(deadline_ms, clock_mono_ms()), &e);
    if (rv == 0) {
        put_queue_copy_out(puts, &batch);
    }
    pthread_mutex_lock(&kv->lock);
    list_init(&ended);
    again =
        put_queue_forwarded(&kv->q, &batch, rv, &e, clock_mono_ms(), &ended);
    if (!list_empty(&ended)) {
        kv_hand_out(kv, &ended);
    }
    if (again) {
        pthread_cond_signal(&kv->work);
        if (!kv->q.closing) {
            (void)kv_sleep_ms(&kv->far, &kv->lock, RETRY_MS);
        }
    }
}

/* Something is there that may be sent. */
static bool for_others(struct kv *kv)
{
    kv_open_inbox(kv);
    return put_queue_for_others(&kv->q);
}

static void *forwarder_main(void *arg)
{
    struct kv *kv = arg;
    struct engine_put *puts = mem_alloc(KV_BATCH_PUTS * sizeof *puts);

    pthread_mutex_lock(&kv->lock);
    while (!kv->q.closing) {
        if (puts == NULL || !for_others(kv)) {
            (void)kv_sleep_ms(&kv->far, &kv->lock, kv_far_idle_ms);
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
    pthread_mutex_init(&kv->lock, NULL);
    kv_cond_init(&kv->work);
    kv_cond_init(&kv->far);
    kv_cond_init(&kv->news);
    kv_cond_init(&kv->settled);
    kv_cond_init(&kv->to_complete);
    put_queue_init(&kv->q, o->budget_bytes);
    kv->q.leading = o->leads(o->ctx, &token);
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
    kv->q.closing = true;
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
    assert(kv->q.n_queued == 0 && list_empty(&kv->done));
    pthread_cond_destroy(&kv->work);
    pthread_cond_destroy(&kv->far);
    pthread_cond_destroy(&kv->news);
    pthread_cond_destroy(&kv->settled);
    pthread_cond_destroy(&kv->to_complete);
    pthread_mutex_destroy(&kv->lock);
    mem_free(kv->batch);
    mem_free(kv);
}
