#include "cluster/rpc/rpc_internal.h"

#include "store/base/list.h"
#include "store/base/mem.h"

#include <assert.h>
#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct rpc_channel {
    grpc_channel *channel;
    char *target;
    int cut_fd; /* The socket once more, to shut it down; -1: core's own. */
};

/* `fd` -1: core connects when there is something to do. */
static grpc_channel *channel_create(const char *target, int fd)
{
    grpc_channel_credentials *creds;
    grpc_channel_args args;
    grpc_channel *channel;
    struct rpc_args a;

    rpc_args_common(&a);
    rpc_args_int(&a, GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    rpc_args_int(&a, GRPC_ARG_ENABLE_RETRIES, 0);
    rpc_args_int(&a, GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
    rpc_args_int(&a, GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    rpc_args_int(&a, GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    rpc_args_int(&a, GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
    /* In spite of its name this is the time a connect may take. */
    rpc_args_int(&a, GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
    args.num_args = a.n;
    args.args = a.arg;
    creds = grpc_insecure_credentials_create();
    channel = fd < 0 ? grpc_channel_create(target, creds, &args)
                     : grpc_channel_create_from_fd(target, fd, creds, &args);
    grpc_channel_credentials_release(creds);
    return channel;
}

/* Takes `fd`, on failure too. */
static int channel_new(const char *target, int fd, struct rpc_channel **out)
{
    struct rpc_channel *c;
    int rv;

    *out = NULL;
    c = mem_calloc(1, sizeof *c);
    if (c == NULL) {
        rv = HEDGE_ENOMEM;
        goto err_fd;
    }
    rv = rpc_init();
    if (rv != 0) {
        goto err_free;
    }
    c->target = mem_strdup(target);
    c->cut_fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (c->target == NULL || (fd >= 0 && c->cut_fd < 0)) {
        rv = HEDGE_ENOMEM;
        goto err_target;
    }
    c->channel = channel_create(target, fd);
    fd = -1;
    if (c->channel == NULL) {
        rv = HEDGE_EINVAL;
        goto err_target;
    }
    *out = c;
    return 0;

err_target:
    if (c->cut_fd >= 0) {
        close(c->cut_fd);
    }
    mem_free(c->target);
    rpc_shutdown();
err_free:
    mem_free(c);
err_fd:
    if (fd >= 0) {
        close(fd);
    }
    return rv;
}

int rpc_channel_new(const char *target, struct rpc_channel **out)
{
    return channel_new(target, -1, out);
}

int rpc_channel_connect(const char *target, uint64_t timeout_ms,
                        struct rpc_channel **out, struct hedge_error *e)
{
    int fd, rv;

    *out = NULL;
    rv = rpc_connect(target, rpc_until(timeout_ms), &fd, e);
    if (rv != 0) {
        return rv;
    }
    rv = channel_new(target, fd, out);
    return rv == 0 ? 0
                   : error_set(e, rv, "cannot use the connection to %s: %s",
                               target, hedge_strerror(rv));
}

void rpc_channel_cut(struct rpc_channel *c)
{
    assert(c->cut_fd >= 0);
    (void)shutdown(c->cut_fd, SHUT_RDWR);
}

void rpc_channel_free(struct rpc_channel *c)
{
    if (c == NULL) {
        return;
    }
    grpc_channel_destroy(c->channel);
    if (c->cut_fd >= 0) {
        close(c->cut_fd);
    }
    mem_free(c->target);
    mem_free(c);
    rpc_shutdown();
}

static grpc_call *call_new(struct rpc_channel *c, const char *path,
                           uint64_t until_ns)
{
    grpc_slice method = grpc_slice_from_copied_string(path);
    grpc_call *call = grpc_channel_create_call(
        c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, rpc_queue(), method, NULL,
        rpc_deadline(until_ns), NULL);

    grpc_slice_unref(method);
    return call;
}

/* --- unary ------------------------------------------------------------------
 */

struct unary {
    struct rpc_tag tag;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done;
    grpc_byte_buffer *request;
    struct rpc_message *reply;
    grpc_metadata_array headers, trailing;
    grpc_status_code status;
    grpc_slice details;
};

static void on_unary(struct rpc_tag *t, bool ok)
{
    struct unary *u = container_of(t, struct unary, tag);

    (void)ok; /* The status tells. */
    pthread_mutex_lock(&u->lock);
    u->done = true;
    pthread_cond_signal(&u->changed);
    pthread_mutex_unlock(&u->lock);
}

static int unary_init(struct unary *u, const void *request, size_t len)
{
    struct rpc_out out = {.head = request, .head_len = len};

    memset(u, 0, sizeof *u);
    u->reply = rpc_message_new();
    if (u->reply == NULL) {
        return HEDGE_ENOMEM;
    }
    u->tag = RPC_TAG_INIT(on_unary);
    u->request = rpc_buffer_from_out(&out);
    u->details = grpc_empty_slice();
    pthread_mutex_init(&u->lock, NULL);
    rpc_cond_init(&u->changed);
    grpc_metadata_array_init(&u->headers);
    grpc_metadata_array_init(&u->trailing);
    return 0;
}

static void unary_release(struct unary *u)
{
    rpc_message_free(u->reply);
    grpc_byte_buffer_destroy(u->request);
    grpc_slice_unref(u->details);
    grpc_metadata_array_destroy(&u->headers);
    grpc_metadata_array_destroy(&u->trailing);
    pthread_cond_destroy(&u->changed);
    pthread_mutex_destroy(&u->lock);
}

static int unary_start(struct unary *u, grpc_call *call)
{
    grpc_op ops[6];

    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = u->request;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &u->headers;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = rpc_message_slot(u->reply);
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &u->trailing;
    ops[5].data.recv_status_on_client.status = &u->status;
    ops[5].data.recv_status_on_client.status_details = &u->details;
    return rpc_start_here(call, ops, 6, &u->tag);
}

static int unary_run(struct unary *u, struct rpc_channel *c, const char *path,
                     uint64_t until_ns, struct hedge_error *e)
{
    grpc_call *call = call_new(c, path, until_ns);
    int rv = unary_start(u, call);

    if (rv != 0) {
        (void)error_set(e, rv, "the call %s could not be started", path);
    } else {
        /* The call's own deadline ends the wait. */
        pthread_mutex_lock(&u->lock);
        while (!u->done) {
            pthread_cond_wait(&u->changed, &u->lock);
        }
        pthread_mutex_unlock(&u->lock);
        rv = rpc_status_read(u->status, &u->details, &u->trailing, e);
    }
    grpc_call_unref(call);
    return rv;
}

int rpc_call(struct rpc_channel *c, const char *path, const void *request,
             size_t len, uint64_t timeout_ms, struct rpc_msg *reply,
             struct hedge_error *e)
{
    struct unary u;
    int rv;

    reply->impl = NULL;
    if (len > RPC_MESSAGE_MAX) {
        return error_set(e, HEDGE_ETOOBIG,
                         "a request of %zu bytes is over the limit of %zu", len,
                         RPC_MESSAGE_MAX);
    }
    if (timeout_ms == 0) { /* Core would still try. */
        return error_set(e, HEDGE_ETIMEDOUT, "no time left for %s", path);
    }
    if (unary_init(&u, request, len) != 0) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a call");
    }
    rv = unary_run(&u, c, path, rpc_until(timeout_ms), e);
    if (rv == 0 && *rpc_message_slot(u.reply) == NULL) {
        rv = error_set(e, HEDGE_EPROTO, "%s was answered without a message",
                       path);
    }
    if (rv == 0) {
        rpc_message_rewind(u.reply);
        reply->impl = u.reply;
        u.reply = NULL;
    }
    unary_release(&u);
    return rv;
}

/* --- unary, without waiting -------------------------------------------------
 */

struct rpc_pending {
    struct unary unary;
    grpc_call *call;
    rpc_done_fn done;
    void *arg;
};

static void on_pending(struct rpc_tag *t, bool ok)
{
    struct unary *u = container_of(t, struct unary, tag);
    struct rpc_pending *p = container_of(u, struct rpc_pending, unary);

    (void)ok; /* The status tells. */
    p->done(p->arg);
}

static void pending_free(struct rpc_pending *p)
{
    if (p->call != NULL) {
        grpc_call_unref(p->call);
    }
    unary_release(&p->unary);
    mem_free(p);
}

int rpc_call_start(struct rpc_channel *c, const char *path, const void *request,
                   size_t len, uint64_t timeout_ms, rpc_done_fn done, void *arg,
                   struct rpc_pending **out)
{
    struct rpc_pending *p;
    int rv;

    *out = NULL;
    if (len > RPC_MESSAGE_MAX) {
        return HEDGE_ETOOBIG;
    }
    p = mem_calloc(1, sizeof *p);
    if (p == NULL || unary_init(&p->unary, request, len) != 0) {
        mem_free(p);
        return HEDGE_ENOMEM;
    }
    p->unary.tag = RPC_TAG_INIT(on_pending);
    p->done = done;
    p->arg = arg;
    p->call = call_new(c, path, rpc_until(timeout_ms));
    *out = p; /* `done` may run at any moment. */
    rv = unary_start(&p->unary, p->call);
    if (rv != 0) {
        *out = NULL;
        pending_free(p);
    }
    return rv;
}

grpc_call *rpc_pending_call(struct rpc_pending *p)
{
    return p->call;
}

void rpc_call_cancel(struct rpc_pending *p)
{
    (void)grpc_call_cancel_with_status(p->call, GRPC_STATUS_CANCELLED,
                                       "the call was given up", NULL);
}

int rpc_call_finish(struct rpc_pending *p, struct rpc_msg *reply,
                    struct hedge_error *e)
{
    struct unary *u = &p->unary;
    int rv = rpc_status_read(u->status, &u->details, &u->trailing, e);

    reply->impl = NULL;
    if (rv == 0 && *rpc_message_slot(u->reply) == NULL) {
        rv = error_set(e, HEDGE_EPROTO,
                       "a call was answered without a "
                       "message");
    }
    if (rv == 0) {
        rpc_message_rewind(u->reply);
        reply->impl = u->reply;
        u->reply = NULL;
    }
    pending_free(p);
    return rv;
}

/* --- streams ----------------------------------------------------------------
 */

int rpc_stream_open(struct rpc_channel *c, const char *path,
                    uint64_t timeout_ms, struct rpc_stream **out)
{
    struct rpc_stream *s;
    int rv;

    *out = NULL;
    s = mem_alloc(sizeof *s);
    if (s == NULL) {
        return HEDGE_ENOMEM;
    }
    rpc_stream_init(s, false);
    s->until_ns = rpc_until(timeout_ms);
    s->call = call_new(c, path, s->until_ns);
    rv = rpc_stream_begin(s);
    if (rv != 0) {
        rpc_stream_free(s);
        return rv;
    }
    *out = s;
    return 0;
}

void rpc_stream_free(struct rpc_stream *s)
{
    if (s == NULL) {
        return;
    }
    assert(s->magic == RPC_STREAM_MAGIC && !s->is_server);
    (void)grpc_call_cancel_with_status(s->call, GRPC_STATUS_CANCELLED,
                                       "the stream was given up", NULL);
    rpc_stream_drain(s);
    rpc_stream_release(s);
    mem_free(s);
}
