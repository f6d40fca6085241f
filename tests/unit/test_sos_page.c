/* The stores of a node by name, a page at a time. */
#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include "store/base/mem.h"

#include <stdio.h>
#include <string.h>

#define STORES 200u

struct seen {
    unsigned n, stop_at;
    char last[16];
};

static bool look_at(void *ctx, struct sos_store *store)
{
    struct seen *seen = ctx;
    const char *name = sos_store_name(store);

    assert_true(strcmp(name, seen->last) > 0);
    (void)snprintf(seen->last, sizeof seen->last, "%s", name);
    return ++seen->n != seen->stop_at;
}

/* Made in an order that is none. */
static void make_stores(struct box *b, struct sos_store *stores[STORES])
{
    for (unsigned i = 0; i < STORES; i++) {
        char name[16];

        (void)snprintf(name, sizeof name, "s%03u", i * 77 % STORES);
        stores[i] = box_store(b, name, NULL);
    }
}

static void drop_stores(struct sos_store *stores[STORES])
{
    for (unsigned i = 0; i < STORES; i++) {
        sos_remove(stores[i]);
        sos_store_unref(stores[i]);
    }
}

static void each_store_is_on_one_page(void **state)
{
    struct sos_store *stores[STORES], *local;
    struct sos_store_options o = box_defaults();
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 1 << 20});
    make_stores(&b, stores);
    o.local = true;
    local = box_store(&b, "s050x", &o);
    for (unsigned max = 1; max < STORES + 2; max = max * 2 + 1) {
        struct seen seen = {.n = 0};
        bool more = true;

        while (more) {
            unsigned before = seen.n;

            assert_int_equal(
                sos_page(b.sos, seen.last, max, look_at, &seen, &more), 0);
            assert_int_equal(seen.n - before, more ? max : STORES - before);
        }
        assert_int_equal(seen.n, STORES);
    }
    drop_stores(stores);
    sos_store_end(local, 1);
    sos_store_unref(local);
    box_close(&b);
}

static void page_ends_where_it_is_told_to(void **state)
{
    struct sos_store *stores[STORES];
    struct seen seen = {.stop_at = 5};
    struct box b;
    bool more;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 1 << 20});
    assert_int_equal(sos_page(b.sos, "", 10, look_at, &seen, &more), 0);
    assert_int_equal(seen.n, 0);
    assert_false(more);
    make_stores(&b, stores);
    assert_int_equal(sos_page(b.sos, "", 10, look_at, &seen, &more), 0);
    assert_int_equal(seen.n, 5);
    assert_true(more);
    seen = (struct seen){.stop_at = 1};
    assert_int_equal(sos_page(b.sos, "s198", 10, look_at, &seen, &more), 0);
    assert_string_equal(seen.last, "s199");
    assert_false(more);
    mem_fail_after(0);
    assert_int_equal(sos_page(b.sos, "", 10, look_at, &seen, &more),
                     HEDGE_ENOMEM);
    mem_fail_after(-1);
    assert_false(more);
    drop_stores(stores);
    box_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_store_is_on_one_page),
        cmocka_unit_test(page_ends_where_it_is_told_to),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
