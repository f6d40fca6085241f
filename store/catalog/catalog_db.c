/* The catalog's LMDB environment: nothing is ever synced, and no page is
 * written through the map, so that a full disk is an error and not a signal. */
#include "store/catalog/catalog_internal.h"

#include "store/base/bytes.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MAP_MAX ((size_t)64 << 30)
#define MAP_MIN ((size_t)256 << 20)
#define READERS 16
#define PATH_SIZE 4096
#define FULL_BELOW ((uint64_t)1 << 20)

/* A read transaction that is used again and again. */
struct reader {
    struct list link;
    MDB_txn *txn;
    MDB_cursor *order;
};

struct catalog_db {
    MDB_env *env;
    int dir_fd;
    MDB_dbi blocks, order;
    pthread_mutex_t lock; /* Of the free readers. */
    pthread_cond_t freed;
    struct list free_readers;
    struct reader readers[READERS];
};

static int from_lmdb(int rc)
{
    switch (rc) {
    case 0:
        return 0;
    case MDB_NOTFOUND:
        return HEDGE_ENOTFOUND;
    case MDB_MAP_FULL:
        return HEDGE_ENOSPC;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
        return HEDGE_ECORRUPT;
    default:
        break;
    }
    rc = rc > 0 ? error_from_errno(rc) : HEDGE_EIO;
    return rc == HEDGE_ENOSPC || rc == HEDGE_ENOMEM ? rc : HEDGE_EIO;
}

/* Of a write transaction. LMDB takes a write that was cut short, which is how
 * a disk becomes full, for an I/O error. */
static int from_write(const struct catalog_db *db, int rc)
{
    struct statvfs st;

    if (rc == EIO && fstatvfs(db->dir_fd, &st) == 0 &&
        (uint64_t)st.f_bavail * (uint64_t)st.f_frsize < FULL_BELOW) {
        return HEDGE_ENOSPC;
    }
    return from_lmdb(rc);
}

static MDB_val val_of(const void *data, size_t len)
{
    /* LMDB does not write through keys and values that go in. */
    return (MDB_val){.mv_size = len, .mv_data = (void *)(uintptr_t)data};
}

static MDB_val block_key(const struct block_id *id,
                         unsigned char bytes[CATALOG_KEY_SIZE])
{
    catalog_key_encode(id, bytes);
    return val_of(bytes, CATALOG_KEY_SIZE);
}

static MDB_val order_key(uint64_t generation, uint64_t ordinal,
                         unsigned char bytes[CATALOG_ORDER_KEY_SIZE])
{
    put_be64(bytes, generation);
    put_be64(bytes + 8, ordinal);
    return val_of(bytes, CATALOG_ORDER_KEY_SIZE);
}

/* --- opening -------------------------------------------------------------- */

static int empty_dir(const char *dir, struct hedge_error *e)
{
    static const char *const names[] = {"data.mdb", "lock.mdb"};
    char path[PATH_SIZE];

    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        return error_set_errno(e, errno, "making the directory %s", dir);
    }
    for (unsigned i = 0; i < 2; i++) {
        int n = snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        if (n < 0 || (size_t)n >= sizeof path) {
            return error_set(e, HEDGE_EINVAL, "the path %s is too long", dir);
        }
        if (unlink(path) != 0 && errno != ENOENT) {
            return error_set_errno(e, errno, "removing %s", path);
        }
    }
    return 0;
}

/* Nothing of it is of use in another life. */
static void leave_nothing(struct catalog_db *db)
{
    if (db->dir_fd >= 0) {
        (void)unlinkat(db->dir_fd, "data.mdb", 0);
        (void)unlinkat(db->dir_fd, "lock.mdb", 0);
    }
}

static int try_open(struct catalog_db *db, const char *dir, size_t map_size)
{
    unsigned flags = MDB_NOSYNC | MDB_NOMETASYNC | MDB_NOTLS | MDB_NOMEMINIT;
    int rc = mdb_env_create(&db->env);

    if (rc != 0) {
        db->env = NULL;
        return rc;
    }
    rc = mdb_env_set_maxdbs(db->env, 2);
    if (rc == 0) {
        rc = mdb_env_set_mapsize(db->env, map_size);
    }
    if (rc == 0) {
        rc = mdb_env_open(db->env, dir, flags, 0600);
    }
    if (rc != 0) {
        mdb_env_close(db->env);
        db->env = NULL;
    }
    return rc;
}

static int open_env(struct catalog_db *db, const char *dir,
                    struct hedge_error *e)
{
    size_t map_size = MAP_MAX;
    int rc = try_open(db, dir, map_size);

    while (rc == ENOMEM && map_size > MAP_MIN) {
        map_size /= 4;
        rc = try_open(db, dir, map_size);
    }
    return rc == 0 ? 0
                   : error_set(e, from_lmdb(rc), "opening the catalog %s: %s",
                               dir, mdb_strerror(rc));
}

static int open_tables(struct catalog_db *db)
{
    MDB_txn *txn;
    int rc = mdb_txn_begin(db->env, NULL, 0, &txn);

    if (rc != 0) {
        return rc;
    }
    rc = mdb_dbi_open(txn, "blocks", MDB_CREATE, &db->blocks);
    if (rc == 0) {
        rc = mdb_dbi_open(txn, "order", MDB_CREATE, &db->order);
    }
    if (rc != 0) {
        mdb_txn_abort(txn);
        return rc;
    }
    return mdb_txn_commit(txn);
}

static int open_readers(struct catalog_db *db)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < READERS; i++) {
        struct reader *r = &db->readers[i];
        rc = mdb_txn_begin(db->env, NULL, MDB_RDONLY, &r->txn);
        if (rc != 0) {
            r->txn = NULL;
            break;
        }
        rc = mdb_cursor_open(r->txn, db->order, &r->order);
        mdb_txn_reset(r->txn);
        list_push(&db->free_readers, &r->link);
    }
    return rc;
}

int catalog_db_new(const char *dir, struct catalog_db **out,
                   struct hedge_error *e)
{
    struct catalog_db *db = mem_calloc(1, sizeof *db);
    int rv;

    *out = NULL;
    if (db == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the catalog");
    }
    db->dir_fd = -1;
    list_init(&db->free_readers);
    pthread_mutex_init(&db->lock, NULL);
    pthread_cond_init(&db->freed, NULL);
    rv = empty_dir(dir, e);
    if (rv == 0) {
        rv = open_env(db, dir, e);
    }
    if (rv == 0) {
        int rc = open_tables(db);
        db->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        rc = rc == 0 ? open_readers(db) : rc;
        if (rc != 0) {
            rv = error_set(e, from_lmdb(rc), "opening the catalog %s: %s", dir,
                           mdb_strerror(rc));
        }
    }
    if (rv != 0) {
        catalog_db_free(db);
        return rv;
    }
    *out = db;
    return 0;
}

void catalog_db_free(struct catalog_db *db)
{
    if (db == NULL) {
        return;
    }
    for (unsigned i = 0; i < READERS; i++) {
        struct reader *r = &db->readers[i];
        if (r->order != NULL) {
            mdb_cursor_close(r->order);
        }
        if (r->txn != NULL) {
            mdb_txn_abort(r->txn);
        }
    }
    if (db->env != NULL) {
        mdb_env_close(db->env);
    }
    leave_nothing(db);
    if (db->dir_fd >= 0) {
        close(db->dir_fd);
    }
    pthread_cond_destroy(&db->freed);
    pthread_mutex_destroy(&db->lock);
    mem_free(db);
}

/* --- reading -------------------------------------------------------------- */

static void reader_put(struct catalog_db *db, struct reader *r)
{
    mdb_txn_reset(r->txn);
    pthread_mutex_lock(&db->lock);
    /* The last one used is the first to be used again: it is in the cache. */
    list_push_front(&db->free_readers, &r->link);
    pthread_cond_signal(&db->freed);
    pthread_mutex_unlock(&db->lock);
}

/* A snapshot of now, or NULL and *rv. */
static struct reader *reader_get(struct catalog_db *db, int *rv)
{
    struct list *item;
    struct reader *r;
    int rc;

    pthread_mutex_lock(&db->lock);
    while ((item = list_pop(&db->free_readers)) == NULL) {
        pthread_cond_wait(&db->freed, &db->lock);
    }
    pthread_mutex_unlock(&db->lock);
    r = container_of(item, struct reader, link);
    rc = mdb_txn_renew(r->txn);
    if (rc == 0) {
        return r;
    }
    *rv = from_lmdb(rc);
    reader_put(db, r);
    return NULL;
}

static int read_entry(struct catalog_db *db, MDB_txn *txn,
                      const struct block_id *id, struct catalog_entry *out)
{
    unsigned char key_bytes[CATALOG_KEY_SIZE];
    MDB_val key = block_key(id, key_bytes), value;
    int rv;

    rv = from_lmdb(mdb_get(txn, db->blocks, &key, &value));
    if (rv == 0) {
        rv = catalog_entry_decode(value.mv_data, value.mv_size, out);
        out->id = *id;
    }
    return rv;
}

int catalog_db_get(struct catalog_db *db, const struct block_id *id,
                   struct catalog_entry *out)
{
    int rv;
    struct reader *r = reader_get(db, &rv);

    if (r != NULL) {
        rv = read_entry(db, r->txn, id, out);
        reader_put(db, r);
    }
    return rv;
}

static int order_row_decode(const MDB_val *key, const MDB_val *value,
                            struct block_id *id, uint64_t *ordinal)
{
    const unsigned char *k = key->mv_data, *v = value->mv_data;

    if (key->mv_size != CATALOG_ORDER_KEY_SIZE ||
        value->mv_size != CATALOG_ORDER_SIZE) {
        return HEDGE_ECORRUPT;
    }
    memset(id, 0, sizeof *id);
    id->generation = get_be64(k);
    *ordinal = get_be64(k + 8);
    id->writer = get_be32(v);
    id->sequence = get_be64(v + 4);
    return 0;
}

/* HEDGE_ENOTFOUND: the row's block is gone or has another ordinal now. */
static int resolve(struct catalog_db *db, MDB_txn *txn,
                   const struct block_id *id, uint64_t ordinal, catalog_ask ask,
                   void *ctx, struct catalog_entry *out)
{
    enum catalog_word word = ask(ctx, id, out);
    int rv = word == CATALOG_GONE ? HEDGE_ENOTFOUND : 0;

    if (word == CATALOG_AS_STORED) {
        rv = read_entry(db, txn, id, out);
    }
    return rv == 0 && out->ordinal != ordinal ? HEDGE_ENOTFOUND : rv;
}

int catalog_db_seek(struct catalog_db *db, uint64_t generation,
                    uint64_t ordinal, bool exact, catalog_ask ask, void *ctx,
                    struct catalog_entry *out)
{
    unsigned char key_bytes[CATALOG_ORDER_KEY_SIZE];
    MDB_val key = order_key(generation, ordinal, key_bytes), value;
    MDB_cursor_op op = exact ? MDB_SET_KEY : MDB_SET_RANGE;
    int rv;
    struct reader *r = reader_get(db, &rv);

    if (r == NULL) {
        return rv;
    }
    rv = from_lmdb(mdb_cursor_renew(r->txn, r->order));
    while (rv == 0) {
        struct block_id id;
        uint64_t at;

        rv = from_lmdb(mdb_cursor_get(r->order, &key, &value, op));
        if (rv == 0) {
            rv = order_row_decode(&key, &value, &id, &at);
        }
        if (rv == 0 && id.generation != generation) {
            rv = HEDGE_ENOTFOUND;
        }
        if (rv != 0) {
            break;
        }
        rv = resolve(db, r->txn, &id, at, ask, ctx, out);
        if (exact || rv != HEDGE_ENOTFOUND) {
            break;
        }
        rv = 0;
        op = MDB_NEXT;
    }
    reader_put(db, r);
    return rv;
}

/* --- writing -------------------------------------------------------------- */

/* Take the order row away, if it is this block's. */
static int order_remove(struct catalog_db *db, MDB_txn *txn,
                        const struct block_id *id, uint64_t ordinal)
{
    unsigned char key_bytes[CATALOG_ORDER_KEY_SIZE];
    MDB_val key, value;
    struct block_id named;
    uint64_t at;
    int rc;

    if (ordinal == CATALOG_ORDINAL_NONE) {
        return 0;
    }
    key = order_key(id->generation, ordinal, key_bytes);
    rc = mdb_get(txn, db->order, &key, &value);
    if (rc != 0) {
        return rc == MDB_NOTFOUND ? 0 : rc;
    }
    if (order_row_decode(&key, &value, &named, &at) != 0 ||
        !block_id_equal(&named, id)) {
        return 0;
    }
    return mdb_del(txn, db->order, &key, NULL);
}

static int order_put(struct catalog_db *db, MDB_txn *txn,
                     const struct catalog_entry *entry)
{
    unsigned char key_bytes[CATALOG_ORDER_KEY_SIZE];
    unsigned char row[CATALOG_ORDER_SIZE];
    MDB_val key;
    MDB_val value;

    if (entry->ordinal == CATALOG_ORDINAL_NONE) {
        return 0;
    }
    key = order_key(entry->id.generation, entry->ordinal, key_bytes);
    put_be32(row, entry->id.writer);
    put_be64(row + 4, entry->id.sequence);
    value = val_of(row, sizeof row);
    return mdb_put(txn, db->order, &key, &value, 0);
}

static int apply_put(struct catalog_db *db, MDB_txn *txn,
                     const struct catalog_entry *entry)
{
    unsigned char key_bytes[CATALOG_KEY_SIZE], row[CATALOG_ENTRY_MAX];
    MDB_val key = block_key(&entry->id, key_bytes);
    size_t row_len = catalog_entry_encode(entry, row);
    MDB_val value = val_of(row, row_len);
    struct catalog_entry old;
    int rc;

    rc = mdb_put(txn, db->blocks, &key, &value, MDB_NOOVERWRITE);
    if (rc == MDB_KEYEXIST) {
        rc = 0;
        if (catalog_entry_decode(value.mv_data, value.mv_size, &old) == 0 &&
            old.ordinal != entry->ordinal) {
            rc = order_remove(db, txn, &entry->id, old.ordinal);
        }
        value = val_of(row, row_len);
        if (rc == 0) {
            rc = mdb_put(txn, db->blocks, &key, &value, 0);
        }
    }
    return rc == 0 ? order_put(db, txn, entry) : rc;
}

static int apply_remove(struct catalog_db *db, MDB_txn *txn,
                        const struct block_id *id)
{
    unsigned char key_bytes[CATALOG_KEY_SIZE];
    MDB_val key = block_key(id, key_bytes), value;
    struct catalog_entry old;
    int rc;

    rc = mdb_get(txn, db->blocks, &key, &value);
    if (rc != 0) {
        return rc == MDB_NOTFOUND ? 0 : rc;
    }
    if (catalog_entry_decode(value.mv_data, value.mv_size, &old) == 0) {
        rc = order_remove(db, txn, id, old.ordinal);
    }
    return rc == 0 ? mdb_del(txn, db->blocks, &key, NULL) : rc;
}

int catalog_db_apply(struct catalog_db *db, const struct catalog_table *t,
                     bool removals_only)
{
    MDB_txn *txn;
    int rc = mdb_txn_begin(db->env, NULL, 0, &txn);

    if (rc != 0) {
        return from_write(db, rc);
    }
    for (unsigned i = 0; rc == 0 && i < t->n; i++) {
        const struct catalog_slot *s = &t->slots[i];
        if (s->removed) {
            rc = apply_remove(db, txn, &s->entry.id);
        } else if (!s->void_ && !removals_only) {
            rc = apply_put(db, txn, &s->entry);
        }
    }
    if (rc != 0) {
        mdb_txn_abort(txn);
        return from_write(db, rc);
    }
    return from_write(db, mdb_txn_commit(txn));
}

/* One block of the generation, at or after the cursor. */
static int remove_next(struct catalog_db *db, MDB_txn *txn, MDB_cursor *cursor,
                       uint64_t generation)
{
    struct block_id id = {.generation = generation};
    unsigned char key_bytes[CATALOG_KEY_SIZE];
    MDB_val key = block_key(&id, key_bytes), value;
    struct catalog_entry old;
    int rc;

    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    if (rc != 0) {
        return rc;
    }
    if (catalog_key_decode(key.mv_data, key.mv_size, &id) != 0) {
        return MDB_CORRUPTED;
    }
    if (id.generation != generation) {
        return MDB_NOTFOUND;
    }
    if (catalog_entry_decode(value.mv_data, value.mv_size, &old) == 0) {
        rc = order_remove(db, txn, &id, old.ordinal);
    }
    return rc == 0 ? mdb_cursor_del(cursor, 0) : rc;
}

int catalog_db_remove_some(struct catalog_db *db, uint64_t generation,
                           unsigned max, unsigned *n)
{
    MDB_cursor *cursor;
    MDB_txn *txn;
    int rc = mdb_txn_begin(db->env, NULL, 0, &txn);

    *n = 0;
    if (rc != 0) {
        return from_write(db, rc);
    }
    rc = mdb_cursor_open(txn, db->blocks, &cursor);
    if (rc == 0) {
        while (rc == 0 && *n < max) {
            rc = remove_next(db, txn, cursor, generation);
            *n += rc == 0;
        }
        mdb_cursor_close(cursor);
    }
    if (rc != 0 && rc != MDB_NOTFOUND) {
        mdb_txn_abort(txn);
        return from_write(db, rc);
    }
    return from_write(db, mdb_txn_commit(txn));
}
