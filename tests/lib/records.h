/* records.h - records whose content says which they are, so that every test
 * can check every byte it reads.
 *
 * Length and bytes follow from (seed, writer, index). A record of at least
 * RECORD_NAMED bytes begins with its writer and index, so that the records of
 * several writers can be told apart in one stream.
 *
 * Ownership: a struct record_check is a value; release frees its tables.
 * Threads:   one thread at a time for one struct.
 * Errors:    a mismatch ends the program with a message: checks run on any
 *            thread.
 * Units:     bytes.
 * Limits:    RECORD_WRITERS writers in one stream. */
#ifndef TESTS_LIB_RECORDS_H
#define TESTS_LIB_RECORDS_H

#include "store/reader.h"
#include "store/writer.h"

#define RECORD_NAMED 12
#define RECORD_WRITERS 64

struct record_shape {
    uint64_t seed;
    size_t min, max; /* Lengths; most are short, a few reach `max`. */
};

size_t record_len(const struct record_shape *r, uint32_t writer,
                  uint64_t index);
/* The bytes from `at` on of a record. */
void record_fill(const struct record_shape *r, uint32_t writer, uint64_t index,
                 size_t at, void *out, size_t len);

/* Write record `index`; `buf` has room for shape->max bytes. */
int record_write(const struct record_shape *r, struct writer *w,
                 uint32_t writer, uint64_t index, void *buf);

/* Follows what a reader delivers. */
struct record_check {
    const struct record_shape *shape;
    uint64_t next[RECORD_WRITERS]; /* Whole records seen, by writer. */
    uint64_t records, bytes;
    uint32_t writer;
    size_t at; /* Of the record being delivered. */
    bool inside;
};
void record_check_init(struct record_check *c,
                       const struct record_shape *shape);
/* One piece; with a single writer whose records are too short to name
 * themselves, all are taken to be writer 0's. */
void record_check_piece(struct record_check *c, const struct piece *p);
/* Read until something else than a record comes: HEDGE_EEND or an error. */
int record_check_all(struct record_check *c, struct reader *r,
                     uint64_t timeout_ms);

/* A small generator for tests, seeded and the same everywhere. */
uint64_t random_next(uint64_t *state);

#endif
