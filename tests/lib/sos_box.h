/* sos_box.h - a struct sos in a directory of its own, small enough that every
 * tier fills within a test, and what is the same in all tests of stores.
 *
 *   struct box b;
 *   box_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 2});
 *   struct sos_store *s = box_store(&b, "x", NULL);
 *   box_write(&b, s, &shape, 1000, &manifest);     -> 0 or HEDGE_EFULL
 *   box_read(&b, s, &shape, &manifest);            everything, checked
 *   sos_store_unref(s);
 *   box_close(&b);    no file, no block, no request is left
 *
 * Ownership: the struct is the test's; box_close() ends what box_open() made.
 * Threads:   one thread opens and closes; the sos takes any.
 * Errors:    whatever a test does not ask for fails it.
 * Units:     bytes; memory in blocks of BOX_BLOCK.
 * Limits:    memory of at least 16 blocks. */
#ifndef TESTS_LIB_SOS_BOX_H
#define TESTS_LIB_SOS_BOX_H

#include "store/sos.h"
#include "tests/lib/disk_fault.h"
#include "tests/lib/fake_tier.h"
#include "tests/lib/records.h"

#include <sys/types.h>

#define BOX_BLOCK ((size_t)64 << 10)
#define BOX_PAYLOAD (BOX_BLOCK - BLOCK_HEADER_SIZE)
#define BOX_STORED 8 /* Blocks that the smallest arena stores. */

struct box_options {
    unsigned blocks;     /* Of the arena; 0: 16. */
    size_t block_size;   /* 0: BOX_BLOCK. */
    uint64_t disk;       /* Limit; 0: none. */
    unsigned nodes;      /* Fake ones; 0: no remote tier. */
    uint64_t node_limit; /* 0: 1 GiB. */
    uint64_t lend_mem, lend_disk;
    uint64_t drain_ms;
    enum disk_io io;
};

struct box {
    struct sos *sos;
    char dir[64];
    size_t block_size;
    struct disk_fault fault;
    struct fake_tier *remote;
    struct fake_tier_counts at_end; /* Of the remote tier, after close. */
    uint64_t next_generation;
    atomic_uint n_expired;
    char expired[64];
};

void box_open(struct box *b, const struct box_options *o);
/* The same, but the failure is the test's. */
int box_try_open(struct box *b, const struct box_options *o,
                 struct hedge_error *e);
void box_close(struct box *b);
/* Remove the directory of a box that did not open; fails if it held files. */
void box_clean(struct box *b);

/* A new store; `o` NULL: one copy, no limits, a TTL of an hour. */
struct sos_store *box_store(struct box *b, const char *name,
                            const struct sos_store_options *o);
struct sos_store_options box_defaults(void);

/* What became of a writer that writes `n` records and closes. */
struct box_result {
    int status;        /* Of the first call that failed. */
    int closed;        /* Of sos_sink_close(). */
    uint64_t accepted; /* Records whose write returned 0. */
    struct manifest manifest;
    struct hedge_error error; /* Of the close. */
};
struct box_result box_write(struct sos_store *store,
                            const struct record_shape *shape, uint64_t n);
/* Read it all and compare with `m` (NULL: not compared); the reader's end:
 * HEDGE_EEND or an error, whose text is in *e unless that is NULL. */
int box_read(struct sos_store *store, const struct record_shape *shape,
             const struct sos_read_options *o, const struct manifest *m,
             struct hedge_error *e);
/* box_read() that must end well. */
void box_expect(struct sos_store *store, const struct record_shape *shape,
                const struct manifest *m);
/* Wait until the arena holds no block (10 s), and the disk and remote none. */
void box_expect_empty(struct box *b);
/* Bytes of the store on a tier of this node or, NULL, all others. */
uint64_t box_used(struct sos_store *store, const char *tier);

/* Change one bit at this offset of an extent file. */
void box_flip_on_disk(struct box *b, off_t at);

struct reader *box_reader(struct sos_store *store,
                          const struct sos_read_options *o);
void box_reader_free(struct reader *r);

#endif
