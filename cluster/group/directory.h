/* directory.h - the leader's list of stores: which node owns which name.
 *
 * It is soft state: owners report their stores to each new leader, and until
 * everybody has (or has been evicted) a name that is not found may still turn
 * up, so lookups wait.
 *
 * Ownership: directory_new() / _free(). Strings are copied.
 * Threads:   any thread; waiting calls block their own caller only.
 * Errors:    as each function says.
 * Units:     milliseconds.
 * Limits:    DIRECTORY_MAX names. */
#ifndef CLUSTER_DIRECTORY_H
#define CLUSTER_DIRECTORY_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIRECTORY_MAX 1000000u
#define DIRECTORY_TOMBSTONE_MS 600000u

struct directory;

struct directory_entry {
    char owner[264];
    uint64_t incarnation;
    uint64_t generation;
    uint64_t expired_ago_ms; /* Not 0: it is gone, since so long. */
};

int directory_new(struct directory **out);
void directory_free(struct directory *d);

/* This node leads with `token` (0: no longer): start with an empty list. */
void directory_lead(struct directory *d, uint64_t token);
/* Everybody has reported. */
void directory_settle(struct directory *d, uint64_t token);

/* A new store, or (generation not 0) one that its owner has already. On 0
 * *generation is set. HEDGE_EEXISTS: *existing has who owns the name.
 * HEDGE_ENOTLEADER; HEDGE_ETIMEDOUT while not settled. */
int directory_register(struct directory *d, const char *name, const char *owner,
                       uint64_t incarnation, uint64_t *generation,
                       uint64_t timeout_ms, struct directory_entry *existing);
/* Nothing happens when the entry is another generation's. */
void directory_unregister(struct directory *d, const char *name,
                          uint64_t generation, bool expired);
/* HEDGE_ENOTFOUND; HEDGE_EEXPIRED with out->expired_ago_ms; HEDGE_ENOTLEADER;
 * HEDGE_ETIMEDOUT while not settled. */
int directory_find(struct directory *d, const char *name, uint64_t timeout_ms,
                   struct directory_entry *out);
/* A node is gone, or has come back as another incarnation. */
void directory_evict(struct directory *d, const char *owner,
                     uint64_t incarnation);

#endif
