/* Versions that the index does not have yet: when it gets them, and that no
 * question is answered without them. test_kvlog.c asks the same questions with
 * tails of three sizes, test_kvlog_model.c at random. */
#include "store/kvlog/kvlog.h"
#include "store/kvlog/kvlog_internal.h"
#include "store/base/bytes.h"
#include "store/base/hash.h"
#include "store/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/kvlog_case.h"

static size_t rows_of(MDB_dbi table)
{
    MDB_stat st;
    MDB_txn *txn;

    assert_int_equal(mdb_txn_begin(box.env, NULL, MDB_RDONLY, &txn), 0);
    assert_int_equal(mdb_stat(txn, table, &st), 0);
    mdb_txn_abort(txn);
    return st.ms_entries;
}

static void put_many(unsigned from, unsigned n, unsigned each)
{
    static struct kvlog_put puts[4096];
    static char keys[4096][16];

    for (unsigned at = 0; at < n; at += each) {
        for (unsigned i = 0; i < each; i++) {
            (void)snprintf(keys[i], sizeof keys[i], "k%05u",
                           (from + at + i) * 7919 % 100000);
            puts[i] = (struct kvlog_put){
                .key = keys[i], .key_len = 6, .value = "v", .value_len = 1};
        }
        assert_int_equal(kvlog_box_append(&box, puts, each), 0);
    }
}

/* --- when -------------------------------------------------------------------
 */

static void test_appends_stay_out_of_the_index(void **state)
{
    (void)state;
    put_many(0, KVLOG_TAIL_ROWS, 32);
    assert_int_equal(rows_of(box.log.index), 0);
    assert_int_equal(kvlog_box_state(&box).indexed, 0);
    put_many(KVLOG_TAIL_ROWS, 1, 1);
    assert_int_equal(rows_of(box.log.index), KVLOG_TAIL_ROWS + 1);
    assert_int_equal(kvlog_box_state(&box).indexed, KVLOG_TAIL_ROWS + 1);
    assert_int_equal(kvlog_box_state(&box).tail_bytes, 0);
    put_many(KVLOG_TAIL_ROWS + 1, 1, 1);
    assert_int_equal(rows_of(box.log.index), KVLOG_TAIL_ROWS + 1);
}

/* What one transaction brings is bounded as well. */
static void test_many_at_once_go_into_the_index(void **state)
{
    (void)state;
    put_many(0, 4096, 4096);
    assert_int_equal(rows_of(box.log.index), 4096);
}

static void test_long_keys_go_into_the_index(void **state)
{
    char key[KVLOG_KEY_MAX];
    struct kvlog_put p = {.key = key, .key_len = sizeof key};
    unsigned n = 0;

    (void)state;
    memset(key, 'x', sizeof key);
    do {
        assert_int_equal(kvlog_box_append(&box, &p, 1), 0);
        assert_true(kvlog_box_state(&box).tail_bytes <= KVLOG_TAIL_BYTES);
        assert_true(++n < KVLOG_TAIL_ROWS);
    } while (rows_of(box.log.index) == 0);
    assert_true(n > KVLOG_TAIL_BYTES / KVLOG_ROW_KEY_MAX / 2);
    assert_int_equal(rows_of(box.log.index), n);
}

static void test_replacing_and_removing(void **state)
{
    (void)state;
    kvlog_box_put(&box, "a", "1", 0);
    kvlog_box_put(&box, "a", "2", 0);
    kvlog_box_put(&box, "a", "3", KVLOG_REPLACE);
    assert_int_equal(rows_of(box.log.index), 3);
    assert_string_equal(ASK(KEY("a")), "a=1@1 a=3@3");
    kvlog_box_put(&box, "__hedge/x", "4", 0);
    assert_int_equal(rows_of(box.log.index), 3);
    kvlog_box_put(&box, "__hedge/x", "", KVLOG_DELETE);
    assert_int_equal(rows_of(box.log.index), 3);
    assert_string_equal(ASK(.reserved = true), "a=1@1 a=3@3");
    /* A revision without a row is none that is missing. */
    kvlog_box_put(&box, "a", "6", 0);
    assert_string_equal(ASK(KEY("a")), "a=1@1 a=3@3 a=6@6");
}

/* A put that was made before changes nothing, the index included; a put beside
 * it in the same transaction does. */
static void test_repeated_puts(void **state)
{
    struct kvlog_put puts[2] = {
        {.key = "a",
         .key_len = 1,
         .value = "1",
         .value_len = 1,
         .request = "r"},
        {.key = "b", .key_len = 1, .value = "2", .value_len = 1}};

    (void)state;
    kvlog_box_put(&box, "a", "0", 0);
    puts[0].flags = KVLOG_REPLACE;
    assert_int_equal(kvlog_box_append(&box, puts, 1), 0);
    kvlog_box_put(&box, "a", "3", 0);
    box.at_once = 1;
    assert_int_equal(kvlog_box_append(&box, puts, 2), 0);
    assert_true(puts[0].repeated);
    assert_int_equal(puts[1].revision, 4);
    assert_int_equal(kvlog_box_state(&box).indexed, 2);
    assert_int_equal(rows_of(box.log.index), 2);
    assert_string_equal(ASK(KEY("a")), "a=1@2 a=3@3");
    assert_string_equal(ASK(KEY(""), .prefix = true), "a=1@2 a=3@3 b=2@4");
}

static void test_compaction_sees_it(void **state)
{
    (void)state;
    kvlog_box_put(&box, "a", "1", 0);
    kvlog_box_put(&box, "b", "2", 0);
    kvlog_box_put(&box, "a", "3", 0);
    assert_int_equal(kvlog_box_compact(&box, 4, 0, 1, NULL), 1);
    assert_string_equal(ASK(.key_len = 0), "b=2@2 a=3@3");
    assert_string_equal(ASK(.latest = true), "a=3@3 b=2@2");
}

/* A log as it was written before there were tails. */
static void test_state_from_before(void **state)
{
    unsigned char now[STATE_VALUE], old[STATE_VALUE_5];
    MDB_val key = {strlen(box.log.state_key), box.log.state_key};
    MDB_val val = {sizeof old, old};
    struct kvlog_state s;
    MDB_txn *txn;

    (void)state;
    kvlog_tail_rows = 0;
    kvlog_box_put(&box, "a", "1", 0);
    kvlog_box_put(&box, "a", "2", 0);
    s = kvlog_box_state(&box);
    kvlog_state_encode(&s, now);
    memcpy(old, now, 40);
    put_le64(old + 40, hash64(old, 40));
    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_put(txn, box.log.meta, &key, &val, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    kvlog_tail_rows = KVLOG_TAIL_ROWS;
    assert_int_equal(kvlog_box_state(&box).indexed, 2);
    kvlog_box_put(&box, "a", "3", 0);
    assert_int_equal(rows_of(box.log.index), 2);
    assert_string_equal(ASK(KEY("a")), "a=1@1 a=2@2 a=3@3");
}

/* --- asking -----------------------------------------------------------------
 */

/* One reader that has seen each state of the log, and one that is new, agree
 * with each other and with what was put. */
static void test_readers_keep_up(void **state)
{
    char key[16];
    uint64_t r;

    (void)state;
    for (unsigned i = 0; i < 3 * KVLOG_TAIL_ROWS; i += 97) {
        put_many(i, 97, 97);
        for (unsigned k = 0; k < 5; k++) {
            unsigned at = (i + 96) / 5 * (k + 1);

            (void)snprintf(key, sizeof key, "k%05u", at * 7919 % 100000);
            assert_int_equal(kvlog_box_latest(&box, key, &r), 0);
            assert_int_equal(r, at + 1);
        }
        assert_int_equal(kvlog_box_latest(&box, "k", &r), HEDGE_ENOTFOUND);
        assert_int_equal(kvlog_box_latest(&box, "l", &r), HEDGE_ENOTFOUND);
    }
    kvlog_reader_release(&box.reader);
    assert_int_equal(kvlog_box_latest(&box, "k00000", &r), 0);
    assert_int_equal(r, 1);
}

static int keep_revision(void *ctx, const struct kvlog_entry *e)
{
    *(uint64_t *)ctx = e->revision;
    return KVLOG_END;
}

/* A transaction that began before the index got them goes on without. */
static void test_snapshots_stay(void **state)
{
    struct kvlog_query q = {KEY("a")};
    uint64_t last = 0;
    bool more;

    (void)state;
    kvlog_box_put(&box, "a", "1", 0);
    kvlog_box_put(&box, "a", "2", 0);
    kvlog_box_read(&box);
    kvlog_box_put(&box, "a", "3", KVLOG_REPLACE);
    kvlog_box_put(&box, "a", "4", 0);
    assert_int_equal(kvlog_latest(&box.reader, &box.log, "a", 1, keep_revision,
                                  &last, &box.error),
                     0);
    assert_int_equal(last, 2);
    assert_int_equal(kvlog_scan(&box.reader, &box.log, &q, keep_revision, &last,
                                &more, &box.error),
                     0);
    assert_int_equal(last, 1);
    kvlog_box_read_end(&box);
    assert_int_equal(kvlog_box_latest(&box, "a", &last), 0);
    assert_int_equal(last, 4);
    assert_string_equal(ASK(KEY("a")), "a=1@1 a=3@3 a=4@4");
}

/* --- faults -----------------------------------------------------------------
 */

static void change_row(uint64_t revision, bool remove)
{
    MDB_val key = {sizeof revision, &revision}, val;
    unsigned char copy[256];
    MDB_txn *txn;

    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_get(txn, box.log.log, &key, &val), 0);
    memcpy(copy, val.mv_data, val.mv_size);
    copy[ROW_HEAD] ^= 1; /* Another key. */
    val.mv_data = copy;
    assert_int_equal(remove ? mdb_del(txn, box.log.log, &key, NULL)
                            : mdb_put(txn, box.log.log, &key, &val, 0),
                     0);
    assert_int_equal(mdb_txn_commit(txn), 0);
}

/* Whose it was is not known any more: no key is answered for, and nothing is
 * written that would forget it. */
static void check_corrupt(const char *revision)
{
    struct kvlog_put p = {.key = "b", .key_len = 1, .flags = KVLOG_REPLACE};
    uint64_t r;

    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(kvlog_box_latest(&box, "b", &r), HEDGE_ECORRUPT);
        assert_non_null(strstr(box.error.text, revision));
        assert_string_equal(ASK(KEY("a")), "ECORRUPT");
        assert_string_equal(ASK(KEY("b"), .prefix = true), "ECORRUPT");
        assert_string_equal(ASK(.latest = true), "ECORRUPT");
        assert_int_equal(kvlog_box_append(&box, &p, 1), HEDGE_ECORRUPT);
    }
}

static void test_damaged(void **state)
{
    (void)state;
    kvlog_box_put(&box, "a", "1", 0);
    kvlog_box_put(&box, "a", "2", 0);
    kvlog_box_put(&box, "b", "3", 0);
    change_row(2, false);
    check_corrupt("revision 2");
    change_row(2, false); /* And back. */
    assert_string_equal(ASK(KEY("a")), "a=1@1 a=2@2");
    change_row(2, true);
    kvlog_reader_release(&box.reader); /* It has read them already. */
    check_corrupt("revision 2");
}

/* A row of the index that has become another key's stands beside its place, and
 * what the tail has in between does not hide it. */
static void test_damaged_neighbour(void **state)
{
    unsigned char copy[64];
    MDB_val key, val;
    MDB_cursor *c;
    MDB_txn *txn;

    (void)state;
    kvlog_tail_rows = 0;
    kvlog_box_put(&box, "k5", "1", 0);
    kvlog_tail_rows = KVLOG_TAIL_ROWS;
    kvlog_box_put(&box, "k6", "2", 0);
    assert_int_equal(mdb_txn_begin(box.env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_cursor_open(txn, box.log.index, &c), 0);
    assert_int_equal(mdb_cursor_get(c, &key, &val, MDB_FIRST), 0);
    memcpy(copy, key.mv_data, key.mv_size);
    memcpy(copy + 32, val.mv_data, val.mv_size);
    copy[1] = '7';
    assert_int_equal(mdb_cursor_del(c, 0), 0);
    mdb_cursor_close(c);
    key.mv_data = copy;
    val.mv_data = copy + 32;
    assert_int_equal(mdb_put(txn, box.log.index, &key, &val, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    assert_string_equal(ASK(KEY("k5")), "ECORRUPT");
    assert_string_equal(ASK(KEY("k6")), "ECORRUPT");
}

static void test_last_one_missing(void **state)
{
    (void)state;
    kvlog_box_put(&box, "a", "1", 0);
    kvlog_box_put(&box, "b", "2", 0);
    change_row(2, true);
    check_corrupt("revision 2");
    change_row(1, true);
    check_corrupt("revision 1");
}

static void test_no_memory(void **state)
{
    uint64_t r;
    long n = 0;
    int rv;

    (void)state;
    put_many(0, 200, 10);
    do {
        mem_fail_after(n++);
        rv = kvlog_box_latest(&box, "k00000", &r);
        mem_fail_after(-1);
    } while (rv == HEDGE_ENOMEM);
    assert_true(n > 2);
    assert_int_equal(rv, 0);
    assert_int_equal(r, 1);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_appends_stay_out_of_the_index),
        T(test_many_at_once_go_into_the_index),
        T(test_long_keys_go_into_the_index),
        T(test_replacing_and_removing),
        T(test_repeated_puts),
        T(test_compaction_sees_it),
        T(test_state_from_before),
        T(test_readers_keep_up),
        T(test_snapshots_stay),
        T(test_damaged),
        T(test_damaged_neighbour),
        T(test_last_one_missing),
        T(test_no_memory),
    };

    return cmocka_run_group_tests_name("kvlog_tail", tests, NULL, NULL);
}
