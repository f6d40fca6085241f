#include "store/base/copy.h"

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) && !defined(HEDGE_TSAN)
#include <emmintrin.h>

#define LINE ((size_t)64)

void copy_past_cache(void *dst, const void *src, size_t n)
{
    unsigned char *to = dst;
    const unsigned char *from = src;
    size_t head = (size_t)(-(uintptr_t)to & (LINE - 1));

    if (n < 2 * LINE) {
        memcpy(to, from, n);
        return;
    }
    memcpy(to, from, head);
    to += head;
    from += head;
    n -= head;
    for (; n >= LINE; n -= LINE, to += LINE, from += LINE) {
        const __m128i *f = (const __m128i *)(const void *)from;
        __m128i *t = (__m128i *)(void *)to;
        __m128i a = _mm_loadu_si128(f), b = _mm_loadu_si128(f + 1);
        __m128i c = _mm_loadu_si128(f + 2), d = _mm_loadu_si128(f + 3);

        _mm_stream_si128(t, a);
        _mm_stream_si128(t + 1, b);
        _mm_stream_si128(t + 2, c);
        _mm_stream_si128(t + 3, d);
    }
    memcpy(to, from, n);
    /* Such stores are not ordered with those of a lock that is released. */
    _mm_sfence();
}

#else

void copy_past_cache(void *dst, const void *src, size_t n)
{
    memcpy(dst, src, n);
}

#endif
