#include "cluster/foreign/serve_lines.h"

#include "cluster/foreign/line_calls.h"
#include "cluster/node_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_SIZE ((size_t)16 << 10)
#define ACCEPT_PAUSE_MS 100
#define STOP_STEP_MS 20
#if defined(HEDGE_TSAN) || defined(__SANITIZE_ADDRESS__)
#define LINES_STACK ((size_t)4 << 20)
#else
#define LINES_STACK ((size_t)512 << 10)
#endif

enum connection_state {
    IDLE,    /* Between two requests. */
    READING, /* Within one. */
    WORKING, /* Being answered. */
};

/* Under the server's lock but for `fd`, which its thread closes under it. */
struct connection {
    struct list link;
    struct lines_server *server;
    int fd;
    enum connection_state state;
    uint64_t since_ms; /* Of the state. */
    uint64_t number;   /* Grows from one request to the next. */
    bool waits;        /* For room. */
    bool hung_up;
};

struct lines_server {
    struct hedge_node *node;
    int listen_fd, wake_fd;
    bool speak;
    pthread_t acceptor;

    pthread_mutex_t lock;
    bool stopping;
    struct list connections;
    uint64_t requests;      /* The last number given. */
    unsigned n_connections; /* Their threads, to be exact. */
    /* The thread that ended last; it has joined the one before. */
    bool has_ended;
    pthread_t ended;
    struct lines_use use;
};

/* --- a connection -----------------------------------------------------------
 */

static void set_state(struct connection *c, enum connection_state state)
{
    pthread_mutex_lock(&c->server->lock);
    c->state = state;
    c->since_ms = clock_mono_ms();
    c->waits = false;
    c->number = ++c->server->requests;
    pthread_mutex_unlock(&c->server->lock);
}

static bool gives_way(void *ctx)
{
    struct connection *c = ctx;
    struct list *l;
    bool last = true;

    pthread_mutex_lock(&c->server->lock);
    c->waits = true;
    list_foreach (l, &c->server->connections) {
        struct connection *o = container_of(l, struct connection, link);

        last = last && (!o->waits || o->number <= c->number);
    }
    c->waits = !last;
    pthread_mutex_unlock(&c->server->lock);
    return last;
}

/* False: not in time, or broken. */
static bool await(int fd, short events, uint64_t until_ms)
{
    struct pollfd p = {.fd = fd, .events = events};

    for (;;) {
        uint64_t now = clock_mono_ms();
        int rc = now < until_ms ? poll(&p, 1, (int)(until_ms - now)) : 0;

        if (rc >= 0 || errno != EINTR) {
            return rc > 0;
        }
    }
}

static bool send_all(int fd, const char *data, size_t len, uint64_t until_ms)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n > 0) {
            data += n;
            len -= (size_t)n;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            return false;
        } else if (!await(fd, POLLOUT, until_ms)) {
            return false;
        }
    }
    return true;
}

static bool send_reply(int fd, const struct line_reply *r)
{
    uint64_t until_ms = clock_mono_ms() + LINES_REPLY_MS;
    char piece[LINE_REPLY_MAX];
    size_t at = 0, n;

    while ((n = lines_reply(r, &at, piece)) > 0) {
        if (!send_all(fd, piece, n, until_ms)) {
            return false;
        }
    }
    return true;
}

static void count_request(struct lines_server *s, const struct line *l)
{
    pthread_mutex_lock(&s->lock);
    s->use.requests[l->verb]++;
    s->use.errors += l->error != 0;
    pthread_mutex_unlock(&s->lock);
}

/* One line has been read, whole or as far as it will be. */
static bool answer_line(struct connection *c, struct line_call *call,
                        const struct line *l)
{
    bool ok;

    count_request(c->server, l);
    set_state(c, WORKING);
    line_call_run(call, l);
    ok = send_reply(c->fd, &call->reply);
    line_call_clear(call);
    set_state(c, READING);
    return ok;
}

/* All lines in these bytes; false: the connection ends. */
static bool take_bytes(struct connection *c, struct line_parser *p,
                       struct line_call *call, const char *data, size_t len)
{
    for (size_t at = 0, used; at < len; at += used) {
        int rv = lines_feed(p, data + at, len - at, &used);

        if (rv == HEDGE_EAGAIN) {
            return true;
        }
        if (!answer_line(c, call, &p->line) || rv != 0) {
            return false;
        }
    }
    return true;
}

static void converse(struct connection *c, struct line_call *call)
{
    uint64_t until_ms = clock_mono_ms() + LINES_IDLE_MS;
    struct line_parser p;
    char data[READ_SIZE];
    bool within = false;

    lines_init(&p, line_call_payload, call);
    while (await(c->fd, POLLIN, until_ms)) {
        ssize_t n = recv(c->fd, data, sizeof data, MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            continue;
        }
        if (n <= 0) {
            break;
        }
        if (!within) {
            set_state(c, READING);
        }
        if (!take_bytes(c, &p, call, data, (size_t)n)) {
            break;
        }
        /* The time of a line counts from its first bytes. */
        if (!lines_is_within(&p)) {
            within = false;
            set_state(c, IDLE);
            until_ms = clock_mono_ms() + LINES_IDLE_MS;
        } else if (!within || memchr(data, '\n', (size_t)n) != NULL) {
            within = true;
            until_ms = clock_mono_ms() + LINES_LINE_MS;
        }
    }
}

/* The last thing a thread does: each joins the one that ended before it, the
 * server the last. */
static void connection_end(struct connection *c)
{
    struct lines_server *s = c->server;
    pthread_t before;
    bool has_before;

    pthread_mutex_lock(&s->lock);
    list_remove(&c->link);
    close(c->fd);
    has_before = s->has_ended;
    before = s->ended;
    s->has_ended = true;
    s->ended = pthread_self();
    s->n_connections--;
    pthread_mutex_unlock(&s->lock);
    mem_free(c);
    if (has_before) {
        pthread_join(before, NULL);
    }
}

static void *connection_main(void *arg)
{
    struct connection *c = arg;
    struct line_call call;

    line_call_init(&call, c->server->node, c->fd, gives_way, c);
    converse(c, &call);
    line_call_release(&call);
    connection_end(c);
    return NULL;
}

/* --- accepting --------------------------------------------------------------
 */

/* With the lock held. */
static bool goes_before(const struct connection *c, const struct connection *o)
{
    if (c->hung_up || c->state == WORKING ||
        (c->state == READING &&
         clock_mono_ms() < c->since_ms + LINES_PATIENCE_MS)) {
        return false;
    }
    return o == NULL || c->state < o->state ||
           (c->state == o->state && c->since_ms < o->since_ms);
}

/* With the lock held: whoever has been idle for the longest is hung up on, or
 * else whoever is slowest to say what he wants. */
static bool evict(struct lines_server *s)
{
    struct connection *first = NULL;
    struct list *l;

    list_foreach (l, &s->connections) {
        struct connection *c = container_of(l, struct connection, link);

        first = goes_before(c, first) ? c : first;
    }
    if (first == NULL) {
        return false;
    }
    first->hung_up = true;
    (void)shutdown(first->fd, SHUT_RDWR);
    s->use.evicted++;
    return true;
}

/* With the lock held. Those that are just ending count, but not twice as many
 * as there may be. */
static bool may_enter(struct lines_server *s)
{
    return s->speak && !s->stopping &&
           (s->n_connections < LINES_CONNECTIONS_MAX ||
            (s->n_connections < 2 * LINES_CONNECTIONS_MAX && evict(s)));
}

static int start_thread(struct connection *c)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_attr_init(&attr);
    (void)pthread_attr_setstacksize(&attr, LINES_STACK);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&thread, &attr, connection_main, c);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return rc == 0 ? 0 : HEDGE_ENOMEM;
}

static void enter(struct lines_server *s, int fd)
{
    struct connection *c = NULL;
    int one = 1;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    pthread_mutex_lock(&s->lock);
    if (may_enter(s)) {
        c = mem_calloc(1, sizeof *c);
    }
    if (c != NULL) {
        c->server = s;
        c->fd = fd;
        c->since_ms = clock_mono_ms();
        list_push(&s->connections, &c->link);
        s->n_connections++;
        s->use.accepted++;
        if (start_thread(c) != 0) {
            list_remove(&c->link);
            s->n_connections--;
            mem_free(c);
            c = NULL;
        }
    }
    s->use.refused += c == NULL;
    pthread_mutex_unlock(&s->lock);
    if (c == NULL) {
        close(fd);
    }
}

/* Out of descriptors or memory: an error that a pause may mend. */
static void pause_accepting(struct lines_server *s)
{
    struct pollfd p = {.fd = s->wake_fd, .events = POLLIN};

    (void)poll(&p, 1, ACCEPT_PAUSE_MS);
}

static void *acceptor_main(void *arg)
{
    struct lines_server *s = arg;
    struct pollfd p[2] = {{.fd = s->listen_fd, .events = POLLIN},
                          {.fd = s->wake_fd, .events = POLLIN}};

    for (;;) {
        int rc = poll(p, 2, -1), fd;

        if (rc > 0 && p[1].revents != 0) {
            return NULL;
        }
        fd = rc > 0 ? accept4(s->listen_fd, NULL, NULL,
                              SOCK_CLOEXEC | SOCK_NONBLOCK)
                    : -1;
        if (fd >= 0) {
            enter(s, fd);
        } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
            log_debug("lines", "accept: %s", strerror(errno));
            pause_accepting(s);
        }
    }
}

/* --- life -------------------------------------------------------------------
 */

int lines_server_new(struct hedge_node *n, int listen_fd, bool speak,
                     struct lines_server **out)
{
    struct lines_server *s = mem_calloc(1, sizeof *s);

    *out = NULL;
    if (s == NULL) {
        return HEDGE_ENOMEM;
    }
    s->node = n;
    s->listen_fd = listen_fd;
    s->speak = speak;
    list_init(&s->connections);
    pthread_mutex_init(&s->lock, NULL);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->wake_fd < 0 ||
        pthread_create(&s->acceptor, NULL, acceptor_main, s) != 0) {
        if (s->wake_fd >= 0) {
            close(s->wake_fd);
        }
        pthread_mutex_destroy(&s->lock);
        mem_free(s);
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(s->acceptor, "hedge-lines");
    *out = s;
    return 0;
}

static void hang_up(struct lines_server *s, bool all)
{
    struct list *l;

    list_foreach (l, &s->connections) {
        struct connection *c = container_of(l, struct connection, link);

        if (all || c->state == IDLE) {
            (void)shutdown(c->fd, SHUT_RDWR);
        }
    }
}

void lines_server_free(struct lines_server *s, uint64_t grace_ms)
{
    uint64_t until_ms = clock_mono_ms() + grace_ms, one = 1;

    if (s == NULL) {
        return;
    }
    while (write(s->wake_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
    pthread_join(s->acceptor, NULL);
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    while (s->n_connections > 0) {
        hang_up(s, clock_mono_ms() >= until_ms);
        pthread_mutex_unlock(&s->lock);
        clock_sleep_ms(STOP_STEP_MS);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    if (s->has_ended) {
        pthread_join(s->ended, NULL);
    }
    close(s->wake_fd);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

void lines_server_use(struct lines_server *s, struct lines_use *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->use;
    out->connections = s->n_connections;
    pthread_mutex_unlock(&s->lock);
}
