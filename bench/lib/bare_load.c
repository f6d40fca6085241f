#include "bench/lib/bare_load.h"

#include "bench/lib/bench.h"
#include "store/base/clock.h"

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POSTED 64
#define DEADLINE_S 60
#define REQUEST_MAX 65536

static const grpc_channel_args *args(void)
{
    static grpc_arg arg[] = {{.type = GRPC_ARG_INTEGER,
                              .key = GRPC_ARG_ENABLE_HTTP_PROXY,
                              .value.integer = 0},
                             {.type = GRPC_ARG_INTEGER,
                              .key = GRPC_ARG_ENABLE_RETRIES,
                              .value.integer = 0},
                             {.type = GRPC_ARG_INTEGER,
                              .key = GRPC_ARG_ALLOW_REUSEPORT,
                              .value.integer = 0}};
    static grpc_channel_args all = {sizeof arg / sizeof arg[0], arg};

    return &all;
}

/* --- the client -------------------------------------------------------------
 */

struct bare_load {
    grpc_completion_queue *cq;
    grpc_channel *channel;
};

struct one {
    grpc_call *call;
    grpc_byte_buffer *request, *reply;
    grpc_metadata_array headers, trailing;
    grpc_slice details;
    grpc_status_code status;
};

struct bare_load *bare_load_open(const char *address)
{
    struct bare_load *l = calloc(1, sizeof *l);

    if (l == NULL) {
        bench_die("no memory");
    }
    grpc_init();
    l->cq = grpc_completion_queue_create_for_next(NULL);
    l->channel = grpc_channel_create(
        address, grpc_insecure_credentials_create(), args());
    return l;
}

void bare_load_close(struct bare_load *l)
{
    grpc_channel_destroy(l->channel);
    free(l);
}

static void start(struct bare_load *l, const char *method, struct one *o,
                  const void *data, size_t len)
{
    grpc_slice path = grpc_slice_from_static_string(method);
    grpc_slice part = grpc_slice_from_copied_buffer(data, len);
    grpc_op ops[6];

    memset(o, 0, sizeof *o);
    o->call = grpc_channel_create_call(
        l->channel, NULL, GRPC_PROPAGATE_DEFAULTS, l->cq, path, NULL,
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                     gpr_time_from_seconds(DEADLINE_S, GPR_TIMESPAN)),
        NULL);
    o->request = grpc_raw_byte_buffer_create(&part, 1);
    grpc_slice_unref(part);
    grpc_metadata_array_init(&o->headers);
    grpc_metadata_array_init(&o->trailing);
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = o->request;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &o->headers;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &o->reply;
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &o->trailing;
    ops[5].data.recv_status_on_client.status = &o->status;
    ops[5].data.recv_status_on_client.status_details = &o->details;
    if (grpc_call_start_batch(o->call, ops, 6, o, NULL) != GRPC_CALL_OK) {
        bench_die("bare gRPC: a batch was refused");
    }
}

static void finish(struct one *o, size_t reply_min)
{
    if (o->status != GRPC_STATUS_OK || o->reply == NULL ||
        grpc_byte_buffer_length(o->reply) < reply_min) {
        bench_die("bare gRPC: a call failed with status %d: %.*s",
                  (int)o->status, (int)GRPC_SLICE_LENGTH(o->details),
                  (const char *)GRPC_SLICE_START_PTR(o->details));
    }
    grpc_byte_buffer_destroy(o->reply);
    grpc_byte_buffer_destroy(o->request);
    grpc_metadata_array_destroy(&o->headers);
    grpc_metadata_array_destroy(&o->trailing);
    grpc_slice_unref(o->details);
    grpc_call_unref(o->call);
}

double bare_load_run(struct bare_load *l, const char *method,
                     unsigned in_flight, uint64_t for_ns, bare_load_fn fn,
                     void *ctx, size_t reply_min)
{
    static struct one ones[BARE_LOAD_MAX];
    static char request[REQUEST_MAX];
    uint64_t from = clock_mono_ns(), now, n = 0, done = 0;
    unsigned live = 0;

    for (; live < in_flight; live++, n++) {
        start(l, method, &ones[live], request,
              fn(ctx, n, request, sizeof request));
    }
    while (live > 0) {
        grpc_event ev = grpc_completion_queue_next(
            l->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        struct one *o = ev.tag;

        finish(o, reply_min);
        live--;
        now = clock_mono_ns();
        if (now - from < for_ns) {
            start(l, method, o, request, fn(ctx, n, request, sizeof request));
            n++;
            live++;
            done++;
        }
    }
    return (double)done * 1e9 / (double)for_ns;
}

/* --- the server -------------------------------------------------------------
 */

struct served {
    bool answering;
    grpc_call *call;
    gpr_timespec deadline;
    grpc_metadata_array headers;
    grpc_byte_buffer *payload, *reply;
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

static void answer(struct served *s, const char *data, size_t len)
{
    grpc_slice part = grpc_slice_from_copied_buffer(data, len);
    grpc_op ops[4];

    s->answering = true;
    s->reply = grpc_raw_byte_buffer_create(&part, 1);
    grpc_slice_unref(part);
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = s->reply;
    ops[2].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[2].data.send_status_from_server.status = GRPC_STATUS_OK;
    ops[3].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    ops[3].data.recv_close_on_server.cancelled = &s->cancelled;
    if (grpc_call_start_batch(s->call, ops, 4, s, NULL) != GRPC_CALL_OK) {
        bench_die("bare gRPC: an answer was refused");
    }
}

static void *watch_parent(void *arg)
{
    bench_await_parent();
    exit(0);
    return arg;
}

int bare_load_serve(const char *address, size_t reply_len)
{
    static struct served served[POSTED];
    static char data[REQUEST_MAX];
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
        server, BARE_LOAD_ECHO, NULL, GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER,
        0);
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
            answer(s, data, reply_len);
            continue;
        }
        grpc_metadata_array_destroy(&s->headers);
        grpc_byte_buffer_destroy(s->payload);
        grpc_byte_buffer_destroy(s->reply);
        grpc_call_unref(s->call);
        post(server, cq, method, s);
    }
}
