#include "store/block.h"

#include "store/base/bytes.h"
#include "store/base/hash.h"

#include <string.h>

enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_CODEC = 5,
    AT_FLAGS = 6,
    AT_GENERATION = 8,
    AT_SEQUENCE = 16,
    AT_WRITER = 24,
    AT_RECORDS = 28,
    AT_FIRST = 32,
    AT_RAW_LEN = 36,
    AT_STORED_LEN = 40,
    AT_RAW_SUM = 44,
    AT_STORED_SUM = 52,
    AT_HEADER_SUM = 60,
    AT_END = 64,
};
static_assert(AT_END == BLOCK_HEADER_SIZE, "the header is 64 bytes");
static_assert(AT_HEADER_SUM + 4 == AT_END, "the sum comes last");

void block_header_encode(const struct block_header *h, void *out)
{
    unsigned char *p = out;

    assert(h->first == BLOCK_FIRST_NONE || h->first <= h->raw_len);
    assert((h->records == 0) == (h->first == BLOCK_FIRST_NONE));
    put_le32(p + AT_MAGIC, BLOCK_MAGIC);
    p[AT_VERSION] = BLOCK_VERSION;
    p[AT_CODEC] = h->codec;
    put_le16(p + AT_FLAGS, h->flags);
    put_le64(p + AT_GENERATION, h->id.generation);
    put_le64(p + AT_SEQUENCE, h->id.sequence);
    put_le32(p + AT_WRITER, h->id.writer);
    put_le32(p + AT_RECORDS, h->records);
    put_le32(p + AT_FIRST, h->first);
    put_le32(p + AT_RAW_LEN, h->raw_len);
    put_le32(p + AT_STORED_LEN, h->stored_len);
    put_le64(p + AT_RAW_SUM, h->raw_sum);
    put_le64(p + AT_STORED_SUM, h->stored_sum);
    put_le32(p + AT_HEADER_SUM, hash32(p, AT_HEADER_SUM));
}

static int check_numbers(const struct block_header *h, size_t block_size,
                         struct hedge_error *e)
{
    size_t max = block_size - BLOCK_HEADER_SIZE;

    if (h->codec > BLOCK_ZSTD || (h->flags & ~BLOCK_CONTINUES) != 0) {
        return error_set(e, HEDGE_EVERSION,
                         "block header: codec %u or flags %#x are unknown",
                         h->codec, h->flags);
    }
    if (h->raw_len > max || h->stored_len > max || h->raw_len == 0 ||
        h->stored_len == 0 ||
        (h->codec == BLOCK_RAW &&
         (h->raw_len != h->stored_len || h->raw_sum != h->stored_sum))) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block header: lengths %u and %u do not fit blocks "
                         "of %zu bytes",
                         h->raw_len, h->stored_len, block_size);
    }
    if ((h->records == 0) != (h->first == BLOCK_FIRST_NONE) ||
        (h->first != BLOCK_FIRST_NONE &&
         ((uint64_t)h->first + BLOCK_FRAME_SIZE * (uint64_t)h->records >
          h->raw_len))) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block header: %u records from offset %u on do not "
                         "fit %u bytes",
                         h->records, h->first, h->raw_len);
    }
    return 0;
}

int block_header_decode(const void *in, size_t len, size_t block_size,
                        struct block_header *out, struct hedge_error *e)
{
    const unsigned char *p = in;

    memset(out, 0, sizeof *out);
    if (len < BLOCK_HEADER_SIZE) {
        return error_set(e, HEDGE_ECORRUPT,
                         "a block of %zu bytes has no whole header", len);
    }
    if (get_le32(p + AT_MAGIC) != BLOCK_MAGIC ||
        get_le32(p + AT_HEADER_SUM) != hash32(p, AT_HEADER_SUM)) {
        return error_set(e, HEDGE_ECORRUPT,
                         "the block header does not match its checksum");
    }
    if (p[AT_VERSION] != BLOCK_VERSION) {
        return error_set(e, HEDGE_EVERSION,
                         "block version %u, this program knows version %u",
                         p[AT_VERSION], BLOCK_VERSION);
    }
    out->codec = p[AT_CODEC];
    out->flags = get_le16(p + AT_FLAGS);
    out->id.generation = get_le64(p + AT_GENERATION);
    out->id.sequence = get_le64(p + AT_SEQUENCE);
    out->id.writer = get_le32(p + AT_WRITER);
    out->records = get_le32(p + AT_RECORDS);
    out->first = get_le32(p + AT_FIRST);
    out->raw_len = get_le32(p + AT_RAW_LEN);
    out->stored_len = get_le32(p + AT_STORED_LEN);
    out->raw_sum = get_le64(p + AT_RAW_SUM);
    out->stored_sum = get_le64(p + AT_STORED_SUM);
    return check_numbers(out, block_size, e);
}

int block_header_expect(const struct block_header *h, const struct block_id *id,
                        struct hedge_error *e)
{
    if (!block_id_equal(&h->id, id)) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block %llx/%u/%llu is there instead of %llx/%u/%llu",
                         (unsigned long long)h->id.generation, h->id.writer,
                         (unsigned long long)h->id.sequence,
                         (unsigned long long)id->generation, id->writer,
                         (unsigned long long)id->sequence);
    }
    return 0;
}

int block_check_stored(const struct block_header *h, const void *payload,
                       struct hedge_error *e)
{
    if (hash64(payload, h->stored_len) != h->stored_sum) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block %llx/%u/%llu does not match its checksum",
                         (unsigned long long)h->id.generation, h->id.writer,
                         (unsigned long long)h->id.sequence);
    }
    return 0;
}

void block_frames_start(struct block_frames *f, const struct block_header *h)
{
    f->at = h->first == BLOCK_FIRST_NONE ? h->raw_len : h->first;
    f->left = h->records;
}

void block_frames_walk(struct block_frames *f, const void *raw, uint64_t len)
{
    const unsigned char *p = raw;
    uint64_t at = f->at;
    uint32_t left = f->left;

    for (; left > 0 && at + BLOCK_FRAME_SIZE <= len; left--) {
        at += BLOCK_FRAME_SIZE + (uint64_t)get_le32(p + at);
    }
    f->at = at;
    f->left = left;
}

int block_frames_end(const struct block_frames *f, const struct block_header *h,
                     struct hedge_error *e)
{
    bool continues = (h->flags & BLOCK_CONTINUES) != 0;

    if (f->left > 0) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block %llx/%u/%llu: record %u of %u does not "
                         "start in it",
                         (unsigned long long)h->id.generation, h->id.writer,
                         (unsigned long long)h->id.sequence,
                         h->records - f->left, h->records);
    }
    if (continues ? h->records > 0 && f->at <= h->raw_len
                  : f->at != h->raw_len) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block %llx/%u/%llu: its records end at byte %llu of "
                         "%u",
                         (unsigned long long)h->id.generation, h->id.writer,
                         (unsigned long long)h->id.sequence,
                         (unsigned long long)f->at, h->raw_len);
    }
    return 0;
}

int block_check_frames(const struct block_header *h, const void *raw,
                       struct hedge_error *e)
{
    struct block_frames f;

    block_frames_start(&f, h);
    block_frames_walk(&f, raw, h->raw_len);
    return block_frames_end(&f, h, e);
}

int block_check_raw(const struct block_header *h, const void *raw,
                    struct hedge_error *e)
{
    if (hash64(raw, h->raw_len) != h->raw_sum) {
        return error_set(e, HEDGE_ECORRUPT,
                         "block %llx/%u/%llu does not match its checksum",
                         (unsigned long long)h->id.generation, h->id.writer,
                         (unsigned long long)h->id.sequence);
    }
    return 0;
}

void block_digest_add(struct block_digest *d, uint32_t writer,
                      uint64_t sequence, uint64_t raw_sum)
{
    unsigned char key[20];
    struct hash128 h;

    put_le32(key, writer);
    put_le64(key + 4, sequence);
    put_le64(key + 12, raw_sum);
    h = hash128_of(key, sizeof key);
    d->lo += h.lo;
    d->hi += h.hi;
}

void block_digest_merge(struct block_digest *d, const struct block_digest *o)
{
    d->lo += o->lo;
    d->hi += o->hi;
}
