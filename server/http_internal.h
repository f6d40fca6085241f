/* http_internal.h - what the HTTP server and its endpoints share. */
#ifndef SERVER_HTTP_INTERNAL_H
#define SERVER_HTTP_INTERNAL_H

#include "cluster/messages/msg_buffer.h"
#include "cluster/stats.h"
#include "server/http.h"
#include "store/base/strbuf.h"

#include <microhttpd.h>

#define HTTP_TEXT "text/plain; charset=utf-8"
#define HTTP_BYTES "application/octet-stream"

struct http_request;

struct http_route {
    const char *path;
    const char *help;    /* In the answer to a path there is not. */
    const char *methods; /* "GET,POST" */
    /* The body, piece by piece; NULL: it is collected in request.body. Other
     * than 0 is answered as an error, and the rest of the body forgotten. */
    int (*take)(struct http_request *r, const char *data, size_t len);
    /* The request is whole: answer it. */
    void (*answer)(struct http_request *r);
    /* It is over, whether answered or not, and state NULL from now on; may be
     * called again. NULL: nothing to do. */
    void (*end)(struct http_request *r);
};

struct http_request {
    struct http *http;
    struct hedge_node *node;
    struct MHD_Connection *connection;
    const struct http_route *route; /* NULL: none. */
    struct msg_buf body;
    uint64_t n_body, n_skipped; /* Bytes that came; after the failure. */
    int failed;                 /* Of `take`. */
    struct hedge_error error;
    void *state; /* The route's. */
    bool working;
    unsigned status; /* Of the answer; 0: none yet. */
    struct MHD_Response *response;
    size_t charged; /* Of the message budget, until it is over. */
};

/* What the request holds beside its body, in all: counted against the message
 * budget. The second waits for room, and may fail. */
void http_charge(struct http_request *r, size_t n);
int http_charge_wait(struct http_request *r, size_t n);

/* The query's value of a name; NULL where it is not there, or holds a 0. */
const char *http_query(struct http_request *r, const char *name);

/* Exactly one of these per request. */
void http_answer_text(struct http_request *r, unsigned status, const char *fmt,
                      ...) __attribute__((format(printf, 3, 4)));
/* One line of text with the status that fits. */
void http_answer_error(struct http_request *r, int code, const char *text);
/* The bytes are kept until `release` (which may be NULL) has run. */
void http_answer_bytes(struct http_request *r, const char *type,
                       const void *data, size_t len, void (*release)(void *arg),
                       void *arg);
/* Takes what is in the buffer. */
void http_answer_strbuf(struct http_request *r, unsigned status,
                        const char *type, struct strbuf *b);

/* http_demo.c, metrics.c */
extern const struct http_route http_routes[];
extern const size_t http_n_routes;
void http_livez(struct http_request *r);
void http_readyz(struct http_request *r);
void http_metrics(struct http_request *r);

/* What the server has done, for http_metrics(). */
#define HTTP_ROUTES_MAX 16
struct http_use {
    unsigned connections, working;
    uint64_t accepted, evicted, timed_out;
    uint64_t requests[HTTP_ROUTES_MAX + 1]; /* The last: other paths. */
    uint64_t responses[6];                  /* By the status' first digit. */
    uint64_t body_bytes;
};
void http_use(struct http *h, struct http_use *out);

#endif
