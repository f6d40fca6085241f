/* msg_cmds.c - hedgectl send and broadcast. */
#include "cluster/pb.h"
#include "proto/messages.pb-c.h"
#include "store/base/mem.h"
#include "tools/ctl.h"
#include "tools/output.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECE ((size_t)1 << 20)
#define MESSAGE_MAX ((size_t)64 << 20)
#define TO_MAX 1024

static int retries;
static bool skip_self;
static const char *to;

/* --- what is sent -----------------------------------------------------------
 */

struct payload {
    char *data;
    size_t len;
};

static int read_input(struct payload *p)
{
    size_t cap = 0, n;

    do {
        if (p->len == cap) {
            char *more;

            cap = cap == 0 ? PIECE : cap * 2;
            more = mem_realloc(p->data, cap);
            if (more == NULL) {
                return cli_fail("out of memory");
            }
            p->data = more;
        }
        n = fread(p->data + p->len, 1, cap - p->len, stdin);
        p->len += n;
        if (p->len > MESSAGE_MAX) {
            return cli_usage("a message has at most 64 MiB");
        }
    } while (n > 0);
    return ferror(stdin) ? cli_fail("standard input cannot be read") : CLI_DONE;
}

/* The operand, or what stands on standard input. */
static int read_payload(const struct cli_call *call, struct payload *p)
{
    const char *text = call->operands[0];

    *p = (struct payload){.data = NULL};
    if (strcmp(text, "-") == 0) {
        return read_input(p);
    }
    p->len = strlen(text);
    p->data = mem_strdup(text);
    return p->data != NULL ? CLI_DONE : cli_fail("out of memory");
}

/* `m` with a piece in `data`, and then the same with the next. If the stream
 * has broken, receiving says why. */
static void send_pieces(struct client *c, struct rpc_stream *s,
                        ProtobufCMessage *m, ProtobufCBinaryData *data,
                        const struct payload *p)
{
    size_t at = 0;
    int rv;

    do {
        size_t left = p->len - at;

        data->len = left < PIECE ? left : PIECE;
        data->data = data->len > 0 ? (uint8_t *)p->data + at : NULL;
        at += data->len;
        rv = pb_send(s, m, client_left_ms(c));
    } while (rv == 0 && at < p->len);
    if (rv == 0) {
        (void)rpc_stream_close_send(s);
    }
}

/* --- send -------------------------------------------------------------------
 */

/* What is kept of a reply, for JSON. */
static int keep_reply(struct payload *r, const ProtobufCBinaryData *piece,
                      struct hedge_error *e)
{
    char *more;

    if (piece->len > MESSAGE_MAX - r->len) {
        return error_set(e, HEDGE_EPROTO, "the reply is longer than 64 MiB");
    }
    if (piece->len > 0) {
        more = mem_realloc(r->data, r->len + piece->len);
        if (more == NULL) {
            return error_set(e, HEDGE_ENOMEM, "out of memory");
        }
        memcpy(more + r->len, piece->data, piece->len);
        r->data = more;
        r->len += piece->len;
    }
    return 0;
}

static void print_kept(const char *id, const struct payload *r)
{
    cJSON *o = output_object();

    if (id != NULL && id[0] != '\0') {
        output_add_text(o, "id", id);
    } else {
        output_add_null(o, "id");
    }
    output_add_bytes(o, "reply", r->len > 0 ? r->data : "", r->len);
    output_json(o);
}

/* As one object, when it is whole. */
static int print_reply_json(struct client *c, struct rpc_stream *s,
                            struct hedge_error *e)
{
    struct payload whole = {.data = NULL};
    struct rpc_msg msg;
    char *id = NULL;
    int rv;

    while ((rv = rpc_stream_recv(s, client_left_ms(c), &msg, e)) == 0) {
        Hedge__V1__SendReply *m =
            pb_from_msg_large(&hedge__v1__send_reply__descriptor, &msg, e);

        rv = m != NULL ? keep_reply(&whole, &m->data, e) : e->code;
        if (rv == 0 && id == NULL) {
            id = mem_strdup(m->id);
        }
        pb_free(m);
        if (rv != 0) {
            break;
        }
    }
    if (rv == HEDGE_EEND) {
        print_kept(id, &whole);
        rv = 0;
    }
    mem_free(id);
    mem_free(whole.data);
    return rv;
}

/* Byte for byte, as it comes. */
static int print_reply(struct client *c, struct rpc_stream *s,
                       struct hedge_error *e)
{
    char last = '\0';
    int rv;

    for (;;) {
        Hedge__V1__SendReply *m;
        struct rpc_msg msg;

        rv = rpc_stream_recv(s, client_left_ms(c), &msg, e);
        if (rv != 0) {
            break;
        }
        m = pb_from_msg_large(&hedge__v1__send_reply__descriptor, &msg, e);
        if (m == NULL) {
            return e->code;
        }
        (void)fwrite(m->data.data, 1, m->data.len, stdout);
        if (m->data.len > 0) {
            last = (char)m->data.data[m->data.len - 1];
        }
        pb_free(m);
    }
    if (rv == HEDGE_EEND) {
        output_end_line(last);
        rv = 0;
    }
    return rv;
}

static int run_send(const struct cli_call *call)
{
    Hedge__V1__SendRequest m = HEDGE__V1__SEND_REQUEST__INIT;
    struct hedge_error e = {.code = 0};
    struct rpc_stream *s;
    struct payload p;
    struct client *c;
    int status = read_payload(call, &p), rv;

    status = status != CLI_DONE ? status : ctl_connect(call->ctx, &c);
    if (status != CLI_DONE) {
        mem_free(p.data);
        return status;
    }
    m.retries = retries;
    m.len = p.len;
    rv = rpc_stream_open(client_channel(c), "/hedge.v1.Messages/Send",
                         client_left_ms(c), &s);
    if (rv != 0) {
        (void)error_set(&e, rv, "%s", hedge_strerror(rv));
    } else {
        send_pieces(c, s, &m.base, &m.data, &p);
        rv =
            ctl_json(call) ? print_reply_json(c, s, &e) : print_reply(c, s, &e);
        rpc_stream_free(s);
    }
    client_free(c);
    mem_free(p.data);
    if (rv != 0) {
        return ctl_error(&e);
    }
    return fflush(stdout) == 0 ? CLI_DONE
                               : cli_fail("standard output cannot be written");
}

/* --- broadcast --------------------------------------------------------------
 */

struct answers {
    const struct cli_call *call;
    struct table *table; /* NULL: JSON. */
    struct payload reply;
    uint64_t whole; /* What its first piece said of its length. */
    bool failed;
};

/* On one line of a terminal. */
static char *printable(const struct payload *p)
{
    char *text = mem_strndup(p->len > 0 ? p->data : "", p->len);

    for (size_t i = 0; text != NULL && i < p->len; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) {
            text[i] = text[i] == '\n' && i + 1 == p->len ? '\0' : ' ';
        }
    }
    return text;
}

static void print_answer(struct answers *a, const Hedge__V1__BroadcastReply *m)
{
    bool failed = m->error[0] != '\0';
    char *text;
    cJSON *o;

    a->failed = a->failed || failed;
    if (a->table != NULL) {
        text = failed ? NULL : printable(&a->reply);
        table_text(a->table, m->id);
        table_text(a->table, text != NULL ? text : "");
        table_text(a->table, failed ? m->text : "");
        mem_free(text);
        return;
    }
    o = output_object();
    output_add_text(o, "id", m->id);
    if (failed) {
        output_add_null(o, "reply");
        output_add_null(o, "reply_base64");
        output_add_text(o, "error", m->text);
        output_add_text(o, "code", m->error);
    } else {
        output_add_bytes(o, "reply", a->reply.len > 0 ? a->reply.data : "",
                         a->reply.len);
        output_add_null(o, "error");
    }
    output_json(o);
}

static int take_answer(struct answers *a, const Hedge__V1__BroadcastReply *m,
                       struct hedge_error *e)
{
    struct payload *r = &a->reply;

    if (m->len > MESSAGE_MAX || (r->len > 0 && m->len != a->whole) ||
        m->data.len > m->len - r->len) {
        return error_set(e, HEDGE_EPROTO, "node %s sent no sound reply", m->id);
    }
    a->whole = m->len;
    if (r->len == 0 && m->len > 0) {
        mem_free(r->data);
        r->data = mem_alloc(m->len);
        if (r->data == NULL) {
            return error_set(e, HEDGE_ENOMEM, "out of memory");
        }
    }
    if (m->data.len > 0) {
        memcpy(r->data + r->len, m->data.data, m->data.len);
        r->len += m->data.len;
    }
    if (r->len == m->len) {
        print_answer(a, m);
        r->len = 0;
    }
    return 0;
}

static int take_answers(struct client *c, struct rpc_stream *s,
                        struct answers *a, struct hedge_error *e)
{
    for (;;) {
        Hedge__V1__BroadcastReply *m;
        struct rpc_msg msg;
        int rv = rpc_stream_recv(s, client_left_ms(c), &msg, e);

        if (rv != 0) {
            return rv == HEDGE_EEND ? 0 : rv;
        }
        m = pb_from_msg_large(&hedge__v1__broadcast_reply__descriptor, &msg, e);
        rv = m != NULL ? take_answer(a, m, e) : e->code;
        pb_free(m);
        if (rv != 0) {
            return rv;
        }
    }
}

/* The ids in --to, which is cut up. */
static int split_ids(char *list, char **ids, size_t *n)
{
    char *rest = list;

    *n = 0;
    while (rest != NULL) {
        char *id = strsep(&rest, ",");

        if (id[0] == '\0' || *n == TO_MAX) {
            return cli_usage("--to: '%s' is not a list of node ids", to);
        }
        ids[(*n)++] = id;
    }
    return CLI_DONE;
}

static int spread(const struct cli_call *call, struct client *c,
                  Hedge__V1__BroadcastRequest *m, const struct payload *p)
{
    struct answers a = {.call = call};
    struct hedge_error e = {.code = 0};
    struct rpc_stream *s;
    int rv = rpc_stream_open(client_channel(c), "/hedge.v1.Messages/Broadcast",
                             client_left_ms(c), &s);

    if (rv != 0) {
        (void)error_set(&e, rv, "%s", hedge_strerror(rv));
        return ctl_error(&e);
    }
    a.table = ctl_json(call) ? NULL : table_new("ID|REPLY|ERROR");
    send_pieces(c, s, &m->base, &m->data, p);
    rv = take_answers(c, s, &a, &e);
    rpc_stream_free(s);
    if (a.table != NULL) {
        table_print(a.table);
    }
    mem_free(a.reply.data);
    if (rv != 0) {
        return ctl_error(&e);
    }
    return a.failed ? CLI_FAILED : CLI_DONE;
}

static int run_broadcast(const struct cli_call *call)
{
    Hedge__V1__BroadcastRequest m = HEDGE__V1__BROADCAST_REQUEST__INIT;
    char *ids[TO_MAX], *list = to != NULL ? mem_strdup(to) : NULL;
    struct payload p = {.data = NULL};
    struct client *c = NULL;
    int status = CLI_DONE;

    m.skip_self = skip_self;
    if (list != NULL) {
        status = split_ids(list, ids, &m.n_to);
        m.to = ids;
    }
    status = status != CLI_DONE ? status : read_payload(call, &p);
    status = status != CLI_DONE ? status : ctl_connect(call->ctx, &c);
    m.len = p.len;
    status = status != CLI_DONE ? status : spread(call, c, &m, &p);
    client_free(c);
    mem_free(p.data);
    mem_free(list);
    return status;
}

/* --- the table --------------------------------------------------------------
 */

static bool parse_retries(const char *text, void *out, char why[CLI_WHY_MAX])
{
    char *end;
    long n = strtol(text, &end, 10);
    int v = (int)n;

    if (end == text || *end != '\0' || n < -1000000 || n > 1000000) {
        (void)snprintf(why, CLI_WHY_MAX, "'%s' is not a number", text);
        return false;
    }
    memcpy(out, &v, sizeof v);
    return true;
}

static const struct cli_option send_options[] = {
    {.name = "--retries",
     .value = "N",
     .kind = CLI_PARSED,
     .parse = parse_retries,
     .out = &retries,
     .fallback = "0",
     .help = "Send it again after a failure that may pass, up to N times; "
             "negative: until the timeout. It may be handled more than once."},
    {.name = NULL}};

static const struct cli_option broadcast_options[] = {
    {.name = "--skip-self",
     .kind = CLI_FLAG,
     .out = &skip_self,
     .help = "Not to the node that is asked."},
    {.name = "--to",
     .value = "ID,..",
     .kind = CLI_TEXT,
     .out = &to,
     .help = "Only to these members."},
    {.name = NULL}};

const struct cli_command msg_commands[] = {
    {.name = "send",
     .operands = "MSG|-",
     .help = "Send a message to the leader and print its reply.",
     .details = "- reads the message from standard input, up to 64 MiB. The "
                "reply is printed byte for byte, as JSON in one object.",
     .options = send_options,
     .operands_min = 1,
     .operands_max = 1,
     .run = run_send},
    {.name = "broadcast",
     .operands = "MSG|-",
     .help = "Send a message to all members and print their replies.",
     .details = "As JSON each reply is printed when it comes. The exit status "
                "is 1 when any member has failed.",
     .options = broadcast_options,
     .operands_min = 1,
     .operands_max = 1,
     .run = run_broadcast},
    {.name = NULL}};
