/* codec.h - blocks made smaller with zstd, and large again.
 *
 * Ownership: works on the caller's bytes; a context belongs to its caller.
 * Threads:   one context per thread at a time.
 * Errors:    HEDGE_ECORRUPT for what does not decode, HEDGE_ENOMEM.
 * Units:     bytes.
 * Limits:    one block. */
#ifndef STORE_CODEC_H
#define STORE_CODEC_H

#include "store/block.h"

struct codec;

/* Contexts are made on first use and kept. */
int codec_new(struct codec **out);
void codec_free(struct codec *c);

/* Compress a sealed raw block (header and payload) into `out`, which has room
 * for as many bytes as the block has, header included. Returns 1 when the
 * result is smaller by at least one eighth, its header in *h; 0 when it is
 * not worth it (out is then undefined); or an error. */
int codec_encode(struct codec *c, int level, const void *block,
                 struct block_header *h, void *out);

/* Decode the payload of `h` into `raw` (room for h->raw_len bytes). */
int codec_decode(struct codec *c, const struct block_header *h,
                 const void *payload, void *raw, struct hedge_error *e);

/* Does a sample of the payload shrink? Cheap: looks at 16 KiB. */
bool codec_sample_shrinks(struct codec *c, const void *payload, size_t len);

#endif
