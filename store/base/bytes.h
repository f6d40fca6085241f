/* bytes.h - fixed-width numbers in bytes: little-endian for our headers,
 * big-endian for keys that must sort.
 *
 * Ownership: the caller's bytes, nothing kept.
 * Threads:   any.
 * Errors:    none; the caller has checked the length.
 * Units:     bytes.
 * Limits:    alignment does not matter. */
#ifndef STORE_BASE_BYTES_H
#define STORE_BASE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BYTES_ACCESS(name, type, conv_in, conv_out) \
    static inline type get_##name(const void *p)    \
    {                                               \
        type v;                                     \
        memcpy(&v, p, sizeof v);                    \
        return conv_in(v);                          \
    }                                               \
    static inline void put_##name(void *p, type v)  \
    {                                               \
        v = conv_out(v);                            \
        memcpy(p, &v, sizeof v);                    \
    }

BYTES_ACCESS(le16, uint16_t, le16toh, htole16)
BYTES_ACCESS(le32, uint32_t, le32toh, htole32)
BYTES_ACCESS(le64, uint64_t, le64toh, htole64)
BYTES_ACCESS(be32, uint32_t, be32toh, htobe32)
BYTES_ACCESS(be64, uint64_t, be64toh, htobe64)
#undef BYTES_ACCESS

#endif
