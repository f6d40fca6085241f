/* api_log.c - the public face of the log. */
#include "cluster/log/kv.h"
#include "cluster/log/log_page.h"
#include "cluster/node_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>
#include <limits.h>
#include <string.h>

#define PAGE_BYTES ((size_t)256 << 10)
#define BATCH_MAX_BYTES ((size_t)8 << 20)

static_assert(HEDGE_KEY_MAX == ENGINE_KEY_MAX, "one limit");
static_assert(HEDGE_VALUE_MAX == ENGINE_VALUE_MAX, "one limit");
static_assert((int)HEDGE_PUT_NO_APPEND == (int)ENGINE_REPLACE, "one flag");

/* --- put --------------------------------------------------------------------
 */

static int check_batch(const struct hedge_put *puts, size_t n,
                       struct hedge_error *e)
{
    size_t bytes = 0;

    if (n > KV_BATCH_PUTS) {
        return error_set(e, HEDGE_EINVAL, "%zu puts at once: at most %u", n,
                         KV_BATCH_PUTS);
    }
    for (size_t i = 0; i < n; i++) {
        bytes += puts[i].value_len <= HEDGE_VALUE_MAX
                     ? puts[i].key_len + puts[i].value_len
                     : 0; /* Refused by itself. */
    }
    if (n > 1 && bytes > BATCH_MAX_BYTES) {
        return error_set(e, HEDGE_ETOOBIG,
                         "%zu puts of %zu bytes together: at most %zu", n,
                         bytes, BATCH_MAX_BYTES);
    }
    return 0;
}

static void to_engine(const struct hedge_put *p, struct engine_put *out)
{
    *out = (struct engine_put){.key = p->key,
                               .key_len = p->key_len,
                               .value = p->value,
                               .value_len = p->value_len,
                               .flags = p->flags};
    memcpy(out->request, p->request, sizeof out->request);
}

HEDGE_API int hedge_put(struct hedge_node *node, const void *key,
                        size_t key_len, const void *value, size_t value_len,
                        unsigned flags, uint64_t timeout_ms, uint64_t *revision,
                        struct hedge_error *e)
{
    struct engine_put p = {.key = key,
                           .key_len = key_len,
                           .value = value,
                           .value_len = value_len,
                           .flags = flags};
    int rv = kv_put(node->kv, &p, 1, 0, timeout_ms, e);

    if (revision != NULL) {
        *revision = rv == 0 ? p.revision : 0;
    }
    return rv;
}

HEDGE_API int hedge_put_batch(struct hedge_node *node, struct hedge_put *puts,
                              size_t n, uint64_t timeout_ms,
                              struct hedge_error *e)
{
    struct engine_put *mine;
    int rv = check_batch(puts, n, e);

    if (rv != 0 || n == 0) {
        return rv;
    }
    mine = mem_alloc(n * sizeof *mine);
    if (mine == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for %zu puts", n);
    }
    for (size_t i = 0; i < n; i++) {
        to_engine(&puts[i], &mine[i]);
    }
    rv = kv_put(node->kv, mine, n, 0, timeout_ms, e);
    for (size_t i = 0; i < n; i++) {
        puts[i].revision = rv == 0 ? mine[i].revision : 0;
        puts[i].timestamp_ms = rv == 0 ? mine[i].timestamp_ms : 0;
    }
    mem_free(mine);
    return rv;
}

/* --- get --------------------------------------------------------------------
 */

struct one {
    struct hedge_entries *entries;
};

static int copy_one(void *ctx, const struct engine_entry *e)
{
    struct one *one = ctx;

    one->entries = log_entries_one(e);
    return 1;
}

static int not_found(struct hedge_error *e)
{
    return error_set(e, HEDGE_ENOTFOUND, "there is no version of this key");
}

static int get_latest(struct hedge_node *n, const void *key, size_t key_len,
                      struct hedge_entries **out, struct hedge_error *e)
{
    struct one one = {.entries = NULL};
    int rv = engine_latest(&n->engine, key, key_len, copy_one, &one, e);

    if (rv == 0 && one.entries == NULL) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for an entry");
    }
    *out = one.entries;
    return rv == HEDGE_ENOTFOUND ? not_found(e) : rv;
}

static int get_many(struct hedge_node *n, struct engine_query *q,
                    struct hedge_entries **out, struct hedge_error *e)
{
    struct log_page page;
    bool more = true;
    int rv = 0;

    log_page_init(&page, (size_t)n->o.message_limit);
    while (rv == 0 && more) {
        rv = engine_scan(&n->engine, q, log_page_entry, &page, &more, e);
        if (rv == 0 && page.failed) {
            rv = error_set(e, HEDGE_ENOMEM, "no memory for the versions");
        } else if (rv == 0 && page.full) {
            rv = error_set(e, HEDGE_EEXHAUSTED,
                           "the versions of this key take more than the "
                           "message limit of %zu bytes; read them in pages",
                           page.max_bytes);
        } else if (rv == 0 && more && n->closing) {
            rv = error_set(e, HEDGE_ECLOSED, "the node stops");
        }
    }
    if (rv == 0 && page.n == 0) {
        rv = not_found(e);
    }
    *out = rv == 0 ? log_page_give(&page) : NULL;
    log_page_release(&page);
    return rv;
}

HEDGE_API int hedge_get(struct hedge_node *node, const void *key,
                        size_t key_len, long limit, struct hedge_entries **out,
                        struct hedge_error *e)
{
    struct engine_query q = {.key = key, .key_len = key_len, .newest = true};
    int rv = kv_check_key(key, key_len, e);

    *out = NULL;
    if (rv == 0 && (limit < HEDGE_GET_OLDEST || limit > INT32_MAX)) {
        rv = error_set(e, HEDGE_EINVAL, "a limit of %ld: -2 to %d are possible",
                       limit, INT32_MAX);
    }
    if (rv != 0) {
        return rv;
    }
    if (limit == HEDGE_GET_LATEST) {
        return get_latest(node, key, key_len, out, e);
    }
    q.newest = limit != HEDGE_GET_OLDEST;
    q.limit = limit > 0 ? (uint64_t)limit : limit == HEDGE_GET_OLDEST ? 1 : 0;
    return get_many(node, &q, out, e);
}

HEDGE_API void hedge_entries_free(struct hedge_entries *entries)
{
    log_entries_free(entries);
}

/* --- queries ----------------------------------------------------------------
 */

struct hedge_log {
    struct hedge_node *node;
    struct engine_query q;
    struct log_page page;
    size_t at; /* In the page. */
    bool more, follow, limited;
    uint64_t seen; /* Follow: all up to this revision. */
    unsigned char key[];
};

HEDGE_API void hedge_query_init(struct hedge_query *q)
{
    memset(q, 0, sizeof *q);
}

static int check_query(const struct hedge_query *q, struct hedge_error *e)
{
    if (q->key_len > 0 && q->key == NULL) {
        return error_set(e, HEDGE_EINVAL, "a key of %zu bytes at NULL",
                         q->key_len);
    }
    if (q->limit > INT32_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "a limit of %llu: at most %d are possible",
                         (unsigned long long)q->limit, INT32_MAX);
    }
    if (q->follow &&
        (q->latest || q->newest || q->at_revision != 0 || q->until_ms != 0)) {
        return error_set(e, HEDGE_EINVAL,
                         "follow goes on for ever, oldest first: not with "
                         "latest, newest, at_revision or until");
    }
    if (q->since_ms != 0 && q->until_ms != 0 && q->since_ms > q->until_ms) {
        return error_set(e, HEDGE_EINVAL,
                         "the time range ends before it "
                         "begins");
    }
    return 0;
}

static int next_page(struct hedge_log *l, struct hedge_error *e)
{
    int rv;

    log_page_clear(&l->page);
    l->at = 0;
    rv = engine_scan(&l->node->engine, &l->q, log_page_entry, &l->page,
                     &l->more, e);
    if (rv == 0 && l->page.failed) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for a page");
    }
    if (rv == 0) {
        l->seen = l->q.snapshot;
    } else {
        log_page_clear(&l->page);
    }
    return rv;
}

HEDGE_API int hedge_log_open(struct hedge_node *node,
                             const struct hedge_query *q,
                             struct hedge_log **out, struct hedge_error *e)
{
    struct hedge_log *l;
    int rv = check_query(q, e);

    *out = NULL;
    if (rv != 0) {
        return rv;
    }
    l = mem_calloc(1, sizeof *l + q->key_len);
    if (l == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a query");
    }
    if (q->key_len > 0) {
        memcpy(l->key, q->key, q->key_len);
    }
    l->node = node;
    l->follow = q->follow;
    l->limited = q->limit != 0;
    l->q = (struct engine_query){.key = l->key,
                                 .key_len = q->key_len,
                                 .prefix = q->prefix,
                                 .latest = q->latest,
                                 .newest = q->newest,
                                 .from_revision = q->from_revision,
                                 .at_revision = q->at_revision,
                                 .since_ms = q->since_ms,
                                 .until_ms = q->until_ms,
                                 .limit = q->limit};
    log_page_init(&l->page, PAGE_BYTES);
    rv = next_page(l, e);
    if (rv != 0) {
        hedge_log_close(l);
        return rv;
    }
    *out = l;
    return 0;
}

/* More than there was at the end of the last page. */
static int follow_on(struct hedge_log *l, uint64_t until_ms,
                     struct hedge_error *e)
{
    uint64_t now_ms = clock_mono_ms(), last;
    int rv = kv_wait(l->node->kv, l->seen,
                     until_ms > now_ms ? until_ms - now_ms : 0, &last, e);

    if (rv == 0) {
        l->q.from_revision = l->seen + 1;
        l->q.resume_len = 0;
        l->more = true;
    }
    return rv;
}

HEDGE_API int hedge_log_next(struct hedge_log *l, uint64_t timeout_ms,
                             struct hedge_entry *out, struct hedge_error *e)
{
    uint64_t until_ms = 0;
    int rv = 0;

    if (l->at < l->page.n) {
        log_page_at(&l->page, l->at++, out);
        return 0;
    }
    memset(out, 0, sizeof *out);
    if (l->follow) {
        uint64_t now_ms = clock_mono_ms();

        until_ms =
            timeout_ms < UINT64_MAX - now_ms ? now_ms + timeout_ms : UINT64_MAX;
    }
    while (rv == 0 && l->at == l->page.n) {
        if (!l->more && (!l->follow || (l->limited && l->q.limit == 0))) {
            return error_set(e, HEDGE_EEND, "%s", hedge_strerror(HEDGE_EEND));
        }
        rv = l->more ? next_page(l, e) : follow_on(l, until_ms, e);
    }
    if (rv == 0) {
        log_page_at(&l->page, l->at++, out);
    }
    return rv;
}

HEDGE_API void hedge_log_close(struct hedge_log *l)
{
    if (l != NULL) {
        log_page_release(&l->page);
        mem_free(l);
    }
}

HEDGE_API int hedge_log_compact(struct hedge_node *node,
                                uint64_t before_revision, uint64_t before_ms,
                                uint64_t keep, uint64_t timeout_ms,
                                uint64_t *removed, struct hedge_error *e)
{
    uint64_t n = 0;
    int rv = node_log_compact(node, before_revision, before_ms, keep, false,
                              timeout_ms, &n, e);

    if (removed != NULL) {
        *removed = n;
    }
    return rv;
}
