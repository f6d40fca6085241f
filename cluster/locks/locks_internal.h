/* locks_internal.h - what the files behind locks.h share.
 *
 * Threads: `lock` guards the inbox and `closed`; everything else is the loop's,
 * but for struct outbox, which has a lock of its own. */
#ifndef CLUSTER_LOCKS_INTERNAL_H
#define CLUSTER_LOCKS_INTERNAL_H

#include "cluster/locks/locks.h"
#include "cluster/node_internal.h"
#include "proto/locks.pb-c.h"

/* Something for the loop. `fn` runs there, or with closed true on whatever
 * thread, when the node stops; it owns the letter. */
struct letter;
typedef void (*letter_fn)(struct hedge_node *n, struct letter *l, bool closed);
struct letter {
    struct list link;
    letter_fn fn;
};

/* Messages to be sent on a stream, and the thread that sends them. What waits
 * here is bounded, whatever the far end does: one that does not take its
 * answers is asked for no more calls (outbox_await()), and what nobody asked
 * for at this moment, grants to those in line, is refused at the limit. */
struct outbox {
    pthread_mutex_t lock;
    pthread_cond_t wake; /* For the sender. */
    pthread_cond_t room; /* For who brings calls. */
    struct list messages;
    size_t bytes;      /* Of these and of the one being sent. */
    unsigned expected; /* Calls on their way to the loop. */
    bool closing;      /* Nothing more is sent or taken in. */
    bool broken;       /* The stream is to end with it. */
};

#define OUTBOX_MAX ((size_t)4 << 20)
#define OUTBOX_MARK ((size_t)256 << 10) /* From here on no calls are read. */
/* Each may have one of the largest answers, a page of a list or all that one
 * session holds: 300 KiB. */
#define OUTBOX_EXPECTED_MAX 8u

/* Packs now. HEDGE_ENOMEM; HEDGE_EEXHAUSTED: it has OUTBOX_MAX; HEDGE_ECLOSED:
 * nothing is sent any more. */
int outbox_put(struct outbox *b, const ProtobufCMessage *m);
void outbox_init(struct outbox *b);
void outbox_release(struct outbox *b);
/* Until closed, broken or the stream fails. */
void outbox_run(struct outbox *b, struct rpc_stream *s);
void outbox_close(struct outbox *b);
/* Close, throw away what waits, and let outbox_run() end the stream. */
void outbox_break(struct outbox *b);
/* Wait until one more call may be taken in; HEDGE_ECLOSED. */
int outbox_await(struct outbox *b);
/* One is on its way to the loop; it has been there, and its answer, if there
 * was one at once, is in. */
void outbox_expect(struct outbox *b);
void outbox_taken(struct outbox *b);

/* A call of another node, in this one's core. */
struct relayed {
    struct semaphore_call call; /* First. */
    struct list link;           /* Of its peer. */
    struct relay_peer *peer;
    uint64_t id;
    bool counted; /* Among n_relayed. */
};

/* Calls of all other nodes at a time, about 1 KiB each; what stands in line or
 * watches leaves room for what comes to an end by itself. */
#define RELAYED_MAX 16384u
#define RELAYED_WAITING_MAX 12288u

/* Another node's stream to this one. */
struct relay_peer {
    atomic_uint refs;
    struct outbox out;
    struct list calls; /* The loop's. */
};

enum { LOCK_KIND_OWN, LOCK_KIND_RELAYED }; /* Of semaphore_call. */

enum lock_state {
    LOCK_UNSENT,
    LOCK_LOCAL, /* In the core. */
    LOCK_SENT   /* On the stream. */
};

/* This node's stream to the leader. */
struct relay {
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock; /* target, closing, stream */
    pthread_cond_t wake;
    char target[TARGET_SIZE]; /* "": nowhere. */
    uint64_t number;          /* Of the target; grows. */
    bool closing;
    struct rpc_stream *stream;
    bool connect; /* There is something to be sent. */
    /* The loop's. */
    struct outbox *out; /* Of the stream that is up; NULL: none is. */
};

#define LOCK_BUCKETS 256u

struct locks {
    struct hedge_node *node;
    pthread_mutex_t lock;
    struct list inbox;
    bool closed;
    bool loop_open;
    uv_async_t async;
    uv_timer_t timer;

    struct semaphores *core;
    uint64_t term;    /* 0: this node does not lead. */
    uint64_t wake_ms; /* The core's. */
    struct pool *engine_pool;

    struct list calls; /* Own ones that are not done. */
    struct list by_id[LOCK_BUCKETS];
    atomic_size_t n_calls; /* Changed by the loop alone. */
    uint64_t due_ms;       /* The first deadline there may be. */
    uint64_t retry_ms;     /* Those that were refused are sent again. */
    struct relay relay;
    atomic_size_t n_relayed; /* Calls of other nodes. */
    /* For the figures: the core's as of its last step. */
    atomic_size_t n_claims, n_sessions;
};

/* --- semaphores.c --- */
/* Takes the letter in any case. false: the node stops. */
bool locks_post(struct locks *l, struct letter *letter, letter_fn fn);
/* On the loop: one step of the core with this call. */
void locks_step_call(struct locks *l, struct semaphore_call *c);
void locks_set_timer(struct locks *l);

/* --- lock_route.c --- */
void route_init(struct locks *l);
/* The core has answered one of this node's calls. */
void route_answered(struct locks *l, struct lock_call *c);
/* The leader, or the stream to it, is another one: send all again. */
void route_changed(struct locks *l);
void route_reply(struct locks *l, const Hedge__V1__LockAnswer *a);
void route_tick(struct locks *l, uint64_t now_ms);
void route_close(struct locks *l);

/* --- lock_relay.c, lock_outbox.c --- */
int relay_start(struct locks *l);
void relay_stop(struct locks *l);
/* On the loop: there is a leader elsewhere ("": there is none). */
void relay_aim(struct locks *l, const char *address);
/* There is something to be sent. */
void relay_connect(struct locks *l);
/* The core has answered a call of another node; takes it. */
void relay_answered(struct locks *l, struct relayed *r);
int serve_relay(struct rpc_stream *s, void *ctx, struct hedge_error *e);

/* --- lock_wire.c --- */
void lock_wire_call(const struct semaphore_call *c, uint64_t id,
                    Hedge__V1__LockCall *out);
/* false: it does not fit. */
bool lock_wire_to_call(const Hedge__V1__LockCall *m,
                       struct semaphore_call *out);
/* Packs and hands over; `c` is unchanged. */
int lock_wire_answer(const struct semaphore_call *c, uint64_t id, bool queued,
                     struct outbox *out);
int lock_wire_to_answer(const Hedge__V1__LockAnswer *m,
                        struct semaphore_call *out);

/* --- serve_locks.c --- */
void serve_lock_open(struct rpc_call *c, void *ctx, const void *req,
                     size_t len);
void serve_lock_renew(struct rpc_call *c, void *ctx, const void *req,
                      size_t len);
void serve_lock_close(struct rpc_call *c, void *ctx, const void *req,
                      size_t len);
void serve_lock_watch(struct rpc_call *c, void *ctx, const void *req,
                      size_t len);
void serve_lock_acquire(struct rpc_call *c, void *ctx, const void *req,
                        size_t len);
void serve_lock_try(struct rpc_call *c, void *ctx, const void *req, size_t len);
void serve_lock_release(struct rpc_call *c, void *ctx, const void *req,
                        size_t len);
void serve_lock_revoke(struct rpc_call *c, void *ctx, const void *req,
                       size_t len);
void serve_lock_list(struct rpc_call *c, void *ctx, const void *req,
                     size_t len);

#endif
