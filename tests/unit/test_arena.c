/* The arena: shares that hold, memory that comes back. */
#include "store/arena.h"

#include "tests/lib/check.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK ((size_t)1 << 20)

static struct arena *make(unsigned blocks)
{
    struct arena_options o = {.limit = blocks * BLOCK, .block_size = BLOCK};
    struct arena *a;

    assert_int_equal(arena_new(&o, &a, NULL), 0);
    return a;
}

static void refuses_impossible_options(void **state)
{
    struct arena_options o = {.limit = 15 * BLOCK, .block_size = BLOCK};
    struct hedge_error e;
    struct arena *a;

    (void)state;
    assert_int_equal(arena_new(&o, &a, &e), HEDGE_EINVAL);
    assert_non_null(strstr(e.text, "at least 16"));
    o.limit = 64 * BLOCK;
    o.block_size = 3 * ARENA_UNIT;
    assert_int_equal(arena_new(&o, &a, &e), HEDGE_EINVAL);
    o.block_size = 2 * (size_t)4 << 20;
    assert_int_equal(arena_new(&o, &a, &e), HEDGE_EINVAL);
}

static void stored_never_takes_the_reserve(void **state)
{
    struct arena *a = make(16);
    void *p[16];
    unsigned n = 0;

    (void)state;
    while ((p[n] = arena_alloc(a, ARENA_STORED, BLOCK)) != NULL) {
        n++;
    }
    assert_int_equal(n, 8);
    /* Every passing class still gets its share, and no more. */
    for (unsigned cls = ARENA_FILL; cls <= ARENA_SERVE; cls++) {
        void *q = arena_alloc(a, cls, BLOCK);

        assert_non_null(q);
        p[n++] = q;
    }
    for (unsigned cls = ARENA_FILL; cls <= ARENA_READ; cls++) {
        void *q = arena_alloc(a, cls, BLOCK);

        if (cls == ARENA_OUT) {
            assert_null(q);
        } else {
            assert_non_null(q);
            p[n++] = q;
        }
    }
    assert_null(arena_alloc(a, ARENA_AHEAD, BLOCK));
    while (n > 0) {
        arena_unref(a, p[--n]);
    }
    arena_free(a);
}

static void short_blocks_give_back(void **state)
{
    struct arena *a = make(16);
    struct arena_use use;
    void *p[256];
    unsigned n = 0;

    (void)state;
    /* 8 chunks of 16 units each may be stored. */
    for (; n < 128; n++) {
        p[n] = arena_alloc(a, ARENA_STORED, 1000);
        assert_non_null(p[n]);
    }
    assert_null(arena_alloc(a, ARENA_STORED, 1));
    arena_use(a, &use);
    assert_int_equal(use.by_class[ARENA_STORED], 8 * BLOCK);
    while (n > 0) {
        arena_unref(a, p[--n]);
    }
    p[0] = arena_alloc(a, ARENA_FILL, BLOCK);
    assert_true(arena_move(a, p[0], ARENA_STORED));
    arena_shrink(a, p[0], 70000);
    assert_int_equal(arena_size(a, p[0]), 2 * ARENA_UNIT);
    /* The 14 units given back are used before another chunk is broken. */
    p[1] = arena_alloc(a, ARENA_STORED, 14 * ARENA_UNIT);
    arena_use(a, &use);
    arena_unref(a, p[0]);
    arena_unref(a, p[1]);
    arena_use(a, &use);
    assert_int_equal(use.by_class[ARENA_STORED], 0);
    assert_int_equal(use.stored_free, 8 * BLOCK);
    arena_free(a);
}

static void claims_are_kept(void **state)
{
    struct arena *a = make(16);
    void *p[16];
    unsigned n = 0;

    (void)state;
    assert_true(arena_claim(a, ARENA_FILL, 4)); /* Two more than the share. */
    while ((p[n] = arena_alloc(a, ARENA_STORED, BLOCK)) != NULL) {
        n++;
    }
    assert_int_equal(n, 6);
    assert_false(arena_claim(a, ARENA_READ, 3));
    for (unsigned i = 0; i < 4; i++) {
        p[n] = arena_alloc(a, ARENA_FILL, BLOCK);
        assert_non_null(p[n++]);
    }
    assert_null(arena_alloc(a, ARENA_FILL, BLOCK));
    /* Filling cannot become stored: the writers could not go on. */
    assert_false(arena_move(a, p[n - 1], ARENA_STORED));
    assert_true(arena_move(a, p[n - 1], ARENA_OUT));
    p[n] = arena_alloc(a, ARENA_FILL, BLOCK);
    assert_non_null(p[n++]);
    arena_unclaim(a, ARENA_FILL, 4);
    while (n > 0) {
        arena_unref(a, p[--n]);
    }
    arena_free(a);
}

static void random_use_adds_up(void **state)
{
    struct arena *a = make(64);
    void *p[512] = {0};
    size_t size[512] = {0};
    struct arena_use use;
    uint64_t sum;

    (void)state;
    srand(7);
    for (unsigned i = 0; i < 200000; i++) {
        unsigned k = (unsigned)rand() % 512;

        if (p[k] != NULL) {
            for (size_t j = 0; j < size[k]; j += 4096) {
                assert_int_equal(((unsigned char *)p[k])[j], k & 0xff);
            }
            arena_unref(a, p[k]);
            p[k] = NULL;
        } else {
            size[k] = 1 + (size_t)rand() % BLOCK;
            p[k] = arena_alloc(a, ARENA_STORED, size[k]);
            if (p[k] != NULL && size[k] > 300000 && rand() % 2 == 0) {
                size[k] /= 3;
                arena_shrink(a, p[k], size[k]);
            }
            for (size_t j = 0; p[k] != NULL && j < size[k]; j += 4096) {
                ((unsigned char *)p[k])[j] = k & 0xff;
            }
        }
    }
    sum = 0;
    for (unsigned k = 0; k < 512; k++) {
        sum += p[k] != NULL ? arena_size(a, p[k]) : 0;
    }
    arena_use(a, &use);
    assert_int_equal(use.by_class[ARENA_STORED], sum);
    for (unsigned k = 0; k < 512; k++) {
        if (p[k] != NULL) {
            arena_unref(a, p[k]);
        }
    }
    arena_use(a, &use);
    assert_int_equal(use.stored_free, 56 * BLOCK);
    arena_free(a);
}

/* A short block of a passing class would take a chunk from the free ones
 * without counting in its class: then the shares no longer add up. */
static void short_passing_blocks_keep_the_shares(void **state)
{
    struct arena *a = make(16);
    void *p[16], *fill, *out;
    unsigned n = 0;

    (void)state;
    assert_true(arena_claim(a, ARENA_READ, 2));
    while ((p[n] = arena_alloc(a, ARENA_STORED, BLOCK)) != NULL) {
        n++;
    }
    assert_non_null(p[n++] = arena_alloc(a, ARENA_READ, 1000));
    assert_non_null(p[n++] = arena_alloc(a, ARENA_READ, 1000));
    assert_null(arena_alloc(a, ARENA_READ, 1000));
    assert_non_null(fill = arena_alloc(a, ARENA_FILL, BLOCK));
    assert_true(arena_move(a, fill, ARENA_OUT));
    assert_non_null(out = arena_alloc(a, ARENA_FILL, BLOCK));
    arena_unref(a, fill);
    assert_true(arena_move(a, out, ARENA_OUT));
    arena_unref(a, out);
    while (n > 0) {
        arena_unref(a, p[--n]);
    }
    arena_unclaim(a, ARENA_READ, 2);
    arena_free(a);
}

static void passed_blocks_count_for_who_holds_them(void **state)
{
    struct arena *a = make(16);
    struct arena_use use;
    void *p = arena_alloc(a, ARENA_OUT, BLOCK);

    (void)state;
    arena_ref(a, p);
    arena_pass(a, p, ARENA_READ);
    arena_use(a, &use);
    assert_int_equal(use.by_class[ARENA_OUT], 0);
    assert_int_equal(use.by_class[ARENA_READ], BLOCK);
    arena_pass(a, p, ARENA_READ); /* The last one frees. */
    arena_use(a, &use);
    assert_int_equal(use.by_class[ARENA_READ], 0);
    arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_impossible_options),
        cmocka_unit_test(stored_never_takes_the_reserve),
        cmocka_unit_test(short_blocks_give_back),
        cmocka_unit_test(claims_are_kept),
        cmocka_unit_test(random_use_adds_up),
        cmocka_unit_test(short_passing_blocks_keep_the_shares),
        cmocka_unit_test(passed_blocks_count_for_who_holds_them),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
