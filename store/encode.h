/* encode.h - making blocks smaller on threads of their own, and knowing when
 * that pays.
 *
 * `zstd` compresses every block. `auto` compresses what leaves the memory here
 * for a tier that is slower than the compressor, and only what a sample says
 * will shrink: then the stream gets faster, and otherwise it is left alone.
 *
 * Ownership: encoder_new() / _free(). A request is the caller's and stays valid
 *            until its callback has run; so does the block, unchanged.
 * Threads:   any; callbacks run on the encoder's threads and do not block.
 * Errors:    none that matter: a block that cannot be encoded stays as it is.
 * Units:     bytes; rates in bytes per second.
 * Limits:    one thread per core, ENCODER_THREADS_MAX at most. */
#ifndef STORE_ENCODE_H
#define STORE_ENCODE_H

#include "store/arena.h"
#include "store/base/pool.h"
#include "store/block.h"

#include <pthread.h>

#define ENCODER_THREADS_MAX 4
#define ENCODE_LEVEL_DEFAULT 1

struct encoder;
struct encode_req;
typedef void (*encode_cb)(struct encode_req *req);

struct encode_req {
    struct work work;
    struct encoder *encoder;
    const void *block;          /* In: sealed and raw. */
    int level;                  /* In: 0 is the default. */
    struct block_header header; /* In: the block's. Out: the encoded one's. */
    void *encoded; /* Out: a block of the arena (ARENA_AHEAD) to be unref'd, or
                    * NULL: not worth it, or no memory. */
    encode_cb cb;
    void *ctx;
};

int encoder_new(struct arena *arena, struct encoder **out);
/* Runs what has been submitted. NULL is fine. */
void encoder_free(struct encoder *e);
/* The callback runs exactly once. */
void encoder_submit(struct encoder *e, struct encode_req *req);

/* Would encoding this payload speed up a stream to a tier that takes
 * `tier_rate` (0: not known yet)? */
bool encoder_pays(struct encoder *e, const void *payload, size_t len,
                  double tier_rate);

/* --- how fast a tier takes blocks -------------------------------------------
 */

/* Measured while something is on its way; embedded by its user. */
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
