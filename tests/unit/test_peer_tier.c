/* The peer tier against real peers in this process. */
#include "tests/lib/peer_node.h"

#include "cluster/peer/peer_internal.h"
#include "cluster/rpc/wire.h"
#include "store/base/clock.h"
#include "store/base/mem.h"
#include "proto/hedge.pb-c.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

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

/* --- whose turn it is ------------------------------------------------------
 */

static unsigned count_on(struct tier *t, struct move *m, unsigned n,
                         const char *node)
{
    unsigned count = 0;

    for (unsigned i = 0; i < n; i++) {
        count += strcmp(node_of(t, &m[i]), node) == 0;
    }
    return count;
}

/* The one with more room is filled, then the other. */
static void next_peer_when_full(void **state)
{
    struct peer_node a, b, *nodes[] = {&a, &b};
    struct move m[MANY];
    struct tier *t;

    (void)state;
    peer_node_start(&a, "a", 1,
                    (struct sos_options){.lend_mem = 12 * PEER_TEST_BLOCK});
    peer_node_start(&b, "b", 1,
                    (struct sos_options){.lend_mem = 30 * PEER_TEST_BLOCK});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 2);
    put_many(t, m, MANY);
    wait_many(m, MANY);
    assert_int_equal(count_on(t, m, MANY, "b"), 30);
    assert_int_equal(count_on(t, m, MANY, "a"), MANY - 30);
    check_many(t, m, MANY);
    drop_many(t, m, MANY);
    peer_node_await_empty(&a);
    peer_node_await_empty(&b);
    tier_free(t);
    peer_node_stop(&a);
    peer_node_stop(&b);
    release_many(m, MANY);
}

static void all_refuse_and_say_why(void **state)
{
    struct peer_node a, b, *nodes[] = {&a, &b};
    struct move m[MANY];
    struct tier *t;

    (void)state;
    peer_node_start(&a, "node-a", 1,
                    (struct sos_options){.lend_mem = 4 * PEER_TEST_BLOCK});
    peer_node_start(&b, "node-b", 1,
                    (struct sos_options){.lend_mem = 4 * PEER_TEST_BLOCK});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 2);
    put_many(t, m, 8);
    wait_many(m, 8);
    move_init(&m[8], 100, 8, PEER_TEST_BLOCK);
    assert_int_equal(move_there(t, &m[8]), HEDGE_EREFUSED);
    assert_non_null(strstr(m[8].req.error.text, "node-a: "));
    assert_non_null(strstr(m[8].req.error.text, "node-b: "));
    assert_non_null(strstr(m[8].req.error.text, "of it lent"));
    /* There is room again, and the tier is told. */
    move_drop(t, &m[0]);
    while (peer_node_lent(&a) + peer_node_lent(&b) > 7 * PEER_TEST_BLOCK) {
        clock_sleep_ms(5);
    }
    peer_test_tell(t, nodes, 2);
    assert_int_equal(move_there(t, &m[8]), 0);
    move_check(t, &m[8]);
    tier_free(t);
    peer_node_stop(&a);
    peer_node_stop(&b);
    release_many(m, 9);
}

static void nobody_there(void **state)
{
    struct tier *t = peer_test_tier(PEER_TEST_BLOCK, NULL, 0);
    struct move m;

    (void)state;
    move_init(&m, 1, 1, PEER_TEST_BLOCK);
    assert_int_equal(move_there(t, &m), HEDGE_EREFUSED);
    assert_non_null(strstr(m.req.error.text, "no other nodes"));
    tier_free(t);
    move_release(&m);
}

/* A store that has used up its own limit keeps no other store out. */
static void limits_of_a_store(void **state)
{
    static const struct tier_store small = {.name = "small",
                                            .mem_limit = 2 * PEER_TEST_BLOCK};
    struct peer_node a, *nodes[] = {&a};
    struct move m[4];
    struct tier *t;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    for (unsigned i = 0; i < 3; i++) {
        move_init(&m[i], 5, i, PEER_TEST_BLOCK);
        m[i].req.store = &small;
        assert_int_equal(move_there(t, &m[i]), i < 2 ? 0 : HEDGE_EREFUSED);
    }
    move_init(&m[3], 6, 0, PEER_TEST_BLOCK);
    assert_int_equal(move_there(t, &m[3]), 0);
    move_check(t, &m[3]);
    move_check(t, &m[1]);
    tier_free(t);
    peer_node_stop(&a);
    release_many(m, 4);
}

/* Copies go to nodes that have none. */
static void avoided_nodes(void **state)
{
    struct peer_node a, b, *nodes[] = {&a, &b};
    struct move m[3];
    struct tier *t;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    peer_node_start(&b, "b", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 2);
    for (unsigned i = 0; i < 3; i++) {
        move_init(&m[i], 5, 0, PEER_TEST_BLOCK);
        m[i].req.n_avoid = i;
        for (unsigned k = 0; k < i; k++) {
            m[i].req.avoid[k] = m[k].req.place.unit;
        }
        assert_int_equal(move_there(t, &m[i]), i < 2 ? 0 : HEDGE_EREFUSED);
    }
    assert_string_not_equal(node_of(t, &m[0]), node_of(t, &m[1]));
    assert_non_null(strstr(m[2].req.error.text, "has a copy already"));
    tier_free(t);
    peer_node_stop(&a);
    peer_node_stop(&b);
    release_many(m, 3);
}

/* --- what goes wrong -------------------------------------------------------
 */

static int slow_disk(void *ctx, char op, size_t len)
{
    (void)ctx;
    (void)op;
    (void)len;
    clock_sleep_ms(20);
    return 0;
}

/* The server goes away while blocks are on their way to it. */
static void killed_while_putting(void **state)
{
    struct peer_node a, b, *nodes[] = {&a, &b};
    struct move m[MANY];
    struct tier *t;
    uint64_t on_a;

    (void)state;
    peer_node_start(&a, "a", 1,
                    (struct sos_options){.mem_limit = 16 * PEER_TEST_BLOCK,
                                         .disk_limit = 64 * MIB,
                                         .disk_fault = slow_disk});
    peer_node_start(&b, "b", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 2);
    put_many(t, m, MANY);
    (void)move_wait(&m[10]);
    peer_node_mute(&a);
    wait_many(m, MANY);
    on_a = count_on(t, m, MANY, "a");
    assert_true(on_a >= 1 && on_a < MANY);
    /* What it may have stored without saying so is dropped once it is back. */
    peer_node_unmute(&a);
    for (unsigned i = 0;
         i < 2000 && peer_node_lent(&a) != on_a * PEER_TEST_BLOCK; i++) {
        clock_sleep_ms(5);
    }
    assert_int_equal(peer_node_lent(&a), on_a * PEER_TEST_BLOCK);
    check_many(t, m, MANY);
    drop_many(t, m, MANY);
    peer_node_await_empty(&a);
    peer_node_await_empty(&b);
    tier_free(t);
    peer_node_stop(&a);
    peer_node_stop(&b);
    release_many(m, MANY);
}

/* The only peer breaks off and is there again at once: nothing is lost and
 * nothing is refused. */
static void only_peer_comes_back(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct move m[MANY];
    struct tier *t;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    put_many(t, m, MANY);
    (void)move_wait(&m[3]);
    peer_node_mute(&a);
    clock_sleep_ms(50);
    peer_node_unmute(&a);
    wait_many(m, MANY);
    check_many(t, m, MANY);
    drop_many(t, m, MANY);
    peer_node_await_empty(&a);
    tier_free(t);
    peer_node_stop(&a);
    release_many(m, MANY);
}

/* Reads what comes, says nothing. */
static int put_mute(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct rpc_msg m;
    int rv;

    while ((rv = rpc_stream_recv(s, RPC_NO_TIMEOUT, &m, e)) == 0) {
        rpc_msg_release(&m);
        atomic_fetch_add((atomic_int *)ctx, 1);
    }
    return rv;
}

/* Does not even read. */
static int put_deaf(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    (void)ctx;
    (void)e;
    while (!rpc_stream_is_cancelled(s)) {
        clock_sleep_ms(10);
    }
    return HEDGE_ECANCELED;
}

static atomic_int drops;

static void drop_count(struct rpc_call *c, void *ctx, const void *request,
                       size_t len)
{
    (void)ctx;
    (void)request;
    (void)len;
    atomic_fetch_add(&drops, 1);
    rpc_reply(c, "", 0);
}

/* At least `sent` blocks get on their way before the stall. */
static void stalled(rpc_stream_fn how, int sent)
{
    struct peer_node a, b, *nodes[] = {&a, &b};
    struct move m[MANY];
    atomic_int seen = 0;
    uint64_t start;
    struct tier *t;

    peer_node_start(&a, "a", 1,
                    (struct sos_options){.mem_limit = 80 * PEER_TEST_BLOCK});
    peer_node_start(&b, "b", 1, (struct sos_options){.mem_limit = 0});
    a.put = how;
    a.drop = drop_count;
    a.ctx = &seen;
    atomic_store(&drops, 0);
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 2);
    start = clock_mono_ms();
    put_many(t, m, MANY);
    wait_many(m, MANY);
    assert_true(clock_mono_ms() - start >= PEER_STALL_MS);
    assert_true(clock_mono_ms() - start < 3 * PEER_STALL_MS);
    assert_int_equal(count_on(t, m, MANY, "b"), MANY);
    assert_true(atomic_load(&seen) <= PEER_WINDOW);
    for (unsigned i = 0; i < 1000 && atomic_load(&drops) < sent; i++) {
        clock_sleep_ms(5);
    }
    assert_in_range(atomic_load(&drops), sent, PEER_WINDOW);
    check_many(t, m, MANY);
    tier_free(t);
    peer_node_stop(&a);
    peer_node_stop(&b);
    release_many(m, MANY);
}

static void peer_says_nothing(void **state)
{
    (void)state;
    stalled(put_mute, PEER_WINDOW);
}

static void peer_does_not_read(void **state)
{
    (void)state;
    stalled(put_deaf, 1);
}

/* --- memory that is still being sent
 * ------------------------------------------ */

#define LARGE ((size_t)1 << 20)

struct early {
    atomic_int upto;  /* Say "stored" to these, read or not... */
    atomic_bool read; /* ...and then read all, and say so to the others. */
    atomic_int good, bad;
};

static void say_stored(struct rpc_stream *s, uint64_t number)
{
    Hedge__V1__PutReply r = HEDGE__V1__PUT_REPLY__INIT;
    unsigned char buf[256];
    struct rpc_out out = {.head = buf};

    r.request = number;
    r.stored = true;
    out.head_len = hedge__v1__put_reply__pack(&r, buf);
    (void)rpc_stream_send(s, &out, RPC_NO_TIMEOUT);
}

static bool is_whole(struct rpc_msg *m)
{
    static unsigned char block[LARGE];
    struct block_header h;
    unsigned char *head;
    size_t head_len, len;
    bool has_body;

    if (wire_split(m, &head, &head_len, &has_body, &len, NULL) != 0) {
        return false;
    }
    mem_free(head);
    if (len != LARGE) {
        return false;
    }
    rpc_msg_read(m, block, len);
    return block_header_decode(block, len, LARGE, &h, NULL) == 0 &&
           block_check_stored(&h, block_payload(block), NULL) == 0;
}

static int put_early(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct early *x = ctx;
    struct rpc_msg m;
    int rv, n = 0;

    while (!atomic_load(&x->read) && !rpc_stream_is_cancelled(s)) {
        clock_sleep_ms(5);
        while (n < atomic_load(&x->upto)) {
            say_stored(s, (uint64_t)++n);
        }
    }
    for (int i = 1; (rv = rpc_stream_recv(s, RPC_NO_TIMEOUT, &m, e)) == 0;
         i++) {
        atomic_fetch_add(is_whole(&m) ? &x->good : &x->bad, 1);
        rpc_msg_release(&m);
        if (i > n) {
            say_stored(s, (uint64_t)i);
        }
    }
    return rv;
}

/* Until no more of them are sent: what is in flight then is stuck. Not for
 * long, because a peer that says nothing for two seconds is given up. */
static int count_stuck(struct peer_tier *inner)
{
    int stuck = 0, now = 0;

    for (unsigned i = 0, same = 0; i < 200 && same < 20; i++) {
        clock_sleep_ms(5);
        pthread_mutex_lock(&inner->lock);
        now = (int)inner->n_flight;
        pthread_mutex_unlock(&inner->lock);
        same = now == stuck && now > 0 ? same + 1 : 0;
        stuck = now;
    }
    return stuck;
}

/* A block is acknowledged while it is still on its way: its memory is given
 * back only once it has left. */
static void acknowledged_too_early(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct early x = {.upto = 0};
    struct peer_tier *inner;
    struct move m[6];
    struct tier *t;
    int stuck;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.block_size = LARGE});
    a.put = put_early;
    a.ctx = &x;
    t = peer_test_tier(LARGE, nodes, 1);
    inner = peer_tier_of(t);
    for (unsigned i = 0; i < 6; i++) {
        move_init(&m[i], 1, i, LARGE);
        m[i].poison = true;
        move_put(t, &m[i]);
    }
    stuck = count_stuck(inner);
    assert_in_range(stuck, 1, 5);
    atomic_store(&x.upto, stuck);
    clock_sleep_ms(100);
    assert_int_equal(atomic_load(&m[stuck - 1].ended), 0);
    atomic_store(&x.read, true);
    wait_many(m, 6);
    for (unsigned i = 0; i < 1000 && atomic_load(&x.good) < 6; i++) {
        clock_sleep_ms(5);
    }
    assert_int_equal(atomic_load(&x.good), 6);
    assert_int_equal(atomic_load(&x.bad), 0);
    a.put = NULL;
    tier_free(t);
    peer_node_stop(&a);
    release_many(m, 6);
}

/* The tier ends while everything is stuck. */
static void end_with_puts_in_flight(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct move m[MANY];
    struct tier *t;
    uint64_t start;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    a.put = put_deaf;
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    put_many(t, m, MANY);
    clock_sleep_ms(100);
    start = clock_mono_ms();
    tier_free(t);
    assert_true(clock_mono_ms() - start < 1500);
    for (unsigned i = 0; i < MANY; i++) {
        assert_int_equal(atomic_load(&m[i].ended), 1);
        assert_int_equal(m[i].req.status, HEDGE_ECANCELED);
    }
    peer_node_stop(&a);
    release_many(m, MANY);
}

/* --- a process that is stopped ---------------------------------------------
 */

static void stop(const struct far_node *far)
{
    int status;

    assert_int_equal(kill(far->pid, SIGSTOP), 0);
    assert_int_equal(waitpid(far->pid, &status, WUNTRACED), far->pid);
    assert_true(WIFSTOPPED(status));
}

/* Memory that the transport has not let go of is not given back; it lets go
 * of it although the other end neither reads nor goes away. */
static void stopped_while_putting(void **state)
{
    struct far_node far;
    struct peer_node b;
    struct peer_info infos[2];
    struct move m[MANY];
    uint64_t start;
    struct tier *t;

    (void)state;
    far_node_start(&far);
    peer_node_start(&b, "b", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, NULL, 0);
    infos[0] = far_node_info(&far);
    infos[1] = peer_node_info(&b);
    peer_tier_update(t, infos, 2);
    put_many(t, m, 1);
    wait_many(m, 1);
    assert_string_equal(node_of(t, &m[0]), "far");
    stop(&far);
    start = clock_mono_ms();
    for (unsigned i = 1; i < MANY; i++) {
        move_init(&m[i], 100, i, PEER_TEST_BLOCK);
        m[i].poison = true;
        move_put(t, &m[i]);
    }
    wait_many(m, MANY);
    assert_true(clock_mono_ms() - start < 2 * PEER_STALL_MS);
    assert_int_equal(count_on(t, m, MANY, "far"), 1);
    /* What it has it gives once it goes on, and what it did not acknowledge
     * is dropped there. */
    start = clock_mono_ms();
    assert_int_equal(move_back(t, &m[0]), HEDGE_EUNAVAILABLE);
    assert_true(clock_mono_ms() - start < 10000);
    assert_int_equal(kill(far.pid, SIGCONT), 0);
    check_many(t, m, MANY);
    tier_free(t);
    peer_node_stop(&b);
    far_node_stop(&far);
    release_many(m, MANY);
}

/* The only peer is stopped for so long that it is no member any more: what was
 * on its way, and what comes, waits for it. Once it is known to have ended,
 * nothing waits. */
static void stopped_alone(void **state)
{
    struct far_node far;
    struct peer_info info;
    struct move m[MANY];
    struct tier *t;

    (void)state;
    far_node_start(&far);
    t = peer_test_tier(PEER_TEST_BLOCK, NULL, 0);
    info = far_node_info(&far);
    peer_tier_update(t, &info, 1);
    put_many(t, m, 1);
    wait_many(m, 1);
    stop(&far);
    for (unsigned i = 1; i < MANY; i++) {
        if (i == MANY / 2) {
            clock_sleep_ms(200);
            peer_tier_update(t, NULL, 0);
        }
        move_init(&m[i], 100, i, PEER_TEST_BLOCK);
        move_put(t, &m[i]);
    }
    clock_sleep_ms(PEER_STALL_MS + 1000);
    for (unsigned i = 1; i < MANY; i++) {
        assert_int_equal(atomic_load(&m[i].ended), 0);
    }
    assert_int_equal(kill(far.pid, SIGCONT), 0);
    peer_tier_update(t, &info, 1);
    wait_many(m, MANY);
    assert_int_equal(count_on(t, m, MANY, "far"), MANY);
    check_many(t, m, MANY);
    release_many(m, MANY);
    far_node_stop(&far);
    peer_tier_update(t, NULL, 0);
    move_init(&m[0], 101, 0, PEER_TEST_BLOCK);
    assert_int_equal(move_there(t, &m[0]), HEDGE_EREFUSED);
    tier_free(t);
    move_release(&m[0]);
}

/* Nor does a stopped peer keep the tier from ending. */
static void end_while_stopped(void **state)
{
    struct far_node far;
    struct peer_info info;
    struct move m[MANY], back;
    uint64_t start;
    struct tier *t;

    (void)state;
    far_node_start(&far);
    t = peer_test_tier(PEER_TEST_BLOCK, NULL, 0);
    info = far_node_info(&far);
    peer_tier_update(t, &info, 1);
    move_init(&back, 3, 3, PEER_TEST_BLOCK);
    assert_int_equal(move_there(t, &back), 0);
    stop(&far);
    put_many(t, m, MANY);
    move_get(t, &back);
    clock_sleep_ms(200);
    start = clock_mono_ms();
    tier_free(t);
    assert_true(clock_mono_ms() - start < 3000);
    for (unsigned i = 0; i < MANY; i++) {
        assert_int_equal(move_wait(&m[i]), HEDGE_ECANCELED);
    }
    assert_int_equal(move_wait(&back), HEDGE_ECANCELED);
    far_node_stop(&far);
    release_many(m, MANY);
    move_release(&back);
}

/* --- peers that answer nonsense ----------------------------------------------
 */

enum nonsense {
    SHORT,
    NO_BLOCK,
    OTHER_NUMBER,
    JUNK,
    SILENCE,
    AN_ERROR,
    STRANGE_ERROR,
    NONSENSES
};

static void send_nonsense(struct rpc_stream *s, enum nonsense how,
                          uint64_t number)
{
    static unsigned char buf[PEER_TEST_BLOCK + 64];
    Hedge__V1__GetReply r = HEDGE__V1__GET_REPLY__INIT;
    struct rpc_out out = {.head = buf};
    size_t len = PEER_TEST_BLOCK - (how == SHORT);

    r.request = number + (how == OTHER_NUMBER);
    if (how == AN_ERROR || how == STRANGE_ERROR) {
        r.error = (char *)(uintptr_t)(how == AN_ERROR ? "EIO" : "EWHATEVER");
    }
    out.head_len = hedge__v1__get_reply__pack(&r, buf);
    if (how == SHORT || how == OTHER_NUMBER) {
        out.head_len += wire_body_tag(len, buf + out.head_len);
        memset(buf + out.head_len, 0, len);
        out.head_len += len;
    }
    if (how == JUNK) {
        memset(buf, 0xff, 20);
        out.head_len = 20;
    }
    (void)rpc_stream_send(s, &out, RPC_NO_TIMEOUT);
}

static int get_nonsense(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    enum nonsense how = *(enum nonsense *)ctx;
    unsigned char buf[256];
    struct rpc_msg m;
    int rv;

    while ((rv = rpc_stream_recv(s, RPC_NO_TIMEOUT, &m, e)) == 0) {
        Hedge__V1__GetRequest *q;
        size_t len = rpc_msg_left(&m);

        rpc_msg_read(&m, buf, len);
        rpc_msg_release(&m);
        q = hedge__v1__get_request__unpack(NULL, len, buf);
        if (how != SILENCE) {
            send_nonsense(s, how, q->request);
        }
        hedge__v1__get_request__free_unpacked(q, NULL);
    }
    return rv;
}

static void nonsense_for_gets(void **state)
{
    static const int expected[NONSENSES] = {
        [SHORT] = HEDGE_EPROTO,
        [NO_BLOCK] = HEDGE_EPROTO,
        [OTHER_NUMBER] = HEDGE_EUNAVAILABLE,
        [JUNK] = HEDGE_EUNAVAILABLE,
        [SILENCE] = HEDGE_EUNAVAILABLE,
        [AN_ERROR] = HEDGE_EIO,
        [STRANGE_ERROR] = HEDGE_EPROTO,
    };
    struct peer_node a, *nodes[] = {&a};
    enum nonsense how;
    struct tier *t;
    struct move m;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    a.ctx = &how;
    for (how = 0; how < NONSENSES; how++) {
        uint64_t start;

        a.get = NULL;
        t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
        move_init(&m, 1, 1, PEER_TEST_BLOCK);
        assert_int_equal(move_there(t, &m), 0);
        a.get = get_nonsense;
        start = clock_mono_ms();
        if (move_back(t, &m) != expected[how]) {
            fail_msg("%d: %d %s", how, m.req.status, m.req.error.text);
        }
        assert_non_null(strstr(m.req.error.text, "node a"));
        assert_true(clock_mono_ms() - start < 10000);
        tier_free(t);
        move_release(&m);
    }
    peer_node_stop(&a);
}

/* Tells of blocks that it was not sent, or of none. */
static int put_nonsense(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    Hedge__V1__PutReply r = HEDGE__V1__PUT_REPLY__INIT;
    unsigned char buf[256];
    struct rpc_out out = {.head = buf};
    struct rpc_msg m;
    int rv;

    while ((rv = rpc_stream_recv(s, RPC_NO_TIMEOUT, &m, e)) == 0) {
        rpc_msg_release(&m);
        r.request = 999;
        r.stored = true;
        out.head_len = hedge__v1__put_reply__pack(&r, buf);
        if (*(enum nonsense *)ctx == JUNK) {
            memset(buf, 0xff, 20);
            out.head_len = 20;
        }
        (void)rpc_stream_send(s, &out, RPC_NO_TIMEOUT);
    }
    return rv;
}

static void nonsense_for_puts(void **state)
{
    struct peer_node a, b, *nodes[] = {&a, &b};
    enum nonsense how;
    struct move m[MANY];
    struct tier *t;

    (void)state;
    for (how = OTHER_NUMBER; how <= JUNK; how++) {
        peer_node_start(
            &a, "a", 1,
            (struct sos_options){.mem_limit = 80 * PEER_TEST_BLOCK});
        peer_node_start(&b, "b", 1, (struct sos_options){.mem_limit = 0});
        a.put = put_nonsense;
        a.ctx = &how;
        t = peer_test_tier(PEER_TEST_BLOCK, nodes, 2);
        put_many(t, m, MANY);
        wait_many(m, MANY);
        assert_int_equal(count_on(t, m, MANY, "b"), MANY);
        check_many(t, m, MANY);
        tier_free(t);
        peer_node_stop(&a);
        peer_node_stop(&b);
        release_many(m, MANY);
    }
}

static void unreachable_for_gets(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct tier *t;
    struct move m;
    uint64_t start;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    move_init(&m, 1, 1, PEER_TEST_BLOCK);
    assert_int_equal(move_there(t, &m), 0);
    peer_node_mute(&a);
    start = clock_mono_ms();
    assert_int_equal(move_back(t, &m), HEDGE_EUNAVAILABLE);
    assert_non_null(strstr(m.req.error.text, "node a"));
    /* Evicted: what it had is lost, unless it answers after all. */
    peer_test_tell(t, NULL, 0);
    assert_int_equal(move_back(t, &m), HEDGE_ELOST);
    assert_true(clock_mono_ms() - start < 8000);
    peer_node_unmute(&a);
    peer_test_tell(t, nodes, 1);
    move_check(t, &m);
    tier_free(t);
    peer_node_stop(&a);
    move_release(&m);
}

/* The node has started again: by the member list, and before the list shows
 * it. */
static void newer_incarnation(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct move m[3];
    struct tier_use u;
    struct tier *t;
    struct peer_info info;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    for (unsigned i = 0; i < 3; i++) {
        move_init(&m[i], 1, i, PEER_TEST_BLOCK);
    }
    assert_int_equal(move_there(t, &m[0]), 0);
    a.incarnation = 2;
    peer_test_tell(t, nodes, 1);
    assert_int_equal(move_back(t, &m[0]), HEDGE_ELOST);
    assert_non_null(strstr(m[0].req.error.text, "node a"));
    tier_use(t, &u);
    assert_int_equal(u.used, 0);
    tier_drop_store(t, 1);
    /* A list that is older than what is known says nothing. */
    a.incarnation = 1;
    info = peer_node_info(&a);
    peer_tier_update(t, &info, 1);
    assert_int_equal(move_there(t, &m[1]), HEDGE_EREFUSED);
    tier_free(t);
    peer_node_stop(&a);

    peer_node_start(&a, "a", 5, (struct sos_options){.mem_limit = 0});
    a.incarnation = 4;
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    assert_int_equal(move_there(t, &m[2]), HEDGE_EREFUSED);
    assert_int_equal(peer_node_lent(&a), 0);
    a.incarnation = 5;
    peer_test_tell(t, nodes, 1);
    assert_int_equal(move_there(t, &m[2]), 0);
    move_check(t, &m[2]);
    tier_free(t);
    peer_node_stop(&a);
    release_many(m, 3);
}

/* Blocks that are kept alive by renewals stay. */
static void renewed(void **state)
{
    struct peer_node a, *nodes[] = {&a};
    struct tier *t;
    struct move m;

    (void)state;
    peer_node_start(&a, "a", 1, (struct sos_options){.mem_limit = 0});
    t = peer_test_tier(PEER_TEST_BLOCK, nodes, 1);
    move_init(&m, 1, 1, PEER_TEST_BLOCK);
    assert_int_equal(move_there(t, &m), 0);
    clock_sleep_ms(PEER_TEST_LEASE_MS / 3 + 500);
    move_check(t, &m);
    tier_free(t);
    /* The end of the owner is the end of its blocks. */
    assert_int_equal(peer_node_lent(&a), 0);
    peer_node_stop(&a);
    move_release(&m);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(there_and_back),
    cmocka_unit_test(memory_then_disk),
    cmocka_unit_test(next_peer_when_full),
    cmocka_unit_test(all_refuse_and_say_why),
    cmocka_unit_test(nobody_there),
    cmocka_unit_test(limits_of_a_store),
    cmocka_unit_test(avoided_nodes),
    cmocka_unit_test(killed_while_putting),
    cmocka_unit_test(only_peer_comes_back),
    cmocka_unit_test(peer_says_nothing),
    cmocka_unit_test(peer_does_not_read),
    cmocka_unit_test(acknowledged_too_early),
    cmocka_unit_test(end_with_puts_in_flight),
    cmocka_unit_test(stopped_while_putting),
    cmocka_unit_test(stopped_alone),
    cmocka_unit_test(end_while_stopped),
    cmocka_unit_test(nonsense_for_gets),
    cmocka_unit_test(nonsense_for_puts),
    cmocka_unit_test(unreachable_for_gets),
    cmocka_unit_test(newer_incarnation),
    cmocka_unit_test(renewed),
};

int main(int argc, char **argv)
{
    far_node_role(argc, argv);
    rpc_process_setup();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
