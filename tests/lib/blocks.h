/* blocks.h - a sink that keeps what it is given on the heap, and a source that
 * plays it back: the record writer and reader without a store.
 *
 * Tests change the kept blocks between writing and reading.
 *
 * Ownership: blocks_init() / blocks_release(). The source is freed by its
 *            reader; the struct must outlive sink and source.
 * Threads:   one thread at a time.
 * Errors:    `fail_block_at` and `fail_put_at` count down, then the operation
 *            fails with HEDGE_EFULL; 0: never.
 * Units:     bytes.
 * Limits:    BLOCKS_MAX blocks. */
#ifndef TESTS_LIB_BLOCKS_H
#define TESTS_LIB_BLOCKS_H

#include "store/segment.h"

#define BLOCKS_MAX 20000

struct blocks {
    struct sink sink;
    struct source source;
    unsigned char *block[BLOCKS_MAX]; /* Header and payload. */
    unsigned n;
    struct tally tally;
    unsigned out; /* Blocks with the writer. */
    unsigned fail_block_at, fail_put_at;
    enum store_state state; /* What the source says at the end. */
    /* The source: */
    unsigned at;
    bool continues;
    bool trust; /* Says that the blocks have been verified. */
    bool freed;
};

void blocks_init(struct blocks *b, size_t block_size);
void blocks_release(struct blocks *b);
/* Start over: the source gives the first block again. */
struct source *blocks_source(struct blocks *b);
struct block_header blocks_header(const struct blocks *b, unsigned i);
/* Write the header of block `i` anew, with a right header_sum. */
void blocks_set_header(struct blocks *b, unsigned i,
                       const struct block_header *h);

#endif
