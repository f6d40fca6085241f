/* Storing blocks for other nodes. The handler's thread receives a block into
 * the arena and gives it to the store; where that answers at once (memory), the
 * same thread replies. A block that goes to the disk is replied to by a second
 * thread, made when it is first needed. */
#include "cluster/peer/serve_peer_internal.h"

#include "cluster/pb.h"
#include "cluster/rpc/wire.h"
#include "store/base/clock.h"
#include "store/base/copy.h"
#include "store/base/hash.h"
#include "store/base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Less than PEER_STALL_MS: better to be told than to be given up. */
#define ROOM_WAIT_MS 1500
#define ROOM_STEP_MS 250

/* --- replies ---------------------------------------------------------------
 */

static size_t encode_reply(const struct incoming *in, unsigned char *out)
{
    Hedge__V1__PutReply m = HEDGE__V1__PUT_REPLY__INIT;
    char text[REPLY_TEXT_MAX];
    struct sos_usage use;
    char *tier = in->req.in_memory ? "memory" : "disk";

    sos_usage(in->stream->service->sos, &use);
    m.request = in->number;
    m.stored = in->req.status == 0;
    m.mem_free = use.mem_lendable;
    m.disk_free = use.disk_lendable;
    if (m.stored) {
        m.tier = tier;
    } else {
        service_text(&in->req.error, in->req.status, text);
        m.error = (char *)(uintptr_t)hedge_errname(in->req.status);
        m.text = text;
    }
    assert(hedge__v1__put_reply__get_packed_size(&m) <= REPLY_HEAD_MAX);
    return hedge__v1__put_reply__pack(&m, out);
}

static int send_reply(struct put_stream *s, const struct incoming *in)
{
    unsigned char head[REPLY_HEAD_MAX];
    struct rpc_out out = {.head = head, .head_len = encode_reply(in, head)};

    return rpc_stream_post(s->rpc, &out, s->service->reply_send_ms);
}

/* Lock held, let go in between. Send what has been stored, unless another
 * thread is at it. */
static void flush(struct put_stream *s)
{
    struct peer_service *p = s->service;
    struct list *l;

    while (!s->sending && (l = list_pop(&s->done)) != NULL) {
        struct incoming *in = container_of(l, struct incoming, link);
        int failed = s->failed;

        s->sending = true;
        pthread_mutex_unlock(&p->lock);
        if (failed == 0) {
            failed = send_reply(s, in);
        }
        pthread_mutex_lock(&p->lock);
        s->sending = false;
        s->failed = failed;
        s->n_busy--;
        list_push(&s->idle, &in->link);
        pthread_cond_broadcast(&s->changed);
    }
}

static void *sender_main(void *arg)
{
    struct put_stream *s = arg;
    struct peer_service *p = s->service;

    pthread_mutex_lock(&p->lock);
    while (!s->ending || s->n_busy > 0) {
        if (list_empty(&s->done) || s->sending) {
            pthread_cond_wait(&s->changed, &p->lock);
        }
        flush(s);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* The block is stored, or will not be. */
static void incoming_done(struct incoming *in)
{
    struct put_stream *s = in->stream;
    struct peer_service *p = s->service;

    pthread_mutex_lock(&p->lock);
    list_push(&s->done, &in->link);
    if (!pthread_equal(pthread_self(), s->handler)) {
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&p->lock);
}

static void on_lent(struct sos_lend_req *req)
{
    struct incoming *in = req->ctx;
    struct put_stream *s = in->stream;
    struct peer_service *p = s->service;
    bool unwanted;

    pthread_mutex_lock(&p->lock);
    assert(in->storing);
    in->storing = false;
    unwanted = in->unwanted;
    pthread_mutex_unlock(&p->lock);
    if (unwanted && req->status == 0) {
        sos_lend_drop(p->sos, &s->owner, req->header.id.generation,
                      &req->header.id);
        req->status = error_set(&req->error, HEDGE_ECANCELED,
                                "the owner has dropped the block meanwhile");
    }
    incoming_done(in);
}

/* --- one block -------------------------------------------------------------
 */

/* Room for a block, or HEDGE_EBUSY. */
static int find_room(struct put_stream *s, size_t len, void **block,
                     struct hedge_error *e)
{
    struct arena *arena = sos_arena(s->service->sos);
    unsigned steps = 0;

    do {
        *block = arena_alloc_wait(arena, ARENA_IN, len, ROOM_STEP_MS);
    } while (*block == NULL && ++steps < ROOM_WAIT_MS / ROOM_STEP_MS &&
             !rpc_stream_is_cancelled(s->rpc));
    if (*block == NULL) {
        return error_set(e, HEDGE_EBUSY, "no memory to receive a block");
    }
    return 0;
}

/* Check and copy the payload in one go, while what has arrived is in the cache;
 * where it goes to, nobody looks at soon. */
static int take_payload(struct rpc_msg *m, const struct block_header *h,
                        unsigned char *out, struct hedge_error *e)
{
    size_t left = h->stored_len;
    struct hash sum;

    hash_init(&sum);
    while (left > 0) {
        const unsigned char *piece;
        size_t n = rpc_msg_peek(m, &piece);

        n = n < left ? n : left;
        n = n < HASH_STEP ? n : HASH_STEP;
        hash_update(&sum, piece, n);
        copy_past_cache(out, piece, n);
        rpc_msg_read(m, NULL, n);
        out += n;
        left -= n;
    }
    if (hash_final(&sum) != h->stored_sum) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block %u/%llu arrived with other bytes than were "
                         "sent",
                         h->id.writer, (unsigned long long)h->id.sequence);
    }
    return 0;
}

/* From the message into the arena. */
static int take_block(struct put_stream *s, struct rpc_msg *m, size_t body_len,
                      struct incoming *in)
{
    struct hedge_error *e = &in->req.error;
    unsigned char head[BLOCK_HEADER_SIZE];
    size_t block_size = sos_block_size(s->service->sos);
    int rv;

    if (body_len < BLOCK_HEADER_SIZE) {
        return error_set(e, HEDGE_EPROTO, "a block of %zu bytes", body_len);
    }
    rpc_msg_read(m, head, sizeof head);
    rv = block_header_decode(head, body_len, block_size, &in->req.header, e);
    if (rv == 0 &&
        body_len != BLOCK_HEADER_SIZE + (size_t)in->req.header.stored_len) {
        rv = error_set(e, HEDGE_EPROTO,
                       "a block of %u bytes arrived in a message of %zu",
                       in->req.header.stored_len, body_len);
    }
    rv = rv != 0 ? rv : find_room(s, body_len, &in->req.block, e);
    if (rv != 0) {
        return rv;
    }
    memcpy(in->req.block, head, sizeof head);
    rv = take_payload(m, &in->req.header, block_payload(in->req.block), e);
    if (rv != 0) {
        arena_unref(sos_arena(s->service->sos), in->req.block);
    }
    return rv;
}

/* From now on a drop with a fence knows about it. */
static int enter(struct put_stream *s, struct incoming *in)
{
    struct peer_service *p = s->service;
    int rv = 0;

    pthread_mutex_lock(&p->lock);
    if (s->number != 0 && s->number <= service_fence(p, &s->owner)) {
        rv = error_set(&in->req.error, HEDGE_ECANCELED,
                       "the owner has given up this stream");
    } else {
        in->storing = true;
        in->unwanted = false;
    }
    pthread_mutex_unlock(&p->lock);
    return rv;
}

static void store_block(struct put_stream *s, struct incoming *in,
                        const Hedge__V1__PutRequest *m)
{
    struct tier_store store = {.name = m->store,
                               .mem_limit = m->mem_limit,
                               .disk_limit = m->disk_limit,
                               .ttl_ms = m->ttl_ms};
    int rv = enter(s, in);

    if (rv != 0) {
        arena_unref(sos_arena(s->service->sos), in->req.block);
        in->req.status = rv;
        incoming_done(in);
        return;
    }
    in->req.cb = on_lent;
    in->req.ctx = in;
    rv = sos_lend_put(s->service->sos, &s->owner, &store, &in->req);
    assert(rv == 0);
}

/* --- the stream ------------------------------------------------------------
 */

static int greet(struct put_stream *s, const Hedge__V1__PutRequest *m,
                 struct hedge_error *e)
{
    struct peer_service *p = s->service;
    int rv;

    if (m->owner == NULL) {
        return error_set(e, HEDGE_EPROTO,
                         "the first message of a Put stream names the owner");
    }
    rv = service_check_owner(m->owner->id, e);
    rv = rv != 0 ? rv : service_check_incarnation(p, m->peer_incarnation, e);
    if (rv != 0) {
        return rv;
    }
    pthread_mutex_lock(&p->lock);
    (void)snprintf(s->owner_id, sizeof s->owner_id, "%s", m->owner->id);
    s->owner.incarnation = m->owner->incarnation;
    s->number = m->stream;
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* A place among those being worked on; waits until one is free. */
static struct incoming *incoming_take(struct put_stream *s)
{
    struct peer_service *p = s->service;
    struct incoming *in;
    struct list *l;

    pthread_mutex_lock(&p->lock);
    flush(s);
    while ((l = list_pop(&s->idle)) == NULL) {
        pthread_cond_wait(&s->changed, &p->lock);
    }
    s->n_busy++;
    pthread_mutex_unlock(&p->lock);
    in = container_of(l, struct incoming, link);
    memset(&in->req, 0, sizeof in->req);
    return in;
}

static void incoming_back(struct put_stream *s, struct incoming *in)
{
    pthread_mutex_lock(&s->service->lock);
    s->n_busy--;
    list_push(&s->idle, &in->link);
    pthread_mutex_unlock(&s->service->lock);
}

/* What the handler does with a decoded message; an error ends the stream. */
static int handle(struct put_stream *s, struct incoming *in,
                  const Hedge__V1__PutRequest *m, struct rpc_msg *msg,
                  bool has_body, size_t body_len, struct hedge_error *e)
{
    int rv = s->owner_id[0] == '\0' ? greet(s, m, e) : 0;

    if (rv != 0) {
        return rv;
    }
    if (!has_body || strlen(m->store) > STORE_NAME_MAX) {
        return error_set(e, HEDGE_EPROTO,
                         has_body ? "the name of a store is too long"
                                  : "a put without a block");
    }
    in->number = m->request;
    in->req.status = take_block(s, msg, body_len, in);
    if (in->req.status == 0) {
        store_block(s, in, m);
    } else {
        incoming_done(in);
    }
    return 0;
}

/* Of a stream whose client is not read any more. */
static int replies_failed(struct put_stream *s, struct hedge_error *e)
{
    int rv;

    pthread_mutex_lock(&s->service->lock);
    rv = s->failed;
    pthread_mutex_unlock(&s->service->lock);
    return rv != 0 ? error_set(e, rv, "the replies cannot be sent") : 0;
}

static int receive_one(struct put_stream *s, struct hedge_error *e)
{
    struct incoming *in = NULL;
    Hedge__V1__PutRequest *m = NULL;
    unsigned char *head = NULL;
    size_t head_len, body_len;
    struct rpc_msg msg;
    bool has_body;
    int rv = rpc_stream_recv(s->rpc, RPC_NO_TIMEOUT, &msg, e);

    if (rv != 0) {
        return rv;
    }
    rv = wire_split(&msg, &head, &head_len, &has_body, &body_len, e);
    if (rv == 0) {
        m = pb_unpack(&hedge__v1__put_request__descriptor, head, head_len);
        rv = m == NULL
                 ? error_set(e, HEDGE_EPROTO, "the request cannot be read")
                 : replies_failed(s, e);
    }
    if (rv == 0) {
        in = incoming_take(s);
        rv = handle(s, in, m, &msg, has_body, body_len, e);
        if (rv != 0) {
            incoming_back(s, in);
        }
    }
    rpc_msg_release(&msg);
    mem_free(head);
    pb_free(m);
    return rv;
}

/* Replies that are due are sent before the next block is waited for; those that
 * are not will need the second thread. */
static int reply(struct put_stream *s, struct hedge_error *e)
{
    struct peer_service *p = s->service;
    bool needed;
    int rv = 0;

    pthread_mutex_lock(&p->lock);
    flush(s);
    needed = s->n_busy > 0 && !s->has_sender;
    pthread_mutex_unlock(&p->lock);
    if (needed) {
        rv = service_thread(&s->sender, sender_main, s, "hedge-put-reply");
        s->has_sender = rv == 0;
    }
    return rv == 0 ? 0 : error_set(e, rv, "no thread to reply with");
}

static struct put_stream *stream_new(struct peer_service *p,
                                     struct rpc_stream *rpc)
{
    struct put_stream *s = mem_calloc(1, sizeof *s);

    if (s == NULL) {
        return NULL;
    }
    s->service = p;
    s->rpc = rpc;
    s->owner.id = s->owner_id;
    s->handler = pthread_self();
    list_init(&s->idle);
    list_init(&s->done);
    pthread_cond_init(&s->changed, NULL);
    for (unsigned i = 0; i < PEER_WINDOW; i++) {
        s->incoming[i].stream = s;
        list_push(&s->idle, &s->incoming[i].link);
    }
    pthread_mutex_lock(&p->lock);
    list_push(&p->puts, &s->link);
    pthread_mutex_unlock(&p->lock);
    return s;
}

/* Blocks that are with the store are waited for. */
static void stream_free(struct put_stream *s)
{
    struct peer_service *p = s->service;

    pthread_mutex_lock(&p->lock);
    s->ending = true;
    pthread_cond_broadcast(&s->changed);
    flush(s);
    while (s->n_busy > 0) {
        pthread_cond_wait(&s->changed, &p->lock);
        flush(s);
    }
    list_remove(&s->link);
    pthread_mutex_unlock(&p->lock);
    if (s->has_sender) {
        pthread_join(s->sender, NULL);
    }
    pthread_cond_destroy(&s->changed);
    mem_free(s);
}

int peer_service_put(struct peer_service *p, struct rpc_stream *rpc,
                     struct hedge_error *e)
{
    struct put_stream *s = stream_new(p, rpc);
    int rv;

    if (s == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a stream");
    }
    do {
        rv = receive_one(s, e);
        if (rv == 0) {
            rv = reply(s, e);
        }
    } while (rv == 0);
    stream_free(s);
    return rv;
}
