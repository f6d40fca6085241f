#include "store/codec.h"

#include "store/base/hash.h"
#include "store/base/mem.h"

#include <string.h>
#include <zstd.h>

#define SAMPLE_PIECE ((size_t)4 << 10)
#define SAMPLE_PIECES 4

struct codec {
    ZSTD_CCtx *in;
    ZSTD_DCtx *out;
};

int codec_new(struct codec **out)
{
    *out = mem_calloc(1, sizeof **out);
    return *out == NULL ? HEDGE_ENOMEM : 0;
}

void codec_free(struct codec *c)
{
    if (c != NULL) {
        ZSTD_freeCCtx(c->in);
        ZSTD_freeDCtx(c->out);
        mem_free(c);
    }
}

static ZSTD_CCtx *encoder(struct codec *c)
{
    if (c->in == NULL) {
        c->in = ZSTD_createCCtx();
    }
    return c->in;
}

int codec_encode(struct codec *c, int level, const void *block,
                 struct block_header *h, void *out)
{
    const unsigned char *raw = (const unsigned char *)block + BLOCK_HEADER_SIZE;
    size_t room = h->raw_len - h->raw_len / 8, n;

    assert(h->codec == BLOCK_RAW && h->raw_len > 0);
    if (encoder(c) == NULL) {
        return HEDGE_ENOMEM;
    }
    n = ZSTD_compressCCtx(c->in, block_payload(out), room, raw, h->raw_len,
                          level);
    if (ZSTD_isError(n) || n == 0) {
        return 0; /* Does not fit: not worth it. */
    }
    h->codec = BLOCK_ZSTD;
    h->stored_len = (uint32_t)n;
    h->stored_sum = hash64(block_payload(out), n);
    block_header_encode(h, out);
    return 1;
}

int codec_decode(struct codec *c, const struct block_header *h,
                 const void *payload, void *raw, struct hedge_error *e)
{
    size_t n;

    if (h->codec == BLOCK_RAW) {
        memcpy(raw, payload, h->raw_len);
        return 0;
    }
    if (c->out == NULL) {
        c->out = ZSTD_createDCtx();
    }
    if (c->out == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory to decompress");
    }
    n = ZSTD_decompressDCtx(c->out, raw, h->raw_len, payload, h->stored_len);
    if (ZSTD_isError(n) || n != h->raw_len) {
        return error_set(
            e, HEDGE_ECORRUPT, "block %llx/%u/%llu does not decompress: %s",
            (unsigned long long)h->id.generation, h->id.writer,
            (unsigned long long)h->id.sequence,
            ZSTD_isError(n) ? ZSTD_getErrorName(n) : "wrong length");
    }
    return 0;
}

bool codec_sample_shrinks(struct codec *c, const void *payload, size_t len)
{
    unsigned char sample[SAMPLE_PIECE * SAMPLE_PIECES];
    unsigned char out[SAMPLE_PIECE * SAMPLE_PIECES];
    size_t n = 0, step = len / SAMPLE_PIECES, got;

    for (size_t i = 0; i < SAMPLE_PIECES; i++) {
        size_t piece = step < SAMPLE_PIECE ? step : SAMPLE_PIECE;

        memcpy(sample + n, (const unsigned char *)payload + i * step, piece);
        n += piece;
    }
    if (n == 0 || encoder(c) == NULL) {
        return false;
    }
    got = ZSTD_compressCCtx(c->in, out, n - n / 8, sample, n, 1);
    return !ZSTD_isError(got) && got > 0;
}
