/* block.h - the unit in which everything moves: a 64-byte header and a payload
 * of framed records.
 *
 * Layout, little-endian:
 *    0 magic 4        4 version 1     5 codec 1       6 flags 2
 *    8 generation 8  16 sequence 8   24 writer 4     28 records 4
 *   32 first 4       36 raw_len 4    40 stored_len 4
 *   44 raw_sum 8     52 stored_sum 8 60 header_sum 4
 * A record is a 32-bit length and its bytes; the length word never spans
 * blocks, the bytes may. `sequence` counts the blocks of one writer from 0;
 * the store's order is kept by its owner.
 *
 * Ownership: works on the caller's bytes.
 * Threads:   any.
 * Errors:    HEDGE_ECORRUPT with what did not match.
 * Units:     bytes; offsets count from the start of the payload.
 * Limits:    BLOCK_SIZE_MIN to BLOCK_SIZE_MAX, header included. */
#ifndef STORE_BLOCK_H
#define STORE_BLOCK_H

#include "store/tier.h"

#include <assert.h>

#define BLOCK_MAGIC 0x4b4c4248u /* "HBLK" */
#define BLOCK_VERSION 1
#define BLOCK_HEADER_SIZE 64
#define BLOCK_SIZE_MIN ((size_t)64 << 10)
#define BLOCK_SIZE_MAX ((size_t)4 << 20)
#define BLOCK_SIZE_DEFAULT ((size_t)1 << 20)
#define BLOCK_FIRST_NONE UINT32_MAX
#define BLOCK_FRAME_SIZE 4u
#define BLOCK_RECORD_MAX ((size_t)1 << 30)

enum block_codec { BLOCK_RAW = 0, BLOCK_ZSTD = 1 };

enum block_flags {
    BLOCK_CONTINUES = 1, /* The last record goes on in the next block. */
};

struct block_header {
    struct block_id id;
    uint64_t raw_sum, stored_sum;
    uint32_t records; /* Records that start in this block. */
    uint32_t first;   /* Offset of the first of them, or BLOCK_FIRST_NONE. */
    uint32_t raw_len, stored_len;
    uint16_t flags;
    uint8_t codec;
};

static inline void *block_payload(void *block)
{
    return (unsigned char *)block + BLOCK_HEADER_SIZE;
}

/* Write the 64 bytes, header_sum included. */
void block_header_encode(const struct block_header *h,
                         void *out /* BLOCK_HEADER_SIZE */);

/* Check magic, version, header_sum and that the numbers make sense for a
 * cluster whose blocks have `block_size` bytes. */
int block_header_decode(const void *in, size_t len, size_t block_size,
                        struct block_header *out, struct hedge_error *e);

/* Check that a decoded header is the one that was asked for. */
int block_header_expect(const struct block_header *h, const struct block_id *id,
                        struct hedge_error *e);

/* Check stored_sum over the payload that follows the header. */
int block_check_stored(const struct block_header *h, const void *payload,
                       struct hedge_error *e);
/* Check raw_sum over the decoded payload. */
int block_check_raw(const struct block_header *h, const void *raw,
                    struct hedge_error *e);
/* Check that the frames fill the payload: what a node does once with a block
 * that somebody else has framed. */
int block_check_frames(const struct block_header *h, const void *raw,
                       struct hedge_error *e);
/* The same in steps, while the payload arrives: start, walk as far as there
 * are bytes (the first `len`), end when all of them have been walked. */
struct block_frames {
    uint64_t at;   /* Offset of the next frame. */
    uint32_t left; /* Frames not yet seen. */
};
void block_frames_start(struct block_frames *f, const struct block_header *h);
void block_frames_walk(struct block_frames *f, const void *raw, uint64_t len);
int block_frames_end(const struct block_frames *f, const struct block_header *h,
                     struct hedge_error *e);

/* What a manifest adds up: independent of tiers, compression and of the
 * order in which blocks are added; any missing, doubled, moved or changed
 * block changes it. */
struct block_digest {
    uint64_t lo, hi;
};
void block_digest_add(struct block_digest *d, uint32_t writer,
                      uint64_t sequence, uint64_t raw_sum);
void block_digest_merge(struct block_digest *d, const struct block_digest *o);

#endif
