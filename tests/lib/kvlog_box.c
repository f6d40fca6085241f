#include "tests/lib/kvlog_box.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int remove_entry(const char *path, const struct stat *st, int type,
                        struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void kvlog_box_init(struct kvlog_box *b)
{
    MDB_txn *txn;
    MDB_dbi meta;

    memset(b, 0, sizeof *b);
    (void)snprintf(b->dir, sizeof b->dir, "%s/hedge-kvlog-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(b->dir));
    assert_int_equal(mdb_env_create(&b->env), 0);
    assert_int_equal(mdb_env_set_mapsize(b->env, (size_t)1 << 30), 0);
    assert_int_equal(mdb_env_set_maxdbs(b->env, KVLOG_TABLES), 0);
    assert_int_equal(mdb_env_open(b->env, b->dir, MDB_NOTLS | MDB_NOSYNC, 0600),
                     0);
    assert_int_equal(mdb_txn_begin(b->env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_dbi_open(txn, NULL, 0, &meta), 0);
    assert_int_equal(kvlog_open(txn, meta, "group", false, &b->log, &b->error),
                     HEDGE_ENOTFOUND);
    assert_int_equal(kvlog_open(txn, meta, "group", true, &b->log, &b->error),
                     0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    b->wall_ms = 1000;
    b->boot_ms = 77;
    b->boot = 5;
    b->token = 1;
}

void kvlog_box_release(struct kvlog_box *b)
{
    kvlog_reader_release(&b->reader);
    if (b->read_txn != NULL) {
        mdb_txn_abort(b->read_txn);
    }
    mdb_env_close(b->env);
    (void)nftw(b->dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

int kvlog_box_append(struct kvlog_box *b, struct kvlog_put *puts, size_t n)
{
    struct kvlog_writer w = {.token = b->token,
                             .leader = "here:1",
                             .wall_ms = b->wall_ms,
                             .boot_ms = b->boot_ms,
                             .boot = b->boot};
    size_t each = b->at_once > 0 ? b->at_once : n + 1;
    bool changed = false, some;
    MDB_txn *txn;
    int rv = 0;

    assert_int_equal(mdb_txn_begin(b->env, NULL, 0, &txn), 0);
    for (size_t at = 0; rv == 0 && (at == 0 || at < n); at += each) {
        rv = kvlog_append(txn, &b->log, &w, puts + at,
                          n - at < each ? n - at : each, &some, &b->error);
        changed = changed || some;
    }
    if (rv == 0 && changed) {
        assert_int_equal(mdb_txn_commit(txn), 0);
    } else {
        mdb_txn_abort(txn);
    }
    return rv;
}

uint64_t kvlog_box_put(struct kvlog_box *b, const char *key, const char *value,
                       unsigned flags)
{
    struct kvlog_put p = {.key = key,
                          .key_len = strlen(key),
                          .value = value,
                          .value_len = strlen(value),
                          .flags = flags};

    assert_int_equal(kvlog_box_append(b, &p, 1), 0);
    assert_true(p.revision > 0);
    return p.revision;
}

void kvlog_box_read(struct kvlog_box *b)
{
    int rc = b->read_txn == NULL
                 ? mdb_txn_begin(b->env, NULL, MDB_RDONLY, &b->read_txn)
                 : mdb_txn_renew(b->read_txn);

    assert_int_equal(rc, 0);
    assert_int_equal(
        kvlog_reader_begin(&b->reader, b->read_txn, &b->log, &b->error), 0);
}

void kvlog_box_read_end(struct kvlog_box *b)
{
    mdb_txn_reset(b->read_txn);
}

struct kvlog_state kvlog_box_state(struct kvlog_box *b)
{
    struct kvlog_state s;

    kvlog_box_read(b);
    assert_int_equal(kvlog_get_state(b->read_txn, &b->log, &s, &b->error), 0);
    kvlog_box_read_end(b);
    return s;
}

uint64_t kvlog_box_compact(struct kvlog_box *b, uint64_t before_revision,
                           uint64_t before_ms, uint64_t keep, int *rv)
{
    struct kvlog_compaction c = {.before_revision = before_revision,
                                 .before_ms = before_ms,
                                 .keep = keep};
    struct kvlog_writer w = {.token = b->token, .leader = "here:1"};
    uint64_t removed = 0;
    MDB_txn *txn;
    int code = 0;

    while (code == 0 && !c.done) {
        assert_int_equal(mdb_txn_begin(b->env, NULL, 0, &txn), 0);
        code = kvlog_compact(txn, &b->log, &w, &c, &b->error);
        if (code == 0) {
            assert_int_equal(mdb_txn_commit(txn), 0);
            removed += c.removed;
        } else {
            mdb_txn_abort(txn);
        }
    }
    if (rv != NULL) {
        *rv = code;
    } else {
        assert_int_equal(code, 0);
    }
    return removed;
}

struct asking {
    char *text;
    size_t len, cap;
    unsigned left; /* In this page. */
    bool paged;
};

static int add_entry(void *ctx, const struct kvlog_entry *e)
{
    struct asking *a = ctx;

    if (a->paged && a->left == 0) {
        return KVLOG_REFUSE;
    }
    a->len += (size_t)snprintf(
        a->text + a->len, a->cap - a->len, "%.*s=%.*s@%llu ", (int)e->key_len,
        (const char *)e->key, (int)e->value_len, (const char *)e->value,
        (unsigned long long)e->revision);
    assert_true(a->len < a->cap);
    assert_string_equal(e->leader, "here:1");
    a->left -= a->paged;
    return KVLOG_GO_ON;
}

const char *kvlog_box_ask(struct kvlog_box *b, struct kvlog_query *q,
                          unsigned page)
{
    static char text[1 << 20];
    struct asking a = {.text = text, .cap = sizeof text, .paged = page > 0};
    bool more = true;
    int rv = 0;

    text[0] = '\0';
    while (rv == 0 && more) {
        a.left = page;
        kvlog_box_read(b);
        rv =
            kvlog_scan(&b->reader, &b->log, q, add_entry, &a, &more, &b->error);
        kvlog_box_read_end(b);
    }
    if (rv != 0) {
        return hedge_errname(rv);
    }
    if (a.len > 0) {
        text[a.len - 1] = '\0';
    }
    return text;
}

static int keep_revision(void *ctx, const struct kvlog_entry *e)
{
    *(uint64_t *)ctx = e->revision;
    return KVLOG_END;
}

int kvlog_box_latest(struct kvlog_box *b, const char *key, uint64_t *revision)
{
    int rv;

    *revision = 0;
    kvlog_box_read(b);
    rv = kvlog_latest(&b->reader, &b->log, key, strlen(key), keep_revision,
                      revision, &b->error);
    kvlog_box_read_end(b);
    return rv;
}
