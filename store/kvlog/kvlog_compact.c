/* kvlog_compact.c - removing old versions, a bounded step at a time.
 *
 * A step walks the index backwards, so that it meets a key's newest version
 * first: it counts those it keeps and knows each version's successor. */
#include "store/kvlog/kvlog_internal.h"

#include "store/base/bytes.h"

#include <string.h>

#define EXAMINED_MAX 4096u
#define REMOVED_MAX 512u

/* Both ways of giving the point become a revision: what can be seen as of it
 * stays. */
static int set_point(MDB_txn *txn, const struct kvlog *l,
                     struct kvlog_compaction *c, struct kvlog_state *s,
                     struct hedge_error *e)
{
    MDB_cursor *log;
    uint64_t at = 0;
    int rv, rc;

    if (c->before_revision > s->revision + 1) {
        return error_set(e, HEDGE_EINVAL,
                         "revision %llu is of the future: the last one is %llu",
                         (unsigned long long)c->before_revision,
                         (unsigned long long)s->revision);
    }
    c->point = c->before_revision;
    if (c->before_ms != 0) {
        rc = mdb_cursor_open(txn, l->log, &log);
        if (rc != 0) {
            return kvlog_error(e, rc, "log");
        }
        rv = kvlog_revision_at(log, s, c->before_ms, &at, e);
        mdb_cursor_close(log);
        if (rv != 0) {
            return rv;
        }
        c->point = at > 0 ? at - 1 : 0;
    }
    /* The future has no versions, and a floor there would refuse the present.
     */
    if (c->point > s->revision) {
        c->point = s->revision;
    }
    return 0;
}

/* Its row may go, and with it what says whether a time was before it. */
static int raise_floor(MDB_txn *txn, const struct kvlog *l,
                       struct kvlog_state *s, uint64_t floor,
                       struct hedge_error *e)
{
    MDB_val key = kvlog_val(&floor, sizeof floor), val;
    struct kvlog_row row = {.timestamp_ms = s->timestamp_ms};
    MDB_cursor *log;
    int rv = 0, rc = mdb_cursor_open(txn, l->log, &log);

    if (rc != 0) {
        return kvlog_error(e, rc, "log");
    }
    rc = mdb_cursor_get(log, &key, &val, MDB_SET_RANGE);
    if (rc == 0) {
        rv = kvlog_row_read(&key, &val, &row, e);
    } else if (rc != MDB_NOTFOUND) {
        rv = kvlog_error(e, rc, "log");
    }
    mdb_cursor_close(log);
    if (rv == 0) {
        s->floor = floor;
        s->floor_ms = row.timestamp_ms;
    }
    return rv;
}

static void next_key(struct kvlog_compaction *c, const MDB_val *key)
{
    size_t len = key->mv_size - 8;

    if (c->at_len != key->mv_size || memcmp(c->at, key->mv_data, len) != 0) {
        c->seen = 0;
        c->newer = UINT64_MAX;
    }
    memcpy(c->at, key->mv_data, key->mv_size);
    c->at_len = key->mv_size;
}

/* Look at one row; true: it goes. */
static bool look(struct kvlog_compaction *c, uint64_t revision)
{
    bool goes = c->seen >= c->keep && c->newer <= c->point;

    c->seen++;
    c->newer = revision;
    return goes;
}

/* The row before c->at, or the last one. */
static int step_back(MDB_cursor *index, struct kvlog_compaction *c,
                     MDB_val *key, MDB_val *val)
{
    if (c->at_len == 0) {
        return mdb_cursor_get(index, key, val, MDB_LAST);
    }
    *key = kvlog_val(c->at, c->at_len);
    return kvlog_cursor_before(index, key, val);
}

static int compact_rows(MDB_txn *txn, const struct kvlog *l, MDB_cursor *index,
                        struct kvlog_compaction *c, struct hedge_error *e)
{
    unsigned char copy[KVLOG_ROW_KEY_MAX];
    uint64_t revision = 0, hidden_by;
    MDB_val key, val;
    int rv = 0, rc = step_back(index, c, &key, &val);

    for (unsigned n = 0; rc == 0 && n < EXAMINED_MAX; n++) {
        if (!kvlog_index_decode(&key, &val, &hidden_by)) {
            return kvlog_corrupt(e, "index", 0);
        }
        next_key(c, &key);
        (void)kvlog_index_split(key.mv_data, key.mv_size, &revision);
        if (hidden_by != 0 || kvlog_is_reserved(key.mv_data, key.mv_size) ||
            !look(c, revision)) {
            rc = mdb_cursor_get(index, &key, &val, MDB_PREV);
            continue;
        }
        memcpy(copy, key.mv_data, key.mv_size);
        rv = kvlog_remove(txn, l, copy, key.mv_size, revision, e);
        if (rv != 0 || ++c->removed >= REMOVED_MAX) {
            return rv;
        }
        rc = step_back(index, c, &key, &val);
    }
    if (rc != 0 && rc != MDB_NOTFOUND) {
        return kvlog_error(e, rc, "index");
    }
    c->done = rc == MDB_NOTFOUND;
    return 0;
}

int kvlog_compact(MDB_txn *txn, const struct kvlog *l,
                  const struct kvlog_writer *w, struct kvlog_compaction *c,
                  struct hedge_error *e)
{
    struct kvlog_state s;
    bool changed = false;
    MDB_cursor *index;
    int rv = kvlog_get_state(txn, l, &s, e), rc;

    c->removed = 0;
    c->done = false;
    c->keep = c->keep > 0 ? c->keep : 1;
    rv = rv != 0 ? rv : kvlog_check_term(txn, l, &s, w, &changed, e);
    if (rv == 0 && c->at_len == 0) {
        rv = set_point(txn, l, c, &s, e);
        if (rv == 0 && c->point > s.floor) {
            rv = raise_floor(txn, l, &s, c->point, e);
            changed = true;
        }
    }
    if (rv == 0 && s.indexed < s.revision) {
        rv = kvlog_tail_flush(txn, l, &s, e);
        changed = true;
    }
    if (rv == 0 && changed) {
        rv = kvlog_put_state(txn, l, &s, e);
    }
    if (rv != 0) {
        return rv;
    }
    rc = mdb_cursor_open(txn, l->index, &index);
    if (rc != 0) {
        return kvlog_error(e, rc, "index");
    }
    rv = compact_rows(txn, l, index, c, e);
    mdb_cursor_close(index);
    return rv;
}
