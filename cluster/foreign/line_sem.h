/* line_sem.h - the line protocol's semaphores: SEM, SEA, SER.
 *
 * The limit that SEM gives is kept in the log, since SEA does not name it. A
 * caller is a plain string that nothing renews: it gets a session of its own,
 * made of the string, that lasts LINE_SEM_LEASE_MS from its last line. As with
 * the reference, a caller has one permit of a semaphore at most.
 *
 * Ownership: nothing is kept.
 * Threads:   any; the calls block.
 * Errors:    as hedge_semaphore_acquire(); HEDGE_EEXISTS: the caller has its
 *            permit already.
 * Units:     milliseconds.
 * Limits:    those of the semaphores. */
#ifndef CLUSTER_LINE_SEM_H
#define CLUSTER_LINE_SEM_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define LINE_SEM_LEASE_MS 60000u

struct hedge_node;

/* On the leader. HEDGE_EINVAL: there is one with another limit. */
int line_sem_create(struct hedge_node *n, const char *name, const char *limit,
                    const char *caller, uint64_t timeout_ms,
                    struct hedge_error *e);
/* Never waits for a permit: HEDGE_EBUSY. */
int line_sem_acquire(struct hedge_node *n, const char *name, const char *caller,
                     uint64_t timeout_ms, struct hedge_error *e);
int line_sem_release(struct hedge_node *n, const char *name, const char *caller,
                     uint64_t timeout_ms, struct hedge_error *e);
/* May the same call succeed a moment later? */
bool line_sem_may_retry(int code);

#endif
