/* How long a message takes: hedge_send() with one at a time against a bare
 * unary echo over gRPC's C core on the same kind of socket, and a broadcast to
 * three members against one send. Each node is a process of its own; medians of
 * a few thousand in each run, the two sides of a case in turns.
 *
 *   messaging [--runs N] */
#include "bench/lib/bare_unary.h"
#include "bench/lib/bench.h"
#include "cluster/hedge.h"
#include "store/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NODES 4 /* The leader, the sender, and two more for the broadcast. */
#define WARM 300
#define TIMES 3000
#define LEN 64
#define TIMEOUT_MS 10000
#define LINE 512

static const unsigned char message[LEN];

/* --- statistics ---------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static double median_us(void (*once)(void *ctx), void *ctx)
{
    static uint64_t took[TIMES];
    const size_t middle = TIMES / 2;

    for (int i = 0; i < WARM; i++) {
        once(ctx);
    }
    for (int i = 0; i < TIMES; i++) {
        uint64_t start = clock_mono_ns();

        once(ctx);
        took[i] = clock_mono_ns() - start;
    }
    qsort(took, TIMES, sizeof took[0], compare);
    return (double)took[middle] / 1e3;
}

/* A child measures when it is told to, by a line that names what. */
static void obey(void (*measure)(const char *what, void *ctx), void *ctx)
{
    char line[LINE];

    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        measure(line, ctx);
    }
}

static double ask(struct bench_child *c, const char *what)
{
    char line[LINE];
    int n = snprintf(line, sizeof line, "%s\n", what);

    if (write(c->in, line, (size_t)n) != n) {
        bench_die("a child has gone");
    }
    return bench_child_number(c);
}

/* --- a node ----------------------------------------------------------------
 */

static int echo(void *data, const struct hedge_message *m,
                struct hedge_answer *a, struct hedge_error *e)
{
    (void)data;
    (void)e;
    return hedge_answer_write(a, m->data, m->len);
}

static void send_once(void *ctx)
{
    struct hedge_reply *r;
    struct hedge_error e;

    if (hedge_send(ctx, message, LEN, TIMEOUT_MS, &r, &e) != 0) {
        bench_die("%s", e.text);
    }
    hedge_reply_free(r);
}

static void broadcast_once(void *ctx)
{
    const struct hedge_broadcast_options o = {.skip_self = true};
    struct hedge_replies *all;
    struct hedge_error e;

    if (hedge_broadcast(ctx, message, LEN, &o, TIMEOUT_MS, &all, &e) != 0) {
        bench_die("%s", e.text);
    }
    for (size_t i = 0; i < all->n; i++) {
        if (all->reply[i].error != 0) {
            bench_die("%s", all->reply[i].error_text);
        }
    }
    if (all->n != NODES - 1) {
        bench_die("%zu members have answered", all->n);
    }
    hedge_replies_free(all);
}

static void measure_node(const char *what, void *ctx)
{
    printf("%f\n", median_us(strcmp(what, "broadcast") == 0 ? broadcast_once
                                                            : send_once,
                             ctx));
    (void)fflush(stdout);
}

static size_t count_members(struct hedge_node *n)
{
    struct hedge_members *m = hedge_members(n);
    size_t k = m != NULL ? m->n : 0;

    hedge_members_free(m);
    return k;
}

/* node DIR PORT DATA: says "1" when it knows a leader, then obeys. */
static int node_main(char **argv)
{
    char listen[64], engine[LINE];
    struct hedge_options o;
    struct hedge_leader l;
    struct hedge_node *n;
    struct hedge_error e;

    hedge_process_setup();
    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%s", argv[3]);
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", argv[2]);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = argv[4];
    o.mem_limit = (uint64_t)32 << 20;
    o.disk_limit = 0;
    o.leader_handler = o.broadcast_handler = echo;
    if (hedge_node_start(&o, &n, &e) != 0) {
        bench_die("%s", e.text);
    }
    while (hedge_leader(n, &l) != 0) {
        clock_sleep_ms(10);
    }
    printf("1\n");
    (void)fflush(stdout);
    while (strcmp(argv[5], "sender") == 0 && count_members(n) != NODES) {
        clock_sleep_ms(10);
    }
    obey(measure_node, n);
    hedge_node_stop(n);
    return 0;
}

/* --- the limit --------------------------------------------------------------
 */

static void bare_once(void *ctx)
{
    struct bare_echo **b = ctx;

    bare_echo_call(b[0], message, LEN);
}

static void bare_all(void *ctx)
{
    bare_echo_all(ctx, NODES - 1, message, LEN);
}

static void measure_bare(const char *what, void *ctx)
{
    printf(
        "%f\n",
        median_us(strcmp(what, "broadcast") == 0 ? bare_all : bare_once, ctx));
    (void)fflush(stdout);
}

/* bare-client ADDRESS... */
static int bare_main(char **addresses)
{
    struct bare_echo *b[NODES - 1];

    for (int i = 0; i < NODES - 1; i++) {
        b[i] = bare_echo_open(addresses[i]);
    }
    obey(measure_bare, b);
    for (int i = 0; i < NODES - 1; i++) {
        bare_echo_close(b[i]);
    }
    return 0;
}

/* --- the runs ---------------------------------------------------------------
 */

struct group {
    struct bench_child nodes[NODES];
    struct bench_child servers[NODES - 1], client; /* Bare. */
};

/* A path that is too long for a Unix socket: TCP it is, then. */
static void data_of(const char *dir, bool tcp, int i, char out[LINE])
{
    char deep[] = "/a-name-of-some-length/a-name-of-some-length";

    (void)snprintf(out, LINE, "%.200s/n%d", dir, i);
    if (tcp) {
        (void)snprintf(out, LINE, "%.200s%s%s%s/n%d", dir, deep, deep, deep, i);
    }
}

static void start(struct group *g, const char *dir, bool tcp, unsigned port)
{
    char address[NODES - 1][BENCH_ADDRESS_MAX], data[LINE], listen[16];
    const char *node[] = {
        "/proc/self/exe", "node", dir, listen, data, NULL, NULL};
    const char *server[] = {"/proc/self/exe", "bare-server", NULL, NULL};
    const char *client[] = {"/proc/self/exe", "bare-client", address[0],
                            address[1],       address[2],    NULL};
    double bare_port;

    for (int i = 0; i < NODES; i++) {
        data_of(dir, tcp, i, data);
        (void)snprintf(listen, sizeof listen, "%u", port + 2 * (unsigned)i);
        node[5] = i == 1 ? "sender" : "other";
        bench_child_start(&g->nodes[i], node, NULL);
        (void)bench_child_number(&g->nodes[i]); /* The first one leads. */
    }
    for (int i = 0; i < NODES - 1; i++) {
        (void)snprintf(address[i], sizeof address[i],
                       tcp ? "ipv4:127.0.0.1:0" : "unix:%.80s/bare%d", dir, i);
        server[2] = address[i];
        bench_child_start(&g->servers[i], server, NULL);
        bare_port = bench_child_number(&g->servers[i]);
        if (tcp) {
            (void)snprintf(address[i], sizeof address[i], "ipv4:127.0.0.1:%.0f",
                           bare_port);
        }
    }
    bench_child_start(&g->client, client, NULL);
}

static void end(struct group *g)
{
    bench_child_end(&g->client);
    for (int i = 0; i < NODES - 1; i++) {
        bench_child_end(&g->servers[i]);
    }
    for (int i = 0; i < NODES; i++) {
        bench_child_end(&g->nodes[i]);
    }
}

static void run(bool tcp, unsigned runs, unsigned port)
{
    struct bench_case one = {.unit = "us",
                             .limit_is = "bare C-core unary echo"};
    struct bench_case all = {.unit = "us", .limit_is = "one hedge_send"};
    struct bench_case bare = {.unit = "us",
                              .limit_is = "bare C-core echo of three at once"};
    char dir[LINE];
    struct group g;

    (void)snprintf(one.name, sizeof one.name, "send_1%s", tcp ? "_tcp" : "");
    (void)snprintf(all.name, sizeof all.name, "broadcast_3%s",
                   tcp ? "_tcp" : "");
    (void)snprintf(bare.name, sizeof bare.name, "broadcast_3_bare%s",
                   tcp ? "_tcp" : "");
    (void)snprintf(dir, sizeof dir, "%s/%s", bench_dir(NULL),
                   tcp ? "tcp" : "unix");
    if (mkdir(dir, 0700) != 0) {
        bench_die("cannot make %s", dir);
    }
    start(&g, dir, tcp, port);
    for (unsigned i = 0; i < runs; i++) {
        double ours = ask(&g.nodes[1], "send"), three;

        bench_add(&one, ours, ask(&g.client, "echo"));
        three = ask(&g.nodes[1], "broadcast");
        bench_add(&all, three, ours);
        bench_add(&bare, three, ask(&g.client, "broadcast"));
    }
    bench_print(&one);
    bench_print(&all);
    bench_print(&bare);
    end(&g);
}

int main(int argc, char **argv)
{
    unsigned runs = BENCH_RUNS, port = 20000 + (unsigned)getpid() % 20000;

    bench_init(argv[0]);
    if (argc == 6 && strcmp(argv[1], "node") == 0) {
        return node_main(argv);
    }
    if (argc == 3 && strcmp(argv[1], "bare-server") == 0) {
        return bare_echo_serve(argv[2]);
    }
    if (argc == NODES + 1 && strcmp(argv[1], "bare-client") == 0) {
        return bare_main(argv + 2);
    }
    if (argc == 3 && strcmp(argv[1], "--runs") == 0) {
        runs = (unsigned)strtoul(argv[2], NULL, 10);
        runs = runs > 0 && runs < BENCH_RUNS_MAX ? runs : BENCH_RUNS;
    }
    run(false, runs, port);
    run(true, runs, port + 2 * NODES);
    return 0;
}
