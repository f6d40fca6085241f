/* The disk tier, with io_uring and with threads: blocks, limits, dropping,
 * files, the end. */
#include "store/disk/disk_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/lib/disk_fixture.h"

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

    assert_non_null(calls);
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

/* --- many threads -----------------------------------------------------------
 */

struct submitter {
    struct tier *t;
    struct batch batch;
};

/* Ends with its requests in flight: the kernel cancels those it has not begun,
 * and the tier has to do them again. */
static void *submit_and_exit(void *arg)
{
    struct submitter *s = arg;

    batch_put(s->t, &s->batch);
    return NULL;
}

static void parallel_submitters(enum disk_io io)
{
    enum { THREADS = 8, EACH = 24, ROUNDS = 3 };
    struct tier *t = tier_with((struct disk_options){.io = io});

    for (unsigned round = 0; round < ROUNDS; round++) {
        struct submitter s[THREADS];
        pthread_t threads[THREADS];
        for (unsigned i = 0; i < THREADS; i++) {
            s[i].t = t;
            s[i].batch = batch_new(EACH, 100 + i, 300 * KIB + i);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            pthread_create(&threads[i], NULL, submit_and_exit, &s[i]);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            batch_wait_ok(&s[i].batch);
            for (unsigned j = 0; j < EACH; j++) {
                check_back(t, &s[i].batch.calls[j], j);
            }
            batch_free(&s[i].batch);
        }
    }
    tier_free(t);
}

static void test_parallel_submitters(void **state)
{
    (void)state;
    parallel_submitters(DISK_IO_URING);
    parallel_submitters(DISK_IO_THREADS);
}

/* --- from inside callbacks ---------------------------------------------------
 */

struct chain {
    struct tier *t;
    struct call call;
    unsigned left;
    atomic_int over;
};

static void chain_step(struct tier_req *req)
{
    struct chain *c = req->ctx;

    assert_int_equal(req->status, 0);
    if (c->left-- == 0) {
        atomic_store(&c->over, 1);
        return;
    }
    if (c->left % 2 == 1) {
        assert_int_equal(tier_get(c->t, req), 0);
    } else {
        tier_drop(c->t, &req->id, &req->place, req->len);
        assert_int_equal(tier_put(c->t, req), 0);
    }
}

static void chain_run(enum disk_io io)
{
    struct chain c = {.left = 400};

    c.t = tier_with((struct disk_options){.io = io});
    call_init(&c.call, 1, 1, 70000);
    c.call.req.cb = chain_step;
    c.call.req.ctx = &c;
    assert_int_equal(tier_put(c.t, &c.call.req), 0);
    while (atomic_load(&c.over) == 0) {
        sched_yield();
    }
    tier_free(c.t);
    call_release(&c.call);
}

static void test_submitting_in_a_callback(void **state)
{
    (void)state;
    chain_run(DISK_IO_URING);
    chain_run(DISK_IO_THREADS);
}

/* --- ending ------------------------------------------------------------------
 */

static void free_in_flight(enum disk_io io)
{
    struct tier *t = tier_with((struct disk_options){.io = io});
    struct batch b = batch_new(300, 5, 200 * KIB);

    batch_put(t, &b);
    tier_free(t);
    for (unsigned i = 0; i < b.n; i++) {
        assert_int_equal(atomic_load(&b.calls[i].ended), 1);
        assert_int_equal(b.calls[i].req.status, 0);
    }
    assert_int_equal(count_files(dir), 0);
    batch_free(&b);
}

static void test_free_in_flight(void **state)
{
    (void)state;
    free_in_flight(DISK_IO_URING);
    free_in_flight(DISK_IO_THREADS);
}

struct late {
    struct call call, second;
    struct tier *t;
    int put_rv, get_rv;
};

static void late_step(struct tier_req *req)
{
    struct late *l = req->ctx;

    clock_sleep_ms(200); /* Until tier_free() has begun. */
    l->second.req.place = req->place;
    l->put_rv = tier_put(l->t, &l->second.req);
    l->get_rv = tier_get(l->t, &l->second.req);
}

static void test_closed_while_freeing(void **state)
{
    struct late l = {.put_rv = 1, .get_rv = 1};

    (void)state;
    l.t = tier_with((struct disk_options){.io = DISK_IO_AUTO});
    call_init(&l.call, 1, 1, 100);
    call_init(&l.second, 1, 2, 100);
    l.call.req.cb = late_step;
    l.call.req.ctx = &l;
    assert_int_equal(tier_put(l.t, &l.call.req), 0);
    tier_free(l.t);
    assert_int_equal(l.put_rv, HEDGE_ECLOSED);
    assert_int_equal(l.get_rv, HEDGE_ECLOSED);
    assert_int_equal(atomic_load(&l.second.ended), 0);
    call_release(&l.call);
    call_release(&l.second);
}

/* --- dropping ----------------------------------------------------------------
 */

static void test_dropping_gives_space_back(void **state)
{
    struct tier *t = tier_with((struct disk_options){.io = DISK_IO_AUTO});
    struct batch b = batch_new(300, 5, MIB);
    struct disk_features f;
    uint64_t most;

    (void)state;
    disk_features(t, &f);
    batch_put(t, &b);
    batch_wait_ok(&b);
    assert_true(count_files(dir) >= 2);
    assert_true(disk_bytes() >= 300 * MIB);
    /* Every other block, then all of the first file. */
    for (unsigned i = 0; i < 200; i += 2) {
        drop_one(t, &b.calls[i]);
    }
    assert_int_equal(used(t), 200 * MIB);
    most = 200 * MIB + 2 * DISK_GROW_STEP + 4 * MIB;
    assert_true(within_ms(10000, takes_at_most, &most));
    for (unsigned i = 1; i < 200; i += 2) {
        check_back(t, &b.calls[i], i);
    }
    for (unsigned i = 1; i < 300; i++) {
        if ((i % 2 == 1 || i >= 200) && i != 290) {
            drop_one(t, &b.calls[i]);
        }
    }
    assert_int_equal(used(t), MIB);
    most = 2 * DISK_GROW_STEP + 2 * MIB;
    assert_true(within_ms(10000, takes_at_most, &most));
    check_back(t, &b.calls[290], 290);
    assert_true(count_files(dir) <= 2);
    drop_one(t, &b.calls[290]);
    assert_int_equal(used(t), 0);
    /* Nobody adds to the last file: it goes as well. */
    assert_true(within_ms(10000, dir_is_empty, NULL));
    tier_free(t);
    batch_free(&b);
}

static void test_idle_stores_take_what_they_hold(void **state)
{
    struct tier *t = tier_with((struct disk_options){.io = DISK_IO_AUTO});
    struct call calls[10];
    uint64_t most = 0;

    (void)state;
    for (unsigned i = 0; i < 10; i++) {
        call_init(&calls[i], 50 + i, 0, 65 * KIB);
        fill(calls[i].req.data, 65 * KIB, i);
        assert_int_equal(put_wait(t, &calls[i]), 0);
        most += disk_padded(t, 65 * KIB);
    }
    assert_true(disk_bytes() > most);
    assert_true(within_ms(10000, takes_at_most, &most));
    for (unsigned i = 0; i < 10; i++) {
        check_back(t, &calls[i], i);
    }
    /* And it goes on after that. */
    calls[0].req.id.sequence = 1;
    call_again(&calls[0]);
    fill(calls[0].req.data, 65 * KIB, 77);
    assert_int_equal(put_wait(t, &calls[0]), 0);
    check_back(t, &calls[0], 77);
    tier_free(t);
    for (unsigned i = 0; i < 10; i++) {
        call_release(&calls[i]);
    }
}

/* Reads of a dropped store end well, or say that it is gone. */
static void drop_store_in_flight(enum disk_io io)
{
    struct tier *t = tier_with((struct disk_options){.io = io});
    struct batch old = batch_new(100, 8, 200 * KIB);
    struct batch new = batch_new(200, 8, 200 * KIB);
    unsigned n_refused = 0;

    batch_put(t, &old);
    batch_wait_ok(&old);
    for (unsigned i = 0; i < old.n; i++) {
        call_again(&old.calls[i]);
        assert_int_equal(tier_get(t, &old.calls[i].req), 0);
        assert_int_equal(tier_put(t, &new.calls[i].req), 0);
    }
    for (unsigned i = old.n; i < new.n; i++) {
        assert_int_equal(tier_put(t, &new.calls[i].req), 0);
    }
    tier_drop_store(t, 8);
    assert_int_equal(used(t), 0);
    for (unsigned i = 0; i < old.n; i++) {
        unsigned char want[1000];
        assert_int_equal(call_wait(&old.calls[i]), 0);
        fill(want, sizeof want, i);
        assert_memory_equal(want, old.calls[i].req.data, sizeof want);
    }
    for (unsigned i = 0; i < new.n; i++) {
        int rv = call_wait(&new.calls[i]);
        assert_true(rv == 0 || rv == HEDGE_ECANCELED);
        n_refused += rv != 0;
    }
    assert_true(n_refused > 0);
    call_again(&old.calls[0]);
    assert_int_equal(get_wait(t, &old.calls[0]), HEDGE_ENOTFOUND);
    drop_one(t, &old.calls[0]); /* Does nothing. */
    tier_drop_store(t, 8);
    assert_true(within_ms(10000, dir_is_empty, NULL));
    /* The generation may be used again. */
    call_again(&old.calls[1]);
    fill(old.calls[1].req.data, 200 * KIB, 1);
    assert_int_equal(put_wait(t, &old.calls[1]), 0);
    check_back(t, &old.calls[1], 1);
    tier_free(t);
    batch_free(&old);
    batch_free(&new);
}

static void test_drop_store_in_flight(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 5; i++) {
        drop_store_in_flight(DISK_IO_URING);
        drop_store_in_flight(DISK_IO_THREADS);
    }
}

/* --- places that are none ----------------------------------------------------
 */

static void test_wrong_places(void **state)
{
    struct tier *t = tier_with((struct disk_options){.io = DISK_IO_AUTO});
    struct call a;

    (void)state;
    call_init(&a, 1, 0, 5000);
    assert_int_equal(get_wait(t, &a), HEDGE_ENOTFOUND);
    assert_int_equal(put_wait(t, &a), 0);
    call_again(&a);
    a.req.id.generation = 2;
    assert_int_equal(get_wait(t, &a), HEDGE_ENOTFOUND);
    a.req.id.generation = 1;
    a.req.place.addr += 4096;
    assert_int_equal(get_wait(t, &a), HEDGE_EINVAL);
    a.req.place.addr = UINT64_MAX - 4095;
    assert_int_equal(get_wait(t, &a), HEDGE_EINVAL);
    a.req.place.addr = 1;
    a.req.len = 100;
    assert_int_equal(get_wait(t, &a), HEDGE_EINVAL);
    a.req.len = 0;
    assert_int_equal(put_wait(t, &a), HEDGE_EINVAL);
    a.req.len = ((size_t)64 << 20) + 1;
    assert_int_equal(put_wait(t, &a), HEDGE_EINVAL);
    tier_free(t);
    call_release(&a);
}

/* --- the directory -----------------------------------------------------------
 */

static void make_file(const char *name)
{
    char path[400];
    int fd;

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
}

static void test_leftovers(void **state)
{
    static const char *const foreign[] = {"x",
                                          "x-1-.extent",
                                          "x-1-2.extent.bak",
                                          "x-g-2.extent",
                                          "data.mdb",
                                          "x-11112222333344445-1.extent",
                                          "x-1-2",
                                          "y-1-2.extent"};
    const unsigned n_foreign = sizeof foreign / sizeof foreign[0];
    struct hedge_error e;
    struct tier *t, *second;
    struct disk_options o = {.dir = dir, .limit = PLENTY};
    struct stat st;
    struct call a;

    (void)state;
    assert_int_equal(mkdir(dir, 0700), 0);
    make_file("x-1-2.extent");
    make_file("x-ffffffffffffffff-4294967295.extent");
    for (unsigned i = 0; i < n_foreign; i++) {
        make_file(foreign[i]);
    }
    t = tier_with(o);
    assert_int_equal(count_files(dir), n_foreign);
    assert_int_equal(disk_new(&o, &second, &e), HEDGE_EBUSY);
    assert_null(second);
    call_init(&a, 1, 0, 100);
    assert_int_equal(put_wait(t, &a), 0);
    tier_free(t);
    assert_int_equal(count_files(dir), n_foreign);
    call_release(&a);
    (void)snprintf(dir, sizeof dir, "%s/fresh", root);
    t = tier_with((struct disk_options){.dir = dir});
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    tier_free(t);
    o.dir = "/proc/nowhere/tier";
    assert_int_equal(disk_new(&o, &t, &e), HEDGE_ENOTFOUND);
    assert_non_null(strstr(e.text, "/proc/nowhere/tier"));
}

static void test_files_are_private(void **state)
{
    struct tier *t = tier_with((struct disk_options){.io = DISK_IO_AUTO});
    struct dirent *entry;
    struct call a;
    DIR *d;

    (void)state;
    call_init(&a, 1, 0, 100);
    assert_int_equal(put_wait(t, &a), 0);
    d = opendir(dir);
    assert_non_null(d);
    while ((entry = readdir(d)) != NULL) {
        struct stat st;
        if (entry->d_name[0] == '.') {
            continue;
        }
        assert_true(disk_is_extent_name(entry->d_name));
        assert_int_equal(fstatat(dirfd(d), entry->d_name, &st, 0), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
    }
    closedir(d);
    tier_free(t);
    call_release(&a);
}

/* More files than descriptors are kept for. */
static void test_many_files(void **state)
{
    enum { N = DISK_FILES_OPEN_MAX + 100 };
    struct tier *t = tier_with((struct disk_options){.io = DISK_IO_AUTO});
    struct call *calls = calloc(N, sizeof *calls);
    char path[400];
    unsigned n_open;

    (void)state;
    assert_non_null(calls);
    for (unsigned i = 0; i < N; i++) {
        call_init(&calls[i], i, 0, 3000);
        fill(calls[i].req.data, 3000, i);
        assert_int_equal(put_wait(t, &calls[i]), 0);
    }
    n_open = count_files("/proc/self/fd");
    assert_true(n_open >= DISK_FILES_OPEN_MAX);
    assert_true(n_open < DISK_FILES_OPEN_MAX + 50);
    for (unsigned i = 0; i < N; i++) {
        check_back(t, &calls[i], i);
    }
    /* The first is closed by now; without its file it cannot be read. */
    (void)snprintf(path, sizeof path, "%s/x-0-%u.extent", dir,
                   calls[0].req.place.unit);
    assert_int_equal(unlink(path), 0);
    call_again(&calls[0]);
    assert_int_equal(get_wait(t, &calls[0]), HEDGE_EIO);
    assert_non_null(strstr(calls[0].req.error.text, path));
    tier_free(t);
    for (unsigned i = 0; i < N; i++) {
        call_release(&calls[i]);
    }
    free(calls);
}

#define T(name) cmocka_unit_test_setup_teardown(name, disk_setup, disk_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_write_and_read_uring),
        T(test_write_and_read_threads),
        T(test_limit_is_exact),
        T(test_parallel_submitters),
        T(test_submitting_in_a_callback),
        T(test_free_in_flight),
        T(test_closed_while_freeing),
        T(test_dropping_gives_space_back),
        T(test_idle_stores_take_what_they_hold),
        T(test_drop_store_in_flight),
        T(test_wrong_places),
        T(test_leftovers),
        T(test_files_are_private),
        T(test_many_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
