/* Records through blocks and back, without a store; and whatever can happen to
 * the blocks in between. */
#include "store/base/bytes.h"
#include "store/base/hash.h"
#include "store/base/mem.h"
#include "store/sos.h"
#include "tests/lib/blocks.h"
#include "tests/lib/check.h"
#include "tests/lib/records.h"

#include <stdlib.h>
#include <string.h>

#define SIZE BLOCK_SIZE_MIN
#define PAYLOAD (SIZE - BLOCK_HEADER_SIZE)

static unsigned char *pattern; /* 80 MiB of bytes that differ. */
#define PATTERN ((size_t)80 << 20)

static int set_up_pattern(void **state)
{
    uint64_t random = 3;

    (void)state;
    pattern = malloc(PATTERN);
    for (size_t i = 0; i < PATTERN; i += 8) {
        uint64_t x = random_next(&random);

        memcpy(pattern + i, &x, 8);
    }
    return pattern == NULL;
}

static int tear_down_pattern(void **state)
{
    (void)state;
    free(pattern);
    return 0;
}

static struct blocks *blocks_new(size_t size)
{
    struct blocks *b = malloc(sizeof *b);

    assert_non_null(b);
    blocks_init(b, size);
    return b;
}

static void blocks_delete(struct blocks *b)
{
    blocks_release(b);
    free(b);
}

/* Where a record's bytes are taken from. */
static const unsigned char *bytes_of(size_t i)
{
    return pattern + i * 977 % 100000;
}

static struct manifest write_all(struct blocks *b, const size_t *lens, size_t n,
                                 size_t flush_every)
{
    struct manifest m;
    struct writer w;
    uint64_t bytes = 0;

    writer_init(&w, &b->sink);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(writer_write(&w, bytes_of(i), lens[i]), 0);
        bytes += lens[i];
        if (flush_every > 0 && i % flush_every == 0) {
            assert_int_equal(writer_flush(&w), 0);
        }
    }
    assert_int_equal(writer_finish(&w, &m), 0);
    assert_int_equal(m.records, n);
    assert_int_equal(m.bytes, bytes);
    return m;
}

static bool frames_lie; /* Then only the end of the reading is checked. */

/* Reads to the end; compares what comes with `lens` and fails on anything that
 * was not written there. */
static int read_all(struct blocks *b, const size_t *lens, size_t n,
                    struct manifest *seen)
{
    struct reader r;
    struct piece p;
    size_t i = 0, at = 0;
    int rv;

    assert_int_equal(reader_init(&r, blocks_source(b)), 0);
    while ((rv = reader_next(&r, 0, &p)) == 0) {
        if (frames_lie) {
            continue;
        }
        assert_true(i < n);
        assert_int_equal(p.first, at == 0 && p.first);
        assert_true(at + p.len <= lens[i]);
        assert_memory_equal(p.data, bytes_of(i) + at, p.len);
        at += p.len;
        if (p.last) {
            assert_int_equal(at, lens[i]);
            i++;
            at = 0;
        }
    }
    assert_int_equal(reader_next(&r, 0, &p), rv); /* Errors stay. */
    assert_int_equal(r.error.code, rv);
    if (rv == HEDGE_EEND) {
        assert_true(i == n && !frames_lie);
    } else {
        assert_true(r.error.text[0] != '\0');
    }
    if (seen != NULL) {
        *seen = r.seen;
    }
    reader_release(&r);
    assert_true(b->freed);
    return rv;
}

static void round_trip(size_t size, const size_t *lens, size_t n, size_t flush)
{
    struct blocks *b = blocks_new(size);
    struct manifest m = write_all(b, lens, n, flush), seen;

    assert_true(manifest_equal(&m, &b->tally.all));
    for (unsigned i = 0; i < b->n; i++) {
        struct block_header h = blocks_header(b, i);

        assert_int_equal(h.id.sequence, i);
        assert_int_equal(
            block_check_frames(&h, block_payload(b->block[i]), NULL), 0);
    }
    assert_int_equal(read_all(b, lens, n, &seen), HEDGE_EEND);
    assert_true(manifest_equal(&m, &seen));
    b->trust = true;
    assert_int_equal(read_all(b, lens, n, &seen), HEDGE_EEND);
    blocks_delete(b);
}

static void nothing_at_all(void **state)
{
    (void)state;
    round_trip(SIZE, NULL, 0, 0);
}

static void sizes_around_the_edges(void **state)
{
    size_t lens[8];

    (void)state;
    for (size_t around = 1; around <= 4; around++) {
        for (size_t d = 0; d <= 20; d++) {
            size_t len = around * PAYLOAD / (around == 4 ? 2 : 1) + d - 14;

            lens[0] = len;
            round_trip(SIZE, lens, 1, 0);
            lens[1] = 0;
            lens[2] = 1;
            round_trip(SIZE, lens, 3, 0);
            lens[3] = len;
            lens[4] = d;
            lens[5] = PAYLOAD - 4 - d;
            lens[6] = 0;
            lens[7] = len;
            round_trip(SIZE, lens, 8, 0);
            round_trip(SIZE, lens, 8, 1);
        }
    }
}

/* The length word of a record never spans blocks. */
static void room_left_at_the_end(void **state)
{
    size_t lens[3];

    (void)state;
    for (size_t left = 0; left < 3000; left += left < 16 ? 1 : 331) {
        lens[0] = PAYLOAD - BLOCK_FRAME_SIZE - left;
        for (size_t next = 0; next < 12; next += 3) {
            lens[1] = next;
            lens[2] = PAYLOAD;
            round_trip(SIZE, lens, 3, 0);
        }
    }
}

static void many_empty_records(void **state)
{
    size_t n = 40000, *lens = calloc(n, sizeof *lens);

    (void)state;
    round_trip(SIZE, lens, n, 0);
    round_trip(SIZE, lens, 3000, 1);
    free(lens);
}

static void large_records(void **state)
{
    static const size_t lens[] = {((size_t)64 << 20) + 3, 1, (size_t)16 << 20,
                                  0, (size_t)1 << 20};

    (void)state;
    round_trip(SIZE, lens, 5, 0);
    round_trip(BLOCK_SIZE_DEFAULT, lens, 5, 0);
    round_trip(BLOCK_SIZE_MAX, lens, 5, 0);
}

static void any_mixture(void **state)
{
    size_t lens[300];
    uint64_t random = 11;

    (void)state;
    for (unsigned round = 0; round < 60; round++) {
        size_t n = random_next(&random) % 300;
        size_t flush = random_next(&random) % 3 == 0 ? 7 : 0;

        for (size_t i = 0; i < n; i++) {
            uint64_t x = random_next(&random);

            lens[i] = x % 10 == 0 ? (x >> 8) % 300000 : (x >> 8) % 2000;
        }
        round_trip(SIZE, lens, n, flush);
    }
}

static void too_long_a_record_ends_nothing(void **state)
{
    struct blocks *b = blocks_new(SIZE);
    struct manifest m;
    struct writer w;

    (void)state;
    writer_init(&w, &b->sink);
    assert_int_equal(writer_write(&w, "a", 1), 0);
    assert_int_equal(writer_write(&w, "a", BLOCK_RECORD_MAX + 1),
                     HEDGE_ETOOBIG);
    assert_non_null(strstr(w.error.text, "1073741825"));
    assert_int_equal(writer_write(&w, "b", 1), 0);
    assert_int_equal(writer_finish(&w, &m), 0);
    assert_int_equal(m.records, 2);
    blocks_delete(b);
}

/* --- damage between writing and reading --- */

static const size_t some[] = {10,     0,    70000,  300, 65468, 65472, 1,
                              200000, 5000, 130000, 42,  65471, 0,     9};
#define SOME (sizeof some / sizeof some[0])

static void expect_damage(struct blocks *b)
{
    int rv = read_all(b, some, SOME, NULL);

    assert_int_equal(rv, HEDGE_ECORRUPT);
}

static void flipped_bits(void **state)
{
    struct blocks *b = blocks_new(SIZE);
    uint64_t random = 17;

    (void)state;
    (void)write_all(b, some, SOME, 0);
    for (unsigned i = 0; i < b->n; i++) {
        struct block_header h = blocks_header(b, i);
        size_t len = BLOCK_HEADER_SIZE + h.raw_len;

        for (unsigned k = 0; k < 700; k++) {
            /* All of the header, and bits here and there of the rest. */
            size_t bit = k < 8 * BLOCK_HEADER_SIZE
                             ? k
                             : 8 * BLOCK_HEADER_SIZE +
                                   random_next(&random) % (8 * h.raw_len);

            assert_true(bit < 8 * len);
            b->block[i][bit / 8] ^= (unsigned char)(1u << bit % 8);
            expect_damage(b);
            b->block[i][bit / 8] ^= (unsigned char)(1u << bit % 8);
        }
    }
    assert_int_equal(read_all(b, some, SOME, NULL), HEDGE_EEND);
    blocks_delete(b);
}

/* With right checksums, as a broken program would make them. */
static void lying_frames(void **state)
{
    struct blocks *b = blocks_new(SIZE);

    (void)state;
    (void)write_all(b, some, SOME, 0);
    for (unsigned i = 0; i < b->n; i++) {
        struct block_header h = blocks_header(b, i), was = h;
        unsigned char *p = block_payload(b->block[i]);

        for (int d = -1; d <= 1 && h.first != BLOCK_FIRST_NONE; d += 2) {
            uint32_t len = get_le32(p + h.first);

            frames_lie = true;
            put_le32(p + h.first, len + (uint32_t)d);
            h.raw_sum = h.stored_sum = hash64(p, h.raw_len);
            blocks_set_header(b, i, &h);
            assert_int_not_equal(read_all(b, some, SOME, NULL), HEDGE_EEND);
            put_le32(p + h.first, len);
            h = was;
            blocks_set_header(b, i, &h);
            frames_lie = false;
        }
        h.flags ^= BLOCK_CONTINUES;
        blocks_set_header(b, i, &h);
        expect_damage(b);
        blocks_set_header(b, i, &was);
    }
    assert_int_equal(read_all(b, some, SOME, NULL), HEDGE_EEND);
    blocks_delete(b);
}

static void overrunning_record(void **state)
{
    struct blocks *b = blocks_new(SIZE);
    static const size_t one[] = {100};
    struct block_header h;
    unsigned char *p;

    (void)state;
    (void)write_all(b, one, 1, 0);
    h = blocks_header(b, 0);
    p = block_payload(b->block[0]);
    put_le32(p, UINT32_MAX);
    h.raw_sum = h.stored_sum = hash64(p, h.raw_len);
    blocks_set_header(b, 0, &h);
    assert_int_equal(read_all(b, one, 1, NULL), HEDGE_ECORRUPT);
    h.flags = BLOCK_CONTINUES;
    blocks_set_header(b, 0, &h);
    assert_int_equal(read_all(b, one, 1, NULL), HEDGE_ECORRUPT);
    blocks_delete(b);
}

/* Whoever sends a block may number its writer as he likes. */
static void writers_that_cannot_be(void **state)
{
    static const uint32_t writers[] = {SOS_WRITERS_MAX, 0xb0000000u,
                                       UINT32_MAX};
    struct blocks *b = blocks_new(SIZE);
    static const size_t one[] = {100};
    struct block_header h;

    (void)state;
    (void)write_all(b, one, 1, 0);
    h = blocks_header(b, 0);
    for (unsigned i = 0; i < sizeof writers / sizeof writers[0]; i++) {
        h.id.writer = writers[i];
        blocks_set_header(b, 0, &h);
        assert_int_equal(read_all(b, one, 1, NULL), HEDGE_ECORRUPT);
    }
    blocks_delete(b);
}

static int gone_block(struct sink *s, void **block, struct hedge_error *e)
{
    (void)s;
    *block = NULL;
    return error_set(e, HEDGE_EUNAVAILABLE, "the node has gone");
}

/* Whichever call finds that the sink has failed, the writer can say why. */
static void a_failed_sink_says_why(void **state)
{
    static const struct sink_ops ops = {.block = gone_block};
    struct sink sink = {.ops = &ops, .block_size = SIZE};
    struct writer w;

    (void)state;
    writer_init(&w, &sink);
    atomic_store(&sink.failed, HEDGE_EUNAVAILABLE);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(writer_write(&w, "x", 1), HEDGE_EUNAVAILABLE);
        assert_int_equal(w.error.code, HEDGE_EUNAVAILABLE);
        assert_string_equal(w.error.text, "the node has gone");
    }
    writer_drop(&w);
}

static void lost_doubled_and_moved_blocks(void **state)
{
    struct blocks *b = blocks_new(SIZE);
    unsigned n;

    (void)state;
    (void)write_all(b, some, SOME, 3);
    n = b->n;
    assert_true(n > 6);
    for (unsigned i = 0; i < n; i++) {
        unsigned char *block = b->block[i];

        /* Missing. */
        memmove(&b->block[i], &b->block[i + 1], (n - i) * sizeof block);
        b->n = n - 1;
        expect_damage(b);
        memmove(&b->block[i + 1], &b->block[i], (n - i) * sizeof block);
        b->block[i] = block;
        /* Doubled. */
        memmove(&b->block[i + 1], &b->block[i], (n - i) * sizeof block);
        b->n = n + 1;
        expect_damage(b);
        memmove(&b->block[i], &b->block[i + 1], (n - i) * sizeof block);
        b->n = n;
    }
    for (unsigned i = 0; i + 1 < n; i++) {
        unsigned char *block = b->block[i];

        b->block[i] = b->block[i + 1];
        b->block[i + 1] = block;
        expect_damage(b);
        b->block[i + 1] = b->block[i];
        b->block[i] = block;
    }
    assert_int_equal(read_all(b, some, SOME, NULL), HEDGE_EEND);
    blocks_delete(b);
}

/* --- writers that cannot go on --- */

/* Fail the n-th request for a block, or the n-th put: what was accepted before
 * is there, whole, and the manifests of writer, sink and reader agree. */
static void fails_at(bool put, unsigned n)
{
    struct blocks *b = blocks_new(SIZE);
    struct manifest m, seen;
    struct writer w;
    size_t i, whole;
    int rv = 0;

    *(put ? &b->fail_put_at : &b->fail_block_at) = n;
    writer_init(&w, &b->sink);
    for (i = 0; i < SOME && rv == 0; i += rv == 0) {
        rv = writer_write(&w, bytes_of(i), some[i]);
    }
    if (rv != 0) {
        assert_int_equal(rv, HEDGE_EFULL);
        assert_int_equal(writer_write(&w, "", 0), HEDGE_EFULL);
        assert_int_equal(writer_flush(&w), HEDGE_EFULL);
    }
    (void)writer_finish(&w, &m);
    assert_non_null(strstr(w.error.text, "for the test"));
    whole = m.records;
    assert_true(put || whole == i);
    assert_true(whole <= i);
    seen = tally_result(&b->tally);
    assert_true(manifest_equal(&m, &seen));
    assert_int_equal(read_all(b, some, whole, &seen), HEDGE_EEND);
    assert_true(manifest_equal(&m, &seen));
    blocks_delete(b);
}

static void full_sinks(void **state)
{
    struct blocks *b = blocks_new(SIZE);
    unsigned n;

    (void)state;
    (void)write_all(b, some, SOME, 0);
    n = b->n;
    blocks_delete(b);
    for (unsigned i = 1; i <= n; i++) {
        fails_at(false, i);
        fails_at(true, i);
    }
}

static void sink_fails_later(void **state)
{
    struct blocks *b = blocks_new(SIZE);
    struct manifest m;
    struct writer w;

    (void)state;
    writer_init(&w, &b->sink);
    assert_int_equal(writer_write(&w, bytes_of(0), 10), 0);
    atomic_store(&b->sink.failed, HEDGE_EFULL);
    assert_int_equal(writer_write(&w, bytes_of(1), 10), HEDGE_EFULL);
    assert_int_equal(writer_finish(&w, &m), HEDGE_EFULL);
    assert_int_equal(m.records, 1); /* It fitted. */
    assert_int_equal(b->n, 1);
    blocks_delete(b);
    b = blocks_new(SIZE);
    writer_init(&w, &b->sink);
    assert_int_equal(writer_write(&w, bytes_of(0), 10), 0);
    writer_drop(&w);
    blocks_delete(b);
}

static void aborted_store(void **state)
{
    struct blocks *b = blocks_new(SIZE);

    (void)state;
    (void)write_all(b, some, SOME, 0);
    b->state = STORE_ABORTED;
    assert_int_equal(read_all(b, some, SOME, NULL), HEDGE_EABORTED);
    blocks_delete(b);
}

static void reader_without_memory(void **state)
{
    struct blocks *b = blocks_new(SIZE);
    struct reader r;

    (void)state;
    mem_fail_after(0);
    assert_int_equal(reader_init(&r, blocks_source(b)), HEDGE_ENOMEM);
    mem_fail_after(-1);
    assert_true(b->freed);
    blocks_delete(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_at_all),
        cmocka_unit_test(sizes_around_the_edges),
        cmocka_unit_test(room_left_at_the_end),
        cmocka_unit_test(many_empty_records),
        cmocka_unit_test(large_records),
        cmocka_unit_test(any_mixture),
        cmocka_unit_test(too_long_a_record_ends_nothing),
        cmocka_unit_test(flipped_bits),
        cmocka_unit_test(lying_frames),
        cmocka_unit_test(overrunning_record),
        cmocka_unit_test(writers_that_cannot_be),
        cmocka_unit_test(a_failed_sink_says_why),
        cmocka_unit_test(lost_doubled_and_moved_blocks),
        cmocka_unit_test(full_sinks),
        cmocka_unit_test(sink_fails_later),
        cmocka_unit_test(aborted_store),
        cmocka_unit_test(reader_without_memory),
    };

    return cmocka_run_group_tests(tests, set_up_pattern, tear_down_pattern);
}
