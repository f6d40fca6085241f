/* sem_session.h - a node's own session: the grants of all its semaphores,
 * renewed every fifth of its lease by a thread of its own.
 *
 * It is opened with the first use. When it has expired (its node was stopped,
 * or cut off), what it held is lost and the next use opens another. That thread
 * tells of each grant that is lost, by the options' `on_lost`; such a one does
 * not come back.
 *
 * Ownership: sem_session_new() / _free(). Names are copied.
 * Threads:   any but the loop; calls block.
 * Errors:    as hedge.h's of the same name.
 * Units:     milliseconds.
 * Limits:    those of the core. */
#ifndef CLUSTER_SEM_SESSION_H
#define CLUSTER_SEM_SESSION_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct hedge_node;
struct sem_session;

int sem_session_new(struct hedge_node *n, struct sem_session **out);
/* Gives everything back, if a leader can be asked in a moment. */
void sem_session_stop(struct sem_session *s);
void sem_session_free(struct sem_session *s);

/* `owner` is whose grant it will be, for sem_session_release_all(). */
int sem_session_acquire(struct sem_session *s, const void *owner,
                        const char *name, uint32_t limit, uint32_t permits,
                        bool try_only, uint64_t timeout_ms, uint64_t *token,
                        struct hedge_error *e);
int sem_session_release(struct sem_session *s, const char *name, uint64_t token,
                        uint64_t timeout_ms, struct hedge_error *e);
uint64_t sem_session_remaining_ms(struct sem_session *s, const char *name,
                                  uint64_t token);
void sem_session_release_all(struct sem_session *s, const void *owner,
                             uint64_t timeout_ms);

#endif
