/* kvlog_case.h - what the test programs of the log's storage begin with: a box,
 * fresh for each test, and short ways to put into it and to ask.
 *
 * Ownership: setup() and teardown() own the box's files.
 * Threads:   one.
 * Errors:    fail the test; an answer that is refused is its code's name.
 * Units:     none.
 * Limits:    one box a program. */
#ifndef TESTS_KVLOG_CASE_H
#define TESTS_KVLOG_CASE_H

#include "store/kvlog/kvlog_internal.h"
#include "tests/lib/kvlog_box.h"

static struct kvlog_box box;
static unsigned tail_rows = KVLOG_TAIL_ROWS;

static inline int setup(void **state)
{
    (void)state;
    kvlog_tail_rows = tail_rows;
    kvlog_box_init(&box);
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    kvlog_box_release(&box);
    return 0;
}

static inline const char *ask(struct kvlog_query q)
{
    return kvlog_box_ask(&box, &q, 0);
}

#define KEY(text) .key = (text), .key_len = sizeof(text) - 1
#define ASK(...) ask((struct kvlog_query){__VA_ARGS__})
/* A page of each size gives the same. */
#define CHECK(expected, ...)                                                \
    do {                                                                    \
        for (unsigned page_ = 0; page_ < 4; page_++) {                      \
            struct kvlog_query q_ = {__VA_ARGS__};                          \
            assert_string_equal(kvlog_box_ask(&box, &q_, page_), expected); \
        }                                                                   \
    } while (0)

static inline uint64_t put(const char *key, const char *value)
{
    return kvlog_box_put(&box, key, value, 0);
}

#endif
