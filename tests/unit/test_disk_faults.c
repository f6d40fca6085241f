/* The disk tier when something is missing: I/O that is cut short or fails,
 * full disks, no io_uring, no memory. */
#include "store/disk/disk_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/disk_fixture.h"

/* --- faults ------------------------------------------------------------------
 */

/* The n-th call of a kind (from 1) gets `answer`, or all from it on. */
struct fault {
    char op;
    atomic_int countdown;
    int answer;
    bool lasting;
    atomic_int hits;
};

static int on_fault(void *ctx, char op, size_t len)
{
    struct fault *f = ctx;
    int n;

    (void)len;
    if (op != f->op) {
        return 0;
    }
    n = atomic_fetch_sub(&f->countdown, 1);
    if (n == 1 || (n < 1 && f->lasting)) {
        atomic_fetch_add(&f->hits, 1);
        return f->answer;
    }
    return 0;
}

/* Writes and reads back a few blocks with the fault in place; true when the
 * fault was met. Every outcome has to be right. */
static bool run_with_fault(struct tier *t, struct fault *f, int want)
{
    static const size_t sizes[] = {64 * KIB, MIB + 64, 5000};
    uint64_t sum = 0;
    bool met = false;

    for (unsigned i = 0; i < 3; i++) {
        struct call c;
        int rv, hits = atomic_load(&f->hits);

        call_init(&c, 3, i, sizes[i]);
        fill(c.req.data, sizes[i], i);
        rv = put_wait(t, &c);
        if (rv == 0) {
            call_again(&c);
            sum += disk_padded(t, sizes[i]);
            rv = get_wait(t, &c);
        }
        if (atomic_load(&f->hits) > hits) {
            /* Room that was made ahead of need may fail unseen. */
            assert_true(rv == want || (rv == 0 && f->op == 'a'));
            met = true;
        } else {
            assert_int_equal(rv, 0);
        }
        if (rv == 0) {
            check_bytes(&c, i);
        } else {
            assert_int_equal(c.req.error.code, rv);
            assert_non_null(strstr(c.req.error.text, dir));
        }
        assert_int_equal(used(t), sum);
        call_release(&c);
    }
    tier_drop_store(t, 3);
    assert_int_equal(used(t), 0);
    return met;
}

static void each_fault(enum disk_io io, char op, int answer, int want)
{
    bool met = true;
    int n;

    for (n = 1; met; n++) {
        struct fault f = {.op = op, .answer = answer};
        struct tier *t;

        atomic_init(&f.countdown, n);
        t = tier_with((struct disk_options){
            .io = io, .fault = on_fault, .fault_ctx = &f});
        met = run_with_fault(t, &f, want);
        tier_free(t);
        assert_true(n < 100);
    }
    /* An allocation serves several blocks. */
    assert_true(op == 'a' ? n > 2 : n > 4);
}

static void test_short_io_is_resumed(void **state)
{
    static const int cuts[] = {1, 512, 4095, 4096, 4097, 60000};

    (void)state;
    for (unsigned i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        each_fault(DISK_IO_URING, 'w', cuts[i], 0);
        each_fault(DISK_IO_URING, 'r', cuts[i], 0);
        each_fault(DISK_IO_THREADS, 'w', cuts[i], 0);
        each_fault(DISK_IO_THREADS, 'r', cuts[i], 0);
    }
    each_fault(DISK_IO_URING, 'w', -EINTR, 0);
    each_fault(DISK_IO_URING, 'r', -EAGAIN, 0);
    each_fault(DISK_IO_URING, 'w', -ECANCELED, 0);
}

static void test_errors_are_told(void **state)
{
    static const enum disk_io ios[] = {DISK_IO_URING, DISK_IO_THREADS};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        each_fault(ios[i], 'w', -EIO, HEDGE_EIO);
        each_fault(ios[i], 'w', -ENOSPC, HEDGE_ENOSPC);
        each_fault(ios[i], 'w', -EDQUOT, HEDGE_ENOSPC);
        each_fault(ios[i], 'r', -EIO, HEDGE_EIO);
        each_fault(ios[i], 'a', -EIO, HEDGE_EIO);
    }
}

static void test_error_names_file_and_offset(void **state)
{
    struct fault f = {.op = 'w', .answer = -EIO};
    struct tier *t;
    struct call a, b;

    (void)state;
    atomic_init(&f.countdown, 2);
    t = tier_with((struct disk_options){.fault = on_fault, .fault_ctx = &f});
    call_init(&a, 0xab, 0, 4096);
    call_init(&b, 0xab, 1, 4096);
    assert_int_equal(put_wait(t, &a), 0);
    assert_int_equal(put_wait(t, &b), HEDGE_EIO);
    assert_non_null(strstr(b.req.error.text, "x-ab-"));
    assert_non_null(strstr(b.req.error.text, "offset 4096"));
    assert_non_null(strstr(b.req.error.text, strerror(EIO)));
    tier_free(t);
    call_release(&a);
    call_release(&b);
}

/* Status tells what has failed until it works again. */
static void test_trouble_is_told(void **state)
{
    static const struct {
        char op;
        int answer;
    } faults[] = {{'w', -EIO}, {'r', -EIO}, {'w', -ENOSPC}, {'a', -ENOSPC}};

    (void)state;
    for (unsigned i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        struct fault f = {
            .op = faults[i].op, .answer = faults[i].answer, .lasting = true};
        struct disk_features now;
        struct tier *t;
        struct call a;

        atomic_init(&f.countdown, 1);
        t = tier_with(
            (struct disk_options){.fault = on_fault, .fault_ctx = &f});
        disk_features(t, &now);
        assert_true(now.works);
        call_init(&a, 1, 0, 5000);
        fill(a.req.data, 5000, 7);
        if (put_wait(t, &a) == 0) {
            call_again(&a);
            assert_int_equal(get_wait(t, &a), HEDGE_EIO);
        }
        disk_features(t, &now);
        assert_false(now.works);
        assert_non_null(strstr(now.works_detail, dir));
        assert_non_null(strstr(now.works_detail, strerror(-faults[i].answer)));
        atomic_store(&f.countdown, 1000);
        call_again(&a);
        if (f.op == 'r') {
            assert_int_equal(get_wait(t, &a), 0);
        } else {
            fill(a.req.data, 5000, 7);
            assert_int_equal(put_wait(t, &a), 0);
        }
        disk_features(t, &now);
        assert_true(now.works);
        assert_string_equal(now.works_detail, "");
        tier_free(t);
        call_release(&a);
    }
}

/* No space for more than the least: it makes do with less. */
static void test_allocation_finds_no_space(void **state)
{
    struct fault f = {.op = 'a', .answer = -ENOSPC, .lasting = true};
    struct tier *t;
    struct call a;

    (void)state;
    atomic_init(&f.countdown, 1);
    t = tier_with((struct disk_options){.fault = on_fault, .fault_ctx = &f});
    call_init(&a, 1, 0, 100000);
    assert_int_equal(put_wait(t, &a), HEDGE_ENOSPC);
    assert_int_equal(used(t), 0);
    atomic_store(&f.countdown, 1000);
    call_again(&a);
    fill(a.req.data, 100000, 9);
    assert_int_equal(put_wait(t, &a), 0);
    check_back(t, &a, 9);
    tier_free(t);
    call_release(&a);
}

static void test_fallocate_is_refused(void **state)
{
    struct fault f = {.op = 'a', .answer = -EOPNOTSUPP};
    struct tier *t;
    struct batch b = batch_new(40, 1, MIB);
    struct disk_features features;

    (void)state;
    atomic_init(&f.countdown, 1);
    t = tier_with((struct disk_options){.fault = on_fault, .fault_ctx = &f});
    batch_put(t, &b);
    batch_wait_ok(&b);
    disk_features(t, &features);
    assert_false(features.fallocate);
    assert_true(features.fallocate_detail[0] != '\0');
    for (unsigned i = 0; i < b.n; i++) {
        check_back(t, &b.calls[i], i);
    }
    tier_free(t);
    batch_free(&b);
}

/* An operation that never gets on gives up. */
static void test_no_progress_ends(void **state)
{
    struct fault f = {.op = 'w', .answer = -EAGAIN, .lasting = true};
    struct tier *t;
    struct call a;

    (void)state;
    atomic_init(&f.countdown, 1);
    t = tier_with((struct disk_options){.fault = on_fault, .fault_ctx = &f});
    call_init(&a, 1, 0, 100000);
    assert_int_equal(put_wait(t, &a), HEDGE_EIO);
    assert_int_equal(used(t), 0);
    tier_free(t);
    call_release(&a);
}

/* --- full disks --------------------------------------------------------------
 */

static void test_floor(void **state)
{
    struct statvfs st;
    uint64_t fs_free;
    struct tier_use u;
    struct tier *t;
    struct call a;

    (void)state;
    assert_int_equal(statvfs(root, &st), 0);
    fs_free = (uint64_t)st.f_bavail * st.f_frsize;
    t = tier_with((struct disk_options){.reserve = 2 * fs_free});
    call_init(&a, 1, 0, 5000);
    assert_int_equal(put_wait(t, &a), HEDGE_ENOSPC);
    tier_use(t, &u);
    assert_int_equal(u.free, 0);
    assert_int_equal(u.used, 0);
    tier_free(t);
    t = tier_with((struct disk_options){.reserve = fs_free / 2});
    call_again(&a);
    assert_int_equal(put_wait(t, &a), 0);
    tier_use(t, &u);
    assert_true(u.free > fs_free / 4 && u.free < fs_free / 4 * 3);
    tier_free(t);
    call_release(&a);
}

/* Puts until it is full; how many went in. */
static unsigned fill_up(struct tier *t, struct batch *b, unsigned from)
{
    unsigned i;

    for (i = from; i < b->n && put_wait(t, &b->calls[i]) == 0; i++) {
    }
    assert_true(i < b->n);
    assert_int_equal(b->calls[i].req.status, HEDGE_ENOSPC);
    call_again(&b->calls[i]);
    return i;
}

static void small_disk(enum disk_io io, uint64_t reserve)
{
    struct tier *t =
        tier_with((struct disk_options){.io = io, .reserve = reserve});
    struct batch b = batch_new(40, 1, MIB - 100);
    unsigned n, room = (unsigned)((16 * MIB - reserve) / MIB);
    struct tier_use u;
    struct call other;

    /* Another store has set aside more than it needs. */
    call_init(&other, 2, 0, 1000);
    assert_int_equal(put_wait(t, &other), 0);
    n = fill_up(t, &b, 0);
    assert_in_range(n, room - 1, room);
    for (unsigned i = 0; i < n; i++) {
        check_back(t, &b.calls[i], i);
    }
    tier_use(t, &u);
    assert_true(u.free < MIB);
    /* What is dropped can be used again at once. */
    drop_one(t, &b.calls[3]);
    drop_one(t, &b.calls[5]);
    for (unsigned i = 3; i <= 5; i += 2) {
        fill(b.calls[i].req.data, MIB - 100, i);
        atomic_store(&b.calls[i].ended, 0);
        assert_int_equal(put_wait(t, &b.calls[i]), 0);
    }
    for (unsigned i = 0; i < n; i++) {
        check_back(t, &b.calls[i], i);
    }
    tier_drop_store(t, 1);
    b.calls[n].req.id.generation = 4;
    assert_int_equal(put_wait(t, &b.calls[n]), 0);
    tier_free(t);
    assert_int_equal(count_files(dir), 0);
    batch_free(&b);
    call_release(&other);
}

static void test_small_disk(void **state)
{
    (void)state;
    if (!mount_small("16m")) {
        skip();
    }
    small_disk(DISK_IO_URING, 0);
    small_disk(DISK_IO_THREADS, 0);
    small_disk(DISK_IO_URING, 4 * MIB);
    small_disk(DISK_IO_THREADS, 5 * MIB);
    assert_int_equal(umount(dir), 0);
}

/* The disk becomes full of other things while many puts are under way. */
static void test_full_in_flight(void **state)
{
    struct tier *t;
    struct batch b = batch_new(100, 1, MIB);
    unsigned n_in = 0;

    (void)state;
    if (!mount_small("32m")) {
        batch_free(&b);
        skip();
    }
    t = tier_with((struct disk_options){.io = DISK_IO_AUTO});
    batch_put(t, &b);
    for (unsigned i = 0; i < b.n; i++) {
        int rv = call_wait(&b.calls[i]);
        assert_true(rv == 0 || rv == HEDGE_ENOSPC);
        n_in += rv == 0;
    }
    assert_in_range(n_in, 31, 32);
    assert_int_equal(used(t), n_in * MIB);
    for (unsigned i = 0; i < b.n; i++) {
        if (b.calls[i].req.status == 0) {
            check_back(t, &b.calls[i], i);
        }
    }
    tier_free(t);
    assert_int_equal(umount(dir), 0);
    batch_free(&b);
}

/* Space that only seemed to be there: without fallocate the write meets the
 * full disk. */
static void test_full_without_fallocate(void **state)
{
    struct fault f = {.op = 'a', .answer = -EOPNOTSUPP};
    struct tier *t;
    struct batch b = batch_new(40, 1, MIB);
    unsigned n_in = 0;

    (void)state;
    if (!mount_small("16m")) {
        batch_free(&b);
        skip();
    }
    atomic_init(&f.countdown, 1);
    t = tier_with((struct disk_options){.fault = on_fault, .fault_ctx = &f});
    for (unsigned i = 0; i < b.n; i++) {
        int rv = tier_put(t, &b.calls[i].req);
        assert_int_equal(rv, 0);
    }
    for (unsigned i = 0; i < b.n; i++) {
        int rv = call_wait(&b.calls[i]);
        assert_true(rv == 0 || rv == HEDGE_ENOSPC);
        n_in += rv == 0;
    }
    assert_in_range(n_in, 10, 16);
    assert_int_equal(used(t), n_in * MIB);
    for (unsigned i = 0; i < b.n; i++) {
        if (b.calls[i].req.status == 0) {
            check_back(t, &b.calls[i], i);
        }
    }
    tier_free(t);
    assert_int_equal(umount(dir), 0);
    batch_free(&b);
}

/* --- what is in force
 * --------------------------------------------------------- */

static void test_features(void **state)
{
    struct tier *t = tier_with((struct disk_options){.io = DISK_IO_THREADS});
    struct disk_features f;

    (void)state;
    disk_features(t, &f);
    assert_false(f.uring);
    assert_true(f.uring_detail[0] != '\0');
    assert_int_equal(disk_padded(t, 1), f.alignment);
    assert_int_equal(disk_padded(t, f.alignment), f.alignment);
    assert_int_equal(disk_padded(t, f.alignment + 1), 2 * f.alignment);
    tier_free(t);
    t = tier_with((struct disk_options){.io = DISK_IO_URING});
    disk_features(t, &f);
    assert_true(f.uring);
    assert_true(f.uring_detail[0] == '\0');
    tier_free(t);
}

static int forbid_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = code};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                   prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0
               ? 0
               : -errno;
}

/* In a child: 0 when all is as it should be. */
static int without_uring(void)
{
    struct disk_options o = {.dir = dir, .limit = PLENTY, .io = DISK_IO_URING};
    struct disk_features f;
    struct hedge_error e;
    struct tier *t;
    struct call a;

    if (forbid_uring() != 0) {
        return 77;
    }
    if (disk_new(&o, &t, &e) != HEDGE_EPERM ||
        strstr(e.text, "seccomp") == NULL) {
        return 1;
    }
    o.io = DISK_IO_AUTO;
    if (disk_new(&o, &t, &e) != 0) {
        return 2;
    }
    disk_features(t, &f);
    if (f.uring || strstr(f.uring_detail, "seccomp") == NULL) {
        return 3;
    }
    call_init(&a, 1, 0, 5000);
    if (put_wait(t, &a) != 0 || get_wait(t, &a) != 0) {
        return 4;
    }
    tier_free(t);
    call_release(&a);
    return 0;
}

static void test_uring_is_forbidden(void **state)
{
    pid_t child = fork();
    int status;

    (void)state;
    assert_true(child >= 0);
    if (child == 0) {
        _exit(without_uring());
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("skipped: seccomp is not to be had\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_allocation_failures(void **state)
{
    static const enum disk_io ios[] = {DISK_IO_URING, DISK_IO_THREADS};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct disk_options o = {.dir = dir, .limit = PLENTY, .io = ios[i]};
        struct hedge_error e;
        struct tier *t;
        int rv, n = 0;

        do {
            mem_fail_after(n);
            rv = disk_new(&o, &t, &e);
            mem_fail_after(-1);
            if (rv != 0) {
                assert_int_equal(rv, HEDGE_ENOMEM);
                assert_null(t);
                n++;
            }
        } while (rv != 0);
        assert_true(n >= 3);
        tier_free(t);
    }
}

/* Without memory for a store or an extent the put fails and costs nothing. */
static void test_no_memory_for_a_store(void **state)
{
    struct tier *t = tier_with((struct disk_options){.io = DISK_IO_AUTO});
    struct call a;
    int rv, n = 0;

    (void)state;
    call_init(&a, 1, 0, 5000);
    do {
        mem_fail_after(n++);
        rv = put_wait(t, &a);
        mem_fail_after(-1);
        if (rv != 0) {
            assert_int_equal(rv, HEDGE_ENOMEM);
            assert_int_equal(used(t), 0);
            call_again(&a);
        }
    } while (rv != 0);
    assert_true(n >= 3);
    tier_free(t);
    call_release(&a);
}

#define T(name) cmocka_unit_test_setup_teardown(name, disk_setup, disk_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_short_io_is_resumed),
        T(test_errors_are_told),
        T(test_error_names_file_and_offset),
        T(test_trouble_is_told),
        T(test_allocation_finds_no_space),
        T(test_fallocate_is_refused),
        T(test_no_progress_ends),
        T(test_floor),
        T(test_small_disk),
        T(test_full_in_flight),
        T(test_full_without_fallocate),
        T(test_features),
        T(test_uring_is_forbidden),
        T(test_allocation_failures),
        T(test_no_memory_for_a_store),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
