/* serve_write.c - method hedge.v1.Store/Write: a client's blocks or records
 * into a store of this node. */
#include "cluster/fields.h"
#include "cluster/node_internal.h"
#include "cluster/rpc/wire.h"
#include "cluster/stores/store_link.h"

#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/base/mem.h"
#include "store/writer.h"

#define SEND_MS 60000 /* A client that takes nothing for so long is gone. */
#define STEP_MS 200
#define CALL_MS 10000
#define NOTHING (const unsigned char *)"" /* memcpy() takes no NULL. */

/* Numbers of fields in proto/hedge.proto. */
#define WRITE_OPEN 1
#define WRITE_RECORDS 2
#define WRITE_COMMIT 3
#define WRITE_FIELDS                                               \
    (1U << WRITE_OPEN | 1U << WRITE_RECORDS | 1U << WRITE_COMMIT | \
     1U << WIRE_BODY_FIELD)
#define RECORDS_TAG (WRITE_RECORDS << 3 | FIELD_BYTES)
#define RECORDS_RECORD 1

struct writing {
    struct hedge_node *node;
    struct rpc_stream *stream;
    struct sink *sink;
    struct sos_store *store;
    struct writer records; /* For clients that leave the framing to us. */
    bool framing;          /* Such a client. */
    bool told_full;
    bool entered;
    unsigned credits;  /* The client still has them. */
    uint64_t n_blocks; /* Received of a client that seals them. */
};

static int send_redirect(struct rpc_stream *s, struct store_place *p)
{
    Hedge__V1__WriteReply m = HEDGE__V1__WRITE_REPLY__INIT;
    Hedge__V1__Redirect r = HEDGE__V1__REDIRECT__INIT;

    r.id = p->owner;
    r.grpc_address = p->grpc_address;
    m.redirect = &r;
    return pb_send(s, &m.base, SEND_MS);
}

/* How many messages one writer may have under way: all of them share half of
 * the message limit. Of each the transport holds three at most. */
static unsigned window(const struct hedge_node *n)
{
    unsigned all = serve_streams_max(n, 2, 1), writers = n->writing;

    if (writers <= all / 3) {
        return STORE_LINK_WINDOW;
    }
    all /= writers;
    return all < 1 ? 1 : all < STORE_LINK_WINDOW ? all : STORE_LINK_WINDOW;
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
    m.credits = w->credits = window(w->node);
    return pb_send(w->stream, &m.base, SEND_MS);
}

/* Credits go back in batches; that there is no room goes at once. */
static int send_progress(struct writing *w)
{
    Hedge__V1__WriteReply m = HEDGE__V1__WRITE_REPLY__INIT;
    struct hedge_error why = {0};
    bool full = !w->told_full && atomic_load(&w->sink->failed) != 0;
    unsigned most = window(w->node);
    int rv;

    if (!full && w->credits > most / 2) {
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
    if (w->credits < most) {
        m.credits = most - w->credits;
        w->credits = most;
    }
    rv = pb_send(w->stream, &m.base, SEND_MS);
    return rv;
}

/* The payload, copied once into its place, hashed and looked through on the
 * way, while it is in the cache. */
static int receive_payload(struct rpc_msg *msg, const struct block_header *h,
                           unsigned char *p, struct hedge_error *e)
{
    struct block_frames frames;
    struct hash sum;
    size_t at = 0;

    hash_init(&sum);
    block_frames_start(&frames, h);
    while (at < h->stored_len) {
        size_t n = h->stored_len - at;

        n = n < HASH_STEP ? n : HASH_STEP;
        rpc_msg_read(msg, p + at, n);
        hash_update(&sum, p + at, n);
        at += n;
        block_frames_walk(&frames, p, at);
    }
    if (hash_final(&sum) != h->stored_sum) {
        return error_set(e, HEDGE_ECORRUPT, "it changed on its way here");
    }
    return block_frames_end(&frames, h, e);
}

static int receive_block(struct writing *w, struct rpc_msg *msg, size_t len,
                         void **out, struct block_header *h,
                         struct hedge_error *e)
{
    unsigned char *p;
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
    return rv != 0 ? rv : receive_payload(msg, h, block_payload(p), e);
}

static int take_block(struct writing *w, struct rpc_msg *msg, size_t len,
                      struct hedge_error *e)
{
    struct block_header h;
    void *block;
    int rv;

    if (atomic_load(&w->sink->failed) == HEDGE_EFULL) {
        return 0; /* The client will hear of it; its commit is awaited. */
    }
    rv = receive_block(w, msg, len, &block, &h, e);
    if (rv == HEDGE_ECORRUPT) {
        (void)error_prefix(e, "store \"%s\", block %u/%llu sent to %s",
                           sos_store_name(w->store), w->sink->writer,
                           (unsigned long long)w->n_blocks, w->node->id);
    }
    w->n_blocks++;
    if (rv == 0) {
        rv = w->sink->ops->put(w->sink, block, &h, e);
    } else if (block != NULL) {
        w->sink->ops->back(w->sink, block);
    }
    return rv == HEDGE_EFULL ? 0 : rv;
}

/* Of one `Records`, where they lie: a list of empty records unpacked to objects
 * is eight times its size. */
static int take_list(struct writing *w, const struct field *list,
                     struct hedge_error *e)
{
    struct fields all = fields_of(list->data, list->len);
    struct field f;
    int next, rv = 0;

    while ((next = fields_next(&all, &f)) == 0 && rv == 0) {
        if (field_is(&f, RECORDS_RECORD)) {
            rv = writer_write(&w->records, f.len > 0 ? f.data : NOTHING, f.len);
        }
    }
    if (rv == 0 && next != HEDGE_EEND) {
        return error_set(e, next, "%zu bytes that are no Records", list->len);
    }
    if (rv != 0 && rv != HEDGE_EFULL) {
        *e = w->records.error;
        if (e->text[0] == '\0') { /* The sink has failed by itself. */
            sos_sink_error(w->sink, e);
        }
    }
    return rv;
}

static int take_records(struct writing *w, const unsigned char *data,
                        size_t len, struct hedge_error *e)
{
    struct fields all = fields_of(data, len);
    struct field f;
    int rv = 0;

    if (!w->framing) {
        writer_init(&w->records, w->sink);
        w->framing = true;
    }
    while (rv == 0 && fields_next(&all, &f) == 0) {
        if (field_is(&f, WRITE_RECORDS)) {
            rv = take_list(w, &f, e);
        }
    }
    return rv == HEDGE_EFULL ? 0 : rv;
}

/* End the writer and answer with its part. Ends the sink. */
static int commit(struct writing *w, Hedge__V1__WriteCommit *c,
                  struct hedge_error *e)
{
    Hedge__V1__WriteReply m = HEDGE__V1__WRITE_REPLY__INIT;
    struct manifest claimed = {.records = c->records, .bytes = c->bytes};
    struct manifest *claim = NULL;
    struct sos_info info;
    int rv;

    if (c->digest.len != 0 && !pb_to_digest(&c->digest, &claimed.digest)) {
        return error_set(e, HEDGE_EPROTO, "a digest of %zu bytes: it has %d",
                         c->digest.len, PB_DIGEST_SIZE);
    }
    if (!w->framing && c->digest.len == 0 && (c->records | c->bytes) != 0) {
        return error_set(e, HEDGE_EPROTO,
                         "the commit of a client that sends blocks has no "
                         "digest to check them by");
    }
    if (w->framing) {
        /* Such a client knows no digest; a number it leaves out is 0. */
        if (writer_finish(&w->records, &claimed) == 0) {
            claimed.records = c->records != 0 ? c->records : claimed.records;
            claimed.bytes = c->bytes != 0 ? c->bytes : claimed.bytes;
            claim = &claimed;
        }
    } else if (c->digest.len != 0) {
        claim = &claimed;
    }
    rv = sos_sink_commit(w->sink, claim, &info, e);
    w->sink = NULL;
    if (rv != 0 && rv != HEDGE_EFULL) {
        return rv;
    }
    if (rv == HEDGE_EFULL) {
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

/* What comes before a block, or all there is when no block does. */
static int read_head(struct rpc_msg *msg, unsigned char **head, size_t *len,
                     bool *has_body, size_t *body_len, struct hedge_error *e)
{
    const unsigned char *first;

    *has_body = false;
    if (rpc_msg_peek(msg, &first) == 0 || *first != RECORDS_TAG) {
        return wire_split(msg, head, len, has_body, body_len, e);
    }
    *len = rpc_msg_left(msg);
    *head = mem_alloc(*len);
    if (*head == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for %zu bytes of records",
                         *len);
    }
    rpc_msg_read(msg, *head, *len);
    return 0;
}

/* Which of its fields a WriteRequest has, a bit each. */
static int fields_there(const unsigned char *data, size_t len, unsigned *there,
                        struct hedge_error *e)
{
    struct fields all = fields_of(data, len);
    struct field f;
    int rv;

    *there = 0;
    while ((rv = fields_next(&all, &f)) == 0) {
        if (f.type == FIELD_BYTES && f.number < 32) {
            *there |= 1U << f.number & WRITE_FIELDS;
        }
    }
    return rv == HEDGE_EEND ? 0 : error_set(e, rv, "not a WriteRequest");
}

static int take_commit(struct writing *w, const unsigned char *data, size_t len,
                       struct hedge_error *e)
{
    Hedge__V1__WriteRequest *m =
        pb_unpack(&hedge__v1__write_request__descriptor, data, len);
    int rv;

    if (m == NULL || m->commit == NULL) {
        rv = error_set(e, HEDGE_EPROTO, "not a WriteCommit");
    } else {
        rv = commit(w, m->commit, e);
    }
    pb_free(m);
    return rv == 0 ? HEDGE_EEND : rv;
}

/* One message; HEDGE_EEND when the writer has committed. */
static int take_message(struct writing *w, struct rpc_msg *msg,
                        struct hedge_error *e)
{
    unsigned char *head = NULL;
    size_t len, body_len;
    unsigned there;
    bool has_body;
    int rv = read_head(msg, &head, &len, &has_body, &body_len, e);

    rv = rv == 0 ? fields_there(head, len, &there, e) : rv;
    if (rv != 0) {
        mem_free(head);
        return rv;
    }
    there |= has_body ? 1U << WIRE_BODY_FIELD : 0;
    if (w->credits > 0 &&
        (there & (1U << WRITE_RECORDS | 1U << WIRE_BODY_FIELD)) != 0) {
        w->credits--;
    }
    if ((there & 1U << WRITE_OPEN) != 0 || (there & (there - 1)) != 0 ||
        (has_body && w->framing)) {
        rv = error_set(e, HEDGE_EPROTO,
                       "after `open` come blocks, or records, and a commit, "
                       "each in a message of its own");
    } else if (has_body) {
        rv = take_block(w, msg, body_len, e);
    } else if (there == 1U << WRITE_RECORDS) {
        rv = take_records(w, head, len, e);
    } else if (there == 1U << WRITE_COMMIT) {
        rv = take_commit(w, head, len, e);
    }
    mem_free(head);
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
            /* Nothing yet, unless the deadline of a client has passed. */
            rv = rpc_stream_is_cancelled(w->stream) ? HEDGE_ECANCELED : 0;
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
    if ((*out)->open == NULL || (*out)->records != NULL ||
        (*out)->commit != NULL || (*out)->block.len > 0) {
        pb_free(*out);
        *out = NULL;
        return error_set(e, HEDGE_EPROTO,
                         "the first message must be `open`, and nothing else");
    }
    return 0;
}

static int open_store(struct hedge_node *n, const Hedge__V1__WriteOpen *open,
                      struct store_place *p, struct hedge_error *e)
{
    struct sos_store_options options;

    if (open->existing) {
        return stores_find(n, open->name, CALL_MS, p, e);
    }
    pb_to_store_options(open->options, &options);
    return stores_open(n, open->name, open->options != NULL ? &options : NULL,
                       !open->append, CALL_MS, p, e);
}

/* As a reader waits for its blocks, so does a writer for its one. */
static int open_sink(struct writing *w, struct hedge_error *e)
{
    uint64_t until = clock_mono_ms() + SERVE_BUSY_MS;
    int rv = sos_sink_open(w->store, &w->sink, e);

    while (rv == HEDGE_EBUSY && clock_mono_ms() < until &&
           !rpc_stream_is_cancelled(w->stream)) {
        clock_sleep_ms(SERVE_RETRY_MS);
        rv = sos_sink_open(w->store, &w->sink, e);
    }
    return rv;
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
    rv = serve_enter(s, &w.node->writing, serve_streams_max(w.node, 2, 1),
                     "writers", e);
    w.entered = rv == 0;
    rv = rv != 0 ? rv : open_sink(&w, e);
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
    if (w.entered) {
        atomic_fetch_sub(&w.node->writing, 1);
    }
    sos_store_unref(w.store);
    return rv;
}
