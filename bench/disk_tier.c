/* Blocks to disk and back through the tier, beside a bare loop of io_uring and
 * O_DIRECT that does the same reads and writes and nothing else, in turns.
 *
 *   disk_tier [DIRECTORY [MIB [RUNS]]] */
#include "bench/lib/bare_disk.h"
#include "bench/lib/bench.h"
#include "store/disk/disk.h"

#include "store/base/clock.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH DISK_INFLIGHT
#define GENERATION 1

static const size_t block = (size_t)1 << 20;
static unsigned n_blocks = 1024, n_runs = BENCH_RUNS;
static unsigned char *buffers; /* DEPTH blocks. */

struct slot {
    struct tier_req req;
    struct slot *next_free;
    unsigned i;
};

static struct slot slots[DEPTH];
static struct tier_place *places;
static pthread_mutex_t free_lock = PTHREAD_MUTEX_INITIALIZER;
static struct slot *free_slots;
static sem_t n_free;

static void slot_free(struct slot *s)
{
    pthread_mutex_lock(&free_lock);
    s->next_free = free_slots;
    free_slots = s;
    pthread_mutex_unlock(&free_lock);
    sem_post(&n_free);
}

static struct slot *slot_take(void)
{
    struct slot *s;

    while (sem_wait(&n_free) != 0) {
    }
    pthread_mutex_lock(&free_lock);
    s = free_slots;
    free_slots = s->next_free;
    pthread_mutex_unlock(&free_lock);
    return s;
}

static void on_end(struct tier_req *req)
{
    struct slot *s = req->ctx;

    if (req->status != 0) {
        bench_die("tier: %s", req->error.text);
    }
    places[s->i] = req->place;
    slot_free(s);
}

static uint64_t tier_pass(struct tier *t, bool write)
{
    uint64_t start = clock_mono_ns();

    for (unsigned i = 0; i < n_blocks; i++) {
        struct slot *s = slot_take();
        s->i = i;
        s->req.id.generation = GENERATION;
        s->req.id.sequence = i;
        s->req.len = block;
        s->req.place = places[i];
        if ((write ? tier_put(t, &s->req) : tier_get(t, &s->req)) != 0) {
            bench_die("tier: %s", s->req.error.text);
        }
    }
    for (unsigned i = 0; i < DEPTH; i++) {
        (void)slot_take();
    }
    start = clock_mono_ns() - start;
    for (unsigned i = 0; i < DEPTH; i++) {
        slot_free(&slots[i]);
    }
    return start;
}

static void prepare(void)
{
    buffers = bench_pages(DEPTH * block);
    places = calloc(n_blocks, sizeof *places);
    if (places == NULL) {
        bench_die("no memory");
    }
    bench_fill(buffers, DEPTH * block, 2);
    sem_init(&n_free, 0, 0);
    for (unsigned i = 0; i < DEPTH; i++) {
        slots[i].req.data = buffers + i * block;
        slots[i].req.cb = on_end;
        slots[i].req.ctx = &slots[i];
        slot_free(&slots[i]);
    }
}

static void measure(struct tier *t, struct bare_disk *bare)
{
    static struct bench_case w = {.name = "disk_tier_write_1MiB",
                                  .unit = "GB/s",
                                  .limit_is = "bare io_uring O_DIRECT, same "
                                              "sizes and depth"},
                             r = {.name = "disk_tier_read_1MiB",
                                  .unit = "GB/s",
                                  .limit_is = "bare io_uring O_DIRECT, same "
                                              "sizes and depth"};
    uint64_t bytes = (uint64_t)n_blocks * block, write_ns, read_ns;

    for (unsigned i = 0; i < n_runs; i++) {
        double ours_w = bench_gb_per_s(bytes, tier_pass(t, true));
        double ours_r = bench_gb_per_s(bytes, tier_pass(t, false));

        tier_drop_store(t, GENERATION);
        bare_disk_run(bare, n_blocks, &write_ns, &read_ns);
        bench_add(&w, ours_w, bench_gb_per_s(bytes, write_ns));
        bench_add(&r, ours_r, bench_gb_per_s(bytes, read_ns));
    }
    bench_print(&w);
    bench_print(&r);
}

int main(int argc, char **argv)
{
    char tier_dir[4200];
    struct disk_options o = {.dir = tier_dir, .limit = UINT64_MAX / 2};
    struct hedge_error e;
    struct bare_disk *bare;
    struct tier *t;
    const char *dir;

    bench_init(argv[0]);
    n_blocks = argc > 2 ? (unsigned)atoi(argv[2]) : n_blocks;
    n_runs = argc > 3 ? (unsigned)atoi(argv[3]) : n_runs;
    if (n_blocks == 0 || n_runs == 0 || n_runs > BENCH_RUNS_MAX) {
        bench_die("usage: disk_tier [DIRECTORY [MIB [RUNS]]]");
    }
    dir = bench_dir(argc > 1 ? argv[1] : NULL);
    prepare();
    (void)snprintf(tier_dir, sizeof tier_dir, "%s/tier", dir);
    if (disk_new(&o, &t, &e) != 0) {
        bench_die("tier: %s", e.text);
    }
    bare = bare_disk_new(dir, block);
    measure(t, bare);
    bare_disk_free(bare);
    tier_free(t);
    return 0;
}
