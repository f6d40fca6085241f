/* node_loop.c - the one thread that owns the cluster's state on this node: it
 * feeds the cores (election, membership) and has others carry out what they
 * ask for. Nothing on it blocks. */
#include "cluster/log/kv.h"
#include "cluster/locks/locks.h"
#include "cluster/node_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

/* --- the mailbox --- */

void *task_new(size_t size, void (*fn)(struct hedge_node *n, struct task *t))
{
    struct task *t = mem_calloc(1, size);

    if (t != NULL) {
        t->fn = fn;
    }
    return t;
}

void node_post(struct hedge_node *n, struct task *t)
{
    bool was_empty;

    pthread_mutex_lock(&n->mailbox_lock);
    was_empty = list_empty(&n->tasks);
    list_push(&n->tasks, &t->link);
    pthread_mutex_unlock(&n->mailbox_lock);
    if (was_empty) {
        (void)uv_async_send(&n->mailbox);
    }
}

static void on_mail(uv_async_t *handle)
{
    struct hedge_node *n = handle->data;
    struct list tasks, *l;

    list_init(&tasks);
    pthread_mutex_lock(&n->mailbox_lock);
    list_splice(&tasks, &n->tasks);
    pthread_mutex_unlock(&n->mailbox_lock);
    while ((l = list_pop(&tasks)) != NULL) {
        struct task *t = container_of(l, struct task, link);

        t->fn(n, t);
        mem_free(t);
    }
}

/* --- what others see --- */

struct view *node_view(struct hedge_node *n)
{
    struct view *v;

    pthread_mutex_lock(&n->pub_lock);
    v = n->view;
    if (v != NULL) {
        atomic_fetch_add(&v->refs, 1);
    }
    pthread_mutex_unlock(&n->pub_lock);
    return v;
}

void view_unref(struct view *v)
{
    if (v != NULL && atomic_fetch_sub(&v->refs, 1) == 1) {
        mem_free(v->targets);
        mem_free(v);
    }
}

void node_target(const struct hedge_node *n, const struct member *m,
                 char out[TARGET_SIZE])
{
    if (m->socket[0] != '\0' && strcmp(m->boot_id, n->boot_id) == 0 &&
        access(m->socket, R_OK | W_OK) == 0) {
        (void)snprintf(out, TARGET_SIZE, "unix:%s", m->socket);
    } else {
        (void)snprintf(out, TARGET_SIZE, "ipv4:%s", m->grpc_address);
    }
}

void node_target_of(struct hedge_node *n, const char *id,
                    const char *grpc_address, char out[TARGET_SIZE])
{
    struct view *v = node_view(n);

    (void)snprintf(out, TARGET_SIZE, "ipv4:%s", grpc_address);
    for (size_t i = 0; v != NULL && i < v->n; i++) {
        if (strcmp(v->members[i].id, id) == 0) {
            node_target(n, &v->members[i], out);
            break;
        }
    }
    view_unref(v);
}

static void tell_peer_tier(struct hedge_node *n, const struct view *v)
{
    struct peer_info *peers = mem_calloc(v->n, sizeof *peers);
    char(*targets)[TARGET_SIZE] = mem_calloc(v->n, TARGET_SIZE);
    size_t k = 0;

    for (size_t i = 0; peers != NULL && targets != NULL && i < v->n; i++) {
        const struct member *m = &v->members[i];

        if (strcmp(m->id, n->id) == 0) {
            continue;
        }
        node_target(n, m, targets[k]);
        peers[k] = (struct peer_info){.id = m->id,
                                      .incarnation = m->incarnation,
                                      .target = targets[k],
                                      .mem_free = m->mem_free,
                                      .disk_free = m->disk_free};
        k++;
    }
    if (peers != NULL && targets != NULL) {
        peer_tier_update(n->peers, peers, k);
    }
    mem_free(targets);
    mem_free(peers);
}

static void publish_members(struct hedge_node *n)
{
    size_t count = membership_count(n->membership);
    struct view *v = mem_calloc(1, sizeof *v + count * sizeof v->members[0]);
    struct view *old;

    if (v == NULL) {
        return; /* The old view stays; the next change tries again. */
    }
    atomic_store(&v->refs, 1);
    v->n = count;
    v->version = membership_version(n->membership, &v->token);
    v->targets = mem_calloc(count > 0 ? count : 1, TARGET_SIZE);
    for (size_t i = 0; i < count; i++) {
        v->members[i] = *membership_at(n->membership, i);
        if (v->targets != NULL) {
            node_target(n, &v->members[i], v->targets[i]);
        }
    }
    tell_peer_tier(n, v);
    pthread_mutex_lock(&n->pub_lock);
    old = n->view;
    n->view = v;
    pthread_cond_broadcast(&n->pub_changed);
    pthread_mutex_unlock(&n->pub_lock);
    view_unref(old);
}

static void publish_election(struct hedge_node *n, bool changed)
{
    pthread_mutex_lock(&n->pub_lock);
    n->hold = election_hold(&n->election);
    n->leader = *election_leader(&n->election);
    n->rounds = election_rounds(&n->election);
    if (n->hold.token != 0) {
        n->joined = true;
        error_clear(&n->refused);
    }
    if (changed) {
        pthread_cond_broadcast(&n->pub_changed);
    }
    pthread_mutex_unlock(&n->pub_lock);
}

/* --- timers --- */

static void on_timer(uv_timer_t *t);

static void set_timer(struct hedge_node *n)
{
    uint64_t at = n->election_wake_ms < n->membership_wake_ms
                      ? n->election_wake_ms
                      : n->membership_wake_ms;
    uint64_t now = clock_boot_ms();

    if (at != UINT64_MAX) {
        (void)uv_timer_start(&n->timer, on_timer, at > now ? at - now : 0, 0);
    }
}

/* --- membership --- */

struct seen_work {
    struct work work;
    struct hedge_node *node;
    uint64_t incarnation;
    char id[MEMBER_ID_SIZE];
};

static void run_seen(struct work *work)
{
    struct seen_work *w = container_of(work, struct seen_work, work);
    struct sos_owner owner = {.id = w->id, .incarnation = w->incarnation};

    sos_lend_seen(w->node->sos, &owner);
    mem_free(w);
}

/* A node has joined: what an earlier life of it left here can go. */
static void tell_sos(struct hedge_node *n, const struct membership_change *c)
{
    struct seen_work *w =
        strcmp(c->id, n->id) != 0 ? mem_calloc(1, sizeof *w) : NULL;

    if (w == NULL) {
        return; /* Its next renewal tells, or their lease ends. */
    }
    w->node = n;
    w->incarnation = c->incarnation;
    memcpy(w->id, c->id, sizeof w->id);
    if (pool_submit(n->dial_pool, &w->work, run_seen) != 0) {
        mem_free(w);
    }
}

static void tell_new_leader(struct hedge_node *n,
                            const struct membership_change *c)
{
    if (c->id[0] == '\0') {
        log_info("node", "there is no leader at present");
    } else {
        pthread_mutex_lock(&n->pub_lock);
        n->leaders++;
        pthread_mutex_unlock(&n->pub_lock);
        log_info("node", "leader is now \"%s\" with token %llu", c->id,
                 (unsigned long long)c->token);
    }
    if (n->o.on_new_leader != NULL) {
        n->o.on_new_leader(n->o.data, c->id, c->token);
    }
}

static void tell_changes(struct hedge_node *n, struct membership_actions *a)
{
    for (size_t i = 0; i < a->n_changes; i++) {
        const struct membership_change *c = &a->changes[i];

        if (c->type == MEMBERSHIP_LEADER) {
            tell_new_leader(n, c);
            continue;
        }
        log_info("node", "%s has %s%s%s", c->id,
                 c->type == MEMBERSHIP_JOIN ? "joined" : "left",
                 c->reason == MEMBERSHIP_NO_REASON ? "" : ": ",
                 c->reason == MEMBERSHIP_NO_REASON
                     ? ""
                     : membership_reason_text(c->reason));
        if (c->type == MEMBERSHIP_LEAVE) {
            directory_evict(n->directory, c->id, c->incarnation);
        } else {
            tell_sos(n, c);
        }
        if (n->o.on_member != NULL) {
            n->o.on_member(n->o.data, c->type == MEMBERSHIP_JOIN, c->id);
        }
    }
}

static void publish_in_group(struct hedge_node *n)
{
    bool now;

    n->superseded = n->superseded || n->actions.superseded;
    now = membership_is_in_group(n->membership) && !n->superseded;
    if (atomic_exchange(&n->in_group, now) != now) {
        pthread_mutex_lock(&n->pub_lock);
        pthread_cond_broadcast(&n->pub_changed);
        pthread_mutex_unlock(&n->pub_lock);
    }
}

void node_membership(struct hedge_node *n, const struct membership_event *ev)
{
    node_membership_then(n, ev, NULL, NULL);
}

void node_membership_then(struct hedge_node *n,
                          const struct membership_event *ev,
                          void (*fn)(struct hedge_node *n, void *arg),
                          void *arg)
{
    uint64_t token, before, version;
    int rv;

    version = membership_version(n->membership, &before);
    rv = membership_step(n->membership, ev, clock_boot_ms(), &n->actions);
    if (rv != 0) {
        log_warn("node", "membership: %s", hedge_strerror(rv));
        return;
    }
    tell_changes(n, &n->actions);
    publish_in_group(n);
    if (fn != NULL) {
        fn(n, arg);
    }
    if (n->actions.settled) {
        directory_settle(n->directory, n->leader_token);
    }
    if (n->actions.superseded) {
        log_error("node",
                  "another node lives under the id %s; this one is out of the "
                  "group",
                  n->id);
    }
    n->membership_wake_ms = n->actions.wake_ms;
    if (membership_version(n->membership, &token) != version ||
        token != before || n->actions.n_changes > 0) {
        publish_members(n);
    }
    for (size_t i = 0; i < n->actions.n_changes; i++) {
        if (n->actions.changes[i].type == MEMBERSHIP_LEAVE) {
            sos_repair(n->sos);
        }
    }
    node_link_act(n, &n->actions);
    set_timer(n);
}

/* --- election --- */

static void step_election(struct hedge_node *n,
                          const struct election_event *ev);

struct lease_work {
    struct work work;
    struct hedge_node *node;
    enum election_op op;
    uint64_t op_id, token;
};

struct lease_result {
    struct task task;
    struct election_event event;
    struct engine_lease lease;
};

static void on_lease_result(struct hedge_node *n, struct task *t)
{
    struct lease_result *r = container_of(t, struct lease_result, task);

    step_election(n, &r->event);
}

static void run_lease_op(struct work *w)
{
    struct lease_work *lw = container_of(w, struct lease_work, work);
    struct hedge_node *n = lw->node;
    struct lease_result *r = task_new(sizeof *r, on_lease_result);
    struct engine_holder who = {
        .id = n->id, .address = n->grpc_address, .incarnation = n->incarnation};
    struct hedge_error e = {0};

    while (r == NULL) { /* The election waits for this answer. */
        clock_sleep_ms(100);
        r = task_new(sizeof *r, on_lease_result);
    }
    r->event.type = ELECTION_RESULT;
    r->event.op_id = lw->op_id;
    r->event.started_ms = clock_boot_ms();
    switch (lw->op) {
    case ELECTION_OP_LOOK:
        r->event.status = engine_look(&n->engine, &r->lease, &e);
        break;
    case ELECTION_OP_ACQUIRE:
        r->event.status = engine_acquire(&n->engine, &who, n->o.lease_ms,
                                         &r->event.token, &r->lease, &e);
        break;
    case ELECTION_OP_RENEW:
        r->event.status =
            engine_renew(&n->engine, lw->token, n->o.lease_ms, &e);
        break;
    default:
        assert(lw->op == ELECTION_OP_RELEASE);
        r->event.status = engine_release(&n->engine, lw->token, &e);
    }
    if (r->event.status != 0 && r->event.status != HEDGE_EBUSY) {
        log_warn("node", "lease: %s", e.text);
    }
    if (lw->op == ELECTION_OP_LOOK || lw->op == ELECTION_OP_ACQUIRE) {
        r->event.lease = &r->lease;
    }
    mem_free(lw);
    node_post(n, &r->task);
}

static void start_lease_op(struct hedge_node *n, enum election_op op,
                           uint64_t op_id, uint64_t token)
{
    struct lease_work *w = mem_calloc(1, sizeof *w);

    if (w == NULL) {
        struct election_event ev = {.type = ELECTION_RESULT,
                                    .op_id = op_id,
                                    .started_ms = clock_boot_ms(),
                                    .status = HEDGE_ENOMEM};
        step_election(n, &ev);
        return;
    }
    w->node = n;
    w->op = op;
    w->op_id = op_id;
    w->token = token;
    if (pool_submit(n->lease_pool, &w->work, run_lease_op) != 0) {
        mem_free(w);
    }
}

static void tell_leader(struct hedge_node *n, bool won, uint64_t token,
                        uint64_t idle_ms)
{
    const struct election_leader *l = election_leader(&n->election);
    struct membership_event ev = {.type = MEMBERSHIP_FOLLOW};

    n->leader_token = won ? token : 0;
    atomic_store(&n->leader_lease_ms, won ? n->o.lease_ms : 0);
    directory_lead(n->directory, n->leader_token);
    if (won) {
        stores_register_own(n);
        ev.type = MEMBERSHIP_LEAD;
        ev.token = token;
        ev.idle_ms = idle_ms;
    } else {
        ev.id = l->id;
        ev.address = l->address;
        ev.incarnation = l->incarnation;
        ev.token = l->token;
    }
    node_membership(n, &ev);
    locks_lead(n, n->leader_token);
}

static void step_election(struct hedge_node *n, const struct election_event *ev)
{
    struct election_actions a;

    election_step(&n->election, ev, clock_boot_ms(), &a);
    publish_election(n, a.won || a.lost || a.leader_changed);
    if (a.won || a.lost || a.leader_changed) {
        kv_wake(n->kv);
    }
    if (a.lost) {
        log_line(a.lost_reason == ELECTION_LOST_STOPPED ? LOG_INFO : LOG_WARN,
                 "node", "no longer leader: %s",
                 election_lost_text(a.lost_reason));
        if (n->o.on_leader != NULL) {
            n->o.on_leader(n->o.data, false, a.lost_token);
        }
    }
    if (a.won) {
        log_info("node", "leading with token %llu",
                 (unsigned long long)a.won_token);
        tell_leader(n, true, a.won_token, a.won_idle_ms);
        if (n->o.on_leader != NULL) {
            n->o.on_leader(n->o.data, true, a.won_token);
        }
    } else if (a.lost || a.leader_changed) {
        tell_leader(n, false, 0, 0);
    }
    n->election_wake_ms = a.wake_ms;
    if (a.op != ELECTION_OP_NONE) {
        start_lease_op(n, a.op, a.op_id, a.op_token);
    }
    if (a.stopped) {
        n->election_stopped = true;
        uv_stop(&n->loop);
    }
    set_timer(n);
}

void node_hint(struct hedge_node *n, enum election_event_type type,
               const struct engine_lease *lease)
{
    struct election_event ev = {.type = type, .lease = lease};

    step_election(n, &ev);
}

static void on_timer(uv_timer_t *t)
{
    struct hedge_node *n = t->data;
    struct membership_event tick = {.type = MEMBERSHIP_TICK};
    struct election_event etick = {.type = ELECTION_TICK};
    uint64_t now = clock_boot_ms();

    if (now >= n->election_wake_ms) {
        step_election(n, &etick);
    }
    if (now >= n->membership_wake_ms) {
        node_membership(n, &tick);
    }
    set_timer(n);
}

/* --- this node's own figures --- */

static void refresh_figures(struct hedge_node *n)
{
    struct membership_event ev = {.type = MEMBERSHIP_SELF};
    struct member self = *membership_self(n->membership);
    struct sos_usage u;

    sos_usage(n->sos, &u);
    self.mem_limit = u.arena.limit;
    self.mem_used = u.arena.by_class[ARENA_STORED];
    self.mem_free = u.mem_lendable;
    self.mem_lent = u.mem_lent;
    self.disk_limit = u.disk.limit;
    self.disk_used = u.disk.used;
    self.disk_free = u.disk_lendable;
    self.disk_lent = u.disk_lent;
    ev.member = &self;
    node_membership(n, &ev);
}

struct maintain_work {
    struct work work;
    struct hedge_node *node;
};

static void run_maintain(struct work *work)
{
    struct maintain_work *w = container_of(work, struct maintain_work, work);
    struct hedge_error e = {0};

    if (engine_maintain(&w->node->engine, NULL, &e) != 0) {
        log_warn("node", "engine: %s", e.text);
    }
    mem_free(w);
}

static void on_figures(uv_timer_t *t)
{
    struct hedge_node *n = t->data;
    struct maintain_work *w;

    atomic_store(&n->loop_beat_ms, clock_mono_ms());
    refresh_figures(n);
    msg_parts_sweep(n->parts);
    w = n->leader_token != 0 ? mem_calloc(1, sizeof *w) : NULL;
    if (w != NULL) {
        w->node = n;
        if (pool_submit(n->dial_pool, &w->work, run_maintain) != 0) {
            mem_free(w);
        }
    }
}

/* --- life --- */

static void *loop_main(void *arg)
{
    struct hedge_node *n = arg;
    struct election_event start = {.type = ELECTION_START};

    atomic_store(&n->loop_beat_ms, clock_mono_ms());
    refresh_figures(n);
    step_election(n, &start);
    (void)uv_run(&n->loop, UV_RUN_DEFAULT);
    return NULL;
}

static int make_cores(struct hedge_node *n, struct hedge_error *e)
{
    struct membership_options m = {.interval_ms = n->o.sync_interval_ms,
                                   .wire_version = WIRE_VERSION,
                                   .block_version = BLOCK_VERSION,
                                   .block_size = (uint32_t)n->o.block_size};
    struct election_options o = {.lease_ms = n->o.lease_ms,
                                 .seed = n->incarnation,
                                 .id = n->id,
                                 .address = n->grpc_address,
                                 .incarnation = n->incarnation};

    if (!member_set_text(m.self.id, sizeof m.self.id, n->id) ||
        !member_set_text(m.self.grpc_address, sizeof m.self.grpc_address,
                         n->grpc_address) ||
        !member_set_text(m.self.boot_id, sizeof m.self.boot_id, n->boot_id) ||
        !member_set_text(m.self.socket, sizeof m.self.socket, n->socket) ||
        !member_set_text(m.self.version, sizeof m.self.version,
                         HEDGE_VERSION)) {
        return error_set(e, HEDGE_EINVAL, "the node's address is too long");
    }
    m.self.incarnation = n->incarnation;
    election_init(&n->election, &o);
    if (membership_new(&m, &n->membership) != 0) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the member list");
    }
    return 0;
}

static int open_loop(struct hedge_node *n)
{
    if (uv_loop_init(&n->loop) != 0) {
        return HEDGE_ENOMEM;
    }
    n->loop_open = true;
    n->mailbox.data = n->timer.data = n->figures.data = n;
    if (uv_async_init(&n->loop, &n->mailbox, on_mail) != 0 ||
        uv_timer_init(&n->loop, &n->timer) != 0 ||
        uv_timer_init(&n->loop, &n->figures) != 0 || locks_open(n) != 0) {
        return HEDGE_ENOMEM;
    }
    (void)uv_timer_start(&n->figures, on_figures, n->o.sync_interval_ms,
                         n->o.sync_interval_ms);
    return 0;
}

int node_loop_open(struct hedge_node *n, struct hedge_error *e)
{
    int rv = make_cores(n, e);

    if (rv != 0) {
        return rv;
    }
    n->election_wake_ms = n->membership_wake_ms = UINT64_MAX;
    rv = open_loop(n);
    if (rv == 0) {
        rv = pool_new(1, "hedge-lease", &n->lease_pool);
    }
    if (rv == 0) {
        rv = pool_new(4, "hedge-dial", &n->dial_pool);
    }
    return rv == 0 ? 0 : error_set(e, rv, "cannot start the node's threads");
}

int node_loop_run(struct hedge_node *n, struct hedge_error *e)
{
    if (pthread_create(&n->loop_thread, NULL, loop_main, n) != 0) {
        return error_set(e, HEDGE_ENOMEM, "cannot start the node's threads");
    }
    n->loop_runs = true;
    (void)pthread_setname_np(n->loop_thread, "hedge-loop");
    return 0;
}

static void begin_stop(struct hedge_node *n, struct task *t)
{
    struct election_event ev = {.type = ELECTION_STOP};

    (void)t;
    n->stopping = true;
    uv_timer_stop(&n->figures);
    step_election(n, &ev);
}

static void close_handle(uv_handle_t *h, void *arg)
{
    (void)arg;
    if (!uv_is_closing(h)) {
        uv_close(h, NULL);
    }
}

void node_loop_stop(struct hedge_node *n)
{
    struct task *t = NULL;

    if (n->loop_runs) {
        while ((t = task_new(sizeof *t, begin_stop)) == NULL) {
            clock_sleep_ms(100);
        }
        node_post(n, t);
        pthread_join(n->loop_thread, NULL);
        n->loop_runs = false;
    }
    pool_free(n->lease_pool);
    pool_free(n->dial_pool);
    n->lease_pool = n->dial_pool = NULL;
}

void node_loop_release(struct hedge_node *n)
{
    struct list *l;

    if (n->loop_open) {
        uv_walk(&n->loop, close_handle, NULL);
        (void)uv_run(&n->loop, UV_RUN_DEFAULT);
        (void)uv_loop_close(&n->loop);
        n->loop_open = false;
    }
    while ((l = list_pop(&n->tasks)) != NULL) {
        struct task *t = container_of(l, struct task, link);

        if (t->drop != NULL) {
            t->drop(t);
        }
        mem_free(t);
    }
    membership_actions_release(&n->actions);
    membership_free(n->membership);
    n->membership = NULL;
}
