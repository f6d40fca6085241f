#include "store/disk/disk_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int check(struct tier_req *req)
{
    assert(req->cb != NULL);
    assert(req->data != NULL);
    assert((uintptr_t)req->data % DISK_BUFFER_ALIGN == 0);
    req->status = 0;
    error_clear(&req->error);
    if (req->len == 0 || req->len > DISK_LEN_MAX) {
        return error_set(&req->error, HEDGE_EINVAL,
                         "a block of %zu bytes cannot be kept on disk",
                         req->len);
    }
    return 0;
}

/* Locked. */
static int accept_put(struct disk *d, struct tier_req *req, uint64_t padded)
{
    struct disk_store *s;

    if (d->closing) {
        return error_set(&req->error, HEDGE_ECLOSED, "the disk tier is closed");
    }
    assert(d->used <= d->limit);
    if (padded > d->limit - d->used) {
        return error_set(&req->error, HEDGE_ENOSPC,
                         "the disk limit of %llu bytes is reached",
                         (unsigned long long)d->limit);
    }
    s = disk_store_find(d, req->id.generation, true);
    if (s == NULL) {
        return error_set(&req->error, HEDGE_ENOMEM, "no memory for a store");
    }
    d->used += padded;
    d->pending++;
    if (list_empty(&s->waiting) && disk_place(d, s, req)) {
        list_push(&d->queue[DISK_WRITE], &req->link);
        return 0;
    }
    list_push(&s->waiting, &req->link);
    s->waiting_bytes += padded;
    disk_want_room(d, s);
    return 0;
}

static int put(struct tier *t, struct tier_req *req)
{
    struct disk *d = disk_of(t);
    uint64_t padded;
    int rv = check(req);

    if (rv != 0) {
        return rv;
    }
    padded = disk_align(d, req->len);
    memset((char *)req->data + req->len, 0, padded - req->len);
    pthread_mutex_lock(&d->lock);
    rv = accept_put(d, req, padded);
    if (rv == 0) {
        disk_run(d);
    }
    pthread_mutex_unlock(&d->lock);
    return rv;
}

/* Locked. */
static int accept_get(struct disk *d, struct tier_req *req)
{
    struct disk_extent *x;

    if (d->closing) {
        return error_set(&req->error, HEDGE_ECLOSED, "the disk tier is closed");
    }
    x = disk_extent_find(d, req->id.generation, req->place.unit);
    if (x == NULL || x->doomed) {
        return error_set(&req->error, HEDGE_ENOTFOUND,
                         "extent %u of store %llx is not on disk",
                         req->place.unit,
                         (unsigned long long)req->id.generation);
    }
    if (req->place.addr % d->features.alignment != 0 ||
        req->place.addr > x->tail ||
        disk_align(d, req->len) > x->tail - req->place.addr) {
        return error_set(&req->error, HEDGE_EINVAL,
                         "%zu bytes at %llu are not within extent %u", req->len,
                         (unsigned long long)req->place.addr, req->place.unit);
    }
    x->refs++;
    d->pending++;
    req->impl = x;
    list_push(&d->queue[DISK_READ], &req->link);
    return 0;
}

static int get(struct tier *t, struct tier_req *req)
{
    struct disk *d = disk_of(t);
    int rv = check(req);

    if (rv != 0) {
        return rv;
    }
    pthread_mutex_lock(&d->lock);
    rv = accept_get(d, req);
    if (rv == 0) {
        disk_run(d);
    }
    pthread_mutex_unlock(&d->lock);
    return rv;
}

static void drop(struct tier *t, const struct block_id *id,
                 const struct tier_place *place, size_t len)
{
    struct disk *d = disk_of(t);
    struct disk_extent *x;
    uint64_t padded = disk_align(d, len);

    pthread_mutex_lock(&d->lock);
    x = disk_extent_find(d, id->generation, place->unit);
    if (x != NULL && !x->doomed) {
        assert(place->addr + padded <= x->tail);
        x->refs++;
        disk_lose(d, x, place->addr, padded);
        disk_extent_unref(d, x);
    }
    pthread_mutex_unlock(&d->lock);
}

static void drop_store(struct tier *t, uint64_t generation)
{
    struct disk *d = disk_of(t);
    struct disk_store *s;

    pthread_mutex_lock(&d->lock);
    s = disk_store_find(d, generation, false);
    if (s != NULL) {
        disk_store_drop(d, s);
    }
    pthread_mutex_unlock(&d->lock);
}

/* The file system is asked without the lock: it may be slow to answer. */
static void refresh_fs_free(struct disk *d)
{
    uint64_t bytes, now = clock_mono_ms();
    bool old;

    pthread_mutex_lock(&d->lock);
    old = now - d->fs_free_at_ms >= DISK_FS_CACHE_MS;
    pthread_mutex_unlock(&d->lock);
    if (!old) {
        return;
    }
    bytes = disk_fs_free(d);
    pthread_mutex_lock(&d->lock);
    d->fs_free = bytes;
    d->fs_free_at_ms = now;
    pthread_mutex_unlock(&d->lock);
}

static void use(struct tier *t, struct tier_use *out)
{
    struct disk *d = disk_of(t);
    uint64_t room;

    refresh_fs_free(d);
    pthread_mutex_lock(&d->lock);
    room = d->fs_free > d->reserve ? d->fs_free - d->reserve : 0;
    room += d->slack;
    out->limit = d->limit;
    out->used = d->used;
    out->free = d->limit - d->used;
    if (room < out->free) {
        out->free = room;
    }
    pthread_mutex_unlock(&d->lock);
}

static void drop_all(struct disk *d)
{
    struct list *item, *tmp;

    pthread_mutex_lock(&d->lock);
    for (unsigned i = 0; i < DISK_STORE_BUCKETS; i++) {
        list_foreach_safe (item, tmp, &d->stores[i]) {
            disk_store_drop(d, container_of(item, struct disk_store, link));
        }
    }
    pthread_mutex_unlock(&d->lock);
}

/* Also ends what disk_new() could not finish. */
static void tear_down(struct tier *t)
{
    struct disk *d = disk_of(t);

    pthread_mutex_lock(&d->lock);
    d->closing = true;
    while (d->pending > 0) {
        pthread_cond_wait(&d->quiet, &d->lock);
    }
    pthread_mutex_unlock(&d->lock);
    drop_all(d);
    disk_worker_stop(d);
    if (d->backend != NULL) {
        d->backend->stop(d);
    }
    assert(d->used == 0);
    assert(d->n_open == 0);
    if (d->dir_fd >= 0) {
        close(d->dir_fd);
    }
    pthread_cond_destroy(&d->quiet);
    pthread_cond_destroy(&d->worker_wake);
    pthread_mutex_destroy(&d->lock);
    mem_free(d->dir);
    mem_free(d);
}

static const struct tier_ops disk_ops = {
    .name = "disk",
    .put = put,
    .get = get,
    .drop = drop,
    .drop_store = drop_store,
    .use = use,
    .free = tear_down,
};

static void init_lists(struct disk *d)
{
    struct list *lists[] = {&d->idle,
                            &d->queue[DISK_READ],
                            &d->queue[DISK_WRITE],
                            &d->free_ops,
                            &d->unstarted,
                            &d->refused,
                            &d->grow,
                            &d->reap,
                            &d->dead,
                            &d->slacking};

    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        list_init(lists[i]);
    }
    for (unsigned i = 0; i < DISK_STORE_BUCKETS; i++) {
        list_init(&d->stores[i]);
    }
    for (unsigned i = 0; i < DISK_EXTENT_BUCKETS; i++) {
        list_init(&d->extents[i]);
    }
}

static void init(struct disk *d, const struct disk_options *o)
{
    pthread_condattr_t attr;

    d->tier.ops = &disk_ops;
    d->dir_fd = -1;
    d->limit = o->limit;
    d->reserve = o->reserve;
    d->fault = o->fault;
    d->fault_ctx = o->fault_ctx;
    d->features.alignment = DISK_BUFFER_ALIGN;
    pthread_mutex_init(&d->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->worker_wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_cond_init(&d->quiet, NULL);
    init_lists(d);
    for (unsigned i = 0; i < DISK_INFLIGHT; i++) {
        d->ops[i].magic = DISK_OP_MAGIC;
        d->ops[i].disk = d;
        list_push(&d->free_ops, &d->ops[i].link);
    }
}

int disk_new(const struct disk_options *o, struct tier **out,
             struct hedge_error *e)
{
    struct disk *d;
    int rv;

    assert(o->dir != NULL);
    *out = NULL;
    d = mem_calloc(1, sizeof *d);
    if (d == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the disk tier");
    }
    init(d, o);
    d->dir = mem_strdup(o->dir);
    if (d->dir == NULL) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the disk tier");
        goto err_free;
    }
    rv = disk_dir_open(d, e);
    if (rv != 0) {
        goto err_free;
    }
    rv = disk_probe(d, e);
    if (rv != 0) {
        goto err_free;
    }
    rv = disk_backend_start(d, o->io, e);
    if (rv != 0) {
        goto err_free;
    }
    rv = disk_worker_start(d);
    if (rv != 0) {
        error_set(e, rv, "the disk tier's worker could not be started");
        goto err_free;
    }
    d->fs_free = disk_fs_free(d);
    d->fs_free_at_ms = clock_mono_ms();
    *out = &d->tier;
    return 0;

err_free:
    tear_down(&d->tier);
    assert(rv < 0);
    return rv;
}

void disk_features(struct tier *t, struct disk_features *out)
{
    struct disk *d = disk_of(t);

    assert(t->ops == &disk_ops);
    pthread_mutex_lock(&d->lock);
    *out = d->features;
    out->works = true;
    for (unsigned i = 0; i < DISK_TROUBLES; i++) {
        if (d->trouble[i].now) {
            out->works = false;
            (void)snprintf(out->works_detail, sizeof out->works_detail, "%s",
                           d->trouble[i].text);
        }
    }
    pthread_mutex_unlock(&d->lock);
}

size_t disk_padded(struct tier *t, size_t len)
{
    assert(t->ops == &disk_ops);
    return (size_t)disk_align(disk_of(t), len);
}
