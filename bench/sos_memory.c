/* What one thread writes into and reads from the memory tier, against memcpy
 * of the same bytes over warm memory in the same run.
 *
 *   sos_memory [SIZE]     one of 16B 100B 1KiB 64KiB 1MiB 16MiB
 *
 * Each case first writes once and waits until the blocks are free again, so
 * that the arena is warm. Our run and memcpy take turns; medians of RUNS. */
#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/reader.h"
#include "store/sos.h"
#include "store/writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RUNS 5
#define TOTAL ((size_t)256 << 20) /* Bytes of records of a run. */
#define MEM_LIMIT ((uint64_t)768 << 20)

struct bench {
    struct sos *sos;
    char dir[64];
    unsigned char *from, *to; /* Warm memory outside of the arena. */
    uint64_t next_generation;
};

static void die(const char *what, const struct hedge_error *e)
{
    (void)fprintf(stderr, "sos_memory: %s: %s\n", what, e->text);
    exit(1);
}

static struct sos_store *new_store(struct bench *b)
{
    struct sos_store_options o = {
        .replicas = 1, .ttl_ms = 3600000, .compression = SOS_COMPRESS_NONE};
    struct hedge_error e = {0};
    struct sos_store *store;

    if (sos_create(b->sos, "bench", ++b->next_generation, &o, &store, &e) !=
        0) {
        die("create", &e);
    }
    return store;
}

static void end_store(struct bench *b, struct sos_store *store)
{
    struct sos_usage u;

    sos_remove(store);
    sos_store_unref(store);
    do {
        clock_sleep_ms(2);
        sos_usage(b->sos, &u);
    } while (u.arena.by_class[ARENA_STORED] > 0);
}

/* Seconds for writing TOTAL bytes as records of `size`. */
static double write_once(struct bench *b, struct sos_store *store, size_t size)
{
    struct hedge_error e = {0};
    struct manifest m, out;
    struct sink *sink;
    struct writer w;
    uint64_t start;
    int rv = 0;

    if (sos_sink_open(store, &sink, &e) != 0) {
        die("open", &e);
    }
    writer_init(&w, sink);
    start = clock_mono_ns();
    for (size_t at = 0; at + size <= TOTAL && rv == 0; at += size) {
        rv = writer_write(&w, b->from + at, size);
    }
    rv = rv != 0 ? rv : writer_finish(&w, &m);
    start = clock_mono_ns() - start;
    if (rv != 0 || sos_sink_close(sink, &m, &out, &e) != 0) {
        die("write", &e);
    }
    return (double)start / 1e9;
}

/* Seconds for reading and verifying it all. */
static double read_once(struct sos_store *store)
{
    const struct sos_read_options o = {.follow = false};
    struct hedge_error e = {0};
    struct source *source;
    struct reader r;
    struct piece p;
    uint64_t start, bytes = 0;
    int rv;

    if (sos_source_open(store, &o, &source, &e) != 0 ||
        reader_init(&r, source) != 0) {
        die("open", &e);
    }
    start = clock_mono_ns();
    while ((rv = reader_next(&r, 0, &p)) == 0) {
        bytes += p.len;
    }
    start = clock_mono_ns() - start;
    if (rv != HEDGE_EEND || bytes != r.seen.bytes || bytes == 0) {
        die("read", &r.error);
    }
    reader_release(&r);
    return (double)start / 1e9;
}

static double copy_once(struct bench *b)
{
    uint64_t start = clock_mono_ns();

    memcpy(b->to, b->from, TOTAL);
    __asm__ volatile("" : : "r"(b->to) : "memory");
    return (double)(clock_mono_ns() - start) / 1e9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *v)
{
    qsort(v, RUNS, sizeof *v, by_value);
    return v[RUNS / 2];
}

static void print(const char *name, double ours, double limit, const char *unit,
                  const char *limit_is)
{
    (void)printf("{\"case\":\"%s\",\"ours\":%.3f,\"limit\":%.3f,"
                 "\"ratio\":%.3f,\"unit\":\"%s\",\"limit_is\":\"%s\"}\n",
                 name, ours, limit, ours / limit, unit, limit_is);
    (void)fflush(stdout);
}

static void run_case(struct bench *b, size_t size, const char *label)
{
    double wrote[RUNS], readt[RUNS], copied[RUNS], w, r, c;
    double bytes = (double)(uint64_t)(TOTAL / size * size);
    struct sos_store *store = new_store(b);
    char name[64];

    (void)write_once(b, store, size);
    end_store(b, store);
    (void)copy_once(b);
    for (unsigned i = 0; i < RUNS; i++) {
        store = new_store(b);
        wrote[i] = write_once(b, store, size);
        copied[i] = copy_once(b);
        readt[i] = read_once(store);
        end_store(b, store);
    }
    w = median(wrote);
    r = median(readt);
    c = median(copied);
    (void)snprintf(name, sizeof name, "memory_write_%s", label);
    print(name, bytes / w / 1e9, (double)TOTAL / c / 1e9, "GB/s",
          "memcpy of warm memory");
    if (size == 100) {
        (void)snprintf(name, sizeof name, "memory_write_%s_records", label);
        print(name, bytes / 100 / w, (double)TOTAL / c / 100, "records/s",
              "memcpy of warm memory");
    }
    (void)snprintf(name, sizeof name, "memory_read_%s", label);
    print(name, bytes / r / 1e9, (double)TOTAL / c / 1e9, "GB/s",
          "memcpy of warm memory");
}

int main(int argc, char **argv)
{
    static const struct {
        size_t size;
        const char *label;
    } sizes[] = {{16, "16B"},         {100, "100B"},     {1 << 10, "1KiB"},
                 {64 << 10, "64KiB"}, {1 << 20, "1MiB"}, {16 << 20, "16MiB"}};
    struct bench b = {.dir = "/tmp/hedge-bench-XXXXXX"};
    struct sos_options o = {.node = "bench",
                            .data_dir = b.dir,
                            .mem_limit = MEM_LIMIT,
                            .block_size = BLOCK_SIZE_DEFAULT};
    struct hedge_error e = {0};
    char path[96];

    log_set_level(LOG_WARN);
    b.from = malloc(TOTAL);
    b.to = malloc(TOTAL);
    if (mkdtemp(b.dir) == NULL || b.from == NULL || b.to == NULL ||
        sos_new(&o, &b.sos, &e) != 0) {
        die("start", &e);
    }
    for (size_t i = 0; i < TOTAL; i++) {
        b.from[i] = (unsigned char)(i * 31 + (i >> 12));
    }
    memset(b.to, 1, TOTAL);
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (argc < 2 || strcmp(argv[1], sizes[i].label) == 0) {
            run_case(&b, sizes[i].size, sizes[i].label);
        }
    }
    sos_free(b.sos);
    (void)snprintf(path, sizeof path, "%s/catalog/data.mdb", b.dir);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/catalog/lock.mdb", b.dir);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/catalog", b.dir);
    (void)rmdir(path);
    (void)rmdir(b.dir);
    free(b.from);
    free(b.to);
    return 0;
}
