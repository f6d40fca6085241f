/* How long `hedgectl sos write` takes for a large file, all of it into the
 * memory of a node whose arena is warm, against a bare stream of gRPC's C core
 * with the same file: whole processes, from their start to their end, in turns.
 * `hedgectl sos read` of the same store stands beside it: into a pipe, as most
 * use it, and to /dev/null, since the bare stream drops what it gets; and the
 * memory of the node.
 *
 *   ctl_write [--size SIZE] [--runs N] [--record-size SIZE] [--dir DIR] */
#include "bench/lib/bare_grpc.h"
#include "bench/lib/bench.h"
#include "store/base/clock.h"
#include "store/base/units.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECE ((size_t)1 << 20)
#define PIECES 8
#define MIB ((uint64_t)1 << 20)
#define MEM_SLACK (64 * MIB)
#define STORE "bench"
#define PATH_SIZE 4400
#define READY_MS 20000
#define FREED_MS 20000

static struct {
    uint64_t size;
    unsigned runs;
    const char *record_size; /* NULL: lines. */
    const char *dir;
} opt = {.size = (uint64_t)2 << 30, .runs = BENCH_RUNS};

static char file[PATH_SIZE], log_path[PATH_SIZE], ctl[PATH_SIZE];
static char node_id[64];
static char write_address[BENCH_ADDRESS_MAX], read_address[BENCH_ADDRESS_MAX];
static struct bench_child node;
static uint64_t mem_limit;
static struct bench_child servers[2];

/* --- the limit --------------------------------------------------------------
 */

struct piece {
    unsigned char *data;
    atomic_bool used;
};

static void piece_free(void *arg)
{
    struct piece *p = arg;

    atomic_store(&p->used, false);
}

/* Read the file in pieces and send them; reading one goes on while the one
 * before is sent. */
static int limit_client(const char *address, const char *path)
{
    static struct piece pieces[PIECES];
    struct bare_stream *s = bare_open(address, BARE_SINK);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    unsigned i = 0;
    ssize_t n = -1;

    if (fd < 0) {
        bench_die("%s: %s", path, strerror(errno));
    }
    for (;; i = (i + 1) % PIECES) {
        struct piece *p = &pieces[i];

        if (atomic_load(&p->used)) {
            bare_poll(s); /* The transport still has it: try the next. */
            continue;
        }
        p->data = p->data != NULL ? p->data : malloc(PIECE);
        n = p->data != NULL ? read(fd, p->data, PIECE) : -1;
        bare_settle(s);
        if (n <= 0) {
            break;
        }
        atomic_store(&p->used, true);
        bare_send_start(s, p->data, (size_t)n, piece_free, p);
    }
    if (n < 0) {
        bench_die("%s: cannot be read", path);
    }
    bare_close(s);
    return 0;
}

/* Take what was asked for and drop it. */
static int limit_reader(const char *address, const char *bytes)
{
    struct bare_stream *s = bare_open(address, BARE_SOURCE);
    uint64_t n = strtoull(bytes, NULL, 10) / PIECE, got = 0;

    bare_ask(s, PIECE, n);
    while (got < n && bare_recv(s) == PIECE) {
        got++;
    }
    if (got < n) {
        bench_die("the bare stream ended early");
    }
    bare_close(s);
    return 0;
}

/* --- processes --------------------------------------------------------------
 */

static int run_program(const char *const argv[], char *text, size_t cap)
{
    struct bench_child c;

    bench_child_start(&c, argv, log_path);
    return bench_child_wait(&c, text, cap);
}

/* The file with what our programs said, and the end. */
static void die_with_log(const char *what)
{
    char line[1024];
    FILE *f = fopen(log_path, "re");

    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        (void)fputs(line, stderr);
    }
    bench_die("%s failed", what);
}

static double timed(const char *what, const char *const argv[])
{
    uint64_t start = clock_mono_ns(), ns;
    struct bench_child c;

    bench_child_start(&c, argv, log_path);
    if (bench_child_wait(&c, NULL, 0) != 0) {
        die_with_log(what);
    }
    ns = clock_mono_ns() - start;
    return bench_gb_per_s(opt.size, ns);
}

static double ours_write(void)
{
    const char *argv[12] = {ctl, "-n", node_id, "sos", "write", STORE, file};

    if (opt.record_size != NULL) {
        argv[7] = "--record-size";
        argv[8] = opt.record_size;
    }
    return timed("hedgectl sos write", argv);
}

static double ours_read(void)
{
    const char *argv[] = {ctl, "-n", node_id, "sos", "read", STORE, NULL};

    return timed("hedgectl sos read", argv);
}

static double ours_read_drop(void)
{
    const char *argv[] = {"/bin/sh", "-c",  "exec \"$@\" >/dev/null",
                          "sh",      ctl,   "-n",
                          node_id,   "sos", "read",
                          STORE,     NULL};

    return timed("hedgectl sos read", argv);
}

static double limit_run(const char *role, const char *address, const char *arg)
{
    const char *argv[] = {"/proc/self/exe", role, address, arg, NULL};

    return timed("the bare stream", argv);
}

/* --- the node ---------------------------------------------------------------
 */

/* A port with a free one after it. */
static unsigned free_ports(void)
{
    for (unsigned tries = 0; tries < 100; tries++) {
        struct sockaddr_in a = {.sin_family = AF_INET};
        socklen_t len = sizeof a;
        int first = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int second = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        unsigned port = 0;

        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (bind(first, (struct sockaddr *)&a, sizeof a) == 0 &&
            getsockname(first, (struct sockaddr *)&a, &len) == 0) {
            port = ntohs(a.sin_port);
            a.sin_port = htons((uint16_t)(port + 1));
            if (port == UINT16_MAX ||
                bind(second, (struct sockaddr *)&a, sizeof a) != 0) {
                port = 0;
            }
        }
        close(first);
        close(second);
        if (port != 0) {
            return port;
        }
    }
    bench_die("no free ports");
}

static void node_start(const char *dir)
{
    char program[PATH_SIZE], data[PATH_SIZE], engine[PATH_SIZE + 8], mem[32];
    const char *argv[] = {
        program,    "--listen",    node_id,       "--data", data,
        "--engine", engine,        "--mem-limit", mem,      "--disk-limit",
        "64M",      "--log-level", "warn",        NULL};
    const char *status[] = {ctl, "-n", node_id, "status", NULL};
    uint64_t until = clock_mono_ms() + READY_MS;

    (void)bench_program("hedged", program, sizeof program);
    (void)snprintf(node_id, sizeof node_id, "127.0.0.1:%u", free_ports());
    (void)snprintf(data, sizeof data, "%s/data", dir);
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", dir);
    (void)snprintf(mem, sizeof mem, "%llu", (unsigned long long)mem_limit);
    bench_child_start(&node, argv, log_path);
    while (run_program(status, NULL, 0) != 0) {
        if (clock_mono_ms() > until) {
            die_with_log("starting hedged");
        }
        clock_sleep_ms(50);
    }
}

static uint64_t node_used(void)
{
    const char *argv[] = {ctl, "-n", node_id, "-o", "json", "status", NULL};
    static const char key[] = "\"mem_used\":";
    char text[8192];
    const char *at;

    if (run_program(argv, text, sizeof text) != 0 ||
        (at = strstr(text, key)) == NULL) {
        die_with_log("hedgectl status");
    }
    return strtoull(at + sizeof key - 1, NULL, 10);
}

/* Remove the store, wait until its memory is free: warm for the next. */
static void node_clear(void)
{
    const char *argv[] = {ctl, "-n", node_id, "sos", "rm", STORE, NULL};
    uint64_t until = clock_mono_ms() + FREED_MS;

    if (run_program(argv, NULL, 0) != 0) {
        die_with_log("hedgectl sos rm");
    }
    while (node_used() != 0) {
        if (clock_mono_ms() > until) {
            bench_die("the memory of a removed store is not freed");
        }
        clock_sleep_ms(20);
    }
}

static atomic_uint_fast64_t most_resident;
static atomic_bool watching = true;

static void *watch_memory(void *arg)
{
    while (atomic_load(&watching)) {
        uint64_t now = bench_resident(node.pid);

        if (now > atomic_load(&most_resident)) {
            atomic_store(&most_resident, now);
        }
        clock_sleep_ms(20);
    }
    return arg;
}

/* --- the runs ---------------------------------------------------------------
 */

static void make_file(const char *dir)
{
    unsigned char *data = malloc(PIECE);
    int fd;

    (void)snprintf(file, sizeof file, "%s/file", dir);
    fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || data == NULL) {
        bench_die("%s: %s", file, strerror(errno));
    }
    for (uint64_t at = 0; at < opt.size; at += PIECE) {
        bench_fill(data, PIECE, at + 1);
        if (write(fd, data, PIECE) != (ssize_t)PIECE) {
            bench_die("%s: %s", file, strerror(errno));
        }
    }
    close(fd);
    free(data);
}

static void server_start(struct bench_child *server, char *address)
{
    const char *argv[] = {"/proc/self/exe", "limit-server", address, NULL};
    double port;

    bench_child_start(server, argv, NULL);
    port = bench_child_number(server);
    if (strncmp(address, "ipv4:", 5) == 0) {
        (void)snprintf(address, BENCH_ADDRESS_MAX, "ipv4:127.0.0.1:%.0f", port);
    }
}

/* The far ends of the limits, over what hedgectl uses on one machine: to write,
 * the node's Unix socket if it could have one; to read, TCP. */
static void limits_start(const char *dir)
{
    char socket[PATH_SIZE];

    (void)snprintf(socket, sizeof socket, "%s/data/socket", dir);
    (void)snprintf(write_address, sizeof write_address, "ipv4:127.0.0.1:0");
    (void)snprintf(read_address, sizeof read_address, "ipv4:127.0.0.1:0");
    if (access(socket, R_OK | W_OK) == 0) {
        (void)snprintf(write_address, sizeof write_address, "unix:%.90s/limit",
                       dir);
    }
    server_start(&servers[0], write_address);
    server_start(&servers[1], read_address);
}

static void prepare(void)
{
    const char *dir = bench_dir(opt.dir);

    (void)snprintf(log_path, sizeof log_path, "%s/log", dir);
    (void)bench_program("hedgectl", ctl, sizeof ctl);
    /* A lot of short records take 4 bytes more each; 1/8 is never stored in. */
    mem_limit = (opt.size + opt.size / 16 + 64 * MIB) / 7 * 8;
    if (bench_memory_available() < mem_limit + opt.size + 256 * MIB) {
        bench_die("%llu MiB of memory are needed, %llu MiB are available; "
                  "--size makes it less",
                  (unsigned long long)(mem_limit + opt.size) / MIB + 256,
                  (unsigned long long)(bench_memory_available() / MIB));
    }
    make_file(dir);
    node_start(dir);
    limits_start(dir);
    (void)ours_write(); /* Warms the arena, and the file's pages. */
    node_clear();
}

static void measure(void)
{
    static struct bench_case w = {.unit = "GB/s",
                                  .limit_is = "bare C-core client stream of "
                                              "the same file and transport, "
                                              "whole process"},
                             r = {.unit = "GB/s",
                                  .limit_is = "bare C-core server stream of "
                                              "as many bytes, same transport, "
                                              "whole process, no output"},
                             d = {.unit = "GB/s",
                                  .limit_is = "the same; here ours has no "
                                              "output either"},
                             m = {.unit = "MiB",
                                  .limit_is = "--mem-limit + 64 MiB; RssAnon "
                                              "+ RssShmem of hedged"};
    const char *tail = opt.record_size != NULL ? opt.record_size : "";
    const char *dash = opt.record_size != NULL ? "_" : "";
    pthread_t watcher;
    char bytes[32];

    (void)snprintf(w.name, sizeof w.name, "ctl_write%s%s", dash, tail);
    (void)snprintf(r.name, sizeof r.name, "ctl_read%s%s", dash, tail);
    (void)snprintf(d.name, sizeof d.name, "ctl_read_drop%s%s", dash, tail);
    (void)snprintf(m.name, sizeof m.name, "ctl_write_memory%s%s", dash, tail);
    (void)snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)opt.size);
    if (pthread_create(&watcher, NULL, watch_memory, NULL) != 0) {
        bench_die("no thread");
    }
    for (unsigned i = 0; i < opt.runs; i++) {
        double limit = limit_run("limit-client", write_address, file),
               ours = ours_write();

        bench_add(&w, ours, limit);
        ours = ours_read();
        limit = limit_run("limit-reader", read_address, bytes);
        bench_add(&r, ours, limit);
        bench_add(&d, ours_read_drop(), limit);
        node_clear();
    }
    atomic_store(&watching, false);
    (void)pthread_join(watcher, NULL);
    bench_print(&w);
    bench_print(&r);
    bench_print(&d);
    bench_add(&m, (double)atomic_load(&most_resident) / (double)MIB,
              (double)(mem_limit + MEM_SLACK) / (double)MIB);
    bench_print(&m);
}

static void parse(int argc, char **argv)
{
    uint64_t n = 0;

    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        bool ok = false;

        if (strcmp(argv[i], "--size") == 0) {
            ok = units_parse_size(value, &opt.size);
            opt.size = (opt.size + PIECE - 1) / PIECE * PIECE;
        } else if (strcmp(argv[i], "--runs") == 0) {
            ok = units_parse_u64(value, &n) && n > 0 && n <= BENCH_RUNS_MAX;
            opt.runs = (unsigned)n;
        } else if (strcmp(argv[i], "--record-size") == 0) {
            opt.record_size = value;
            ok = units_parse_size(value, &n) && n > 0;
        } else if (strcmp(argv[i], "--dir") == 0) {
            opt.dir = value;
            ok = value[0] != '\0';
        }
        if (!ok || opt.size == 0) {
            bench_die("usage: ctl_write [--size SIZE] [--runs N] "
                      "[--record-size SIZE] [--dir DIR]");
        }
    }
}

int main(int argc, char **argv)
{
    bench_init(argv[0]);
    if (argc == 3 && strcmp(argv[1], "limit-server") == 0) {
        return bare_serve(argv[2]);
    }
    if (argc == 4 && strcmp(argv[1], "limit-client") == 0) {
        return limit_client(argv[2], argv[3]);
    }
    if (argc == 4 && strcmp(argv[1], "limit-reader") == 0) {
        return limit_reader(argv[2], argv[3]);
    }
    parse(argc, argv);
    prepare();
    measure();
    bench_child_kill(&node);
    bench_child_end(&servers[0]);
    bench_child_end(&servers[1]);
    return 0;
}
