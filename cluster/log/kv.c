#include "cluster/log/kv.h"

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
/* What is left of a deadline when it counts as passed: an error with a reason
 * is to get back before the caller gives up. */
#define SLACK_MS 20u
#define GIVE_UP_MS 40u /* What is not worth another try. */
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
    struct list queue;
    size_t n_queued;                 /* Operations. */
    size_t n_live;                   /* Queued or under way. */
    uint64_t used_bytes, read_bytes; /* The second: of the first, readers'. */
    uint64_t n_puts, n_transactions; /* Committed. */
    bool closing, gathering, leading;
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

/* With kv->lock held: the operation is over but for telling its owner. */
static void op_end(struct kv *kv, struct kv_op *op, int status,
                   const struct hedge_error *e, struct list *ended)
{
    op->status = status;
    if (status != 0 && e != NULL) {
        op->error = *e;
    }
    assert(kv->used_bytes >= op->charge);
    kv->used_bytes -= op->charge;
    list_push(ended, &op->link);
}

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
    while (!kv->closing || kv->n_live > 0) {
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

static int late_error(struct kv_op *op, bool leads)
{
    if (op->error.code == HEDGE_ETIMEDOUT) {
        return HEDGE_ETIMEDOUT; /* With its reason. */
    }
    if (op->sent) {
        const char *late = "the leader has not answered in time; the put may "
                           "yet happen";

        if (op->error.text[0] == '\0') {
            return error_set(&op->error, HEDGE_ETIMEDOUT, "%s", late);
        }
        (void)error_prefix(&op->error, "%s", late);
        op->error.code = HEDGE_ETIMEDOUT;
        return HEDGE_ETIMEDOUT;
    }
    if (leads) {
        return error_set(&op->error, HEDGE_ETIMEDOUT,
                         "the log was busy with what came before for all the "
                         "time there was; nothing was written");
    }
    return error_set(&op->error, HEDGE_ENOLEADER,
                     "the group has no leader at present");
}

/* With kv->lock held: fail what waits and cannot wait any longer, or not for
 * somebody else. true: there was such, and the lock was dropped meanwhile. */
static bool weed(struct kv *kv, bool leads, uint64_t token)
{
    uint64_t now = clock_mono_ms();
    struct list ended, *l, *tmp;

    list_init(&ended);
    list_foreach_safe (l, tmp, &kv->queue) {
        struct kv_op *op = container_of(l, struct kv_op, link);
        int rv = 0;

        if (kv->closing) {
            rv = error_set(&op->error, HEDGE_ECLOSED, "the node stops");
        } else if (op->token != 0 && (!leads || op->token != token)) {
            rv = error_set(&op->error, HEDGE_EFENCED,
                           "token %llu is not this node's any more",
                           (unsigned long long)op->token);
        } else if ((op->flags & KV_LEADER_ONLY) != 0 && !leads) {
            rv = error_set(&op->error, HEDGE_ENOTLEADER,
                           "this node is not the leader");
        } else if (now + SLACK_MS >= op->deadline_ms) {
            rv = late_error(op, leads);
        }
        if (rv != 0) {
            list_remove(l);
            kv->n_queued--;
            op_end(kv, op, rv, NULL, &ended);
        }
    }
    if (list_empty(&ended)) {
        return false;
    }
    hand_out(kv, &ended);
    return true;
}

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
            continue; /* weed()'s. */
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
            op_end(kv, op, give_up ? why->code : late_error(op, kv->leading),
                   NULL, &ended);
        }
    }
    put_back(kv, batch);
    if (!list_empty(&ended)) {
        hand_out(kv, &ended);
    }
}

static void end_batch(struct kv *kv, struct list *batch, int status,
                      const struct hedge_error *e)
{
    struct list ended, *l;

    list_init(&ended);
    while ((l = list_pop(batch)) != NULL) {
        op_end(kv, container_of(l, struct kv_op, link), status, e, &ended);
    }
    hand_out(kv, &ended);
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
    while (kv->n_queued < kv->gather_for && !kv->closing &&
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
    struct list batch;
    uint64_t deadline_ms, start_ns, timeout_ms;
    size_t n, ops = kv->n_queued;
    int rv;

    list_init(&batch);
    n = take(kv, token, &batch, &deadline_ms);
    ops -= kv->n_queued;
    if (ops == 0) {
        return;
    }
    pthread_mutex_unlock(&kv->lock);
    timeout_ms = left_ms(deadline_ms);
    timeout_ms = timeout_ms < TURN_MS ? timeout_ms : TURN_MS;
    copy_in(kv->batch, &batch);
    start_ns = clock_mono_ns();
    rv = engine_append(kv->o.engine, token, kv->o.id, kv->batch, n, timeout_ms,
                       &e);
    kv->last_commit_ns = clock_mono_ns() - start_ns;
    kv->last_batch = ops;
    if (rv == 0) {
        copy_out(kv->batch, &batch);
        note_revision(kv, kv->batch, n);
    }
    pthread_mutex_lock(&kv->lock);
    kv->n_transactions += rv == 0;
    kv->n_puts += rv == 0 ? n : 0;
    if (rv == HEDGE_ETIMEDOUT) {
        retry(kv, &batch, &e, false, timeout_ms >= TURN_MS);
    } else if (rv == HEDGE_EFENCED) {
        /* Nothing was written: whoever leads now is to do it. */
        log_warn("kv", "%s", e.text);
        kv->leading = false;
        retry(kv, &batch, &e, false, false);
        (void)wait_ms(&kv->work, &kv->lock, RETRY_MS);
    } else {
        if (rv != 0) {
            log_warn("kv", "the log: %s", e.text);
        }
        end_batch(kv, &batch, rv, &e);
    }
}

static void *committer_main(void *arg)
{
    struct kv *kv = arg;
    uint64_t token = 0, raised = 0;

    pthread_mutex_lock(&kv->lock);
    while (!kv->closing || kv->n_queued > 0) {
        bool leads = !kv->closing && kv->o.leads(kv->o.ctx, &token);

        if (leads != kv->leading) {
            kv->leading = leads;
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
        if (leads && kv->n_queued > 0) {
            gather(kv);
            commit(kv, token);
        } else if (!kv->closing) {
            (void)wait_ms(&kv->work, &kv->lock,
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

        make_ids(op->puts, op->n);
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
            (void)wait_ms(&kv->far, &kv->lock, RETRY_MS);
        }
    } else {
        end_batch(kv, &batch, rv, &e);
    }
}

/* Something is there that may be sent. */
static bool for_others(const struct kv *kv)
{
    const struct kv_op *op;

    if (kv->leading || kv->closing || list_empty(&kv->queue)) {
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

static size_t op_bytes(const struct kv_op *op)
{
    size_t bytes = 0;

    for (size_t i = 0; i < op->n; i++) {
        bytes += op->puts[i].key_len + op->puts[i].value_len;
    }
    return bytes;
}

/* With kv->lock held. Readers wait for their clients' pace: half of the budget
 * is not for them. One of each kind may be larger than what there is. */
static bool has_room(const struct kv *kv, uint64_t bytes, bool reading)
{
    uint64_t used = kv->used_bytes, half = kv->o.budget_bytes / 2;

    if (used + bytes <= kv->o.budget_bytes &&
        (!reading || kv->read_bytes + bytes <= half)) {
        return true;
    }
    return reading ? kv->read_bytes == 0 && used <= half
                   : used == kv->read_bytes;
}

/* With kv->lock held. */
static int enqueue(struct kv *kv, struct kv_op *op, struct hedge_error *e)
{
    if (kv->closing) {
        return error_set(e, HEDGE_ECLOSED, "the node stops");
    }
    if (op->charge > 0 && !has_room(kv, op->charge, false)) {
        return error_set(e, HEDGE_EEXHAUSTED,
                         "puts of %llu bytes wait already, the message limit "
                         "is used up",
                         (unsigned long long)kv->used_bytes);
    }
    kv->used_bytes += op->charge;
    kv->n_live++;
    kv->n_queued++;
    list_push(&kv->queue, &op->link);
    if (!kv->gathering || kv->n_queued >= kv->gather_for) {
        pthread_cond_signal(&kv->work);
    }
    if (!kv->leading) {
        pthread_cond_signal(&kv->far);
    }
    return 0;
}

static void op_init(struct kv_op *op)
{
    op->bytes = op_bytes(op);
    op->charge = (op->flags & KV_RESERVED) != 0 ? 0 : op->bytes;
    op->sent = false;
    op->status = 0;
    error_clear(&op->error);
    list_init(&op->link);
}

int kv_submit(struct kv *kv, struct kv_op *op, struct hedge_error *e)
{
    int rv;

    assert(op->n <= KV_BATCH_PUTS && op->done != NULL);
    op_init(op);
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
    op_init(&s->op);
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
        if (!kv->closing && atomic_load(&kv->revision) <= seen) {
            uint64_t left = until_ms - clock_mono_ms();

            (void)wait_ms(&kv->news, &kv->lock,
                          left < pause_ms ? left : pause_ms);
        }
        closing = kv->closing;
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
    while (!kv->closing && !has_room(kv, bytes, reading) && rv == 0) {
        if (clock_mono_ms() >= until_ms) {
            rv = error_set(e, HEDGE_EEXHAUSTED,
                           "the message limit is used up: %llu bytes wait "
                           "already",
                           (unsigned long long)kv->used_bytes);
        } else {
            (void)wait_ms(&kv->news, &kv->lock, RETRY_MS);
        }
    }
    if (kv->closing) {
        rv = error_set(e, HEDGE_ECLOSED, "the node stops");
    }
    kv->used_bytes += rv == 0 ? bytes : 0;
    kv->read_bytes += rv == 0 && reading ? bytes : 0;
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
    assert(kv->used_bytes >= bytes && kv->read_bytes >= read_bytes);
    kv->used_bytes -= bytes;
    kv->read_bytes -= read_bytes;
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
    kv->leading = o->leads(o->ctx, &token);
    pthread_mutex_init(&kv->lock, NULL);
    cond_init(&kv->work);
    cond_init(&kv->far);
    cond_init(&kv->news);
    cond_init(&kv->settled);
    cond_init(&kv->to_complete);
    list_init(&kv->queue);
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
    kv->closing = true;
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

void kv_use(struct kv *kv, struct kv_use *out)
{
    pthread_mutex_lock(&kv->lock);
    *out = (struct kv_use){.revision = atomic_load(&kv->revision),
                           .puts = kv->n_puts,
                           .transactions = kv->n_transactions,
                           .queued = kv->n_queued,
                           .live = kv->n_live,
                           .used_bytes = kv->used_bytes,
                           .limit_bytes = kv->o.budget_bytes};
    pthread_mutex_unlock(&kv->lock);
}
