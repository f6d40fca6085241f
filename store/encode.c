#include "store/encode.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/codec.h"

#include <pthread.h>
#include <unistd.h>

/* What zstd's level 1 does on one core, until it has been measured here. */
#define RATE_GUESS 250e6
/* A tier must be this much slower, or the choice would flutter. */
#define MARGIN 0.8
#define METER_BYTES ((uint64_t)16 << 20)

struct encoder {
    struct arena *arena;
    struct pool *pool;
    unsigned n_threads;
    pthread_mutex_t lock;
    struct codec *codecs[ENCODER_THREADS_MAX + 1]; /* Idle ones. */
    unsigned n_codecs;
    struct codec *sampler; /* Under its own lock. */
    pthread_mutex_t sampler_lock;
    double rate; /* Of one thread. */
};

int encoder_new(struct arena *arena, struct encoder **out)
{
    struct encoder *e = mem_calloc(1, sizeof *e);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int rv;

    *out = NULL;
    if (e == NULL) {
        return HEDGE_ENOMEM;
    }
    e->arena = arena;
    e->rate = RATE_GUESS;
    e->n_threads = cores < 1                     ? 1
                   : cores > ENCODER_THREADS_MAX ? ENCODER_THREADS_MAX
                                                 : (unsigned)cores;
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->sampler_lock, NULL);
    rv = codec_new(&e->sampler);
    for (; rv == 0 && e->n_codecs < e->n_threads; e->n_codecs++) {
        rv = codec_new(&e->codecs[e->n_codecs]);
        if (rv != 0) {
            break;
        }
    }
    if (rv == 0) {
        rv = pool_new(e->n_threads, "hedge-codec", &e->pool);
    }
    if (rv != 0) {
        encoder_free(e);
        return rv;
    }
    *out = e;
    return 0;
}

void encoder_free(struct encoder *e)
{
    if (e == NULL) {
        return;
    }
    pool_free(e->pool);
    while (e->n_codecs > 0) {
        codec_free(e->codecs[--e->n_codecs]);
    }
    codec_free(e->sampler);
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->sampler_lock);
    mem_free(e);
}

static struct codec *take_codec(struct encoder *e)
{
    struct codec *c;

    pthread_mutex_lock(&e->lock);
    assert(e->n_codecs > 0); /* As many as threads. */
    c = e->codecs[--e->n_codecs];
    pthread_mutex_unlock(&e->lock);
    return c;
}

static void give_codec(struct encoder *e, struct codec *c, size_t bytes,
                       uint64_t ns)
{
    double rate = (double)bytes * 1e9 / (double)(ns + 1);

    pthread_mutex_lock(&e->lock);
    e->codecs[e->n_codecs++] = c;
    if (bytes > 0) {
        e->rate += (rate - e->rate) / 8;
    }
    pthread_mutex_unlock(&e->lock);
}

static void run_encode(struct work *work)
{
    struct encode_req *r = container_of(work, struct encode_req, work);
    struct encoder *e = r->encoder;
    size_t len = BLOCK_HEADER_SIZE + (size_t)r->header.raw_len;
    void *out = arena_alloc(e->arena, ARENA_AHEAD, len);
    struct codec *c = take_codec(e);
    uint64_t start = clock_mono_ns();
    size_t done = 0;
    int rv = 0;

    r->encoded = NULL;
    if (out != NULL) {
        rv = codec_encode(c, r->level != 0 ? r->level : ENCODE_LEVEL_DEFAULT,
                          r->block, &r->header, out);
        done = rv == 1 ? r->header.raw_len : 0;
    }
    if (rv == 1) {
        r->encoded = out;
    } else if (out != NULL) {
        arena_unref(e->arena, out);
    }
    give_codec(e, c, done, clock_mono_ns() - start);
    r->cb(r);
}

void encoder_submit(struct encoder *e, struct encode_req *req)
{
    int rv;

    req->encoder = e;
    rv = pool_submit(e->pool, &req->work, run_encode);
    assert(rv == 0); /* Nobody submits to an encoder that is being freed. */
    (void)rv;
}

bool encoder_pays(struct encoder *e, const void *payload, size_t len,
                  double tier_rate)
{
    double rate;
    bool shrinks;

    pthread_mutex_lock(&e->lock);
    rate = e->rate * e->n_threads;
    pthread_mutex_unlock(&e->lock);
    if (tier_rate <= 0 || tier_rate > rate * MARGIN) {
        return false;
    }
    pthread_mutex_lock(&e->sampler_lock);
    shrinks = codec_sample_shrinks(e->sampler, payload, len);
    pthread_mutex_unlock(&e->sampler_lock);
    return shrinks;
}

void meter_init(struct meter *m)
{
    *m = (struct meter){.rate = 0};
    pthread_mutex_init(&m->lock, NULL);
}

void meter_release(struct meter *m)
{
    pthread_mutex_destroy(&m->lock);
}

void meter_begin(struct meter *m)
{
    pthread_mutex_lock(&m->lock);
    if (m->inflight++ == 0) {
        m->since_ns = clock_mono_ns();
    }
    pthread_mutex_unlock(&m->lock);
}

void meter_end(struct meter *m, size_t bytes)
{
    uint64_t now = clock_mono_ns();

    pthread_mutex_lock(&m->lock);
    assert(m->inflight > 0);
    m->inflight--;
    m->busy_ns += now - m->since_ns;
    m->since_ns = now;
    m->bytes += bytes;
    if (m->bytes >= METER_BYTES) {
        double rate = (double)m->bytes * 1e9 / (double)(m->busy_ns + 1);

        m->rate = m->rate == 0 ? rate : m->rate + (rate - m->rate) / 4;
        m->bytes = 0;
        m->busy_ns = 0;
    }
    pthread_mutex_unlock(&m->lock);
}

double meter_rate(struct meter *m)
{
    double rate;

    pthread_mutex_lock(&m->lock);
    rate = m->rate;
    pthread_mutex_unlock(&m->lock);
    return rate;
}
