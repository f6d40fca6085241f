#include "bench/lib/bare_grpc.h"
#include "bench/lib/bench.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct bare_stream {
    grpc_completion_queue *cq;
    grpc_channel *channel; /* NULL at the server. */
    grpc_call *call;
    grpc_op send;
    grpc_byte_buffer *sending;
    grpc_metadata_array headers;
    bool got_headers;
};

/* As rpc_process_setup() does it. */
static void setup(void)
{
    (void)mallopt(M_TRIM_THRESHOLD, 256 << 20);
    (void)mallopt(M_MMAP_THRESHOLD, 32 << 20);
    (void)mallopt(M_TOP_PAD, 8 << 20);
    (void)signal(SIGPIPE, SIG_IGN);
    grpc_init();
}

static void wait_tag(grpc_completion_queue *cq, const void *tag)
{
    grpc_event ev = grpc_completion_queue_next(
        cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);

    if (ev.type != GRPC_OP_COMPLETE || ev.tag != tag || ev.success == 0) {
        bench_die("bare gRPC: an operation failed");
    }
}

static void run(struct bare_stream *s, grpc_op *ops, size_t n)
{
    if (grpc_call_start_batch(s->call, ops, n, ops, NULL) != GRPC_CALL_OK) {
        bench_die("bare gRPC: a batch was refused");
    }
    wait_tag(s->cq, ops);
}

/* --- messages ---------------------------------------------------------------
 */

void bare_send_start(struct bare_stream *s, void *data, size_t len,
                     void (*release)(void *), void *arg)
{
    grpc_slice part = grpc_slice_new_with_user_data(data, len, release, arg);

    s->sending = grpc_raw_byte_buffer_create(&part, 1);
    grpc_slice_unref(part);
    memset(&s->send, 0, sizeof s->send);
    s->send.op = GRPC_OP_SEND_MESSAGE;
    s->send.data.send_message.send_message = s->sending;
    if (grpc_call_start_batch(s->call, &s->send, 1, &s->send, NULL) !=
        GRPC_CALL_OK) {
        bench_die("bare gRPC: a batch was refused");
    }
}

void bare_settle(struct bare_stream *s)
{
    if (s->sending != NULL) {
        wait_tag(s->cq, &s->send);
        grpc_byte_buffer_destroy(s->sending);
        s->sending = NULL;
    }
}

void bare_poll(struct bare_stream *s)
{
    grpc_event ev;

    bare_settle(s);
    ev = grpc_completion_queue_next(
        s->cq,
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                     gpr_time_from_millis(1, GPR_TIMESPAN)),
        NULL);
    if (ev.type != GRPC_QUEUE_TIMEOUT) {
        bench_die("bare gRPC: a completion nobody waits for");
    }
}

void bare_send(struct bare_stream *s, void *data, size_t len,
               void (*release)(void *), void *arg)
{
    bare_send_start(s, data, len, release, arg);
    bare_settle(s);
}

static grpc_byte_buffer *receive(struct bare_stream *s)
{
    grpc_byte_buffer *message;
    grpc_op op;

    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &message;
    run(s, &op, 1);
    return message;
}

size_t bare_recv(struct bare_stream *s)
{
    grpc_byte_buffer *message = receive(s);
    size_t len = 0;

    if (message != NULL) {
        len = grpc_byte_buffer_length(message);
        grpc_byte_buffer_destroy(message);
    }
    return len;
}

static void receive_headers(struct bare_stream *s)
{
    grpc_op op;

    if (!s->got_headers) {
        memset(&op, 0, sizeof op);
        op.op = GRPC_OP_RECV_INITIAL_METADATA;
        op.data.recv_initial_metadata.recv_initial_metadata = &s->headers;
        run(s, &op, 1);
        s->got_headers = true;
    }
}

struct ask {
    uint64_t size, n;
};

static void no_release(void *arg)
{
    (void)arg;
}

void bare_ask(struct bare_stream *s, size_t size, uint64_t n)
{
    static struct ask ask;

    ask = (struct ask){.size = size, .n = n};
    bare_send(s, &ask, sizeof ask, no_release, NULL);
    receive_headers(s); /* Core keeps messages back until then. */
}

/* --- the client -------------------------------------------------------------
 */

static const grpc_channel_args *args(void)
{
    static grpc_arg arg[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = (int)BARE_MESSAGE_MAX},
        {.type = GRPC_ARG_INTEGER,
         .key = GRPC_ARG_ENABLE_HTTP_PROXY,
         .value.integer = 0},
        {.type = GRPC_ARG_INTEGER,
         .key = GRPC_ARG_ENABLE_RETRIES,
         .value.integer = 0},
    };
    static grpc_channel_args all = {sizeof arg / sizeof arg[0], arg};

    return &all;
}

struct bare_stream *bare_open(const char *address, const char *method)
{
    struct bare_stream *s = calloc(1, sizeof *s);
    grpc_op op;

    if (s == NULL) {
        bench_die("no memory");
    }
    setup();
    s->cq = grpc_completion_queue_create_for_next(NULL);
    s->channel = grpc_channel_create(
        address, grpc_insecure_credentials_create(), args());
    s->call = grpc_channel_create_call(
        s->channel, NULL, GRPC_PROPAGATE_DEFAULTS, s->cq,
        grpc_slice_from_copied_string(method), NULL,
        gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_metadata_array_init(&s->headers);
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_SEND_INITIAL_METADATA;
    run(s, &op, 1);
    return s;
}

void bare_close(struct bare_stream *s)
{
    grpc_metadata_array trailing;
    grpc_status_code status;
    grpc_slice details;
    grpc_op op[2];

    bare_settle(s);
    receive_headers(s);
    memset(op, 0, sizeof op);
    grpc_metadata_array_init(&trailing);
    op[0].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    op[1].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    op[1].data.recv_status_on_client.trailing_metadata = &trailing;
    op[1].data.recv_status_on_client.status = &status;
    op[1].data.recv_status_on_client.status_details = &details;
    run(s, op, 2);
    if (status != GRPC_STATUS_OK) {
        bench_die("bare gRPC: the stream ended with status %d", (int)status);
    }
    grpc_call_unref(s->call);
    grpc_channel_destroy(s->channel);
    free(s);
}

/* --- the server -------------------------------------------------------------
 */

static void send_headers(struct bare_stream *s)
{
    grpc_op op;

    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_SEND_INITIAL_METADATA;
    run(s, &op, 1);
}

static void serve_source(struct bare_stream *s)
{
    static unsigned char block[BARE_MESSAGE_MAX];
    grpc_byte_buffer *message = receive(s);
    grpc_byte_buffer_reader reader;
    struct ask ask = {0};
    grpc_slice all;

    if (message == NULL || !grpc_byte_buffer_reader_init(&reader, message)) {
        bench_die("bare gRPC: no request");
    }
    all = grpc_byte_buffer_reader_readall(&reader);
    if (GRPC_SLICE_LENGTH(all) == sizeof ask) {
        memcpy(&ask, GRPC_SLICE_START_PTR(all), sizeof ask);
    }
    grpc_slice_unref(all);
    grpc_byte_buffer_destroy(message);
    if (ask.size == 0 || ask.size > sizeof block) {
        bench_die("bare gRPC: a request for messages of %llu bytes",
                  (unsigned long long)ask.size);
    }
    memset(block, 0x5a, ask.size); /* Not the zero page. */
    for (uint64_t i = 0; i < ask.n; i++) {
        bare_send(s, block, ask.size, no_release, NULL);
    }
}

static void finish(struct bare_stream *s)
{
    grpc_op op[2];
    int gone;

    memset(op, 0, sizeof op);
    op[0].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op[0].data.send_status_from_server.status = GRPC_STATUS_OK;
    op[1].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op[1].data.recv_close_on_server.cancelled = &gone;
    run(s, op, 2);
    grpc_call_unref(s->call);
}

static void serve_one(grpc_server *server, grpc_completion_queue *cq)
{
    struct bare_stream s = {.cq = cq};
    grpc_metadata_array md;
    grpc_call_details details;

    grpc_metadata_array_init(&md);
    grpc_call_details_init(&details);
    (void)grpc_server_request_call(server, &s.call, &details, &md, cq, cq, &md);
    wait_tag(cq, &md);
    send_headers(&s);
    if (grpc_slice_str_cmp(details.method, BARE_SOURCE) == 0) {
        serve_source(&s);
    } else {
        while (bare_recv(&s) > 0) {
        }
    }
    finish(&s);
    grpc_call_details_destroy(&details);
    grpc_metadata_array_destroy(&md);
}

static void *watch_parent(void *arg)
{
    bench_await_parent();
    _exit(0);
    return arg;
}

int bare_serve(const char *address)
{
    const char *where =
        strncmp(address, "ipv4:", 5) == 0 ? address + 5 : address;
    grpc_completion_queue *cq;
    grpc_server *server;
    pthread_t thread;
    int port;

    setup();
    cq = grpc_completion_queue_create_for_next(NULL);
    server = grpc_server_create(args(), NULL);
    grpc_server_register_completion_queue(server, cq, NULL);
    port = grpc_server_add_http2_port(
        server, where, grpc_insecure_server_credentials_create());
    if (port <= 0 || pthread_create(&thread, NULL, watch_parent, NULL) != 0) {
        bench_die("bare gRPC: cannot serve at %s", address);
    }
    grpc_server_start(server);
    printf("%d\n", port);
    (void)fflush(stdout);
    for (;;) {
        serve_one(server, cq);
    }
}
