/* sos_page.c - the names of a node's stores in order, a page at a time. */
#include "store/sos_internal.h"

#include "store/base/mem.h"

#include <assert.h>
#include <string.h>

/* Those that come first of all that were looked at. */
struct picked {
    struct sos_store **store;
    unsigned n, max;
};

static void pick(struct picked *p, struct sos_store *store)
{
    unsigned low = 0, high = p->n;

    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (strcmp(p->store[mid]->name, store->name) < 0) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    if (low == p->max) {
        return;
    }
    p->n -= p->n == p->max;
    memmove(&p->store[low + 1], &p->store[low],
            (p->n - low) * sizeof(struct sos_store *));
    p->store[low] = store;
    p->n++;
}

int sos_page(struct sos *s, const char *after, unsigned max,
             bool (*fn)(void *ctx, struct sos_store *store), void *ctx,
             bool *more)
{
    /* One more than asked for says whether there is one. */
    struct picked p = {.max = max + 1};
    bool goes_on = true;
    struct list *l;

    assert(max > 0 && max < UINT32_MAX);
    *more = false;
    p.store = mem_calloc(p.max, sizeof(struct sos_store *));
    if (p.store == NULL) {
        return HEDGE_ENOMEM;
    }
    pthread_mutex_lock(&s->lock);
    list_foreach (l, &s->stores) {
        struct sos_store *store = container_of(l, struct sos_store, link);
        if (!store->options.local && strcmp(store->name, after) > 0) {
            pick(&p, store);
        }
    }
    for (unsigned i = 0; i < p.n; i++) {
        p.store[i]->refs++;
    }
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < p.n; i++) {
        if (goes_on && i < max) {
            goes_on = fn(ctx, p.store[i]);
        } else {
            *more = true;
        }
        sos_store_unref(p.store[i]);
    }
    mem_free(p.store);
    return 0;
}
