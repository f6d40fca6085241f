#include "tests/lib/records.h"

#include "store/base/bytes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((format(printf, 1, 2))) static void wrong(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    (void)vfprintf(stderr, fmt, ap);
    va_end(ap);
    (void)fputc('\n', stderr);
    abort();
}

uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t key_of(const struct record_shape *r, uint32_t writer,
                       uint64_t index)
{
    uint64_t state = r->seed * 1000003 + writer;

    state = random_next(&state) + index;
    return random_next(&state);
}

size_t record_len(const struct record_shape *r, uint32_t writer, uint64_t index)
{
    uint64_t key = key_of(r, writer, index);
    size_t span = r->max - r->min;

    switch (key % 16) {
    case 0:
        break; /* Anything up to the longest. */
    case 1:
        return r->min;
    default:
        span = span < 2000 ? span : 2000;
    }
    return r->min + (size_t)((key >> 8) % (span + 1));
}

static void name_record(unsigned char name[RECORD_NAMED], uint32_t writer,
                        uint64_t index)
{
    put_le32(name, writer);
    put_le64(name + 4, index);
}

void record_fill(const struct record_shape *r, uint32_t writer, uint64_t index,
                 size_t at, void *out, size_t len)
{
    uint64_t key = key_of(r, writer, index);
    unsigned char name[RECORD_NAMED];
    unsigned char *p = out;
    bool named = record_len(r, writer, index) >= RECORD_NAMED;

    name_record(name, writer, index);
    for (size_t i = 0; i < len;) {
        size_t pos = at + i, n = 8 - pos % 8;
        uint64_t word = htole64(key + pos / 8 * 0x9e3779b97f4a7c15u);

        n = n < len - i ? n : len - i;
        memcpy(p + i, (unsigned char *)&word + pos % 8, n);
        i += n;
    }
    if (named && at < RECORD_NAMED) {
        size_t n = RECORD_NAMED - at;

        memcpy(out, name + at, n < len ? n : len);
    }
}

int record_write(const struct record_shape *r, struct writer *w,
                 uint32_t writer, uint64_t index, void *buf)
{
    size_t len = record_len(r, writer, index);

    record_fill(r, writer, index, 0, buf, len);
    return writer_write(w, buf, len);
}

void record_check_init(struct record_check *c, const struct record_shape *shape)
{
    memset(c, 0, sizeof *c);
    c->shape = shape;
}

static void begin_record(struct record_check *c, const struct piece *p)
{
    c->inside = true;
    c->at = 0;
    c->writer = 0;
    if (c->shape->min >= RECORD_NAMED) {
        /* The first piece may be shorter than the name: then the writer is
         * the one whose turn the bytes fit. */
        if (p->len >= RECORD_NAMED) {
            c->writer = get_le32(p->data);
        } else if (p->len >= 4) {
            c->writer = get_le32(p->data);
        }
    }
    if (c->writer >= RECORD_WRITERS) {
        wrong("a record of writer %u, who does not exist", c->writer);
    }
}

void record_check_piece(struct record_check *c, const struct piece *p)
{
    unsigned char want[4096];
    uint64_t index;

    if (p->first != !c->inside) {
        wrong("record %lu: a piece comes out of order",
              (unsigned long)c->records);
    }
    if (p->first) {
        begin_record(c, p);
    }
    index = c->next[c->writer];
    for (size_t i = 0; i < p->len;) {
        size_t n = p->len - i < sizeof want ? p->len - i : sizeof want;

        record_fill(c->shape, c->writer, index, c->at, want, n);
        if (memcmp((const char *)p->data + i, want, n) != 0) {
            wrong("record %lu of writer %u has other bytes from %zu on",
                  (unsigned long)index, c->writer, c->at);
        }
        c->at += n;
        i += n;
    }
    if (p->last) {
        size_t len = record_len(c->shape, c->writer, index);

        if (c->at != len) {
            wrong("record %lu of writer %u has %zu bytes, not %zu",
                  (unsigned long)index, c->writer, c->at, len);
        }
        c->next[c->writer]++;
        c->records++;
        c->bytes += len;
        c->inside = false;
    }
}

int record_check_all(struct record_check *c, struct reader *r,
                     uint64_t timeout_ms)
{
    struct piece p;
    int rv;

    while ((rv = reader_next(r, timeout_ms, &p)) == 0) {
        record_check_piece(c, &p);
    }
    return rv;
}
