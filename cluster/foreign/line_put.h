/* line_put.h - what the line protocol's PUT carries: JSON of a key and a value.
 *
 * Ownership: the texts live until line_put_release().
 * Threads:   any.
 * Errors:    HEDGE_EINVAL for what is not such JSON, or holds a NUL, which the
 *            parser would cut it at; HEDGE_ENOMEM.
 * Units:     bytes.
 * Limits:    LINE_PUT_MEMBERS_MAX commas and brackets outside of texts, so that
 *            little JSON is never much memory. */
#ifndef CLUSTER_LINE_PUT_H
#define CLUSTER_LINE_PUT_H

#include "store/base/error.h"

#include <stddef.h>

#define LINE_PUT_MEMBERS_MAX 64

struct line_put {
    const char *key, *value; /* Terminated. */
    void *impl;
};

int line_put_parse(const void *json, size_t len, struct line_put *out,
                   struct hedge_error *e);
void line_put_release(struct line_put *p);

#endif
