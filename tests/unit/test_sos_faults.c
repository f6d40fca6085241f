/* Everything that can fail under a store fails once, in turn: disk, other
 * nodes, memory. No record that was taken is lost or changed. */
#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct record_shape small = {.seed = 1, .min = 20, .max = 9000};

static int quiet(void **state)
{
    (void)state;
    log_set_level(LOG_OFF);
    return 0;
}

/* --- the disk --- */

/* Fail the n-th operation of a kind; false when there were not as many. What
 * does not go to the disk goes to the node, so nothing is ever refused. */
static bool disk_fails_at(char op, long n, int how, bool persists,
                          enum disk_io io)
{
    struct box b;
    struct sos_store *s;
    struct box_result w;
    struct hedge_error e;
    bool fired;
    int rv;

    box_open(&b, &(struct box_options){.disk = 3 << 20, .nodes = 1, .io = io});
    s = box_store(&b, "x", NULL);
    if (op != 'r') {
        disk_fault_arm(&b.fault, op, n, how, persists);
    }
    w = box_write(s, &small, 1600);
    assert_int_equal(w.closed, 0);
    assert_int_equal(w.manifest.records, 1600);
    if (op == 'r') {
        disk_fault_arm(&b.fault, op, n, how, persists);
        rv = box_read(s, &small, NULL, &w.manifest, &e);
        assert_true(rv == HEDGE_EEND || rv == HEDGE_EIO);
        assert_int_equal(rv == HEDGE_EIO,
                         atomic_load(&b.fault.fired) > 0 && how < 0);
        if (rv == HEDGE_EIO) {
            assert_non_null(strstr(e.text, "store \"x\", block 0/"));
            assert_non_null(strstr(e.text, "on here (disk)"));
        }
    }
    fired = atomic_load(&b.fault.fired) > 0;
    disk_fault_arm(&b.fault, 0, 0, 0, false);
    box_expect(s, &small, &w.manifest);
    sos_remove(s);
    sos_store_unref(s);
    box_expect_empty(&b);
    box_close(&b);
    return fired;
}

static void disk_faults(char op, bool persists, enum disk_io io)
{
    static const int how[] = {-ENOSPC, -EIO, 4096};

    for (unsigned k = 0; k < sizeof how / sizeof how[0]; k++) {
        long n = 1;

        if (op == 'a' && how[k] > 0) {
            continue; /* Only transfers can be short. */
        }
        if (op == 'r' && how[k] == -ENOSPC) {
            continue;
        }
        while (disk_fails_at(op, n, how[k], persists, io)) {
            n += n < 8 ? 1 : 7;
        }
        assert_true(n > 1); /* It was ever reached. */
    }
}

static void disk_writes_fail(void **state)
{
    (void)state;
    disk_faults('w', false, DISK_IO_AUTO);
    disk_faults('w', true, DISK_IO_AUTO);
}

static void disk_reads_fail(void **state)
{
    (void)state;
    disk_faults('r', false, DISK_IO_AUTO);
}

static void disk_allocations_fail(void **state)
{
    (void)state;
    disk_faults('a', false, DISK_IO_AUTO);
    disk_faults('a', true, DISK_IO_AUTO);
}

static void disk_threads_fail(void **state)
{
    (void)state;
    disk_faults('w', false, DISK_IO_THREADS);
    disk_faults('r', false, DISK_IO_THREADS);
}

/* Without another tier the blocks of a failing disk stay in memory and the
 * writer is told; what was taken is whole. */
static void disk_fails_and_nothing_else_is_there(void **state)
{
    (void)state;
    for (long n = 1; n < 20; n++) {
        struct box b;
        struct sos_store *s;
        struct box_result w;

        box_open(&b, &(struct box_options){.disk = 64 << 20});
        s = box_store(&b, "x", NULL);
        disk_fault_arm(&b.fault, 'w', n, -EIO, true);
        w = box_write(s, &small, 10000);
        assert_int_equal(w.closed, HEDGE_EFULL);
        assert_true(w.manifest.records <= w.accepted + 1);
        box_expect(s, &small, &w.manifest);
        sos_store_unref(s);
        box_close(&b);
    }
}

static void a_flipped_bit_on_disk(void **state)
{
    /* In a header, in payloads. */
    static const off_t at[] = {0, 9, 63, 64, 5000, 70000, 200000};

    (void)state;
    for (unsigned i = 0; i < sizeof at / sizeof at[0]; i++) {
        struct hedge_error e = {0};
        struct box b;
        struct sos_store *s;
        struct box_result w;

        box_open(&b, &(struct box_options){.disk = 64 << 20});
        s = box_store(&b, "x", NULL);
        w = box_write(s, &small, 1600);
        assert_int_equal(w.closed, 0);
        box_flip_on_disk(&b, at[i]);
        assert_int_equal(box_read(s, &small, NULL, NULL, &e), HEDGE_ECORRUPT);
        assert_non_null(strstr(e.text, "store \"x\", block 0/"));
        assert_non_null(strstr(e.text, "on here (disk)"));
        sos_store_unref(s);
        box_close(&b);
    }
}

/* A byte changed in memory is found as well, and named. */
static void a_flipped_bit_in_memory(void **state)
{
    struct hedge_error e = {0};
    struct box b;
    struct sos_store *s;
    struct box_result w;
    unsigned char *p;

    (void)state;
    box_open(&b, &(struct box_options){0});
    s = box_store(&b, "x", NULL);
    w = box_write(s, &small, 50);
    assert_int_equal(w.closed, 0);
    {
        struct reader *r = box_reader(s, NULL);
        struct piece piece;

        assert_int_equal(reader_next(r, 1000, &piece), 0);
        p = (unsigned char *)(uintptr_t)piece.data;
        p[3] ^= 1;
        box_reader_free(r);
    }
    assert_int_equal(box_read(s, &small, NULL, NULL, &e), HEDGE_ECORRUPT);
    assert_non_null(strstr(e.text, "store \"x\", block 0/0 on here (memory)"));
    sos_store_unref(s);
    box_close(&b);
}

/* --- other nodes --- */

static bool remote_fails_at(unsigned n, int status, bool at_once)
{
    struct box b;
    struct sos_store *s;
    struct box_result w;
    bool fired;

    box_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 2});
    s = box_store(&b, "x", NULL);
    fake_tier_fail_nth(b.remote, n, status, at_once);
    w = box_write(s, &small, 1600);
    fired = fake_tier_fired(b.remote);
    fake_tier_fail_nth(b.remote, 0, 0, false);
    /* Full for whoever goes on writing; the last blocks may stay here. */
    assert_true(w.status == 0 || (fired && w.status == HEDGE_EFULL));
    assert_int_equal(w.closed, w.status);
    assert_true(w.manifest.records + 40 > w.accepted);
    box_expect(s, &small, &w.manifest);
    sos_remove(s);
    sos_store_unref(s);
    box_expect_empty(&b);
    box_close(&b);
    return fired;
}

static void other_nodes_fail(void **state)
{
    static const int status[] = {HEDGE_EREFUSED, HEDGE_EUNAVAILABLE, HEDGE_EIO};

    (void)state;
    for (unsigned k = 0; k < 3; k++) {
        for (unsigned at_once = 0; at_once < 2; at_once++) {
            unsigned n = 1;

            while (remote_fails_at(n, status[k], at_once)) {
                n += n < 8 ? 1 : 5;
            }
            assert_true(n > 1);
        }
    }
}

static void slow_nodes_are_waited_for(void **state)
{
    struct fake_unit u;
    struct box b;
    struct sos_store *s;
    struct box_result w;

    (void)state;
    box_open(&b, &(struct box_options){.nodes = 2});
    u = fake_tier_unit(b.remote, 0);
    u.delay_ms = 20;
    fake_tier_set(b.remote, 0, &u);
    u.delay_ms = 3;
    fake_tier_set(b.remote, 1, &u);
    s = box_store(&b, "x", NULL);
    w = box_write(s, &small, 600);
    assert_int_equal(w.closed, 0);
    box_expect(s, &small, &w.manifest);
    sos_store_unref(s);
    box_close(&b);
}

/* --- memory --- */

/* Open, create, write, read, discard, with the n-th allocation and all that
 * follow failing: an error, never a crash, a leak, or a record that was
 * acknowledged and cannot be read once there is memory again. */
static bool survives(long n)
{
    struct box b;
    struct sos_store_options o = box_defaults();
    struct hedge_error e = {0};
    struct sos_store *s = NULL;
    struct box_result w = {.closed = -1};
    bool all = false;
    int rv;

    mem_fail_after(n);
    rv = box_try_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 1},
                      &e);
    if (rv == 0) {
        rv = sos_create(b.sos, "x", 7, &o, &s, &e);
        if (rv == 0) {
            w = box_write(s, &small, 400);
            all = w.closed == 0 &&
                  box_read(s, &small, NULL, &w.manifest, &e) == HEDGE_EEND;
        }
        mem_fail_after(-1);
        if (rv == 0 && w.manifest.records > 0) {
            box_expect(s, &small, &w.manifest);
        }
        if (s != NULL) {
            sos_store_unref(s);
        }
        box_close(&b);
    } else {
        mem_fail_after(-1);
        assert_int_equal(rv, HEDGE_ENOMEM);
        box_clean(&b);
    }
    return all;
}

static void every_allocation_fails(void **state)
{
    long n = 0;

    (void)state;
    while (!survives(n)) {
        n++;
        assert_true(n < 5000);
    }
    assert_true(n > 10);
}

/* What a node answers is an error of that block, never the end of the data or
 * "nothing yet". */
static void answers_that_mean_something_else(void **state)
{
    static const int answers[] = {HEDGE_EEND, HEDGE_ETIMEDOUT, HEDGE_EAGAIN};

    (void)state;
    for (unsigned i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        struct sos_store_options o = box_defaults();
        struct box_result w;
        struct sos_store *s;
        struct hedge_error e;
        struct fake_unit u;
        struct box b;

        o.mem_limit = 1; /* All of it is elsewhere. */
        box_open(&b, &(struct box_options){.nodes = 1});
        s = box_store(&b, "x", &o);
        w = box_write(s, &small, 300);
        assert_int_equal(w.closed, 0);
        u = fake_tier_unit(b.remote, 0);
        u.get_status = answers[i];
        fake_tier_set(b.remote, 0, &u);
        assert_int_equal(box_read(s, &small, NULL, NULL, &e), HEDGE_EIO);
        u.get_status = 0;
        fake_tier_set(b.remote, 0, &u);
        box_expect(s, &small, &w.manifest);
        sos_store_unref(s);
        box_close(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_that_mean_something_else),
        cmocka_unit_test(disk_writes_fail),
        cmocka_unit_test(disk_reads_fail),
        cmocka_unit_test(disk_allocations_fail),
        cmocka_unit_test(disk_threads_fail),
        cmocka_unit_test(disk_fails_and_nothing_else_is_there),
        cmocka_unit_test(a_flipped_bit_on_disk),
        cmocka_unit_test(a_flipped_bit_in_memory),
        cmocka_unit_test(other_nodes_fail),
        cmocka_unit_test(slow_nodes_are_waited_for),
        cmocka_unit_test(every_allocation_fails),
    };

    return cmocka_run_group_tests(tests, quiet, NULL);
}
