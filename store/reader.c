#include "store/reader.h"

#include "store/base/bytes.h"
#include "store/base/mem.h"
#include "store/sos.h"

#include <string.h>

int reader_init(struct reader *r, struct source *source)
{
    int rv;

    memset(r, 0, sizeof *r);
    r->source = source;
    rv = codec_new(&r->codec);
    if (rv != 0) {
        source->ops->free(source);
        r->source = NULL;
    }
    return rv;
}

void reader_release(struct reader *r)
{
    if (r->source != NULL) {
        r->source->ops->free(r->source);
        r->source = NULL;
    }
    codec_free(r->codec);
    r->codec = NULL;
    mem_free(r->decoded);
    r->decoded = NULL;
    mem_free(r->due);
    r->due = NULL;
}

/* Say which block of which store, and where it was. */
static int name_block(struct reader *r, int rv)
{
    const struct segment *seg = &r->seg;

    (void)error_prefix(&r->error, "store \"%s\", block %u/%llu on %s (%s)",
                       seg->store != NULL ? seg->store : "?",
                       seg->header.id.writer,
                       (unsigned long long)seg->header.id.sequence,
                       seg->node != NULL ? seg->node : "?",
                       seg->kind != NULL ? seg->kind : "?");
    return rv;
}

static int broken(struct reader *r, const char *what)
{
    return name_block(r, error_set(&r->error, HEDGE_ECORRUPT, "%s", what));
}

/* Make the raw payload of the segment available and check it. */
static int unpack(struct reader *r)
{
    const struct block_header *h = &r->seg.header;
    int rv;

    if (h->codec == BLOCK_RAW && r->seg.verified) {
        r->raw = r->seg.payload; /* stored_sum is raw_sum. */
        return 0;
    }
    if (h->codec == BLOCK_RAW) {
        r->raw = r->seg.payload;
    } else {
        if (r->decoded == NULL) {
            r->decoded = mem_alloc(r->source->block_size);
            if (r->decoded == NULL) {
                return error_set(&r->error, HEDGE_ENOMEM,
                                 "no memory to decompress");
            }
        }
        rv = codec_decode(r->codec, h, r->seg.payload, r->decoded, &r->error);
        if (rv != 0) {
            return name_block(r, rv);
        }
        r->raw = r->decoded;
    }
    rv = block_check_raw(h, r->raw, &r->error);
    return rv == 0 ? 0 : name_block(r, rv);
}

/* The writer's blocks must come in their sequence, whoever sends them. */
static int check_due(struct reader *r, const struct block_header *h)
{
    uint32_t writer = h->id.writer;

    if (writer >= SOS_WRITERS_MAX) {
        return broken(r, "its writer's number is too high");
    }
    if (writer >= r->n_due) {
        uint32_t n = writer < 8 ? 8 : writer + writer / 2;
        uint64_t *more = mem_realloc(r->due, n * sizeof *more);

        if (more == NULL) {
            return error_set(&r->error, HEDGE_ENOMEM, "no memory to read");
        }
        memset(more + r->n_due, 0, (n - r->n_due) * sizeof *more);
        r->due = more;
        r->n_due = n;
    }
    if (h->id.sequence != r->due[writer]) {
        return broken(r, "it is not the writer's next block");
    }
    r->due[writer]++;
    return 0;
}

/* Each block counts once: where its records are delivered, or, if none starts
 * in it, where it continues one. */
static int count_block(struct reader *r)
{
    const struct block_header *h = &r->seg.header;
    bool middle = h->first == BLOCK_FIRST_NONE;

    if (!middle && r->seg.start >= r->seg.stop) {
        return 0;
    }
    block_digest_add(&r->seen.digest, h->id.writer, h->id.sequence, h->raw_sum);
    return check_due(r, h);
}

static int at_end(struct reader *r)
{
    if (r->in_record) {
        return broken(r, "the data end inside a record");
    }
    if (r->seg.state == STORE_CLOSED && r->seg.complete &&
        !manifest_equal(&r->seen, &r->seg.manifest)) {
        return error_set(&r->error, HEDGE_ECORRUPT,
                         "what was read (%llu records, %llu bytes) is not "
                         "what was written (%llu records, %llu bytes)",
                         (unsigned long long)r->seen.records,
                         (unsigned long long)r->seen.bytes,
                         (unsigned long long)r->seg.manifest.records,
                         (unsigned long long)r->seg.manifest.bytes);
    }
    if (r->seg.state == STORE_ABORTED) {
        (void)error_set(&r->error, HEDGE_EABORTED,
                        "a writer vanished before it closed; %llu whole "
                        "records were there",
                        (unsigned long long)r->seen.records);
        return r->seg.store != NULL
                   ? error_prefix(&r->error, "store \"%s\"", r->seg.store)
                   : HEDGE_EABORTED;
    }
    return HEDGE_EEND;
}

static int next_segment(struct reader *r, uint64_t timeout_ms)
{
    int rv = r->source->ops->next(r->source, timeout_ms, &r->seg, &r->error);

    if (rv == HEDGE_EEND) {
        rv = at_end(r);
    } else if (rv == 0) {
        rv = unpack(r);
        if (rv == 0 && r->seg.continues != r->in_record) {
            rv = broken(r, "it does not continue the record before it");
        }
        rv = rv != 0 ? rv : count_block(r);
        r->at = r->seg.start;
        r->continuing = r->seg.continues;
    }
    if (rv != 0 && rv != HEDGE_ETIMEDOUT) {
        r->status = rv;
        r->error.code = rv;
    }
    return rv;
}

static int deliver(struct reader *r, struct piece *out, uint64_t from,
                   uint64_t len)
{
    out->data = r->raw + from;
    out->len = (size_t)len;
    r->owed -= len;
    r->seen.bytes += len;
    out->last = r->owed == 0;
    r->in_record = !out->last;
    return 0;
}

static int deliver_continuation(struct reader *r, struct piece *out)
{
    const struct block_header *h = &r->seg.header;
    uint64_t len = h->first == BLOCK_FIRST_NONE ? h->raw_len : h->first;
    bool goes_on =
        h->first == BLOCK_FIRST_NONE && (h->flags & BLOCK_CONTINUES) != 0;

    r->continuing = false;
    if (goes_on ? len >= r->owed : len != r->owed) {
        return r->status = broken(r, "a record's length does not match");
    }
    out->first = false;
    return deliver(r, out, 0, len);
}

/* One record, or its first part; HEDGE_EAGAIN when the block has no more. */
static int deliver_record(struct reader *r, struct piece *out)
{
    uint64_t body, len, there;

    if (r->at >= r->seg.stop) {
        if ((r->seg.header.flags & BLOCK_CONTINUES) != 0 && !r->in_record &&
            r->seg.start < r->seg.stop && !r->seg.last_incomplete) {
            return r->status = broken(r, "no record of it continues");
        }
        return HEDGE_EAGAIN;
    }
    body = r->at + BLOCK_FRAME_SIZE;
    if (body > r->seg.header.raw_len) {
        return r->status = broken(r, "a record's frame is cut");
    }
    len = get_le32(r->raw + r->at);
    there = r->seg.header.raw_len - body;
    if (len > BLOCK_RECORD_MAX) {
        return r->status = broken(r, "a record is longer than allowed");
    }
    if (len > there) {
        if ((r->seg.header.flags & BLOCK_CONTINUES) == 0) {
            return r->status = broken(r, "a record overruns its block");
        }
        r->at = r->seg.stop;
        if (r->seg.last_incomplete) {
            return HEDGE_EAGAIN;
        }
    } else {
        there = len;
        r->at = body + len;
    }
    out->first = true;
    r->owed = len;
    r->seen.records++;
    return deliver(r, out, body, there);
}

/* The usual case, short because it is what a small record costs: the next
 * record is in the block as a whole. False: look closer; nothing was done. */
static inline bool deliver_whole(struct reader *r, struct piece *out)
{
    uint64_t body = r->at + BLOCK_FRAME_SIZE;
    uint64_t raw_len = r->seg.header.raw_len;
    uint32_t len;

    if (r->at >= r->seg.stop || body > raw_len) {
        return false;
    }
    len = get_le32(r->raw + r->at);
    if (len > raw_len - body) {
        return false;
    }
    r->at = body + len;
    r->seen.records++;
    r->seen.bytes += len;
    *out = (struct piece){
        .data = r->raw + body, .len = len, .first = true, .last = true};
    return true;
}

int reader_next(struct reader *r, uint64_t timeout_ms, struct piece *out)
{
    if (r->status == 0 && !r->continuing && deliver_whole(r, out)) {
        return 0;
    }
    memset(out, 0, sizeof *out);
    while (r->status == 0) {
        int rv;

        if (r->continuing) {
            return deliver_continuation(r, out);
        }
        rv = deliver_record(r, out);
        if (rv != HEDGE_EAGAIN) {
            return rv;
        }
        rv = next_segment(r, timeout_ms);
        if (rv != 0) {
            return rv;
        }
    }
    return r->status;
}
