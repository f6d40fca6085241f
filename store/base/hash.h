/* hash.h - XXH3 with the widest vectors this processor has.
 *
 * Ownership: a struct hash is embedded by its user; nothing to free.
 * Threads:   any; one hash state belongs to one thread at a time.
 * Errors:    none.
 * Units:     bytes.
 * Limits:    not a cryptographic hash: it finds accidents, not attackers. */
#ifndef STORE_BASE_HASH_H
#define STORE_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

/* How much to copy before hashing it, so that it is still in cache. */
#define HASH_STEP ((size_t)32 << 10)

uint64_t hash64(const void *data, size_t len);
/* hash64() uses it for up to HASH_SHORT bytes; the same for any length, but
 * slow beyond. */
#define HASH_SHORT 240
uint64_t hash64_short(const void *data, size_t len);

/* The low 32 bits of hash64(): header sums. */
uint32_t hash32(const void *data, size_t len);

/* 128 bits as two words, for digests. */
struct hash128 {
    uint64_t lo, hi;
};
struct hash128 hash128_of(const void *data, size_t len);

/* Streaming; XXH3's state wants 64-byte alignment. */
#define HASH_STATE_SIZE 640
struct hash {
    _Alignas(64) unsigned char state[HASH_STATE_SIZE];
};
void hash_init(struct hash *h);
void hash_update(struct hash *h, const void *data, size_t len);
uint64_t hash_final(const struct hash *h);

#endif
