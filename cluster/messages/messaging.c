#include "cluster/messages/messaging.h"

#include <assert.h>
#include <string.h>

#define MARGIN_MAX_MS 50

/* What is to be done about a failure. */
enum verdict {
    FINAL,  /* Tell the sender. */
    WAIT,   /* It has not been handled; as often as it takes. */
    REPEAT, /* It may have been handled; as often as the sender says. */
};

static enum verdict judge(const struct delivery *d, int code, bool refused)
{
    switch (code) {
    case HEDGE_EEXHAUSTED:
        return refused ? WAIT : FINAL;
    case HEDGE_ENOTLEADER:
        return refused && d->to_leader ? WAIT : FINAL;
    case HEDGE_ECLOSED:
        if (refused && d->to_leader) {
            return WAIT;
        }
        return d->retries != 0 ? REPEAT : FINAL;
    case HEDGE_EUNAVAILABLE:
    case HEDGE_ECANCELED:
        return d->retries != 0 ? REPEAT : FINAL;
    default:
        return FINAL;
    }
}

static void finish(struct delivery *d, const struct hedge_error *e)
{
    d->error = *e;
    d->act = DELIVERY_DONE;
    d->calling = false;
}

static void first_piece(struct delivery *d, bool whole)
{
    d->piece_at = 0;
    d->piece_len =
        whole || d->len <= MESSAGING_PIECE ? d->len : MESSAGING_PIECE;
    d->reply_at = d->reply_len = 0;
    d->attempt++;
}

static void wait_then(struct delivery *d, enum delivery_act then,
                      uint64_t until_ms, const struct hedge_error *why)
{
    d->last = *why;
    d->then = then;
    d->wake_ms = until_ms < d->deadline_ms ? until_ms : d->deadline_ms;
    d->act = DELIVERY_WAIT;
    d->calling = false;
}

static uint64_t backoff(struct delivery *d)
{
    uint64_t ms = d->backoff_ms;

    d->backoff_ms =
        ms * 2 < MESSAGING_BACKOFF_MAX_MS ? ms * 2 : MESSAGING_BACKOFF_MAX_MS;
    return ms;
}

void delivery_begin(struct delivery *d)
{
    d->act = DELIVERY_ROUTE;
    d->attempt = 0;
    d->calling = false;
    d->backoff_ms = MESSAGING_BACKOFF_MS;
    error_clear(&d->error);
    error_clear(&d->last);
}

void delivery_routed(struct delivery *d, bool whole)
{
    assert(d->act == DELIVERY_ROUTE);
    first_piece(d, whole);
    d->act = DELIVERY_SEND;
}

void delivery_unroutable(struct delivery *d, const struct hedge_error *e,
                         uint64_t now_ms)
{
    assert(d->act == DELIVERY_ROUTE && e->code != 0);
    if (d->to_leader) {
        wait_then(d, DELIVERY_ROUTE, now_ms + MESSAGING_ROUTE_MS, e);
    } else {
        finish(d, e);
    }
}

void delivery_started(struct delivery *d)
{
    assert(d->act == DELIVERY_SEND || d->act == DELIVERY_FETCH);
    d->then = d->act;
    d->act = DELIVERY_WAIT;
    d->wake_ms = d->deadline_ms;
    d->calling = true;
}

void delivery_no_room(struct delivery *d, const struct hedge_error *e,
                      uint64_t now_ms)
{
    assert(d->act == DELIVERY_FETCH && e->code != 0);
    wait_then(d, DELIVERY_FETCH, now_ms + backoff(d), e);
}

static bool was_last_piece(const struct delivery *d)
{
    return d->piece_at + d->piece_len == d->len;
}

static void next_piece(struct delivery *d)
{
    size_t left;

    d->piece_at += d->piece_len;
    left = d->len - d->piece_at;
    d->piece_len = left < MESSAGING_PIECE ? left : MESSAGING_PIECE;
    d->act = DELIVERY_SEND;
}

void delivery_answered(struct delivery *d, size_t reply_len, size_t got)
{
    assert(d->calling);
    d->calling = false;
    if (d->then == DELIVERY_SEND && !was_last_piece(d)) {
        next_piece(d);
        return;
    }
    if (d->then == DELIVERY_SEND) {
        d->reply_len = reply_len;
    }
    d->reply_at += got;
    assert(d->reply_at <= d->reply_len);
    d->act = d->reply_at < d->reply_len ? DELIVERY_FETCH : DELIVERY_DONE;
}

void delivery_failed(struct delivery *d, const struct hedge_error *e,
                     bool refused, uint64_t now_ms)
{
    assert(e->code != 0);
    switch (judge(d, e->code, refused)) {
    case FINAL:
        finish(d, e);
        break;
    case WAIT:
        wait_then(d, DELIVERY_ROUTE,
                  now_ms + (e->code == HEDGE_EEXHAUSTED ? backoff(d)
                                                        : MESSAGING_ROUTE_MS),
                  e);
        break;
    case REPEAT:
        d->retries -= d->retries > 0;
        wait_then(d, DELIVERY_ROUTE, now_ms + backoff(d), e);
        break;
    }
}

bool delivery_leader_changed(struct delivery *d, uint64_t now_ms)
{
    struct hedge_error e;

    if (!d->to_leader || !d->calling || d->retries == 0) {
        return false;
    }
    (void)error_set(&e, HEDGE_EUNAVAILABLE,
                    "the leader changed before it answered");
    delivery_failed(d, &e, false, now_ms);
    return true;
}

bool delivery_tick(struct delivery *d, uint64_t now_ms)
{
    struct hedge_error late;

    if (d->act == DELIVERY_DONE) {
        return false;
    }
    if (now_ms >= d->deadline_ms) {
        (void)error_set(&late, HEDGE_ETIMEDOUT,
                        "no answer before the deadline");
        finish(d, !d->calling && d->last.code != 0 ? &d->last : &late);
        return true;
    }
    if (d->act == DELIVERY_WAIT && !d->calling && now_ms >= d->wake_ms) {
        d->act = d->then;
    }
    return false;
}

void delivery_abandon(struct delivery *d, int code, const char *text)
{
    struct hedge_error e;

    (void)error_set(&e, code, "%s", text);
    finish(d, &e);
}

uint64_t messaging_far_timeout(uint64_t left_ms)
{
    uint64_t margin =
        left_ms / 10 < MARGIN_MAX_MS ? left_ms / 10 : MARGIN_MAX_MS;

    return left_ms > margin ? left_ms - margin : 1;
}
