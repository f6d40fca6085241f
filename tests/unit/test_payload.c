#include "cluster/messages/payload.h"

#include "store/base/mem.h"
#include "tests/lib/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARSE(bytes, p) payload_parse(bytes, sizeof bytes - 1, p)

static void fields(void **state)
{
    struct payload p;

    (void)state;
    assert_int_equal(PARSE("", &p), 0);
    assert_int_equal(p.len + p.n_meta, 0);
    /* meta {"name": "x", "n": ""}, data "hello", an unknown field. */
    assert_int_equal(PARSE("\x0a\x09\x0a\x04name\x12\x01x\x0a\x05\x0a\x01n\x12"
                           "\x00\x12\x05hello\x18\x07",
                           &p),
                     0);
    assert_int_equal(p.n_meta, 2);
    assert_string_equal(payload_get(&p, "name"), "x");
    assert_string_equal(payload_get(&p, "n"), "");
    assert_null(payload_get(&p, "nam"));
    assert_int_equal(p.len, 5);
    assert_memory_equal(p.data, "hello", 5);
    /* An entry may lack both. The last of two counts. */
    assert_int_equal(PARSE("\x0a\x00\x0a\x02\x12\x00", &p), 0);
    assert_string_equal(payload_get(&p, ""), "");
    assert_int_equal(PARSE("\x0a\x06\x0a\x01k\x12\x01"
                           "a\x0a\x06\x0a\x01k\x12\x01"
                           "b",
                           &p),
                     0);
    assert_string_equal(payload_get(&p, "k"), "b");
}

static void refused(void **state)
{
    struct payload p;
    char many[2 * (PAYLOAD_META_MAX + 1)];
    char *large = calloc(1, PAYLOAD_TEXT_MAX + 16);

    (void)state;
    assert_int_equal(PARSE("\xff", &p), HEDGE_EPROTO);
    assert_int_equal(PARSE("\x12\x05hell", &p), HEDGE_EPROTO);
    assert_int_equal(PARSE("\x0a\x03\x0a\x05k", &p), HEDGE_EPROTO);
    assert_int_equal(PARSE("\x0a\x05\x0a\x03k\0k", &p), HEDGE_EPROTO);
    assert_int_equal(PARSE("\x0a\x05\x12\x03v\xffv", &p), HEDGE_EPROTO);
    for (size_t i = 0; i < sizeof many; i += 2) {
        many[i] = '\x0a';
        many[i + 1] = 0;
    }
    assert_int_equal(payload_parse(many, sizeof many, &p), HEDGE_ETOOBIG);
    assert_int_equal(payload_parse(many, sizeof many - 2, &p), 0);
    assert_non_null(large);
    memset(large, 'x', PAYLOAD_TEXT_MAX + 16);
    memcpy(large, "\x0a\x83\x20\x0a\x80\x20", 6); /* A key of 4096 bytes. */
    assert_int_equal(payload_parse(large, 6 + 4096, &p), HEDGE_ETOOBIG);
    free(large);
}

static void there_and_back(void **state)
{
    const struct hedge_meta meta[] = {{"name", "x"}, {"", ""}, {"k", "v"}};
    struct hedge_message m = {.data = "", .meta = meta};
    static char data[70000];
    struct payload p;

    (void)state;
    memset(data, 'd', sizeof data);
    for (size_t n = 0; n <= 3; n++) {
        for (size_t len = 0; len < sizeof data; len = len * 3 + 1) {
            unsigned char *bytes;
            size_t size;

            m.n_meta = n;
            m.data = data;
            m.len = len;
            assert_int_equal(payload_pack(&m, &bytes, &size), 0);
            assert_int_equal(payload_parse(bytes, size, &p), 0);
            assert_int_equal(p.n_meta, n);
            assert_int_equal(p.len, len);
            assert_memory_equal(p.data, data, len);
            for (size_t i = 0; i < n; i++) {
                assert_string_equal(p.meta[i].key, meta[i].key);
                assert_string_equal(p.meta[i].value, meta[i].value);
            }
            mem_free(bytes);
        }
    }
}

static void not_packed(void **state)
{
    struct hedge_message m = {.data = "", .len = (size_t)9 << 20};
    unsigned char *bytes;
    size_t size;

    (void)state;
    assert_int_equal(payload_pack(&m, &bytes, &size), HEDGE_ETOOBIG);
    assert_null(bytes);
    m.len = 0;
    mem_fail_after(0);
    assert_int_equal(payload_pack(&m, &bytes, &size), HEDGE_ENOMEM);
    mem_fail_after(-1);
    assert_null(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields),
        cmocka_unit_test(refused),
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(not_packed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
