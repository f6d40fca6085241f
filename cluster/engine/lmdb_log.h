/* lmdb_log.h - the log of the lmdb engine: the tables of store/kvlog/kvlog.h in
 * an environment DIR/log that the processes of a machine share.
 *
 * Opened by the first call that needs it, and again after a failure: a log
 * that cannot be read is an error of each call and never keeps a node from
 * starting.
 *
 * Ownership: lmdb_log_new() / lmdb_log_free(); strings are copied.
 * Threads:   any. Reads wait for nobody: a few read transactions are kept and
 *            handed to whoever reads. Writes wait for the disk and for other
 *            processes' transactions up to the time given.
 * Errors:    as in engine.h and lmdb_env.h, with the path in the text.
 * Units:     milliseconds.
 * Limits:    a map of 64 GiB; LMDB_LOG_GROUPS groups in one directory. */
#ifndef CLUSTER_ENGINE_LMDB_LOG_H
#define CLUSTER_ENGINE_LMDB_LOG_H

#include "cluster/engine/engine.h"

#define LMDB_LOG_GROUPS 16u

struct lmdb_log;

int lmdb_log_new(const char *dir, const char *group, struct lmdb_log **out);
/* NULL is fine. */
void lmdb_log_free(struct lmdb_log *log);

/* The engine's operations, see engine.h. */
int lmdb_log_append(struct lmdb_log *log, uint64_t token, const char *leader,
                    struct engine_put *puts, size_t n, uint64_t timeout_ms,
                    struct hedge_error *e);
int lmdb_log_latest(struct lmdb_log *log, const void *key, size_t key_len,
                    engine_entry_fn fn, void *fn_ctx, struct hedge_error *e);
int lmdb_log_scan(struct lmdb_log *log, struct engine_query *q,
                  engine_entry_fn fn, void *fn_ctx, bool *more,
                  struct hedge_error *e);
int lmdb_log_compact(struct lmdb_log *log, uint64_t token, const char *leader,
                     struct engine_compaction *c, uint64_t timeout_ms,
                     struct hedge_error *e);
int lmdb_log_state(struct lmdb_log *log, struct engine_log_state *out,
                   struct hedge_error *e);
/* Frees the slots of dead readers and counts the others. A log that has not
 * been opened yet has none. */
int lmdb_log_maintain(struct lmdb_log *log, struct engine_health *out,
                      struct hedge_error *e);

#endif
