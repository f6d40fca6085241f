/* Blocks back from the peers that have them. */
#include "cluster/peer/peer_internal.h"

#include "cluster/rpc/wire.h"
#include "store/base/copy.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "proto/hedge.pb-c.h"

#include <assert.h>
#include <string.h>

/* A reply's small fields; a node says in them why it has not got a block. */
#define TEXT_MAX 300

/* Lock held. */
static void fail_gone(struct op *op, const struct peer *p)
{
    (void)error_set(&op->req->error, HEDGE_ELOST,
                    "node %s, which held the block, has started again since",
                    p->id);
    op_settle_later(op, HEDGE_ELOST);
}

/* Lock held. Nobody answers there. */
static void fail_unreachable(struct op *op, const struct peer *p,
                             const struct hedge_error *why)
{
    int code = p->listed ? HEDGE_EUNAVAILABLE : HEDGE_ELOST;

    (void)error_set(&op->req->error, code,
                    "node %s, which holds the block, %s"
                    ": %.300s",
                    p->id,
                    p->listed ? "does not answer"
                              : "is no member any more and does not answer",
                    why->text);
    op_settle_later(op, code);
}

/* It has been asked often enough, by whomever: others need not wait as long to
 * learn that they had better ask for another copy. */
static bool is_down(const struct lane *l)
{
    return l->failures >= PEER_GET_TRIES;
}

void get_place(struct op *op)
{
    struct peer_tier *t = op->tier;
    struct peer *p = t->peers[op->req->place.unit];
    struct hedge_error why;
    int rv;

    if (t->closing) {
        (void)error_set(&op->req->error, HEDGE_ECANCELED, "this node stops");
        op_settle_later(op, HEDGE_ECANCELED);
        return;
    }
    if (p->gone) {
        fail_gone(op, p);
        return;
    }
    if (is_down(&p->get) && peer_now_ms() < p->get.backoff_until_ms) {
        fail_unreachable(op, p, &p->get.why);
        return;
    }
    rv = lane_submit(&p->get, op);
    if (rv != 0) {
        (void)error_set(&why, rv, "%s", hedge_strerror(rv));
        fail_unreachable(op, p, &why);
    }
}

static int get_send(struct lane *l, struct op *op, bool first)
{
    const struct block_id *id = &op->req->id;
    Hedge__V1__GetRequest m = HEDGE__V1__GET_REQUEST__INIT;
    unsigned char head[PEER_HEAD_MAX];
    struct rpc_out out = {.head = head};

    (void)first;
    m.request = op->number;
    m.generation = id->generation;
    m.writer = id->writer;
    m.sequence = id->sequence;
    m.peer_incarnation = l->peer->incarnation;
    out.head_len = hedge__v1__get_request__pack(&m, head);
    return rpc_stream_post(l->stream, &out, RPC_NO_TIMEOUT);
}

/* --- answers -------------------------------------------------------------- */

/* The block itself, into the caller's memory; the op stays in flight. */
static int take_block(struct op *op, const struct peer *p, struct rpc_msg *m,
                      bool has_body, size_t body_len)
{
    struct tier_req *req = op->req;

    if (!has_body || body_len != req->len) {
        return error_set(&req->error, HEDGE_EPROTO,
                         "node %s sent %zu bytes for a block of %zu", p->id,
                         has_body ? body_len : 0, req->len);
    }
    for (unsigned char *to = req->data; body_len > 0;) {
        const unsigned char *piece;
        size_t n = rpc_msg_peek(m, &piece);

        copy_past_cache(to, piece, n);
        rpc_msg_read(m, NULL, n);
        to += n;
        body_len -= n;
    }
    return 0;
}

/* The peer says why there is no block. */
static int take_error(struct op *op, const struct peer *p,
                      const Hedge__V1__GetReply *r)
{
    int code = peer_code(r->error);

    code = code == HEDGE_ENOTFOUND ? HEDGE_ELOST : code;
    return error_set(&op->req->error, code, "node %s: %.*s", p->id, TEXT_MAX,
                     r->text[0] != '\0' ? r->text : hedge_strerror(code));
}

/* Lock held. True: the caller completes the op. */
static bool answered(struct lane *l, struct op *op, int status)
{
    uint64_t age = peer_now_ms() - op->since_ms;

    lane_answered(l, op);
    if (status == HEDGE_EBUSY && age < PEER_GET_GIVE_UP_MS) {
        list_push(&l->queue, &op->link);
        return false;
    }
    return op_settle(op, status);
}

static int answer(struct lane *l, const Hedge__V1__GetReply *r,
                  struct rpc_msg *m, bool has_body, size_t body_len,
                  struct hedge_error *e)
{
    struct peer_tier *t = l->peer->tier;
    struct op *op;
    bool complete;
    int status;

    pthread_mutex_lock(&t->lock);
    op = lane_find(l, r->request);
    pthread_mutex_unlock(&t->lock);
    if (op == NULL) {
        return error_set(e, HEDGE_EPROTO,
                         "the peer answers a request it was not sent");
    }
    /* Only this thread takes ops out of flight as long as it runs. */
    status = r->error[0] != '\0'
                 ? take_error(op, l->peer, r)
                 : take_block(op, l->peer, m, has_body, body_len);
    pthread_mutex_lock(&t->lock);
    complete = answered(l, op, status);
    pthread_mutex_unlock(&t->lock);
    if (complete) {
        op_complete(op);
    }
    return 0;
}

static int get_reply(struct lane *l, struct rpc_msg *m, struct hedge_error *e)
{
    Hedge__V1__GetReply *r;
    unsigned char *head;
    size_t head_len, body_len;
    bool has_body;
    int rv = lane_split(m, &head, &head_len, &has_body, &body_len, e);

    if (rv != 0) {
        return rv;
    }
    r = hedge__v1__get_reply__unpack(NULL, head_len, head);
    mem_free(head);
    if (r == NULL) {
        return error_set(e, HEDGE_EPROTO, "the peer's reply cannot be read");
    }
    rv = answer(l, r, m, has_body, body_len, e);
    hedge__v1__get_reply__free_unpacked(r, NULL);
    return rv;
}

/* --- a broken session ------------------------------------------------------
 */

/* Lock held. Ask again, or give up what has been asked often or waits for
 * long. */
static void again_or_fail(struct lane *l, struct op *op,
                          const struct hedge_error *why)
{
    uint64_t age = peer_now_ms() - op->since_ms;

    if (op->tier->closing) {
        op->req->error = *why;
        op_settle_later(op, HEDGE_ECANCELED);
    } else if (l->peer->gone) {
        fail_gone(op, l->peer);
    } else if (op->tries >= PEER_GET_TRIES || is_down(l) ||
               age >= PEER_GET_GIVE_UP_MS) {
        fail_unreachable(op, l->peer, why);
    } else {
        list_push(&l->queue, &op->link);
    }
}

static void get_broken(struct lane *l, const struct hedge_error *why)
{
    struct list ops, *i;

    list_foreach (i, &l->queue) {
        /* Those that waited for a session without an answer have had their
         * try as well. */
        container_of(i, struct op, link)->tries += !l->answered;
    }
    list_init(&ops);
    list_splice(&ops, &l->flight);
    list_splice(&ops, &l->queue);
    if (!list_empty(&ops) && l->failures == 1) {
        log_warn("peer", "getting blocks from %s: %s", l->peer->id, why->text);
    }
    while ((i = list_pop(&ops)) != NULL) {
        again_or_fail(l, container_of(i, struct op, link), why);
    }
}

const struct lane_kind get_lane = {
    .path = "/hedge.v1.Peer/Get",
    .stall_ms = PEER_GET_STALL_MS,
    .window = PEER_GET_WINDOW,
    .send = get_send,
    .reply = get_reply,
    .broken = get_broken,
};
