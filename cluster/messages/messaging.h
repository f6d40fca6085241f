/* messaging.h - how one message gets to one node and its reply back: the
 * decisions alone. Which piece is sent next, which failures are waited out,
 * which are repeated and after how long, and what the sender is told at the
 * deadline. Whoever drives it looks at `act`, does that, and says what came of
 * it; then at `act` again.
 *
 * Ownership: a struct delivery is a value; texts are copied.
 * Threads:   one.
 * Errors:    `error` once `act` is DELIVERY_DONE; code 0: replied.
 * Units:     bytes; milliseconds on any clock that does not go back.
 * Limits:    pieces of MESSAGING_PIECE; a message of up to MESSAGING_SMALL is
 *            one call. */
#ifndef CLUSTER_MESSAGING_H
#define CLUSTER_MESSAGING_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MESSAGING_SMALL ((size_t)64 << 10)
#define MESSAGING_PIECE ((size_t)1 << 20)
#define MESSAGING_ROUTE_MS 10 /* Between two looks for a leader. */
#define MESSAGING_BACKOFF_MS 50
#define MESSAGING_BACKOFF_MAX_MS 1000

enum delivery_act {
    DELIVERY_ROUTE, /* Find the node: _routed() or _unroutable(). */
    DELIVERY_SEND,  /* Send piece_len bytes from piece_at: _started(). */
    DELIVERY_FETCH, /* Get the reply from reply_at on: _started(). */
    DELIVERY_WAIT,  /* For the call's result, or until wake_ms: _tick(). */
    DELIVERY_DONE
};

struct delivery {
    /* Set before delivery_begin(). */
    bool to_leader;
    int retries; /* Negative: until the deadline. */
    size_t len;
    uint64_t deadline_ms;

    enum delivery_act act;
    size_t piece_at, piece_len;
    size_t reply_at, reply_len;
    uint64_t wake_ms;
    unsigned attempt; /* Grows with each new start from the first piece. */
    bool calling;     /* A call is under way. */
    struct hedge_error error;

    enum delivery_act then; /* What DELIVERY_WAIT waits to do. */
    uint64_t backoff_ms;
    struct hedge_error last; /* Why it waits. */
};

void delivery_begin(struct delivery *d);
/* `whole`: the node takes the message in one piece whatever its length. */
void delivery_routed(struct delivery *d, bool whole);
/* There is nobody to send it to. To the leader this is waited out. */
void delivery_unroutable(struct delivery *d, const struct hedge_error *e,
                         uint64_t now_ms);
void delivery_started(struct delivery *d);
/* There was no room for the reply: fetch it later. */
void delivery_no_room(struct delivery *d, const struct hedge_error *e,
                      uint64_t now_ms);
/* The call has ended well. Of a piece that is not the last there is no more to
 * say (reply_len 0); else the reply has `reply_len` bytes, and `got` of them
 * came with this answer. */
void delivery_answered(struct delivery *d, size_t reply_len, size_t got);
/* `refused`: the message was surely not handled, so that a failure that passes
 * may be waited out. */
void delivery_failed(struct delivery *d, const struct hedge_error *e,
                     bool refused, uint64_t now_ms);
/* Another node leads than the one that was called. True: the call is to be
 * given up; its result does not count. */
bool delivery_leader_changed(struct delivery *d, uint64_t now_ms);
/* Time has passed. True: the deadline has come; a call that is under way does
 * not count any more. */
bool delivery_tick(struct delivery *d, uint64_t now_ms);
/* Give up with this error. */
void delivery_abandon(struct delivery *d, int code, const char *text);

/* How long the other side may take of what is left, so that its own answer,
 * which knows more, is here before the deadline. */
uint64_t messaging_far_timeout(uint64_t left_ms);

#endif
