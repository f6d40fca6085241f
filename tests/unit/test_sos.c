/* The spill-over store of one node: how blocks go from memory to disk to other
 * nodes, and how they come back. */
#include "store/base/clock.h"
#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include <string.h>

static const struct record_shape small = {.seed = 1, .min = 20, .max = 5000};

static void stays_in_memory(void **state)
{
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    box_open(&b, &(struct box_options){0});
    s = box_store(&b, "x", NULL);
    r = box_write(s, &small, 200);
    assert_int_equal(r.status, 0);
    assert_int_equal(r.closed, 0);
    assert_int_equal(r.manifest.records, 200);
    box_expect(s, &small, &r.manifest);
    box_expect(s, &small, &r.manifest);
    assert_true(box_used(s, "memory") > r.manifest.bytes);
    assert_int_equal(box_used(s, "disk"), 0);
    sos_remove(s);
    sos_store_unref(s);
    box_expect_empty(&b);
    box_close(&b);
}

static void spills_to_disk(void **state)
{
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 64 << 20});
    s = box_store(&b, "x", NULL);
    r = box_write(s, &small, 2000);
    assert_int_equal(r.closed, 0);
    assert_int_equal(r.manifest.records, 2000);
    assert_true(box_used(s, "memory") > 0);
    assert_true(box_used(s, "disk") > box_used(s, "memory"));
    box_expect(s, &small, &r.manifest);
    sos_remove(s);
    sos_store_unref(s);
    box_expect_empty(&b);
    box_close(&b);
}

static void spills_to_other_nodes(void **state)
{
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 2});
    s = box_store(&b, "x", NULL);
    r = box_write(s, &small, 4000);
    assert_int_equal(r.closed, 0);
    assert_true(box_used(s, "memory") > 0);
    assert_true(box_used(s, "disk") > 0);
    assert_true(box_used(s, NULL) > 0);
    box_expect(s, &small, &r.manifest);
    sos_remove(s);
    sos_store_unref(s);
    box_expect_empty(&b);
    box_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stays_in_memory),
        cmocka_unit_test(spills_to_disk),
        cmocka_unit_test(spills_to_other_nodes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
