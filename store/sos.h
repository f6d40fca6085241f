/* sos.h - the spill-over store of one node: named stores whose blocks fill
 * memory, then disk, then other nodes.
 *
 * Ownership: sos_new() / sos_free(). Stores are reference-counted: find and
 *            create hand out a reference, sos_store_unref() gives it back.
 *            Sinks and sources hold one of their own.
 * Threads:   any thread; a sink or a source belongs to one thread at a time.
 * Errors:    hedge codes with a text for people.
 * Units:     bytes, milliseconds.
 * Limits:    WRITERS_MAX writers in the life of a store. */
#ifndef STORE_SOS_H
#define STORE_SOS_H

#include "store/arena.h"
#include "store/catalog/catalog.h"
#include "store/disk/disk.h"
#include "store/segment.h"

#define SOS_WRITERS_MAX 65536
#define SOS_REPLICAS_MAX TIER_COPIES_MAX
#define SOS_UNLIMITED UINT64_MAX

struct sos;
struct sos_store;
struct part;

struct sos_options {
    const char *node; /* This node's id, for messages and infos. */
    const char *data_dir;
    uint64_t mem_limit;
    size_t block_size;
    uint64_t disk_limit; /* 0: no disk tier. */
    uint64_t disk_reserve;
    uint64_t lend_mem, lend_disk; /* What other nodes may use. */
    uint64_t lend_lease_ms; /* As sos_lend_renew()'s, before the first of them;
                             * 0: 20 s. */
    uint64_t drain_ms; /* How long a full store waits for readers that discard,
                        * after each block; 0: 10 s. */
    enum disk_io io;
    int (*disk_fault)(void *ctx, char op, size_t len); /* Tests. */
    void *disk_fault_ctx;
    /* Called when a store's TTL has ended it, before its blocks are freed. Must
     * not call this sos. */
    void (*on_expired)(void *ctx, const char *name, uint64_t generation);
    void *on_expired_ctx;
};

int sos_new(const struct sos_options *o, struct sos **out,
            struct hedge_error *e);
/* All sinks and sources must be closed. Frees the remote tier, too. */
void sos_free(struct sos *s);
/* The node is about to stop: nobody waits for room any more, nor for a peer
 * that does not answer. NULL: nothing. */
void sos_hurry(struct sos *s);
/* Other nodes' tier; before the first store. The sos owns it from now on. */
void sos_set_remote(struct sos *s, struct tier *remote);

struct arena *sos_arena(struct sos *s);
struct tier *sos_disk(struct sos *s); /* NULL: none. */
size_t sos_block_size(const struct sos *s);

/* --- stores --------------------------------------------------------------- */

enum sos_compression {
    SOS_COMPRESS_AUTO,
    SOS_COMPRESS_NONE,
    SOS_COMPRESS_ZSTD
};

struct sos_store_options {
    uint64_t mem_limit, disk_limit; /* Per node; 0: none of its own. */
    uint64_t ttl_ms;
    unsigned replicas; /* 1: one copy. */
    enum sos_compression compression;
    int level; /* zstd's; 0: 1. */
    /* Of this node alone: in a name space of its own, found by sos_find_local()
     * and unknown to sos_find() and sos_each(); its blocks are never lent. */
    bool local;
    uint64_t closed_ttl_ms; /* Local ones: the TTL once sos_store_end() is. */
};

/* Is this what a store can be made with? HEDGE_EINVAL names what is not. */
int sos_check_options(const struct sos_store_options *o, struct hedge_error *e);

/* HEDGE_EEXISTS when the name is in use here. */
int sos_create(struct sos *s, const char *name, uint64_t generation,
               const struct sos_store_options *o, struct sos_store **out,
               struct hedge_error *e);
/* HEDGE_ENOTFOUND, or HEDGE_EEXPIRED with how long ago. */
int sos_find(struct sos *s, const char *name, struct sos_store **out,
             struct hedge_error *e);
int sos_find_local(struct sos *s, const char *name, struct sos_store **out,
                   struct hedge_error *e);
/* From now on the closed TTL counts, or this one if it is not 0. */
void sos_store_end(struct sos_store *store, uint64_t closed_ttl_ms);
/* It is in use again: the usual TTL counts. */
void sos_store_resume(struct sos_store *store);
void sos_store_unref(struct sos_store *store);
/* The name is free at once; blocks are freed in the background, readers and
 * writers get HEDGE_ENOTFOUND. */
void sos_remove(struct sos_store *store);
/* 0 when `o` asks for what the store has; HEDGE_EINVAL names a difference. */
int sos_store_matches(struct sos_store *store,
                      const struct sos_store_options *o, struct hedge_error *e);

struct sos_use {
    const char *node;
    const char *tier;
    uint64_t blocks, bytes, stored_bytes;
};

struct sos_info {
    char name[256];
    uint64_t generation;
    struct manifest manifest; /* Of open writers: what they have sealed. */
    enum store_state state;
    uint64_t expires_at_ms;    /* Wall clock; 0 while in use. */
    unsigned writers, readers; /* Open now. */
    uint32_t writers_ever;
    struct sos_store_options options;
    unsigned n_uses;
    struct sos_use *uses; /* mem_free() it. Without what is lost. */
    /* Of the blocks there are: never made, or lost with their nodes. */
    uint64_t missing_copies;
    uint64_t discarded_blocks, discarded_bytes;
};

int sos_store_info(struct sos_store *store, struct sos_info *out);
const char *sos_store_name(const struct sos_store *store);
uint64_t sos_store_generation(const struct sos_store *store);

/* Calls `fn` for every store, each with a reference for the call. HEDGE_ENOMEM:
 * for none. */
int sos_each(struct sos *s, void (*fn)(void *ctx, struct sos_store *store),
             void *ctx);

/* The same by name, for the first `max` stores behind `after` ("": for all); no
 * further when `fn` returns false. *more: there are others behind the last. */
int sos_page(struct sos *s, const char *after, unsigned max,
             bool (*fn)(void *ctx, struct sos_store *store), void *ctx,
             bool *more);

/* A node is gone: make the copies it held of blocks with replicas again. Runs
 * in the background. */
void sos_repair(struct sos *s);

/* --- writing and reading ---------------------------------------------------
 */

/* A writer of the store. HEDGE_EBUSY when no block can be had for it. */
int sos_sink_open(struct sos_store *store, struct sink **out,
                  struct hedge_error *e);
/* Wait until every block is stored where it stays. HEDGE_EFULL when one was
 * refused, or has fewer copies than wanted: not when the last ones fitted
 * nowhere but where they were, and nothing came after them. `claimed` is what
 * the other end counted (NULL: not told); a difference is HEDGE_ECORRUPT and
 * aborts. Frees the sink in any case. `out` is the writer's part. */
int sos_sink_close(struct sink *sink, const struct manifest *claimed,
                   struct manifest *out, struct hedge_error *e);
/* The same; *out is the writer's part: its manifest, and where its blocks have
 * gone. Set unless the result is an error other than HEDGE_EFULL. */
int sos_sink_commit(struct sink *sink, const struct manifest *claimed,
                    struct sos_info *out, struct hedge_error *e);
/* The writer has vanished: the store is aborted. Frees the sink. */
void sos_sink_abort(struct sink *sink);
/* Why sink->failed is set. */
void sos_sink_error(struct sink *sink, struct hedge_error *out);

struct sos_read_options {
    bool follow;  /* Wait for the last writer to close. */
    bool discard; /* Free blocks once they are delivered. */
};

/* HEDGE_EBUSY when the two blocks of a reader cannot be had. */
int sos_source_open(struct sos_store *store, const struct sos_read_options *o,
                    struct source **out, struct hedge_error *e);
/* For a source whose segments travel on: nothing is discarded by next(); the
 * receiver's word that `n` more segments are done does it. */
void sos_source_manual_discard(struct source *source);
void sos_source_done(struct source *source, unsigned n);

/* --- blocks of other nodes' stores ------------------------------------------
 */

struct sos_owner {
    const char *id;
    uint64_t incarnation;
};

struct sos_lend_req;
typedef void (*sos_lend_cb)(struct sos_lend_req *req);

/* The caller embeds it and keeps it until `cb` has run. */
struct sos_lend_req {
    struct list link; /* The caller's. */
    struct block_header header;
    void *block;    /* ARENA_IN block; after the callback it is the store's. */
    bool in_memory; /* Out: where it is. */
    int status;
    struct hedge_error error;
    sos_lend_cb cb;
    void *ctx;
    struct tier_req req; /* The store's, until the callback. */
    struct sos *sos;
    struct part *part;
};

/* Store a block for another node: here at once, or HEDGE_EREFUSED. The block
 * has been checked. 0: `cb` runs exactly once, perhaps inside the call. */
int sos_lend_put(struct sos *s, const struct sos_owner *owner,
                 const struct tier_store *store, struct sos_lend_req *req);
/* A reference to the block in the arena (arena_unref() it), read from disk if
 * it is there; its header is checked against `id`, its payload is not. `now`:
 * HEDGE_EAGAIN for one on disk. */
int sos_lend_get(struct sos *s, const struct block_id *id, bool now,
                 void **block, size_t *len, struct hedge_error *e);
/* generation 0: all of this owner's; `id` not NULL: this block only. */
void sos_lend_drop(struct sos *s, const struct sos_owner *owner,
                   uint64_t generation, const struct block_id *id);
/* This life of the owner has been heard of: what earlier ones left is dropped.
 */
void sos_lend_seen(struct sos *s, const struct sos_owner *owner);
/* The owner is alive: its blocks stay for max(lease_ms, the store's TTL) and a
 * few seconds from now. */
void sos_lend_renew(struct sos *s, const struct sos_owner *owner,
                    uint64_t lease_ms);

struct sos_usage {
    struct arena_use arena;
    struct tier_use disk;
    uint64_t mem_lent, disk_lent;
    uint64_t mem_lendable, disk_lendable; /* What others may still take. */
    unsigned stores;
};
void sos_usage(struct sos *s, struct sos_usage *out);

/* What has happened since the start, and what goes on; for operators. */
struct sos_tier_figures {
    uint64_t puts, put_bytes, gets, get_bytes, refusals, failures;
};
struct sos_figures {
    uint64_t blocks_sealed, bytes_sealed;       /* By writers, before */
    uint64_t blocks_delivered, bytes_delivered; /* compression; to readers. */
    uint64_t stores_made, stores_expired, stores_removed;
    uint64_t writers_full; /* That were told that there is no room. */
    unsigned writers, readers, parts;
    unsigned passages, passages_homeless, passages_max;
    struct sos_tier_figures disk, remote;
};
void sos_figures(struct sos *s, struct sos_figures *out);

#endif
