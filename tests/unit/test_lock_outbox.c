/* What waits for a node that does not take its answers is bounded. */
#include "cluster/locks/locks_internal.h"

#include "store/base/mem.h"
#include "tests/lib/check.h"

#include <pthread.h>
#include <string.h>

static int put(struct outbox *b, size_t text)
{
    static char letters[1 << 20];
    Hedge__V1__LockAnswer m = HEDGE__V1__LOCK_ANSWER__INIT;

    memset(letters, 'x', text);
    letters[text] = '\0';
    m.text = letters;
    return outbox_put(b, &m.base);
}

static void refuses_more_than_the_limit(void **state)
{
    struct outbox b;
    size_t n = 0;
    int rv;

    (void)state;
    outbox_init(&b);
    while ((rv = put(&b, 1000)) == 0) {
        n++;
        assert_in_range(b.bytes, n * 1000, OUTBOX_MAX);
    }
    assert_int_equal(rv, HEDGE_EEXHAUSTED);
    assert_in_range(n, 1, OUTBOX_MAX / 1000);
    assert_in_range(b.bytes, OUTBOX_MAX - 2000, OUTBOX_MAX);
    outbox_release(&b);
}

/* Short ones cost more than their bytes. */
static void counts_what_a_message_costs(void **state)
{
    struct outbox b;
    size_t n = 0;

    (void)state;
    outbox_init(&b);
    while (put(&b, 0) == 0) {
        n++;
    }
    assert_in_range(n, 1000, OUTBOX_MAX / 24);
    outbox_release(&b);
}

static void broken_keeps_nothing(void **state)
{
    struct outbox b;

    (void)state;
    outbox_init(&b);
    assert_int_equal(put(&b, 1000), 0);
    outbox_break(&b);
    assert_int_equal(b.bytes, 0);
    assert_true(list_empty(&b.messages));
    assert_int_equal(put(&b, 0), HEDGE_ECLOSED);
    assert_int_equal(outbox_await(&b), HEDGE_ECLOSED);
    outbox_release(&b);
}

static void without_memory(void **state)
{
    struct outbox b;

    (void)state;
    outbox_init(&b);
    for (long n = 0; n < 2; n++) {
        mem_fail_after(n);
        assert_int_equal(put(&b, 10), HEDGE_ENOMEM);
        mem_fail_after(-1);
        assert_int_equal(b.bytes, 0);
    }
    assert_int_equal(put(&b, 10), 0);
    outbox_release(&b);
}

struct reader {
    struct outbox *b;
    atomic_int rv; /* 1: it waits still. */
};

static void *reader_main(void *arg)
{
    struct reader *r = arg;

    atomic_store(&r->rv, outbox_await(r->b));
    return NULL;
}

static void no_calls_are_read_while_many_are_on_their_way(void **state)
{
    struct outbox b;
    struct reader r = {.b = &b};
    pthread_t thread;

    (void)state;
    outbox_init(&b);
    for (unsigned i = 0; i < OUTBOX_EXPECTED_MAX; i++) {
        assert_int_equal(outbox_await(&b), 0);
        outbox_expect(&b);
    }
    atomic_init(&r.rv, 1);
    assert_int_equal(pthread_create(&thread, NULL, reader_main, &r), 0);
    assert_int_equal(atomic_load(&r.rv), 1);
    outbox_taken(&b);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&r.rv), 0);
    outbox_release(&b);
}

static void no_calls_are_read_while_answers_wait(void **state)
{
    struct outbox b;
    struct reader r = {.b = &b};
    pthread_t thread;

    (void)state;
    outbox_init(&b);
    assert_int_equal(put(&b, OUTBOX_MARK), 0);
    atomic_init(&r.rv, 1);
    assert_int_equal(pthread_create(&thread, NULL, reader_main, &r), 0);
    assert_int_equal(atomic_load(&r.rv), 1);
    outbox_close(&b);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&r.rv), HEDGE_ECLOSED);
    outbox_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_more_than_the_limit),
        cmocka_unit_test(counts_what_a_message_costs),
        cmocka_unit_test(broken_keeps_nothing),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(no_calls_are_read_while_many_are_on_their_way),
        cmocka_unit_test(no_calls_are_read_while_answers_wait),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
