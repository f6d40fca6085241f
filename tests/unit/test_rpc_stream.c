/* Streams, from both ends. */
#include "store/base/clock.h"
#include "store/base/mem.h"
#include "tests/lib/rpc_service.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define WAIT_MS 20000u
#define MIB ((size_t)1 << 20)

static struct rpc_stream *open_on(struct service *s, const char *path)
{
    struct rpc_stream *st;

    assert_int_equal(rpc_stream_open(s->channel, path, RPC_NO_TIMEOUT, &st), 0);
    return st;
}

static int send_text(struct rpc_stream *st, const char *text)
{
    struct rpc_out out = {.head = text, .head_len = strlen(text)};

    return rpc_stream_send(st, &out, WAIT_MS);
}

static void assert_recv(struct rpc_stream *st, const char *want)
{
    struct hedge_error e = {.code = 0};
    struct rpc_msg m;
    char got[128] = {0};

    if (rpc_stream_recv(st, WAIT_MS, &m, &e) != 0) {
        fail_msg("%s", e.text);
    }
    assert_int_equal(rpc_msg_left(&m), strlen(want));
    rpc_msg_read(&m, got, strlen(want));
    assert_string_equal(got, want);
    rpc_msg_release(&m);
}

static int recv_code(struct rpc_stream *st, uint64_t timeout_ms)
{
    struct hedge_error e = {.code = 0};
    struct rpc_msg m;
    int rv = rpc_stream_recv(st, timeout_ms, &m, &e);

    assert_int_equal(rv, e.code);
    assert_null(rv == 0 ? NULL : m.impl);
    rpc_msg_release(&m);
    return rv;
}

static void count(void *arg)
{
    atomic_fetch_add((atomic_int *)arg, 1);
}

/* --- messages ---------------------------------------------------------------
 */

static void test_echo(void **state)
{
    struct rpc_stream *st;
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_ECHO);
    for (int i = 0; i < 200; i++) {
        char text[32];
        (void)snprintf(text, sizeof text, "message %d", i);
        assert_int_equal(send_text(st, text), 0);
        assert_recv(st, text);
    }
    assert_int_equal(send_text(st, ""), 0);
    assert_recv(st, "");
    assert_false(rpc_stream_is_cancelled(st));
    assert_string_not_equal(rpc_stream_peer(st), "");
    assert_int_equal(rpc_stream_close_send(st), 0);
    assert_int_equal(rpc_stream_close_send(st), 0);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EEND);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EEND);
    assert_false(rpc_stream_is_cancelled(st));
    rpc_stream_free(st);
    assert_true(service_await(&s.ended, 1));
    assert_int_equal(atomic_load(&s.last), HEDGE_EEND);
    service_stop(&s, 0);
}

static void send_blocks(struct service *s, size_t body_len)
{
    unsigned char *block = malloc(body_len);
    atomic_int released = 0;
    struct rpc_out out = {.head = "head",
                          .head_len = 4,
                          .body = block,
                          .body_len = body_len,
                          .release = count,
                          .release_arg = &released};
    struct rpc_stream *st = open_on(s, STREAM_SINK);

    memset(block, 'z', body_len);
    atomic_store(&s->bytes, 0);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(rpc_stream_send(st, &out, WAIT_MS), 0);
    }
    assert_int_equal(rpc_stream_close_send(st), 0);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EEND);
    rpc_stream_free(st);
    assert_int_equal(atomic_load(&s->bytes), 20 * (body_len + 4));
    assert_true(service_await(&released, 20));
    free(block);
}

static void test_blocks_to_server(void **state)
{
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    send_blocks(&s, 1);
    send_blocks(&s, MIB);
    send_blocks(&s, 2 * MIB);
    send_blocks(&s, 4 * MIB);
    send_blocks(&s, RPC_MESSAGE_MAX - 4);
    service_stop(&s, 0);
}

static void test_blocks_to_client(void **state)
{
    char address[64];
    struct rpc_stream *st;
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;
    char head[2];

    (void)state;
    (void)snprintf(address, sizeof address, "unix:/tmp/hedge-test-%p",
                   (void *)&s);
    service_start(&s, address, 0);
    atomic_store(&s.pump_max, 20);
    st = open_on(&s, STREAM_PUMP);
    assert_int_equal(send_text(st, "1048576"), 0);
    for (int i = 0; i < 20; i++) {
        const unsigned char *p;
        size_t pieces = 0;
        assert_int_equal(rpc_stream_recv(st, WAIT_MS, &m, &e), 0);
        rpc_msg_read(&m, head, 2);
        assert_memory_equal(head, "hd", 2);
        for (size_t n; (n = rpc_msg_peek(&m, &p)) > 0; pieces += n) {
            assert_int_equal(p[0] | p[n - 1], 0);
            rpc_msg_read(&m, NULL, n);
        }
        assert_int_equal(pieces, MIB);
        rpc_msg_release(&m);
    }
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EEND);
    rpc_stream_free(st);
    assert_true(service_await(&s.released, 20));
    service_stop(&s, 0);
}

/* --- one thread sends while another receives --------------------------------
 */

#define DUPLEX_MESSAGES 300
#define DUPLEX_BYTES ((size_t)64 << 10)

static void *duplex_sender(void *arg)
{
    static unsigned char block[DUPLEX_BYTES];
    struct rpc_stream *st = arg;
    struct rpc_out out = {.body = block, .body_len = sizeof block};
    int rv = 0;

    for (int i = 0; rv == 0 && i < DUPLEX_MESSAGES; i++) {
        rv = rpc_stream_send(st, &out, WAIT_MS);
    }
    rv = rv == 0 ? rpc_stream_close_send(st) : rv;
    return rv == 0 ? st : NULL;
}

static void test_full_duplex(void **state)
{
    struct rpc_stream *st;
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;
    pthread_t t;
    void *result;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_ECHO);
    assert_int_equal(pthread_create(&t, NULL, duplex_sender, st), 0);
    for (int i = 0; i < DUPLEX_MESSAGES; i++) {
        assert_int_equal(rpc_stream_recv(st, WAIT_MS, &m, &e), 0);
        assert_int_equal(rpc_msg_left(&m), DUPLEX_BYTES);
        rpc_msg_release(&m);
    }
    pthread_join(t, &result);
    assert_ptr_equal(result, st);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EEND);
    rpc_stream_free(st);
    service_stop(&s, 0);
}

/* --- errors -----------------------------------------------------------------
 */

static void test_handler_fails(void **state)
{
    struct rpc_stream *st;
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_FAIL);
    assert_int_equal(send_text(st, "x"), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(rpc_stream_recv(st, WAIT_MS, &m, &e), HEDGE_EFENCED);
        assert_string_equal(e.text, "token 7 is stale");
    }
    assert_int_equal(send_text(st, "y"), HEDGE_EFENCED);
    assert_true(rpc_stream_is_cancelled(st));
    rpc_stream_free(st);
    service_stop(&s, 0);
}

static void test_handler_leaves(void **state)
{
    atomic_int released = 0;
    struct rpc_out out = {.head = "h",
                          .head_len = 1,
                          .body = "b",
                          .body_len = 1,
                          .release = count,
                          .release_arg = &released};
    struct rpc_stream *st;
    struct service s;
    int rv = 0, sent = 0;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_LEAVE);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EEND);
    for (; rv == 0 && sent < 1000; sent++) {
        rv = rpc_stream_send(st, &out, WAIT_MS);
    }
    assert_int_equal(rv, HEDGE_ECLOSED);
    rpc_stream_free(st);
    assert_true(service_await(&released, sent));
    service_stop(&s, 0);
}

static void test_unknown_and_unreachable(void **state)
{
    struct rpc_channel *c;
    struct rpc_stream *st;
    struct service s;
    char address[128];

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, "/t.Stream/Nope");
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_ENOTSUP);
    rpc_stream_free(st);
    memcpy(address, s.address, sizeof address);
    service_stop(&s, 0);
    assert_int_equal(rpc_channel_new(address, &c), 0);
    assert_int_equal(rpc_stream_open(c, STREAM_ECHO, RPC_NO_TIMEOUT, &st), 0);
    assert_int_equal(send_text(st, "x"), HEDGE_EUNAVAILABLE);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EUNAVAILABLE);
    rpc_stream_free(st);
    rpc_channel_free(c);
}

static void test_refused_messages(void **state)
{
    atomic_int released = 0;
    struct rpc_out out = {.head = "h",
                          .head_len = 1,
                          .body = &released,
                          .body_len = RPC_MESSAGE_MAX,
                          .release = count,
                          .release_arg = &released};
    struct rpc_stream *st;
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_ECHO);
    assert_int_equal(rpc_stream_send(st, &out, WAIT_MS), HEDGE_ETOOBIG);
    assert_int_equal(atomic_load(&released), 1);
    /* The stream goes on. */
    assert_int_equal(send_text(st, "x"), 0);
    assert_recv(st, "x");
    assert_int_equal(rpc_stream_close_send(st), 0);
    out.body_len = 1;
    assert_int_equal(rpc_stream_send(st, &out, WAIT_MS), HEDGE_ECLOSED);
    assert_int_equal(atomic_load(&released), 2);
    /* Without a body the release still comes. */
    out.body = NULL;
    assert_int_equal(rpc_stream_send(st, &out, WAIT_MS), HEDGE_ECLOSED);
    assert_int_equal(atomic_load(&released), 3);
    rpc_stream_free(st);
    service_stop(&s, 0);
}

/* --- time -------------------------------------------------------------------
 */

static void test_recv_timeout_loses_nothing(void **state)
{
    struct rpc_stream *st;
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_ECHO);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(recv_code(st, 10), HEDGE_ETIMEDOUT);
        assert_int_equal(recv_code(st, 0), HEDGE_ETIMEDOUT);
        assert_int_equal(send_text(st, "one"), 0);
        assert_int_equal(send_text(st, "two"), 0);
        assert_recv(st, "one");
        assert_recv(st, "two");
    }
    rpc_stream_free(st);
    service_stop(&s, 0);
}

static void test_send_timeout(void **state)
{
    static unsigned char block[MIB];
    atomic_int released = 0;
    struct rpc_out out = {.body = block,
                          .body_len = sizeof block,
                          .release = count,
                          .release_arg = &released};
    struct rpc_stream *st;
    struct service s;
    int rv = 0, sent = 0;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_IDLE);
    for (; rv == 0 && sent < 1000; sent++) {
        rv = rpc_stream_send(st, &out, 300);
    }
    assert_int_equal(rv, HEDGE_ETIMEDOUT);
    assert_int_equal(rpc_stream_send(st, &out, 10), HEDGE_ETIMEDOUT);
    rpc_stream_cancel(st);
    assert_int_equal(rpc_stream_send(st, &out, WAIT_MS), HEDGE_ECANCELED);
    rpc_stream_free(st);
    assert_true(service_await(&released, sent + 2));
    assert_true(service_await(&s.ended, 1));
    service_stop(&s, 0);
}

/* Posted messages arrive in their order, and all before the end. */
static void test_post(void **state)
{
    static unsigned char block[MIB];
    atomic_int released = 0;
    struct rpc_out big = {.head = "head",
                          .head_len = 4,
                          .body = block,
                          .body_len = sizeof block,
                          .release = count,
                          .release_arg = &released};
    struct rpc_stream *st;
    struct service s;
    char text[32];

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_ECHO);
    for (int i = 0; i < 200; i++) {
        struct rpc_out out = {.head = text};

        out.head_len = (size_t)snprintf(text, sizeof text, "message %d", i);
        assert_int_equal(rpc_stream_post(st, &out, WAIT_MS), 0);
    }
    for (int i = 0; i < 200; i++) {
        (void)snprintf(text, sizeof text, "message %d", i);
        assert_recv(st, text);
    }
    rpc_stream_free(st);
    st = open_on(&s, STREAM_SINK);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(rpc_stream_post(st, &big, WAIT_MS), 0);
    }
    assert_int_equal(rpc_stream_settle(st, WAIT_MS), 0);
    assert_int_equal(rpc_stream_post(st, &big, WAIT_MS), 0);
    assert_int_equal(send_text(st, "last"), 0);
    assert_int_equal(rpc_stream_post(st, &big, WAIT_MS), 0);
    assert_int_equal(rpc_stream_close_send(st), 0);
    assert_int_equal(rpc_stream_post(st, &big, WAIT_MS), HEDGE_ECLOSED);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EEND);
    rpc_stream_free(st);
    assert_int_equal(atomic_load(&s.bytes), 22 * (MIB + 4) + 4);
    assert_true(service_await(&released, 23));
    service_stop(&s, 0);
}

/* A far end that does not read: what was posted stays, and goes with the
 * stream. */
static void test_post_stuck(void **state)
{
    static unsigned char block[MIB];
    atomic_int released = 0;
    struct rpc_out out = {.body = block,
                          .body_len = sizeof block,
                          .release = count,
                          .release_arg = &released};
    struct rpc_stream *st;
    struct service s;
    int rv = 0, sent = 0;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_IDLE);
    for (; rv == 0 && sent < 1000; sent++) {
        rv = rpc_stream_post(st, &out, 300);
    }
    assert_int_equal(rv, HEDGE_ETIMEDOUT);
    assert_int_equal(rpc_stream_settle(st, 10), HEDGE_ETIMEDOUT);
    assert_int_equal(rpc_stream_send(st, &out, 10), HEDGE_ETIMEDOUT);
    assert_true(atomic_load(&released) < sent);
    rpc_stream_cancel(st);
    assert_int_equal(rpc_stream_post(st, &out, WAIT_MS), HEDGE_ECANCELED);
    assert_int_equal(rpc_stream_settle(st, WAIT_MS), HEDGE_ECANCELED);
    rpc_stream_free(st);
    assert_true(service_await(&released, sent + 2));
    service_stop(&s, 0);
    /* Posted, and freed at once. */
    service_start(&s, NULL, 0);
    atomic_store(&released, 0);
    st = open_on(&s, STREAM_SINK);
    assert_int_equal(rpc_stream_post(st, &out, WAIT_MS), 0);
    assert_int_equal(rpc_stream_post(st, &out, WAIT_MS), 0);
    rpc_stream_free(st);
    assert_true(service_await(&released, 2));
    service_stop(&s, 0);
}

static void test_deadline(void **state)
{
    struct rpc_stream *st;
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    assert_int_equal(rpc_stream_open(s.channel, STREAM_SINK, 200, &st), 0);
    assert_int_equal(send_text(st, "x"), 0);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_ETIMEDOUT);
    assert_true(rpc_stream_is_cancelled(st));
    assert_true(service_await(&s.ended, 1));
    assert_int_equal(atomic_load(&s.last), HEDGE_ETIMEDOUT);
    rpc_stream_free(st);
    service_stop(&s, 0);
}

/* --- cancelling -------------------------------------------------------------
 */

static void *blocked_recv(void *arg)
{
    return (void *)(intptr_t)recv_code(arg, WAIT_MS);
}

static void *blocked_send(void *arg)
{
    static unsigned char block[MIB];
    struct rpc_out out = {.body = block, .body_len = sizeof block};
    int rv = 0;

    for (int i = 0; rv == 0 && i < 1000; i++) {
        rv = rpc_stream_send(arg, &out, WAIT_MS);
    }
    return (void *)(intptr_t)rv;
}

static int cancel_blocked(struct rpc_stream *st, void *(*fn)(void *))
{
    pthread_t t;
    void *result;

    assert_int_equal(pthread_create(&t, NULL, fn, st), 0);
    clock_sleep_ms(100);
    rpc_stream_cancel(st);
    pthread_join(t, &result);
    return (int)(intptr_t)result;
}

static void test_cancel_by_client(void **state)
{
    struct rpc_stream *st;
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    /* Both block in receiving. */
    st = open_on(&s, STREAM_SINK);
    assert_int_equal(cancel_blocked(st, blocked_recv), HEDGE_ECANCELED);
    assert_true(service_await(&s.ended, 1));
    assert_int_equal(atomic_load(&s.last), HEDGE_ECANCELED);
    rpc_stream_free(st);
    /* The client blocks in sending to one that does not receive. */
    st = open_on(&s, STREAM_IDLE);
    assert_int_equal(cancel_blocked(st, blocked_send), HEDGE_ECANCELED);
    rpc_stream_free(st);
    assert_true(service_await(&s.ended, 2));
    /* The server blocks in sending to one that does not receive. */
    st = open_on(&s, STREAM_PUMP);
    assert_int_equal(send_text(st, "4194304"), 0);
    assert_true(service_await(&s.started, 3));
    clock_sleep_ms(100);
    rpc_stream_free(st); /* Cancels. */
    assert_true(service_await(&s.ended, 3));
    assert_int_equal(atomic_load(&s.last), HEDGE_ECANCELED);
    service_stop(&s, 0);
}

static void test_cancel_by_server(void **state)
{
    struct rpc_stream *st;
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    st = open_on(&s, STREAM_CANCEL);
    assert_int_equal(send_text(st, "x"), 0);
    assert_int_equal(recv_code(st, WAIT_MS), HEDGE_ECANCELED);
    rpc_stream_free(st);
    assert_true(service_await(&s.ended, 1));
    assert_int_equal(atomic_load(&s.last), HEDGE_ECANCELED);
    service_stop(&s, 0);
}

/* --- death ------------------------------------------------------------------
 */

static void test_server_killed(void **state)
{
    struct rpc_channel *c;
    struct rpc_stream *st;
    char address[128];
    void *result;
    pthread_t t;
    pid_t pid;

    (void)state;
    for (int i = 0; i < 5; i++) {
        pid = service_spawn("server", "", address, sizeof address);
        assert_int_equal(rpc_channel_new(address, &c), 0);
        assert_int_equal(rpc_stream_open(c, STREAM_ECHO, RPC_NO_TIMEOUT, &st),
                         0);
        assert_int_equal(send_text(st, "x"), 0);
        assert_recv(st, "x");
        if (i % 2 == 0) {
            assert_int_equal(rpc_stream_close_send(st), 0);
            assert_int_equal(recv_code(st, WAIT_MS), HEDGE_EEND);
            rpc_stream_free(st);
            assert_int_equal(
                rpc_stream_open(c, STREAM_IDLE, RPC_NO_TIMEOUT, &st), 0);
        }
        assert_int_equal(pthread_create(&t, NULL, blocked_recv, st), 0);
        clock_sleep_ms(20);
        service_kill(pid);
        pthread_join(t, &result);
        assert_int_equal((int)(intptr_t)result, HEDGE_EUNAVAILABLE);
        assert_int_equal(send_text(st, "x"), HEDGE_EUNAVAILABLE);
        rpc_stream_free(st);
        rpc_channel_free(c);
    }
}

static void test_client_killed(void **state)
{
    struct service s;
    char said[16];
    pid_t pid;

    (void)state;
    service_start(&s, NULL, 0);
    for (int i = 0; i < 5; i++) {
        pid = service_spawn("client", s.address, said, sizeof said);
        assert_string_equal(said, "sent");
        service_kill(pid);
        assert_true(service_await(&s.ended, i + 1));
        assert_int_not_equal(atomic_load(&s.last), HEDGE_EEND);
        assert_int_equal(atomic_load(&s.last), HEDGE_ECANCELED);
    }
    service_stop(&s, 0);
}

/* --- servers ----------------------------------------------------------------
 */

#define MANY 60

static void test_many_streams(void **state)
{
    struct rpc_stream *st[MANY];
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    for (int i = 0; i < MANY; i++) {
        st[i] = open_on(&s, STREAM_ECHO);
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < MANY; i++) {
            assert_int_equal(send_text(st[i], "hello"), 0);
        }
        for (int i = 0; i < MANY; i++) {
            assert_recv(st[i], "hello");
        }
    }
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(rpc_stream_close_send(st[i]), 0);
        assert_int_equal(recv_code(st[i], WAIT_MS), HEDGE_EEND);
        rpc_stream_free(st[i]);
    }
    service_stop(&s, 0);
}

static void test_streams_max(void **state)
{
    struct rpc_stream *st[2], *third;
    struct service s;

    (void)state;
    service_start(&s, NULL, 2);
    for (int i = 0; i < 2; i++) {
        st[i] = open_on(&s, STREAM_ECHO);
        assert_int_equal(send_text(st[i], "x"), 0);
        assert_recv(st[i], "x");
    }
    third = open_on(&s, STREAM_ECHO);
    assert_int_equal(recv_code(third, WAIT_MS), HEDGE_EEXHAUSTED);
    rpc_stream_free(third);
    rpc_stream_free(st[0]);
    assert_true(service_await(&s.ended, 1));
    clock_sleep_ms(50);
    third = open_on(&s, STREAM_ECHO);
    assert_int_equal(send_text(third, "x"), 0);
    assert_recv(third, "x");
    rpc_stream_free(third);
    rpc_stream_free(st[1]);
    service_stop(&s, 0);
}

static void test_stop_with_streams(void **state)
{
    struct rpc_stream *idle, *recv, *pump;
    struct rpc_channel *c;
    struct service s;
    uint64_t start;

    (void)state;
    service_start(&s, NULL, 0);
    assert_int_equal(rpc_channel_new(s.address, &c), 0);
    assert_int_equal(rpc_stream_open(c, STREAM_IDLE, RPC_NO_TIMEOUT, &idle), 0);
    assert_int_equal(rpc_stream_open(c, STREAM_SINK, RPC_NO_TIMEOUT, &recv), 0);
    assert_int_equal(rpc_stream_open(c, STREAM_PUMP, RPC_NO_TIMEOUT, &pump), 0);
    assert_int_equal(send_text(pump, "1048576"), 0);
    assert_true(service_await(&s.started, 3));
    start = clock_mono_ms();
    service_stop(&s, 100);
    assert_true(clock_mono_ms() - start >= 100);
    assert_int_equal(atomic_load(&s.ended), 3);
    assert_int_equal(recv_code(idle, WAIT_MS), HEDGE_EUNAVAILABLE);
    assert_int_equal(recv_code(recv, WAIT_MS), HEDGE_EUNAVAILABLE);
    rpc_stream_free(idle);
    rpc_stream_free(recv);
    rpc_stream_free(pump);
    rpc_channel_free(c);
}

/* Whichever allocation fails: an error or success, every release runs once,
 * and afterwards everything works. */
static void test_no_memory(void **state)
{
    atomic_int released = 0;
    struct rpc_out out = {.head = "h",
                          .head_len = 1,
                          .body = "body",
                          .body_len = 4,
                          .release = count,
                          .release_arg = &released};
    struct rpc_stream *st;
    struct service s;
    int rv = 1, sent = 0;

    (void)state;
    service_start(&s, NULL, 0);
    for (long n = 0; rv != 0; n++) {
        assert_true(n < 100);
        mem_fail_after(n);
        rv = rpc_stream_open(s.channel, STREAM_SINK, WAIT_MS, &st);
        if (rv == 0) {
            rv = rpc_stream_send(st, &out, WAIT_MS);
            sent++;
        }
        clock_sleep_ms(5);
        mem_fail_after(-1);
        rpc_stream_free(st);
        st = open_on(&s, STREAM_ECHO);
        assert_int_equal(send_text(st, "x"), 0);
        assert_recv(st, "x");
        rpc_stream_free(st);
    }
    assert_true(service_await(&released, sent));
    service_stop(&s, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_blocks_to_server),
        cmocka_unit_test(test_blocks_to_client),
        cmocka_unit_test(test_full_duplex),
        cmocka_unit_test(test_handler_fails),
        cmocka_unit_test(test_handler_leaves),
        cmocka_unit_test(test_unknown_and_unreachable),
        cmocka_unit_test(test_refused_messages),
        cmocka_unit_test(test_recv_timeout_loses_nothing),
        cmocka_unit_test(test_send_timeout),
        cmocka_unit_test(test_post),
        cmocka_unit_test(test_post_stuck),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_cancel_by_client),
        cmocka_unit_test(test_cancel_by_server),
        cmocka_unit_test(test_server_killed),
        cmocka_unit_test(test_client_killed),
        cmocka_unit_test(test_many_streams),
        cmocka_unit_test(test_streams_max),
        cmocka_unit_test(test_stop_with_streams),
        cmocka_unit_test(test_no_memory),
    };

    rpc_process_setup();
    service_roles(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
