#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/units.h"
#include "tools/ctl.h"
#include "tools/log_io.h"
#include "tools/log_json.h"
#include "tools/output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LIMIT_MAX 2147483647u
#define VALUE_MAX_BYTES ((size_t)16 << 20)
#define SHOWN_MAX 64 /* Of a value, in tables. */

static bool no_append, all, oldest, follow, latest;
static bool limit_given, at_rev_given, at_time_given, keep_given;
static uint64_t limit, at_rev, at_time, from_rev, since, until, keep;
static const char *prefix;

/* A revision or a point in time. */
struct point {
    uint64_t revision, wall_ms;
};
static struct point before;

/* --- values -----------------------------------------------------------------
 */

static bool parse_time(const char *text, void *out, char why[CLI_WHY_MAX])
{
    uint64_t ms;

    if (!log_parse_time(text, &ms)) {
        (void)snprintf(why, CLI_WHY_MAX,
                       "'%s' is not a time (like 2024-05-01T12:00:00Z) nor a "
                       "duration ago (like 10m)",
                       text);
        return false;
    }
    memcpy(out, &ms, sizeof ms);
    return true;
}

static bool parse_point(const char *text, void *out, char why[CLI_WHY_MAX])
{
    struct point p = {0};

    if (units_parse_u64(text, &p.revision) && p.revision > 0) {
        memcpy(out, &p, sizeof p);
        return true;
    }
    p.revision = 0;
    if (strcmp(text, "0") == 0 || !log_parse_time(text, &p.wall_ms)) {
        (void)snprintf(why, CLI_WHY_MAX,
                       "'%s' is neither a revision, nor a time, nor a duration "
                       "ago",
                       text);
        return false;
    }
    memcpy(out, &p, sizeof p);
    return true;
}

/* --- printing ---------------------------------------------------------------
 */

static void print_bytes(const void *data, size_t len)
{
    if (len > 0) {
        (void)fwrite(data, 1, len, stdout);
    }
}

static void print_buffer(struct strbuf *b)
{
    if (!strbuf_ok(b)) {
        (void)fputs("hedgectl: out of memory\n", stderr);
        _exit(1);
    }
    print_bytes(b->text, b->len);
    b->len = 0;
}

/* For people: control characters and what is not UTF-8 are shown as such. */
static void add_shown(struct strbuf *out, const ProtobufCBinaryData *data)
{
    bool text = log_is_utf8(data->data, data->len);
    size_t n = data->len < SHOWN_MAX ? data->len : SHOWN_MAX;

    while (text && n < data->len && n > 0 && (data->data[n] & 0xc0) == 0x80) {
        n--; /* Not within a character. */
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = data->data[i];

        if (c < 0x20 || c == 0x7f || c == '\\' || (c >= 0x80 && !text)) {
            strbuf_addf(out, c == '\\' ? "\\\\" : "\\x%02x", c);
        } else {
            strbuf_add(out, (const char *)&c, 1);
        }
    }
    if (n < data->len) {
        strbuf_addf(out, "... (%zu bytes)", data->len);
    }
}

static void table_bytes(struct table *t, const ProtobufCBinaryData *data)
{
    struct strbuf b;

    strbuf_init(&b);
    strbuf_add(&b, "", 0);
    add_shown(&b, data);
    if (!strbuf_ok(&b)) {
        print_buffer(&b);
    }
    table_text(t, b.text);
    strbuf_release(&b);
}

/* --- put --------------------------------------------------------------------
 */

static int read_value(unsigned char **out, size_t *len)
{
    unsigned char *data = mem_alloc(VALUE_MAX_BYTES + 1);
    char size[UNITS_SIZE_TEXT];
    size_t n = 0;

    *out = NULL;
    if (data == NULL) {
        return cli_fail("out of memory");
    }
    while (n <= VALUE_MAX_BYTES && !feof(stdin) && !ferror(stdin)) {
        n += fread(data + n, 1, VALUE_MAX_BYTES + 1 - n, stdin);
    }
    if (ferror(stdin)) {
        mem_free(data);
        return cli_fail("standard input: %s", strerror(errno));
    }
    if (n > VALUE_MAX_BYTES) {
        mem_free(data);
        (void)cli_fail("the value is over the limit of %s",
                       units_format_size(VALUE_MAX_BYTES, size));
        return ctl_status(HEDGE_ETOOBIG);
    }
    *out = data;
    *len = n;
    return 0;
}

static void print_put(const struct cli_call *call,
                      const Hedge__V1__LogPutResult *r)
{
    if (ctl_json(call)) {
        cJSON *o = output_object();

        output_add_u64(o, "revision", r->revision);
        output_add_time(o, "timestamp", r->timestamp_ms);
        output_json(o);
    } else {
        printf("%" PRIu64 "\n", r->revision);
    }
}

static int put_value(const struct cli_call *call, Hedge__V1__LogPut *p)
{
    Hedge__V1__LogPutRequest m = HEDGE__V1__LOG_PUT_REQUEST__INIT;
    Hedge__V1__LogPutReply *reply;
    struct hedge_error e = {0};
    struct client *c;
    int rv = ctl_connect(call->ctx, &c);

    if (rv != CLI_DONE) {
        return rv;
    }
    m.n_puts = 1;
    m.puts = &p;
    rv = log_put(c, &m, client_left_ms(c), &reply, &e);
    client_free(c);
    if (rv != 0) {
        return ctl_error(&e);
    }
    print_put(call, reply->results[0]);
    hedge__v1__log_put_reply__free_unpacked(reply, NULL);
    return CLI_DONE;
}

static int run_put(const struct cli_call *call)
{
    Hedge__V1__LogPut p = HEDGE__V1__LOG_PUT__INIT;
    unsigned char *value = NULL;
    int rv = 0;

    p.key.data = (unsigned char *)call->operands[0];
    p.key.len = strlen(call->operands[0]);
    p.value.data = (unsigned char *)call->operands[1];
    p.value.len = strlen(call->operands[1]);
    p.no_append = no_append;
    if (strcmp(call->operands[1], "-") == 0) {
        rv = read_value(&value, &p.value.len);
        p.value.data = value;
    }
    rv = rv == 0 ? put_value(call, &p) : rv;
    mem_free(value);
    return rv;
}

/* --- get --------------------------------------------------------------------
 */

struct getter {
    const struct cli_call *call;
    struct table *table; /* NULL: the value alone. */
    struct strbuf text;
    size_t n;
    char last; /* Byte of the value that was printed. */
};

static int on_version(void *ctx, const Hedge__V1__LogEntry *entry)
{
    struct getter *g = ctx;
    char when[CLOCK_RFC3339_SIZE];

    g->n++;
    if (ctl_json(g->call)) {
        log_json_entry(&g->text, entry);
        print_buffer(&g->text);
    } else if (g->table == NULL) {
        print_bytes(entry->value.data, entry->value.len);
        if (entry->value.len > 0) {
            g->last = (char)entry->value.data[entry->value.len - 1];
        }
    } else {
        clock_format(entry->timestamp_ms, when);
        table_u64(g->table, entry->revision);
        table_text(g->table, when);
        table_text(g->table, entry->leader);
        table_bytes(g->table, &entry->value);
    }
    return ferror(stdout) ? HEDGE_EIO : 0;
}

static int check_get(void)
{
    if ((limit_given + all + oldest) > 1) {
        return cli_usage("--limit, --all and --oldest exclude each other");
    }
    if (at_rev_given && at_time_given) {
        return cli_usage("--at-rev and --at-time exclude each other");
    }
    return 0;
}

static int run_get(const struct cli_call *call)
{
    Hedge__V1__LogQuery q = HEDGE__V1__LOG_QUERY__INIT;
    struct getter g = {.call = call};
    struct hedge_error e = {0};
    struct client *c;
    int rv = check_get();

    if (rv != 0) {
        return rv;
    }
    rv = ctl_connect(call->ctx, &c);
    if (rv != CLI_DONE) {
        return rv;
    }
    q.key.data = (unsigned char *)call->operands[0];
    q.key.len = strlen(call->operands[0]);
    q.newest = !oldest;
    q.limit = limit_given ? limit : all ? 0 : 1;
    q.at_revision = at_rev;
    q.until_ms = at_time_given ? at_time + 1 : 0;
    if (q.key.len == 0) {
        rv = error_set(&e, HEDGE_EINVAL, "the key is empty");
    } else {
        if (!ctl_json(call) && (all || (limit_given && limit > 1))) {
            g.table = table_new(">REVISION|TIME|LEADER|VALUE");
        }
        strbuf_init(&g.text);
        rv = log_query(c, &q, false, client_left_ms(c), on_version, NULL, &g,
                       &e);
        strbuf_release(&g.text);
    }
    client_free(c);
    if (rv != 0) {
        return ctl_error(&e);
    }
    if (g.n == 0) {
        (void)cli_fail("there is no version of \"%s\"", call->operands[0]);
        return ctl_status(HEDGE_ENOTFOUND);
    }
    if (g.table != NULL) {
        table_print(g.table);
    } else if (!ctl_json(call)) {
        output_end_line(g.last);
    }
    return CLI_DONE;
}

/* --- log --------------------------------------------------------------------
 */

struct printer {
    const struct cli_call *call;
    struct strbuf text;
    bool flush;
};

static int on_logged(void *ctx, const Hedge__V1__LogEntry *entry)
{
    struct printer *p = ctx;
    char when[CLOCK_RFC3339_SIZE];

    if (ctl_json(p->call)) {
        log_json_entry(&p->text, entry);
    } else {
        clock_format(entry->timestamp_ms, when);
        strbuf_addf(&p->text, "%" PRIu64 "  %s  ", entry->revision, when);
        add_shown(&p->text, &entry->key);
        strbuf_add(&p->text, "  ", 2);
        add_shown(&p->text, &entry->value);
        strbuf_add(&p->text, "\n", 1);
    }
    print_buffer(&p->text);
    if (p->flush) {
        (void)fflush(stdout);
    }
    return ferror(stdout) ? HEDGE_EIO : 0;
}

static int run_log(const struct cli_call *call)
{
    Hedge__V1__LogQuery q = HEDGE__V1__LOG_QUERY__INIT;
    struct printer p = {.call = call, .flush = follow};
    struct hedge_error e = {0};
    struct client *c;
    int rv;

    if (follow && (at_rev != 0 || until != 0 || latest)) {
        return cli_usage("--follow goes on for ever: not with --at-rev, "
                         "--until or --latest");
    }
    rv = ctl_connect(call->ctx, &c);
    if (rv != CLI_DONE) {
        return rv;
    }
    if (prefix != NULL) {
        union {
            const char *in;
            unsigned char *out;
        } u = {.in = prefix};

        q.prefix = true;
        q.key.data = u.out;
        q.key.len = strlen(prefix);
    }
    q.from_revision = from_rev;
    q.at_revision = at_rev;
    q.since_ms = since;
    q.until_ms = until;
    q.latest = latest;
    q.limit = limit_given ? limit : 0;
    strbuf_init(&p.text);
    rv = log_query(c, &q, follow, ((const struct ctl *)call->ctx)->timeout_ms,
                   on_logged, NULL, &p, &e);
    strbuf_release(&p.text);
    client_free(c);
    return rv != 0 ? ctl_error(&e) : CLI_DONE;
}

/* --- log compact, log import ------------------------------------------------
 */

static int call_compact(struct client *c, const Hedge__V1__LogCompactRequest *m,
                        uint64_t *removed, struct hedge_error *e)
{
    size_t len = protobuf_c_message_get_packed_size(&m->base);
    unsigned char *bytes = mem_alloc(len);
    Hedge__V1__LogCompactReply *reply;
    struct rpc_msg msg;
    int rv;

    if (bytes == NULL) {
        return error_set(e, HEDGE_ENOMEM, "out of memory");
    }
    (void)protobuf_c_message_pack(&m->base, bytes);
    rv = rpc_call(client_channel(c), "/hedge.v1.Log/Compact", bytes, len,
                  client_left_ms(c), &msg, e);
    mem_free(bytes);
    if (rv != 0) {
        return rv;
    }
    rv = client_message_bytes(&msg, &bytes, &len);
    reply =
        rv == 0 ? hedge__v1__log_compact_reply__unpack(NULL, len, bytes) : NULL;
    mem_free(bytes);
    if (reply == NULL) {
        return error_set(e, HEDGE_EPROTO, "the node's answer cannot be read");
    }
    *removed = reply->removed;
    hedge__v1__log_compact_reply__free_unpacked(reply, NULL);
    return 0;
}

static int run_compact(const struct cli_call *call)
{
    Hedge__V1__LogCompactRequest m = HEDGE__V1__LOG_COMPACT_REQUEST__INIT;
    struct hedge_error e = {0};
    struct client *c;
    uint64_t removed = 0;
    int rv;

    if (before.revision == 0 && before.wall_ms == 0) {
        return cli_usage("--before REV|T is needed");
    }
    rv = ctl_connect(call->ctx, &c);
    if (rv != CLI_DONE) {
        return rv;
    }
    m.before_revision = before.revision;
    m.before_ms = before.wall_ms;
    m.keep = keep;
    rv = call_compact(c, &m, &removed, &e);
    client_free(c);
    if (rv != 0) {
        return ctl_error(&e);
    }
    if (ctl_json(call)) {
        printf("{\"removed\":%" PRIu64 "}\n", removed);
    } else {
        printf("%" PRIu64 " removed\n", removed);
    }
    return CLI_DONE;
}

static int run_import(const struct cli_call *call)
{
    return log_import(call->ctx);
}

/* --- tables -----------------------------------------------------------------
 */

#define LIMIT_OPTION(text)                                            \
    {                                                                 \
        .name = "--limit", .value = "N", .kind = CLI_COUNT, .min = 1, \
        .max = LIMIT_MAX, .out = &limit, .given = &limit_given,       \
        .help = (text),                                               \
    }
#define AT_REV_OPTION(text)                                            \
    {                                                                  \
        .name = "--at-rev", .value = "R", .kind = CLI_COUNT, .min = 1, \
        .out = &at_rev, .given = &at_rev_given, .help = (text),        \
    }

static const struct cli_option put_options[] = {
    {.name = "--no-append",
     .kind = CLI_FLAG,
     .out = &no_append,
     .help = "Hide the latest version for good."},
    {.name = NULL}};

static const struct cli_option get_options[] = {
    LIMIT_OPTION("The newest N versions, newest first."),
    {.name = "--all",
     .kind = CLI_FLAG,
     .out = &all,
     .help = "All versions, newest first."},
    {.name = "--oldest",
     .kind = CLI_FLAG,
     .out = &oldest,
     .help = "The oldest version."},
    AT_REV_OPTION("As of this revision."),
    {.name = "--at-time",
     .value = "T",
     .kind = CLI_PARSED,
     .parse = parse_time,
     .out = &at_time,
     .given = &at_time_given,
     .help = "As of this time: RFC 3339, or a duration ago."},
    {.name = NULL}};

static const struct cli_option log_options[] = {
    {.name = "--prefix",
     .value = "P",
     .kind = CLI_TEXT,
     .out = &prefix,
     .help = "Only keys that begin with it."},
    {.name = "--since",
     .value = "T",
     .kind = CLI_PARSED,
     .parse = parse_time,
     .out = &since,
     .help = "From this time on: RFC 3339, or a duration ago."},
    {.name = "--until",
     .value = "T",
     .kind = CLI_PARSED,
     .parse = parse_time,
     .out = &until,
     .help = "Before this time."},
    {.name = "--from-rev",
     .value = "R",
     .kind = CLI_COUNT,
     .min = 1,
     .out = &from_rev,
     .help = "From this revision on."},
    AT_REV_OPTION("As of this revision: none after it."),
    LIMIT_OPTION("At most N versions. Without it: all."),
    {.name = "--latest",
     .kind = CLI_FLAG,
     .out = &latest,
     .help = "One version of each key, in order of keys."},
    {.name = "--follow",
     .kind = CLI_FLAG,
     .out = &follow,
     .help = "Print what is there, then what comes, until interrupted."},
    {.name = NULL}};

static const struct cli_option compact_options[] = {
    {.name = "--before",
     .value = "REV|T",
     .kind = CLI_PARSED,
     .parse = parse_point,
     .out = &before,
     .help = "A revision, a time (RFC 3339), or a duration ago."},
    {.name = "--keep",
     .value = "N",
     .kind = CLI_COUNT,
     .min = 1,
     .out = &keep,
     .given = &keep_given,
     .fallback = "1",
     .help = "Keep the newest N versions of each key in any case."},
    {.name = NULL}};

const struct cli_command log_commands[] = {
    {.name = "put",
     .operands = "KEY VALUE|-",
     .operands_min = 2,
     .operands_max = 2,
     .help = "Append a version of a key; - reads the value from standard "
             "input.",
     .details = "Prints the version's revision once it is on disk.",
     .options = put_options,
     .run = run_put},
    {.name = "get",
     .operands = "KEY",
     .operands_min = 1,
     .operands_max = 1,
     .help = "Print the latest version of a key, byte for byte, or others.",
     .details = "With --all or a --limit above 1 a table, newest first.",
     .options = get_options,
     .run = run_get},
    {.name = "log",
     .operands = "",
     .help = "Print versions of all keys, oldest first.",
     .options = log_options,
     .run = run_log},
    {.name = "log compact",
     .operands = "",
     .help = "Remove old versions.",
     .details = "What could be seen as of that point stays, and so does the "
                "newest version of each key. Reading as of an earlier point "
                "is refused from then on.",
     .options = compact_options,
     .run = run_compact},
    {.name = "log import",
     .operands = "",
     .help = "Append the versions that standard input has, as JSON lines.",
     .details = "Each line is an object with key or key_base64, and value or "
                "value_base64, as `log -o json` prints them; the rest of it "
                "is ignored. They get new revisions and times.",
     .run = run_import},
    {.name = NULL}};
