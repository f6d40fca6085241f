#include "tests/lib/rpc_service.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static unsigned long number(const void *p, size_t len)
{
    char text[32] = {0};

    memcpy(text, p, len < sizeof text - 1 ? len : sizeof text - 1);
    return strtoul(text, NULL, 10);
}

/* --- unary ------------------------------------------------------------------
 */

static void echo(struct rpc_call *c, void *ctx, const void *request, size_t len)
{
    (void)ctx;
    rpc_reply(c, request, len);
}

static void fail(struct rpc_call *c, void *ctx, const void *request, size_t len)
{
    char *text = mem_strndup(request, len), *rest;
    int code = (int)strtol(text, &rest, 10);

    (void)ctx;
    rpc_fail(c, code, *rest != '\0' ? rest + 1 : rest);
    mem_free(text);
}

struct later {
    struct rpc_call *call;
    unsigned long ms;
};

static void *later_main(void *arg)
{
    struct later *l = arg;

    clock_sleep_ms(l->ms);
    rpc_reply(l->call, "later", 5);
    mem_free(l);
    return NULL;
}

static void later(struct rpc_call *c, void *ctx, const void *request,
                  size_t len)
{
    struct later *l = mem_alloc(sizeof *l);
    pthread_t t;
    int rc;

    (void)ctx;
    l->call = c;
    l->ms = number(request, len);
    rc = pthread_create(&t, NULL, later_main, l);
    assert(rc == 0);
    pthread_detach(t);
}

static void slow(struct rpc_call *c, void *ctx, const void *request, size_t len)
{
    struct service *s = ctx;

    atomic_fetch_add(&s->started, 1);
    clock_sleep_ms(number(request, len));
    atomic_fetch_add(&s->ended, 1);
    rpc_reply(c, "slept", 5);
}

static void big(struct rpc_call *c, void *ctx, const void *request, size_t len)
{
    size_t n = number(request, len);
    char *p = mem_alloc(n);

    (void)ctx;
    memset(p, 'b', n);
    rpc_reply(c, p, n);
    mem_free(p);
}

static void peer(struct rpc_call *c, void *ctx, const void *request, size_t len)
{
    (void)ctx;
    (void)request;
    (void)len;
    rpc_reply(c, rpc_call_peer(c), strlen(rpc_call_peer(c)));
}

/* --- streams ----------------------------------------------------------------
 */

static int left(struct service *s, int rv)
{
    atomic_store(&s->last, rv);
    atomic_fetch_add(&s->ended, 1);
    return rv;
}

static int stream_echo(struct rpc_stream *st, void *ctx, struct hedge_error *e)
{
    struct service *s = ctx;
    struct rpc_msg m;
    int rv;

    atomic_fetch_add(&s->started, 1);
    while ((rv = rpc_stream_recv(st, RPC_NO_TIMEOUT, &m, e)) == 0) {
        size_t n = rpc_msg_left(&m);
        char *p = malloc(n + 1);
        struct rpc_out out = {.head = p, .head_len = n};
        rpc_msg_read(&m, p, n);
        rpc_msg_release(&m);
        rv = rpc_stream_send(st, &out, RPC_NO_TIMEOUT);
        free(p);
        if (rv != 0) {
            break;
        }
    }
    return left(s, rv);
}

static int stream_fail(struct rpc_stream *st, void *ctx, struct hedge_error *e)
{
    struct rpc_msg m;

    (void)rpc_stream_recv(st, RPC_NO_TIMEOUT, &m, e);
    rpc_msg_release(&m);
    return left(ctx, error_set(e, HEDGE_EFENCED, "token %d is stale", 7));
}

static int stream_sink(struct rpc_stream *st, void *ctx, struct hedge_error *e)
{
    struct service *s = ctx;
    struct rpc_msg m;
    int rv;

    atomic_fetch_add(&s->started, 1);
    while ((rv = rpc_stream_recv(st, RPC_NO_TIMEOUT, &m, e)) == 0) {
        atomic_fetch_add(&s->bytes, rpc_msg_left(&m));
        rpc_msg_release(&m);
    }
    return left(s, rv);
}

static void count_release(void *arg)
{
    struct service *s = arg;

    atomic_fetch_add(&s->released, 1);
}

static int stream_pump(struct rpc_stream *st, void *ctx, struct hedge_error *e)
{
    static unsigned char block[4 << 20];
    struct service *s = ctx;
    struct rpc_out out = {.head = "hd",
                          .head_len = 2,
                          .body = block,
                          .release = count_release,
                          .release_arg = s};
    struct rpc_msg m;
    char size[32] = {0};
    int rv = rpc_stream_recv(st, RPC_NO_TIMEOUT, &m, e);

    atomic_fetch_add(&s->started, 1);
    if (rv != 0) {
        return left(s, rv);
    }
    rpc_msg_read(&m, size, rpc_msg_left(&m));
    rpc_msg_release(&m);
    out.body_len = strtoul(size, NULL, 10);
    assert(out.body_len <= sizeof block);
    for (int i = 0; rv == 0 && i < atomic_load(&s->pump_max); i++) {
        atomic_fetch_add(&s->lent, 1);
        rv = rpc_stream_send(st, &out, RPC_NO_TIMEOUT);
    }
    return left(s, rv);
}

static int stream_idle(struct rpc_stream *st, void *ctx, struct hedge_error *e)
{
    struct service *s = ctx;

    (void)e;
    atomic_fetch_add(&s->started, 1);
    while (!rpc_stream_is_cancelled(st)) {
        clock_sleep_ms(5);
    }
    return left(s, HEDGE_ECANCELED);
}

static int stream_cancel(struct rpc_stream *st, void *ctx,
                         struct hedge_error *e)
{
    struct rpc_msg m;
    int rv = rpc_stream_recv(st, RPC_NO_TIMEOUT, &m, e);

    rpc_msg_release(&m);
    rpc_stream_cancel(st);
    rv = rv == 0 ? rpc_stream_recv(st, RPC_NO_TIMEOUT, &m, e) : rv;
    return left(ctx, rv);
}

static int stream_leave(struct rpc_stream *st, void *ctx, struct hedge_error *e)
{
    (void)st;
    (void)e;
    return left(ctx, 0);
}

/* --- the service ------------------------------------------------------------
 */

static const struct rpc_method methods[] = {
    {UNARY_ECHO, echo, NULL, 0},
    {UNARY_INLINE, echo, NULL, RPC_INLINE},
    {UNARY_FAIL, fail, NULL, 0},
    {UNARY_LATER, later, NULL, 0},
    {UNARY_SLEEP, slow, NULL, 0},
    {UNARY_BIG, big, NULL, 0},
    {UNARY_PEER, peer, NULL, 0},
    {STREAM_ECHO, NULL, stream_echo, 0},
    {STREAM_FAIL, NULL, stream_fail, 0},
    {STREAM_SINK, NULL, stream_sink, 0},
    {STREAM_PUMP, NULL, stream_pump, 0},
    {STREAM_IDLE, NULL, stream_idle, 0},
    {STREAM_CANCEL, NULL, stream_cancel, 0},
    {STREAM_LEAVE, NULL, stream_leave, 0},
};

int service_try(struct service *s, const char *address, unsigned streams_max,
                struct hedge_error *e)
{
    struct rpc_server_options o = {
        .addresses = &address,
        .n_addresses = 1,
        .methods = methods,
        .n_methods = sizeof methods / sizeof methods[0],
        .ctx = s,
        .streams_max = streams_max,
    };
    int rv;

    if (address == NULL) {
        address = "ipv4:127.0.0.1:0";
    }
    memset(s, 0, sizeof *s);
    atomic_store(&s->pump_max, 1 << 30);
    rv = rpc_server_new(&o, &s->server, e);
    if (rv != 0) {
        return rv;
    }
    if (rpc_server_port(s->server, 0) != 0) {
        (void)snprintf(s->address, sizeof s->address, "ipv4:127.0.0.1:%u",
                       rpc_server_port(s->server, 0));
    } else {
        (void)snprintf(s->address, sizeof s->address, "%s", address);
    }
    return rpc_channel_new(s->address, &s->channel);
}

void service_start(struct service *s, const char *address, unsigned streams_max)
{
    struct hedge_error e;
    int rv = service_try(s, address, streams_max, &e);

    if (rv != 0) {
        (void)fprintf(stderr, "service: %s\n", e.text);
        abort();
    }
}

void service_stop(struct service *s, uint64_t grace_ms)
{
    rpc_channel_free(s->channel);
    rpc_server_free(s->server, grace_ms);
    /* The transport may let go of a block a moment later. */
    for (int i = 0;
         i < 1000 && atomic_load(&s->released) < atomic_load(&s->lent); i++) {
        clock_sleep_ms(10);
    }
}

bool service_await(atomic_int *v, int want)
{
    uint64_t start = clock_mono_ms();

    while (atomic_load(v) != want) {
        if (clock_mono_ms() - start > SERVICE_WAIT_MS) {
            return false;
        }
        clock_sleep_ms(1);
    }
    return true;
}

/* --- other processes --------------------------------------------------------
 */

/* Serves until it is killed or its parent has gone. */
static void role_server(const char *address)
{
    struct service s;
    char c;

    service_start(&s, address[0] != '\0' ? address : NULL, 0);
    printf("%s\n", s.address);
    (void)fflush(stdout);
    while (read(STDIN_FILENO, &c, 1) > 0) {
    }
    _exit(0);
}

/* Opens a stream, sends one message, says so and waits to be killed. */
static void role_client(const char *address)
{
    struct rpc_out out = {.head = "hello", .head_len = 5};
    struct rpc_channel *channel;
    struct rpc_stream *st;
    char c;

    if (rpc_channel_new(address, &channel) != 0 ||
        rpc_stream_open(channel, STREAM_SINK, RPC_NO_TIMEOUT, &st) != 0 ||
        rpc_stream_send(st, &out, RPC_NO_TIMEOUT) != 0) {
        _exit(1);
    }
    printf("sent\n");
    (void)fflush(stdout);
    while (read(STDIN_FILENO, &c, 1) > 0) {
    }
    _exit(0);
}

void service_roles(int argc, char **argv)
{
    if (argc != 3) {
        return;
    }
    if (strcmp(argv[1], "server") == 0) {
        role_server(argv[2]);
    }
    if (strcmp(argv[1], "client") == 0) {
        role_client(argv[2]);
    }
}

pid_t service_spawn(const char *role, const char *arg, char *out,
                    size_t out_size)
{
    char self[] = "/proc/self/exe", name[16], what[128];
    char *argv[] = {self, name, what, NULL};
    posix_spawn_file_actions_t fa;
    size_t n = 0;
    int in[2], from[2], rc;
    pid_t pid;

    (void)snprintf(name, sizeof name, "%s", role);
    (void)snprintf(what, sizeof what, "%s", arg);
    /* The writing end of `in` stays open as long as this process lives. */
    rc = pipe2(in, O_CLOEXEC) | pipe2(from, O_CLOEXEC);
    assert(rc == 0);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&fa, from[1], STDOUT_FILENO);
    rc = posix_spawn(&pid, self, &fa, NULL, argv, environ);
    assert(rc == 0);
    posix_spawn_file_actions_destroy(&fa);
    close(in[0]);
    close(from[1]);
    while (n + 1 < out_size && read(from[0], out + n, 1) == 1 &&
           out[n] != '\n') {
        n++;
    }
    out[n] = '\0';
    close(from[0]);
    return pid;
}

void service_kill(pid_t pid)
{
    int status;

    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, &status, 0);
}
