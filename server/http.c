/* http.c - libmicrohttpd with a thread per connection, and what it lacks: a
 * bound on how long a client may take to say what it wants, and a body that is
 * counted against the node's message budget.
 *
 * The life of a request: headers (handle_begin), body (take_body), whole
 * (handle_whole), answer, over (on_completed). One that fails within its body
 * is told so there (tell_early). */
#include "server/http_internal.h"

#include "cluster/node_internal.h"
#include "server/http_parse.h"
#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define WATCH_MS 250
#define PATIENCE_MS 5000 /* With the slow while others wait. */
#define ROOM_MS 2000
/* Of a body that is not wanted. */
#define SKIP_MAX ((uint64_t)64 << 20)
#define SKIP_MS 10000
#if defined(HEDGE_TSAN) || defined(__SANITIZE_ADDRESS__)
#define HTTP_STACK ((size_t)4 << 20)
#else
#define HTTP_STACK ((size_t)512 << 10)
#endif

enum client_state {
    SPEAKING, /* Or silent: it has not said all yet. */
    WAITING,  /* For its answer to be found. */
    TAKING,   /* Its answer. */
};

/* Under http.lock. */
struct client {
    struct list link;
    int fd;
    enum client_state state;
    bool hung_up;
    uint64_t since_ms, until_ms;
};

struct http {
    struct hedge_node *node;
    struct MHD_Daemon *daemon;
    int listen_fd;
    char address[UNITS_HOST_MAX + 8]; /* --http, for people. */
    pthread_t watch;
    bool watches;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopping;
    struct list clients;
    struct http_use use;
};

/* --- clients ----------------------------------------------------------------
 */

static void on_connection(void *cls, struct MHD_Connection *connection,
                          void **context, enum MHD_ConnectionNotificationCode c)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct http *h = cls;
    struct client *cl = *context;

    pthread_mutex_lock(&h->lock);
    if (c == MHD_CONNECTION_NOTIFY_STARTED) {
        cl = mem_calloc(1, sizeof *cl);
        *context = cl;
        h->use.accepted++;
        h->use.connections += cl != NULL;
        if (cl != NULL) {
            cl->fd = info->connect_fd;
            cl->since_ms = clock_mono_ms();
            cl->until_ms = cl->since_ms + HTTP_HEAD_MS;
            list_push(&h->clients, &cl->link);
        }
    } else if (cl != NULL) {
        list_remove(&cl->link);
        h->use.connections--;
        mem_free(cl);
        *context = NULL;
    }
    pthread_mutex_unlock(&h->lock);
}

static struct client *client_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    return info != NULL ? info->socket_context : NULL;
}

/* What the client is at from now on, and for how long it may be. */
static void client_enters(struct http *h, struct MHD_Connection *connection,
                          enum client_state state, uint64_t ms)
{
    struct client *cl = client_of(connection);

    pthread_mutex_lock(&h->lock);
    if (cl != NULL) {
        h->use.working += state == WAITING;
        h->use.working -= cl->state == WAITING;
        cl->state = state;
        cl->since_ms = clock_mono_ms();
        cl->until_ms = cl->since_ms + ms;
        pthread_cond_broadcast(&h->changed);
    }
    pthread_mutex_unlock(&h->lock);
}

/* http.lock held. */
static void hang_up(struct client *cl)
{
    cl->hung_up = true;
    (void)shutdown(cl->fd, SHUT_RDWR);
}

/* http.lock held: few places are left. Whoever has been slowest makes way. */
static void evict(struct http *h, uint64_t now)
{
    struct client *first = NULL;
    struct list *l;

    list_foreach (l, &h->clients) {
        struct client *cl = container_of(l, struct client, link);

        if (cl->state != WAITING && !cl->hung_up &&
            now >= cl->since_ms + PATIENCE_MS &&
            (first == NULL || cl->since_ms < first->since_ms)) {
            first = cl;
        }
    }
    if (first != NULL) {
        h->use.evicted++;
        hang_up(first);
    }
}

static void watch_clients(struct http *h)
{
    uint64_t now = clock_mono_ms();
    struct list *l;

    list_foreach (l, &h->clients) {
        struct client *cl = container_of(l, struct client, link);

        if (cl->state != WAITING && !cl->hung_up && now >= cl->until_ms) {
            h->use.timed_out++;
            hang_up(cl);
        }
    }
    if (h->use.connections >= HTTP_CONNECTIONS_MANY) {
        evict(h, now);
    }
}

/* http.lock held. */
static void wait_changed(struct http *h, uint64_t ms)
{
    uint64_t until = clock_mono_ns() + ms * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                          .tv_nsec = (long)(until % 1000000000u)};

    (void)pthread_cond_timedwait(&h->changed, &h->lock, &ts);
}

static void *watch_main(void *arg)
{
    struct http *h = arg;

    pthread_mutex_lock(&h->lock);
    while (!h->stopping) {
        watch_clients(h);
        wait_changed(h, WATCH_MS);
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

void http_use(struct http *h, struct http_use *out)
{
    pthread_mutex_lock(&h->lock);
    *out = h->use;
    pthread_mutex_unlock(&h->lock);
}

/* --- answers ----------------------------------------------------------------
 */

static void set_response(struct http_request *r, unsigned status,
                         const char *type, struct MHD_Response *response)
{
    assert(r->status == 0);
    r->status = status;
    r->response = response;
    if (response != NULL) {
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
                                      type);
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL,
                                      "no-store");
    }
}

void http_answer_text(struct http_request *r, unsigned status, const char *fmt,
                      ...)
{
    char text[2048];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    n = n < (int)sizeof text ? n : (int)sizeof text - 1;
    set_response(r, status, HTTP_TEXT,
                 MHD_create_response_from_buffer((size_t)(n > 0 ? n : 0), text,
                                                 MHD_RESPMEM_MUST_COPY));
}

static void add_error_line(struct strbuf *b, int code, const char *text)
{
    text = text != NULL && text[0] != '\0' ? text : hedge_strerror(code);
    http_add_escaped(b, text, strlen(text));
    strbuf_add(b, "\n", 1);
}

void http_answer_error(struct http_request *r, int code, const char *text)
{
    struct strbuf b;

    strbuf_init(&b);
    add_error_line(&b, code, text);
    http_answer_text(r, http_status_of(code), "%s",
                     strbuf_ok(&b) ? b.text : hedge_strerror(code));
    strbuf_release(&b);
}

struct loan {
    void (*release)(void *arg);
    void *arg;
};

static void loan_end(void *cls)
{
    struct loan *l = cls;

    if (l->release != NULL) {
        l->release(l->arg);
    }
    mem_free(l);
}

void http_answer_bytes(struct http_request *r, const char *type,
                       const void *data, size_t len, void (*release)(void *arg),
                       void *arg)
{
    struct loan *l = mem_alloc(sizeof *l);
    struct MHD_Response *response = NULL;

    if (l != NULL) {
        *l = (struct loan){.release = release, .arg = arg};
        response = MHD_create_response_from_buffer_with_free_callback_cls(
            len, (void *)(uintptr_t)data, loan_end, l); /* It only reads. */
    }
    if (response == NULL) {
        mem_free(l);
        if (release != NULL) {
            release(arg);
        }
        http_answer_error(r, HEDGE_ENOMEM, "no memory for the answer");
        return;
    }
    set_response(r, MHD_HTTP_OK, type, response);
}

void http_answer_strbuf(struct http_request *r, unsigned status,
                        const char *type, struct strbuf *b)
{
    bool ok = strbuf_ok(b);
    size_t len = b->len;
    char *text = strbuf_detach(b);

    if (!ok) {
        mem_free(text);
        http_answer_error(r, HEDGE_ENOMEM, "no memory for the answer");
        return;
    }
    http_answer_bytes(r, type, text != NULL ? text : "", len, mem_free, text);
    r->status =
        r->response != NULL && r->status == MHD_HTTP_OK ? status : r->status;
}

void http_charge(struct http_request *r, size_t n)
{
    if (n > r->charged) {
        msg_budget_force(r->node->messages, n - r->charged);
        r->charged = n;
    }
}

int http_charge_wait(struct http_request *r, size_t n)
{
    int rv = 0;

    if (n <= MSG_FREE) {
        http_charge(r, n);
    } else if (n > r->charged) {
        rv = msg_budget_take(r->node->messages, n - r->charged, ROOM_MS,
                             &r->error);
        r->charged = rv == 0 ? n : r->charged;
    }
    return rv;
}

const char *http_query(struct http_request *r, const char *name)
{
    const char *value = NULL;
    size_t len = 0;

    if (MHD_lookup_connection_value_n(r->connection, MHD_GET_ARGUMENT_KIND,
                                      name, strlen(name), &value,
                                      &len) != MHD_YES ||
        value == NULL || strlen(value) != len) {
        return NULL;
    }
    return value;
}

/* --- requests ---------------------------------------------------------------
 */

static const struct http_route *find_route(const char *path, unsigned *index)
{
    for (unsigned i = 0; i < http_n_routes; i++) {
        if (strcmp(http_routes[i].path, path) == 0) {
            *index = i;
            return &http_routes[i];
        }
    }
    *index = HTTP_ROUTES_MAX;
    return NULL;
}

static void answer_unknown(struct http_request *r)
{
    struct strbuf b;

    strbuf_init(&b);
    strbuf_addf(&b, "no such path; there are");
    for (size_t i = 0; i < http_n_routes; i++) {
        strbuf_addf(&b, " %s%s", http_routes[i].path, http_routes[i].help);
    }
    strbuf_add(&b, "\n", 1);
    http_answer_strbuf(r, MHD_HTTP_NOT_FOUND, HTTP_TEXT, &b);
}

static const char *header(struct http_request *r, const char *name)
{
    return MHD_lookup_connection_value(r->connection, MHD_HEADER_KIND, name);
}

/* A page in somebody's browser must not talk to a node behind his back. */
static bool is_from_a_page(struct http_request *r)
{
    const char *site = header(r, "Sec-Fetch-Site");

    return header(r, MHD_HTTP_HEADER_ORIGIN) != NULL ||
           (site != NULL && strcmp(site, "none") != 0);
}

static size_t body_max(const struct http_request *r)
{
    uint64_t limit = r->node->o.message_limit;

    return limit < HTTP_BODY_MAX ? (size_t)limit : HTTP_BODY_MAX;
}

/* Bytes of the body; 0 where it is not said. */
static uint64_t announced(struct http_request *r)
{
    const char *text = header(r, MHD_HTTP_HEADER_TRANSFER_ENCODING) == NULL
                           ? header(r, MHD_HTTP_HEADER_CONTENT_LENGTH)
                           : NULL;

    return text != NULL ? strtoull(text, NULL, 10) : 0;
}

static bool is_collected(const struct http_request *r)
{
    return r->route != NULL && r->route->take == NULL;
}

static int too_large(struct http_request *r)
{
    char size[UNITS_SIZE_TEXT];

    return error_set(&r->error, HEDGE_ETOOBIG,
                     "the body is over %s, the most there may be",
                     units_format_size(body_max(r), size));
}

static void answer_method(struct http_request *r)
{
    http_answer_text(r, MHD_HTTP_METHOD_NOT_ALLOWED, "%s takes %s\n",
                     r->route->path, r->route->methods);
    if (r->response != NULL) {
        (void)MHD_add_response_header(r->response, MHD_HTTP_HEADER_ALLOW,
                                      r->route->methods);
    }
}

struct framing {
    unsigned lengths, encodings;
    bool other; /* An encoding that is not the chunked one. */
};

static enum MHD_Result count_framing(void *cls, enum MHD_ValueKind kind,
                                     const char *name, const char *value)
{
    struct framing *f = cls;

    (void)kind;
    f->lengths += strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH) == 0;
    if (strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING) == 0) {
        f->encodings++;
        f->other |= value == NULL || strcasecmp(value, "chunked") != 0;
    }
    return MHD_YES;
}

/* Where a body ends that says it twice is for nobody to guess: somebody between
 * may have guessed otherwise. */
static int check_framing(struct http_request *r)
{
    struct framing f = {.other = false};

    (void)MHD_get_connection_values(r->connection, MHD_HEADER_KIND,
                                    count_framing, &f);
    if (f.lengths + f.encodings > 1) {
        return error_set(&r->error, HEDGE_EINVAL,
                         "the headers say more than once how long the body is");
    }
    return f.other ? error_set(&r->error, HEDGE_ENOTSUP,
                               "the only transfer encoding here is chunked")
                   : 0;
}

/* What can be said as soon as the headers are there. */
static void refuse_early(struct http_request *r, const char *method)
{
    int rv = check_framing(r);

    if (rv != 0) {
        http_answer_error(r, rv, r->error.text);
    } else if (r->node->closing) {
        http_answer_error(r, HEDGE_ECLOSED, "the node stops");
    } else if (r->route == NULL) {
        answer_unknown(r);
    } else if (is_from_a_page(r)) {
        http_answer_error(r, HEDGE_EPERM,
                          "requests from web pages are not answered");
    } else if (!http_is_among(r->route->methods, method)) {
        answer_method(r);
    } else if (is_collected(r) && announced(r) > body_max(r)) {
        http_answer_error(r, too_large(r), r->error.text);
    }
}

static struct http_request *
request_new(struct http *h, struct MHD_Connection *connection, const char *url)
{
    struct http_request *r = mem_calloc(1, sizeof *r);
    unsigned index;

    if (r == NULL) {
        return NULL;
    }
    r->http = h;
    r->node = h->node;
    r->connection = connection;
    r->route = find_route(url, &index);
    msg_buf_init(&r->body, h->node->messages);
    pthread_mutex_lock(&h->lock);
    h->use.requests[index]++;
    pthread_mutex_unlock(&h->lock);
    return r;
}

static enum MHD_Result send_answer(struct http_request *r)
{
    enum MHD_Result ok;

    if (r->response == NULL) { /* No memory even for an error. */
        return MHD_NO;
    }
    client_enters(r->http, r->connection, TAKING, HTTP_BODY_MS);
    ok = MHD_queue_response(r->connection, r->status, r->response);
    MHD_destroy_response(r->response);
    r->response = NULL;
    return ok;
}

static enum MHD_Result handle_begin(struct http *h,
                                    struct MHD_Connection *connection,
                                    const char *url, const char *method,
                                    void **context)
{
    struct http_request *r = request_new(h, connection, url);

    if (r == NULL) {
        return MHD_NO;
    }
    *context = r;
    client_enters(h, connection, SPEAKING,
                  r->route != NULL && r->route->take != NULL ? HTTP_STREAM_MS
                                                             : HTTP_BODY_MS);
    refuse_early(r, method);
    return r->status != 0 ? send_answer(r) : MHD_YES;
}

static int collect(struct http_request *r, const char *data, size_t len)
{
    int rv;

    if (len > body_max(r) - r->body.len) {
        return too_large(r);
    }
    rv = msg_buf_append(&r->body, data, len);
    if (rv == HEDGE_EEXHAUSTED) {
        rv = msg_buf_reserve(&r->body, r->body.len + len, ROOM_MS, &r->error);
        rv = rv != 0 ? rv : msg_buf_append(&r->body, data, len);
    }
    return rv;
}

static void end_route(struct http_request *r)
{
    if (r->route != NULL && r->route->end != NULL) {
        r->route->end(r);
    }
}

/* The answer in the middle of a body, where libmicrohttpd takes none. Most
 * clients see it and stop; from the others enough is taken for them to get as
 * far as to look, and the connection ends. */
static void tell_early(struct http_request *r)
{
    struct client *cl = client_of(r->connection);
    struct strbuf line, b;

    r->status = http_status_of(r->failed);
    strbuf_init(&line);
    strbuf_init(&b);
    add_error_line(&line, r->failed, r->error.text);
    strbuf_addf(&b,
                "HTTP/1.1 %u %s\r\nConnection: close\r\nContent-Type: %s\r\n"
                "Cache-Control: no-store\r\nContent-Length: %zu\r\n\r\n",
                r->status, MHD_get_reason_phrase_for(r->status), HTTP_TEXT,
                line.len);
    strbuf_add(&b, line.text, line.len);
    if (cl != NULL && strbuf_ok(&line) && strbuf_ok(&b)) {
        (void)send(cl->fd, b.text, b.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    strbuf_release(&line);
    strbuf_release(&b);
    client_enters(r->http, r->connection, SPEAKING, SKIP_MS);
    end_route(r);
}

static enum MHD_Result take_body(struct http_request *r, const char *data,
                                 size_t len)
{
    pthread_mutex_lock(&r->http->lock);
    r->http->use.body_bytes += len;
    pthread_mutex_unlock(&r->http->lock);
    r->n_body += len;
    if (r->failed != 0) {
        r->n_skipped += len;
        return r->n_skipped <= SKIP_MAX ? MHD_YES : MHD_NO;
    }
    r->failed = r->route->take != NULL ? r->route->take(r, data, len)
                                       : collect(r, data, len);
    if (r->failed != 0) {
        msg_buf_clear(&r->body);
        if (r->n_body != announced(r)) { /* Else its end is there. */
            tell_early(r);
        }
    }
    return MHD_YES;
}

static enum MHD_Result handle_whole(struct http_request *r)
{
    if (r->status != 0) { /* It was told early. */
        return MHD_NO;
    }
    client_enters(r->http, r->connection, WAITING, 0);
    if (r->failed != 0) {
        http_answer_error(r, r->failed, r->error.text);
    } else {
        r->route->answer(r);
    }
    assert(r->status != 0);
    return send_answer(r);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection,
                                  const char *url, const char *method,
                                  const char *version, const char *data,
                                  size_t *len, void **context)
{
    enum MHD_Result ok;

    (void)version;
    if (*context == NULL) {
        return handle_begin(cls, connection, url, method, context);
    }
    if (*len > 0) {
        ok = take_body(*context, data, *len);
        *len = 0;
        return ok;
    }
    return handle_whole(*context);
}

static void on_completed(void *cls, struct MHD_Connection *connection,
                         void **context, enum MHD_RequestTerminationCode why)
{
    struct http_request *r = *context;
    struct http *h = cls;

    (void)why;
    client_enters(h, connection, SPEAKING, HTTP_HEAD_MS);
    if (r == NULL) {
        return;
    }
    *context = NULL;
    end_route(r);
    pthread_mutex_lock(&h->lock);
    h->use.responses[r->status / 100 < 6 ? r->status / 100 : 0]++;
    pthread_mutex_unlock(&h->lock);
    if (r->response != NULL) {
        MHD_destroy_response(r->response);
    }
    msg_budget_give(r->node->messages, r->charged);
    msg_buf_release(&r->body);
    mem_free(r);
}

static void log_mhd(void *cls, const char *fmt, va_list ap)
{
    char text[512];

    (void)cls;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    (void)vsnprintf(text, sizeof text, fmt, ap);
#pragma GCC diagnostic pop
    text[strcspn(text, "\n")] = '\0';
    log_debug("http", "%s", text);
}

/* --- life -------------------------------------------------------------------
 */

static int cannot_listen(const struct http *h, struct hedge_error *e)
{
    return error_set_errno(e, errno,
                           "cannot listen on --http %s (end what serves there, "
                           "or choose another port)",
                           h->address);
}

/* The options have been checked: it is HOST:PORT. */
static int bind_address(struct http *h, const char *address,
                        struct hedge_error *e)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    char host[UNITS_HOST_MAX];
    uint16_t port;
    int one = 1;

    if (!units_parse_address(address, false, host, &port) ||
        inet_pton(AF_INET, host, &a.sin_addr) != 1) {
        return error_set(e, HEDGE_EINVAL, "--http \"%s\" is no address",
                         address);
    }
    a.sin_port = htons(port);
    h->listen_fd =
        socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (h->listen_fd < 0) {
        return error_set_errno(e, errno, "cannot make a socket");
    }
    (void)setsockopt(h->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(h->listen_fd, (struct sockaddr *)&a, sizeof a) != 0) {
        return cannot_listen(h, e);
    }
    return 0;
}

static int start_daemon(struct http *h, struct hedge_error *e)
{
    if (listen(h->listen_fd, 64) != 0) {
        return cannot_listen(h, e);
    }
    h->daemon = MHD_start_daemon(
        MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL_INTERNAL_THREAD |
            MHD_USE_ITC | MHD_USE_ERROR_LOG,
        0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, log_mhd, h,
        MHD_OPTION_LISTEN_SOCKET, h->listen_fd, MHD_OPTION_CONNECTION_LIMIT,
        HTTP_CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, HTTP_IDLE_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, HTTP_HEADERS_MAX,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
        MHD_OPTION_THREAD_STACK_SIZE, HTTP_STACK, MHD_OPTION_END);
    if (h->daemon == NULL) {
        return error_set(e, HEDGE_ENOMEM, "the HTTP server does not start");
    }
    if (pthread_create(&h->watch, NULL, watch_main, h) != 0) {
        return error_set(e, HEDGE_ENOMEM, "the HTTP server does not start");
    }
    h->watches = true;
    (void)pthread_setname_np(h->watch, "hedge-http");
    return 0;
}

static void stop_daemon(void *ctx)
{
    struct http *h = ctx;

    MHD_stop_daemon(h->daemon);
    h->daemon = NULL;
}

int http_new(const char *address, struct http **out, struct hedge_error *e)
{
    struct http *h = mem_calloc(1, sizeof *h);
    pthread_condattr_t attr;
    int rv;

    *out = NULL;
    if (h == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for an HTTP server");
    }
    assert(http_n_routes <= HTTP_ROUTES_MAX);
    h->listen_fd = -1;
    (void)snprintf(h->address, sizeof h->address, "%s", address);
    list_init(&h->clients);
    pthread_mutex_init(&h->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&h->changed, &attr);
    pthread_condattr_destroy(&attr);
    rv = bind_address(h, address, e);
    if (rv != 0) {
        http_free(h);
        return rv;
    }
    *out = h;
    return 0;
}

int http_start(struct http *h, struct hedge_node *node, struct hedge_error *e)
{
    int rv;

    h->node = node;
    rv = start_daemon(h, e);
    if (rv == 0) {
        node_set_front(node, stop_daemon, h);
    }
    return rv;
}

/* http.lock held. Hang up on who has not said all. Is anybody left? */
static bool is_busy(struct http *h)
{
    struct list *l;
    bool busy = false;

    list_foreach (l, &h->clients) {
        struct client *cl = container_of(l, struct client, link);

        if (cl->state != SPEAKING) {
            busy = true;
        } else if (!cl->hung_up) {
            hang_up(cl);
        }
    }
    return busy;
}

/* Requests that are whole may be answered; nobody may send more. */
static void settle(struct http *h)
{
    uint64_t until = clock_mono_ms() + HTTP_GRACE_MS;

    pthread_mutex_lock(&h->lock);
    h->stopping = true;
    pthread_cond_broadcast(&h->changed);
    while (is_busy(h) && clock_mono_ms() < until) {
        wait_changed(h, WATCH_MS / 5);
    }
    pthread_mutex_unlock(&h->lock);
}

void http_quiesce(struct http *h)
{
    if (h != NULL) {
        (void)MHD_quiesce_daemon(h->daemon);
        settle(h);
    }
}

void http_free(struct http *h)
{
    if (h == NULL) {
        return;
    }
    if (h->daemon != NULL) { /* It has not begun to serve. */
        MHD_stop_daemon(h->daemon);
    }
    if (h->watches) {
        pthread_mutex_lock(&h->lock);
        h->stopping = true;
        pthread_cond_broadcast(&h->changed);
        pthread_mutex_unlock(&h->lock);
        pthread_join(h->watch, NULL);
    }
    if (h->listen_fd >= 0) {
        close(h->listen_fd);
    }
    assert(list_empty(&h->clients));
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    mem_free(h);
}
