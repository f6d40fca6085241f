/* What comes in the body of an HTTP request: nothing of it is lost or made up,
 * however it is cut. The first two bytes say how. */
#include "server/http_parse.h"
#include "store/base/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seen {
    const char *body;
    size_t at, max;
};

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static int take(void *ctx, const char *line, size_t len)
{
    struct seen *s = ctx;
    const char *end = memchr(line, '\n', len);

    check(len > 0 && len <= s->max);
    check(end == NULL || end == line + len - 1);
    check(memcmp(line, s->body + s->at, len) == 0);
    s->at += len;
    return 0;
}

static void cut(const char *body, size_t len, size_t step, size_t max)
{
    struct seen s = {.body = body, .max = max};
    struct http_cutter c;

    http_cutter_init(&c, max, take, &s);
    for (size_t at = 0; at < len; at += step) {
        size_t n = len - at < step ? len - at : step;

        check(http_cutter_feed(&c, body + at, n) == 0);
    }
    check(http_cutter_end(&c) == 0);
    check(s.at == len);
    http_cutter_release(&c);
}

static void pair(const char *body, size_t len)
{
    struct http_pair p;

    if (http_split_pair(body, len, &p)) {
        check(p.key == body && p.key_len > 0);
        check(p.value == body + p.key_len + 1);
        check(p.key_len + 1 + p.value_len == len);
        check(memchr(p.key, ' ', p.key_len) == NULL);
    }
}

static void escape(const char *body, size_t len)
{
    struct strbuf b;

    strbuf_init(&b);
    http_add_escaped(&b, body, len);
    check(b.len >= len && b.len <= 2 * len);
    check(b.len == 0 || memchr(b.text, '\n', b.len) == NULL);
    strbuf_release(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *body = (const char *)data + 2;

    if (size >= 2) {
        char *text = mem_strndup(body, size - 2);

        cut(body, size - 2, (size_t)data[0] + 1, (size_t)data[1] + 1);
        pair(body, size - 2);
        escape(body, size - 2);
        (void)http_is_among(text, "loop");
        mem_free(text);
    }
    return 0;
}
