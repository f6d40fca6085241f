/* election.h - who leads the group: a pure core that decides when to look at
 * the lease, acquire, renew and release it, and whether this node leads now.
 *
 * The driver feeds events to election_step() and carries out what comes back:
 * at most one engine operation at a time (on the lease thread; its result is
 * the next event about it), notices of leadership won, lost and changed, and
 * the time of the next ELECTION_TICK. A follower looks at the lease often and
 * acquires it when it is free; a leader renews it. It leads from the answer
 * to its acquisition until its own deadline: the start of the last successful
 * request, plus the lease, less a margin. So it has stopped leading by the
 * time anybody else can have the lease, without having to be told, even if it
 * was suspended and has not run one step since.
 *
 * Ownership: the election is embedded by its user and owns nothing outside
 *            itself; strings of events are copied.
 * Threads:   one at a time (the loop). election_is_leader() elsewhere works on
 *            a copy of struct election_hold that the driver publishes after
 *            each step.
 * Errors:    none: results of the engine come in as events, and the last
 *            failure is kept for election_status().
 * Units:     milliseconds on one clock, CLOCK_BOOTTIME in a node.
 * Limits:    no clock, socket, file, random source or thread in here. */
#ifndef CLUSTER_ELECTION_H
#define CLUSTER_ELECTION_H

#include "cluster/engine/engine.h"

#include <stdbool.h>
#include <stdint.h>

#define ELECTION_NEVER UINT64_MAX

struct election_options {
    uint64_t lease_ms;
    uint64_t margin_ms; /* 0 = a tenth of the lease. */
    uint64_t look_ms;   /* Between looks of a follower; 0 = 200. */
    uint64_t renew_ms;  /* Between renewals; 0 = a third of the lease. */
    uint64_t seed;      /* Of the jitter that keeps followers apart. */
    const char *id;
    const char *address;
    uint64_t incarnation;
};

enum election_op {
    ELECTION_OP_NONE,
    ELECTION_OP_LOOK,    /* engine_look() */
    ELECTION_OP_ACQUIRE, /* engine_acquire() */
    ELECTION_OP_RENEW,   /* engine_renew(token) */
    ELECTION_OP_RELEASE  /* engine_release(token) */
};

enum election_event_type {
    ELECTION_START,
    ELECTION_TICK,   /* Harmless at any time. */
    ELECTION_RESULT, /* The operation asked for has returned. */
    ELECTION_STOP,   /* Give the lease back and come to rest. */
    /* A node announced itself as leader (`lease`: holder, address,
     * incarnation, token). The engine has the last word. */
    ELECTION_HINT_LEADER,
    ELECTION_HINT_VANISHED /* The leader seems gone: look now. */
};

struct election_event {
    enum election_event_type type;
    /* Of ELECTION_RESULT: */
    uint64_t op_id;      /* As given with the operation. */
    uint64_t started_ms; /* When the call to the engine began. */
    int status;          /* 0 or a hedge code. */
    uint64_t token;      /* Of a successful acquisition. */
    /* Of a successful look, of an acquisition that succeeded (*before) or was
     * HEDGE_EBUSY, and of a hint. May be NULL otherwise. */
    const struct engine_lease *lease;
};

enum election_lost {
    ELECTION_LOST_EXPIRED, /* No renewal came through in time. */
    ELECTION_LOST_FENCED,  /* The engine says another has it. */
    ELECTION_LOST_STOPPED  /* ELECTION_STOP. */
};

struct election_leader {
    char id[ENGINE_ID_SIZE]; /* Empty: no leader is known. */
    char address[ENGINE_ID_SIZE];
    uint64_t incarnation;
    uint64_t token;
};

/* To be carried out in this order. */
struct election_actions {
    bool lost; /* This node has stopped leading. */
    enum election_lost lost_reason;
    uint64_t lost_token;

    bool won; /* This node leads with won_token until it is `lost`. */
    uint64_t won_token;
    uint64_t won_idle_ms; /* How long the lease had been free before. */

    bool leader_changed; /* See election_leader(). */

    enum election_op op; /* Start it and feed its result, exactly once. */
    uint64_t op_id;
    uint64_t op_token;

    bool stopped; /* After ELECTION_STOP: nothing more will be asked. */

    uint64_t wake_ms; /* Step with ELECTION_TICK then, if not before. */
};

/* What tells whether this node leads; a value to copy between threads. */
struct election_hold {
    uint64_t token;    /* 0: does not lead. */
    uint64_t until_ms; /* Leads while now is before this. */
};

enum election_state {
    ELECTION_IDLE, /* Not started, or stopped. */
    ELECTION_FOLLOWER,
    ELECTION_LEADER,
    ELECTION_STOPPING
};

struct election {
    struct election_options o;
    char id[ENGINE_ID_SIZE], address[ENGINE_ID_SIZE];
    enum election_state state;
    uint64_t now_ms; /* Of the last step. */
    uint64_t random;

    enum election_op op; /* In progress. */
    uint64_t op_id, op_started_ms, op_token;

    struct election_hold hold;
    uint64_t renew_at_ms; /* Leader. */
    uint64_t look_at_ms;  /* Follower. */
    bool acquire;         /* The next operation of a follower. */
    unsigned failures;    /* Of the engine, in a row. */
    int status;
    uint64_t rounds;

    struct election_leader leader;
    uint64_t hinted_at_ms;  /* When `leader` came from a hint, 0 = engine. */
    uint64_t token_max;     /* Of all acquisitions of this node. */
    uint64_t release_token; /* To give back while stopping, 0 = nothing. */
};

/* `id` and `address` are copied; they must fit ENGINE_ID_SIZE. */
void election_init(struct election *e, const struct election_options *o);

/* Handle one event; *out is overwritten. */
void election_step(struct election *e, const struct election_event *event,
                   uint64_t now_ms, struct election_actions *out);

/* Does this node lead at this moment? *token (may be NULL) is the fencing
 * token, 0 when it does not. */
bool election_is_leader(const struct election *e, uint64_t now_ms,
                        uint64_t *token);
bool election_hold_valid(const struct election_hold *h, uint64_t now_ms);
struct election_hold election_hold(const struct election *e);

/* The leader as far as known; its id is empty when there is none. */
const struct election_leader *election_leader(const struct election *e);

/* Results of the engine so far; and its last failure, 0 when its last answer
 * was a good one. */
uint64_t election_rounds(const struct election *e);
int election_status(const struct election *e);

const char *election_lost_text(enum election_lost reason);

#endif
