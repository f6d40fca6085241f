/* The log's storage against a plain model: random puts, replacements, repeated
 * requests, compactions and passing time; then random questions, in pages of
 * random length, some of them with puts between the pages. For a while nothing
 * is replaced, so that there is a tail.
 *
 * test_kvlog_model [SEED [STEPS]] replays a run. */
#include "store/kvlog/kvlog.h"
#include "store/kvlog/kvlog_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/lib/kvlog_box.h"

#define VERSIONS_MAX 20000
#define KEYS 12
#define STEPS 4000

struct version {
    unsigned key;
    uint64_t revision, timestamp_ms, token, value, hidden_by;
    bool gone; /* Compacted away, or removed at once. */
};

static struct kvlog_box box;
static struct version versions[VERSIONS_MAX];
static unsigned n_versions;
static uint64_t last_revision, last_ms, floor_revision, floor_ms;
static uint64_t seed = 1, steps = STEPS;
static bool replacing;
static uint64_t x;

static const struct {
    const char *text;
    size_t len;
    bool reserved;
} keys[KEYS] = {
    {"a", 1, false},        {"a\0", 2, false},      {"a\0b", 3, false},
    {"ab", 2, false},       {"abc", 3, false},      {"b", 1, false},
    {"b\xff", 2, false},    {"\xff", 1, false},     {"__hedge", 7, false},
    {"__hedge/a", 9, true}, {"__hedge/b", 9, true}, {"zz", 2, false},
};

static uint64_t rnd(uint64_t n)
{
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return (x * 0x9e3779b97f4a7c15u >> 32) % n;
}

/* --- changes ----------------------------------------------------------------
 */

static void model_hide(unsigned key, uint64_t by, bool all)
{
    for (unsigned i = n_versions; i-- > 0;) {
        struct version *v = &versions[i];

        if (v->key != key || v->gone || v->hidden_by != 0) {
            continue;
        }
        if (keys[key].reserved) {
            v->gone = true;
        } else {
            v->hidden_by = by;
        }
        if (!all) {
            return;
        }
    }
}

static void model_put(unsigned key, uint64_t value, unsigned flags)
{
    last_revision++;
    last_ms = box.wall_ms > last_ms ? box.wall_ms : last_ms;
    if (flags != 0) {
        model_hide(key, last_revision, (flags & KVLOG_DELETE) != 0);
    }
    if ((flags & KVLOG_DELETE) == 0) {
        assert_true(n_versions < VERSIONS_MAX);
        versions[n_versions++] = (struct version){.key = key,
                                                  .revision = last_revision,
                                                  .timestamp_ms = last_ms,
                                                  .token = box.token,
                                                  .value = value};
    }
}

/* Up to five puts in one transaction, one of them perhaps twice. */
static void step_put(void)
{
    struct kvlog_put puts[6];
    uint64_t values[6], before = last_revision;
    unsigned n = 1 + (unsigned)rnd(5);
    bool repeat = rnd(4) == 0;

    for (unsigned i = 0; i < n; i++) {
        unsigned key = (unsigned)rnd(KEYS), flags = 0;

        if (replacing && rnd(4) == 0) {
            flags = keys[key].reserved && rnd(2) == 0 ? KVLOG_DELETE
                                                      : KVLOG_REPLACE;
        }
        values[i] = rnd(UINT32_MAX);
        puts[i] = (struct kvlog_put){.key = keys[key].text,
                                     .key_len = keys[key].len,
                                     .value = &values[i],
                                     .value_len = sizeof values[i],
                                     .flags = flags};
        if (repeat) {
            memcpy(puts[i].request, &x, sizeof x);
            puts[i].request[15] = (unsigned char)i;
        }
        model_put(key, values[i], flags);
    }
    assert_int_equal(kvlog_box_append(&box, puts, n), 0);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(puts[i].revision, before + i + 1);
        assert_int_equal(puts[i].timestamp_ms, last_ms);
    }
    if (repeat) { /* And a new one beside them. */
        unsigned key = (unsigned)rnd(KEYS);

        box.token += rnd(2);
        values[n] = rnd(UINT32_MAX);
        puts[n] = (struct kvlog_put){.key = keys[key].text,
                                     .key_len = keys[key].len,
                                     .value = &values[n],
                                     .value_len = sizeof values[n]};
        model_put(key, values[n], 0);
        assert_int_equal(kvlog_box_append(&box, puts, n + 1), 0);
        for (unsigned i = 0; i <= n; i++) {
            assert_int_equal(puts[i].revision, before + i + 1);
            assert_true(puts[i].repeated == (i < n));
        }
    }
}

static void step_compact(void)
{
    uint64_t before = 1 + rnd(last_revision + 1), keep = 1 + rnd(3);
    uint64_t removed = kvlog_box_compact(&box, before, 0, keep, NULL);
    uint64_t expected = 0;

    before = before < last_revision ? before : last_revision;
    if (before > floor_revision) {
        floor_revision = before;
        floor_ms = last_ms; /* Or before. */
    }
    for (unsigned key = 0; key < KEYS; key++) {
        uint64_t seen = 0, newer = UINT64_MAX;

        for (unsigned i = n_versions; i-- > 0;) {
            struct version *v = &versions[i];

            if (v->key != key || v->gone || v->hidden_by != 0 ||
                keys[key].reserved) {
                continue;
            }
            if (seen >= keep && newer <= before) {
                v->gone = true;
                expected++;
            }
            seen++;
            newer = v->revision;
        }
    }
    assert_int_equal(removed, expected);
}

/* --- questions --------------------------------------------------------------
 */

static bool has_prefix(const struct kvlog_query *q, unsigned key)
{
    return keys[key].len >= q->key_len &&
           (q->key_len == 0 || memcmp(keys[key].text, q->key, q->key_len) == 0);
}

static bool model_wants(const struct kvlog_query *q, const struct version *v,
                        uint64_t snapshot, uint64_t to)
{
    bool of_key = q->prefix || q->key_len == 0
                      ? has_prefix(q, v->key)
                      : keys[v->key].len == q->key_len && has_prefix(q, v->key);

    return of_key && !v->gone && (q->reserved || !keys[v->key].reserved) &&
           v->revision <= to && v->revision <= snapshot &&
           (v->hidden_by == 0 || v->hidden_by > snapshot) &&
           (q->until_ms == 0 || v->timestamp_ms < q->until_ms);
}

static int by_key(const void *a, const void *b)
{
    const struct version *const *p = a, *const *q = b;
    size_t m = keys[(*p)->key].len, n = keys[(*q)->key].len;
    int c = memcmp(keys[(*p)->key].text, keys[(*q)->key].text, m < n ? m : n);

    return c != 0 ? c : (m > n) - (m < n);
}

static unsigned model_ask(const struct kvlog_query *q, uint64_t snapshot,
                          const struct version **out)
{
    uint64_t to = q->at_revision != 0 ? q->at_revision : snapshot;
    const struct version *newest[KEYS] = {NULL};
    unsigned n = 0;

    for (unsigned i = 0; i < n_versions; i++) {
        const struct version *v = &versions[q->newest ? n_versions - 1 - i : i];
        bool in =
            v->revision >= q->from_revision && v->timestamp_ms >= q->since_ms;

        if (!model_wants(q, v, snapshot, to)) {
            continue;
        }
        if (q->latest) {
            newest[v->key] = v;
        } else if (in) {
            out[n++] = v;
        }
    }
    for (unsigned k = 0; q->latest && k < KEYS; k++) {
        if (newest[k] != NULL && newest[k]->revision >= q->from_revision &&
            newest[k]->timestamp_ms >= q->since_ms) {
            out[n++] = newest[k];
        }
    }
    if (q->latest) {
        qsort(out, n, sizeof *out, by_key);
    }
    return q->limit != 0 && n > q->limit ? (unsigned)q->limit : n;
}

static void random_query(struct kvlog_query *q, bool reserved)
{
    memset(q, 0, sizeof *q);
    if (rnd(3) != 0) {
        unsigned key = (unsigned)rnd(KEYS);

        q->key = keys[key].text;
        q->key_len = keys[key].len;
        q->prefix = rnd(2) == 0;
        if (q->prefix) {
            q->key_len = rnd(q->key_len + 1);
        }
    }
    q->reserved = reserved && rnd(4) == 0;
    q->latest = rnd(3) == 0;
    q->newest = !q->latest && rnd(2) == 0;
    q->at_revision =
        rnd(3) == 0 && last_revision > 0 ? 1 + rnd(last_revision) : 0;
    q->from_revision = rnd(3) == 0 ? rnd(last_revision + 2) : 0;
    q->since_ms = rnd(4) == 0 ? 1000 + rnd(last_ms + 1) : 0;
    q->until_ms = rnd(4) == 0 ? 1 + rnd(last_ms + 1000) : 0;
    q->limit = rnd(3) == 0 ? 1 + rnd(20) : 0;
}

struct checker {
    const struct version **expected;
    unsigned n, at, left;
    bool end;
};

static int check_entry(void *ctx, const struct kvlog_entry *e)
{
    struct checker *c = ctx;
    const struct version *v;
    uint64_t value;

    if (c->left == 0 && !c->end) {
        return KVLOG_REFUSE;
    }
    assert_true(c->at < c->n);
    v = c->expected[c->at++];
    assert_int_equal(e->revision, v->revision);
    assert_int_equal(e->timestamp_ms, v->timestamp_ms);
    assert_int_equal(e->token, v->token);
    assert_int_equal(e->key_len, keys[v->key].len);
    assert_memory_equal(e->key, keys[v->key].text, e->key_len);
    assert_int_equal(e->value_len, sizeof value);
    memcpy(&value, e->value, sizeof value);
    assert_int_equal(value, v->value);
    c->left--;
    return c->left == 0 && c->end ? KVLOG_END : KVLOG_GO_ON;
}

/* What a query is refused for at its first page, times apart. */
static int model_refusal(const struct kvlog_query *q)
{
    if (q->from_revision > last_revision + 1) {
        return HEDGE_EINVAL;
    }
    if ((q->at_revision != 0 && q->at_revision < floor_revision) ||
        (q->from_revision != 0 && q->from_revision < floor_revision)) {
        return HEDGE_EEXPIRED;
    }
    return 0;
}

static void step_ask(bool between)
{
    static const struct version *expected[VERSIONS_MAX];
    struct checker c = {.expected = expected};
    uint64_t snapshot = last_revision;
    struct kvlog_query q;
    bool more = true;
    int rv = 0, refusal;

    kvlog_find_cost = rnd(2) == 0 ? 0 : 6;
    random_query(&q, !between);
    refusal = model_refusal(&q);
    c.n = model_ask(&q, snapshot, expected);
    while (more && rv == 0) {
        c.left = 1 + (unsigned)rnd(rnd(8) == 0 ? 1000 : 5);
        c.end = rnd(2) == 0;
        kvlog_box_read(&box);
        rv = kvlog_scan(&box.reader, &box.log, &q, check_entry, &c, &more,
                        &box.error);
        kvlog_box_read_end(&box);
        if (rv == 0) {
            assert_int_equal(q.snapshot, snapshot);
        }
        if (between && more && rv == 0) {
            step_put();
        }
    }
    if (refusal != 0) {
        assert_int_equal(rv, refusal);
    } else if (rv == HEDGE_EEXPIRED) {
        /* As of a time before the floor. */
        assert_true(q.until_ms != 0 && q.until_ms <= floor_ms);
    } else {
        assert_int_equal(rv, 0);
        assert_int_equal(c.at, c.n);
    }
}

static void test_model(void **state)
{
    (void)state;
    print_message("seed %llu, %llu steps\n", (unsigned long long)seed,
                  (unsigned long long)steps);
    kvlog_box_init(&box);
    for (uint64_t i = 0; i < steps && n_versions < VERSIONS_MAX - 200; i++) {
        box.at_once = rnd(4);
        if (rnd(100) == 0) {
            replacing = !replacing;
            kvlog_tail_rows = rnd(3) == 0 ? (unsigned)rnd(20) : KVLOG_TAIL_ROWS;
        }
        switch (rnd(20)) {
        case 0:
            box.wall_ms += rnd(5000);
            box.boot_ms += rnd(5000);
            break;
        case 1:
            box.wall_ms -= rnd(box.wall_ms / 4);
            break;
        case 2:
            /* Ids and hidden versions go; nothing that is asked for does. */
            if (rnd(10) == 0) {
                box.wall_ms = last_ms + KVLOG_KEEP_MS + 1;
                box.boot_ms += rnd(2) * (KVLOG_KEEP_MS + 1);
            }
            break;
        case 3:
            if (rnd(10) == 0 && last_revision > 0) {
                step_compact();
            }
            break;
        case 4:
        case 5:
            step_ask(true);
            break;
        case 6:
        case 7:
        case 8:
        case 9:
        case 10:
            step_ask(false);
            break;
        default:
            step_put();
        }
    }
    kvlog_box_release(&box);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model)};

    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    steps = argc > 2 ? strtoull(argv[2], NULL, 10) : STEPS;
    x = seed * 0x9e3779b97f4a7c15u + 1;
    return cmocka_run_group_tests_name("kvlog_model", tests, NULL, NULL);
}
