/* Group commit and forwarding, over an engine and a leader of the test's own.
 */
#include "cluster/log/kv_internal.h"
#include "store/base/clock.h"
#include "store/base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/check.h"

#define APPENDED_MAX 100000
#define PLENTY 10000u

/* --- the double -------------------------------------------------------------
 */

static struct fake {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* The engine. */
    uint64_t revision, term, last_token, timeout_ms;
    unsigned appends, raises; /* Transactions. */
    size_t largest;           /* Puts in one. */
    unsigned pause_ms;
    bool blocked; /* Appends wait, up to their time. */
    int fail, fail_times;
    bool poison; /* The key "poison" meets a damaged row. */
    unsigned char ids[64][ENGINE_REQUEST_SIZE];
    uint64_t id_revision[64];
    unsigned n_ids;
    /* Who leads. */
    bool leads;
    uint64_t token;
    /* The way to another leader. */
    unsigned forwards;
    int forward_fail, forward_fail_times;
    bool lose_answers;
} fake;

static uint64_t append_one(struct engine_put *p)
{
    static const unsigned char none[ENGINE_REQUEST_SIZE];

    if (memcmp(p->request, none, sizeof none) != 0) {
        for (unsigned i = 0; i < fake.n_ids; i++) {
            if (memcmp(p->request, fake.ids[i], sizeof none) == 0) {
                p->repeated = true;
                return fake.id_revision[i];
            }
        }
        assert_true(fake.n_ids < 64);
        memcpy(fake.ids[fake.n_ids], p->request, sizeof none);
        fake.id_revision[fake.n_ids++] = fake.revision + 1;
    }
    return ++fake.revision;
}

/* With the lock held. */
static int append_all(struct engine_put *puts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        puts[i].revision = append_one(&puts[i]);
        puts[i].timestamp_ms = 1000 + puts[i].revision;
    }
    fake.largest = n > fake.largest ? n : fake.largest;
    return 0;
}

static bool has_key(const struct engine_put *puts, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++) {
        if (puts[i].key_len == strlen(key) &&
            memcmp(puts[i].key, key, puts[i].key_len) == 0) {
            return true;
        }
    }
    return false;
}

static int fake_append(void *ctx, uint64_t token, const char *leader,
                       struct engine_put *puts, size_t n, uint64_t timeout_ms,
                       struct hedge_error *e)
{
    uint64_t until = clock_mono_ms() + timeout_ms, pause_ms;
    int rv = 0;

    (void)ctx;
    assert_string_equal(leader, "me:1");
    pthread_mutex_lock(&fake.lock);
    fake.timeout_ms = timeout_ms;
    while (fake.blocked && clock_mono_ms() < until) {
        pthread_mutex_unlock(&fake.lock);
        clock_sleep_ms(1);
        pthread_mutex_lock(&fake.lock);
    }
    if (fake.blocked) {
        rv = error_set(e, HEDGE_ETIMEDOUT, "process 77 is at it");
    } else if (fake.poison && has_key(puts, n, "poison")) {
        rv = error_set(e, HEDGE_ECORRUPT, "a damaged row");
    } else if (fake.fail_times > 0 && n > 0) {
        fake.fail_times--;
        rv = error_set(e, fake.fail, "the test says so");
    } else if (token < fake.term) {
        rv = error_set(e, HEDGE_EFENCED, "token %llu is stale",
                       (unsigned long long)token);
    } else {
        fake.term = fake.last_token = token;
        *(n > 0 ? &fake.appends : &fake.raises) += 1;
        rv = append_all(puts, n);
    }
    pause_ms = fake.pause_ms;
    pthread_mutex_unlock(&fake.lock);
    clock_sleep_ms(pause_ms);
    return rv;
}

static int fake_state(void *ctx, struct engine_log_state *out,
                      struct hedge_error *e)
{
    (void)ctx;
    (void)e;
    pthread_mutex_lock(&fake.lock);
    out->revision = fake.revision;
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

static const struct engine_ops ops = {
    .name = "fake", .append = fake_append, .log_state = fake_state};
static const struct engine engine = {.ops = &ops};

static bool fake_leads(void *ctx, uint64_t *token)
{
    bool leads;

    (void)ctx;
    pthread_mutex_lock(&fake.lock);
    leads = fake.leads;
    *token = leads ? fake.token : 0;
    pthread_mutex_unlock(&fake.lock);
    return leads;
}

static int fake_forward(void *ctx, struct engine_put *puts, size_t n,
                        uint64_t timeout_ms, struct hedge_error *e)
{
    static const unsigned char none[ENGINE_REQUEST_SIZE];
    int rv;

    (void)ctx;
    (void)timeout_ms;
    pthread_mutex_lock(&fake.lock);
    fake.forwards++;
    for (size_t i = 0; i < n; i++) {
        assert_memory_not_equal(puts[i].request, none, sizeof none);
    }
    if (fake.leads) {
        rv = error_set(e, HEDGE_ENOLEADER, "that is this node itself");
    } else if (fake.forward_fail_times > 0) {
        fake.forward_fail_times--;
        rv = fake.lose_answers ? append_all(puts, n) : 0;
        rv = error_set(e, fake.forward_fail, "the test says so");
    } else {
        rv = append_all(puts, n);
    }
    pthread_mutex_unlock(&fake.lock);
    return rv;
}

/* The threads under test look at these. */
#define SET(field, value)                 \
    do {                                  \
        pthread_mutex_lock(&fake.lock);   \
        fake.field = (value);             \
        pthread_mutex_unlock(&fake.lock); \
    } while (0)

static struct kv *kv;
static struct hedge_error err;

static void start(bool leads, uint64_t budget)
{
    struct kv_options o = {.engine = &engine,
                           .id = "me:1",
                           .budget_bytes = budget,
                           .leads = fake_leads,
                           .forward = fake_forward};

    SET(leads, leads);
    SET(token, 7);
    assert_int_equal(kv_new(&o, &kv), 0);
}

static int setup(void **state)
{
    (void)state;
    memset(&fake, 0, sizeof fake);
    pthread_mutex_init(&fake.lock, NULL);
    kv = NULL;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    SET(blocked, false);
    kv_free(kv);
    kv_far_idle_ms = 1000;
    pthread_mutex_destroy(&fake.lock);
    return 0;
}

static int put_flags(const char *key, unsigned flags, uint64_t timeout_ms,
                     uint64_t *revision)
{
    struct engine_put p = {.key = key,
                           .key_len = strlen(key),
                           .value = "v",
                           .value_len = 1,
                           .flags = flags};
    int rv = kv_put(kv, &p, 1, 0, timeout_ms, &err);

    if (revision != NULL) {
        *revision = p.revision;
    }
    return rv;
}

static int put(const char *key, uint64_t timeout_ms)
{
    return put_flags(key, 0, timeout_ms, NULL);
}

/* --- the leader -------------------------------------------------------------
 */

static void test_put_on_the_leader(void **state)
{
    uint64_t r;

    (void)state;
    start(true, 1 << 20);
    assert_int_equal(put_flags("a", 0, PLENTY, &r), 0);
    assert_int_equal(r, 1);
    assert_int_equal(put_flags("a", ENGINE_REPLACE, PLENTY, &r), 0);
    assert_int_equal(r, 2);
    assert_int_equal(fake.raises, 1); /* First of all. */
    assert_int_equal(fake.appends, 2);
    assert_int_equal(fake.last_token, 7);
    assert_int_equal(fake.n_ids, 0); /* No answer can be lost. */
}

#define THREADS 32
#define EACH 25

static void *put_many(void *arg)
{
    struct engine_put p = {.key = "k", .key_len = 1};
    uint64_t last = 0;

    for (unsigned i = 0; i < EACH; i++) {
        if (kv_put(kv, &p, 1, 0, PLENTY, NULL) != 0 || p.revision <= last) {
            return arg;
        }
        last = p.revision;
    }
    return NULL;
}

static void test_group_commit(void **state)
{
    pthread_t threads[THREADS];
    void *failed;

    (void)state;
    start(true, 1 << 20);
    SET(pause_ms, 5);
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, put_many, &fake), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    assert_int_equal(fake.revision, THREADS * EACH);
    assert_true(fake.largest > THREADS / 2);
    assert_true(fake.appends < THREADS * EACH / 8);
}

/* A batch is bounded, and a put of any size has one of its own. */
static void test_batches_are_bounded(void **state)
{
    static char value[3 << 20];
    struct engine_put p = {
        .key = "k", .key_len = 1, .value = value, .value_len = sizeof value};

    (void)state;
    start(true, (uint64_t)64 << 20);
    assert_int_equal(kv_put(kv, &p, 1, 0, PLENTY, &err), 0);
    p.value_len = ENGINE_VALUE_MAX;
    p.value = calloc(1, ENGINE_VALUE_MAX);
    assert_int_equal(kv_put(kv, &p, 1, 0, PLENTY, &err), 0);
    free((void *)(uintptr_t)p.value);
}

static void test_bad_puts(void **state)
{
    static char key[501];
    struct engine_put p = {.key = key, .key_len = sizeof key};
    struct engine_put many[KV_BATCH_PUTS + 1];

    (void)state;
    start(true, 1 << 20);
    memset(key, 'k', sizeof key);
    assert_int_equal(kv_put(kv, &p, 1, 0, PLENTY, &err), HEDGE_EINVAL);
    p.key_len = 0;
    assert_int_equal(kv_put(kv, &p, 1, 0, PLENTY, &err), HEDGE_EINVAL);
    assert_int_equal(put("__hedge/x", PLENTY), HEDGE_EINVAL);
    assert_non_null(strstr(err.text, "__hedge/"));
    p.key = "\0x";
    p.key_len = 2;
    assert_int_equal(kv_put(kv, &p, 1, 0, PLENTY, &err), HEDGE_EINVAL);
    p.key = "x";
    p.key_len = 1;
    p.value = key;
    p.value_len = ENGINE_VALUE_MAX + 1;
    assert_int_equal(kv_put(kv, &p, 1, 0, PLENTY, &err), HEDGE_ETOOBIG);
    assert_int_equal(put_flags("x", ENGINE_DELETE, PLENTY, NULL), HEDGE_EINVAL);
    assert_int_equal(kv_put(kv, many, KV_BATCH_PUTS + 1, 0, PLENTY, &err),
                     HEDGE_EINVAL);
    assert_int_equal(kv_put(kv, many, 0, 0, PLENTY, &err), 0);
    assert_int_equal(fake.appends, 0);
}

static void test_services(void **state)
{
    struct engine_put p = {.key = "__hedge/x", .key_len = 9};

    (void)state;
    start(true, 1 << 20);
    assert_int_equal(kv_append(kv, 7, &p, 1, PLENTY, &err), 0);
    assert_int_equal(p.revision, 1);
    assert_int_equal(kv_append(kv, 7, NULL, 0, PLENTY, &err), 0);
    assert_int_equal(kv_append(kv, 6, &p, 1, PLENTY, &err), HEDGE_EFENCED);
    assert_int_equal(kv_append(kv, 8, &p, 1, PLENTY, &err), HEDGE_EFENCED);
    SET(leads, false);
    kv_wake(kv);
    assert_int_equal(kv_append(kv, 7, &p, 1, PLENTY, &err), HEDGE_EFENCED);
    assert_int_equal(fake.forwards, 0);
    assert_int_equal(fake.revision, 1);
}

static void test_engine_fails(void **state)
{
    (void)state;
    start(true, 1 << 20);
    SET(fail, HEDGE_ENOSPC);
    SET(fail_times, 1);
    assert_int_equal(put("a", PLENTY), HEDGE_ENOSPC);
    assert_string_equal(err.text, "the test says so");
    assert_int_equal(put("a", PLENTY), 0);
}

/* Somebody is stopped inside a commit: an error that says who, in time; and
 * none when it goes on in time. */
static void test_stuck(void **state)
{
    uint64_t from = clock_mono_ms();

    (void)state;
    start(true, 1 << 20);
    assert_int_equal(put("a", PLENTY), 0);
    SET(blocked, true);
    assert_int_equal(put("a", 300), HEDGE_ETIMEDOUT);
    assert_non_null(strstr(err.text, "process 77"));
    assert_in_range(clock_mono_ms() - from, 200, 2000);
    SET(blocked, false);
    assert_int_equal(put("a", PLENTY), 0);
}

static void *unblock(void *arg)
{
    clock_sleep_ms(150);
    SET(blocked, false);
    return arg;
}

static void test_stuck_for_a_while(void **state)
{
    pthread_t thread;

    (void)state;
    start(true, 1 << 20);
    SET(blocked, true);
    assert_int_equal(pthread_create(&thread, NULL, unblock, NULL), 0);
    assert_int_equal(put("a", PLENTY), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* --- other leaders ----------------------------------------------------------
 */

static void test_forward(void **state)
{
    uint64_t r;

    (void)state;
    start(false, 1 << 20);
    assert_int_equal(put_flags("a", 0, PLENTY, &r), 0);
    assert_int_equal(r, 1);
    assert_int_equal(fake.forwards, 1);
    assert_int_equal(fake.n_ids, 1);
    assert_int_equal(fake.appends, 0);
}

static void test_forward_is_repeated(void **state)
{
    static const int codes[] = {HEDGE_ENOTLEADER, HEDGE_ENOLEADER,
                                HEDGE_EUNAVAILABLE, HEDGE_ECANCELED,
                                HEDGE_ECLOSED};
    uint64_t r;

    (void)state;
    start(false, 1 << 20);
    for (unsigned i = 0; i < 5; i++) {
        SET(forward_fail, codes[i]);
        SET(forward_fail_times, 3);
        assert_int_equal(put_flags("a", 0, PLENTY, &r), 0);
        assert_int_equal(r, i + 1);
    }
    SET(forward_fail, HEDGE_ENOSPC);
    SET(forward_fail_times, 1);
    assert_int_equal(put("a", PLENTY), HEDGE_ENOSPC);
}

/* The leader has appended, and dies before it says so. */
static void test_lost_answers(void **state)
{
    uint64_t r;

    (void)state;
    start(false, 1 << 20);
    SET(forward_fail, HEDGE_EUNAVAILABLE);
    SET(lose_answers, true);
    SET(forward_fail_times, 2);
    assert_int_equal(put_flags("a", 0, PLENTY, &r), 0);
    assert_int_equal(r, 1);
    assert_int_equal(fake.revision, 1);
    assert_int_equal(fake.forwards, 3);
}

static void test_no_leader(void **state)
{
    uint64_t from = clock_mono_ms();

    (void)state;
    start(false, 1 << 20);
    SET(forward_fail, HEDGE_ENOLEADER);
    SET(forward_fail_times, 1000000);
    assert_int_equal(put("a", 200), HEDGE_ENOLEADER);
    assert_in_range(clock_mono_ms() - from, 100, 2000);
    SET(forward_fail, HEDGE_EUNAVAILABLE); /* It may have got there. */
    assert_int_equal(put("a", 200), HEDGE_ETIMEDOUT);
    assert_string_equal(err.text,
                        "no leader has acknowledged the put, which may "
                        "yet happen; last attempt: the test says so");
    {
        struct engine_put p = {.key = "a", .key_len = 1};

        assert_int_equal(kv_put(kv, &p, 1, KV_LEADER_ONLY, PLENTY, &err),
                         HEDGE_ENOTLEADER);
    }
}

static void *become_leader(void *arg)
{
    clock_sleep_ms(100);
    SET(leads, true);
    kv_wake(kv);
    return arg;
}

static void test_becoming_the_leader(void **state)
{
    pthread_t thread;
    uint64_t r;

    (void)state;
    start(false, 1 << 20);
    SET(forward_fail, HEDGE_EUNAVAILABLE);
    SET(forward_fail_times, 1000000);
    SET(lose_answers, true); /* The old one had it. */
    assert_int_equal(pthread_create(&thread, NULL, become_leader, NULL), 0);
    assert_int_equal(put_flags("a", 0, PLENTY, &r), 0);
    assert_int_equal(r, 1);
    assert_int_equal(fake.revision, 1);
    assert_true(fake.appends > 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* A newer leader has written: what this one had is that one's to do. */
static void test_deposed(void **state)
{
    (void)state;
    start(true, 1 << 20);
    assert_int_equal(put("a", PLENTY), 0);
    SET(term, 8);
    assert_int_equal(put("a", 300), HEDGE_ENOLEADER); /* It thinks it leads. */
    assert_int_equal(fake.revision, 1);
    SET(leads, false);
    kv_wake(kv);
    assert_int_equal(put("a", PLENTY), 0);
    assert_true(fake.forwards > 0);
}

/* --- budget, asking without waiting, the end --------------------------------
 */

struct async {
    struct kv_op op;
    struct engine_put put;
    atomic_int done;
    int status;
};

static void on_async(struct kv_op *op, int status)
{
    struct async *a = container_of(op, struct async, op);

    a->status = status;
    atomic_fetch_add(&a->done, 1);
}

static void async_init(struct async *a, size_t value_len)
{
    static char value[1 << 20];

    memset(a, 0, sizeof *a);
    a->put = (struct engine_put){
        .key = "k", .key_len = 1, .value = value, .value_len = value_len};
    a->op.puts = &a->put;
    a->op.n = 1;
    a->op.deadline_ms = clock_mono_ms() + PLENTY;
    a->op.done = on_async;
}

static void await(struct async *a)
{
    for (unsigned i = 0; atomic_load(&a->done) == 0; i++) {
        assert_true(i < 10000);
        clock_sleep_ms(1);
    }
    clock_sleep_ms(5);
    assert_int_equal(atomic_load(&a->done), 1);
}

static void test_submit(void **state)
{
    struct async a[3];

    (void)state;
    start(true, 1000);
    SET(blocked, true);
    for (unsigned i = 0; i < 3; i++) {
        async_init(&a[i], 400);
    }
    assert_int_equal(kv_submit(kv, &a[0].op, &err), 0);
    assert_int_equal(kv_submit(kv, &a[1].op, &err), 0);
    assert_int_equal(kv_submit(kv, &a[2].op, &err), HEDGE_EEXHAUSTED);
    assert_int_equal(kv_reserve(kv, 500, 50, &err), HEDGE_EEXHAUSTED);
    SET(blocked, false);
    await(&a[0]);
    await(&a[1]);
    assert_int_equal(a[0].status, 0);
    assert_int_equal(a[1].status, 0);
    assert_int_equal(atomic_load(&a[2].done), 0);
    assert_int_equal(kv_reserve(kv, 900, 50, &err), 0);
    assert_int_equal(kv_submit(kv, &a[2].op, &err), HEDGE_EEXHAUSTED);
    kv_release(kv, 900);
    async_init(&a[0], 5000); /* Alone, whatever its size. */
    assert_int_equal(kv_submit(kv, &a[0].op, &err), 0);
    await(&a[0]);
}

static void test_slow_readers(void **state)
{
    (void)state;
    start(true, 1000);
    assert_int_equal(kv_reserve_read(kv, 300, 50, &err), 0);
    assert_int_equal(kv_reserve_read(kv, 200, 50, &err), 0);
    assert_int_equal(kv_reserve_read(kv, 1, 50, &err), HEDGE_EEXHAUSTED);
    assert_int_equal(put("a", PLENTY), 0);
    assert_int_equal(kv_reserve(kv, 500, 50, &err), 0);
    assert_int_equal(kv_reserve(kv, 1, 50, &err), HEDGE_EEXHAUSTED);
    kv_release(kv, 500);
    assert_int_equal(kv_reserve(kv, 700, 50, &err), 0); /* The only one. */
    kv_release_read(kv, 300);
    kv_release_read(kv, 200);
    assert_int_equal(kv_reserve_read(kv, 600, 50, &err), HEDGE_EEXHAUSTED);
    kv_release(kv, 700);
    assert_int_equal(kv_reserve(kv, 500, 50, &err), 0);
    assert_int_equal(kv_reserve_read(kv, 600, 50, &err), 0);
    kv_release_read(kv, 600);
    kv_release(kv, 500);
}

/* One that meets a damaged row is not the others' fault. */
static void test_one_fails(void **state)
{
    struct async a[5];

    (void)state;
    start(true, 1 << 20);
    SET(poison, true);
    SET(blocked, true);
    for (unsigned i = 0; i < 5; i++) {
        async_init(&a[i], 10);
        if (i == 2) {
            a[i].put.key = "poison";
            a[i].put.key_len = 6;
        }
        assert_int_equal(kv_submit(kv, &a[i].op, &err), 0);
    }
    SET(blocked, false);
    for (unsigned i = 0; i < 5; i++) {
        await(&a[i]);
        assert_int_equal(a[i].status, i == 2 ? HEDGE_ECORRUPT : 0);
    }
    assert_string_equal(a[2].op.error.text, "a damaged row");
    assert_int_equal(fake.revision, 4);
}

/* What waits is more than its bytes. */
static void test_many_small_puts(void **state)
{
    static struct engine_put puts[KV_BATCH_PUTS];
    static struct async a, many;
    struct kv_use use;

    (void)state;
    start(true, sizeof puts);
    SET(blocked, true);
    async_init(&a, 1);
    assert_int_equal(kv_submit(kv, &a.op, &err), 0);
    kv_use(kv, &use);
    assert_int_equal(use.used_bytes, 2 + sizeof a.put);
    for (unsigned i = 0; i < KV_BATCH_PUTS; i++) {
        puts[i] = a.put;
    }
    async_init(&many, 1);
    many.op.puts = puts;
    many.op.n = KV_BATCH_PUTS;
    assert_int_equal(kv_submit(kv, &many.op, &err), HEDGE_EEXHAUSTED);
    SET(blocked, false);
    await(&a);
    kv_use(kv, &use);
    assert_int_equal(use.used_bytes, 0);
}

static struct put_queue shared;

static void *be_refused(void *arg)
{
    atomic_uint *left = arg;

    while (atomic_load(left) > 0) {
        if (put_queue_charge(&shared, 600, false, NULL) != HEDGE_EEXHAUSTED) {
            atomic_store(left, 0);
            return arg;
        }
        if (atomic_fetch_sub(left, 1) <= 1) {
            atomic_store(left, 0);
        }
    }
    return NULL;
}

/* Whoever has room gets it, whatever others ask for meanwhile. */
static void test_refused_beside_others(void **state)
{
    static atomic_uint left;
    pthread_t thread;
    void *failed;
    int rv = 0;

    (void)state;
    put_queue_init(&shared, 1000);
    assert_int_equal(put_queue_charge(&shared, 500, false, &err), 0);
    atomic_store(&left, 200000);
    assert_int_equal(pthread_create(&thread, NULL, be_refused, &left), 0);
    while (rv == 0 && atomic_load(&left) > 0) {
        rv = put_queue_charge(&shared, 400, false, &err);
        put_queue_uncharge(&shared, rv == 0 ? 400 : 0, false);
    }
    atomic_store(&left, 0);
    assert_int_equal(pthread_join(thread, &failed), 0);
    assert_null(failed);
    assert_int_equal(rv, 0);
    assert_int_equal(atomic_load(&shared.put_bytes), 500);
}

/* Until one is under way. */
static void await_append(void)
{
    uint64_t timeout_ms = 0;

    for (unsigned i = 0; timeout_ms == 0; i++) {
        assert_true(i < 10000);
        clock_sleep_ms(1);
        pthread_mutex_lock(&fake.lock);
        timeout_ms = fake.timeout_ms;
        pthread_mutex_unlock(&fake.lock);
    }
}

/* The lease is lost while an append waits for its turn: fenced, it goes on to
 * the forwarders, who were last woken when it was not theirs. */
static void test_fenced_in_turn(void **state)
{
    static struct async a;

    (void)state;
    kv_far_idle_ms = 100 * PLENTY;
    start(true, 1 << 20);
    assert_int_equal(put("a", PLENTY), 0);
    SET(blocked, true);
    SET(timeout_ms, 0);
    async_init(&a, 10);
    assert_int_equal(kv_submit(kv, &a.op, &err), 0);
    await_append();
    SET(leads, false);
    SET(term, 8);
    SET(blocked, false);
    await(&a);
    assert_int_equal(a.status, 0);
    assert_int_equal(fake.forwards, 1);
}

/* One that ends here lets those behind it go elsewhere. */
static void test_leader_only_in_front(void **state)
{
    static struct async a[2];

    (void)state;
    kv_far_idle_ms = 100 * PLENTY;
    start(false, 1 << 20);
    for (unsigned i = 0; i < 60; i++) {
        SET(n_ids, 0);
        async_init(&a[0], 10);
        async_init(&a[1], 10);
        a[0].op.flags = KV_LEADER_ONLY;
        assert_int_equal(kv_submit(kv, &a[0].op, &err), 0);
        assert_int_equal(kv_submit(kv, &a[1].op, &err), 0);
        await(&a[0]);
        await(&a[1]);
        assert_int_equal(a[0].status, HEDGE_ENOTLEADER);
        assert_int_equal(a[1].status, 0);
    }
}

static void test_stop(void **state)
{
    struct async a[2];

    (void)state;
    start(false, 1 << 20);
    SET(forward_fail, HEDGE_ENOLEADER);
    SET(forward_fail_times, 1000000);
    async_init(&a[0], 10);
    async_init(&a[1], 10);
    assert_int_equal(kv_submit(kv, &a[0].op, &err), 0);
    kv_stop(kv);
    assert_int_equal(atomic_load(&a[0].done), 1);
    assert_int_equal(a[0].status, HEDGE_ECLOSED);
    assert_int_equal(kv_submit(kv, &a[1].op, &err), HEDGE_ECLOSED);
    assert_int_equal(put("a", PLENTY), HEDGE_ECLOSED);
    assert_int_equal(kv_reserve(kv, 1, PLENTY, &err), HEDGE_ECLOSED);
}

static void test_wait(void **state)
{
    pthread_t thread;
    uint64_t now, from;

    (void)state;
    start(false, 1 << 20);
    assert_int_equal(put("a", PLENTY), 0);
    assert_int_equal(kv_wait(kv, 0, 0, &now, &err), 0);
    assert_int_equal(now, 1);
    from = clock_mono_ms();
    assert_int_equal(kv_wait(kv, 1, 60, &now, &err), HEDGE_ETIMEDOUT);
    assert_true(clock_mono_ms() - from >= 60);
    SET(blocked, true);
    assert_int_equal(pthread_create(&thread, NULL, put_many, NULL), 0);
    assert_int_equal(kv_wait(kv, 1, PLENTY, &now, &err), 0);
    assert_true(now > 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    kv_stop(kv);
    assert_int_equal(kv_wait(kv, 1000, PLENTY, &now, &err), HEDGE_ECLOSED);
}

static void test_no_memory(void **state)
{
    struct kv_options o = {.engine = &engine,
                           .id = "me:1",
                           .budget_bytes = 1,
                           .leads = fake_leads,
                           .forward = fake_forward};
    long n = 0;

    (void)state;
    do {
        mem_fail_after(n++);
        if (kv_new(&o, &kv) == 0) {
            break;
        }
        assert_null(kv);
    } while (n < 10);
    mem_fail_after(-1);
    assert_non_null(kv);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_put_on_the_leader),
        T(test_group_commit),
        T(test_batches_are_bounded),
        T(test_bad_puts),
        T(test_services),
        T(test_engine_fails),
        T(test_stuck),
        T(test_stuck_for_a_while),
        T(test_forward),
        T(test_forward_is_repeated),
        T(test_lost_answers),
        T(test_no_leader),
        T(test_becoming_the_leader),
        T(test_deposed),
        T(test_submit),
        T(test_slow_readers),
        T(test_one_fails),
        T(test_many_small_puts),
        T(test_refused_beside_others),
        T(test_fenced_in_turn),
        T(test_leader_only_in_front),
        T(test_stop),
        T(test_wait),
        T(test_no_memory),
    };

    return cmocka_run_group_tests_name("kv", tests, NULL, NULL);
}
