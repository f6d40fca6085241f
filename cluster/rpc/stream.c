/* The life of a stream, both ends:
 *
 * 1. rpc_stream_init(); then there is a call (client: made, server: arrived);
 * 2. rpc_stream_begin() starts the operation that completes when the call ends
 *    and the first receive. From then on a receive is always under way unless
 *    the reader is RPC_READY_MAX messages behind;
 * 3. sending and receiving. An operation that was not waited for to its end
 *    (time-out) goes on, and the next call goes on waiting for it;
 * 4. the call is ended: cancelled, or a status sent;
 * 5. rpc_stream_drain() waits until nothing is under way;
 * 6. rpc_stream_release(). */
#include "cluster/rpc/rpc_internal.h"

#include "store/base/clock.h"
#include "store/base/list.h"
#include "store/base/mem.h"

#include <assert.h>
#include <grpc/support/alloc.h>
#include <string.h>

/* After a failed send: how long to wait for the reason. It is there at once
 * unless messages that nobody has received yet stand before it. */
#define REASON_WAIT_MS 100
/* A client's deadline passes here later than there by what the request took
 * to arrive. */
#define DEADLINE_SLACK_NS 50000000u

static void on_open(struct rpc_tag *t, bool ok);
static void on_send(struct rpc_tag *t, bool ok);
static void on_recv(struct rpc_tag *t, bool ok);
static void on_end(struct rpc_tag *t, bool ok);

void rpc_stream_init(struct rpc_stream *s, bool is_server)
{
    memset(s, 0, sizeof *s);
    s->magic = RPC_STREAM_MAGIC;
    s->is_server = is_server;
    s->until_ns = RPC_NEVER;
    s->details = grpc_empty_slice();
    s->open.tag = RPC_TAG_INIT(on_open);
    s->send.tag = RPC_TAG_INIT(on_send);
    s->recv.tag = RPC_TAG_INIT(on_recv);
    s->end.tag = RPC_TAG_INIT(on_end);
    pthread_mutex_init(&s->lock, NULL);
    rpc_cond_init(&s->can_send);
    rpc_cond_init(&s->can_recv);
    rpc_cond_init(&s->drained);
    grpc_metadata_array_init(&s->headers);
    grpc_metadata_array_init(&s->trailing);
}

void rpc_stream_release(struct rpc_stream *s)
{
    assert(s->magic == RPC_STREAM_MAGIC);
    assert(!s->open.pending && !s->send.pending && !s->recv.pending &&
           !s->end.pending);
    for (unsigned i = 0; i < s->n_ready; i++) {
        rpc_message_free(s->ready[i]);
    }
    rpc_message_free(s->incoming);
    grpc_metadata_array_destroy(&s->headers);
    grpc_metadata_array_destroy(&s->trailing);
    grpc_slice_unref(s->details);
    gpr_free(s->peer);
    if (s->call != NULL) {
        grpc_call_unref(s->call);
    }
    pthread_cond_destroy(&s->can_send);
    pthread_cond_destroy(&s->can_recv);
    pthread_cond_destroy(&s->drained);
    pthread_mutex_destroy(&s->lock);
    s->magic = 0;
}

/* With s->lock held. */
static void op_done(struct rpc_stream *s, struct rpc_stream_op *op)
{
    assert(op->pending);
    op->pending = false;
    if (s->notify != NULL) {
        s->notify(s->notify_arg);
    }
    if (!s->open.pending && !s->send.pending && !s->recv.pending &&
        !s->end.pending) {
        pthread_cond_signal(&s->drained);
    }
}

/* --- how it ends ------------------------------------------------------------
 */

/* Why a server's call is over before its handler said so. gRPC does not tell a
 * client that cancelled from one that died. */
static int server_gone(struct rpc_stream *s, struct hedge_error *e)
{
    if (atomic_load(&s->cancelled_here)) {
        return error_set(e, HEDGE_ECANCELED, "the stream was cancelled here");
    }
    if (s->until_ns != RPC_NEVER &&
        clock_mono_ns() + DEADLINE_SLACK_NS >= s->until_ns) {
        return error_set(e, HEDGE_ETIMEDOUT,
                         "the deadline of the stream has passed");
    }
    return error_set(e, HEDGE_ECANCELED,
                     "the client cancelled the stream or has gone");
}

static void on_end(struct rpc_tag *t, bool ok)
{
    struct rpc_stream *s = container_of(t, struct rpc_stream, end.tag);

    (void)ok; /* These two operations always succeed. */
    pthread_mutex_lock(&s->lock);
    if (!s->is_server) {
        (void)rpc_status_read(s->status, &s->details, &s->trailing,
                              &s->end_error);
    } else if (s->gone) {
        (void)server_gone(s, &s->end_error);
    }
    s->end_known = true;
    pthread_cond_broadcast(&s->can_send);
    pthread_cond_broadcast(&s->can_recv);
    op_done(s, &s->end);
    pthread_mutex_unlock(&s->lock);
}

static int end_start(struct rpc_stream *s)
{
    grpc_op op;
    int rv;

    memset(&op, 0, sizeof op);
    if (s->is_server) {
        op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
        op.data.recv_close_on_server.cancelled = &s->gone;
    } else {
        op.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
        op.data.recv_status_on_client.trailing_metadata = &s->trailing;
        op.data.recv_status_on_client.status = &s->status;
        op.data.recv_status_on_client.status_details = &s->details;
    }
    s->end.pending = true;
    rv = rpc_start_here(s->call, &op, 1, &s->end.tag);
    if (rv != 0) {
        s->end.pending = false;
    }
    return rv;
}

/* --- sending ----------------------------------------------------------------
 */

/* With s->lock held: the code of a send that did not go through. */
static int send_error(struct rpc_stream *s)
{
    uint64_t until_ns = rpc_until(REASON_WAIT_MS);

    while (!s->end_known && rpc_cond_wait(&s->can_send, &s->lock, until_ns)) {
    }
    if (s->end_known && s->end_error.code != 0) {
        return s->end_error.code;
    }
    return s->is_server ? server_gone(s, NULL) : HEDGE_ECLOSED;
}

static void start_close(struct rpc_stream *s)
{
    grpc_op op;

    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    if (rpc_start(s->call, &op, 1, &s->send.tag) != 0) {
        on_send(&s->send.tag, false);
    }
}

static void send_op(grpc_op *op, grpc_byte_buffer *message)
{
    memset(op, 0, sizeof *op);
    op->op = GRPC_OP_SEND_MESSAGE;
    op->data.send_message.send_message = message;
}

/* With s->lock held: what has been posted is to be sent now, or never. The
 * message to start, or NULL; *left is to be destroyed; *close: the end of
 * sending is to be started. */
static grpc_byte_buffer *send_turn(struct rpc_stream *s, bool ok,
                                   grpc_byte_buffer **left, bool *close)
{
    grpc_byte_buffer *next = s->send_next;

    s->send_failed = s->send_failed || !ok;
    s->send_next = *left = NULL;
    if (s->send_failed) {
        *left = next;
        next = NULL;
    }
    s->send_buffer = next;
    *close = next == NULL && s->close_wanted && !s->send_failed;
    if (next == NULL) {
        s->close_wanted = false;
    }
    if (next == NULL && !*close) { /* Else sending is under way still. */
        op_done(s, &s->send);
    }
    pthread_cond_signal(&s->can_send);
    return next;
}

static void on_send(struct rpc_tag *t, bool ok)
{
    struct rpc_stream *s = container_of(t, struct rpc_stream, send.tag);
    grpc_byte_buffer *sent, *next, *left;
    grpc_op op;
    bool close;

    do {
        pthread_mutex_lock(&s->lock);
        sent = s->send_buffer;
        next = send_turn(s, ok, &left, &close);
        pthread_mutex_unlock(&s->lock);
        grpc_byte_buffer_destroy(sent);
        grpc_byte_buffer_destroy(left);
        if (next != NULL) {
            send_op(&op, next);
            ok = rpc_start(s->call, &op, 1, &s->send.tag) == 0;
        }
    } while (next != NULL && !ok);
    if (close) {
        start_close(s);
    }
}

/* With s->lock held: wait until nothing is being sent. */
static int send_settle(struct rpc_stream *s, uint64_t until_ns)
{
    while (s->send.pending) {
        if (!rpc_cond_wait(&s->can_send, &s->lock, until_ns) &&
            s->send.pending) {
            return HEDGE_ETIMEDOUT;
        }
    }
    return s->send_failed ? send_error(s) : 0;
}

/* With s->lock held, which is dropped meanwhile. `message` (may be NULL) is
 * kept until it is sent. */
static int send_start(struct rpc_stream *s, const grpc_op *op,
                      grpc_byte_buffer *message)
{
    grpc_op ops[2];
    size_t n = 0;
    int rv;

    assert(!s->send.pending);
    memset(ops, 0, sizeof ops);
    if (s->is_server && !s->sent_headers) {
        s->sent_headers = true;
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    }
    ops[n++] = *op;
    s->send_buffer = message;
    s->send.pending = true;
    pthread_mutex_unlock(&s->lock);
    rv = rpc_start_here(s->call, ops, n, &s->send.tag);
    if (rv != 0) {
        on_send(&s->send.tag, false);
    }
    pthread_mutex_lock(&s->lock);
    return rv;
}

/* With s->lock held: wait until a message may be posted. */
static int send_await_turn(struct rpc_stream *s, uint64_t until_ns)
{
    while (s->send_next != NULL) {
        if (!rpc_cond_wait(&s->can_send, &s->lock, until_ns) &&
            s->send_next != NULL) {
            return HEDGE_ETIMEDOUT;
        }
    }
    return s->send_failed ? send_error(s) : 0;
}

static int message_new(const struct rpc_out *out, grpc_byte_buffer **message)
{
    *message = NULL;
    if (out->head_len > RPC_MESSAGE_MAX ||
        out->body_len > RPC_MESSAGE_MAX - out->head_len) {
        rpc_out_release(out);
        return HEDGE_ETOOBIG;
    }
    *message = rpc_buffer_from_out(out);
    return *message != NULL ? 0 : HEDGE_ENOMEM;
}

int rpc_stream_post(struct rpc_stream *s, const struct rpc_out *out,
                    uint64_t timeout_ms)
{
    uint64_t until_ns = rpc_until(timeout_ms);
    grpc_byte_buffer *message;
    grpc_op op;
    int rv = message_new(out, &message);

    assert(s->magic == RPC_STREAM_MAGIC);
    if (rv != 0) {
        return rv;
    }
    pthread_mutex_lock(&s->lock);
    rv = s->send_closed ? HEDGE_ECLOSED : send_await_turn(s, until_ns);
    if (rv == 0 && s->send.pending) {
        s->send_next = message;
        message = NULL;
    } else if (rv == 0) {
        send_op(&op, message);
        rv = send_start(s, &op, message);
        message = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    grpc_byte_buffer_destroy(message);
    return rv;
}

int rpc_stream_settle(struct rpc_stream *s, uint64_t timeout_ms)
{
    uint64_t until_ns = rpc_until(timeout_ms);
    int rv;

    assert(s->magic == RPC_STREAM_MAGIC);
    pthread_mutex_lock(&s->lock);
    rv = send_settle(s, until_ns);
    pthread_mutex_unlock(&s->lock);
    return rv;
}

int rpc_stream_send(struct rpc_stream *s, const struct rpc_out *out,
                    uint64_t timeout_ms)
{
    uint64_t until_ns = rpc_until(timeout_ms);
    grpc_byte_buffer *message;
    grpc_op op;
    int rv = message_new(out, &message);

    assert(s->magic == RPC_STREAM_MAGIC);
    if (rv != 0) {
        return rv;
    }
    send_op(&op, message);
    pthread_mutex_lock(&s->lock);
    rv = s->send_closed ? HEDGE_ECLOSED : send_settle(s, until_ns);
    if (rv == 0) {
        rv = send_start(s, &op, message);
        message = NULL;
        rv = rv == 0 ? send_settle(s, until_ns) : rv;
    }
    pthread_mutex_unlock(&s->lock);
    grpc_byte_buffer_destroy(message);
    return rv;
}

int rpc_stream_try_send(struct rpc_stream *s, const struct rpc_out *out)
{
    grpc_byte_buffer *message;
    grpc_op op;
    int rv = message_new(out, &message);

    assert(s->magic == RPC_STREAM_MAGIC);
    if (rv != 0) {
        return rv;
    }
    send_op(&op, message);
    pthread_mutex_lock(&s->lock);
    rv = s->send_closed    ? HEDGE_ECLOSED
         : s->send.pending ? HEDGE_EAGAIN
         : s->send_failed  ? send_error(s)
                           : 0;
    if (rv == 0) {
        rv = send_start(s, &op, message);
        message = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    grpc_byte_buffer_destroy(message);
    return rv;
}

bool rpc_stream_can_send(struct rpc_stream *s)
{
    bool can;

    pthread_mutex_lock(&s->lock);
    can = !s->send.pending;
    pthread_mutex_unlock(&s->lock);
    return can;
}

int rpc_stream_end_send(struct rpc_stream *s)
{
    bool now = false;

    assert(s->magic == RPC_STREAM_MAGIC && !s->is_server);
    pthread_mutex_lock(&s->lock);
    if (!s->send_closed) {
        s->send_closed = true;
        now = !s->send.pending && !s->send_failed;
        s->close_wanted = s->send.pending;
        s->send.pending = s->send.pending || now;
    }
    pthread_mutex_unlock(&s->lock);
    if (now) {
        start_close(s);
    }
    return 0;
}

void rpc_stream_notify(struct rpc_stream *s, rpc_notify_fn fn, void *arg)
{
    pthread_mutex_lock(&s->lock);
    s->notify = fn;
    s->notify_arg = arg;
    if (fn != NULL) {
        fn(arg);
    }
    pthread_mutex_unlock(&s->lock);
}

int rpc_stream_close_send(struct rpc_stream *s)
{
    grpc_op op;
    int rv = 0;

    assert(s->magic == RPC_STREAM_MAGIC);
    if (s->is_server) {
        return HEDGE_ENOTSUP;
    }
    pthread_mutex_lock(&s->lock);
    if (!s->send_closed) {
        rv = send_settle(s, RPC_NEVER);
    }
    if (rv == 0 && !s->send_closed) {
        memset(&op, 0, sizeof op);
        op.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        s->send_closed = true;
        rv = send_start(s, &op, NULL);
    }
    pthread_mutex_unlock(&s->lock);
    return rv;
}

/* --- receiving --------------------------------------------------------------
 */

/* With s->lock held: whether a receive should be under way and is not. Then
 * it is the caller's to start. */
static bool recv_claim(struct rpc_stream *s)
{
    if (s->recv.pending || s->recv_over || s->n_ready == RPC_READY_MAX) {
        return false;
    }
    if (s->incoming == NULL) {
        s->incoming = rpc_message_new();
    }
    s->recv.pending = s->incoming != NULL;
    return s->recv.pending;
}

static void recv_start(struct rpc_stream *s, bool here)
{
    grpc_op op;
    int rv;

    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = rpc_message_slot(s->incoming);
    rv = here ? rpc_start_here(s->call, &op, 1, &s->recv.tag)
              : rpc_start(s->call, &op, 1, &s->recv.tag);
    if (rv != 0) {
        on_recv(&s->recv.tag, false);
    }
}

static void on_recv(struct rpc_tag *t, bool ok)
{
    struct rpc_stream *s = container_of(t, struct rpc_stream, recv.tag);
    bool more;

    pthread_mutex_lock(&s->lock);
    if (ok && *rpc_message_slot(s->incoming) != NULL) {
        rpc_message_rewind(s->incoming);
        s->ready[s->n_ready++] = s->incoming;
        s->incoming = NULL;
    } else {
        s->recv_over = true;
        s->recv_failed =
            !ok || grpc_call_failed_before_recv_message(s->call) != 0;
    }
    op_done(s, &s->recv);
    more = recv_claim(s);
    pthread_cond_signal(&s->can_recv);
    pthread_mutex_unlock(&s->lock);
    if (more) {
        recv_start(s, false);
    }
}

/* With s->lock held: there are no more messages. Is it the end, or has
 * something happened? */
static int recv_end(struct rpc_stream *s, struct hedge_error *e)
{
    if (s->end_known && s->end_error.code != 0) {
        return error_set(e, s->end_error.code, "%s", s->end_error.text);
    }
    if (s->is_server && s->recv_failed) {
        return server_gone(s, e);
    }
    return error_set(e, HEDGE_EEND,
                     s->is_server ? "the client sends no more"
                                  : "the stream has ended");
}

/* With s->lock held. A client's messages are over when its status is known. */
static bool recv_must_wait(const struct rpc_stream *s)
{
    return s->n_ready == 0 && !(s->recv_over && (s->is_server || s->end_known));
}

static int recv_next(struct rpc_stream *s, uint64_t until_ns,
                     struct rpc_msg *msg, struct hedge_error *e)
{
    while (recv_must_wait(s)) {
        if (!s->recv.pending && !s->recv_over) {
            return error_set(e, HEDGE_ENOMEM, "no memory to receive");
        }
        if (!rpc_cond_wait(&s->can_recv, &s->lock, until_ns) &&
            recv_must_wait(s)) {
            return error_set(e, HEDGE_ETIMEDOUT,
                             "nothing was received in time");
        }
    }
    if (s->n_ready == 0) {
        return recv_end(s, e);
    }
    msg->impl = s->ready[0];
    s->n_ready--;
    memmove(s->ready, s->ready + 1, s->n_ready * sizeof(struct rpc_message *));
    return 0;
}

int rpc_stream_recv(struct rpc_stream *s, uint64_t timeout_ms,
                    struct rpc_msg *msg, struct hedge_error *e)
{
    uint64_t until_ns = rpc_until(timeout_ms);
    bool more;
    int rv;

    assert(s->magic == RPC_STREAM_MAGIC);
    msg->impl = NULL;
    pthread_mutex_lock(&s->lock);
    more = recv_claim(s); /* Only after one that could not be started. */
    if (more) {
        pthread_mutex_unlock(&s->lock);
        recv_start(s, true);
        pthread_mutex_lock(&s->lock);
    }
    rv = recv_next(s, until_ns, msg, e);
    more = rv == 0 && recv_claim(s);
    pthread_mutex_unlock(&s->lock);
    if (more) {
        recv_start(s, true);
    }
    return rv;
}

/* --- the rest ---------------------------------------------------------------
 */

static void on_open(struct rpc_tag *t, bool ok)
{
    struct rpc_stream *s = container_of(t, struct rpc_stream, open.tag);

    (void)ok; /* The end tells. */
    pthread_mutex_lock(&s->lock);
    op_done(s, &s->open);
    pthread_mutex_unlock(&s->lock);
}

static int open_start(struct rpc_stream *s)
{
    grpc_op ops[2];
    int rv;

    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[1].data.recv_initial_metadata.recv_initial_metadata = &s->headers;
    s->open.pending = true;
    rv = rpc_start_here(s->call, ops, 2, &s->open.tag);
    if (rv != 0) {
        s->open.pending = false;
    }
    return rv;
}

int rpc_stream_begin(struct rpc_stream *s)
{
    bool more;
    int rv = end_start(s);

    if (rv == 0 && !s->is_server) {
        rv = open_start(s);
    }
    if (rv == 0) {
        pthread_mutex_lock(&s->lock);
        more = recv_claim(s);
        pthread_mutex_unlock(&s->lock);
        if (more) {
            recv_start(s, true);
        }
    }
    return rv;
}

void rpc_stream_cancel(struct rpc_stream *s)
{
    assert(s->magic == RPC_STREAM_MAGIC);
    atomic_store(&s->cancelled_here, true);
    (void)grpc_call_cancel_with_status(s->call, GRPC_STATUS_CANCELLED,
                                       "the stream was cancelled", NULL);
}

bool rpc_stream_is_cancelled(struct rpc_stream *s)
{
    bool over;

    assert(s->magic == RPC_STREAM_MAGIC);
    pthread_mutex_lock(&s->lock);
    over = s->end_known && s->end_error.code != 0;
    pthread_mutex_unlock(&s->lock);
    return over || atomic_load(&s->cancelled_here);
}

uint64_t rpc_stream_left_ms(const struct rpc_stream *s)
{
    assert(s->magic == RPC_STREAM_MAGIC);
    return rpc_left_ms(s->until_ns);
}

const char *rpc_stream_peer(struct rpc_stream *s)
{
    assert(s->magic == RPC_STREAM_MAGIC);
    pthread_mutex_lock(&s->lock);
    if (s->peer == NULL) {
        s->peer = grpc_call_get_peer(s->call);
    }
    pthread_mutex_unlock(&s->lock);
    return s->peer != NULL ? s->peer : "unknown";
}

void rpc_stream_drain(struct rpc_stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->recv_over = true; /* Start no more of them. */
    while (s->open.pending || s->send.pending || s->recv.pending ||
           s->end.pending) {
        pthread_cond_wait(&s->drained, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

void rpc_stream_finish(struct rpc_stream *s, int code, const char *text)
{
    struct rpc_status_op st;
    grpc_op op;
    bool stuck;
    int rv;

    assert(s->is_server);
    pthread_mutex_lock(&s->lock);
    stuck = s->send.pending;
    pthread_mutex_unlock(&s->lock);
    /* The last message may be stuck behind a client that does not read. With
     * an error to tell there is no point in waiting for it. */
    if (stuck && code != 0) {
        (void)grpc_call_cancel_with_status(s->call, rpc_status_from_code(code),
                                           text, NULL);
    }
    pthread_mutex_lock(&s->lock);
    (void)send_settle(s, RPC_NEVER);
    rpc_status_op_init(&st, &op, code, text);
    rv = send_start(s, &op, NULL);
    pthread_mutex_unlock(&s->lock);
    if (rv != 0) {
        (void)grpc_call_cancel_with_status(s->call, GRPC_STATUS_INTERNAL,
                                           "the status could not be sent",
                                           NULL);
    }
    rpc_status_op_release(&st);
    rpc_stream_drain(s);
}
