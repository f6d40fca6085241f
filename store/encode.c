#include "store/encode.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/codec.h"

#include <string.h>
#include <unistd.h>

/* What zstd's level 1 does on one core, until it has been measured here. */
#define RATE_GUESS 250e6
/* A tier must be this much slower, or the choice would flutter. */
#define MARGIN 0.8
#define METER_BYTES ((uint64_t)16 << 20)

struct encoder {
    struct codec *codec;
    void *out; /* Room for one block. */
};

struct encoders {
    size_t block_size;
    pthread_mutex_t lock;
    pthread_cond_t returned;
    struct encoder idle[ENCODERS_MAX]; /* A stack of n_idle. */
    unsigned n, n_idle;
    double rate; /* Of one thread; 0: not known. */
};

int encoders_new(size_t block_size, struct encoders **out)
{
    struct encoders *e = mem_calloc(1, sizeof *e);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);

    *out = e;
    if (e == NULL) {
        return HEDGE_ENOMEM;
    }
    e->block_size = block_size;
    e->n = cores < 1              ? 1
           : cores > ENCODERS_MAX ? ENCODERS_MAX
                                  : (unsigned)cores;
    e->n_idle = e->n;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->returned, NULL);
    return 0;
}

void encoders_free(struct encoders *e)
{
    if (e == NULL) {
        return;
    }
    assert(e->n_idle == e->n);
    for (unsigned i = 0; i < e->n; i++) {
        codec_free(e->idle[i].codec);
        mem_free(e->idle[i].out);
    }
    pthread_cond_destroy(&e->returned);
    pthread_mutex_destroy(&e->lock);
    mem_free(e);
}

static struct encoder borrow(struct encoders *e)
{
    struct encoder one;

    pthread_mutex_lock(&e->lock);
    while (e->n_idle == 0) {
        pthread_cond_wait(&e->returned, &e->lock);
    }
    one = e->idle[--e->n_idle];
    pthread_mutex_unlock(&e->lock);
    if (one.codec == NULL) {
        (void)codec_new(&one.codec);
    }
    if (one.out == NULL) {
        one.out = mem_alloc(e->block_size);
    }
    return one;
}

/* `rate` 0: nothing was measured. */
static void give_back(struct encoders *e, struct encoder one, double rate)
{
    pthread_mutex_lock(&e->lock);
    e->idle[e->n_idle++] = one;
    if (rate > 0) {
        e->rate = e->rate == 0 ? rate : e->rate + (rate - e->rate) / 8;
    }
    pthread_cond_signal(&e->returned);
    pthread_mutex_unlock(&e->lock);
}

bool encoders_run(struct encoders *e, int level, void *block,
                  struct block_header *h)
{
    struct encoder one = borrow(e);
    uint64_t start = clock_mono_ns();
    size_t raw_len = h->raw_len;
    bool smaller = false;
    double rate = 0;

    assert(h->codec == BLOCK_RAW &&
           BLOCK_HEADER_SIZE + raw_len <= e->block_size);
    if (one.codec != NULL && one.out != NULL) {
        smaller =
            codec_encode(one.codec, level != 0 ? level : ENCODE_LEVEL_DEFAULT,
                         block, h, one.out) == 1;
    }
    if (smaller) {
        rate = (double)raw_len * 1e9 / (double)(clock_mono_ns() - start + 1);
        memcpy(block, one.out, BLOCK_HEADER_SIZE + (size_t)h->stored_len);
    }
    give_back(e, one, rate);
    return smaller;
}

bool encoders_pay(struct encoders *e, const void *payload, size_t len,
                  double tier_rate, uint64_t waited_ns)
{
    struct encoder one;
    double rate;
    bool shrinks;

    pthread_mutex_lock(&e->lock);
    rate = e->rate == 0 ? RATE_GUESS : e->rate;
    pthread_mutex_unlock(&e->lock);
    if (tier_rate <= 0 || tier_rate >= rate * MARGIN ||
        (double)waited_ns * rate < (double)len * 1e9) {
        return false;
    }
    one = borrow(e);
    shrinks =
        one.codec != NULL && codec_sample_shrinks(one.codec, payload, len);
    give_back(e, one, 0);
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
