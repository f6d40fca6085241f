/* store_info.h - a store's manifest as results show it: `sos stat`, `sos ls`
 * and the end of `sos write` print the same.
 *
 * Ownership: nothing is kept.
 * Threads:   one.
 * Errors:    as output.h.
 * Units:     bytes.
 * Limits:    none. */
#ifndef TOOLS_STORE_INFO_H
#define TOOLS_STORE_INFO_H

#include "proto/hedge.pb-c.h"

struct table;

/* One JSON line. */
void store_info_json(const Hedge__V1__StoreInfo *s);
/* Several lines and a table of tiers. */
void store_info_text(const Hedge__V1__StoreInfo *s);
/* A line per store; table_print() it. */
struct table *store_info_table(void);
void store_info_row(struct table *t, const Hedge__V1__StoreInfo *s);

#endif
