#include "cluster/group/election.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#define LEASE 3000u
#define MARGIN 300u

struct fixture {
    struct election e;
    struct election_actions out;
    uint64_t now;
};

static void fresh(struct fixture *f)
{
    const struct election_options o = {.lease_ms = LEASE,
                                       .margin_ms = MARGIN,
                                       .seed = 7,
                                       .id = "a:1",
                                       .address = "a:2",
                                       .incarnation = 11};

    memset(f, 0, sizeof *f);
    f->now = 1000;
    election_init(&f->e, &o);
}

static void step(struct fixture *f, enum election_event_type type)
{
    const struct election_event ev = {.type = type};

    election_step(&f->e, &ev, f->now, &f->out);
}

static void result(struct fixture *f, uint64_t started, int status,
                   uint64_t token, const struct engine_lease *lease)
{
    const struct election_event ev = {.type = ELECTION_RESULT,
                                      .op_id = f->e.op_id,
                                      .started_ms = started,
                                      .status = status,
                                      .token = token,
                                      .lease = lease};

    election_step(&f->e, &ev, f->now, &f->out);
}

static struct engine_lease lease_of(const char *id, uint64_t token,
                                    uint64_t remaining)
{
    struct engine_lease l = {.held = remaining > 0,
                             .incarnation = 5,
                             .token = token,
                             .remaining_ms = remaining};

    (void)snprintf(l.holder, sizeof l.holder, "%s", id);
    (void)snprintf(l.address, sizeof l.address, "grpc-%s", id);
    return l;
}

/* Started, looked, acquired at `now` with `token`. */
static void lead(struct fixture *f, uint64_t token)
{
    const struct engine_lease none = {.idle_ms = 77};

    fresh(f);
    step(f, ELECTION_START);
    assert_int_equal(f->out.op, ELECTION_OP_LOOK);
    result(f, f->now, 0, 0, &none);
    assert_int_equal(f->out.op, ELECTION_OP_ACQUIRE);
    result(f, f->now, 0, token, &none);
    assert_true(f->out.won);
    assert_int_equal(f->out.won_token, token);
}

/* Looked and found `id` leading with `token`. */
static void follow(struct fixture *f, const char *id, uint64_t token)
{
    struct engine_lease l = lease_of(id, token, LEASE);

    fresh(f);
    step(f, ELECTION_START);
    result(f, f->now, 0, 0, &l);
    assert_int_equal(f->out.op, ELECTION_OP_NONE);
}

static void test_first_node_leads_at_once(void **state)
{
    struct fixture f;
    uint64_t token;

    (void)state;
    lead(&f, 4);
    assert_true(f.out.leader_changed);
    assert_int_equal(f.out.won_idle_ms, 77);
    assert_string_equal(election_leader(&f.e)->id, "a:1");
    assert_string_equal(election_leader(&f.e)->address, "a:2");
    assert_true(election_is_leader(&f.e, f.now, &token));
    assert_int_equal(token, 4);
    assert_int_equal(f.out.wake_ms, f.now + LEASE / 3);
}

static void test_deadline_counts_from_the_start(void **state)
{
    struct fixture f;
    const struct engine_lease none = {0};
    uint64_t token;

    (void)state;
    fresh(&f);
    step(&f, ELECTION_START);
    result(&f, f.now, 0, 0, &none);
    f.now += 500; /* The answer takes that long. */
    result(&f, 1000, 0, 1, &none);
    assert_true(election_is_leader(&f.e, 1000 + LEASE - MARGIN - 1, NULL));
    assert_false(election_is_leader(&f.e, 1000 + LEASE - MARGIN, &token));
    assert_int_equal(token, 0);
    assert_false(election_is_leader(&f.e, 1000 + LEASE, NULL));
}

static void test_started_time_is_bounded_by_what_is_known(void **state)
{
    struct fixture f;
    const struct engine_lease none = {0};

    (void)state;
    fresh(&f);
    step(&f, ELECTION_START);
    result(&f, f.now, 0, 0, &none);
    f.now += 500;
    result(&f, f.now + 100000, 0, 1, &none); /* From the future. */
    assert_int_equal(election_hold(&f.e).until_ms, 1000 + LEASE - MARGIN);
}

static void test_too_slow_acquisition_does_not_lead(void **state)
{
    struct fixture f;
    const struct engine_lease none = {0};

    (void)state;
    fresh(&f);
    step(&f, ELECTION_START);
    result(&f, f.now, 0, 0, &none);
    f.now += LEASE;
    result(&f, 1000, 0, 1, &none);
    assert_false(f.out.won);
    assert_false(election_is_leader(&f.e, f.now, NULL));
    assert_int_equal(election_status(&f.e), HEDGE_ETIMEDOUT);
    /* Nobody else can have it: it is taken again, with a new token. */
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    assert_int_equal(f.out.op, ELECTION_OP_LOOK);
}

static void test_renews_by_thirds_and_extends(void **state)
{
    struct fixture f;

    (void)state;
    lead(&f, 1);
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    assert_int_equal(f.out.op, ELECTION_OP_RENEW);
    assert_int_equal(f.out.op_token, 1);
    result(&f, f.now, 0, 0, NULL);
    assert_false(f.out.lost);
    assert_int_equal(election_hold(&f.e).until_ms, f.now + LEASE - MARGIN);
    assert_int_equal(f.out.wake_ms, f.now + LEASE / 3);
}

static void test_fenced_renewal_loses(void **state)
{
    struct fixture f;

    (void)state;
    lead(&f, 1);
    f.now += LEASE / 3;
    step(&f, ELECTION_TICK);
    result(&f, f.now, HEDGE_EFENCED, 0, NULL);
    assert_true(f.out.lost);
    assert_int_equal(f.out.lost_reason, ELECTION_LOST_FENCED);
    assert_int_equal(f.out.lost_token, 1);
    assert_true(f.out.leader_changed);
    assert_string_equal(election_leader(&f.e)->id, "");
    assert_false(election_is_leader(&f.e, f.now, NULL));
    assert_int_equal(f.out.op, ELECTION_OP_LOOK);
}

static void test_failing_renewals_are_repeated_until_the_deadline(void **state)
{
    struct fixture f;
    unsigned renewals = 0;

    (void)state;
    lead(&f, 1);
    while (!f.out.lost) {
        assert_true(f.out.wake_ms > f.now);
        f.now = f.out.wake_ms;
        step(&f, ELECTION_TICK);
        if (f.out.op == ELECTION_OP_RENEW) {
            renewals++;
            result(&f, f.now, HEDGE_EIO, 0, NULL);
        }
        assert_true(renewals < 100);
    }
    assert_int_equal(f.out.lost_reason, ELECTION_LOST_EXPIRED);
    assert_int_equal(f.now, 1000 + LEASE - MARGIN);
    assert_in_range(renewals, 5, 40);
    assert_int_equal(election_status(&f.e), HEDGE_EIO);
}

static void test_hanging_renewal_loses_at_the_deadline(void **state)
{
    struct fixture f;
    struct engine_lease own;

    (void)state;
    lead(&f, 1);
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    assert_int_equal(f.out.wake_ms, 1000 + LEASE - MARGIN);
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    assert_true(f.out.lost);
    assert_int_equal(f.out.op, ELECTION_OP_NONE); /* One at a time. */
    /* It comes through after all: that does not bring token 1 back. */
    f.now += 10;
    result(&f, f.now - 1, 0, 0, NULL);
    assert_false(election_is_leader(&f.e, f.now, NULL));
    assert_int_equal(f.out.op, ELECTION_OP_LOOK);
    own = lease_of("a:1", 1, LEASE);
    own.incarnation = 11;
    result(&f, f.now, 0, 0, &own);
    assert_int_equal(f.out.op, ELECTION_OP_ACQUIRE);
    result(&f, f.now, 0, 2, &own);
    assert_true(f.out.won);
    assert_int_equal(f.out.won_token, 2);
}

/* A late success must not count, even as the first event after a pause. */
static void test_result_after_a_pause_does_not_revive(void **state)
{
    struct fixture f;

    (void)state;
    lead(&f, 1);
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    f.now += 10 * LEASE; /* SIGSTOP. */
    assert_false(election_is_leader(&f.e, f.now, NULL));
    result(&f, f.now - 1, 0, 0, NULL);
    assert_true(f.out.lost);
    assert_int_equal(f.out.lost_reason, ELECTION_LOST_EXPIRED);
    assert_false(election_is_leader(&f.e, f.now, NULL));
}

static void test_follower_looks_often_and_at_the_expiry(void **state)
{
    struct fixture f;
    struct engine_lease l;

    (void)state;
    follow(&f, "b:1", 9);
    assert_true(f.out.leader_changed);
    assert_string_equal(election_leader(&f.e)->id, "b:1");
    assert_string_equal(election_leader(&f.e)->address, "grpc-b:1");
    assert_in_range(f.out.wake_ms, f.now + 150, f.now + 200);
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    l = lease_of("b:1", 9, 40);
    result(&f, f.now, 0, 0, &l);
    assert_false(f.out.leader_changed);
    assert_int_equal(f.out.wake_ms, f.now + 41);
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    l = lease_of("b:1", 9, 0);
    result(&f, f.now, 0, 0, &l);
    assert_int_equal(f.out.op, ELECTION_OP_ACQUIRE);
    assert_true(f.out.leader_changed);
    assert_string_equal(election_leader(&f.e)->id, "");
    l = lease_of("c:1", 10, LEASE); /* Another was faster. */
    result(&f, f.now, HEDGE_EBUSY, 0, &l);
    assert_true(f.out.leader_changed);
    assert_string_equal(election_leader(&f.e)->id, "c:1");
    assert_int_equal(election_status(&f.e), 0);
}

static void test_earlier_life_is_waited_for(void **state)
{
    struct fixture f;

    (void)state;
    follow(&f, "a:1", 9); /* Incarnation 5, this one is 11. */
    assert_string_equal(election_leader(&f.e)->id, "");
    assert_true(f.out.wake_ms > f.now);
}

static void test_stop_releases_at_once(void **state)
{
    struct fixture f;

    (void)state;
    lead(&f, 3);
    step(&f, ELECTION_STOP);
    assert_true(f.out.lost);
    assert_int_equal(f.out.lost_reason, ELECTION_LOST_STOPPED);
    assert_false(election_is_leader(&f.e, f.now, NULL));
    assert_int_equal(f.out.op, ELECTION_OP_RELEASE);
    assert_int_equal(f.out.op_token, 3);
    assert_false(f.out.stopped);
    result(&f, f.now, HEDGE_EIO, 0, NULL);
    assert_true(f.out.stopped);
    assert_int_equal(f.out.wake_ms, ELECTION_NEVER);
    step(&f, ELECTION_STOP);
    assert_true(f.out.stopped);
    step(&f, ELECTION_START);
    assert_int_equal(f.out.op, ELECTION_OP_LOOK);
}

static void test_stop_during_an_acquisition_gives_it_back(void **state)
{
    struct fixture f;
    const struct engine_lease none = {0};

    (void)state;
    fresh(&f);
    step(&f, ELECTION_START);
    result(&f, f.now, 0, 0, &none);
    step(&f, ELECTION_STOP);
    assert_false(f.out.stopped);
    assert_int_equal(f.out.op, ELECTION_OP_NONE);
    result(&f, f.now, 0, 6, &none);
    assert_false(f.out.won);
    assert_int_equal(f.out.op, ELECTION_OP_RELEASE);
    assert_int_equal(f.out.op_token, 6);
    result(&f, f.now, 0, 0, NULL);
    assert_true(f.out.stopped);
}

static void test_stop_during_a_renewal_given_up(void **state)
{
    struct fixture f;

    (void)state;
    lead(&f, 3);
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    f.now += LEASE;
    step(&f, ELECTION_STOP);
    assert_true(f.out.lost);
    assert_int_equal(f.out.lost_reason, ELECTION_LOST_EXPIRED);
    result(&f, f.now, 0, 0, NULL);
    assert_int_equal(f.out.op, ELECTION_OP_RELEASE);
    assert_int_equal(f.out.op_token, 3);
}

static void test_duplicate_results_are_ignored(void **state)
{
    struct fixture f;
    const struct engine_lease none = {0};
    const struct election_event stale = {
        .type = ELECTION_RESULT, .op_id = 1, .token = 8, .lease = &none};

    (void)state;
    lead(&f, 1);
    election_step(&f.e, &stale, f.now, &f.out);
    assert_int_equal(election_hold(&f.e).token, 1);
    assert_int_equal(f.out.op, ELECTION_OP_NONE);
    assert_int_equal(election_rounds(&f.e), 2);
    /* Also while another operation is in progress. */
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    assert_int_equal(f.out.op, ELECTION_OP_RENEW);
    election_step(&f.e, &stale, f.now, &f.out);
    assert_int_equal(election_hold(&f.e).until_ms, 1000 + LEASE - MARGIN);
    assert_int_equal(election_rounds(&f.e), 2);
    result(&f, f.now, 0, 0, NULL);
    assert_int_equal(election_rounds(&f.e), 3);
}

static void hint(struct fixture *f, const struct engine_lease *l)
{
    const struct election_event ev = {.type = ELECTION_HINT_LEADER, .lease = l};

    election_step(&f->e, &ev, f->now, &f->out);
}

static void test_announcement_shows_at_once_but_the_engine_decides(void **state)
{
    struct fixture f;
    struct engine_lease l;

    (void)state;
    follow(&f, "b:1", 9);
    f.now += 5;
    l = lease_of("c:1", 8, LEASE);
    hint(&f, &l); /* Old news. */
    assert_false(f.out.leader_changed);
    assert_int_equal(f.out.op, ELECTION_OP_LOOK);
    l = lease_of("d:1", 10, LEASE);
    f.now += 5;
    hint(&f, &l);
    assert_true(f.out.leader_changed);
    assert_string_equal(election_leader(&f.e)->id, "d:1");
    /* The look in progress began before: not believed. */
    l = lease_of("b:1", 9, LEASE);
    result(&f, f.now - 2, 0, 0, &l);
    assert_false(f.out.leader_changed);
    /* One that began later is. */
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    assert_int_equal(f.out.op, ELECTION_OP_LOOK);
    result(&f, f.now, 0, 0, &l);
    assert_true(f.out.leader_changed);
    assert_string_equal(election_leader(&f.e)->id, "b:1");
}

static void test_leader_asks_the_engine_when_told_of_another(void **state)
{
    struct fixture f;
    struct engine_lease l = lease_of("z:1", 100, LEASE);

    (void)state;
    lead(&f, 3);
    f.now += 1;
    hint(&f, &l);
    assert_false(f.out.lost);
    assert_int_equal(f.out.op, ELECTION_OP_RENEW);
    assert_true(election_is_leader(&f.e, f.now, NULL));
}

static void test_vanished_leader_is_looked_for_now(void **state)
{
    struct fixture f;

    (void)state;
    follow(&f, "b:1", 9);
    f.now += 1;
    step(&f, ELECTION_HINT_VANISHED);
    assert_int_equal(f.out.op, ELECTION_OP_LOOK);
}

static void test_failing_engine_is_asked_less_and_less_often(void **state)
{
    struct fixture f;
    unsigned looks = 0;

    (void)state;
    fresh(&f);
    step(&f, ELECTION_START);
    while (f.now < 60000) {
        if (f.out.op != ELECTION_OP_NONE) {
            looks++;
            result(&f, f.now, HEDGE_EIO, 0, NULL);
        }
        f.now = f.out.wake_ms;
        step(&f, ELECTION_TICK);
    }
    assert_in_range(looks, 50, 75);
    assert_int_equal(election_status(&f.e), HEDGE_EIO);
}

/* EBUSY of anything but an acquisition (no reader slot, say) frees nothing. */
static void test_busy_look_is_a_failure(void **state)
{
    struct fixture f;
    const struct engine_lease none = {0};

    (void)state;
    follow(&f, "b:1", 9);
    f.now = f.out.wake_ms;
    step(&f, ELECTION_TICK);
    result(&f, f.now, HEDGE_EBUSY, 0, &none);
    assert_int_equal(f.out.op, ELECTION_OP_NONE);
    assert_string_equal(election_leader(&f.e)->id, "b:1");
    assert_int_equal(election_status(&f.e), HEDGE_EBUSY);
}

static void test_token_that_does_not_grow_elects_nobody(void **state)
{
    struct fixture f;
    const struct engine_lease none = {0};

    (void)state;
    lead(&f, 5);
    f.now += LEASE;
    step(&f, ELECTION_TICK);
    assert_int_equal(f.out.op, ELECTION_OP_LOOK);
    result(&f, f.now, 0, 0, &none);
    result(&f, f.now, 0, 5, &none);
    assert_false(f.out.won);
    assert_int_equal(election_status(&f.e), HEDGE_ECORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_node_leads_at_once),
        cmocka_unit_test(test_deadline_counts_from_the_start),
        cmocka_unit_test(test_started_time_is_bounded_by_what_is_known),
        cmocka_unit_test(test_too_slow_acquisition_does_not_lead),
        cmocka_unit_test(test_renews_by_thirds_and_extends),
        cmocka_unit_test(test_fenced_renewal_loses),
        cmocka_unit_test(test_failing_renewals_are_repeated_until_the_deadline),
        cmocka_unit_test(test_hanging_renewal_loses_at_the_deadline),
        cmocka_unit_test(test_result_after_a_pause_does_not_revive),
        cmocka_unit_test(test_follower_looks_often_and_at_the_expiry),
        cmocka_unit_test(test_earlier_life_is_waited_for),
        cmocka_unit_test(test_stop_releases_at_once),
        cmocka_unit_test(test_stop_during_an_acquisition_gives_it_back),
        cmocka_unit_test(test_stop_during_a_renewal_given_up),
        cmocka_unit_test(test_duplicate_results_are_ignored),
        cmocka_unit_test(
            test_announcement_shows_at_once_but_the_engine_decides),
        cmocka_unit_test(test_leader_asks_the_engine_when_told_of_another),
        cmocka_unit_test(test_vanished_leader_is_looked_for_now),
        cmocka_unit_test(test_failing_engine_is_asked_less_and_less_often),
        cmocka_unit_test(test_busy_look_is_a_failure),
        cmocka_unit_test(test_token_that_does_not_grow_elects_nobody),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
