/* lock_route.c - a call's way to whoever leads: this node's own core, or the
 * relay to another node, and again when that has changed. */
#include "cluster/locks/locks_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define RETRY_MS 20
#define GRACE_MS 2000 /* For the leader to say itself that time is up. */
#define CANCEL_MS 60000

static struct list *bucket(struct locks *l, uint64_t id)
{
    return &l->by_id[id % LOCK_BUCKETS];
}

void route_init(struct locks *l)
{
    list_init(&l->calls);
    for (size_t i = 0; i < LOCK_BUCKETS; i++) {
        list_init(&l->by_id[i]);
    }
    l->due_ms = l->retry_ms = UINT64_MAX;
}

static struct lock_call *find(struct locks *l, uint64_t id)
{
    struct list *item;

    list_foreach (item, bucket(l, id)) {
        struct lock_call *c = container_of(item, struct lock_call, by_id);
        if (c->id == id) {
            return c;
        }
    }
    return NULL;
}

static void finish(struct locks *l, struct lock_call *c)
{
    list_remove(&c->link);
    list_remove(&c->by_id);
    l->n_calls--;
    c->done(c); /* It may be gone now. */
}

static void fail(struct locks *l, struct lock_call *c, int status,
                 const char *text)
{
    list_remove(&c->call.link); /* The core forgets who asked. */
    c->call.status = status;
    (void)snprintf(c->call.text, sizeof c->call.text, "%s", text);
    finish(l, c);
}

/* --- deadlines --- */

static bool stands_in_line(const struct lock_call *c)
{
    return (c->call.op == SEMAPHORE_ACQUIRE || c->call.op == SEMAPHORE_WATCH) &&
           c->wait_ms > 0;
}

static uint64_t deadline(const struct lock_call *c)
{
    uint64_t ms = c->timeout_ms, wait = c->wait_ms;

    if (stands_in_line(c)) {
        wait = wait < UINT64_MAX - GRACE_MS && c->state != LOCK_UNSENT
                   ? wait + GRACE_MS
                   : wait;
        ms = wait > ms ? wait : ms;
    }
    return ms < UINT64_MAX - c->start_ms ? c->start_ms + ms : UINT64_MAX;
}

static void due(struct locks *l, const struct lock_call *c)
{
    uint64_t at = deadline(c);

    l->due_ms = at < l->due_ms ? at : l->due_ms;
}

/* --- sending --- */

static void dispatch(struct locks *l, struct lock_call *c)
{
    Hedge__V1__LockCall m;
    uint64_t now = clock_boot_ms();
    uint64_t spent = now - c->start_ms;

    c->call.wait_ms = c->wait_ms;
    if (stands_in_line(c) && c->wait_ms != UINT64_MAX) {
        c->call.wait_ms = c->wait_ms > spent ? c->wait_ms - spent : 1;
    }
    if (l->term != 0) {
        c->state = LOCK_LOCAL;
        c->was_sent = true;
        due(l, c);
        locks_step_call(l, &c->call); /* It may be gone now. */
        return;
    }
    c->state = LOCK_UNSENT;
    if (l->relay.out == NULL) {
        relay_connect(l);
        due(l, c);
        return;
    }
    lock_wire_call(&c->call, c->id, &m);
    if (outbox_put(l->relay.out, &m.base) == 0) {
        c->state = LOCK_SENT;
        c->was_sent = true;
    } else {
        l->retry_ms = now + RETRY_MS;
    }
    due(l, c);
}

static void send_unsent(struct locks *l)
{
    struct list unsent, *item, *tmp;

    list_init(&unsent);
    list_foreach_safe (item, tmp, &l->calls) {
        struct lock_call *c = container_of(item, struct lock_call, link);
        if (c->state == LOCK_UNSENT) {
            list_remove(item);
            list_push(&unsent, item);
        }
    }
    while ((item = list_pop(&unsent)) != NULL) {
        list_push(&l->calls, item);
        dispatch(l, container_of(item, struct lock_call, link));
    }
}

void route_changed(struct locks *l)
{
    struct list *item;

    list_foreach (item, &l->calls) {
        struct lock_call *c = container_of(item, struct lock_call, link);
        if (c->state == LOCK_SENT) {
            c->state = LOCK_UNSENT;
            due(l, c);
        }
    }
    if (l->term != 0 || l->relay.out != NULL || !list_empty(&l->calls)) {
        send_unsent(l);
    }
}

/* --- giving up --- */

static void on_canceled(struct lock_call *c)
{
    lock_call_release(c);
    mem_free(c);
}

static void take(struct locks *l, struct lock_call *c);

/* It may have been granted, and nobody would know. Where there is no memory
 * for it, the session's end does it, or its next renewal. */
static void give_up(struct locks *l, const struct lock_call *c)
{
    struct lock_call *cancel;

    if (c->call.op != SEMAPHORE_ACQUIRE || !c->was_sent) {
        return;
    }
    cancel = mem_alloc(sizeof *cancel);
    if (cancel == NULL) {
        return;
    }
    lock_call_init(cancel, SEMAPHORE_CANCEL, CANCEL_MS);
    cancel->call.session = c->call.session;
    cancel->call.request = c->call.request;
    cancel->call.attempt = c->call.attempt;
    cancel->done = on_canceled;
    take(l, cancel);
}

static void expire(struct locks *l, struct lock_call *c)
{
    list_remove(&c->call.link);
    give_up(l, c);
    if (c->was_sent) {
        fail(l, c, HEDGE_ETIMEDOUT, "the leader has not answered in time");
    } else {
        fail(l, c, HEDGE_ENOLEADER, "the group has no leader at present");
    }
}

/* What is done about one may end others: each step looks at the lists anew. */
void route_tick(struct locks *l, uint64_t now_ms)
{
    struct list expired, *item, *tmp;

    if (now_ms >= l->retry_ms) {
        l->retry_ms = UINT64_MAX;
        send_unsent(l);
    }
    if (now_ms < l->due_ms) {
        return;
    }
    l->due_ms = UINT64_MAX;
    list_init(&expired);
    list_foreach_safe (item, tmp, &l->calls) {
        struct lock_call *c = container_of(item, struct lock_call, link);
        if (deadline(c) <= now_ms) {
            list_remove(item);
            list_push(&expired, item);
        } else {
            due(l, c);
        }
    }
    while (!list_empty(&expired)) {
        expire(l, container_of(expired.next, struct lock_call, link));
    }
}

/* --- answers --- */

void route_answered(struct locks *l, struct lock_call *c)
{
    if (c->call.status != HEDGE_ENOTLEADER || l->closed) {
        finish(l, c);
        return;
    }
    c->state = LOCK_UNSENT;
    due(l, c);
    if (l->retry_ms == UINT64_MAX) {
        l->retry_ms = clock_boot_ms() + RETRY_MS;
    }
}

void route_reply(struct locks *l, const Hedge__V1__LockAnswer *a)
{
    struct lock_call *c = find(l, a->id);

    if (c == NULL || c->state != LOCK_SENT) {
        return; /* Given up. */
    }
    if (a->queued) {
        c->call.order_term = a->order_term;
        c->call.order = a->order;
    } else {
        c->call.status = lock_wire_to_answer(a, &c->call);
        route_answered(l, c);
    }
}

/* --- in and out --- */

static void take(struct locks *l, struct lock_call *c)
{
    list_push(&l->calls, &c->link);
    list_push(bucket(l, c->id), &c->by_id);
    l->n_calls++;
    if (l->n_calls > LOCK_CALLS_MAX) {
        fail(l, c, HEDGE_EEXHAUSTED, "this node has too many calls waiting");
        return;
    }
    due(l, c);
    dispatch(l, c);
}

struct submission {
    struct letter letter;
    struct lock_call *call;
    uint64_t abandon; /* Instead. */
};

static void on_submitted(struct hedge_node *n, struct letter *letter,
                         bool closed)
{
    struct submission *s = container_of(letter, struct submission, letter);
    struct lock_call *c = s->call;

    mem_free(s);
    if (closed) {
        c->call.status = HEDGE_ECLOSED;
        (void)snprintf(c->call.text, sizeof c->call.text, "the node stops");
        c->done(c);
    } else {
        take(n->locks, c);
    }
}

void locks_submit(struct hedge_node *n, struct lock_call *c)
{
    struct submission *s = mem_calloc(1, sizeof *s);

    c->start_ms = clock_boot_ms();
    c->wait_ms = c->call.wait_ms;
    if (s == NULL) {
        c->call.status = HEDGE_ENOMEM;
        (void)snprintf(c->call.text, sizeof c->call.text, "out of memory");
        c->done(c);
        return;
    }
    s->call = c;
    (void)locks_post(n->locks, &s->letter, on_submitted);
}

static void on_abandoned(struct hedge_node *n, struct letter *letter,
                         bool closed)
{
    struct submission *s = container_of(letter, struct submission, letter);
    struct lock_call *c = closed ? NULL : find(n->locks, s->abandon);

    mem_free(s);
    if (c != NULL) {
        list_remove(&c->call.link);
        give_up(n->locks, c);
        fail(n->locks, c, HEDGE_ECANCELED, "the caller has gone");
    }
}

void locks_abandon(struct hedge_node *n, uint64_t id)
{
    struct submission *s = mem_calloc(1, sizeof *s);

    if (s != NULL) { /* Else its deadline, or its session's, ends it. */
        s->abandon = id;
        (void)locks_post(n->locks, &s->letter, on_abandoned);
    }
}

void route_close(struct locks *l)
{
    while (!list_empty(&l->calls)) {
        fail(l, container_of(l->calls.next, struct lock_call, link),
             HEDGE_ECLOSED, "the node stops");
    }
}

/* --- calls --- */

void lock_call_init(struct lock_call *c, enum semaphore_op op,
                    uint64_t timeout_ms)
{
    static atomic_uint_fast64_t last_id;

    memset(c, 0, sizeof *c);
    c->call.op = op;
    c->call.kind = LOCK_KIND_OWN;
    c->timeout_ms = timeout_ms;
    c->id = atomic_fetch_add(&last_id, 1) + 1;
    list_init(&c->call.link);
    list_init(&c->link);
    list_init(&c->by_id);
}

bool lock_call_name(struct lock_call *c, const char *name)
{
    return snprintf(c->call.name, sizeof c->call.name, "%s", name) <
           (int)sizeof c->call.name;
}

void lock_call_release(struct lock_call *c)
{
    mem_free(c->call.held);
    mem_free(c->call.list);
    c->call.held = NULL;
    c->call.list = NULL;
    c->call.n_held = 0;
}

struct waiting {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool done;
};

static void wake_caller(struct lock_call *c)
{
    struct waiting *w = c->ctx;

    pthread_mutex_lock(&w->lock);
    w->done = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

int locks_call(struct hedge_node *n, struct lock_call *c, struct hedge_error *e)
{
    struct waiting w = {.done = false};

    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.wake, NULL);
    c->done = wake_caller;
    c->ctx = &w;
    locks_submit(n, c);
    pthread_mutex_lock(&w.lock);
    while (!w.done) {
        pthread_cond_wait(&w.wake, &w.lock);
    }
    pthread_mutex_unlock(&w.lock);
    pthread_cond_destroy(&w.wake);
    pthread_mutex_destroy(&w.lock);
    error_clear(e);
    return c->call.status == 0
               ? 0
               : error_set(e, c->call.status, "%s", c->call.text);
}
