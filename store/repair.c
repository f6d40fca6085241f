/* repair.c - copies of blocks that were lost with their node are made again,
 * elsewhere, while there is room.
 *
 * One thread walks the stores with replicas after sos_repair() has said that a
 * node is gone. A block is read from a copy that is left, checked, and put on
 * another node; then the catalog has the new copy in place of the lost one.
 * What finds no room now is tried again a while later. */
#include "store/sos_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <string.h>

#define RETRY_MS 5000

struct repair {
    struct sos *sos;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool runs, closing, wanted;
    bool put_done; /* Under `lock`: the request in hand has come back. */
};

struct round {
    struct repair *repair;
    unsigned made, missing;
};

static bool is_lost(struct sos *s, const struct catalog_copy *copy)
{
    return copy->where == CATALOG_PEER && s->remote->ops->lost != NULL &&
           s->remote->ops->lost(s->remote, &copy->place);
}

static unsigned count_lost(struct sos *s, const struct catalog_entry *e)
{
    unsigned n = 0;

    for (unsigned i = 0; i < e->n_copies; i++) {
        n += is_lost(s, &e->copies[i]);
    }
    return n;
}

/* Move the lost copies behind the others, which are read first then. */
static void lost_last(struct sos *s, struct catalog_entry *e)
{
    struct catalog_copy sorted[TIER_COPIES_MAX];
    unsigned n = 0;

    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < e->n_copies; i++) {
            if (is_lost(s, &e->copies[i]) == (pass == 1)) {
                sorted[n++] = e->copies[i];
            }
        }
    }
    memcpy(e->copies, sorted, n * sizeof sorted[0]);
}

static void on_put(struct tier_req *req)
{
    struct repair *r = req->ctx;

    pthread_mutex_lock(&r->lock);
    r->put_done = true;
    pthread_cond_broadcast(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

/* Put one more copy on a node that has none. */
static int put_copy(struct repair *r, struct sos_store *store,
                    const struct catalog_entry *e, void *block,
                    struct catalog_copy *out)
{
    struct tier_req req = {.id = e->id,
                           .data = block,
                           .len = entry_len(e),
                           .store = &store->told,
                           .spread = true,
                           .cb = on_put,
                           .ctx = r};
    int rv;

    for (unsigned i = 0; i < e->n_copies; i++) {
        if (e->copies[i].where == CATALOG_PEER) {
            req.avoid[req.n_avoid++] = e->copies[i].place.unit;
        }
    }
    r->put_done = false;
    rv = tier_put(r->sos->remote, &req);
    if (rv != 0) {
        return rv;
    }
    pthread_mutex_lock(&r->lock);
    while (!r->put_done) {
        pthread_cond_wait(&r->wake, &r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    tier_count(r->sos->remote, &req, true);
    memset(out, 0, sizeof *out);
    out->where = CATALOG_PEER;
    out->place = req.place;
    return req.status;
}

/* The catalog learns of the new copy, unless the block has gone meanwhile. */
static void enter_copy(struct sos_store *store, const struct block_id *id,
                       size_t len, const struct catalog_copy *copy)
{
    struct sos *s = store->sos;
    struct catalog_entry now;
    struct catalog_copy lost;
    bool entered = false;

    pthread_mutex_lock(&store->lock);
    if (!store->dead && catalog_get(s->catalog, id, &now) == 0) {
        for (unsigned i = 0; i < now.n_copies && !entered; i++) {
            if (is_lost(s, &now.copies[i])) {
                lost = now.copies[i];
                now.copies[i] = *copy;
                entered = catalog_put(s->catalog, &now) == 0;
                if (entered) {
                    use_add(s, &store->uses, &now, &lost, -1);
                    use_add(s, &store->uses, &now, copy, 1);
                }
            }
        }
    }
    while (entered && fetch_of(store, id) != NULL) {
        pthread_cond_wait(&store->changed, &store->lock); /* It is read. */
    }
    if (entered) {
        /* Should its node come back with it after all. */
        copy_drop(s, &now, &lost);
    } else {
        tier_drop(s->remote, id, &copy->place, len);
    }
    pthread_mutex_unlock(&store->lock);
}

/* Make one more copy of the block; *e becomes what the catalog says of it. */
static void repair_block(struct round *round, struct sos_store *store,
                         const struct block_id *id, struct catalog_entry *e)
{
    struct repair *r = round->repair;
    struct fetch f = {.store = store};
    struct hedge_error error = {0};
    struct catalog_copy copy;
    bool there, open = false;

    list_init(&f.link);
    pthread_mutex_lock(&store->lock);
    /* It may have been discarded or moved since it was looked at, and its
     * memory be another block's. While its passage runs, its copies are not
     * yet decided. */
    there = !store->dead && catalog_get(r->sos->catalog, id, e) == 0 &&
            count_lost(r->sos, e) > 0;
    if (there) {
        lost_last(r->sos, e);
        open = !passages_owns(r->sos, id) && fetch_open(&f, e, ARENA_SERVE);
    }
    pthread_mutex_unlock(&store->lock);
    if (!there) {
        return;
    }
    if (!open) {
        round->missing++;
        return;
    }
    if (fetch_finish(&f, &error) == 0 &&
        put_copy(r, store, e, f.block, &copy) == 0) {
        enter_copy(store, id, entry_len(e), &copy);
        round->made++;
    } else {
        round->missing++;
    }
    pthread_mutex_lock(&store->lock);
    fetch_close(&f);
    pthread_mutex_unlock(&store->lock);
}

static bool is_closing(struct repair *r)
{
    bool closing;

    pthread_mutex_lock(&r->lock);
    closing = r->closing;
    pthread_mutex_unlock(&r->lock);
    return closing;
}

static void repair_store(void *ctx, struct sos_store *store)
{
    struct round *round = ctx;
    struct sos *s = store->sos;
    struct catalog_entry e;
    uint64_t at = 0;

    if (store->options.replicas < 2) {
        return;
    }
    while (!is_closing(round->repair) && !store->dead &&
           catalog_next(s->catalog, store->generation, at, &e) == 0) {
        struct block_id id = e.id;
        unsigned n = count_lost(s, &e);

        at = e.ordinal + 1;
        for (; n > 0 && n < e.n_copies; n--) {
            repair_block(round, store, &id, &e);
        }
    }
}

static void run_round(struct repair *r, struct round *round)
{
    unsigned missing = round->missing;

    *round = (struct round){.repair = r};
    round->missing += sos_each(r->sos, repair_store, round) != 0;
    if (round->made > 0 || round->missing != missing) {
        log_line(round->missing > 0 ? LOG_WARN : LOG_INFO, "sos",
                 "%u lost copies made again, %u could not be", round->made,
                 round->missing);
    }
}

static void *repair_main(void *arg)
{
    struct repair *r = arg;
    struct round round = {0};

    pthread_mutex_lock(&r->lock);
    while (!r->closing) {
        uint64_t until = clock_mono_ns() + (uint64_t)RETRY_MS * 1000000u;
        struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                              .tv_nsec = (long)(until % 1000000000u)};

        if (r->wanted) {
            r->wanted = false;
            pthread_mutex_unlock(&r->lock);
            run_round(r, &round);
            pthread_mutex_lock(&r->lock);
        } else if (round.missing > 0) {
            r->wanted = pthread_cond_timedwait(&r->wake, &r->lock, &ts) != 0;
        } else {
            pthread_cond_wait(&r->wake, &r->lock);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

int repair_new(struct sos *s, struct repair **out)
{
    struct repair *r = mem_calloc(1, sizeof *r);
    pthread_condattr_t attr;

    *out = r;
    if (r == NULL) {
        return HEDGE_ENOMEM;
    }
    r->sos = s;
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &attr);
    pthread_condattr_destroy(&attr);
    r->runs = pthread_create(&r->thread, NULL, repair_main, r) == 0;
    if (r->runs) {
        (void)pthread_setname_np(r->thread, "hedge-repair");
    }
    return r->runs ? 0 : HEDGE_ENOMEM;
}

void repair_free(struct repair *r)
{
    if (r == NULL) {
        return;
    }
    pthread_mutex_lock(&r->lock);
    r->closing = true;
    pthread_cond_broadcast(&r->wake);
    pthread_mutex_unlock(&r->lock);
    if (r->runs) {
        pthread_join(r->thread, NULL);
    }
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->lock);
    mem_free(r);
}

void sos_repair(struct sos *s)
{
    pthread_mutex_lock(&s->repair->lock);
    s->repair->wanted = true;
    pthread_cond_broadcast(&s->repair->wake);
    pthread_mutex_unlock(&s->repair->lock);
}
