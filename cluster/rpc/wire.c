#include "cluster/rpc/wire.h"

#include "store/base/mem.h"

#include <assert.h>
#include <string.h>

enum wire_type { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

#define VARINT_MAX 10
#define FIELD_MAX 0x1fffffffu
#define HEAD_FIRST ((size_t)256)

struct head {
    unsigned char *bytes;
    size_t len, cap;
};

/* Space for n more bytes. */
static int head_reserve(struct head *h, size_t n, struct hedge_error *e)
{
    size_t cap = h->cap;
    unsigned char *p;

    if (n > WIRE_HEAD_MAX - h->len) {
        return error_set(e, HEDGE_EPROTO,
                         "the small fields of a message take more than %zu "
                         "bytes",
                         WIRE_HEAD_MAX);
    }
    while (cap < h->len + n) {
        cap = cap == 0 ? HEAD_FIRST : cap * 2;
    }
    if (cap == h->cap) {
        return 0;
    }
    p = mem_realloc(h->bytes, cap);
    if (p == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a message's fields");
    }
    h->bytes = p;
    h->cap = cap;
    return 0;
}

static void head_put(struct head *h, const void *data, size_t n)
{
    assert(n <= h->cap - h->len);
    memcpy(h->bytes + h->len, data, n);
    h->len += n;
}

/* A base-128 number and the bytes it was written with. */
struct varint {
    uint64_t value;
    unsigned char raw[VARINT_MAX];
    size_t len;
};

static int varint_read(struct rpc_msg *m, struct varint *v,
                       struct hedge_error *e)
{
    v->value = 0;
    for (v->len = 0; v->len < VARINT_MAX && rpc_msg_left(m) > 0;) {
        unsigned char c;
        rpc_msg_read(m, &c, 1);
        v->raw[v->len] = c;
        if (v->len == VARINT_MAX - 1 && c > 1) {
            break; /* More than 64 bits. */
        }
        v->value |= (uint64_t)(c & 0x7f) << (7 * v->len);
        v->len++;
        if ((c & 0x80) == 0) {
            return 0;
        }
    }
    return error_set(e, HEDGE_EPROTO,
                     "a number in a message is cut or too "
                     "long");
}

static int tag_read(struct rpc_msg *m, struct varint *tag,
                    struct hedge_error *e)
{
    int rv = varint_read(m, tag, e);

    if (rv != 0) {
        return rv;
    }
    if (tag->value >> 3 == 0 || tag->value >> 3 > FIELD_MAX) {
        return error_set(e, HEDGE_EPROTO,
                         "a message has a field number out "
                         "of range");
    }
    return 0;
}

/* Copy one field, whose tag has been read, to the head. */
static int field_copy(struct rpc_msg *m, const struct varint *tag,
                      struct head *h, struct hedge_error *e)
{
    struct varint v = {.len = 0};
    uint64_t n = 0;
    int rv = 0;

    switch (tag->value & 7) {
    case WIRE_VARINT:
        rv = varint_read(m, &v, e);
        break;
    case WIRE_64:
        n = 8;
        break;
    case WIRE_32:
        n = 4;
        break;
    case WIRE_BYTES:
        rv = varint_read(m, &v, e);
        n = v.value;
        break;
    default:
        return error_set(e, HEDGE_EPROTO,
                         "field %llu of a message has an "
                         "unknown wire type",
                         (unsigned long long)(tag->value >> 3));
    }
    if (rv != 0) {
        return rv;
    }
    if (n > rpc_msg_left(m)) {
        return error_set(e, HEDGE_EPROTO,
                         "field %llu of a message is longer than the message",
                         (unsigned long long)(tag->value >> 3));
    }
    rv = head_reserve(h, tag->len + v.len + (size_t)n, e);
    if (rv != 0) {
        return rv;
    }
    head_put(h, tag->raw, tag->len);
    head_put(h, v.raw, v.len);
    rpc_msg_read(m, h->bytes + h->len, (size_t)n);
    h->len += (size_t)n;
    return 0;
}

/* The body's tag has been read: it must be the rest of the message. */
static int body_find(struct rpc_msg *m, const struct varint *tag,
                     size_t *body_len, struct hedge_error *e)
{
    struct varint v, next;
    int rv;

    if ((tag->value & 7) != WIRE_BYTES) {
        return error_set(e, HEDGE_EPROTO, "field %d of a message is not bytes",
                         WIRE_BODY_FIELD);
    }
    rv = varint_read(m, &v, e);
    if (rv != 0) {
        return rv;
    }
    if (v.value > rpc_msg_left(m)) {
        return error_set(e, HEDGE_EPROTO,
                         "the body of a message is longer than the message");
    }
    if (v.value == rpc_msg_left(m)) {
        *body_len = (size_t)v.value;
        return 0;
    }
    rpc_msg_read(m, NULL, (size_t)v.value);
    rv = tag_read(m, &next, e);
    if (rv != 0) {
        return rv;
    }
    return error_set(e, HEDGE_EPROTO,
                     next.value >> 3 == WIRE_BODY_FIELD
                         ? "a message has its body (field %d) twice"
                         : "a message has fields after its body (field %d), "
                           "which must be last",
                     WIRE_BODY_FIELD);
}

int wire_split(struct rpc_msg *m, unsigned char **head, size_t *head_len,
               bool *has_body, size_t *body_len, struct hedge_error *e)
{
    struct head h = {.bytes = NULL};
    int rv;

    *head = NULL;
    *head_len = *body_len = 0;
    *has_body = false;
    rv = head_reserve(&h, 1, e); /* Never NULL, even with no fields. */
    while (rv == 0 && !*has_body && rpc_msg_left(m) > 0) {
        struct varint tag;
        rv = tag_read(m, &tag, e);
        if (rv == 0 && tag.value >> 3 == WIRE_BODY_FIELD) {
            rv = body_find(m, &tag, body_len, e);
            *has_body = rv == 0;
        } else if (rv == 0) {
            rv = field_copy(m, &tag, &h, e);
        }
    }
    if (rv != 0) {
        mem_free(h.bytes);
        return rv;
    }
    *head = h.bytes;
    *head_len = h.len;
    return 0;
}

size_t wire_body_tag(size_t body_len, unsigned char out[WIRE_TAG_MAX])
{
    size_t n = 0;

    assert((uint64_t)body_len >> 35 == 0);
    out[n++] = WIRE_BODY_FIELD << 3 | WIRE_BYTES;
    for (; body_len >= 0x80; body_len >>= 7) {
        out[n++] = (unsigned char)(body_len & 0x7f) | 0x80;
    }
    out[n++] = (unsigned char)body_len;
    assert(n <= WIRE_TAG_MAX);
    return n;
}
