/* handler_cmd.h - what the daemon answers messages with: a program that is run
 * for each of them, or without one the message behind the node's id.
 *
 * Ownership: daemon_handlers_init() / _release(), after the node has ended.
 *            The options point into the struct meanwhile.
 * Threads:   handlers run on the node's threads.
 * Errors:    a program that cannot be found is told at start.
 * Units:     milliseconds.
 * Limits:    CMD_ARGS_MAX words in a command; as many programs at a time as a
 *            node runs handlers. */
#ifndef SERVER_HANDLER_CMD_H
#define SERVER_HANDLER_CMD_H

#include "cluster/hedge.h"

#include <pthread.h>

#define CMD_ARGS_MAX 64

/* A command line, split into words: white space separates them, quotes and
 * backslashes keep it as a shell's do. Nothing else of a shell's is known. */
struct cmd {
    char *path; /* Found in $PATH. */
    char *words[CMD_ARGS_MAX + 1];
    unsigned n;
};

/* `flag` is for the text of the error. */
int cmd_parse(struct cmd *c, const char *flag, const char *line,
              struct hedge_error *e);
void cmd_release(struct cmd *c);
/* Run it: the message on its standard input, its output is the reply. It is
 * killed, with all it has started, when nobody waits any more or when it ends
 * and leaves something behind. */
int cmd_run(const struct cmd *c, const struct hedge_message *m,
            struct hedge_answer *a, struct hedge_error *e);

struct daemon_handlers {
    pthread_mutex_t lock;
    pthread_cond_t named;
    char id[264]; /* Empty until the node has started, */
    struct hedge_node *node;
    struct cmd leader, broadcast;
};

/* NULL for no program. */
int daemon_handlers_init(struct daemon_handlers *d, const char *leader_cmd,
                         const char *broadcast_cmd, struct hedge_error *e);
void daemon_handlers_install(struct daemon_handlers *d,
                             struct hedge_options *o);
/* The node has started. */
void daemon_handlers_start(struct daemon_handlers *d, struct hedge_node *node);
void daemon_handlers_release(struct daemon_handlers *d);

#endif
