/* disk.h - the disk tier: extent files written with io_uring and O_DIRECT,
 * and without either where the system refuses them.
 *
 * Ownership: disk_new() makes it, tier_free() ends it; it owns the directory
 *            `dir` and removes at start whatever an earlier life left there.
 * Threads:   any thread may call; callbacks run on the tier's reaping thread
 *            (or a worker of the fallback). What fails before it reaches the
 *            disk is reported from the tier's worker thread, so callbacks may
 *            run beside each other. A callback may submit and drop, and must
 *            not free the tier.
 * Errors:    as in tier.h. HEDGE_ENOSPC when a limit or the floor of free
 *            space is reached or the disk is full; HEDGE_EIO otherwise. A
 *            limit is reported by the call itself, the floor and a full disk
 *            in req->status. HEDGE_ECANCELED: the store was dropped while the
 *            put was under way. HEDGE_ENOTFOUND: no such place (any more).
 *            HEDGE_ECLOSED once tier_free() has begun.
 * Units:     bytes; every length is padded to `alignment`.
 * Limits:    DISK_INFLIGHT operations at a time; more wait in a queue. */
#ifndef STORE_DISK_H
#define STORE_DISK_H

#include "store/tier.h"

#define DISK_INFLIGHT 64
#define DISK_EXTENT_MAX ((uint64_t)256 << 20) /* Bytes of one file. */

enum disk_io { DISK_IO_AUTO, DISK_IO_URING, DISK_IO_THREADS };

struct disk_options {
    const char *dir;  /* Made with mode 0700 if it is not there. */
    uint64_t limit;   /* Bytes this tier may take. */
    uint64_t reserve; /* Floor of free space on the file system. */
    enum disk_io io;
    /* Tests: called before each read (op 'r'), write ('w'), allocation
     * ('a'); returns 0, a negative errno to fail with, or the number of bytes
     * (> 0) after which a read or write is cut short. NULL otherwise. */
    int (*fault)(void *ctx, char op, size_t len);
    void *fault_ctx;
};

#define DISK_DETAIL 320

/* What is in force, and why the better way is not. `works` is false from a read
 * or write that failed, or found the disk full (not: the limit reached), to the
 * next of its kind that did not; blocks go to the next tier meanwhile. */
struct disk_features {
    bool uring, direct, fallocate, works;
    char uring_detail[160], direct_detail[160], fallocate_detail[160];
    char works_detail[DISK_DETAIL];
    size_t alignment;
};

int disk_new(const struct disk_options *o, struct tier **out,
             struct hedge_error *e);
void disk_features(struct tier *t, struct disk_features *out);
/* What `len` bytes take on this disk. */
size_t disk_padded(struct tier *t, size_t len);

#endif
