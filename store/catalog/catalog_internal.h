/* catalog_internal.h - the parts of the catalog among themselves: the table of
 * pending changes, the rows, and the database.
 *
 * Ownership: a table's slots are its own and valid until it is cleared.
 * Threads:   tables are guarded by the catalog's lock; the database may be
 *            read by any thread and takes one writer at a time.
 * Errors:    hedge codes, converted from LMDB's at this edge.
 * Units:     bytes.
 * Limits:    as in catalog.h. */
#ifndef STORE_CATALOG_INTERNAL_H
#define STORE_CATALOG_INTERNAL_H

#include "store/catalog/catalog.h"

/* --- rows (catalog_row.c) ---------------------------------------------------
 * All keys are big-endian, so that they sort:
 *   blocks: generation 8, writer 4, sequence 8
 *   order:  generation 8, ordinal 8     value: writer 4, sequence 8
 * An entry, little-endian:
 *    0 ordinal 8     8 raw_sum 8   16 stored_sum 8  24 raw_len 4
 *   28 stored_len 4 32 records 4   36 first 4       40 flags 2
 *   42 codec 1      43 n_copies 1
 * and for each copy addr 8, unit 4, kind 4, where 1. */

#define CATALOG_KEY_SIZE 20
#define CATALOG_ORDER_KEY_SIZE 16
#define CATALOG_ORDER_SIZE 12
#define CATALOG_ENTRY_HEAD 44
#define CATALOG_COPY_SIZE 17
#define CATALOG_ENTRY_MAX \
    (CATALOG_ENTRY_HEAD + CATALOG_COPIES_MAX * CATALOG_COPY_SIZE)

void catalog_key_encode(const struct block_id *id,
                        unsigned char out[CATALOG_KEY_SIZE]);
/* HEDGE_ECORRUPT unless the bytes are a key, an entry. */
int catalog_key_decode(const void *in, size_t len, struct block_id *out);
size_t catalog_entry_encode(const struct catalog_entry *entry,
                            unsigned char out[CATALOG_ENTRY_MAX]);
/* Everything but `id`, which is the key's. */
int catalog_entry_decode(const void *in, size_t len, struct catalog_entry *out);

/* --- the table (catalog_table.c) ------------------------------------------ */

#define CATALOG_BUCKETS ((size_t)2 * CATALOG_PENDING_MAX)

struct catalog_slot {
    struct catalog_entry entry; /* Of a removal, the id alone. */
    int next_id, next_ordinal;  /* Chains; -1 ends one. */
    bool removed;
    bool void_; /* Withdrawn: neither a put nor a removal. */
};

struct catalog_table {
    unsigned n; /* Slots taken, void ones too. */
    int by_id[CATALOG_BUCKETS], by_ordinal[CATALOG_BUCKETS];
    struct catalog_slot slots[CATALOG_PENDING_MAX];
};

void catalog_table_clear(struct catalog_table *t);
/* NULL where there is none. */
struct catalog_slot *catalog_table_find(struct catalog_table *t,
                                        const struct block_id *id);
/* Puts only. */
struct catalog_slot *catalog_table_find_ordinal(struct catalog_table *t,
                                                uint64_t generation,
                                                uint64_t ordinal);
/* Set or replace the change of a block; false when the table is full. */
bool catalog_table_put(struct catalog_table *t,
                       const struct catalog_entry *entry);
bool catalog_table_remove(struct catalog_table *t, const struct block_id *id);
/* Withdraw all changes of a generation. */
void catalog_table_forget(struct catalog_table *t, uint64_t generation);

/* --- the database (catalog_db.c) ------------------------------------------ */

struct catalog_db;

/* What the pending changes say about a block that a row names. */
enum catalog_word { CATALOG_AS_STORED, CATALOG_CHANGED, CATALOG_GONE };
typedef enum catalog_word (*catalog_ask)(void *ctx, const struct block_id *id,
                                         struct catalog_entry *out);

int catalog_db_new(const char *dir, struct catalog_db **out,
                   struct hedge_error *e);
void catalog_db_free(struct catalog_db *db);
int catalog_db_get(struct catalog_db *db, const struct block_id *id,
                   struct catalog_entry *out);
/* The first entry from `ordinal` on, or exactly there, after `ask` has had
 * its say. */
int catalog_db_seek(struct catalog_db *db, uint64_t generation,
                    uint64_t ordinal, bool exact, catalog_ask ask, void *ctx,
                    struct catalog_entry *out);
/* All changes of a table, or its removals alone, in one transaction. */
int catalog_db_apply(struct catalog_db *db, const struct catalog_table *t,
                     bool removals_only);
/* At most `max` blocks of a generation; *n is how many there were. */
int catalog_db_remove_some(struct catalog_db *db, uint64_t generation,
                           unsigned max, unsigned *n);

#endif
