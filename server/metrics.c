/* metrics.c - /metrics in the text format of Prometheus, /livez and /readyz. */
#include "server/http_internal.h"

#include "server/http_parse.h"
#include "store/base/clock.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* --- the format --- */

struct page {
    struct strbuf text;
    const struct stat_info *last;
};

static void add_label(struct strbuf *b, const char *name, const char *value)
{
    strbuf_addf(b, "{%s=\"", name);
    for (; *value != '\0'; value++) {
        switch (*value) {
        case '\\':
        case '"':
            strbuf_addf(b, "\\%c", *value);
            break;
        case '\n':
            strbuf_add(b, "\\n", 2);
            break;
        default:
            strbuf_add(b, value, 1);
        }
    }
    strbuf_add(b, "\"}", 2);
}

static void add_value(struct strbuf *b, enum stat_scale scale, uint64_t v)
{
    switch (scale) {
    case STAT_MS:
        strbuf_addf(b, " %" PRIu64 ".%03u\n", v / 1000, (unsigned)(v % 1000));
        break;
    case STAT_NS:
        strbuf_addf(b, " %" PRIu64 ".%09u\n", v / 1000000000u,
                    (unsigned)(v % 1000000000u));
        break;
    default:
        strbuf_addf(b, " %" PRIu64 "\n", v);
    }
}

static void add_figure(void *ctx, const struct stat_info *info,
                       const char *label, uint64_t value)
{
    struct page *p = ctx;

    if (info != p->last) {
        strbuf_addf(&p->text, "# HELP %s %s\n# TYPE %s %s\n", info->name,
                    info->help, info->name,
                    info->type == STAT_COUNTER ? "counter" : "gauge");
        p->last = info;
    }
    strbuf_addf(&p->text, "%s", info->name);
    if (info->label != NULL) {
        add_label(&p->text, info->label, label);
    }
    add_value(&p->text, info->scale, value);
}

/* --- the process and the server --- */

#define OWN(X)                                                              \
    X(CPU, "process_cpu_seconds_total", COUNTER, MS, NULL,                  \
      "Time on processors, user and system.")                               \
    X(START, "process_start_time_seconds", GAUGE, MS, NULL,                 \
      "When the process started, Unix time.")                               \
    X(RESIDENT, "process_resident_memory_bytes", GAUGE, PLAIN, NULL,        \
      "Resident memory, mapped files included.")                            \
    X(ANONYMOUS, "hedge_process_anonymous_bytes", GAUGE, PLAIN, NULL,       \
      "Resident memory that counts against the limits: RssAnon, RssShmem.") \
    X(FILES, "process_open_fds", GAUGE, PLAIN, NULL, "Open files.")         \
    X(FILES_MAX, "process_max_fds", GAUGE, PLAIN, NULL,                     \
      "How many there may be.")                                             \
    X(OPEN, "hedge_http_connections", GAUGE, PLAIN, NULL,                   \
      "HTTP: connections.")                                                 \
    X(OPEN_MAX, "hedge_http_connections_limit", GAUGE, PLAIN, NULL,         \
      "HTTP: how many there may be.")                                       \
    X(WORKING, "hedge_http_requests", GAUGE, PLAIN, NULL,                   \
      "HTTP: requests being answered.")                                     \
    X(ACCEPTED, "hedge_http_accepted_total", COUNTER, PLAIN, NULL,          \
      "HTTP: connections accepted.")                                        \
    X(EVICTED, "hedge_http_evicted_total", COUNTER, PLAIN, NULL,            \
      "HTTP: slow connections that made way.")                              \
    X(TIMED_OUT, "hedge_http_timed_out_total", COUNTER, PLAIN, NULL,        \
      "HTTP: connections that took too long.")                              \
    X(REQUESTS, "hedge_http_requests_total", COUNTER, PLAIN, "path",        \
      "HTTP: requests.")                                                    \
    X(RESPONSES, "hedge_http_responses_total", COUNTER, PLAIN, "class",     \
      "HTTP: requests that are over, by the answer's status.")              \
    X(BODY, "hedge_http_body_bytes_total", COUNTER, PLAIN, NULL,            \
      "HTTP: bytes of bodies received.")

enum own {
#define X(id, name, type, scale, label, help) OWN_##id,
    OWN(X)
#undef X
};

static const struct stat_info infos[] = {
#define X(id, name, type, scale, label, help) \
    [OWN_##id] = {name, STAT_##type, STAT_##scale, label, help},
    OWN(X)
#undef X
};

static void put(struct page *p, enum own id, const char *label, uint64_t value)
{
    add_figure(p, &infos[id], label, value);
}

/* The sum of the lines "NAME: n kB" of these names. */
static uint64_t status_kib(const char *a, const char *b)
{
    FILE *f = fopen("/proc/self/status", "re");
    uint64_t sum = 0;
    char line[256];

    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        size_t n = strcspn(line, ":");

        line[n] = '\0';
        if (strcmp(line, a) == 0 || strcmp(line, b) == 0) {
            sum += strtoull(line + n + 1, NULL, 10);
        }
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    return sum;
}

static uint64_t open_files(void)
{
    DIR *d = opendir("/proc/self/fd");
    uint64_t n = 0;

    while (d != NULL && readdir(d) != NULL) {
        n++;
    }
    if (d != NULL) {
        (void)closedir(d);
    }
    return n > 3 ? n - 3 : 0; /* ".", "..", and the folder itself. */
}

static uint64_t timeval_ms(const struct timeval *t)
{
    return (uint64_t)t->tv_sec * 1000 + (uint64_t)t->tv_usec / 1000;
}

/* Unix time in ms; field 22 of the file is in ticks since the boot. */
static uint64_t start_time(void)
{
    FILE *f = fopen("/proc/self/stat", "re");
    uint64_t ticks = 0, since_boot;
    char line[1024], *at = NULL, *rest = NULL;

    if (f != NULL && fgets(line, sizeof line, f) != NULL) {
        at = strrchr(line, ')'); /* The name before may hold anything. */
    }
    for (unsigned field = 2; at != NULL && field < 22; field++) {
        at = strchr(at + 1, ' ');
    }
    if (at != NULL) {
        ticks = strtoull(at + 1, &rest, 10);
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    since_boot = ticks * 1000 / (uint64_t)sysconf(_SC_CLK_TCK);
    return clock_wall_ms() - clock_boot_ms() + since_boot;
}

static void process_figures(struct page *p)
{
    struct rusage u;
    struct rlimit l;

    (void)getrusage(RUSAGE_SELF, &u);
    put(p, OWN_CPU, NULL, timeval_ms(&u.ru_utime) + timeval_ms(&u.ru_stime));
    put(p, OWN_START, NULL, start_time());
    put(p, OWN_RESIDENT, NULL, status_kib("VmRSS", "") * 1024);
    put(p, OWN_ANONYMOUS, NULL, status_kib("RssAnon", "RssShmem") * 1024);
    put(p, OWN_FILES, NULL, open_files());
    if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
        put(p, OWN_FILES_MAX, NULL, (uint64_t)l.rlim_cur);
    }
}

static void http_figures(struct page *p, struct http *h)
{
    static const char *const classes[6] = {"none", "1xx", "2xx",
                                           "3xx",  "4xx", "5xx"};
    struct http_use u;

    http_use(h, &u);
    put(p, OWN_OPEN, NULL, u.connections);
    put(p, OWN_OPEN_MAX, NULL, HTTP_CONNECTIONS_MAX);
    put(p, OWN_WORKING, NULL, u.working);
    put(p, OWN_ACCEPTED, NULL, u.accepted);
    put(p, OWN_EVICTED, NULL, u.evicted);
    put(p, OWN_TIMED_OUT, NULL, u.timed_out);
    for (size_t i = 0; i < http_n_routes; i++) {
        put(p, OWN_REQUESTS, http_routes[i].path, u.requests[i]);
    }
    put(p, OWN_REQUESTS, "other", u.requests[HTTP_ROUTES_MAX]);
    for (unsigned i = 0; i < 6; i++) {
        put(p, OWN_RESPONSES, classes[i], u.responses[i]);
    }
    put(p, OWN_BODY, NULL, u.body_bytes);
}

void http_metrics(struct http_request *r)
{
    struct page p = {.last = NULL};

    strbuf_init(&p.text);
    stats_each(r->node, add_figure, &p);
    process_figures(&p);
    http_figures(&p, r->http);
    http_answer_strbuf(r, MHD_HTTP_OK, METRICS_TYPE, &p.text);
}

/* --- probes --- */

static void answer_checks(struct http_request *r, const char *path,
                          unsigned kinds)
{
    bool verbose =
        MHD_lookup_connection_value_n(r->connection, MHD_GET_ARGUMENT_KIND,
                                      "verbose", 7, NULL, NULL) == MHD_YES;
    const char *exclude = http_query(r, "exclude");
    struct node_check checks[NODE_CHECKS_MAX];
    size_t n = node_checks(r->node, kinds, checks);
    bool ok = true;
    struct strbuf b;

    strbuf_init(&b);
    for (size_t i = 0; i < n; i++) {
        const struct node_check *c = &checks[i];
        bool left_out = http_is_among(exclude, c->name);

        ok = ok && (c->ok || left_out);
        if (left_out && verbose) {
            strbuf_addf(&b, "[+]%s left out\n", c->name);
        } else if (!left_out && c->ok && verbose) {
            strbuf_addf(&b, "[+]%s ok\n", c->name);
        } else if (!left_out && !c->ok) {
            strbuf_addf(&b, "[-]%s failed: ", c->name);
            http_add_escaped(&b, c->text, strlen(c->text));
            strbuf_add(&b, "\n", 1);
        }
    }
    if (verbose || !ok) {
        strbuf_addf(&b, "%s check %s\n", path, ok ? "passed" : "failed");
    } else {
        strbuf_addf(&b, "ok\n");
    }
    http_answer_strbuf(r, ok ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE,
                       HTTP_TEXT, &b);
}

void http_livez(struct http_request *r)
{
    answer_checks(r, "livez", NODE_CHECK_LIVE);
}

void http_readyz(struct http_request *r)
{
    answer_checks(r, "readyz", NODE_CHECK_READY);
}
