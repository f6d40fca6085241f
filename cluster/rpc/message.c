#include "cluster/rpc/rpc_internal.h"

#include "store/base/mem.h"

#include <assert.h>
#include <string.h>

#define MESSAGE_MAGIC 0x6d736721u

struct rpc_message {
    unsigned magic;
    grpc_byte_buffer *buffer;
    size_t slice, offset; /* Where reading goes on. */
    size_t left;
};

struct rpc_message *rpc_message_new(void)
{
    struct rpc_message *m = mem_calloc(1, sizeof *m);

    if (m != NULL) {
        m->magic = MESSAGE_MAGIC;
    }
    return m;
}

void rpc_message_free(struct rpc_message *m)
{
    if (m == NULL) {
        return;
    }
    assert(m->magic == MESSAGE_MAGIC);
    if (m->buffer != NULL) {
        grpc_byte_buffer_destroy(m->buffer);
    }
    m->magic = 0;
    mem_free(m);
}

grpc_byte_buffer **rpc_message_slot(struct rpc_message *m)
{
    assert(m->magic == MESSAGE_MAGIC);
    return &m->buffer;
}

void rpc_message_rewind(struct rpc_message *m)
{
    assert(m->magic == MESSAGE_MAGIC && m->buffer != NULL);
    m->slice = m->offset = 0;
    m->left = grpc_byte_buffer_length(m->buffer);
}

static struct rpc_message *message_of(const struct rpc_msg *m)
{
    struct rpc_message *msg = m->impl;

    assert(msg == NULL || msg->magic == MESSAGE_MAGIC);
    return msg;
}

size_t rpc_msg_left(const struct rpc_msg *m)
{
    const struct rpc_message *msg = message_of(m);

    return msg != NULL ? msg->left : 0;
}

/* The unread part of the slice that reading has come to; skips those that are
 * used up or empty. */
static size_t current(struct rpc_message *m, const unsigned char **p)
{
    grpc_slice_buffer *sb = &m->buffer->data.raw.slice_buffer;

    for (; m->slice < sb->count; m->slice++, m->offset = 0) {
        grpc_slice *s = &sb->slices[m->slice];
        size_t len = GRPC_SLICE_LENGTH(*s);
        if (m->offset < len) {
            *p = GRPC_SLICE_START_PTR(*s) + m->offset;
            return len - m->offset;
        }
    }
    *p = NULL;
    return 0;
}

size_t rpc_msg_peek(struct rpc_msg *m, const unsigned char **p)
{
    struct rpc_message *msg = message_of(m);
    size_t n;

    *p = NULL;
    if (msg == NULL || msg->left == 0) {
        return 0;
    }
    n = current(msg, p);
    assert(n > 0 && n <= msg->left);
    return n;
}

void rpc_msg_read(struct rpc_msg *m, void *dst, size_t n)
{
    struct rpc_message *msg = message_of(m);
    unsigned char *to = dst;

    assert(n <= rpc_msg_left(m));
    while (n > 0) {
        const unsigned char *p;
        size_t piece = rpc_msg_peek(m, &p);
        if (piece > n) {
            piece = n;
        }
        if (to != NULL) {
            memcpy(to, p, piece);
            to += piece;
        }
        msg->offset += piece;
        msg->left -= piece;
        n -= piece;
    }
}

void rpc_msg_release(struct rpc_msg *m)
{
    rpc_message_free(message_of(m));
    m->impl = NULL;
}

/* --- what is sent -----------------------------------------------------------
 */

struct loan {
    rpc_release_fn release;
    void *arg;
};

static void loan_end(void *p)
{
    struct loan *l = p;

    RPC_TAG_GOT(l);
    l->release(l->arg);
    mem_free(l);
}

/* gRPC's types have no const; it does not write to what it sends. */
static void *unconst(const void *p)
{
    return (void *)(uintptr_t)p;
}

static void no_release(void *arg)
{
    (void)arg;
}

void rpc_out_release(const struct rpc_out *out)
{
    if (out->release != NULL) {
        out->release(out->release_arg);
    }
}

grpc_byte_buffer *rpc_buffer_from_out(const struct rpc_out *out)
{
    bool has_body = out->body != NULL && out->body_len > 0;
    grpc_slice parts[2];
    grpc_byte_buffer *b;
    size_t n = 0;

    if (has_body) {
        struct loan *l = mem_alloc(sizeof *l);
        if (l == NULL) {
            rpc_out_release(out);
            return NULL;
        }
        l->release = out->release != NULL ? out->release : no_release;
        l->arg = out->release_arg;
        RPC_TAG_PUT(l);
        parts[1] = grpc_slice_new_with_user_data(unconst(out->body),
                                                 out->body_len, loan_end, l);
        n = 1;
    }
    parts[0] = grpc_slice_from_copied_buffer(out->head_len > 0 ? out->head : "",
                                             out->head_len);
    n++;
    b = grpc_raw_byte_buffer_create(parts, n);
    for (size_t i = 0; i < n; i++) {
        grpc_slice_unref(parts[i]);
    }
    if (!has_body) {
        rpc_out_release(out);
    }
    return b;
}

int rpc_msg_from_bytes(const void *data, size_t len, size_t n_slices,
                       struct rpc_msg *out)
{
    struct rpc_message *m = rpc_message_new();
    const char *p = data;
    size_t step;

    out->impl = NULL;
    if (m == NULL) {
        return HEDGE_ENOMEM;
    }
    assert(n_slices > 0);
    step = len / n_slices + 1;
    m->buffer = grpc_raw_byte_buffer_create(NULL, 0);
    for (size_t at = 0; at < len; at += step) {
        size_t n = len - at < step ? len - at : step;
        grpc_slice_buffer_add(&m->buffer->data.raw.slice_buffer,
                              grpc_slice_from_copied_buffer(p + at, n));
    }
    rpc_message_rewind(m);
    out->impl = m;
    return 0;
}
