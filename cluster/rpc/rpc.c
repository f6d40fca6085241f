#include "cluster/rpc/rpc_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"

#include <assert.h>
#include <grpc/support/log.h>
#include <malloc.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned users;
static bool core_runs, core_stays; /* Started; not to be ended. */
static grpc_completion_queue *queue;

/* --- the I/O thread ---------------------------------------------------------
 */

void rpc_run_tag(void *tag, bool ok)
{
    struct rpc_tag *t = tag;

    RPC_TAG_GOT(tag);
    assert(t->magic == RPC_TAG_MAGIC);
    if (t->moved) {
        t->moved = false;
        ok = t->moved_ok;
    }
    t->fn(t, ok);
}

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

/* Ending core waits for its backup poller, which a write that had to wait has
 * started and which sleeps for up to ten seconds. */
static void core_end(void)
{
    if (!core_stays) {
        grpc_shutdown();
        core_runs = false;
    }
}

static int start_all(void)
{
    sigset_t old;
    int rv;

    rpc_signals_block(&old);
    if (!core_runs) {
        grpc_init();
        core_runs = true;
    }
    rpc_signals_restore(&old);
    queue = grpc_completion_queue_create_for_next(NULL);
    rv = rpc_duty_start(queue);
    if (rv != 0) {
        grpc_completion_queue_shutdown(queue);
        (void)grpc_completion_queue_next(
            queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        grpc_completion_queue_destroy(queue);
        core_end();
    }
    return rv;
}

int rpc_init(void)
{
    int rv = 0;

    pthread_mutex_lock(&lock);
    if (users == 0) {
        rv = start_all();
    }
    users += rv == 0;
    pthread_mutex_unlock(&lock);
    return rv;
}

void rpc_shutdown(void)
{
    pthread_mutex_lock(&lock);
    assert(users > 0);
    if (--users == 0) {
        rpc_duty_end();
        grpc_completion_queue_destroy(queue);
        queue = NULL;
        core_end();
    }
    pthread_mutex_unlock(&lock);
}

grpc_completion_queue *rpc_queue(void)
{
    assert(queue != NULL);
    return queue;
}

int rpc_start(grpc_call *call, const grpc_op *ops, size_t n,
              struct rpc_tag *tag)
{
    grpc_call_error rc;

    assert(tag->magic == RPC_TAG_MAGIC);
    RPC_TAG_PUT(tag);
    rc = grpc_call_start_batch(call, ops, n, tag, NULL);
    if (rc != GRPC_CALL_OK) {
        log_error("rpc", "a batch was refused: %s",
                  grpc_call_error_to_string(rc));
        return HEDGE_EINTERNAL;
    }
    return 0;
}

/* Another operation's completion has come to a thread that may hold its
 * caller's locks. It goes to the I/O thread by way of an empty batch. */
static void move_tag(grpc_call *call, struct rpc_tag *t, bool ok)
{
    grpc_call_error rc;

    RPC_TAG_GOT(t);
    assert(t->magic == RPC_TAG_MAGIC && !t->moved);
    t->moved = true;
    t->moved_ok = ok;
    RPC_TAG_PUT(t);
    rc = grpc_call_start_batch(call, NULL, 0, t, NULL);
    assert(rc == GRPC_CALL_OK);
}

int rpc_start_here(grpc_call *call, const grpc_op *ops, size_t n,
                   struct rpc_tag *tag)
{
    void *done;
    int rv, ok;

    grpc_completion_queue_thread_local_cache_init(queue);
    rv = rpc_start(call, ops, n, tag);
    if (!grpc_completion_queue_thread_local_cache_flush(queue, &done, &ok)) {
        return rv;
    }
    if (done == tag) {
        rpc_run_tag(done, ok != 0);
    } else {
        move_tag(call, done, ok != 0);
    }
    return rv;
}

/* --- what belongs to the process --------------------------------------------
 */

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
     * which halves a stream's throughput. What is larger than a block is not
     * kept: each thread has a heap of its own, and each would keep the largest
     * value or message that it has ever had in hand. */
    (void)mallopt(M_TRIM_THRESHOLD, 256 << 20);
    (void)mallopt(M_MMAP_THRESHOLD, 2 << 20);
    (void)mallopt(M_TOP_PAD, 8 << 20);
    memset(&ignore, 0, sizeof ignore);
    ignore.sa_handler = SIG_IGN;
    (void)sigaction(SIGPIPE, &ignore, NULL);
    gpr_set_log_function(log_core);
    core_stays = true;
}

/* --- time -------------------------------------------------------------------
 */

#define NS_PER_MS 1000000u
#define NS_PER_S 1000000000u
#define MARGIN_MAX_MS 400u

uint64_t rpc_until(uint64_t timeout_ms)
{
    uint64_t now = clock_mono_ns();

    return timeout_ms < (RPC_NEVER - now) / NS_PER_MS
               ? now + timeout_ms * NS_PER_MS
               : RPC_NEVER;
}

gpr_timespec rpc_deadline(uint64_t until_ns)
{
    uint64_t now = clock_mono_ns();

    if (until_ns > (uint64_t)INT64_MAX) {
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    }
    return gpr_time_add(
        gpr_now(GPR_CLOCK_MONOTONIC),
        gpr_time_from_nanos(until_ns > now ? (int64_t)(until_ns - now) : 0,
                            GPR_TIMESPAN));
}

uint64_t rpc_until_from(gpr_timespec deadline)
{
    gpr_timespec now = gpr_now(GPR_CLOCK_MONOTONIC);

    deadline = gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(deadline, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0) {
        return RPC_NEVER;
    }
    if (gpr_time_cmp(deadline, now) <= 0) {
        return clock_mono_ns();
    }
    return rpc_until((uint64_t)gpr_time_to_millis(gpr_time_sub(deadline, now)));
}

uint64_t rpc_left_ms(uint64_t until_ns)
{
    uint64_t now = clock_mono_ns();

    if (until_ns == RPC_NEVER) {
        return UINT64_MAX;
    }
    return until_ns > now ? (until_ns - now) / 1000000u : 0;
}

uint64_t rpc_usable_ms(uint64_t left_ms)
{
    uint64_t margin = left_ms / 4 < MARGIN_MAX_MS ? left_ms / 4 : MARGIN_MAX_MS;

    return left_ms == UINT64_MAX ? left_ms : left_ms - margin;
}

void rpc_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

bool rpc_cond_wait(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ns / NS_PER_S),
                          .tv_nsec = (long)(until_ns % NS_PER_S)};

    if (until_ns == RPC_NEVER) {
        pthread_cond_wait(c, m);
        return true;
    }
    return pthread_cond_timedwait(c, m, &ts) == 0;
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
    rpc_args_int(a, GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
    rpc_args_int(a, GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    rpc_args_int(a, GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    /* With probing, core lets a sender run tens of MiB ahead of each reader,
     * takes several times the memory, and then kills streams for exceeding
     * the quota. Without it a stream holds what RPC_READY_MAX says, at the
     * price of one round trip per message on a link that is far. */
    rpc_args_int(a, GRPC_ARG_HTTP2_BDP_PROBE, 0);
}
