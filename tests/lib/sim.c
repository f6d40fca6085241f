#include "tests/lib/sim.h"

#include "store/base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIAL_TIMEOUT_MS 2000

/* --- chance, time, telling --------------------------------------------------
 */

uint64_t sim_rnd(struct sim *w)
{
    uint64_t z = w->random += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t sim_between(struct sim *w, uint64_t lo, uint64_t hi)
{
    return lo + sim_rnd(w) % (hi - lo + 1);
}

bool sim_chance(struct sim *w, unsigned percent)
{
    return sim_rnd(w) % 100 < percent;
}

void sim_say(struct sim *w, const char *fmt, ...)
{
    va_list ap;

    if (!w->trace) {
        return;
    }
    printf("%8" PRIu64 "  ", w->now);
    va_start(ap, fmt);
    (void)vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

void sim_fail(struct sim *w, const char *fmt, ...)
{
    va_list ap;

    if (w->failed) {
        return;
    }
    w->failed = true;
    fprintf(stderr, "seed %" PRIu64 " at %" PRIu64 " ms: ", w->seed, w->now);
    va_start(ap, fmt);
    (void)vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
}

/* --- the queue --------------------------------------------------------------
 */

static bool earlier(const struct sim_event *x, const struct sim_event *y)
{
    return x->at != y->at ? x->at < y->at : x->seq < y->seq;
}

void sim_push(struct sim *w, const struct sim_event *ev, uint64_t delay)
{
    struct sim_event *copy = mem_alloc(sizeof *copy);
    size_t i = w->n_heap;

    if (copy == NULL) {
        abort();
    }
    if (w->n_heap == w->cap_heap) {
        w->cap_heap = w->cap_heap * 2 + 64;
        w->heap =
            mem_realloc(w->heap, w->cap_heap * sizeof(struct sim_event *));
        if (w->heap == NULL) {
            abort();
        }
    }
    *copy = *ev;
    copy->at = w->now + delay;
    copy->seq = w->seq++;
    copy->next = NULL;
    w->n_heap++;
    for (; i > 0 && earlier(copy, w->heap[(i - 1) / 2]); i = (i - 1) / 2) {
        w->heap[i] = w->heap[(i - 1) / 2];
    }
    w->heap[i] = copy;
}

static struct sim_event *pop(struct sim *w)
{
    struct sim_event *top = w->heap[0], *last = w->heap[--w->n_heap];
    size_t i = 0;

    for (;;) {
        size_t c = 2 * i + 1;
        if (c + 1 < w->n_heap && earlier(w->heap[c + 1], w->heap[c])) {
            c++;
        }
        if (c >= w->n_heap || !earlier(w->heap[c], last)) {
            break;
        }
        w->heap[i] = w->heap[c];
        i = c;
    }
    w->heap[i] = last;
    return top;
}

static void event_free(struct sim_event *ev)
{
    mem_free(ev->members);
    mem_free(ev->data);
    mem_free(ev);
}

/* --- the network ------------------------------------------------------------
 */

static bool bad_net(const struct sim *w)
{
    return w->now < w->bad_net_until;
}

static uint64_t net_delay(struct sim *w)
{
    return bad_net(w) && sim_chance(w, 30) ? sim_between(w, 0, 2000)
                                           : sim_between(w, 0, 3);
}

/* Streams of gRPC lose nothing and keep order; the cores must not rely on it.
 * Takes ownership of ev->members. */
static void send_message(struct sim *w, struct sim_event *ev)
{
    struct sim_node *to = &w->nodes[ev->node];
    unsigned copies = 1;

    ev->epoch = to->epoch;
    if (w->cut[ev->from][ev->node] || !to->alive ||
        (bad_net(w) && sim_chance(w, 15))) {
        copies = 0;
    } else if (bad_net(w) && sim_chance(w, 10)) {
        copies = 2;
    }
    for (unsigned i = 0; i < copies; i++) {
        struct sim_event copy = *ev;
        if (ev->members != NULL) {
            copy.members = mem_alloc(ev->n_members * sizeof(struct member));
            if (copy.members == NULL) {
                abort();
            }
            memcpy(copy.members, ev->members,
                   ev->n_members * sizeof(struct member));
        }
        sim_push(w, &copy, net_delay(w));
    }
    mem_free(ev->members);
    ev->members = NULL;
}

/* Both ends hear of it, as far as they live: the end that closes does not. */
void sim_stream_end(struct sim *w, uint64_t id, bool tell_server,
                    bool tell_client, int status)
{
    struct sim_stream *s = &w->streams[id];

    if (!s->open) {
        return;
    }
    s->open = false;
    if (tell_server) {
        struct sim_event ev = {.kind = SIM_STREAM_BROKEN,
                               .node = s->server,
                               .epoch = s->server_epoch,
                               .a = id};
        sim_push(w, &ev, sim_between(w, 0, 5));
    }
    if (tell_client) {
        struct sim_event ev = {.kind = SIM_LINK_DOWN,
                               .node = s->client,
                               .epoch = s->client_epoch,
                               .a = id,
                               .b = s->token,
                               .status = status};
        sim_push(w, &ev, sim_between(w, 0, 5));
    }
}

static void streams_of_node_end(struct sim *w, unsigned node)
{
    for (uint64_t i = 1; i <= w->n_streams; i++) {
        struct sim_stream *s = &w->streams[i];
        if (s->open && (s->client == node || s->server == node)) {
            sim_stream_end(w, i, s->server != node, s->client != node,
                           HEDGE_EUNAVAILABLE);
        }
    }
}

/* --- the lease --------------------------------------------------------------
 */

static struct engine_lease row_now(const struct sim *w)
{
    struct engine_lease l = w->row;

    l.held = w->ever && w->now < w->expires;
    l.remaining_ms = l.held ? w->expires - w->now : 0;
    l.idle_ms = l.held ? 0 : w->ever ? w->now - w->expires : UINT64_MAX;
    return l;
}

/* Runs one request and makes its reply; the node may be dead by then. */
static void engine_run(struct sim *w, const struct sim_event *req)
{
    struct sim_node *n = &w->nodes[req->node];
    struct sim_event reply = *req;
    bool current;

    reply.kind = SIM_ENGINE_REPLY;
    reply.lease = row_now(w);
    reply.status = 0;
    current = reply.lease.held && w->row.token == req->b;
    switch (req->op) {
    case ELECTION_OP_LOOK:
    case ELECTION_OP_NONE:
        break;
    case ELECTION_OP_ACQUIRE:
        if (reply.lease.held && (strcmp(w->row.holder, n->id) != 0 ||
                                 w->row.incarnation != req->a)) {
            reply.status = HEDGE_EBUSY;
            break;
        }
        (void)snprintf(w->row.holder, sizeof w->row.holder, "%s", n->id);
        (void)snprintf(w->row.address, sizeof w->row.address, "%s", n->address);
        w->row.incarnation = req->a;
        w->row.token++;
        w->expires = w->now + w->lease_ms;
        w->ever = true;
        reply.b = w->row.token;
        break;
    case ELECTION_OP_RENEW:
        reply.status = current ? 0 : HEDGE_EFENCED;
        w->expires = current ? w->now + w->lease_ms : w->expires;
        break;
    case ELECTION_OP_RELEASE:
        reply.status = w->row.token == req->b ? 0 : HEDGE_EFENCED;
        w->expires = current ? w->now : w->expires;
        break;
    }
    if (w->now < w->failing_until && sim_chance(w, 50)) {
        reply.status = HEDGE_ETIMEDOUT; /* It may have taken effect. */
    }
    if (bad_net(w) && sim_chance(w, 10)) { /* Told twice. */
        sim_push(w, &reply, sim_between(w, 0, 2 * w->lease_ms));
    }
    sim_push(w, &reply,
             w->now < w->slow_until ? sim_between(w, 0, w->lease_ms * 3 / 2)
                                    : sim_between(w, 0, 3));
}

/* --- a node: what a driver of the cores does --------------------------------
 */

static void node_membership(struct sim *w, struct sim_node *n,
                            const struct membership_event *ev);

static void node_timers(struct sim *w, struct sim_node *n)
{
    struct sim_event ev = {.node = n->index, .epoch = n->epoch};

    if (n->wake_e != ELECTION_NEVER) {
        ev.kind = SIM_TIMER_ELECTION;
        ev.a = n->wake_e;
        sim_push(w, &ev, n->wake_e > w->now ? n->wake_e - w->now : 0);
    }
}

static void node_follow(struct sim *w, struct sim_node *n)
{
    const struct election_leader *l = election_leader(&n->e);
    const struct membership_event ev = {.type = MEMBERSHIP_FOLLOW,
                                        .id = l->id,
                                        .address = l->address,
                                        .incarnation = l->incarnation,
                                        .token = l->token};

    node_membership(w, n, &ev);
}

static void node_won(struct sim *w, struct sim_node *n,
                     const struct election_actions *act)
{
    const struct membership_event ev = {.type = MEMBERSHIP_LEAD,
                                        .token = act->won_token,
                                        .idle_ms = act->won_idle_ms};

    sim_say(w, "%s leads, token %" PRIu64, n->id, act->won_token);
    if (act->won_token <= w->last_won) {
        sim_fail(w, "%s won with token %" PRIu64 " after %" PRIu64, n->id,
                 act->won_token, w->last_won);
    }
    if (w->stable) {
        sim_fail(w, "%s won while all was well", n->id);
    }
    w->last_won = act->won_token;
    w->wins++;
    node_membership(w, n, &ev);
}

static void node_election(struct sim *w, struct sim_node *n,
                          const struct election_event *ev)
{
    struct election_actions act;

    election_step(&n->e, ev, w->now, &act);
    if (act.lost) {
        sim_say(w, "%s has lost token %" PRIu64 ": %s", n->id, act.lost_token,
                election_lost_text(act.lost_reason));
        if (w->on_lead != NULL) {
            w->on_lead(w, n, 0);
        }
    }
    if (act.won) {
        node_won(w, n, &act);
        if (w->on_lead != NULL) {
            w->on_lead(w, n, act.won_token);
        }
    } else if (act.leader_changed) {
        node_follow(w, n);
    }
    if (act.op != ELECTION_OP_NONE) {
        struct sim_event req = {.kind = SIM_ENGINE_RUN,
                                .node = n->index,
                                .epoch = n->epoch,
                                .op = act.op,
                                .op_id = act.op_id,
                                .a = n->incarnation,
                                .b = act.op_token,
                                .started = w->now};
        sim_push(w, &req,
                 w->now < w->slow_until ? sim_between(w, 0, w->lease_ms)
                                        : sim_between(w, 0, 3));
    }
    n->wake_e = act.wake_ms;
    node_timers(w, n);
    if (act.stopped && n->stopping) {
        sim_say(w, "%s has stopped", n->id);
        sim_node_died(w, n);
    }
}

static void shadow_change(struct sim *w, struct sim_node *n,
                          const struct membership_change *c)
{
    size_t i = 0;

    if (c->type == MEMBERSHIP_LEADER) {
        return;
    }
    sim_say(w, "%s sees %s of %s/%" PRIu64 " %s", n->id,
            c->type == MEMBERSHIP_JOIN ? "join" : "leave", c->id,
            c->incarnation, membership_reason_text(c->reason));
    if (w->stable) {
        sim_fail(w, "%s saw members change while all was well", n->id);
    }
    w->changes++;
    while (i < n->n_shadow && strcmp(n->shadow[i].id, c->id) != 0) {
        i++;
    }
    if (c->type == MEMBERSHIP_JOIN) {
        if (i < n->n_shadow || n->n_shadow == SIM_NODES_MAX) {
            sim_fail(w, "%s: %s joins twice", n->id, c->id);
            return;
        }
        (void)snprintf(n->shadow[i].id, sizeof n->shadow[i].id, "%s", c->id);
        n->shadow[i].incarnation = c->incarnation;
        n->n_shadow++;
        return;
    }
    if (i == n->n_shadow || n->shadow[i].incarnation != c->incarnation) {
        sim_fail(w, "%s: %s/%" PRIu64 " leaves without having joined", n->id,
                 c->id, c->incarnation);
        return;
    }
    n->shadow[i] = n->shadow[--n->n_shadow];
}

static void send_list(struct sim *w, struct sim_node *n, uint64_t stream)
{
    struct sim_stream *s = &w->streams[stream];
    struct sim_event ev = {
        .kind = SIM_LIST, .from = n->index, .node = s->client};
    size_t count = membership_count(n->m);

    if (!s->open || s->client_epoch != w->nodes[s->client].epoch) {
        return;
    }
    ev.members = mem_alloc(count * sizeof *ev.members);
    if (ev.members == NULL) {
        abort();
    }
    for (size_t i = 0; i < count; i++) {
        ev.members[i] = *membership_at(n->m, i);
    }
    ev.n_members = count;
    ev.b = membership_version(n->m, &ev.a);
    send_message(w, &ev);
}

static void send_report(struct sim *w, struct sim_node *n, bool leaving)
{
    struct sim_event ev = {.kind = SIM_REPORT,
                           .from = n->index,
                           .a = n->stream,
                           .report = {.self = *membership_self(n->m),
                                      .wire_version = 1,
                                      .block_version = 1,
                                      .block_size = 1,
                                      .leaving = leaving}};

    if (n->stream == 0 || !w->streams[n->stream].open) {
        return;
    }
    ev.node = w->streams[n->stream].server;
    if (w->streams[n->stream].server_epoch == w->nodes[ev.node].epoch) {
        send_message(w, &ev);
    }
}

static struct sim_node *node_at(struct sim *w, const char *address)
{
    for (unsigned i = 0; i < w->n_nodes; i++) {
        if (strcmp(w->nodes[i].address, address) == 0) {
            return &w->nodes[i];
        }
    }
    return NULL;
}

static void open_stream(struct sim *w, struct sim_node *n)
{
    const struct membership_leader *l = membership_leader(n->m);
    struct sim_node *to = node_at(w, l->address);
    struct sim_stream *s;

    if (n->stream != 0) {
        sim_stream_end(w, n->stream, true, false, 0);
    }
    if (w->n_streams + 1 >= SIM_STREAMS_MAX) {
        sim_fail(w, "more than %d streams: a storm", SIM_STREAMS_MAX);
        n->stream = 0;
        return;
    }
    n->stream = ++w->n_streams;
    s = &w->streams[n->stream];
    s->client = n->index;
    s->client_epoch = n->epoch;
    s->token = l->token;
    s->open = true;
    s->accepted = false;
    if (to == NULL || !to->alive || w->cut[n->index][to->index]) {
        s->server = n->index;
        sim_stream_end(w, n->stream, false, true, HEDGE_EUNAVAILABLE);
        return;
    }
    s->server = to->index;
    s->server_epoch = to->epoch;
}

static void dial(struct sim *w, struct sim_node *n,
                 const struct membership_dial *d)
{
    struct sim_node *to = node_at(w, d->address);
    bool up = to != NULL && to->alive && !w->cut[n->index][to->index];
    /* One that is about to go says so. */
    bool refuses = to == NULL || !to->alive || (to->stopping && !to->paused);
    bool answers =
        up && !refuses && !to->paused && !(bad_net(w) && sim_chance(w, 15));
    struct sim_event done = {.kind = SIM_DIALED,
                             .node = n->index,
                             .epoch = n->epoch,
                             .from = to != NULL ? to->index : 0,
                             .a = d->incarnation,
                             .ok = answers};
    struct sim_event ev = {.kind = SIM_ANNOUNCE, .from = n->index};

    if (up) {
        ev.node = to->index;
        ev.lease.held = true;
        ev.lease.token = membership_leader(n->m)->token;
        ev.lease.incarnation = n->incarnation;
        (void)snprintf(ev.lease.holder, sizeof ev.lease.holder, "%s", n->id);
        (void)snprintf(ev.lease.address, sizeof ev.lease.address, "%s",
                       n->address);
        send_message(w, &ev);
    }
    sim_push(w, &done,
             answers || refuses ? sim_between(w, 0, 5) : DIAL_TIMEOUT_MS);
}

static void publish(struct sim *w, struct sim_node *n)
{
    for (uint64_t i = 1; i <= w->n_streams; i++) {
        struct sim_stream *s = &w->streams[i];
        if (s->open && s->accepted && s->server == n->index &&
            s->server_epoch == n->epoch) {
            send_list(w, n, i);
        }
    }
}

static void node_membership(struct sim *w, struct sim_node *n,
                            const struct membership_event *ev)
{
    struct membership_actions *out = &n->out;

    if (membership_step(n->m, ev, w->now, out) != 0) {
        sim_fail(w, "%s: the membership refuses an event", n->id);
        return;
    }
    for (size_t i = 0; i < out->n_changes; i++) {
        shadow_change(w, n, &out->changes[i]);
    }
    if (out->superseded) {
        sim_fail(w, "%s: another life of mine is said to exist", n->id);
    }
    for (size_t i = 0; i < out->n_closes; i++) {
        sim_stream_end(w, out->closes[i], false, true, HEDGE_ECLOSED);
    }
    for (size_t i = 0; i < out->n_dials; i++) {
        dial(w, n, &out->dials[i]);
    }
    if (ev->type == MEMBERSHIP_REPORT && out->verdict != 0) {
        sim_say(w, "%s refuses a report: %s", n->id, out->verdict_text);
        sim_stream_end(w, ev->session, false, true, out->verdict);
    } else if (ev->type == MEMBERSHIP_REPORT && !ev->report->leaving) {
        w->streams[ev->session].accepted = true;
    }
    if (out->publish) {
        publish(w, n);
    } else if (out->welcome) {
        send_list(w, n, ev->session);
    }
    if (out->connect) {
        open_stream(w, n);
    }
    if (out->report) {
        send_report(w, n, false);
    }
    n->wake_m = out->wake_ms;
    if (n->wake_m != MEMBERSHIP_NEVER) {
        struct sim_event timer = {.kind = SIM_TIMER_MEMBERSHIP,
                                  .node = n->index,
                                  .epoch = n->epoch,
                                  .a = n->wake_m};
        sim_push(w, &timer, n->wake_m > w->now ? n->wake_m - w->now : 0);
    }
}

/* --- lives and deaths -------------------------------------------------------
 */

void sim_node_start(struct sim *w, struct sim_node *n)
{
    struct membership_options mo = {.interval_ms = w->interval_ms,
                                    .wire_version = 1,
                                    .block_version = 1,
                                    .block_size = 1};
    struct election_options eo = {.lease_ms = w->lease_ms,
                                  .seed = sim_rnd(w),
                                  .id = n->id,
                                  .address = n->address};
    const struct election_event ev = {.type = ELECTION_START};

    if (n->alive) {
        return;
    }
    n->alive = true;
    n->epoch++;
    n->incarnation++;
    n->stopping = n->paused = false;
    n->inbox = NULL;
    n->inbox_end = &n->inbox;
    n->stream = 0;
    n->n_shadow = 1;
    (void)snprintf(n->shadow[0].id, sizeof n->shadow[0].id, "%s", n->id);
    n->shadow[0].incarnation = n->incarnation;
    (void)member_set_text(mo.self.id, sizeof mo.self.id, n->id);
    (void)member_set_text(mo.self.grpc_address, sizeof mo.self.grpc_address,
                          n->address);
    mo.self.incarnation = n->incarnation;
    eo.incarnation = n->incarnation;
    election_init(&n->e, &eo);
    if (membership_new(&mo, &n->m) != 0) {
        abort();
    }
    sim_say(w, "%s starts, incarnation %" PRIu64, n->id, n->incarnation);
    if (w->on_life != NULL) {
        w->on_life(w, n);
    }
    node_election(w, n, &ev);
}

/* The process has ended, by whatever way. */
void sim_node_died(struct sim *w, struct sim_node *n)
{
    if (!n->alive) {
        return;
    }
    n->alive = false;
    n->paused = false;
    n->epoch++;
    while (n->inbox != NULL) {
        struct sim_event *ev = n->inbox;
        n->inbox = ev->next;
        event_free(ev);
    }
    streams_of_node_end(w, n->index);
    membership_free(n->m);
    n->m = NULL;
    if (w->on_life != NULL) {
        w->on_life(w, n);
    }
}

void sim_node_stop(struct sim *w, struct sim_node *n)
{
    const struct election_event ev = {.type = ELECTION_STOP};

    sim_say(w, "%s is asked to stop", n->id);
    n->stopping = true;
    send_report(w, n, true);
    node_election(w, n, &ev);
}

void sim_node_pause(struct sim *w, struct sim_node *n, uint64_t ms)
{
    struct sim_event ev = {
        .kind = SIM_RESUME, .node = n->index, .epoch = n->epoch};

    sim_say(w, "%s is stopped (SIGSTOP) for %" PRIu64 " ms", n->id, ms);
    n->paused = true;
    n->paused_at = w->now;
    n->led_when_paused = election_is_leader(&n->e, w->now, NULL);
    sim_push(w, &ev, ms);
}

static void handle(struct sim *w, struct sim_node *n, struct sim_event *ev);

void sim_node_resume(struct sim *w, struct sim_node *n)
{
    struct sim_event *ev = n->inbox;

    if (!n->paused) {
        return;
    }
    sim_say(w, "%s goes on", n->id);
    if (n->led_when_paused && w->now - n->paused_at >= w->lease_ms &&
        election_is_leader(&n->e, w->now, NULL)) {
        sim_fail(w, "%s still leads after a pause longer than the lease",
                 n->id);
    }
    n->paused = false;
    n->inbox = NULL;
    n->inbox_end = &n->inbox;
    while (ev != NULL) {
        struct sim_event *next = ev->next;
        unsigned epoch = n->epoch;
        if (n->alive && epoch == ev->epoch) {
            handle(w, n, ev);
        }
        event_free(ev);
        ev = next;
    }
}

/* --- events of nodes --------------------------------------------------------
 */

static void handle_engine_reply(struct sim *w, struct sim_node *n,
                                const struct sim_event *ev)
{
    const struct election_event result = {.type = ELECTION_RESULT,
                                          .op_id = ev->op_id,
                                          .started_ms = ev->started,
                                          .status = ev->status,
                                          .token = ev->b,
                                          .lease = &ev->lease};

    node_election(w, n, &result);
}

static void handle_link_down(struct sim *w, struct sim_node *n,
                             const struct sim_event *ev)
{
    struct membership_event down = {
        .type = MEMBERSHIP_LINK_DOWN, .token = ev->b, .status = ev->status};
    struct election_event hint = {.type = ELECTION_HINT_VANISHED};

    if (n->stream != ev->a) {
        return;
    }
    n->stream = 0;
    node_membership(w, n, &down);
    node_election(w, n, &hint);
}

static void handle_list(struct sim *w, struct sim_node *n,
                        const struct sim_event *ev)
{
    const struct membership_list list = {.token = ev->a,
                                         .version = ev->b,
                                         .members = ev->members,
                                         .n_members = ev->n_members};
    const struct membership_event in = {.type = MEMBERSHIP_LIST, .list = &list};

    node_membership(w, n, &in);
}

static void handle_message(struct sim *w, struct sim_node *n,
                           const struct sim_event *ev)
{
    struct membership_event in = {0};
    struct election_event hint = {.type = ELECTION_HINT_LEADER,
                                  .lease = &ev->lease};

    switch (ev->kind) {
    case SIM_REPORT:
        in.type = MEMBERSHIP_REPORT;
        in.session = ev->a;
        in.report = &ev->report;
        node_membership(w, n, &in);
        break;
    case SIM_LIST:
        handle_list(w, n, ev);
        break;
    case SIM_ANNOUNCE:
        node_election(w, n, &hint);
        break;
    case SIM_DIALED:
        in.type = MEMBERSHIP_DIALED;
        in.id = w->nodes[ev->from].id;
        in.incarnation = ev->a;
        in.ok = ev->ok;
        node_membership(w, n, &in);
        break;
    case SIM_STREAM_BROKEN:
        in.type = MEMBERSHIP_STREAM_BROKEN;
        in.session = ev->a;
        node_membership(w, n, &in);
        break;
    default:
        abort();
    }
}

static void handle(struct sim *w, struct sim_node *n, struct sim_event *ev)
{
    const struct election_event tick = {.type = ELECTION_TICK};
    const struct membership_event mtick = {.type = MEMBERSHIP_TICK};

    switch (ev->kind) {
    case SIM_TIMER_ELECTION:
        if (ev->a == n->wake_e) { /* Not set anew since. */
            node_election(w, n, &tick);
        }
        break;
    case SIM_TIMER_MEMBERSHIP:
        if (ev->a == n->wake_m) {
            node_membership(w, n, &mtick);
        }
        break;
    case SIM_ENGINE_REPLY:
        handle_engine_reply(w, n, ev);
        break;
    case SIM_LINK_DOWN:
        handle_link_down(w, n, ev);
        break;
    default:
        handle_message(w, n, ev);
        break;
    }
}

/* --- a run ------------------------------------------------------------------
 */

static void dispatch(struct sim *w, struct sim_event *ev)
{
    struct sim_node *n = &w->nodes[ev->node];

    if (ev->kind >= SIM_TEST) {
        w->on_test_event(w, ev);
    } else if (ev->kind == SIM_START) {
        sim_node_start(w, n);
    } else if (ev->kind == SIM_ENGINE_RUN) {
        engine_run(w, ev); /* Also when the node is dead or stopped. */
    } else if (!n->alive || n->epoch != ev->epoch) {
        return;
    } else if (ev->kind == SIM_RESUME) {
        sim_node_resume(w, n);
    } else {
        handle(w, n, ev);
    }
}

static bool keep_for_later(struct sim *w, struct sim_event *ev)
{
    struct sim_node *n = &w->nodes[ev->node];

    if (ev->kind >= SIM_RESUME || ev->kind == SIM_ENGINE_RUN || !n->alive ||
        !n->paused || n->epoch != ev->epoch) {
        return false;
    }
    *n->inbox_end = ev;
    n->inbox_end = &ev->next;
    return true;
}

void sim_init(struct sim *w, uint64_t seed, bool trace, unsigned nodes_min)
{
    memset(w, 0, sizeof *w);
    w->seed = w->random = seed;
    w->trace = trace;
    w->now = 1000;
    w->n_nodes = (unsigned)sim_between(w, nodes_min, SIM_NODES_MAX);
    w->lease_ms = sim_between(w, 600, 6000);
    w->interval_ms = sim_between(w, 100, 1500);
    for (unsigned i = 0; i < w->n_nodes; i++) {
        struct sim_node *n = &w->nodes[i];
        struct sim_event start = {.kind = SIM_START, .node = i};
        n->index = i;
        (void)snprintf(n->id, sizeof n->id, "n%u", i);
        (void)snprintf(n->address, sizeof n->address, "grpc-n%u", i);
        sim_push(w, &start, sim_between(w, 0, 2000));
    }
}

void sim_run_until(struct sim *w, uint64_t end)
{
    while (w->n_heap > 0 && !w->failed && w->heap[0]->at <= end) {
        struct sim_event *ev = pop(w);

        w->now = ev->at;
        if (++w->events > SIM_EVENTS_MAX) {
            sim_fail(w, "events without end");
        }
        w->check(w); /* Before anybody has run a step. */
        if (keep_for_later(w, ev)) {
            continue;
        }
        dispatch(w, ev);
        w->check(w);
        event_free(ev);
    }
    w->now = end;
}

void sim_release(struct sim *w)
{
    for (unsigned i = 0; i < w->n_nodes; i++) {
        sim_node_died(w, &w->nodes[i]);
        membership_actions_release(&w->nodes[i].out);
    }
    while (w->n_heap > 0) {
        event_free(pop(w));
    }
    mem_free(w->heap);
}
