/* The disk tier, with io_uring and with threads. Files are made below TMPDIR
 * or /tmp; what needs a small file system mounts a tmpfs, as root. */
#include "store/disk.h"
#include "store/disk_internal.h"

#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cmocka.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define PLENTY ((uint64_t)64 << 30)

static char root[256]; /* Of one test; removed after it. */
static char dir[300];

/* --- requests ------------------------------------------------------------- */

struct call {
    struct tier_req req;
    atomic_int ended;
};

static void on_end(struct tier_req *req)
{
    struct call *c = req->ctx;

    atomic_fetch_add(&c->ended, 1);
}

static size_t room_of(size_t len)
{
    return (len + 4095) & ~(size_t)4095;
}

/* Bytes that depend on block and position. */
static void fill(void *data, size_t len, uint64_t seed)
{
    unsigned char *p = data;

    for (size_t i = 0; i < len; i++) {
        p[i] = (unsigned char)((seed * 131 + i * 7 + (i >> 8)) & 0xff);
    }
}

static void call_init(struct call *c, uint64_t generation, uint64_t sequence,
                      size_t len)
{
    memset(c, 0, sizeof *c);
    c->req.id.generation = generation;
    c->req.id.sequence = sequence;
    c->req.len = len;
    c->req.cb = on_end;
    c->req.ctx = c;
    c->req.data = aligned_alloc(4096, room_of(len));
    assert_non_null(c->req.data);
    memset(c->req.data, 0xee, room_of(len));
}

static void call_release(struct call *c)
{
    free(c->req.data);
    c->req.data = NULL;
}

static int call_wait(struct call *c)
{
    uint64_t until = clock_mono_ms() + 60000;

    while (atomic_load(&c->ended) == 0) {
        assert_true(clock_mono_ms() < until);
        sched_yield();
    }
    assert_int_equal(atomic_load(&c->ended), 1);
    return c->req.status;
}

/* Submit and wait: the outcome, however it was told. */
static int put_wait(struct tier *t, struct call *c)
{
    int rv = tier_put(t, &c->req);

    if (rv != 0) {
        assert_int_equal(atomic_load(&c->ended), 0);
        return rv;
    }
    return call_wait(c);
}

static int get_wait(struct tier *t, struct call *c)
{
    int rv = tier_get(t, &c->req);

    return rv != 0 ? rv : call_wait(c);
}

static void call_again(struct call *c)
{
    atomic_store(&c->ended, 0);
    memset(c->req.data, 0xee, room_of(c->req.len));
}

static void check_back(struct tier *t, struct call *c, uint64_t seed)
{
    unsigned char *want = malloc(c->req.len);

    call_again(c);
    assert_int_equal(get_wait(t, c), 0);
    fill(want, c->req.len, seed);
    assert_memory_equal(want, c->req.data, c->req.len);
    free(want);
}

/* --- directories ---------------------------------------------------------- */

static int setup(void **state)
{
    const char *base = getenv("TMPDIR");

    (void)state;
    (void)snprintf(root, sizeof root, "%s/hedge-disk-XXXXXX",
                   base != NULL ? base : "/tmp");
    assert_non_null(mkdtemp(root));
    (void)snprintf(dir, sizeof dir, "%s/tier", root);
    log_set_level(LOG_OFF);
    return 0;
}

static int teardown(void **state)
{
    char command[400];

    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command) == 0 ? 0 : 1;
}

static unsigned count_files(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *entry;
    unsigned n = 0;

    assert_non_null(d);
    while ((entry = readdir(d)) != NULL) {
        n += entry->d_name[0] != '.';
    }
    closedir(d);
    return n;
}

static struct tier *tier_with(struct disk_options o)
{
    struct hedge_error e;
    struct tier *t;
    int rv;

    o.dir = o.dir != NULL ? o.dir : dir;
    o.limit = o.limit != 0 ? o.limit : PLENTY;
    rv = disk_new(&o, &t, &e);
    if (rv != 0) {
        print_error("%s\n", e.text);
    }
    assert_int_equal(rv, 0);
    return t;
}

static uint64_t used(struct tier *t)
{
    struct tier_use u;

    tier_use(t, &u);
    return u.used;
}

/* --- blocks go in and come back ------------------------------------------- */

static void write_and_read(enum disk_io io)
{
    static const size_t sizes[] = {
        1,       63,   64,       65,           511,      512,         513,
        4095,    4096, 4097,     64 * KIB - 1, 64 * KIB, 100001,      256 * KIB,
        MIB - 1, MIB,  MIB + 64, 3 * MIB + 5,  4 * MIB,  4 * MIB + 64};
    enum { N = 3 * sizeof sizes / sizeof sizes[0] };
    struct tier *t = tier_with((struct disk_options){.io = io});
    struct call *calls = calloc(N, sizeof *calls);
    uint64_t sum = 0;

    for (unsigned i = 0; i < N; i++) {
        size_t len = sizes[i % (N / 3)];
        call_init(&calls[i], 7 + i % 2, i, len);
        fill(calls[i].req.data, len, i);
        sum += disk_padded(t, len);
        assert_int_equal(tier_put(t, &calls[i].req), 0);
    }
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(call_wait(&calls[i]), 0);
    }
    assert_int_equal(used(t), sum);
    for (unsigned i = 0; i < N; i++) {
        check_back(t, &calls[N - 1 - i], N - 1 - i);
    }
    for (unsigned i = 0; i < N; i++) {
        tier_drop(t, &calls[i].req.id, &calls[i].req.place, calls[i].req.len);
        call_release(&calls[i]);
    }
    assert_int_equal(used(t), 0);
    tier_free(t);
    assert_int_equal(count_files(dir), 0);
    free(calls);
}

static void test_write_and_read_uring(void **state)
{
    (void)state;
    write_and_read(DISK_IO_URING);
}

static void test_write_and_read_threads(void **state)
{
    (void)state;
    write_and_read(DISK_IO_THREADS);
}

/* --- limits --------------------------------------------------------------- */

static void limit_is_exact(enum disk_io io)
{
    struct tier *t = tier_with((struct disk_options){.io = io, .limit = 1});
    struct call a, b, c, d;
    struct tier_use u;
    size_t padded;

    call_init(&a, 1, 0, 5000);
    assert_int_equal(put_wait(t, &a), HEDGE_ENOSPC);
    padded = disk_padded(t, 5000);
    tier_free(t);
    t = tier_with((struct disk_options){.io = io, .limit = 3 * padded - 1});
    call_init(&b, 2, 0, 5000);
    call_init(&c, 3, 0, 5000);
    call_init(&d, 3, 1, 1);
    assert_int_equal(put_wait(t, &a), 0);
    call_again(&b);
    assert_int_equal(put_wait(t, &b), 0);
    assert_int_equal(put_wait(t, &c), HEDGE_ENOSPC);
    assert_non_null(strstr(c.req.error.text, "limit"));
    tier_use(t, &u);
    assert_int_equal(u.used, 2 * padded);
    assert_int_equal(u.free, padded - 1);
    assert_int_equal(u.limit, 3 * padded - 1);
    tier_drop(t, &a.req.id, &a.req.place, 5000);
    assert_int_equal(put_wait(t, &c), 0);
    assert_int_equal(used(t), 2 * padded);
    tier_free(t);
    t = tier_with((struct disk_options){.io = io, .limit = 3 * padded});
    call_again(&a);
    call_again(&b);
    call_again(&c);
    assert_int_equal(put_wait(t, &a), 0);
    assert_int_equal(put_wait(t, &b), 0);
    assert_int_equal(put_wait(t, &c), 0);
    tier_use(t, &u);
    assert_int_equal(u.free, 0);
    assert_int_equal(put_wait(t, &d), HEDGE_ENOSPC);
    tier_drop_store(t, 2);
    assert_int_equal(put_wait(t, &d), 0);
    tier_free(t);
    call_release(&a);
    call_release(&b);
    call_release(&c);
    call_release(&d);
}

static void test_limit_is_exact(void **state)
{
    (void)state;
    limit_is_exact(DISK_IO_URING);
    limit_is_exact(DISK_IO_THREADS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_write_and_read_uring, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_write_and_read_threads, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_limit_is_exact, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
