/* Giving blocks back to their owners. The handler's thread reads the requests
 * and answers those whose block is in memory; a few threads fetch the others
 * from the store's disk. Whoever has an answer while nobody sends sends, until
 * there are no more. A request is worked on until the transport has let go of
 * its block. */
#include "cluster/peer/serve_peer_internal.h"

#include "cluster/pb.h"
#include "cluster/rpc/wire.h"
#include "store/base/mem.h"

#include <assert.h>
#include <string.h>

#define WORKERS_MAX 4

struct ask {
    uint64_t number;
    struct block_id id;
};

/* What the transport has, or will get. */
struct loaned {
    struct get_stream *stream;
    void *block;
};

struct answer {
    uint64_t number;
    struct loaned *loan; /* NULL: there is no block, but a reason. */
    size_t len;
    int code;
    char text[REPLY_TEXT_MAX];
};

/* References: the handler's, and one for each block with the transport. */
struct get_stream {
    struct peer_service *service;
    struct rpc_stream *rpc;
    pthread_cond_t work, room;    /* For the workers, for the handler. */
    struct ask asks[PEER_WINDOW]; /* Rings. */
    unsigned first_ask, n_asks;
    struct answer answers[PEER_WINDOW];
    unsigned first_answer, n_answers;
    unsigned n_busy; /* Asked, and not done with. */
    unsigned refs;
    bool sending, ending;
    int failed;
    unsigned n_workers, n_idle;
    pthread_t workers[WORKERS_MAX];
};

/* Lock held. True: it was the last reference, free it without the lock. */
static bool stream_unref(struct get_stream *s)
{
    assert(s->refs > 0);
    return --s->refs == 0;
}

static void stream_free(struct get_stream *s)
{
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->room);
    mem_free(s);
}

/* --- sending ---------------------------------------------------------------
 */

/* Lock held. */
static void done_with(struct get_stream *s)
{
    if (s->n_busy-- == PEER_WINDOW) {
        pthread_cond_signal(&s->room);
    }
}

static void on_sent(void *arg)
{
    struct loaned *l = arg;
    struct get_stream *s = l->stream;
    struct peer_service *p = s->service;
    bool last;

    arena_unref(sos_arena(p->sos), l->block);
    mem_free(l);
    pthread_mutex_lock(&p->lock);
    done_with(s);
    last = stream_unref(s);
    p->out--;
    pthread_cond_broadcast(&p->returned);
    pthread_mutex_unlock(&p->lock);
    if (last) {
        stream_free(s);
    }
}

static int send_error(struct get_stream *s, struct answer *a)
{
    Hedge__V1__GetReply m = HEDGE__V1__GET_REPLY__INIT;
    unsigned char head[REPLY_HEAD_MAX];
    struct rpc_out out = {.head = head};

    m.request = a->number;
    m.error = (char *)(uintptr_t)hedge_errname(a->code);
    m.text = a->text;
    assert(hedge__v1__get_reply__get_packed_size(&m) <= sizeof head);
    out.head_len = hedge__v1__get_reply__pack(&m, head);
    return rpc_stream_post(s->rpc, &out, s->service->reply_send_ms);
}

static int send_block(struct get_stream *s, const struct answer *a)
{
    Hedge__V1__GetReply m = HEDGE__V1__GET_REPLY__INIT;
    unsigned char head[REPLY_HEAD_MAX];
    struct rpc_out out = {.head = head,
                          .body = a->loan->block,
                          .body_len = a->len,
                          .release = on_sent,
                          .release_arg = a->loan};

    m.request = a->number;
    out.head_len = hedge__v1__get_reply__pack(&m, head);
    out.head_len += wire_body_tag(a->len, head + out.head_len);
    return rpc_stream_post(s->rpc, &out, s->service->reply_send_ms);
}

/* Lock held, let go in between: an answer that will not be sent. */
static void give_back(struct get_stream *s, const struct answer *a)
{
    struct peer_service *p = s->service;

    if (a->loan != NULL) {
        pthread_mutex_unlock(&p->lock);
        arena_unref(sos_arena(p->sos), a->loan->block);
        mem_free(a->loan);
        pthread_mutex_lock(&p->lock);
    }
    done_with(s);
}

/* Lock held, let go in between. The answer is not the ring's any more. */
static void send_one(struct get_stream *s, struct answer *a)
{
    struct peer_service *p = s->service;
    bool is_block = a->loan != NULL;
    int rv;

    if (is_block) {
        s->refs++;
        p->out++;
    }
    pthread_mutex_unlock(&p->lock);
    rv = is_block ? send_block(s, a) : send_error(s, a);
    if (rv == HEDGE_ETIMEDOUT) {
        /* What the transport has comes back only now, and the handler may be
         * waiting for requests. */
        rpc_stream_cancel(s->rpc);
    }
    pthread_mutex_lock(&p->lock);
    if (!is_block) {
        done_with(s);
    }
    if (rv != 0 && s->failed == 0) {
        s->failed = rv;
        pthread_cond_signal(&s->room);
    }
}

/* One sends at a time, and what others have meanwhile, too. Nobody waits a
 * second time for a client that has not read. */
static void deliver(struct get_stream *s, const struct answer *answer)
{
    struct peer_service *p = s->service;
    struct answer a;

    pthread_mutex_lock(&p->lock);
    assert(s->n_answers < PEER_WINDOW);
    s->answers[(s->first_answer + s->n_answers++) % PEER_WINDOW] = *answer;
    if (!s->sending) {
        s->sending = true;
        while (s->n_answers > 0) {
            a = s->answers[s->first_answer];
            s->first_answer = (s->first_answer + 1) % PEER_WINDOW;
            s->n_answers--;
            if (s->failed != 0) {
                give_back(s, &a);
            } else {
                send_one(s, &a);
            }
        }
        s->sending = false;
    }
    pthread_mutex_unlock(&p->lock);
}

/* HEDGE_EAGAIN: the block is on the disk, and `now` is asked for. Whatever else
 * there is to say has been sent, or will be. */
static int serve(struct get_stream *s, const struct ask *ask, bool now)
{
    struct answer a = {.number = ask->number,
                       .loan = mem_alloc(sizeof *a.loan)};
    struct hedge_error e = {.code = 0};

    a.code = HEDGE_ENOMEM;
    if (a.loan != NULL) {
        a.loan->stream = s;
        a.code = sos_lend_get(s->service->sos, &ask->id, now, &a.loan->block,
                              &a.len, &e);
    }
    if (a.code != 0) {
        mem_free(a.loan);
        a.loan = NULL;
    }
    if (a.code == HEDGE_EAGAIN && now) {
        return HEDGE_EAGAIN;
    }
    if (a.code != 0) {
        service_text(&e, a.code, a.text);
    }
    deliver(s, &a);
    return 0;
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
            pthread_cond_wait(&s->work, &p->lock);
        }
        s->n_idle--;
        if (s->ending) {
            break;
        }
        a = s->asks[s->first_ask];
        s->first_ask = (s->first_ask + 1) % PEER_WINDOW;
        s->n_asks--;
        pthread_cond_signal(&s->room); /* Who waits for the last of them. */
        pthread_mutex_unlock(&p->lock);
        (void)serve(s, &a, false);
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
        service_wait(p, &s->room);
        pthread_mutex_unlock(&p->lock);
        gone = rpc_stream_is_cancelled(s->rpc);
        pthread_mutex_lock(&p->lock);
    }
    rv = s->failed != 0 ? s->failed : gone ? HEDGE_ECANCELED : 0;
    s->n_busy += rv == 0;
    pthread_mutex_unlock(&p->lock);
    return rv == 0 ? 0 : error_set(e, rv, "the replies cannot be sent");
}

static int enqueue(struct get_stream *s, const struct ask *a,
                   struct hedge_error *e)
{
    struct peer_service *p = s->service;
    bool more;
    int rv;

    pthread_mutex_lock(&p->lock);
    assert(s->n_asks < PEER_WINDOW);
    s->asks[(s->first_ask + s->n_asks++) % PEER_WINDOW] = *a;
    more = s->n_idle < s->n_asks && s->n_workers < WORKERS_MAX;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&p->lock);
    rv = more ? add_worker(s) : 0;
    return rv == 0 ? 0 : error_set(e, rv, "no thread to read blocks with");
}

static int receive_one(struct get_stream *s, struct hedge_error *e)
{
    unsigned char head[REPLY_HEAD_MAX];
    Hedge__V1__GetRequest *m;
    struct rpc_msg msg;
    struct ask a;
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
    m = len <= sizeof head
            ? pb_unpack(&hedge__v1__get_request__descriptor, head, len)
            : NULL;
    if (m == NULL) {
        return error_set(e, HEDGE_EPROTO, "the request cannot be read");
    }
    a.number = m->request;
    a.id.generation = m->generation;
    a.id.writer = m->writer;
    a.id.sequence = m->sequence;
    rv = service_check_incarnation(s->service, m->peer_incarnation, e);
    pb_free(m);
    rv = rv != 0 ? rv : wait_for_turn(s, e);
    rv = rv != 0 ? rv : serve(s, &a, true);
    return rv == HEDGE_EAGAIN ? enqueue(s, &a, e) : rv;
}

static void stream_end(struct get_stream *s, bool in_order)
{
    struct peer_service *p = s->service;
    bool last;

    pthread_mutex_lock(&p->lock);
    while (in_order && s->n_asks > 0 && s->failed == 0) {
        service_wait(p, &s->room);
    }
    s->ending = true;
    pthread_cond_broadcast(&s->work);
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
    pthread_cond_init(&s->work, &attr);
    pthread_cond_init(&s->room, &attr);
    pthread_condattr_destroy(&attr);
    do {
        rv = receive_one(s, e);
    } while (rv == 0);
    stream_end(s, rv == HEDGE_EEND);
    return rv;
}
