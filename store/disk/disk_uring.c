/* The disk tier's ring: any thread submits under a lock, one thread reaps. No
 * buffers are registered: the arena gives pages back to the system, and the
 * kernel would go on using the old ones. */
#include "store/disk/disk_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>

/* Twice the operations: an entry that could not be withdrawn stays as a
 * no-operation until the kernel takes entries again. */
#define RING_ENTRIES (2 * DISK_INFLIGHT)
#define SUBMIT_TRIES 100

struct disk_ring {
    struct io_uring ring;
    pthread_mutex_t lock; /* The submission side; completions are reaped by
                           * one thread and need none. */
    pthread_t reaper;
    bool stop;
};

static int ring_flush(struct disk_ring *r)
{
    int rv = 0;

    for (unsigned i = 0; i < SUBMIT_TRIES; i++) {
        rv = io_uring_submit(&r->ring);
        if (rv >= 0) {
            return 0;
        }
        if (rv == -EAGAIN || rv == -EBUSY || rv == -ENOMEM) {
            clock_sleep_ms(1); /* Short of memory or of room to complete. */
        } else if (rv != -EINTR) {
            break;
        }
    }
    return -rv;
}

/* With r->lock. An entry that the kernel would not take cannot be taken back,
 * so it is made harmless. */
static int ring_push(struct disk_ring *r, struct io_uring_sqe *sqe, void *tag)
{
    int err;

    io_uring_sqe_set_data(sqe, tag);
    err = ring_flush(r);
    if (err != 0 && io_uring_sq_ready(&r->ring) > 0) {
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_data(sqe, NULL);
        return err;
    }
    return 0;
}

static int submit(struct disk *d, struct disk_op *op)
{
    struct disk_ring *r = d->backend_state;
    char *data = (char *)op->req->data + op->done;
    uint64_t at = op->req->place.addr + op->done;
    unsigned len = (unsigned)disk_op_len(op);
    enum disk_kind kind = op->kind;
    int fd = op->fd, err = EBUSY;
    struct io_uring_sqe *sqe;

    /* The kernel orders this too, but only we can tell the compiler. */
    atomic_store_explicit(&op->handed_over, 1, memory_order_release);
    pthread_mutex_lock(&r->lock);
    sqe = io_uring_get_sqe(&r->ring);
    if (sqe != NULL && kind == DISK_READ) {
        io_uring_prep_read(sqe, fd, data, len, at);
    } else if (sqe != NULL) {
        io_uring_prep_write(sqe, fd, data, len, at);
    }
    if (sqe != NULL) {
        err = ring_push(r, sqe, op);
    }
    pthread_mutex_unlock(&r->lock);
    return err;
}

static void reap_one(struct disk_ring *r, struct io_uring_cqe *cqe)
{
    void *tag = io_uring_cqe_get_data(cqe);
    int result = cqe->res;

    io_uring_cqe_seen(&r->ring, cqe);
    if (tag == r) {
        r->stop = true;
    } else if (tag != NULL) {
        struct disk_op *op = disk_op_of(tag);
        (void)atomic_load_explicit(&op->handed_over, memory_order_acquire);
        disk_op_end(op, result);
    }
}

static void *reap(void *arg)
{
    struct disk_ring *r = arg;
    bool told = false;

    while (!r->stop) {
        struct io_uring_cqe *cqe;
        int rv = io_uring_wait_cqe(&r->ring, &cqe);

        if (rv == 0) {
            reap_one(r, cqe);
        } else if (rv != -EINTR) {
            if (!told) {
                log_error("disk", "waiting for the ring: %s", strerror(-rv));
                told = true;
            }
            clock_sleep_ms(10);
        }
    }
    return NULL;
}

static bool can_read_and_write(struct io_uring *ring)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool able = probe != NULL &&
                io_uring_opcode_supported(probe, IORING_OP_READ) &&
                io_uring_opcode_supported(probe, IORING_OP_WRITE);

    io_uring_free_probe(probe);
    return able;
}

static int start(struct disk *d, struct hedge_error *e)
{
    struct disk_ring *r = mem_calloc(1, sizeof *r);
    int rv;

    if (r == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the ring");
    }
    rv = io_uring_queue_init(RING_ENTRIES, &r->ring, 0);
    if (rv < 0) {
        rv = error_set_errno(e, -rv, "io_uring_setup");
        goto err_free;
    }
    if (!can_read_and_write(&r->ring)) {
        rv = error_set(e, HEDGE_ENOTSUP, "this kernel's io_uring is too old");
        goto err_exit;
    }
    pthread_mutex_init(&r->lock, NULL);
    if (pthread_create(&r->reaper, NULL, reap, r) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "the ring's thread did not start");
        goto err_lock;
    }
    (void)pthread_setname_np(r->reaper, "disk-ring");
    d->backend_state = r;
    return 0;

err_lock:
    pthread_mutex_destroy(&r->lock);
err_exit:
    io_uring_queue_exit(&r->ring);
err_free:
    mem_free(r);
    assert(rv < 0);
    return rv;
}

static void stop(struct disk *d)
{
    struct disk_ring *r = d->backend_state;
    int err;

    if (r == NULL) {
        return;
    }
    do {
        struct io_uring_sqe *sqe;
        pthread_mutex_lock(&r->lock);
        sqe = io_uring_get_sqe(&r->ring);
        err = EBUSY;
        if (sqe != NULL) {
            io_uring_prep_nop(sqe);
            err = ring_push(r, sqe, r);
        } else {
            (void)ring_flush(r);
        }
        pthread_mutex_unlock(&r->lock);
    } while (err != 0);
    pthread_join(r->reaper, NULL);
    io_uring_queue_exit(&r->ring);
    pthread_mutex_destroy(&r->lock);
    mem_free(r);
    d->backend_state = NULL;
}

const struct disk_backend disk_uring = {
    .start = start,
    .submit = submit,
    .stop = stop,
};
