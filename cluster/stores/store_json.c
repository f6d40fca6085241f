#include "cluster/stores/store_json.h"

#include "cluster/node_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define U64_TEXT 24

/* An object being made; after a failure nothing more is added. */
struct made {
    cJSON *object;
    bool failed;
};

static void add_u64(struct made *m, const char *name, uint64_t n)
{
    char text[U64_TEXT]; /* Exact beyond 2^53, where a double is not. */

    (void)snprintf(text, sizeof text, "%" PRIu64, n);
    m->failed =
        m->failed || cJSON_AddRawToObject(m->object, name, text) == NULL;
}

static void add_text(struct made *m, const char *name, const char *text)
{
    m->failed =
        m->failed || cJSON_AddStringToObject(m->object, name, text) == NULL;
}

static void add_id(struct made *m, const char *name, uint64_t n)
{
    char text[U64_TEXT];

    (void)snprintf(text, sizeof text, "%" PRIu64, n);
    add_text(m, name, text);
}

static void add_time(struct made *m, const char *name, uint64_t wall_ms)
{
    char text[CLOCK_RFC3339_SIZE];

    if (wall_ms == 0) {
        m->failed = m->failed || cJSON_AddNullToObject(m->object, name) == NULL;
        return;
    }
    clock_format(wall_ms, text);
    add_text(m, name, text);
}

static void add_hex(struct made *m, const char *name,
                    const ProtobufCBinaryData *d)
{
    char text[2 * PB_DIGEST_SIZE + 1] = "";

    for (size_t i = 0; i < d->len && i < PB_DIGEST_SIZE; i++) {
        (void)snprintf(text + 2 * i, 3, "%02x", d->data[i]);
    }
    add_text(m, name, text);
}

/* NULL on failure; `child` is gone then, too. */
static void add_child(struct made *m, const char *name, struct made *child)
{
    bool ok = !m->failed && child->object != NULL && !child->failed &&
              cJSON_AddItemToObject(m->object, name, child->object) != 0;

    if (!ok) {
        cJSON_Delete(child->object);
        m->failed = true;
    }
}

const char *store_compression_text(const Hedge__V1__StoreOptions *o,
                                   char out[32])
{
    switch (o->compression) {
    case HEDGE__V1__COMPRESSION__COMPRESSION_NONE:
        return "none";
    case HEDGE__V1__COMPRESSION__COMPRESSION_ZSTD:
        (void)snprintf(out, 32, o->compression_level != 0 ? "zstd:%d" : "zstd",
                       o->compression_level);
        return out;
    default:
        return "auto";
    }
}

static void add_options(struct made *m, const Hedge__V1__StoreOptions *s)
{
    struct made o = {.object = cJSON_CreateObject()};
    char text[32];

    if (o.object != NULL) {
        add_u64(&o, "mem_limit", s->mem_limit);
        add_u64(&o, "disk_limit", s->disk_limit);
        add_u64(&o, "ttl_ms", s->ttl_ms);
        add_u64(&o, "replicas", s->replicas != 0 ? s->replicas : 1);
        add_text(&o, "compress", store_compression_text(s, text));
    }
    add_child(m, "options", &o);
}

static cJSON *tier_json(const Hedge__V1__TierUse *u)
{
    struct made t = {.object = cJSON_CreateObject()};

    if (t.object == NULL) {
        return NULL;
    }
    add_text(&t, "node", u->node);
    add_text(&t, "tier", u->tier);
    add_u64(&t, "blocks", u->blocks);
    add_u64(&t, "bytes", u->bytes);
    add_u64(&t, "stored_bytes", u->stored_bytes);
    if (t.failed) {
        cJSON_Delete(t.object);
        return NULL;
    }
    return t.object;
}

static void add_tiers(struct made *m, const Hedge__V1__StoreInfo *s)
{
    struct made tiers = {.object = cJSON_CreateArray()};

    for (size_t i = 0; tiers.object != NULL && i < s->n_tiers; i++) {
        cJSON *t = tier_json(s->tiers[i]);

        if (t == NULL || !cJSON_AddItemToArray(tiers.object, t)) {
            cJSON_Delete(t);
            tiers.failed = true;
        }
    }
    add_child(m, "tiers", &tiers);
}

cJSON *store_json(const Hedge__V1__StoreInfo *s)
{
    struct made m = {.object = cJSON_CreateObject()};

    if (m.object == NULL) {
        return NULL;
    }
    add_text(&m, "name", s->name);
    add_text(&m, "owner", s->owner);
    add_id(&m, "generation", s->generation);
    add_u64(&m, "records", s->records);
    add_u64(&m, "bytes", s->bytes);
    add_hex(&m, "digest", &s->digest);
    add_text(&m, "state", s->state);
    add_time(&m, "expires_at", s->expires_at_ms);
    add_u64(&m, "writers", s->writers);
    add_u64(&m, "writers_ever", s->writers_ever);
    add_u64(&m, "readers", s->readers);
    add_u64(&m, "missing_copies", s->missing_copies);
    add_u64(&m, "discarded_blocks", s->discarded_blocks);
    add_u64(&m, "discarded_bytes", s->discarded_bytes);
    add_tiers(&m, s);
    if (s->options != NULL) {
        add_options(&m, s->options);
    }
    if (m.failed) {
        cJSON_Delete(m.object);
        return NULL;
    }
    return m.object;
}

static int print(const Hedge__V1__StoreInfo *s, char **out,
                 struct hedge_error *e)
{
    cJSON *object = store_json(s);

    *out = object != NULL ? cJSON_PrintUnformatted(object) : NULL;
    cJSON_Delete(object);
    return *out != NULL ? 0 : error_set(e, HEDGE_ENOMEM, "no memory for JSON");
}

static int print_local(struct hedge_node *n, struct sos_store *store,
                       char **out, struct hedge_error *e)
{
    Hedge__V1__StoreInfo *m = NULL;
    struct sos_info info;
    int rv = sos_store_info(store, &info);

    if (rv == 0) {
        rv = pb_store_info(&info, n->id, &m);
        mem_free(info.uses);
    }
    if (rv == 0) {
        rv = print(m, out, e);
    } else {
        (void)error_set(e, rv, "no memory for a store's figures");
    }
    pb_store_info_release(m);
    return rv;
}

static int print_far(struct hedge_node *n, const struct store_place *p,
                     const char *name, uint64_t timeout_ms, char **out,
                     struct hedge_error *e)
{
    Hedge__V1__StoreRequest m = HEDGE__V1__STORE_REQUEST__INIT;
    struct kept_channel *c = node_channel(n, p->target);
    char *copy = mem_strdup(name);
    void *reply = NULL;
    int rv;

    if (c == NULL || copy == NULL) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory to call %s", p->owner);
    } else {
        m.name = copy;
        rv = pb_call(kept_channel_rpc(c), "/hedge.v1.Store/Stat", &m.base,
                     &hedge__v1__store_info__descriptor, timeout_ms, &reply, e);
        rv = rv == 0 ? print(reply, out, e) : rv;
    }
    pb_free(reply);
    mem_free(copy);
    if (c != NULL) {
        node_channel_put(n, c);
    }
    return rv;
}

int store_stat_json(struct hedge_node *n, const char *name, uint64_t timeout_ms,
                    char **out, struct hedge_error *e)
{
    struct store_place p;
    int rv;

    *out = NULL;
    rv = stores_find(n, name, timeout_ms, &p, e);
    if (rv != 0) {
        return rv;
    }
    if (p.local == NULL) {
        return print_far(n, &p, name, timeout_ms, out, e);
    }
    rv = print_local(n, p.local, out, e);
    sos_store_unref(p.local);
    return rv;
}
