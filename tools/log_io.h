/* log_io.h - what the commands of the log share: putting, asking, printing.
 *
 * Ownership: the arguments stay the caller's.
 * Threads:   one.
 * Errors:    hedge codes with a text; log_import() says them itself and
 *            returns an exit status.
 * Units:     bytes, milliseconds.
 * Limits:    as cluster/hedge.h. */
#ifndef TOOLS_LOG_IO_H
#define TOOLS_LOG_IO_H

#include "proto/log.pb-c.h"
#include "tools/ctl.h"

/* Up to 4096 puts, all or none; in pieces where one message is too small. The
 * reply is ended by its __free_unpacked(). */
int log_put(struct client *c, Hedge__V1__LogPutRequest *m, uint64_t timeout_ms,
            Hedge__V1__LogPutReply **out, struct hedge_error *e);

/* An entry; it lives until this returns. Other than 0 ends the query. */
typedef int (*log_entry_fn)(void *ctx, const Hedge__V1__LogEntry *entry);
/* Waits up to timeout_ms for each page; with `follow` for ever. `on_page` may
 * be NULL; it is called after each message's entries. */
int log_query(struct client *c, const Hedge__V1__LogQuery *q, bool follow,
              uint64_t timeout_ms, log_entry_fn fn, int (*on_page)(void *ctx),
              void *ctx, struct hedge_error *e);

/* Lines of JSON from standard input. */
int log_import(const struct ctl *ctl);

/* RFC 3339, or a duration ago. false: not that. */
bool log_parse_time(const char *text, uint64_t *wall_ms);

#endif
