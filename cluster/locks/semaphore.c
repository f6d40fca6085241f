/* A claim's life:
 *
 *   WAITING   in its semaphore's line, never on disk.
 *   GRANTED   takes permits. Until its row is on disk the calls that asked for
 *             it wait with it; then they get the token.
 *   ENDED     gives no permits any more and is found by nobody; kept until its
 *             row is gone. Without a row it is freed at once.
 *
 * `dirty` claims have a row to write or to delete with the next append; those
 * of the append in progress are `in_flight`. A claim may be both. Calls that
 * wait for an append and not for a claim stand in dirty_calls, then in
 * flight_calls. */
#include "cluster/locks/semaphore_internal.h"

#include <stdarg.h>

#define RETRY_MS_MIN 50u
#define RETRY_MS_MAX 1000u

int semaphores_new(const struct semaphore_options *o, struct semaphores **out)
{
    struct semaphores *s = mem_calloc(1, sizeof *s);

    *out = s;
    if (s == NULL) {
        return HEDGE_ENOMEM;
    }
    s->o = *o;
    s->reload_ms = s->sweep_ms = s->retry_ms = SEMAPHORE_NEVER;
    list_init(&s->all);
    list_init(&s->holders);
    list_init(&s->detached);
    list_init(&s->pumps);
    list_init(&s->dirty);
    list_init(&s->flight);
    list_init(&s->dirty_calls);
    list_init(&s->flight_calls);
    list_init(&s->early);
    for (size_t i = 0; i < SEM_BUCKETS; i++) {
        list_init(&s->by_name[i]);
        list_init(&s->by_id[i]);
        list_init(&s->by_key[i]);
    }
    return 0;
}

void semaphores_use(const struct semaphores *s, struct semaphores_use *out)
{
    out->claims = s->n_claims;
    out->sessions = s->n_holders;
}

/* --- answers ----------------------------------------------------------------
 */

void sem_answer(struct semaphores *s, struct semaphore_call *c, int status,
                const char *fmt, ...)
{
    va_list ap;

    list_remove(&c->link);
    c->status = status;
    if (status == 0 || c->op != SEMAPHORE_LIST) { /* It may go on elsewhere. */
        c->term = s->term;
        c->at = s->at;
    }
    va_start(ap, fmt);
    (void)vsnprintf(c->text, sizeof c->text, fmt, ap);
    va_end(ap);
    list_push(&s->out->answers, &c->link);
}

static void answer_all(struct semaphores *s, struct list *calls, int status,
                       const char *text)
{
    while (!list_empty(calls)) {
        sem_answer(s, container_of(calls->next, struct semaphore_call, link),
                   status, "%s", text);
    }
}

void sem_answer_durably(struct semaphores *s, struct semaphore_call *c)
{
    if (list_empty(&s->dirty) && s->append_id == 0) {
        sem_answer(s, c, 0, "%s", "");
    } else if (list_empty(&s->dirty)) {
        list_push(&s->flight_calls, &c->link);
    } else {
        list_push(&s->dirty_calls, &c->link);
    }
}

/* --- finding ----------------------------------------------------------------
 */

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static struct list *name_bucket(struct semaphores *s, const char *name)
{
    uint64_t h = 14695981039346656037u;

    for (const char *p = name; *p != '\0'; p++) {
        h = (h ^ (unsigned char)*p) * 1099511628211u;
    }
    return &s->by_name[mix(h) % SEM_BUCKETS];
}

struct semaphore *sem_find_semaphore(struct semaphores *s, const char *name)
{
    struct list *bucket = name_bucket(s, name), *l;

    list_foreach (l, bucket) {
        struct semaphore *m = container_of(l, struct semaphore, by_name);
        if (strcmp(m->name, name) == 0) {
            return m;
        }
    }
    return NULL;
}

bool sem_is_forgotten(const struct semaphore *m)
{
    return m->n_grants == 0 && m->n_waiters == 0;
}

struct holder *sem_find_holder(struct semaphores *s, uint64_t id)
{
    struct list *l;

    list_foreach (l, &s->by_id[mix(id) % SEM_BUCKETS]) {
        struct holder *h = container_of(l, struct holder, by_id);
        if (h->id == id) {
            return h;
        }
    }
    return NULL;
}

static struct list *key_bucket(struct semaphores *s, uint64_t session,
                               uint64_t request)
{
    return &s->by_key[mix(session ^ mix(request)) % SEM_BUCKETS];
}

struct claim *sem_find_claim(struct semaphores *s, uint64_t session,
                             uint64_t request)
{
    struct list *l;

    list_foreach (l, key_bucket(s, session, request)) {
        struct claim *c = container_of(l, struct claim, by_key);
        if (c->session == session && c->request == request) {
            return c;
        }
    }
    return NULL;
}

void sem_due(struct semaphores *s, uint64_t at_ms)
{
    s->sweep_ms = at_ms < s->sweep_ms ? at_ms : s->sweep_ms;
}

uint64_t sem_after(uint64_t now_ms, uint64_t ms)
{
    return ms < SEMAPHORE_NEVER - now_ms ? now_ms + ms : SEMAPHORE_NEVER;
}

/* --- objects ----------------------------------------------------------------
 */

struct semaphore *sem_get_semaphore(struct semaphores *s, const char *name,
                                    uint32_t limit)
{
    struct semaphore *m = sem_find_semaphore(s, name);

    if (m != NULL) {
        if (sem_is_forgotten(m)) {
            m->limit = limit;
        }
        return m;
    }
    m = mem_calloc(1, sizeof *m);
    if (m == NULL) {
        return NULL;
    }
    (void)snprintf(m->name, sizeof m->name, "%s", name);
    m->limit = limit;
    list_init(&m->grants);
    list_init(&m->waiters);
    list_init(&m->pump);
    list_push(&s->all, &m->link);
    list_push(name_bucket(s, m->name), &m->by_name);
    return m;
}

void sem_drop_semaphore(struct semaphore *m)
{
    if (m->n_claims == 0) {
        list_remove(&m->link);
        list_remove(&m->by_name);
        list_remove(&m->pump);
        mem_free(m);
    }
}

struct holder *sem_get_holder(struct semaphores *s, uint64_t id,
                              uint64_t lease_ms, const char *name)
{
    struct holder *h = sem_find_holder(s, id);

    if (h != NULL || s->n_holders >= SEMAPHORE_SESSIONS_MAX) {
        return h;
    }
    h = mem_calloc(1, sizeof *h);
    if (h == NULL) {
        return NULL;
    }
    h->id = id;
    h->lease_ms = lease_ms;
    h->deadline_ms = s->now_ms + lease_ms;
    (void)snprintf(h->name, sizeof h->name, "%s", name);
    list_init(&h->claims);
    list_init(&h->watchers);
    list_push(&s->holders, &h->link);
    list_push(&s->by_id[mix(id) % SEM_BUCKETS], &h->by_id);
    s->n_holders++;
    sem_due(s, h->deadline_ms);
    return h;
}

static void drop_holder(struct semaphores *s, struct holder *h)
{
    assert(list_empty(&h->claims) && list_empty(&h->watchers));
    list_remove(&h->link);
    list_remove(&h->by_id);
    s->n_holders--;
    mem_free(h);
}

struct claim *sem_new_claim(struct semaphores *s, struct semaphore *m,
                            uint64_t session, uint64_t request)
{
    struct claim *c = mem_calloc(1, sizeof *c);

    if (c == NULL) {
        return NULL;
    }
    c->semaphore = m;
    c->session = session;
    c->request = request;
    list_init(&c->of_semaphore);
    list_init(&c->of_holder);
    list_init(&c->dirty);
    list_init(&c->flight);
    list_init(&c->calls);
    list_push(key_bucket(s, session, request), &c->by_key);
    m->n_claims++;
    s->n_claims++;
    return c;
}

static void free_claim(struct semaphores *s, struct claim *c)
{
    struct semaphore *m = c->semaphore;

    assert(list_empty(&c->calls));
    list_remove(&c->of_semaphore);
    list_remove(&c->of_holder);
    list_remove(&c->by_key);
    list_remove(&c->dirty);
    list_remove(&c->flight);
    mem_free(c);
    s->n_claims--;
    m->n_claims--;
    sem_drop_semaphore(m);
}

void sem_touch(struct semaphores *s, struct claim *c)
{
    if (list_empty(&c->dirty)) {
        list_push(&s->dirty, &c->dirty);
    }
}

static void look_at(struct semaphores *s, struct semaphore *m)
{
    if (list_empty(&m->pump)) {
        list_push(&s->pumps, &m->pump);
    }
}

/* --- the life of a claim ----------------------------------------------------
 */

void sem_stand_in_line(struct semaphores *s, struct claim *c)
{
    struct semaphore *m = c->semaphore;
    struct list *l = m->waiters.prev;

    while (l != &m->waiters) {
        const struct claim *w = container_of(l, struct claim, of_semaphore);
        if (w->order_term < c->order_term ||
            (w->order_term == c->order_term && w->order <= c->order)) {
            break;
        }
        l = l->prev;
    }
    list_push_front(l, &c->of_semaphore); /* Behind `l`. */
    c->state = CLAIM_WAITING;
    m->n_waiters++;
    look_at(s, m);
}

static void count_grant(struct claim *c)
{
    struct semaphore *m = c->semaphore;

    c->state = CLAIM_GRANTED;
    m->used += c->permits;
    m->n_grants++;
    list_push(&m->grants, &c->of_semaphore);
}

static void grant(struct semaphores *s, struct claim *c)
{
    assert(c->state == CLAIM_WAITING);
    list_remove(&c->of_semaphore);
    c->semaphore->n_waiters--;
    count_grant(c);
    c->granted_at = ++s->at; /* Of this one alone. */
    c->deadline_ms = SEMAPHORE_NEVER;
    if (c->ttl_ms != 0) {
        list_remove(&c->of_holder);
        list_push(&s->detached, &c->of_holder);
        c->holder = NULL;
        c->deadline_ms = sem_after(s->now_ms, c->ttl_ms);
        sem_due(s, c->deadline_ms);
    }
    sem_touch(s, c);
}

void sem_end_claim(struct semaphores *s, struct claim *c, int status,
                   const char *text)
{
    struct semaphore *m = c->semaphore;
    bool granted = c->state == CLAIM_GRANTED;

    assert(c->state != CLAIM_ENDED);
    answer_all(s, &c->calls, status, text);
    list_remove(&c->of_semaphore);
    list_remove(&c->of_holder);
    list_remove(&c->by_key);
    c->holder = NULL;
    c->state = CLAIM_ENDED;
    look_at(s, m);
    if (granted) {
        assert(m->used >= c->permits && m->n_grants > 0);
        m->used -= c->permits;
        m->n_grants--;
    } else {
        m->n_waiters--;
    }
    if (c->has_row || !list_empty(&c->flight)) {
        sem_touch(s, c);
    } else {
        free_claim(s, c);
    }
}

void sem_wake_watchers(struct semaphores *s, struct holder *h, int status,
                       const char *text)
{
    h->revoked_at = s->at;
    answer_all(s, &h->watchers, status, text);
}

void sem_end_holder(struct semaphores *s, struct holder *h, int status,
                    const char *text)
{
    sem_wake_watchers(s, h, HEDGE_ENOTFOUND, text);
    while (!list_empty(&h->claims)) {
        sem_end_claim(s, container_of(h->claims.next, struct claim, of_holder),
                      status, text);
    }
    drop_holder(s, h);
}

static void pump_one(struct semaphores *s, struct semaphore *m)
{
    while (!list_empty(&m->waiters)) {
        struct claim *c =
            container_of(m->waiters.next, struct claim, of_semaphore);
        if (m->used + c->permits > m->limit) {
            break; /* Nobody overtakes the first. */
        }
        grant(s, c);
    }
}

void sem_pump(struct semaphores *s)
{
    struct list *l;

    if (s->now_ms < s->grant_from_ms) {
        return;
    }
    while ((l = list_pop(&s->pumps)) != NULL) {
        pump_one(s, container_of(l, struct semaphore, pump));
    }
}

/* --- deadlines --------------------------------------------------------------
 */

static void sweep_watchers(struct semaphores *s, struct holder *h)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, &h->watchers) {
        struct semaphore_call *c = container_of(l, struct semaphore_call, link);
        if (c->wait_ms <= s->now_ms) {
            sem_answer(s, c, HEDGE_ETIMEDOUT, "nothing has been taken away");
        } else {
            sem_due(s, c->wait_ms);
        }
    }
}

static void sweep_holders(struct semaphores *s)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, &s->holders) {
        struct holder *h = container_of(l, struct holder, link);
        if (h->deadline_ms <= s->now_ms) {
            sem_end_holder(s, h, HEDGE_ENOTFOUND, SEM_EXPIRED_TEXT);
        } else {
            sem_due(s, h->deadline_ms);
            sweep_watchers(s, h);
        }
    }
}

static void sweep_grants(struct semaphores *s, struct list *claims)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, claims) {
        struct claim *c = container_of(l, struct claim, of_holder);
        if (c->state != CLAIM_GRANTED) {
            continue;
        }
        if (c->deadline_ms <= s->now_ms) {
            sem_end_claim(s, c, HEDGE_EFENCED, "the grant has ended");
        } else {
            sem_due(s, c->deadline_ms);
        }
    }
}

static void sweep_waiters(struct semaphores *s, struct holder *h)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, &h->claims) {
        struct claim *c = container_of(l, struct claim, of_holder);
        if (c->state != CLAIM_WAITING) {
            continue;
        }
        if (c->deadline_ms > s->now_ms) {
            sem_due(s, c->deadline_ms);
        } else if (c->try_only) {
            sem_end_claim(s, c, HEDGE_EBUSY, "not enough permits are free");
        } else {
            sem_end_claim(s, c, HEDGE_ETIMEDOUT,
                          "not granted in time, and not in line any more");
        }
    }
}

/* Those who wait are looked at last: what ends now may still be theirs. */
static void sweep(struct semaphores *s)
{
    struct list *l;

    if (s->now_ms < s->sweep_ms) {
        return;
    }
    s->sweep_ms = SEMAPHORE_NEVER;
    sweep_holders(s);
    sweep_grants(s, &s->detached);
    list_foreach (l, &s->holders) {
        sweep_grants(s, &container_of(l, struct holder, link)->claims);
    }
    sem_pump(s);
    list_foreach (l, &s->holders) {
        sweep_waiters(s, container_of(l, struct holder, link));
    }
}

/* --- appends ----------------------------------------------------------------
 */

static void fill_row(const struct claim *c, struct semaphore_row *row)
{
    (void)snprintf(row->name, sizeof row->name, "%s", c->semaphore->name);
    (void)snprintf(row->holder, sizeof row->holder, "%s", c->name);
    row->session = c->session;
    row->request = c->request;
    row->lease_ms = c->lease_ms;
    row->ttl_ms = c->ttl_ms;
    row->token = c->token;
    row->limit = c->semaphore->limit;
    row->permits = c->permits;
    row->revoked = c->revoked;
    row->deleted = c->state == CLAIM_ENDED;
}

static size_t count_dirty(struct semaphores *s)
{
    struct list *l, *tmp;
    size_t n = 0;

    list_foreach_safe (l, tmp, &s->dirty) {
        struct claim *c = container_of(l, struct claim, dirty);
        if (c->state == CLAIM_ENDED && !c->has_row) {
            free_claim(s, c); /* Its row was refused, or never made. */
        } else if (++n == SEMAPHORE_BATCH_MAX) {
            break;
        }
    }
    return n;
}

static void start_append(struct semaphores *s)
{
    struct semaphore_row *rows;
    size_t n;

    if (s->state != STATE_SERVING || s->append_id != 0) {
        return;
    }
    n = count_dirty(s);
    if (n == 0) {
        answer_all(s, &s->dirty_calls, 0, "");
        return;
    }
    rows = mem_calloc(n, sizeof *rows);
    if (rows == NULL) {
        s->retry_ms = s->now_ms + RETRY_MS_MIN;
        return;
    }
    s->retry_ms = SEMAPHORE_NEVER;
    for (size_t i = 0; i < n; i++) {
        struct claim *c =
            container_of(list_pop(&s->dirty), struct claim, dirty);
        fill_row(c, &rows[i]);
        list_push(&s->flight, &c->flight);
    }
    if (list_empty(&s->dirty)) { /* Else theirs may be in the rest. */
        list_splice(&s->flight_calls, &s->dirty_calls);
    }
    s->append_id = ++s->next_id;
    s->out->append_id = s->append_id;
    s->out->rows = rows;
    s->out->n_rows = n;
}

/* Everything is forgotten; those who asked may ask again. */
static void reset(struct semaphores *s, const char *text)
{
    struct list *l, *tmp, *claims, *ctmp;

    answer_all(s, &s->early, HEDGE_ENOTLEADER, text);
    answer_all(s, &s->dirty_calls, HEDGE_ENOTLEADER, text);
    answer_all(s, &s->flight_calls, HEDGE_ENOTLEADER, text);
    list_foreach_safe (l, tmp, &s->all) {
        struct semaphore *m = container_of(l, struct semaphore, link);
        m->n_claims++; /* It goes below, not with the last of them. */
        list_foreach_safe (claims, ctmp, &m->waiters) {
            struct claim *c = container_of(claims, struct claim, of_semaphore);
            answer_all(s, &c->calls, HEDGE_ENOTLEADER, text);
            free_claim(s, c);
        }
        list_foreach_safe (claims, ctmp, &m->grants) {
            struct claim *c = container_of(claims, struct claim, of_semaphore);
            answer_all(s, &c->calls, HEDGE_ENOTLEADER, text);
            free_claim(s, c);
        }
        m->n_claims--;
        sem_drop_semaphore(m);
    }
    while (!list_empty(&s->dirty)) { /* What is left has ended. */
        free_claim(s, container_of(s->dirty.next, struct claim, dirty));
    }
    while (!list_empty(&s->flight)) {
        free_claim(s, container_of(s->flight.next, struct claim, flight));
    }
    list_foreach_safe (l, tmp, &s->holders) {
        struct holder *h = container_of(l, struct holder, link);
        answer_all(s, &h->watchers, HEDGE_ENOTLEADER, text);
        drop_holder(s, h);
    }
    assert(s->n_claims == 0 && s->n_holders == 0 && list_empty(&s->all));
    s->append_id = s->load_id = 0;
    s->sweep_ms = s->retry_ms = s->reload_ms = SEMAPHORE_NEVER;
    s->state = STATE_IDLE;
}

static const char not_leader[] = "this node is not the leader";

static void load(struct semaphores *s)
{
    s->state = STATE_LOADING;
    s->reload_ms = SEMAPHORE_NEVER;
    s->load_id = ++s->next_id;
    s->out->load_id = s->load_id;
}

static void load_later(struct semaphores *s)
{
    uint64_t pause = RETRY_MS_MIN;

    for (unsigned i = 0; i < s->failures && pause < RETRY_MS_MAX; i++) {
        pause *= 2;
    }
    s->failures++;
    s->state = STATE_LOADING;
    s->load_id = 0;
    s->reload_ms = s->now_ms + (pause < RETRY_MS_MAX ? pause : RETRY_MS_MAX);
}

static void row_is_written(struct semaphores *s, struct claim *c,
                           uint64_t revision)
{
    if (c->state == CLAIM_ENDED && list_empty(&c->dirty)) {
        free_claim(s, c); /* It was its deletion. */
        return;
    }
    c->has_row = true;
    if (c->token == 0) {
        c->token = revision;
        c->held_at = s->at;
    }
    while (c->state == CLAIM_GRANTED && !list_empty(&c->calls)) {
        struct semaphore_call *call =
            container_of(c->calls.next, struct semaphore_call, link);
        call->token = c->token;
        sem_answer(s, call, 0, "%s", "");
    }
}

/* Fenced, and no leader any more. One that still is by its own deadline has met
 * a moment of doubt, and would serve nobody for the rest of its term: it tries
 * again until SEMAPHORE_LOST. */
static bool is_deposed(const struct semaphore_event *ev)
{
    return ev->status == HEDGE_EFENCED && !ev->leads;
}

static void on_appended(struct semaphores *s, const struct semaphore_event *ev)
{
    struct list *l;
    size_t i = 0;

    if (ev->id != s->append_id || ev->id == 0) {
        return; /* Of a leadership, or a state, that is over. */
    }
    s->append_id = 0;
    if (ev->status != 0) {
        reset(s, is_deposed(ev)
                     ? not_leader
                     : "the engine has failed; what it holds is read again");
        if (!is_deposed(ev)) {
            load_later(s);
        }
        return;
    }
    while ((l = list_pop(&s->flight)) != NULL) {
        row_is_written(s, container_of(l, struct claim, flight),
                       ev->revisions[i++]);
    }
    answer_all(s, &s->flight_calls, 0, "");
}

/* --- loading ----------------------------------------------------------------
 */

static int load_row(struct semaphores *s, const struct semaphore_row *row)
{
    struct semaphore *m = sem_get_semaphore(s, row->name, row->limit);
    struct holder *h = NULL;
    struct claim *c;

    if (m == NULL) {
        return HEDGE_ENOMEM;
    }
    if (row->ttl_ms == 0) {
        h = sem_get_holder(s, row->session, row->lease_ms, row->holder);
    }
    c = row->ttl_ms == 0 && h == NULL
            ? NULL
            : sem_new_claim(s, m, row->session, row->request);
    if (c == NULL) {
        sem_drop_semaphore(m);
        return HEDGE_ENOMEM;
    }
    if (h != NULL && h->lease_ms < row->lease_ms) {
        h->lease_ms = row->lease_ms;
        h->deadline_ms = s->now_ms + h->lease_ms;
    }
    c->holder = h;
    c->permits = row->permits;
    c->lease_ms = row->lease_ms;
    c->ttl_ms = row->ttl_ms;
    c->token = row->token;
    c->revoked = row->revoked;
    c->has_row = true;
    memcpy(c->name, row->holder, sizeof c->name);
    c->deadline_ms = h == NULL      ? sem_after(s->now_ms, c->ttl_ms)
                     : row->revoked ? h->deadline_ms
                                    : SEMAPHORE_NEVER;
    sem_due(s, c->deadline_ms);
    list_push(h != NULL ? &h->claims : &s->detached, &c->of_holder);
    count_grant(c);
    return 0;
}

static void on_loaded(struct semaphores *s, const struct semaphore_event *ev)
{
    struct list early;
    int rv = ev->status;

    if (s->state != STATE_LOADING || ev->id != s->load_id) {
        return;
    }
    if (rv != 0 && is_deposed(ev)) {
        reset(s, not_leader);
        return;
    }
    for (size_t i = 0; rv == 0 && i < ev->n_rows; i++) {
        rv = load_row(s, &ev->rows[i]);
    }
    if (rv != 0) {
        /* Who waits is sent away to come again: who has gone does not, and is
         * not kept for as long as the engine fails. */
        reset(s, "the engine has failed");
        load_later(s);
        return;
    }
    list_init(&early);
    list_splice(&early, &s->early);
    s->state = STATE_SERVING;
    s->load_id = 0;
    s->failures = 0;
    s->grant_from_ms = s->now_ms + s->o.requeue_ms;
    sem_due(s, s->grant_from_ms);
    while (!list_empty(&early)) {
        struct semaphore_call *c =
            container_of(early.next, struct semaphore_call, link);
        list_remove(&c->link);
        if (ev->leads) {
            sem_take_call(s, c);
        } else {
            sem_answer(s, c, HEDGE_ENOTLEADER, "%s", not_leader);
        }
    }
}

/* --- steps ------------------------------------------------------------------
 */

static void on_call(struct semaphores *s, const struct semaphore_event *ev)
{
    struct semaphore_call *c = ev->call;

    list_init(&c->link);
    if (s->state == STATE_IDLE || !ev->leads) {
        sem_answer(s, c, HEDGE_ENOTLEADER, "%s", not_leader);
    } else if (s->state == STATE_LOADING) {
        list_push(&s->early, &c->link);
    } else {
        sem_take_call(s, c);
    }
}

static uint64_t min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t wake(const struct semaphores *s)
{
    if (s->state == STATE_IDLE) {
        return SEMAPHORE_NEVER;
    }
    return min(min(s->reload_ms, s->retry_ms), s->sweep_ms);
}

void semaphores_step(struct semaphores *s, const struct semaphore_event *ev,
                     uint64_t now_ms, struct semaphore_actions *out)
{
    memset(out, 0, sizeof *out);
    list_init(&out->answers);
    s->out = out;
    s->now_ms = now_ms;
    s->at++;
    if (s->state == STATE_SERVING) {
        sweep(s); /* Who comes too late has come too late. */
    }
    switch (ev->type) {
    case SEMAPHORE_LEAD:
        reset(s, not_leader);
        assert(ev->term > s->term);
        s->term = ev->term;
        s->order = 0;
        s->failures = 0;
        load(s);
        break;
    case SEMAPHORE_LOST:
        reset(s, not_leader);
        break;
    case SEMAPHORE_LOADED:
        on_loaded(s, ev);
        break;
    case SEMAPHORE_APPENDED:
        on_appended(s, ev);
        break;
    case SEMAPHORE_CALL:
        on_call(s, ev);
        break;
    case SEMAPHORE_TICK:
        break;
    }
    if (s->state == STATE_LOADING && now_ms >= s->reload_ms) {
        load(s);
    }
    if (s->state == STATE_SERVING) {
        sweep(s);
        sem_pump(s);
        start_append(s);
    }
    out->wake_ms = wake(s);
    s->out = NULL;
}

static void free_calls(struct list *calls)
{
    while (list_pop(calls) != NULL) {
    }
}

void semaphores_free(struct semaphores *s)
{
    struct semaphore_actions unused;

    if (s == NULL) {
        return;
    }
    memset(&unused, 0, sizeof unused);
    list_init(&unused.answers);
    s->out = &unused;
    reset(s, not_leader);
    free_calls(&unused.answers);
    mem_free(s);
}
