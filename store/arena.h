/* arena.h - the memory tier: one mapping of the node's memory limit, cut into
 * chunks of one block each. Every byte of block data lives here: stored
 * blocks, and those being filled, leaving, arriving or being read.
 *
 * A chunk is a small buddy system of 64 KiB units, so that a short block gives
 * back what it does not use. What may be taken is decided by class: each class
 * of passing blocks has a share of the reserve that no other class, and no
 * stored block, can use up.
 *
 * Ownership: arena_alloc() hands out one reference; the last arena_unref()
 *            frees. arena_free() waits a while for the last ones: a network
 *            transport may let go of a block after its stream has ended.
 * Threads:   any thread may call everything but arena_new() and _free().
 * Errors:    NULL or false: not now. HEDGE_EINVAL for impossible options.
 * Units:     bytes; sizes are rounded up to ARENA_UNIT.
 * Limits:    at least ARENA_CHUNKS_MIN blocks; an allocation is at most one
 *            block. Bookkeeping on the heap is 1/2048 of the arena. */
#ifndef STORE_ARENA_H
#define STORE_ARENA_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARENA_UNIT ((size_t)64 << 10)
#define ARENA_CHUNKS_MIN 16

enum arena_class {
    ARENA_STORED, /* Has its home here. */
    ARENA_FILL,   /* A writer's, being filled. */
    ARENA_OUT,    /* On its way to the disk or a peer. */
    ARENA_IN,     /* Arriving from a peer. */
    ARENA_READ,   /* On its way to a reader. */
    ARENA_SERVE,  /* Read from the disk for another node. */
    ARENA_AHEAD,  /* Fetched ahead of a reader: no share, only what is spare. */
    ARENA_CLASSES,
};

struct arena_options {
    uint64_t limit;
    size_t block_size; /* A power of two times ARENA_UNIT. */
    uint64_t idle_ms;  /* Free memory goes back after this long; 0 = 10 s. */
};

struct arena_use {
    uint64_t limit;
    uint64_t reserve;
    uint64_t by_class[ARENA_CLASSES];
    uint64_t stored_free; /* What stored blocks may still take. */
    uint64_t resident;    /* Faulted in, an estimate from above. */
    bool huge_pages;
    char huge_detail[128];
};

struct arena;

int arena_new(const struct arena_options *o, struct arena **out,
              struct hedge_error *e);
void arena_free(struct arena *a);
/* How many arenas had to be left because blocks were still in use, since the
 * process began. In a test: a leak. */
unsigned arena_abandoned(void);

/* Allocate; the memory is not cleared. NULL when the class may not have it. A
 * passing block takes a whole chunk however short it is. */
void *arena_alloc(struct arena *a, enum arena_class cls, size_t size);
/* The same, waiting until it may; NULL when timeout_ms have passed. */
void *arena_alloc_wait(struct arena *a, enum arena_class cls, size_t size,
                       uint64_t timeout_ms);

/* Raise the share of a class by `n` blocks for as long as somebody needs them:
 * a writer claims the one it fills, a reader the two it reads. A claim is
 * granted only while all shares together can be met; then an allocation within
 * the share never fails. */
bool arena_claim(struct arena *a, enum arena_class cls, unsigned n);
void arena_unclaim(struct arena *a, enum arena_class cls, unsigned n);

/* Change the class of a block; false, and nothing changed, when the new class
 * may not have it. */
bool arena_move(struct arena *a, void *p, enum arena_class to);
bool arena_move_wait(struct arena *a, void *p, enum arena_class to,
                     uint64_t timeout_ms);
/* The block stays where it is although its class is a passing one, because
 * nothing else will take it: it uses up the share of its class until it is
 * freed or moved. An ARENA_FILL block is the one its writer has claimed: the
 * claim is then gone, and the result is true. */
bool arena_home(struct arena *a, void *p);
/* Is there a block of the class that will leave it? */
bool arena_passing(struct arena *a, enum arena_class cls);

/* Give back all but the first `size` bytes. Only while there is one reference
 * and nobody reads the tail, and only what is ARENA_STORED. */
void arena_shrink(struct arena *a, void *p, size_t size);
/* What the block takes up. */
size_t arena_size(struct arena *a, const void *p);

void arena_ref(struct arena *a, void *p);
void arena_unref(struct arena *a, void *p);
/* The same; if others still hold the block it counts as theirs, in class `to`,
 * where they have claimed a place for it. */
void arena_pass(struct arena *a, void *p, enum arena_class to);

/* Blocks as numbers, for the catalog. */
uint64_t arena_offset(const struct arena *a, const void *p);
void *arena_at(const struct arena *a, uint64_t offset);

void arena_use(struct arena *a, struct arena_use *out);

/* Fault in `bytes` of free memory now (benchmarks, impatient users). */
void arena_warm(struct arena *a, uint64_t bytes);

#endif
