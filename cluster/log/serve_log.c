/* serve_log.c - service hedge.v1.Log. */
#include "cluster/fields.h"
#include "cluster/log/kv.h"
#include "cluster/log/log_page.h"
#include "cluster/log/log_request.h"
#include "cluster/node_internal.h"
#include "proto/log.pb-c.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define DEFAULT_MS 15000u
#define PAGE_BYTES ((size_t)128 << 10)
#define PIECE_BYTES                                           \
    ((size_t)1 << 20) /* Of values that are larger than that. \
                       */
#define GET_SMALL_BYTES ((size_t)64 << 10) /* Without asking the budget. */
#define GET_WAIT_MS 5000u
#define GET_MAX_BYTES (RPC_MESSAGE_MAX - 64)
#define REQUEST_MAX (ENGINE_VALUE_MAX + ((size_t)1 << 20))
#define PAGE_RESERVED (2 * PAGE_BYTES)
/* For a large request to arrive: others wait for its part of the budget. */
#define LARGE_MS 60000u
enum { CHUNK_DATA = 1 }; /* LogChunk's field. */
#define FOLLOW_STEP_MS 200u
#define SEND_STEP_MS 1000u

static uint64_t deadline_of(uint64_t asked_ms, uint64_t left_ms)
{
    uint64_t ms = asked_ms != 0 ? asked_ms : DEFAULT_MS, now = clock_mono_ms();

    left_ms = rpc_usable_ms(left_ms);
    ms = ms < left_ms ? ms : left_ms;
    return ms < UINT64_MAX - now ? now + ms : UINT64_MAX;
}

/* --- put --------------------------------------------------------------------
 */

/* One allocation: the operation and its puts, which point into the request. */
struct put_call {
    struct kv_op op;
    struct rpc_call *call;
    struct engine_put puts[];
};

static int puts_of(const void *data, size_t len, const struct log_request *r,
                   struct engine_put *out, struct hedge_error *e)
{
    int rv = log_request_puts(data, len, r, out, e);

    for (size_t i = 0; rv == 0 && i < r->n_puts; i++) {
        rv = kv_check_put(&out[i], e);
        if (rv != 0 && r->n_puts > 1 && e != NULL) {
            (void)error_prefix(e, "put %zu", i);
        }
    }
    return rv;
}

static int pack_results(const struct engine_put *puts, size_t n,
                        struct pb_buf *out)
{
    Hedge__V1__LogPutReply reply = HEDGE__V1__LOG_PUT_REPLY__INIT;
    Hedge__V1__LogPutResult first, *first_p = &first, *results = &first;
    Hedge__V1__LogPutResult **pointers = &first_p;
    int rv = 0;

    if (n > 1) {
        results = mem_alloc(n * sizeof *results);
        pointers = mem_alloc(n * sizeof(Hedge__V1__LogPutResult *));
    }
    if (results == NULL || pointers == NULL) {
        rv = HEDGE_ENOMEM;
    }
    for (size_t i = 0; rv == 0 && i < n; i++) {
        pointers[i] = &results[i];
        hedge__v1__log_put_result__init(&results[i]);
        results[i].revision = puts[i].revision;
        results[i].timestamp_ms = puts[i].timestamp_ms;
        results[i].repeated = puts[i].repeated;
    }
    if (rv == 0) {
        reply.n_results = n;
        reply.results = pointers;
        rv = pb_pack(&reply.base, out);
    }
    if (n > 1) {
        mem_free(results);
        mem_free(pointers);
    }
    return rv;
}

static void on_put_done(struct kv_op *op, int status)
{
    struct put_call *p = container_of(op, struct put_call, op);
    struct pb_buf buf;

    if (status != 0) {
        rpc_fail(p->call, status, op->error.text);
    } else if (pack_results(op->puts, op->n, &buf) != 0) {
        rpc_fail(p->call, HEDGE_ENOMEM, "no memory for the answer");
    } else {
        rpc_reply(p->call, buf.data, buf.len);
        mem_free(buf.data);
    }
    mem_free(p);
}

void serve_log_put(struct rpc_call *call, void *ctx, const void *req,
                   size_t len)
{
    struct hedge_node *n = ctx;
    struct hedge_error e = {0};
    struct log_request r;
    struct put_call *p;
    int rv = log_request_parse(req, len, &r, &e);

    p = rv == 0 ? mem_calloc(1, sizeof *p + r.n_puts * sizeof p->puts[0])
                : NULL;
    if (p == NULL) {
        rpc_fail(call, rv != 0 ? rv : HEDGE_ENOMEM, e.text);
        return;
    }
    p->call = call;
    p->op.puts = p->puts;
    p->op.n = r.n_puts;
    p->op.flags = r.leader_only ? KV_LEADER_ONLY : 0;
    p->op.deadline_ms = deadline_of(r.timeout_ms, rpc_call_left_ms(call));
    p->op.done = on_put_done;
    rv = puts_of(req, len, &r, p->puts, &e);
    if (rv == 0) {
        rv = kv_submit(n->kv, &p->op, &e);
    }
    if (rv != 0) {
        rpc_fail(call, rv, e.text);
        mem_free(p);
    }
}

/* --- put, in pieces ---------------------------------------------------------
 */

struct pieces {
    unsigned char *data; /* REQUEST_MAX; only what is used takes memory. */
    size_t len;
};

/* The message's own bytes, where they belong; they are taken apart there. */
static int take_piece(struct pieces *p, struct rpc_msg *msg,
                      struct hedge_error *e)
{
    unsigned char *at = p->data + p->len;
    size_t left = rpc_msg_left(msg);
    struct field f, data = {.len = 0};
    struct fields all;
    int rv;

    if (left > REQUEST_MAX - p->len) {
        return error_set(e, HEDGE_ETOOBIG,
                         "the request is over the limit of %zu bytes",
                         REQUEST_MAX - FIELD_HEAD_MAX);
    }
    rpc_msg_read(msg, at, left);
    all = fields_of(at, left);
    while ((rv = fields_next(&all, &f)) == 0) {
        if (field_is(&f, CHUNK_DATA)) {
            data = f;
        }
    }
    if (rv != HEDGE_EEND) {
        return error_set(e, HEDGE_EPROTO, "%zu bytes that are no LogChunk",
                         left);
    }
    if (data.len > 0) {
        memmove(at, data.data, data.len);
        p->len += data.len;
    }
    return 0;
}

static int add_piece(struct pieces *p, struct rpc_msg *msg,
                     struct hedge_error *e)
{
    int rv = take_piece(p, msg, e);

    rpc_msg_release(msg);
    return rv;
}

static int run_put(struct hedge_node *n, const struct pieces *p,
                   const struct log_request *r, uint64_t deadline_ms,
                   struct engine_put *puts, struct hedge_error *e)
{
    uint64_t now = clock_mono_ms();
    int rv = puts_of(p->data, p->len, r, puts, e);

    return rv == 0
               ? kv_put(n->kv, puts, r->n_puts,
                        KV_RESERVED | (r->leader_only ? KV_LEADER_ONLY : 0u),
                        deadline_ms > now ? deadline_ms - now : 1, e)
               : rv;
}

static int finish_large(struct hedge_node *n, struct rpc_stream *s,
                        const struct pieces *p, struct hedge_error *e)
{
    struct engine_put *puts;
    struct rpc_out out = {0};
    struct log_request r;
    struct pb_buf buf;
    int rv = log_request_parse(p->data, p->len, &r, e);

    puts = rv == 0 ? mem_calloc(r.n_puts, sizeof *puts) : NULL;
    if (rv == 0 && puts == NULL) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the puts");
    }
    if (rv == 0) {
        rv = run_put(n, p, &r, deadline_of(r.timeout_ms, rpc_stream_left_ms(s)),
                     puts, e);
    }
    if (rv == 0) {
        rv = pack_results(puts, r.n_puts, &buf);
    }
    if (rv == 0) {
        out.head = buf.data;
        out.head_len = buf.len;
        rv = rpc_stream_send(s, &out, SEND_STEP_MS);
        mem_free(buf.data);
    }
    mem_free(puts);
    return rv;
}

int serve_log_put_large(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    struct pieces p = {.data = NULL};
    struct rpc_msg msg;
    int rv = kv_reserve(n->kv, REQUEST_MAX, DEFAULT_MS / 3, e);
    uint64_t until_ms = clock_mono_ms() + LARGE_MS;

    if (rv != 0) {
        return rv;
    }
    p.data = mem_alloc(REQUEST_MAX);
    if (p.data == NULL) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the request");
    }
    while (rv == 0) {
        uint64_t now = clock_mono_ms();
        uint64_t left = until_ms > now ? until_ms - now : 0;

        rv = rpc_stream_recv(s, left < DEFAULT_MS ? left : DEFAULT_MS, &msg, e);
        if (rv == 0) {
            rv = add_piece(&p, &msg, e);
        }
    }
    if (rv == HEDGE_EEND) {
        rv = finish_large(n, s, &p, e);
    }
    mem_free(p.data);
    kv_release(n->kv, REQUEST_MAX);
    return rv;
}

/* --- get --------------------------------------------------------------------
 */

static int check_get(const Hedge__V1__LogGetRequest *m, struct hedge_error *e)
{
    int rv = kv_check_key(m->key.data, m->key.len, e);

    if (rv == 0 && (m->limit < HEDGE_GET_OLDEST || m->limit > INT32_MAX)) {
        rv =
            error_set(e, HEDGE_EINVAL, "a limit of %lld: -2 to %d are possible",
                      (long long)m->limit, INT32_MAX);
    }
    if (rv == 0 && m->at_time_ms == UINT64_MAX) {
        rv = error_set(e, HEDGE_EINVAL, "a time out of range");
    }
    return rv;
}

static void get_query(const Hedge__V1__LogGetRequest *m, struct engine_query *q)
{
    *q = (struct engine_query){.key = m->key.data,
                               .key_len = m->key.len,
                               .newest = m->limit != HEDGE_GET_OLDEST,
                               .at_revision = m->at_revision,
                               .until_ms =
                                   m->at_time_ms != 0 ? m->at_time_ms + 1 : 0};
    q->limit = m->limit > 0                ? (uint64_t)m->limit
               : m->limit == HEDGE_GET_ALL ? 0
                                           : 1;
}

/* Between two looks at many versions that are not in the answer. */
static int look_on(struct hedge_node *n, struct rpc_call *call,
                   uint64_t deadline_ms, struct hedge_error *e)
{
    (void)rpc_lend_thread();
    if (n->closing) {
        return error_set(e, HEDGE_EUNAVAILABLE, "the node stops");
    }
    if (rpc_call_is_cancelled(call)) {
        return error_set(e, HEDGE_ECANCELED, "the caller has gone");
    }
    return clock_mono_ms() < deadline_ms
               ? 0
               : error_set(e, HEDGE_ETIMEDOUT,
                           "the time was up before all versions of this key "
                           "were looked at: many are hidden");
}

/* All that was asked for, in a page; *fits: it has room for it. */
static int get_page(struct hedge_node *n, struct rpc_call *call,
                    const Hedge__V1__LogGetRequest *m, struct log_encoder *page,
                    bool *fits, struct hedge_error *e)
{
    uint64_t deadline_ms = deadline_of(UINT64_MAX, rpc_call_left_ms(call));
    struct engine_query q;
    bool more = true;
    int rv = 0;

    if (m->limit == HEDGE_GET_LATEST && m->at_revision == 0 &&
        m->at_time_ms == 0) {
        rv = engine_latest(&n->engine, m->key.data, m->key.len,
                           log_encode_entry, page, e);
        more = false;
    } else {
        get_query(m, &q);
    }
    while (rv == 0 && more && !page->full && page->wants == 0) {
        rv = engine_scan(&n->engine, &q, log_encode_entry, page, &more, e);
        if (rv == 0 && page->failed) {
            break;
        }
        if (rv == 0 && more && !page->full && page->wants == 0) {
            rv = look_on(n, call, deadline_ms, e);
        }
    }
    *fits = !page->full && page->wants == 0;
    if (rv == 0 && page->failed) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the answer");
    } else if (rv == HEDGE_ENOTFOUND || (rv == 0 && *fits && page->n == 0)) {
        rv = error_set(e, HEDGE_ENOTFOUND, "there is no version of this key");
    }
    return rv;
}

/* An answer's part of the budget, until it has left. */
struct get_hold {
    struct hedge_node *node;
    size_t bytes;
};

static void on_get_over(void *arg, bool gone)
{
    struct get_hold *h = arg;

    (void)gone;
    kv_release_read(h->node->kv, h->bytes);
    mem_free(h);
}

/* What is not small waits for its part of the budget. That is given back by
 * completions of answers before: who waits for it must not be the one who
 * polls. */
static int get_large(struct hedge_node *n, struct rpc_call *call,
                     const Hedge__V1__LogGetRequest *m,
                     struct log_encoder *page, struct hedge_error *e)
{
    struct get_hold *h = mem_calloc(1, sizeof *h);
    uint64_t wait_ms = rpc_lend_thread() || !rpc_polls() ? GET_WAIT_MS : 0;
    bool fits = false;
    int rv = h != NULL ? kv_reserve_read(n->kv, RPC_MESSAGE_MAX, wait_ms, e)
                       : error_set(e, HEDGE_ENOMEM, "no memory for a call");

    if (rv != 0) {
        mem_free(h);
        return rv;
    }
    h->node = n;
    h->bytes = RPC_MESSAGE_MAX;
    log_encoder_release(page);
    log_encoder_init(page, GET_MAX_BYTES, GET_MAX_BYTES);
    rv = get_page(n, call, m, page, &fits, e);
    if (rv == 0 && (!fits || page->len > GET_MAX_BYTES)) {
        rv = error_set(e, HEDGE_ETOOBIG,
                       "the versions do not fit a message of %zu bytes; use "
                       "Query",
                       RPC_MESSAGE_MAX);
    }
    if (rv != 0) {
        on_get_over(h, false);
        return rv;
    }
    kv_release_read(n->kv, h->bytes - page->len);
    h->bytes = page->len;
    rpc_call_watch(call, on_get_over, h);
    return 0;
}

void serve_log_get(struct rpc_call *call, void *ctx, const void *req,
                   size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__LogGetRequest *m =
        pb_unpack(&hedge__v1__log_get_request__descriptor, req, len);
    struct hedge_error e = {0};
    struct log_encoder page;
    bool fits = true;
    int rv;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a LogGetRequest");
        return;
    }
    log_encoder_init(&page, GET_SMALL_BYTES, GET_SMALL_BYTES);
    rv = check_get(m, &e);
    rv = rv == 0 ? get_page(n, call, m, &page, &fits, &e) : rv;
    if (rv == 0 && !fits) {
        rv = get_large(n, call, m, &page, &e);
    }
    if (rv == 0) {
        rpc_reply(call, page.data, page.len);
    } else {
        rpc_fail(call, rv, e.text);
    }
    log_encoder_release(&page);
    pb_free(m);
}

/* --- query, follow ----------------------------------------------------------
 */

struct query {
    struct hedge_node *node;
    struct rpc_stream *stream;
    struct engine_query q;
    struct log_encoder page;
    bool follow, limited, more;
    uint64_t reserved; /* Of the budget. */
};

static int check_query(const Hedge__V1__LogQuery *m, bool follow,
                       struct hedge_error *e)
{
    if (m->limit > INT32_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "a limit of %llu: at most %d are possible",
                         (unsigned long long)m->limit, INT32_MAX);
    }
    if (m->resume.len > ENGINE_RESUME_MAX) {
        return error_set(e, HEDGE_EINVAL, "a resume token of %zu bytes",
                         m->resume.len);
    }
    if (m->since_ms != 0 && m->until_ms != 0 && m->since_ms > m->until_ms) {
        return error_set(e, HEDGE_EINVAL,
                         "the time range ends before it begins");
    }
    if (follow && (m->latest || m->newest || m->at_revision != 0 ||
                   m->until_ms != 0 || m->resume.len != 0)) {
        return error_set(e, HEDGE_EINVAL,
                         "Follow goes on for ever, oldest first: not with "
                         "latest, newest, at_revision, until_ms or resume");
    }
    return 0;
}

static void to_query(const Hedge__V1__LogQuery *m, struct engine_query *q)
{
    *q = (struct engine_query){.key = m->key.data,
                               .key_len = m->key.len,
                               .prefix = m->prefix,
                               .latest = m->latest,
                               .newest = m->newest,
                               .from_revision = m->from_revision,
                               .at_revision = m->at_revision,
                               .since_ms = m->since_ms,
                               .until_ms = m->until_ms,
                               .limit = m->limit,
                               .resume_len = m->resume.len};
    if (m->resume.len > 0) {
        memcpy(q->resume, m->resume.data, m->resume.len);
    }
}

/* Send for as long as it takes the client to read. */
static int send_patiently(struct query *q, const void *data, size_t len)
{
    struct rpc_out out = {.head = data, .head_len = len};

    return rpc_stream_send(q->stream, &out, RPC_NO_TIMEOUT);
}

/* The page, and what was cut off its entry's value in further messages, the
 * last of which says where to go on. */
static int send_page(struct query *q)
{
    struct log_encoder *p = &q->page;
    size_t at = 0;
    int rv = 0;

    if (p->rest_len > 0) {
        rv = send_patiently(q, p->data, p->len);
    }
    while (rv == 0 && at < p->rest_len) {
        at = log_encode_rest(p, at, PIECE_BYTES);
        if (p->failed) {
            rv = HEDGE_ENOMEM;
        } else if (at < p->rest_len) {
            rv = send_patiently(q, p->data, p->len);
        }
    }
    if (rv == 0) {
        log_encode_resume(p, q->q.resume, q->q.resume_len);
        rv = p->failed ? HEDGE_ENOMEM : send_patiently(q, p->data, p->len);
    }
    return rv;
}

static int scan_page(struct query *q, struct hedge_error *e)
{
    int rv;

    log_encoder_clear(&q->page);
    rv = engine_scan(&q->node->engine, &q->q, log_encode_entry, &q->page,
                     &q->more, e);
    return rv == 0 && q->page.failed
               ? error_set(e, HEDGE_ENOMEM, "no memory for a page")
               : rv;
}

static int take_memory(struct query *q, uint64_t bytes, uint64_t timeout_ms,
                       struct hedge_error *e)
{
    int rv = kv_reserve_read(q->node->kv, bytes, timeout_ms, e);

    if (rv == 0) {
        q->reserved = bytes;
        log_encoder_init(&q->page, PAGE_BYTES, PIECE_BYTES);
    }
    return rv;
}

static void give_memory_back(struct query *q)
{
    if (q->reserved > 0) {
        log_encoder_release(&q->page);
        kv_release_read(q->node->kv, q->reserved);
        q->reserved = 0;
    }
}

/* The entry that no page has room for: wait until the budget has. */
static int scan_large(struct query *q, struct hedge_error *e)
{
    size_t room = q->page.wants;
    int rv;

    give_memory_back(q);
    rv = take_memory(q, room + PAGE_RESERVED, DEFAULT_MS, e);
    if (rv == 0) {
        q->page.room = room;
        rv = scan_page(q, e);
        q->page.room = 0;
    }
    return rv;
}

/* One step: a page is read and sent, also without entries: whoever asked knows
 * then that the search goes on, and that it has gone is noticed. Who follows
 * takes an empty page for the end. */
static int step_query(struct query *q, struct hedge_error *e)
{
    int rv = scan_page(q, e);
    bool large = rv == 0 && q->page.n == 0 && q->page.wants > 0;

    if (large) {
        rv = scan_large(q, e);
    }
    if (rv == 0 && (q->page.n > 0 || !q->more || !q->follow)) {
        rv = send_page(q);
    }
    if (rv == 0 && large) {
        give_memory_back(q);
        rv = take_memory(q, PAGE_RESERVED, DEFAULT_MS / 3, e);
    }
    return rv;
}

static bool at_limit(const struct query *q)
{
    return q->limited && q->q.limit == 0;
}

static int run_query(struct query *q, struct hedge_error *e)
{
    int rv = 0;

    q->more = true;
    while (rv == 0 && q->more && !at_limit(q)) {
        rv = step_query(q, e);
        if (rv == 0 && q->node->closing) {
            rv = error_set(e, HEDGE_EUNAVAILABLE, "the node stops");
        } else if (rv == 0 && rpc_stream_is_cancelled(q->stream)) {
            rv = HEDGE_ECANCELED; /* Empty pages are not always sent. */
        }
    }
    return rv;
}

/* While there is nothing to be sent it holds no memory. */
static int run_follow(struct query *q, struct hedge_error *e)
{
    uint64_t last;
    int rv = run_query(q, e);

    while (rv == 0 && !at_limit(q)) {
        give_memory_back(q);
        rv = kv_wait(q->node->kv, q->q.snapshot, FOLLOW_STEP_MS, &last, e);
        if (rpc_stream_is_cancelled(q->stream)) {
            return HEDGE_ECANCELED;
        }
        rv = rv == 0 ? take_memory(q, PAGE_RESERVED, SEND_STEP_MS, e) : rv;
        if (rv == HEDGE_ETIMEDOUT || rv == HEDGE_EEXHAUSTED) {
            rv = 0; /* Nothing new, or others read at present. */
        } else if (rv == 0) {
            q->q.from_revision = q->q.snapshot + 1;
            q->q.resume_len = 0;
            rv = run_query(q, e);
        }
    }
    return rv;
}

static int serve_query(struct hedge_node *n, struct rpc_stream *s, bool follow,
                       struct hedge_error *e)
{
    struct query q = {.node = n, .stream = s, .follow = follow};
    Hedge__V1__LogQuery *m;
    struct rpc_msg msg;
    int rv = rpc_stream_recv(s, DEFAULT_MS, &msg, e);

    if (rv != 0) {
        return rv == HEDGE_EEND
                   ? error_set(e, HEDGE_EPROTO, "a query without a message")
                   : rv;
    }
    m = pb_from_msg(&hedge__v1__log_query__descriptor, &msg, e);
    if (m == NULL) {
        return HEDGE_EPROTO;
    }
    rv = check_query(m, follow, e);
    if (rv == 0) {
        rv = take_memory(&q, PAGE_RESERVED, DEFAULT_MS / 3, e);
    }
    if (rv == 0) {
        to_query(m, &q.q);
        q.limited = m->limit != 0;
        rv = follow ? run_follow(&q, e) : run_query(&q, e);
    }
    give_memory_back(&q);
    pb_free(m);
    return rv;
}

int serve_log_query(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    return serve_query(ctx, s, false, e);
}

int serve_log_follow(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    return serve_query(ctx, s, true, e);
}

/* --- compaction -------------------------------------------------------------
 */

void serve_log_compact(struct rpc_call *call, void *ctx, const void *req,
                       size_t len)
{
    Hedge__V1__LogCompactRequest *m =
        pb_unpack(&hedge__v1__log_compact_request__descriptor, req, len);
    Hedge__V1__LogCompactReply reply = HEDGE__V1__LOG_COMPACT_REPLY__INIT;
    struct hedge_error e = {0};
    int rv;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a LogCompactRequest");
        return;
    }
    rv = node_log_compact(ctx, m->before_revision, m->before_ms, m->keep,
                          m->leader_only, rpc_usable_ms(rpc_call_left_ms(call)),
                          &reply.removed, &e);
    if (rv == 0) {
        pb_reply(call, &reply.base);
    } else {
        rpc_fail(call, rv, e.text);
    }
    pb_free(m);
}
