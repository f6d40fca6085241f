/* ctl.h - what the commands of hedgectl share: the global options, the way to
 * a node, and the exit status of an error.
 *
 * Ownership: the options live as long as the program.
 * Threads:   one.
 * Errors:    reported on stderr once, here; callers hand the exit status on.
 * Units:     milliseconds.
 * Limits:    none. */
#ifndef TOOLS_CTL_H
#define TOOLS_CTL_H

#include "cluster/client.h"
#include "store/base/strbuf.h"
#include "tools/cli.h"

struct ctl {
    const char *nodes; /* NULL: not given. */
    unsigned output;   /* enum ctl_output */
    uint64_t timeout_ms;
};

enum ctl_output { CTL_TABLE, CTL_JSON };

static inline bool ctl_json(const struct cli_call *call)
{
    return ((const struct ctl *)call->ctx)->output == CTL_JSON;
}

/* A client connected to a node, or an exit status that is not 0. */
int ctl_connect(const struct ctl *ctl, struct client **out);
/* Say what went wrong; returns the exit status. */
int ctl_error(const struct hedge_error *e);
/* The exit status of a HEDGE_* code, for who says more: one table for all
 * commands. */
int ctl_status(int code);
/* The sentences of the help that say which status is what. */
void ctl_describe_statuses(struct strbuf *out);
/* 0, or CLI_USAGE after saying what is wrong with the name of a store. */
int ctl_check_name(const char *name);

/* Each file of commands has a table, ended by a NULL name. */
extern const struct cli_command cluster_commands[];
extern const struct cli_command sos_commands[];
extern const struct cli_command msg_commands[];
extern const struct cli_command sem_commands[];
extern const struct cli_command log_commands[];
extern const struct cli_command msg_stream_commands[];

#endif
