#include "store/catalog/catalog_internal.h"

#include <assert.h>
#include <string.h>

static uint64_t mix(uint64_t h)
{
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    return h;
}

static int *id_bucket(struct catalog_table *t, const struct block_id *id)
{
    uint64_t h = mix(id->generation) + id->sequence;

    h = mix(h) + id->writer;
    return &t->by_id[mix(h) % CATALOG_BUCKETS];
}

static int *ordinal_bucket(struct catalog_table *t, uint64_t generation,
                           uint64_t ordinal)
{
    return &t->by_ordinal[mix(mix(generation) + ordinal) % CATALOG_BUCKETS];
}

void catalog_table_clear(struct catalog_table *t)
{
    t->n = 0;
    memset(t->by_id, 0xff, sizeof t->by_id);
    memset(t->by_ordinal, 0xff, sizeof t->by_ordinal);
}

struct catalog_slot *catalog_table_find(struct catalog_table *t,
                                        const struct block_id *id)
{
    for (int i = *id_bucket(t, id); i >= 0; i = t->slots[i].next_id) {
        if (block_id_equal(&t->slots[i].entry.id, id)) {
            return &t->slots[i];
        }
    }
    return NULL;
}

struct catalog_slot *catalog_table_find_ordinal(struct catalog_table *t,
                                                uint64_t generation,
                                                uint64_t ordinal)
{
    int i = *ordinal_bucket(t, generation, ordinal);

    for (; i >= 0; i = t->slots[i].next_ordinal) {
        const struct catalog_entry *entry = &t->slots[i].entry;
        if (entry->ordinal == ordinal && entry->id.generation == generation) {
            return &t->slots[i];
        }
    }
    return NULL;
}

static void order_link(struct catalog_table *t, struct catalog_slot *s)
{
    int *head;

    if (s->entry.ordinal != CATALOG_ORDINAL_NONE) {
        head = ordinal_bucket(t, s->entry.id.generation, s->entry.ordinal);
        s->next_ordinal = *head;
        *head = (int)(s - t->slots);
    }
}

static void order_unlink(struct catalog_table *t, struct catalog_slot *s)
{
    int *at, self = (int)(s - t->slots);

    if (s->removed || s->void_ || s->entry.ordinal == CATALOG_ORDINAL_NONE) {
        return;
    }
    at = ordinal_bucket(t, s->entry.id.generation, s->entry.ordinal);
    while (*at != self) {
        assert(*at >= 0);
        at = &t->slots[*at].next_ordinal;
    }
    *at = s->next_ordinal;
}

/* The slot of a block, out of the order; NULL when the table is full. */
static struct catalog_slot *slot_of(struct catalog_table *t,
                                    const struct block_id *id)
{
    struct catalog_slot *s = catalog_table_find(t, id);
    int *head;

    if (s != NULL) {
        order_unlink(t, s);
        return s;
    }
    if (t->n == CATALOG_PENDING_MAX) {
        return NULL;
    }
    s = &t->slots[t->n];
    head = id_bucket(t, id);
    s->next_id = *head;
    *head = (int)t->n++;
    return s;
}

bool catalog_table_put(struct catalog_table *t,
                       const struct catalog_entry *entry)
{
    struct catalog_slot *s = slot_of(t, &entry->id);

    if (s == NULL) {
        return false;
    }
    s->entry = *entry;
    s->removed = false;
    s->void_ = false;
    order_link(t, s);
    return true;
}

bool catalog_table_remove(struct catalog_table *t, const struct block_id *id)
{
    struct catalog_slot *s = slot_of(t, id);

    if (s == NULL) {
        return false;
    }
    s->entry.id = *id;
    s->removed = true;
    s->void_ = false;
    return true;
}

void catalog_table_forget(struct catalog_table *t, uint64_t generation)
{
    for (unsigned i = 0; i < t->n; i++) {
        struct catalog_slot *s = &t->slots[i];
        if (s->entry.id.generation == generation) {
            order_unlink(t, s);
            s->removed = false;
            s->void_ = true;
        }
    }
}
