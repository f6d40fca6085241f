/* node_link.c - control streams: each member keeps one to the leader, reports
 * on it, and gets the member list on it.
 *
 * Member side: the uplink thread opens the stream, sends reports, receives
 * lists. Leader side: a session per stream, whose handler thread receives the
 * reports; one publisher thread sends the list to all of them. Announcements of
 * a new leader go out from the dial pool. */
#include "cluster/node_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <assert.h>
#include <string.h>

#define SEND_MS 500
#define DIAL_MS 1000
#define NO_MEMORY_MS 10
#define REPORT_STORES 4096 /* In one message: 1 MiB of long names. */
#define REPORT_PARTS_MAX 65536

struct session {
    struct list link; /* node.sessions */
    uint64_t number;
    struct rpc_stream *stream;
    bool sending; /* The publisher is at it. */
    bool welcome; /* It wants the list. */
    /* The verdict on the last report, for the handler thread. */
    bool judged;
    int verdict;
    char verdict_text[HEDGE_ERROR_TEXT_MAX];
};

/* --- the leader's side: reports in --- */

/* The messages of one report: all but the last only bring stores. */
struct parts {
    Hedge__V1__JoinReport **message;
    size_t n;
};

struct report_task {
    struct task task;
    uint64_t session;
    struct membership_report report;
    struct parts parts; /* For their stores. */
};

static void parts_release(struct parts *p)
{
    for (size_t i = 0; i < p->n; i++) {
        pb_free(p->message[i]);
    }
    mem_free(p->message);
    *p = (struct parts){.n = 0};
}

/* Takes `m` in any case. */
static int parts_add(struct parts *p, Hedge__V1__JoinReport *m,
                     struct hedge_error *e)
{
    Hedge__V1__JoinReport **more =
        p->n < REPORT_PARTS_MAX
            ? mem_realloc(p->message,
                          (p->n + 1) * sizeof(Hedge__V1__JoinReport *))
            : NULL;

    if (more == NULL) {
        pb_free(m);
        return error_set(e, HEDGE_ENOMEM, "no memory for a report");
    }
    p->message = more;
    p->message[p->n++] = m;
    return 0;
}

static struct session *session_find(struct hedge_node *n, uint64_t number)
{
    struct list *l;

    list_foreach (l, &n->sessions) {
        struct session *s = container_of(l, struct session, link);

        if (s->number == number) {
            return s;
        }
    }
    return NULL;
}

static void enter_part(struct hedge_node *n, const struct report_task *r,
                       const Hedge__V1__JoinReport *m)
{
    struct directory_entry existing;

    for (size_t i = 0; i < m->n_stores; i++) {
        const Hedge__V1__DirectoryEntry *d = m->stores[i];
        uint64_t generation = d->generation;

        if (generation != 0 &&
            directory_register(n->directory, d->name, r->report.self.id,
                               r->report.self.incarnation, &generation, 0,
                               &existing) == HEDGE_EEXISTS) {
            log_error("node", "store \"%s\" has two owners: %s and %s", d->name,
                      existing.owner, r->report.self.id);
        }
    }
}

/* The stores of a member whose report has just been accepted. */
static void enter_stores(struct hedge_node *n, void *arg)
{
    const struct report_task *r = arg;

    if (n->actions.verdict == 0 && !r->report.leaving) {
        for (size_t i = 0; i < r->parts.n; i++) {
            enter_part(n, r, r->parts.message[i]);
        }
    }
}

static void on_report(struct hedge_node *n, struct task *t)
{
    struct report_task *r = container_of(t, struct report_task, task);
    struct membership_event ev = {
        .type = MEMBERSHIP_REPORT, .session = r->session, .report = &r->report};
    struct session *s;

    node_membership_then(n, &ev, enter_stores, r);
    pthread_mutex_lock(&n->sessions_lock);
    s = session_find(n, r->session);
    if (s != NULL) {
        s->judged = true;
        s->verdict = n->actions.verdict;
        memcpy(s->verdict_text, n->actions.verdict_text,
               sizeof s->verdict_text);
        s->welcome = s->welcome || n->actions.welcome;
        pthread_cond_broadcast(&n->sessions_changed);
    }
    pthread_mutex_unlock(&n->sessions_lock);
    parts_release(&r->parts);
}

static void drop_report(struct task *t)
{
    parts_release(&container_of(t, struct report_task, task)->parts);
}

struct number_task {
    struct task task;
    uint64_t session;
};

static void on_stream_broken(struct hedge_node *n, struct task *t)
{
    struct membership_event ev = {
        .type = MEMBERSHIP_STREAM_BROKEN,
        .session = container_of(t, struct number_task, task)->session};

    node_membership(n, &ev);
}

/* Hand one report to the loop and wait for its verdict. Takes the parts. */
static int judge(struct hedge_node *n, struct session *s, struct parts *parts,
                 struct hedge_error *e)
{
    struct report_task *r = task_new(sizeof *r, on_report);
    const Hedge__V1__JoinReport *m = parts->message[parts->n - 1];
    int verdict;

    if (r == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a report");
    }
    r->task.drop = drop_report;
    r->session = s->number;
    r->report.wire_version = m->wire_version;
    r->report.block_version = m->block_version;
    r->report.block_size = m->block_size;
    r->report.leaving = m->leaving;
    if (!pb_to_member(m->self, &r->report.self)) {
        mem_free(r);
        return error_set(e, HEDGE_EPROTO,
                         "a report without a member, or with a text that is "
                         "too long");
    }
    r->parts = *parts;
    *parts = (struct parts){.n = 0};
    s->judged = false;
    node_post(n, &r->task);
    pthread_mutex_lock(&n->sessions_lock);
    while (!s->judged && !n->publisher_closing) {
        pthread_cond_wait(&n->sessions_changed, &n->sessions_lock);
    }
    verdict = s->judged ? s->verdict : HEDGE_ECLOSED;
    if (verdict != 0) {
        (void)error_set(e, verdict, "%s",
                        s->judged ? s->verdict_text : "the node stops");
    }
    pthread_mutex_unlock(&n->sessions_lock);
    return verdict;
}

/* One report, which may come in several messages. */
static int receive_report(struct session *s, struct parts *parts,
                          struct hedge_error *e)
{
    bool more = true;
    int rv = 0;

    while (rv == 0 && more) {
        Hedge__V1__JoinReport *m;
        struct rpc_msg msg;

        rv = rpc_stream_recv(s->stream, RPC_NO_TIMEOUT, &msg, e);
        if (rv != 0) {
            return rv != HEDGE_EEND || parts->n == 0
                       ? rv
                       : error_set(e, HEDGE_EPROTO, "half a report");
        }
        m = pb_from_msg_large(&hedge__v1__join_report__descriptor, &msg, e);
        if (m == NULL) {
            return HEDGE_EPROTO;
        }
        more = m->n_stores > 0 && !m->stores_complete;
        rv = parts_add(parts, m, e);
    }
    return rv;
}

static int receive_reports(struct hedge_node *n, struct session *s,
                           bool *leaving, struct hedge_error *e)
{
    for (;;) {
        struct parts parts = {.n = 0};
        bool last = false;
        int rv = receive_report(s, &parts, e);

        if (rv == 0) {
            last = parts.message[parts.n - 1]->leaving;
            rv = judge(n, s, &parts, e);
        }
        parts_release(&parts);
        *leaving = last && rv == 0; /* Otherwise the stream has just broken. */
        if (rv != 0 || last) {
            return rv;
        }
    }
}

int node_serve_join(struct hedge_node *n, struct rpc_stream *stream,
                    struct hedge_error *e)
{
    struct session s = {.stream = stream};
    struct number_task *t;
    bool leaving = false;
    int rv;

    pthread_mutex_lock(&n->sessions_lock);
    if (n->publisher_closing) {
        pthread_mutex_unlock(&n->sessions_lock);
        return error_set(e, HEDGE_ECLOSED, "the node stops");
    }
    s.number = ++n->next_session;
    list_push(&n->sessions, &s.link);
    pthread_mutex_unlock(&n->sessions_lock);

    rv = receive_reports(n, &s, &leaving, e);

    pthread_mutex_lock(&n->sessions_lock);
    while (s.sending) {
        pthread_cond_wait(&n->sessions_changed, &n->sessions_lock);
    }
    list_remove(&s.link);
    pthread_mutex_unlock(&n->sessions_lock);
    if (!leaving) {
        t = task_new(sizeof *t, on_stream_broken);
        if (t != NULL) {
            t->session = s.number;
            node_post(n, &t->task);
        }
    }
    return rv == HEDGE_EEND ? 0 : rv;
}

/* --- the leader's side: lists out --- */

static struct session *next_to_send(struct hedge_node *n)
{
    struct list *l;

    list_foreach (l, &n->sessions) {
        struct session *s = container_of(l, struct session, link);

        if (s->welcome && !s->sending) {
            return s;
        }
    }
    return NULL;
}

static void send_list(struct hedge_node *n, struct session *s)
{
    struct view *v = node_view(n);
    Hedge__V1__MembersReply *m = NULL;

    if (v != NULL && members_message(n, v, &m) == 0 &&
        pb_send(s->stream, &m->base, SEND_MS) != 0) {
        rpc_stream_cancel(s->stream);
    }
    members_release(m);
    view_unref(v);
}

static void *publisher_main(void *arg)
{
    struct hedge_node *n = arg;
    struct session *s;

    pthread_mutex_lock(&n->sessions_lock);
    while (!n->publisher_closing) {
        s = next_to_send(n);
        if (s == NULL) {
            pthread_cond_wait(&n->sessions_changed, &n->sessions_lock);
            continue;
        }
        s->welcome = false;
        s->sending = true;
        pthread_mutex_unlock(&n->sessions_lock);
        send_list(n, s);
        pthread_mutex_lock(&n->sessions_lock);
        s->sending = false;
        pthread_cond_broadcast(&n->sessions_changed);
    }
    pthread_mutex_unlock(&n->sessions_lock);
    return NULL;
}

/* --- announcing a leader --- */

struct dial_work {
    struct work work;
    struct hedge_node *node;
    struct membership_dial dial;
    uint64_t token;
};

struct dialed_task {
    struct task task;
    char id[MEMBER_ID_SIZE];
    uint64_t incarnation;
    bool ok;
};

static void on_dialed(struct hedge_node *n, struct task *t)
{
    struct dialed_task *d = container_of(t, struct dialed_task, task);
    struct membership_event ev = {.type = MEMBERSHIP_DIALED,
                                  .id = d->id,
                                  .incarnation = d->incarnation,
                                  .ok = d->ok};

    node_membership(n, &ev);
}

static bool announce(struct hedge_node *n, const struct dial_work *w)
{
    Hedge__V1__LeaderReply m = HEDGE__V1__LEADER_REPLY__INIT;
    char target[TARGET_SIZE];
    struct rpc_channel *c;
    struct hedge_error e = {0};
    void *reply = NULL;
    int rv;

    (void)snprintf(target, sizeof target, "ipv4:%s", w->dial.address);
    if (rpc_channel_new(target, &c) != 0) {
        return false;
    }
    m.id = n->id;
    m.token = w->token;
    m.grpc_address = n->grpc_address;
    m.lease_ms = n->o.lease_ms;
    rv = pb_call(c, "/hedge.v1.Peer/Announce", &m.base,
                 &hedge__v1__empty__descriptor, DIAL_MS, &reply, &e);
    pb_free(reply);
    rpc_channel_free(c);
    return rv == 0;
}

static void run_dial(struct work *work)
{
    struct dial_work *w = container_of(work, struct dial_work, work);
    struct dialed_task *t = task_new(sizeof *t, on_dialed);

    while (t == NULL) {
        clock_sleep_ms(100);
        t = task_new(sizeof *t, on_dialed);
    }
    memcpy(t->id, w->dial.id, sizeof t->id);
    t->incarnation = w->dial.incarnation;
    t->ok = announce(w->node, w);
    node_post(w->node, &t->task);
    mem_free(w);
}

static void start_dial(struct hedge_node *n, const struct membership_dial *d)
{
    struct dial_work *w;

    /* The membership counts on an outcome of each. */
    while ((w = mem_calloc(1, sizeof *w)) == NULL) {
        clock_sleep_ms(NO_MEMORY_MS);
    }
    w->node = n;
    w->dial = *d;
    w->token = n->leader_token;
    if (pool_submit(n->dial_pool, &w->work, run_dial) != 0) {
        mem_free(w); /* The node stops. */
    }
}

struct hint_task {
    struct task task;
    struct engine_lease lease;
};

static void on_hint(struct hedge_node *n, struct task *t)
{
    node_hint(n, ELECTION_HINT_LEADER,
              &container_of(t, struct hint_task, task)->lease);
}

void node_serve_announce(struct hedge_node *n, struct rpc_call *call,
                         const void *request, size_t len)
{
    Hedge__V1__LeaderReply *m =
        pb_unpack(&hedge__v1__leader_reply__descriptor, request, len);
    Hedge__V1__Empty reply = HEDGE__V1__EMPTY__INIT;
    struct hint_task *t = task_new(sizeof *t, on_hint);

    if (n->closing) {
        /* Or the new leader would wait for its reports. */
        rpc_fail(call, HEDGE_ECLOSED, "the node stops");
        mem_free(t);
    } else if (m == NULL || t == NULL ||
               !member_set_text(t->lease.holder, sizeof t->lease.holder,
                                m->id) ||
               !member_set_text(t->lease.address, sizeof t->lease.address,
                                m->grpc_address)) {
        rpc_fail(call, HEDGE_EPROTO, "not an announcement");
        mem_free(t);
    } else {
        t->lease.held = true;
        t->lease.token = m->token;
        t->lease.remaining_ms = m->lease_ms;
        node_post(n, &t->task);
        pb_reply(call, &reply.base);
    }
    pb_free(m);
}

/* --- the member's side --- */

/* What the leader makes of this node; NULL: a member. False: nothing new. */
static bool set_refused(struct hedge_node *n, int code,
                        const struct hedge_error *e)
{
    bool changed;

    pthread_mutex_lock(&n->pub_lock);
    changed = e == NULL ? n->refused.code != 0
                        : strcmp(n->refused.text, e->text) != 0;
    n->joined = n->joined || e == NULL;
    error_clear(&n->refused);
    if (e != NULL) {
        (void)error_set(&n->refused, code, "%s", e->text);
    }
    pthread_mutex_unlock(&n->pub_lock);
    return changed;
}

struct link_task {
    struct task task;
    uint64_t token;
    int status;
};

static void on_link_down(struct hedge_node *n, struct task *t)
{
    struct link_task *l = container_of(t, struct link_task, task);
    struct membership_event ev = {
        .type = MEMBERSHIP_LINK_DOWN, .token = l->token, .status = l->status};

    if (n->stopping) {
        return;
    }
    node_membership(n, &ev);
    node_hint(n, ELECTION_HINT_VANISHED, NULL);
}

struct list_task {
    struct task task;
    struct membership_list list;
    uint64_t lease_ms;
    struct member members[];
};

/* Whoever leads does so with its own: that is not what who gave another one to
 * this node expects. */
static void compare_lease(struct hedge_node *n, uint64_t lease_ms)
{
    char theirs[UNITS_SIZE_TEXT], ours[UNITS_SIZE_TEXT];

    if (lease_ms == 0 || n->leader_token != 0) {
        return; /* An older leader, or this node. */
    }
    atomic_store(&n->leader_lease_ms, lease_ms);
    if (lease_ms != n->o.lease_ms && lease_ms != n->told_lease_ms) {
        log_warn("node",
                 "the group's leader has a lease of %s, this node one of %s: "
                 "that of whoever leads counts; --lease should be the same on "
                 "all",
                 units_format_duration(lease_ms, theirs),
                 units_format_duration(n->o.lease_ms, ours));
    }
    n->told_lease_ms = lease_ms;
}

static void on_list(struct hedge_node *n, struct task *t)
{
    struct list_task *l = container_of(t, struct list_task, task);
    struct membership_event ev = {.type = MEMBERSHIP_LIST, .list = &l->list};

    compare_lease(n, l->lease_ms);
    l->list.members = l->members;
    node_membership(n, &ev);
}

/* An error ends the stream: the next one begins with a list. */
static int forward_list(struct hedge_node *n, Hedge__V1__MembersReply *m,
                        struct hedge_error *e)
{
    struct list_task *t;

    if (m->n_members > MEMBERSHIP_MAX) {
        return error_set(e, HEDGE_EPROTO, "a list of %zu members",
                         m->n_members);
    }
    t = task_new(sizeof *t + m->n_members * sizeof t->members[0], on_list);
    if (t == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the members");
    }
    t->list.token = m->token;
    t->list.version = m->version;
    t->lease_ms = m->lease_ms;
    for (size_t i = 0; i < m->n_members; i++) {
        if (!pb_to_member(m->members[i], &t->members[i])) {
            mem_free(t);
            return error_set(e, HEDGE_EPROTO, "a member that makes no sense");
        }
    }
    t->list.n_members = m->n_members;
    (void)set_refused(n, 0, NULL);
    node_post(n, &t->task);
    return 0;
}

/* All stores in the first report; in several messages when there are many. */
static int send_stores(struct hedge_node *n, struct rpc_stream *s,
                       Hedge__V1__JoinReport *m)
{
    int rv = stores_report(n, m);
    Hedge__V1__DirectoryEntry **all = m->stores;
    size_t count = m->n_stores, at = 0;

    while (rv == 0 && count - at > REPORT_STORES) {
        m->stores = all + at;
        m->n_stores = REPORT_STORES;
        m->stores_complete = false;
        rv = pb_send(s, &m->base, SEND_MS);
        at += REPORT_STORES;
    }
    if (rv == 0) {
        m->stores = all + at;
        m->n_stores = count - at;
        m->stores_complete = true;
        rv = pb_send(s, &m->base, SEND_MS);
    }
    m->stores = all;
    m->n_stores = count;
    return rv;
}

static int send_report(struct hedge_node *n, struct rpc_stream *s,
                       const struct member *self, bool first, bool leaving)
{
    Hedge__V1__JoinReport m = HEDGE__V1__JOIN_REPORT__INIT;
    Hedge__V1__Member pb;
    int rv;

    pb_member(self, &pb);
    m.self = &pb;
    m.wire_version = WIRE_VERSION;
    m.block_version = BLOCK_VERSION;
    m.block_size = (uint32_t)n->o.block_size;
    m.leaving = leaving;
    rv = first ? send_stores(n, s, &m) : pb_send(s, &m.base, SEND_MS);
    stores_report_release(&m);
    return rv;
}

/* One stream, from opening to its end. up->lock held on entry and exit. */
static int run_stream(struct hedge_node *n, struct uplink *up,
                      struct rpc_stream *s, struct hedge_error *e)
{
    bool first = true;
    int rv = 0;

    up->report = true;
    while (rv == 0 && !up->connect) {
        struct member self = up->self;
        bool report = up->report, leaving = up->closing;
        struct rpc_msg msg;

        up->report = false;
        pthread_mutex_unlock(&up->lock);
        if (report || leaving) {
            rv = send_report(n, s, &self, first, leaving);
            first = false;
        }
        if (rv == 0) {
            rv = rpc_stream_recv(s, leaving ? SEND_MS : 100, &msg, e);
        }
        if (rv == 0) {
            Hedge__V1__MembersReply *m = pb_from_msg_large(
                &hedge__v1__members_reply__descriptor, &msg, e);

            rv = m == NULL ? HEDGE_EPROTO : forward_list(n, m, e);
            pb_free(m);
        } else if (rv == HEDGE_ETIMEDOUT) {
            rv = 0;
        }
        pthread_mutex_lock(&up->lock);
        if (leaving) {
            break;
        }
    }
    return rv;
}

static void report_down(struct hedge_node *n, uint64_t token, int status)
{
    struct link_task *t;

    /* Or nobody would open the next stream. */
    while ((t = task_new(sizeof *t, on_link_down)) == NULL) {
        clock_sleep_ms(NO_MEMORY_MS);
    }
    t->token = token;
    t->status = status;
    node_post(n, &t->task);
}

/* up->lock held on entry and exit. */
static void serve_link(struct hedge_node *n, struct uplink *up)
{
    char target[TARGET_SIZE];
    uint64_t token = up->token;
    struct rpc_channel *c = NULL;
    struct rpc_stream *s = NULL;
    struct hedge_error e = {0};
    int rv;

    memcpy(target, up->target, sizeof target);
    up->connect = false;
    pthread_mutex_unlock(&up->lock);
    rv = rpc_channel_new(target, &c);
    if (rv == 0) {
        rv = rpc_stream_open(c, "/hedge.v1.Peer/Join", RPC_NO_TIMEOUT, &s);
    }
    pthread_mutex_lock(&up->lock);
    if (rv == 0) {
        rv = run_stream(n, up, s, &e);
    }
    pthread_mutex_unlock(&up->lock);
    rpc_stream_free(s);
    rpc_channel_free(c);
    if (rv != 0) {
        /* Refused for what this node is, it stays outside until changed. */
        bool refused =
            rv == HEDGE_EVERSION || rv == HEDGE_EINVAL || rv == HEDGE_EREFUSED;

        bool news = refused && set_refused(n, rv, &e);

        log_line(news      ? LOG_ERROR
                 : refused ? LOG_DEBUG
                           : LOG_INFO,
                 "node", "%scontrol stream to %s: %s",
                 refused ? "this node is not in the group: " : "", target,
                 e.text[0] != '\0' ? e.text : hedge_strerror(rv));
        report_down(n, token, rv);
    }
    pthread_mutex_lock(&up->lock);
}

static void *uplink_main(void *arg)
{
    struct hedge_node *n = arg;
    struct uplink *up = &n->uplink;

    pthread_mutex_lock(&up->lock);
    while (!up->closing) {
        if (up->connect) {
            serve_link(n, up);
        } else {
            pthread_cond_wait(&up->wake, &up->lock);
        }
    }
    pthread_mutex_unlock(&up->lock);
    return NULL;
}

/* --- carrying out --- */

static void close_sessions(struct hedge_node *n, struct membership_actions *a)
{
    for (size_t i = 0; i < a->n_closes; i++) {
        struct session *s = session_find(n, a->closes[i]);

        if (s != NULL) {
            rpc_stream_cancel(s->stream);
        }
    }
}

static void act_as_member(struct hedge_node *n, struct membership_actions *a)
{
    const struct membership_leader *l = membership_leader(n->membership);
    struct uplink *up = &n->uplink;

    pthread_mutex_lock(&up->lock);
    up->self = *membership_self(n->membership);
    if (a->connect) {
        (void)snprintf(up->target, sizeof up->target, "ipv4:%s", l->address);
        up->token = l->token;
        up->connect = true;
    }
    up->report = up->report || a->report;
    pthread_cond_signal(&up->wake);
    pthread_mutex_unlock(&up->lock);
}

void node_link_act(struct hedge_node *n, struct membership_actions *a)
{
    struct list *l;

    for (size_t i = 0; i < a->n_dials; i++) {
        start_dial(n, &a->dials[i]);
    }
    pthread_mutex_lock(&n->sessions_lock);
    close_sessions(n, a);
    if (a->publish) {
        list_foreach (l, &n->sessions) {
            container_of(l, struct session, link)->welcome = true;
        }
        pthread_cond_broadcast(&n->sessions_changed);
    }
    pthread_mutex_unlock(&n->sessions_lock);
    if (a->connect || a->report) {
        act_as_member(n, a);
    }
}

int node_link_start(struct hedge_node *n, struct hedge_error *e)
{
    if (pthread_create(&n->uplink.thread, NULL, uplink_main, n) != 0) {
        return error_set(e, HEDGE_ENOMEM, "cannot start a thread");
    }
    n->uplink.running = true;
    (void)pthread_setname_np(n->uplink.thread, "hedge-uplink");
    if (pthread_create(&n->publisher, NULL, publisher_main, n) != 0) {
        return error_set(e, HEDGE_ENOMEM, "cannot start a thread");
    }
    n->publisher_runs = true;
    (void)pthread_setname_np(n->publisher, "hedge-publish");
    return 0;
}

void node_link_stop(struct hedge_node *n)
{
    struct uplink *up = &n->uplink;

    pthread_mutex_lock(&up->lock);
    up->closing = true;
    pthread_cond_signal(&up->wake);
    pthread_mutex_unlock(&up->lock);
    if (up->running) {
        pthread_join(up->thread, NULL);
        up->running = false;
    }
    pthread_mutex_lock(&n->sessions_lock);
    n->publisher_closing = true;
    pthread_cond_broadcast(&n->sessions_changed);
    pthread_mutex_unlock(&n->sessions_lock);
    if (n->publisher_runs) {
        pthread_join(n->publisher, NULL);
        n->publisher_runs = false;
    }
}
