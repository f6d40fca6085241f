#include "tests/lib/blocks.h"

#include "store/base/mem.h"
#include "tests/lib/check.h"

#include <string.h>

static struct blocks *of_sink(struct sink *s)
{
    return container_of(s, struct blocks, sink);
}

static struct blocks *of_source(struct source *s)
{
    return container_of(s, struct blocks, source);
}

static bool counts_down(unsigned *n)
{
    return *n > 0 && --*n == 0;
}

static int get_block(struct sink *s, void **block, struct hedge_error *e)
{
    struct blocks *b = of_sink(s);

    *block = NULL;
    if (counts_down(&b->fail_block_at)) {
        return error_set(e, HEDGE_EFULL, "no block for the test");
    }
    *block = mem_alloc(s->block_size);
    assert_non_null(*block);
    b->out++;
    return 0;
}

static int put_block(struct sink *s, void *block, const struct block_header *h,
                     struct hedge_error *e)
{
    struct blocks *b = of_sink(s);
    int rv;

    b->out--;
    if (counts_down(&b->fail_put_at)) {
        mem_free(block);
        return error_set(e, HEDGE_EFULL, "no room for the test");
    }
    rv = tally_add(&b->tally, h, tally_unfinished(h, block_payload(block)), e);
    assert_int_equal(rv, 0);
    assert_true(b->n < BLOCKS_MAX);
    b->block[b->n++] = block;
    return 0;
}

static void back_block(struct sink *s, void *block)
{
    of_sink(s)->out--;
    mem_free(block);
}

static const struct sink_ops sink_ops = {
    .block = get_block, .put = put_block, .back = back_block};

static int end_of(struct blocks *b, struct segment *seg)
{
    seg->state = b->state;
    seg->manifest = tally_result(&b->tally);
    seg->complete = true;
    return HEDGE_EEND;
}

/* What a store on this node does: check the header, not the payload. */
static int next_block(struct source *s, uint64_t timeout_ms,
                      struct segment *seg, struct hedge_error *e)
{
    struct blocks *b = of_source(s);
    const struct block_header *h = &seg->header;
    bool goes_on;
    int rv;

    (void)timeout_ms;
    memset(seg, 0, sizeof *seg);
    if (b->at == b->n) {
        return end_of(b, seg);
    }
    rv = block_header_decode(b->block[b->at], s->block_size, s->block_size,
                             &seg->header, e);
    if (rv != 0) {
        return rv;
    }
    goes_on = (h->flags & BLOCK_CONTINUES) != 0;
    seg->payload = block_payload(b->block[b->at]);
    seg->verified = b->trust;
    seg->continues = b->continues;
    seg->start = h->first == BLOCK_FIRST_NONE ? h->raw_len : h->first;
    seg->stop = h->raw_len;
    seg->last_incomplete = goes_on && h->first != BLOCK_FIRST_NONE &&
                           b->tally.open_sequence == h->id.sequence;
    b->continues = goes_on && !seg->last_incomplete;
    b->at++;
    if (seg->last_incomplete) {
        b->at = b->n; /* The rest belongs to the record without an end. */
    }
    return 0;
}

static void free_source(struct source *s)
{
    of_source(s)->freed = true;
}

static const struct source_ops source_ops = {.next = next_block,
                                             .free = free_source};

void blocks_init(struct blocks *b, size_t block_size)
{
    memset(b, 0, sizeof *b);
    b->sink.ops = &sink_ops;
    b->sink.generation = 7;
    b->sink.block_size = block_size;
    b->source.ops = &source_ops;
    b->source.block_size = block_size;
    b->state = STORE_CLOSED;
    tally_init(&b->tally);
}

void blocks_release(struct blocks *b)
{
    for (unsigned i = 0; i < b->n; i++) {
        mem_free(b->block[i]);
    }
    assert_int_equal(b->out, 0);
    b->n = 0;
}

struct source *blocks_source(struct blocks *b)
{
    b->at = 0;
    b->continues = false;
    b->freed = false;
    return &b->source;
}

struct block_header blocks_header(const struct blocks *b, unsigned i)
{
    struct block_header h;

    assert_int_equal(block_header_decode(b->block[i], b->sink.block_size,
                                         b->sink.block_size, &h, NULL),
                     0);
    return h;
}

void blocks_set_header(struct blocks *b, unsigned i,
                       const struct block_header *h)
{
    block_header_encode(h, b->block[i]);
}
