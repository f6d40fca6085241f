/* store_json.h - what there is to say of a store, as `sos stat -o json` says
 * it; one table for the command line and for the daemon.
 *
 * Ownership: objects are ended with cJSON_Delete(), texts with cJSON_free().
 * Threads:   any.
 * Errors:    NULL: no memory.
 * Units:     bytes.
 * Limits:    none. */
#ifndef CLUSTER_STORE_JSON_H
#define CLUSTER_STORE_JSON_H

#include "cluster/hedge.h"
#include "proto/hedge.pb-c.h"

#include <cjson/cJSON.h>

/* As `sos write --compress` takes it. */
const char *store_compression_text(const Hedge__V1__StoreOptions *o,
                                   char out[32]);

cJSON *store_json(const Hedge__V1__StoreInfo *s);

/* Of the store of this name, wherever it is. */
int store_stat_json(struct hedge_node *n, const char *name, uint64_t timeout_ms,
                    char **out, struct hedge_error *e);

#endif
