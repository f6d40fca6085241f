/* The life of a job: QUEUED (in line, or given to a thread that wakes up),
 * RUNNING, ANSWERED. Whoever moves it to ANSWERED, under the lock, calls
 * `done`: its thread when the handler has returned, the watch when its deadline
 * passes, or handlers_stop(). It is freed when it is answered and no thread is
 * at it. */
#include "cluster/messages/handlers.h"

#include "cluster/messages/msg_stream.h"
#include "store/base/clock.h"
#include "store/base/error.h"
#include "store/base/list.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define NS_PER_S 1000000000u
#define NEVER UINT64_MAX
#define GONE_STEP_MS 50
/* So many handlers in a row that took no longer than this: the next one may run
 * on the thread that has received its message, which costs no wake-up. One that
 * then takes long costs that thread's others up to half a millisecond. */
#define QUICK_NS 30000u
#define QUICK_STREAK 16

enum job_state { JOB_QUEUED, JOB_RUNNING, JOB_ANSWERED };

struct job {
    struct list queued;  /* kind.queue */
    struct list pending; /* handlers.pending, by deadline */
    enum job_state state;
    bool cancelled;
    enum handler_kind kind;
    uint64_t until_ms, gone_at_ms;
    handlers_done_fn done;
    handlers_gone_fn gone;
    void *arg;
    char from[264];
    struct msg_buf message;
    struct msg_shared *shared; /* Instead of it; or NULL. */
};

/* What the handler writes to; on its thread's stack. */
struct hedge_answer {
    struct handlers *handlers;
    struct job *job;
    struct msg_buf reply;
    int failed; /* A write did: the reply is not whole. */
};

struct thread {
    struct list link; /* kind.idle */
    struct list all;  /* handlers.threads */
    struct handlers *handlers;
    enum handler_kind kind;
    pthread_t id;
    pthread_cond_t wake;
    struct job *job; /* Given to it. */
};

struct kind {
    struct list queue, idle;
    unsigned n_queued, n_threads, n_idle, n_streams;
    unsigned n_lent; /* Handlers that run on others' threads. */
    unsigned streak; /* How many in a row have been quick. */
};

struct handlers {
    struct handlers_options o;
    pthread_mutex_t lock;   /* Over all that follows. */
    pthread_cond_t watch;   /* For the watch. */
    pthread_cond_t changed; /* Jobs have ended. */
    struct kind kind[HANDLER_KINDS];
    struct list pending, threads;
    unsigned n_unanswered;
    uint64_t watch_at_ms;
    bool stopping, closing;
    pthread_t watch_thread;
};

const char *handler_kind_name(enum handler_kind kind)
{
    return kind == HANDLER_LEADER ? "leader" : "broadcast";
}

static void cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

static void wait_until(pthread_cond_t *c, pthread_mutex_t *lock,
                       uint64_t until_ms)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ms / 1000),
                          .tv_nsec = (long)(until_ms % 1000) * 1000000};

    if (until_ms == NEVER) {
        pthread_cond_wait(c, lock);
    } else {
        (void)pthread_cond_timedwait(c, lock, &ts);
    }
}

/* --- jobs -------------------------------------------------------------------
 */

static void drop_message(struct job *j)
{
    msg_buf_clear(&j->message);
    msg_shared_unref(j->shared);
    j->shared = NULL;
}

static void job_free(struct job *j)
{
    drop_message(j);
    msg_buf_release(&j->message);
    mem_free(j);
}

/* With the lock held, which is dropped while `done` runs. */
static void answer(struct handlers *h, struct job *j, int rv,
                   const struct hedge_error *e, struct msg_buf *reply)
{
    handlers_done_fn done = j->done;
    void *arg = j->arg; /* Its thread may free the job meanwhile. */
    struct msg_buf none = {0};

    assert(j->state != JOB_ANSWERED);
    if (j->state == JOB_QUEUED && !list_empty(&j->queued)) {
        list_remove(&j->queued);
        h->kind[j->kind].n_queued--;
    }
    j->state = JOB_ANSWERED;
    list_remove(&j->pending);
    pthread_mutex_unlock(&h->lock);
    done(arg, rv, e, reply != NULL ? reply : &none);
    pthread_mutex_lock(&h->lock);
    assert(h->n_unanswered > 0);
    if (--h->n_unanswered == 0 && h->stopping) {
        pthread_cond_broadcast(&h->changed);
    }
}

/* With the lock held: by deadline; nearly always it goes to the end. */
static void pending_add(struct handlers *h, struct job *j)
{
    struct list *at = h->pending.prev;

    while (at != &h->pending &&
           container_of(at, struct job, pending)->until_ms > j->until_ms) {
        at = at->prev;
    }
    list_push_front(at, &j->pending);
    h->n_unanswered++;
    if (j->until_ms < h->watch_at_ms) {
        pthread_cond_signal(&h->watch);
    }
}

/* --- answers ----------------------------------------------------------------
 */

HEDGE_API int hedge_answer_write(struct hedge_answer *a, const void *data,
                                 size_t len)
{
    int rv = a->failed != 0 ? a->failed : msg_buf_append(&a->reply, data, len);

    a->failed = rv;
    return rv;
}

HEDGE_API bool hedge_answer_is_cancelled(const struct hedge_answer *a)
{
    struct handlers *h = a->handlers;
    struct job *j = a->job;
    uint64_t now = clock_mono_ms();
    bool cancelled;

    pthread_mutex_lock(&h->lock);
    if (!j->cancelled && j->state == JOB_RUNNING && j->gone != NULL &&
        now >= j->gone_at_ms) {
        j->gone_at_ms = now + GONE_STEP_MS;
        j->cancelled = j->gone(j->arg);
    }
    cancelled = j->cancelled || j->state == JOB_ANSWERED;
    pthread_mutex_unlock(&h->lock);
    return cancelled;
}

static int reply_failed(struct handlers *h, const struct hedge_answer *a,
                        struct hedge_error *e)
{
    char size[UNITS_SIZE_TEXT];

    if (a->failed == HEDGE_ETOOBIG) {
        return error_set(e, a->failed, "the reply is over %s",
                         units_format_size(MSG_MAX, size));
    }
    if (a->failed == HEDGE_EEXHAUSTED) {
        return error_set(e, a->failed,
                         "no room for the reply of node %s: %llu bytes of "
                         "messages are there (--message-limit)",
                         h->o.id,
                         (unsigned long long)msg_budget_used(h->o.budget));
    }
    return error_set(e, a->failed, "no memory for the reply");
}

/* Without the lock. */
static int call_handler(struct handlers *h, struct job *j,
                        struct hedge_answer *a, struct hedge_error *e)
{
    const struct msg_buf *bytes =
        j->shared != NULL ? &j->shared->buf : &j->message;
    struct hedge_message m = {.data = bytes->len > 0 ? bytes->data
                                                     : (const void *)"",
                              .len = bytes->len,
                              .from = j->from};
    int rv = h->o.handler[j->kind](h->o.data, &m, a, e);

    if (a->failed != 0) {
        return reply_failed(h, a, e);
    }
    if (rv == 0) {
        return 0;
    }
    e->code = HEDGE_EHANDLER;
    if (e->text[0] == '\0') {
        (void)error_set(e, HEDGE_EHANDLER,
                        "the %s handler of node %s failed without a text",
                        handler_kind_name(j->kind), h->o.id);
    }
    return HEDGE_EHANDLER;
}

/* With the lock held, which is dropped meanwhile. */
static void run_job(struct handlers *h, struct job *j)
{
    struct hedge_answer a = {.handlers = h, .job = j};
    struct kind *k = &h->kind[j->kind];
    struct hedge_error e;
    uint64_t start_ns;
    bool quick;
    int rv;

    if (j->state == JOB_ANSWERED) { /* While its thread woke up. */
        pthread_mutex_unlock(&h->lock);
        job_free(j);
        pthread_mutex_lock(&h->lock);
        return;
    }
    j->state = JOB_RUNNING;
    pthread_mutex_unlock(&h->lock);
    error_clear(&e);
    msg_buf_init(&a.reply, h->o.budget);
    start_ns = clock_mono_ns();
    if (j->kind == HANDLER_LEADER && h->o.leads != NULL &&
        !h->o.leads(h->o.ctx)) {
        rv = error_set(&e, HEDGE_ENOTLEADER,
                       "node %s is not the leader any more", h->o.id);
    } else {
        rv = call_handler(h, j, &a, &e);
    }
    if (rv != 0) {
        msg_buf_clear(&a.reply);
    }
    quick = clock_mono_ns() - start_ns <= QUICK_NS;
    drop_message(j); /* Before anybody hears of the reply. */
    pthread_mutex_lock(&h->lock);
    k->streak = quick ? k->streak + 1 : 0;
    if (j->state == JOB_RUNNING) {
        answer(h, j, rv, &e, &a.reply);
    }
    pthread_mutex_unlock(&h->lock);
    msg_buf_release(&a.reply);
    job_free(j);
    pthread_mutex_lock(&h->lock);
}

/* With the lock held: how many handlers run or are about to, on any thread. */
static unsigned running(const struct kind *k)
{
    return k->n_threads - k->n_idle + k->n_lent;
}

/* --- threads ----------------------------------------------------------------
 */

static struct job *next_job(struct kind *k)
{
    struct list *l = list_pop(&k->queue);

    if (l == NULL) {
        return NULL;
    }
    k->n_queued--;
    return container_of(l, struct job, queued);
}

static void *thread_main(void *arg)
{
    struct thread *t = arg;
    struct handlers *h = t->handlers;
    struct kind *k = &h->kind[t->kind];

    pthread_mutex_lock(&h->lock);
    for (;;) {
        struct job *j = t->job != NULL ? t->job : next_job(k);

        t->job = NULL;
        if (j != NULL) {
            run_job(h, j);
            continue;
        }
        if (h->closing) {
            break;
        }
        /* The one that slept last wakes first: its stack is warm. */
        list_push_front(&k->idle, &t->link);
        k->n_idle++;
        while (t->job == NULL && !h->closing) {
            pthread_cond_wait(&t->wake, &h->lock);
        }
        if (t->job == NULL) { /* At the end. */
            list_remove(&t->link);
            k->n_idle--;
        }
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

/* Threads start with all signals blocked: they are the program's. */
static int spawn(pthread_t *id, void *(*fn)(void *arg), void *arg,
                 const char *name)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(id, NULL, fn, arg);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(*id, name);
    return 0;
}

/* With the lock held. */
static int add_thread(struct handlers *h, enum handler_kind kind, struct job *j)
{
    struct thread *t = mem_calloc(1, sizeof *t);
    int rv;

    if (t == NULL) {
        return HEDGE_ENOMEM;
    }
    t->handlers = h;
    t->kind = kind;
    t->job = j;
    list_init(&t->link);
    pthread_cond_init(&t->wake, NULL);
    rv = spawn(&t->id, thread_main, t, "hedge-handler");
    if (rv != 0) {
        pthread_cond_destroy(&t->wake);
        mem_free(t);
        return rv;
    }
    list_push(&h->threads, &t->all);
    h->kind[kind].n_threads++;
    return 0;
}

/* With the lock held: a thread for the job, if one more may run. */
static bool start(struct handlers *h, struct job *j)
{
    struct kind *k = &h->kind[j->kind];
    struct thread *t;

    if (running(k) >= h->o.max) {
        return false;
    }
    if (list_empty(&k->idle)) {
        return add_thread(h, j->kind, j) == 0;
    }
    t = container_of(list_pop(&k->idle), struct thread, link);
    k->n_idle--;
    t->job = j;
    pthread_cond_signal(&t->wake);
    return true;
}

/* With the lock held: a thread for the job, or a place in the line. */
static int give(struct handlers *h, struct job *j, struct hedge_error *e)
{
    struct kind *k = &h->kind[j->kind];

    if (start(h, j)) {
        return 0;
    }
    if (k->n_threads == 0) {
        return error_set(e, HEDGE_ENOMEM, "no thread for a handler");
    }
    if (k->n_queued == HANDLERS_QUEUE_MAX) {
        return error_set(
            e, HEDGE_EBUSY, "node %s runs %u %s handlers and %u messages wait",
            h->o.id, running(k), handler_kind_name(j->kind), k->n_queued);
    }
    list_push(&k->queue, &j->queued);
    k->n_queued++;
    return 0;
}

/* --- lent threads -----------------------------------------------------------
 */

/* With the lock held. */
static bool is_quick(const struct handlers *h, enum handler_kind kind)
{
    const struct kind *k = &h->kind[kind];

    return k->streak >= QUICK_STREAK && k->n_queued == 0 &&
           running(k) < h->o.max;
}

/* With the lock held: the first in line, which a thread of ours would take by
 * itself. Where no thread can be had it stays there, for the next that is done.
 */
static void start_next(struct handlers *h, struct kind *k)
{
    struct job *j = next_job(k);

    if (j != NULL && !start(h, j)) {
        list_push_front(&k->queue, &j->queued);
        k->n_queued++;
    }
}

/* On the calling thread. handlers_free() waits for it as for its own. */
static void run_lent(struct handlers *h, struct job *j)
{
    struct kind *k = &h->kind[j->kind];

    k->n_lent++;
    run_job(h, j);
    k->n_lent--;
    start_next(h, k);
    if (h->stopping) {
        pthread_cond_broadcast(&h->changed);
    }
}

/* --- deadlines --------------------------------------------------------------
 */

/* With the lock held, which is dropped meanwhile: answer a job without its
 * handler. */
static void settle(struct handlers *h, struct job *j,
                   const struct hedge_error *e)
{
    bool in_line = j->state == JOB_QUEUED && !list_empty(&j->queued);

    j->cancelled = true;
    answer(h, j, e->code, e, NULL);
    if (in_line) { /* No thread will come to it. */
        job_free(j);
    }
}

static void expire(struct handlers *h, struct job *j)
{
    const char *kind = handler_kind_name(j->kind);
    struct hedge_error e;

    if (j->state == JOB_QUEUED) {
        (void)error_set(&e, HEDGE_EBUSY,
                        "all %u %s handlers of node %s were busy until the "
                        "deadline; the message was not handled",
                        running(&h->kind[j->kind]), kind, h->o.id);
    } else {
        (void)error_set(&e, HEDGE_ETIMEDOUT,
                        "the %s handler of node %s did not answer in time",
                        kind, h->o.id);
    }
    settle(h, j, &e);
}

static void *watch_main(void *arg)
{
    struct handlers *h = arg;

    pthread_mutex_lock(&h->lock);
    while (!h->closing) {
        uint64_t now = clock_mono_ms();
        struct job *j =
            list_empty(&h->pending)
                ? NULL
                : container_of(h->pending.next, struct job, pending);

        if (j != NULL && j->until_ms <= now) {
            expire(h, j);
            continue;
        }
        /* Not sooner than before: that would mean a wake-up for each message
         * where they come one at a time. */
        if (j != NULL &&
            (j->until_ms < h->watch_at_ms || h->watch_at_ms <= now)) {
            h->watch_at_ms = j->until_ms;
        } else if (h->watch_at_ms <= now) {
            h->watch_at_ms = NEVER;
        }
        wait_until(&h->watch, &h->lock, h->watch_at_ms);
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

/* --- submitting -------------------------------------------------------------
 */

static int no_handler(const struct handlers *h, enum handler_kind kind,
                      const char *what, struct hedge_error *e)
{
    return error_set(e, HEDGE_ENOHANDLER, "node %s has no %s%s handler",
                     h->o.id, handler_kind_name(kind), what);
}

static int job_new(struct handlers *h, const struct handlers_message *m,
                   struct job **out, struct hedge_error *e)
{
    struct job *j = mem_calloc(1, sizeof *j);
    int rv = 0;

    *out = NULL;
    if (j == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a message");
    }
    list_init(&j->queued);
    list_init(&j->pending);
    j->kind = m->kind;
    j->done = m->done;
    j->gone = m->gone;
    j->arg = m->arg;
    j->until_ms = clock_mono_ms() +
                  (m->timeout_ms < UINT32_MAX ? m->timeout_ms : UINT32_MAX);
    (void)snprintf(j->from, sizeof j->from, "%s", m->from);
    if (m->own != NULL) {
        msg_buf_move(m->own, &j->message);
    } else if (m->shared != NULL) {
        j->shared = m->shared;
        msg_shared_ref(m->shared);
    } else {
        msg_buf_init(&j->message, h->o.budget);
        rv = msg_buf_reserve(&j->message, m->len, 0, e);
        rv = rv != 0 ? rv : msg_buf_append(&j->message, m->data, m->len);
    }
    if (rv != 0) {
        job_free(j);
        return rv;
    }
    *out = j;
    return 0;
}

static int check_leads(struct handlers *h, enum handler_kind kind,
                       struct hedge_error *e)
{
    return kind == HANDLER_LEADER && h->o.leads != NULL && !h->o.leads(h->o.ctx)
               ? error_set(e, HEDGE_ENOTLEADER, "node %s is not the leader",
                           h->o.id)
               : 0;
}

int handlers_check(struct handlers *h, enum handler_kind kind,
                   struct hedge_error *e)
{
    return h->o.handler[kind] == NULL ? no_handler(h, kind, "", e)
                                      : check_leads(h, kind, e);
}

int handlers_submit(struct handlers *h, const struct handlers_message *m,
                    struct hedge_error *e)
{
    struct job *j;
    int rv;

    assert(m->kind < HANDLER_KINDS && m->done != NULL);
    rv = handlers_check(h, m->kind, e);
    rv = rv != 0 ? rv : job_new(h, m, &j, e);
    if (rv != 0) {
        if (m->own != NULL) {
            msg_buf_release(m->own);
        }
        return rv;
    }
    pthread_mutex_lock(&h->lock);
    if (h->stopping) {
        rv = error_set(e, HEDGE_ECLOSED, "node %s stops", h->o.id);
    } else if (is_quick(h, m->kind) && m->lend != NULL && m->lend()) {
        pending_add(h, j);
        run_lent(h, j);
    } else {
        rv = give(h, j, e);
        if (rv == 0) {
            pending_add(h, j);
        }
    }
    pthread_mutex_unlock(&h->lock);
    if (rv != 0) {
        job_free(j);
    }
    return rv;
}

void handlers_cancel(struct handlers *h, const void *arg)
{
    struct hedge_error e;
    struct list *l;

    (void)error_set(&e, HEDGE_ECANCELED, "the sender has given up");
    pthread_mutex_lock(&h->lock);
    list_foreach (l, &h->pending) {
        struct job *j = container_of(l, struct job, pending);

        if (j->arg == arg) {
            settle(h, j, &e);
            break;
        }
    }
    pthread_mutex_unlock(&h->lock);
}

/* --- waiting for the reply --------------------------------------------------
 */

struct wait {
    struct handlers *handlers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool done;
    int rv;
    struct hedge_error *e;
    struct hedge_reply *reply;
};

static void on_done(void *arg, int rv, const struct hedge_error *e,
                    struct msg_buf *reply)
{
    struct wait *w = arg;

    if (rv == 0) {
        w->reply = msg_reply_new(w->handlers->o.id, 0, "", reply);
        rv = w->reply != NULL
                 ? 0
                 : error_set(w->e, HEDGE_ENOMEM, "no memory for the reply");
    } else {
        (void)error_set(w->e, rv, "%s", e->text);
    }
    pthread_mutex_lock(&w->lock);
    w->rv = rv;
    w->done = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

int handlers_run(struct handlers *h, enum handler_kind kind, const void *data,
                 size_t len, const char *from, uint64_t timeout_ms,
                 struct hedge_reply **reply, struct hedge_error *e)
{
    struct wait w = {.handlers = h, .e = e};
    struct handlers_message m = {.kind = kind,
                                 .data = data,
                                 .len = len,
                                 .from = from,
                                 .timeout_ms = timeout_ms,
                                 .done = on_done,
                                 .arg = &w};
    int rv;

    *reply = NULL;
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.wake, NULL);
    rv = handlers_submit(h, &m, e);
    if (rv == 0) {
        pthread_mutex_lock(&w.lock);
        while (!w.done) {
            pthread_cond_wait(&w.wake, &w.lock);
        }
        pthread_mutex_unlock(&w.lock);
        rv = w.rv;
        *reply = w.reply;
    }
    pthread_cond_destroy(&w.wake);
    pthread_mutex_destroy(&w.lock);
    return rv;
}

/* --- streams ----------------------------------------------------------------
 */

int handlers_run_stream(struct handlers *h, enum handler_kind kind,
                        struct hedge_stream *s, struct hedge_error *e)
{
    struct hedge_error own;
    struct kind *k = &h->kind[kind];
    int rv = 0;

    if (h->o.stream[kind] == NULL) {
        return no_handler(h, kind, " stream", e);
    }
    if (kind == HANDLER_LEADER && h->o.leads != NULL && !h->o.leads(h->o.ctx)) {
        return error_set(e, HEDGE_ENOTLEADER, "node %s is not the leader",
                         h->o.id);
    }
    pthread_mutex_lock(&h->lock);
    if (h->stopping) {
        rv = error_set(e, HEDGE_ECLOSED, "node %s stops", h->o.id);
    } else if (k->n_streams >= h->o.max) {
        rv = error_set(e, HEDGE_EBUSY, "node %s has %u %s streams already",
                       h->o.id, k->n_streams, handler_kind_name(kind));
    }
    k->n_streams += rv == 0;
    pthread_mutex_unlock(&h->lock);
    if (rv != 0) {
        return rv;
    }
    error_clear(&own);
    rv = msg_stream_begin(s);
    rv = rv != 0 ? rv : h->o.stream[kind](h->o.data, s, &own);
    pthread_mutex_lock(&h->lock);
    k->n_streams--;
    pthread_mutex_unlock(&h->lock);
    if (rv == 0 || rv == HEDGE_EEND) {
        return 0;
    }
    return error_set(e, HEDGE_EHANDLER, "%s",
                     own.text[0] != '\0'
                         ? own.text
                         : "the stream handler failed without a text");
}

/* --- life -------------------------------------------------------------------
 */

int handlers_new(const struct handlers_options *o, struct handlers **out)
{
    struct handlers *h = mem_calloc(1, sizeof *h);
    int rv;

    *out = NULL;
    if (h == NULL) {
        return HEDGE_ENOMEM;
    }
    h->o = *o;
    h->o.max = o->max != 0 ? o->max : HANDLERS_MAX_DEFAULT;
    h->watch_at_ms = NEVER;
    pthread_mutex_init(&h->lock, NULL);
    cond_init(&h->watch);
    cond_init(&h->changed);
    list_init(&h->pending);
    list_init(&h->threads);
    for (unsigned i = 0; i < HANDLER_KINDS; i++) {
        list_init(&h->kind[i].queue);
        list_init(&h->kind[i].idle);
    }
    rv = spawn(&h->watch_thread, watch_main, h, "hedge-watch");
    if (rv != 0) {
        pthread_cond_destroy(&h->watch);
        pthread_cond_destroy(&h->changed);
        pthread_mutex_destroy(&h->lock);
        mem_free(h);
        return rv;
    }
    *out = h;
    return 0;
}

void handlers_stop(struct handlers *h, uint64_t grace_ms)
{
    uint64_t until_ms = clock_mono_ms() + grace_ms;
    struct hedge_error e;

    if (h == NULL) {
        return;
    }
    (void)error_set(&e, HEDGE_ECLOSED, "node %s stops", h->o.id);
    pthread_mutex_lock(&h->lock);
    h->stopping = true;
    while (h->n_unanswered > 0 && clock_mono_ms() < until_ms) {
        wait_until(&h->changed, &h->lock, until_ms);
    }
    while (!list_empty(&h->pending)) {
        settle(h, container_of(h->pending.next, struct job, pending), &e);
    }
    pthread_mutex_unlock(&h->lock);
}

void handlers_free(struct handlers *h)
{
    struct list *l;

    if (h == NULL) {
        return;
    }
    handlers_stop(h, 0);
    pthread_mutex_lock(&h->lock);
    h->closing = true;
    pthread_cond_broadcast(&h->watch);
    list_foreach (l, &h->threads) {
        pthread_cond_signal(&container_of(l, struct thread, all)->wake);
    }
    while (h->kind[HANDLER_LEADER].n_lent + h->kind[HANDLER_BROADCAST].n_lent >
           0) {
        pthread_cond_wait(&h->changed, &h->lock);
    }
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->watch_thread, NULL);
    while ((l = list_pop(&h->threads)) != NULL) {
        struct thread *t = container_of(l, struct thread, all);

        pthread_join(t->id, NULL);
        pthread_cond_destroy(&t->wake);
        mem_free(t);
    }
    assert(h->n_unanswered == 0);
    pthread_cond_destroy(&h->watch);
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    mem_free(h);
}

void handlers_use(struct handlers *h, enum handler_kind kind,
                  struct handlers_use *out)
{
    struct kind *k = &h->kind[kind];

    pthread_mutex_lock(&h->lock);
    *out = (struct handlers_use){.running = running(k),
                                 .queued = k->n_queued,
                                 .streams = k->n_streams,
                                 .max = h->o.max};
    pthread_mutex_unlock(&h->lock);
}
