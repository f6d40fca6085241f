/* tour.c - embed a node and use everything it offers: the log, messages,
 * streams, a semaphore, a store. Start several with the same DIRECTORY and
 * different ports, and they form a cluster.
 *
 *   tour DIRECTORY PORT
 */
#include <hedge/hedge.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_MS 15000

/* --- what others ask of this node ------------------------------------------
 */

/* "sum 1 2 3" is answered with the sum; all else is an error of the handler. */
static int on_leader_message(void *data, const struct hedge_message *m,
                             struct hedge_answer *answer, struct hedge_error *e)
{
    char text[256], out[32];
    long long sum = 0;
    char *p = text, *end;

    (void)data;
    if (m->len >= sizeof text || m->len < 3 || memcmp(m->data, "sum", 3) != 0) {
        (void)snprintf(e->text, sizeof e->text, "say \"sum\" and some numbers");
        return e->code = HEDGE_EINVAL;
    }
    memcpy(text, m->data, m->len);
    text[m->len] = '\0';
    for (p += 3; *p != '\0'; p = end) {
        sum += strtoll(p, &end, 10);
        if (end == p) {
            break;
        }
    }
    (void)snprintf(out, sizeof out, "%lld", sum);
    return hedge_answer_write(answer, out, strlen(out));
}

static int on_broadcast(void *data, const struct hedge_message *m,
                        struct hedge_answer *answer, struct hedge_error *e)
{
    (void)data, (void)e;
    (void)hedge_answer_write(answer, "heard ", 6);
    return hedge_answer_write(answer, m->data, m->len);
}

/* Answers each message of a stream as it comes. */
static int on_stream(void *data, struct hedge_stream *s, struct hedge_error *e)
{
    struct hedge_message m;
    int rv = 0;

    (void)data;
    while (rv == 0) {
        rv = hedge_stream_recv(s, WAIT_MS, &m, e);
        if (rv == 0) {
            rv = hedge_stream_send(s, &m, WAIT_MS);
        }
    }
    return rv == HEDGE_EEND ? 0 : rv;
}

static void on_leader(void *data, bool is_leader, uint64_t token)
{
    (void)data;
    fprintf(stderr, "tour: %s with token %" PRIu64 "\n",
            is_leader ? "leading" : "not leading any more", token);
}

static void on_member(void *data, bool joined, const char *id)
{
    (void)data;
    fprintf(stderr, "tour: %s %s\n", id, joined ? "joined" : "left");
}

/* --- what this node asks of others ------------------------------------------
 */

static int use_log(struct hedge_node *node, struct hedge_error *e)
{
    static const char *const colours[] = {"red", "green", "blue"};
    struct hedge_query q;
    struct hedge_log *log;
    struct hedge_entry x;
    uint64_t revision = 0, first = 0;
    unsigned seen = 0;
    int rv = 0;

    for (unsigned i = 0; rv == 0 && i < 3; i++) {
        rv = hedge_put(node, "colour", 6, colours[i], strlen(colours[i]), 0,
                       WAIT_MS, &revision, e);
        first = first == 0 ? revision : first;
    }
    if (rv != 0) {
        return rv;
    }
    hedge_query_init(&q);
    q.key = "colour";
    q.key_len = 6;
    q.from_revision = first;
    rv = hedge_log_open(node, &q, &log, e);
    if (rv != 0) {
        return rv;
    }
    while ((rv = hedge_log_next(log, WAIT_MS, &x, e)) == 0) {
        printf("colour was %.*s\n", (int)x.value_len, (const char *)x.value);
        seen++;
    }
    hedge_log_close(log);
    return rv == HEDGE_EEND && seen == 3 ? 0 : rv;
}

static int use_messages(struct hedge_node *node, struct hedge_error *e)
{
    struct hedge_replies *all;
    struct hedge_reply *reply;
    int rv =
        hedge_send_to_leader(node, "sum 1 2 39", 10, 10, WAIT_MS, &reply, e);

    if (rv != 0) {
        return rv;
    }
    printf("the leader says %.*s\n", (int)reply->len,
           (const char *)reply->data);
    hedge_reply_free(reply);

    rv = hedge_broadcast(node, "you", 3, NULL, WAIT_MS, &all, e);
    if (rv != 0) {
        return rv;
    }
    for (size_t i = 0; i < all->n; i++) {
        const struct hedge_reply *r = &all->reply[i];

        if (r->error != 0) {
            fprintf(stderr, "tour: %s: %s\n", r->id, r->error_text);
        } else {
            printf("a member %.*s\n", (int)r->len, (const char *)r->data);
        }
    }
    hedge_replies_free(all);
    return 0;
}

static int use_stream(struct hedge_node *node, struct hedge_error *e)
{
    struct hedge_meta meta = {"subject", "tour"};
    struct hedge_message m;
    struct hedge_stream *s;
    char text[16];
    int rv = hedge_stream_to_leader(node, WAIT_MS, &s, e);

    if (rv != 0) {
        return rv;
    }
    for (int i = 1; rv == 0 && i <= 2; i++) {
        int len = snprintf(text, sizeof text, "line %d", i);
        struct hedge_message out = {
            .data = text, .len = (size_t)len, .meta = &meta, .n_meta = 1};

        rv = hedge_stream_send(s, &out, WAIT_MS);
        rv = rv != 0 ? rv : hedge_stream_recv(s, WAIT_MS, &m, e);
        if (rv == 0) {
            printf("the stream returns %.*s\n", (int)m.len,
                   (const char *)m.data);
        }
    }
    if (rv == 0) {
        (void)hedge_stream_close_send(s);
        rv = hedge_stream_recv(s, WAIT_MS, &m, e);
        rv = rv == HEDGE_EEND ? 0 : rv;
    }
    hedge_stream_close(s);
    return rv;
}

/* One of two permits for every node; the token goes with what is done under
 * it, so that a late one can be refused. */
static int use_semaphore(struct hedge_node *node, struct hedge_error *e)
{
    struct hedge_semaphore *sem;
    uint64_t token;
    int rv = hedge_semaphore_open(node, "printer", 2, WAIT_MS, &sem, e);

    if (rv != 0) {
        return rv;
    }
    rv = hedge_semaphore_acquire(sem, 1, WAIT_MS, &token, e);
    if (rv == 0) {
        printf("holding the printer, %s\n",
               hedge_semaphore_remaining_ms(sem, token) > 0 ? "surely"
                                                            : "no more");
        rv = hedge_semaphore_release(sem, token, WAIT_MS, e);
    }
    hedge_semaphore_close(sem);
    return rv;
}

static int write_lines(struct hedge_sos *sos, struct hedge_error *e)
{
    struct hedge_manifest manifest;
    struct hedge_sos_writer *w;
    int rv = hedge_sos_writer_open(sos, &w, e);

    if (rv != 0) {
        return rv;
    }
    for (unsigned i = 0; i < 100000; i++) {
        if (hedge_sos_write(w, "spill me over", 13) != 0) {
            break; /* Closing says why. */
        }
    }
    rv = hedge_sos_writer_close(w, &manifest, e);
    if (rv == 0) {
        printf("%" PRIu64 " records written\n", manifest.records);
    }
    return rv;
}

static int read_lines(struct hedge_sos *sos, struct hedge_error *e)
{
    struct hedge_sos_reader *r;
    struct hedge_piece p;
    uint64_t records = 0;
    int rv = hedge_sos_reader_open(sos, HEDGE_SOS_DISCARD, &r, e);

    if (rv != 0) {
        return rv;
    }
    while ((rv = hedge_sos_next(r, WAIT_MS, &p)) == 0) {
        records += p.last;
    }
    if (rv != HEDGE_EEND) {
        (void)snprintf(e->text, sizeof e->text, "%s",
                       hedge_sos_reader_error(r));
    } else {
        printf("%" PRIu64 " records read and discarded\n", records);
    }
    hedge_sos_reader_close(r);
    return rv == HEDGE_EEND ? 0 : rv;
}

static int use_store(struct hedge_node *node, struct hedge_error *e)
{
    struct hedge_sos *sos;
    char name[320];
    int rv;

    (void)snprintf(name, sizeof name, "lines of %s", hedge_node_name(node));
    rv = hedge_sos_open(node, name, NULL, WAIT_MS, &sos, e);
    if (rv != 0) {
        return rv;
    }
    rv = write_lines(sos, e);
    rv = rv != 0 ? rv : read_lines(sos, e);
    hedge_sos_close(sos);
    return rv != 0 ? rv : hedge_sos_remove(node, name, WAIT_MS, e);
}

int main(int argc, char **argv)
{
    char listen[64], engine[4096], data[4096], about[512];
    struct hedge_options o;
    struct hedge_node *node;
    struct hedge_error e = {0};
    int rv;

    if (argc != 3) {
        fprintf(stderr, "usage: tour DIRECTORY PORT\n");
        return 2;
    }
    hedge_process_setup();
    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%s", argv[2]);
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", argv[1]);
    (void)snprintf(data, sizeof data, "%s/%s", argv[1], argv[2]);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = data;
    o.mem_limit = 64 << 20;
    o.on_leader = on_leader;
    o.on_member = on_member;
    o.leader_handler = on_leader_message;
    o.broadcast_handler = on_broadcast;
    o.leader_stream_handler = o.broadcast_stream_handler = on_stream;
    rv = hedge_node_start(&o, &node, &e);
    if (rv != 0) {
        fprintf(stderr, "tour: %s\n", e.text);
        return 1;
    }
    rv = use_log(node, &e);
    rv = rv != 0 ? rv : use_messages(node, &e);
    rv = rv != 0 ? rv : use_stream(node, &e);
    rv = rv != 0 ? rv : use_semaphore(node, &e);
    rv = rv != 0 ? rv : use_store(node, &e);
    if (rv != 0) {
        fprintf(stderr, "tour: %s\n", e.text);
    } else {
        (void)hedge_node_describe(node, about, sizeof about);
        fprintf(stderr, "tour: %s\n", about);
    }
    hedge_node_stop(node);
    return rv != 0;
}
