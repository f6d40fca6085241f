#include "cluster/fields.h"

#include "store/base/errors.h"
#include "tests/lib/check.h"

#include <string.h>

/* 1: varint 300; 2: "abc"; 3: fixed64; 4: fixed32; 5: "". */
static const char message[] = "\x08\xac\x02\x12\x03"
                              "abc\x19\x01\x02\x03\x04\x05\x06\x07\x08\x25"
                              "\x01\x02\x03\x04\x2a\x00";

static void every_type(void **state)
{
    struct fields f = fields_of(message, sizeof message - 1);
    struct field x;

    (void)state;
    assert_int_equal(fields_next(&f, &x), 0);
    assert_int_equal(x.number, 1);
    assert_int_equal(x.value, 300);
    assert_false(field_is(&x, 1));
    assert_int_equal(fields_next(&f, &x), 0);
    assert_true(field_is(&x, 2));
    assert_int_equal(x.len, 3);
    assert_memory_equal(x.data, "abc", 3);
    assert_int_equal(fields_next(&f, &x), 0);
    assert_int_equal(x.type, FIELD_64);
    assert_int_equal(fields_next(&f, &x), 0);
    assert_int_equal(x.type, FIELD_32);
    assert_int_equal(fields_next(&f, &x), 0);
    assert_true(field_is(&x, 5));
    assert_int_equal(x.len, 0);
    assert_int_equal(fields_next(&f, &x), HEDGE_EEND);
    assert_int_equal(fields_next(&f, &x), HEDGE_EEND);
    f = fields_of(NULL, 0);
    assert_int_equal(fields_next(&f, &x), HEDGE_EEND);
}

static int walk(const char *data, size_t len)
{
    struct fields f = fields_of(data, len);
    struct field x;
    int rv;

    do {
        rv = fields_next(&f, &x);
    } while (rv == 0);
    return rv;
}

static void cut_anywhere(void **state)
{
    size_t whole[] = {0, 3, 8, 17, 22, 24};

    (void)state;
    for (size_t len = 0; len < sizeof message; len++) {
        int wanted = HEDGE_EPROTO;

        for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++) {
            wanted = whole[i] == len ? HEDGE_EEND : wanted;
        }
        assert_int_equal(walk(message, len), wanted);
    }
}

static void malformed(void **state)
{
    (void)state;
    assert_int_equal(walk("\x00", 1), HEDGE_EPROTO);     /* Field 0. */
    assert_int_equal(walk("\x0b\x0c", 2), HEDGE_EPROTO); /* A group. */
    assert_int_equal(walk("\x0f", 1), HEDGE_EPROTO);
    /* A number and a length of more than 64 bits. */
    assert_int_equal(walk("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11),
                     HEDGE_EPROTO);
    assert_int_equal(walk("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11),
                     HEDGE_EEND);
    assert_int_equal(walk("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11),
                     HEDGE_EPROTO);
}

static void heads(void **state)
{
    const struct {
        uint32_t number;
        size_t len;
    } table[] = {{1, 0}, {2, 127}, {15, 128}, {16, 1 << 20}, {0x1fffffff, 3}};

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        unsigned char bytes[FIELD_HEAD_MAX + 3] = {0};
        size_t n = field_head(table[i].number, table[i].len, bytes);
        struct fields f = fields_of(bytes, n + 3);
        struct field x;
        int rv = fields_next(&f, &x);

        assert_true(n <= FIELD_HEAD_MAX);
        if (table[i].len <= 3) {
            assert_int_equal(rv, 0);
            assert_true(field_is(&x, table[i].number));
            assert_int_equal(x.len, table[i].len);
        } else {
            assert_int_equal(rv, HEDGE_EPROTO); /* Its bytes are not there. */
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type),
        cmocka_unit_test(cut_anywhere),
        cmocka_unit_test(malformed),
        cmocka_unit_test(heads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
