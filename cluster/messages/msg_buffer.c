#include "cluster/messages/msg_buffer.h"

#include "store/base/clock.h"
#include "store/base/error.h"
#include "store/base/list.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NS_PER_MS 1000000u
#define NS_PER_S 1000000000u
#define MAP_MIN ((size_t)4 << 20)
#define MAP_STEP ((size_t)1 << 20)
#define WAIT_MAX_MS ((uint64_t)3600 * 1000)

/* --- the budget -------------------------------------------------------------
 */

struct msg_budget {
    atomic_uint refs;
    uint64_t limit;
    pthread_mutex_t lock; /* used, held, waiters */
    pthread_cond_t room;
    uint64_t used, held;
    unsigned waiters;
};

int msg_budget_new(uint64_t limit, struct msg_budget **out)
{
    struct msg_budget *b = mem_calloc(1, sizeof *b);
    pthread_condattr_t attr;

    *out = b;
    if (b == NULL) {
        return HEDGE_ENOMEM;
    }
    atomic_init(&b->refs, 1);
    b->limit = limit;
    pthread_mutex_init(&b->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&b->room, &attr);
    pthread_condattr_destroy(&attr);
    return 0;
}

void msg_budget_ref(struct msg_budget *b)
{
    atomic_fetch_add(&b->refs, 1);
}

void msg_budget_unref(struct msg_budget *b)
{
    if (b == NULL || atomic_fetch_sub(&b->refs, 1) > 1) {
        return;
    }
    assert(b->used == 0 && b->held == 0);
    pthread_cond_destroy(&b->room);
    pthread_mutex_destroy(&b->lock);
    mem_free(b);
}

uint64_t msg_budget_used(struct msg_budget *b)
{
    uint64_t used;

    pthread_mutex_lock(&b->lock);
    used = b->used;
    pthread_mutex_unlock(&b->lock);
    return used;
}

static bool has_room(const struct msg_budget *b, size_t n)
{
    return b->used <= b->limit && n <= b->limit - b->used;
}

bool msg_budget_fits(const struct msg_budget *b, size_t n)
{
    return n <= b->limit;
}

bool msg_budget_try(struct msg_budget *b, size_t n)
{
    bool fits;

    pthread_mutex_lock(&b->lock);
    fits = has_room(b, n);
    b->used += fits ? n : 0;
    pthread_mutex_unlock(&b->lock);
    return fits;
}

void msg_budget_force(struct msg_budget *b, size_t n)
{
    pthread_mutex_lock(&b->lock);
    b->used += n;
    pthread_mutex_unlock(&b->lock);
}

void msg_budget_give(struct msg_budget *b, size_t n)
{
    pthread_mutex_lock(&b->lock);
    assert(n <= b->used);
    b->used -= n;
    if (b->waiters > 0) {
        pthread_cond_broadcast(&b->room);
    }
    pthread_mutex_unlock(&b->lock);
}

static int exhausted(const struct msg_budget *b, size_t n,
                     struct hedge_error *e)
{
    return error_set(e, HEDGE_EEXHAUSTED,
                     "no room for %zu bytes of a message: %llu of %llu bytes "
                     "are in use (--message-limit)",
                     n, (unsigned long long)b->used,
                     (unsigned long long)b->limit);
}

int msg_budget_take(struct msg_budget *b, size_t n, uint64_t timeout_ms,
                    struct hedge_error *e)
{
    uint64_t until_ns =
        clock_mono_ns() +
        (timeout_ms < WAIT_MAX_MS ? timeout_ms : WAIT_MAX_MS) * NS_PER_MS;
    struct timespec ts = {.tv_sec = (time_t)(until_ns / NS_PER_S),
                          .tv_nsec = (long)(until_ns % NS_PER_S)};
    int rv = 0;

    pthread_mutex_lock(&b->lock);
    b->waiters++;
    while (rv == 0 && !has_room(b, n)) {
        if (n > b->limit ||
            pthread_cond_timedwait(&b->room, &b->lock, &ts) != 0) {
            rv = has_room(b, n) ? 0 : exhausted(b, n, e);
            break;
        }
    }
    b->waiters--;
    b->used += rv == 0 ? n : 0;
    pthread_mutex_unlock(&b->lock);
    return rv;
}

int msg_budget_hold(struct msg_budget *b, size_t n, struct hedge_error *e)
{
    int rv = 0;

    pthread_mutex_lock(&b->lock);
    if (b->held == 0 || b->held + n <= b->limit / 4) {
        b->held += n;
    } else {
        rv = exhausted(b, n, e);
    }
    pthread_mutex_unlock(&b->lock);
    return rv;
}

void msg_budget_unhold(struct msg_budget *b, size_t n)
{
    pthread_mutex_lock(&b->lock);
    assert(n <= b->held);
    b->held -= n;
    pthread_mutex_unlock(&b->lock);
}

/* --- buffers ----------------------------------------------------------------
 */

void msg_buf_init(struct msg_buf *b, struct msg_budget *budget)
{
    memset(b, 0, sizeof *b);
    b->budget = budget;
    if (budget != NULL) {
        msg_budget_ref(budget);
    }
}

/* Large buffers are mappings: freed, they are gone at once, where the heap
 * would keep them, and the holes that growing leaves, in the arena of whichever
 * thread it was. */
static bool is_mapped(const struct msg_buf *b)
{
    return b->cap >= MAP_MIN;
}

void msg_buf_clear(struct msg_buf *b)
{
    if (b->charged > 0) {
        msg_budget_give(b->budget, b->charged);
    }
    if (is_mapped(b)) {
        (void)munmap(b->data, b->cap);
    } else {
        mem_free(b->data);
    }
    b->data = NULL;
    b->len = b->cap = b->charged = 0;
}

void msg_buf_release(struct msg_buf *b)
{
    msg_buf_clear(b);
    msg_budget_unref(b->budget);
    b->budget = NULL;
}

void msg_buf_move(struct msg_buf *b, struct msg_buf *to)
{
    *to = *b;
    msg_buf_init(b, to->budget);
}

/* Count `len` bytes in all; waits when it is given an `e`. */
static int charge(struct msg_buf *b, size_t len, uint64_t timeout_ms, bool wait,
                  struct hedge_error *e)
{
    size_t more = len > b->charged ? len - b->charged : 0;

    if (b->budget == NULL || more == 0) {
        return 0;
    }
    if (len <= MSG_FREE) {
        msg_budget_force(b->budget, more);
    } else if (wait) {
        int rv = msg_budget_take(b->budget, more, timeout_ms, e);

        if (rv != 0) {
            return rv;
        }
    } else if (!msg_budget_try(b->budget, more)) {
        return HEDGE_EEXHAUSTED;
    }
    b->charged += more;
    return 0;
}

/* Bytes of a mapping: what a buffer of `cap` bytes is rounded up to. */
static size_t map_size(size_t cap)
{
    return (cap + MAP_STEP - 1) / MAP_STEP * MAP_STEP;
}

/* A large buffer: grown in place or by moving pages, from a heap buffer too. */
static unsigned char *map_data(struct msg_buf *b, size_t cap)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *p;

    if (is_mapped(b)) {
        p = mremap(b->data, b->cap, cap, MREMAP_MAYMOVE);
        return p != MAP_FAILED ? p : NULL;
    }
    p = mmap(NULL, cap, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED) {
        return NULL;
    }
    if (b->len > 0) {
        memcpy(p, b->data, b->len);
    }
    mem_free(b->data);
    return p;
}

static int grow(struct msg_buf *b, size_t cap)
{
    unsigned char *data;

    if (cap <= b->cap) {
        return 0;
    }
    if (cap >= MAP_MIN) {
        cap = map_size(cap);
        data = map_data(b, cap);
    } else {
        data = mem_realloc(b->data, cap);
    }
    if (data == NULL) {
        return HEDGE_ENOMEM;
    }
    b->data = data;
    b->cap = cap;
    return 0;
}

int msg_buf_reserve(struct msg_buf *b, size_t len, uint64_t timeout_ms,
                    struct hedge_error *e)
{
    char size[UNITS_SIZE_TEXT];
    int rv;

    if (len > MSG_MAX) {
        return error_set(e, HEDGE_ETOOBIG,
                         "a message of %zu bytes; at most %s are possible", len,
                         units_format_size(MSG_MAX, size));
    }
    rv = charge(b, len, timeout_ms, true, e);
    if (rv == 0 && grow(b, len) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for a message");
    }
    return rv;
}

int msg_buf_force(struct msg_buf *b, size_t len)
{
    if (len > MSG_MAX) {
        return HEDGE_ETOOBIG;
    }
    if (b->budget != NULL && len > b->charged) {
        msg_budget_force(b->budget, len - b->charged);
        b->charged = len;
    }
    return grow(b, len);
}

int msg_buf_append(struct msg_buf *b, const void *data, size_t len)
{
    size_t want;
    int rv;

    if (len > MSG_MAX - b->len) {
        return HEDGE_ETOOBIG;
    }
    if (len == 0) {
        return 0;
    }
    want = b->len + len;
    rv = charge(b, want, 0, false, NULL);
    if (rv == 0 && want > b->cap) {
        rv = grow(b, want < 256 ? 256 : b->len > 0 ? want + want / 2 : want);
    }
    if (rv == 0) {
        memcpy(b->data + b->len, data, len);
        b->len = want;
    }
    return rv;
}

/* --- shared -----------------------------------------------------------------
 */

struct msg_shared *msg_shared_new(struct msg_buf *take)
{
    struct msg_shared *m = mem_calloc(1, sizeof *m);

    if (m == NULL) {
        msg_buf_clear(take);
        return NULL;
    }
    atomic_init(&m->refs, 1);
    msg_buf_move(take, &m->buf);
    return m;
}

void msg_shared_ref(struct msg_shared *m)
{
    atomic_fetch_add(&m->refs, 1);
}

void msg_shared_unref(struct msg_shared *m)
{
    if (m != NULL && atomic_fetch_sub(&m->refs, 1) == 1) {
        msg_buf_release(&m->buf);
        mem_free(m);
    }
}

/* --- replies ----------------------------------------------------------------
 */

struct reply {
    struct msg_buf buf;
    struct hedge_reply pub;
    char texts[];
};

/* Stands before a struct hedge_replies. */
struct replies_head {
    struct hedge_reply **all; /* As many as there are; to free. */
    void *unused;             /* Keeps the alignment. */
};

static struct replies_head *head_of(struct hedge_replies *all)
{
    return (struct replies_head *)(void *)all - 1;
}

struct hedge_reply *msg_reply_new(const char *id, int error, const char *text,
                                  struct msg_buf *take)
{
    size_t id_size = strlen(id) + 1, text_size;
    struct reply *r;

    text = text != NULL ? text : "";
    text_size = strlen(text) + 1;
    r = mem_alloc(sizeof *r + id_size + text_size);
    if (r == NULL) {
        if (take != NULL) {
            msg_buf_clear(take);
        }
        return NULL;
    }
    memset(r, 0, sizeof *r);
    if (take != NULL) {
        msg_buf_move(take, &r->buf);
    }
    memcpy(r->texts, id, id_size);
    memcpy(r->texts + id_size, text, text_size);
    r->pub.id = r->texts;
    r->pub.error = error;
    r->pub.error_text = r->texts + id_size;
    r->pub.data = r->buf.len > 0 ? r->buf.data : (const void *)"";
    r->pub.len = r->buf.len;
    return &r->pub;
}

HEDGE_API void hedge_reply_free(struct hedge_reply *reply)
{
    struct reply *r;

    if (reply != NULL) {
        r = container_of(reply, struct reply, pub);
        msg_buf_release(&r->buf);
        mem_free(r);
    }
}

struct hedge_replies *msg_replies_new(size_t n)
{
    struct replies_head *head;
    struct hedge_replies *all;

    head = mem_calloc(1, sizeof *head + sizeof *all + n * sizeof all->reply[0]);
    if (head == NULL) {
        return NULL;
    }
    head->all = mem_calloc(n > 0 ? n : 1, sizeof(struct hedge_reply *));
    if (head->all == NULL) {
        mem_free(head);
        return NULL;
    }
    all = (struct hedge_replies *)(void *)(head + 1);
    all->n = n;
    return all;
}

void msg_replies_set(struct hedge_replies *all, size_t i,
                     struct hedge_reply *reply)
{
    struct hedge_reply **slot = &head_of(all)->all[i];

    assert(i < all->n && *slot == NULL);
    *slot = reply;
    all->reply[i] = *reply;
}

HEDGE_API void hedge_replies_free(struct hedge_replies *replies)
{
    struct replies_head *head;

    if (replies != NULL) {
        head = head_of(replies);
        for (size_t i = 0; i < replies->n; i++) {
            hedge_reply_free(head->all[i]);
        }
        mem_free(head->all);
        mem_free(head);
    }
}
