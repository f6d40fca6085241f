/* bare_grpc.h - gRPC's C core and nothing else: the limit that streams are
 * measured against. One completion queue, which the calling thread polls; what
 * is sent is not copied; malloc is set as rpc_process_setup() sets it.
 *
 * Ownership: bytes that are sent stay the caller's, unchanged, until `release`
 *            has run (on any thread).
 * Threads:   the calling thread alone.
 * Errors:    end the program.
 * Units:     bytes.
 * Limits:    messages of BARE_MESSAGE_MAX bytes; one stream at a time. */
#ifndef BENCH_LIB_BARE_GRPC_H
#define BENCH_LIB_BARE_GRPC_H

#include <stddef.h>
#include <stdint.h>

#define BARE_MESSAGE_MAX ((size_t)8 << 20)
#define BARE_SINK "/bench/Sink"     /* Takes messages until they end. */
#define BARE_SOURCE "/bench/Source" /* Asked with bare_ask(), sends them. */

/* Serve one stream after the other at "ipv4:HOST:PORT" or "unix:PATH", the
 * port printed as the first line, until the parent closes stdin. */
int bare_serve(const char *address);

struct bare_stream;
struct bare_stream *bare_open(const char *address, const char *method);
void bare_send(struct bare_stream *s, void *data, size_t len,
               void (*release)(void *), void *arg);
/* A send that is only begun: bare_settle() ends it, so that the caller can
 * prepare the next message meanwhile. */
void bare_send_start(struct bare_stream *s, void *data, size_t len,
                     void (*release)(void *), void *arg);
void bare_settle(struct bare_stream *s);
/* Settle, and let core work for up to a millisecond. */
void bare_poll(struct bare_stream *s);
/* Ask a BARE_SOURCE for `n` messages of `size` bytes. */
void bare_ask(struct bare_stream *s, size_t size, uint64_t n);
/* Receive one message and drop it: its length; 0 at the end. */
size_t bare_recv(struct bare_stream *s);
/* No more is sent; wait for the far end to end the stream well. */
void bare_close(struct bare_stream *s);

#endif
