/* lock_relay.c - calls on their way between nodes: one stream from a node to
 * the leader, and on the leader one from each node that has something to ask.
 *
 * A stream's messages are sent by a thread of its own, since the loop must not
 * wait (lock_outbox.c). A peer that does not take its answers is not read from
 * any more; one that has too many of them waiting loses its stream, and asks
 * for all that is not answered on the next one. */
#include "cluster/locks/locks_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <stdio.h>
#include <string.h>

#define AGAIN_MS 50

struct sender {
    struct outbox *out;
    struct rpc_stream *stream;
};

static void *sender_main(void *arg)
{
    struct sender *s = arg;

    outbox_run(s->out, s->stream);
    return NULL;
}

/* --- to the leader ----------------------------------------------------------
 */

struct stream_news {
    struct letter letter;
    struct outbox *out;
    Hedge__V1__LockAnswer *answer;
};

static void on_up(struct hedge_node *n, struct letter *letter, bool closed)
{
    struct stream_news *news = container_of(letter, struct stream_news, letter);

    if (!closed) {
        n->locks->relay.out = news->out;
        route_changed(n->locks);
    }
    mem_free(news);
}

/* The stream's thread is done with the outbox. */
static void on_down(struct hedge_node *n, struct letter *letter, bool closed)
{
    struct stream_news *news = container_of(letter, struct stream_news, letter);
    struct locks *l = n->locks;

    if (!closed && l->relay.out == news->out) {
        l->relay.out = NULL;
        route_changed(l);
    }
    outbox_release(news->out);
    mem_free(news->out);
    mem_free(news);
}

static void on_reply(struct hedge_node *n, struct letter *letter, bool closed)
{
    struct stream_news *news = container_of(letter, struct stream_news, letter);

    if (!closed) {
        route_reply(n->locks, news->answer);
    }
    pb_free(news->answer);
    mem_free(news);
}

static int receive_reply(struct locks *l, struct rpc_stream *s)
{
    struct stream_news *news;
    Hedge__V1__LockAnswer *a;
    struct rpc_msg msg;
    int rv = rpc_stream_recv(s, RPC_NO_TIMEOUT, &msg, NULL);

    if (rv != 0) {
        return rv;
    }
    a = pb_from_msg_large(&hedge__v1__lock_answer__descriptor, &msg, NULL);
    news = a != NULL ? mem_calloc(1, sizeof *news) : NULL;
    if (news == NULL) {
        pb_free(a);
        return HEDGE_EPROTO; /* All is asked again on the next stream. */
    }
    news->answer = a;
    return locks_post(l, &news->letter, on_reply) ? 0 : HEDGE_ECLOSED;
}

/* One stream's life. */
static void converse(struct locks *l, struct rpc_stream *s)
{
    struct stream_news *up = mem_calloc(1, sizeof *up);
    struct stream_news *down = mem_calloc(1, sizeof *down);
    struct outbox *out = mem_calloc(1, sizeof *out);
    struct sender sender = {.out = out, .stream = s};
    pthread_t thread;

    if (out == NULL || up == NULL || down == NULL) {
        mem_free(out);
        mem_free(up);
        mem_free(down);
        return;
    }
    outbox_init(out);
    up->out = down->out = out;
    if (pthread_create(&thread, NULL, sender_main, &sender) == 0) {
        (void)locks_post(l, &up->letter, on_up);
        while (receive_reply(l, s) == 0) {
        }
        rpc_stream_cancel(s);
        outbox_close(out);
        pthread_join(thread, NULL);
    } else {
        mem_free(up);
    }
    (void)locks_post(l, &down->letter, on_down);
}

static void dial(struct locks *l, const char *target, uint64_t number)
{
    struct relay *r = &l->relay;
    struct kept_channel *c = node_channel(l->node, target);
    struct rpc_stream *s = NULL;
    bool wanted = false;

    if (c != NULL &&
        rpc_stream_open(kept_channel_rpc(c), "/hedge.v1.LocksRelay/Relay",
                        RPC_NO_TIMEOUT, &s) == 0) {
        pthread_mutex_lock(&r->lock);
        wanted = r->number == number && !r->closing;
        r->stream = wanted ? s : NULL;
        pthread_mutex_unlock(&r->lock);
        if (wanted) {
            converse(l, s);
        }
        pthread_mutex_lock(&r->lock);
        r->stream = NULL;
        pthread_mutex_unlock(&r->lock);
        rpc_stream_free(s);
    }
    if (c != NULL) {
        node_channel_put(l->node, c);
    }
}

static void pause_until_changed(struct relay *r, uint64_t number)
{
    uint64_t until = clock_mono_ns() + (uint64_t)AGAIN_MS * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                          .tv_nsec = (long)(until % 1000000000u)};

    while (!r->closing && r->number == number &&
           pthread_cond_timedwait(&r->wake, &r->lock, &ts) == 0) {
    }
}

static void *relay_main(void *arg)
{
    struct locks *l = arg;
    struct relay *r = &l->relay;
    char target[TARGET_SIZE];
    uint64_t number;

    pthread_mutex_lock(&r->lock);
    while (!r->closing) {
        if (r->target[0] == '\0' || !r->connect) {
            pthread_cond_wait(&r->wake, &r->lock);
            continue;
        }
        (void)snprintf(target, sizeof target, "%s", r->target);
        number = r->number;
        pthread_mutex_unlock(&r->lock);
        dial(l, target, number);
        pthread_mutex_lock(&r->lock);
        pause_until_changed(r, number);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

void relay_aim(struct locks *l, const char *address)
{
    struct relay *r = &l->relay;
    char target[TARGET_SIZE] = "";

    if (address[0] != '\0') {
        (void)snprintf(target, sizeof target, "ipv4:%s", address);
    }
    pthread_mutex_lock(&r->lock);
    if (strcmp(r->target, target) != 0) {
        memcpy(r->target, target, sizeof target);
        r->number++;
        r->connect = false;
        l->relay.out = NULL; /* Nothing more goes there. */
        if (r->stream != NULL) {
            rpc_stream_cancel(r->stream);
        }
        pthread_cond_signal(&r->wake);
    }
    pthread_mutex_unlock(&r->lock);
}

void relay_connect(struct locks *l)
{
    struct relay *r = &l->relay;

    pthread_mutex_lock(&r->lock);
    if (!r->connect) {
        r->connect = true;
        pthread_cond_signal(&r->wake);
    }
    pthread_mutex_unlock(&r->lock);
}

int relay_start(struct locks *l)
{
    struct relay *r = &l->relay;
    pthread_condattr_t attr;

    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&r->thread, NULL, relay_main, l) != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(r->thread, "hedge-relay");
    r->has_thread = true;
    return 0;
}

void relay_stop(struct locks *l)
{
    struct relay *r = &l->relay;

    if (!r->has_thread) {
        return;
    }
    pthread_mutex_lock(&r->lock);
    r->closing = true;
    if (r->stream != NULL) {
        rpc_stream_cancel(r->stream);
    }
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    r->has_thread = false;
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->lock);
}

/* --- from other nodes -------------------------------------------------------
 */

static void peer_unref(struct relay_peer *p)
{
    if (atomic_fetch_sub(&p->refs, 1) == 1) {
        outbox_release(&p->out);
        mem_free(p);
    }
}

static void free_relayed(struct locks *l, struct relayed *r)
{
    if (r->counted) {
        atomic_fetch_sub(&l->n_relayed, 1);
    }
    list_remove(&r->call.link);
    list_remove(&r->link);
    mem_free(r->call.held);
    mem_free(r->call.list);
    peer_unref(r->peer);
    mem_free(r);
}

/* Without an answer the node has to ask again, on another stream. */
static void answer(struct relay_peer *p, const struct semaphore_call *c,
                   uint64_t id, bool queued)
{
    if (lock_wire_answer(c, id, queued, &p->out) != 0) {
        outbox_break(&p->out);
    }
}

void relay_answered(struct locks *l, struct relayed *r)
{
    answer(r->peer, &r->call, r->id, false);
    free_relayed(l, r);
}

struct relayed_letter {
    struct letter letter;
    struct relayed *call; /* NULL: the peer has gone. */
    struct relay_peer *peer;
};

static struct relayed *find_relayed(struct relay_peer *p, uint64_t id)
{
    struct list *item;

    for (item = p->calls.prev; item != &p->calls; item = item->prev) {
        struct relayed *r = container_of(item, struct relayed, link);
        if (r->id == id) {
            return r;
        }
    }
    return NULL;
}

static bool waits(const struct semaphore_call *c)
{
    return c->op == SEMAPHORE_WATCH ||
           (c->op == SEMAPHORE_ACQUIRE && c->wait_ms > 0);
}

/* It may be gone then. */
static void step_relayed(struct locks *l, struct relayed *r)
{
    size_t max = waits(&r->call) ? RELAYED_WAITING_MAX : RELAYED_MAX;

    if (atomic_load(&l->n_relayed) >= max) {
        r->call.status = HEDGE_EEXHAUSTED;
        (void)snprintf(r->call.text, sizeof r->call.text,
                       "the leader has %zu calls of other nodes waiting", max);
        relay_answered(l, r);
        return;
    }
    r->counted = true;
    atomic_fetch_add(&l->n_relayed, 1);
    locks_step_call(l, &r->call);
}

static void on_relayed(struct hedge_node *n, struct letter *letter, bool closed)
{
    struct relayed_letter *m =
        container_of(letter, struct relayed_letter, letter);
    struct relayed *r = m->call;
    struct relay_peer *p = m->peer;
    uint64_t id = r->id;

    mem_free(m);
    if (closed) {
        outbox_taken(&p->out);
        free_relayed(n->locks, r);
        return;
    }
    atomic_fetch_add(&p->refs, 1);
    list_push(&p->calls, &r->link);
    step_relayed(n->locks, r);
    r = find_relayed(p, id); /* It may have been answered. */
    if (r != NULL && r->call.queued) {
        answer(p, &r->call, id, true);
    }
    outbox_taken(&p->out);
    peer_unref(p);
}

/* What it has asked stays in line; nobody is told for now. */
static void on_peer_gone(struct hedge_node *n, struct letter *letter,
                         bool closed)
{
    struct relayed_letter *m =
        container_of(letter, struct relayed_letter, letter);

    (void)closed;
    while (!list_empty(&m->peer->calls)) {
        free_relayed(n->locks,
                     container_of(m->peer->calls.next, struct relayed, link));
    }
    peer_unref(m->peer);
    mem_free(m);
}

static int receive_call(struct locks *l, struct relay_peer *p,
                        struct rpc_stream *s, struct hedge_error *e)
{
    struct relayed_letter *letter;
    Hedge__V1__LockCall *m;
    struct relayed *r;
    struct rpc_msg msg;
    int rv = outbox_await(&p->out);

    rv = rv != 0 ? error_set(e, rv, "the answers were not taken")
                 : rpc_stream_recv(s, RPC_NO_TIMEOUT, &msg, e);
    if (rv != 0) {
        return rv;
    }
    m = pb_from_msg(&hedge__v1__lock_call__descriptor, &msg, e);
    if (m == NULL) {
        return HEDGE_EPROTO;
    }
    letter = mem_calloc(1, sizeof *letter);
    r = mem_calloc(1, sizeof *r);
    rv = letter == NULL || r == NULL      ? HEDGE_ENOMEM
         : lock_wire_to_call(m, &r->call) ? 0
                                          : HEDGE_EPROTO;
    if (rv != 0) {
        mem_free(letter);
        mem_free(r);
        pb_free(m);
        return error_set(e, rv, "not a LockCall, or no memory for it");
    }
    r->id = m->id;
    r->call.kind = LOCK_KIND_RELAYED;
    r->peer = p;
    list_init(&r->link);
    list_init(&r->call.link);
    atomic_fetch_add(&p->refs, 1);
    letter->call = r;
    letter->peer = p;
    pb_free(m);
    outbox_expect(&p->out);
    return locks_post(l, &letter->letter, on_relayed)
               ? 0
               : error_set(e, HEDGE_EUNAVAILABLE, "the node stops");
}

int serve_relay(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    struct relay_peer *p = mem_calloc(1, sizeof *p);
    struct relayed_letter *gone = mem_calloc(1, sizeof *gone);
    struct sender sender = {.stream = s};
    pthread_t thread;
    int rv = 0;

    if (p == NULL || gone == NULL) {
        mem_free(p);
        mem_free(gone);
        return error_set(e, HEDGE_ENOMEM, "no memory for a relay");
    }
    atomic_init(&p->refs, 1);
    outbox_init(&p->out);
    list_init(&p->calls);
    sender.out = &p->out;
    gone->peer = p;
    if (pthread_create(&thread, NULL, sender_main, &sender) != 0) {
        peer_unref(p);
        mem_free(gone);
        return error_set(e, HEDGE_ENOMEM, "no thread for a relay");
    }
    while (rv == 0) {
        rv = receive_call(n->locks, p, s, e);
    }
    outbox_close(&p->out);
    pthread_join(thread, NULL);
    (void)locks_post(n->locks, &gone->letter, on_peer_gone);
    return rv;
}
