/* bench.h - what the programs of bench/ share: runs in turns, medians, one JSON
 * line a case, and child processes that are a copy of the program in another
 * role or one of our own programs.
 *
 * Ownership: children are ended by bench_child_end() or bench_child_wait();
 *            those that are left when the program ends are killed.
 * Threads:   the main thread alone.
 * Errors:    a bench that cannot measure has nothing to say: whatever fails
 *            ends the program with a line on stderr and exit status 1, and no
 *            case is printed that was not measured in every run.
 * Units:     bytes, nanoseconds; rates in GB/s are 1e9 bytes a second.
 * Limits:    BENCH_RUNS_MAX runs, BENCH_CHILDREN_MAX children at a time. */
#ifndef BENCH_LIB_BENCH_H
#define BENCH_LIB_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BENCH_RUNS 5
#define BENCH_RUNS_MAX 99
#define BENCH_CHILDREN_MAX 16
#define BENCH_ADDRESS_MAX 160

/* First thing in main(). `argv0` is used in messages. Children die with the
 * program, also when it is ended by a signal. */
void bench_init(const char *argv0);
void bench_die(const char *fmt, ...)
    __attribute__((format(printf, 1, 2), noreturn));

/* --- results -------------------------------------------------------------- */

struct bench_case {
    char name[64];
    const char *unit, *limit_is;
    unsigned n;
    double ours[BENCH_RUNS_MAX], limit[BENCH_RUNS_MAX];
};

/* One run of both; said on stderr as well. */
void bench_add(struct bench_case *c, double ours, double limit);
/* The JSON line with the medians. */
void bench_print(const struct bench_case *c);
double bench_gb_per_s(uint64_t bytes, uint64_t ns);

/* --- children ------------------------------------------------------------- */

struct bench_child {
    pid_t pid;
    int in, out; /* Its stdin and stdout; a child that serves ends with in. */
};

/* The path of a program that was built beside this one. */
const char *bench_program(const char *name, char *out, size_t cap);
/* argv[0] is the path; "/proc/self/exe" is this program. `err_path`: where its
 * stderr goes; NULL: with ours. */
void bench_child_start(struct bench_child *c, const char *const argv[],
                       const char *err_path);
/* The next line of its output, without the newline. */
void bench_child_line(struct bench_child *c, char *line, size_t cap);
double bench_child_number(struct bench_child *c);
/* All of its output; the bytes are counted and, if `text` is not NULL, kept as
 * far as they fit. Then wait: its exit status, 128 + N for a signal. */
int bench_child_wait(struct bench_child *c, char *text, size_t cap);
/* It was told to end, by the end of its input, and must do so well. */
void bench_child_end(struct bench_child *c);
/* SIGTERM, wait. */
void bench_child_kill(struct bench_child *c);

/* For a child that serves: until the parent closes its input. */
void bench_await_parent(void);

/* --- what runs need ------------------------------------------------------- */

/* A directory of its own, removed with all it holds when the program ends.
 * `base` NULL: $TMPDIR or /tmp. */
const char *bench_dir(const char *base);
/* RssAnon + RssShmem of a process, in bytes. */
uint64_t bench_resident(pid_t pid);
/* MemAvailable, in bytes. */
uint64_t bench_memory_available(void);
/* Memory in huge pages where they can be had, as the arena's is; free() it. */
void *bench_pages(size_t len);
/* Bytes that no compressor makes smaller. */
void bench_fill(void *data, size_t len, uint64_t seed);

#endif
