/* What core needs for each call to come is posted before: an arrival is
 * replaced by a new one before it is handled. A unary call lives from its
 * posting to the completion of its answer; a stream gets a thread when it
 * arrives and lives until that thread is done with it. The server lives until
 * nothing is posted and no call is left. */
#include "cluster/rpc/rpc_internal.h"

#include "store/base/list.h"
#include "store/base/mem.h"
#include "store/base/pool.h"

#include <assert.h>
#include <grpc/support/alloc.h>
#include <string.h>

#define UNARY_POSTED 8
#define STREAMS_POSTED 2
#define UNKNOWN_POSTED 2
#define POOL_DEFAULT 4
#define STREAMS_DEFAULT 256
#define MESSAGE_LIMIT_DEFAULT ((uint64_t)64 << 20)
#define CONCURRENT_STREAMS 1024
#define KEEPALIVE_SEEN_MIN_MS 5000
#if defined(HEDGE_TSAN) || defined(__SANITIZE_ADDRESS__)
#define STREAM_STACK ((size_t)4 << 20)
#else
#define STREAM_STACK ((size_t)512 << 10)
#endif

#define CALL_MAGIC 0x63616c6cu

struct method {
    struct rpc_server *server;
    char *path;
    rpc_unary_fn unary;
    rpc_stream_fn stream;
    unsigned flags;
    void *registered;
    unsigned posted; /* Under the server's lock. */
    uint64_t calls;  /* As well. */
    atomic_uint_fast64_t failures;
};

struct rpc_server {
    grpc_server *server;
    struct rpc_acceptor *acceptor;
    struct pool *pool;
    void *ctx;
    unsigned streams_max;
    struct rpc_tag shutdown_tag;

    /* methods[n_methods] stands for every path there is no method for. */
    struct method *methods;
    unsigned n_methods;
    unsigned *ports;
    unsigned n_ports;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopping, stopped;
    bool starved; /* Something could not be posted for want of memory. */
    unsigned posted, unary_live, streams_live;
    /* The stream thread that ended last; it has joined the one before. */
    bool has_ended_thread;
    pthread_t ended_thread;
};

struct rpc_call {
    unsigned magic;
    struct rpc_tag arrived, answered, closed;
    void (*watch_fn)(void *arg, bool gone); /* NULL: nobody watches. */
    void *watch_arg;
    struct method *method;
    grpc_call *call;
    gpr_timespec deadline;
    grpc_metadata_array headers;
    grpc_call_details details;
    grpc_byte_buffer *payload;
    grpc_slice flat;
    bool is_flat;
    char *peer;
    struct work work;
    atomic_bool done;
    /* The one who answers, the answer's completion, and `closed`'s. */
    atomic_uint refs;
    grpc_byte_buffer *reply;
    bool watched; /* `closed` is under way, or has been. */
    atomic_bool cancelled;
    int gone;
};

struct arrival { /* Of a stream. */
    struct rpc_tag arrived;
    struct method *method;
    struct rpc_stream stream;
    gpr_timespec deadline;
    grpc_metadata_array headers;
};

static void post(struct method *m);
static void post_starved(struct rpc_server *s);

/* --- unary ------------------------------------------------------------------
 */

static void call_free(struct rpc_call *c)
{
    assert(c->magic == CALL_MAGIC);
    if (c->is_flat) {
        grpc_slice_unref(c->flat);
    }
    if (c->payload != NULL) {
        grpc_byte_buffer_destroy(c->payload);
    }
    if (c->reply != NULL) {
        grpc_byte_buffer_destroy(c->reply);
    }
    grpc_metadata_array_destroy(&c->headers);
    grpc_call_details_destroy(&c->details);
    if (c->call != NULL) {
        grpc_call_unref(c->call);
    }
    gpr_free(c->peer);
    c->magic = 0;
    mem_free(c);
}

static void call_unref(struct rpc_call *c)
{
    struct rpc_server *s = c->method->server;

    if (atomic_fetch_sub(&c->refs, 1) > 1) {
        return;
    }
    call_free(c);
    post_starved(s);
    pthread_mutex_lock(&s->lock);
    assert(s->unary_live > 0);
    s->unary_live--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void on_answered(struct rpc_tag *t, bool ok)
{
    (void)ok; /* A client that has gone does not want it any more. */
    call_unref(container_of(t, struct rpc_call, answered));
}

static void on_closed(struct rpc_tag *t, bool ok)
{
    struct rpc_call *c = container_of(t, struct rpc_call, closed);

    atomic_store(&c->cancelled, !ok || c->gone != 0);
    if (c->watch_fn != NULL) {
        c->watch_fn(c->watch_arg, !ok || c->gone != 0);
    }
    call_unref(c);
}

/* Have on_closed() called when the call is over. */
static bool call_await_close(struct rpc_call *c)
{
    grpc_op op;

    assert(c->magic == CALL_MAGIC && !c->done && !c->watched);
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &c->gone;
    atomic_fetch_add(&c->refs, 1);
    c->watched = true;
    if (rpc_start(c->call, &op, 1, &c->closed) != 0) {
        c->watched = false;
        atomic_fetch_sub(&c->refs, 1);
    }
    return c->watched;
}

bool rpc_call_is_cancelled(struct rpc_call *c)
{
    if (!c->watched) {
        (void)call_await_close(c);
    }
    return atomic_load(&c->cancelled);
}

/* Headers, message, status and the sign that the call is over: one batch. */
static void call_answer(struct rpc_call *c, int code, const char *text)
{
    struct rpc_status_op st;
    grpc_op ops[4];
    size_t n = 0;
    bool again;

    assert(c->magic == CALL_MAGIC);
    again = atomic_exchange(&c->done, true);
    assert(!again);
    memset(ops, 0, sizeof ops);
    ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (c->reply != NULL) {
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = c->reply;
    }
    rpc_status_op_init(&st, &ops[n++], code, text);
    if (!c->watched) {
        ops[n].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
        ops[n++].data.recv_close_on_server.cancelled = &c->gone;
    }
    if (rpc_start_here(c->call, ops, n, &c->answered) != 0) {
        (void)grpc_call_cancel_with_status(c->call, GRPC_STATUS_INTERNAL,
                                           "the answer could not be sent",
                                           NULL);
        call_unref(c);
    }
    rpc_status_op_release(&st);
    call_unref(c);
}

void rpc_reply(struct rpc_call *c, const void *data, size_t len)
{
    struct rpc_out out = {.head = data, .head_len = len};

    assert(c->magic == CALL_MAGIC);
    if (len > RPC_MESSAGE_MAX) {
        call_answer(c, HEDGE_ETOOBIG, "the reply is over the message limit");
        return;
    }
    c->reply = rpc_buffer_from_out(&out);
    call_answer(c, 0, NULL);
}

void rpc_fail(struct rpc_call *c, int code, const char *text)
{
    assert(code < 0);
    atomic_fetch_add(&c->method->failures, 1);
    call_answer(c, code, text);
}

uint64_t rpc_call_left_ms(const struct rpc_call *c)
{
    assert(c->magic == CALL_MAGIC);
    return rpc_left_ms(rpc_until_from(c->deadline));
}

void rpc_call_watch(struct rpc_call *c, void (*fn)(void *arg, bool gone),
                    void *arg)
{
    assert(c->watch_fn == NULL && !c->watched);
    c->watch_fn = fn;
    c->watch_arg = arg;
    if (!call_await_close(c)) {
        fn(arg, true);
    }
}

const char *rpc_call_peer(struct rpc_call *c)
{
    assert(c->magic == CALL_MAGIC);
    if (c->peer == NULL) {
        c->peer = grpc_call_get_peer(c->call);
    }
    return c->peer != NULL ? c->peer : "unknown";
}

static void call_handle(struct rpc_call *c)
{
    grpc_slice_buffer *sb = &c->payload->data.raw.slice_buffer;
    struct method *m = c->method;
    grpc_byte_buffer_reader reader;

    if (sb->count == 1) {
        m->unary(c, m->server->ctx, GRPC_SLICE_START_PTR(sb->slices[0]),
                 GRPC_SLICE_LENGTH(sb->slices[0]));
        return;
    }
    if (!grpc_byte_buffer_reader_init(&reader, c->payload)) {
        rpc_fail(c, HEDGE_EPROTO, "the request cannot be read");
        return;
    }
    c->flat = grpc_byte_buffer_reader_readall(&reader);
    c->is_flat = true;
    grpc_byte_buffer_reader_destroy(&reader);
    m->unary(c, m->server->ctx, GRPC_SLICE_START_PTR(c->flat),
             GRPC_SLICE_LENGTH(c->flat));
}

static void call_work(struct work *w)
{
    call_handle(container_of(w, struct rpc_call, work));
}

static void call_unknown(struct rpc_call *c)
{
    size_t len = GRPC_SLICE_LENGTH(c->details.method);
    struct hedge_error e;
    char path[256];

    len = len < sizeof path ? len : sizeof path - 1;
    memcpy(path, GRPC_SLICE_START_PTR(c->details.method), len);
    path[len] = '\0';
    rpc_fail(c,
             error_set(&e, HEDGE_ENOTSUP, "there is no method %s here", path),
             e.text);
}

/* With the server's lock held: something posted has come back. From then on
 * only a call that is counted as live keeps the server. */
static void posted_back(struct method *m)
{
    assert(m->posted > 0 && m->server->posted > 0);
    m->posted--;
    m->server->posted--;
    pthread_cond_broadcast(&m->server->changed);
}

static void on_call(struct rpc_tag *t, bool ok)
{
    struct rpc_call *c = container_of(t, struct rpc_call, arrived);
    struct method *m = c->method;
    struct rpc_server *s = m->server;
    bool stopping;

    pthread_mutex_lock(&s->lock);
    stopping = s->stopping;
    s->unary_live += ok;
    m->calls += ok;
    posted_back(m);
    pthread_mutex_unlock(&s->lock);
    if (!ok) {
        call_free(c);
        return;
    }
    post(m);
    if (stopping) {
        rpc_fail(c, HEDGE_EUNAVAILABLE, "the server is stopping");
    } else if (m->unary == NULL) {
        call_unknown(c);
    } else if (c->payload == NULL) {
        rpc_fail(c, HEDGE_EPROTO, "a request without a message");
    } else if (m->flags & RPC_INLINE) {
        call_handle(c);
    } else if (pool_submit(s->pool, &c->work, call_work) != 0) {
        rpc_fail(c, HEDGE_EUNAVAILABLE, "the server is stopping");
    }
}

static int call_post(struct method *m)
{
    struct rpc_server *s = m->server;
    struct rpc_call *c = mem_calloc(1, sizeof *c);
    grpc_completion_queue *cq = rpc_queue();
    grpc_call_error rc;

    if (c == NULL) {
        return HEDGE_ENOMEM;
    }
    c->magic = CALL_MAGIC;
    atomic_init(&c->refs, 2);
    c->method = m;
    c->arrived = RPC_TAG_INIT(on_call);
    c->answered = RPC_TAG_INIT(on_answered);
    c->closed = RPC_TAG_INIT(on_closed);
    grpc_metadata_array_init(&c->headers);
    grpc_call_details_init(&c->details);
    RPC_TAG_PUT(&c->arrived);
    rc = m->unary != NULL
             ? grpc_server_request_registered_call(
                   s->server, m->registered, &c->call, &c->deadline,
                   &c->headers, &c->payload, cq, cq, &c->arrived)
             : grpc_server_request_call(s->server, &c->call, &c->details,
                                        &c->headers, cq, cq, &c->arrived);
    if (rc != GRPC_CALL_OK) {
        call_free(c);
        return HEDGE_EINTERNAL;
    }
    return 0;
}

/* --- streams ----------------------------------------------------------------
 */

static void arrival_free(struct arrival *a)
{
    grpc_metadata_array_destroy(&a->headers);
    rpc_stream_release(&a->stream);
    mem_free(a);
}

/* The last thing a stream's thread does: each joins the one that ended before
 * it, the server the last. */
static void stream_thread_end(struct rpc_server *s)
{
    pthread_t before;
    bool has_before;

    pthread_mutex_lock(&s->lock);
    has_before = s->has_ended_thread;
    before = s->ended_thread;
    s->has_ended_thread = true;
    s->ended_thread = pthread_self();
    assert(s->streams_live > 0);
    s->streams_live--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (has_before) {
        pthread_join(before, NULL);
    }
}

static void *stream_thread(void *arg)
{
    struct arrival *a = arg;
    struct method *m = a->method;
    struct rpc_server *s = m->server;
    struct hedge_error e = {.code = 0};
    int rv;

    rv = rpc_stream_begin(&a->stream);
    if (rv == 0) {
        rv = m->stream(&a->stream, s->ctx, &e);
    }
    /* A handler that hands on the end of what it received has done well. */
    rv = rv == HEDGE_EEND ? 0 : rv;
    if (rv != 0) {
        atomic_fetch_add(&m->failures, 1);
    }
    rpc_stream_finish(&a->stream, rv, e.code == rv ? e.text : NULL);
    arrival_free(a);
    post_starved(s);
    stream_thread_end(s);
    return NULL;
}

static int stream_spawn(struct arrival *a)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t old;
    int rc;

    pthread_attr_init(&attr);
    (void)pthread_attr_setstacksize(&attr, STREAM_STACK);
    rpc_signals_block(&old);
    rc = pthread_create(&thread, &attr, stream_thread, a);
    rpc_signals_restore(&old);
    pthread_attr_destroy(&attr);
    return rc == 0 ? 0 : HEDGE_ENOMEM;
}

static void stream_refuse(struct arrival *a, int code, const char *text)
{
    struct rpc_server *s = a->method->server;

    atomic_fetch_add(&a->method->failures, 1);
    (void)grpc_call_cancel_with_status(a->stream.call,
                                       rpc_status_from_code(code), text, NULL);
    arrival_free(a);
    pthread_mutex_lock(&s->lock);
    s->streams_live--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void on_stream(struct rpc_tag *t, bool ok)
{
    struct arrival *a = container_of(t, struct arrival, arrived);
    struct method *m = a->method;
    struct rpc_server *s = m->server;
    bool stopping, full;

    pthread_mutex_lock(&s->lock);
    stopping = s->stopping;
    full = s->streams_live >= s->streams_max;
    s->streams_live += ok;
    m->calls += ok;
    posted_back(m);
    pthread_mutex_unlock(&s->lock);
    if (!ok) {
        arrival_free(a);
        return;
    }
    post(m);
    a->stream.until_ns = rpc_until_from(a->deadline);
    if (stopping) {
        stream_refuse(a, HEDGE_EUNAVAILABLE, "the server is stopping");
    } else if (full) {
        stream_refuse(a, HEDGE_EEXHAUSTED,
                      "the server has as many streams as it may have");
    } else if (stream_spawn(a) != 0) {
        stream_refuse(a, HEDGE_EEXHAUSTED, "no thread for a stream");
    }
}

static int stream_post(struct method *m)
{
    struct rpc_server *s = m->server;
    struct arrival *a = mem_calloc(1, sizeof *a);
    grpc_completion_queue *cq = rpc_queue();
    grpc_call_error rc;

    if (a == NULL) {
        return HEDGE_ENOMEM;
    }
    rpc_stream_init(&a->stream, true);
    a->arrived = RPC_TAG_INIT(on_stream);
    a->method = m;
    grpc_metadata_array_init(&a->headers);
    RPC_TAG_PUT(&a->arrived);
    rc = grpc_server_request_registered_call(
        s->server, m->registered, &a->stream.call, &a->deadline, &a->headers,
        NULL, cq, cq, &a->arrived);
    if (rc != GRPC_CALL_OK) {
        arrival_free(a);
        return HEDGE_EINTERNAL;
    }
    return 0;
}

/* --- posting ----------------------------------------------------------------
 */

static unsigned posted_max(const struct method *m)
{
    return m->stream != NULL  ? STREAMS_POSTED
           : m->unary != NULL ? UNARY_POSTED
                              : UNKNOWN_POSTED;
}

static bool post_one(struct method *m)
{
    struct rpc_server *s = m->server;
    bool wanted;
    int rv;

    pthread_mutex_lock(&s->lock);
    wanted = !s->stopping && m->posted < posted_max(m);
    m->posted += wanted;
    s->posted += wanted;
    pthread_mutex_unlock(&s->lock);
    if (!wanted) {
        return false;
    }
    rv = m->stream != NULL ? stream_post(m) : call_post(m);
    if (rv != 0) {
        pthread_mutex_lock(&s->lock);
        posted_back(m);
        s->starved = true;
        pthread_mutex_unlock(&s->lock);
    }
    return rv == 0;
}

static void post(struct method *m)
{
    while (post_one(m)) {
    }
}

static void post_all(struct rpc_server *s)
{
    for (unsigned i = 0; i <= s->n_methods; i++) {
        post(&s->methods[i]);
    }
}

static bool take_starved(struct rpc_server *s)
{
    bool starved;

    pthread_mutex_lock(&s->lock);
    starved = s->starved;
    s->starved = false;
    pthread_mutex_unlock(&s->lock);
    return starved;
}

/* Make up for what could not be posted; done as calls end, so that there is
 * a time for it after each failure. */
static void post_starved(struct rpc_server *s)
{
    if (take_starved(s)) {
        post_all(s);
    }
}

/* --- life -------------------------------------------------------------------
 */

static grpc_server *core_server(uint64_t message_limit)
{
    grpc_resource_quota *quota = grpc_resource_quota_create("hedge messages");
    grpc_channel_args args;
    grpc_server *server;
    struct rpc_args a;
    grpc_arg *arg;

    grpc_resource_quota_resize(quota, (size_t)message_limit);
    rpc_args_common(&a);
    rpc_args_int(&a, GRPC_ARG_ALLOW_REUSEPORT, 0);
    rpc_args_int(&a, GRPC_ARG_MAX_CONCURRENT_STREAMS, CONCURRENT_STREAMS);
    rpc_args_int(&a, GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                 KEEPALIVE_SEEN_MIN_MS);
    arg = &a.arg[a.n++];
    memset(arg, 0, sizeof *arg);
    arg->type = GRPC_ARG_POINTER;
    arg->key = GRPC_ARG_RESOURCE_QUOTA;
    arg->value.pointer.p = quota;
    arg->value.pointer.vtable = grpc_resource_quota_arg_vtable();
    args.num_args = a.n;
    args.args = a.arg;
    server = grpc_server_create(&args, NULL);
    grpc_resource_quota_unref(quota);
    return server;
}

static int methods_copy(struct rpc_server *s,
                        const struct rpc_server_options *o,
                        struct hedge_error *e)
{
    s->methods = mem_calloc(o->n_methods + 1, sizeof s->methods[0]);
    if (s->methods == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a server");
    }
    for (; s->n_methods < o->n_methods; s->n_methods++) {
        const struct rpc_method *from = &o->methods[s->n_methods];
        struct method *m = &s->methods[s->n_methods];
        assert((from->unary == NULL) != (from->stream == NULL));
        m->server = s;
        m->unary = from->unary;
        m->stream = from->stream;
        m->flags = from->flags;
        m->path = mem_strdup(from->path);
        if (m->path == NULL) {
            return error_set(e, HEDGE_ENOMEM, "no memory for a server");
        }
        m->registered = grpc_server_register_method(
            s->server, m->path, NULL,
            m->unary != NULL ? GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER
                             : GRPC_SRM_PAYLOAD_NONE,
            0);
        if (m->registered == NULL) {
            mem_free(m->path);
            return error_set(e, HEDGE_EINVAL, "the method %s is given twice",
                             from->path);
        }
    }
    s->methods[s->n_methods].server = s;
    return 0;
}

static void server_release(struct rpc_server *s)
{
    for (unsigned i = 0; i < s->n_methods; i++) {
        mem_free(s->methods[i].path);
    }
    mem_free(s->methods);
    mem_free(s->ports);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
    rpc_shutdown();
}

static void on_shutdown(struct rpc_tag *t, bool ok)
{
    struct rpc_server *s = container_of(t, struct rpc_server, shutdown_tag);

    (void)ok;
    pthread_mutex_lock(&s->lock);
    s->stopped = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* Everything that is not the core server or its threads. */
static int server_prepare(const struct rpc_server_options *o,
                          struct rpc_server **out, struct hedge_error *e)
{
    struct rpc_server *s = mem_calloc(1, sizeof *s);
    int rv = s != NULL ? rpc_init() : HEDGE_ENOMEM;

    *out = NULL;
    if (rv != 0) {
        mem_free(s);
        return error_set(e, rv, "no memory for a server");
    }
    pthread_mutex_init(&s->lock, NULL);
    rpc_cond_init(&s->changed);
    s->ctx = o->ctx;
    s->streams_max = o->streams_max != 0 ? o->streams_max : STREAMS_DEFAULT;
    s->shutdown_tag = RPC_TAG_INIT(on_shutdown);
    s->n_ports = o->n_addresses;
    s->ports = mem_calloc(o->n_addresses, sizeof s->ports[0]);
    if (s->ports == NULL) {
        server_release(s);
        return error_set(e, HEDGE_ENOMEM, "no memory for a server");
    }
    *out = s;
    return 0;
}

static int server_listen(struct rpc_server *s,
                         const struct rpc_server_options *o,
                         struct hedge_error *e)
{
    int rv = 0;

    for (unsigned i = 0; rv == 0 && i < o->n_addresses; i++) {
        rv = rpc_listen(s->server, o->addresses[i], &s->ports[i], e);
    }
    return rv;
}

static int server_start(struct rpc_server *s,
                        const struct rpc_server_options *o,
                        struct hedge_error *e)
{
    sigset_t old;
    int rv;

    rpc_signals_block(&old);
    rv = pool_new(o->pool_threads != 0 ? o->pool_threads : POOL_DEFAULT,
                  "hedge-rpc", &s->pool);
    rpc_signals_restore(&old);
    if (rv != 0) {
        return error_set(e, rv, "no threads for a server");
    }
    grpc_server_start(s->server);
    post_all(s);
    if (take_starved(s)) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a server");
    }
    rv = rpc_acceptor_new(s->server, o->addresses, s->ports, o->n_addresses,
                          &s->acceptor);
    return rv == 0 ? 0 : error_set(e, rv, "no thread for a server");
}

int rpc_server_new(const struct rpc_server_options *o, struct rpc_server **out,
                   struct hedge_error *e)
{
    struct rpc_server *s;
    int rv;

    *out = NULL;
    rv = server_prepare(o, &s, e);
    if (rv != 0) {
        return rv;
    }
    s->server = core_server(o->message_limit != 0 ? o->message_limit
                                                  : MESSAGE_LIMIT_DEFAULT);
    grpc_server_register_completion_queue(s->server, rpc_queue(), NULL);
    rv = methods_copy(s, o, e);
    if (rv == 0) {
        rv = server_listen(s, o, e);
    }
    if (rv == 0) {
        rv = server_start(s, o, e);
    }
    if (rv != 0) {
        rpc_server_free(s, 0);
        return rv;
    }
    *out = s;
    return 0;
}

unsigned rpc_server_port(const struct rpc_server *s, unsigned i)
{
    assert(i < s->n_ports);
    return s->ports[i];
}

unsigned rpc_server_n_methods(const struct rpc_server *s)
{
    return s->n_methods + 1;
}

void rpc_server_method_use(struct rpc_server *s, unsigned i,
                           struct rpc_method_use *out)
{
    struct method *m = &s->methods[i];

    assert(i <= s->n_methods);
    pthread_mutex_lock(&s->lock);
    *out = (struct rpc_method_use){.path = m->path != NULL ? m->path : "",
                                   .calls = m->calls,
                                   .failures = atomic_load(&m->failures)};
    pthread_mutex_unlock(&s->lock);
}

void rpc_server_use(struct rpc_server *s, struct rpc_server_use *out)
{
    struct pool_use p;

    pool_use(s->pool, &p);
    pthread_mutex_lock(&s->lock);
    *out = (struct rpc_server_use){.unary = s->unary_live,
                                   .streams = s->streams_live,
                                   .streams_max = s->streams_max,
                                   .pool_threads = p.threads,
                                   .pool_busy = p.busy,
                                   .pool_queued = p.queued};
    pthread_mutex_unlock(&s->lock);
}

static bool has_calls(const struct rpc_server *s)
{
    return s->unary_live + s->streams_live > 0;
}

void rpc_server_free(struct rpc_server *s, uint64_t grace_ms)
{
    uint64_t until_ns = rpc_until(grace_ms);

    if (s == NULL) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_mutex_unlock(&s->lock);
    rpc_acceptor_free(s->acceptor);
    RPC_TAG_PUT(&s->shutdown_tag);
    grpc_server_shutdown_and_notify(s->server, rpc_queue(), &s->shutdown_tag);
    pthread_mutex_lock(&s->lock);
    while (has_calls(s) && rpc_cond_wait(&s->changed, &s->lock, until_ns)) {
    }
    pthread_mutex_unlock(&s->lock);
    grpc_server_cancel_all_calls(s->server);
    pthread_mutex_lock(&s->lock);
    while (!s->stopped || s->posted > 0 || has_calls(s)) {
        pthread_cond_wait(&s->changed, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    grpc_server_destroy(s->server);
    if (s->has_ended_thread) {
        pthread_join(s->ended_thread, NULL);
    }
    pool_free(s->pool);
    server_release(s);
}
