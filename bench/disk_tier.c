/* Blocks to disk and back through the tier, beside a bare loop of io_uring and
 * O_DIRECT that does the same reads and writes and nothing else.
 *
 *   disk_tier [DIRECTORY [MIB [RUNS]]]
 *
 * Both ways run in turns; the medians are printed, one JSON line a case. */
#include "store/disk.h"

#include "store/base/clock.h"
#include "store/base/log.h"

#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH DISK_INFLIGHT
#define RUNS_MAX 99
#define GENERATION 1

static const size_t block = (size_t)1 << 20;
static unsigned n_blocks = 1024, n_runs = 5;
static char dir[4096];
static unsigned char *buffers; /* DEPTH blocks. */

static void die(const char *what, const char *why)
{
    fprintf(stderr, "disk_tier: %s: %s\n", what, why);
    exit(1);
}

static double rate(uint64_t ns)
{
    return (double)block * n_blocks / (double)ns;
}

/* --- the limit: a bare ring ----------------------------------------------- */

static int bare_open(unsigned n)
{
    char path[4200];
    int fd;

    (void)snprintf(path, sizeof path, "%s/bare-%u", dir, n);
    fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0) {
        die(path, "cannot be opened with O_DIRECT");
    }
    return fd;
}

static void bare_unlink(unsigned n)
{
    char path[4200];

    (void)snprintf(path, sizeof path, "%s/bare-%u", dir, n);
    (void)unlink(path);
}

static unsigned per_file(void)
{
    return (unsigned)(DISK_EXTENT_MAX / block);
}

static void bare_submit(struct io_uring *ring, const int *fds, unsigned i,
                        unsigned slot, bool write)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    void *data = buffers + slot * block;
    uint64_t at = (uint64_t)(i % per_file()) * block;
    int fd = fds[i / per_file()];

    if (write) {
        io_uring_prep_write(sqe, fd, data, (unsigned)block, at);
    } else {
        io_uring_prep_read(sqe, fd, data, (unsigned)block, at);
    }
    sqe->user_data = slot;
    (void)io_uring_submit(ring);
}

static uint64_t bare_pass(struct io_uring *ring, const int *fds, bool write)
{
    uint64_t start = clock_mono_ns();
    unsigned submitted = 0, ended = 0;

    while (ended < n_blocks) {
        struct io_uring_cqe *cqe;
        unsigned slot = submitted;

        if (submitted >= DEPTH || submitted == n_blocks) {
            if (io_uring_wait_cqe(ring, &cqe) != 0 || cqe->res != (int)block) {
                die("bare ring", "a request failed");
            }
            slot = (unsigned)cqe->user_data;
            io_uring_cqe_seen(ring, cqe);
            ended++;
        }
        if (submitted < n_blocks) {
            bare_submit(ring, fds, submitted++, slot, write);
        }
    }
    return clock_mono_ns() - start;
}

static void bare_run(double *write_rate, double *read_rate)
{
    unsigned n_files = (n_blocks + per_file() - 1) / per_file();
    struct io_uring ring;
    int fds[64] = {0};

    if (n_files > 64 || io_uring_queue_init(DEPTH, &ring, 0) != 0) {
        die("bare ring", "cannot be set up");
    }
    for (unsigned i = 0; i < n_files; i++) {
        fds[i] = bare_open(i);
        if (fallocate(fds[i], 0, 0, (off_t)DISK_EXTENT_MAX) != 0) {
            die("bare file", "cannot be allocated");
        }
    }
    *write_rate = rate(bare_pass(&ring, fds, true));
    *read_rate = rate(bare_pass(&ring, fds, false));
    for (unsigned i = 0; i < n_files; i++) {
        close(fds[i]);
        bare_unlink(i);
    }
    io_uring_queue_exit(&ring);
}

/* --- ours -------------------------------------------------------------------
 */

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
        die("tier", req->error.text);
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
            die("tier", s->req.error.text);
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

static void tier_run(struct tier *t, double *write_rate, double *read_rate)
{
    *write_rate = rate(tier_pass(t, true));
    *read_rate = rate(tier_pass(t, false));
    tier_drop_store(t, GENERATION);
}

/* --- both -------------------------------------------------------------------
 */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *values)
{
    qsort(values, n_runs, sizeof *values, by_value);
    return values[n_runs / 2];
}

static void print_case(const char *name, double *ours, double *limit)
{
    double o = median(ours), l = median(limit);

    printf("{\"case\":\"%s\",\"ours\":%.3f,\"limit\":%.3f,\"ratio\":%.3f,"
           "\"unit\":\"GB/s\",\"limit_is\":\"bare io_uring O_DIRECT, same "
           "sizes and depth\"}\n",
           name, o, l, o / l);
}

static void prepare(int argc, char **argv)
{
    const char *base = argc > 1 ? argv[1] : ".";

    n_blocks = argc > 2 ? (unsigned)atoi(argv[2]) : n_blocks;
    n_runs = argc > 3 ? (unsigned)atoi(argv[3]) : n_runs;
    if (n_blocks == 0 || n_runs == 0 || n_runs > RUNS_MAX) {
        die("usage", "disk_tier [DIRECTORY [MIB [RUNS]]]");
    }
    (void)snprintf(dir, sizeof dir, "%s/bench-disk", base);
    if (mkdir(dir, 0700) != 0 && access(dir, W_OK) != 0) {
        die(dir, "cannot be made");
    }
    buffers = aligned_alloc(4096, DEPTH * block);
    places = calloc(n_blocks, sizeof *places);
    if (buffers == NULL || places == NULL) {
        die("memory", "none");
    }
    memset(buffers, 0x5a, DEPTH * block);
    sem_init(&n_free, 0, 0);
    for (unsigned i = 0; i < DEPTH; i++) {
        slots[i].req.data = buffers + i * block;
        slots[i].req.cb = on_end;
        slots[i].req.ctx = &slots[i];
        slot_free(&slots[i]);
    }
}

int main(int argc, char **argv)
{
    static double ours_w[RUNS_MAX], ours_r[RUNS_MAX];
    static double bare_w[RUNS_MAX], bare_r[RUNS_MAX];
    char tier_dir[4200];
    struct disk_options o = {.dir = tier_dir, .limit = UINT64_MAX / 2};
    struct hedge_error e;
    struct tier *t;

    prepare(argc, argv);
    (void)snprintf(tier_dir, sizeof tier_dir, "%s/tier", dir);
    if (disk_new(&o, &t, &e) != 0) {
        die("tier", e.text);
    }
    for (unsigned i = 0; i < n_runs; i++) {
        if (i % 2 == 0) {
            bare_run(&bare_w[i], &bare_r[i]);
        }
        tier_run(t, &ours_w[i], &ours_r[i]);
        if (i % 2 == 1) {
            bare_run(&bare_w[i], &bare_r[i]);
        }
        fprintf(stderr, "run %u: write %.2f of %.2f, read %.2f of %.2f\n", i,
                ours_w[i], bare_w[i], ours_r[i], bare_r[i]);
    }
    print_case("disk_write_1MiB", ours_w, bare_w);
    print_case("disk_read_1MiB", ours_r, bare_r);
    tier_free(t);
    (void)rmdir(tier_dir);
    (void)rmdir(dir);
    return 0;
}
