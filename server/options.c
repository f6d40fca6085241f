#include "server/options.h"

#include "server/handler_cmd.h"

#include "store/base/error.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX ((size_t)64 << 10)
#define CONFIG_DEPTH 4

enum kind { TEXT, SIZE, DURATION, FLAG, CUSTOM };

struct flag {
    const char *name;
    enum kind kind;
    const char *arg; /* For the help; NULL: takes none. */
    size_t at;       /* In struct options. */
    int (*parse)(struct options *o, const char *value, struct hedge_error *e);
    const char *help;
};

static int parse_io(struct options *o, const char *v, struct hedge_error *e)
{
    static const char *const names[] = {"auto", "uring", "threads"};

    for (unsigned i = 0; i < 3; i++) {
        if (strcmp(v, names[i]) == 0) {
            o->node.io = (enum hedge_io)i;
            return 0;
        }
    }
    return error_set(e, HEDGE_EINVAL,
                     "--io \"%s\": auto, uring or threads is wanted", v);
}

static int parse_log_level(struct options *o, const char *v,
                           struct hedge_error *e)
{
    return log_level_parse(v, &o->log_level)
               ? 0
               : error_set(e, HEDGE_EINVAL,
                           "--log-level \"%s\": debug, info, warn, error or "
                           "off is wanted",
                           v);
}

static int parse_log_format(struct options *o, const char *v,
                            struct hedge_error *e)
{
    o->log_json = strcmp(v, "json") == 0;
    return o->log_json || strcmp(v, "text") == 0
               ? 0
               : error_set(e, HEDGE_EINVAL,
                           "--log-format \"%s\": text or json is wanted", v);
}

static int parse_block_size(struct options *o, const char *v,
                            struct hedge_error *e)
{
    uint64_t n;

    if (!units_parse_size(v, &n) || n < ((uint64_t)64 << 10) ||
        n > ((uint64_t)4 << 20) || (n & (n - 1)) != 0) {
        return error_set(e, HEDGE_EINVAL,
                         "--block-size \"%s\": a power of two from 64K to 4M "
                         "is wanted",
                         v);
    }
    o->node.block_size = (size_t)n;
    return 0;
}

static int parse_line_protocol(struct options *o, const char *v,
                               struct hedge_error *e)
{
    o->node.line_protocol = strcmp(v, "on") == 0;
    return o->node.line_protocol || strcmp(v, "off") == 0
               ? 0
               : error_set(e, HEDGE_EINVAL,
                           "--line-protocol \"%s\": on or off is wanted", v);
}

static int parse_config(struct options *o, const char *path,
                        struct hedge_error *e);

#define NODE(field) offsetof(struct options, node.field)
#define OWN(field) offsetof(struct options, field)

static const struct flag flags[] = {
    {"--listen", TEXT, "HOST:PORT", NODE(listen), NULL,
     "the node's id and address (127.0.0.1:8080); :8080 finds the host"},
    {"--grpc", TEXT, "HOST:PORT", NODE(grpc_address), NULL,
     "gRPC address (same host, port + 1)"},
    {"--http", TEXT, "HOST:PORT", OWN(http), NULL,
     "demo endpoints, /metrics, /livez and /readyz (off)"},
    {"--group", TEXT, "NAME", NODE(group), NULL, "the group to join (default)"},
    {"--engine", TEXT, "URL", NODE(engine), NULL,
     "where the lease and the log live (lmdb:STATE/GROUP/engine)"},
    {"--data", TEXT, "DIR", NODE(data_dir), NULL,
     "this node's directory (STATE/GROUP/ID)"},
    {"--mem-limit", SIZE, "SIZE", NODE(mem_limit), NULL,
     "memory tier (a quarter of what is available)"},
    {"--disk-limit", SIZE, "SIZE", NODE(disk_limit), NULL,
     "disk tier (10G; 0 = none)"},
    {"--disk-reserve", SIZE, "SIZE", NODE(disk_reserve), NULL,
     "left free on the disk (1G or 5 %, at most half of what is free)"},
    {"--lend-mem", SIZE, "SIZE", NODE(lend_mem), NULL,
     "memory that other nodes may use (all of it)"},
    {"--lend-disk", SIZE, "SIZE", NODE(lend_disk), NULL,
     "disk that other nodes may use (all of it)"},
    {"--message-limit", SIZE, "SIZE", NODE(message_limit), NULL,
     "memory for messages, beside the memory tier (64M)"},
    {"--block-size", CUSTOM, "SIZE", 0, parse_block_size,
     "one for the whole group (1M)"},
    {"--lease", DURATION, "DUR", NODE(lease_ms), NULL,
     "the leader's lease (10s)"},
    {"--sync-interval", DURATION, "DUR", NODE(sync_interval_ms), NULL,
     "between reports of a member (1s)"},
    {"--block-lease", DURATION, "DUR", NODE(block_lease_ms), NULL,
     "keep blocks of silent owners for this long (two leases)"},
    {"--io", CUSTOM, "auto|uring|threads", 0, parse_io,
     "how the disk is used (auto)"},
    {"--leader-handler", TEXT, "CMD", offsetof(struct options, leader_cmd),
     NULL,
     "run for each message to the leader: it is CMD's input, the output is "
     "the reply (ID: MESSAGE)"},
    {"--broadcast-handler", TEXT, "CMD",
     offsetof(struct options, broadcast_cmd), NULL,
     "the same for each broadcast"},
    {"--line-protocol", CUSTOM, "on|off", 0, parse_line_protocol,
     "the reference's, on the --listen address (on)"},
    {"--insecure", FLAG, NULL, offsetof(struct options, insecure), NULL,
     "allow addresses that are not loopback, without TLS"},
    {"--config", CUSTOM, "FILE", 0, parse_config,
     "read flags from a file, one a line, # starts a comment"},
    {"--check-config", FLAG, NULL, 0, NULL, "check the flags and end"},
    {"--log-level", CUSTOM, "LEVEL", 0, parse_log_level,
     "debug, info, warn, error or off (info)"},
    {"--log-format", CUSTOM, "text|json", 0, parse_log_format,
     "of the log on stderr (text)"},
    {"--version", FLAG, NULL, 0, NULL, "print the version and end"},
    {"--help", FLAG, NULL, 0, NULL, "print this and end; -h does the same"},
};
#define N_FLAGS (sizeof flags / sizeof flags[0])

void options_help(FILE *out)
{
    fputs("usage: hedged [FLAG [VALUE]]...\n\n"
          "Runs one node of a hedge cluster in the foreground; logs to "
          "stderr.\nSIGTERM and SIGINT stop it cleanly. STATE is "
          "$XDG_STATE_HOME/hedge,\n~/.local/state/hedge, or as root "
          "/var/lib/hedge.\n\n",
          out);
    for (size_t i = 0; i < N_FLAGS; i++) {
        char left[64];

        (void)snprintf(left, sizeof left, "%s %s", flags[i].name,
                       flags[i].arg != NULL ? flags[i].arg : "");
        fprintf(out, "  %-26s %s\n", left, flags[i].help);
    }
    fputs("\nSizes: bytes or K, M, G (1024-based). Durations: ms, s, m, h.\n",
          out);
}

static int set_text(struct options *o, size_t at, const char *v,
                    struct hedge_error *e)
{
    char *copy = mem_strdup(v);
    const char *text = copy;

    if (copy == NULL || o->n_texts == sizeof o->texts / sizeof o->texts[0]) {
        mem_free(copy);
        return error_set(e, HEDGE_EINVAL, "too many flags");
    }
    o->texts[o->n_texts++] = copy;
    memcpy((char *)o + at, &text, sizeof text);
    return 0;
}

static int set_flag(struct options *o, const struct flag *f)
{
    bool yes = true;

    if (strcmp(f->name, "--help") == 0) {
        o->action = OPTIONS_HELP;
    } else if (strcmp(f->name, "--version") == 0) {
        o->action = OPTIONS_VERSION;
    } else if (strcmp(f->name, "--check-config") == 0) {
        o->action = o->action == OPTIONS_RUN ? OPTIONS_CHECK : o->action;
    } else {
        memcpy((char *)o + f->at, &yes, sizeof yes);
    }
    return 0;
}

static int set(struct options *o, const struct flag *f, const char *v,
               struct hedge_error *e)
{
    uint64_t n = 0;

    switch (f->kind) {
    case TEXT:
        return set_text(o, f->at, v, e);
    case SIZE:
        if (!units_parse_size(v, &n)) {
            return error_set(e, HEDGE_EINVAL,
                             "%s \"%s\" is not a size such as 512M or 4G",
                             f->name, v);
        }
        break;
    case DURATION:
        if (!units_parse_duration_ms(v, &n) || n == 0) {
            return error_set(e, HEDGE_EINVAL,
                             "%s \"%s\" is not a duration such as 500ms or 10s",
                             f->name, v);
        }
        break;
    case FLAG:
        return set_flag(o, f);
    case CUSTOM:
        return f->parse(o, v, e);
    }
    memcpy((char *)o + f->at, &n, sizeof n);
    return 0;
}

static const struct flag *find_flag(const char *name, size_t len)
{
    for (size_t i = 0; i < N_FLAGS; i++) {
        if (strlen(flags[i].name) == len &&
            strncmp(flags[i].name, name, len) == 0) {
            return &flags[i];
        }
    }
    return NULL;
}

/* "--flag value", "--flag=value"; returns how many words were used. */
static int parse_word(struct options *o, const char *word, const char *next,
                      struct hedge_error *e)
{
    const char *eq = strchr(word, '=');
    size_t len = eq != NULL ? (size_t)(eq - word) : strlen(word);
    const struct flag *f = find_flag(word, len);
    const char *value = eq != NULL ? eq + 1 : next;

    if (f == NULL) {
        return error_set(e, HEDGE_EINVAL,
                         "unknown flag \"%s\"; hedged --help lists them", word);
    }
    if (f->arg == NULL && eq != NULL) {
        return error_set(e, HEDGE_EINVAL, "%s takes no value", f->name);
    }
    if (f->arg != NULL && value == NULL) {
        return error_set(e, HEDGE_EINVAL, "%s wants a value: %s", f->name,
                         f->arg);
    }
    if (set(o, f, value, e) != 0) {
        return HEDGE_EINVAL;
    }
    return f->arg != NULL && eq == NULL ? 2 : 1;
}

static int parse_line(struct options *o, char *line, struct hedge_error *e)
{
    char *name = line + strspn(line, " \t"), *value = NULL;
    char word[64];
    size_t len;
    int rv;

    name[strcspn(name, "\r\n")] = '\0';
    if (name[0] == '\0' || name[0] == '#') {
        return 0;
    }
    len = strcspn(name, " \t=");
    if (name[len] != '\0') {
        name[len] = '\0';
        value = name + len + 1;
        value += strspn(value, " \t=");
        for (size_t n = strlen(value);
             n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t'); n--) {
            value[n - 1] = '\0';
        }
    }
    (void)snprintf(word, sizeof word, "%s%s",
                   strncmp(name, "--", 2) == 0 ? "" : "--", name);
    rv = parse_word(o, word, value, e);
    return rv < 0 ? rv : 0;
}

static int parse_config(struct options *o, const char *path,
                        struct hedge_error *e)
{
    static int depth;
    FILE *f = fopen(path, "re");
    char line[4096];
    unsigned number = 0;
    int rv = 0;

    if (f == NULL) {
        return error_set(e, HEDGE_EINVAL, "--config %s: %s", path,
                         strerror(errno));
    }
    if (++depth > CONFIG_DEPTH) {
        rv =
            error_set(e, HEDGE_EINVAL, "--config %s: files within files", path);
    }
    while (rv == 0 && fgets(line, sizeof line, f) != NULL) {
        number++;
        rv = parse_line(o, line, e);
        if (rv != 0) {
            (void)error_prefix(e, "%s line %u", path, number);
        }
    }
    depth--;
    (void)fclose(f);
    return rv;
}

static int check_cmds(const struct options *o, struct hedge_error *e)
{
    struct daemon_handlers d;
    int rv = daemon_handlers_init(&d, o->leader_cmd, o->broadcast_cmd, e);

    if (rv == 0) {
        daemon_handlers_release(&d);
    }
    return rv;
}

static int check_http(const struct options *o, struct hedge_error *e)
{
    char host[UNITS_HOST_MAX];
    struct in_addr binary;
    uint16_t port;

    if (o->http != NULL && (!units_parse_address(o->http, false, host, &port) ||
                            inet_pton(AF_INET, host, &binary) != 1)) {
        return error_set(e, HEDGE_EINVAL,
                         "--http \"%s\" is not HOST:PORT with an IPv4 address "
                         "and a port from 1 to 65535",
                         o->http);
    }
    return 0;
}

static int check(const struct options *o, struct hedge_error *e)
{
    char host[UNITS_HOST_MAX];
    struct in_addr binary;
    uint16_t port;

    const struct {
        const char *flag, *address;
    } table[] = {{"--listen", o->node.listen},
                 {"--grpc", o->node.grpc_address},
                 {"--http", o->http}};

    if (check_http(o, e) != 0) {
        return HEDGE_EINVAL;
    }
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++) {
        const char *a = table[i].address;

        if (a == NULL || !units_parse_address(a, false, host, &port)) {
            continue; /* The node says what is wrong with it. */
        }
        if (host[0] != '\0' && inet_pton(AF_INET, host, &binary) != 1) {
            return error_set(e, HEDGE_EINVAL,
                             "%s %s: \"%s\" is not an IPv4 address (host names "
                             "and IPv6 are not supported yet)",
                             table[i].flag, a, host);
        }
        if (strncmp(host, "127.", 4) != 0 && !o->insecure) {
            return error_set(e, HEDGE_EINVAL,
                             "%s %s is not a loopback address: without TLS "
                             "whoever reaches it can read and write "
                             "everything; --insecure allows it",
                             table[i].flag, a);
        }
    }
    return check_cmds(o, e);
}

int options_parse(int argc, char **argv, struct options *out,
                  struct hedge_error *e)
{
    int rv = 1;

    memset(out, 0, sizeof *out);
    hedge_options_init(&out->node);
    out->node.sync_interval_ms = 1000;
    out->log_level = LOG_INFO;
    for (int i = 1; i < argc && rv > 0; i += rv) {
        if (strcmp(argv[i], "-h") == 0) {
            out->action = OPTIONS_HELP;
            rv = 1;
        } else if (strncmp(argv[i], "--", 2) != 0) {
            rv = error_set(e, HEDGE_EINVAL,
                           "\"%s\" is not a flag; hedged --help lists them",
                           argv[i]);
        } else {
            rv = parse_word(out, argv[i], i + 1 < argc ? argv[i + 1] : NULL, e);
        }
    }
    if (rv > 0) {
        rv = check(out, e);
        rv = rv != 0 || out->action == OPTIONS_HELP ||
                     out->action == OPTIONS_VERSION
                 ? rv
                 : hedge_options_check(&out->node, e);
    }
    if (rv != 0) {
        options_release(out);
    }
    return rv;
}

void options_release(struct options *o)
{
    for (unsigned i = 0; i < o->n_texts; i++) {
        mem_free(o->texts[i]);
    }
    o->n_texts = 0;
}
