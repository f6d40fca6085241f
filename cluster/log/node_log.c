/* node_log.c - the log's place in a node: who leads, how puts get there, and
 * compaction. */
#include "cluster/log/kv.h"
#include "cluster/node_internal.h"
#include "proto/log.pb-c.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <stdio.h>
#include <string.h>

#define RETRY_MS 50
/* Between the steps of a compaction: who takes a mutex again at once mostly
 * gets it, and puts would wait for many steps. */
#define PAUSE_MS 2
/* What another machine's clock may be ahead of ours. */
#define SKEW_MS 60000u
#define CHUNK_BYTES ((size_t)1 << 20)
/* A request that is larger goes in pieces. */
#define UNARY_MAX (RPC_MESSAGE_MAX - ((size_t)64 << 10))
/* What the leader is given less than there is, so that its reasons get back. */
#define MARGIN_MS 100u

static bool leads(void *ctx, uint64_t *token)
{
    return hedge_has_lock(ctx, token);
}

/* Where the leader is; a channel to it. Does not wait for one. */
static int leader_channel(struct hedge_node *n, struct hedge_leader *out_leader,
                          struct kept_channel **out, struct hedge_error *e)
{
    char target[TARGET_SIZE];
    struct hedge_leader l;
    struct view *v;

    *out = NULL;
    memset(out_leader, 0, sizeof *out_leader);
    if (hedge_leader(n, &l) != 0 || strcmp(l.id, n->id) == 0) {
        return error_set(e, HEDGE_ENOLEADER,
                         "the group has no leader at present");
    }
    (void)snprintf(target, sizeof target, "ipv4:%s", l.grpc_address);
    v = node_view(n);
    for (size_t i = 0; v != NULL && i < v->n; i++) {
        if (strcmp(v->members[i].id, l.id) == 0) {
            node_target(n, &v->members[i], target);
        }
    }
    view_unref(v);
    *out_leader = l;
    *out = node_channel(n, target);
    return *out != NULL ? 0
                        : error_set(e, HEDGE_ENOMEM, "no memory for a channel");
}

/* --- forwarding -------------------------------------------------------------
 */

struct append_request {
    Hedge__V1__LogPutRequest m;
    Hedge__V1__LogPut *puts;
    Hedge__V1__LogPut **pointers;
};

static void *unconst(const void *p)
{
    return (void *)(uintptr_t)p;
}

static int request_init(struct append_request *r, struct engine_put *puts,
                        size_t n)
{
    hedge__v1__log_put_request__init(&r->m);
    r->puts = mem_alloc(n * sizeof *r->puts);
    r->pointers = mem_alloc(n * sizeof(Hedge__V1__LogPut *));
    if (r->puts == NULL || r->pointers == NULL) {
        mem_free(r->puts);
        mem_free(r->pointers);
        return HEDGE_ENOMEM;
    }
    r->m.n_puts = n;
    r->m.puts = r->pointers;
    r->m.leader_only = true;
    for (size_t i = 0; i < n; i++) {
        Hedge__V1__LogPut *p = r->pointers[i] = &r->puts[i];

        hedge__v1__log_put__init(p);
        p->key.data = unconst(puts[i].key);
        p->key.len = puts[i].key_len;
        p->value.data = unconst(puts[i].value);
        p->value.len = puts[i].value_len;
        p->no_append = (puts[i].flags & ENGINE_REPLACE) != 0;
        p->request.data = puts[i].request;
        p->request.len = ENGINE_REQUEST_SIZE;
    }
    return 0;
}

static void request_release(struct append_request *r)
{
    mem_free(r->puts);
    mem_free(r->pointers);
}

/* The encoded request in pieces over a stream; the reply in *msg. */
static int send_large(struct rpc_channel *c, const struct pb_buf *buf,
                      uint64_t timeout_ms, struct rpc_msg *msg,
                      struct hedge_error *e)
{
    uint64_t until = clock_mono_ms() + timeout_ms;
    struct rpc_stream *s;
    int rv = rpc_stream_open(c, "/hedge.v1.Log/PutLarge", timeout_ms, &s);

    if (rv != 0) {
        return error_set(e, rv, "cannot open a stream to the leader");
    }
    for (size_t at = 0; rv == 0 && at < buf->len; at += CHUNK_BYTES) {
        Hedge__V1__LogChunk chunk = HEDGE__V1__LOG_CHUNK__INIT;
        uint64_t now = clock_mono_ms();

        chunk.data.data = buf->data + at;
        chunk.data.len =
            buf->len - at < CHUNK_BYTES ? buf->len - at : CHUNK_BYTES;
        rv = pb_send(s, &chunk.base, until > now ? until - now : 0);
    }
    if (rv == 0) {
        (void)rpc_stream_close_send(s);
    }
    /* After a failure to send, receiving tells why. */
    rv = rpc_stream_recv(s, timeout_ms, msg, e);
    if (rv == HEDGE_EEND) {
        rv = error_set(e, HEDGE_EPROTO, "the leader gave no answer");
    }
    rpc_stream_free(s);
    return rv;
}

static int read_reply(struct rpc_msg *msg, struct engine_put *puts, size_t n,
                      struct hedge_error *e)
{
    Hedge__V1__LogPutReply *reply =
        pb_from_msg_large(&hedge__v1__log_put_reply__descriptor, msg, e);
    int rv = 0;

    if (reply == NULL) {
        return HEDGE_EPROTO;
    }
    if (reply->n_results != n) {
        rv = error_set(e, HEDGE_EPROTO, "the leader answered %zu of %zu puts",
                       reply->n_results, n);
    }
    for (size_t i = 0; rv == 0 && i < n; i++) {
        puts[i].revision = reply->results[i]->revision;
        puts[i].timestamp_ms = reply->results[i]->timestamp_ms;
        puts[i].repeated = reply->results[i]->repeated;
    }
    pb_free(reply);
    return rv;
}

static int forward(void *ctx, struct engine_put *puts, size_t n,
                   uint64_t timeout_ms, struct hedge_error *e)
{
    struct hedge_node *node = ctx;
    struct append_request r;
    struct kept_channel *c;
    struct hedge_leader l;
    struct rpc_msg msg;
    struct pb_buf buf;
    uint64_t from_ms = clock_mono_ms();
    int rv = leader_channel(node, &l, &c, e);

    if (rv != 0) {
        return rv;
    }
    if (request_init(&r, puts, n) != 0) {
        node_channel_put(node, c);
        return error_set(e, HEDGE_ENOMEM, "no memory for a request");
    }
    r.m.timeout_ms =
        timeout_ms / 2 > MARGIN_MS ? timeout_ms - MARGIN_MS : timeout_ms;
    rv = pb_pack(&r.m.base, &buf);
    request_release(&r);
    if (rv != 0) {
        node_channel_put(node, c);
        return error_set(e, rv, "no memory for a request");
    }
    if (buf.len <= UNARY_MAX) {
        rv = rpc_call(kept_channel_rpc(c), "/hedge.v1.Log/Put", buf.data,
                      buf.len, timeout_ms, &msg, e);
    } else {
        rv = send_large(kept_channel_rpc(c), &buf, timeout_ms, &msg, e);
    }
    mem_free(buf.data);
    node_channel_put(node, c);
    rv = rv == 0 ? read_reply(&msg, puts, n, e) : rv;
    if (rv == HEDGE_ETIMEDOUT && clock_mono_ms() >= from_ms + timeout_ms) {
        rv = error_set(e, rv, "the leader %s has not answered in time", l.id);
    }
    return rv;
}

/* --- compaction -------------------------------------------------------------
 */

static int compact_here(struct hedge_node *n, uint64_t token,
                        struct engine_compaction *c, uint64_t deadline_ms,
                        uint64_t *removed, struct hedge_error *e)
{
    int rv = 0;

    while (rv == 0 && !c->done) {
        uint64_t now = clock_mono_ms();

        if (now >= deadline_ms || n->closing) {
            return error_set(e, n->closing ? HEDGE_ECLOSED : HEDGE_ETIMEDOUT,
                             "the compaction has removed %llu versions and is "
                             "not done; begin it again",
                             (unsigned long long)*removed);
        }
        rv = engine_compact(&n->engine, token, n->id, c, deadline_ms - now, e);
        *removed += c->removed;
        if (!c->done) {
            clock_sleep_ms(PAUSE_MS);
        }
    }
    return rv;
}

static int compact_far(struct hedge_node *n, const struct engine_compaction *c,
                       uint64_t timeout_ms, uint64_t *removed,
                       struct hedge_error *e)
{
    Hedge__V1__LogCompactRequest m = HEDGE__V1__LOG_COMPACT_REQUEST__INIT;
    struct kept_channel *ch;
    struct hedge_leader l;
    void *reply = NULL;
    int rv = leader_channel(n, &l, &ch, e);

    if (rv != 0) {
        return rv;
    }
    m.before_revision = c->before_revision;
    m.before_ms = c->before_ms;
    m.keep = c->keep;
    m.leader_only = true;
    rv = pb_call(kept_channel_rpc(ch), "/hedge.v1.Log/Compact", &m.base,
                 &hedge__v1__log_compact_reply__descriptor, timeout_ms, &reply,
                 e);
    node_channel_put(n, ch);
    if (rv == 0) {
        *removed = ((Hedge__V1__LogCompactReply *)reply)->removed;
    }
    pb_free(reply);
    return rv;
}

int node_log_compact(struct hedge_node *n, uint64_t before_revision,
                     uint64_t before_ms, uint64_t keep, bool leader_only,
                     uint64_t timeout_ms, uint64_t *removed,
                     struct hedge_error *e)
{
    struct engine_compaction c = {.before_revision = before_revision,
                                  .before_ms = before_ms,
                                  .keep = keep > 0 ? keep : 1};
    uint64_t now = clock_mono_ms(), token;
    uint64_t deadline =
        timeout_ms < UINT32_MAX ? now + timeout_ms : now + UINT32_MAX;
    int rv;

    *removed = 0;
    if ((before_revision == 0) == (before_ms == 0)) {
        return error_set(e, HEDGE_EINVAL,
                         "a compaction is before a revision or before a time");
    }
    if (before_ms > clock_wall_ms() && before_ms - clock_wall_ms() > SKEW_MS) {
        return error_set(e, HEDGE_EINVAL,
                         "a compaction before a time of the future");
    }
    for (;;) {
        if (hedge_has_lock(n, &token)) {
            return compact_here(n, token, &c, deadline, removed, e);
        }
        if (leader_only) {
            return error_set(e, HEDGE_ENOTLEADER,
                             "this node is not the "
                             "leader");
        }
        now = clock_mono_ms();
        rv = now < deadline ? compact_far(n, &c, deadline - now, removed, e)
                            : error_set(e, HEDGE_ENOLEADER,
                                        "the group has no leader at present");
        if ((rv != HEDGE_ENOLEADER && rv != HEDGE_ENOTLEADER &&
             rv != HEDGE_EUNAVAILABLE) ||
            clock_mono_ms() >= deadline || n->closing) {
            return rv;
        }
        clock_sleep_ms(RETRY_MS);
    }
}

/* --- life -------------------------------------------------------------------
 */

int node_log_start(struct hedge_node *n, struct hedge_error *e)
{
    struct kv_options o = {.engine = &n->engine,
                           .id = n->id,
                           .budget_bytes = n->o.message_limit / 2,
                           .ctx = n,
                           .leads = leads,
                           .forward = forward};

    return kv_new(&o, &n->kv) == 0
               ? 0
               : error_set(e, HEDGE_ENOMEM, "cannot start the log's threads");
}
