#include "cluster/foreign/line_calls.h"

#include "cluster/messages/handlers.h"
#include "cluster/log/kv.h"
#include "cluster/foreign/line_put.h"
#include "cluster/foreign/line_sem.h"
#include "cluster/node_internal.h"
#include "cluster/foreign/serve_lines.h"

#include "store/base/clock.h"
#include "store/base/mem.h"

#include <cjson/cJSON.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

void line_call_init(struct line_call *c, struct hedge_node *n, int fd,
                    bool (*gives_way)(void *ctx), void *ctx)
{
    memset(c, 0, sizeof *c);
    c->node = n;
    c->fd = fd;
    c->gives_way = gives_way;
    c->ctx = ctx;
    msg_buf_init(&c->payload, n->messages);
    msg_buf_init(&c->answer, n->messages);
}

void line_call_clear(struct line_call *c)
{
    msg_buf_clear(&c->payload);
    msg_buf_clear(&c->answer);
    memset(&c->reply, 0, sizeof c->reply);
    error_clear(&c->error);
}

void line_call_release(struct line_call *c)
{
    msg_buf_release(&c->payload);
    msg_buf_release(&c->answer);
}

/* Payloads that have been begun may wait for each other: those that came last
 * give up, one after the other, so that the rest get room. */
static int wait_for_room(struct line_call *c, const void *data, size_t len)
{
    uint64_t until = clock_mono_ms() + LINES_ROOM_MS;
    size_t wanted = c->payload.len + len;
    int rv;

    do {
        rv = msg_buf_reserve(&c->payload, wanted, LINES_TURN_MS, NULL);
    } while (rv == HEDGE_EEXHAUSTED && !c->gives_way(c->ctx) &&
             clock_mono_ms() < until);
    rv = rv == 0 ? msg_buf_append(&c->payload, data, len) : rv;
    if (rv != 0) {
        msg_buf_clear(&c->payload);
    }
    return rv;
}

int line_call_payload(void *ctx, enum line_verb verb, const void *data,
                      size_t len)
{
    struct line_call *c = ctx;
    int rv;

    if (verb == LINE_MEM) {
        return 0; /* Nobody's word is taken for who the members are. */
    }
    rv = msg_buf_append(&c->payload, data, len);
    return rv == HEDGE_EEXHAUSTED ? wait_for_room(c, data, len) : rv;
}

/* --- replies --- */

static void reply_ack(struct line_call *c)
{
    c->reply = (struct line_reply){.ack = true};
}

static void reply_no(struct line_call *c)
{
    c->reply = (struct line_reply){.ack = false};
}

static void reply_bytes(struct line_call *c, bool ack, const void *data,
                        size_t len)
{
    c->reply = (struct line_reply){
        .ack = ack, .has_body = true, .body = data, .len = len};
}

static void reply_error(struct line_call *c, bool ack, int code,
                        const char *text)
{
    if (text[0] == '\0') {
        text = hedge_strerror(code);
    }
    if (text != c->error.text) {
        (void)error_set(&c->error, code, "%s", text);
    }
    reply_bytes(c, ack, c->error.text, strlen(c->error.text));
}

/* --- messages --- */

struct waiting {
    struct line_call *call;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool done;
    int rv;
};

static void on_done(void *arg, int rv, const struct hedge_error *e,
                    struct msg_buf *reply)
{
    struct waiting *w = arg;

    if (rv == 0) {
        msg_buf_release(&w->call->answer);
        msg_buf_move(reply, &w->call->answer);
    } else {
        (void)error_set(&w->call->error, rv, "%s", e->text);
    }
    pthread_mutex_lock(&w->lock);
    w->rv = rv;
    w->done = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

/* A client that has only ended its own sending still waits. */
static bool has_gone(void *arg)
{
    struct waiting *w = arg;
    struct pollfd p = {.fd = w->call->fd};

    return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)) != 0;
}

static int run_handler(struct line_call *c, enum handler_kind kind)
{
    struct waiting w = {.call = c};
    struct handlers_message m = {.kind = kind,
                                 .own = &c->payload,
                                 .from = "",
                                 .timeout_ms = LINES_CALL_MS,
                                 .done = on_done,
                                 .gone = has_gone,
                                 .arg = &w};
    int rv;

    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.wake, NULL);
    rv = handlers_submit(c->node->handlers, &m, &c->error);
    if (rv == 0) {
        pthread_mutex_lock(&w.lock);
        while (!w.done) {
            pthread_cond_wait(&w.wake, &w.lock);
        }
        pthread_mutex_unlock(&w.lock);
        rv = w.rv;
    }
    pthread_cond_destroy(&w.wake);
    pthread_mutex_destroy(&w.lock);
    return rv;
}

static void run_message(struct line_call *c, enum handler_kind kind)
{
    int rv = run_handler(c, kind);

    if (rv == 0) {
        reply_bytes(c, true, c->answer.data, c->answer.len);
    } else {
        reply_error(c, false, rv, c->error.text);
    }
}

static void run_send(struct line_call *c, const struct line *l)
{
    (void)l;
    run_message(c, HANDLER_LEADER);
}

static void run_broadcast(struct line_call *c, const struct line *l)
{
    (void)l;
    run_message(c, HANDLER_BROADCAST);
}

/* --- the cluster --- */

static void run_leader(struct line_call *c, const struct line *l)
{
    (void)l;
    if (hedge_has_lock(c->node, NULL)) {
        reply_ack(c);
    } else {
        reply_no(c);
    }
}

/* {"id":{},...} */
static char *members_json(struct hedge_node *n)
{
    struct hedge_members *m = hedge_members(n);
    cJSON *object = m != NULL ? cJSON_CreateObject() : NULL;
    char *text;
    bool ok = object != NULL;

    for (size_t i = 0; ok && i < m->n; i++) {
        ok = cJSON_AddObjectToObject(object, m->member[i].id) != NULL;
    }
    text = ok ? cJSON_PrintUnformatted(object) : NULL;
    cJSON_Delete(object);
    hedge_members_free(m);
    return text;
}

static void run_hey(struct line_call *c, const struct line *l)
{
    char *json;

    if (l->n_words == 0) {
        reply_ack(c);
        return;
    }
    json = members_json(c->node);
    if (json == NULL || msg_buf_append(&c->answer, json, strlen(json)) != 0) {
        reply_error(c, false, HEDGE_ENOMEM, "");
    } else {
        reply_bytes(c, false, c->answer.data, c->answer.len);
    }
    cJSON_free(json);
}

static void run_members(struct line_call *c, const struct line *l)
{
    (void)l;
    reply_ack(c);
}

/* --- the log --- */

/* The parser copies both texts out of the payload. */
static int put_json(struct line_call *c, unsigned flags)
{
    struct hedge_node *n = c->node;
    struct line_put json;
    struct engine_put put = {.flags = flags};
    size_t copy = c->payload.len;
    int rv = msg_budget_take(n->messages, copy, LINES_ROOM_MS, &c->error);

    if (rv != 0) {
        return rv;
    }
    rv = line_put_parse(c->payload.data, c->payload.len, &json, &c->error);
    if (rv == 0) {
        msg_buf_clear(&c->payload);
        put.key = json.key;
        put.key_len = strlen(json.key);
        put.value = json.value;
        put.value_len = strlen(json.value);
        rv = kv_put(n->kv, &put, 1, true, LINES_CALL_MS, &c->error);
    }
    line_put_release(&json);
    msg_budget_give(n->messages, copy);
    return rv;
}

static void run_put(struct line_call *c, const struct line *l)
{
    bool replace = l->n_words == 1 && strcmp(l->words[0], "noappend") == 0;
    int rv;

    if (!hedge_has_lock(c->node, NULL)) {
        reply_no(c);
        return;
    }
    if (l->n_words == 1 && !replace) {
        reply_error(c, true, HEDGE_EINVAL, "wanted: PUT <base64> [noappend]");
        return;
    }
    rv = put_json(c, replace ? ENGINE_REPLACE : 0);
    if (rv == 0) {
        reply_ack(c);
    } else if (rv == HEDGE_ENOTLEADER) {
        reply_no(c);
    } else {
        reply_error(c, true, rv, c->error.text);
    }
}

/* --- semaphores --- */

static void reply_done(struct line_call *c, int rv)
{
    if (rv == 0) {
        reply_ack(c);
    } else {
        reply_error(c, true, rv, c->error.text);
    }
}

static void run_create(struct line_call *c, const struct line *l)
{
    reply_done(c, line_sem_create(c->node, l->words[0], l->words[1],
                                  l->words[2], LINES_CALL_MS, &c->error));
}

static void run_acquire(struct line_call *c, const struct line *l)
{
    char text[HEDGE_ERROR_TEXT_MAX];
    int rv = line_sem_acquire(c->node, l->words[0], l->words[1], LINES_CALL_MS,
                              &c->error);

    if (rv != 0) {
        (void)snprintf(text, sizeof text, "%d:%.400s", line_sem_may_retry(rv),
                       c->error.text);
        (void)error_set(&c->error, rv, "%s", text);
    }
    reply_done(c, rv);
}

static void run_release(struct line_call *c, const struct line *l)
{
    reply_done(c, line_sem_release(c->node, l->words[0], l->words[1],
                                   LINES_CALL_MS, &c->error));
}

/* --- all of them --- */

static const struct request {
    void (*run)(struct line_call *c, const struct line *l);
    bool ack_errors; /* Errors come as "ACK <text>". */
    const char *error_prefix;
} requests[LINE_VERBS] = {
    [LINE_LDR] = {run_leader, false, ""},
    [LINE_PUT] = {run_put, true, ""},
    [LINE_SND] = {run_send, false, ""},
    [LINE_ALL] = {run_broadcast, false, ""},
    [LINE_HEY] = {run_hey, false, ""},
    [LINE_MEM] = {run_members, false, ""},
    [LINE_SEM] = {run_create, true, ""},
    [LINE_SEA] = {run_acquire, true, "0:"},
    [LINE_SER] = {run_release, true, ""},
};

void line_call_run(struct line_call *c, const struct line *l)
{
    const struct request *r = l->verb < LINE_VERBS ? &requests[l->verb] : NULL;
    char text[LINE_TEXT_MAX + 8];

    if (l->error == 0) {
        r->run(c, l);
        return;
    }
    (void)snprintf(text, sizeof text, "%s%s", r != NULL ? r->error_prefix : "",
                   l->text);
    reply_error(c, r != NULL && r->ack_errors, l->error, text);
}
