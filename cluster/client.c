#include "cluster/client.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/strbuf.h"
#include "store/base/units.h"

#include <arpa/inet.h>
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How long a silent port keeps the others waiting before they have their
 * turn: long enough for a healthy node far away. */
#define PROBE_MS 2000
#define ADDRESS_MAX (UNITS_HOST_MAX + 16)

struct endpoint {
    char address[ADDRESS_MAX];
    bool silent; /* Neither answered nor refused. */
};

struct client {
    char *nodes;
    struct endpoint endpoints[2 * CLIENT_NODES_MAX];
    unsigned n_endpoints;
    uint64_t deadline_ms;
    struct rpc_channel *channel; /* NULL: not connected. */
    char address[ADDRESS_MAX];
    struct rpc_channel *local;      /* To the node's socket; NULL: none. */
    Hedge__V1__StatusReply *status; /* As it was when it was connected. */
};

/* --- addresses ------------------------------------------------------------ */

static void format_address(const char *host, uint16_t port,
                           char out[ADDRESS_MAX])
{
    bool v6 = strchr(host, ':') != NULL;

    host = host[0] == '\0' ? "127.0.0.1" : host;
    (void)snprintf(out, ADDRESS_MAX, "%s%s%s:%u", v6 ? "[" : "", host,
                   v6 ? "]" : "", port);
}

bool client_target(const char *address, char out[CLIENT_TARGET_MAX])
{
    char host[UNITS_HOST_MAX], full[ADDRESS_MAX];
    unsigned char binary[sizeof(struct in6_addr)];
    const char *scheme = "dns";
    uint16_t port;

    if (!units_parse_address(address, false, host, &port)) {
        return false;
    }
    format_address(host, port, full);
    if (host[0] == '\0' || inet_pton(AF_INET, host, binary) == 1) {
        scheme = "ipv4";
    } else if (strchr(host, ':') != NULL) {
        scheme = "ipv6";
    }
    (void)snprintf(out, CLIENT_TARGET_MAX, "%s:%s", scheme, full);
    return true;
}

static int add_node(struct client *c, const char *node, struct hedge_error *e)
{
    char host[UNITS_HOST_MAX];
    uint16_t port;

    if (!units_parse_address(node, false, host, &port)) {
        return error_set(e, HEDGE_EINVAL,
                         "'%s' is not the address of a node (HOST:PORT)", node);
    }
    if (c->n_endpoints + 2 > sizeof c->endpoints / sizeof c->endpoints[0]) {
        return error_set(e, HEDGE_EINVAL, "more than %d nodes",
                         CLIENT_NODES_MAX);
    }
    if (port < UINT16_MAX) {
        format_address(host, (uint16_t)(port + 1),
                       c->endpoints[c->n_endpoints++].address);
    }
    format_address(host, port, c->endpoints[c->n_endpoints++].address);
    return 0;
}

static int add_nodes(struct client *c, struct hedge_error *e)
{
    char node[ADDRESS_MAX];
    const char *p = c->nodes;
    size_t len;
    int rv = 0;

    for (; rv == 0; p += len + 1) {
        len = strcspn(p, ",");
        (void)snprintf(node, sizeof node, "%.*s", (int)len, p);
        rv = add_node(c, node, e);
        if (p[len] == '\0') {
            break;
        }
    }
    return rv;
}

int client_new(const char *nodes, uint64_t timeout_ms, struct client **out,
               struct hedge_error *e)
{
    struct client *c;
    int rv;

    *out = NULL;
    if (nodes == NULL || nodes[0] == '\0') {
        nodes = getenv("HEDGE_NODE");
    }
    if (nodes == NULL || nodes[0] == '\0') {
        nodes = CLIENT_DEFAULT_NODE;
    }
    c = mem_calloc(1, sizeof *c);
    if (c == NULL) {
        return error_set(e, HEDGE_ENOMEM, "out of memory");
    }
    c->deadline_ms = clock_mono_ms() + timeout_ms;
    c->nodes = mem_strdup(nodes);
    rv = c->nodes == NULL ? error_set(e, HEDGE_ENOMEM, "out of memory")
                          : add_nodes(c, e);
    if (rv != 0) {
        client_free(c);
        return rv;
    }
    *out = c;
    return 0;
}

static void disconnect(struct client *c)
{
    rpc_channel_free(c->channel);
    rpc_channel_free(c->local);
    if (c->status != NULL) {
        hedge__v1__status_reply__free_unpacked(c->status, NULL);
    }
    c->channel = c->local = NULL;
    c->status = NULL;
}

void client_free(struct client *c)
{
    if (c != NULL) {
        disconnect(c);
        mem_free(c->nodes);
        mem_free(c);
    }
}

const char *client_address(const struct client *c)
{
    assert(c->channel != NULL);
    return c->address;
}

struct rpc_channel *client_channel(struct client *c)
{
    assert(c->channel != NULL);
    return c->channel;
}

uint64_t client_left_ms(const struct client *c)
{
    uint64_t now = clock_mono_ms();

    return now < c->deadline_ms ? c->deadline_ms - now : 1;
}

void client_allow_ms(struct client *c, uint64_t ms)
{
    uint64_t until = clock_mono_ms() + ms;

    c->deadline_ms = c->deadline_ms > until ? c->deadline_ms : until;
}

/* --- one call --------------------------------------------------------------
 */

int client_message_bytes(struct rpc_msg *m, unsigned char **out, size_t *len)
{
    unsigned char *bytes;
    size_t n = rpc_msg_left(m);

    *out = NULL;
    bytes = mem_alloc(n);
    if (bytes != NULL) {
        rpc_msg_read(m, bytes, n);
        *out = bytes;
        *len = n;
    }
    rpc_msg_release(m);
    return bytes != NULL ? 0 : HEDGE_ENOMEM;
}

static int unpack(struct rpc_msg *m, const char *path,
                  const ProtobufCMessageDescriptor *type,
                  ProtobufCMessage **out, struct hedge_error *e)
{
    unsigned char *bytes;
    size_t len = 0;

    *out = NULL;
    if (client_message_bytes(m, &bytes, &len) != 0) {
        return error_set(e, HEDGE_ENOMEM, "out of memory");
    }
    *out = protobuf_c_message_unpack(type, NULL, len, bytes);
    mem_free(bytes);
    if (*out == NULL) {
        return error_set(e, HEDGE_EPROTO, "malformed reply to %s", path);
    }
    return 0;
}

static int call_channel(struct rpc_channel *channel, const char *path,
                        uint64_t timeout_ms, const ProtobufCMessage *request,
                        const ProtobufCMessageDescriptor *type,
                        ProtobufCMessage **out, struct hedge_error *e)
{
    size_t len = protobuf_c_message_get_packed_size(request);
    unsigned char *bytes = mem_alloc(len);
    struct rpc_msg reply;
    int rv;

    *out = NULL;
    if (bytes == NULL) {
        return error_set(e, HEDGE_ENOMEM, "out of memory");
    }
    (void)protobuf_c_message_pack(request, bytes);
    rv = rpc_call(channel, path, bytes, len, timeout_ms, &reply, e);
    mem_free(bytes);
    return rv != 0 ? rv : unpack(&reply, path, type, out, e);
}

static int call(struct client *c, const char *path,
                const ProtobufCMessage *request,
                const ProtobufCMessageDescriptor *type, ProtobufCMessage **out,
                struct hedge_error *e)
{
    return call_channel(client_channel(c), path, client_left_ms(c), request,
                        type, out, e);
}

/* --- connecting -------------------------------------------------------------
 */

/* Is there a node of ours? On 0 the client uses it. */
static int probe(struct client *c, const char *address, uint64_t timeout_ms,
                 struct hedge_error *e)
{
    Hedge__V1__Empty empty = HEDGE__V1__EMPTY__INIT;
    char target[CLIENT_TARGET_MAX];
    struct rpc_channel *channel;
    ProtobufCMessage *reply;
    int rv;

    if (!client_target(address, target)) {
        return error_set(e, HEDGE_EINVAL, "'%s' is not an address", address);
    }
    rv = rpc_channel_new(target, &channel);
    if (rv != 0) {
        return error_set(e, rv, "%s: %s", address, hedge_strerror(rv));
    }
    rv = call_channel(channel, "/hedge.v1.Cluster/Status", timeout_ms,
                      &empty.base, &hedge__v1__status_reply__descriptor, &reply,
                      e);
    if (rv != 0) {
        rpc_channel_free(channel);
        return rv;
    }
    disconnect(c);
    c->channel = channel;
    c->status = (Hedge__V1__StatusReply *)reply;
    (void)snprintf(c->address, sizeof c->address, "%s", address);
    return 0;
}

/* Is it this very node that listens on the socket? Two containers may have the
 * same boot id and another file of this name each. */
static bool is_node(struct rpc_channel *channel, const Hedge__V1__Member *m,
                    uint64_t timeout_ms)
{
    Hedge__V1__Empty empty = HEDGE__V1__EMPTY__INIT;
    Hedge__V1__StatusReply *s;
    ProtobufCMessage *reply;
    struct hedge_error e;
    bool same;

    if (call_channel(channel, "/hedge.v1.Cluster/Status", timeout_ms,
                     &empty.base, &hedge__v1__status_reply__descriptor, &reply,
                     &e) != 0) {
        return false;
    }
    s = (Hedge__V1__StatusReply *)reply;
    same = s->self != NULL && s->self->incarnation == m->incarnation &&
           strcmp(s->self->id, m->id) == 0;
    protobuf_c_message_free_unpacked(reply, NULL);
    return same;
}

static struct rpc_channel *dial_local(struct client *c)
{
    const Hedge__V1__Member *m = c->status->self;
    uint64_t left_ms = client_left_ms(c);
    char boot_id[CLOCK_BOOT_ID_SIZE], target[CLIENT_TARGET_MAX];
    struct rpc_channel *channel;

    clock_boot_id(boot_id);
    if (m == NULL || m->socket[0] == '\0' || boot_id[0] == '\0' ||
        strcmp(m->boot_id, boot_id) != 0 ||
        access(m->socket, R_OK | W_OK) != 0 ||
        snprintf(target, sizeof target, "unix:%s", m->socket) >=
            (int)sizeof target ||
        rpc_channel_connect(target, left_ms, &channel, NULL) != 0) {
        return NULL;
    }
    if (!is_node(channel, m, left_ms < PROBE_MS ? left_ms : PROBE_MS)) {
        rpc_channel_free(channel);
        return NULL;
    }
    return channel;
}

struct rpc_channel *client_bulk_channel(struct client *c)
{
    if (c->local == NULL && c->status != NULL) {
        c->local = dial_local(c);
    }
    return c->local != NULL ? c->local : client_channel(c);
}

/* Nobody was there; `last` is the most telling of the failures. gRPC's text of
 * a failed connection ends with the reason and starts with its own affairs. */
static int nobody(const struct client *c, const struct hedge_error *last,
                  struct hedge_error *e)
{
    const char *text = last->text, *next;

    if (last->code == HEDGE_ETIMEDOUT) {
        return error_set(e, HEDGE_ETIMEDOUT, "no answer in time from %s",
                         c->nodes);
    }
    while (last->code == HEDGE_EUNAVAILABLE &&
           (next = strstr(text, ": ")) != NULL) {
        text = next + 2;
    }
    return error_set(e, HEDGE_EUNAVAILABLE, "no node answers at %s: %s",
                     c->nodes, text);
}

static int probe_all(struct client *c, bool only_silent, struct hedge_error *e)
{
    struct hedge_error one;
    uint64_t ms;
    int rv = HEDGE_EUNAVAILABLE;

    for (unsigned i = 0; i < c->n_endpoints && rv != 0; i++) {
        if (only_silent && !c->endpoints[i].silent) {
            continue;
        }
        if (clock_mono_ms() >= c->deadline_ms) {
            break;
        }
        ms = client_left_ms(c);
        if (!only_silent && ms > PROBE_MS) {
            ms = PROBE_MS;
        }
        rv = probe(c, c->endpoints[i].address, ms, &one);
        c->endpoints[i].silent = rv == HEDGE_ETIMEDOUT;
        if (rv != 0 && (e->code == 0 || one.code != HEDGE_EUNAVAILABLE)) {
            *e = one;
        }
    }
    return rv;
}

int client_connect(struct client *c, struct hedge_error *e)
{
    struct hedge_error last;
    int rv;

    assert(c->n_endpoints > 0);
    error_clear(&last);
    rv = probe_all(c, false, &last);
    if (rv != 0) {
        rv = probe_all(c, true, &last);
    }
    return rv == 0 ? 0 : nobody(c, &last, e);
}

int client_redirect(struct client *c, const char *grpc_address,
                    struct hedge_error *e)
{
    int rv = probe(c, grpc_address, client_left_ms(c), e);

    if (rv != 0 && e != NULL) {
        (void)error_prefix(e, "sent on to %s", grpc_address);
    }
    return rv;
}

/* --- the calls --------------------------------------------------------------
 */

int client_members(struct client *c, Hedge__V1__MembersReply **out,
                   struct hedge_error *e)
{
    Hedge__V1__Empty empty = HEDGE__V1__EMPTY__INIT;
    ProtobufCMessage *reply;
    int rv = call(c, "/hedge.v1.Cluster/Members", &empty.base,
                  &hedge__v1__members_reply__descriptor, &reply, e);

    *out = (Hedge__V1__MembersReply *)reply;
    return rv;
}

int client_leader(struct client *c, Hedge__V1__LeaderReply **out,
                  struct hedge_error *e)
{
    Hedge__V1__Empty empty = HEDGE__V1__EMPTY__INIT;
    ProtobufCMessage *reply;
    int rv = call(c, "/hedge.v1.Cluster/Leader", &empty.base,
                  &hedge__v1__leader_reply__descriptor, &reply, e);

    *out = (Hedge__V1__LeaderReply *)reply;
    return rv;
}

int client_status(struct client *c, Hedge__V1__StatusReply **out,
                  struct hedge_error *e)
{
    Hedge__V1__Empty empty = HEDGE__V1__EMPTY__INIT;
    ProtobufCMessage *reply;
    int rv = call(c, "/hedge.v1.Cluster/Status", &empty.base,
                  &hedge__v1__status_reply__descriptor, &reply, e);

    *out = (Hedge__V1__StatusReply *)reply;
    return rv;
}

/* protobuf-c has no const strings; packing only reads. */
static Hedge__V1__StoreRequest store_request(const char *name)
{
    Hedge__V1__StoreRequest request = HEDGE__V1__STORE_REQUEST__INIT;

    memcpy(&request.name, &name, sizeof name);
    return request;
}

int client_store_stat(struct client *c, const char *name,
                      Hedge__V1__StoreInfo **out, struct hedge_error *e)
{
    Hedge__V1__StoreRequest request = store_request(name);
    ProtobufCMessage *reply;
    int rv = call(c, "/hedge.v1.Store/Stat", &request.base,
                  &hedge__v1__store_info__descriptor, &reply, e);

    *out = (Hedge__V1__StoreInfo *)reply;
    return rv;
}

int client_store_list(struct client *c, Hedge__V1__ListPlace *after,
                      Hedge__V1__ListReply **out, struct hedge_error *e)
{
    Hedge__V1__ListRequest request = HEDGE__V1__LIST_REQUEST__INIT;
    ProtobufCMessage *reply;
    int rv;

    request.max = UINT32_MAX; /* As many as the node lists at a time. */
    request.after = after;
    rv = call(c, "/hedge.v1.Store/List", &request.base,
              &hedge__v1__list_reply__descriptor, &reply, e);

    *out = (Hedge__V1__ListReply *)reply;
    return rv;
}

int client_store_remove(struct client *c, const char *name,
                        struct hedge_error *e)
{
    Hedge__V1__StoreRequest request = store_request(name);
    ProtobufCMessage *reply;
    int rv = call(c, "/hedge.v1.Store/Remove", &request.base,
                  &hedge__v1__empty__descriptor, &reply, e);

    if (rv == 0) {
        protobuf_c_message_free_unpacked(reply, NULL);
    }
    return rv;
}

/* --- following the members ---------------------------------------------------
 */

static int watch_step(struct rpc_stream *s, const char *path,
                      client_members_fn fn, void *ctx, struct hedge_error *e)
{
    ProtobufCMessage *reply;
    struct rpc_msg msg;
    int rv = rpc_stream_recv(s, RPC_NO_TIMEOUT, &msg, e);

    if (rv != 0) {
        return rv == HEDGE_EEND
                   ? error_set(e, rv, "the node has ended the stream")
                   : rv;
    }
    rv = unpack(&msg, path, &hedge__v1__members_reply__descriptor, &reply, e);
    if (rv == 0) {
        rv = fn(ctx, (const Hedge__V1__MembersReply *)reply);
        protobuf_c_message_free_unpacked(reply, NULL);
    }
    return rv;
}

int client_watch_members(struct client *c, client_members_fn fn, void *ctx,
                         struct hedge_error *e)
{
    static const char path[] = "/hedge.v1.Cluster/WatchMembers";
    const struct rpc_out nothing = {.head = "", .head_len = 0};
    struct rpc_stream *s;
    int rv = rpc_stream_open(client_channel(c), path, RPC_NO_TIMEOUT, &s);

    if (rv != 0) {
        return error_set(e, rv, "%s: %s", path, hedge_strerror(rv));
    }
    /* If the stream has broken, receiving says why. */
    if (rpc_stream_send(s, &nothing, client_left_ms(c)) == 0) {
        (void)rpc_stream_close_send(s);
    }
    while (rv == 0) {
        rv = watch_step(s, path, fn, ctx, e);
    }
    rpc_stream_free(s);
    return rv;
}
