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
 * Whoever leaves the duty free does not wake anybody who looks anyway: it would
 * cost as much as what is saved. The one who stands by looks every
 * DUTY_TICK_US, and takes the duty when it was free and untouched for a whole
 * tick. It sleeps when the duty has not been left for DUTY_IDLE_TICKS.
 *
 * What must hold whenever the lock is free (is_looked_after()): the duty is
 * taken, or one of our threads stands by and the one who watches is not asleep.
 * Nobody would take completions otherwise, for any node of the process: not
 * even deadlines would pass. It holds because
 *
 * - the duty gets free in leave() alone, which wakes the one who sleeps; nobody
 *   falls asleep while it is free;
 * - a thread stops standing by only by taking the duty. It comes back before it
 *   leaves it, or, when it lends it, makes sure that another one stands by. Who
 *   polls by rpc_poll() has found the duty free, so that somebody stands by;
 * - where there are threads that stand by, one of them watches or is about to:
 *   who stops watching wakes the next. */
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
    unsigned n_idle; /* Threads that stand by, or are about to. */
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

static bool is_looked_after(void)
{
    return duty.taken || (duty.n_idle > 0 && !duty.asleep);
}

/* The one who watches, if anybody does: there is something to look at. */
static void wake(void)
{
    duty.asleep = false;
    pthread_cond_signal(&duty.watch);
}

static void take(void)
{
    assert(!duty.taken && !duty.asleep);
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

/* Until the duty is left, or until it is time to nudge who has it. */
static void sleep_long(void)
{
    uint64_t until_ns = duty.nudge_at_ns != 0 ? duty.nudge_at_ns : RPC_NEVER;

    assert(duty.taken);
    duty.asleep = true;
    while (duty.asleep && rpc_cond_wait(&duty.watch, &duty.lock, until_ns)) {
    }
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
    assert(duty.n_idle > 0);
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
    duty.n_idle++;
    return 0;
}

/* `lent`: it will probably be back at once. */
static void leave(bool lent)
{
    bool hurry = duty.waiting > 0 && !lent;

    assert(duty.taken && self.has_duty);
    duty.taken = false;
    duty.left++;
    self.has_duty = false;
    duty.hurry = duty.hurry || hurry;
    if (hurry || duty.asleep) {
        wake();
    }
    assert(is_looked_after());
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
        duty.n_idle--;
        pthread_mutex_unlock(&duty.lock);
        more = poll_on();
        pthread_mutex_lock(&duty.lock);
        if (!more) {
            duty.ending = true;
            wake();
            pthread_cond_broadcast(&duty.spare);
        }
        duty.n_idle++;
        if (self.has_duty) {
            leave(false);
        }
        self.leave = false;
    }
    duty.n_idle--;
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
    if (!duty.ending && (duty.n_idle > 0 || add_thread() == 0)) {
        leave(true);
        lent = true;
    }
    pthread_mutex_unlock(&duty.lock);
    return lent;
}

bool rpc_polls(void)
{
    return self.has_duty;
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
    assert(duty.ending || is_looked_after());
    mine = !duty.taken && !duty.ending;
    if (mine) { /* The one who watches is not asleep, and will see this. */
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
            wake();
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
    wake();
    pthread_mutex_unlock(&duty.lock);
    /* No thread is added any more: nothing is left to be served. */
    for (unsigned i = 0; i < duty.n_threads; i++) {
        pthread_join(duty.threads[i], NULL);
    }
    assert(!duty.taken && duty.waiting == 0 && duty.n_idle == 0);
    pthread_cond_destroy(&duty.watch);
}
