/* kvlog_box.h - the log's tables in an environment of a test's own.
 *
 *   struct kvlog_box b;
 *   kvlog_box_init(&b);
 *   uint64_t r = kvlog_box_put(&b, "key", "value", 0);
 *
 * Ownership: kvlog_box_init() / kvlog_box_release(), which removes the files.
 * Threads:   one.
 * Errors:    cmocka's assertions, but for functions that return a code.
 * Units:     milliseconds: `wall_ms` is what the next put takes for the time,
 *            `boot_ms` what ids age by.
 * Limits:    an answer as text has 1 MiB. */
#ifndef TESTS_LIB_KVLOG_BOX_H
#define TESTS_LIB_KVLOG_BOX_H

#include "store/kvlog/kvlog.h"

#include "tests/lib/check.h"

struct kvlog_box {
    char dir[64];
    MDB_env *env;
    struct kvlog log;
    struct kvlog_reader reader;
    MDB_txn *read_txn;
    uint64_t wall_ms, boot_ms, boot, token;
    size_t at_once; /* Puts that one kvlog_append() gets; 0: all. */
    struct hedge_error error;
};

void kvlog_box_init(struct kvlog_box *b);
void kvlog_box_release(struct kvlog_box *b);
/* One transaction; 0 or what kvlog_append() said. */
int kvlog_box_append(struct kvlog_box *b, struct kvlog_put *puts, size_t n);
uint64_t kvlog_box_put(struct kvlog_box *b, const char *key, const char *value,
                       unsigned flags);
struct kvlog_state kvlog_box_state(struct kvlog_box *b);
/* Begin to read, with the reader's cursors; end it. */
void kvlog_box_read(struct kvlog_box *b);
void kvlog_box_read_end(struct kvlog_box *b);
/* All steps; the versions removed, or a code in *rv. */
uint64_t kvlog_box_compact(struct kvlog_box *b, uint64_t before_revision,
                           uint64_t before_ms, uint64_t keep, int *rv);
/* The answer as text, "key=value@revision " for each entry, in pages of `page`
 * entries (0: as they come). */
const char *kvlog_box_ask(struct kvlog_box *b, struct kvlog_query *q,
                          unsigned page);

/* The quick way: the newest revision of a key. */
int kvlog_box_latest(struct kvlog_box *b, const char *key, uint64_t *revision);

#endif
