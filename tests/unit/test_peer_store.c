/* Stores that spill into other nodes: the store above the peer tier above the
 * block service above another node's store. */
#include "tests/lib/peer_node.h"
#include "tests/lib/sos_box.h"

#include "cluster/rpc/wire.h"
#include "store/base/clock.h"
#include "store/base/mem.h"
#include "proto/hedge.pb-c.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define MIB ((size_t)1 << 20)
#define COPIES 40u

static const struct record_shape shape = {.seed = 5, .min = 0, .max = 20000};

static uint64_t bytes_on(struct sos_store *store, const char *node,
                         const char *tier)
{
    struct sos_info info;
    uint64_t bytes = 0;

    assert_int_equal(sos_store_info(store, &info), 0);
    for (unsigned i = 0; i < info.n_uses; i++) {
        if (strcmp(info.uses[i].node, node) == 0 &&
            strcmp(info.uses[i].tier, tier) == 0) {
            bytes = info.uses[i].stored_bytes;
        }
    }
    mem_free(info.uses);
    return bytes;
}

/* This node's memory and disk, then the peer's memory and disk. */
static void through_four_tiers(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct box_result r;
    struct sos_store *s;
    struct box b;

    (void)state;
    peer_node_start(&a, "a", 1,
                    (struct sos_options){.mem_limit = 24 * PEER_TEST_BLOCK,
                                         .disk_limit = 64 * MIB});
    box_open(&b, &(struct box_options){.disk = 1 * MIB});
    sos_set_remote(b.sos, peer_test_tier(PEER_TEST_BLOCK, nodes, 1));
    s = box_store(&b, "x", NULL);
    r = box_write(s, &shape, 20000);
    assert_int_equal(r.closed, 0);
    assert_true(bytes_on(s, "a", "memory") > 0);
    assert_true(bytes_on(s, "a", "disk") > 0);
    assert_true(box_used(s, "memory") > 0);
    assert_true(box_used(s, "disk") > 0);
    box_expect(s, &shape, &r.manifest);
    box_expect(s, &shape, &r.manifest);
    sos_remove(s);
    sos_store_unref(s);
    peer_node_await_empty(&a);
    box_close(&b);
    peer_node_stop(&a);
}

/* A reader that discards leaves nothing behind on the peer. */
static void discarded_on_the_peer(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct box_result r;
    struct sos_store *s;
    struct box b;
    struct sos_read_options discard = {.discard = true};

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 8 * MIB});
    box_open(&b, &(struct box_options){.disk = 0});
    sos_set_remote(b.sos, peer_test_tier(PEER_TEST_BLOCK, nodes, 1));
    s = box_store(&b, "x", NULL);
    r = box_write(s, &shape, 2000);
    assert_int_equal(r.closed, 0);
    assert_true(bytes_on(s, "a", "memory") > 0);
    assert_int_equal(box_read(s, &shape, &discard, &r.manifest, NULL),
                     HEDGE_EEND);
    peer_node_await_empty(&a);
    sos_store_unref(s);
    box_close(&b);
    peer_node_stop(&a);
}

static int restored(struct peer_node *a)
{
    peer_node_mute(a);
    peer_node_unmute(a);
    return 0;
}

/* The connection breaks between writing and reading, and in between. */
static void connections_break(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct box_result r;
    struct sos_store *s;
    struct box b;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 32 * MIB});
    box_open(&b, &(struct box_options){.disk = 0});
    sos_set_remote(b.sos, peer_test_tier(PEER_TEST_BLOCK, nodes, 1));
    s = box_store(&b, "x", NULL);
    r = box_write(s, &shape, 5000);
    assert_int_equal(r.closed, 0);
    restored(&a);
    box_expect(s, &shape, &r.manifest);
    restored(&a);
    box_expect(s, &shape, &r.manifest);
    sos_store_unref(s);
    box_close(&b);
    peer_node_stop(&a);
}

/* --- a peer that lies -------------------------------------------------------
 */

/* Answers as the service would, but with a bit of every block changed. */
static int get_flipped(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct peer_node *n = ctx;
    unsigned char buf[256], *reply = mem_alloc(2 * PEER_TEST_BLOCK);
    struct rpc_msg m;
    int rv;

    while ((rv = rpc_stream_recv(s, RPC_NO_TIMEOUT, &m, e)) == 0) {
        size_t len = rpc_msg_left(&m), at;
        Hedge__V1__GetReply r = HEDGE__V1__GET_REPLY__INIT;
        Hedge__V1__GetRequest *q;
        struct block_id id;
        struct rpc_out out = {.head = reply};
        void *block;

        rpc_msg_read(&m, buf, len);
        rpc_msg_release(&m);
        q = hedge__v1__get_request__unpack(NULL, len, buf);
        id = (struct block_id){q->generation, q->sequence, q->writer};
        r.request = q->request;
        hedge__v1__get_request__free_unpacked(q, NULL);
        rv = sos_lend_get(n->sos, &id, false, &block, &len, e);
        if (rv != 0) {
            break;
        }
        at = hedge__v1__get_reply__pack(&r, reply);
        at += wire_body_tag(len, reply + at);
        memcpy(reply + at, block, len);
        reply[at + len / 2] ^= 0x10;
        arena_unref(sos_arena(n->sos), block);
        out.head_len = at + len;
        (void)rpc_stream_send(s, &out, RPC_NO_TIMEOUT);
    }
    mem_free(reply);
    return rv;
}

static void bits_flipped(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct hedge_error e = {.code = 0};
    struct box_result r;
    struct sos_store *s;
    struct box b;

    (void)state;
    peer_node_start(&a, "node-a", 1,
                    (struct sos_options){.mem_limit = 32 * MIB});
    box_open(&b, &(struct box_options){.disk = 0});
    sos_set_remote(b.sos, peer_test_tier(PEER_TEST_BLOCK, nodes, 1));
    s = box_store(&b, "x", NULL);
    r = box_write(s, &shape, 5000);
    assert_int_equal(r.closed, 0);
    a.get = get_flipped;
    a.ctx = &a;
    assert_int_equal(box_read(s, &shape, NULL, NULL, &e), HEDGE_ECORRUPT);
    assert_non_null(strstr(e.text, "store \"x\", block 0/"));
    assert_non_null(strstr(e.text, "on node-a (memory)"));
    sos_store_unref(s);
    box_close(&b);
    peer_node_stop(&a);
}

/* --- replicas ---------------------------------------------------------------
 */

static void a_copy_is_lost(void **state)
{
    struct peer_node a, c, *nodes[] = {&a, &c};
    struct sos_store_options o = box_defaults();
    struct box_result r;
    struct sos_store *s;
    struct box b;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 32 * MIB});
    peer_node_start(&c, "c", 1, (struct sos_options){.mem_limit = 32 * MIB});
    box_open(&b, &(struct box_options){.disk = 0});
    sos_set_remote(b.sos, peer_test_tier(PEER_TEST_BLOCK, nodes, 2));
    o.replicas = 2;
    s = box_store(&b, "x", &o);
    r = box_write(s, &shape, 3000);
    assert_int_equal(r.closed, 0);
    assert_true(bytes_on(s, "a", "memory") > 0);
    assert_true(bytes_on(s, "c", "memory") > 0);
    peer_node_mute(&a);
    box_expect(s, &shape, &r.manifest);
    peer_node_unmute(&a);
    sos_store_unref(s);
    box_close(&b);
    peer_node_stop(&a);
    peer_node_stop(&c);
}

/* They go where most room is: what is left is the same everywhere. */
static void copies_are_spread(void **state)
{
    struct peer_node a, c, *nodes[] = {&a, &c};
    struct move m[COPIES];
    uint64_t blocks;
    struct tier *t;

    (void)state;
    peer_node_start(&a, "a", 1,
                    (struct sos_options){.lend_mem = 20 * PEER_TEST_BLOCK});
    peer_node_start(&c, "c", 1,
                    (struct sos_options){.lend_mem = 40 * PEER_TEST_BLOCK});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 2);
    for (unsigned i = 0; i < COPIES; i++) {
        move_init(&m[i], 100, i, PEER_TEST_BLOCK);
        m[i].req.spread = true;
        move_put(t, &m[i]);
    }
    for (unsigned i = 0; i < COPIES; i++) {
        assert_int_equal(move_wait(&m[i]), 0);
    }
    blocks = peer_node_lent(&c) / PEER_TEST_BLOCK;
    assert_in_range(blocks, 30 - 2, 30 + 2);
    for (unsigned i = 0; i < COPIES; i++) {
        move_check(t, &m[i]);
        move_drop(t, &m[i]);
        move_release(&m[i]);
    }
    peer_node_await_empty(&a);
    peer_node_await_empty(&c);
    tier_free(t);
    peer_node_stop(&a);
    peer_node_stop(&c);
}

/* With one peer full before the other there would be no two nodes for what is
 * left of that one's room. */
static void copies_fill_all_nodes(void **state)
{
    struct peer_node a, c, *nodes[] = {&a, &c};
    const uint64_t lent = 40 * PEER_TEST_BLOCK;
    struct sos_store_options o = box_defaults();
    struct box_result r;
    struct sos_store *s;
    struct box b;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.lend_mem = lent});
    peer_node_start(&c, "c", 1, (struct sos_options){.lend_mem = lent});
    box_open(&b, &(struct box_options){.disk = 0});
    sos_set_remote(b.sos, peer_test_tier(PEER_TEST_BLOCK, nodes, 2));
    o.replicas = 2;
    o.compression = SOS_COMPRESS_NONE;
    s = box_store(&b, "x", &o);
    r = box_write(s, &shape, 20000);
    assert_int_equal(r.status, HEDGE_EFULL);
    assert_true(peer_node_lent(&a) + 2 * PEER_TEST_BLOCK >= lent);
    assert_true(peer_node_lent(&c) + 2 * PEER_TEST_BLOCK >= lent);
    box_expect(s, &shape, &r.manifest);
    sos_store_unref(s);
    box_close(&b);
    peer_node_stop(&a);
    peer_node_stop(&c);
}

/* --- two full nodes ----------------------------------------------------------
 */

struct side {
    struct peer_node node;
    struct sos_store *store;
    struct box_result result;
    pthread_t thread;
};

static void *fill_up(void *arg)
{
    struct side *side = arg;

    side->result = box_write(side->store, &shape, 4000);
    return NULL;
}

/* Both have the smallest arena and spill to each other until neither takes any
 * more: nobody stops, and everything that was accepted can be read. */
static void two_full_nodes(void **state)
{
    struct sos_store_options o = box_defaults();
    struct side side[2];

    (void)state;
    for (int i = 0; i < 2; i++) {
        peer_node_start(
            &side[i].node, i == 0 ? "a" : "b", 1,
            (struct sos_options){.mem_limit = 16 * PEER_TEST_BLOCK});
    }
    for (int i = 0; i < 2; i++) {
        struct peer_node *other = &side[1 - i].node;
        struct peer_tier_options po = {.self_id = side[i].node.id,
                                       .incarnation = 1,
                                       .block_size = PEER_TEST_BLOCK,
                                       .block_lease_ms = PEER_TEST_LEASE_MS};
        struct tier *t;

        assert_int_equal(peer_tier_new(&po, &t), 0);
        peer_test_tell(t, &other, 1);
        sos_set_remote(side[i].node.sos, t);
        assert_int_equal(sos_create(side[i].node.sos, "x", (uint64_t)i + 50, &o,
                                    &side[i].store, NULL),
                         0);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(
            pthread_create(&side[i].thread, NULL, fill_up, &side[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(side[i].thread, NULL), 0);
        assert_int_equal(side[i].result.status, HEDGE_EFULL);
        assert_true(side[i].result.accepted > 0);
    }
    for (int i = 0; i < 2; i++) {
        box_expect(side[i].store, &shape, &side[i].result.manifest);
        sos_store_unref(side[i].store);
    }
    /* Nobody asks a node that has stopped. */
    peer_node_mute(&side[0].node);
    peer_node_mute(&side[1].node);
    peer_node_stop(&side[0].node);
    peer_node_stop(&side[1].node);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(through_four_tiers),
    cmocka_unit_test(discarded_on_the_peer),
    cmocka_unit_test(connections_break),
    cmocka_unit_test(bits_flipped),
    cmocka_unit_test(a_copy_is_lost),
    cmocka_unit_test(copies_are_spread),
    cmocka_unit_test(copies_fill_all_nodes),
    cmocka_unit_test(two_full_nodes),
};

int main(void)
{
    rpc_process_setup();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
