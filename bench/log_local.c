/* The log of a node in this process, against LMDB and nothing else: puts of
 * many callers and of one, reading the latest version, walking a history.
 * Medians of interleaved runs.
 *
 *   log_local [--runs N] [--dir DIR] [--cpu on] [put|put1|get|scan]...
 *
 * --cpu on: get and scan, and their limits, by the caller's processor time
 * rather than the clock, where other programs keep the machine busy. */
#include "bench/lib/bench.h"
#include "cluster/hedge.h"
#include "store/base/clock.h"
#include "store/base/units.h"

#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CALLERS 256
#define PUTS_EACH 40 /* Of each caller, in a run. */
#define SINGLES 150  /* Puts of one caller in a run, */
#define VALUE 128
#define GET_KEYS 100000u
#define GETS 1000000u
#define VERSIONS 1000000u
#define SCAN_KEYS 1000u
#define BATCH 4000u
#define TIMEOUT_MS 60000
#define MAP_BYTES ((size_t)16 << 30)
#define KEY_SIZE 32
#define PATH_SIZE 600

static unsigned runs = BENCH_RUNS;
static const char *base_dir;
static struct hedge_node *node;
static char value[VALUE];
static uint64_t round_number; /* Keys differ from run to run. */

static bool by_cpu;

static uint64_t now_ns(void)
{
    struct timespec t;

    if (!by_cpu) {
        return clock_mono_ns();
    }
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void must(int rv, const struct hedge_error *e)
{
    if (rv != 0) {
        bench_die("%s", e->text[0] != '\0' ? e->text : hedge_strerror(rv));
    }
}

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x * 0x9e3779b97f4a7c15u >> 32;
}

static size_t key_of(char out[KEY_SIZE], unsigned caller, unsigned i)
{
    return (size_t)snprintf(out, KEY_SIZE, "bench/%04llu/%03u/%06u",
                            (unsigned long long)round_number, caller, i);
}

/* --- LMDB -------------------------------------------------------------------
 */

struct raw {
    MDB_env *env;
    MDB_dbi dbi;
};

static void lmdb_must(int rc)
{
    if (rc != 0) {
        bench_die("LMDB: %s", mdb_strerror(rc));
    }
}

static void raw_open(struct raw *r, const char *name)
{
    char path[PATH_SIZE];
    MDB_txn *txn;

    (void)snprintf(path, sizeof path, "%s/%s", base_dir, name);
    if (mkdir(path, 0700) != 0) {
        bench_die("cannot make %s", path);
    }
    lmdb_must(mdb_env_create(&r->env));
    lmdb_must(mdb_env_set_mapsize(r->env, MAP_BYTES));
    lmdb_must(mdb_env_open(r->env, path, MDB_NOTLS, 0600));
    lmdb_must(mdb_txn_begin(r->env, NULL, 0, &txn));
    lmdb_must(mdb_dbi_open(txn, NULL, 0, &r->dbi));
    lmdb_must(mdb_txn_commit(txn));
}

static void raw_put(struct raw *r, MDB_txn *txn, unsigned caller, unsigned i)
{
    char key[KEY_SIZE];
    MDB_val k = {key_of(key, caller, i), key}, v = {VALUE, value};

    lmdb_must(mdb_put(txn, r->dbi, &k, &v, 0));
}

/* --- 256 callers ------------------------------------------------------------
 */

static void *caller_main(void *arg)
{
    unsigned caller = *(unsigned *)arg;
    struct hedge_error e;
    char key[KEY_SIZE];

    for (unsigned i = 0; i < PUTS_EACH; i++) {
        must(hedge_put(node, key, key_of(key, caller, i), value, VALUE, 0,
                       TIMEOUT_MS, NULL, &e),
             &e);
    }
    return NULL;
}

static double put_ours(void)
{
    pthread_t threads[CALLERS];
    unsigned numbers[CALLERS];
    pthread_attr_t attr;
    uint64_t start = clock_mono_ns();

    pthread_attr_init(&attr);
    (void)pthread_attr_setstacksize(&attr, (size_t)128 << 10);
    for (unsigned i = 0; i < CALLERS; i++) {
        numbers[i] = i;
        if (pthread_create(&threads[i], &attr, caller_main, &numbers[i]) != 0) {
            bench_die("no thread");
        }
    }
    for (unsigned i = 0; i < CALLERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    pthread_attr_destroy(&attr);
    return CALLERS * PUTS_EACH * 1e9 / (double)(clock_mono_ns() - start);
}

static double put_raw(struct raw *r)
{
    uint64_t start = clock_mono_ns();

    for (unsigned i = 0; i < PUTS_EACH; i++) {
        MDB_txn *txn;

        lmdb_must(mdb_txn_begin(r->env, NULL, 0, &txn));
        for (unsigned caller = 0; caller < CALLERS; caller++) {
            raw_put(r, txn, caller, i);
        }
        lmdb_must(mdb_txn_commit(txn));
    }
    return CALLERS * PUTS_EACH * 1e9 / (double)(clock_mono_ns() - start);
}

static void bench_put(void)
{
    static struct bench_case c = {.name = "log_put_256",
                                  .unit = "puts/s",
                                  .limit_is =
                                      "LMDB: transactions of 256 puts, synced"};
    struct raw r;

    raw_open(&r, "raw-put");
    (void)put_ours();
    for (unsigned i = 0; i < runs; i++) {
        double limit;

        round_number++;
        limit = put_raw(&r);
        bench_add(&c, put_ours(), limit);
    }
    bench_print(&c);
    mdb_env_close(r.env);
}

/* --- one caller -------------------------------------------------------------
 */

static int by_number(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static double median_us(uint64_t *ns, unsigned n)
{
    qsort(ns, n, sizeof *ns, by_number);
    return (double)ns[n / 2] / 1e3;
}

/* One of each in turn: the disk is in the same mood for both. */
static void bench_put_one(void)
{
    static struct bench_case c = {
        .name = "log_put_1",
        .unit = "us",
        .limit_is = "LMDB: a transaction of one put, synced (less is better)"};
    static uint64_t ours[SINGLES], raw[SINGLES];
    struct raw r;

    raw_open(&r, "raw-put1");
    for (unsigned run = 0; run < runs; run++) {
        round_number++;
        for (unsigned i = 0; i < SINGLES; i++) {
            uint64_t start = clock_mono_ns();
            struct hedge_error e;
            char key[KEY_SIZE];
            MDB_txn *txn;

            lmdb_must(mdb_txn_begin(r.env, NULL, 0, &txn));
            raw_put(&r, txn, 0, i);
            lmdb_must(mdb_txn_commit(txn));
            raw[i] = clock_mono_ns() - start;
            start = clock_mono_ns();
            must(hedge_put(node, key, key_of(key, 0, i), value, VALUE, 0,
                           TIMEOUT_MS, NULL, &e),
                 &e);
            ours[i] = clock_mono_ns() - start;
        }
        bench_add(&c, median_us(ours, SINGLES), median_us(raw, SINGLES));
    }
    bench_print(&c);
    mdb_env_close(r.env);
}

/* --- get --------------------------------------------------------------------
 */

static void fill(const char *prefix, unsigned n, unsigned n_keys)
{
    static struct hedge_put puts[BATCH];
    static char keys[BATCH][KEY_SIZE];
    struct hedge_error e;

    for (unsigned at = 0; at < n; at += BATCH) {
        unsigned some = n - at < BATCH ? n - at : BATCH;

        for (unsigned i = 0; i < some; i++) {
            unsigned number = (at + i) % n_keys;

            puts[i] = (struct hedge_put){
                .key = keys[i],
                .key_len = (size_t)snprintf(keys[i], KEY_SIZE, "%s%06u", prefix,
                                            number),
                .value = value,
                .value_len = VALUE};
        }
        must(hedge_put_batch(node, puts, some, TIMEOUT_MS, &e), &e);
    }
}

static double get_ours(void)
{
    uint64_t x = 88172645463325252u, start = now_ns();
    struct hedge_entries *entries;
    struct hedge_error e;
    char key[KEY_SIZE];

    for (unsigned i = 0; i < GETS; i++) {
        int n = snprintf(key, sizeof key, "get/%06u",
                         (unsigned)(next(&x) % GET_KEYS));

        must(hedge_get(node, key, (size_t)n, HEDGE_GET_LATEST, &entries, &e),
             &e);
        if (entries->n != 1 || entries->entry[0].value_len != VALUE) {
            bench_die("a wrong answer");
        }
        hedge_entries_free(entries);
    }
    return GETS * 1e3 / (double)(now_ns() - start);
}

/* What the loop above does beside asking. */
static uint64_t get_overhead_ns(void)
{
    uint64_t x = 88172645463325252u, start = now_ns();
    char key[KEY_SIZE];
    int sum = 0;

    for (unsigned i = 0; i < GETS; i++) {
        sum += snprintf(key, sizeof key, "get/%06u",
                        (unsigned)(next(&x) % GET_KEYS));
    }
    return sum > 0 ? now_ns() - start : 0;
}

static void bench_get(void)
{
    static struct bench_case c = {
        .name = "log_get_latest",
        .unit = "M/s",
        .limit_is = "the promise: a million a second, one caller"};

    fill("get/", GET_KEYS, GET_KEYS);
    (void)get_ours();
    for (unsigned i = 0; i < runs; i++) {
        double rate = get_ours();
        double ns = GETS * 1e3 / rate - (double)get_overhead_ns();

        bench_add(&c, GETS * 1e3 / ns, 1.0);
    }
    bench_print(&c);
}

/* --- scan -------------------------------------------------------------------
 */

static double scan_ours(void)
{
    struct hedge_query q;
    struct hedge_entry entry;
    struct hedge_error e;
    struct hedge_log *l;
    uint64_t n = 0, bytes = 0, start = now_ns();
    int rv;

    hedge_query_init(&q);
    q.key = "scan/";
    q.key_len = 5;
    q.prefix = true;
    must(hedge_log_open(node, &q, &l, &e), &e);
    while ((rv = hedge_log_next(l, 0, &entry, &e)) == 0) {
        n++;
        bytes += entry.value_len + *(const unsigned char *)entry.value;
    }
    if (rv != HEDGE_EEND || n != VERSIONS || bytes < VERSIONS * VALUE) {
        bench_die("%llu versions: %s", (unsigned long long)n, e.text);
    }
    hedge_log_close(l);
    return (double)n * 1e3 / (double)(now_ns() - start);
}

static double scan_raw(struct raw *r)
{
    uint64_t n = 0, bytes = 0, start = now_ns();
    MDB_cursor *c;
    MDB_txn *txn;
    MDB_val k, v;

    lmdb_must(mdb_txn_begin(r->env, NULL, MDB_RDONLY, &txn));
    lmdb_must(mdb_cursor_open(txn, r->dbi, &c));
    while (mdb_cursor_get(c, &k, &v, MDB_NEXT) == 0) {
        n++;
        bytes += v.mv_size + *(const unsigned char *)v.mv_data;
    }
    mdb_cursor_close(c);
    mdb_txn_abort(txn);
    if (n != VERSIONS || bytes < VERSIONS * VALUE) {
        bench_die("the raw table has %llu rows", (unsigned long long)n);
    }
    return (double)n * 1e3 / (double)(now_ns() - start);
}

static void fill_raw(struct raw *r)
{
    char key[KEY_SIZE];
    MDB_txn *txn;

    lmdb_must(mdb_txn_begin(r->env, NULL, 0, &txn));
    for (unsigned i = 0; i < VERSIONS; i++) {
        int n = snprintf(key, sizeof key, "scan/%06u/%08u", i % SCAN_KEYS, i);
        MDB_val k = {(size_t)n, key}, v = {VALUE, value};

        lmdb_must(mdb_put(txn, r->dbi, &k, &v, 0));
    }
    lmdb_must(mdb_txn_commit(txn));
}

static void bench_scan(void)
{
    static struct bench_case c = {.name = "log_history_1M",
                                  .unit = "M/s",
                                  .limit_is =
                                      "LMDB: a cursor over as many rows"};
    struct raw r;

    raw_open(&r, "raw-scan");
    fill("scan/", VERSIONS, SCAN_KEYS);
    fill_raw(&r);
    (void)scan_raw(&r);
    (void)scan_ours();
    for (unsigned i = 0; i < runs; i++) {
        double limit = scan_raw(&r);

        bench_add(&c, scan_ours(), limit);
    }
    bench_print(&c);
    mdb_env_close(r.env);
}

/* --- the node ---------------------------------------------------------------
 */

static void start_node(void)
{
    static char listen[64], engine[PATH_SIZE], data[PATH_SIZE];
    struct hedge_options o;
    struct hedge_leader l;
    struct hedge_error e;

    hedge_process_setup();
    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%u",
                   20000 + 2 * ((unsigned)getpid() % 20000));
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", base_dir);
    (void)snprintf(data, sizeof data, "%s/data", base_dir);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = data;
    o.mem_limit = (uint64_t)32 << 20;
    o.disk_limit = 0;
    must(hedge_node_start(&o, &node, &e), &e);
    while (hedge_leader(node, &l) != 0) {
        clock_sleep_ms(10);
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {{"put", bench_put},
                 {"put1", bench_put_one},
                 {"get", bench_get},
                 {"scan", bench_scan}};
    const char *dir = NULL;
    bool some = false;
    uint64_t n;
    int i = 1;

    bench_init(argv[0]);
    for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        if (strcmp(argv[i], "--dir") == 0) {
            dir = argv[i + 1];
        } else if (strcmp(argv[i], "--cpu") == 0) {
            by_cpu = strcmp(argv[i + 1], "on") == 0;
        } else if (strcmp(argv[i], "--runs") == 0 &&
                   units_parse_u64(argv[i + 1], &n) && n > 0 &&
                   n <= BENCH_RUNS_MAX) {
            runs = (unsigned)n;
        } else {
            bench_die("usage: log_local [--runs N] [--dir DIR] [--cpu on] "
                      "[put|put1|get|scan]...");
        }
    }
    base_dir = bench_dir(dir);
    bench_fill(value, sizeof value, 1);
    start_node();
    for (unsigned k = 0; k < sizeof parts / sizeof parts[0]; k++) {
        bool wanted = i == argc;

        for (int a = i; a < argc; a++) {
            wanted = wanted || strcmp(argv[a], parts[k].name) == 0;
        }
        if (wanted) {
            parts[k].run();
            some = true;
        }
    }
    if (!some) {
        bench_die("nothing of that name");
    }
    hedge_node_stop(node);
    return 0;
}
