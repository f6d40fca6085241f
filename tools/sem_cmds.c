#include "cluster/pb.h"
#include "cluster/locks/lock_list.h"
#include "proto/locks.pb-c.h"
#include "store/base/mem.h"
#include "store/base/units.h"
#include "tools/output.h"
#include "tools/sem_run.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LEASE_SLACK_MS 10000
#define REPLY_SLACK_MS 5000

static uint64_t limit, permits, wait_ms, lease_ms, ttl_ms;
static bool limit_given, wait_given, ttl_given;

/* --- calls ------------------------------------------------------------------
 */

/* One call through a node; the exit status, after saying what went wrong. */
static int call(const struct cli_call *cli, const char *path,
                const ProtobufCMessage *m,
                const ProtobufCMessageDescriptor *type, uint64_t more_ms,
                void **reply)
{
    struct hedge_error e;
    struct client *c;
    int rv = ctl_connect(cli->ctx, &c);

    *reply = NULL;
    if (rv != CLI_DONE) {
        return rv;
    }
    error_clear(&e);
    rv = pb_call(client_channel(c), path, m, type, client_left_ms(c) + more_ms,
                 reply, &e);
    client_free(c);
    return rv == 0 ? CLI_DONE : ctl_error(&e);
}

static bool parse_token(const char *text, uint64_t *out)
{
    return units_parse_u64(text, out) && *out != 0;
}

/* --- run --------------------------------------------------------------------
 */

static int check_limit(void)
{
    if (!limit_given) {
        return cli_usage("--limit is needed: how many permits there are");
    }
    if (permits > limit) {
        return cli_usage("--permits: %" PRIu64 " of a limit of %" PRIu64,
                         permits, limit);
    }
    return 0;
}

static int run_with(const struct cli_call *cli, uint64_t of, uint64_t want)
{
    const struct keeper_request r = {.name = cli->operands[0],
                                     .limit = (uint32_t)of,
                                     .permits = (uint32_t)want,
                                     .wait_ms =
                                         wait_given ? wait_ms : SEMAPHORE_NEVER,
                                     .lease_ms = lease_ms};

    return ctl_check_name(r.name) != 0 ? CLI_RUN_FAILED
                                       : sem_run(cli->ctx, &r, cli->rest);
}

static int run_sem_run(const struct cli_call *cli)
{
    return check_limit() != 0 ? CLI_RUN_FAILED : run_with(cli, limit, permits);
}

static int run_lock_run(const struct cli_call *cli)
{
    return run_with(cli, 1, 1);
}

/* --- acquire, release, revoke -----------------------------------------------
 */

static int print_token(const struct cli_call *cli, uint64_t token)
{
    cJSON *o;

    if (!ctl_json(cli)) {
        printf("%" PRIu64 "\n", token);
        return CLI_DONE;
    }
    o = output_object();
    output_add_text(o, "name", cli->operands[0]);
    output_add_u64(o, "token", token);
    output_json(o);
    return CLI_DONE;
}

static uint64_t acquire_wait_ms(const struct cli_call *cli)
{
    return wait_given ? wait_ms : ((const struct ctl *)cli->ctx)->timeout_ms;
}

/* A session for the wait alone: the grant leaves it. */
static int run_acquire(const struct cli_call *cli)
{
    Hedge__V1__LockRequest m = HEDGE__V1__LOCK_REQUEST__INIT;
    Hedge__V1__LockSession s = HEDGE__V1__LOCK_SESSION__INIT;
    uint64_t ms = acquire_wait_ms(cli), lease = ms + LEASE_SLACK_MS;
    char holder[256];
    void *reply;
    int rv = ctl_check_name(cli->operands[0]);

    rv = rv != 0 ? rv : check_limit();
    if (rv == 0 && !ttl_given) {
        rv = cli_usage("--ttl is needed: how long it is held");
    }
    if (rv != 0) {
        return rv;
    }
    keeper_name(holder, sizeof holder);
    s.session = keeper_random();
    s.lease_ms =
        lease < SEMAPHORE_LEASE_MAX_MS ? lease : SEMAPHORE_LEASE_MAX_MS;
    s.holder = holder;
    m.session = &s;
    m.request = keeper_random();
    m.attempt = 1;
    m.name = cli->operands[0];
    m.limit = (uint32_t)limit;
    m.permits = (uint32_t)permits;
    m.ttl_ms = ttl_ms;
    m.wait_ms = ms;
    rv = call(cli,
              ms > 0 ? "/hedge.v1.Locks/Acquire" : "/hedge.v1.Locks/TryAcquire",
              &m.base, &hedge__v1__lock_grant__descriptor, ms + REPLY_SLACK_MS,
              &reply);
    if (rv == CLI_DONE) {
        rv = print_token(cli, ((Hedge__V1__LockGrant *)reply)->token);
    }
    pb_free(reply);
    return rv;
}

static int token_call(const struct cli_call *cli, const char *path)
{
    Hedge__V1__LockToken m = HEDGE__V1__LOCK_TOKEN__INIT;
    void *reply;
    int rv = ctl_check_name(cli->operands[0]);

    if (rv != 0) {
        return rv;
    }
    if (!parse_token(cli->operands[1], &m.token)) {
        return cli_usage("'%s' is not a token", cli->operands[1]);
    }
    m.name = cli->operands[0];
    rv = call(cli, path, &m.base, &hedge__v1__lock_done__descriptor, 0, &reply);
    pb_free(reply);
    return rv;
}

static int run_release(const struct cli_call *cli)
{
    return token_call(cli, "/hedge.v1.Locks/Release");
}

static int run_revoke(const struct cli_call *cli)
{
    return token_call(cli, "/hedge.v1.Locks/Revoke");
}

/* --- ls ---------------------------------------------------------------------
 */

static void add_holders(cJSON *o, const char *name,
                        const struct hedge_semaphore_holder *list, size_t n,
                        bool holders)
{
    cJSON *array = output_add_array(o, name);

    for (size_t i = 0; i < n; i++) {
        cJSON *h = output_object();
        output_add_text(h, "holder", list[i].holder);
        if (holders) {
            output_add_u64(h, "token", list[i].token);
        }
        output_add_u64(h, "permits", list[i].permits);
        output_add_u64(h, "remaining_ms", list[i].remaining_ms);
        output_append(array, h);
    }
}

static void print_json(const struct hedge_semaphores *list)
{
    for (size_t i = 0; i < list->n; i++) {
        const struct hedge_semaphore_info *m = &list->semaphore[i];
        cJSON *o = output_object();

        output_add_text(o, "name", m->name);
        output_add_u64(o, "limit", m->limit);
        add_holders(o, "holders", m->holders, m->n_holders, true);
        add_holders(o, "waiters", m->waiters, m->n_waiters, false);
        output_json(o);
    }
}

static void table_holder(struct table *t, const struct hedge_semaphore_info *m,
                         const struct hedge_semaphore_holder *h)
{
    char text[UNITS_SIZE_TEXT];

    table_text(t, m->name);
    table_u64(t, m->limit);
    table_u64(t, h->permits);
    if (h->token != 0) {
        table_u64(t, h->token);
    } else {
        table_text(t, "waits");
    }
    table_text(t, units_format_duration(h->remaining_ms, text));
    table_text(t, h->holder);
}

static void print_table(const struct hedge_semaphores *list)
{
    struct table *t =
        table_new("NAME|>LIMIT|>PERMITS|>TOKEN|>LEASE LEFT|HOLDER");

    for (size_t i = 0; i < list->n; i++) {
        const struct hedge_semaphore_info *m = &list->semaphore[i];

        for (size_t k = 0; k < m->n_holders; k++) {
            table_holder(t, m, &m->holders[k]);
        }
        for (size_t k = 0; k < m->n_waiters; k++) {
            table_holder(t, m, &m->waiters[k]);
        }
    }
    table_print(t);
}

/* The page that `m` asks for; then it asks for the next one, with what *reply
 * has. */
static int list_page(struct client *c, Hedge__V1__LockQuery *m, void **reply,
                     struct lock_pages *pages, struct hedge_error *e)
{
    struct hedge_semaphores *page;
    Hedge__V1__LockList *list;
    void *next;
    int rv =
        pb_call(client_channel(c), "/hedge.v1.Locks/List", &m->base,
                &hedge__v1__lock_list__descriptor, client_left_ms(c), &next, e);

    pb_free(*reply);
    *reply = list = next;
    m->after = NULL;
    if (rv != 0) {
        return rv;
    }
    m->after = list->next;
    if (lock_list_from(list, &page) != 0 || lock_pages_add(pages, page) != 0) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the list");
    }
    return 0;
}

static int list_all(const struct cli_call *cli, Hedge__V1__LockQuery *m,
                    struct hedge_semaphores **out)
{
    struct lock_pages pages = {0};
    struct hedge_error e = {0};
    void *reply = NULL;
    struct client *c;
    int rv = ctl_connect(cli->ctx, &c);

    *out = NULL;
    if (rv != CLI_DONE) {
        return rv;
    }
    m->max = SEMAPHORE_PAGE_MAX;
    do {
        rv = list_page(c, m, &reply, &pages, &e);
    } while (rv == 0 && m->after != NULL);
    if (rv == 0 && lock_pages_join(&pages, out) != 0) {
        rv = error_set(&e, HEDGE_ENOMEM, "no memory for the list");
    }
    pb_free(reply);
    lock_pages_release(&pages);
    client_free(c);
    return rv == 0 ? CLI_DONE : ctl_error(&e);
}

static int run_ls(const struct cli_call *cli)
{
    Hedge__V1__LockQuery m = HEDGE__V1__LOCK_QUERY__INIT;
    struct hedge_semaphores *list;
    int rv = cli->n > 0 ? ctl_check_name(cli->operands[0]) : 0;

    if (rv != 0) {
        return rv;
    }
    if (cli->n > 0) {
        m.name = cli->operands[0];
    }
    rv = list_all(cli, &m, &list);
    if (rv != CLI_DONE) {
        return rv;
    }
    if (cli->n > 0 && list->n == 0) {
        (void)cli_fail("nobody holds or waits for semaphore \"%s\"",
                       cli->operands[0]);
        rv = ctl_status(HEDGE_ENOTFOUND);
    } else if (ctl_json(cli)) {
        print_json(list);
    } else {
        print_table(list);
    }
    mem_free(list);
    return rv;
}

/* --- the table --------------------------------------------------------------
 */

#define LIMIT_OPTION                                                       \
    {                                                                      \
        .name = "--limit", .value = "N", .kind = CLI_COUNT, .min = 1,      \
        .max = SEMAPHORE_LIMIT_MAX, .out = &limit, .given = &limit_given,  \
        .help = "How many permits there are; the same for all who use it." \
    }
#define PERMITS_OPTION                                                  \
    {                                                                   \
        .name = "--permits", .value = "K", .kind = CLI_COUNT, .min = 1, \
        .max = SEMAPHORE_LIMIT_MAX, .out = &permits, .fallback = "1",   \
        .help = "How many of them to take."                             \
    }
#define WAIT_OPTION(text)                                       \
    {                                                           \
        .name = "--wait", .value = "DUR", .kind = CLI_DURATION, \
        .out = &wait_ms, .given = &wait_given, .help = text     \
    }
#define LEASE_OPTION                                                           \
    {                                                                          \
        .name = "--lease", .value = "DUR", .kind = CLI_DURATION,               \
        .min = SEMAPHORE_LEASE_MIN_MS, .max = SEMAPHORE_LEASE_MAX_MS,          \
        .out = &lease_ms, .fallback = "15s",                                   \
        .help = "How long the permits stay taken when this process vanishes; " \
                "renewed every fifth of it."                                   \
    }

static const struct cli_option run_options[] = {
    LIMIT_OPTION,
    PERMITS_OPTION,
    WAIT_OPTION("Give up after so long in line; 0: do not wait. Without it, "
                "as long as it takes."),
    LEASE_OPTION,
    {.name = NULL}};

static const struct cli_option lock_options[] = {
    WAIT_OPTION("Give up after so long in line; 0: do not wait. Without it, "
                "as long as it takes."),
    LEASE_OPTION,
    {.name = NULL}};

static const struct cli_option acquire_options[] = {
    LIMIT_OPTION,
    PERMITS_OPTION,
    WAIT_OPTION("Give up after so long in line; 0: do not wait. Without it, "
                "after --timeout."),
    {.name = "--ttl",
     .value = "DUR",
     .kind = CLI_DURATION,
     .min = SEMAPHORE_LEASE_MIN_MS,
     .max = SEMAPHORE_TTL_MAX_MS,
     .out = &ttl_ms,
     .given = &ttl_given,
     .help = "How long it is held; nothing renews it. A change of leader "
             "begins it anew."},
    {.name = NULL}};

#define RUN_DETAILS                                                           \
    "Waits in line, first come first served, then runs CMD in a process "     \
    "group of its own with the fencing token in $HEDGE_FENCE_TOKEN, and "     \
    "exits with its status (128 + N when signal N killed it). SIGINT, "       \
    "SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on. When the "  \
    "permits cannot be renewed, are revoked, or hedgectl is killed or "       \
    "stopped, CMD gets SIGTERM and then SIGKILL before anybody else can get " \
    "the permits, and so does what it has started, also outside its group. "  \
    "What cannot be caught: a set-user-id CMD of another user, work that "    \
    "CMD has handed to other processes such as a daemon that runs already, "  \
    "and a whole machine that is stopped for longer than the lease: for "     \
    "these, hand the token to what is protected, and let that refuse lower "  \
    "ones. Children that outlive a CMD that ends by itself are left alone. "  \
    "Own failures exit with 125, also when the permits were lost; CMD not "   \
    "runnable 126, not found 127."

const struct cli_command sem_commands[] = {
    {.name = "sem run",
     .operands = "NAME",
     .help = "Run a command while holding permits of a semaphore.",
     .details = RUN_DETAILS,
     .options = run_options,
     .operands_min = 1,
     .operands_max = 1,
     .runs_command = true,
     .run = run_sem_run},
    {.name = "sem acquire",
     .operands = "NAME",
     .help = "Take permits for a fixed time and print the token.",
     .details = "Nothing renews them and no process holds them: they come "
                "back with `sem release`, `sem revoke`, or when --ttl is over.",
     .options = acquire_options,
     .operands_min = 1,
     .operands_max = 1,
     .run = run_acquire},
    {.name = "sem release",
     .operands = "NAME TOKEN",
     .help = "Give back what a token stands for.",
     .operands_min = 2,
     .operands_max = 2,
     .run = run_release},
    {.name = "sem ls",
     .operands = "[NAME]",
     .help = "Who holds permits, and who waits, in line.",
     .operands_max = 1,
     .run = run_ls},
    {.name = "sem revoke",
     .operands = "NAME TOKEN",
     .help = "Take permits away from whoever holds them.",
     .details = "The holder is told, and has given them up at the latest when "
                "its lease would have ended; from then on others get them. "
                "What `sem acquire` took is free at once.",
     .operands_min = 2,
     .operands_max = 2,
     .run = run_revoke},
    {.name = "lock run",
     .operands = "NAME",
     .help = "Run a command while holding a lock: a semaphore of one.",
     .details = RUN_DETAILS,
     .options = lock_options,
     .operands_min = 1,
     .operands_max = 1,
     .runs_command = true,
     .run = run_lock_run},
    {.name = NULL}};
