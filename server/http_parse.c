#include "server/http_parse.h"

#include "store/base/errors.h"

#include <assert.h>
#include <string.h>

bool http_split_pair(const char *body, size_t len, struct http_pair *out)
{
    const char *space = len > 0 ? memchr(body, ' ', len) : NULL;

    memset(out, 0, sizeof *out);
    if (space == NULL || space == body) {
        return false;
    }
    out->key = body;
    out->key_len = (size_t)(space - body);
    out->value = space + 1;
    out->value_len = len - out->key_len - 1;
    return true;
}

void http_cutter_init(struct http_cutter *c, size_t max, http_line_fn fn,
                      void *ctx)
{
    assert(max > 0);
    c->max = max;
    c->fn = fn;
    c->ctx = ctx;
    strbuf_init(&c->begun);
}

void http_cutter_release(struct http_cutter *c)
{
    strbuf_release(&c->begun);
}

static int flush(struct http_cutter *c)
{
    int rv;

    if (!strbuf_ok(&c->begun)) {
        return HEDGE_ENOMEM;
    }
    rv = c->begun.len > 0 ? c->fn(c->ctx, c->begun.text, c->begun.len) : 0;
    c->begun.len = 0;
    return rv;
}

/* Whole lines go straight through; only what is begun is copied. */
int http_cutter_feed(struct http_cutter *c, const char *data, size_t len)
{
    int rv = 0;

    while (rv == 0 && len > 0) {
        const char *end = memchr(data, '\n', len);
        size_t room = c->max - c->begun.len;
        size_t n = end != NULL ? (size_t)(end - data) + 1 : len;
        bool whole = end != NULL && n <= room;

        n = n < room ? n : room;
        if (c->begun.len == 0 && (whole || n == c->max)) {
            rv = c->fn(c->ctx, data, n);
        } else {
            strbuf_add(&c->begun, data, n);
            if (whole || !strbuf_ok(&c->begun) || c->begun.len == c->max) {
                rv = flush(c);
            }
        }
        data += n;
        len -= n;
    }
    return rv;
}

int http_cutter_end(struct http_cutter *c)
{
    return flush(c);
}

void http_add_escaped(struct strbuf *b, const char *data, size_t len)
{
    while (len > 0) {
        size_t n = 0;

        while (n < len && data[n] != '\n' && data[n] != '\r') {
            n++;
        }
        strbuf_add(b, data, n);
        if (n < len) {
            strbuf_add(b, data[n] == '\n' ? "\\n" : "\\r", 2);
            n++;
        }
        data += n;
        len -= n;
    }
}

bool http_is_among(const char *list, const char *name)
{
    size_t len = strlen(name);

    while (list != NULL && *list != '\0') {
        size_t n = strcspn(list, ",");

        if (n == len && memcmp(list, name, n) == 0) {
            return true;
        }
        list += n + (list[n] == ',');
    }
    return false;
}

unsigned http_status_of(int code)
{
    switch (code) {
    case HEDGE_EINVAL:
        return 400;
    case HEDGE_EPERM:
        return 403;
    case HEDGE_ENOTFOUND:
        return 404;
    case HEDGE_EEXISTS:
        return 409;
    case HEDGE_EEXPIRED:
        return 410;
    case HEDGE_ETOOBIG:
        return 413;
    case HEDGE_EEXHAUSTED:
        return 429;
    case HEDGE_ENOTSUP:
    case HEDGE_ENOHANDLER:
        return 501;
    case HEDGE_EHANDLER:
        return 502;
    case HEDGE_EBUSY:
    case HEDGE_ENOLEADER:
    case HEDGE_ENOTLEADER:
    case HEDGE_EUNAVAILABLE:
    case HEDGE_ECLOSED:
        return 503;
    case HEDGE_ETIMEDOUT:
        return 504;
    case HEDGE_EFULL:
    case HEDGE_ENOSPC:
        return 507;
    default:
        return 500;
    }
}
