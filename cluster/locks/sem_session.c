#include "cluster/locks/sem_session.h"

#include "cluster/locks/locks_internal.h"
#include "cluster/locks/sem_view.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define OPEN_MS 15000
#define CLOSE_MS 1000
#define WATCH_MS 60000
#define AGAIN_MS 100 /* After a renewal that failed. */

/* A claim from before it is asked for until it is given back or lost. */
struct held {
    struct list link;
    const void *owner;
    uint64_t request;
    uint64_t token;    /* 0: not granted yet. */
    uint64_t term, at; /* Of the grant's answer. */
    uint64_t until_ms; /* 0: the next renewal tells. */
    bool lost;         /* A renewal did not list it, or its time is up. */
    bool given;        /* To who asked for it. */
    bool told;         /* It is lost for good. */
    char name[SEMAPHORE_NAME_SIZE];
};

struct sem_session {
    struct hedge_node *node;
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock; /* Over all that follows. */
    pthread_cond_t wake;  /* The thread, and who waits for a renewal. */
    bool closing;
    bool wanted;          /* Somebody uses it. */
    uint64_t id;          /* 0: none. */
    uint64_t renewals;    /* That were answered. */
    uint64_t failures;    /* In a row. */
    uint64_t renew_at_ms; /* On the boot clock. */
    struct sem_view view;
    struct list held;
    uint64_t next_request;
    bool watching; /* `watch` is the loop's. */
    struct lock_call watch;
};

static uint64_t random_id(void)
{
    uint64_t id = 0;

    while (id == 0) {
        if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id) {
            id = clock_wall_ns() ^ clock_mono_ns() << 20;
        }
    }
    return id;
}

static void wait_ms(struct sem_session *s, uint64_t ms)
{
    uint64_t until = clock_mono_ns() + ms * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                          .tv_nsec = (long)(until % 1000000000u)};

    (void)pthread_cond_timedwait(&s->wake, &s->lock, &ts);
}

/* --- renewing ---------------------------------------------------------------
 */

static struct held *find_request(struct sem_session *s, uint64_t request)
{
    struct list *l;

    list_foreach (l, &s->held) {
        struct held *h = container_of(l, struct held, link);
        if (h->request == request) {
            return h;
        }
    }
    return NULL;
}

static void on_canceled(struct lock_call *c)
{
    lock_call_release(c);
    mem_free(c);
}

/* A grant that nobody here waits for any more. */
static void cancel_orphan(struct sem_session *s, uint64_t request)
{
    struct lock_call *c = mem_alloc(sizeof *c);

    if (c != NULL) { /* Else at the next renewal. */
        lock_call_init(c, SEMAPHORE_CANCEL, OPEN_MS);
        c->call.session = s->id;
        c->call.request = request;
        c->done = on_canceled;
        locks_submit(s->node, c);
    }
}

static void take_list(struct sem_session *s, const struct semaphore_call *c)
{
    struct list *l;

    list_foreach (l, &s->held) {
        struct held *h = container_of(l, struct held, link);
        uint64_t until_ms = sem_view_granted(&s->view, h->term, h->at);

        if (h->token != 0 && until_ms != 0) {
            h->until_ms = until_ms; /* The list is from before the grant. */
        } else {
            h->lost = h->token != 0;
        }
    }
    for (size_t i = 0; i < c->n_held; i++) {
        struct held *h = find_request(s, c->held[i].request);
        if (h == NULL) {
            cancel_orphan(s, c->held[i].request);
        } else if (h->token == c->held[i].token) {
            h->lost = h->told;
            h->until_ms = s->view.until_ms;
        }
    }
}

static void session_lost(struct sem_session *s)
{
    struct list *l;
    bool any = false;

    list_foreach (l, &s->held) {
        struct held *h = container_of(l, struct held, link);
        any = any || h->token != 0;
        h->lost = h->token != 0;
    }
    if (any) {
        log_warn("locks", "this node's session has expired: what it held of "
                          "semaphores is lost");
    }
    s->id = 0;
}

/* Something may have been taken away: the next renewal tells what. */
static void on_watched(struct lock_call *c)
{
    struct sem_session *s = c->ctx;

    pthread_mutex_lock(&s->lock);
    s->watching = false;
    if (c->call.status == 0) {
        s->renew_at_ms = 0;
        pthread_cond_broadcast(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
}

/* To be told when a grant is taken away, and not only to be answered so at the
 * next renewal. The lock is given up for it. */
static void watch(struct sem_session *s)
{
    if (s->watching || s->closing || list_empty(&s->held)) {
        return;
    }
    s->watching = true;
    lock_call_init(&s->watch, SEMAPHORE_WATCH, WATCH_MS);
    s->watch.call.session = s->id;
    s->watch.call.term = s->view.term;
    s->watch.call.at = s->view.at;
    s->watch.call.wait_ms = WATCH_MS;
    s->watch.done = on_watched;
    s->watch.ctx = s;
    pthread_mutex_unlock(&s->lock);
    locks_submit(s->node, &s->watch);
    pthread_mutex_lock(&s->lock);
}

/* With the lock held; it is given up for the call, which ends when the first
 * grant does: there is something to be told then. */
static void renew(struct sem_session *s, uint64_t ends_ms)
{
    struct lock_call c;
    uint64_t start = clock_boot_ms(), ms;
    int rv;

    if (s->id == 0) {
        s->id = random_id();
        lock_call_init(&c, SEMAPHORE_OPEN, OPEN_MS);
    } else {
        ms = ends_ms > start ? ends_ms - start : 1;
        lock_call_init(&c, SEMAPHORE_RENEW,
                       ms < sem_view_renew_ms(SEMAPHORE_LEASE_MS)
                           ? ms
                           : sem_view_renew_ms(SEMAPHORE_LEASE_MS));
    }
    c.call.session = s->id;
    c.call.lease_ms = SEMAPHORE_LEASE_MS;
    (void)snprintf(c.call.holder, sizeof c.call.holder, "%s", s->node->id);
    s->renew_at_ms = start + sem_view_renew_ms(SEMAPHORE_LEASE_MS);
    pthread_mutex_unlock(&s->lock);
    rv = locks_call(s->node, &c, NULL);
    pthread_mutex_lock(&s->lock);
    s->failures = rv == 0 ? 0 : s->failures + 1;
    if (rv == 0 && sem_view_renewed(&s->view, start, c.call.lease_ms,
                                    c.call.term, c.call.at)) {
        take_list(s, &c.call);
        watch(s);
    } else if (rv == HEDGE_ENOTFOUND) {
        session_lost(s);
        s->renew_at_ms = 0;
    } else if (rv != 0) {
        s->renew_at_ms = clock_boot_ms() + AGAIN_MS;
    }
    s->renewals++;
    pthread_cond_broadcast(&s->wake);
    lock_call_release(&c);
}

/* --- losing -----------------------------------------------------------------
 */

static bool is_held(const struct held *h)
{
    return !h->lost && clock_boot_ms() < h->until_ms;
}

/* A grant that is not held any more, and whose owner does not know; NULL, and
 * when the first of the others ends. */
static struct held *find_loss(struct sem_session *s, uint64_t *ends_ms)
{
    struct list *l;

    *ends_ms = UINT64_MAX;
    list_foreach (l, &s->held) {
        struct held *h = container_of(l, struct held, link);
        bool waits = h->given && !h->told;

        if (waits && !is_held(h)) {
            return h;
        }
        if (waits && h->until_ms < *ends_ms) {
            *ends_ms = h->until_ms;
        }
    }
    return NULL;
}

/* The lock is given up for it. */
static void tell_loss(struct sem_session *s, struct held *h)
{
    const struct hedge_options *o = &s->node->o;
    char name[SEMAPHORE_NAME_SIZE];
    uint64_t token = h->token;

    h->told = h->lost = true;
    memcpy(name, h->name, sizeof name);
    if (o->on_lost != NULL) {
        pthread_mutex_unlock(&s->lock);
        o->on_lost(o->data, name, token);
        pthread_mutex_lock(&s->lock);
    }
}

static void *session_main(void *arg)
{
    struct sem_session *s = arg;

    pthread_mutex_lock(&s->lock);
    while (!s->closing) {
        uint64_t now = clock_boot_ms(), ends_ms, next_ms;
        struct held *lost = find_loss(s, &ends_ms);

        next_ms = ends_ms < s->renew_at_ms ? ends_ms : s->renew_at_ms;
        if (lost != NULL) {
            tell_loss(s, lost);
        } else if (!s->wanted) {
            pthread_cond_wait(&s->wake, &s->lock);
        } else if (now < next_ms) {
            wait_ms(s, next_ms - now);
        } else if (now >= s->renew_at_ms) {
            renew(s, ends_ms);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Wait for the next answer to a renewal, which is to come soon. */
static bool await_renewal(struct sem_session *s, uint64_t deadline_ms)
{
    uint64_t seen = s->renewals, now = clock_boot_ms();

    s->wanted = true;
    if (s->id == 0 || s->failures == 0) {
        s->renew_at_ms = 0;
        pthread_cond_broadcast(&s->wake);
    }
    while (s->renewals == seen && !s->closing && now < deadline_ms) {
        uint64_t left = deadline_ms - now;
        wait_ms(s, left < 1000 ? left : 1000);
        now = clock_boot_ms();
    }
    return s->renewals != seen;
}

/* --- acquiring --------------------------------------------------------------
 */

static bool is_open(const struct sem_session *s)
{
    return s->id != 0 && s->view.term != 0 &&
           clock_boot_ms() < s->view.until_ms;
}

static int open_session(struct sem_session *s, uint64_t deadline_ms,
                        struct hedge_error *e)
{
    while (!is_open(s)) {
        if (s->closing) {
            return error_set(e, HEDGE_ECLOSED, "the node stops");
        }
        if (!await_renewal(s, deadline_ms) && clock_boot_ms() >= deadline_ms) {
            return error_set(e, HEDGE_ENOLEADER,
                             "the group has no leader at present");
        }
    }
    return 0;
}

static struct held *begin_claim(struct sem_session *s, const void *owner,
                                const char *name)
{
    struct held *h = mem_calloc(1, sizeof *h);

    if (h != NULL) {
        h->owner = owner;
        h->request = ++s->next_request;
        (void)snprintf(h->name, sizeof h->name, "%s", name);
        list_push(&s->held, &h->link);
    }
    return h;
}

static void end_claim(struct held *h)
{
    list_remove(&h->link);
    mem_free(h);
}

/* Is it held? The lock may be given up meanwhile. */
static int settle(struct sem_session *s, struct held *h,
                  const struct semaphore_call *c, uint64_t deadline_ms,
                  struct hedge_error *e)
{
    h->token = c->token;
    if (c->session == s->id) {
        h->term = c->term;
        h->at = c->at;
        h->until_ms = sem_view_granted(&s->view, c->term, c->at);
    }
    while (h->until_ms == 0 && !h->lost && !s->closing &&
           clock_boot_ms() < deadline_ms) {
        (void)await_renewal(s, deadline_ms);
    }
    if (h->until_ms != 0) {
        return 0;
    }
    return error_set(e, h->lost ? HEDGE_EUNAVAILABLE : HEDGE_ETIMEDOUT,
                     "the grant of \"%s\" was lost before it was heard of",
                     h->name);
}

int sem_session_acquire(struct sem_session *s, const void *owner,
                        const char *name, uint32_t limit, uint32_t permits,
                        bool try_only, uint64_t timeout_ms, uint64_t *token,
                        struct hedge_error *e)
{
    uint64_t now = clock_boot_ms();
    uint64_t deadline_ms =
        timeout_ms < UINT64_MAX - now ? now + timeout_ms : UINT64_MAX;
    struct lock_call c;
    struct held *h;
    int rv;

    *token = 0;
    lock_call_init(&c, SEMAPHORE_ACQUIRE, timeout_ms);
    (void)lock_call_name(&c, name);
    pthread_mutex_lock(&s->lock);
    rv = open_session(s, deadline_ms, e);
    h = rv == 0 ? begin_claim(s, owner, name) : NULL;
    if (h == NULL) {
        pthread_mutex_unlock(&s->lock);
        return rv != 0 ? rv : error_set(e, HEDGE_ENOMEM, "out of memory");
    }
    c.call.session = s->id;
    c.call.request = h->request;
    pthread_mutex_unlock(&s->lock);
    c.call.lease_ms = SEMAPHORE_LEASE_MS;
    c.call.limit = limit;
    c.call.permits = permits;
    now = clock_boot_ms();
    c.call.wait_ms = try_only                    ? 0
                     : deadline_ms == UINT64_MAX ? UINT64_MAX
                     : deadline_ms > now         ? deadline_ms - now
                                                 : 1;
    (void)snprintf(c.call.holder, sizeof c.call.holder, "%s", s->node->id);
    rv = locks_call(s->node, &c, e);
    pthread_mutex_lock(&s->lock);
    rv = rv == 0 ? settle(s, h, &c.call, deadline_ms, e) : rv;
    if (rv == 0) {
        *token = h->token;
        h->given = true;
        pthread_cond_broadcast(&s->wake); /* Its end may be the next. */
    } else {
        end_claim(h); /* If it was granted, the next renewal gives it back. */
    }
    pthread_mutex_unlock(&s->lock);
    lock_call_release(&c);
    return rv;
}

/* --- and giving back --------------------------------------------------------
 */

static struct held *find_token(struct sem_session *s, const char *name,
                               uint64_t token)
{
    struct list *l;

    list_foreach (l, &s->held) {
        struct held *h = container_of(l, struct held, link);
        if (token != 0 && h->token == token && strcmp(h->name, name) == 0) {
            return h;
        }
    }
    return NULL;
}

int sem_session_release(struct sem_session *s, const char *name, uint64_t token,
                        uint64_t timeout_ms, struct hedge_error *e)
{
    struct lock_call c;
    struct held *h;
    bool was_held;
    int rv;

    lock_call_init(&c, SEMAPHORE_RELEASE, timeout_ms);
    (void)lock_call_name(&c, name);
    c.call.token = token;
    pthread_mutex_lock(&s->lock);
    c.call.session = s->id;
    h = find_token(s, name, token);
    was_held = h != NULL && is_held(h);
    if (h != NULL) {
        end_claim(h);
    }
    pthread_mutex_unlock(&s->lock);
    if (h == NULL || c.call.session == 0) {
        return error_set(e, HEDGE_EFENCED,
                         "token %llu of semaphore \"%s\" is not held any more",
                         (unsigned long long)token, name);
    }
    rv = locks_call(s->node, &c, e);
    if (rv == HEDGE_EFENCED && was_held) {
        rv = 0; /* Asked twice, of two leaders; the first has done it. */
    }
    return rv;
}

uint64_t sem_session_remaining_ms(struct sem_session *s, const char *name,
                                  uint64_t token)
{
    uint64_t now = clock_boot_ms(), ms = 0;
    struct held *h;

    pthread_mutex_lock(&s->lock);
    h = find_token(s, name, token);
    if (h != NULL && !h->lost && h->until_ms > now) {
        ms = h->until_ms - now;
    }
    pthread_mutex_unlock(&s->lock);
    return ms;
}

static bool next_of(struct sem_session *s, const void *owner, char *name,
                    uint64_t *token)
{
    struct list *l;
    bool found = false;

    pthread_mutex_lock(&s->lock);
    list_foreach (l, &s->held) {
        struct held *h = container_of(l, struct held, link);
        if (h->owner == owner && h->token != 0) {
            memcpy(name, h->name, sizeof h->name);
            *token = h->token;
            found = true;
            break;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

void sem_session_release_all(struct sem_session *s, const void *owner,
                             uint64_t timeout_ms)
{
    char name[SEMAPHORE_NAME_SIZE];
    uint64_t token;

    while (next_of(s, owner, name, &token)) {
        (void)sem_session_release(s, name, token, timeout_ms, NULL);
    }
}

/* --- life -------------------------------------------------------------------
 */

int sem_session_new(struct hedge_node *n, struct sem_session **out)
{
    struct sem_session *s = mem_calloc(1, sizeof *s);
    pthread_condattr_t attr;

    *out = s;
    if (s == NULL) {
        return HEDGE_ENOMEM;
    }
    s->node = n;
    s->next_request = random_id() >> 1; /* Room to count. */
    list_init(&s->held);
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&s->thread, NULL, session_main, s) != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(s->thread, "hedge-session");
    s->has_thread = true;
    return 0;
}

void sem_session_stop(struct sem_session *s)
{
    struct lock_call c;
    uint64_t id;

    if (s == NULL || !s->has_thread) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    id = s->id;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    if (id != 0) {
        lock_call_init(&c, SEMAPHORE_CLOSE, CLOSE_MS);
        c.call.session = id;
        (void)locks_call(s->node, &c, NULL);
        lock_call_release(&c);
    }
}

void sem_session_free(struct sem_session *s)
{
    struct list *l;

    if (s == NULL) {
        return;
    }
    if (s->has_thread) {
        pthread_join(s->thread, NULL);
    }
    while ((l = list_pop(&s->held)) != NULL) {
        mem_free(container_of(l, struct held, link));
    }
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}
