#include "cluster/locks/lock_rows.h"
#include "cluster/locks/sem_view.h"
#include "cluster/locks/semaphore.h"
#include "store/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#define LEASE 15000u
#define REQUEUE 500u
#define CALLS 64

struct fixture {
    struct semaphores *s;
    struct semaphore_actions out;
    uint64_t now, term, revision;
    struct semaphore_call calls[CALLS];
    bool done[CALLS];
    unsigned n;
    bool deposed;
    uint64_t append_id;
    size_t n_rows;
    struct semaphore_row rows[64];
};

static void take_actions(struct fixture *f)
{
    struct list *l;

    while ((l = list_pop(&f->out.answers)) != NULL) {
        struct semaphore_call *c = container_of(l, struct semaphore_call, link);
        assert_false(f->done[c - f->calls]);
        f->done[c - f->calls] = true;
    }
    if (f->out.append_id != 0) {
        assert_int_equal(f->append_id, 0); /* One at a time. */
        f->append_id = f->out.append_id;
        f->n_rows = f->out.n_rows;
        assert_in_range(f->n_rows, 1, 64);
        memcpy(f->rows, f->out.rows, f->n_rows * sizeof f->rows[0]);
        mem_free(f->out.rows);
    }
    assert_null(semaphores_check(f->s, f->now));
}

static void step(struct fixture *f, struct semaphore_event ev)
{
    ev.leads = !f->deposed;
    semaphores_step(f->s, &ev, f->now, &f->out);
    take_actions(f);
}

static void tick(struct fixture *f, uint64_t ms)
{
    f->now += ms;
    step(f, (struct semaphore_event){.type = SEMAPHORE_TICK});
}

static void lead(struct fixture *f, const struct semaphore_row *rows, size_t n)
{
    step(f,
         (struct semaphore_event){.type = SEMAPHORE_LEAD, .term = ++f->term});
    assert_int_not_equal(f->out.load_id, 0);
    f->append_id = 0;
    step(f, (struct semaphore_event){.type = SEMAPHORE_LOADED,
                                     .id = f->out.load_id,
                                     .rows = rows,
                                     .n_rows = n});
}

static void fresh(struct fixture *f)
{
    const struct semaphore_options o = {.requeue_ms = REQUEUE};

    memset(f, 0, sizeof *f);
    f->now = 100000;
    assert_int_equal(semaphores_new(&o, &f->s), 0);
    lead(f, NULL, 0);
    tick(f, REQUEUE);
}

static void done_with(struct fixture *f)
{
    for (unsigned i = 0; i < f->n; i++) {
        mem_free(f->calls[i].held);
        mem_free(f->calls[i].list);
    }
    semaphores_free(f->s);
}

static void appended(struct fixture *f, int status)
{
    uint64_t revisions[64], id = f->append_id;

    assert_int_not_equal(id, 0);
    f->append_id = 0;
    for (size_t i = 0; i < f->n_rows; i++) {
        revisions[i] = ++f->revision;
    }
    step(f, (struct semaphore_event){.type = SEMAPHORE_APPENDED,
                                     .id = id,
                                     .status = status,
                                     .revisions = revisions});
}

/* Until all is on disk. */
static void settle(struct fixture *f)
{
    while (f->append_id != 0) {
        appended(f, 0);
    }
}

static unsigned submit(struct fixture *f, struct semaphore_call c)
{
    unsigned i = f->n++;

    assert_in_range(i, 0, CALLS - 1);
    c.lease_ms = c.lease_ms != 0 ? c.lease_ms : LEASE;
    if (c.name[0] == '\0') {
        memcpy(c.name, "x", 2);
    }
    f->calls[i] = c;
    step(f, (struct semaphore_event){.type = SEMAPHORE_CALL,
                                     .call = &f->calls[i]});
    return i;
}

static unsigned acquire(struct fixture *f, uint64_t session, uint64_t request,
                        uint32_t limit, uint32_t permits, uint64_t wait)
{
    return submit(f, (struct semaphore_call){.op = SEMAPHORE_ACQUIRE,
                                             .session = session,
                                             .request = request,
                                             .attempt = 1,
                                             .limit = limit,
                                             .permits = permits,
                                             .wait_ms = wait});
}

/* Granted, and on disk. */
static uint64_t take(struct fixture *f, uint64_t session, uint64_t request,
                     uint32_t limit, uint32_t permits)
{
    unsigned i = acquire(f, session, request, limit, permits, 1000);

    settle(f);
    assert_true(f->done[i]);
    assert_int_equal(f->calls[i].status, 0);
    assert_int_not_equal(f->calls[i].token, 0);
    return f->calls[i].token;
}

static unsigned release(struct fixture *f, uint64_t session, uint64_t token)
{
    return submit(f, (struct semaphore_call){.op = SEMAPHORE_RELEASE,
                                             .session = session,
                                             .token = token});
}

static unsigned with(struct fixture *f, enum semaphore_op op, uint64_t session,
                     uint64_t token)
{
    return submit(f, (struct semaphore_call){
                         .op = op, .session = session, .token = token});
}

#define assert_pending(f, i) assert_false((f)->done[i])
static void assert_answer(const struct fixture *f, unsigned i, int status)
{
    assert_true(f->done[i]);
    assert_int_equal(f->calls[i].status, status);
}

/* --- tests ------------------------------------------------------------------
 */

static void granted_when_it_is_on_disk(void **state)
{
    struct fixture f;
    unsigned a;

    (void)state;
    fresh(&f);
    a = acquire(&f, 1, 10, 2, 1, 1000);
    assert_pending(&f, a);
    assert_int_equal(f.n_rows, 1);
    assert_int_equal(f.rows[0].session, 1);
    assert_int_equal(f.rows[0].limit, 2);
    assert_false(f.rows[0].deleted);
    appended(&f, 0);
    assert_answer(&f, a, 0);
    assert_int_equal(f.calls[a].token, f.revision);
    done_with(&f);
}

static void many_grants_are_one_append(void **state)
{
    struct fixture f;
    unsigned a[6];

    (void)state;
    fresh(&f);
    for (unsigned i = 0; i < 6; i++) {
        a[i] = acquire(&f, 1 + i, 10, 10, 1, 1000);
    }
    assert_int_equal(f.n_rows, 1); /* The first did not wait for others. */
    appended(&f, 0);
    assert_int_equal(f.n_rows, 5);
    assert_answer(&f, a[0], 0);
    assert_pending(&f, a[5]);
    appended(&f, 0);
    assert_answer(&f, a[5], 0);
    done_with(&f);
}

static void release_and_next_grant_are_one_append(void **state)
{
    struct fixture f;
    uint64_t token;
    unsigned w, r;

    (void)state;
    fresh(&f);
    token = take(&f, 1, 10, 1, 1);
    w = acquire(&f, 2, 10, 1, 1, 1000);
    assert_true(f.calls[w].queued);
    r = release(&f, 1, token);
    assert_pending(&f, r);
    assert_int_equal(f.n_rows, 2);
    assert_true(f.rows[0].deleted);
    assert_false(f.rows[1].deleted);
    appended(&f, 0);
    assert_answer(&f, r, 0);
    assert_answer(&f, w, 0);
    assert_true(f.calls[w].token > token);
    done_with(&f);
}

static void first_come_first_served(void **state)
{
    struct fixture f;
    uint64_t token;
    unsigned big, small, try;

    (void)state;
    fresh(&f);
    token = take(&f, 1, 10, 3, 2);
    big = acquire(&f, 2, 10, 3, 3, 1000);
    small = acquire(&f, 3, 10, 3, 1, 1000);
    try = acquire(&f, 4, 10, 3, 1, 0);
    assert_pending(&f, big);
    assert_pending(&f, small); /* One is free, and not its turn. */
    assert_answer(&f, try, HEDGE_EBUSY);
    (void)release(&f, 1, token);
    settle(&f);
    assert_answer(&f, big, 0);
    assert_pending(&f, small);
    tick(&f, 1000);
    assert_answer(&f, small, HEDGE_ETIMEDOUT);
    done_with(&f);
}

static void who_gives_up_lets_the_next_one_pass(void **state)
{
    struct fixture f;
    unsigned big, small;

    (void)state;
    fresh(&f);
    (void)take(&f, 1, 10, 3, 2);
    big = acquire(&f, 2, 10, 3, 3, 1000);
    small = acquire(&f, 3, 10, 3, 1, 5000);
    tick(&f, 1000);
    settle(&f);
    assert_answer(&f, big, HEDGE_ETIMEDOUT);
    assert_answer(&f, small, 0);
    done_with(&f);
}

static void session_ends_with_its_lease(void **state)
{
    struct fixture f;
    unsigned w, r;

    (void)state;
    fresh(&f);
    (void)take(&f, 1, 10, 1, 1);
    tick(&f, LEASE - 1);
    w = acquire(&f, 2, 10, 1, 1, 1000);
    assert_pending(&f, w);
    tick(&f, 1);
    settle(&f);
    assert_answer(&f, w, 0);
    r = with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, HEDGE_ENOTFOUND);
    done_with(&f);
}

static void renewal_tells_what_is_held(void **state)
{
    struct fixture f;
    uint64_t a, b;
    unsigned r;

    (void)state;
    fresh(&f);
    a = take(&f, 1, 10, 5, 1);
    b = take(&f, 1, 11, 5, 1);
    (void)acquire(&f, 1, 12, 5, 1, 1000); /* Not on disk yet. */
    tick(&f, LEASE - 1);
    r = with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, 0);
    assert_int_equal(f.calls[r].n_held, 2);
    assert_int_equal(f.calls[r].held[0].token, a);
    assert_int_equal(f.calls[r].held[1].token, b);
    assert_int_equal(f.calls[r].held[1].request, 11);
    assert_int_equal(f.calls[r].lease_ms, LEASE);
    tick(&f, LEASE - 1);
    assert_answer(&f, with(&f, SEMAPHORE_RENEW, 1, 0), 0);
    settle(&f);
    done_with(&f);
}

static void same_request_again(void **state)
{
    struct fixture f;
    uint64_t token;
    unsigned a, b, c;

    (void)state;
    fresh(&f);
    token = take(&f, 1, 10, 1, 1);
    a = acquire(&f, 1, 10, 1, 1, 1000);
    assert_answer(&f, a, 0);
    assert_int_equal(f.calls[a].token, token);
    b = acquire(&f, 2, 20, 1, 1, 1000);
    c = acquire(&f, 2, 20, 1, 1, 1000);
    assert_int_equal(f.calls[b].order, f.calls[c].order);
    (void)release(&f, 1, token);
    settle(&f);
    assert_answer(&f, b, 0);
    assert_answer(&f, c, 0);
    assert_int_equal(f.calls[b].token, f.calls[c].token);
    a = acquire(&f, 2, 20, 1, 0, 1000);
    assert_answer(&f, a, HEDGE_EINVAL);
    done_with(&f);
}

static unsigned cancel(struct fixture *f, uint64_t session, uint64_t request,
                       uint32_t attempt)
{
    return submit(f, (struct semaphore_call){.op = SEMAPHORE_CANCEL,
                                             .session = session,
                                             .request = request,
                                             .attempt = attempt});
}

static void cancel_is_for_its_own_attempt(void **state)
{
    struct fixture f;
    unsigned a, b, again;

    (void)state;
    fresh(&f);
    (void)take(&f, 1, 10, 1, 1);
    a = acquire(&f, 2, 20, 1, 1, 100000);
    again = submit(&f, (struct semaphore_call){.op = SEMAPHORE_ACQUIRE,
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
    settle(&f);
    assert_answer(&f, b, 0);
    (void)take(&f, 3, 30, 1, 1);
    done_with(&f);
}

static void cancel_while_it_is_being_written(void **state)
{
    struct fixture f;
    unsigned a, c;

    (void)state;
    fresh(&f);
    a = acquire(&f, 1, 10, 1, 1, 1000);
    c = cancel(&f, 1, 10, 1);
    assert_answer(&f, a, HEDGE_ECANCELED);
    assert_pending(&f, c);
    /* The same one once more: its row is to come after the deletion. */
    a = acquire(&f, 1, 10, 1, 1, 1000);
    appended(&f, 0);
    assert_int_equal(f.n_rows, 2);
    assert_true(f.rows[0].deleted);
    assert_false(f.rows[1].deleted);
    appended(&f, 0);
    assert_answer(&f, c, 0);
    assert_answer(&f, a, 0);
    done_with(&f);
}

static void revoked_grant_ends_with_the_lease_it_had(void **state)
{
    struct fixture f;
    uint64_t token;
    unsigned w, v, r, k;

    (void)state;
    fresh(&f);
    token = take(&f, 1, 10, 1, 1);
    r = with(&f, SEMAPHORE_RENEW, 1, 0);
    k = submit(&f, (struct semaphore_call){.op = SEMAPHORE_WATCH,
                                           .session = 1,
                                           .term = f.calls[r].term,
                                           .at = f.calls[r].at,
                                           .wait_ms = 60000});
    w = acquire(&f, 2, 20, 1, 1, 60000);
    v = with(&f, SEMAPHORE_REVOKE, 0, token);
    assert_answer(&f, k, 0);
    assert_pending(&f, v);
    assert_true(f.rows[0].revoked);
    assert_int_equal(f.rows[0].token, token);
    settle(&f);
    assert_answer(&f, v, 0);
    tick(&f, LEASE / 2);
    r = with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, 0);
    assert_int_equal(f.calls[r].n_held, 0);
    (void)with(&f, SEMAPHORE_RENEW, 2, 0);
    /* It is still counted until its owner cannot believe in it any more. */
    assert_answer(&f, acquire(&f, 1, 10, 1, 1, 0), HEDGE_EFENCED);
    tick(&f, LEASE / 2 - 1);
    assert_pending(&f, w);
    tick(&f, 1);
    settle(&f);
    assert_answer(&f, w, 0);
    assert_answer(&f, release(&f, 1, token), HEDGE_EFENCED);
    done_with(&f);
}

static void grant_for_a_time_leaves_the_session(void **state)
{
    struct fixture f;
    unsigned a, w, v;

    (void)state;
    fresh(&f);
    a = submit(&f, (struct semaphore_call){.op = SEMAPHORE_ACQUIRE,
                                           .session = 1,
                                           .request = 10,
                                           .limit = 2,
                                           .permits = 1,
                                           .ttl_ms = 60000});
    assert_int_equal(f.rows[0].ttl_ms, 60000);
    settle(&f);
    assert_answer(&f, a, 0);
    v = acquire(&f, 1, 11, 2, 1, 0);
    settle(&f);
    assert_answer(&f, v, 0);
    (void)with(&f, SEMAPHORE_CLOSE, 1, 0);
    settle(&f);
    w = acquire(&f, 2, 20, 2, 2, 100000);
    tick(&f, 10000);
    (void)with(&f, SEMAPHORE_RENEW, 2, 0);
    tick(&f, 14000);
    (void)with(&f, SEMAPHORE_RENEW, 2, 0);
    assert_pending(&f, w);
    /* Nobody listens for it, so revoking it frees it at once. */
    v = with(&f, SEMAPHORE_REVOKE, 0, f.calls[a].token);
    settle(&f);
    assert_answer(&f, v, 0);
    assert_answer(&f, w, 0);
    done_with(&f);
}

static void limits_are_compared_while_in_use(void **state)
{
    struct fixture f;
    uint64_t token;
    unsigned a;

    (void)state;
    fresh(&f);
    token = take(&f, 1, 10, 3, 1);
    a = acquire(&f, 2, 20, 4, 1, 0);
    assert_answer(&f, a, HEDGE_EINVAL);
    assert_non_null(strstr(f.calls[a].text, "limit of 3, not 4"));
    a = submit(&f, (struct semaphore_call){.op = SEMAPHORE_CHECK, .limit = 4});
    assert_answer(&f, a, HEDGE_EINVAL);
    (void)release(&f, 1, token);
    /* Forgotten as soon as nobody has it, also before that is on disk. */
    a = acquire(&f, 2, 20, 4, 1, 0);
    settle(&f);
    assert_answer(&f, a, 0);
    assert_answer(&f, acquire(&f, 2, 21, 4, 5, 0), HEDGE_EINVAL);
    assert_answer(&f, acquire(&f, 2, 21, 4, 0, 0), HEDGE_EINVAL);
    assert_answer(&f, acquire(&f, 2, 0, 4, 1, 0), HEDGE_EINVAL);
    assert_answer(&f, acquire(&f, 0, 21, 4, 1, 0), HEDGE_EINVAL);
    a = submit(&f, (struct semaphore_call){
                       .op = SEMAPHORE_OPEN, .session = 2, .lease_ms = 5000});
    assert_answer(&f, a, HEDGE_EINVAL);
    a = submit(&f, (struct semaphore_call){
                       .op = SEMAPHORE_OPEN, .session = 9, .lease_ms = 999});
    assert_answer(&f, a, HEDGE_EINVAL);
    done_with(&f);
}

static void another_leader_reads_what_is_held(void **state)
{
    struct fixture f;
    struct semaphore_row rows[2];
    uint64_t a, b;
    unsigned w, r;

    (void)state;
    fresh(&f);
    (void)acquire(&f, 1, 10, 3, 2, 0);
    rows[0] = f.rows[0];
    settle(&f);
    (void)acquire(&f, 2, 20, 3, 1, 0);
    rows[1] = f.rows[0];
    settle(&f);
    a = rows[0].token = f.calls[0].token;
    b = rows[1].token = f.calls[1].token;
    w = acquire(&f, 3, 30, 3, 1, 100000);
    tick(&f, LEASE - 1);
    step(&f, (struct semaphore_event){.type = SEMAPHORE_LOST});
    assert_answer(&f, w, HEDGE_ENOTLEADER);
    r = with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, HEDGE_ENOTLEADER);
    lead(&f, rows, 2);
    tick(&f, LEASE - 1); /* A whole lease of its own. */
    r = with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_answer(&f, r, 0);
    assert_int_equal(f.calls[r].held[0].token, a);
    assert_answer(&f, acquire(&f, 4, 40, 3, 1, 0), HEDGE_EBUSY);
    r = release(&f, 2, b);
    settle(&f);
    assert_answer(&f, r, 0);
    done_with(&f);
}

static void waiters_come_back_to_their_places(void **state)
{
    struct fixture f;
    struct semaphore_call call = {
        .op = SEMAPHORE_ACQUIRE, .limit = 1, .permits = 1, .wait_ms = 100000};
    unsigned first, second, third, new, try;

    (void)state;
    fresh(&f);
    (void)take(&f, 1, 10, 1, 1);
    first = acquire(&f, 2, 20, 1, 1, 100000);
    second = acquire(&f, 3, 30, 1, 1, 100000);
    step(&f, (struct semaphore_event){.type = SEMAPHORE_LOST});
    f.term++;
    lead(&f, NULL, 0); /* The holder has gone meanwhile. */
    new = acquire(&f, 5, 50, 1, 1, 100000);
    try = acquire(&f, 6, 60, 1, 1, 0);
    call.session = 3;
    call.request = 30;
    call.order_term = f.calls[second].order_term;
    call.order = f.calls[second].order;
    third = submit(&f, call);
    call.session = 2;
    call.request = 20;
    call.order_term = f.calls[first].order_term;
    call.order = f.calls[first].order;
    first = submit(&f, call);
    assert_int_equal(f.append_id, 0); /* All have a moment to come back. */
    assert_pending(&f, try);
    tick(&f, REQUEUE);
    settle(&f);
    assert_answer(&f, first, 0);
    assert_answer(&f, try, HEDGE_EBUSY);
    assert_pending(&f, third);
    (void)release(&f, 2, f.calls[first].token);
    settle(&f);
    assert_answer(&f, third, 0);
    assert_pending(&f, new);
    done_with(&f);
}

static void failed_append_reads_all_again(void **state)
{
    struct fixture f;
    struct semaphore_row row;
    unsigned a, early;

    (void)state;
    fresh(&f);
    a = acquire(&f, 1, 10, 1, 1, 1000);
    row = f.rows[0];
    appended(&f, HEDGE_ETIMEDOUT);
    assert_answer(&f, a, HEDGE_ENOTLEADER); /* To be asked again. */
    early = with(&f, SEMAPHORE_RENEW, 1, 0);
    assert_pending(&f, early);
    f.now = f.out.wake_ms;
    tick(&f, 0);
    assert_int_not_equal(f.out.load_id, 0);
    row.token = 77; /* It has happened. */
    step(&f, (struct semaphore_event){.type = SEMAPHORE_LOADED,
                                      .id = f.out.load_id,
                                      .rows = &row,
                                      .n_rows = 1});
    assert_answer(&f, early, 0);
    assert_int_equal(f.calls[early].held[0].token, 77);
    a = acquire(&f, 1, 10, 1, 1, 1000);
    assert_answer(&f, a, 0);
    assert_int_equal(f.calls[a].token, 77);
    done_with(&f);
}

static void fenced_append_grants_nothing(void **state)
{
    struct fixture f;
    unsigned a, r;

    (void)state;
    fresh(&f);
    a = acquire(&f, 1, 10, 1, 1, 1000);
    f.deposed = true;
    appended(&f, HEDGE_EFENCED);
    assert_answer(&f, a, HEDGE_ENOTLEADER);
    r = acquire(&f, 2, 20, 1, 1, 1000);
    assert_answer(&f, r, HEDGE_ENOTLEADER);
    assert_int_equal(f.out.load_id, 0);
    done_with(&f);
}

static void fenced_while_it_leads_reads_all_again(void **state)
{
    struct fixture f;
    unsigned a;

    (void)state;
    fresh(&f);
    a = acquire(&f, 1, 10, 1, 1, 1000);
    appended(&f, HEDGE_EFENCED);
    assert_answer(&f, a, HEDGE_ENOTLEADER);
    for (unsigned i = 0; i < 3; i++) {
        f.now = f.out.wake_ms;
        tick(&f, 0);
        assert_int_not_equal(f.out.load_id, 0);
        step(&f, (struct semaphore_event){.type = SEMAPHORE_LOADED,
                                          .id = f.out.load_id,
                                          .status = i < 2 ? HEDGE_EFENCED : 0});
    }
    tick(&f, REQUEUE);
    (void)take(&f, 1, 10, 1, 1);
    done_with(&f);
}

static void leader_whose_lease_is_over_promises_nothing(void **state)
{
    struct fixture f;
    struct semaphore_event ev = {.type = SEMAPHORE_CALL};

    (void)state;
    fresh(&f);
    (void)take(&f, 1, 10, 1, 1);
    f.calls[f.n].op = SEMAPHORE_RENEW;
    f.calls[f.n].session = 1;
    ev.call = &f.calls[f.n++];
    semaphores_step(f.s, &ev, f.now, &f.out);
    take_actions(&f);
    assert_answer(&f, f.n - 1, HEDGE_ENOTLEADER);
    done_with(&f);
}

static void results_of_an_older_leadership_are_ignored(void **state)
{
    struct fixture f;
    uint64_t id, revision = 5;
    unsigned a;

    (void)state;
    fresh(&f);
    (void)acquire(&f, 1, 10, 1, 1, 1000);
    id = f.append_id;
    lead(&f, NULL, 0);
    tick(&f, REQUEUE);
    a = acquire(&f, 2, 20, 1, 1, 1000);
    step(&f, (struct semaphore_event){
                 .type = SEMAPHORE_APPENDED, .id = id, .revisions = &revision});
    assert_pending(&f, a);
    settle(&f);
    assert_answer(&f, a, 0);
    done_with(&f);
}

static void call_can_be_taken_back(void **state)
{
    struct fixture f;
    unsigned a;

    (void)state;
    fresh(&f);
    a = acquire(&f, 1, 10, 1, 1, 1000);
    list_remove(&f.calls[a].link); /* Its asker has gone. */
    settle(&f);
    assert_pending(&f, a);
    assert_int_equal(f.n_rows, 1);
    done_with(&f);
}

/* The oldest of them may be of a caller that has long gone. */
static void one_session_has_so_many_watches(void **state)
{
    struct fixture f;
    unsigned r, w[SEMAPHORE_CALLS_EACH + 2];

    (void)state;
    fresh(&f);
    (void)take(&f, 1, 10, 1, 1);
    r = with(&f, SEMAPHORE_RENEW, 1, 0);
    for (unsigned i = 0; i < SEMAPHORE_CALLS_EACH + 2; i++) {
        w[i] = submit(&f, (struct semaphore_call){.op = SEMAPHORE_WATCH,
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
    done_with(&f);
}

static void one_claim_has_so_many_calls(void **state)
{
    struct fixture f;
    unsigned first, next, last = 0;

    (void)state;
    fresh(&f);
    (void)take(&f, 1, 10, 1, 1);
    first = acquire(&f, 2, 20, 1, 1, 5000);
    next = acquire(&f, 2, 20, 1, 1, 5000);
    for (unsigned i = 1; i < SEMAPHORE_CALLS_EACH; i++) {
        last = acquire(&f, 2, 20, 1, 1, 5000);
    }
    assert_answer(&f, first, HEDGE_EEXHAUSTED);
    assert_pending(&f, next);
    /* Nobody has lost a place: it was one all along. */
    (void)with(&f, SEMAPHORE_CLOSE, 1, 0);
    settle(&f);
    settle(&f);
    assert_answer(&f, next, 0);
    assert_answer(&f, last, 0);
    done_with(&f);
}

static void list_names_holders_and_waiters(void **state)
{
    struct fixture f;
    const struct hedge_semaphore_info *i;
    unsigned r;

    (void)state;
    fresh(&f);
    (void)take(&f, 1, 10, 3, 2);
    (void)acquire(&f, 2, 20, 3, 2, 1000);
    tick(&f, 100);
    r = submit(&f, (struct semaphore_call){.op = SEMAPHORE_LIST, .name = "x"});
    assert_answer(&f, r, 0);
    assert_int_equal(f.calls[r].list->n, 1);
    i = &f.calls[r].list->semaphore[0];
    assert_int_equal(i->limit, 3);
    assert_int_equal(i->n_holders, 1);
    assert_int_equal(i->n_waiters, 1);
    assert_int_equal(i->holders[0].permits, 2);
    assert_int_equal(i->holders[0].remaining_ms, LEASE - 100);
    assert_int_equal(i->waiters[0].token, 0);
    r = submit(&f, (struct semaphore_call){.op = SEMAPHORE_LIST, .name = "y"});
    assert_int_equal(f.calls[r].list->n, 0);
    done_with(&f);
}

/* Each allocation fails in turn; whatever was refused can be asked again, and
 * nobody is granted more than there is. */
static void without_memory(void **state)
{
    (void)state;
    for (long n = 0; n < 12; n++) {
        struct fixture f;
        unsigned a, b, r;

        fresh(&f);
        mem_fail_after(n);
        a = acquire(&f, 1, 10, 1, 1, 1000);
        b = acquire(&f, 2, 20, 1, 1, 1000);
        r = with(&f, SEMAPHORE_RENEW, 1, 0);
        mem_fail_after(-1);
        tick(&f, 100);
        settle(&f);
        if (f.done[a] && f.calls[a].status == 0) {
            assert_false(f.done[b] && f.calls[b].status == 0);
        }
        assert_true(f.done[r]);
        b = acquire(&f, 1, 10, 1, 1, 0);
        settle(&f);
        assert_true(f.done[b]);
        done_with(&f);
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
