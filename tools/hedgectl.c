#include "cluster/rpc/rpc.h"
#include "store/base/log.h"
#include "tools/cli.h"
#include "tools/ctl.h"
#include "tools/guard.h"
#include "tools/output.h"

#include <signal.h>
#include <string.h>

static struct ctl ctl;

static const struct cli_option global_options[] = {
    {.name = "--node",
     .letter = 'n',
     .value = "HOST:PORT[,..]",
     .kind = CLI_TEXT,
     .out = &ctl.nodes,
     .help = "Nodes to try in turn, by id or gRPC address. Without it "
             "$HEDGE_NODE, else " CLIENT_DEFAULT_NODE "."},
    {.name = "--output",
     .letter = 'o',
     .value = "table|json",
     .kind = CLI_CHOICE,
     .out = &ctl.output,
     .fallback = "table",
     .help = "json prints one object a line."},
    {.name = "--timeout",
     .value = "DUR",
     .kind = CLI_DURATION,
     .out = &ctl.timeout_ms,
     .min = 1,
     .fallback = "15s",
     .help = "How long a command may wait for the cluster."},
    {.name = NULL}};

static const struct cli_command *const commands[] = {
    cluster_commands,    sos_commands, log_commands, msg_commands,
    msg_stream_commands, sem_commands, NULL};

int main(int argc, char **argv)
{
    static struct cli_program program = {
        .name = "hedgectl",
        .version = HEDGE_VERSION,
        .about = "Talks to a node of a hedge cluster.",
        .options = global_options,
        .commands = commands,
        .ctx = &ctl,
    };
    struct strbuf notes;
    int rv;

    if (argc > 1 && strcmp(argv[1], GUARD_WORD) == 0) {
        return guard_main(argc - 2, argv + 2);
    }
    rpc_process_setup();
    /* A reader that has seen enough ends us as it ends any filter. */
    (void)signal(SIGPIPE, SIG_DFL);
    log_set_level(LOG_OFF);
    output_init();
    strbuf_init(&notes);
    strbuf_addf(&notes, "Sizes are bytes, or with K, M or G (1024-based). "
                        "Durations have a unit: ms, s, m or h. ");
    ctl_describe_statuses(&notes);
    program.notes = strbuf_ok(&notes) ? notes.text : NULL;
    rv = cli_main(&program, argc, argv);
    strbuf_release(&notes);
    return rv;
}
