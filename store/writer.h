/* writer.h - records in, sealed blocks out.
 *
 * Ownership: writer_init() borrows the sink, which must outlive the writer.
 *            Records are copied.
 * Threads:   one thread at a time.
 * Errors:    any error ends the writer: later calls return it again. The
 *            record of the failed call is not stored; all before it are.
 *            Only HEDGE_ETOOBIG leaves the writer as it was.
 * Units:     bytes.
 * Limits:    a record has 0 to BLOCK_RECORD_MAX bytes. */
#ifndef STORE_WRITER_H
#define STORE_WRITER_H

#include "store/base/bytes.h"
#include "store/base/hash.h"
#include "store/segment.h"

#include <string.h>

struct writer {
    struct sink *sink;
    unsigned char *payload; /* Of the block being filled; NULL: none. */
    size_t capacity, at, hashed;
    uint32_t records, first;
    uint64_t sequence;
    struct tally tally;
    int status;
    struct hedge_error error;
    struct hash sum;
};

void writer_init(struct writer *w, struct sink *sink);
/* writer_write() for all but small records that fit the block at hand. */
int writer_write_any(struct writer *w, const void *data, size_t len);
void writer_hash(struct writer *w);

/* Inline, because a call is a good part of what a small record costs. */
static inline int writer_write(struct writer *w, const void *data, size_t len)
{
    if (w->payload == NULL || w->status != 0 || w->records == 0 ||
        len > HASH_STEP || w->capacity - w->at < BLOCK_FRAME_SIZE + len ||
        atomic_load_explicit(&w->sink->failed, memory_order_relaxed) != 0) {
        return writer_write_any(w, data, len);
    }
    put_le32(w->payload + w->at, (uint32_t)len);
    memcpy(w->payload + w->at + BLOCK_FRAME_SIZE, data, len);
    w->at += BLOCK_FRAME_SIZE + len;
    w->records++;
    if (w->at - w->hashed >= HASH_STEP) {
        writer_hash(w);
    }
    return 0;
}
/* Seal what is there, so that readers see it now. */
int writer_flush(struct writer *w);
/* Flush and end. After an error it seals what can still be kept. The manifest
 * counts whole records only. Returns the writer's status. */
int writer_finish(struct writer *w, struct manifest *out);
/* End without sealing. */
void writer_drop(struct writer *w);

#endif
