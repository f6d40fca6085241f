/* lock_outbox.c - what waits to be sent to another node. An outbox lives as
 * long as the thread that serves its stream. */
#include "cluster/locks/locks_internal.h"

#include "store/base/mem.h"

#include <assert.h>

#define SEND_MS 10000

struct outgoing {
    struct list link;
    struct pb_buf buf;
};

void outbox_init(struct outbox *b)
{
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->wake, NULL);
    pthread_cond_init(&b->room, NULL);
    list_init(&b->messages);
    b->bytes = 0;
    b->expected = 0;
    b->closing = b->broken = false;
}

static size_t cost(size_t len)
{
    return sizeof(struct outgoing) + len;
}

static void free_outgoing(struct outgoing *o)
{
    mem_free(o->buf.data);
    mem_free(o);
}

/* With the lock, but for the last one. */
static void drop_messages(struct outbox *b)
{
    struct list *item;

    while ((item = list_pop(&b->messages)) != NULL) {
        struct outgoing *o = container_of(item, struct outgoing, link);
        b->bytes -= cost(o->buf.len);
        free_outgoing(o);
    }
}

void outbox_release(struct outbox *b)
{
    drop_messages(b);
    assert(b->bytes == 0);
    pthread_cond_destroy(&b->room);
    pthread_cond_destroy(&b->wake);
    pthread_mutex_destroy(&b->lock);
}

/* With the lock. One message fits in any case. */
static int has_room(const struct outbox *b, size_t more)
{
    if (b->closing) {
        return HEDGE_ECLOSED;
    }
    return b->bytes > 0 && b->bytes + more > OUTBOX_MAX ? HEDGE_EEXHAUSTED : 0;
}

/* The same for whoever tries again and again: before anything is packed. */
static int look_for_room(struct outbox *b, size_t more)
{
    int rv;

    pthread_mutex_lock(&b->lock);
    rv = has_room(b, more);
    pthread_mutex_unlock(&b->lock);
    return rv;
}

int outbox_put(struct outbox *b, const ProtobufCMessage *m)
{
    size_t more = cost(protobuf_c_message_get_packed_size(m));
    struct outgoing *o;
    int rv = look_for_room(b, more);

    if (rv != 0) {
        return rv;
    }
    o = mem_calloc(1, sizeof *o);
    if (o == NULL || pb_pack(m, &o->buf) != 0) {
        mem_free(o);
        return HEDGE_ENOMEM;
    }
    pthread_mutex_lock(&b->lock);
    rv = has_room(b, more);
    if (rv == 0) {
        b->bytes += more;
        list_push(&b->messages, &o->link);
        pthread_cond_signal(&b->wake);
    }
    pthread_mutex_unlock(&b->lock);
    if (rv != 0) {
        free_outgoing(o);
    }
    return rv;
}

/* With the lock. */
static void close_locked(struct outbox *b)
{
    b->closing = true;
    pthread_cond_signal(&b->wake);
    pthread_cond_broadcast(&b->room);
}

void outbox_close(struct outbox *b)
{
    pthread_mutex_lock(&b->lock);
    close_locked(b);
    pthread_mutex_unlock(&b->lock);
}

void outbox_break(struct outbox *b)
{
    pthread_mutex_lock(&b->lock);
    b->broken = true;
    close_locked(b);
    drop_messages(b);
    pthread_mutex_unlock(&b->lock);
}

void outbox_run(struct outbox *b, struct rpc_stream *s)
{
    bool broken;
    int rv = 0;

    pthread_mutex_lock(&b->lock);
    while (rv == 0 && !b->closing) {
        struct list *item = list_pop(&b->messages);

        if (item == NULL) {
            pthread_cond_wait(&b->wake, &b->lock);
            continue;
        }
        pthread_mutex_unlock(&b->lock);
        struct outgoing *o = container_of(item, struct outgoing, link);
        struct rpc_out out = {.head = o->buf.data, .head_len = o->buf.len};
        rv = rpc_stream_send(s, &out, SEND_MS);
        pthread_mutex_lock(&b->lock);
        b->bytes -= cost(o->buf.len);
        free_outgoing(o);
        if (b->bytes <= OUTBOX_MARK) {
            pthread_cond_broadcast(&b->room);
        }
    }
    close_locked(b); /* Who waits for room waits for nothing. */
    broken = b->broken || rv != 0;
    pthread_mutex_unlock(&b->lock);
    if (broken) {
        rpc_stream_cancel(s); /* The other direction is told so. */
    }
}

int outbox_await(struct outbox *b)
{
    int rv;

    pthread_mutex_lock(&b->lock);
    while (!b->closing &&
           (b->bytes > OUTBOX_MARK || b->expected >= OUTBOX_EXPECTED_MAX)) {
        pthread_cond_wait(&b->room, &b->lock);
    }
    rv = b->closing ? HEDGE_ECLOSED : 0;
    pthread_mutex_unlock(&b->lock);
    return rv;
}

void outbox_expect(struct outbox *b)
{
    pthread_mutex_lock(&b->lock);
    b->expected++;
    pthread_mutex_unlock(&b->lock);
}

void outbox_taken(struct outbox *b)
{
    pthread_mutex_lock(&b->lock);
    assert(b->expected > 0);
    b->expected--;
    pthread_cond_broadcast(&b->room);
    pthread_mutex_unlock(&b->lock);
}
