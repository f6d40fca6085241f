/* Unary calls, channels and the life of servers. Streams: test_rpc_stream.c. */
#include "store/base/clock.h"
#include "store/base/mem.h"
#include "tests/lib/rpc_service.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CALL_MS 20000u

static int call(struct service *s, const char *path, const char *request,
                uint64_t timeout_ms, struct rpc_msg *reply,
                struct hedge_error *e)
{
    return rpc_call(s->channel, path, request, strlen(request), timeout_ms,
                    reply, e);
}

static void assert_reply(struct rpc_msg *m, const char *want)
{
    char got[256] = {0};

    assert_int_equal(rpc_msg_left(m), strlen(want));
    rpc_msg_read(m, got, strlen(want));
    assert_string_equal(got, want);
    assert_int_equal(rpc_msg_left(m), 0);
    rpc_msg_release(m);
}

static void assert_echo(struct service *s)
{
    struct hedge_error e = {.code = 0};
    struct rpc_msg m;

    if (call(s, UNARY_ECHO, "ping", CALL_MS, &m, &e) != 0) {
        fail_msg("%s", e.text);
    }
    assert_reply(&m, "ping");
}

static void scratch(char *out, size_t size, const char *name)
{
    (void)snprintf(out, size, "/tmp/hedge-test-rpc-%d-%s", (int)getpid(), name);
}

/* --- calls ------------------------------------------------------------------
 */

static void test_echo(void **state)
{
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;

    (void)state;
    service_start(&s, NULL, 0);
    assert_echo(&s);
    assert_int_equal(call(&s, UNARY_INLINE, "inline", CALL_MS, &m, &e), 0);
    assert_reply(&m, "inline");
    assert_int_equal(call(&s, UNARY_ECHO, "", CALL_MS, &m, &e), 0);
    assert_reply(&m, "");
    assert_int_equal(call(&s, UNARY_LATER, "20", CALL_MS, &m, &e), 0);
    assert_reply(&m, "later");
    assert_int_equal(call(&s, UNARY_PEER, "x", CALL_MS, &m, &e), 0);
    assert_true(rpc_msg_left(&m) > strlen("ipv4:127.0.0.1:"));
    rpc_msg_release(&m);
    service_stop(&s, 0);
}

static void test_two_addresses(void **state)
{
    const char *addresses[2] = {"ipv4:127.0.0.1:0", NULL};
    char path[128], address[160];
    struct rpc_server_options o = {.addresses = addresses, .n_addresses = 2};
    struct rpc_server *server;
    struct hedge_error e;
    struct stat st;

    (void)state;
    scratch(path, sizeof path, "two");
    (void)snprintf(address, sizeof address, "unix:%s", path);
    addresses[1] = address;
    assert_int_equal(rpc_server_new(&o, &server, &e), 0);
    assert_int_not_equal(rpc_server_port(server, 0), 0);
    assert_int_equal(rpc_server_port(server, 1), 0);
    assert_int_equal(stat(path, &st), 0);
    rpc_server_free(server, 0);
    assert_int_not_equal(stat(path, &st), 0);
}

static void test_unix(void **state)
{
    char path[128], address[160];
    struct service s;

    (void)state;
    scratch(path, sizeof path, "unix");
    (void)snprintf(address, sizeof address, "unix:%s", path);
    service_start(&s, address, 0);
    assert_echo(&s);
    service_stop(&s, 0);
}

static void test_codes(void **state)
{
    struct service s;

    (void)state;
    service_start(&s, NULL, 0);
    for (int code = HEDGE_EAGAIN; code < 0; code++) {
        struct hedge_error e = {.code = 0};
        char request[64];
        struct rpc_msg m;
        (void)snprintf(request, sizeof request, "%d because of %d", code, code);
        assert_int_equal(call(&s, UNARY_FAIL, request, CALL_MS, &m, &e), code);
        assert_int_equal(e.code, code);
        assert_string_equal(e.text, strchr(request, ' ') + 1);
        assert_int_equal(rpc_msg_left(&m), 0);
    }
    service_stop(&s, 0);
}

static void test_texts(void **state)
{
    static const struct {
        const char *sent, *seen;
    } cases[] = {
        {"", "no node has room for the data"},
        {"line\nline\ttab\x7f", "line line tab "},
        {"d\xc3\xa9sol\xc3\xa9 100% \"ok\"",
         "d\xc3\xa9sol\xc3\xa9 100% \"ok\""},
        {"bad \xff\xfe \xc3", "bad ?? ?"},
        {"\xed\xa0\x80 \xc0\x80 \xf0\x80\x80\x80", "??? ?? ????"},
        {"\xf0\x9f\x90\xb3", "\xf0\x9f\x90\xb3"},
    };
    char request[HEDGE_ERROR_TEXT_MAX * 2];
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;

    (void)state;
    service_start(&s, NULL, 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        (void)snprintf(request, sizeof request, "%d %s", HEDGE_EFULL,
                       cases[i].sent);
        assert_int_equal(call(&s, UNARY_FAIL, request, CALL_MS, &m, &e),
                         HEDGE_EFULL);
        assert_string_equal(e.text, cases[i].seen);
    }
    memset(request, 'x', sizeof request - 1);
    request[sizeof request - 1] = '\0';
    memcpy(request, "-5 ", 3);
    assert_int_equal(call(&s, UNARY_FAIL, request, CALL_MS, &m, &e),
                     HEDGE_EFULL);
    assert_int_equal(strlen(e.text), HEDGE_ERROR_TEXT_MAX - 1);
    service_stop(&s, 0);
}

static void test_unknown_method(void **state)
{
    uint64_t start = clock_mono_ms();
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;

    (void)state;
    service_start(&s, NULL, 0);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(call(&s, "/t.Unary/Nope", "x", CALL_MS, &m, &e),
                         HEDGE_ENOTSUP);
        assert_non_null(strstr(e.text, "/t.Unary/Nope"));
    }
    assert_true(clock_mono_ms() - start < CALL_MS);
    service_stop(&s, 0);
}

static void test_timeout(void **state)
{
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;
    uint64_t start;

    (void)state;
    service_start(&s, NULL, 0);
    assert_echo(&s);
    start = clock_mono_ms();
    assert_int_equal(call(&s, UNARY_SLEEP, "1500", 100, &m, &e),
                     HEDGE_ETIMEDOUT);
    assert_true(clock_mono_ms() - start >= 100);
    assert_true(clock_mono_ms() - start < 1400);
    assert_int_equal(call(&s, UNARY_ECHO, "x", 0, &m, &e), HEDGE_ETIMEDOUT);
    assert_int_equal(call(&s, UNARY_ECHO, "x", RPC_NO_TIMEOUT, &m, &e), 0);
    assert_reply(&m, "x");
    service_stop(&s, 0);
    assert_int_equal(atomic_load(&s.ended), 1);
}

/* A reason has time to get back, and nobody is left with none. */
static void test_usable_time(void **state)
{
    (void)state;
    assert_int_equal(rpc_usable_ms(RPC_NO_TIMEOUT), RPC_NO_TIMEOUT);
    assert_int_equal(rpc_usable_ms(15000), 14600);
    assert_int_equal(rpc_usable_ms(1000), 750);
    assert_int_equal(rpc_usable_ms(1), 1);
    assert_int_equal(rpc_usable_ms(0), 0);
}

static void test_sizes(void **state)
{
    char *p = mem_alloc(RPC_MESSAGE_MAX + 1);
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;

    (void)state;
    memset(p, 'r', RPC_MESSAGE_MAX + 1);
    service_start(&s, NULL, 0);
    assert_int_equal(
        rpc_call(s.channel, UNARY_ECHO, p, RPC_MESSAGE_MAX, CALL_MS, &m, &e),
        0);
    assert_int_equal(rpc_msg_left(&m), RPC_MESSAGE_MAX);
    rpc_msg_read(&m, NULL, RPC_MESSAGE_MAX - 1);
    rpc_msg_read(&m, p, 1);
    assert_int_equal(p[0], 'r');
    rpc_msg_release(&m);
    assert_int_equal(rpc_call(s.channel, UNARY_ECHO, p, RPC_MESSAGE_MAX + 1,
                              CALL_MS, &m, &e),
                     HEDGE_ETOOBIG);
    assert_int_equal(call(&s, UNARY_BIG, "8388609", CALL_MS, &m, &e),
                     HEDGE_ETOOBIG);
    assert_int_equal(call(&s, UNARY_BIG, "8388608", CALL_MS, &m, &e), 0);
    assert_int_equal(rpc_msg_left(&m), RPC_MESSAGE_MAX);
    rpc_msg_release(&m);
    service_stop(&s, 0);
    mem_free(p);
}

static void *caller(void *arg)
{
    struct service *s = arg;
    int failed = 0;

    for (int i = 0; i < 100; i++) {
        struct hedge_error e;
        struct rpc_msg m;
        char text[32];
        (void)snprintf(text, sizeof text, "call %d", i);
        failed += call(s, i % 2 ? UNARY_ECHO : UNARY_INLINE, text, CALL_MS, &m,
                       &e) != 0;
        failed += rpc_msg_left(&m) != strlen(text);
        rpc_msg_release(&m);
    }
    return failed == 0 ? s : NULL;
}

static void test_many_callers(void **state)
{
    pthread_t t[8];
    struct service s;
    void *result;

    (void)state;
    service_start(&s, NULL, 0);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, caller, &s), 0);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(t[i], &result);
        assert_ptr_equal(result, &s);
    }
    service_stop(&s, 0);
}

/* --- channels ---------------------------------------------------------------
 */

static void test_unreachable(void **state)
{
    struct rpc_channel *c;
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;
    char address[128];
    uint64_t start;

    (void)state;
    service_start(&s, NULL, 0);
    memcpy(address, s.address, sizeof address);
    service_stop(&s, 0);
    assert_int_equal(rpc_channel_new(address, &c), 0);
    start = clock_mono_ms();
    assert_int_equal(rpc_call(c, UNARY_ECHO, "x", 1, CALL_MS, &m, &e),
                     HEDGE_EUNAVAILABLE);
    assert_true(clock_mono_ms() - start < 5000);
    assert_true(e.text[0] != '\0');
    rpc_channel_free(c);
    assert_int_equal(rpc_channel_new("unix:/nonexistent/socket", &c), 0);
    assert_int_equal(rpc_call(c, UNARY_ECHO, "x", 1, CALL_MS, &m, &e),
                     HEDGE_EUNAVAILABLE);
    rpc_channel_free(c);
}

/* A peer that has been down for seconds is used within moments of coming
 * back: the back-off never grows beyond half a second. */
static void test_peer_comes_back(void **state)
{
    struct rpc_channel *c;
    struct hedge_error e;
    struct service s;
    char address[128];
    struct rpc_msg m;

    (void)state;
    service_start(&s, NULL, 0);
    memcpy(address, s.address, sizeof address);
    assert_int_equal(rpc_channel_new(address, &c), 0);
    assert_int_equal(rpc_call(c, UNARY_ECHO, "x", 1, CALL_MS, &m, &e), 0);
    rpc_msg_release(&m);
    service_stop(&s, 0);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(rpc_call(c, UNARY_ECHO, "x", 1, CALL_MS, &m, &e),
                         HEDGE_EUNAVAILABLE);
        clock_sleep_ms(200);
    }
    service_start(&s, address, 0);
    clock_sleep_ms(700);
    if (rpc_call(c, UNARY_ECHO, "x", 1, CALL_MS, &m, &e) != 0) {
        fail_msg("%s", e.text);
    }
    rpc_msg_release(&m);
    rpc_channel_free(c);
    service_stop(&s, 0);
}

static void test_peer_killed(void **state)
{
    struct rpc_channel *c;
    struct hedge_error e;
    struct rpc_msg m;
    char address[128];
    pid_t pid = service_spawn("server", "", address, sizeof address);

    (void)state;
    assert_int_equal(rpc_channel_new(address, &c), 0);
    assert_int_equal(rpc_call(c, UNARY_ECHO, "x", 1, CALL_MS, &m, &e), 0);
    rpc_msg_release(&m);
    service_kill(pid);
    assert_int_equal(rpc_call(c, UNARY_ECHO, "x", 1, CALL_MS, &m, &e),
                     HEDGE_EUNAVAILABLE);
    rpc_channel_free(c);
}

/* --- servers ----------------------------------------------------------------
 */

static void test_port_in_use(void **state)
{
    struct service s, other;
    struct hedge_error e;

    (void)state;
    service_start(&s, NULL, 0);
    assert_int_equal(service_try(&other, s.address, 0, &e), HEDGE_EBUSY);
    assert_non_null(strstr(e.text, s.address));
    assert_null(other.server);
    assert_int_not_equal(service_try(&other, "ipv4:192.0.2.1:80", 0, &e), 0);
    assert_non_null(strstr(e.text, "192.0.2.1:80"));
    assert_echo(&s);
    service_stop(&s, 0);
}

static void test_socket_files(void **state)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    char path[100], address[128], long_path[256];
    struct service s, other;
    struct hedge_error e;
    int fd;

    (void)state;
    scratch(path, sizeof path, "files");
    (void)snprintf(address, sizeof address, "unix:%s", path);
    /* One that nobody listens on any more is replaced. */
    memcpy(sun.sun_path, path, sizeof path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&sun, sizeof sun), 0);
    close(fd);
    service_start(&s, address, 0);
    assert_echo(&s);
    /* One that is in use is not. */
    assert_int_equal(service_try(&other, address, 0, &e), HEDGE_EBUSY);
    assert_non_null(strstr(e.text, path));
    assert_echo(&s);
    service_stop(&s, 0);
    /* Nor is a file that is something else. */
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(service_try(&other, address, 0, &e), HEDGE_EEXISTS);
    assert_int_equal(unlink(path), 0);
    memset(long_path, 'p', sizeof long_path);
    memcpy(long_path, "unix:/", 6);
    long_path[sizeof long_path - 1] = '\0';
    assert_int_equal(service_try(&other, long_path, 0, &e), HEDGE_EINVAL);
}

struct sleeper {
    struct service *s;
    int rv;
};

static void *sleeper_main(void *arg)
{
    struct sleeper *sl = arg;
    struct hedge_error e;
    struct rpc_channel *c;
    struct rpc_msg m;

    (void)rpc_channel_new(sl->s->address, &c);
    sl->rv = rpc_call(c, UNARY_SLEEP, "400", 3, CALL_MS, &m, &e);
    rpc_msg_release(&m);
    rpc_channel_free(c);
    return NULL;
}

static void stop_while_sleeping(uint64_t grace_ms, int want)
{
    struct service s;
    struct sleeper sl = {.s = &s};
    pthread_t t;

    service_start(&s, NULL, 0);
    assert_int_equal(pthread_create(&t, NULL, sleeper_main, &sl), 0);
    assert_true(service_await(&s.started, 1));
    service_stop(&s, grace_ms);
    assert_int_equal(atomic_load(&s.ended), 1);
    pthread_join(t, NULL);
    assert_int_equal(sl.rv, want);
}

static void test_stop_waits_for_handlers(void **state)
{
    (void)state;
    stop_while_sleeping(CALL_MS, 0);
    stop_while_sleeping(0, HEDGE_EUNAVAILABLE);
}

/* Whichever allocation fails, on whichever end: an error, and afterwards
 * everything works. */
static void test_no_memory(void **state)
{
    struct hedge_error e;
    struct service s;
    struct rpc_msg m;
    int rv = 1;

    (void)state;
    service_start(&s, NULL, 0);
    for (long n = 0; rv != 0; n++) {
        assert_true(n < 100);
        mem_fail_after(n);
        rv = call(&s, UNARY_INLINE, "x", CALL_MS, &m, &e);
        mem_fail_after(-1);
        rpc_msg_release(&m);
        assert_echo(&s);
    }
    service_stop(&s, 0);
    for (long n = 0;; n++) {
        struct service other;
        assert_true(n < 1000);
        mem_fail_after(n);
        rv = service_try(&other, "ipv4:127.0.0.1:0", 0, &e);
        mem_fail_after(-1);
        if (rv == 0) {
            service_stop(&other, 0);
            break;
        }
        assert_int_equal(rv, HEDGE_ENOMEM);
        rpc_server_free(other.server, 0);
    }
}

static void test_null_is_fine(void **state)
{
    struct rpc_msg m = {.impl = NULL};
    const unsigned char *p;

    (void)state;
    rpc_server_free(NULL, 0);
    rpc_channel_free(NULL);
    rpc_stream_free(NULL);
    rpc_msg_release(&m);
    assert_int_equal(rpc_msg_peek(&m, &p), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_two_addresses),
        cmocka_unit_test(test_unix),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_unknown_method),
        cmocka_unit_test(test_timeout),
        cmocka_unit_test(test_usable_time),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_many_callers),
        cmocka_unit_test(test_unreachable),
        cmocka_unit_test(test_peer_comes_back),
        cmocka_unit_test(test_peer_killed),
        cmocka_unit_test(test_port_in_use),
        cmocka_unit_test(test_socket_files),
        cmocka_unit_test(test_stop_waits_for_handlers),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_null_is_fine),
    };

    rpc_process_setup();
    service_roles(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
