/* Arbitrary bytes as a compressed payload, and arbitrary payloads through
 * compression and back. */
#include "store/base/hash.h"
#include "store/codec.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SIZE ((size_t)65536)

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static void decode(struct codec *c, const unsigned char *data, size_t size)
{
    struct block_header h = {.codec = BLOCK_ZSTD,
                             .raw_len = data[0] * 200u + 1,
                             .stored_len = (uint32_t)(size - 1)};
    unsigned char *raw = malloc(h.raw_len), *in = malloc(size);

    memcpy(in, data + 1, size - 1);
    if (h.stored_len > 0 && codec_decode(c, &h, in, raw, NULL) == 0) {
        (void)block_check_raw(&h, raw, NULL);
    }
    free(in);
    free(raw);
}

static void there_and_back(struct codec *c, const unsigned char *data,
                           size_t size)
{
    struct block_header h = {.first = BLOCK_FIRST_NONE,
                             .raw_len = (uint32_t)size,
                             .stored_len = (uint32_t)size};
    unsigned char *block = malloc(BLOCK_HEADER_SIZE + size);
    unsigned char *out = malloc(BLOCK_HEADER_SIZE + size);
    unsigned char *raw = malloc(size);
    int rv;

    memcpy(block + BLOCK_HEADER_SIZE, data, size);
    h.raw_sum = h.stored_sum = hash64(data, size);
    (void)codec_sample_shrinks(c, data, size);
    rv = codec_encode(c, data[0] % 6, block, &h, out);
    if (rv == 1) {
        assert(h.stored_len <= size);
        rv = codec_decode(c, &h, out + BLOCK_HEADER_SIZE, raw, NULL);
        assert(rv == 0 && memcmp(raw, data, size) == 0);
    }
    free(block);
    free(out);
    free(raw);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    static struct codec *c;

    if (c == NULL && codec_new(&c) != 0) {
        return 0;
    }
    if (size > 0 && size <= SIZE - BLOCK_HEADER_SIZE) {
        decode(c, data, size);
        there_and_back(c, data, size);
    }
    return 0;
}
