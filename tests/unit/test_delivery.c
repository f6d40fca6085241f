/* What becomes of one message to one node: the decisions, without a network. */
#include "cluster/messages/messaging.h"

#include "tests/lib/check.h"

#include <string.h>

#define MIB ((size_t)1 << 20)

static struct delivery to_leader(int retries, size_t len)
{
    struct delivery d;

    memset(&d, 0, sizeof d);
    d.to_leader = true;
    d.retries = retries;
    d.len = len;
    d.deadline_ms = 1000;
    delivery_begin(&d);
    return d;
}

static struct hedge_error error(int code)
{
    struct hedge_error e;

    (void)error_set(&e, code, "test");
    return e;
}

static void failed(struct delivery *d, int code, bool refused, uint64_t now)
{
    struct hedge_error e = error(code);

    delivery_failed(d, &e, refused, now);
}

static void call(struct delivery *d)
{
    assert_int_equal(d->act, DELIVERY_ROUTE);
    delivery_routed(d, false);
    assert_int_equal(d->act, DELIVERY_SEND);
    delivery_started(d);
    assert_int_equal(d->act, DELIVERY_WAIT);
}

static void one_call(void **state)
{
    struct delivery d = to_leader(0, 10);

    (void)state;
    call(&d);
    assert_int_equal(d.piece_len, 10);
    delivery_answered(&d, 3, 3);
    assert_int_equal(d.act, DELIVERY_DONE);
    assert_int_equal(d.error.code, 0);
}

static void pieces_both_ways(void **state)
{
    struct delivery d = to_leader(0, 2 * MIB + 1);
    size_t sent = 0;

    (void)state;
    delivery_routed(&d, false);
    while (d.act == DELIVERY_SEND) {
        assert_int_equal(d.piece_at, sent);
        assert_true(d.piece_len <= MESSAGING_PIECE && d.piece_len > 0);
        sent += d.piece_len;
        delivery_started(&d);
        delivery_answered(&d, sent == d.len ? 3 * MIB : 0, 0);
    }
    assert_int_equal(sent, d.len);
    for (size_t at = 0; at < 3 * MIB; at += MIB) {
        assert_int_equal(d.act, DELIVERY_FETCH);
        assert_int_equal(d.reply_at, at);
        delivery_started(&d);
        delivery_answered(&d, 3 * MIB, MIB);
    }
    assert_int_equal(d.act, DELIVERY_DONE);
}

/* It is as long as one piece, or as none. */
static void edges(void **state)
{
    struct delivery d = to_leader(0, MESSAGING_PIECE);

    (void)state;
    call(&d);
    assert_int_equal(d.piece_len, MESSAGING_PIECE);
    delivery_answered(&d, 0, 0);
    assert_int_equal(d.act, DELIVERY_DONE);
    d = to_leader(0, 0);
    call(&d);
    assert_int_equal(d.piece_len, 0);
    delivery_answered(&d, 0, 0);
    assert_int_equal(d.act, DELIVERY_DONE);
    d = to_leader(0, 50 * MIB);
    delivery_routed(&d, true);
    assert_int_equal(d.piece_len, 50 * MIB);
}

static void waits_for_a_leader(void **state)
{
    struct delivery d = to_leader(0, 1);
    struct hedge_error none = error(HEDGE_ENOLEADER);

    (void)state;
    delivery_unroutable(&d, &none, 100);
    assert_int_equal(d.act, DELIVERY_WAIT);
    assert_false(delivery_tick(&d, d.wake_ms - 1));
    assert_int_equal(d.act, DELIVERY_WAIT);
    assert_false(delivery_tick(&d, d.wake_ms));
    assert_int_equal(d.act, DELIVERY_ROUTE);
    delivery_unroutable(&d, &none, 999);
    assert_int_equal(d.wake_ms, 1000);
    assert_true(delivery_tick(&d, 1000));
    assert_int_equal(d.error.code, HEDGE_ENOLEADER);
}

static void a_member_that_is_not_there(void **state)
{
    struct delivery d = to_leader(0, 1);
    struct hedge_error none = error(HEDGE_ENOTFOUND);

    (void)state;
    d.to_leader = false;
    delivery_unroutable(&d, &none, 0);
    assert_int_equal(d.act, DELIVERY_DONE);
    assert_int_equal(d.error.code, HEDGE_ENOTFOUND);
}

/* What was refused costs no retry; what may have been handled does. */
static void refused_or_lost(void **state)
{
    static const int passing[] = {HEDGE_ENOTLEADER, HEDGE_EEXHAUSTED,
                                  HEDGE_ECLOSED};
    static const int final[] = {
        HEDGE_EHANDLER,     HEDGE_ENOHANDLER, HEDGE_ETIMEDOUT, HEDGE_EBUSY,
        HEDGE_EUNAVAILABLE, HEDGE_EEXHAUSTED, HEDGE_ECLOSED};

    (void)state;
    for (size_t i = 0; i < sizeof passing / sizeof passing[0]; i++) {
        struct delivery d = to_leader(0, 1);
        unsigned attempt;

        call(&d);
        attempt = d.attempt;
        failed(&d, passing[i], true, 10);
        assert_int_equal(d.act, DELIVERY_WAIT);
        assert_false(d.calling);
        (void)delivery_tick(&d, d.wake_ms);
        call(&d);
        assert_true(d.attempt > attempt);
    }
    for (size_t i = 0; i < sizeof final / sizeof final[0]; i++) {
        struct delivery d = to_leader(0, 1);

        call(&d);
        failed(&d, final[i], false, 10);
        assert_int_equal(d.act, DELIVERY_DONE);
        assert_int_equal(d.error.code, final[i]);
    }
}

static void retries(void **state)
{
    struct delivery d = to_leader(2, 1);
    uint64_t now = 0, first;

    (void)state;
    d.deadline_ms = 100000;
    call(&d);
    failed(&d, HEDGE_EUNAVAILABLE, false, now);
    first = d.wake_ms - now;
    now = d.wake_ms;
    (void)delivery_tick(&d, now);
    call(&d);
    failed(&d, HEDGE_EUNAVAILABLE, false, now);
    assert_true(d.wake_ms - now > first); /* Back-off. */
    (void)delivery_tick(&d, d.wake_ms);
    call(&d);
    failed(&d, HEDGE_EUNAVAILABLE, false, now);
    assert_int_equal(d.act, DELIVERY_DONE);
    assert_int_equal(d.error.code, HEDGE_EUNAVAILABLE);
}

static void as_often_as_it_takes(void **state)
{
    struct delivery d = to_leader(-1, 1);
    uint64_t now = 0;

    (void)state;
    d.deadline_ms = 100000;
    while (d.act != DELIVERY_DONE) {
        uint64_t before = now;

        call(&d);
        failed(&d, HEDGE_EUNAVAILABLE, false, now);
        assert_int_equal(d.act, DELIVERY_WAIT);
        now = d.wake_ms;
        assert_true(now - before <= MESSAGING_BACKOFF_MAX_MS);
        assert_true(now > before);
        (void)delivery_tick(&d, now);
    }
    assert_int_equal(now, 100000);
    assert_int_equal(d.error.code, HEDGE_EUNAVAILABLE);
    /* A failure of the handler is none that passes. */
    d = to_leader(-1, 1);
    call(&d);
    failed(&d, HEDGE_EHANDLER, false, 0);
    assert_int_equal(d.act, DELIVERY_DONE);
}

static void the_deadline(void **state)
{
    struct delivery d = to_leader(-1, 1);

    (void)state;
    call(&d);
    assert_false(delivery_tick(&d, 999));
    assert_true(delivery_tick(&d, 1000));
    assert_int_equal(d.error.code, HEDGE_ETIMEDOUT);
    assert_false(d.calling);
    assert_false(delivery_tick(&d, 1001));
}

static void a_new_leader_meanwhile(void **state)
{
    struct delivery d = to_leader(0, 1);

    (void)state;
    call(&d);
    assert_false(delivery_leader_changed(&d, 10)); /* It may have run. */
    d = to_leader(1, 1);
    assert_false(delivery_leader_changed(&d, 10));
    call(&d);
    assert_true(delivery_leader_changed(&d, 10));
    assert_int_equal(d.act, DELIVERY_WAIT);
    (void)delivery_tick(&d, d.wake_ms);
    call(&d);
    assert_false(delivery_leader_changed(&d, 10));
}

static void no_room_for_the_reply(void **state)
{
    struct delivery d = to_leader(0, 1);
    struct hedge_error full = error(HEDGE_EEXHAUSTED);

    (void)state;
    call(&d);
    delivery_answered(&d, 3 * MIB, 0);
    assert_int_equal(d.act, DELIVERY_FETCH);
    delivery_no_room(&d, &full, 10);
    (void)delivery_tick(&d, d.wake_ms);
    assert_int_equal(d.act, DELIVERY_FETCH);
    delivery_no_room(&d, &full, 10);
    assert_true(delivery_tick(&d, 1000));
    assert_int_equal(d.error.code, HEDGE_EEXHAUSTED);
}

static void given_up(void **state)
{
    struct delivery d = to_leader(-1, 1);

    (void)state;
    call(&d);
    delivery_abandon(&d, HEDGE_ECLOSED, "the node stops");
    assert_int_equal(d.act, DELIVERY_DONE);
    assert_string_equal(d.error.text, "the node stops");
}

static void the_far_deadline_is_earlier(void **state)
{
    (void)state;
    for (uint64_t ms = 2; ms < 100000; ms = ms * 3 / 2 + 1) {
        uint64_t far = messaging_far_timeout(ms);

        assert_true(far <= ms && far >= ms - ms / 10 && ms - far <= 50);
    }
    assert_int_equal(messaging_far_timeout(0), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_call),
        cmocka_unit_test(pieces_both_ways),
        cmocka_unit_test(edges),
        cmocka_unit_test(waits_for_a_leader),
        cmocka_unit_test(a_member_that_is_not_there),
        cmocka_unit_test(refused_or_lost),
        cmocka_unit_test(retries),
        cmocka_unit_test(as_often_as_it_takes),
        cmocka_unit_test(the_deadline),
        cmocka_unit_test(a_new_leader_meanwhile),
        cmocka_unit_test(no_room_for_the_reply),
        cmocka_unit_test(given_up),
        cmocka_unit_test(the_far_deadline_is_earlier),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
