/* lock_rows.h - a grant as a row of the log: key and value.
 *
 * Ownership: lock_row_put() fills a put whose key and value are to be freed
 *            with lock_row_release().
 * Threads:   any.
 * Errors:    HEDGE_ENOMEM; HEDGE_ECORRUPT for what is no such row.
 * Units:     bytes.
 * Limits:    none of its own. */
#ifndef CLUSTER_LOCK_ROWS_H
#define CLUSTER_LOCK_ROWS_H

#include "cluster/engine/engine.h"
#include "cluster/locks/semaphore.h"

#define LOCK_ROWS_PREFIX "__hedge/sem/"

int lock_row_put(const struct semaphore_row *row, struct engine_put *out);
void lock_row_release(struct engine_put *put);
/* The row of an entry; its token is set. */
int lock_row_parse(const void *key, size_t key_len, const void *value,
                   size_t value_len, uint64_t revision,
                   struct semaphore_row *out);

#endif
