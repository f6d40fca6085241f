#include "tools/ctl.h"

#include "store/base/units.h"
#include "store/block.h"
#include "tools/output.h"
#include "tools/sos_io.h"
#include "tools/store_info.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ZSTD_LEVEL_MAX 19
#define TTL_DEFAULT "1h"

static struct sos_write_args write_args;
static struct sos_read_args read_args;
static bool delimiter_given, record_size_given;

/* --- values ----------------------------------------------------------------
 */

static bool parse_compress(const char *text, void *out, char why[CLI_WHY_MAX])
{
    static const char zstd[] = "zstd:";
    struct sos_compress c = {.level = 0};
    uint64_t level = 0;

    if (strcmp(text, "auto") == 0) {
        c.mode = HEDGE__V1__COMPRESSION__COMPRESSION_AUTO;
    } else if (strcmp(text, "none") == 0) {
        c.mode = HEDGE__V1__COMPRESSION__COMPRESSION_NONE;
    } else if (strcmp(text, "zstd") == 0) {
        c.mode = HEDGE__V1__COMPRESSION__COMPRESSION_ZSTD;
    } else if (strncmp(text, zstd, sizeof zstd - 1) == 0 &&
               units_parse_u64(text + sizeof zstd - 1, &level) && level >= 1 &&
               level <= ZSTD_LEVEL_MAX) {
        c.mode = HEDGE__V1__COMPRESSION__COMPRESSION_ZSTD;
        c.level = (int)level;
    } else {
        (void)snprintf(why, CLI_WHY_MAX,
                       "'%s' is not auto, none, zstd or zstd:1 to zstd:%d",
                       text, ZSTD_LEVEL_MAX);
        return false;
    }
    memcpy(out, &c, sizeof c);
    return true;
}

/* One byte, or an escape of two characters. */
static bool parse_delimiter(const char *text, void *out, char why[CLI_WHY_MAX])
{
    static const char names[] = "0tnr\\", values[] = "\0\t\n\r\\";
    const char *name =
        text[0] == '\\' && text[1] != '\0' ? strchr(names, text[1]) : NULL;
    unsigned char *c = out;

    if (text[0] != '\0' && text[1] == '\0') {
        *c = (unsigned char)text[0];
        return true;
    }
    if (name != NULL && text[2] == '\0') {
        *c = (unsigned char)values[name - names];
        return true;
    }
    (void)snprintf(why, CLI_WHY_MAX,
                   "'%s' is not one byte, nor one of \\0 \\t \\n \\r \\\\",
                   text);
    return false;
}

/* --- write, read -------------------------------------------------------------
 */

static int run_write(const struct cli_call *call)
{
    struct sos_write_args *a = &write_args;

    a->ctl = call->ctx;
    a->name = call->operands[0];
    if (call->n > 1 && strcmp(call->operands[1], "-") != 0) {
        a->file = call->operands[1];
    }
    if (delimiter_given && record_size_given) {
        return cli_usage("--delimiter and --record-size exclude each other");
    }
    if (ctl_check_name(a->name) != 0) {
        return CLI_USAGE;
    }
    return sos_write_run(a);
}

static int run_read(const struct cli_call *call)
{
    read_args.ctl = call->ctx;
    read_args.name = call->operands[0];
    if (ctl_check_name(read_args.name) != 0) {
        return CLI_USAGE;
    }
    return sos_read_run(&read_args);
}

/* --- stat, ls, rm ------------------------------------------------------------
 */

static int run_stat(const struct cli_call *call)
{
    Hedge__V1__StoreInfo *info;
    struct hedge_error e;
    struct client *c;
    int rv;

    if (ctl_check_name(call->operands[0]) != 0) {
        return CLI_USAGE;
    }
    rv = ctl_connect(call->ctx, &c);
    if (rv != CLI_DONE) {
        return rv;
    }
    rv = client_store_stat(c, call->operands[0], &info, &e);
    client_free(c);
    if (rv != 0) {
        return ctl_error(&e);
    }
    if (ctl_json(call)) {
        store_info_json(info);
    } else {
        store_info_text(info);
    }
    hedge__v1__store_info__free_unpacked(info, NULL);
    return CLI_DONE;
}

/* Into the table or, without one, as JSON. */
static int print_page(const Hedge__V1__ListReply *page, struct table *t)
{
    int rv = CLI_DONE;

    for (size_t i = 0; i < page->n_stores; i++) {
        if (t != NULL) {
            store_info_row(t, page->stores[i]);
        } else {
            store_info_json(page->stores[i]);
        }
    }
    for (size_t i = 0; i < page->n_missing; i++) {
        rv = cli_fail("%s did not answer: its stores are not listed",
                      page->missing[i]);
    }
    return rv;
}

static int print_pages(struct client *c, struct table *t)
{
    Hedge__V1__ListReply *page = NULL, *next;
    struct hedge_error e;
    int status = CLI_DONE, rv;

    do {
        rv = client_store_list(c, page != NULL ? page->next : NULL, &next, &e);
        if (page != NULL) {
            hedge__v1__list_reply__free_unpacked(page, NULL);
        }
        page = next;
        if (rv != 0) {
            return ctl_error(&e);
        }
        rv = print_page(page, t);
        status = rv != CLI_DONE ? rv : status;
    } while (page->next != NULL);
    hedge__v1__list_reply__free_unpacked(page, NULL);
    if (t != NULL) {
        table_print(t);
    }
    return status;
}

static int run_ls(const struct cli_call *call)
{
    struct client *c;
    int rv = ctl_connect(call->ctx, &c);

    if (rv != CLI_DONE) {
        return rv;
    }
    rv = print_pages(c, ctl_json(call) ? NULL : store_info_table());
    client_free(c);
    return rv;
}

static int run_rm(const struct cli_call *call)
{
    struct hedge_error e;
    struct client *c;
    int rv;

    if (ctl_check_name(call->operands[0]) != 0) {
        return CLI_USAGE;
    }
    rv = ctl_connect(call->ctx, &c);
    if (rv != CLI_DONE) {
        return rv;
    }
    rv = client_store_remove(c, call->operands[0], &e);
    client_free(c);
    return rv != 0 ? ctl_error(&e) : CLI_DONE;
}

/* --- tables ----------------------------------------------------------------
 */

static const struct cli_option write_options[] = {
    {.name = "--append",
     .kind = CLI_FLAG,
     .out = &write_args.append,
     .help = "Write on if there is a store of this name; without it, that is "
             "an error."},
    {.name = "--mem-limit",
     .value = "SIZE",
     .kind = CLI_SIZE,
     .out = &write_args.mem_limit,
     .given = &write_args.options_given,
     .fallback = "0",
     .help = "Memory the store may use on each node; 0 sets no limit of its "
             "own."},
    {.name = "--disk-limit",
     .value = "SIZE",
     .kind = CLI_SIZE,
     .out = &write_args.disk_limit,
     .given = &write_args.options_given,
     .fallback = "0",
     .help = "Disk the store may use on each node; 0 sets no limit of its "
             "own."},
    {.name = "--ttl",
     .value = "DUR",
     .kind = CLI_DURATION,
     .out = &write_args.ttl_ms,
     .given = &write_args.options_given,
     .min = 1,
     .fallback = TTL_DEFAULT,
     .help = "How long the store is kept once nobody writes or reads it."},
    {.name = "--replicas",
     .value = "N",
     .kind = CLI_COUNT,
     .out = &write_args.replicas,
     .given = &write_args.options_given,
     .min = 1,
     .max = TIER_COPIES_MAX,
     .fallback = "1",
     .help = "Copies of each block, on as many nodes. They guard against "
             "losing other nodes; losing the owner loses the store."},
    {.name = "--compress",
     .value = "auto|none|zstd[:N]",
     .kind = CLI_PARSED,
     .parse = parse_compress,
     .out = &write_args.compress,
     .given = &write_args.options_given,
     .fallback = "auto",
     .help = "auto compresses what shrinks, where it does not slow the "
             "stream."},
    {.name = "--delimiter",
     .value = "C",
     .kind = CLI_PARSED,
     .parse = parse_delimiter,
     .out = &write_args.delimiter,
     .given = &delimiter_given,
     .fallback = "\\n",
     .help = "The byte that ends a record and is kept in it; \\0 \\t \\n \\r "
             "are understood."},
    {.name = "--record-size",
     .value = "SIZE",
     .kind = CLI_SIZE,
     .out = &write_args.record_size,
     .given = &record_size_given,
     .min = 1,
     .max = BLOCK_RECORD_MAX,
     .help = "Cut records of this size instead; the last may be shorter."},
    {.name = NULL}};

static const struct cli_option read_options[] = {
    {.name = "--follow",
     .kind = CLI_FLAG,
     .out = &read_args.follow,
     .help = "Wait for more until the last writer has closed, and, up to "
             "--timeout, for a store of this name to be made."},
    {.name = "--discard",
     .kind = CLI_FLAG,
     .out = &read_args.discard,
     .help = "Free the store's blocks as they are read."},
    {.name = NULL}};

const struct cli_command sos_commands[] = {
    {.name = "sos write",
     .operands = "NAME [FILE]",
     .operands_min = 1,
     .operands_max = 2,
     .help = "Write a file or standard input into a store.",
     .details = "`sos read` gives back byte for byte what was written. Records "
                "are cut at 64 MiB. When no node has room for more, what was "
                "taken stays readable and the exit status is 1.",
     .options = write_options,
     .run = run_write},
    {.name = "sos read",
     .operands = "NAME",
     .operands_min = 1,
     .operands_max = 1,
     .help = "Print the bytes of a store, in the order they were written.",
     .options = read_options,
     .run = run_read},
    {.name = "sos stat",
     .operands = "NAME",
     .operands_min = 1,
     .operands_max = 1,
     .help = "Describe a store: records, bytes, digest, and where it lies.",
     .run = run_stat},
    {.name = "sos ls",
     .operands = "",
     .help = "List the stores of the cluster.",
     .run = run_ls},
    {.name = "sos rm",
     .operands = "NAME",
     .operands_min = 1,
     .operands_max = 1,
     .help = "Remove a store; its name is free at once.",
     .run = run_rm},
    {.name = NULL}};
