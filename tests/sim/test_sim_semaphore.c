/* Semaphores in a whole cluster in one thread under one clock: the election,
 * membership and semaphore cores of several nodes, one engine, and holders on
 * machines of their own, whose clocks run a little faster or slower. They open
 * sessions, wait in line, hold, release, give up, crash and are stopped, over
 * a network that loses, repeats and reorders, through nodes that forward to
 * whom they take for the leader. Everything follows from a seed:
 *
 *   test_sim_semaphore          120 seeds from 1 on
 *   test_sim_semaphore SEED     that one, telling what happens
 *   HEDGE_SIM_SEED=SEED, HEDGE_SIM_RUNS=N   begin there, so many
 *
 * After every event:
 *   - of no semaphore are more permits held than there are, by what the holders
 *     themselves believe at that moment, also those that are stopped;
 *   - each leader's lines are in order, and nobody waits who could be granted.
 * With each grant of a semaphore of one: its token is greater than the last.
 * After the faults everybody gets what they wait for, and when all have let
 * go, nothing is left in the engine. */
#include "cluster/locks/sem_view.h"
#include "cluster/locks/semaphore.h"
#include "store/base/mem.h"
#include "tests/lib/sim.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define END_MS 150000u
#define HEAL_MS 90000u
#define LAST_ACQUIRE_MS 110000u
#define HOLDERS 8
#define NAMES 3
#define ROWS_MAX 256

enum {
    SIM_FAULT = SIM_TEST,
    SIM_HEAL,
    SIM_CORE_TIMER,
    SIM_TO_NODE,    /* A call reaches a node. */
    SIM_ANSWER,     /* Its answer reaches the holder. */
    SIM_ENGINE_DO,  /* An append or a load takes effect, */
    SIM_ENGINE_SAY, /* and its result reaches the node. */
    SIM_HOLDER_TIMER
};

/* A call on its way, and in a core. */
struct message {
    struct semaphore_call call;
    struct list live; /* Of the node it is in. */
    unsigned holder, holder_epoch;
    uint64_t started_ms; /* On the holder's clock. */
    unsigned hops;
};

/* An answer on its way: what a holder looks at. */
struct reply {
    struct semaphore_call call; /* A copy; its pointers are not to be used. */
    uint64_t started_ms;
    bool queued; /* Only tells the place in line. */
    size_t n_held;
    struct semaphore_held held[8];
};

struct engine_job {
    uint64_t id, term;
    bool load, failed;
    size_t n;
    struct semaphore_row rows[];
};

struct engine_result {
    uint64_t id;
    int status;
    bool load;
    size_t n;
    uint64_t revisions[ROWS_MAX];
    struct semaphore_row rows[];
};

struct server {
    struct semaphores *core;
    struct list live;
    uint64_t term, wake_ms;
    uint64_t engine_free_ms; /* Its jobs are done in their order. */
};

enum doing { RESTING, WAITING, HOLDING, LETTING_GO, GIVING_UP };

struct person {
    unsigned index, epoch;
    bool paused, dead;
    uint64_t resume_ms;
    int64_t ppm; /* How much faster its clock runs. */
    uint64_t session, lease_ms, renew_ms;
    bool opened;
    struct sem_view view;
    enum doing doing;
    unsigned name;
    uint32_t permits, attempt;
    uint64_t request, token, until_ms, wait_ms, order_term, order;
    uint64_t next_ms;  /* What it does by itself next. */
    uint64_t again_ms; /* It sends its request again. */
    uint64_t give_up_ms;
};

static struct sim world; /* Large. */
static struct server servers[SIM_NODES_MAX];
static struct person people[HOLDERS];
static struct {
    struct {
        struct semaphore_row row;
        uint64_t revision;
    } rows[ROWS_MAX];
    size_t n;
    uint64_t term, revision;
} disk;
static uint32_t limits[NAMES];
static uint64_t last_token[NAMES];
static uint64_t next_number;
static uint64_t totals[4]; /* Grants, lost grants, revocations, events. */

static const char *const names[NAMES] = {"lock", "three", "seven"};

/* --- the engine -------------------------------------------------------------
 */

static size_t find_row(const struct semaphore_row *row)
{
    size_t i = 0;

    while (i < disk.n && (disk.rows[i].row.session != row->session ||
                          disk.rows[i].row.request != row->request ||
                          strcmp(disk.rows[i].row.name, row->name) != 0)) {
        i++;
    }
    return i;
}

static uint64_t write_row(struct sim *w, const struct semaphore_row *row)
{
    size_t i = find_row(row);

    disk.revision++;
    if (row->deleted) {
        if (i < disk.n) { /* They stay in the order of their tokens. */
            memmove(&disk.rows[i], &disk.rows[i + 1],
                    (--disk.n - i) * sizeof disk.rows[0]);
        }
        return disk.revision;
    }
    if (i == ROWS_MAX) {
        sim_fail(w, "too many rows");
        return disk.revision;
    }
    disk.n += i == disk.n;
    disk.rows[i].row = *row;
    disk.rows[i].revision = disk.revision;
    return disk.revision;
}

static struct engine_result *run_job(struct sim *w, const struct engine_job *j)
{
    size_t n = j->load ? disk.n : 0;
    struct engine_result *r = mem_calloc(1, sizeof *r + n * sizeof r->rows[0]);

    if (r == NULL) {
        abort();
    }
    r->id = j->id;
    r->load = j->load;
    if (j->term < disk.term) {
        r->status = HEDGE_EFENCED;
        return r;
    }
    disk.term = j->term;
    for (size_t i = 0; i < j->n; i++) {
        r->revisions[i] = write_row(w, &j->rows[i]);
    }
    r->n = n;
    for (size_t i = 0; i < n; i++) {
        r->rows[i] = disk.rows[i].row;
        if (r->rows[i].token == 0) {
            r->rows[i].token = disk.rows[i].revision;
        }
    }
    return r;
}

static void say_result(struct sim *w, unsigned node, unsigned epoch,
                       struct engine_result *r, uint64_t delay)
{
    struct sim_event ev = {
        .kind = SIM_ENGINE_SAY, .node = node, .epoch = epoch, .data = r};

    sim_push(w, &ev, delay);
}

static void engine_do(struct sim *w, struct sim_event *ev)
{
    const struct engine_job *j = ev->data;
    struct engine_result *r = run_job(w, j);

    if (j->failed) { /* It was told before, and has happened all the same. */
        mem_free(r);
        return;
    }
    say_result(w, ev->node, ev->epoch, r, sim_between(w, 0, 3));
}

static void ask_engine(struct sim *w, unsigned node, struct engine_job *j)
{
    struct server *s = &servers[node];
    struct sim_event ev = {.kind = SIM_ENGINE_DO,
                           .node = node,
                           .epoch = w->nodes[node].epoch,
                           .data = j};
    uint64_t at = w->now + (w->now < w->slow_until ? sim_between(w, 0, 2000)
                                                   : sim_between(w, 0, 4));

    if (at <= s->engine_free_ms) {
        at = s->engine_free_ms + 1;
    }
    s->engine_free_ms = at;
    if (w->now < w->failing_until && sim_chance(w, 40)) {
        struct engine_result *r = mem_calloc(1, sizeof *r);
        if (r == NULL) {
            abort();
        }
        r->id = j->id;
        r->load = j->load;
        r->status = HEDGE_ETIMEDOUT;
        say_result(w, node, ev.epoch, r, sim_between(w, 0, at - w->now));
        j->failed = true;
        if (sim_chance(w, 50)) { /* Nothing happens at all. */
            mem_free(j);
            return;
        }
    }
    sim_push(w, &ev, at - w->now);
}

/* --- a node -----------------------------------------------------------------
 */

static uint64_t delay(struct sim *w)
{
    return w->now < w->bad_net_until && sim_chance(w, 30)
               ? sim_between(w, 0, 1500)
               : sim_between(w, 0, 3);
}

static bool is_lost(struct sim *w)
{
    return w->now < w->bad_net_until && sim_chance(w, 15);
}

static void send_reply(struct sim *w, const struct message *m, bool queued)
{
    const struct semaphore_call *c = &m->call;
    struct sim_event ev = {
        .kind = SIM_ANSWER, .node = m->holder, .epoch = m->holder_epoch};
    unsigned copies = is_lost(w)                                       ? 0
                      : w->now < w->bad_net_until && sim_chance(w, 10) ? 2
                                                                       : 1;

    for (unsigned i = 0; i < copies; i++) {
        struct reply *r = mem_calloc(1, sizeof *r);
        if (r == NULL) {
            abort();
        }
        r->call = *c;
        r->started_ms = m->started_ms;
        r->queued = queued;
        for (size_t k = 0; k < c->n_held && k < 8; k++) {
            r->held[r->n_held++] = c->held[k];
        }
        ev.data = r;
        sim_push(w, &ev, delay(w));
    }
}

static void free_message(struct message *m)
{
    mem_free(m->call.held);
    mem_free(m->call.list);
    list_remove(&m->live);
    mem_free(m);
}

static void carry_out(struct sim *w, struct sim_node *n,
                      struct semaphore_actions *a)
{
    struct server *s = &servers[n->index];
    struct list *l;
    const char *wrong;

    while ((l = list_pop(&a->answers)) != NULL) {
        struct message *m = container_of(
            container_of(l, struct semaphore_call, link), struct message, call);
        send_reply(w, m, false);
        free_message(m);
    }
    if (a->load_id != 0 || a->append_id != 0) {
        struct engine_job *j =
            mem_calloc(1, sizeof *j + a->n_rows * sizeof j->rows[0]);
        if (j == NULL) {
            abort();
        }
        j->id = a->load_id != 0 ? a->load_id : a->append_id;
        j->load = a->load_id != 0;
        j->term = s->term;
        j->n = a->n_rows;
        if (a->n_rows > 0) {
            memcpy(j->rows, a->rows, a->n_rows * sizeof j->rows[0]);
        }
        mem_free(a->rows);
        ask_engine(w, n->index, j);
    }
    s->wake_ms = a->wake_ms;
    if (s->wake_ms != SEMAPHORE_NEVER) {
        struct sim_event ev = {.kind = SIM_CORE_TIMER,
                               .node = n->index,
                               .epoch = n->epoch,
                               .a = s->wake_ms};
        sim_push(w, &ev, s->wake_ms > w->now ? s->wake_ms - w->now : 0);
    }
    wrong = semaphores_check(s->core, w->now);
    if (wrong != NULL) {
        sim_fail(w, "%s: %s", n->id, wrong);
    }
}

static void step(struct sim *w, struct sim_node *n, struct semaphore_event *ev)
{
    struct server *s = &servers[n->index];
    struct semaphore_actions a;
    uint64_t token = 0;

    ev->leads = election_is_leader(&n->e, w->now, &token) && token == s->term;
    semaphores_step(s->core, ev, w->now, &a);
    carry_out(w, n, &a);
}

static void on_lead(struct sim *w, struct sim_node *n, uint64_t token)
{
    struct semaphore_event ev = {
        .type = token != 0 ? SEMAPHORE_LEAD : SEMAPHORE_LOST, .term = token};

    servers[n->index].term = token != 0 ? token : servers[n->index].term;
    step(w, n, &ev);
}

static void on_life(struct sim *w, struct sim_node *n)
{
    struct server *s = &servers[n->index];
    const struct semaphore_options o = {.requeue_ms = 500};

    (void)w;
    if (n->alive) {
        list_init(&s->live);
        s->term = 0;
        s->wake_ms = SEMAPHORE_NEVER;
        if (semaphores_new(&o, &s->core) != 0) {
            abort();
        }
        return;
    }
    semaphores_free(s->core);
    s->core = NULL;
    while (!list_empty(&s->live)) {
        free_message(container_of(s->live.next, struct message, live));
    }
}

static struct sim_node *node_called(struct sim *w, const char *id)
{
    for (unsigned i = 0; i < w->n_nodes; i++) {
        if (strcmp(w->nodes[i].id, id) == 0) {
            return &w->nodes[i];
        }
    }
    return NULL;
}

static void to_node(struct sim *w, const struct message *m, unsigned node)
{
    struct sim_event ev = {
        .kind = SIM_TO_NODE, .node = node, .epoch = w->nodes[node].epoch};
    struct message *copy;

    if (is_lost(w)) {
        return;
    }
    copy = mem_alloc(sizeof *copy);
    if (copy == NULL) {
        abort();
    }
    *copy = *m;
    ev.data = copy;
    sim_push(w, &ev, delay(w));
}

/* A call has come to a node: for its own core, or to be sent on. */
static void receive(struct sim *w, struct sim_node *n, struct sim_event *ev)
{
    struct message *m = ev->data;
    struct server *s = &servers[n->index];
    struct semaphore_event in = {.type = SEMAPHORE_CALL, .call = &m->call};
    const char *leader = election_leader(&n->e)->id;
    struct sim_node *to = node_called(w, leader);
    bool acquire = m->call.op == SEMAPHORE_ACQUIRE;

    if (m->hops > 0 || to == n) {
        ev->data = NULL;
        list_init(&m->live);
        list_push(&s->live, &m->live);
        m->call.queued = false;
        step(w, n, &in);
        /* It is gone if it was answered. */
        if (acquire && !list_empty(&s->live) && s->live.prev == &m->live &&
            m->call.queued) {
            send_reply(w, m, true);
        }
    } else if (to != NULL && !w->cut[n->index][to->index]) {
        m->hops++;
        to_node(w, m, to->index);
    }
}

static void engine_said(struct sim *w, struct sim_node *n,
                        const struct engine_result *r)
{
    struct semaphore_event ev = {.type = r->load ? SEMAPHORE_LOADED
                                                 : SEMAPHORE_APPENDED,
                                 .id = r->id,
                                 .status = r->status,
                                 .rows = r->rows,
                                 .n_rows = r->n,
                                 .revisions = r->revisions};

    step(w, n, &ev);
}

/* --- a holder ---------------------------------------------------------------
 */

static uint64_t clock_of(const struct sim *w, const struct person *p)
{
    return (uint64_t)((int64_t)w->now + (int64_t)w->now * p->ppm / 1000000 +
                      5000);
}

static bool believes(const struct sim *w, const struct person *p)
{
    return !p->dead && p->doing == HOLDING && clock_of(w, p) < p->until_ms;
}

static void set_timer(struct sim *w, struct person *p, uint64_t ms)
{
    struct sim_event ev = {
        .kind = SIM_HOLDER_TIMER, .node = p->index, .epoch = p->epoch};

    sim_push(w, &ev, ms);
}

static void call_with(struct sim *w, struct person *p, enum semaphore_op op)
{
    struct message m;

    memset(&m, 0, sizeof m);
    list_init(&m.live);
    m.holder = p->index;
    m.holder_epoch = p->epoch;
    m.started_ms = clock_of(w, p);
    m.call.op = op;
    m.call.session = p->session;
    m.call.lease_ms = p->lease_ms;
    m.call.request = p->request;
    m.call.attempt = p->attempt;
    m.call.limit = limits[p->name];
    m.call.permits = p->permits;
    m.call.wait_ms = p->wait_ms;
    m.call.token = p->token;
    m.call.order_term = p->order_term;
    m.call.order = p->order;
    (void)snprintf(m.call.name, sizeof m.call.name, "%s", names[p->name]);
    (void)snprintf(m.call.holder, sizeof m.call.holder, "p%u", p->index);
    to_node(w, &m, (unsigned)(sim_rnd(w) % w->n_nodes));
    if (w->now < w->bad_net_until && sim_chance(w, 20)) {
        to_node(w, &m, (unsigned)(sim_rnd(w) % w->n_nodes));
    }
}

static void new_session(struct person *p)
{
    p->session = ++next_number;
    p->opened = false;
    p->renew_ms = 0;
}

static void rest(struct sim *w, struct person *p)
{
    p->doing = RESTING;
    p->token = p->until_ms = p->order_term = p->order = 0;
    p->next_ms = w->now + sim_between(w, 10, 3000);
}

static void begin_wait(struct sim *w, struct person *p)
{
    static const uint64_t waits[] = {SEMAPHORE_NEVER, SEMAPHORE_NEVER, 0, 2000};

    p->doing = WAITING;
    p->name = (unsigned)(sim_rnd(w) % NAMES);
    p->permits = (uint32_t)sim_between(w, 1, limits[p->name]);
    p->request = ++next_number;
    p->attempt = 1;
    p->order_term = p->order = 0;
    p->wait_ms = waits[sim_rnd(w) % 4];
    p->give_up_ms = sim_chance(w, 15) ? w->now + sim_between(w, 100, 6000)
                                      : SEMAPHORE_NEVER;
    p->again_ms = w->now + 700;
    sim_say(w, "p%u wants %u of %s, request %" PRIu64, p->index, p->permits,
            names[p->name], p->request);
    call_with(w, p, SEMAPHORE_ACQUIRE);
}

static void let_go(struct sim *w, struct person *p)
{
    sim_say(w, "p%u lets go of token %" PRIu64, p->index, p->token);
    p->doing = LETTING_GO;
    p->again_ms = w->now + 700;
    call_with(w, p, SEMAPHORE_RELEASE);
}

static void again(struct sim *w, struct person *p)
{
    static const enum semaphore_op ops[] = {[WAITING] = SEMAPHORE_ACQUIRE,
                                            [LETTING_GO] = SEMAPHORE_RELEASE,
                                            [GIVING_UP] = SEMAPHORE_CANCEL};

    p->again_ms = w->now + sim_between(w, 200, 900);
    if (p->doing == WAITING) {
        p->attempt++;
    }
    if (p->doing != GIVING_UP) {
        call_with(w, p, ops[p->doing]);
    } else {
        uint32_t attempt = p->attempt;
        p->attempt = 0; /* Whatever has been sent. */
        call_with(w, p, SEMAPHORE_CANCEL);
        p->attempt = attempt;
    }
}

static void holder_acts(struct sim *w, struct person *p)
{
    if (w->now >= p->renew_ms) {
        call_with(w, p, p->opened ? SEMAPHORE_RENEW : SEMAPHORE_OPEN);
        p->renew_ms =
            w->now + (p->opened ? sem_view_renew_ms(p->lease_ms) : 200);
    }
    switch (p->doing) {
    case RESTING:
        if (w->now >= p->next_ms && p->opened && w->now < LAST_ACQUIRE_MS) {
            begin_wait(w, p);
        }
        break;
    case WAITING:
        if (w->now >= p->give_up_ms) {
            p->doing = GIVING_UP;
            again(w, p);
            break;
        }
        if (w->now >= p->again_ms) {
            again(w, p);
        }
        break;
    case HOLDING:
        if (w->now >= p->next_ms) {
            let_go(w, p);
        } else if (clock_of(w, p) >= p->until_ms && p->until_ms != 0) {
            totals[1]++;
            let_go(w, p);
        }
        break;
    default:
        if (w->now >= p->again_ms) {
            again(w, p);
        }
        break;
    }
}

static void accept(struct sim *w, struct person *p)
{
    if (limits[p->name] == 1 && p->token <= last_token[p->name]) {
        sim_fail(w, "p%u holds %s with token %" PRIu64 " after %" PRIu64,
                 p->index, names[p->name], p->token, last_token[p->name]);
    }
    last_token[p->name] = p->token;
}

static bool is_listed(const struct reply *r, uint64_t token)
{
    for (size_t i = 0; i < r->n_held; i++) {
        if (r->held[i].token == token) {
            return true;
        }
    }
    return false;
}

/* Grants of requests that were given up long ago, and of which one more was
 * still on its way. */
static void cancel_orphans(struct sim *w, struct person *p,
                           const struct reply *r)
{
    struct person other = *p;

    for (size_t i = 0; i < r->n_held; i++) {
        if (r->held[i].request != p->request || p->doing == RESTING) {
            other.request = r->held[i].request;
            other.attempt = 0;
            call_with(w, &other, SEMAPHORE_CANCEL);
        }
    }
}

static void renewed(struct sim *w, struct person *p, const struct reply *r)
{
    if (r->call.session != p->session) {
        return;
    }
    if (r->call.status == HEDGE_ENOTFOUND) {
        new_session(p);
        if (p->doing == WAITING) { /* Not in line any more, as far as known. */
            p->doing = RESTING;
        }
        return;
    }
    if (r->call.status != 0 ||
        !sem_view_renewed(&p->view, r->started_ms, r->call.lease_ms,
                          r->call.term, r->call.at)) {
        return;
    }
    p->opened = true;
    cancel_orphans(w, p, r);
    if (p->doing != HOLDING) {
        return;
    }
    if (!is_listed(r, p->token)) {
        sim_say(w, "p%u: token %" PRIu64 " was taken away", p->index, p->token);
        p->next_ms = w->now + sim_between(w, 0, p->lease_ms);
        return;
    }
    if (p->until_ms == 0 && clock_of(w, p) < p->view.until_ms) {
        accept(w, p);
    }
    if (p->view.until_ms > p->until_ms &&
        (p->until_ms == 0 || clock_of(w, p) < p->until_ms)) {
        p->until_ms = p->view.until_ms;
    }
}

static void granted(struct sim *w, struct person *p, const struct reply *r)
{
    totals[0]++;
    p->doing = HOLDING;
    p->token = r->call.token;
    p->until_ms = sem_view_granted(&p->view, r->call.term, r->call.at);
    p->next_ms = w->now + sim_between(w, 0, sim_chance(w, 20) ? 6000 : 600);
    sim_say(w, "p%u is granted token %" PRIu64 " of %s", p->index, p->token,
            names[p->name]);
    if (p->until_ms == 0) {
        p->renew_ms = w->now;
    } else if (clock_of(w, p) < p->until_ms) {
        accept(w, p);
    }
}

static void answered(struct sim *w, struct person *p, const struct reply *r)
{
    if (r->call.op == SEMAPHORE_RENEW || r->call.op == SEMAPHORE_OPEN) {
        renewed(w, p, r);
        return;
    }
    if (r->call.status == HEDGE_ENOTLEADER || r->call.request != p->request) {
        return; /* It is sent again. */
    }
    if (p->doing == WAITING && r->call.op == SEMAPHORE_ACQUIRE) {
        if (r->queued) {
            p->order_term = r->call.order_term;
            p->order = r->call.order;
        } else if (r->call.status == 0 && r->call.session == p->session) {
            granted(w, p, r);
        } else if (r->call.status == HEDGE_ETIMEDOUT ||
                   r->call.status == HEDGE_EBUSY) {
            p->doing = GIVING_UP; /* Earlier ones may be on their way. */
            again(w, p);
        } else if (r->call.status != HEDGE_ECANCELED) {
            rest(w, p);
        }
    } else if ((p->doing == LETTING_GO && r->call.op == SEMAPHORE_RELEASE) ||
               (p->doing == GIVING_UP && r->call.op == SEMAPHORE_CANCEL)) {
        rest(w, p);
    }
}

static void start_person(struct sim *w, struct person *p)
{
    unsigned epoch = p->epoch + 1, index = p->index;

    memset(p, 0, sizeof *p);
    p->index = index;
    p->epoch = epoch;
    p->ppm = (int64_t)sim_between(w, 0, 20000) - 10000;
    p->lease_ms = sim_between(w, 1000, 8000);
    new_session(p);
    rest(w, p);
    set_timer(w, p, 1);
}

/* --- faults -----------------------------------------------------------------
 */

static void fault_holder(struct sim *w, struct person *p)
{
    switch (sim_rnd(w) % 3) {
    case 0:
        sim_say(w, "p%u is killed", p->index);
        start_person(w, p); /* Another life, which holds nothing. */
        break;
    case 1:
        p->paused = true;
        p->resume_ms = w->now + sim_between(w, 10, 2 * p->lease_ms);
        sim_say(w, "p%u is stopped until %" PRIu64, p->index, p->resume_ms);
        break;
    default:
        if (p->doing == HOLDING) {
            struct person admin = *p;
            totals[2]++;
            call_with(w, &admin, SEMAPHORE_REVOKE);
        }
        break;
    }
}

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

static void fault_suspend(struct sim *w)
{
    uint64_t ms = sim_between(w, 100, 2 * w->lease_ms);

    for (unsigned i = 0; i < w->n_nodes; i++) {
        if (w->nodes[i].alive && !w->nodes[i].paused) {
            sim_node_pause(w, &w->nodes[i], ms);
        }
    }
    for (unsigned i = 0; i < HOLDERS; i++) {
        people[i].paused = true;
        people[i].resume_ms = w->now + ms;
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
    if (dice < 25) {
        fault_node(w, &w->nodes[i]);
    } else if (dice < 65) {
        fault_holder(w, &people[sim_rnd(w) % HOLDERS]);
    } else if (dice < 75) {
        w->bad_net_until = w->now + sim_between(w, 0, 4000);
    } else if (dice < 82) {
        w->cut[i][k] = w->cut[k][i] = i != k && !w->cut[i][k];
    } else if (dice < 90) {
        w->slow_until = w->now + sim_between(w, 0, 3000);
    } else if (dice < 98) {
        w->failing_until = w->now + sim_between(w, 0, 3000);
    } else {
        fault_suspend(w);
    }
    sim_push(w, &next, sim_between(w, 10, 1500));
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

/* --- what must hold ---------------------------------------------------------
 */

static void check_always(struct sim *w)
{
    uint64_t held[NAMES] = {0};

    for (unsigned i = 0; i < HOLDERS; i++) {
        if (believes(w, &people[i])) {
            held[people[i].name] += people[i].permits;
        }
    }
    for (unsigned i = 0; i < NAMES; i++) {
        if (held[i] > limits[i]) {
            sim_fail(w, "%" PRIu64 " permits of %s are held, there are %u",
                     held[i], names[i], limits[i]);
        }
    }
}

static void check_end(struct sim *w)
{
    for (unsigned i = 0; i < HOLDERS; i++) {
        if (people[i].doing != RESTING) {
            sim_fail(w, "p%u is not done: doing %d, request %" PRIu64, i,
                     people[i].doing, people[i].request);
        }
    }
    for (size_t i = 0; i < disk.n; i++) {
        sim_say(w, "left: request %" PRIu64 " of %s", disk.rows[i].row.request,
                disk.rows[i].row.holder);
    }
    if (disk.n > 0) {
        sim_fail(w, "%zu rows are left, of request %" PRIu64, disk.n,
                 disk.rows[0].row.request);
    }
}

/* For a node, a holder; not while it is stopped. */
static bool comes_later(struct sim *w, struct sim_event *ev)
{
    bool of_holder = ev->kind == SIM_ANSWER || ev->kind == SIM_HOLDER_TIMER;
    struct sim_event copy = *ev;

    if (of_holder ? !people[ev->node].paused : !w->nodes[ev->node].paused) {
        return false;
    }
    ev->data = NULL;
    sim_push(w, &copy,
             of_holder ? people[ev->node].resume_ms - w->now
                       : sim_between(w, 20, 60));
    return true;
}

static void on_holder_event(struct sim *w, struct sim_event *ev)
{
    struct person *p = &people[ev->node];

    if (p->epoch != ev->epoch) {
        return;
    }
    if (p->paused && w->now >= p->resume_ms) {
        p->paused = false;
    }
    if (comes_later(w, ev)) {
        return;
    }
    if (ev->kind == SIM_ANSWER) {
        answered(w, p, ev->data);
        return;
    }
    holder_acts(w, p);
    set_timer(w, p, 20);
}

static void on_node_event(struct sim *w, struct sim_event *ev)
{
    struct sim_node *n = &w->nodes[ev->node];
    struct semaphore_event tick = {.type = SEMAPHORE_TICK};

    if (!n->alive || n->epoch != ev->epoch || comes_later(w, ev)) {
        return;
    }
    if (ev->kind == SIM_TO_NODE) {
        receive(w, n, ev);
    } else if (ev->kind == SIM_ENGINE_SAY) {
        engine_said(w, n, ev->data);
    } else if (ev->a == servers[n->index].wake_ms) {
        step(w, n, &tick);
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
    case SIM_ENGINE_DO:
        engine_do(w, ev); /* Also when the node is dead or stopped. */
        break;
    case SIM_ANSWER:
    case SIM_HOLDER_TIMER:
        on_holder_event(w, ev);
        break;
    default:
        on_node_event(w, ev);
        break;
    }
}

static bool run(uint64_t seed, bool trace)
{
    struct sim *w = &world;
    const struct sim_event ev_fault = {.kind = SIM_FAULT};
    const struct sim_event ev_heal = {.kind = SIM_HEAL};

    memset(&disk, 0, sizeof disk);
    memset(servers, 0, sizeof servers);
    memset(people, 0, sizeof people);
    memset(last_token, 0, sizeof last_token);
    next_number = 0;
    limits[0] = 1;
    limits[1] = 3;
    limits[2] = 7;
    sim_init(w, seed, trace, 1);
    w->check = check_always;
    w->on_test_event = on_event;
    w->on_lead = on_lead;
    w->on_life = on_life;
    for (unsigned i = 0; i < HOLDERS; i++) {
        people[i].index = i;
        start_person(w, &people[i]);
    }
    sim_push(w, &ev_fault, 3000);
    sim_push(w, &ev_heal, HEAL_MS - w->now);
    sim_run_until(w, END_MS);
    check_end(w);
    totals[3] += w->events;
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
    printf("%" PRIu64 " grants, %" PRIu64 " lost before their time, %" PRIu64
           " to be revoked, %" PRIu64 " events\n",
           totals[0], totals[1], totals[2], totals[3]);
    return 0;
}
