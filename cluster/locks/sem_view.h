/* sem_view.h - what the owner of a session may believe about its grants without
 * hearing from the leader: pure arithmetic.
 *
 * A renewal counts from its start, so it ends before the leader's idea of it
 * does; a little less on top for clocks of other machines that are faster. A
 * renewal's answer lists the tokens that are still held, and only those are
 * extended: one that is missing has been revoked or lost and keeps the
 * deadline it had. Answers of renewals and grants may overtake each other; the
 * (term, at) in both tells which is newer, and a grant older than a renewal
 * that is known already waits for the next one.
 *
 * Ownership: values.
 * Threads:   one at a time.
 * Errors:    none.
 * Units:     milliseconds of CLOCK_BOOTTIME on the holder's own machine.
 * Limits:    none. */
#ifndef CLUSTER_SEM_VIEW_H
#define CLUSTER_SEM_VIEW_H

#include <stdbool.h>
#include <stdint.h>

struct sem_view {
    uint64_t term, at; /* Of the newest renewal heard of; 0: none. */
    uint64_t until_ms; /* What it has proved. */
};

/* How much earlier than the leader's the holder's lease ends. */
uint64_t sem_view_margin_ms(uint64_t lease_ms);
/* When to renew, after the start of the last renewal: often enough that a
 * leader may die, and another be elected, in between. */
uint64_t sem_view_renew_ms(uint64_t lease_ms);

/* A renewal that was started at start_ms has been answered. false: its answer
 * is older than one already known, and says nothing. */
bool sem_view_renewed(struct sem_view *v, uint64_t start_ms, uint64_t lease_ms,
                      uint64_t term, uint64_t at);

/* Until when a grant that was answered at (term, at) is held for sure, whatever
 * the newest renewal lists: it is from before the grant. 0: renew, and see
 * whether it is listed. */
uint64_t sem_view_granted(const struct sem_view *v, uint64_t term, uint64_t at);

#endif
