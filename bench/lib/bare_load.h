/* bare_load.h - many unary calls in flight over gRPC's C core and nothing else,
 * from one thread, and a server that answers each with as many bytes as asked.
 *
 * Ownership: bare_load_open() / bare_load_close().
 * Threads:   one.
 * Errors:    end the program (bench.h).
 * Units:     bytes, calls a second.
 * Limits:    BARE_LOAD_MAX calls in flight. */
#ifndef BENCH_LIB_BARE_LOAD_H
#define BENCH_LIB_BARE_LOAD_H

#include <stddef.h>
#include <stdint.h>

#define BARE_LOAD_MAX 1024u
#define BARE_LOAD_ECHO "/bench/Answer"

/* Serve at "ipv4:HOST:PORT" or "unix:PATH" until the parent closes stdin; the
 * port is the first line. Each request is answered with `reply_len` bytes. */
int bare_load_serve(const char *address, size_t reply_len);

/* Makes the n-th request; returns its length. */
typedef size_t (*bare_load_fn)(void *ctx, uint64_t n, void *out, size_t cap);

struct bare_load;
struct bare_load *bare_load_open(const char *address);
/* Keep `in_flight` calls of a method going for that long; calls a second. A
 * call that fails ends the program; a reply has at least `reply_min` bytes. */
double bare_load_run(struct bare_load *l, const char *method,
                     unsigned in_flight, uint64_t for_ns, bare_load_fn fn,
                     void *ctx, size_t reply_min);
void bare_load_close(struct bare_load *l);

#endif
