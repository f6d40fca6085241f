#include "cluster/log/kv_internal.h"

#include "store/base/clock.h"
#include "store/base/units.h"
#include "store/kvlog/kvlog.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FOLLOW_MIN_MS 2u
#define FOLLOW_MAX_MS 20u
/* Waking more than these is the completer's: it takes as long as a commit. */
#define TELL_HERE_MAX 4u

/* --- small things -----------------------------------------------------------
 */

void kv_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

bool kv_sleep_ns(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ns / 1000000000u),
                          .tv_nsec = (long)(until_ns % 1000000000u)};

    return pthread_cond_timedwait(c, m, &ts) == 0;
}

bool kv_sleep_ms(pthread_cond_t *c, pthread_mutex_t *m, uint64_t ms)
{
    return kv_sleep_ns(c, m, clock_mono_ns() + ms * 1000000u);
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
    char size[UNITS_SIZE_TEXT];
    int rv = kv_check_key(p->key, p->key_len, e);

    if (rv == 0 && p->value_len > ENGINE_VALUE_MAX) {
        rv = error_set(e, HEDGE_ETOOBIG,
                       "a value of %zu bytes is over the limit of %s",
                       p->value_len, units_format_size(ENGINE_VALUE_MAX, size));
    }
    if (rv == 0 && (p->flags & ~(unsigned)ENGINE_REPLACE) != 0) {
        rv = error_set(e, HEDGE_EINVAL, "unknown flags 0x%x", p->flags);
    }
    return rv;
}

/* Ids begin with the time: rows that come together lie together. */
void kv_make_ids(struct engine_put *puts, size_t n)
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

/* A call that waits. Those of a batch wait on one word, so that one call to
 * the kernel wakes them all: waking 256 threads one by one takes longer than a
 * commit. */
struct sync_op {
    struct kv_op op;
    unsigned word; /* Which of the kv's. */
    atomic_bool done;
};

static void on_sync_done(struct kv_op *op, int status)
{
    struct sync_op *s = container_of(op, struct sync_op, op);

    (void)status;
    atomic_store(&s->done, true); /* From here on it may be gone. */
}

static void wake_all(atomic_uint *word)
{
    atomic_fetch_add(word, 1);
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void await_done(struct kv *kv, struct sync_op *s)
{
    atomic_uint *word = &kv->words[s->word];

    while (!atomic_load(&s->done)) {
        unsigned seen = atomic_load(word);

        if (!atomic_load(&s->done)) {
            (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL,
                          0);
        }
    }
}

/* With kv->lock held, which is dropped meanwhile. `done` may end the life of
 * the operation. */
static void tell(struct kv *kv, struct list *ended)
{
    bool words[2] = {false, false};
    struct list *l;
    size_t n = 0;

    pthread_mutex_unlock(&kv->lock);
    while ((l = list_pop(ended)) != NULL) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        n++;
        if (op->done == on_sync_done) {
            words[container_of(op, struct sync_op, op)->word] = true;
        }
        op->done(op, op->status);
    }
    for (unsigned i = 0; i < 2; i++) {
        if (words[i]) {
            wake_all(&kv->words[i]);
        }
    }
    pthread_mutex_lock(&kv->lock);
    (void)atomic_fetch_sub(&kv->n_live, n);
    pthread_cond_broadcast(&kv->settled);
    pthread_cond_broadcast(&kv->news);
}

void kv_hand_out(struct kv *kv, struct list *ended)
{
    struct list here, *l, *tmp;
    unsigned n = 0;

    list_init(&here);
    list_foreach_safe (l, tmp, ended) {
        struct kv_op *op = container_of(l, struct kv_op, link);

        if (op->done == on_sync_done) {
            list_remove(l);
            list_push(&here, l);
            n++;
        }
    }
    list_splice(&kv->done, ended);
    if (n > TELL_HERE_MAX) { /* One call to the kernel wakes them, or none. */
        list_splice(&kv->done, &here);
    }
    if (!list_empty(&kv->done)) {
        pthread_cond_signal(&kv->to_complete);
    }
    if (!list_empty(&here)) {
        tell(kv, &here);
    }
}

void *kv_completer_main(void *arg)
{
    struct kv *kv = arg;
    struct list mine;

    list_init(&mine);
    pthread_mutex_lock(&kv->lock);
    while (!kv->q.closing || atomic_load(&kv->n_live) > 0) {
        if (list_empty(&kv->done)) {
            (void)kv_sleep_ms(&kv->to_complete, &kv->lock, IDLE_MS / 10);
            continue;
        }
        list_splice(&mine, &kv->done);
        tell(kv, &mine);
    }
    pthread_mutex_unlock(&kv->lock);
    return NULL;
}

void kv_open_inbox(struct kv *kv)
{
    struct kv_op *op = atomic_exchange(&kv->inbox, NULL), *next;
    struct list fresh;
    size_t n = 0;

    list_init(&fresh);
    for (; op != NULL; op = next) {
        next = op->next;
        list_push_front(&fresh, &op->link);
        n++;
    }
    (void)atomic_fetch_sub(&kv->n_inbox, n);
    kv->q.n_queued += n;
    list_splice(&kv->q.ops, &fresh);
}

bool kv_weed(struct kv *kv, bool leads, uint64_t token)
{
    struct list ended;

    kv_open_inbox(kv);
    list_init(&ended);
    put_queue_weed(&kv->q, leads, token, clock_mono_ms(), &ended);
    if (list_empty(&ended)) {
        return false;
    }
    kv_hand_out(kv, &ended);
    if (!leads) { /* What stood behind it may be theirs. */
        pthread_cond_signal(&kv->far);
    }
    return true;
}

/* --- asking -----------------------------------------------------------------
 */

static void put_in(struct kv *kv, struct kv_op *op)
{
    struct kv_op *before = atomic_load(&kv->inbox);

    do {
        op->next = before;
    } while (!atomic_compare_exchange_weak(&kv->inbox, &before, op));
    (void)atomic_fetch_add(&kv->n_inbox, 1);
    if (before != NULL) {
        return; /* Another has woken them, or will. */
    }
    pthread_mutex_lock(&kv->lock);
    pthread_cond_signal(&kv->work);
    if (!kv->q.leading) {
        pthread_cond_signal(&kv->far);
    }
    pthread_mutex_unlock(&kv->lock);
}

static int enqueue(struct kv *kv, struct kv_op *op, struct hedge_error *e)
{
    int rv;

    (void)atomic_fetch_add(&kv->n_live, 1); /* Keeps the kv. */
    rv = atomic_load(&kv->refusing)
             ? error_set(e, HEDGE_ECLOSED, "the node stops")
             : put_queue_charge(&kv->q, op->charge, false, e);
    if (rv != 0) {
        (void)atomic_fetch_sub(&kv->n_live, 1);
        return rv;
    }
    put_in(kv, op);
    return 0;
}

int kv_submit(struct kv *kv, struct kv_op *op, struct hedge_error *e)
{
    assert(op->n <= KV_BATCH_PUTS && op->done != NULL);
    put_queue_op_init(op);
    return enqueue(kv, op, e);
}

/* Wait for room in the queue, then for the end. */
static int wait_in_line(struct kv *kv, struct sync_op *s, struct hedge_error *e)
{
    int rv;

    atomic_init(&s->done, false);
    /* Which of the two it is matters for speed alone. */
    s->word = atomic_load(&kv->forming);
    while ((rv = enqueue(kv, &s->op, e)) == HEDGE_EEXHAUSTED &&
           clock_mono_ms() < s->op.deadline_ms) {
        pthread_mutex_lock(&kv->lock);
        (void)kv_sleep_ms(&kv->news, &kv->lock, RETRY_MS);
        pthread_mutex_unlock(&kv->lock);
    }
    if (rv == 0) {
        await_done(kv, s);
        rv = s->op.status;
        if (rv != 0) {
            (void)error_set(e, rv, "%s", s->op.error.text);
        }
    }
    return rv;
}

static int run_sync(struct kv *kv, struct sync_op *s, struct hedge_error *e)
{
    int rv;

    assert(s->op.n <= KV_BATCH_PUTS);
    s->op.done = on_sync_done;
    put_queue_op_init(&s->op);
    (void)atomic_fetch_add(&kv->n_callers, 1); /* Keeps the kv. */
    if (!kv_commit_here(kv, &s->op, &rv)) {
        rv = wait_in_line(kv, s, e);
    } else if (rv != 0) {
        (void)error_set(e, rv, "%s", s->op.error.text);
    }
    (void)atomic_fetch_sub(&kv->n_callers, 1);
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

            (void)kv_sleep_ms(&kv->news, &kv->lock,
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
    int rv;

    pthread_mutex_lock(&kv->lock);
    for (;;) {
        rv = kv->q.closing ? error_set(e, HEDGE_ECLOSED, "the node stops")
                           : put_queue_charge(&kv->q, bytes, reading, e);
        if (rv != HEDGE_EEXHAUSTED || clock_mono_ms() >= until_ms) {
            break;
        }
        (void)kv_sleep_ms(&kv->news, &kv->lock, RETRY_MS);
    }
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

static void release(struct kv *kv, uint64_t bytes, bool reading)
{
    pthread_mutex_lock(&kv->lock);
    put_queue_uncharge(&kv->q, bytes, reading);
    pthread_cond_broadcast(&kv->news);
    pthread_mutex_unlock(&kv->lock);
}

void kv_release(struct kv *kv, uint64_t bytes)
{
    release(kv, bytes, false);
}

void kv_release_read(struct kv *kv, uint64_t bytes)
{
    release(kv, bytes, true);
}

void kv_use(struct kv *kv, struct kv_use *out)
{
    pthread_mutex_lock(&kv->lock);
    *out = (struct kv_use){.revision = atomic_load(&kv->revision),
                           .puts = kv->n_puts,
                           .transactions = kv->n_transactions,
                           .queued = kv->q.n_queued + atomic_load(&kv->n_inbox),
                           .live = atomic_load(&kv->n_live),
                           .used_bytes = atomic_load(&kv->q.put_bytes) +
                                         atomic_load(&kv->q.read_bytes),
                           .limit_bytes = kv->o.budget_bytes};
    pthread_mutex_unlock(&kv->lock);
}
