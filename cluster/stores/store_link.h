/* store_link.h - a store on another node as a sink and a source: what a client
 * writes into and reads from, block by block.
 *
 * Ownership: _open hands out a sink or source; sinks end with _close or
 *            _abort, sources with their own free. The channel is borrowed and
 *            must outlive them.
 * Threads:   as struct sink and struct source.
 * Errors:    what the far node says; HEDGE_EUNAVAILABLE when it vanishes.
 * Units:     bytes, milliseconds.
 * Limits:    STORE_LINK_WINDOW blocks are under way at a time. */
#ifndef CLUSTER_STORE_LINK_H
#define CLUSTER_STORE_LINK_H

#include "cluster/pb.h"
#include "cluster/rpc/rpc.h"
#include "store/segment.h"

#define STORE_LINK_WINDOW 8

/* Where the blocks under way are kept. */
struct block_memory {
    void *(*get)(void *ctx, size_t size); /* 64-byte aligned; NULL: none now. */
    void (*put)(void *ctx, void *block);
    void *ctx;
};

/* From the heap: what a program that is no node uses. */
const struct block_memory *block_memory_heap(void);

struct store_link_open {
    const char *name;
    const struct sos_store_options *options; /* NULL: defaults, or as it is. */
    bool append;
    bool existing;                     /* It must be there: none is made. */
    const struct block_memory *memory; /* NULL: the heap. */
};

struct store_link_opened {
    char owner[264];
    uint64_t ttl_ms;
    /* Not empty: the store is that node's, nothing was opened; dial it. */
    char redirect[264];
};

/* 0 with *out NULL and opened->redirect set: ask that node instead. */
int remote_sink_open(struct rpc_channel *c, const struct store_link_open *o,
                     uint64_t timeout_ms, struct sink **out,
                     struct store_link_opened *opened, struct hedge_error *e);
/* Commit; `claimed` is what was counted here. Frees the sink in any case.
 * *info (may be NULL) is the writer's part as the node tells it, pb_free() it;
 * it is there after HEDGE_EFULL, too. */
int remote_sink_close(struct sink *sink, const struct manifest *claimed,
                      struct manifest *out, Hedge__V1__StoreInfo **info,
                      struct hedge_error *e);
void remote_sink_abort(struct sink *sink);

struct remote_read {
    const char *name;
    bool follow, discard;
    unsigned window; /* Blocks under way; 0: STORE_LINK_WINDOW. */
};

/* `redirect` (may be NULL: the node asked is to pass the blocks on): where the
 * store is, if not there; then *out is NULL and the result 0. */
int remote_source_open(struct rpc_channel *c, const struct remote_read *o,
                       uint64_t timeout_ms, struct source **out,
                       struct store_link_opened *redirect,
                       struct hedge_error *e);

/* For a source whose segments travel on: the far node discards nothing, and
 * sends no more than its window, until the receiver's word that `n` more
 * segments have been delivered is passed on. */
void remote_source_relay(struct source *source);
void remote_source_done(struct source *source, unsigned n);

#endif
