/* The life of a stream, both ends:
 *
 * 1. rpc_stream_init(), then a call is bound to its queue (client: opened,
 *    server: arrived);
 * 2. rpc_stream_watch_end() starts the op that completes when the call ends;
 * 3. sending and receiving, one op of each kind outstanding at most. An op
 *    that was not waited for to its end (time-out) stays outstanding and the
 *    next call goes on waiting for it;
 * 4. the call is ended: cancelled, or a status sent;
 * 5. rpc_stream_drain() waits for what is outstanding;
 * 6. rpc_stream_release(). */
#include "cluster/rpc/rpc_internal.h"

#include "store/base/mem.h"

#include <assert.h>
#include <grpc/support/alloc.h>
#include <string.h>

/* After a failed send: how long to wait for the reason. It is there at once
 * unless messages that nobody has received yet stand before it. */
#define REASON_WAIT_MS 100
/* A client's deadline passes here later than there by what the request took
 * to arrive. */
#define DEADLINE_SLACK_MS 50

int rpc_stream_init(struct rpc_stream *s, bool is_server)
{
    memset(s, 0, sizeof *s);
    s->cq = rpc_queue_get();
    if (s->cq == NULL) {
        return HEDGE_ENOMEM;
    }
    s->magic = RPC_STREAM_MAGIC;
    s->is_server = is_server;
    s->deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    s->details = grpc_empty_slice();
    pthread_mutex_init(&s->end_lock, NULL);
    grpc_metadata_array_init(&s->headers);
    grpc_metadata_array_init(&s->trailing);
    return 0;
}

void rpc_stream_release(struct rpc_stream *s)
{
    assert(s->magic == RPC_STREAM_MAGIC);
    assert(!s->sending && !s->receiving);
    rpc_message_free(s->incoming);
    grpc_metadata_array_destroy(&s->headers);
    grpc_metadata_array_destroy(&s->trailing);
    grpc_slice_unref(s->details);
    gpr_free(s->peer);
    if (s->call != NULL) {
        grpc_call_unref(s->call);
    }
    rpc_queue_put(s->cq);
    pthread_mutex_destroy(&s->end_lock);
    s->magic = 0;
}

/* --- how it ends ------------------------------------------------------------
 */

int rpc_stream_watch_end(struct rpc_stream *s)
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
    rv = rpc_start(s->call, &op, 1, &s->tag_end);
    s->end_started = rv == 0;
    return rv;
}

/* Why a server's call is over before its handler said so. gRPC does not tell a
 * client that cancelled from one that died. */
static int server_gone(struct rpc_stream *s, struct hedge_error *e)
{
    if (atomic_load(&s->cancelled_here)) {
        return error_set(e, HEDGE_ECANCELED, "the stream was cancelled here");
    }
    if (rpc_ms_until(s->deadline) <= DEADLINE_SLACK_MS) {
        return error_set(e, HEDGE_ETIMEDOUT,
                         "the deadline of the stream has "
                         "passed");
    }
    return error_set(e, HEDGE_ECANCELED,
                     "the client cancelled the stream or has gone");
}

/* Returns whether it is known how the call ended. */
static bool end_wait(struct rpc_stream *s, gpr_timespec deadline)
{
    bool known;

    pthread_mutex_lock(&s->end_lock);
    if (!s->end_known && s->end_started &&
        rpc_wait(s->cq, &s->tag_end, deadline) != RPC_TIMEOUT) {
        s->end_known = true;
        if (!s->is_server) {
            (void)rpc_status_read(s->status, &s->details, &s->trailing,
                                  &s->end);
        } else if (s->gone) {
            (void)server_gone(s, &s->end);
        }
    }
    known = s->end_known;
    pthread_mutex_unlock(&s->end_lock);
    return known;
}

static bool end_is_known(struct rpc_stream *s)
{
    return end_wait(s, gpr_inf_past(GPR_CLOCK_MONOTONIC));
}

/* --- sending ----------------------------------------------------------------
 */

/* The code of a send that did not go through. */
static int send_error(struct rpc_stream *s)
{
    if (end_wait(s, rpc_deadline(REASON_WAIT_MS)) && s->end.code != 0) {
        return s->end.code;
    }
    return s->is_server ? server_gone(s, NULL) : HEDGE_ECLOSED;
}

static int send_settle(struct rpc_stream *s, gpr_timespec deadline)
{
    enum rpc_outcome rc;

    if (s->sending) {
        rc = rpc_wait(s->cq, &s->tag_send, deadline);
        if (rc == RPC_TIMEOUT) {
            return HEDGE_ETIMEDOUT;
        }
        s->sending = false;
        s->send_failed = s->send_failed || rc == RPC_FAILED;
        if (s->send_buffer != NULL) {
            grpc_byte_buffer_destroy(s->send_buffer);
            s->send_buffer = NULL;
        }
    }
    return s->send_failed ? send_error(s) : 0;
}

/* A server's headers go with the first thing it sends. */
static size_t headers_op(struct rpc_stream *s, grpc_op *op)
{
    if (!s->is_server || s->sent_headers) {
        return 0;
    }
    memset(op, 0, sizeof *op);
    op->op = GRPC_OP_SEND_INITIAL_METADATA;
    s->sent_headers = true;
    return 1;
}

static int send_start(struct rpc_stream *s, const grpc_op *op)
{
    grpc_op ops[2];
    size_t n = headers_op(s, ops);
    int rv;

    ops[n++] = *op;
    rv = rpc_start(s->call, ops, n, &s->tag_send);
    s->sending = rv == 0;
    return rv;
}

int rpc_stream_send(struct rpc_stream *s, const struct rpc_out *out,
                    uint64_t timeout_ms)
{
    gpr_timespec deadline = rpc_deadline(timeout_ms);
    grpc_op op;
    int rv;

    assert(s->magic == RPC_STREAM_MAGIC);
    if (s->send_closed) {
        rv = HEDGE_ECLOSED;
    } else if (out->head_len > RPC_MESSAGE_MAX ||
               out->body_len > RPC_MESSAGE_MAX - out->head_len) {
        rv = HEDGE_ETOOBIG;
    } else {
        rv = send_settle(s, deadline);
    }
    if (rv != 0) {
        rpc_out_release(out);
        return rv;
    }
    s->send_buffer = rpc_buffer_from_out(out);
    if (s->send_buffer == NULL) {
        return HEDGE_ENOMEM;
    }
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_SEND_MESSAGE;
    op.data.send_message.send_message = s->send_buffer;
    rv = send_start(s, &op);
    if (rv != 0) {
        grpc_byte_buffer_destroy(s->send_buffer);
        s->send_buffer = NULL;
        return rv;
    }
    return send_settle(s, deadline);
}

int rpc_stream_close_send(struct rpc_stream *s)
{
    grpc_op op;
    int rv;

    assert(s->magic == RPC_STREAM_MAGIC);
    if (s->is_server) {
        return HEDGE_ENOTSUP;
    }
    if (s->send_closed) {
        return 0;
    }
    rv = send_settle(s, gpr_inf_future(GPR_CLOCK_MONOTONIC));
    if (rv != 0) {
        return rv;
    }
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    s->send_closed = true;
    return send_start(s, &op);
}

/* --- receiving --------------------------------------------------------------
 */

static int recv_start(struct rpc_stream *s)
{
    grpc_op op;
    int rv;

    if (s->incoming == NULL) {
        s->incoming = rpc_message_new();
        if (s->incoming == NULL) {
            return HEDGE_ENOMEM;
        }
    }
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = rpc_message_slot(s->incoming);
    rv = rpc_start(s->call, &op, 1, &s->tag_recv);
    s->receiving = rv == 0;
    return rv;
}

/* No more messages: is it the end, or has something happened? */
static int recv_end(struct rpc_stream *s, gpr_timespec deadline,
                    struct hedge_error *e)
{
    bool known;

    if (s->is_server) {
        known = end_is_known(s);
        if (known && s->end.code != 0) {
            s->recv_error = s->end;
        } else if (s->recv_failed) {
            (void)server_gone(s, &s->recv_error);
        } else {
            (void)error_set(&s->recv_error, HEDGE_EEND,
                            "the client sends no more");
        }
    } else if (!end_wait(s, deadline)) {
        return error_set(e, HEDGE_ETIMEDOUT, "nothing was received in time");
    } else if (s->end.code != 0) {
        s->recv_error = s->end;
    } else {
        (void)error_set(&s->recv_error, HEDGE_EEND, "the stream has ended");
    }
    s->recv_final = true;
    return error_set(e, s->recv_error.code, "%s", s->recv_error.text);
}

int rpc_stream_recv(struct rpc_stream *s, uint64_t timeout_ms,
                    struct rpc_msg *msg, struct hedge_error *e)
{
    gpr_timespec deadline = rpc_deadline(timeout_ms);
    enum rpc_outcome rc;
    int rv;

    assert(s->magic == RPC_STREAM_MAGIC);
    msg->impl = NULL;
    if (s->recv_final) {
        return error_set(e, s->recv_error.code, "%s", s->recv_error.text);
    }
    if (s->recv_over) {
        return recv_end(s, deadline, e);
    }
    if (!s->receiving) {
        rv = recv_start(s);
        if (rv != 0) {
            return error_set(e, rv, "cannot receive: %s", hedge_strerror(rv));
        }
    }
    rc = rpc_wait(s->cq, &s->tag_recv, deadline);
    if (rc == RPC_TIMEOUT) {
        return error_set(e, HEDGE_ETIMEDOUT, "nothing was received in time");
    }
    s->receiving = false;
    if (rc == RPC_DONE && *rpc_message_slot(s->incoming) != NULL) {
        rpc_message_rewind(s->incoming);
        msg->impl = s->incoming;
        s->incoming = NULL;
        return 0;
    }
    s->recv_over = true;
    s->recv_failed =
        rc == RPC_FAILED || grpc_call_failed_before_recv_message(s->call) != 0;
    return recv_end(s, deadline, e);
}

/* --- the rest ---------------------------------------------------------------
 */

void rpc_stream_cancel(struct rpc_stream *s)
{
    assert(s->magic == RPC_STREAM_MAGIC);
    atomic_store(&s->cancelled_here, true);
    (void)grpc_call_cancel_with_status(s->call, GRPC_STATUS_CANCELLED,
                                       "the stream was cancelled", NULL);
}

bool rpc_stream_is_cancelled(struct rpc_stream *s)
{
    assert(s->magic == RPC_STREAM_MAGIC);
    return atomic_load(&s->cancelled_here) ||
           (end_is_known(s) && s->end.code != 0);
}

const char *rpc_stream_peer(struct rpc_stream *s)
{
    assert(s->magic == RPC_STREAM_MAGIC);
    if (s->peer == NULL) {
        s->peer = grpc_call_get_peer(s->call);
    }
    return s->peer != NULL ? s->peer : "unknown";
}

void rpc_stream_drain(struct rpc_stream *s)
{
    gpr_timespec never = gpr_inf_future(GPR_CLOCK_MONOTONIC);

    if (s->opened) {
        (void)rpc_wait(s->cq, &s->tag_open, never);
        s->opened = false;
    }
    if (s->sending) {
        (void)rpc_wait(s->cq, &s->tag_send, never);
        s->sending = false;
    }
    if (s->send_buffer != NULL) {
        grpc_byte_buffer_destroy(s->send_buffer);
        s->send_buffer = NULL;
    }
    if (s->receiving) {
        (void)rpc_wait(s->cq, &s->tag_recv, never);
        s->receiving = false;
    }
    (void)end_wait(s, never);
}

void rpc_stream_finish(struct rpc_stream *s, int code, const char *text)
{
    struct rpc_status_op st;
    grpc_op op;

    assert(s->is_server);
    /* The last message may be stuck behind a client that does not read. With
     * an error to tell there is no point in waiting for it. */
    if (s->sending && code != 0) {
        (void)grpc_call_cancel_with_status(s->call, rpc_status_from_code(code),
                                           text, NULL);
    }
    (void)send_settle(s, gpr_inf_future(GPR_CLOCK_MONOTONIC));
    rpc_status_op_init(&st, &op, code, text);
    if (send_start(s, &op) != 0) {
        (void)grpc_call_cancel_with_status(s->call, GRPC_STATUS_INTERNAL,
                                           "the status could not be sent",
                                           NULL);
    }
    rpc_status_op_release(&st);
    rpc_stream_drain(s);
}
