/* node_internal.h - what the files of the node share.
 *
 * Threads: the loop owns election, membership and the uplink's and sessions'
 * numbers; everything else is guarded by the lock named beside it. Locks, in
 * the order in which they may be taken: sessions_lock -> pub_lock; each of the
 * others alone. */
#ifndef CLUSTER_NODE_INTERNAL_H
#define CLUSTER_NODE_INTERNAL_H

#include "cluster/group/directory.h"
#include "cluster/group/election.h"
#include "cluster/engine/engine.h"
#include "cluster/messages/handlers.h"
#include "cluster/hedge.h"
#include "cluster/group/membership.h"
#include "cluster/pb.h"
#include "cluster/peer/peer_tier.h"
#include "cluster/rpc/rpc.h"
#include "cluster/peer/serve_peer.h"
#include "store/base/list.h"
#include "store/base/pool.h"
#include "store/sos.h"

#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#define WIRE_VERSION 1
#define TARGET_SIZE 320

/* Something for the loop to do. The task is the loop's from node_post() on and
 * freed with mem_free() after `fn`, or after `drop` when the loop has ended. */
struct task {
    struct list link;
    void (*fn)(struct hedge_node *n, struct task *t);
    void (*drop)(struct task *t); /* May be NULL. */
};

/* The members as others see them; replaced whole by the loop. */
struct view {
    atomic_uint refs;
    uint64_t token, version;
    size_t n;
    /* How each is reached, as node_target() says; NULL: no memory. */
    char (*targets)[TARGET_SIZE];
    struct member members[];
};

struct session; /* A member's control stream, on the leader. node_link.c */

/* The member's end of it. */
struct uplink {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool running, closing;
    bool connect; /* There is a (new) leader to go to. */
    bool report;  /* Send a report now. */
    char target[TARGET_SIZE];
    uint64_t token;
    struct member self;
};

struct hedge_node {
    /* Options, with the defaults filled in. */
    char *id, *grpc_address, *group, *engine_url, *data_dir;
    char socket[MEMBER_SOCKET_SIZE];
    char boot_id[MEMBER_BOOT_ID_SIZE];
    struct hedge_options o;
    uint64_t incarnation;
    uint64_t started_ms;
    int lock_fd;
    int listen_fd;

    struct sos *sos;
    struct tier *peers; /* Owned by the sos. */
    struct engine engine;
    struct kv *kv;
    struct directory *directory;
    struct peer_service *peer_service;
    struct msg_budget *messages; /* What --message-limit bounds. */
    struct handlers *handlers;
    struct msg_parts *parts; /* Messages that travel in pieces. */
    /* Clients' messages, broadcasts and streams: one kind that hangs does not
     * hold up the others. */
    struct serve_gate {
        atomic_uint served, waiting;
    } sending, spreading, relaying;
    struct rpc_server *server;
    struct locks *locks;         /* locks.h */
    struct sem_session *session; /* Of its own semaphores. */

    /* The loop. */
    uv_loop_t loop;
    bool loop_open;
    uv_async_t mailbox;
    uv_timer_t timer;
    uv_timer_t figures;
    pthread_t loop_thread;
    bool loop_runs;
    pthread_mutex_t mailbox_lock;
    struct list tasks;
    struct election election;
    struct membership *membership;
    struct membership_actions actions;
    uint64_t next_session;
    uint64_t leader_token;                 /* Told to the membership. */
    atomic_uint_least64_t leader_lease_ms; /* Set by the loop; 0: not known. */
    uint64_t told_lease_ms; /* That it is another one than ours. */
    uint64_t election_wake_ms, membership_wake_ms;
    bool stopping, election_stopped;
    bool superseded; /* Another node lives under this id. */

    struct pool *lease_pool; /* One thread: engine calls of the election. */
    struct pool *dial_pool;
    /* Calls that may wait for another node. They are not served by the rpc
     * server's own threads: nodes that ask each other all at once would keep
     * all of each other's threads waiting. Outlives the sos. */
    struct pool *call_pool;

    struct uplink uplink;

    pthread_mutex_t sessions_lock; /* sessions, publisher */
    pthread_cond_t sessions_changed;
    struct list sessions;
    bool publisher_closing, publisher_runs;
    pthread_t publisher;

    pthread_mutex_t pub_lock; /* What other threads may look at. */
    pthread_cond_t pub_changed;
    struct view *view;
    struct election_hold hold;
    struct election_leader leader;
    /* The way to the leader, as long as these have not changed. */
    struct {
        uint64_t token, view_token, view_version;
        char id[MEMBER_ID_SIZE], target[TARGET_SIZE];
    } route;
    uint64_t rounds;
    uint64_t leaders; /* How many have come up, one after the other. */
    bool joined;      /* It has led, or had a list from who leads. */
    struct hedge_error refused; /* By the leader, for what this node is. */
    atomic_bool closing;

    /* Streams that are served: of writers, and of readers of what is on other
     * nodes. */
    atomic_uint writing, passing;
    struct lines_server *lines;   /* On listen_fd. */
    void (*front_end)(void *ctx); /* node_set_front() */
    void *front_ctx;
    atomic_uint_fast64_t loop_beat_ms; /* When the loop last went round. */
    atomic_uint looking;               /* Streams of health and reflection. */
    atomic_uint hp_streams;            /* Of parts, for hedgeproto. */
    atomic_uint_fast64_t local_stores; /* Ever made, for their generations. */
    atomic_bool in_group;              /* Set by the loop. */

    pthread_mutex_t channels_lock; /* channels */
    struct list channels;
};

/* --- node_loop.c --- */
/* From _open on tasks can be posted; from _run on they are done. */
int node_loop_open(struct hedge_node *n, struct hedge_error *e);
int node_loop_run(struct hedge_node *n, struct hedge_error *e);
/* Waits until the lease is given back, ends the thread. */
void node_loop_stop(struct hedge_node *n);
/* Frees it, when nobody can post any more. */
void node_loop_release(struct hedge_node *n);
void node_post(struct hedge_node *n, struct task *t);
void *task_new(size_t size, void (*fn)(struct hedge_node *n, struct task *t));
struct view *node_view(struct hedge_node *n); /* A reference; or NULL. */
void view_unref(struct view *v);
/* Feed an event; on the loop only. */
void node_membership(struct hedge_node *n, const struct membership_event *ev);
/* The same; `fn` is called between the step and what follows from it: when the
 * list settles with it, the directory does so after `fn`. */
void node_membership_then(struct hedge_node *n,
                          const struct membership_event *ev,
                          void (*fn)(struct hedge_node *n, void *arg),
                          void *arg);
void node_hint(struct hedge_node *n, enum election_event_type type,
               const struct engine_lease *lease);

/* --- node_link.c --- */
int node_link_start(struct hedge_node *n, struct hedge_error *e);
void node_link_stop(struct hedge_node *n);
int node_serve_join(struct hedge_node *n, struct rpc_stream *s,
                    struct hedge_error *e);
void node_serve_announce(struct hedge_node *n, struct rpc_call *call,
                         const void *request, size_t len);
/* On the loop: carry out what the membership asks for. */
void node_link_act(struct hedge_node *n, struct membership_actions *a);

/* --- stores.c: stores, wherever they are --- */

/* Where a store lives. */
struct store_place {
    struct sos_store *local; /* A reference, or NULL: elsewhere. */
    char owner[264];
    char target[TARGET_SIZE]; /* For rpc_channel_new(). */
    char grpc_address[264];   /* For clients. */
};

/* This node's own store; asks nobody. */
int stores_find_here(struct hedge_node *n, const char *name,
                     struct store_place *out, struct hedge_error *e);
int stores_find(struct hedge_node *n, const char *name, uint64_t timeout_ms,
                struct store_place *out, struct hedge_error *e);
/* The one there is, or a new one here. `options` NULL: whatever it has.
 * `exclusive`: HEDGE_EEXISTS when there is one. */
int stores_open(struct hedge_node *n, const char *name,
                const struct sos_store_options *options, bool exclusive,
                uint64_t timeout_ms, struct store_place *out,
                struct hedge_error *e);
int stores_remove(struct hedge_node *n, const char *name, uint64_t timeout_ms,
                  struct hedge_error *e);
/* Ends the reference. */
void stores_remove_here(struct hedge_node *n, struct sos_store *store);
void stores_on_expired(void *ctx, const char *name, uint64_t generation);
/* This node leads: its own stores go into its directory. */
void stores_register_own(struct hedge_node *n);
/* Every store this node owns, for a new leader. */
int stores_report(struct hedge_node *n, Hedge__V1__JoinReport *out);
void stores_report_release(Hedge__V1__JoinReport *r);

/* A channel to a node, kept; a reference that node_channel_put() ends. */
struct kept_channel;
struct kept_channel *node_channel(struct hedge_node *n, const char *target);
void node_channel_put(struct hedge_node *n, struct kept_channel *c);
struct rpc_channel *kept_channel_rpc(struct kept_channel *c);
/* How this node reaches a member: its Unix socket when it is on this machine,
 * else TCP. */
void node_target(const struct hedge_node *n, const struct member *m,
                 char out[TARGET_SIZE]);
/* The same by a node's id; where that is not on the list, its address. */
void node_target_of(struct hedge_node *n, const char *id,
                    const char *grpc_address, char out[TARGET_SIZE]);

/* --- node_log.c --- */
int node_log_start(struct hedge_node *n, struct hedge_error *e);
/* As hedge_log_compact(); `leader_only`: HEDGE_ENOTLEADER rather than ask the
 * leader. *removed counts also what was done before an error. */
int node_log_compact(struct hedge_node *n, uint64_t before_revision,
                     uint64_t before_ms, uint64_t keep, bool leader_only,
                     uint64_t timeout_ms, uint64_t *removed,
                     struct hedge_error *e);

/* --- serve_log.c --- */
void serve_log_put(struct rpc_call *c, void *ctx, const void *req, size_t len);
int serve_log_put_large(struct rpc_stream *s, void *ctx, struct hedge_error *e);
void serve_log_get(struct rpc_call *c, void *ctx, const void *req, size_t len);
int serve_log_query(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_log_follow(struct rpc_stream *s, void *ctx, struct hedge_error *e);
void serve_log_compact(struct rpc_call *c, void *ctx, const void *req,
                       size_t len);

/* --- serve_write.c, serve_read.c, serve_store.c, serve_cluster.c --- */
#define SERVE_BUSY_MS 5000 /* How long an open waits for blocks. */
#define SERVE_RETRY_MS 50
/* Messages under way are kept beside the arena, so there may be so many streams
 * of a kind as fit into a part of the message limit with `blocks` each. */
unsigned serve_streams_max(const struct hedge_node *n, unsigned part,
                           unsigned blocks);
unsigned serve_passing_max(const struct hedge_node *n);
/* Wait a while to be one of `max`; HEDGE_EBUSY. Ends with `*count -= 1`. */
int serve_enter(struct rpc_stream *s, atomic_uint *count, unsigned max,
                const char *what, struct hedge_error *e);
int serve_write(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_read(struct rpc_stream *s, void *ctx, struct hedge_error *e);
void serve_stat(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_list(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_remove(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_local_stores(struct rpc_call *c, void *ctx, const void *req,
                        size_t len);
void serve_members(struct rpc_call *c, void *ctx, const void *req, size_t len);
int serve_watch_members(struct rpc_stream *s, void *ctx, struct hedge_error *e);
void serve_leader(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_status(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_register(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_unregister(struct rpc_call *c, void *ctx, const void *req,
                      size_t len);
void serve_find(struct rpc_call *c, void *ctx, const void *req, size_t len);

/* --- serve_hedgeproto.c --- */
#define SERVE_HP_MAX 8
int serve_hp_send(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_hp_broadcast(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_hp_write(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_hp_read(struct rpc_stream *s, void *ctx, struct hedge_error *e);
void serve_hp_close(struct rpc_call *call, void *ctx, const void *req,
                    size_t len);

/* --- serve_messages.c --- */
int msg_parts_new(struct msg_parts **out);
/* Forget what nobody has come for in time. */
void msg_parts_sweep(struct msg_parts *p);
void msg_parts_free(struct msg_parts *p);
void serve_deliver(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_put(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_fetch(struct rpc_call *c, void *ctx, const void *req, size_t len);

/* --- serve_send.c, serve_streams.c --- */
#define SERVE_CLIENTS_MAX 64 /* Of each kind, and so many that wait: */
#define SERVE_WAITING_MAX 96 /* together less than the server's streams. */
/* Wait to be one of those who are served, as long as the client's deadline
 * lets; HEDGE_EBUSY, at once when too many wait. Ends with _leave(). */
int serve_messages_enter(struct rpc_stream *s, struct serve_gate *g,
                         const char *what, struct hedge_error *e);
void serve_messages_leave(struct serve_gate *g);
int serve_stream(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_stream_leader(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_stream_broadcast(struct rpc_stream *s, void *ctx,
                           struct hedge_error *e);
int serve_send(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_broadcast(struct rpc_stream *s, void *ctx, struct hedge_error *e);
/* --- serve_health.c, serve_reflection.c: the standard services of gRPC --- */
#define SERVE_LOOKING_MAX 32
/* In its group, and not stopping. */
bool node_is_serving(struct hedge_node *n);
void serve_health_check(struct rpc_call *c, void *ctx, const void *req,
                        size_t len);
int serve_health_watch(struct rpc_stream *s, void *ctx, struct hedge_error *e);
int serve_reflection(struct rpc_stream *s, void *ctx, struct hedge_error *e);

/* The list as a message; pb_free()-less: members_release(). */
int members_message(struct hedge_node *n, struct view *v,
                    Hedge__V1__MembersReply **out);
void members_release(Hedge__V1__MembersReply *m);

#endif
