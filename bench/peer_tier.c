/* How fast blocks go to a peer's memory and come back, through the peer tier
 * and the block service, against a bare stream of gRPC's C core and a bare TCP
 * socket that move the same bytes in the same run: medians of interleaved runs.
 * The far end is a process of its own; everything goes over TCP on the
 * loopback.
 *
 *   peer_tier [--runs N] [--blocks N] */
#include "cluster/peer/peer_tier.h"
#include "cluster/peer/serve_peer.h"
#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/base/log.h"

#include <arpa/inet.h>
#include <assert.h>
#include <fcntl.h>
#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
/* It has a struct of this name, too. */
#define peer_info grpc_peer_info
#include <grpc/grpc_security.h>
#undef peer_info
#include <netinet/tcp.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK BLOCK_SIZE_DEFAULT
#define BUFFERS 16 /* Blocks with the tier at a time. */
#define RUNS_MAX 51
#define METHOD "/bench/Sink"
#define LINE 64
#define WARM_BLOCKS 256

extern char **environ;

static unsigned n_blocks = 1024;
static unsigned char *buffers[BUFFERS];

/* GB/s, for the parent. */
static void tell_rate(unsigned blocks, uint64_t since_ns)
{
    double ns = (double)(clock_mono_ns() - since_ns);

    printf("%f\n", (double)blocks * (double)BLOCK / ns);
    (void)fflush(stdout);
}

/* --- far ends ---------------------------------------------------------------
 */

static void tell_port(int port)
{
    printf("%d\n", port);
    (void)fflush(stdout);
}

static void wait_for_parent(void)
{
    char c;

    while (read(STDIN_FILENO, &c, 1) > 0) {
    }
}

static int on_put(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    return peer_service_put(ctx, s, e);
}

static int on_get(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    return peer_service_get(ctx, s, e);
}

static void on_drop(struct rpc_call *c, void *ctx, const void *request,
                    size_t len)
{
    peer_service_drop(ctx, c, request, len);
}

static void on_renew(struct rpc_call *c, void *ctx, const void *request,
                     size_t len)
{
    peer_service_renew(ctx, c, request, len);
}

/* A node with memory for the blocks of a run, faulted in. */
static int far_node(int port)
{
    static const struct rpc_method methods[] = {
        {"/hedge.v1.Peer/Put", NULL, on_put, 0},
        {"/hedge.v1.Peer/Get", NULL, on_get, 0},
        {"/hedge.v1.Peer/Drop", on_drop, NULL, 0},
        {"/hedge.v1.Peer/Renew", on_renew, NULL, 0},
    };
    const char *address = "ipv4:127.0.0.1:0";
    char dir[] = "/tmp/hedge-bench-XXXXXX", cmd[64];
    uint64_t mem = (n_blocks + WARM_BLOCKS) * (uint64_t)BLOCK / 7 * 8;
    struct sos_options so = {.node = "far",
                             .mem_limit = mem,
                             .block_size = BLOCK,
                             .lend_mem = SOS_UNLIMITED};
    struct peer_service_options po = {.block_lease_ms = 60000};
    struct rpc_server_options ro = {.addresses = &address,
                                    .n_addresses = 1,
                                    .methods = methods,
                                    .n_methods = 4};
    struct peer_service *service;
    struct rpc_server *server;
    struct hedge_error e = {.code = 0};
    int rv;

    (void)port;
    so.data_dir = mkdtemp(dir);
    rv = sos_new(&so, &po.sos, &e);
    if (rv == 0) {
        arena_warm(sos_arena(po.sos), mem);
        rv = peer_service_new(&po, &service);
        ro.ctx = service;
    }
    if (rv != 0 || rpc_server_new(&ro, &server, &e) != 0) {
        (void)fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    tell_port((int)rpc_server_port(server, 0));
    wait_for_parent();
    rpc_server_free(server, 0);
    peer_service_free(service);
    sos_free(po.sos);
    (void)snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    return system(cmd);
}

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

static int far_grpc(int port)
{
    grpc_completion_queue *cq;
    grpc_server *server;
    grpc_metadata_array md;
    grpc_call_details details;
    grpc_byte_buffer *message;
    grpc_call *call;
    grpc_op op[3];
    int gone;

    (void)port;
    grpc_init();
    server = grpc_server_create(bare_args(), NULL);
    cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(server, cq, NULL);
    tell_port(grpc_server_add_http2_port(
        server, "127.0.0.1:0", grpc_insecure_server_credentials_create()));
    grpc_server_start(server);
    grpc_metadata_array_init(&md);
    grpc_call_details_init(&details);
    (void)grpc_server_request_call(server, &call, &details, &md, cq, cq, &md);
    wait_tag(cq, &md);
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
    op[2].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op[2].data.recv_close_on_server.cancelled = &gone;
    start(call, op, 3, op);
    wait_tag(cq, op);
    wait_for_parent();
    return 0;
}

/* Reads until the end, answers with one byte. */
static int far_tcp(int port)
{
    struct sockaddr_in sin = {.sin_family = AF_INET,
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd;
    socklen_t len = sizeof sin;
    char *buffer = malloc(BLOCK);

    (void)port;
    if (bind(listener, (struct sockaddr *)&sin, sizeof sin) != 0 ||
        listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&sin, &len) != 0) {
        return 1;
    }
    tell_port(ntohs(sin.sin_port));
    fd = accept(listener, NULL, NULL);
    while (read(fd, buffer, BLOCK) > 0) {
    }
    (void)!write(fd, "", 1);
    wait_for_parent();
    return 0;
}

/* --- their other ends: GB/s -------------------------------------------------
 */

static void no_release(void *arg)
{
    (void)arg;
}

static void bare_send(grpc_completion_queue *cq, grpc_call *call, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        grpc_slice part = grpc_slice_new_with_user_data(
            buffers[i % BUFFERS], BLOCK, no_release, NULL);
        grpc_byte_buffer *message = grpc_raw_byte_buffer_create(&part, 1);
        grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};

        op.data.send_message.send_message = message;
        start(call, &op, 1, &op);
        wait_tag(cq, &op);
        grpc_byte_buffer_destroy(message);
        grpc_slice_unref(part);
    }
}

static int near_grpc(int port)
{
    grpc_completion_queue *cq;
    char address[LINE];
    grpc_channel_credentials *creds;
    grpc_metadata_array headers, trailing;
    grpc_channel *channel;
    grpc_status_code status;
    grpc_slice details;
    grpc_call *call;
    grpc_op op[3];
    uint64_t begin;

    grpc_init();
    cq = grpc_completion_queue_create_for_next(NULL);
    creds = grpc_insecure_credentials_create();
    (void)snprintf(address, sizeof address, "ipv4:127.0.0.1:%d", port);
    channel = grpc_channel_create(address, creds, bare_args());
    call = grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS, cq,
                                    grpc_slice_from_static_string(METHOD), NULL,
                                    gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    memset(op, 0, sizeof op);
    op[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    start(call, op, 1, op);
    wait_tag(cq, op);
    bare_send(cq, call, WARM_BLOCKS);
    begin = clock_mono_ns();
    bare_send(cq, call, n_blocks);
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
    tell_rate(n_blocks, begin);
    return status == GRPC_STATUS_OK ? 0 : 1;
}

static void tcp_send(int fd, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const unsigned char *p = buffers[i % BUFFERS];
        size_t left = BLOCK;

        while (left > 0) {
            ssize_t sent = write(fd, p, left);

            assert(sent > 0);
            p += sent;
            left -= (size_t)sent;
        }
    }
}

static int near_tcp(int port)
{
    struct sockaddr_in sin = {.sin_family = AF_INET,
                              .sin_port = htons((uint16_t)port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    uint64_t begin;
    char c;

    if (connect(fd, (struct sockaddr *)&sin, sizeof sin) != 0) {
        return 1;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    tcp_send(fd, WARM_BLOCKS);
    begin = clock_mono_ns();
    tcp_send(fd, n_blocks);
    (void)shutdown(fd, SHUT_WR);
    (void)!read(fd, &c, 1);
    tell_rate(n_blocks, begin);
    close(fd);
    return 0;
}

/* --- ours -------------------------------------------------------------------
 */

/* Keeps BUFFERS requests going until `total` have ended. */
struct load {
    struct tier *tier;
    struct tier_req reqs[BUFFERS];
    struct tier_place *places; /* By sequence. */
    bool is_get;
    atomic_uint next, failed;
    unsigned total;
    pthread_mutex_t lock;
    pthread_cond_t all_ended;
    unsigned left;
};

static const struct tier_store store = {.name = "bench"};

static void submit(struct load *l, struct tier_req *req, unsigned sequence)
{
    struct block_header h = {.id = {1, sequence, 0}, .records = 1};

    req->id = h.id;
    if (l->is_get) {
        req->place = l->places[sequence];
        (void)tier_get(l->tier, req);
        return;
    }
    (void)block_header_decode(req->data, BLOCK, BLOCK, &h, NULL);
    h.id = req->id;
    block_header_encode(&h, req->data);
    (void)tier_put(l->tier, req);
}

static void on_end(struct tier_req *req)
{
    struct load *l = req->ctx;
    unsigned next;

    if (req->status != 0) {
        if (atomic_fetch_add(&l->failed, 1) == 0) {
            (void)fprintf(stderr, "%s\n", req->error.text);
        }
    } else if (!l->is_get) {
        l->places[req->id.sequence] = req->place;
    }
    next = atomic_fetch_add(&l->next, 1);
    if (next < l->total) {
        submit(l, req, next);
    }
    pthread_mutex_lock(&l->lock);
    if (--l->left == 0) {
        pthread_cond_signal(&l->all_ended);
    }
    pthread_mutex_unlock(&l->lock);
}

/* Blocks `from` to `to`, there or back. */
static void run_load(struct tier *t, struct tier_place *places, bool is_get,
                     unsigned from, unsigned to)
{
    static struct load l;

    memset(&l, 0, sizeof l);
    l.tier = t;
    l.places = places;
    l.is_get = is_get;
    l.total = to;
    l.left = to - from;
    pthread_mutex_init(&l.lock, NULL);
    pthread_cond_init(&l.all_ended, NULL);
    atomic_store(&l.next, from + BUFFERS);
    for (unsigned i = 0; i < BUFFERS; i++) {
        l.reqs[i].data = buffers[i];
        l.reqs[i].len = BLOCK;
        l.reqs[i].store = &store;
        l.reqs[i].cb = on_end;
        l.reqs[i].ctx = &l;
        submit(&l, &l.reqs[i], from + i);
    }
    pthread_mutex_lock(&l.lock);
    while (l.left > 0) {
        pthread_cond_wait(&l.all_ended, &l.lock);
    }
    pthread_mutex_unlock(&l.lock);
    if (atomic_load(&l.failed) > 0) {
        exit(1);
    }
}

static int near_node(int port)
{
    struct peer_tier_options o = {.self_id = "near",
                                  .incarnation = 1,
                                  .block_size = BLOCK,
                                  .block_lease_ms = 60000};
    unsigned n = WARM_BLOCKS + n_blocks;
    struct tier_place *places = calloc(n, sizeof *places);
    char target[LINE];
    struct peer_info info = {.id = "far",
                             .incarnation = 1,
                             .target = target,
                             .mem_free = (uint64_t)1 << 40};
    struct tier *t;

    (void)snprintf(target, sizeof target, "ipv4:127.0.0.1:%d", port);
    if (peer_tier_new(&o, &t) != 0) {
        return 1;
    }
    peer_tier_update(t, &info, 1);
    for (int is_get = 0; is_get < 2; is_get++) {
        uint64_t begin;

        run_load(t, places, is_get, 0, WARM_BLOCKS);
        begin = clock_mono_ns();
        run_load(t, places, is_get, WARM_BLOCKS, n);
        tell_rate(n_blocks, begin);
    }
    tier_free(t);
    free(places);
    return 0;
}

/* --- the runs ---------------------------------------------------------------
 */

struct child {
    pid_t pid;
    int in, out;
};

static struct child child_start(const char *role, int port)
{
    char self[] = "/proc/self/exe", name[LINE], blocks[LINE], where[LINE];
    char *argv[] = {self, name, blocks, where, NULL};
    posix_spawn_file_actions_t fa;
    int in[2], out[2], rc;
    struct child c;

    (void)snprintf(name, sizeof name, "%s", role);
    (void)snprintf(blocks, sizeof blocks, "%u", n_blocks);
    (void)snprintf(where, sizeof where, "%d", port);
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

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof v[0], by_value);
    return v[n / 2];
}

static void report(const char *name, double ours, double limit,
                   const char *limit_is)
{
    printf("{\"case\":\"%s\",\"ours\":%.2f,\"limit\":%.2f,\"ratio\":%.2f,"
           "\"unit\":\"GB/s\",\"limit_is\":\"%s\"}\n",
           name, ours, limit, ours / limit, limit_is);
    (void)fflush(stdout);
}

/* Both ends in processes of their own: of core's threads in one process, all
 * that poll get in each other's way. */
static void run_pair(const char *far, const char *near, double *first,
                     double *second)
{
    struct child f = child_start(far, 0);
    struct child n = child_start(near, (int)child_number(&f));

    *first = child_number(&n);
    if (second != NULL) {
        *second = child_number(&n);
    }
    child_end(&n);
    child_end(&f);
}

static void run_all(int runs)
{
    double write[RUNS_MAX], back[RUNS_MAX], grpc[RUNS_MAX], tcp[RUNS_MAX];
    double w, b, g, t;

    for (int i = 0; i < runs; i++) {
        run_pair("far-node", "near-node", &write[i], &back[i]);
        run_pair("far-grpc", "near-grpc", &grpc[i], NULL);
        run_pair("far-tcp", "near-tcp", &tcp[i], NULL);
    }
    w = median(write, runs);
    b = median(back, runs);
    g = median(grpc, runs);
    t = median(tcp, runs);
    report("peer_write_grpc_1MiB", w, g, "bare C-core stream");
    report("peer_write_tcp_1MiB", w, t, "bare TCP socket");
    report("peer_read_grpc_1MiB", b, g, "bare C-core stream");
    report("peer_read_tcp_1MiB", b, t, "bare TCP socket");
}

static void make_blocks(void)
{
    struct block_header h = {.records = 1};

    h.raw_len = h.stored_len = BLOCK - BLOCK_HEADER_SIZE;
    for (unsigned i = 0; i < BUFFERS; i++) {
        buffers[i] = aligned_alloc(4096, BLOCK);
        assert(buffers[i] != NULL);
        memset(buffers[i], (int)('a' + i), BLOCK);
        h.raw_sum = h.stored_sum =
            hash64(buffers[i] + BLOCK_HEADER_SIZE, h.raw_len);
        block_header_encode(&h, buffers[i]);
    }
}

static int usage(void)
{
    (void)fprintf(stderr, "usage: peer_tier [--runs N] [--blocks N]\n");
    return 2;
}

static int child_main(char **argv)
{
    static const struct {
        const char *role;
        int (*run)(int port);
    } roles[] = {
        {"far-node", far_node}, {"near-node", near_node},
        {"far-grpc", far_grpc}, {"near-grpc", near_grpc},
        {"far-tcp", far_tcp},   {"near-tcp", near_tcp},
    };

    n_blocks = (unsigned)atoi(argv[2]);
    make_blocks();
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        if (strcmp(argv[1], roles[i].role) == 0) {
            return roles[i].run(atoi(argv[3]));
        }
    }
    return usage();
}

int main(int argc, char **argv)
{
    int runs = 5;

    rpc_process_setup();
    log_set_level(LOG_WARN);
    if (argc == 4 && argv[1][0] != '-') {
        return child_main(argv);
    }
    for (int i = 1; i < argc; i += 2) {
        int value = i + 1 < argc ? atoi(argv[i + 1]) : 0;

        if (value > 0 && strcmp(argv[i], "--runs") == 0 && value <= RUNS_MAX) {
            runs = value;
        } else if (value > 0 && strcmp(argv[i], "--blocks") == 0) {
            n_blocks = (unsigned)value;
        } else {
            return usage();
        }
    }
    run_all(runs);
    return 0;
}
