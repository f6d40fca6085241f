/* stores.c - stores, wherever they are: this node's own without asking anybody,
 * others through the leader's directory. */
#include "cluster/node_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define RETRY_MS 50
#define CALL_MS 5000

/* --- channels, kept --- */

struct kept_channel {
    struct list link;
    unsigned refs;
    struct rpc_channel *rpc;
    char target[TARGET_SIZE];
};

#define CHANNELS_IDLE_MAX 64

struct kept_channel *node_channel(struct hedge_node *n, const char *target)
{
    struct kept_channel *c = NULL;
    struct list *l;

    pthread_mutex_lock(&n->channels_lock);
    list_foreach (l, &n->channels) {
        if (strcmp(container_of(l, struct kept_channel, link)->target,
                   target) == 0) {
            c = container_of(l, struct kept_channel, link);
            break;
        }
    }
    if (c == NULL) {
        c = mem_calloc(1, sizeof *c);
        if (c != NULL && rpc_channel_new(target, &c->rpc) != 0) {
            mem_free(c);
            c = NULL;
        }
        if (c != NULL) {
            (void)snprintf(c->target, sizeof c->target, "%s", target);
            list_push(&n->channels, &c->link);
        }
    }
    if (c != NULL) {
        c->refs++;
    }
    pthread_mutex_unlock(&n->channels_lock);
    return c;
}

static void trim_channels(struct hedge_node *n)
{
    struct list *l, *tmp;
    unsigned count = 0;

    list_foreach (l, &n->channels) {
        count++;
    }
    list_foreach_safe (l, tmp, &n->channels) {
        struct kept_channel *c = container_of(l, struct kept_channel, link);

        if (c->refs == 0 && (count > CHANNELS_IDLE_MAX || n->closing)) {
            list_remove(l);
            rpc_channel_free(c->rpc);
            mem_free(c);
            count--;
        }
    }
}

void node_channel_put(struct hedge_node *n, struct kept_channel *c)
{
    pthread_mutex_lock(&n->channels_lock);
    if (c != NULL) {
        assert(c->refs > 0);
        c->refs--;
    }
    trim_channels(n);
    pthread_mutex_unlock(&n->channels_lock);
}

struct rpc_channel *kept_channel_rpc(struct kept_channel *c)
{
    return c->rpc;
}

/* --- asking the leader --- */

/* Wait until a leader is known; its target. */
static int leader_target(struct hedge_node *n, uint64_t deadline_ms,
                         char target[TARGET_SIZE], struct hedge_error *e)
{
    for (;;) {
        struct election_leader l;

        pthread_mutex_lock(&n->pub_lock);
        l = n->leader;
        pthread_mutex_unlock(&n->pub_lock);
        if (l.id[0] != '\0') {
            (void)snprintf(target, TARGET_SIZE, "ipv4:%s", l.address);
            return 0;
        }
        if (n->closing) {
            return error_set(e, HEDGE_ECLOSED, "the node stops");
        }
        if (clock_mono_ms() >= deadline_ms) {
            return error_set(e, HEDGE_ENOLEADER,
                             "the group has no leader at present");
        }
        clock_sleep_ms(RETRY_MS);
    }
}

/* HEDGE_ETIMEDOUT is a new leader's that is not settled yet, too. */
static bool worth_retrying(int rv)
{
    return rv == HEDGE_ENOTLEADER || rv == HEDGE_EUNAVAILABLE ||
           rv == HEDGE_ECANCELED || rv == HEDGE_ECLOSED ||
           rv == HEDGE_ETIMEDOUT;
}

/* A call to whoever leads, over a change of leader if need be. */
static int call_leader(struct hedge_node *n, const char *path,
                       const ProtobufCMessage *m,
                       const ProtobufCMessageDescriptor *type,
                       uint64_t timeout_ms, void **reply, struct hedge_error *e)
{
    uint64_t now = clock_mono_ms();
    uint64_t deadline =
        now + (timeout_ms < UINT32_MAX ? timeout_ms : UINT32_MAX);
    char target[TARGET_SIZE];
    int rv;

    for (;;) {
        struct kept_channel *c;

        *reply = NULL;
        rv = leader_target(n, deadline, target, e);
        if (rv != 0) {
            return rv;
        }
        now = clock_mono_ms();
        c = node_channel(n, target);
        if (c == NULL) {
            return error_set(e, HEDGE_ENOMEM, "no memory for a channel");
        }
        rv = pb_call(c->rpc, path, m, type, deadline > now ? deadline - now : 1,
                     reply, e);
        node_channel_put(n, c);
        if (!worth_retrying(rv) || n->closing || clock_mono_ms() >= deadline) {
            return rv;
        }
        clock_sleep_ms(RETRY_MS);
    }
}

/* --- finding --- */

static void place_of_member(struct hedge_node *n, const char *id,
                            const char *grpc_address, struct store_place *out)
{
    struct view *v = node_view(n);

    (void)snprintf(out->owner, sizeof out->owner, "%s", id);
    (void)snprintf(out->grpc_address, sizeof out->grpc_address, "%s",
                   grpc_address);
    (void)snprintf(out->target, sizeof out->target, "ipv4:%s", grpc_address);
    for (size_t i = 0; v != NULL && i < v->n; i++) {
        if (strcmp(v->members[i].id, id) == 0) {
            node_target(n, &v->members[i], out->target);
            (void)snprintf(out->grpc_address, sizeof out->grpc_address, "%s",
                           v->members[i].grpc_address);
        }
    }
    view_unref(v);
}

int stores_find_here(struct hedge_node *n, const char *name,
                     struct store_place *out, struct hedge_error *e)
{
    int rv;

    memset(out, 0, sizeof *out);
    rv = sos_find(n->sos, name, &out->local, e);
    if (rv == 0) {
        (void)snprintf(out->owner, sizeof out->owner, "%s", n->id);
        (void)snprintf(out->grpc_address, sizeof out->grpc_address, "%s",
                       n->grpc_address);
    }
    return rv;
}

int stores_find(struct hedge_node *n, const char *name, uint64_t timeout_ms,
                struct store_place *out, struct hedge_error *e)
{
    Hedge__V1__StoreRequest m = HEDGE__V1__STORE_REQUEST__INIT;
    Hedge__V1__LookupReply *r;
    void *reply;
    char *copy;
    int here = stores_find_here(n, name, out, e), rv;

    if (here == 0) {
        return 0;
    }
    copy = mem_strdup(name);
    if (copy == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a name");
    }
    m.name = copy;
    rv = call_leader(n, "/hedge.v1.Peer/FindStore", &m.base,
                     &hedge__v1__lookup_reply__descriptor, timeout_ms, &reply,
                     e);
    mem_free(copy);
    if (rv != 0) {
        /* What this node knows of its own is worth more than silence. */
        return here == HEDGE_EEXPIRED && rv == HEDGE_ENOTFOUND
                   ? stores_find_here(n, name, out, e)
                   : rv;
    }
    r = reply;
    if (r->entry == NULL) {
        rv = error_set(e, HEDGE_EPROTO, "the leader's answer is empty");
    } else if (strcmp(r->entry->owner, n->id) == 0) {
        rv = error_set(e, HEDGE_ENOTFOUND, "there is no store \"%s\"", name);
    } else {
        place_of_member(n, r->entry->owner, r->entry->grpc_address, out);
    }
    pb_free(reply);
    return rv;
}

/* --- making --- */

static int ask_for_name(struct hedge_node *n, const char *name,
                        uint64_t timeout_ms, uint64_t *generation,
                        struct store_place *existing, struct hedge_error *e)
{
    Hedge__V1__RegisterRequest m = HEDGE__V1__REGISTER_REQUEST__INIT;
    Hedge__V1__RegisterReply *r;
    void *reply;
    char *copy = mem_strdup(name);
    int rv;

    if (copy == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a name");
    }
    m.name = copy;
    m.owner = n->id;
    m.incarnation = n->incarnation;
    rv = call_leader(n, "/hedge.v1.Peer/RegisterStore", &m.base,
                     &hedge__v1__register_reply__descriptor, timeout_ms, &reply,
                     e);
    mem_free(copy);
    if (rv != 0) {
        return rv;
    }
    r = reply;
    *generation = r->generation;
    if (r->existing != NULL) {
        rv = HEDGE_EEXISTS;
        place_of_member(n, r->existing->owner, r->existing->grpc_address,
                        existing);
    } else if (r->generation == 0) {
        rv = error_set(e, HEDGE_EPROTO, "the leader gave no generation");
    }
    pb_free(reply);
    return rv;
}

struct unregister_work {
    struct work work;
    struct hedge_node *node;
    uint64_t generation;
    bool expired;
    char name[256];
};

/* A new leader hears of living stores only, so the one there is now is enough.
 */
static void run_unregister(struct work *work)
{
    struct unregister_work *w =
        container_of(work, struct unregister_work, work);
    Hedge__V1__RegisterRequest m = HEDGE__V1__REGISTER_REQUEST__INIT;
    struct hedge_error e = {0};
    void *reply = NULL;

    m.name = w->name;
    m.owner = w->node->id;
    m.generation = w->generation;
    m.incarnation = w->node->incarnation;
    m.expired = w->expired;
    /* Not by a call to itself: a server's thread may stand here. */
    if (hedge_has_lock(w->node, NULL)) {
        directory_unregister(w->node->directory, w->name, w->generation,
                             w->expired);
    } else if (!w->node->closing &&
               call_leader(w->node, "/hedge.v1.Peer/UnregisterStore", &m.base,
                           &hedge__v1__empty__descriptor, CALL_MS, &reply,
                           &e) != 0) {
        log_warn("node", "telling the leader that store \"%s\" is gone: %s",
                 w->name, e.text);
    }
    pb_free(reply);
    mem_free(w);
}

/* At once (`wait`), or from the pool. */
static void unregister(struct hedge_node *n, const char *name,
                       uint64_t generation, bool expired, bool wait)
{
    struct unregister_work *w = mem_calloc(1, sizeof *w);

    if (w == NULL) {
        return;
    }
    w->node = n;
    w->generation = generation;
    w->expired = expired;
    (void)snprintf(w->name, sizeof w->name, "%s", name);
    if (wait) {
        run_unregister(&w->work);
    } else if (pool_submit(n->call_pool, &w->work, run_unregister) != 0) {
        mem_free(w);
    }
}

void stores_on_expired(void *ctx, const char *name, uint64_t generation)
{
    struct hedge_node *n = ctx;

    unregister(n, name, generation, true, false);
}

static int exists_error(const char *name, const struct store_place *p,
                        struct hedge_error *e)
{
    return error_set(e, HEDGE_EEXISTS,
                     "store \"%s\" exists already (its owner is %s); append "
                     "to it, or remove it first",
                     name, p->owner);
}

static int use_existing(const char *name,
                        const struct sos_store_options *options, bool exclusive,
                        struct store_place *out, struct hedge_error *e)
{
    int rv = 0;

    if (exclusive) {
        rv = exists_error(name, out, e);
    } else if (out->local != NULL && options != NULL) {
        rv = sos_store_matches(out->local, options, e);
    }
    if (rv != 0 && out->local != NULL) {
        sos_store_unref(out->local);
        out->local = NULL;
    }
    return rv;
}

/* The name is this node's in the directory, but the store is not here: it is
 * just being made or ended by another thread. */
static bool is_in_between(struct hedge_node *n, int rv,
                          const struct store_place *p)
{
    return rv == HEDGE_EEXISTS && p->local == NULL &&
           strcmp(p->owner, n->id) == 0;
}

static int make_here(struct hedge_node *n, const char *name,
                     uint64_t generation, const struct sos_store_options *o,
                     struct store_place *out, struct hedge_error *e)
{
    int rv;

    memset(out, 0, sizeof *out);
    rv = sos_create(n->sos, name, generation, o, &out->local, e);
    if (rv != 0) {
        unregister(n, name, generation, false, true);
        return rv;
    }
    (void)snprintf(out->owner, sizeof out->owner, "%s", n->id);
    (void)snprintf(out->grpc_address, sizeof out->grpc_address, "%s",
                   n->grpc_address);
    return 0;
}

int stores_open(struct hedge_node *n, const char *name,
                const struct sos_store_options *options, bool exclusive,
                uint64_t timeout_ms, struct store_place *out,
                struct hedge_error *e)
{
    uint64_t give_up = clock_mono_ms() + timeout_ms;
    struct sos_store_options defaults;
    const struct sos_store_options *o = options;
    uint64_t generation = 0;
    int rv;

    if (o == NULL) {
        pb_to_store_options(NULL, &defaults);
        o = &defaults;
    }
    rv = units_check_name(name, strlen(name), e);
    rv = rv != 0 ? rv : sos_check_options(o, e);
    if (rv != 0) {
        return rv;
    }
    for (;;) {
        if (stores_find_here(n, name, out, e) == 0) {
            return use_existing(name, options, exclusive, out, e);
        }
        rv = ask_for_name(n, name, timeout_ms, &generation, out, e);
        if (!is_in_between(n, rv, out)) {
            break;
        }
        if (clock_mono_ms() >= give_up) {
            return error_set(e, HEDGE_EBUSY,
                             "store \"%s\" is just being made or ended", name);
        }
        clock_sleep_ms(RETRY_MS);
    }
    if (rv == HEDGE_EEXISTS) {
        return use_existing(name, options, exclusive, out, e);
    }
    return rv != 0 ? rv : make_here(n, name, generation, o, out, e);
}

void stores_remove_here(struct hedge_node *n, struct sos_store *store)
{
    sos_remove(store);
    unregister(n, sos_store_name(store), sos_store_generation(store), false,
               true);
    sos_store_unref(store);
}

int stores_remove(struct hedge_node *n, const char *name, uint64_t timeout_ms,
                  struct hedge_error *e)
{
    Hedge__V1__StoreRequest m = HEDGE__V1__STORE_REQUEST__INIT;
    struct store_place p;
    struct kept_channel *c;
    void *reply;
    char *copy;
    int rv = stores_find(n, name, timeout_ms, &p, e);

    if (rv != 0) {
        return rv;
    }
    if (p.local != NULL) {
        stores_remove_here(n, p.local);
        return 0;
    }
    copy = mem_strdup(name);
    c = node_channel(n, p.target);
    if (copy == NULL || c == NULL) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory to call %s", p.owner);
    } else {
        m.name = copy;
        rv = pb_call(c->rpc, "/hedge.v1.Store/Remove", &m.base,
                     &hedge__v1__empty__descriptor, timeout_ms, &reply, e);
        pb_free(reply);
    }
    if (c != NULL) {
        node_channel_put(n, c);
    }
    mem_free(copy);
    return rv;
}

/* --- telling a new leader --- */

static void register_own(void *ctx, struct sos_store *store)
{
    struct hedge_node *n = ctx;
    struct directory_entry existing;
    uint64_t generation = sos_store_generation(store);

    (void)directory_register(n->directory, sos_store_name(store), n->id,
                             n->incarnation, &generation, 0, &existing);
}

void stores_register_own(struct hedge_node *n)
{
    while (sos_each(n->sos, register_own, n) != 0) {
        clock_sleep_ms(RETRY_MS); /* Without them names would be given twice. */
    }
}

struct gather {
    struct hedge_node *n;
    Hedge__V1__JoinReport *report;
    size_t cap;
    bool failed;
};

static void add_to_report(void *ctx, struct sos_store *store)
{
    struct gather *g = ctx;
    Hedge__V1__JoinReport *r = g->report;
    Hedge__V1__DirectoryEntry *d;

    if (r->n_stores == g->cap) {
        size_t cap = g->cap == 0 ? 16 : g->cap * 2;
        Hedge__V1__DirectoryEntry **more =
            mem_realloc(r->stores, cap * sizeof(Hedge__V1__DirectoryEntry *));

        if (more == NULL) {
            g->failed = true;
            return;
        }
        r->stores = more;
        g->cap = cap;
    }
    d = mem_calloc(1, sizeof *d);
    if (d == NULL) {
        g->failed = true;
        return;
    }
    hedge__v1__directory_entry__init(d);
    d->name = mem_strdup(sos_store_name(store));
    d->generation = sos_store_generation(store);
    r->stores[r->n_stores++] = d;
    g->failed = g->failed || d->name == NULL;
}

int stores_report(struct hedge_node *n, Hedge__V1__JoinReport *out)
{
    struct gather g = {.n = n, .report = out};

    g.failed = sos_each(n->sos, add_to_report, &g) != 0 || g.failed;
    out->stores_complete = !g.failed;
    return g.failed ? HEDGE_ENOMEM : 0;
}

void stores_report_release(Hedge__V1__JoinReport *r)
{
    for (size_t i = 0; i < r->n_stores; i++) {
        mem_free(r->stores[i]->name);
        mem_free(r->stores[i]);
    }
    mem_free(r->stores);
    r->stores = NULL;
    r->n_stores = 0;
}
