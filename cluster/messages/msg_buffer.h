/* msg_buffer.h - the memory of messages: bytes that grow within the budget
 * that all messages of a node share, and the replies made of them.
 *
 * Ownership: a budget is reference-counted, so that replies may outlive their
 *            node. A buffer owns its bytes until they are released or moved
 *            into a reply.
 * Threads:   a budget may be used by any; a buffer by one thread at a time.
 * Errors:    HEDGE_EEXHAUSTED: the budget is used up; HEDGE_ETOOBIG: no message
 *            may be so large.
 * Units:     bytes, milliseconds.
 * Limits:    MSG_MAX bytes in a message; of each buffer up to MSG_FREE bytes
 *            are counted but never refused, so that a small reply can always
 *            be given. How many buffers there are is bounded elsewhere. */
#ifndef CLUSTER_MSG_BUFFER_H
#define CLUSTER_MSG_BUFFER_H

#include "cluster/hedge.h"

#include <stdatomic.h>

#define MSG_MAX ((size_t)64 << 20)
#define MSG_FREE ((size_t)64 << 10)

struct msg_budget;

/* With one reference. */
int msg_budget_new(uint64_t limit, struct msg_budget **out);
void msg_budget_ref(struct msg_budget *b);
void msg_budget_unref(struct msg_budget *b); /* NULL is fine. */
uint64_t msg_budget_used(struct msg_budget *b);
/* Could it ever have room for so much? */
bool msg_budget_fits(const struct msg_budget *b, size_t n);
bool msg_budget_try(struct msg_budget *b, size_t n);
/* Goes beyond the limit if need be. */
void msg_budget_force(struct msg_budget *b, size_t n);
void msg_budget_give(struct msg_budget *b, size_t n);
/* Wait for room; HEDGE_EEXHAUSTED when there is none in time, at once where
 * the whole budget would not do. */
int msg_budget_take(struct msg_budget *b, size_t n, uint64_t timeout_ms,
                    struct hedge_error *e);

/* For `n` bytes that lie outside of the budget while they wait for room in it:
 * all of these together are a quarter of the limit at most, or one of them;
 * then HEDGE_EEXHAUSTED, at once. */
int msg_budget_hold(struct msg_budget *b, size_t n, struct hedge_error *e);
void msg_budget_unhold(struct msg_budget *b, size_t n);

struct msg_buf {
    struct msg_budget *budget; /* NULL: nothing is counted. */
    unsigned char *data;
    size_t len, cap, charged;
};

/* Keeps a reference to the budget. */
void msg_buf_init(struct msg_buf *b, struct msg_budget *budget);
void msg_buf_release(struct msg_buf *b);
/* The bytes go to `to`; `b` is as after msg_buf_init(). */
void msg_buf_move(struct msg_buf *b, struct msg_buf *to);
/* Room for `len` bytes in all, waiting for it up to timeout_ms. */
int msg_buf_reserve(struct msg_buf *b, size_t len, uint64_t timeout_ms,
                    struct hedge_error *e);
/* The same for what is there already and only moves: beyond the limit if need
 * be. */
int msg_buf_force(struct msg_buf *b, size_t len);
/* Fails rather than waits. */
int msg_buf_append(struct msg_buf *b, const void *data, size_t len);
/* Empty it and have it count as nothing, its memory with it. */
void msg_buf_clear(struct msg_buf *b);

/* The bytes of a message that several keep; they do not change any more. */
struct msg_shared {
    struct msg_buf buf;
    atomic_uint refs;
};
/* Takes the bytes of `take`, also on failure. NULL: no memory. */
struct msg_shared *msg_shared_new(struct msg_buf *take);
void msg_shared_ref(struct msg_shared *m);
void msg_shared_unref(struct msg_shared *m); /* NULL is fine. */

/* A reply for hedge_reply_free(), with the bytes of `take` (NULL: none), which
 * is left empty also on failure. NULL: no memory. */
struct hedge_reply *msg_reply_new(const char *id, int error, const char *text,
                                  struct msg_buf *take);
/* Replies of a broadcast, `n` of them still to be filled in with
 * msg_replies_set(), whose reply it takes. */
struct hedge_replies *msg_replies_new(size_t n);
void msg_replies_set(struct hedge_replies *all, size_t i,
                     struct hedge_reply *reply);

#endif
