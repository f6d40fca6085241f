/* kvlog_scan.c - questions to the log, answered a page at a time.
 *
 * Every question comes down to a range of revisions [from, to], fixed with the
 * first page, and one of four ways through the tables:
 *   KEY     one key: its rows of the index, then those of the log
 *   LOG     all keys, or most of them: the log itself, in order
 *   PICK    a prefix that few rows have: its rows of the index give the
 *           revisions, the lowest (or highest) of which make a page
 *   LATEST  key by key through the index
 * What has been hidden since the first page is still seen: `snapshot` is the
 * last revision as of then. */
#include "store/kvlog/kvlog_internal.h"

#include "store/base/bytes.h"
#include "store/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define EXAMINED_MAX 65536u /* Rows a page looks at. */
#define PICKED_MAX 4096u    /* Entries of a page of PICK. */
/* The next pages of the log are mostly the next ones of the file, and a
 * processor does not fetch ahead over the end of a page. */
#define PAGE ((ptrdiff_t)4096)
#define STEPS_MAX 8u /* Versions to step over before seeking. */

enum way { WAY_KEY = 1, WAY_LOG, WAY_PICK, WAY_LATEST };

/* A resume token: format 1, way 1, snapshot 8, from 8, to 8 (big-endian), and
 * for LATEST the escaped key to go on behind. */
enum { RESUME_HEAD = 26, RESUME_FORMAT = 1 };
static_assert(RESUME_HEAD + KVLOG_ESCAPED_MAX <= KVLOG_RESUME_MAX,
              "the longest key has room in a token");

struct scan {
    struct kvlog_reader *r;
    const struct kvlog *l;
    struct kvlog_query *q;
    kvlog_entry_fn fn;
    void *ctx;
    struct hedge_error *e;
    struct kvlog_state state;
    enum way way;
    uint64_t snapshot, from, to;
    size_t examined;
    bool over;      /* The page has ended before the answer has, */
    bool refused;   /* by an entry that is to come again. */
    bool hides;     /* There are hidden versions. */
    uint64_t token; /* Of the row before; 0: none. */
    const char *leader;
    uint64_t hidden, hidden_by; /* Where that cursor is; hidden 0: nowhere. */
    unsigned char prefix[KVLOG_ESCAPED_MAX + 8]; /* Escaped, no terminator. */
    size_t prefix_len;
    unsigned char after[KVLOG_ESCAPED_MAX]; /* LATEST: the last key. */
    size_t after_len;
};

unsigned kvlog_find_cost = 6;

/* --- rows -------------------------------------------------------------------
 */

/* This row is done with: the next page begins behind it. */
static void pass(struct scan *s, uint64_t revision)
{
    if (s->q->newest) {
        s->to = revision - 1;
    } else {
        s->from = revision + 1;
    }
}

/* Hand a row out: 0, or 1 when the page ends (s->over says whether there is
 * more), or an error. */
static int deliver(struct scan *s, const struct kvlog_row *row)
{
    struct kvlog_entry entry;
    int rc;

    if (!kvlog_row_check(row)) {
        return kvlog_corrupt(s->e, "log", row->revision);
    }
    if (row->token != s->token) {
        rc = kvlog_leader_of(s->r->txn, s->l, row->token, &s->leader, s->e);
        if (rc != 0) {
            return rc;
        }
        s->token = row->token;
    }
    kvlog_to_entry(row, s->leader, &entry);
    rc = s->fn(s->ctx, &entry);
    if (rc < 0) {
        s->over = s->refused = true;
        return 1;
    }
    if (s->way != WAY_LATEST) {
        pass(s, row->revision);
    }
    if (s->q->limit > 0 && --s->q->limit == 0) {
        return 1;
    }
    s->over = rc > 0;
    return rc > 0;
}

/* One more row has been looked at; true: enough for a page. */
static bool tired(struct scan *s)
{
    s->over = ++s->examined >= EXAMINED_MAX;
    return s->over;
}

static bool is_visible(const struct scan *s, uint64_t hidden_by)
{
    return hidden_by == 0 || hidden_by > s->snapshot;
}

/* --- KEY --------------------------------------------------------------------
 */

/* Does an index row belong to the key, or begin with the prefix, in question?
 */
static bool in_prefix(const struct scan *s, const MDB_val *key)
{
    return key->mv_size >= s->prefix_len &&
           memcmp(key->mv_data, s->prefix, s->prefix_len) == 0;
}

/* The escaped key and its terminator in s->prefix. */
static void whole_key(struct scan *s)
{
    unsigned char row_key[KVLOG_ROW_KEY_MAX];

    s->prefix_len = kvlog_index_key(s->q->key, s->q->key_len, 0, row_key) - 8;
    memcpy(s->prefix, row_key, s->prefix_len);
}

/* First row of the key in the range, in the direction of the query. */
static int key_seek(struct scan *s, MDB_val *key, MDB_val *val)
{
    unsigned char row[KVLOG_ROW_KEY_MAX];
    MDB_val at;

    memcpy(row, s->prefix, s->prefix_len);
    put_be64(row + s->prefix_len, s->q->newest ? s->to + 1 : s->from);
    at = kvlog_val(row, s->prefix_len + 8);
    return s->q->newest ? kvlog_walk_before(s->r, &at, key, val)
                        : kvlog_walk_from(s->r, &at, key, val);
}

static int scan_key(struct scan *s)
{
    uint64_t hidden_by, revision = 0;
    struct kvlog_row row;
    MDB_val key, val;
    int rv = 0, rc;

    whole_key(s);
    rc = key_seek(s, &key, &val);
    for (; rc == 0; rc = kvlog_walk_on(s->r, &key, &val)) {
        /* The neighbour too: it may be a damaged row of this key. */
        if (!kvlog_index_decode(&key, &val, &hidden_by)) {
            return kvlog_corrupt(s->e, "index", 0);
        }
        if (key.mv_size != s->prefix_len + 8 || !in_prefix(s, &key)) {
            return kvlog_walk_check(s->r) ? 0 : kvlog_corrupt(s->e, "index", 0);
        }
        (void)kvlog_index_split(key.mv_data, key.mv_size, &revision);
        if (revision < s->from || revision > s->to) {
            return 0;
        }
        if (is_visible(s, hidden_by)) {
            rv = kvlog_row_find(s->r->log, revision, &row, s->e);
            if (rv == 0 && !kvlog_row_has_key(&row, s->q->key, s->q->key_len)) {
                rv = kvlog_corrupt(s->e, "log", revision);
            }
            rv = rv == 0 ? deliver(s, &row) : rv;
        } else {
            pass(s, revision);
        }
        if (rv != 0 || tired(s)) {
            return rv;
        }
    }
    return rc == MDB_NOTFOUND ? 0 : kvlog_error(s->e, rc, "index");
}

/* --- LOG --------------------------------------------------------------------
 */

/* Is the revision hidden, and was it when the answer began? */
static int log_visible(struct scan *s, uint64_t revision, bool *out)
{
    MDB_val key = kvlog_val(&revision, sizeof revision), val;
    int rc;

    *out = true;
    if (!s->hides || (!s->q->newest && s->hidden > revision)) {
        return 0; /* The next one that is hidden is further on. */
    }
    if (s->hidden != revision) {
        rc = mdb_cursor_get(s->r->hidden, &key, &val, MDB_SET_RANGE);
        if (rc == MDB_NOTFOUND) {
            s->hidden = UINT64_MAX;
            return 0;
        }
        if (rc != 0) {
            return kvlog_error(s->e, rc, "hidden");
        }
        if (key.mv_size != 8 || val.mv_size != 8) {
            return kvlog_corrupt(s->e, "hidden", revision);
        }
        memcpy(&s->hidden, key.mv_data, 8);
        s->hidden_by = get_le64(val.mv_data);
    }
    *out = s->hidden != revision || is_visible(s, s->hidden_by);
    return 0;
}

static bool log_wants(const struct scan *s, const struct kvlog_row *row)
{
    const struct kvlog_query *q = s->q;

    if (!q->reserved && kvlog_is_reserved(row->key, row->key_len)) {
        return false;
    }
    return row->key_len >= q->key_len &&
           (q->key_len == 0 || memcmp(row->key, q->key, q->key_len) == 0);
}

static int log_seek(struct scan *s, MDB_val *key, MDB_val *val)
{
    uint64_t at = s->q->newest ? s->to + 1 : s->from;

    *key = kvlog_val(&at, sizeof at);
    return s->q->newest ? kvlog_cursor_before(s->r->log, key, val)
                        : mdb_cursor_get(s->r->log, key, val, MDB_SET_RANGE);
}

static int log_step(struct scan *s, const struct kvlog_row *row)
{
    bool visible = log_wants(s, row);
    int rv = visible ? log_visible(s, row->revision, &visible) : 0;

    if (rv == 0 && visible) {
        return deliver(s, row);
    }
    pass(s, row->revision);
    return rv;
}

static int scan_log(struct scan *s)
{
    MDB_cursor_op step = s->q->newest ? MDB_PREV : MDB_NEXT;
    struct kvlog_row row;
    MDB_val key, val;
    int rv, rc = log_seek(s, &key, &val);

    for (; rc == 0; rc = mdb_cursor_get(s->r->log, &key, &val, step)) {
        kvlog_prefetch(&val, s->q->newest ? -PAGE : PAGE);
        rv = kvlog_row_read(&key, &val, &row, s->e);
        if (rv == 0 && (row.revision < s->from || row.revision > s->to)) {
            return 0;
        }
        rv = rv == 0 ? log_step(s, &row) : rv;
        if (rv != 0 || tired(s)) {
            return rv;
        }
    }
    return rc == MDB_NOTFOUND ? 0 : kvlog_error(s->e, rc, "log");
}

/* --- PICK -------------------------------------------------------------------
 */

/* The `max` lowest (newest: highest) numbers seen: a heap whose root is the
 * one to go next. */
struct picks {
    uint64_t *at;
    size_t n, max;
    bool highest, dropped;
};

static bool worse(const struct picks *p, uint64_t a, uint64_t b)
{
    return p->highest ? a < b : a > b;
}

static void sift(struct picks *p, size_t i)
{
    for (;;) {
        size_t worst = i, left = 2 * i + 1;
        uint64_t t = p->at[i];

        for (size_t k = left; k < left + 2 && k < p->n; k++) {
            if (worse(p, p->at[k], p->at[worst])) {
                worst = k;
            }
        }
        if (worst == i) {
            return;
        }
        p->at[i] = p->at[worst];
        p->at[worst] = t;
        i = worst;
    }
}

static void pick(struct picks *p, uint64_t revision)
{
    if (p->n < p->max) {
        size_t i = p->n++;

        for (; i > 0 && worse(p, revision, p->at[(i - 1) / 2]);
             i = (i - 1) / 2) {
            p->at[i] = p->at[(i - 1) / 2];
        }
        p->at[i] = revision;
        return;
    }
    p->dropped = true;
    if (worse(p, p->at[0], revision)) {
        p->at[0] = revision;
        sift(p, 0);
    }
}

static int by_number(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* Is it less work to walk the whole log than to find `n` rows of it, in pages
 * that each go through the index again? */
static int is_common(struct scan *s, size_t n, bool *out)
{
    MDB_stat st;
    int rc = mdb_stat(s->r->txn, s->l->log, &st);

    if (rc != 0) {
        return kvlog_error(s->e, rc, "log");
    }
    *out = st.ms_entries <= n * (kvlog_find_cost + n / PICKED_MAX);
    return 0;
}

/* All rows of the index with the prefix; *many: there are more than a page may
 * look at, or so many that the log itself is the better way. */
static int pick_all(struct scan *s, struct picks *p, bool *many)
{
    MDB_val at = kvlog_val(s->prefix, s->prefix_len), key, val;
    uint64_t hidden_by, revision = 0;
    size_t n = 0;
    int rc = kvlog_walk_from(s->r, &at, &key, &val);

    *many = false;
    for (; rc == 0; rc = kvlog_walk_on(s->r, &key, &val)) {
        if (!kvlog_index_decode(&key, &val, &hidden_by)) {
            return kvlog_corrupt(s->e, "index", 0);
        }
        if (!in_prefix(s, &key)) {
            break;
        }
        if (++n > EXAMINED_MAX) {
            *many = true;
            return 0;
        }
        (void)kvlog_index_split(key.mv_data, key.mv_size, &revision);
        if (revision >= s->from && revision <= s->to &&
            is_visible(s, hidden_by) &&
            (s->q->reserved || !kvlog_is_reserved(key.mv_data, key.mv_size))) {
            pick(p, revision);
        }
    }
    if (rc != 0 && rc != MDB_NOTFOUND) {
        return kvlog_error(s->e, rc, "index");
    }
    return s->q->resume_len == 0 ? is_common(s, n, many) : 0;
}

static int deliver_picks(struct scan *s, struct picks *p)
{
    struct kvlog_row row;
    int rv = 0;

    qsort(p->at, p->n, sizeof *p->at, by_number);
    for (size_t i = 0; rv == 0 && i < p->n; i++) {
        uint64_t revision = p->at[s->q->newest ? p->n - 1 - i : i];

        rv = kvlog_row_find(s->r->log, revision, &row, s->e);
        if (rv == 0 && (row.key_len < s->q->key_len ||
                        memcmp(row.key, s->q->key, s->q->key_len) != 0)) {
            rv = kvlog_corrupt(s->e, "log", revision);
        }
        rv = rv == 0 ? deliver(s, &row) : rv;
    }
    if (rv == 0) {
        s->over = p->dropped;
    }
    return rv;
}

/* A page of PICK, or of LOG when the prefix is a common one; with the first
 * page that is settled. */
static int scan_pick(struct scan *s)
{
    struct picks p = {.max = PICKED_MAX, .highest = s->q->newest};
    bool many;
    int rv;

    if (s->q->limit > 0 && s->q->limit < p.max) {
        p.max = s->q->limit;
    }
    s->prefix_len = kvlog_escape(s->q->key, s->q->key_len, s->prefix);
    p.at = mem_alloc(p.max * sizeof *p.at);
    if (p.at == NULL) {
        return error_set(s->e, HEDGE_ENOMEM, "no memory for a page");
    }
    rv = pick_all(s, &p, &many);
    if (rv == 0 && !many) {
        rv = deliver_picks(s, &p);
    }
    mem_free(p.at);
    if (rv == 0 && many) {
        s->way = WAY_LOG;
        rv = scan_log(s);
    }
    return rv;
}

/* --- LATEST -----------------------------------------------------------------
 */

/* One key's rows in the index: its escaped key, and the newest revision of it
 * that is visible and in the range; 0: none. */
struct group {
    unsigned char key[KVLOG_ROW_KEY_MAX];
    size_t len;
    uint64_t revision;
};

static bool in_group(const struct group *g, const MDB_val *key)
{
    return key->mv_size == g->len + 8 &&
           memcmp(key->mv_data, g->key, g->len) == 0;
}

/* A place among the group's rows; good until the next call. */
static MDB_val group_at(struct group *g, uint64_t revision)
{
    put_be64(g->key + g->len, revision);
    return kvlog_val(g->key, g->len + 8);
}

static int group_look(struct scan *s, struct group *g, const MDB_val *key,
                      const MDB_val *val, bool *found)
{
    uint64_t revision = 0, hidden_by;

    *found = false;
    if (!kvlog_index_decode(key, val, &hidden_by)) {
        return kvlog_corrupt(s->e, "index", 0);
    }
    (void)kvlog_index_split(key->mv_data, key->mv_size, &revision);
    if (revision <= s->to && is_visible(s, hidden_by)) {
        g->revision = revision;
        *found = true;
    }
    return 0;
}

/* Backwards from the end of the range: for keys with many versions. */
static int group_newest(struct scan *s, struct group *g)
{
    MDB_val at = group_at(g, s->to + 1), key, val;
    bool found = false;
    int rv = 0, rc = kvlog_walk_before(s->r, &at, &key, &val);

    g->revision = 0;
    while (rc == 0 && rv == 0 && !found && in_group(g, &key)) {
        rv = group_look(s, g, &key, &val, &found);
        rc = kvlog_walk_on(s->r, &key, &val);
    }
    if (rc != 0 && rc != MDB_NOTFOUND) {
        return kvlog_error(s->e, rc, "index");
    }
    return rv;
}

/* The walk is on the first row of a key; leave it on that of the next one,
 * `*rc` as LMDB gave it. */
static int group_read(struct scan *s, struct group *g, MDB_val *key,
                      MDB_val *val, int *rc)
{
    unsigned steps = 0;
    bool found;
    int rv = 0;

    g->len = key->mv_size - 8;
    g->revision = 0;
    memcpy(g->key, key->mv_data, g->len);
    while (rv == 0 && *rc == 0 && in_group(g, key) && steps++ < STEPS_MAX) {
        rv = group_look(s, g, key, val, &found);
        *rc = kvlog_walk_on(s->r, key, val);
    }
    if (rv == 0 && *rc == 0 && in_group(g, key)) {
        rv = group_newest(s, g);
        if (rv == 0) {
            MDB_val at = group_at(g, UINT64_MAX);

            *rc = kvlog_walk_from(s->r, &at, key, val);
        }
    }
    return rv;
}

static int latest_deliver(struct scan *s, const struct group *g)
{
    struct kvlog_row row;
    int rv = kvlog_row_find(s->r->log, g->revision, &row, s->e);

    if (rv == 0 && !s->q->reserved && kvlog_is_reserved(row.key, row.key_len)) {
        return 0;
    }
    return rv == 0 ? deliver(s, &row) : rv;
}

static int latest_seek(struct scan *s, MDB_val *key, MDB_val *val)
{
    struct group g = {.len = s->after_len};
    uint64_t first = 0;
    MDB_val at = s->prefix_len > 0 ? kvlog_val(s->prefix, s->prefix_len)
                                   : kvlog_val(&first, 1);

    if (s->after_len > 0) {
        memcpy(g.key, s->after, s->after_len);
        at = group_at(&g, UINT64_MAX);
    }
    return kvlog_walk_from(s->r, &at, key, val);
}

static int scan_latest(struct scan *s)
{
    struct group g;
    MDB_val key, val;
    uint64_t revision;
    int rc, rv = 0;

    s->prefix_len = kvlog_escape(s->q->key, s->q->key_len, s->prefix);
    if (!s->q->prefix && s->q->key_len > 0) {
        whole_key(s);
    }
    rc = latest_seek(s, &key, &val);
    while (rv == 0 && rc == 0 && in_prefix(s, &key)) {
        if (kvlog_index_split(key.mv_data, key.mv_size, &revision) == 0) {
            return kvlog_corrupt(s->e, "index", 0);
        }
        rv = group_read(s, &g, &key, &val, &rc);
        if (rv == 0 && g.revision >= s->from && g.revision != 0) {
            rv = latest_deliver(s, &g);
        }
        if (rv >= 0 && !s->refused) {
            memcpy(s->after, g.key, g.len);
            s->after_len = g.len;
        }
        if (rv == 0 && tired(s)) {
            return 0;
        }
    }
    if (rv == 0 && rc != 0 && rc != MDB_NOTFOUND) {
        rv = kvlog_error(s->e, rc, "index");
    }
    return rv;
}

/* --- the range --------------------------------------------------------------
 */

/* The timestamp and revision of the first row at or behind a revision. */
static int probe(MDB_cursor *log, uint64_t at, struct kvlog_row *out,
                 struct hedge_error *e)
{
    MDB_val key = kvlog_val(&at, sizeof at), val;
    int rc = mdb_cursor_get(log, &key, &val, MDB_SET_RANGE);

    if (rc == MDB_NOTFOUND) {
        return HEDGE_ENOTFOUND;
    }
    return rc != 0 ? kvlog_error(e, rc, "log")
                   : kvlog_row_read(&key, &val, out, e);
}

int kvlog_revision_at(MDB_cursor *log, const struct kvlog_state *s, uint64_t ms,
                      uint64_t *out, struct hedge_error *e)
{
    uint64_t low = 0, high = s->revision + 1;
    struct kvlog_row row;
    int rv;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        rv = probe(log, middle, &row, e);
        if (rv != 0 && rv != HEDGE_ENOTFOUND) {
            return rv;
        }
        if (rv == HEDGE_ENOTFOUND || row.timestamp_ms >= ms) {
            high = middle;
        } else {
            low = row.revision + 1;
        }
    }
    /* The rows from the floor on may all have been replaced and removed. */
    if (low <= s->floor && ms > s->floor_ms) {
        low = s->floor + 1;
    }
    *out = low; /* The row is there or behind it. */
    return 0;
}

static int expired(struct scan *s, const char *what, uint64_t revision)
{
    return error_set(s->e, HEDGE_EEXPIRED,
                     "%s %llu has been compacted away; the oldest revision is "
                     "%llu",
                     what, (unsigned long long)revision,
                     (unsigned long long)s->state.floor);
}

/* The last revision that is asked for, on whatever page of the answer. */
static int last_of(struct scan *s, uint64_t *out)
{
    const struct kvlog_query *q = s->q;
    uint64_t r;
    int rv = 0;

    *out = q->at_revision != 0 ? q->at_revision : s->snapshot;
    if (q->until_ms != 0) {
        rv = kvlog_revision_at(s->r->log, &s->state, q->until_ms, &r, s->e);
        *out = rv == 0 && r <= *out ? (r > 0 ? r - 1 : 0) : *out;
    }
    return rv;
}

/* Is what is asked for, up to the revision `last`, or what is left of it, still
 * there? */
static int check_floor(struct scan *s, uint64_t from, uint64_t last)
{
    const struct kvlog_query *q = s->q;

    if (q->at_revision != 0 && q->at_revision < s->state.floor) {
        return expired(s, "revision", q->at_revision);
    }
    if (q->from_revision != 0 && from < s->state.floor) {
        return expired(s, "revision", from);
    }
    if ((q->latest || (s->way == WAY_KEY && q->newest && q->until_ms != 0)) &&
        last < s->state.floor && s->snapshot > 0) {
        return expired(s, "the state as of revision", last);
    }
    if (q->latest && s->snapshot < s->state.purged) {
        return error_set(s->e, HEDGE_EEXPIRED,
                         "the answer has taken too long: versions it needs "
                         "have been replaced and removed; ask again");
    }
    return 0;
}

static int set_range(struct scan *s)
{
    const struct kvlog_query *q = s->q;
    uint64_t last = s->state.revision, r;
    int rv;

    if (q->at_revision > last || q->from_revision > last + 1) {
        return error_set(s->e, HEDGE_EINVAL,
                         "revision %llu is of the future: the last one is %llu",
                         (unsigned long long)(q->at_revision > last
                                                  ? q->at_revision
                                                  : q->from_revision),
                         (unsigned long long)last);
    }
    s->snapshot = last;
    s->from = q->from_revision > 0 ? q->from_revision : 1;
    rv = last_of(s, &s->to);
    if (rv == 0 && q->since_ms != 0) {
        rv = kvlog_revision_at(s->r->log, &s->state, q->since_ms, &r, s->e);
        s->from = rv == 0 && r > s->from ? r : s->from;
    }
    return rv != 0 ? rv : check_floor(s, q->from_revision, s->to);
}

static void resume_encode(const struct scan *s)
{
    unsigned char *p = s->q->resume;

    p[0] = RESUME_FORMAT;
    p[1] = (unsigned char)s->way;
    put_be64(p + 2, s->snapshot);
    put_be64(p + 10, s->from);
    put_be64(p + 18, s->to);
    memcpy(p + RESUME_HEAD, s->after, s->after_len);
    s->q->resume_len = RESUME_HEAD + s->after_len;
}

static int resume_decode(struct scan *s)
{
    const unsigned char *p = s->q->resume;
    size_t len = s->q->resume_len;
    uint64_t last;
    int rv;
    bool ok = len >= RESUME_HEAD && len <= RESUME_HEAD + KVLOG_ESCAPED_MAX &&
              p[0] == RESUME_FORMAT;

    if (ok) {
        enum way way = (enum way)p[1];

        s->snapshot = get_be64(p + 2);
        s->from = get_be64(p + 10);
        s->to = get_be64(p + 18);
        s->after_len = len - RESUME_HEAD;
        memcpy(s->after, p + RESUME_HEAD, s->after_len);
        ok = (way == s->way || (way == WAY_LOG && s->way == WAY_PICK)) &&
             (s->after_len == 0 || way == WAY_LATEST) &&
             s->snapshot <= s->state.revision && s->to <= s->snapshot &&
             s->from > 0 && s->from <= s->snapshot + 1;
        s->way = way;
    }
    if (!ok) {
        return error_set(s->e, HEDGE_EINVAL,
                         "the resume token is not one of this query");
    }
    rv = last_of(s, &last);
    return rv != 0 ? rv : check_floor(s, s->from, last);
}

static int check_query(const struct kvlog_query *q, struct hedge_error *e)
{
    if (q->key_len > KVLOG_KEY_MAX ||
        kvlog_key_cost(q->key, q->key_len) > KVLOG_KEY_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "a key of %zu bytes: at most %u are possible, and a "
                         "byte 0x00 counts twice",
                         q->key_len, KVLOG_KEY_MAX);
    }
    if (q->latest && q->newest) {
        return error_set(e, HEDGE_EINVAL,
                         "the latest versions come in order of keys, not "
                         "newest first");
    }
    if (q->resume_len > KVLOG_RESUME_MAX) {
        return error_set(e, HEDGE_EINVAL, "a resume token of %zu bytes",
                         q->resume_len);
    }
    return 0;
}

static enum way way_of(const struct kvlog_query *q)
{
    if (q->latest) {
        return WAY_LATEST;
    }
    if (q->key_len == 0) {
        return WAY_LOG;
    }
    return q->prefix ? WAY_PICK : WAY_KEY;
}

static int scan_page(struct scan *s)
{
    if (!s->q->reserved && s->way == WAY_KEY &&
        kvlog_is_reserved(s->q->key, s->q->key_len)) {
        return 0;
    }
    if (s->way != WAY_LOG) {
        int rv = kvlog_tail_read(s->r, s->e);

        if (rv != 0) {
            return rv;
        }
    }
    switch (s->way) {
    case WAY_KEY:
        return scan_key(s);
    case WAY_PICK:
        return scan_pick(s);
    case WAY_LATEST:
        return scan_latest(s);
    default:
        return scan_log(s);
    }
}

int kvlog_scan(struct kvlog_reader *r, const struct kvlog *l,
               struct kvlog_query *q, kvlog_entry_fn fn, void *ctx, bool *more,
               struct hedge_error *e)
{
    struct scan s = {.r = r,
                     .l = l,
                     .q = q,
                     .fn = fn,
                     .ctx = ctx,
                     .e = e,
                     .state = r->state};
    MDB_stat hidden;
    int rv = check_query(q, e), rc;

    *more = false;
    if (rv != 0) {
        return rv;
    }
    s.way = way_of(q);
    rv = q->resume_len > 0 ? resume_decode(&s) : set_range(&s);
    if (rv != 0) {
        return rv;
    }
    rc = mdb_stat(r->txn, l->hidden, &hidden);
    if (rc != 0) {
        return kvlog_error(e, rc, "hidden");
    }
    s.hides = hidden.ms_entries > 0;
    if (s.from <= s.to) {
        rv = scan_page(&s);
    }
    if (rv < 0) {
        return rv;
    }
    *more = s.over;
    q->snapshot = s.snapshot;
    resume_encode(&s);
    return 0;
}
