/* msg_stream.c - a stream has legs: one at a handler's end and to the leader,
 * one for each member in a broadcast. No leg has a thread: a leg says when
 * something may be received or sent, and whoever waits looks at all of them. A
 * leg takes one message at a time from us and one ahead of us, which is the
 * back-pressure. */
#include "cluster/messages/msg_stream.h"

#include "cluster/messages/messaging.h"
#include "cluster/node_internal.h"
#include "proto/messages.pb-c.h"
#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define METHOD "/hedge.v1.MessagePeer/Stream"
/* A member that takes nothing for so long while others do is given up. */
#define STALL_MS 5000
#define ROOM_MS 10000 /* How long a message waits for room in the budget. */
#define RETRY_MS 20
#define LOOK_MS 100
#define META_MAX 256
#define META_TEXT_MAX ((size_t)64 << 10)

struct leg {
    struct hedge_stream *hs;
    struct rpc_stream *rpc;       /* NULL: could not be opened. */
    struct kept_channel *channel; /* NULL: not ours to give back. */
    char id[MEMBER_ID_SIZE];
    bool recv_over;
    atomic_bool send_over;    /* Both directions find that out. */
    struct hedge_error error; /* The first of both; under the stream's lock. */
    uint64_t stuck_since_ms;  /* 0: it takes messages. */
    struct msg_buf buf;       /* The message that is arriving, or has. */
    bool begun;               /* Its first piece has come, with the pairs: */
    size_t n_meta;            /* keys and values, one after the other. */
    char *meta;               /* NULL: none. */
    bool whole;               /* It has been handed out. */
};

struct hedge_stream {
    struct hedge_node *n;
    const struct msg_stream_ops *ops; /* NULL: legs. */
    void *ctx;
    bool is_client;
    char *from; /* What we say of ourselves. */

    size_t n_legs, next; /* `next` has its turn to be received from. */
    struct leg *legs;
    struct hedge_meta *meta; /* Of the message handed out last. */

    pthread_mutex_t lock; /* events, the legs' error */
    pthread_cond_t wake;
    uint64_t events;
};

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

/* --- waiting for any of the legs --------------------------------------------
 */

static void on_event(void *arg)
{
    struct hedge_stream *s = arg;

    pthread_mutex_lock(&s->lock);
    s->events++;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

static uint64_t events_of(struct hedge_stream *s)
{
    uint64_t events;

    pthread_mutex_lock(&s->lock);
    events = s->events;
    pthread_mutex_unlock(&s->lock);
    return events;
}

/* Until something has happened since `seen`, or until then. */
static void await_event(struct hedge_stream *s, uint64_t seen,
                        uint64_t until_ms)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ms / 1000),
                          .tv_nsec = (long)(until_ms % 1000) * 1000000};

    pthread_mutex_lock(&s->lock);
    while (s->events == seen &&
           pthread_cond_timedwait(&s->wake, &s->lock, &ts) == 0) {
    }
    pthread_mutex_unlock(&s->lock);
}

static uint64_t deadline(uint64_t timeout_ms)
{
    return clock_mono_ms() +
           (timeout_ms < UINT32_MAX ? timeout_ms : UINT32_MAX);
}

/* --- life -------------------------------------------------------------------
 */

static int stream_new(struct hedge_node *n, const char *from, size_t n_legs,
                      struct hedge_stream **out)
{
    struct hedge_stream *s = mem_calloc(1, sizeof *s);
    pthread_condattr_t attr;

    *out = NULL;
    if (s == NULL) {
        return HEDGE_ENOMEM;
    }
    s->n = n;
    s->from = mem_strdup(from);
    s->legs = mem_calloc(n_legs > 0 ? n_legs : 1, sizeof s->legs[0]);
    s->meta = mem_calloc(META_MAX, sizeof s->meta[0]);
    if (s->from == NULL || s->legs == NULL || s->meta == NULL) {
        mem_free(s->from);
        mem_free(s->legs);
        mem_free(s->meta);
        mem_free(s);
        return HEDGE_ENOMEM;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &attr);
    pthread_condattr_destroy(&attr);
    *out = s;
    return 0;
}

static void leg_init(struct leg *l, struct hedge_stream *s, const char *id)
{
    memset(l, 0, sizeof *l);
    l->hs = s;
    (void)snprintf(l->id, sizeof l->id, "%s", id);
    msg_buf_init(&l->buf, s->n->messages);
}

static void leg_release(struct leg *l)
{
    if (l->rpc != NULL && l->hs->is_client) {
        rpc_stream_free(l->rpc);
    } else if (l->rpc != NULL) {
        rpc_stream_notify(l->rpc, NULL, NULL);
    }
    if (l->channel != NULL) {
        node_channel_put(l->hs->n, l->channel);
    }
    mem_free(l->meta);
    msg_buf_release(&l->buf);
}

void msg_stream_cancel(struct hedge_stream *s)
{
    for (size_t i = 0; i < s->n_legs; i++) {
        if (s->legs[i].rpc != NULL) {
            rpc_stream_cancel(s->legs[i].rpc);
        }
    }
}

void msg_stream_free(struct hedge_stream *s)
{
    if (s == NULL) {
        return;
    }
    if (s->is_client) {
        msg_stream_cancel(s);
    }
    for (size_t i = 0; i < s->n_legs; i++) {
        leg_release(&s->legs[i]);
    }
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    mem_free(s->from);
    mem_free(s->legs);
    mem_free(s->meta);
    mem_free(s);
}

HEDGE_API void hedge_stream_close(struct hedge_stream *s)
{
    assert(s == NULL || s->is_client);
    msg_stream_free(s);
}

int msg_stream_wrap(struct hedge_node *n, const struct msg_stream_ops *ops,
                    void *ctx, struct hedge_stream **out)
{
    int rv = stream_new(n, "", 0, out);

    if (rv == 0) {
        (*out)->ops = ops;
        (*out)->ctx = ctx;
    }
    return rv;
}

int msg_stream_serve(struct hedge_node *n, struct rpc_stream *rpc,
                     const char *from, struct hedge_stream **out)
{
    int rv = stream_new(n, n->id, 1, out);
    struct hedge_stream *s = *out;

    if (rv == 0) {
        leg_init(&s->legs[0], s, from);
        s->legs[0].rpc = rpc;
        s->n_legs = 1;
        rpc_stream_notify(rpc, on_event, s);
    }
    return rv;
}

/* --- sending ----------------------------------------------------------------
 */

/* The first error counts; it is copied to `e`. */
static void leg_error(struct leg *l, int code, const char *text,
                      struct hedge_error *e)
{
    pthread_mutex_lock(&l->hs->lock);
    if (l->error.code == 0 && code != 0) {
        (void)error_set(&l->error, code, "%s", text);
    }
    *e = l->error;
    pthread_mutex_unlock(&l->hs->lock);
}

static void leg_fail(struct leg *l, int code, const char *text)
{
    struct hedge_error e;

    l->send_over = true;
    leg_error(l, code, text, &e);
    if (l->rpc != NULL) {
        rpc_stream_cancel(l->rpc);
    }
}

/* Is the leg ready, or over? */
static bool is_ready(struct leg *l, uint64_t now_ms, bool alone)
{
    if (l->send_over || rpc_stream_can_send(l->rpc)) {
        l->stuck_since_ms = 0;
        return true;
    }
    if (l->stuck_since_ms == 0) {
        l->stuck_since_ms = now_ms;
    }
    if (!alone && now_ms - l->stuck_since_ms >= STALL_MS) {
        leg_fail(l, HEDGE_ETIMEDOUT, "it takes no messages");
        return true;
    }
    return false;
}

/* Until every leg has room for a message. */
static int await_room(struct hedge_stream *s, uint64_t until_ms)
{
    for (;;) {
        uint64_t seen = events_of(s), now_ms = clock_mono_ms();
        bool ready = true;

        for (size_t i = 0; i < s->n_legs; i++) {
            ready = is_ready(&s->legs[i], now_ms, s->n_legs == 1) && ready;
        }
        if (ready) {
            return 0;
        }
        if (now_ms >= until_ms) {
            return HEDGE_ETIMEDOUT;
        }
        if (s->is_client && s->n->closing) {
            return HEDGE_ECLOSED;
        }
        await_event(s, seen,
                    until_ms < now_ms + LOOK_MS ? until_ms : now_ms + LOOK_MS);
    }
}

/* To every leg that is left; the error of the last one. */
static int post_all(struct hedge_stream *s, const struct rpc_out *out)
{
    int last = HEDGE_ECLOSED;
    size_t sent = 0;

    for (size_t i = 0; i < s->n_legs; i++) {
        struct leg *l = &s->legs[i];
        int rv =
            l->send_over ? HEDGE_ECLOSED : rpc_stream_try_send(l->rpc, out);

        if (rv == HEDGE_ENOMEM) {
            return rv;
        }
        sent += rv == 0;
        l->send_over = l->send_over || rv != 0;
        last = rv != 0 && rv != HEDGE_ECLOSED ? rv : last;
    }
    return sent > 0 ? 0 : s->n_legs == 1 ? last : HEDGE_ECLOSED;
}

static int send_piece(struct hedge_stream *s, Hedge__V1__StreamItem *item,
                      uint64_t until_ms)
{
    struct rpc_out out = {.head_len = 0};
    struct pb_buf buf;
    int rv = await_room(s, until_ms);

    rv = rv != 0 ? rv : pb_pack(&item->base, &buf);
    if (rv == 0) {
        out.head = buf.data;
        out.head_len = buf.len;
        rv = post_all(s, &out);
        mem_free(buf.data);
    }
    return rv;
}

static int send_pieces(struct hedge_stream *s, const char *from,
                       const struct hedge_message *m, Hedge__V1__Meta **meta,
                       uint64_t until_ms)
{
    union {
        const void *in;
        uint8_t *out;
    } data = {.in = m->data};
    size_t at = 0;
    int rv;

    do {
        Hedge__V1__StreamItem item = HEDGE__V1__STREAM_ITEM__INIT;
        size_t left = m->len - at;

        item.from = unconst(from);
        if (at == 0) {
            item.meta = meta;
            item.n_meta = m->n_meta;
        }
        item.data.len = left < MESSAGING_PIECE ? left : MESSAGING_PIECE;
        item.data.data = item.data.len > 0 ? data.out + at : NULL;
        item.more = left > MESSAGING_PIECE;
        rv = send_piece(s, &item, until_ms);
        if (rv == HEDGE_ETIMEDOUT && at > 0) {
            msg_stream_cancel(s); /* Half a message is of no use. */
        }
        at += item.data.len;
    } while (rv == 0 && at < m->len);
    return rv;
}

int msg_stream_send_error(struct hedge_stream *s, const char *from, int code,
                          const char *text, uint64_t timeout_ms)
{
    Hedge__V1__StreamItem item = HEDGE__V1__STREAM_ITEM__INIT;

    item.from = unconst(from);
    item.error = unconst(hedge_errname(code));
    item.text = unconst(text);
    return send_piece(s, &item, deadline(timeout_ms));
}

static bool is_text(const char *s)
{
    return units_is_text(s, strlen(s));
}

HEDGE_API int hedge_stream_send(struct hedge_stream *s,
                                const struct hedge_message *m,
                                uint64_t timeout_ms)
{
    for (size_t i = 0; i < m->n_meta && i < META_MAX; i++) {
        if (!is_text(m->meta[i].key) || !is_text(m->meta[i].value)) {
            return HEDGE_EINVAL;
        }
    }
    return s->ops != NULL ? s->ops->send(s->ctx, m, timeout_ms)
                          : msg_stream_pass(s, s->from, m, timeout_ms);
}

static size_t text_size(const char *key, const char *value)
{
    return strlen(key) + 1 + strlen(value) + 1;
}

static bool meta_fits(const struct hedge_message *m)
{
    size_t size = 0;

    for (size_t i = 0; i < m->n_meta && i < META_MAX; i++) {
        size += text_size(m->meta[i].key, m->meta[i].value);
    }
    return m->n_meta <= META_MAX && size <= META_TEXT_MAX;
}

int msg_stream_pass(struct hedge_stream *s, const char *from,
                    const struct hedge_message *m, uint64_t timeout_ms)
{
    Hedge__V1__Meta **meta = NULL, *pairs = NULL;
    int rv;

    if (m->len > MSG_MAX || !meta_fits(m)) {
        return HEDGE_ETOOBIG;
    }
    if (m->n_meta > 0) {
        meta = mem_calloc(m->n_meta, sizeof(Hedge__V1__Meta *));
        pairs = mem_calloc(m->n_meta, sizeof *pairs);
        if (meta == NULL || pairs == NULL) {
            mem_free(meta);
            mem_free(pairs);
            return HEDGE_ENOMEM;
        }
    }
    for (size_t i = 0; i < m->n_meta; i++) {
        hedge__v1__meta__init(&pairs[i]);
        pairs[i].key = unconst(m->meta[i].key);
        pairs[i].value = unconst(m->meta[i].value);
        meta[i] = &pairs[i];
    }
    rv = send_pieces(s, from, m, meta, deadline(timeout_ms));
    mem_free(meta);
    mem_free(pairs);
    return rv;
}

HEDGE_API int hedge_stream_close_send(struct hedge_stream *s)
{
    if (!s->is_client) {
        return HEDGE_ENOTSUP;
    }
    for (size_t i = 0; i < s->n_legs; i++) {
        struct leg *l = &s->legs[i];

        if (l->rpc != NULL && !l->send_over) {
            (void)rpc_stream_end_send(l->rpc);
        }
        l->send_over = true;
    }
    return 0;
}

/* --- receiving --------------------------------------------------------------
 */

/* The pairs of a message. Nothing else of its items is kept: whatever they
 * have beside their data is not counted against the message limit. */
static int keep_meta(struct leg *l, const Hedge__V1__StreamItem *item,
                     struct hedge_error *e)
{
    size_t size = 0;
    char *at;

    if (item->n_meta > META_MAX) {
        return error_set(e, HEDGE_EPROTO, "more than %d pairs", META_MAX);
    }
    for (size_t i = 0; i < item->n_meta; i++) {
        size += text_size(item->meta[i]->key, item->meta[i]->value);
    }
    if (size > META_TEXT_MAX) {
        return error_set(e, HEDGE_EPROTO, "pairs of more than %zu bytes",
                         META_TEXT_MAX);
    }
    l->meta = at = size > 0 ? mem_alloc(size) : NULL;
    if (size > 0 && at == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a message");
    }
    for (size_t i = 0; i < item->n_meta; i++) {
        at = stpcpy(at, item->meta[i]->key) + 1;
        at = stpcpy(at, item->meta[i]->value) + 1;
    }
    l->n_meta = item->n_meta;
    return 0;
}

/* A piece has come. 0: the message is whole; HEDGE_EAGAIN: it is not. */
static int add_piece(struct leg *l, Hedge__V1__StreamItem *item,
                     struct hedge_error *e)
{
    bool more = item->more;
    int rv;

    if (item->open != NULL && item->data.len == 0) {
        pb_free(item); /* The handler has begun. */
        return HEDGE_EAGAIN;
    }
    rv = msg_buf_reserve(&l->buf, l->buf.len + item->data.len, ROOM_MS, e);
    rv =
        rv != 0 ? rv : msg_buf_append(&l->buf, item->data.data, item->data.len);
    if (rv == 0 && !l->begun) {
        l->begun = true;
        rv = keep_meta(l, item, e);
    }
    pb_free(item);
    return rv != 0 ? rv : more ? HEDGE_EAGAIN : 0;
}

static void forget(struct leg *l)
{
    mem_free(l->meta);
    l->meta = NULL;
    l->n_meta = 0;
    msg_buf_clear(&l->buf);
    l->begun = l->whole = false;
}

/* What a leg has: 0, HEDGE_EAGAIN: nothing yet, or how it has ended. */
static int leg_recv(struct leg *l, struct hedge_error *e)
{
    Hedge__V1__StreamItem *item;
    struct rpc_msg msg;
    int rv;

    do {
        rv = rpc_stream_recv(l->rpc, 0, &msg, e);
        if (rv == HEDGE_ETIMEDOUT && !rpc_stream_is_cancelled(l->rpc)) {
            return HEDGE_EAGAIN;
        }
        if (rv != 0) {
            return rv;
        }
        item = pb_from_msg_large(&hedge__v1__stream_item__descriptor, &msg, e);
        rv = item != NULL ? add_piece(l, item, e) : e->code;
    } while (rv == HEDGE_EAGAIN);
    return rv;
}

static int hand_out(struct hedge_stream *s, struct leg *l,
                    struct hedge_message *out)
{
    const char *at = l->meta;

    out->data = l->buf.len > 0 ? l->buf.data : (const void *)"";
    out->len = l->buf.len;
    out->from = l->id;
    out->meta = s->meta;
    out->n_meta = l->n_meta;
    for (size_t i = 0; i < l->n_meta; i++) {
        s->meta[i].key = at;
        at += strlen(at) + 1;
        s->meta[i].value = at;
        at += strlen(at) + 1;
    }
    l->whole = true;
    return 0;
}

/* How the leg ended, told once. 0: in good order. */
static int leg_ended(struct leg *l, int rv, const struct hedge_error *why,
                     struct hedge_message *out, struct hedge_error *e)
{
    struct hedge_error first;

    l->recv_over = true;
    /* A client that sends no more still wants its replies. */
    l->send_over = l->send_over || l->hs->is_client || rv != HEDGE_EEND;
    forget(l);
    leg_error(l, rv == HEDGE_EEND ? 0 : why->code, why->text, &first);
    if (first.code == 0) {
        return 0;
    }
    if (l->rpc != NULL && l->hs->is_client) {
        rpc_stream_cancel(l->rpc);
    }
    out->from = l->id;
    return l->hs->is_client
               ? error_set(e, first.code, "node %s: %s", l->id, first.text)
               : error_set(e, first.code, "%s", first.text);
}

/* One look at all legs. HEDGE_EAGAIN: nothing yet. */
static int look(struct hedge_stream *s, struct hedge_message *out,
                struct hedge_error *e)
{
    size_t first = s->next, over = 0;

    for (size_t k = 0; k < s->n_legs; k++) {
        struct leg *l = &s->legs[(first + k) % s->n_legs];
        struct hedge_error why;
        int rv;

        if (l->recv_over) {
            over++;
            continue;
        }
        error_clear(&why);
        rv = l->rpc != NULL ? leg_recv(l, &why) : HEDGE_EUNAVAILABLE;
        if (rv == HEDGE_EAGAIN) {
            continue;
        }
        s->next = (size_t)(l - s->legs) + 1;
        if (rv == 0) {
            return hand_out(s, l, out);
        }
        if (why.code == 0) {
            (void)error_set(&why, rv, "%s", hedge_strerror(rv));
        }
        rv = leg_ended(l, rv, &why, out, e);
        if (rv != 0) {
            return rv;
        }
        over++;
    }
    return over == s->n_legs ? error_set(e, HEDGE_EEND, "the stream has ended")
                             : HEDGE_EAGAIN;
}

HEDGE_API int hedge_stream_recv(struct hedge_stream *s, uint64_t timeout_ms,
                                struct hedge_message *out,
                                struct hedge_error *e)
{
    uint64_t until_ms = deadline(timeout_ms);

    memset(out, 0, sizeof *out);
    out->data = out->from = "";
    if (s->ops != NULL) {
        return s->ops->recv(s->ctx, timeout_ms, out, e);
    }
    for (size_t i = 0; i < s->n_legs; i++) {
        if (s->legs[i].whole) {
            forget(&s->legs[i]);
        }
    }
    for (;;) {
        uint64_t seen = events_of(s);
        int rv = look(s, out, e);

        if (rv != HEDGE_EAGAIN) {
            return rv;
        }
        if (clock_mono_ms() >= until_ms) {
            return error_set(e, HEDGE_ETIMEDOUT, "nothing was received");
        }
        await_event(s, seen, until_ms);
    }
}

/* --- opening ----------------------------------------------------------------
 */

static int send_open(struct rpc_stream *rpc, Hedge__V1__StreamOpen *open)
{
    Hedge__V1__StreamItem item = HEDGE__V1__STREAM_ITEM__INIT;
    struct rpc_out out = {.head_len = 0};
    struct pb_buf buf;
    int rv;

    item.open = open;
    rv = pb_pack(&item.base, &buf);
    if (rv == 0) {
        out.head = buf.data;
        out.head_len = buf.len;
        rv = rpc_stream_try_send(rpc, &out);
        mem_free(buf.data);
    }
    return rv;
}

int msg_stream_begin(struct hedge_stream *s)
{
    Hedge__V1__StreamOpen open = HEDGE__V1__STREAM_OPEN__INIT;

    if (s->ops != NULL) {
        return 0;
    }
    open.from = s->from;
    return send_open(s->legs[0].rpc, &open);
}

/* Start a leg; what goes wrong is told by receiving from it. */
static void leg_open(struct leg *l, const char *target, enum handler_kind kind)
{
    Hedge__V1__StreamOpen open = HEDGE__V1__STREAM_OPEN__INIT;
    int rv = HEDGE_ENOMEM;

    open.kind = kind;
    open.from = l->hs->from;
    l->channel = node_channel(l->hs->n, target);
    if (l->channel != NULL) {
        rv = rpc_stream_open(kept_channel_rpc(l->channel), METHOD,
                             RPC_NO_TIMEOUT, &l->rpc);
    }
    if (rv == 0) {
        rpc_stream_notify(l->rpc, on_event, l->hs);
        rv = send_open(l->rpc, &open);
    }
    if (rv != 0 && l->rpc == NULL) {
        leg_fail(l, rv, hedge_strerror(rv));
    }
    l->send_over = l->send_over || rv != 0;
}

/* Wait for the handler to begin. */
static int await_begin(struct hedge_stream *s, uint64_t until_ms,
                       bool (*gone)(void *ctx), void *ctx,
                       struct hedge_error *e)
{
    struct leg *l = &s->legs[0];
    struct rpc_msg msg;
    int rv = HEDGE_ETIMEDOUT;

    if (l->rpc == NULL) {
        return error_set(e, l->error.code, "%s", l->error.text);
    }
    while (rv == HEDGE_ETIMEDOUT && clock_mono_ms() < until_ms &&
           !s->n->closing && (gone == NULL || !gone(ctx))) {
        rv = rpc_stream_recv(l->rpc, LOOK_MS, &msg, e);
    }
    if (rv == 0) {
        rpc_msg_release(&msg); /* Its begin, and nothing else. */
    } else if (rv == HEDGE_EEND) {
        rv = error_set(e, HEDGE_EPROTO, "node %s ended the stream at once",
                       l->id);
    } else if (rv == HEDGE_ETIMEDOUT) {
        rv = error_set(e, rv, "the leader, node %s, has not answered in time",
                       l->id);
    }
    return rv;
}

/* One attempt. */
static int try_leader(struct hedge_node *n, const char *from, uint64_t until_ms,
                      bool (*gone)(void *ctx), void *ctx,
                      struct hedge_stream **out, struct hedge_error *e)
{
    struct hedge_leader leader;
    struct hedge_stream *s;
    char target[TARGET_SIZE];
    int rv;

    if (hedge_leader(n, &leader) != 0) {
        return error_set(e, HEDGE_ENOLEADER,
                         "the group has no leader at present");
    }
    rv = stream_new(n, from, 1, &s);
    if (rv != 0) {
        return error_set(e, rv, "no memory for a stream");
    }
    s->is_client = true;
    leg_init(&s->legs[0], s, leader.id);
    s->n_legs = 1;
    node_target_of(n, leader.id, leader.grpc_address, target);
    leg_open(&s->legs[0], target, HANDLER_LEADER);
    rv = await_begin(s, until_ms, gone, ctx, e);
    if (rv != 0) {
        msg_stream_free(s);
        return rv;
    }
    *out = s;
    return 0;
}

int msg_stream_to_leader(struct hedge_node *n, const char *from,
                         uint64_t timeout_ms, bool (*gone)(void *ctx),
                         void *ctx, struct hedge_stream **out,
                         struct hedge_error *e)
{
    uint64_t until_ms = deadline(timeout_ms);

    *out = NULL;
    for (;;) {
        int rv = try_leader(n, from, until_ms, gone, ctx, out, e);

        /* Nothing has been sent yet, so all of these may be tried again. */
        if (rv == 0 || clock_mono_ms() >= until_ms ||
            (rv != HEDGE_ENOLEADER && rv != HEDGE_ENOTLEADER &&
             rv != HEDGE_EUNAVAILABLE && rv != HEDGE_ECANCELED &&
             rv != HEDGE_ECLOSED)) {
            return rv;
        }
        if (n->closing) {
            return error_set(e, HEDGE_ECLOSED, "the node stops");
        }
        if (gone != NULL && gone(ctx)) {
            return error_set(e, HEDGE_ECANCELED, "the sender has gone");
        }
        clock_sleep_ms(RETRY_MS);
    }
}

int msg_stream_broadcast(struct hedge_node *n, const char *from, bool skip_self,
                         uint64_t timeout_ms, struct hedge_stream **out,
                         struct hedge_error *e)
{
    uint64_t until_ms = deadline(timeout_ms);
    struct view *v = node_view(n);
    struct hedge_stream *s;
    int rv;

    *out = NULL;
    while ((v == NULL || v->n == 0) && clock_mono_ms() < until_ms &&
           !n->closing) {
        view_unref(v);
        clock_sleep_ms(RETRY_MS);
        v = node_view(n);
    }
    if (v == NULL || v->n == 0) {
        view_unref(v);
        return error_set(e, HEDGE_ENOLEADER,
                         "the group has no leader, and no list of members");
    }
    rv = stream_new(n, from, v->n, &s);
    if (rv != 0) {
        view_unref(v);
        return error_set(e, rv, "no memory for a stream");
    }
    s->is_client = true;
    for (size_t i = 0; i < v->n; i++) {
        char target[TARGET_SIZE];

        if (skip_self && strcmp(v->members[i].id, n->id) == 0) {
            continue;
        }
        node_target(n, &v->members[i], target);
        leg_init(&s->legs[s->n_legs], s, v->members[i].id);
        leg_open(&s->legs[s->n_legs++], target, HANDLER_BROADCAST);
    }
    view_unref(v);
    *out = s;
    return 0;
}

HEDGE_API int hedge_stream_to_leader(struct hedge_node *node,
                                     uint64_t timeout_ms,
                                     struct hedge_stream **out,
                                     struct hedge_error *e)
{
    return msg_stream_to_leader(node, node->id, timeout_ms, NULL, NULL, out, e);
}

HEDGE_API int hedge_stream_broadcast(struct hedge_node *node, bool skip_self,
                                     uint64_t timeout_ms,
                                     struct hedge_stream **out,
                                     struct hedge_error *e)
{
    return msg_stream_broadcast(node, node->id, skip_self, timeout_ms, out, e);
}
