/* kvlog.h - the log's storage: a table of versions in LMDB, inside transactions
 * that the caller gives it.
 *
 * Six tables for each group. `log` holds the versions by revision, `leaders`
 * who wrote under which token, `index` finds the revisions of a key, but for
 * the last few, `hidden` names those that have been replaced for good,
 * `requests` the ids of puts that may be repeated, and `expiry` says when ids
 * and hidden versions can go. One row, the state, has the last revision and
 * time, how far the index goes, the floor of compaction, and the term: the
 * highest fencing token that has written.
 *
 * A version that is replaced stays, marked, as long as a request id does: an
 * answer that is given in pages and began before goes on to see it. Both age by
 * the time for which a machine ran between two puts, and not by the wall clock,
 * which people set.
 *
 * Ownership: transactions, keys and values are the caller's. An entry's
 *            pointers lead into the map and live as long as its transaction.
 * Threads:   as the transaction. A reader belongs to one thread at a time.
 * Errors:    HEDGE_EFENCED: a higher token has written. HEDGE_ECORRUPT: a row
 *            does not match its checksum or its place. HEDGE_EEXPIRED: the
 *            answer was compacted away. After an error in a write transaction
 *            abort it.
 * Units:     bytes, Unix time in milliseconds.
 * Limits:    KVLOG_KEY_MAX bytes a key, where a byte 0x00 counts twice;
 *            values of KVLOG_VALUE_MAX; names of leaders of KVLOG_LEADER_MAX.
 */
#ifndef STORE_KVLOG_H
#define STORE_KVLOG_H

#include "store/base/error.h"

#include <lmdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVLOG_KEY_MAX 500u
#define KVLOG_VALUE_MAX ((size_t)16 << 20)
#define KVLOG_LEADER_MAX 263u
#define KVLOG_REQUEST_SIZE 16
#define KVLOG_TABLES 6        /* Named databases a group takes. */
#define KVLOG_KEEP_MS 600000u /* Request ids, and versions that are hidden. */

/* Keys of the cluster's own: without `reserved` no query sees them. */
#define KVLOG_RESERVED_PREFIX "__hedge/"
bool kvlog_is_reserved(const void *key, size_t len);
/* Bytes it takes in a row's key. */
size_t kvlog_key_cost(const void *key, size_t len);

struct kvlog {
    MDB_dbi meta; /* The unnamed database. */
    MDB_dbi log, leaders, index, hidden, requests, expiry;
    char state_key[272], age_key[272];
};

/* Find the tables, or make them in a write transaction. HEDGE_ENOTFOUND: there
 * are none yet. The handles are good once the transaction is committed. */
int kvlog_open(MDB_txn *txn, MDB_dbi meta, const char *group, bool create,
               struct kvlog *out, struct hedge_error *e);

struct kvlog_state {
    uint64_t revision, timestamp_ms; /* The last ones. */
    uint64_t floor;    /* Versions before it may have been compacted away. */
    uint64_t floor_ms; /* The version at it was put then or before. */
    uint64_t term;     /* The highest token that has written. */
    uint64_t purged; /* Versions hidden up to this revision have been removed.*/
    uint64_t indexed;    /* Versions after it are in `log` alone, */
    uint64_t tail_bytes; /* and their rows in the index would have so many. */
    uint64_t age_ms; /* Not in its row, and known to kvlog_append() alone. */
};

int kvlog_get_state(MDB_txn *txn, const struct kvlog *l,
                    struct kvlog_state *out, struct hedge_error *e);

enum { KVLOG_REPLACE = 1, KVLOG_DELETE = 2 };

struct kvlog_put {
    const void *key;
    size_t key_len;
    const void *value;
    size_t value_len;
    unsigned flags;
    unsigned char request[KVLOG_REQUEST_SIZE]; /* Zeros: none. */
    /* Out. */
    uint64_t revision, timestamp_ms;
    bool repeated;
};

struct kvlog_writer {
    uint64_t token;
    const char *leader;
    uint64_t wall_ms;
    /* What ids and hidden versions age by: a clock that nobody sets, and which
     * life of the machine it counts. Between two lives no time passes. */
    uint64_t boot_ms, boot;
};

/* Append in order. *changed: there is something to commit. */
int kvlog_append(MDB_txn *txn, const struct kvlog *l,
                 const struct kvlog_writer *w, struct kvlog_put *puts, size_t n,
                 bool *changed, struct hedge_error *e);

/* --- reading ---------------------------------------------------------------
 */

struct kvlog_entry {
    const void *key;
    size_t key_len;
    const void *value;
    size_t value_len;
    uint64_t revision, timestamp_ms, token;
    const char *leader;
};

#define KVLOG_RESUME_MAX 528

struct kvlog_query {
    const void *key; /* This key, or with `prefix` all that begin with it. */
    size_t key_len;
    bool prefix;
    bool latest;                 /* One version per key, in order of keys. */
    bool newest;                 /* Newest first. */
    bool reserved;               /* Reserved keys too. */
    uint64_t from_revision;      /* Inclusive; 0: the first there is. */
    uint64_t at_revision;        /* Inclusive; 0: now. */
    uint64_t since_ms, until_ms; /* [since, until); 0: none. */
    uint64_t limit;              /* 0: none; counted down. */
    uint64_t snapshot; /* Out: the last revision as of the first page. */
    /* Where the last page ended; empty at first. Opaque, and checked: it may
     * come from a client. */
    unsigned char resume[KVLOG_RESUME_MAX];
    size_t resume_len;
};

/* Go on, end the page with this entry, or end it before this entry, which
 * comes again. */
enum { KVLOG_GO_ON = 0, KVLOG_END = 1, KVLOG_REFUSE = -1 };
typedef int (*kvlog_entry_fn)(void *ctx, const struct kvlog_entry *entry);

/* Rows that the index does not have yet, in its order. */
struct kvlog_tail {
    struct kvlog_tail_row {
        uint32_t at, len; /* In `keys`. */
    } * rows;
    unsigned char *keys;
    size_t n, rows_max, bytes, bytes_max;
    uint64_t after, upto; /* Whose revisions are in (after, upto]. */
};

/* Where a walk over the index and the tail is. */
struct kvlog_walk {
    bool back, in_tail;
    size_t at; /* Rows of the tail before this place. */
    int rc;    /* Of the index's cursor, */
    MDB_val key, val;
    unsigned char value[16];
};

/* A read transaction and its cursors, and what is known as of it. */
struct kvlog_reader {
    MDB_txn *txn;
    size_t txn_id; /* Of what follows; 0: of none. */
    MDB_cursor *log, *index, *hidden;
    struct kvlog_state state;
    struct kvlog_tail tail;
    struct kvlog_walk walk;
};

/* For a transaction just begun or renewed; the cursors are made the first time.
 */
int kvlog_reader_begin(struct kvlog_reader *r, MDB_txn *txn,
                       const struct kvlog *l, struct hedge_error *e);
/* Before the transaction is aborted. */
void kvlog_reader_release(struct kvlog_reader *r);

/* One page. *more: call again with the same query. */
int kvlog_scan(struct kvlog_reader *r, const struct kvlog *l,
               struct kvlog_query *q, kvlog_entry_fn fn, void *ctx, bool *more,
               struct hedge_error *e);

/* The newest version of a key, the quick way. HEDGE_ENOTFOUND, without a text.
 */
int kvlog_latest(struct kvlog_reader *r, const struct kvlog *l, const void *key,
                 size_t key_len, kvlog_entry_fn fn, void *ctx,
                 struct hedge_error *e);

/* --- compaction ------------------------------------------------------------
 */

/* A version goes when it is older than the point given, not among the newest
 * `keep` of its key, and its successor is not younger than the point: what a
 * reader as of the point can see stays. */
struct kvlog_compaction {
    uint64_t before_revision;
    uint64_t before_ms; /* 0, or the revision as of then. */
    uint64_t keep;
    /* Out: */
    uint64_t removed; /* By this step. */
    bool done;
    /* Where the next step goes on; zeros at first. */
    uint64_t point, newer, seen;
    unsigned char at[KVLOG_RESUME_MAX];
    size_t at_len;
};

/* One bounded step in a write transaction; the first one raises the floor. */
int kvlog_compact(MDB_txn *txn, const struct kvlog *l,
                  const struct kvlog_writer *w, struct kvlog_compaction *c,
                  struct hedge_error *e);

#endif
