/* options.h - hedged's command line and configuration file: one table.
 *
 * Ownership: options_parse() copies what it keeps; options_release() frees it.
 * Threads:   one, at start.
 * Errors:    one line that names the flag and says what is wanted.
 * Units:     as units.h.
 * Limits:    a configuration file has at most 64 KiB. */
#ifndef SERVER_OPTIONS_H
#define SERVER_OPTIONS_H

#include "cluster/hedge.h"
#include "store/base/log.h"

#include <stdio.h>

enum options_action {
    OPTIONS_RUN,
    OPTIONS_HELP,
    OPTIONS_VERSION,
    OPTIONS_CHECK, /* The options are good; say so and end. */
};

struct options {
    struct hedge_options node;
    const char *http; /* NULL: none. */
    enum log_level log_level;
    bool log_json;
    bool insecure;
    const char *leader_cmd, *broadcast_cmd; /* NULL: none. */
    enum options_action action;
    char *texts[32]; /* What `node` points to. */
    unsigned n_texts;
};

/* 0, or HEDGE_EINVAL with the text in `e`. */
int options_parse(int argc, char **argv, struct options *out,
                  struct hedge_error *e);
void options_release(struct options *o);
void options_help(FILE *out);

#endif
