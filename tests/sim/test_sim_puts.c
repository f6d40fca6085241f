/* The way of puts in a whole cluster in one thread under one clock: the
 * election, membership and put queue cores of several nodes, the log of one
 * engine, and clients on every node that put, and believe what they are told.
 * Nodes crash, are stopped and sleep; the network between them loses and delays
 * what is forwarded, and loses, delays and repeats the answers. Everything
 * follows from a seed:
 *
 *   test_sim_puts               120 seeds from 1 on
 *   test_sim_puts SEED          that one, telling what happens
 *   HEDGE_SIM_SEED=SEED, HEDGE_SIM_RUNS=N   begin there, so many
 *
 * At any time:
 *   - no put is in the log twice;
 *   - a put that was acknowledged is in the log, with the revision it was told,
 *     which is above all that had been acknowledged when it began;
 *   - a put of which it was said that it was not written is not in the log, and
 *     never gets there.
 * Once the faults are over every put succeeds. */
#include "cluster/log/put_queue.h"
#include "store/base/mem.h"
#include "tests/lib/sim.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define END_MS 130000u
#define HEAL_MS 90000u
#define WELL_MS 110000u /* From here on nothing may fail, */
#define LAST_MS 120000u /* and from here on nothing begins. */
#define PUTS_MAX 16384u
#define FLIGHTS 2u /* As many as kv.c has threads that send. */
#define PUMP_MS 20u
#define RETRY_MS 20u
#define BUDGET ((uint64_t)1 << 20)

enum {
    SIM_FAULT = SIM_TEST,
    SIM_HEAL,
    SIM_PUT,       /* A client wants something. */
    SIM_PUMP,      /* A node looks what there is to do. */
    SIM_APPEND,    /* An append takes effect, */
    SIM_APPENDED,  /* and its result reaches the node. */
    SIM_FORWARD,   /* Puts reach the node taken for the leader, */
    SIM_FORWARDED, /* and their result whoever sent them. */
    SIM_GIVEN_UP   /* It has not come in time. */
};

/* What a client knows of its put, and what is so. */
enum belief { UNDER_WAY, WRITTEN, NOT_WRITTEN, UNKNOWN };
struct record {
    enum belief belief;
    bool when_well;
    unsigned node;
    uint64_t floor; /* Acknowledged before it began. */
    unsigned in_log;
    uint64_t revision;
    unsigned char request[ENGINE_REQUEST_SIZE];
};

/* An operation in a node's queue: of a client, or of another node. */
struct item {
    struct kv_op op;
    struct list live;
    bool relayed;
    unsigned from, from_epoch;
    uint64_t flight;
    struct engine_put puts[];
};

/* Puts on their way. */
struct parcel {
    uint64_t id, token, deadline_ms;
    int status;
    struct hedge_error error;
    size_t n;
    struct engine_put puts[];
};

struct flight {
    uint64_t id;       /* 0: free. */
    uint64_t pause_ms; /* Until then, after one that failed. */
    struct list batch;
};

struct server {
    struct put_queue q;
    uint64_t token; /* 0: it does not lead. */
    struct list live;
    struct flight append, flights[FLIGHTS];
};

static struct sim world; /* Large. */
static struct server servers[SIM_NODES_MAX];
static struct record records[PUTS_MAX];
static unsigned numbers[PUTS_MAX]; /* Keys: their own places. */
static unsigned n_puts;
static uint64_t term, revision, acknowledged, next_id;
static uint64_t totals[4]; /* Written, repeated, not written, unknown. */

static void pump(struct sim *w, struct sim_node *n);

static unsigned number_of(const struct engine_put *p)
{
    return *(const unsigned *)p->key;
}

static void *need(void *p)
{
    if (p == NULL) {
        abort();
    }
    return p;
}

static struct parcel *parcel_new(size_t n)
{
    return need(
        mem_calloc(1, sizeof(struct parcel) + n * sizeof(struct engine_put)));
}

/* --- the log ----------------------------------------------------------------
 */

static void append_one(struct sim *w, struct engine_put *p)
{
    static const unsigned char none[ENGINE_REQUEST_SIZE];
    struct record *r = &records[number_of(p)];
    bool has_id = memcmp(p->request, none, sizeof none) != 0;

    if (has_id && memcmp(r->request, p->request, sizeof none) == 0) {
        p->repeated = true;
        p->revision = r->revision;
        totals[1]++;
        return;
    }
    p->revision = r->revision = ++revision;
    memcpy(r->request, p->request, sizeof r->request);
    if (++r->in_log > 1) {
        sim_fail(w, "put %u is in the log twice", number_of(p));
    }
    if (r->belief == NOT_WRITTEN) {
        sim_fail(w, "put %u is written after all", number_of(p));
    }
}

/* The engine's, whatever has become of the node. */
static void log_append(struct sim *w, struct sim_event *ev)
{
    struct parcel *p = ev->data;
    struct sim_event said = {
        .kind = SIM_APPENDED, .node = ev->node, .epoch = ev->epoch, .data = p};

    ev->data = NULL;
    if (w->now < w->failing_until && sim_chance(w, 50)) {
        p->status = error_set(&p->error, HEDGE_ETIMEDOUT, "no turn to write");
    } else if (p->token < term) {
        p->status = error_set(&p->error, HEDGE_EFENCED, "a stale token");
    } else {
        term = p->token;
        for (size_t i = 0; i < p->n; i++) {
            append_one(w, &p->puts[i]);
        }
    }
    sim_push(w, &said, sim_between(w, 0, 2));
}

/* --- the network ------------------------------------------------------------
 */

static uint64_t delay(struct sim *w)
{
    return w->now < w->bad_net_until && sim_chance(w, 30)
               ? sim_between(w, 0, 1500)
               : sim_between(w, 0, 3);
}

/* A call gets there once or not at all, as with gRPC: what is repeated is
 * repeated by the queue. Answers may come twice. */
static void send(struct sim *w, int kind, unsigned from, unsigned to,
                 unsigned epoch, const struct parcel *p)
{
    bool bad = w->now < w->bad_net_until;
    unsigned copies = 1;

    if (w->cut[from][to] || (bad && sim_chance(w, 20))) {
        copies = 0;
    } else if (bad && kind == SIM_FORWARDED && sim_chance(w, 20)) {
        copies = 2;
    }
    for (unsigned i = 0; i < copies; i++) {
        struct sim_event ev = {
            .kind = kind, .node = to, .epoch = epoch, .from = from};
        struct parcel *copy = parcel_new(p->n);

        memcpy(copy, p, sizeof *p + p->n * sizeof p->puts[0]);
        ev.a = w->nodes[from].epoch;
        ev.data = copy;
        sim_push(w, &ev, delay(w));
    }
}

/* --- a client ---------------------------------------------------------------
 */

static bool says_not_written(int status, const struct hedge_error *e)
{
    return status == HEDGE_ENOLEADER || status == HEDGE_ENOTLEADER ||
           status == HEDGE_EFENCED ||
           (strstr(e->text, "nothing was written") != NULL &&
            strstr(e->text, "may yet happen") == NULL);
}

static void client_told(struct sim *w, const struct kv_op *op)
{
    const struct engine_put *p = &op->puts[0];
    struct record *r = &records[number_of(p)];

    sim_say(w, "put %u of %u: %d %s %s", number_of(p), r->node, op->status,
            op->error.text, op->sent ? "(sent)" : "");
    if (op->status == 0) {
        r->belief = WRITTEN;
        totals[0]++;
        if (r->in_log != 1 || r->revision != p->revision) {
            sim_fail(w, "put %u has revision %" PRIu64 " and is not there",
                     number_of(p), p->revision);
        }
        if (p->revision <= r->floor) {
            sim_fail(w,
                     "put %u has revision %" PRIu64 ", %" PRIu64
                     " was there before",
                     number_of(p), p->revision, r->floor);
        }
        acknowledged = p->revision > acknowledged ? p->revision : acknowledged;
        return;
    }
    if (r->when_well) {
        sim_fail(w, "put %u failed while all was well: %s", number_of(p),
                 op->error.text);
    }
    r->belief = UNKNOWN;
    totals[says_not_written(op->status, &op->error) ? 2 : 3]++;
    if (says_not_written(op->status, &op->error)) {
        r->belief = NOT_WRITTEN;
        if (r->in_log != 0) {
            sim_fail(w, "put %u is written, and said not to be: %s",
                     number_of(p), op->error.text);
        }
    }
}

static struct item *item_new(struct sim_node *n, size_t n_puts_of_it,
                             uint64_t deadline_ms)
{
    struct server *s = &servers[n->index];
    struct item *it = need(
        mem_calloc(1, sizeof *it + n_puts_of_it * sizeof(struct engine_put)));

    it->op.puts = it->puts;
    it->op.n = n_puts_of_it;
    it->op.deadline_ms = deadline_ms;
    list_init(&it->live);
    list_push(&s->live, &it->live);
    return it;
}

static void push(struct sim *w, struct sim_node *n, struct item *it)
{
    struct server *s = &servers[n->index];

    put_queue_op_init(&it->op);
    if (put_queue_charge(&s->q, it->op.charge, false, NULL) != 0) {
        sim_fail(w, "there is no room in a queue");
    }
    put_queue_push(&s->q, &it->op);
    pump(w, n);
}

static void client_puts(struct sim *w, struct sim_node *n)
{
    const struct sim_event again = {.kind = SIM_PUT, .node = n->index};
    struct record *r = &records[n_puts];
    struct item *it;

    if (w->now >= LAST_MS || n_puts == PUTS_MAX) {
        return;
    }
    sim_push(w, &again, sim_between(w, 1, 400));
    if (!n->alive || n->paused || n->stopping) {
        return;
    }
    it = item_new(n, 1, w->now + sim_between(w, 100, 8000));
    if (w->now >= WELL_MS) {
        r->when_well = true;
        it->op.deadline_ms = w->now + 8000;
    }
    r->node = n->index;
    r->floor = acknowledged;
    it->puts[0].key = &numbers[n_puts];
    it->puts[0].key_len = sizeof numbers[0];
    n_puts++;
    push(w, n, it);
}

/* --- a node -----------------------------------------------------------------
 */

static void item_free(struct item *it)
{
    list_remove(&it->live);
    mem_free(it);
}

static void tell(struct sim *w, struct sim_node *n, struct list *ended)
{
    struct list *l;

    while ((l = list_pop(ended)) != NULL) {
        struct kv_op *op = container_of(l, struct kv_op, link);
        struct item *it = container_of(op, struct item, op);

        if (it->relayed) {
            struct parcel *p = parcel_new(op->n);

            p->id = it->flight;
            p->status = op->status;
            p->error = op->error;
            p->n = op->n;
            memcpy(p->puts, op->puts, op->n * sizeof p->puts[0]);
            send(w, SIM_FORWARDED, n->index, it->from, it->from_epoch, p);
            mem_free(p);
        } else {
            client_told(w, op);
        }
        item_free(it);
    }
}

static void parcel_fill(struct parcel *p, struct list *batch, size_t n)
{
    p->n = n;
    put_queue_copy_in(p->puts, batch);
}

static void append(struct sim *w, struct sim_node *n)
{
    struct server *s = &servers[n->index];
    struct sim_event ev = {
        .kind = SIM_APPEND, .node = n->index, .epoch = n->epoch};
    uint64_t deadline_ms;
    struct parcel *p;
    size_t puts;

    list_init(&s->append.batch);
    puts = put_queue_take(&s->q, s->token, &s->append.batch, &deadline_ms);
    if (puts == 0) {
        return;
    }
    p = parcel_new(puts);
    parcel_fill(p, &s->append.batch, puts);
    p->id = s->append.id = ++next_id;
    p->token = s->token;
    ev.data = p;
    sim_push(w, &ev,
             w->now < w->slow_until ? sim_between(w, 0, w->lease_ms * 3 / 2)
                                    : sim_between(w, 1, 5));
}

static struct sim_node *leader_for(struct sim *w, const struct sim_node *n)
{
    const char *id = election_leader(&n->e)->id;

    for (unsigned i = 0; i < w->n_nodes; i++) {
        if (strcmp(w->nodes[i].id, id) == 0) {
            return &w->nodes[i];
        }
    }
    return NULL;
}

static void came_back(struct sim *w, struct sim_node *n, struct flight *f,
                      int rv, const struct hedge_error *e)
{
    struct server *s = &servers[n->index];
    struct list ended;

    list_init(&ended);
    f->id = 0;
    sim_say(w, "%s: forward ended %d %s", n->id, rv, e->text);
    if (put_queue_forwarded(&s->q, &f->batch, rv, e, w->now, &ended)) {
        f->pause_ms = w->now + RETRY_MS;
    }
    tell(w, n, &ended);
}

static void make_id(struct sim *w, struct engine_put *p)
{
    static const unsigned char none[ENGINE_REQUEST_SIZE];

    while (memcmp(p->request, none, sizeof none) == 0) {
        uint64_t a = sim_rnd(w);

        memcpy(p->request, &a, sizeof a);
    }
}

static void forward(struct sim *w, struct sim_node *n, struct flight *f)
{
    struct server *s = &servers[n->index];
    struct sim_event late = {
        .kind = SIM_GIVEN_UP, .node = n->index, .epoch = n->epoch};
    struct sim_node *to = leader_for(w, n);
    struct hedge_error e = {0};
    uint64_t deadline_ms, left_ms;
    struct parcel *p;
    struct list *l;
    size_t puts;

    list_init(&f->batch);
    puts = put_queue_take(&s->q, 0, &f->batch, &deadline_ms);
    list_foreach (l, &f->batch) {
        make_id(w, container_of(l, struct kv_op, link)->puts);
    }
    if (to == NULL || to == n) {
        came_back(w, n, f, error_set(&e, HEDGE_ENOLEADER, "no leader"), &e);
        return;
    }
    left_ms = put_queue_left_ms(deadline_ms, w->now);
    p = parcel_new(puts);
    parcel_fill(p, &f->batch, puts);
    p->id = f->id = ++next_id;
    sim_say(w, "%s forwards %zu from put %u to %s", n->id, puts,
            number_of(&p->puts[0]), to->id);
    p->deadline_ms = w->now + left_ms;
    send(w, SIM_FORWARD, n->index, to->index, to->epoch, p);
    mem_free(p);
    late.a = f->id;
    sim_push(w, &late, left_ms);
}

static bool is_free(const struct sim *w, const struct flight *f)
{
    return f->id == 0 && w->now >= f->pause_ms;
}

/* What kv.c's threads do when they look. */
static void pump(struct sim *w, struct sim_node *n)
{
    struct server *s = &servers[n->index];
    struct list ended;

    list_init(&ended);
    s->q.leading = s->token != 0;
    put_queue_weed(&s->q, s->token != 0, s->token, w->now, &ended);
    tell(w, n, &ended);
    if (s->token != 0 && is_free(w, &s->append) && s->q.n_queued > 0) {
        append(w, n);
    }
    for (unsigned i = 0; i < FLIGHTS; i++) {
        if (is_free(w, &s->flights[i]) && put_queue_for_others(&s->q)) {
            forward(w, n, &s->flights[i]);
        }
    }
}

static void appended(struct sim *w, struct sim_node *n, struct parcel *p)
{
    struct server *s = &servers[n->index];
    struct list ended;

    if (s->append.id != p->id) {
        sim_fail(w, "a result that nobody waits for");
        return;
    }
    s->append.id = 0;
    list_init(&ended);
    if (p->status == 0) {
        put_queue_copy_out(p->puts, &s->append.batch);
    }
    sim_say(w, "%s: append ended %d, first put %u", n->id, p->status,
            number_of(&p->puts[0]));
    if (put_queue_appended(&s->q, &s->append.batch, p->status, &p->error, false,
                           w->now, &ended)) {
        s->append.pause_ms = w->now + RETRY_MS;
    }
    tell(w, n, &ended);
    pump(w, n);
}

static void received(struct sim *w, struct sim_node *n, struct sim_event *ev)
{
    const struct parcel *p = ev->data;
    struct item *it = item_new(n, p->n, p->deadline_ms);

    it->relayed = true;
    it->from = ev->from;
    it->from_epoch = (unsigned)ev->a;
    it->flight = p->id;
    it->op.flags = KV_LEADER_ONLY;
    memcpy(it->puts, p->puts, p->n * sizeof p->puts[0]);
    push(w, n, it);
}

static struct flight *flight_of(struct sim_node *n, uint64_t id)
{
    struct server *s = &servers[n->index];

    for (unsigned i = 0; i < FLIGHTS; i++) {
        if (s->flights[i].id == id) {
            return &s->flights[i];
        }
    }
    return NULL;
}

static void answered(struct sim *w, struct sim_node *n, const struct parcel *p)
{
    struct flight *f = flight_of(n, p->id);

    if (f == NULL) {
        return; /* Too late, or once more. */
    }
    if (p->status == 0) {
        put_queue_copy_out(p->puts, &f->batch);
    }
    came_back(w, n, f, p->status, &p->error);
    pump(w, n);
}

static void given_up(struct sim *w, struct sim_node *n, uint64_t id)
{
    struct flight *f = flight_of(n, id);
    struct hedge_error e = {0};

    if (f != NULL) {
        (void)error_set(&e, HEDGE_ETIMEDOUT, "the leader does not answer");
        came_back(w, n, f, HEDGE_ETIMEDOUT, &e);
        pump(w, n);
    }
}

static void on_lead(struct sim *w, struct sim_node *n, uint64_t token)
{
    servers[n->index].token = token;
    pump(w, n);
}

static void on_life(struct sim *w, struct sim_node *n)
{
    struct server *s = &servers[n->index];
    const struct sim_event ev = {
        .kind = SIM_PUMP, .node = n->index, .epoch = n->epoch};

    if (n->alive) {
        memset(s, 0, sizeof *s);
        put_queue_init(&s->q, BUDGET);
        list_init(&s->live);
        sim_push(w, &ev, PUMP_MS);
        return;
    }
    while (!list_empty(&s->live)) { /* Its clients are gone as well. */
        struct item *it = container_of(s->live.next, struct item, live);

        if (!it->relayed) {
            records[number_of(&it->puts[0])].belief = UNKNOWN;
            totals[3]++;
        }
        item_free(it);
    }
}

/* --- faults -----------------------------------------------------------------
 */

static void fault_node(struct sim *w, struct sim_node *n)
{
    struct sim_event start = {.kind = SIM_START, .node = n->index};

    if (!n->alive) {
        sim_node_start(w, n);
        return;
    }
    if (n->paused || n->stopping) {
        return;
    }
    switch (sim_rnd(w) % 3) {
    case 0:
        sim_node_pause(w, n, sim_between(w, 10, 3 * w->lease_ms));
        break;
    case 1:
        sim_say(w, "%s is killed", n->id);
        sim_node_died(w, n);
        sim_push(w, &start, sim_between(w, 1, 2 * w->lease_ms));
        break;
    default:
        sim_node_stop(w, n);
        sim_push(w, &start, sim_between(w, 1000, 1000 + 2 * w->lease_ms));
        break;
    }
}

/* The machine sleeps: its clock jumps, for all at once. */
static void fault_suspend(struct sim *w)
{
    uint64_t ms = sim_between(w, 100, 3 * w->lease_ms);

    for (unsigned i = 0; i < w->n_nodes; i++) {
        if (w->nodes[i].alive && !w->nodes[i].paused) {
            sim_node_pause(w, &w->nodes[i], ms);
        }
    }
}

static void fault(struct sim *w)
{
    const struct sim_event next = {.kind = SIM_FAULT};
    uint64_t dice = sim_rnd(w) % 100;
    unsigned i = (unsigned)(sim_rnd(w) % w->n_nodes);
    unsigned k = (unsigned)(sim_rnd(w) % w->n_nodes);

    if (w->now >= HEAL_MS) {
        return;
    }
    if (dice < 45) {
        fault_node(w, &w->nodes[i]);
    } else if (dice < 65) {
        w->bad_net_until = w->now + sim_between(w, 0, 4000);
    } else if (dice < 75) {
        w->cut[i][k] = w->cut[k][i] = i != k && !w->cut[i][k];
    } else if (dice < 85) {
        w->slow_until = w->now + sim_between(w, 0, 3000);
    } else if (dice < 96) {
        w->failing_until = w->now + sim_between(w, 0, 3000);
    } else {
        fault_suspend(w);
    }
    sim_push(w, &next, sim_between(w, 10, 2000));
}

static void heal(struct sim *w)
{
    sim_say(w, "all faults end");
    w->healed = true;
    w->bad_net_until = w->slow_until = w->failing_until = 0;
    memset(w->cut, 0, sizeof w->cut);
    for (unsigned i = 0; i < w->n_nodes; i++) {
        struct sim_event start = {.kind = SIM_START, .node = i};

        sim_node_resume(w, &w->nodes[i]);
        sim_push(w, &start, 0);
        sim_push(w, &start, 10000); /* Those that were stopping. */
    }
}

/* --- the run ----------------------------------------------------------------
 */

static void check_end(struct sim *w)
{
    for (unsigned i = 0; i < n_puts; i++) {
        const struct record *r = &records[i];

        if (r->belief == UNDER_WAY) {
            sim_fail(w, "put %u of node %u has not ended", i, r->node);
        } else if (r->belief == WRITTEN && r->in_log != 1) {
            sim_fail(w, "put %u was acknowledged and is lost", i);
        }
    }
}

/* Not while the node is stopped. */
static bool comes_later(struct sim *w, struct sim_event *ev)
{
    struct sim_event copy = *ev;

    if (!w->nodes[ev->node].paused) {
        return false;
    }
    ev->data = NULL;
    sim_push(w, &copy, sim_between(w, 20, 60));
    return true;
}

static void on_node_event(struct sim *w, struct sim_event *ev)
{
    const struct sim_event again = {
        .kind = SIM_PUMP, .node = ev->node, .epoch = ev->epoch};
    struct sim_node *n = &w->nodes[ev->node];

    if (!n->alive || n->epoch != ev->epoch || comes_later(w, ev)) {
        return;
    }
    switch (ev->kind) {
    case SIM_PUMP:
        sim_push(w, &again, PUMP_MS);
        pump(w, n);
        break;
    case SIM_APPENDED:
        appended(w, n, ev->data);
        break;
    case SIM_FORWARD:
        received(w, n, ev);
        break;
    case SIM_FORWARDED:
        answered(w, n, ev->data);
        break;
    case SIM_GIVEN_UP:
        given_up(w, n, ev->a);
        break;
    default:
        break;
    }
}

static void on_event(struct sim *w, struct sim_event *ev)
{
    switch (ev->kind) {
    case SIM_FAULT:
        fault(w);
        break;
    case SIM_HEAL:
        heal(w);
        break;
    case SIM_PUT:
        client_puts(w, &w->nodes[ev->node]);
        break;
    case SIM_APPEND:
        log_append(w, ev); /* Also when the node is dead or stopped. */
        break;
    default:
        on_node_event(w, ev);
        break;
    }
}

static void check_always(struct sim *w)
{
    (void)w; /* Whoever changes something looks. */
}

static bool run(uint64_t seed, bool trace)
{
    struct sim *w = &world;
    const struct sim_event ev_fault = {.kind = SIM_FAULT};
    const struct sim_event ev_heal = {.kind = SIM_HEAL};

    memset(servers, 0, sizeof servers);
    memset(records, 0, sizeof records);
    n_puts = 0;
    term = revision = acknowledged = next_id = 0;
    for (unsigned i = 0; i < PUTS_MAX; i++) {
        numbers[i] = i;
    }
    for (unsigned i = 0; i < SIM_NODES_MAX; i++) {
        put_queue_init(&servers[i].q, BUDGET);
        list_init(&servers[i].live);
    }
    sim_init(w, seed, trace, 1);
    w->check = check_always;
    w->on_test_event = on_event;
    w->on_lead = on_lead;
    w->on_life = on_life;
    for (unsigned i = 0; i < w->n_nodes; i++) {
        const struct sim_event put = {.kind = SIM_PUT, .node = i};

        sim_push(w, &put, sim_between(w, 0, 500));
    }
    sim_push(w, &ev_fault, 3000);
    sim_push(w, &ev_heal, HEAL_MS - w->now);
    sim_run_until(w, END_MS);
    if (!w->failed) {
        check_end(w);
    }
    sim_release(w);
    return !w->failed;
}

int main(int argc, char **argv)
{
    const char *env_seed = getenv("HEDGE_SIM_SEED");
    const char *env_runs = getenv("HEDGE_SIM_RUNS");
    uint64_t seed = env_seed != NULL ? strtoull(env_seed, NULL, 10) : 1;
    uint64_t runs = env_runs != NULL ? strtoull(env_runs, NULL, 10) : 120;

    if (argc > 1) {
        return run(strtoull(argv[1], NULL, 10), true) ? 0 : 1;
    }
    printf("seeds %" PRIu64 " to %" PRIu64 "\n", seed, seed + runs - 1);
    for (uint64_t i = 0; i < runs; i++) {
        if (!run(seed + i, false)) {
            fprintf(stderr, "again: %s %" PRIu64 "\n", argv[0], seed + i);
            return 1;
        }
    }
    printf("%" PRIu64 " puts written, %" PRIu64 " of them asked for again, "
           "%" PRIu64 " not written, %" PRIu64 " unknown to their clients\n",
           totals[0], totals[1], totals[2], totals[3]);
    return 0;
}
