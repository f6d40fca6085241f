#include "cluster/engine/engine.h"

#include "cluster/engine/lmdb.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

struct engine_meter {
    struct {
        atomic_uint_fast64_t calls, failures, nanos;
    } of[ENGINE_CALLS];
};

static const char *const call_names[ENGINE_CALLS] = {
    [ENGINE_ACQUIRE] = "acquire", [ENGINE_RENEW] = "renew",
    [ENGINE_RELEASE] = "release", [ENGINE_LOOK] = "look",
    [ENGINE_APPEND] = "append",   [ENGINE_SCAN] = "scan",
    [ENGINE_COMPACT] = "compact", [ENGINE_MAINTAIN] = "maintain",
    [ENGINE_LATEST] = "latest",   [ENGINE_LOG_STATE] = "log_state",
};

const char *engine_call_name(enum engine_call call)
{
    return call_names[call];
}

void engine_use(const struct engine *g, enum engine_call call,
                struct engine_use *out)
{
    memset(out, 0, sizeof *out);
    if (g->meter != NULL) {
        out->calls = atomic_load(&g->meter->of[call].calls);
        out->failures = atomic_load(&g->meter->of[call].failures);
        out->nanos = atomic_load(&g->meter->of[call].nanos);
    }
}

static uint64_t begin(const struct engine *g)
{
    return g->meter != NULL ? clock_mono_ns() : 0;
}

static void add(atomic_uint_fast64_t *count, uint64_t n)
{
    atomic_fetch_add_explicit(count, n, memory_order_relaxed);
}

/* Returns rv. `since` 0: its time is not taken. A lease that somebody else
 * holds is no failure, nor is the end of what is asked for. */
static int count(const struct engine *g, enum engine_call call, uint64_t since,
                 int rv)
{
    struct engine_meter *m = g->meter;

    if (m != NULL) {
        add(&m->of[call].calls, 1);
        if (since != 0) {
            add(&m->of[call].nanos, clock_mono_ns() - since);
        }
        if (rv != 0 && rv != HEDGE_EBUSY && rv != HEDGE_ENOTFOUND) {
            add(&m->of[call].failures, 1);
        }
    }
    return rv;
}

typedef int (*open_fn)(const char *rest, const char *group, struct engine *out,
                       struct hedge_error *e);

static const struct scheme {
    const char *prefix;
    open_fn open; /* NULL: known, but not built in. */
} schemes[] = {
    {"lmdb:", lmdb_engine_open},
    {"etcd:", NULL},
    {"spanner:", NULL},
};

static int check_group(const char *group, struct hedge_error *e)
{
    size_t len = strlen(group);

    if (len == 0 || len > ENGINE_GROUP_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "the group name has %zu bytes, 1 to %d are allowed",
                         len, ENGINE_GROUP_MAX);
    }
    for (const char *p = group; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || *p == '/' || *p == 0x7f) {
            return error_set(e, HEDGE_EINVAL,
                             "the group name holds a '/' or a control "
                             "character");
        }
    }
    return 0;
}

static int find_scheme(const char *url, const struct scheme **out,
                       struct hedge_error *e)
{
    const struct scheme *s = NULL;

    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        if (strncmp(url, schemes[i].prefix, strlen(schemes[i].prefix)) == 0) {
            s = &schemes[i];
        }
    }
    *out = s;
    if (s == NULL || url[strlen(s->prefix)] == '\0') {
        return error_set(e, HEDGE_EINVAL,
                         "'%s' is not an engine; for one in a directory of "
                         "this machine say lmdb:%s",
                         url, s == NULL && url[0] == '/' ? url : "DIR");
    }
    if (s->open == NULL) {
        return error_set(e, HEDGE_ENOTSUP,
                         "the engine %s is not built into this version; "
                         "lmdb:DIR is",
                         url);
    }
    return 0;
}

int engine_check(const char *url, const char *group, struct hedge_error *e)
{
    const struct scheme *s;

    assert(url != NULL && group != NULL);
    error_clear(e);
    return check_group(group, e) != 0 ? HEDGE_EINVAL : find_scheme(url, &s, e);
}

int engine_open(const char *url, const char *group, struct engine *out,
                struct hedge_error *e)
{
    const struct scheme *s;
    int rv;

    assert(out != NULL);
    memset(out, 0, sizeof *out);
    rv = engine_check(url, group, e);
    if (rv == 0) {
        rv = find_scheme(url, &s, e);
    }
    if (rv == 0) {
        rv = s->open(url + strlen(s->prefix), group, out, e);
    }
    if (rv == 0) {
        out->meter = mem_calloc(1, sizeof *out->meter);
    }
    return rv; /* Without a meter it works as well. */
}

void engine_close(struct engine *g)
{
    if (g->ops != NULL) {
        g->ops->close(g->ctx);
    }
    mem_free(g->meter);
    memset(g, 0, sizeof *g);
}

static int check_lease(uint64_t lease_ms, struct hedge_error *e)
{
    if (lease_ms < ENGINE_LEASE_MIN_MS || lease_ms > ENGINE_LEASE_MAX_MS) {
        return error_set(e, HEDGE_EINVAL,
                         "a lease of %llu ms: %u to %u are allowed",
                         (unsigned long long)lease_ms, ENGINE_LEASE_MIN_MS,
                         ENGINE_LEASE_MAX_MS);
    }
    return 0;
}

static bool fits(const char *s)
{
    return s != NULL && strnlen(s, ENGINE_ID_SIZE) < ENGINE_ID_SIZE;
}

int engine_acquire(const struct engine *g, const struct engine_holder *who,
                   uint64_t lease_ms, uint64_t *token,
                   struct engine_lease *before, struct hedge_error *e)
{
    uint64_t since = begin(g);
    int rv;

    assert(g->ops != NULL && token != NULL && before != NULL);
    *token = 0;
    memset(before, 0, sizeof *before);
    error_clear(e);
    rv = check_lease(lease_ms, e);
    if (rv != 0) {
        return rv;
    }
    if (!fits(who->id) || !fits(who->address) || who->id[0] == '\0') {
        return error_set(e, HEDGE_EINVAL,
                         "the holder's id or address is empty or longer than "
                         "%d bytes",
                         ENGINE_ID_SIZE - 1);
    }
    rv = g->ops->acquire(g->ctx, who, lease_ms, token, before, e);
    assert(rv != 0 || *token > before->token);
    return count(g, ENGINE_ACQUIRE, since, rv);
}

int engine_renew(const struct engine *g, uint64_t token, uint64_t lease_ms,
                 struct hedge_error *e)
{
    uint64_t since = begin(g);
    int rv;

    assert(g->ops != NULL);
    error_clear(e);
    rv = check_lease(lease_ms, e);
    if (rv != 0) {
        return rv;
    }
    rv = g->ops->renew(g->ctx, token, lease_ms, e);
    return count(g, ENGINE_RENEW, since, rv);
}

int engine_release(const struct engine *g, uint64_t token,
                   struct hedge_error *e)
{
    uint64_t since = begin(g);
    int rv;

    assert(g->ops != NULL);
    error_clear(e);
    rv = g->ops->release(g->ctx, token, e);
    return count(g, ENGINE_RELEASE, since, rv);
}

int engine_look(const struct engine *g, struct engine_lease *out,
                struct hedge_error *e)
{
    uint64_t since = begin(g);
    int rv;

    assert(g->ops != NULL && out != NULL);
    memset(out, 0, sizeof *out);
    error_clear(e);
    rv = g->ops->look(g->ctx, out, e);
    return count(g, ENGINE_LOOK, since, rv);
}

int engine_append(const struct engine *g, uint64_t token, const char *leader,
                  struct engine_put *puts, size_t n, uint64_t timeout_ms,
                  struct hedge_error *e)
{
    uint64_t since = begin(g);
    int rv;

    assert(g->ops != NULL && token > 0 && fits(leader));
    error_clear(e);
    for (size_t i = 0; i < n; i++) {
        puts[i].revision = puts[i].timestamp_ms = 0;
        puts[i].repeated = false;
    }
    rv = g->ops->append(g->ctx, token, leader, puts, n, timeout_ms, e);
    return count(g, ENGINE_APPEND, since, rv);
}

int engine_latest(const struct engine *g, const void *key, size_t key_len,
                  engine_entry_fn fn, void *ctx, struct hedge_error *e)
{
    int rv;

    assert(g->ops != NULL);
    error_clear(e);
    rv = g->ops->latest(g->ctx, key, key_len, fn, ctx, e);
    return count(g, ENGINE_LATEST, 0, rv);
}

int engine_scan(const struct engine *g, struct engine_query *q,
                engine_entry_fn fn, void *ctx, bool *more,
                struct hedge_error *e)
{
    uint64_t since = begin(g);
    int rv;

    assert(g->ops != NULL && more != NULL);
    *more = false;
    error_clear(e);
    rv = g->ops->scan(g->ctx, q, fn, ctx, more, e);
    return count(g, ENGINE_SCAN, since, rv);
}

int engine_compact(const struct engine *g, uint64_t token, const char *leader,
                   struct engine_compaction *c, uint64_t timeout_ms,
                   struct hedge_error *e)
{
    uint64_t since = begin(g);
    int rv;

    assert(g->ops != NULL && token > 0 && fits(leader));
    c->removed = 0;
    c->done = false;
    error_clear(e);
    rv = g->ops->compact(g->ctx, token, leader, c, timeout_ms, e);
    return count(g, ENGINE_COMPACT, since, rv);
}

int engine_log_state(const struct engine *g, struct engine_log_state *out,
                     struct hedge_error *e)
{
    int rv;

    assert(g->ops != NULL && out != NULL);
    memset(out, 0, sizeof *out);
    error_clear(e);
    rv = g->ops->log_state(g->ctx, out, e);
    return count(g, ENGINE_LOG_STATE, 0, rv);
}

int engine_maintain(const struct engine *g, struct engine_health *out,
                    struct hedge_error *e)
{
    uint64_t since = begin(g);
    struct engine_health unused;
    int rv;

    assert(g->ops != NULL);
    error_clear(e);
    out = out != NULL ? out : &unused;
    memset(out, 0, sizeof *out);
    rv = g->ops->maintain(g->ctx, out, e);
    return count(g, ENGINE_MAINTAIN, since, rv);
}
