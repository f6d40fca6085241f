/* Who polls: handlers that lend the thread of all others, and callers that poll
 * for their own answers. */
#include "cluster/rpc/rpc.h"

#include "tests/lib/check.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LONG_MS 30000
#define HUNG 5
#define TICKS_US 100000 /* Ten ticks of who watches, and many more. */

struct fixture {
    struct rpc_server *server;
    struct rpc_channel *channel;
    sem_t entered, leave;
    atomic_uint lent;
};

static void echo(struct rpc_call *c, void *ctx, const void *request, size_t len)
{
    struct fixture *f = ctx;

    f->lent += rpc_lend_thread();
    rpc_reply(c, request, len);
}

/* Hangs on the thread that polls, or did until then. */
static void hang(struct rpc_call *c, void *ctx, const void *request, size_t len)
{
    struct fixture *f = ctx;

    (void)request;
    (void)len;
    if (rpc_lend_thread()) {
        f->lent++;
        (void)sem_post(&f->entered);
        (void)sem_wait(&f->leave);
    } else {
        (void)sem_post(&f->entered);
    }
    rpc_reply(c, "", 0);
}

/* Answered by hand. */
static struct rpc_call *kept;
static void keep(struct rpc_call *c, void *ctx, const void *request, size_t len)
{
    struct fixture *f = ctx;

    (void)request;
    (void)len;
    kept = c;
    (void)sem_post(&f->entered);
}

static int setup(void **state)
{
    static const struct rpc_method methods[] = {
        {"/t/Echo", echo, NULL, RPC_INLINE},
        {"/t/Hang", hang, NULL, RPC_INLINE},
        {"/t/Keep", keep, NULL, RPC_INLINE},
    };
    static struct fixture f;
    static char address[64];
    const char *addresses[] = {address};
    struct rpc_server_options o = {.addresses = addresses,
                                   .n_addresses = 1,
                                   .methods = methods,
                                   .n_methods = 3,
                                   .ctx = &f};
    struct hedge_error e;

    memset(&f, 0, sizeof f);
    (void)sem_init(&f.entered, 0, 0);
    (void)sem_init(&f.leave, 0, 0);
    (void)snprintf(address, sizeof address, "unix:/tmp/hedge-duty-%d",
                   (int)getpid());
    assert_int_equal(rpc_init(), 0);
    if (rpc_server_new(&o, &f.server, &e) != 0) {
        fail_msg("%s", e.text);
    }
    assert_int_equal(rpc_channel_new(address, &f.channel), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    rpc_channel_free(f->channel);
    rpc_server_free(f->server, 0);
    rpc_shutdown();
    (void)sem_destroy(&f->entered);
    (void)sem_destroy(&f->leave);
    return 0;
}

static void call_echo(struct fixture *f)
{
    struct rpc_msg reply;
    struct hedge_error e;

    if (rpc_call(f->channel, "/t/Echo", "x", 1, LONG_MS, &reply, &e) != 0) {
        fail_msg("%s", e.text);
    }
    assert_int_equal(rpc_msg_left(&reply), 1);
    rpc_msg_release(&reply);
}

static void *call_hang(void *arg)
{
    struct fixture *f = arg;
    struct rpc_msg reply;

    assert_int_equal(
        rpc_call(f->channel, "/t/Hang", "", 0, LONG_MS, &reply, NULL), 0);
    rpc_msg_release(&reply);
    return NULL;
}

/* Each of them keeps the thread that polled; there is always another one. */
static void handlers_that_hang(void **state)
{
    struct fixture *f = *state;
    pthread_t t[HUNG];

    for (unsigned i = 0; i < HUNG; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, call_hang, f), 0);
        (void)sem_wait(&f->entered);
        call_echo(f);
    }
    assert_int_equal(f->lent, 2 * HUNG);
    for (unsigned i = 0; i < HUNG; i++) {
        (void)sem_post(&f->leave);
        call_echo(f);
    }
    for (unsigned i = 0; i < HUNG; i++) {
        pthread_join(t[i], NULL);
    }
    for (unsigned i = 0; i < 100; i++) {
        call_echo(f);
    }
}

/* --- callers --- */

static void on_done(void *arg)
{
    rpc_leave_duty();
    atomic_store((atomic_bool *)arg, true);
}

static bool is_done(void *arg)
{
    return atomic_load((atomic_bool *)arg);
}

/* Where it may not poll, it looks again: this is a test. */
static void poll_for(struct rpc_pending *p, atomic_bool *done)
{
    while (!is_done(done)) {
        if (!rpc_poll(is_done, done, LONG_MS, p)) {
            usleep(50);
        }
    }
}

static void call_polling(struct fixture *f)
{
    atomic_bool done = false;
    struct rpc_pending *p;
    struct rpc_msg reply;

    assert_int_equal(rpc_call_start(f->channel, "/t/Echo", "y", 1, LONG_MS,
                                    on_done, &done, &p),
                     0);
    poll_for(p, &done);
    assert_int_equal(rpc_call_finish(p, &reply, NULL), 0);
    assert_int_equal(rpc_msg_left(&reply), 1);
    rpc_msg_release(&reply);
}

static void a_caller_that_polls(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < 500; i++) {
        call_polling(f);
    }
    /* It has left the duty behind; somebody comes for it. */
    call_echo(f);
}

static void *poll_often(void *arg)
{
    for (unsigned i = 0; i < 300; i++) {
        call_polling(arg);
    }
    return NULL;
}

/* These sleep, and say so: who leaves the duty has it taken up at once. */
static void *echo_often(void *arg)
{
    for (unsigned i = 0; i < 300; i++) {
        rpc_poll_waits(true);
        call_echo(arg);
        rpc_poll_waits(false);
    }
    return NULL;
}

static void many_callers(void **state)
{
    struct fixture *f = *state;
    pthread_t t[6];

    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(pthread_create(&t[i], NULL,
                                        i % 2 == 0 ? poll_often : echo_often,
                                        f),
                         0);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(t[i], NULL);
    }
}

/* The one who polls comes back when its time is up, although nothing happens,
 * and others were served by it meanwhile. */
static void polling_has_an_end(void **state)
{
    struct fixture *f = *state;
    atomic_bool done = false;
    struct rpc_pending *p;
    struct rpc_msg reply;
    pthread_t other;
    unsigned polled = 0;

    assert_int_equal(rpc_call_start(f->channel, "/t/Keep", "y", 1, LONG_MS,
                                    on_done, &done, &p),
                     0);
    (void)sem_wait(&f->entered);
    for (unsigned i = 0; i < 200; i++) {
        call_polling(f); /* So that the duty is free at times. */
    }
    assert_int_equal(pthread_create(&other, NULL, echo_often, f), 0);
    while (polled < 5) {
        polled += rpc_poll(is_done, &done, 20, p);
        assert_false(is_done(&done));
        if (polled < 5) {
            call_polling(f);
        }
    }
    pthread_join(other, NULL);
    rpc_reply(kept, "z", 1);
    poll_for(p, &done);
    assert_int_equal(rpc_call_finish(p, &reply, NULL), 0);
    rpc_msg_release(&reply);
}

static void cancelled_while_it_polls(void **state)
{
    struct fixture *f = *state;
    atomic_bool done = false;
    struct rpc_pending *p;
    struct rpc_msg reply;

    assert_int_equal(rpc_call_start(f->channel, "/t/Keep", "y", 1, LONG_MS,
                                    on_done, &done, &p),
                     0);
    (void)sem_wait(&f->entered);
    rpc_call_cancel(p);
    poll_for(p, &done);
    assert_int_equal(rpc_call_finish(p, &reply, NULL), HEDGE_ECANCELED);
    while (!rpc_call_is_cancelled(kept)) { /* It is seen at the other end. */
        usleep(50);
    }
    rpc_fail(kept, HEDGE_ECANCELED, NULL);
}

/* --- who watches is asleep --- */

struct one_echo {
    struct fixture *fixture;
    sem_t answered;
};

static void *echo_once(void *arg)
{
    struct one_echo *o = arg;

    call_echo(o->fixture);
    (void)sem_post(&o->answered);
    return NULL;
}

/* The duty is free: one comes for it, although nobody says a word. */
static void expect_an_echo(struct fixture *f)
{
    struct one_echo o = {.fixture = f};
    struct timespec until;
    pthread_t t;
    int rc;

    (void)sem_init(&o.answered, 0, 0);
    assert_int_equal(pthread_create(&t, NULL, echo_once, &o), 0);
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    rc = sem_timedwait(&o.answered, &until);
    rpc_poll_waits(true); /* So that it ends in any case. */
    rpc_poll_waits(false);
    pthread_join(t, NULL);
    (void)sem_destroy(&o.answered);
    assert_int_equal(rc, 0);
}

static void start_kept(struct fixture *f, atomic_bool *done,
                       struct rpc_pending **p)
{
    assert_int_equal(rpc_call_start(f->channel, "/t/Keep", "y", 1, LONG_MS,
                                    on_done, done, p),
                     0);
}

static void finish_kept(struct rpc_pending *p)
{
    struct rpc_msg reply;

    assert_int_equal(rpc_call_finish(p, &reply, NULL), 0);
    rpc_msg_release(&reply);
}

/* A handler that lends its thread brings a second one, which falls asleep. Then
 * a call ends whose caller is expected to poll, and never does. */
static void left_to_one_who_sleeps(void **state)
{
    struct fixture *f = *state;
    atomic_bool done = false;
    struct rpc_pending *p;

    call_echo(f);
    usleep(TICKS_US);
    start_kept(f, &done, &p);
    (void)sem_wait(&f->entered);
    usleep(TICKS_US);
    rpc_reply(kept, "z", 1);
    while (!is_done(&done)) {
        usleep(50);
    }
    finish_kept(p);
    usleep(TICKS_US / 5);
    expect_an_echo(f);
}

static void *reply_later(void *arg)
{
    struct fixture *f = arg;

    (void)sem_wait(&f->entered);
    usleep(TICKS_US);
    rpc_reply(kept, "z", 1);
    return NULL;
}

/* Who polls for so long that the other one sleeps until the time to nudge, but
 * has its answer before that. */
static void left_after_a_long_poll(void **state)
{
    struct fixture *f = *state;
    bool polled = false;

    while (!polled) {
        atomic_bool done = false;
        struct rpc_pending *p;
        pthread_t t;

        for (unsigned i = 0; i < 50; i++) {
            call_polling(f); /* So that the duty is free at times. */
        }
        start_kept(f, &done, &p);
        assert_int_equal(pthread_create(&t, NULL, reply_later, f), 0);
        while (!is_done(&done)) {
            polled = rpc_poll(is_done, &done, LONG_MS, p) || polled;
        }
        pthread_join(t, NULL);
        finish_kept(p);
    }
    expect_an_echo(f);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(handlers_that_hang),
        TEST(a_caller_that_polls),
        TEST(many_callers),
        TEST(polling_has_an_end),
        TEST(cancelled_while_it_polls),
        TEST(left_to_one_who_sleeps),
        TEST(left_after_a_long_poll),
    };

    rpc_process_setup();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
