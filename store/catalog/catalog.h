/* catalog.h - the block map of a node: which blocks there are, in which order,
 * and where each one is. Kept in LMDB so that it never grows the heap; a
 * bounded table in front gathers changes into large transactions.
 *
 * Ownership: entries are values, copied in and out.
 * Threads:   any thread; one flushing thread of its own.
 * Errors:    HEDGE_ENOTFOUND, HEDGE_EIO, HEDGE_ENOSPC (the map's disk is
 *            full; nothing changed). While that lasts, changes are taken
 *            until the table in front is full, and none of those is lost.
 * Units:     bytes.
 * Limits:    CATALOG_PENDING_MAX changes wait for the flush; more block the
 *            caller until it has run. */
#ifndef STORE_CATALOG_H
#define STORE_CATALOG_H

#include "store/tier.h"

#define CATALOG_COPIES_MAX TIER_COPIES_MAX
#define CATALOG_PENDING_MAX 4096
/* The ordinal of an entry that has no place in the store's order: it is found
 * by its id alone. Other ordinals are unique within a generation. */
#define CATALOG_ORDINAL_NONE UINT64_MAX

enum catalog_where {
    CATALOG_NONE,
    CATALOG_MEMORY, /* place.addr: offset in this node's arena; place.kind: 1
                     * when it counts against the store's memory limit. */
    CATALOG_DISK,   /* This node's disk tier. */
    CATALOG_PEER,   /* place.unit: number of the node, see peer tier. */
};

struct catalog_copy {
    struct tier_place place;
    uint32_t where; /* enum catalog_where. */
    uint32_t unused;
};

struct catalog_entry {
    struct block_id id;
    uint64_t ordinal;
    uint64_t raw_sum, stored_sum;
    uint32_t raw_len, stored_len; /* Payload, without the header. */
    uint32_t records, first;
    uint16_t flags;
    uint8_t codec;
    uint8_t n_copies;
    struct catalog_copy copies[CATALOG_COPIES_MAX];
};

struct catalog;

/* `dir` is emptied first. */
int catalog_new(const char *dir, struct catalog **out, struct hedge_error *e);
void catalog_free(struct catalog *c);

/* Insert or replace; visible to all gets when it returns. */
int catalog_put(struct catalog *c, const struct catalog_entry *entry);
int catalog_get(struct catalog *c, const struct block_id *id,
                struct catalog_entry *out);
/* By position in the store's order. */
int catalog_get_ordinal(struct catalog *c, uint64_t generation,
                        uint64_t ordinal, struct catalog_entry *out);
/* Removing what is not there succeeds. */
int catalog_remove(struct catalog *c, const struct block_id *id);

/* The first entry of the generation whose ordinal is at least `ordinal`;
 * HEDGE_ENOTFOUND after the last. Entries that have been removed are passed
 * over. For walking a store. */
int catalog_next(struct catalog *c, uint64_t generation, uint64_t ordinal,
                 struct catalog_entry *out);

/* Remove all entries of a generation, in bounded transactions; meanwhile none
 * of them is found any more. Must not race puts of the same generation. */
int catalog_remove_store(struct catalog *c, uint64_t generation);

/* Wait until everything put so far is in LMDB; an error says that it is not
 * yet (and still in the table). */
int catalog_flush(struct catalog *c);

#endif
