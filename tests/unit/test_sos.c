/* The spill-over store of one node: how blocks go from memory to disk to other
 * nodes, and how they come back. */
#include "store/base/clock.h"
#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct record_shape small = {.seed = 1, .min = 20, .max = 5000};

static void stays_in_memory(void **state)
{
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    box_open(&b, &(struct box_options){0});
    s = box_store(&b, "x", NULL);
    r = box_write(s, &small, 200);
    assert_int_equal(r.status, 0);
    assert_int_equal(r.closed, 0);
    assert_int_equal(r.manifest.records, 200);
    box_expect(s, &small, &r.manifest);
    box_expect(s, &small, &r.manifest);
    assert_true(box_used(s, "memory") > r.manifest.bytes);
    assert_int_equal(box_used(s, "disk"), 0);
    sos_remove(s);
    sos_store_unref(s);
    box_expect_empty(&b);
    box_close(&b);
}

static void spills_to_disk(void **state)
{
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 64 << 20});
    s = box_store(&b, "x", NULL);
    r = box_write(s, &small, 2000);
    assert_int_equal(r.closed, 0);
    assert_int_equal(r.manifest.records, 2000);
    assert_true(box_used(s, "memory") > 0);
    assert_true(box_used(s, "disk") > box_used(s, "memory"));
    box_expect(s, &small, &r.manifest);
    sos_remove(s);
    sos_store_unref(s);
    box_expect_empty(&b);
    box_close(&b);
}

static void spills_to_other_nodes(void **state)
{
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 2});
    s = box_store(&b, "x", NULL);
    r = box_write(s, &small, 4000);
    assert_int_equal(r.closed, 0);
    assert_true(box_used(s, "memory") > 0);
    assert_true(box_used(s, "disk") > 0);
    assert_true(box_used(s, NULL) > 0);
    box_expect(s, &small, &r.manifest);
    sos_remove(s);
    sos_store_unref(s);
    box_expect_empty(&b);
    box_close(&b);
}

/* --- full --- */

/* Everything before the record that did not fit is there, and the text says
 * which limits were reached. */
static void full_everywhere(void **state)
{
    static const struct box_options boxes[] = {
        {.disk = 0},
        {.disk = 1 << 20},
        {.disk = 1 << 20, .nodes = 2, .node_limit = 1 << 20},
        {.nodes = 1, .node_limit = 1 << 20},
    };
    const struct record_shape shape = {.seed = 4, .min = 20, .max = 200000};

    (void)state;
    for (unsigned i = 0; i < sizeof boxes / sizeof boxes[0]; i++) {
        struct box b;
        struct sos_store *s;
        struct box_result r;

        box_open(&b, &boxes[i]);
        s = box_store(&b, "full", NULL);
        r = box_write(s, &shape, 100000);
        assert_int_equal(r.status, HEDGE_EFULL);
        assert_int_equal(r.closed, HEDGE_EFULL);
        assert_true(r.manifest.records >= r.accepted - 1);
        assert_true(r.manifest.records <= r.accepted + 1);
        assert_true(r.manifest.bytes > 6 * BOX_BLOCK);
        assert_non_null(strstr(r.error.text, "\"full\""));
        assert_non_null(strstr(r.error.text, " in use; "));
        box_expect(s, &shape, &r.manifest);
        box_expect(s, &shape, &r.manifest);
        sos_remove(s);
        sos_store_unref(s);
        box_expect_empty(&b);
        /* What was taken is free again. */
        s = box_store(&b, "full", NULL);
        r = box_write(s, &small, 100);
        assert_int_equal(r.closed, 0);
        box_expect(s, &small, &r.manifest);
        sos_store_unref(s);
        box_close(&b);
    }
}

/* What found no place but the one where it was is stored: only who goes on
 * writing is told that all is full. */
static void a_last_block_without_a_place_is_stored(void **state)
{
    struct sos_store_options o = box_defaults();
    struct box_result r;
    struct sos_store *s;
    struct box b;

    (void)state;
    o.mem_limit = 1;
    box_open(&b, &(struct box_options){0});
    s = box_store(&b, "tiny", &o);
    r = box_write(s, &small, 3);
    assert_int_equal(r.closed, 0);
    assert_int_equal(r.manifest.records, 3);
    box_expect(s, &small, &r.manifest);
    sos_remove(s);
    sos_store_unref(s);
    s = box_store(&b, "more", &o);
    r = box_write(s, &small, 1000);
    assert_int_equal(r.closed, HEDGE_EFULL);
    box_expect(s, &small, &r.manifest);
    sos_remove(s);
    sos_store_unref(s);
    o.replicas = 2; /* One copy of two is not what was asked for. */
    s = box_store(&b, "twice", &o);
    r = box_write(s, &small, 3);
    assert_int_equal(r.closed, HEDGE_EFULL);
    assert_non_null(strstr(r.error.text, "the group has 1 node"));
    sos_store_unref(s);
    box_close(&b);
}

/* A store that goes makes room for one that is being written: no EFULL. */
static void removed_stores_make_room_at_once(void **state)
{
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 1 << 20});
    for (unsigned i = 0; i < 40; i++) {
        s = box_store(&b, "again", NULL);
        r = box_write(s, &small, 1300);
        assert_int_equal(r.closed, 0);
        box_expect(s, &small, &r.manifest);
        sos_remove(s);
        sos_store_unref(s);
    }
    box_close(&b);
}

static void records_larger_than_memory(void **state)
{
    const struct record_shape huge = {
        .seed = 9, .min = 40 * BOX_BLOCK, .max = 40 * BOX_BLOCK + 7};
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 64 << 20});
    s = box_store(&b, "x", NULL);
    r = box_write(s, &huge, 5);
    assert_int_equal(r.closed, 0);
    box_expect(s, &huge, &r.manifest);
    sos_store_unref(s);
    box_close(&b);
    /* One that fits nowhere: all or nothing. */
    box_open(&b, &(struct box_options){.disk = 1 << 20});
    s = box_store(&b, "x", NULL);
    r = box_write(s, &huge, 5);
    assert_int_equal(r.status, HEDGE_EFULL);
    assert_int_equal(r.accepted, 0);
    assert_int_equal(r.manifest.records, 0);
    assert_int_equal(r.manifest.bytes, 0);
    box_expect(s, &huge, &r.manifest);
    sos_store_unref(s);
    box_close(&b);
}

/* --- limits of a store --- */

static void store_limits(void **state)
{
    struct sos_store_options o = box_defaults();
    struct box b;
    struct sos_store *s;
    struct box_result r;

    (void)state;
    o.mem_limit = 3 * BOX_BLOCK;
    o.disk_limit = 5 * BOX_BLOCK + 100;
    box_open(&b, &(struct box_options){.disk = 64 << 20});
    s = box_store(&b, "x", &o);
    r = box_write(s, &small, 100000);
    assert_int_equal(r.closed, HEDGE_EFULL);
    assert_non_null(strstr(r.error.text, "memory 192.0 KiB, disk 320.1 KiB"));
    assert_true(box_used(s, "disk") <= 5 * BOX_BLOCK);
    assert_true(box_used(s, "disk") > 4 * BOX_BLOCK);
    assert_true(box_used(s, "memory") > 2 * BOX_BLOCK);
    /* Two more may be the home of what nobody took. */
    assert_true(box_used(s, "memory") <= 5 * BOX_BLOCK);
    box_expect(s, &small, &r.manifest);
    sos_store_unref(s);
    box_close(&b);
}

static void impossible_options(void **state)
{
    struct sos_store_options o = box_defaults(), other = o;
    struct hedge_error e;
    struct sos_store *s, *again;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){0});
    o.replicas = 5;
    assert_int_equal(sos_create(b.sos, "x", 1, &o, &s, &e), HEDGE_EINVAL);
    o = other;
    o.ttl_ms = 1;
    assert_int_equal(sos_create(b.sos, "x", 1, &o, &s, &e), HEDGE_EINVAL);
    o = other;
    assert_int_equal(sos_create(b.sos, "a/b", 1, &o, &s, &e), HEDGE_EINVAL);
    s = box_store(&b, "x", &o);
    assert_int_equal(sos_create(b.sos, "x", 1, &o, &again, &e), HEDGE_EEXISTS);
    assert_null(again);
    assert_int_equal(sos_store_matches(s, &o, &e), 0);
    other.mem_limit = 77;
    assert_int_equal(sos_store_matches(s, &other, &e), HEDGE_EINVAL);
    assert_non_null(strstr(e.text, "memory limit: 0, not 77"));
    sos_store_unref(s);
    box_close(&b);
}

/* --- several at once --- */

struct job {
    struct sos_store *store;
    const struct record_shape *shape;
    uint64_t n;
    pthread_t thread;
    struct box_result result;
    struct reader *reader;
    int end;
    uint64_t records;
};

static void *write_job(void *arg)
{
    struct job *j = arg;

    j->result = box_write(j->store, j->shape, j->n);
    return NULL;
}

static void *read_job(void *arg)
{
    struct job *j = arg;
    struct record_check c;

    record_check_init(&c, j->shape);
    j->end = record_check_all(&c, j->reader, 60000);
    j->records = c.records;
    box_reader_free(j->reader);
    return NULL;
}

static void start(struct job *j, void *(*fn)(void *))
{
    assert_int_equal(pthread_create(&j->thread, NULL, fn, j), 0);
}

/* In the smallest arena, with a reader that reads one record and never again:
 * no hang, no EFULL while there is disk. */
static void crowd_in_the_smallest_arena(void **state)
{
    struct job w[2], r[2];
    const struct sos_read_options follow = {.follow = true};
    struct reader *abandoned;
    struct piece piece;
    struct sos_store *s;
    uint64_t sum = 0;
    struct box b;

    (void)state;
    alarm(120);
    box_open(&b, &(struct box_options){.disk = 256 << 20});
    s = box_store(&b, "x", NULL);
    abandoned = box_reader(s, &follow);
    for (unsigned i = 0; i < 2; i++) {
        r[i] = (struct job){.shape = &small, .reader = box_reader(s, &follow)};
        start(&r[i], read_job);
    }
    for (unsigned i = 0; i < 2; i++) {
        w[i] = (struct job){.store = s, .shape = &small, .n = 3000};
        start(&w[i], write_job);
    }
    assert_int_equal(reader_next(abandoned, 60000, &piece), 0);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(w[i].thread, NULL);
        assert_int_equal(w[i].result.closed, 0);
        sum += w[i].result.manifest.records;
    }
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(r[i].thread, NULL);
        assert_int_equal(r[i].end, HEDGE_EEND);
        assert_true(r[i].records <= sum && r[i].records > 0);
    }
    box_reader_free(abandoned);
    sos_store_unref(s);
    box_close(&b);
    alarm(0);
}

/* What an abandoned reader has fetched ahead is given back rather than telling
 * a writer that there is no room. */
static void fetched_ahead_is_no_reason_for_full(void **state)
{
    struct sos_store_options o = box_defaults();
    struct sos_store *on_disk, *s;
    struct reader *abandoned;
    struct box_result r;
    struct piece piece;
    struct sos_usage u;
    struct box b;

    (void)state;
    o.mem_limit = 1; /* Nothing stays in memory. */
    box_open(&b, &(struct box_options){.disk = 20 * BOX_BLOCK});
    on_disk = box_store(&b, "disk", &o);
    r = box_write(on_disk, &small, 600);
    assert_int_equal(r.closed, 0);
    abandoned = box_reader(on_disk, NULL);
    assert_int_equal(reader_next(abandoned, 1000, &piece), 0);
    sos_usage(b.sos, &u);
    assert_true(u.arena.by_class[ARENA_AHEAD] >= 6 * BOX_BLOCK);
    o = box_defaults();
    o.disk_limit = 1;
    s = box_store(&b, "memory", &o);
    r = box_write(s, &small, 300); /* More than two blocks. */
    assert_int_equal(r.closed, 0);
    box_expect(s, &small, &r.manifest);
    box_reader_free(abandoned);
    sos_store_unref(s);
    sos_store_unref(on_disk);
    box_close(&b);
}

static void follows_a_slow_writer(void **state)
{
    const struct sos_read_options follow = {.follow = true};
    struct sos_store *s;
    struct job r;
    struct writer w;
    struct sink *sink;
    struct manifest m;
    unsigned char buf[6000];
    struct hedge_error e;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 64 << 20});
    s = box_store(&b, "x", NULL);
    r = (struct job){.shape = &small, .reader = box_reader(s, &follow)};
    start(&r, read_job); /* Before there is any writer. */
    assert_int_equal(sos_sink_open(s, &sink, &e), 0);
    writer_init(&w, sink);
    for (uint64_t i = 0; i < 300; i++) {
        assert_int_equal(record_write(&small, &w, 0, i, buf), 0);
        if (i % 10 == 0) {
            assert_int_equal(writer_flush(&w), 0);
            clock_sleep_ms(2);
        }
    }
    assert_int_equal(writer_finish(&w, &m), 0);
    assert_int_equal(sos_sink_close(sink, &m, &m, &e), 0);
    pthread_join(r.thread, NULL);
    assert_int_equal(r.end, HEDGE_EEND);
    assert_int_equal(r.records, 300);
    sos_store_unref(s);
    box_close(&b);
}

/* A reader that does not follow an open store gets a whole prefix. */
static void open_stores_give_a_prefix(void **state)
{
    const struct record_shape spans = {.seed = 2, .min = 100000, .max = 300000};
    struct sos_store *s;
    struct writer w;
    struct sink *sink;
    struct manifest m;
    struct record_check c;
    struct reader *r;
    unsigned char *buf = malloc(spans.max);
    struct hedge_error e;
    struct piece piece;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 64 << 20});
    s = box_store(&b, "x", NULL);
    assert_int_equal(sos_sink_open(s, &sink, &e), 0);
    writer_init(&w, sink);
    for (uint64_t i = 0; i < 10; i++) {
        assert_int_equal(record_write(&spans, &w, 0, i, buf), 0);
        r = box_reader(s, NULL);
        record_check_init(&c, &spans);
        assert_int_equal(record_check_all(&c, r, 1000), HEDGE_EEND);
        assert_true(c.records == i || c.records == i + 1);
        box_reader_free(r);
    }
    /* One that is half way when more is written sees no hole. */
    r = box_reader(s, NULL);
    record_check_init(&c, &spans);
    for (unsigned i = 0; i < 12; i++) {
        assert_int_equal(reader_next(r, 1000, &piece), 0);
        record_check_piece(&c, &piece);
    }
    for (uint64_t i = 10; i < 20; i++) {
        assert_int_equal(record_write(&spans, &w, 0, i, buf), 0);
    }
    assert_int_equal(record_check_all(&c, r, 1000), HEDGE_EEND);
    box_reader_free(r);
    assert_int_equal(writer_finish(&w, &m), 0);
    assert_int_equal(sos_sink_close(sink, &m, &m, &e), 0);
    box_expect(s, &spans, &m);
    free(buf);
    sos_store_unref(s);
    box_close(&b);
}

/* Open writers, each with a small record and one that is not yet whole. */
static void write_half(struct sos_store *s, struct writer *w,
                       struct sink **sink)
{
    const struct record_shape half = {
        .seed = 8, .min = 2 * BOX_BLOCK, .max = 2 * BOX_BLOCK};
    unsigned char *buf = malloc(half.max);
    struct hedge_error e;

    assert_int_equal(sos_sink_open(s, sink, &e), 0);
    writer_init(w, *sink);
    assert_int_equal(writer_write(w, "small", 5), 0);
    assert_int_equal(record_write(&half, w, 0, 0, buf), 0);
    free(buf);
}

static void expect_small(struct reader *r, int rv)
{
    struct piece p;

    assert_int_equal(reader_next(r, 3000, &p), rv);
    if (rv == 0) {
        assert_int_equal(p.len, 5);
        assert_memory_equal(p.data, "small", 5);
    }
}

/* The end a reader has come to stays where it is: what is written afterwards
 * would leave a hole. */
static void two_unfinished_records(void **state)
{
    struct hedge_error e;
    struct sos_store *s;
    struct manifest m;
    struct reader *r;
    struct writer w[2];
    struct sink *sink[2];
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 64 << 20});
    s = box_store(&b, "x", NULL);
    write_half(s, &w[0], &sink[0]);
    write_half(s, &w[1], &sink[1]);
    r = box_reader(s, NULL);
    expect_small(r, 0); /* Of the first; its long record is left out. */
    assert_int_equal(writer_flush(&w[0]), 0);
    assert_int_equal(writer_write(&w[0], "after", 5), 0);
    assert_int_equal(writer_flush(&w[0]), 0);
    expect_small(r, 0); /* Of the second. */
    expect_small(r, HEDGE_EEND);
    box_reader_free(r);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(writer_finish(&w[i], &m), 0);
        assert_int_equal(sos_sink_close(sink[i], &m, &m, &e), 0);
    }
    sos_store_unref(s);
    box_close(&b);
}

/* A record whose writer has vanished is not waited for, though others write. */
static void followers_pass_over_what_has_no_end(void **state)
{
    const struct sos_read_options follow = {.follow = true};
    struct hedge_error e;
    struct sos_store *s;
    struct manifest m;
    struct reader *r;
    struct writer w[2];
    struct sink *sink[2];
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 64 << 20});
    s = box_store(&b, "x", NULL);
    write_half(s, &w[0], &sink[0]);
    assert_int_equal(sos_sink_open(s, &sink[1], &e), 0);
    writer_init(&w[1], sink[1]);
    writer_drop(&w[0]);
    sos_sink_abort(sink[0]);
    assert_int_equal(writer_write(&w[1], "small", 5), 0);
    assert_int_equal(writer_flush(&w[1]), 0);
    r = box_reader(s, &follow);
    expect_small(r, 0);
    expect_small(r, 0);
    assert_int_equal(writer_finish(&w[1], &m), 0);
    assert_int_equal(sos_sink_close(sink[1], &m, &m, &e), 0);
    expect_small(r, HEDGE_EABORTED);
    box_reader_free(r);
    sos_store_unref(s);
    box_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stays_in_memory),
        cmocka_unit_test(spills_to_disk),
        cmocka_unit_test(spills_to_other_nodes),
        cmocka_unit_test(full_everywhere),
        cmocka_unit_test(a_last_block_without_a_place_is_stored),
        cmocka_unit_test(removed_stores_make_room_at_once),
        cmocka_unit_test(records_larger_than_memory),
        cmocka_unit_test(store_limits),
        cmocka_unit_test(impossible_options),
        cmocka_unit_test(crowd_in_the_smallest_arena),
        cmocka_unit_test(fetched_ahead_is_no_reason_for_full),
        cmocka_unit_test(follows_a_slow_writer),
        cmocka_unit_test(open_stores_give_a_prefix),
        cmocka_unit_test(two_unfinished_records),
        cmocka_unit_test(followers_pass_over_what_has_no_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
