#include "store/sos_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define JANITOR_MS 250
#define JANITOR_SOON_MS 20

/* The life of a store:
 *   named (sos.stores) -> dead (removed or expired; name free) -> doomed, no
 *   references and no passages left -> its blocks are freed by the janitor. */

/* --- what a store uses, by node and tier --- */

static struct use *use_of(struct sos *s, struct uses *uses,
                          const struct catalog_copy *copy)
{
    bool peer = copy->where == CATALOG_PEER;
    uint32_t unit = peer ? copy->place.unit : 0;
    uint32_t kind = peer ? copy->place.kind : 0;
    struct use *u;

    for (unsigned i = 0; i < uses->n; i++) {
        u = &uses->all[i];
        if (u->where == copy->where && u->place.unit == unit &&
            u->place.kind == kind) {
            return u;
        }
    }
    u = mem_realloc(uses->all, (uses->n + 1) * sizeof *u);
    if (u == NULL) {
        return NULL; /* Statistics only. */
    }
    uses->all = u;
    u = &uses->all[uses->n++];
    *u = (struct use){.where = copy->where,
                      .place = {.unit = unit, .kind = kind},
                      .node = s->node,
                      .tier = copy->where == CATALOG_DISK ? "disk" : "memory"};
    if (peer) {
        s->remote->ops->describe(s->remote, &copy->place, &u->node, &u->tier);
    }
    return u;
}

size_t entry_len(const struct catalog_entry *e)
{
    return BLOCK_HEADER_SIZE + (size_t)e->stored_len;
}

int entry_check(struct sos *s, const struct catalog_entry *entry,
                const void *block, struct block_header *h,
                struct hedge_error *e)
{
    int rv = block_header_decode(block, entry_len(entry), s->block_size, h, e);

    rv = rv != 0 ? rv : block_header_expect(h, &entry->id, e);
    if (rv == 0 &&
        (h->raw_sum != entry->raw_sum || h->stored_sum != entry->stored_sum ||
         h->stored_len != entry->stored_len)) {
        rv = error_set(e, HEDGE_ECORRUPT,
                       "its header is not the one that was stored");
    }
    return rv != 0
               ? rv
               : block_check_stored(
                     h, (const unsigned char *)block + BLOCK_HEADER_SIZE, e);
}

static uint64_t entry_bytes(const struct catalog_entry *e)
{
    return e->raw_len - (uint64_t)e->records * BLOCK_FRAME_SIZE;
}

void use_add(struct sos *s, struct uses *uses, const struct catalog_entry *e,
             const struct catalog_copy *copy, int sign)
{
    uint64_t bytes = entry_bytes(e), len = entry_len(e);
    struct use *u = use_of(s, uses, copy);

    if (u == NULL) {
        return;
    }
    if (sign > 0) {
        u->blocks++;
        u->bytes += bytes;
        u->stored_bytes += len;
    } else if (u->blocks > 0) {
        u->blocks--;
        u->bytes -= bytes < u->bytes ? bytes : u->bytes;
        u->stored_bytes -= len < u->stored_bytes ? len : u->stored_bytes;
    }
}

static bool use_is_lost(struct sos *s, const struct use *u)
{
    return u->where == CATALOG_PEER && s->remote->ops->lost != NULL &&
           s->remote->ops->lost(s->remote, &u->place);
}

struct sos_use *uses_list(struct sos *s, const struct uses *uses, unsigned *n,
                          uint64_t *copies)
{
    struct sos_use *out = mem_calloc(uses->n + 1, sizeof *out);

    *n = 0;
    *copies = 0;
    for (unsigned i = 0; out != NULL && i < uses->n; i++) {
        const struct use *u = &uses->all[i];

        if (u->blocks > 0 && !use_is_lost(s, u)) {
            *copies += u->blocks;
            out[(*n)++] = (struct sos_use){u->node, u->tier, u->blocks,
                                           u->bytes, u->stored_bytes};
        }
    }
    return out;
}

void copy_drop(struct sos *s, const struct catalog_entry *e,
               const struct catalog_copy *copy)
{
    switch (copy->where) {
    case CATALOG_MEMORY:
        /* A reader that is just at it holds it on, at its own expense. */
        arena_pass(s->arena, arena_at(s->arena, copy->place.addr), ARENA_READ);
        break;
    case CATALOG_DISK:
        tier_drop(s->disk, &e->id, &copy->place, entry_len(e));
        break;
    case CATALOG_PEER:
        tier_drop(s->remote, &e->id, &copy->place, entry_len(e));
        break;
    default:
        assert(copy->where == CATALOG_NONE);
    }
}

struct fetch *fetch_of(struct sos_store *store, const struct block_id *id)
{
    struct list *l;

    list_foreach (l, &store->fetches) {
        struct fetch *f = container_of(l, struct fetch, link);

        if (block_id_equal(&f->entry.id, id) && !f->discard_after) {
            return f;
        }
    }
    return NULL;
}

void drain_note(struct sos_store *store)
{
    uint64_t now = clock_mono_ms();

    atomic_store(&store->drain.last_ms, now);
    atomic_store(&store->sos->drain.last_ms, now);
}

/* store->lock held. What the copy counted goes. */
static void uncount(struct sos_store *store, const struct catalog_entry *e,
                    const struct catalog_copy *copy)
{
    struct sos *s = store->sos;

    use_add(s, &store->uses, e, copy, -1);
    if (copy->where == CATALOG_MEMORY && copy->place.kind == 1) {
        store->mem_used -=
            arena_size(s->arena, arena_at(s->arena, copy->place.addr));
    } else if (copy->where == CATALOG_DISK) {
        store->disk_used -= disk_padded(s->disk, entry_len(e));
    }
}

void store_discard(struct sos_store *store, const struct block_id *id,
                   bool keep_number)
{
    struct sos *s = store->sos;
    struct catalog_entry e, none;
    struct fetch *reading;
    bool owned;
    int rv;

    if (catalog_get(s->catalog, id, &e) != 0) {
        return; /* Another reader was faster. */
    }
    none = e;
    none.n_copies = 0;
    rv = keep_number ? catalog_put(s->catalog, &none)
                     : catalog_remove(s->catalog, id);
    if (rv != 0) {
        return; /* What the catalog knows must be there: later, with all. */
    }
    store->n_blocks -= e.n_copies > 0;
    if (!keep_number && e.n_copies > 0) {
        store->n_discarded++;
        store->discarded_bytes += entry_bytes(&e);
    }
    drain_note(store);
    owned = passages_owns(s, id);
    reading = fetch_of(store, id);
    for (unsigned i = 0; i < e.n_copies; i++) {
        bool memory = e.copies[i].where == CATALOG_MEMORY;

        uncount(store, &e, &e.copies[i]);
        /* The passage, or the callback of the read, gives it back later. */
        if (memory ? !owned : reading == NULL) {
            copy_drop(s, &e, &e.copies[i]);
        }
    }
    if (reading != NULL && e.n_copies > 0) {
        reading->entry = e;
        reading->discard_after = true;
    }
}

/* --- references and life --- */

void store_ref(struct sos_store *store)
{
    pthread_mutex_lock(&store->sos->lock);
    assert(store->refs > 0);
    store->refs++;
    pthread_mutex_unlock(&store->sos->lock);
}

/* sos->lock held. */
static void refs_gone(struct sos_store *store)
{
    if (store->refs == 0) {
        atomic_fetch_add(&store->sos->n_burying, 1);
        pthread_cond_signal(&store->sos->wake);
    }
}

void sos_store_unref(struct sos_store *store)
{
    struct sos *s = store->sos;

    pthread_mutex_lock(&s->lock);
    assert(store->refs > 0);
    store->refs--;
    refs_gone(store); /* If so it is doomed: no name holds it. */
    pthread_mutex_unlock(&s->lock);
}

void store_idle_check(struct sos_store *store)
{
    if (store->writers == 0 && store->readers == 0) {
        store->idle_since_ms = clock_boot_ms();
    }
}

/* sos->lock held. The name's reference goes. */
static void doom(struct sos_store *store)
{
    struct sos *s = store->sos;

    list_remove(&store->link);
    list_push(&s->doomed, &store->link);
    s->n_stores--;
    store->refs--;
    refs_gone(store);
}

/* Marks the store dead; true for the one caller who did it. */
static bool kill_store(struct sos_store *store)
{
    bool first;

    pthread_mutex_lock(&store->lock);
    first = !store->dead;
    store->dead = true;
    pthread_cond_broadcast(&store->changed);
    pthread_mutex_unlock(&store->lock);
    return first;
}

void sos_remove(struct sos_store *store)
{
    struct sos *s = store->sos;

    pthread_mutex_lock(&s->lock);
    if (kill_store(store)) {
        count_add(&s->counts.stores_removed, 1);
        doom(store);
    }
    pthread_mutex_unlock(&s->lock);
}

static void store_release(struct sos_store *store)
{
    pthread_cond_destroy(&store->changed);
    pthread_mutex_destroy(&store->lock);
    mem_free(store->states);
    mem_free(store->uses.all);
    mem_free(store);
}

/* Free what a doomed store holds. Nobody else knows it any more. */
static void bury(struct sos_store *store)
{
    struct sos *s = store->sos;
    struct catalog_entry e;
    uint64_t at = 0;
    bool remote = false;

    passages_purge(s, store);
    while (catalog_next(s->catalog, store->generation, at, &e) == 0) {
        for (unsigned i = 0; i < e.n_copies; i++) {
            if (e.copies[i].where == CATALOG_MEMORY) {
                copy_drop(s, &e, &e.copies[i]);
            }
            remote = remote || e.copies[i].where == CATALOG_PEER;
        }
        at = e.ordinal + 1;
    }
    (void)catalog_remove_store(s->catalog, store->generation);
    if (s->disk != NULL) {
        tier_drop_store(s->disk, store->generation);
    }
    if (s->remote != NULL && remote) {
        tier_drop_store(s->remote, store->generation);
    }
    store_release(store);
}

/* --- the janitor --- */

/* store->lock held. */
static uint64_t ttl_of(const struct sos_store *store)
{
    return store->ends ? store->options.closed_ttl_ms : store->options.ttl_ms;
}

/* Marks a store dead whose time has passed: in one step, so that nobody opens
 * it in between. */
static bool kill_expired(struct sos_store *store, uint64_t now)
{
    bool expired;

    pthread_mutex_lock(&store->lock);
    expired = !store->dead && store->writers == 0 && store->readers == 0 &&
              now >= store->idle_since_ms + ttl_of(store);
    if (expired) {
        store->dead = true;
        pthread_cond_broadcast(&store->changed);
    }
    pthread_mutex_unlock(&store->lock);
    return expired;
}

static void entomb(struct sos *s, const char *name, uint64_t now)
{
    size_t len = strlen(name) + 1;
    struct tombstone *t = mem_alloc(sizeof *t + len);

    if (t != NULL) {
        t->at_ms = now;
        memcpy(t->name, name, len);
        list_push(&s->tombstones, &t->link);
    }
}

/* sos->lock held. Those of a name, or the old ones. */
static void forget_tombstones(struct sos *s, const char *name, uint64_t now)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, &s->tombstones) {
        struct tombstone *t = container_of(l, struct tombstone, link);

        if (name != NULL ? strcmp(t->name, name) == 0
                         : now > t->at_ms + EXPIRED_KEPT_MS) {
            list_remove(l);
            mem_free(t);
        }
    }
}

/* sos->lock held. */
static void expire_stores(struct sos *s, uint64_t now)
{
    struct list *l, *tmp;

    list_foreach_safe (l, tmp, &s->stores) {
        struct sos_store *store = container_of(l, struct sos_store, link);

        if (kill_expired(store, now)) {
            count_add(&s->counts.stores_expired, 1);
            log_info("sos", "store \"%s\" has expired", store->name);
            if (!store->options.local) {
                entomb(s, store->name, now);
            }
            if (!store->options.local && s->on_expired != NULL) {
                s->on_expired(s->on_expired_ctx, store->name,
                              store->generation);
            }
            doom(store);
        }
    }
    forget_tombstones(s, NULL, now);
}

static struct sos_store *next_to_bury(struct sos *s)
{
    struct list *l;

    list_foreach (l, &s->doomed) {
        struct sos_store *store = container_of(l, struct sos_store, link);
        bool ready;

        pthread_mutex_lock(&store->lock);
        ready = store->refs == 0 && store->inflight == 0;
        pthread_mutex_unlock(&store->lock);
        if (ready) {
            list_remove(l);
            return store;
        }
    }
    return NULL;
}

static void *janitor_main(void *arg)
{
    struct sos *s = arg;

    pthread_mutex_lock(&s->lock);
    for (;;) {
        struct sos_store *store = next_to_bury(s);
        struct timespec ts;
        uint64_t until;
        bool soon;

        if (store != NULL) {
            pthread_mutex_unlock(&s->lock);
            bury(store);
            atomic_fetch_sub(&s->n_burying, 1);
            pthread_mutex_lock(&s->lock);
            continue;
        }
        if (s->closing && list_empty(&s->doomed)) {
            break;
        }
        expire_stores(s, clock_boot_ms());
        pthread_mutex_unlock(&s->lock);
        soon = passages_retry(s);
        lend_expire(s, clock_boot_ms());
        pthread_mutex_lock(&s->lock);
        until = clock_mono_ns() +
                (uint64_t)(soon ? JANITOR_SOON_MS : JANITOR_MS) * 1000000u;
        ts.tv_sec = (time_t)(until / 1000000000u);
        ts.tv_nsec = (long)(until % 1000000000u);
        pthread_cond_timedwait(&s->wake, &s->lock, &ts);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* --- the node's stores --- */

static void init_cond(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

static int open_disk(struct sos *s, const struct sos_options *o,
                     struct hedge_error *e)
{
    struct disk_options d = {.limit = o->disk_limit,
                             .reserve = o->disk_reserve,
                             .io = o->io,
                             .fault = o->disk_fault,
                             .fault_ctx = o->disk_fault_ctx};
    char dir[4096];

    if (o->disk_limit == 0) {
        return 0;
    }
    if (snprintf(dir, sizeof dir, "%s/blocks", o->data_dir) >=
        (int)sizeof dir) {
        return error_set(e, HEDGE_EINVAL,
                         "the data directory's name is too "
                         "long");
    }
    d.dir = dir;
    return disk_new(&d, &s->disk, e);
}

static int open_parts(struct sos *s, const struct sos_options *o,
                      struct hedge_error *e)
{
    struct arena_options a = {.limit = o->mem_limit,
                              .block_size = o->block_size};
    char dir[4096];
    int rv;

    s->node = mem_strdup(o->node);
    if (s->node == NULL || passages_new(s, &s->passages) != 0 ||
        encoders_new(o->block_size, &s->encoders) != 0) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the store");
    }
    rv = arena_new(&a, &s->arena, e);
    if (rv != 0) {
        return rv;
    }
    if (snprintf(dir, sizeof dir, "%s/catalog", o->data_dir) >=
        (int)sizeof dir) {
        return error_set(e, HEDGE_EINVAL,
                         "the data directory's name is too long");
    }
    rv = catalog_new(dir, &s->catalog, e);
    return rv != 0 ? rv : open_disk(s, o, e);
}

int sos_new(const struct sos_options *o, struct sos **out,
            struct hedge_error *e)
{
    struct sos *s = mem_calloc(1, sizeof *s);
    int rv;

    *out = NULL;
    if (s == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the store");
    }
    s->block_size = o->block_size;
    s->on_expired = o->on_expired;
    s->on_expired_ctx = o->on_expired_ctx;
    s->drain_ms = o->drain_ms != 0 ? o->drain_ms : DRAIN_MS;
    s->lend_mem = o->lend_mem;
    s->lend_disk = o->lend_disk;
    s->lend_lease_ms = o->lend_lease_ms;
    list_init(&s->stores);
    list_init(&s->doomed);
    list_init(&s->tombstones);
    list_init(&s->cursors);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->cursors_lock, NULL);
    init_cond(&s->wake);
    lend_init(s);
    meter_init(&s->leaving);
    rv = open_parts(s, o, e);
    if (rv == 0 && repair_new(s, &s->repair) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "cannot start the store's threads");
    }
    if (rv == 0 && pthread_create(&s->janitor, NULL, janitor_main, s) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "cannot start the store's thread");
    }
    if (rv != 0) {
        sos_free(s);
        return rv;
    }
    s->janitor_runs = true;
    (void)pthread_setname_np(s->janitor, "hedge-janitor");
    *out = s;
    return 0;
}

void sos_free(struct sos *s)
{
    struct list *l, *tmp;

    if (s == NULL) {
        return;
    }
    repair_free(s->repair);
    if (s->janitor_runs) {
        pthread_mutex_lock(&s->lock);
        list_foreach_safe (l, tmp, &s->stores) {
            struct sos_store *store = container_of(l, struct sos_store, link);

            if (kill_store(store)) {
                doom(store);
            }
        }
        s->closing = true;
        pthread_cond_signal(&s->wake);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->janitor, NULL);
    }
    if (s->catalog != NULL) {
        lend_release(s);
    }
    tier_free(s->remote);
    tier_free(s->disk);
    passages_free(s->passages);
    encoders_free(s->encoders);
    meter_release(&s->leaving);
    catalog_free(s->catalog);
    arena_free(s->arena);
    list_foreach_safe (l, tmp, &s->tombstones) {
        list_remove(l);
        mem_free(container_of(l, struct tombstone, link));
    }
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->cursors_lock);
    pthread_mutex_destroy(&s->lend_lock);
    mem_free(s->node);
    mem_free(s);
}

void sos_hurry(struct sos *s)
{
    if (s != NULL) {
        atomic_store(&s->hurry, true);
        tier_hurry(s->remote);
    }
}

void sos_set_remote(struct sos *s, struct tier *remote)
{
    assert(s->remote == NULL);
    s->remote = remote;
}

struct arena *sos_arena(struct sos *s)
{
    return s->arena;
}

struct tier *sos_disk(struct sos *s)
{
    return s->disk;
}

size_t sos_block_size(const struct sos *s)
{
    return s->block_size;
}

/* --- finding and making stores --- */

int sos_check_options(const struct sos_store_options *o, struct hedge_error *e)
{
    if (o->replicas < 1 || o->replicas > SOS_REPLICAS_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "%u replicas are not possible: 1 to %d", o->replicas,
                         SOS_REPLICAS_MAX);
    }
    if (o->ttl_ms < 100 || o->ttl_ms > (uint64_t)366 * 86400000) {
        return error_set(e, HEDGE_EINVAL,
                         "a TTL of %llu ms is not possible: 100 ms to 366 d",
                         (unsigned long long)o->ttl_ms);
    }
    if (o->level < 0 || o->level > 19) {
        return error_set(e, HEDGE_EINVAL,
                         "zstd level %d is not possible: 1 to 19", o->level);
    }
    if ((unsigned)o->compression > SOS_COMPRESS_ZSTD) {
        return error_set(e, HEDGE_EINVAL, "unknown compression %d",
                         (int)o->compression);
    }
    return 0;
}

static struct sos_store *find_locked(struct sos *s, const char *name,
                                     bool local)
{
    struct list *l;

    list_foreach (l, &s->stores) {
        struct sos_store *store = container_of(l, struct sos_store, link);

        if (store->options.local == local && strcmp(store->name, name) == 0) {
            return store;
        }
    }
    return NULL;
}

static struct sos_store *store_new(struct sos *s, const char *name,
                                   uint64_t generation,
                                   const struct sos_store_options *o)
{
    struct sos_store *store = mem_calloc(1, sizeof *store);

    if (store == NULL) {
        return NULL;
    }
    store->sos = s;
    (void)snprintf(store->name, sizeof store->name, "%s", name);
    store->generation = generation;
    store->options = *o;
    store->told = (struct tier_store){.name = store->name,
                                      .mem_limit = o->mem_limit,
                                      .disk_limit = o->disk_limit,
                                      .ttl_ms = o->ttl_ms};
    store->refs = 2; /* The name's and the caller's. */
    store->idle_since_ms = clock_boot_ms();
    list_init(&store->fetches);
    list_init(&store->sinks);
    pthread_mutex_init(&store->lock, NULL);
    init_cond(&store->changed);
    return store;
}

int sos_create(struct sos *s, const char *name, uint64_t generation,
               const struct sos_store_options *o, struct sos_store **out,
               struct hedge_error *e)
{
    struct sos_store *store;
    int rv = units_check_name(name, strlen(name), e);

    *out = NULL;
    rv = rv != 0 ? rv : sos_check_options(o, e);
    if (rv != 0) {
        return rv;
    }
    store = store_new(s, name, generation, o);
    if (store == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a store");
    }
    pthread_mutex_lock(&s->lock);
    if (find_locked(s, name, o->local) != NULL) {
        rv = error_set(e, HEDGE_EEXISTS, "store \"%s\" exists already", name);
    } else {
        list_push(&s->stores, &store->link);
        s->n_stores++;
        count_add(&s->counts.stores_made, 1);
        if (!o->local) {
            forget_tombstones(s, name, 0);
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (rv != 0) {
        store_release(store);
        return rv;
    }
    *out = store;
    return 0;
}

int sos_find_local(struct sos *s, const char *name, struct sos_store **out,
                   struct hedge_error *e)
{
    pthread_mutex_lock(&s->lock);
    *out = find_locked(s, name, true);
    if (*out != NULL) {
        (*out)->refs++;
    }
    pthread_mutex_unlock(&s->lock);
    return *out != NULL
               ? 0
               : error_set(e, HEDGE_ENOTFOUND,
                           "this node has no part of a store \"%s\"", name);
}

void sos_store_end(struct sos_store *store, uint64_t closed_ttl_ms)
{
    assert(store->options.local);
    pthread_mutex_lock(&store->lock);
    store->ends = true;
    store->idle_since_ms = clock_boot_ms();
    if (closed_ttl_ms != 0) {
        store->options.closed_ttl_ms = closed_ttl_ms;
    }
    pthread_mutex_unlock(&store->lock);
}

void sos_store_resume(struct sos_store *store)
{
    assert(store->options.local);
    pthread_mutex_lock(&store->lock);
    store->ends = false;
    store->idle_since_ms = clock_boot_ms();
    pthread_mutex_unlock(&store->lock);
}

int sos_find(struct sos *s, const char *name, struct sos_store **out,
             struct hedge_error *e)
{
    struct list *l;
    char ago[UNITS_SIZE_TEXT];
    int rv = HEDGE_ENOTFOUND;

    pthread_mutex_lock(&s->lock);
    *out = find_locked(s, name, false);
    if (*out != NULL) {
        (*out)->refs++;
        pthread_mutex_unlock(&s->lock);
        return 0;
    }
    list_foreach (l, &s->tombstones) {
        struct tombstone *t = container_of(l, struct tombstone, link);

        if (strcmp(t->name, name) == 0) {
            rv = error_set(
                e, HEDGE_EEXPIRED, "store \"%s\" expired %s ago", name,
                units_format_duration(clock_boot_ms() - t->at_ms, ago));
        }
    }
    pthread_mutex_unlock(&s->lock);
    return rv == HEDGE_EEXPIRED
               ? rv
               : error_set(e, rv, "there is no store \"%s\"", name);
}

int sos_store_matches(struct sos_store *store,
                      const struct sos_store_options *o, struct hedge_error *e)
{
    const struct sos_store_options *has = &store->options;
    const struct {
        const char *what;
        uint64_t has, wanted;
    } table[] = {
        {"memory limit", has->mem_limit, o->mem_limit},
        {"disk limit", has->disk_limit, o->disk_limit},
        {"TTL in ms", has->ttl_ms, o->ttl_ms},
        {"number of replicas", has->replicas, o->replicas},
        {"compression", has->compression, o->compression},
        {"compression level", (uint64_t)has->level, (uint64_t)o->level},
    };

    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].has != table[i].wanted) {
            return error_set(
                e, HEDGE_EINVAL,
                "store \"%s\" exists with another %s: %llu, not %llu",
                store->name, table[i].what, (unsigned long long)table[i].has,
                (unsigned long long)table[i].wanted);
        }
    }
    return 0;
}

const char *sos_store_name(const struct sos_store *store)
{
    return store->name;
}

uint64_t sos_store_generation(const struct sos_store *store)
{
    return store->generation;
}

int sos_each(struct sos *s, void (*fn)(void *ctx, struct sos_store *store),
             void *ctx)
{
    struct sos_store **all;
    struct list *l;
    unsigned n = 0;
    bool complete;

    pthread_mutex_lock(&s->lock);
    all = mem_calloc(s->n_stores + 1, sizeof(struct sos_store *));
    complete = all != NULL;
    if (complete) {
        list_foreach (l, &s->stores) {
            all[n] = container_of(l, struct sos_store, link);
            if (!all[n]->options.local) {
                all[n++]->refs++;
            }
        }
    }
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < n; i++) {
        fn(ctx, all[i]);
        sos_store_unref(all[i]);
    }
    mem_free(all);
    return complete ? 0 : HEDGE_ENOMEM;
}

/* store->lock held. What those that are still open have written so far. */
static void add_open(struct sos_store *store, struct manifest *m)
{
    struct list *l;

    list_foreach (l, &store->sinks) {
        struct manifest one = sink_so_far(l);

        manifest_merge(m, &one);
    }
}

int sos_store_info(struct sos_store *store, struct sos_info *out)
{
    uint64_t copies, wanted;

    memset(out, 0, sizeof *out);
    (void)snprintf(out->name, sizeof out->name, "%s", store->name);
    out->generation = store->generation;
    pthread_mutex_lock(&store->lock);
    out->options = store->options;
    out->manifest = store->written;
    add_open(store, &out->manifest);
    out->writers = store->writers;
    out->readers = store->readers;
    out->writers_ever = store->n_writers;
    out->state = store->writers > 0 || store->n_writers == 0 ? STORE_OPEN
                 : store->aborted                            ? STORE_ABORTED
                                                             : STORE_CLOSED;
    if (store->writers == 0 && store->readers == 0) {
        uint64_t idle = clock_boot_ms() - store->idle_since_ms;

        out->expires_at_ms = clock_wall_ms() + ttl_of(store) - idle;
    }
    out->uses = uses_list(store->sos, &store->uses, &out->n_uses, &copies);
    wanted = store->n_blocks * store->options.replicas;
    out->missing_copies = wanted > copies ? wanted - copies : 0;
    out->discarded_blocks = store->n_discarded;
    out->discarded_bytes = store->discarded_bytes;
    pthread_mutex_unlock(&store->lock);
    return out->uses == NULL ? HEDGE_ENOMEM : 0;
}

void sos_usage(struct sos *s, struct sos_usage *out)
{
    uint64_t left;

    memset(out, 0, sizeof *out);
    arena_use(s->arena, &out->arena);
    if (s->disk != NULL) {
        tier_use(s->disk, &out->disk);
    }
    pthread_mutex_lock(&s->lend_lock);
    out->mem_lent = s->mem_lent;
    out->disk_lent = s->disk_lent;
    pthread_mutex_unlock(&s->lend_lock);
    left = s->lend_mem > out->mem_lent ? s->lend_mem - out->mem_lent : 0;
    out->mem_lendable =
        left < out->arena.stored_free ? left : out->arena.stored_free;
    left = s->lend_disk > out->disk_lent ? s->lend_disk - out->disk_lent : 0;
    out->disk_lendable = left < out->disk.free ? left : out->disk.free;
    pthread_mutex_lock(&s->lock);
    out->stores = s->n_stores;
    pthread_mutex_unlock(&s->lock);
}
