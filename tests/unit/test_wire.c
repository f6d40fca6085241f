#include "cluster/rpc/rpc_internal.h"
#include "cluster/rpc/wire.h"
#include "store/base/mem.h"

#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

struct split {
    struct rpc_msg msg;
    unsigned char *head;
    size_t head_len, body_len;
    bool has_body;
    struct hedge_error e;
};

static int split(struct split *s, const void *data, size_t len, size_t slices)
{
    int rv;

    memset(s, 0, sizeof *s);
    assert_int_equal(rpc_msg_from_bytes(data, len, slices, &s->msg), 0);
    rv = wire_split(&s->msg, &s->head, &s->head_len, &s->has_body, &s->body_len,
                    &s->e);
    if (rv != 0) {
        assert_null(s->head);
        assert_int_equal(s->e.code, rv);
        assert_true(s->e.text[0] != '\0');
    } else {
        assert_non_null(s->head);
    }
    return rv;
}

static void split_end(struct split *s)
{
    mem_free(s->head);
    rpc_msg_release(&s->msg);
}

static void assert_refused(const void *data, size_t len, const char *text)
{
    struct split s;

    for (size_t slices = 1; slices <= len + 1; slices++) {
        assert_int_equal(split(&s, data, len, slices), HEDGE_EPROTO);
        assert_non_null(strstr(s.e.text, text));
        split_end(&s);
    }
}

/* field 1 varint 300, field 2 bytes "abc", field 3 fixed64, field 4 fixed32 */
#define FIELDS                                    \
    "\x08\xac\x02\x12\x03"                        \
    "abc\x19\x01\x02\x03\x04\x05\x06\x07\x08\x25" \
    "\x01\x02\x03\x04"
#define FIELDS_LEN (sizeof FIELDS - 1)

static void test_no_body(void **state)
{
    struct split s;

    (void)state;
    assert_int_equal(split(&s, "", 0, 1), 0);
    assert_false(s.has_body);
    assert_int_equal(s.head_len, 0);
    split_end(&s);
    for (size_t slices = 1; slices < 30; slices++) {
        assert_int_equal(split(&s, FIELDS, FIELDS_LEN, slices), 0);
        assert_false(s.has_body);
        assert_int_equal(s.head_len, FIELDS_LEN);
        assert_memory_equal(s.head, FIELDS, FIELDS_LEN);
        split_end(&s);
    }
}

static void test_body(void **state)
{
    static const size_t sizes[] = {0, 1, 127, 128, 16383, 16384, 1 << 20};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t len = FIELDS_LEN + WIRE_TAG_MAX + sizes[i];
        unsigned char *m = malloc(len), *body = malloc(sizes[i] + 1);
        unsigned char tag[WIRE_TAG_MAX];
        size_t tag_len = wire_body_tag(sizes[i], tag);
        struct split s;
        memset(body, 'B', sizes[i] + 1);
        memcpy(m, FIELDS, FIELDS_LEN);
        memcpy(m + FIELDS_LEN, tag, tag_len);
        memcpy(m + FIELDS_LEN + tag_len, body, sizes[i]);
        len = FIELDS_LEN + tag_len + sizes[i];
        for (size_t slices = 1; slices < 40; slices += 7) {
            assert_int_equal(split(&s, m, len, slices), 0);
            assert_true(s.has_body);
            assert_int_equal(s.body_len, sizes[i]);
            assert_int_equal(rpc_msg_left(&s.msg), sizes[i]);
            assert_int_equal(s.head_len, FIELDS_LEN);
            assert_memory_equal(s.head, FIELDS, FIELDS_LEN);
            memset(m + FIELDS_LEN + tag_len, 0, sizes[i]);
            rpc_msg_read(&s.msg, m + FIELDS_LEN + tag_len, sizes[i]);
            assert_memory_equal(m + FIELDS_LEN + tag_len, body, sizes[i]);
            split_end(&s);
        }
        free(m);
        free(body);
    }
}

static void test_refused(void **state)
{
    static const unsigned char overlong[] = {0x08, 0x80, 0x80, 0x80, 0x80, 0x80,
                                             0x80, 0x80, 0x80, 0x80, 0x02};

    (void)state;
    assert_refused("\x7a\x01"
                   "b\x08\x01",
                   5, "after its body");
    assert_refused("\x7a\x01"
                   "b\x7a\x01"
                   "c",
                   6, "twice");
    assert_refused("\x7a\x05"
                   "b",
                   3, "longer than the message");
    assert_refused("\x7a\x80", 2, "cut");
    assert_refused("\x7a", 1, "cut");
    assert_refused("\x78\x01", 2, "not bytes");
    assert_refused("\x12\x05"
                   "b",
                   3, "longer than the message");
    assert_refused("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11,
                   "longer than the message");
    assert_refused("\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11,
                   "longer than the message");
    assert_refused("\x19\x01\x02", 3, "longer than the message");
    assert_refused("\x08", 1, "cut");
    assert_refused("\x0b\x0c", 2, "wire type");
    assert_refused("\x02\x01", 2, "out of range");
    assert_refused("\xff\xff\xff\xff\xff\x01\x01", 7, "out of range");
    assert_refused(overlong, sizeof overlong, "too long");
}

static void test_head_limit(void **state)
{
    size_t len = WIRE_HEAD_MAX + 16;
    unsigned char *m = calloc(1, len);
    struct split s;

    (void)state;
    /* 0x12, a length of three bytes, the rest: exactly at the limit. */
    m[0] = 0x12;
    m[1] = (unsigned char)(((WIRE_HEAD_MAX - 4) & 0x7f) | 0x80);
    m[2] = (unsigned char)(((WIRE_HEAD_MAX - 4) >> 7 & 0x7f) | 0x80);
    m[3] = (unsigned char)((WIRE_HEAD_MAX - 4) >> 14);
    assert_int_equal(split(&s, m, WIRE_HEAD_MAX, 3), 0);
    assert_int_equal(s.head_len, WIRE_HEAD_MAX);
    split_end(&s);
    m[WIRE_HEAD_MAX] = 0x08;
    assert_int_equal(split(&s, m, WIRE_HEAD_MAX + 2, 3), HEDGE_EPROTO);
    assert_non_null(strstr(s.e.text, "65536"));
    split_end(&s);
    free(m);
}

static void test_no_memory(void **state)
{
    static unsigned char big[5000] = {0x12, 0x80, 0x20};
    struct split s;
    int rv = HEDGE_ENOMEM;

    (void)state;
    for (long n = 0; rv != 0; n++) {
        assert_true(n < 10);
        memset(&s, 0, sizeof s);
        assert_int_equal(rpc_msg_from_bytes(big, 3 + 4096, 1, &s.msg), 0);
        mem_fail_after(n);
        rv = wire_split(&s.msg, &s.head, &s.head_len, &s.has_body, &s.body_len,
                        &s.e);
        mem_fail_after(-1);
        assert_true(rv == 0 || (rv == HEDGE_ENOMEM && s.head == NULL));
        split_end(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_body),   cmocka_unit_test(test_body),
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_head_limit),
        cmocka_unit_test(test_no_memory),
    };
    int rc;

    (void)rpc_init();
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    rpc_shutdown();
    return rc;
}
