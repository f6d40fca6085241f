#include "cluster/peer/peer_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#if defined(HEDGE_TSAN) || defined(__SANITIZE_ADDRESS__)
#define STACK ((size_t)4 << 20)
#else
#define STACK ((size_t)256 << 10)
#endif

static const struct tier_ops peer_tier_ops;

struct peer_tier *peer_tier_of(struct tier *t)
{
    assert(t->ops == &peer_tier_ops);
    return container_of(t, struct peer_tier, base);
}

/* --- time ----------------------------------------------------------------- */

uint64_t peer_now_ms(void)
{
    return clock_mono_ms();
}

void peer_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

void peer_cond_wait_until(pthread_cond_t *c, pthread_mutex_t *lock,
                          uint64_t until_ms)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ms / 1000),
                          .tv_nsec = (long)(until_ms % 1000) * 1000000};

    (void)pthread_cond_timedwait(c, lock, &ts);
}

/* --- threads -------------------------------------------------------------- */

static int thread_create(pthread_t *out, void *(*fn)(void *), void *arg,
                         const char *name)
{
    pthread_attr_t attr;
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_attr_init(&attr);
    (void)pthread_attr_setstacksize(&attr, STACK);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(out, &attr, fn, arg);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (rc != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(*out, name);
    return 0;
}

/* Lock held. A thread that has ended waits for nothing any more. */
static void thread_reap(struct peer_tier *t, struct peer_thread *th)
{
    if (th->made && th->ended) {
        pthread_join(th->thread, NULL);
        th->made = th->ended = false;
        t->n_threads--;
    }
}

int peer_thread_start(struct peer_tier *t, struct peer_thread *th,
                      void *(*fn)(void *), void *arg, const char *name)
{
    int rv;

    thread_reap(t, th);
    if (th->made) {
        return 0;
    }
    rv = thread_create(&th->thread, fn, arg, name);
    if (rv == 0) {
        th->made = true;
        t->n_threads++;
    }
    return rv;
}

void peer_thread_end(struct peer_tier *t, struct peer_thread *th)
{
    assert(th->made && !th->ended);
    th->ended = true;
    pthread_cond_signal(&t->wake);
}

void peer_tier_kick(struct peer_tier *t)
{
    if (t->asleep) {
        t->asleep = false;
        pthread_cond_signal(&t->wake);
    }
}

/* --- ops ------------------------------------------------------------------ */

int op_new(struct peer_tier *t, struct tier_req *req, struct op **out)
{
    struct op *op = mem_calloc(1, sizeof *op);

    *out = op;
    if (op == NULL) {
        return error_set(&req->error, HEDGE_ENOMEM, "no memory for a request");
    }
    op->magic = OP_MAGIC;
    op->tier = t;
    op->req = req;
    list_init(&op->link);
    req->impl = op;
    error_clear(&req->error);
    return 0;
}

bool op_settle(struct op *op, int status)
{
    assert(op->magic == OP_MAGIC && !op->settled);
    op->settled = true;
    op->req->status = status;
    return op->sends_out == 0;
}

/* Lock held. */
static void op_hand_over(struct op *op)
{
    list_push(&op->tier->finished, &op->link);
    op->tier->asleep = false;
    pthread_cond_signal(&op->tier->wake);
}

void op_settle_later(struct op *op, int status)
{
    if (op_settle(op, status)) {
        op_hand_over(op);
    }
}

void op_complete(struct op *op)
{
    struct peer_tier *t = op->tier;
    struct tier_req *req = op->req;

    assert(op->magic == OP_MAGIC && op->settled && op->sends_out == 0);
    op->magic = 0;
    mem_free(op);
    req->impl = NULL;
    req->cb(req);
    pthread_mutex_lock(&t->lock);
    assert(t->n_ops > 0);
    t->n_ops--;
    if (t->closing && t->n_ops == 0) {
        pthread_cond_signal(&t->wake);
    }
    pthread_mutex_unlock(&t->lock);
}

void op_released(void *arg)
{
    struct op *op = arg;
    struct peer_tier *t;

    assert(op->magic == OP_MAGIC);
    t = op->tier;
    pthread_mutex_lock(&t->lock);
    assert(op->sends_out > 0); /* Several: of sessions that broke, too. */
    op->sends_out--;
    if (op->settled && op->sends_out == 0) {
        op_hand_over(op);
    }
    pthread_mutex_unlock(&t->lock);
}

/* --- the tier's thread: what is left to complete, and stalls ---------------
 */

/* Lock held, let go in between. */
static void run_finished(struct peer_tier *t)
{
    struct list ready, *l;

    list_init(&ready);
    list_splice(&ready, &t->finished);
    if (list_empty(&ready)) {
        return;
    }
    pthread_mutex_unlock(&t->lock);
    while ((l = list_pop(&ready)) != NULL) {
        op_complete(container_of(l, struct op, link));
    }
    pthread_mutex_lock(&t->lock);
}

/* Lock held, let go in between. */
static void tick(struct peer_tier *t)
{
    uint64_t now = peer_now_ms();

    for (uint32_t i = 0; i < t->n_peers; i++) {
        lane_check(&t->peers[i]->put, now);
        lane_check(&t->peers[i]->get, now);
    }
    put_retry_waiting(t);
}

/* Lock held. */
static void reap(struct peer_tier *t)
{
    for (uint32_t i = 0; i < t->n_peers && t->n_threads > 0; i++) {
        thread_reap(t, &t->peers[i]->put.thread);
        thread_reap(t, &t->peers[i]->get.thread);
        thread_reap(t, &t->peers[i]->care);
    }
}

static void *tier_main(void *arg)
{
    struct peer_tier *t = arg;
    uint64_t next_tick = 0;

    pthread_mutex_lock(&t->lock);
    for (;;) {
        run_finished(t);
        reap(t);
        if (t->closing && t->n_ops == 0 && t->n_threads == 0) {
            break;
        }
        if (peer_now_ms() >= next_tick) {
            tick(t);
            next_tick = peer_now_ms() + PEER_TICK_MS;
        }
        if (!list_empty(&t->finished)) {
            continue;
        }
        if (t->n_flight > 0 || !list_empty(&t->waiting) || t->closing) {
            peer_cond_wait_until(&t->wake, &t->lock, next_tick);
        } else {
            t->asleep = true;
            pthread_cond_wait(&t->wake, &t->lock);
            t->asleep = false;
        }
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* --- peers ---------------------------------------------------------------- */

static void peer_free(struct peer *p)
{
    lane_release(&p->put);
    lane_release(&p->get);
    pthread_cond_destroy(&p->care_wake);
    mem_free(p->holdings);
    mem_free(p->drops);
    mem_free(p->dead_stores);
    mem_free(p->target);
    mem_free(p->id);
    mem_free(p);
}

static struct peer *peer_new(struct peer_tier *t, const struct peer_info *info)
{
    struct peer *p = mem_calloc(1, sizeof *p);

    if (p == NULL) {
        return NULL;
    }
    p->tier = t;
    p->incarnation = info->incarnation;
    lane_init(&p->put, p, &put_lane);
    lane_init(&p->get, p, &get_lane);
    peer_cond_init(&p->care_wake);
    p->id = mem_strdup(info->id);
    p->target = mem_strdup(info->target);
    if (p->id == NULL || p->target == NULL) {
        peer_free(p);
        return NULL;
    }
    return p;
}

/* Lock held. */
static struct peer *peer_add(struct peer_tier *t, const struct peer_info *info)
{
    struct peer *p;

    if (t->n_peers == t->peers_cap) {
        uint32_t cap = t->peers_cap == 0 ? 8 : t->peers_cap * 2;
        struct peer **more = mem_realloc(t->peers, cap * sizeof(struct peer *));

        if (more == NULL) {
            return NULL;
        }
        t->peers = more;
        t->peers_cap = cap;
    }
    p = peer_new(t, info);
    if (p != NULL) {
        p->unit = t->n_peers;
        t->peers[t->n_peers++] = p;
    }
    return p;
}

void peer_gone(struct peer *p)
{
    if (p->gone) {
        return;
    }
    log_info("peer", "%s (incarnation %llu) is gone, with %llu bytes of ours",
             p->id, (unsigned long long)p->incarnation,
             (unsigned long long)peer_bytes(p));
    p->gone = true;
    p->n_orphans = p->n_drops = p->n_dead_stores = p->n_holdings = 0;
    pthread_cond_signal(&p->put.wake);
    pthread_cond_signal(&p->get.wake);
    care_wake(p);
    peer_tier_kick(p->tier);
}

bool peer_is_lost(const struct peer *p)
{
    return p->gone || !p->listed;
}

/* Lock held. The peer that this member is, if it is known; a newer life of it
 * ends the older ones. */
static struct peer *peer_find(struct peer_tier *t, const struct peer_info *info,
                              bool *outdated)
{
    struct peer *found = NULL;

    *outdated = false;
    for (uint32_t i = 0; i < t->n_peers; i++) {
        struct peer *p = t->peers[i];

        if (strcmp(p->id, info->id) != 0) {
            continue;
        }
        if (p->incarnation == info->incarnation) {
            found = p;
        } else if (p->incarnation > info->incarnation) {
            *outdated = true;
        } else {
            peer_gone(p);
        }
    }
    return found;
}

/* Lock held. */
static void peer_refresh(struct peer *p, const struct peer_info *info)
{
    if (!p->was_listed) {
        /* It is back: no reason to wait any longer. */
        p->busy_until_ms = p->care_after_ms = 0;
        lane_hope(&p->put);
        lane_hope(&p->get);
        care_wake(p);
    }
    p->listed = true;
    p->mem_free = info->mem_free;
    p->disk_free = info->disk_free;
    p->full = info->mem_free < p->tier->block_size &&
              info->disk_free < p->tier->block_size;
    if (strcmp(p->target, info->target) != 0) {
        char *target = mem_strdup(info->target);

        if (target != NULL) {
            mem_free(p->target);
            p->target = target;
        }
    }
}

void peer_tier_update(struct tier *base, const struct peer_info *infos,
                      size_t n)
{
    struct peer_tier *t = peer_tier_of(base);

    pthread_mutex_lock(&t->lock);
    for (uint32_t i = 0; i < t->n_peers; i++) {
        t->peers[i]->was_listed = t->peers[i]->listed;
        t->peers[i]->listed = false;
    }
    for (size_t i = 0; i < n && !t->closing; i++) {
        bool outdated;
        struct peer *p = peer_find(t, &infos[i], &outdated);

        if (p == NULL && !outdated) {
            p = peer_add(t, &infos[i]);
        }
        if (p != NULL && !p->gone) {
            peer_refresh(p, &infos[i]);
        }
    }
    put_retry_waiting(t);
    pthread_mutex_unlock(&t->lock);
}

/* --- the interface -------------------------------------------------------- */

static int put(struct tier *base, struct tier_req *req)
{
    struct peer_tier *t = peer_tier_of(base);
    struct op *op;
    int rv = op_new(t, req, &op);

    if (rv != 0) {
        return rv;
    }
    assert(req->len > 0 && req->store != NULL && req->cb != NULL);
    pthread_mutex_lock(&t->lock);
    t->n_ops++;
    put_place(op);
    pthread_mutex_unlock(&t->lock);
    return 0;
}

static int get(struct tier *base, struct tier_req *req)
{
    struct peer_tier *t = peer_tier_of(base);
    struct op *op;
    int rv = op_new(t, req, &op);

    if (rv != 0) {
        return rv;
    }
    pthread_mutex_lock(&t->lock);
    assert(req->place.unit < t->n_peers);
    t->n_ops++;
    op->since_ms = peer_now_ms();
    get_place(op);
    pthread_mutex_unlock(&t->lock);
    return 0;
}

static void drop(struct tier *base, const struct block_id *id,
                 const struct tier_place *place, size_t len)
{
    struct peer_tier *t = peer_tier_of(base);

    pthread_mutex_lock(&t->lock);
    assert(place->unit < t->n_peers);
    care_drop(t->peers[place->unit], id, len);
    pthread_mutex_unlock(&t->lock);
}

static void drop_store(struct tier *base, uint64_t generation)
{
    struct peer_tier *t = peer_tier_of(base);

    pthread_mutex_lock(&t->lock);
    for (uint32_t i = 0; i < t->n_peers; i++) {
        care_drop_store(t->peers[i], generation);
    }
    pthread_mutex_unlock(&t->lock);
}

static void use(struct tier *base, struct tier_use *out)
{
    struct peer_tier *t = peer_tier_of(base);

    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&t->lock);
    for (uint32_t i = 0; i < t->n_peers; i++) {
        const struct peer *p = t->peers[i];

        out->used += peer_bytes(p);
        if (!peer_is_lost(p)) {
            out->free += p->mem_free + p->disk_free;
        }
    }
    pthread_mutex_unlock(&t->lock);
    out->limit = out->used + out->free;
}

static void describe(struct tier *base, const struct tier_place *place,
                     const char **node, const char **kind)
{
    struct peer_tier *t = peer_tier_of(base);

    pthread_mutex_lock(&t->lock);
    assert(place->unit < t->n_peers);
    *node = t->peers[place->unit]->id;
    pthread_mutex_unlock(&t->lock);
    *kind = place->kind == 0 ? "memory" : "disk";
}

/* Everybody wakes up, sees `closing` and ends. */
static void close_all(struct peer_tier *t)
{
    struct list *l;

    pthread_mutex_lock(&t->lock);
    t->closing = true;
    while ((l = list_pop(&t->waiting)) != NULL) {
        op_settle_later(container_of(l, struct op, link), HEDGE_ECANCELED);
    }
    for (uint32_t i = 0; i < t->n_peers; i++) {
        lane_break(&t->peers[i]->put, HEDGE_ECANCELED, "this node stops");
        lane_break(&t->peers[i]->get, HEDGE_ECANCELED, "this node stops");
        pthread_cond_signal(&t->peers[i]->put.wake);
        pthread_cond_signal(&t->peers[i]->get.wake);
        care_wake(t->peers[i]);
    }
    t->asleep = false;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->lock);
}

static void release(struct peer_tier *t)
{
    for (uint32_t i = 0; i < t->n_peers; i++) {
        peer_free(t->peers[i]);
    }
    pthread_cond_destroy(&t->unpinned);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    mem_free(t->peers);
    mem_free(t->self_id);
    mem_free(t);
    rpc_shutdown();
}

static void tier_end(struct tier *base)
{
    struct peer_tier *t = peer_tier_of(base);

    close_all(t);
    pthread_join(t->thread, NULL);
    assert(t->n_ops == 0 && t->n_threads == 0);
    release(t);
}

static bool lost(struct tier *base, const struct tier_place *place)
{
    struct peer_tier *t = peer_tier_of(base);
    bool is_lost;

    pthread_mutex_lock(&t->lock);
    assert(place->unit < t->n_peers);
    is_lost = peer_is_lost(t->peers[place->unit]);
    pthread_mutex_unlock(&t->lock);
    return is_lost;
}

static unsigned nodes(struct tier *base)
{
    struct peer_tier *t = peer_tier_of(base);
    unsigned n = 0;

    pthread_mutex_lock(&t->lock);
    for (uint32_t i = 0; i < t->n_peers; i++) {
        n += !peer_is_lost(t->peers[i]);
    }
    pthread_mutex_unlock(&t->lock);
    return n;
}

static void hurry(struct tier *base)
{
    struct peer_tier *t = peer_tier_of(base);

    pthread_mutex_lock(&t->lock);
    t->hurry = true;
    put_retry_waiting(t);
    pthread_mutex_unlock(&t->lock);
}

static const struct tier_ops peer_tier_ops = {
    .name = "peers",
    .put = put,
    .get = get,
    .drop = drop,
    .drop_store = drop_store,
    .use = use,
    .describe = describe,
    .lost = lost,
    .nodes = nodes,
    .hurry = hurry,
    .free = tier_end,
};

int peer_tier_new(const struct peer_tier_options *o, struct tier **out)
{
    struct peer_tier *t;
    int rv;

    *out = NULL;
    assert(o->block_size > 0 && o->block_lease_ms > 0);
    assert(o->self_id != NULL && strlen(o->self_id) < PEER_ID_MAX);
    t = mem_calloc(1, sizeof *t);
    if (t == NULL) {
        return HEDGE_ENOMEM;
    }
    rv = rpc_init();
    if (rv != 0) {
        mem_free(t);
        return rv;
    }
    t->base.ops = &peer_tier_ops;
    t->incarnation = o->incarnation;
    t->block_size = o->block_size;
    t->lease_ms = o->block_lease_ms;
    list_init(&t->waiting);
    list_init(&t->finished);
    pthread_mutex_init(&t->lock, NULL);
    peer_cond_init(&t->wake);
    peer_cond_init(&t->unpinned);
    t->self_id = mem_strdup(o->self_id);
    rv = t->self_id == NULL
             ? HEDGE_ENOMEM
             : thread_create(&t->thread, tier_main, t, "hedge-peers");
    if (rv != 0) {
        release(t);
        return rv;
    }
    *out = &t->base;
    return 0;
}
