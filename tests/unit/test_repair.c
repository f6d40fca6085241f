/* Copies that were lost with their node are made again. */
#include "store/base/clock.h"

#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include <pthread.h>

static const struct record_shape shape = {.seed = 5, .min = 100, .max = 9000};

#define RECORDS 300
#define AWAIT_STEPS 1000

static void set_gone(struct box *b, unsigned unit)
{
    struct fake_unit u = fake_tier_unit(b->remote, unit);

    u.gone = true;
    u.get_status = HEDGE_ELOST;
    u.refuse = true;
    fake_tier_set(b->remote, unit, &u);
    sos_repair(b->sos);
}

static unsigned blocks_on(struct box *b, unsigned unit)
{
    return fake_tier_unit(b->remote, unit).blocks;
}

static void await_blocks(struct box *b, unsigned unit, unsigned n)
{
    for (unsigned i = 0; i < AWAIT_STEPS && blocks_on(b, unit) != n; i++) {
        clock_sleep_ms(10);
    }
    assert_int_equal(blocks_on(b, unit), n);
}

static struct sos_store *replicated(struct box *b, unsigned replicas)
{
    struct sos_store_options o = box_defaults();

    o.replicas = replicas;
    return box_store(b, "x", &o);
}

static void from_memory_here(void **state)
{
    struct box_result r;
    struct sos_store *store;
    unsigned n;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.blocks = 64, .nodes = 2});
    store = replicated(&b, 2);
    r = box_write(store, &shape, RECORDS);
    assert_int_equal(r.closed, 0);
    n = blocks_on(&b, 0) + blocks_on(&b, 1);
    assert_true(blocks_on(&b, 0) > 0);
    set_gone(&b, 0);
    await_blocks(&b, 1, n);
    await_blocks(&b, 0, 0); /* Should it come back, it has nothing of ours. */
    box_expect(store, &shape, &r.manifest);
    sos_remove(store);
    sos_store_unref(store);
    box_close(&b);
}

/* Nothing here: three copies on three of four nodes, one goes. */
static void from_another_node(void **state)
{
    struct sos_store_options o = box_defaults();
    struct box_result r;
    struct sos_store *store;
    unsigned n = 0;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.nodes = 4});
    o.replicas = 3;
    o.mem_limit = 1; /* No block of it fits the memory here. */
    store = box_store(&b, "x", &o);
    r = box_write(store, &shape, RECORDS);
    assert_int_equal(r.closed, 0);
    for (unsigned i = 0; i < 4; i++) {
        n += blocks_on(&b, i);
    }
    assert_true(blocks_on(&b, 2) > 0);
    set_gone(&b, 2);
    await_blocks(&b, 2, 0);
    assert_int_equal(blocks_on(&b, 0) + blocks_on(&b, 1) + blocks_on(&b, 3), n);
    box_expect(store, &shape, &r.manifest);
    sos_remove(store);
    sos_store_unref(store);
    box_close(&b);
}

/* Readers discard what is being repaired: memory that was a block's a moment
 * ago is another's. */
static void while_readers_discard(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 20; i++) {
        const struct sos_read_options discard = {.discard = true};
        struct box_result r;
        struct sos_store *store;
        struct box b;

        box_open(&b, &(struct box_options){.blocks = 64, .nodes = 3});
        store = replicated(&b, 2);
        r = box_write(store, &shape, RECORDS);
        assert_int_equal(r.closed, 0);
        set_gone(&b, 0);
        assert_int_equal(box_read(store, &shape, &discard, &r.manifest, NULL),
                         HEDGE_EEND);
        box_expect_empty(&b);
        sos_remove(store);
        sos_store_unref(store);
        box_close(&b);
    }
}

/* Two of a block's three copies go at once. */
static void two_nodes_at_once(void **state)
{
    struct sos_store_options o = box_defaults();
    struct box_result r;
    struct sos_store *store;
    unsigned n = 0, left = 0;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.nodes = 5});
    o.replicas = 3;
    o.mem_limit = 1;
    store = box_store(&b, "x", &o);
    r = box_write(store, &shape, RECORDS);
    assert_int_equal(r.closed, 0);
    for (unsigned i = 0; i < 5; i++) {
        n += blocks_on(&b, i);
    }
    set_gone(&b, 0);
    set_gone(&b, 1);
    await_blocks(&b, 0, 0);
    await_blocks(&b, 1, 0);
    for (unsigned i = 2; i < 5; i++) {
        left += blocks_on(&b, i);
    }
    assert_int_equal(left, n);
    box_expect(store, &shape, &r.manifest);
    sos_remove(store);
    sos_store_unref(store);
    box_close(&b);
}

/* From the disk here while stored blocks fill the memory. */
static void from_disk_with_memory_full(void **state)
{
    struct sos_store_options o = box_defaults();
    struct box_result r;
    struct sos_store *fill, *store;
    unsigned before, n;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 64 << 20, .nodes = 2});
    fill = box_store(&b, "fill", &o);
    assert_int_equal(box_write(fill, &shape, 10 * RECORDS).closed, 0);
    assert_true(box_used(fill, "disk") > 0); /* Memory is full. */
    o.replicas = 2;
    o.mem_limit = 1;
    store = box_store(&b, "x", &o);
    before = blocks_on(&b, 0) + blocks_on(&b, 1);
    r = box_write(store, &shape, RECORDS);
    assert_int_equal(r.closed, 0);
    n = blocks_on(&b, 0) + blocks_on(&b, 1) - before;
    assert_true(n > 0 && before == 0);
    set_gone(&b, 0);
    await_blocks(&b, 1, n);
    box_expect(store, &shape, &r.manifest);
    sos_store_unref(fill);
    sos_store_unref(store);
    box_close(&b);
}

static void *read_all(void *arg)
{
    struct sos_store *store = arg;
    static int end;

    end = box_read(store, &shape, NULL, NULL, NULL);
    return &end;
}

/* A reader waits for the lost copy while it is made again; then the copy that
 * it knew beside it goes as well. */
static void under_a_reader_that_waits(void **state)
{
    struct sos_store_options o = box_defaults();
    struct sos_store *store;
    struct fake_unit u;
    pthread_t reader;
    void *end;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.nodes = 3});
    o.replicas = 2;
    o.mem_limit = 1;
    store = box_store(&b, "x", &o);
    assert_int_equal(box_write(store, &shape, 3).closed, 0);
    assert_int_equal(blocks_on(&b, 0) + blocks_on(&b, 1), 2);
    u = fake_tier_unit(b.remote, 0);
    u.delay_ms = 1000;
    u.get_status = HEDGE_ELOST;
    fake_tier_set(b.remote, 0, &u);
    assert_int_equal(pthread_create(&reader, NULL, read_all, store), 0);
    clock_sleep_ms(300);
    set_gone(&b, 0);
    await_blocks(&b, 2, 1);
    fake_tier_lose(b.remote, 1);
    pthread_join(reader, &end);
    assert_int_equal(*(int *)end, HEDGE_EEND);
    await_blocks(&b, 0, 0);
    sos_store_unref(store);
    box_close(&b);
}

/* No room: nothing changes, and what is left is still read. */
static void no_room_for_it(void **state)
{
    struct box_result r;
    struct sos_store *store;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.blocks = 64, .nodes = 1});
    store = replicated(&b, 2);
    r = box_write(store, &shape, RECORDS);
    assert_int_equal(r.closed, 0);
    set_gone(&b, 0);
    clock_sleep_ms(200);
    box_expect(store, &shape, &r.manifest);
    sos_remove(store);
    sos_store_unref(store);
    box_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(from_memory_here),
        cmocka_unit_test(from_another_node),
        cmocka_unit_test(while_readers_discard),
        cmocka_unit_test(two_nodes_at_once),
        cmocka_unit_test(from_disk_with_memory_full),
        cmocka_unit_test(under_a_reader_that_waits),
        cmocka_unit_test(no_room_for_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
