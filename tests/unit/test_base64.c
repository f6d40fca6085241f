#include "cluster/foreign/base64.h"

#include "store/base/errors.h"
#include "tests/lib/check.h"

#include <stdlib.h>
#include <string.h>

/* RFC 4648, section 10. */
static const struct {
    const char *plain, *text;
} vectors[] = {{"", ""},
               {"f", "Zg=="},
               {"fo", "Zm8="},
               {"foo", "Zm9v"},
               {"foob", "Zm9vYg=="},
               {"fooba", "Zm9vYmE="},
               {"foobar", "Zm9vYmFy"}};

static void known(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        size_t len = strlen(vectors[i].plain), n = strlen(vectors[i].text);
        struct base64_decoder d;
        unsigned char back[16];
        char out[16];

        assert_int_equal(base64_encode(vectors[i].plain, len, out), n);
        assert_memory_equal(out, vectors[i].text, n);
        base64_init(&d);
        assert_int_equal(base64_decode(&d, vectors[i].text, n, back), len);
        assert_true(base64_is_whole(&d));
        assert_memory_equal(back, vectors[i].plain, len);
    }
}

static void in_pieces(void **state)
{
    unsigned char data[256], back[260];
    char text[BASE64_ENCODED(sizeof data)];

    (void)state;
    for (unsigned i = 0; i < sizeof data; i++) {
        data[i] = (unsigned char)(i * 7);
    }
    for (size_t len = 0; len <= sizeof data; len++) {
        size_t n = base64_encode(data, len, text);

        for (size_t step = 1; step < 9; step++) {
            struct base64_decoder d;
            long at = 0;

            base64_init(&d);
            for (size_t i = 0; i < n; i += step) {
                size_t piece = n - i < step ? n - i : step;
                long got = base64_decode(&d, text + i, piece, back + at);

                assert_true(got >= 0);
                assert_true((size_t)got <= piece / 4 * 3 + 3);
                at += got;
            }
            assert_true(base64_is_whole(&d));
            assert_int_equal(at, len);
            assert_memory_equal(back, data, len);
        }
    }
}

static void refused(void **state)
{
    static const char *const wrong[] = {
        "====", "Z===", "Zg=x", "Zg==Zg==",  "Zg=\n",
        "Zm9-", "Zm9_", " Zm9", "Zh==",      "Zm9=",
        "=",    "Z=",   "Zg=g", "Zm9vYg==x", "\xc3\xa9xy"};
    static const char *const cut[] = {"Z", "Zg", "Zg=", "Zm9", "Zm9vY"};
    unsigned char out[32];
    struct base64_decoder d;

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        base64_init(&d);
        assert_int_equal(base64_decode(&d, wrong[i], strlen(wrong[i]), out),
                         HEDGE_EINVAL);
    }
    base64_init(&d);
    assert_int_equal(base64_decode(&d, "Zm\0v", 4, out), HEDGE_EINVAL);
    for (size_t i = 0; i < sizeof cut / sizeof cut[0]; i++) {
        base64_init(&d);
        assert_true(base64_decode(&d, cut[i], strlen(cut[i]), out) >= 0);
        assert_false(base64_is_whole(&d));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known),
        cmocka_unit_test(in_pieces),
        cmocka_unit_test(refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
