/* sink.c - a writer of a store: its blocks are numbered, shown to the readers,
 * and kept in memory or sent on their way. */
#include "store/passage_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <string.h>

#define WAIT_STEP_MS 50
#define WAITED_MAX_NS 50000000u /* More than encoding a block takes. */

void sink_fail(struct sos_sink *sink, int code, const char *text)
{
    if (atomic_load(&sink->base.failed) == 0) {
        if (code == HEDGE_EFULL) {
            count_add(&sink->store->sos->counts.writers_full, 1);
        }
        (void)error_set(&sink->error, code, "%s", text);
        atomic_store(&sink->base.failed, code);
    }
}

void sink_home_block(struct sos_sink *sink, void *block)
{
    if (arena_home(sink->store->sos->arena, block)) {
        assert(!sink->homed);
        sink->homed = true;
    }
}

static struct sos_sink *sink_of(struct sink *base)
{
    return container_of(base, struct sos_sink, base);
}

static int sink_status(struct sos_sink *sink, struct hedge_error *e)
{
    int rv = atomic_load(&sink->base.failed);

    if (rv != 0) {
        pthread_mutex_lock(&sink->store->lock);
        if (e != NULL) {
            *e = sink->error;
        }
        pthread_mutex_unlock(&sink->store->lock);
    }
    return rv;
}

void sos_sink_error(struct sink *base, struct hedge_error *out)
{
    (void)sink_status(sink_of(base), out);
}

/* The writer asks because one of its calls is about to fail. */
static void sink_why(struct sink *base, struct hedge_error *out)
{
    sink_of(base)->told = true;
    (void)sink_status(sink_of(base), out);
}

/* The one block a writer has claimed is still on its way. */
static void wait_filled(struct sos_sink *sink)
{
    struct sos_store *store = sink->store;

    if (sink->in_fill) {
        pthread_mutex_lock(&store->lock);
        while (sink->in_fill) {
            pthread_cond_wait(&store->changed, &store->lock);
        }
        pthread_mutex_unlock(&store->lock);
    }
}

/* Waiting is remembered for a while only: the tier may be faster by then. */
static void has_waited(struct sos_sink *sink, uint64_t since_ns)
{
    uint64_t ns = sink->waited_ns + clock_mono_ns() - since_ns;

    sink->waited_ns = ns < WAITED_MAX_NS ? ns : WAITED_MAX_NS;
}

static int sink_block(struct sink *base, void **block, struct hedge_error *e)
{
    struct sos_sink *sink = sink_of(base);
    struct sos *s = sink->store->sos;
    uint64_t start = clock_mono_ns();

    *block = NULL;
    wait_filled(sink);
    for (;;) {
        int rv = sink_status(sink, e);

        if (rv != 0) {
            sink->told = true;
            return rv;
        }
        if (sink->store->dead) {
            return error_set(e, HEDGE_ENOTFOUND,
                             "store \"%s\" was removed while it was written",
                             sink->store->name);
        }
        *block =
            arena_alloc_wait(s->arena, ARENA_FILL, s->block_size, WAIT_STEP_MS);
        if (*block != NULL) {
            has_waited(sink, start);
            return 0;
        }
    }
}

static void sink_back(struct sink *base, void *block)
{
    arena_unref(sink_of(base)->store->sos->arena, block);
}

/* Fill waits for out, as long as anything leaves it: what readers hold on is
 * theirs. When OUT is the home of blocks that nobody took, the block leaves
 * from where it was filled, and the writer waits for that. */
static void move_out(struct sos_sink *sink, void *block)
{
    struct arena *arena = sink->store->sos->arena;
    uint64_t start = clock_mono_ns();

    while (!arena_move_wait(arena, block, ARENA_OUT, WAIT_STEP_MS)) {
        if (sink->store->dead || !arena_passing(arena, ARENA_OUT)) {
            sink->in_fill = true;
            break;
        }
    }
    has_waited(sink, start);
}

static void fill_entry(struct catalog_entry *e, const struct block_header *h)
{
    memset(e, 0, sizeof *e);
    e->id = h->id;
    e->raw_sum = h->raw_sum;
    e->stored_sum = h->stored_sum;
    e->raw_len = h->raw_len;
    e->stored_len = h->stored_len;
    e->records = h->records;
    e->first = h->first;
    e->flags = h->flags;
    e->codec = h->codec;
}

/* Give the block its number and show it to the readers. From here on it must
 * not be lost. */
static int publish(struct sos_sink *sink, struct catalog_entry *e,
                   const struct block_header *h, uint64_t unfinished,
                   const void *block, bool stays, bool leaves,
                   struct hedge_error *err)
{
    struct sos_store *store = sink->store;
    struct catalog_copy *copy = &e->copies[0];
    struct tally tally = sink->tally;
    int rv = 0;

    pthread_mutex_lock(&store->lock);
    if (store->dead) {
        rv = error_set(err, HEDGE_ENOTFOUND,
                       "store \"%s\" was removed while it was written",
                       store->name);
    } else {
        rv = tally_add(&tally, h, unfinished, err);
    }
    if (rv == 0) {
        e->ordinal = store->next_ordinal;
        e->n_copies = 1;
        copy->where = CATALOG_MEMORY;
        copy->place.addr = arena_offset(store->sos->arena, block);
        copy->place.kind = stays;
        rv = catalog_put(store->sos->catalog, e);
        if (rv != 0) {
            (void)error_set(err, rv, "the catalog of %s: %s", store->sos->node,
                            hedge_strerror(rv));
        }
    }
    if (rv == 0) {
        count_add(&store->sos->counts.blocks_sealed, 1);
        count_add(&store->sos->counts.bytes_sealed, h->raw_len);
        store->next_ordinal++;
        sink->tally = tally;
        store->states[h->id.writer].open_sequence = tally.open_sequence;
        store->n_blocks++;
        use_add(store->sos, &store->uses, e, copy, 1);
        use_add(store->sos, &sink->uses, e, copy, 1);
        if (leaves) {
            store->inflight++;
            sink->inflight++;
        }
        pthread_cond_broadcast(&store->changed);
    } else {
        sink_fail(sink, rv, err->text);
    }
    pthread_mutex_unlock(&store->lock);
    return rv;
}

/* The block cannot leave and may not stay: it stays all the same, and the
 * writer is told. */
static void tell_full(struct sos_sink *sink)
{
    struct hedge_error why = {0};

    describe_limits(sink->store, &why);
    pthread_mutex_lock(&sink->store->lock);
    sink->short_of_copies = describe_copies(sink->store, 1, &why);
    sink_fail(sink, HEDGE_EFULL, why.text);
    pthread_mutex_unlock(&sink->store->lock);
}

/* A block that has not been published. */
static void sink_refuse(struct sos_sink *sink, void *block, bool stays)
{
    struct sos_store *store = sink->store;

    pthread_mutex_lock(&store->lock);
    store->mem_used -= stays ? arena_size(store->sos->arena, block) : 0;
    pthread_mutex_unlock(&store->lock);
    arena_unref(store->sos->arena, block);
}

static void sink_homes(struct sos_sink *sink, void *block)
{
    pthread_mutex_lock(&sink->store->lock);
    sink_home_block(sink, block);
    sink->in_fill = false;
    pthread_mutex_unlock(&sink->store->lock);
}

static size_t block_len(const struct block_header *h)
{
    return BLOCK_HEADER_SIZE + (size_t)h->stored_len;
}

static bool sink_keeps(struct sos_sink *sink, void *block, size_t len)
{
    bool stays;

    pthread_mutex_lock(&sink->store->lock);
    stays = stay_in_memory(sink->store, block, len);
    pthread_mutex_unlock(&sink->store->lock);
    return stays;
}

static int check_writer(const struct sos_sink *sink,
                        const struct block_header *h, struct hedge_error *e)
{
    if (h->id.generation != sink->base.generation ||
        h->id.writer != sink->base.writer) {
        return error_set(
            e, HEDGE_EPROTO, "a block of %llx/%u came from writer %llx/%u",
            (unsigned long long)h->id.generation, h->id.writer,
            (unsigned long long)sink->base.generation, sink->base.writer);
    }
    return 0;
}

/* Does the block stay in memory here? On the way it is compressed: always, or
 * when it has to leave for a tier that is slower than that. */
static bool keep_or_encode(struct sos_sink *sink, void *block,
                           struct block_header *h)
{
    const struct sos_store_options *o = &sink->store->options;
    struct sos *s = sink->store->sos;
    bool encode = o->compression == SOS_COMPRESS_ZSTD;

    if (!encode) {
        if (sink_keeps(sink, block, block_len(h))) {
            return true;
        }
        encode = o->compression == SOS_COMPRESS_AUTO &&
                 encoders_pay(s->encoders, block_payload(block), h->raw_len,
                              meter_rate(&s->leaving), sink->waited_ns);
        if (!encode) {
            return false;
        }
    }
    if (h->codec == BLOCK_RAW) {
        uint64_t start = clock_mono_ns(), ns;

        (void)encoders_run(s->encoders, o->level, block, h);
        ns = clock_mono_ns() - start;
        sink->waited_ns -= ns < sink->waited_ns ? ns : sink->waited_ns;
    }
    return sink_keeps(sink, block, block_len(h));
}

static int sink_put(struct sink *base, void *block,
                    const struct block_header *header, struct hedge_error *err)
{
    struct sos_sink *sink = sink_of(base);
    struct sos_store *store = sink->store;
    struct sos *s = store->sos;
    struct hedge_error own;
    struct catalog_entry e;
    struct passage *p = NULL;
    struct block_header h = *header;
    uint64_t unfinished;
    bool stays;
    int rv;

    err = err != NULL ? err : &own;
    rv = check_writer(sink, &h, err);
    if (rv != 0) {
        sink_refuse(sink, block, false);
        return rv;
    }
    unfinished = tally_unfinished(&h, block_payload(block));
    stays = keep_or_encode(sink, block, &h);
    if (!stays) {
        move_out(sink, block);
    }
    if (!stays || store->options.replicas > 1) {
        p = passage_take(s, &h.id);
    }
    if (p == NULL && !stays) {
        sink_homes(sink, block); /* While it is still only ours. */
    }
    fill_entry(&e, &h);
    rv = publish(sink, &e, &h, unfinished, block, stays, p != NULL, err);
    if (rv != 0) {
        if (p != NULL) {
            passage_give(s, p, false);
        }
        sink->in_fill = false;
        sink_refuse(sink, block, stays);
        return rv;
    }
    if (p != NULL) {
        passage_start(p, sink, &e, block, stays);
    } else if (!stays || store->options.replicas > 1) {
        tell_full(sink);
    }
    return 0;
}

static const struct sink_ops sos_sink_ops = {
    .block = sink_block, .put = sink_put, .back = sink_back, .why = sink_why};

/* store->lock held. */
static int register_writer(struct sos_store *store, uint32_t *id,
                           struct hedge_error *e)
{
    if (store->dead) {
        return error_set(e, HEDGE_ENOTFOUND, "store \"%s\" was removed",
                         store->name);
    }
    if (store->n_writers == SOS_WRITERS_MAX) {
        return error_set(e, HEDGE_EBUSY,
                         "store \"%s\" has had %d writers, the most there "
                         "can be",
                         store->name, SOS_WRITERS_MAX);
    }
    if (store->n_writers == store->states_cap) {
        uint32_t cap = store->states_cap == 0 ? 8 : store->states_cap * 2;
        struct writer_state *more =
            mem_realloc(store->states, cap * sizeof *more);

        if (more == NULL) {
            return error_set(e, HEDGE_ENOMEM, "no memory for a writer");
        }
        store->states = more;
        store->states_cap = cap;
    }
    *id = store->n_writers++;
    store->states[*id] = (struct writer_state){.open_sequence = TALLY_NONE};
    store->writers++;
    return 0;
}

static int refuse_busy(struct sos *s, struct hedge_error *e)
{
    struct arena_use u;

    arena_use(s->arena, &u);
    return error_set(
        e, HEDGE_EBUSY,
        "no block of %zu bytes can be had on %s: memory %llu bytes, stored "
        "%llu, filling %llu, leaving %llu, arriving %llu, being read %llu",
        s->block_size, s->node, (unsigned long long)u.limit,
        (unsigned long long)u.by_class[ARENA_STORED],
        (unsigned long long)u.by_class[ARENA_FILL],
        (unsigned long long)u.by_class[ARENA_OUT],
        (unsigned long long)u.by_class[ARENA_IN],
        (unsigned long long)u.by_class[ARENA_READ]);
}

int sos_sink_open(struct sos_store *store, struct sink **out,
                  struct hedge_error *e)
{
    struct sos *s = store->sos;
    struct sos_sink *sink;
    int rv;

    *out = NULL;
    sink = mem_calloc(1, sizeof *sink);
    if (sink == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a writer");
    }
    if (!cursors_claim(s, ARENA_FILL, 1)) {
        mem_free(sink);
        return refuse_busy(s, e);
    }
    tally_init(&sink->tally);
    pthread_mutex_lock(&store->lock);
    rv = register_writer(store, &sink->base.writer, e);
    if (rv == 0) {
        list_push(&store->sinks, &sink->link);
    }
    pthread_mutex_unlock(&store->lock);
    if (rv != 0) {
        arena_unclaim(s->arena, ARENA_FILL, 1);
        mem_free(sink);
        return rv;
    }
    store_ref(store);
    sink->base.ops = &sos_sink_ops;
    sink->base.generation = store->generation;
    sink->base.block_size = s->block_size;
    sink->store = store;
    *out = &sink->base;
    return 0;
}

/* store->lock held; waits until the writer's passages have ended. */
static void wait_settled(struct sos_sink *sink)
{
    while (sink->inflight > 0) {
        pthread_cond_wait(&sink->store->changed, &sink->store->lock);
    }
}

/* store->lock held. */
static void drop_counts(struct sos_sink *sink, const struct block_id *id)
{
    struct sos *s = sink->store->sos;
    struct catalog_entry e;

    if (catalog_get(s->catalog, id, &e) == 0) {
        for (unsigned i = 0; i < e.n_copies; i++) {
            use_add(s, &sink->uses, &e, &e.copies[i], -1);
        }
    }
}

/* store->lock held: blocks of a record that has no end are of no use. Their
 * numbers stay: readers pass over them. */
static void drop_unfinished(struct sos_sink *sink)
{
    struct sos_store *store = sink->store;
    struct block_id id = {.generation = store->generation,
                          .writer = sink->base.writer};

    if (sink->tally.open_sequence == TALLY_NONE) {
        return;
    }
    for (id.sequence = sink->tally.open_sequence + 1;
         id.sequence < sink->tally.next_sequence; id.sequence++) {
        drop_counts(sink, &id);
        store_discard(store, &id, true);
    }
}

/* store->lock held. What is whole counts, whatever became of the writer: it is
 * what readers get. */
static void unregister_writer(struct sos_sink *sink, bool aborted)
{
    struct sos_store *store = sink->store;
    struct manifest whole = tally_result(&sink->tally);

    drop_unfinished(sink);
    manifest_merge(&store->written, &whole);
    store->states[sink->base.writer].ended = true;
    store->aborted = store->aborted || aborted;
    store->writers--;
    list_remove(&sink->link);
    store_idle_check(store);
    pthread_cond_broadcast(&store->changed);
}

static void sink_free(struct sos_sink *sink)
{
    struct sos_store *store = sink->store;

    if (!sink->homed) {
        arena_unclaim(store->sos->arena, ARENA_FILL, 1);
    }
    mem_free(sink->uses.all);
    mem_free(sink);
    sos_store_unref(store);
}

struct manifest sink_so_far(struct list *link)
{
    struct sos_sink *sink = container_of(link, struct sos_sink, link);

    return tally_result(&sink->tally);
}

/* store->lock held. Ends the writer once its blocks are where they stay. */
static int sink_end(struct sos_sink *sink, const struct manifest *claimed,
                    struct manifest *out, struct hedge_error *e)
{
    struct sos_store *store = sink->store;
    struct manifest m;
    bool aborted = false, refused;
    int rv;

    wait_settled(sink);
    m = tally_result(&sink->tally);
    rv = atomic_load(&sink->base.failed);
    /* A writer that has heard of it through others has stopped by itself. */
    refused = rv == HEDGE_EFULL &&
              (sink->told || sink->short_of_copies ||
               (claimed != NULL && !manifest_equal(claimed, &m)));
    if (rv == HEDGE_EFULL && !refused) {
        rv = 0; /* All of it has found a home. */
    }
    if (rv != 0 && e != NULL) {
        *e = sink->error;
    }
    if (store->dead) {
        rv = error_set(e, HEDGE_ENOTFOUND,
                       "store \"%s\" was removed while it was written",
                       store->name);
    } else if (claimed != NULL && !refused && !manifest_equal(claimed, &m)) {
        rv = error_set(e, HEDGE_ECORRUPT,
                       "store \"%s\": the writer sent %llu records of %llu "
                       "bytes, %llu of %llu arrived",
                       store->name, (unsigned long long)claimed->records,
                       (unsigned long long)claimed->bytes,
                       (unsigned long long)m.records,
                       (unsigned long long)m.bytes);
        aborted = true;
    }
    *out = m; /* Perhaps the same as `claimed`. */
    unregister_writer(sink, aborted);
    return rv;
}

int sos_sink_close(struct sink *base, const struct manifest *claimed,
                   struct manifest *out, struct hedge_error *e)
{
    struct sos_sink *sink = sink_of(base);
    struct sos_store *store = sink->store;
    int rv;

    pthread_mutex_lock(&store->lock);
    rv = sink_end(sink, claimed, out, e);
    pthread_mutex_unlock(&store->lock);
    sink_free(sink);
    return rv;
}

int sos_sink_commit(struct sink *base, const struct manifest *claimed,
                    struct sos_info *out, struct hedge_error *e)
{
    struct sos_sink *sink = sink_of(base);
    struct sos_store *store = sink->store;
    struct sos_use *uses;
    struct manifest m;
    uint64_t copies;
    unsigned n;
    int rv, info;

    pthread_mutex_lock(&store->lock);
    rv = sink_end(sink, claimed, &m, e);
    uses = uses_list(store->sos, &sink->uses, &n, &copies);
    pthread_mutex_unlock(&store->lock);
    info = sos_store_info(store, out);
    sink_free(sink);
    mem_free(out->uses);
    out->uses = uses;
    out->n_uses = n;
    out->manifest = m;
    if (rv != 0 && rv != HEDGE_EFULL) {
        mem_free(uses);
        memset(out, 0, sizeof *out);
    } else if (info != 0 || uses == NULL) {
        mem_free(uses);
        memset(out, 0, sizeof *out);
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the answer");
    }
    return rv;
}

void sos_sink_abort(struct sink *base)
{
    struct sos_sink *sink = sink_of(base);

    pthread_mutex_lock(&sink->store->lock);
    wait_settled(sink);
    unregister_writer(sink, true);
    pthread_mutex_unlock(&sink->store->lock);
    sink_free(sink);
}
