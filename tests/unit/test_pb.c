#include "cluster/pb.h"
#include "proto/locks.pb-c.h"

#include "tests/lib/check.h"

#include <string.h>

/* A LockQuery { name: text }. */
static void *query(const char *text, size_t len)
{
    unsigned char m[80] = {0x0a, (unsigned char)len};

    memcpy(m + 2, text, len);
    return pb_unpack(&hedge__v1__lock_query__descriptor, m, len + 2);
}

/* One within another: LockRequest { session { holder: text } }. */
static void *request(const char *text, size_t len)
{
    unsigned char m[80] = {0x0a, (unsigned char)(len + 2), 0x1a,
                           (unsigned char)len};

    memcpy(m + 4, text, len);
    return pb_unpack(&hedge__v1__lock_request__descriptor, m, len + 4);
}

static void strings_are_text(void **state)
{
    static const char *const good[] = {"", "a", "Gr\xc3\xbc\xc3\x9f",
                                       "\xf0\x9f\xa6\x94", "a\tb\x7f"};

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        Hedge__V1__LockQuery *q = query(good[i], strlen(good[i]));
        Hedge__V1__LockRequest *r = request(good[i], strlen(good[i]));

        assert_non_null(q);
        assert_string_equal(q->name, good[i]);
        assert_non_null(r);
        assert_string_equal(r->session->holder, good[i]);
        pb_free(q);
        pb_free(r);
    }
}

#define TEXT(s)            \
    {                      \
        (s), sizeof(s) - 1 \
    }

static void what_is_no_text_is_no_message(void **state)
{
    static const struct {
        const char *text;
        size_t len;
    } bad[] = {
        TEXT("\0"),       TEXT("a\0b"),         TEXT("a\0"),
        TEXT("\xff"),     TEXT("\xc0\x80"),     TEXT("\xed\xa0\x80"),
        TEXT("ab\xc3"),   TEXT("\xf5\x80\x80"), TEXT("\xe0\x80\x80"),
        TEXT("\x80good"),
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_null(query(bad[i].text, bad[i].len));
        assert_null(request(bad[i].text, bad[i].len));
    }
}

/* What protobuf-c would read on behind, and this check would not: LockQuery
 * with an unknown varint of ten bytes whose last one is too large, and with a
 * field of number 0, each before a name that is no text. */
static void no_text_hides_behind_another_field(void **state)
{
    static const unsigned char varint[] = {0xf8, 0x01, 0xff, 0xff, 0xff,
                                           0xff, 0xff, 0xff, 0xff, 0xff,
                                           0xff, 0x7f, 0x0a, 1,    0xff};
    static const unsigned char zero[] = {0x80, 0, 0, 0x0a, 1, 0xff};

    (void)state;
    assert_null(
        pb_unpack(&hedge__v1__lock_query__descriptor, varint, sizeof varint));
    assert_null(
        pb_unpack(&hedge__v1__lock_query__descriptor, zero, sizeof zero));
}

/* Bytes are bytes. */
static void other_fields_are_not_looked_at(void **state)
{
    static const unsigned char m[] = {0x7a, 4, 0, 0xff, 0xc0, 0};
    Hedge__V1__Block *b = pb_unpack(&hedge__v1__block__descriptor, m, sizeof m);

    (void)state;
    assert_non_null(b);
    assert_int_equal(b->block.len, 4);
    pb_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_text),
        cmocka_unit_test(what_is_no_text_is_no_message),
        cmocka_unit_test(no_text_hides_behind_another_field),
        cmocka_unit_test(other_fields_are_not_looked_at),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
