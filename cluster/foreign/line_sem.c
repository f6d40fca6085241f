#include "cluster/foreign/line_sem.h"

#include "cluster/log/kv.h"
#include "cluster/locks/locks.h"
#include "cluster/node_internal.h"

#include "store/base/hash.h"
#include "store/base/units.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ROWS_PREFIX KV_RESERVED_PREFIX "line-sem/"
#define KEY_SIZE (sizeof ROWS_PREFIX + UNITS_NAME_MAX)
#define LIMIT_TEXT 16

/* A caller that asks twice at once: the second must see what the first got. */
#define ONE PTHREAD_MUTEX_INITIALIZER
#define FOUR ONE, ONE, ONE, ONE
#define STRIPES 16
static pthread_mutex_t stripes[STRIPES] = {FOUR, FOUR, FOUR, FOUR};

/* --- limits, in the log --- */

struct found {
    uint64_t limit; /* 0: none. */
};

static int take_limit(void *ctx, const struct engine_entry *entry)
{
    struct found *f = ctx;
    char text[LIMIT_TEXT];

    if (entry->value_len < sizeof text) {
        memcpy(text, entry->value, entry->value_len);
        text[entry->value_len] = '\0';
        (void)units_parse_u64(text, &f->limit);
    }
    return 1;
}

static int find_limit(struct hedge_node *n, const char *name, uint64_t *limit,
                      struct hedge_error *e)
{
    struct engine_query q = {.latest = true, .reserved = true, .limit = 1};
    struct found f = {.limit = 0};
    char key[KEY_SIZE];
    bool more;
    int rv;

    q.key_len = (size_t)snprintf(key, sizeof key, "%s%s", ROWS_PREFIX, name);
    q.key = key;
    rv = engine_scan(&n->engine, &q, take_limit, &f, &more, e);
    *limit = f.limit;
    return rv;
}

static int keep_limit(struct hedge_node *n, const char *name, uint64_t limit,
                      uint64_t token, uint64_t timeout_ms,
                      struct hedge_error *e)
{
    char key[KEY_SIZE], text[LIMIT_TEXT];
    struct engine_put put = {.key = key, .value = text};

    put.key_len = (size_t)snprintf(key, sizeof key, "%s%s", ROWS_PREFIX, name);
    put.value_len = (size_t)snprintf(text, sizeof text, "%" PRIu64, limit);
    return kv_append(n->kv, token, &put, 1, timeout_ms, e);
}

/* --- calls --- */

/* Not 0, and the same for the same texts. */
static uint64_t id_of(const char *kind, const char *a, const char *b)
{
    char text[2 * SEMAPHORE_HOLDER_SIZE + 16];
    int len = snprintf(text, sizeof text, "%s %s %s", kind, a, b);
    uint64_t id = hash64(text, (size_t)len);

    return id != 0 ? id : 1;
}

static int begin(struct lock_call *c, enum semaphore_op op, const char *name,
                 const char *caller, uint64_t timeout_ms, struct hedge_error *e)
{
    int rv = units_check_name(name, strlen(name), e);

    if (rv == 0 && strlen(caller) >= sizeof c->call.holder) {
        rv = error_set(e, HEDGE_EINVAL, "the caller's name is too long");
    } else if (rv == 0 && !units_is_text(caller, strlen(caller))) {
        rv = error_set(e, HEDGE_EINVAL, "the caller's name is not valid UTF-8");
    }
    lock_call_init(c, op, timeout_ms);
    if (rv == 0) {
        (void)lock_call_name(c, name);
        (void)snprintf(c->call.holder, sizeof c->call.holder, "%s", caller);
        c->call.session = id_of("line-session", caller, "");
        c->call.request = id_of("line-permit", caller, name);
        c->call.lease_ms = LINE_SEM_LEASE_MS;
    }
    return rv;
}

/* Its session lasts from now on. *has: it holds a permit of this semaphore. */
static int renew(struct hedge_node *n, enum semaphore_op op, const char *name,
                 const char *caller, uint64_t timeout_ms, bool *has,
                 struct hedge_error *e)
{
    struct lock_call c;
    int rv = begin(&c, op, name, caller, timeout_ms, e);

    *has = false;
    if (rv == 0) {
        rv = locks_call(n, &c, e);
    }
    for (size_t i = 0; rv == 0 && i < c.call.n_held; i++) {
        *has = *has || c.call.held[i].request == c.call.request;
    }
    lock_call_release(&c);
    return rv;
}

static int check_limit(struct hedge_node *n, const char *name,
                       const char *caller, uint64_t limit, uint64_t timeout_ms,
                       struct hedge_error *e)
{
    struct lock_call c;
    int rv = begin(&c, SEMAPHORE_CHECK, name, caller, timeout_ms, e);

    if (rv == 0) {
        c.call.limit = (uint32_t)limit;
        rv = locks_call(n, &c, e);
    }
    lock_call_release(&c);
    return rv;
}

int line_sem_create(struct hedge_node *n, const char *name, const char *limit,
                    const char *caller, uint64_t timeout_ms,
                    struct hedge_error *e)
{
    uint64_t wanted, has, token;
    bool holds;
    int rv = units_check_name(name, strlen(name), e);

    if (rv != 0) {
        return rv;
    }
    if (!units_parse_u64(limit, &wanted) || wanted < 1 ||
        wanted > SEMAPHORE_LIMIT_MAX) {
        return error_set(e, HEDGE_EINVAL, "a limit is 1 to %u",
                         SEMAPHORE_LIMIT_MAX);
    }
    if (!hedge_has_lock(n, &token)) {
        return error_set(e, HEDGE_ENOTLEADER, "this node is not the leader");
    }
    rv = find_limit(n, name, &has, e);
    if (rv == 0 && has != 0 && has != wanted) {
        rv = error_set(e, HEDGE_EINVAL,
                       "semaphore \"%s\" has the limit %" PRIu64
                       ", not %" PRIu64,
                       name, has, wanted);
    }
    rv = rv != 0 ? rv : check_limit(n, name, caller, wanted, timeout_ms, e);
    if (rv == 0 && has == 0) {
        rv = keep_limit(n, name, wanted, token, timeout_ms, e);
    }
    if (rv == 0) {
        (void)renew(n, SEMAPHORE_RENEW, name, caller, timeout_ms, &holds, NULL);
    }
    return rv;
}

static int acquire(struct hedge_node *n, struct lock_call *c, const char *name,
                   const char *caller, uint64_t timeout_ms,
                   struct hedge_error *e)
{
    uint64_t limit;
    bool holds;
    int rv = find_limit(n, name, &limit, e);

    if (rv == 0 && limit == 0) {
        rv =
            error_set(e, HEDGE_ENOTFOUND, "there is no semaphore \"%s\"", name);
    }
    if (rv == 0) {
        rv = renew(n, SEMAPHORE_OPEN, name, caller, timeout_ms, &holds, e);
    }
    if (rv == 0 && holds) {
        rv = error_set(e, HEDGE_EEXISTS, "%s has its permit already", caller);
    }
    if (rv == 0) {
        c->call.limit = (uint32_t)limit;
        c->call.permits = 1;
        rv = locks_call(n, c, e);
    }
    return rv;
}

int line_sem_acquire(struct hedge_node *n, const char *name, const char *caller,
                     uint64_t timeout_ms, struct hedge_error *e)
{
    struct lock_call c;
    pthread_mutex_t *one_at_a_time;
    int rv = begin(&c, SEMAPHORE_ACQUIRE, name, caller, timeout_ms, e);

    if (rv == 0) {
        one_at_a_time = &stripes[c.call.request % STRIPES];
        pthread_mutex_lock(one_at_a_time);
        rv = acquire(n, &c, name, caller, timeout_ms, e);
        pthread_mutex_unlock(one_at_a_time);
    }
    lock_call_release(&c);
    return rv;
}

int line_sem_release(struct hedge_node *n, const char *name, const char *caller,
                     uint64_t timeout_ms, struct hedge_error *e)
{
    struct lock_call c;
    bool holds;
    int rv = begin(&c, SEMAPHORE_RELEASE, name, caller, timeout_ms, e);

    if (rv == 0) {
        rv = locks_call(n, &c, e);
        (void)renew(n, SEMAPHORE_RENEW, name, caller, timeout_ms, &holds, NULL);
    }
    lock_call_release(&c);
    return rv;
}

bool line_sem_may_retry(int code)
{
    return code == HEDGE_EBUSY || code == HEDGE_ENOLEADER ||
           code == HEDGE_ENOTLEADER || code == HEDGE_EUNAVAILABLE ||
           code == HEDGE_ETIMEDOUT || code == HEDGE_EEXHAUSTED ||
           code == HEDGE_EFENCED;
}
