/* sim.h - a cluster in one thread: nodes made of the election and membership
 * cores and a driver, one lease, a network, one clock. What goes wrong, and
 * what must hold, is the test's to say.
 *
 * Ownership: a struct sim is the caller's; sim_release() frees what is in it.
 * Threads:   one.
 * Errors:    sim_fail() notes the first one, prints it with seed and time, and
 *            ends the run; without memory it aborts.
 * Units:     milliseconds of a clock that only the events move.
 * Limits:    SIM_NODES_MAX nodes, SIM_STREAMS_MAX streams in a run. */
#ifndef TESTS_LIB_SIM_H
#define TESTS_LIB_SIM_H

#include "cluster/group/election.h"
#include "cluster/group/membership.h"

#include <stdbool.h>
#include <stdint.h>

#define SIM_NODES_MAX 7
#define SIM_STREAMS_MAX 4096
#define SIM_EVENTS_MAX 1000000u /* Ten times what a run needs. */

enum sim_kind {
    SIM_TIMER_ELECTION,
    SIM_TIMER_MEMBERSHIP,
    SIM_ENGINE_RUN,   /* The request reaches the lease. */
    SIM_ENGINE_REPLY, /* The answer reaches the node. */
    SIM_REPORT,
    SIM_LIST,
    SIM_ANNOUNCE,
    SIM_DIALED,
    SIM_STREAM_BROKEN, /* Seen by the leader. */
    SIM_LINK_DOWN,     /* Seen by the member. */
    SIM_RESUME,
    SIM_START,
    SIM_TEST /* From here on: the test's own. */
};

struct sim;

struct sim_event {
    uint64_t at, seq;
    int kind;             /* enum sim_kind, or the test's own. */
    unsigned node, epoch; /* Whom it is for, which life of it. */
    unsigned from;
    uint64_t a, b; /* By kind: op id, stream, token, incarnation. */
    int status;
    bool ok;
    enum election_op op;
    uint64_t op_id;
    uint64_t started;
    struct engine_lease lease;
    struct membership_report report;
    struct member *members;
    size_t n_members;
    void *data;             /* The test's own; freed with the event. */
    struct sim_event *next; /* In the inbox of a stopped node. */
};

struct sim_shadow {
    char id[MEMBER_ID_SIZE];
    uint64_t incarnation;
};

struct sim_node {
    unsigned index, epoch;
    bool alive, stopping;
    bool paused;
    uint64_t paused_at;
    bool led_when_paused;
    uint64_t incarnation;
    char id[32], address[32];
    struct election e;
    struct membership *m;
    struct membership_actions out;
    uint64_t wake_e, wake_m;
    struct sim_event *inbox, **inbox_end;
    uint64_t stream; /* To the leader, 0 = none. */
    struct sim_shadow shadow[SIM_NODES_MAX];
    size_t n_shadow;
};

struct sim_stream {
    unsigned client, client_epoch, server, server_epoch;
    uint64_t token;
    bool open, accepted;
};

struct sim {
    uint64_t seed, random, now, seq;
    bool trace, failed, healed, stable;
    unsigned n_nodes;
    uint64_t lease_ms, interval_ms;
    struct sim_node nodes[SIM_NODES_MAX];
    struct sim_event **heap;
    size_t n_heap, cap_heap;
    struct sim_stream streams[SIM_STREAMS_MAX];
    uint64_t n_streams;
    bool cut[SIM_NODES_MAX][SIM_NODES_MAX];
    uint64_t bad_net_until, slow_until, failing_until;
    /* The lease. */
    struct engine_lease row; /* remaining_ms, idle_ms, held: not used. */
    uint64_t expires;
    bool ever;
    uint64_t last_won;
    uint64_t wins, changes, events;
    void (*check)(struct sim *w); /* Before and after every event. */
    void (*on_test_event)(struct sim *w, struct sim_event *ev);
    /* A node starts or stops to lead; it starts or ends. May be NULL. */
    void (*on_lead)(struct sim *w, struct sim_node *n, uint64_t token);
    void (*on_life)(struct sim *w, struct sim_node *n);
};

uint64_t sim_rnd(struct sim *w);
/* Both included. */
uint64_t sim_between(struct sim *w, uint64_t lo, uint64_t hi);
bool sim_chance(struct sim *w, unsigned percent);
/* A line of the story, with the time, when it is wanted. */
void sim_say(struct sim *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void sim_fail(struct sim *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* A copy of `ev` happens after `delay`. */
void sim_push(struct sim *w, const struct sim_event *ev, uint64_t delay);

/* From nodes_min nodes on, lease and interval by the seed; `check` and
 * `on_test_event` are to be set before the first run. */
void sim_init(struct sim *w, uint64_t seed, bool trace, unsigned nodes_min);
void sim_run_until(struct sim *w, uint64_t end);
void sim_release(struct sim *w);

void sim_node_start(struct sim *w, struct sim_node *n);
/* The process is gone, by kill -9 or at its own end. */
void sim_node_died(struct sim *w, struct sim_node *n);
/* A clean stop. */
void sim_node_stop(struct sim *w, struct sim_node *n);
/* SIGSTOP, and SIGCONT after `ms`. */
void sim_node_pause(struct sim *w, struct sim_node *n, uint64_t ms);
void sim_node_resume(struct sim *w, struct sim_node *n);
/* Break a stream; whom to tell. */
void sim_stream_end(struct sim *w, uint64_t id, bool tell_server,
                    bool tell_client, int status);

#endif
