/* base64.h - the standard alphabet with padding, all at once or in pieces.
 *
 * Ownership: the caller's bytes, nothing kept.
 * Threads:   any; a decoder belongs to one thread at a time.
 * Errors:    HEDGE_EINVAL for anything that an encoder would not have made.
 * Units:     bytes.
 * Limits:    none. */
#ifndef CLUSTER_BASE64_H
#define CLUSTER_BASE64_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BASE64_ENCODED(n) (((n) + 2) / 3 * 4)

/* Writes BASE64_ENCODED(len) characters, no terminator. Pieces of a length that
 * 3 divides may be encoded one after the other. */
size_t base64_encode(const void *data, size_t len, char *out);

struct base64_decoder {
    uint32_t bits;
    unsigned n; /* Characters of the group begun. */
    unsigned pads;
    bool ended;
};

void base64_init(struct base64_decoder *d);
/* Decode `len` more characters into `out`, which has room for len / 4 * 3 + 3
 * bytes; returns how many were written, or HEDGE_EINVAL. */
long base64_decode(struct base64_decoder *d, const char *text, size_t len,
                   unsigned char *out);
/* Is what has been decoded whole? */
bool base64_is_whole(const struct base64_decoder *d);

#endif
