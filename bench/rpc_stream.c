/* How fast a stream of rpc.h moves blocks, against a bare loop over gRPC's C
 * core with the same messages in the same run: median of interleaved runs, each
 * end in a process of its own.
 *
 *   rpc_stream [--tcp|--unix] [SIZE_KIB...] */
#include "cluster/rpc/rpc.h"
#include "store/base/clock.h"

#include <assert.h>
#include <fcntl.h>
#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUNS 5
#define RUN_NS 1000000000u
#define METHOD "/bench/Sink"
#define LINE 64

extern char **environ;

static unsigned char block[RPC_MESSAGE_MAX];

static double gb_per_s(uint64_t bytes, uint64_t ns)
{
    return (double)bytes / (double)ns;
}

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

static void wait_for_parent(void)
{
    char c;

    while (read(STDIN_FILENO, &c, 1) > 0) {
    }
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
    wait_for_parent();
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
    printf("%f\n", gb_per_s(bytes, clock_mono_ns() - start));
    rpc_stream_free(s);
    rpc_channel_free(c);
    return 0;
}

/* --- the limit: one queue, one thread, nothing else -------------------------
 */

static void wait_tag(grpc_completion_queue *cq, void *tag)
{
    grpc_event ev = grpc_completion_queue_next(
        cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);

    assert(ev.type == GRPC_OP_COMPLETE && ev.tag == tag);
}

static void start(grpc_call *call, const grpc_op *ops, size_t n, void *tag)
{
    grpc_call_error rc = grpc_call_start_batch(call, ops, n, tag, NULL);

    assert(rc == GRPC_CALL_OK);
}

static grpc_channel_args *bare_args(void)
{
    static grpc_arg arg = {.type = GRPC_ARG_INTEGER,
                           .key = GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
                           .value.integer = (int)RPC_MESSAGE_MAX};
    static grpc_channel_args args = {1, &arg};

    return &args;
}

static void bare_sink(grpc_completion_queue *cq, grpc_call *call)
{
    grpc_byte_buffer *message;
    grpc_op op[3];
    int gone;

    for (;;) {
        memset(op, 0, sizeof op);
        op[0].op = GRPC_OP_RECV_MESSAGE;
        op[0].data.recv_message.recv_message = &message;
        start(call, op, 1, op);
        wait_tag(cq, op);
        if (message == NULL) {
            break;
        }
        grpc_byte_buffer_destroy(message);
    }
    memset(op, 0, sizeof op);
    op[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    op[1].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op[1].data.send_status_from_server.status = GRPC_STATUS_OK;
    op[2].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op[2].data.recv_close_on_server.cancelled = &gone;
    start(call, op, 3, op);
    wait_tag(cq, op);
}

static int bare_server(const char *address)
{
    grpc_completion_queue *cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server *server = grpc_server_create(bare_args(), NULL);
    grpc_metadata_array md;
    grpc_call_details details;
    grpc_call *call;
    int port;

    grpc_server_register_completion_queue(server, cq, NULL);
    port = grpc_server_add_http2_port(
        server, strncmp(address, "ipv4:", 5) == 0 ? address + 5 : address,
        grpc_insecure_server_credentials_create());
    grpc_server_start(server);
    printf("%d\n", port);
    (void)fflush(stdout);
    grpc_metadata_array_init(&md);
    grpc_call_details_init(&details);
    (void)grpc_server_request_call(server, &call, &details, &md, cq, cq, &md);
    wait_tag(cq, &md);
    bare_sink(cq, call);
    wait_for_parent();
    return 0;
}

static void no_release(void *arg)
{
    (void)arg;
}

static uint64_t bare_send(grpc_completion_queue *cq, grpc_call *call,
                          size_t size, uint64_t begin)
{
    uint64_t bytes = 0;

    for (; clock_mono_ns() - begin < RUN_NS; bytes += size) {
        grpc_slice part =
            grpc_slice_new_with_user_data(block, size, no_release, block);
        grpc_byte_buffer *message = grpc_raw_byte_buffer_create(&part, 1);
        grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
        op.data.send_message.send_message = message;
        start(call, &op, 1, &op);
        wait_tag(cq, &op);
        grpc_byte_buffer_destroy(message);
        grpc_slice_unref(part);
    }
    return bytes;
}

static int bare_client(const char *address, size_t size)
{
    grpc_completion_queue *cq = grpc_completion_queue_create_for_next(NULL);
    grpc_channel *channel = grpc_channel_create(
        address, grpc_insecure_credentials_create(), bare_args());
    grpc_call *call =
        grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS, cq,
                                 grpc_slice_from_static_string(METHOD), NULL,
                                 gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    uint64_t bytes, begin = clock_mono_ns();
    grpc_metadata_array headers, trailing;
    grpc_status_code status;
    grpc_slice details;
    grpc_op op[3];

    memset(op, 0, sizeof op);
    op[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    start(call, op, 1, op);
    wait_tag(cq, op);
    bytes = bare_send(cq, call, size, begin);
    memset(op, 0, sizeof op);
    grpc_metadata_array_init(&headers);
    grpc_metadata_array_init(&trailing);
    op[0].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    op[1].op = GRPC_OP_RECV_INITIAL_METADATA;
    op[1].data.recv_initial_metadata.recv_initial_metadata = &headers;
    op[2].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    op[2].data.recv_status_on_client.trailing_metadata = &trailing;
    op[2].data.recv_status_on_client.status = &status;
    op[2].data.recv_status_on_client.status_details = &details;
    start(call, op, 3, op);
    wait_tag(cq, op);
    assert(status == GRPC_STATUS_OK);
    printf("%f\n", gb_per_s(bytes, clock_mono_ns() - begin));
    return 0;
}

/* --- the runs ---------------------------------------------------------------
 */

struct child {
    pid_t pid;
    int in, out;
};

static struct child child_start(const char *role, const char *address,
                                const char *size)
{
    char self[] = "/proc/self/exe", name[LINE], where[LINE * 2], bytes[LINE];
    char *argv[] = {name, name, where, bytes, NULL};
    posix_spawn_file_actions_t fa;
    struct child c;
    int in[2], out[2], rc;

    (void)snprintf(name, sizeof name, "%s", role);
    (void)snprintf(where, sizeof where, "%s", address);
    (void)snprintf(bytes, sizeof bytes, "%s", size);
    rc = pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC);
    assert(rc == 0);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&fa, out[1], STDOUT_FILENO);
    rc = posix_spawn(&c.pid, self, &fa, NULL, argv, environ);
    assert(rc == 0);
    posix_spawn_file_actions_destroy(&fa);
    close(in[0]);
    close(out[1]);
    c.in = in[1];
    c.out = out[0];
    return c;
}

static double child_number(const struct child *c)
{
    char line[LINE];
    size_t n = 0;

    while (n + 1 < sizeof line && read(c->out, line + n, 1) == 1 &&
           line[n] != '\n') {
        n++;
    }
    line[n] = '\0';
    return strtod(line, NULL);
}

static void child_end(const struct child *c)
{
    int status;

    close(c->in);
    close(c->out);
    (void)waitpid(c->pid, &status, 0);
}

static double run(const char *kind, bool use_unix, const char *size)
{
    char role[LINE], address[LINE];
    struct child server, client;
    double result, port;

    (void)snprintf(address, sizeof address,
                   use_unix ? "unix:/tmp/hedge-bench-%d" : "ipv4:127.0.0.1:0",
                   (int)getpid());
    (void)snprintf(role, sizeof role, "%s-server", kind);
    server = child_start(role, address, size);
    port = child_number(&server);
    if (!use_unix) {
        (void)snprintf(address, sizeof address, "ipv4:127.0.0.1:%.0f", port);
    }
    (void)snprintf(role, sizeof role, "%s-client", kind);
    client = child_start(role, address, size);
    result = child_number(&client);
    child_end(&client);
    child_end(&server);
    return result;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void compare(size_t kib, bool use_unix)
{
    double ours[RUNS], limit[RUNS];
    char size[LINE], name[LINE];

    (void)snprintf(size, sizeof size, "%zu", kib << 10);
    (void)snprintf(name, sizeof name, "%zu%s", kib < 1024 ? kib : kib >> 10,
                   kib < 1024 ? "KiB" : "MiB");
    for (int i = 0; i < RUNS; i++) {
        ours[i] = run("ours", use_unix, size);
        limit[i] = run("bare", use_unix, size);
    }
    qsort(ours, RUNS, sizeof ours[0], by_value);
    qsort(limit, RUNS, sizeof limit[0], by_value);
    printf("{\"case\":\"rpc_stream%s_%s\",\"ours\":%.2f,\"limit\":%.2f,"
           "\"ratio\":%.2f,\"unit\":\"GB/s\","
           "\"limit_is\":\"bare C-core stream\"}\n",
           use_unix ? "_unix" : "", name, ours[RUNS / 2], limit[RUNS / 2],
           ours[RUNS / 2] / limit[RUNS / 2]);
    (void)fflush(stdout);
}

static int child_main(char **argv)
{
    size_t size = (size_t)strtoull(argv[3], NULL, 10);
    const char *role = argv[1];

    rpc_process_setup();
    (void)rpc_init();
    memset(block, 'x', sizeof block);
    return strcmp(role, "ours-server") == 0   ? ours_server(argv[2])
           : strcmp(role, "ours-client") == 0 ? ours_client(argv[2], size)
           : strcmp(role, "bare-server") == 0 ? bare_server(argv[2])
                                              : bare_client(argv[2], size);
}

int main(int argc, char **argv)
{
    bool use_unix = argc > 1 && strcmp(argv[1], "--unix") == 0;
    int first = 1;

    if (argc == 4 && strchr(argv[1], '-') != NULL && argv[1][0] != '-') {
        return child_main(argv);
    }
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
