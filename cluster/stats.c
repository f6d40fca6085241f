#include "cluster/stats.h"

#include "cluster/messages/handlers.h"
#include "cluster/log/kv.h"
#include "cluster/locks/locks_internal.h"
#include "cluster/node_internal.h"
#include "cluster/foreign/serve_lines.h"

#include "store/base/clock.h"

#include <stdio.h>
#include <string.h>

#define LOOP_STILL_MIN_MS 10000
#define LOOP_STILL_INTERVALS 10

/* name, type, scale, label, help */
#define STATS(X)                                                              \
    X(INFO, "hedge_build_info", GAUGE, PLAIN, "version",                      \
      "1, with the version as a label.")                                      \
    X(UPTIME, "hedge_uptime_seconds", GAUGE, MS, NULL,                        \
      "Time since the node started.")                                         \
    X(LEADER, "hedge_is_leader", GAUGE, PLAIN, NULL,                          \
      "1 while this node leads its group.")                                   \
    X(HAS_LEADER, "hedge_has_leader", GAUGE, PLAIN, NULL,                     \
      "1 while this node knows a leader.")                                    \
    X(IN_GROUP, "hedge_in_group", GAUGE, PLAIN, NULL,                         \
      "1 while this node is in touch with its leader.")                       \
    X(TOKEN, "hedge_fencing_token", GAUGE, PLAIN, NULL,                       \
      "The last fencing token heard of.")                                     \
    X(LEADER_CHANGES, "hedge_leader_changes_total", COUNTER, PLAIN, NULL,     \
      "Leaders this node has heard of, one after the other.")                 \
    X(ROUNDS, "hedge_election_rounds_total", COUNTER, PLAIN, NULL,            \
      "Rounds of the election.")                                              \
    X(LEASE, "hedge_lease_seconds", GAUGE, MS, NULL,                          \
      "The length of the leader's lease.")                                    \
    X(MEMBERS, "hedge_members", GAUGE, PLAIN, NULL,                           \
      "Members of the group, this node included.")                            \
    X(MEM_LIMIT, "hedge_memory_limit_bytes", GAUGE, PLAIN, NULL,              \
      "Memory tier: its limit.")                                              \
    X(MEM_RESERVE, "hedge_memory_reserve_bytes", GAUGE, PLAIN, NULL,          \
      "Memory tier: never used by stored blocks.")                            \
    X(MEM_USED, "hedge_memory_used_bytes", GAUGE, PLAIN, "use",               \
      "Memory tier: in use, by what for.")                                    \
    X(MEM_FREE, "hedge_memory_free_bytes", GAUGE, PLAIN, NULL,                \
      "Memory tier: what stored blocks may still take.")                      \
    X(MEM_RESIDENT, "hedge_memory_resident_bytes", GAUGE, PLAIN, NULL,        \
      "Memory tier: faulted in, an estimate from above.")                     \
    X(MEM_LENT, "hedge_memory_lent_bytes", GAUGE, PLAIN, NULL,                \
      "Memory tier: in use by other nodes.")                                  \
    X(MEM_LENDABLE, "hedge_memory_lendable_bytes", GAUGE, PLAIN, NULL,        \
      "Memory tier: what other nodes may still take.")                        \
    X(DISK_LIMIT, "hedge_disk_limit_bytes", GAUGE, PLAIN, NULL,               \
      "Disk tier: its limit.")                                                \
    X(DISK_RESERVE, "hedge_disk_reserve_bytes", GAUGE, PLAIN, NULL,           \
      "Disk tier: left free on the file system.")                             \
    X(DISK_USED, "hedge_disk_used_bytes", GAUGE, PLAIN, NULL,                 \
      "Disk tier: in use, padding included.")                                 \
    X(DISK_FREE, "hedge_disk_free_bytes", GAUGE, PLAIN, NULL,                 \
      "Disk tier: what may still be taken.")                                  \
    X(DISK_LENT, "hedge_disk_lent_bytes", GAUGE, PLAIN, NULL,                 \
      "Disk tier: in use by other nodes.")                                    \
    X(DISK_LENDABLE, "hedge_disk_lendable_bytes", GAUGE, PLAIN, NULL,         \
      "Disk tier: what other nodes may still take.")                          \
    X(TIER_WRITES, "hedge_tier_writes_total", COUNTER, PLAIN, "tier",         \
      "Blocks that left memory for a tier.")                                  \
    X(TIER_WRITTEN, "hedge_tier_written_bytes_total", COUNTER, PLAIN, "tier", \
      "Bytes of these blocks as stored.")                                     \
    X(TIER_READS, "hedge_tier_reads_total", COUNTER, PLAIN, "tier",           \
      "Blocks read back from a tier.")                                        \
    X(TIER_READ, "hedge_tier_read_bytes_total", COUNTER, PLAIN, "tier",       \
      "Bytes of these blocks as stored.")                                     \
    X(TIER_REFUSALS, "hedge_tier_refusals_total", COUNTER, PLAIN, "tier",     \
      "Blocks a tier had no room for.")                                       \
    X(TIER_FAILURES, "hedge_tier_failures_total", COUNTER, PLAIN, "tier",     \
      "Reads and writes of a tier that failed.")                              \
    X(STORES, "hedge_stores", GAUGE, PLAIN, NULL, "Stores this node owns.")   \
    X(STORES_MADE, "hedge_stores_made_total", COUNTER, PLAIN, NULL,           \
      "Stores made here.")                                                    \
    X(STORES_EXPIRED, "hedge_stores_expired_total", COUNTER, PLAIN, NULL,     \
      "Stores whose time had passed.")                                        \
    X(STORES_REMOVED, "hedge_stores_removed_total", COUNTER, PLAIN, NULL,     \
      "Stores that were removed.")                                            \
    X(PARTS, "hedge_lent_stores", GAUGE, PLAIN, NULL,                         \
      "Other nodes' stores with blocks here.")                                \
    X(WRITERS, "hedge_writers", GAUGE, PLAIN, NULL,                           \
      "Writers open in this node's stores.")                                  \
    X(READERS, "hedge_readers", GAUGE, PLAIN, NULL,                           \
      "Readers open in this node's stores.")                                  \
    X(WRITERS_FULL, "hedge_writers_full_total", COUNTER, PLAIN, NULL,         \
      "Writers that were told there is no room.")                             \
    X(SEALED, "hedge_blocks_sealed_total", COUNTER, PLAIN, NULL,              \
      "Blocks filled by writers.")                                            \
    X(SEALED_BYTES, "hedge_sealed_bytes_total", COUNTER, PLAIN, NULL,         \
      "Bytes of these blocks before compression.")                            \
    X(DELIVERED, "hedge_blocks_delivered_total", COUNTER, PLAIN, NULL,        \
      "Blocks given to readers.")                                             \
    X(DELIVERED_BYTES, "hedge_delivered_bytes_total", COUNTER, PLAIN, NULL,   \
      "Bytes of these blocks before compression.")                            \
    X(LEAVING, "hedge_blocks_leaving", GAUGE, PLAIN, NULL,                    \
      "Blocks on their way from memory to a tier.")                           \
    X(HOMELESS, "hedge_blocks_homeless", GAUGE, PLAIN, NULL,                  \
      "Blocks that no tier had room for.")                                    \
    X(LEAVING_MAX, "hedge_blocks_leaving_limit", GAUGE, PLAIN, NULL,          \
      "How many blocks may leave or be homeless at a time.")                  \
    X(STREAMS, "hedge_streams", GAUGE, PLAIN, "kind",                         \
      "gRPC streams being served, by what for.")                              \
    X(STREAMS_MAX, "hedge_streams_limit", GAUGE, PLAIN, "kind",               \
      "How many there may be.")                                               \
    X(CALLS, "hedge_grpc_calls_total", COUNTER, PLAIN, "method",              \
      "gRPC calls and streams begun.")                                        \
    X(FAILURES, "hedge_grpc_failures_total", COUNTER, PLAIN, "method",        \
      "gRPC calls and streams that ended with an error.")                     \
    X(UNARY, "hedge_grpc_calls", GAUGE, PLAIN, NULL,                          \
      "gRPC calls being answered.")                                           \
    X(POOL_THREADS, "hedge_pool_threads", GAUGE, PLAIN, "pool",               \
      "Threads of a pool.")                                                   \
    X(POOL_BUSY, "hedge_pool_busy_threads", GAUGE, PLAIN, "pool",             \
      "Threads of a pool that are at work.")                                  \
    X(POOL_QUEUED, "hedge_pool_queued", GAUGE, PLAIN, "pool",                 \
      "Tasks that wait for a thread of a pool.")                              \
    X(TASKS, "hedge_loop_queued", GAUGE, PLAIN, NULL,                         \
      "Tasks that wait for the loop.")                                        \
    X(LOOP_STILL, "hedge_loop_still_seconds", GAUGE, MS, NULL,                \
      "Time since the loop last went round.")                                 \
    X(MESSAGE_LIMIT, "hedge_message_limit_bytes", GAUGE, PLAIN, NULL,         \
      "Memory that messages may take.")                                       \
    X(MESSAGE_USED, "hedge_message_used_bytes", GAUGE, PLAIN, NULL,           \
      "Memory that messages take.")                                           \
    X(ENGINE_CALLS_, "hedge_engine_calls_total", COUNTER, PLAIN, "call",      \
      "What was asked of the engine.")                                        \
    X(ENGINE_FAILURES, "hedge_engine_failures_total", COUNTER, PLAIN, "call", \
      "What went wrong of it.")                                               \
    X(ENGINE_TIME, "hedge_engine_seconds_total", COUNTER, NS, "call",         \
      "Time it took; not taken of latest and log_state.")                     \
    X(LOG_REVISION, "hedge_log_revision", GAUGE, PLAIN, NULL,                 \
      "The last revision of the log heard of here.")                          \
    X(LOG_PUTS, "hedge_log_puts_total", COUNTER, PLAIN, NULL,                 \
      "Versions appended to the log by this node.")                           \
    X(LOG_TRANSACTIONS, "hedge_log_transactions_total", COUNTER, PLAIN, NULL, \
      "Synced transactions that took.")                                       \
    X(LOG_QUEUED, "hedge_log_queued", GAUGE, PLAIN, NULL,                     \
      "Sets of puts that wait.")                                              \
    X(LOG_LIVE, "hedge_log_live", GAUGE, PLAIN, NULL,                         \
      "Sets of puts that wait or are under way.")                             \
    X(LOG_BYTES, "hedge_log_queued_bytes", GAUGE, PLAIN, NULL,                \
      "Keys and values that wait.")                                           \
    X(LOG_BYTES_MAX, "hedge_log_queued_limit_bytes", GAUGE, PLAIN, NULL,      \
      "How much may wait.")                                                   \
    X(HANDLERS_RUNNING, "hedge_handlers", GAUGE, PLAIN, "kind",               \
      "Messages being handled.")                                              \
    X(HANDLERS_QUEUED, "hedge_handlers_queued", GAUGE, PLAIN, "kind",         \
      "Messages that wait for a handler.")                                    \
    X(HANDLERS_QUEUED_LIMIT, "hedge_handlers_queued_limit", GAUGE, PLAIN,     \
      NULL, "How many of each kind may wait.")                                \
    X(HANDLERS_STREAMS, "hedge_handlers_streams", GAUGE, PLAIN, "kind",       \
      "Streams being handled.")                                               \
    X(HANDLERS_LIMIT, "hedge_handlers_limit", GAUGE, PLAIN, "kind",           \
      "How many messages, and streams, may be handled at a time.")            \
    X(LOCK_CALLS, "hedge_semaphore_calls", GAUGE, PLAIN, NULL,                \
      "Calls about semaphores that this node has made and are not done.")     \
    X(LOCK_CALLS_LIMIT, "hedge_semaphore_calls_limit", GAUGE, PLAIN, NULL,    \
      "How many there may be.")                                               \
    X(LOCK_KEPT, "hedge_semaphore_kept", GAUGE, PLAIN, "what",                \
      "While this node leads: requests granted or in line, their sessions, "  \
      "and calls of other nodes.")                                            \
    X(LOCK_KEPT_LIMIT, "hedge_semaphore_kept_limit", GAUGE, PLAIN, "what",    \
      "How many there may be.")                                               \
    X(LINES_OPEN, "hedge_lines_connections", GAUGE, PLAIN, NULL,              \
      "Line protocol: connections.")                                          \
    X(LINES_LIMIT, "hedge_lines_connections_limit", GAUGE, PLAIN, NULL,       \
      "Line protocol: how many there may be.")                                \
    X(LINES_ACCEPTED, "hedge_lines_accepted_total", COUNTER, PLAIN, NULL,     \
      "Line protocol: connections accepted.")                                 \
    X(LINES_REFUSED, "hedge_lines_refused_total", COUNTER, PLAIN, NULL,       \
      "Line protocol: connections hung up on at once.")                       \
    X(LINES_EVICTED, "hedge_lines_evicted_total", COUNTER, PLAIN, NULL,       \
      "Line protocol: idle connections that made way.")                       \
    X(LINES_REQUESTS, "hedge_lines_requests_total", COUNTER, PLAIN, "verb",   \
      "Line protocol: requests.")                                             \
    X(LINES_ERRORS, "hedge_lines_malformed_total", COUNTER, PLAIN, NULL,      \
      "Line protocol: requests that could not be understood.")

enum stat_id {
#define X(id, name, type, scale, label, help) STAT_##id,
    STATS(X)
#undef X
};

static const struct stat_info infos[] = {
#define X(id, name, type, scale, label, help) \
    [STAT_##id] = {name, STAT_##type, STAT_##scale, label, help},
    STATS(X)
#undef X
};

struct out {
    struct hedge_node *n;
    stats_fn fn;
    void *ctx;
};

static void put(const struct out *o, enum stat_id id, uint64_t value)
{
    o->fn(o->ctx, &infos[id], NULL, value);
}

static void put_labelled(const struct out *o, enum stat_id id,
                         const char *label, uint64_t value)
{
    o->fn(o->ctx, &infos[id], label, value);
}

/* --- the cluster --- */

static void cluster_stats(const struct out *o)
{
    struct hedge_node *n = o->n;
    struct view *v = node_view(n);
    uint64_t token, rounds, changes;
    bool has_leader;

    pthread_mutex_lock(&n->pub_lock);
    has_leader = n->leader.id[0] != '\0';
    token = n->leader.token;
    rounds = n->rounds;
    changes = n->leaders;
    pthread_mutex_unlock(&n->pub_lock);
    put_labelled(o, STAT_INFO, HEDGE_VERSION, 1);
    put(o, STAT_UPTIME, clock_boot_ms() - n->started_ms);
    put(o, STAT_LEADER, hedge_has_lock(n, NULL));
    put(o, STAT_HAS_LEADER, has_leader);
    put(o, STAT_IN_GROUP, atomic_load(&n->in_group));
    put(o, STAT_TOKEN, token);
    put(o, STAT_LEADER_CHANGES, changes);
    put(o, STAT_ROUNDS, rounds);
    put(o, STAT_LEASE, n->o.lease_ms);
    put(o, STAT_MEMBERS, v != NULL ? v->n : 0);
    view_unref(v);
}

/* --- stores and tiers --- */

static const char *const classes[ARENA_CLASSES] = {
    [ARENA_STORED] = "stored", [ARENA_FILL] = "filling",
    [ARENA_OUT] = "leaving",   [ARENA_IN] = "arriving",
    [ARENA_READ] = "reading",  [ARENA_SERVE] = "serving",
    [ARENA_AHEAD] = "ahead",
};

static void memory_stats(const struct out *o, const struct sos_usage *u)
{
    put(o, STAT_MEM_LIMIT, u->arena.limit);
    put(o, STAT_MEM_RESERVE, u->arena.reserve);
    for (unsigned i = 0; i < ARENA_CLASSES; i++) {
        put_labelled(o, STAT_MEM_USED, classes[i], u->arena.by_class[i]);
    }
    put(o, STAT_MEM_FREE, u->arena.stored_free);
    put(o, STAT_MEM_RESIDENT, u->arena.resident);
    put(o, STAT_MEM_LENT, u->mem_lent);
    put(o, STAT_MEM_LENDABLE, u->mem_lendable);
}

static void disk_stats(const struct out *o, const struct sos_usage *u)
{
    put(o, STAT_DISK_LIMIT, u->disk.limit);
    put(o, STAT_DISK_RESERVE, o->n->o.disk_reserve);
    put(o, STAT_DISK_USED, u->disk.used);
    put(o, STAT_DISK_FREE, u->disk.free);
    put(o, STAT_DISK_LENT, u->disk_lent);
    put(o, STAT_DISK_LENDABLE, u->disk_lendable);
}

static void tier_stats(const struct out *o, const struct sos_figures *f)
{
    const struct {
        enum stat_id id;
        uint64_t disk, peers;
    } table[] = {
        {STAT_TIER_WRITES, f->disk.puts, f->remote.puts},
        {STAT_TIER_WRITTEN, f->disk.put_bytes, f->remote.put_bytes},
        {STAT_TIER_READS, f->disk.gets, f->remote.gets},
        {STAT_TIER_READ, f->disk.get_bytes, f->remote.get_bytes},
        {STAT_TIER_REFUSALS, f->disk.refusals, f->remote.refusals},
        {STAT_TIER_FAILURES, f->disk.failures, f->remote.failures},
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        put_labelled(o, table[i].id, "disk", table[i].disk);
        put_labelled(o, table[i].id, "peers", table[i].peers);
    }
}

static void store_stats(const struct out *o)
{
    struct sos_usage u;
    struct sos_figures f;

    sos_usage(o->n->sos, &u);
    sos_figures(o->n->sos, &f);
    memory_stats(o, &u);
    disk_stats(o, &u);
    tier_stats(o, &f);
    put(o, STAT_STORES, u.stores);
    put(o, STAT_STORES_MADE, f.stores_made);
    put(o, STAT_STORES_EXPIRED, f.stores_expired);
    put(o, STAT_STORES_REMOVED, f.stores_removed);
    put(o, STAT_PARTS, f.parts);
    put(o, STAT_WRITERS, f.writers);
    put(o, STAT_READERS, f.readers);
    put(o, STAT_WRITERS_FULL, f.writers_full);
    put(o, STAT_SEALED, f.blocks_sealed);
    put(o, STAT_SEALED_BYTES, f.bytes_sealed);
    put(o, STAT_DELIVERED, f.blocks_delivered);
    put(o, STAT_DELIVERED_BYTES, f.bytes_delivered);
    put(o, STAT_LEAVING, f.passages);
    put(o, STAT_HOMELESS, f.passages_homeless);
    put(o, STAT_LEAVING_MAX, f.passages_max);
}

/* --- gRPC, pools, queues --- */

static void stream_stats(const struct out *o, const struct rpc_server_use *u)
{
    struct hedge_node *n = o->n;
    const struct {
        const char *kind;
        unsigned now, max;
    } table[] = {
        {"all", u->streams, u->streams_max},
        {"write", n->writing, serve_streams_max(n, 2, 1)},
        {"relay", n->passing, serve_passing_max(n)},
        {"health", n->looking, SERVE_LOOKING_MAX},
        {"parts", n->hp_streams, SERVE_HP_MAX},
        {"send", n->sending.served, SERVE_CLIENTS_MAX},
        {"broadcast", n->spreading.served, SERVE_CLIENTS_MAX},
        {"stream", n->relaying.served, SERVE_CLIENTS_MAX},
    };
    size_t count = sizeof table / sizeof table[0];

    for (size_t i = 0; i < count; i++) {
        put_labelled(o, STAT_STREAMS, table[i].kind, table[i].now);
    }
    for (size_t i = 0; i < count; i++) {
        put_labelled(o, STAT_STREAMS_MAX, table[i].kind, table[i].max);
    }
}

static void method_stats(const struct out *o, enum stat_id id)
{
    struct rpc_server *s = o->n->server;

    for (unsigned i = 0; i < rpc_server_n_methods(s); i++) {
        struct rpc_method_use u;

        rpc_server_method_use(s, i, &u);
        put_labelled(o, id, u.path[0] != '\0' ? u.path : "other",
                     id == STAT_CALLS ? u.calls : u.failures);
    }
}

static void pool_stats(const struct out *o, const struct rpc_server_use *u)
{
    const struct {
        const char *name;
        struct pool *pool;
    } table[] = {{"lease", o->n->lease_pool},
                 {"dial", o->n->dial_pool},
                 {"calls", o->n->call_pool}};
    struct pool_use use[3];

    for (unsigned i = 0; i < 3; i++) {
        pool_use(table[i].pool, &use[i]);
        put_labelled(o, STAT_POOL_THREADS, table[i].name, use[i].threads);
    }
    put_labelled(o, STAT_POOL_THREADS, "grpc", u->pool_threads);
    for (unsigned i = 0; i < 3; i++) {
        put_labelled(o, STAT_POOL_BUSY, table[i].name, use[i].busy);
    }
    put_labelled(o, STAT_POOL_BUSY, "grpc", u->pool_busy);
    for (unsigned i = 0; i < 3; i++) {
        put_labelled(o, STAT_POOL_QUEUED, table[i].name, use[i].queued);
    }
    put_labelled(o, STAT_POOL_QUEUED, "grpc", u->pool_queued);
}

static uint64_t loop_still_ms(struct hedge_node *n)
{
    uint64_t beat = atomic_load(&n->loop_beat_ms), now = clock_mono_ms();

    return now > beat ? now - beat : 0;
}

static void queue_stats(const struct out *o)
{
    struct hedge_node *n = o->n;
    struct list *l;
    uint64_t tasks = 0;

    pthread_mutex_lock(&n->mailbox_lock);
    list_foreach (l, &n->tasks) {
        tasks++;
    }
    pthread_mutex_unlock(&n->mailbox_lock);
    put(o, STAT_TASKS, tasks);
    put(o, STAT_LOOP_STILL, loop_still_ms(n));
    put(o, STAT_MESSAGE_LIMIT, n->o.message_limit);
    put(o, STAT_MESSAGE_USED, msg_budget_used(n->messages));
}

static void engine_stats(const struct out *o)
{
    struct engine_use u[ENGINE_CALLS];

    for (unsigned i = 0; i < ENGINE_CALLS; i++) {
        engine_use(&o->n->engine, (enum engine_call)i, &u[i]);
        put_labelled(o, STAT_ENGINE_CALLS_,
                     engine_call_name((enum engine_call)i), u[i].calls);
    }
    for (unsigned i = 0; i < ENGINE_CALLS; i++) {
        put_labelled(o, STAT_ENGINE_FAILURES,
                     engine_call_name((enum engine_call)i), u[i].failures);
    }
    for (unsigned i = 0; i < ENGINE_CALLS; i++) {
        put_labelled(o, STAT_ENGINE_TIME, engine_call_name((enum engine_call)i),
                     u[i].nanos);
    }
}

static void log_stats(const struct out *o)
{
    struct kv_use u;

    kv_use(o->n->kv, &u);
    put(o, STAT_LOG_REVISION, u.revision);
    put(o, STAT_LOG_PUTS, u.puts);
    put(o, STAT_LOG_TRANSACTIONS, u.transactions);
    put(o, STAT_LOG_QUEUED, u.queued);
    put(o, STAT_LOG_LIVE, u.live);
    put(o, STAT_LOG_BYTES, u.used_bytes);
    put(o, STAT_LOG_BYTES_MAX, u.limit_bytes);
}

static void handler_stats(const struct out *o)
{
    struct handlers_use u[HANDLER_KINDS];
    const struct {
        enum stat_id id;
        size_t at;
    } table[] = {
        {STAT_HANDLERS_RUNNING, offsetof(struct handlers_use, running)},
        {STAT_HANDLERS_QUEUED, offsetof(struct handlers_use, queued)},
        {STAT_HANDLERS_STREAMS, offsetof(struct handlers_use, streams)},
        {STAT_HANDLERS_LIMIT, offsetof(struct handlers_use, max)},
    };

    for (unsigned k = 0; k < HANDLER_KINDS; k++) {
        handlers_use(o->n->handlers, (enum handler_kind)k, &u[k]);
    }
    put(o, STAT_HANDLERS_QUEUED_LIMIT, HANDLERS_QUEUE_MAX);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        for (unsigned k = 0; k < HANDLER_KINDS; k++) {
            unsigned value;

            memcpy(&value, (const char *)&u[k] + table[i].at, sizeof value);
            put_labelled(o, table[i].id,
                         handler_kind_name((enum handler_kind)k), value);
        }
    }
}

static void lock_stats(const struct out *o)
{
    struct locks *l = o->n->locks;
    const struct {
        const char *what;
        size_t now, max;
    } table[] = {
        {"requests", atomic_load(&l->n_claims), SEMAPHORE_CLAIMS_MAX},
        {"sessions", atomic_load(&l->n_sessions), SEMAPHORE_SESSIONS_MAX},
        {"relayed", atomic_load(&l->n_relayed), RELAYED_MAX},
    };
    size_t count = sizeof table / sizeof table[0];

    put(o, STAT_LOCK_CALLS, atomic_load(&l->n_calls));
    put(o, STAT_LOCK_CALLS_LIMIT, LOCK_CALLS_MAX);
    for (size_t i = 0; i < count; i++) {
        put_labelled(o, STAT_LOCK_KEPT, table[i].what, table[i].now);
    }
    for (size_t i = 0; i < count; i++) {
        put_labelled(o, STAT_LOCK_KEPT_LIMIT, table[i].what, table[i].max);
    }
}

static void line_stats(const struct out *o)
{
    struct lines_use u;

    lines_server_use(o->n->lines, &u);
    put(o, STAT_LINES_OPEN, u.connections);
    put(o, STAT_LINES_LIMIT, LINES_CONNECTIONS_MAX);
    put(o, STAT_LINES_ACCEPTED, u.accepted);
    put(o, STAT_LINES_REFUSED, u.refused);
    put(o, STAT_LINES_EVICTED, u.evicted);
    for (unsigned i = 0; i <= LINE_VERBS; i++) {
        put_labelled(o, STAT_LINES_REQUESTS, line_verb_name((enum line_verb)i),
                     u.requests[i]);
    }
    put(o, STAT_LINES_ERRORS, u.errors);
}

void stats_each(struct hedge_node *n, stats_fn fn, void *ctx)
{
    struct out o = {.n = n, .fn = fn, .ctx = ctx};
    struct rpc_server_use u;

    rpc_server_use(n->server, &u);
    cluster_stats(&o);
    store_stats(&o);
    stream_stats(&o, &u);
    method_stats(&o, STAT_CALLS);
    method_stats(&o, STAT_FAILURES);
    put(&o, STAT_UNARY, u.unary);
    pool_stats(&o, &u);
    queue_stats(&o);
    engine_stats(&o);
    log_stats(&o);
    handler_stats(&o);
    lock_stats(&o);
    line_stats(&o);
}

/* --- checks --- */

static void check_loop(struct hedge_node *n, struct node_check *c)
{
    uint64_t still = loop_still_ms(n);
    uint64_t max = LOOP_STILL_INTERVALS * n->o.sync_interval_ms;

    max = max > LOOP_STILL_MIN_MS ? max : LOOP_STILL_MIN_MS;
    c->ok = still < max;
    (void)snprintf(c->text, sizeof c->text, "it has not moved for %llu ms",
                   (unsigned long long)still);
}

static void check_stopping(struct hedge_node *n, struct node_check *c)
{
    c->ok = !atomic_load(&n->closing);
    (void)snprintf(c->text, sizeof c->text, "the node stops");
}

static void check_leader(struct hedge_node *n, struct node_check *c)
{
    struct hedge_leader l;

    c->ok = hedge_leader(n, &l) == 0;
    (void)snprintf(c->text, sizeof c->text, "the group has no leader");
}

static void check_group(struct hedge_node *n, struct node_check *c)
{
    c->ok = atomic_load(&n->in_group);
    (void)snprintf(c->text, sizeof c->text,
                   "this node is not in touch with the leader");
}

static void check_engine(struct hedge_node *n, struct node_check *c)
{
    struct engine_lease lease;
    struct hedge_error e = {0};

    c->ok = engine_look(&n->engine, &lease, &e) == 0;
    (void)snprintf(c->text, sizeof c->text, "%.*s", (int)sizeof c->text - 1,
                   e.text);
}

static const struct {
    const char *name;
    unsigned kind;
    void (*check)(struct hedge_node *n, struct node_check *c);
} checks[] = {
    {"loop", NODE_CHECK_LIVE | NODE_CHECK_READY, check_loop},
    {"running", NODE_CHECK_READY, check_stopping},
    {"leader", NODE_CHECK_READY, check_leader},
    {"group", NODE_CHECK_READY, check_group},
    {"engine", NODE_CHECK_READY, check_engine},
};

size_t node_checks(struct hedge_node *n, unsigned kinds,
                   struct node_check out[NODE_CHECKS_MAX])
{
    size_t count = 0;

    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        if ((checks[i].kind & kinds) != 0) {
            struct node_check *c = &out[count++];

            memset(c, 0, sizeof *c);
            c->name = checks[i].name;
            checks[i].check(n, c);
        }
    }
    return count;
}

void node_set_front(struct hedge_node *n, void (*end)(void *ctx), void *ctx)
{
    n->front_end = end;
    n->front_ctx = ctx;
}
