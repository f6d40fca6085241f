/* peer_tier.h - the remote tier: blocks kept in other nodes' memory and disk,
 * behind store/tier.h.
 *
 * A put goes to one peer, the one with the most room, until that one refuses;
 * then to the next. A peer that dies or makes no progress before it has
 * acknowledged costs nothing: the block goes elsewhere, and the peer is told to
 * drop what it may have, until it confirms or its incarnation is gone.
 *
 * Ownership: peer_tier_new() makes it, tier_free() ends it (sos_free() does).
 * Threads:   any; callbacks run on threads of the tier.
 * Errors:    put: HEDGE_EREFUSED with a text that says what each node said.
 *            get: HEDGE_ELOST when the node (or its life) that held the block
 *            is gone or does not have it, HEDGE_EUNAVAILABLE when it does not
 *            answer; the text names the node.
 * Units:     bytes, milliseconds.
 * Limits:    PEER_WINDOW puts in flight per peer, more wait in a queue. */
#ifndef CLUSTER_PEER_TIER_H
#define CLUSTER_PEER_TIER_H

#include "store/tier.h"

#define PEER_WINDOW 8
#define PEER_STALL_MS 2000

struct peer_tier_options {
    const char *self_id;
    uint64_t incarnation; /* Of this node: it is the owner of what it puts. */
    size_t block_size;
    uint64_t block_lease_ms; /* Renewed every third of it. */
};

/* What the tier knows of one other node, from the member list. */
struct peer_info {
    const char *id;
    uint64_t incarnation;
    const char *target; /* As rpc_channel_new() takes it; a Unix socket when the
                         * peer runs on this machine. */
    uint64_t mem_free, disk_free;
};

int peer_tier_new(const struct peer_tier_options *o, struct tier **out);

/* The members as they are now, without this node. Peers that are not in the
 * list any more are given up when they do not answer; a peer with another
 * incarnation is another peer. Copied. */
void peer_tier_update(struct tier *t, const struct peer_info *peers, size_t n);

#endif
