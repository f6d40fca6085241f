/* One lane is one thread that sends, and during a session one that receives.
 * The lane's thread alone begins and ends sessions; others ask for the end by
 * is_broken and by cancelling the stream, which makes every call return. */
#include "cluster/peer/peer_internal.h"

#include "cluster/rpc/wire.h"
#include "store/base/mem.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define CONNECT_MS PEER_STALL_MS
#define BACKOFF_MS 100
#define BACKOFF_MAX_MS 2000
#define BACKOFF_LOST_MAX_MS 10000

#if defined(HEDGE_TSAN) || defined(__SANITIZE_ADDRESS__)
#define STACK ((size_t)4 << 20)
#else
#define STACK ((size_t)256 << 10)
#endif

void lane_init(struct lane *l, struct peer *p, const struct lane_kind *kind)
{
    l->peer = p;
    l->kind = kind;
    list_init(&l->queue);
    list_init(&l->flight);
    peer_cond_init(&l->wake);
}

void lane_release(struct lane *l)
{
    assert(list_empty(&l->queue) && list_empty(&l->flight));
    assert(l->stream == NULL && !l->thread.made);
    pthread_cond_destroy(&l->wake);
}

struct op *lane_find(struct lane *l, uint64_t number)
{
    struct list *i;

    list_foreach (i, &l->flight) {
        struct op *op = container_of(i, struct op, link);

        if (op->number == number) {
            return op;
        }
    }
    return NULL;
}

void lane_answered(struct lane *l, struct op *op)
{
    struct peer_tier *t = l->peer->tier;

    assert(l->n_flight > 0 && t->n_flight > 0);
    list_remove(&op->link);
    if (l->n_flight-- == l->kind->window) {
        pthread_cond_signal(&l->wake);
    }
    t->n_flight--;
    l->answered = true;
    l->failures = 0;
    l->progress_ms = peer_now_ms();
}

int lane_split(struct rpc_msg *m, unsigned char **head, size_t *head_len,
               bool *has_body, size_t *body_len, struct hedge_error *e)
{
    int rv = wire_split(m, head, head_len, has_body, body_len, e);

    return rv != 0 ? error_prefix(e, "a reply of the peer") : 0;
}

/* --- breaking --------------------------------------------------------------
 */

/* Lock held. The first reason is the one that is told. */
static void mark_broken(struct lane *l, const struct hedge_error *why)
{
    if (l->why.code == 0) {
        l->why = *why;
    }
    l->is_broken = true;
    pthread_cond_signal(&l->wake);
}

void lane_break(struct lane *l, int code, const char *text)
{
    struct peer_tier *t = l->peer->tier;
    struct rpc_channel *c = l->channel;
    struct rpc_stream *s = l->stream;
    struct hedge_error why;

    if (s == NULL) {
        return;
    }
    (void)error_set(&why, code, "%s", text);
    mark_broken(l, &why);
    l->pins++;
    pthread_mutex_unlock(&t->lock);
    rpc_channel_cut(c);
    rpc_stream_cancel(s);
    pthread_mutex_lock(&t->lock);
    l->pins--;
    pthread_cond_broadcast(&t->unpinned);
}

/* Lock held. The peer says nothing. Where it says that nobody is there, it has
 * ended. */
static void is_silent(struct lane *l)
{
    l->stalled = true;
    if (l->kind == &put_lane && l->peer->silent_until_ms == 0) {
        l->peer->silent_until_ms = peer_now_ms() + peer_put_silent_ms;
    }
}

void lane_check(struct lane *l, uint64_t now_ms)
{
    char text[64];

    if (l->stream == NULL || l->is_broken) {
        return;
    }
    if (l->peer->gone) {
        lane_break(l, HEDGE_ELOST, "another life of the node has begun");
    } else if (l->n_flight > 0 && now_ms > l->progress_ms &&
               now_ms - l->progress_ms >= l->kind->stall_ms) {
        is_silent(l);
        (void)snprintf(text, sizeof text, "no answer for %llu ms",
                       (unsigned long long)(now_ms - l->progress_ms));
        lane_break(l, HEDGE_EUNAVAILABLE, text);
    }
}

/* --- a session -------------------------------------------------------------
 */

static void *receive(void *arg)
{
    struct lane *l = arg;
    struct peer_tier *t = l->peer->tier;
    struct hedge_error e = {.code = 0};
    struct rpc_msg m;
    int rv;

    do {
        rv = rpc_stream_recv(l->stream, RPC_NO_TIMEOUT, &m, &e);
        if (rv == 0) {
            rv = l->kind->reply(l, &m, &e);
            rpc_msg_release(&m);
        }
    } while (rv == 0);
    if (e.code != rv) {
        (void)error_set(&e, rv, "%s", hedge_strerror(rv));
    }
    pthread_mutex_lock(&t->lock);
    mark_broken(l, &e);
    pthread_mutex_unlock(&t->lock);
    /* A sender that is blocked returns. */
    rpc_channel_cut(l->channel);
    rpc_stream_cancel(l->stream);
    return NULL;
}

static int start_receiver(struct lane *l, pthread_t *out)
{
    pthread_attr_t attr;
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_attr_init(&attr);
    (void)pthread_attr_setstacksize(&attr, STACK);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(out, &attr, receive, l);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (rc != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(*out, "hedge-peer-recv");
    return 0;
}

/* Without the lock. */
static int session_connect(const char *target, const char *path,
                           struct rpc_channel **c, struct rpc_stream **s,
                           struct hedge_error *e)
{
    int rv = rpc_channel_connect(target, CONNECT_MS, c, e);

    if (rv != 0) {
        return rv;
    }
    rv = rpc_stream_open(*c, path, RPC_NO_TIMEOUT, s);
    return rv == 0
               ? 0
               : error_set(e, rv, "no stream to it: %s", hedge_strerror(rv));
}

/* Lock held, let go in between. */
static int session_begin(struct lane *l, pthread_t *receiver)
{
    struct peer_tier *t = l->peer->tier;
    struct rpc_channel *c = NULL;
    struct rpc_stream *s = NULL;
    struct hedge_error e = {.code = 0};
    uint64_t start = peer_now_ms();
    char target[PEER_ID_MAX];
    int rv;

    (void)snprintf(target, sizeof target, "%s", l->peer->target);
    pthread_mutex_unlock(&t->lock);
    rv = session_connect(target, l->kind->path, &c, &s, &e);
    pthread_mutex_lock(&t->lock);
    l->session++;
    l->is_broken = l->answered = l->stalled = false;
    if (rv != 0 && peer_now_ms() - start >= CONNECT_MS) {
        is_silent(l);
    }
    error_clear(&l->why);
    l->progress_ms = peer_now_ms();
    l->channel = c;
    l->stream = s;
    if (rv == 0) {
        pthread_mutex_unlock(&t->lock);
        rv = start_receiver(l, receiver);
        pthread_mutex_lock(&t->lock);
    }
    if (rv != 0) {
        if (e.code == 0) {
            (void)error_set(&e, rv, "%s", hedge_strerror(rv));
        }
        mark_broken(l, &e);
    }
    return rv;
}

/* Lock held, let go in between. */
static void session_end(struct lane *l, const pthread_t *receiver)
{
    struct peer_tier *t = l->peer->tier;
    struct rpc_stream *s = l->stream;
    struct rpc_channel *c = l->channel;

    pthread_mutex_unlock(&t->lock);
    if (s != NULL) {
        rpc_channel_cut(c);
        rpc_stream_cancel(s);
    }
    if (receiver != NULL) {
        pthread_join(*receiver, NULL);
    }
    pthread_mutex_lock(&t->lock);
    while (l->pins > 0) {
        pthread_cond_wait(&t->unpinned, &t->lock);
    }
    l->stream = NULL;
    l->channel = NULL;
    pthread_mutex_unlock(&t->lock);
    rpc_stream_free(s);
    rpc_channel_free(c);
    pthread_mutex_lock(&t->lock);
}

/* Lock held, let go in between. Send the next of the queue. */
static void send_next(struct lane *l, bool first)
{
    struct peer_tier *t = l->peer->tier;
    struct op *op = container_of(list_pop(&l->queue), struct op, link);
    int rv;

    op->number = ++l->next_number;
    op->tries++;
    list_push(&l->flight, &op->link);
    if (l->n_flight++ == 0) {
        l->progress_ms = peer_now_ms();
    }
    t->n_flight++;
    peer_tier_kick(t);
    pthread_mutex_unlock(&t->lock);
    rv = l->kind->send(l, op, first);
    pthread_mutex_lock(&t->lock);
    if (rv != 0) {
        /* Why, the receiver learns; session_end() waits for it. */
        l->is_broken = true;
    }
}

/* Lock held, let go in between. Returns when the session is to end. */
static void session_run(struct lane *l)
{
    struct peer_tier *t = l->peer->tier;
    bool first = true;

    while (!l->is_broken && !t->closing && !l->peer->gone) {
        uint64_t idle_until = l->progress_ms + PEER_IDLE_MS;

        if (!list_empty(&l->queue) && l->n_flight < l->kind->window) {
            send_next(l, first);
            first = false;
        } else if (l->n_flight == 0 && peer_now_ms() >= idle_until) {
            break;
        } else {
            peer_cond_wait_until(&l->wake, &t->lock,
                                 peer_now_ms() + PEER_IDLE_MS);
        }
    }
}

static void back_off(struct lane *l)
{
    uint64_t max = l->peer->listed ? BACKOFF_MAX_MS : BACKOFF_LOST_MAX_MS;
    uint64_t wait = BACKOFF_MS;

    for (unsigned i = 0; i < l->failures && wait < max; i++) {
        wait *= 2;
    }
    l->failures++;
    l->backoff_until_ms = peer_now_ms() + wait;
}

/* Lock held. What there is to say that is more than what the stream said. */
static void why_broken(struct lane *l)
{
    struct peer_tier *t = l->peer->tier;

    if (t->closing) {
        (void)error_set(&l->why, HEDGE_ECANCELED, "this node stops");
    } else if (l->peer->gone) {
        (void)error_set(&l->why, HEDGE_ELOST,
                        "another life of the node has begun");
    }
    assert(l->why.code != 0);
}

void lane_hope(struct lane *l)
{
    l->failures = 0;
    l->backoff_until_ms = 0;
    pthread_cond_signal(&l->wake);
}

/* Lock held, let go in between. */
static void session(struct lane *l)
{
    struct peer_tier *t = l->peer->tier;
    pthread_t receiver;
    bool in_order;
    int rv = session_begin(l, &receiver);

    if (rv == 0) {
        session_run(l);
    }
    in_order = !l->is_broken && !t->closing && !l->peer->gone;
    session_end(l, rv == 0 ? &receiver : NULL);
    assert(l->n_flight <= t->n_flight);
    t->n_flight -= l->n_flight;
    l->n_flight = 0;
    if (in_order) {
        assert(list_empty(&l->flight));
        return;
    }
    if (l->why.code == HEDGE_ELOST) {
        peer_gone(l->peer);
    }
    if (!l->answered) {
        back_off(l);
    }
    why_broken(l);
    l->kind->broken(l, &l->why);
    assert(list_empty(&l->flight));
}

/* --- the lane's thread -----------------------------------------------------
 */

/* Lock held, let go in between. False: nothing to do for a long time. */
static bool wait_for_work(struct lane *l)
{
    struct peer_tier *t = l->peer->tier;
    uint64_t idle_until = peer_now_ms() + PEER_IDLE_MS;

    for (;;) {
        uint64_t now = peer_now_ms();
        uint64_t until = idle_until;

        if (t->closing || l->peer->gone) {
            return false;
        }
        if (!list_empty(&l->queue)) {
            until = l->backoff_until_ms;
        }
        if (now >= until) {
            return !list_empty(&l->queue);
        }
        peer_cond_wait_until(&l->wake, &t->lock, until);
    }
}

static void *lane_main(void *arg)
{
    struct lane *l = arg;
    struct peer_tier *t = l->peer->tier;

    pthread_mutex_lock(&t->lock);
    while (wait_for_work(l)) {
        session(l);
    }
    if (!list_empty(&l->queue)) {
        why_broken(l);
        l->kind->broken(l, &l->why);
    }
    peer_thread_end(t, &l->thread);
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

int lane_submit(struct lane *l, struct op *op)
{
    struct peer_tier *t = l->peer->tier;
    int rv = peer_thread_start(t, &l->thread, lane_main, l,
                               l->kind == &put_lane ? "hedge-peer-put"
                                                    : "hedge-peer-get");

    if (rv == 0) {
        list_push(&l->queue, &op->link);
        pthread_cond_signal(&l->wake);
    }
    return rv;
}
