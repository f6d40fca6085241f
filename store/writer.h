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

#include "store/base/hash.h"
#include "store/segment.h"

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
int writer_write(struct writer *w, const void *data, size_t len);
/* Seal what is there, so that readers see it now. */
int writer_flush(struct writer *w);
/* Flush and end. After an error it seals what can still be kept. The manifest
 * counts whole records only. Returns the writer's status. */
int writer_finish(struct writer *w, struct manifest *out);
/* End without sealing. */
void writer_drop(struct writer *w);

#endif
