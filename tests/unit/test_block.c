/* Blocks: the header's 64 bytes, the frames, the digest. */
#include "store/block.h"

#include "store/base/bytes.h"
#include "store/base/hash.h"
#include "tests/lib/check.h"

#include <string.h>

#define SIZE BLOCK_SIZE_MIN

static struct block_header example(void)
{
    return (struct block_header){.id = {.generation = 0x0102030405060708u,
                                        .sequence = 0x1112131415161718u,
                                        .writer = 0x21222324u},
                                 .raw_sum = 0x3132333435363738u,
                                 .stored_sum = 0x4142434445464748u,
                                 .records = 3,
                                 .first = 5,
                                 .raw_len = 100,
                                 .stored_len = 60,
                                 .flags = BLOCK_CONTINUES,
                                 .codec = BLOCK_ZSTD};
}

/* Other programs rely on where each field stands. */
static void layout_is_fixed(void **state)
{
    struct block_header h = example();
    unsigned char p[BLOCK_HEADER_SIZE];

    (void)state;
    block_header_encode(&h, p);
    assert_memory_equal(p, "HBLK", 4);
    assert_int_equal(p[4], 1);
    assert_int_equal(p[5], BLOCK_ZSTD);
    assert_int_equal(get_le16(p + 6), BLOCK_CONTINUES);
    assert_int_equal(get_le64(p + 8), h.id.generation);
    assert_int_equal(get_le64(p + 16), h.id.sequence);
    assert_int_equal(get_le32(p + 24), h.id.writer);
    assert_int_equal(get_le32(p + 28), 3);
    assert_int_equal(get_le32(p + 32), 5);
    assert_int_equal(get_le32(p + 36), 100);
    assert_int_equal(get_le32(p + 40), 60);
    assert_int_equal(get_le64(p + 44), h.raw_sum);
    assert_int_equal(get_le64(p + 52), h.stored_sum);
    assert_int_equal(get_le32(p + 60), hash32(p, 60));
}

static void header_comes_back(void **state)
{
    struct block_header h = example(), back;
    unsigned char p[BLOCK_HEADER_SIZE];

    (void)state;
    block_header_encode(&h, p);
    assert_int_equal(block_header_decode(p, sizeof p, SIZE, &back, NULL), 0);
    assert_true(block_id_equal(&h.id, &back.id));
    assert_int_equal(back.raw_sum, h.raw_sum);
    assert_int_equal(back.stored_sum, h.stored_sum);
    assert_int_equal(back.records, 3);
    assert_int_equal(back.first, 5);
    assert_int_equal(back.raw_len, 100);
    assert_int_equal(back.stored_len, 60);
    assert_int_equal(back.flags, BLOCK_CONTINUES);
    assert_int_equal(back.codec, BLOCK_ZSTD);
}

static void every_flipped_header_bit_is_seen(void **state)
{
    struct block_header h = example(), back;
    unsigned char p[BLOCK_HEADER_SIZE];

    (void)state;
    block_header_encode(&h, p);
    for (unsigned i = 0; i < 8 * sizeof p; i++) {
        p[i / 8] ^= (unsigned char)(1u << i % 8);
        assert_int_equal(block_header_decode(p, sizeof p, SIZE, &back, NULL),
                         HEDGE_ECORRUPT);
        p[i / 8] ^= (unsigned char)(1u << i % 8);
    }
    for (size_t len = 0; len < sizeof p; len++) {
        assert_int_equal(block_header_decode(p, len, SIZE, &back, NULL),
                         HEDGE_ECORRUPT);
    }
}

static int decode_changed(unsigned at, const void *bytes, size_t len)
{
    struct block_header h = example(), back;
    unsigned char p[BLOCK_HEADER_SIZE];
    struct hedge_error e = {0};
    int rv;

    block_header_encode(&h, p);
    memcpy(p + at, bytes, len);
    put_le32(p + 60, hash32(p, 60)); /* As somebody else's program would. */
    rv = block_header_decode(p, sizeof p, SIZE, &back, &e);
    assert_true(rv == 0 || e.text[0] != '\0');
    return rv;
}

static int decode_with(unsigned at, uint32_t value)
{
    unsigned char word[4];

    put_le32(word, value);
    return decode_changed(at, word, sizeof word);
}

static void refuses_numbers_without_sense(void **state)
{
    const uint32_t max = (uint32_t)(SIZE - BLOCK_HEADER_SIZE);

    (void)state;
    assert_int_equal(decode_changed(4, "\2", 1), HEDGE_EVERSION);
    assert_int_equal(decode_changed(5, "\2", 1), HEDGE_EVERSION);
    assert_int_equal(decode_changed(6, "\2", 1), HEDGE_EVERSION);
    assert_int_equal(decode_with(36, 0), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(36, max), 0);
    assert_int_equal(decode_with(36, max + 1), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(40, 0), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(40, max + 1), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(40, UINT32_MAX), HEDGE_ECORRUPT);
    /* Three records from offset 5 on need 12 bytes of frames. */
    assert_int_equal(decode_with(36, 17), 0);
    assert_int_equal(decode_with(36, 16), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(28, UINT32_MAX), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(28, 0x40000000), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(28, 0), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(32, BLOCK_FIRST_NONE), HEDGE_ECORRUPT);
    assert_int_equal(decode_with(32, 89), HEDGE_ECORRUPT);
    /* Raw, but other sums and lengths than stored. */
    assert_int_equal(decode_changed(5, "\0", 1), HEDGE_ECORRUPT);
}

static void expects_what_was_asked_for(void **state)
{
    struct block_header h = example();
    struct block_id id = h.id;
    struct hedge_error e;

    (void)state;
    assert_int_equal(block_header_expect(&h, &id, &e), 0);
    id.generation++;
    assert_int_equal(block_header_expect(&h, &id, &e), HEDGE_ECORRUPT);
    id = h.id;
    id.sequence++;
    assert_int_equal(block_header_expect(&h, &id, &e), HEDGE_ECORRUPT);
    id = h.id;
    id.writer++;
    assert_int_equal(block_header_expect(&h, &id, &e), HEDGE_ECORRUPT);
}

/* Three records "a", "", "bc" after 2 bytes of an earlier one. */
static const unsigned char frames[] = {9, 9, 1, 0, 0, 0, 'a', 0,  0,
                                       0, 0, 2, 0, 0, 0, 'b', 'c'};

static int check(uint32_t first, uint32_t records, uint32_t len, bool continues)
{
    struct block_header h = {.first = first,
                             .records = records,
                             .raw_len = len,
                             .stored_len = len,
                             .flags = continues ? BLOCK_CONTINUES : 0};
    unsigned char copy[sizeof frames];

    /* At the end of its allocation, so that a sanitizer sees an overrun. */
    memcpy(copy + sizeof copy - len, frames, len);
    return block_check_frames(&h, copy + sizeof copy - len, NULL);
}

static void frames_must_fill_the_block(void **state)
{
    (void)state;
    assert_int_equal(check(2, 3, 17, false), 0);
    assert_int_equal(check(2, 3, 17, true), HEDGE_ECORRUPT);
    assert_int_equal(check(2, 3, 16, true), 0);
    assert_int_equal(check(2, 3, 15, true), 0);
    assert_int_equal(check(2, 3, 16, false), HEDGE_ECORRUPT);
    assert_int_equal(check(2, 3, 14, true), HEDGE_ECORRUPT);
    assert_int_equal(check(2, 2, 17, false), HEDGE_ECORRUPT);
    assert_int_equal(check(2, 2, 11, false), 0);
    assert_int_equal(check(2, 4, 17, false), HEDGE_ECORRUPT);
    assert_int_equal(check(3, 3, 17, false), HEDGE_ECORRUPT);
    assert_int_equal(check(BLOCK_FIRST_NONE, 0, 2, false), 0);
    assert_int_equal(check(BLOCK_FIRST_NONE, 0, 2, true), 0);
}

static void payload_bits_are_seen(void **state)
{
    struct block_header h = {.raw_len = sizeof frames,
                             .stored_len = sizeof frames};
    unsigned char p[sizeof frames];

    (void)state;
    memcpy(p, frames, sizeof p);
    h.raw_sum = h.stored_sum = hash64(p, sizeof p);
    assert_int_equal(block_check_stored(&h, p, NULL), 0);
    assert_int_equal(block_check_raw(&h, p, NULL), 0);
    for (unsigned i = 0; i < 8 * sizeof p; i++) {
        p[i / 8] ^= (unsigned char)(1u << i % 8);
        assert_int_equal(block_check_stored(&h, p, NULL), HEDGE_ECORRUPT);
        assert_int_equal(block_check_raw(&h, p, NULL), HEDGE_ECORRUPT);
        p[i / 8] ^= (unsigned char)(1u << i % 8);
    }
}

static void digest_sees_everything_but_order(void **state)
{
    struct block_digest a = {0}, b = {0}, c = {0}, twice = {0};

    (void)state;
    block_digest_add(&a, 1, 2, 3);
    block_digest_add(&a, 4, 5, 6);
    block_digest_add(&b, 4, 5, 6);
    block_digest_add(&c, 1, 2, 3);
    block_digest_merge(&b, &c);
    assert_memory_equal(&a, &b, sizeof a);
    block_digest_merge(&twice, &c);
    block_digest_merge(&twice, &c);
    assert_memory_not_equal(&twice, &c, sizeof c);
    memset(&b, 0, sizeof b);
    block_digest_add(&b, 2, 1, 3);
    assert_memory_not_equal(&b, &c, sizeof b);
    memset(&b, 0, sizeof b);
    block_digest_add(&b, 1, 2, 4);
    assert_memory_not_equal(&b, &c, sizeof b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_is_fixed),
        cmocka_unit_test(header_comes_back),
        cmocka_unit_test(every_flipped_header_bit_is_seen),
        cmocka_unit_test(refuses_numbers_without_sense),
        cmocka_unit_test(expects_what_was_asked_for),
        cmocka_unit_test(frames_must_fill_the_block),
        cmocka_unit_test(payload_bits_are_seen),
        cmocka_unit_test(digest_sees_everything_but_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
