/* fetch.c - getting one block of a store into memory, from whichever copy of it
 * is there and right. */
#include "store/sos_internal.h"

#include <string.h>

/* store->lock held. Somebody has discarded the block while it was read: the
 * last of its readers gives the copies back. */
static void drop_after_read(struct fetch *f)
{
    struct sos_store *store = f->store;
    struct fetch *other = fetch_of(store, &f->entry.id);

    f->discard_after = false;
    if (other != NULL) {
        other->entry = f->entry;
        other->discard_after = true;
    }
    for (unsigned i = 0; other == NULL && i < f->entry.n_copies; i++) {
        if (f->entry.copies[i].where != CATALOG_MEMORY) {
            copy_drop(store->sos, &f->entry, &f->entry.copies[i]);
        }
    }
}

/* These would tell a reader that the data end, or that it should ask again; a
 * peer that answers so has not given the block. */
static int read_status(int status)
{
    return status == HEDGE_EEND || status == HEDGE_EAGAIN ||
                   status == HEDGE_ETIMEDOUT
               ? HEDGE_EIO
               : status;
}

static struct tier *fetch_tier(const struct fetch *f)
{
    struct sos *s = f->store->sos;

    return f->entry.copies[f->copy].where == CATALOG_DISK ? s->disk : s->remote;
}

static void on_get(struct tier_req *req)
{
    struct fetch *f = req->ctx;
    struct sos_store *store = f->store;

    pthread_mutex_lock(&store->lock);
    tier_count(fetch_tier(f), req, false); /* A discard replaces the entry. */
    list_remove(&f->link);
    f->loading = false;
    f->failed = req->status != 0;
    if (f->discard_after) {
        drop_after_read(f);
    }
    pthread_cond_broadcast(&store->changed);
    pthread_mutex_unlock(&store->lock);
}

/* store->lock held. Start reading copy f->copy into f->block. */
static void fetch_start(struct fetch *f)
{
    const struct catalog_copy *copy = &f->entry.copies[f->copy];
    int rv;

    memset(&f->req, 0, sizeof f->req);
    f->req.id = f->entry.id;
    f->req.data = f->block;
    f->req.len = entry_len(&f->entry);
    f->req.place = copy->place;
    f->req.store = &f->store->told;
    f->req.cb = on_get;
    f->req.ctx = f;
    f->failed = f->verified = false;
    f->loading = true;
    list_push(&f->store->fetches, &f->link);
    rv = tier_get(fetch_tier(f),
                  &f->req); /* 0: the request is the tier's from here. */
    if (rv != 0) {
        f->req.status = rv;
        list_remove(&f->link);
        f->loading = false;
        f->failed = true;
    }
}

bool fetch_open(struct fetch *f, const struct catalog_entry *e,
                enum arena_class reserve)
{
    struct arena *arena = f->store->sos->arena;
    size_t len = BLOCK_HEADER_SIZE + (size_t)e->stored_len;

    assert(!f->used && e->n_copies > 0);
    f->entry = *e;
    f->copy = f->n_tried = 0;
    f->failed = f->loading = f->verified = f->own = false;
    if (e->copies[0].where == CATALOG_MEMORY) {
        /* If it leaves or is discarded meanwhile it becomes the reader's. */
        f->block = arena_at(arena, e->copies[0].place.addr);
        arena_ref(arena, f->block);
        f->used = f->own = true;
        return true;
    }
    f->block = arena_alloc(arena, ARENA_AHEAD, len);
    if (f->block == NULL && reserve != ARENA_AHEAD) {
        f->block = arena_alloc(arena, reserve, len);
        f->own = f->block != NULL && reserve == ARENA_READ;
    }
    if (f->block == NULL) {
        return false;
    }
    f->used = true;
    fetch_start(f);
    return true;
}

void fetch_close(struct fetch *f)
{
    while (f->loading) {
        pthread_cond_wait(&f->store->changed, &f->store->lock);
    }
    if (f->used) {
        arena_unref(f->store->sos->arena, f->block);
        f->used = f->own = false;
        f->block = NULL;
    }
}

void fetch_where(const struct fetch *f, const char **node, const char **kind)
{
    struct sos *s = f->store->sos;
    const struct catalog_copy *copy = &f->entry.copies[f->copy];

    *node = s->node;
    *kind = copy->where == CATALOG_DISK ? "disk" : "memory";
    if (copy->where == CATALOG_PEER) {
        s->remote->ops->describe(s->remote, &copy->place, node, kind);
    }
}

static int name_place(const struct fetch *f, int code, struct hedge_error *e)
{
    const char *node, *kind;

    fetch_where(f, &node, &kind);
    (void)error_prefix(e, "store \"%s\", block %u/%llu on %s (%s)",
                       f->store->name, f->entry.id.writer,
                       (unsigned long long)f->entry.id.sequence, node, kind);
    return code;
}

static bool is_in_memory(const struct fetch *f)
{
    return f->entry.copies[f->copy].where == CATALOG_MEMORY;
}

/* Check what came from a disk or a peer. Without the lock: it takes time. What
 * is in memory is checked here only if another copy could be read instead of
 * it; otherwise the reader's own check is enough. */
static int fetch_verify(struct fetch *f, struct hedge_error *e)
{
    struct block_header h;
    int rv;

    if (f->verified || (is_in_memory(f) && f->entry.n_copies == 1)) {
        return 0;
    }
    rv = entry_check(f->store->sos, &f->entry, f->block, &h, e);
    f->verified = rv == 0;
    return rv;
}

static bool was_tried(const struct fetch *f, const struct catalog_copy *copy)
{
    for (unsigned i = 0; i < f->n_tried; i++) {
        const struct catalog_copy *t = &f->tried[i];

        if (t->where == copy->where && t->place.addr == copy->place.addr &&
            t->place.unit == copy->place.unit) {
            return true;
        }
    }
    return false;
}

/* store->lock held. A copy to be read that has not failed; n_copies: none. */
static unsigned next_copy(const struct fetch *f, const struct catalog_entry *e)
{
    unsigned i = 0;

    while (i < e->n_copies && (e->copies[i].where == CATALOG_MEMORY ||
                               was_tried(f, &e->copies[i]))) {
        i++;
    }
    return i;
}

/* store->lock held. A block in memory is the store's: another copy needs a
 * place of its own, which the reader has claimed. */
static bool leave_memory(struct fetch *f, const struct catalog_entry *e)
{
    struct arena *arena = f->store->sos->arena;
    void *block;

    if (!is_in_memory(f)) {
        return true;
    }
    block = arena_alloc(arena, ARENA_READ, entry_len(e));
    if (block == NULL) {
        return false;
    }
    arena_unref(arena, f->block);
    f->block = block;
    f->own = true;
    return true;
}

/* Another copy, of those there are by now, if nobody has discarded the block:
 * one may have been made again while the first was waited for. */
static bool fetch_again(struct fetch *f)
{
    struct sos_store *store = f->store;
    struct catalog_entry e;
    bool again = false;
    unsigned i;

    if (f->n_tried == sizeof f->tried / sizeof f->tried[0]) {
        return false;
    }
    f->tried[f->n_tried++] = f->entry.copies[f->copy];
    pthread_mutex_lock(&store->lock);
    if (catalog_get(store->sos->catalog, &f->entry.id, &e) == 0) {
        i = next_copy(f, &e);
        again = i < e.n_copies && leave_memory(f, &e);
        if (again) {
            f->entry = e;
            f->copy = i;
            fetch_start(f);
        }
    }
    pthread_mutex_unlock(&store->lock);
    return again;
}

int fetch_finish(struct fetch *f, struct hedge_error *e)
{
    struct sos_store *store = f->store;
    int rv;

    for (;;) {
        pthread_mutex_lock(&store->lock);
        while (f->loading) {
            pthread_cond_wait(&store->changed, &store->lock);
        }
        pthread_mutex_unlock(&store->lock);
        if (f->failed) {
            rv = read_status(f->req.status);
            (void)error_set(e, rv, "%s",
                            f->req.error.text[0] != '\0' ? f->req.error.text
                                                         : hedge_strerror(rv));
        } else {
            rv = fetch_verify(f, e);
        }
        if (rv == 0) {
            return 0;
        }
        (void)name_place(f, rv, e);
        if (!fetch_again(f)) {
            return rv;
        }
    }
}
