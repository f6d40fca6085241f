/* cursor.c - reading a store block by block, in its order, from wherever the
 * blocks are.
 *
 * Blocks on disk and on peers are fetched ahead into a ring of slots; blocks in
 * memory are delivered where they are. A record that spans blocks is followed
 * along its writer's sequence: the next block of the writer is usually the next
 * of the store, too, and is then delivered once; where writers interleave it is
 * fetched out of turn and comes again at its own number. */
#include "store/sos_internal.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <stdio.h>
#include <string.h>

/* So far a reader fetches ahead where there is memory for it. A virtual disk
 * may report what it has done only once it has done all there was to do: then
 * its queue is empty until the reader comes round, and only length makes up for
 * that. */
#define SLOTS 64
#define SLOTS_FIRST 8  /* While nothing has been delivered. */
#define SLOTS_PEERS 16 /* Where the block is on another node. */
#define OWN_BLOCKS 2   /* What a reader is sure to have. */
#define WAIT_STEP_MS 50
/* How long a claim waits for what is still being read ahead. */
#define CLAIM_TRIES 50
#define CLAIM_STEP_MS 10
#define WINDOW_MAX 64 /* Segments given to a far reader, not yet done. */

/* A segment given out, and what was passed over after it. */
struct given {
    struct block_id id;          /* generation 0: nothing to discard. */
    uint64_t skip_from, skip_to; /* Ordinals. */
};

struct cursor {
    struct source base;
    struct list link; /* sos.cursors */
    struct sos_store *store;
    struct sos_read_options options;
    bool manual;    /* Discard by sos_source_done() only. */
    uint64_t next;  /* Ordinal to be delivered next. */
    uint64_t ahead; /* Ordinal to be fetched next; slot = ordinal % SLOTS. */
    unsigned reach; /* How far to fetch ahead by now. */
    uint64_t half;  /* Of the node's memory, in blocks. */
    uint32_t last_writer; /* Of the block before that one. */
    struct fetch slots[SLOTS];
    struct fetch extra;    /* A continuation out of turn. */
    struct fetch *current; /* Delivered by the last next(). */
    struct fetch *wanted;  /* To be delivered by this one. */
    bool continuing;       /* The record begun goes on in the block `due`. */
    struct block_id due;
    uint64_t frozen_end; /* Do not go past; UINT64_MAX: as far as there is. */
    struct given given[WINDOW_MAX]; /* To be discarded, oldest first. */
    unsigned given_at, n_given;
};

static struct cursor *cursor_of(struct source *base)
{
    return container_of(base, struct cursor, base);
}

/* --- the ring --- */

static struct fetch *slot_of(struct cursor *c, uint64_t ordinal)
{
    return &c->slots[ordinal % SLOTS];
}

/* store->lock held. Is there any use in fetching this one ahead? What is in
 * memory is delivered from there, and holding it would keep it from leaving.
 * The middle of a record of another writer is fetched with its record. */
static bool worth_fetching(const struct catalog_entry *e, uint32_t last_writer)
{
    return e->n_copies > 0 && e->copies[0].where != CATALOG_MEMORY &&
           (e->first != BLOCK_FIRST_NONE || e->id.writer == last_writer);
}

/* store->lock held. A reader has claimed OWN_BLOCKS: one for the block it is
 * at, which leaves one to fetch ahead when there is no spare memory. A block
 * delivered out of turn stays in the ring. */
static bool may_fetch_own(const struct cursor *c)
{
    unsigned n = 0;

    for (unsigned i = 0; i < SLOTS; i++) {
        const struct fetch *f = &c->slots[i];

        n += f->own && (f != c->wanted || f->entry.ordinal != c->next);
    }
    return n + 1 < OWN_BLOCKS;
}

/* Readers share half of the memory evenly: who comes first would take all that
 * is spare. */
static unsigned reach_of(const struct cursor *c)
{
    uint64_t fair = c->half / atomic_load(&c->store->sos->n_cursors);

    fair = fair > OWN_BLOCKS ? fair : OWN_BLOCKS;
    return fair < c->reach ? (unsigned)fair : c->reach;
}

/* store->lock held. Peers have short windows, and what waits for long is given
 * up. */
static bool in_reach(const struct cursor *c, const struct catalog_entry *e)
{
    return e->n_copies == 0 || e->copies[0].where != CATALOG_PEER ||
           e->ordinal < c->next + SLOTS_PEERS;
}

/* store->lock held. Fill the ring as far as memory allows. */
static void read_ahead(struct cursor *c)
{
    struct sos_store *store = c->store;
    unsigned reach = reach_of(c);
    struct catalog_entry e;

    if (c->ahead < c->next) {
        c->ahead = c->next;
    }
    while (c->ahead < store->next_ordinal && c->ahead < c->next + reach) {
        struct fetch *f = slot_of(c, c->ahead);

        if (!f->used &&
            catalog_get_ordinal(store->sos->catalog, store->generation,
                                c->ahead, &e) == 0) {
            if (worth_fetching(&e, c->last_writer) &&
                (!in_reach(c, &e) ||
                 !fetch_open(f, &e,
                             may_fetch_own(c) ? ARENA_READ : ARENA_AHEAD))) {
                return;
            }
            c->last_writer = e.id.writer;
        }
        c->ahead++;
    }
}

/* store->lock held. Spare memory the reader does not need at once; true if
 * there is more that a tier still writes into. */
static bool give_back_ahead(struct cursor *c)
{
    bool loading = false;

    for (unsigned i = 0; i < SLOTS; i++) {
        struct fetch *f = &c->slots[i];

        if (!f->used || f->own || f == c->current || f == c->wanted) {
            continue;
        }
        if (f->loading) {
            loading = true;
        } else {
            fetch_close(f);
        }
    }
    return loading;
}

bool cursors_reclaim(struct sos *s)
{
    struct list *l;
    bool loading = false;

    pthread_mutex_lock(&s->cursors_lock);
    list_foreach (l, &s->cursors) {
        struct cursor *c = container_of(l, struct cursor, link);

        pthread_mutex_lock(&c->store->lock);
        loading = give_back_ahead(c) || loading;
        pthread_mutex_unlock(&c->store->lock);
    }
    pthread_mutex_unlock(&s->cursors_lock);
    return loading;
}

bool cursors_claim(struct sos *s, enum arena_class cls, unsigned n)
{
    for (unsigned i = 0; i < CLAIM_TRIES; i++) {
        if (arena_claim(s->arena, cls, n)) {
            return true;
        }
        if (!cursors_reclaim(s)) {
            break;
        }
        clock_sleep_ms(CLAIM_STEP_MS);
    }
    return arena_claim(s->arena, cls, n);
}

/* store->lock held. The block for `e`: out of the ring, or fetched now. A slot
 * never holds another block: those of earlier numbers have been closed. */
static struct fetch *fetch_now(const struct catalog_entry *e,
                               struct fetch *into)
{
    if (into->used) {
        assert(block_id_equal(&into->entry.id, &e->id));
        return into;
    }
    return fetch_open(into, e, ARENA_READ) ? into : NULL;
}

/* --- discarding --- */

/* store->lock held. */
static struct writer_state *state_of(struct cursor *c,
                                     const struct catalog_entry *e)
{
    return &c->store->states[e->id.writer];
}

/* store->lock held. Does the block belong to a record that may still get its
 * end, although this reader has passed it over? */
static bool is_growing(struct cursor *c, const struct catalog_entry *e)
{
    const struct writer_state *w = state_of(c, e);

    return !w->ended && w->open_sequence != TALLY_NONE &&
           e->id.sequence >= w->open_sequence;
}

/* store->lock held. */
static void discard_passed(struct cursor *c, uint64_t ordinal)
{
    struct sos_store *store = c->store;
    struct catalog_entry e;

    if (catalog_get_ordinal(store->sos->catalog, store->generation, ordinal,
                            &e) == 0 &&
        !is_growing(c, &e)) {
        store_discard(store, &e.id, false);
    }
}

/* store->lock held. */
static void done_with(struct cursor *c, unsigned n)
{
    for (; n > 0 && c->n_given > 0; n--) {
        struct given g = c->given[c->given_at];

        c->given_at = (c->given_at + 1) % WINDOW_MAX;
        c->n_given--;
        if (g.id.generation != 0) {
            store_discard(c->store, &g.id, false);
        }
        for (uint64_t i = g.skip_from; i < g.skip_to; i++) {
            discard_passed(c, i);
        }
    }
}

/* store->lock held. A segment out of turn discards nothing: NULL. */
static void remember(struct cursor *c, const struct block_id *id)
{
    struct given *g = &c->given[(c->given_at + c->n_given) % WINDOW_MAX];

    if (c->options.discard) {
        assert(c->n_given < WINDOW_MAX);
        memset(g, 0, sizeof *g);
        if (id != NULL) {
            g->id = *id;
        }
        c->n_given++;
    }
}

/* store->lock held. The middle of a record at c->next came with the start of
 * that record: it may go when the last segment given may. */
static void pass_over(struct cursor *c)
{
    struct given *g;

    if (!c->options.discard) {
        return;
    }
    if (c->n_given == 0) {
        discard_passed(c, c->next);
        return;
    }
    g = &c->given[(c->given_at + c->n_given - 1) % WINDOW_MAX];
    if (g->skip_from == g->skip_to) {
        g->skip_from = c->next;
    }
    g->skip_to = c->next + 1;
}

void sos_source_manual_discard(struct source *source)
{
    cursor_of(source)->manual = true;
}

void sos_source_done(struct source *source, unsigned n)
{
    struct cursor *c = cursor_of(source);

    pthread_mutex_lock(&c->store->lock);
    done_with(c, n);
    pthread_cond_broadcast(&c->store->changed);
    pthread_mutex_unlock(&c->store->lock);
}

/* --- delivering --- */

/* What next() has found out with the lock held. */
struct step {
    struct fetch *fetch;
    bool in_turn; /* The block at its own number, else a continuation. */
    bool last_incomplete;
    bool keep; /* Somebody may still want the block. */
};

/* store->lock held. */
static bool is_unfinished(struct cursor *c, const struct catalog_entry *e)
{
    return (e->flags & BLOCK_CONTINUES) != 0 && e->first != BLOCK_FIRST_NONE &&
           state_of(c, e)->open_sequence == e->id.sequence;
}

/* store->lock held. The last record of the block has no end (yet): false if it
 * is to be waited for. Otherwise it is left out, and if it may still grow, the
 * reader sees nothing that is written from now on. */
static bool leave_out(struct cursor *c, const struct catalog_entry *e,
                      struct step *step)
{
    if (is_growing(c, e)) {
        if (c->options.follow) {
            return false;
        }
        if (c->frozen_end == UINT64_MAX) {
            c->frozen_end = c->store->next_ordinal;
        }
        step->keep = true;
    }
    step->last_incomplete = true;
    return true;
}

static void fill_segment(struct cursor *c, struct fetch *f, struct segment *seg)
{
    const struct catalog_entry *e = &f->entry;

    memset(seg, 0, sizeof *seg);
    seg->payload = block_payload(f->block);
    seg->verified = f->verified;
    seg->arena = c->store->sos->arena;
    seg->block = f->block;
    seg->header = (struct block_header){.id = e->id,
                                        .raw_sum = e->raw_sum,
                                        .stored_sum = e->stored_sum,
                                        .records = e->records,
                                        .first = e->first,
                                        .raw_len = e->raw_len,
                                        .stored_len = e->stored_len,
                                        .flags = e->flags,
                                        .codec = e->codec};
    seg->continues = c->continuing;
    seg->store = c->store->name;
    fetch_where(f, &seg->node, &seg->kind);
    c->current = f;
}

static int lost_entry(struct cursor *c, struct hedge_error *e)
{
    if (c->store->dead) {
        return error_set(e, HEDGE_ENOTFOUND,
                         "store \"%s\" was removed while it was read",
                         c->store->name);
    }
    return error_set(e, HEDGE_ENOTFOUND,
                     "store \"%s\": block number %llu has been discarded by "
                     "another reader",
                     c->store->name, (unsigned long long)c->next);
}

/* store->lock held. */
static int at_end(struct cursor *c, struct segment *seg)
{
    struct sos_store *store = c->store;

    memset(seg, 0, sizeof *seg);
    seg->state = store->writers > 0 || store->n_writers == 0 ? STORE_OPEN
                 : store->aborted                            ? STORE_ABORTED
                                                             : STORE_CLOSED;
    seg->store = store->name;
    seg->manifest = store->written;
    seg->complete = c->next == store->next_ordinal;
    return HEDGE_EEND;
}

/* store->lock held. Is there a block for the next number, now or ever? 0, or
 * HEDGE_EEND, HEDGE_EAGAIN (wait), or an error. */
static int next_entry(struct cursor *c, struct catalog_entry *e,
                      struct hedge_error *err)
{
    struct sos_store *store = c->store;

    if (store->dead) {
        return lost_entry(c, err);
    }
    if (c->next >= store->next_ordinal || c->next >= c->frozen_end) {
        bool wait =
            c->options.follow && (store->writers > 0 || store->n_writers == 0);

        return wait ? HEDGE_EAGAIN : HEDGE_EEND;
    }
    if (catalog_get_ordinal(store->sos->catalog, store->generation, c->next,
                            e) != 0) {
        return lost_entry(c, err);
    }
    return 0;
}

/* store->lock held. The block that continues the record begun. */
static int step_continuation(struct cursor *c, struct step *step,
                             struct hedge_error *err)
{
    struct sos_store *store = c->store;
    struct catalog_entry e;

    if (store->dead || catalog_get(store->sos->catalog, &c->due, &e) != 0) {
        return lost_entry(c, err);
    }
    step->in_turn = e.ordinal == c->next;
    if (step->in_turn && is_unfinished(c, &e) && !leave_out(c, &e, step)) {
        return HEDGE_EAGAIN;
    }
    step->fetch = slot_of(c, e.ordinal);
    if (!step->in_turn && (e.ordinal >= c->ahead || !step->fetch->used)) {
        step->fetch = &c->extra;
    }
    step->fetch = fetch_now(&e, step->fetch);
    return step->fetch == NULL ? HEDGE_EAGAIN : 0;
}

/* store->lock held. The block at the next number. */
static int step_in_turn(struct cursor *c, struct step *step,
                        struct hedge_error *err)
{
    struct catalog_entry e;
    int rv = next_entry(c, &e, err);

    while (rv == 0 && e.first == BLOCK_FIRST_NONE) {
        /* The middle of a record: it came with that record's start. */
        fetch_close(slot_of(c, c->next));
        pass_over(c);
        c->next++;
        rv = next_entry(c, &e, err);
    }
    if (rv != 0) {
        return rv;
    }
    step->in_turn = true;
    if (is_unfinished(c, &e) && !leave_out(c, &e, step)) {
        return HEDGE_EAGAIN;
    }
    step->fetch = fetch_now(&e, slot_of(c, c->next));
    return step->fetch == NULL ? HEDGE_EAGAIN : 0;
}

/* store->lock held. The segment given before has been delivered. */
static void give_back_current(struct cursor *c)
{
    if (c->current != NULL) {
        /* A block out of turn that is in the ring comes again. */
        bool again =
            c->current != &c->extra && c->current->entry.ordinal >= c->next;

        if (!again) {
            fetch_close(c->current);
        }
        c->current = NULL;
    }
}

/* Deliver what `step` found: the block is here and has been checked. */
static void advance(struct cursor *c, const struct step *step,
                    struct segment *seg)
{
    const struct catalog_entry *e = &step->fetch->entry;
    bool middle = e->first == BLOCK_FIRST_NONE;
    bool goes_on = (e->flags & BLOCK_CONTINUES) != 0;

    fill_segment(c, step->fetch, seg);
    seg->last_incomplete = step->last_incomplete;
    if (step->in_turn) {
        seg->start = middle ? e->raw_len : e->first;
        seg->stop = e->raw_len;
        c->next++;
        c->reach += c->reach < SLOTS;
        remember(c, step->keep ? NULL : &e->id);
    } else {
        goes_on = goes_on && middle;
        remember(c, NULL);
    }
    c->continuing = goes_on && !step->last_incomplete;
    c->due = e->id;
    c->due.sequence++;
}

/* store->lock held, released while waiting; false after the deadline. Memory
 * that becomes free tells nobody here, hence the short steps. */
static bool wait_changed(struct sos_store *store, uint64_t deadline_ns)
{
    uint64_t now = clock_mono_ns();
    uint64_t until = now + (uint64_t)WAIT_STEP_MS * 1000000u;
    struct timespec ts;

    if (now >= deadline_ns) {
        return false;
    }
    until = until < deadline_ns ? until : deadline_ns;
    ts.tv_sec = (time_t)(until / 1000000000u);
    ts.tv_nsec = (long)(until % 1000000000u);
    (void)pthread_cond_timedwait(&store->changed, &store->lock, &ts);
    return true;
}

/* store->lock held. */
static int next_step(struct cursor *c, struct step *step, struct hedge_error *e)
{
    if (c->n_given == WINDOW_MAX) {
        return HEDGE_EAGAIN; /* The far reader is behind. */
    }
    return c->continuing ? step_continuation(c, step, e)
                         : step_in_turn(c, step, e);
}

static int cursor_next(struct source *base, uint64_t timeout_ms,
                       struct segment *seg, struct hedge_error *e)
{
    struct cursor *c = cursor_of(base);
    struct sos_store *store = c->store;
    uint64_t far = (uint64_t)365 * 86400000;
    uint64_t deadline =
        clock_mono_ns() + (timeout_ms < far ? timeout_ms : far) * 1000000u;
    struct step step;
    int rv;

    pthread_mutex_lock(&store->lock);
    give_back_current(c);
    if (!c->manual) {
        done_with(c, c->n_given);
    }
    for (;;) {
        memset(&step, 0, sizeof step);
        rv = next_step(c, &step, e);
        if (rv != HEDGE_EAGAIN) {
            break;
        }
        if (!wait_changed(store, deadline)) {
            rv = HEDGE_ETIMEDOUT;
            break;
        }
    }
    if (rv == HEDGE_EEND) {
        rv = at_end(c, seg);
    }
    if (rv == 0) {
        c->wanted = step.fetch;
        read_ahead(c);
    }
    pthread_mutex_unlock(&store->lock);
    if (rv != 0) {
        return rv;
    }
    rv = fetch_finish(step.fetch, e);
    pthread_mutex_lock(&store->lock);
    c->wanted = NULL;
    if (rv == 0) {
        advance(c, &step, seg);
        count_add(&store->sos->counts.blocks_delivered, 1);
        count_add(&store->sos->counts.bytes_delivered, seg->header.raw_len);
    }
    pthread_mutex_unlock(&store->lock);
    return rv;
}

static void cursor_free(struct source *base)
{
    struct cursor *c = cursor_of(base);
    struct sos_store *store = c->store;

    pthread_mutex_lock(&store->sos->cursors_lock);
    list_remove(&c->link);
    atomic_fetch_sub(&store->sos->n_cursors, 1);
    pthread_mutex_unlock(&store->sos->cursors_lock);
    pthread_mutex_lock(&store->lock);
    give_back_current(c);
    for (unsigned i = 0; i < SLOTS; i++) {
        fetch_close(&c->slots[i]);
    }
    fetch_close(&c->extra);
    store->readers--;
    store_idle_check(store);
    pthread_mutex_unlock(&store->lock);
    if (c->options.discard) {
        atomic_fetch_sub(&store->drain.readers, 1);
        atomic_fetch_sub(&store->sos->drain.readers, 1);
    }
    arena_unclaim(store->sos->arena, ARENA_READ, OWN_BLOCKS);
    mem_free(c);
    sos_store_unref(store);
}

static const struct source_ops cursor_ops = {.next = cursor_next,
                                             .free = cursor_free};

int sos_source_open(struct sos_store *store, const struct sos_read_options *o,
                    struct source **out, struct hedge_error *e)
{
    struct sos *s = store->sos;
    struct cursor *c = mem_calloc(1, sizeof *c);
    struct arena_use u;

    *out = NULL;
    if (c == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a reader");
    }
    arena_use(s->arena, &u);
    if (!cursors_claim(s, ARENA_READ, OWN_BLOCKS)) {
        mem_free(c);
        arena_use(s->arena, &u);
        return error_set(e, HEDGE_EBUSY,
                         "no %d blocks can be had for a reader on %s: memory "
                         "%llu bytes, stored %llu, being read %llu",
                         OWN_BLOCKS, s->node, (unsigned long long)u.limit,
                         (unsigned long long)u.by_class[ARENA_STORED],
                         (unsigned long long)u.by_class[ARENA_READ]);
    }
    c->base.ops = &cursor_ops;
    c->base.block_size = s->block_size;
    c->store = store;
    c->options = *o;
    c->frozen_end = UINT64_MAX;
    c->reach = SLOTS_FIRST;
    c->half = u.limit / s->block_size / 2;
    for (unsigned i = 0; i < SLOTS; i++) {
        c->slots[i].store = store;
        list_init(&c->slots[i].link);
    }
    c->extra.store = store;
    list_init(&c->extra.link);
    store_ref(store);
    pthread_mutex_lock(&store->lock);
    store->readers++;
    pthread_mutex_unlock(&store->lock);
    pthread_mutex_lock(&s->cursors_lock);
    list_push(&s->cursors, &c->link);
    atomic_fetch_add(&s->n_cursors, 1);
    pthread_mutex_unlock(&s->cursors_lock);
    if (o->discard) {
        atomic_fetch_add(&store->drain.readers, 1);
        atomic_fetch_add(&s->drain.readers, 1);
        drain_note(store);
    }
    *out = &c->base;
    return 0;
}
