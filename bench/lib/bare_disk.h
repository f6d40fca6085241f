/* bare_disk.h - io_uring and O_DIRECT and nothing else: the limit that the
 * disk tier is measured against. Blocks of one size are written one after the
 * other into files of the tier's size, allocated before, and read back.
 *
 * Ownership: bare_disk_new() / bare_disk_free(); files are gone after a run.
 * Threads:   the calling thread alone.
 * Errors:    end the program.
 * Units:     bytes, nanoseconds.
 * Limits:    BARE_DISK_FILES files. */
#ifndef BENCH_LIB_BARE_DISK_H
#define BENCH_LIB_BARE_DISK_H

#include <stddef.h>
#include <stdint.h>

#define BARE_DISK_FILES 64

struct bare_disk;
/* Files in `dir`; as many blocks under way as the tier has. */
struct bare_disk *bare_disk_new(const char *dir, size_t block);
void bare_disk_free(struct bare_disk *b);
/* Write and read n blocks; how long each took. */
void bare_disk_run(struct bare_disk *b, unsigned n, uint64_t *write_ns,
                   uint64_t *read_ns);

#endif
