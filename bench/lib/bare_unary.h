/* bare_unary.h - the limit of a message: unary calls over gRPC's C core and
 * nothing else. One thread at each end, which polls and does the work.
 *
 * Ownership: bare_echo_open() / bare_echo_close().
 * Threads:   one.
 * Errors:    end the program (bench.h).
 * Units:     bytes.
 * Limits:    BARE_ECHO_MAX calls at a time. */
#ifndef BENCH_LIB_BARE_UNARY_H
#define BENCH_LIB_BARE_UNARY_H

#include <stddef.h>

/* Serve until the parent has gone; prints the port first, 0 for a Unix
 * socket. */
int bare_echo_serve(const char *address);

#define BARE_ECHO_MAX 8
struct bare_echo;
struct bare_echo *bare_echo_open(const char *address);
/* One call with `len` bytes, which come back. */
void bare_echo_call(struct bare_echo *b, const void *data, size_t len);
/* The same to several at once, over one thread. */
void bare_echo_all(struct bare_echo *const *b, unsigned n, const void *data,
                   size_t len);
void bare_echo_close(struct bare_echo *b);

#endif
