#include "cluster/engine/lmdb_log.h"

#include "cluster/engine/lmdb_env.h"
#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/kvlog/kvlog.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#define LOG_MAP_BYTES ((uint64_t)64 << 30)
#define OPEN_WAIT_MS 1000u
#define RETRY_MS 200u /* After a failure to open. */
#define SLOTS 16u
#define PUTS_AT_ONCE 64u /* Converted on the stack. */
/* A write that ends with EIO below this much free space met a full disk. */
#define FULL_BELOW ((uint64_t)1 << 20)

static_assert(ENGINE_KEY_MAX == KVLOG_KEY_MAX, "one limit");
static_assert(ENGINE_VALUE_MAX == KVLOG_VALUE_MAX, "one limit");
static_assert(ENGINE_RESUME_MAX == KVLOG_RESUME_MAX, "one limit");
static_assert(ENGINE_REQUEST_SIZE == KVLOG_REQUEST_SIZE, "one size");
static_assert((int)ENGINE_REPLACE == (int)KVLOG_REPLACE &&
                  (int)ENGINE_DELETE == (int)KVLOG_DELETE &&
                  (int)ENGINE_END == (int)KVLOG_END &&
                  (int)ENGINE_REFUSE == (int)KVLOG_REFUSE,
              "the same flags and answers");

/* A read transaction that is used again and again. */
struct slot {
    _Alignas(64) pthread_mutex_t lock;
    MDB_txn *txn;
    struct kvlog_reader reader;
};

struct lmdb_log {
    char *dir, *group;
    uint64_t boot; /* Which one this is. */
    /* Lock order: write_lock, the slots' in their order, lock. Env and tables
     * stay as they are for who has found is_open with write_lock or a slot's
     * lock held. */
    pthread_mutex_t write_lock;
    pthread_mutex_t lock; /* Opening. */
    atomic_bool is_open;
    struct lmdb_env *env;
    struct kvlog tables;
    struct hedge_error failed;
    uint64_t failed_ms;
    struct slot slots[SLOTS];
};

/* LMDB wants handles opened by one transaction at a time in a process. */
static pthread_mutex_t tables_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- opening ----------------------------------------------------------------
 */

int lmdb_log_new(const char *dir, const char *group, struct lmdb_log **out)
{
    struct lmdb_log *log = mem_calloc(1, sizeof *log);
    char boot[CLOCK_BOOT_ID_SIZE];

    *out = NULL;
    if (log == NULL) {
        return HEDGE_ENOMEM;
    }
    pthread_mutex_init(&log->lock, NULL);
    pthread_mutex_init(&log->write_lock, NULL);
    for (unsigned i = 0; i < SLOTS; i++) {
        pthread_mutex_init(&log->slots[i].lock, NULL);
    }
    log->dir = mem_strdup(dir);
    log->group = mem_strdup(group);
    clock_boot_id(boot);
    log->boot = hash64(boot, strlen(boot));
    if (log->dir == NULL || log->group == NULL) {
        lmdb_log_free(log);
        return HEDGE_ENOMEM;
    }
    *out = log;
    return 0;
}

static void slot_release(struct slot *s)
{
    kvlog_reader_release(&s->reader);
    if (s->txn != NULL) {
        mdb_txn_abort(s->txn);
        s->txn = NULL;
    }
}

void lmdb_log_free(struct lmdb_log *log)
{
    if (log == NULL) {
        return;
    }
    for (unsigned i = 0; i < SLOTS; i++) {
        slot_release(&log->slots[i]);
        pthread_mutex_destroy(&log->slots[i].lock);
    }
    lmdb_env_close(log->env);
    pthread_mutex_destroy(&log->lock);
    pthread_mutex_destroy(&log->write_lock);
    mem_free(log->dir);
    mem_free(log->group);
    mem_free(log);
}

/* HEDGE_ENOTFOUND: they have not been made yet. */
static int find_tables(struct lmdb_log *log, struct lmdb_env *env,
                       struct hedge_error *e)
{
    MDB_txn *txn;
    int rv, rc = mdb_txn_begin(lmdb_env_handle(env), NULL, MDB_RDONLY, &txn);

    if (rc != 0) {
        return lmdb_error(e, rc, lmdb_env_path(env));
    }
    rv =
        kvlog_open(txn, lmdb_env_main(env), log->group, false, &log->tables, e);
    if (rv != 0) {
        mdb_txn_abort(txn);
        return rv;
    }
    rc = mdb_txn_commit(txn); /* This is what keeps the handles. */
    return rc != 0 ? lmdb_error(e, rc, lmdb_env_path(env)) : 0;
}

static int make_tables(struct lmdb_log *log, struct lmdb_env *env,
                       struct hedge_error *e)
{
    MDB_txn *txn;
    int rv = lmdb_write_begin(env, OPEN_WAIT_MS, &txn, e);

    if (rv != 0) {
        return rv;
    }
    rv = kvlog_open(txn, lmdb_env_main(env), log->group, true, &log->tables, e);
    if (rv != 0) {
        lmdb_write_abort(env, txn);
        return rv;
    }
    return lmdb_write_commit(env, txn, e);
}

static int open_now(struct lmdb_log *log, struct hedge_error *e)
{
    static const struct lmdb_env_options options = {
        .map_bytes = LOG_MAP_BYTES,
        .databases = KVLOG_TABLES * LMDB_LOG_GROUPS};
    struct lmdb_env *env;
    int rv = lmdb_env_open(log->dir, "log", &options, &env, e);

    if (rv != 0) {
        return rv;
    }
    pthread_mutex_lock(&tables_lock);
    rv = find_tables(log, env, e);
    if (rv == HEDGE_ENOTFOUND) {
        rv = make_tables(log, env, e);
    }
    pthread_mutex_unlock(&tables_lock);
    if (rv != 0) {
        lmdb_env_close(env);
        return rv;
    }
    log->env = env;
    atomic_store(&log->is_open, true);
    return 0;
}

static int open_log(struct lmdb_log *log, struct hedge_error *e)
{
    struct hedge_error mine = {0};
    int rv = 0;

    pthread_mutex_lock(&log->lock);
    if (!atomic_load(&log->is_open)) {
        if (log->failed.code == 0 ||
            clock_mono_ms() >= log->failed_ms + RETRY_MS) {
            rv = open_now(log, &mine);
            if (rv != 0 && log->failed.code != rv) {
                log_error("engine", "the log cannot be opened: %s", mine.text);
            }
            log->failed = mine;
            log->failed.code = rv;
            log->failed_ms = clock_mono_ms();
        }
        rv = log->failed.code;
        if (rv != 0) {
            (void)error_set(e, rv, "%s", log->failed.text);
        }
    }
    pthread_mutex_unlock(&log->lock);
    return rv;
}

static int need_log(struct lmdb_log *log, struct hedge_error *e)
{
    return atomic_load(&log->is_open) ? 0 : open_log(log, e);
}

/* Let go of an environment that LMDB has given up, so that the next call can
 * open it anew. */
static void close_if_broken(struct lmdb_log *log)
{
    pthread_mutex_lock(&log->write_lock);
    for (unsigned i = 0; i < SLOTS; i++) {
        pthread_mutex_lock(&log->slots[i].lock);
    }
    pthread_mutex_lock(&log->lock);
    if (atomic_load(&log->is_open) && lmdb_env_is_broken(log->env)) {
        log_error("engine", "%s: writing has failed; it is opened again",
                  lmdb_env_path(log->env));
        for (unsigned i = 0; i < SLOTS; i++) {
            slot_release(&log->slots[i]);
        }
        lmdb_env_close(log->env);
        log->env = NULL;
        atomic_store(&log->is_open, false);
    }
    pthread_mutex_unlock(&log->lock);
    for (unsigned i = SLOTS; i-- > 0;) {
        pthread_mutex_unlock(&log->slots[i].lock);
    }
    pthread_mutex_unlock(&log->write_lock);
}

static int with_path(struct lmdb_log *log, int rv, struct hedge_error *e)
{
    if (rv == HEDGE_EIO || rv == HEDGE_ECORRUPT || rv == HEDGE_ENOSPC) {
        if (e != NULL) {
            (void)error_prefix(e, "%s", lmdb_env_path(log->env));
        }
    }
    return rv;
}

/* --- writing ----------------------------------------------------------------
 */

static int commit(struct lmdb_log *log, MDB_txn *txn, struct hedge_error *e)
{
    struct statvfs st;
    int rv = lmdb_write_commit(log->env, txn, e);

    /* LMDB takes a write that was cut short, which is how a disk becomes full,
     * for an I/O error. */
    if (rv == HEDGE_EIO && statvfs(lmdb_env_path(log->env), &st) == 0 &&
        (uint64_t)st.f_bavail * (uint64_t)st.f_frsize < FULL_BELOW) {
        rv = error_set(e, HEDGE_ENOSPC,
                       "%s: the disk is full; nothing was written",
                       lmdb_env_path(log->env));
    }
    return rv;
}

static void to_kvlog(const struct engine_put *p, struct kvlog_put *out)
{
    *out = (struct kvlog_put){.key = p->key,
                              .key_len = p->key_len,
                              .value = p->value,
                              .value_len = p->value_len,
                              .flags = p->flags};
    memcpy(out->request, p->request, sizeof out->request);
}

static int append_some(struct lmdb_log *log, MDB_txn *txn,
                       const struct kvlog_writer *w, struct engine_put *puts,
                       size_t n, bool *changed, struct hedge_error *e)
{
    struct kvlog_put mine[PUTS_AT_ONCE];
    bool some;
    int rv;

    assert(n <= PUTS_AT_ONCE);
    for (size_t i = 0; i < n; i++) {
        to_kvlog(&puts[i], &mine[i]);
    }
    rv = kvlog_append(txn, &log->tables, w, mine, n, &some, e);
    *changed = *changed || some;
    for (size_t i = 0; rv == 0 && i < n; i++) {
        puts[i].revision = mine[i].revision;
        puts[i].timestamp_ms = mine[i].timestamp_ms;
        puts[i].repeated = mine[i].repeated;
    }
    return rv;
}

/* On 0 log->write_lock is held, until write_end(). An environment that has
 * broken is opened again and tried once more. */
static int write_begin(struct lmdb_log *log, uint64_t timeout_ms, MDB_txn **txn,
                       struct hedge_error *e)
{
    int rv = 0;

    for (unsigned tries = 0; tries < 2; tries++) {
        rv = need_log(log, e);
        if (rv != 0) {
            return rv;
        }
        pthread_mutex_lock(&log->write_lock);
        rv = atomic_load(&log->is_open)
                 ? lmdb_write_begin(log->env, timeout_ms, txn, e)
                 : error_set(e, HEDGE_EIO, "the log is opened again");
        if (rv == 0) {
            return 0;
        }
        pthread_mutex_unlock(&log->write_lock);
        if (rv != HEDGE_EIO) {
            return rv;
        }
        close_if_broken(log);
    }
    return rv;
}

static void write_end(struct lmdb_log *log)
{
    pthread_mutex_unlock(&log->write_lock);
}

int lmdb_log_append(struct lmdb_log *log, uint64_t token, const char *leader,
                    struct engine_put *puts, size_t n, uint64_t timeout_ms,
                    struct hedge_error *e)
{
    struct kvlog_writer w = {.token = token,
                             .leader = leader,
                             .wall_ms = clock_wall_ms(),
                             .boot_ms = clock_boot_ms(),
                             .boot = log->boot};
    bool changed = false;
    size_t done = 0;
    MDB_txn *txn;
    int rv = write_begin(log, timeout_ms, &txn, e);

    if (rv != 0) {
        return rv;
    }
    do {
        size_t some = n - done < PUTS_AT_ONCE ? n - done : PUTS_AT_ONCE;

        rv = append_some(log, txn, &w, puts + done, some, &changed, e);
        done += some;
    } while (rv == 0 && done < n);
    if (rv == 0 && changed) {
        rv = commit(log, txn, e);
    } else {
        lmdb_write_abort(log->env, txn);
        rv = with_path(log, rv, e);
    }
    write_end(log);
    return rv;
}

int lmdb_log_compact(struct lmdb_log *log, uint64_t token, const char *leader,
                     struct engine_compaction *c, uint64_t timeout_ms,
                     struct hedge_error *e)
{
    struct kvlog_compaction mine = {.before_revision = c->before_revision,
                                    .before_ms = c->before_ms,
                                    .keep = c->keep,
                                    .point = c->point,
                                    .newer = c->newer,
                                    .seen = c->seen,
                                    .at_len = c->at_len};
    struct kvlog_writer w = {.token = token, .leader = leader};
    MDB_txn *txn;
    int rv = write_begin(log, timeout_ms, &txn, e);

    if (rv != 0) {
        return rv;
    }
    memcpy(mine.at, c->at, sizeof mine.at);
    rv = kvlog_compact(txn, &log->tables, &w, &mine, e);
    if (rv == 0) {
        rv = commit(log, txn, e);
    } else {
        lmdb_write_abort(log->env, txn);
        rv = with_path(log, rv, e);
    }
    write_end(log);
    if (rv == 0) {
        c->removed = mine.removed;
        c->done = mine.done;
        c->point = mine.point;
        c->newer = mine.newer;
        c->seen = mine.seen;
        c->at_len = mine.at_len;
        memcpy(c->at, mine.at, sizeof c->at);
    }
    return rv;
}

/* --- reading ----------------------------------------------------------------
 */

static struct slot *take_slot(struct lmdb_log *log)
{
    static atomic_uint threads;
    static _Thread_local unsigned mine;

    if (mine == 0) {
        mine = atomic_fetch_add(&threads, 1) % SLOTS + 1;
    }
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *s = &log->slots[(mine - 1 + i) % SLOTS];

        if (pthread_mutex_trylock(&s->lock) == 0) {
            return s;
        }
    }
    pthread_mutex_lock(&log->slots[mine - 1].lock);
    return &log->slots[mine - 1];
}

/* With the slot's lock held. */
static int slot_begin(struct lmdb_log *log, struct slot *s,
                      struct hedge_error *e)
{
    int rv;

    if (!atomic_load(&log->is_open)) {
        return error_set(e, HEDGE_EIO, "the log is opened again");
    }
    rv = lmdb_read_begin(log->env, &s->txn, e);
    if (rv == 0) {
        rv = kvlog_reader_begin(&s->reader, s->txn, &log->tables, e);
        if (rv != 0) {
            lmdb_read_end(s->txn);
        }
    }
    return rv;
}

static int read_begin(struct lmdb_log *log, struct slot **out,
                      struct hedge_error *e)
{
    int rv = 0;

    for (unsigned tries = 0; tries < 2; tries++) {
        rv = need_log(log, e);
        if (rv != 0) {
            return rv;
        }
        *out = take_slot(log);
        rv = slot_begin(log, *out, e);
        if (rv == 0) {
            return 0;
        }
        pthread_mutex_unlock(&(*out)->lock);
        if (rv != HEDGE_EIO) {
            return rv;
        }
        close_if_broken(log);
    }
    return rv;
}

static void read_end(struct slot *s)
{
    lmdb_read_end(s->txn);
    pthread_mutex_unlock(&s->lock);
}

struct to_engine {
    engine_entry_fn fn;
    void *ctx;
};

static int on_entry(void *ctx, const struct kvlog_entry *from)
{
    const struct to_engine *t = ctx;
    struct engine_entry entry = {.key = from->key,
                                 .key_len = from->key_len,
                                 .value = from->value,
                                 .value_len = from->value_len,
                                 .revision = from->revision,
                                 .timestamp_ms = from->timestamp_ms,
                                 .token = from->token,
                                 .leader = from->leader};

    return t->fn(t->ctx, &entry);
}

int lmdb_log_latest(struct lmdb_log *log, const void *key, size_t key_len,
                    engine_entry_fn fn, void *fn_ctx, struct hedge_error *e)
{
    struct to_engine t = {.fn = fn, .ctx = fn_ctx};
    struct slot *s;
    int rv;

    if (key_len == 0 || kvlog_key_cost(key, key_len) > KVLOG_KEY_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "a key of %zu bytes: 1 to %u are possible, and a byte "
                         "0x00 counts twice",
                         key_len, KVLOG_KEY_MAX);
    }
    rv = read_begin(log, &s, e);
    if (rv == 0) {
        rv = kvlog_latest(&s->reader, &log->tables, key, key_len, on_entry, &t,
                          e);
        rv = with_path(log, rv, e);
        read_end(s);
    }
    return rv;
}

int lmdb_log_scan(struct lmdb_log *log, struct engine_query *q,
                  engine_entry_fn fn, void *fn_ctx, bool *more,
                  struct hedge_error *e)
{
    struct to_engine t = {.fn = fn, .ctx = fn_ctx};
    struct kvlog_query mine;
    struct slot *s;
    int rv = read_begin(log, &s, e);

    if (rv != 0) {
        return rv;
    }
    mine.key = q->key;
    mine.key_len = q->key_len;
    mine.prefix = q->prefix;
    mine.latest = q->latest;
    mine.newest = q->newest;
    mine.reserved = q->reserved;
    mine.from_revision = q->from_revision;
    mine.at_revision = q->at_revision;
    mine.since_ms = q->since_ms;
    mine.until_ms = q->until_ms;
    mine.limit = q->limit;
    mine.resume_len = q->resume_len;
    if (q->resume_len <= sizeof mine.resume) {
        memcpy(mine.resume, q->resume, q->resume_len);
    }
    rv = kvlog_scan(&s->reader, &log->tables, &mine, on_entry, &t, more, e);
    rv = with_path(log, rv, e);
    read_end(s);
    if (rv == 0) {
        q->limit = mine.limit;
        q->snapshot = mine.snapshot;
        q->resume_len = mine.resume_len;
        memcpy(q->resume, mine.resume, mine.resume_len);
    }
    return rv;
}

int lmdb_log_state(struct lmdb_log *log, struct engine_log_state *out,
                   struct hedge_error *e)
{
    struct kvlog_state state;
    struct slot *s;
    int rv = read_begin(log, &s, e);

    if (rv != 0) {
        return rv;
    }
    rv = with_path(log, kvlog_get_state(s->txn, &log->tables, &state, e), e);
    read_end(s);
    out->revision = state.revision;
    out->timestamp_ms = state.timestamp_ms;
    out->floor = state.floor;
    out->term = state.term;
    return rv;
}

int lmdb_log_maintain(struct lmdb_log *log, struct engine_health *out,
                      struct hedge_error *e)
{
    int dead = 0, rc = 0;

    pthread_mutex_lock(&log->lock); /* Keeps it open, or not. */
    if (atomic_load(&log->is_open)) {
        rc = mdb_reader_check(lmdb_env_handle(log->env), &dead);
    }
    pthread_mutex_unlock(&log->lock);
    if (rc != 0) {
        return lmdb_error(e, rc, "the log's readers");
    }
    if (dead > 0) {
        log_info("engine", "the log: freed the slots of %d dead readers", dead);
    }
    out->readers_cleared += (unsigned)dead;
    return 0;
}
