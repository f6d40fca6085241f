#include "tests/lib/sem_box.h"

#include "store/base/mem.h"
#include "tests/lib/check.h"

#include <string.h>

void sem_box_take_actions(struct sem_box *f)
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

void sem_box_step(struct sem_box *f, struct semaphore_event ev)
{
    ev.leads = !f->deposed;
    semaphores_step(f->s, &ev, f->now, &f->out);
    sem_box_take_actions(f);
}

void sem_box_tick(struct sem_box *f, uint64_t ms)
{
    f->now += ms;
    sem_box_step(f, (struct semaphore_event){.type = SEMAPHORE_TICK});
}

void sem_box_lead(struct sem_box *f, const struct semaphore_row *rows, size_t n)
{
    sem_box_step(
        f, (struct semaphore_event){.type = SEMAPHORE_LEAD, .term = ++f->term});
    assert_int_not_equal(f->out.load_id, 0);
    f->append_id = 0;
    sem_box_step(f, (struct semaphore_event){.type = SEMAPHORE_LOADED,
                                             .id = f->out.load_id,
                                             .rows = rows,
                                             .n_rows = n});
}

void sem_box_fresh(struct sem_box *f)
{
    const struct semaphore_options o = {.requeue_ms = REQUEUE};

    memset(f, 0, sizeof *f);
    f->now = 100000;
    assert_int_equal(semaphores_new(&o, &f->s), 0);
    sem_box_lead(f, NULL, 0);
    sem_box_tick(f, REQUEUE);
}

void sem_box_done_with(struct sem_box *f)
{
    for (unsigned i = 0; i < f->n; i++) {
        mem_free(f->calls[i].held);
        mem_free(f->calls[i].list);
    }
    semaphores_free(f->s);
}

void sem_box_appended(struct sem_box *f, int status)
{
    uint64_t revisions[64], id = f->append_id;

    assert_int_not_equal(id, 0);
    f->append_id = 0;
    for (size_t i = 0; i < f->n_rows; i++) {
        revisions[i] = ++f->revision;
    }
    sem_box_step(f, (struct semaphore_event){.type = SEMAPHORE_APPENDED,
                                             .id = id,
                                             .status = status,
                                             .revisions = revisions});
}

void sem_box_settle(struct sem_box *f)
{
    while (f->append_id != 0) {
        sem_box_appended(f, 0);
    }
}

unsigned sem_box_submit(struct sem_box *f, struct semaphore_call c)
{
    unsigned i = f->n++;

    assert_in_range(i, 0, CALLS - 1);
    c.lease_ms = c.lease_ms != 0 ? c.lease_ms : LEASE;
    if (c.name[0] == '\0') {
        memcpy(c.name, "x", 2);
    }
    f->calls[i] = c;
    sem_box_step(f, (struct semaphore_event){.type = SEMAPHORE_CALL,
                                             .call = &f->calls[i]});
    return i;
}

unsigned sem_box_acquire(struct sem_box *f, uint64_t session, uint64_t request,
                         uint32_t limit, uint32_t permits, uint64_t wait)
{
    return sem_box_submit(f, (struct semaphore_call){.op = SEMAPHORE_ACQUIRE,
                                                     .session = session,
                                                     .request = request,
                                                     .attempt = 1,
                                                     .limit = limit,
                                                     .permits = permits,
                                                     .wait_ms = wait});
}

uint64_t sem_box_take(struct sem_box *f, uint64_t session, uint64_t request,
                      uint32_t limit, uint32_t permits)
{
    unsigned i = sem_box_acquire(f, session, request, limit, permits, 1000);

    sem_box_settle(f);
    assert_true(f->done[i]);
    assert_int_equal(f->calls[i].status, 0);
    assert_int_not_equal(f->calls[i].token, 0);
    return f->calls[i].token;
}

unsigned sem_box_release(struct sem_box *f, uint64_t session, uint64_t token)
{
    return sem_box_submit(f, (struct semaphore_call){.op = SEMAPHORE_RELEASE,
                                                     .session = session,
                                                     .token = token});
}

unsigned sem_box_with(struct sem_box *f, enum semaphore_op op, uint64_t session,
                      uint64_t token)
{
    return sem_box_submit(f, (struct semaphore_call){
                                 .op = op, .session = session, .token = token});
}

void sem_box_assert(const struct sem_box *f, unsigned i, int status)
{
    assert_true(f->done[i]);
    assert_int_equal(f->calls[i].status, status);
}
