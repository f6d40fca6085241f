/* serve_store.c - service hedge.v1.Store but for its streams and lists: looking
 * at and removing stores, for clients and for other nodes. */
#include "cluster/node_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <string.h>

#define CALL_MS 10000
#define STREAMS_MIN 4

unsigned serve_streams_max(const struct hedge_node *n, unsigned part,
                           unsigned blocks)
{
    uint64_t max = n->o.message_limit / part / (n->o.block_size * blocks);

    return max < STREAMS_MIN  ? STREAMS_MIN
           : max > UINT32_MAX ? UINT32_MAX
                              : (unsigned)max;
}

int serve_enter(struct rpc_stream *s, atomic_uint *count, unsigned max,
                const char *what, struct hedge_error *e)
{
    uint64_t until = clock_mono_ms() + SERVE_BUSY_MS;

    while (atomic_fetch_add(count, 1) >= max) {
        atomic_fetch_sub(count, 1);
        if (clock_mono_ms() >= until || rpc_stream_is_cancelled(s)) {
            return error_set(e, HEDGE_EBUSY,
                             "%u %s at once are as many as the message limit "
                             "allows; try again, or raise --message-limit",
                             max, what);
        }
        clock_sleep_ms(SERVE_RETRY_MS);
    }
    return 0;
}

static int reply_info(struct hedge_node *n, struct rpc_call *call,
                      struct sos_store *store)
{
    Hedge__V1__StoreInfo *m = NULL;
    struct sos_info info;
    int rv = sos_store_info(store, &info);

    if (rv == 0) {
        rv = pb_store_info(&info, n->id, &m);
        mem_free(info.uses);
    }
    if (rv == 0) {
        pb_reply(call, &m->base);
    }
    pb_store_info_release(m);
    return rv;
}

static int forward_stat(struct hedge_node *n, struct rpc_call *call,
                        Hedge__V1__StoreRequest *m, const struct store_place *p,
                        struct hedge_error *e)
{
    struct kept_channel *c = node_channel(n, p->target);
    Hedge__V1__StoreInfo *info;
    void *reply;
    int rv;

    if (c == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a channel");
    }
    rv = pb_call(kept_channel_rpc(c), "/hedge.v1.Store/Stat", &m->base,
                 &hedge__v1__store_info__descriptor, CALL_MS, &reply, e);
    if (rv == 0) {
        info = reply;
        pb_reply(call, &info->base);
    }
    pb_free(reply);
    node_channel_put(n, c);
    return rv;
}

/* A call that has to wait for other nodes, on its way to the call pool. */
struct far_call {
    struct work work;
    struct hedge_node *node;
    struct rpc_call *call;
    Hedge__V1__StoreRequest *m;
};

/* Takes `m`. */
static void call_far(struct hedge_node *n, struct rpc_call *call,
                     Hedge__V1__StoreRequest *m, work_fn fn)
{
    struct far_call *f = mem_calloc(1, sizeof *f);

    if (f != NULL) {
        *f = (struct far_call){.node = n, .call = call, .m = m};
    }
    if (f == NULL || pool_submit(n->call_pool, &f->work, fn) != 0) {
        rpc_fail(call, HEDGE_EUNAVAILABLE, "the node cannot take more calls");
        pb_free(m);
        mem_free(f);
    }
}

static void stat_far(struct work *work)
{
    struct far_call *f = container_of(work, struct far_call, work);
    struct hedge_error e = {0};
    struct store_place p;
    int rv = stores_find(f->node, f->m->name, CALL_MS, &p, &e);

    if (rv == 0 && p.local != NULL) {
        rv = reply_info(f->node, f->call, p.local);
        sos_store_unref(p.local);
    } else if (rv == 0) {
        rv = forward_stat(f->node, f->call, f->m, &p, &e);
    }
    if (rv != 0) {
        rpc_fail(f->call, rv, e.text);
    }
    pb_free(f->m);
    mem_free(f);
}

void serve_stat(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__StoreRequest *m =
        pb_unpack(&hedge__v1__store_request__descriptor, req, len);
    struct hedge_error e = {0};
    struct store_place p;
    int rv;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a StoreRequest");
    } else if (stores_find_here(n, m->name, &p, &e) == 0) {
        rv = reply_info(n, call, p.local);
        if (rv != 0) {
            rpc_fail(call, rv, "no memory for the answer");
        }
        sos_store_unref(p.local);
        pb_free(m);
    } else {
        call_far(n, call, m, stat_far);
    }
}

static void remove_far(struct work *work)
{
    struct far_call *f = container_of(work, struct far_call, work);
    Hedge__V1__Empty reply = HEDGE__V1__EMPTY__INIT;
    struct hedge_error e = {0};
    int rv = stores_remove(f->node, f->m->name, CALL_MS, &e);

    if (rv == 0) {
        pb_reply(f->call, &reply.base);
    } else {
        rpc_fail(f->call, rv, e.text);
    }
    pb_free(f->m);
    mem_free(f);
}

void serve_remove(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__StoreRequest *m =
        pb_unpack(&hedge__v1__store_request__descriptor, req, len);
    Hedge__V1__Empty reply = HEDGE__V1__EMPTY__INIT;
    struct hedge_error e = {0};
    struct store_place p;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a StoreRequest");
    } else if (stores_find_here(n, m->name, &p, &e) == 0) {
        stores_remove_here(n, p.local);
        pb_reply(call, &reply.base);
        pb_free(m);
    } else {
        call_far(n, call, m, remove_far);
    }
}
