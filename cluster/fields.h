/* fields.h - walking through the fields of a protobuf message in memory,
 * without making objects of them.
 *
 * Ownership: fields point into the bytes given, which stay the caller's.
 * Threads:   any.
 * Errors:    HEDGE_EEND after the last field, HEDGE_EPROTO for bytes that are
 *            no message.
 * Units:     bytes.
 * Limits:    none; groups are refused. */
#ifndef CLUSTER_FIELDS_H
#define CLUSTER_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum field_type {
    FIELD_VARINT = 0,
    FIELD_64 = 1,
    FIELD_BYTES = 2,
    FIELD_32 = 5
};

struct fields {
    const unsigned char *at, *end;
};

struct field {
    uint32_t number;
    enum field_type type;
    uint64_t value; /* FIELD_VARINT */
    const unsigned char *data;
    size_t len; /* FIELD_BYTES */
};

struct fields fields_of(const void *data, size_t len);
int fields_next(struct fields *f, struct field *out);
/* Is it this number, and bytes? */
bool field_is(const struct field *f, uint32_t number);

#define FIELD_HEAD_MAX 16
/* Tag and length of a FIELD_BYTES; returns how many bytes were written. */
size_t field_head(uint32_t number, size_t len,
                  unsigned char out[FIELD_HEAD_MAX]);

#endif
