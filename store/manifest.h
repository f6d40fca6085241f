/* manifest.h - what a writer has written or a reader has read, added up block
 * by block, so that both can be compared.
 *
 * Ownership: a struct manifest is a value; nothing to free.
 * Threads:   one thread at a time.
 * Errors:    HEDGE_EPROTO for blocks that do not follow each other.
 * Units:     bytes of records, framing excluded.
 * Limits:    none. */
#ifndef STORE_MANIFEST_H
#define STORE_MANIFEST_H

#include "store/block.h"

struct manifest {
    uint64_t records, bytes;
    struct block_digest digest;
};

void manifest_merge(struct manifest *m, const struct manifest *o);
bool manifest_equal(const struct manifest *a, const struct manifest *b);

#define TALLY_NONE UINT64_MAX

/* The running sum over one writer's blocks, in their sequence. */
struct tally {
    struct manifest all;   /* Every block so far. */
    struct manifest whole; /* Up to the last whole record's block. */
    uint64_t next_sequence;
    uint64_t open_sequence; /* Where the unfinished record starts, or NONE. */
};

void tally_init(struct tally *t);

/* The bytes in a block's raw payload of the record that goes on in the next
 * one; 0 when none does. */
uint64_t tally_unfinished(const struct block_header *h, const void *raw);
/* Add the writer's next block, of which `unfinished` bytes do not count yet. */
int tally_add(struct tally *t, const struct block_header *h,
              uint64_t unfinished, struct hedge_error *e);

/* What counts once the writer has ended: an unfinished record does not. */
struct manifest tally_result(const struct tally *t);

#endif
