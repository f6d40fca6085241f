#include "cluster/group/election.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define LOOK_MS_DEFAULT 200u
#define RETRY_MS_MAX 1000u
#define MARGIN_MS_MIN 10u

void election_init(struct election *e, const struct election_options *o)
{
    assert(o->id != NULL && o->id[0] != '\0' && strlen(o->id) < sizeof e->id);
    assert(o->address != NULL && strlen(o->address) < sizeof e->address);
    assert(o->lease_ms >= ENGINE_LEASE_MIN_MS);
    memset(e, 0, sizeof *e);
    e->o = *o;
    memcpy(e->id, o->id, strlen(o->id));
    e->o.id = e->id;
    (void)snprintf(e->address, sizeof e->address, "%s", o->address);
    e->o.address = e->address;
    if (e->o.margin_ms == 0) {
        e->o.margin_ms = o->lease_ms / 10;
    }
    if (e->o.margin_ms < MARGIN_MS_MIN) {
        e->o.margin_ms = MARGIN_MS_MIN;
    }
    if (e->o.look_ms == 0) {
        e->o.look_ms = LOOK_MS_DEFAULT;
    }
    if (e->o.renew_ms == 0) {
        e->o.renew_ms = o->lease_ms / 3;
    }
    assert(e->o.margin_ms < o->lease_ms);
    e->random = o->seed ^ 0x9e3779b97f4a7c15u;
    e->look_at_ms = e->renew_at_ms = ELECTION_NEVER;
}

bool election_hold_valid(const struct election_hold *h, uint64_t now_ms)
{
    return h->token != 0 && now_ms < h->until_ms;
}

struct election_hold election_hold(const struct election *e)
{
    return e->hold;
}

bool election_is_leader(const struct election *e, uint64_t now_ms,
                        uint64_t *token)
{
    bool leads = election_hold_valid(&e->hold, now_ms);

    if (token != NULL) {
        *token = leads ? e->hold.token : 0;
    }
    return leads;
}

const struct election_leader *election_leader(const struct election *e)
{
    return &e->leader;
}

uint64_t election_rounds(const struct election *e)
{
    return e->rounds;
}

int election_status(const struct election *e)
{
    return e->status;
}

const char *election_lost_text(enum election_lost reason)
{
    static const char *const texts[] = {
        [ELECTION_LOST_EXPIRED] = "no renewal came through in time",
        [ELECTION_LOST_FENCED] = "another node has the lease",
        [ELECTION_LOST_STOPPED] = "stopped",
    };

    return texts[reason];
}

/* --- small parts ------------------------------------------------------------
 */

static uint64_t next_random(struct election *e)
{
    uint64_t z = e->random += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* `ms`, less up to an eighth. */
static uint64_t jittered(struct election *e, uint64_t ms)
{
    return ms - (ms >= 8 ? next_random(e) % (ms / 8) : 0);
}

static void move(struct election *e, enum election_state to)
{
    static const bool allowed[4][4] = {
        [ELECTION_IDLE] = {[ELECTION_FOLLOWER] = true},
        [ELECTION_FOLLOWER] =
            {[ELECTION_LEADER] = true, [ELECTION_STOPPING] = true},
        [ELECTION_LEADER] = {[ELECTION_FOLLOWER] = true},
        [ELECTION_STOPPING] = {[ELECTION_IDLE] = true},
    };

    assert(allowed[e->state][to]);
    e->state = to;
    assert((e->hold.token != 0) == (to == ELECTION_LEADER));
}

static void ask(struct election *e, enum election_op op, uint64_t token,
                struct election_actions *out)
{
    assert(e->op == ELECTION_OP_NONE && op != ELECTION_OP_NONE);
    e->op = op;
    e->op_id++;
    e->op_started_ms = e->now_ms;
    e->op_token = token;
    out->op = op;
    out->op_id = e->op_id;
    out->op_token = token;
}

/* An empty id for "none". */
static void set_leader(struct election *e, const char *id, const char *address,
                       uint64_t incarnation, uint64_t token, bool hinted,
                       struct election_actions *out)
{
    struct election_leader *l = &e->leader;

    e->hinted_at_ms = hinted ? e->now_ms : 0;
    if (l->token == token && l->incarnation == incarnation &&
        strcmp(l->id, id) == 0 && strcmp(l->address, address) == 0) {
        return;
    }
    (void)snprintf(l->id, sizeof l->id, "%s", id);
    (void)snprintf(l->address, sizeof l->address, "%s", address);
    l->incarnation = incarnation;
    l->token = token;
    out->leader_changed = true;
}

/* The token of the last leader is kept: hints about it are old news. */
static void forget_leader(struct election *e, struct election_actions *out)
{
    set_leader(e, "", "", 0, e->leader.token, false, out);
}

static void lose(struct election *e, enum election_lost reason,
                 struct election_actions *out)
{
    assert(e->state == ELECTION_LEADER);
    out->lost = true;
    out->lost_reason = reason;
    out->lost_token = e->hold.token;
    e->hold.token = 0;
    e->hold.until_ms = 0;
    e->renew_at_ms = ELECTION_NEVER;
    e->look_at_ms = e->now_ms;
    e->acquire = false;
    forget_leader(e, out);
    move(e, ELECTION_FOLLOWER);
}

static uint64_t deadline(const struct election *e, uint64_t started_ms)
{
    return started_ms + e->o.lease_ms - e->o.margin_ms;
}

static void failed(struct election *e, int status)
{
    uint64_t pause = e->o.look_ms;

    e->status = status;
    for (unsigned i = 0; i < e->failures && pause < RETRY_MS_MAX; i++) {
        pause *= 2;
    }
    e->failures++;
    e->look_at_ms =
        e->now_ms + jittered(e, pause < RETRY_MS_MAX ? pause : RETRY_MS_MAX);
    e->acquire = false;
}

/* --- a follower -------------------------------------------------------------
 */

/* What the engine says, from a request begun at started_ms. */
static void saw_lease(struct election *e, const struct engine_lease *lease,
                      uint64_t started_ms, struct election_actions *out)
{
    bool own_id = strcmp(lease->holder, e->id) == 0;
    /* Looked before the announcement of a later leader came in. */
    bool overtaken =
        lease->token < e->leader.token && started_ms <= e->hinted_at_ms;

    e->acquire = false;
    if (!lease->held) {
        if (!overtaken) {
            forget_leader(e, out);
        }
        e->acquire = true;
        e->look_at_ms = e->now_ms;
        return;
    }
    if (own_id && lease->incarnation == e->o.incarnation) {
        /* Won without having heard of it, or heard of it too late. Acquired
         * again it has a token that nobody took for lost. */
        e->acquire = true;
        e->look_at_ms = e->now_ms;
        return;
    }
    e->look_at_ms = e->now_ms + jittered(e, e->o.look_ms);
    if (e->now_ms + lease->remaining_ms < e->look_at_ms) {
        e->look_at_ms = e->now_ms + lease->remaining_ms + 1;
    }
    if (own_id) { /* An earlier life: it leads no more. */
        forget_leader(e, out);
        return;
    }
    if (!overtaken) {
        set_leader(e, lease->holder, lease->address, lease->incarnation,
                   lease->token, false, out);
    }
}

static void won(struct election *e, const struct election_event *ev,
                uint64_t started_ms, struct election_actions *out)
{
    if (ev->token <= e->token_max) {
        failed(e, HEDGE_ECORRUPT); /* Such an engine elects nobody. */
        return;
    }
    e->token_max = ev->token;
    if (deadline(e, started_ms) <= e->now_ms) {
        failed(e, HEDGE_ETIMEDOUT); /* The answer took a whole lease. */
        return;
    }
    e->hold.token = ev->token;
    e->hold.until_ms = deadline(e, started_ms);
    e->look_at_ms = ELECTION_NEVER;
    e->renew_at_ms = started_ms + e->o.renew_ms;
    move(e, ELECTION_LEADER);
    out->won = true;
    out->won_token = ev->token;
    out->won_idle_ms = ev->lease != NULL ? ev->lease->idle_ms : 0;
    set_leader(e, e->id, e->address, e->o.incarnation, ev->token, false, out);
}

static void follower_result(struct election *e, enum election_op op,
                            const struct election_event *ev,
                            uint64_t started_ms, struct election_actions *out)
{
    bool told = ev->lease != NULL &&
                ((op == ELECTION_OP_LOOK && ev->status == 0) ||
                 (op == ELECTION_OP_ACQUIRE && ev->status == HEDGE_EBUSY));

    if (op == ELECTION_OP_ACQUIRE && ev->status == 0) {
        e->failures = 0;
        won(e, ev, started_ms, out);
        return;
    }
    if (told) {
        e->failures = 0;
        e->status = 0;
        saw_lease(e, ev->lease, started_ms, out);
        return;
    }
    if (op == ELECTION_OP_RENEW) { /* Of a leadership already given up. */
        e->look_at_ms = e->now_ms;
        e->acquire = false;
        return;
    }
    failed(e, ev->status != 0 ? ev->status : HEDGE_EPROTO);
}

/* --- a leader ---------------------------------------------------------------
 */

static void leader_result(struct election *e, enum election_op op,
                          const struct election_event *ev, uint64_t started_ms,
                          struct election_actions *out)
{
    uint64_t retry_ms = e->o.lease_ms / 20 + 1;

    assert(op == ELECTION_OP_RENEW && e->op_token == e->hold.token);
    if (ev->status == HEDGE_EFENCED) {
        lose(e, ELECTION_LOST_FENCED, out);
        return;
    }
    if (ev->status != 0) {
        e->failures++;
        e->status = ev->status;
        e->renew_at_ms = e->now_ms + retry_ms;
        return;
    }
    e->failures = 0;
    if (deadline(e, started_ms) > e->hold.until_ms) {
        e->hold.until_ms = deadline(e, started_ms);
    }
    e->renew_at_ms = started_ms + e->o.renew_ms;
    if (e->renew_at_ms <= e->now_ms) { /* A slow engine: not at once again. */
        e->renew_at_ms = e->now_ms + retry_ms;
    }
}

/* --- stopping ---------------------------------------------------------------
 */

static void stopping_result(struct election *e, enum election_op op,
                            const struct election_event *ev)
{
    if (op == ELECTION_OP_ACQUIRE && ev->status == 0) {
        e->release_token = ev->token;
    } else if (op == ELECTION_OP_RELEASE) {
        e->release_token = 0; /* If it failed, the lease runs out. */
    }
}

static void begin_stop(struct election *e, struct election_actions *out)
{
    if (e->state == ELECTION_LEADER) {
        e->release_token = e->hold.token;
        lose(e, ELECTION_LOST_STOPPED, out);
    }
    if (e->state == ELECTION_FOLLOWER) {
        /* A renewal that was given up may still come through. */
        if (e->op == ELECTION_OP_RENEW) {
            e->release_token = e->op_token;
        }
        e->look_at_ms = ELECTION_NEVER;
        move(e, ELECTION_STOPPING);
    }
    out->stopped = e->state == ELECTION_IDLE;
}

/* --- the step ---------------------------------------------------------------
 */

static void take_result(struct election *e, const struct election_event *ev,
                        struct election_actions *out)
{
    enum election_op op = e->op;
    uint64_t started_ms = ev->started_ms;

    if (op == ELECTION_OP_NONE || ev->op_id != e->op_id) {
        return; /* A duplicate. */
    }
    /* Whatever the driver says, it began after it was asked to and before
     * now. */
    if (started_ms < e->op_started_ms || started_ms > e->now_ms) {
        started_ms = e->op_started_ms;
    }
    e->op = ELECTION_OP_NONE;
    e->rounds++;
    if (ev->status == 0) {
        e->status = 0;
    }
    switch (e->state) {
    case ELECTION_FOLLOWER:
        follower_result(e, op, ev, started_ms, out);
        break;
    case ELECTION_LEADER:
        leader_result(e, op, ev, started_ms, out);
        break;
    case ELECTION_STOPPING:
        stopping_result(e, op, ev);
        break;
    case ELECTION_IDLE:
        break;
    }
}

static void take_hint(struct election *e, const struct election_event *ev,
                      struct election_actions *out)
{
    const struct engine_lease *l = ev->lease;

    if (e->state == ELECTION_LEADER) {
        /* Said to be deposed. The engine knows; ask it now. */
        if (l != NULL && l->token > e->hold.token) {
            e->renew_at_ms = e->now_ms;
        }
        return;
    }
    if (e->state != ELECTION_FOLLOWER) {
        return;
    }
    if (e->look_at_ms > e->now_ms) {
        e->look_at_ms = e->now_ms;
        e->acquire = false;
    }
    if (ev->type == ELECTION_HINT_LEADER && l != NULL &&
        l->token > e->leader.token && l->holder[0] != '\0' &&
        strcmp(l->holder, e->id) != 0) {
        set_leader(e, l->holder, l->address, l->incarnation, l->token, true,
                   out);
    }
}

/* Ask for the next operation if none is in progress and one is due. */
static void next_op(struct election *e, struct election_actions *out)
{
    if (e->op != ELECTION_OP_NONE) {
        return;
    }
    switch (e->state) {
    case ELECTION_FOLLOWER:
        if (e->now_ms >= e->look_at_ms) {
            ask(e, e->acquire ? ELECTION_OP_ACQUIRE : ELECTION_OP_LOOK, 0, out);
            e->acquire = false;
            e->look_at_ms = ELECTION_NEVER;
        }
        break;
    case ELECTION_LEADER:
        if (e->now_ms >= e->renew_at_ms) {
            ask(e, ELECTION_OP_RENEW, e->hold.token, out);
            e->renew_at_ms = ELECTION_NEVER;
        }
        break;
    case ELECTION_STOPPING:
        if (e->release_token != 0) {
            ask(e, ELECTION_OP_RELEASE, e->release_token, out);
        } else {
            move(e, ELECTION_IDLE);
            out->stopped = true;
        }
        break;
    case ELECTION_IDLE:
        break;
    }
}

static uint64_t wake_at(const struct election *e)
{
    uint64_t at = ELECTION_NEVER;

    if (e->state == ELECTION_LEADER) {
        at = e->hold.until_ms;
    }
    if (e->op == ELECTION_OP_NONE) {
        uint64_t due = e->state == ELECTION_LEADER     ? e->renew_at_ms
                       : e->state == ELECTION_FOLLOWER ? e->look_at_ms
                                                       : ELECTION_NEVER;
        at = due < at ? due : at;
    }
    return at;
}

void election_step(struct election *e, const struct election_event *event,
                   uint64_t now_ms, struct election_actions *out)
{
    memset(out, 0, sizeof *out);
    if (now_ms > e->now_ms) {
        e->now_ms = now_ms;
    }
    /* First of all: what an event brings after the deadline is too late. */
    if (e->state == ELECTION_LEADER &&
        !election_hold_valid(&e->hold, e->now_ms)) {
        lose(e, ELECTION_LOST_EXPIRED, out);
    }
    switch (event->type) {
    case ELECTION_START:
        if (e->state == ELECTION_IDLE && e->op == ELECTION_OP_NONE) {
            e->look_at_ms = e->now_ms;
            move(e, ELECTION_FOLLOWER);
        }
        break;
    case ELECTION_RESULT:
        take_result(e, event, out);
        break;
    case ELECTION_STOP:
        begin_stop(e, out);
        break;
    case ELECTION_HINT_LEADER:
    case ELECTION_HINT_VANISHED:
        take_hint(e, event, out);
        break;
    case ELECTION_TICK:
        break;
    }
    next_op(e, out);
    out->wake_ms = wake_at(e);
    assert(!(out->won && out->lost));
}
