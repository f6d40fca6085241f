/* peer_internal.h - what the files of the remote tier share.
 *
 * A request of the store becomes an op. A lane is one stream to one peer, for
 * puts or for gets: ops wait in its queue, then are in flight until the peer
 * has answered. A session is one life of the lane's stream and channel; when it
 * breaks, what was in flight goes elsewhere (puts) or is asked again (gets).
 *
 * The life of an op, under tier.lock:
 *   queued (lane.queue, or tier.waiting while no peer is fit to be asked)
 *     -> in flight (lane.flight) -> queued again, or
 *     -> settled: its outcome is known
 *     -> completed: the callback has run. Not before the transport has let go
 *        of every piece of memory it was given for it (sends_out is 0).
 *
 * Ownership: ops are the tier's from put() or get() to the callback. Peers
 *            live as long as the tier, so that their names do.
 * Threads:   one lock for all state. It is never held while rpc or a callback
 *            is called: rpc runs release functions inside its calls, and they
 *            take it.
 * Errors:    hedge codes.
 * Units:     bytes, milliseconds of the monotonic clock.
 * Limits:    as the constants below. */
#ifndef CLUSTER_PEER_INTERNAL_H
#define CLUSTER_PEER_INTERNAL_H

#include "cluster/peer/peer_tier.h"
#include "cluster/rpc/rpc.h"

#include <pthread.h>
#include <stdbool.h>

#define PEER_TICK_MS 200
#define PEER_GET_WINDOW PEER_WINDOW
#define PEER_GET_STALL_MS 4000
#define PEER_GET_TRIES 5
/* An unanswered get is not asked again after this long. */
#define PEER_GET_GIVE_UP_MS 5000
/* So long a put waits for a peer that may take it once it answers again. */
#define PEER_PUT_GIVE_UP_MS 5000
/* And so long, from when that is found, for one that says nothing, as a process
 * that is stopped does: it may well go on, where one that refuses connections
 * has ended. Tests set it, before there are threads. */
extern uint64_t peer_put_silent_ms;
#define PEER_IDLE_MS 30000 /* A lane without work closes. */
#define PEER_TRIED_MAX 32
#define PEER_REFUSALS 16
#define PEER_REFUSAL_MS 1000
#define PEER_ANSWER_MAX 192
#define PEER_WARN_MS 10000 /* It does not store: said once in a while. */
#define PEER_DROPS_MAX 1024
#define PEER_HEAD_MAX 2048
#define PEER_ID_MAX 512

struct peer_tier;
struct peer;
struct lane;

#define OP_MAGIC 0x70656f70u

struct op {
    unsigned magic;
    struct list link;
    struct tier_req *req;
    struct peer_tier *tier;
    uint64_t number;   /* In the messages; of its lane. */
    uint64_t since_ms; /* Get: made. Put: first went wrong; 0: never. */
    unsigned tries;
    unsigned sends_out; /* Sends the transport has not let go of. */
    bool settled;
    unsigned n_tried; /* Peers that do not take it. */
    uint32_t tried[PEER_TRIED_MAX];
};

/* A thread that may end by itself and be started again. */
struct peer_thread {
    pthread_t thread;
    bool made, ended;
};

struct lane_kind {
    const char *path;
    uint64_t stall_ms;
    unsigned window;
    /* Encode and send; no lock. The op may be gone when it returns. */
    int (*send)(struct lane *l, struct op *op, bool first);
    /* One message from the peer; no lock. An error breaks the session. */
    int (*reply)(struct lane *l, struct rpc_msg *m, struct hedge_error *e);
    /* Lock held: the session is over and so are its threads; everything in
     * `flight` and `queue` is to find another place, or to stay queued. */
    void (*broken)(struct lane *l, const struct hedge_error *why);
};

struct lane {
    struct peer *peer;
    const struct lane_kind *kind;
    struct list queue, flight;
    unsigned n_flight;
    uint64_t next_number;
    pthread_cond_t wake;
    struct peer_thread thread;
    uint64_t backoff_until_ms;
    unsigned failures; /* Sessions in a row that brought no answer. */

    /* The session. */
    struct rpc_channel *channel; /* The lane thread's. */
    struct rpc_stream *stream;
    uint64_t session;
    unsigned pins;        /* Who uses `stream` without the lock. */
    uint64_t progress_ms; /* Last answer, or when something became due. */
    bool is_broken, answered, stalled;
    struct hedge_error why;
};

/* Blocks of one generation stored on a peer. */
struct holding {
    uint64_t generation, bytes, blocks;
};

/* `count` blocks of one writer to be dropped. */
struct drop_run {
    uint64_t generation, sequence;
    uint32_t writer, count;
};

struct refusal {
    uint64_t generation, until_ms;
};

struct peer {
    struct peer_tier *tier;
    uint32_t unit;
    char *id;
    uint64_t incarnation;
    char *target;
    bool listed; /* Among the members now. */
    bool was_listed;
    bool gone; /* Another life of the node has begun: all is lost. */
    bool full; /* Has refused, and has not shown room since. */
    /* It says nothing, neither to puts nor to who connects, and is waited for
     * until then; 0: it does. One end for all puts: it may never be heard of
     * again. */
    uint64_t silent_until_ms;
    uint64_t mem_free, disk_free;
    unsigned n_puts; /* Queued or in flight: `free` knows nothing of them. */
    uint64_t busy_until_ms; /* Not to be asked to store before. */
    struct refusal refusals[PEER_REFUSALS]; /* By stores' own limits. */
    unsigned next_refusal;
    uint64_t warned_ms;
    char answer[PEER_ANSWER_MAX]; /* To the last put, for people. */
    struct lane put, get;

    struct holding *holdings;
    unsigned n_holdings, holdings_cap;

    /* The care thread: drops and renewals (peer_care.c). */
    struct peer_thread care;
    pthread_cond_t care_wake;
    struct block_id orphans[PEER_WINDOW]; /* Perhaps stored, not wanted. */
    unsigned n_orphans;
    uint64_t fence; /* No put of this session and before may still arrive. */
    struct drop_run *drops; /* A ring. */
    unsigned first_drop, n_drops;
    uint64_t *dead_stores; /* Generations to be dropped whole. */
    unsigned n_dead_stores, dead_stores_cap;
    bool untold; /* Blocks are there that `holdings` does not know. */
    unsigned care_failures;
    uint64_t care_after_ms, renew_at_ms;
};

struct peer_tier {
    struct tier base;
    char *self_id;
    uint64_t incarnation;
    size_t block_size;
    uint64_t lease_ms;

    pthread_mutex_t lock;
    pthread_cond_t wake; /* The tier's thread. */
    pthread_cond_t unpinned;
    struct peer **peers; /* By unit. */
    uint32_t n_peers, peers_cap;
    struct peer *target;  /* It is being filled. */
    struct peer *copies;  /* It got the last block of a store with replicas. */
    struct list waiting;  /* Puts no peer can be asked for just now. */
    struct list finished; /* Settled ops, to be completed by our thread. */
    unsigned n_ops;       /* Not completed. */
    unsigned n_threads;   /* Of lanes and care, not joined. */
    unsigned n_flight;
    bool hurry; /* The node stops: peers that do not answer are left. */
    bool closing, asleep;
    pthread_t thread;
};

struct peer_tier *peer_tier_of(struct tier *t);
uint64_t peer_now_ms(void);
/* pthread_cond_init() on the monotonic clock; waits until *_until_ms. */
void peer_cond_init(pthread_cond_t *c);
void peer_cond_wait_until(pthread_cond_t *c, pthread_mutex_t *lock,
                          uint64_t until_ms);

/* --- threads and ops (peer_tier.c) ---------------------------------------- */

/* Lock held. Start the thread unless it runs. */
int peer_thread_start(struct peer_tier *t, struct peer_thread *th,
                      void *(*fn)(void *), void *arg, const char *name);
/* Lock held; the last thing a thread does before it unlocks and returns. */
void peer_thread_end(struct peer_tier *t, struct peer_thread *th);
/* Lock held: the tier's thread should look around. */
void peer_tier_kick(struct peer_tier *t);

int op_new(struct peer_tier *t, struct tier_req *req, struct op **out);
/* Lock held; the op is on no list. True: the caller completes it once the lock
 * is free; false: that happens elsewhere. */
bool op_settle(struct op *op, int status);
/* The same, leaving completion to the tier's thread. */
void op_settle_later(struct op *op, int status);
/* No lock: run the callback. */
void op_complete(struct op *op);
/* An rpc_release_fn: the transport has let go of one send. */
void op_released(void *arg);

/* Lock held. Another life of the node has begun. */
void peer_gone(struct peer *p);
/* Lock held. The peer cannot be reached. */
bool peer_is_lost(const struct peer *p);

/* --- lanes (peer_lane.c) -------------------------------------------------- */

void lane_init(struct lane *l, struct peer *p, const struct lane_kind *kind);
void lane_release(struct lane *l);
/* Lock held. Queue an op and see that the lane runs; an error leaves the op
 * alone. */
int lane_submit(struct lane *l, struct op *op);
/* Lock held. The op in flight with this number, or NULL. */
struct op *lane_find(struct lane *l, uint64_t number);
/* Lock held. Take it out of flight: it has been answered. */
void lane_answered(struct lane *l, struct op *op);
/* Lock held, let go in between: break the session if there has been no
 * progress. */
void lane_check(struct lane *l, uint64_t now_ms);
/* The same, unconditionally. */
void lane_break(struct lane *l, int code, const char *text);
/* Lock held. The peer is there again: forget past failures. */
void lane_hope(struct lane *l);
/* Split a reply; *head is for mem_free(). */
int lane_split(struct rpc_msg *m, unsigned char **head, size_t *head_len,
               bool *has_body, size_t *body_len, struct hedge_error *e);

/* --- puts (peer_put.c) ---------------------------------------------------- */

extern const struct lane_kind put_lane;
/* Lock held: give the op to a peer, let it wait, or refuse it. */
void put_place(struct op *op);
/* Lock held: look at those that wait once more. */
void put_retry_waiting(struct peer_tier *t);
/* Lock held. The code a peer gave by name. */
int peer_code(const char *name);

/* --- gets (peer_get.c) ---------------------------------------------------- */

extern const struct lane_kind get_lane;
/* Lock held: queue it or say why not. */
void get_place(struct op *op);

/* --- drops, renewals, accounts (peer_care.c) ------------------------------ */

/* All of these: lock held. */
void care_stored(struct peer *p, uint64_t generation, uint64_t bytes);
void care_wake(struct peer *p);
void care_drop(struct peer *p, const struct block_id *id, uint64_t bytes);
void care_drop_store(struct peer *p, uint64_t generation);
/* What was on its way when session `fence` broke is dropped before the peer is
 * given anything new. */
void care_orphan(struct peer *p, const struct block_id *id, uint64_t fence);
uint64_t peer_bytes(const struct peer *p);

#endif
