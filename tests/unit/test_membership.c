#include "cluster/group/membership.h"

#include "store/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#define INTERVAL 1000u

struct fixture {
    struct membership *m;
    struct membership_actions out;
    uint64_t now;
};

static struct member member(const char *id, uint64_t incarnation)
{
    struct member m = {.incarnation = incarnation, .mem_free = 100};

    assert_true(member_set_text(m.id, sizeof m.id, id));
    (void)snprintf(m.grpc_address, sizeof m.grpc_address, "grpc-%s", id);
    (void)snprintf(m.version, sizeof m.version, "0.1");
    return m;
}

static void fresh(struct fixture *f, const char *id)
{
    struct membership_options o = {.self = member(id, 50),
                                   .interval_ms = INTERVAL,
                                   .wire_version = 1,
                                   .block_version = 1,
                                   .block_size = 1 << 20};

    memset(f, 0, sizeof *f);
    f->now = 10000;
    assert_int_equal(membership_new(&o, &f->m), 0);
}

static void done(struct fixture *f)
{
    membership_free(f->m);
    membership_actions_release(&f->out);
}

static void step(struct fixture *f, const struct membership_event *ev)
{
    assert_int_equal(membership_step(f->m, ev, f->now, &f->out), 0);
}

static void tick(struct fixture *f)
{
    const struct membership_event ev = {.type = MEMBERSHIP_TICK};

    step(f, &ev);
}

static void lead(struct fixture *f, uint64_t token, uint64_t idle_ms)
{
    const struct membership_event ev = {
        .type = MEMBERSHIP_LEAD, .token = token, .idle_ms = idle_ms};

    step(f, &ev);
}

static void follow(struct fixture *f, const char *id, uint64_t token)
{
    const struct membership_event ev = {.type = MEMBERSHIP_FOLLOW,
                                        .id = id,
                                        .address = "there",
                                        .incarnation = 1,
                                        .token = token};

    step(f, &ev);
}

static struct membership_report report_of(const char *id, uint64_t incarnation)
{
    struct membership_report r = {.self = member(id, incarnation),
                                  .wire_version = 1,
                                  .block_version = 1,
                                  .block_size = 1 << 20};

    return r;
}

static int send_report(struct fixture *f, uint64_t session,
                       const struct membership_report *r)
{
    const struct membership_event ev = {
        .type = MEMBERSHIP_REPORT, .session = session, .report = r};

    step(f, &ev);
    return f->out.verdict;
}

static int report(struct fixture *f, uint64_t session, const char *id,
                  uint64_t incarnation)
{
    struct membership_report r = report_of(id, incarnation);

    return send_report(f, session, &r);
}

static int list(struct fixture *f, uint64_t token, uint64_t version,
                const struct member *members, size_t n)
{
    const struct membership_list l = {
        .token = token, .version = version, .members = members, .n_members = n};
    const struct membership_event ev = {.type = MEMBERSHIP_LIST, .list = &l};

    return membership_step(f->m, &ev, f->now, &f->out);
}

static void expect_change(const struct fixture *f, size_t i,
                          enum membership_change_type type, const char *id,
                          enum membership_reason reason)
{
    assert_true(i < f->out.n_changes);
    assert_int_equal(f->out.changes[i].type, type);
    assert_string_equal(f->out.changes[i].id, id);
    assert_int_equal(f->out.changes[i].reason, reason);
}

static void test_alone(void **state)
{
    struct fixture f;
    uint64_t token;

    (void)state;
    fresh(&f, "a:1");
    assert_int_equal(membership_count(f.m), 1);
    assert_false(membership_is_settled(f.m));
    lead(&f, 3, UINT64_MAX);
    assert_int_equal(f.out.n_changes, 1);
    expect_change(&f, 0, MEMBERSHIP_LEADER, "a:1", MEMBERSHIP_NO_REASON);
    assert_true(f.out.publish);
    assert_true(f.out.settled);
    assert_true(membership_is_settled(f.m));
    assert_true(membership_at(f.m, 0)->leader);
    assert_int_equal(membership_version(f.m, &token), 1);
    assert_int_equal(token, 3);
    done(&f);
}

static void test_join_report_leave(void **state)
{
    struct fixture f;
    struct membership_report r = report_of("b:1", 7);
    uint64_t version;

    (void)state;
    fresh(&f, "a:1");
    lead(&f, 1, UINT64_MAX);
    assert_int_equal(report(&f, 1, "b:1", 7), 0);
    assert_true(f.out.publish);
    expect_change(&f, 0, MEMBERSHIP_JOIN, "b:1", MEMBERSHIP_NO_REASON);
    assert_int_equal(membership_count(f.m), 2);
    version = membership_version(f.m, NULL);
    /* New figures alone wait for the next interval. */
    r.self.mem_free = 55;
    f.now += 10;
    assert_int_equal(send_report(&f, 1, &r), 0);
    assert_false(f.out.publish);
    assert_int_equal(f.out.n_changes, 0);
    assert_int_equal(membership_find(f.m, "b:1")->mem_free, 55);
    assert_int_equal(f.out.wake_ms, 10000 + INTERVAL / 2 + 10);
    f.now = 10000 + INTERVAL;
    tick(&f);
    assert_true(f.out.publish);
    assert_int_equal(membership_version(f.m, NULL), version + 1);
    r.leaving = true;
    assert_int_equal(send_report(&f, 1, &r), 0);
    expect_change(&f, 0, MEMBERSHIP_LEAVE, "b:1", MEMBERSHIP_LEFT);
    assert_int_equal(f.out.n_closes, 1);
    assert_int_equal(f.out.closes[0], 1);
    assert_null(membership_find(f.m, "b:1"));
    /* A late report of the life that has left. */
    assert_int_equal(report(&f, 1, "b:1", 7), HEDGE_EREFUSED);
    assert_int_equal(report(&f, 2, "b:1", 8), 0);
    done(&f);
}

static void test_incarnations(void **state)
{
    struct fixture f;

    (void)state;
    fresh(&f, "a:1");
    lead(&f, 1, UINT64_MAX);
    (void)report(&f, 1, "b:1", 7);
    assert_int_equal(report(&f, 2, "b:1", 8), 0);
    assert_int_equal(f.out.n_changes, 2);
    expect_change(&f, 0, MEMBERSHIP_LEAVE, "b:1", MEMBERSHIP_REPLACED);
    assert_int_equal(f.out.changes[0].incarnation, 7);
    expect_change(&f, 1, MEMBERSHIP_JOIN, "b:1", MEMBERSHIP_NO_REASON);
    assert_int_equal(f.out.changes[1].incarnation, 8);
    assert_int_equal(f.out.closes[0], 1);
    assert_true(f.out.welcome);
    assert_int_equal(report(&f, 1, "b:1", 7), HEDGE_EREFUSED);
    assert_int_equal(f.out.n_changes, 0);
    assert_int_equal(membership_find(f.m, "b:1")->incarnation, 8);
    /* Also once the newer one is gone. */
    f.now += 100;
    {
        struct membership_report r = report_of("b:1", 8);
        r.leaving = true;
        (void)send_report(&f, 2, &r);
    }
    assert_int_equal(report(&f, 3, "b:1", 7), HEDGE_EREFUSED);
    done(&f);
}

static void test_refusals_name_both_numbers(void **state)
{
    struct fixture f;
    struct membership_report r = report_of("b:1", 7);

    (void)state;
    fresh(&f, "a:1");
    assert_int_equal(send_report(&f, 1, &r), HEDGE_ENOTLEADER);
    lead(&f, 1, UINT64_MAX);
    r.wire_version = 4;
    assert_int_equal(send_report(&f, 1, &r), HEDGE_EVERSION);
    assert_non_null(strstr(f.out.verdict_text, "wire version 4"));
    assert_non_null(strstr(f.out.verdict_text, "speaks 1"));
    r.wire_version = 1;
    r.block_version = 9;
    assert_int_equal(send_report(&f, 1, &r), HEDGE_EVERSION);
    assert_non_null(strstr(f.out.verdict_text, "version 9"));
    r.block_version = 1;
    r.block_size = 65536;
    assert_int_equal(send_report(&f, 1, &r), HEDGE_EREFUSED);
    assert_non_null(strstr(f.out.verdict_text, "65536"));
    assert_non_null(strstr(f.out.verdict_text, "1048576"));
    r = report_of("b:1", 0);
    assert_int_equal(send_report(&f, 1, &r), HEDGE_EPROTO);
    r = report_of("a:1", 51);
    assert_int_equal(send_report(&f, 1, &r), HEDGE_EEXISTS);
    assert_int_equal(membership_count(f.m), 1);
    done(&f);
}

static void dialed(struct fixture *f, const char *id, uint64_t incarnation,
                   bool ok)
{
    const struct membership_event ev = {.type = MEMBERSHIP_DIALED,
                                        .id = id,
                                        .incarnation = incarnation,
                                        .ok = ok};

    step(f, &ev);
}

static void broken(struct fixture *f, uint64_t session)
{
    const struct membership_event ev = {.type = MEMBERSHIP_STREAM_BROKEN,
                                        .session = session};

    step(f, &ev);
}

static void test_broken_stream_is_dialled(void **state)
{
    struct fixture f;

    (void)state;
    fresh(&f, "a:1");
    lead(&f, 1, UINT64_MAX);
    (void)report(&f, 1, "b:1", 7);
    (void)report(&f, 2, "c:1", 7);
    broken(&f, 1);
    assert_int_equal(f.out.n_dials, 1);
    assert_string_equal(f.out.dials[0].id, "b:1");
    assert_string_equal(f.out.dials[0].address, "grpc-b:1");
    dialed(&f, "b:1", 7, true);
    assert_int_equal(f.out.n_changes, 0);
    (void)report(&f, 3, "b:1", 7);
    assert_true(f.out.welcome);
    assert_int_equal(f.out.n_changes, 0);
    broken(&f, 1); /* The old one again. */
    assert_int_equal(f.out.n_dials, 0);
    broken(&f, 3);
    dialed(&f, "b:1", 6, false); /* Of another life. */
    assert_int_equal(f.out.n_changes, 0);
    dialed(&f, "b:1", 7, false);
    expect_change(&f, 0, MEMBERSHIP_LEAVE, "b:1", MEMBERSHIP_UNREACHABLE);
    assert_true(f.out.publish);
    /* It reports while it is dialled: the dial counts no more. */
    broken(&f, 2);
    (void)report(&f, 4, "c:1", 7);
    dialed(&f, "c:1", 7, false);
    assert_int_equal(f.out.n_changes, 0);
    /* A stream from before the present one. */
    assert_int_equal(report(&f, 2, "c:1", 7), HEDGE_ECLOSED);
    done(&f);
}

static void test_silence_needs_three_intervals(void **state)
{
    struct fixture f;
    uint64_t start;
    unsigned ticks = 0;

    (void)state;
    fresh(&f, "a:1");
    lead(&f, 1, UINT64_MAX);
    (void)report(&f, 1, "b:1", 7);
    start = f.now;
    while (f.out.n_changes == 0 || f.out.changes[0].type != MEMBERSHIP_LEAVE) {
        assert_true(f.out.wake_ms > f.now && ticks++ < 50);
        f.now = f.out.wake_ms + 1; /* Timers are late. */
        tick(&f);
    }
    expect_change(&f, 0, MEMBERSHIP_LEAVE, "b:1", MEMBERSHIP_SILENT);
    assert_in_range(f.now - start, 3 * INTERVAL, 3 * INTERVAL + 20);
    assert_int_equal(f.out.closes[0], 1);
    /* It was only slow: it comes back as the life it was. */
    assert_int_equal(report(&f, 2, "b:1", 7), 0);
    expect_change(&f, 0, MEMBERSHIP_JOIN, "b:1", MEMBERSHIP_NO_REASON);
    done(&f);
}

static void test_a_pause_of_the_leader_is_nobodys_silence(void **state)
{
    struct fixture f;

    (void)state;
    fresh(&f, "a:1");
    lead(&f, 1, UINT64_MAX);
    (void)report(&f, 1, "b:1", 7);
    f.now += 5 * INTERVAL;
    tick(&f);
    assert_int_equal(f.out.n_changes, 0);
    done(&f);
}

static void test_lists_make_events(void **state)
{
    struct fixture f;
    struct member l[3] = {member("a:1", 50), member("c:1", 3),
                          member("b:1", 9)};

    (void)state;
    fresh(&f, "a:1");
    follow(&f, "b:1", 5);
    assert_true(f.out.connect && f.out.report);
    expect_change(&f, 0, MEMBERSHIP_LEADER, "b:1", MEMBERSHIP_NO_REASON);
    assert_int_equal(list(&f, 5, 1, l, 3), 0);
    assert_int_equal(f.out.n_changes, 2);
    expect_change(&f, 0, MEMBERSHIP_JOIN, "b:1", MEMBERSHIP_NO_REASON);
    expect_change(&f, 1, MEMBERSHIP_JOIN, "c:1", MEMBERSHIP_NO_REASON);
    assert_true(membership_find(f.m, "b:1")->leader);
    assert_false(membership_find(f.m, "a:1")->leader);
    assert_int_equal(list(&f, 5, 1, l, 1), 0); /* Not newer. */
    assert_int_equal(f.out.n_changes, 0);
    assert_int_equal(list(&f, 4, 9, l, 1), 0); /* Of an earlier leader. */
    assert_int_equal(f.out.n_changes, 0);
    l[1].incarnation = 4;
    assert_int_equal(list(&f, 5, 2, l, 2), 0);
    assert_int_equal(f.out.n_changes, 3);
    expect_change(&f, 0, MEMBERSHIP_LEAVE, "b:1", MEMBERSHIP_NO_REASON);
    expect_change(&f, 1, MEMBERSHIP_LEAVE, "c:1", MEMBERSHIP_REPLACED);
    expect_change(&f, 2, MEMBERSHIP_JOIN, "c:1", MEMBERSHIP_NO_REASON);
    assert_int_equal(membership_count(f.m), 2);
    /* An earlier leader's, though numbered higher than the list in hand. */
    follow(&f, "c:1", 8);
    assert_int_equal(list(&f, 7, 9, l, 1), 0);
    assert_int_equal(f.out.n_changes, 0);
    done(&f);
}

/* What a member has seen end, it does not admit again as a leader. */
static void test_lists_bury_too(void **state)
{
    struct fixture f;
    struct member l[2] = {member("b:1", 9), member("c:1", 4)};

    (void)state;
    fresh(&f, "a:1");
    follow(&f, "b:1", 5);
    (void)list(&f, 5, 1, l, 2);
    (void)list(&f, 5, 2, l, 1);
    lead(&f, 6, 10);
    assert_int_equal(report(&f, 1, "c:1", 3), HEDGE_EREFUSED);
    assert_int_equal(report(&f, 2, "c:1", 4), 0); /* It was only cut off. */
    done(&f);
}

static void test_a_list_without_this_node(void **state)
{
    struct fixture f;
    struct member l[2] = {member("b:1", 9), member("a:1", 51)};

    (void)state;
    fresh(&f, "a:1");
    follow(&f, "b:1", 5);
    f.now += 10;
    assert_int_equal(list(&f, 5, 1, l, 1), 0);
    assert_non_null(membership_find(f.m, "a:1"));
    assert_true(f.out.report);
    assert_false(f.out.superseded);
    assert_int_equal(list(&f, 5, 2, l, 2), 0);
    assert_true(f.out.superseded);
    assert_int_equal(membership_self(f.m)->incarnation, 50);
    done(&f);
}

static void test_malformed_lists_change_nothing(void **state)
{
    struct fixture f;
    struct member l[3] = {member("b:1", 9), member("c:1", 9), member("b:1", 9)};

    (void)state;
    fresh(&f, "a:1");
    follow(&f, "b:1", 5);
    assert_int_equal(list(&f, 5, 1, l, 3), HEDGE_EPROTO);
    assert_int_equal(membership_count(f.m), 1);
    l[2] = member("d:1", 0);
    assert_int_equal(list(&f, 5, 1, l, 3), HEDGE_EPROTO);
    assert_int_equal(list(&f, 5, 1, l, MEMBERSHIP_MAX + 1), HEDGE_EPROTO);
    assert_int_equal(membership_count(f.m), 1);
    assert_int_equal(list(&f, 5, 1, l, 2), 0);
    assert_int_equal(membership_count(f.m), 3);
    done(&f);
}

static void link_down(struct fixture *f, uint64_t token, int status)
{
    const struct membership_event ev = {
        .type = MEMBERSHIP_LINK_DOWN, .token = token, .status = status};

    step(f, &ev);
}

static void test_the_link_is_tried_again(void **state)
{
    struct fixture f;

    (void)state;
    fresh(&f, "a:1");
    follow(&f, "b:1", 5);
    link_down(&f, 4, HEDGE_EUNAVAILABLE); /* Of the leader before. */
    assert_int_equal(f.out.wake_ms, f.now + INTERVAL);
    link_down(&f, 5, HEDGE_EUNAVAILABLE);
    assert_false(f.out.connect);
    assert_int_equal(f.out.wake_ms, f.now + 50);
    f.now = f.out.wake_ms;
    tick(&f);
    assert_true(f.out.connect && f.out.report);
    link_down(&f, 5, HEDGE_EUNAVAILABLE);
    assert_int_equal(f.out.wake_ms, f.now + 100);
    follow(&f, "", 5);
    assert_int_equal(f.out.wake_ms, MEMBERSHIP_NEVER);
    follow(&f, "c:1", 6);
    assert_true(f.out.connect);
    link_down(&f, 6, HEDGE_EVERSION);
    assert_int_equal(f.out.wake_ms, f.now + 5 * INTERVAL);
    done(&f);
}

static void test_in_touch_with_a_leader(void **state)
{
    struct member l[1] = {member("b:1", 1)};
    struct fixture f;

    (void)state;
    fresh(&f, "a:1");
    assert_false(membership_is_in_group(f.m));
    follow(&f, "b:1", 5);
    assert_false(membership_is_in_group(f.m)); /* Nothing heard of it. */
    assert_int_equal(list(&f, 4, 9, l, 1), 0);
    assert_false(membership_is_in_group(f.m)); /* Of an older leader. */
    assert_int_equal(list(&f, 5, 1, l, 1), 0);
    assert_true(membership_is_in_group(f.m));
    follow(&f, "b:1", 5); /* No news. */
    assert_true(membership_is_in_group(f.m));
    link_down(&f, 5, HEDGE_EUNAVAILABLE);
    assert_false(membership_is_in_group(f.m));
    f.now += INTERVAL;
    tick(&f);
    assert_true(f.out.connect);
    assert_false(membership_is_in_group(f.m));
    assert_int_equal(list(&f, 5, 1, l, 1), 0); /* The same list again. */
    assert_true(membership_is_in_group(f.m));
    follow(&f, "", 0);
    assert_false(membership_is_in_group(f.m));
    lead(&f, 6, 0);
    assert_true(membership_is_in_group(f.m));
    follow(&f, "b:1", 7);
    assert_false(membership_is_in_group(f.m));
    done(&f);
}

static void test_a_change_of_leader_is_no_storm(void **state)
{
    struct fixture f;
    struct member l[4] = {member("a:1", 50), member("b:1", 9), member("c:1", 3),
                          member("d:1", 4)};

    (void)state;
    fresh(&f, "a:1");
    follow(&f, "b:1", 5);
    (void)list(&f, 5, 1, l, 4);
    follow(&f, "", 5);
    lead(&f, 6, 10);
    assert_int_equal(f.out.n_changes, 1);
    expect_change(&f, 0, MEMBERSHIP_LEADER, "a:1", MEMBERSHIP_NO_REASON);
    assert_int_equal(f.out.n_dials, 3);
    assert_int_equal(membership_count(f.m), 4);
    assert_false(membership_is_settled(f.m));
    /* c reports, d comes back as a new life, b is dead. */
    assert_int_equal(report(&f, 1, "c:1", 3), 0);
    assert_int_equal(f.out.n_changes, 0);
    assert_true(f.out.welcome);
    assert_int_equal(report(&f, 2, "d:1", 5), 0);
    assert_int_equal(f.out.n_changes, 2);
    assert_false(membership_is_settled(f.m));
    dialed(&f, "b:1", 9, false);
    expect_change(&f, 0, MEMBERSHIP_LEAVE, "b:1", MEMBERSHIP_UNREACHABLE);
    assert_true(f.out.settled);
    assert_true(membership_is_settled(f.m));
    tick(&f);
    assert_false(f.out.settled);
    follow(&f, "c:1", 7);
    assert_false(membership_is_settled(f.m));
    assert_int_equal(f.out.n_closes, 2);
    done(&f);
}

/* Its announcement says less of a leader than its lease, which is read next. */
static void test_a_leader_is_told_once(void **state)
{
    struct membership_event ev = {
        .type = MEMBERSHIP_FOLLOW, .id = "b:1", .address = "b:2", .token = 5};
    struct fixture f;

    (void)state;
    fresh(&f, "a:1");
    step(&f, &ev);
    assert_int_equal(f.out.n_changes, 1);
    expect_change(&f, 0, MEMBERSHIP_LEADER, "b:1", MEMBERSHIP_NO_REASON);
    ev.incarnation = 7;
    step(&f, &ev);
    assert_int_equal(f.out.n_changes, 0);
    assert_int_equal(membership_leader(f.m)->incarnation, 7);
    ev.token = 6; /* The same node again, after nobody. */
    step(&f, &ev);
    assert_int_equal(f.out.n_changes, 1);
    done(&f);
}

static void test_pending_members_fall_to_silence(void **state)
{
    struct fixture f;
    struct member l[2] = {member("a:1", 50), member("b:1", 9)};

    (void)state;
    fresh(&f, "a:1");
    follow(&f, "b:1", 5);
    (void)list(&f, 5, 1, l, 2);
    lead(&f, 6, 10);
    while (!membership_is_settled(f.m)) {
        assert_in_range(f.now, 10000, 10000 + 4 * INTERVAL);
        assert_true(f.out.wake_ms > f.now);
        f.now = f.out.wake_ms;
        tick(&f);
    }
    assert_int_equal(f.now, 10000 + 3 * INTERVAL);
    assert_int_equal(membership_count(f.m), 1);
    done(&f);
}

static void test_a_leader_that_knows_nobody_waits(void **state)
{
    struct fixture f;

    (void)state;
    fresh(&f, "a:1"); /* It has never had a list. */
    lead(&f, 6, 10);
    assert_false(membership_is_settled(f.m));
    f.now += 3 * INTERVAL - 1;
    tick(&f);
    assert_false(membership_is_settled(f.m));
    f.now += 1;
    tick(&f);
    assert_true(membership_is_settled(f.m));
    done(&f);
    fresh(&f, "a:1"); /* Nobody wanted the lease for long: nobody is there. */
    lead(&f, 6, 3 * INTERVAL);
    assert_true(membership_is_settled(f.m));
    done(&f);
    fresh(&f, "a:1"); /* The list in hand is not that of the last leader. */
    {
        struct member l[1] = {member("a:1", 50)};
        follow(&f, "b:1", 5);
        (void)list(&f, 5, 1, l, 1);
        follow(&f, "c:1", 6);
        lead(&f, 7, 10);
    }
    assert_false(membership_is_settled(f.m));
    done(&f);
}

static void test_lists_are_sent_again(void **state)
{
    struct fixture f;
    unsigned published = 0;
    uint64_t version;

    (void)state;
    fresh(&f, "a:1");
    lead(&f, 1, UINT64_MAX);
    version = membership_version(f.m, NULL);
    while (f.now < 10000 + 10 * INTERVAL) {
        f.now = f.out.wake_ms;
        tick(&f);
        published += f.out.publish;
    }
    assert_int_equal(published, 3);
    assert_int_equal(membership_version(f.m, NULL), version);
    done(&f);
}

static void test_self_figures(void **state)
{
    struct fixture f;
    struct member self = member("a:1", 50);
    const struct membership_event ev = {.type = MEMBERSHIP_SELF,
                                        .member = &self};

    (void)state;
    fresh(&f, "a:1");
    lead(&f, 1, UINT64_MAX);
    self.disk_free = 4711;
    step(&f, &ev);
    assert_int_equal(membership_self(f.m)->disk_free, 4711);
    assert_true(membership_self(f.m)->leader);
    f.now += INTERVAL;
    tick(&f);
    assert_true(f.out.publish);
    done(&f);
}

static void test_many_members(void **state)
{
    struct fixture f;
    char id[32];

    (void)state;
    fresh(&f, "a:1");
    lead(&f, 1, UINT64_MAX);
    for (unsigned i = 1; i < MEMBERSHIP_MAX; i++) {
        (void)snprintf(id, sizeof id, "n%u", i * 7919 % 10007);
        assert_int_equal(report(&f, i, id, 1), 0);
    }
    assert_int_equal(report(&f, 5000, "one too many", 1), HEDGE_EBUSY);
    for (size_t i = 1; i < membership_count(f.m); i++) {
        assert_true(strcmp(membership_at(f.m, i - 1)->id,
                           membership_at(f.m, i)->id) < 0);
    }
    follow(&f, "b:1", 2);
    assert_int_equal(f.out.n_closes, MEMBERSHIP_MAX - 1);
    lead(&f, 3, 1);
    assert_int_equal(f.out.n_dials, MEMBERSHIP_MAX - 1);
    f.now += INTERVAL;
    tick(&f);
    for (unsigned i = 0; i < 6; i++) {
        f.now += INTERVAL / 2;
        tick(&f);
    }
    assert_int_equal(membership_count(f.m), 1);
    done(&f);
}

/* Each allocation fails in turn: the step changes nothing and can be done
 * again. */
static void test_no_memory(void **state)
{
    struct member l[20];
    struct fixture f;

    (void)state;
    for (size_t i = 0; i < 20; i++) {
        char id[8];
        (void)snprintf(id, sizeof id, "n%02zu", i);
        l[i] = member(id, 1);
    }
    for (long n = 0;; n++) {
        struct membership_options o = {.self = member("a:1", 50),
                                       .interval_ms = INTERVAL,
                                       .block_size = 1};
        const struct membership_list li = {
            .token = 5, .version = 1, .members = l, .n_members = 20};
        const struct membership_event ev = {.type = MEMBERSHIP_LIST,
                                            .list = &li};
        int rv;

        memset(&f, 0, sizeof f);
        mem_fail_after(n);
        rv = membership_new(&o, &f.m);
        if (rv == 0) {
            rv = membership_step(f.m, &ev, 1, &f.out);
        }
        mem_fail_after(-1);
        if (rv != 0) {
            assert_int_equal(rv, HEDGE_ENOMEM);
        }
        if (rv != 0 && f.m != NULL) {
            assert_int_equal(membership_count(f.m), 1);
            assert_int_equal(membership_step(f.m, &ev, 2, &f.out), 0);
        }
        if (f.m != NULL) {
            assert_int_equal(membership_count(f.m), 21);
        }
        done(&f);
        if (rv == 0) {
            assert_true(n >= 5);
            return;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_join_report_leave),
        cmocka_unit_test(test_incarnations),
        cmocka_unit_test(test_refusals_name_both_numbers),
        cmocka_unit_test(test_broken_stream_is_dialled),
        cmocka_unit_test(test_silence_needs_three_intervals),
        cmocka_unit_test(test_a_pause_of_the_leader_is_nobodys_silence),
        cmocka_unit_test(test_lists_make_events),
        cmocka_unit_test(test_lists_bury_too),
        cmocka_unit_test(test_a_list_without_this_node),
        cmocka_unit_test(test_malformed_lists_change_nothing),
        cmocka_unit_test(test_the_link_is_tried_again),
        cmocka_unit_test(test_in_touch_with_a_leader),
        cmocka_unit_test(test_a_change_of_leader_is_no_storm),
        cmocka_unit_test(test_a_leader_is_told_once),
        cmocka_unit_test(test_pending_members_fall_to_silence),
        cmocka_unit_test(test_a_leader_that_knows_nobody_waits),
        cmocka_unit_test(test_lists_are_sent_again),
        cmocka_unit_test(test_self_figures),
        cmocka_unit_test(test_many_members),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
