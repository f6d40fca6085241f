/* The life of a change: it enters the table `active`; the flusher exchanges
 * `active` and the empty `batch`, and writes the batch in one transaction;
 * only after the commit is the batch emptied. A lookup asks active, batch and
 * then the database, whose snapshot is taken after the tables were asked, so
 * whatever was put before is seen. Lookups that join both (by ordinal) start
 * again when a batch was emptied between their looks (`epoch`). */
#include "store/catalog/catalog.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/catalog/catalog_internal.h"

#include <assert.h>
#include <pthread.h>
#include <time.h>

/* The last slots are for removals: they are what makes room again. */
#define PUTS_MAX (CATALOG_PENDING_MAX - CATALOG_PENDING_MAX / 8)
#define FLUSH_AT (CATALOG_PENDING_MAX / 2)
#define FLUSH_AFTER_MS 50
#define RETRY_MS 200
#define REMOVE_BATCH 4096
#define REMOVE_BATCH_MIN 16
#define DROPPING_MAX 32

struct catalog {
    struct catalog_db *db;
    pthread_mutex_t lock;
    pthread_cond_t work; /* The flusher's. */
    pthread_cond_t done; /* A batch was taken, emptied, or failed. */
    struct catalog_table *active, *batch;
    uint64_t active_no;  /* Number of the batch that `active` will be. */
    uint64_t flushed_no; /* All batches up to this one are in the database. */
    uint64_t failures;
    uint64_t epoch; /* Counts what is taken out of the tables. */
    int error;      /* Of the last try, 0 when it went well. */
    bool writing;   /* The flusher reads `batch` without the lock. */
    bool flush_now, stop, running;
    unsigned n_dropping;
    uint64_t dropping[DROPPING_MAX]; /* Generations nobody finds any more. */
    pthread_t flusher;
};

/* --- looking -------------------------------------------------------------- */

/* Locked. */
static bool is_dropping(const struct catalog *c, uint64_t generation)
{
    for (unsigned i = 0; i < c->n_dropping; i++) {
        if (c->dropping[i] == generation) {
            return true;
        }
    }
    return false;
}

/* Locked. What is pending for a block, the newest. */
static const struct catalog_slot *pending(struct catalog *c,
                                          const struct block_id *id)
{
    const struct catalog_slot *s = catalog_table_find(c->active, id);

    if (s == NULL || s->void_) {
        s = catalog_table_find(c->batch, id);
    }
    return s == NULL || s->void_ ? NULL : s;
}

/* Locked. */
static enum catalog_word word_on(struct catalog *c, const struct block_id *id,
                                 struct catalog_entry *out)
{
    const struct catalog_slot *s = pending(c, id);

    if (is_dropping(c, id->generation)) {
        return CATALOG_GONE;
    }
    if (s == NULL) {
        return CATALOG_AS_STORED;
    }
    if (s->removed) {
        return CATALOG_GONE;
    }
    *out = s->entry;
    return CATALOG_CHANGED;
}

static enum catalog_word ask(void *ctx, const struct block_id *id,
                             struct catalog_entry *out)
{
    struct catalog *c = ctx;
    enum catalog_word word;

    pthread_mutex_lock(&c->lock);
    word = word_on(c, id, out);
    pthread_mutex_unlock(&c->lock);
    return word;
}

int catalog_get(struct catalog *c, const struct block_id *id,
                struct catalog_entry *out)
{
    switch (ask(c, id, out)) {
    case CATALOG_CHANGED:
        return 0;
    case CATALOG_GONE:
        return HEDGE_ENOTFOUND;
    case CATALOG_AS_STORED:
        break;
    }
    return catalog_db_get(c->db, id, out);
}

/* Locked. */
static const struct catalog_slot *
pending_at(struct catalog *c, uint64_t generation, uint64_t ordinal)
{
    const struct catalog_slot *s;

    s = catalog_table_find_ordinal(c->active, generation, ordinal);
    if (s != NULL) {
        return s;
    }
    s = catalog_table_find_ordinal(c->batch, generation, ordinal);
    return s != NULL && pending(c, &s->entry.id) == s ? s : NULL;
}

/* Locked. The slot with the lowest ordinal in [from, *to); *to follows. */
static const struct catalog_slot *lowest_in(struct catalog *c,
                                            struct catalog_table *t,
                                            uint64_t generation, uint64_t from,
                                            uint64_t *to)
{
    const struct catalog_slot *lowest = NULL;

    for (unsigned i = 0; i < t->n; i++) {
        const struct catalog_slot *s = &t->slots[i];
        const struct catalog_entry *entry = &s->entry;
        if (entry->id.generation == generation && !s->removed && !s->void_ &&
            entry->ordinal >= from && entry->ordinal < *to &&
            pending(c, &entry->id) == s) {
            lowest = s;
            *to = entry->ordinal;
        }
    }
    return lowest;
}

/* Locked. */
static const struct catalog_slot *lowest_pending(struct catalog *c,
                                                 uint64_t generation,
                                                 uint64_t from, uint64_t to)
{
    const struct catalog_slot *s, *t;

    s = lowest_in(c, c->active, generation, from, &to);
    t = lowest_in(c, c->batch, generation, from, &to);
    return t != NULL ? t : s;
}

/* One look by ordinal; false when it has to be repeated. */
static bool look(struct catalog *c, uint64_t generation, uint64_t ordinal,
                 bool exact, struct catalog_entry *out, int *rv)
{
    const struct catalog_slot *s;
    uint64_t epoch;
    bool same;

    pthread_mutex_lock(&c->lock);
    epoch = c->epoch;
    *rv = is_dropping(c, generation) ? HEDGE_ENOTFOUND : 0;
    s = *rv == 0 ? pending_at(c, generation, ordinal) : NULL;
    if (s != NULL) {
        *out = s->entry;
    }
    pthread_mutex_unlock(&c->lock);
    if (s != NULL || *rv != 0) {
        return true;
    }
    *rv = catalog_db_seek(c->db, generation, ordinal, exact, ask, c, out);
    if (*rv != 0 && *rv != HEDGE_ENOTFOUND) {
        return true;
    }
    pthread_mutex_lock(&c->lock);
    same = epoch == c->epoch;
    if (same && !exact && !(*rv == 0 && out->ordinal == ordinal)) {
        s = lowest_pending(c, generation, ordinal,
                           *rv == 0 ? out->ordinal : CATALOG_ORDINAL_NONE);
    }
    if (s != NULL && !is_dropping(c, generation)) {
        *out = s->entry;
        *rv = 0;
    }
    pthread_mutex_unlock(&c->lock);
    return same;
}

int catalog_get_ordinal(struct catalog *c, uint64_t generation,
                        uint64_t ordinal, struct catalog_entry *out)
{
    int rv;

    while (!look(c, generation, ordinal, true, out, &rv)) {
    }
    return rv;
}

int catalog_next(struct catalog *c, uint64_t generation, uint64_t ordinal,
                 struct catalog_entry *out)
{
    int rv;

    while (!look(c, generation, ordinal, false, out, &rv)) {
    }
    return rv;
}

/* --- changing ------------------------------------------------------------- */

/* Locked. After a change to `active`. */
static void wake_flusher(struct catalog *c)
{
    if (c->active->n == 1 || c->active->n == FLUSH_AT) {
        pthread_cond_signal(&c->work);
    }
}

/* Locked, waits. Until `active` may take a change of this block. */
static int wait_for_slot(struct catalog *c, const struct block_id *id,
                         unsigned max)
{
    while (c->active->n >= max && catalog_table_find(c->active, id) == NULL) {
        if (c->error != 0) {
            return c->error;
        }
        pthread_cond_signal(&c->work);
        pthread_cond_wait(&c->done, &c->lock);
    }
    return 0;
}

int catalog_put(struct catalog *c, const struct catalog_entry *entry)
{
    bool taken;
    int rv;

    assert(entry->n_copies <= CATALOG_COPIES_MAX);
    pthread_mutex_lock(&c->lock);
    rv = wait_for_slot(c, &entry->id, PUTS_MAX);
    if (rv == 0) {
        taken = catalog_table_put(c->active, entry);
        assert(taken);
        wake_flusher(c);
    }
    pthread_mutex_unlock(&c->lock);
    return rv;
}

int catalog_remove(struct catalog *c, const struct block_id *id)
{
    bool taken;
    int rv;

    pthread_mutex_lock(&c->lock);
    rv = wait_for_slot(c, id, CATALOG_PENDING_MAX);
    if (rv == 0) {
        taken = catalog_table_remove(c->active, id);
        assert(taken);
        wake_flusher(c);
    }
    pthread_mutex_unlock(&c->lock);
    return rv;
}

/* --- a whole generation --------------------------------------------------- */

/* The rows, in as many transactions as it takes; smaller ones when the disk is
 * full, because a transaction needs new pages before it gives back old ones. */
static int remove_rows(struct catalog *c, uint64_t generation)
{
    unsigned max = REMOVE_BATCH, n;
    int rv;

    for (;;) {
        rv = catalog_db_remove_some(c->db, generation, max, &n);
        if (rv == HEDGE_ENOSPC && max > REMOVE_BATCH_MIN) {
            max /= 4;
        } else if (rv != 0 || n < max) {
            return rv;
        }
    }
}

/* Locked, waits. A batch that is being written now cannot be touched; later
 * ones have nothing of the generation. */
static void dropping_begin(struct catalog *c, uint64_t generation)
{
    uint64_t no;

    while (c->n_dropping == DROPPING_MAX) {
        pthread_cond_wait(&c->done, &c->lock);
    }
    c->dropping[c->n_dropping++] = generation;
    catalog_table_forget(c->active, generation);
    no = c->active_no;
    while (c->writing && c->active_no == no) {
        pthread_cond_wait(&c->done, &c->lock);
    }
    if (!c->writing) {
        catalog_table_forget(c->batch, generation);
    }
    c->epoch++;
}

/* Locked. */
static void dropping_end(struct catalog *c, uint64_t generation)
{
    unsigned i = 0;

    while (c->dropping[i] != generation) {
        i++;
        assert(i < c->n_dropping);
    }
    c->dropping[i] = c->dropping[--c->n_dropping];
    c->epoch++;
    pthread_cond_broadcast(&c->done);
}

int catalog_remove_store(struct catalog *c, uint64_t generation)
{
    int rv;

    pthread_mutex_lock(&c->lock);
    dropping_begin(c, generation);
    pthread_mutex_unlock(&c->lock);
    rv = remove_rows(c, generation);
    pthread_mutex_lock(&c->lock);
    dropping_end(c, generation);
    pthread_mutex_unlock(&c->lock);
    return rv;
}

/* --- the flusher ---------------------------------------------------------- */

/* Locked. */
static void swap_tables(struct catalog *c)
{
    struct catalog_table *empty = c->batch;

    assert(empty->n == 0);
    c->batch = c->active;
    c->active = empty;
    c->active_no++;
    c->flush_now = false;
    pthread_cond_broadcast(&c->done);
}

/* Locked, lets go in between. */
static void write_batch(struct catalog *c)
{
    int rv;

    c->writing = true;
    pthread_mutex_unlock(&c->lock);
    rv = catalog_db_apply(c->db, c->batch, false);
    if (rv == HEDGE_ENOSPC && catalog_db_apply(c->db, c->batch, true) == 0) {
        /* The removals are in: there may be pages for the puts now. */
        rv = catalog_db_apply(c->db, c->batch, false);
    }
    pthread_mutex_lock(&c->lock);
    c->writing = false;
    if (rv == 0) {
        catalog_table_clear(c->batch);
        c->epoch++;
        c->flushed_no = c->active_no - 1;
    } else {
        c->failures++;
        if (c->error == 0) {
            log_error("catalog", "changes cannot be written and wait: %s",
                      hedge_strerror(rv));
        }
    }
    c->error = rv;
    pthread_cond_broadcast(&c->done);
}

/* Locked. Sleeps for `ms`, or until woken. */
static void nap(struct catalog *c, uint64_t ms)
{
    uint64_t at = clock_mono_ms() + ms;
    struct timespec until = {.tv_sec = (time_t)(at / 1000),
                             .tv_nsec = (long)(at % 1000) * 1000000};

    pthread_cond_timedwait(&c->work, &c->lock, &until);
}

/* Locked, waits. Let changes gather. */
static void gather(struct catalog *c)
{
    uint64_t until = clock_mono_ms() + FLUSH_AFTER_MS;
    uint64_t now = clock_mono_ms();

    while (c->active->n < FLUSH_AT && !c->flush_now && !c->stop &&
           now < until) {
        nap(c, until - now);
        now = clock_mono_ms();
    }
}

static void *flusher(void *arg)
{
    struct catalog *c = arg;

    pthread_mutex_lock(&c->lock);
    /* At the end nothing is kept: what is pending goes with the rest. */
    while (!c->stop) {
        if (c->error != 0) {
            nap(c, RETRY_MS);
            write_batch(c);
        } else if (c->active->n > 0) {
            gather(c);
            swap_tables(c);
            write_batch(c);
        } else {
            pthread_cond_wait(&c->work, &c->lock);
        }
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

int catalog_flush(struct catalog *c)
{
    uint64_t want, failures;
    int rv = 0;

    pthread_mutex_lock(&c->lock);
    want = c->active->n > 0 ? c->active_no : c->active_no - 1;
    failures = c->failures;
    c->flush_now = c->active->n > 0;
    pthread_cond_signal(&c->work);
    while (rv == 0 && c->flushed_no < want) {
        pthread_cond_wait(&c->done, &c->lock);
        rv = c->failures != failures ? c->error : 0;
    }
    pthread_mutex_unlock(&c->lock);
    return rv;
}

/* --- life ----------------------------------------------------------------- */

static void init(struct catalog *c)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->work, &attr);
    pthread_condattr_destroy(&attr);
    pthread_cond_init(&c->done, NULL);
    c->active_no = 1;
}

int catalog_new(const char *dir, struct catalog **out, struct hedge_error *e)
{
    struct catalog *c = mem_calloc(1, sizeof *c);
    int rv;

    assert(dir != NULL);
    *out = NULL;
    if (c == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the catalog");
    }
    init(c);
    c->active = mem_alloc(sizeof *c->active);
    c->batch = mem_alloc(sizeof *c->batch);
    if (c->active == NULL || c->batch == NULL) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the catalog");
        goto err_free;
    }
    catalog_table_clear(c->active);
    catalog_table_clear(c->batch);
    rv = catalog_db_new(dir, &c->db, e);
    if (rv != 0) {
        goto err_free;
    }
    if (pthread_create(&c->flusher, NULL, flusher, c) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "the catalog's thread did not start");
        goto err_free;
    }
    (void)pthread_setname_np(c->flusher, "catalog");
    c->running = true;
    *out = c;
    return 0;

err_free:
    catalog_free(c);
    assert(rv < 0);
    return rv;
}

void catalog_free(struct catalog *c)
{
    if (c == NULL) {
        return;
    }
    if (c->running) {
        pthread_mutex_lock(&c->lock);
        c->stop = true;
        pthread_cond_signal(&c->work);
        pthread_mutex_unlock(&c->lock);
        pthread_join(c->flusher, NULL);
    }
    catalog_db_free(c->db);
    mem_free(c->active);
    mem_free(c->batch);
    pthread_cond_destroy(&c->done);
    pthread_cond_destroy(&c->work);
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}
