/* main.c - hedged: one node in the foreground. */
#include "server/handler_cmd.h"
#include "server/http.h"
#include "server/options.h"

#include "store/base/log.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define EXIT_FAILED 1
#define EXIT_USAGE 2

/* Every descriptor that may be had: streams and extents take some. */
static void raise_file_limit(void)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
}

#define JOIN_LOOK_NS 100000000

/* Wait for one of the signals, or until the group refuses a node that was
 * never in it: < 0. */
static int await_signal(struct hedge_node *node, const sigset_t *set, int *sig)
{
    const struct timespec look = {.tv_nsec = JOIN_LOOK_NS};
    struct hedge_error e = {0};
    int rv;

    *sig = 0;
    while ((rv = hedge_node_joined(node, &e)) == HEDGE_EAGAIN) {
        *sig = sigtimedwait(set, NULL, &look);
        if (*sig > 0) {
            return 0;
        }
    }
    if (rv != 0) {
        fprintf(stderr, "hedged: node %s is %s\n", hedge_node_name(node),
                e.text);
        return rv;
    }
    return sigwait(set, sig) == 0 ? 0 : HEDGE_EINTERNAL;
}

static int start(struct options *o, struct daemon_handlers *d,
                 struct hedge_node **out, struct hedge_error *e)
{
    int rv = daemon_handlers_init(d, o->leader_cmd, o->broadcast_cmd, e);

    if (rv != 0) {
        return rv;
    }
    daemon_handlers_install(d, &o->node);
    rv = hedge_node_start(&o->node, out, e);
    if (rv != 0) {
        daemon_handlers_release(d);
        return rv;
    }
    daemon_handlers_start(d, *out);
    return 0;
}

static int run(struct options *o)
{
    struct daemon_handlers handlers;
    struct hedge_node *node;
    struct http *http = NULL;
    struct hedge_error e = {0};
    sigset_t set;
    int sig = 0, rv;

    /* Blocked before any thread is made; they all inherit it. */
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    (void)signal(SIGCHLD, SIG_DFL); /* Ignored, no program could be awaited. */
    hedge_process_setup();
    raise_file_limit();
    log_set_level(o->log_level);
    log_set_json(o->log_json);
    /* Before anything is made: an address that is taken changes nothing. */
    rv = o->http != NULL ? http_new(o->http, &http, &e) : 0;
    rv = rv != 0 ? rv : start(o, &handlers, &node, &e);
    if (rv != 0) {
        fprintf(stderr, "hedged: %s\n", e.text);
        http_free(http);
        return rv == HEDGE_EINVAL ? EXIT_USAGE : EXIT_FAILED;
    }
    log_info("hedged", "node %s, gRPC on %s, version %s", hedge_node_name(node),
             hedge_node_grpc_address(node), hedge_version());
    if (http != NULL) {
        rv = http_start(http, node, &e);
        if (rv != 0) {
            fprintf(stderr, "hedged: %s\n", e.text);
            http_free(http);
            hedge_node_stop(node);
            daemon_handlers_release(&handlers);
            return EXIT_FAILED;
        }
        log_info("hedged", "HTTP on %s", o->http);
    }
    do {
        rv = await_signal(node, &set, &sig);
    } while (rv == 0 && sig == SIGHUP);
    if (rv == 0) {
        log_info("hedged", "signal %d: stopping", sig);
    }
    http_quiesce(http);
    hedge_node_stop(node);
    http_free(http);
    daemon_handlers_release(&handlers);
    return rv == 0 ? 0 : EXIT_FAILED;
}

int main(int argc, char **argv)
{
    struct hedge_error e = {0};
    struct options o;
    int rv = 0;

    if (options_parse(argc, argv, &o, &e) != 0) {
        fprintf(stderr, "hedged: %s\n", e.text);
        return EXIT_USAGE;
    }
    switch (o.action) {
    case OPTIONS_HELP:
        options_help(stdout);
        break;
    case OPTIONS_VERSION:
        printf("hedged %s\n", hedge_version());
        break;
    case OPTIONS_CHECK:
        printf("the configuration is good\n");
        break;
    case OPTIONS_RUN:
        rv = run(&o);
        break;
    }
    options_release(&o);
    return rv;
}
