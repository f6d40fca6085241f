/* The peer tier against real peers in this process. */
#include "tests/lib/peer_node.h"

#include "store/base/clock.h"
#include "store/base/log.h"

#include <stdio.h>
#include <string.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define MANY 40

static const char *kind_of(struct tier *t, const struct move *m)
{
    const char *node, *kind;

    t->ops->describe(t, &m->req.place, &node, &kind);
    return kind;
}

static const char *node_of(struct tier *t, const struct move *m)
{
    const char *node, *kind;

    t->ops->describe(t, &m->req.place, &node, &kind);
    return node;
}

static void put_many(struct tier *t, struct move *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        move_init(&m[i], 100, i, PEER_TEST_BLOCK);
        m[i].poison = true;
        move_put(t, &m[i]);
    }
}

static void wait_many(struct move *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (move_wait(&m[i]) != 0) {
            fail_msg("%u: %s", i, m[i].req.error.text);
        }
    }
}

static void check_many(struct tier *t, struct move *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        move_get(t, &m[i]);
    }
    for (unsigned i = 0; i < n; i++) {
        if (move_wait(&m[i]) != 0) {
            fail_msg("%u: %s", i, m[i].req.error.text);
        }
        assert_memory_equal(m[i].req.data, m[i].bytes, m[i].req.len);
    }
}

static void drop_many(struct tier *t, struct move *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        move_drop(t, &m[i]);
    }
}

static void release_many(struct move *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        move_release(&m[i]);
    }
}

/* --- there and back ------------------------------------------------------- */

static void there_and_back(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct move m[MANY];
    struct tier_use u;
    struct tier *t;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    put_many(t, m, MANY);
    wait_many(m, MANY);
    tier_use(t, &u);
    assert_int_equal(u.used, MANY * PEER_TEST_BLOCK);
    assert_string_equal(node_of(t, &m[0]), "a");
    assert_string_equal(kind_of(t, &m[0]), "memory");
    check_many(t, m, MANY);
    drop_many(t, m, MANY);
    peer_node_await_empty(&a);
    tier_use(t, &u);
    assert_int_equal(u.used, 0);
    assert_int_equal(move_back(t, &m[0]), HEDGE_ELOST);
    assert_non_null(strstr(m[0].req.error.text, "node a"));
    tier_free(t);
    peer_node_stop(&a);
    release_many(m, MANY);
}

static void memory_then_disk(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct move m[MANY];
    unsigned on_disk = 0;
    struct tier *t;

    (void)state;
    peer_node_start(&a, "a", 1,
                    (struct sos_options){.mem_limit = 20 * PEER_TEST_BLOCK,
                                         .disk_limit = 64 * MIB});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    put_many(t, m, MANY);
    wait_many(m, MANY);
    for (unsigned i = 0; i < MANY; i++) {
        on_disk += strcmp(kind_of(t, &m[i]), "disk") == 0;
    }
    assert_true(on_disk > 0 && on_disk < MANY);
    check_many(t, m, MANY);
    tier_drop_store(t, 100);
    peer_node_await_empty(&a);
    tier_free(t);
    peer_node_stop(&a);
    release_many(m, MANY);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(there_and_back),
    cmocka_unit_test(memory_then_disk),
};

int main(void)
{
    rpc_process_setup();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
