#include "cluster/foreign/lines.h"

#include "store/base/errors.h"
#include "store/base/strbuf.h"
#include "tests/lib/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fixture {
    struct line_parser p;
    struct strbuf payload;
    int answer; /* Of the payload's receiver. */
};

static int take(void *ctx, enum line_verb verb, const void *data, size_t len)
{
    struct fixture *f = ctx;

    (void)verb;
    strbuf_add(&f->payload, data, len);
    return f->answer;
}

static void fresh(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    strbuf_init(&f->payload);
    lines_init(&f->p, take, f);
}

/* Feed in pieces of `step` bytes; a summary of each line in `out`. */
static int feed(struct fixture *f, const char *text, size_t len, size_t step,
                struct strbuf *out)
{
    int rv = HEDGE_EAGAIN;

    for (size_t at = 0; at < len;) {
        const struct line *l = &f->p.line;
        size_t n = len - at < step ? len - at : step, used;

        rv = lines_feed(&f->p, text + at, n, &used);
        assert_true(used <= n);
        at += used;
        if (rv == HEDGE_EAGAIN) {
            assert_int_equal(used, n);
            continue;
        }
        strbuf_addf(out, "%s%s", line_verb_name(l->verb),
                    l->error != 0 ? "!" : "");
        for (unsigned i = 0; l->error == 0 && i < l->n_words; i++) {
            strbuf_addf(out, ",%s", l->words[i]);
        }
        if (l->error == 0 && f->payload.len > 0) {
            strbuf_addf(out, ":%s", f->payload.text);
        }
        strbuf_release(&f->payload);
        strbuf_init(&f->payload);
        strbuf_add(out, ";", 1);
        if (rv != 0) {
            return rv;
        }
    }
    return rv;
}

static void check_text(const char *text, size_t len, const char *wanted)
{
    for (size_t step = 1; step <= len; step += step < 12 ? 1 : 31) {
        struct fixture f;
        struct strbuf out;

        fresh(&f);
        strbuf_init(&out);
        (void)feed(&f, text, len, step, &out);
        assert_string_equal(out.len > 0 ? out.text : "", wanted);
        strbuf_release(&out);
        strbuf_release(&f.payload);
    }
}

#define CHECK(text, wanted) check_text(text, sizeof text - 1, wanted)

static void requests(void **state)
{
    (void)state;
    CHECK("LDR\n", "LDR;");
    CHECK("LDR\r\n", "LDR;");
    CHECK("SND aGVsbG8=\n", "SND:hello;");
    CHECK("SND aGVsbG8=\r\n", "SND:hello;");
    CHECK("SND \n", "SND;"); /* An empty payload. */
    CHECK("ALL aGVsbG8=\n", "ALL:hello;");
    CHECK("PUT e30=\n", "PUT:{};");
    CHECK("PUT e30= noappend\n", "PUT,noappend:{};");
    CHECK("HEY\n", "HEY;");
    CHECK("HEY 10.0.0.1:8080\n", "HEY,10.0.0.1:8080;");
    CHECK("MEM bnVsbA==\n", "MEM:null;");
    CHECK("SEM x 3 a:1\n", "SEM,x,3,a:1;");
    CHECK("SEA x a:1\n", "SEA,x,a:1;");
    CHECK("SER x a:1\n", "SER,x,a:1;");
}

static void pipelined(void **state)
{
    (void)state;
    CHECK("LDR\nSND YQ==\nHEY\nSEM x 1 y\nLDR\nLD",
          "LDR;SND:a;HEY;SEM,x,1,y;LDR;");
}

static void wrong(void **state)
{
    (void)state;
    CHECK("\n", "other!;");
    CHECK("\r\n", "other!;");
    CHECK("XYZ\n", "other!;");
    CHECK("ldr\nLDR\n", "other!;LDR;");
    CHECK("LDRX\n", "other!;");
    CHECK("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "other!;other!;other!;");
    CHECK("SND\n", "SND!;");
    CHECK("SND aGVsbG8\n", "SND!;");   /* Cut. */
    CHECK("SND a-_b\n", "SND!;");      /* Another alphabet. */
    CHECK("SND YQ== YQ==\n", "SND!;"); /* A word too many. */
    CHECK("SND  YQ==\n", "SND!;");
    CHECK("LDR x\n", "LDR!;");
    CHECK("HEY a b\n", "HEY!;");
    CHECK("SEM x\n", "SEM!;");
    CHECK("SEM\n", "SEM!;");
    CHECK("SEM x 1\n", "SEM!;");
    CHECK("SEM x 1 y z\n", "SEM!;");
    CHECK("SEM x  1 y\n", "SEM!;");
    CHECK("SEM x 1 y \n", "SEM!;");
    CHECK("SEA x\n", "SEA!;");
    CHECK("SER \n", "SER!;");
    CHECK("SEA x\0 y\n", "SEA!;");
    CHECK("SEA x\r y\n", "SEA!;");
    CHECK("LDR\r\r\n", "other!;");
    CHECK("\0\0\0\xff\xfe\nLDR\n", "other!;LDR;");
    CHECK("SND !!!!\nLDR\n", "SND!;LDR;"); /* And it goes on. */
}

static char *repeat(const char *head, char c, size_t n, const char *tail)
{
    size_t before = strlen(head), after = strlen(tail);
    char *text = malloc(before + n + after + 1);

    assert_non_null(text);
    memcpy(text, head, before);
    memset(text + before, c, n);
    memcpy(text + before + n, tail, after + 1);
    return text;
}

static int feed_long(const char *head, size_t n, const char *tail, int answer,
                     const char *wanted)
{
    char *text = repeat(head, 'A', n, tail);
    struct strbuf out;
    struct fixture f;
    int rv;

    fresh(&f);
    f.answer = answer;
    strbuf_init(&out);
    rv = feed(&f, text, strlen(text), 65536, &out);
    assert_int_equal(
        strncmp(out.len > 0 ? out.text : "", wanted, strlen(wanted)), 0);
    strbuf_release(&out);
    strbuf_release(&f.payload);
    free(text);
    return rv;
}

static void too_long(void **state)
{
    size_t mib = (size_t)1 << 20;

    (void)state;
    assert_int_equal(feed_long("HEY ", LINE_SMALL_MAX, "\n", 0, "HEY,"), 0);
    assert_int_equal(feed_long("HEY ", LINE_SMALL_MAX + 1, "\n", 0, "HEY!;"),
                     HEDGE_ETOOBIG);
    assert_int_equal(feed_long("", 4000, "", 0, "other!;"), HEDGE_ETOOBIG);
    assert_int_equal(feed_long("PUT e30= ", LINE_SMALL_MAX + 1, "", 0, "PUT!;"),
                     HEDGE_ETOOBIG);
    /* A payload within its bounds, and one beyond them. */
    assert_int_equal(feed_long("SND ", 8 * mib, "\n", 0, "SND:"), 0);
    assert_int_equal(feed_long("MEM ", mib / 3 * 4, "\n", 0, "MEM:"), 0);
    assert_int_equal(feed_long("MEM ", mib / 3 * 4 + 8, "\n", 0, "MEM!;"),
                     HEDGE_ETOOBIG);
    assert_int_equal(feed_long("MEM ", 2 * mib, "", 0, "MEM!;"), HEDGE_ETOOBIG);
    /* Refused by its receiver it is skipped, up to its bound. */
    assert_int_equal(feed_long("MEM ", mib, "\n", HEDGE_EEXHAUSTED, "MEM!;"),
                     0);
    assert_int_equal(feed_long("MEM ", 2 * mib, "", HEDGE_EEXHAUSTED, "MEM!;"),
                     HEDGE_ETOOBIG);
}

static void within(void **state)
{
    struct fixture f;
    size_t used;

    (void)state;
    fresh(&f);
    assert_false(lines_is_within(&f.p));
    assert_int_equal(lines_feed(&f.p, "L", 1, &used), HEDGE_EAGAIN);
    assert_true(lines_is_within(&f.p));
    assert_int_equal(lines_feed(&f.p, "DR\nHEY", 6, &used), 0);
    assert_int_equal(used, 3);
    assert_false(lines_is_within(&f.p));
    strbuf_release(&f.payload);
}

static void check_reply(const struct line_reply *r, const char *wanted,
                        size_t len)
{
    char out[LINE_REPLY_MAX];
    size_t at = 0, n, total = 0;

    while ((n = lines_reply(r, &at, out)) > 0) {
        assert_true(total + n <= len);
        assert_memory_equal(out, wanted + total, n);
        total += n;
    }
    assert_int_equal(total, len);
    assert_int_equal(lines_reply(r, &at, out), 0);
}

static void replies(void **state)
{
    const struct {
        struct line_reply r;
        const char *wanted;
    } table[] = {
        {{.ack = true}, "ACK\n"},
        {{.ack = false}, "\n"},
        {{.ack = true, .has_body = true, .body = "hello", .len = 5},
         "ACK aGVsbG8=\n"},
        {{.ack = true, .has_body = true, .body = "", .len = 0}, "ACK \n"},
        {{.has_body = true, .body = "no", .len = 2}, "bm8=\n"},
    };
    char *big = repeat("", '\0', 100001, "");
    size_t n = BASE64_ENCODED((size_t)100001);
    char *wanted = malloc(n + 5);
    struct line_reply r = {
        .ack = true, .has_body = true, .body = big, .len = 100001};

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        check_reply(&table[i].r, table[i].wanted, strlen(table[i].wanted));
    }
    assert_non_null(wanted);
    memcpy(wanted, "ACK ", 4);
    (void)base64_encode(big, 100001, wanted + 4);
    wanted[n + 4] = '\n';
    check_reply(&r, wanted, n + 5);
    free(wanted);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests), cmocka_unit_test(pipelined),
        cmocka_unit_test(wrong),    cmocka_unit_test(too_long),
        cmocka_unit_test(within),   cmocka_unit_test(replies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
