/* disk_fixture.h - requests, directories and small disks for the disk tier's
 * tests. Files are made below TMPDIR or /tmp.
 *
 * Ownership: a call owns its buffer, a batch its calls.
 * Threads:   calls may end on any thread; the rest is for one.
 * Errors:    cmocka's assertions.
 * Units:     bytes.
 * Limits:    one directory at a time. */
#ifndef TESTS_LIB_DISK_FIXTURE_H
#define TESTS_LIB_DISK_FIXTURE_H

#include "store/disk/disk.h"

#include <stdatomic.h>

#include "tests/lib/check.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define PLENTY ((uint64_t)64 << 30)

extern char root[256]; /* Of one test; removed after it. */
extern char dir[300];  /* The tier's, below it. */

int disk_setup(void **state);
int disk_teardown(void **state);
unsigned count_files(const char *path);
/* What the files in `dir` take. */
uint64_t disk_bytes(void);
bool takes_at_most(void *ctx /* uint64_t */);
bool dir_is_empty(void *ctx);
bool within_ms(uint64_t ms, bool (*is_so)(void *), void *ctx);
/* A tmpfs on `dir`; false, and why is printed, where that is not allowed. */
bool mount_small(const char *size);

/* Without dir and limit, `dir` and PLENTY. */
struct tier *tier_with(struct disk_options o);
uint64_t used(struct tier *t);

/* A request that counts how often it has ended. */
struct call {
    struct tier_req req;
    atomic_int ended;
};

void call_init(struct call *c, uint64_t generation, uint64_t sequence,
               size_t len);
void call_release(struct call *c);
/* To be submitted once more, with nothing in the buffer. */
void call_again(struct call *c);
/* The status; must have ended once. */
int call_wait(struct call *c);
/* Submit and wait: the outcome, however it was told. */
int put_wait(struct tier *t, struct call *c);
int get_wait(struct tier *t, struct call *c);
void drop_one(struct tier *t, struct call *c);

/* Bytes that depend on seed and position. */
void fill(void *data, size_t len, uint64_t seed);
void check_bytes(const struct call *c, uint64_t seed);
/* Get it and check it. */
void check_back(struct tier *t, struct call *c, uint64_t seed);

/* Many requests of one size, filled with their numbers as seeds. */
struct batch {
    struct call *calls;
    unsigned n;
};

struct batch batch_new(unsigned n, uint64_t generation, size_t len);
void batch_free(struct batch *b);
void batch_put(struct tier *t, struct batch *b);
void batch_wait_ok(struct batch *b);

#endif
