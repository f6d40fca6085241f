/* encode.h - making blocks smaller before they leave, and knowing when that
 * pays.
 *
 * `zstd` compresses every block. `auto` compresses what leaves the memory here
 * for a tier that is slower than the compressor, in time that the writer would
 * spend waiting for that tier, and only what a sample says will shrink: then
 * the stream gets faster, and otherwise it is left alone.
 *
 * Ownership: encoders_new() / _free(); a struct meter is embedded by the node.
 * Threads:   any; a call waits while every encoder is in use.
 * Errors:    none that matter: a block that cannot be encoded stays as it is.
 * Units:     bytes; rates in bytes per second.
 * Limits:    one encoder per core, ENCODERS_MAX at most, each with room for one
 *            block; that and zstd's own memory come from the heap, on first
 *            use. */
#ifndef STORE_ENCODE_H
#define STORE_ENCODE_H

#include "store/block.h"

#include <pthread.h>

#define ENCODERS_MAX 4
#define ENCODE_LEVEL_DEFAULT 1

struct encoders;

int encoders_new(size_t block_size, struct encoders **out);
/* Nobody may be encoding. NULL is fine. */
void encoders_free(struct encoders *e);

/* Encode a sealed raw block where it is; *h becomes the new header. False: it
 * does not shrink, or there is no memory for it, and nothing has changed. */
bool encoders_run(struct encoders *e, int level, void *block,
                  struct block_header *h);

/* Would encoding this payload speed up a stream to a tier that takes
 * `tier_rate` (0: not known yet) and whose writer has waited for room for
 * `waited_ns` that encoding has not used yet? A writer that does not wait would
 * only lose time by it, however slow the tier seems. */
bool encoders_pay(struct encoders *e, const void *payload, size_t len,
                  double tier_rate, uint64_t waited_ns);

/* How fast a tier takes blocks, measured while something is on its way. */
struct meter {
    pthread_mutex_t lock;
    unsigned inflight;
    uint64_t since_ns, busy_ns, bytes;
    double rate;
};

void meter_init(struct meter *m);
void meter_release(struct meter *m);
void meter_begin(struct meter *m);
void meter_end(struct meter *m, size_t bytes);
double meter_rate(struct meter *m);

#endif
