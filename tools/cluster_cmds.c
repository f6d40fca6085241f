#include "tools/ctl.h"

#include "store/base/strbuf.h"
#include "store/base/units.h"
#include "tools/output.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static bool follow;

/* --- members ---------------------------------------------------------------
 */

static cJSON *member_object(const Hedge__V1__Member *m)
{
    cJSON *o = output_object();

    output_add_text(o, "id", m->id);
    output_add_bool(o, "leader", m->leader);
    output_add_u64(o, "mem_free", m->mem_free);
    output_add_u64(o, "disk_free", m->disk_free);
    output_add_u64(o, "mem_used", m->mem_used);
    output_add_u64(o, "disk_used", m->disk_used);
    output_add_u64(o, "mem_limit", m->mem_limit);
    output_add_u64(o, "disk_limit", m->disk_limit);
    output_add_u64(o, "mem_lent", m->mem_lent);
    output_add_u64(o, "disk_lent", m->disk_lent);
    output_add_text(o, "grpc", m->grpc_address);
    output_add_id(o, "incarnation", m->incarnation);
    output_add_text(o, "boot_id", m->boot_id);
    output_add_text(o, "version", m->version);
    return o;
}

static void print_members_json(const Hedge__V1__MembersReply *r)
{
    for (size_t i = 0; i < r->n_members; i++) {
        cJSON *o = member_object(r->members[i]);

        output_add_u64(o, "token", r->token);
        output_add_u64(o, "list", r->version);
        output_json(o);
    }
}

static void print_members_table(const Hedge__V1__MembersReply *r)
{
    struct table *t = table_new("ID|LEADER|>MEM FREE|>MEM USED|>MEM LENT|"
                                ">DISK FREE|>DISK USED|>DISK LENT|VERSION");

    for (size_t i = 0; i < r->n_members; i++) {
        const Hedge__V1__Member *m = r->members[i];

        table_text(t, m->id);
        table_text(t, m->leader ? "yes" : "");
        table_size(t, m->mem_free);
        table_size(t, m->mem_used);
        table_size(t, m->mem_lent);
        table_size(t, m->disk_free);
        table_size(t, m->disk_used);
        table_size(t, m->disk_lent);
        table_text(t, m->version);
    }
    table_print(t);
}

static void print_members(const struct cli_call *call,
                          const Hedge__V1__MembersReply *r)
{
    if (ctl_json(call)) {
        print_members_json(r);
    } else {
        print_members_table(r);
    }
}

struct follower {
    const struct cli_call *call;
    struct strbuf shown; /* What was printed last, as who_is_there() has it. */
};

/* All that a list says but its version and the figures: members report those
 * once a second, and then the list is a new one with nothing new in it. */
static void who_is_there(const Hedge__V1__MembersReply *r, struct strbuf *out)
{
    strbuf_addf(out, "%" PRIu64 "\n", r->token);
    for (size_t i = 0; i < r->n_members; i++) {
        const Hedge__V1__Member *m = r->members[i];

        strbuf_addf(out, "%s %" PRIu64 " %d %s %s %s %s\n", m->id,
                    m->incarnation, m->leader, m->grpc_address, m->boot_id,
                    m->socket, m->version);
    }
}

static int on_members(void *ctx, const Hedge__V1__MembersReply *r)
{
    struct follower *f = ctx;
    struct strbuf now;

    strbuf_init(&now);
    who_is_there(r, &now);
    if (!strbuf_ok(&now)) {
        strbuf_release(&now);
        return HEDGE_ENOMEM;
    }
    if (f->shown.len > 0 && strcmp(f->shown.text, now.text) == 0) {
        strbuf_release(&now);
        return 0;
    }
    if (f->shown.len > 0 && !ctl_json(f->call)) {
        (void)putchar('\n');
    }
    strbuf_release(&f->shown);
    f->shown = now;
    print_members(f->call, r);
    return ferror(stdout) ? HEDGE_EIO : 0;
}

static int run_members(const struct cli_call *call)
{
    struct follower f = {.call = call};
    Hedge__V1__MembersReply *reply;
    struct hedge_error e;
    struct client *c;
    int rv = ctl_connect(call->ctx, &c);

    if (rv != CLI_DONE) {
        return rv;
    }
    error_clear(&e);
    if (follow) {
        strbuf_init(&f.shown);
        rv = client_watch_members(c, on_members, &f, &e);
        strbuf_release(&f.shown);
    } else {
        rv = client_members(c, &reply, &e);
        if (rv == 0) {
            print_members(call, reply);
            hedge__v1__members_reply__free_unpacked(reply, NULL);
        }
    }
    client_free(c);
    return e.code != 0 ? ctl_error(&e) : rv == 0 ? CLI_DONE : CLI_FAILED;
}

/* --- leader ----------------------------------------------------------------
 */

static int run_leader(const struct cli_call *call)
{
    Hedge__V1__LeaderReply *reply;
    struct hedge_error e;
    struct client *c;
    cJSON *o;
    int rv = ctl_connect(call->ctx, &c);

    if (rv != CLI_DONE) {
        return rv;
    }
    rv = client_leader(c, &reply, &e);
    client_free(c);
    if (rv != 0) {
        return ctl_error(&e);
    }
    if (ctl_json(call)) {
        o = output_object();
        output_add_text(o, "id", reply->id);
        output_add_u64(o, "token", reply->token);
        output_add_u64(o, "lease_ms", reply->lease_ms);
        output_add_text(o, "grpc", reply->grpc_address);
        output_json(o);
    } else {
        printf("%s\n", reply->id);
    }
    hedge__v1__leader_reply__free_unpacked(reply, NULL);
    return CLI_DONE;
}

/* --- status ----------------------------------------------------------------
 */

static void print_status_json(const Hedge__V1__StatusReply *r,
                              const Hedge__V1__Member *self)
{
    cJSON *o = member_object(self), *features, *f;

    /* Here it is more useful to say who leads than whether this node does. */
    cJSON_DeleteItemFromObject(o, "leader");
    output_add_text(o, "leader", r->leader);
    output_add_u64(o, "token", r->token);
    output_add_text(o, "group", r->group);
    output_add_text(o, "engine", r->engine);
    output_add_text(o, "data_dir", r->data_dir);
    output_add_u64(o, "block_size", r->block_size);
    output_add_u64(o, "uptime_ms", r->uptime_ms);
    output_add_text(o, "outside", r->outside);
    output_add_u64(o, "stores", r->stores);
    output_add_u64(o, "mem_reserve", r->mem_reserve);
    output_add_u64(o, "disk_reserve", r->disk_reserve);
    output_add_u64(o, "lend_mem", r->lend_mem);
    output_add_u64(o, "lend_disk", r->lend_disk);
    output_add_u64(o, "message_limit", r->message_limit);
    output_add_u64(o, "message_used", r->message_used);
    features = output_add_array(o, "features");
    for (size_t i = 0; i < r->n_features; i++) {
        f = output_object();
        output_add_text(f, "name", r->features[i]->name);
        output_add_bool(f, "on", r->features[i]->on);
        output_add_text(f, "detail", r->features[i]->detail);
        output_append(features, f);
    }
    output_json(o);
}

static void print_room(const char *what, uint64_t used, uint64_t limit,
                       uint64_t lent, uint64_t reserve)
{
    char a[UNITS_SIZE_TEXT], b[UNITS_SIZE_TEXT], c[UNITS_SIZE_TEXT],
        d[UNITS_SIZE_TEXT];

    printf("%-10s %s of %s used, %s of it by other nodes; %s reserved\n", what,
           units_format_size(used, a), units_format_size(limit, b),
           units_format_size(lent, c), units_format_size(reserve, d));
}

static void print_status_text(const Hedge__V1__StatusReply *r,
                              const Hedge__V1__Member *self)
{
    char a[UNITS_SIZE_TEXT], b[UNITS_SIZE_TEXT];

    printf("%-10s %s (hedged %s)\n", "node", self->id, self->version);
    printf("%-10s %s\n", "grpc", self->grpc_address);
    printf("%-10s %s\n", "group", r->group);
    if (r->outside[0] != '\0') {
        printf("%-10s %s\n", "state", r->outside);
    }
    printf("%-10s %s (token %" PRIu64 ")\n", "leader",
           r->leader[0] != '\0' ? r->leader : "none", r->token);
    printf("%-10s %s\n", "engine", r->engine);
    printf("%-10s %s\n", "data", r->data_dir);
    printf("%-10s %s\n", "up", units_format_duration(r->uptime_ms, a));
    print_room("memory", self->mem_used, self->mem_limit, self->mem_lent,
               r->mem_reserve);
    print_room("disk", self->disk_used, self->disk_limit, self->disk_lent,
               r->disk_reserve);
    printf("%-10s %s of %s used\n", "messages",
           units_format_size(r->message_used, a),
           units_format_size(r->message_limit, b));
    printf("%-10s %u, blocks of %s\n", "stores", r->stores,
           units_format_size(r->block_size, a));
    for (size_t i = 0; i < r->n_features; i++) {
        const Hedge__V1__Feature *f = r->features[i];

        printf("%-10s %s: %s%s%s\n", i == 0 ? "features" : "", f->name,
               f->on ? "on" : "off", f->detail[0] != '\0' ? ", " : "",
               f->detail);
    }
}

static int run_status(const struct cli_call *call)
{
    Hedge__V1__Member nobody = HEDGE__V1__MEMBER__INIT;
    Hedge__V1__StatusReply *reply;
    const Hedge__V1__Member *self;
    struct hedge_error e;
    struct client *c;
    int rv = ctl_connect(call->ctx, &c);

    if (rv != CLI_DONE) {
        return rv;
    }
    rv = client_status(c, &reply, &e);
    client_free(c);
    if (rv != 0) {
        return ctl_error(&e);
    }
    self = reply->self != NULL ? reply->self : &nobody;
    if (ctl_json(call)) {
        print_status_json(reply, self);
    } else {
        print_status_text(reply, self);
    }
    hedge__v1__status_reply__free_unpacked(reply, NULL);
    return CLI_DONE;
}

static const struct cli_option members_options[] = {
    {.name = "--follow",
     .kind = CLI_FLAG,
     .out = &follow,
     .help = "Print the list again after every change of who is there, "
             "their addresses or the leader, until interrupted."},
    {.name = NULL}};

const struct cli_command cluster_commands[] = {
    {.name = "members",
     .operands = "",
     .help = "List the nodes of the cluster and their free room.",
     .options = members_options,
     .run = run_members},
    {.name = "leader",
     .operands = "",
     .help = "Print the leader's id.",
     .details = "As JSON with its fencing token and the length of its lease.",
     .run = run_leader},
    {.name = "status",
     .operands = "",
     .help = "Describe the node that answers: its limits, what is in use, "
             "which features are off and why.",
     .run = run_status},
    {.name = NULL}};
