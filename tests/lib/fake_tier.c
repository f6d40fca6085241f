#include "tests/lib/fake_tier.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct held {
    struct list link;
    struct block_id id;
    unsigned unit;
    unsigned gets; /* Under way. */
    bool arriving; /* Its put is under way. */
    size_t len;
    unsigned char data[];
};

struct job {
    struct list link;
    struct tier_req *req;
    struct held *held;
    uint64_t due_ms;
    bool get;
    int status;
};

struct fake_tier {
    struct tier base;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct list jobs, held;
    struct fake_unit units[FAKE_UNITS_MAX];
    char names[FAKE_UNITS_MAX][16];
    unsigned n_units;
    unsigned fail_nth;
    int fail_status;
    bool fail_at_once, fired;
    atomic_uint drop_ms;
    struct fake_tier_counts counts, *report;
    bool closing;
    pthread_t thread;
};

static struct fake_tier *fake_of(struct tier *t)
{
    return container_of(t, struct fake_tier, base);
}

static struct held *find(struct fake_tier *f, const struct block_id *id,
                         unsigned unit)
{
    struct list *l;

    list_foreach (l, &f->held) {
        struct held *h = container_of(l, struct held, link);

        if (h->unit == unit && block_id_equal(&h->id, id)) {
            return h;
        }
    }
    return NULL;
}

static void forget(struct fake_tier *f, struct held *h)
{
    f->units[h->unit].used -= h->len;
    f->units[h->unit].blocks--;
    f->counts.blocks--;
    list_remove(&h->link);
    free(h);
}

/* --- completions --- */

static void finish_put(struct fake_tier *f, struct job *j)
{
    if (j->held == NULL) {
        return;
    }
    j->held->arriving = false;
    if (j->status != 0) {
        forget(f, j->held);
        return;
    }
    j->req->place.unit = j->held->unit;
    j->req->place.addr = 0x1000 + j->held->unit;
}

static void finish_get(struct fake_tier *f, struct job *j)
{
    struct held *h = j->held;

    if (h == NULL) {
        return;
    }
    h->gets--;
    if (j->status == 0) {
        memcpy(j->req->data, h->data, j->req->len);
        if (f->units[h->unit].corrupt) {
            ((unsigned char *)j->req->data)[j->req->len / 2] ^= 0x10;
        }
    }
}

static struct job *due_job(struct fake_tier *f, uint64_t now, uint64_t *next)
{
    struct list *l;

    *next = now + 1000;
    list_foreach (l, &f->jobs) {
        struct job *j = container_of(l, struct job, link);

        if (j->due_ms <= now) {
            list_remove(l);
            return j;
        }
        *next = j->due_ms < *next ? j->due_ms : *next;
    }
    return NULL;
}

static void complete(struct fake_tier *f, struct job *j)
{
    struct tier_req *req = j->req;

    (j->get ? finish_get : finish_put)(f, j);
    req->status = j->status;
    if (j->status != 0) {
        (void)error_set(&req->error, j->status, "fake node: %s",
                        hedge_strerror(j->status));
    }
    free(j);
    pthread_mutex_unlock(&f->lock);
    req->cb(req);
    pthread_mutex_lock(&f->lock);
}

static void *fake_main(void *arg)
{
    struct fake_tier *f = arg;

    pthread_mutex_lock(&f->lock);
    for (;;) {
        uint64_t until;
        struct job *j = due_job(f, clock_mono_ms(), &until);
        struct timespec ts;

        if (j != NULL) {
            complete(f, j);
            continue;
        }
        if (f->closing && list_empty(&f->jobs)) {
            break;
        }
        ts.tv_sec = (time_t)(until / 1000);
        ts.tv_nsec = (long)(until % 1000 * 1000000);
        pthread_cond_timedwait(&f->wake, &f->lock, &ts);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* --- operations --- */

/* The lock is held. */
static int injected(struct fake_tier *f)
{
    if (f->fail_nth == 0 || --f->fail_nth > 0) {
        return 0;
    }
    f->fired = true;
    return f->fail_status;
}

static void push_job(struct fake_tier *f, struct tier_req *req,
                     struct held *held, bool get, int status, unsigned delay)
{
    struct job *j = calloc(1, sizeof *j);

    assert(j != NULL);
    j->req = req;
    j->held = held;
    j->get = get;
    j->status = status;
    j->due_ms = clock_mono_ms() + delay;
    list_push(&f->jobs, &j->link);
    pthread_cond_signal(&f->wake);
}

static bool is_avoided(const struct tier_req *req, unsigned unit)
{
    bool avoided = false;

    for (unsigned i = 0; i < req->n_avoid; i++) {
        avoided = avoided || req->avoid[i] == unit;
    }
    return avoided;
}

/* The unit with the most free space, as the real tier chooses. */
static int choose(struct fake_tier *f, const struct tier_req *req)
{
    uint64_t most = 0;
    int best = -1;

    for (unsigned i = 0; i < f->n_units; i++) {
        const struct fake_unit *u = &f->units[i];
        uint64_t room = u->limit - u->used;

        if (!u->refuse && !is_avoided(req, i) && room >= req->len &&
            room > most) {
            most = room;
            best = (int)i;
        }
    }
    return best;
}

static struct held *hold(struct fake_tier *f, const struct tier_req *req,
                         unsigned unit)
{
    struct held *h = malloc(sizeof *h + req->len);

    assert(h != NULL);
    memset(h, 0, sizeof *h);
    h->id = req->id;
    h->unit = unit;
    h->len = req->len;
    h->arriving = true;
    memcpy(h->data, req->data, req->len);
    list_push(&f->held, &h->link);
    f->units[unit].used += h->len;
    f->units[unit].blocks++;
    f->counts.blocks++;
    return h;
}

static int fake_put(struct tier *t, struct tier_req *req)
{
    struct fake_tier *f = fake_of(t);
    struct held *h = NULL;
    unsigned delay = 0;
    int unit, status;

    pthread_mutex_lock(&f->lock);
    status = injected(f);
    if (status != 0 && f->fail_at_once) {
        pthread_mutex_unlock(&f->lock);
        return status;
    }
    f->counts.puts++;
    unit = choose(f, req);
    if (unit < 0) {
        status = status != 0 ? status : HEDGE_EREFUSED;
    } else {
        h = hold(f, req, (unsigned)unit);
        status = status != 0 ? status : f->units[unit].put_status;
        delay = f->units[unit].delay_ms;
    }
    push_job(f, req, h, false, status, delay);
    pthread_mutex_unlock(&f->lock);
    return 0;
}

static int fake_get(struct tier *t, struct tier_req *req)
{
    struct fake_tier *f = fake_of(t);
    unsigned unit = req->place.unit;
    struct held *h;
    int status;

    assert(unit < f->n_units && req->place.addr == 0x1000 + unit);
    pthread_mutex_lock(&f->lock);
    status = injected(f);
    if (status != 0 && f->fail_at_once) {
        pthread_mutex_unlock(&f->lock);
        return status;
    }
    f->counts.gets++;
    h = find(f, &req->id, unit);
    if (h == NULL || h->len != req->len) {
        h = NULL;
        status = HEDGE_ELOST;
    } else {
        h->gets++;
        status = status != 0 ? status : f->units[unit].get_status;
    }
    push_job(f, req, h, true, status, f->units[unit].delay_ms);
    pthread_mutex_unlock(&f->lock);
    return 0;
}

/* The lock is held; what is in use stays, and is counted as misuse. */
static void drop_held(struct fake_tier *f, struct held *h)
{
    if (h->gets > 0 || h->arriving) {
        (void)fprintf(stderr, "fake tier: block %u/%llu dropped while %s\n",
                      h->id.writer, (unsigned long long)h->id.sequence,
                      h->arriving ? "put" : "got");
        f->counts.misuse++;
        return;
    }
    forget(f, h);
}

static void fake_drop(struct tier *t, const struct block_id *id,
                      const struct tier_place *place, size_t len)
{
    struct fake_tier *f = fake_of(t);
    struct held *h;

    pthread_mutex_lock(&f->lock);
    f->counts.drops++;
    h = find(f, id, place->unit);
    if (h == NULL || h->len != len) {
        (void)fprintf(stderr, "fake tier: block %u/%llu is not there\n",
                      id->writer, (unsigned long long)id->sequence);
        f->counts.misuse++;
    } else {
        drop_held(f, h);
    }
    pthread_mutex_unlock(&f->lock);
}

static void fake_drop_store(struct tier *t, uint64_t generation)
{
    struct fake_tier *f = fake_of(t);
    struct list *l, *tmp;

    clock_sleep_ms(atomic_load(&f->drop_ms));
    pthread_mutex_lock(&f->lock);
    f->counts.store_drops++;
    list_foreach_safe (l, tmp, &f->held) {
        struct held *h = container_of(l, struct held, link);

        if (h->id.generation == generation) {
            drop_held(f, h);
        }
    }
    pthread_mutex_unlock(&f->lock);
}

static void fake_use(struct tier *t, struct tier_use *out)
{
    struct fake_tier *f = fake_of(t);

    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&f->lock);
    for (unsigned i = 0; i < f->n_units; i++) {
        out->used += f->units[i].used;
        out->limit += f->units[i].limit;
    }
    out->free = out->limit - out->used;
    pthread_mutex_unlock(&f->lock);
}

static void fake_describe(struct tier *t, const struct tier_place *place,
                          const char **node, const char **kind)
{
    *node = fake_of(t)->names[place->unit];
    *kind = "memory";
}

static unsigned fake_nodes(struct tier *t)
{
    struct fake_tier *f = fake_of(t);
    unsigned n = 0;

    pthread_mutex_lock(&f->lock);
    for (unsigned i = 0; i < f->n_units; i++) {
        n += !f->units[i].gone;
    }
    pthread_mutex_unlock(&f->lock);
    return n;
}

static void fake_free(struct tier *t)
{
    struct fake_tier *f = fake_of(t);

    pthread_mutex_lock(&f->lock);
    f->closing = true;
    pthread_cond_signal(&f->wake);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->thread, NULL);
    if (f->report != NULL) {
        *f->report = f->counts;
    }
    while (!list_empty(&f->held)) {
        forget(f, container_of(f->held.next, struct held, link));
    }
    pthread_cond_destroy(&f->wake);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

static bool fake_lost(struct tier *t, const struct tier_place *place)
{
    return fake_tier_unit(container_of(t, struct fake_tier, base), place->unit)
        .gone;
}

static const struct tier_ops fake_ops = {.name = "fake",
                                         .put = fake_put,
                                         .get = fake_get,
                                         .drop = fake_drop,
                                         .drop_store = fake_drop_store,
                                         .use = fake_use,
                                         .describe = fake_describe,
                                         .lost = fake_lost,
                                         .nodes = fake_nodes,
                                         .free = fake_free};

/* --- life and knobs --- */

struct fake_tier *fake_tier_new(unsigned n_units, uint64_t unit_limit)
{
    struct fake_tier *f = calloc(1, sizeof *f);
    pthread_condattr_t attr;
    int rc;

    assert(f != NULL && n_units <= FAKE_UNITS_MAX);
    f->base.ops = &fake_ops;
    f->n_units = n_units;
    list_init(&f->jobs);
    list_init(&f->held);
    for (unsigned i = 0; i < n_units; i++) {
        f->units[i].limit = unit_limit;
        (void)snprintf(f->names[i], sizeof f->names[i], "fake-%u", i);
    }
    pthread_mutex_init(&f->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&f->wake, &attr);
    pthread_condattr_destroy(&attr);
    rc = pthread_create(&f->thread, NULL, fake_main, f);
    assert(rc == 0);
    return f;
}

struct tier *fake_tier_base(struct fake_tier *f)
{
    return &f->base;
}

struct fake_unit fake_tier_unit(struct fake_tier *f, unsigned unit)
{
    struct fake_unit u;

    pthread_mutex_lock(&f->lock);
    u = f->units[unit];
    pthread_mutex_unlock(&f->lock);
    return u;
}

void fake_tier_set(struct fake_tier *f, unsigned unit,
                   const struct fake_unit *u)
{
    struct fake_unit *mine = &f->units[unit];

    pthread_mutex_lock(&f->lock);
    mine->limit = u->limit > mine->used ? u->limit : mine->used;
    mine->refuse = u->refuse;
    mine->put_status = u->put_status;
    mine->get_status = u->get_status;
    mine->corrupt = u->corrupt;
    mine->gone = u->gone;
    mine->delay_ms = u->delay_ms;
    pthread_mutex_unlock(&f->lock);
}

void fake_tier_lose(struct fake_tier *f, unsigned unit)
{
    struct list *l;

    pthread_mutex_lock(&f->lock);
    list_foreach (l, &f->held) {
        struct held *h = container_of(l, struct held, link);

        if (h->unit == unit) {
            f->units[unit].get_status = HEDGE_ELOST;
        }
    }
    pthread_mutex_unlock(&f->lock);
}

void fake_tier_fail_nth(struct fake_tier *f, unsigned n, int status,
                        bool at_once)
{
    pthread_mutex_lock(&f->lock);
    f->fail_nth = n;
    f->fail_status = status;
    f->fail_at_once = at_once;
    f->fired = f->fired && n == 0;
    pthread_mutex_unlock(&f->lock);
}

void fake_tier_slow_drops(struct fake_tier *f, unsigned ms)
{
    atomic_store(&f->drop_ms, ms);
}

bool fake_tier_fired(struct fake_tier *f)
{
    bool fired;

    pthread_mutex_lock(&f->lock);
    fired = f->fired;
    pthread_mutex_unlock(&f->lock);
    return fired;
}

struct fake_tier_counts fake_tier_counts(struct fake_tier *f)
{
    struct fake_tier_counts c;

    pthread_mutex_lock(&f->lock);
    c = f->counts;
    pthread_mutex_unlock(&f->lock);
    return c;
}

void fake_tier_report(struct fake_tier *f, struct fake_tier_counts *at_end)
{
    f->report = at_end;
}
