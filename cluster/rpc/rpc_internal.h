/* rpc_internal.h - what the files of rpc/ share: waiting on completion queues,
 * messages, and the way between gRPC's status and hedge's codes.
 *
 * Ownership: as said at each function.
 * Threads:   a queue from rpc_queue_get() is one user's until it is put back;
 *            within a stream that user may be two threads, each waiting for
 *            tags of its own.
 * Errors:    hedge codes.
 * Units:     bytes; deadlines are gpr_timespec on the monotonic clock.
 * Limits:    tags are unique per queue. */
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

/* The Debian library is not instrumented: what goes through one of its queues
 * is ordered for ThreadSanitizer by hand. */
#ifdef HEDGE_TSAN
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
#define RPC_TAG_PUT(tag) __tsan_release(tag)
#define RPC_TAG_GOT(tag) __tsan_acquire(tag)
#else
#define RPC_TAG_PUT(tag) ((void)(tag))
#define RPC_TAG_GOT(tag) ((void)(tag))
#endif

/* --- time and queues (rpc.c) ---------------------------------------------- */

gpr_timespec rpc_deadline(uint64_t timeout_ms);
/* Milliseconds until `t`, 0 if it has passed, RPC_NO_TIMEOUT for never. */
uint64_t rpc_ms_until(gpr_timespec t);
gpr_timespec rpc_now(void);

/* A pluck queue, new or used before; NULL only without memory. It goes back
 * when every tag started on it has been waited for. */
grpc_completion_queue *rpc_queue_get(void);
void rpc_queue_put(grpc_completion_queue *cq);

/* Start a batch whose completion is waited for with rpc_wait(). */
int rpc_start(grpc_call *call, const grpc_op *ops, size_t n, void *tag);

enum rpc_outcome { RPC_DONE, RPC_FAILED, RPC_TIMEOUT };
enum rpc_outcome rpc_wait(grpc_completion_queue *cq, void *tag,
                          gpr_timespec deadline);

/* Threads start with all signals blocked, so that the program's own threads
 * get them; undo with rpc_signals_restore(). */
void rpc_signals_block(sigset_t *old);
void rpc_signals_restore(const sigset_t *old);

/* Listen on one address of a server that has not started (listen.c). */
int rpc_listen(grpc_server *server, const char *address, unsigned *port,
               struct hedge_error *e);

#define RPC_ARGS_MAX 20
struct rpc_args {
    grpc_arg arg[RPC_ARGS_MAX];
    size_t n;
};
void rpc_args_int(struct rpc_args *a, char *key, int value);
/* What both ends have in common. */
void rpc_args_common(struct rpc_args *a);

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
int rpc_code_from_name(const char *name, size_t len);
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

struct rpc_stream {
    unsigned magic;
    bool is_server;
    grpc_call *call;
    grpc_completion_queue *cq;
    gpr_timespec deadline;
    char *peer;
    atomic_bool cancelled_here;

    /* The sending thread's. */
    grpc_byte_buffer *send_buffer;
    bool sending, send_failed, send_closed, sent_headers;

    /* The receiving thread's. */
    struct rpc_message *incoming;
    bool receiving, recv_over, recv_failed, recv_final;
    struct hedge_error recv_error;

    /* How the call ended; either thread asks, under `end_lock`. */
    pthread_mutex_t end_lock;
    bool end_started, end_known;
    struct hedge_error end; /* Code 0: in good order. */
    grpc_status_code status;
    grpc_slice details;
    grpc_metadata_array trailing;
    int gone; /* Server: RECV_CLOSE's `cancelled`. */

    grpc_metadata_array headers; /* Client: not looked at. */
    bool opened;
    /* Addresses that serve as tags. */
    char tag_send, tag_recv, tag_end, tag_open;
};

int rpc_stream_init(struct rpc_stream *s, bool is_server);
/* The call has ended and nothing is outstanding. */
void rpc_stream_release(struct rpc_stream *s);
/* Start the op that tells how the call ends, before any other. */
int rpc_stream_watch_end(struct rpc_stream *s);
/* Wait for all that is outstanding; the call must be ending. */
void rpc_stream_drain(struct rpc_stream *s);
/* Server: send what the handler returned and wait for the call to end. */
void rpc_stream_finish(struct rpc_stream *s, int code, const char *text);

#endif
