/* Leases in LMDB, in one process with a clock set by hand, and in several
 * with the kernel's. Children are forked while there is one thread; they end
 * by _exit() or by a signal. */
#include "cluster/engine/engine.h"
#include "cluster/engine/lmdb.h"
#include "cluster/engine/lmdb_env.h"
#include "store/base/bytes.h"
#include "store/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define LEASE 1000u

/* In memory where that can be had: a busy disk makes every commit slow. */
static char top[64] = "/dev/shm/hedge-test-engine-XXXXXX";
static char dir[128], url[256];
static uint64_t manual_ms;
static struct hedge_error err;

static uint64_t manual_now(void *ctx)
{
    (void)ctx;
    return manual_ms;
}
static const struct clock manual = {.now_ms = manual_now};

static const struct engine_holder a = {"a:1", "a:2", 1};
static const struct engine_holder b = {"b:1", "b:2", 1};

static int remove_entry(const char *path, const struct stat *st, int type,
                        struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

/* A directory of its own for each test, not made yet, and the manual clock. */
static int setup(void **state)
{
    static unsigned n;

    (void)state;
    (void)snprintf(dir, sizeof dir, "%s/%u/engine", top, n++);
    (void)snprintf(url, sizeof url, "lmdb:%s", dir);
    manual_ms = 1000000;
    lmdb_test_set_clock(&manual);
    lmdb_test_set_boot_id("boot-1");
    return 0;
}

static struct engine opened(const char *group)
{
    struct engine g;
    int rv = engine_open(url, group, &g, &err);

    if (rv != 0) {
        print_error("%s\n", err.text);
    }
    assert_int_equal(rv, 0);
    return g;
}

static int acquire(const struct engine *g, const struct engine_holder *who,
                   uint64_t *token)
{
    struct engine_lease before;

    return engine_acquire(g, who, LEASE, token, &before, &err);
}

static struct engine_lease look(const struct engine *g)
{
    struct engine_lease l;

    assert_int_equal(engine_look(g, &l, &err), 0);
    return l;
}

/* --- one process ------------------------------------------------------------
 */

static void test_urls(void **state)
{
    struct engine g;
    char name[300];

    (void)state;
    assert_int_equal(engine_open("etcd://h:1/p", "g", &g, &err), HEDGE_ENOTSUP);
    assert_non_null(strstr(err.text, "etcd://h:1/p"));
    assert_null(g.ops);
    engine_close(&g);
    assert_int_equal(engine_open("spanner://x", "g", &g, &err), HEDGE_ENOTSUP);
    assert_int_equal(engine_open("/var/lib", "g", &g, &err), HEDGE_EINVAL);
    assert_non_null(strstr(err.text, "say lmdb:/var/lib"));
    assert_int_equal(engine_open("lmdb:", "g", &g, &err), HEDGE_EINVAL);
    assert_non_null(strstr(err.text, "say lmdb:DIR"));
    assert_int_equal(engine_open(url, "", &g, &err), HEDGE_EINVAL);
    assert_int_equal(engine_open(url, "a/b", &g, &err), HEDGE_EINVAL);
    assert_int_equal(engine_open(url, "a\nb", &g, NULL), HEDGE_EINVAL);
    memset(name, 'x', sizeof name);
    name[256] = '\0';
    assert_int_equal(engine_open(url, name, &g, &err), HEDGE_EINVAL);
    name[255] = '\0';
    assert_int_equal(engine_open(url, name, &g, &err), 0);
    {
        uint64_t token;
        assert_int_equal(acquire(&g, &a, &token), 0);
    }
    engine_close(&g);
}

static void test_lease(void **state)
{
    struct engine g = opened("g");
    struct engine_lease l, before;
    uint64_t t1, t2;

    (void)state;
    l = look(&g);
    assert_false(l.held);
    assert_int_equal(l.token, 0);
    assert_true(l.idle_ms == UINT64_MAX);
    assert_int_equal(engine_acquire(&g, &a, LEASE, &t1, &before, &err), 0);
    assert_int_equal(t1, 1);
    assert_false(before.held);
    l = look(&g);
    assert_true(l.held);
    assert_string_equal(l.holder, "a:1");
    assert_string_equal(l.address, "a:2");
    assert_int_equal(l.incarnation, 1);
    assert_int_equal(l.token, 1);
    assert_int_equal(l.remaining_ms, LEASE);
    manual_ms += 400;
    assert_int_equal(engine_acquire(&g, &b, LEASE, &t2, &before, &err),
                     HEDGE_EBUSY);
    assert_int_equal(t2, 0);
    assert_string_equal(before.holder, "a:1");
    assert_int_equal(before.remaining_ms, 600);
    assert_int_equal(engine_renew(&g, t1, LEASE, &err), 0);
    assert_int_equal(look(&g).remaining_ms, LEASE);
    manual_ms += LEASE;
    assert_false(look(&g).held);
    assert_int_equal(engine_renew(&g, t1, LEASE, &err), HEDGE_EFENCED);
    assert_non_null(strstr(err.text, "run out"));
    manual_ms += 70;
    assert_int_equal(look(&g).idle_ms, 70);
    assert_int_equal(engine_acquire(&g, &b, LEASE, &t2, &before, &err), 0);
    assert_int_equal(t2, 2);
    assert_int_equal(before.idle_ms, 70);
    assert_string_equal(before.holder, "a:1");
    engine_close(&g);
}

static void test_stale_tokens(void **state)
{
    struct engine g = opened("g");
    uint64_t t1, t2;

    (void)state;
    assert_int_equal(acquire(&g, &a, &t1), 0);
    manual_ms += LEASE;
    assert_int_equal(acquire(&g, &b, &t2), 0);
    assert_int_equal(engine_renew(&g, t1, LEASE, &err), HEDGE_EFENCED);
    assert_non_null(strstr(err.text, "b:1 has 2"));
    assert_int_equal(engine_release(&g, t1, &err), HEDGE_EFENCED);
    assert_int_equal(engine_release(&g, 0, &err), HEDGE_EFENCED);
    assert_int_equal(engine_release(&g, 99, &err), HEDGE_EFENCED);
    assert_true(look(&g).held);
    assert_int_equal(look(&g).token, t2);
    assert_int_equal(engine_release(&g, t2, &err), 0);
    assert_false(look(&g).held);
    assert_int_equal(engine_release(&g, t2, &err), 0); /* Again. */
    assert_int_equal(engine_renew(&g, t2, LEASE, &err), HEDGE_EFENCED);
    assert_int_equal(acquire(&g, &a, &t1), 0);
    assert_int_equal(t1, 3);
    engine_close(&g);
}

static void test_lives_of_a_node(void **state)
{
    const struct engine_holder again = {"a:1", "a:2", 2};
    struct engine g = opened("g");
    uint64_t t;

    (void)state;
    assert_int_equal(acquire(&g, &a, &t), 0);
    assert_int_equal(acquire(&g, &a, &t), 0); /* Its answer was lost. */
    assert_int_equal(t, 2);
    assert_int_equal(engine_renew(&g, 1, LEASE, &err), HEDGE_EFENCED);
    assert_int_equal(acquire(&g, &again, &t), HEDGE_EBUSY);
    manual_ms += LEASE;
    assert_int_equal(acquire(&g, &again, &t), 0);
    assert_int_equal(t, 3);
    engine_close(&g);
}

static void test_another_boot_voids_the_lease(void **state)
{
    struct engine g = opened("g");
    struct engine_lease l;
    uint64_t t;

    (void)state;
    assert_int_equal(acquire(&g, &a, &t), 0);
    engine_close(&g);
    lmdb_test_set_boot_id("boot-2");
    manual_ms = 50; /* The clock began anew. */
    g = opened("g");
    l = look(&g);
    assert_false(l.held);
    assert_int_equal(l.token, 1);
    assert_true(l.idle_ms == UINT64_MAX);
    assert_int_equal(engine_renew(&g, t, LEASE, &err), HEDGE_EFENCED);
    assert_int_equal(acquire(&g, &b, &t), 0);
    assert_int_equal(t, 2);
    assert_int_equal(look(&g).remaining_ms, LEASE);
    engine_close(&g);
}

/* spindle's K3: one lock's cleaning up must not touch another's rows. */
static void test_groups_are_apart(void **state)
{
    struct engine g = opened("job"), h = opened("job_2"), j = opened("jo");
    uint64_t t;

    (void)state;
    assert_int_equal(acquire(&g, &a, &t), 0);
    assert_int_equal(acquire(&h, &b, &t), 0);
    assert_int_equal(t, 1);
    assert_int_equal(engine_release(&g, 1, &err), 0);
    assert_int_equal(acquire(&g, &a, &t), 0);
    assert_int_equal(t, 2);
    assert_true(look(&h).held);
    assert_int_equal(look(&h).token, 1);
    assert_int_equal(look(&j).token, 0);
    engine_close(&g);
    assert_string_equal(look(&h).holder, "b:1");
    engine_close(&h);
    engine_close(&j);
}

/* LMDB opened twice in a process loses its locks: ours must not be. */
static void test_opened_twice_is_one_environment(void **state)
{
    static const struct lmdb_env_options o = {.map_bytes = 64 << 20};
    struct engine g = opened("g"), h = opened("g");
    struct lmdb_env *e1, *e2;
    char other[200];
    uint64_t t;

    (void)state;
    assert_int_equal(lmdb_env_open(dir, "lease", &o, &e1, &err), 0);
    (void)snprintf(other, sizeof other, "%s/../engine/.", dir);
    assert_int_equal(lmdb_env_open(other, "lease", &o, &e2, &err), 0);
    assert_ptr_equal(e1, e2);
    assert_int_equal(acquire(&g, &a, &t), 0);
    engine_close(&g);
    lmdb_env_close(e1);
    assert_string_equal(look(&h).holder, "a:1");
    assert_int_equal(engine_renew(&h, t, LEASE, &err), 0);
    engine_close(&h);
    lmdb_env_close(e2);
    lmdb_env_close(NULL);
    g = opened("g");
    assert_true(look(&g).held);
    engine_close(&g);
}

static void test_bad_arguments(void **state)
{
    struct engine g = opened("g");
    char long_id[ENGINE_ID_SIZE + 1];
    struct engine_holder who = {long_id, "", 1};
    struct engine_lease before;
    uint64_t t;

    (void)state;
    memset(long_id, 'x', sizeof long_id);
    long_id[ENGINE_ID_SIZE] = '\0';
    assert_int_equal(acquire(&g, &who, &t), HEDGE_EINVAL);
    long_id[ENGINE_ID_SIZE - 1] = '\0';
    assert_int_equal(acquire(&g, &who, &t), 0);
    assert_string_equal(look(&g).holder, long_id);
    long_id[0] = '\0';
    assert_int_equal(acquire(&g, &who, &t), HEDGE_EINVAL);
    assert_int_equal(engine_acquire(&g, &a, 99, &t, &before, &err),
                     HEDGE_EINVAL);
    assert_int_equal(engine_renew(&g, 1, ENGINE_LEASE_MAX_MS + 1, &err),
                     HEDGE_EINVAL);
    engine_close(&g);
}

static void test_no_memory(void **state)
{
    struct engine g;
    int rv = HEDGE_ENOMEM;

    (void)state;
    for (long n = 0; rv != 0; n++) {
        mem_fail_after(n);
        rv = engine_open(url, "g", &g, &err);
        mem_fail_after(-1);
        assert_true(rv == 0 || rv == HEDGE_ENOMEM);
        assert_true(n < 10);
    }
    engine_close(&g);
}

/* --- places and files -------------------------------------------------------
 */

static void test_directories_are_private(void **state)
{
    struct engine g = opened("g");
    char path[200];
    struct stat st;

    (void)state;
    (void)snprintf(path, sizeof path, "%s/lease", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    (void)snprintf(path, sizeof path, "%s/lease/data.mdb", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    engine_close(&g);
}

static void test_network_file_systems(void **state)
{
    (void)state;
    assert_string_equal(lmdb_network_fs(0x6969), "NFS");
    assert_string_equal(lmdb_network_fs(0xff534d42), "CIFS");
    /* As a 32-bit f_type arrives in a signed long. */
    assert_string_equal(
        lmdb_network_fs((unsigned long)(long)(int32_t)0xfe534d42), "SMB");
    assert_string_equal(lmdb_network_fs(0x65735546), "FUSE");
    assert_null(lmdb_network_fs(0xef53));     /* ext4 */
    assert_null(lmdb_network_fs(0x01021994)); /* tmpfs */
    assert_null(lmdb_network_fs(0x58465342)); /* xfs */
    assert_null(lmdb_network_fs(0x794c7630)); /* overlayfs */
}

static void file_path(char out[200], const char *name)
{
    (void)snprintf(out, 200, "%s/lease/%s", dir, name);
}

static void write_file(const char *path, const void *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), (ssize_t)len);
    close(fd);
}

static void test_places_that_cannot_be(void **state)
{
    struct engine g = opened("g");
    char path[200], long_url[5000];

    (void)state;
    engine_close(&g);
    (void)snprintf(path, sizeof path, "%s/file", dir);
    write_file(path, "x", 1);
    (void)snprintf(url, sizeof url, "lmdb:%s", path);
    assert_true(engine_open(url, "g", &g, &err) < 0);
    assert_non_null(strstr(err.text, "file"));
    (void)snprintf(url, sizeof url, "lmdb:%s/deeper", path);
    assert_true(engine_open(url, "g", &g, &err) < 0);
    assert_true(engine_open("lmdb:/proc/self/nothing", "g", &g, &err) < 0);
    memset(long_url, 'x', sizeof long_url);
    memcpy(long_url, "lmdb:/", 6);
    long_url[sizeof long_url - 1] = '\0';
    assert_int_equal(engine_open(long_url, "g", &g, &err), HEDGE_EINVAL);
}

static void test_garbage_files(void **state)
{
    struct engine g = opened("g");
    unsigned char junk[20000];
    char path[200];
    uint64_t t;

    (void)state;
    assert_int_equal(acquire(&g, &a, &t), 0);
    engine_close(&g);
    for (size_t i = 0; i < sizeof junk; i++) {
        junk[i] = (unsigned char)(i * 31 + 7);
    }
    file_path(path, "lock.mdb"); /* Nobody has it open: it is made anew. */
    write_file(path, junk, sizeof junk);
    g = opened("g");
    assert_true(look(&g).held);
    engine_close(&g);
    file_path(path, "data.mdb");
    write_file(path, junk, sizeof junk);
    assert_int_equal(engine_open(url, "g", &g, &err), HEDGE_ECORRUPT);
    assert_non_null(strstr(err.text, dir));
    write_file(path, junk, 100);
    assert_int_equal(engine_open(url, "g", &g, &err), HEDGE_ECORRUPT);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_true(engine_open(url, "g", &g, &err) < 0);
    assert_int_equal(rmdir(path), 0);
    g = opened("g"); /* All gone: a new beginning. */
    engine_close(&g);
}

/* Cut at every page: an error, or what is still there, never SIGBUS. */
static void test_truncated_file(void **state)
{
    struct engine g = opened("g");
    char path[200];
    struct stat st;
    uint64_t t;
    bool refused = false;

    (void)state;
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(acquire(&g, &a, &t), 0);
    }
    engine_close(&g);
    file_path(path, "data.mdb");
    assert_int_equal(stat(path, &st), 0);
    for (off_t len = st.st_size; len >= 4096; len -= 4096) {
        int rv;
        assert_int_equal(truncate(path, len), 0);
        rv = engine_open(url, "g", &g, &err);
        if (rv == 0) {
            rv = acquire(&g, &a, &t);
        }
        refused = refused || rv != 0;
        assert_true(rv == 0 || rv == HEDGE_ECORRUPT);
        engine_close(&g);
    }
    assert_true(refused);
}

static void put_raw(const char *key_text, const void *data, size_t len)
{
    static const struct lmdb_env_options o = {.map_bytes = 64 << 20};
    struct lmdb_env *env;
    char key_copy[64];
    unsigned char copy[1024];
    MDB_val key, val = {len, copy};
    MDB_txn *txn;

    (void)snprintf(key_copy, sizeof key_copy, "%s", key_text);
    key.mv_data = key_copy;
    key.mv_size = strlen(key_copy);
    assert_true(len <= sizeof copy);
    memcpy(copy, data, len);
    assert_int_equal(lmdb_env_open(dir, "lease", &o, &env, &err), 0);
    assert_int_equal(lmdb_write_begin(env, 100, &txn, &err), 0);
    assert_int_equal(mdb_put(txn, lmdb_env_main(env), &key, &val, 0), 0);
    assert_int_equal(lmdb_write_commit(env, txn, &err), 0);
    lmdb_env_close(env);
}

static size_t get_raw(const char *key_text, unsigned char out[1024])
{
    static const struct lmdb_env_options o = {.map_bytes = 64 << 20};
    struct lmdb_env *env;
    char key_copy[64];
    MDB_val key, val;
    MDB_txn *txn = NULL;

    (void)snprintf(key_copy, sizeof key_copy, "%s", key_text);
    key.mv_data = key_copy;
    key.mv_size = strlen(key_copy);
    assert_int_equal(lmdb_env_open(dir, "lease", &o, &env, &err), 0);
    assert_int_equal(lmdb_read_begin(env, &txn, &err), 0);
    assert_int_equal(mdb_get(txn, lmdb_env_main(env), &key, &val), 0);
    assert_true(val.mv_size <= 1024);
    memcpy(out, val.mv_data, val.mv_size);
    mdb_txn_abort(txn);
    lmdb_env_close(env);
    return val.mv_size;
}

/* Every byte of the row counts. */
static void test_damaged_rows(void **state)
{
    struct engine g = opened("g"), h = opened("other");
    unsigned char row[1024];
    struct engine_lease l;
    uint64_t t;
    size_t len;

    (void)state;
    assert_int_equal(acquire(&g, &a, &t), 0);
    len = get_raw("lease/g", row);
    for (size_t i = 0; i < len; i++) {
        row[i] ^= 0x10;
        put_raw("lease/g", row, len);
        assert_int_equal(engine_look(&g, &l, &err), HEDGE_ECORRUPT);
        row[i] ^= 0x10;
    }
    assert_int_equal(acquire(&g, &b, &t), HEDGE_ECORRUPT);
    assert_int_equal(engine_renew(&g, 1, LEASE, &err), HEDGE_ECORRUPT);
    assert_int_equal(engine_release(&g, 1, &err), HEDGE_ECORRUPT);
    put_raw("lease/g", row, len - 1);
    assert_int_equal(engine_look(&g, &l, &err), HEDGE_ECORRUPT);
    put_raw("lease/g", row, 3);
    assert_int_equal(engine_look(&g, &l, &err), HEDGE_ECORRUPT);
    assert_int_equal(acquire(&h, &b, &t), 0); /* Another group's is fine. */
    put_raw("lease/g", row, len);
    assert_true(look(&g).held);
    put_raw("lease/g", row, 3);
    engine_close(&g);
    assert_int_equal(engine_open(url, "g", &g, &err), HEDGE_ECORRUPT);
    engine_close(&h);
}

static void test_environment_of_another_program(void **state)
{
    struct engine g;

    (void)state;
    put_raw("some key", "some value", 10);
    assert_int_equal(engine_open(url, "g", &g, &err), HEDGE_EVERSION);
    put_raw("format", "hedge lease 2", 13);
    assert_int_equal(engine_open(url, "g", &g, &err), HEDGE_EVERSION);
    put_raw("format", "hedge lease 1", 13);
    assert_int_equal(engine_open(url, "g", &g, &err), 0);
    engine_close(&g);
}

static void test_codes(void **state)
{
    (void)state;
    assert_int_equal(lmdb_error(&err, MDB_MAP_FULL, "x"), HEDGE_ENOSPC);
    assert_int_equal(lmdb_error(&err, MDB_READERS_FULL, "x"), HEDGE_EBUSY);
    assert_int_equal(lmdb_error(&err, EACCES, "x"), HEDGE_EPERM);
    assert_int_equal(lmdb_error(NULL, -12345, "x"), HEDGE_EINTERNAL);
    for (int rc = MDB_KEYEXIST; rc <= MDB_LAST_ERRCODE; rc++) {
        assert_true(lmdb_error(&err, rc, "x") < 0);
        assert_null(strstr(err.text, "LMDB code"));
    }
}

/* --- several processes ------------------------------------------------------
 */

static struct shared {
    _Atomic int ready, inside, failures;
    _Atomic uint64_t last_token, acquisitions;
} * shared;

static pid_t spawn(void (*body)(void))
{
    pid_t pid;

    shared->ready = 0;
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        /* Not to outlive a test that fails, even stopped. */
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        body();
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

static void reap(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(!WIFEXITED(status) || WEXITSTATUS(status) == 0);
}

static void kill_now(pid_t pid)
{
    assert_int_equal(kill(pid, SIGKILL), 0);
    reap(pid);
}

static struct engine child_open(void)
{
    struct engine g;

    if (engine_open(url, "g", &g, &err) != 0) {
        _exit(9);
    }
    return g;
}

static void hold_forever(void)
{
    struct engine g = child_open();
    uint64_t t;

    if (acquire(&g, &b, &t) != 0) {
        _exit(8);
    }
    shared->ready = 1;
    for (;;) {
        pause();
    }
}

static void test_killed_holder(void **state)
{
    struct engine g;
    uint64_t t, start;
    pid_t pid;

    (void)state;
    lmdb_test_set_clock(NULL);
    lmdb_test_set_boot_id(NULL);
    g = opened("g");
    start = clock_boot_ms();
    pid = spawn(hold_forever);
    wait_ready(1);
    kill_now(pid);
    assert_int_equal(acquire(&g, &a, &t), HEDGE_EBUSY);
    assert_string_equal(look(&g).holder, "b:1");
    while (acquire(&g, &a, &t) != 0) {
        assert_true(clock_boot_ms() - start < 10 * LEASE);
        clock_sleep_ms(5);
    }
    assert_int_equal(t, 2);
    assert_true(clock_boot_ms() - start >= LEASE);
    engine_close(&g);
}

static void renew_forever(void)
{
    struct engine g = child_open();
    uint64_t t;

    while (acquire(&g, &b, &t) == 0) {
        shared->last_token = t;
        shared->ready = 1;
        (void)engine_renew(&g, t, LEASE, &err);
    }
    _exit(8);
}

/* Killed at any point of a transaction, the rows stay whole and the next
 * writer is not in the way of a dead one. */
static void test_killed_while_writing(void **state)
{
    struct engine_lease l;
    struct engine g;

    (void)state;
    lmdb_test_set_clock(NULL);
    g = opened("g");
    for (unsigned i = 0; i < 30; i++) {
        pid_t pid = spawn(renew_forever);
        uint64_t t, start;

        wait_ready(1);
        clock_sleep_ms(i % 7);
        kill_now(pid);
        start = clock_mono_ms();
        l = look(&g);
        assert_true(l.token >= shared->last_token);
        assert_int_equal(acquire(&g, &b, &t), 0);
        assert_true(t > shared->last_token);
        assert_true(t > l.token);
        assert_int_equal(engine_release(&g, t, &err), 0);
        assert_true(clock_mono_ms() - start < 900);
    }
    assert_true(engine_maintain(&g, NULL, &err) == 0);
    engine_close(&g);
}

static void contend(void)
{
    char id[32];
    struct engine_holder who = {id, "", 1};
    struct engine g = child_open();
    uint64_t start = clock_mono_ms(), t;

    (void)snprintf(id, sizeof id, "pid-%d", (int)getpid());
    shared->ready++;
    while (clock_mono_ms() < start + 1000 ||
           (shared->acquisitions < 50 && clock_mono_ms() < start + 30000)) {
        int rv = acquire(&g, &who, &t);
        if (rv == HEDGE_EBUSY) {
            continue;
        }
        if (rv != 0) {
            print_error("%s\n", err.text);
            shared->failures++;
            continue;
        }
        if (shared->inside++ != 0 || t <= shared->last_token) {
            shared->failures++;
        }
        shared->last_token = t;
        shared->acquisitions++;
        shared->inside--;
        if (engine_release(&g, t, &err) != 0) {
            shared->failures++;
        }
    }
    engine_close(&g);
}

static void test_contention(void **state)
{
    pid_t pids[4];

    (void)state;
    lmdb_test_set_clock(NULL);
    shared->last_token = 0;
    shared->acquisitions = 0;
    for (unsigned i = 0; i < 4; i++) {
        pids[i] = spawn(contend); /* All open it for the first time. */
    }
    for (unsigned i = 0; i < 4; i++) {
        reap(pids[i]);
    }
    assert_int_equal(shared->failures, 0);
    assert_true(shared->acquisitions >= 50);
    assert_int_equal(shared->acquisitions, shared->last_token);
}

static void write_without_a_pause(void)
{
    static const struct lmdb_env_options o = {.map_bytes = 64 << 20};
    struct lmdb_env *env;
    MDB_txn *txn;

    if (lmdb_env_open(dir, "lease", &o, &env, &err) != 0) {
        _exit(9);
    }
    while (lmdb_write_begin(env, 5000, &txn, &err) == 0) {
        shared->ready = 1;
        clock_sleep_ms(5);
        lmdb_write_abort(env, txn);
    }
    _exit(8);
}

static void test_waiting_writers_get_their_turn(void **state)
{
    struct engine g = opened("g");
    pid_t pid;
    uint64_t t;

    (void)state;
    pid = spawn(write_without_a_pause);
    wait_ready(1);
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(acquire(&g, &a, &t), 0);
    }
    kill_now(pid);
    engine_close(&g);
}

static void stop_inside_a_transaction(void)
{
    static const struct lmdb_env_options o = {.map_bytes = 64 << 20};
    struct lmdb_env *env;
    MDB_txn *txn;

    if (lmdb_env_open(dir, "lease", &o, &env, &err) != 0 ||
        lmdb_write_begin(env, 1000, &txn, &err) != 0) {
        _exit(9);
    }
    shared->ready = 1;
    raise(SIGSTOP);
    lmdb_write_abort(env, txn);
    lmdb_env_close(env);
}

static void test_process_stopped_inside_a_transaction(void **state)
{
    struct engine g = opened("g");
    char number[32];
    uint64_t t, start;
    int status;
    pid_t pid;

    (void)state;
    assert_int_equal(acquire(&g, &a, &t), 0);
    pid = spawn(stop_inside_a_transaction);
    wait_ready(1);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    start = clock_mono_ms();
    assert_int_equal(engine_renew(&g, t, LEASE, &err), HEDGE_ETIMEDOUT);
    assert_in_range(clock_mono_ms() - start, LMDB_LEASE_WAIT_MS - 1,
                    LMDB_LEASE_WAIT_MS + 2000);
    (void)snprintf(number, sizeof number, "process %d ", (int)pid);
    assert_non_null(strstr(err.text, number));
    assert_true(look(&g).held); /* Readers are not in its way. */
    kill(pid, SIGCONT);
    reap(pid);
    assert_int_equal(engine_renew(&g, t, LEASE, &err), 0);
    pid = spawn(stop_inside_a_transaction);
    wait_ready(1);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    kill_now(pid);
    assert_int_equal(engine_renew(&g, t, LEASE, &err), 0);
    engine_close(&g);
}

static void read_forever(void)
{
    struct engine g = child_open();
    struct engine_lease l;

    (void)engine_look(&g, &l, &err);
    shared->ready = 1;
    for (;;) {
        pause();
    }
}

static void test_slots_of_dead_readers(void **state)
{
    struct engine g = opened("g");
    struct engine_health h;
    pid_t pid;

    (void)state;
    pid = spawn(read_forever);
    wait_ready(1);
    assert_int_equal(engine_maintain(&g, &h, &err), 0);
    assert_int_equal(h.readers_cleared, 0);
    assert_int_equal(h.readers, 2);
    kill_now(pid);
    assert_int_equal(engine_maintain(&g, &h, &err), 0);
    assert_int_equal(h.readers_cleared, 1);
    assert_int_equal(h.readers, 1);
    engine_close(&g);
}

static void live_in_another_namespace(void)
{
    char path[200];
    struct flock fl = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};
    int fd;

    file_path(path, "namespace");
    fd = open(path, O_RDWR);
    if (fd < 0 || fcntl(fd, F_OFD_SETLK, &fl) != 0 || ftruncate(fd, 0) != 0 ||
        pwrite(fd, "pid:[1] time:[2]\n", 17, 0) != 17) {
        _exit(9);
    }
    shared->ready = 1;
    for (;;) {
        pause();
    }
}

static void test_other_namespaces_are_refused(void **state)
{
    struct engine g = opened("g");
    pid_t pid;

    (void)state;
    engine_close(&g);
    pid = spawn(live_in_another_namespace);
    wait_ready(1);
    assert_int_equal(engine_open(url, "g", &g, &err), HEDGE_ENOTSUP);
    assert_non_null(strstr(err.text, "namespace"));
    assert_non_null(strstr(err.text, "pid:[1]"));
    kill_now(pid);
    g = opened("g"); /* Nobody there any more, as after a new container. */
    engine_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_urls, setup),
        cmocka_unit_test_setup(test_lease, setup),
        cmocka_unit_test_setup(test_stale_tokens, setup),
        cmocka_unit_test_setup(test_lives_of_a_node, setup),
        cmocka_unit_test_setup(test_another_boot_voids_the_lease, setup),
        cmocka_unit_test_setup(test_groups_are_apart, setup),
        cmocka_unit_test_setup(test_opened_twice_is_one_environment, setup),
        cmocka_unit_test_setup(test_bad_arguments, setup),
        cmocka_unit_test_setup(test_no_memory, setup),
        cmocka_unit_test_setup(test_directories_are_private, setup),
        cmocka_unit_test_setup(test_network_file_systems, setup),
        cmocka_unit_test_setup(test_places_that_cannot_be, setup),
        cmocka_unit_test_setup(test_garbage_files, setup),
        cmocka_unit_test_setup(test_truncated_file, setup),
        cmocka_unit_test_setup(test_damaged_rows, setup),
        cmocka_unit_test_setup(test_environment_of_another_program, setup),
        cmocka_unit_test_setup(test_codes, setup),
        cmocka_unit_test_setup(test_killed_holder, setup),
        cmocka_unit_test_setup(test_killed_while_writing, setup),
        cmocka_unit_test_setup(test_contention, setup),
        cmocka_unit_test_setup(test_waiting_writers_get_their_turn, setup),
        cmocka_unit_test_setup(test_process_stopped_inside_a_transaction,
                               setup),
        cmocka_unit_test_setup(test_slots_of_dead_readers, setup),
        cmocka_unit_test_setup(test_other_namespaces_are_refused, setup),
    };
    int failed;

    alarm(200); /* A wait without end is a failure. */
    umask(022);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (access("/dev/shm", W_OK) != 0) {
        (void)snprintf(top, sizeof top, "/tmp/hedge-test-engine-XXXXXX");
    }
    if (shared == MAP_FAILED || mkdtemp(top) == NULL) {
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)nftw(top, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return failed;
}
