/* place.c - where a writer's blocks go: memory, disk, another node.
 *
 * The life of a block:
 *   sealed -> put(): numbered and in the catalog, readable from its place here
 *     -> at home in memory, or
 *     -> passage: on its way to the disk, else to a peer, else (nobody takes
 *        it) at home where it is, and the writer gets HEDGE_EFULL;
 *   a store with replicas sends copies on passages as well.
 * A passage runs on the writer's thread until its first request, after that on
 * the threads that reap the requests; none of its steps blocks. */
#include "store/sos_internal.h"

#include "store/base/log.h"
#include "store/base/mem.h"

#include <stdio.h>
#include <string.h>

#define PASSAGE_MAGIC 0x50415353u
#define WAIT_STEP_MS 50

struct sos_sink {
    struct sink base;
    struct sos_store *store;
    struct tally tally;
    atomic_bool in_fill;      /* Its block leaves from where it was filled. */
    unsigned inflight;        /* Under store->lock, as is the rest. */
    bool homed;               /* Its claim has become a block's home. */
    struct hedge_error error; /* Why base.failed is set. */
};

struct passage {
    unsigned magic;
    struct list link; /* Of the free, the homeless or the waiting ones. */
    struct sos_store *store;
    struct sos_sink *sink; /* NULL once the writer has been told. */
    bool in_fill;          /* It could not be moved to ARENA_OUT. */
    struct tier_req req;
    struct catalog_entry entry; /* As it will be; copies so far. */
    void *block;
    struct block_id id; /* Under passages.lock, as is `active`. */
    bool active;        /* It owns the block's memory. */
    bool stays;         /* The memory here is one of the copies. */
    bool tried_disk;
    bool more_soon; /* Readers had memory that could not be had at once. */
    bool waited;    /* For that: once. */
};

struct passages {
    pthread_mutex_t lock;
    pthread_cond_t freed;
    struct list free;
    struct list homeless; /* Nobody took them; tried again now and then. */
    struct list waiting;  /* Active, until dead stores have been buried. */
    unsigned inflight;
    struct passage all[PASSAGES_MAX];
};

int passages_new(struct sos *s, struct passages **out)
{
    struct passages *p = mem_calloc(1, sizeof *p);

    (void)s;
    *out = p;
    if (p == NULL) {
        return HEDGE_ENOMEM;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->freed, NULL);
    list_init(&p->free);
    list_init(&p->homeless);
    list_init(&p->waiting);
    for (unsigned i = 0; i < PASSAGES_MAX; i++) {
        p->all[i].magic = PASSAGE_MAGIC;
        list_push(&p->free, &p->all[i].link);
    }
    return 0;
}

void passages_free(struct passages *p)
{
    if (p == NULL) {
        return;
    }
    assert(p->inflight == 0 && list_empty(&p->homeless));
    pthread_cond_destroy(&p->freed);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

/* Waits for one of the passages under way to end when all are in use. NULL
 * only when every passage is homeless: nothing will end. */
static struct passage *passage_take(struct sos *s, const struct block_id *id)
{
    struct passages *all = s->passages;
    struct passage *p = NULL;
    struct list *l;

    pthread_mutex_lock(&all->lock);
    while ((l = list_pop(&all->free)) == NULL && all->inflight > 0) {
        pthread_cond_wait(&all->freed, &all->lock);
    }
    if (l != NULL) {
        p = container_of(l, struct passage, link);
        p->id = *id;
        p->active = true;
        all->inflight++;
    }
    pthread_mutex_unlock(&all->lock);
    return p;
}

bool passages_owns(struct sos *s, const struct block_id *id)
{
    struct passages *all = s->passages;
    struct list *l, *tmp;
    bool owned = false;

    pthread_mutex_lock(&all->lock);
    for (unsigned i = 0; i < PASSAGES_MAX && all->inflight > 0 && !owned; i++) {
        owned = all->all[i].active && block_id_equal(&all->all[i].id, id);
    }
    list_foreach_safe (l, tmp, &all->homeless) {
        if (block_id_equal(&container_of(l, struct passage, link)->id, id)) {
            list_remove(l);
            list_push(&all->free, l);
            pthread_cond_signal(&all->freed);
        }
    }
    pthread_mutex_unlock(&all->lock);
    return owned;
}

/* An active passage ends: it is free again or waits among the homeless. The
 * last thing done with it: the next moment it is another writer's. */
static void passage_give(struct sos *s, struct passage *p, bool homeless)
{
    struct passages *all = s->passages;

    pthread_mutex_lock(&all->lock);
    assert(p->active);
    p->active = false;
    all->inflight--;
    list_push_front(homeless ? &all->homeless : &all->free, &p->link);
    pthread_cond_broadcast(&all->freed);
    pthread_mutex_unlock(&all->lock);
}

/* --- the end of a passage --- */

static void fail_sink(struct sos_sink *sink, int code, const char *text)
{
    if (atomic_load(&sink->base.failed) == 0) {
        (void)error_set(&sink->error, code, "%s", text);
        atomic_store(&sink->base.failed, code);
    }
}

/* store->lock held: nobody waits for this passage any more. */
static void passage_leave(struct passage *p, bool homeless)
{
    struct sos_store *store = p->store;

    meter_end(&store->sos->leaving, homeless ? 0 : p->req.len);
    p->sink->inflight--;
    if (p->in_fill) {
        p->sink->in_fill = false;
    }
    p->sink = NULL;
    store->inflight--;
    pthread_cond_broadcast(&store->changed);
    passage_give(store->sos, p, homeless);
}

/* store->lock held. The catalog has the new copies in place of the old. */
static void settle_counts(struct passage *p, const struct catalog_entry *old)
{
    for (unsigned i = 0; i < old->n_copies; i++) {
        use_add(p->store, old, &old->copies[i], -1);
    }
    for (unsigned i = 0; i < p->entry.n_copies; i++) {
        use_add(p->store, &p->entry, &p->entry.copies[i], 1);
    }
}

/* store->lock held. The new copies are not wanted, or not to be known. */
static void drop_new_copies(struct passage *p)
{
    struct sos *s = p->store->sos;

    for (unsigned i = 0; i < p->entry.n_copies; i++) {
        const struct catalog_copy *copy = &p->entry.copies[i];

        if (copy->where == CATALOG_DISK) {
            p->store->disk_used -= disk_padded(s->disk, entry_len(&p->entry));
        }
        if (copy->where != CATALOG_MEMORY) {
            copy_drop(s, &p->entry, copy);
        }
    }
}

/* store->lock held. */
static void home_block(struct sos_sink *sink, void *block)
{
    if (arena_home(sink->store->sos->arena, block)) {
        assert(!sink->homed);
        sink->homed = true;
    }
}

/* store->lock held. The copies made are where they should be. */
static void passage_done(struct passage *p)
{
    struct sos_store *store = p->store;
    struct sos *s = store->sos;
    struct catalog_entry old;
    int rv = catalog_get(s->catalog, &p->entry.id, &old);
    /* Gone when a reader has discarded the block meanwhile. */
    bool there = rv != HEDGE_ENOTFOUND;
    bool moved = rv == 0 && catalog_put(s->catalog, &p->entry) == 0;

    if (moved) {
        settle_counts(p, &old);
    } else {
        drop_new_copies(p);
    }
    if (there && !moved) {
        fail_sink(p->sink, HEDGE_EIO, "the catalog cannot be written");
    }
    if (!there || (moved && !p->stays)) {
        arena_pass(s->arena, p->block, ARENA_READ);
    } else if (!p->stays) {
        home_block(p->sink, p->block);
    }
    passage_leave(p, false);
}

static void memory_copy(struct passage *p, struct catalog_copy *out)
{
    memset(out, 0, sizeof *out);
    out->where = CATALOG_MEMORY;
    out->place.addr = arena_offset(p->store->sos->arena, p->block);
    out->place.kind = 1;
}

/* store->lock held. Take a block of this length into the memory tier if the
 * limits allow. */
static bool stay_in_memory(struct sos_store *store, void *block, size_t len)
{
    struct arena *arena = store->sos->arena;
    size_t size = (len + ARENA_UNIT - 1) / ARENA_UNIT * ARENA_UNIT;

    if ((store->options.mem_limit != 0 &&
         store->mem_used + size > store->options.mem_limit) ||
        !arena_move(arena, block, ARENA_STORED)) {
        return false;
    }
    arena_shrink(arena, block, len);
    store->mem_used += size;
    return true;
}

/* No tier takes the block. Is there room in memory by now? */
static bool passage_stays(struct passage *p)
{
    struct sos_store *store = p->store;
    bool ok = false;

    p->more_soon = cursors_reclaim(store->sos);
    pthread_mutex_lock(&store->lock);
    ok = stay_in_memory(store, p->block, p->req.len);
    if (ok) {
        p->stays = true;
        memory_copy(p, &p->entry.copies[p->entry.n_copies++]);
    }
    pthread_mutex_unlock(&store->lock);
    return ok;
}

/* store->lock held. Nobody takes the block, or not as often as wanted: it stays
 * where it is. */
static void passage_home(struct passage *p)
{
    struct sos_store *store = p->store;
    struct sos *s = store->sos;
    unsigned had = p->entry.n_copies, wanted = store->options.replicas;
    struct hedge_error why = p->req.error;
    struct catalog_entry e;
    bool there = catalog_get(s->catalog, &p->entry.id, &e) != HEDGE_ENOTFOUND;

    if (wanted > 1) {
        (void)error_set(&why, HEDGE_EFULL,
                        "%u copies on as many nodes are wanted, %u could be "
                        "made: %.400s",
                        wanted, had == 0 ? 1 : had, p->req.error.text);
    }
    if (there && !store->dead) {
        fail_sink(p->sink, HEDGE_EFULL, why.text);
    }
    if (had > 0 || !there) {
        passage_done(p); /* Fewer copies than wanted, or not wanted at all. */
    } else {
        home_block(p->sink, p->block);
        passage_leave(p, true);
    }
}

/* --- its steps --- */

static void passage_step(struct passage *p, bool exhausted);

static void on_put(struct tier_req *req)
{
    struct passage *p = req->ctx;
    struct sos_store *store = p->store;
    bool exhausted = false;

    assert(p->magic == PASSAGE_MAGIC);
    if (req->status == 0) {
        struct catalog_copy *copy = &p->entry.copies[p->entry.n_copies++];

        memset(copy, 0, sizeof *copy);
        copy->place = req->place;
        copy->where = p->tried_disk ? CATALOG_PEER : CATALOG_DISK;
        if (copy->where == CATALOG_PEER) {
            req->avoid[req->n_avoid++] = req->place.unit;
        }
    } else if (!p->tried_disk) {
        log_debug("sos", "disk tier: %s", req->error.text);
        pthread_mutex_lock(&store->lock);
        store->disk_used -= disk_padded(store->sos->disk, req->len);
        pthread_mutex_unlock(&store->lock);
    } else {
        exhausted = true;
    }
    p->tried_disk = true;
    passage_step(p, exhausted);
}

/* Reserve room on the disk within the store's own limit. */
static bool disk_quota(struct sos_store *store, size_t len)
{
    struct sos *s = store->sos;
    size_t padded;
    bool ok;

    if (s->disk == NULL) {
        return false;
    }
    padded = disk_padded(s->disk, len);
    pthread_mutex_lock(&store->lock);
    ok = !store->dead &&
         (store->options.disk_limit == 0 ||
          store->disk_used + padded <= store->options.disk_limit);
    if (ok) {
        store->disk_used += padded;
    }
    pthread_mutex_unlock(&store->lock);
    return ok;
}

static bool submit_disk(struct passage *p)
{
    struct sos_store *store = p->store;

    if (!disk_quota(store, p->req.len)) {
        return false;
    }
    if (tier_put(store->sos->disk, &p->req) == 0) {
        return true;
    }
    pthread_mutex_lock(&store->lock);
    store->disk_used -= disk_padded(store->sos->disk, p->req.len);
    pthread_mutex_unlock(&store->lock);
    return false;
}

static void describe_limits(struct sos_store *store, struct hedge_error *e);

/* Wait for the janitor while it, or readers, are about to make room. */
static bool passage_waits(struct passage *p)
{
    struct passages *all = p->store->sos->passages;

    if (atomic_load(&p->store->sos->n_burying) == 0 &&
        (!p->more_soon || p->waited)) {
        return false;
    }
    p->waited = true;
    pthread_mutex_lock(&all->lock);
    list_push(&all->waiting, &p->link);
    pthread_mutex_unlock(&all->lock);
    return true;
}

/* Ask the next tier, or end the passage; exhausted: no peer has room. */
static void passage_step(struct passage *p, bool exhausted)
{
    struct sos_store *store = p->store;
    struct sos *s = store->sos;
    bool enough = p->entry.n_copies >= store->options.replicas || store->dead;

    if (!enough && !p->stays && !p->tried_disk && submit_disk(p)) {
        return;
    }
    p->tried_disk = true;
    if (!enough && !exhausted && s->remote != NULL &&
        tier_put(s->remote, &p->req) == 0) {
        return;
    }
    if (!enough && p->entry.n_copies == 0) {
        if (passage_stays(p)) {
            enough = store->options.replicas == 1;
        } else if (passage_waits(p)) {
            return;
        }
    }
    if (!enough) {
        describe_limits(store, &p->req.error);
    }
    pthread_mutex_lock(&store->lock);
    if (enough && p->entry.n_copies > 0) {
        passage_done(p);
    } else {
        passage_home(p);
    }
    pthread_mutex_unlock(&store->lock);
}

/* What the people who wait for room should know; whatever the last tier said
 * follows. */
static void describe_limits(struct sos_store *store, struct hedge_error *e)
{
    struct sos *s = store->sos;
    struct arena_use mem;
    struct tier_use disk = {0};
    char peers[HEDGE_ERROR_TEXT_MAX];

    (void)snprintf(peers, sizeof peers, "%s",
                   s->remote == NULL    ? "there are no other nodes"
                   : e->text[0] != '\0' ? e->text
                                        : "no other node took it");
    arena_use(s->arena, &mem);
    if (s->disk != NULL) {
        tier_use(s->disk, &disk);
    }
    (void)error_set(
        e, HEDGE_EFULL,
        "no room for store \"%.64s\": %.64s has %llu of %llu bytes of memory "
        "and %llu of %llu bytes of disk in use (the store's own limits per "
        "node: memory %llu, disk %llu; 0 = none); %.200s",
        store->name, s->node, (unsigned long long)mem.by_class[ARENA_STORED],
        (unsigned long long)(mem.limit - mem.reserve),
        (unsigned long long)disk.used, (unsigned long long)disk.limit,
        (unsigned long long)store->options.mem_limit,
        (unsigned long long)store->options.disk_limit, peers);
}

static void passage_start(struct passage *p, struct sos_sink *sink,
                          const struct catalog_entry *e, void *block,
                          bool stays)
{
    memset(&p->req, 0, sizeof p->req);
    p->store = sink->store;
    p->sink = sink;
    p->in_fill = sink->in_fill;
    meter_begin(&sink->store->sos->leaving);
    p->entry = *e;
    p->entry.n_copies = 0;
    p->block = block;
    p->stays = stays;
    p->tried_disk = stays;
    p->more_soon = p->waited = false;
    if (stays) {
        memory_copy(p, &p->entry.copies[p->entry.n_copies++]);
    }
    p->req.id = e->id;
    p->req.data = block;
    p->req.len = entry_len(e);
    p->req.store = &sink->store->told;
    p->req.cb = on_put;
    p->req.ctx = p;
    passage_step(p, false);
}

void passages_retry(struct sos *s)
{
    struct passages *all = s->passages;
    struct list waited, *l, *tmp;

    list_init(&waited);
    pthread_mutex_lock(&all->lock);
    list_splice(&waited, &all->waiting);
    list_foreach_safe (l, tmp, &all->homeless) {
        struct passage *p = container_of(l, struct passage, link);

        if (arena_move(s->arena, p->block, ARENA_STORED)) {
            arena_shrink(s->arena, p->block, p->req.len);
            list_remove(l);
            list_push(&all->free, l);
            pthread_cond_signal(&all->freed);
        }
    }
    pthread_mutex_unlock(&all->lock);
    while ((l = list_pop(&waited)) != NULL) {
        struct passage *p = container_of(l, struct passage, link);

        p->tried_disk = p->stays;
        passage_step(p, false);
    }
}

void passages_purge(struct sos *s, struct sos_store *store)
{
    struct list *l, *tmp;

    pthread_mutex_lock(&s->passages->lock);
    list_foreach_safe (l, tmp, &s->passages->homeless) {
        struct passage *p = container_of(l, struct passage, link);

        if (p->store == store) {
            list_remove(l);
            list_push(&s->passages->free, l);
            pthread_cond_signal(&s->passages->freed);
        }
    }
    pthread_mutex_unlock(&s->passages->lock);
}

/* --- the sink --- */

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

static int sink_block(struct sink *base, void **block, struct hedge_error *e)
{
    struct sos_sink *sink = sink_of(base);
    struct sos *s = sink->store->sos;

    *block = NULL;
    wait_filled(sink);
    for (;;) {
        int rv = sink_status(sink, e);

        if (rv != 0) {
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

    while (!arena_move_wait(arena, block, ARENA_OUT, WAIT_STEP_MS)) {
        if (sink->store->dead || !arena_passing(arena, ARENA_OUT)) {
            sink->in_fill = true;
            return;
        }
    }
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
        store->next_ordinal++;
        sink->tally = tally;
        store->states[h->id.writer].open_sequence = tally.open_sequence;
        use_add(store, e, copy, 1);
        if (leaves) {
            store->inflight++;
            sink->inflight++;
        }
        pthread_cond_broadcast(&store->changed);
    } else {
        fail_sink(sink, rv, err->text);
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
    fail_sink(sink, HEDGE_EFULL, why.text);
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
    home_block(sink, block);
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
                              meter_rate(&s->leaving));
        if (!encode) {
            return false;
        }
    }
    if (h->codec == BLOCK_RAW) {
        (void)encoders_run(s->encoders, o->level, block, h);
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
    .block = sink_block, .put = sink_put, .back = sink_back};

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
    pthread_mutex_lock(&store->lock);
    rv = register_writer(store, &sink->base.writer, e);
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
    tally_init(&sink->tally);
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
        store_discard(store, &id, true);
    }
}

/* store->lock held. */
static void unregister_writer(struct sos_sink *sink, bool aborted)
{
    struct sos_store *store = sink->store;

    drop_unfinished(sink);
    store->states[sink->base.writer].ended = true;
    store->aborted = store->aborted || aborted;
    store->writers--;
    store_idle_check(store);
    pthread_cond_broadcast(&store->changed);
}

static void sink_free(struct sos_sink *sink)
{
    struct sos_store *store = sink->store;

    if (!sink->homed) {
        arena_unclaim(store->sos->arena, ARENA_FILL, 1);
    }
    mem_free(sink);
    sos_store_unref(store);
}

int sos_sink_close(struct sink *base, const struct manifest *claimed,
                   struct manifest *out, struct hedge_error *e)
{
    struct sos_sink *sink = sink_of(base);
    struct sos_store *store = sink->store;
    struct manifest m;
    bool aborted = false;
    int rv;

    pthread_mutex_lock(&store->lock);
    wait_settled(sink);
    m = tally_result(&sink->tally);
    rv = atomic_load(&base->failed);
    if (rv != 0 && e != NULL) {
        *e = sink->error;
    }
    if (store->dead) {
        rv = error_set(e, HEDGE_ENOTFOUND,
                       "store \"%s\" was removed while it was written",
                       store->name);
    } else if (claimed != NULL && !manifest_equal(claimed, &m)) {
        rv = error_set(e, HEDGE_ECORRUPT,
                       "store \"%s\": the writer sent %llu records of %llu "
                       "bytes, %llu of %llu arrived",
                       store->name, (unsigned long long)claimed->records,
                       (unsigned long long)claimed->bytes,
                       (unsigned long long)m.records,
                       (unsigned long long)m.bytes);
        aborted = true;
    } else {
        manifest_merge(&store->closed, &m);
    }
    *out = m; /* Perhaps the same as `claimed`. */
    unregister_writer(sink, aborted);
    pthread_mutex_unlock(&store->lock);
    sink_free(sink);
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
