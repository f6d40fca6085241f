/* A whole cluster in one thread under one clock: the election and membership
 * cores of several nodes, one lease, a network, and a fate that crashes,
 * stops, delays, loses and repeats. Everything follows from a seed:
 *
 *   test_sim_cluster            200 seeds from 1 on
 *   test_sim_cluster SEED       that one, telling what happens
 *   HEDGE_SIM_SEED=SEED, HEDGE_SIM_RUNS=N   begin there, so many
 *
 * After every event:
 *   - at most one node leads, on the clock all share, also among those that
 *     are stopped and have not run a step since;
 *   - tokens of those who win only grow;
 *   - what a node was told by events is what its member list says.
 * After the faults, exactly one node leads within the lease and a second, all
 * living nodes know it and list exactly the living nodes, and from then on
 * nothing changes. */
#include "tests/lib/sim.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define END_MS 120000u
#define SLOW_UNTIL_MS 78000u
#define BAD_NET_UNTIL_MS 86000u
#define HEAL_MS 90000u

enum { SIM_FAULT = SIM_TEST, SIM_HEAL, SIM_CHECK_LEADER, SIM_CHECK_STABLE };

/* --- faults -----------------------------------------------------------------
 */

static void start_later(struct sim *w, struct sim_node *n, uint64_t ms)
{
    struct sim_event ev = {.kind = SIM_START, .node = n->index};

    if (w->now + ms < HEAL_MS) {
        sim_push(w, &ev, ms);
    }
}

static void fault_network(struct sim *w)
{
    unsigned i = (unsigned)(sim_rnd(w) % w->n_nodes);
    unsigned k = (unsigned)(sim_rnd(w) % w->n_nodes);

    switch (sim_rnd(w) % 3) {
    case 0:
        if (w->n_streams > 0) {
            sim_stream_end(w, sim_between(w, 1, w->n_streams), true, true,
                           HEDGE_EUNAVAILABLE);
        }
        break;
    case 1:
        w->cut[i][k] = w->cut[k][i] = i != k && !w->cut[i][k];
        sim_say(w, "%s and %s are %s", w->nodes[i].id, w->nodes[k].id,
                w->cut[i][k] ? "cut off" : "joined");
        break;
    default:
        if (w->now < BAD_NET_UNTIL_MS - 4000) {
            w->bad_net_until = w->now + sim_between(w, 0, 4000);
        }
        break;
    }
}

static void fault_engine(struct sim *w)
{
    if (w->now + 3 * w->lease_ms > SLOW_UNTIL_MS) {
        return;
    }
    if (sim_chance(w, 50)) {
        w->slow_until = w->now + sim_between(w, 0, 2 * w->lease_ms);
        sim_say(w, "the engine is slow");
    } else {
        w->failing_until = w->now + sim_between(w, 0, 2 * w->lease_ms);
        sim_say(w, "the engine fails");
    }
}

static void fault_node(struct sim *w, struct sim_node *n)
{
    if (!n->alive) {
        sim_node_start(w, n);
        return;
    }
    if (n->paused || n->stopping) {
        return;
    }
    switch (sim_rnd(w) % 4) {
    case 0:
        sim_node_pause(w, n, sim_between(w, 10, 3 * w->lease_ms));
        break;
    case 1:
        sim_node_pause(w, n, sim_between(w, 10, w->lease_ms));
        break;
    case 2:
        sim_say(w, "%s is killed", n->id);
        sim_node_died(w, n);
        start_later(w, n, sim_between(w, 1, 3 * w->lease_ms));
        break;
    default:
        sim_node_stop(w, n);
        start_later(w, n, sim_between(w, 1, 2 * w->lease_ms));
        break;
    }
}

/* The machine sleeps: its clock goes on and nothing else does. */
static void fault_suspend(struct sim *w)
{
    uint64_t ms = sim_between(w, 100, 4 * w->lease_ms);

    sim_say(w, "the machine sleeps for %" PRIu64 " ms", ms);
    for (unsigned i = 0; i < w->n_nodes; i++) {
        if (w->nodes[i].alive && !w->nodes[i].paused) {
            sim_node_pause(w, &w->nodes[i], ms);
        }
    }
}

static void fault(struct sim *w)
{
    const struct sim_event again = {.kind = SIM_FAULT};
    uint64_t dice = sim_rnd(w) % 100;

    if (w->now >= HEAL_MS) {
        return;
    }
    if (dice < 50) {
        fault_node(w, &w->nodes[sim_rnd(w) % w->n_nodes]);
    } else if (dice < 80) {
        fault_network(w);
    } else if (dice < 96) {
        fault_engine(w);
    } else {
        fault_suspend(w);
    }
    sim_push(w, &again, sim_between(w, 10, 3000));
}

static void heal(struct sim *w)
{
    struct sim_event check = {.kind = SIM_CHECK_LEADER};
    unsigned alive = 0;

    sim_say(w, "all faults end");
    w->healed = true;
    memset(w->cut, 0, sizeof w->cut);
    for (unsigned i = 0; i < w->n_nodes; i++) {
        sim_node_resume(w, &w->nodes[i]);
        alive += w->nodes[i].alive && !w->nodes[i].stopping;
    }
    if (alive == 0) {
        unsigned i = 0;
        while (w->nodes[i].alive) {
            i = (i + 1) % w->n_nodes;
            sim_node_died(w, &w->nodes[i]);
        }
        sim_node_start(w, &w->nodes[i]);
    }
    sim_push(w, &check, w->lease_ms + 1000);
}

/* --- what must hold ---------------------------------------------------------
 */

static void check_shadow(struct sim *w, const struct sim_node *n)
{
    if (n->n_shadow != membership_count(n->m)) {
        sim_fail(w, "%s lists %zu members and has told of %zu", n->id,
                 membership_count(n->m), n->n_shadow);
        return;
    }
    for (size_t i = 0; i < n->n_shadow; i++) {
        const struct member *m = membership_find(n->m, n->shadow[i].id);
        if (m == NULL || m->incarnation != n->shadow[i].incarnation) {
            sim_fail(w, "%s has told of %s, which is not in its list", n->id,
                     n->shadow[i].id);
        }
    }
}

static void check_always(struct sim *w)
{
    const struct sim_node *leader = NULL;

    for (unsigned i = 0; i < w->n_nodes; i++) {
        const struct sim_node *n = &w->nodes[i];
        uint64_t token;

        if (!n->alive) {
            continue;
        }
        if (n->m != NULL) {
            check_shadow(w, n);
        }
        if (!election_is_leader(&n->e, w->now, &token)) {
            continue;
        }
        if (leader != NULL) {
            sim_fail(w, "%s and %s both lead", leader->id, n->id);
        }
        if (token != w->row.token || w->now >= w->expires) {
            sim_fail(w, "%s leads and does not have the lease", n->id);
        }
        leader = n;
    }
}

static void check_node(struct sim *w, const struct sim_node *n,
                       const struct sim_node *leader, unsigned alive)
{
    const struct membership_leader *l = membership_leader(n->m);

    if (strcmp(l->id, leader->id) != 0) {
        sim_fail(w, "%s takes '%s' for the leader, it is %s", n->id, l->id,
                 leader->id);
    }
    if (membership_count(n->m) != alive) {
        sim_fail(w, "%s lists %zu members of %u", n->id, membership_count(n->m),
                 alive);
    }
    for (unsigned i = 0; i < w->n_nodes; i++) {
        const struct sim_node *other = &w->nodes[i];
        const struct member *m = membership_find(n->m, other->id);
        if (other->alive &&
            (m == NULL || m->incarnation != other->incarnation ||
             m->leader != (other == leader))) {
            sim_fail(w, "%s does not list %s as it is", n->id, other->id);
        }
    }
}

static void check_well(struct sim *w)
{
    const struct sim_node *leader = NULL;
    unsigned alive = 0;

    for (unsigned i = 0; i < w->n_nodes; i++) {
        const struct sim_node *n = &w->nodes[i];
        alive += n->alive;
        if (n->alive && election_is_leader(&n->e, w->now, NULL)) {
            leader = n;
        }
    }
    if (leader == NULL) {
        sim_fail(w, "nobody leads");
        return;
    }
    for (unsigned i = 0; i < w->n_nodes; i++) {
        if (w->nodes[i].alive) {
            check_node(w, &w->nodes[i], leader, alive);
        }
    }
    if (w->stable && !membership_is_settled(leader->m)) {
        sim_fail(w, "the list of %s is not settled", leader->id);
    }
}

static void on_event(struct sim *w, struct sim_event *ev)
{
    struct sim_event later = {.kind = SIM_CHECK_STABLE};

    switch (ev->kind) {
    case SIM_FAULT:
        fault(w);
        break;
    case SIM_HEAL:
        heal(w);
        break;
    case SIM_CHECK_LEADER:
        check_well(w);
        w->stable = true;
        sim_push(w, &later, END_MS - w->now - 1);
        break;
    default:
        check_well(w);
        break;
    }
}

static void begin(struct sim *w, uint64_t seed, bool trace, unsigned nodes_min)
{
    sim_init(w, seed, trace, nodes_min);
    w->check = check_always;
    w->on_test_event = on_event;
}

static struct sim world; /* Large. */

static bool run_faults(uint64_t seed, bool trace, uint64_t totals[3])
{
    struct sim *w = &world;
    const struct sim_event ev_fault = {.kind = SIM_FAULT};
    const struct sim_event ev_heal = {.kind = SIM_HEAL};

    begin(w, seed, trace, 1);
    sim_push(w, &ev_fault, 1);
    sim_push(w, &ev_heal, HEAL_MS - w->now);
    sim_run_until(w, END_MS);
    totals[0] += w->wins;
    totals[1] += w->changes;
    totals[2] += w->events;
    sim_release(w);
    return !w->failed;
}

static struct sim_node *leader_of(struct sim *w)
{
    for (unsigned i = 0; i < w->n_nodes; i++) {
        if (w->nodes[i].alive &&
            election_is_leader(&w->nodes[i].e, w->now, NULL)) {
            return &w->nodes[i];
        }
    }
    return NULL;
}

/* The promised times: from a quiet cluster, the leader stops or is killed. */
static bool run_failover(uint64_t seed, bool kill, uint64_t *worst)
{
    struct sim *w = &world;
    struct sim_node *leader;
    uint64_t start, promised;

    begin(w, seed, false, 2);
    sim_run_until(w, 20000 + seed * 37 % 7000);
    check_well(w);
    leader = leader_of(w);
    if (leader == NULL || w->failed) {
        sim_release(w);
        return false;
    }
    start = w->now;
    promised = kill ? w->lease_ms + 1000 : 500;
    if (kill) {
        sim_node_died(w, leader);
    } else {
        sim_node_stop(w, leader);
    }
    while (!w->failed && w->now - start <= promised) {
        unsigned know = 0, alive = 0;
        struct sim_node *now = leader_of(w);
        for (unsigned i = 0; i < w->n_nodes && now != NULL; i++) {
            const struct sim_node *n = &w->nodes[i];
            alive += n->alive;
            know += n->alive && membership_count(n->m) == w->n_nodes - 1 &&
                    strcmp(membership_leader(n->m)->id, now->id) == 0;
        }
        if (alive == w->n_nodes - 1 && know == alive) {
            break;
        }
        sim_run_until(w, w->now + 1);
    }
    if (w->now - start > promised) {
        sim_fail(w, "%" PRIu64 " ms after the leader %s", w->now - start,
                 kill ? "was killed" : "stopped");
    }
    start = w->now - start;
    *worst = start > *worst ? start : *worst;
    sim_release(w);
    return !w->failed;
}

int main(int argc, char **argv)
{
    const char *env_seed = getenv("HEDGE_SIM_SEED");
    const char *env_runs = getenv("HEDGE_SIM_RUNS");
    uint64_t seed = env_seed != NULL ? strtoull(env_seed, NULL, 10) : 1;
    uint64_t runs = env_runs != NULL ? strtoull(env_runs, NULL, 10) : 200;
    uint64_t totals[3] = {0}, worst_stop = 0, worst_kill = 0;

    if (argc > 1) {
        return run_faults(strtoull(argv[1], NULL, 10), true, totals) ? 0 : 1;
    }
    printf("seeds %" PRIu64 " to %" PRIu64 "\n", seed, seed + runs - 1);
    for (uint64_t i = 0; i < runs; i++) {
        uint64_t unused = 0;
        if (!run_faults(seed + i, false, totals)) {
            fprintf(stderr, "again: %s %" PRIu64 "\n", argv[0], seed + i);
            return 1;
        }
        if (!run_failover(seed + i, false, &worst_stop) ||
            !run_failover(seed + i, true, &unused)) {
            fprintf(stderr, "failover of seed %" PRIu64 "\n", seed + i);
            return 1;
        }
        worst_kill = unused > worst_kill ? unused : worst_kill;
    }
    printf("%" PRIu64 " leaderships, %" PRIu64 " joins and leaves, %" PRIu64
           " events; a leader stopped: %" PRIu64 " ms at most, killed: %" PRIu64
           " ms\n",
           totals[0], totals[1], totals[2], worst_stop, worst_kill);
    return 0;
}
