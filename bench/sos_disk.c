/* Records into a store that lives on disk, and back, through the store's own
 * writer and reader, with all checksums, beside a bare loop of io_uring and
 * O_DIRECT that writes and reads as many blocks and nothing else, in turns.
 * The memory of the node is so small that every block goes to disk.
 *
 *   sos_disk [--dir DIR] [--size SIZE] [--runs N] [RECORD_SIZE...] */
#include "bench/lib/bare_disk.h"
#include "bench/lib/bench.h"
#include "store/base/clock.h"
#include "store/base/units.h"
#include "store/reader.h"
#include "store/sos.h"
#include "store/writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK ((size_t)1 << 20)
#define MEM_BLOCKS 128
#define DATA_SIZE ((size_t)64 << 20)
#define MIB ((uint64_t)1 << 20)

static uint64_t total = 512 * MIB;
static unsigned n_runs = BENCH_RUNS;
static unsigned char *data; /* Incompressible; records are cut from it. */
static uint64_t generation;

static void check(int rv, const char *what, const struct hedge_error *e)
{
    if (rv != 0) {
        bench_die("%s: %s", what,
                  e->code == rv && e->text[0] != '\0' ? e->text
                                                      : hedge_strerror(rv));
    }
}

static struct sos *node_new(const char *dir)
{
    struct sos_options o = {.node = "bench",
                            .data_dir = dir,
                            .mem_limit = MEM_BLOCKS * BLOCK,
                            .block_size = BLOCK,
                            .disk_limit = SOS_UNLIMITED};
    struct hedge_error e = {.code = 0};
    struct sos *s;

    check(sos_new(&o, &s, &e), "the node", &e);
    arena_warm(sos_arena(s), MEM_BLOCKS * BLOCK);
    return s;
}

/* The store's own memory limit keeps all but its first block on disk. */
static struct sos_store *store_new(struct sos *s)
{
    struct sos_store_options o = {.mem_limit = 1,
                                  .ttl_ms = 60000,
                                  .replicas = 1,
                                  .compression = SOS_COMPRESS_NONE};
    struct hedge_error e = {.code = 0};
    struct sos_store *store;

    check(sos_create(s, "bench", ++generation, &o, &store, &e), "the store",
          &e);
    return store;
}

static double write_records(struct sos_store *store, size_t size, uint64_t n)
{
    struct hedge_error e = {.code = 0};
    struct manifest counted;
    struct sink *sink;
    struct writer w;
    uint64_t start = clock_mono_ns();
    size_t at = 0;

    check(sos_sink_open(store, &sink, &e), "the writer", &e);
    writer_init(&w, sink);
    for (uint64_t i = 0; i < n; i++) {
        check(writer_write(&w, data + at, size), "writing", &w.error);
        at = at + 2 * size <= DATA_SIZE ? at + size : 0;
    }
    check(writer_finish(&w, &counted), "writing", &w.error);
    check(sos_sink_close(sink, &counted, &counted, &e), "closing", &e);
    return bench_gb_per_s(n * size, clock_mono_ns() - start);
}

static double read_records(struct sos_store *store, size_t size, uint64_t n)
{
    struct sos_read_options o = {.discard = false};
    struct hedge_error e = {.code = 0};
    uint64_t start = clock_mono_ns();
    struct source *source;
    struct reader r;
    struct piece p;
    int rv;

    check(sos_source_open(store, &o, &source, &e), "the reader", &e);
    check(reader_init(&r, source), "the reader", &e);
    while ((rv = reader_next(&r, UINT64_MAX, &p)) == 0) {
    }
    if (rv != HEDGE_EEND) {
        check(rv, "reading", &r.error);
    }
    if (r.seen.records != n || r.seen.bytes != n * size) {
        bench_die("not all was read");
    }
    reader_release(&r);
    return bench_gb_per_s(n * size, clock_mono_ns() - start);
}

/* How many blocks the store has; they must be on disk. */
static unsigned blocks_on_disk(struct sos_store *store)
{
    struct sos_info info;
    uint64_t disk = 0, other = 0;

    if (sos_store_info(store, &info) != 0) {
        bench_die("no memory");
    }
    for (unsigned i = 0; i < info.n_uses; i++) {
        if (strcmp(info.uses[i].tier, "disk") == 0) {
            disk += info.uses[i].blocks;
        } else {
            other += info.uses[i].blocks;
        }
    }
    free(info.uses);
    if (disk == 0 || other > 0) {
        bench_die("%llu blocks are not on disk", (unsigned long long)other);
    }
    return (unsigned)disk;
}

struct rates {
    double write, read;
};

/* The blocks' files are gone when it returns: removing them is work for the
 * disk, too. */
static void drop(struct sos *s, struct sos_store *store)
{
    struct sos_usage u;

    sos_remove(store);
    sos_store_unref(store);
    for (sos_usage(s, &u); u.disk.used > 0; sos_usage(s, &u)) {
        clock_sleep_ms(1);
    }
}

static unsigned run_ours(struct sos *s, size_t size, uint64_t n,
                         struct rates *out)
{
    struct sos_store *store = store_new(s);
    unsigned n_blocks;

    out->write = write_records(store, size, n);
    n_blocks = blocks_on_disk(store);
    out->read = read_records(store, size, n);
    drop(s, store);
    return n_blocks;
}

static void run_size(struct sos *s, struct bare_disk *bare, const char *name,
                     size_t size)
{
    static const char limit_is[] =
        "bare io_uring O_DIRECT, as many blocks of 1 MiB";
    struct bench_case w = {.unit = "GB/s", .limit_is = limit_is};
    struct bench_case r = w;
    uint64_t n = total / size, write_ns, read_ns;
    unsigned n_blocks = 0;

    (void)snprintf(w.name, sizeof w.name, "disk_write_%s", name);
    (void)snprintf(r.name, sizeof r.name, "disk_read_%s", name);
    for (unsigned i = 0; i < n_runs; i++) {
        struct rates ours = {0};

        if (i % 2 == 1) {
            bare_disk_run(bare, n_blocks, &write_ns, &read_ns);
        }
        n_blocks = run_ours(s, size, n, &ours);
        if (i % 2 == 0) {
            bare_disk_run(bare, n_blocks, &write_ns, &read_ns);
        }
        bench_add(&w, ours.write, bench_gb_per_s(n * size, write_ns));
        bench_add(&r, ours.read, bench_gb_per_s(n * size, read_ns));
    }
    bench_print(&w);
    bench_print(&r);
}

int main(int argc, char **argv)
{
    static const char *const all[] = {"16B",   "100B", "1KiB",
                                      "64KiB", "1MiB", "16MiB"};
    const char *const *sizes = all;
    unsigned n_sizes = sizeof all / sizeof all[0];
    const char *dir = NULL;
    struct bare_disk *bare;
    struct sos *s;
    int i = 1;

    bench_init(argv[0]);
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        uint64_t n = 0;

        if (strcmp(argv[i], "--dir") == 0) {
            dir = argv[i + 1];
        } else if (strcmp(argv[i], "--size") == 0 &&
                   units_parse_size(argv[i + 1], &n) && n > 0) {
            total = n;
        } else if (strcmp(argv[i], "--runs") == 0 &&
                   units_parse_u64(argv[i + 1], &n) && n > 0 &&
                   n <= BENCH_RUNS_MAX) {
            n_runs = (unsigned)n;
        } else {
            bench_die("usage: sos_disk [--dir DIR] [--size SIZE] [--runs N] "
                      "[RECORD_SIZE...]");
        }
    }
    if (i < argc) {
        sizes = (const char *const *)(argv + i);
        n_sizes = (unsigned)(argc - i);
    }
    dir = bench_dir(dir);
    data = malloc(DATA_SIZE);
    if (data == NULL) {
        bench_die("no memory");
    }
    bench_fill(data, DATA_SIZE, 3);
    s = node_new(dir);
    bare = bare_disk_new(dir, BLOCK);
    for (unsigned k = 0; k < n_sizes; k++) {
        char digits[32];
        uint64_t size = 0;

        /* "100B" is the name of 100. */
        (void)snprintf(digits, sizeof digits, "%.*s",
                       (int)(strlen(sizes[k]) -
                             (strcspn(sizes[k], "KMGkmg") == strlen(sizes[k]) &&
                              strchr(sizes[k], 'B') != NULL)),
                       sizes[k]);
        if (!units_parse_size(digits, &size) || size == 0 || size > DATA_SIZE ||
            size > total) {
            bench_die("%s: not a size of records", sizes[k]);
        }
        run_size(s, bare, sizes[k], (size_t)size);
    }
    bare_disk_free(bare);
    sos_free(s);
    return 0;
}
