/* passage_internal.h - what a writer (sink.c) and its blocks' ways to other
 * tiers (passage.c) share. */
#ifndef STORE_PASSAGE_INTERNAL_H
#define STORE_PASSAGE_INTERNAL_H

#include "store/sos_internal.h"

struct passage;

struct sos_sink {
    struct sink base;
    struct list link; /* sos_store.sinks */
    struct sos_store *store;
    struct tally tally;
    atomic_bool in_fill;      /* Its block leaves from where it was filled. */
    uint64_t waited_ns;       /* For room, and not used to encode since. */
    unsigned inflight;        /* Under store->lock, as is the rest. */
    struct uses uses;         /* Where its blocks have gone. */
    bool homed;               /* Its claim has become a block's home. */
    bool told;                /* A call of the writer has met `failed`. */
    bool short_of_copies;     /* Fewer than the store wants. */
    struct hedge_error error; /* Why base.failed is set. */
};

/* A passage for the block, which it owns from here on. Waits for one of those
 * under way to end when all are in use. NULL only when every passage is
 * homeless: nothing will end. */
struct passage *passage_take(struct sos *s, const struct block_id *id);
/* An active passage ends: it is free again or waits among the homeless. */
void passage_give(struct sos *s, struct passage *p, bool homeless);
/* Send the published block `e` on its way; `stays`: the memory it is in is one
 * of its copies. */
void passage_start(struct passage *p, struct sos_sink *sink,
                   const struct catalog_entry *e, void *block, bool stays);

/* store->lock held. The writer's error from here on; the first one stays. */
void sink_fail(struct sos_sink *sink, int code, const char *text);
/* store->lock held. The block stays although nothing has taken it. */
void sink_home_block(struct sos_sink *sink, void *block);
/* store->lock held. Take a block of this length into the memory tier if the
 * limits allow. */
bool stay_in_memory(struct sos_store *store, void *block, size_t len);
/* What the people who wait for room should know; whatever the last tier said
 * follows. */
void describe_limits(struct sos_store *store, struct hedge_error *e);
/* The same of a block of which only `had` copies could be made, if that is
 * what is wrong. True: so it is. */
bool describe_copies(struct sos_store *store, unsigned had,
                     struct hedge_error *e);

#endif
