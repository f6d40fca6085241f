/* cli.h - a command line made from tables: parsing, checking and help.
 *
 * Options write their values where the table points; their defaults are texts
 * that go through the same parser, so that help cannot say anything else.
 *
 * Ownership: tables are static; texts in results point into argv.
 * Threads:   one; the tables point to static variables.
 * Errors:    one line on stderr and CLI_USAGE.
 * Units:     sizes in bytes, durations in milliseconds.
 * Limits:    command names have one or two words. */
#ifndef TOOLS_CLI_H
#define TOOLS_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Exit statuses, a promise to scripts. Commands that run a command pass its
 * own status on, so that of all their failures is CLI_RUN_FAILED. */
enum cli_status {
    CLI_DONE,
    CLI_FAILED,
    CLI_USAGE,
    CLI_NOT_FOUND,
    CLI_RUN_FAILED = 125,
    CLI_RUN_NOT_RUNNABLE,
    CLI_RUN_NOT_FOUND,
};

enum cli_kind {
    CLI_FLAG,     /* bool *: no value. */
    CLI_TEXT,     /* const char **. */
    CLI_SIZE,     /* uint64_t *. */
    CLI_DURATION, /* uint64_t *. */
    CLI_COUNT,    /* uint64_t *, from `min` to `max`. */
    CLI_CHOICE,   /* unsigned *: which of the words in `value`. */
    CLI_PARSED,   /* Whatever `parse` makes of it. */
};

#define CLI_WHY_MAX 160
/* false: `why` says what is wrong with the text, "is not a ...". */
typedef bool (*cli_parse_fn)(const char *text, void *out,
                             char why[CLI_WHY_MAX]);

struct cli_option {
    const char *name;     /* "--ttl"; NULL ends a table. */
    const char *value;    /* "DUR", or "table|json" for a choice. */
    const char *help;     /* One sentence. */
    const char *fallback; /* Default, as one would write it; NULL: none. */
    enum cli_kind kind;
    char letter;  /* 'n' for -n; 0: none. */
    uint64_t min; /* Sizes, durations and counts, inclusive. */
    uint64_t max; /* 0: no bound. */
    void *out;
    bool *given; /* Set when it stands on the command line; or NULL. */
    cli_parse_fn parse;
};

struct cli_call {
    const void *ctx;
    unsigned n;
    char *const *operands;
    /* After "--", for commands that run a command; else part of operands. */
    unsigned n_rest;
    char *const *rest; /* NULL-terminated. */
};

typedef int (*cli_run_fn)(const struct cli_call *call);

struct cli_command {
    const char *name;     /* "members", "sos write"; NULL ends a table. */
    const char *operands; /* "NAME [FILE]", for help. */
    const char *help;     /* One line, a phrase. */
    const char *details;  /* More, in sentences; or NULL. */
    const struct cli_option *options; /* Or NULL. */
    unsigned operands_min, operands_max;
    bool runs_command; /* "-- CMD..." follows. */
    cli_run_fn run;
};

struct cli_program {
    const char *name;
    const char *version;
    const char *about;
    const struct cli_option *options;          /* Before or after commands. */
    const struct cli_command *const *commands; /* Tables; NULL ends them. */
    const char *notes;                         /* At the end of the help. */
    /* Called with everything parsed, before the command; 0 to go on. */
    int (*prepare)(void);
    const void *ctx; /* For every command. */
};

/* Parses, runs, returns the exit status. `argv` is permuted. */
int cli_main(const struct cli_program *p, int argc, char **argv);

/* For commands: "PROGRAM: text" on stderr; returns CLI_USAGE. */
int cli_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for what is not the user's doing; returns CLI_FAILED. */
int cli_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
