/* lmdb_env.h - an LMDB environment that several processes share, opened the
 * way LMDB wants it: once per process, on a local disk, in one PID namespace.
 *
 * A writer takes a file lock before LMDB's own mutex. LMDB's mutex is waited
 * for without end and tells nobody who holds it; the file lock is waited for
 * up to a time, names the process that has it, and goes with that process.
 * So a process that is stopped (SIGSTOP) inside a write transaction makes the
 * writes of the others fail in time with its pid, until it goes on or dies.
 * Read transactions wait for nobody.
 *
 * Ownership: reference-counted per process; each lmdb_env_open() is matched
 *            by one lmdb_env_close(). An open environment does not survive
 *            fork(): the child opens its own.
 * Threads:   any. A write transaction stays on the thread that began it.
 * Errors:    LMDB's codes are converted here and nowhere else.
 * Units:     bytes, milliseconds.
 * Limits:    LMDB_READERS_MAX read transactions over all processes. LMDB
 *            keeps no checksums: what is damaged within a page of its tree is
 *            found only where the rows carry their own. */
#ifndef CLUSTER_ENGINE_LMDB_ENV_H
#define CLUSTER_ENGINE_LMDB_ENV_H

#include "store/base/error.h"

#include <lmdb.h>
#include <stdbool.h>
#include <stdint.h>

#define LMDB_READERS_MAX 4096u

struct lmdb_env;

struct lmdb_env_options {
    uint64_t map_bytes; /* Reserved once, sparse; the same for all. */
    unsigned databases; /* Named ones; 0 = only the unnamed one. */
    /* Blocks that the file is given at once, where the file system can: what
     * is written again and again then needs no room when the disk is full. */
    uint64_t reserve_bytes;
};

/* Open DIR/NAME, making the directories (0700) that are missing. Refused with
 * HEDGE_ENOTSUP: network file systems, and a directory in use by a process of
 * another PID or time namespace. */
int lmdb_env_open(const char *dir, const char *name,
                  const struct lmdb_env_options *o, struct lmdb_env **out,
                  struct hedge_error *e);
/* NULL is fine. */
void lmdb_env_close(struct lmdb_env *env);

MDB_env *lmdb_env_handle(struct lmdb_env *env);
/* The unnamed database. */
MDB_dbi lmdb_env_main(const struct lmdb_env *env);
const char *lmdb_env_path(const struct lmdb_env *env);

/* Begin the only write transaction there is; waits up to timeout_ms for the
 * others, then HEDGE_ETIMEDOUT with the pid that is in the way. */
int lmdb_write_begin(struct lmdb_env *env, uint64_t timeout_ms, MDB_txn **out,
                     struct hedge_error *e);
/* Ends the transaction also when it fails. On 0 it is on disk. */
int lmdb_write_commit(struct lmdb_env *env, MDB_txn *txn,
                      struct hedge_error *e);
void lmdb_write_abort(struct lmdb_env *env, MDB_txn *txn);

/* A read transaction; *txn is kept for the next time (lmdb_read_end() only
 * resets it) and is NULL the first time. One thread at a time uses it. */
int lmdb_read_begin(struct lmdb_env *env, MDB_txn **txn, struct hedge_error *e);
void lmdb_read_end(MDB_txn *txn);

/* A meta page could not be written: LMDB refuses everything from then on
 * (HEDGE_EIO). When all in this process have closed the environment, it can be
 * opened again; until then opening is HEDGE_EBUSY. */
bool lmdb_env_is_broken(struct lmdb_env *env);

/* The hedge code of an LMDB one, with "what: LMDB's text". */
int lmdb_error(struct hedge_error *e, int rc, const char *what);

/* The name of a file system (statfs f_type) that must not carry an
 * environment, NULL for all others. */
const char *lmdb_network_fs(unsigned long f_type);

#endif
