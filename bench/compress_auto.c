/* What `--compress auto` costs: the time to write lines into a store that lives
 * on disk and to read them all back, with `auto` and with `none`, in turns. Of
 * text that shrinks well, and of bytes that do not. The rule of `auto` is that
 * it may only ever save time.
 *
 *   compress_auto [--dir DIR] [--size SIZE] [--runs N] */
#include "bench/lib/bench.h"
#include "store/base/clock.h"
#include "store/base/units.h"
#include "store/reader.h"
#include "store/sos.h"
#include "store/writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK ((size_t)1 << 20)
#define MEM_BLOCKS 64
#define DATA_SIZE ((size_t)64 << 20)
#define TEXT_MIN ((size_t)1 << 20)

static uint64_t total = (uint64_t)1 << 30;
static unsigned n_runs = BENCH_RUNS;
static char *data;
static size_t data_len;
static uint64_t generation;

static void check(int rv, const char *what, const struct hedge_error *e)
{
    if (rv != 0) {
        bench_die("%s: %s", what,
                  e->code == rv && e->text[0] != '\0' ? e->text
                                                      : hedge_strerror(rv));
    }
}

/* --- what is written --------------------------------------------------------
 */

/* The descriptions of all packages, where this system has them. */
static bool text_of_packages(void)
{
    static const char *const argv[] = {"/usr/bin/apt-cache", "dumpavail", NULL};
    struct bench_child c;

    if (access(argv[0], X_OK) != 0) {
        return false;
    }
    bench_child_start(&c, argv, "/dev/null");
    return bench_child_wait(&c, data, DATA_SIZE) == 0 &&
           (data_len = strlen(data)) >= TEXT_MIN;
}

/* Words of a small language; as good as text for a compressor. */
static void text_of_words(void)
{
    static const char *const words[] = {
        "block", "writes", "the",  "store",  "of",   "memory", "a",
        "node",  "reader", "and",  "spills", "to",   "disk",   "record",
        "which", "peers",  "then", "keeps",  "lease"};
    uint64_t x = 88172645463325252u;

    data_len = 0;
    while (data_len + 64 < DATA_SIZE) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data_len +=
            (size_t)snprintf(data + data_len, 64, "%s%s",
                             words[x % (sizeof words / sizeof words[0])],
                             x >> 60 == 0   ? "\n"
                             : x >> 58 == 1 ? " 4711 "
                                            : " ");
    }
}

static void make_text(void)
{
    if (!text_of_packages()) {
        text_of_words();
    }
}

static void make_noise(void)
{
    bench_fill(data, DATA_SIZE, 5);
    data_len = DATA_SIZE;
}

/* --- the job ----------------------------------------------------------------
 */

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

static uint64_t write_lines(struct sos_store *store)
{
    struct hedge_error e = {.code = 0};
    struct manifest counted;
    struct sink *sink;
    struct writer w;
    uint64_t done = 0;
    size_t at = 0;

    check(sos_sink_open(store, &sink, &e), "the writer", &e);
    writer_init(&w, sink);
    while (done < total) {
        const char *end = memchr(data + at, '\n', data_len - at);
        size_t len = (end != NULL ? (size_t)(end - data) + 1 : data_len) - at;

        check(writer_write(&w, data + at, len), "writing", &w.error);
        done += len;
        at = at + len < data_len ? at + len : 0;
    }
    check(writer_finish(&w, &counted), "writing", &w.error);
    check(sos_sink_close(sink, &counted, &counted, &e), "closing", &e);
    return done;
}

static void read_lines(struct sos_store *store, uint64_t bytes)
{
    struct sos_read_options o = {.discard = false};
    struct hedge_error e = {.code = 0};
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
    if (r.seen.bytes != bytes) {
        bench_die("not all was read");
    }
    reader_release(&r);
}

/* Seconds. The store's own memory limit keeps all but a block on disk; its
 * files are gone when it returns. */
static double run(struct sos *s, enum sos_compression compression)
{
    struct sos_store_options o = {.mem_limit = 1,
                                  .ttl_ms = 60000,
                                  .replicas = 1,
                                  .compression = compression};
    struct hedge_error e = {.code = 0};
    struct sos_store *store;
    struct sos_usage u;
    uint64_t start, ns;

    check(sos_create(s, "bench", ++generation, &o, &store, &e), "the store",
          &e);
    start = clock_mono_ns();
    read_lines(store, write_lines(store));
    ns = clock_mono_ns() - start;
    sos_remove(store);
    sos_store_unref(store);
    for (sos_usage(s, &u); u.disk.used > 0; sos_usage(s, &u)) {
        clock_sleep_ms(1);
    }
    return (double)ns / 1e9;
}

static void run_case(struct sos *s, const char *name)
{
    struct bench_case c = {.unit = "s",
                           .limit_is = "the same job with none; at most 1.05"};

    (void)snprintf(c.name, sizeof c.name, "%s", name);
    (void)run(s, SOS_COMPRESS_AUTO); /* It learns how fast the disk is. */
    for (unsigned i = 0; i < n_runs; i++) {
        bool first = i % 2 == 0;
        double a = run(s, first ? SOS_COMPRESS_AUTO : SOS_COMPRESS_NONE);
        double b = run(s, first ? SOS_COMPRESS_NONE : SOS_COMPRESS_AUTO);

        bench_add(&c, first ? a : b, first ? b : a);
    }
    bench_print(&c);
}

int main(int argc, char **argv)
{
    const char *dir = NULL;
    struct sos *s;

    bench_init(argv[0]);
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        uint64_t n = 0;

        if (strcmp(argv[i], "--dir") == 0 && value[0] != '\0') {
            dir = value;
        } else if (strcmp(argv[i], "--size") == 0 &&
                   units_parse_size(value, &n) && n > 0) {
            total = n;
        } else if (strcmp(argv[i], "--runs") == 0 &&
                   units_parse_u64(value, &n) && n > 0 && n <= BENCH_RUNS_MAX) {
            n_runs = (unsigned)n;
        } else {
            bench_die("usage: compress_auto [--dir DIR] [--size SIZE] "
                      "[--runs N]");
        }
    }
    dir = bench_dir(dir);
    data = malloc(DATA_SIZE);
    if (data == NULL) {
        bench_die("no memory");
    }
    s = node_new(dir);
    make_text();
    run_case(s, "compress_auto_text");
    make_noise();
    run_case(s, "compress_auto_random");
    sos_free(s);
    return 0;
}
