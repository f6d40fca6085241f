/* serve_read.c - method hedge.v1.Store/Read: a store's blocks to a client,
 * those of another node's store by way of this one. */
#include "cluster/node_internal.h"
#include "cluster/rpc/wire.h"
#include "cluster/stores/store_link.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>
#include <string.h>

/* The client is there to take the first answer. How long it works on what it
 * has read is its own affair: gRPC's keepalive notices one that has gone. */
#define SEND_MS 60000
#define STEP_MS 200
#define CALL_MS 10000
#define PASSING_WINDOW 2

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

struct reading {
    struct hedge_node *node;
    struct rpc_stream *stream;
    struct source *source;
    struct store_place place;
    struct kept_channel *channel; /* When the owner is elsewhere. */
    bool entered;                 /* Then: counted in node.passing. */
    unsigned credits;
    bool closed; /* The client gives no more of them. */
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
    return rpc_stream_post(r->stream, &out, RPC_NO_TIMEOUT);
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
    return pb_send(r->stream, &m.base, RPC_NO_TIMEOUT);
}

/* Take credits that have come in; wait for one while there is none. Each says
 * that a segment has been delivered. */
static int take_credits(struct reading *r, uint64_t timeout_ms,
                        struct hedge_error *e)
{
    Hedge__V1__ReadRequest *m;
    struct rpc_msg msg;
    int rv = rpc_stream_recv(r->stream, timeout_ms, &msg, e);

    if (rv == HEDGE_ETIMEDOUT && rpc_stream_is_cancelled(r->stream)) {
        return HEDGE_ECANCELED; /* Perhaps the client's deadline. */
    }
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
        if (r->discard && m->credits > 0) {
            r->place.local != NULL ? sos_source_done(r->source, m->credits)
                                   : remote_source_done(r->source, m->credits);
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
        rv = r->closed ? 0 : take_credits(r, r->credits > 0 ? 0 : STEP_MS, e);
        r->closed = r->closed || rv == HEDGE_EEND;
        if (rv != 0 && rv != HEDGE_ETIMEDOUT && rv != HEDGE_EEND) {
            return rv;
        }
        if (r->credits == 0 && r->closed) {
            /* Ending in good order would look like the end of the data. */
            return error_set(e, HEDGE_ECANCELED,
                             "the client gave no more credits before the end "
                             "of the data");
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

/* On a node whose memory is full there are blocks for a few readers at a time;
 * the next one waits a little for one of them to end. */
static int open_local(struct reading *r, const struct sos_read_options *o,
                      struct hedge_error *e)
{
    uint64_t until = clock_mono_ms() + SERVE_BUSY_MS;
    int rv = sos_source_open(r->place.local, o, &r->source, e);

    while (rv == HEDGE_EBUSY && clock_mono_ms() < until &&
           !rpc_stream_is_cancelled(r->stream)) {
        clock_sleep_ms(SERVE_RETRY_MS);
        rv = sos_source_open(r->place.local, o, &r->source, e);
    }
    return rv;
}

/* A reader of what is on another node costs memory beside the arena: what is
 * under way to here, the block at hand, and two that go on. (Were it to hold
 * blocks of the arena while it waits for those of the other node, two nodes
 * could wait for each other.) */
unsigned serve_passing_max(const struct hedge_node *n)
{
    return serve_streams_max(n, 3, PASSING_WINDOW + 3);
}

static int open_passing(struct reading *r, const Hedge__V1__ReadOpen *open,
                        struct hedge_error *e)
{
    struct remote_read o = {.name = open->name,
                            .follow = open->follow,
                            .discard = open->discard,
                            .window = PASSING_WINDOW};
    int rv =
        serve_enter(r->stream, &r->node->passing, serve_passing_max(r->node),
                    "readers of what is on other nodes", e);

    if (rv != 0) {
        return rv;
    }
    r->entered = true;
    r->channel = node_channel(r->node, r->place.target);
    if (r->channel == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a channel");
    }
    rv = remote_source_open(kept_channel_rpc(r->channel), &o, CALL_MS,
                            &r->source, NULL, e);
    if (rv == 0 && o.discard) {
        remote_source_relay(r->source);
    }
    if (rv != 0) {
        (void)error_prefix(e, "store \"%s\" on %s", open->name, r->place.owner);
    }
    return rv;
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
        rv = open_local(r, &o, e);
        if (rv == 0) {
            sos_source_manual_discard(r->source);
        }
        return rv;
    }
    if (open->redirect) {
        return 0; /* It asks there itself. */
    }
    return open_passing(r, open, e);
}

/* HEDGE_EEND: the client has been sent on. */
static int receive_read_open(struct reading *r, struct hedge_error *e)
{
    Hedge__V1__ReadReply opened = HEDGE__V1__READ_REPLY__INIT;
    Hedge__V1__Redirect redirect = HEDGE__V1__REDIRECT__INIT;
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
    if (rv == 0 && r->source == NULL) {
        redirect.id = r->place.owner;
        redirect.grpc_address = r->place.grpc_address;
        opened.redirect = &redirect;
        rv = pb_send(r->stream, &opened.base, SEND_MS);
        return rv == 0 ? HEDGE_EEND : rv;
    }
    if (rv == 0) {
        opened.opened = true;
        opened.block_size = (uint32_t)sos_block_size(r->node->sos);
        opened.owner = r->place.owner;
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
    } else {
        /* What comes before the error reaches the client. */
        (void)rpc_stream_settle(s, SEND_MS);
    }
    pthread_mutex_lock(&r.sends->lock);
    r.sends->orphan = true;
    sends_leave(r.sends);
    if (r.source != NULL) {
        r.source->ops->free(r.source);
    }
    if (r.entered) {
        atomic_fetch_sub(&r.node->passing, 1);
    }
    if (r.channel != NULL) {
        node_channel_put(r.node, r.channel);
    }
    if (r.place.local != NULL) {
        sos_store_unref(r.place.local);
    }
    return rv;
}
