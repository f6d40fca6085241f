#include "cluster/rpc/rpc_internal.h"

#include "store/base/log.h"

#include <assert.h>
#include <grpc/support/log.h>
#include <malloc.h>
#include <string.h>

/* Queues kept for the next call or stream: making one costs a few system
 * calls, more than a unary call on a Unix socket. */
#define QUEUES_KEPT 32

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned users;
static grpc_completion_queue *kept[QUEUES_KEPT];
static unsigned n_kept;

void rpc_signals_block(sigset_t *old)
{
    sigset_t all;

    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, old);
}

void rpc_signals_restore(const sigset_t *old)
{
    (void)pthread_sigmask(SIG_SETMASK, old, NULL);
}

int rpc_init(void)
{
    sigset_t old;

    pthread_mutex_lock(&lock);
    if (users++ == 0) {
        rpc_signals_block(&old);
        grpc_init();
        rpc_signals_restore(&old);
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

static void queue_destroy(grpc_completion_queue *cq)
{
    grpc_event ev;

    grpc_completion_queue_shutdown(cq);
    ev = grpc_completion_queue_pluck(cq, NULL,
                                     gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    assert(ev.type == GRPC_QUEUE_SHUTDOWN);
    grpc_completion_queue_destroy(cq);
}

void rpc_shutdown(void)
{
    pthread_mutex_lock(&lock);
    assert(users > 0);
    if (--users == 0) {
        while (n_kept > 0) {
            queue_destroy(kept[--n_kept]);
        }
        grpc_shutdown();
    }
    pthread_mutex_unlock(&lock);
}

static void log_core(gpr_log_func_args *args)
{
    /* Core calls errors what is part of life, such as a peer that is down;
     * whoever made the call reports it. */
    log_debug("grpc", "%s", args->message);
}

void rpc_process_setup(void)
{
    struct sigaction ignore;

    /* Received messages are 64 KiB pieces of the heap: without this, freeing a
     * message gives its pages back and the next one faults them in again,
     * which halves a stream's throughput. */
    (void)mallopt(M_TRIM_THRESHOLD, 256 << 20);
    (void)mallopt(M_MMAP_THRESHOLD, 32 << 20);
    (void)mallopt(M_TOP_PAD, 8 << 20);
    memset(&ignore, 0, sizeof ignore);
    ignore.sa_handler = SIG_IGN;
    (void)sigaction(SIGPIPE, &ignore, NULL);
    gpr_set_log_function(log_core);
}

/* --- time -------------------------------------------------------------------
 */

gpr_timespec rpc_now(void)
{
    return gpr_now(GPR_CLOCK_MONOTONIC);
}

gpr_timespec rpc_deadline(uint64_t timeout_ms)
{
    /* Beyond a century gpr's arithmetic would saturate anyway. */
    if (timeout_ms > (uint64_t)INT32_MAX * 1000) {
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    }
    return gpr_time_add(
        rpc_now(), gpr_time_from_millis((int64_t)timeout_ms, GPR_TIMESPAN));
}

uint64_t rpc_ms_until(gpr_timespec t)
{
    gpr_timespec now = rpc_now();

    t = gpr_convert_clock_type(t, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(t, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0) {
        return RPC_NO_TIMEOUT;
    }
    if (gpr_time_cmp(t, now) <= 0) {
        return 0;
    }
    return (uint64_t)gpr_time_to_millis(gpr_time_sub(t, now));
}

/* --- queues -----------------------------------------------------------------
 */

grpc_completion_queue *rpc_queue_get(void)
{
    grpc_completion_queue *cq = NULL;

    pthread_mutex_lock(&lock);
    assert(users > 0);
    if (n_kept > 0) {
        cq = kept[--n_kept];
    }
    pthread_mutex_unlock(&lock);
    return cq != NULL ? cq : grpc_completion_queue_create_for_pluck(NULL);
}

void rpc_queue_put(grpc_completion_queue *cq)
{
    pthread_mutex_lock(&lock);
    if (n_kept < QUEUES_KEPT) {
        kept[n_kept++] = cq;
        cq = NULL;
    }
    pthread_mutex_unlock(&lock);
    if (cq != NULL) {
        queue_destroy(cq);
    }
}

int rpc_start(grpc_call *call, const grpc_op *ops, size_t n, void *tag)
{
    grpc_call_error rc;

    RPC_TAG_PUT(tag);
    rc = grpc_call_start_batch(call, ops, n, tag, NULL);
    if (rc != GRPC_CALL_OK) {
        log_error("rpc", "a batch was refused: %s",
                  grpc_call_error_to_string(rc));
        return HEDGE_EINTERNAL;
    }
    return 0;
}

enum rpc_outcome rpc_wait(grpc_completion_queue *cq, void *tag,
                          gpr_timespec deadline)
{
    grpc_event ev = grpc_completion_queue_pluck(cq, tag, deadline, NULL);

    if (ev.type == GRPC_QUEUE_TIMEOUT) {
        return RPC_TIMEOUT;
    }
    assert(ev.type == GRPC_OP_COMPLETE && ev.tag == tag);
    RPC_TAG_GOT(tag);
    return ev.success ? RPC_DONE : RPC_FAILED;
}

/* --- channel arguments ------------------------------------------------------
 */

void rpc_args_int(struct rpc_args *a, char *key, int value)
{
    grpc_arg *arg = &a->arg[a->n++];

    assert(a->n <= RPC_ARGS_MAX);
    memset(arg, 0, sizeof *arg);
    arg->type = GRPC_ARG_INTEGER;
    arg->key = key;
    arg->value.integer = value;
}

void rpc_args_common(struct rpc_args *a)
{
    a->n = 0;
    rpc_args_int(a, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)RPC_MESSAGE_MAX);
    rpc_args_int(a, GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, (int)RPC_MESSAGE_MAX);
    rpc_args_int(a, GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
    rpc_args_int(a, GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
    rpc_args_int(a, GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    rpc_args_int(a, GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}
