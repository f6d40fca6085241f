#include "server/http_parse.h"

#include "store/base/errors.h"
#include "tests/lib/check.h"

#include <stdlib.h>
#include <string.h>

static void check_pair(const char *body, const char *key, const char *value)
{
    struct http_pair p;

    assert_true(http_split_pair(body, strlen(body), &p));
    assert_int_equal(p.key_len, strlen(key));
    assert_memory_equal(p.key, key, p.key_len);
    assert_int_equal(p.value_len, strlen(value));
    assert_memory_equal(p.value, value, p.value_len);
}

static void pairs(void **state)
{
    struct http_pair p;

    (void)state;
    check_pair("k v", "k", "v");
    check_pair("key a value\nof two lines", "key", "a value\nof two lines");
    check_pair("k ", "k", "");
    check_pair("k  v", "k", " v");
    assert_false(http_split_pair("", 0, &p));
    assert_false(http_split_pair("k", 1, &p));
    assert_false(http_split_pair(" v", 2, &p));
    assert_true(http_split_pair("a\0b c\0d", 7, &p));
    assert_int_equal(p.key_len, 3);
    assert_int_equal(p.value_len, 3);
}

struct lines {
    struct strbuf text; /* Each in brackets. */
    int fail_at, n;
};

static int take(void *ctx, const char *line, size_t len)
{
    struct lines *l = ctx;

    if (l->fail_at == ++l->n) {
        return HEDGE_EFULL;
    }
    strbuf_add(&l->text, "[", 1);
    strbuf_add(&l->text, line, len);
    strbuf_add(&l->text, "]", 1);
    return 0;
}

static void cut(const char *body, size_t max, const char *wanted)
{
    for (size_t step = 1; step <= strlen(body) + 1; step++) {
        struct lines l = {.n = 0};
        struct http_cutter c;

        strbuf_init(&l.text);
        http_cutter_init(&c, max, take, &l);
        for (size_t at = 0; at < strlen(body); at += step) {
            size_t n = strlen(body) - at;

            n = n < step ? n : step;
            assert_int_equal(http_cutter_feed(&c, body + at, n), 0);
        }
        assert_int_equal(http_cutter_end(&c), 0);
        assert_string_equal(l.text.len > 0 ? l.text.text : "", wanted);
        http_cutter_release(&c);
        strbuf_release(&l.text);
    }
}

static void lines_of_a_body(void **state)
{
    (void)state;
    cut("", 10, "");
    cut("one", 10, "[one]");
    cut("one\n", 10, "[one\n]");
    cut("one\ntwo\n\nx", 10, "[one\n][two\n][\n][x]");
    cut("abcdefgh\n", 3, "[abc][def][gh\n]");
    cut("abc\nd", 3, "[abc][\n][d]");
    cut("ab\nd", 3, "[ab\n][d]");
    cut("\n\n", 1, "[\n][\n]");
}

static void a_line_that_is_not_taken(void **state)
{
    struct lines l = {.fail_at = 2};
    struct http_cutter c;

    (void)state;
    strbuf_init(&l.text);
    http_cutter_init(&c, 8, take, &l);
    assert_int_equal(http_cutter_feed(&c, "a\nb\nc\n", 6), HEDGE_EFULL);
    assert_int_equal(l.n, 2);
    http_cutter_release(&c);
    strbuf_release(&l.text);
}

static void escaped(void **state)
{
    struct strbuf b;

    (void)state;
    strbuf_init(&b);
    http_add_escaped(&b, "", 0);
    http_add_escaped(&b, "a\nb\r\nc\\", 7);
    http_add_escaped(&b, "\n", 1);
    assert_string_equal(b.text, "a\\nb\\r\\nc\\\\n");
    strbuf_release(&b);
}

static void among(void **state)
{
    (void)state;
    assert_true(http_is_among("a,b", "b"));
    assert_true(http_is_among("a", "a"));
    assert_false(http_is_among("ab", "a"));
    assert_false(http_is_among("", "a"));
    assert_false(http_is_among(NULL, "a"));
    assert_false(http_is_among(",,", "a"));
}

static void statuses(void **state)
{
    (void)state;
#define X(name, value, text) \
    assert_in_range(http_status_of(HEDGE_##name), 400, 599);
    HEDGE_ERROR_MAP(X)
#undef X
    assert_int_equal(http_status_of(HEDGE_ENOTFOUND), 404);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pairs),
        cmocka_unit_test(lines_of_a_body),
        cmocka_unit_test(a_line_that_is_not_taken),
        cmocka_unit_test(escaped),
        cmocka_unit_test(among),
        cmocka_unit_test(statuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
