#include "bench/lib/bare_disk.h"
#include "bench/lib/bench.h"

#include "store/base/clock.h"
#include "store/disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEPTH DISK_INFLIGHT

struct bare_disk {
    struct io_uring ring;
    char dir[4000];
    size_t block;
    unsigned n;
    unsigned char *buffers; /* DEPTH blocks. */
    int fds[BARE_DISK_FILES];
    unsigned n_files;
};

struct bare_disk *bare_disk_new(const char *dir, size_t block)
{
    struct bare_disk *b = calloc(1, sizeof *b);

    if (b == NULL) {
        bench_die("no memory");
    }
    (void)snprintf(b->dir, sizeof b->dir, "%s", dir);
    b->block = block;
    b->buffers = bench_pages(DEPTH * block);
    if (io_uring_queue_init(DEPTH, &b->ring, 0) != 0) {
        bench_die("a bare ring cannot be set up");
    }
    bench_fill(b->buffers, DEPTH * block, 1);
    return b;
}

void bare_disk_free(struct bare_disk *b)
{
    io_uring_queue_exit(&b->ring);
    free(b->buffers);
    free(b);
}

static void open_files(struct bare_disk *b)
{
    uint64_t bytes = (uint64_t)b->n * b->block;
    char path[4200];

    b->n_files = (unsigned)((bytes + DISK_EXTENT_MAX - 1) / DISK_EXTENT_MAX);
    if (b->n_files > BARE_DISK_FILES) {
        bench_die("more than %d files", BARE_DISK_FILES);
    }
    for (unsigned i = 0; i < b->n_files; i++) {
        (void)snprintf(path, sizeof path, "%s/bare-%u", b->dir, i);
        b->fds[i] = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
        if (b->fds[i] < 0 ||
            fallocate(b->fds[i], 0, 0, (off_t)DISK_EXTENT_MAX) != 0) {
            bench_die("%s: %s", path, strerror(errno));
        }
        (void)unlink(path);
    }
}

static void close_files(struct bare_disk *b)
{
    for (unsigned i = 0; i < b->n_files; i++) {
        close(b->fds[i]);
    }
}

static void submit(struct bare_disk *b, unsigned i, unsigned slot, bool write)
{
    unsigned per_file = (unsigned)(DISK_EXTENT_MAX / b->block);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring);
    void *data = b->buffers + slot * b->block;
    uint64_t at = (uint64_t)(i % per_file) * b->block;
    int fd = b->fds[i / per_file];

    if (write) {
        io_uring_prep_write(sqe, fd, data, (unsigned)b->block, at);
    } else {
        io_uring_prep_read(sqe, fd, data, (unsigned)b->block, at);
    }
    sqe->user_data = slot;
    (void)io_uring_submit(&b->ring);
}

static uint64_t pass(struct bare_disk *b, bool write)
{
    uint64_t start = clock_mono_ns();
    unsigned submitted = 0, ended = 0;

    while (ended < b->n) {
        struct io_uring_cqe *cqe;
        unsigned slot = submitted;

        if (submitted >= DEPTH || submitted == b->n) {
            if (io_uring_wait_cqe(&b->ring, &cqe) != 0 ||
                cqe->res != (int)b->block) {
                bench_die("a bare ring: a request has failed");
            }
            slot = (unsigned)cqe->user_data;
            io_uring_cqe_seen(&b->ring, cqe);
            ended++;
        }
        if (submitted < b->n) {
            submit(b, submitted++, slot, write);
        }
    }
    return clock_mono_ns() - start;
}

void bare_disk_run(struct bare_disk *b, unsigned n, uint64_t *write_ns,
                   uint64_t *read_ns)
{
    b->n = n;
    open_files(b);
    *write_ns = pass(b, true);
    *read_ns = pass(b, false);
    close_files(b);
}
