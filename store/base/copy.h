/* copy.h - copying what is not looked at again soon.
 *
 * A plain copy first reads the memory it is about to overwrite and leaves it in
 * the cache in place of something useful. For a block that is going to lie in
 * the arena until somebody asks for it, that is a third of the traffic.
 *
 * Ownership: nothing is kept.
 * Threads:   any; what was copied is visible to other threads after any lock,
 *            as usual.
 * Errors:    none.
 * Units:     bytes.
 * Limits:    pays from a few KiB on. */
#ifndef STORE_BASE_COPY_H
#define STORE_BASE_COPY_H

#include <stddef.h>

/* As memcpy(), past the cache. */
void copy_past_cache(void *dst, const void *src, size_t n);

#endif
