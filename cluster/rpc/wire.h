/* wire.h - protobuf messages whose last field is one large `bytes`: finding
 * that field without copying it.
 *
 * Ownership: nothing is kept; a message stays the caller's.
 * Threads:   as struct rpc_msg.
 * Errors:    HEDGE_EPROTO with what is malformed.
 * Units:     bytes.
 * Limits:    the small fields take at most WIRE_HEAD_MAX bytes. */
#ifndef CLUSTER_RPC_WIRE_H
#define CLUSTER_RPC_WIRE_H

#include "cluster/rpc/rpc.h"

#define WIRE_BODY_FIELD 15
#define WIRE_HEAD_MAX ((size_t)64 << 10)
#define WIRE_TAG_MAX 8

/* Split a received message: the bytes of all fields but WIRE_BODY_FIELD are
 * copied to a new buffer *head (mem_free() it; never NULL on success) and the
 * body, if there is one, is left unread in `m`: *body_len bytes, has_body true.
 * Where a foreign encoder put fields after the body, or the body twice, the
 * message is refused with a text that says so. */
int wire_split(struct rpc_msg *m, unsigned char **head, size_t *head_len,
               bool *has_body, size_t *body_len, struct hedge_error *e);

/* The tag and length that go between the small fields and the body; returns
 * how many bytes were written. */
size_t wire_body_tag(size_t body_len, unsigned char out[WIRE_TAG_MAX]);

#endif
