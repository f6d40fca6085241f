/* error.h - filling struct hedge_error, and converting foreign codes once.
 *
 * Ownership: nothing is kept; `e` may be NULL, then only the code is returned.
 * Threads:   any thread; an error value belongs to one thread at a time.
 * Errors:    every function returns the hedge code it was given or made.
 * Units:     none.
 * Limits:    text beyond HEDGE_ERROR_TEXT_MAX is cut. */
#ifndef STORE_BASE_ERROR_H
#define STORE_BASE_ERROR_H

#include "store/base/errors.h"

/* Set code and text; returns `code`. */
int error_set(struct hedge_error *e, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "prefix: " before the text there is; returns e->code. */
int error_prefix(struct hedge_error *e, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

void error_clear(struct hedge_error *e);

/* The hedge code of an errno value (positive). */
int error_from_errno(int err);

/* error_set() with the text of an errno value appended: "what: No space". */
int error_set_errno(struct hedge_error *e, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
