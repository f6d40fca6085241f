#include "store/disk/disk_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum verdict { OP_DONE, OP_AGAIN, OP_FAILED };

static const char *const kind_names[] = {
    [DISK_READ] = "read", [DISK_WRITE] = "write"};

struct disk_op *disk_op_of(void *tag)
{
    struct disk_op *op = tag;

    assert(op->magic == DISK_OP_MAGIC);
    return op;
}

void disk_req_fail(struct disk *d, struct tier_req *req, int err,
                   enum disk_kind kind, const struct disk_extent *x)
{
    char name[DISK_NAME_MAX];
    int code = error_from_errno(err);

    if (code != HEDGE_ENOSPC && code != HEDGE_ENOMEM) {
        code = HEDGE_EIO;
    }
    disk_extent_name(x->generation, x->unit, name);
    req->status = error_set(
        &req->error, code, "%s of %zu bytes at offset %llu of %s/%s: %s",
        kind_names[kind], req->len, (unsigned long long)req->place.addr, d->dir,
        name, err == ENODATA ? "the file ends early" : strerror(err));
}

bool disk_note(struct disk *d, const struct tier_req *req, unsigned kind)
{
    struct disk_trouble *t = &d->trouble[kind];
    uint64_t now;

    if (req->status == 0 || req->status == HEDGE_ECANCELED) {
        t->now = t->now && req->status != 0;
        return false;
    }
    now = clock_mono_ms();
    t->now = true;
    (void)snprintf(t->text, sizeof t->text, "%.*s", (int)sizeof t->text - 1,
                   req->error.text);
    if (t->warned_ms != 0 && now - t->warned_ms < DISK_WARN_MS) {
        return false;
    }
    t->warned_ms = now;
    return true;
}

void disk_warn(const struct tier_req *req)
{
    log_warn("disk", "%s", req->error.text);
}

void disk_req_end(struct disk *d, struct tier_req *req)
{
    req->cb(req);
    pthread_mutex_lock(&d->lock);
    assert(d->pending > 0);
    if (--d->pending == 0) {
        pthread_cond_broadcast(&d->quiet);
    }
    pthread_mutex_unlock(&d->lock);
}

/* Not locked. Start the operation, or what is left of it. */
static void issue(struct disk_op *op)
{
    struct disk *d = op->disk;
    int rv = 0;

    op->cut = SIZE_MAX;
    if (d->fault != NULL) {
        rv = d->fault(d->fault_ctx, op->kind == DISK_READ ? 'r' : 'w',
                      op->total - op->done);
    }
    if (rv > 0) {
        op->cut = (size_t)rv;
    }
    if (rv >= 0) {
        rv = -d->backend->submit(d, op);
    }
    if (rv < 0) {
        pthread_mutex_lock(&d->lock);
        op->result = rv;
        list_push(&d->unstarted, &op->link);
        pthread_cond_signal(&d->worker_wake);
        pthread_mutex_unlock(&d->lock);
    }
}

/* Locked. The kinds take turns, so that neither waits for all of the other. */
static struct tier_req *next_request(struct disk *d, enum disk_kind *kind)
{
    struct list *item;

    *kind = d->turn;
    item = list_pop(&d->queue[*kind]);
    if (item == NULL) {
        *kind = *kind == DISK_READ ? DISK_WRITE : DISK_READ;
        item = list_pop(&d->queue[*kind]);
    }
    d->turn = *kind == DISK_READ ? DISK_WRITE : DISK_READ;
    return item == NULL ? NULL : container_of(item, struct tier_req, link);
}

/* Locked. False: it could not be begun and has gone to the worker. */
static bool begin(struct disk *d, struct disk_op *op, struct tier_req *req,
                  enum disk_kind kind)
{
    op->kind = kind;
    op->extent = req->impl;
    op->req = req;
    op->total = (size_t)disk_align(d, req->len);
    op->done = 0;
    op->tries = 0;
    op->fd = disk_fd_get(d, op->extent);
    if (op->fd >= 0) {
        return true;
    }
    op->result = op->fd;
    list_push(&d->unstarted, &op->link);
    pthread_cond_signal(&d->worker_wake);
    return false;
}

void disk_run(struct disk *d)
{
    while (!list_empty(&d->free_ops)) {
        enum disk_kind kind;
        struct tier_req *req = next_request(d, &kind);
        struct disk_op *op;

        if (req == NULL) {
            break;
        }
        op = container_of(list_pop(&d->free_ops), struct disk_op, link);
        if (begin(d, op, req, kind)) {
            pthread_mutex_unlock(&d->lock);
            issue(op);
            pthread_mutex_lock(&d->lock);
        }
    }
}

static bool is_transient(int result)
{
    /* ECANCELED: the thread that submitted has ended meanwhile, and the
     * kernel ends with it what it had not begun. */
    return result == -EINTR || result == -EAGAIN || result == -ECANCELED;
}

static enum verdict advance(struct disk_op *op, int *err)
{
    size_t before = op->done;
    int result = op->result;

    if (is_transient(result)) {
        *err = -result;
        return ++op->tries < DISK_TRIES_MAX ? OP_AGAIN : OP_FAILED;
    }
    if (result <= 0) {
        *err = result < 0 ? -result : op->kind == DISK_READ ? ENODATA : EIO;
        return OP_FAILED;
    }
    op->done += (size_t)result < op->cut ? (size_t)result : op->cut;
    assert(op->done <= op->total);
    if (op->done == op->total) {
        return OP_DONE;
    }
    if (op->disk->features.direct) {
        op->done = (size_t)disk_align_down(op->disk, op->done);
    }
    op->tries = op->done > before ? 0 : op->tries + 1;
    *err = EIO;
    return op->tries < DISK_TRIES_MAX ? OP_AGAIN : OP_FAILED;
}

/* Locked. */
static void finish(struct disk_op *op, enum verdict verdict, int err)
{
    struct disk *d = op->disk;
    struct disk_extent *x = op->extent;
    struct tier_req *req = op->req;

    if (op->fd >= 0) {
        disk_fd_put(d, x);
    }
    if (verdict == OP_FAILED) {
        disk_req_fail(d, req, err, op->kind, x);
    }
    if (op->kind == DISK_WRITE && x->doomed) {
        req->status =
            error_set(&req->error, HEDGE_ECANCELED, "the store was dropped");
    } else if (op->kind == DISK_WRITE && verdict == OP_FAILED) {
        disk_lose(d, x, req->place.addr, op->total);
    }
    disk_extent_unref(d, x);
    op->req = NULL;
    op->extent = NULL;
    list_push_front(&d->free_ops, &op->link);
}

void disk_op_end(struct disk_op *op, int result)
{
    struct disk *d = op->disk;
    enum disk_kind kind = op->kind;
    struct tier_req *req;
    enum verdict verdict;
    int err = 0;
    bool warn;

    pthread_mutex_lock(&d->lock);
    req = op->req;
    op->result = result;
    verdict = op->fd < 0 ? OP_FAILED : advance(op, &err);
    if (verdict == OP_AGAIN) {
        pthread_mutex_unlock(&d->lock);
        issue(op);
        return;
    }
    finish(op, verdict, op->fd < 0 ? -result : err);
    warn = disk_note(d, req, kind);
    disk_run(d);
    pthread_mutex_unlock(&d->lock);
    if (warn) {
        disk_warn(req);
    }
    disk_req_end(d, req);
}
