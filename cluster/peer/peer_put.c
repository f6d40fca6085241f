/* Which peer a block is offered to, and what becomes of it. */
#include "cluster/peer/peer_internal.h"

#include "cluster/rpc/wire.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "proto/hedge.pb-c.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define SPREAD_PARTS 16

/* --- choosing ------------------------------------------------------------- */

static bool refuses_store(const struct peer *p, uint64_t generation,
                          uint64_t now)
{
    for (unsigned i = 0; i < PEER_REFUSALS; i++) {
        if (p->refusals[i].generation == generation &&
            now < p->refusals[i].until_ms) {
            return true;
        }
    }
    return false;
}

static bool has_tried(const struct op *op, const struct peer *p)
{
    for (unsigned i = 0; i < op->n_tried; i++) {
        if (op->tried[i] == p->unit) {
            return true;
        }
    }
    return false;
}

static bool must_avoid(const struct op *op, const struct peer *p)
{
    for (unsigned i = 0; i < op->req->n_avoid; i++) {
        if (op->req->avoid[i] == p->unit) {
            return true;
        }
    }
    return false;
}

uint64_t peer_put_silent_ms = 30000;

/* May blocks be offered to it, whichever they are? */
static bool is_open(const struct peer *p)
{
    return !peer_is_lost(p) && !p->full;
}

/* Open, and not about to be asked again after something went wrong. */
static bool is_ready(const struct peer *p, uint64_t now)
{
    return is_open(p) && p->n_orphans == 0 && now >= p->busy_until_ms;
}

/* How long to wait for a peer that is not ready: not at all, if it is not among
 * the members any more, unless it is only silent, or about to be found so. */
static uint64_t patience(const struct peer *p)
{
    bool asked =
        p->put.stream != NULL && !p->put.is_broken && p->put.n_flight > 0;

    if (p->gone || p->full || p->tier->hurry) {
        return 0;
    }
    if (p->silent_until_ms > peer_now_ms() || (!p->listed && asked)) {
        return UINT64_MAX;
    }
    return p->listed ? PEER_PUT_GIVE_UP_MS : 0;
}

static bool may_take(const struct peer *p, const struct op *op, uint64_t now)
{
    return !must_avoid(op, p) && !has_tried(op, p) &&
           !refuses_store(p, op->req->id.generation, now);
}

static uint64_t room_of(const struct peer *p)
{
    uint64_t free = p->mem_free + p->disk_free;
    uint64_t coming = p->n_puts * (uint64_t)p->tier->block_size;

    return free > coming ? free - coming : 0;
}

/* Copies stay with a peer until another has a good deal more room: blocks that
 * follow each other are dropped by one call. */
static bool goes_on(const struct peer *p, const struct peer *best)
{
    return room_of(p) >= room_of(best) - room_of(best) / SPREAD_PARTS;
}

/* Lock held. The peer that is being filled, or else the one with the most
 * room, which is filled from now on; of copies each goes where most room is.
 * `wait_ms`: there is none, but one of those that have stumbled might take it
 * within that time. */
static struct peer *choose(struct op *op, uint64_t *wait_ms)
{
    struct peer_tier *t = op->tier;
    struct peer **last = op->req->spread ? &t->copies : &t->target;
    uint64_t now = peer_now_ms();
    struct peer *best = NULL;
    bool may_go_on =
        *last != NULL && is_ready(*last, now) && may_take(*last, op, now);

    *wait_ms = 0;
    if (may_go_on && !op->req->spread) {
        return *last;
    }
    for (uint32_t i = 0; i < t->n_peers; i++) {
        struct peer *p = t->peers[i];

        if (!may_take(p, op, now)) {
            continue;
        }
        if (!is_ready(p, now)) {
            *wait_ms = patience(p) > *wait_ms ? patience(p) : *wait_ms;
        } else if (best == NULL || room_of(p) > room_of(best)) {
            best = p;
        }
    }
    if (may_go_on && goes_on(*last, best)) {
        return *last;
    }
    if (best != NULL &&
        (op->req->spread || *last == NULL || !is_ready(*last, now))) {
        *last = best;
    }
    return best;
}

/* What one peer has to say; false: nothing to the point. */
static bool one_answer(const struct op *op, const struct peer *p, char *out,
                       size_t size)
{
    if (peer_is_lost(p)) {
        return false;
    }
    if (must_avoid(op, p)) {
        (void)snprintf(out, size, "%s: has a copy already", p->id);
    } else if (p->answer[0] != '\0') {
        (void)snprintf(out, size, "%s: %s", p->id, p->answer);
    } else {
        (void)snprintf(out, size,
                       "%s: %llu bytes of memory and %llu of disk "
                       "are free",
                       p->id, (unsigned long long)p->mem_free,
                       (unsigned long long)p->disk_free);
    }
    return true;
}

/* Lock held. Nobody takes it: say what each node said, as far as there is
 * room. */
static void refuse(struct op *op)
{
    struct peer_tier *t = op->tier;
    char text[HEDGE_ERROR_TEXT_MAX] = "", one[PEER_ANSWER_MAX + 64];
    unsigned said = 0, more = 0;
    size_t at = 0;

    for (uint32_t i = 0; i < t->n_peers; i++) {
        if (!one_answer(op, t->peers[i], one, sizeof one)) {
            continue;
        }
        if (at + strlen(one) + 2 > sizeof text - 48) {
            more++;
            continue;
        }
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s",
                               said++ > 0 ? "; " : "", one);
    }
    if (said == 0) {
        (void)snprintf(text, sizeof text, "there are no other nodes");
    } else if (more > 0) {
        (void)snprintf(text + at, sizeof text - at, "; and %u more", more);
    }
    (void)error_set(&op->req->error, HEDGE_EREFUSED, "%s", text);
    op_settle_later(op, HEDGE_EREFUSED);
}

void put_place(struct op *op)
{
    struct peer_tier *t = op->tier;
    uint64_t wait_ms = 0;
    struct peer *p;

    if (t->closing) {
        (void)error_set(&op->req->error, HEDGE_ECANCELED, "this node stops");
        op_settle_later(op, HEDGE_ECANCELED);
        return;
    }
    p = op->n_tried < PEER_TRIED_MAX ? choose(op, &wait_ms) : NULL;
    if (p != NULL && lane_submit(&p->put, op) == 0) {
        p->n_puts++;
        return;
    }
    if (p != NULL) {
        p->busy_until_ms = peer_now_ms() + PEER_TICK_MS;
        (void)snprintf(p->answer, sizeof p->answer, "no thread for it here");
        wait_ms = PEER_PUT_GIVE_UP_MS;
    }
    if (op->since_ms == 0) {
        op->since_ms = peer_now_ms();
    }
    if (op->n_tried < PEER_TRIED_MAX &&
        peer_now_ms() - op->since_ms < wait_ms) {
        list_push(&t->waiting, &op->link);
        peer_tier_kick(t);
    } else {
        refuse(op);
    }
}

void put_retry_waiting(struct peer_tier *t)
{
    struct list again, *l;

    list_init(&again);
    list_splice(&again, &t->waiting);
    while ((l = list_pop(&again)) != NULL) {
        put_place(container_of(l, struct op, link));
    }
}

/* --- sending -------------------------------------------------------------- */

static size_t encode(const struct lane *l, const struct op *op, bool first,
                     unsigned char *out)
{
    const struct peer_tier *t = op->tier;
    const struct tier_store *store = op->req->store;
    Hedge__V1__PutRequest m = HEDGE__V1__PUT_REQUEST__INIT;
    Hedge__V1__OwnerRef owner = HEDGE__V1__OWNER_REF__INIT;
    size_t n;

    m.request = op->number;
    m.mem_limit = store->mem_limit;
    m.disk_limit = store->disk_limit;
    m.ttl_ms = store->ttl_ms;
    m.store = (char *)(uintptr_t)store->name;
    if (first) {
        owner.id = t->self_id;
        owner.incarnation = t->incarnation;
        m.owner = &owner;
        m.stream = l->session;
        m.peer_incarnation = l->peer->incarnation;
    }
    n = hedge__v1__put_request__get_packed_size(&m);
    assert(n + WIRE_TAG_MAX <= PEER_HEAD_MAX);
    n = hedge__v1__put_request__pack(&m, out);
    return n + wire_body_tag(op->req->len, out + n);
}

static int put_send(struct lane *l, struct op *op, bool first)
{
    unsigned char head[PEER_HEAD_MAX];
    struct rpc_out out = {.head = head,
                          .head_len = encode(l, op, first, head),
                          .body = op->req->data,
                          .body_len = op->req->len,
                          .release = op_released,
                          .release_arg = op};

    pthread_mutex_lock(&op->tier->lock);
    op->sends_out++;
    pthread_mutex_unlock(&op->tier->lock);
    /* A peer that does not read is noticed by lane_check(). */
    return rpc_stream_post(l->stream, &out, RPC_NO_TIMEOUT);
}

/* --- answers -------------------------------------------------------------- */

int peer_code(const char *name)
{
    static const struct {
        const char *name;
        int code;
    } codes[] = {
#define X(n, value, text) {#n, -(value)},
        HEDGE_ERROR_MAP(X)
#undef X
    };

    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        if (strcmp(codes[i].name, name) == 0) {
            return codes[i].code;
        }
    }
    return HEDGE_EPROTO;
}

static void set_answer(struct peer *p, const char *text)
{
    (void)snprintf(p->answer, sizeof p->answer, "%s", text);
}

static void remember_refusal(struct peer *p, uint64_t generation)
{
    struct refusal *r = &p->refusals[p->next_refusal++ % PEER_REFUSALS];

    r->generation = generation;
    r->until_ms = peer_now_ms() + PEER_REFUSAL_MS;
}

/* Lock held. The peer has not stored it: it is offered to others. */
static void not_stored(struct peer *p, struct op *op,
                       const Hedge__V1__PutReply *r)
{
    size_t block = p->tier->block_size;
    int code = peer_code(r->error);

    set_answer(p, r->text[0] != '\0' ? r->text : hedge_strerror(code));
    if (code == HEDGE_EBUSY) {
        p->busy_until_ms = peer_now_ms() + PEER_TICK_MS;
    } else {
        op->tried[op->n_tried++] = p->unit;
    }
    if (code == HEDGE_EREFUSED && r->mem_free < block && r->disk_free < block) {
        p->full = true;
    } else if (code == HEDGE_EREFUSED) {
        /* It has room, but not for this store. */
        remember_refusal(p, op->req->id.generation);
    } else if (code != HEDGE_EBUSY &&
               peer_now_ms() >= p->warned_ms + PEER_WARN_MS) {
        p->warned_ms = peer_now_ms();
        log_warn("peer", "%s does not store block %u/%llu: %s", p->id,
                 op->req->id.writer, (unsigned long long)op->req->id.sequence,
                 p->answer);
    }
    put_place(op);
}

/* Lock held. Ops that have left the peer's lane find another place. */
static void move_ops(struct peer *p, struct list *moving)
{
    struct list *i;

    while ((i = list_pop(moving)) != NULL) {
        assert(p->n_puts > 0);
        p->n_puts--;
        put_place(container_of(i, struct op, link));
    }
}

/* Lock held. What waits in the queue need not learn it by itself. */
static void move_queue(struct lane *l)
{
    struct list moving;

    list_init(&moving);
    list_splice(&moving, &l->queue);
    move_ops(l->peer, &moving);
}

/* Lock held. True: the op is to be completed by the caller. */
static bool answered(struct lane *l, struct op *op,
                     const Hedge__V1__PutReply *r)
{
    struct tier_req *req = op->req;
    struct peer *p = l->peer;

    lane_answered(l, op);
    p->n_puts--;
    p->silent_until_ms = 0;
    p->mem_free = r->mem_free;
    p->disk_free = r->disk_free;
    if (!r->stored) {
        not_stored(p, op, r);
        if (!is_ready(p, peer_now_ms())) {
            move_queue(l);
        }
        return false;
    }
    memset(&req->place, 0, sizeof req->place);
    req->place.unit = p->unit;
    req->place.kind = strcmp(r->tier, "disk") == 0;
    p->answer[0] = '\0';
    care_stored(p, req->id.generation, req->len);
    return op_settle(op, 0);
}

static int put_reply(struct lane *l, struct rpc_msg *m, struct hedge_error *e)
{
    struct peer_tier *t = l->peer->tier;
    Hedge__V1__PutReply *r;
    unsigned char *head;
    size_t head_len, body_len;
    struct op *op;
    bool has_body, complete = false;
    int rv = lane_split(m, &head, &head_len, &has_body, &body_len, e);

    if (rv != 0) {
        return rv;
    }
    r = hedge__v1__put_reply__unpack(NULL, head_len, head);
    mem_free(head);
    if (r == NULL) {
        return error_set(e, HEDGE_EPROTO, "the peer's reply cannot be read");
    }
    pthread_mutex_lock(&t->lock);
    op = lane_find(l, r->request);
    if (op == NULL) {
        rv = error_set(e, HEDGE_EPROTO,
                       "the peer answers a request it was not sent");
    } else {
        complete = answered(l, op, r);
    }
    pthread_mutex_unlock(&t->lock);
    hedge__v1__put_reply__free_unpacked(r, NULL);
    if (complete) {
        op_complete(op);
    }
    return rv;
}

/* --- a broken session ------------------------------------------------------
 */

static void put_broken(struct lane *l, const struct hedge_error *why)
{
    struct peer *p = l->peer;
    struct list moving, *i;

    (void)snprintf(p->answer, sizeof p->answer, "does not answer: %.150s",
                   why->text);
    p->busy_until_ms = l->backoff_until_ms;
    if (!l->stalled) {
        p->silent_until_ms = 0;
    }
    list_init(&moving);
    list_foreach (i, &l->flight) {
        care_orphan(p, &container_of(i, struct op, link)->req->id, l->session);
    }
    if (!list_empty(&l->flight)) {
        log_warn("peer", "putting blocks to %s: %s", p->id, why->text);
    }
    list_splice(&moving, &l->flight);
    list_splice(&moving, &l->queue);
    move_ops(p, &moving);
}

const struct lane_kind put_lane = {
    .path = "/hedge.v1.Peer/Put",
    .stall_ms = PEER_STALL_MS,
    .window = PEER_WINDOW,
    .send = put_send,
    .reply = put_reply,
    .broken = put_broken,
};
