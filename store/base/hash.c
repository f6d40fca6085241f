#include "store/base/hash.h"

#include <assert.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wundef"
#if defined(__x86_64__)
#define XXH_NO_INLINE_HINTS 1
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>
#include <xxh_x86dispatch.h>
#else
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>
#endif
#pragma GCC diagnostic pop

static_assert(sizeof(XXH3_state_t) <= HASH_STATE_SIZE, "struct hash too small");

static XXH3_state_t *state_of(struct hash *h)
{
    return (XXH3_state_t *)(void *)h->state;
}

uint64_t hash64(const void *data, size_t len)
{
    return len <= HASH_SHORT ? hash64_short(data, len) : XXH3_64bits(data, len);
}

uint32_t hash32(const void *data, size_t len)
{
    return (uint32_t)hash64(data, len);
}

struct hash128 hash128_of(const void *data, size_t len)
{
    XXH128_hash_t h = XXH3_128bits(data, len);

    return (struct hash128){.lo = h.low64, .hi = h.high64};
}

void hash_init(struct hash *h)
{
    XXH_errorcode rc = XXH3_64bits_reset(state_of(h));

    assert(rc == XXH_OK);
    (void)rc;
}

void hash_update(struct hash *h, const void *data, size_t len)
{
    XXH_errorcode rc = XXH3_64bits_update(state_of(h), data, len);

    assert(rc == XXH_OK);
    (void)rc;
}

uint64_t hash_final(const struct hash *h)
{
    return XXH3_64bits_digest((const XXH3_state_t *)(const void *)h->state);
}
