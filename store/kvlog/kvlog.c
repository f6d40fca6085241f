#include "store/kvlog/kvlog_internal.h"

#include "store/base/bytes.h"
#include "store/base/units.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PURGE_BASE 16u /* Expired rows a transaction removes, beside two */
#define PURGE_EACH 2u  /* for each put. */

/* --- errors -----------------------------------------------------------------
 */

int kvlog_error(struct hedge_error *e, int rc, const char *table)
{
    int code = HEDGE_EIO;

    assert(rc != 0);
    if (rc > 0) {
        return error_set_errno(e, rc, "table %s", table);
    }
    switch (rc) {
    case MDB_NOTFOUND:
        code = HEDGE_ENOTFOUND;
        break;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INCOMPATIBLE:
        code = HEDGE_ECORRUPT;
        break;
    case MDB_MAP_FULL:
        code = HEDGE_ENOSPC;
        break;
    case MDB_TXN_FULL:
        code = HEDGE_ETOOBIG;
        break;
    case MDB_DBS_FULL:
        return error_set(e, HEDGE_EEXHAUSTED,
                         "too many groups share one engine");
    default:
        break;
    }
    return error_set(e, code, "table %s: %s", table, mdb_strerror(rc));
}

int kvlog_corrupt(struct hedge_error *e, const char *table, uint64_t revision)
{
    return error_set(e, HEDGE_ECORRUPT,
                     "table %s: the row of revision %llu is missing or does "
                     "not match its checksum",
                     table, (unsigned long long)revision);
}

/* --- tables -----------------------------------------------------------------
 */

static int open_table(MDB_txn *txn, const char *group, const char *table,
                      unsigned flags, MDB_dbi *out, struct hedge_error *e)
{
    char name[300];
    int rc;

    (void)snprintf(name, sizeof name, "%s/%s", group, table);
    rc = mdb_dbi_open(txn, name, flags, out);
    return rc != 0 ? kvlog_error(e, rc, name) : 0;
}

int kvlog_open(MDB_txn *txn, MDB_dbi meta, const char *group, bool create,
               struct kvlog *out, struct hedge_error *e)
{
    const struct {
        const char *name;
        unsigned flags;
        MDB_dbi *dbi;
    } tables[KVLOG_TABLES] = {{"log", MDB_INTEGERKEY, &out->log},
                              {"leaders", MDB_INTEGERKEY, &out->leaders},
                              {"index", 0, &out->index},
                              {"hidden", MDB_INTEGERKEY, &out->hidden},
                              {"requests", 0, &out->requests},
                              {"expiry", 0, &out->expiry}};
    int rv = 0;

    memset(out, 0, sizeof *out);
    out->meta = meta;
    (void)snprintf(out->state_key, sizeof out->state_key, "%s/state 1", group);
    (void)snprintf(out->age_key, sizeof out->age_key, "%s/age 1", group);
    for (unsigned i = 0; rv == 0 && i < KVLOG_TABLES; i++) {
        rv = open_table(txn, group, tables[i].name,
                        tables[i].flags | (create ? MDB_CREATE : 0),
                        tables[i].dbi, e);
    }
    return rv;
}

int kvlog_get_state(MDB_txn *txn, const struct kvlog *l,
                    struct kvlog_state *out, struct hedge_error *e)
{
    MDB_val key = kvlog_val(l->state_key, strlen(l->state_key)), val;
    int rc = mdb_get(txn, l->meta, &key, &val);

    memset(out, 0, sizeof *out);
    if (rc == MDB_NOTFOUND) {
        return 0;
    }
    if (rc != 0) {
        return kvlog_error(e, rc, l->state_key);
    }
    if (!kvlog_state_decode(val.mv_data, val.mv_size, out)) {
        return error_set(e, HEDGE_ECORRUPT,
                         "the row %s does not match its checksum",
                         l->state_key);
    }
    return 0;
}

int kvlog_put_state(MDB_txn *txn, const struct kvlog *l,
                    const struct kvlog_state *s, struct hedge_error *e)
{
    unsigned char data[STATE_VALUE];
    MDB_val key = kvlog_val(l->state_key, strlen(l->state_key));
    MDB_val val = kvlog_val(data, sizeof data);
    int rc;

    kvlog_state_encode(s, data);
    rc = mdb_put(txn, l->meta, &key, &val, 0);
    return rc != 0 ? kvlog_error(e, rc, l->state_key) : 0;
}

/* Rows name the token alone. */
static int put_leader(MDB_txn *txn, const struct kvlog *l,
                      const struct kvlog_writer *w, struct hedge_error *e)
{
    unsigned char row[LEADER_SUM + KVLOG_LEADER_MAX + 1];
    size_t len = kvlog_leader_encode(w->leader, row);
    MDB_val key = kvlog_val(&w->token, sizeof w->token), val;
    int rc;

    val = kvlog_val(row, len);
    rc = mdb_put(txn, l->leaders, &key, &val, 0);
    return rc != 0 ? kvlog_error(e, rc, "leaders") : 0;
}

int kvlog_check_term(MDB_txn *txn, const struct kvlog *l, struct kvlog_state *s,
                     const struct kvlog_writer *w, bool *changed,
                     struct hedge_error *e)
{
    if (w->token < s->term) {
        return error_set(e, HEDGE_EFENCED,
                         "token %llu is stale, a leader with %llu has written",
                         (unsigned long long)w->token,
                         (unsigned long long)s->term);
    }
    if (w->token == s->term) {
        return 0;
    }
    s->term = w->token;
    *changed = true;
    return put_leader(txn, l, w, e);
}

int kvlog_cursor_before(MDB_cursor *c, MDB_val *key, MDB_val *val)
{
    int rc = mdb_cursor_get(c, key, val, MDB_SET_RANGE);

    if (rc == 0 || rc == MDB_NOTFOUND) {
        rc = mdb_cursor_get(c, key, val, rc == 0 ? MDB_PREV : MDB_LAST);
    }
    return rc;
}

/* --- removing ---------------------------------------------------------------
 */

int kvlog_remove(MDB_txn *txn, const struct kvlog *l, const void *row_key,
                 size_t len, uint64_t revision, struct hedge_error *e)
{
    MDB_val by_key = kvlog_val(row_key, len);
    MDB_val by_revision = kvlog_val(&revision, sizeof revision);
    int rc = mdb_del(txn, l->index, &by_key, NULL);

    if (rc == 0 || rc == MDB_NOTFOUND) {
        rc = mdb_del(txn, l->log, &by_revision, NULL);
    }
    if (rc == 0 || rc == MDB_NOTFOUND) {
        rc = mdb_del(txn, l->hidden, &by_revision, NULL);
    }
    return rc == 0 || rc == MDB_NOTFOUND ? 0 : kvlog_error(e, rc, "log");
}

static int purge_row(MDB_txn *txn, const struct kvlog *l, const MDB_val *key,
                     const MDB_val *val, struct kvlog_state *s,
                     struct hedge_error *e)
{
    const unsigned char *k = key->mv_data;
    uint64_t by = get_be64(k + 8), revision;
    unsigned char copy[KVLOG_ROW_KEY_MAX];
    MDB_val id;
    int rc;

    if (val->mv_size > sizeof copy) {
        return kvlog_corrupt(e, "expiry", by);
    }
    memcpy(copy, val->mv_data, val->mv_size); /* It moves as rows go. */
    if (k[16] == EXPIRY_HIDDEN) {
        if (kvlog_index_split(copy, val->mv_size, &revision) == 0) {
            return kvlog_corrupt(e, "expiry", by);
        }
        s->purged = by > s->purged ? by : s->purged;
        return kvlog_remove(txn, l, copy, val->mv_size, revision, e);
    }
    id = kvlog_val(copy, val->mv_size);
    rc = mdb_del(txn, l->requests, &id, NULL);
    return rc == 0 || rc == MDB_NOTFOUND ? 0 : kvlog_error(e, rc, "requests");
}

/* What has been kept for KVLOG_KEEP_MS, up to `max` rows. */
static int purge(MDB_txn *txn, const struct kvlog *l, struct kvlog_state *s,
                 size_t max, struct hedge_error *e)
{
    MDB_cursor *c;
    MDB_val key, val;
    int rv = 0, rc = mdb_cursor_open(txn, l->expiry, &c);

    if (rc != 0) {
        return kvlog_error(e, rc, "expiry");
    }
    while (rv == 0 && max-- > 0) {
        rc = mdb_cursor_get(c, &key, &val, MDB_FIRST);
        if (rc != 0) {
            break;
        }
        if (key.mv_size != EXPIRY_KEY) {
            rv = kvlog_corrupt(e, "expiry", 0);
            break;
        }
        if (get_be64(key.mv_data) + KVLOG_KEEP_MS > s->age_ms) {
            break;
        }
        rv = purge_row(txn, l, &key, &val, s, e);
        if (rv == 0) {
            rc = mdb_cursor_del(c, 0);
        }
        if (rv == 0 && rc != 0) {
            break;
        }
    }
    mdb_cursor_close(c);
    if (rv == 0 && rc != 0 && rc != MDB_NOTFOUND) {
        rv = kvlog_error(e, rc, "expiry");
    }
    return rv;
}

static int put_expiry(MDB_txn *txn, const struct kvlog *l,
                      const struct kvlog_state *s, enum expiry_kind kind,
                      const void *data, size_t len, struct hedge_error *e)
{
    unsigned char k[EXPIRY_KEY];
    MDB_val key, val = kvlog_val(data, len);
    int rc;

    put_be64(k, s->age_ms);
    put_be64(k + 8, s->revision);
    k[16] = (unsigned char)kind;
    key = kvlog_val(k, sizeof k);
    rc = mdb_put(txn, l->expiry, &key, &val, 0);
    return rc != 0 ? kvlog_error(e, rc, "expiry") : 0;
}

/* --- replacing --------------------------------------------------------------
 */

/* Move to the last row of the key's in the index, and hand it out; `from` is
 * an index key of it with a revision above all. HEDGE_ENOTFOUND. */
static int last_of_key(MDB_cursor *c, const MDB_val *from, MDB_val *key,
                       MDB_val *val, struct hedge_error *e)
{
    int rc;

    *key = *from;
    rc = kvlog_cursor_before(c, key, val);
    if (rc == MDB_NOTFOUND || (rc == 0 && (key->mv_size != from->mv_size ||
                                           memcmp(key->mv_data, from->mv_data,
                                                  from->mv_size - 8) != 0))) {
        return HEDGE_ENOTFOUND;
    }
    return rc != 0 ? kvlog_error(e, rc, "index") : 0;
}

static int hide_row(MDB_txn *txn, const struct kvlog *l, const MDB_val *row,
                    const struct kvlog_state *s, struct hedge_error *e)
{
    unsigned char copy[KVLOG_ROW_KEY_MAX], value[INDEX_VALUE], by[8];
    size_t len = row->mv_size;
    MDB_val key, val;
    uint64_t revision;
    int rc;

    memcpy(copy, row->mv_data, len);
    (void)kvlog_index_split(copy, len, &revision);
    kvlog_index_value(copy, len, s->revision, value);
    key = kvlog_val(copy, len);
    val = kvlog_val(value, sizeof value);
    rc = mdb_put(txn, l->index, &key, &val, 0);
    if (rc == 0) {
        put_le64(by, s->revision);
        key = kvlog_val(&revision, sizeof revision);
        val = kvlog_val(by, sizeof by);
        rc = mdb_put(txn, l->hidden, &key, &val, 0);
    }
    return rc != 0 ? kvlog_error(e, rc, "hidden")
                   : put_expiry(txn, l, s, EXPIRY_HIDDEN, copy, len, e);
}

static int remove_row(MDB_txn *txn, const struct kvlog *l, const MDB_val *row,
                      struct hedge_error *e)
{
    unsigned char copy[KVLOG_ROW_KEY_MAX];
    size_t len = row->mv_size;
    uint64_t revision;

    memcpy(copy, row->mv_data, len);
    (void)kvlog_index_split(copy, len, &revision);
    return kvlog_remove(txn, l, copy, len, revision, e);
}

/* The latest visible version goes; with KVLOG_DELETE all versions. Nobody
 * reads our own keys in pages beside their writer: theirs go at once. */
static int replace(MDB_txn *txn, const struct kvlog *l,
                   const struct kvlog_put *p, const struct kvlog_state *s,
                   struct hedge_error *e)
{
    unsigned char top[KVLOG_ROW_KEY_MAX];
    MDB_val from =
        kvlog_val(top, kvlog_index_key(p->key, p->key_len, UINT64_MAX, top));
    bool at_once = kvlog_is_reserved(p->key, p->key_len);
    MDB_val key, val;
    MDB_cursor *c;
    uint64_t by;
    int rv, rc = mdb_cursor_open(txn, l->index, &c);

    if (rc != 0) {
        return kvlog_error(e, rc, "index");
    }
    rv = last_of_key(c, &from, &key, &val, e);
    while (rv == 0) {
        if (!kvlog_index_decode(&key, &val, &by)) {
            rv = kvlog_corrupt(e, "index", 0);
        } else if (at_once || (p->flags & KVLOG_DELETE) != 0) {
            rv = remove_row(txn, l, &key, e);
            if (rv == 0 && (p->flags & KVLOG_DELETE) == 0) {
                break;
            }
            rv = rv == 0 ? last_of_key(c, &from, &key, &val, e) : rv;
        } else if (by == 0) {
            rv = hide_row(txn, l, &key, s, e);
            break;
        } else { /* Hidden before: the one before it. */
            from.mv_data = memcpy(top, key.mv_data, key.mv_size);
            rv = last_of_key(c, &from, &key, &val, e);
        }
    }
    mdb_cursor_close(c);
    return rv == HEDGE_ENOTFOUND ? 0 : rv;
}

/* --- ageing -----------------------------------------------------------------
 */

/* How old the log is at this put. A writer that has waited for its turn comes
 * with a time from before; that goes back for nobody. */
static int get_age(MDB_txn *txn, const struct kvlog *l,
                   const struct kvlog_writer *w, const struct kvlog_state *s,
                   struct kvlog_age *out, struct hedge_error *e)
{
    MDB_val key = kvlog_val(l->age_key, strlen(l->age_key)), val;
    int rc = mdb_get(txn, l->meta, &key, &val);

    *out = (struct kvlog_age){.boot_ms = w->boot_ms, .boot = w->boot};
    if (rc == MDB_NOTFOUND) {
        out->age_ms = s->timestamp_ms != 0 ? s->timestamp_ms : w->wall_ms;
        return 0;
    }
    if (rc != 0) {
        return kvlog_error(e, rc, l->age_key);
    }
    if (!kvlog_age_decode(val.mv_data, val.mv_size, out)) {
        return error_set(e, HEDGE_ECORRUPT,
                         "the row %s does not match its checksum", l->age_key);
    }
    if (out->boot != w->boot) {
        out->boot = w->boot;
        out->boot_ms = w->boot_ms;
    } else if (w->boot_ms > out->boot_ms) {
        out->age_ms += w->boot_ms - out->boot_ms;
        out->boot_ms = w->boot_ms;
    }
    return 0;
}

static int put_age(MDB_txn *txn, const struct kvlog *l,
                   const struct kvlog_age *a, struct hedge_error *e)
{
    unsigned char data[AGE_VALUE];
    MDB_val key = kvlog_val(l->age_key, strlen(l->age_key));
    MDB_val val = kvlog_val(data, sizeof data);
    int rc;

    kvlog_age_encode(a, data);
    rc = mdb_put(txn, l->meta, &key, &val, 0);
    return rc != 0 ? kvlog_error(e, rc, l->age_key) : 0;
}

/* --- appending --------------------------------------------------------------
 */

static bool has_request(const struct kvlog_put *p)
{
    static const unsigned char none[KVLOG_REQUEST_SIZE];

    return memcmp(p->request, none, sizeof none) != 0;
}

static int find_request(MDB_txn *txn, const struct kvlog *l,
                        struct kvlog_put *p, struct hedge_error *e)
{
    MDB_val id = kvlog_val(p->request, sizeof p->request), val;
    int rc = mdb_get(txn, l->requests, &id, &val);

    p->repeated = rc == 0;
    if (rc == MDB_NOTFOUND) {
        return 0;
    }
    if (rc != 0) {
        return kvlog_error(e, rc, "requests");
    }
    if (!kvlog_request_decode(p->request, &val, &p->revision,
                              &p->timestamp_ms)) {
        return error_set(e, HEDGE_ECORRUPT,
                         "table requests: a row does not match its checksum");
    }
    return 0;
}

static int put_request(MDB_txn *txn, const struct kvlog *l,
                       const struct kvlog_put *p, const struct kvlog_state *s,
                       struct hedge_error *e)
{
    unsigned char value[REQUEST_VALUE];
    MDB_val id = kvlog_val(p->request, sizeof p->request);
    MDB_val val = kvlog_val(value, sizeof value);
    int rc;

    kvlog_request_encode(p->request, p->revision, p->timestamp_ms, value);
    rc = mdb_put(txn, l->requests, &id, &val, 0);
    return rc != 0 ? kvlog_error(e, rc, "requests")
                   : put_expiry(txn, l, s, EXPIRY_REQUEST, p->request,
                                sizeof p->request, e);
}

static int put_row(MDB_txn *txn, const struct kvlog *l,
                   const struct kvlog_writer *w, const struct kvlog_put *p,
                   struct hedge_error *e)
{
    uint64_t revision = p->revision;
    MDB_val key = kvlog_val(&revision, sizeof revision);
    MDB_val val = {.mv_size = kvlog_row_size(p)};
    int rc = mdb_put(txn, l->log, &key, &val, MDB_APPEND | MDB_RESERVE);

    if (rc != 0) {
        return kvlog_error(e, rc == MDB_KEYEXIST ? MDB_CORRUPTED : rc, "log");
    }
    kvlog_row_encode(p, w->token, val.mv_data);
    return 0;
}

static int check_put(const struct kvlog_put *p, struct hedge_error *e)
{
    size_t cost = kvlog_key_cost(p->key, p->key_len);
    char size[UNITS_SIZE_TEXT];

    if (p->key_len == 0 || cost > KVLOG_KEY_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "a key of %zu bytes: 1 to %u are possible, and a byte "
                         "0x00 counts twice",
                         p->key_len, KVLOG_KEY_MAX);
    }
    if (p->value_len > KVLOG_VALUE_MAX) {
        return error_set(
            e, HEDGE_ETOOBIG, "a value of %zu bytes is over the limit of %s",
            p->value_len, units_format_size(KVLOG_VALUE_MAX, size));
    }
    if ((p->flags & ~(unsigned)(KVLOG_REPLACE | KVLOG_DELETE)) != 0) {
        return error_set(e, HEDGE_EINVAL, "unknown flags 0x%x", p->flags);
    }
    return 0;
}

/* The row is in the tail, or in the index at once. */
static int index_row(MDB_txn *txn, const struct kvlog *l,
                     const struct kvlog_put *p, bool in_tail,
                     struct kvlog_state *s, struct hedge_error *e)
{
    if (in_tail) {
        s->tail_bytes += kvlog_key_cost(p->key, p->key_len) +
                         (KVLOG_ROW_KEY_MAX - KVLOG_KEY_MAX);
        return 0;
    }
    return kvlog_index_put(txn, l, p->key, p->key_len, p->revision, e);
}

static int append_one(MDB_txn *txn, const struct kvlog *l,
                      const struct kvlog_writer *w, struct kvlog_state *s,
                      struct kvlog_put *p, bool in_tail, bool *changed,
                      struct hedge_error *e)
{
    int rv = check_put(p, e);

    p->repeated = false;
    if (rv == 0 && has_request(p)) {
        rv = find_request(txn, l, p, e);
    }
    if (rv != 0 || p->repeated) {
        return rv;
    }
    *changed = true; /* So that the state is written, which knows of this: */
    if (!in_tail) {
        rv = kvlog_tail_flush(txn, l, s, e);
    }
    p->revision = ++s->revision;
    p->timestamp_ms = s->timestamp_ms;
    if (rv == 0 && p->flags != 0) {
        rv = replace(txn, l, p, s, e);
    }
    if (rv == 0 && (p->flags & KVLOG_DELETE) == 0) {
        rv = put_row(txn, l, w, p, e);
        rv = rv == 0 ? index_row(txn, l, p, in_tail, s, e) : rv;
    }
    if (rv == 0 && !in_tail) {
        s->indexed = s->revision;
    }
    if (rv == 0 && has_request(p)) {
        rv = put_request(txn, l, p, s, e);
    }
    return rv;
}

int kvlog_append(MDB_txn *txn, const struct kvlog *l,
                 const struct kvlog_writer *w, struct kvlog_put *puts, size_t n,
                 bool *changed, struct hedge_error *e)
{
    struct kvlog_age age = {.age_ms = 0};
    struct kvlog_state s;
    bool in_tail;
    int rv = kvlog_get_state(txn, l, &s, e);

    assert(strlen(w->leader) <= KVLOG_LEADER_MAX);
    *changed = false;
    if (rv == 0) {
        rv = kvlog_check_term(txn, l, &s, w, changed, e);
    }
    if (rv != 0) {
        return rv;
    }
    if (n > 0) {
        rv = get_age(txn, l, w, &s, &age, e);
        s.age_ms = age.age_ms;
    }
    if (n > 0 && w->wall_ms > s.timestamp_ms) {
        s.timestamp_ms = w->wall_ms;
    }
    in_tail = kvlog_tail_has_room(&s, puts, n);
    for (size_t i = 0; rv == 0 && i < n; i++) {
        rv = append_one(txn, l, w, &s, &puts[i], in_tail, changed, e);
    }
    if (rv == 0 && n > 0 && *changed) {
        rv = purge(txn, l, &s, PURGE_BASE + PURGE_EACH * n, e);
        rv = rv != 0 ? rv : put_age(txn, l, &age, e);
    }
    return rv == 0 && *changed ? kvlog_put_state(txn, l, &s, e) : rv;
}
