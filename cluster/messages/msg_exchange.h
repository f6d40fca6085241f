/* msg_exchange.h - one message to the leader or to members, and their replies:
 * a struct delivery for each target, driven by the thread that waits for them.
 * Calls to other nodes run side by side without a thread of their own; what
 * this node is to handle itself takes no way over the network.
 *
 * Ownership: the message stays the caller's until the call returns. Replies
 *            belong to whoever gets them, to be freed with hedge_reply_free().
 * Threads:   any; the calls block, and on_reply runs on the calling thread.
 * Errors:    as hedge_send() and hedge_broadcast().
 * Units:     bytes, milliseconds.
 * Limits:    MSG_MAX bytes; EXCHANGE_ONLY_MAX ids in `only`. */
#ifndef CLUSTER_MSG_EXCHANGE_H
#define CLUSTER_MSG_EXCHANGE_H

#include "cluster/hedge.h"

#define EXCHANGE_ONLY_MAX 1024u

struct exchange_options {
    const void *data;
    size_t len;
    struct msg_shared *shared; /* Where the data are; NULL: not ours. */
    const char *from;          /* The sender's node; "" for a client. */
    uint64_t timeout_ms;
    bool (*gone)(void *ctx); /* Has the one who waits gone? NULL: never. */
    void *ctx;               /* For gone and on_reply. */

    int retries; /* To the leader. */

    /* Broadcast. */
    bool skip_self;
    const char *const *only;
    size_t n_only; /* 0: all members. */
    /* Takes the reply. */
    void (*on_reply)(void *ctx, struct hedge_reply *r);
};

int exchange_send(struct hedge_node *n, const struct exchange_options *o,
                  struct hedge_reply **reply, struct hedge_error *e);
int exchange_broadcast(struct hedge_node *n, const struct exchange_options *o,
                       struct hedge_error *e);

#endif
