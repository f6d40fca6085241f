/* How long permits are nobody's: from the release of a contended lock on one
 * node to its grant on another, three nodes in this process, the third of them
 * the leader. The limit is what cannot be saved: one synced append, measured in
 * turns with it; 5 ms beside it are allowed.
 *
 *   semaphore [--rounds N] */
#include "bench/lib/bench.h"
#include "cluster/hedge.h"
#include "store/base/clock.h"
#include "store/base/log.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NODES 3
#define PORT 23710
#define WAIT_MS 30000
#define LEASE_MS 10000

struct taker {
    struct hedge_semaphore *s;
    uint64_t token, at_ns;
};

static struct hedge_node *nodes[NODES];
static char engine[256], dirs[NODES][256], ids[NODES][32];

static void start_node(const char *dir, unsigned i)
{
    struct hedge_options o;
    struct hedge_error e;

    hedge_options_init(&o);
    (void)snprintf(ids[i], sizeof ids[i], "127.0.0.1:%u", PORT + 10 * i);
    (void)snprintf(dirs[i], sizeof dirs[i], "%s/n%u", dir, i);
    o.listen = ids[i];
    o.engine = engine;
    o.data_dir = dirs[i];
    o.mem_limit = (uint64_t)32 << 20;
    o.disk_limit = (uint64_t)64 << 20;
    o.lease_ms = LEASE_MS;
    if (hedge_node_start(&o, &nodes[i], &e) != 0) {
        bench_die("%s", e.text);
    }
}

/* The node that leads, at nodes[0]. */
static void leader_first(void)
{
    uint64_t end = clock_mono_ms() + WAIT_MS;

    while (clock_mono_ms() < end) {
        for (unsigned i = 0; i < NODES; i++) {
            if (hedge_has_lock(nodes[i], NULL)) {
                struct hedge_node *n = nodes[0];
                nodes[0] = nodes[i];
                nodes[i] = n;
                return;
            }
        }
        clock_sleep_ms(10);
    }
    bench_die("nobody leads");
}

static struct hedge_semaphore *open_lock(struct hedge_node *n)
{
    struct hedge_semaphore *s;
    struct hedge_error e;

    if (hedge_semaphore_open(n, "bench", 1, WAIT_MS, &s, &e) != 0) {
        bench_die("%s", e.text);
    }
    return s;
}

static void *take(void *arg)
{
    struct taker *t = arg;
    struct hedge_error e;

    if (hedge_semaphore_acquire(t->s, 1, WAIT_MS, &t->token, &e) != 0) {
        bench_die("acquire: %s", e.text);
    }
    t->at_ns = clock_mono_ns();
    return NULL;
}

static void await_waiter(void)
{
    struct hedge_semaphores *list;
    struct hedge_error e;
    bool waits = false;

    while (!waits) {
        if (hedge_semaphores(nodes[0], "bench", WAIT_MS, &list, &e) != 0) {
            bench_die("list: %s", e.text);
        }
        waits = list->n > 0 && list->semaphore[0].n_waiters > 0;
        hedge_semaphores_free(list);
    }
}

/* `from` holds; `to` waits; when has it got it? */
static double hand_over(struct taker *from, struct taker *to)
{
    struct hedge_error e;
    pthread_t thread;
    uint64_t start;

    if (pthread_create(&thread, NULL, take, to) != 0) {
        bench_die("no thread");
    }
    await_waiter();
    start = clock_mono_ns();
    if (hedge_semaphore_release(from->s, from->token, WAIT_MS, &e) != 0) {
        bench_die("release: %s", e.text);
    }
    pthread_join(thread, NULL);
    if (to->token <= from->token) {
        bench_die("a token that does not grow");
    }
    return (double)(to->at_ns - start) / 1e6;
}

static double append(void)
{
    struct hedge_error e;
    uint64_t start = clock_mono_ns();

    if (hedge_put(nodes[0], "k", 1, "v", 1, 0, WAIT_MS, NULL, &e) != 0) {
        bench_die("put: %s", e.text);
    }
    return (double)(clock_mono_ns() - start) / 1e6;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *v, unsigned n)
{
    qsort(v, n, sizeof *v, by_size);
    return v[n / 2];
}

int main(int argc, char **argv)
{
    static struct bench_case c = {
        .name = "sem_handover",
        .unit = "ms",
        .limit_is = "one put on the leader, synced; 5 ms more are allowed"};
    unsigned rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 100;
    struct taker a = {.token = 0}, b = {.token = 0};
    double *ours, *limit;
    const char *dir;

    bench_init(argv[0]);
    hedge_process_setup();
    log_set_level(LOG_ERROR);
    dir = bench_dir(NULL);
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", dir);
    for (unsigned i = 0; i < NODES; i++) {
        start_node(dir, i);
    }
    leader_first();
    a.s = open_lock(nodes[1]);
    b.s = open_lock(nodes[2]);
    (void)take(&a);
    rounds = rounds < 2 ? 2 : rounds;
    ours = calloc(rounds, sizeof *ours);
    limit = calloc(rounds, sizeof *limit);
    if (ours == NULL || limit == NULL) {
        bench_die("no memory");
    }
    for (unsigned run = 0; run < BENCH_RUNS; run++) {
        for (unsigned i = 0; i < rounds; i++) {
            ours[i] = i % 2 == 0 ? hand_over(&a, &b) : hand_over(&b, &a);
            limit[i] = append();
        }
        if (rounds % 2 != 0) {
            (void)hand_over(&b, &a);
        }
        bench_add(&c, median(ours, rounds), median(limit, rounds));
    }
    bench_print(&c);
    free(ours);
    free(limit);
    hedge_semaphore_close(a.s);
    hedge_semaphore_close(b.s);
    for (unsigned i = 0; i < NODES; i++) {
        hedge_node_stop(nodes[i]);
    }
    return 0;
}
