/* rpc.h - the thin layer over gRPC's C core; nothing else includes <grpc/...>.
 *
 * Unary calls and full-duplex streams with blocking calls. One thread of the
 * process polls for all of them; a sender writes by itself what the socket
 * takes. Small messages are bytes; a bulk message is a few encoded bytes
 * followed by one block that is sent without a copy.
 *
 * Ownership: what _new/_open/_recv hand out belongs to the caller until the
 *            matching _free/_release. Names and addresses are copied.
 * Threads:   a channel and a server may be used by any thread. A stream may be
 *            used by one sending and one receiving thread at a time;
 *            rpc_stream_cancel() may come from any.
 * Errors:    hedge codes; both ends see the code and text the far handler
 *            gave (gRPC status + trailing metadata `hedge-error`). A peer that
 *            cannot be reached or vanished is HEDGE_EUNAVAILABLE, a deadline
 *            HEDGE_ETIMEDOUT, a cancelled call HEDGE_ECANCELED, a method the
 *            peer lacks HEDGE_ENOTSUP. gRPC does not tell a server a client
 *            that vanished from one that cancelled: both HEDGE_ECANCELED.
 * Units:     bytes, milliseconds.
 * Limits:    RPC_MESSAGE_MAX per message; a node's messages share a budget. */
#ifndef CLUSTER_RPC_H
#define CLUSTER_RPC_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RPC_MESSAGE_MAX ((size_t)8 << 20)
#define RPC_NO_TIMEOUT UINT64_MAX

/* Process-wide and reference-counted. Never changes malloc settings or the
 * signal mask; rpc_process_setup() does, for programs. */
int rpc_init(void);
void rpc_shutdown(void);
/* The code of an error's name, "EFULL"; 0 for what is none. */
int rpc_code_from_name(const char *name, size_t len);
/* malloc thresholds that keep received slices warm, SIGPIPE ignored, core not
 * ended before the process; call it first in main(), before any thread. */
void rpc_process_setup(void);

/* --- saving wake-ups (duty.c) ---------------------------------------------
 *
 * For those few to whom the microseconds matter that it takes to wake another
 * thread. */

/* In an inline handler: what it does until it returns may block; other calls
 * are served meanwhile. False: not on this thread; hand it to another one. */
bool rpc_lend_thread(void);
/* This thread has the duty to poll, and has not lent itself. */
bool rpc_polls(void);
/* Instead of sleeping until a completion wakes this thread: work on completions
 * until done(arg), or until the time is up. `own` is a call of this thread's
 * that is under way. False, at once: another thread does so; sleep, between
 * rpc_poll_waits(true) and (false). No locks may be held. */
struct rpc_pending;
bool rpc_poll(bool (*done)(void *arg), void *arg, uint64_t timeout_ms,
              struct rpc_pending *own);
void rpc_poll_waits(bool waits);
/* In a rpc_done_fn: whom it wakes will soon call rpc_poll(). */
void rpc_leave_duty(void);

/* --- messages ------------------------------------------------------------- */

typedef void (*rpc_release_fn)(void *arg);

/* What is sent: `head` is copied; `body` is not, and stays unchanged until
 * `release` has run (on any thread, exactly once, also on errors; it must not
 * call rpc). `body` may be NULL. */
struct rpc_out {
    const void *head;
    size_t head_len;
    const void *body;
    size_t body_len;
    rpc_release_fn release;
    void *release_arg;
};

/* What was received: bytes to be read from front to back. */
struct rpc_msg {
    void *impl;
};
/* Bytes not yet read. */
size_t rpc_msg_left(const struct rpc_msg *m);
/* Look at up to `n` bytes without consuming them; returns how many of them lie
 * in one piece at *p (at least one unless none is left). */
size_t rpc_msg_peek(struct rpc_msg *m, const unsigned char **p);
/* Consume n bytes (n <= left) into dst; dst NULL skips them. */
void rpc_msg_read(struct rpc_msg *m, void *dst, size_t n);
void rpc_msg_release(struct rpc_msg *m);

/* --- server --------------------------------------------------------------- */

struct rpc_server;
struct rpc_call;   /* One unary request. */
struct rpc_stream; /* One stream, of a client or a server. */

/* Answer with rpc_reply() or rpc_fail() exactly once, from any thread, at any
 * time. `request` is valid until then. Runs on a pool thread and may block;
 * with RPC_INLINE on the completion-queue thread, where it must not. */
typedef void (*rpc_unary_fn)(struct rpc_call *call, void *ctx,
                             const void *request, size_t len);
/* Runs on a thread of its own and may block. The value it returns (0 or a
 * hedge code, text in `e`) ends the stream; HEDGE_EEND counts as 0. */
typedef int (*rpc_stream_fn)(struct rpc_stream *s, void *ctx,
                             struct hedge_error *e);

enum { RPC_INLINE = 1 };

struct rpc_method {
    const char *path; /* "/hedge.v1.Store/Write" */
    rpc_unary_fn unary;
    rpc_stream_fn stream; /* One of the two. */
    unsigned flags;
};

struct rpc_server_options {
    const char *const *addresses; /* "ipv4:1.2.3.4:5", "unix:/path". */
    unsigned n_addresses;
    const struct rpc_method *methods;
    unsigned n_methods;
    void *ctx;             /* For every handler. */
    unsigned pool_threads; /* For unary handlers; 0 = 4. */
    unsigned streams_max; /* Streams at a time, more get EEXHAUSTED; 0 = 256. */
    /* Quota for messages in memory; 0 = 64 MiB. A stream that is received
     * from at full speed holds two messages; where all together exceed the
     * quota, streams end with HEDGE_EEXHAUSTED. */
    uint64_t message_limit;
};

/* All addresses bound and serving when it returns 0. An address in use is
 * HEDGE_EBUSY with a text that names it. Ports are never shared (SO_REUSEPORT
 * off). A socket file that nobody answers on was left by a dead process and
 * is replaced; the server removes its own when it ends. */
int rpc_server_new(const struct rpc_server_options *o, struct rpc_server **out,
                   struct hedge_error *e);
/* The port bound for addresses[i] (for port 0), 0 for a Unix socket. */
unsigned rpc_server_port(const struct rpc_server *s, unsigned i);
/* Stop taking calls, let those that run go on for grace_ms, cancel the rest,
 * wait for all handlers to return. Then free. NULL is fine. */
void rpc_server_free(struct rpc_server *s, uint64_t grace_ms);

/* Since the start, method by method; "" stands for those there are none of. */
struct rpc_method_use {
    const char *path;
    uint64_t calls, failures;
};
unsigned rpc_server_n_methods(const struct rpc_server *s);
void rpc_server_method_use(struct rpc_server *s, unsigned i,
                           struct rpc_method_use *out);
struct rpc_server_use {
    unsigned unary, streams, streams_max;          /* At present. */
    unsigned pool_threads, pool_busy, pool_queued; /* Of unary calls. */
};
void rpc_server_use(struct rpc_server *s, struct rpc_server_use *out);

void rpc_reply(struct rpc_call *c, const void *data, size_t len);
void rpc_fail(struct rpc_call *c, int code, const char *text);
/* The client has gone, cancelled, or run out of time. Known only from some
 * time after the first question on. Not once the call is being answered. */
bool rpc_call_is_cancelled(struct rpc_call *c);
/* What is left of the caller's deadline; UINT64_MAX: it has none. */
uint64_t rpc_call_left_ms(const struct rpc_call *c);
uint64_t rpc_stream_left_ms(const struct rpc_stream *s);
/* Of what is left, what may be used up: less than the caller waits, so that the
 * reason gets back to it when time is up. */
uint64_t rpc_usable_ms(uint64_t left_ms);
/* For calls that wait long: `fn` runs once, on the I/O thread or inside this
 * call, when the call is over; `gone`: before it was answered, or before the
 * answer had left. At most once per call, before it is answered; `fn` must not
 * block. */
void rpc_call_watch(struct rpc_call *c, void (*fn)(void *arg, bool gone),
                    void *arg);
/* The caller's address as gRPC writes it, for log lines. */
const char *rpc_call_peer(struct rpc_call *c);
const char *rpc_stream_peer(struct rpc_stream *s);

/* --- client --------------------------------------------------------------- */

struct rpc_channel;

/* `target` as in addresses above, or "dns:host:port". Does not connect yet;
 * reconnects by itself with a short back-off. Its own TCP connection. */
int rpc_channel_new(const char *target, struct rpc_channel **out);
void rpc_channel_free(struct rpc_channel *c);

/* A channel that connects now, blocking up to timeout_ms, does not reconnect,
 * and can be cut; for one stream of bulk bytes. */
int rpc_channel_connect(const char *target, uint64_t timeout_ms,
                        struct rpc_channel **out, struct hedge_error *e);
/* Shut the connection down: calls on it fail, and the transport lets go of all
 * memory it was given. Cancelling or freeing does not do that as long as a
 * write is stuck because the peer, stopped for instance, does not read. Any
 * thread. */
void rpc_channel_cut(struct rpc_channel *c);

/* One unary call; blocks; no time (0) is HEDGE_ETIMEDOUT without a try. On 0
 * *reply is to be released. Fails at once when
 * the peer refuses the connection (no waiting for it to come up). */
int rpc_call(struct rpc_channel *c, const char *path, const void *request,
             size_t len, uint64_t timeout_ms, struct rpc_msg *reply,
             struct hedge_error *e);

/* The same without waiting, for calls to many at once. On 0 `done` runs exactly
 * once, on the I/O thread or inside this call, and must not block; then, from
 * any thread but in `done`, rpc_call_finish() gives what rpc_call() would and
 * frees the call. It must have been finished before the channel is freed. */
struct rpc_pending;
typedef void (*rpc_done_fn)(void *arg);
int rpc_call_start(struct rpc_channel *c, const char *path, const void *request,
                   size_t len, uint64_t timeout_ms, rpc_done_fn done, void *arg,
                   struct rpc_pending **out);
/* `done` runs soon. Any thread, until rpc_call_finish(). */
void rpc_call_cancel(struct rpc_pending *p);
int rpc_call_finish(struct rpc_pending *p, struct rpc_msg *reply,
                    struct hedge_error *e);

/* Open a stream. Returns once it has started, which says nothing about the
 * peer: the first send or receive does. `timeout_ms` bounds its whole life. */
int rpc_stream_open(struct rpc_channel *c, const char *path,
                    uint64_t timeout_ms, struct rpc_stream **out);

/* --- streams, both ends --------------------------------------------------- */

/* Send one message. Returns when the transport has taken it and there is room
 * for the next one: this is the back-pressure. HEDGE_ETIMEDOUT leaves the
 * message on its way; only cancel is then sensible. `release` runs in any
 * case. When the far end has ended the stream: the code it gave, or
 * HEDGE_ECLOSED where that is in good order or behind messages that have not
 * been received yet. */
int rpc_stream_send(struct rpc_stream *s, const struct rpc_out *out,
                    uint64_t timeout_ms);
/* The same without waiting for this message: it returns once the one before has
 * been taken, so that the transport always has one to go on with. What becomes
 * of this one, the next call or the stream's end tells. */
int rpc_stream_post(struct rpc_stream *s, const struct rpc_out *out,
                    uint64_t timeout_ms);
/* Wait until all that was posted has been taken. */
int rpc_stream_settle(struct rpc_stream *s, uint64_t timeout_ms);
/* Client: no more messages will be sent. */
int rpc_stream_close_send(struct rpc_stream *s);
/* The same without waiting, for one thread with many streams. A message is
 * taken when nothing else is on its way, else HEDGE_EAGAIN; `out` is released
 * in any case. The end of sending waits its turn by itself. */
int rpc_stream_try_send(struct rpc_stream *s, const struct rpc_out *out);
int rpc_stream_end_send(struct rpc_stream *s);
bool rpc_stream_can_send(struct rpc_stream *s);
/* Have `fn` called whenever there may be something to receive, room to send,
 * or an end; once at once. Any thread; it must not block and not call rpc. */
typedef void (*rpc_notify_fn)(void *arg);
void rpc_stream_notify(struct rpc_stream *s, rpc_notify_fn fn, void *arg);
/* Receive one message. HEDGE_EEND: the far end has finished in good order
 * (server side: the client closed its sending side; client side: status OK).
 * A killed peer is HEDGE_EUNAVAILABLE (server side HEDGE_ECANCELED), never
 * HEDGE_EEND. HEDGE_ETIMEDOUT loses nothing: call again, unless
 * rpc_stream_is_cancelled() says that the whole stream's time is up. */
int rpc_stream_recv(struct rpc_stream *s, uint64_t timeout_ms,
                    struct rpc_msg *msg, struct hedge_error *e);
/* Both ends see HEDGE_ECANCELED; calls in progress return. Any thread. */
void rpc_stream_cancel(struct rpc_stream *s);
/* Server: the client has gone, cancelled, or run out of time. Client: the
 * stream has ended other than in good order. Cheap; any thread. */
bool rpc_stream_is_cancelled(struct rpc_stream *s);
/* Client: cancels what is not finished, waits, frees. NULL is fine. */
void rpc_stream_free(struct rpc_stream *s);

#endif
