/* serve_store.c - service hedge.v1.Store: writing, reading, looking at and
 * removing stores, for clients and for other nodes. */
#include "cluster/node_internal.h"
#include "cluster/rpc/wire.h"
#include "cluster/store_link.h"

#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/base/mem.h"
#include "store/writer.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define SEND_MS 60000 /* A client that takes nothing for so long is gone. */
#define STEP_MS 200
#define CALL_MS 10000
#define CREDIT_BATCH 4

/* --- Write --- */

struct writing {
    struct hedge_node *node;
    struct rpc_stream *stream;
    struct sink *sink;
    struct sos_store *store;
    struct writer records; /* For clients that leave the framing to us. */
    bool framing;          /* Such a client. */
    bool told_full;
    unsigned credits; /* Owed to the client. */
};

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

static int send_redirect(struct rpc_stream *s, struct store_place *p)
{
    Hedge__V1__WriteReply m = HEDGE__V1__WRITE_REPLY__INIT;
    Hedge__V1__Redirect r = HEDGE__V1__REDIRECT__INIT;

    r.id = p->owner;
    r.grpc_address = p->grpc_address;
    m.redirect = &r;
    return pb_send(s, &m.base, SEND_MS);
}

static int send_opened(struct writing *w)
{
    Hedge__V1__WriteReply m = HEDGE__V1__WRITE_REPLY__INIT;
    Hedge__V1__WriteOpened o = HEDGE__V1__WRITE_OPENED__INIT;
    struct sos_info info;

    if (sos_store_info(w->store, &info) != 0) {
        return HEDGE_ENOMEM;
    }
    mem_free(info.uses);
    o.generation = w->sink->generation;
    o.writer = w->sink->writer;
    o.block_size = (uint32_t)w->sink->block_size;
    o.owner = w->node->id;
    o.ttl_ms = info.options.ttl_ms;
    m.opened = &o;
    m.credits = STORE_LINK_WINDOW;
    return pb_send(w->stream, &m.base, SEND_MS);
}

/* Credits go back in batches; that there is no room goes at once. */
static int send_progress(struct writing *w)
{
    Hedge__V1__WriteReply m = HEDGE__V1__WRITE_REPLY__INIT;
    struct hedge_error why = {0};
    bool full = !w->told_full && atomic_load(&w->sink->failed) != 0;
    int rv;

    if (!full && w->credits < CREDIT_BATCH) {
        return 0;
    }
    if (full) {
        sos_sink_error(w->sink, &why);
        if (why.code != HEDGE_EFULL) {
            return 0; /* The stream ends with it. */
        }
        m.full = why.text;
        w->told_full = true;
    }
    m.credits = w->credits;
    rv = pb_send(w->stream, &m.base, SEND_MS);
    w->credits = 0;
    return rv;
}

/* The block, copied once into its place and hashed on the way. */
static int receive_block(struct writing *w, struct rpc_msg *msg, size_t len,
                         void **out, struct block_header *h,
                         struct hedge_error *e)
{
    unsigned char *p;
    struct hash sum;
    size_t at = BLOCK_HEADER_SIZE;
    int rv;

    *out = NULL;
    if (len < BLOCK_HEADER_SIZE || len > w->sink->block_size) {
        return error_set(e, HEDGE_EPROTO,
                         "a block of %zu bytes; they have %d to %zu", len,
                         BLOCK_HEADER_SIZE, w->sink->block_size);
    }
    rv = w->sink->ops->block(w->sink, out, e);
    if (rv != 0) {
        return rv;
    }
    p = *out;
    rpc_msg_read(msg, p, BLOCK_HEADER_SIZE);
    rv = block_header_decode(p, len, w->sink->block_size, h, e);
    if (rv == 0 && (h->id.generation != w->sink->generation ||
                    h->id.writer != w->sink->writer ||
                    BLOCK_HEADER_SIZE + (size_t)h->stored_len != len ||
                    h->codec != BLOCK_RAW)) {
        rv = error_set(e, HEDGE_EPROTO,
                       "a block of another writer, cut, or "
                       "compressed by the client");
    }
    if (rv != 0) {
        return rv;
    }
    hash_init(&sum);
    while (at < len) {
        size_t n = len - at < HASH_STEP ? len - at : HASH_STEP;

        rpc_msg_read(msg, p + at, n);
        hash_update(&sum, p + at, n);
        at += n;
    }
    if (hash_final(&sum) != h->stored_sum) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block %llu changed on its way to %s",
                         (unsigned long long)h->id.sequence, w->node->id);
    }
    return block_check_frames(h, block_payload(p), e);
}

static int take_block(struct writing *w, struct rpc_msg *msg, size_t len,
                      struct hedge_error *e)
{
    struct block_header h;
    void *block;
    int rv;

    w->credits++;
    if (atomic_load(&w->sink->failed) == HEDGE_EFULL) {
        return 0; /* The client will hear of it; its commit is awaited. */
    }
    rv = receive_block(w, msg, len, &block, &h, e);
    if (rv == 0) {
        rv = w->sink->ops->put(w->sink, block, &h, e);
    } else if (block != NULL) {
        w->sink->ops->back(w->sink, block);
    }
    return rv == HEDGE_EFULL ? 0 : rv;
}

static int take_records(struct writing *w, Hedge__V1__Records *r,
                        struct hedge_error *e)
{
    int rv = 0;

    if (!w->framing) {
        writer_init(&w->records, w->sink);
        w->framing = true;
    }
    w->credits++;
    for (size_t i = 0; i < r->n_record && rv == 0; i++) {
        rv = writer_write(&w->records, r->record[i].data, r->record[i].len);
    }
    if (rv != 0 && rv != HEDGE_EFULL) {
        *e = w->records.error;
    }
    return rv == HEDGE_EFULL ? 0 : rv;
}

/* End the writer and answer with its part. Ends the sink. */
static int commit(struct writing *w, Hedge__V1__WriteCommit *c,
                  struct hedge_error *e)
{
    Hedge__V1__WriteReply m = HEDGE__V1__WRITE_REPLY__INIT;
    struct manifest claimed = {.records = c->records, .bytes = c->bytes};
    struct manifest counted, *claim = NULL;
    struct sos_info info;
    int rv;

    if (w->framing) {
        (void)writer_finish(&w->records, &counted);
    } else if (pb_to_digest(&c->digest, &claimed.digest) &&
               atomic_load(&w->sink->failed) != HEDGE_EFULL) {
        claim = &claimed;
    }
    rv = sos_sink_close(w->sink, claim, &counted, e);
    w->sink = NULL;
    if (rv != 0 && rv != HEDGE_EFULL) {
        return rv;
    }
    if (sos_store_info(w->store, &info) != 0) {
        return HEDGE_ENOMEM;
    }
    info.manifest = counted;
    if (rv == HEDGE_EFULL && !w->told_full) {
        m.full = e->text;
    }
    rv = pb_store_info(&info, w->node->id, &m.committed);
    if (rv == 0) {
        rv = pb_send(w->stream, &m.base, SEND_MS);
    }
    pb_store_info_release(m.committed);
    mem_free(info.uses);
    return rv;
}

/* One message; HEDGE_EEND when the writer has committed. */
static int take_message(struct writing *w, struct rpc_msg *msg,
                        struct hedge_error *e)
{
    Hedge__V1__WriteRequest *m;
    unsigned char *head;
    size_t head_len, body_len;
    bool has_body;
    int rv = wire_split(msg, &head, &head_len, &has_body, &body_len, e);

    if (rv != 0) {
        return rv;
    }
    m = pb_unpack(&hedge__v1__write_request__descriptor, head, head_len);
    mem_free(head);
    if (m == NULL) {
        return error_set(e, HEDGE_EPROTO, "not a WriteRequest");
    }
    if (m->open != NULL || (has_body && w->framing) ||
        (has_body && m->records != NULL)) {
        rv = error_set(e, HEDGE_EPROTO,
                       "after `open` come blocks, or records, and a commit");
    } else if (has_body) {
        rv = take_block(w, msg, body_len, e);
    } else if (m->records != NULL) {
        rv = take_records(w, m->records, e);
    } else if (m->commit != NULL) {
        rv = commit(w, m->commit, e);
        rv = rv == 0 ? HEDGE_EEND : rv;
    }
    pb_free(m);
    return rv;
}

static int serve_writing(struct writing *w, struct hedge_error *e)
{
    int rv = 0;

    while (rv == 0) {
        struct rpc_msg msg;

        rv = rpc_stream_recv(w->stream, STEP_MS, &msg, e);
        if (rv == 0) {
            rv = take_message(w, &msg, e);
            rpc_msg_release(&msg);
            if (rv == HEDGE_EEND) {
                return 0;
            }
        } else if (rv == HEDGE_ETIMEDOUT) {
            rv = 0;
        } else if (rv == HEDGE_EEND) {
            return error_set(e, HEDGE_EABORTED,
                             "the stream ended without a commit");
        }
        if (rv == 0) {
            rv = atomic_load(&w->sink->failed);
            if (rv == HEDGE_EFULL) {
                rv = 0;
            } else if (rv != 0) {
                sos_sink_error(w->sink, e);
            }
        }
        if (rv == 0) {
            rv = send_progress(w);
        }
    }
    return rv;
}

static int receive_open(struct rpc_stream *s, Hedge__V1__WriteRequest **out,
                        struct hedge_error *e)
{
    struct rpc_msg msg;
    int rv = rpc_stream_recv(s, CALL_MS, &msg, e);

    *out = NULL;
    if (rv != 0) {
        return rv;
    }
    *out = pb_from_msg(&hedge__v1__write_request__descriptor, &msg, e);
    if (*out == NULL) {
        return HEDGE_EPROTO;
    }
    if ((*out)->open == NULL) {
        pb_free(*out);
        *out = NULL;
        return error_set(e, HEDGE_EPROTO, "the first message must be `open`");
    }
    return 0;
}

static int open_store(struct hedge_node *n, const Hedge__V1__WriteOpen *open,
                      struct store_place *p, struct hedge_error *e)
{
    struct sos_store_options options;

    pb_to_store_options(open->options, &options);
    return stores_open(n, open->name, open->options != NULL ? &options : NULL,
                       !open->append, CALL_MS, p, e);
}

int serve_write(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct writing w = {.node = ctx, .stream = s};
    Hedge__V1__WriteRequest *m;
    struct store_place p;
    int rv = receive_open(s, &m, e);

    if (rv != 0) {
        return rv;
    }
    rv = open_store(w.node, m->open, &p, e);
    pb_free(m);
    if (rv != 0) {
        return rv;
    }
    if (p.local == NULL) {
        return send_redirect(s, &p);
    }
    w.store = p.local;
    rv = sos_sink_open(w.store, &w.sink, e);
    if (rv == 0) {
        rv = send_opened(&w);
    }
    if (rv == 0) {
        rv = serve_writing(&w, e);
    }
    if (w.sink != NULL) {
        if (w.framing) {
            writer_drop(&w.records);
        }
        sos_sink_abort(w.sink);
    }
    sos_store_unref(w.store);
    return rv;
}

/* --- Read --- */

struct reading {
    struct hedge_node *node;
    struct rpc_stream *stream;
    struct source *source;
    struct store_place place;
    struct kept_channel *channel; /* When the owner is elsewhere. */
    unsigned credits;
    bool discard;
    struct sends *sends;
};

/* Counts the blocks that the transport still holds. It may outlive the
 * handler: a transport lets go of a block when its connection has ended. */
struct sends {
    pthread_mutex_t lock;
    pthread_cond_t less;
    unsigned n;
    bool orphan;
};

struct sent_block {
    struct arena *arena;
    void *block;
    struct sends *sends;
};

static struct sends *sends_new(void)
{
    struct sends *s = mem_calloc(1, sizeof *s);
    pthread_condattr_t attr;

    if (s != NULL) {
        pthread_mutex_init(&s->lock, NULL);
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&s->less, &attr);
        pthread_condattr_destroy(&attr);
    }
    return s;
}

/* Unlocks; frees when nobody is left. */
static void sends_leave(struct sends *s)
{
    bool last = s->orphan && s->n == 0;

    pthread_cond_signal(&s->less);
    pthread_mutex_unlock(&s->lock);
    if (last) {
        pthread_cond_destroy(&s->less);
        pthread_mutex_destroy(&s->lock);
        mem_free(s);
    }
}

/* Wait until at most `max` are held; false when the client has gone. */
static bool sends_await(struct sends *s, unsigned max,
                        struct rpc_stream *stream)
{
    bool gone = false;

    pthread_mutex_lock(&s->lock);
    while (s->n > max && !gone) {
        uint64_t until = clock_mono_ns() + (uint64_t)STEP_MS * 1000000u;
        struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                              .tv_nsec = (long)(until % 1000000000u)};

        (void)pthread_cond_timedwait(&s->less, &s->lock, &ts);
        gone = rpc_stream_is_cancelled(stream);
    }
    pthread_mutex_unlock(&s->lock);
    return !gone;
}

static void block_sent(void *arg)
{
    struct sent_block *b = arg;
    struct sends *s = b->sends;

    if (b->arena != NULL) {
        arena_unref(b->arena, b->block);
    } else {
        mem_free(b->block);
    }
    mem_free(b);
    pthread_mutex_lock(&s->lock);
    s->n--;
    sends_leave(s);
}

/* Hold the segment's block for as long as the transport needs it. */
static struct sent_block *hold_block(struct reading *r,
                                     const struct segment *seg)
{
    size_t len = BLOCK_HEADER_SIZE + (size_t)seg->header.stored_len;
    struct sent_block *b = mem_calloc(1, sizeof *b);

    if (b == NULL) {
        return NULL;
    }
    b->sends = r->sends;
    if (seg->arena != NULL) {
        b->arena = seg->arena;
        b->block = seg->block;
        arena_ref(b->arena, b->block);
    } else {
        b->block = mem_alloc(len);
        if (b->block == NULL) {
            mem_free(b);
            return NULL;
        }
        block_header_encode(&seg->header, b->block);
        memcpy(block_payload(b->block), seg->payload, seg->header.stored_len);
    }
    pthread_mutex_lock(&r->sends->lock);
    r->sends->n++;
    pthread_mutex_unlock(&r->sends->lock);
    return b;
}

static int send_segment(struct reading *r, const struct segment *seg)
{
    Hedge__V1__ReadReply m = HEDGE__V1__READ_REPLY__INIT;
    unsigned char head[64 + WIRE_TAG_MAX];
    struct sent_block *b = hold_block(r, seg);
    struct rpc_out out = {.head = head, .release = block_sent};
    size_t len;

    if (b == NULL) {
        return HEDGE_ENOMEM;
    }
    m.start = seg->start;
    m.stop = seg->stop;
    m.continues = seg->continues;
    m.last_incomplete = seg->last_incomplete;
    len = hedge__v1__read_reply__pack(&m, head);
    assert(len <= 64);
    out.body = b->block;
    out.body_len = BLOCK_HEADER_SIZE + (size_t)seg->header.stored_len;
    out.head_len = len + wire_body_tag(out.body_len, head + len);
    out.release_arg = b;
    r->credits--;
    return rpc_stream_send(r->stream, &out, SEND_MS);
}

static int send_end(struct reading *r, const struct segment *seg)
{
    Hedge__V1__ReadReply m = HEDGE__V1__READ_REPLY__INIT;
    Hedge__V1__ReadEnd end = HEDGE__V1__READ_END__INIT;
    Hedge__V1__StoreInfo info = HEDGE__V1__STORE_INFO__INIT;
    unsigned char digest[PB_DIGEST_SIZE];

    pb_digest(&seg->manifest.digest, digest);
    info.records = seg->manifest.records;
    info.bytes = seg->manifest.bytes;
    info.digest.data = digest;
    info.digest.len = sizeof digest;
    info.state = unconst(pb_state_name(seg->state));
    end.info = &info;
    end.complete = seg->complete;
    m.end = &end;
    return pb_send(r->stream, &m.base, SEND_MS);
}

/* Take credits that have come in; wait for one while there is none. Each says
 * that a segment has been delivered. */
static int take_credits(struct reading *r, uint64_t timeout_ms,
                        struct hedge_error *e)
{
    Hedge__V1__ReadRequest *m;
    struct rpc_msg msg;
    int rv = rpc_stream_recv(r->stream, timeout_ms, &msg, e);

    if (rv != 0) {
        return rv;
    }
    m = pb_from_msg(&hedge__v1__read_request__descriptor, &msg, e);
    if (m == NULL) {
        return HEDGE_EPROTO;
    }
    if (m->credits > STORE_LINK_WINDOW ||
        r->credits + m->credits > STORE_LINK_WINDOW) {
        rv = error_set(e, HEDGE_EPROTO, "more than %d credits",
                       STORE_LINK_WINDOW);
    } else {
        r->credits += m->credits;
        if (r->discard && r->place.local != NULL) {
            sos_source_done(r->source, m->credits);
        }
    }
    pb_free(m);
    return rv;
}

static int serve_segments(struct reading *r, struct hedge_error *e)
{
    struct segment seg;
    int rv;

    for (;;) {
        rv = take_credits(r, r->credits > 0 ? 0 : STEP_MS, e);
        if (rv != 0 && rv != HEDGE_ETIMEDOUT) {
            return rv == HEDGE_EEND ? 0 : rv; /* It wants no more. */
        }
        if (r->credits == 0) {
            continue;
        }
        /* A reader owns two blocks: while the transport holds one, the next may
         * be fetched, but no more. */
        if (!sends_await(r->sends, 1, r->stream)) {
            return HEDGE_ECANCELED;
        }
        rv = r->source->ops->next(r->source, STEP_MS, &seg, e);
        if (rv == 0) {
            rv = send_segment(r, &seg);
        } else if (rv == HEDGE_EEND) {
            return send_end(r, &seg);
        } else if (rv == HEDGE_ETIMEDOUT) {
            rv = rpc_stream_is_cancelled(r->stream) ? HEDGE_ECANCELED : 0;
        }
        if (rv != 0) {
            return rv;
        }
    }
}

/* The client's last credits say that it has delivered the last blocks. */
static void await_last_credits(struct reading *r)
{
    struct hedge_error e;
    uint64_t until = clock_mono_ms() + CALL_MS;

    while (r->discard && clock_mono_ms() < until) {
        int rv = take_credits(r, STEP_MS, &e);

        if (rv != 0 && rv != HEDGE_ETIMEDOUT) {
            break;
        }
    }
}

static int open_source(struct reading *r, const Hedge__V1__ReadOpen *open,
                       struct hedge_error *e)
{
    struct sos_read_options o = {.follow = open->follow,
                                 .discard = open->discard};
    int rv = stores_find(r->node, open->name, CALL_MS, &r->place, e);

    if (rv != 0) {
        return rv;
    }
    r->discard = open->discard;
    if (r->place.local != NULL) {
        rv = sos_source_open(r->place.local, &o, &r->source, e);
        if (rv == 0) {
            sos_source_manual_discard(r->source);
        }
        return rv;
    }
    r->channel = node_channel(r->node, r->place.target);
    if (r->channel == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a channel");
    }
    rv = remote_source_open(kept_channel_rpc(r->channel), open->name, o.follow,
                            o.discard, NULL, CALL_MS, &r->source, e);
    if (rv != 0) {
        (void)error_prefix(e, "store \"%s\" on %s", open->name, r->place.owner);
    }
    return rv;
}

static int receive_read_open(struct reading *r, struct hedge_error *e)
{
    Hedge__V1__ReadReply opened = HEDGE__V1__READ_REPLY__INIT;
    Hedge__V1__ReadRequest *m;
    struct rpc_msg msg;
    int rv = rpc_stream_recv(r->stream, CALL_MS, &msg, e);

    if (rv != 0) {
        return rv;
    }
    m = pb_from_msg(&hedge__v1__read_request__descriptor, &msg, e);
    if (m == NULL) {
        return HEDGE_EPROTO;
    }
    if (m->open == NULL || m->open->records || m->credits > STORE_LINK_WINDOW) {
        rv = error_set(e, HEDGE_EPROTO,
                       "the first message must be `open`, for blocks, with at "
                       "most %d credits",
                       STORE_LINK_WINDOW);
    } else {
        r->credits = m->credits;
        rv = open_source(r, m->open, e);
    }
    pb_free(m);
    if (rv == 0) {
        opened.opened = true;
        opened.block_size = (uint32_t)sos_block_size(r->node->sos);
        rv = pb_send(r->stream, &opened.base, SEND_MS);
    }
    return rv;
}

int serve_read(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct reading r = {.node = ctx, .stream = s, .sends = sends_new()};
    int rv;

    if (r.sends == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a reader");
    }
    rv = receive_read_open(&r, e);
    if (rv == 0) {
        rv = serve_segments(&r, e);
    }
    if (rv == 0) {
        await_last_credits(&r);
    }
    pthread_mutex_lock(&r.sends->lock);
    r.sends->orphan = true;
    sends_leave(r.sends);
    if (r.source != NULL) {
        r.source->ops->free(r.source);
    }
    if (r.channel != NULL) {
        node_channel_put(r.node, r.channel);
    }
    if (r.place.local != NULL) {
        sos_store_unref(r.place.local);
    }
    return rv;
}

/* --- Stat, List, Remove --- */

static int reply_info(struct hedge_node *n, struct rpc_call *call,
                      struct sos_store *store)
{
    Hedge__V1__StoreInfo *m = NULL;
    struct sos_info info;
    int rv = sos_store_info(store, &info);

    if (rv == 0) {
        rv = pb_store_info(&info, n->id, &m);
        mem_free(info.uses);
    }
    if (rv == 0) {
        pb_reply(call, &m->base);
    }
    pb_store_info_release(m);
    return rv;
}

static int forward_stat(struct hedge_node *n, struct rpc_call *call,
                        Hedge__V1__StoreRequest *m, const struct store_place *p,
                        struct hedge_error *e)
{
    struct kept_channel *c = node_channel(n, p->target);
    Hedge__V1__StoreInfo *info;
    void *reply;
    int rv;

    if (c == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a channel");
    }
    rv = pb_call(kept_channel_rpc(c), "/hedge.v1.Store/Stat", &m->base,
                 &hedge__v1__store_info__descriptor, CALL_MS, &reply, e);
    if (rv == 0) {
        info = reply;
        pb_reply(call, &info->base);
    }
    pb_free(reply);
    node_channel_put(n, c);
    return rv;
}

void serve_stat(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__StoreRequest *m =
        pb_unpack(&hedge__v1__store_request__descriptor, req, len);
    struct hedge_error e = {0};
    struct store_place p;
    int rv = m == NULL ? error_set(&e, HEDGE_EPROTO, "not a StoreRequest")
                       : stores_find(n, m->name, CALL_MS, &p, &e);

    if (rv == 0 && p.local != NULL) {
        rv = reply_info(n, call, p.local);
        sos_store_unref(p.local);
    } else if (rv == 0) {
        rv = forward_stat(n, call, m, &p, &e);
    }
    if (rv != 0) {
        rpc_fail(call, rv, e.text);
    }
    pb_free(m);
}

void serve_remove(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__StoreRequest *m =
        pb_unpack(&hedge__v1__store_request__descriptor, req, len);
    Hedge__V1__Empty reply = HEDGE__V1__EMPTY__INIT;
    struct hedge_error e = {0};
    int rv = m == NULL ? error_set(&e, HEDGE_EPROTO, "not a StoreRequest")
                       : stores_remove(n, m->name, CALL_MS, &e);

    if (rv == 0) {
        pb_reply(call, &reply.base);
    } else {
        rpc_fail(call, rv, e.text);
    }
    pb_free(m);
}

struct listing {
    struct hedge_node *n;
    Hedge__V1__ListReply reply;
    size_t cap, missing_cap;
    int status;
    Hedge__V1__ListReply **others; /* Their infos are in `reply`. */
    size_t n_others;
};

static void add_info(struct listing *l, Hedge__V1__StoreInfo *info)
{
    if (l->reply.n_stores == l->cap) {
        size_t cap = l->cap == 0 ? 16 : l->cap * 2;
        Hedge__V1__StoreInfo **more =
            mem_realloc(l->reply.stores, cap * sizeof(Hedge__V1__StoreInfo *));

        if (more == NULL) {
            l->status = HEDGE_ENOMEM;
            return;
        }
        l->reply.stores = more;
        l->cap = cap;
    }
    l->reply.stores[l->reply.n_stores++] = info;
}

static void list_one(void *ctx, struct sos_store *store)
{
    struct listing *l = ctx;
    Hedge__V1__StoreInfo *m;
    struct sos_info info;

    if (l->status == 0 && sos_store_info(store, &info) == 0) {
        l->status = pb_store_info(&info, l->n->id, &m);
        mem_free(info.uses);
        if (l->status == 0) {
            add_info(l, m);
        }
    }
}

static void list_of(struct listing *l, const struct member *m)
{
    Hedge__V1__Empty empty = HEDGE__V1__EMPTY__INIT;
    char target[TARGET_SIZE];
    struct kept_channel *c;
    struct hedge_error e;
    Hedge__V1__ListReply *r;
    void *reply = NULL;
    int rv = HEDGE_ENOMEM;

    node_target(l->n, m, target);
    c = node_channel(l->n, target);
    if (c != NULL) {
        rv = pb_call(kept_channel_rpc(c), "/hedge.v1.Peer/LocalStores",
                     &empty.base, &hedge__v1__list_reply__descriptor, 2000,
                     &reply, &e);
        node_channel_put(l->n, c);
    }
    if (rv != 0) {
        l->reply.missing[l->reply.n_missing++] = unconst(m->id);
        return;
    }
    r = reply;
    l->others[l->n_others++] = r;
    for (size_t i = 0; i < r->n_stores; i++) {
        add_info(l, r->stores[i]);
    }
}

static void listing_release(struct listing *l, size_t n_own)
{
    for (size_t i = 0; i < n_own; i++) {
        pb_store_info_release(l->reply.stores[i]);
    }
    mem_free(l->reply.stores);
    for (size_t i = 0; i < l->n_others; i++) {
        pb_free(l->others[i]);
    }
    mem_free(l->others);
    mem_free(l->reply.missing);
}

static void serve_stores(struct hedge_node *n, struct rpc_call *call,
                         struct view *v)
{
    struct listing l = {.n = n, .reply = HEDGE__V1__LIST_REPLY__INIT};
    size_t members = v != NULL ? v->n : 0, n_own;

    sos_each(n->sos, list_one, &l);
    n_own = l.reply.n_stores;
    l.others = mem_calloc(members, sizeof(Hedge__V1__ListReply *));
    l.reply.missing = mem_calloc(members, sizeof(char *));
    if (l.others == NULL || l.reply.missing == NULL) {
        l.status = HEDGE_ENOMEM;
    }
    for (size_t i = 0; i < members && l.status == 0; i++) {
        if (strcmp(v->members[i].id, n->id) != 0) {
            list_of(&l, &v->members[i]);
        }
    }
    if (l.status == 0) {
        pb_reply(call, &l.reply.base);
    } else {
        rpc_fail(call, l.status, "no memory for the list");
    }
    listing_release(&l, n_own);
}

void serve_list(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct view *v = node_view(ctx);

    (void)req;
    (void)len;
    serve_stores(ctx, call, v);
    view_unref(v);
}

void serve_local_stores(struct rpc_call *call, void *ctx, const void *req,
                        size_t len)
{
    (void)req;
    (void)len;
    serve_stores(ctx, call, NULL);
}
