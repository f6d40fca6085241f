#include "cluster/pb.h"

#include "cluster/fields.h"

#include "store/base/bytes.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <string.h>

#define DEFAULT_TTL_MS 30000

static void *pb_alloc(void *ctx, size_t size)
{
    (void)ctx;
    return mem_alloc(size);
}

static void pb_release(void *ctx, void *p)
{
    (void)ctx;
    mem_free(p);
}

static ProtobufCAllocator allocator = {.alloc = pb_alloc, .free = pb_release};

int pb_pack(const ProtobufCMessage *m, struct pb_buf *out)
{
    out->len = protobuf_c_message_get_packed_size(m);
    out->data = mem_alloc(out->len);
    if (out->data == NULL) {
        return HEDGE_ENOMEM;
    }
    (void)protobuf_c_message_pack(m, out->data);
    return 0;
}

/* How much memory the objects of a message may take. */
#define SMALL_BASE ((size_t)64 << 10)
#define SMALL_TIMES 4
#define LARGE_BASE ((size_t)1 << 20)
#define LARGE_TIMES 10

static void *pb_alloc_bounded(void *ctx, size_t size)
{
    size_t *left = ctx;

    if (size > *left) {
        return NULL;
    }
    *left -= size;
    return mem_alloc(size);
}

/* protobuf-c cuts a string at a zero byte and passes any other on, also to
 * those who can read nothing that holds it. Our messages nest, but not in
 * themselves.
 */
static bool texts_good(const ProtobufCMessageDescriptor *d, const void *data,
                       size_t len)
{
    struct fields all = fields_of(data, len);
    bool good = true;
    struct field f;
    int rv = 0;

    while (good && (rv = fields_next(&all, &f)) == 0) {
        const ProtobufCFieldDescriptor *field =
            f.type == FIELD_BYTES
                ? protobuf_c_message_descriptor_get_field(d, f.number)
                : NULL;

        if (field != NULL && field->type == PROTOBUF_C_TYPE_STRING) {
            good = units_is_text(f.data, f.len);
        } else if (field != NULL && field->type == PROTOBUF_C_TYPE_MESSAGE) {
            good = texts_good(field->descriptor, f.data, f.len);
        }
    }
    return good && rv == HEDGE_EEND; /* Or protobuf-c would read on alone. */
}

static void *unpack_within(size_t left, const ProtobufCMessageDescriptor *d,
                           const void *data, size_t len)
{
    ProtobufCAllocator bounded = {
        .alloc = pb_alloc_bounded, .free = pb_release, .allocator_data = &left};

    if (!texts_good(d, data, len)) {
        return NULL;
    }
    return protobuf_c_message_unpack(d, &bounded, len, data);
}

void *pb_unpack(const ProtobufCMessageDescriptor *d, const void *data,
                size_t len)
{
    return len > PB_SMALL
               ? NULL
               : unpack_within(SMALL_BASE + SMALL_TIMES * len, d, data, len);
}

void *pb_unpack_large(const ProtobufCMessageDescriptor *d, const void *data,
                      size_t len)
{
    return unpack_within(LARGE_BASE + LARGE_TIMES * len, d, data, len);
}

void pb_free(void *message)
{
    if (message != NULL) {
        protobuf_c_message_free_unpacked(message, &allocator);
    }
}

void pb_drop_bytes(ProtobufCBinaryData *d)
{
    mem_free(d->data);
    d->data = NULL;
    d->len = 0;
}

static void *from_msg(const ProtobufCMessageDescriptor *d, struct rpc_msg *m,
                      void *(*unpack)(const ProtobufCMessageDescriptor *d,
                                      const void *data, size_t len),
                      struct hedge_error *e)
{
    size_t len = rpc_msg_left(m);
    const unsigned char *piece;
    /* Short ones come in one piece. */
    bool whole = rpc_msg_peek(m, &piece) == len && len > 0;
    unsigned char *data = whole ? NULL : mem_alloc(len);
    void *message = NULL;

    if (!whole && data == NULL) {
        (void)error_set(e, HEDGE_ENOMEM, "no memory for a message");
    } else {
        if (!whole) {
            rpc_msg_read(m, data, len);
            piece = data;
        }
        message = unpack(d, piece, len);
        if (message == NULL) {
            (void)error_set(e, HEDGE_EPROTO, "%zu bytes that are no %s", len,
                            d->name);
        }
    }
    mem_free(data);
    rpc_msg_release(m);
    return message;
}

void *pb_from_msg(const ProtobufCMessageDescriptor *d, struct rpc_msg *m,
                  struct hedge_error *e)
{
    return from_msg(d, m, pb_unpack, e);
}

void *pb_from_msg_large(const ProtobufCMessageDescriptor *d, struct rpc_msg *m,
                        struct hedge_error *e)
{
    return from_msg(d, m, pb_unpack_large, e);
}

void pb_reply(struct rpc_call *call, const ProtobufCMessage *m)
{
    struct pb_buf buf;

    if (pb_pack(m, &buf) != 0) {
        rpc_fail(call, HEDGE_ENOMEM, "no memory for the answer");
        return;
    }
    rpc_reply(call, buf.data, buf.len);
    mem_free(buf.data);
}

int pb_call(struct rpc_channel *c, const char *path, const ProtobufCMessage *m,
            const ProtobufCMessageDescriptor *reply_type, uint64_t timeout_ms,
            void **reply, struct hedge_error *e)
{
    struct rpc_msg msg;
    struct pb_buf buf;
    int rv = pb_pack(m, &buf);

    *reply = NULL;
    if (rv != 0) {
        return error_set(e, rv, "no memory for a request");
    }
    rv = rpc_call(c, path, buf.data, buf.len, timeout_ms, &msg, e);
    mem_free(buf.data);
    if (rv != 0) {
        return rv;
    }
    *reply = pb_from_msg_large(reply_type, &msg, e);
    return *reply == NULL ? HEDGE_EPROTO : 0;
}

static int
send_with(int (*send)(struct rpc_stream *s, const struct rpc_out *out,
                      uint64_t timeout_ms),
          struct rpc_stream *s, const ProtobufCMessage *m, uint64_t timeout_ms)
{
    struct rpc_out out = {0};
    struct pb_buf buf;
    int rv = pb_pack(m, &buf);

    if (rv != 0) {
        return rv;
    }
    out.head = buf.data;
    out.head_len = buf.len;
    rv = send(s, &out, timeout_ms);
    mem_free(buf.data);
    return rv;
}

int pb_send(struct rpc_stream *s, const ProtobufCMessage *m,
            uint64_t timeout_ms)
{
    return send_with(rpc_stream_send, s, m, timeout_ms);
}

int pb_post(struct rpc_stream *s, const ProtobufCMessage *m,
            uint64_t timeout_ms)
{
    return send_with(rpc_stream_post, s, m, timeout_ms);
}

/* protobuf-c's strings are not const; what we put there is never changed. */
static char *text(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

void pb_member(const struct member *m, Hedge__V1__Member *out)
{
    hedge__v1__member__init(out);
    out->id = text(m->id);
    out->incarnation = m->incarnation;
    out->grpc_address = text(m->grpc_address);
    out->boot_id = text(m->boot_id);
    out->socket = text(m->socket);
    out->version = text(m->version);
    out->leader = m->leader;
    out->mem_free = m->mem_free;
    out->mem_limit = m->mem_limit;
    out->mem_used = m->mem_used;
    out->mem_lent = m->mem_lent;
    out->disk_free = m->disk_free;
    out->disk_limit = m->disk_limit;
    out->disk_used = m->disk_used;
    out->disk_lent = m->disk_lent;
}

bool pb_to_member(const Hedge__V1__Member *m, struct member *out)
{
    memset(out, 0, sizeof *out);
    if (m == NULL || !member_set_text(out->id, sizeof out->id, m->id) ||
        !member_set_text(out->grpc_address, sizeof out->grpc_address,
                         m->grpc_address) ||
        !member_set_text(out->boot_id, sizeof out->boot_id, m->boot_id) ||
        !member_set_text(out->socket, sizeof out->socket, m->socket) ||
        !member_set_text(out->version, sizeof out->version, m->version)) {
        return false;
    }
    out->incarnation = m->incarnation;
    out->leader = m->leader;
    out->mem_free = m->mem_free;
    out->mem_limit = m->mem_limit;
    out->mem_used = m->mem_used;
    out->mem_lent = m->mem_lent;
    out->disk_free = m->disk_free;
    out->disk_limit = m->disk_limit;
    out->disk_used = m->disk_used;
    out->disk_lent = m->disk_lent;
    return true;
}

void pb_store_options(const struct sos_store_options *o,
                      Hedge__V1__StoreOptions *out)
{
    hedge__v1__store_options__init(out);
    out->mem_limit = o->mem_limit;
    out->disk_limit = o->disk_limit;
    out->ttl_ms = o->ttl_ms;
    out->replicas = o->replicas;
    out->compression = (Hedge__V1__Compression)o->compression;
    out->compression_level = o->level;
}

void pb_to_store_options(const Hedge__V1__StoreOptions *o,
                         struct sos_store_options *out)
{
    memset(out, 0, sizeof *out);
    out->ttl_ms = DEFAULT_TTL_MS;
    out->replicas = 1;
    if (o != NULL) {
        out->mem_limit = o->mem_limit;
        out->disk_limit = o->disk_limit;
        out->ttl_ms = o->ttl_ms != 0 ? o->ttl_ms : DEFAULT_TTL_MS;
        out->replicas = o->replicas != 0 ? o->replicas : 1;
        out->compression = (enum sos_compression)o->compression;
        out->level = o->compression_level;
    }
}

void pb_digest(const struct block_digest *d, unsigned char out[PB_DIGEST_SIZE])
{
    put_be64(out, d->hi);
    put_be64(out + 8, d->lo);
}

bool pb_to_digest(const ProtobufCBinaryData *b, struct block_digest *out)
{
    if (b->len != PB_DIGEST_SIZE) {
        return false;
    }
    out->hi = get_be64(b->data);
    out->lo = get_be64(b->data + 8);
    return true;
}

static const char *const state_names[] = {[STORE_OPEN] = "open",
                                          [STORE_CLOSED] = "closed",
                                          [STORE_ABORTED] = "aborted"};

const char *pb_state_name(enum store_state state)
{
    return state_names[state];
}

enum store_state pb_to_state(const char *name)
{
    for (unsigned i = STORE_OPEN; i <= STORE_ABORTED; i++) {
        if (strcmp(name, state_names[i]) == 0) {
            return (enum store_state)i;
        }
    }
    return STORE_ABORTED;
}

/* One allocation that holds the message and all it points to. */
struct info_block {
    Hedge__V1__StoreInfo info;
    Hedge__V1__StoreOptions options;
    unsigned char digest[PB_DIGEST_SIZE];
    char name[256];
    Hedge__V1__TierUse **pointers;
    Hedge__V1__TierUse *uses;
};

int pb_store_info(const struct sos_info *info, char *owner,
                  Hedge__V1__StoreInfo **out)
{
    unsigned n = info->n_uses;
    struct info_block *b =
        mem_calloc(1, sizeof *b + n * (sizeof(Hedge__V1__TierUse) +
                                       sizeof(Hedge__V1__TierUse *)));

    *out = NULL;
    if (b == NULL) {
        return HEDGE_ENOMEM;
    }
    *out = &b->info;
    hedge__v1__store_info__init(&b->info);
    memcpy(b->name, info->name, sizeof b->name);
    pb_digest(&info->manifest.digest, b->digest);
    pb_store_options(&info->options, &b->options);
    b->info.name = b->name;
    b->info.owner = owner;
    b->info.generation = info->generation;
    b->info.records = info->manifest.records;
    b->info.bytes = info->manifest.bytes;
    b->info.digest.data = b->digest;
    b->info.digest.len = sizeof b->digest;
    b->info.state = text(pb_state_name(info->state));
    b->info.expires_at_ms = info->expires_at_ms;
    b->info.options = &b->options;
    b->info.writers = info->writers;
    b->info.readers = info->readers;
    b->info.missing_copies = info->missing_copies;
    b->info.discarded_blocks = info->discarded_blocks;
    b->info.writers_ever = info->writers_ever;
    b->info.discarded_bytes = info->discarded_bytes;
    b->uses = (Hedge__V1__TierUse *)(void *)(b + 1);
    b->pointers = (Hedge__V1__TierUse **)(void *)(b->uses + n);
    b->info.n_tiers = n;
    b->info.tiers = b->pointers;
    for (unsigned i = 0; i < n; i++) {
        Hedge__V1__TierUse *u = b->pointers[i] = &b->uses[i];

        hedge__v1__tier_use__init(u);
        u->node = text(info->uses[i].node);
        u->tier = text(info->uses[i].tier);
        u->blocks = info->uses[i].blocks;
        u->bytes = info->uses[i].bytes;
        u->stored_bytes = info->uses[i].stored_bytes;
    }
    return 0;
}

void pb_store_info_release(Hedge__V1__StoreInfo *m)
{
    mem_free(m);
}
