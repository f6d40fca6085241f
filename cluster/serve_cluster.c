/* serve_cluster.c - service hedge.v1.Cluster, and the directory calls of
 * hedge.v1.Peer. */
#include "cluster/node_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <stdio.h>
#include <string.h>

#define WATCH_STEP_MS 500
#define SEND_MS 10000
#define SETTLE_MS 4000 /* The caller asks again. */

/* --- members --- */

struct members_block {
    Hedge__V1__MembersReply reply;
    Hedge__V1__Member **pointers;
    Hedge__V1__Member *members;
};

int members_message(struct hedge_node *n, struct view *v,
                    Hedge__V1__MembersReply **out)
{
    struct members_block *b =
        mem_calloc(1, sizeof *b + v->n * (sizeof(Hedge__V1__Member) +
                                          sizeof(Hedge__V1__Member *)));

    *out = NULL;
    if (b == NULL) {
        return HEDGE_ENOMEM;
    }
    hedge__v1__members_reply__init(&b->reply);
    b->members = (Hedge__V1__Member *)(void *)(b + 1);
    b->pointers = (Hedge__V1__Member **)(void *)(b->members + v->n);
    b->reply.version = v->version;
    b->reply.token = v->token;
    b->reply.lease_ms = atomic_load(&n->leader_lease_ms);
    b->reply.n_members = v->n;
    b->reply.members = b->pointers;
    for (size_t i = 0; i < v->n; i++) {
        b->pointers[i] = &b->members[i];
        pb_member(&v->members[i], &b->members[i]);
    }
    *out = &b->reply;
    return 0;
}

void members_release(Hedge__V1__MembersReply *m)
{
    mem_free(m);
}

/* A request without fields is one that can be read all the same. */
static bool fail_unless_empty(struct rpc_call *call, const void *req,
                              size_t len)
{
    void *m = pb_unpack(&hedge__v1__empty__descriptor, req, len);

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not an Empty");
    }
    pb_free(m);
    return m == NULL;
}

void serve_members(struct rpc_call *call, void *ctx, const void *req,
                   size_t len)
{
    struct hedge_node *n = ctx;
    struct view *v = node_view(n);
    Hedge__V1__MembersReply *m = NULL;
    struct hedge_error e = {0};
    int rv = hedge_node_joined(n, &e);

    if (fail_unless_empty(call, req, len)) {
        view_unref(v);
        return;
    }
    if (rv != 0 && rv != HEDGE_EAGAIN) {
        (void)error_prefix(&e, "node %s is", n->id);
        rpc_fail(call, rv, e.text);
    } else if (v == NULL || members_message(n, v, &m) != 0) {
        rpc_fail(call, HEDGE_ENOMEM, "no member list");
    } else {
        pb_reply(call, &m->base);
    }
    members_release(m);
    view_unref(v);
}

/* Wait for a view other than `seen`, a step at most. */
static struct view *next_view(struct hedge_node *n, const struct view *seen)
{
    uint64_t until = clock_mono_ns() + (uint64_t)WATCH_STEP_MS * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                          .tv_nsec = (long)(until % 1000000000u)};
    struct view *v = NULL;

    pthread_mutex_lock(&n->pub_lock);
    if (n->view == seen && !n->closing) {
        (void)pthread_cond_timedwait(&n->pub_changed, &n->pub_lock, &ts);
    }
    if (n->view != seen) {
        v = n->view;
        atomic_fetch_add(&v->refs, 1);
    }
    pthread_mutex_unlock(&n->pub_lock);
    return v;
}

/* Its request, and that it has gone. */
static int hear_watcher(struct rpc_stream *s, struct hedge_error *e)
{
    struct rpc_msg msg;
    void *m;
    int rv = rpc_stream_recv(s, 0, &msg, e);

    if (rv == 0) {
        m = pb_from_msg(&hedge__v1__empty__descriptor, &msg, e);
        rv = m != NULL ? 0 : HEDGE_EPROTO;
        pb_free(m);
    }
    return rv == HEDGE_ETIMEDOUT || rv == HEDGE_EEND ? 0 : rv;
}

int serve_watch_members(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    struct view *seen = NULL;
    int rv = 0;

    while (rv == 0 && !n->closing && !rpc_stream_is_cancelled(s)) {
        struct view *v = next_view(n, seen);
        Hedge__V1__MembersReply *m;

        rv = hear_watcher(s, e);
        if (v == NULL) {
            continue;
        }
        view_unref(seen);
        seen = v;
        rv = rv != 0 ? rv : members_message(n, v, &m);
        if (rv == 0) {
            rv = pb_send(s, &m->base, SEND_MS);
            members_release(m);
        }
    }
    view_unref(seen);
    return rv;
}

/* This node's own until the leader's is known. */
static uint64_t leader_lease_ms(struct hedge_node *n)
{
    uint64_t ms = atomic_load(&n->leader_lease_ms);

    return ms != 0 ? ms : n->o.lease_ms;
}

void serve_leader(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__LeaderReply m = HEDGE__V1__LEADER_REPLY__INIT;
    struct hedge_leader l;

    if (fail_unless_empty(call, req, len)) {
        return;
    }
    if (hedge_leader(n, &l) != 0) {
        rpc_fail(call, HEDGE_ENOLEADER,
                 "the group has no leader at present; try again in a moment");
        return;
    }
    m.id = l.id;
    m.token = l.token;
    m.lease_ms = leader_lease_ms(n);
    m.grpc_address = l.grpc_address;
    pb_reply(call, &m.base);
}

/* --- status --- */

struct features {
    Hedge__V1__Feature table[5];
    Hedge__V1__Feature *pointers[5];
    unsigned n;
};

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

static void add_feature(struct features *f, const char *name, bool on,
                        const char *detail)
{
    Hedge__V1__Feature *m = &f->table[f->n];

    hedge__v1__feature__init(m);
    m->name = unconst(name);
    m->on = on;
    m->detail = unconst(detail);
    f->pointers[f->n++] = m;
}

static void fill_status(struct hedge_node *n, Hedge__V1__StatusReply *m,
                        const struct sos_usage *u)
{
    m->group = n->group;
    m->engine = n->engine_url;
    m->data_dir = n->data_dir;
    m->block_size = (uint32_t)n->o.block_size;
    m->uptime_ms = clock_boot_ms() - n->started_ms;
    m->mem_reserve = u->arena.reserve;
    m->disk_reserve = n->o.disk_reserve;
    m->message_limit = n->o.message_limit;
    m->message_used = msg_budget_used(n->messages);
    m->stores = u->stores;
    m->lend_mem = n->o.lend_mem < u->arena.limit - u->arena.reserve
                      ? n->o.lend_mem
                      : u->arena.limit - u->arena.reserve;
    m->lend_disk =
        n->o.lend_disk < u->disk.limit ? n->o.lend_disk : u->disk.limit;
}

void serve_status(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__StatusReply m = HEDGE__V1__STATUS_REPLY__INIT;
    Hedge__V1__Member self;
    struct member me = {0};
    struct disk_features d = {0};
    struct features f = {.n = 0};
    struct hedge_leader l = {.id = ""};
    struct hedge_error e = {0};
    struct sos_usage u;

    if (fail_unless_empty(call, req, len)) {
        return;
    }
    sos_usage(n->sos, &u);
    (void)member_set_text(me.id, sizeof me.id, n->id);
    (void)member_set_text(me.grpc_address, sizeof me.grpc_address,
                          n->grpc_address);
    (void)member_set_text(me.boot_id, sizeof me.boot_id, n->boot_id);
    (void)member_set_text(me.socket, sizeof me.socket, n->socket);
    (void)member_set_text(me.version, sizeof me.version, HEDGE_VERSION);
    me.incarnation = n->incarnation;
    me.mem_limit = u.arena.limit;
    me.mem_used = u.arena.by_class[ARENA_STORED];
    me.mem_free = u.mem_lendable;
    me.mem_lent = u.mem_lent;
    me.disk_limit = u.disk.limit;
    me.disk_used = u.disk.used;
    me.disk_free = u.disk_lendable;
    me.disk_lent = u.disk_lent;
    me.leader = hedge_has_lock(n, &m.token);
    pb_member(&me, &self);
    m.self = &self;
    fill_status(n, &m, &u);
    if (hedge_leader(n, &l) == 0) {
        m.token = l.token;
    }
    m.leader = l.id;
    if (hedge_node_joined(n, &e) != 0) {
        m.outside = e.text;
    }
    add_feature(&f, "huge pages", u.arena.huge_pages, u.arena.huge_detail);
    if (sos_disk(n->sos) != NULL) {
        disk_features(sos_disk(n->sos), &d);
        add_feature(&f, "io_uring", d.uring, d.uring_detail);
        add_feature(&f, "O_DIRECT", d.direct, d.direct_detail);
        add_feature(&f, "fallocate", d.fallocate, d.fallocate_detail);
        add_feature(&f, "disk", d.works, d.works_detail);
    }
    m.n_features = f.n;
    m.features = (Hedge__V1__Feature **)f.pointers;
    pb_reply(call, &m.base);
}

/* --- the directory --- */

static void fail_directory(struct rpc_call *call, int rv, const char *name)
{
    char text[400];

    (void)snprintf(text, sizeof text, "store \"%s\": %s", name,
                   rv == HEDGE_ETIMEDOUT
                       ? "the new leader is still hearing from the members"
                       : hedge_strerror(rv));
    rpc_fail(call, rv, text);
}

/* Where a node's gRPC server is, from the member list; "" if it has gone. */
static void address_of(struct hedge_node *n, const char *id, char *out,
                       size_t size)
{
    struct view *v = node_view(n);

    out[0] = '\0';
    for (size_t i = 0; v != NULL && i < v->n; i++) {
        if (strcmp(v->members[i].id, id) == 0) {
            (void)snprintf(out, size, "%s", v->members[i].grpc_address);
        }
    }
    view_unref(v);
}

/* The directory still holds what it held when this node was stopped for a
 * while, and somebody else may have a newer one. */
static bool fail_unless_leader(struct hedge_node *n, struct rpc_call *call)
{
    bool leads = hedge_has_lock(n, NULL);

    if (!leads) {
        rpc_fail(call, HEDGE_ENOTLEADER, "this node is not the leader");
    }
    return !leads;
}

void serve_register(struct rpc_call *call, void *ctx, const void *req,
                    size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__RegisterRequest *m =
        pb_unpack(&hedge__v1__register_request__descriptor, req, len);
    Hedge__V1__RegisterReply reply = HEDGE__V1__REGISTER_REPLY__INIT;
    Hedge__V1__DirectoryEntry entry = HEDGE__V1__DIRECTORY_ENTRY__INIT;
    struct directory_entry existing;
    char address[264];
    uint64_t generation;
    int rv;

    if (m == NULL || m->owner[0] == '\0' ||
        units_check_name(m->name, strlen(m->name), NULL) != 0) {
        rpc_fail(call, HEDGE_EPROTO, "not a RegisterRequest");
        pb_free(m);
        return;
    }
    if (fail_unless_leader(n, call)) {
        pb_free(m);
        return;
    }
    generation = m->generation;
    rv = directory_register(n->directory, m->name, m->owner, m->incarnation,
                            &generation, SETTLE_MS, &existing);
    if (rv == 0 || rv == HEDGE_EEXISTS) {
        reply.generation = generation;
        if (rv == HEDGE_EEXISTS) {
            address_of(n, existing.owner, address, sizeof address);
            entry.name = m->name;
            entry.generation = existing.generation;
            entry.owner = existing.owner;
            entry.grpc_address = address;
            reply.existing = &entry;
        }
        pb_reply(call, &reply.base);
    } else {
        fail_directory(call, rv, m->name);
    }
    pb_free(m);
}

void serve_unregister(struct rpc_call *call, void *ctx, const void *req,
                      size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__RegisterRequest *m =
        pb_unpack(&hedge__v1__register_request__descriptor, req, len);
    Hedge__V1__Empty reply = HEDGE__V1__EMPTY__INIT;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a RegisterRequest");
    } else if (!fail_unless_leader(n, call)) {
        directory_unregister(n->directory, m->name, m->generation, m->expired);
        pb_reply(call, &reply.base);
    }
    pb_free(m);
}

static void fail_expired(struct rpc_call *call, const char *name, uint64_t ago)
{
    char text[400], when[UNITS_SIZE_TEXT];

    (void)snprintf(text, sizeof text, "store \"%s\" expired %s ago", name,
                   units_format_duration(ago, when));
    rpc_fail(call, HEDGE_EEXPIRED, text);
}

void serve_find(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct hedge_node *n = ctx;
    Hedge__V1__StoreRequest *m =
        pb_unpack(&hedge__v1__store_request__descriptor, req, len);
    Hedge__V1__LookupReply reply = HEDGE__V1__LOOKUP_REPLY__INIT;
    Hedge__V1__DirectoryEntry entry = HEDGE__V1__DIRECTORY_ENTRY__INIT;
    struct directory_entry found;
    char address[264], text[400];
    int rv;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a StoreRequest");
        return;
    }
    if (fail_unless_leader(n, call)) {
        pb_free(m);
        return;
    }
    rv = directory_find(n->directory, m->name, SETTLE_MS, &found);
    if (rv == 0) {
        address_of(n, found.owner, address, sizeof address);
        entry.name = m->name;
        entry.owner = found.owner;
        entry.generation = found.generation;
        entry.grpc_address = address;
        reply.entry = &entry;
        pb_reply(call, &reply.base);
    } else if (rv == HEDGE_EEXPIRED) {
        fail_expired(call, m->name, found.expired_ago_ms);
    } else if (rv == HEDGE_ENOTFOUND) {
        (void)snprintf(text, sizeof text, "there is no store \"%s\"", m->name);
        rpc_fail(call, rv, text);
    } else {
        fail_directory(call, rv, m->name);
    }
    pb_free(m);
}
