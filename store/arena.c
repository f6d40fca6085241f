#include "store/arena.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A chunk goes through these states under the lock:
 *   cold free -> warm free -> used (whole or in pieces) -> warm free -> ...
 * and from warm free back to cold free after idle_ms without use. Chunks are
 * handed out warm first; the warmer thread keeps a few warm ones ready. */

#define NONE UINT32_MAX
#define ORDERS_MAX 7 /* 64 KiB << 6 is the largest block. */
#define WARM_AHEAD 4
#define IDLE_MS_DEFAULT 10000
#define LAST_REF_MS 5000
#define HUGE_PAGE ((uint64_t)2 << 20)

/* One per 64 KiB. Meaningful at the first unit of an allocation or of a free
 * piece of a split chunk. */
struct unit {
    atomic_uint refs;    /* 0: free. */
    uint32_t next, prev; /* Free pieces of the same order. */
    uint8_t order;
    uint8_t cls;
    uint8_t n_units; /* Taken by the allocation; it may be shrunk. */
    bool piece_free;
    bool homed;
};

struct chunk {
    uint32_t next, prev; /* On the warm or the cold list. */
    uint8_t used_units;
    bool warm;
};

struct arena {
    unsigned char *base; /* Of the first chunk, on a huge page. */
    void *map;
    uint64_t limit;
    size_t block_size;
    unsigned chunk_units, chunk_order;
    uint32_t n_chunks;
    struct unit *units;
    struct chunk *chunks;

    pthread_mutex_t lock;
    pthread_cond_t freed; /* Something was freed or moved. */
    pthread_cond_t wake;  /* For the warmer. */
    unsigned waiters;
    uint32_t warm_head, cold_head;
    uint32_t n_warm, n_cold;     /* Whole free chunks. */
    uint32_t warming;            /* Free, too, but with the warmer just now. */
    uint32_t pieces[ORDERS_MAX]; /* Free pieces of split chunks, by order. */
    uint32_t share[ARENA_CLASSES];  /* Base share of the reserve. */
    uint32_t claims[ARENA_CLASSES]; /* Of open writers and readers. */
    uint32_t homed[ARENA_CLASSES];  /* Blocks that nothing else will take. */
    uint32_t used_chunks[ARENA_CLASSES]; /* Whole chunks held, by class. */
    uint64_t used_bytes[ARENA_CLASSES];
    uint64_t last_use_ms, idle_ms;
    uint32_t resident; /* Chunks that have been faulted in. */
    bool demand;       /* Somebody allocated since the warmer last looked. */
    bool closing;
    pthread_t warmer;
    bool huge_pages;
    char huge_detail[128];
};

/* --- lists of whole chunks --- */

static void chunk_push(struct arena *a, uint32_t c, bool warm)
{
    uint32_t *head = warm ? &a->warm_head : &a->cold_head;

    a->chunks[c].warm = warm;
    a->chunks[c].prev = NONE;
    a->chunks[c].next = *head;
    if (*head != NONE) {
        a->chunks[*head].prev = c;
    }
    *head = c;
    *(warm ? &a->n_warm : &a->n_cold) += 1;
}

static void chunk_unlink(struct arena *a, uint32_t c)
{
    struct chunk *k = &a->chunks[c];
    uint32_t *head = k->warm ? &a->warm_head : &a->cold_head;

    if (k->prev != NONE) {
        a->chunks[k->prev].next = k->next;
    } else {
        assert(*head == c);
        *head = k->next;
    }
    if (k->next != NONE) {
        a->chunks[k->next].prev = k->prev;
    }
    *(k->warm ? &a->n_warm : &a->n_cold) -= 1;
}

static uint32_t chunks_free(const struct arena *a)
{
    return a->n_warm + a->n_cold + a->warming;
}

static uint32_t chunk_take(struct arena *a)
{
    uint32_t c;

    c = a->warm_head != NONE ? a->warm_head : a->cold_head;
    assert(c != NONE);
    chunk_unlink(a, c);
    if (!a->chunks[c].warm) {
        a->chunks[c].warm = true;
        a->resident++;
    }
    return c;
}

/* --- pieces of split chunks --- */

static void piece_push(struct arena *a, uint32_t u, unsigned order)
{
    struct unit *unit = &a->units[u];

    unit->order = (uint8_t)order;
    unit->piece_free = true;
    unit->prev = NONE;
    unit->next = a->pieces[order];
    if (unit->next != NONE) {
        a->units[unit->next].prev = u;
    }
    a->pieces[order] = u;
}

static void piece_unlink(struct arena *a, uint32_t u)
{
    struct unit *unit = &a->units[u];

    assert(unit->piece_free);
    if (unit->prev != NONE) {
        a->units[unit->prev].next = unit->next;
    } else {
        a->pieces[unit->order] = unit->next;
    }
    if (unit->next != NONE) {
        a->units[unit->next].prev = unit->prev;
    }
    unit->piece_free = false;
}

/* Give units [u, u+n) back to their chunk: as buddies, joined where possible;
 * a chunk with nothing used becomes whole again. */
static void units_release(struct arena *a, uint32_t u, uint32_t n)
{
    uint32_t c = u / a->chunk_units;

    assert(a->chunks[c].used_units >= n);
    a->chunks[c].used_units = (uint8_t)(a->chunks[c].used_units - n);
    while (n > 0) {
        unsigned order = 0;
        uint32_t at = u;

        while ((at & ((2u << order) - 1)) == 0 && (2u << order) <= n) {
            order++;
        }
        u += 1u << order;
        n -= 1u << order;
        while (order < a->chunk_order) {
            uint32_t buddy = at ^ (1u << order);

            if (!a->units[buddy].piece_free || a->units[buddy].order != order) {
                break;
            }
            piece_unlink(a, buddy);
            at &= ~(1u << order);
            order++;
        }
        if (order == a->chunk_order) {
            chunk_push(a, c, true);
        } else {
            piece_push(a, at, order);
        }
    }
}

/* Units for `n` out of a split chunk; NONE if no piece is large enough. */
static uint32_t piece_take(struct arena *a, uint32_t n)
{
    for (unsigned order = 0; order < a->chunk_order; order++) {
        uint32_t u = a->pieces[order];

        if ((1u << order) < n || u == NONE) {
            continue;
        }
        piece_unlink(a, u);
        a->chunks[u / a->chunk_units].used_units =
            (uint8_t)(a->chunks[u / a->chunk_units].used_units + (1u << order));
        if ((1u << order) > n) {
            units_release(a, u + n, (1u << order) - n);
        }
        return u;
    }
    return NONE;
}

/* --- who may have what --- */

static uint32_t share_of(const struct arena *a, unsigned cls)
{
    uint32_t n = a->claims[cls] + a->homed[cls];

    return n > a->share[cls] ? n : a->share[cls];
}

static uint32_t deficit(const struct arena *a, unsigned cls, uint32_t used)
{
    uint32_t share = share_of(a, cls);

    return used < share ? share - used : 0;
}

/* May `cls` hold one whole chunk more, taken from `from` (ARENA_CLASSES: from
 * the free ones)? What the other classes' shares still lack must stay free. */
static bool may_hold(const struct arena *a, unsigned cls, unsigned from)
{
    uint32_t n_free = chunks_free(a);
    uint32_t owed = 0;

    if (from == ARENA_CLASSES) {
        if (n_free == 0) {
            return false;
        }
        n_free--;
    }
    if (cls != ARENA_STORED && from == ARENA_CLASSES &&
        a->used_chunks[cls] < share_of(a, cls)) {
        return true;
    }
    for (unsigned k = ARENA_FILL; k < ARENA_CLASSES; k++) {
        uint32_t used = a->used_chunks[k];

        used += k == cls;
        used -= k == from;
        owed += deficit(a, k, used);
    }
    return n_free >= owed;
}

static void account(struct arena *a, unsigned cls, uint32_t n_units, int sign)
{
    bool whole = n_units == a->chunk_units;

    if (sign > 0) {
        a->used_chunks[cls] += whole;
        a->used_bytes[cls] += n_units * ARENA_UNIT;
    } else {
        assert(a->used_bytes[cls] >= n_units * ARENA_UNIT);
        a->used_chunks[cls] -= whole;
        a->used_bytes[cls] -= n_units * ARENA_UNIT;
    }
}

/* What every operation leaves behind: each class can have its share. */
static void assert_shares_hold(const struct arena *a)
{
    uint32_t owed = 0;

    for (unsigned k = ARENA_FILL; k < ARENA_CLASSES; k++) {
        owed += deficit(a, k, a->used_chunks[k]);
    }
    assert(chunks_free(a) >= owed);
}

static void tell_waiters(struct arena *a)
{
    if (a->waiters > 0) {
        pthread_cond_broadcast(&a->freed);
    }
}

/* --- allocation --- */

static uint32_t unit_of(const struct arena *a, const void *p)
{
    uint64_t off = (uint64_t)((const unsigned char *)p - a->base);

    assert((const unsigned char *)p >= a->base &&
           off < (uint64_t)a->n_chunks * a->block_size);
    assert(off % ARENA_UNIT == 0);
    return (uint32_t)(off / ARENA_UNIT);
}

static void *alloc_locked(struct arena *a, enum arena_class cls, size_t size)
{
    uint32_t n = (uint32_t)((size + ARENA_UNIT - 1) / ARENA_UNIT);
    uint32_t u = NONE;

    assert(size > 0 && size <= a->block_size);
    if (cls != ARENA_STORED) {
        n = a->chunk_units; /* Shares are counted in whole chunks. */
    }
    if (n < a->chunk_units) {
        u = piece_take(a, n);
    }
    if (u == NONE) {
        uint32_t c;

        /* A moment only: the last free chunk may be with the warmer. */
        while (a->n_warm + a->n_cold == 0 && a->warming > 0) {
            a->waiters++;
            pthread_cond_wait(&a->freed, &a->lock);
            a->waiters--;
        }
        if (!may_hold(a, cls, ARENA_CLASSES)) {
            return NULL;
        }
        c = chunk_take(a);
        u = c * a->chunk_units;
        a->chunks[c].used_units = (uint8_t)a->chunk_units;
        if (n < a->chunk_units) {
            units_release(a, u + n, a->chunk_units - n);
        }
    }
    a->units[u].n_units = (uint8_t)n;
    a->units[u].cls = (uint8_t)cls;
    a->units[u].homed = false;
    atomic_store_explicit(&a->units[u].refs, 1, memory_order_relaxed);
    account(a, cls, n, 1);
    a->last_use_ms = clock_mono_ms();
    if (a->n_warm < WARM_AHEAD && a->n_cold > 0 && !a->demand) {
        a->demand = true;
        pthread_cond_signal(&a->wake);
    }
    return a->base + (uint64_t)u * ARENA_UNIT;
}

void *arena_alloc(struct arena *a, enum arena_class cls, size_t size)
{
    void *p;

    pthread_mutex_lock(&a->lock);
    p = alloc_locked(a, cls, size);
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
    return p;
}

/* Wait for `freed` until the deadline; false when it has passed. */
static bool wait_freed(struct arena *a, uint64_t deadline_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                          .tv_nsec = (long)(deadline_ns % 1000000000u)};
    int rc;

    a->waiters++;
    rc = pthread_cond_timedwait(&a->freed, &a->lock, &ts);
    a->waiters--;
    return rc != ETIMEDOUT;
}

static uint64_t deadline_of(uint64_t timeout_ms)
{
    uint64_t far = (uint64_t)365 * 86400 * 1000;

    return clock_mono_ns() + (timeout_ms < far ? timeout_ms : far) * 1000000u;
}

void *arena_alloc_wait(struct arena *a, enum arena_class cls, size_t size,
                       uint64_t timeout_ms)
{
    uint64_t deadline = deadline_of(timeout_ms);
    bool more = timeout_ms > 0;
    void *p;

    pthread_mutex_lock(&a->lock);
    while ((p = alloc_locked(a, cls, size)) == NULL && more) {
        more = wait_freed(a, deadline);
    }
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
    return p;
}

bool arena_claim(struct arena *a, enum arena_class cls, unsigned n)
{
    uint32_t owed = 0;
    bool ok;

    pthread_mutex_lock(&a->lock);
    a->claims[cls] += n;
    for (unsigned k = ARENA_FILL; k < ARENA_CLASSES; k++) {
        owed += deficit(a, k, a->used_chunks[k]);
    }
    ok = chunks_free(a) >= owed;
    if (!ok) {
        a->claims[cls] -= n;
    }
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
    return ok;
}

void arena_unclaim(struct arena *a, enum arena_class cls, unsigned n)
{
    pthread_mutex_lock(&a->lock);
    assert(a->claims[cls] >= n);
    a->claims[cls] -= n;
    tell_waiters(a);
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
}

static void unhome(struct arena *a, struct unit *unit)
{
    if (unit->homed) {
        unit->homed = false;
        a->homed[unit->cls]--;
    }
}

bool arena_home(struct arena *a, void *p)
{
    struct unit *unit = &a->units[unit_of(a, p)];
    bool claimed = false;

    pthread_mutex_lock(&a->lock);
    if (!unit->homed && unit->n_units == a->chunk_units) {
        unit->homed = true;
        a->homed[unit->cls]++;
        claimed = unit->cls == ARENA_FILL;
        assert(!claimed || a->claims[ARENA_FILL] > 0);
        a->claims[ARENA_FILL] -= claimed;
        tell_waiters(a);
    }
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
    return claimed;
}

bool arena_passing(struct arena *a, enum arena_class cls)
{
    bool passing;

    pthread_mutex_lock(&a->lock);
    passing = a->used_chunks[cls] > a->homed[cls];
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
    return passing;
}

static void reclass(struct arena *a, struct unit *unit, enum arena_class to)
{
    unhome(a, unit);
    account(a, unit->cls, unit->n_units, -1);
    unit->cls = (uint8_t)to;
    account(a, unit->cls, unit->n_units, 1);
    tell_waiters(a);
}

static bool move_locked(struct arena *a, void *p, enum arena_class to)
{
    struct unit *unit = &a->units[unit_of(a, p)];
    bool homed = unit->homed;

    assert(atomic_load(&unit->refs) > 0);
    if (unit->cls == to) {
        return true;
    }
    unhome(a, unit);
    if (unit->n_units == a->chunk_units && !may_hold(a, to, unit->cls)) {
        unit->homed = homed;
        a->homed[unit->cls] += homed;
        return false;
    }
    reclass(a, unit, to);
    return true;
}

bool arena_move(struct arena *a, void *p, enum arena_class to)
{
    bool ok;

    pthread_mutex_lock(&a->lock);
    ok = move_locked(a, p, to);
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
    return ok;
}

bool arena_move_wait(struct arena *a, void *p, enum arena_class to,
                     uint64_t timeout_ms)
{
    uint64_t deadline = deadline_of(timeout_ms);
    bool more = timeout_ms > 0, ok;

    pthread_mutex_lock(&a->lock);
    while (!(ok = move_locked(a, p, to)) && more) {
        more = wait_freed(a, deadline);
    }
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
    return ok;
}

void arena_shrink(struct arena *a, void *p, size_t size)
{
    uint32_t u = unit_of(a, p);
    uint32_t n = (uint32_t)((size + ARENA_UNIT - 1) / ARENA_UNIT);
    struct unit *unit = &a->units[u];

    assert(size > 0);
    pthread_mutex_lock(&a->lock);
    assert(atomic_load(&unit->refs) > 0 && n <= unit->n_units);
    assert(unit->cls == ARENA_STORED);
    if (n < unit->n_units) {
        account(a, unit->cls, unit->n_units, -1);
        units_release(a, u + n, unit->n_units - n);
        unit->n_units = (uint8_t)n;
        account(a, unit->cls, n, 1);
        tell_waiters(a);
    }
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
}

size_t arena_size(struct arena *a, const void *p)
{
    return a->units[unit_of(a, p)].n_units * ARENA_UNIT;
}

void arena_ref(struct arena *a, void *p)
{
    unsigned old = atomic_fetch_add(&a->units[unit_of(a, p)].refs, 1);

    assert(old > 0);
    (void)old;
}

static void free_locked(struct arena *a, uint32_t u)
{
    struct unit *unit = &a->units[u];

    unhome(a, unit);
    account(a, unit->cls, unit->n_units, -1);
    units_release(a, u, unit->n_units);
    tell_waiters(a);
}

void arena_unref(struct arena *a, void *p)
{
    uint32_t u = unit_of(a, p);
    unsigned old = atomic_fetch_sub(&a->units[u].refs, 1);

    assert(old > 0);
    if (old == 1) {
        pthread_mutex_lock(&a->lock);
        free_locked(a, u);
        assert_shares_hold(a);
        pthread_mutex_unlock(&a->lock);
    }
}

void arena_pass(struct arena *a, void *p, enum arena_class to)
{
    uint32_t u = unit_of(a, p);
    struct unit *unit = &a->units[u];
    unsigned old;

    pthread_mutex_lock(&a->lock);
    if (atomic_load(&unit->refs) > 1) {
        reclass(a, unit, to);
    }
    old = atomic_fetch_sub(&unit->refs, 1);
    assert(old > 0);
    if (old == 1) {
        free_locked(a, u);
    }
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
}

uint64_t arena_offset(const struct arena *a, const void *p)
{
    return (uint64_t)unit_of(a, p) * ARENA_UNIT;
}

void *arena_at(const struct arena *a, uint64_t offset)
{
    assert(offset % ARENA_UNIT == 0 &&
           offset < (uint64_t)a->n_chunks * a->block_size);
    return a->base + offset;
}

void arena_use(struct arena *a, struct arena_use *out)
{
    uint32_t owed = 0, n_free;

    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&a->lock);
    out->limit = a->limit;
    for (unsigned k = 0; k < ARENA_CLASSES; k++) {
        out->by_class[k] = a->used_bytes[k];
        out->reserve += (uint64_t)a->share[k] * a->block_size;
        owed += deficit(a, k, a->used_chunks[k]);
    }
    n_free = chunks_free(a);
    out->stored_free =
        n_free > owed ? (uint64_t)(n_free - owed) * a->block_size : 0;
    out->resident = (uint64_t)a->resident * a->block_size;
    out->huge_pages = a->huge_pages;
    memcpy(out->huge_detail, a->huge_detail, sizeof out->huge_detail);
    assert_shares_hold(a);
    pthread_mutex_unlock(&a->lock);
}

/* --- the warmer --- */

static void fault_in(unsigned char *p, size_t len)
{
    long page = sysconf(_SC_PAGESIZE);

    if (madvise(p, len, MADV_POPULATE_WRITE) == 0) {
        return;
    }
    for (size_t i = 0; i < len; i += (size_t)page) {
        ((volatile unsigned char *)p)[i] = 0; /* Free memory: no content. */
    }
}

/* Take one cold chunk out, fault it in without the lock, put it back warm. */
static void warm_one_locked(struct arena *a)
{
    uint32_t c = a->cold_head;

    chunk_unlink(a, c);
    a->resident++;
    a->warming++;
    pthread_mutex_unlock(&a->lock);
    fault_in(a->base + (uint64_t)c * a->block_size, a->block_size);
    pthread_mutex_lock(&a->lock);
    a->warming--;
    chunk_push(a, c, true);
    tell_waiters(a);
}

static bool is_free_warm(const struct arena *a, uint32_t c)
{
    return a->chunks[c].used_units == 0 && a->chunks[c].warm;
}

/* Give free warm memory back, in whole huge pages: a group of chunks goes
 * only when all of them are free. */
static void cool_locked(struct arena *a)
{
    uint32_t group = (uint32_t)(HUGE_PAGE / a->block_size);

    group = group == 0 ? 1 : group;
    for (uint32_t c = 0; c + group <= a->n_chunks; c += group) {
        bool all = true;

        for (uint32_t i = c; i < c + group; i++) {
            all = all && is_free_warm(a, i);
        }
        if (!all) {
            continue;
        }
        for (uint32_t i = c; i < c + group; i++) {
            chunk_unlink(a, i);
            chunk_push(a, i, false);
        }
        a->resident -= group;
        (void)madvise(a->base + (uint64_t)c * a->block_size,
                      group * a->block_size, MADV_DONTNEED);
    }
}

static void *warmer_main(void *arg)
{
    struct arena *a = arg;

    pthread_mutex_lock(&a->lock);
    while (!a->closing) {
        uint64_t idle = clock_mono_ms() - a->last_use_ms;

        if (a->demand && a->n_warm < WARM_AHEAD && a->cold_head != NONE) {
            warm_one_locked(a);
        } else if (a->resident > 0 && idle >= a->idle_ms && a->n_warm > 0) {
            cool_locked(a);
            a->last_use_ms = clock_mono_ms();
        } else if (a->resident > 0) {
            struct timespec ts;
            uint64_t until = deadline_of(a->idle_ms);

            a->demand = false;
            ts.tv_sec = (time_t)(until / 1000000000u);
            ts.tv_nsec = (long)(until % 1000000000u);
            pthread_cond_timedwait(&a->wake, &a->lock, &ts);
        } else {
            a->demand = false;
            pthread_cond_wait(&a->wake, &a->lock);
        }
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

void arena_warm(struct arena *a, uint64_t bytes)
{
    pthread_mutex_lock(&a->lock);
    while ((uint64_t)a->n_warm * a->block_size < bytes &&
           a->cold_head != NONE) {
        warm_one_locked(a);
    }
    a->last_use_ms = clock_mono_ms();
    pthread_mutex_unlock(&a->lock);
}

/* --- life --- */

static void share_out(struct arena *a)
{
    uint32_t total = a->n_chunks / 8 > 8 ? a->n_chunks / 8 : 8;
    uint32_t each = total / 4;

    a->share[ARENA_FILL] = a->share[ARENA_IN] = a->share[ARENA_READ] = each;
    a->share[ARENA_SERVE] = (total - 3 * each) / 2;
    a->share[ARENA_OUT] = total - 3 * each - a->share[ARENA_SERVE];
}

static void look_at_huge_pages(struct arena *a)
{
    char mode[128] = "";
    FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");

    if (f != NULL) {
        if (fgets(mode, sizeof mode, f) == NULL) {
            mode[0] = '\0';
        }
        (void)fclose(f);
    }
    if (madvise(a->base, a->limit, MADV_HUGEPAGE) != 0) {
        (void)snprintf(a->huge_detail, sizeof a->huge_detail,
                       "madvise(MADV_HUGEPAGE): %s; 4 KiB pages are used",
                       strerror(errno));
    } else if (strstr(mode, "[never]") != NULL) {
        (void)snprintf(a->huge_detail, sizeof a->huge_detail,
                       "transparent_hugepage/enabled is never; "
                       "write madvise there");
    } else {
        a->huge_pages = true;
    }
}

static int arena_init(struct arena *a, const struct arena_options *o,
                      struct hedge_error *e)
{
    size_t n_units = (size_t)(o->limit / ARENA_UNIT);
    pthread_condattr_t attr;

    a->map = mmap(NULL, a->limit + HUGE_PAGE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->map == MAP_FAILED) {
        a->map = NULL;
        return error_set_errno(e, errno, "mapping %llu bytes for the arena",
                               (unsigned long long)a->limit);
    }
    /* The slack around the chunks is never touched. */
    a->base = a->map;
    a->base += HUGE_PAGE - ((uintptr_t)a->map & (HUGE_PAGE - 1));
    look_at_huge_pages(a);
    a->units = mem_calloc(n_units, sizeof *a->units);
    a->chunks = mem_calloc(a->n_chunks, sizeof *a->chunks);
    if (a->units == NULL || a->chunks == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the arena's table");
    }
    a->warm_head = a->cold_head = NONE;
    memset(a->pieces, 0xff, sizeof a->pieces);
    for (uint32_t c = a->n_chunks; c-- > 0;) {
        chunk_push(a, c, false);
    }
    share_out(a);
    pthread_mutex_init(&a->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&a->freed, &attr);
    pthread_cond_init(&a->wake, &attr);
    pthread_condattr_destroy(&attr);
    return 0;
}

static void arena_release(struct arena *a)
{
    if (a->map != NULL) {
        (void)munmap(a->map, a->limit + HUGE_PAGE);
    }
    mem_free(a->units);
    mem_free(a->chunks);
    mem_free(a);
}

int arena_new(const struct arena_options *o, struct arena **out,
              struct hedge_error *e)
{
    struct arena *a;
    unsigned units = (unsigned)(o->block_size / ARENA_UNIT);
    int rv;

    *out = NULL;
    if (units == 0 || (units & (units - 1)) != 0 ||
        o->block_size % ARENA_UNIT != 0 || units > 1u << (ORDERS_MAX - 1)) {
        return error_set(e, HEDGE_EINVAL,
                         "a block size of %zu bytes is not possible: a power "
                         "of two from 64 KiB to 4 MiB is wanted",
                         o->block_size);
    }
    if (o->limit / o->block_size < ARENA_CHUNKS_MIN) {
        return error_set(e, HEDGE_EINVAL,
                         "a memory limit of %llu bytes is too small: at least "
                         "%d blocks of %zu bytes are needed (%zu bytes)",
                         (unsigned long long)o->limit, ARENA_CHUNKS_MIN,
                         o->block_size, ARENA_CHUNKS_MIN * o->block_size);
    }
    a = mem_calloc(1, sizeof *a);
    if (a == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for the arena");
    }
    a->block_size = o->block_size;
    a->n_chunks = (uint32_t)(o->limit / o->block_size);
    a->limit = (uint64_t)a->n_chunks * o->block_size;
    a->chunk_units = units;
    a->chunk_order = (unsigned)__builtin_ctz(units);
    a->idle_ms = o->idle_ms != 0 ? o->idle_ms : IDLE_MS_DEFAULT;
    rv = arena_init(a, o, e);
    if (rv != 0) {
        arena_release(a);
        return rv;
    }
    if (pthread_create(&a->warmer, NULL, warmer_main, a) != 0) {
        arena_release(a);
        return error_set(e, HEDGE_ENOMEM, "cannot start the arena's thread");
    }
    (void)pthread_setname_np(a->warmer, "hedge-arena");
    *out = a;
    return 0;
}

static atomic_uint abandoned;

unsigned arena_abandoned(void)
{
    return atomic_load(&abandoned);
}

static bool is_empty(const struct arena *a)
{
    for (unsigned k = 0; k < ARENA_CLASSES; k++) {
        if (a->used_bytes[k] != 0) {
            return false;
        }
    }
    return true;
}

void arena_free(struct arena *a)
{
    uint64_t deadline;
    bool empty;

    if (a == NULL) {
        return;
    }
    pthread_mutex_lock(&a->lock);
    a->closing = true;
    pthread_cond_broadcast(&a->wake);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->warmer, NULL);
    pthread_mutex_lock(&a->lock);
    deadline = deadline_of(LAST_REF_MS);
    while (!is_empty(a) && wait_freed(a, deadline)) {
    }
    empty = is_empty(a);
    pthread_mutex_unlock(&a->lock);
    if (!empty) {
        /* A transport is stuck in a write to a peer that has stopped: what it
         * reads must stay. */
        log_warn("arena", "blocks are still in use; their memory is left");
        atomic_fetch_add(&abandoned, 1);
        return;
    }
    pthread_cond_destroy(&a->freed);
    pthread_cond_destroy(&a->wake);
    pthread_mutex_destroy(&a->lock);
    arena_release(a);
}
