/* hash_short.c - XXH3 of inputs so short that no vectors are used: compiled in,
 * which is three times as fast as the library's entry for these. */
#include "store/base/hash.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wundef"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wcast-qual"
#define XXH_INLINE_ALL
#include <xxhash.h>
#pragma GCC diagnostic pop

uint64_t hash64_short(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}
