/* kv.h - a node's way to the log: group commit on the leader, forwarding to it
 * from the others, reads straight from the engine.
 *
 * Ownership: one per node; kv_new() / kv_free(). Keys and values stay the
 *            caller's and must live until the call returns.
 * Threads:   any; the calls block. Puts that wait together become one
 *            transaction.
 * Errors:    as hedge_put() in hedge.h. HEDGE_EFENCED: the token is stale, and
 *            nothing was written.
 * Units:     milliseconds.
 * Limits:    as hedge.h. */
#ifndef CLUSTER_KV_H
#define CLUSTER_KV_H

#include "cluster/engine/engine.h"

struct kv;

/* Keys of our own: users can neither write nor see them. */
#define KV_RESERVED_PREFIX "__hedge/"

/* On the leader: append under this token. For the services that keep their
 * state in reserved keys; durable when it returns 0. */
int kv_append(struct kv *kv, uint64_t token, struct engine_put *puts, size_t n,
              uint64_t timeout_ms, struct hedge_error *e);

#endif
