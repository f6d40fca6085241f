/* fake_tier.h - other nodes as a tier in memory (store/tier.h), with knobs.
 *
 * Each unit is a node: it has a limit, and can refuse, fail, lose what it
 * holds or change a byte of it. Requests complete on a thread of the tier, in
 * order of their delays, never inside the call. What a tier may expect of its
 * user is checked: no drop of what is being put or got, no drop of what is not
 * there (`misuse` counts both).
 *
 * Ownership: fake_tier_new(); tier_free() of fake_tier_base() ends it, which
 *            a struct sos does by itself.
 * Threads:   any; knobs may be turned at any time.
 * Errors:    as in tier.h: full or refusing units give HEDGE_EREFUSED, what is
 *            lost HEDGE_ELOST.
 * Units:     bytes, milliseconds.
 * Limits:    FAKE_UNITS_MAX units. */
#ifndef TESTS_LIB_FAKE_TIER_H
#define TESTS_LIB_FAKE_TIER_H

#include "store/tier.h"

#include <stdatomic.h>

#define FAKE_UNITS_MAX 8

struct fake_unit {
    uint64_t limit, used;
    unsigned blocks;
    bool refuse;    /* Takes nothing. */
    int put_status; /* 0, or what each put comes back with. */
    int get_status; /* 0, or what each get comes back with. */
    bool corrupt;   /* Gives back one wrong bit. */
    bool gone;      /* Its node has left for good. */
    unsigned delay_ms;
};

struct fake_tier;

struct fake_tier *fake_tier_new(unsigned n_units, uint64_t unit_limit);
struct tier *fake_tier_base(struct fake_tier *f);
/* Change a unit: look, turn its knobs, put it back. */
struct fake_unit fake_tier_unit(struct fake_tier *f, unsigned unit);
void fake_tier_set(struct fake_tier *f, unsigned unit,
                   const struct fake_unit *u);
/* All that the unit holds is gone: gets give HEDGE_ELOST. */
void fake_tier_lose(struct fake_tier *f, unsigned unit);
/* The n-th put or get from now (0: none) fails with `status`: in the callback,
 * or, with `at_once`, from the call itself. */
void fake_tier_fail_nth(struct fake_tier *f, unsigned n, int status,
                        bool at_once);
/* drop_store() takes this long. */
void fake_tier_slow_drops(struct fake_tier *f, unsigned ms);
bool fake_tier_fired(struct fake_tier *f);

struct fake_tier_counts {
    unsigned puts, gets, drops, store_drops, misuse;
    unsigned blocks; /* Held now. */
};
struct fake_tier_counts fake_tier_counts(struct fake_tier *f);
/* Where to copy the counts when the tier is freed; NULL: nowhere. */
void fake_tier_report(struct fake_tier *f, struct fake_tier_counts *at_end);

#endif
