/* serve_peer.h - what a node does for the stores of other nodes: the block
 * calls of service hedge.v1.Peer (Put, Get, Drop, Renew).
 *
 * Ownership: peer_service_new() borrows the sos; _free() after the rpc server
 *            has stopped.
 * Threads:   the handlers run on rpc threads.
 * Errors:    as struct rpc_method's handlers; per-block errors travel in the
 *            replies.
 * Units:     bytes, milliseconds.
 * Limits:    per stream, PEER_WINDOW blocks are worked on at a time. */
#ifndef CLUSTER_SERVE_PEER_H
#define CLUSTER_SERVE_PEER_H

#include "cluster/rpc/rpc.h"
#include "store/sos.h"

struct peer_service;

struct peer_service_options {
    struct sos *sos;
    uint64_t block_lease_ms; /* Dropped when not renewed for this long. */
    uint64_t incarnation;    /* Of this node. Calls meant for another life of it
                              * end with HEDGE_ELOST; 0: not looked at. */
};

int peer_service_new(const struct peer_service_options *o,
                     struct peer_service **out);
void peer_service_free(struct peer_service *p);

/* Handlers; the node's method table has wrappers that find the service. */
int peer_service_put(struct peer_service *p, struct rpc_stream *s,
                     struct hedge_error *e);
int peer_service_get(struct peer_service *p, struct rpc_stream *s,
                     struct hedge_error *e);
void peer_service_drop(struct peer_service *p, struct rpc_call *call,
                       const void *request, size_t len);
void peer_service_renew(struct peer_service *p, struct rpc_call *call,
                        const void *request, size_t len);

#endif
