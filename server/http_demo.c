/* http_demo.c - what the HTTP server can be asked for. */
#include "server/http_internal.h"

#include "cluster/stores/store_json.h"
#include "server/http_parse.h"
#include "store/base/error.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <string.h>

#define RECORD_MAX ((size_t)1 << 20) /* Of a line in /sos. */

/* --- /sos: lines into a store, and back --- */

struct spill {
    struct hedge_sos *sos;
    struct hedge_sos_writer *writer;
    struct http_cutter cutter;
    struct hedge_manifest written;
};

static int write_line(void *ctx, const char *line, size_t len)
{
    struct http_request *r = ctx;
    struct spill *s = r->state;
    int rv = hedge_sos_write(s->writer, line, len);

    return rv == 0 ? 0
                   : error_set(&r->error, rv, "%s",
                               hedge_sos_writer_error(s->writer));
}

static int spill_open(struct http_request *r)
{
    const char *name = http_query(r, "name");
    struct spill *s = mem_calloc(1, sizeof *s);
    int rv;

    if (s == NULL) {
        return error_set(&r->error, HEDGE_ENOMEM, "no memory for a writer");
    }
    http_cutter_init(&s->cutter, RECORD_MAX, write_line, r);
    r->state = s;
    if (name == NULL || name[0] == '\0') {
        return error_set(&r->error, HEDGE_EINVAL, "wanted: /sos?name=NAME");
    }
    rv = hedge_sos_open(r->node, name, NULL, HTTP_CALL_MS, &s->sos, &r->error);
    return rv != 0 ? rv : hedge_sos_writer_open(s->sos, &s->writer, &r->error);
}

static int spill_take(struct http_request *r, const char *data, size_t len)
{
    struct spill *s;
    int rv = r->state != NULL ? 0 : spill_open(r);

    if (rv == 0) {
        s = r->state;
        rv = http_cutter_feed(&s->cutter, data, len);
        http_charge(r, s->cutter.begun.len);
    }
    if (rv == HEDGE_ENOMEM && r->error.code == 0) {
        (void)error_set(&r->error, rv, "no memory for a line");
    }
    return rv;
}

/* Everything in the store is read, and thereby checked. */
static int read_back(struct http_request *r, struct spill *s)
{
    struct hedge_sos_reader *reader;
    struct hedge_piece p;
    uint64_t records = 0;
    int rv = hedge_sos_reader_open(s->sos, 0, &reader, &r->error);

    if (rv != 0) {
        return rv;
    }
    while ((rv = hedge_sos_next(reader, HTTP_CALL_MS, &p)) == 0) {
        records += p.last;
    }
    if (rv == HEDGE_EEND && records >= s->written.records) {
        rv = 0;
    } else if (rv == HEDGE_EEND) {
        rv = error_set(&r->error, HEDGE_ELOST,
                       "%llu records were written and %llu came back",
                       (unsigned long long)s->written.records,
                       (unsigned long long)records);
    } else {
        (void)error_set(&r->error, rv, "%s", hedge_sos_reader_error(reader));
    }
    hedge_sos_reader_close(reader);
    return rv;
}

static int spill_finish(struct http_request *r, char **json)
{
    struct hedge_sos_writer *w;
    struct spill *s;
    int rv = r->state != NULL ? 0 : spill_open(r);

    s = r->state;
    rv = rv != 0 ? rv : http_cutter_end(&s->cutter);
    if (rv != 0) {
        return rv;
    }
    w = s->writer;
    s->writer = NULL;
    rv = hedge_sos_writer_close(w, &s->written, &r->error);
    rv = rv != 0 ? rv : read_back(r, s);
    return rv != 0 ? rv
                   : store_stat_json(r->node, http_query(r, "name"),
                                     HTTP_CALL_MS, json, &r->error);
}

static void spill_answer(struct http_request *r)
{
    char *json = NULL;
    struct strbuf b;
    int rv = spill_finish(r, &json);

    if (rv != 0) {
        http_answer_error(r, rv, r->error.text);
        return;
    }
    strbuf_init(&b);
    strbuf_addf(&b, "%s\n", json);
    cJSON_free(json);
    http_answer_strbuf(r, MHD_HTTP_OK, "application/json", &b);
}

/* A writer that is still there has failed, which was told: its store keeps what
 * is whole. Or the client has gone before the end of its body: whoever reads
 * the store is not to take the beginning for all of it. */
static void spill_end(struct http_request *r)
{
    struct spill *s = r->state;

    if (s != NULL) {
        if (s->writer != NULL && r->status != 0) {
            (void)hedge_sos_writer_close(s->writer, NULL, NULL);
        } else {
            hedge_sos_writer_abort(s->writer);
        }
        hedge_sos_close(s->sos);
        http_cutter_release(&s->cutter);
        mem_free(s);
        r->state = NULL;
    }
}

/* --- messages --- */

static void free_reply(void *arg)
{
    hedge_reply_free(arg);
}

static void send_answer(struct http_request *r)
{
    struct hedge_reply *reply;
    int rv = hedge_send(r->node, r->body.data, r->body.len, HTTP_CALL_MS,
                        &reply, &r->error);

    msg_buf_clear(&r->body);
    if (rv != 0) {
        http_answer_error(r, rv, r->error.text);
    } else {
        http_answer_bytes(r, HTTP_BYTES, reply->data, reply->len, free_reply,
                          reply);
    }
}

struct lines {
    struct http_request *request;
    struct strbuf text;
};

static int too_long(struct http_request *r)
{
    char size[UNITS_SIZE_TEXT];

    return error_set(&r->error, HEDGE_ETOOBIG, "the replies are over %s",
                     units_format_size(HTTP_BODY_MAX, size));
}

/* "ID<TAB>reply-or-error". A reply counts until it is a line, and then the line
 * does. */
static void add_reply(void *ctx, const struct hedge_reply *reply)
{
    const char *text = reply->error != 0 ? reply->error_text : reply->data;
    size_t len = reply->error != 0 ? strlen(reply->error_text) : reply->len;
    struct lines *l = ctx;

    if (l->text.len > HTTP_BODY_MAX) {
        return;
    }
    strbuf_addf(&l->text, "%s\t", reply->id);
    http_add_escaped(&l->text, text, len);
    strbuf_add(&l->text, "\n", 1);
    http_charge(l->request, l->text.len);
}

static void broadcast_answer(struct http_request *r)
{
    struct lines l = {.request = r};
    const struct hedge_broadcast_options o = {.on_reply = add_reply, .ctx = &l};
    int rv;

    strbuf_init(&l.text);
    rv = hedge_broadcast(r->node, r->body.data, r->body.len, &o, HTTP_CALL_MS,
                         NULL, &r->error);
    msg_buf_clear(&r->body);
    rv = rv == 0 && l.text.len > HTTP_BODY_MAX ? too_long(r) : rv;
    if (rv == 0) {
        http_answer_strbuf(r, MHD_HTTP_OK, HTTP_TEXT, &l.text);
    } else {
        strbuf_release(&l.text);
        http_answer_error(r, rv, r->error.text);
    }
}

/* --- streams of one message --- */

/* Everything that comes back, a line each: replies, and who has failed. `one`:
 * there is one far end, whose failure is the stream's. */
static int gather(struct http_request *r, struct hedge_stream *s, bool one,
                  struct strbuf *b)
{
    struct hedge_message m = {.data = r->body.len > 0 ? r->body.data
                                                      : (const void *)"",
                              .len = r->body.len};
    int rv = hedge_stream_send(s, &m, HTTP_CALL_MS);

    rv = rv != 0 ? rv : hedge_stream_close_send(s);
    msg_buf_clear(&r->body);
    while (rv == 0) {
        rv = hedge_stream_recv(s, HTTP_CALL_MS, &m, &r->error);
        if (rv == 0) {
            http_add_escaped(b, m.data, m.len);
            strbuf_add(b, "\n", 1);
        } else if (rv != HEDGE_EEND && !one && m.from != NULL &&
                   m.from[0] != '\0') {
            strbuf_addf(b, "%s\t", m.from);
            http_add_escaped(b, r->error.text, strlen(r->error.text));
            strbuf_add(b, "\n", 1);
            rv = 0;
        }
        http_charge(r, b->len);
        if (b->len > HTTP_BODY_MAX) {
            rv = too_long(r);
        }
    }
    return rv == HEDGE_EEND ? 0 : rv;
}

static void stream_answer(struct http_request *r, struct hedge_stream *s,
                          bool one, int rv)
{
    struct strbuf b;

    strbuf_init(&b);
    if (rv == 0) {
        rv = gather(r, s, one, &b);
        hedge_stream_close(s);
    }
    if (rv == 0) {
        http_answer_strbuf(r, MHD_HTTP_OK, HTTP_TEXT, &b);
    } else {
        strbuf_release(&b);
        http_answer_error(r, rv, r->error.text);
    }
}

static void stream_send_answer(struct http_request *r)
{
    struct hedge_stream *s = NULL;
    int rv = hedge_stream_to_leader(r->node, HTTP_CALL_MS, &s, &r->error);

    stream_answer(r, s, true, rv);
}

static void stream_broadcast_answer(struct http_request *r)
{
    struct hedge_stream *s = NULL;
    int rv =
        hedge_stream_broadcast(r->node, false, HTTP_CALL_MS, &s, &r->error);

    stream_answer(r, s, false, rv);
}

/* --- the log --- */

static void put_answer(struct http_request *r)
{
    struct http_pair p;
    int rv;

    if (!http_split_pair((const char *)r->body.data, r->body.len, &p)) {
        http_answer_error(r, HEDGE_EINVAL, "wanted: a body \"KEY VALUE\"");
        return;
    }
    rv = hedge_put(r->node, p.key, p.key_len, p.value, p.value_len, 0,
                   HTTP_CALL_MS, NULL, &r->error);
    if (rv == 0) {
        http_answer_text(r, MHD_HTTP_OK, "%s", "");
    } else {
        http_answer_error(r, rv, r->error.text);
    }
}

static void free_entries(void *arg)
{
    hedge_entries_free(arg);
}

static void get_answer(struct http_request *r)
{
    struct hedge_entries *found = NULL;
    int rv =
        hedge_get(r->node, r->body.len > 0 ? r->body.data : (const void *)"",
                  r->body.len, HEDGE_GET_LATEST, &found, &r->error);

    msg_buf_clear(&r->body);
    rv = rv != 0 ? rv : http_charge_wait(r, found->entry[0].value_len);
    if (rv == 0) {
        http_answer_bytes(r, HTTP_BYTES, found->entry[0].value,
                          found->entry[0].value_len, free_entries, found);
    } else {
        hedge_entries_free(found);
        http_answer_error(r, rv, r->error.text);
    }
}

/* --- all of them --- */

#define PROBE "GET,HEAD,POST"
#define ASK "GET,HEAD,POST,PUT"
/* Of the Go library's demo, which looks at no method; but HEAD changes nothing,
 * and is not taken for one that does. */
#define DO "GET,POST,PUT"

const struct http_route http_routes[] = {
    {"/put", "", DO, NULL, put_answer, NULL},
    {"/get", "", ASK, NULL, get_answer, NULL},
    {"/send", "", DO, NULL, send_answer, NULL},
    {"/broadcast", "", DO, NULL, broadcast_answer, NULL},
    {"/streamsend", "", DO, NULL, stream_send_answer, NULL},
    {"/streambroadcast", "", DO, NULL, stream_broadcast_answer, NULL},
    {"/sos", "?name=NAME", DO, spill_take, spill_answer, spill_end},
    {"/livez", "", PROBE, NULL, http_livez, NULL},
    {"/readyz", "", PROBE, NULL, http_readyz, NULL},
    {"/metrics", "", PROBE, NULL, http_metrics, NULL},
};
const size_t http_n_routes = sizeof http_routes / sizeof http_routes[0];
