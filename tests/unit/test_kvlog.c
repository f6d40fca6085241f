/* The log's storage: what each question answers, what is refused, and rows
 * that are damaged; all of it with rows that the index has, has not, and has
 * in part. test_kvlog_compact.c compacts, test_kvlog_model.c asks at random. */
#include "store/kvlog/kvlog.h"
#include "store/kvlog/kvlog_internal.h"
#include "store/base/bytes.h"
#include "store/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/kvlog_case.h"

static void put_some(void)
{
    put("a", "1");
    put("b", "2");
    put("a", "3");
    put("ab", "4");
    put("a", "5");
}

static void test_versions(void **state)
{
    (void)state;
    CHECK("", .key_len = 0);
    CHECK("", KEY("a"));
    put_some();
    CHECK("a=1@1 b=2@2 a=3@3 ab=4@4 a=5@5", .key_len = 0);
    CHECK("a=5@5 ab=4@4 a=3@3 b=2@2 a=1@1", .newest = true);
    CHECK("a=1@1 a=3@3 a=5@5", KEY("a"));
    CHECK("a=5@5", KEY("a"), .newest = true, .limit = 1);
    CHECK("a=1@1", KEY("a"), .limit = 1);
    CHECK("a=5@5 a=3@3", KEY("a"), .newest = true, .limit = 2);
    CHECK("a=1@1 a=3@3 ab=4@4 a=5@5", KEY("a"), .prefix = true);
    CHECK("a=5@5 ab=4@4 a=3@3 a=1@1", KEY("a"), .prefix = true, .newest = true);
    CHECK("a=1@1 a=3@3", KEY("a"), .prefix = true, .limit = 2);
    CHECK("a=5@5 ab=4@4 b=2@2", .latest = true);
    CHECK("a=5@5 ab=4@4", KEY("a"), .prefix = true, .latest = true);
    CHECK("a=5@5", KEY("a"), .latest = true);
    CHECK("", KEY("c"), .prefix = true);
    CHECK("", KEY("c"));
    CHECK("", KEY("A"));
}

static void test_as_of(void **state)
{
    (void)state;
    put_some();
    CHECK("a=3@3", KEY("a"), .newest = true, .limit = 1, .at_revision = 4);
    CHECK("a=3@3 ab=4@4 b=2@2", .latest = true, .at_revision = 4);
    CHECK("a=1@1", .latest = true, .at_revision = 1);
    CHECK("a=1@1 b=2@2 a=3@3", .at_revision = 3);
    CHECK("a=3@3 ab=4@4 a=5@5", .from_revision = 3);
    CHECK("a=3@3 ab=4@4", .from_revision = 3, .at_revision = 4);
    CHECK("", .from_revision = 6);
    assert_string_equal(ASK(.from_revision = 7), "EINVAL");
    assert_non_null(strstr(box.error.text, "the last one is 5"));
    assert_string_equal(ASK(.at_revision = 6), "EINVAL");
    assert_string_equal(ASK(.at_revision = UINT64_MAX), "EINVAL");
}

static void test_times(void **state)
{
    (void)state;
    box.wall_ms = 1000;
    put("a", "1");
    box.wall_ms = 2000;
    put("a", "2");
    box.wall_ms = 1500; /* A clock that goes back. */
    put("a", "3");
    box.wall_ms = 3000;
    put("a", "4");
    CHECK("a=2@2 a=3@3", .since_ms = 2000, .until_ms = 3000);
    CHECK("a=2@2 a=3@3", .since_ms = 1001, .until_ms = 2001);
    CHECK("", .until_ms = 1000);
    CHECK("a=1@1", .until_ms = 1001);
    CHECK("a=4@4", .since_ms = 2001);
    CHECK("", .since_ms = 3001);
    CHECK("a=3@3", KEY("a"), .newest = true, .limit = 1, .until_ms = 2001);
    CHECK("a=3@3", .latest = true, .until_ms = 3000);
    CHECK("", .latest = true, .until_ms = 1);
    CHECK("a=1@1 a=2@2 a=3@3 a=4@4", .until_ms = UINT64_MAX);
}

static void test_replace(void **state)
{
    (void)state;
    kvlog_box_put(&box, "a", "1", KVLOG_REPLACE);
    put("a", "2");
    kvlog_box_put(&box, "a", "3", KVLOG_REPLACE);
    CHECK("a=1@1 a=3@3", .key_len = 0);
    CHECK("a=3@3 a=1@1", .newest = true);
    CHECK("a=1@1 a=3@3", KEY("a"));
    CHECK("a=1@1 a=3@3", KEY("a"), .prefix = true);
    CHECK("a=1@1", KEY("a"), .newest = true, .limit = 1, .at_revision = 2);
    CHECK("a=1@1", .latest = true, .at_revision = 2);
    CHECK("a=3@3", .from_revision = 2);
    kvlog_box_put(&box, "a", "4", KVLOG_REPLACE);
    kvlog_box_put(&box, "a", "5", KVLOG_REPLACE);
    CHECK("a=1@1 a=5@5", .key_len = 0);
    CHECK("a=5@5", .latest = true);
}

static int refuse(void *ctx, const struct kvlog_entry *e)
{
    (void)ctx;
    (void)e;
    return KVLOG_REFUSE;
}

/* An answer in pages that began before a version was replaced sees it, and
 * loses no key. */
static void test_replace_between_pages(void **state)
{
    struct kvlog_query q = {.latest = true}, history = {.key_len = 0};
    const char *text;
    bool more;

    (void)state;
    put("a", "1");
    put("b", "2");
    put("c", "3");
    /* First pages, with nothing taken: the snapshot is fixed. */
    kvlog_box_read(&box);
    assert_int_equal(
        kvlog_scan(&box.reader, &box.log, &q, refuse, NULL, &more, &box.error),
        0);
    assert_true(more);
    assert_int_equal(kvlog_scan(&box.reader, &box.log, &history, refuse, NULL,
                                &more, &box.error),
                     0);
    kvlog_box_read_end(&box);
    kvlog_box_put(&box, "b", "22", KVLOG_REPLACE);
    kvlog_box_put(&box, "c", "33", 0);
    text = kvlog_box_ask(&box, &q, 1);
    assert_string_equal(text, "a=1@1 b=2@2 c=3@3");
    text = kvlog_box_ask(&box, &history, 1);
    assert_string_equal(text, "a=1@1 b=2@2 c=3@3");
    CHECK("a=1@1 b=22@4 c=33@5", .latest = true);
}

/* After ten minutes what was hidden goes, and answers that began before it was
 * say so. */
static void test_hidden_are_removed(void **state)
{
    struct kvlog_query q = {.latest = true};
    MDB_stat st;
    bool more;

    (void)state;
    put("a", "1");
    put("b", "2");
    kvlog_box_read(&box);
    assert_int_equal(
        kvlog_scan(&box.reader, &box.log, &q, refuse, NULL, &more, &box.error),
        0);
    kvlog_box_read_end(&box);
    kvlog_box_put(&box, "a", "3", KVLOG_REPLACE);
    box.boot_ms += KVLOG_KEEP_MS - 1;
    put("b", "4");
    kvlog_box_read(&box);
    assert_int_equal(mdb_stat(box.read_txn, box.log.log, &st), 0);
    assert_int_equal(st.ms_entries, 4);
    kvlog_box_read_end(&box);
    box.boot_ms += 1;
    put("b", "5");
    kvlog_box_read(&box);
    assert_int_equal(mdb_stat(box.read_txn, box.log.log, &st), 0);
    assert_int_equal(st.ms_entries, 4);
    assert_int_equal(mdb_stat(box.read_txn, box.log.hidden, &st), 0);
    assert_int_equal(st.ms_entries, 0);
    assert_int_equal(mdb_stat(box.read_txn, box.log.expiry, &st), 0);
    assert_int_equal(st.ms_entries, 0);
    kvlog_box_read_end(&box);
    assert_string_equal(kvlog_box_ask(&box, &q, 0), "EEXPIRED");
    CHECK("a=3@3 b=5@5", .latest = true);
}

static void test_requests(void **state)
{
    struct kvlog_put p = {.key = "a",
                          .key_len = 1,
                          .value = "1",
                          .value_len = 1,
                          .request = {7}},
                     two[2] = {p, p};

    (void)state;
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    assert_int_equal(p.revision, 1);
    assert_false(p.repeated);
    box.wall_ms += 5;
    box.token = 2; /* A new leader. */
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    assert_int_equal(p.revision, 1);
    assert_int_equal(p.timestamp_ms, 1000);
    assert_true(p.repeated);
    two[0].request[0] = two[1].request[0] = 8; /* Twice in one. */
    assert_int_equal(kvlog_box_append(&box, two, 2), 0);
    assert_int_equal(two[0].revision, 2);
    assert_int_equal(two[1].revision, 2);
    assert_true(two[1].repeated);
    CHECK("a=1@1 a=1@2", .key_len = 0);
    box.boot_ms += KVLOG_KEEP_MS + 1;
    put("b", "x"); /* They go with the next put. */
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    assert_int_equal(p.revision, 4);
}

static void again(struct kvlog_put *p)
{
    put("b", "x"); /* Whatever is to go goes. */
    assert_int_equal(kvlog_box_append(&box, p, 1), 0);
    assert_int_equal(p->revision, 1);
    assert_true(p->repeated);
}

static void drop_age(void)
{
    MDB_val key = {.mv_size = strlen(box.log.age_key),
                   .mv_data = box.log.age_key};
    MDB_txn *txn;

    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_del(txn, box.log.meta, &key, NULL), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
}

/* Neither a clock that is set nor another start of the machine makes an id
 * older than it is. */
static void test_requests_age_while_the_machine_runs(void **state)
{
    struct kvlog_put p = {
        .key = "a", .key_len = 1, .value = "1", .value_len = 1, .request = {7}};

    (void)state;
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    box.wall_ms += (uint64_t)24 * 3600 * 1000;
    again(&p);
    box.wall_ms = 1;
    again(&p);
    box.boot_ms += KVLOG_KEEP_MS - 1;
    again(&p);
    box.boot = 6; /* Which has run for longer than the one before. */
    box.boot_ms += KVLOG_KEEP_MS;
    again(&p);
    box.boot_ms -= KVLOG_KEEP_MS; /* It has waited for so long. */
    again(&p);
    box.boot_ms += KVLOG_KEEP_MS;
    again(&p);
    box.boot_ms += 1;
    put("b", "x");
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    assert_false(p.repeated);
}

/* A log written before there was an age: its rows have Unix times. */
static void test_age_begins_with_the_last_time(void **state)
{
    struct kvlog_put p = {
        .key = "a", .key_len = 1, .value = "1", .value_len = 1, .request = {7}};

    (void)state;
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    drop_age();
    box.wall_ms += (uint64_t)24 * 3600 * 1000;
    again(&p);
    box.boot_ms += KVLOG_KEEP_MS;
    put("b", "x");
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    assert_false(p.repeated);
}

static void test_damaged_age(void **state)
{
    MDB_val key = {.mv_size = strlen(box.log.age_key),
                   .mv_data = box.log.age_key},
            val = {.mv_size = 3, .mv_data = box.log.age_key};
    struct kvlog_put p = {
        .key = "a", .key_len = 1, .value = "1", .value_len = 1};
    MDB_txn *txn;

    (void)state;
    put("a", "1");
    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_put(txn, box.log.meta, &key, &val, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_ECORRUPT);
    assert_non_null(strstr(box.error.text, "age"));
}

static void test_fencing(void **state)
{
    struct kvlog_put p = {
        .key = "a", .key_len = 1, .value = "1", .value_len = 1};

    (void)state;
    box.token = 5;
    assert_int_equal(kvlog_box_append(&box, NULL, 0), 0);
    assert_int_equal(kvlog_box_state(&box).term, 5);
    assert_int_equal(kvlog_box_state(&box).revision, 0);
    box.token = 4;
    assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_EFENCED);
    assert_non_null(strstr(box.error.text, "token 4 is stale"));
    assert_int_equal(kvlog_box_append(&box, NULL, 0), HEDGE_EFENCED);
    box.token = 6;
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    assert_int_equal(kvlog_box_state(&box).term, 6);
    assert_int_equal(kvlog_box_state(&box).revision, 1);
}

static void test_reserved(void **state)
{
    (void)state;
    put("__hedge/a", "1");
    put("__hedge", "2");
    put("x", "3");
    CHECK("__hedge=2@2 x=3@3", .key_len = 0);
    CHECK("__hedge=2@2", KEY("__"), .prefix = true);
    CHECK("__hedge=2@2 x=3@3", .latest = true);
    CHECK("", KEY("__hedge/a"));
    CHECK("", KEY("__hedge/"), .prefix = true);
    CHECK("__hedge/a=1@1", KEY("__hedge/"), .prefix = true, .reserved = true);
    CHECK("__hedge/a=1@1", KEY("__hedge/a"), .reserved = true);
    kvlog_box_put(&box, "__hedge/a", "4", KVLOG_REPLACE);
    CHECK("__hedge/a=4@4", KEY("__hedge/"), .prefix = true, .reserved = true,
          .latest = true);
    put("__hedge/a", "5");
    kvlog_box_put(&box, "__hedge/a", "", KVLOG_DELETE);
    CHECK("", KEY("__hedge/"), .prefix = true, .reserved = true);
    assert_int_equal(kvlog_box_state(&box).revision, 6);
}

static void test_binary_keys(void **state)
{
    static const struct {
        const char *key;
        size_t len;
    } keys[] = {{"a", 1},       {"a\0", 2}, {"a\0\0", 3}, {"a\0\1", 3},
                {"a\0\xff", 3}, {"a\1", 2}, {"\xff", 1},  {"\xff\xff", 2}};
    char text[8];
    struct kvlog_query q = {.latest = true};
    const char *at;

    (void)state;
    for (unsigned i = 8; i-- > 0;) {
        struct kvlog_put p = {.key = keys[i].key,
                              .key_len = keys[i].len,
                              .value = text,
                              .value_len = 1};

        text[0] = (char)('0' + i);
        assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    }
    at = kvlog_box_ask(&box, &q, 1); /* In order of bytes. */
    for (unsigned i = 0; i < 8; i++) {
        at = strchr(at, '=');
        assert_non_null(at);
        assert_int_equal(at[1], '0' + (char)i);
        at++;
    }
    for (unsigned i = 0; i < 8; i++) {
        struct kvlog_query one = {.key = keys[i].key, .key_len = keys[i].len};

        at = strchr(kvlog_box_ask(&box, &one, 0), '=');
        assert_non_null(at);
        assert_int_equal(at[1], '0' + (char)i);
        assert_null(strchr(at + 1, '='));
    }
    CHECK("a=4@4 a=3@5 a=2@6 a=1@7", KEY("a\0"), .prefix = true,
          .at_revision = 7); /* "=": %.*s ends at the zero. */
}

static void test_sizes(void **state)
{
    static char key[KVLOG_KEY_MAX + 1];
    struct kvlog_put p = {.key = key, .key_len = sizeof key, .value = ""};
    char *large = calloc(1, KVLOG_VALUE_MAX + 1);
    struct kvlog_query q = {.key = key, .key_len = sizeof key};

    (void)state;
    memset(key, 'k', sizeof key);
    assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_EINVAL);
    assert_non_null(strstr(box.error.text, "501"));
    p.key_len = 0;
    assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_EINVAL);
    p.key_len = KVLOG_KEY_MAX;
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    memset(key, 0, KVLOG_KEY_MAX / 2 + 1);
    p.key_len = KVLOG_KEY_MAX / 2 + 1;
    assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_EINVAL);
    p.key_len--;
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    p.value = large;
    p.value_len = KVLOG_VALUE_MAX + 1;
    assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_ETOOBIG);
    p.value_len--;
    assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
    p.flags = 8;
    assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_EINVAL);
    assert_string_equal(kvlog_box_ask(&box, &q, 0), "EINVAL");
    q = (struct kvlog_query){.latest = true, .newest = true};
    assert_string_equal(kvlog_box_ask(&box, &q, 0), "EINVAL");
    assert_int_equal(kvlog_box_state(&box).revision, 3);
    free(large);
}

/* --- tokens -----------------------------------------------------------------
 */

static void test_resume_tokens(void **state)
{
    struct kvlog_query q = {.latest = true}, bad;
    bool more;

    (void)state;
    put_some();
    kvlog_box_read(&box);
    assert_int_equal(
        kvlog_scan(&box.reader, &box.log, &q, refuse, NULL, &more, &box.error),
        0);
    kvlog_box_read_end(&box);
    assert_true(q.resume_len >= 26);
    for (size_t len = 1; len < 26; len++) { /* Cut. */
        bad = q;
        bad.resume_len = len;
        assert_string_equal(kvlog_box_ask(&box, &bad, 0), "EINVAL");
    }
    bad = q;
    bad.resume_len = KVLOG_RESUME_MAX + 1;
    assert_string_equal(kvlog_box_ask(&box, &bad, 0), "EINVAL");
    bad = q; /* Of another query. */
    bad.latest = false;
    assert_string_equal(kvlog_box_ask(&box, &bad, 0), "EINVAL");
    bad = q; /* Of the future. */
    bad.resume[9] = 99;
    assert_string_equal(kvlog_box_ask(&box, &bad, 0), "EINVAL");
    bad = q;
    bad.resume[25] = 99;
    assert_string_equal(kvlog_box_ask(&box, &bad, 0), "EINVAL");
    bad = q;
    bad.resume[0] = 2;
    assert_string_equal(kvlog_box_ask(&box, &bad, 0), "EINVAL");
    assert_string_equal(kvlog_box_ask(&box, &q, 0), "a=5@5 ab=4@4 b=2@2");
    /* Compacted away behind its back. */
    kvlog_box_put(&box, "a", "6", 0);
    kvlog_box_compact(&box, 6, 0, 1, NULL);
    q.resume_len = 26;
    assert_string_equal(kvlog_box_ask(&box, &q, 0), "EEXPIRED");
}

/* --- damage -----------------------------------------------------------------
 */

/* Flip a bit of the n-th byte of a table's row; false: it has no such byte. */
static bool flip(MDB_dbi table, unsigned row, size_t at)
{
    unsigned char copy[4096];
    MDB_val key, val;
    MDB_cursor *c;
    MDB_txn *txn;
    bool ok;

    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_cursor_open(txn, table, &c), 0);
    assert_int_equal(mdb_cursor_get(c, &key, &val, MDB_FIRST), 0);
    for (unsigned i = 0; i < row; i++) {
        assert_int_equal(mdb_cursor_get(c, &key, &val, MDB_NEXT), 0);
    }
    ok = at < val.mv_size;
    if (ok) {
        memcpy(copy, val.mv_data, val.mv_size);
        copy[at] ^= 0x10;
        val.mv_data = copy;
        assert_int_equal(mdb_cursor_put(c, &key, &val, MDB_CURRENT), 0);
    }
    mdb_cursor_close(c);
    assert_int_equal(mdb_txn_commit(txn), 0);
    return ok;
}

static void test_damaged_rows(void **state)
{
    size_t at;

    (void)state;
    kvlog_tail_rows = 0;
    put("a", "one");
    put("b", "two");
    for (at = 0; flip(box.log.log, 0, at); at++) {
        assert_string_equal(ASK(.key_len = 0), "ECORRUPT");
        assert_non_null(strstr(box.error.text, "revision 1"));
        assert_string_equal(ASK(KEY("a")), "ECORRUPT");
        assert_string_equal(ASK(.latest = true), "ECORRUPT");
        assert_string_equal(ASK(KEY("b")), "b=two@2");
        assert_true(flip(box.log.log, 0, at)); /* And back. */
    }
    assert_true(at > ROW_HEAD);
    for (at = 0; flip(box.log.index, 0, at); at++) {
        assert_string_equal(ASK(KEY("a")), "ECORRUPT");
        assert_string_equal(ASK(.latest = true), "ECORRUPT");
        assert_string_equal(ASK(KEY(""), .prefix = true), "a=one@1 b=two@2");
        assert_true(flip(box.log.index, 0, at));
    }
    assert_int_equal(at, INDEX_VALUE);
    CHECK("a=one@1 b=two@2", .key_len = 0);
}

/* A long value has a sum of its own: who only passes by does not look at it,
 * but at the key. */
static void test_damaged_long_row(void **state)
{
    static char value[3000];
    size_t at;

    (void)state;
    memset(value, 'x', sizeof value - 1);
    put("a", value);
    put("b", "two");
    kvlog_find_cost = 1000; /* The log itself. */
    for (at = 0; flip(box.log.log, 0, at); at += at < 40 ? 1 : 97) {
        bool in_value = at > ROW_HEAD;

        assert_string_equal(ASK(.key_len = 0), "ECORRUPT");
        assert_string_equal(ASK(KEY("a")), "ECORRUPT");
        assert_string_equal(ASK(KEY("b"), .prefix = true),
                            in_value ? "b=two@2" : "ECORRUPT");
        assert_true(flip(box.log.log, 0, at));
    }
    kvlog_find_cost = 6;
    assert_true(at > sizeof value);
    assert_string_equal(ASK(KEY("b"), .prefix = true), "b=two@2");
}

static void test_damaged_leader(void **state)
{
    size_t at;

    (void)state;
    put("a", "one");
    for (at = 0; flip(box.log.leaders, 0, at); at++) {
        assert_string_equal(ASK(KEY("a")), "ECORRUPT");
        assert_non_null(strstr(box.error.text, "token 1"));
        assert_true(flip(box.log.leaders, 0, at));
    }
    assert_int_equal(at, LEADER_SUM + sizeof "here:1");
    assert_string_equal(ASK(KEY("a")), "a=one@1");
}

static void test_row_of_another_place(void **state)
{
    uint64_t one = 1, two = 2;
    MDB_val k1 = {8, &one}, k2 = {8, &two}, val;
    unsigned char copy[256];
    MDB_txn *txn;

    (void)state;
    put("a", "one");
    put("a", "two");
    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_get(txn, box.log.log, &k2, &val), 0);
    memcpy(copy, val.mv_data, val.mv_size);
    val.mv_data = copy;
    assert_int_equal(mdb_put(txn, box.log.log, &k1, &val, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    assert_string_equal(ASK(KEY("a")), "ECORRUPT");
    assert_string_equal(ASK(.key_len = 0), "ECORRUPT");
    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_del(txn, box.log.log, &k1, NULL), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    assert_string_equal(ASK(KEY("a")), "ECORRUPT"); /* The index knows. */
}

static void test_damaged_state(void **state)
{
    unsigned char zeros[STATE_VALUE] = {0};
    MDB_val key = {strlen(box.log.state_key), box.log.state_key};
    MDB_val val = {sizeof zeros, zeros};
    struct kvlog_put p = {
        .key = "a", .key_len = 1, .value = "1", .value_len = 1};
    MDB_txn *txn;

    (void)state;
    put("a", "one");
    assert_string_equal(ASK(KEY("a")), "a=one@1");
    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_put(txn, box.log.meta, &key, &val, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    assert_int_equal(mdb_txn_renew(box.read_txn), 0);
    for (unsigned i = 0; i < 2; i++) { /* It is not forgotten. */
        assert_int_equal(
            kvlog_reader_begin(&box.reader, box.read_txn, &box.log, &box.error),
            HEDGE_ECORRUPT);
    }
    mdb_txn_reset(box.read_txn);
    assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_ECORRUPT);
}

static void test_no_memory(void **state)
{
    struct kvlog_query q;
    const char *text;
    long n = 0;

    (void)state;
    put_some();
    do {
        q = (struct kvlog_query){KEY("a"), .prefix = true};
        mem_fail_after(n++);
        text = kvlog_box_ask(&box, &q, 0);
        mem_fail_after(-1);
    } while (strcmp(text, "ENOMEM") == 0);
    assert_true(n > 1);
    assert_string_equal(text, "a=1@1 a=3@3 ab=4@4 a=5@5");
}

/* --- the quick way ----------------------------------------------------------
 */

static void test_latest(void **state)
{
    uint64_t r;

    (void)state;
    assert_int_equal(kvlog_box_latest(&box, "a", &r), HEDGE_ENOTFOUND);
    put_some();
    assert_int_equal(kvlog_box_latest(&box, "a", &r), 0);
    assert_int_equal(r, 5);
    assert_int_equal(kvlog_box_latest(&box, "ab", &r), 0);
    assert_int_equal(r, 4);
    assert_int_equal(kvlog_box_latest(&box, "b", &r), 0);
    assert_int_equal(r, 2);
    assert_int_equal(kvlog_box_latest(&box, "aa", &r), HEDGE_ENOTFOUND);
    assert_int_equal(kvlog_box_latest(&box, "c", &r), HEDGE_ENOTFOUND);
    assert_int_equal(kvlog_box_latest(&box, "A", &r), HEDGE_ENOTFOUND);
    kvlog_box_put(&box, "b", "6", KVLOG_REPLACE);
    kvlog_box_put(&box, "b", "7", KVLOG_REPLACE);
    assert_int_equal(kvlog_box_latest(&box, "b", &r), 0);
    assert_int_equal(r, 7);
    assert_true(flip(box.log.log, 4, ROW_HEAD)); /* a5's key. */
    assert_int_equal(kvlog_box_latest(&box, "a", &r), HEDGE_ECORRUPT);
    assert_int_equal(r, 0);
}

/* A prefix that very many rows have is answered from the log itself. */
static void test_common_prefix(void **state)
{
    struct kvlog_put puts[500];
    char keys[500][16];
    struct kvlog_query q = {KEY("k"), .prefix = true, .limit = 3};
    struct kvlog_query back = {KEY("k"), .prefix = true, .newest = true,
                               .limit = 3};

    (void)state;
    for (unsigned i = 0; i < 70000 / 500; i++) {
        for (unsigned k = 0; k < 500; k++) {
            (void)snprintf(keys[k], sizeof keys[k], "k%05u", i * 500 + k);
            puts[k] = (struct kvlog_put){
                .key = keys[k], .key_len = 6, .value = "v", .value_len = 1};
        }
        assert_int_equal(kvlog_box_append(&box, puts, 500), 0);
    }
    put("z", "1");
    assert_string_equal(kvlog_box_ask(&box, &q, 2),
                        "k00000=v@1 k00001=v@2 k00002=v@3");
    assert_string_equal(kvlog_box_ask(&box, &back, 2),
                        "k69999=v@70000 k69998=v@69999 k69997=v@69998");
    CHECK("k69999=v@70000", KEY("k"), .prefix = true, .from_revision = 70000);
    CHECK("z=1@70001", KEY("z"), .prefix = true);
    CHECK("k69999=v@70000 z=1@70001", .from_revision = 70000);
}

/* More entries with the prefix than a page picks. */
static void test_pages_of_picks(void **state)
{
    struct kvlog_put puts[500];
    char keys[500][16];
    struct kvlog_query q = {KEY("k"), .prefix = true};
    struct kvlog_query back = {KEY("k"), .prefix = true, .newest = true};
    const char *text;
    unsigned n = 0;

    (void)state;
    for (unsigned i = 0; i < 60000 / 500; i++) {
        for (unsigned k = 0; k < 500; k++) {
            (void)snprintf(keys[k], sizeof keys[k], "%c%05u",
                           (i * 500 + k) % 12 == 0 ? 'k' : 'm',
                           (k * 7 + i) % 1000);
            puts[k] = (struct kvlog_put){
                .key = keys[k], .key_len = 6, .value = "v", .value_len = 1};
        }
        assert_int_equal(kvlog_box_append(&box, puts, 500), 0);
    }
    text = kvlog_box_ask(&box, &q, 0);
    for (const char *at = strchr(text, '@'); at != NULL;
         at = strchr(at + 1, '@')) {
        assert_int_equal(atoi(at + 1), 1 + 12 * (int)n++);
    }
    assert_int_equal(n, 5000);
    text = kvlog_box_ask(&box, &back, 0);
    for (const char *at = strchr(text, '@'); at != NULL;
         at = strchr(at + 1, '@')) {
        assert_int_equal(atoi(at + 1), 1 + 12 * (int)--n);
    }
    assert_int_equal(n, 0);
}

/* Collects the revisions of all pages there may be of an answer. */
struct revisions {
    uint64_t at[8];
    unsigned n;
};

static int add_revision(void *ctx, const struct kvlog_entry *e)
{
    struct revisions *r = ctx;

    assert_true(r->n < 8);
    r->at[r->n++] = e->revision;
    return 0;
}

static void ask_pages(struct kvlog_query q, unsigned pages,
                      struct revisions *out)
{
    bool more = true;

    memset(out, 0, sizeof *out);
    for (unsigned i = 0; i < pages; i++) {
        assert_true(more);
        kvlog_box_read(&box);
        assert_int_equal(kvlog_scan(&box.reader, &box.log, &q, add_revision,
                                    out, &more, &box.error),
                         0);
        kvlog_box_read_end(&box);
    }
    assert_false(more);
}

/* More hidden versions of one key than a page looks at: each page gets on. */
static void test_pages_of_hidden(void **state)
{
    enum { LAST = 131072 };
    struct kvlog_put puts[512];
    struct revisions r;

    (void)state;
    put("a", "1");
    put("a", "2");
    for (unsigned k = 0; k < 512; k++) {
        puts[k] = (struct kvlog_put){.key = "a",
                                     .key_len = 1,
                                     .value = "v",
                                     .value_len = 1,
                                     .flags = KVLOG_REPLACE};
    }
    for (unsigned i = 2; i < LAST; i += i == 2 ? 510 : 512) {
        assert_int_equal(kvlog_box_append(&box, puts, i == 2 ? 510 : 512), 0);
    }
    /* The second page ends with the last row, and the third finds none. */
    ask_pages((struct kvlog_query){KEY("a")}, 3, &r);
    assert_int_equal(r.n, 2);
    assert_int_equal(r.at[0], 1);
    assert_int_equal(r.at[1], LAST);
    ask_pages((struct kvlog_query){KEY("a"), .newest = true}, 3, &r);
    assert_int_equal(r.n, 2);
    assert_int_equal(r.at[0], LAST);
    assert_int_equal(r.at[1], 1);
    /* Nothing but hidden ones. */
    ask_pages((struct kvlog_query){KEY("a"), .from_revision = 2,
                                   .at_revision = LAST - 1},
              2, &r);
    assert_int_equal(r.n, 0);
    ask_pages((struct kvlog_query){KEY("a"), .newest = true, .limit = 1,
                                   .at_revision = LAST - 1},
              2, &r);
    assert_int_equal(r.n, 1);
    assert_int_equal(r.at[0], 1);
    ask_pages((struct kvlog_query){KEY("a"), .newest = true, .from_revision = 2,
                                   .at_revision = 65537},
              2, &r);
    assert_int_equal(r.n, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_versions),
        T(test_as_of),
        T(test_times),
        T(test_replace),
        T(test_replace_between_pages),
        T(test_hidden_are_removed),
        T(test_requests),
        T(test_requests_age_while_the_machine_runs),
        T(test_age_begins_with_the_last_time),
        T(test_damaged_age),
        T(test_fencing),
        T(test_reserved),
        T(test_binary_keys),
        T(test_sizes),
        T(test_resume_tokens),
        T(test_damaged_rows),
        T(test_damaged_long_row),
        T(test_damaged_leader),
        T(test_row_of_another_place),
        T(test_damaged_state),
        T(test_no_memory),
        T(test_latest),
        T(test_common_prefix),
        T(test_pages_of_picks),
        T(test_pages_of_hidden),
    };

    static const unsigned sizes[] = {KVLOG_TAIL_ROWS, 0, 3};
    int failed = 0;

    for (unsigned i = 0; i < 3; i++) {
        tail_rows = sizes[i];
        failed += cmocka_run_group_tests_name("kvlog", tests, NULL, NULL);
    }
    return failed;
}
