/* Compression of blocks: what shrinks comes back byte for byte, what does not
 * is left alone, and damage is an error. */
#include "store/codec.h"

#include "store/base/hash.h"
#include "tests/lib/check.h"
#include "tests/lib/records.h"

#include <stdlib.h>
#include <string.h>

#define SIZE BLOCK_SIZE_MIN
#define PAYLOAD (SIZE - BLOCK_HEADER_SIZE)

struct fixture {
    struct codec *codec;
    unsigned char *block, *out, *raw;
    struct block_header h;
};

static void set_up(struct fixture *f, size_t len, unsigned noise)
{
    uint64_t random = 5;

    assert_int_equal(codec_new(&f->codec), 0);
    f->block = malloc(SIZE);
    f->out = malloc(SIZE);
    f->raw = malloc(len);
    for (size_t i = 0; i < len; i++) {
        f->block[BLOCK_HEADER_SIZE + i] =
            (unsigned char)(i % 64 < noise ? random_next(&random) : i / 64);
    }
    f->h = (struct block_header){.id = {1, 2, 3},
                                 .first = BLOCK_FIRST_NONE,
                                 .raw_len = (uint32_t)len,
                                 .stored_len = (uint32_t)len};
    f->h.raw_sum = f->h.stored_sum = hash64(f->block + BLOCK_HEADER_SIZE, len);
    block_header_encode(&f->h, f->block);
}

static void tear_down(struct fixture *f)
{
    codec_free(f->codec);
    free(f->block);
    free(f->out);
    free(f->raw);
}

static void comes_back(void **state)
{
    static const size_t lens[] = {100, 1000, 4096, 20000, PAYLOAD};

    (void)state;
    for (unsigned i = 0; i < sizeof lens / sizeof lens[0]; i++) {
        for (int level = 1; level <= 9; level += 4) {
            struct fixture f;
            struct block_header back;

            set_up(&f, lens[i], 1);
            assert_int_equal(codec_encode(f.codec, level, f.block, &f.h, f.out),
                             1);
            assert_true(f.h.stored_len <= lens[i] - lens[i] / 8);
            assert_int_equal(f.h.codec, BLOCK_ZSTD);
            assert_int_equal(
                block_header_decode(f.out, SIZE, SIZE, &back, NULL), 0);
            assert_int_equal(back.stored_sum, f.h.stored_sum);
            assert_int_equal(back.raw_len, lens[i]);
            assert_int_equal(
                block_check_stored(&back, block_payload(f.out), NULL), 0);
            assert_int_equal(
                codec_decode(f.codec, &back, block_payload(f.out), f.raw, NULL),
                0);
            assert_memory_equal(f.raw, f.block + BLOCK_HEADER_SIZE, lens[i]);
            tear_down(&f);
        }
    }
}

static void what_does_not_shrink_stays(void **state)
{
    static const size_t lens[] = {1, 3, 100, 4096, PAYLOAD};

    (void)state;
    for (unsigned i = 0; i < sizeof lens / sizeof lens[0]; i++) {
        struct fixture f;
        struct block_header before;

        set_up(&f, lens[i], 64);
        before = f.h;
        assert_int_equal(codec_encode(f.codec, 1, f.block, &f.h, f.out), 0);
        assert_memory_equal(&before, &f.h, sizeof before);
        assert_false(codec_sample_shrinks(f.codec, f.block + BLOCK_HEADER_SIZE,
                                          lens[i]));
        assert_int_equal(codec_decode(f.codec, &f.h,
                                      f.block + BLOCK_HEADER_SIZE, f.raw, NULL),
                         0);
        assert_memory_equal(f.raw, f.block + BLOCK_HEADER_SIZE, lens[i]);
        tear_down(&f);
    }
}

static void sample_tells(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, PAYLOAD, 1);
    assert_true(
        codec_sample_shrinks(f.codec, f.block + BLOCK_HEADER_SIZE, PAYLOAD));
    assert_false(codec_sample_shrinks(f.codec, f.block, 3));
    assert_false(codec_sample_shrinks(f.codec, f.block, 0));
    tear_down(&f);
}

/* A damaged block either does not decode or fails its raw_sum. */
static void damage_is_an_error(void **state)
{
    struct fixture f;
    unsigned char *p;

    (void)state;
    set_up(&f, 20000, 8);
    assert_int_equal(codec_encode(f.codec, 1, f.block, &f.h, f.out), 1);
    p = block_payload(f.out);
    for (size_t i = 0; i < f.h.stored_len; i += 7) {
        int rv;

        p[i] ^= 0x20;
        assert_int_equal(block_check_stored(&f.h, p, NULL), HEDGE_ECORRUPT);
        rv = codec_decode(f.codec, &f.h, p, f.raw, NULL);
        rv = rv != 0 ? rv : block_check_raw(&f.h, f.raw, NULL);
        /* zstd has bits without meaning: then the bytes are the same. */
        assert_true(rv == HEDGE_ECORRUPT ||
                    memcmp(f.raw, f.block + BLOCK_HEADER_SIZE, 20000) == 0);
        p[i] ^= 0x20;
    }
    f.h.raw_len--;
    assert_int_equal(codec_decode(f.codec, &f.h, p, f.raw, NULL),
                     HEDGE_ECORRUPT);
    f.h.raw_len += 2;
    f.raw = realloc(f.raw, f.h.raw_len);
    assert_int_equal(codec_decode(f.codec, &f.h, p, f.raw, NULL),
                     HEDGE_ECORRUPT);
    f.h.raw_len--;
    f.h.stored_len--;
    assert_int_equal(codec_decode(f.codec, &f.h, p, f.raw, NULL),
                     HEDGE_ECORRUPT);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_back),
        cmocka_unit_test(what_does_not_shrink_stays),
        cmocka_unit_test(sample_tells),
        cmocka_unit_test(damage_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
