/* semaphores.c - the semaphores' core at work in the loop of a node: its calls,
 * its timer, its appends and loads, which another thread carries out. */
#include "cluster/locks/locks_internal.h"

#include "cluster/log/kv.h"
#include "cluster/locks/lock_rows.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define REQUEUE_MS 500 /* For waiters to come back to a new leader. */
#define APPEND_MS 10000

/* --- letters ----------------------------------------------------------------
 */

bool locks_post(struct locks *l, struct letter *letter, letter_fn fn)
{
    bool closed, was_empty;

    letter->fn = fn;
    pthread_mutex_lock(&l->lock);
    closed = l->closed;
    was_empty = list_empty(&l->inbox);
    if (!closed) {
        list_push(&l->inbox, &letter->link);
        if (was_empty) {
            (void)uv_async_send(&l->async);
        }
    }
    pthread_mutex_unlock(&l->lock);
    if (closed) {
        fn(l->node, letter, true);
    }
    return !closed;
}

static void read_letters(struct locks *l, bool close)
{
    struct list letters, *item;

    list_init(&letters);
    pthread_mutex_lock(&l->lock);
    l->closed = l->closed || close;
    list_splice(&letters, &l->inbox);
    pthread_mutex_unlock(&l->lock);
    while ((item = list_pop(&letters)) != NULL) {
        struct letter *letter = container_of(item, struct letter, link);
        /* One of them may be the one that closes: nobody would answer those
         * behind it. */
        letter->fn(l->node, letter, l->closed);
    }
}

static void on_letters(uv_async_t *a)
{
    struct locks *l = a->data;

    read_letters(l, false);
    locks_set_timer(l);
}

/* --- what the engine does ---------------------------------------------------
 */

struct engine_work {
    struct work work;
    struct letter letter;
    struct locks *locks;
    bool load;
    uint64_t id, term;
    int status;
    struct semaphore_row *rows; /* To append, or loaded. */
    size_t n_rows, cap_rows;
    uint64_t *revisions;
};

static void step(struct locks *l, struct semaphore_event *ev);

static void on_engine(struct hedge_node *n, struct letter *letter, bool closed)
{
    struct engine_work *w = container_of(letter, struct engine_work, letter);
    struct semaphore_event ev = {.type = w->load ? SEMAPHORE_LOADED
                                                 : SEMAPHORE_APPENDED,
                                 .id = w->id,
                                 .status = w->status,
                                 .rows = w->rows,
                                 .n_rows = w->n_rows,
                                 .revisions = w->revisions};

    if (!closed) {
        step(n->locks, &ev);
    }
    mem_free(w->rows);
    mem_free(w->revisions);
    mem_free(w);
}

static int append_rows(struct engine_work *w, struct hedge_error *e)
{
    struct hedge_node *n = w->locks->node;
    struct engine_put *puts = mem_calloc(w->n_rows, sizeof *puts);
    size_t made = 0;
    int rv = puts != NULL ? 0 : HEDGE_ENOMEM;

    while (rv == 0 && made < w->n_rows) {
        rv = lock_row_put(&w->rows[made], &puts[made]);
        made += rv == 0;
    }
    rv = rv != 0 ? error_set(e, rv, "no memory for an append")
                 : kv_append(n->kv, w->term, puts, w->n_rows, APPEND_MS, e);
    for (size_t i = 0; i < made; i++) {
        w->revisions[i] = puts[i].revision;
        lock_row_release(&puts[i]);
    }
    mem_free(puts);
    return rv;
}

static int add_row(void *ctx, const struct engine_entry *entry)
{
    struct engine_work *w = ctx;
    struct semaphore_row *rows;
    int rv;

    if (w->n_rows == w->cap_rows) {
        w->cap_rows = w->cap_rows * 2 + 16;
        rows = mem_realloc(w->rows, w->cap_rows * sizeof *rows);
        if (rows == NULL) {
            w->status = HEDGE_ENOMEM;
            return HEDGE_ENOMEM;
        }
        w->rows = rows;
    }
    rv = lock_row_parse(entry->key, entry->key_len, entry->value,
                        entry->value_len, entry->revision, &w->rows[w->n_rows]);
    if (rv != 0) {
        log_error("locks", "a grant on the disk (revision %llu) is damaged",
                  (unsigned long long)entry->revision);
        w->status = rv;
        return rv;
    }
    w->n_rows++;
    return 0;
}

static int by_token(const void *a, const void *b)
{
    const struct semaphore_row *x = a, *y = b;

    return x->token < y->token ? -1 : x->token > y->token;
}

/* Nothing of an older term comes after what is read here. */
static int load_rows(struct engine_work *w, struct hedge_error *e)
{
    struct hedge_node *n = w->locks->node;
    struct engine_query q = {.key = LOCK_ROWS_PREFIX,
                             .key_len = sizeof LOCK_ROWS_PREFIX - 1,
                             .prefix = true,
                             .latest = true,
                             .reserved = true};
    struct engine_put none;
    bool more = true;
    int rv = kv_append(n->kv, w->term, &none, 0, APPEND_MS, e);

    while (rv == 0 && more) {
        rv = engine_scan(&n->engine, &q, add_row, w, &more, e);
        rv = rv != 0 ? rv : w->status;
    }
    if (rv == 0 && w->n_rows > 0) {
        qsort(w->rows, w->n_rows, sizeof w->rows[0], by_token);
    }
    return rv;
}

static void run_engine(struct work *work)
{
    struct engine_work *w = container_of(work, struct engine_work, work);
    struct hedge_error e = {0};

    w->status = 0;
    w->status = w->load ? load_rows(w, &e) : append_rows(w, &e);
    if (w->status != 0 && w->status != HEDGE_EFENCED) {
        log_warn("locks", "%s: %s",
                 w->load ? "reading what is held" : "writing grants",
                 e.text[0] != '\0' ? e.text : hedge_strerror(w->status));
    }
    (void)locks_post(w->locks, &w->letter, on_engine);
}

static void start_engine(struct locks *l, struct semaphore_actions *a)
{
    struct engine_work *w = mem_calloc(1, sizeof *w);
    struct semaphore_event ev = {
        .type = a->load_id != 0 ? SEMAPHORE_LOADED : SEMAPHORE_APPENDED,
        .id = a->load_id != 0 ? a->load_id : a->append_id,
        .status = HEDGE_ENOMEM};

    if (w != NULL) {
        w->revisions = mem_calloc(a->n_rows + 1, sizeof *w->revisions);
    }
    if (w == NULL || w->revisions == NULL) {
        mem_free(w);
        mem_free(a->rows);
        step(l, &ev); /* It tries again in a while. */
        return;
    }
    w->locks = l;
    w->load = a->load_id != 0;
    w->id = ev.id;
    w->term = l->term;
    w->rows = a->rows;
    w->n_rows = a->n_rows;
    w->status = HEDGE_ECLOSED;
    if (pool_submit(l->engine_pool, &w->work, run_engine) != 0) {
        (void)locks_post(l, &w->letter, on_engine);
    }
}

/* --- steps ------------------------------------------------------------------
 */

static void step(struct locks *l, struct semaphore_event *ev)
{
    struct semaphore_actions a;
    struct semaphores_use use;
    uint64_t now = clock_boot_ms(), token;
    struct list *item;

    ev->leads =
        election_is_leader(&l->node->election, now, &token) && token == l->term;
    semaphores_step(l->core, ev, now, &a);
    semaphores_use(l->core, &use);
    atomic_store(&l->n_claims, use.claims);
    atomic_store(&l->n_sessions, use.sessions);
    l->wake_ms = a.wake_ms;
    if (a.load_id != 0 || a.append_id != 0) {
        start_engine(l, &a);
    }
    while ((item = list_pop(&a.answers)) != NULL) {
        struct semaphore_call *c =
            container_of(item, struct semaphore_call, link);

        if (c->kind == LOCK_KIND_OWN) {
            route_answered(l, container_of(c, struct lock_call, call));
        } else {
            relay_answered(l, container_of(c, struct relayed, call));
        }
    }
}

void locks_step_call(struct locks *l, struct semaphore_call *c)
{
    struct semaphore_event ev = {.type = SEMAPHORE_CALL, .call = c};

    step(l, &ev);
}

static void on_timer(uv_timer_t *t)
{
    struct locks *l = t->data;
    struct semaphore_event tick = {.type = SEMAPHORE_TICK};
    uint64_t now = clock_boot_ms();

    if (now >= l->wake_ms) {
        step(l, &tick);
    }
    route_tick(l, now);
    locks_set_timer(l);
}

void locks_set_timer(struct locks *l)
{
    uint64_t at = l->wake_ms < l->due_ms ? l->wake_ms : l->due_ms;
    uint64_t now = clock_boot_ms();

    at = l->retry_ms < at ? l->retry_ms : at;
    if (at == UINT64_MAX || l->closed) {
        (void)uv_timer_stop(&l->timer);
    } else {
        (void)uv_timer_start(&l->timer, on_timer, at > now ? at - now : 0, 0);
    }
}

void locks_lead(struct hedge_node *n, uint64_t token)
{
    const struct election_leader *leader = election_leader(&n->election);
    struct locks *l = n->locks;
    bool elsewhere = token == 0 && strcmp(leader->id, n->id) != 0;
    struct semaphore_event ev = {
        .type = token != 0 ? SEMAPHORE_LEAD : SEMAPHORE_LOST, .term = token};

    if (l->closed) {
        return;
    }
    relay_aim(l, elsewhere ? leader->address : "");
    if (token != 0 || l->term != 0) {
        l->term = token;
        step(l, &ev);
    }
    route_changed(l);
    locks_set_timer(l);
}

/* --- life -------------------------------------------------------------------
 */

int locks_new(struct hedge_node *n, struct hedge_error *e)
{
    const struct semaphore_options o = {.requeue_ms = REQUEUE_MS};
    struct locks *l = mem_calloc(1, sizeof *l);

    if (l == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for semaphores");
    }
    n->locks = l;
    l->node = n;
    pthread_mutex_init(&l->lock, NULL);
    list_init(&l->inbox);
    l->wake_ms = UINT64_MAX;
    route_init(l);
    if (semaphores_new(&o, &l->core) != 0 ||
        pool_new(1, "hedge-grants", &l->engine_pool) != 0 ||
        relay_start(l) != 0) {
        return error_set(e, HEDGE_ENOMEM, "cannot start the semaphores");
    }
    return 0;
}

int locks_open(struct hedge_node *n)
{
    struct locks *l = n->locks;

    l->async.data = l->timer.data = l;
    if (uv_async_init(&n->loop, &l->async, on_letters) != 0 ||
        uv_timer_init(&n->loop, &l->timer) != 0) {
        return HEDGE_ENOMEM;
    }
    l->loop_open = true;
    return 0;
}

struct stopping {
    struct letter letter;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool done;
};

static void close_all(struct locks *l)
{
    struct semaphore_event lost = {.type = SEMAPHORE_LOST};

    /* In this order: once it is closed other threads end what their peers have
     * asked, which the core must not have any more. */
    l->term = 0;
    step(l, &lost);
    read_letters(l, true);
    route_close(l);
}

static void on_stop(struct hedge_node *n, struct letter *letter, bool closed)
{
    struct stopping *s = container_of(letter, struct stopping, letter);

    assert(!closed);
    close_all(n->locks);
    locks_set_timer(n->locks);
    pthread_mutex_lock(&s->lock);
    s->done = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

static bool is_closed(struct locks *l)
{
    bool closed;

    pthread_mutex_lock(&l->lock);
    closed = l->closed;
    pthread_mutex_unlock(&l->lock);
    return closed;
}

void locks_stop(struct hedge_node *n)
{
    struct locks *l = n->locks;
    struct stopping s = {.done = false};

    if (l == NULL || is_closed(l)) {
        return;
    }
    if (!n->loop_runs) {
        l->closed = true;
    } else {
        pthread_mutex_init(&s.lock, NULL);
        pthread_cond_init(&s.wake, NULL);
        (void)locks_post(l, &s.letter, on_stop);
        pthread_mutex_lock(&s.lock);
        while (!s.done) {
            pthread_cond_wait(&s.wake, &s.lock);
        }
        pthread_mutex_unlock(&s.lock);
        pthread_cond_destroy(&s.wake);
        pthread_mutex_destroy(&s.lock);
    }
    relay_stop(l);
    pool_free(l->engine_pool);
    l->engine_pool = NULL;
}

void locks_free(struct hedge_node *n)
{
    struct locks *l = n->locks;

    if (l == NULL) {
        return;
    }
    locks_stop(n);
    semaphores_free(l->core);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
    n->locks = NULL;
}
