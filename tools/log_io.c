#include "tools/log_io.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"
#include "tools/log_json.h"
#include "tools/output.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define UNARY_MAX (RPC_MESSAGE_MAX - ((size_t)64 << 10))
#define CHUNK_BYTES ((size_t)1 << 20)
/* A batch of an import: as much as one transaction likes to have. */
#define IMPORT_PUTS 512u
#define IMPORT_BYTES ((size_t)1 << 20)
#define LINE_MAX_BYTES ((size_t)256 << 20)

static int no_memory(struct hedge_error *e)
{
    return error_set(e, HEDGE_ENOMEM, "out of memory");
}

/* --- messages ---------------------------------------------------------------
 */

static int unpack(struct rpc_msg *msg, const ProtobufCMessageDescriptor *type,
                  void **out, struct hedge_error *e)
{
    unsigned char *bytes;
    size_t len = 0;

    *out = NULL;
    if (client_message_bytes(msg, &bytes, &len) != 0) {
        return no_memory(e);
    }
    *out = protobuf_c_message_unpack(type, NULL, len, bytes);
    mem_free(bytes);
    return *out != NULL
               ? 0
               : error_set(e, HEDGE_EPROTO, "the node's answer is no %s",
                           type->short_name);
}

static int pack(const ProtobufCMessage *m, unsigned char **out, size_t *len,
                struct hedge_error *e)
{
    *len = protobuf_c_message_get_packed_size(m);
    *out = mem_alloc(*len > 0 ? *len : 1);
    if (*out == NULL) {
        return no_memory(e);
    }
    (void)protobuf_c_message_pack(m, *out);
    return 0;
}

static int send_message(struct rpc_stream *s, const ProtobufCMessage *m,
                        uint64_t timeout_ms, struct hedge_error *e)
{
    struct rpc_out out = {0};
    unsigned char *bytes;
    int rv = pack(m, &bytes, &out.head_len, e);

    if (rv != 0) {
        return rv;
    }
    out.head = bytes;
    rv = rpc_stream_send(s, &out, timeout_ms);
    mem_free(bytes);
    return rv;
}

/* --- put --------------------------------------------------------------------
 */

static int put_large(struct client *c, unsigned char *bytes, size_t len,
                     uint64_t timeout_ms, struct rpc_msg *msg,
                     struct hedge_error *e)
{
    struct rpc_stream *s;
    int rv = rpc_stream_open(client_channel(c), "/hedge.v1.Log/PutLarge",
                             timeout_ms, &s);

    if (rv != 0) {
        return error_set(e, rv, "cannot open a stream to %s",
                         client_address(c));
    }
    for (size_t at = 0; rv == 0 && at < len; at += CHUNK_BYTES) {
        Hedge__V1__LogChunk m = HEDGE__V1__LOG_CHUNK__INIT;

        m.data.data = bytes + at;
        m.data.len = len - at < CHUNK_BYTES ? len - at : CHUNK_BYTES;
        rv = send_message(s, &m.base, timeout_ms, e);
    }
    if (rv == 0) {
        (void)rpc_stream_close_send(s);
    }
    rv = rpc_stream_recv(s, timeout_ms, msg, e); /* Also why it failed. */
    rpc_stream_free(s);
    return rv == HEDGE_EEND ? error_set(e, HEDGE_EPROTO, "no answer to a put")
                            : rv;
}

int log_put(struct client *c, Hedge__V1__LogPutRequest *m, uint64_t timeout_ms,
            Hedge__V1__LogPutReply **out, struct hedge_error *e)
{
    struct rpc_msg msg;
    unsigned char *bytes;
    void *reply;
    size_t len;
    int rv;

    *out = NULL;
    m->timeout_ms = timeout_ms;
    rv = pack(&m->base, &bytes, &len, e);
    if (rv != 0) {
        return rv;
    }
    if (len <= UNARY_MAX) {
        rv = rpc_call(client_channel(c), "/hedge.v1.Log/Put", bytes, len,
                      timeout_ms, &msg, e);
    } else {
        rv = put_large(c, bytes, len, timeout_ms, &msg, e);
    }
    mem_free(bytes);
    if (rv == 0) {
        rv = unpack(&msg, &hedge__v1__log_put_reply__descriptor, &reply, e);
        *out = reply;
    }
    if (rv == 0 && (*out)->n_results != m->n_puts) {
        hedge__v1__log_put_reply__free_unpacked(*out, NULL);
        *out = NULL;
        rv = error_set(e, HEDGE_EPROTO, "an answer to some of the puts only");
    }
    return rv;
}

/* --- query ------------------------------------------------------------------
 */

/* An entry whose value comes in several messages. */
struct joined {
    Hedge__V1__LogPage *page; /* Its last entry is the one. */
    unsigned char *value;
    size_t len;
};

struct query_run {
    log_entry_fn fn;
    int (*on_page)(void *ctx);
    void *ctx;
    struct joined joined;
    int status; /* Of the callbacks. */
};

static int join_begin(struct query_run *r, Hedge__V1__LogPage *page)
{
    Hedge__V1__LogEntry *last = page->entries[page->n_entries - 1];

    r->joined.page = page;
    r->joined.len = last->value.len;
    r->joined.value = mem_alloc(last->value.len);
    if (r->joined.value == NULL) {
        return HEDGE_ENOMEM;
    }
    memcpy(r->joined.value, last->value.data, last->value.len);
    return 0;
}

static int join_more(struct query_run *r, const ProtobufCBinaryData *rest)
{
    unsigned char *more =
        mem_realloc(r->joined.value, r->joined.len + rest->len);

    if (more == NULL) {
        return HEDGE_ENOMEM;
    }
    if (rest->len > 0) {
        memcpy(more + r->joined.len, rest->data, rest->len);
    }
    r->joined.value = more;
    r->joined.len += rest->len;
    return 0;
}

static void join_end(struct query_run *r)
{
    if (r->joined.page != NULL) {
        hedge__v1__log_page__free_unpacked(r->joined.page, NULL);
    }
    mem_free(r->joined.value);
    memset(&r->joined, 0, sizeof r->joined);
}

static void deliver_joined(struct query_run *r)
{
    Hedge__V1__LogPage *page = r->joined.page;
    Hedge__V1__LogEntry entry = *page->entries[page->n_entries - 1];

    entry.value.data = r->joined.value;
    entry.value.len = r->joined.len;
    r->status = r->fn(r->ctx, &entry);
    join_end(r);
}

/* Takes the page. */
static int on_message(struct query_run *r, Hedge__V1__LogPage *page,
                      struct hedge_error *e)
{
    size_t whole = page->n_entries - (page->partial && page->n_entries > 0);
    bool keep = false;
    int rv = 0;

    if (r->joined.page != NULL) {
        rv = join_more(r, &page->rest);
        if (rv == 0 && !page->partial) {
            deliver_joined(r);
        }
    } else {
        for (size_t i = 0; i < whole && r->status == 0; i++) {
            r->status = r->fn(r->ctx, page->entries[i]);
        }
        keep = page->partial && page->n_entries > 0 && r->status == 0;
        rv = keep ? join_begin(r, page) : 0;
    }
    if (!keep) {
        hedge__v1__log_page__free_unpacked(page, NULL);
    }
    if (rv == 0 && r->status == 0 && r->on_page != NULL &&
        r->joined.page == NULL) {
        r->status = r->on_page(r->ctx);
    }
    return rv != 0 ? no_memory(e) : 0;
}

int log_query(struct client *c, const Hedge__V1__LogQuery *q, bool follow,
              uint64_t timeout_ms, log_entry_fn fn, int (*on_page)(void *ctx),
              void *ctx, struct hedge_error *e)
{
    struct query_run r = {.fn = fn, .on_page = on_page, .ctx = ctx};
    struct rpc_stream *s;
    struct rpc_msg msg;
    int rv =
        rpc_stream_open(client_channel(c),
                        follow ? "/hedge.v1.Log/Follow" : "/hedge.v1.Log/Query",
                        RPC_NO_TIMEOUT, &s);

    if (rv != 0) {
        return error_set(e, rv, "cannot open a stream to %s",
                         client_address(c));
    }
    rv = send_message(s, &q->base, timeout_ms, e);
    if (rv == 0) {
        (void)rpc_stream_close_send(s);
    }
    rv = 0; /* After a failure receiving tells why. */
    while (rv == 0 && r.status == 0) {
        void *page;

        rv = rpc_stream_recv(s, follow ? RPC_NO_TIMEOUT : timeout_ms, &msg, e);
        if (rv == 0) {
            rv = unpack(&msg, &hedge__v1__log_page__descriptor, &page, e);
        }
        rv = rv == 0 ? on_message(&r, page, e) : rv;
    }
    if (rv == HEDGE_EEND) {
        rv = r.joined.page == NULL
                 ? 0
                 : error_set(e, HEDGE_EPROTO, "the last value has no end");
    }
    join_end(&r);
    rpc_stream_free(s);
    return rv;
}

/* --- import -----------------------------------------------------------------
 */

struct import {
    const struct ctl *ctl;
    struct client *client;
    uint64_t line, done;
    struct log_line lines[IMPORT_PUTS];
    Hedge__V1__LogPut puts[IMPORT_PUTS];
    Hedge__V1__LogPut *pointers[IMPORT_PUTS];
    size_t n, bytes;
    uint64_t first_line; /* Of the batch. */
};

static int import_flush(struct import *im)
{
    Hedge__V1__LogPutRequest m = HEDGE__V1__LOG_PUT_REQUEST__INIT;
    Hedge__V1__LogPutReply *reply;
    struct hedge_error e = {0};
    int rv = 0;

    if (im->n == 0) {
        return 0;
    }
    m.n_puts = im->n;
    m.puts = im->pointers;
    if (log_put(im->client, &m, im->ctl->timeout_ms, &reply, &e) != 0) {
        (void)cli_fail("lines %llu to %llu: %s",
                       (unsigned long long)im->first_line,
                       (unsigned long long)im->line, e.text);
        rv = ctl_status(e.code);
    } else {
        im->done += im->n;
        hedge__v1__log_put_reply__free_unpacked(reply, NULL);
    }
    for (size_t i = 0; i < im->n; i++) {
        log_line_release(&im->lines[i]);
    }
    im->n = im->bytes = 0;
    return rv;
}

static int import_line(struct import *im, const char *text, size_t len)
{
    char why[LOG_LINE_WHY];
    struct log_line l;
    Hedge__V1__LogPut *p;
    int rv = 0;

    im->line++;
    if (len > 0 && text[len - 1] == '\n') {
        len--;
    }
    if (strspn(text, " \t\r") >= len) {
        return 0;
    }
    if (!log_line_parse(text, len, &l, why)) {
        rv = import_flush(im); /* What stands before it is good. */
        return rv != 0 ? rv
                       : cli_usage("line %llu: %s",
                                   (unsigned long long)im->line, why);
    }
    if (im->n == IMPORT_PUTS ||
        (im->n > 0 && im->bytes + l.key_len + l.value_len > IMPORT_BYTES)) {
        uint64_t line = im->line--;

        rv = import_flush(im);
        im->line = line;
    }
    if (rv != 0) {
        log_line_release(&l);
        return rv;
    }
    if (im->n == 0) {
        im->first_line = im->line;
    }
    im->lines[im->n] = l;
    p = im->pointers[im->n] = &im->puts[im->n];
    hedge__v1__log_put__init(p);
    p->key.data = l.key;
    p->key.len = l.key_len;
    p->value.data = l.value;
    p->value.len = l.value_len;
    im->n++;
    im->bytes += l.key_len + l.value_len;
    return 0;
}

/* The next line, however long and whatever is in it: 0 at the end. */
static int next_line(const struct import *im, struct strbuf *b, bool *end)
{
    int c = EOF;
    char byte;

    b->len = 0;
    flockfile(stdin);
    while (b->len <= LINE_MAX_BYTES && (c = getc_unlocked(stdin)) != EOF) {
        byte = (char)c;
        strbuf_add(b, &byte, 1);
        if (c == '\n' || !strbuf_ok(b)) {
            break;
        }
    }
    funlockfile(stdin);
    *end = c == EOF && b->len == 0;
    if (ferror(stdin)) {
        return cli_fail("standard input: %s", strerror(errno));
    }
    if (!strbuf_ok(b)) {
        return cli_fail("out of memory");
    }
    return b->len > LINE_MAX_BYTES
               ? cli_usage("line %llu: longer than %zu bytes",
                           (unsigned long long)im->line + 1, LINE_MAX_BYTES)
               : 0;
}

static int import_lines(struct import *im)
{
    struct strbuf b;
    bool end = false;
    int rv = 0;

    strbuf_init(&b);
    while (rv == 0) {
        rv = next_line(im, &b, &end);
        if (rv != 0 || end) {
            break;
        }
        rv = import_line(im, b.text, b.len);
    }
    strbuf_release(&b);
    return rv;
}

int log_import(const struct ctl *ctl)
{
    struct import *im = mem_calloc(1, sizeof *im);
    int rv;

    if (im == NULL) {
        return cli_fail("out of memory");
    }
    im->ctl = ctl;
    rv = ctl_connect(ctl, &im->client);
    if (rv == CLI_DONE) {
        rv = import_lines(im);
        rv = rv == 0 ? import_flush(im) : rv;
        if (ctl->output == CTL_JSON) {
            printf("{\"imported\":%llu}\n", (unsigned long long)im->done);
        } else {
            printf("%llu imported\n", (unsigned long long)im->done);
        }
        client_free(im->client);
    }
    for (size_t i = 0; i < im->n; i++) {
        log_line_release(&im->lines[i]);
    }
    mem_free(im);
    return rv;
}
