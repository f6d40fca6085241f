/* lend.c - blocks that this node keeps for the stores of other nodes.
 *
 * A part is what is here of one store of one owner. It lives while its owner
 * renews it, until the owner drops it, or until a newer incarnation of the
 * owner shows up. A block that arrives is stored here at once or refused; it
 * never travels on. */
#include "store/sos_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <stdio.h>
#include <string.h>

struct part {
    struct list link;
    uint64_t generation, incarnation;
    uint64_t mem_used, disk_used, next_ordinal;
    uint64_t expires_ms, ttl_ms;
    uint64_t empty_since_ms; /* 0: it has blocks, or has just had some. */
    unsigned inflight;       /* Disk writes under way. */
    bool dead; /* No new blocks; freed when nothing is in flight. */
    char owner[];
};

#define LEASE_DEFAULT_MS 20000
#define GRACE_MS 5000
/* A part without blocks ends after this long: its owner, which has dropped each
 * of them, need not drop it as well. */
#define EMPTY_MS 10000

void lend_init(struct sos *s)
{
    pthread_mutex_init(&s->lend_lock, NULL);
    list_init(&s->parts);
    if (s->lend_lease_ms == 0) {
        s->lend_lease_ms = LEASE_DEFAULT_MS;
    }
}

/* All of these: lend_lock held. */

static struct part *part_find(struct sos *s, uint64_t generation)
{
    struct list *l;

    list_foreach (l, &s->parts) {
        struct part *p = container_of(l, struct part, link);

        if (p->generation == generation && !p->dead) {
            return p;
        }
    }
    return NULL;
}

/* Dropped, but something of it is still in flight: what is entered under its
 * generation now would be buried with it. */
static bool part_is_dying(struct sos *s, uint64_t generation)
{
    struct list *l;

    list_foreach (l, &s->parts) {
        struct part *p = container_of(l, struct part, link);

        if (p->generation == generation && p->dead) {
            return true;
        }
    }
    return false;
}

static bool is_owner(const struct part *p, const struct sos_owner *owner)
{
    return strcmp(p->owner, owner->id) == 0;
}

static void part_bury(struct sos *s, struct part *p)
{
    struct catalog_entry e;
    uint64_t at = 0;

    assert(p->dead && p->inflight == 0);
    while (catalog_next(s->catalog, p->generation, at, &e) == 0) {
        if (e.copies[0].where == CATALOG_MEMORY) {
            copy_drop(s, &e, &e.copies[0]);
        }
        at = e.ordinal + 1;
    }
    (void)catalog_remove_store(s->catalog, p->generation);
    if (s->disk != NULL) {
        tier_drop_store(s->disk, p->generation);
    }
    s->mem_lent -= p->mem_used;
    s->disk_lent -= p->disk_used;
    list_remove(&p->link);
    mem_free(p);
}

static void part_kill(struct sos *s, struct part *p, const char *why)
{
    if (!p->dead && p->mem_used + p->disk_used > 0) {
        log_info("sos", "dropping %llu bytes held for %s: %s",
                 (unsigned long long)(p->mem_used + p->disk_used), p->owner,
                 why);
    }
    p->dead = true;
    if (p->inflight == 0) {
        part_bury(s, p);
    }
}

static uint64_t expiry(uint64_t lease_ms, uint64_t ttl_ms)
{
    return clock_boot_ms() + (lease_ms > ttl_ms ? lease_ms : ttl_ms) + GRACE_MS;
}

static struct part *part_make(struct sos *s, const struct sos_owner *owner,
                              uint64_t generation, uint64_t ttl_ms)
{
    size_t len = strlen(owner->id) + 1;
    struct part *p = mem_calloc(1, sizeof *p + len);

    if (p != NULL) {
        p->generation = generation;
        p->incarnation = owner->incarnation;
        p->ttl_ms = ttl_ms;
        p->expires_ms = expiry(s->lend_lease_ms, ttl_ms);
        memcpy(p->owner, owner->id, len);
        list_push(&s->parts, &p->link);
    }
    return p;
}

/* A newer life of the owner ends what the older one left; a message of an
 * older life is refused. */
static int check_incarnation(struct sos *s, const struct sos_owner *owner,
                             struct hedge_error *e)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, &s->parts) {
        struct part *p = container_of(l, struct part, link);

        if (!is_owner(p, owner) || p->incarnation == owner->incarnation) {
            continue;
        }
        if (p->incarnation > owner->incarnation) {
            return error_set(e, HEDGE_EFENCED,
                             "a newer life of %s is known here", owner->id);
        }
        part_kill(s, p, "the owner has started again");
    }
    return 0;
}

char *room_text(struct sos *s, char out[ROOM_TEXT])
{
    char text[4][UNITS_SIZE_TEXT];
    struct arena_use mem;
    struct tier_use disk = {0};

    arena_use(s->arena, &mem);
    if (s->disk != NULL) {
        tier_use(s->disk, &disk);
    }
    (void)snprintf(out, ROOM_TEXT, "memory %s of %s, disk %s of %s in use",
                   units_format_size(mem.by_class[ARENA_STORED], text[0]),
                   units_format_size(mem.limit - mem.reserve, text[1]),
                   units_format_size(disk.used, text[2]),
                   units_format_size(disk.limit, text[3]));
    return out;
}

/* lend_lock held. What a node that is out of room says of itself; who asks
 * puts its name before it. */
static int refuse(struct sos *s, int code, struct hedge_error *e)
{
    char mem[UNITS_SIZE_TEXT], disk[UNITS_SIZE_TEXT], room[ROOM_TEXT];

    (void)room_text(s, room);
    if (s->lend_mem == SOS_UNLIMITED && s->lend_disk == SOS_UNLIMITED) {
        return error_set(e, code, "%s", room);
    }
    return error_set(e, code, "%s (%s and %s of it lent)", room,
                     units_format_size(s->mem_lent, mem),
                     units_format_size(s->disk_lent, disk));
}

static bool take_memory(struct sos *s, struct part *p, uint64_t limit,
                        struct sos_lend_req *req)
{
    size_t len = BLOCK_HEADER_SIZE + (size_t)req->header.stored_len;
    size_t size = (len + ARENA_UNIT - 1) / ARENA_UNIT * ARENA_UNIT;

    if (s->mem_lent + size > s->lend_mem ||
        (limit != 0 && p->mem_used + size > limit) ||
        !arena_move(s->arena, req->block, ARENA_STORED)) {
        return false;
    }
    arena_shrink(s->arena, req->block, len);
    s->mem_lent += size;
    p->mem_used += size;
    return true;
}

static int enter(struct sos *s, struct part *p, struct sos_lend_req *req,
                 uint32_t where, const struct tier_place *place)
{
    struct catalog_entry e, old;
    const struct block_header *h = &req->header;

    memset(&e, 0, sizeof e);
    if (catalog_get(s->catalog, &h->id, &old) == 0) {
        return error_set(&req->error, HEDGE_EEXISTS,
                         "block %u/%llu is here already", h->id.writer,
                         (unsigned long long)h->id.sequence);
    }
    e.id = h->id;
    e.ordinal = p->next_ordinal;
    e.raw_sum = h->raw_sum;
    e.stored_sum = h->stored_sum;
    e.raw_len = h->raw_len;
    e.stored_len = h->stored_len;
    e.records = h->records;
    e.first = h->first;
    e.flags = h->flags;
    e.codec = h->codec;
    e.n_copies = 1;
    e.copies[0].where = where;
    e.copies[0].place = *place;
    p->next_ordinal++;
    return catalog_put(s->catalog, &e);
}

static int store_in_memory(struct sos *s, struct part *p,
                           struct sos_lend_req *req)
{
    struct tier_place place = {.addr = arena_offset(s->arena, req->block)};
    int rv = enter(s, p, req, CATALOG_MEMORY, &place);

    if (rv != 0) {
        size_t size = arena_size(s->arena, req->block);

        s->mem_lent -= size;
        p->mem_used -= size;
        arena_unref(s->arena, req->block);
    }
    req->in_memory = true;
    return rv;
}

static void on_lent_to_disk(struct tier_req *tier_req)
{
    struct sos_lend_req *req = tier_req->ctx;
    struct sos *s = req->sos;
    size_t padded = disk_padded(s->disk, tier_req->len);
    struct part *p = req->part;

    tier_count(s->disk, tier_req, true);
    pthread_mutex_lock(&s->lend_lock);
    req->status = tier_req->status;
    if (req->status == HEDGE_ENOSPC) {
        req->status = refuse(s, HEDGE_EREFUSED, &req->error);
    } else if (req->status != 0) {
        req->error = tier_req->error;
    } else if (p->dead) {
        req->status = error_set(&req->error, HEDGE_EREFUSED,
                                "the store was dropped meanwhile");
    } else {
        req->status = enter(s, p, req, CATALOG_DISK, &tier_req->place);
    }
    if (req->status != 0) {
        if (tier_req->status == 0) {
            tier_drop(s->disk, &tier_req->id, &tier_req->place, tier_req->len);
        }
        s->disk_lent -= padded;
        p->disk_used -= padded;
    }
    p->inflight--;
    if (p->dead && p->inflight == 0) {
        part_bury(s, p);
    }
    pthread_mutex_unlock(&s->lend_lock);
    arena_unref(s->arena, req->block);
    req->cb(req);
}

static int store_on_disk(struct sos *s, struct part *p, uint64_t limit,
                         struct sos_lend_req *req)
{
    size_t len = BLOCK_HEADER_SIZE + (size_t)req->header.stored_len;
    size_t padded;
    int rv;

    if (s->disk == NULL) {
        return refuse(s, HEDGE_EREFUSED, &req->error);
    }
    padded = disk_padded(s->disk, len);
    if (s->disk_lent + padded > s->lend_disk ||
        (limit != 0 && p->disk_used + padded > limit)) {
        return refuse(s, HEDGE_EREFUSED, &req->error);
    }
    memset(&req->req, 0, sizeof req->req);
    req->req.id = req->header.id;
    req->req.data = req->block;
    req->req.len = len;
    req->req.cb = on_lent_to_disk;
    req->req.ctx = req;
    req->part = p;
    req->in_memory = false;
    s->disk_lent += padded;
    p->disk_used += padded;
    p->inflight++;
    rv = tier_put(s->disk, &req->req);
    if (rv != 0) {
        s->disk_lent -= padded;
        p->disk_used -= padded;
        p->inflight--;
        rv = rv == HEDGE_ENOSPC ? refuse(s, HEDGE_EREFUSED, &req->error)
                                : error_set(&req->error, rv, "disk of %s: %s",
                                            s->node, hedge_strerror(rv));
    }
    return rv;
}

/* Is this the generation of a store of this node? Nobody else may write it. */
static bool is_own(struct sos *s, uint64_t generation)
{
    struct list *lists[] = {&s->stores, &s->doomed}, *l;
    bool own = false;

    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < 2; i++) {
        list_foreach (l, lists[i]) {
            own = own || container_of(l, struct sos_store, link)->generation ==
                             generation;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return own;
}

int sos_lend_put(struct sos *s, const struct sos_owner *owner,
                 const struct tier_store *store, struct sos_lend_req *req)
{
    bool in_memory = false, on_disk = false;
    struct part *p;
    int rv;

    req->sos = s;
    pthread_mutex_lock(&s->lend_lock);
    rv = check_incarnation(s, owner, &req->error);
    p = rv == 0 ? part_find(s, req->header.id.generation) : NULL;
    if (rv == 0 && p == NULL && part_is_dying(s, req->header.id.generation)) {
        rv = error_set(&req->error, HEDGE_EREFUSED,
                       "%s is just giving back what it held of store \"%.64s\"",
                       s->node, store->name);
    } else if (rv == 0 && p == NULL && is_own(s, req->header.id.generation)) {
        rv = error_set(&req->error, HEDGE_EPROTO,
                       "generation %llx is of a store of %s itself",
                       (unsigned long long)req->header.id.generation, s->node);
    } else if (rv == 0 && p == NULL) {
        p = part_make(s, owner, req->header.id.generation, store->ttl_ms);
        rv = p == NULL ? HEDGE_ENOMEM : 0;
    }
    if (rv == 0 && !is_owner(p, owner)) {
        rv = error_set(&req->error, HEDGE_EPROTO,
                       "the store belongs to %s, not to %s", p->owner,
                       owner->id);
    }
    if (rv == 0 && take_memory(s, p, store->mem_limit, req)) {
        in_memory = true;
        rv = store_in_memory(s, p, req);
    } else if (rv == 0) {
        rv = store_on_disk(s, p, store->disk_limit, req);
        on_disk = rv == 0;
    }
    pthread_mutex_unlock(&s->lend_lock);
    if (!in_memory && !on_disk) {
        arena_unref(s->arena, req->block);
    }
    if (!on_disk) {
        req->status = rv;
        req->cb(req);
    }
    return 0;
}

/* --- reading --- */

struct wait {
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool finished;
};

static void on_read(struct tier_req *req)
{
    struct wait *w = req->ctx;

    pthread_mutex_lock(&w->lock);
    w->finished = true;
    pthread_cond_signal(&w->done);
    pthread_mutex_unlock(&w->lock);
}

static int read_disk(struct sos *s, const struct catalog_entry *entry,
                     void *block, struct hedge_error *e)
{
    struct wait w = {.finished = false};
    struct tier_req req = {.id = entry->id,
                           .data = block,
                           .len = entry_len(entry),
                           .place = entry->copies[0].place,
                           .cb = on_read,
                           .ctx = &w};
    int rv;

    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.done, NULL);
    rv = tier_get(s->disk, &req);
    if (rv == 0) {
        pthread_mutex_lock(&w.lock);
        while (!w.finished) {
            pthread_cond_wait(&w.done, &w.lock);
        }
        pthread_mutex_unlock(&w.lock);
        tier_count(s->disk, &req, false);
        rv = req.status;
        if (rv != 0 && e != NULL) {
            *e = req.error;
        }
    } else {
        (void)error_set(e, rv, "disk of %s: %s", s->node, hedge_strerror(rv));
    }
    pthread_cond_destroy(&w.done);
    pthread_mutex_destroy(&w.lock);
    return rv;
}

/* lend_lock held. Keep the part while one of its blocks is read from disk. */
static struct part *part_hold(struct sos *s, uint64_t generation)
{
    struct part *p = part_find(s, generation);

    assert(p != NULL);
    p->inflight++;
    return p;
}

static void part_let_go(struct sos *s, struct part *p)
{
    pthread_mutex_lock(&s->lend_lock);
    p->inflight--;
    if (p->dead && p->inflight == 0) {
        part_bury(s, p);
    }
    pthread_mutex_unlock(&s->lend_lock);
}

static int read_into_arena(struct sos *s, const struct catalog_entry *entry,
                           void **block, struct hedge_error *e)
{
    struct block_header h;
    int rv;

    *block = arena_alloc_wait(s->arena, ARENA_SERVE, entry_len(entry), 5000);
    if (*block == NULL) {
        return error_set(e, HEDGE_EBUSY, "no memory to read a block on %s",
                         s->node);
    }
    rv = read_disk(s, entry, *block, e);
    rv = rv != 0 ? rv : entry_check(s, entry, *block, &h, e);
    if (rv != 0) {
        arena_unref(s->arena, *block);
        *block = NULL;
    }
    return rv;
}

int sos_lend_get(struct sos *s, const struct block_id *id, void **block,
                 size_t *len, struct hedge_error *e)
{
    struct catalog_entry entry;
    struct part *p = NULL;
    int rv;

    *block = NULL;
    pthread_mutex_lock(&s->lend_lock);
    /* Not a block of this node's own stores: those have other locks. */
    rv = part_find(s, id->generation) == NULL
             ? HEDGE_ENOTFOUND
             : catalog_get(s->catalog, id, &entry);
    if (rv == 0 && entry.copies[0].where == CATALOG_MEMORY) {
        *block = arena_at(s->arena, entry.copies[0].place.addr);
        arena_ref(s->arena, *block);
    } else if (rv == 0) {
        p = part_hold(s, id->generation);
    }
    pthread_mutex_unlock(&s->lend_lock);
    if (rv != 0) {
        return error_set(e, HEDGE_ELOST,
                         "block %u/%llu is not on %s (any more)", id->writer,
                         (unsigned long long)id->sequence, s->node);
    }
    *len = entry_len(&entry);
    if (p != NULL) {
        rv = read_into_arena(s, &entry, block, e);
        part_let_go(s, p);
    }
    return rv;
}

/* --- dropping --- */

static void drop_block(struct sos *s, const struct sos_owner *owner,
                       const struct block_id *id)
{
    struct part *p = part_find(s, id->generation);
    struct catalog_entry e;

    if (p == NULL || !is_owner(p, owner) ||
        p->incarnation > owner->incarnation ||
        catalog_get(s->catalog, id, &e) != 0) {
        return;
    }
    if (e.copies[0].where == CATALOG_MEMORY) {
        size_t size =
            arena_size(s->arena, arena_at(s->arena, e.copies[0].place.addr));

        s->mem_lent -= size;
        p->mem_used -= size;
    } else {
        size_t padded = disk_padded(s->disk, entry_len(&e));

        s->disk_lent -= padded;
        p->disk_used -= padded;
    }
    (void)catalog_remove(s->catalog, id);
    copy_drop(s, &e, &e.copies[0]);
}

void sos_lend_drop(struct sos *s, const struct sos_owner *owner,
                   uint64_t generation, const struct block_id *id)
{
    struct list *l, *tmp;

    pthread_mutex_lock(&s->lend_lock);
    if (id != NULL) {
        drop_block(s, owner, id);
    } else {
        list_foreach_safe (l, tmp, &s->parts) {
            struct part *p = container_of(l, struct part, link);

            if (is_owner(p, owner) && p->incarnation <= owner->incarnation &&
                (generation == 0 || p->generation == generation) && !p->dead) {
                part_kill(s, p, "the owner has dropped it");
            }
        }
    }
    pthread_mutex_unlock(&s->lend_lock);
}

void sos_lend_seen(struct sos *s, const struct sos_owner *owner)
{
    pthread_mutex_lock(&s->lend_lock);
    (void)check_incarnation(s, owner, NULL);
    pthread_mutex_unlock(&s->lend_lock);
}

void sos_lend_renew(struct sos *s, const struct sos_owner *owner,
                    uint64_t lease_ms)
{
    struct list *l;

    pthread_mutex_lock(&s->lend_lock);
    (void)check_incarnation(s, owner, NULL);
    list_foreach (l, &s->parts) {
        struct part *p = container_of(l, struct part, link);

        if (is_owner(p, owner) && p->incarnation == owner->incarnation) {
            p->expires_ms = expiry(lease_ms, p->ttl_ms);
        }
    }
    pthread_mutex_unlock(&s->lend_lock);
}

static bool empty_for_long(struct part *p, uint64_t now_ms)
{
    if (p->mem_used + p->disk_used > 0 || p->inflight > 0) {
        p->empty_since_ms = 0;
    } else if (p->empty_since_ms == 0) {
        p->empty_since_ms = now_ms;
    }
    return p->empty_since_ms != 0 && now_ms - p->empty_since_ms >= EMPTY_MS;
}

void lend_expire(struct sos *s, uint64_t now_ms)
{
    struct list *l, *tmp;

    pthread_mutex_lock(&s->lend_lock);
    list_foreach_safe (l, tmp, &s->parts) {
        struct part *p = container_of(l, struct part, link);

        if (!p->dead && now_ms >= p->expires_ms) {
            part_kill(s, p, "the owner has not renewed it");
        } else if (!p->dead && empty_for_long(p, now_ms)) {
            part_kill(s, p, "it is empty");
        }
    }
    pthread_mutex_unlock(&s->lend_lock);
}

void lend_release(struct sos *s)
{
    struct list *l, *tmp;

    pthread_mutex_lock(&s->lend_lock);
    list_foreach_safe (l, tmp, &s->parts) {
        struct part *p = container_of(l, struct part, link);

        part_kill(s, p, "this node stops");
    }
    pthread_mutex_unlock(&s->lend_lock);
}

unsigned lend_parts(struct sos *s)
{
    struct list *l;
    unsigned n = 0;

    pthread_mutex_lock(&s->lend_lock);
    list_foreach (l, &s->parts) {
        n++;
    }
    pthread_mutex_unlock(&s->lend_lock);
    return n;
}
