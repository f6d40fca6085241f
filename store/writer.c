#include "store/writer.h"

#include "store/base/error.h"

/* A record that would have to be split although it is small starts the next
 * block instead: what is lost is at most this part of a block, and readers of
 * a store with several writers do not have to fetch a block twice. */
#define SPLIT_FRACTION 32

void writer_init(struct writer *w, struct sink *sink)
{
    memset(w, 0, sizeof *w);
    w->sink = sink;
    w->capacity = sink->block_size - BLOCK_HEADER_SIZE;
    tally_init(&w->tally);
}

static int fail(struct writer *w, int rv)
{
    assert(rv < 0);
    if (w->status == 0) {
        w->status = rv;
        w->error.code = rv;
    }
    return rv;
}

/* The sink has failed by itself, not in one of the writer's calls. */
static int sink_failed(struct writer *w, int rv)
{
    void *block;

    if (w->status == 0 && w->sink->ops->why != NULL) {
        w->sink->ops->why(w->sink, &w->error);
    } else if (w->status == 0 &&
               w->sink->ops->block(w->sink, &block, &w->error) == 0) {
        w->sink->ops->back(w->sink, block); /* It fails, and says why. */
    }
    return fail(w, rv);
}

static int start_block(struct writer *w)
{
    void *block;
    int rv = w->sink->ops->block(w->sink, &block, &w->error);

    if (rv != 0) {
        return fail(w, rv);
    }
    w->payload = block_payload(block);
    w->at = w->hashed = 0;
    w->records = 0;
    w->first = BLOCK_FIRST_NONE;
    hash_init(&w->sum);
    return 0;
}

static int seal(struct writer *w, bool continues)
{
    struct block_header h = {
        .id = {.generation = w->sink->generation,
               .writer = w->sink->writer,
               .sequence = w->sequence},
        .records = w->records,
        .first = w->first,
        .raw_len = (uint32_t)w->at,
        .stored_len = (uint32_t)w->at,
        .flags = continues ? BLOCK_CONTINUES : 0,
        .codec = BLOCK_RAW,
    };
    void *block = w->payload - BLOCK_HEADER_SIZE;
    struct tally before = w->tally;
    int rv;

    assert(w->at > 0 && w->at <= w->capacity);
    hash_update(&w->sum, w->payload + w->hashed, w->at - w->hashed);
    h.raw_sum = h.stored_sum = hash_final(&w->sum);
    block_header_encode(&h, block);
    rv = tally_add(&w->tally, &h, tally_unfinished(&h, w->payload), &w->error);
    assert(rv == 0);
    w->payload = NULL;
    w->sequence++;
    rv = w->sink->ops->put(w->sink, block, &h, &w->error);
    if (rv != 0) {
        w->tally = before; /* It was not taken. */
        return fail(w, rv);
    }
    return 0;
}

void writer_hash(struct writer *w)
{
    size_t n = (w->at - w->hashed) / HASH_STEP * HASH_STEP;

    hash_update(&w->sum, w->payload + w->hashed, n);
    w->hashed += n;
}

static void add_bytes(struct writer *w, const void *data, size_t len)
{
    memcpy(w->payload + w->at, data, len);
    w->at += len;
    if (w->at - w->hashed >= HASH_STEP) {
        writer_hash(w);
    }
}

/* Copy in steps, so that each is hashed while it is in the cache. */
static void add_large(struct writer *w, const unsigned char *data, size_t len)
{
    while (len > 0) {
        size_t n = len < HASH_STEP ? len : HASH_STEP;

        add_bytes(w, data, n);
        data += n;
        len -= n;
    }
}

static int write_spanning(struct writer *w, const unsigned char *data,
                          size_t len)
{
    for (;;) {
        size_t room = w->capacity - w->at;
        size_t n = len < room ? len : room;
        int rv;

        add_large(w, data, n);
        data += n;
        len -= n;
        if (len == 0) {
            return 0;
        }
        rv = seal(w, true);
        if (rv == 0) {
            rv = start_block(w);
        }
        if (rv != 0) {
            return rv;
        }
    }
}

int writer_write_any(struct writer *w, const void *data, size_t len)
{
    int failed = atomic_load_explicit(&w->sink->failed, memory_order_relaxed);
    unsigned char frame[BLOCK_FRAME_SIZE];
    size_t room;
    int rv;

    if (failed != 0) {
        return sink_failed(w, failed);
    }
    if (w->status != 0) {
        return w->status;
    }
    if (len > BLOCK_RECORD_MAX) {
        /* The caller's mistake ends nothing. */
        return error_set(&w->error, HEDGE_ETOOBIG,
                         "a record of %zu bytes: at most %zu are possible", len,
                         BLOCK_RECORD_MAX);
    }
    if (w->payload != NULL) {
        room = w->capacity - w->at;
        if (room < BLOCK_FRAME_SIZE ||
            (room < BLOCK_FRAME_SIZE + len &&
             (room <= w->capacity / SPLIT_FRACTION))) {
            rv = seal(w, false);
            if (rv != 0) {
                return rv;
            }
        }
    }
    if (w->payload == NULL) {
        rv = start_block(w);
        if (rv != 0) {
            return rv;
        }
    }
    if (w->first == BLOCK_FIRST_NONE) {
        w->first = (uint32_t)w->at;
    }
    w->records++;
    put_le32(frame, (uint32_t)len);
    add_bytes(w, frame, sizeof frame);
    return write_spanning(w, data, len);
}

int writer_flush(struct writer *w)
{
    if (w->status == 0 && w->payload != NULL && w->at > 0) {
        return seal(w, false);
    }
    return w->status;
}

int writer_finish(struct writer *w, struct manifest *out)
{
    if (w->payload != NULL && w->at > 0) {
        (void)seal(w, false);
    }
    writer_drop(w);
    *out = tally_result(&w->tally);
    return w->status;
}

void writer_drop(struct writer *w)
{
    if (w->payload != NULL) {
        w->sink->ops->back(w->sink, w->payload - BLOCK_HEADER_SIZE);
        w->payload = NULL;
    }
}
