/* The pool that runs users' handlers: deadlines, slots, what hangs, what stops.
 */
#include "cluster/messages/handlers.h"

#include "store/base/mem.h"
#include "tests/lib/check.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define LONG_MS 30000
#define SLOTS 4

/* What handlers do is told by the first byte of the message. */
struct fixture {
    struct msg_budget *budget;
    struct handlers *h;
    sem_t entered, leave; /* Of handlers that are told to hang. */
    atomic_uint running, most;
    atomic_bool leads, saw_cancel;
};

static void count(struct fixture *f)
{
    unsigned n = atomic_fetch_add(&f->running, 1) + 1, most = f->most;

    while (n > most && !atomic_compare_exchange_weak(&f->most, &most, n)) {
    }
}

static void await_cancel(struct fixture *f, struct hedge_answer *a)
{
    while (!hedge_answer_is_cancelled(a)) {
        sched_yield();
    }
    f->saw_cancel = true;
}

static int handler(void *data, const struct hedge_message *m,
                   struct hedge_answer *a, struct hedge_error *e)
{
    struct fixture *f = data;
    const char *text = m->data;
    char what = m->len > 0 ? text[0] : 'e';
    int rv = 0;

    count(f);
    switch (what) {
    case 'e': /* Echo. */
        rv = hedge_answer_write(a, m->data, m->len);
        break;
    case 'f': /* The sender. */
        rv = hedge_answer_write(a, m->from, strlen(m->from));
        break;
    case 'h': /* Hang, then answer. */
        (void)sem_post(&f->entered);
        (void)sem_wait(&f->leave);
        rv = hedge_answer_write(a, "late", 4);
        break;
    case 'c':
        (void)sem_post(&f->entered);
        await_cancel(f, a);
        break;
    case 'x': /* Fail with a text. */
        (void)snprintf(e->text, sizeof e->text, "no, thanks");
        rv = HEDGE_EINVAL;
        break;
    case 'y': /* Fail without one. */
        rv = HEDGE_ETIMEDOUT;
        break;
    default: /* Answer more than there is room for, and not look. */
        for (unsigned i = 0; i < 1000; i++) {
            (void)hedge_answer_write(a, m->data, m->len);
        }
    }
    atomic_fetch_sub(&f->running, 1);
    return rv;
}

static bool leads(void *ctx)
{
    return ((struct fixture *)ctx)->leads;
}

static int setup(void **state)
{
    static struct fixture f;
    struct handlers_options o = {.id = "n1",
                                 .handler = {handler, handler},
                                 .data = &f,
                                 .max = SLOTS,
                                 .leads = leads,
                                 .ctx = &f};

    memset(&f, 0, sizeof f);
    f.leads = true;
    (void)sem_init(&f.entered, 0, 0);
    (void)sem_init(&f.leave, 0, 0);
    assert_int_equal(msg_budget_new(1 << 20, &f.budget), 0);
    o.budget = f.budget;
    assert_int_equal(handlers_new(&o, &f.h), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    handlers_free(f->h);
    assert_int_equal(msg_budget_used(f->budget), 0);
    msg_budget_unref(f->budget);
    (void)sem_destroy(&f->entered);
    (void)sem_destroy(&f->leave);
    return 0;
}

static int run(struct fixture *f, enum handler_kind kind, const char *text,
               uint64_t timeout_ms, struct hedge_reply **reply,
               struct hedge_error *e)
{
    return handlers_run(f->h, kind, text, strlen(text), "n2", timeout_ms, reply,
                        e);
}

static void a_reply(void **state)
{
    struct fixture *f = *state;
    struct hedge_reply *r;
    struct hedge_error e;

    assert_int_equal(run(f, HANDLER_LEADER, "echo", LONG_MS, &r, &e), 0);
    assert_int_equal(r->len, 4);
    assert_memory_equal(r->data, "echo", 4);
    assert_string_equal(r->id, "n1");
    assert_int_equal(msg_budget_used(f->budget), 4);
    hedge_reply_free(r);
    assert_int_equal(run(f, HANDLER_BROADCAST, "", LONG_MS, &r, &e), 0);
    assert_int_equal(r->len, 0);
    hedge_reply_free(r);
    assert_int_equal(run(f, HANDLER_LEADER, "from", LONG_MS, &r, &e), 0);
    assert_memory_equal(r->data, "n2", 2);
    hedge_reply_free(r);
}

static void failures(void **state)
{
    struct fixture *f = *state;
    struct hedge_reply *r;
    struct hedge_error e;

    assert_int_equal(run(f, HANDLER_LEADER, "x", LONG_MS, &r, &e),
                     HEDGE_EHANDLER);
    assert_string_equal(e.text, "no, thanks");
    assert_null(r);
    /* Its own code is not taken for ours. */
    assert_int_equal(run(f, HANDLER_LEADER, "y", LONG_MS, &r, &e),
                     HEDGE_EHANDLER);
    assert_non_null(strstr(e.text, "n1"));
}

static void only_while_it_leads(void **state)
{
    struct fixture *f = *state;
    struct hedge_reply *r;
    struct hedge_error e;

    f->leads = false;
    assert_int_equal(run(f, HANDLER_LEADER, "e", LONG_MS, &r, &e),
                     HEDGE_ENOTLEADER);
    assert_int_equal(run(f, HANDLER_BROADCAST, "e", LONG_MS, &r, &e), 0);
    hedge_reply_free(r);
    assert_int_equal(f->most, 1);
}

static void a_reply_that_is_too_long(void **state)
{
    struct fixture *f = *state;
    static char text[10 << 10];
    struct hedge_reply *r;
    struct hedge_error e;

    memset(text, 'z', sizeof text - 1);
    assert_int_equal(run(f, HANDLER_LEADER, text, LONG_MS, &r, &e),
                     HEDGE_EEXHAUSTED);
    assert_int_equal(msg_budget_used(f->budget), 0);
}

static void a_message_there_is_no_room_for(void **state)
{
    struct fixture *f = *state;
    static char text[(1 << 20) + 1];
    struct hedge_reply *r;
    struct hedge_error e;

    assert_int_equal(handlers_run(f->h, HANDLER_LEADER, text, sizeof text, "",
                                  LONG_MS, &r, &e),
                     HEDGE_EEXHAUSTED);
    assert_non_null(strstr(e.text, "--message-limit"));
}

/* A handler hangs beyond its deadline. Where it did not even begin before
 * that, which is a matter of luck, it is sent again. */
static void hang(struct fixture *f)
{
    struct hedge_reply *r;
    int rv;

    do {
        rv = run(f, HANDLER_LEADER, "h", 20, &r, NULL);
        assert_null(r);
    } while (rv == HEDGE_EBUSY);
    assert_int_equal(rv, HEDGE_ETIMEDOUT);
}

/* Its caller is told at the deadline, it keeps its slot, and what it says
 * later is dropped. */
static void one_that_hangs(void **state)
{
    struct fixture *f = *state;
    struct hedge_reply *r;
    struct hedge_error e;

    hang(f);
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(run(f, HANDLER_LEADER, "e", LONG_MS, &r, &e), 0);
        hedge_reply_free(r);
    }
    (void)sem_post(&f->leave);
}

static void all_hang(void **state)
{
    struct fixture *f = *state;
    struct hedge_reply *r;
    struct hedge_error e;

    for (unsigned i = 0; i < SLOTS; i++) {
        hang(f);
    }
    assert_int_equal(run(f, HANDLER_LEADER, "e", 10, &r, &e), HEDGE_EBUSY);
    assert_non_null(strstr(e.text, "busy"));
    assert_int_equal(f->most, SLOTS);
    /* The other kind has its own. */
    assert_int_equal(run(f, HANDLER_BROADCAST, "e", LONG_MS, &r, &e), 0);
    hedge_reply_free(r);
    /* A slot that gets free is used again. */
    (void)sem_post(&f->leave);
    assert_int_equal(run(f, HANDLER_LEADER, "e", LONG_MS, &r, &e), 0);
    hedge_reply_free(r);
    for (unsigned i = 1; i < SLOTS; i++) {
        (void)sem_post(&f->leave);
    }
}

struct outcome {
    sem_t done;
    int rv;
};

static void on_done(void *arg, int rv, const struct hedge_error *e,
                    struct msg_buf *reply)
{
    struct outcome *o = arg;

    (void)e;
    (void)reply;
    o->rv = rv;
    (void)sem_post(&o->done);
}

static void submit(struct fixture *f, const char *text, struct outcome *o,
                   handlers_gone_fn gone)
{
    struct handlers_message m = {.kind = HANDLER_LEADER,
                                 .data = text,
                                 .len = strlen(text),
                                 .from = "",
                                 .timeout_ms = LONG_MS,
                                 .done = on_done,
                                 .gone = gone,
                                 .arg = o};

    (void)sem_init(&o->done, 0, 0);
    assert_int_equal(handlers_submit(f->h, &m, NULL), 0);
}

static bool gone(void *arg)
{
    (void)arg;
    return true;
}

static void whoever_waits_has_gone(void **state)
{
    struct fixture *f = *state;
    struct outcome o;

    submit(f, "c", &o, gone);
    (void)sem_wait(&o.done);
    assert_int_equal(o.rv, 0);
    assert_true(f->saw_cancel);
}

static void cancelled(void **state)
{
    struct fixture *f = *state;
    struct outcome hung[SLOTS], queued;

    for (unsigned i = 0; i < SLOTS; i++) {
        submit(f, "h", &hung[i], NULL);
        (void)sem_wait(&f->entered);
    }
    submit(f, "e", &queued, NULL);
    handlers_cancel(f->h, &queued);
    (void)sem_wait(&queued.done);
    assert_int_equal(queued.rv, HEDGE_ECANCELED);
    handlers_cancel(f->h, &hung[0]);
    (void)sem_wait(&hung[0].done);
    assert_int_equal(hung[0].rv, HEDGE_ECANCELED);
    for (unsigned i = 0; i < SLOTS; i++) {
        (void)sem_post(&f->leave);
    }
    for (unsigned i = 1; i < SLOTS; i++) {
        (void)sem_wait(&hung[i].done);
        assert_int_equal(hung[i].rv, 0);
    }
}

static void stopping(void **state)
{
    struct fixture *f = *state;
    struct outcome o[SLOTS + 1];
    struct hedge_reply *r;

    for (unsigned i = 0; i <= SLOTS; i++) {
        submit(f, "c", &o[i], NULL);
    }
    handlers_stop(f->h, 10);
    for (unsigned i = 0; i <= SLOTS; i++) {
        (void)sem_wait(&o[i].done);
        assert_int_equal(o[i].rv, HEDGE_ECLOSED);
    }
    assert_int_equal(run(f, HANDLER_LEADER, "e", LONG_MS, &r, NULL),
                     HEDGE_ECLOSED);
}

static void memory_that_runs_out(void **state)
{
    struct fixture *f = *state;
    struct hedge_reply *r;
    int rv = HEDGE_ENOMEM;

    for (long n = 0; rv != 0; n++) {
        mem_fail_after(n);
        rv = run(f, HANDLER_LEADER, "echo", LONG_MS, &r, NULL);
        mem_fail_after(-1);
        assert_true(rv == 0 || rv == HEDGE_ENOMEM);
        hedge_reply_free(r);
    }
}

static void none_at_all(void **state)
{
    struct fixture *f = *state;
    struct handlers_options o = {.id = "n1", .budget = f->budget};
    struct handlers *h;
    struct hedge_reply *r;
    struct hedge_error e;

    assert_int_equal(handlers_new(&o, &h), 0);
    assert_int_equal(
        handlers_run(h, HANDLER_BROADCAST, "x", 1, "", LONG_MS, &r, &e),
        HEDGE_ENOHANDLER);
    assert_non_null(strstr(e.text, "broadcast"));
    handlers_free(h);
}

/* --- lent threads --- */

/* A message on a thread that it may keep. */
struct lent {
    struct fixture *fixture;
    pthread_t thread;
    struct outcome outcome;
    atomic_bool on_it;
};

static __thread struct lent *lender;

static bool lend(void)
{
    atomic_store(&lender->on_it, true);
    return true;
}

static void *submit_lent(void *arg)
{
    struct lent *l = arg;
    struct handlers_message m = {.kind = HANDLER_LEADER,
                                 .data = "h",
                                 .len = 1,
                                 .from = "",
                                 .timeout_ms = LONG_MS,
                                 .lend = lend,
                                 .done = on_done,
                                 .arg = &l->outcome};

    lender = l;
    assert_int_equal(handlers_submit(l->fixture->h, &m, NULL), 0);
    return NULL;
}

static void lent_end(struct lent *l)
{
    (void)sem_post(&l->fixture->leave);
    pthread_join(l->thread, NULL);
    (void)sem_wait(&l->outcome.done);
    assert_int_equal(l->outcome.rv, 0);
}

/* A handler that hangs on its sender's thread. It takes a row of quick ones
 * before it, and how quick they are is a matter of luck. */
static void lent_start(struct fixture *f, struct lent *l)
{
    for (;;) {
        struct hedge_reply *r;

        for (unsigned i = 0; i < 50; i++) {
            assert_int_equal(run(f, HANDLER_LEADER, "e", LONG_MS, &r, NULL), 0);
            hedge_reply_free(r);
        }
        l->fixture = f;
        l->on_it = false;
        (void)sem_init(&l->outcome.done, 0, 0);
        assert_int_equal(pthread_create(&l->thread, NULL, submit_lent, l), 0);
        (void)sem_wait(&f->entered);
        if (l->on_it) {
            return;
        }
        lent_end(l);
    }
}

static void restart_with(struct fixture *f, unsigned max)
{
    struct handlers_options o = {.id = "n1",
                                 .handler = {handler, handler},
                                 .data = f,
                                 .max = max,
                                 .budget = f->budget};

    handlers_free(f->h);
    assert_int_equal(handlers_new(&o, &f->h), 0);
}

/* There is a thread, but one handler is all that may run. */
static void a_lent_one_counts(void **state)
{
    struct fixture *f = *state;
    struct handlers_use use;
    struct outcome next;
    struct lent l;

    restart_with(f, 1);
    lent_start(f, &l);
    submit(f, "e", &next, NULL);
    handlers_use(f->h, HANDLER_LEADER, &use);
    lent_end(&l);
    (void)sem_wait(&next.done);
    assert_int_equal(next.rv, 0);
    assert_int_equal(use.running, 1);
    assert_int_equal(use.queued, 1);
    assert_int_equal(f->most, 1);
}

/* Who waits in line when a lent one returns is served, although the threads
 * that are at work go on. */
static void a_place_that_gets_free(void **state)
{
    struct fixture *f = *state;
    struct handlers_use use;
    struct outcome kept, next;
    struct lent l;

    restart_with(f, 2);
    lent_start(f, &l);
    submit(f, "c", &kept, NULL);
    (void)sem_wait(&f->entered);
    submit(f, "e", &next, NULL);
    handlers_use(f->h, HANDLER_LEADER, &use);
    lent_end(&l);
    (void)sem_wait(&next.done);
    handlers_cancel(f->h, &kept);
    (void)sem_wait(&kept.done);
    assert_int_equal(next.rv, 0);
    assert_int_equal(use.running, 2);
    assert_int_equal(use.queued, 1);
    assert_int_equal(f->most, 2);
}

/* --- many at once --- */

static void *sender(void *arg)
{
    struct fixture *f = arg;

    for (unsigned i = 0; i < 300; i++) {
        struct hedge_reply *r;

        assert_int_equal(run(f, i % 2 == 0 ? HANDLER_LEADER : HANDLER_BROADCAST,
                             "echo", LONG_MS, &r, NULL),
                         0);
        assert_memory_equal(r->data, "echo", 4);
        hedge_reply_free(r);
    }
    return NULL;
}

static void many_senders(void **state)
{
    struct fixture *f = *state;
    pthread_t t[3 * SLOTS];

    for (unsigned i = 0; i < 3 * SLOTS; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, sender, f), 0);
    }
    for (unsigned i = 0; i < 3 * SLOTS; i++) {
        pthread_join(t[i], NULL);
    }
    assert_true(f->most <= 2 * SLOTS);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_reply),
        TEST(failures),
        TEST(only_while_it_leads),
        TEST(a_reply_that_is_too_long),
        TEST(a_message_there_is_no_room_for),
        TEST(one_that_hangs),
        TEST(all_hang),
        TEST(whoever_waits_has_gone),
        TEST(cancelled),
        TEST(stopping),
        TEST(memory_that_runs_out),
        TEST(none_at_all),
        TEST(a_lent_one_counts),
        TEST(a_place_that_gets_free),
        TEST(many_senders),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
