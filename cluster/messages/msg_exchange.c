/* msg_exchange.c - the thread that waits does the work: it starts the calls,
 * sleeps until one has ended, a deadline comes or it is time to look again, and
 * takes the next step of each delivery. Completions on other threads do no more
 * than put their target on a list. No call outlives the exchange: those that do
 * not count any more are cancelled and waited for, which takes no time. */
#include "cluster/messages/msg_exchange.h"

#include "cluster/messages/messaging.h"
#include "cluster/node_internal.h"
#include "proto/messages.pb-c.h"
#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define LOOK_MS 100 /* Who leads? Is anybody still waiting? */
/* A thread that sends one message after the other polls for its replies. */
#define HOT_GAP_NS 200000u
#define HOT_STREAK 4
#define TIMEOUT_MAX_MS ((uint64_t)24 * 3600 * 1000)

struct exchange;

/* One delivery and the call of it that is under way. */
struct target {
    struct delivery d;
    struct exchange *x;
    char id[MEMBER_ID_SIZE], address[TARGET_SIZE];
    bool here;      /* It is this node. */
    uint64_t token; /* The last leader's that was known when it was chosen. */

    struct list link; /* x->ended */
    bool busy;        /* From the start of a call to its being taken. */
    bool local;
    struct rpc_pending *rpc;
    struct kept_channel *channel;
    int local_rv;
    struct hedge_error local_error;

    uint64_t held;
    struct msg_buf reply;
    /* Where a node that does not lead has pointed to. */
    char hint[MEMBER_ID_SIZE], hint_address[MEMBER_ID_SIZE];
};

struct exchange {
    struct hedge_node *n;
    const struct exchange_options *o;
    enum handler_kind kind;
    uint64_t upload, look_ms;
    struct target *targets;
    size_t n_targets, n_open;

    bool hot; /* The thread may poll. */

    pthread_mutex_t lock; /* What follows. */
    pthread_cond_t wake;
    struct list ended;
    bool sleeping;
};

/* When this thread's exchange before has ended, and how many have followed one
 * another. */
static __thread struct {
    uint64_t ended_ns;
    unsigned streak;
} pace;

/* With the lock held. */
static void wake_up(struct exchange *x)
{
    if (x->sleeping) {
        x->sleeping = false;
        rpc_poll_waits(false);
        pthread_cond_signal(&x->wake);
    }
}

static void ended(struct target *t)
{
    struct exchange *x = t->x;

    pthread_mutex_lock(&x->lock);
    list_push(&x->ended, &t->link);
    wake_up(x);
    pthread_mutex_unlock(&x->lock);
}

static uint64_t left_ms(const struct target *t, uint64_t now_ms)
{
    return t->d.deadline_ms > now_ms ? t->d.deadline_ms - now_ms : 0;
}

/* --- finding the node -------------------------------------------------------
 */

static void route_to(struct target *t, const char *id, const char *address)
{
    (void)snprintf(t->id, sizeof t->id, "%s", id);
    node_target_of(t->x->n, id, address, t->address);
    delivery_routed(&t->d, false);
}

/* Is it known already how to get to the leader? That this node itself leads is
 * known in any case. */
static bool known_route(struct target *t)
{
    struct hedge_node *n = t->x->n;
    bool known;

    pthread_mutex_lock(&n->pub_lock);
    t->here = election_hold_valid(&n->hold, clock_boot_ms());
    known = !t->here && n->view != NULL && n->route.target[0] != '\0' &&
            n->route.token == n->leader.token &&
            n->route.view_token == n->view->token &&
            n->route.view_version == n->view->version &&
            strcmp(n->route.id, n->leader.id) == 0;
    if (known) {
        memcpy(t->id, n->route.id, sizeof t->id);
        memcpy(t->address, n->route.target, sizeof t->address);
        t->token = n->route.token > t->token ? n->route.token : t->token;
    }
    pthread_mutex_unlock(&n->pub_lock);
    return known;
}

static void remember_route(const struct target *t)
{
    struct hedge_node *n = t->x->n;

    pthread_mutex_lock(&n->pub_lock);
    if (n->view != NULL && strcmp(t->id, n->leader.id) == 0) {
        n->route.token = n->leader.token;
        n->route.view_token = n->view->token;
        n->route.view_version = n->view->version;
        memcpy(n->route.id, t->id, sizeof n->route.id);
        memcpy(n->route.target, t->address, sizeof n->route.target);
    }
    pthread_mutex_unlock(&n->pub_lock);
}

static void route_to_leader(struct target *t, uint64_t now_ms)
{
    struct hedge_node *n = t->x->n;
    struct hedge_leader l = {.id = ""};
    struct hedge_error e;
    bool known;

    if (t->hint[0] == '\0' && known_route(t)) {
        delivery_routed(&t->d, false);
        return;
    }
    known = hedge_leader(n, &l) == 0;
    t->token = known && l.token > t->token ? l.token : t->token;
    t->here = hedge_has_lock(n, NULL);
    if (t->here) {
        (void)snprintf(t->id, sizeof t->id, "%s", n->id);
        delivery_routed(&t->d, true);
        return;
    }
    if (t->hint[0] != '\0' && strcmp(t->hint, n->id) != 0) {
        route_to(t, t->hint, t->hint_address);
        t->hint[0] = '\0';
        return;
    }
    if (known && strcmp(l.id, n->id) != 0) {
        route_to(t, l.id, l.grpc_address);
        remember_route(t);
        return;
    }
    (void)error_set(&e, HEDGE_ENOLEADER, "the group has no leader at present");
    delivery_unroutable(&t->d, &e, now_ms);
}

static void route(struct target *t, uint64_t now_ms)
{
    struct hedge_error e;

    if (t->d.to_leader) {
        route_to_leader(t, now_ms);
    } else if (t->here || t->address[0] != '\0') {
        delivery_routed(&t->d, t->here);
    } else {
        (void)error_set(&e, HEDGE_ENOTFOUND, "the group has no member %s",
                        t->id);
        delivery_unroutable(&t->d, &e, now_ms);
    }
}

/* --- calls ------------------------------------------------------------------
 */

static void on_rpc(void *arg)
{
    struct target *t = arg;

    if (t->x->hot) {
        rpc_leave_duty();
    }
    ended(t);
}

static void on_handled(void *arg, int rv, const struct hedge_error *e,
                       struct msg_buf *reply)
{
    struct target *t = arg;

    t->local_rv = rv;
    if (rv != 0) {
        t->local_error = *e;
    } else {
        msg_buf_release(&t->reply);
        msg_buf_move(reply, &t->reply);
    }
    ended(t);
}

static void start_here(struct target *t, uint64_t now_ms)
{
    const struct exchange_options *o = t->x->o;
    struct handlers_message m = {.kind = t->x->kind,
                                 .data = o->data,
                                 .len = o->len,
                                 .shared = o->shared,
                                 .from = o->from,
                                 .timeout_ms =
                                     messaging_far_timeout(left_ms(t, now_ms)),
                                 .done = on_handled,
                                 .arg = t};
    struct hedge_error e;
    int rv;

    delivery_started(&t->d);
    t->busy = t->local = true;
    rv = handlers_submit(t->x->n->handlers, &m, &e);
    if (rv != 0) {
        t->busy = false;
        /* Room that will never be there is not waited for. */
        delivery_failed(&t->d, &e,
                        rv != HEDGE_EEXHAUSTED ||
                            msg_budget_fits(t->x->n->messages, o->len),
                        now_ms);
    }
}

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

/* The piece that is due, packed. */
static int pack_piece(struct target *t, uint64_t now_ms, struct pb_buf *out)
{
    const struct exchange_options *o = t->x->o;
    union {
        const void *in;
        uint8_t *out;
    } data = {.in = o->data};
    Hedge__V1__DeliverRequest m = HEDGE__V1__DELIVER_REQUEST__INIT;

    m.kind = t->x->kind;
    m.from = unconst(o->from);
    m.timeout_ms = messaging_far_timeout(left_ms(t, now_ms));
    if (o->len > MESSAGING_SMALL) {
        m.upload =
            t->x->upload + t->d.attempt + ((uint64_t)(t - t->x->targets) << 32);
        m.offset = t->d.piece_at;
        m.len = o->len;
    }
    if (t->d.piece_len > 0) {
        m.data.data = data.out + t->d.piece_at;
        m.data.len = t->d.piece_len;
    }
    return pb_pack(&m.base, out);
}

static void start_rpc(struct target *t, const char *path,
                      const struct pb_buf *request, uint64_t now_ms)
{
    struct hedge_error e;
    int rv = HEDGE_ENOMEM;

    t->local = false;
    t->channel = node_channel(t->x->n, t->address);
    delivery_started(&t->d);
    if (t->channel != NULL) {
        t->busy = true;
        rv = rpc_call_start(kept_channel_rpc(t->channel), path, request->data,
                            request->len, left_ms(t, now_ms), on_rpc, t,
                            &t->rpc);
    }
    if (rv != 0) {
        t->busy = false;
        if (t->channel != NULL) {
            node_channel_put(t->x->n, t->channel);
        }
        (void)error_set(&e, rv, "calling %s: %s", t->id, hedge_strerror(rv));
        delivery_failed(&t->d, &e, true, now_ms);
    }
}

static void start_send(struct target *t, uint64_t now_ms)
{
    struct hedge_error e;
    struct pb_buf buf;

    if (t->here) {
        start_here(t, now_ms);
        return;
    }
    if (pack_piece(t, now_ms, &buf) != 0) {
        (void)error_set(&e, HEDGE_ENOMEM, "no memory for a message");
        delivery_started(&t->d);
        delivery_failed(&t->d, &e, true, now_ms);
        return;
    }
    start_rpc(t,
              t->x->o->len > MESSAGING_SMALL ? "/hedge.v1.MessagePeer/Put"
                                             : "/hedge.v1.MessagePeer/Deliver",
              &buf, now_ms);
    mem_free(buf.data);
}

static void start_fetch(struct target *t, uint64_t now_ms)
{
    Hedge__V1__FetchRequest m = HEDGE__V1__FETCH_REQUEST__INIT;
    struct hedge_error e;
    struct pb_buf buf;

    if (msg_buf_reserve(&t->reply, t->d.reply_len, 0, &e) != 0) {
        delivery_no_room(&t->d, &e, now_ms);
        return;
    }
    m.held = t->held;
    m.offset = t->d.reply_at;
    if (pb_pack(&m.base, &buf) != 0) {
        (void)error_set(&e, HEDGE_ENOMEM, "no memory for a message");
        delivery_no_room(&t->d, &e, now_ms);
        return;
    }
    start_rpc(t, "/hedge.v1.MessagePeer/Fetch", &buf, now_ms);
    mem_free(buf.data);
}

static void cancel(struct target *t)
{
    if (t->busy && t->local) {
        handlers_cancel(t->x->n->handlers, t);
    } else if (t->busy) {
        rpc_call_cancel(t->rpc);
    }
}

/* --- results ----------------------------------------------------------------
 */

static void take_refusal(struct target *t, const Hedge__V1__DeliverReply *m,
                         uint64_t now_ms)
{
    struct hedge_error e;
    int code = rpc_code_from_name(m->refused, strlen(m->refused));

    if (code == HEDGE_ENOTLEADER) {
        (void)snprintf(t->hint, sizeof t->hint, "%s", m->leader);
        (void)snprintf(t->hint_address, sizeof t->hint_address, "%s",
                       m->leader_address);
    }
    (void)error_set(&e, code != 0 ? code : HEDGE_EPROTO, "%s", m->text);
    delivery_failed(&t->d, &e, true, now_ms);
}

static void take_answer(struct target *t, const Hedge__V1__DeliverReply *m,
                        uint64_t now_ms)
{
    struct hedge_error e;
    bool fetched = t->d.then == DELIVERY_FETCH;
    size_t len = fetched ? t->d.reply_len : (size_t)m->len, room;

    if (m->refused[0] != '\0') {
        take_refusal(t, m, now_ms);
        return;
    }
    room = len - (fetched ? t->d.reply_at : 0);
    if (m->len > MSG_MAX || m->data.len > room ||
        (m->data.len < room && !fetched && m->held == 0) ||
        (fetched && m->data.len == 0)) {
        (void)error_set(&e, HEDGE_EPROTO, "node %s sent no sound reply", t->id);
        delivery_failed(&t->d, &e, false, now_ms);
        return;
    }
    if (!fetched) {
        t->held = m->held;
        msg_buf_clear(&t->reply);
    }
    if ((!fetched && msg_buf_force(&t->reply, m->data.len) != 0) ||
        msg_buf_append(&t->reply, m->data.data, m->data.len) != 0) {
        (void)error_set(&e, HEDGE_ENOMEM, "no memory for the reply of %s",
                        t->id);
        delivery_failed(&t->d, &e, false, now_ms);
        return;
    }
    delivery_answered(&t->d, len, m->data.len);
}

/* To gRPC's own texts. */
static void name_node(const struct target *t, struct hedge_error *e)
{
    if (e->code == HEDGE_EUNAVAILABLE || e->code == HEDGE_ECANCELED) {
        (void)error_prefix(e, "node %s", t->id);
    } else if (strcmp(e->text, "Deadline Exceeded") == 0) {
        (void)error_set(e, e->code, "node %s did not answer in time", t->id);
    }
}

static void take_rpc(struct target *t, uint64_t now_ms)
{
    Hedge__V1__DeliverReply *m = NULL;
    struct hedge_error e;
    struct rpc_msg msg;
    int rv = rpc_call_finish(t->rpc, &msg, &e);

    t->rpc = NULL;
    node_channel_put(t->x->n, t->channel);
    if (!t->d.calling) {
        rpc_msg_release(&msg); /* Given up meanwhile. */
        return;
    }
    if (rv == 0) {
        m = pb_from_msg_large(&hedge__v1__deliver_reply__descriptor, &msg, &e);
    }
    if (m != NULL) {
        take_answer(t, m, now_ms);
    } else {
        name_node(t, &e);
        delivery_failed(&t->d, &e, false, now_ms);
    }
    pb_free(m);
}

static void take_local(struct target *t, uint64_t now_ms)
{
    if (!t->d.calling) {
        return;
    }
    if (t->local_rv == 0) {
        delivery_answered(&t->d, t->reply.len, t->reply.len);
    } else {
        delivery_failed(&t->d, &t->local_error, t->local_rv == HEDGE_ENOTLEADER,
                        now_ms);
    }
}

/* --- the loop ---------------------------------------------------------------
 */

/* Until it waits for something. */
static void step(struct target *t, uint64_t now_ms)
{
    if (delivery_tick(&t->d, now_ms)) {
        cancel(t);
    }
    while (t->d.act != DELIVERY_WAIT && t->d.act != DELIVERY_DONE) {
        if (t->busy) {
            return; /* With a call that has been given up. */
        }
        if (t->d.act == DELIVERY_ROUTE) {
            route(t, now_ms);
        } else if (t->d.act == DELIVERY_SEND) {
            start_send(t, now_ms);
        } else {
            start_fetch(t, now_ms);
        }
    }
}

static struct target *next_ended(struct exchange *x)
{
    struct list *l;

    pthread_mutex_lock(&x->lock);
    l = list_pop(&x->ended);
    pthread_mutex_unlock(&x->lock);
    return l != NULL ? container_of(l, struct target, link) : NULL;
}

static void take_ended(struct exchange *x, uint64_t now_ms)
{
    struct target *t;

    while ((t = next_ended(x)) != NULL) {
        t->busy = false;
        if (t->local) {
            take_local(t, now_ms);
        } else {
            take_rpc(t, now_ms);
        }
    }
}

static bool has_ended(void *arg)
{
    struct exchange *x = arg;
    bool some;

    pthread_mutex_lock(&x->lock);
    some = !list_empty(&x->ended);
    pthread_mutex_unlock(&x->lock);
    return some;
}

/* One of the calls, when all that is waited for are calls to other nodes: only
 * those end the wait of a thread that polls. */
static struct rpc_pending *only_remote(struct exchange *x)
{
    struct rpc_pending *own = NULL;

    for (size_t i = 0; i < x->n_targets; i++) {
        const struct target *t = &x->targets[i];

        if (t->busy && t->local) {
            return NULL;
        }
        own = t->busy ? t->rpc : own;
    }
    return own;
}

/* Until a call has ended or something is due. */
static void doze(struct exchange *x, uint64_t until_ms)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ms / 1000),
                          .tv_nsec = (long)(until_ms % 1000) * 1000000};
    uint64_t now_ms = clock_mono_ms();

    struct rpc_pending *own = x->hot ? only_remote(x) : NULL;

    if (own != NULL && now_ms < until_ms &&
        rpc_poll(has_ended, x, until_ms - now_ms, own)) {
        return;
    }
    pthread_mutex_lock(&x->lock);
    if (list_empty(&x->ended)) {
        x->sleeping = true;
        rpc_poll_waits(true);
        while (x->sleeping &&
               pthread_cond_timedwait(&x->wake, &x->lock, &ts) == 0) {
        }
        wake_up(x);
    }
    pthread_mutex_unlock(&x->lock);
}

static void abandon_all(struct exchange *x, int code, const char *text)
{
    for (size_t i = 0; i < x->n_targets; i++) {
        struct target *t = &x->targets[i];

        if (t->d.act != DELIVERY_DONE) {
            cancel(t);
            delivery_abandon(&t->d, code, text);
        }
    }
}

/* Does another node lead than the one that was chosen? That one may have been
 * named by a node that knows more than this one does yet. */
static bool is_led_by_another(const struct target *t)
{
    struct hedge_leader l;

    return hedge_leader(t->x->n, &l) == 0 && strcmp(l.id, t->id) != 0 &&
           l.token > t->token;
}

/* Now and then. */
static void look(struct exchange *x, uint64_t now_ms)
{
    if (now_ms < x->look_ms) {
        return;
    }
    x->look_ms = now_ms + LOOK_MS;
    if (x->n->closing) {
        abandon_all(x, HEDGE_ECLOSED, "the node stops");
    } else if (x->o->gone != NULL && x->o->gone(x->o->ctx)) {
        abandon_all(x, HEDGE_ECANCELED, "the sender has gone");
    } else if (x->kind == HANDLER_LEADER && is_led_by_another(&x->targets[0]) &&
               delivery_leader_changed(&x->targets[0].d, now_ms)) {
        cancel(&x->targets[0]);
    }
}

/* What is done goes to `fn`; returns when something is due next. */
static uint64_t step_all(struct exchange *x, void (*fn)(struct target *t))
{
    uint64_t now_ms = clock_mono_ms(), until_ms = x->look_ms;

    take_ended(x, now_ms);
    look(x, now_ms);
    for (size_t i = 0; i < x->n_targets; i++) {
        struct target *t = &x->targets[i];

        if (t->x == NULL) {
            continue;
        }
        step(t, now_ms);
        if (t->d.act == DELIVERY_DONE && !t->busy) {
            fn(t);
            t->x = NULL; /* Told. */
            x->n_open--;
        } else if (t->d.act == DELIVERY_WAIT && t->d.wake_ms < until_ms) {
            until_ms = t->d.wake_ms;
        }
    }
    return until_ms;
}

static void run(struct exchange *x, void (*fn)(struct target *t))
{
    for (;;) {
        uint64_t until_ms = step_all(x, fn);

        if (x->n_open == 0) {
            break;
        }
        doze(x, until_ms);
    }
    assert(list_empty(&x->ended));
}

static void exchange_init(struct exchange *x, struct hedge_node *n,
                          const struct exchange_options *o,
                          enum handler_kind kind)
{
    pthread_condattr_t attr;

    memset(x, 0, sizeof *x);
    x->n = n;
    x->o = o;
    x->kind = kind;
    x->look_ms = clock_mono_ms() + LOOK_MS;
    pace.streak =
        clock_mono_ns() - pace.ended_ns < HOT_GAP_NS ? pace.streak + 1 : 0;
    x->hot = pace.streak >= HOT_STREAK;
    list_init(&x->ended);
    pthread_mutex_init(&x->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&x->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (o->len > MESSAGING_SMALL) {
        (void)getrandom(&x->upload, sizeof x->upload, 0);
    }
}

static void exchange_release(struct exchange *x)
{
    pace.ended_ns = clock_mono_ns();
    pthread_cond_destroy(&x->wake);
    pthread_mutex_destroy(&x->lock);
}

static uint64_t deadline_of(const struct exchange_options *o)
{
    uint64_t ms = o->timeout_ms;

    return clock_mono_ms() + (ms < TIMEOUT_MAX_MS ? ms : TIMEOUT_MAX_MS);
}

static void target_init(struct target *t, struct exchange *x)
{
    memset(t, 0, sizeof *t);
    t->x = x;
    list_init(&t->link);
    msg_buf_init(&t->reply, x->n->messages);
    t->d.len = x->o->len;
    t->d.deadline_ms = deadline_of(x->o);
    delivery_begin(&t->d);
}

static int check(const struct exchange_options *o, struct hedge_error *e)
{
    char size[UNITS_SIZE_TEXT];

    return o->len <= MSG_MAX
               ? 0
               : error_set(e, HEDGE_ETOOBIG,
                           "a message of %zu bytes; at most %s are possible",
                           o->len, units_format_size(MSG_MAX, size));
}

/* --- to the leader ----------------------------------------------------------
 */

static void nothing(struct target *t)
{
    (void)t;
}

int exchange_send(struct hedge_node *n, const struct exchange_options *o,
                  struct hedge_reply **reply, struct hedge_error *e)
{
    struct exchange x;
    struct target t;
    int rv = check(o, e);

    *reply = NULL;
    if (rv != 0) {
        return rv;
    }
    exchange_init(&x, n, o, HANDLER_LEADER);
    target_init(&t, &x);
    t.d.to_leader = true;
    t.d.retries = o->retries;
    x.targets = &t;
    x.n_targets = x.n_open = 1;
    run(&x, nothing);
    rv = t.d.error.code;
    if (rv == 0) {
        *reply = msg_reply_new(t.id, 0, "", &t.reply);
        rv = *reply != NULL
                 ? 0
                 : error_set(e, HEDGE_ENOMEM, "no memory for the reply");
    } else if (e != NULL) {
        *e = t.d.error;
    }
    msg_buf_release(&t.reply);
    exchange_release(&x);
    return rv;
}

/* --- to members -------------------------------------------------------------
 */

static void tell(struct target *t)
{
    const struct exchange_options *o = t->x->o;
    struct hedge_reply *r;

    if (t->d.error.code != 0) {
        msg_buf_clear(&t->reply);
    }
    r = msg_reply_new(t->id, t->d.error.code, t->d.error.text, &t->reply);
    msg_buf_release(&t->reply);
    o->on_reply(o->ctx, r);
}

static bool is_wanted(const struct exchange_options *o, const char *id,
                      const char *self)
{
    if (o->skip_self && strcmp(id, self) == 0) {
        return false;
    }
    for (size_t i = 0; i < o->n_only; i++) {
        if (strcmp(o->only[i], id) == 0) {
            return true;
        }
    }
    return o->n_only == 0;
}

static bool is_member(const struct view *v, const char *id)
{
    for (size_t i = 0; i < v->n; i++) {
        if (strcmp(v->members[i].id, id) == 0) {
            return true;
        }
    }
    return false;
}

static struct target *add_target(struct exchange *x, const char *id)
{
    struct target *t = &x->targets[x->n_targets++];

    target_init(t, x);
    (void)snprintf(t->id, sizeof t->id, "%s", id);
    t->here = strcmp(id, x->n->id) == 0;
    return t;
}

static void add_targets(struct exchange *x, const struct view *v)
{
    const struct exchange_options *o = x->o;

    for (size_t i = 0; i < v->n; i++) {
        const struct member *m = &v->members[i];
        struct target *t;

        if (!is_wanted(o, m->id, x->n->id)) {
            continue;
        }
        t = add_target(x, m->id);
        if (v->targets != NULL) {
            memcpy(t->address, v->targets[i], sizeof t->address);
        } else {
            node_target(x->n, m, t->address);
        }
    }
    for (size_t i = 0; i < o->n_only; i++) {
        if (!is_member(v, o->only[i])) {
            (void)add_target(x, o->only[i]);
        }
    }
    x->n_open = x->n_targets;
}

/* The members, once there is a list of them. */
static int await_view(struct hedge_node *n, const struct exchange_options *o,
                      struct view **out, struct hedge_error *e)
{
    uint64_t until_ms = deadline_of(o);

    *out = NULL;
    for (;;) {
        struct view *v = node_view(n);

        if (v != NULL && v->n > 0) {
            *out = v;
            return 0;
        }
        view_unref(v);
        if (n->closing) {
            return error_set(e, HEDGE_ECLOSED, "the node stops");
        }
        if (o->gone != NULL && o->gone(o->ctx)) {
            return error_set(e, HEDGE_ECANCELED, "the sender has gone");
        }
        if (clock_mono_ms() >= until_ms) {
            return error_set(e, HEDGE_ENOLEADER,
                             "the group has no leader, and no list of members");
        }
        clock_sleep_ms(MESSAGING_ROUTE_MS);
    }
}

int exchange_broadcast(struct hedge_node *n, const struct exchange_options *o,
                       struct hedge_error *e)
{
    struct exchange x;
    struct view *v;
    int rv = check(o, e);

    if (rv == 0 && o->n_only > EXCHANGE_ONLY_MAX) {
        rv = error_set(e, HEDGE_ETOOBIG,
                       "a broadcast to %zu ids; at most %u can be named",
                       o->n_only, EXCHANGE_ONLY_MAX);
    }
    rv = rv != 0 ? rv : await_view(n, o, &v, e);
    if (rv != 0) {
        return rv;
    }
    exchange_init(&x, n, o, HANDLER_BROADCAST);
    x.targets = mem_calloc(v->n + o->n_only, sizeof x.targets[0]);
    if (x.targets != NULL) {
        add_targets(&x, v);
        run(&x, tell);
    } else {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for a broadcast");
    }
    mem_free(x.targets);
    exchange_release(&x);
    view_unref(v);
    return rv;
}
