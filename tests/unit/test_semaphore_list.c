/* Lists of the semaphores' core, page by page. */
#include "cluster/locks/lock_list.h"
#include "cluster/locks/semaphore.h"
#include "tests/lib/check.h"
#include "tests/lib/sem_box.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MANY 1300u

static struct semaphore_row many[MANY];

/* 700 holders of "b", 500 of "z", and 100 semaphores with one each. */
static void fill_many(void)
{
    for (unsigned i = 0; i < MANY; i++) {
        struct semaphore_row *r = &many[i];

        *r = (struct semaphore_row){.session = i + 1,
                                    .request = 1,
                                    .lease_ms = LEASE,
                                    .token = 1000 + i,
                                    .limit = 1000,
                                    .permits = 1};
        if (i % 13 == 0) {
            (void)snprintf(r->name, sizeof r->name, "m%04u", MANY - i);
        } else {
            r->name[0] = i % 13 > 7 ? 'z' : 'b';
        }
    }
}

static unsigned list_from(struct sem_box *f, const struct semaphore_call *place,
                          uint32_t limit)
{
    struct semaphore_call c = {.op = SEMAPHORE_LIST, .limit = limit};

    if (place != NULL) {
        memcpy(c.holder, place->holder, sizeof c.holder);
        c.permits = place->permits;
        c.order_term = place->order_term;
        c.order = place->order;
        c.term = place->term;
        c.at = place->at;
    }
    f->n++;
    assert_in_range(f->n, 1, CALLS - 1);
    f->calls[f->n - 1] = c; /* "" is all. */
    sem_box_step(f, (struct semaphore_event){.type = SEMAPHORE_CALL,
                                             .call = &f->calls[f->n - 1]});
    return f->n - 1;
}

struct seen {
    unsigned n;
    uint64_t token;
    char name[SEMAPHORE_NAME_SIZE];
};

static void look_at_page(const struct hedge_semaphores *list, struct seen *seen)
{
    for (size_t i = 0; i < list->n; i++) {
        const struct hedge_semaphore_info *m = &list->semaphore[i];
        int order = strcmp(seen->name, m->name);

        assert_true(order < 0 || (order == 0 && i == 0 && seen->n > 0));
        seen->token = order < 0 ? 0 : seen->token;
        memcpy(seen->name, m->name, sizeof seen->name);
        assert_in_range(m->n_holders, 1, SEMAPHORE_PAGE_MAX);
        for (uint32_t k = 0; k < m->n_holders; k++) {
            assert_true(m->holders[k].token > seen->token);
            seen->token = m->holders[k].token;
            seen->n++;
        }
    }
}

static void list_in_pages_of(uint32_t limit, bool change_leader)
{
    struct sem_box f;
    struct seen seen = {.n = 0};
    unsigned i, pages = 0;

    sem_box_fresh(&f);
    sem_box_lead(&f, many, MANY);
    i = list_from(&f, NULL, limit);
    for (;;) {
        assert_answer(&f, i, 0);
        look_at_page(f.calls[i].list, &seen);
        pages++;
        if (!f.calls[i].more) {
            break;
        }
        if (change_leader) {
            sem_box_lead(&f, many, MANY);
        }
        i = list_from(&f, &f.calls[i], limit);
    }
    assert_int_equal(seen.n, MANY);
    assert_in_range(pages, MANY / limit, MANY / limit + 2);
    sem_box_done_with(&f);
}

static void list_comes_in_pages(void **state)
{
    (void)state;
    fill_many();
    list_in_pages_of(SEMAPHORE_PAGE_MAX, false);
    list_in_pages_of(SEMAPHORE_PAGE_MAX, true);
    list_in_pages_of(100, false);
    list_in_pages_of(33, true);
}

static void list_in_one_is_all_or_an_error(void **state)
{
    struct sem_box f;
    unsigned i;

    (void)state;
    fill_many();
    sem_box_fresh(&f);
    sem_box_lead(&f, many, MANY);
    i = list_from(&f, NULL, 0);
    assert_answer(&f, i, HEDGE_EEXHAUSTED);
    assert_null(f.calls[i].list);
    i = sem_box_submit(
        &f, (struct semaphore_call){.op = SEMAPHORE_LIST, .name = "z"});
    assert_answer(&f, i, 0);
    assert_false(f.calls[i].more);
    assert_int_equal(f.calls[i].list->semaphore[0].n_holders, 500);
    i = sem_box_submit(
        &f, (struct semaphore_call){.op = SEMAPHORE_LIST, .name = "b"});
    assert_answer(&f, i, HEDGE_EEXHAUSTED);
    sem_box_done_with(&f);
}

/* As many semaphores as fit in a page, and one more. */
static void page_of_semaphores_is_full(void **state)
{
    struct sem_box f;
    unsigned i;

    (void)state;
    for (unsigned n = SEMAPHORE_PAGE_MAX; n < SEMAPHORE_PAGE_MAX + 2; n++) {
        fill_many();
        for (unsigned k = 0; k < n; k++) {
            (void)snprintf(many[k].name, sizeof many[k].name, "m%04u", k);
        }
        sem_box_fresh(&f);
        sem_box_lead(&f, many, n);
        i = list_from(&f, NULL, 0);
        assert_answer(&f, i, n > SEMAPHORE_PAGE_MAX ? HEDGE_EEXHAUSTED : 0);
        i = list_from(&f, NULL, SEMAPHORE_PAGE_MAX);
        assert_int_equal(f.calls[i].list->n, SEMAPHORE_PAGE_MAX);
        assert_int_equal(f.calls[i].more, n > SEMAPHORE_PAGE_MAX);
        sem_box_done_with(&f);
    }
}

/* Who was listed as waiting is not listed again as holding. */
static void granted_between_two_pages(void **state)
{
    struct sem_box f;
    const struct hedge_semaphore_info *m;
    unsigned i;

    (void)state;
    sem_box_fresh(&f);
    (void)sem_box_take(&f, 1, 10, 1, 1);
    for (unsigned k = 2; k < 6; k++) {
        (void)sem_box_acquire(&f, k, 10, 1, 1, 1000);
    }
    i = list_from(&f, NULL, 2);
    m = &f.calls[i].list->semaphore[0];
    assert_int_equal(m->n_waiters, 2);
    assert_int_equal(m->n_holders, 0);
    assert_true(f.calls[i].more);
    (void)sem_box_with(&f, SEMAPHORE_CLOSE, 1, 0); /* The second gets it. */
    i = list_from(&f, &f.calls[i], 10);
    m = &f.calls[i].list->semaphore[0];
    assert_int_equal(m->n_waiters, 2); /* The other two. */
    assert_int_equal(m->n_holders, 0);
    assert_false(f.calls[i].more);
    sem_box_settle(&f);
    i = list_from(&f, &f.calls[i - 2], 3);
    m = &f.calls[i].list->semaphore[0];
    assert_int_equal(m->n_waiters, 2);
    assert_int_equal(m->n_holders, 0);
    /* The next leader knows of the disk alone. */
    sem_box_lead(&f,
                 (struct semaphore_row[]){{.name = "x",
                                           .session = 2,
                                           .request = 10,
                                           .lease_ms = LEASE,
                                           .token = f.revision,
                                           .limit = 1,
                                           .permits = 1}},
                 1);
    i = list_from(&f, &f.calls[i - 3], 3);
    m = &f.calls[i].list->semaphore[0];
    assert_int_equal(m->n_holders, 1);
    assert_int_equal(m->holders[0].token, f.revision);
    sem_box_done_with(&f);
}

/* Also over the wire, by which the next page mostly is asked for. */
static void place_comes_back_as_it_was(void **state)
{
    struct semaphore_call next = {.op = SEMAPHORE_LIST};
    const struct semaphore_call *page;
    Hedge__V1__LockList *m;
    struct sem_box f;

    (void)state;
    sem_box_fresh(&f);
    for (unsigned k = 1; k < 4; k++) {
        (void)sem_box_take(&f, k, 10, 3, 1);
    }
    page = &f.calls[list_from(&f, NULL, 2)];
    assert_true(page->more);
    assert_int_equal(lock_list_message(page, &m), 0);
    assert_true(lock_list_next(m, &next));
    lock_list_release(m);
    assert_string_equal(next.holder, "x");
    assert_int_equal(next.permits, page->permits);
    assert_int_equal(next.order_term, page->order_term);
    assert_int_equal(next.order, page->order);
    assert_int_equal(next.term, f.term);
    assert_true(next.at > 0 && next.at == page->at);
    sem_box_done_with(&f);
}

/* --- whatever happens between two pages -------------------------------------
 */

#define PEOPLE 32u

struct crowd {
    struct sem_box f;
    unsigned seed, n;
    bool gone[PEOPLE], early[PEOPLE]; /* There when the list began. */
    unsigned seen[PEOPLE];
};

static unsigned dice(struct crowd *c, unsigned n)
{
    c->seed = c->seed * 1103515245u + 12345u;
    return (c->seed >> 16) % n;
}

/* Some have a number of an earlier term, and so a place before others. */
static void one_comes(struct crowd *c)
{
    struct semaphore_call call = {.op = SEMAPHORE_ACQUIRE,
                                  .session = ++c->n,
                                  .request = 1,
                                  .limit = 3,
                                  .permits = 1 + dice(c, 2),
                                  .wait_ms = 100000};

    call.name[0] = dice(c, 4) > 0 ? 'x' : 'y';
    (void)snprintf(call.holder, sizeof call.holder, "%u", c->n - 1);
    if (dice(c, 2) > 0) {
        call.order_term = c->f.term - 1;
        call.order = 1 + dice(c, 1000);
    }
    (void)sem_box_submit(&c->f, call);
}

static void something_happens(struct crowd *c)
{
    unsigned who = dice(c, c->n);

    switch (dice(c, 3)) {
    case 0:
        if (c->n < PEOPLE) {
            one_comes(c);
        }
        break;
    case 1:
        if (!c->gone[who] && c->f.n < CALLS - PEOPLE) {
            c->gone[who] = true;
            (void)sem_box_with(&c->f, SEMAPHORE_CLOSE, who + 1, 0);
        }
        break;
    default:
        if (c->f.append_id != 0) {
            sem_box_appended(&c->f, 0);
        }
    }
}

static void note_seen(struct crowd *c, const struct hedge_semaphore_holder *h,
                      size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned long who = strtoul(h[i].holder, NULL, 10);

        assert_in_range(who, 0, c->n - 1);
        c->seen[who]++;
    }
}

static void list_amid_all_this(struct crowd *c)
{
    const struct semaphore_call *page = NULL;

    do {
        unsigned i = list_from(&c->f, page, 2);

        page = &c->f.calls[i];
        assert_answer(&c->f, i, 0);
        for (size_t k = 0; k < page->list->n; k++) {
            const struct hedge_semaphore_info *m = &page->list->semaphore[k];
            note_seen(c, m->waiters, m->n_waiters);
            note_seen(c, m->holders, m->n_holders);
        }
        something_happens(c);
        something_happens(c);
    } while (page->more);
}

static void each_is_listed_once(void **state)
{
    struct crowd c;

    (void)state;
    for (unsigned seed = 1; seed <= 2000; seed++) {
        c = (struct crowd){.seed = seed};
        sem_box_fresh(&c.f);
        sem_box_lead(&c.f, NULL, 0); /* There was an earlier term. */
        sem_box_tick(&c.f, REQUEUE);
        while (c.n < 8) {
            one_comes(&c);
            something_happens(&c);
        }
        for (unsigned i = 0; i < c.n; i++) {
            c.early[i] = !c.gone[i];
        }
        list_amid_all_this(&c);
        for (unsigned i = 0; i < c.n; i++) {
            if (c.seen[i] > 1 || (c.seen[i] == 0 && c.early[i] && !c.gone[i])) {
                fail_msg("seed %u: %u was listed %u times", seed, i, c.seen[i]);
            }
        }
        sem_box_done_with(&c.f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_comes_in_pages),
        cmocka_unit_test(list_in_one_is_all_or_an_error),
        cmocka_unit_test(page_of_semaphores_is_full),
        cmocka_unit_test(granted_between_two_pages),
        cmocka_unit_test(place_comes_back_as_it_was),
        cmocka_unit_test(each_is_listed_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
