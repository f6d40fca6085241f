#include "cluster/locks/lock_list.h"

#include "store/base/mem.h"

#include <stdio.h>
#include <string.h>

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

bool lock_list_place(const Hedge__V1__LockPlace *m, struct semaphore_call *out)
{
    const char *name = m != NULL ? m->name : "";

    out->permits = m != NULL ? m->part : 0;
    out->order_term = m != NULL ? m->term : 0;
    out->order = m != NULL ? m->order : 0;
    out->term = m != NULL ? m->since_term : 0;
    out->at = m != NULL ? m->since : 0;
    return snprintf(out->holder, sizeof out->holder, "%s", name) <
           (int)sizeof out->holder;
}

bool lock_list_next(const Hedge__V1__LockList *m, struct semaphore_call *out)
{
    return m != NULL && m->next != NULL && lock_list_place(m->next, out);
}

static size_t count_claims(const struct hedge_semaphores *s)
{
    size_t n = 0;

    for (size_t i = 0; i < s->n; i++) {
        n += s->semaphore[i].n_holders;
        n += s->semaphore[i].n_waiters;
    }
    return n;
}

static void put_claims(const struct hedge_semaphore_holder *from, size_t n,
                       Hedge__V1__LockHolder *to, Hedge__V1__LockHolder **refs)
{
    for (size_t i = 0; i < n; i++) {
        hedge__v1__lock_holder__init(&to[i]);
        to[i].holder = unconst(from[i].holder);
        to[i].token = from[i].token;
        to[i].permits = from[i].permits;
        to[i].remaining_ms = from[i].remaining_ms;
        refs[i] = &to[i];
    }
}

struct list_block {
    Hedge__V1__LockList list;
    Hedge__V1__LockPlace place;
};

static void put_place(const struct semaphore_call *c, struct list_block *b)
{
    hedge__v1__lock_place__init(&b->place);
    if (c->more) {
        b->place.name = unconst(c->holder);
        b->place.part = c->permits;
        b->place.term = c->order_term;
        b->place.order = c->order;
        b->place.since_term = c->term;
        b->place.since = c->at;
        b->list.next = &b->place;
    }
}

/* One piece of memory: the list and its place, the infos, the holders, pointers
 * to them. */
int lock_list_message(const struct semaphore_call *c, Hedge__V1__LockList **out)
{
    const struct hedge_semaphores *s = c->list;
    size_t claims = count_claims(s);
    struct list_block *b = mem_calloc(
        1, sizeof *b + s->n * (sizeof(Hedge__V1__LockInfo) + sizeof(void *)) +
               claims * (sizeof(Hedge__V1__LockHolder) + sizeof(void *)));
    Hedge__V1__LockInfo *infos, **info_refs;
    Hedge__V1__LockHolder *holders, **refs;
    Hedge__V1__LockList *m;

    *out = NULL;
    if (b == NULL) {
        return HEDGE_ENOMEM;
    }
    *out = m = &b->list;
    infos = (Hedge__V1__LockInfo *)(void *)(b + 1);
    holders = (Hedge__V1__LockHolder *)(void *)(infos + s->n);
    info_refs = (Hedge__V1__LockInfo **)(void *)(holders + claims);
    refs = (Hedge__V1__LockHolder **)(void *)(info_refs + s->n);
    hedge__v1__lock_list__init(m);
    put_place(c, b);
    m->n_semaphores = s->n;
    m->semaphores = info_refs;
    for (size_t i = 0; i < s->n; i++) {
        const struct hedge_semaphore_info *from = &s->semaphore[i];
        Hedge__V1__LockInfo *to = &infos[i];

        hedge__v1__lock_info__init(to);
        info_refs[i] = to;
        to->name = unconst(from->name);
        to->limit = from->limit;
        to->n_holders = from->n_holders;
        to->holders = refs;
        put_claims(from->holders, from->n_holders, holders, refs);
        holders += from->n_holders;
        refs += from->n_holders;
        to->n_waiters = from->n_waiters;
        to->waiters = refs;
        put_claims(from->waiters, from->n_waiters, holders, refs);
        holders += from->n_waiters;
        refs += from->n_waiters;
    }
    return 0;
}

void lock_list_release(Hedge__V1__LockList *m)
{
    mem_free(m);
}

static void take_claims(Hedge__V1__LockHolder **from, size_t n,
                        struct hedge_semaphore_holder *to)
{
    for (size_t i = 0; i < n; i++) {
        (void)snprintf(to[i].holder, sizeof to[i].holder, "%s",
                       from[i]->holder);
        to[i].token = from[i]->token;
        to[i].permits = from[i]->permits;
        to[i].remaining_ms = from[i]->remaining_ms;
    }
}

int lock_list_from(const Hedge__V1__LockList *m, struct hedge_semaphores **out)
{
    struct hedge_semaphore_holder *next;
    struct hedge_semaphores *s;
    size_t claims = 0, n = m != NULL ? m->n_semaphores : 0;

    for (size_t i = 0; i < n; i++) {
        claims += m->semaphores[i]->n_holders + m->semaphores[i]->n_waiters;
    }
    s = mem_calloc(1, sizeof *s + n * sizeof s->semaphore[0] +
                          claims * sizeof *next);
    *out = s;
    if (s == NULL) {
        return HEDGE_ENOMEM;
    }
    s->n = n;
    next = (struct hedge_semaphore_holder *)(void *)&s->semaphore[n];
    for (size_t i = 0; i < n; i++) {
        const Hedge__V1__LockInfo *from = m->semaphores[i];
        struct hedge_semaphore_info *to = &s->semaphore[i];

        (void)snprintf(to->name, sizeof to->name, "%s", from->name);
        to->limit = from->limit;
        to->n_holders = (uint32_t)from->n_holders;
        to->holders = next;
        take_claims(from->holders, from->n_holders, next);
        next += from->n_holders;
        to->n_waiters = (uint32_t)from->n_waiters;
        to->waiters = next;
        take_claims(from->waiters, from->n_waiters, next);
        next += from->n_waiters;
    }
    return 0;
}

/* --- pages put together --- */

int lock_pages_add(struct lock_pages *p, struct hedge_semaphores *page)
{
    if (p->n == p->cap) {
        size_t cap = p->cap * 2 + 8;
        struct hedge_semaphores **more =
            mem_realloc(p->page, cap * sizeof(struct hedge_semaphores *));

        if (more == NULL) {
            mem_free(page);
            return HEDGE_ENOMEM;
        }
        p->page = more;
        p->cap = cap;
    }
    p->page[p->n++] = page;
    return 0;
}

void lock_pages_release(struct lock_pages *p)
{
    for (size_t i = 0; i < p->n; i++) {
        mem_free(p->page[i]);
    }
    mem_free(p->page);
    memset(p, 0, sizeof *p);
}

/* A semaphore goes on from page to page only at their ends. */
static bool goes_on(const struct hedge_semaphores *s,
                    const struct hedge_semaphore_info *i)
{
    return s->n > 0 && strcmp(s->semaphore[s->n - 1].name, i->name) == 0;
}

static struct hedge_semaphore_holder *
copy_claims(const struct hedge_semaphore_holder *from, uint32_t n,
            struct hedge_semaphore_holder *to, uint32_t *count)
{
    if (n > 0) {
        memcpy(to, from, n * sizeof *to);
    }
    *count += n;
    return to + n;
}

/* All waiters of a semaphore come before its holders: within a page, and from
 * page to page. What an older node lists comes in one page. */
static struct hedge_semaphore_holder *
append(struct hedge_semaphores *s, const struct hedge_semaphore_info *from,
       struct hedge_semaphore_holder *next)
{
    struct hedge_semaphore_info *to;

    if (!goes_on(s, from)) {
        to = &s->semaphore[s->n++];
        memcpy(to->name, from->name, sizeof to->name);
        to->limit = from->limit;
        to->waiters = next;
        to->holders = NULL;
    }
    to = &s->semaphore[s->n - 1];
    if (to->holders == NULL) {
        next =
            copy_claims(from->waiters, from->n_waiters, next, &to->n_waiters);
    }
    if (to->holders == NULL && from->n_holders > 0) {
        to->holders = next;
    }
    return copy_claims(from->holders, from->n_holders, next, &to->n_holders);
}

int lock_pages_join(const struct lock_pages *p, struct hedge_semaphores **out)
{
    struct hedge_semaphore_holder *next;
    struct hedge_semaphores *s;
    size_t n = 0, claims = 0;

    for (size_t i = 0; i < p->n; i++) {
        n += p->page[i]->n;
        claims += count_claims(p->page[i]);
    }
    s = mem_calloc(1, sizeof *s + n * sizeof s->semaphore[0] +
                          claims * sizeof *next);
    *out = s;
    if (s == NULL) {
        return HEDGE_ENOMEM;
    }
    next = (struct hedge_semaphore_holder *)(void *)&s->semaphore[n];
    for (size_t i = 0; i < p->n; i++) {
        for (size_t k = 0; k < p->page[i]->n; k++) {
            next = append(s, &p->page[i]->semaphore[k], next);
        }
    }
    return 0;
}
