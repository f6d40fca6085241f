/* How fast a stream of rpc.h moves blocks, against a bare loop over gRPC's C
 * core with the same messages in the same run: median of interleaved runs, each
 * end in a process of its own.
 *
 *   rpc_stream [--tcp|--unix] [SIZE_KIB...] */
#include "bench/lib/bare_grpc.h"
#include "bench/lib/bench.h"
#include "cluster/rpc/rpc.h"
#include "store/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RUN_NS 1000000000u
#define METHOD "/bench/Sink"
#define LINE 64

static unsigned char block[RPC_MESSAGE_MAX];
static const char *dir;

/* --- ours -------------------------------------------------------------------
 */

static int sink(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct rpc_msg m;
    int rv;

    (void)ctx;
    while ((rv = rpc_stream_recv(s, RPC_NO_TIMEOUT, &m, e)) == 0) {
        rpc_msg_release(&m);
    }
    return rv;
}

static int ours_server(const char *address)
{
    struct rpc_method method = {METHOD, NULL, sink, 0};
    struct rpc_server_options o = {.addresses = &address,
                                   .n_addresses = 1,
                                   .methods = &method,
                                   .n_methods = 1};
    struct rpc_server *server;
    struct hedge_error e;

    if (rpc_server_new(&o, &server, &e) != 0) {
        (void)fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    printf("%u\n", rpc_server_port(server, 0));
    (void)fflush(stdout);
    bench_await_parent();
    rpc_server_free(server, 0);
    return 0;
}

static int ours_client(const char *address, size_t size)
{
    struct rpc_out out = {
        .head = "head", .head_len = 4, .body = block, .body_len = size};
    struct rpc_channel *c;
    struct rpc_stream *s;
    struct hedge_error e = {.code = 0};
    struct rpc_msg m;
    uint64_t bytes = 0, start;
    int rv = 0;

    if (rpc_channel_new(address, &c) != 0 ||
        rpc_stream_open(c, METHOD, RPC_NO_TIMEOUT, &s) != 0) {
        return 1;
    }
    start = clock_mono_ns();
    for (; rv == 0 && clock_mono_ns() - start < RUN_NS; bytes += size) {
        rv = rpc_stream_send(s, &out, RPC_NO_TIMEOUT);
    }
    rv = rv == 0 ? rpc_stream_close_send(s) : rv;
    rv = rv == 0 ? rpc_stream_recv(s, RPC_NO_TIMEOUT, &m, &e) : rv;
    if (rv != HEDGE_EEND) {
        (void)fprintf(stderr, "rpc_stream: %s: %s\n", hedge_errname(rv),
                      e.code == rv ? e.text : "");
        return 1;
    }
    printf("%f\n", bench_gb_per_s(bytes, clock_mono_ns() - start));
    rpc_stream_free(s);
    rpc_channel_free(c);
    return 0;
}

/* --- the limit --------------------------------------------------------------
 */

static void no_release(void *arg)
{
    (void)arg;
}

static int bare_client(const char *address, size_t size)
{
    struct bare_stream *s = bare_open(address, BARE_SINK);
    uint64_t bytes = 0, start = clock_mono_ns();

    for (; clock_mono_ns() - start < RUN_NS; bytes += size) {
        bare_send(s, block, size, no_release, NULL);
    }
    bare_close(s);
    printf("%f\n", bench_gb_per_s(bytes, clock_mono_ns() - start));
    return 0;
}

/* --- the runs ---------------------------------------------------------------
 */

static double run(const char *kind, bool use_unix, const char *size)
{
    char server_role[LINE], client_role[LINE], address[BENCH_ADDRESS_MAX];
    const char *far[] = {"/proc/self/exe", server_role, address, size, NULL};
    const char *near[] = {"/proc/self/exe", client_role, address, size, NULL};
    struct bench_child server, client;
    double result, port;

    (void)snprintf(server_role, sizeof server_role, "%s-server", kind);
    (void)snprintf(client_role, sizeof client_role, "%s-client", kind);
    (void)snprintf(address, sizeof address,
                   use_unix ? "unix:%.90s/%s" : "ipv4:127.0.0.1:0", dir, kind);
    bench_child_start(&server, far, NULL);
    port = bench_child_number(&server);
    if (!use_unix) {
        (void)snprintf(address, sizeof address, "ipv4:127.0.0.1:%.0f", port);
    }
    bench_child_start(&client, near, NULL);
    result = bench_child_number(&client);
    bench_child_end(&client);
    bench_child_end(&server);
    return result;
}

static void compare(size_t kib, bool use_unix)
{
    struct bench_case c = {.unit = "GB/s", .limit_is = "bare C-core stream"};
    char size[LINE];

    (void)snprintf(size, sizeof size, "%zu", kib << 10);
    (void)snprintf(c.name, sizeof c.name, "rpc_stream%s_%zu%s",
                   use_unix ? "_unix" : "", kib < 1024 ? kib : kib >> 10,
                   kib < 1024 ? "KiB" : "MiB");
    for (int i = 0; i < BENCH_RUNS; i++) {
        double ours = run("ours", use_unix, size);

        bench_add(&c, ours, run("bare", use_unix, size));
    }
    bench_print(&c);
}

static int child_main(char **argv)
{
    size_t size = (size_t)strtoull(argv[3], NULL, 10);
    const char *role = argv[1];

    if (strcmp(role, "bare-server") == 0) {
        return bare_serve(argv[2]);
    }
    bench_fill(block, sizeof block, 1);
    if (strcmp(role, "bare-client") == 0) {
        return bare_client(argv[2], size);
    }
    rpc_process_setup();
    (void)rpc_init();
    return strcmp(role, "ours-server") == 0 ? ours_server(argv[2])
                                            : ours_client(argv[2], size);
}

int main(int argc, char **argv)
{
    bool use_unix = argc > 1 && strcmp(argv[1], "--unix") == 0;
    int first = 1;

    bench_init(argv[0]);
    if (argc == 4 && strchr(argv[1], '-') != NULL && argv[1][0] != '-') {
        return child_main(argv);
    }
    dir = bench_dir(NULL);
    first += argc > 1 && argv[1][0] == '-';
    if (first >= argc) {
        compare(256, use_unix);
        compare(1024, use_unix);
        compare(4096, use_unix);
    }
    for (int i = first; i < argc; i++) {
        compare((size_t)strtoull(argv[i], NULL, 10), use_unix);
    }
    return 0;
}
