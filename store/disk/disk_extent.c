#include "store/disk/disk_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void disk_extent_name(uint64_t generation, uint32_t unit,
                      char out[DISK_NAME_MAX])
{
    (void)snprintf(out, DISK_NAME_MAX, "x-%llx-%u.extent",
                   (unsigned long long)generation, unit);
}

bool disk_is_extent_name(const char *name)
{
    size_t n;

    if (strncmp(name, "x-", 2) != 0) {
        return false;
    }
    name += 2;
    n = strspn(name, "0123456789abcdef");
    if (n == 0 || n > 16 || name[n] != '-') {
        return false;
    }
    name += n + 1;
    n = strspn(name, "0123456789");
    return n > 0 && n <= 10 && strcmp(name + n, ".extent") == 0;
}

static struct list *store_bucket(struct disk *d, uint64_t generation)
{
    uint64_t mixed = generation * 0x9e3779b97f4a7c15u;

    return &d->stores[(mixed >> 32) % DISK_STORE_BUCKETS];
}

struct disk_store *disk_store_find(struct disk *d, uint64_t generation,
                                   bool make)
{
    struct list *bucket = store_bucket(d, generation), *item;
    struct disk_store *s;

    list_foreach (item, bucket) {
        s = container_of(item, struct disk_store, link);
        if (s->generation == generation) {
            return s;
        }
    }
    s = make ? mem_calloc(1, sizeof *s) : NULL;
    if (s == NULL) {
        return NULL;
    }
    s->generation = generation;
    list_init(&s->grow_link);
    list_init(&s->extents);
    list_init(&s->waiting);
    list_push(bucket, &s->link);
    return s;
}

struct disk_extent *disk_extent_find(struct disk *d, uint64_t generation,
                                     uint32_t unit)
{
    struct list *bucket = &d->extents[unit % DISK_EXTENT_BUCKETS], *item;

    list_foreach (item, bucket) {
        struct disk_extent *x = container_of(item, struct disk_extent, link);
        if (x->unit == unit && x->generation == generation) {
            return x;
        }
    }
    return NULL;
}

void disk_store_settle(struct disk *d, struct disk_store *s)
{
    (void)d;
    if (s->growing || !list_empty(&s->waiting) || !list_empty(&s->extents)) {
        return;
    }
    assert(s->cur == NULL && s->next == NULL);
    list_remove(&s->grow_link);
    list_remove(&s->link);
    mem_free(s);
}

/* --- descriptors ---------------------------------------------------------- */

static void fd_close(struct disk *d, struct disk_extent *x)
{
    assert(x->fd >= 0 && x->busy == 0);
    list_remove(&x->idle_link);
    close(x->fd);
    x->fd = -1;
    d->n_open--;
}

static bool close_one_idle(struct disk *d)
{
    if (list_empty(&d->idle)) {
        return false;
    }
    fd_close(d, container_of(d->idle.next, struct disk_extent, idle_link));
    return true;
}

/* Opening under the lock: the file exists and its inode is in memory or was
 * not long ago, and only a node with hundreds of extents comes here. */
static int fd_open(struct disk *d, struct disk_extent *x)
{
    char name[DISK_NAME_MAX];
    int flags = O_RDWR | O_CLOEXEC | (d->features.direct ? O_DIRECT : 0);

    disk_extent_name(x->generation, x->unit, name);
    do {
        x->fd = openat(d->dir_fd, name, flags);
    } while (x->fd < 0 && (errno == EMFILE || errno == ENFILE) &&
             close_one_idle(d));
    if (x->fd < 0) {
        return -errno;
    }
    d->n_open++;
    return 0;
}

int disk_fd_get(struct disk *d, struct disk_extent *x)
{
    if (x->fd < 0) {
        int rv = fd_open(d, x);
        if (rv != 0) {
            return rv;
        }
    }
    list_remove(&x->idle_link);
    x->busy++;
    return x->fd;
}

void disk_fd_put(struct disk *d, struct disk_extent *x)
{
    assert(x->busy > 0 && x->fd >= 0);
    if (--x->busy == 0) {
        list_push(&d->idle, &x->idle_link);
    }
    if (d->n_open > DISK_FILES_OPEN_MAX) {
        (void)close_one_idle(d);
    }
}

/* --- life of an extent ---------------------------------------------------- */

/* The worker is to look whether it is idle and holds what it does not need. */
static void watch(struct disk *d, struct disk_extent *x)
{
    if (list_empty(&x->slack_link)) {
        x->tail_seen = UINT64_MAX;
        list_push(&d->slacking, &x->slack_link);
        pthread_cond_signal(&d->worker_wake);
    }
}

void disk_set_allocated(struct disk *d, struct disk_extent *x, uint64_t bytes)
{
    assert(bytes >= x->tail);
    d->slack -= disk_slack(x);
    x->allocated = bytes;
    d->slack += disk_slack(x);
    if (disk_slack(x) > 0) {
        watch(d, x);
    }
}

static void forget_dead(struct disk_extent *x)
{
    list_remove(&x->dead_link);
    mem_free(x->dead);
    x->dead = NULL;
}

/* To the worker for unlinking, as soon as nobody needs it. */
static void settle(struct disk *d, struct disk_extent *x)
{
    struct disk_store *s = x->store;

    if (x->refs > 0 || (x->live > 0 && !x->doomed)) {
        return;
    }
    if (!x->closed && !x->doomed) {
        watch(d, x); /* More may be added, or it may be at its end. */
        return;
    }
    assert(x->busy == 0 && x->live == 0);
    d->slack -= disk_slack(x);
    x->allocated = x->tail;
    list_remove(&x->slack_link);
    forget_dead(x);
    list_remove(&x->link);
    list_remove(&x->store_link);
    list_push(&d->reap, &x->store_link);
    x->store = NULL;
    pthread_cond_signal(&d->worker_wake);
    if (s != NULL) {
        disk_store_settle(d, s);
    }
}

void disk_extent_unref(struct disk *d, struct disk_extent *x)
{
    assert(x->refs > 0);
    x->refs--;
    settle(d, x);
}

void disk_extent_close(struct disk *d, struct disk_extent *x)
{
    struct disk_store *s = x->store;

    assert(s != NULL && (x == s->cur || x == s->next));
    if (x == s->cur) {
        s->cur = NULL;
    } else {
        s->next = NULL;
    }
    x->closed = true;
    settle(d, x);
}

/* --- bytes ---------------------------------------------------------------- */

static bool fits(const struct disk_extent *x, uint64_t padded)
{
    return x != NULL && padded <= disk_slack(x);
}

bool disk_wants_ahead(const struct disk_store *s)
{
    const struct disk_extent *x = s->cur;

    return x != NULL && s->next == NULL && !s->ahead_failed &&
           disk_slack(x) < x->allocated / 4;
}

bool disk_place(struct disk *d, struct disk_store *s, struct tier_req *req)
{
    uint64_t padded = disk_align(d, req->len);
    struct disk_extent *x = s->cur;

    if (!fits(x, padded) && fits(s->next, padded)) {
        struct disk_extent *next = s->next;
        s->next = NULL;
        if (x != NULL) {
            /* `next` keeps the store alive. */
            disk_extent_close(d, x);
        }
        s->cur = x = next;
    }
    if (!fits(x, padded)) {
        return false;
    }
    req->place.addr = x->tail;
    req->place.unit = x->unit;
    req->place.kind = 0;
    req->impl = x;
    x->refs++;
    x->tail += padded;
    x->live += padded;
    d->slack -= padded;
    assert(x->tail <= x->allocated && x->allocated <= DISK_EXTENT_MAX);
    if (disk_wants_ahead(s)) {
        disk_want_room(d, s);
    }
    return true;
}

void disk_want_room(struct disk *d, struct disk_store *s)
{
    if (!s->growing && list_empty(&s->grow_link)) {
        list_push(&d->grow, &s->grow_link);
        pthread_cond_signal(&d->worker_wake);
    }
}

/* Is there a range that [from, to) touches? Then it has grown. */
static bool dead_extend(struct disk_dead *dead, uint64_t from, uint64_t to)
{
    for (unsigned i = dead->n; i-- > 0;) {
        if (dead->range[i].to == from) {
            dead->range[i].to = to;
            return true;
        }
        if (dead->range[i].from == to) {
            dead->range[i].from = from;
            return true;
        }
    }
    return false;
}

static void dead_begin(struct disk *d, struct disk_extent *x)
{
    x->dead = mem_alloc(sizeof *x->dead);
    if (x->dead == NULL) {
        return;
    }
    x->dead->n = 0;
    x->dead->bytes = 0;
    x->dead->since_ms = clock_mono_ms();
    list_push(&d->dead, &x->dead_link);
    pthread_cond_signal(&d->worker_wake);
}

/* Without memory, or with too many ranges, the space comes back only when the
 * file goes. */
static void dead_add(struct disk *d, struct disk_extent *x, uint64_t from,
                     uint64_t to)
{
    struct disk_dead *dead;

    if (x->dead == NULL && !d->punch_refused) {
        dead_begin(d, x);
    }
    dead = x->dead;
    if (dead == NULL) {
        return;
    }
    if (!dead_extend(dead, from, to)) {
        if (dead->n == DISK_DEAD_MAX) {
            return;
        }
        dead->range[dead->n].from = from;
        dead->range[dead->n].to = to;
        dead->n++;
    }
    dead->bytes += to - from;
    if (dead->bytes >= DISK_PUNCH_BYTES && dead->since_ms != 0) {
        dead->since_ms = 0; /* Due. */
        list_remove(&x->dead_link);
        list_push_front(&d->dead, &x->dead_link);
        pthread_cond_signal(&d->worker_wake);
    }
}

void disk_lose(struct disk *d, struct disk_extent *x, uint64_t from,
               uint64_t padded)
{
    assert(!x->doomed);
    assert(x->live >= padded && d->used >= padded);
    x->live -= padded;
    d->used -= padded;
    if (!x->closed || x->live > 0) {
        dead_add(d, x, from, from + padded);
    }
}

static void doom(struct disk *d, struct disk_extent *x)
{
    assert(d->used >= x->live);
    d->used -= x->live;
    x->live = 0;
    x->doomed = true;
    x->store = NULL;
    list_remove(&x->store_link);
    settle(d, x);
}

void disk_store_drop(struct disk *d, struct disk_store *s)
{
    struct list *item;

    s->cur = s->next = NULL;
    while (!list_empty(&s->extents)) {
        doom(d, container_of(s->extents.next, struct disk_extent, store_link));
    }
    while ((item = list_pop(&s->waiting)) != NULL) {
        struct tier_req *req = container_of(item, struct tier_req, link);
        d->used -= disk_align(d, req->len);
        req->status =
            error_set(&req->error, HEDGE_ECANCELED, "the store was dropped");
        list_push(&d->refused, item);
        pthread_cond_signal(&d->worker_wake);
    }
    s->waiting_bytes = 0;
    s->dropped = true;
    list_remove(&s->grow_link);
    list_remove(&s->link);
    disk_store_settle(d, s);
}
