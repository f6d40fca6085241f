/* semaphore_calls.c - what callers ask of the semaphores' core, one function
 * each. */
#include "cluster/locks/semaphore_internal.h"

#include "store/base/units.h"

/* --- calls ------------------------------------------------------------------
 */

static void fill_held(struct semaphores *s, struct holder *h,
                      struct semaphore_call *call)
{
    struct list *l;
    size_t n = 0;

    list_foreach (l, &h->claims) {
        n++;
    }
    call->lease_ms = h->lease_ms;
    call->held = n > 0 ? mem_calloc(n, sizeof *call->held) : NULL;
    if (n > 0 && call->held == NULL) {
        sem_answer(s, call, HEDGE_ENOMEM, "no memory for the answer");
        return;
    }
    list_foreach (l, &h->claims) {
        const struct claim *c = container_of(l, struct claim, of_holder);
        if (c->state == CLAIM_GRANTED && c->token != 0 && !c->revoked) {
            call->held[call->n_held++] = (struct semaphore_held){
                .token = c->token, .request = c->request};
        }
    }
    sem_answer(s, call, 0, "%s", "");
}

static bool lease_fits(struct semaphores *s, struct semaphore_call *call)
{
    const struct holder *h = sem_find_holder(s, call->session);

    if (call->lease_ms == 0) {
        call->lease_ms = h != NULL ? h->lease_ms : SEMAPHORE_LEASE_MS;
    }
    if (call->session == 0) {
        sem_answer(s, call, HEDGE_EINVAL,
                   "a session needs an id that is not 0");
        return false;
    }
    if (call->lease_ms < SEMAPHORE_LEASE_MIN_MS ||
        call->lease_ms > SEMAPHORE_LEASE_MAX_MS) {
        sem_answer(s, call, HEDGE_EINVAL,
                   "a lease of %" PRIu64 " ms is not possible: %u to %u",
                   call->lease_ms, SEMAPHORE_LEASE_MIN_MS,
                   SEMAPHORE_LEASE_MAX_MS);
        return false;
    }
    if (h != NULL && h->lease_ms != call->lease_ms) {
        sem_answer(s, call, HEDGE_EINVAL,
                   "the session has a lease of %" PRIu64 " ms, not %" PRIu64,
                   h->lease_ms, call->lease_ms);
        return false;
    }
    return true;
}

static void no_room(struct semaphores *s, struct semaphore_call *call)
{
    bool full = s->n_holders >= SEMAPHORE_SESSIONS_MAX ||
                s->n_claims >= SEMAPHORE_CLAIMS_MAX;

    sem_answer(s, call, full ? HEDGE_EEXHAUSTED : HEDGE_ENOMEM,
               full ? "the leader keeps %u sessions and %u claims at most"
                    : "no memory for a claim (of %u sessions, %u claims)",
               SEMAPHORE_SESSIONS_MAX, SEMAPHORE_CLAIMS_MAX);
}

static void on_open(struct semaphores *s, struct semaphore_call *call)
{
    struct holder *h;

    if (!lease_fits(s, call)) {
        return;
    }
    h = sem_get_holder(s, call->session, call->lease_ms, call->holder);
    if (h == NULL) {
        no_room(s, call);
        return;
    }
    h->deadline_ms = s->now_ms + h->lease_ms;
    fill_held(s, h, call);
}

static void on_renew(struct semaphores *s, struct semaphore_call *call)
{
    struct holder *h = sem_find_holder(s, call->session);

    if (h == NULL) {
        sem_answer(s, call, HEDGE_ENOTFOUND, "%s", SEM_EXPIRED_TEXT);
        return;
    }
    h->deadline_ms = s->now_ms + h->lease_ms;
    fill_held(s, h, call);
}

static void on_close(struct semaphores *s, struct semaphore_call *call)
{
    struct holder *h = sem_find_holder(s, call->session);

    if (h != NULL) {
        sem_end_holder(s, h, HEDGE_ECANCELED, "the session was closed");
    }
    sem_answer_durably(s, call);
}

/* Put it behind the others that wait for the same. */
static void wait_with(struct semaphores *s, struct list *calls,
                      struct semaphore_call *call)
{
    struct list *l;
    size_t n = 0;

    list_foreach (l, calls) {
        n++;
    }
    if (n >= SEMAPHORE_CALLS_EACH) {
        sem_answer(s, container_of(calls->next, struct semaphore_call, link),
                   HEDGE_EEXHAUSTED, "%u later calls wait for the same",
                   SEMAPHORE_CALLS_EACH);
    }
    list_push(calls, &call->link);
}

static void on_watch(struct semaphores *s, struct semaphore_call *call)
{
    struct holder *h = sem_find_holder(s, call->session);

    if (h == NULL) {
        sem_answer(s, call, HEDGE_ENOTFOUND, "%s", SEM_EXPIRED_TEXT);
    } else if (call->term != s->term || call->at < h->revoked_at) {
        sem_answer(s, call, 0, "%s", "");
    } else {
        call->wait_ms = sem_after(s->now_ms, call->wait_ms); /* From here on. */
        wait_with(s, &h->watchers, call);
        sem_due(s, call->wait_ms);
    }
}

static bool name_fits(struct semaphores *s, struct semaphore_call *call)
{
    struct hedge_error e;

    if (units_check_name(call->name, strlen(call->name), &e) != 0) {
        sem_answer(s, call, HEDGE_EINVAL, "%s", e.text);
        return false;
    }
    return true;
}

static bool limit_fits(struct semaphores *s, struct semaphore_call *call)
{
    const struct semaphore *m = sem_find_semaphore(s, call->name);

    if (!name_fits(s, call)) {
        return false;
    }
    if (call->limit < 1 || call->limit > SEMAPHORE_LIMIT_MAX) {
        sem_answer(s, call, HEDGE_EINVAL,
                   "a limit of %u is not possible: 1 to %u", call->limit,
                   SEMAPHORE_LIMIT_MAX);
        return false;
    }
    if (m != NULL && !sem_is_forgotten(m) && m->limit != call->limit) {
        sem_answer(s, call, HEDGE_EINVAL,
                   "semaphore \"%s\" has a limit of %u, not %u", m->name,
                   m->limit, call->limit);
        return false;
    }
    return true;
}

static bool acquire_fits(struct semaphores *s, struct semaphore_call *call)
{
    if (!limit_fits(s, call) || !lease_fits(s, call)) {
        return false;
    }
    if (call->permits < 1 || call->permits > call->limit) {
        sem_answer(s, call, HEDGE_EINVAL,
                   "%u permits of a semaphore with a limit of %u",
                   call->permits, call->limit);
        return false;
    }
    if (call->request == 0 ||
        (call->ttl_ms != 0 && (call->ttl_ms < SEMAPHORE_LEASE_MIN_MS ||
                               call->ttl_ms > SEMAPHORE_TTL_MAX_MS))) {
        sem_answer(s, call, HEDGE_EINVAL,
                   "request 0, or a grant for %" PRIu64 " ms: %u to %u",
                   call->ttl_ms, SEMAPHORE_LEASE_MIN_MS, SEMAPHORE_TTL_MAX_MS);
        return false;
    }
    return true;
}

/* How long this call may stand in line, as a point in time. */
static uint64_t wait_until(const struct semaphores *s,
                           const struct semaphore_call *call)
{
    uint64_t at = sem_after(s->now_ms, call->wait_ms);

    return at < s->grant_from_ms ? s->grant_from_ms : at;
}

static void in_line(struct semaphores *s, struct claim *c,
                    struct semaphore_call *call)
{
    c->try_only = call->wait_ms == 0;
    c->deadline_ms = wait_until(s, call);
    if (c->deadline_ms > s->now_ms) {
        sem_due(s, c->deadline_ms);
    }
    call->order_term = c->order_term;
    call->order = c->order;
    call->queued = true;
    wait_with(s, &c->calls, call);
}

/* What would have to wait and does not want to. */
static void try_now(struct semaphores *s, struct claim *c)
{
    if (c->state == CLAIM_WAITING && c->deadline_ms <= s->now_ms) {
        sem_end_claim(s, c, HEDGE_EBUSY, "not enough permits are free");
    }
}

/* The same request again. */
static void attach(struct semaphores *s, struct claim *c,
                   struct semaphore_call *call)
{
    if (strcmp(c->semaphore->name, call->name) != 0 ||
        c->permits != call->permits || c->ttl_ms != call->ttl_ms) {
        sem_answer(s, call, HEDGE_EINVAL,
                   "request %" PRIu64 " of this session was another one: %u "
                   "permits of \"%s\"",
                   call->request, c->permits, c->semaphore->name);
        return;
    }
    c->attempt = call->attempt > c->attempt ? call->attempt : c->attempt;
    if (c->state == CLAIM_WAITING) {
        in_line(s, c, call);
        try_now(s, c);
    } else if (c->revoked) {
        sem_answer(s, call, HEDGE_EFENCED, "the grant was revoked");
    } else if (c->token == 0) {
        wait_with(s, &c->calls, call);
    } else {
        call->token = c->token;
        sem_answer(s, call, 0, "%s", "");
    }
}

static void on_acquire(struct semaphores *s, struct semaphore_call *call)
{
    struct claim *c;
    struct semaphore *m;
    struct holder *h;

    if (!acquire_fits(s, call)) {
        return;
    }
    c = sem_find_claim(s, call->session, call->request);
    if (c != NULL) {
        attach(s, c, call);
        return;
    }
    h = s->n_claims < SEMAPHORE_CLAIMS_MAX
            ? sem_get_holder(s, call->session, call->lease_ms, call->holder)
            : NULL;
    m = h != NULL ? sem_get_semaphore(s, call->name, call->limit) : NULL;
    c = m != NULL ? sem_new_claim(s, m, call->session, call->request) : NULL;
    if (c == NULL) {
        if (m != NULL) {
            sem_drop_semaphore(m);
        }
        no_room(s, call);
        return;
    }
    c->holder = h;
    c->permits = call->permits;
    c->attempt = call->attempt;
    c->lease_ms = h->lease_ms;
    c->ttl_ms = call->ttl_ms;
    memcpy(c->name, h->name, sizeof c->name);
    c->order_term = s->term;
    if (call->order_term != 0 && call->order_term < s->term) {
        c->order_term = call->order_term;
        c->order = call->order;
    } else if (call->order_term == s->term && call->order <= s->order) {
        c->order = call->order; /* Before all was read again. */
    } else {
        c->order = ++s->order;
    }
    list_push(&h->claims, &c->of_holder);
    sem_stand_in_line(s, c);
    in_line(s, c, call);
    sem_pump(s);
    try_now(s, c);
}

static void on_cancel(struct semaphores *s, struct semaphore_call *call)
{
    struct claim *c = sem_find_claim(s, call->session, call->request);

    if (c != NULL && (call->attempt == 0 || call->attempt == c->attempt)) {
        sem_end_claim(s, c, HEDGE_ECANCELED, "the request was canceled");
    }
    sem_answer_durably(s, call);
}

static struct claim *find_grant(struct semaphores *s, const char *name,
                                uint64_t token, uint64_t session)
{
    struct semaphore *m = sem_find_semaphore(s, name);
    struct list *l;

    if (m == NULL || (token == 0 && session == 0)) {
        return NULL;
    }
    list_foreach (l, &m->grants) {
        struct claim *c = container_of(l, struct claim, of_semaphore);
        if (c->token != 0 && (token == 0 || c->token == token) &&
            (session == 0 || c->session == session)) {
            return c;
        }
    }
    return NULL;
}

static void on_release(struct semaphores *s, struct semaphore_call *call)
{
    struct claim *c;

    if (!name_fits(s, call)) {
        return;
    }
    c = find_grant(s, call->name, call->token, call->session);
    if (c == NULL) {
        sem_answer(s, call, HEDGE_EFENCED,
                   "token %" PRIu64 " of semaphore \"%s\" is not held any more",
                   call->token, call->name);
        return;
    }
    call->token = c->token;
    sem_end_claim(s, c, HEDGE_EFENCED, "the grant was released");
    sem_answer_durably(s, call);
}

static void on_revoke(struct semaphores *s, struct semaphore_call *call)
{
    struct claim *c;

    if (!name_fits(s, call)) {
        return;
    }
    c = call->token != 0 ? find_grant(s, call->name, call->token, 0) : NULL;
    if (c == NULL) {
        sem_answer(s, call, HEDGE_ENOTFOUND,
                   "nobody holds token %" PRIu64 " of semaphore \"%s\"",
                   call->token, call->name);
        return;
    }
    if (c->holder == NULL) { /* Nobody listens for it. */
        sem_end_claim(s, c, HEDGE_EFENCED, "the grant was revoked");
    } else if (!c->revoked) {
        /* No renewal extends it from now on, so its owner has given it up
         * by then, or before if it is told in time. */
        c->revoked = true;
        c->deadline_ms = c->holder->deadline_ms;
        sem_due(s, c->deadline_ms);
        sem_touch(s, c);
        sem_wake_watchers(s, c->holder, 0, "");
    }
    sem_answer_durably(s, call);
}

static void on_check(struct semaphores *s, struct semaphore_call *call)
{
    if (limit_fits(s, call)) {
        sem_answer(s, call, 0, "%s", "");
    }
}

/* --- the list ---------------------------------------------------------------
 */

/* By name; of each semaphore first who waits, in line, then who is just being
 * granted, then who holds, by token: all as of the first page, so that a claim
 * keeps its place, and is listed once, whatever becomes of it between two
 * pages. The next leader does not know what was then, and goes by what is: who
 * is granted meanwhile goes from a part that was listed to one that is still to
 * come. */
enum list_part { PART_WAITS, PART_GRANTED, PART_HOLDS };

struct list_page {
    struct semaphores *s;
    uint64_t since;              /* `at` of the first page. */
    struct semaphore_call *call; /* With the place of the last one listed. */
    struct hedge_semaphores *out;
    struct hedge_semaphore_holder *next;
    size_t left;
    bool full; /* There was one more. */
};

struct list_place {
    enum list_part part;
    uint64_t term, order;
};

static void place_of(const struct list_page *p, const struct claim *c,
                     struct list_place *out)
{
    if (c->state == CLAIM_WAITING || c->granted_at >= p->since) {
        *out = (struct list_place){PART_WAITS, c->order_term, c->order};
    } else if (c->token == 0 || c->held_at >= p->since) {
        *out = (struct list_place){PART_GRANTED, p->s->term, c->granted_at};
    } else {
        *out = (struct list_place){PART_HOLDS, 0, c->token};
    }
}

static bool is_behind(const struct list_place *a,
                      const struct semaphore_call *b)
{
    if (a->part != b->permits) {
        return a->part > b->permits;
    }
    return a->term > b->order_term ||
           (a->term == b->order_term && a->order > b->order);
}

static void set_place(struct semaphore_call *call, const char *name,
                      const struct list_place *place)
{
    (void)snprintf(call->holder, sizeof call->holder, "%s", name);
    call->permits = place->part;
    call->order_term = place->term;
    call->order = place->order;
}

static void list_claim(const struct semaphores *s, const struct claim *c,
                       bool waits, struct hedge_semaphore_holder *out)
{
    uint64_t end = c->holder != NULL ? c->holder->deadline_ms : c->deadline_ms;

    if (c->revoked && c->deadline_ms < end) {
        end = c->deadline_ms;
    }
    memcpy(out->holder, c->name, sizeof out->holder);
    out->token = waits ? 0 : c->token;
    out->permits = c->permits;
    out->remaining_ms = end > s->now_ms ? end - s->now_ms : 0;
}

/* In the order of their places, but for those who came later than the first
 * page, with a number of an earlier term; these may be left out. */
static void list_part(struct list_page *p, struct list *claims,
                      enum list_part part, uint32_t *n)
{
    struct list *l;

    list_foreach (l, claims) {
        const struct claim *c = container_of(l, struct claim, of_semaphore);
        const char *name = c->semaphore->name;
        struct list_place place;

        place_of(p, c, &place);
        if (place.part != part || (strcmp(name, p->call->holder) == 0 &&
                                   !is_behind(&place, p->call))) {
            continue; /* Semaphores before that are not looked at. */
        }
        if (p->left == 0) {
            p->full = true;
            return;
        }
        list_claim(p->s, c, part == PART_WAITS, p->next++);
        set_place(p->call, name, &place);
        p->left--;
        ++*n;
    }
}

static void list_semaphore(struct list_page *p, struct semaphore *m)
{
    struct hedge_semaphore_info *i = &p->out->semaphore[p->out->n];

    memcpy(i->name, m->name, sizeof i->name);
    i->limit = m->limit;
    i->waiters = p->next;
    list_part(p, &m->grants, PART_WAITS, &i->n_waiters);
    list_part(p, &m->waiters, PART_WAITS, &i->n_waiters);
    i->holders = p->next;
    list_part(p, &m->grants, PART_GRANTED, &i->n_holders);
    list_part(p, &m->grants, PART_HOLDS, &i->n_holders);
    p->out->n += i->n_waiters + i->n_holders > 0;
}

/* Whichever of these many comes first by name. */
struct picked {
    size_t n;
    struct semaphore *m[SEMAPHORE_PAGE_MAX + 1];
};

static void pick_in_order(struct picked *p, struct semaphore *m)
{
    size_t low = 0, high = p->n;

    while (low < high) {
        size_t mid = (low + high) / 2;
        if (strcmp(p->m[mid]->name, m->name) < 0) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    if (low > SEMAPHORE_PAGE_MAX) {
        return; /* Behind all of a full page. */
    }
    p->n -= p->n > SEMAPHORE_PAGE_MAX;
    memmove(&p->m[low + 1], &p->m[low],
            (p->n - low) * sizeof(struct semaphore *));
    p->m[low] = m;
    p->n++;
}

static void pick(struct semaphores *s, const struct semaphore_call *call,
                 struct picked *out)
{
    bool all = call->name[0] == '\0';
    struct list *l;

    out->n = 0;
    list_foreach (l, &s->all) {
        struct semaphore *m = container_of(l, struct semaphore, link);
        if (!sem_is_forgotten(m) && strcmp(m->name, call->holder) >= 0 &&
            (all || strcmp(m->name, call->name) == 0)) {
            pick_in_order(out, m);
        }
    }
}

/* Every semaphore has a claim, but for the one that the page before ended in:
 * so one more of them than fits says that there may be more. */
static void on_list(struct semaphores *s, struct semaphore_call *call)
{
    size_t max = call->limit != 0 && call->limit < SEMAPHORE_PAGE_MAX
                     ? call->limit
                     : SEMAPHORE_PAGE_MAX;
    struct list_page p = {.s = s, .call = call, .left = max};
    struct picked picked;
    size_t claims = 0;
    uint64_t term, at;

    if (call->holder[0] == '\0') {
        call->term = s->term;
        call->at = s->at;
    }
    p.since = call->term == s->term ? call->at : UINT64_MAX;
    pick(s, call, &picked);
    for (size_t i = 0; i < picked.n; i++) {
        claims += picked.m[i]->n_grants + picked.m[i]->n_waiters;
    }
    claims = claims < max ? claims : max;
    p.out =
        mem_calloc(1, sizeof *p.out + picked.n * sizeof p.out->semaphore[0] +
                          claims * sizeof *p.next);
    if (p.out == NULL) {
        sem_answer(s, call, HEDGE_ENOMEM, "no memory for the list");
        return;
    }
    p.next =
        (struct hedge_semaphore_holder *)(void *)&p.out->semaphore[picked.n];
    for (size_t i = 0; i < picked.n && !p.full; i++) {
        list_semaphore(&p, picked.m[i]);
    }
    call->more = p.full || picked.n > SEMAPHORE_PAGE_MAX;
    if (call->more && call->limit == 0) {
        mem_free(p.out);
        sem_answer(s, call, HEDGE_EEXHAUSTED,
                   "more than %u hold and wait: list them page by page",
                   SEMAPHORE_PAGE_MAX);
        return;
    }
    call->list = p.out;
    term = call->term;
    at = call->at;
    sem_answer(s, call, 0, "%s", "");
    call->term = term; /* The first page's, for the next one. */
    call->at = at;
}

typedef void (*call_fn)(struct semaphores *s, struct semaphore_call *call);

static const call_fn handlers[SEMAPHORE_OPS] = {
    [SEMAPHORE_OPEN] = on_open,       [SEMAPHORE_RENEW] = on_renew,
    [SEMAPHORE_CLOSE] = on_close,     [SEMAPHORE_WATCH] = on_watch,
    [SEMAPHORE_ACQUIRE] = on_acquire, [SEMAPHORE_CANCEL] = on_cancel,
    [SEMAPHORE_RELEASE] = on_release, [SEMAPHORE_REVOKE] = on_revoke,
    [SEMAPHORE_CHECK] = on_check,     [SEMAPHORE_LIST] = on_list,
};

void sem_take_call(struct semaphores *s, struct semaphore_call *c)
{
    assert(c->op < SEMAPHORE_OPS);
    s->at++;
    handlers[c->op](s, c);
}

/* By token, then those who have none yet, in the order in which they got it. */
static bool is_later(const struct claim *a, const struct claim *b)
{
    return b->token == 0 ? a->token == 0 && a->granted_at > b->granted_at
                         : a->token == 0 || a->token > b->token;
}

const char *semaphores_check(struct semaphores *s, uint64_t now_ms)
{
    struct list *l, *k;

    list_foreach (l, &s->all) {
        struct semaphore *m = container_of(l, struct semaphore, link);
        const struct claim *last = NULL, *grant;
        uint64_t used = 0;

        grant = NULL;
        list_foreach (k, &m->grants) {
            const struct claim *c = container_of(k, struct claim, of_semaphore);
            if (grant != NULL && !is_later(c, grant)) {
                return "the grants are out of order";
            }
            used += c->permits;
            grant = c;
        }
        if (used != m->used || used > m->limit) {
            return "more permits are given than there are";
        }
        list_foreach (k, &m->waiters) {
            const struct claim *c = container_of(k, struct claim, of_semaphore);
            if (last == NULL && now_ms >= s->grant_from_ms &&
                s->state == STATE_SERVING && used + c->permits <= m->limit) {
                return "the first in line fits and was not granted";
            }
            if (last != NULL && (last->order_term > c->order_term ||
                                 (last->order_term == c->order_term &&
                                  last->order > c->order))) {
                return "the line is out of order";
            }
            last = c;
        }
    }
    return NULL;
}
