/* The block service, spoken to by a client that knows nothing of the peer tier
 * and often misbehaves. */
#include "tests/lib/peer_node.h"

#include "cluster/peer/serve_peer_internal.h"
#include "cluster/rpc/wire.h"
#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/base/mem.h"
#include "store/sos_internal.h"
#include "proto/hedge.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)
#define PUT "/hedge.v1.Peer/Put"
#define GET "/hedge.v1.Peer/Get"
#define DROP "/hedge.v1.Peer/Drop"
#define RENEW "/hedge.v1.Peer/Renew"
#define WAIT_MS 20000u

static struct peer_node node;
static struct rpc_channel *channel;

static int setup_with(struct sos_options o)
{
    peer_node_start(&node, "node", 11, o);
    assert_int_equal(rpc_channel_new(node.address, &channel), 0);
    return 0;
}

static int setup(void **state)
{
    (void)state;
    return setup_with((struct sos_options){.mem_limit = 0});
}

static int teardown(void **state)
{
    (void)state;
    rpc_channel_free(channel);
    peer_node_stop(&node);
    return 0;
}

/* --- a client --------------------------------------------------------------
 */

static Hedge__V1__OwnerRef *owner(uint64_t incarnation)
{
    static Hedge__V1__OwnerRef ref;

    ref = (Hedge__V1__OwnerRef)HEDGE__V1__OWNER_REF__INIT;
    ref.id = (char *)(uintptr_t) "owner";
    ref.incarnation = incarnation;
    return &ref;
}

static struct rpc_stream *open_stream(const char *path)
{
    struct rpc_stream *s;

    assert_int_equal(rpc_stream_open(channel, path, RPC_NO_TIMEOUT, &s), 0);
    return s;
}

static int send_bytes(struct rpc_stream *s, const void *data, size_t len)
{
    struct rpc_out out = {.head = data, .head_len = len};

    return rpc_stream_send(s, &out, WAIT_MS);
}

static int send_put(struct rpc_stream *s, Hedge__V1__PutRequest *m,
                    const void *block, size_t len)
{
    unsigned char *buf = malloc(len + 4096);
    size_t n = hedge__v1__put_request__pack(m, buf);
    int rv;

    if (block != NULL) {
        n += wire_body_tag(len, buf + n);
        memcpy(buf + n, block, len);
        n += len;
    }
    rv = send_bytes(s, buf, n);
    free(buf);
    return rv;
}

/* Receives a reply; its status is the stream's if that has ended. */
static int get_reply(struct rpc_stream *s, Hedge__V1__PutReply **r,
                     struct hedge_error *e)
{
    unsigned char buf[4096];
    struct rpc_msg m;
    size_t len;
    int rv = rpc_stream_recv(s, WAIT_MS, &m, e);

    *r = NULL;
    if (rv == 0) {
        len = rpc_msg_left(&m);
        assert_true(len <= sizeof buf);
        rpc_msg_read(&m, buf, len);
        rpc_msg_release(&m);
        *r = hedge__v1__put_reply__unpack(NULL, len, buf);
        assert_non_null(*r);
    }
    return rv;
}

/* One put and its reply: NULL for stored, or the name of the error. */
static const char *put_one(struct rpc_stream *s, Hedge__V1__PutRequest *m,
                           const void *block, size_t len)
{
    static char name[64];
    struct hedge_error e = {.code = 0};
    Hedge__V1__PutReply *r;
    int rv;

    (void)send_put(s, m, block, len);
    rv = get_reply(s, &r, &e);
    if (rv != 0) {
        (void)snprintf(name, sizeof name, "stream %s", hedge_errname(rv));
        return name;
    }
    assert_int_equal(r->request, m->request);
    (void)snprintf(name, sizeof name, "%s", r->error);
    assert_int_equal(r->stored, name[0] == '\0');
    assert_true(r->stored || r->text[0] != '\0');
    hedge__v1__put_reply__free_unpacked(r, NULL);
    return name[0] == '\0' ? NULL : name;
}

static Hedge__V1__PutRequest request(uint64_t number)
{
    Hedge__V1__PutRequest m = HEDGE__V1__PUT_REQUEST__INIT;

    m.request = number;
    m.owner = owner(1);
    m.store = (char *)(uintptr_t) "s";
    return m;
}

static int call_drop(Hedge__V1__DropRequest *m)
{
    unsigned char buf[1024];
    struct rpc_msg reply;
    int rv;

    rv = rpc_call(channel, DROP, buf, hedge__v1__drop_request__pack(m, buf),
                  WAIT_MS, &reply, NULL);
    if (rv == 0) {
        rpc_msg_release(&reply);
    }
    return rv;
}

/* --- puts ------------------------------------------------------------------
 */

static void put_and_say_where(void **state)
{
    struct rpc_stream *s = open_stream(PUT);
    Hedge__V1__PutRequest m = request(42);
    struct hedge_error e;
    Hedge__V1__PutReply *r;
    struct move b;

    (void)state;
    move_init(&b, 9, 0, PEER_TEST_BLOCK);
    assert_int_equal(send_put(s, &m, b.bytes, b.req.len), 0);
    assert_int_equal(get_reply(s, &r, &e), 0);
    assert_true(r->stored);
    assert_int_equal(r->request, 42);
    assert_string_equal(r->tier, "memory");
    assert_true(r->mem_free > 0);
    hedge__v1__put_reply__free_unpacked(r, NULL);
    assert_int_equal(peer_node_lent(&node), PEER_TEST_BLOCK);
    assert_string_equal(put_one(s, &m, b.bytes, b.req.len), "EEXISTS");
    assert_int_equal(rpc_stream_close_send(s), 0);
    assert_int_equal(get_reply(s, &r, &e), HEDGE_EEND);
    rpc_stream_free(s);
    move_release(&b);
}

/* Damaged blocks are told apart, and the stream goes on. */
static void damaged_blocks(void **state)
{
    struct rpc_stream *s = open_stream(PUT);
    Hedge__V1__PutRequest m = request(1);
    struct move b;
    size_t len;

    (void)state;
    move_init(&b, 9, 0, PEER_TEST_BLOCK);
    len = b.req.len;
    b.bytes[len - 1] ^= 1;
    assert_string_equal(put_one(s, &m, b.bytes, len), "ECORRUPT");
    b.bytes[len - 1] ^= 1;
    b.bytes[40] ^= 1;
    assert_string_equal(put_one(s, &m, b.bytes, len), "ECORRUPT");
    b.bytes[40] ^= 1;
    assert_string_equal(put_one(s, &m, b.bytes, len - 1), "EPROTO");
    assert_string_equal(put_one(s, &m, b.bytes, 20), "EPROTO");
    assert_string_equal(put_one(s, &m, b.bytes, 0), "EPROTO");
    assert_int_equal(peer_node_lent(&node), 0);
    assert_null(put_one(s, &m, b.bytes, len));
    rpc_stream_free(s);
    move_release(&b);
}

/* A block of another cluster's size. */
static void too_large(void **state)
{
    struct rpc_stream *s = open_stream(PUT);
    Hedge__V1__PutRequest m = request(1);
    struct move b;

    (void)state;
    move_init(&b, 9, 0, 2 * PEER_TEST_BLOCK);
    assert_string_equal(put_one(s, &m, b.bytes, b.req.len), "ECORRUPT");
    rpc_stream_free(s);
    move_release(&b);
}

static const char *first_message(const Hedge__V1__PutRequest *m, bool block)
{
    struct rpc_stream *s = open_stream(PUT);
    Hedge__V1__PutRequest copy = *m;
    const char *answer;
    struct move b;

    move_init(&b, 9, 0, PEER_TEST_BLOCK);
    answer = put_one(s, &copy, block ? b.bytes : NULL, b.req.len);
    rpc_stream_free(s);
    move_release(&b);
    return answer;
}

static void malformed_streams(void **state)
{
    static const unsigned char junk[] = {0xff, 0xff, 0xff, 1, 2, 3};
    Hedge__V1__PutRequest m = request(1);
    char long_name[1024];
    struct rpc_stream *s;
    Hedge__V1__PutReply *r;

    (void)state;
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    m.owner = NULL;
    assert_string_equal(first_message(&m, true), "stream EPROTO");
    m = request(1);
    m.owner->id = (char *)(uintptr_t) "";
    assert_string_equal(first_message(&m, true), "stream EPROTO");
    m = request(1);
    m.owner->id = long_name;
    assert_string_equal(first_message(&m, true), "stream EPROTO");
    m = request(1);
    m.store = long_name;
    assert_string_equal(first_message(&m, true), "stream EPROTO");
    m = request(1);
    assert_string_equal(first_message(&m, false), "stream EPROTO");
    m = request(1);
    m.peer_incarnation = 12;
    assert_string_equal(first_message(&m, true), "stream ELOST");
    s = open_stream(PUT);
    assert_int_equal(send_bytes(s, junk, sizeof junk), 0);
    assert_int_equal(get_reply(s, &r, NULL), HEDGE_EPROTO);
    rpc_stream_free(s);
    assert_int_equal(peer_node_lent(&node), 0);
}

/* --- fences ----------------------------------------------------------------
 */

static void nothing_after_the_fence(void **state)
{
    struct rpc_stream *old = open_stream(PUT), *new = open_stream(PUT);
    Hedge__V1__DropRequest d = HEDGE__V1__DROP_REQUEST__INIT;
    Hedge__V1__PutRequest m = request(1);
    struct move b;

    (void)state;
    move_init(&b, 9, 0, PEER_TEST_BLOCK);
    m.stream = 5;
    assert_null(put_one(old, &m, b.bytes, b.req.len));
    d.owner = owner(1);
    d.generation = 9;
    d.one_block = true;
    d.writer = b.req.id.writer;
    d.fence = 5;
    assert_int_equal(call_drop(&d), 0);
    assert_int_equal(peer_node_lent(&node), 0);
    m.owner = NULL;
    assert_string_equal(put_one(old, &m, b.bytes, b.req.len), "ECANCELED");
    m = request(1);
    m.stream = 6;
    assert_null(put_one(new, &m, b.bytes, b.req.len));
    /* Another life of the owner counts anew. */
    d.owner = owner(2);
    d.fence = 1;
    assert_int_equal(call_drop(&d), 0);
    assert_int_equal(peer_node_lent(&node), 0);
    rpc_stream_free(old);
    rpc_stream_free(new);
    move_release(&b);
}

static atomic_bool disk_held;

static int hold_disk(void *ctx, char op, size_t len)
{
    (void)ctx;
    (void)len;
    while (op == 'w' && atomic_load(&disk_held)) {
        clock_sleep_ms(1);
    }
    return 0;
}

/* A block that is being written to the disk when it is dropped. */
static void dropped_while_written(void **state)
{
    Hedge__V1__DropRequest d = HEDGE__V1__DROP_REQUEST__INIT;
    Hedge__V1__PutRequest m = request(1);
    struct rpc_stream *s;
    Hedge__V1__PutReply *r;
    struct move b;

    (void)state;
    atomic_store(&disk_held, false);
    (void)setup_with((struct sos_options){
        .lend_mem = 1, .disk_limit = 64 * MIB, .disk_fault = hold_disk});
    s = open_stream(PUT);
    move_init(&b, 9, 0, PEER_TEST_BLOCK);
    m.stream = 3;
    atomic_store(&disk_held, true);
    assert_int_equal(send_put(s, &m, b.bytes, b.req.len), 0);
    while (peer_node_lent(&node) == 0) {
        clock_sleep_ms(1);
    }
    d.owner = owner(1);
    d.generation = 9;
    d.one_block = true;
    d.writer = b.req.id.writer;
    d.fence = 3;
    assert_int_equal(call_drop(&d), 0);
    atomic_store(&disk_held, false);
    assert_int_equal(get_reply(s, &r, NULL), 0);
    assert_false(r->stored);
    assert_string_equal(r->error, "ECANCELED");
    hedge__v1__put_reply__free_unpacked(r, NULL);
    peer_node_await_empty(&node);
    rpc_stream_free(s);
    move_release(&b);
    (void)teardown(NULL);
}

/* --- drops and renewals -----------------------------------------------------
 */

static void drops(void **state)
{
    struct rpc_stream *s = open_stream(PUT);
    Hedge__V1__DropRequest d = HEDGE__V1__DROP_REQUEST__INIT;
    struct move b;

    (void)state;
    for (unsigned i = 0; i < 10; i++) {
        Hedge__V1__PutRequest m = request(i);

        move_init(&b, 9 + i / 8, i, PEER_TEST_BLOCK);
        assert_null(put_one(s, &m, b.bytes, b.req.len));
        move_release(&b);
    }
    d.owner = owner(1);
    d.generation = 9;
    d.one_block = true;
    d.writer = 3;
    d.sequence = 2;
    d.count = 3;
    assert_int_equal(call_drop(&d), 0);
    assert_int_equal(peer_node_lent(&node), 7 * PEER_TEST_BLOCK);
    d.one_block = false;
    assert_int_equal(call_drop(&d), 0);
    assert_int_equal(peer_node_lent(&node), 2 * PEER_TEST_BLOCK);
    d.peer_incarnation = 12;
    d.generation = 0;
    assert_int_equal(call_drop(&d), HEDGE_ELOST);
    d.peer_incarnation = 11;
    d.owner->id = (char *)(uintptr_t) "somebody else";
    assert_int_equal(call_drop(&d), 0);
    assert_int_equal(peer_node_lent(&node), 2 * PEER_TEST_BLOCK);
    d.owner = owner(1);
    assert_int_equal(call_drop(&d), 0);
    assert_int_equal(peer_node_lent(&node), 0);
    rpc_stream_free(s);
}

/* One owner cannot drop another's blocks, by number or as a whole. */
static void of_another_owner(void **state)
{
    struct rpc_stream *s = open_stream(PUT);
    Hedge__V1__DropRequest d = HEDGE__V1__DROP_REQUEST__INIT;
    Hedge__V1__PutRequest m = request(1);
    struct move b;

    (void)state;
    move_init(&b, 9, 0, PEER_TEST_BLOCK);
    assert_null(put_one(s, &m, b.bytes, b.req.len));
    d.owner = owner(1);
    d.owner->id = (char *)(uintptr_t) "somebody else";
    d.generation = 9;
    d.writer = 3;
    d.one_block = true;
    assert_int_equal(call_drop(&d), 0);
    d.one_block = false;
    assert_int_equal(call_drop(&d), 0);
    assert_int_equal(peer_node_lent(&node), PEER_TEST_BLOCK);
    rpc_stream_free(s);
    move_release(&b);
}

/* What is left of a store whose blocks were dropped one by one goes as well. */
static void empty_parts_end(void **state)
{
    struct rpc_stream *s = open_stream(PUT);
    Hedge__V1__DropRequest d = HEDGE__V1__DROP_REQUEST__INIT;
    Hedge__V1__PutRequest m = request(1);
    uint64_t now = clock_boot_ms();
    struct move b;

    (void)state;
    move_init(&b, 9, 0, PEER_TEST_BLOCK);
    assert_null(put_one(s, &m, b.bytes, b.req.len));
    lend_expire(node.sos, now);
    lend_expire(node.sos, now + 10000);
    assert_int_equal(peer_node_lent(&node), PEER_TEST_BLOCK);
    d.owner = owner(1);
    d.generation = 9;
    d.writer = 3;
    d.one_block = true;
    assert_int_equal(call_drop(&d), 0);
    lend_expire(node.sos, now + 1);
    assert_false(list_empty(&node.sos->parts));
    lend_expire(node.sos, clock_boot_ms() + 10001);
    assert_true(list_empty(&node.sos->parts));
    rpc_stream_free(s);
    move_release(&b);
}

static int call_raw(const char *path, const void *data, size_t len)
{
    struct rpc_msg reply;
    int rv = rpc_call(channel, path, data, len, WAIT_MS, &reply, NULL);

    if (rv == 0) {
        rpc_msg_release(&reply);
    }
    return rv;
}

static void malformed_calls(void **state)
{
    static const unsigned char junk[] = {0xff, 0xff, 0xff, 1, 2, 3};
    Hedge__V1__DropRequest d = HEDGE__V1__DROP_REQUEST__INIT;
    Hedge__V1__RenewRequest r = HEDGE__V1__RENEW_REQUEST__INIT;
    unsigned char buf[256];

    (void)state;
    assert_int_equal(call_raw(DROP, junk, sizeof junk), HEDGE_EPROTO);
    assert_int_equal(call_raw(RENEW, junk, sizeof junk), HEDGE_EPROTO);
    assert_int_equal(call_drop(&d), HEDGE_EPROTO);
    d.owner = owner(1);
    d.one_block = true;
    assert_int_equal(call_drop(&d), HEDGE_EPROTO);
    d.generation = 4;
    d.count = UINT32_MAX;
    assert_int_equal(call_drop(&d), HEDGE_EPROTO);
    d.count = 1;
    d.sequence = UINT64_MAX;
    assert_int_equal(call_drop(&d), HEDGE_EPROTO);
    assert_int_equal(
        call_raw(RENEW, buf, hedge__v1__renew_request__pack(&r, buf)),
        HEDGE_EPROTO);
    r.owner = owner(1);
    r.peer_incarnation = 10;
    assert_int_equal(
        call_raw(RENEW, buf, hedge__v1__renew_request__pack(&r, buf)),
        HEDGE_ELOST);
    r.peer_incarnation = 11;
    assert_int_equal(
        call_raw(RENEW, buf, hedge__v1__renew_request__pack(&r, buf)), 0);
}

/* --- gets ------------------------------------------------------------------
 */

static int send_get(struct rpc_stream *s, uint64_t number, const struct move *b)
{
    Hedge__V1__GetRequest m = HEDGE__V1__GET_REQUEST__INIT;
    unsigned char buf[256];

    m.request = number;
    m.generation = b->req.id.generation;
    m.writer = b->req.id.writer;
    m.sequence = b->req.id.sequence;
    return send_bytes(s, buf, hedge__v1__get_request__pack(&m, buf));
}

/* Many at once, what is there and what is not; a client that stops reading
 * halfway is not waited for. */
static void many_gets(void **state)
{
    struct rpc_stream *put = open_stream(PUT), *get = open_stream(GET);
    Hedge__V1__PutRequest p = request(1);
    unsigned found = 0, lost = 0;
    struct move b, none;

    (void)state;
    move_init(&b, 9, 0, PEER_TEST_BLOCK);
    move_init(&none, 9, 1, PEER_TEST_BLOCK);
    assert_null(put_one(put, &p, b.bytes, b.req.len));
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(send_get(get, i, i % 2 == 0 ? &b : &none), 0);
    }
    for (unsigned i = 0; i < 40; i++) {
        unsigned char *head;
        size_t head_len, body_len;
        struct rpc_msg m;
        bool has_body;
        Hedge__V1__GetReply *r;

        assert_int_equal(rpc_stream_recv(get, WAIT_MS, &m, NULL), 0);
        assert_int_equal(
            wire_split(&m, &head, &head_len, &has_body, &body_len, NULL), 0);
        r = hedge__v1__get_reply__unpack(NULL, head_len, head);
        assert_non_null(r);
        assert_int_equal(has_body, r->request % 2 == 0);
        if (has_body) {
            assert_int_equal(body_len, b.req.len);
            rpc_msg_read(&m, b.req.data, body_len);
            assert_memory_equal(b.req.data, b.bytes, body_len);
            found++;
        } else {
            assert_string_equal(r->error, "ELOST");
            lost++;
        }
        hedge__v1__get_reply__free_unpacked(r, NULL);
        mem_free(head);
        rpc_msg_release(&m);
    }
    assert_int_equal(found, 20);
    assert_int_equal(lost, 20);
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(send_get(get, i, &b), 0);
    }
    rpc_stream_free(get);
    rpc_stream_free(put);
    move_release(&b);
    move_release(&none);
}

static unsigned blocks_out(void)
{
    unsigned n;

    pthread_mutex_lock(&node.service->lock);
    n = node.service->out;
    pthread_mutex_unlock(&node.service->lock);
    return n;
}

/* So many are asked for and none is read: the transport has two, and another
 * one waits for its turn. All are given back in time, or `false`. */
static bool stall(unsigned n, uint64_t send_ms, uint64_t within_ms)
{
    struct rpc_stream *put = open_stream(PUT), *s = open_stream(GET);
    Hedge__V1__PutRequest p = request(1);
    uint64_t until_ms;
    struct move b;
    bool all;

    move_init(&b, 9, n, PEER_TEST_BLOCK);
    assert_null(put_one(put, &p, b.bytes, b.req.len));
    node.service->reply_send_ms = send_ms;
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(send_get(s, i, &b), 0);
    }
    while (blocks_out() < 3) {
        clock_sleep_ms(1);
    }
    until_ms = clock_mono_ms() + within_ms;
    while (blocks_out() > 0 && clock_mono_ms() < until_ms) {
        clock_sleep_ms(1);
    }
    all = blocks_out() == 0;
    rpc_stream_free(s);
    rpc_stream_free(put);
    move_release(&b);
    return all;
}

/* Its connection is well, but it does not read. The blocks are read from disk
 * by other threads than the handler's, which waits for requests or its turn. */
static void a_reader_that_stalls(void **state)
{
    bool few, many;

    (void)state;
    (void)setup_with(
        (struct sos_options){.lend_mem = 1, .disk_limit = 64 * MIB});
    few = stall(PEER_WINDOW, 500, WAIT_MS);
    /* All that wait would take six times as long, one after the other. */
    many = stall(40, 3000, 11000);
    (void)teardown(NULL);
    assert_true(few);
    assert_true(many);
}

static void malformed_gets(void **state)
{
    static const unsigned char junk[2000] = {0xff, 0xff, 0xff, 1, 2, 3};
    struct rpc_msg m;

    (void)state;
    for (size_t len = 5; len <= sizeof junk; len += sizeof junk - 5) {
        struct rpc_stream *s = open_stream(GET);

        assert_int_equal(send_bytes(s, junk, len), 0);
        assert_int_equal(rpc_stream_recv(s, WAIT_MS, &m, NULL), HEDGE_EPROTO);
        rpc_stream_free(s);
    }
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

static const struct CMUnitTest tests[] = {
    TEST(put_and_say_where),
    TEST(damaged_blocks),
    TEST(too_large),
    TEST(malformed_streams),
    TEST(nothing_after_the_fence),
    cmocka_unit_test(dropped_while_written),
    TEST(drops),
    TEST(of_another_owner),
    TEST(empty_parts_end),
    TEST(malformed_calls),
    TEST(many_gets),
    cmocka_unit_test(a_reader_that_stalls),
    TEST(malformed_gets),
};

int main(void)
{
    rpc_process_setup();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
