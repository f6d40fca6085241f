#include "cluster/fields.h"

#include "store/base/errors.h"

#include <assert.h>

#define VARINT_MAX 10
#define NUMBER_MAX 0x1fffffffu

struct fields fields_of(const void *data, size_t len)
{
    const unsigned char *p = len > 0 ? data : (const unsigned char *)"";

    return (struct fields){.at = p, .end = p + len};
}

static bool read_varint(struct fields *f, uint64_t *out)
{
    *out = 0;
    for (unsigned i = 0; i < VARINT_MAX && f->at < f->end; i++) {
        unsigned char c = *f->at++;

        if (i == VARINT_MAX - 1 && c > 1) {
            return false; /* More than 64 bits. */
        }
        *out |= (uint64_t)(c & 0x7f) << (7 * i);
        if ((c & 0x80) == 0) {
            return true;
        }
    }
    return false;
}

int fields_next(struct fields *f, struct field *out)
{
    uint64_t tag, n = 0;

    assert(f->at <= f->end);
    *out = (struct field){.number = 0};
    if (f->at == f->end) {
        return HEDGE_EEND;
    }
    if (!read_varint(f, &tag) || tag >> 3 == 0 || tag >> 3 > NUMBER_MAX) {
        return HEDGE_EPROTO;
    }
    out->number = (uint32_t)(tag >> 3);
    out->type = (enum field_type)(tag & 7);
    switch (out->type) {
    case FIELD_VARINT:
        return read_varint(f, &out->value) ? 0 : HEDGE_EPROTO;
    case FIELD_64:
        n = 8;
        break;
    case FIELD_32:
        n = 4;
        break;
    case FIELD_BYTES:
        if (!read_varint(f, &n)) {
            return HEDGE_EPROTO;
        }
        break;
    default:
        return HEDGE_EPROTO;
    }
    if (n > (uint64_t)(f->end - f->at)) {
        return HEDGE_EPROTO;
    }
    out->data = f->at;
    out->len = (size_t)n;
    f->at += n;
    return 0;
}

bool field_is(const struct field *f, uint32_t number)
{
    return f->number == number && f->type == FIELD_BYTES;
}

static size_t write_varint(uint64_t v, unsigned char *out)
{
    size_t n = 0;

    for (; v >= 0x80; v >>= 7) {
        out[n++] = (unsigned char)(v & 0x7f) | 0x80;
    }
    out[n++] = (unsigned char)v;
    return n;
}

size_t field_head(uint32_t number, size_t len,
                  unsigned char out[FIELD_HEAD_MAX])
{
    size_t n;

    assert(number > 0 && number <= NUMBER_MAX);
    n = write_varint((uint64_t)number << 3 | FIELD_BYTES, out);
    n += write_varint(len, out + n);
    assert(n <= FIELD_HEAD_MAX);
    return n;
}
