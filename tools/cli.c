#include "tools/cli.h"

#include "store/base/units.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define HELP_WIDTH 79
#define HELP_COLUMN 30
#define WHO_MAX 96

/* Who speaks in error lines: the program, then program and command. */
static char who[WHO_MAX];

__attribute__((format(printf, 1, 0))) static void complain(const char *fmt,
                                                           va_list ap)
{
    (void)fflush(stdout);
    (void)fprintf(stderr, "%s: ", who);
    (void)vfprintf(stderr, fmt, ap);
    (void)fputc('\n', stderr);
}

int cli_usage(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    complain(fmt, ap);
    va_end(ap);
    return CLI_USAGE;
}

int cli_fail(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    complain(fmt, ap);
    va_end(ap);
    return CLI_FAILED;
}

/* --- help ----------------------------------------------------------------- */

/* Prints words from column `column` on, wrapped; ends the line. */
static void print_wrapped(const char *text, size_t indent, size_t column)
{
    while (*text != '\0') {
        size_t len = strcspn(text, " ");

        if (column > indent && column + 1 + len > HELP_WIDTH) {
            printf("\n%*s", (int)indent, "");
            column = indent;
        }
        if (column > indent) {
            (void)putchar(' ');
            column++;
        }
        printf("%.*s", (int)len, text);
        column += len;
        text += len;
        text += *text == ' ';
    }
    (void)putchar('\n');
}

static void print_entry(const char *left, const char *text)
{
    int n = printf("  %s", left);
    size_t column = n > 0 ? (size_t)n : 0;

    if (column + 2 > HELP_COLUMN) {
        (void)putchar('\n');
        column = 0;
    }
    printf("%*s", (int)(HELP_COLUMN - column), "");
    print_wrapped(text, HELP_COLUMN, HELP_COLUMN);
}

static void print_option(const struct cli_option *o)
{
    char left[WHO_MAX], letter[8] = "", text[512];

    if (o->letter != 0) {
        (void)snprintf(letter, sizeof letter, "-%c, ", o->letter);
    }
    (void)snprintf(left, sizeof left, "%s%s%s%s", letter, o->name,
                   o->value != NULL ? " " : "",
                   o->value != NULL ? o->value : "");
    (void)snprintf(text, sizeof text, "%s%s%s%s", o->help,
                   o->fallback != NULL ? " Default " : "",
                   o->fallback != NULL ? o->fallback : "",
                   o->fallback != NULL ? "." : "");
    print_entry(left, text);
}

static void print_options(const char *title, const struct cli_option *table)
{
    if (table == NULL || table->name == NULL) {
        return;
    }
    printf("\n%s:\n", title);
    for (; table->name != NULL; table++) {
        print_option(table);
    }
}

static void print_built_in(bool with_version)
{
    print_entry("-h, --help", "Print this help.");
    if (with_version) {
        print_entry("--version", "Print the version.");
    }
}

/* "sos write NAME [FILE] [options]", without the program's name. */
static void format_synopsis(const struct cli_command *c, char *out, size_t size)
{
    bool options = c->options != NULL && c->options->name != NULL;

    (void)snprintf(out, size, "%s%s%s%s%s", c->name,
                   c->operands[0] != '\0' ? " " : "", c->operands,
                   options ? " [options]" : "",
                   c->runs_command ? " -- CMD..." : "");
}

static void print_commands(const struct cli_program *p, const char *prefix)
{
    char left[WHO_MAX];
    size_t len = strlen(prefix);

    for (unsigned g = 0; p->commands[g] != NULL; g++) {
        for (const struct cli_command *c = p->commands[g]; c->name != NULL;
             c++) {
            if (strncmp(c->name, prefix, len) == 0) {
                format_synopsis(c, left, sizeof left);
                print_entry(left, c->help);
            }
        }
    }
}

static int help_program(const struct cli_program *p, const char *prefix)
{
    printf("usage: %s [options] %s%sCOMMAND ...\n\n", p->name, prefix,
           prefix[0] != '\0' ? " " : "");
    print_wrapped(p->about, 0, 0);
    printf("\nCommands (%s COMMAND --help says more):\n", p->name);
    print_commands(p, prefix);
    print_options("Options, before or after the command", p->options);
    print_built_in(true);
    if (p->notes != NULL) {
        (void)putchar('\n');
        print_wrapped(p->notes, 0, 0);
    }
    return CLI_DONE;
}

static int help_command(const struct cli_program *p,
                        const struct cli_command *c)
{
    char synopsis[WHO_MAX + 64];

    format_synopsis(c, synopsis, sizeof synopsis);
    printf("usage: %s %s\n\n", p->name, synopsis);
    print_wrapped(c->help, 0, 0);
    if (c->details != NULL) {
        (void)putchar('\n');
        print_wrapped(c->details, 0, 0);
    }
    print_options("Options", c->options);
    print_options("Options of all commands", p->options);
    print_built_in(false);
    return CLI_DONE;
}

/* --- values ----------------------------------------------------------------
 */

static bool in_bounds(const struct cli_option *o, uint64_t n, const char *text,
                      char why[CLI_WHY_MAX])
{
    char low[UNITS_SIZE_TEXT], high[UNITS_SIZE_TEXT];
    const char *unit = "";

    if (n >= o->min && (o->max == 0 || n <= o->max)) {
        return true;
    }
    (void)snprintf(low, sizeof low, "%llu", (unsigned long long)o->min);
    (void)snprintf(high, sizeof high, "%llu", (unsigned long long)o->max);
    if (o->kind == CLI_SIZE) {
        units_format_size(o->min, low);
        units_format_size(o->max, high);
    } else if (o->kind == CLI_DURATION) {
        unit = " ms";
    }
    if (n < o->min) {
        (void)snprintf(why, CLI_WHY_MAX, "'%s' is less than %s%s", text, low,
                       unit);
    } else {
        (void)snprintf(why, CLI_WHY_MAX, "'%s' is more than %s%s", text, high,
                       unit);
    }
    return false;
}

static bool set_number(const struct cli_option *o, const char *text,
                       char why[CLI_WHY_MAX])
{
    static const char *const wanted[] = {
        [CLI_SIZE] = "a size (like 4096, 64K, 1.5GiB)",
        [CLI_DURATION] = "a duration (like 250ms, 10s, 5m, 1h)",
        [CLI_COUNT] = "a whole number",
    };
    uint64_t n = 0;
    bool ok = o->kind == CLI_SIZE       ? units_parse_size(text, &n)
              : o->kind == CLI_DURATION ? units_parse_duration_ms(text, &n)
                                        : units_parse_u64(text, &n);

    if (!ok) {
        (void)snprintf(why, CLI_WHY_MAX, "'%s' is not %s", text,
                       wanted[o->kind]);
        return false;
    }
    if (!in_bounds(o, n, text, why)) {
        return false;
    }
    memcpy(o->out, &n, sizeof n);
    return true;
}

static bool set_choice(const struct cli_option *o, const char *text,
                       char why[CLI_WHY_MAX])
{
    const char *word = o->value;

    for (unsigned i = 0;; i++) {
        size_t len = strcspn(word, "|");

        if (strlen(text) == len && memcmp(text, word, len) == 0) {
            memcpy(o->out, &i, sizeof i);
            return true;
        }
        if (word[len] == '\0') {
            break;
        }
        word += len + 1;
    }
    (void)snprintf(why, CLI_WHY_MAX, "'%s' is not one of %s", text, o->value);
    return false;
}

static bool set_value(const struct cli_option *o, const char *text,
                      char why[CLI_WHY_MAX])
{
    switch (o->kind) {
    case CLI_FLAG:
        memcpy(o->out, &(bool){true}, sizeof(bool));
        return true;
    case CLI_TEXT:
        memcpy(o->out, &text, sizeof text);
        return true;
    case CLI_CHOICE:
        return set_choice(o, text, why);
    case CLI_PARSED:
        return o->parse(text, o->out, why);
    default:
        return set_number(o, text, why);
    }
}

static void set_fallbacks(const struct cli_option *o)
{
    char why[CLI_WHY_MAX];

    for (; o != NULL && o->name != NULL; o++) {
        if (o->fallback != NULL) {
            bool ok = set_value(o, o->fallback, why);

            assert(ok);
        }
    }
}

/* --- parsing ---------------------------------------------------------------
 */

struct parser {
    const struct cli_program *program;
    const struct cli_command *command; /* NULL: not seen yet. */
    int argc, at;
    char **argv;
    bool help, version;
};

static const struct cli_option *find_in(const struct cli_option *o,
                                        const char *name, size_t len)
{
    for (; o != NULL && o->name != NULL; o++) {
        if (strlen(o->name) == len && memcmp(o->name, name, len) == 0) {
            return o;
        }
        if (len == 2 && name[0] == '-' && name[1] == o->letter) {
            return o;
        }
    }
    return NULL;
}

static const struct cli_option *find_option(const struct parser *p,
                                            const char *name, size_t len)
{
    const struct cli_option *o = NULL;

    if (p->command != NULL) {
        o = find_in(p->command->options, name, len);
    }
    return o != NULL ? o : find_in(p->program->options, name, len);
}

static int take_option(struct parser *p, const struct cli_option *o,
                       const char *shown, size_t len, const char *value)
{
    char why[CLI_WHY_MAX];

    if (o->kind == CLI_FLAG && value != NULL) {
        return cli_usage("%.*s takes no value", (int)len, shown);
    }
    if (o->kind != CLI_FLAG && value == NULL) {
        if (p->at >= p->argc) {
            return cli_usage("%.*s needs a value: %s", (int)len, shown,
                             o->value);
        }
        value = p->argv[p->at++];
    }
    if (!set_value(o, value, why)) {
        return cli_usage("%.*s: %s", (int)len, shown, why);
    }
    if (o->given != NULL) {
        *o->given = true;
    }
    return 0;
}

/* For an operand that was taken for an option. */
static const char *operand_hint(const struct cli_command *c)
{
    if (c == NULL || c->operands_max == 0 || c->runs_command) {
        return "";
    }
    return strstr(c->operands, "|-") != NULL
               ? "; an operand that begins with '-' goes behind '--', and '-' "
                 "reads it from standard input"
               : "; an operand that begins with '-' goes behind '--'";
}

/* One option, at p->at; its value may be in the same word or the next. */
static int parse_option(struct parser *p)
{
    const char *word = p->argv[p->at++];
    bool longer = word[1] == '-';
    size_t len = longer ? strcspn(word, "=") : 2;
    const char *value = NULL;
    const struct cli_option *o;

    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        p->help = true;
        return 0;
    }
    if (p->command == NULL && strcmp(word, "--version") == 0) {
        p->version = true;
        return 0;
    }
    if (word[len] != '\0') {
        value = longer ? word + len + 1 : word + len;
    }
    o = find_option(p, word, len);
    if (o == NULL) {
        return cli_usage("unknown option '%s' (see %s --help)%s", word, who,
                         operand_hint(p->command));
    }
    return take_option(p, o, word, len, value);
}

static bool is_option(const char *word)
{
    return word[0] == '-' && word[1] != '\0';
}

/* The command whose words stand at p->at; the longer name wins. */
static const struct cli_command *find_command(const struct parser *p,
                                              int *words)
{
    const struct cli_command *found = NULL;
    char two[WHO_MAX] = "";

    if (p->at + 1 < p->argc) {
        (void)snprintf(two, sizeof two, "%s %s", p->argv[p->at],
                       p->argv[p->at + 1]);
    }
    for (unsigned g = 0; p->program->commands[g] != NULL; g++) {
        for (const struct cli_command *c = p->program->commands[g];
             c->name != NULL; c++) {
            if (strcmp(c->name, two) == 0) {
                *words = 2;
                return c;
            }
            if (strcmp(c->name, p->argv[p->at]) == 0) {
                *words = 1;
                found = c;
            }
        }
    }
    return found;
}

/* The second words of commands that begin with `word`: "ls, rm". */
static bool list_second_words(const struct cli_program *p, const char *word,
                              char *out, size_t size)
{
    size_t len = strlen(word), used = 0;

    out[0] = '\0';
    for (unsigned g = 0; p->commands[g] != NULL; g++) {
        for (const struct cli_command *c = p->commands[g]; c->name != NULL;
             c++) {
            if (strncmp(c->name, word, len) != 0 || c->name[len] != ' ') {
                continue;
            }
            (void)snprintf(out + used, size - used, "%s%s",
                           used > 0 ? ", " : "", c->name + len + 1);
            used = strlen(out);
        }
    }
    return used > 0;
}

static int no_command(struct parser *p)
{
    const char *word = p->argv[p->at];
    const char *next = p->at + 1 < p->argc ? p->argv[p->at + 1] : NULL;
    char second[256];

    if (strcmp(word, "help") == 0) {
        return help_program(p->program, "");
    }
    if (!list_second_words(p->program, word, second, sizeof second)) {
        return cli_usage("unknown command '%s' (see %s --help)", word, who);
    }
    if (next != NULL &&
        (strcmp(next, "--help") == 0 || strcmp(next, "-h") == 0)) {
        return help_program(p->program, word);
    }
    if (next != NULL && !is_option(next)) {
        return cli_usage("unknown command '%s %s' (%s has: %s)", word, next,
                         word, second);
    }
    return cli_usage("'%s' needs one of: %s", word, second);
}

static int check_operands(const struct parser *p, const struct cli_call *call)
{
    const struct cli_command *c = p->command;
    char synopsis[WHO_MAX + 64];

    format_synopsis(c, synopsis, sizeof synopsis);
    if (call->n < c->operands_min) {
        return cli_usage("too few operands (usage: %s %s)", p->program->name,
                         synopsis);
    }
    if (call->n > c->operands_max) {
        return cli_usage("unexpected operand '%s' (usage: %s %s)",
                         call->operands[c->operands_max], p->program->name,
                         synopsis);
    }
    if (c->runs_command && call->n_rest == 0) {
        return cli_usage("no command to run (usage: %s %s)", p->program->name,
                         synopsis);
    }
    return 0;
}

/* The rest of the line: operands are moved together, in order. */
static int parse_rest(struct parser *p, struct cli_call *call)
{
    char **operands = p->argv + p->at;
    unsigned n = 0;
    int rv = 0;

    while (rv == 0 && p->at < p->argc) {
        char *word = p->argv[p->at];

        if (strcmp(word, "--") == 0) {
            p->at++;
            break;
        }
        if (is_option(word)) {
            rv = parse_option(p);
        } else {
            operands[n++] = word;
            p->at++;
        }
    }
    if (p->command->runs_command) {
        call->rest = p->argv + p->at;
        call->n_rest = (unsigned)(p->argc - p->at);
    } else {
        while (p->at < p->argc) {
            operands[n++] = p->argv[p->at++];
        }
    }
    call->operands = operands;
    call->n = n;
    return rv;
}

static int parse_and_prepare(struct parser *p, struct cli_call *call)
{
    int rv = parse_rest(p, call);

    if (rv != 0 || p->help) {
        return rv;
    }
    rv = check_operands(p, call);
    return rv == 0 && p->program->prepare != NULL ? p->program->prepare() : rv;
}

static int run_command(struct parser *p)
{
    struct cli_call call = {.ctx = p->program->ctx};
    int rv;

    (void)snprintf(who, sizeof who, "%s %s", p->program->name,
                   p->command->name);
    set_fallbacks(p->command->options);
    rv = parse_and_prepare(p, &call);
    if (rv == 0) {
        rv = p->help ? help_command(p->program, p->command)
                     : p->command->run(&call);
    } else if (p->command->runs_command) {
        rv = CLI_RUN_FAILED;
    }
    return rv;
}

static int parse_and_run(struct parser *p)
{
    int words = 0, rv;

    while (p->at < p->argc && is_option(p->argv[p->at])) {
        rv = parse_option(p);
        if (rv != 0) {
            return rv;
        }
        if (p->version) {
            printf("%s %s\n", p->program->name, p->program->version);
            return CLI_DONE;
        }
    }
    if (p->at >= p->argc) {
        return p->help ? help_program(p->program, "")
                       : cli_usage("no command (see %s --help)", who);
    }
    p->command = find_command(p, &words);
    if (p->command == NULL) {
        return no_command(p);
    }
    p->at += words;
    return run_command(p);
}

int cli_main(const struct cli_program *program, int argc, char **argv)
{
    struct parser p = {.program = program, .argc = argc, .at = 1, .argv = argv};
    int rv;

    assert(program->commands != NULL);
    (void)snprintf(who, sizeof who, "%s", program->name);
    set_fallbacks(program->options);
    rv = parse_and_run(&p);
    /* A result that did not reach its reader was not delivered. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && rv == CLI_DONE) {
        rv = errno == EPIPE
                 ? CLI_FAILED
                 : cli_fail("cannot write the result: %s", strerror(errno));
    }
    return rv;
}
