/* serve_streams.c - the served ends of streams: hedge.v1.MessagePeer/Stream
 * runs a handler of this node; Messages/StreamLeader and StreamBroadcast pass
 * on what a client sends to where the handlers are, and back. */
#include "cluster/messages/msg_stream.h"
#include "cluster/node_internal.h"
#include "proto/messages.pb-c.h"
#include "store/base/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define OPEN_MS 15000
#define STEP_MS 100
#define SEND_MS 60000 /* To somebody who does not read. */

/* The item with `open`; to be freed. */
static Hedge__V1__StreamItem *receive_open(struct rpc_stream *s, int *rv,
                                           struct hedge_error *e)
{
    Hedge__V1__StreamItem *item;
    struct rpc_msg msg;

    *rv = rpc_stream_recv(s, OPEN_MS, &msg, e);
    if (*rv != 0) {
        *rv = *rv == HEDGE_EEND
                  ? error_set(e, HEDGE_EPROTO, "a stream without an item")
                  : *rv;
        return NULL;
    }
    item = pb_from_msg_large(&hedge__v1__stream_item__descriptor, &msg, e);
    if (item == NULL || item->open == NULL ||
        item->open->kind >= HANDLER_KINDS ||
        strlen(item->open->from) >= MEMBER_ID_SIZE) {
        *rv = error_set(e, HEDGE_EPROTO,
                        "the first item of a stream has to open it");
        pb_free(item);
        return NULL;
    }
    return item;
}

int serve_stream(struct rpc_stream *rpc, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    struct hedge_stream *s;
    int rv;
    Hedge__V1__StreamItem *item = receive_open(rpc, &rv, e);

    if (item == NULL) {
        return rv;
    }
    rv = msg_stream_serve(n, rpc, item->open->from, &s);
    if (rv == 0) {
        rv = handlers_run_stream(n->handlers,
                                 (enum handler_kind)item->open->kind, s, e);
        msg_stream_free(s);
    }
    pb_free(item);
    return rv;
}

/* --- passing on -------------------------------------------------------------
 */

struct relay {
    struct hedge_node *n;
    struct rpc_stream *client;
    struct hedge_stream *near, *far;
    bool one; /* There is one far end: its failure is the stream's. */
    pthread_t thread;
    atomic_bool over;
    int rv; /* How the far end has ended. */
    struct hedge_error e;
};

static bool has_gone(void *ctx)
{
    return rpc_stream_is_cancelled(ctx);
}

/* From the handlers to the client. */
static void *relay_back(void *arg)
{
    struct relay *r = arg;
    int rv = 0;

    while (rv == 0) {
        struct hedge_message m;
        struct hedge_error e;

        rv = hedge_stream_recv(r->far, STEP_MS, &m, &e);
        if (rv == HEDGE_ETIMEDOUT && m.from[0] == '\0') {
            rv = rpc_stream_is_cancelled(r->client) ? HEDGE_ECANCELED : 0;
        } else if (rv == 0) {
            rv = msg_stream_pass(r->near, m.from, &m, SEND_MS);
        } else if (rv != HEDGE_EEND && !r->one) {
            rv =
                msg_stream_send_error(r->near, m.from, e.code, e.text, SEND_MS);
        } else {
            r->e = e;
        }
    }
    r->rv = rv == HEDGE_EEND ? 0 : rv;
    if (r->rv != 0 && r->e.code != r->rv) {
        (void)error_set(&r->e, r->rv, "%s", hedge_strerror(r->rv));
    }
    atomic_store(&r->over, true);
    return NULL;
}

/* As long as the client is there and the far end is not over. */
static int relay_one(struct relay *r, const struct hedge_message *m)
{
    int rv;

    do {
        rv = hedge_stream_send(r->far, m, STEP_MS);
    } while (rv == HEDGE_ETIMEDOUT && !atomic_load(&r->over) &&
             !rpc_stream_is_cancelled(r->client));
    return rv;
}

/* From the client to the handlers. */
static int relay_forth(struct relay *r, struct hedge_error *e)
{
    struct hedge_message m;
    int rv = 0, sent = 0;

    while (rv == 0 && sent == 0 && !atomic_load(&r->over)) {
        rv = hedge_stream_recv(r->near, STEP_MS, &m, e);
        if (rv == 0) {
            sent = relay_one(r, &m);
        } else if (rv == HEDGE_ETIMEDOUT &&
                   !rpc_stream_is_cancelled(r->client)) {
            rv = 0;
        }
    }
    if (rv == HEDGE_EEND) {
        (void)hedge_stream_close_send(r->far);
        return 0;
    }
    if (rv == 0 && rpc_stream_is_cancelled(r->client)) {
        return error_set(e, HEDGE_ECANCELED, "the client has gone");
    }
    /* Where the far end does not take any more, receiving from it says why. */
    return rv;
}

static int relay_run(struct relay *r, struct hedge_error *e)
{
    int rv;

    if (pthread_create(&r->thread, NULL, relay_back, r) != 0) {
        return error_set(e, HEDGE_EEXHAUSTED, "no thread for a stream");
    }
    (void)pthread_setname_np(r->thread, "hedge-pass");
    rv = relay_forth(r, e);
    if (rv != 0) {
        msg_stream_cancel(r->far);
    }
    pthread_join(r->thread, NULL);
    if (rv == 0 && r->rv != 0) {
        rv = error_set(e, r->rv, "%s", r->e.text);
    }
    return rv;
}

static int pass_on(struct hedge_node *n, struct rpc_stream *s,
                   enum handler_kind kind, struct hedge_error *e)
{
    struct relay r = {.n = n, .client = s, .one = kind == HANDLER_LEADER};
    uint64_t ms;
    int rv;
    Hedge__V1__StreamItem *item = receive_open(s, &rv, e);

    if (item == NULL) {
        return rv;
    }
    ms = item->open->timeout_ms != 0 ? item->open->timeout_ms : OPEN_MS;
    rv = r.one ? msg_stream_to_leader(n, "", ms, has_gone, s, &r.far, e)
               : msg_stream_broadcast(n, "", item->open->skip_self, ms, &r.far,
                                      e);
    pb_free(item);
    rv = rv != 0 ? rv : msg_stream_serve(n, s, "", &r.near);
    if (rv == 0) {
        rv = relay_run(&r, e);
    }
    msg_stream_free(r.near);
    msg_stream_free(r.far);
    return rv;
}

static int serve_passing(struct rpc_stream *s, struct hedge_node *n,
                         enum handler_kind kind, struct hedge_error *e)
{
    int rv = serve_messages_enter(s, &n->relaying, "streams", e);

    if (rv == 0) {
        rv = pass_on(n, s, kind, e);
        serve_messages_leave(&n->relaying);
    }
    return rv;
}

int serve_stream_leader(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    return serve_passing(s, ctx, HANDLER_LEADER, e);
}

int serve_stream_broadcast(struct rpc_stream *s, void *ctx,
                           struct hedge_error *e)
{
    return serve_passing(s, ctx, HANDLER_BROADCAST, e);
}
