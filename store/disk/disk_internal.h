/* disk_internal.h - the parts of the disk tier among themselves.
 *
 * A request is accepted (disk.c), gets a place in an extent of its store
 * (disk_extent.c) or waits until the worker has grown one (disk_grow.c), waits
 * for one of DISK_INFLIGHT operations (disk_io.c), is carried out by a backend
 * (disk_uring.c, disk_threads.c), and ends in its callback. The worker
 * (disk_worker.c) does everything slow: it grows, punches, trims and unlinks.
 *
 * Ownership: an extent lives while a request refers to it (`refs`) or it holds
 *            live bytes; a store while it has extents or waiting puts.
 * Threads:   one lock, `disk.lock`, guards everything but the ring, which has
 *            its own (disk.lock is never held while that one is taken).
 *            "locked" at a function means: called with disk.lock held, and it
 *            is held on return; it may be let go in between where it says so.
 * Errors:    hedge codes; `err` is a positive errno.
 * Units:     bytes.
 * Limits:    as in disk.h. */
#ifndef STORE_DISK_INTERNAL_H
#define STORE_DISK_INTERNAL_H

#include "store/disk/disk.h"

#include "store/base/pool.h"

#include <pthread.h>
#include <stdatomic.h>

#define DISK_BUFFER_ALIGN 4096u /* What tier.h promises of `data`. */
#define DISK_LEN_MAX ((size_t)64 << 20)
#define DISK_GROW_MIN ((uint64_t)1 << 20)
#define DISK_GROW_STEP ((uint64_t)8 << 20)
#define DISK_FILES_OPEN_MAX 256
#define DISK_TRIES_MAX 64
#define DISK_DEAD_MAX 256
#define DISK_STORE_BUCKETS 1024
#define DISK_EXTENT_BUCKETS 4096
#define DISK_NAME_MAX 64
#define DISK_OP_MAGIC 0x646b6f70u
#define DISK_THREADS 8

/* How long dead ranges gather before they are punched, and how many bytes of
 * them do not wait; each punch stops the writes to its file for a moment. */
#define DISK_PUNCH_DELAY_MS 50
#define DISK_PUNCH_BYTES ((uint64_t)8 << 20)
#define DISK_TRIM_EVERY_MS 1000
#define DISK_FS_CACHE_MS 100
#define DISK_WARN_MS 10000 /* What goes on failing is said once in a while. */

#define DISK_NO_FALLOCATE                                                    \
    "the file system refuses fallocate: space is not set aside, and a full " \
    "disk is met only by a write"

enum disk_kind { DISK_READ, DISK_WRITE, DISK_KINDS };

/* What went wrong last, of each kind: reads, writes, and the making of room. */
#define DISK_ROOM DISK_KINDS
#define DISK_TROUBLES (DISK_KINDS + 1)

struct disk_trouble {
    bool now; /* Nothing of the kind has succeeded since. */
    uint64_t warned_ms;
    char text[DISK_DETAIL];
};

struct disk;
struct disk_extent;

/* Bytes given back inside an extent and not punched yet. */
struct disk_dead {
    uint64_t bytes, since_ms;
    unsigned n;
    struct {
        uint64_t from, to;
    } range[DISK_DEAD_MAX];
};

struct disk_store {
    struct list link; /* In its bucket; itself once it is dropped. */
    struct list grow_link;
    struct list extents;
    struct list waiting; /* Puts without a place yet. */
    uint64_t waiting_bytes;
    uint64_t generation;
    struct disk_extent *cur, *next; /* Where puts go; the one made ahead. */
    bool growing;                   /* The worker has it in hand. */
    bool ahead_failed; /* No growth ahead of need until one is needed. */
    bool dropped;      /* The worker frees it when it is done. */
};

struct disk_extent {
    struct list link;       /* In its bucket. */
    struct list store_link; /* Of its store, then of the reap list. */
    struct list idle_link;  /* Open, and no operation uses it. */
    struct list slack_link; /* May hold what it does not need. */
    struct list dead_link;  /* Has dead ranges. */
    struct disk_store *store;
    struct disk_dead *dead;
    uint64_t generation;
    uint64_t tail, allocated, live;
    uint64_t tail_seen; /* At the last look for idle slack. */
    uint32_t unit;
    int fd;
    unsigned refs; /* Requests and the worker. */
    unsigned busy; /* Those of them that use the descriptor now. */
    bool closed;   /* Nothing is added any more. */
    bool doomed;   /* Its store was dropped. */
};

/* One operation of the backend. */
struct disk_op {
    uint32_t magic;
    atomic_uint handed_over; /* Orders what was set before a submission. */
    enum disk_kind kind;
    struct list link; /* Of the free ones or the unstarted ones. */
    struct work work;
    struct disk *disk;
    struct disk_extent *extent;
    struct tier_req *req;
    int fd;
    int result;     /* Of an operation that was never started. */
    unsigned tries; /* Without progress. */
    size_t total, done;
    size_t cut; /* A test wants no more than this done at once. */
};

/* What carries operations out. The result, a byte count or a negative errno,
 * goes to disk_op_end(), never from inside submit. */
struct disk_backend {
    int (*start)(struct disk *d, struct hedge_error *e);
    /* Returns 0, or an errno; then the operation was not started. Called
     * without locks. */
    int (*submit)(struct disk *d, struct disk_op *op);
    /* Nothing is in flight any more. */
    void (*stop)(struct disk *d);
};
extern const struct disk_backend disk_uring, disk_threads;

struct disk {
    struct tier tier;
    char *dir;
    int dir_fd;
    uint64_t limit, reserve;
    int (*fault)(void *ctx, char op, size_t len);
    void *fault_ctx;
    struct disk_features features;
    const struct disk_backend *backend;
    void *backend_state;

    pthread_mutex_t lock;
    pthread_cond_t worker_wake, quiet;
    bool closing, worker_stop, worker_running;
    unsigned pending; /* Accepted requests whose callback has not returned. */
    uint64_t used;
    uint64_t slack; /* Allocated beyond the tails. */
    uint64_t fs_free, fs_free_at_ms;
    struct disk_trouble trouble[DISK_TROUBLES];
    uint32_t next_unit;
    unsigned n_open;
    struct list stores[DISK_STORE_BUCKETS];
    struct list extents[DISK_EXTENT_BUCKETS];
    struct list idle; /* Extents with a descriptor that nobody uses. */

    struct list queue[DISK_KINDS]; /* Requests that wait for an operation. */
    enum disk_kind turn;
    struct list free_ops;
    struct disk_op ops[DISK_INFLIGHT];

    /* The worker's. */
    struct list unstarted; /* Operations that failed before they began. */
    struct list refused;   /* Requests that have their status. */
    struct list grow;      /* Stores. */
    struct list reap;      /* Extents to unlink. */
    struct list dead;      /* Extents with dead ranges, oldest first. */
    struct list slacking;  /* Extents that may hold more than they need. */
    uint64_t trim_at_ms;
    bool punch_refused;
    pthread_t worker;
};

static inline struct disk *disk_of(struct tier *t)
{
    return container_of(t, struct disk, tier);
}

static inline uint64_t disk_align(const struct disk *d, uint64_t n)
{
    return (n + d->features.alignment - 1) &
           ~(uint64_t)(d->features.alignment - 1);
}

static inline uint64_t disk_align_down(const struct disk *d, uint64_t n)
{
    return n & ~(uint64_t)(d->features.alignment - 1);
}

static inline uint64_t disk_slack(const struct disk_extent *x)
{
    return x->allocated - x->tail;
}

/* Bytes to ask for now; a cut keeps to the alignment and is told exactly when
 * the operation has ended. */
static inline size_t disk_op_len(const struct disk_op *op)
{
    size_t left = op->total - op->done;

    return op->cut < left && disk_align(op->disk, op->cut) < left
               ? (size_t)disk_align(op->disk, op->cut)
               : left;
}

/* --- disk_probe.c: the directory, and what it can do --- */

/* Open and lock the directory, made if need be, and empty it of ours. */
int disk_dir_open(struct disk *d, struct hedge_error *e);
/* Fill features.direct, .fallocate and .alignment. */
int disk_probe(struct disk *d, struct hedge_error *e);
/* Choose and start the backend. */
int disk_backend_start(struct disk *d, enum disk_io io, struct hedge_error *e);

/* --- disk_extent.c: stores, extents and their bytes --- */

void disk_extent_name(uint64_t generation, uint32_t unit,
                      char out[DISK_NAME_MAX]);
bool disk_is_extent_name(const char *name);
/* Locked. NULL where there is none; with `make`, where there is no memory. */
struct disk_store *disk_store_find(struct disk *d, uint64_t generation,
                                   bool make);
struct disk_extent *disk_extent_find(struct disk *d, uint64_t generation,
                                     uint32_t unit);
/* Locked. Give a put its place, in the current extent or the one made ahead;
 * false when there is no room yet. */
bool disk_place(struct disk *d, struct disk_store *s, struct tier_req *req);
/* Is it time to make room before it is needed? */
bool disk_wants_ahead(const struct disk_store *s);
/* Locked. Ask the worker for room. */
void disk_want_room(struct disk *d, struct disk_store *s);
/* Locked. A descriptor for one operation, or a negative errno. */
int disk_fd_get(struct disk *d, struct disk_extent *x);
void disk_fd_put(struct disk *d, struct disk_extent *x);
/* Locked. Let a reference go; the last one may end extent and store. */
void disk_extent_unref(struct disk *d, struct disk_extent *x);
/* Locked. Nothing is added any more. */
void disk_extent_close(struct disk *d, struct disk_extent *x);
void disk_set_allocated(struct disk *d, struct disk_extent *x, uint64_t bytes);
/* Locked. Give back the live bytes of one block. */
void disk_lose(struct disk *d, struct disk_extent *x, uint64_t from,
               uint64_t padded);
void disk_store_drop(struct disk *d, struct disk_store *s);
/* Locked. Free the store if nothing is left of it. */
void disk_store_settle(struct disk *d, struct disk_store *s);

/* --- disk_io.c: operations --- */

/* Locked, lets go in between: start what waits while operations are free. */
void disk_run(struct disk *d);
void disk_op_end(struct disk_op *op, int result);
struct disk_op *disk_op_of(void *tag);
/* Locked. How a request has ended, for `status`. True: its text is to be logged
 * once the lock is let go. `kind` may be DISK_ROOM. */
bool disk_note(struct disk *d, const struct tier_req *req, unsigned kind);
/* Not locked. */
void disk_warn(const struct tier_req *req);
/* Not locked: the one place where callbacks are run. */
void disk_req_end(struct disk *d, struct tier_req *req);
/* Set status and text. */
void disk_req_fail(struct disk *d, struct tier_req *req, int err,
                   enum disk_kind kind, const struct disk_extent *x);

/* --- disk_grow.c --- */

/* Locked, lets go in between. */
void disk_grow(struct disk *d, struct disk_store *s);
/* Not locked. */
uint64_t disk_fs_free(const struct disk *d);

/* --- disk_worker.c --- */

int disk_worker_start(struct disk *d);
/* Finishes what it was given first. */
void disk_worker_stop(struct disk *d);
/* Locked, lets go in between: do at once all that gives space back, trimming
 * the extents of all stores but `keep`. True if there was anything. */
bool disk_reclaim(struct disk *d, const struct disk_store *keep);

#endif
