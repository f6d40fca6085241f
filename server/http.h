/* http.h - hedged's HTTP server: the demo's endpoints, probes and figures.
 *
 * Ownership: hedge_node_stop() ends the serving, http_free() what is left,
 *            also where it was never started.
 * Threads:   one starts and stops it; each connection has a thread of its own.
 * Errors:    a text that names the address.
 * Units:     bytes, milliseconds.
 * Limits:    below. Headers and a request line take HTTP_HEADERS_MAX bytes. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include "cluster/hedge.h"

#define HTTP_CONNECTIONS_MAX 64u
#define HTTP_CONNECTIONS_MANY 48u /* From here on the slow make way. */
#define HTTP_HEADERS_MAX ((size_t)64 << 10)
#define HTTP_BODY_MAX ((size_t)64 << 20) /* But for /sos. */
#define HTTP_IDLE_S 30u         /* Without a byte from or to the client. */
#define HTTP_HEAD_MS 30000u     /* To say what is wanted. */
#define HTTP_BODY_MS 120000u    /* To send a body, to take an answer. */
#define HTTP_STREAM_MS 3600000u /* The same for /sos. */
#define HTTP_CALL_MS 15000u     /* What a request may wait for. */
#define HTTP_GRACE_MS 1000u

struct http;

/* Takes the address, and serves nobody yet. */
int http_new(const char *address, struct http **out, struct hedge_error *e);
int http_start(struct http *h, struct hedge_node *node, struct hedge_error *e);
/* No more connections; requests that are whole are answered, if that can be
 * done within HTTP_GRACE_MS. The rest ends with the node. NULL is fine. */
void http_quiesce(struct http *h);
/* Once the node has been stopped. NULL is fine. */
void http_free(struct http *h);

#endif
