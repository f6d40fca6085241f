#include "cluster/group/directory.h"

#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/base/list.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#define BUCKETS 4096
#define GENERATION_BITS 24
#define SWEEP_MS 60000 /* How often expired names are looked through. */

struct entry {
    struct list link;
    uint64_t generation, incarnation;
    uint64_t expired_ms; /* Boot time; 0: alive. */
    char *owner;         /* Behind the name. */
    char name[];
};

struct directory {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t token; /* 0: this node does not lead. */
    bool settled;
    uint64_t counter; /* Of generations under this token. */
    unsigned n;
    uint64_t swept_ms; /* Boot time. */
    struct list buckets[BUCKETS];
};

int directory_new(struct directory **out)
{
    struct directory *d = mem_calloc(1, sizeof *d);
    pthread_condattr_t attr;

    *out = d;
    if (d == NULL) {
        return HEDGE_ENOMEM;
    }
    pthread_mutex_init(&d->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->changed, &attr);
    pthread_condattr_destroy(&attr);
    for (unsigned i = 0; i < BUCKETS; i++) {
        list_init(&d->buckets[i]);
    }
    return 0;
}

static void entry_remove(struct directory *d, struct entry *e)
{
    list_remove(&e->link);
    d->n--;
    mem_free(e);
}

/* Remove what `wanted` says; NULL: everything. */
static void sweep(struct directory *d,
                  bool (*wanted)(const struct entry *e, const void *ctx),
                  const void *ctx)
{
    struct list *l, *tmp;

    for (unsigned i = 0; i < BUCKETS && d->n > 0; i++) {
        list_foreach_safe (l, tmp, &d->buckets[i]) {
            struct entry *e = container_of(l, struct entry, link);

            if (wanted == NULL || wanted(e, ctx)) {
                entry_remove(d, e);
            }
        }
    }
}

void directory_free(struct directory *d)
{
    if (d == NULL) {
        return;
    }
    sweep(d, NULL, NULL);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->lock);
    mem_free(d);
}

void directory_lead(struct directory *d, uint64_t token)
{
    pthread_mutex_lock(&d->lock);
    sweep(d, NULL, NULL);
    d->token = token;
    d->settled = false;
    d->counter = 0;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
}

void directory_settle(struct directory *d, uint64_t token)
{
    pthread_mutex_lock(&d->lock);
    if (d->token == token) {
        d->settled = true;
        pthread_cond_broadcast(&d->changed);
    }
    pthread_mutex_unlock(&d->lock);
}

static struct list *bucket_of(struct directory *d, const char *name)
{
    return &d->buckets[hash64(name, strlen(name)) % BUCKETS];
}

static struct entry *find(struct directory *d, const char *name)
{
    struct list *bucket = bucket_of(d, name), *l;

    list_foreach (l, bucket) {
        struct entry *e = container_of(l, struct entry, link);

        if (strcmp(e->name, name) == 0) {
            return e;
        }
    }
    return NULL;
}

static void describe(const struct entry *e, struct directory_entry *out)
{
    memset(out, 0, sizeof *out);
    strncpy(out->owner, e->owner, sizeof out->owner - 1);
    out->generation = e->generation;
    out->incarnation = e->incarnation;
    if (e->expired_ms != 0) {
        out->expired_ago_ms = clock_boot_ms() - e->expired_ms + 1;
    }
}

static struct entry *add(struct directory *d, const char *name,
                         const char *owner)
{
    size_t name_len = strlen(name) + 1, owner_len = strlen(owner) + 1;
    struct entry *e;

    if (d->n >= DIRECTORY_MAX) {
        return NULL;
    }
    e = mem_calloc(1, sizeof *e + name_len + owner_len);
    if (e != NULL) {
        memcpy(e->name, name, name_len);
        e->owner = e->name + name_len;
        memcpy(e->owner, owner, owner_len);
        list_push(bucket_of(d, name), &e->link);
        d->n++;
    }
    return e;
}

/* With the lock: wait until settled or no longer leader. */
static int wait_settled(struct directory *d, uint64_t timeout_ms)
{
    uint64_t until = clock_mono_ns() + timeout_ms * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                          .tv_nsec = (long)(until % 1000000000u)};

    while (d->token != 0 && !d->settled) {
        if (pthread_cond_timedwait(&d->changed, &d->lock, &ts) == ETIMEDOUT) {
            return HEDGE_ETIMEDOUT;
        }
    }
    return d->token == 0 ? HEDGE_ENOTLEADER : 0;
}

static int register_locked(struct directory *d, const char *name,
                           const char *owner, uint64_t incarnation,
                           uint64_t *generation,
                           struct directory_entry *existing)
{
    struct entry *e = find(d, name);

    if (e != NULL && e->expired_ms == 0 &&
        (strcmp(e->owner, owner) != 0 || e->incarnation == incarnation)) {
        bool same = *generation != 0 && e->generation == *generation;

        describe(e, existing);
        return same ? 0 : HEDGE_EEXISTS;
    }
    if (e != NULL) {
        entry_remove(d, e);
    }
    e = add(d, name, owner);
    if (e == NULL) {
        return HEDGE_ENOMEM;
    }
    if (*generation == 0) {
        d->counter++;
        assert(d->counter < (uint64_t)1 << GENERATION_BITS);
        *generation = d->token << GENERATION_BITS | d->counter;
    }
    e->generation = *generation;
    e->incarnation = incarnation;
    return 0;
}

int directory_register(struct directory *d, const char *name, const char *owner,
                       uint64_t incarnation, uint64_t *generation,
                       uint64_t timeout_ms, struct directory_entry *existing)
{
    int rv = 0;

    memset(existing, 0, sizeof *existing);
    pthread_mutex_lock(&d->lock);
    if (*generation == 0) {
        rv = wait_settled(d, timeout_ms);
    } else if (d->token == 0) {
        rv = HEDGE_ENOTLEADER;
    }
    if (rv == 0 && d->counter + 1 >= (uint64_t)1 << GENERATION_BITS) {
        rv = HEDGE_EBUSY;
    }
    if (rv == 0) {
        rv = register_locked(d, name, owner, incarnation, generation, existing);
    }
    pthread_mutex_unlock(&d->lock);
    return rv;
}

static bool is_forgotten(const struct entry *e, const void *ctx)
{
    const uint64_t *now_ms = ctx;

    return e->expired_ms != 0 &&
           *now_ms - e->expired_ms > DIRECTORY_TOMBSTONE_MS;
}

/* With the lock: a name has expired, and many may never be asked for again. */
static void sweep_forgotten(struct directory *d)
{
    uint64_t now = clock_boot_ms();

    if (now - d->swept_ms >= SWEEP_MS) {
        d->swept_ms = now;
        sweep(d, is_forgotten, &now);
    }
}

void directory_unregister(struct directory *d, const char *name,
                          uint64_t generation, bool expired)
{
    struct entry *e;

    pthread_mutex_lock(&d->lock);
    e = find(d, name);
    if (e != NULL && e->generation == generation) {
        if (expired) {
            e->expired_ms = clock_boot_ms();
            sweep_forgotten(d);
        } else {
            entry_remove(d, e);
        }
    }
    pthread_mutex_unlock(&d->lock);
}

int directory_find(struct directory *d, const char *name, uint64_t timeout_ms,
                   struct directory_entry *out)
{
    struct entry *e;
    int rv = 0;

    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&d->lock);
    e = find(d, name);
    if (e == NULL || e->expired_ms != 0) {
        rv = wait_settled(d, timeout_ms);
        e = find(d, name);
    }
    if (e != NULL) {
        describe(e, out);
        if (e->expired_ms != 0 &&
            out->expired_ago_ms > DIRECTORY_TOMBSTONE_MS) {
            entry_remove(d, e);
            e = NULL;
        }
    }
    if (rv == 0 && e == NULL) {
        rv = HEDGE_ENOTFOUND;
    } else if (rv == 0 && out->expired_ago_ms != 0) {
        rv = HEDGE_EEXPIRED;
    }
    pthread_mutex_unlock(&d->lock);
    return rv;
}

struct life {
    const char *owner;
    uint64_t incarnation;
};

static bool is_of_life(const struct entry *e, const void *ctx)
{
    const struct life *life = ctx;

    return e->expired_ms == 0 && strcmp(e->owner, life->owner) == 0 &&
           e->incarnation <= life->incarnation;
}

void directory_evict(struct directory *d, const char *owner,
                     uint64_t incarnation)
{
    struct life life = {.owner = owner, .incarnation = incarnation};

    pthread_mutex_lock(&d->lock);
    sweep(d, is_of_life, &life);
    pthread_mutex_unlock(&d->lock);
}
