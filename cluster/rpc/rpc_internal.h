/* rpc_internal.h - what the files of rpc/ share: the I/O thread and its tags,
 * messages, and the way between gRPC's status and hedge's codes.
 *
 * One thread in the process polls: it owns the completion queue that every
 * call of every server and client is bound to, runs the tag of each completion
 * and wakes the thread that waits for it. (Were each waiting thread to poll
 * for itself, core would pass the duty of polling from one to the next at each
 * event, and with it the connection's state from core to core of the machine.)
 *
 * Ownership: as said at each function.
 * Threads:   tags run on the I/O thread; with rpc_start_here() also on the
 *            thread that started the operation, inside that call, so no lock
 *            the tag takes may be held there.
 * Errors:    hedge codes.
 * Units:     bytes; points in time are CLOCK_MONOTONIC in nanoseconds.
 * Limits:    a tag stands for one operation at a time. */
#ifndef CLUSTER_RPC_INTERNAL_H
#define CLUSTER_RPC_INTERNAL_H

#include "cluster/rpc/rpc.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

/* The Debian library is not instrumented: what goes through it is ordered for
 * ThreadSanitizer by hand. */
#ifdef HEDGE_TSAN
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
#define RPC_TAG_PUT(tag) __tsan_release(tag)
#define RPC_TAG_GOT(tag) __tsan_acquire(tag)
#else
#define RPC_TAG_PUT(tag) ((void)(tag))
#define RPC_TAG_GOT(tag) ((void)(tag))
#endif

/* --- the I/O thread (rpc.c) ----------------------------------------------- */

#define RPC_TAG_MAGIC 0x74616721u

struct rpc_tag;
typedef void (*rpc_tag_fn)(struct rpc_tag *t, bool ok);
struct rpc_tag {
    unsigned magic;
    rpc_tag_fn fn;
    bool moved, moved_ok; /* rpc_start_here()'s. */
};
#define RPC_TAG_INIT(fn) ((struct rpc_tag){RPC_TAG_MAGIC, (fn), false, false})

/* The queue that calls are bound to; there is one from rpc_init() on. */
grpc_completion_queue *rpc_queue(void);

/* Start a batch; on 0 the tag runs once. From inside a tag: rpc_start(). From
 * other threads: rpc_start_here(), where what completes at once does so
 * without waking the I/O thread. */
int rpc_start(grpc_call *call, const grpc_op *ops, size_t n,
              struct rpc_tag *tag);
int rpc_start_here(grpc_call *call, const grpc_op *ops, size_t n,
                   struct rpc_tag *tag);

void rpc_run_tag(void *tag, bool ok);

/* Polling (duty.c): from _start to _end some thread takes completions off the
 * queue. _end shuts the queue down, and everything must have been freed. */
int rpc_duty_start(grpc_completion_queue *queue);
void rpc_duty_end(void);
grpc_call *rpc_pending_call(struct rpc_pending *p);

/* --- time and threads (rpc.c) --------------------------------------------- */

#define RPC_NEVER UINT64_MAX
uint64_t rpc_until(uint64_t timeout_ms);
gpr_timespec rpc_deadline(uint64_t until_ns);
uint64_t rpc_until_from(gpr_timespec deadline);
/* From now until then; UINT64_MAX for RPC_NEVER. */
uint64_t rpc_left_ms(uint64_t until_ns);

/* A condition for rpc_cond_wait(), which returns false when the time has
 * come. */
void rpc_cond_init(pthread_cond_t *c);
bool rpc_cond_wait(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns);

/* Threads start with all signals blocked, so that the program's own threads
 * get them; undo with rpc_signals_restore(). */
void rpc_signals_block(sigset_t *old);
void rpc_signals_restore(const sigset_t *old);

/* --- settings (rpc.c, listen.c) ------------------------------------------- */

#define RPC_ARGS_MAX 20
struct rpc_args {
    grpc_arg arg[RPC_ARGS_MAX];
    size_t n;
};
void rpc_args_int(struct rpc_args *a, char *key, int value);
/* What both ends have in common. */
void rpc_args_common(struct rpc_args *a);

/* Listen on one address of a server that has not started. */
int rpc_listen(grpc_server *server, const char *address, unsigned *port,
               struct hedge_error *e);

/* Looks after the sockets that a server listens on (accept.c). To be freed
 * before the server is shut down; NULL is fine. */
struct rpc_acceptor;
int rpc_acceptor_new(grpc_server *server, const char *const *addresses,
                     const unsigned *ports, unsigned n,
                     struct rpc_acceptor **out);
void rpc_acceptor_free(struct rpc_acceptor *a);

/* A connected socket, non-blocking (connect.c). */
int rpc_connect(const char *target, uint64_t until_ns, int *out,
                struct hedge_error *e);

/* --- messages (message.c) ------------------------------------------------- */

/* The state behind struct rpc_msg. */
struct rpc_message;
/* Made before a receive starts, so that what has arrived is never lost for
 * want of memory. */
struct rpc_message *rpc_message_new(void);
void rpc_message_free(struct rpc_message *m);
/* Where RECV_MESSAGE puts its result. */
grpc_byte_buffer **rpc_message_slot(struct rpc_message *m);
/* The bytes have arrived: read from their start. */
void rpc_message_rewind(struct rpc_message *m);

/* The bytes of `out` as gRPC wants them. Takes over out->release: it has run
 * or will run, also when NULL (no memory) is returned. */
grpc_byte_buffer *rpc_buffer_from_out(const struct rpc_out *out);
/* For errors before rpc_buffer_from_out(). */
void rpc_out_release(const struct rpc_out *out);

/* Tests: a message of these bytes in `n_slices` slices of about equal size. */
int rpc_msg_from_bytes(const void *data, size_t len, size_t n_slices,
                       struct rpc_msg *out);

/* --- status (status.c) ---------------------------------------------------- */

#define RPC_ERROR_KEY "hedge-error"

grpc_status_code rpc_status_from_code(int code);
/* The code and text of a call that ended with `status`, `details` and the
 * trailing metadata `md`: 0 for OK. */
int rpc_status_read(grpc_status_code status, const grpc_slice *details,
                    const grpc_metadata_array *md, struct hedge_error *e);
/* Fit for grpc-message: valid UTF-8 without control characters, cut at
 * HEDGE_ERROR_TEXT_MAX - 1 bytes. */
void rpc_text_clean(const char *text, size_t len,
                    char out[HEDGE_ERROR_TEXT_MAX]);

/* The SEND_STATUS_FROM_SERVER op for a hedge code; keep `st` until the batch
 * has been started, then rpc_status_op_release() it. */
struct rpc_status_op {
    grpc_metadata md;
    grpc_slice details;
};
void rpc_status_op_init(struct rpc_status_op *st, grpc_op *op, int code,
                        const char *text);
void rpc_status_op_release(struct rpc_status_op *st);

/* --- streams (stream.c) --------------------------------------------------- */

#define RPC_STREAM_MAGIC 0x7374726du
/* Messages received ahead of the reader, so that the I/O thread has something
 * to do while the reader works on the one before. */
#define RPC_READY_MAX 1

/* One kind of operation of a stream, of which one may be under way. */
struct rpc_stream_op {
    struct rpc_tag tag;
    bool pending;
};

struct rpc_stream {
    unsigned magic;
    bool is_server;
    grpc_call *call;
    uint64_t until_ns; /* The deadline of the whole. */
    char *peer;
    atomic_bool cancelled_here;

    pthread_mutex_t lock; /* Over all that follows. */
    pthread_cond_t can_send, can_recv, drained;
    struct rpc_stream_op open, send, recv, end;

    grpc_byte_buffer *send_buffer;
    grpc_byte_buffer *send_next; /* Posted: sent when that one has been. */
    bool send_failed, send_closed, sent_headers;
    bool close_wanted; /* As soon as nothing is being sent. */
    rpc_notify_fn notify;
    void *notify_arg;

    struct rpc_message *incoming, *ready[RPC_READY_MAX];
    unsigned n_ready;
    bool recv_over, recv_failed;

    bool end_known;
    struct hedge_error end_error; /* Code 0: in good order. */
    grpc_status_code status;
    grpc_slice details;
    grpc_metadata_array headers, trailing;
    int gone; /* Server: RECV_CLOSE's `cancelled`. */
};

void rpc_stream_init(struct rpc_stream *s, bool is_server);
/* The call has ended and nothing is outstanding. */
void rpc_stream_release(struct rpc_stream *s);
/* The call is there: start what is always under way. */
int rpc_stream_begin(struct rpc_stream *s);
/* Wait for all that is outstanding; the call must be ending. */
void rpc_stream_drain(struct rpc_stream *s);
/* Server: send what the handler returned and wait for the call to end. */
void rpc_stream_finish(struct rpc_stream *s, int code, const char *text);

#endif
