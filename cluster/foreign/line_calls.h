/* line_calls.h - what the requests of the line protocol do on a node.
 *
 * Ownership: a call is a value that is used again for each line of a
 *            connection; the reply in it lives until line_call_clear().
 * Threads:   one at a time; runs block until their deadlines.
 * Errors:    all of them become replies.
 * Units:     bytes.
 * Limits:    payloads count against the node's message budget. */
#ifndef CLUSTER_LINE_CALLS_H
#define CLUSTER_LINE_CALLS_H

#include "cluster/foreign/lines.h"
#include "cluster/messages/msg_buffer.h"

struct line_call {
    struct hedge_node *node;
    int fd; /* To see whether the client has gone. */
    /* Asked while a payload waits for room: should it make way for others that
     * wait, too? */
    bool (*gives_way)(void *ctx);
    void *ctx;
    struct msg_buf payload, answer;
    struct line_reply reply;
    struct hedge_error error;
};

void line_call_init(struct line_call *c, struct hedge_node *n, int fd,
                    bool (*gives_way)(void *ctx), void *ctx);
void line_call_release(struct line_call *c);
/* A line_payload_fn. */
int line_call_payload(void *ctx, enum line_verb verb, const void *data,
                      size_t len);
/* Do what the line asks for; c->reply is the answer. */
void line_call_run(struct line_call *c, const struct line *l);
/* The reply has been sent. */
void line_call_clear(struct line_call *c);

#endif
