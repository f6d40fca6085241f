/* node.c - a node's life: check the options, claim what must be claimed, start
 * the parts in order, stop them in reverse. */
#include "cluster/log/kv.h"
#include "cluster/locks/locks_internal.h"
#include "cluster/node_internal.h"
#include "cluster/locks/sem_session.h"
#include "cluster/foreign/serve_lines.h"
#include "cluster/stats.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define GRACE_MS 300
#define CALL_THREADS 8
/* Stores' and messages': each service bounds its own below that. */
#define STREAMS_MAX 512
#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

HEDGE_API void hedge_process_setup(void)
{
    rpc_process_setup();
}

HEDGE_API const char *hedge_version(void)
{
    return HEDGE_VERSION;
}

HEDGE_API void hedge_options_init(struct hedge_options *o)
{
    memset(o, 0, sizeof *o);
    o->listen = "127.0.0.1:8080";
    o->group = "default";
    o->disk_limit = 10 * GIB;
    o->disk_reserve = HEDGE_UNLIMITED;
    o->lend_mem = o->lend_disk = HEDGE_UNLIMITED;
    o->message_limit = 64 * MIB;
    o->block_size = BLOCK_SIZE_DEFAULT;
    o->lease_ms = 10000;
    o->sync_interval_ms = 2000;
    o->handlers_max = HANDLERS_MAX_DEFAULT;
    o->line_protocol = true;
}

/* --- the machine --- */

static uint64_t read_number(const char *path)
{
    char line[64];
    FILE *f = fopen(path, "re");
    uint64_t v = UINT64_MAX;

    if (f != NULL) {
        if (fgets(line, sizeof line, f) != NULL && line[0] >= '0' &&
            line[0] <= '9') {
            v = strtoull(line, NULL, 10);
        }
        (void)fclose(f);
    }
    return v;
}

static uint64_t memory_available(void)
{
    uint64_t v = UINT64_MAX, kib;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");

    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "MemAvailable:", 13) == 0) {
            kib = strtoull(line + 13, NULL, 10);
            v = kib * 1024;
        }
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    return v;
}

static uint64_t default_mem_limit(void)
{
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    uint64_t v1 = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    uint64_t available = memory_available();

    limit = v1 < limit ? v1 : limit;
    limit = available < limit ? available : limit;
    return limit == UINT64_MAX ? GIB : limit / 4;
}

static uint64_t default_disk_reserve(const char *dir)
{
    struct statvfs v;
    uint64_t total, avail, reserve;

    if (statvfs(dir, &v) != 0) {
        return GIB;
    }
    total = (uint64_t)v.f_blocks * v.f_frsize;
    avail = (uint64_t)v.f_bavail * v.f_frsize;
    reserve = total / 20 > GIB ? total / 20 : GIB;
    return reserve < avail / 2 ? reserve : avail / 2;
}

/* --- directories --- */

static char *format(const char *fmt, const char *a, const char *b,
                    const char *c)
{
    size_t len = strlen(fmt) + strlen(a) + strlen(b) + strlen(c) + 1;
    char *s = mem_alloc(len);

    if (s != NULL) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        (void)snprintf(s, len, fmt, a, b, c);
#pragma GCC diagnostic pop
    }
    return s;
}

static char *state_dir(void)
{
    const char *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");

    if (xdg != NULL && xdg[0] == '/') {
        return format("%s/hedge%s%s", xdg, "", "");
    }
    if (geteuid() != 0 && home != NULL && home[0] == '/') {
        return format("%s/.local/state/hedge%s%s", home, "", "");
    }
    return mem_strdup("/var/lib/hedge");
}

static int make_dirs(const char *dir, struct hedge_error *e)
{
    char *path = mem_strdup(dir);
    int rv = 0;

    if (path == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a path");
    }
    for (char *p = path + 1; rv == 0; p++) {
        char c = *p;

        if (c != '/' && c != '\0') {
            continue;
        }
        *p = '\0';
        if (mkdir(path, 0700) != 0 && errno != EEXIST) {
            rv =
                error_set_errno(e, errno, "cannot make the directory %s", path);
        }
        *p = c;
        if (c == '\0') {
            break;
        }
    }
    mem_free(path);
    return rv;
}

/* One node per data directory. */
static int lock_data_dir(struct hedge_node *n, struct hedge_error *e)
{
    char *path = format("%s/lock%s%s", n->data_dir, "", "");
    char who[32] = "";
    ssize_t got;

    if (path == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a path");
    }
    n->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    mem_free(path);
    if (n->lock_fd < 0) {
        return error_set_errno(e, errno, "the data directory %s cannot be used",
                               n->data_dir);
    }
    if (flock(n->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        got = pread(n->lock_fd, who, sizeof who - 1, 0);
        who[got > 0 ? got : 0] = '\0';
        who[strcspn(who, "\n")] = '\0';
        return error_set(e, HEDGE_EBUSY,
                         "the data directory %s belongs to another running "
                         "node (process %s); give this one its own --data",
                         n->data_dir, who[0] != '\0' ? who : "unknown");
    }
    return 0;
}

/* Lives of a node are told apart by a number that grows, also when the clock
 * goes back: the last one is kept beside the lock. */
static int next_incarnation(struct hedge_node *n, struct hedge_error *e)
{
    char text[64] = "";
    uint64_t last = 0;
    ssize_t got = pread(n->lock_fd, text, sizeof text - 1, 0);
    const char *second = got > 0 ? strchr(text, '\n') : NULL;
    int len;

    if (second != NULL) {
        last = strtoull(second + 1, NULL, 10);
    }
    n->incarnation = clock_wall_ms();
    if (n->incarnation <= last && last < UINT64_MAX / 2) {
        n->incarnation = last + 1;
    }
    len = snprintf(text, sizeof text, "%d\n%llu\n", (int)getpid(),
                   (unsigned long long)n->incarnation);
    if (ftruncate(n->lock_fd, 0) != 0 ||
        pwrite(n->lock_fd, text, (size_t)len, 0) != len) {
        return error_set_errno(e, errno != 0 ? errno : EIO,
                               "cannot write %s/lock", n->data_dir);
    }
    return 0;
}

/* --- addresses --- */

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0;
}

static int check_host(const char *what, const char *host, struct hedge_error *e)
{
    struct in_addr a;

    if (inet_pton(AF_INET, host, &a) != 1) {
        return error_set(e, HEDGE_EINVAL,
                         "%s: \"%s\" is not an IPv4 address (names and IPv6 "
                         "are not supported yet)",
                         what, host);
    }
    return 0;
}

/* For ":8080": the first address of this machine that others can reach, or
 * loopback when there is none. */
static void find_own_host(char host[UNITS_HOST_MAX])
{
    struct ifaddrs *all = NULL;

    (void)snprintf(host, UNITS_HOST_MAX, "127.0.0.1");
    if (getifaddrs(&all) != 0) {
        return;
    }
    for (const struct ifaddrs *i = all; i != NULL; i = i->ifa_next) {
        struct sockaddr_in a;
        bool usable =
            i->ifa_addr != NULL && i->ifa_addr->sa_family == AF_INET &&
            (i->ifa_flags & IFF_UP) != 0 && (i->ifa_flags & IFF_LOOPBACK) == 0;

        if (usable) {
            memcpy(&a, i->ifa_addr, sizeof a);
            (void)inet_ntop(AF_INET, &a.sin_addr, host, UNITS_HOST_MAX);
            break;
        }
    }
    freeifaddrs(all);
}

static int set_addresses(struct hedge_node *n, const struct hedge_options *o,
                         struct hedge_error *e)
{
    char host[UNITS_HOST_MAX], grpc_host[UNITS_HOST_MAX], text[300];
    uint16_t port, grpc_port;
    int rv;

    if (!units_parse_address(o->listen, false, host, &port)) {
        return error_set(e, HEDGE_EINVAL,
                         "--listen \"%s\" is not HOST:PORT with a port from 1 "
                         "to 65535",
                         o->listen);
    }
    if (host[0] == '\0') {
        find_own_host(host);
    }
    if (o->grpc_address == NULL) {
        if (port == 65535) {
            return error_set(e, HEDGE_EINVAL,
                             "--listen has port 65535: the gRPC port would be "
                             "65536; give it with --grpc");
        }
        memcpy(grpc_host, host, sizeof grpc_host);
        grpc_port = (uint16_t)(port + 1);
    } else if (!units_parse_address(o->grpc_address, false, grpc_host,
                                    &grpc_port)) {
        return error_set(e, HEDGE_EINVAL,
                         "--grpc \"%s\" is not HOST:PORT with a port from 1 "
                         "to 65535",
                         o->grpc_address);
    }
    rv = check_host("--listen", host, e);
    rv = rv != 0 ? rv : check_host("--grpc", grpc_host, e);
    if (rv != 0) {
        return rv;
    }
    (void)snprintf(text, sizeof text, "%s:%u", host, port);
    n->id = mem_strdup(text);
    (void)snprintf(text, sizeof text, "%s:%u", grpc_host, grpc_port);
    n->grpc_address = mem_strdup(text);
    if (n->id == NULL || n->grpc_address == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for an address");
    }
    if (strcmp(n->id, n->grpc_address) == 0) {
        return error_set(e, HEDGE_EINVAL,
                         "--listen and --grpc are the same address, %s", n->id);
    }
    return 0;
}

/* The id's own port, held from the start. */
static int bind_listen(struct hedge_node *n, struct hedge_error *e)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    char host[UNITS_HOST_MAX];
    uint16_t port;
    int one = 1;

    (void)units_parse_address(n->id, false, host, &port);
    (void)inet_pton(AF_INET, host, &a.sin_addr);
    a.sin_port = htons(port);
    n->listen_fd =
        socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (n->listen_fd < 0) {
        return error_set_errno(e, errno, "cannot make a socket");
    }
    (void)setsockopt(n->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(n->listen_fd, (struct sockaddr *)&a, sizeof a) != 0 ||
        listen(n->listen_fd, 64) != 0) {
        return error_set_errno(e, errno,
                               "cannot listen on %s (gRPC would be on %s)",
                               n->id, n->grpc_address);
    }
    return 0;
}

/* --- options --- */

static int check_numbers(const struct hedge_options *o, struct hedge_error *e)
{
    if (o->lease_ms < 1000 || o->lease_ms > 3600000) {
        return error_set(e, HEDGE_EINVAL,
                         "a lease of %llu ms is not possible: 1 s to 1 h",
                         (unsigned long long)o->lease_ms);
    }
    if (o->sync_interval_ms < 100 || o->sync_interval_ms > 60000) {
        return error_set(e, HEDGE_EINVAL,
                         "a sync interval of %llu ms is not possible: 100 ms "
                         "to 1 min",
                         (unsigned long long)o->sync_interval_ms);
    }
    if (o->message_limit < 16 * MIB) {
        return error_set(e, HEDGE_EINVAL,
                         "a message limit of %llu bytes is not possible: at "
                         "least 16 MiB",
                         (unsigned long long)o->message_limit);
    }
    if (o->block_size < BLOCK_SIZE_MIN || o->block_size > BLOCK_SIZE_MAX ||
        (o->block_size & (o->block_size - 1)) != 0) {
        return error_set(e, HEDGE_EINVAL,
                         "a block size of %zu bytes is not possible: a power "
                         "of two from 64 KiB to 4 MiB",
                         o->block_size);
    }
    if (o->mem_limit != 0 && o->mem_limit / o->block_size < ARENA_CHUNKS_MIN) {
        return error_set(e, HEDGE_EINVAL,
                         "a memory limit of %llu bytes is too small: at least "
                         "%d blocks of %zu bytes are needed (%zu bytes)",
                         (unsigned long long)o->mem_limit, ARENA_CHUNKS_MIN,
                         o->block_size, ARENA_CHUNKS_MIN * o->block_size);
    }
    return 0;
}

static int check_group(const char *group, struct hedge_error *e)
{
    int rv = units_check_name(group, strlen(group), e);

    return rv != 0 ? error_prefix(e, "--group") : 0;
}

static int set_paths(struct hedge_node *n, const struct hedge_options *o,
                     struct hedge_error *e)
{
    char *state = state_dir();

    n->group = mem_strdup(o->group);
    if (state != NULL && n->group != NULL) {
        n->engine_url = o->engine != NULL ? mem_strdup(o->engine)
                                          : format("lmdb:%s/%s/engine%s", state,
                                                   o->group, "");
        n->data_dir = o->data_dir != NULL
                          ? mem_strdup(o->data_dir)
                          : format("%s/%s/%s", state, o->group, n->id);
    }
    mem_free(state);
    if (n->engine_url == NULL || n->data_dir == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the paths");
    }
    if (n->data_dir[0] == '\0') {
        return error_set(e, HEDGE_EINVAL, "--data is empty");
    }
    if (snprintf(n->socket, sizeof n->socket, "%s/socket", n->data_dir) >=
        (int)sizeof n->socket - 4) {
        n->socket[0] = '\0'; /* Too long for a Unix socket: TCP will do. */
    }
    return 0;
}

static int set_options(struct hedge_node *n, const struct hedge_options *o,
                       struct hedge_error *e)
{
    int rv;

    n->o = *o;
    rv = check_numbers(o, e);
    rv = rv != 0 ? rv : check_group(o->group, e);
    rv = rv != 0 ? rv : set_addresses(n, o, e);
    rv = rv != 0 ? rv : set_paths(n, o, e);
    rv = rv != 0 ? rv : engine_check(n->engine_url, n->group, e);
    if (rv != 0) {
        return rv;
    }
    if (n->o.mem_limit == 0) {
        n->o.mem_limit = default_mem_limit();
    }
    if (n->o.mem_limit > memory_available()) {
        log_warn("node",
                 "the memory limit of %llu bytes is more than this machine has "
                 "available",
                 (unsigned long long)n->o.mem_limit);
    }
    if (n->o.block_lease_ms == 0) {
        n->o.block_lease_ms = 2 * n->o.lease_ms;
    }
    clock_boot_id(n->boot_id);
    n->started_ms = clock_boot_ms();
    return 0;
}

static void free_options(struct hedge_node *n)
{
    mem_free(n->id);
    mem_free(n->grpc_address);
    mem_free(n->group);
    mem_free(n->engine_url);
    mem_free(n->data_dir);
}

/* --- the parts --- */

static int serve_peer_put(struct rpc_stream *s, void *ctx,
                          struct hedge_error *e)
{
    return peer_service_put(((struct hedge_node *)ctx)->peer_service, s, e);
}

static int serve_peer_get(struct rpc_stream *s, void *ctx,
                          struct hedge_error *e)
{
    return peer_service_get(((struct hedge_node *)ctx)->peer_service, s, e);
}

static void serve_peer_drop(struct rpc_call *c, void *ctx, const void *req,
                            size_t len)
{
    peer_service_drop(((struct hedge_node *)ctx)->peer_service, c, req, len);
}

static void serve_peer_renew(struct rpc_call *c, void *ctx, const void *req,
                             size_t len)
{
    peer_service_renew(((struct hedge_node *)ctx)->peer_service, c, req, len);
}

static int serve_join(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    return node_serve_join(ctx, s, e);
}

static void serve_announce(struct rpc_call *c, void *ctx, const void *req,
                           size_t len)
{
    node_serve_announce(ctx, c, req, len);
}

static const struct rpc_method methods[] = {
    {"/hedge.v1.Store/Write", NULL, serve_write, 0},
    {"/hedge.v1.Store/Read", NULL, serve_read, 0},
    {"/hedge.v1.Store/Stat", serve_stat, NULL, 0},
    {"/hedge.v1.Store/List", serve_list, NULL, 0},
    {"/hedge.v1.Store/Remove", serve_remove, NULL, 0},
    {"/hedge.v1.Cluster/Members", serve_members, NULL, 0},
    {"/hedge.v1.Cluster/WatchMembers", NULL, serve_watch_members, 0},
    {"/hedge.v1.Cluster/Leader", serve_leader, NULL, RPC_INLINE},
    {"/hedge.v1.Cluster/Status", serve_status, NULL, 0},
    {"/hedge.v1.Log/Put", serve_log_put, NULL, RPC_INLINE},
    {"/hedge.v1.Log/PutLarge", NULL, serve_log_put_large, 0},
    {"/hedge.v1.Log/Get", serve_log_get, NULL, RPC_INLINE},
    {"/hedge.v1.Log/Query", NULL, serve_log_query, 0},
    {"/hedge.v1.Log/Follow", NULL, serve_log_follow, 0},
    {"/hedge.v1.Log/Compact", serve_log_compact, NULL, 0},
    {"/hedge.v1.Peer/Join", NULL, serve_join, 0},
    {"/hedge.v1.Peer/Announce", serve_announce, NULL, RPC_INLINE},
    {"/hedge.v1.Peer/RegisterStore", serve_register, NULL, 0},
    {"/hedge.v1.Peer/UnregisterStore", serve_unregister, NULL, 0},
    {"/hedge.v1.Peer/FindStore", serve_find, NULL, 0},
    {"/hedge.v1.Peer/Put", NULL, serve_peer_put, 0},
    {"/hedge.v1.Peer/Get", NULL, serve_peer_get, 0},
    {"/hedge.v1.Peer/Drop", serve_peer_drop, NULL, 0},
    {"/hedge.v1.Peer/Renew", serve_peer_renew, NULL, 0},
    {"/hedge.v1.Peer/LocalStores", serve_local_stores, NULL, 0},
    {"/hedgeproto.Hedge/Send", NULL, serve_hp_send, 0},
    {"/hedgeproto.Hedge/Broadcast", NULL, serve_hp_broadcast, 0},
    {"/hedgeproto.Hedge/SoSWrite", NULL, serve_hp_write, 0},
    {"/hedgeproto.Hedge/SoSRead", NULL, serve_hp_read, 0},
    {"/hedgeproto.Hedge/SoSClose", serve_hp_close, NULL, 0},
    {"/hedge.v1.Messages/Send", NULL, serve_send, 0},
    {"/hedge.v1.Messages/Broadcast", NULL, serve_broadcast, 0},
    {"/hedge.v1.Messages/StreamLeader", NULL, serve_stream_leader, 0},
    {"/hedge.v1.Messages/StreamBroadcast", NULL, serve_stream_broadcast, 0},
    {"/hedge.v1.MessagePeer/Stream", NULL, serve_stream, 0},
    {"/hedge.v1.MessagePeer/Deliver", serve_deliver, NULL, RPC_INLINE},
    {"/hedge.v1.MessagePeer/Put", serve_put, NULL, 0},
    {"/hedge.v1.MessagePeer/Fetch", serve_fetch, NULL, 0},
    {"/grpc.health.v1.Health/Check", serve_health_check, NULL, RPC_INLINE},
    {"/grpc.health.v1.Health/Watch", NULL, serve_health_watch, 0},
    {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", NULL,
     serve_reflection, 0},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", NULL,
     serve_reflection, 0},
    {"/hedge.v1.Locks/OpenSession", serve_lock_open, NULL, 0},
    {"/hedge.v1.Locks/Renew", serve_lock_renew, NULL, 0},
    {"/hedge.v1.Locks/CloseSession", serve_lock_close, NULL, 0},
    {"/hedge.v1.Locks/Watch", serve_lock_watch, NULL, 0},
    {"/hedge.v1.Locks/Acquire", serve_lock_acquire, NULL, 0},
    {"/hedge.v1.Locks/TryAcquire", serve_lock_try, NULL, 0},
    {"/hedge.v1.Locks/Release", serve_lock_release, NULL, 0},
    {"/hedge.v1.Locks/Revoke", serve_lock_revoke, NULL, 0},
    {"/hedge.v1.Locks/List", serve_lock_list, NULL, 0},
    {"/hedge.v1.LocksRelay/Relay", NULL, serve_relay, 0},
};

static int start_store(struct hedge_node *n, struct hedge_error *e)
{
    struct sos_options o = {.node = n->id,
                            .data_dir = n->data_dir,
                            .mem_limit = n->o.mem_limit,
                            .block_size = n->o.block_size,
                            .disk_limit = n->o.disk_limit,
                            .disk_reserve = n->o.disk_reserve,
                            .lend_mem = n->o.lend_mem,
                            .lend_disk = n->o.lend_disk,
                            .lend_lease_ms = n->o.block_lease_ms,
                            .io = (enum disk_io)n->o.io,
                            .on_expired = stores_on_expired,
                            .on_expired_ctx = n};
    struct peer_tier_options p = {.self_id = n->id,
                                  .incarnation = n->incarnation,
                                  .block_size = n->o.block_size,
                                  .block_lease_ms = n->o.block_lease_ms};
    struct peer_service_options ps = {.block_lease_ms = n->o.block_lease_ms,
                                      .incarnation = n->incarnation};
    int rv = sos_new(&o, &n->sos, e);

    if (rv != 0) {
        return rv;
    }
    rv = peer_tier_new(&p, &n->peers);
    if (rv == 0) {
        sos_set_remote(n->sos, n->peers);
        ps.sos = n->sos;
        rv = peer_service_new(&ps, &n->peer_service);
    }
    if (rv == 0) {
        rv = directory_new(&n->directory);
    }
    return rv == 0 ? 0 : error_set(e, rv, "cannot start the store");
}

static bool node_leads(void *ctx)
{
    return hedge_has_lock(ctx, NULL);
}

static int start_messages(struct hedge_node *n, struct hedge_error *e)
{
    struct handlers_options o = {
        .id = n->id,
        .handler = {n->o.leader_handler, n->o.broadcast_handler},
        .stream = {n->o.leader_stream_handler, n->o.broadcast_stream_handler},
        .data = n->o.data,
        .max = n->o.handlers_max,
        .leads = node_leads,
        .ctx = n};
    int rv = msg_budget_new(n->o.message_limit, &n->messages);

    if (rv == 0) {
        o.budget = n->messages;
        rv = handlers_new(&o, &n->handlers);
    }
    if (rv == 0) {
        rv = msg_parts_new(&n->parts);
    }
    return rv == 0 ? 0 : error_set(e, rv, "cannot start the handlers");
}

static int start_server(struct hedge_node *n, struct hedge_error *e)
{
    char tcp[320], unix_path[320];
    const char *addresses[2] = {tcp, unix_path};
    struct rpc_server_options o = {.addresses = addresses,
                                   .n_addresses = n->socket[0] != '\0' ? 2 : 1,
                                   .methods = methods,
                                   .n_methods =
                                       sizeof methods / sizeof methods[0],
                                   .ctx = n,
                                   .pool_threads = 8,
                                   .streams_max = STREAMS_MAX,
                                   .message_limit = n->o.message_limit};
    int rv;

    (void)snprintf(tcp, sizeof tcp, "ipv4:%s", n->grpc_address);
    (void)snprintf(unix_path, sizeof unix_path, "unix:%s", n->socket);
    rv = rpc_server_new(&o, &n->server, e);
    return rv == 0 ? 0
                   : error_prefix(e, "node %s (--listen %s, --grpc %s)", n->id,
                                  n->id, n->grpc_address);
}

static int start_lines(struct hedge_node *n, struct hedge_error *e)
{
    int rv = lines_server_new(n, n->listen_fd, n->o.line_protocol, &n->lines);

    return rv == 0
               ? 0
               : error_set(e, rv, "cannot start the line protocol's thread");
}

static int start_parts(struct hedge_node *n, struct hedge_error *e)
{
    int rv = bind_listen(n, e);

    rv = rv != 0 ? rv : make_dirs(n->data_dir, e);
    rv = rv != 0 ? rv : lock_data_dir(n, e);
    rv = rv != 0 ? rv : next_incarnation(n, e);
    if (rv != 0) {
        return rv;
    }
    if (n->o.disk_reserve == HEDGE_UNLIMITED) {
        n->o.disk_reserve = default_disk_reserve(n->data_dir);
    }
    rv = engine_open(n->engine_url, n->group, &n->engine, e);
    if (rv == 0 && pool_new(CALL_THREADS, "hedge-calls", &n->call_pool) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "cannot start threads");
    }
    rv = rv != 0 ? rv : node_log_start(n, e);
    rv = rv != 0 ? rv : start_store(n, e);
    rv = rv != 0 ? rv : start_messages(n, e);
    rv = rv != 0 ? rv : locks_new(n, e);
    if (rv == 0 && sem_session_new(n, &n->session) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "cannot start a session");
    }
    /* Handlers post to the loop. It begins to run, and this node to stand for
     * election, when nothing can go wrong any more. */
    rv = rv != 0 ? rv : node_loop_open(n, e);
    rv = rv != 0 ? rv : start_server(n, e);
    rv = rv != 0 ? rv : start_lines(n, e);
    rv = rv != 0 ? rv : node_link_start(n, e);
    return rv != 0 ? rv : node_loop_run(n, e);
}

static void init_locks(struct hedge_node *n)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&n->mailbox_lock, NULL);
    pthread_mutex_init(&n->sessions_lock, NULL);
    pthread_mutex_init(&n->pub_lock, NULL);
    pthread_mutex_init(&n->channels_lock, NULL);
    pthread_mutex_init(&n->uplink.lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&n->sessions_changed, &attr);
    pthread_cond_init(&n->pub_changed, &attr);
    pthread_cond_init(&n->uplink.wake, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&n->tasks);
    list_init(&n->sessions);
    list_init(&n->channels);
    n->lock_fd = n->listen_fd = -1;
}

HEDGE_API int hedge_options_check(const struct hedge_options *o,
                                  struct hedge_error *e)
{
    struct hedge_node *n = mem_calloc(1, sizeof *n);
    int rv;

    if (n == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a node");
    }
    rv = set_options(n, o, e);
    free_options(n);
    mem_free(n);
    return rv;
}

static_assert((int)HEDGE_LOG_DEBUG == (int)LOG_DEBUG + 1 &&
                  (int)HEDGE_LOG_OFF == (int)LOG_OFF + 1,
              "levels follow each other as in store/base/log.h");

static _Atomic(hedge_log_fn) log_out;

static void log_to_program(void *data, enum log_level level, const char *area,
                           const char *text)
{
    atomic_load (&log_out)(data, (enum hedge_log_level)((int)level + 1), area,
                           text);
}

static void set_log(const struct hedge_options *o)
{
    if (o->log_level != HEDGE_LOG_AS_IS) {
        log_set_level((enum log_level)((int)o->log_level - 1));
    }
    if (o->log != NULL) {
        atomic_store(&log_out, o->log);
        log_set_fn(log_to_program, o->log_data);
    }
}

HEDGE_API int hedge_node_start(const struct hedge_options *o,
                               struct hedge_node **out, struct hedge_error *e)
{
    struct hedge_node *n = mem_calloc(1, sizeof *n);
    int rv;

    *out = NULL;
    if (n == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a node");
    }
    init_locks(n);
    set_log(o);
    rv = rpc_init();
    if (rv != 0) {
        mem_free(n);
        return error_set(e, rv, "gRPC does not start");
    }
    rv = set_options(n, o, e);
    rv = rv != 0 ? rv : start_parts(n, e);
    if (rv != 0) {
        hedge_node_stop(n);
        return rv;
    }
    if (!is_loopback(n->id) || !is_loopback(n->grpc_address)) {
        log_warn("node",
                 "%s is not a loopback address: whoever reaches it "
                 "can read and write every store",
                 n->grpc_address);
    }
    *out = n;
    return 0;
}

static void free_all(struct hedge_node *n)
{
    locks_free(n);
    peer_service_free(n->peer_service);
    sos_free(n->sos); /* The peer tier, too. */
    pool_free(n->call_pool);
    node_channel_put(n, NULL);
    directory_free(n->directory);
    kv_free(n->kv);
    engine_close(&n->engine);
    view_unref(n->view);
    msg_parts_free(n->parts);
    msg_budget_unref(n->messages);
    if (n->listen_fd >= 0) {
        close(n->listen_fd);
    }
    if (n->lock_fd >= 0) {
        close(n->lock_fd);
    }
    pthread_cond_destroy(&n->sessions_changed);
    pthread_cond_destroy(&n->pub_changed);
    pthread_cond_destroy(&n->uplink.wake);
    pthread_mutex_destroy(&n->mailbox_lock);
    pthread_mutex_destroy(&n->sessions_lock);
    pthread_mutex_destroy(&n->pub_lock);
    pthread_mutex_destroy(&n->channels_lock);
    pthread_mutex_destroy(&n->uplink.lock);
    free_options(n);
    mem_free(n);
}

struct ending {
    unsigned stores;
    uint64_t bytes;
};

static void count_ending(void *ctx, struct sos_store *store)
{
    struct ending *x = ctx;
    struct sos_info info;

    if (sos_store_info(store, &info) == 0 &&
        info.manifest.bytes > info.discarded_bytes) {
        x->stores++;
        x->bytes += info.manifest.bytes - info.discarded_bytes;
    }
    mem_free(info.uses);
}

/* Stores end with the node that owns them. */
static void tell_what_ends(struct hedge_node *n)
{
    struct ending x = {0};
    char size[UNITS_SIZE_TEXT];

    if (n->sos != NULL && sos_each(n->sos, count_ending, &x) == 0 &&
        x.stores > 0) {
        log_warn("sos", "%u store%s with %s end%s with this node", x.stores,
                 x.stores == 1 ? "" : "s", units_format_size(x.bytes, size),
                 x.stores == 1 ? "s" : "");
    }
}

HEDGE_API void hedge_node_stop(struct hedge_node *n)
{
    if (n == NULL) {
        return;
    }
    tell_what_ends(n);
    atomic_store(&n->closing, true);
    sos_hurry(n->sos);
    pthread_mutex_lock(&n->pub_lock);
    pthread_cond_broadcast(&n->pub_changed);
    pthread_mutex_unlock(&n->pub_lock);
    sem_session_stop(n->session);
    locks_stop(n);
    if (n->kv != NULL) {
        kv_stop(n->kv);
    }
    node_link_stop(n);
    node_loop_stop(n);
    handlers_stop(n->handlers, GRACE_MS);
    if (n->front_end != NULL) { /* Before what it asks for figures goes. */
        n->front_end(n->front_ctx);
    }
    lines_server_free(n->lines, GRACE_MS);
    n->lines = NULL;
    rpc_server_free(n->server, GRACE_MS);
    handlers_free(n->handlers);
    n->handlers = NULL;
    sem_session_free(n->session);
    n->session = NULL;
    node_loop_release(n);
    free_all(n);
    rpc_shutdown();
}

struct handlers *node_handlers(struct hedge_node *node)
{
    return node->handlers;
}
