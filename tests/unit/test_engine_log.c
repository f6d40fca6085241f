/* The log of the lmdb engine: several processes, and everything that can go
 * wrong with a disk and with those who write to it. Children are forked while
 * there is one thread; they end by _exit() or by a signal. */
#include "cluster/engine/engine.h"
#include "cluster/engine/lmdb_env.h"
#include "store/base/clock.h"
#include "store/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/check.h"
#include "tests/lib/power.h"

#define WAIT 5000u
#define CHILDREN 3

static char top[64] = "/dev/shm/hedge-test-log-XXXXXX";
static char dir[128], url[256], data_path[300];
static struct hedge_error err;

static struct shared {
    volatile int ready, go;
    volatile uint64_t acknowledged[CHILDREN];
} * shared;

static int remove_entry(const char *path, const struct stat *st, int type,
                        struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int setup(void **state)
{
    static unsigned n;

    (void)state;
    (void)snprintf(dir, sizeof dir, "%s/%u/engine", top, n++);
    (void)snprintf(url, sizeof url, "lmdb:%s", dir);
    (void)snprintf(data_path, sizeof data_path, "%s/log/data.mdb", dir);
    memset(shared, 0, sizeof *shared);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    power_watch(NULL);
    return 0;
}

static struct engine opened_at(const char *at, const char *group)
{
    struct engine g;
    int rv = engine_open(at, group, &g, &err);

    if (rv != 0) {
        print_error("%s\n", err.text);
    }
    assert_int_equal(rv, 0);
    return g;
}

static struct engine opened(void)
{
    return opened_at(url, "g");
}

static int put(const struct engine *g, uint64_t token, const char *key,
               const char *value, uint64_t *revision)
{
    struct engine_put p = {.key = key,
                           .key_len = strlen(key),
                           .value = value,
                           .value_len = strlen(value)};
    int rv = engine_append(g, token, "here:1", &p, 1, WAIT, &err);

    if (revision != NULL) {
        *revision = p.revision;
    }
    return rv;
}

/* Values that count up, key by key: how many versions there are. */
struct count {
    uint64_t n, last;
};

static int count_entry(void *ctx, const struct engine_entry *e)
{
    struct count *c = ctx;

    assert_true(e->revision > c->last);
    c->last = e->revision;
    c->n++;
    return ENGINE_GO_ON;
}

static int count_all(const struct engine *g, const char *key, struct count *c)
{
    struct engine_query q = {.key = key,
                             .key_len = key != NULL ? strlen(key) : 0};
    bool more = true;
    int rv = 0;

    memset(c, 0, sizeof *c);
    while (rv == 0 && more) {
        rv = engine_scan(g, &q, count_entry, c, &more, &err);
    }
    return rv;
}

static uint64_t counted(const struct engine *g, const char *key)
{
    struct count c;

    assert_int_equal(count_all(g, key, &c), 0);
    return c.n;
}

/* --- one process ------------------------------------------------------------
 */

static void test_append_and_read(void **state)
{
    struct engine g = opened();
    struct engine_log_state s;
    uint64_t r;

    (void)state;
    assert_int_equal(engine_log_state(&g, &s, &err), 0);
    assert_int_equal(s.revision, 0);
    assert_int_equal(counted(&g, NULL), 0);
    assert_int_equal(put(&g, 3, "a", "1", &r), 0);
    assert_int_equal(r, 1);
    assert_int_equal(put(&g, 2, "a", "2", &r), HEDGE_EFENCED);
    assert_int_equal(put(&g, 4, "a", "3", &r), 0);
    assert_int_equal(r, 2);
    assert_int_equal(engine_log_state(&g, &s, &err), 0);
    assert_int_equal(s.revision, 2);
    assert_int_equal(s.term, 4);
    assert_true(s.timestamp_ms > 1600000000000u);
    assert_int_equal(counted(&g, "a"), 2);
    engine_close(&g);
    g = opened(); /* And after a restart. */
    assert_int_equal(counted(&g, NULL), 2);
    engine_close(&g);
}

static int note_value(void *ctx, const struct engine_entry *e)
{
    char *out = ctx;

    memcpy(out, e->value, e->value_len);
    out[e->value_len] = '\0';
    assert_string_equal(e->leader, "here:1");
    return ENGINE_END;
}

static void test_latest(void **state)
{
    struct engine g = opened();
    char value[16], key[600];

    (void)state;
    assert_int_equal(engine_latest(&g, "a", 1, note_value, value, &err),
                     HEDGE_ENOTFOUND);
    assert_int_equal(put(&g, 1, "a", "one", NULL), 0);
    assert_int_equal(put(&g, 1, "a", "two", NULL), 0);
    assert_int_equal(engine_latest(&g, "a", 1, note_value, value, &err), 0);
    assert_string_equal(value, "two");
    memset(key, 'k', sizeof key);
    assert_int_equal(
        engine_latest(&g, key, sizeof key, note_value, value, &err),
        HEDGE_EINVAL);
    assert_int_equal(engine_latest(&g, key, 0, note_value, value, &err),
                     HEDGE_EINVAL);
    engine_close(&g);
}

/* More puts than are converted at once, in one transaction or not at all. */
static void test_all_or_none(void **state)
{
    struct engine g = opened();
    struct engine_put puts[200];

    (void)state;
    for (unsigned i = 0; i < 200; i++) {
        puts[i] = (struct engine_put){
            .key = "k", .key_len = 1, .value = "v", .value_len = 1};
    }
    puts[199].key_len = 0;
    assert_int_equal(engine_append(&g, 1, "n", puts, 200, WAIT, &err),
                     HEDGE_EINVAL);
    assert_int_equal(counted(&g, NULL), 0);
    puts[199].key_len = 1;
    assert_int_equal(engine_append(&g, 1, "n", puts, 200, WAIT, &err), 0);
    assert_int_equal(puts[0].revision, 1);
    assert_int_equal(puts[199].revision, 200);
    assert_int_equal(counted(&g, NULL), 200);
    engine_close(&g);
}

static void test_groups_are_apart(void **state)
{
    struct engine a = opened_at(url, "a"), b = opened_at(url, "b"), c;
    char name[16];

    (void)state;
    assert_int_equal(put(&a, 5, "k", "1", NULL), 0);
    assert_int_equal(put(&b, 1, "k", "1", NULL), 0);
    assert_int_equal(put(&b, 1, "k", "2", NULL), 0);
    assert_int_equal(counted(&a, NULL), 1);
    assert_int_equal(counted(&b, NULL), 2);
    for (unsigned i = 2; i < 16; i++) {
        (void)snprintf(name, sizeof name, "g%u", i);
        c = opened_at(url, name);
        assert_int_equal(put(&c, 1, "k", "1", NULL), 0);
        engine_close(&c);
    }
    c = opened_at(url, "one too many");
    assert_int_equal(put(&c, 1, "k", "1", NULL), HEDGE_EEXHAUSTED);
    assert_non_null(strstr(err.text, "too many groups"));
    engine_close(&c);
    engine_close(&a);
    engine_close(&b);
}

/* Two engines of one process share the environment. */
static void test_two_engines(void **state)
{
    struct engine a = opened(), b = opened();

    (void)state;
    assert_int_equal(put(&a, 1, "k", "1", NULL), 0);
    assert_int_equal(counted(&b, NULL), 1);
    assert_int_equal(put(&b, 2, "k", "2", NULL), 0);
    assert_int_equal(put(&a, 1, "k", "3", NULL), HEDGE_EFENCED);
    engine_close(&a);
    assert_int_equal(counted(&b, NULL), 2);
    engine_close(&b);
}

static void test_compaction(void **state)
{
    struct engine g = opened();
    struct engine_compaction c = {.before_revision = 11, .keep = 2};
    uint64_t removed = 0;

    (void)state;
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(put(&g, 2, "k", "v", NULL), 0);
    }
    assert_int_equal(engine_compact(&g, 1, "n", &c, WAIT, &err), HEDGE_EFENCED);
    while (!c.done) {
        assert_int_equal(engine_compact(&g, 2, "n", &c, WAIT, &err), 0);
        removed += c.removed;
    }
    assert_int_equal(removed, 8);
    assert_int_equal(counted(&g, "k"), 2);
    engine_close(&g);
}

static void test_no_memory(void **state)
{
    struct engine g = opened();
    struct count c;
    long n = 0;
    int rv;

    (void)state;
    assert_int_equal(put(&g, 1, "k", "v", NULL), 0);
    do {
        mem_fail_after(n++);
        rv = put(&g, 1, "k", "v", NULL);
        mem_fail_after(-1);
        assert_true(rv == 0 || rv == HEDGE_ENOMEM);
    } while (rv != 0);
    assert_int_equal(count_all(&g, "k", &c), 0);
    mem_fail_after(0); /* Which the reader has by now. */
    assert_int_equal(count_all(&g, "k", &c), 0);
    mem_fail_after(-1);
    assert_int_equal(c.n, 2);
    engine_close(&g);
}

/* --- a log that cannot be read ----------------------------------------------
 */

static void write_file(const char *path, const char *text, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, len), len);
    close(fd);
}

static void test_unreadable(void **state)
{
    static char rubbish[20000];
    struct engine_holder who = {"a:1", "a:2", 1};
    struct engine_lease before;
    struct engine_log_state s;
    struct count c;
    struct engine g;
    char path[300];
    uint64_t t;

    (void)state;
    g = opened();
    engine_close(&g);
    (void)snprintf(path, sizeof path, "%s/log", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    memset(rubbish, 'x', sizeof rubbish);
    write_file(data_path, rubbish, sizeof rubbish);
    g = opened(); /* The lease is what a node needs. */
    assert_int_equal(engine_acquire(&g, &who, 1000, &t, &before, &err), 0);
    assert_int_equal(put(&g, t, "k", "v", NULL), HEDGE_ECORRUPT);
    assert_non_null(strstr(err.text, path));
    assert_int_equal(count_all(&g, NULL, &c), HEDGE_ECORRUPT);
    assert_int_equal(engine_log_state(&g, &s, &err), HEDGE_ECORRUPT);
    assert_int_equal(engine_maintain(&g, NULL, &err), 0);
    assert_int_equal(remove(data_path), 0);
    clock_sleep_ms(250); /* Tried again after a while. */
    assert_int_equal(put(&g, t, "k", "v", NULL), 0);
    engine_close(&g);
}

/* Every write and sync in turn fails, or is cut short: an error, and what was
 * acknowledged is there. */
static void check_faults(int error)
{
    struct engine g = opened();
    uint64_t good = 0, failures = 0, r;
    int rv;

    assert_int_equal(put(&g, 1, "k", "v", NULL), 0);
    good++;
    power_watch(data_path);
    for (long n = 1; n < 40; n++) {
        long before = power_operations();

        power_fail_after(n, 1, error);
        rv = put(&g, 1, "k", "v", &r);
        power_fail_after(1, 0, 0);
        if (rv == 0) {
            good++;
        } else {
            failures++;
            assert_true(rv == HEDGE_ENOSPC || rv == HEDGE_EIO);
            assert_non_null(strstr(err.text, dir));
        }
        /* Even where a meta page could not be written. */
        assert_int_equal(counted(&g, "k"), good);
        if (rv == 0 && power_operations() - before < n) {
            break; /* All of them have had their turn. */
        }
    }
    assert_true(failures >= 2);
    engine_close(&g);
    g = opened();
    assert_true(counted(&g, "k") >= good);
    assert_int_equal(put(&g, 1, "k", "v", NULL), 0);
    engine_close(&g);
}

static void test_full_disk(void **state)
{
    (void)state;
    check_faults(ENOSPC);
}

static void test_io_error(void **state)
{
    (void)state;
    check_faults(EIO);
}

static void test_short_write(void **state)
{
    (void)state;
    check_faults(0);
}

/* --- the power fails --------------------------------------------------------
 */

struct cuts {
    uint64_t acknowledged, seed;
    unsigned n;
    bool busy;
};

static void check_cut(void *ctx)
{
    struct cuts *c = ctx;
    struct engine_log_state s;
    char other[200], at[260];
    struct engine g;
    struct count n;

    if (c->busy || c->n >= 400) {
        return;
    }
    c->busy = true;
    (void)snprintf(other, sizeof other, "%s-cut-%u", dir, c->n++);
    assert_true(mkdir(other, 0700) == 0 || errno == EEXIST);
    (void)snprintf(at, sizeof at, "%s/log", other);
    assert_int_equal(mkdir(at, 0700), 0);
    (void)snprintf(at, sizeof at, "%s/log/data.mdb", other);
    power_cut(at, &c->seed);
    (void)snprintf(at, sizeof at, "lmdb:%s", other);
    g = opened_at(at, "g");
    assert_int_equal(engine_log_state(&g, &s, &err), 0);
    assert_int_equal(count_all(&g, NULL, &n), 0);
    /* All that was acknowledged, and of the rest all of a put or nothing. */
    assert_true(n.n >= c->acknowledged && n.n <= c->acknowledged + 5);
    assert_int_equal(n.n % 5, 0);
    assert_int_equal(n.last, n.n);
    assert_int_equal(s.revision, n.n);
    assert_int_equal(put(&g, s.term, "more", "v", NULL), 0);
    engine_close(&g);
    (void)nftw(other, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    c->busy = false;
}

static void test_power_cut(void **state)
{
    struct engine g = opened();
    struct cuts c = {.seed = (uint64_t)clock_wall_ms() | 1};
    static char value[9000];
    struct engine_put puts[5];
    char keys[5][16];

    (void)state;
    print_message("seed %llu\n", (unsigned long long)c.seed);
    assert_int_equal(engine_append(&g, 1, "n", NULL, 0, WAIT, &err), 0);
    power_watch(data_path);
    power_on_sync(check_cut, &c);
    for (unsigned i = 0; i < 100; i++) {
        for (unsigned k = 0; k < 5; k++) {
            (void)snprintf(keys[k], sizeof keys[k], "k%u",
                           (i * 7 + k * 13) % 31);
            puts[k] = (struct engine_put){
                .key = keys[k],
                .key_len = strlen(keys[k]),
                .value = value,
                .value_len = k == 4 ? sizeof value : 100,
                .request = {(unsigned char)i, (unsigned char)k, 1}};
        }
        assert_int_equal(engine_append(&g, 1, "n", puts, 5, WAIT, &err), 0);
        c.acknowledged += 5;
    }
    assert_true(c.n >= 200);
    engine_close(&g);
}

/* --- several processes ------------------------------------------------------
 */

static pid_t spawn(void (*body)(unsigned), unsigned number)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        body(number);
        _exit(0);
    }
    return pid;
}

static void wait_ready(int n)
{
    for (unsigned i = 0; shared->ready < n; i++) {
        assert_true(i < 20000);
        clock_sleep_ms(1);
    }
}

static void put_forever(unsigned number)
{
    struct engine g;
    char key[8] = {(char)('a' + number), '\0'};

    if (engine_open(url, "g", &g, &err) != 0) {
        _exit(9);
    }
    __sync_fetch_and_add(&shared->ready, 1);
    while (put(&g, 1, key, "v", NULL) == 0) {
        shared->acknowledged[number]++;
    }
    _exit(8);
}

/* All at once, again and again. */
static void test_kill_all_at_once(void **state)
{
    uint64_t before[CHILDREN] = {0};

    (void)state;
    for (unsigned round = 0; round < 8; round++) {
        pid_t pids[CHILDREN];
        struct engine g;
        struct count c;

        shared->ready = 0;
        for (unsigned i = 0; i < CHILDREN; i++) {
            pids[i] = spawn(put_forever, i);
        }
        wait_ready(CHILDREN);
        clock_sleep_ms(20 + round * 7);
        for (unsigned i = 0; i < CHILDREN; i++) {
            assert_int_equal(kill(pids[i], SIGKILL), 0);
        }
        for (unsigned i = 0; i < CHILDREN; i++) {
            int status;

            assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
            assert_true(WIFSIGNALED(status));
        }
        g = opened();
        assert_int_equal(count_all(&g, NULL, &c), 0); /* No gaps, no repeats. */
        assert_int_equal(c.n, c.last);
        for (unsigned i = 0; i < CHILDREN; i++) {
            char key[2] = {(char)('a' + i), '\0'};
            uint64_t n = counted(&g, key);

            /* One may have been on the disk and not said so. */
            assert_true(n >= shared->acknowledged[i] &&
                        n <= shared->acknowledged[i] + round + 1);
            assert_true(n >= before[i]);
            before[i] = n;
        }
        assert_int_equal(put(&g, 1, "parent", "v", NULL), 0);
        engine_close(&g);
    }
    assert_true(shared->acknowledged[0] > 0);
}

static void stop_inside_a_commit(unsigned number)
{
    static const struct lmdb_env_options o = {.map_bytes = (uint64_t)64 << 30,
                                              .databases = 80};
    struct lmdb_env *env;
    MDB_txn *txn;

    (void)number;
    if (lmdb_env_open(dir, "log", &o, &env, &err) != 0 ||
        lmdb_write_begin(env, 1000, &txn, &err) != 0) {
        _exit(9);
    }
    shared->ready = 1;
    raise(SIGSTOP);
    lmdb_write_abort(env, txn);
    lmdb_env_close(env);
}

static void test_stopped_inside_a_commit(void **state)
{
    struct engine g = opened();
    struct engine_put p = {
        .key = "k", .key_len = 1, .value = "v", .value_len = 1};
    char number[32];
    int status;
    pid_t pid;

    (void)state;
    assert_int_equal(put(&g, 1, "k", "v", NULL), 0);
    pid = spawn(stop_inside_a_commit, 0);
    wait_ready(1);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_int_equal(engine_append(&g, 1, "n", &p, 1, 200, &err),
                     HEDGE_ETIMEDOUT);
    (void)snprintf(number, sizeof number, "process %d ", (int)pid);
    assert_non_null(strstr(err.text, number));
    assert_int_equal(counted(&g, "k"), 1); /* Readers are not in its way. */
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(put(&g, 1, "k", "v", NULL), 0);
    assert_int_equal(counted(&g, "k"), 2);
    engine_close(&g);
}

static int suite_setup(void **state)
{
    (void)state;
    if (mkdtemp(top) == NULL) {
        (void)snprintf(top, sizeof top, "/tmp/hedge-test-log-XXXXXX");
        assert_non_null(mkdtemp(top));
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    return 0;
}

static int suite_teardown(void **state)
{
    (void)state;
    (void)munmap(shared, sizeof *shared);
    return nftw(top, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_append_and_read),  T(test_latest),
        T(test_all_or_none),      T(test_groups_are_apart),
        T(test_two_engines),      T(test_compaction),
        T(test_no_memory),        T(test_unreadable),
        T(test_full_disk),        T(test_io_error),
        T(test_short_write),      T(test_power_cut),
        T(test_kill_all_at_once), T(test_stopped_inside_a_commit),
    };

    return cmocka_run_group_tests_name("engine_log", tests, suite_setup,
                                       suite_teardown);
}
