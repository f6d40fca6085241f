/* serve_send.c - service hedge.v1.Messages, Send and Broadcast: clients'
 * messages to the leader and to members, through this node. */
#include "cluster/messages/messaging.h"
#include "cluster/messages/msg_exchange.h"
#include "cluster/node_internal.h"
#include "proto/messages.pb-c.h"
#include "store/base/clock.h"
#include "store/base/mem.h"

#include <string.h>

#define TIMEOUT_DEFAULT_MS 15000
#define SEND_MS 60000 /* To a client that does not read. */

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

static bool has_gone(void *ctx)
{
    return rpc_stream_is_cancelled(ctx);
}

/* The time a message has in all. */
static uint64_t time_for(struct rpc_stream *s, uint64_t wanted_ms)
{
    uint64_t left_ms = rpc_stream_left_ms(s);

    if (wanted_ms == 0) {
        wanted_ms = left_ms != RPC_NO_TIMEOUT ? left_ms : TIMEOUT_DEFAULT_MS;
    }
    wanted_ms = wanted_ms < left_ms ? wanted_ms : left_ms;
    return messaging_far_timeout(wanted_ms < UINT32_MAX ? wanted_ms
                                                        : UINT32_MAX);
}

static uint64_t left_of(uint64_t until_ms)
{
    uint64_t now_ms = clock_mono_ms();

    return until_ms > now_ms ? until_ms - now_ms : 0;
}

static bool try_enter(struct serve_gate *g)
{
    bool in = atomic_fetch_add(&g->served, 1) < SERVE_CLIENTS_MAX;

    if (!in) {
        atomic_fetch_sub(&g->served, 1);
    }
    return in;
}

int serve_messages_enter(struct rpc_stream *s, struct serve_gate *g,
                         const char *what, struct hedge_error *e)
{
    uint64_t until_ms = clock_mono_ms() + time_for(s, 0);
    bool may_wait, in = try_enter(g);

    if (in) {
        return 0;
    }
    may_wait = atomic_fetch_add(&g->waiting, 1) < SERVE_WAITING_MAX;
    while (may_wait && !in && clock_mono_ms() < until_ms &&
           !rpc_stream_is_cancelled(s)) {
        clock_sleep_ms(SERVE_RETRY_MS);
        in = try_enter(g);
    }
    atomic_fetch_sub(&g->waiting, 1);
    return in ? 0
              : error_set(e, HEDGE_EBUSY,
                          "this node serves %u %s of clients at once, and lets "
                          "%u wait; try again",
                          SERVE_CLIENTS_MAX, what, SERVE_WAITING_MAX);
}

void serve_messages_leave(struct serve_gate *g)
{
    atomic_fetch_sub(&g->served, 1);
}

/* --- what clients send ------------------------------------------------------
 */

/* A request's `data`, of either type. */
typedef ProtobufCBinaryData *(*data_fn)(void *m);

/* Room for what is announced is awaited at once; for more it is not, or those
 * who have a part of what they need would wait for each other. */
static int add_data(struct msg_buf *buf, ProtobufCBinaryData *data,
                    struct hedge_error *e)
{
    int rv = msg_buf_reserve(buf, buf->len + data->len, 0, e);

    rv = rv != 0 ? rv : msg_buf_append(buf, data->data, data->len);
    pb_drop_bytes(data); /* The request lives on; nobody counts these. */
    return rv;
}

/* The first piece of a message, received: counted in the budget or, when that
 * is full, among what waits for room in it, until there is room for the whole.
 */
struct first_piece {
    size_t len;
    size_t counted, held; /* One of them, or neither, is len. */
};

static int first_hold(struct hedge_node *n, struct first_piece *f,
                      struct hedge_error *e)
{
    int rv = msg_budget_hold(n->messages, f->len, e);

    f->held = rv == 0 ? f->len : 0;
    return rv;
}

static int first_count(struct hedge_node *n, struct first_piece *f, size_t len,
                       struct hedge_error *e)
{
    *f = (struct first_piece){.len = len};
    if (len <= MSG_FREE) {
        return 0; /* It does not wait. */
    }
    if (msg_budget_try(n->messages, len)) {
        f->counted = len;
        return 0;
    }
    return first_hold(n, f, e);
}

static void first_done(struct hedge_node *n, struct first_piece *f)
{
    if (f->counted > 0) {
        msg_budget_give(n->messages, f->counted);
    }
    if (f->held > 0) {
        msg_budget_unhold(n->messages, f->held);
    }
    f->counted = f->held = 0;
}

static int begin_data(struct hedge_node *n, struct first_piece *f,
                      struct msg_buf *buf, uint64_t announced,
                      ProtobufCBinaryData *data, uint64_t until_ms,
                      struct hedge_error *e)
{
    size_t len = announced > data->len ? (size_t)announced : data->len;
    bool counted = f->counted > 0;
    int rv = msg_buf_reserve(buf, len, counted ? 0 : left_of(until_ms), e);

    if (counted && rv == HEDGE_EEXHAUSTED) {
        first_done(n, f); /* Nobody waits with a part of what there is. */
        rv = first_hold(n, f, e);
        rv = rv != 0 ? rv : msg_buf_reserve(buf, len, left_of(until_ms), e);
    }
    rv = rv != 0 ? rv : add_data(buf, data, e);
    first_done(n, f);
    return rv;
}

/* The pieces behind the first. */
static int receive_rest(struct rpc_stream *s,
                        const ProtobufCMessageDescriptor *type, data_fn data,
                        uint64_t until_ms, struct msg_buf *buf,
                        struct hedge_error *e)
{
    for (;;) {
        struct rpc_msg msg;
        void *m;
        int rv = rpc_stream_recv(s, left_of(until_ms), &msg, e);

        if (rv != 0) {
            return rv == HEDGE_EEND ? 0 : rv;
        }
        m = pb_from_msg_large(type, &msg, e);
        if (m == NULL) {
            return HEDGE_EPROTO;
        }
        rv = add_data(buf, data(m), e);
        pb_free(m);
        if (rv != 0) {
            return rv;
        }
    }
}

/* So that this node's own handlers need no copy. */
static int share(struct msg_buf *buf, struct exchange_options *o,
                 struct hedge_error *e)
{
    o->shared = msg_shared_new(buf);
    if (o->shared == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a message");
    }
    o->data = o->shared->buf.data;
    o->len = o->shared->buf.len;
    return 0;
}

static void *receive_first(struct hedge_node *n, struct rpc_stream *s,
                           const ProtobufCMessageDescriptor *type,
                           struct first_piece *f, struct hedge_error *e,
                           int *rv)
{
    struct rpc_msg msg;
    void *m;

    *f = (struct first_piece){.len = 0};
    *rv = rpc_stream_recv(s, time_for(s, 0), &msg, e);
    if (*rv != 0) {
        *rv = *rv == HEDGE_EEND
                  ? error_set(e, HEDGE_EPROTO, "a call without a message")
                  : *rv;
        return NULL;
    }
    *rv = first_count(n, f, rpc_msg_left(&msg), e);
    if (*rv != 0) {
        rpc_msg_release(&msg);
        return NULL;
    }
    m = pb_from_msg_large(type, &msg, e);
    *rv = m == NULL ? HEDGE_EPROTO : 0;
    return m;
}

/* --- to the leader ----------------------------------------------------------
 */

static ProtobufCBinaryData *send_data(void *m)
{
    return &((Hedge__V1__SendRequest *)m)->data;
}

static int check_direct(struct hedge_node *n, struct hedge_error *e)
{
    struct hedge_leader l;

    if (hedge_has_lock(n, NULL)) {
        return 0;
    }
    if (hedge_leader(n, &l) != 0) {
        return error_set(e, HEDGE_ENOTLEADER,
                         "node %s is not the leader, and knows of none", n->id);
    }
    return error_set(e, HEDGE_ENOTLEADER,
                     "node %s is not the leader; %s is (gRPC on %s)", n->id,
                     l.id, l.grpc_address);
}

static int send_reply(struct rpc_stream *s, const struct hedge_reply *r)
{
    union {
        const void *in;
        uint8_t *out;
    } data = {.in = r->data};
    size_t at = 0;
    int rv;

    do {
        Hedge__V1__SendReply m = HEDGE__V1__SEND_REPLY__INIT;
        size_t left = r->len - at;

        m.id = at == 0 ? unconst(r->id) : m.id;
        m.len = at == 0 ? r->len : 0;
        m.data.len = left < MESSAGING_PIECE ? left : MESSAGING_PIECE;
        m.data.data = m.data.len > 0 ? data.out + at : NULL;
        at += m.data.len;
        rv = pb_send(s, &m.base, SEND_MS);
    } while (rv == 0 && at < r->len);
    return rv;
}

static int forward(struct hedge_node *n, struct rpc_stream *s,
                   Hedge__V1__SendRequest *first, struct first_piece *f,
                   struct msg_buf *buf, struct hedge_error *e)
{
    uint64_t until_ms = clock_mono_ms() + time_for(s, first->timeout_ms);
    struct exchange_options o = {
        .from = "", .retries = first->retries, .gone = has_gone, .ctx = s};
    struct hedge_reply *r;
    int rv = first->direct ? check_direct(n, e) : 0;

    rv = rv != 0 ? rv
                 : begin_data(n, f, buf, first->len, &first->data, until_ms, e);
    rv = rv != 0 ? rv
                 : receive_rest(s, &hedge__v1__send_request__descriptor,
                                send_data, until_ms, buf, e);
    rv = rv == 0 && first->direct ? check_direct(n, e) : rv;
    if (rv != 0) {
        return rv;
    }
    o.timeout_ms = left_of(until_ms);
    rv = share(buf, &o, e);
    rv = rv != 0 ? rv : exchange_send(n, &o, &r, e);
    msg_shared_unref(o.shared);
    if (rv == 0) {
        rv = send_reply(s, r);
        hedge_reply_free(r);
    }
    return rv;
}

int serve_send(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    Hedge__V1__SendRequest *first;
    struct msg_buf buf;
    struct first_piece f;
    int rv = serve_messages_enter(s, &n->sending, "messages", e);

    if (rv != 0) {
        return rv;
    }
    first =
        receive_first(n, s, &hedge__v1__send_request__descriptor, &f, e, &rv);
    if (first != NULL) {
        msg_buf_init(&buf, n->messages);
        rv = forward(n, s, first, &f, &buf, e);
        msg_buf_release(&buf);
    }
    pb_free(first);
    first_done(n, &f);
    serve_messages_leave(&n->sending);
    return rv;
}

/* --- to members -------------------------------------------------------------
 */

struct passing {
    struct rpc_stream *s;
    int rv;
};

static ProtobufCBinaryData *broadcast_data(void *m)
{
    return &((Hedge__V1__BroadcastRequest *)m)->data;
}

static void pass_on(void *ctx, struct hedge_reply *r)
{
    union {
        const void *in;
        uint8_t *out;
    } data = {.in = r != NULL ? r->data : NULL};
    struct passing *p = ctx;
    size_t at = 0;

    if (r == NULL) {
        p->rv = HEDGE_ENOMEM;
        return;
    }
    do {
        Hedge__V1__BroadcastReply m = HEDGE__V1__BROADCAST_REPLY__INIT;
        size_t left = r->len - at;

        m.id = unconst(r->id);
        m.len = r->len;
        if (r->error != 0) {
            m.error = unconst(hedge_errname(r->error));
            m.text = unconst(r->error_text);
        }
        m.data.len = left < MESSAGING_PIECE ? left : MESSAGING_PIECE;
        m.data.data = m.data.len > 0 ? data.out + at : NULL;
        at += m.data.len;
        p->rv = p->rv != 0 ? p->rv : pb_send(p->s, &m.base, SEND_MS);
    } while (p->rv == 0 && at < r->len);
    hedge_reply_free(r);
}

static bool passing_gone(void *ctx)
{
    const struct passing *p = ctx;

    return p->rv != 0 || rpc_stream_is_cancelled(p->s);
}

static int spread(struct hedge_node *n, struct rpc_stream *s,
                  Hedge__V1__BroadcastRequest *first, struct first_piece *f,
                  struct msg_buf *buf, struct hedge_error *e)
{
    uint64_t until_ms = clock_mono_ms() + time_for(s, first->timeout_ms);
    struct passing p = {.s = s};
    struct exchange_options o = {.from = "",
                                 .gone = passing_gone,
                                 .ctx = &p,
                                 .skip_self = first->skip_self,
                                 .only = (const char *const *)first->to,
                                 .n_only = first->n_to,
                                 .on_reply = pass_on};
    int rv = begin_data(n, f, buf, first->len, &first->data, until_ms, e);

    rv = rv != 0 ? rv
                 : receive_rest(s, &hedge__v1__broadcast_request__descriptor,
                                broadcast_data, until_ms, buf, e);
    if (rv != 0) {
        return rv;
    }
    o.timeout_ms = left_of(until_ms);
    rv = share(buf, &o, e);
    rv = rv != 0 ? rv : exchange_broadcast(n, &o, e);
    msg_shared_unref(o.shared);
    return rv != 0 ? rv : p.rv;
}

int serve_broadcast(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    Hedge__V1__BroadcastRequest *first;
    struct msg_buf buf;
    struct first_piece f;
    int rv = serve_messages_enter(s, &n->spreading, "broadcasts", e);

    if (rv != 0) {
        return rv;
    }
    first = receive_first(n, s, &hedge__v1__broadcast_request__descriptor, &f,
                          e, &rv);
    if (first != NULL) {
        msg_buf_init(&buf, n->messages);
        rv = spread(n, s, first, &f, &buf, e);
        msg_buf_release(&buf);
    }
    pb_free(first);
    first_done(n, &f);
    serve_messages_leave(&n->spreading);
    return rv;
}
