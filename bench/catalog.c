/* How fast the catalog takes entries and finds them again, beside LMDB alone
 * with the same rows, no sync and 4096 a transaction.
 *
 *   catalog [DIRECTORY [ENTRIES [RUNS]]] */
#include "store/catalog/catalog_internal.h"

#include "store/base/bytes.h"
#include "store/base/clock.h"

#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RUNS_MAX 99
#define PER_TXN 4096
#define BURST 2000 /* Fits the table: what a writer's thread pays. */

static char dir[4096];
static uint64_t n_entries = 500000;
static unsigned n_runs = 5;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "catalog: %s: %s\n", what, why);
    exit(1);
}

static void check(int rc)
{
    if (rc != 0) {
        die("failed", rc < 0 ? hedge_strerror(rc) : mdb_strerror(rc));
    }
}

static struct catalog_entry entry_of(uint64_t i)
{
    struct catalog_entry e;

    memset(&e, 0, sizeof e);
    e.id.generation = 7;
    e.id.writer = (uint32_t)(i % 4);
    e.id.sequence = i / 4;
    e.ordinal = i;
    e.raw_sum = i * 3;
    e.n_copies = 1;
    e.copies[0].where = CATALOG_DISK;
    e.copies[0].place.addr = i << 20;
    return e;
}

static uint64_t scattered(uint64_t i)
{
    return (i * 2654435761u) % n_entries;
}

struct rates {
    double put[RUNS_MAX], get[RUNS_MAX], burst[RUNS_MAX];
};

static double rate(uint64_t n, uint64_t since_ns)
{
    return (double)n / (double)(clock_mono_ns() - since_ns) * 1e9;
}

static void run_ours(struct rates *r, unsigned run)
{
    struct hedge_error e;
    struct catalog *c;
    uint64_t start;

    if (catalog_new(dir, &c, &e) != 0) {
        die("catalog", e.text);
    }
    start = clock_mono_ns();
    for (uint64_t i = 0; i < n_entries; i++) {
        struct catalog_entry entry = entry_of(i);
        check(catalog_put(c, &entry));
    }
    check(catalog_flush(c));
    r->put[run] = rate(n_entries, start);
    start = clock_mono_ns();
    for (uint64_t i = 0; i < n_entries; i++) {
        struct catalog_entry want = entry_of(scattered(i)), got;
        check(catalog_get(c, &want.id, &got));
    }
    r->get[run] = rate(n_entries, start);
    start = clock_mono_ns();
    for (uint64_t i = 0; i < BURST; i++) {
        struct catalog_entry entry = entry_of(n_entries + i);
        check(catalog_put(c, &entry));
    }
    r->burst[run] = rate(BURST, start);
    catalog_free(c);
}

static void bare_put(MDB_txn *txn, MDB_dbi blocks, MDB_dbi order, uint64_t i)
{
    unsigned char key[CATALOG_KEY_SIZE], row[CATALOG_ENTRY_MAX];
    unsigned char order_key[CATALOG_ORDER_KEY_SIZE];
    struct catalog_entry e = entry_of(i);
    size_t len = catalog_entry_encode(&e, row);
    MDB_val k = {sizeof key, key}, v = {len, row};

    catalog_key_encode(&e.id, key);
    check(mdb_put(txn, blocks, &k, &v, 0));
    put_be64(order_key, e.id.generation);
    put_be64(order_key + 8, e.ordinal);
    k = (MDB_val){sizeof order_key, order_key};
    v = (MDB_val){CATALOG_ORDER_SIZE, key + 8};
    check(mdb_put(txn, order, &k, &v, 0));
}

static void bare_get(MDB_txn *txn, MDB_dbi blocks, uint64_t i)
{
    unsigned char key[CATALOG_KEY_SIZE];
    struct catalog_entry e = entry_of(i);
    MDB_val k = {sizeof key, key}, v;

    catalog_key_encode(&e.id, key);
    check(mdb_get(txn, blocks, &k, &v));
    check(catalog_entry_decode(v.mv_data, v.mv_size, &e));
}

static void run_bare(struct rates *r, unsigned run)
{
    uint64_t start;
    MDB_dbi blocks, order;
    MDB_env *env;
    MDB_txn *txn;

    check(mdb_env_create(&env));
    check(mdb_env_set_maxdbs(env, 2));
    check(mdb_env_set_mapsize(env, (size_t)64 << 30));
    check(
        mdb_env_open(env, dir, MDB_NOSYNC | MDB_NOMETASYNC | MDB_NOTLS, 0600));
    check(mdb_txn_begin(env, NULL, 0, &txn));
    check(mdb_dbi_open(txn, "blocks", MDB_CREATE, &blocks));
    check(mdb_dbi_open(txn, "order", MDB_CREATE, &order));
    check(mdb_drop(txn, blocks, 0));
    check(mdb_drop(txn, order, 0));
    start = clock_mono_ns();
    for (uint64_t i = 0; i < n_entries; i++) {
        bare_put(txn, blocks, order, i);
        if (i % PER_TXN == PER_TXN - 1) {
            check(mdb_txn_commit(txn));
            check(mdb_txn_begin(env, NULL, 0, &txn));
        }
    }
    check(mdb_txn_commit(txn));
    r->put[run] = rate(n_entries, start);
    check(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn));
    start = clock_mono_ns();
    for (uint64_t i = 0; i < n_entries; i++) {
        mdb_txn_reset(txn);
        check(mdb_txn_renew(txn));
        bare_get(txn, blocks, scattered(i));
    }
    r->get[run] = rate(n_entries, start);
    mdb_txn_abort(txn);
    mdb_env_close(env);
}

static void clean(void)
{
    char path[4200];

    (void)snprintf(path, sizeof path, "%s/data.mdb", dir);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/lock.mdb", dir);
    (void)unlink(path);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *values)
{
    qsort(values, n_runs, sizeof *values, by_value);
    return values[n_runs / 2];
}

static void print_case(const char *name, double *ours, double *bare,
                       const char *limit_is)
{
    double o = median(ours), l = median(bare);

    printf("{\"case\":\"%s\",\"ours\":%.0f,\"limit\":%.0f,\"ratio\":%.3f,"
           "\"unit\":\"1/s\",\"limit_is\":\"%s\"}\n",
           name, o, l, o / l, limit_is);
}

int main(int argc, char **argv)
{
    static struct rates ours, bare;

    (void)snprintf(dir, sizeof dir, "%s/bench-catalog",
                   argc > 1 ? argv[1] : ".");
    n_entries = argc > 2 ? strtoull(argv[2], NULL, 10) : n_entries;
    n_runs = argc > 3 ? (unsigned)atoi(argv[3]) : n_runs;
    if (n_entries == 0 || n_runs == 0 || n_runs > RUNS_MAX) {
        die("usage", "catalog [DIRECTORY [ENTRIES [RUNS]]]");
    }
    if (mkdir(dir, 0700) != 0 && access(dir, W_OK) != 0) {
        die(dir, "cannot be made");
    }
    for (unsigned i = 0; i < n_runs; i++) {
        run_ours(&ours, i);
        clean();
        run_bare(&bare, i);
        clean();
    }
    print_case("catalog_put", ours.put, bare.put,
               "bare LMDB, same rows, no sync, 4096 a transaction");
    print_case("catalog_get", ours.get, bare.get,
               "bare LMDB, same rows, a snapshot for each");
    print_case("catalog_put_burst", ours.burst, bare.put,
               "bare LMDB, same rows, no sync, 4096 a transaction");
    (void)rmdir(dir);
    return 0;
}
