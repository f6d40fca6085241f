/* Arbitrary bytes as a block, and as a sequence of blocks with right sums that
 * a source gives to a reader: an error or records, never an overrun. */
#include "store/base/bytes.h"
#include "store/base/hash.h"
#include "store/reader.h"

#include <stdlib.h>
#include <string.h>

#define SIZE ((size_t)4096)

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static void try_header(const unsigned char *data, size_t size)
{
    struct block_header h;
    unsigned char copy[BLOCK_HEADER_SIZE];

    (void)block_header_decode(data, size, SIZE, &h, NULL);
    if (size < BLOCK_HEADER_SIZE) {
        return;
    }
    /* Past the checksum, which no fuzzer finds. */
    memcpy(copy, data, sizeof copy);
    put_le32(copy, BLOCK_MAGIC);
    put_le32(copy + 60, hash32(copy, 60));
    if (block_header_decode(copy, sizeof copy, SIZE, &h, NULL) != 0 ||
        h.raw_len > size - BLOCK_HEADER_SIZE) {
        return;
    }
    (void)block_check_frames(&h, data + BLOCK_HEADER_SIZE, NULL);
    {
        struct tally t;

        tally_init(&t);
        h.id.sequence = 0;
        (void)tally_add(&t, &h, tally_unfinished(&h, data + BLOCK_HEADER_SIZE),
                        NULL);
        (void)tally_result(&t);
    }
}

/* Segments out of the input: 12 bytes of header fields, then a payload. */
struct bytes_source {
    struct source base;
    const unsigned char *at;
    size_t left;
    uint64_t sequence;
    unsigned char *payload; /* Of the exact size, for the sanitizer. */
};

static bool read_header(struct bytes_source *s, struct segment *seg)
{
    struct block_header *h = &seg->header;
    const unsigned char *p = s->at;
    unsigned char header[BLOCK_HEADER_SIZE];

    if (s->left < 12) {
        return false;
    }
    h->raw_len = h->stored_len = get_le16(p) % (SIZE - BLOCK_HEADER_SIZE) + 1u;
    h->records = p[2];
    h->first = h->records == 0 ? BLOCK_FIRST_NONE : get_le16(p + 3);
    h->flags = p[5] & BLOCK_CONTINUES;
    h->id.sequence = (p[5] & 2) != 0 ? s->sequence : p[6];
    h->id.writer = p[7] % 3;
    seg->continues = (p[8] & 1) != 0;
    seg->last_incomplete = (p[8] & 2) != 0;
    seg->verified = (p[8] & 4) != 0;
    seg->complete = (p[8] & 8) != 0;
    seg->state = p[9] % 3;
    s->at += 12;
    s->left -= 12;
    if (h->raw_len > s->left ||
        (h->first != BLOCK_FIRST_NONE && h->first > h->raw_len)) {
        return false;
    }
    block_header_encode(h, header);
    return block_header_decode(header, sizeof header, SIZE, h, NULL) == 0;
}

static int next(struct source *base, uint64_t timeout_ms, struct segment *seg,
                struct hedge_error *e)
{
    struct bytes_source *s = container_of(base, struct bytes_source, base);
    struct block_header *h = &seg->header;

    (void)timeout_ms;
    (void)e;
    memset(seg, 0, sizeof *seg);
    if (!read_header(s, seg)) {
        return HEDGE_EEND;
    }
    free(s->payload);
    s->payload = malloc(h->raw_len);
    memcpy(s->payload, s->at, h->raw_len);
    s->at += h->raw_len;
    s->left -= h->raw_len;
    s->sequence++;
    h->raw_sum = h->stored_sum = hash64(s->payload, h->raw_len);
    seg->payload = s->payload;
    seg->start = h->first == BLOCK_FIRST_NONE ? h->raw_len : h->first;
    seg->stop = h->raw_len;
    return 0;
}

static void free_source(struct source *base)
{
    free(container_of(base, struct bytes_source, base)->payload);
}

static const struct source_ops ops = {.next = next, .free = free_source};

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    struct bytes_source s = {
        .base = {.ops = &ops, .block_size = SIZE}, .at = data, .left = size};
    struct reader r;
    struct piece p;
    volatile unsigned char sum = 0;

    try_header(data, size);
    if (reader_init(&r, &s.base) == 0) {
        while (reader_next(&r, 0, &p) == 0) {
            for (size_t i = 0; i < p.len; i++) {
                sum = sum ^ ((const unsigned char *)p.data)[i];
            }
        }
        reader_release(&r);
    }
    return 0;
}
