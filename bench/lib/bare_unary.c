#include "bench/lib/bare_unary.h"
#include "bench/lib/bench.h"

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define METHOD "/bench/Echo"
#define POSTED 8
#define DEADLINE_S 10 /* Of each call, as ours have one. */

static const grpc_channel_args *args(void)
{
    static grpc_arg arg[] = {{.type = GRPC_ARG_INTEGER,
                              .key = GRPC_ARG_ENABLE_HTTP_PROXY,
                              .value.integer = 0},
                             {.type = GRPC_ARG_INTEGER,
                              .key = GRPC_ARG_ENABLE_RETRIES,
                              .value.integer = 0}};
    static grpc_channel_args all = {sizeof arg / sizeof arg[0], arg};

    return &all;
}

/* --- the client -------------------------------------------------------------
 */

static grpc_completion_queue *shared_cq; /* One thread polls for all. */

struct bare_echo {
    grpc_completion_queue *cq;
    grpc_channel *channel;
};

struct bare_echo *bare_echo_open(const char *address)
{
    struct bare_echo *b = calloc(1, sizeof *b);

    if (b == NULL) {
        bench_die("no memory");
    }
    if (shared_cq == NULL) {
        grpc_init();
        shared_cq = grpc_completion_queue_create_for_next(NULL);
    }
    b->cq = shared_cq;
    b->channel = grpc_channel_create(
        address, grpc_insecure_credentials_create(), args());
    return b;
}

struct echo_call {
    grpc_call *call;
    grpc_slice part, details;
    grpc_byte_buffer *request, *reply;
    grpc_metadata_array headers, trailing;
    grpc_status_code status;
    grpc_op ops[6];
};

static void call_start(struct bare_echo *b, struct echo_call *c,
                       const void *data, size_t len)
{
    memset(c, 0, sizeof *c);
    c->part = grpc_slice_from_copied_buffer(data, len);
    c->details = grpc_empty_slice();
    c->request = grpc_raw_byte_buffer_create(&c->part, 1);
    c->call = grpc_channel_create_call(
        b->channel, NULL, GRPC_PROPAGATE_DEFAULTS, b->cq,
        grpc_slice_from_static_string(METHOD), NULL,
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                     gpr_time_from_seconds(DEADLINE_S, GPR_TIMESPAN)),
        NULL);
    grpc_metadata_array_init(&c->headers);
    grpc_metadata_array_init(&c->trailing);
    c->ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    c->ops[1].op = GRPC_OP_SEND_MESSAGE;
    c->ops[1].data.send_message.send_message = c->request;
    c->ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    c->ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    c->ops[3].data.recv_initial_metadata.recv_initial_metadata = &c->headers;
    c->ops[4].op = GRPC_OP_RECV_MESSAGE;
    c->ops[4].data.recv_message.recv_message = &c->reply;
    c->ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    c->ops[5].data.recv_status_on_client.trailing_metadata = &c->trailing;
    c->ops[5].data.recv_status_on_client.status = &c->status;
    c->ops[5].data.recv_status_on_client.status_details = &c->details;
    if (grpc_call_start_batch(c->call, c->ops, 6, c, NULL) != GRPC_CALL_OK) {
        bench_die("bare gRPC: a batch was refused");
    }
}

static void call_end(struct echo_call *c, size_t len)
{
    if (c->status != GRPC_STATUS_OK || c->reply == NULL ||
        grpc_byte_buffer_length(c->reply) != len) {
        bench_die("bare gRPC: a call failed with status %d", (int)c->status);
    }
    grpc_byte_buffer_destroy(c->reply);
    grpc_byte_buffer_destroy(c->request);
    grpc_slice_unref(c->part);
    grpc_slice_unref(c->details);
    grpc_metadata_array_destroy(&c->headers);
    grpc_metadata_array_destroy(&c->trailing);
    grpc_call_unref(c->call);
}

void bare_echo_all(struct bare_echo *const *b, unsigned n, const void *data,
                   size_t len)
{
    struct echo_call calls[BARE_ECHO_MAX];

    for (unsigned i = 0; i < n; i++) {
        call_start(b[i], &calls[i], data, len);
    }
    for (unsigned i = 0; i < n; i++) {
        grpc_event ev = grpc_completion_queue_next(
            b[0]->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);

        call_end(ev.tag, len);
    }
}

void bare_echo_call(struct bare_echo *b, const void *data, size_t len)
{
    bare_echo_all(&b, 1, data, len);
}

void bare_echo_close(struct bare_echo *b)
{
    grpc_channel_destroy(b->channel);
    free(b);
}

/* --- the server -------------------------------------------------------------
 */

struct served {
    bool answering;
    grpc_call *call;
    gpr_timespec deadline;
    grpc_metadata_array headers;
    grpc_byte_buffer *payload;
    int cancelled;
};

static void post(grpc_server *server, grpc_completion_queue *cq, void *method,
                 struct served *s)
{
    memset(s, 0, sizeof *s);
    grpc_metadata_array_init(&s->headers);
    if (grpc_server_request_registered_call(
            server, method, &s->call, &s->deadline, &s->headers, &s->payload,
            cq, cq, s) != GRPC_CALL_OK) {
        bench_die("bare gRPC: a request was refused");
    }
}

static void answer(struct served *s)
{
    grpc_op ops[4];

    s->answering = true;
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = s->payload;
    ops[2].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[2].data.send_status_from_server.status = GRPC_STATUS_OK;
    ops[3].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    ops[3].data.recv_close_on_server.cancelled = &s->cancelled;
    (void)grpc_call_start_batch(s->call, ops, 4, s, NULL);
}

static void *watch_parent(void *arg)
{
    bench_await_parent();
    _exit(0);
    return arg;
}

int bare_echo_serve(const char *address)
{
    static struct served served[POSTED];
    const char *where =
        strncmp(address, "ipv4:", 5) == 0 ? address + 5 : address;
    grpc_completion_queue *cq;
    grpc_server *server;
    pthread_t thread;
    void *method;
    int port;

    grpc_init();
    cq = grpc_completion_queue_create_for_next(NULL);
    server = grpc_server_create(args(), NULL);
    grpc_server_register_completion_queue(server, cq, NULL);
    method = grpc_server_register_method(
        server, METHOD, NULL, GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
    port = grpc_server_add_http2_port(
        server, where, grpc_insecure_server_credentials_create());
    if (port <= 0 || pthread_create(&thread, NULL, watch_parent, NULL) != 0) {
        bench_die("bare gRPC: cannot serve at %s", address);
    }
    grpc_server_start(server);
    for (int i = 0; i < POSTED; i++) {
        post(server, cq, method, &served[i]);
    }
    printf("%d\n", port);
    (void)fflush(stdout);
    for (;;) {
        grpc_event ev = grpc_completion_queue_next(
            cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        struct served *s = ev.tag;

        if (!s->answering) {
            answer(s);
            continue;
        }
        grpc_metadata_array_destroy(&s->headers);
        grpc_byte_buffer_destroy(s->payload);
        grpc_call_unref(s->call);
        post(server, cq, method, s);
    }
}
