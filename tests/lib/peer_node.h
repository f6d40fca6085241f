/* peer_node.h - nodes as the peer tier sees them: a store, the block service
 * and a server for it, several in one process; and requests for the tier.
 *
 * Ownership: peer_node_start() makes, peer_node_stop() ends; a move owns its
 *            buffer.
 * Threads:   moves may end on any thread; the rest is for one.
 * Errors:    cmocka's assertions.
 * Units:     bytes, milliseconds.
 * Limits:    files below TMPDIR or /tmp. */
#ifndef TESTS_LIB_PEER_NODE_H
#define TESTS_LIB_PEER_NODE_H

#include "cluster/peer/peer_tier.h"
#include "cluster/peer/serve_peer.h"
#include "store/sos.h"

#include <stdatomic.h>
#include <sys/types.h>

#include "tests/lib/check.h"

#define PEER_TEST_BLOCK ((size_t)64 << 10)
#define PEER_TEST_LEASE_MS 6000u
#define PEER_TEST_WAIT_MS 30000u

struct peer_node {
    const char *id;
    uint64_t incarnation;
    size_t block_size;
    struct sos *sos;
    struct peer_service *service;
    struct rpc_server *server;
    char dir[256];
    char address[300];
    /* Methods to answer with instead of the service's; NULL: the service's. */
    rpc_stream_fn put, get;
    rpc_unary_fn drop;
    void *ctx;
};

/* What is not set in `o` is: 64 blocks of memory, no disk, everything lent. */
void peer_node_start(struct peer_node *n, const char *id, uint64_t incarnation,
                     struct sos_options o);
/* The server alone, and the server again. */
void peer_node_mute(struct peer_node *n);
void peer_node_unmute(struct peer_node *n);
void peer_node_stop(struct peer_node *n);
struct peer_info peer_node_info(const struct peer_node *n);
uint64_t peer_node_lent(const struct peer_node *n);
/* Wait until it has lent nothing any more. */
void peer_node_await_empty(const struct peer_node *n);

/* A node in a process of its own, with 64 blocks of memory. */
struct far_node {
    pid_t pid;
    char address[300];
};
void far_node_start(struct far_node *n);
/* Kills it if need be, and removes its files. */
void far_node_stop(struct far_node *n);
struct peer_info far_node_info(const struct far_node *n);
/* In main(): be such a node, if this process is one, else return. */
void far_node_role(int argc, char **argv);

/* A tier of a node "self", a new life of it each time, that knows these
 * nodes. */
struct tier *peer_test_tier(size_t block_size, struct peer_node *const *nodes,
                            size_t n);
void peer_test_tell(struct tier *t, struct peer_node *const *nodes, size_t n);

/* One block on its way, there or back. */
struct move {
    struct tier_req req;
    unsigned char *bytes; /* What was in req.data at first. */
    atomic_int ended;
    bool poison; /* Spoil the memory as soon as it is given back. */
};

extern const struct tier_store peer_test_store;

/* A block whose payload fills `size` bytes, header included. */
void move_init(struct move *m, uint64_t generation, uint64_t sequence,
               size_t size);
void move_release(struct move *m);
void move_put(struct tier *t, struct move *m);
void move_get(struct tier *t, struct move *m);
/* The status; fails unless it ends, once. */
int move_wait(struct move *m);
/* Put, or get into fresh memory, and wait. */
int move_there(struct tier *t, struct move *m);
int move_back(struct tier *t, struct move *m);
/* Get it: the same bytes. */
void move_check(struct tier *t, struct move *m);
void move_drop(struct tier *t, struct move *m);

#endif
