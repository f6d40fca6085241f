/* log_request.h - message LogPutRequest, taken apart where it lies: what it
 * takes does not depend on how many puts somebody has squeezed into it, and
 * values are not copied.
 *
 * Ownership: puts point into the bytes given, which stay the caller's.
 * Threads:   any.
 * Errors:    HEDGE_EPROTO: no such message. HEDGE_EINVAL: a number of puts, or
 *            a request id, that is not possible.
 * Units:     bytes, milliseconds.
 * Limits:    KV_BATCH_PUTS puts. */
#ifndef CLUSTER_LOG_REQUEST_H
#define CLUSTER_LOG_REQUEST_H

#include "cluster/engine/engine.h"

struct log_request {
    size_t n_puts; /* At least one. */
    uint64_t timeout_ms;
    bool leader_only;
};

int log_request_parse(const void *data, size_t len, struct log_request *out,
                      struct hedge_error *e);
/* Of bytes that have been parsed: r->n_puts of them. Keys and values are the
 * caller's to check. */
int log_request_puts(const void *data, size_t len, const struct log_request *r,
                     struct engine_put *puts, struct hedge_error *e);

#endif
