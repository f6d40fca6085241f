/* Messages and streams between nodes embedded in one process. */
#include "cluster/hedge.h"

#include "tests/lib/check.h"

#include <arpa/inet.h>
#include <ftw.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define NODES 3
#define WAIT_MS 20000

/* Each node's handlers know whose they are. What they do is told by the first
 * byte of the message. */
struct member {
    struct hedge_node *node;
    sem_t entered, leave;
    atomic_bool cancelled;
    atomic_uint handled;
};

struct cluster {
    char dir[64];
    struct member m[NODES];
};

static void nap(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000,
                          .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&ts, NULL);
}

/* --- handlers --- */

static int long_reply(struct hedge_answer *a)
{
    char piece[4096];
    int rv = 0;

    for (size_t at = 0; rv == 0 && at < 5 * MIB; at += sizeof piece) {
        memset(piece, (int)(at >> 12), sizeof piece);
        rv = hedge_answer_write(a, piece, sizeof piece);
    }
    return rv;
}

static int handle(void *data, const struct hedge_message *m,
                  struct hedge_answer *a, struct hedge_error *e)
{
    struct member *self = data;
    const char *text = m->data;

    atomic_fetch_add(&self->handled, 1);
    switch (m->len > 0 ? text[0] : 'e') {
    case 'h':
        (void)sem_post(&self->entered);
        (void)sem_wait(&self->leave);
        return 0;
    case 'c':
        (void)sem_post(&self->entered);
        while (!hedge_answer_is_cancelled(a)) {
            nap(1);
        }
        self->cancelled = true;
        return 0;
    case 'l':
        return long_reply(a);
    case 'x':
        (void)snprintf(e->text, sizeof e->text, "no, thanks");
        return HEDGE_EINVAL;
    case 'f':
        return hedge_answer_write(a, m->from, strlen(m->from));
    default:
        return hedge_answer_write(a, m->data, m->len);
    }
}

static int stream(void *data, struct hedge_stream *s, struct hedge_error *e)
{
    struct member *self = data;
    struct hedge_message m;
    int rv;

    atomic_fetch_add(&self->handled, 1);
    while ((rv = hedge_stream_recv(s, WAIT_MS, &m, e)) == 0) {
        const char *text = m.data;

        if (m.len > 0 && text[0] == 'x') {
            (void)snprintf(e->text, sizeof e->text, "no more of this");
            return HEDGE_EINVAL;
        }
        if (m.len > 0 && text[0] == 'q') {
            return 0;
        }
        if (m.len > 0 && text[0] == 'h') {
            (void)sem_post(&self->entered);
            (void)sem_wait(&self->leave);
        }
        rv = hedge_stream_send(s, &m, WAIT_MS);
        if (rv != 0) {
            break;
        }
    }
    return rv;
}

/* --- nodes --- */

static unsigned free_ports(void)
{
    static unsigned at;

    if (at == 0) {
        at = 20000 + (unsigned)getpid() % 20000;
    }
    for (;;) {
        struct sockaddr_in a = {.sin_family = AF_INET};
        int ok = 1;

        at += 2;
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        for (unsigned i = 0; i < 2; i++) {
            int fd = socket(AF_INET, SOCK_STREAM, 0);

            a.sin_port = htons((uint16_t)(at + i));
            ok = ok && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
            close(fd);
        }
        if (ok) {
            return at;
        }
    }
}

static void start(struct cluster *c, unsigned i, bool handlers)
{
    char listen[64], engine[128], data[128];
    struct hedge_options o;
    struct hedge_error e;

    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%u", free_ports());
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", c->dir);
    (void)snprintf(data, sizeof data, "%s/n%u", c->dir, i);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = data;
    o.mem_limit = 2 * MIB;
    o.disk_limit = 0;
    o.block_size = 64 * KIB;
    o.message_limit = 32 * MIB;
    o.lease_ms = 2000;
    o.sync_interval_ms = 200;
    o.handlers_max = 4;
    if (handlers) {
        o.data = &c->m[i];
        o.leader_handler = o.broadcast_handler = handle;
        o.leader_stream_handler = o.broadcast_stream_handler = stream;
    }
    if (hedge_node_start(&o, &c->m[i].node, &e) != 0) {
        fail_msg("%s", e.text);
    }
}

static size_t count_members(struct hedge_node *n)
{
    struct hedge_members *m = hedge_members(n);
    size_t k = m != NULL ? m->n : 0;

    hedge_members_free(m);
    return k;
}

static void await_members(struct hedge_node *n, size_t wanted)
{
    for (unsigned i = 0; i < WAIT_MS / 20 && count_members(n) != wanted; i++) {
        nap(20);
    }
    assert_int_equal(count_members(n), wanted);
}

static int setup(void **state)
{
    static struct cluster c;

    memset(&c, 0, sizeof c);
    (void)snprintf(c.dir, sizeof c.dir, "/tmp/hedge-test-XXXXXX");
    assert_non_null(mkdtemp(c.dir));
    for (unsigned i = 0; i < NODES; i++) {
        (void)sem_init(&c.m[i].entered, 0, 0);
        (void)sem_init(&c.m[i].leave, 0, 0);
        start(&c, i, true);
    }
    for (unsigned i = 0; i < NODES; i++) {
        await_members(c.m[i].node, NODES);
    }
    *state = &c;
    return 0;
}

static int remove_one(const char *path, const struct stat *s, int type,
                      struct FTW *f)
{
    (void)s;
    (void)type;
    (void)f;
    return remove(path);
}

static int teardown(void **state)
{
    struct cluster *c = *state;

    for (unsigned i = 0; i < NODES; i++) {
        hedge_node_stop(c->m[i].node);
    }
    return nftw(c->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static struct member *leader_of(struct cluster *c)
{
    for (unsigned i = 0; i < WAIT_MS / 10; i++) {
        for (unsigned k = 0; k < NODES; k++) {
            if (c->m[k].node != NULL && hedge_has_lock(c->m[k].node, NULL)) {
                return &c->m[k];
            }
        }
        nap(10);
    }
    fail_msg("no leader");
    return NULL;
}

static struct member *follower_of(struct cluster *c)
{
    struct member *leader = leader_of(c);

    return leader == &c->m[0] ? &c->m[1] : &c->m[0];
}

/* --- send --- */

static int send_text(struct member *m, const char *text, uint64_t timeout_ms,
                     struct hedge_reply **r, struct hedge_error *e)
{
    return hedge_send(m->node, text, strlen(text), timeout_ms, r, e);
}

static void to_the_leader(void **state)
{
    struct cluster *c = *state;
    struct hedge_reply *r;
    struct hedge_error e;

    for (unsigned i = 0; i < NODES; i++) {
        assert_int_equal(send_text(&c->m[i], "echo", WAIT_MS, &r, &e), 0);
        assert_string_equal(r->id, hedge_node_name(leader_of(c)->node));
        assert_int_equal(r->len, 4);
        assert_memory_equal(r->data, "echo", 4);
        hedge_reply_free(r);
        assert_int_equal(send_text(&c->m[i], "from", WAIT_MS, &r, &e), 0);
        assert_int_equal(r->len, strlen(hedge_node_name(c->m[i].node)));
        assert_memory_equal(r->data, hedge_node_name(c->m[i].node), r->len);
        hedge_reply_free(r);
        assert_int_equal(send_text(&c->m[i], "", WAIT_MS, &r, &e), 0);
        assert_int_equal(r->len, 0);
        hedge_reply_free(r);
    }
}

static void failures(void **state)
{
    struct cluster *c = *state;
    struct hedge_reply *r;
    struct hedge_error e;

    for (unsigned i = 0; i < NODES; i++) {
        assert_int_equal(send_text(&c->m[i], "x", WAIT_MS, &r, &e),
                         HEDGE_EHANDLER);
        assert_string_equal(e.text, "no, thanks");
        assert_null(r);
    }
}

static void too_long(void **state)
{
    struct cluster *c = *state;
    char *data = calloc(1, 64 * MIB + 1);
    struct hedge_reply *r;
    struct hedge_error e;

    assert_int_equal(
        hedge_send(follower_of(c)->node, data, 64 * MIB + 1, WAIT_MS, &r, &e),
        HEDGE_ETOOBIG);
    /* More than the whole budget of the leader. */
    for (unsigned i = 0; i < NODES; i++) {
        assert_int_equal(
            hedge_send(c->m[i].node, data, 40 * MIB, WAIT_MS, &r, &e),
            HEDGE_EEXHAUSTED);
        assert_non_null(strstr(e.text, "--message-limit"));
    }
    free(data);
}

/* Around the lengths where the way changes. */
static void in_pieces(void **state)
{
    static const size_t lengths[] = {64 * KIB - 1, 64 * KIB,     64 * KIB + 1,
                                     MIB - 1,      MIB,          MIB + 1,
                                     2 * MIB,      3 * MIB + 17, 10 * MIB};
    struct cluster *c = *state;
    unsigned char *data = malloc(10 * MIB);
    struct hedge_reply *r;
    struct hedge_error e;

    for (size_t i = 0; i < 10 * MIB; i++) {
        data[i] = (unsigned char)(i * 7 + (i >> 11));
    }
    data[0] = 'e';
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (unsigned k = 0; k < NODES; k++) {
            if (hedge_send(c->m[k].node, data, lengths[i], WAIT_MS, &r, &e) !=
                0) {
                fail_msg("%zu: %s", lengths[i], e.text);
            }
            assert_int_equal(r->len, lengths[i]);
            assert_memory_equal(r->data, data, r->len);
            hedge_reply_free(r);
        }
    }
    free(data);
}

static void a_long_reply(void **state)
{
    struct cluster *c = *state;
    struct hedge_reply *r;
    struct hedge_error e;

    assert_int_equal(send_text(follower_of(c), "long", WAIT_MS, &r, &e), 0);
    assert_int_equal(r->len, 5 * MIB);
    for (size_t at = 0; at < r->len; at += 4096) {
        assert_int_equal(((const unsigned char *)r->data)[at],
                         (unsigned char)(at >> 12));
    }
    hedge_reply_free(r);
}

/* Its sender hears at its own deadline; others are served meanwhile. */
static void a_handler_that_hangs(void **state)
{
    struct cluster *c = *state;
    struct member *leader = leader_of(c);
    struct hedge_reply *r;
    struct hedge_error e;

    for (unsigned i = 0; i < NODES; i++) {
        int rv;

        do { /* Not begun in time: it is no hanging handler yet. */
            rv = send_text(&c->m[i], "h", 100, &r, &e);
        } while (rv == HEDGE_EBUSY);
        assert_int_equal(rv, HEDGE_ETIMEDOUT);
        assert_int_equal(send_text(&c->m[i], "echo", WAIT_MS, &r, &e), 0);
        hedge_reply_free(r);
    }
    for (unsigned i = 0; i < NODES; i++) {
        (void)sem_wait(&leader->entered);
        (void)sem_post(&leader->leave);
    }
}

struct background {
    struct member *m;
    const char *text;
    uint64_t timeout_ms;
    int retries, rv;
    pthread_t thread;
};

static void *send_in_background(void *arg)
{
    struct background *b = arg;
    struct hedge_reply *r;

    b->rv = hedge_send_to_leader(b->m->node, b->text, strlen(b->text),
                                 b->retries, b->timeout_ms, &r, NULL);
    hedge_reply_free(r);
    return NULL;
}

static void background(struct background *b)
{
    assert_int_equal(pthread_create(&b->thread, NULL, send_in_background, b),
                     0);
}

/* All slots of the leader hang: a clear answer, and not of a handler. */
static void all_handlers_hang(void **state)
{
    struct cluster *c = *state;
    struct member *leader = leader_of(c);
    struct background b[4];
    struct hedge_reply *r;
    struct hedge_error e;

    for (unsigned i = 0; i < 4; i++) {
        b[i] = (struct background){
            .m = follower_of(c), .text = "h", .timeout_ms = WAIT_MS};
        background(&b[i]);
        (void)sem_wait(&leader->entered);
    }
    assert_int_equal(send_text(follower_of(c), "echo", 300, &r, &e),
                     HEDGE_EBUSY);
    for (unsigned i = 0; i < 4; i++) {
        (void)sem_post(&leader->leave);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(b[i].thread, NULL);
        assert_int_equal(b[i].rv, 0);
    }
}

/* A sender that gives up is seen by the handler. */
static void a_sender_that_gives_up(void **state)
{
    struct cluster *c = *state;
    struct member *leader = leader_of(c);
    struct hedge_reply *r;
    int rv;

    leader->cancelled = false;
    do {
        rv = send_text(follower_of(c), "c", 100, &r, NULL);
    } while (rv == HEDGE_EBUSY);
    assert_int_equal(rv, HEDGE_ETIMEDOUT);
    (void)sem_wait(&leader->entered);
    for (unsigned i = 0; i < WAIT_MS / 10 && !leader->cancelled; i++) {
        nap(10);
    }
    assert_true(leader->cancelled);
}

/* --- broadcast --- */

static void to_all(void **state)
{
    struct cluster *c = *state;
    struct hedge_broadcast_options o = {.skip_self = true};
    struct hedge_replies *all;
    struct hedge_error e;

    for (unsigned i = 0; i < NODES; i++) {
        assert_int_equal(
            hedge_broadcast(c->m[i].node, "echo", 4, NULL, WAIT_MS, &all, &e),
            0);
        assert_int_equal(all->n, NODES);
        for (size_t k = 0; k < all->n; k++) {
            assert_int_equal(all->reply[k].error, 0);
            assert_int_equal(all->reply[k].len, 4);
            assert_memory_equal(all->reply[k].data, "echo", 4);
        }
        assert_string_not_equal(all->reply[0].id, all->reply[1].id);
        hedge_replies_free(all);
        assert_int_equal(
            hedge_broadcast(c->m[i].node, "echo", 4, &o, WAIT_MS, &all, &e), 0);
        assert_int_equal(all->n, NODES - 1);
        for (size_t k = 0; k < all->n; k++) {
            assert_string_not_equal(all->reply[k].id,
                                    hedge_node_name(c->m[i].node));
        }
        hedge_replies_free(all);
    }
}

static void to_some(void **state)
{
    struct cluster *c = *state;
    const char *ids[] = {hedge_node_name(c->m[1].node), "127.0.0.1:1"};
    struct hedge_broadcast_options o = {.only = ids, .n_only = 2};
    struct hedge_replies *all;
    struct hedge_error e;
    unsigned good = 0;

    assert_int_equal(
        hedge_broadcast(c->m[0].node, "echo", 4, &o, WAIT_MS, &all, &e), 0);
    assert_int_equal(all->n, 2);
    for (size_t i = 0; i < 2; i++) {
        if (all->reply[i].error == 0) {
            assert_string_equal(all->reply[i].id, ids[0]);
            good++;
        } else {
            assert_int_equal(all->reply[i].error, HEDGE_ENOTFOUND);
            assert_string_equal(all->reply[i].id, ids[1]);
        }
    }
    assert_int_equal(good, 1);
    hedge_replies_free(all);
}

struct seen {
    unsigned n;
    struct member *slow;
};

/* The one that hangs is let go by the replies of the others. */
static void on_reply(void *ctx, const struct hedge_reply *r)
{
    struct seen *s = ctx;

    assert_int_equal(r->error, 0);
    if (++s->n == NODES - 1) {
        assert_string_not_equal(r->id, hedge_node_name(s->slow->node));
        (void)sem_post(&s->slow->leave);
    } else if (s->n == NODES) {
        assert_string_equal(r->id, hedge_node_name(s->slow->node));
    }
}

static void *let_two_go(void *arg)
{
    struct cluster *c = arg;

    (void)sem_post(&c->m[0].leave);
    (void)sem_post(&c->m[1].leave);
    return NULL;
}

static void replies_as_they_come(void **state)
{
    struct cluster *c = *state;
    struct seen s = {.slow = &c->m[2]};
    struct hedge_broadcast_options o = {.on_reply = on_reply, .ctx = &s};
    struct hedge_replies *all;
    struct hedge_error e;

    (void)let_two_go(c);
    assert_int_equal(
        hedge_broadcast(c->m[0].node, "h", 1, &o, WAIT_MS, NULL, &e), 0);
    assert_int_equal(s.n, NODES);
    for (unsigned i = 0; i < NODES; i++) {
        (void)sem_wait(&c->m[i].entered);
    }
    assert_int_equal(
        hedge_broadcast(c->m[0].node, "h", 1, &o, WAIT_MS, &all, &e),
        HEDGE_EINVAL);
}

static void one_member_hangs(void **state)
{
    struct cluster *c = *state;
    struct hedge_replies *all;
    struct hedge_error e;
    unsigned late = 0;

    (void)let_two_go(c);
    assert_int_equal(
        hedge_broadcast(c->m[0].node, "h", 1, NULL, 2000, &all, &e), 0);
    assert_int_equal(all->n, NODES);
    for (size_t i = 0; i < NODES; i++) {
        if (all->reply[i].error != 0) {
            assert_int_equal(all->reply[i].error, HEDGE_ETIMEDOUT);
            assert_string_equal(all->reply[i].id,
                                hedge_node_name(c->m[2].node));
            late++;
        }
    }
    assert_int_equal(late, 1);
    hedge_replies_free(all);
    (void)sem_post(&c->m[2].leave);
    for (unsigned i = 0; i < NODES; i++) {
        (void)sem_wait(&c->m[i].entered);
    }
}

static void a_long_broadcast(void **state)
{
    struct cluster *c = *state;
    char *data = malloc(4 * MIB);
    struct hedge_replies *all;
    struct hedge_error e;

    memset(data, 'e', 4 * MIB);
    assert_int_equal(
        hedge_broadcast(c->m[1].node, data, 4 * MIB, NULL, WAIT_MS, &all, &e),
        0);
    assert_int_equal(all->n, NODES);
    for (size_t i = 0; i < NODES; i++) {
        assert_int_equal(all->reply[i].error, 0);
        assert_int_equal(all->reply[i].len, 4 * MIB);
        assert_memory_equal(all->reply[i].data, data, 4 * MIB);
    }
    hedge_replies_free(all);
    free(data);
}

/* --- streams --- */

static int stream_text(struct hedge_stream *s, const char *text)
{
    struct hedge_meta meta[] = {{"id", "7"}, {"key", "v\xc3\xa4lue"}};
    struct hedge_message m = {.data = text,
                              .len = strlen(text),
                              .from = "",
                              .meta = meta,
                              .n_meta = 2};

    return hedge_stream_send(s, &m, WAIT_MS);
}

/* Who receives could read nothing of it. */
static void no_text_in_meta(struct hedge_stream *s)
{
    struct hedge_meta meta[] = {{"id", "7"}, {"key", "v\xff"}};
    struct hedge_message m = {.data = "", .meta = meta, .n_meta = 2};

    assert_int_equal(hedge_stream_send(s, &m, WAIT_MS), HEDGE_EINVAL);
    meta[0].key = "\xc3";
    m.n_meta = 1;
    assert_int_equal(hedge_stream_send(s, &m, WAIT_MS), HEDGE_EINVAL);
}

static void a_stream_to_the_leader(void **state)
{
    struct cluster *c = *state;

    for (unsigned i = 0; i < NODES; i++) {
        struct hedge_stream *s;
        struct hedge_message m;
        struct hedge_error e;

        assert_int_equal(hedge_stream_to_leader(c->m[i].node, WAIT_MS, &s, &e),
                         0);
        assert_int_equal(hedge_stream_recv(s, 10, &m, &e), HEDGE_ETIMEDOUT);
        no_text_in_meta(s);
        for (unsigned k = 0; k < 50; k++) {
            char text[16];

            (void)snprintf(text, sizeof text, "e%u", k);
            assert_int_equal(stream_text(s, text), 0);
            assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), 0);
            assert_int_equal(m.len, strlen(text));
            assert_memory_equal(m.data, text, m.len);
            assert_string_equal(m.from, hedge_node_name(leader_of(c)->node));
            assert_int_equal(m.n_meta, 2);
            assert_string_equal(m.meta[1].key, "key");
            assert_string_equal(m.meta[1].value, "v\xc3\xa4lue");
        }
        assert_int_equal(hedge_stream_close_send(s), 0);
        assert_int_equal(stream_text(s, "e"), HEDGE_ECLOSED);
        assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), HEDGE_EEND);
        hedge_stream_close(s);
    }
}

/* Two at a time do not mix. */
static void streams_are_apart(void **state)
{
    struct cluster *c = *state;
    struct hedge_stream *a, *b;
    struct hedge_message m;
    struct hedge_error e;

    assert_int_equal(hedge_stream_to_leader(c->m[0].node, WAIT_MS, &a, &e), 0);
    assert_int_equal(hedge_stream_to_leader(c->m[0].node, WAIT_MS, &b, &e), 0);
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(stream_text(a, "ea"), 0);
        assert_int_equal(stream_text(b, "eb"), 0);
    }
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(hedge_stream_recv(a, WAIT_MS, &m, &e), 0);
        assert_memory_equal(m.data, "ea", 2);
        assert_int_equal(hedge_stream_recv(b, WAIT_MS, &m, &e), 0);
        assert_memory_equal(m.data, "eb", 2);
    }
    hedge_stream_close(a);
    hedge_stream_close(b);
}

static void a_long_stream_message(void **state)
{
    struct cluster *c = *state;
    char *data = malloc(5 * MIB + 3);
    struct hedge_message m = {.data = data, .len = 5 * MIB + 3, .from = ""};
    struct hedge_stream *s;
    struct hedge_error e;

    for (size_t i = 0; i < m.len; i++) {
        data[i] = (char)(i * 11 + (i >> 12));
    }
    data[0] = 'e';
    assert_int_equal(
        hedge_stream_to_leader(follower_of(c)->node, WAIT_MS, &s, &e), 0);
    assert_int_equal(hedge_stream_send(s, &m, WAIT_MS), 0);
    assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), 0);
    assert_int_equal(m.len, 5 * MIB + 3);
    assert_memory_equal(m.data, data, m.len);
    hedge_stream_close(s);
    free(data);
}

/* Neither end takes what the other sends: sending waits, and nothing is lost
 * when it goes on. */
static void back_pressure(void **state)
{
    struct cluster *c = *state;
    struct member *leader = leader_of(c);
    static char data[64 << 10];
    struct hedge_message m = {.data = data, .len = sizeof data, .from = ""};
    struct hedge_stream *s;
    struct hedge_error e;
    unsigned sent = 0, got = 0;

    assert_int_equal(
        hedge_stream_to_leader(follower_of(c)->node, WAIT_MS, &s, &e), 0);
    assert_int_equal(stream_text(s, "hang"), 0);
    (void)sem_wait(&leader->entered);
    memset(data, 'e', sizeof data);
    while (hedge_stream_send(s, &m, 200) == 0) {
        sent++;
        assert_true(sent < 1000);
    }
    (void)sem_post(&leader->leave);
    assert_int_equal(hedge_stream_close_send(s), 0);
    while (hedge_stream_recv(s, WAIT_MS, &m, &e) == 0) {
        got++;
    }
    assert_int_equal(e.code, HEDGE_EEND);
    assert_int_equal(got, sent + 1);
    hedge_stream_close(s);
}

static void a_stream_handler_that_fails(void **state)
{
    struct cluster *c = *state;
    struct hedge_stream *s;
    struct hedge_message m;
    struct hedge_error e;

    assert_int_equal(
        hedge_stream_to_leader(follower_of(c)->node, WAIT_MS, &s, &e), 0);
    assert_int_equal(stream_text(s, "x"), 0);
    assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), HEDGE_EHANDLER);
    assert_non_null(strstr(e.text, "no more of this"));
    assert_string_equal(m.from, hedge_node_name(leader_of(c)->node));
    assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), HEDGE_EEND);
    /* Who goes on sending is told, and is not left to wait. */
    for (unsigned i = 0; i < 100; i++) {
        int rv = stream_text(s, "more");

        assert_true(rv < 0 && rv != HEDGE_ETIMEDOUT);
        assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), HEDGE_EEND);
    }
    hedge_stream_close(s);
    /* One that returns early ends it in good order. */
    assert_int_equal(
        hedge_stream_to_leader(follower_of(c)->node, WAIT_MS, &s, &e), 0);
    assert_int_equal(stream_text(s, "q"), 0);
    assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), HEDGE_EEND);
    hedge_stream_close(s);
}

static void as_many_streams_as_there_may_be(void **state)
{
    struct cluster *c = *state;
    struct hedge_stream *s[4], *more;
    struct hedge_error e;

    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(
            hedge_stream_to_leader(c->m[0].node, WAIT_MS, &s[i], &e), 0);
    }
    assert_int_equal(hedge_stream_to_leader(c->m[0].node, WAIT_MS, &more, &e),
                     HEDGE_EBUSY);
    assert_null(more);
    for (unsigned i = 0; i < 4; i++) {
        hedge_stream_close(s[i]);
    }
}

static unsigned index_of(struct cluster *c, const char *id)
{
    for (unsigned i = 0; i < NODES; i++) {
        if (strcmp(hedge_node_name(c->m[i].node), id) == 0) {
            return i;
        }
    }
    fail_msg("who is %s?", id);
    return 0;
}

/* Members end at different times, with much of the others still to come. */
static void a_broadcast_stream(void **state)
{
    struct cluster *c = *state;
    struct hedge_stream *s;
    struct hedge_message m;
    struct hedge_error e;
    unsigned got[NODES] = {0}, total = 0;
    int rv;

    assert_int_equal(
        hedge_stream_broadcast(c->m[1].node, false, WAIT_MS, &s, &e), 0);
    for (unsigned i = 0; i < 300; i++) {
        char text[16];

        (void)snprintf(text, sizeof text, "e%u", i);
        assert_int_equal(stream_text(s, text), 0);
        while (i % 50 == 49 &&
               hedge_stream_recv(s, 0, &m, &e) == 0) { /* Some at a time. */
            got[index_of(c, m.from)]++;
            total++;
        }
    }
    assert_int_equal(hedge_stream_close_send(s), 0);
    while ((rv = hedge_stream_recv(s, WAIT_MS, &m, &e)) == 0) {
        char text[16];
        unsigned k = index_of(c, m.from);

        (void)snprintf(text, sizeof text, "e%u", got[k]++);
        assert_int_equal(m.len, strlen(text));
        assert_memory_equal(m.data, text, m.len);
        total++;
    }
    assert_int_equal(rv, HEDGE_EEND);
    assert_int_equal(total, NODES * 300);
    hedge_stream_close(s);
    assert_int_equal(
        hedge_stream_broadcast(c->m[1].node, true, WAIT_MS, &s, &e), 0);
    assert_int_equal(stream_text(s, "e"), 0);
    assert_int_equal(hedge_stream_close_send(s), 0);
    for (unsigned i = 0; i < NODES - 1; i++) {
        assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), 0);
        assert_int_not_equal(index_of(c, m.from), 1);
    }
    assert_int_equal(hedge_stream_recv(s, WAIT_MS, &m, &e), HEDGE_EEND);
    hedge_stream_close(s);
}

/* Its handler hangs, its connection lives: the others go on, without it from
 * some time on, which is told. */
static void a_member_that_takes_nothing(void **state)
{
    struct cluster *c = *state;
    static char data[64 << 10];
    struct hedge_message m = {.data = data, .len = sizeof data, .from = ""};
    unsigned replies[NODES] = {0}, failed = 0;
    struct hedge_message got;
    struct hedge_stream *s;
    struct hedge_error e;
    int rv;

    memset(data, 'e', sizeof data);
    (void)let_two_go(c);
    assert_int_equal(
        hedge_stream_broadcast(c->m[0].node, false, WAIT_MS, &s, &e), 0);
    assert_int_equal(stream_text(s, "hang"), 0);
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(hedge_stream_send(s, &m, WAIT_MS), 0);
        while ((rv = hedge_stream_recv(s, 0, &got, &e)) == 0) {
            replies[index_of(c, got.from)]++;
        }
        failed += got.from[0] != '\0';
    }
    assert_int_equal(hedge_stream_close_send(s), 0);
    while ((rv = hedge_stream_recv(s, WAIT_MS, &got, &e)) != HEDGE_EEND) {
        if (rv == 0) {
            replies[index_of(c, got.from)]++;
        } else {
            assert_int_equal(rv, HEDGE_ETIMEDOUT);
            assert_int_equal(index_of(c, got.from), 2);
            failed++;
        }
    }
    assert_int_equal(failed, 1);
    assert_int_equal(replies[0], 101);
    assert_int_equal(replies[1], 101);
    assert_int_equal(replies[2], 0);
    hedge_stream_close(s);
    (void)sem_post(&c->m[2].leave);
    for (unsigned i = 0; i < NODES; i++) {
        (void)sem_wait(&c->m[i].entered);
    }
}

/* --- the end: they change the cluster ------------------------------------- */

/* Sends with retries go on over a change of leader, also those that wait for
 * the old one's handler. */
static void the_leader_stops(void **state)
{
    struct cluster *c = *state;
    struct member *leader = leader_of(c);
    struct background b = {
        .m = follower_of(c), .text = "c", .timeout_ms = WAIT_MS, .retries = 0};
    struct hedge_stream *s;
    struct hedge_message m;
    struct hedge_reply *r;
    struct hedge_error e;
    int rv;

    assert_int_equal(hedge_stream_to_leader(b.m->node, WAIT_MS, &s, &e), 0);
    background(&b);
    (void)sem_wait(&leader->entered);
    hedge_node_stop(leader->node);
    leader->node = NULL;
    pthread_join(b.thread, NULL);
    assert_true(b.rv == HEDGE_ECLOSED || b.rv == HEDGE_EUNAVAILABLE);
    do {
        rv = hedge_stream_recv(s, WAIT_MS, &m, &e);
    } while (rv == 0);
    assert_true(rv == HEDGE_EUNAVAILABLE || rv == HEDGE_ECANCELED ||
                rv == HEDGE_EHANDLER);
    hedge_stream_close(s);
    rv = hedge_send_to_leader(b.m->node, "echo", 4, -1, WAIT_MS, &r, &e);
    if (rv != 0) {
        fail_msg("%s", e.text);
    }
    assert_string_equal(r->id, hedge_node_name(leader_of(c)->node));
    hedge_reply_free(r);
}

static void no_handlers(void **state)
{
    struct cluster *c = *state;
    struct hedge_replies *all;
    struct hedge_stream *s;
    struct hedge_reply *r;
    struct hedge_error e;

    for (unsigned i = 0; i < NODES; i++) {
        hedge_node_stop(c->m[i].node);
        c->m[i].node = NULL;
    }
    start(c, 0, false);
    (void)leader_of(c);
    start(c, 1, false);
    await_members(c->m[1].node, 2);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(send_text(&c->m[i], "echo", WAIT_MS, &r, &e),
                         HEDGE_ENOHANDLER);
        assert_int_equal(
            hedge_broadcast(c->m[i].node, "e", 1, NULL, WAIT_MS, &all, &e), 0);
        assert_int_equal(all->n, 2);
        assert_int_equal(all->reply[0].error, HEDGE_ENOHANDLER);
        assert_int_equal(all->reply[1].error, HEDGE_ENOHANDLER);
        hedge_replies_free(all);
        assert_int_equal(hedge_stream_to_leader(c->m[i].node, WAIT_MS, &s, &e),
                         HEDGE_ENOHANDLER);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(to_the_leader),
        cmocka_unit_test(failures),
        cmocka_unit_test(too_long),
        cmocka_unit_test(in_pieces),
        cmocka_unit_test(a_long_reply),
        cmocka_unit_test(a_handler_that_hangs),
        cmocka_unit_test(all_handlers_hang),
        cmocka_unit_test(a_sender_that_gives_up),
        cmocka_unit_test(to_all),
        cmocka_unit_test(to_some),
        cmocka_unit_test(replies_as_they_come),
        cmocka_unit_test(one_member_hangs),
        cmocka_unit_test(a_long_broadcast),
        cmocka_unit_test(a_stream_to_the_leader),
        cmocka_unit_test(streams_are_apart),
        cmocka_unit_test(a_long_stream_message),
        cmocka_unit_test(back_pressure),
        cmocka_unit_test(a_stream_handler_that_fails),
        cmocka_unit_test(as_many_streams_as_there_may_be),
        cmocka_unit_test(a_broadcast_stream),
        cmocka_unit_test(a_member_that_takes_nothing),
        cmocka_unit_test(the_leader_stops),
        cmocka_unit_test(no_handlers),
    };

    hedge_process_setup();
    return cmocka_run_group_tests(tests, setup, teardown);
}
