/* http_parse.h - taking apart what comes in the bodies of HTTP requests, and
 * putting replies in lines. No sockets. */
#ifndef SERVER_HTTP_PARSE_H
#define SERVER_HTTP_PARSE_H

#include "store/base/strbuf.h"

#include <stdbool.h>
#include <stddef.h>

/* "key value": the key reaches to the first space, the value is all behind it.
 * They point into the body. False: there is no space, or nothing before it. */
struct http_pair {
    const char *key, *value;
    size_t key_len, value_len;
};
bool http_split_pair(const char *body, size_t len, struct http_pair *out);

/* Cuts a body that comes in pieces into lines, each with the newline at its
 * end but for the last; those that are longer than `max` are cut there. */
typedef int (*http_line_fn)(void *ctx, const char *line, size_t len);
struct http_cutter {
    size_t max;
    struct strbuf begun; /* A line that is not whole. */
    http_line_fn fn;
    void *ctx;
};
void http_cutter_init(struct http_cutter *c, size_t max, http_line_fn fn,
                      void *ctx);
void http_cutter_release(struct http_cutter *c);
/* 0, what `fn` returned, or HEDGE_ENOMEM. */
int http_cutter_feed(struct http_cutter *c, const char *data, size_t len);
int http_cutter_end(struct http_cutter *c);

/* Add bytes to a line: what would end it is written as \n and \r. */
void http_add_escaped(struct strbuf *b, const char *data, size_t len);
/* Is NAME one of those in "NAME,NAME"? */
bool http_is_among(const char *list, const char *name);

/* The HTTP status of an error of ours. */
unsigned http_status_of(int code);

#endif
