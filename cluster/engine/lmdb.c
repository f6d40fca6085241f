#include "cluster/engine/lmdb.h"

#include "cluster/engine/lmdb_env.h"
#include "cluster/engine/lmdb_log.h"
#include "store/base/bytes.h"
#include "store/base/hash.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MAGIC 0x4d4c4448u /* "HDLM" */
#define LEASE_MAP_BYTES ((uint64_t)64 << 20)
#define LEASE_RESERVE_BYTES ((uint64_t)256 << 10)
#define BOOT_ID_SIZE 40
#define BOOT_ID_PATH "/proc/sys/kernel/random/boot_id"
#define FORMAT_KEY "format"
#define FORMAT "hedge lease 1"
#define KEY_PREFIX "lease/"

/* A row, little-endian, strings after the fixed part without terminators:
 *   0 magic 4        8 token 8         16 expires_ms 8   24 incarnation 8
 *   4 holder_len 2  32 boot id 40, padded with zeros
 *   6 address_len 2 72 sum 8 (XXH3 of all else, this field zero)
 *  80 holder, address */
enum {
    ROW_MAGIC = 0,
    ROW_HOLDER_LEN = 4,
    ROW_ADDRESS_LEN = 6,
    ROW_TOKEN = 8,
    ROW_EXPIRES = 16,
    ROW_INCARNATION = 24,
    ROW_BOOT = 32,
    ROW_SUM = 72,
    ROW_FIXED = 80,
    ROW_MAX = ROW_FIXED + 2 * ENGINE_ID_SIZE
};
static_assert(ROW_BOOT + BOOT_ID_SIZE == ROW_SUM, "the row's layout");

struct row {
    uint64_t token; /* 0: there is no row yet. */
    uint64_t expires_ms;
    uint64_t incarnation;
    char boot_id[BOOT_ID_SIZE];
    char holder[ENGINE_ID_SIZE];
    char address[ENGINE_ID_SIZE];
};

struct lmdb_engine {
    struct lmdb_env *env;
    struct lmdb_log *log;
    struct clock clock;
    char boot_id[BOOT_ID_SIZE];
    char key[sizeof KEY_PREFIX + ENGINE_GROUP_MAX];
    pthread_mutex_t read_lock; /* Guards reader. */
    MDB_txn *reader;
};

/* A write transaction with the group's row in it. */
struct update {
    MDB_txn *txn;
    struct row row;
    uint64_t now_ms;
};

static const char *test_boot_id;
static const struct clock *test_clock;

void lmdb_test_set_boot_id(const char *boot_id)
{
    test_boot_id = boot_id;
}

void lmdb_test_set_clock(const struct clock *clock)
{
    test_clock = clock;
}

/* --- rows -------------------------------------------------------------------
 */

static size_t row_encode(const struct row *row, unsigned char out[ROW_MAX])
{
    size_t holder = strlen(row->holder), address = strlen(row->address);
    size_t len = ROW_FIXED + holder + address;

    assert(len <= ROW_MAX && row->token > 0);
    memset(out, 0, ROW_FIXED);
    put_le32(out + ROW_MAGIC, MAGIC);
    put_le16(out + ROW_HOLDER_LEN, (uint16_t)holder);
    put_le16(out + ROW_ADDRESS_LEN, (uint16_t)address);
    put_le64(out + ROW_TOKEN, row->token);
    put_le64(out + ROW_EXPIRES, row->expires_ms);
    put_le64(out + ROW_INCARNATION, row->incarnation);
    memcpy(out + ROW_BOOT, row->boot_id, strlen(row->boot_id));
    memcpy(out + ROW_FIXED, row->holder, holder);
    memcpy(out + ROW_FIXED + holder, row->address, address);
    put_le64(out + ROW_SUM, hash64(out, len));
    return len;
}

static bool row_decode(const void *data, size_t size, struct row *out)
{
    unsigned char copy[ROW_MAX];
    size_t holder, address;
    uint64_t sum;

    memset(out, 0, sizeof *out);
    if (size < ROW_FIXED || size > ROW_MAX) {
        return false;
    }
    memcpy(copy, data, size);
    sum = get_le64(copy + ROW_SUM);
    memset(copy + ROW_SUM, 0, 8);
    holder = get_le16(copy + ROW_HOLDER_LEN);
    address = get_le16(copy + ROW_ADDRESS_LEN);
    if (get_le32(copy + ROW_MAGIC) != MAGIC || hash64(copy, size) != sum ||
        holder >= ENGINE_ID_SIZE || address >= ENGINE_ID_SIZE ||
        size != ROW_FIXED + holder + address) {
        return false;
    }
    out->token = get_le64(copy + ROW_TOKEN);
    out->expires_ms = get_le64(copy + ROW_EXPIRES);
    out->incarnation = get_le64(copy + ROW_INCARNATION);
    memcpy(out->boot_id, copy + ROW_BOOT, BOOT_ID_SIZE - 1);
    memcpy(out->holder, copy + ROW_FIXED, holder);
    memcpy(out->address, copy + ROW_FIXED + holder, address);
    return out->token > 0 && out->token < UINT64_MAX;
}

static int row_load(struct lmdb_engine *g, MDB_txn *txn, struct row *out,
                    struct hedge_error *e)
{
    MDB_val key = {strlen(g->key), g->key}, val;
    int rc = mdb_get(txn, lmdb_env_main(g->env), &key, &val);

    memset(out, 0, sizeof *out);
    if (rc == MDB_NOTFOUND) {
        return 0;
    }
    if (rc != 0) {
        return lmdb_error(e, rc, lmdb_env_path(g->env));
    }
    if (!row_decode(val.mv_data, val.mv_size, out)) {
        return error_set(e, HEDGE_ECORRUPT,
                         "%s: the row %s does not match its checksum",
                         lmdb_env_path(g->env), g->key);
    }
    return 0;
}

static bool row_held(const struct lmdb_engine *g, const struct row *row,
                     uint64_t now_ms)
{
    return row->token > 0 && strcmp(row->boot_id, g->boot_id) == 0 &&
           now_ms < row->expires_ms;
}

static void row_describe(const struct lmdb_engine *g, const struct row *row,
                         uint64_t now_ms, struct engine_lease *out)
{
    memset(out, 0, sizeof *out);
    out->token = row->token;
    out->incarnation = row->incarnation;
    memcpy(out->holder, row->holder, sizeof out->holder);
    memcpy(out->address, row->address, sizeof out->address);
    out->held = row_held(g, row, now_ms);
    if (out->held) {
        out->remaining_ms = row->expires_ms - now_ms;
    } else if (row->token == 0 || strcmp(row->boot_id, g->boot_id) != 0) {
        out->idle_ms = UINT64_MAX;
    } else {
        out->idle_ms = now_ms - row->expires_ms;
    }
}

/* --- updates ----------------------------------------------------------------
 */

static int update_begin(struct lmdb_engine *g, struct update *u,
                        struct hedge_error *e)
{
    int rv = lmdb_write_begin(g->env, LMDB_LEASE_WAIT_MS, &u->txn, e);

    if (rv != 0) {
        return rv;
    }
    rv = row_load(g, u->txn, &u->row, e);
    if (rv != 0) {
        lmdb_write_abort(g->env, u->txn);
        return rv;
    }
    u->now_ms = clock_now_ms(&g->clock);
    return 0;
}

static int update_commit(struct lmdb_engine *g, struct update *u,
                         struct hedge_error *e)
{
    unsigned char data[ROW_MAX];
    MDB_val key = {strlen(g->key), g->key};
    MDB_val val = {row_encode(&u->row, data), data};
    int rc = mdb_put(u->txn, lmdb_env_main(g->env), &key, &val, 0);

    if (rc != 0) {
        lmdb_write_abort(g->env, u->txn);
        return lmdb_error(e, rc, lmdb_env_path(g->env));
    }
    return lmdb_write_commit(g->env, u->txn, e);
}

static int put_format(struct lmdb_engine *g, MDB_txn *txn)
{
    char name[] = FORMAT_KEY, text[] = FORMAT;
    MDB_val key = {sizeof name - 1, name}, val = {sizeof text - 1, text};
    int rc = mdb_put(txn, lmdb_env_main(g->env), &key, &val, MDB_NOOVERWRITE);

    return rc == MDB_KEYEXIST ? 0 : rc;
}

static int lmdb_look(void *ctx, struct engine_lease *out, struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;
    struct row row;
    int rv;

    pthread_mutex_lock(&g->read_lock);
    rv = lmdb_read_begin(g->env, &g->reader, e);
    if (rv == 0) {
        rv = row_load(g, g->reader, &row, e);
        lmdb_read_end(g->reader);
    }
    pthread_mutex_unlock(&g->read_lock);
    if (rv == 0) {
        row_describe(g, &row, clock_now_ms(&g->clock), out);
    }
    return rv;
}

static int check_free(const struct engine_lease *l,
                      const struct engine_holder *who, struct hedge_error *e)
{
    bool mine =
        strcmp(l->holder, who->id) == 0 && l->incarnation == who->incarnation;

    if (l->held && !mine) {
        return error_set(e, HEDGE_EBUSY,
                         "%s holds the lease for another %llu ms", l->holder,
                         (unsigned long long)l->remaining_ms);
    }
    return 0;
}

static int lmdb_acquire(void *ctx, const struct engine_holder *who,
                        uint64_t lease_ms, uint64_t *token,
                        struct engine_lease *before, struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;
    struct update u;
    struct row *row = &u.row;
    int rc, rv = lmdb_look(ctx, before, e);

    /* Those who cannot have it do not get in the way of its renewal. */
    if (rv == 0) {
        rv = check_free(before, who, e);
    }
    if (rv == 0) {
        rv = update_begin(g, &u, e);
    }
    if (rv != 0) {
        return rv;
    }
    row_describe(g, row, u.now_ms, before);
    rv = check_free(before, who, e);
    if (rv != 0) {
        lmdb_write_abort(g->env, u.txn);
        return rv;
    }
    rc = put_format(g, u.txn);
    if (rc != 0) {
        lmdb_write_abort(g->env, u.txn);
        return lmdb_error(e, rc, lmdb_env_path(g->env));
    }
    memset(row->holder, 0, sizeof row->holder);
    memset(row->address, 0, sizeof row->address);
    memcpy(row->holder, who->id, strlen(who->id));
    memcpy(row->address, who->address, strlen(who->address));
    memcpy(row->boot_id, g->boot_id, sizeof row->boot_id);
    row->incarnation = who->incarnation;
    row->expires_ms = u.now_ms + lease_ms;
    row->token++;
    rv = update_commit(g, &u, e);
    if (rv == 0) {
        *token = row->token;
    }
    return rv;
}

static int fenced(const struct row *row, uint64_t token, struct hedge_error *e)
{
    if (row->token == token) {
        return error_set(e, HEDGE_EFENCED,
                         "the lease of token %llu has run out",
                         (unsigned long long)token);
    }
    return error_set(e, HEDGE_EFENCED, "token %llu is stale, %s has %llu",
                     (unsigned long long)token,
                     row->token > 0 ? row->holder : "nobody",
                     (unsigned long long)row->token);
}

static int lmdb_renew(void *ctx, uint64_t token, uint64_t lease_ms,
                      struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;
    struct update u;
    int rv = update_begin(g, &u, e);

    if (rv != 0) {
        return rv;
    }
    if (u.row.token != token || !row_held(g, &u.row, u.now_ms)) {
        lmdb_write_abort(g->env, u.txn);
        return fenced(&u.row, token, e);
    }
    u.row.expires_ms = u.now_ms + lease_ms;
    return update_commit(g, &u, e);
}

static int lmdb_release(void *ctx, uint64_t token, struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;
    struct update u;
    int rv = update_begin(g, &u, e);

    if (rv != 0) {
        return rv;
    }
    if (u.row.token != token || token == 0) {
        lmdb_write_abort(g->env, u.txn);
        return fenced(&u.row, token, e);
    }
    if (!row_held(g, &u.row, u.now_ms)) {
        lmdb_write_abort(g->env, u.txn);
        return 0;
    }
    u.row.expires_ms = u.now_ms;
    return update_commit(g, &u, e);
}

/* --- housekeeping -----------------------------------------------------------
 */

struct reader_scan {
    uint64_t last;
    struct engine_health *health;
};

/* LMDB prints its reader table: a heading, then "pid thread txnid" where the
 * last is "-" for a slot that reads nothing just now. */
static int scan_reader(const char *line, void *arg)
{
    struct reader_scan *scan = arg;
    unsigned long pid;
    unsigned long long thread, txn;
    int n = sscanf(line, "%lu %llx %llu", &pid, &thread, &txn);

    if (n < 2) {
        return 0;
    }
    scan->health->readers++;
    if (n == 3 && txn < scan->last &&
        scan->last - txn > scan->health->oldest_reader) {
        scan->health->oldest_reader = scan->last - txn;
    }
    return 0;
}

static int lmdb_maintain(void *ctx, struct engine_health *out,
                         struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;
    MDB_env *mdb = lmdb_env_handle(g->env);
    struct reader_scan scan = {.health = out};
    MDB_envinfo info;
    int dead = 0;
    int rc = mdb_reader_check(mdb, &dead);

    if (rc != 0) {
        return lmdb_error(e, rc, lmdb_env_path(g->env));
    }
    if (dead > 0) {
        log_info("engine", "%s: freed the slots of %d dead readers",
                 lmdb_env_path(g->env), dead);
    }
    out->readers_cleared = (unsigned)dead;
    (void)mdb_env_info(mdb, &info);
    scan.last = info.me_last_txnid;
    (void)mdb_reader_list(mdb, scan_reader, &scan);
    return lmdb_log_maintain(g->log, out, e);
}

static int read_boot_id(char out[BOOT_ID_SIZE], struct hedge_error *e)
{
    ssize_t n;
    int fd;

    memset(out, 0, BOOT_ID_SIZE);
    if (test_boot_id != NULL) {
        (void)snprintf(out, BOOT_ID_SIZE, "%s", test_boot_id);
        return 0;
    }
    fd = open(BOOT_ID_PATH, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return error_set(e, HEDGE_ENOTSUP,
                         "%s: %s; the lmdb engine needs it to tell a lease "
                         "of this boot from one of an earlier boot",
                         BOOT_ID_PATH, strerror(errno));
    }
    n = read(fd, out, BOOT_ID_SIZE - 1);
    close(fd);
    if (n <= 0) {
        return error_set(e, HEDGE_ENOTSUP, "%s is empty", BOOT_ID_PATH);
    }
    memset(out + strcspn(out, "\n"), 0, BOOT_ID_SIZE - strcspn(out, "\n"));
    return 0;
}

/* An environment of another program must not be written to. */
static int check_format(struct lmdb_engine *g, struct hedge_error *e)
{
    char name[] = FORMAT_KEY;
    MDB_val key = {sizeof name - 1, name}, val;
    MDB_stat st;
    int rc, rv = lmdb_read_begin(g->env, &g->reader, e);

    if (rv != 0) {
        return rv;
    }
    rc = mdb_stat(g->reader, lmdb_env_main(g->env), &st);
    if (rc != 0) {
        rv = lmdb_error(e, rc, lmdb_env_path(g->env));
    } else if (st.ms_entries > 0) {
        rc = mdb_get(g->reader, lmdb_env_main(g->env), &key, &val);
        if (rc != 0 && rc != MDB_NOTFOUND) {
            rv = lmdb_error(e, rc, lmdb_env_path(g->env));
        } else if (rc != 0 || val.mv_size != sizeof FORMAT - 1 ||
                   memcmp(val.mv_data, FORMAT, val.mv_size) != 0) {
            rv = error_set(e, HEDGE_EVERSION,
                           "%s is not of the format '" FORMAT "'",
                           lmdb_env_path(g->env));
        }
    }
    lmdb_read_end(g->reader);
    return rv;
}

/* --- the log ----------------------------------------------------------------
 */

static int lmdb_append(void *ctx, uint64_t token, const char *leader,
                       struct engine_put *puts, size_t n, uint64_t timeout_ms,
                       struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;

    return lmdb_log_append(g->log, token, leader, puts, n, timeout_ms, e);
}

static int lmdb_latest(void *ctx, const void *key, size_t key_len,
                       engine_entry_fn fn, void *fn_ctx, struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;

    return lmdb_log_latest(g->log, key, key_len, fn, fn_ctx, e);
}

static int lmdb_scan(void *ctx, struct engine_query *q, engine_entry_fn fn,
                     void *fn_ctx, bool *more, struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;

    return lmdb_log_scan(g->log, q, fn, fn_ctx, more, e);
}

static int lmdb_compact(void *ctx, uint64_t token, const char *leader,
                        struct engine_compaction *c, uint64_t timeout_ms,
                        struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;

    return lmdb_log_compact(g->log, token, leader, c, timeout_ms, e);
}

static int lmdb_state(void *ctx, struct engine_log_state *out,
                      struct hedge_error *e)
{
    struct lmdb_engine *g = ctx;

    return lmdb_log_state(g->log, out, e);
}

static void lmdb_close(void *ctx)
{
    struct lmdb_engine *g = ctx;

    lmdb_log_free(g->log);
    if (g->reader != NULL) {
        mdb_txn_abort(g->reader);
    }
    lmdb_env_close(g->env);
    pthread_mutex_destroy(&g->read_lock);
    mem_free(g);
}

static const struct engine_ops lmdb_ops = {
    .name = "lmdb",
    .acquire = lmdb_acquire,
    .renew = lmdb_renew,
    .release = lmdb_release,
    .look = lmdb_look,
    .append = lmdb_append,
    .latest = lmdb_latest,
    .scan = lmdb_scan,
    .compact = lmdb_compact,
    .log_state = lmdb_state,
    .maintain = lmdb_maintain,
    .close = lmdb_close,
};

int lmdb_engine_open(const char *dir, const char *group, struct engine *out,
                     struct hedge_error *e)
{
    static const struct lmdb_env_options options = {
        .map_bytes = LEASE_MAP_BYTES, .reserve_bytes = LEASE_RESERVE_BYTES};
    struct lmdb_engine *g = mem_calloc(1, sizeof *g);
    struct row row;
    int rv;

    if (g == NULL) {
        return error_set(e, HEDGE_ENOMEM, "%s", hedge_strerror(HEDGE_ENOMEM));
    }
    g->clock = *(test_clock != NULL ? test_clock : clock_boottime());
    pthread_mutex_init(&g->read_lock, NULL);
    (void)snprintf(g->key, sizeof g->key, KEY_PREFIX "%s", group);
    rv = read_boot_id(g->boot_id, e);
    if (rv == 0 && lmdb_log_new(dir, group, &g->log) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "%s", hedge_strerror(HEDGE_ENOMEM));
    }
    if (rv == 0) {
        rv = lmdb_env_open(dir, "lease", &options, &g->env, e);
    }
    if (rv == 0) {
        rv = check_format(g, e);
    }
    if (rv == 0) { /* A damaged row is told here, not at the first vote. */
        rv = lmdb_read_begin(g->env, &g->reader, e);
        if (rv == 0) {
            rv = row_load(g, g->reader, &row, e);
            lmdb_read_end(g->reader);
        }
    }
    if (rv != 0) {
        lmdb_close(g);
        return rv;
    }
    out->ops = &lmdb_ops;
    out->ctx = g;
    return 0;
}
