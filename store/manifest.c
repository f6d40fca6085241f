#include "store/manifest.h"

#include "store/base/bytes.h"

#include <string.h>

void manifest_merge(struct manifest *m, const struct manifest *o)
{
    m->records += o->records;
    m->bytes += o->bytes;
    block_digest_merge(&m->digest, &o->digest);
}

bool manifest_equal(const struct manifest *a, const struct manifest *b)
{
    return a->records == b->records && a->bytes == b->bytes &&
           a->digest.lo == b->digest.lo && a->digest.hi == b->digest.hi;
}

void tally_init(struct tally *t)
{
    memset(t, 0, sizeof *t);
    t->open_sequence = TALLY_NONE;
}

uint64_t tally_unfinished(const struct block_header *h, const void *raw)
{
    const unsigned char *p = raw;
    uint64_t at = h->first;

    if ((h->flags & BLOCK_CONTINUES) == 0 || h->first == BLOCK_FIRST_NONE) {
        return 0;
    }
    for (uint32_t i = 0; i + 1 < h->records && at + 4 <= h->raw_len; i++) {
        at += BLOCK_FRAME_SIZE + (uint64_t)get_le32(p + at);
    }
    at += BLOCK_FRAME_SIZE;
    return at <= h->raw_len ? h->raw_len - at : 0;
}

static int check_follows(const struct tally *t, const struct block_header *h,
                         struct hedge_error *e)
{
    bool open = t->open_sequence != TALLY_NONE;

    if (h->id.sequence != t->next_sequence) {
        return error_set(e, HEDGE_EPROTO,
                         "block %llu of writer %u came where %llu was due",
                         (unsigned long long)h->id.sequence, h->id.writer,
                         (unsigned long long)t->next_sequence);
    }
    if (open ? h->first == 0 : h->first != 0) {
        return error_set(e, HEDGE_EPROTO,
                         "block %llu of writer %u does not continue the "
                         "block before it",
                         (unsigned long long)h->id.sequence, h->id.writer);
    }
    return 0;
}

int tally_add(struct tally *t, const struct block_header *h,
              uint64_t unfinished, struct hedge_error *e)
{
    bool continues = (h->flags & BLOCK_CONTINUES) != 0;
    int rv = check_follows(t, h, e);

    if (rv != 0) {
        return rv;
    }
    t->next_sequence++;
    t->all.records += h->records;
    t->all.bytes += h->raw_len - (uint64_t)h->records * BLOCK_FRAME_SIZE;
    block_digest_add(&t->all.digest, h->id.writer, h->id.sequence, h->raw_sum);
    if (!continues) {
        t->open_sequence = TALLY_NONE;
        t->whole = t->all;
    } else if (h->first != BLOCK_FIRST_NONE) {
        t->open_sequence = h->id.sequence;
        t->whole = t->all;
        t->whole.records--;
        t->whole.bytes -= unfinished;
    }
    return 0;
}

struct manifest tally_result(const struct tally *t)
{
    return t->open_sequence == TALLY_NONE ? t->all : t->whole;
}
