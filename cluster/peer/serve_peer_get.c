/* Giving blocks back to their owners. The handler's thread reads the requests;
 * a few threads fetch, because the store may have to read its disk, and send,
 * one at a time. A request is worked on until the transport has let go of its
 * block. */
#include "cluster/peer/serve_peer_internal.h"

#include "cluster/rpc/wire.h"
#include "store/base/mem.h"
#include "proto/hedge.pb-c.h"

#include <assert.h>
#include <string.h>

#define WORKERS_MAX 4

struct ask {
    uint64_t number;
    struct block_id id;
};

/* References: the handler's, and one for each block with the transport. */
struct get_stream {
    struct peer_service *service;
    struct rpc_stream *rpc;
    pthread_cond_t changed;
    struct ask asks[PEER_WINDOW]; /* A ring. */
    unsigned first_ask, n_asks;
    unsigned n_busy; /* Asked, and not done with. */
    unsigned refs;
    bool sending, ending;
    int failed;
    unsigned n_workers, n_idle;
    pthread_t workers[WORKERS_MAX];
};

/* What the transport has. */
struct loaned {
    struct get_stream *stream;
    void *block;
};

/* Lock held. True: it was the last reference, free it without the lock. */
static bool stream_unref(struct get_stream *s)
{
    assert(s->refs > 0);
    return --s->refs == 0;
}

static void stream_free(struct get_stream *s)
{
    pthread_cond_destroy(&s->changed);
    mem_free(s);
}

/* --- sending ---------------------------------------------------------------
 */

static void on_sent(void *arg)
{
    struct loaned *l = arg;
    struct get_stream *s = l->stream;
    struct peer_service *p = s->service;
    bool last;

    arena_unref(sos_arena(p->sos), l->block);
    mem_free(l);
    pthread_mutex_lock(&p->lock);
    s->n_busy--;
    last = stream_unref(s);
    if (!last) {
        pthread_cond_broadcast(&s->changed);
    }
    p->out--;
    pthread_cond_broadcast(&p->returned);
    pthread_mutex_unlock(&p->lock);
    if (last) {
        stream_free(s);
    }
}

/* One sends at a time. */
static int send_in_turn(struct get_stream *s, const struct rpc_out *out)
{
    struct peer_service *p = s->service;
    int rv;

    pthread_mutex_lock(&p->lock);
    while (s->sending) {
        pthread_cond_wait(&s->changed, &p->lock);
    }
    s->sending = true;
    pthread_mutex_unlock(&p->lock);
    rv = rpc_stream_post(s->rpc, out, REPLY_SEND_MS);
    pthread_mutex_lock(&p->lock);
    s->sending = false;
    if (rv != 0 && s->failed == 0) {
        s->failed = rv;
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&p->lock);
    return rv;
}

static void send_error(struct get_stream *s, const struct ask *a, int code,
                       const struct hedge_error *e)
{
    Hedge__V1__GetReply m = HEDGE__V1__GET_REPLY__INIT;
    unsigned char head[REPLY_HEAD_MAX];
    char text[REPLY_TEXT_MAX];
    struct rpc_out out = {.head = head};

    service_text(e, code, text);
    m.request = a->number;
    m.error = (char *)(uintptr_t)hedge_errname(code);
    m.text = text;
    assert(hedge__v1__get_reply__get_packed_size(&m) <= sizeof head);
    out.head_len = hedge__v1__get_reply__pack(&m, head);
    (void)send_in_turn(s, &out);
    pthread_mutex_lock(&s->service->lock);
    s->n_busy--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->service->lock);
}

static void send_block(struct get_stream *s, const struct ask *a,
                       struct loaned *l, size_t len)
{
    Hedge__V1__GetReply m = HEDGE__V1__GET_REPLY__INIT;
    unsigned char head[REPLY_HEAD_MAX];
    struct rpc_out out = {.head = head,
                          .body = l->block,
                          .body_len = len,
                          .release = on_sent,
                          .release_arg = l};

    m.request = a->number;
    out.head_len = hedge__v1__get_reply__pack(&m, head);
    out.head_len += wire_body_tag(len, head + out.head_len);
    pthread_mutex_lock(&s->service->lock);
    s->refs++;
    s->service->out++;
    pthread_mutex_unlock(&s->service->lock);
    (void)send_in_turn(s, &out);
}

static void serve(struct get_stream *s, const struct ask *a)
{
    struct loaned *l = mem_alloc(sizeof *l);
    struct hedge_error e = {.code = 0};
    size_t len;
    int rv = HEDGE_ENOMEM;

    if (l != NULL) {
        l->stream = s;
        rv = sos_lend_get(s->service->sos, &a->id, &l->block, &len, &e);
    }
    if (rv == 0) {
        send_block(s, a, l, len);
    } else {
        mem_free(l);
        send_error(s, a, rv, &e);
    }
}

/* --- workers ---------------------------------------------------------------
 */

static void *worker_main(void *arg)
{
    struct get_stream *s = arg;
    struct peer_service *p = s->service;

    pthread_mutex_lock(&p->lock);
    for (;;) {
        struct ask a;

        s->n_idle++;
        while (s->n_asks == 0 && !s->ending) {
            pthread_cond_wait(&s->changed, &p->lock);
        }
        s->n_idle--;
        if (s->ending) {
            break;
        }
        a = s->asks[s->first_ask];
        s->first_ask = (s->first_ask + 1) % PEER_WINDOW;
        s->n_asks--;
        pthread_mutex_unlock(&p->lock);
        serve(s, &a);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Another thread where all there are have something to do. */
static int add_worker(struct get_stream *s)
{
    int rv =
        service_thread(&s->workers[s->n_workers], worker_main, s, "hedge-get");

    if (rv == 0) {
        s->n_workers++;
    }
    return s->n_workers > 0 ? 0 : rv;
}

/* --- requests --------------------------------------------------------------
 */

/* Wait until one more request may be worked on, but not for a client that has
 * gone. */
static int wait_for_turn(struct get_stream *s, struct hedge_error *e)
{
    struct peer_service *p = s->service;
    bool gone = false;
    int rv;

    pthread_mutex_lock(&p->lock);
    while (s->n_busy == PEER_WINDOW && s->failed == 0 && !gone) {
        service_wait(p, &s->changed);
        pthread_mutex_unlock(&p->lock);
        gone = rpc_stream_is_cancelled(s->rpc);
        pthread_mutex_lock(&p->lock);
    }
    rv = s->failed != 0 ? s->failed : gone ? HEDGE_ECANCELED : 0;
    pthread_mutex_unlock(&p->lock);
    return rv == 0 ? 0 : error_set(e, rv, "the replies cannot be sent");
}

static int enqueue(struct get_stream *s, const Hedge__V1__GetRequest *m,
                   struct hedge_error *e)
{
    struct peer_service *p = s->service;
    struct ask *a;
    bool more;
    int rv;

    pthread_mutex_lock(&p->lock);
    assert(s->n_asks < PEER_WINDOW);
    a = &s->asks[(s->first_ask + s->n_asks++) % PEER_WINDOW];
    a->number = m->request;
    a->id.generation = m->generation;
    a->id.writer = m->writer;
    a->id.sequence = m->sequence;
    s->n_busy++;
    more = s->n_idle < s->n_asks && s->n_workers < WORKERS_MAX;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&p->lock);
    rv = more ? add_worker(s) : 0;
    return rv == 0 ? 0 : error_set(e, rv, "no thread to read blocks with");
}

static int receive_one(struct get_stream *s, struct hedge_error *e)
{
    unsigned char head[REPLY_HEAD_MAX];
    Hedge__V1__GetRequest *m;
    struct rpc_msg msg;
    size_t len;
    int rv = rpc_stream_recv(s->rpc, RPC_NO_TIMEOUT, &msg, e);

    if (rv != 0) {
        return rv;
    }
    len = rpc_msg_left(&msg);
    if (len <= sizeof head) {
        rpc_msg_read(&msg, head, len);
    }
    rpc_msg_release(&msg);
    m = len <= sizeof head ? hedge__v1__get_request__unpack(NULL, len, head)
                           : NULL;
    if (m == NULL) {
        return error_set(e, HEDGE_EPROTO, "the request cannot be read");
    }
    rv = service_check_incarnation(s->service, m->peer_incarnation, e);
    rv = rv != 0 ? rv : wait_for_turn(s, e);
    rv = rv != 0 ? rv : enqueue(s, m, e);
    hedge__v1__get_request__free_unpacked(m, NULL);
    return rv;
}

static void stream_end(struct get_stream *s, bool in_order)
{
    struct peer_service *p = s->service;
    bool last;

    pthread_mutex_lock(&p->lock);
    while (in_order && s->n_asks > 0 && s->failed == 0) {
        service_wait(p, &s->changed);
    }
    s->ending = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < s->n_workers; i++) {
        pthread_join(s->workers[i], NULL);
    }
    pthread_mutex_lock(&p->lock);
    last = stream_unref(s);
    pthread_mutex_unlock(&p->lock);
    if (last) {
        stream_free(s);
    }
}

int peer_service_get(struct peer_service *p, struct rpc_stream *rpc,
                     struct hedge_error *e)
{
    struct get_stream *s = mem_calloc(1, sizeof *s);
    pthread_condattr_t attr;
    int rv;

    if (s == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a stream");
    }
    s->service = p;
    s->rpc = rpc;
    s->refs = 1;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    do {
        rv = receive_one(s, e);
    } while (rv == 0);
    stream_end(s, rv == HEDGE_EEND);
    return rv;
}
