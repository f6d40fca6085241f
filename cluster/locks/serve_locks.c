/* serve_locks.c - service hedge.v1.Locks: each call becomes one of locks.h and
 * is answered from the loop when that is done; no thread waits with it. */
#include "cluster/locks/lock_list.h"
#include "cluster/locks/locks_internal.h"

#include "store/base/mem.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define CALL_MS 15000
#define WATCH_MS 600000

struct served {
    struct lock_call call; /* First. */
    struct hedge_node *node;
    struct rpc_call *rpc;
    atomic_uint refs; /* Its answer, and the watch for its caller. */
};

static void served_unref(struct served *s)
{
    if (atomic_fetch_sub(&s->refs, 1) == 1) {
        lock_call_release(&s->call);
        mem_free(s);
    }
}

/* --- answers --- */

static void reply_state(struct rpc_call *rpc, const struct semaphore_call *c)
{
    Hedge__V1__LockSessionState m = HEDGE__V1__LOCK_SESSION_STATE__INIT;
    Hedge__V1__LockHeld *held =
        mem_calloc(c->n_held + 1, sizeof *held + sizeof(void *));

    if (held == NULL) {
        rpc_fail(rpc, HEDGE_ENOMEM, "no memory for the answer");
        return;
    }
    m.lease_ms = c->lease_ms;
    m.term = c->term;
    m.at = c->at;
    m.n_held = c->n_held;
    m.held = (Hedge__V1__LockHeld **)(void *)(held + c->n_held + 1);
    for (size_t i = 0; i < c->n_held; i++) {
        hedge__v1__lock_held__init(&held[i]);
        held[i].token = c->held[i].token;
        held[i].request = c->held[i].request;
        m.held[i] = &held[i];
    }
    pb_reply(rpc, &m.base);
    mem_free(held);
}

static void reply_list(struct rpc_call *rpc, const struct semaphore_call *c)
{
    Hedge__V1__LockList *m;

    if (lock_list_message(c, &m) != 0) {
        rpc_fail(rpc, HEDGE_ENOMEM, "no memory for the list");
        return;
    }
    pb_reply(rpc, &m->base);
    lock_list_release(m);
}

static void reply(struct rpc_call *rpc, const struct semaphore_call *c)
{
    Hedge__V1__LockDone done = HEDGE__V1__LOCK_DONE__INIT;
    Hedge__V1__LockGrant grant = HEDGE__V1__LOCK_GRANT__INIT;

    switch (c->op) {
    case SEMAPHORE_OPEN:
    case SEMAPHORE_RENEW:
        reply_state(rpc, c);
        break;
    case SEMAPHORE_ACQUIRE:
        grant.token = c->token;
        grant.term = c->term;
        grant.at = c->at;
        pb_reply(rpc, &grant.base);
        break;
    case SEMAPHORE_LIST:
        reply_list(rpc, c);
        break;
    default:
        pb_reply(rpc, &done.base);
        break;
    }
}

static void on_done(struct lock_call *call)
{
    struct served *s = container_of(call, struct served, call);

    if (call->call.status == 0) {
        reply(s->rpc, &call->call);
    } else {
        /* A node that stops is one to be left for another. */
        rpc_fail(s->rpc,
                 call->call.status == HEDGE_ECLOSED ? HEDGE_EUNAVAILABLE
                                                    : call->call.status,
                 call->call.text);
    }
    served_unref(s);
}

/* --- requests --- */

static struct served *begin(struct rpc_call *rpc, void *ctx,
                            enum semaphore_op op)
{
    struct served *s = mem_calloc(1, sizeof *s);
    uint64_t ms = rpc_usable_ms(rpc_call_left_ms(rpc));

    if (s == NULL) {
        rpc_fail(rpc, HEDGE_ENOMEM, "no memory for a call");
        return NULL;
    }
    lock_call_init(&s->call, op, ms < CALL_MS ? ms : CALL_MS);
    s->call.done = on_done;
    s->node = ctx;
    s->rpc = rpc;
    atomic_init(&s->refs, 1);
    return s;
}

static void refuse(struct served *s, int code, const char *text)
{
    rpc_fail(s->rpc, code, text);
    served_unref(s);
}

static bool set_name(struct served *s, const char *name)
{
    if (!lock_call_name(&s->call, name)) {
        refuse(s, HEDGE_EINVAL, "the name has more than 255 bytes");
        return false;
    }
    return true;
}

static bool set_session(struct served *s, const Hedge__V1__LockSession *m)
{
    struct semaphore_call *c = &s->call.call;
    const char *holder = m != NULL ? m->holder : "";

    if (m == NULL || m->session == 0) {
        refuse(s, HEDGE_EINVAL, "the request names no session");
        return false;
    }
    holder = holder[0] != '\0' ? holder : rpc_call_peer(s->rpc);
    if (snprintf(c->holder, sizeof c->holder, "%s", holder) >=
        (int)sizeof c->holder) {
        refuse(s, HEDGE_EINVAL, "the holder's name has more than 263 bytes");
        return false;
    }
    c->session = m->session;
    c->lease_ms = m->lease_ms;
    return true;
}

static void on_over(void *arg, bool gone)
{
    struct served *s = arg;

    if (gone) {
        locks_abandon(s->node, s->call.id);
    }
    served_unref(s);
}

/* It ends in time for its caller to be told why. */
static void bound_wait(struct served *s)
{
    uint64_t ms = rpc_usable_ms(rpc_call_left_ms(s->rpc));
    uint64_t *wait_ms = &s->call.call.wait_ms;

    if (*wait_ms > ms) {
        *wait_ms = ms > 0 ? ms : 1; /* 0: no wait at all. */
    }
}

static void submit(struct served *s, bool watched)
{
    if (watched) {
        bound_wait(s);
        atomic_fetch_add(&s->refs, 1);
        rpc_call_watch(s->rpc, on_over, s);
    }
    locks_submit(s->node, &s->call);
}

static void serve_session(struct rpc_call *rpc, void *ctx, enum semaphore_op op,
                          const void *req, size_t len)
{
    Hedge__V1__LockSession *m =
        pb_unpack(&hedge__v1__lock_session__descriptor, req, len);
    struct served *s;

    if (m == NULL) {
        rpc_fail(rpc, HEDGE_EPROTO, "not a LockSession");
        return;
    }
    s = begin(rpc, ctx, op);
    if (s != NULL && set_session(s, m)) {
        submit(s, false);
    }
    pb_free(m);
}

void serve_lock_open(struct rpc_call *c, void *ctx, const void *req, size_t len)
{
    serve_session(c, ctx, SEMAPHORE_OPEN, req, len);
}

void serve_lock_renew(struct rpc_call *c, void *ctx, const void *req,
                      size_t len)
{
    serve_session(c, ctx, SEMAPHORE_RENEW, req, len);
}

void serve_lock_close(struct rpc_call *c, void *ctx, const void *req,
                      size_t len)
{
    serve_session(c, ctx, SEMAPHORE_CLOSE, req, len);
}

void serve_lock_watch(struct rpc_call *rpc, void *ctx, const void *req,
                      size_t len)
{
    Hedge__V1__LockWatch *m =
        pb_unpack(&hedge__v1__lock_watch__descriptor, req, len);
    struct served *s;

    if (m == NULL) {
        rpc_fail(rpc, HEDGE_EPROTO, "not a LockWatch");
        return;
    }
    s = begin(rpc, ctx, SEMAPHORE_WATCH);
    if (s != NULL && m->session == 0) {
        refuse(s, HEDGE_EINVAL, "the request names no session");
    } else if (s != NULL) {
        s->call.call.session = m->session;
        s->call.call.term = m->term;
        s->call.call.at = m->at;
        s->call.call.wait_ms =
            m->wait_ms != 0 && m->wait_ms < WATCH_MS ? m->wait_ms : WATCH_MS;
        submit(s, true);
    }
    pb_free(m);
}

static void serve_acquire(struct rpc_call *rpc, void *ctx, const void *req,
                          size_t len, bool wait)
{
    Hedge__V1__LockRequest *m =
        pb_unpack(&hedge__v1__lock_request__descriptor, req, len);
    struct semaphore_call *c;
    struct served *s;

    if (m == NULL) {
        rpc_fail(rpc, HEDGE_EPROTO, "not a LockRequest");
        return;
    }
    s = begin(rpc, ctx, SEMAPHORE_ACQUIRE);
    if (s == NULL || !set_session(s, m->session) || !set_name(s, m->name)) {
        pb_free(m);
        return;
    }
    c = &s->call.call;
    c->request = m->request;
    c->attempt = m->attempt;
    c->limit = m->limit;
    c->permits = m->permits != 0 ? m->permits : 1;
    c->ttl_ms = m->ttl_ms;
    if (wait) {
        c->wait_ms = m->wait_ms != 0 ? m->wait_ms : SEMAPHORE_NEVER;
    }
    pb_free(m);
    submit(s, true);
}

void serve_lock_acquire(struct rpc_call *c, void *ctx, const void *req,
                        size_t len)
{
    serve_acquire(c, ctx, req, len, true);
}

void serve_lock_try(struct rpc_call *c, void *ctx, const void *req, size_t len)
{
    serve_acquire(c, ctx, req, len, false);
}

static void serve_token(struct rpc_call *rpc, void *ctx, enum semaphore_op op,
                        const void *req, size_t len)
{
    Hedge__V1__LockToken *m =
        pb_unpack(&hedge__v1__lock_token__descriptor, req, len);
    struct served *s;

    if (m == NULL) {
        rpc_fail(rpc, HEDGE_EPROTO, "not a LockToken");
        return;
    }
    s = begin(rpc, ctx, op);
    if (s != NULL && set_name(s, m->name)) {
        s->call.call.token = m->token;
        s->call.call.session = m->session;
        submit(s, false);
    }
    pb_free(m);
}

void serve_lock_release(struct rpc_call *c, void *ctx, const void *req,
                        size_t len)
{
    serve_token(c, ctx, SEMAPHORE_RELEASE, req, len);
}

void serve_lock_revoke(struct rpc_call *c, void *ctx, const void *req,
                       size_t len)
{
    serve_token(c, ctx, SEMAPHORE_REVOKE, req, len);
}

void serve_lock_list(struct rpc_call *rpc, void *ctx, const void *req,
                     size_t len)
{
    Hedge__V1__LockQuery *m =
        pb_unpack(&hedge__v1__lock_query__descriptor, req, len);
    struct served *s;

    if (m == NULL) {
        rpc_fail(rpc, HEDGE_EPROTO, "not a LockQuery");
        return;
    }
    s = begin(rpc, ctx, SEMAPHORE_LIST);
    if (s != NULL && !lock_list_place(m->after, &s->call.call)) {
        refuse(s, HEDGE_EINVAL, "not a place in a list");
    } else if (s != NULL && set_name(s, m->name)) {
        s->call.call.limit = m->max;
        submit(s, false);
    }
    pb_free(m);
}
