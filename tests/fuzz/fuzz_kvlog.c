/* Rows of the log's tables, and queries whose resume token a client has made
 * up: an answer or an error, and never an entry outside the query. */
#include "store/kvlog/kvlog_internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static MDB_env *env;
static struct kvlog tables;

/* A few versions of a few keys, hidden ones too, behind a floor; some are in
 * the index. */
static void make_log(void)
{
    static const char *const keys[] = {"a", "ab", "abc", "b", "__hedge/x"};
    struct kvlog_writer w = {.token = 3, .leader = "n:1", .wall_ms = 1000};
    struct kvlog_compaction c = {.before_revision = 6, .keep = 1};
    char dir[] = "/dev/shm/hedge-fuzz-XXXXXX", path[64];
    struct hedge_error e;
    bool changed;
    MDB_txn *txn;
    MDB_dbi meta;
    int rc = mkdtemp(dir) == NULL;

    assert(rc == 0);
    rc = mdb_env_create(&env) | mdb_env_set_maxdbs(env, KVLOG_TABLES) |
         mdb_env_set_mapsize(env, (size_t)16 << 20) |
         mdb_env_open(env, dir, MDB_NOSYNC | MDB_NOTLS, 0600) |
         mdb_txn_begin(env, NULL, 0, &txn) | mdb_dbi_open(txn, NULL, 0, &meta) |
         kvlog_open(txn, meta, "g", true, &tables, &e);
    for (unsigned i = 0; i < 26; i++) {
        struct kvlog_put p = {.key = keys[i % 5],
                              .key_len = strlen(keys[i % 5]),
                              .value = "value",
                              .value_len = 5,
                              .flags =
                                  i < 20 && i % 7 == 6 ? KVLOG_REPLACE : 0};

        if (i == 20) {
            rc |= kvlog_compact(txn, &tables, &w, &c, &e);
        }
        w.wall_ms += 10;
        rc |= kvlog_append(txn, &tables, &w, &p, 1, &changed, &e);
    }
    rc |= mdb_txn_commit(txn);
    assert(rc == 0);
    /* Nobody else will open it. */
    for (unsigned i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", dir,
                       i == 0 ? "data.mdb" : "lock.mdb");
        (void)unlink(path);
    }
    (void)rmdir(dir);
}

static void try_rows(const uint8_t *data, size_t size)
{
    MDB_val val = {size, (void *)(uintptr_t)data};
    struct kvlog_state state;
    struct kvlog_row row;
    uint64_t revision, by;

    if (kvlog_row_decode(data, size, 7, &row)) {
        assert(row.key >= data && row.value + row.value_len <= data + size);
        (void)kvlog_row_check(&row);
    }
    (void)kvlog_state_decode(data, size, &state);
    (void)kvlog_leader_decode(data, size);
    if (size >= 16) {
        MDB_val key = {size - 16, (void *)(uintptr_t)data};
        MDB_val value = {16, (void *)(uintptr_t)(data + size - 16)};

        (void)kvlog_index_decode(&key, &value, &by);
        (void)kvlog_request_decode(data, &val, &revision, &by);
    }
    if (kvlog_index_split(data, size, &revision) != 0) {
        assert(size > 10 && size <= KVLOG_ROW_KEY_MAX);
    }
}

struct seen {
    const struct kvlog_query *q;
    unsigned n;
};

static int on_entry(void *ctx, const struct kvlog_entry *e)
{
    struct seen *s = ctx;

    assert(s->q->reserved || !kvlog_is_reserved(e->key, e->key_len));
    assert(e->key_len >= s->q->key_len);
    assert(memcmp(e->key, s->q->key, s->q->key_len) == 0);
    assert(e->value_len == 5 && memcmp(e->value, "value", 5) == 0);
    return ++s->n % 3 == 0 ? KVLOG_END : KVLOG_GO_ON;
}

/* flags 1, key length 1, key, revision 1 and 1, the token. */
static void try_query(const uint8_t *data, size_t size)
{
    struct kvlog_reader r = {.txn = NULL};
    struct kvlog_query q = {.limit = 0};
    struct seen s = {.q = &q};
    struct hedge_error e;
    bool more = true;
    MDB_txn *txn;
    size_t key_len;

    if (size < 4) {
        return;
    }
    key_len = data[1] % 8;
    if (size < 4 + key_len) {
        return;
    }
    q.prefix = data[0] & 1;
    q.latest = data[0] & 2;
    q.newest = data[0] & 4;
    q.reserved = data[0] & 8;
    q.limit = data[0] >> 6;
    q.key = data + 2;
    q.key_len = key_len;
    q.from_revision = data[2 + key_len];
    q.at_revision = data[3 + key_len];
    q.resume_len = size - 4 - key_len;
    if (q.resume_len > sizeof q.resume) {
        q.resume_len = sizeof q.resume;
    }
    memcpy(q.resume, data + 4 + key_len, q.resume_len);
    kvlog_find_cost = data[0] & 16 ? 0 : 6;
    if (mdb_txn_begin(env, NULL, MDB_RDONLY, &txn) != 0) {
        abort();
    }
    if (kvlog_reader_begin(&r, txn, &tables, &e) == 0) {
        while (more && s.n < 1000 &&
               kvlog_scan(&r, &tables, &q, on_entry, &s, &more, &e) == 0) {
        }
        assert(s.n < 1000); /* It comes to an end. */
    }
    kvlog_reader_release(&r);
    mdb_txn_abort(txn);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (env == NULL) {
        make_log();
    }
    try_rows(data, size);
    try_query(data, size);
    return 0;
}
