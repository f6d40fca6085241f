/* power.h - a disk that loses what was not synced, for one file of this
 * process: pwrite(), writev() and fdatasync() of the test programs are ours.
 *
 *   power_watch("/path/data.mdb");
 *   power_on_sync(fn, ctx);   called at each moment the power may fail
 *   power_cut("/other/data.mdb", &seed);   what would then be on the disk
 *
 * What is written through a descriptor with O_DSYNC counts as synced. Of all
 * else since the last sync each write is, at random, there, not there, or
 * there in some of its 512-byte sectors with rubbish in the others.
 *
 * Ownership: its memory is static; power_watch(NULL) frees it.
 * Threads:   any; one file is watched at a time.
 * Errors:    power_fail_after() makes the n-th operation on the file fail.
 * Units:     bytes.
 * Limits:    files of POWER_FILE_MAX, POWER_WRITES_MAX writes between syncs.
 */
#ifndef TESTS_LIB_POWER_H
#define TESTS_LIB_POWER_H

#include <stdbool.h>
#include <stdint.h>

#define POWER_FILE_MAX ((size_t)8 << 20)
#define POWER_WRITES_MAX 4096

void power_watch(const char *path);
/* Before each sync, and after it: the worst moments. */
void power_on_sync(void (*fn)(void *ctx), void *ctx);
/* Write what a cut now would leave to another file. */
void power_cut(const char *path, uint64_t *seed);
/* From the n-th operation (1 is the next one) on, `times` of them fail with
 * `err`; times 0: switched off. Writes of half their length when `err` is 0. */
void power_fail_after(long n, long times, int err);
/* Operations on the file so far. */
long power_operations(void);

#endif
