/* duty.c - who polls. One thread of the process at a time has the duty: it
 * takes the next completion off the queue and runs its tag. It is rpc's own
 * thread, with two exceptions that save a message the way from one thread to
 * another:
 *
 * - An inline handler that may take its time lends the thread it runs on: the
 *   duty is free meanwhile. When the handler is soon done, its thread goes on
 *   polling and nobody has noticed. When it is not, a thread that stands by
 *   takes the duty over.
 * - A thread that waits for the answers to calls it makes one after the other
 *   polls by itself while it waits. Our own thread leaves it the duty when it
 *   sees that coming.
 *
 * Whoever leaves the duty free does not wake anybody: it would cost as much as
 * what is saved. The one who stands by looks every DUTY_TICK_US, and takes the
 * duty when it was free and untouched for a whole tick. It sleeps when the duty
 * has not been left for DUTY_IDLE_TICKS. */
#include "cluster/rpc/rpc_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>

#define DUTY_TICK_US 1000
#define DUTY_IDLE_TICKS 10
#define DUTY_THREADS_MAX 160

struct duty {
    pthread_mutex_t lock;
    pthread_cond_t watch; /* For the one who watches. */
    pthread_cond_t spare; /* For the others who stand by. */
    grpc_completion_queue *queue;
    bool taken; /* Somebody polls. */
    bool hurry; /* Take it as soon as it is free. */
    bool ending;
    uint64_t left;    /* How often it was left free. */
    unsigned waiting; /* Threads that could not poll and sleep. */
    bool watching, asleep;
    unsigned n_idle; /* Threads that stand by. */
    /* A wait with a limit makes the kernel program a timer, which costs more
     * than the rest of it. Who polls by rpc_poll() therefore waits without one,
     * and is nudged by the one who watches, through a call of his own. */
    uint64_t nudge_at_ns; /* 0: not wanted. */
    grpc_call *nudge_call;
    bool nudging;
    struct rpc_tag nudge;
    unsigned n_threads;
    pthread_t threads[DUTY_THREADS_MAX];
};

/* Of this thread. */
struct self {
    bool is_ours, has_duty, leave;
};

static struct duty duty = {.lock = PTHREAD_MUTEX_INITIALIZER,
                           .spare = PTHREAD_COND_INITIALIZER};
static __thread struct self self;

static void *duty_main(void *arg);

/* --- with the lock held --- */

static void take(void)
{
    assert(!duty.taken);
    duty.taken = true;
    duty.hurry = false;
    self.has_duty = true;
}

static void wait_a_tick(void)
{
    uint64_t until_ns = clock_mono_ns() + (uint64_t)DUTY_TICK_US * 1000;

    (void)rpc_cond_wait(&duty.watch, &duty.lock, until_ns);
}

static void on_nudge(struct rpc_tag *t, bool ok)
{
    (void)t;
    (void)ok;
    pthread_mutex_lock(&duty.lock);
    duty.nudging = false;
    pthread_mutex_unlock(&duty.lock);
}

static void nudge_if_due(void)
{
    if (duty.nudge_at_ns != 0 && !duty.nudging &&
        clock_mono_ns() >= duty.nudge_at_ns) {
        duty.nudge_at_ns = 0;
        duty.nudging = true;
        duty.nudge = RPC_TAG_INIT(on_nudge);
        (void)rpc_start(duty.nudge_call, NULL, 0, &duty.nudge);
    }
}

static void sleep_long(void)
{
    duty.asleep = true;
    (void)rpc_cond_wait(&duty.watch, &duty.lock,
                        duty.nudge_at_ns != 0 ? duty.nudge_at_ns : RPC_NEVER);
    duty.asleep = false;
}

/* Look every tick, until this thread has the duty. */
static void watch(void)
{
    unsigned idle = 0;

    while (!self.has_duty && !duty.ending) {
        uint64_t left = duty.left;
        bool was_free = !duty.taken;

        if (was_free && duty.hurry) {
            take();
            break;
        }
        nudge_if_due();
        if (!was_free && idle >= DUTY_IDLE_TICKS) {
            sleep_long();
            idle = duty.left == left ? idle : 0;
            continue;
        }
        wait_a_tick();
        if (was_free && !duty.taken && duty.left == left) {
            take();
        }
        idle = duty.left == left ? idle + 1 : 0;
    }
}

static void stand_by(void)
{
    duty.n_idle++;
    while (!self.has_duty && !duty.ending) {
        if (duty.watching) {
            pthread_cond_wait(&duty.spare, &duty.lock);
            continue;
        }
        duty.watching = true;
        watch();
        duty.watching = false;
        pthread_cond_signal(&duty.spare);
    }
    duty.n_idle--;
}

static int add_thread(void)
{
    pthread_t *t = &duty.threads[duty.n_threads];
    sigset_t old;
    int rc;

    if (duty.n_threads == DUTY_THREADS_MAX) {
        return HEDGE_EBUSY;
    }
    rpc_signals_block(&old);
    rc = pthread_create(t, NULL, duty_main, NULL);
    rpc_signals_restore(&old);
    if (rc != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(*t, "hedge-rpc-io");
    duty.n_threads++;
    return 0;
}

/* Somebody will look soon. */
static bool is_watched(void)
{
    if (duty.n_idle == 0 && !duty.watching) {
        return add_thread() == 0;
    }
    if (duty.asleep) {
        pthread_cond_signal(&duty.watch);
    }
    return true;
}

/* `lent`: it will probably be back at once. */
static void leave(bool lent)
{
    assert(duty.taken && self.has_duty);
    duty.taken = false;
    duty.left++;
    self.has_duty = false;
    if (duty.waiting > 0 && !lent) {
        duty.hurry = true;
        pthread_cond_signal(&duty.watch);
    }
}

/* --- polling --- */

static void run_event(const grpc_event *ev)
{
    assert(ev->type == GRPC_OP_COMPLETE);
    rpc_run_tag(ev->tag, ev->success != 0);
}

/* Take one completion after the other, as long as this thread has the duty;
 * false at the end of all. */
static bool poll_on(void)
{
    while (self.has_duty && !self.leave) {
        grpc_event ev = grpc_completion_queue_next(
            duty.queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);

        if (ev.type == GRPC_QUEUE_SHUTDOWN) {
            return false;
        }
        run_event(&ev);
        if (!self.has_duty) { /* Lent. */
            pthread_mutex_lock(&duty.lock);
            if (!duty.taken) {
                take();
            }
            pthread_mutex_unlock(&duty.lock);
        }
    }
    return true;
}

static void *duty_main(void *arg)
{
    bool more = true;

    (void)arg;
    self = (struct self){.is_ours = true};
    pthread_mutex_lock(&duty.lock);
    while (!duty.ending) {
        stand_by();
        if (!self.has_duty) {
            break;
        }
        pthread_mutex_unlock(&duty.lock);
        more = poll_on();
        pthread_mutex_lock(&duty.lock);
        if (!more) {
            duty.ending = true;
            pthread_cond_signal(&duty.watch);
            pthread_cond_broadcast(&duty.spare);
        }
        if (self.has_duty) {
            leave(false);
        }
        self.leave = false;
    }
    pthread_mutex_unlock(&duty.lock);
    return NULL;
}

/* --- for others --- */

bool rpc_lend_thread(void)
{
    bool lent = false;

    if (!self.is_ours || !self.has_duty) {
        return false;
    }
    pthread_mutex_lock(&duty.lock);
    if (!duty.ending && is_watched()) {
        leave(true);
        lent = true;
    }
    pthread_mutex_unlock(&duty.lock);
    return lent;
}

void rpc_leave_duty(void)
{
    self.leave = self.is_ours && self.has_duty;
}

bool rpc_poll(bool (*done)(void *arg), void *arg, uint64_t timeout_ms,
              struct rpc_pending *own)
{
    uint64_t until_ns = rpc_until(timeout_ms);
    bool mine;

    if (self.is_ours) {
        return false; /* In a handler. */
    }
    pthread_mutex_lock(&duty.lock);
    mine = !duty.taken && !duty.ending && is_watched();
    if (mine) {
        take();
        duty.nudge_at_ns = until_ns;
        duty.nudge_call = rpc_pending_call(own);
    }
    pthread_mutex_unlock(&duty.lock);
    if (!mine) {
        return false;
    }
    while (!done(arg) && clock_mono_ns() < until_ns) {
        grpc_event ev = grpc_completion_queue_next(
            duty.queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);

        run_event(&ev);
    }
    pthread_mutex_lock(&duty.lock);
    duty.nudge_at_ns = 0;
    leave(false);
    pthread_mutex_unlock(&duty.lock);
    return true;
}

void rpc_poll_waits(bool waits)
{
    pthread_mutex_lock(&duty.lock);
    if (waits) {
        duty.waiting++;
        if (!duty.taken) {
            duty.hurry = true;
            (void)is_watched();
            pthread_cond_signal(&duty.watch);
        }
    } else {
        assert(duty.waiting > 0);
        duty.waiting--;
    }
    pthread_mutex_unlock(&duty.lock);
}

/* --- life --- */

int rpc_duty_start(grpc_completion_queue *queue)
{
    int rv;

    pthread_mutex_lock(&duty.lock);
    rpc_cond_init(&duty.watch);
    duty.queue = queue;
    duty.ending = duty.taken = false;
    duty.hurry = true; /* The first thread takes it at once. */
    duty.n_threads = 0;
    rv = add_thread();
    pthread_mutex_unlock(&duty.lock);
    return rv;
}

void rpc_duty_end(void)
{
    grpc_completion_queue_shutdown(duty.queue);
    pthread_mutex_lock(&duty.lock);
    duty.hurry = true;
    pthread_cond_signal(&duty.watch);
    pthread_mutex_unlock(&duty.lock);
    /* No thread is added any more: nothing is left to be served. */
    for (unsigned i = 0; i < duty.n_threads; i++) {
        pthread_join(duty.threads[i], NULL);
    }
    assert(!duty.taken && duty.waiting == 0);
    pthread_cond_destroy(&duty.watch);
}
