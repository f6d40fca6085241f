#include "cluster/log/kv.h"

#include "cluster/log/put_queue.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/kvlog/kvlog.h"

#include <assert.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define FORWARDERS 2
#define IDLE_MS 1000u
#define RETRY_MS 20u
/* How long a turn to write is waited for, whatever the deadlines say. */
#define TURN_MS 5000u
#define FOLLOW_MIN_MS 2u
#define FOLLOW_MAX_MS 20u
/* Those who were just answered mostly come again at once: waiting for them, up
 * to this part of what a commit takes, saves them a commit. */
#define GATHER_PART 4u
#define GATHER_MAX_NS 2000000u

struct kv {
    struct kv_options o;
    atomic_uint_fast64_t revision; /* The last one committed here. */

    pthread_mutex_t lock; /* All that follows. */
    pthread_cond_t work;  /* For the committer: something to look at. */
    pthread_cond_t far;   /* For the forwarders. */
    pthread_cond_t news;  /* For followers, and who waits for budget. */
    pthread_cond_t settled;
    struct put_queue q;
    size_t n_live;                   /* Operations queued or under way. */
    uint64_t n_puts, n_transactions; /* Committed. */
    bool gathering;
    size_t gather_for;

    struct list done; /* For the completer. */
    pthread_cond_t to_complete;

    /* The committer's own. */
    size_t last_batch;
    uint64_t last_commit_ns;
    struct engine_put *batch;

    unsigned n_threads;
    pthread_t threads[FORWARDERS + 2];
};

/* --- small things -----------------------------------------------------------
 */

static void cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

static bool wait_ns(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ns / 1000000000u),
                          .tv_nsec = (long)(until_ns % 1000000000u)};

    return pthread_cond_timedwait(c, m, &ts) == 0;
}

static bool wait_ms(pthread_cond_t *c, pthread_mutex_t *m, uint64_t ms)
{
    return wait_ns(c, m, clock_mono_ns() + ms * 1000000u);
}

int kv_check_key(const void *key, size_t len, struct hedge_error *e)
{
    if (len == 0 || kvlog_key_cost(key, len) > KVLOG_KEY_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "a key of %zu bytes: 1 to %u are possible, and a byte "
                         "0x00 counts twice",
                         len, KVLOG_KEY_MAX);
    }
    if (kvlog_is_reserved(key, len)) {
        return error_set(e, HEDGE_EINVAL,
                         "keys that begin with \"" KV_RESERVED_PREFIX
                         "\" or a byte 0x00 are the cluster's own");
    }
    return 0;
}

int kv_check_put(const struct engine_put *p, struct hedge_error *e)
{
    int rv = kv_check_key(p->key, p->key_len, e);

    if (rv == 0 && p->value_len > ENGINE_VALUE_MAX) {
        rv = error_set(e, HEDGE_ETOOBIG,
                       "a value of %zu bytes is over the limit of %zu",
                       p->value_len, ENGINE_VALUE_MAX);
    }
    if (rv == 0 && (p->flags & ~(unsigned)ENGINE_REPLACE) != 0) {
        rv = error_set(e, HEDGE_EINVAL, "unknown flags 0x%x", p->flags);
    }
    return rv;
}

/* Ids begin with the time: rows that come together lie together. */
static void make_ids(struct engine_put *puts, size_t n)
{
    static const unsigned char none[ENGINE_REQUEST_SIZE];
    uint64_t now = clock_wall_ns();

    for (size_t i = 0; i < n; i++) {
        unsigned char *id = puts[i].request;

        if (memcmp(id, none, sizeof none) != 0) {
            continue;
        }
        for (unsigned k = 0; k < 6; k++) {
            id[k] = (unsigned char)(now >> (56 - 8 * k));
        }
        if (getrandom(id + 6, ENGINE_REQUEST_SIZE - 6, 0) < 0) {
            uint64_t a = clock_mono_ns(), b = (uint64_t)(uintptr_t)id;

            memcpy(id + 6, &a, 8); /* Without random numbers: unlikely ones. */
            memcpy(id + 14, &b, 2);
        }
    }
}

/* --- ending operations ------------------------------------------------------
 */

/* With kv->lock held, which is dropped meanwhile. `done` may end the life of
 * the operation. */
static void tell(struct kv *kv, struct list *ended)
{
    size_t n = 0;
    struct list *l;

    pthread_mutex_unlock(&kv->lock);
    while ((l = list_pop(ended)) != NULL) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        n++;
        op->done(op, op->status);
    }
    pthread_mutex_lock(&kv->lock);
    assert(kv->n_live >= n);
    kv->n_live -= n;
    pthread_cond_broadcast(&kv->settled);
    pthread_cond_broadcast(&kv->news);
}

static void on_sync_done(struct kv_op *op, int status);

/* With kv->lock held. Threads that wait are woken from here; what takes longer
 * is the completer's, beside the next commit. */
static void hand_out(struct kv *kv, struct list *ended)
{
    struct list here, *l, *tmp;
    bool rest = false;

    list_init(&here);
    list_foreach_safe (l, tmp, ended) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        list_remove(l);
        if (op->done == on_sync_done) {
            list_push(&here, l);
        } else {
            list_push(&kv->done, l);
            rest = true;
        }
    }
    if (rest) {
        pthread_cond_signal(&kv->to_complete);
    }
    if (!list_empty(&here)) {
        tell(kv, &here);
    }
}

static void *completer_main(void *arg)
{
    struct kv *kv = arg;
    struct list mine;

    list_init(&mine);
    pthread_mutex_lock(&kv->lock);
    while (!kv->q.closing || kv->n_live > 0) {
        if (list_empty(&kv->done)) {
            (void)wait_ms(&kv->to_complete, &kv->lock, IDLE_MS / 10);
            continue;
        }
        list_splice(&mine, &kv->done);
        tell(kv, &mine);
    }
    pthread_mutex_unlock(&kv->lock);
    return NULL;
}

/* With kv->lock held. true: something was ended, and the lock was dropped
 * meanwhile. */
static bool weed(struct kv *kv, bool leads, uint64_t token)
{
    struct list ended;

    list_init(&ended);
    put_queue_weed(&kv->q, leads, token, clock_mono_ms(), &ended);
    if (list_empty(&ended)) {
        return false;
    }
    hand_out(kv, &ended);
    return true;
}

/* --- committing -------------------------------------------------------------
 */

/* With kv->lock held: give those who have just been answered the time to come
 * again. */
static void gather(struct kv *kv)
{
    uint64_t ns = kv->last_commit_ns / GATHER_PART;
    uint64_t until_ns =
        clock_mono_ns() + (ns < GATHER_MAX_NS ? ns : GATHER_MAX_NS);

    if (kv->last_batch < 2) {
        return;
    }
    kv->gathering = true;
    kv->gather_for = kv->last_batch;
    while (kv->q.n_queued < kv->gather_for && !kv->q.closing &&
           wait_ns(&kv->work, &kv->lock, until_ns)) {
    }
    kv->gathering = false;
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
static void commit(struct kv *kv, uint64_t token)
{
    struct hedge_error e = {0};
    struct list batch, ended;
    uint64_t deadline_ms, start_ns, timeout_ms;
    size_t n, ops = kv->q.n_queued;
    bool again;
    int rv;

    list_init(&batch);
    n = put_queue_take(&kv->q, token, &batch, &deadline_ms);
    ops -= kv->q.n_queued;
    if (ops == 0) {
        return;
    }
    pthread_mutex_unlock(&kv->lock);
    timeout_ms = put_queue_left_ms(deadline_ms, clock_mono_ms());
    timeout_ms = timeout_ms < TURN_MS ? timeout_ms : TURN_MS;
    put_queue_copy_in(kv->batch, &batch);
    start_ns = clock_mono_ns();
    rv = engine_append(kv->o.engine, token, kv->o.id, kv->batch, n, timeout_ms,
                       &e);
    kv->last_commit_ns = clock_mono_ns() - start_ns;
    kv->last_batch = ops;
    if (rv == 0) {
        put_queue_copy_out(kv->batch, &batch);
        note_revision(kv, kv->batch, n);
    }
    pthread_mutex_lock(&kv->lock);
    kv->n_transactions += rv == 0;
    kv->n_puts += rv == 0 ? n : 0;
    if (rv != 0 && rv != HEDGE_ETIMEDOUT) {
        log_warn("kv", "the log: %s", e.text);
    }
    list_init(&ended);
    again = put_queue_appended(&kv->q, &batch, rv, &e, timeout_ms >= TURN_MS,
                               clock_mono_ms(), &ended);
    if (!list_empty(&ended)) {
        hand_out(kv, &ended);
    }
    if (again && rv == HEDGE_EFENCED) {
        (void)wait_ms(&kv->work, &kv->lock, RETRY_MS);
    }
}

static void *committer_main(void *arg)
{
    struct kv *kv = arg;
    uint64_t token = 0, raised = 0;

    pthread_mutex_lock(&kv->lock);
    while (!kv->q.closing || kv->q.n_queued > 0) {
        bool leads = !kv->q.closing && kv->o.leads(kv->o.ctx, &token);

        if (leads != kv->q.leading) {
            kv->q.leading = leads;
            pthread_cond_broadcast(&kv->far);
        }
        if (leads && token != raised) {
            struct hedge_error e = {0};
            int rv;

            pthread_mutex_unlock(&kv->lock);
            rv = engine_append(kv->o.engine, token, kv->o.id, NULL, 0, TURN_MS,
                               &e);
            pthread_mutex_lock(&kv->lock);
            if (rv != 0) {
                log_warn("kv", "raising the term: %s", e.text);
            }
            raised = token; /* Each append does it again. */
            continue;
        }
        if (weed(kv, leads, token)) {
            continue; /* It may not lead any more. */
        }
        if (leads && kv->q.n_queued > 0) {
            gather(kv);
            commit(kv, token);
        } else if (!kv->q.closing) {
            (void)wait_ms(&kv->work, &kv->lock,
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

        make_ids(op->puts, op->n);
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
        hand_out(kv, &ended);
    }
    if (again) {
        pthread_cond_signal(&kv->work);
        if (!kv->q.closing) {
            (void)wait_ms(&kv->far, &kv->lock, RETRY_MS);
        }
    }
}

static void *forwarder_main(void *arg)
{
    struct kv *kv = arg;
    struct engine_put *puts = mem_alloc(KV_BATCH_PUTS * sizeof *puts);

    pthread_mutex_lock(&kv->lock);
    while (!kv->q.closing) {
        if (puts == NULL || !put_queue_for_others(&kv->q)) {
            (void)wait_ms(&kv->far, &kv->lock, IDLE_MS);
        } else {
            forward(kv, puts);
        }
    }
    pthread_mutex_unlock(&kv->lock);
    mem_free(puts);
    return NULL;
}

/* --- asking -----------------------------------------------------------------
 */

/* With kv->lock held. */
static int enqueue(struct kv *kv, struct kv_op *op, struct hedge_error *e)
{
    int rv = put_queue_add(&kv->q, op, e);

    if (rv != 0) {
        return rv;
    }
    kv->n_live++;
    if (!kv->gathering || kv->q.n_queued >= kv->gather_for) {
        pthread_cond_signal(&kv->work);
    }
    if (!kv->q.leading) {
        pthread_cond_signal(&kv->far);
    }
    return 0;
}

int kv_submit(struct kv *kv, struct kv_op *op, struct hedge_error *e)
{
    int rv;

    assert(op->n <= KV_BATCH_PUTS && op->done != NULL);
    put_queue_op_init(op);
    pthread_mutex_lock(&kv->lock);
    rv = enqueue(kv, op, e);
    pthread_mutex_unlock(&kv->lock);
    return rv;
}

struct sync_op {
    struct kv_op op;
    sem_t done;
};

static void on_sync_done(struct kv_op *op, int status)
{
    struct sync_op *s = container_of(op, struct sync_op, op);

    (void)status;
    (void)sem_post(&s->done);
}

/* Wait for room in the queue, then for the end. */
static int run_sync(struct kv *kv, struct sync_op *s, struct hedge_error *e)
{
    int rv;

    assert(s->op.n <= KV_BATCH_PUTS);
    s->op.done = on_sync_done;
    put_queue_op_init(&s->op);
    (void)sem_init(&s->done, 0, 0);
    pthread_mutex_lock(&kv->lock);
    while ((rv = enqueue(kv, &s->op, e)) == HEDGE_EEXHAUSTED &&
           clock_mono_ms() < s->op.deadline_ms) {
        (void)wait_ms(&kv->news, &kv->lock, RETRY_MS);
    }
    pthread_mutex_unlock(&kv->lock);
    if (rv == 0) {
        while (sem_wait(&s->done) != 0) {
        }
        rv = s->op.status;
        if (rv != 0) {
            (void)error_set(e, rv, "%s", s->op.error.text);
        }
    }
    (void)sem_destroy(&s->done);
    return rv;
}

static uint64_t deadline_of(uint64_t timeout_ms)
{
    uint64_t now = clock_mono_ms();

    return timeout_ms < UINT64_MAX - now ? now + timeout_ms : UINT64_MAX;
}

int kv_put(struct kv *kv, struct engine_put *puts, size_t n, unsigned flags,
           uint64_t timeout_ms, struct hedge_error *e)
{
    struct sync_op s = {.op = {.puts = puts,
                               .n = n,
                               .flags = flags,
                               .deadline_ms = deadline_of(timeout_ms)}};
    int rv = 0;

    if (n > KV_BATCH_PUTS) {
        return error_set(e, HEDGE_EINVAL, "%zu puts at once: at most %u", n,
                         KV_BATCH_PUTS);
    }
    for (size_t i = 0; rv == 0 && i < n; i++) {
        rv = kv_check_put(&puts[i], e);
    }
    return rv == 0 && n > 0 ? run_sync(kv, &s, e) : rv;
}

int kv_append(struct kv *kv, uint64_t token, struct engine_put *puts, size_t n,
              uint64_t timeout_ms, struct hedge_error *e)
{
    struct sync_op s = {.op = {.puts = puts,
                               .n = n,
                               .token = token,
                               .deadline_ms = deadline_of(timeout_ms)}};

    assert(token != 0);
    return run_sync(kv, &s, e);
}

int kv_wait(struct kv *kv, uint64_t seen, uint64_t timeout_ms, uint64_t *now,
            struct hedge_error *e)
{
    uint64_t until_ms = deadline_of(timeout_ms), pause_ms = FOLLOW_MIN_MS;
    struct engine_log_state state;
    bool closing = false;
    int rv;

    for (;;) {
        rv = engine_log_state(kv->o.engine, &state, e);
        *now = state.revision;
        if (rv != 0 || state.revision > seen) {
            return rv;
        }
        if (closing) {
            return error_set(e, HEDGE_ECLOSED, "the node stops");
        }
        if (clock_mono_ms() >= until_ms) {
            return error_set(e, HEDGE_ETIMEDOUT, "nothing new");
        }
        pthread_mutex_lock(&kv->lock);
        if (!kv->q.closing && atomic_load(&kv->revision) <= seen) {
            uint64_t left = until_ms - clock_mono_ms();

            (void)wait_ms(&kv->news, &kv->lock,
                          left < pause_ms ? left : pause_ms);
        }
        closing = kv->q.closing;
        pthread_mutex_unlock(&kv->lock);
        pause_ms = pause_ms * 2 < FOLLOW_MAX_MS ? pause_ms * 2 : FOLLOW_MAX_MS;
    }
}

static int reserve(struct kv *kv, uint64_t bytes, bool reading,
                   uint64_t timeout_ms, struct hedge_error *e)
{
    uint64_t until_ms = deadline_of(timeout_ms);
    int rv = 0;

    pthread_mutex_lock(&kv->lock);
    while (!kv->q.closing && !put_queue_has_room(&kv->q, bytes, reading) &&
           rv == 0) {
        if (clock_mono_ms() >= until_ms) {
            rv = error_set(e, HEDGE_EEXHAUSTED,
                           "the message limit is used up: %llu bytes wait "
                           "already",
                           (unsigned long long)kv->q.used_bytes);
        } else {
            (void)wait_ms(&kv->news, &kv->lock, RETRY_MS);
        }
    }
    if (kv->q.closing) {
        rv = error_set(e, HEDGE_ECLOSED, "the node stops");
    }
    kv->q.used_bytes += rv == 0 ? bytes : 0;
    kv->q.read_bytes += rv == 0 && reading ? bytes : 0;
    pthread_mutex_unlock(&kv->lock);
    return rv;
}

int kv_reserve(struct kv *kv, uint64_t bytes, uint64_t timeout_ms,
               struct hedge_error *e)
{
    return reserve(kv, bytes, false, timeout_ms, e);
}

int kv_reserve_read(struct kv *kv, uint64_t bytes, uint64_t timeout_ms,
                    struct hedge_error *e)
{
    return reserve(kv, bytes, true, timeout_ms, e);
}

static void release(struct kv *kv, uint64_t bytes, uint64_t read_bytes)
{
    pthread_mutex_lock(&kv->lock);
    assert(kv->q.used_bytes >= bytes && kv->q.read_bytes >= read_bytes);
    kv->q.used_bytes -= bytes;
    kv->q.read_bytes -= read_bytes;
    pthread_cond_broadcast(&kv->news);
    pthread_mutex_unlock(&kv->lock);
}

void kv_release(struct kv *kv, uint64_t bytes)
{
    release(kv, bytes, 0);
}

void kv_release_read(struct kv *kv, uint64_t bytes)
{
    release(kv, bytes, bytes);
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
    kv->q.leading = o->leads(o->ctx, &token);
    pthread_mutex_init(&kv->lock, NULL);
    cond_init(&kv->work);
    cond_init(&kv->far);
    cond_init(&kv->news);
    cond_init(&kv->settled);
    cond_init(&kv->to_complete);
    put_queue_init(&kv->q, o->budget_bytes);
    list_init(&kv->done);
    kv->batch = mem_alloc(KV_BATCH_PUTS * sizeof *kv->batch);
    rv = kv->batch != NULL ? 0 : HEDGE_ENOMEM;
    rv = rv != 0 ? rv : start_thread(kv, committer_main, "hedge-kv-commit");
    rv = rv != 0 ? rv : start_thread(kv, completer_main, "hedge-kv-done");
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
    pthread_mutex_lock(&kv->lock);
    kv->q.closing = true;
    pthread_cond_broadcast(&kv->work);
    pthread_cond_broadcast(&kv->far);
    pthread_cond_broadcast(&kv->news);
    pthread_cond_broadcast(&kv->to_complete);
    while (kv->n_live > 0) {
        (void)wait_ms(&kv->settled, &kv->lock, RETRY_MS);
        (void)weed(kv, false, 0);
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

void kv_use(struct kv *kv, struct kv_use *out)
{
    pthread_mutex_lock(&kv->lock);
    *out = (struct kv_use){.revision = atomic_load(&kv->revision),
                           .puts = kv->n_puts,
                           .transactions = kv->n_transactions,
                           .queued = kv->q.n_queued,
                           .live = kv->n_live,
                           .used_bytes = kv->q.used_bytes,
                           .limit_bytes = kv->o.budget_bytes};
    pthread_mutex_unlock(&kv->lock);
}
