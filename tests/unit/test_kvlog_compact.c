/* What compaction removes, and what can still be asked for; with rows that the
 * index has, has not, and has in part. */
#include "store/kvlog/kvlog.h"
#include "store/kvlog/kvlog_internal.h"
#include "store/base/bytes.h"
#include "store/base/hash.h"

#include <string.h>

#include "tests/lib/kvlog_case.h"

static void test_compaction(void **state)
{
    int rv;

    (void)state;
    put("a", "1");
    put("b", "2");
    put("a", "3");
    put("ab", "4");
    put("a", "5");
    assert_int_equal(kvlog_box_compact(&box, 3, 0, 1, NULL), 1);
    CHECK("b=2@2 a=3@3 ab=4@4 a=5@5", .key_len = 0);
    CHECK("a=3@3 b=2@2", .latest = true, .at_revision = 3);
    assert_string_equal(ASK(.latest = true, .at_revision = 2), "EEXPIRED");
    assert_non_null(strstr(box.error.text, "the oldest revision is 3"));
    assert_string_equal(ASK(KEY("a"), .at_revision = 2), "EEXPIRED");
    assert_string_equal(ASK(.from_revision = 2), "EEXPIRED");
    CHECK("a=3@3 ab=4@4 a=5@5", .from_revision = 3);
    /* Not before the point: what can be seen as of it stays. */
    assert_int_equal(kvlog_box_compact(&box, 4, 0, 1, NULL), 0);
    CHECK("a=3@3 ab=4@4 b=2@2", .latest = true, .at_revision = 4);
    assert_int_equal(kvlog_box_compact(&box, 2, 0, 1, NULL), 0);
    assert_int_equal(kvlog_box_state(&box).floor, 4); /* Never goes back. */
    put("a", "6");
    put("a", "7");
    assert_int_equal(kvlog_box_compact(&box, 8, 0, 3, NULL), 1);
    CHECK("a=5@5 a=6@6 a=7@7", KEY("a"));
    assert_int_equal(kvlog_box_compact(&box, 8, 0, 1, NULL), 2);
    CHECK("b=2@2 ab=4@4 a=7@7", .key_len = 0);
    (void)kvlog_box_compact(&box, 9, 0, 1, &rv);
    assert_int_equal(rv, HEDGE_EINVAL);
    box.token = 0;
    (void)kvlog_box_compact(&box, 1, 0, 1, &rv);
    assert_int_equal(rv, HEDGE_EFENCED);
}

static void test_compaction_by_time(void **state)
{
    (void)state;
    for (unsigned i = 1; i <= 5; i++) {
        box.wall_ms = i * 1000;
        put("a", "x");
    }
    /* As of then still has an answer. */
    assert_int_equal(kvlog_box_compact(&box, 0, 3500, 1, NULL), 2);
    CHECK("a=x@3", .latest = true, .until_ms = 3500);
    assert_string_equal(ASK(.latest = true, .until_ms = 2500), "EEXPIRED");
    assert_string_equal(
        ASK(KEY("a"), .newest = true, .limit = 1, .until_ms = 2500),
        "EEXPIRED");
    CHECK("a=x@3 a=x@4 a=x@5", .since_ms = 1, .until_ms = 9999);
    assert_int_equal(kvlog_box_compact(&box, 0, UINT64_MAX, 1, NULL), 2);
    CHECK("a=x@5", .key_len = 0);
    assert_int_equal(kvlog_box_state(&box).floor, 5);
}

/* A version that was kept below the floor may be the last one of a page. */
static void test_pages_below_the_floor(void **state)
{
    struct kvlog_query q = {KEY("a"), .newest = true, .until_ms = 5500};

    (void)state;
    for (unsigned i = 1; i <= 5; i++) {
        box.wall_ms = i * 1000;
        put(i == 4 ? "b" : "a", "x");
    }
    assert_int_equal(kvlog_box_compact(&box, 4, 0, 3, NULL), 1);
    CHECK("a=x@5 a=x@3 a=x@2", KEY("a"), .newest = true, .until_ms = 5500);
    CHECK("a=x@3 a=x@2", KEY("a"), .newest = true, .until_ms = 4500);
    CHECK("a=x@3 a=x@2", KEY("a"), .newest = true, .until_ms = 5500,
          .at_revision = 4);
    assert_string_equal(ASK(KEY("a"), .newest = true, .until_ms = 3500),
                        "EEXPIRED");
    /* Compacted away behind its back. */
    q.limit = 1;
    assert_string_equal(kvlog_box_ask(&box, &q, 0), "a=x@5");
    q.limit = 1;
    assert_string_equal(kvlog_box_ask(&box, &q, 0), "a=x@3");
    box.wall_ms = 6000;
    put("a", "x");
    assert_int_equal(kvlog_box_compact(&box, 6, 0, 1, NULL), 3);
    q.limit = 1;
    assert_string_equal(kvlog_box_ask(&box, &q, 0), "EEXPIRED");
}

/* Steps are bounded, and what is there meanwhile stays right. */
static void test_compaction_in_steps(void **state)
{
    struct kvlog_compaction c = {.before_revision = 10001, .keep = 2};
    struct kvlog_writer w = {.token = 1, .leader = "here:1"};
    struct kvlog_put puts[100];
    unsigned steps = 0;
    uint64_t removed = 0;
    MDB_txn *txn;

    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        static char keys[4][2] = {"a", "b", "c", "d"};

        puts[i] = (struct kvlog_put){
            .key = keys[i % 4], .key_len = 1, .value = "v", .value_len = 1};
    }
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(kvlog_box_append(&box, puts, 100), 0);
    }
    while (!c.done) {
        assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
        assert_int_equal(kvlog_compact(txn, &box.log, &w, &c, &box.error), 0);
        assert_int_equal(mdb_txn_commit(txn), 0);
        assert_true(c.removed <= 512);
        removed += c.removed;
        steps++;
    }
    assert_true(steps >= 20);
    assert_int_equal(removed, 10000 - 8);
    CHECK("a=v@9993 b=v@9994 c=v@9995 d=v@9996 a=v@9997 b=v@9998 c=v@9999 "
          "d=v@10000",
          .key_len = 0);
}

/* a@1, of the second 1; k@2 to k@6, each in place of the one before, of the
 * seconds 2 to 6; the floor at 4; then k@7 of the second 20, and all but it and
 * a@1 is gone. */
static void lose_the_floor(void)
{
    box.wall_ms = 1000;
    put("a", "x");
    for (unsigned i = 2; i <= 6; i++) {
        box.wall_ms = i * 1000;
        kvlog_box_put(&box, "k", "x", KVLOG_REPLACE);
    }
    assert_int_equal(kvlog_box_compact(&box, 4, 0, 1, NULL), 0);
    box.wall_ms = 20000;
    box.boot_ms += KVLOG_KEEP_MS + 1;
    kvlog_box_put(&box, "k", "y", KVLOG_REPLACE);
    box.boot_ms += KVLOG_KEEP_MS + 1;
    put("b", "x");
    CHECK("a=x@1 k=y@7 b=x@8", .key_len = 0);
}

/* As of a time is no guess at a revision that is there. */
static void test_floor_that_has_gone(void **state)
{
    (void)state;
    lose_the_floor();
    assert_int_equal(kvlog_box_state(&box).floor, 4);
    for (uint64_t ms = 4001; ms <= 20000; ms += 15999) {
        CHECK("a=x@1", .latest = true, .until_ms = ms);
        CHECK("a=x@1", KEY("a"), .newest = true, .until_ms = ms);
        CHECK("k=y@7 b=x@8", .since_ms = ms);
    }
    CHECK("a=x@1 k=y@7", .latest = true, .until_ms = 20001, .at_revision = 7);
    assert_string_equal(ASK(.latest = true, .until_ms = 4000), "EEXPIRED");
    assert_int_equal(kvlog_box_compact(&box, 0, 15000, 1, NULL), 0);
    assert_int_equal(kvlog_box_state(&box).floor, 4);
}

/* What is asked for as of now is there, also when the last revisions are of
 * rows of our own that were removed at once. */
static void test_floor_behind_all_rows(void **state)
{
    (void)state;
    put("a", "x");
    for (unsigned i = 0; i < 3; i++) {
        kvlog_box_put(&box, "__hedge/s", "x", 0);
        kvlog_box_put(&box, "__hedge/s", "", KVLOG_DELETE);
    }
    assert_int_equal(kvlog_box_compact(&box, 7, 0, 1, NULL), 0);
    assert_int_equal(kvlog_box_state(&box).floor, 7);
    CHECK("a=x@1", .latest = true, .until_ms = box.wall_ms + 1);
    CHECK("a=x@1", KEY("a"), .newest = true, .until_ms = UINT64_MAX);
    assert_string_equal(ASK(.latest = true, .until_ms = box.wall_ms),
                        "EEXPIRED");
}

/* A state that does not say when its floor was: as careful as it was then. */
static void test_floor_without_a_time(void **state)
{
    unsigned char now[STATE_VALUE], old[STATE_VALUE_7];
    MDB_val key = {strlen(box.log.state_key), box.log.state_key};
    MDB_val val = {sizeof old, old};
    struct kvlog_state s;
    MDB_txn *txn;

    (void)state;
    lose_the_floor();
    s = kvlog_box_state(&box);
    assert_int_equal(s.floor_ms, 4000);
    kvlog_state_encode(&s, now);
    memcpy(old, now, 56);
    put_le64(old + 56, hash64(old, 56));
    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_put(txn, box.log.meta, &key, &val, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    assert_int_equal(kvlog_box_state(&box).floor, 4);
    assert_string_equal(ASK(.latest = true, .until_ms = 4001), "EEXPIRED");
    CHECK("a=x@1 k=y@7", .latest = true, .until_ms = 20001, .at_revision = 7);
    assert_int_equal(kvlog_box_compact(&box, 8, 0, 1, NULL), 0);
    CHECK("a=x@1 b=x@8 k=y@7", .latest = true, .until_ms = 20001);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_compaction),
        T(test_compaction_by_time),
        T(test_pages_below_the_floor),
        T(test_compaction_in_steps),
        T(test_floor_that_has_gone),
        T(test_floor_behind_all_rows),
        T(test_floor_without_a_time),
    };
    static const unsigned sizes[] = {KVLOG_TAIL_ROWS, 0, 3};
    int failed = 0;

    for (unsigned i = 0; i < 3; i++) {
        tail_rows = sizes[i];
        failed +=
            cmocka_run_group_tests_name("kvlog_compact", tests, NULL, NULL);
    }
    return failed;
}
