#include "bench/lib/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATH_MAX_HERE 4096

extern char **environ;

static const char *self = "bench";
static volatile pid_t children[BENCH_CHILDREN_MAX];
static pid_t main_pid;
static char own_dir[PATH_MAX_HERE];

/* --- the end ----------------------------------------------------------------
 */

static void kill_children(void)
{
    for (unsigned i = 0; i < BENCH_CHILDREN_MAX; i++) {
        if (children[i] > 0) {
            (void)kill(children[i], SIGKILL);
        }
    }
}

static void remove_dir(void)
{
    char *argv[] = {"rm", "-rf", "--", own_dir, NULL};
    pid_t pid;

    if (own_dir[0] != '\0' &&
        posix_spawn(&pid, "/bin/rm", NULL, NULL, argv, environ) == 0) {
        (void)waitpid(pid, NULL, 0);
    }
}

static void at_exit(void)
{
    if (getpid() == main_pid) {
        kill_children();
        for (unsigned i = 0; i < BENCH_CHILDREN_MAX; i++) {
            if (children[i] > 0) {
                (void)waitpid(children[i], NULL, 0);
            }
        }
        remove_dir();
    }
}

static void on_signal(int sig)
{
    kill_children();
    remove_dir(); /* posix_spawn and waitpid are safe enough here. */
    _exit(128 + sig);
}

void bench_init(const char *argv0)
{
    static const int ends[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    const char *slash = strrchr(argv0, '/');

    self = slash != NULL ? slash + 1 : argv0;
    main_pid = getpid();
    for (unsigned i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        struct sigaction sa;

        memset(&sa, 0, sizeof sa);
        sa.sa_handler = on_signal;
        (void)sigaction(ends[i], &sa, NULL);
    }
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    (void)atexit(at_exit);
}

void bench_die(const char *fmt, ...)
{
    va_list ap;

    (void)fprintf(stderr, "%s: ", self);
    va_start(ap, fmt);
    (void)vfprintf(stderr, fmt, ap);
    va_end(ap);
    (void)fputc('\n', stderr);
    exit(1);
}

/* --- results ----------------------------------------------------------------
 */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(const double *values, unsigned n)
{
    double sorted[BENCH_RUNS_MAX];

    memcpy(sorted, values, n * sizeof *values);
    qsort(sorted, n, sizeof *sorted, by_value);
    return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

void bench_add(struct bench_case *c, double ours, double limit)
{
    if (c->n == BENCH_RUNS_MAX) {
        bench_die("more than %d runs", BENCH_RUNS_MAX);
    }
    if (!(ours > 0) || !(limit > 0)) {
        bench_die("%s: a run has measured nothing", c->name);
    }
    c->ours[c->n] = ours;
    c->limit[c->n] = limit;
    c->n++;
    (void)fprintf(stderr, "%s: run %u: %.3f of %.3f %s\n", c->name, c->n, ours,
                  limit, c->unit);
}

void bench_print(const struct bench_case *c)
{
    double ours, limit;
    int digits;

    if (c->n == 0) {
        bench_die("%s: no runs", c->name);
    }
    ours = median(c->ours, c->n);
    limit = median(c->limit, c->n);
    digits = limit >= 1000 ? 0 : 3;
    printf("{\"case\":\"%s\",\"ours\":%.*f,\"limit\":%.*f,\"ratio\":%.3f,"
           "\"unit\":\"%s\",\"limit_is\":\"%s\"}\n",
           c->name, digits, ours, digits, limit, ours / limit, c->unit,
           c->limit_is);
    if (fflush(stdout) != 0) {
        bench_die("the result cannot be written");
    }
}

double bench_gb_per_s(uint64_t bytes, uint64_t ns)
{
    return ns == 0 ? 0 : (double)bytes / (double)ns;
}

/* --- children ---------------------------------------------------------------
 */

const char *bench_program(const char *name, char *out, size_t cap)
{
    char path[PATH_MAX_HERE];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    char *slash;

    if (n < 0) {
        bench_die("/proc/self/exe: %s", strerror(errno));
    }
    path[n] = '\0';
    slash = strrchr(path, '/');
    *slash = '\0';
    (void)snprintf(out, cap, "%s/%s", path, name);
    if (access(out, X_OK) != 0) {
        bench_die("%s: %s", out, strerror(errno));
    }
    return out;
}

static volatile pid_t *child_slot(pid_t pid)
{
    for (unsigned i = 0; i < BENCH_CHILDREN_MAX; i++) {
        if (children[i] == pid) {
            return &children[i];
        }
    }
    bench_die("more than %d children", BENCH_CHILDREN_MAX);
}

/* posix_spawn takes argv without const and does not write to it. */
static char *const *spawn_argv(const char *const argv[])
{
    union {
        const char *const *in;
        char *const *out;
    } u = {.in = argv};

    return u.out;
}

void bench_child_start(struct bench_child *c, const char *const argv[],
                       const char *err_path)
{
    volatile pid_t *slot = child_slot(0);
    posix_spawn_file_actions_t fa;
    int in[2], out[2], rc;
    pid_t pid;

    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) {
        bench_die("pipe: %s", strerror(errno));
    }
    (void)posix_spawn_file_actions_init(&fa);
    (void)posix_spawn_file_actions_adddup2(&fa, in[0], STDIN_FILENO);
    (void)posix_spawn_file_actions_adddup2(&fa, out[1], STDOUT_FILENO);
    if (err_path != NULL) {
        (void)posix_spawn_file_actions_addopen(
            &fa, STDERR_FILENO, err_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    }
    rc = posix_spawn(&pid, argv[0], &fa, NULL, spawn_argv(argv), environ);
    if (rc != 0) {
        bench_die("%s: %s", argv[0], strerror(rc));
    }
    *slot = pid;
    (void)posix_spawn_file_actions_destroy(&fa);
    close(in[0]);
    close(out[1]);
    *c = (struct bench_child){.pid = pid, .in = in[1], .out = out[0]};
}

void bench_child_line(struct bench_child *c, char *line, size_t cap)
{
    size_t n = 0;

    while (n + 1 < cap) {
        ssize_t got = read(c->out, line + n, 1);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            bench_die("a child process has failed");
        }
        if (line[n] == '\n') {
            break;
        }
        n++;
    }
    line[n] = '\0';
}

double bench_child_number(struct bench_child *c)
{
    char line[64], *end;
    double value;

    bench_child_line(c, line, sizeof line);
    value = strtod(line, &end);
    if (end == line || *end != '\0') {
        bench_die("a child process said \"%s\"", line);
    }
    return value;
}

static int reap(struct bench_child *c)
{
    volatile pid_t *slot = child_slot(c->pid);
    int status;

    while (waitpid(c->pid, &status, 0) < 0) {
        if (errno != EINTR) {
            bench_die("waitpid: %s", strerror(errno));
        }
    }
    *slot = 0;
    close(c->out);
    if (c->in >= 0) {
        close(c->in);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int bench_child_wait(struct bench_child *c, char *text, size_t cap)
{
    static char scratch[(size_t)64 << 10];
    size_t len = 0;
    ssize_t n;

    close(c->in);
    c->in = -1;
    while ((n = read(c->out, scratch, sizeof scratch)) != 0) {
        size_t keep = n < 0 ? 0 : (size_t)n;

        if (n < 0 && errno != EINTR) {
            bench_die("reading from a child: %s", strerror(errno));
        }
        keep = text == NULL ? 0 : keep < cap - 1 - len ? keep : cap - 1 - len;
        if (keep > 0) {
            memcpy(text + len, scratch, keep);
            len += keep;
        }
    }
    if (text != NULL) {
        text[len] = '\0';
    }
    return reap(c);
}

void bench_child_end(struct bench_child *c)
{
    int status = bench_child_wait(c, NULL, 0);

    if (status != 0) {
        bench_die("a child process has ended with status %d", status);
    }
}

void bench_child_kill(struct bench_child *c)
{
    (void)kill(c->pid, SIGTERM);
    (void)reap(c);
}

void bench_await_parent(void)
{
    char c;
    ssize_t n;

    do {
        n = read(STDIN_FILENO, &c, 1);
    } while (n > 0 || (n < 0 && errno == EINTR));
}

/* --- what runs need ---------------------------------------------------------
 */

const char *bench_dir(const char *base)
{
    const char *tmp = getenv("TMPDIR");

    base = base != NULL ? base : tmp != NULL && tmp[0] != '\0' ? tmp : "/tmp";
    (void)snprintf(own_dir, sizeof own_dir, "%s/hedge-bench.XXXXXX", base);
    if (mkdtemp(own_dir) == NULL) {
        char name[PATH_MAX_HERE];

        (void)snprintf(name, sizeof name, "%s", own_dir);
        own_dir[0] = '\0';
        bench_die("%s: %s", name, strerror(errno));
    }
    return own_dir;
}

/* The sum of the values, in KiB, of the named lines of a file of /proc. */
static uint64_t proc_kib(const char *path, const char *const names[])
{
    FILE *f = fopen(path, "re");
    uint64_t sum = 0;
    char line[256];

    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        for (unsigned i = 0; names[i] != NULL; i++) {
            size_t n = strlen(names[i]);

            if (strncmp(line, names[i], n) == 0 && line[n] == ':') {
                sum += strtoull(line + n + 1, NULL, 10);
            }
        }
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    return sum << 10;
}

uint64_t bench_resident(pid_t pid)
{
    static const char *const names[] = {"RssAnon", "RssShmem", NULL};
    char path[64];

    (void)snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    return proc_kib(path, names);
}

uint64_t bench_memory_available(void)
{
    static const char *const names[] = {"MemAvailable", NULL};

    return proc_kib("/proc/meminfo", names);
}

#define HUGE_PAGE ((size_t)2 << 20)

void *bench_pages(size_t len)
{
    void *p;

    len = (len + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    p = aligned_alloc(HUGE_PAGE, len);
    if (p == NULL) {
        bench_die("no memory");
    }
    (void)madvise(p, len, MADV_HUGEPAGE);
    return p;
}

void bench_fill(void *data, size_t len, uint64_t seed)
{
    unsigned char *p = data;
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;

    while (len > 0) {
        size_t n = len < sizeof x ? len : sizeof x;

        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(p, &x, n);
        p += n;
        len -= n;
    }
}
