#include "store/catalog/catalog_internal.h"

#include "store/base/bytes.h"

#include <assert.h>
#include <string.h>

void catalog_key_encode(const struct block_id *id,
                        unsigned char out[CATALOG_KEY_SIZE])
{
    put_be64(out, id->generation);
    put_be32(out + 8, id->writer);
    put_be64(out + 12, id->sequence);
}

int catalog_key_decode(const void *in, size_t len, struct block_id *out)
{
    const unsigned char *p = in;

    if (len != CATALOG_KEY_SIZE) {
        return HEDGE_ECORRUPT;
    }
    memset(out, 0, sizeof *out);
    out->generation = get_be64(p);
    out->writer = get_be32(p + 8);
    out->sequence = get_be64(p + 12);
    return 0;
}

size_t catalog_entry_encode(const struct catalog_entry *entry,
                            unsigned char out[CATALOG_ENTRY_MAX])
{
    unsigned char *p = out + CATALOG_ENTRY_HEAD;

    assert(entry->n_copies <= CATALOG_COPIES_MAX);
    put_le64(out, entry->ordinal);
    put_le64(out + 8, entry->raw_sum);
    put_le64(out + 16, entry->stored_sum);
    put_le32(out + 24, entry->raw_len);
    put_le32(out + 28, entry->stored_len);
    put_le32(out + 32, entry->records);
    put_le32(out + 36, entry->first);
    put_le16(out + 40, entry->flags);
    out[42] = entry->codec;
    out[43] = entry->n_copies;
    for (unsigned i = 0; i < entry->n_copies; i++) {
        const struct catalog_copy *copy = &entry->copies[i];
        assert(copy->where <= CATALOG_PEER);
        put_le64(p, copy->place.addr);
        put_le32(p + 8, copy->place.unit);
        put_le32(p + 12, copy->place.kind);
        p[16] = (unsigned char)copy->where;
        p += CATALOG_COPY_SIZE;
    }
    return (size_t)(p - out);
}

int catalog_entry_decode(const void *in, size_t len, struct catalog_entry *out)
{
    const unsigned char *p = in;

    memset(out, 0, sizeof *out);
    if (len < CATALOG_ENTRY_HEAD || p[43] > CATALOG_COPIES_MAX ||
        len != CATALOG_ENTRY_HEAD + (size_t)p[43] * CATALOG_COPY_SIZE) {
        return HEDGE_ECORRUPT;
    }
    out->ordinal = get_le64(p);
    out->raw_sum = get_le64(p + 8);
    out->stored_sum = get_le64(p + 16);
    out->raw_len = get_le32(p + 24);
    out->stored_len = get_le32(p + 28);
    out->records = get_le32(p + 32);
    out->first = get_le32(p + 36);
    out->flags = get_le16(p + 40);
    out->codec = p[42];
    out->n_copies = p[43];
    p += CATALOG_ENTRY_HEAD;
    for (unsigned i = 0; i < out->n_copies; i++, p += CATALOG_COPY_SIZE) {
        struct catalog_copy *copy = &out->copies[i];
        copy->place.addr = get_le64(p);
        copy->place.unit = get_le32(p + 8);
        copy->place.kind = get_le32(p + 12);
        copy->where = p[16];
        if (copy->where > CATALOG_PEER) {
            return HEDGE_ECORRUPT;
        }
    }
    return 0;
}
