#include "cluster/locks/lock_rows.h"
#include "cluster/locks/sem_view.h"
#include "cluster/locks/semaphore.h"
#include "store/base/mem.h"
#include "tests/lib/check.h"
#include "tests/lib/sem_box.h"

#include <stdio.h>
#include <string.h>

/* --- tests ------------------------------------------------------------------
 */

static void granted_when_it_is_on_disk(void **state)
{
    struct sem_box f;
    unsigned a;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_acquire(&f, 1, 10, 2, 1, 1000);
    assert_pending(&f, a);
    assert_int_equal(f.n_rows, 1);
    assert_int_equal(f.rows[0].session, 1);
    assert_int_equal(f.rows[0].limit, 2);
    assert_false(f.rows[0].deleted);
    sem_box_appended(&f, 0);
    assert_answer(&f, a, 0);
    assert_int_equal(f.calls[a].token, f.revision);
    sem_box_done_with(&f);
}

static void many_grants_are_one_append(void **state)
{
    struct sem_box f;
    unsigned a[6];

    (void)state;
    sem_box_fresh(&f);
    for (unsigned i = 0; i < 6; i++) {
        a[i] = sem_box_acquire(&f, 1 + i, 10, 10, 1, 1000);
    }
    assert_int_equal(f.n_rows, 1); /* The first did not wait for others. */
    sem_box_appended(&f, 0);
    assert_int_equal(f.n_rows, 5);
    assert_answer(&f, a[0], 0);
    assert_pending(&f, a[5]);
    sem_box_appended(&f, 0);
    assert_answer(&f, a[5], 0);
    sem_box_done_with(&f);
}

static void release_and_next_grant_are_one_append(void **state)
{
    struct sem_box f;
    uint64_t token;
    unsigned w, r;

    (void)state;
    sem_box_fresh(&f);
    token = sem_box_take(&f, 1, 10, 1, 1);
    w = sem_box_acquire(&f, 2, 10, 1, 1, 1000);
    assert_true(f.calls[w].queued);
    r = sem_box_release(&f, 1, token);
    assert_pending(&f, r);
    assert_int_equal(f.n_rows, 2);
    assert_true(f.rows[0].deleted);
    assert_false(f.rows[1].deleted);
    sem_box_appended(&f, 0);
    assert_answer(&f, r, 0);
    assert_answer(&f, w, 0);
    assert_true(f.calls[w].token > token);
    sem_box_done_with(&f);
}

static void first_come_first_served(void **state)
{
    struct sem_box f;
    uint64_t token;
    unsigned big, small, try;

    (void)state;
    sem_box_fresh(&f);
    token = sem_box_take(&f, 1, 10, 3, 2);
    big = sem_box_acquire(&f, 2, 10, 3, 3, 1000);
    small = sem_box_acquire(&f, 3, 10, 3, 1, 1000);
    try = sem_box_acquire(&f, 4, 10, 3, 1, 0);
    assert_pending(&f, big);
    assert_pending(&f, small); /* One is free, and not its turn. */
    assert_answer(&f, try, HEDGE_EBUSY);
    (void)sem_box_release(&f, 1, token);
    sem_box_settle(&f);
    assert_answer(&f, big, 0);
    assert_pending(&f, small);
    sem_box_tick(&f, 1000);
    assert_answer(&f, small, HEDGE_ETIMEDOUT);
    sem_box_done_with(&f);
}

static void who_gives_up_lets_the_next_one_pass(void **state)
{
    struct sem_box f;
    unsigned big, small;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 3, 2);
    big = sem_box_acquire(&f, 2, 10, 3, 3, 1000);
    small = sem_box_acquire(&f, 3, 10, 3, 1, 5000);
    sem_box_tick(&f, 1000);
    sem_box_settle(&f);
    assert_answer(&f, big, HEDGE_ETIMEDOUT);
    assert_answer(&f, small, 0);
    sem_box_done_with(&f);
}

static void session_ends_with_its_lease(void **state)
{
    struct sem_box f;
    unsigned w, r;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 1, 1);
    sem_box_tick(&f, LEASE - 1);
    w = sem_box_acquire(&f, 2, 10, 1, 1, 1000);
    assert_pending(&f, w);
    sem_box_tick(&f, 1);
    sem_box_settle(&f);
    assert_answer(&f, w, 0);
    r = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, HEDGE_ENOTFOUND);
    sem_box_done_with(&f);
}

static void renewal_tells_what_is_held(void **state)
{
    struct sem_box f;
    uint64_t a, b;
    unsigned r;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_take(&f, 1, 10, 5, 1);
    b = sem_box_take(&f, 1, 11, 5, 1);
    (void)sem_box_acquire(&f, 1, 12, 5, 1, 1000); /* Not on disk yet. */
    sem_box_tick(&f, LEASE - 1);
    r = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, 0);
    assert_int_equal(f.calls[r].n_held, 2);
    assert_int_equal(f.calls[r].held[0].token, a);
    assert_int_equal(f.calls[r].held[1].token, b);
    assert_int_equal(f.calls[r].held[1].request, 11);
    assert_int_equal(f.calls[r].lease_ms, LEASE);
    sem_box_tick(&f, LEASE - 1);
    assert_answer(&f, sem_box_with(&f, SEMAPHORE_RENEW, 1, 0), 0);
    sem_box_settle(&f);
    sem_box_done_with(&f);
}

static void same_request_again(void **state)
{
    struct sem_box f;
    uint64_t token;
    unsigned a, b, c;

    (void)state;
    sem_box_fresh(&f);
    token = sem_box_take(&f, 1, 10, 1, 1);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    assert_answer(&f, a, 0);
    assert_int_equal(f.calls[a].token, token);
    b = sem_box_acquire(&f, 2, 20, 1, 1, 1000);
    c = sem_box_acquire(&f, 2, 20, 1, 1, 1000);
    assert_int_equal(f.calls[b].order, f.calls[c].order);
    (void)sem_box_release(&f, 1, token);
    sem_box_settle(&f);
    assert_answer(&f, b, 0);
    assert_answer(&f, c, 0);
    assert_int_equal(f.calls[b].token, f.calls[c].token);
    a = sem_box_acquire(&f, 2, 20, 1, 0, 1000);
    assert_answer(&f, a, HEDGE_EINVAL);
    sem_box_done_with(&f);
}

static unsigned cancel(struct sem_box *f, uint64_t session, uint64_t request,
                       uint32_t attempt)
{
    return sem_box_submit(f, (struct semaphore_call){.op = SEMAPHORE_CANCEL,
                                                     .session = session,
                                                     .request = request,
                                                     .attempt = attempt});
}

static void cancel_is_for_its_own_attempt(void **state)
{
    struct sem_box f;
    unsigned a, b, again;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 1, 1);
    a = sem_box_acquire(&f, 2, 20, 1, 1, 100000);
    again = sem_box_submit(&f, (struct semaphore_call){.op = SEMAPHORE_ACQUIRE,
                                                       .session = 2,
                                                       .request = 20,
                                                       .attempt = 2,
                                                       .limit = 1,
                                                       .permits = 1,
                                                       .wait_ms = 100000});
    assert_answer(&f, cancel(&f, 2, 20, 1), 0);
    assert_pending(&f, a);
    assert_answer(&f, cancel(&f, 2, 20, 2), 0);
    assert_answer(&f, a, HEDGE_ECANCELED);
    assert_answer(&f, again, HEDGE_ECANCELED);
    b = cancel(&f, 1, 10, 1); /* What was granted is given back. */
    assert_pending(&f, b);
    sem_box_settle(&f);
    assert_answer(&f, b, 0);
    (void)sem_box_take(&f, 3, 30, 1, 1);
    sem_box_done_with(&f);
}

static void cancel_while_it_is_being_written(void **state)
{
    struct sem_box f;
    unsigned a, c;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    c = cancel(&f, 1, 10, 1);
    assert_answer(&f, a, HEDGE_ECANCELED);
    assert_pending(&f, c);
    /* The same one once more: its row is to come after the deletion. */
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    sem_box_appended(&f, 0);
    assert_int_equal(f.n_rows, 2);
    assert_true(f.rows[0].deleted);
    assert_false(f.rows[1].deleted);
    sem_box_appended(&f, 0);
    assert_answer(&f, c, 0);
    assert_answer(&f, a, 0);
    sem_box_done_with(&f);
}

static void revoked_grant_ends_with_the_lease_it_had(void **state)
{
    struct sem_box f;
    uint64_t token;
    unsigned w, v, r, k;

    (void)state;
    sem_box_fresh(&f);
    token = sem_box_take(&f, 1, 10, 1, 1);
    r = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
    k = sem_box_submit(&f, (struct semaphore_call){.op = SEMAPHORE_WATCH,
                                                   .session = 1,
                                                   .term = f.calls[r].term,
                                                   .at = f.calls[r].at,
                                                   .wait_ms = 60000});
    w = sem_box_acquire(&f, 2, 20, 1, 1, 60000);
    v = sem_box_with(&f, SEMAPHORE_REVOKE, 0, token);
    assert_answer(&f, k, 0);
    assert_pending(&f, v);
    assert_true(f.rows[0].revoked);
    assert_int_equal(f.rows[0].token, token);
    sem_box_settle(&f);
    assert_answer(&f, v, 0);
    sem_box_tick(&f, LEASE / 2);
    r = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, 0);
    assert_int_equal(f.calls[r].n_held, 0);
    (void)sem_box_with(&f, SEMAPHORE_RENEW, 2, 0);
    /* It is still counted until its owner cannot believe in it any more. */
    assert_answer(&f, sem_box_acquire(&f, 1, 10, 1, 1, 0), HEDGE_EFENCED);
    sem_box_tick(&f, LEASE / 2 - 1);
    assert_pending(&f, w);
    sem_box_tick(&f, 1);
    sem_box_settle(&f);
    assert_answer(&f, w, 0);
    assert_answer(&f, sem_box_release(&f, 1, token), HEDGE_EFENCED);
    sem_box_done_with(&f);
}

static void grant_for_a_time_leaves_the_session(void **state)
{
    struct sem_box f;
    unsigned a, w, v;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_submit(&f, (struct semaphore_call){.op = SEMAPHORE_ACQUIRE,
                                                   .session = 1,
                                                   .request = 10,
                                                   .limit = 2,
                                                   .permits = 1,
                                                   .ttl_ms = 60000});
    assert_int_equal(f.rows[0].ttl_ms, 60000);
    sem_box_settle(&f);
    assert_answer(&f, a, 0);
    v = sem_box_acquire(&f, 1, 11, 2, 1, 0);
    sem_box_settle(&f);
    assert_answer(&f, v, 0);
    (void)sem_box_with(&f, SEMAPHORE_CLOSE, 1, 0);
    sem_box_settle(&f);
    w = sem_box_acquire(&f, 2, 20, 2, 2, 100000);
    sem_box_tick(&f, 10000);
    (void)sem_box_with(&f, SEMAPHORE_RENEW, 2, 0);
    sem_box_tick(&f, 14000);
    (void)sem_box_with(&f, SEMAPHORE_RENEW, 2, 0);
    assert_pending(&f, w);
    /* Nobody listens for it, so revoking it frees it at once. */
    v = sem_box_with(&f, SEMAPHORE_REVOKE, 0, f.calls[a].token);
    sem_box_settle(&f);
    assert_answer(&f, v, 0);
    assert_answer(&f, w, 0);
    sem_box_done_with(&f);
}

static void limits_are_compared_while_in_use(void **state)
{
    struct sem_box f;
    uint64_t token;
    unsigned a;

    (void)state;
    sem_box_fresh(&f);
    token = sem_box_take(&f, 1, 10, 3, 1);
    a = sem_box_acquire(&f, 2, 20, 4, 1, 0);
    assert_answer(&f, a, HEDGE_EINVAL);
    assert_non_null(strstr(f.calls[a].text, "limit of 3, not 4"));
    a = sem_box_submit(
        &f, (struct semaphore_call){.op = SEMAPHORE_CHECK, .limit = 4});
    assert_answer(&f, a, HEDGE_EINVAL);
    (void)sem_box_release(&f, 1, token);
    /* Forgotten as soon as nobody has it, also before that is on disk. */
    a = sem_box_acquire(&f, 2, 20, 4, 1, 0);
    sem_box_settle(&f);
    assert_answer(&f, a, 0);
    assert_answer(&f, sem_box_acquire(&f, 2, 21, 4, 5, 0), HEDGE_EINVAL);
    assert_answer(&f, sem_box_acquire(&f, 2, 21, 4, 0, 0), HEDGE_EINVAL);
    assert_answer(&f, sem_box_acquire(&f, 2, 0, 4, 1, 0), HEDGE_EINVAL);
    assert_answer(&f, sem_box_acquire(&f, 0, 21, 4, 1, 0), HEDGE_EINVAL);
    a = sem_box_submit(&f, (struct semaphore_call){.op = SEMAPHORE_OPEN,
                                                   .session = 2,
                                                   .lease_ms = 5000});
    assert_answer(&f, a, HEDGE_EINVAL);
    a = sem_box_submit(&f, (struct semaphore_call){.op = SEMAPHORE_OPEN,
                                                   .session = 9,
                                                   .lease_ms = 999});
    assert_answer(&f, a, HEDGE_EINVAL);
    sem_box_done_with(&f);
}

static void another_leader_reads_what_is_held(void **state)
{
    struct sem_box f;
    struct semaphore_row rows[2];
    uint64_t a, b;
    unsigned w, r;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_acquire(&f, 1, 10, 3, 2, 0);
    rows[0] = f.rows[0];
    sem_box_settle(&f);
    (void)sem_box_acquire(&f, 2, 20, 3, 1, 0);
    rows[1] = f.rows[0];
    sem_box_settle(&f);
    a = rows[0].token = f.calls[0].token;
    b = rows[1].token = f.calls[1].token;
    w = sem_box_acquire(&f, 3, 30, 3, 1, 100000);
    sem_box_tick(&f, LEASE - 1);
    sem_box_step(&f, (struct semaphore_event){.type = SEMAPHORE_LOST});
    assert_answer(&f, w, HEDGE_ENOTLEADER);
    r = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, HEDGE_ENOTLEADER);
    sem_box_lead(&f, rows, 2);
    sem_box_tick(&f, LEASE - 1); /* A whole lease of its own. */
    r = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, 0);
    assert_int_equal(f.calls[r].held[0].token, a);
    assert_answer(&f, sem_box_acquire(&f, 4, 40, 3, 1, 0), HEDGE_EBUSY);
    r = sem_box_release(&f, 2, b);
    sem_box_settle(&f);
    assert_answer(&f, r, 0);
    sem_box_done_with(&f);
}

static void waiters_come_back_to_their_places(void **state)
{
    struct sem_box f;
    struct semaphore_call call = {
        .op = SEMAPHORE_ACQUIRE, .limit = 1, .permits = 1, .wait_ms = 100000};
    unsigned first, second, third, new, try;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 1, 1);
    first = sem_box_acquire(&f, 2, 20, 1, 1, 100000);
    second = sem_box_acquire(&f, 3, 30, 1, 1, 100000);
    sem_box_step(&f, (struct semaphore_event){.type = SEMAPHORE_LOST});
    f.term++;
    sem_box_lead(&f, NULL, 0); /* The holder has gone meanwhile. */
    new = sem_box_acquire(&f, 5, 50, 1, 1, 100000);
    try = sem_box_acquire(&f, 6, 60, 1, 1, 0);
    call.session = 3;
    call.request = 30;
    call.order_term = f.calls[second].order_term;
    call.order = f.calls[second].order;
    third = sem_box_submit(&f, call);
    call.session = 2;
    call.request = 20;
    call.order_term = f.calls[first].order_term;
    call.order = f.calls[first].order;
    first = sem_box_submit(&f, call);
    assert_int_equal(f.append_id, 0); /* All have a moment to come back. */
    assert_pending(&f, try);
    sem_box_tick(&f, REQUEUE);
    sem_box_settle(&f);
    assert_answer(&f, first, 0);
    assert_answer(&f, try, HEDGE_EBUSY);
    assert_pending(&f, third);
    (void)sem_box_release(&f, 2, f.calls[first].token);
    sem_box_settle(&f);
    assert_answer(&f, third, 0);
    assert_pending(&f, new);
    sem_box_done_with(&f);
}

static void failed_append_reads_all_again(void **state)
{
    struct sem_box f;
    struct semaphore_row row;
    unsigned a, early;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    row = f.rows[0];
    sem_box_appended(&f, HEDGE_ETIMEDOUT);
    assert_answer(&f, a, HEDGE_ENOTLEADER); /* To be asked again. */
    early = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_pending(&f, early);
    f.now = f.out.wake_ms;
    sem_box_tick(&f, 0);
    assert_int_not_equal(f.out.load_id, 0);
    row.token = 77; /* It has happened. */
    sem_box_step(&f, (struct semaphore_event){.type = SEMAPHORE_LOADED,
                                              .id = f.out.load_id,
                                              .rows = &row,
                                              .n_rows = 1});
    assert_answer(&f, early, 0);
    assert_int_equal(f.calls[early].held[0].token, 77);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    assert_answer(&f, a, 0);
    assert_int_equal(f.calls[a].token, 77);
    sem_box_done_with(&f);
}

/* What is on disk cannot be read: that is not as if nobody held anything. */
static void what_cannot_be_read_is_not_free(void **state)
{
    struct semaphore_row row;
    struct sem_box f;
    uint64_t load;
    unsigned a;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    row = f.rows[0];
    sem_box_settle(&f);
    row.token = f.calls[a].token;
    sem_box_step(&f, (struct semaphore_event){.type = SEMAPHORE_LOST});
    sem_box_step(
        &f, (struct semaphore_event){.type = SEMAPHORE_LEAD, .term = ++f.term});
    load = f.out.load_id;
    a = sem_box_acquire(&f, 2, 20, 1, 1, 100000);
    for (unsigned i = 0; i < 5; i++) {
        sem_box_step(&f,
                     (struct semaphore_event){
                         .type = SEMAPHORE_LOADED,
                         .id = load,
                         .status = i % 2 == 0 ? HEDGE_EIO : HEDGE_ECORRUPT});
        assert_int_equal(f.append_id, 0);
        assert_false(f.done[a] && f.calls[a].status == 0);
        f.now = f.out.wake_ms;
        sem_box_tick(&f, 0);
        load = f.out.load_id;
        assert_int_not_equal(load, 0);
    }
    sem_box_step(&f, (struct semaphore_event){.type = SEMAPHORE_LOADED,
                                              .id = load,
                                              .rows = &row,
                                              .n_rows = 1});
    sem_box_tick(&f, REQUEUE);
    assert_answer(&f, sem_box_acquire(&f, 3, 30, 1, 1, 0), HEDGE_EBUSY);
    assert_int_equal(f.append_id, 0);
    sem_box_done_with(&f);
}

/* A release that is not on disk has not happened: it is told, and what it
 * would have freed is not given away. */
static void failed_release_is_told(void **state)
{
    struct semaphore_row row;
    struct sem_box f;
    unsigned a, r, w;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    row = f.rows[0];
    sem_box_settle(&f);
    row.token = f.calls[a].token;
    w = sem_box_acquire(&f, 2, 20, 1, 1, 100000);
    r = sem_box_release(&f, 1, row.token);
    sem_box_appended(&f, HEDGE_EIO);
    assert_answer(&f, r, HEDGE_ENOTLEADER); /* To be asked again. */
    assert_false(f.done[w] && f.calls[w].status == 0);
    f.now = f.out.wake_ms;
    sem_box_tick(&f, 0);
    sem_box_step(&f, (struct semaphore_event){.type = SEMAPHORE_LOADED,
                                              .id = f.out.load_id,
                                              .rows = &row,
                                              .n_rows = 1});
    sem_box_tick(&f, REQUEUE);
    assert_answer(&f, sem_box_acquire(&f, 3, 30, 1, 1, 0), HEDGE_EBUSY);
    r = sem_box_release(&f, 1, row.token);
    sem_box_settle(&f);
    assert_answer(&f, r, 0);
    (void)sem_box_take(&f, 3, 31, 1, 1);
    sem_box_done_with(&f);
}

static void fenced_append_grants_nothing(void **state)
{
    struct sem_box f;
    unsigned a, r;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    f.deposed = true;
    sem_box_appended(&f, HEDGE_EFENCED);
    assert_answer(&f, a, HEDGE_ENOTLEADER);
    r = sem_box_acquire(&f, 2, 20, 1, 1, 1000);
    assert_answer(&f, r, HEDGE_ENOTLEADER);
    assert_int_equal(f.out.load_id, 0);
    sem_box_done_with(&f);
}

static void fenced_while_it_leads_reads_all_again(void **state)
{
    struct sem_box f;
    unsigned a;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    sem_box_appended(&f, HEDGE_EFENCED);
    assert_answer(&f, a, HEDGE_ENOTLEADER);
    for (unsigned i = 0; i < 3; i++) {
        f.now = f.out.wake_ms;
        sem_box_tick(&f, 0);
        assert_int_not_equal(f.out.load_id, 0);
        sem_box_step(
            &f, (struct semaphore_event){.type = SEMAPHORE_LOADED,
                                         .id = f.out.load_id,
                                         .status = i < 2 ? HEDGE_EFENCED : 0});
    }
    sem_box_tick(&f, REQUEUE);
    (void)sem_box_take(&f, 1, 10, 1, 1);
    sem_box_done_with(&f);
}

static void leader_whose_lease_is_over_promises_nothing(void **state)
{
    struct sem_box f;
    struct semaphore_event ev = {.type = SEMAPHORE_CALL};

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 1, 1);
    f.calls[f.n].op = SEMAPHORE_RENEW;
    f.calls[f.n].session = 1;
    ev.call = &f.calls[f.n++];
    semaphores_step(f.s, &ev, f.now, &f.out);
    sem_box_take_actions(&f);
    assert_answer(&f, f.n - 1, HEDGE_ENOTLEADER);
    sem_box_done_with(&f);
}

static void results_of_an_older_leadership_are_ignored(void **state)
{
    struct sem_box f;
    uint64_t id, revision = 5;
    unsigned a;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    id = f.append_id;
    sem_box_lead(&f, NULL, 0);
    sem_box_tick(&f, REQUEUE);
    a = sem_box_acquire(&f, 2, 20, 1, 1, 1000);
    sem_box_step(&f, (struct semaphore_event){.type = SEMAPHORE_APPENDED,
                                              .id = id,
                                              .revisions = &revision});
    assert_pending(&f, a);
    sem_box_settle(&f);
    assert_answer(&f, a, 0);
    sem_box_done_with(&f);
}

static void call_can_be_taken_back(void **state)
{
    struct sem_box f;
    unsigned a;

    (void)state;
    sem_box_fresh(&f);
    a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
    list_remove(&f.calls[a].link); /* Its asker has gone. */
    sem_box_settle(&f);
    assert_pending(&f, a);
    assert_int_equal(f.n_rows, 1);
    sem_box_done_with(&f);
}

/* The oldest of them may be of a caller that has long gone. */
static void one_session_has_so_many_watches(void **state)
{
    struct sem_box f;
    unsigned r, w[SEMAPHORE_CALLS_EACH + 2];

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 1, 1);
    r = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
    for (unsigned i = 0; i < SEMAPHORE_CALLS_EACH + 2; i++) {
        w[i] = sem_box_submit(&f, (struct semaphore_call){.op = SEMAPHORE_WATCH,
                                                          .session = 1,
                                                          .term = f.term,
                                                          .at = f.calls[r].at,
                                                          .wait_ms = 1000});
    }
    assert_answer(&f, w[0], HEDGE_EEXHAUSTED);
    assert_answer(&f, w[1], HEDGE_EEXHAUSTED);
    for (unsigned i = 2; i < SEMAPHORE_CALLS_EACH + 2; i++) {
        assert_pending(&f, w[i]);
    }
    sem_box_done_with(&f);
}

static void one_claim_has_so_many_calls(void **state)
{
    struct sem_box f;
    unsigned first, next, last = 0;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 1, 1);
    first = sem_box_acquire(&f, 2, 20, 1, 1, 5000);
    next = sem_box_acquire(&f, 2, 20, 1, 1, 5000);
    for (unsigned i = 1; i < SEMAPHORE_CALLS_EACH; i++) {
        last = sem_box_acquire(&f, 2, 20, 1, 1, 5000);
    }
    assert_answer(&f, first, HEDGE_EEXHAUSTED);
    assert_pending(&f, next);
    /* Nobody has lost a place: it was one all along. */
    (void)sem_box_with(&f, SEMAPHORE_CLOSE, 1, 0);
    sem_box_settle(&f);
    sem_box_settle(&f);
    assert_answer(&f, next, 0);
    assert_answer(&f, last, 0);
    sem_box_done_with(&f);
}

static void list_names_holders_and_waiters(void **state)
{
    struct sem_box f;
    const struct hedge_semaphore_info *i;
    unsigned r;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 3, 2);
    (void)sem_box_acquire(&f, 2, 20, 3, 2, 1000);
    sem_box_tick(&f, 100);
    r = sem_box_submit(
        &f, (struct semaphore_call){.op = SEMAPHORE_LIST, .name = "x"});
    assert_answer(&f, r, 0);
    assert_int_equal(f.calls[r].list->n, 1);
    i = &f.calls[r].list->semaphore[0];
    assert_int_equal(i->limit, 3);
    assert_int_equal(i->n_holders, 1);
    assert_int_equal(i->n_waiters, 1);
    assert_int_equal(i->holders[0].permits, 2);
    assert_int_equal(i->holders[0].remaining_ms, LEASE - 100);
    assert_int_equal(i->waiters[0].token, 0);
    r = sem_box_submit(
        &f, (struct semaphore_call){.op = SEMAPHORE_LIST, .name = "y"});
    assert_int_equal(f.calls[r].list->n, 0);
    sem_box_done_with(&f);
}

/* Each allocation fails in turn; whatever was refused can be asked again, and
 * nobody is granted more than there is. */
static void without_memory(void **state)
{
    (void)state;
    for (long n = 0; n < 12; n++) {
        struct sem_box f;
        unsigned a, b, r;

        sem_box_fresh(&f);
        mem_fail_after(n);
        a = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
        b = sem_box_acquire(&f, 2, 20, 1, 1, 1000);
        r = sem_box_with(&f, SEMAPHORE_RENEW, 1, 0);
        mem_fail_after(-1);
        sem_box_tick(&f, 100);
        sem_box_settle(&f);
        if (f.done[a] && f.calls[a].status == 0) {
            assert_false(f.done[b] && f.calls[b].status == 0);
        }
        assert_true(f.done[r]);
        b = sem_box_acquire(&f, 1, 10, 1, 1, 0);
        sem_box_settle(&f);
        assert_true(f.done[b]);
        sem_box_done_with(&f);
    }
}

/* --- what a holder may believe ----------------------------------------------
 */

static void view_counts_from_the_start(void **state)
{
    struct sem_view v = {0};
    uint64_t margin = sem_view_margin_ms(16000);

    (void)state;
    assert_int_equal(sem_view_granted(&v, 1, 5), 0);
    assert_true(sem_view_renewed(&v, 1000, 16000, 1, 3));
    assert_int_equal(v.until_ms, 17000 - margin);
    assert_int_equal(sem_view_granted(&v, 1, 5), 17000 - margin);
    /* It was granted before what is known already: the next list tells. */
    assert_int_equal(sem_view_granted(&v, 1, 2), 0);
    assert_false(sem_view_renewed(&v, 9000, 16000, 1, 3));
    /* A renewal from before the grant that is heard of after it: it does not
     * list it, and says nothing about it but that the session goes on. */
    assert_true(sem_view_renewed(&v, 2000, 16000, 1, 4));
    assert_int_equal(sem_view_granted(&v, 1, 5), 18000 - margin);
    assert_true(sem_view_renewed(&v, 2100, 16000, 1, 6));
    assert_int_equal(sem_view_granted(&v, 1, 5), 0);
    assert_true(sem_view_renewed(&v, 500, 16000, 2, 1));
    assert_int_equal(v.until_ms, 18100 - margin);
    assert_int_equal(sem_view_granted(&v, 1, 9), 0);
    assert_true(sem_view_renew_ms(16000) * 4 < 16000 - margin);
}

/* --- rows -------------------------------------------------------------------
 */

static void row_comes_back_as_it_was(void **state)
{
    struct semaphore_row row = {.name = "Grüße",
                                .holder = "a:1",
                                .session = 0x0123456789abcdefu,
                                .request = 7,
                                .lease_ms = 15000,
                                .ttl_ms = 2000,
                                .limit = SEMAPHORE_LIMIT_MAX,
                                .permits = 3,
                                .revoked = true};
    struct semaphore_row out;
    struct engine_put put;

    (void)state;
    assert_int_equal(lock_row_put(&row, &put), 0);
    assert_int_equal(put.flags, ENGINE_REPLACE);
    assert_int_equal(lock_row_parse(put.key, put.key_len, put.value,
                                    put.value_len, 99, &out),
                     0);
    row.token = 99;
    assert_memory_equal(&out, &row, sizeof row);
    for (size_t n = 0; n < put.key_len; n++) {
        assert_int_equal(
            lock_row_parse(put.key, n, put.value, put.value_len, 99, &out),
            HEDGE_ECORRUPT);
    }
    assert_int_equal(lock_row_parse(put.key, put.key_len, "\xff", 1, 9, &out),
                     HEDGE_ECORRUPT);
    assert_int_equal(lock_row_parse(put.key, put.key_len, "", 0, 9, &out),
                     HEDGE_ECORRUPT);
    lock_row_release(&put);
    row.deleted = true;
    memset(row.name, 'n', 255);
    assert_int_equal(lock_row_put(&row, &put), 0);
    assert_int_equal(put.flags, ENGINE_DELETE);
    assert_true(put.key_len <= HEDGE_KEY_MAX);
    lock_row_release(&put);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(granted_when_it_is_on_disk),
        cmocka_unit_test(many_grants_are_one_append),
        cmocka_unit_test(release_and_next_grant_are_one_append),
        cmocka_unit_test(first_come_first_served),
        cmocka_unit_test(who_gives_up_lets_the_next_one_pass),
        cmocka_unit_test(session_ends_with_its_lease),
        cmocka_unit_test(renewal_tells_what_is_held),
        cmocka_unit_test(same_request_again),
        cmocka_unit_test(cancel_is_for_its_own_attempt),
        cmocka_unit_test(cancel_while_it_is_being_written),
        cmocka_unit_test(revoked_grant_ends_with_the_lease_it_had),
        cmocka_unit_test(grant_for_a_time_leaves_the_session),
        cmocka_unit_test(limits_are_compared_while_in_use),
        cmocka_unit_test(another_leader_reads_what_is_held),
        cmocka_unit_test(waiters_come_back_to_their_places),
        cmocka_unit_test(failed_append_reads_all_again),
        cmocka_unit_test(what_cannot_be_read_is_not_free),
        cmocka_unit_test(failed_release_is_told),
        cmocka_unit_test(fenced_append_grants_nothing),
        cmocka_unit_test(fenced_while_it_leads_reads_all_again),
        cmocka_unit_test(leader_whose_lease_is_over_promises_nothing),
        cmocka_unit_test(results_of_an_older_leadership_are_ignored),
        cmocka_unit_test(call_can_be_taken_back),
        cmocka_unit_test(one_session_has_so_many_watches),
        cmocka_unit_test(one_claim_has_so_many_calls),
        cmocka_unit_test(list_names_holders_and_waiters),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(view_counts_from_the_start),
        cmocka_unit_test(row_comes_back_as_it_was),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
