/* msg_stream_cmds.c - hedgectl stream-send and stream-broadcast: lines of
 * standard input go out as messages, replies come in meanwhile. */
#include "cluster/pb.h"
#include "proto/messages.pb-c.h"
#include "store/base/mem.h"
#include "tools/ctl.h"
#include "tools/output.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECE ((size_t)1 << 20)
#define MESSAGE_MAX ((size_t)64 << 20)

static bool skip_self;

struct session {
    const struct cli_call *call;
    struct rpc_stream *stream;
    bool broadcast, failed;
    atomic_int refused; /* The exit status, if a line cannot be sent. */
    /* The reply that is coming in, and from whom. */
    char *data;
    size_t len;
};

/* --- out --------------------------------------------------------------------
 */

static int send_line(struct rpc_stream *s, char *line, size_t len)
{
    size_t at = 0;
    int rv;

    do {
        Hedge__V1__StreamItem item = HEDGE__V1__STREAM_ITEM__INIT;
        size_t left = len - at;

        item.data.len = left < PIECE ? left : PIECE;
        item.data.data = item.data.len > 0 ? (uint8_t *)line + at : NULL;
        item.more = left > PIECE;
        at += item.data.len;
        rv = pb_send(s, &item.base, RPC_NO_TIMEOUT);
    } while (rv == 0 && at < len);
    return rv;
}

/* A thread of its own: standard input cannot be waited for otherwise. When the
 * stream ends before it, so does the program. */
static void *send_lines(void *arg)
{
    struct session *s = arg;
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int rv = 0;

    while (rv == 0 && (n = getline(&line, &cap, stdin)) > 0) {
        size_t len = (size_t)n - (line[n - 1] == '\n');

        if (len > MESSAGE_MAX) {
            atomic_store(&s->refused,
                         cli_usage("a message has at most 64 MiB"));
            rpc_stream_cancel(s->stream);
            break;
        }
        rv = send_line(s->stream, line, len);
    }
    if (rv == 0) {
        (void)rpc_stream_close_send(s->stream);
    }
    return NULL; /* The line goes with the program. */
}

/* --- in ---------------------------------------------------------------------
 */

static void print_failure(struct session *s, const Hedge__V1__StreamItem *m)
{
    cJSON *o;

    s->failed = true;
    if (!ctl_json(s->call)) {
        (void)cli_fail("%s", m->text);
        return;
    }
    o = output_object();
    output_add_text(o, "id", m->from);
    output_add_null(o, "reply");
    output_add_null(o, "reply_base64");
    output_add_text(o, "error", m->text);
    output_add_text(o, "code", m->error);
    output_json(o);
}

static void print_reply(struct session *s, const char *from)
{
    const char *data = s->len > 0 ? s->data : "";
    cJSON *o;

    if (ctl_json(s->call)) {
        o = output_object();
        output_add_text(o, "id", from);
        output_add_bytes(o, "reply", data, s->len);
        output_add_null(o, "error");
        output_json(o);
        return;
    }
    if (s->broadcast) {
        (void)printf("%s\t", from);
    }
    (void)fwrite(data, 1, s->len, stdout);
    (void)putchar('\n');
    (void)fflush(stdout);
}

static int take_item(struct session *s, const Hedge__V1__StreamItem *m,
                     struct hedge_error *e)
{
    char *more;

    if (m->error[0] != '\0') {
        print_failure(s, m);
        return 0;
    }
    if (m->open != NULL) {
        return 0;
    }
    if (m->data.len > MESSAGE_MAX - s->len) {
        return error_set(e, HEDGE_EPROTO, "a reply of more than 64 MiB");
    }
    more = mem_realloc(s->data, s->len + m->data.len + 1);
    if (more == NULL) {
        return error_set(e, HEDGE_ENOMEM, "out of memory");
    }
    s->data = more;
    if (m->data.len > 0) {
        memcpy(s->data + s->len, m->data.data, m->data.len);
        s->len += m->data.len;
    }
    if (!m->more) {
        print_reply(s, m->from);
        s->len = 0;
    }
    return ferror(stdout)
               ? error_set(e, HEDGE_EIO, "standard output cannot be written")
               : 0;
}

static int take_items(struct session *s, struct hedge_error *e)
{
    for (;;) {
        Hedge__V1__StreamItem *m;
        struct rpc_msg msg;
        int rv = rpc_stream_recv(s->stream, RPC_NO_TIMEOUT, &msg, e);

        if (rv != 0) {
            return rv == HEDGE_EEND ? 0 : rv;
        }
        m = pb_from_msg_large(&hedge__v1__stream_item__descriptor, &msg, e);
        rv = m != NULL ? take_item(s, m, e) : e->code;
        pb_free(m);
        if (rv != 0) {
            return rv;
        }
    }
}

/* --- the commands -----------------------------------------------------------
 */

static int send_open(struct session *s, struct client *c)
{
    Hedge__V1__StreamItem item = HEDGE__V1__STREAM_ITEM__INIT;
    Hedge__V1__StreamOpen open = HEDGE__V1__STREAM_OPEN__INIT;

    item.open = &open;
    open.skip_self = skip_self;
    open.timeout_ms = client_left_ms(c);
    return pb_send(s->stream, &item.base, open.timeout_ms);
}

static int run_session(struct session *s, struct client *c)
{
    struct hedge_error e = {.code = 0};
    pthread_t sender;
    int rv = rpc_stream_open(client_channel(c),
                             s->broadcast ? "/hedge.v1.Messages/StreamBroadcast"
                                          : "/hedge.v1.Messages/StreamLeader",
                             RPC_NO_TIMEOUT, &s->stream);

    if (rv != 0) {
        (void)error_set(&e, rv, "%s", hedge_strerror(rv));
        return ctl_error(&e);
    }
    /* If that fails, receiving says why. */
    if (send_open(s, c) == 0 &&
        pthread_create(&sender, NULL, send_lines, s) != 0) {
        return cli_fail("no thread for a stream");
    }
    rv = take_items(s, &e);
    if (atomic_load(&s->refused) != CLI_DONE) {
        return atomic_load(&s->refused);
    }
    if (rv != 0) {
        return ctl_error(&e);
    }
    return s->failed ? CLI_FAILED : CLI_DONE;
}

static int run_stream(const struct cli_call *call, bool broadcast)
{
    struct session s = {.call = call, .broadcast = broadcast};
    struct client *c;
    int status = ctl_connect(call->ctx, &c);

    if (status != CLI_DONE) {
        return status;
    }
    status = run_session(&s, c);
    (void)fflush(stdout);
    /* The sending thread may stand in a read; nothing is torn down under it. */
    _Exit(status);
}

static int run_stream_send(const struct cli_call *call)
{
    return run_stream(call, false);
}

static int run_stream_broadcast(const struct cli_call *call)
{
    return run_stream(call, true);
}

static const struct cli_option broadcast_options[] = {
    {.name = "--skip-self",
     .kind = CLI_FLAG,
     .out = &skip_self,
     .help = "Not to the node that is asked."},
    {.name = NULL}};

const struct cli_command msg_stream_commands[] = {
    {.name = "stream-send",
     .operands = "",
     .help = "Send lines to the leader and print its replies as they come.",
     .details = "Each line of standard input is a message, each reply a line. "
                "Ends when the input has ended and all replies are there.",
     .run = run_stream_send},
    {.name = "stream-broadcast",
     .operands = "",
     .help = "The same with all members; the member's id stands before each "
             "reply.",
     .options = broadcast_options,
     .run = run_stream_broadcast},
    {.name = NULL}};
