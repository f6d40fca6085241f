/* segment.h - how blocks flow: a sink takes a writer's sealed blocks, a source
 * gives a reader the blocks to deliver. Both exist for a store on this node and
 * for one reached over the network.
 *
 * Ownership: as each operation says.
 * Threads:   one thread at a time uses a sink or a source.
 * Errors:    hedge codes; text in `e`.
 * Units:     bytes, milliseconds.
 * Limits:    one block at a time is with the caller. */
#ifndef STORE_SEGMENT_H
#define STORE_SEGMENT_H

#include "store/manifest.h"

#include <stdatomic.h>

/* --- sink ----------------------------------------------------------------- */

struct sink;

struct sink_ops {
    /* Room for one whole block, the caller's until put() or back(). Waits for
     * room: this is the back-pressure. */
    int (*block)(struct sink *s, void **block, struct hedge_error *e);
    /* Take a sealed block; its header is written. The block is the sink's
     * whatever is returned. */
    int (*put)(struct sink *s, void *block, const struct block_header *h,
               struct hedge_error *e);
    /* Return a block unused. */
    void (*back)(struct sink *s, void *block);
    /* Why `failed` is set. NULL: the sink has no more to say. */
    void (*why)(struct sink *s, struct hedge_error *out);
};

struct sink {
    const struct sink_ops *ops;
    uint64_t generation;
    uint32_t writer;
    size_t block_size;
    /* 0, or the error that ends the writer; set by the sink at any time. */
    atomic_int failed;
};

struct arena;

/* --- source --------------------------------------------------------------- */

enum store_state { STORE_OPEN, STORE_CLOSED, STORE_ABORTED };

struct segment {
    const void *payload; /* As stored; valid until the next call. */
    struct block_header header;
    uint32_t start;       /* Records that start from here on are delivered... */
    uint32_t stop;        /* ...up to here; start == stop: none of them. */
    bool continues;       /* The bytes before `first` end the record begun. */
    bool last_incomplete; /* The last record has no end: leave it out. */
    bool verified;        /* stored_sum has just been checked. */
    /* Where the block (header first) lies in an arena, so that it can be kept
     * by a reference of one's own; NULL: it cannot. */
    struct arena *arena;
    void *block;
    /* Where it came from, for messages; NULL: not known. As long-lived as the
     * source. */
    const char *store, *node, *kind;
    /* At the end of the data (next() returned HEDGE_EEND): */
    enum store_state state;
    struct manifest manifest;
    bool complete; /* The reader has seen everything the manifest counts. */
};

struct source;

struct source_ops {
    /* The next segment. HEDGE_EEND: the end, seg->state and ->manifest are
     * set. HEDGE_ETIMEDOUT: nothing yet, call again. The segment given before
     * has been delivered and may be discarded. */
    int (*next)(struct source *s, uint64_t timeout_ms, struct segment *seg,
                struct hedge_error *e);
    void (*free)(struct source *s);
};

struct source {
    const struct source_ops *ops;
    size_t block_size;
};

#endif
