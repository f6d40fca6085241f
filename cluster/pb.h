/* pb.h - packing and unpacking protobuf messages with our allocator.
 *
 * Ownership: pb_pack() hands out a buffer to mem_free(); pb_unpack() a message
 *            to pb_free().
 * Threads:   any.
 * Errors:    HEDGE_ENOMEM; NULL for bytes that are no such message, or have a
 *            string in them that is no text: UTF-8 without zero bytes.
 * Units:     bytes.
 * Limits:    a message is at most RPC_MESSAGE_MAX. */
#ifndef CLUSTER_PB_H
#define CLUSTER_PB_H

#include "cluster/group/membership.h"
#include "cluster/rpc/rpc.h"
#include "proto/hedge.pb-c.h"
#include "store/sos.h"

struct pb_buf {
    unsigned char *data;
    size_t len;
};

/* `m` is the address of the `base` of a generated message. */
int pb_pack(const ProtobufCMessage *m, struct pb_buf *out);
/* NULL as well for more than PB_SMALL bytes, and for what would take much more
 * memory than that: two bytes can stand for an object of fifty. */
#define PB_SMALL ((size_t)16 << 10)
void *pb_unpack(const ProtobufCMessageDescriptor *d, const void *data,
                size_t len);
/* For messages that carry payloads, and lists from our own nodes. NULL as well
 * for what would take more than ten times its size and a mebibyte. */
void *pb_unpack_large(const ProtobufCMessageDescriptor *d, const void *data,
                      size_t len);
void pb_free(void *message);
/* Free the bytes of a field of an unpacked message ahead of the rest. */
void pb_drop_bytes(ProtobufCBinaryData *d);

/* Unpack a received message and release it. NULL with the text in `e`. */
void *pb_from_msg(const ProtobufCMessageDescriptor *d, struct rpc_msg *m,
                  struct hedge_error *e);
void *pb_from_msg_large(const ProtobufCMessageDescriptor *d, struct rpc_msg *m,
                        struct hedge_error *e);

/* Answer a call with a message; fails the call when there is no memory. */
void pb_reply(struct rpc_call *call, const ProtobufCMessage *m);
/* One unary call: request out, reply in. */
int pb_call(struct rpc_channel *c, const char *path, const ProtobufCMessage *m,
            const ProtobufCMessageDescriptor *reply_type, uint64_t timeout_ms,
            void **reply, struct hedge_error *e);
/* Send a message without a body. pb_post(): as rpc_stream_post(). */
int pb_post(struct rpc_stream *s, const ProtobufCMessage *m,
            uint64_t timeout_ms);
int pb_send(struct rpc_stream *s, const ProtobufCMessage *m,
            uint64_t timeout_ms);

/* --- our own types ---------------------------------------------------------
 */

/* The strings stay the member's. */
void pb_member(const struct member *m, Hedge__V1__Member *out);
/* false: a text that does not fit, or none at all. */
bool pb_to_member(const Hedge__V1__Member *m, struct member *out);

void pb_store_options(const struct sos_store_options *o,
                      Hedge__V1__StoreOptions *out);
/* Fields that are not set get the defaults. */
void pb_to_store_options(const Hedge__V1__StoreOptions *o,
                         struct sos_store_options *out);

#define PB_DIGEST_SIZE 16
void pb_digest(const struct block_digest *d, unsigned char out[PB_DIGEST_SIZE]);
bool pb_to_digest(const ProtobufCBinaryData *b, struct block_digest *out);

/* A store's info as a message; the strings stay the info's and the caller's.
 * pb_store_info_release() frees what was allocated. */
int pb_store_info(const struct sos_info *info, char *owner,
                  Hedge__V1__StoreInfo **out);
void pb_store_info_release(Hedge__V1__StoreInfo *m);

const char *pb_state_name(enum store_state state);
enum store_state pb_to_state(const char *name);

#endif
