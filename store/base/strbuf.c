#include "store/base/strbuf.h"

#include "store/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void strbuf_init(struct strbuf *b)
{
    memset(b, 0, sizeof *b);
}

void strbuf_release(struct strbuf *b)
{
    mem_free(b->text);
    strbuf_init(b);
}

bool strbuf_ok(const struct strbuf *b)
{
    return !b->failed;
}

static bool reserve(struct strbuf *b, size_t more)
{
    size_t cap = b->cap;
    char *text;

    if (b->failed) {
        return false;
    }
    if (b->len + more + 1 <= cap) {
        return true;
    }
    cap = cap < 64 ? 64 : cap;
    while (cap < b->len + more + 1) {
        cap *= 2;
    }
    text = mem_realloc(b->text, cap);
    if (text == NULL) {
        b->failed = true;
        return false;
    }
    b->text = text;
    b->cap = cap;
    return true;
}

void strbuf_add(struct strbuf *b, const char *data, size_t len)
{
    if (reserve(b, len)) {
        memcpy(b->text + b->len, data, len);
        b->len += len;
        b->text[b->len] = '\0';
    }
}

void strbuf_addf(struct strbuf *b, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) {
        b->failed = true;
        return;
    }
    if (reserve(b, (size_t)n)) {
        va_start(ap, fmt);
        (void)vsnprintf(b->text + b->len, (size_t)n + 1, fmt, ap);
        va_end(ap);
        b->len += (size_t)n;
    }
}

char *strbuf_detach(struct strbuf *b)
{
    char *text = NULL;

    if (!b->failed) {
        text = b->text != NULL ? b->text : mem_strdup("");
        b->text = NULL;
    }
    strbuf_release(b);
    return text;
}
