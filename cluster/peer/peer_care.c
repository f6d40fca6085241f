/* What is owed to a peer that keeps blocks of ours: it is told which ones it
 * may drop, and that we are still alive. Each such peer has a thread for it, so
 * that one that does not answer keeps no other waiting. */
#include "cluster/peer/peer_internal.h"

#include "store/base/log.h"
#include "store/base/mem.h"
#include "proto/hedge.pb-c.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define CALL_MS 1000
#define FAREWELL_MS 500
#define BACKOFF_MS 100
#define BACKOFF_MAX_MS 2000
#define BACKOFF_LOST_MAX_MS 60000
#define RUN_MAX 4096
/* New drops join one of the last runs: writers take turns. */
#define RUNS_LOOKED_AT 16

#define DROP_PATH "/hedge.v1.Peer/Drop"
#define RENEW_PATH "/hedge.v1.Peer/Renew"

/* --- accounts ------------------------------------------------------------- */

uint64_t peer_bytes(const struct peer *p)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < p->n_holdings; i++) {
        sum += p->holdings[i].bytes;
    }
    return sum;
}

static struct holding *holding_find(struct peer *p, uint64_t generation)
{
    for (unsigned i = 0; i < p->n_holdings; i++) {
        if (p->holdings[i].generation == generation) {
            return &p->holdings[i];
        }
    }
    return NULL;
}

static struct holding *holding_make(struct peer *p, uint64_t generation)
{
    struct holding *h;

    if (p->n_holdings == p->holdings_cap) {
        unsigned cap = p->holdings_cap == 0 ? 8 : p->holdings_cap * 2;
        struct holding *more = mem_realloc(p->holdings, cap * sizeof *more);

        if (more == NULL) {
            return NULL;
        }
        p->holdings = more;
        p->holdings_cap = cap;
    }
    h = &p->holdings[p->n_holdings++];
    *h = (struct holding){.generation = generation};
    return h;
}

static void holding_end(struct peer *p, struct holding *h)
{
    *h = p->holdings[--p->n_holdings];
}

/* --- what is to be done ----------------------------------------------------
 */

static void *care_main(void *arg);

static void care_start(struct peer *p)
{
    struct peer_tier *t = p->tier;

    if (!t->closing && !p->gone &&
        peer_thread_start(t, &p->care, care_main, p, "hedge-peer-care") != 0) {
        log_warn("peer", "no thread to care for blocks on %s", p->id);
    }
}

void care_wake(struct peer *p)
{
    pthread_cond_signal(&p->care_wake);
}

static void care_needed(struct peer *p)
{
    care_start(p);
    care_wake(p);
}

void care_stored(struct peer *p, uint64_t generation, uint64_t bytes)
{
    struct holding *h = holding_find(p, generation);

    if (h == NULL) {
        if (p->n_holdings == 0) {
            p->renew_at_ms = peer_now_ms() + p->tier->lease_ms / 3;
        }
        h = holding_make(p, generation);
        care_needed(p);
    }
    if (h == NULL) {
        p->untold = true;
        return;
    }
    h->bytes += bytes;
    h->blocks++;
}

static struct drop_run *run_at(struct peer *p, unsigned i)
{
    return &p->drops[(p->first_drop + i) % PEER_DROPS_MAX];
}

/* Make it part of a run there is. */
static bool run_join(struct peer *p, const struct block_id *id)
{
    unsigned oldest =
        p->n_drops > RUNS_LOOKED_AT ? p->n_drops - RUNS_LOOKED_AT : 0;

    for (unsigned i = p->n_drops; i > oldest; i--) {
        struct drop_run *r = run_at(p, i - 1);

        if (r->generation == id->generation && r->writer == id->writer &&
            r->sequence + r->count == id->sequence && r->count < RUN_MAX) {
            r->count++;
            return true;
        }
    }
    return false;
}

static bool run_add(struct peer *p, const struct drop_run *run, bool front)
{
    if (p->drops == NULL) {
        p->drops = mem_calloc(PEER_DROPS_MAX, sizeof *p->drops);
    }
    if (p->drops == NULL || p->n_drops == PEER_DROPS_MAX) {
        return false;
    }
    if (front) {
        p->first_drop = (p->first_drop + PEER_DROPS_MAX - 1) % PEER_DROPS_MAX;
    }
    p->n_drops++;
    *run_at(p, front ? 0 : p->n_drops - 1) = *run;
    return true;
}

/* Too much waits to be told: the blocks stay there until their store, or this
 * node, ends. */
static void run_lost(struct peer *p)
{
    if (!p->untold) {
        log_warn("peer",
                 "%s does not take notice of drops; some blocks stay "
                 "there until their store ends",
                 p->id);
    }
    p->untold = true;
}

void care_drop(struct peer *p, const struct block_id *id, uint64_t bytes)
{
    struct holding *h = holding_find(p, id->generation);
    struct drop_run run = {.generation = id->generation,
                           .sequence = id->sequence,
                           .writer = id->writer,
                           .count = 1};

    if (p->gone) {
        return;
    }
    if (h != NULL) {
        h->bytes -= bytes < h->bytes ? bytes : h->bytes;
        if (--h->blocks == 0) {
            holding_end(p, h);
        }
    }
    if (!run_join(p, id) && !run_add(p, &run, false)) {
        run_lost(p);
    }
    care_needed(p);
}

/* Drops of single blocks of a store that is dropped whole. */
static void runs_forget(struct peer *p, uint64_t generation)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < p->n_drops; i++) {
        struct drop_run r = *run_at(p, i);

        if (r.generation != generation) {
            *run_at(p, kept++) = r;
        }
    }
    p->n_drops = kept;
}

void care_drop_store(struct peer *p, uint64_t generation)
{
    struct holding *h = holding_find(p, generation);

    if (p->gone || (h == NULL && !p->untold)) {
        return;
    }
    if (h != NULL) {
        holding_end(p, h);
    }
    runs_forget(p, generation);
    if (p->n_dead_stores == p->dead_stores_cap) {
        unsigned cap = p->dead_stores_cap == 0 ? 8 : p->dead_stores_cap * 2;
        uint64_t *more = mem_realloc(p->dead_stores, cap * sizeof *more);

        if (more == NULL) {
            log_error("peer", "no memory to drop a store on %s", p->id);
            return;
        }
        p->dead_stores = more;
        p->dead_stores_cap = cap;
    }
    p->dead_stores[p->n_dead_stores++] = generation;
    care_needed(p);
}

void care_orphan(struct peer *p, const struct block_id *id, uint64_t fence)
{
    if (p->gone) {
        return;
    }
    assert(p->n_orphans < PEER_WINDOW && fence >= p->fence);
    p->orphans[p->n_orphans++] = *id;
    p->fence = fence;
    care_needed(p);
}

/* --- calls -----------------------------------------------------------------
 */

struct care {
    struct peer *p;
    struct rpc_channel *channel; /* Made when it is needed. */
};

/* Lock held, let go during the call. */
static int call(struct care *c, const char *path, const void *data, size_t len,
                uint64_t timeout_ms)
{
    struct peer *p = c->p;
    struct peer_tier *t = p->tier;
    struct hedge_error e = {.code = 0};
    struct rpc_msg reply;
    char target[PEER_ID_MAX];
    int rv = 0;

    (void)snprintf(target, sizeof target, "%s", p->target);
    pthread_mutex_unlock(&t->lock);
    if (c->channel == NULL) {
        rv = rpc_channel_new(target, &c->channel);
    }
    if (rv == 0) {
        rv = rpc_call(c->channel, path, data, len, timeout_ms, &reply, &e);
    }
    if (rv == 0) {
        rpc_msg_release(&reply);
    } else {
        log_debug("peer", "%s to %s: %s", path, p->id, e.text);
        /* The node may have moved. */
        rpc_channel_free(c->channel);
        c->channel = NULL;
    }
    pthread_mutex_lock(&t->lock);
    if (rv == HEDGE_ELOST) {
        peer_gone(p);
    }
    return rv;
}

static int call_drop(struct care *c, Hedge__V1__DropRequest *m,
                     uint64_t timeout_ms)
{
    Hedge__V1__OwnerRef owner = HEDGE__V1__OWNER_REF__INIT;
    unsigned char buf[PEER_HEAD_MAX];

    owner.id = c->p->tier->self_id;
    owner.incarnation = c->p->tier->incarnation;
    m->owner = &owner;
    m->fence = c->p->fence;
    m->peer_incarnation = c->p->incarnation;
    assert(hedge__v1__drop_request__get_packed_size(m) <= sizeof buf);
    return call(c, DROP_PATH, buf, hedge__v1__drop_request__pack(m, buf),
                timeout_ms);
}

static int drop_run(struct care *c, const struct drop_run *r)
{
    Hedge__V1__DropRequest m = HEDGE__V1__DROP_REQUEST__INIT;

    m.generation = r->generation;
    m.one_block = true;
    m.writer = r->writer;
    m.sequence = r->sequence;
    m.count = r->count;
    return call_drop(c, &m, CALL_MS);
}

static int do_orphans(struct care *c)
{
    struct peer *p = c->p;

    while (p->n_orphans > 0) {
        const struct block_id *id = &p->orphans[p->n_orphans - 1];
        struct drop_run r = {.generation = id->generation,
                             .sequence = id->sequence,
                             .writer = id->writer,
                             .count = 1};
        int rv = drop_run(c, &r);

        if (rv != 0 || p->gone) {
            return rv;
        }
        p->n_orphans--;
    }
    put_retry_waiting(p->tier);
    return 0;
}

/* There is room there again, perhaps. */
static void room_made(struct peer *p)
{
    p->full = false;
    memset(p->refusals, 0, sizeof p->refusals);
}

static int do_dead_store(struct care *c)
{
    Hedge__V1__DropRequest m = HEDGE__V1__DROP_REQUEST__INIT;
    struct peer *p = c->p;
    unsigned last = p->n_dead_stores - 1;
    int rv;

    /* Others may be added behind it meanwhile. */
    m.generation = p->dead_stores[last];
    rv = call_drop(c, &m, CALL_MS);
    if (rv == 0 && last < p->n_dead_stores) {
        p->dead_stores[last] = p->dead_stores[--p->n_dead_stores];
        room_made(p);
    }
    return rv;
}

static int do_drops(struct care *c)
{
    struct peer *p = c->p;
    struct drop_run r = *run_at(p, 0);
    int rv;

    p->first_drop = (p->first_drop + 1) % PEER_DROPS_MAX;
    p->n_drops--;
    rv = drop_run(c, &r);
    if (rv == 0) {
        room_made(p);
    } else if (!p->gone && !run_add(p, &r, true)) {
        run_lost(p);
    }
    return rv;
}

static int do_renew(struct care *c)
{
    Hedge__V1__RenewRequest m = HEDGE__V1__RENEW_REQUEST__INIT;
    Hedge__V1__OwnerRef owner = HEDGE__V1__OWNER_REF__INIT;
    unsigned char buf[PEER_HEAD_MAX];
    int rv;

    owner.id = c->p->tier->self_id;
    owner.incarnation = c->p->tier->incarnation;
    m.owner = &owner;
    m.peer_incarnation = c->p->incarnation;
    rv = call(c, RENEW_PATH, buf, hedge__v1__renew_request__pack(&m, buf),
              CALL_MS);
    if (rv == 0) {
        c->p->renew_at_ms = peer_now_ms() + c->p->tier->lease_ms / 3;
    }
    return rv;
}

/* We end: nothing of ours is of use to anybody. */
static void farewell(struct care *c)
{
    Hedge__V1__DropRequest m = HEDGE__V1__DROP_REQUEST__INIT;
    struct peer *p = c->p;

    if (p->gone || (p->n_holdings == 0 && p->n_orphans == 0 &&
                    p->n_drops == 0 && p->n_dead_stores == 0 && !p->untold)) {
        return;
    }
    p->fence = p->put.session;
    if (call_drop(c, &m, FAREWELL_MS) != 0) {
        log_info("peer", "%s keeps our blocks until their lease ends", p->id);
    }
}

/* --- the thread ------------------------------------------------------------
 */

static bool renews(const struct peer *p)
{
    return p->n_holdings > 0 || p->untold;
}

/* Lock held, let go in between. Something was due and is done: 0, or why it
 * was not. HEDGE_EAGAIN: nothing is due. */
static int do_next(struct care *c)
{
    struct peer *p = c->p;

    if (renews(p) && peer_now_ms() >= p->renew_at_ms) {
        return do_renew(c);
    }
    if (p->n_orphans > 0) {
        return do_orphans(c);
    }
    if (p->n_dead_stores > 0) {
        return do_dead_store(c);
    }
    if (p->n_drops > 0) {
        return do_drops(c);
    }
    return HEDGE_EAGAIN;
}

static void care_failed(struct peer *p)
{
    uint64_t max = p->listed ? BACKOFF_MAX_MS : BACKOFF_LOST_MAX_MS;
    uint64_t wait = BACKOFF_MS;

    for (unsigned i = 0; i < p->care_failures && wait < max; i++) {
        wait *= 2;
    }
    p->care_failures++;
    p->care_after_ms = peer_now_ms() + wait;
}

/* Lock held, let go in between. */
static void care_wait(struct care *c)
{
    struct peer *p = c->p;
    struct peer_tier *t = p->tier;

    if (peer_now_ms() < p->care_after_ms) {
        peer_cond_wait_until(&p->care_wake, &t->lock, p->care_after_ms);
    } else if (renews(p)) {
        peer_cond_wait_until(&p->care_wake, &t->lock, p->renew_at_ms);
    } else if (c->channel != NULL) {
        /* Nothing of ours is there: no connection to keep. */
        pthread_mutex_unlock(&t->lock);
        rpc_channel_free(c->channel);
        c->channel = NULL;
        pthread_mutex_lock(&t->lock);
    } else {
        pthread_cond_wait(&p->care_wake, &t->lock);
    }
}

static void *care_main(void *arg)
{
    struct peer *p = arg;
    struct peer_tier *t = p->tier;
    struct care c = {.p = p};

    pthread_mutex_lock(&t->lock);
    while (!t->closing && !p->gone) {
        int rv = peer_now_ms() < p->care_after_ms ? HEDGE_EAGAIN : do_next(&c);

        if (rv == 0) {
            p->care_failures = 0;
        } else if (rv != HEDGE_EAGAIN) {
            care_failed(p);
        } else if (!t->closing && !p->gone) {
            care_wait(&c);
        }
    }
    farewell(&c);
    pthread_mutex_unlock(&t->lock);
    rpc_channel_free(c.channel);
    pthread_mutex_lock(&t->lock);
    peer_thread_end(t, &p->care);
    pthread_mutex_unlock(&t->lock);
    return NULL;
}
