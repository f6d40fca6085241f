/* The log over gRPC: reading the latest version with 64 calls in flight against
 * a bare C-core server that answers as many bytes; durable puts with 256 in
 * flight against Redis (appendfsync always, 256 connections) and a single etcd,
 * where these are installed. Servers are processes of their own, all have the
 * same disk, and the clients are of the same make. Medians of interleaved runs.
 *
 *   log_grpc [--runs N] [--dir DIR] [get|redis|etcd]... */
#include "bench/lib/bare_load.h"
#include "bench/lib/bench.h"
#include "cluster/hedge.h"
#include "store/base/clock.h"
#include "store/base/units.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define RUN_NS 700000000u
#define GET_IN_FLIGHT 64
#define PUT_IN_FLIGHT 256
#define VALUE 128
#define KEYS 10000u
#define LINE 700
#define KEY_SIZE 40
#define TIMEOUT_MS 60000

static unsigned runs = BENCH_RUNS;
static const char *dir;
static unsigned port;
static char value[VALUE];
static uint64_t round_number;
static struct bench_child node;
static char node_address[BENCH_ADDRESS_MAX];

/* --- the node, a process of its own -----------------------------------------
 */

static void must(int rv, const struct hedge_error *e)
{
    if (rv != 0) {
        bench_die("%s", e->text[0] != '\0' ? e->text : hedge_strerror(rv));
    }
}

static void fill(struct hedge_node *n)
{
    static struct hedge_put puts[1000];
    static char keys[1000][KEY_SIZE];
    struct hedge_error e;

    for (unsigned at = 0; at < KEYS; at += 1000) {
        for (unsigned i = 0; i < 1000; i++) {
            puts[i] =
                (struct hedge_put){.key = keys[i],
                                   .key_len = (size_t)snprintf(
                                       keys[i], KEY_SIZE, "get/%06u", at + i),
                                   .value = value,
                                   .value_len = VALUE};
        }
        must(hedge_put_batch(n, puts, 1000, TIMEOUT_MS, &e), &e);
    }
}

/* node DIR PORT: says "1" when it leads and has its versions. */
static int node_main(char **argv)
{
    char listen[64], engine[LINE], data[LINE];
    struct hedge_options o;
    struct hedge_leader l;
    struct hedge_node *n;
    struct hedge_error e;

    hedge_process_setup();
    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%s", argv[3]);
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", argv[2]);
    (void)snprintf(data, sizeof data, "%s/data", argv[2]);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = data;
    o.mem_limit = (uint64_t)32 << 20;
    o.disk_limit = 0;
    must(hedge_node_start(&o, &n, &e), &e);
    while (hedge_leader(n, &l) != 0) {
        clock_sleep_ms(10);
    }
    bench_fill(value, sizeof value, 1);
    fill(n);
    printf("1\n");
    (void)fflush(stdout);
    bench_await_parent();
    hedge_node_stop(n);
    return 0;
}

static void start_node(void)
{
    char text[16];
    const char *argv[] = {"/proc/self/exe", "node", dir, text, NULL};

    (void)snprintf(text, sizeof text, "%u", port);
    (void)snprintf(node_address, sizeof node_address, "ipv4:127.0.0.1:%u",
                   port + 1);
    bench_child_start(&node, argv, NULL);
    (void)bench_child_number(&node);
}

/* --- requests ---------------------------------------------------------------
 */

/* protobuf by hand: field numbers below 16, lengths below 2^14. */
static size_t put_field(unsigned char *at, unsigned field, const void *data,
                        size_t len)
{
    size_t n = 0;

    at[n++] = (unsigned char)(field << 3 | 2);
    if (len >= 128) {
        at[n++] = (unsigned char)(len & 127) | 128;
        at[n++] = (unsigned char)(len >> 7);
    } else {
        at[n++] = (unsigned char)len;
    }
    memcpy(at + n, data, len);
    return n + len;
}

static size_t get_request(void *ctx, uint64_t n, void *out, size_t cap)
{
    char key[KEY_SIZE];
    int len =
        snprintf(key, sizeof key, "get/%06u", (unsigned)(n * 7919 % KEYS));

    (void)ctx;
    (void)cap;
    return put_field(out, 1, key, (size_t)len);
}

static size_t key_of(uint64_t n, char out[KEY_SIZE])
{
    return (size_t)snprintf(out, KEY_SIZE, "bench/%04llu/%03llu/%06llu",
                            (unsigned long long)round_number,
                            (unsigned long long)(n % PUT_IN_FLIGHT),
                            (unsigned long long)(n / PUT_IN_FLIGHT));
}

/* `ctx`: how many puts a message has. */
static size_t put_request(void *ctx, uint64_t n, void *out, size_t cap)
{
    const unsigned *puts = ctx;
    unsigned char one[512], *at = out;
    char key[KEY_SIZE];
    size_t used = 0;

    for (unsigned i = 0; i < *puts; i++) {
        size_t len = put_field(one, 1, key, key_of(n * *puts + i, key));

        len += put_field(one + len, 2, value, VALUE);
        if (used + len + 4 > cap) {
            bench_die("a request is too long");
        }
        used += put_field(at + used, 1, one, len);
    }
    return used;
}

static size_t etcd_request(void *ctx, uint64_t n, void *out, size_t cap)
{
    char key[KEY_SIZE];
    unsigned char *at = out;
    size_t len = put_field(at, 1, key, key_of(n, key));

    (void)ctx;
    (void)cap;
    return len + put_field(at + len, 2, value, VALUE);
}

/* --- get --------------------------------------------------------------------
 */

static size_t reply_len(struct bare_load *l)
{
    /* Revision, time, token, key, value, leader: what the limit answers. */
    (void)l;
    return 185;
}

static void bench_get(void)
{
    static struct bench_case c = {.name = "log_get_grpc_64",
                                  .unit = "calls/s",
                                  .limit_is = "bare C-core unary calls with "
                                              "replies of the same size"};
    char address[BENCH_ADDRESS_MAX] = "ipv4:127.0.0.1:0", text[16];
    const char *argv[] = {"/proc/self/exe", "bare", address, text, NULL};
    struct bench_child server;
    struct bare_load *ours = bare_load_open(node_address), *bare;
    double bare_port;

    (void)snprintf(text, sizeof text, "%zu", reply_len(ours));
    bench_child_start(&server, argv, NULL);
    bare_port = bench_child_number(&server);
    (void)snprintf(address, sizeof address, "ipv4:127.0.0.1:%.0f", bare_port);
    bare = bare_load_open(address);
    for (unsigned i = 0; i <= runs; i++) {
        double limit = bare_load_run(bare, BARE_LOAD_ECHO, GET_IN_FLIGHT,
                                     RUN_NS, get_request, NULL, 1);
        double rate = bare_load_run(ours, "/hedge.v1.Log/Get", GET_IN_FLIGHT,
                                    RUN_NS, get_request, NULL, VALUE);

        if (i > 0) { /* The first one warms both. */
            bench_add(&c, rate, limit);
        }
    }
    bench_print(&c);
    bare_load_close(ours);
    bare_load_close(bare);
    bench_child_end(&server);
}

/* --- Redis ------------------------------------------------------------------
 */

/* "redis-server" in the PATH; false: it is not there. */
static bool find_program(const char *name, char out[LINE])
{
    const char *path = getenv("PATH");

    while (path != NULL && *path != '\0') {
        size_t len = strcspn(path, ":");

        (void)snprintf(out, LINE, "%.*s/%s", (int)len, path, name);
        if (access(out, X_OK) == 0) {
            return true;
        }
        path += len + (path[len] == ':');
    }
    (void)fprintf(stderr, "log_grpc: %s is not installed; skipped\n", name);
    return false;
}

static int dial(unsigned to)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)to)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0) {
        bench_die("no socket");
    }
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        close(fd);
        return HEDGE_EUNAVAILABLE;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static int dial_patiently(unsigned to)
{
    for (unsigned i = 0; i < 1000; i++) {
        int fd = dial(to);

        if (fd >= 0) {
            return fd;
        }
        clock_sleep_ms(10);
    }
    bench_die("nobody answers on port %u", to);
}

static void redis_send(int fd, uint64_t n)
{
    char text[512], key[KEY_SIZE];
    size_t key_len = key_of(n, key);
    int head =
        snprintf(text, sizeof text, "*3\r\n$3\r\nSET\r\n$%zu\r\n%s\r\n$%d\r\n",
                 key_len, key, VALUE);
    struct iovec parts[] = {
        {text, (size_t)head}, {value, VALUE}, {(char[]){'\r', '\n'}, 2}};

    if (writev(fd, parts, 3) != head + VALUE + 2) {
        bench_die("Redis: sending failed");
    }
}

static double redis_run(int epoll, const int *fds)
{
    uint64_t from = clock_mono_ns(), n = 0, done = 0;
    unsigned live = PUT_IN_FLIGHT;

    for (unsigned i = 0; i < PUT_IN_FLIGHT; i++) {
        redis_send(fds[i], n++);
    }
    while (live > 0) {
        struct epoll_event ev[64];
        int got = epoll_wait(epoll, ev, 64, -1);

        for (int i = 0; i < got; i++) {
            char text[64];

            if (recv(ev[i].data.fd, text, sizeof text, 0) < 5 ||
                memcmp(text, "+OK\r\n", 5) != 0) {
                bench_die("Redis has not said OK");
            }
            live--;
            if (clock_mono_ns() - from < RUN_NS) {
                redis_send(ev[i].data.fd, n++);
                live++;
                done++;
            }
        }
    }
    return (double)done * 1e9 / RUN_NS;
}

/* 256 puts in flight, so many of them in each message. */
static double put_ours(struct bare_load *l, unsigned a_message)
{
    round_number++;
    return a_message * bare_load_run(l, "/hedge.v1.Log/Put",
                                     PUT_IN_FLIGHT / a_message, RUN_NS,
                                     put_request, &a_message, 1);
}

static void bench_redis(void)
{
    static struct bench_case c = {.name = "log_put_grpc_256",
                                  .unit = "puts/s",
                                  .limit_is = "Redis, appendfsync always, 256 "
                                              "connections"},
                             by64 = {.name = "log_put_grpc_256_by_64",
                                     .unit = "puts/s",
                                     .limit_is = "the same; 64 puts a message "
                                                 "here"};
    char program[LINE], data[LINE], text[16];
    const char *argv[] = {program,     "--port",
                          text,        "--dir",
                          data,        "--appendonly",
                          "yes",       "--appendfsync",
                          "always",    "--save",
                          "",          "--logfile",
                          "redis.log", "--auto-aof-rewrite-percentage",
                          "0",         NULL};
    int fds[PUT_IN_FLIGHT], epoll = epoll_create1(EPOLL_CLOEXEC);
    struct bare_load *ours;
    struct bench_child server;

    if (!find_program("redis-server", program)) {
        return;
    }
    (void)snprintf(data, sizeof data, "%s/redis", dir);
    (void)snprintf(text, sizeof text, "%u", port + 2);
    if (mkdir(data, 0700) != 0) {
        bench_die("cannot make %s", data);
    }
    bench_child_start(&server, argv, NULL);
    for (unsigned i = 0; i < PUT_IN_FLIGHT; i++) {
        struct epoll_event ev = {.events = EPOLLIN};

        fds[i] = ev.data.fd = dial_patiently(port + 2);
        (void)epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &ev);
    }
    ours = bare_load_open(node_address);
    for (unsigned i = 0; i <= runs; i++) {
        double rate = put_ours(ours, 1), rate64 = put_ours(ours, 64);
        double limit = redis_run(epoll, fds);

        if (i > 0) {
            bench_add(&c, rate, limit);
            bench_add(&by64, rate64, limit);
        }
    }
    bench_print(&c);
    bench_print(&by64);
    bare_load_close(ours);
    for (unsigned i = 0; i < PUT_IN_FLIGHT; i++) {
        close(fds[i]);
    }
    close(epoll);
    bench_child_kill(&server);
}

/* --- etcd -------------------------------------------------------------------
 */

static void bench_etcd(void)
{
    static struct bench_case c = {.name = "log_put_grpc_256_etcd",
                                  .unit = "puts/s",
                                  .limit_is = "a single etcd, 256 in flight"},
                             by64 = {.name = "log_put_grpc_256_by_64_etcd",
                                     .unit = "puts/s",
                                     .limit_is = "the same; 64 puts a message "
                                                 "here"};
    char program[LINE], data[LINE], client[LINE], peer[LINE], log[LINE];
    const char *argv[] = {program, "--data-dir",
                          data,    "--listen-client-urls",
                          client,  "--advertise-client-urls",
                          client,  "--listen-peer-urls",
                          peer,    NULL};
    char address[BENCH_ADDRESS_MAX];
    struct bare_load *ours, *theirs;
    struct bench_child server;

    if (!find_program("etcd", program)) {
        return;
    }
    (void)snprintf(data, sizeof data, "%s/etcd", dir);
    (void)snprintf(client, sizeof client, "http://127.0.0.1:%u", port + 3);
    (void)snprintf(peer, sizeof peer, "http://127.0.0.1:%u", port + 4);
    (void)snprintf(address, sizeof address, "ipv4:127.0.0.1:%u", port + 3);
    (void)snprintf(log, sizeof log, "%s/etcd.log", dir);
    bench_child_start(&server, argv, log);
    close(dial_patiently(port + 3));
    clock_sleep_ms(3000); /* Its election. */
    ours = bare_load_open(node_address);
    theirs = bare_load_open(address);
    for (unsigned i = 0; i <= runs; i++) {
        double rate = put_ours(ours, 1), rate64 = put_ours(ours, 64);
        double limit =
            bare_load_run(theirs, "/etcdserverpb.KV/Put", PUT_IN_FLIGHT, RUN_NS,
                          etcd_request, NULL, 1);

        if (i > 0) {
            bench_add(&c, rate, limit);
            bench_add(&by64, rate64, limit);
        }
    }
    bench_print(&c);
    bench_print(&by64);
    bare_load_close(ours);
    bare_load_close(theirs);
    bench_child_kill(&server);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {
        {"get", bench_get}, {"redis", bench_redis}, {"etcd", bench_etcd}};
    const char *base = NULL;
    bool some = false;
    uint64_t n;
    int i = 1;

    bench_init(argv[0]);
    if (argc == 4 && strcmp(argv[1], "node") == 0) {
        return node_main(argv);
    }
    if (argc == 4 && strcmp(argv[1], "bare") == 0) {
        return bare_load_serve(argv[2], strtoul(argv[3], NULL, 10));
    }
    for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        if (strcmp(argv[i], "--dir") == 0) {
            base = argv[i + 1];
        } else if (strcmp(argv[i], "--runs") == 0 &&
                   units_parse_u64(argv[i + 1], &n) && n > 0 &&
                   n < BENCH_RUNS_MAX) {
            runs = (unsigned)n;
        } else {
            bench_die("usage: log_grpc [--runs N] [--dir DIR] "
                      "[get|redis|etcd]...");
        }
    }
    dir = bench_dir(base);
    port = 20000 + 5 * ((unsigned)getpid() % 8000);
    bench_fill(value, sizeof value, 1);
    start_node();
    for (unsigned k = 0; k < sizeof parts / sizeof parts[0]; k++) {
        bool wanted = i == argc;

        for (int a = i; a < argc; a++) {
            wanted = wanted || strcmp(argv[a], parts[k].name) == 0;
        }
        if (wanted) {
            parts[k].run();
            some = true;
        }
    }
    if (!some) {
        bench_die("nothing of that name");
    }
    bench_child_end(&node);
    return 0;
}
