/* lock_wire.c - calls of the semaphores' core as messages, and back. */
#include "cluster/locks/lock_list.h"
#include "cluster/locks/locks_internal.h"

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

static bool set_text(char *out, size_t size, const char *text)
{
    size_t len = strlen(text);

    if (len >= size) {
        return false;
    }
    memcpy(out, text, len + 1);
    return true;
}

void lock_wire_call(const struct semaphore_call *c, uint64_t id,
                    Hedge__V1__LockCall *out)
{
    hedge__v1__lock_call__init(out);
    out->id = id;
    out->op = (uint32_t)c->op;
    out->name = unconst(c->name);
    out->holder = unconst(c->holder);
    out->limit = c->limit;
    out->permits = c->permits;
    out->attempt = c->attempt;
    out->session = c->session;
    out->request = c->request;
    out->lease_ms = c->lease_ms;
    out->wait_ms = c->wait_ms;
    out->ttl_ms = c->ttl_ms;
    out->token = c->token;
    out->order_term = c->order_term;
    out->order = c->order;
    out->term = c->term;
    out->at = c->at;
}

bool lock_wire_to_call(const Hedge__V1__LockCall *m, struct semaphore_call *out)
{
    memset(out, 0, sizeof *out);
    out->op = (enum semaphore_op)m->op;
    out->limit = m->limit;
    out->permits = m->permits;
    out->attempt = m->attempt;
    out->session = m->session;
    out->request = m->request;
    out->lease_ms = m->lease_ms;
    out->wait_ms = m->wait_ms;
    out->ttl_ms = m->ttl_ms;
    out->token = m->token;
    out->order_term = m->order_term;
    out->order = m->order;
    out->term = m->term;
    out->at = m->at;
    return m->op < SEMAPHORE_OPS &&
           set_text(out->name, sizeof out->name, m->name) &&
           set_text(out->holder, sizeof out->holder, m->holder);
}

/* --- answers --- */

static int put_held(const struct semaphore_call *c, Hedge__V1__LockAnswer *m)
{
    Hedge__V1__LockHeld *held;

    if (c->n_held == 0) {
        return 0;
    }
    m->held = mem_calloc(c->n_held, sizeof(void *) + sizeof *held);
    if (m->held == NULL) {
        return HEDGE_ENOMEM;
    }
    held = (Hedge__V1__LockHeld *)(void *)(m->held + c->n_held);
    m->n_held = c->n_held;
    for (size_t i = 0; i < c->n_held; i++) {
        hedge__v1__lock_held__init(&held[i]);
        held[i].token = c->held[i].token;
        held[i].request = c->held[i].request;
        m->held[i] = &held[i];
    }
    return 0;
}

int lock_wire_answer(const struct semaphore_call *c, uint64_t id, bool queued,
                     struct outbox *out)
{
    Hedge__V1__LockAnswer m = HEDGE__V1__LOCK_ANSWER__INIT;
    int rv = put_held(c, &m);

    m.id = id;
    m.queued = queued;
    m.status = c->status;
    m.text = unconst(c->text);
    m.token = c->token;
    m.order_term = c->order_term;
    m.order = c->order;
    m.term = c->term;
    m.at = c->at;
    m.lease_ms = c->lease_ms;
    if (rv == 0 && c->list != NULL) {
        rv = lock_list_message(c, &m.list);
    }
    rv = rv != 0 ? rv : outbox_put(out, &m.base);
    lock_list_release(m.list);
    mem_free(m.held);
    return rv;
}

int lock_wire_to_answer(const Hedge__V1__LockAnswer *m,
                        struct semaphore_call *out)
{
    (void)snprintf(out->text, sizeof out->text, "%s", m->text);
    out->token = m->token;
    if (m->status == 0 || out->op != SEMAPHORE_LIST) { /* It may go on. */
        out->term = m->term;
        out->at = m->at;
    }
    out->lease_ms = m->lease_ms != 0 ? m->lease_ms : out->lease_ms;
    if (m->status == 0 && out->op == SEMAPHORE_LIST) {
        out->more = lock_list_next(m->list, out);
        return lock_list_from(m->list, &out->list);
    }
    if (m->n_held > 0) {
        out->held = mem_calloc(m->n_held, sizeof *out->held);
        if (out->held == NULL) {
            return HEDGE_ENOMEM;
        }
    }
    for (size_t i = 0; i < m->n_held; i++) {
        out->held[out->n_held++] = (struct semaphore_held){
            .token = m->held[i]->token, .request = m->held[i]->request};
    }
    return m->status > 0 ? HEDGE_EPROTO : m->status;
}
