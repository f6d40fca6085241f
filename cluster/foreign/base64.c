#include "cluster/foreign/base64.h"

#include "store/base/errors.h"

#include <assert.h>
#include <string.h>

static const char alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static int value_of(char c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' ? 62 : c == '/' ? 63 : HEDGE_EINVAL;
}

size_t base64_encode(const void *data, size_t len, char *out)
{
    const unsigned char *p = data;
    char *to = out;

    for (size_t i = 0; i < len; i += 3) {
        size_t n = len - i < 3 ? len - i : 3;
        uint32_t bits = (uint32_t)p[i] << 16;

        bits |= n > 1 ? (uint32_t)p[i + 1] << 8 : 0;
        bits |= n > 2 ? (uint32_t)p[i + 2] : 0;
        *to++ = alphabet[bits >> 18];
        *to++ = alphabet[bits >> 12 & 63];
        *to++ = n > 1 ? alphabet[bits >> 6 & 63] : '=';
        *to++ = n > 2 ? alphabet[bits & 63] : '=';
    }
    assert((size_t)(to - out) == BASE64_ENCODED(len));
    return (size_t)(to - out);
}

void base64_init(struct base64_decoder *d)
{
    memset(d, 0, sizeof *d);
}

/* A group of four is complete; its bytes, or HEDGE_EINVAL where bits that are
 * cut off are not zero. */
static long end_group(struct base64_decoder *d, unsigned char *out)
{
    uint32_t cut = d->pads == 2 ? 0xffff : d->pads == 1 ? 0xff : 0;
    long n = 3 - (long)d->pads;

    if ((d->bits & cut) != 0) {
        return HEDGE_EINVAL;
    }
    for (long i = 0; i < n; i++) {
        out[i] = (unsigned char)(d->bits >> (16 - 8 * i));
    }
    d->ended = d->pads > 0;
    d->bits = 0;
    d->n = d->pads = 0;
    return n;
}

static bool take_char(struct base64_decoder *d, char c)
{
    int v = 0;

    if (d->ended) {
        return false;
    }
    if (c == '=' && d->n >= 2) {
        d->pads++;
    } else {
        v = value_of(c);
        if (v < 0 || d->pads > 0) {
            return false;
        }
    }
    d->bits = d->bits << 6 | (uint32_t)v;
    d->n++;
    return true;
}

long base64_decode(struct base64_decoder *d, const char *text, size_t len,
                   unsigned char *out)
{
    long at = 0;

    for (size_t i = 0; i < len; i++) {
        long n = 0;

        if (!take_char(d, text[i])) {
            return HEDGE_EINVAL;
        }
        if (d->n == 4) {
            n = end_group(d, out + at);
        }
        if (n < 0) {
            return n;
        }
        at += n;
    }
    return at;
}

bool base64_is_whole(const struct base64_decoder *d)
{
    return d->n == 0;
}
