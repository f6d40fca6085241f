/* The disk tier without io_uring: a pool of threads that read and write. */
#include "store/disk/disk_internal.h"

#include "store/base/pool.h"

#include <assert.h>
#include <errno.h>
#include <unistd.h>

static void run(struct work *w)
{
    struct disk_op *op = disk_op_of(container_of(w, struct disk_op, work));
    char *data = (char *)op->req->data + op->done;
    off_t at = (off_t)(op->req->place.addr + op->done);
    size_t len = disk_op_len(op);
    ssize_t n = op->kind == DISK_READ ? pread(op->fd, data, len, at)
                                      : pwrite(op->fd, data, len, at);

    disk_op_end(op, n < 0 ? -errno : (int)n);
}

static int submit(struct disk *d, struct disk_op *op)
{
    int rv = pool_submit(d->backend_state, &op->work, run);

    assert(rv == 0);
    return 0;
}

static int start(struct disk *d, struct hedge_error *e)
{
    struct pool *p;
    int rv = pool_new(DISK_THREADS, "disk-io", &p);

    if (rv != 0) {
        return error_set(e, rv, "the threads for disk I/O did not start");
    }
    d->backend_state = p;
    return 0;
}

static void stop(struct disk *d)
{
    pool_free(d->backend_state);
    d->backend_state = NULL;
}

const struct disk_backend disk_threads = {
    .start = start,
    .submit = submit,
    .stop = stop,
};
