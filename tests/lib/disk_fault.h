/* disk_fault.h - makes the disk tier fail at the n-th operation.
 *
 *   struct disk_fault f = {0};
 *   options.disk_fault = disk_fault_hook;
 *   options.disk_fault_ctx = &f;
 *   disk_fault_arm(&f, 'w', 3, -ENOSPC, false);  the third write from now
 *
 * Ownership: the caller's struct; it must outlive the disk tier.
 * Threads:   the hook runs on any thread; arm while nothing is under way, or
 *            expect the count to start anywhere.
 * Errors:    none.
 * Units:     operations, bytes.
 * Limits:    one fault is armed at a time. */
#ifndef TESTS_LIB_DISK_FAULT_H
#define TESTS_LIB_DISK_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct disk_fault {
    atomic_long countdown; /* 0: not armed. */
    atomic_int how;
    atomic_int op;
    atomic_bool persists;
    atomic_long fired; /* How often. */
    atomic_long ops;   /* Operations seen. */
};

/* Fail the `n`-th operation of kind `op` ('r', 'w', 'a' as in disk.h; 0: any)
 * from now, and with `persists` all that follow it, with `how`: a negative
 * errno, or the number of bytes after which a transfer ends. n 0: never. */
void disk_fault_arm(struct disk_fault *f, char op, long n, int how,
                    bool persists);
int disk_fault_hook(void *ctx, char op, size_t len);

#endif
