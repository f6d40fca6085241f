/* serve_list.c - lists of stores, page by page: of one node by name, of all
 * nodes by the id of the node. */
#include "cluster/node_internal.h"

#include "store/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIST_MS 2000
#define PAGE_MAX 512u
#define PAGE_BYTES ((size_t)1 << 20)
#define WHOLE_BYTES ((size_t)4 << 20) /* For who does not ask for pages. */

/* Pointers, as many as there come. */
struct refs {
    void **at;
    size_t n, cap;
};

struct listing {
    struct hedge_node *n;
    Hedge__V1__ListReply reply;
    Hedge__V1__ListPlace next;
    char next_owner[sizeof((struct member *)0)->id];
    char next_name[256];
    char last[256]; /* The name of the last store listed. */
    size_t left, left_bytes;
    int status;
    struct refs stores;
    struct refs own;    /* Those of them that are this node's. */
    struct refs others; /* The answers that the rest is part of. */
    struct refs missing;
};

struct owner {
    const char *id;
    const struct member *member; /* NULL: this node. */
};

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

static bool add_ref(struct listing *l, struct refs *r, void *p)
{
    if (r->n == r->cap) {
        size_t cap = r->cap * 2 + 16;
        void **more = mem_realloc(r->at, cap * sizeof *more);

        if (more == NULL) {
            l->status = HEDGE_ENOMEM;
            return false;
        }
        r->at = more;
        r->cap = cap;
    }
    r->at[r->n++] = p;
    return true;
}

static bool goes_on(const struct listing *l)
{
    return l->status == 0 && l->left > 0 && l->left_bytes > 0;
}

static void add_info(struct listing *l, Hedge__V1__StoreInfo *info)
{
    size_t bytes = protobuf_c_message_get_packed_size(&info->base);

    if (add_ref(l, &l->stores, info)) {
        l->left -= l->left > 0;
        l->left_bytes -= bytes < l->left_bytes ? bytes : l->left_bytes;
        (void)snprintf(l->last, sizeof l->last, "%s", info->name);
    }
}

/* --- of this node --- */

static bool list_one(void *ctx, struct sos_store *store)
{
    struct listing *l = ctx;
    Hedge__V1__StoreInfo *m = NULL;
    struct sos_info info;

    l->status = sos_store_info(store, &info);
    if (l->status == 0) {
        l->status = pb_store_info(&info, l->n->id, &m);
        mem_free(info.uses);
    }
    if (l->status == 0 && add_ref(l, &l->own, m)) {
        add_info(l, m);
    } else {
        pb_store_info_release(m);
    }
    return goes_on(l);
}

static bool list_here(struct listing *l, unsigned max, const char *after)
{
    bool more;

    if (sos_page(l->n->sos, after, max, list_one, l, &more) != 0) {
        l->status = HEDGE_ENOMEM;
    }
    return more;
}

/* --- of another node --- */

static int ask(struct listing *l, const struct member *m, unsigned max,
               const char *after, void **reply)
{
    Hedge__V1__ListRequest request = HEDGE__V1__LIST_REQUEST__INIT;
    Hedge__V1__ListPlace place = HEDGE__V1__LIST_PLACE__INIT;
    char target[TARGET_SIZE];
    struct kept_channel *c;
    struct hedge_error e;
    int rv;

    *reply = NULL;
    place.owner = unconst(m->id);
    place.name = unconst(after);
    request.max = max;
    request.after = &place;
    node_target(l->n, m, target);
    c = node_channel(l->n, target);
    if (c == NULL) {
        return HEDGE_ENOMEM;
    }
    rv = pb_call(kept_channel_rpc(c), "/hedge.v1.Peer/LocalStores",
                 &request.base, &hedge__v1__list_reply__descriptor, LIST_MS,
                 reply, &e);
    node_channel_put(l->n, c);
    return rv;
}

static bool list_there(struct listing *l, const struct member *m, unsigned max,
                       const char *after)
{
    Hedge__V1__ListReply *r;
    void *reply;

    if (ask(l, m, max, after, &reply) != 0) {
        (void)add_ref(l, &l->missing, unconst(m->id));
        return false;
    }
    r = reply;
    if (!add_ref(l, &l->others, r)) {
        pb_free(r);
        return false;
    }
    for (size_t i = 0; i < r->n_stores && l->status == 0; i++) {
        add_info(l, r->stores[i]);
    }
    /* One that does not get on would be asked for ever. */
    return r->next != NULL && r->n_stores > 0 && strcmp(l->last, after) > 0;
}

/* --- of all --- */

static void set_next(struct listing *l, const char *owner, const char *name)
{
    (void)snprintf(l->next_owner, sizeof l->next_owner, "%s", owner);
    (void)snprintf(l->next_name, sizeof l->next_name, "%s", name);
    hedge__v1__list_place__init(&l->next);
    l->next.owner = l->next_owner;
    l->next.name = l->next_name;
    l->reply.next = &l->next;
}

static void list_owner(struct listing *l, const struct owner *o,
                       const char *after)
{
    bool more = true;

    (void)snprintf(l->last, sizeof l->last, "%s", after);
    while (more && goes_on(l)) {
        unsigned max = l->left < PAGE_MAX ? (unsigned)l->left : PAGE_MAX;
        char from[sizeof l->last];

        memcpy(from, l->last, sizeof from);
        more = o->member == NULL ? list_here(l, max, from)
                                 : list_there(l, o->member, max, from);
    }
    if (more) {
        set_next(l, o->id, l->last);
    }
}

static void list_owners(struct listing *l, const struct owner *owners, size_t n,
                        const Hedge__V1__ListPlace *after)
{
    const char *from = after != NULL ? after->owner : "";
    size_t i = 0;

    while (i < n && strcmp(owners[i].id, from) < 0) {
        i++;
    }
    for (; i < n && l->reply.next == NULL; i++) {
        bool within = after != NULL && strcmp(owners[i].id, from) == 0;

        if (goes_on(l)) {
            list_owner(l, &owners[i], within ? after->name : "");
        } else {
            set_next(l, owners[i].id, within ? after->name : "");
        }
    }
}

static int by_id(const void *a, const void *b)
{
    const struct owner *x = a, *y = b;

    return strcmp(x->id, y->id);
}

/* This node and, with a view, all others. */
static struct owner *sorted_owners(struct hedge_node *n, const struct view *v,
                                   size_t *count)
{
    size_t members = v != NULL ? v->n : 0;
    struct owner *owners = mem_calloc(members + 1, sizeof *owners);

    *count = 0;
    if (owners == NULL) {
        return NULL;
    }
    owners[(*count)++] = (struct owner){.id = n->id};
    for (size_t i = 0; i < members; i++) {
        const struct member *m = &v->members[i];
        if (strcmp(m->id, n->id) != 0) {
            owners[(*count)++] = (struct owner){.id = m->id, .member = m};
        }
    }
    qsort(owners, *count, sizeof *owners, by_id);
    return owners;
}

static void send_listing(struct listing *l, struct rpc_call *call, bool whole)
{
    if (l->status != 0) {
        rpc_fail(call, l->status, "no memory for the list");
    } else if (whole && l->reply.next != NULL) {
        rpc_fail(call, HEDGE_EEXHAUSTED,
                 "more stores than one message has room for: list them page "
                 "by page");
    } else {
        l->reply.stores = (Hedge__V1__StoreInfo **)l->stores.at;
        l->reply.n_stores = l->stores.n;
        l->reply.missing = (char **)l->missing.at;
        l->reply.n_missing = l->missing.n;
        pb_reply(call, &l->reply.base);
    }
}

static void listing_release(struct listing *l)
{
    for (size_t i = 0; i < l->own.n; i++) {
        pb_store_info_release(l->own.at[i]);
    }
    for (size_t i = 0; i < l->others.n; i++) {
        pb_free(l->others.at[i]);
    }
    mem_free(l->stores.at);
    mem_free(l->own.at);
    mem_free(l->others.at);
    mem_free(l->missing.at);
}

static void serve_stores(struct hedge_node *n, struct rpc_call *call,
                         const Hedge__V1__ListRequest *m, const struct view *v)
{
    bool whole = m->max == 0;
    struct listing l = {.n = n,
                        .reply = HEDGE__V1__LIST_REPLY__INIT,
                        .left = whole ? SIZE_MAX : m->max,
                        .left_bytes = whole ? WHOLE_BYTES : PAGE_BYTES};
    size_t count;
    struct owner *owners = sorted_owners(n, v, &count);

    if (!whole && l.left > PAGE_MAX) {
        l.left = PAGE_MAX;
    }
    if (owners == NULL) {
        l.status = HEDGE_ENOMEM;
    }
    list_owners(&l, owners, count, m->after);
    send_listing(&l, call, whole);
    listing_release(&l);
    mem_free(owners);
}

/* --- calls --- */

struct list_call {
    struct work work;
    struct hedge_node *node;
    struct rpc_call *call;
    Hedge__V1__ListRequest *m;
};

static void list_far(struct work *work)
{
    struct list_call *c = container_of(work, struct list_call, work);
    struct view *v = node_view(c->node);

    serve_stores(c->node, c->call, c->m, v);
    view_unref(v);
    pb_free(c->m);
    mem_free(c);
}

void serve_list(struct rpc_call *call, void *ctx, const void *req, size_t len)
{
    struct hedge_node *n = ctx;
    struct list_call *c = mem_calloc(1, sizeof *c);
    Hedge__V1__ListRequest *m =
        pb_unpack(&hedge__v1__list_request__descriptor, req, len);

    if (c != NULL && m != NULL) {
        *c = (struct list_call){.node = n, .call = call, .m = m};
        if (pool_submit(n->call_pool, &c->work, list_far) == 0) {
            return;
        }
    }
    rpc_fail(call, m == NULL ? HEDGE_EPROTO : HEDGE_EUNAVAILABLE,
             m == NULL ? "not a ListRequest"
                       : "the node cannot take more calls");
    pb_free(m);
    mem_free(c);
}

void serve_local_stores(struct rpc_call *call, void *ctx, const void *req,
                        size_t len)
{
    Hedge__V1__ListRequest *m =
        pb_unpack(&hedge__v1__list_request__descriptor, req, len);

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a ListRequest");
    } else {
        serve_stores(ctx, call, m, NULL);
    }
    pb_free(m);
}
