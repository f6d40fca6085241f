/* strbuf.h - a string that grows.
 *
 * Ownership: the buffer owns its text until strbuf_detach() or _release().
 * Threads:   one thread at a time.
 * Errors:    allocation failure is remembered; strbuf_ok() tells.
 * Units:     bytes, terminator not counted.
 * Limits:    memory. */
#ifndef STORE_BASE_STRBUF_H
#define STORE_BASE_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

struct strbuf {
    char *text; /* Always terminated once something was added. */
    size_t len, cap;
    bool failed;
};

void strbuf_init(struct strbuf *b);
void strbuf_release(struct strbuf *b);
bool strbuf_ok(const struct strbuf *b);
void strbuf_add(struct strbuf *b, const char *data, size_t len);
void strbuf_addf(struct strbuf *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The text, to be freed with mem_free(); NULL after a failure. */
char *strbuf_detach(struct strbuf *b);

#endif
