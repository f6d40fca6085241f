/* A Get whose search finds nothing for long: it ends when nobody waits for it
 * any more, or when the node stops. The engine is the test's own. */
#include "cluster/node_internal.h"
#include "proto/log.pb-c.h"
#include "store/base/clock.h"
#include "store/base/mem.h"

#include "tests/lib/check.h"

#include <stdio.h>
#include <string.h>

#define PLENTY_MS 20000u
#define SHORT_MS 400u
#define GET "/hedge.v1.Log/Get"

static struct fake {
    atomic_uint scans;
    atomic_bool enough;   /* The next page is the last one. */
    atomic_uint answered; /* Calls whose handler has returned. */
    struct hedge_node *node;
    struct rpc_server *server;
    struct rpc_channel *channel;
} fake;

/* A page of nothing but hidden versions. */
static int fake_scan(void *ctx, struct engine_query *q, engine_entry_fn fn,
                     void *fn_ctx, bool *more, struct hedge_error *e)
{
    (void)ctx;
    (void)q;
    (void)fn;
    (void)fn_ctx;
    (void)e;
    atomic_fetch_add(&fake.scans, 1);
    *more = !fake.enough;
    return 0;
}

static const struct engine_ops ops = {.name = "fake", .scan = fake_scan};

static void get(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    serve_log_get(call, ctx, req, len);
    atomic_fetch_add(&fake.answered, 1);
}

static int setup(void **state)
{
    static const struct rpc_method methods[] = {{GET, get, NULL, 0}};
    const char *address = "ipv4:127.0.0.1:0";
    struct rpc_server_options o = {.addresses = &address,
                                   .n_addresses = 1,
                                   .methods = methods,
                                   .n_methods = 1};
    struct hedge_error e = {0};
    char target[64];

    (void)state;
    fake = (struct fake){.node = mem_calloc(1, sizeof(struct hedge_node))};
    fake.node->engine.ops = &ops;
    o.ctx = fake.node;
    assert_int_equal(rpc_init(), 0);
    assert_int_equal(rpc_server_new(&o, &fake.server, &e), 0);
    (void)snprintf(target, sizeof target, "ipv4:127.0.0.1:%u",
                   rpc_server_port(fake.server, 0));
    assert_int_equal(rpc_channel_new(target, &fake.channel), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fake.enough = true;
    rpc_channel_free(fake.channel);
    rpc_server_free(fake.server, 0);
    mem_free(fake.node);
    rpc_shutdown();
    return 0;
}

static int call(uint64_t timeout_ms, struct hedge_error *e)
{
    Hedge__V1__LogGetRequest m = HEDGE__V1__LOG_GET_REQUEST__INIT;
    void *reply = NULL;
    int rv;

    m.key.data = (unsigned char *)(uintptr_t) "k";
    m.key.len = 1;
    m.limit = HEDGE_GET_ALL;
    rv = pb_call(fake.channel, GET, &m.base, &hedge__v1__log_page__descriptor,
                 timeout_ms, &reply, e);
    pb_free(reply);
    return rv;
}

static bool await(atomic_uint *v, unsigned want)
{
    uint64_t until_ms = clock_mono_ms() + PLENTY_MS;

    while (*v < want && clock_mono_ms() < until_ms) {
        clock_sleep_ms(1);
    }
    return *v >= want;
}

static void test_search_to_the_end(void **state)
{
    struct hedge_error e = {0};

    (void)state;
    fake.enough = true;
    assert_int_equal(call(PLENTY_MS, &e), HEDGE_ENOTFOUND);
    assert_int_equal(fake.scans, 1);
}

/* The handler's thread is free again soon after the caller has given up. */
static void test_deadline(void **state)
{
    struct hedge_error e = {0};

    (void)state;
    assert_int_equal(call(SHORT_MS, &e), HEDGE_ETIMEDOUT);
    assert_true(fake.scans > 1);
    assert_true(await(&fake.answered, 1));
}

static void on_done(void *arg)
{
    atomic_store((atomic_uint *)arg, 1);
}

static void test_caller_goes(void **state)
{
    Hedge__V1__LogGetRequest m = HEDGE__V1__LOG_GET_REQUEST__INIT;
    struct hedge_error e = {0};
    struct rpc_pending *p;
    atomic_uint done = 0;
    struct rpc_msg reply;
    struct pb_buf buf;

    (void)state;
    m.key.data = (unsigned char *)(uintptr_t) "k";
    m.key.len = 1;
    m.limit = HEDGE_GET_ALL;
    assert_int_equal(pb_pack(&m.base, &buf), 0);
    assert_int_equal(rpc_call_start(fake.channel, GET, buf.data, buf.len,
                                    RPC_NO_TIMEOUT, on_done, &done, &p),
                     0);
    assert_true(await(&fake.scans, 2));
    assert_int_equal(fake.answered, 0);
    rpc_call_cancel(p);
    assert_true(await(&done, 1));
    assert_int_equal(rpc_call_finish(p, &reply, &e), HEDGE_ECANCELED);
    assert_true(await(&fake.answered, 1));
    mem_free(buf.data);
}

static void *stop(void *arg)
{
    (void)arg;
    assert_true(await(&fake.scans, 2));
    fake.node->closing = true;
    return NULL;
}

static void test_node_stops(void **state)
{
    struct hedge_error e = {0};
    pthread_t t;

    (void)state;
    assert_int_equal(pthread_create(&t, NULL, stop, NULL), 0);
    assert_int_equal(call(PLENTY_MS, &e), HEDGE_EUNAVAILABLE);
    assert_non_null(strstr(e.text, "the node stops"));
    pthread_join(t, NULL);
}

/* The same in this process, where nobody has a deadline. */
static void test_node_stops_here(void **state)
{
    struct hedge_entries *got;
    struct hedge_error e = {0};
    pthread_t t;

    (void)state;
    fake.node->o.message_limit = 1u << 20;
    assert_int_equal(pthread_create(&t, NULL, stop, NULL), 0);
    assert_int_equal(hedge_get(fake.node, "k", 1, HEDGE_GET_ALL, &got, &e),
                     HEDGE_ECLOSED);
    assert_null(got);
    pthread_join(t, NULL);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_search_to_the_end), T(test_deadline),        T(test_caller_goes),
        T(test_node_stops),        T(test_node_stops_here),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
