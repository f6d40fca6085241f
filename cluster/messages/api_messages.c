/* api_messages.c - the public calls that send a message and wait for replies.
 */
#include "cluster/messages/msg_exchange.h"
#include "cluster/node_internal.h"

#include "store/base/mem.h"

#include <string.h>

HEDGE_API int hedge_send(struct hedge_node *node, const void *data, size_t len,
                         uint64_t timeout_ms, struct hedge_reply **reply,
                         struct hedge_error *e)
{
    return hedge_send_to_leader(node, data, len, 0, timeout_ms, reply, e);
}

HEDGE_API int hedge_send_to_leader(struct hedge_node *node, const void *data,
                                   size_t len, int retries, uint64_t timeout_ms,
                                   struct hedge_reply **reply,
                                   struct hedge_error *e)
{
    struct exchange_options o = {.data = data,
                                 .len = len,
                                 .from = node->id,
                                 .timeout_ms = timeout_ms,
                                 .retries = retries};

    return exchange_send(node, &o, reply, e);
}

/* --- broadcast --------------------------------------------------------------
 */

struct gathering {
    const struct hedge_broadcast_options *o;
    struct hedge_reply **got;
    size_t n, cap;
    bool failed;
};

static bool make_room(struct gathering *g)
{
    size_t cap = g->cap == 0 ? 8 : g->cap * 2;
    struct hedge_reply **more;

    if (g->n < g->cap) {
        return true;
    }
    more = mem_realloc(g->got, cap * sizeof(struct hedge_reply *));
    if (more == NULL) {
        return false;
    }
    g->got = more;
    g->cap = cap;
    return true;
}

static void on_reply(void *ctx, struct hedge_reply *r)
{
    struct gathering *g = ctx;

    if (r == NULL) {
        g->failed = true;
    } else if (g->o->on_reply != NULL) {
        g->o->on_reply(g->o->ctx, r);
        hedge_reply_free(r);
    } else if (make_room(g)) {
        g->got[g->n++] = r;
    } else {
        g->failed = true;
        hedge_reply_free(r);
    }
}

/* The list owns the replies from here on. */
static struct hedge_replies *list_of(struct gathering *g)
{
    struct hedge_replies *all = msg_replies_new(g->n);

    for (size_t i = 0; i < g->n; i++) {
        if (all != NULL) {
            msg_replies_set(all, i, g->got[i]);
        } else {
            hedge_reply_free(g->got[i]);
        }
    }
    mem_free(g->got);
    return all;
}

HEDGE_API int hedge_broadcast(struct hedge_node *node, const void *data,
                              size_t len,
                              const struct hedge_broadcast_options *options,
                              uint64_t timeout_ms, struct hedge_replies **out,
                              struct hedge_error *e)
{
    static const struct hedge_broadcast_options defaults;
    const struct hedge_broadcast_options *b =
        options != NULL ? options : &defaults;
    struct gathering g = {.o = b};
    struct exchange_options o = {.data = data,
                                 .len = len,
                                 .from = node->id,
                                 .timeout_ms = timeout_ms,
                                 .skip_self = b->skip_self,
                                 .only = b->only,
                                 .n_only = b->n_only,
                                 .on_reply = on_reply,
                                 .ctx = &g};
    struct hedge_replies *all;
    int rv;

    if (out != NULL) {
        *out = NULL;
    }
    if ((out == NULL) != (b->on_reply != NULL)) {
        return error_set(e, HEDGE_EINVAL,
                         "a broadcast wants either on_reply or a place for "
                         "the list of replies");
    }
    rv = exchange_broadcast(node, &o, e);
    all = list_of(&g);
    if (rv == 0 && (g.failed || all == NULL)) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the replies");
    }
    if (rv != 0 || out == NULL) {
        hedge_replies_free(all);
        return rv;
    }
    *out = all;
    return 0;
}
