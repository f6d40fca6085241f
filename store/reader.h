/* reader.h - blocks in, records out, everything checked.
 *
 * Ownership: the reader owns its source and frees it. Pieces point into the
 *            current block and are valid until the next call.
 * Threads:   one thread at a time.
 * Errors:    HEDGE_ECORRUPT, HEDGE_ELOST and others name store and block; they
 *            come instead of data and come again on the next call.
 * Units:     bytes, milliseconds.
 * Limits:    none of its own. */
#ifndef STORE_READER_H
#define STORE_READER_H

#include "store/codec.h"
#include "store/segment.h"

/* A record, or a part of one that spans blocks. */
struct piece {
    const void *data;
    size_t len;
    bool first, last;
};

struct reader {
    struct source *source;
    struct codec *codec;
    void *decoded; /* Room for a decompressed payload, made when needed. */
    struct segment seg;
    const unsigned char *raw;
    uint64_t at;     /* Offset of the next frame in the payload. */
    bool continuing; /* The continuing part is to be delivered next. */
    bool in_record;  /* A FIRST piece was delivered, LAST was not. */
    uint64_t owed;   /* Bytes of that record still to come. */
    struct manifest seen;
    uint64_t *due; /* By writer: the sequence of its next block. */
    uint32_t n_due;
    int status;
    struct hedge_error error;
};

/* Takes the source, on failure too. */
int reader_init(struct reader *r, struct source *source);
void reader_release(struct reader *r);
/* HEDGE_EEND after the last record, when what was delivered is complete;
 * HEDGE_EABORTED when the writer vanished and this was all that is whole;
 * HEDGE_ETIMEDOUT when nothing came in time (call again). */
int reader_next(struct reader *r, uint64_t timeout_ms, struct piece *out);

#endif
