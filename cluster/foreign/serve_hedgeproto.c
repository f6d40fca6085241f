/* serve_hedgeproto.c - the reference's service hedgeproto.Hedge.
 *
 * Send and Broadcast are streams of this node's stream handlers. The SoS calls
 * fill and read stores of this node alone: they are the part of a store that
 * the reference's sender, which counts on its own, has given to this node. */
#include "cluster/messages/handlers.h"
#include "cluster/messages/msg_stream.h"
#include "cluster/node_internal.h"
#include "cluster/messages/payload.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/units.h"
#include "store/reader.h"
#include "store/writer.h"

#include <string.h>

#define OPEN_MS 15000
#define SEND_MS 60000 /* To somebody who does not read. */
#define STEP_MS 200
#define ROOM_MS 10000 /* How long a message waits for room. */
#define EXPIRE_S 30
#define EXPIRE_S_MAX ((uint64_t)30 * 86400)
/* A part that was never closed: its sender has died. */
#define UNCLOSED_MS 3600000
#define LOCAL_GENERATIONS ((uint64_t)1 << 63) /* No leader gives those. */

/* A message as it was received, whole, in one piece. */
struct received {
    struct msg_buf bytes;
    struct payload payload;
};

static void received_init(struct received *r, struct hedge_node *n)
{
    msg_buf_init(&r->bytes, n->messages);
}

static void received_release(struct received *r)
{
    msg_buf_release(&r->bytes);
}

static int payload_error(int rv, struct hedge_error *e)
{
    return rv == HEDGE_ETOOBIG
               ? error_set(e, rv, "a Payload has more meta than there may be")
           : rv != 0 ? error_set(e, rv, "not a Payload")
                     : 0;
}

static int receive(struct rpc_stream *s, uint64_t timeout_ms,
                   struct received *out, struct hedge_error *e)
{
    struct rpc_msg msg;
    size_t len;
    int rv;

    msg_buf_clear(&out->bytes);
    rv = rpc_stream_recv(s, timeout_ms, &msg, e);
    if (rv != 0) {
        return rv;
    }
    len = rpc_msg_left(&msg);
    rv = msg_buf_reserve(&out->bytes, len, ROOM_MS, e);
    if (rv == 0) {
        rpc_msg_read(&msg, out->bytes.data, len);
        out->bytes.len = len;
    }
    rpc_msg_release(&msg);
    return rv != 0 ? rv
                   : payload_error(
                         payload_parse(out->bytes.data, len, &out->payload), e);
}

/* Bytes on their way to a client, which count until the transport has let go
 * of them. */
struct leaving {
    struct msg_budget *budget;
    unsigned char *bytes;
    size_t len;
};

static void leaving_end(void *arg)
{
    struct leaving *l = arg;

    msg_budget_give(l->budget, l->len);
    msg_budget_unref(l->budget);
    mem_free(l->bytes);
    mem_free(l);
}

/* Takes the bytes, also on failure. */
static int leaving_new(struct msg_budget *budget, unsigned char *bytes,
                       size_t len, struct leaving **out)
{
    struct leaving *l = mem_alloc(sizeof *l);
    int rv = l != NULL ? 0 : HEDGE_ENOMEM;

    if (rv == 0 && len > MSG_FREE) {
        rv = msg_budget_take(budget, len, ROOM_MS, NULL);
    } else if (rv == 0) {
        msg_budget_force(budget, len);
    }
    if (rv != 0) {
        mem_free(bytes);
        mem_free(l);
        return rv;
    }
    msg_budget_ref(budget);
    *l = (struct leaving){.budget = budget, .bytes = bytes, .len = len};
    *out = l;
    return 0;
}

static int send_payload(struct rpc_stream *s, struct hedge_node *n,
                        const struct hedge_message *m, uint64_t timeout_ms)
{
    struct rpc_out out = {.release = leaving_end};
    struct leaving *l;
    unsigned char *bytes;
    size_t len;
    int rv = payload_pack(m, &bytes, &len);

    rv = rv != 0 ? rv : leaving_new(n->messages, bytes, len, &l);
    if (rv != 0) {
        return rv;
    }
    out.body = bytes;
    out.body_len = len;
    out.release_arg = l;
    return rpc_stream_send(s, &out, timeout_ms);
}

/* --- Send, Broadcast --- */

struct messages {
    struct hedge_node *n;
    struct rpc_stream *rpc;
    struct received in;
};

static int messages_recv(void *ctx, uint64_t timeout_ms,
                         struct hedge_message *out, struct hedge_error *e)
{
    struct messages *m = ctx;
    int rv = receive(m->rpc, timeout_ms, &m->in, e);

    *out = (struct hedge_message){.data = "", .from = ""};
    if (rv == 0) {
        out->data = m->in.payload.data;
        out->len = m->in.payload.len;
        out->meta = m->in.payload.meta;
        out->n_meta = m->in.payload.n_meta;
    }
    return rv;
}

static int messages_send(void *ctx, const struct hedge_message *m,
                         uint64_t timeout_ms)
{
    struct messages *messages = ctx;

    return send_payload(messages->rpc, messages->n, m, timeout_ms);
}

static int run_handler(struct rpc_stream *rpc, struct hedge_node *n,
                       enum handler_kind kind, struct hedge_error *e)
{
    static const struct msg_stream_ops ops = {messages_recv, messages_send};
    struct messages m = {.n = n, .rpc = rpc};
    struct hedge_stream *s;
    int rv = msg_stream_wrap(n, &ops, &m, &s);

    if (rv != 0) {
        return error_set(e, rv, "no memory for a stream");
    }
    received_init(&m.in, n);
    rv = handlers_run_stream(n->handlers, kind, s, e);
    msg_stream_free(s);
    received_release(&m.in);
    return rv;
}

int serve_hp_send(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    return run_handler(s, ctx, HANDLER_LEADER, e);
}

int serve_hp_broadcast(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    return run_handler(s, ctx, HANDLER_BROADCAST, e);
}

/* --- parts of stores --- */

static int get_number(const struct payload *p, const char *key, uint64_t max,
                      uint64_t *out, struct hedge_error *e)
{
    const char *text = payload_get(p, key);

    *out = 0;
    if (text != NULL && (!units_parse_u64(text, out) || *out > max)) {
        return error_set(e, HEDGE_EINVAL,
                         "%s \"%.32s\" is not a number up to "
                         "%llu",
                         key, text, (unsigned long long)max);
    }
    return 0;
}

static int get_name(const struct payload *p, const char **name,
                    struct hedge_error *e)
{
    *name = payload_get(p, "name");
    return *name != NULL ? units_check_name(*name, strlen(*name), e)
                         : error_set(e, HEDGE_EINVAL,
                                     "the first message's meta has no name");
}

static int get_options(const struct payload *p, struct sos_store_options *o,
                       struct hedge_error *e)
{
    uint64_t expire_s;
    int rv;

    pb_to_store_options(NULL, o);
    o->local = true;
    o->ttl_ms = UNCLOSED_MS;
    rv = get_number(p, "mlimit", INT64_MAX, &o->mem_limit, e);
    rv = rv != 0 ? rv : get_number(p, "dlimit", INT64_MAX, &o->disk_limit, e);
    rv = rv != 0 ? rv : get_number(p, "expire", EXPIRE_S_MAX, &expire_s, e);
    if (rv == 0) {
        o->closed_ttl_ms = (expire_s != 0 ? expire_s : EXPIRE_S) * 1000;
        o->ttl_ms = o->closed_ttl_ms > o->ttl_ms ? o->closed_ttl_ms : o->ttl_ms;
    }
    return rv;
}

static int open_part(struct hedge_node *n, const struct payload *p,
                     struct sos_store **out, struct hedge_error *e)
{
    struct sos_store_options o;
    const char *name;
    int rv = get_name(p, &name, e);

    *out = NULL;
    rv = rv != 0 ? rv : get_options(p, &o, e);
    if (rv != 0) {
        return rv;
    }
    do {
        uint64_t number = atomic_fetch_add(&n->local_stores, 1) + 1;

        rv = sos_find_local(n->sos, name, out, e);
        if (rv == HEDGE_ENOTFOUND) {
            rv = sos_create(n->sos, name, LOCAL_GENERATIONS | number, &o, out,
                            e);
        }
    } while (rv == HEDGE_EEXISTS); /* Somebody else was faster. */
    if (rv == 0) {
        sos_store_resume(*out);
    }
    return rv;
}

/* A sink may have to wait for its block, as those of serve_write.c do, and a
 * reader for its own. */
static int open_sink(struct rpc_stream *s, struct sos_store *store,
                     struct sink **out, struct hedge_error *e)
{
    uint64_t until = clock_mono_ms() + SERVE_BUSY_MS;
    int rv = sos_sink_open(store, out, e);

    while (rv == HEDGE_EBUSY && clock_mono_ms() < until &&
           !rpc_stream_is_cancelled(s)) {
        clock_sleep_ms(SERVE_RETRY_MS);
        rv = sos_sink_open(store, out, e);
    }
    return rv;
}

/* --- SoSWrite --- */

static int check_same_name(const struct payload *p, struct sos_store *store,
                           struct hedge_error *e)
{
    const char *name = payload_get(p, "name");

    return name == NULL || strcmp(name, sos_store_name(store)) == 0
               ? 0
               : error_set(e, HEDGE_EINVAL,
                           "a stream writes one store: \"%s\", not \"%.64s\"",
                           sos_store_name(store), name);
}

/* Records until the client has no more; HEDGE_EEND. */
static int take_records(struct rpc_stream *s, struct writer *w,
                        struct sos_store *store, struct received *in,
                        struct hedge_error *e)
{
    int rv = 0;

    while (rv == 0) {
        rv = writer_write(w, in->payload.data, in->payload.len);
        if (rv != 0) {
            *e = w->error;
            return rv;
        }
        do {
            rv = receive(s, STEP_MS, in, e);
        } while (rv == HEDGE_ETIMEDOUT && !rpc_stream_is_cancelled(s));
        rv = rv != 0 ? rv : check_same_name(&in->payload, store, e);
    }
    return rv;
}

/* All of it is stored, or the client is told why not. */
static int finish(struct writer *w, struct sink *sink, struct hedge_error *e)
{
    struct manifest counted, kept;
    int status = writer_finish(w, &counted);

    return sos_sink_close(sink, status == 0 ? &counted : NULL, &kept, e);
}

static int write_part(struct rpc_stream *s, struct sos_store *store,
                      struct received *in, struct hedge_error *e)
{
    struct hedge_error why = {0};
    struct writer w;
    struct sink *sink;
    int rv = open_sink(s, store, &sink, e), end;

    if (rv != 0) {
        return rv;
    }
    writer_init(&w, sink);
    rv = take_records(s, &w, store, in, e);
    if (rv != HEDGE_EEND && rv != HEDGE_EFULL) {
        writer_drop(&w);
        sos_sink_abort(sink);
        return rv;
    }
    end = finish(&w, sink, &why);
    if (end != 0) {
        *e = why;
    }
    return rv == HEDGE_EFULL ? rv : end;
}

int serve_hp_write(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    struct sos_store *store = NULL;
    struct received *in = mem_calloc(1, sizeof *in);
    int rv;

    if (in == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a message");
    }
    received_init(in, n);
    rv = serve_enter(s, &n->hp_streams, SERVE_HP_MAX, "streams of parts", e);
    if (rv == 0) {
        rv = receive(s, OPEN_MS, in, e);
        rv = rv != 0 ? rv : open_part(n, &in->payload, &store, e);
        rv = rv != 0 ? rv : write_part(s, store, in, e);
        atomic_fetch_sub(&n->hp_streams, 1);
    }
    if (store != NULL) {
        sos_store_unref(store);
    }
    received_release(in);
    mem_free(in);
    return rv;
}

/* --- SoSRead --- */

/* A record that comes in pieces is put together. */
static int gather(struct msg_buf *record, const struct piece *p,
                  struct hedge_error *e)
{
    int rv;

    if (p->first) {
        msg_buf_clear(record);
    }
    if (p->len > RPC_MESSAGE_MAX - record->len) {
        return error_set(e, HEDGE_ETOOBIG, "a record is over %zu bytes",
                         RPC_MESSAGE_MAX);
    }
    rv = msg_buf_reserve(record, record->len + p->len, ROOM_MS, e);
    return rv != 0 ? rv : msg_buf_append(record, p->data, p->len);
}

static int send_piece(struct rpc_stream *s, struct hedge_node *n,
                      struct msg_buf *record, const struct piece *p,
                      struct hedge_error *e)
{
    struct hedge_message m = {.data = p->data, .len = p->len};
    int rv = 0;

    if (!p->first || !p->last) {
        rv = gather(record, p, e);
        m.data = record->data;
        m.len = record->len;
    }
    if (rv == 0 && p->last) {
        rv = send_payload(s, n, &m, SEND_MS);
        msg_buf_clear(record);
    }
    /* What comes behind a record that was not taken would hide that. */
    return rv == HEDGE_ETIMEDOUT
               ? error_set(e, rv, "the client has not read for %d s",
                           SEND_MS / 1000)
               : rv;
}

static int open_source(struct rpc_stream *s, struct sos_store *store,
                       struct source **out, struct hedge_error *e)
{
    /* Whoever reads while another still writes waits for all of it. */
    static const struct sos_read_options o = {.follow = true};
    uint64_t until = clock_mono_ms() + SERVE_BUSY_MS;
    int rv = sos_source_open(store, &o, out, e);

    while (rv == HEDGE_EBUSY && clock_mono_ms() < until &&
           !rpc_stream_is_cancelled(s)) {
        clock_sleep_ms(SERVE_RETRY_MS);
        rv = sos_source_open(store, &o, out, e);
    }
    return rv;
}

/* The next piece, as long as somebody waits for it. */
static int await_piece(struct rpc_stream *s, struct reader *r, struct piece *p,
                       struct hedge_error *e)
{
    int rv;

    do {
        rv = reader_next(r, STEP_MS, p);
    } while (rv == HEDGE_ETIMEDOUT && !rpc_stream_is_cancelled(s));
    if (rv == HEDGE_ETIMEDOUT) {
        return HEDGE_ECANCELED;
    }
    if (rv != 0 && rv != HEDGE_EEND) {
        *e = r->error;
    }
    return rv;
}

static int read_part(struct rpc_stream *s, struct hedge_node *n,
                     struct sos_store *store, struct hedge_error *e)
{
    struct msg_buf record;
    struct source *source;
    struct reader r;
    int rv = open_source(s, store, &source, e);

    rv = rv != 0 ? rv : reader_init(&r, source);
    if (rv != 0) {
        return rv;
    }
    msg_buf_init(&record, n->messages);
    while (rv == 0) {
        struct piece p;

        rv = await_piece(s, &r, &p, e);
        rv = rv != 0 ? rv : send_piece(s, n, &record, &p, e);
    }
    reader_release(&r);
    msg_buf_release(&record);
    return rv == HEDGE_EEND ? 0 : rv;
}

static int read_named(struct rpc_stream *s, struct hedge_node *n,
                      const struct payload *p, struct hedge_error *e)
{
    struct sos_store *store;
    const char *name;
    int rv = get_name(p, &name, e);

    rv = rv != 0 ? rv : sos_find_local(n->sos, name, &store, e);
    if (rv == 0) {
        rv = read_part(s, n, store, e);
        sos_store_unref(store);
    }
    return rv;
}

int serve_hp_read(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    struct received *in = mem_calloc(1, sizeof *in);
    int rv;

    if (in == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a message");
    }
    received_init(in, n);
    rv = serve_enter(s, &n->hp_streams, SERVE_HP_MAX, "streams of parts", e);
    if (rv == 0) {
        rv = receive(s, OPEN_MS, in, e);
        rv = rv != 0 ? rv : read_named(s, n, &in->payload, e);
        atomic_fetch_sub(&n->hp_streams, 1);
    }
    received_release(in);
    mem_free(in);
    return rv;
}

/* --- SoSClose --- */

static int end_part(struct hedge_node *n, const struct payload *p,
                    struct hedge_error *e)
{
    struct sos_store *store;
    uint64_t expire_s;
    const char *name;
    int rv = get_name(p, &name, e);

    rv = rv != 0 ? rv : get_number(p, "expire", EXPIRE_S_MAX, &expire_s, e);
    rv = rv != 0 ? rv : sos_find_local(n->sos, name, &store, e);
    if (rv == 0) {
        sos_store_end(store, expire_s * 1000);
        sos_store_unref(store);
    }
    return rv;
}

void serve_hp_close(struct rpc_call *call, void *ctx, const void *req,
                    size_t len)
{
    struct payload *p = mem_alloc(sizeof *p);
    struct hedge_error e = {0};
    int rv = p != NULL ? payload_error(payload_parse(req, len, p), &e)
                       : error_set(&e, HEDGE_ENOMEM, "no memory for a message");

    rv = rv != 0 ? rv : end_part(ctx, p, &e);
    if (rv == 0) {
        rpc_reply(call, "", 0);
    } else {
        rpc_fail(call, rv, e.text);
    }
    mem_free(p);
}
