/* serve_messages.c - service hedge.v1.MessagePeer: messages from other nodes
 * for the handlers of this one. Whoever wants a reply keeps its own deadline;
 * what it does not come for is forgotten after that. */
#include "cluster/messages/messaging.h"
#include "cluster/node_internal.h"
#include "proto/messages.pb-c.h"
#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define PARTS_MAX 256
#define PIECE_MS 60000 /* From one piece of a message to the next. */

/* A message that is arriving, or a reply that is being fetched. */
struct part {
    struct list link;
    bool is_reply;
    bool has_place; /* It is one of msg_parts.n, in the list or out of it. */
    uint64_t name, until_ms, forget_ms;
    size_t at; /* A reply: what has been fetched. */
    char from[MEMBER_ID_SIZE];
    struct msg_buf buf;
};

struct msg_parts {
    pthread_mutex_t lock;
    struct list list;
    unsigned n; /* Places taken. */
    uint64_t next_name;
};

int msg_parts_new(struct msg_parts **out)
{
    struct msg_parts *p = mem_calloc(1, sizeof *p);

    *out = p;
    if (p == NULL) {
        return HEDGE_ENOMEM;
    }
    pthread_mutex_init(&p->lock, NULL);
    list_init(&p->list);
    (void)getrandom(&p->next_name, sizeof p->next_name, 0);
    return 0;
}

static void part_free(struct msg_parts *parts, struct part *p)
{
    if (p->has_place) {
        pthread_mutex_lock(&parts->lock);
        parts->n--;
        pthread_mutex_unlock(&parts->lock);
    }
    msg_buf_release(&p->buf);
    mem_free(p);
}

static void sweep(struct msg_parts *p, uint64_t now_ms)
{
    struct list dead, *l, *tmp;

    list_init(&dead);
    pthread_mutex_lock(&p->lock);
    list_foreach_safe (l, tmp, &p->list) {
        if (container_of(l, struct part, link)->forget_ms <= now_ms) {
            list_remove(l);
            list_push(&dead, l);
        }
    }
    pthread_mutex_unlock(&p->lock);
    while ((l = list_pop(&dead)) != NULL) {
        part_free(p, container_of(l, struct part, link));
    }
}

void msg_parts_sweep(struct msg_parts *p)
{
    sweep(p, clock_mono_ms());
}

void msg_parts_free(struct msg_parts *p)
{
    if (p != NULL) {
        sweep(p, UINT64_MAX);
        pthread_mutex_destroy(&p->lock);
        mem_free(p);
    }
}

static struct part *part_new(struct hedge_node *n, bool is_reply,
                             uint64_t timeout_ms)
{
    struct part *p = mem_calloc(1, sizeof *p);

    if (p != NULL) {
        list_init(&p->link);
        p->is_reply = is_reply;
        p->until_ms = clock_mono_ms() +
                      (timeout_ms < UINT32_MAX ? timeout_ms : UINT32_MAX);
        msg_buf_init(&p->buf, n->messages);
    }
    return p;
}

/* Out of the table, so that nobody else has it meanwhile; its place is kept. */
static struct part *part_take(struct msg_parts *p, bool is_reply,
                              const char *from, uint64_t name)
{
    struct part *found = NULL;
    struct list *l;

    pthread_mutex_lock(&p->lock);
    list_foreach (l, &p->list) {
        struct part *c = container_of(l, struct part, link);

        if (c->is_reply == is_reply && c->name == name &&
            strcmp(c->from, from) == 0) {
            found = c;
            list_remove(l);
            break;
        }
    }
    pthread_mutex_unlock(&p->lock);
    return found;
}

/* False: there are too many; never for one that was taken out. The sender of a
 * message sends piece after piece, or has died; whoever fetches a reply may
 * have to wait for room. */
static bool part_put(struct msg_parts *p, struct part *c)
{
    uint64_t idle_ms = clock_mono_ms() + PIECE_MS;
    bool room;

    c->forget_ms = c->is_reply || c->until_ms < idle_ms ? c->until_ms : idle_ms;
    pthread_mutex_lock(&p->lock);
    if (!c->has_place && p->n < PARTS_MAX) {
        c->has_place = true;
        p->n++;
    }
    room = c->has_place;
    if (room) { /* From here on it may be somebody else's. */
        list_push(&p->list, &c->link);
    }
    pthread_mutex_unlock(&p->lock);
    return room;
}

/* --- answers ----------------------------------------------------------------
 */

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

/* The message, of `len` bytes, was not handled. What may pass is told as an
 * answer, with what helps the sender; the rest is an error of the call. */
static void refuse(struct hedge_node *n, struct rpc_call *call, uint64_t len,
                   const struct hedge_error *e)
{
    Hedge__V1__DeliverReply m = HEDGE__V1__DELIVER_REPLY__INIT;
    struct hedge_leader l = {.id = ""};

    bool never = e->code == HEDGE_EEXHAUSTED &&
                 !msg_budget_fits(n->messages, (size_t)len);

    if (never || (e->code != HEDGE_ENOTLEADER && e->code != HEDGE_EEXHAUSTED &&
                  e->code != HEDGE_ECLOSED)) {
        rpc_fail(call, e->code, e->text);
        return;
    }
    m.refused = unconst(hedge_errname(e->code));
    m.text = unconst(e->text);
    if (e->code == HEDGE_ENOTLEADER && hedge_leader(n, &l) == 0) {
        m.leader = l.id;
        m.leader_address = l.grpc_address;
    }
    pb_reply(call, &m.base);
}

static void answer_bytes(struct rpc_call *call, const struct msg_buf *buf,
                         size_t at, size_t len)
{
    Hedge__V1__DeliverReply m = HEDGE__V1__DELIVER_REPLY__INIT;

    m.len = buf->len;
    if (len > 0) {
        m.data.data = buf->data + at;
        m.data.len = len;
    }
    pb_reply(call, &m.base);
}

/* --- delivery ---------------------------------------------------------------
 */

struct inbound {
    struct hedge_node *n;
    struct rpc_call *call;
    uint64_t until_ms;
};

/* Too long for one answer: kept until it has been fetched. */
static void hold(struct inbound *in, struct msg_buf *reply)
{
    Hedge__V1__DeliverReply m = HEDGE__V1__DELIVER_REPLY__INIT;
    struct msg_parts *parts = in->n->parts;
    uint64_t now_ms = clock_mono_ms();
    struct part *p = part_new(
        in->n, true, in->until_ms > now_ms ? in->until_ms - now_ms : 1);

    if (p == NULL) {
        rpc_fail(in->call, HEDGE_ENOMEM, "no memory for the reply");
        return;
    }
    msg_buf_release(&p->buf);
    msg_buf_move(reply, &p->buf);
    pthread_mutex_lock(&parts->lock);
    parts->next_name += parts->next_name + 1 == 0 ? 2 : 1;
    p->name = parts->next_name;
    pthread_mutex_unlock(&parts->lock);
    m.held = p->name;
    m.len = p->buf.len;
    if (!part_put(parts, p)) {
        part_free(parts, p);
        rpc_fail(in->call, HEDGE_EEXHAUSTED,
                 "too many long replies wait to be fetched");
        return;
    }
    pb_reply(in->call, &m.base);
}

static void on_handled(void *arg, int rv, const struct hedge_error *e,
                       struct msg_buf *reply)
{
    struct inbound *in = arg;

    if (rv == HEDGE_ENOTLEADER) {
        refuse(in->n, in->call, 0, e);
    } else if (rv != 0) {
        rpc_fail(in->call, rv, e->text);
    } else if (reply->len <= MESSAGING_PIECE) {
        answer_bytes(in->call, reply, 0, reply->len);
    } else {
        hold(in, reply);
    }
    mem_free(in);
}

static bool has_gone(void *arg)
{
    return rpc_call_is_cancelled(((struct inbound *)arg)->call);
}

static void deliver(struct hedge_node *n, struct rpc_call *call,
                    const Hedge__V1__DeliverRequest *m, struct msg_buf *buf)
{
    struct inbound *in = mem_alloc(sizeof *in);
    struct handlers_message hm = {.kind = (enum handler_kind)m->kind,
                                  .own = buf,
                                  .from = m->from,
                                  .timeout_ms = m->timeout_ms,
                                  .lend = rpc_lend_thread,
                                  .done = on_handled,
                                  .gone = has_gone,
                                  .arg = in};
    struct hedge_error e;

    if (in == NULL) {
        msg_buf_release(buf);
        rpc_fail(call, HEDGE_ENOMEM, "no memory for a message");
        return;
    }
    in->n = n;
    in->call = call;
    in->until_ms = clock_mono_ms() +
                   (m->timeout_ms < UINT32_MAX ? m->timeout_ms : UINT32_MAX);
    if (handlers_submit(n->handlers, &hm, &e) != 0) {
        refuse(n, call, m->len, &e);
        mem_free(in);
    }
}

static Hedge__V1__DeliverRequest *unpack(struct rpc_call *call, const void *req,
                                         size_t len)
{
    Hedge__V1__DeliverRequest *m =
        pb_unpack_large(&hedge__v1__deliver_request__descriptor, req, len);

    if (m == NULL || m->kind >= HANDLER_KINDS ||
        strlen(m->from) >= MEMBER_ID_SIZE) {
        rpc_fail(call, HEDGE_EPROTO, "not a DeliverRequest");
        pb_free(m);
        return NULL;
    }
    return m;
}

/* Inline: it hands the message on and is done. */
void serve_deliver(struct rpc_call *call, void *ctx, const void *req,
                   size_t len)
{
    Hedge__V1__DeliverRequest *m = unpack(call, req, len);
    struct hedge_node *n = ctx;
    struct hedge_error e;
    struct msg_buf buf;

    if (m == NULL) {
        return;
    }
    msg_buf_init(&buf, n->messages);
    if (m->data.len > MESSAGING_SMALL) {
        (void)error_set(&e, HEDGE_ETOOBIG, "more than %zu bytes go by Put",
                        MESSAGING_SMALL);
    } else if (!msg_budget_try(n->messages, m->data.len)) {
        (void)error_set(&e, HEDGE_EEXHAUSTED,
                        "the messages of node %s take all of their %llu bytes",
                        n->id, (unsigned long long)n->o.message_limit);
    } else {
        error_clear(&e);
        buf.charged = buf.len = buf.cap = m->data.len;
        buf.data = m->data.data;
        m->data.data = NULL;
        m->data.len = 0;
    }
    if (e.code != 0) {
        refuse(n, call, m->len, &e);
    } else {
        deliver(n, call, m, &buf);
    }
    msg_buf_release(&buf);
    pb_free(m);
}

/* --- in pieces --------------------------------------------------------------
 */

static int begin_part(struct hedge_node *n, const Hedge__V1__DeliverRequest *m,
                      struct part **out, struct hedge_error *e)
{
    struct part *p;
    int rv = handlers_check(n->handlers, (enum handler_kind)m->kind, e);

    *out = NULL;
    if (rv != 0) {
        return rv;
    }
    p = part_new(n, false, m->timeout_ms);
    if (p == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a message");
    }
    p->name = m->upload;
    (void)snprintf(p->from, sizeof p->from, "%s", m->from);
    rv = m->len > MSG_MAX
             ? error_set(e, HEDGE_ETOOBIG, "a message of %llu bytes",
                         (unsigned long long)m->len)
             : msg_buf_reserve(&p->buf, (size_t)m->len, 0, e);
    if (rv != 0) {
        part_free(n->parts, p);
        return rv;
    }
    *out = p;
    return 0;
}

static int add_piece(struct hedge_node *n, const Hedge__V1__DeliverRequest *m,
                     struct part **out, struct hedge_error *e)
{
    struct part *p = part_take(n->parts, false, m->from, m->upload);
    int rv = 0;

    *out = NULL;
    if (p != NULL && m->offset == 0) {
        part_free(n->parts, p);
        p = NULL;
    }
    if (m->offset == 0) {
        rv = begin_part(n, m, &p, e);
    } else if (p == NULL) {
        rv = error_set(e, HEDGE_EUNAVAILABLE,
                       "node %s does not know the pieces before this one",
                       n->id);
    }
    if (rv != 0) {
        return rv;
    }
    if (m->offset != p->buf.len || m->data.len > m->len - m->offset ||
        m->data.len == 0 || m->data.len > MESSAGING_PIECE) {
        part_free(n->parts, p);
        return error_set(e, HEDGE_EPROTO, "a piece that does not fit");
    }
    rv = msg_buf_append(&p->buf, m->data.data, m->data.len);
    if (rv != 0) {
        part_free(n->parts, p);
        return error_set(e, rv, "no memory for a message");
    }
    *out = p;
    return 0;
}

void serve_put(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    Hedge__V1__DeliverRequest *m = unpack(call, req, len);
    struct msg_buf nothing = {0};
    struct hedge_node *n = ctx;
    struct hedge_error e;
    struct part *p;

    if (m == NULL) {
        return;
    }
    if (add_piece(n, m, &p, &e) != 0) {
        refuse(n, call, m->len, &e);
    } else if (p->buf.len == m->len) {
        deliver(n, call, m, &p->buf);
        part_free(n->parts, p);
    } else if (part_put(n->parts, p)) {
        answer_bytes(call, &nothing, 0, 0);
    } else {
        part_free(n->parts, p);
        (void)error_set(&e, HEDGE_EEXHAUSTED,
                        "node %s has %d messages that arrive in pieces", n->id,
                        PARTS_MAX);
        refuse(n, call, m->len, &e);
    }
    pb_free(m);
}

/* The next piece may be asked for as soon as this one is answered, so what
 * follows is back in the table before that. */
static void fetch_piece(struct hedge_node *n, struct rpc_call *call,
                        struct part *p)
{
    Hedge__V1__DeliverReply m = HEDGE__V1__DELIVER_REPLY__INIT;
    size_t left = p->buf.len - p->at;
    struct pb_buf buf;
    int rv;

    left = left < MESSAGING_PIECE ? left : MESSAGING_PIECE;
    m.len = p->buf.len;
    m.data.data = p->buf.data + p->at;
    m.data.len = left;
    rv = pb_pack(&m.base, &buf);
    p->at += left;
    if (rv != 0 || p->at == p->buf.len || !part_put(n->parts, p)) {
        part_free(n->parts, p);
    }
    if (rv != 0) {
        rpc_fail(call, rv, "no memory for a piece of the reply");
        return;
    }
    rpc_reply(call, buf.data, buf.len);
    mem_free(buf.data);
}

void serve_fetch(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    Hedge__V1__FetchRequest *m =
        pb_unpack(&hedge__v1__fetch_request__descriptor, req, len);
    struct hedge_node *n = ctx;
    struct part *p;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a FetchRequest");
        return;
    }
    p = part_take(n->parts, true, "", m->held);
    if (p == NULL || m->offset != p->at) {
        rpc_fail(call, HEDGE_EUNAVAILABLE, "the reply is not there any more");
    } else {
        fetch_piece(n, call, p);
        p = NULL;
    }
    if (p != NULL) {
        part_free(n->parts, p);
    }
    pb_free(m);
}
