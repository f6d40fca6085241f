#include "cluster/stores/store_link.h"

#include "cluster/rpc/wire.h"
#include "store/base/hash.h"
#include "store/base/mem.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Blocks that are filled and wait for the sender: so few that they are still
 * in the cache when they are sent. */
#define QUEUE_MAX 2
/* Waiting, under way in the transport, and one being filled. */
#define BUFFERS (QUEUE_MAX + 4)
#define STALL_MS 60000 /* A node that takes nothing for so long is gone. */
#define REASON_MS 1000
#define BLOCK_SIZE_SANE (BLOCK_SIZE_MAX)

/* A stream has ended as those of nodes do that die. Both ends of a relay may
 * say so: once is enough. */
static int name_broken(int rv, const char *store, const char *owner,
                       struct hedge_error *e)
{
    char quoted[264];

    (void)snprintf(quoted, sizeof quoted, "\"%s\"", store);
    if (e != NULL && (rv == HEDGE_EUNAVAILABLE || rv == HEDGE_ECANCELED) &&
        strstr(e->text, quoted) == NULL) {
        (void)error_prefix(e, "store %s: the connection to its owner %s broke",
                           quoted, owner);
    }
    return rv;
}

/* --- memory --- */

static void *heap_get(void *ctx, size_t size)
{
    (void)ctx;
    return mem_alloc(size);
}

static void heap_put(void *ctx, void *block)
{
    (void)ctx;
    mem_free(block);
}

const struct block_memory *block_memory_heap(void)
{
    static const struct block_memory heap = {.get = heap_get, .put = heap_put};

    return &heap;
}

/* --- the sink ---
 *
 * A thread of its own sends what the writer has filled, so that one block goes
 * through the kernel while the next is filled. */

struct remote_sink;

struct buffer {
    struct remote_sink *sink;
    void *block;
    size_t len; /* Header and payload. */
    bool used;
};

struct remote_sink {
    struct sink base;
    struct rpc_stream *stream;
    char *name;
    char owner[264];
    const struct block_memory *memory;
    /* The sender's; after it has been joined, the writer's. */
    unsigned credits;
    bool full;    /* The node has said so; blocks are not sent any more. */
    bool refused; /* Its last word: not all was stored as it should be. */
    struct hedge_error error; /* Valid once base.failed is set. */
    Hedge__V1__StoreInfo *committed;

    pthread_t sender;
    bool sender_runs;
    pthread_mutex_t lock; /* Guards the rest, and `used` of the buffers. */
    pthread_cond_t freed, filled;
    struct buffer *queue[QUEUE_MAX];
    unsigned n_queued;
    bool closing; /* No more blocks: the sender ends with the last. */
    struct buffer buffers[BUFFERS];
};

static struct remote_sink *remote_sink_of(struct sink *base)
{
    return container_of(base, struct remote_sink, base);
}

static int sink_fail(struct remote_sink *s, int rv, const struct hedge_error *e)
{
    if (atomic_load(&s->base.failed) == 0) {
        s->error = *e;
        s->error.code = rv;
        atomic_store(&s->base.failed, rv);
    }
    return rv;
}

static void take_reply(struct remote_sink *s, Hedge__V1__WriteReply *r)
{
    s->credits += r->credits;
    if (r->full[0] != '\0' && !s->full) {
        struct hedge_error e;

        s->full = true;
        (void)error_set(&e, HEDGE_EFULL, "%s", r->full);
        (void)sink_fail(s, HEDGE_EFULL, &e);
    }
    if (r->committed != NULL) {
        s->refused = r->full[0] != '\0';
        s->committed = r->committed;
        r->committed = NULL;
    }
}

/* Receive one reply; HEDGE_ETIMEDOUT when there is none in time. */
static int receive(struct remote_sink *s, uint64_t timeout_ms,
                   struct hedge_error *e)
{
    Hedge__V1__WriteReply *r;
    struct rpc_msg msg;
    int rv = rpc_stream_recv(s->stream, timeout_ms, &msg, e);

    if (rv == HEDGE_EEND) {
        rv = error_set(e, HEDGE_EPROTO, "the node has ended the stream early");
    }
    if (rv != 0) {
        return name_broken(rv, s->name, s->owner, e);
    }
    r = pb_from_msg_large(&hedge__v1__write_reply__descriptor, &msg, e);
    if (r == NULL) {
        return HEDGE_EPROTO;
    }
    take_reply(s, r);
    pb_free(r);
    return 0;
}

/* A free buffer; waits for the transport to let go of one. */
static int remote_block(struct sink *base, void **block, struct hedge_error *e)
{
    struct remote_sink *s = remote_sink_of(base);
    struct buffer *b = NULL;
    int failed = atomic_load(&base->failed);

    *block = NULL;
    if (failed != 0) {
        if (e != NULL) {
            *e = s->error;
        }
        return failed;
    }
    pthread_mutex_lock(&s->lock);
    while (b == NULL) {
        for (unsigned i = 0; i < BUFFERS && b == NULL; i++) {
            b = s->buffers[i].used ? NULL : &s->buffers[i];
        }
        if (b == NULL) {
            pthread_cond_wait(&s->freed, &s->lock);
        }
    }
    if (b->block == NULL) {
        b->block = s->memory->get(s->memory->ctx, base->block_size);
    }
    b->used = b->block != NULL;
    pthread_mutex_unlock(&s->lock);
    if (b->block == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a block");
    }
    *block = b->block;
    return 0;
}

static void buffer_free(void *arg)
{
    struct buffer *b = arg;

    pthread_mutex_lock(&b->sink->lock);
    b->used = false;
    pthread_cond_signal(&b->sink->freed);
    pthread_mutex_unlock(&b->sink->lock);
}

static struct buffer *buffer_of(struct remote_sink *s, const void *block)
{
    for (unsigned i = 0; i < BUFFERS; i++) {
        if (s->buffers[i].block == block) {
            return &s->buffers[i];
        }
    }
    assert(0 && "a block of this sink");
    return NULL;
}

static void remote_back(struct sink *base, void *block)
{
    buffer_free(buffer_of(remote_sink_of(base), block));
}

/* Take what has come in; wait only while there is no credit. */
static int await_credit(struct remote_sink *s, struct hedge_error *e)
{
    int rv = 0;

    while (rv == 0) {
        rv = receive(s, s->credits > 0 || s->full ? 0 : STALL_MS, e);
        if (rv == 0 && s->credits > 0) {
            continue;
        }
    }
    if (rv == HEDGE_ETIMEDOUT && (s->credits > 0 || s->full)) {
        return 0;
    }
    if (rv == HEDGE_ETIMEDOUT) {
        (void)error_set(e, rv, "the node has taken nothing for %d s",
                        STALL_MS / 1000);
    }
    return rv;
}

/* Sending has failed with `rv`; the reason comes with the status. */
static int why_broken(struct remote_sink *s, int rv, struct hedge_error *e)
{
    struct hedge_error reason = {0};
    int told;

    do {
        told = receive(s, REASON_MS, &reason);
    } while (told == 0);
    if (told != HEDGE_ETIMEDOUT && reason.code != 0) {
        *e = reason;
        return told;
    }
    return error_set(e, rv, "the node takes no more blocks: %s",
                     hedge_strerror(rv));
}

/* Send a block or, when the sink has failed or the node is full, drop it. */
static void send_block(struct remote_sink *s, struct buffer *b)
{
    unsigned char tag[WIRE_TAG_MAX];
    struct hedge_error e = {0};
    struct rpc_out out = {.body = b->block,
                          .body_len = b->len,
                          .head = tag,
                          .release = buffer_free,
                          .release_arg = b};
    int rv = atomic_load(&s->base.failed);

    if (rv == 0) {
        rv = await_credit(s, &e);
        if (rv != 0) {
            (void)sink_fail(s, rv, &e);
        }
    }
    if (rv != 0 || s->full) {
        buffer_free(b);
        return;
    }
    out.head_len = wire_body_tag(out.body_len, tag);
    s->credits--;
    rv = rpc_stream_post(s->stream, &out, STALL_MS);
    if (rv != 0) {
        rv = why_broken(s, rv, &e);
        (void)sink_fail(s, rv, &e);
    }
}

static struct buffer *queue_take(struct remote_sink *s)
{
    struct buffer *b = NULL;

    pthread_mutex_lock(&s->lock);
    while (s->n_queued == 0 && !s->closing) {
        pthread_cond_wait(&s->filled, &s->lock);
    }
    if (s->n_queued > 0) {
        b = s->queue[0];
        s->n_queued--;
        memmove(s->queue, s->queue + 1, s->n_queued * sizeof(struct buffer *));
        pthread_cond_signal(&s->freed);
    }
    pthread_mutex_unlock(&s->lock);
    return b;
}

static void *sender_main(void *arg)
{
    struct remote_sink *s = arg;
    struct buffer *b;

    while ((b = queue_take(s)) != NULL) {
        send_block(s, b);
    }
    return NULL;
}

static int sender_start(struct remote_sink *s)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&s->sender, NULL, sender_main, s);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    s->sender_runs = rc == 0;
    if (rc == 0) {
        (void)pthread_setname_np(s->sender, "hedge-sender");
    }
    return rc == 0 ? 0 : HEDGE_ENOMEM;
}

/* What is queued is sent first, unless the stream was cancelled. */
static void sender_join(struct remote_sink *s)
{
    if (s->sender_runs) {
        pthread_mutex_lock(&s->lock);
        s->closing = true;
        pthread_cond_signal(&s->filled);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->sender, NULL);
        s->sender_runs = false;
    }
}

static int remote_put(struct sink *base, void *block,
                      const struct block_header *h, struct hedge_error *e)
{
    struct remote_sink *s = remote_sink_of(base);
    struct buffer *b = buffer_of(s, block);
    int failed;

    b->len = BLOCK_HEADER_SIZE + (size_t)h->stored_len;
    pthread_mutex_lock(&s->lock);
    while (s->n_queued == QUEUE_MAX) {
        pthread_cond_wait(&s->freed, &s->lock);
    }
    failed = atomic_load(&base->failed);
    if (failed == 0) {
        s->queue[s->n_queued++] = b;
        pthread_cond_signal(&s->filled);
    }
    pthread_mutex_unlock(&s->lock);
    if (failed != 0) {
        buffer_free(b);
        if (e != NULL) {
            *e = s->error;
        }
    }
    return failed;
}

static void remote_why(struct sink *base, struct hedge_error *out)
{
    *out = remote_sink_of(base)->error;
}

static const struct sink_ops remote_sink_ops = {.block = remote_block,
                                                .put = remote_put,
                                                .back = remote_back,
                                                .why = remote_why};

/* The sender has been joined, or sends to nobody any more. */
static void remote_sink_free(struct remote_sink *s)
{
    sender_join(s);
    rpc_stream_free(s->stream);
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < BUFFERS; i++) {
        while (s->buffers[i].used) {
            pthread_cond_wait(&s->freed, &s->lock);
        }
        if (s->buffers[i].block != NULL) {
            s->memory->put(s->memory->ctx, s->buffers[i].block);
        }
    }
    pthread_mutex_unlock(&s->lock);
    pthread_cond_destroy(&s->freed);
    pthread_cond_destroy(&s->filled);
    pthread_mutex_destroy(&s->lock);
    pb_free(s->committed);
    mem_free(s->name);
    mem_free(s);
}

static int send_open(struct remote_sink *s, const struct store_link_open *o,
                     uint64_t timeout_ms)
{
    Hedge__V1__WriteRequest m = HEDGE__V1__WRITE_REQUEST__INIT;
    Hedge__V1__WriteOpen open = HEDGE__V1__WRITE_OPEN__INIT;
    Hedge__V1__StoreOptions options;
    char *name = mem_strdup(o->name);
    int rv;

    if (name == NULL) {
        return HEDGE_ENOMEM;
    }
    if (o->options != NULL) {
        pb_store_options(o->options, &options);
        open.options = &options;
    }
    open.name = name;
    open.append = o->append;
    open.existing = o->existing;
    m.open = &open;
    rv = pb_send(s->stream, &m.base, timeout_ms);
    mem_free(name);
    return rv;
}

static int take_opened(struct remote_sink *s, Hedge__V1__WriteReply *r,
                       struct store_link_opened *opened, struct hedge_error *e)
{
    if (r->redirect != NULL && r->redirect->grpc_address[0] != '\0' &&
        member_set_text(opened->redirect, sizeof opened->redirect,
                        r->redirect->grpc_address)) {
        return 0;
    }
    if (r->opened == NULL || r->opened->block_size < BLOCK_SIZE_MIN ||
        r->opened->block_size > BLOCK_SIZE_SANE ||
        !member_set_text(opened->owner, sizeof opened->owner,
                         r->opened->owner)) {
        return error_set(e, HEDGE_EPROTO, "the node's answer makes no sense");
    }
    memcpy(s->owner, opened->owner, sizeof s->owner);
    s->base.generation = r->opened->generation;
    s->base.writer = r->opened->writer;
    s->base.block_size = r->opened->block_size;
    opened->ttl_ms = r->opened->ttl_ms;
    s->credits = r->credits;
    return 0;
}

static int remote_sink_start(struct remote_sink *s, struct rpc_channel *c,
                             const struct store_link_open *o,
                             uint64_t timeout_ms,
                             struct store_link_opened *opened,
                             struct hedge_error *e)
{
    Hedge__V1__WriteReply *r;
    struct rpc_msg msg;
    int rv =
        rpc_stream_open(c, "/hedge.v1.Store/Write", RPC_NO_TIMEOUT, &s->stream);

    if (rv == 0) {
        (void)send_open(s, o, timeout_ms);
        rv = rpc_stream_recv(s->stream, timeout_ms, &msg, e);
    } else {
        (void)error_set(e, rv, "cannot open a stream");
    }
    if (rv == HEDGE_ETIMEDOUT) {
        (void)error_set(e, rv, "no answer within %llu ms",
                        (unsigned long long)timeout_ms);
    }
    if (rv != 0) {
        return rv == HEDGE_EEND
                   ? error_set(e, HEDGE_EPROTO, "the node did not answer")
                   : rv;
    }
    r = pb_from_msg_large(&hedge__v1__write_reply__descriptor, &msg, e);
    rv = r == NULL ? HEDGE_EPROTO : take_opened(s, r, opened, e);
    pb_free(r);
    return rv;
}

int remote_sink_open(struct rpc_channel *c, const struct store_link_open *o,
                     uint64_t timeout_ms, struct sink **out,
                     struct store_link_opened *opened, struct hedge_error *e)
{
    struct remote_sink *s = mem_calloc(1, sizeof *s);
    int rv;

    *out = NULL;
    memset(opened, 0, sizeof *opened);
    if (s == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a writer");
    }
    s->base.ops = &remote_sink_ops;
    s->memory = o->memory != NULL ? o->memory : block_memory_heap();
    s->name = mem_strdup(o->name);
    if (s->name == NULL) {
        mem_free(s);
        return error_set(e, HEDGE_ENOMEM, "no memory for a writer");
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->freed, NULL);
    pthread_cond_init(&s->filled, NULL);
    for (unsigned i = 0; i < BUFFERS; i++) {
        s->buffers[i].sink = s;
    }
    rv = remote_sink_start(s, c, o, timeout_ms, opened, e);
    if (rv == 0 && opened->redirect[0] == '\0') {
        rv = sender_start(s) == 0
                 ? 0
                 : error_set(e, HEDGE_ENOMEM, "no thread for a writer");
    }
    if (rv != 0 || opened->redirect[0] != '\0') {
        remote_sink_free(s);
        return rv;
    }
    *out = &s->base;
    return 0;
}

static int send_commit(struct remote_sink *s, const struct manifest *claimed)
{
    Hedge__V1__WriteRequest m = HEDGE__V1__WRITE_REQUEST__INIT;
    Hedge__V1__WriteCommit commit = HEDGE__V1__WRITE_COMMIT__INIT;
    unsigned char digest[PB_DIGEST_SIZE];

    commit.records = claimed->records;
    commit.bytes = claimed->bytes;
    pb_digest(&claimed->digest, digest);
    commit.digest.data = digest;
    commit.digest.len = sizeof digest;
    m.commit = &commit;
    return pb_send(s->stream, &m.base, STALL_MS);
}

static int await_committed(struct remote_sink *s, struct manifest *out,
                           struct hedge_error *e)
{
    int rv = 0;

    while (rv == 0 && s->committed == NULL) {
        rv = receive(s, RPC_NO_TIMEOUT, e);
    }
    if (rv == 0) {
        out->records = s->committed->records;
        out->bytes = s->committed->bytes;
        if (!pb_to_digest(&s->committed->digest, &out->digest)) {
            rv = error_set(e, HEDGE_EPROTO, "the answer has no digest");
        }
    }
    return rv;
}

int remote_sink_close(struct sink *base, const struct manifest *claimed,
                      struct manifest *out, Hedge__V1__StoreInfo **info,
                      struct hedge_error *e)
{
    struct remote_sink *s = remote_sink_of(base);
    struct hedge_error own = {0};
    int failed, rv;

    sender_join(s);
    rv = failed = atomic_load(&base->failed);
    e = e != NULL ? e : &own;
    memset(out, 0, sizeof *out);
    if (failed != 0) {
        *e = s->error;
    }
    if (failed == 0 || failed == HEDGE_EFULL) {
        (void)send_commit(s, claimed);
        rv = await_committed(s, out, e);
        /* Being full is no failure unless something was refused. */
        if (rv == 0 && s->refused) {
            *e = s->error;
            rv = HEDGE_EFULL;
        }
    }
    if (rv == 0 && !manifest_equal(claimed, out)) {
        rv = error_set(e, HEDGE_ECORRUPT,
                       "%llu records of %llu bytes were sent, %llu of %llu "
                       "are stored",
                       (unsigned long long)claimed->records,
                       (unsigned long long)claimed->bytes,
                       (unsigned long long)out->records,
                       (unsigned long long)out->bytes);
    }
    if (info != NULL) {
        *info = s->committed;
        s->committed = NULL;
    }
    remote_sink_free(s);
    return rv;
}

void remote_sink_abort(struct sink *base)
{
    struct remote_sink *s = remote_sink_of(base);

    rpc_stream_cancel(s->stream); /* The sender may wait for credits. */
    remote_sink_free(s);
}

/* --- the source --- */

struct remote_source {
    struct source base;
    struct rpc_stream *stream;
    const struct block_memory *memory;
    char *name;
    char owner[264];
    unsigned window;
    struct store_link_opened *redirect; /* May be filled; while opening. */
    unsigned owed;     /* Segments delivered, whose credit has not gone back. */
    uint64_t n_blocks; /* Received. */
    bool opened;       /* The node has told its block size; it does so once. */
    bool relayed;      /* remote_source_done() says what has been delivered. */
    void *block;
    bool block_used;
};

static int grant(struct remote_source *s)
{
    Hedge__V1__ReadRequest m = HEDGE__V1__READ_REQUEST__INIT;
    int rv;

    m.credits = s->owed;
    rv = pb_post(s->stream, &m.base, STALL_MS);
    s->owed = 0;
    return rv;
}

static int take_end(Hedge__V1__ReadReply *r, struct segment *seg,
                    struct hedge_error *e)
{
    const Hedge__V1__StoreInfo *info = r->end->info;

    if (info == NULL || !pb_to_digest(&info->digest, &seg->manifest.digest)) {
        return error_set(e, HEDGE_EPROTO,
                         "the end of the data has no "
                         "manifest");
    }
    seg->manifest.records = info->records;
    seg->manifest.bytes = info->bytes;
    seg->state = pb_to_state(info->state);
    seg->complete = r->end->complete;
    return HEDGE_EEND;
}

/* The block: copied once, and hashed while it is in the cache. */
static int take_block(struct remote_source *s, struct rpc_msg *msg,
                      size_t body_len, struct segment *seg,
                      struct hedge_error *e)
{
    unsigned char *p;
    struct hash sum;
    size_t at = BLOCK_HEADER_SIZE;
    int rv;

    if (body_len > s->base.block_size || body_len < BLOCK_HEADER_SIZE) {
        return error_set(e, HEDGE_EPROTO, "a block of %zu bytes", body_len);
    }
    if (s->block == NULL) {
        s->block = s->memory->get(s->memory->ctx, s->base.block_size);
    }
    p = s->block;
    if (p == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a block");
    }
    rpc_msg_read(msg, p, BLOCK_HEADER_SIZE);
    rv = block_header_decode(p, body_len, s->base.block_size, &seg->header, e);
    if (rv != 0) {
        return rv;
    }
    if (BLOCK_HEADER_SIZE + (size_t)seg->header.stored_len != body_len) {
        return error_set(e, HEDGE_ECORRUPT, "a block is cut");
    }
    hash_init(&sum);
    while (at < body_len) {
        size_t n = body_len - at < HASH_STEP ? body_len - at : HASH_STEP;

        rpc_msg_read(msg, p + at, n);
        hash_update(&sum, p + at, n);
        at += n;
    }
    if (hash_final(&sum) != seg->header.stored_sum) {
        return error_set(
            e, HEDGE_ECORRUPT, "block %u/%llu changed on its way here",
            seg->header.id.writer, (unsigned long long)seg->header.id.sequence);
    }
    seg->verified = true;
    seg->payload = block_payload(p);
    return 0;
}

/* Say which block it was: a header that is wrong tells nothing. */
static int name_wrong(const struct remote_source *s, int rv,
                      struct hedge_error *e)
{
    if (rv == HEDGE_ECORRUPT) {
        (void)error_prefix(e,
                           "store \"%s\" from its owner %s, block number "
                           "%llu of this read",
                           s->name, s->owner, (unsigned long long)s->n_blocks);
    }
    return rv;
}

static int take_redirect(struct remote_source *s, const Hedge__V1__Redirect *r,
                         struct hedge_error *e)
{
    struct store_link_opened *to = s->redirect;

    if (to == NULL || r->grpc_address[0] == '\0' ||
        !member_set_text(to->redirect, sizeof to->redirect, r->grpc_address)) {
        return error_set(e, HEDGE_EPROTO, "sent on to nowhere");
    }
    return HEDGE_EAGAIN;
}

static int take_segment(struct remote_source *s, struct rpc_msg *msg,
                        struct segment *seg, struct hedge_error *e)
{
    Hedge__V1__ReadReply *r = NULL;
    unsigned char *head;
    size_t head_len, body_len;
    bool has_body;
    int rv = wire_split(msg, &head, &head_len, &has_body, &body_len, e);

    memset(seg, 0, sizeof *seg);
    seg->store = s->name;
    if (rv == 0) {
        r = pb_unpack_large(&hedge__v1__read_reply__descriptor, head, head_len);
        mem_free(head);
        rv = r != NULL ? 0 : error_set(e, HEDGE_EPROTO, "not a ReadReply");
    }
    if (rv == 0 && r->end != NULL) {
        rv = take_end(r, seg, e);
    } else if (rv == 0 && r->redirect != NULL) {
        rv = take_redirect(s, r->redirect, e);
    } else if (rv == 0 && r->opened && s->opened) {
        rv = error_set(e, HEDGE_EPROTO, "a second `opened`");
    } else if (rv == 0 && r->opened) {
        s->opened = true;
        (void)member_set_text(s->owner, sizeof s->owner, r->owner);
        s->base.block_size = r->block_size;
        rv = r->block_size >= BLOCK_SIZE_MIN && r->block_size <= BLOCK_SIZE_SANE
                 ? HEDGE_EAGAIN
                 : error_set(e, HEDGE_EPROTO, "block size %u", r->block_size);
    } else if (rv == 0 && has_body) {
        seg->start = r->start;
        seg->stop = r->stop;
        seg->continues = r->continues;
        seg->last_incomplete = r->last_incomplete;
        rv = name_wrong(s, take_block(s, msg, body_len, seg, e), e);
        s->n_blocks++;
        if (rv == 0 && (seg->stop > seg->header.raw_len)) {
            rv = error_set(e, HEDGE_EPROTO, "a segment beyond its block");
        }
    } else if (rv == 0) {
        rv = error_set(e, HEDGE_EPROTO, "a reply without a block");
    }
    pb_free(r);
    return rv;
}

/* The stream has ended, not in good order: what is left of it, and then why.
 * "Nothing yet" would be asked for again without end. */
static int why_ended(struct remote_source *s, struct rpc_msg *msg,
                     struct hedge_error *e)
{
    int rv = rpc_stream_recv(s->stream, REASON_MS, msg, e);

    return rv == HEDGE_ETIMEDOUT
               ? error_set(e, HEDGE_EUNAVAILABLE,
                           "the node has given the stream up: a time-out there")
               : rv;
}

static int remote_next(struct source *base, uint64_t timeout_ms,
                       struct segment *seg, struct hedge_error *e)
{
    struct remote_source *s = container_of(base, struct remote_source, base);
    struct rpc_msg msg;
    int rv;

    if (s->owed >= (s->window + 3) / 4) {
        (void)grant(s); /* When it fails, receiving tells why. */
    }
    do {
        rv = rpc_stream_recv(s->stream, timeout_ms, &msg, e);
        if (rv == HEDGE_ETIMEDOUT && rpc_stream_is_cancelled(s->stream)) {
            rv = why_ended(s, &msg, e);
        }
        if (rv == HEDGE_EEND) {
            return error_set(e, HEDGE_EPROTO,
                             "the stream ended before the data did");
        }
        if (rv != 0) {
            return name_broken(rv, s->name, s->owner, e);
        }
        rv = take_segment(s, &msg, seg, e);
        rpc_msg_release(&msg);
    } while (rv == HEDGE_EAGAIN);
    if (rv == 0 && !s->relayed) {
        s->owed++;
    }
    if (rv == HEDGE_EEND && s->owed > 0 && !s->relayed) {
        (void)grant(s); /* The last blocks may be discarded, too. */
        (void)rpc_stream_close_send(s->stream);
        if (rpc_stream_recv(s->stream, 1000, &msg, NULL) == 0) {
            rpc_msg_release(&msg);
        }
    }
    return rv;
}

void remote_source_relay(struct source *base)
{
    container_of(base, struct remote_source, base)->relayed = true;
}

void remote_source_done(struct source *base, unsigned n)
{
    struct remote_source *s = container_of(base, struct remote_source, base);

    s->owed += n;
    (void)grant(s); /* When it fails, receiving tells why. */
}

static void remote_source_free(struct source *base)
{
    struct remote_source *s = container_of(base, struct remote_source, base);

    rpc_stream_free(s->stream);
    if (s->block != NULL) {
        s->memory->put(s->memory->ctx, s->block);
    }
    mem_free(s->name);
    mem_free(s);
}

static const struct source_ops remote_source_ops = {.next = remote_next,
                                                    .free = remote_source_free};

static int ask_for_source(struct remote_source *s, const struct remote_read *o,
                          bool redirect, uint64_t timeout_ms)
{
    Hedge__V1__ReadRequest m = HEDGE__V1__READ_REQUEST__INIT;
    Hedge__V1__ReadOpen open = HEDGE__V1__READ_OPEN__INIT;

    open.name = s->name;
    open.follow = o->follow;
    open.discard = o->discard;
    open.redirect = redirect;
    m.open = &open;
    m.credits = s->window;
    return pb_send(s->stream, &m.base, timeout_ms);
}

/* 0: opened, or redirected. */
static int await_source(struct remote_source *s, uint64_t timeout_ms,
                        struct store_link_opened *redirect,
                        struct hedge_error *e)
{
    struct rpc_msg msg;
    struct segment seg;
    int rv = rpc_stream_recv(s->stream, timeout_ms, &msg, e);

    if (rv == HEDGE_ETIMEDOUT) {
        return error_set(e, rv, "no answer within %llu ms",
                         (unsigned long long)timeout_ms);
    }
    if (rv == HEDGE_EEND) {
        return error_set(e, HEDGE_EPROTO, "the node did not answer");
    }
    if (rv != 0) {
        return rv;
    }
    s->redirect = redirect;
    rv = take_segment(s, &msg, &seg, e);
    s->redirect = NULL;
    rpc_msg_release(&msg);
    return rv == HEDGE_EAGAIN ? 0
           : rv == 0 || rv == HEDGE_EEND
               ? error_set(e, HEDGE_EPROTO, "data before `opened`")
               : rv;
}

int remote_source_open(struct rpc_channel *c, const struct remote_read *o,
                       uint64_t timeout_ms, struct source **out,
                       struct store_link_opened *redirect,
                       struct hedge_error *e)
{
    struct remote_source *s = mem_calloc(1, sizeof *s);
    int rv;

    *out = NULL;
    if (redirect != NULL) {
        memset(redirect, 0, sizeof *redirect);
    }
    if (s == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a reader");
    }
    s->base.ops = &remote_source_ops;
    s->base.block_size = BLOCK_SIZE_MAX;
    s->memory = block_memory_heap();
    s->window = o->window != 0 ? o->window : STORE_LINK_WINDOW;
    s->name = mem_strdup(o->name);
    rv = s->name == NULL ? HEDGE_ENOMEM
                         : rpc_stream_open(c, "/hedge.v1.Store/Read",
                                           RPC_NO_TIMEOUT, &s->stream);
    if (rv != 0) {
        (void)error_set(e, rv, "cannot open a stream");
    } else {
        (void)ask_for_source(s, o, redirect != NULL, timeout_ms);
        rv = await_source(s, timeout_ms, redirect, e);
    }
    if (rv != 0 || !s->opened) {
        remote_source_free(&s->base);
        return rv;
    }
    *out = &s->base;
    return 0;
}
