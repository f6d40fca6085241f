#include "tools/keeper.h"

#include "cluster/pb.h"
#include "cluster/locks/sem_view.h"
#include "proto/locks.pb-c.h"
#include "store/base/clock.h"
#include "store/base/error.h"
#include "store/base/mem.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#define DIAL_MS 3000
#define PAUSE_MS 100
#define WATCH_MS 60000
#define CLOSE_MS 3000
#define SLACK_MS 5000 /* For a node to say that time is up. */

/* A connection, kept until nobody uses it any more. */
struct line {
    struct client *client;
    unsigned refs; /* Under the keeper's lock. */
    bool broken;
};

struct keeper {
    struct keeper_request r;
    const struct ctl *ctl;
    char *nodes; /* The ones given, then all others that are known. */
    int event;
    pthread_t renewer, waiter, watcher;

    pthread_mutex_t dial_lock; /* Before `lock`. */
    pthread_mutex_t lock;      /* Over all that follows. */
    pthread_cond_t wake;
    struct line *line;
    uint64_t session, request;
    uint32_t attempt;
    struct sem_view view;
    uint64_t grant_term, grant_at; /* When the grant was answered. */
    uint64_t renew_at_ms;
    bool renew_now;
    struct keeper_state state;
    bool stopping;
};

uint64_t keeper_random(void)
{
    uint64_t id = 0;

    while (id == 0) {
        if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id) {
            id = clock_wall_ns() ^ clock_mono_ns() << 20;
        }
    }
    return id;
}

void keeper_name(char *out, size_t size)
{
    char host[200] = "";

    if (gethostname(host, sizeof host - 1) != 0 || host[0] == '\0') {
        (void)snprintf(host, sizeof host, "localhost");
    }
    (void)snprintf(out, size, "%s:%d", host, (int)getpid());
}

static void changed(struct keeper *k)
{
    const uint64_t one = 1;

    (void)!write(k->event, &one, sizeof one);
    pthread_cond_broadcast(&k->wake);
}

static void wait_ms(struct keeper *k, uint64_t ms)
{
    uint64_t until = clock_mono_ns() + ms * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                          .tv_nsec = (long)(until % 1000000000u)};

    (void)pthread_cond_timedwait(&k->wake, &k->lock, &ts);
}

/* --- connections ------------------------------------------------------------
 */

static void line_put(struct keeper *k, struct line *l, bool broken)
{
    bool last;

    pthread_mutex_lock(&k->lock);
    if (broken && !l->broken) {
        l->broken = true;
        if (k->line == l) {
            k->line = NULL;
            l->refs--;
        }
    }
    last = --l->refs == 0;
    pthread_mutex_unlock(&k->lock);
    if (last) {
        client_free(l->client);
        mem_free(l);
    }
}

/* The other nodes, should the ones given fail. */
static void learn_nodes(struct keeper *k, struct client *c)
{
    Hedge__V1__MembersReply *m;
    size_t size;
    char *all;

    if (client_members(c, &m, NULL) != 0) {
        return;
    }
    size = (k->ctl->nodes != NULL ? strlen(k->ctl->nodes) : 0) + 1;
    for (size_t i = 0; i < m->n_members; i++) {
        size += strlen(m->members[i]->grpc_address) + 1;
    }
    all = mem_alloc(size + sizeof CLIENT_DEFAULT_NODE);
    if (all != NULL) {
        all[0] = '\0';
        for (size_t i = 0; i < m->n_members && i < CLIENT_NODES_MAX / 2; i++) {
            size_t used = strlen(all);
            (void)snprintf(all + used, size - used, "%s%s", i > 0 ? "," : "",
                           m->members[i]->grpc_address);
        }
        pthread_mutex_lock(&k->lock);
        if (all[0] != '\0') {
            mem_free(k->nodes);
            k->nodes = all;
            all = NULL;
        }
        pthread_mutex_unlock(&k->lock);
        mem_free(all);
    }
    hedge__v1__members_reply__free_unpacked(m, NULL);
}

static struct client *dial_list(const char *nodes, struct hedge_error *e)
{
    struct client *c;

    error_clear(e);
    if (client_new(nodes, DIAL_MS, &c, e) != 0) {
        return NULL;
    }
    if (client_connect(c, e) != 0) {
        client_free(c);
        return NULL;
    }
    return c;
}

static struct line *take_line(struct keeper *k)
{
    struct line *l;

    pthread_mutex_lock(&k->lock);
    l = k->line;
    if (l != NULL) {
        l->refs++;
    }
    pthread_mutex_unlock(&k->lock);
    return l;
}

/* A reference, or NULL: nobody answers. */
static struct line *line_get(struct keeper *k, struct hedge_error *e)
{
    struct line *l = take_line(k);
    struct client *c = NULL;
    char *nodes;

    if (l != NULL) {
        return l;
    }
    pthread_mutex_lock(&k->dial_lock);
    l = take_line(k);
    if (l == NULL) {
        pthread_mutex_lock(&k->lock);
        nodes = k->nodes != NULL ? mem_strdup(k->nodes) : NULL;
        pthread_mutex_unlock(&k->lock);
        c = dial_list(k->ctl->nodes, e);
        c = c == NULL && nodes != NULL ? dial_list(nodes, e) : c;
        mem_free(nodes);
        l = c != NULL ? mem_calloc(1, sizeof *l) : NULL;
    }
    if (c != NULL && l != NULL) {
        l->client = c;
        l->refs = 2;
        pthread_mutex_lock(&k->lock);
        k->line = l;
        pthread_mutex_unlock(&k->lock);
        learn_nodes(k, c);
    }
    pthread_mutex_unlock(&k->dial_lock);
    return l;
}

/* One call through whoever answers; HEDGE_EUNAVAILABLE: another time, another
 * node. */
static int call(struct keeper *k, const char *path, const ProtobufCMessage *m,
                const ProtobufCMessageDescriptor *type, uint64_t timeout_ms,
                void **reply, struct hedge_error *e)
{
    struct line *l = line_get(k, e);
    int rv;

    *reply = NULL;
    if (l == NULL) {
        return e->code != 0 ? e->code : HEDGE_EUNAVAILABLE;
    }
    error_clear(e);
    rv =
        pb_call(client_channel(l->client), path, m, type, timeout_ms, reply, e);
    line_put(k, l, rv == HEDGE_EUNAVAILABLE || rv == HEDGE_ETIMEDOUT);
    return rv;
}

/* --- the session ------------------------------------------------------------
 */

static void new_session(struct keeper *k)
{
    k->session = keeper_random();
    k->request = keeper_random();
    k->attempt = 0;
}

static void fail(struct keeper *k, const struct hedge_error *e)
{
    if (!k->state.granted && !k->state.failed) {
        k->state.failed = true;
        k->state.error = *e;
    }
    changed(k);
}

static bool is_listed(const Hedge__V1__LockSessionState *s, uint64_t token)
{
    for (size_t i = 0; i < s->n_held; i++) {
        if (s->held[i]->token == token) {
            return true;
        }
    }
    return false;
}

static void renewed(struct keeper *k, uint64_t start_ms,
                    const Hedge__V1__LockSessionState *s)
{
    if (!sem_view_renewed(&k->view, start_ms, k->r.lease_ms, s->term, s->at) ||
        !k->state.granted || k->state.lost) {
        return;
    }
    if (sem_view_granted(&k->view, k->grant_term, k->grant_at) == 0 &&
        !is_listed(s, k->state.token)) {
        k->state.lost = true;
    } else if (clock_boot_ms() < k->state.until_ms || k->state.until_ms == 0) {
        k->state.until_ms = k->view.until_ms;
    }
    changed(k);
}

/* With the lock held; it is given up for the call. */
static int renew(struct keeper *k, bool open, uint64_t timeout_ms,
                 struct hedge_error *e)
{
    Hedge__V1__LockSession m = HEDGE__V1__LOCK_SESSION__INIT;
    uint64_t start = clock_boot_ms(), session = k->session;
    char holder[256];
    void *reply;
    int rv;

    keeper_name(holder, sizeof holder);
    m.session = session;
    m.lease_ms = k->r.lease_ms;
    m.holder = holder;
    k->renew_now = false;
    k->renew_at_ms = start + sem_view_renew_ms(k->r.lease_ms);
    pthread_mutex_unlock(&k->lock);
    rv = call(k, open ? "/hedge.v1.Locks/OpenSession" : "/hedge.v1.Locks/Renew",
              &m.base, &hedge__v1__lock_session_state__descriptor, timeout_ms,
              &reply, e);
    pthread_mutex_lock(&k->lock);
    if (rv == 0 && session == k->session) {
        renewed(k, start, reply);
    } else if (rv == HEDGE_ENOTFOUND && session == k->session) {
        if (k->state.granted) {
            k->state.lost = true;
            changed(k);
        }
    } else if (rv != 0) {
        k->renew_at_ms = 0; /* Again, by way of another node. */
    }
    pb_free(reply);
    return rv;
}

static void *renewer_main(void *arg)
{
    struct keeper *k = arg;
    struct hedge_error e = {0};

    pthread_mutex_lock(&k->lock);
    while (!k->stopping) {
        uint64_t now = clock_boot_ms();
        int rv;

        if (now < k->renew_at_ms && !k->renew_now) {
            wait_ms(k, k->renew_at_ms - now);
            continue;
        }
        rv = renew(k, false, sem_view_renew_ms(k->r.lease_ms), &e);
        if (rv != 0 && !k->stopping) {
            wait_ms(k, PAUSE_MS);
        }
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

/* Told at once when the grant is taken away. */
static void *watcher_main(void *arg)
{
    struct keeper *k = arg;
    struct hedge_error e;

    pthread_mutex_lock(&k->lock);
    while (!k->stopping) {
        Hedge__V1__LockWatch m = HEDGE__V1__LOCK_WATCH__INIT;
        void *reply;
        int rv;

        if (!k->state.granted || k->state.lost) {
            wait_ms(k, 1000);
            continue;
        }
        m.session = k->session;
        m.term = k->view.term;
        m.at = k->view.at;
        m.wait_ms = WATCH_MS;
        pthread_mutex_unlock(&k->lock);
        error_clear(&e);
        rv = call(k, "/hedge.v1.Locks/Watch", &m.base,
                  &hedge__v1__lock_done__descriptor, WATCH_MS + SLACK_MS,
                  &reply, &e);
        pb_free(reply);
        pthread_mutex_lock(&k->lock);
        if (rv == 0) {
            k->renew_now = true;
            pthread_cond_broadcast(&k->wake);
        }
        if (!k->stopping) {
            wait_ms(k, rv == 0 ? PAUSE_MS / 2 : PAUSE_MS * 2);
        }
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

/* --- the line ---------------------------------------------------------------
 */

/* Counted before it is said that it is held: when a newer renewal is known it
 * is not, until the next one lists it. */
static void granted(struct keeper *k, const Hedge__V1__LockGrant *g)
{
    k->state.token = g->token;
    k->grant_term = g->term;
    k->grant_at = g->at;
    k->state.until_ms = sem_view_granted(&k->view, g->term, g->at);
    k->state.granted = true;
    if (k->state.until_ms == 0) {
        k->renew_now = true;
    }
    changed(k);
}

static int ask(struct keeper *k, uint64_t left_ms, struct hedge_error *e)
{
    Hedge__V1__LockRequest m = HEDGE__V1__LOCK_REQUEST__INIT;
    Hedge__V1__LockSession s = HEDGE__V1__LOCK_SESSION__INIT;
    bool try_only = k->r.wait_ms == 0;
    uint64_t timeout = k->ctl->timeout_ms;
    char holder[256], *name = mem_strdup(k->r.name);
    void *reply;
    int rv;

    if (name == NULL) {
        return error_set(e, HEDGE_ENOMEM, "out of memory");
    }
    keeper_name(holder, sizeof holder);
    s.session = k->session;
    s.lease_ms = k->r.lease_ms;
    s.holder = holder;
    m.session = &s;
    m.request = k->request;
    m.attempt = ++k->attempt;
    m.name = name;
    m.limit = k->r.limit;
    m.permits = k->r.permits;
    m.wait_ms = left_ms == UINT64_MAX ? 0 : left_ms;
    if (!try_only) {
        timeout = left_ms == UINT64_MAX ? RPC_NO_TIMEOUT : left_ms + SLACK_MS;
    }
    pthread_mutex_unlock(&k->lock);
    rv = call(
        k, try_only ? "/hedge.v1.Locks/TryAcquire" : "/hedge.v1.Locks/Acquire",
        &m.base, &hedge__v1__lock_grant__descriptor, timeout, &reply, e);
    mem_free(name);
    pthread_mutex_lock(&k->lock);
    if (rv == 0 && s.session == k->session) {
        granted(k, reply);
    }
    pb_free(reply);
    return rv;
}

static bool may_pass(int rv)
{
    return rv == HEDGE_EUNAVAILABLE || rv == HEDGE_ENOTFOUND ||
           rv == HEDGE_ENOLEADER || rv == HEDGE_ECANCELED ||
           rv == HEDGE_ECLOSED || rv == HEDGE_ENOTLEADER;
}

static void *waiter_main(void *arg)
{
    struct keeper *k = arg;
    uint64_t start = clock_boot_ms();
    struct hedge_error e = {0};
    int rv = 0;

    pthread_mutex_lock(&k->lock);
    while (!k->stopping && !k->state.granted && !k->state.failed) {
        uint64_t spent = clock_boot_ms() - start, left = k->r.wait_ms;
        uint64_t bound = k->r.wait_ms != 0 ? k->r.wait_ms : k->ctl->timeout_ms;

        if (spent >= bound) {
            struct hedge_error late;

            (void)error_set(&late, HEDGE_ETIMEDOUT, "not granted in time%s%s",
                            rv != 0 ? ": " : "", rv != 0 ? e.text : "");
            fail(k, &late);
            break;
        }
        left = left == UINT64_MAX ? left : left > spent ? left - spent : 1;
        rv = ask(k, left, &e);
        if (rv == HEDGE_ENOTFOUND) { /* Stopped for longer than the lease. */
            new_session(k);
            (void)renew(k, true, DIAL_MS, &e);
        }
        if (rv != 0 && !may_pass(rv)) {
            fail(k, &e);
        } else if (rv != 0 && !k->stopping) {
            wait_ms(k, PAUSE_MS);
        }
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

/* --- life -------------------------------------------------------------------
 */

static void release(struct keeper *k)
{
    if (k->line != NULL) {
        client_free(k->line->client);
        mem_free(k->line);
    }
    close(k->event);
    pthread_cond_destroy(&k->wake);
    pthread_mutex_destroy(&k->lock);
    pthread_mutex_destroy(&k->dial_lock);
    mem_free(k->nodes);
    mem_free(k);
}

static int open_session(struct keeper *k, struct hedge_error *e)
{
    uint64_t until = clock_boot_ms() + k->ctl->timeout_ms;
    int rv;

    pthread_mutex_lock(&k->lock);
    do {
        uint64_t now = clock_boot_ms();
        rv = renew(k, true, until > now ? until - now : 1, e);
        if (may_pass(rv)) {
            wait_ms(k, PAUSE_MS);
        }
    } while (may_pass(rv) && clock_boot_ms() < until);
    pthread_mutex_unlock(&k->lock);
    return rv;
}

int keeper_start(const struct ctl *ctl, const struct keeper_request *r,
                 struct keeper **out)
{
    struct keeper *k = mem_calloc(1, sizeof *k);
    pthread_condattr_t attr;
    struct hedge_error e;
    struct client *c;
    int rv;

    *out = k;
    if (k == NULL) {
        return cli_fail("out of memory");
    }
    k->ctl = ctl;
    k->r = *r;
    pthread_mutex_init(&k->lock, NULL);
    pthread_mutex_init(&k->dial_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&k->wake, &attr);
    pthread_condattr_destroy(&attr);
    k->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    new_session(k);
    rv = ctl_connect(ctl, &c); /* Says what is wrong with -n. */
    if (rv == CLI_DONE) {
        client_free(c);
        rv = open_session(k, &e) != 0 ? ctl_error(&e) : CLI_DONE;
    }
    if (rv != CLI_DONE) {
        release(k);
        *out = NULL;
        return rv;
    }
    if (pthread_create(&k->renewer, NULL, renewer_main, k) != 0 ||
        pthread_create(&k->watcher, NULL, watcher_main, k) != 0 ||
        pthread_create(&k->waiter, NULL, waiter_main, k) != 0) {
        return cli_fail("no threads");
    }
    return CLI_DONE;
}

int keeper_event(const struct keeper *k)
{
    return k->event;
}

struct keeper_state keeper_state(struct keeper *k)
{
    struct keeper_state s;
    uint64_t n;

    (void)!read(k->event, &n, sizeof n);
    pthread_mutex_lock(&k->lock);
    s = k->state;
    pthread_mutex_unlock(&k->lock);
    return s;
}

static struct keeper *unheard; /* Its threads still use it. */

bool keeper_stop(struct keeper *k)
{
    Hedge__V1__LockSession m = HEDGE__V1__LOCK_SESSION__INIT;
    struct hedge_error e = {0};
    void *reply;
    int rv;

    pthread_mutex_lock(&k->lock);
    k->stopping = true;
    m.session = k->session;
    pthread_cond_broadcast(&k->wake);
    pthread_mutex_unlock(&k->lock);
    /* The calls that wait are answered when the session has gone. Where that
     * cannot be told, the threads end with the process. */
    rv = call(k, "/hedge.v1.Locks/CloseSession", &m.base,
              &hedge__v1__lock_done__descriptor, CLOSE_MS, &reply, &e);
    if (rv == HEDGE_EUNAVAILABLE || rv == HEDGE_ETIMEDOUT) {
        rv = call(k, "/hedge.v1.Locks/CloseSession", &m.base,
                  &hedge__v1__lock_done__descriptor, CLOSE_MS, &reply, &e);
    }
    pb_free(reply);
    if (rv == 0) {
        pthread_join(k->waiter, NULL);
        pthread_join(k->watcher, NULL);
        pthread_join(k->renewer, NULL);
        release(k);
    } else {
        unheard = k;
    }
    return rv == 0;
}
