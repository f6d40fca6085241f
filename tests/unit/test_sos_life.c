/* How stores end and what is kept how often: discarding, removing, expiring,
 * aborting, replicas. */
#include "store/base/clock.h"
#include "store/base/mem.h"
#include "tests/lib/blocks.h"
#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct record_shape small = {.seed = 1, .min = 20, .max = 5000};
static const struct record_shape spans = {
    .seed = 2, .min = 20, .max = 5 * BOX_BLOCK};
static const struct sos_read_options discard = {.discard = true};

static const struct box_options three_tiers = {
    .disk = 1 << 20, .nodes = 2, .node_limit = (uint64_t)64 << 20};

/* --- discarding --- */

static void discarding_frees_every_tier(void **state)
{
    struct hedge_error e = {0};
    struct box_result r;
    struct sos_store *s;
    struct box b;

    (void)state;
    box_open(&b, &three_tiers);
    s = box_store(&b, "x", NULL);
    r = box_write(s, &spans, 300);
    assert_int_equal(r.closed, 0);
    assert_true(box_used(s, "memory") > 0 && box_used(s, "disk") > 0 &&
                box_used(s, NULL) > 0);
    assert_int_equal(box_read(s, &spans, &discard, &r.manifest, NULL),
                     HEDGE_EEND);
    box_expect_empty(&b); /* Though the store is still there. */
    assert_int_equal(
        box_used(s, "memory") + box_used(s, "disk") + box_used(s, NULL), 0);
    assert_int_equal(box_read(s, &spans, NULL, NULL, &e), HEDGE_ENOTFOUND);
    assert_non_null(strstr(e.text, "discarded by another reader"));
    assert_int_equal(box_read(s, &spans, &discard, NULL, &e), HEDGE_ENOTFOUND);
    sos_store_unref(s);
    box_close(&b);
}

/* More goes through than all tiers hold, as long as it is read. */
static void load_process_discard(void **state)
{
    const struct sos_read_options o = {.discard = true, .follow = true};
    struct record_check c;
    struct sos_store *s;
    struct manifest m;
    struct reader *r;
    struct writer w;
    struct sink *sink;
    unsigned char buf[5000];
    struct hedge_error e;
    struct piece p;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.disk = 1 << 20});
    s = box_store(&b, "x", NULL);
    r = box_reader(s, &o);
    record_check_init(&c, &small);
    assert_int_equal(sos_sink_open(s, &sink, &e), 0);
    writer_init(&w, sink);
    for (uint64_t i = 0; i < 10000; i++) {
        assert_int_equal(record_write(&small, &w, 0, i, buf), 0);
        while (i % 100 == 99 && reader_next(r, 0, &p) == 0) {
            record_check_piece(&c, &p);
        }
    }
    assert_int_equal(writer_finish(&w, &m), 0);
    assert_int_equal(sos_sink_close(sink, &m, &m, &e), 0);
    assert_int_equal(record_check_all(&c, r, 1000), HEDGE_EEND);
    assert_int_equal(c.records, 10000);
    assert_true(manifest_equal(&r->seen, &m));
    box_reader_free(r);
    box_expect_empty(&b);
    sos_store_unref(s);
    box_close(&b);
}

struct slow_reader {
    pthread_t thread;
    struct reader *r;
    struct record_check check;
    unsigned pause_ms; /* At each block. */
    int end;
};

static void *read_slowly(void *arg)
{
    struct slow_reader *slow = arg;
    struct piece p;

    while ((slow->end = reader_next(slow->r, 20000, &p)) == 0) {
        record_check_piece(&slow->check, &p);
        if (p.first && slow->r->at == slow->r->seg.stop) {
            clock_sleep_ms(slow->pause_ms);
        }
    }
    return NULL;
}

/* The writer is much faster and all tiers are small: it waits for the reader,
 * with or without a disk and other nodes. */
static void a_full_house_waits_for_what_is_discarded(void **state)
{
    const struct sos_read_options o = {.discard = true, .follow = true};
    const struct box_options houses[] = {
        {.blocks = 16},
        {.disk = 1 << 20},
        {.nodes = 1, .node_limit = 1 << 20},
    };

    (void)state;
    alarm(60);
    for (unsigned i = 0; i < sizeof houses / sizeof houses[0]; i++) {
        struct slow_reader slow = {.pause_ms = 2};
        struct box_result w;
        struct sos_store *s;
        struct box b;

        box_open(&b, &houses[i]);
        s = box_store(&b, "x", NULL);
        slow.r = box_reader(s, &o);
        record_check_init(&slow.check, &small);
        assert_int_equal(pthread_create(&slow.thread, NULL, read_slowly, &slow),
                         0);
        w = box_write(s, &small, 5000); /* 3 MB. */
        pthread_join(slow.thread, NULL);
        assert_int_equal(w.closed, 0);
        assert_int_equal(slow.end, HEDGE_EEND);
        assert_int_equal(slow.check.records, 5000);
        box_reader_free(slow.r);
        box_expect_empty(&b);
        sos_store_unref(s);
        box_close(&b);
    }
    alarm(0);
}

/* What another store's reader gives back does not help under limits of one's
 * own, and a reader that has gone helps for a moment only. */
static void what_is_not_discarded_is_full(void **state)
{
    struct sos_store_options limited = box_defaults();
    struct sos_store *read, *s;
    uint64_t start;
    struct reader *r;
    struct box b;

    (void)state;
    alarm(60);
    limited.mem_limit = BOX_BLOCK;
    box_open(&b, &(struct box_options){.drain_ms = 5000});
    read = box_store(&b, "read", NULL);
    r = box_reader(read, &discard);
    s = box_store(&b, "limited", &limited);
    start = clock_mono_ms();
    assert_int_equal(box_write(s, &small, 10000).closed, HEDGE_EFULL);
    assert_true(clock_mono_ms() - start < 3000);
    sos_remove(s);
    sos_store_unref(s);
    box_reader_free(r);
    assert_int_equal(box_write(read, &small, 10000).closed, HEDGE_EFULL);
    assert_true(clock_mono_ms() - start < 8000);
    sos_store_unref(read);
    box_close(&b);
    alarm(0);
}

/* Two readers in step, one of which discards: the other gets each record right
 * or an error, and nothing is dropped while it is read. */
static void discarding_under_a_reader(void **state)
{
    (void)state;
    for (unsigned lead = 0; lead < 40; lead += 3) {
        struct record_check c[2];
        struct reader *r[2];
        struct box_result w;
        struct sos_store *s;
        struct piece p;
        struct box b;
        int rv[2] = {0, 0};

        box_open(&b, &three_tiers);
        for (unsigned i = 0; i < 2; i++) {
            struct fake_unit u = fake_tier_unit(b.remote, i);

            u.delay_ms = 1;
            fake_tier_set(b.remote, i, &u);
        }
        s = box_store(&b, "x", NULL);
        r[0] = box_reader(s, NULL);
        r[1] = box_reader(s, &discard);
        w = box_write(s, &spans, 120);
        assert_int_equal(w.closed, 0);
        record_check_init(&c[0], &spans);
        record_check_init(&c[1], &spans);
        for (unsigned i = 0; rv[0] == 0 || rv[1] == 0; i++) {
            unsigned k = i % (lead + 2) == lead + 1;

            if (rv[k] == 0 && (rv[k] = reader_next(r[k], 1000, &p)) == 0) {
                record_check_piece(&c[k], &p);
            }
        }
        assert_int_equal(rv[1], HEDGE_EEND);
        assert_true(rv[0] == HEDGE_EEND || rv[0] == HEDGE_ENOTFOUND);
        box_reader_free(r[0]);
        box_reader_free(r[1]);
        box_expect_empty(&b);
        sos_store_unref(s);
        box_close(&b);
    }
}

/* Records of four blocks of two writers, block by block in turns, so that they
 * are followed out of turn. */
static void write_interleaved(struct sos_store *s)
{
    const struct record_shape large = {
        .seed = 3, .min = 7 * BOX_BLOCK / 2, .max = 7 * BOX_BLOCK / 2};
    unsigned char *buf = malloc(large.max);
    struct blocks *b[2];
    struct sink *sink[2];
    struct hedge_error e;
    struct manifest m[2];

    for (unsigned i = 0; i < 2; i++) {
        struct writer w;

        assert_int_equal(sos_sink_open(s, &sink[i], &e), 0);
        b[i] = malloc(sizeof *b[i]);
        blocks_init(b[i], BOX_BLOCK);
        b[i]->sink.generation = sink[i]->generation;
        b[i]->sink.writer = sink[i]->writer;
        writer_init(&w, &b[i]->sink);
        for (uint64_t k = 0; k < 8; k++) {
            assert_int_equal(record_write(&large, &w, i, k, buf), 0);
        }
        assert_int_equal(writer_finish(&w, &m[i]), 0);
    }
    for (unsigned k = 0; k < 2 * b[0]->n; k++) {
        struct block_header h = blocks_header(b[k % 2], k / 2);
        struct sink *to = sink[k % 2];
        void *block;

        assert_int_equal(to->ops->block(to, &block, &e), 0);
        memcpy(block, b[k % 2]->block[k / 2], BLOCK_HEADER_SIZE + h.raw_len);
        assert_int_equal(to->ops->put(to, block, &h, &e), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(sos_sink_close(sink[i], &m[i], &m[i], &e), 0);
        blocks_release(b[i]);
        free(b[i]);
    }
    free(buf);
    box_expect(s, &large, NULL);
}

/* A source whose segments travel on discards on the receiver's word only, and
 * one word is one segment. */
static void far_readers_say_when(void **state)
{
    struct segment seg;
    struct source *source;
    struct hedge_error e;
    struct sos_store *s;
    struct sos_info info;
    struct box b;
    unsigned n = 0;

    (void)state;
    box_open(&b, &(struct box_options){.blocks = 300});
    s = box_store(&b, "x", NULL);
    write_interleaved(s);
    assert_int_equal(sos_source_open(s, &discard, &source, &e), 0);
    sos_source_manual_discard(source);
    while (source->ops->next(source, 1000, &seg, &e) == 0) {
        n++;
        if (n > 5) {
            sos_source_done(source, 1);
        }
    }
    assert_true(n > 20);
    assert_true(box_used(s, "memory") > 0);
    sos_source_done(source, 4);
    assert_true(box_used(s, "memory") > 0);
    sos_source_done(source, 1);
    assert_int_equal(box_used(s, "memory"), 0);
    source->ops->free(source);
    assert_int_equal(sos_store_info(s, &info), 0);
    assert_int_equal(info.readers, 0);
    mem_free(info.uses);
    sos_store_unref(s);
    box_close(&b);
}

/* A block is read by two and discarded by a third: it is dropped when the last
 * of them has it. */
static void *read_one(void *reader)
{
    struct piece p;

    return reader_next(reader, 5000, &p) == 0 ? reader : NULL;
}

static void the_last_reader_drops(void **state)
{
    struct sos_store_options o = box_defaults();
    struct fake_unit u;
    struct reader *r[3];
    struct sos_store *s;
    pthread_t thread[2];
    struct piece p;
    struct box b;

    (void)state;
    o.mem_limit = 1;
    box_open(&b, &(struct box_options){.blocks = 64, .nodes = 1});
    s = box_store(&b, "x", &o);
    assert_int_equal(box_write(s, &small, 2).closed, 0);
    for (unsigned i = 0; i < 3; i++) {
        r[i] = box_reader(s, i == 2 ? &discard : NULL);
    }
    while (reader_next(r[2], 1000, &p) == 0 && !(p.last && r[2]->at > 100)) {
    }
    u = fake_tier_unit(b.remote, 0);
    u.delay_ms = 300;
    fake_tier_set(b.remote, 0, &u);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, read_one, r[i]), 0);
        clock_sleep_ms(60);
    }
    while (reader_next(r[2], 1000, &p) == 0) {
    }
    for (unsigned i = 0; i < 2; i++) {
        void *got;

        pthread_join(thread[i], &got);
        assert_non_null(got);
    }
    for (unsigned i = 0; i < 3; i++) {
        box_reader_free(r[i]);
    }
    box_expect_empty(&b);
    sos_store_unref(s);
    box_close(&b); /* Counts drops of what was being read. */
}

/* Fill the memory tier with a store of its own. */
static struct sos_store *fill_memory(struct box *b)
{
    const struct record_shape one_block = {
        .seed = 5, .min = BOX_PAYLOAD - 4, .max = BOX_PAYLOAD - 4};
    struct sos_store *s = box_store(b, "filler", NULL);

    assert_int_equal(box_write(s, &one_block, BOX_STORED).closed, 0);
    return s;
}

/* Nobody takes the block, and nobody wants it any more. */
static void discarded_while_it_is_refused(void **state)
{
    const struct sos_read_options o = {.discard = true, .follow = true};
    struct sos_store *filler, *s;
    struct hedge_error e = {0};
    unsigned char buf[5000];
    struct fake_unit u;
    struct manifest m;
    struct reader *r;
    struct writer w;
    struct sink *sink;
    struct piece p;
    struct box b;

    (void)state;
    box_open(&b, &(struct box_options){.nodes = 1});
    filler = fill_memory(&b);
    u = fake_tier_unit(b.remote, 0);
    u.delay_ms = 200;
    u.put_status = HEDGE_EREFUSED;
    fake_tier_set(b.remote, 0, &u);
    s = box_store(&b, "x", NULL);
    assert_int_equal(sos_sink_open(s, &sink, &e), 0);
    writer_init(&w, sink);
    r = box_reader(s, &o);
    assert_int_equal(record_write(&small, &w, 0, 0, buf), 0);
    assert_int_equal(writer_flush(&w), 0);
    assert_int_equal(reader_next(r, 1000, &p), 0);
    assert_int_equal(reader_next(r, 0, &p), HEDGE_ETIMEDOUT);
    assert_int_equal(writer_finish(&w, &m), 0);
    assert_int_equal(sos_sink_close(sink, &m, &m, &e), 0);
    box_reader_free(r);
    sos_remove(filler);
    sos_store_unref(filler);
    box_expect_empty(&b);
    sos_store_unref(s);
    box_close(&b);
}

/* A reader stops at a block that is just leaving: it is the reader's from then
 * on, and does not keep others from leaving. */
static void an_abandoned_block_in_the_doorway(void **state)
{
    struct sos_store *filler, *s;
    struct hedge_error e = {0};
    unsigned char buf[5000];
    struct fake_unit u;
    struct manifest m;
    struct reader *r;
    struct writer w;
    struct sink *sink;
    struct piece p;
    struct box b;

    (void)state;
    alarm(60);
    box_open(&b, &(struct box_options){.nodes = 1});
    filler = fill_memory(&b);
    u = fake_tier_unit(b.remote, 0);
    u.delay_ms = 50;
    fake_tier_set(b.remote, 0, &u);
    s = box_store(&b, "x", NULL);
    assert_int_equal(sos_sink_open(s, &sink, &e), 0);
    writer_init(&w, sink);
    r = box_reader(s, NULL);
    assert_int_equal(record_write(&small, &w, 0, 0, buf), 0);
    assert_int_equal(writer_flush(&w), 0);
    assert_int_equal(reader_next(r, 1000, &p), 0);
    for (uint64_t i = 1; i < 200; i++) {
        assert_int_equal(record_write(&small, &w, 0, i, buf), 0);
    }
    assert_int_equal(writer_finish(&w, &m), 0);
    assert_int_equal(sos_sink_close(sink, &m, &m, &e), 0);
    record_fill(&small, 0, 0, 0, buf, p.len);
    assert_memory_equal(p.data, buf, p.len); /* Still valid. */
    box_reader_free(r);
    box_expect(s, &small, &m);
    sos_store_unref(filler);
    sos_store_unref(s);
    box_close(&b);
    alarm(0);
}

/* The janitor is busy with one store while another one's memory is not yet
 * free: who needs it waits. */
static void room_that_is_coming_is_waited_for(void **state)
{
    struct sos_store_options o = box_defaults();
    struct sos_store *busy, *filler, *s;
    struct box_result r;
    struct fake_unit u;
    struct box b;

    (void)state;
    o.mem_limit = 1;
    box_open(&b, &(struct box_options){.nodes = 1});
    busy = box_store(&b, "busy", &o);
    assert_int_equal(box_write(busy, &small, 10).closed, 0);
    filler = fill_memory(&b);
    u = fake_tier_unit(b.remote, 0);
    u.refuse = true;
    fake_tier_set(b.remote, 0, &u);
    fake_tier_slow_drops(b.remote, 300);
    sos_remove(busy);
    sos_store_unref(busy);
    clock_sleep_ms(50);
    sos_remove(filler);
    sos_store_unref(filler);
    s = box_store(&b, "x", NULL);
    r = box_write(s, &small, 100);
    assert_int_equal(r.closed, 0);
    box_expect(s, &small, &r.manifest);
    fake_tier_slow_drops(b.remote, 0);
    sos_store_unref(s);
    box_close(&b);
}

/* --- removing --- */

static void removing_under_readers_and_writers(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        struct hedge_error e = {0};
        unsigned char buf[5000];
        struct sos_store *s, *other;
        struct manifest m;
        struct reader *r;
        struct writer w;
        struct sink *sink;
        struct piece p;
        struct box b;
        int rv = 0;

        box_open(&b, &three_tiers);
        s = box_store(&b, "x", NULL);
        assert_int_equal(box_write(s, &small, 100 * round).closed, 0);
        r = box_reader(s, NULL);
        assert_int_equal(sos_sink_open(s, &sink, &e), 0);
        writer_init(&w, sink);
        assert_int_equal(record_write(&small, &w, 1, 0, buf), 0);
        (void)reader_next(r, 0, &p);
        sos_remove(s);
        sos_remove(s); /* Twice is once. */
        assert_int_equal(sos_find(b.sos, "x", &other, &e), HEDGE_ENOTFOUND);
        other = box_store(&b, "x", NULL); /* The name is free at once. */
        for (uint64_t i = 1; i < 1000 && rv == 0; i++) {
            rv = record_write(&small, &w, 1, i, buf);
        }
        assert_int_equal(rv, HEDGE_ENOTFOUND);
        (void)writer_finish(&w, &m);
        assert_int_equal(sos_sink_close(sink, &m, &m, &e), HEDGE_ENOTFOUND);
        while ((rv = reader_next(r, 1000, &p)) == 0) {
        }
        assert_true(rv == HEDGE_ENOTFOUND || (rv == HEDGE_EEND && round == 0));
        box_reader_free(r);
        assert_int_equal(box_write(other, &small, 50).closed, 0);
        sos_store_unref(s);
        sos_remove(other);
        sos_store_unref(other);
        box_expect_empty(&b);
        box_close(&b);
    }
}

/* --- expiring --- */

static void expires(void **state)
{
    struct sos_store_options o = box_defaults();
    struct hedge_error e = {0};
    struct box_result w;
    struct sos_store *s, *found;
    struct sos_info info;
    struct reader *r;
    uint64_t until;
    struct box b;

    (void)state;
    o.ttl_ms = 300;
    box_open(&b, &three_tiers);
    s = box_store(&b, "brief", &o);
    w = box_write(s, &small, 1000);
    assert_int_equal(w.closed, 0);
    /* An open reader keeps it. */
    r = box_reader(s, NULL);
    clock_sleep_ms(900);
    assert_int_equal(sos_find(b.sos, "brief", &found, &e), 0);
    sos_store_unref(found);
    box_reader_free(r);
    assert_int_equal(sos_store_info(s, &info), 0);
    assert_true(info.expires_at_ms > clock_wall_ms());
    assert_true(info.expires_at_ms <= clock_wall_ms() + 300);
    mem_free(info.uses);
    until = clock_mono_ms() + 5000;
    while (b.n_expired == 0 && clock_mono_ms() < until) {
        clock_sleep_ms(20);
        /* The count is the janitor's: find takes its lock. */
        if (sos_find(b.sos, "brief", &found, &e) != 0) {
            break;
        }
        sos_store_unref(found);
    }
    assert_int_equal(sos_find(b.sos, "brief", &found, &e), HEDGE_EEXPIRED);
    assert_non_null(strstr(e.text, "\"brief\" expired"));
    assert_non_null(strstr(e.text, "ago"));
    assert_int_equal(b.n_expired, 1);
    assert_string_equal(b.expired, "brief");
    /* Who still has it open by reference gets an error, not an end. */
    assert_int_equal(box_read(s, &small, NULL, NULL, &e), HEDGE_ENOTFOUND);
    sos_store_unref(s);
    box_expect_empty(&b);
    /* A new one of that name is no longer "expired". */
    s = box_store(&b, "brief", NULL);
    sos_remove(s);
    sos_store_unref(s);
    assert_int_equal(sos_find(b.sos, "brief", &found, &e), HEDGE_ENOTFOUND);
    box_close(&b);
}

/* --- stores of this node alone --- */

static void count_store(void *ctx, struct sos_store *store)
{
    (void)store;
    ++*(unsigned *)ctx;
}

static void local_stores(void **state)
{
    struct sos_store_options o = box_defaults();
    struct hedge_error e = {0};
    struct sos_store *own, *local, *found;
    struct sos_figures figures;
    unsigned seen = 0;
    struct box b;

    (void)state;
    o.local = true;
    o.closed_ttl_ms = 3600000;
    box_open(&b, &three_tiers);
    local = box_store(&b, "x", &o);
    assert_int_equal(sos_find(b.sos, "x", &found, &e), HEDGE_ENOTFOUND);
    own = box_store(&b, "x", NULL); /* Another name space. */
    assert_int_equal(sos_find(b.sos, "x", &found, &e), 0);
    assert_ptr_equal(found, own);
    sos_store_unref(found);
    assert_int_equal(sos_find_local(b.sos, "x", &found, &e), 0);
    assert_ptr_equal(found, local);
    sos_store_unref(found);
    assert_int_equal(sos_find_local(b.sos, "y", &found, &e), HEDGE_ENOTFOUND);
    assert_int_equal(sos_each(b.sos, count_store, &seen), 0);
    assert_int_equal(seen, 1);
    /* It is full when this node is; nothing goes to the others. */
    assert_int_equal(box_write(local, &spans, 3000).closed, HEDGE_EFULL);
    assert_int_equal(box_used(local, NULL), 0);
    sos_figures(b.sos, &figures);
    assert_int_equal(figures.remote.puts, 0);
    assert_true(figures.disk.puts > 0);
    assert_int_equal(figures.writers_full, 1);
    sos_remove(own);
    sos_store_unref(own);
    /* Resumed, it stays; ended, it goes, and nobody is told. */
    sos_store_end(local, 100);
    sos_store_resume(local);
    clock_sleep_ms(600);
    assert_int_equal(sos_find_local(b.sos, "x", &found, &e), 0);
    sos_store_unref(found);
    sos_store_end(local, 100);
    sos_store_unref(local);
    box_expect_empty(&b);
    assert_int_equal(sos_find_local(b.sos, "x", &found, &e), HEDGE_ENOTFOUND);
    assert_int_equal(sos_find(b.sos, "x", &found, &e), HEDGE_ENOTFOUND);
    assert_int_equal(b.n_expired, 0);
    box_close(&b);
}

/* --- writers that vanish --- */

static void aborted_after_the_whole_records(void **state)
{
    static const bool follow[] = {false, true};
    unsigned char *buf = malloc(spans.max + 1);

    (void)state;
    for (unsigned round = 0; round < 30; round++) {
        struct sos_read_options o = {.follow = follow[round % 2]};
        struct hedge_error e = {0};
        struct record_check c;
        struct sos_info info;
        struct sos_store *s;
        struct writer w;
        struct sink *sink;
        struct reader *r;
        struct box b;

        box_open(&b, &three_tiers);
        s = box_store(&b, "x", NULL);
        assert_int_equal(sos_sink_open(s, &sink, &e), 0);
        writer_init(&w, sink);
        for (uint64_t i = 0; i < 3 * round; i++) {
            assert_int_equal(record_write(&spans, &w, 0, i, buf), 0);
        }
        if (round % 3 == 0) {
            assert_int_equal(writer_flush(&w), 0);
        }
        writer_drop(&w);
        sos_sink_abort(sink);
        r = box_reader(s, &o);
        record_check_init(&c, &spans);
        assert_int_equal(record_check_all(&c, r, 1000), HEDGE_EABORTED);
        assert_non_null(strstr(r->error.text, "vanished"));
        assert_false(c.inside);
        assert_true(c.records <= 3 * round);
        if (round % 3 == 0) {
            assert_int_equal(c.records, 3 * round);
        }
        assert_int_equal(sos_store_info(s, &info), 0);
        assert_int_equal(info.state, STORE_ABORTED);
        assert_int_equal(info.manifest.records, c.records);
        assert_true(manifest_equal(&info.manifest, &r->seen));
        box_reader_free(r);
        mem_free(info.uses);
        sos_store_unref(s);
        box_close(&b);
    }
    free(buf);
}

/* The other end counted something else than what arrived. */
static void a_wrong_claim_aborts(void **state)
{
    struct hedge_error e = {0};
    unsigned char buf[5000];
    struct sos_info info;
    struct manifest m;
    struct sos_store *s;
    struct writer w;
    struct sink *sink;
    struct box b;

    (void)state;
    box_open(&b, &three_tiers);
    s = box_store(&b, "x", NULL);
    assert_int_equal(sos_sink_open(s, &sink, &e), 0);
    writer_init(&w, sink);
    assert_int_equal(record_write(&small, &w, 0, 0, buf), 0);
    assert_int_equal(writer_finish(&w, &m), 0);
    m.records++;
    assert_int_equal(sos_sink_close(sink, &m, &m, &e), HEDGE_ECORRUPT);
    assert_int_equal(box_read(s, &small, NULL, NULL, &e), HEDGE_EABORTED);
    assert_int_equal(sos_store_info(s, &info), 0);
    assert_int_equal(info.manifest.records, 1);
    mem_free(info.uses);
    sos_store_unref(s);
    box_close(&b);
}

/* Blocks that are not the writer's next one are refused. */
static void foreign_blocks_are_refused(void **state)
{
    struct block_header h = {
        .first = 0, .records = 1, .raw_len = 4, .stored_len = 4};
    struct hedge_error e = {0};
    struct manifest m;
    struct sos_store *s;
    struct sink *sink;
    struct box b;

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        void *block;

        box_open(&b, &three_tiers);
        s = box_store(&b, "x", NULL);
        assert_int_equal(sos_sink_open(s, &sink, &e), 0);
        assert_int_equal(sink->ops->block(sink, &block, &e), 0);
        h.id =
            (struct block_id){.generation = sink->generation + (i == 0),
                              .writer = sink->writer + (i == 1 ? 100000u : 0),
                              .sequence = i == 2};
        memset(block, 0, BLOCK_HEADER_SIZE + 4);
        assert_int_equal(sink->ops->put(sink, block, &h, &e), HEDGE_EPROTO);
        (void)sos_sink_close(sink, NULL, &m, &e);
        assert_int_equal(m.records, 0);
        sos_store_unref(s);
        box_close(&b);
    }
}

/* --- replicas --- */

static void replicas_are_made(void **state)
{
    (void)state;
    for (unsigned n = 2; n <= 3; n++) {
        struct sos_store_options o = box_defaults();
        struct box_result w;
        struct sos_store *s;
        struct box b;
        uint64_t here;

        o.replicas = n;
        box_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 3});
        s = box_store(&b, "x", &o);
        w = box_write(s, &small, 1000);
        assert_int_equal(w.closed, 0);
        here = box_used(s, "memory") + box_used(s, "disk");
        assert_true(here > 0);
        assert_true(here + box_used(s, NULL) >= n * w.manifest.bytes);
        box_expect(s, &small, &w.manifest);
        assert_int_equal(box_read(s, &small, &discard, &w.manifest, NULL),
                         HEDGE_EEND);
        box_expect_empty(&b);
        sos_store_unref(s);
        box_close(&b);
    }
}

static void a_lost_copy_costs_nothing(void **state)
{
    for (unsigned lost = 0; lost < 2; lost++) {
        struct sos_store_options o = box_defaults();
        struct hedge_error e = {0};
        struct box_result w;
        struct sos_store *s;
        struct box b;

        (void)state;
        o.replicas = 2;
        o.mem_limit = 1;
        o.disk_limit = 1; /* Both copies are elsewhere. */
        box_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 2});
        s = box_store(&b, "x", &o);
        w = box_write(s, &small, 500);
        assert_int_equal(w.closed, 0);
        assert_int_equal(box_used(s, "memory") + box_used(s, "disk"), 0);
        fake_tier_lose(b.remote, lost);
        box_expect(s, &small, &w.manifest);
        fake_tier_lose(b.remote, 1 - lost);
        assert_int_equal(box_read(s, &small, NULL, NULL, &e), HEDGE_ELOST);
        assert_non_null(strstr(e.text, "\"x\", block 0/0 on fake-"));
        sos_store_unref(s);
        box_close(&b);
    }
}

static void a_wrong_copy_costs_nothing(void **state)
{
    struct sos_store_options o = box_defaults();
    struct hedge_error e = {0};
    struct fake_unit u;
    struct box_result w;
    struct sos_store *s;
    struct box b;

    (void)state;
    o.replicas = 2;
    o.mem_limit = o.disk_limit = 1;
    box_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 2});
    s = box_store(&b, "x", &o);
    w = box_write(s, &small, 300);
    assert_int_equal(w.closed, 0);
    u = fake_tier_unit(b.remote, 0);
    u.corrupt = true;
    fake_tier_set(b.remote, 0, &u);
    box_expect(s, &small, &w.manifest);
    fake_tier_set(b.remote, 1, &u);
    assert_int_equal(box_read(s, &small, NULL, NULL, &e), HEDGE_ECORRUPT);
    assert_non_null(strstr(e.text, "\"x\", block 0/0 on fake-"));
    sos_store_unref(s);
    box_close(&b);
}

/* Change one bit of the first block, which is in memory. */
static void spoil_memory(struct sos_store *s)
{
    static const struct sos_read_options plain;
    struct source *source;
    struct segment seg;
    struct hedge_error e;

    assert_int_equal(sos_source_open(s, &plain, &source, &e), 0);
    assert_int_equal(source->ops->next(source, 1000, &seg, &e), 0);
    assert_string_equal(seg.kind, "memory");
    ((unsigned char *)seg.block)[BLOCK_HEADER_SIZE + 7] ^= 1;
    source->ops->free(source);
}

/* A bit changes in the memory here: the other copy is read instead, and where
 * that is not right either it is an error. */
static void a_wrong_block_in_memory_costs_nothing(void **state)
{
    static const enum sos_compression how[] = {SOS_COMPRESS_NONE,
                                               SOS_COMPRESS_ZSTD};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct sos_store_options o = box_defaults();
        struct hedge_error e = {0};
        struct fake_unit u;
        struct box_result w;
        struct sos_store *s;
        struct box b;

        o.replicas = 2;
        o.compression = how[i];
        box_open(&b, &(struct box_options){.nodes = 1});
        s = box_store(&b, "x", &o);
        w = box_write(s, &small, 150);
        assert_int_equal(w.closed, 0);
        assert_true(box_used(s, "memory") > 0);
        spoil_memory(s);
        box_expect(s, &small, &w.manifest);
        u = fake_tier_unit(b.remote, 0);
        u.corrupt = true;
        fake_tier_set(b.remote, 0, &u);
        assert_int_equal(box_read(s, &small, NULL, NULL, &e), HEDGE_ECORRUPT);
        assert_non_null(strstr(e.text, "\"x\", block 0/0 on fake-"));
        sos_store_unref(s);
        box_close(&b);
    }
}

static void too_few_nodes_for_the_copies(void **state)
{
    struct sos_store_options o = box_defaults();
    struct box_result w;
    struct sos_store *s;
    struct box b;

    (void)state;
    o.replicas = 3;
    box_open(&b, &(struct box_options){.disk = 1 << 20, .nodes = 1});
    s = box_store(&b, "x", &o);
    w = box_write(s, &small, 1000);
    assert_int_equal(w.closed, HEDGE_EFULL);
    assert_non_null(strstr(w.error.text, "3 copies"));
    assert_non_null(strstr(w.error.text, "2 could be made"));
    box_expect(s, &small, &w.manifest); /* What was taken is there. */
    sos_store_unref(s);
    box_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(discarding_frees_every_tier),
        cmocka_unit_test(load_process_discard),
        cmocka_unit_test(a_full_house_waits_for_what_is_discarded),
        cmocka_unit_test(what_is_not_discarded_is_full),
        cmocka_unit_test(discarding_under_a_reader),
        cmocka_unit_test(far_readers_say_when),
        cmocka_unit_test(the_last_reader_drops),
        cmocka_unit_test(discarded_while_it_is_refused),
        cmocka_unit_test(an_abandoned_block_in_the_doorway),
        cmocka_unit_test(room_that_is_coming_is_waited_for),
        cmocka_unit_test(removing_under_readers_and_writers),
        cmocka_unit_test(expires),
        cmocka_unit_test(aborted_after_the_whole_records),
        cmocka_unit_test(a_wrong_claim_aborts),
        cmocka_unit_test(foreign_blocks_are_refused),
        cmocka_unit_test(replicas_are_made),
        cmocka_unit_test(local_stores),
        cmocka_unit_test(a_lost_copy_costs_nothing),
        cmocka_unit_test(a_wrong_copy_costs_nothing),
        cmocka_unit_test(a_wrong_block_in_memory_costs_nothing),
        cmocka_unit_test(too_few_nodes_for_the_copies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
