/* kvlog_tail.c - versions that the index does not have yet.
 *
 * A put's row of `log` lies beside those of the puts before it, its row of
 * `index` on a page of its own, and writing that page out is most of what a
 * commit of many puts costs. So plain appends go into `log` alone, until
 * KVLOG_TAIL_ROWS of them or a put that replaces something move them all into
 * the index, where those that lie near each other share a page: the first level
 * of a log-structured merge tree (O'Neil et al., 1996), whose log is the table.
 * Who asks by key reads these rows into memory, sorted, a commit's worth at a
 * time, and walks over both together. */
#include "store/kvlog/kvlog_internal.h"

#include "store/base/mem.h"

#include <assert.h>
#include <string.h>

#define ROWS_MIN 64u
#define BYTES_MIN 4096u

static_assert(sizeof((struct kvlog_walk *)0)->value == INDEX_VALUE,
              "a walk has room for a row of the index");

unsigned kvlog_tail_rows = KVLOG_TAIL_ROWS;

/* --- rows of the log --------------------------------------------------------
 */

typedef int (*row_fn)(void *ctx, const struct kvlog_row *row,
                      struct hedge_error *e);

/* The versions after one revision and up to another; none may be missing. */
static int each_row(MDB_cursor *log, uint64_t after, uint64_t upto, row_fn fn,
                    void *ctx, struct hedge_error *e)
{
    uint64_t next = after + 1;
    MDB_val key = kvlog_val(&next, sizeof next), val;
    struct kvlog_row row;
    int rv = 0, rc = 0;

    if (after < upto) {
        rc = mdb_cursor_get(log, &key, &val, MDB_SET_KEY);
    }
    while (rv == 0 && rc == 0 && next <= upto) {
        rv = kvlog_row_read(&key, &val, &row, e);
        if (rv == 0 && row.revision != next) {
            rc = MDB_NOTFOUND;
            break;
        }
        rv = rv == 0 ? fn(ctx, &row, e) : rv;
        if (rv == 0 && next++ < upto) {
            rc = mdb_cursor_get(log, &key, &val, MDB_NEXT);
        }
    }
    if (rv == 0 && rc != 0) {
        rv = rc == MDB_NOTFOUND ? kvlog_corrupt(e, "log", next)
                                : kvlog_error(e, rc, "log");
    }
    return rv;
}

/* --- writing ----------------------------------------------------------------
 */

bool kvlog_tail_has_room(const struct kvlog_state *s,
                         const struct kvlog_put *puts, size_t n)
{
    uint64_t bytes = s->tail_bytes;

    if (s->revision - s->indexed + n > kvlog_tail_rows) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (puts[i].flags != 0) {
            return false; /* It looks for what it replaces. */
        }
        bytes += puts[i].key_len <= KVLOG_KEY_MAX ? KVLOG_ROW_KEY_MAX : 0;
    }
    return bytes <= KVLOG_TAIL_BYTES;
}

int kvlog_index_put(MDB_txn *txn, const struct kvlog *l, const void *user_key,
                    size_t key_len, uint64_t revision, struct hedge_error *e)
{
    unsigned char row_key[KVLOG_ROW_KEY_MAX], value[INDEX_VALUE];
    size_t len = kvlog_index_key(user_key, key_len, revision, row_key);
    MDB_val key = kvlog_val(row_key, len), val = kvlog_val(value, sizeof value);
    int rc;

    kvlog_index_value(row_key, len, 0, value);
    rc = mdb_put(txn, l->index, &key, &val, 0);
    return rc != 0 ? kvlog_error(e, rc, "index") : 0;
}

struct flush {
    MDB_txn *txn;
    const struct kvlog *l;
};

static int flush_row(void *ctx, const struct kvlog_row *row,
                     struct hedge_error *e)
{
    const struct flush *f = ctx;

    return kvlog_index_put(f->txn, f->l, row->key, row->key_len, row->revision,
                           e);
}

int kvlog_tail_flush(MDB_txn *txn, const struct kvlog *l, struct kvlog_state *s,
                     struct hedge_error *e)
{
    struct flush f = {.txn = txn, .l = l};
    MDB_cursor *log;
    int rv, rc;

    if (s->indexed == s->revision) {
        return 0;
    }
    rc = mdb_cursor_open(txn, l->log, &log);
    if (rc != 0) {
        return kvlog_error(e, rc, "log");
    }
    rv = each_row(log, s->indexed, s->revision, flush_row, &f, e);
    mdb_cursor_close(log);
    if (rv == 0) {
        s->indexed = s->revision;
        s->tail_bytes = 0;
    }
    return rv;
}

/* --- reading ----------------------------------------------------------------
 */

static MDB_val key_at(const struct kvlog_tail *t, size_t i)
{
    return kvlog_val(t->keys + t->rows[i].at, t->rows[i].len);
}

/* As LMDB orders them. */
static int compare(const MDB_val *a, const MDB_val *b)
{
    size_t n = a->mv_size < b->mv_size ? a->mv_size : b->mv_size;
    int c = memcmp(a->mv_data, b->mv_data, n);

    return c != 0 ? c : (a->mv_size > b->mv_size) - (a->mv_size < b->mv_size);
}

/* How many rows come before `at`. */
static size_t rows_before(const struct kvlog_tail *t, const MDB_val *at)
{
    size_t low = 0, high = t->n;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        MDB_val key = key_at(t, middle);

        if (compare(&key, at) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static int make_room(struct kvlog_tail *t, size_t bytes, struct hedge_error *e)
{
    size_t rows_max = t->rows_max, bytes_max = t->bytes_max;
    void *p;

    if (t->n == rows_max) {
        rows_max = rows_max > 0 ? 2 * rows_max : ROWS_MIN;
        p = mem_realloc(t->rows, rows_max * sizeof *t->rows);
        if (p == NULL) {
            return error_set(e, HEDGE_ENOMEM, "no memory for the newest rows");
        }
        t->rows = p;
        t->rows_max = rows_max;
    }
    if (t->bytes + bytes > bytes_max) {
        bytes_max = bytes_max > 0 ? 2 * bytes_max : BYTES_MIN;
        p = mem_realloc(t->keys, bytes_max);
        if (p == NULL) {
            return error_set(e, HEDGE_ENOMEM, "no memory for the newest keys");
        }
        t->keys = p;
        t->bytes_max = bytes_max;
    }
    return 0;
}

static int add_row(void *ctx, const struct kvlog_row *row,
                   struct hedge_error *e)
{
    struct kvlog_tail *t = ctx;
    struct kvlog_tail_row mine = {.at = (uint32_t)t->bytes};
    MDB_val key;
    size_t i;
    int rv = make_room(t, KVLOG_ROW_KEY_MAX, e);

    if (rv != 0) {
        return rv;
    }
    mine.len = (uint32_t)kvlog_index_key(row->key, row->key_len, row->revision,
                                         t->keys + t->bytes);
    key = kvlog_val(t->keys + mine.at, mine.len);
    i = rows_before(t, &key);
    memmove(&t->rows[i + 1], &t->rows[i], (t->n - i) * sizeof *t->rows);
    t->rows[i] = mine;
    t->n++;
    t->bytes += mine.len;
    t->upto = row->revision;
    return 0;
}

static void forget(struct kvlog_tail *t, uint64_t after)
{
    t->n = t->bytes = 0;
    t->after = t->upto = after;
}

int kvlog_tail_read(struct kvlog_reader *r, struct hedge_error *e)
{
    const struct kvlog_state *s = &r->state;
    struct kvlog_tail *t = &r->tail;
    int rv;

    if (t->after != s->indexed || t->upto > s->revision) {
        forget(t, s->indexed);
    }
    rv = each_row(r->log, t->upto, s->revision, add_row, t, e);
    if (rv != 0) {
        forget(t, s->indexed);
    }
    return rv;
}

void kvlog_tail_release(struct kvlog_tail *t)
{
    mem_free(t->rows);
    mem_free(t->keys);
    memset(t, 0, sizeof *t);
}

bool kvlog_tail_newest(const struct kvlog_tail *t, const MDB_val *above,
                       uint64_t *revision)
{
    size_t i = t->n > 0 ? rows_before(t, above) : 0;
    MDB_val key;

    if (i == 0) {
        return false;
    }
    key = key_at(t, i - 1);
    return key.mv_size == above->mv_size &&
           memcmp(key.mv_data, above->mv_data, key.mv_size - 8) == 0 &&
           kvlog_index_split(key.mv_data, key.mv_size, revision) != 0;
}

/* --- walking ----------------------------------------------------------------
 */

/* The nearer one of the index's row and the tail's. */
static int nearer(struct kvlog_reader *r, MDB_val *key, MDB_val *val)
{
    const struct kvlog_tail *t = &r->tail;
    struct kvlog_walk *w = &r->walk;
    bool some = w->back ? w->at > 0 : w->at < t->n;
    MDB_val mine;
    int c;

    w->in_tail = false;
    if (some && (w->rc == 0 || w->rc == MDB_NOTFOUND)) {
        mine = key_at(t, w->back ? w->at - 1 : w->at);
        c = w->rc == 0 ? compare(&mine, &w->key) : 0;
        w->in_tail = w->rc != 0 || (w->back ? c > 0 : c < 0);
    }
    if (!w->in_tail) {
        *key = w->key;
        *val = w->val;
        return w->rc;
    }
    kvlog_index_value(mine.mv_data, mine.mv_size, 0, w->value);
    *key = mine;
    *val = kvlog_val(w->value, sizeof w->value);
    return 0;
}

int kvlog_walk_from(struct kvlog_reader *r, const MDB_val *at, MDB_val *key,
                    MDB_val *val)
{
    struct kvlog_walk *w = &r->walk;

    w->back = false;
    w->at = r->tail.n > 0 ? rows_before(&r->tail, at) : 0;
    w->key = *at;
    w->rc = mdb_cursor_get(r->index, &w->key, &w->val, MDB_SET_RANGE);
    return nearer(r, key, val);
}

int kvlog_walk_before(struct kvlog_reader *r, const MDB_val *at, MDB_val *key,
                      MDB_val *val)
{
    struct kvlog_walk *w = &r->walk;

    w->back = true;
    w->at = r->tail.n > 0 ? rows_before(&r->tail, at) : 0;
    w->key = *at;
    w->rc = kvlog_cursor_before(r->index, &w->key, &w->val);
    return nearer(r, key, val);
}

int kvlog_walk_on(struct kvlog_reader *r, MDB_val *key, MDB_val *val)
{
    struct kvlog_walk *w = &r->walk;

    if (!w->in_tail) {
        w->rc = mdb_cursor_get(r->index, &w->key, &w->val,
                               w->back ? MDB_PREV : MDB_NEXT);
    } else if (w->back) {
        w->at--;
    } else {
        w->at++;
    }
    return nearer(r, key, val);
}

bool kvlog_walk_check(const struct kvlog_reader *r)
{
    const struct kvlog_walk *w = &r->walk;
    uint64_t hidden_by;

    return w->rc != 0 || kvlog_index_decode(&w->key, &w->val, &hidden_by);
}
