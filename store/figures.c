/* figures.c - what has happened in the stores of a node, for operators. */
#include "store/sos_internal.h"

#include <string.h>

static uint64_t read_count(const atomic_uint_fast64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

static void tier_figures(const struct tier *t, struct sos_tier_figures *out)
{
    if (t != NULL) {
        *out = (struct sos_tier_figures){
            .puts = read_count(&t->counts.puts),
            .put_bytes = read_count(&t->counts.put_bytes),
            .gets = read_count(&t->counts.gets),
            .get_bytes = read_count(&t->counts.get_bytes),
            .refusals = read_count(&t->counts.refusals),
            .failures = read_count(&t->counts.failures),
        };
    }
}

void sos_figures(struct sos *s, struct sos_figures *out)
{
    const struct sos_counts *c = &s->counts;
    struct list *l;

    memset(out, 0, sizeof *out);
    out->blocks_sealed = read_count(&c->blocks_sealed);
    out->bytes_sealed = read_count(&c->bytes_sealed);
    out->blocks_delivered = read_count(&c->blocks_delivered);
    out->bytes_delivered = read_count(&c->bytes_delivered);
    out->stores_made = read_count(&c->stores_made);
    out->stores_expired = read_count(&c->stores_expired);
    out->stores_removed = read_count(&c->stores_removed);
    out->writers_full = read_count(&c->writers_full);
    tier_figures(s->disk, &out->disk);
    tier_figures(s->remote, &out->remote);
    passages_use(s->passages, &out->passages, &out->passages_homeless);
    out->passages_max = PASSAGES_MAX;
    out->parts = lend_parts(s);
    pthread_mutex_lock(&s->lock);
    list_foreach (l, &s->stores) {
        struct sos_store *store = container_of(l, struct sos_store, link);

        pthread_mutex_lock(&store->lock);
        out->writers += store->writers;
        out->readers += store->readers;
        pthread_mutex_unlock(&store->lock);
    }
    pthread_mutex_unlock(&s->lock);
}
