/* Blocks kept for other nodes: taken here at once or refused, given back
 * checked, and gone when their owner says so, vanishes or starts again. */
#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/sos_internal.h"
#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const struct sos_owner owner = {.id = "there:1", .incarnation = 5};
static const struct tier_store plain = {.name = "x", .ttl_ms = 1000};

struct lent {
    struct sos_lend_req req;
    atomic_bool done;
};

static void on_done(struct sos_lend_req *req)
{
    struct lent *l = req->ctx;

    atomic_store(&l->done, true);
}

static void fill(unsigned char *p, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        p[i] = (unsigned char)(seed * 31 + i * 7 + (i >> 8));
    }
}

static struct block_id id_of(uint64_t generation, uint64_t sequence)
{
    return (struct block_id){.generation = generation, .sequence = sequence};
}

/* Lend a block of `len` payload bytes; the status it came back with. */
static int put(struct box *b, const struct sos_owner *o,
               const struct tier_store *store, struct block_id id, size_t len,
               struct lent *l)
{
    void *block = arena_alloc(sos_arena(b->sos), ARENA_IN, BOX_BLOCK);

    assert_non_null(block);
    memset(l, 0, sizeof *l);
    fill(block_payload(block), len, id.sequence);
    l->req.header = (struct block_header){.id = id,
                                          .first = BLOCK_FIRST_NONE,
                                          .raw_len = (uint32_t)len,
                                          .stored_len = (uint32_t)len};
    l->req.header.raw_sum = l->req.header.stored_sum =
        hash64(block_payload(block), len);
    block_header_encode(&l->req.header, block);
    l->req.block = block;
    l->req.cb = on_done;
    l->req.ctx = l;
    assert_int_equal(sos_lend_put(b->sos, o, store, &l->req), 0);
    while (!atomic_load(&l->done)) {
        clock_sleep_ms(1);
    }
    return l->req.status;
}

static int get(struct box *b, struct block_id id, size_t len)
{
    struct hedge_error e = {0};
    unsigned char want[BOX_BLOCK];
    size_t got;
    void *block;
    int rv = sos_lend_get(b->sos, &id, false, &block, &got, &e);

    if (rv != 0) {
        assert_null(block);
        assert_true(e.text[0] != '\0');
        return rv;
    }
    assert_int_equal(got, BLOCK_HEADER_SIZE + len);
    fill(want, len, id.sequence);
    assert_memory_equal(block_payload(block), want, len);
    arena_unref(sos_arena(b->sos), block);
    return 0;
}

static const struct box_options lender = {
    .disk = 64 << 20, .lend_mem = 4 * BOX_BLOCK, .lend_disk = 10 * BOX_BLOCK};

static void memory_then_disk_then_refused(void **state)
{
    struct sos_usage u;
    struct lent l;
    struct box b;
    unsigned n = 0, in_memory = 0;

    (void)state;
    box_open(&b, &lender);
    while (put(&b, &owner, &plain, id_of(9, n), BOX_PAYLOAD, &l) == 0) {
        in_memory += l.req.in_memory;
        assert_int_equal(l.req.in_memory, n < 4);
        n++;
    }
    assert_int_equal(n, 14);
    assert_int_equal(in_memory, 4);
    assert_int_equal(l.req.status, HEDGE_EREFUSED);
    assert_non_null(strstr(l.req.error.text, "of it lent"));
    sos_usage(b.sos, &u);
    assert_int_equal(u.mem_lent, 4 * BOX_BLOCK);
    assert_int_equal(u.disk_lent, 10 * BOX_BLOCK);
    assert_int_equal(u.mem_lendable, 0);
    assert_int_equal(u.disk_lendable, 0);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(get(&b, id_of(9, i), BOX_PAYLOAD), 0);
    }
    assert_int_equal(get(&b, id_of(9, n), BOX_PAYLOAD), HEDGE_ELOST);
    assert_int_equal(get(&b, id_of(8, 0), BOX_PAYLOAD), HEDGE_ELOST);
    /* One goes: one may come. */
    {
        struct block_id id = id_of(9, 2);

        sos_lend_drop(b.sos, &owner, 9, &id);
        sos_lend_drop(b.sos, &owner, 9, &id);
    }
    assert_int_equal(get(&b, id_of(9, 2), BOX_PAYLOAD), HEDGE_ELOST);
    assert_int_equal(put(&b, &owner, &plain, id_of(9, n), 1000, &l), 0);
    assert_true(l.req.in_memory);
    sos_lend_drop(b.sos, &owner, 9, NULL);
    box_expect_empty(&b);
    sos_usage(b.sos, &u);
    assert_int_equal(u.mem_lent + u.disk_lent, 0);
    box_close(&b);
}

static void limits_of_the_store_travel(void **state)
{
    const struct tier_store narrow = {.name = "x",
                                      .ttl_ms = 1000,
                                      .mem_limit = BOX_BLOCK,
                                      .disk_limit = 2 * BOX_BLOCK};
    struct lent l;
    struct box b;
    unsigned n = 0;

    (void)state;
    box_open(&b, &lender);
    while (put(&b, &owner, &narrow, id_of(9, n), BOX_PAYLOAD, &l) == 0) {
        n++;
    }
    assert_int_equal(n, 3);
    assert_int_equal(put(&b, &owner, &plain, id_of(10, 0), 100, &l), 0);
    box_close(&b); /* Takes the rest along. */
}

static void twice_is_an_error(void **state)
{
    struct sos_usage u;
    struct lent l;
    struct box b;

    (void)state;
    box_open(&b, &lender);
    assert_int_equal(put(&b, &owner, &plain, id_of(9, 0), 5000, &l), 0);
    assert_int_equal(put(&b, &owner, &plain, id_of(9, 0), 5000, &l),
                     HEDGE_EEXISTS);
    assert_int_equal(get(&b, id_of(9, 0), 5000), 0);
    sos_usage(b.sos, &u);
    assert_int_equal(u.mem_lent, BOX_BLOCK);
    box_close(&b);
}

static void newer_lives_end_older_ones(void **state)
{
    const struct sos_owner newer = {.id = "there:1", .incarnation = 6};
    const struct sos_owner other = {.id = "there:2", .incarnation = 1};
    struct lent l;
    struct box b;

    (void)state;
    box_open(&b, &lender);
    assert_int_equal(put(&b, &owner, &plain, id_of(9, 0), 5000, &l), 0);
    assert_int_equal(put(&b, &other, &plain, id_of(11, 0), 5000, &l), 0);
    assert_int_equal(put(&b, &other, &plain, id_of(9, 1), 5000, &l),
                     HEDGE_EPROTO); /* Not its store. */
    assert_int_equal(put(&b, &newer, &plain, id_of(10, 0), 5000, &l), 0);
    assert_int_equal(get(&b, id_of(9, 0), 5000), HEDGE_ELOST);
    assert_int_equal(get(&b, id_of(10, 0), 5000), 0);
    assert_int_equal(get(&b, id_of(11, 0), 5000), 0);
    assert_int_equal(put(&b, &owner, &plain, id_of(9, 2), 5000, &l),
                     HEDGE_EFENCED);
    /* A late message of the older life drops nothing of the newer one. */
    sos_lend_drop(b.sos, &owner, 0, NULL);
    assert_int_equal(get(&b, id_of(10, 0), 5000), 0);
    sos_lend_drop(b.sos, &newer, 0, NULL);
    assert_int_equal(get(&b, id_of(10, 0), 5000), HEDGE_ELOST);
    box_close(&b);
}

static void renewed_or_gone(void **state)
{
    uint64_t now = clock_boot_ms();
    struct lent l;
    struct box b;

    (void)state;
    box_open(&b, &lender);
    assert_int_equal(put(&b, &owner, &plain, id_of(9, 0), 5000, &l), 0);
    lend_expire(b.sos, now + 20000);
    assert_int_equal(get(&b, id_of(9, 0), 5000), 0);
    sos_lend_renew(b.sos, &owner, 60000);
    lend_expire(b.sos, now + 60000);
    assert_int_equal(get(&b, id_of(9, 0), 5000), 0);
    lend_expire(b.sos, now + 70000);
    assert_int_equal(get(&b, id_of(9, 0), 5000), HEDGE_ELOST);
    box_expect_empty(&b);
    box_close(&b);
}

static void a_disk_that_fails(void **state)
{
    const struct tier_store no_memory = {.name = "x", .mem_limit = 1};
    struct sos_usage u;
    struct lent l;
    struct box b;

    (void)state;
    box_open(&b, &lender);
    disk_fault_arm(&b.fault, 'w', 1, -EIO, false);
    assert_int_not_equal(put(&b, &owner, &no_memory, id_of(9, 0), 100, &l), 0);
    sos_usage(b.sos, &u);
    assert_int_equal(u.disk_lent, 0);
    assert_int_equal(put(&b, &owner, &no_memory, id_of(9, 1), 100, &l), 0);
    disk_fault_arm(&b.fault, 'r', 1, -EIO, false);
    assert_int_equal(get(&b, id_of(9, 1), 100), HEDGE_EIO);
    assert_int_equal(get(&b, id_of(9, 1), 100), 0);
    box_close(&b);
}

static void a_flipped_bit_on_disk(void **state)
{
    const struct tier_store no_memory = {.name = "x", .mem_limit = 1};
    static const off_t at[] = {9, 70};
    struct lent l;

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct box b;

        box_open(&b, &lender);
        assert_int_equal(put(&b, &owner, &no_memory, id_of(9, 1), 100, &l), 0);
        box_flip_on_disk(&b, at[i]);
        assert_int_equal(get(&b, id_of(9, 1), 100), HEDGE_ECORRUPT);
        box_close(&b);
    }
}

struct reading {
    struct box *b;
    pthread_t thread;
    int status;
};

static void *read_first(void *arg)
{
    struct reading *r = arg;

    r->status = get(r->b, id_of(9, 0), 100);
    return NULL;
}

/* A part is dropped while one of its blocks is read. What comes meanwhile is
 * refused, or stays. */
static void dropped_while_read(void **state)
{
    const struct tier_store no_memory = {.name = "x", .mem_limit = 1};
    struct reading r;
    void *blocks[64];
    unsigned n = 0;
    struct lent l;
    struct box b;
    int rv;

    (void)state;
    box_open(&b, &lender);
    assert_int_equal(put(&b, &owner, &no_memory, id_of(9, 0), 100, &l), 0);
    while (n < 64 && (blocks[n] = arena_alloc(sos_arena(b.sos), ARENA_SERVE,
                                              BOX_BLOCK)) != NULL) {
        n++;
    }
    assert_true(n > 0 && n < 64);
    r.b = &b;
    assert_int_equal(pthread_create(&r.thread, NULL, read_first, &r), 0);
    clock_sleep_ms(200); /* It waits for memory. */
    sos_lend_drop(b.sos, &owner, 9, NULL);
    rv = put(&b, &owner, &plain, id_of(9, 1), 100, &l);
    while (n > 0) {
        arena_unref(sos_arena(b.sos), blocks[--n]);
    }
    assert_int_equal(pthread_join(r.thread, NULL), 0);
    assert_int_equal(rv, HEDGE_EREFUSED);
    assert_int_equal(put(&b, &owner, &plain, id_of(9, 1), 100, &l), 0);
    assert_int_equal(get(&b, id_of(9, 1), 100), 0);
    box_close(&b);
}

/* Nobody reads this node's own stores that way. */
static void own_blocks_are_not_lent(void **state)
{
    const struct record_shape small = {.seed = 1, .min = 20, .max = 5000};
    struct sos_store *s;
    struct box b;

    (void)state;
    box_open(&b, &lender);
    s = box_store(&b, "mine", NULL);
    assert_int_equal(box_write(s, &small, 100).closed, 0);
    assert_int_equal(get(&b, id_of(sos_store_generation(s), 0), 1),
                     HEDGE_ELOST);
    sos_store_unref(s);
    box_close(&b);
}

/* A peer that names a store of this node gets nowhere near it. */
static void own_generations_are_refused(void **state)
{
    struct sos_store *own;
    struct lent l;
    struct box b;

    (void)state;
    box_open(&b, &lender);
    own = box_store(&b, "own", NULL);
    assert_int_equal(
        put(&b, &owner, &plain, id_of(sos_store_generation(own), 0), 100, &l),
        HEDGE_EPROTO);
    sos_store_unref(own);
    box_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_then_disk_then_refused),
        cmocka_unit_test(limits_of_the_store_travel),
        cmocka_unit_test(twice_is_an_error),
        cmocka_unit_test(newer_lives_end_older_ones),
        cmocka_unit_test(renewed_or_gone),
        cmocka_unit_test(a_disk_that_fails),
        cmocka_unit_test(a_flipped_bit_on_disk),
        cmocka_unit_test(dropped_while_read),
        cmocka_unit_test(own_generations_are_refused),
        cmocka_unit_test(own_blocks_are_not_lent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
