/* passage.c - where a writer's blocks go when memory is full, or as copies:
 * disk, another node.
 *
 * The life of a block:
 *   sealed -> put(): numbered and in the catalog, readable from its place here
 *     -> at home in memory, or
 *     -> passage: on its way to the disk, else to a peer, else (nobody takes
 *        it) at home where it is, and the writer gets HEDGE_EFULL;
 *   a store with replicas sends copies on passages as well.
 * A passage runs on the writer's thread until its first request, after that on
 * the threads that reap the requests; none of its steps blocks. */
#include "store/passage_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <stdio.h>
#include <string.h>

#define PASSAGE_MAGIC 0x50415353u

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
    struct list waiting;  /* Active; room is being made. */
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

void passages_use(struct passages *p, unsigned *inflight, unsigned *homeless)
{
    struct list *l;

    *homeless = 0;
    pthread_mutex_lock(&p->lock);
    *inflight = p->inflight;
    list_foreach (l, &p->homeless) {
        (*homeless)++;
    }
    pthread_mutex_unlock(&p->lock);
}

/* Waits for one of the passages under way to end when all are in use. NULL
 * only when every passage is homeless: nothing will end. */
struct passage *passage_take(struct sos *s, const struct block_id *id)
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
void passage_give(struct sos *s, struct passage *p, bool homeless)
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
    struct uses *all[] = {&p->store->uses, &p->sink->uses};

    for (unsigned k = 0; k < 2; k++) {
        for (unsigned i = 0; i < old->n_copies; i++) {
            use_add(p->store->sos, all[k], old, &old->copies[i], -1);
        }
        for (unsigned i = 0; i < p->entry.n_copies; i++) {
            use_add(p->store->sos, all[k], &p->entry, &p->entry.copies[i], 1);
        }
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
        sink_fail(p->sink, HEDGE_EIO, "the catalog cannot be written");
    }
    if (!there || (moved && !p->stays)) {
        arena_pass(s->arena, p->block, ARENA_READ);
    } else if (!p->stays) {
        sink_home_block(p->sink, p->block);
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

bool stay_in_memory(struct sos_store *store, void *block, size_t len)
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
    unsigned had = p->entry.n_copies;
    struct hedge_error why = p->req.error;
    struct catalog_entry e;
    bool there = catalog_get(s->catalog, &p->entry.id, &e) != HEDGE_ENOTFOUND;

    if (there && !store->dead) {
        p->sink->short_of_copies = describe_copies(store, had, &why);
        sink_fail(p->sink, HEDGE_EFULL, why.text);
    }
    if (had > 0 || !there) {
        passage_done(p); /* Fewer copies than wanted, or not wanted at all. */
    } else {
        sink_home_block(p->sink, p->block);
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
    tier_count(p->tried_disk ? store->sos->remote : store->sos->disk, req,
               true);
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

static bool drains(const struct sos *s, struct drain *d)
{
    uint64_t last = atomic_load(&d->last_ms);
    uint64_t patience =
        atomic_load(&d->readers) > 0 ? s->drain_ms : DRAIN_LAST(s->drain_ms);

    return last != 0 && clock_mono_ms() - last < patience;
}

/* Do readers that discard make room for this block? Under limits of its own
 * it is not helped by what other stores give back. */
static bool is_drained_for(struct passage *p)
{
    const struct sos_store_options *o = &p->store->options;
    bool own = o->mem_limit != 0 || o->disk_limit != 0;
    struct catalog_entry e;

    return !atomic_load(&p->store->sos->hurry) &&
           drains(p->store->sos,
                  own ? &p->store->drain : &p->store->sos->drain) &&
           catalog_get(p->store->sos->catalog, &p->id, &e) == 0;
}

/* Wait for the janitor while it, or readers, are about to make room. */
static bool passage_waits(struct passage *p)
{
    struct passages *all = p->store->sos->passages;

    if (atomic_load(&p->store->sos->n_burying) == 0 &&
        (!p->more_soon || p->waited) && !is_drained_for(p)) {
        return false;
    }
    p->waited = true;
    pthread_mutex_lock(&all->lock);
    list_push(&all->waiting, &p->link);
    pthread_mutex_unlock(&all->lock);
    return true;
}

/* Of the whole group; what is full counts. */
static unsigned count_nodes(struct sos *s)
{
    if (s->remote == NULL) {
        return 1;
    }
    return 1 + (s->remote->ops->nodes != NULL ? s->remote->ops->nodes(s->remote)
                                              : 1);
}

/* Are there as many nodes as copies are wanted? */
static bool may_be_enough(const struct passage *p)
{
    unsigned wanted = p->store->options.replicas;

    return wanted == 1 || count_nodes(p->store->sos) >= wanted;
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
    if (!enough && !exhausted && s->remote != NULL && !store->options.local &&
        tier_put(s->remote, &p->req) == 0) {
        return;
    }
    if (!enough && p->entry.n_copies == 0 && passage_stays(p)) {
        enough = store->options.replicas == 1;
    }
    if (!enough && may_be_enough(p) && passage_waits(p)) {
        return;
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

void describe_limits(struct sos_store *store, struct hedge_error *e)
{
    struct sos *s = store->sos;
    const struct sos_store_options *o = &store->options;
    char mem[UNITS_SIZE_TEXT], disk[UNITS_SIZE_TEXT], room[ROOM_TEXT];
    char own[96] = "", peers[HEDGE_ERROR_TEXT_MAX];

    (void)snprintf(peers, sizeof peers, "%s",
                   s->remote == NULL      ? "there are no other nodes"
                   : store->options.local ? "other nodes are not asked"
                   : e->text[0] != '\0'   ? e->text
                                          : "no other node took it");
    if (o->mem_limit != 0 || o->disk_limit != 0) {
        (void)snprintf(own, sizeof own,
                       " (per node it may use memory %s, disk %s; 0 = any)",
                       units_format_size(o->mem_limit, mem),
                       units_format_size(o->disk_limit, disk));
    }
    (void)error_set(e, HEDGE_EFULL,
                    "no room for store \"%.64s\"%s: %.64s: %s; %.300s",
                    store->name, own, s->node, room_text(s, room), peers);
}

bool describe_copies(struct sos_store *store, unsigned had,
                     struct hedge_error *e)
{
    unsigned wanted = store->options.replicas, nodes = count_nodes(store->sos);
    struct hedge_error last = *e;

    if (wanted == 1) {
        return false;
    }
    had = had == 0 ? 1 : had; /* It is here. */
    if (nodes < wanted) {
        (void)error_set(e, HEDGE_EFULL,
                        "store \"%.64s\": %u copies on as many nodes are "
                        "wanted, %u could be made: the group has %u node%s",
                        store->name, wanted, had, nodes, nodes == 1 ? "" : "s");
    } else {
        (void)error_set(e, HEDGE_EFULL,
                        "%u copies on as many nodes are wanted, %u could be "
                        "made on the %u there are: %.380s",
                        wanted, had, nodes, last.text);
    }
    return true;
}

void passage_start(struct passage *p, struct sos_sink *sink,
                   const struct catalog_entry *e, void *block, bool stays)
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
    p->req.spread = sink->store->options.replicas > 1;
    p->req.cb = on_put;
    p->req.ctx = p;
    passage_step(p, false);
}

bool passages_retry(struct sos *s)
{
    struct passages *all = s->passages;
    struct list waited, *l, *tmp;
    bool soon;

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
    pthread_mutex_lock(&all->lock);
    soon = !list_empty(&all->waiting);
    pthread_mutex_unlock(&all->lock);
    return soon;
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
