/* sos_internal.h - what the files of the spill-over store share.
 *
 * Locks, in the order in which they may be taken:
 *   sos.lend_lock -> sos.lock or sos.cursors_lock -> sos_store.lock ->
 * passages.lock
 *   -> arena, catalog (leaves)
 * Callbacks of tiers take sos_store.lock and never sos.lock. */
#ifndef STORE_SOS_INTERNAL_H
#define STORE_SOS_INTERNAL_H

#include "store/encode.h"
#include "store/sos.h"

#include <pthread.h>

#define PASSAGES_MAX 256
#define EXPIRED_KEPT_MS 600000

/* What lies on one tier of one node. */
struct use {
    uint32_t where;          /* enum catalog_where. */
    struct tier_place place; /* Of another node: which and what; no address. */
    const char *node, *tier;
    uint64_t blocks, bytes, stored_bytes;
};

struct uses {
    struct use *all;
    unsigned n;
};

/* Readers that discard make room. While they are at work a block without a
 * place waits for that: it is no reason to call the cluster full. */
#define DRAIN_MS 10000 /* A reader works at its block for so long. */
/* After the last of them: until peers' figures show what has gone. */
#define DRAIN_LAST(ms) ((ms)*3 / 10)

struct drain {
    atomic_uint readers;
    atomic_uint_least64_t last_ms; /* Something was discarded; 0: never. */
};

/* What is known of each writer a store has ever had. */
struct writer_state {
    uint64_t open_sequence; /* Where its unfinished record is. */
    bool ended;             /* Closed or aborted: it stays unfinished. */
};

struct sos_store {
    struct list link; /* sos.stores */
    struct sos *sos;
    char name[UINT8_MAX + 1];
    uint64_t generation;
    struct sos_store_options options;
    struct tier_store told; /* What other nodes are told of it. */
    unsigned refs;          /* Under sos.lock. */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* Blocks, states, writers, fetches. */
    atomic_bool dead;       /* Removed or expired; no new blocks. */
    uint64_t next_ordinal;
    unsigned writers, readers; /* Open now. */
    uint32_t n_writers;        /* Ever. */
    bool aborted;
    struct writer_state *states; /* By writer. */
    uint32_t states_cap;
    struct manifest written; /* By writers that have ended. */
    struct list sinks;       /* Of those that have not. */
    uint64_t n_blocks;       /* Numbered, with their data. */
    uint64_t n_discarded, discarded_bytes;
    uint64_t mem_used, disk_used; /* On this node, padded. */
    unsigned inflight;            /* Passages. */
    struct list fetches;          /* Reads from disk and peers under way. */
    uint64_t idle_since_ms;       /* Boot time; when the last one closed. */
    bool ends;                    /* sos_store_end() */
    struct uses uses;
    struct drain drain;
};

struct tombstone {
    struct list link;
    uint64_t at_ms;
    char name[];
};

struct part; /* Blocks of another node's store, see lend.c. */

struct sos_counts {
    atomic_uint_fast64_t blocks_sealed, bytes_sealed;
    atomic_uint_fast64_t blocks_delivered, bytes_delivered;
    atomic_uint_fast64_t stores_made, stores_expired, stores_removed;
    atomic_uint_fast64_t writers_full;
};

static inline void count_add(atomic_uint_fast64_t *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

struct sos {
    char *node;
    size_t block_size;
    struct arena *arena;
    struct catalog *catalog;
    struct tier *disk;
    struct tier *remote;
    void (*on_expired)(void *ctx, const char *name, uint64_t generation);
    void *on_expired_ctx;

    pthread_mutex_t lock;
    struct list stores;     /* Named. */
    struct list doomed;     /* Removed, to be freed by the janitor. */
    struct list tombstones; /* Names that have expired. */
    unsigned n_stores;
    pthread_cond_t wake;
    bool closing;
    pthread_t janitor;
    bool janitor_runs;

    /* Dead stores that nobody refers to: the janitor is about to give their
     * room back, so a block without a place waits for it. */
    atomic_uint n_burying;

    struct drain drain; /* Of all stores. */
    uint64_t drain_ms;
    atomic_bool hurry;

    struct sos_counts counts;
    struct passages *passages; /* passage.c */
    struct encoders *encoders;
    struct meter leaving;  /* How fast blocks leave the memory here. */
    struct repair *repair; /* repair.c */

    pthread_mutex_t cursors_lock; /* cursor.c */
    struct list cursors;
    atomic_uint n_cursors;

    pthread_mutex_t lend_lock; /* lend.c */
    struct list parts;
    uint64_t lend_mem, lend_disk, mem_lent, disk_lent, lend_lease_ms;
};

/* sos.c. With store->lock held. */
void use_add(struct sos *s, struct uses *uses, const struct catalog_entry *e,
             const struct catalog_copy *copy, int sign);
/* With store->lock held: those that are not lost, for people; *copies is the
 * sum. NULL: no memory. */
struct sos_use *uses_list(struct sos *s, const struct uses *uses, unsigned *n,
                          uint64_t *copies);
/* Without locks: give one copy of a block back. */
void copy_drop(struct sos *s, const struct catalog_entry *e,
               const struct catalog_copy *copy);
size_t entry_len(const struct catalog_entry *e); /* Header and payload. */
/* Is what came back from a disk or a peer the block of this entry? */
int entry_check(struct sos *s, const struct catalog_entry *entry,
                const void *block, struct block_header *h,
                struct hedge_error *e);
void store_ref(struct sos_store *store);
/* With store->lock held: the last reader or writer may have gone. */
void store_idle_check(struct sos_store *store);
/* With store->lock held: give the copies of a block back and forget it, or, for
 * a block whose number must stay, only the copies. */
void store_discard(struct sos_store *store, const struct block_id *id,
                   bool keep_number);

/* sink.c. With store->lock held: what counts of a writer in store->sinks. */
struct manifest sink_so_far(struct list *link);

/* Something of the store was discarded, or is about to be. */
void drain_note(struct sos_store *store);

/* cursor.c. Without locks: readers give back what they have only fetched
 * ahead, because a writer finds no room. True: some is still being read and
 * may be had a moment later. */
bool cursors_reclaim(struct sos *s);
/* Without locks: arena_claim(), for which readers give back in the same way. */
bool cursors_claim(struct sos *s, enum arena_class cls, unsigned n);

/* A read under way, so that nobody discards what is being read. */
struct fetch {
    struct list link; /* sos_store.fetches */
    struct catalog_entry entry;
    struct tier_req req;
    struct sos_store *store;
    void *block; /* Arena: READ class, or a reference to a stored block. */
    unsigned copy;
    /* Those that were not there or not right. */
    struct catalog_copy tried[2 * TIER_COPIES_MAX];
    unsigned n_tried;
    bool loading, failed, used, verified;
    bool own;           /* Takes one of the blocks its reader has claimed. */
    bool discard_after; /* Asked for while loading: done by the callback. */
};

/* store->lock held. A read of the block under way that has no `discard_after`,
 * or NULL. */
struct fetch *fetch_of(struct sos_store *store, const struct block_id *id);

/* fetch.c. store->lock held: take the block where it is, or start reading it
 * into memory: spare memory, or that of a class with a share (ARENA_AHEAD: not
 * that). False: there is none now. */
bool fetch_open(struct fetch *f, const struct catalog_entry *e,
                enum arena_class reserve);
/* Without the lock: wait until the block is here and right; other copies are
 * tried in turn. */
int fetch_finish(struct fetch *f, struct hedge_error *e);
/* store->lock held; waits while the tier still writes into the block. */
void fetch_close(struct fetch *f);
/* For people: where the copy being read lies. */
void fetch_where(const struct fetch *f, const char **node, const char **kind);

/* passage.c */
struct sos_sink;
int passages_new(struct sos *s, struct passages **out);
void passages_free(struct passages *p);
/* How many are under way, and how many blocks nobody took. */
void passages_use(struct passages *p, unsigned *inflight, unsigned *homeless);
/* Is the block on its way? Then its passage owns its memory. A homeless one is
 * forgotten, because the caller is about to give the block back. */
bool passages_owns(struct sos *s, const struct block_id *id);
/* Janitor: try again what found no place. True: some of it should be tried
 * again soon. */
bool passages_retry(struct sos *s);
/* Forget the homeless blocks of a store that is being buried. */
void passages_purge(struct sos *s, struct sos_store *store);

/* repair.c */
int repair_new(struct sos *s, struct repair **out);
void repair_free(struct repair *r);

/* lend.c */
/* "memory 6.0 MiB of 6.0 MiB, disk 8.0 MiB of 8.0 MiB in use". Takes no lock of
 * the sos. */
#define ROOM_TEXT 160
char *room_text(struct sos *s, char out[ROOM_TEXT]);
void lend_init(struct sos *s);
void lend_release(struct sos *s);
void lend_expire(struct sos *s, uint64_t now_ms);
unsigned lend_parts(struct sos *s);

#endif
