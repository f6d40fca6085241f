/* kvlog_read.c - readers, single rows, and the newest version of a key;
 * questions with more than one answer are kvlog_scan.c's. */
#include "store/kvlog/kvlog_internal.h"

#include <string.h>

#define CACHE_LINE 64u
#define PREFETCH_MAX 1024u

/* --- readers ----------------------------------------------------------------
 */

static int cursor_begin(MDB_txn *txn, MDB_dbi dbi, MDB_cursor **c)
{
    return *c == NULL ? mdb_cursor_open(txn, dbi, c)
                      : mdb_cursor_renew(txn, *c);
}

int kvlog_reader_begin(struct kvlog_reader *r, MDB_txn *txn,
                       const struct kvlog *l, struct hedge_error *e)
{
    int rc;

    r->txn = txn;
    rc = cursor_begin(txn, l->log, &r->log);
    if (rc == 0) {
        rc = cursor_begin(txn, l->index, &r->index);
    }
    if (rc == 0) {
        rc = cursor_begin(txn, l->hidden, &r->hidden);
    }
    if (rc != 0) {
        return kvlog_error(e, rc, "log");
    }
    if (r->txn_id == 0 || r->txn_id != mdb_txn_id(txn)) {
        r->txn_id = 0;
        rc = kvlog_get_state(txn, l, &r->state, e);
        r->txn_id = rc == 0 ? mdb_txn_id(txn) : 0;
    }
    return rc;
}

void kvlog_reader_release(struct kvlog_reader *r)
{
    MDB_cursor *cursors[] = {r->log, r->index, r->hidden};

    for (unsigned i = 0; i < 3; i++) {
        if (cursors[i] != NULL) {
            mdb_cursor_close(cursors[i]);
        }
    }
    kvlog_tail_release(&r->tail);
    memset(r, 0, sizeof *r);
}

/* --- rows -------------------------------------------------------------------
 */

void kvlog_prefetch(const MDB_val *val, ptrdiff_t ahead)
{
    uintptr_t at = (uintptr_t)val->mv_data + (uintptr_t)ahead;
    size_t n = val->mv_size < PREFETCH_MAX ? val->mv_size : PREFETCH_MAX;

    for (size_t i = 0; i < n; i += CACHE_LINE) {
        __builtin_prefetch((const void *)(at + i));
    }
}

int kvlog_row_read(const MDB_val *key, const MDB_val *val,
                   struct kvlog_row *out, struct hedge_error *e)
{
    uint64_t revision = 0;

    kvlog_prefetch(val, 0);

    if (key->mv_size == sizeof revision) {
        memcpy(&revision, key->mv_data, sizeof revision);
    }
    return kvlog_row_decode(val->mv_data, val->mv_size, revision, out)
               ? 0
               : kvlog_corrupt(e, "log", revision);
}

int kvlog_row_find(MDB_cursor *c, uint64_t revision, struct kvlog_row *out,
                   struct hedge_error *e)
{
    MDB_val key = kvlog_val(&revision, sizeof revision), val;
    int rc = mdb_cursor_get(c, &key, &val, MDB_SET_KEY);

    if (rc == MDB_NOTFOUND) {
        return kvlog_corrupt(e, "log", revision);
    }
    return rc != 0 ? kvlog_error(e, rc, "log")
                   : kvlog_row_read(&key, &val, out, e);
}

int kvlog_leader_of(MDB_txn *txn, const struct kvlog *l, uint64_t token,
                    const char **out, struct hedge_error *e)
{
    MDB_val key = kvlog_val(&token, sizeof token), val;
    int rc = mdb_get(txn, l->leaders, &key, &val);

    *out = rc == 0 ? kvlog_leader_decode(val.mv_data, val.mv_size) : NULL;
    if (*out != NULL) {
        return 0;
    }
    return rc != 0 && rc != MDB_NOTFOUND
               ? kvlog_error(e, rc, "leaders")
               : error_set(e, HEDGE_ECORRUPT,
                           "table leaders: the row of token %llu is missing "
                           "or does not match its checksum",
                           (unsigned long long)token);
}

void kvlog_to_entry(const struct kvlog_row *row, const char *leader,
                    struct kvlog_entry *out)
{
    *out = (struct kvlog_entry){.key = row->key,
                                .key_len = row->key_len,
                                .value = row->value,
                                .value_len = row->value_len,
                                .revision = row->revision,
                                .timestamp_ms = row->timestamp_ms,
                                .token = row->token,
                                .leader = leader};
}

/* --- the quick way ----------------------------------------------------------
 */

/* The newest revision of a key that is not hidden. What is in the tail is newer
 * than all of the index, and none of it is hidden. */
static int newest_of(struct kvlog_reader *r, const MDB_val *above,
                     uint64_t *revision, struct hedge_error *e)
{
    MDB_val key = *above, val;
    uint64_t hidden_by;
    int rv = kvlog_tail_read(r, e), rc;

    if (rv != 0 || kvlog_tail_newest(&r->tail, above, revision)) {
        return rv;
    }
    rc = kvlog_cursor_before(r->index, &key, &val);
    for (; rc == 0; rc = mdb_cursor_get(r->index, &key, &val, MDB_PREV)) {
        if (!kvlog_index_decode(&key, &val, &hidden_by)) {
            return kvlog_corrupt(e, "index", 0);
        }
        if (key.mv_size != above->mv_size ||
            memcmp(key.mv_data, above->mv_data, key.mv_size - 8) != 0) {
            return HEDGE_ENOTFOUND;
        }
        if (hidden_by == 0) {
            (void)kvlog_index_split(key.mv_data, key.mv_size, revision);
            return 0;
        }
    }
    return rc == MDB_NOTFOUND ? HEDGE_ENOTFOUND : kvlog_error(e, rc, "index");
}

int kvlog_latest(struct kvlog_reader *r, const struct kvlog *l, const void *key,
                 size_t key_len, kvlog_entry_fn fn, void *ctx,
                 struct hedge_error *e)
{
    unsigned char row_key[KVLOG_ROW_KEY_MAX];
    MDB_val above =
        kvlog_val(row_key, kvlog_index_key(key, key_len, UINT64_MAX, row_key));
    struct kvlog_entry entry;
    struct kvlog_row row;
    const char *leader;
    uint64_t revision = 0;
    int rv = newest_of(r, &above, &revision, e);

    rv = rv == 0 ? kvlog_row_find(r->log, revision, &row, e) : rv;
    if (rv == 0 &&
        (!kvlog_row_has_key(&row, key, key_len) || !kvlog_row_check(&row))) {
        rv = kvlog_corrupt(e, "log", revision);
    }
    if (rv == 0) {
        rv = kvlog_leader_of(r->txn, l, row.token, &leader, e);
    }
    if (rv == 0) {
        kvlog_to_entry(&row, leader, &entry);
        (void)fn(ctx, &entry);
    }
    return rv;
}
