#include "cluster/foreign/line_put.h"

#include "store/base/strbuf.h"
#include "tests/lib/check.h"

#include <string.h>

static int parse(const char *json, size_t len, const char *key,
                 const char *value)
{
    struct hedge_error e = {0};
    struct line_put p;
    int rv = line_put_parse(json, len, &p, &e);

    if (rv == 0) {
        assert_string_equal(p.key, key);
        assert_string_equal(p.value, value);
    } else {
        assert_int_equal(e.code, rv);
        assert_true(e.text[0] != '\0');
    }
    line_put_release(&p);
    return rv;
}

#define PARSE(json, key, value) parse(json, sizeof json - 1, key, value)
#define REFUSED(json) assert_int_equal(PARSE(json, "", ""), HEDGE_EINVAL)

static void good(void **state)
{
    (void)state;
    assert_int_equal(PARSE("{\"key\":\"k\",\"value\":\"v\"}", "k", "v"), 0);
    assert_int_equal(
        PARSE(" { \"value\" : \"v\" , \"timestamp\":\"x\", \"key\":\"k\"}\n",
              "k", "v"),
        0);
    assert_int_equal(PARSE("{\"Key\":\"\",\"VALUE\":\"\"}", "", ""), 0);
    assert_int_equal(
        PARSE("{\"key\":\"\\u00e4\\\\u0000\",\"value\":\"\\n\\\"{[,\"}",
              "\xc3\xa4\\u0000", "\n\"{[,"),
        0);
}

static void wrong(void **state)
{
    (void)state;
    REFUSED("");
    REFUSED("null");
    REFUSED("[]");
    REFUSED("{}");
    REFUSED("\"key\"");
    REFUSED("{\"key\":\"k\"}");
    REFUSED("{\"key\":1,\"value\":\"v\"}");
    REFUSED("{\"key\":\"k\",\"value\":null}");
    REFUSED("{\"key\":\"k\",\"value\":\"v\"");
    REFUSED("{\"key\":\"k\",\"value\":\"v");
    REFUSED("{\"key\":\"k\",\"value\":\"v\\");
    REFUSED("{\"key\":\"k\",\"value\":\"v\"} x");
    REFUSED("{\"key\":\"k\",\"value\":\"a\\u0000b\"}");
    REFUSED("{\"key\":\"k\",\"value\":\"a\0b\"}");
    REFUSED("{\"key\":\"k\",\"value\":\"v\"}\0");
}

static void no_more_than_so_many(void **state)
{
    struct strbuf b;

    (void)state;
    for (unsigned n = 50; n < 80; n++) {
        strbuf_init(&b);
        strbuf_addf(&b, "{\"key\":\"k\",\"value\":\"v\"");
        for (unsigned i = 2; i < n; i++) {
            strbuf_addf(&b, ",\"%u\":1", i);
        }
        strbuf_addf(&b, "}");
        assert_int_equal(parse(b.text, b.len, "k", "v"),
                         n <= LINE_PUT_MEMBERS_MAX ? 0 : HEDGE_EINVAL);
        strbuf_release(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good),
        cmocka_unit_test(wrong),
        cmocka_unit_test(no_more_than_so_many),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
