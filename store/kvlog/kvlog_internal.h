/* kvlog_internal.h - rows of the log's tables, and what its files share.
 *
 * Keys that sort. A user's key is written with 0x00 as 0x00 0xff and ended by
 * 0x00 0x00, so that keys sort as their bytes do and none is the beginning of
 * another; then comes the revision, big-endian.
 *
 * A row of `log`, little-endian, by revision (MDB_INTEGERKEY):
 *    0 sum 8        XXH3 of all that follows, plus a multiple of the revision
 *    8 format 1     1
 *    9 flags 1      1: the value has a sum of its own, and is not in the first
 *   10 key_len 2
 *   12 value_len 4
 *   16 timestamp 8
 *   24 token 8
 *   32 key, value, value_sum 8 (with the flag: values over KVLOG_APART)
 * A row of `leaders`, by token: sum 8 of the rest, name, terminator. A row of
 * `index` by (key, revision): hidden_by 8 (0: visible), sum 8 (XXH3 of key and
 * hidden_by). `hidden`: revision -> hidden_by 8. `requests`: id -> revision 8,
 * timestamp 8, sum 8 (of id and both). `expiry`, by (age, revision, kind)
 * big-endian: a request id, or the key of a row of `index`. The state: eight
 * numbers of 8 and their sum; one of seven is from before the floor had a time,
 * one of five from before there was a tail. The age: its milliseconds (it began
 * with the Unix time), boot time and boot of the last put, their sum; where
 * there is none the rows of `expiry` have Unix times, and it begins with the
 * last of them.
 *
 * Ownership: see kvlog.h.
 * Threads:   see kvlog.h.
 * Errors:    see kvlog.h; decoders return false for anything else.
 * Units:     bytes.
 * Limits:    KVLOG_ROW_KEY_MAX is within LMDB's 511. */
#ifndef STORE_KVLOG_INTERNAL_H
#define STORE_KVLOG_INTERNAL_H

#include "store/kvlog/kvlog.h"

#include <string.h>

#define KVLOG_ESCAPED_MAX (KVLOG_KEY_MAX + 2)
#define KVLOG_ROW_KEY_MAX (KVLOG_ESCAPED_MAX + 8)

enum {
    ROW_SUM = 0,
    ROW_FORMAT = 8,
    ROW_FLAGS = 9,
    ROW_KEY_LEN = 10,
    ROW_VALUE_LEN = 12,
    ROW_TIMESTAMP = 16,
    ROW_TOKEN = 24,
    ROW_HEAD = 32,
    INDEX_VALUE = 16,
    REQUEST_VALUE = 24,
    EXPIRY_KEY = 17,
    STATE_VALUE = 72,
    STATE_VALUE_7 = 64,
    STATE_VALUE_5 = 48,
    AGE_VALUE = 32,
    LEADER_SUM = 8,
};
#define ROW_FORMAT_1 1
#define ROW_APART 1
/* Above that a row that is only looked at, and not asked for, need not be
 * hashed whole. */
#define KVLOG_APART 1024u

enum expiry_kind { EXPIRY_REQUEST, EXPIRY_HIDDEN };

/* --- kvlog_row.c --- */

/* Without the terminator, for prefixes. Returns the length. */
size_t kvlog_escape(const void *key, size_t len, unsigned char *out);
/* The whole key of an index row. */
size_t kvlog_index_key(const void *key, size_t len, uint64_t revision,
                       unsigned char out[KVLOG_ROW_KEY_MAX]);
/* Split one: the length of its escaped part, terminator included, or 0. */
size_t kvlog_index_split(const void *row_key, size_t len, uint64_t *revision);

/* The index row's value. */
void kvlog_index_value(const void *row_key, size_t len, uint64_t hidden_by,
                       unsigned char out[INDEX_VALUE]);
bool kvlog_index_decode(const MDB_val *key, const MDB_val *val,
                        uint64_t *hidden_by);

size_t kvlog_row_size(const struct kvlog_put *p);
void kvlog_row_encode(const struct kvlog_put *p, uint64_t token,
                      unsigned char *out);

struct kvlog_row {
    const unsigned char *key, *value; /* One behind the other. */
    size_t key_len, value_len;
    uint64_t revision, timestamp_ms, token;
    bool apart; /* The value has not been checked: kvlog_row_check(). */
};
bool kvlog_row_decode(const void *data, size_t size, uint64_t revision,
                      struct kvlog_row *out);
bool kvlog_row_check(const struct kvlog_row *row);

/* The row of a leader; NULL: it does not match its checksum. */
const char *kvlog_leader_decode(const void *data, size_t size);
size_t
kvlog_leader_encode(const char *name,
                    unsigned char out[LEADER_SUM + KVLOG_LEADER_MAX + 1]);

void kvlog_state_encode(const struct kvlog_state *s,
                        unsigned char out[STATE_VALUE]);
bool kvlog_state_decode(const void *data, size_t size, struct kvlog_state *out);

struct kvlog_age {
    uint64_t age_ms, boot_ms, boot;
};
void kvlog_age_encode(const struct kvlog_age *a, unsigned char out[AGE_VALUE]);
bool kvlog_age_decode(const void *data, size_t size, struct kvlog_age *out);

void kvlog_request_encode(const unsigned char *id, uint64_t revision,
                          uint64_t timestamp_ms,
                          unsigned char out[REQUEST_VALUE]);
bool kvlog_request_decode(const unsigned char *id, const MDB_val *val,
                          uint64_t *revision, uint64_t *timestamp_ms);

/* --- kvlog.c --- */

/* Move to the last row before a key, or with an empty table to none. */
int kvlog_cursor_before(MDB_cursor *c, MDB_val *key, MDB_val *val);
/* The hedge code of an LMDB one, with a text. */
int kvlog_error(struct hedge_error *e, int rc, const char *table);
int kvlog_corrupt(struct hedge_error *e, const char *table, uint64_t revision);
/* LMDB does not write through keys and values that go in. */
static inline MDB_val kvlog_val(const void *data, size_t len)
{
    return (MDB_val){.mv_size = len, .mv_data = (void *)(uintptr_t)data};
}
int kvlog_put_state(MDB_txn *txn, const struct kvlog *l,
                    const struct kvlog_state *s, struct hedge_error *e);
/* Compare the token with the term, and raise it. */
int kvlog_check_term(MDB_txn *txn, const struct kvlog *l, struct kvlog_state *s,
                     const struct kvlog_writer *w, bool *changed,
                     struct hedge_error *e);
/* Remove a version from `log`, `index` and `hidden`; one that is not there is
 * fine. */
int kvlog_remove(MDB_txn *txn, const struct kvlog *l, const void *row_key,
                 size_t len, uint64_t revision, struct hedge_error *e);

/* --- kvlog_tail.c --- */

/* How many versions the index may lack, and of how many bytes its rows: what a
 * reader holds in memory. Tests set the first, before there are threads: 0 and
 * every put goes into the index. */
#define KVLOG_TAIL_ROWS 2048u
#define KVLOG_TAIL_BYTES ((size_t)96 << 10)
extern unsigned kvlog_tail_rows;

/* May these be appended without going into the index? */
bool kvlog_tail_has_room(const struct kvlog_state *s,
                         const struct kvlog_put *puts, size_t n);
int kvlog_index_put(MDB_txn *txn, const struct kvlog *l, const void *user_key,
                    size_t key_len, uint64_t revision, struct hedge_error *e);
/* Put what the index lacks into it; the state is the caller's to write. */
int kvlog_tail_flush(MDB_txn *txn, const struct kvlog *l, struct kvlog_state *s,
                     struct hedge_error *e);

/* Bring the reader's tail up to its transaction: before it walks. A row that
 * is damaged or missing there is HEDGE_ECORRUPT, whatever key is asked for. */
int kvlog_tail_read(struct kvlog_reader *r, struct hedge_error *e);
void kvlog_tail_release(struct kvlog_tail *t);
/* Is the row before `above`, the key's own with a revision above all, one of
 * this key? */
bool kvlog_tail_newest(const struct kvlog_tail *t, const MDB_val *above,
                       uint64_t *revision);

/* Over the rows of index and tail, in order: begin with the first one at or
 * behind `at`, or with the last one before it; go on in that direction. They
 * return LMDB's codes; what they hand out is good until the next step. */
int kvlog_walk_from(struct kvlog_reader *r, const MDB_val *at, MDB_val *key,
                    MDB_val *val);
int kvlog_walk_before(struct kvlog_reader *r, const MDB_val *at, MDB_val *key,
                      MDB_val *val);
int kvlog_walk_on(struct kvlog_reader *r, MDB_val *key, MDB_val *val);
/* Is the row of the index that the walk has come to, if any, a sound one? It
 * need not be the one that was handed out. */
bool kvlog_walk_check(const struct kvlog_reader *r);

/* --- kvlog_read.c --- */

/* Decode a row of `log`, and find that of a revision which the index has named.
 */
int kvlog_row_read(const MDB_val *key, const MDB_val *val,
                   struct kvlog_row *out, struct hedge_error *e);
int kvlog_row_find(MDB_cursor *log, uint64_t revision, struct kvlog_row *out,
                   struct hedge_error *e);
/* Its name is good as long as the transaction. */
int kvlog_leader_of(MDB_txn *txn, const struct kvlog *l, uint64_t token,
                    const char **out, struct hedge_error *e);
void kvlog_to_entry(const struct kvlog_row *row, const char *leader,
                    struct kvlog_entry *out);
static inline bool kvlog_row_has_key(const struct kvlog_row *row,
                                     const void *key, size_t len)
{
    return row->key_len == len && memcmp(row->key, key, len) == 0;
}
/* All lines of a row at once, `ahead` of where it is: hashing them one by one
 * waits for each. */
void kvlog_prefetch(const MDB_val *val, ptrdiff_t ahead);

/* --- kvlog_scan.c --- */

/* What finding a row by its revision costs, in rows that are walked over. Tests
 * set it, before there are threads: 0 makes every prefix a rare one. */
extern unsigned kvlog_find_cost;

/* Behind all versions with a timestamp before `ms`, and not behind any other:
 * the last revision as of then is the one before it. */
int kvlog_revision_at(MDB_cursor *log, const struct kvlog_state *s, uint64_t ms,
                      uint64_t *out, struct hedge_error *e);

#endif
