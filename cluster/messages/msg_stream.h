/* msg_stream.h - streams of messages: what struct hedge_stream is, and how
 * other protocols make one for a stream handler.
 *
 * Ownership: msg_stream_serve() and _wrap() make a stream that lives until
 *            msg_stream_free(); its transport stays the caller's.
 * Threads:   as hedge_stream_send() and hedge_stream_recv().
 * Errors:    as those.
 * Units:     milliseconds.
 * Limits:    a message of up to MSG_MAX bytes, in pieces of 1 MiB, with up to
 *            256 pairs of 64 KiB of text, terminators included. */
#ifndef CLUSTER_MSG_STREAM_H
#define CLUSTER_MSG_STREAM_H

#include "cluster/hedge.h"
#include "cluster/rpc/rpc.h"

/* A transport of another protocol. What recv hands out lives until the next
 * one; 0, HEDGE_EEND, HEDGE_ETIMEDOUT or what has happened. */
struct msg_stream_ops {
    int (*recv)(void *ctx, uint64_t timeout_ms, struct hedge_message *out,
                struct hedge_error *e);
    int (*send)(void *ctx, const struct hedge_message *m, uint64_t timeout_ms);
};

int msg_stream_wrap(struct hedge_node *n, const struct msg_stream_ops *ops,
                    void *ctx, struct hedge_stream **out);
/* The server's end of a stream of StreamItems, whose first has been received.
 * `from`: who has opened it. */
int msg_stream_serve(struct hedge_node *n, struct rpc_stream *s,
                     const char *from, struct hedge_stream **out);
/* Its handler is about to run: the client is told so. */
int msg_stream_begin(struct hedge_stream *s);
void msg_stream_free(struct hedge_stream *s);
/* Calls in progress return; any thread. Of the client's end. */
void msg_stream_cancel(struct hedge_stream *s);

/* hedge_stream_send() in another node's name, for those who pass messages on;
 * and that a member has failed. */
int msg_stream_pass(struct hedge_stream *s, const char *from,
                    const struct hedge_message *m, uint64_t timeout_ms);
int msg_stream_send_error(struct hedge_stream *s, const char *from, int code,
                          const char *text, uint64_t timeout_ms);

/* As hedge_stream_to_leader(), for somebody who may have gone meanwhile. */
int msg_stream_to_leader(struct hedge_node *n, const char *from,
                         uint64_t timeout_ms, bool (*gone)(void *ctx),
                         void *ctx, struct hedge_stream **out,
                         struct hedge_error *e);
int msg_stream_broadcast(struct hedge_node *n, const char *from, bool skip_self,
                         uint64_t timeout_ms, struct hedge_stream **out,
                         struct hedge_error *e);

#endif
