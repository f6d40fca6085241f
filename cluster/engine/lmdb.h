/* lmdb.h - the engine for any number of nodes on one machine: leases in an
 * LMDB environment on a local disk, shared by the processes that use it.
 *
 * DIR/lease holds a row per group: the fencing token, who has the lease, and
 * until when on CLOCK_BOOTTIME, which all processes of a machine share and
 * which goes on while it sleeps. The boot id beside it voids what an earlier
 * boot wrote; the token outlives it. Every change is on disk when a call
 * returns 0.
 *
 * Ownership: see engine.h.
 * Threads:   any. look waits for nobody. acquire, renew and release wait for
 *            the disk, and for another process's transaction up to
 *            LMDB_LEASE_WAIT_MS: should that process be stopped (SIGSTOP)
 *            inside one, they fail with HEDGE_ETIMEDOUT and its pid until it
 *            goes on or is killed. The window is one small commit per renewal.
 * Errors:    as in engine.h; HEDGE_ECORRUPT for a row or file that is not
 *            ours or does not match its checksum.
 * Units:     milliseconds.
 * Limits:    one machine, one PID namespace, a local file system; a map of
 *            64 MiB: some 100,000 groups. */
#ifndef CLUSTER_ENGINE_LMDB_H
#define CLUSTER_ENGINE_LMDB_H

#include "cluster/engine/engine.h"
#include "store/base/clock.h"

#define LMDB_LEASE_WAIT_MS 1000u

int lmdb_engine_open(const char *dir, const char *group, struct engine *out,
                     struct hedge_error *e);

/* Tests: what engines opened from now on take for the boot id and the clock;
 * NULL is the kernel's. Before threads start. */
void lmdb_test_set_boot_id(const char *boot_id);
void lmdb_test_set_clock(const struct clock *clock);

#endif
