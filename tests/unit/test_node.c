/* The public interface: nodes embedded in one process. */
#include "cluster/hedge.h"

#include "cluster/pb.h"
#include "tests/lib/check.h"

#include <arpa/inet.h>
#include <ftw.h>
#include <pthread.h>
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

#define IDS 8

/* What one node was told. */
struct told {
    pthread_mutex_t lock;
    char ids[IDS][64];
    bool in[IDS], leads;
    char leader[64];
    uint64_t token;
    unsigned twice; /* What it knew already. */
};

struct cluster {
    char dir[64];
    struct hedge_node *node[NODES];
    struct told told[NODES];
};

static void on_member(void *data, bool joined, const char *id)
{
    struct told *t = data;
    unsigned i = 0;

    pthread_mutex_lock(&t->lock);
    while (i < IDS - 1 && t->ids[i][0] != '\0' && strcmp(t->ids[i], id) != 0) {
        i++;
    }
    (void)snprintf(t->ids[i], sizeof t->ids[i], "%s", id);
    t->twice += t->in[i] == joined;
    t->in[i] = joined;
    pthread_mutex_unlock(&t->lock);
}

static void on_new_leader(void *data, const char *id, uint64_t token)
{
    struct told *t = data;

    pthread_mutex_lock(&t->lock);
    t->twice += strcmp(t->leader, id) == 0 && t->token == token;
    (void)snprintf(t->leader, sizeof t->leader, "%s", id);
    t->token = token;
    pthread_mutex_unlock(&t->lock);
}

static void on_leader(void *data, bool is_leader, uint64_t token)
{
    struct told *t = data;

    pthread_mutex_lock(&t->lock);
    t->twice += t->leads == is_leader || token == 0;
    t->leads = is_leader;
    pthread_mutex_unlock(&t->lock);
}

static void nap(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000,
                          .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&ts, NULL);
}

/* Two ports in a row that are free at this moment. */
static unsigned free_ports(void)
{
    static unsigned at;

    if (at == 0) {
        /* Below the range that outgoing connections take theirs from. */
        at = 12000 + (unsigned)getpid() * 64 % 20000;
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

static int start(struct cluster *c, unsigned i, size_t mem, uint64_t disk,
                 struct hedge_error *e)
{
    char listen[64], engine[128], data[128];
    struct hedge_options o;

    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%u", free_ports());
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", c->dir);
    (void)snprintf(data, sizeof data, "%s/n%u", c->dir, i);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = data;
    o.mem_limit = mem;
    o.disk_limit = disk;
    o.block_size = 64 * KIB;
    o.lease_ms = 2000;
    o.sync_interval_ms = 200;
    pthread_mutex_init(&c->told[i].lock, NULL);
    o.on_member = on_member;
    o.on_new_leader = on_new_leader;
    o.on_leader = on_leader;
    o.data = &c->told[i];
    return hedge_node_start(&o, &c->node[i], e);
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
    struct hedge_error e = {0};

    memset(&c, 0, sizeof c);
    (void)snprintf(c.dir, sizeof c.dir, "/tmp/hedge-test-XXXXXX");
    assert_non_null(mkdtemp(c.dir));
    for (unsigned i = 0; i < NODES; i++) {
        if (start(&c, i, 2 * MIB, MIB, &e) != 0) {
            fail_msg("%s", e.text);
        }
    }
    for (unsigned i = 0; i < NODES; i++) {
        await_members(c.node[i], NODES);
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
        hedge_node_stop(c->node[i]);
    }
    return nftw(c->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void says_who_it_is(void **state)
{
    struct cluster *c = *state;
    struct hedge_error e = {0};
    struct hedge_node *node;
    struct hedge_options o;
    volatile bool stop = true;
    char text[256], listen[64], engine[128], data[128];

    assert_true(hedge_node_is_running(c->node[0]));
    assert_true(hedge_node_describe(c->node[0], text, sizeof text) > 0);
    assert_non_null(strstr(text, hedge_node_name(c->node[0])));
    assert_true(hedge_node_describe(c->node[0], NULL, 0) > 0);

    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%u", free_ports());
    (void)snprintf(engine, sizeof engine, "lmdb:%s/alone", c->dir);
    (void)snprintf(data, sizeof data, "%s/alone-data", c->dir);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = data;
    o.mem_limit = 16 * MIB;
    assert_int_equal(hedge_node_run(&o, &stop, &node, &e), 0);
    assert_null(node);
    o.listen = "nowhere";
    assert_int_equal(hedge_node_run(&o, &stop, NULL, &e), HEDGE_EINVAL);
}

static void one_leader(void **state)
{
    struct cluster *c = *state;
    struct hedge_leader first, l;
    unsigned leaders = 0;
    uint64_t token;

    assert_int_equal(hedge_leader(c->node[0], &first), 0);
    for (unsigned i = 0; i < NODES; i++) {
        assert_int_equal(hedge_leader(c->node[i], &l), 0);
        assert_string_equal(l.id, first.id);
        if (hedge_has_lock(c->node[i], &token)) {
            leaders++;
            assert_string_equal(hedge_node_name(c->node[i]), l.id);
            assert_int_equal(token, l.token);
        } else {
            assert_int_equal(token, 0);
        }
    }
    assert_int_equal(leaders, 1);
}

static void fill(unsigned char *p, size_t len, unsigned k)
{
    for (size_t i = 0; i < len; i++) {
        p[i] = (unsigned char)(k * 31 + i * 7 + (i >> 8));
    }
}

static size_t length_of(unsigned k)
{
    return k % 17 == 0 ? 0 : k % 29 == 0 ? 200 * KIB : (k * 977) % 3000;
}

static void write_some(struct hedge_sos *sos, unsigned n)
{
    unsigned char *p = malloc(256 * KIB);
    struct hedge_sos_writer *w;
    struct hedge_manifest m;
    struct hedge_error e = {0};

    assert_int_equal(hedge_sos_writer_open(sos, &w, &e), 0);
    for (unsigned k = 0; k < n; k++) {
        fill(p, length_of(k), k);
        assert_int_equal(hedge_sos_write(w, p, length_of(k)), 0);
    }
    if (hedge_sos_writer_close(w, &m, &e) != 0) {
        fail_msg("%s", e.text);
    }
    assert_int_equal(m.records, n);
    free(p);
}

static void read_all(struct hedge_sos *sos, unsigned n, unsigned flags)
{
    unsigned char *want = malloc(256 * KIB);
    struct hedge_sos_reader *r;
    struct hedge_piece p;
    size_t at = 0;
    unsigned k = 0;
    int rv;

    assert_int_equal(hedge_sos_reader_open(sos, flags, &r, NULL), 0);
    while ((rv = hedge_sos_next(r, WAIT_MS, &p)) == 0) {
        if (p.first) {
            fill(want, length_of(k), k);
            at = 0;
        }
        assert_true(at + p.len <= length_of(k));
        assert_memory_equal(p.data, want + at, p.len);
        at += p.len;
        if (p.last) {
            assert_int_equal(at, length_of(k));
            k++;
        }
    }
    if (rv != HEDGE_EEND) {
        fail_msg("%s: %s", hedge_errname(rv), hedge_sos_reader_error(r));
    }
    assert_int_equal(k, n);
    hedge_sos_reader_close(r);
    free(want);
}

static void a_store_spans_the_cluster(void **state)
{
    struct cluster *c = *state;
    struct hedge_sos *sos[NODES];
    struct hedge_error e = {0};
    const unsigned n = 550; /* 5 MiB: more than a node has. */

    for (unsigned i = 0; i < NODES; i++) {
        assert_int_equal(
            hedge_sos_open(c->node[i], "span", NULL, WAIT_MS, &sos[i], &e), 0);
    }
    write_some(sos[0], n);
    for (unsigned i = 0; i < NODES; i++) {
        read_all(sos[i], n, 0);
    }
    read_all(sos[2], n, HEDGE_SOS_DISCARD);
    for (unsigned i = 0; i < NODES; i++) {
        hedge_sos_close(sos[i]);
    }
    assert_int_equal(hedge_sos_remove(c->node[1], "span", WAIT_MS, &e), 0);
    assert_int_equal(hedge_sos_remove(c->node[1], "span", WAIT_MS, &e),
                     HEDGE_ENOTFOUND);
}

static void a_writer_elsewhere(void **state)
{
    struct cluster *c = *state;
    struct hedge_sos *here, *there;

    assert_int_equal(
        hedge_sos_open(c->node[0], "remote", NULL, WAIT_MS, &here, NULL), 0);
    assert_int_equal(
        hedge_sos_open(c->node[1], "remote", NULL, WAIT_MS, &there, NULL), 0);
    write_some(there, 100);
    read_all(here, 100, HEDGE_SOS_FOLLOW);
    hedge_sos_close(there);
    hedge_sos_close(here);
    assert_int_equal(hedge_sos_remove(c->node[0], "remote", WAIT_MS, NULL), 0);
}

/* Here and elsewhere: nobody takes what there is for all there was to be. */
static void a_writer_that_gives_up(void **state)
{
    struct cluster *c = *state;

    for (unsigned i = 0; i < 2; i++) {
        struct hedge_sos *owner, *sos;
        struct hedge_sos_writer *w;
        struct hedge_sos_reader *r;
        struct hedge_piece p;
        unsigned whole = 0;
        int rv;

        assert_int_equal(
            hedge_sos_open(c->node[0], "given up", NULL, WAIT_MS, &owner, NULL),
            0);
        assert_int_equal(
            hedge_sos_open(c->node[i], "given up", NULL, WAIT_MS, &sos, NULL),
            0);
        assert_int_equal(hedge_sos_writer_open(sos, &w, NULL), 0);
        assert_int_equal(hedge_sos_write(w, "one", 3), 0);
        assert_int_equal(hedge_sos_flush(w), 0);
        assert_int_equal(hedge_sos_write(w, "two", 3), 0);
        hedge_sos_writer_abort(w);
        assert_int_equal(
            hedge_sos_reader_open(owner, HEDGE_SOS_FOLLOW, &r, NULL), 0);
        while ((rv = hedge_sos_next(r, WAIT_MS, &p)) == 0) {
            whole += p.last;
        }
        assert_int_equal(rv, HEDGE_EABORTED);
        assert_in_range(whole, 0, 2);
        hedge_sos_reader_close(r);
        hedge_sos_close(sos);
        hedge_sos_close(owner);
        assert_int_equal(
            hedge_sos_remove(c->node[0], "given up", WAIT_MS, NULL), 0);
    }
    hedge_sos_writer_abort(NULL);
}

/* gRPC clients like to set a deadline. When it has passed the writer is gone:
 * a reader that follows hears of it. */
static void a_writer_whose_deadline_passes(void **state)
{
    struct cluster *c = *state;
    Hedge__V1__WriteRequest m = HEDGE__V1__WRITE_REQUEST__INIT;
    Hedge__V1__WriteOpen open = HEDGE__V1__WRITE_OPEN__INIT;
    struct hedge_sos_reader *r;
    struct hedge_sos *sos;
    struct hedge_leader l;
    struct rpc_channel *channel;
    struct rpc_stream *s;
    struct hedge_piece p;
    struct rpc_msg msg;
    char name[] = "late", target[300];

    assert_int_equal(hedge_leader(c->node[0], &l), 0);
    (void)snprintf(target, sizeof target, "ipv4:%s", l.grpc_address);
    assert_int_equal(rpc_channel_new(target, &channel), 0);
    assert_int_equal(
        rpc_stream_open(channel, "/hedge.v1.Store/Write", 1000, &s), 0);
    open.name = name;
    m.open = &open;
    assert_int_equal(pb_send(s, &m.base, WAIT_MS), 0);
    assert_int_equal(rpc_stream_recv(s, WAIT_MS, &msg, NULL), 0);
    rpc_msg_release(&msg);
    assert_int_equal(
        hedge_sos_open(c->node[0], name, NULL, WAIT_MS, &sos, NULL), 0);
    assert_int_equal(hedge_sos_reader_open(sos, HEDGE_SOS_FOLLOW, &r, NULL), 0);
    assert_int_equal(rpc_stream_recv(s, WAIT_MS, &msg, NULL), HEDGE_ETIMEDOUT);
    assert_int_equal(hedge_sos_next(r, WAIT_MS, &p), HEDGE_EABORTED);
    hedge_sos_reader_close(r);
    hedge_sos_close(sos);
    rpc_stream_free(s);
    rpc_channel_free(channel);
    assert_int_equal(hedge_sos_remove(c->node[0], name, WAIT_MS, NULL), 0);
}

static void options_that_differ(void **state)
{
    struct cluster *c = *state;
    struct hedge_sos_options o;
    struct hedge_error e = {0};
    struct hedge_sos *a, *b;

    hedge_sos_options_init(&o);
    assert_int_equal(hedge_sos_open(c->node[0], "opts", &o, WAIT_MS, &a, &e),
                     0);
    o.ttl_ms = 5000;
    assert_int_equal(hedge_sos_open(c->node[0], "opts", &o, WAIT_MS, &b, &e),
                     HEDGE_EINVAL);
    assert_non_null(strstr(e.text, "TTL"));
    o.replicas = 99;
    assert_int_equal(hedge_sos_open(c->node[0], "new", &o, WAIT_MS, &b, &e),
                     HEDGE_EINVAL);
    assert_int_equal(hedge_sos_open(c->node[0], "a/b", NULL, WAIT_MS, &b, &e),
                     HEDGE_EINVAL);
    hedge_sos_close(a);
}

/* Was it told what it says itself, and nothing twice? */
static bool told_all(struct cluster *c, unsigned i)
{
    struct told *t = &c->told[i];
    struct hedge_leader l = {.id = ""};
    struct hedge_members *m = hedge_members(c->node[i]);
    size_t others = 0, listed = 0;
    bool same;

    (void)hedge_leader(c->node[i], &l);
    pthread_mutex_lock(&t->lock);
    assert_int_equal(t->twice, 0);
    for (unsigned k = 0; k < IDS; k++) {
        others += t->in[k];
        for (size_t j = 0; j < m->n; j++) {
            listed += t->in[k] && strcmp(m->member[j].id, t->ids[k]) == 0;
        }
    }
    same = others == m->n - 1 && listed == others &&
           strcmp(t->leader, l.id) == 0 && t->token == l.token &&
           t->leads == hedge_has_lock(c->node[i], NULL);
    pthread_mutex_unlock(&t->lock);
    hedge_members_free(m);
    return same;
}

static void await_told(struct cluster *c, unsigned i)
{
    for (unsigned k = 0; k < WAIT_MS / 10 && !told_all(c, i); k++) {
        nap(10);
    }
    assert_true(told_all(c, i));
}

/* Last: it stops the leader. */
static void a_clean_stop_hands_over(void **state)
{
    struct cluster *c = *state;
    struct hedge_leader l, now = {.id = ""};
    unsigned leader = 0;

    assert_int_equal(hedge_leader(c->node[0], &l), 0);
    for (unsigned i = 0; i < NODES; i++) {
        leader = hedge_has_lock(c->node[i], NULL) ? i : leader;
    }
    for (unsigned i = 0; i < NODES; i++) {
        await_told(c, i);
    }
    hedge_node_stop(c->node[leader]);
    c->node[leader] = NULL;
    for (unsigned i = 0; i < WAIT_MS / 10; i++) {
        unsigned other = (leader + 1) % NODES;

        if (hedge_leader(c->node[other], &now) == 0 &&
            strcmp(now.id, l.id) != 0) {
            break;
        }
        nap(10);
    }
    assert_string_not_equal(now.id, l.id);
    assert_true(now.token > l.token);
    await_members(c->node[(leader + 1) % NODES], NODES - 1);
    await_members(c->node[(leader + 2) % NODES], NODES - 1);
    await_told(c, (leader + 1) % NODES);
    await_told(c, (leader + 2) % NODES);
}

static void errors_at_start(void **state)
{
    struct cluster *c = *state;
    struct hedge_options o;
    struct hedge_node *n;
    struct hedge_error e = {0};
    char data[128];

    hedge_options_init(&o);
    o.listen = hedge_node_name(c->node[0]);
    o.data_dir = c->dir;
    assert_true(hedge_node_start(&o, &n, &e) < 0);
    assert_null(n);
    assert_non_null(strstr(e.text, o.listen));
    o.listen = "127.0.0.1:notaport";
    assert_int_equal(hedge_node_start(&o, &n, &e), HEDGE_EINVAL);
    o.listen = "127.0.0.1:1";
    o.block_size = 3;
    assert_int_equal(hedge_node_start(&o, &n, &e), HEDGE_EINVAL);
    o.block_size = MIB;
    (void)snprintf(data, sizeof data, "%s/n1", c->dir);
    {
        char listen[64];

        (void)snprintf(listen, sizeof listen, "127.0.0.1:%u", free_ports());
        o.listen = listen;
        o.data_dir = data;
        assert_int_equal(hedge_node_start(&o, &n, &e), HEDGE_EBUSY);
        assert_non_null(strstr(e.text, "another running node"));
    }
}

static atomic_uint log_lines, log_wrong;

static void count_line(void *data, enum hedge_log_level level, const char *area,
                       const char *text)
{
    atomic_fetch_add(&log_lines, 1);
    if (data != &log_lines || level < HEDGE_LOG_INFO || area[0] == '\0' ||
        text[0] == '\0') {
        atomic_fetch_add(&log_wrong, 1);
    }
}

/* The last of the tests: from here on the process logs there. */
static void the_program_gets_the_log(void **state)
{
    struct cluster *c = *state;
    struct hedge_error e = {0};
    struct hedge_options o;
    struct hedge_node *n;
    char listen[64], data[128];
    char engine[160];
    unsigned lines;

    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%u", free_ports());
    (void)snprintf(data, sizeof data, "%s/logs", c->dir);
    (void)snprintf(engine, sizeof engine, "lmdb:%s/logs-engine", c->dir);
    o.listen = listen;
    o.data_dir = data;
    o.engine = engine;
    o.mem_limit = 16 * MIB;
    o.log = count_line;
    o.log_data = &log_lines;
    o.log_level = HEDGE_LOG_INFO;
    assert_int_equal(hedge_node_start(&o, &n, &e), 0);
    for (unsigned i = 0; i < WAIT_MS / 10 && !hedge_has_lock(n, NULL); i++) {
        nap(10);
    }
    hedge_node_stop(n);
    lines = atomic_load(&log_lines);
    assert_true(lines > 0);
    o.log_level = HEDGE_LOG_OFF;
    assert_int_equal(hedge_node_start(&o, &n, &e), 0);
    hedge_node_stop(n);
    assert_int_equal(atomic_load(&log_lines), lines);
    assert_int_equal(atomic_load(&log_wrong), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_who_it_is),
        cmocka_unit_test(one_leader),
        cmocka_unit_test(a_store_spans_the_cluster),
        cmocka_unit_test(a_writer_elsewhere),
        cmocka_unit_test(a_writer_that_gives_up),
        cmocka_unit_test(a_writer_whose_deadline_passes),
        cmocka_unit_test(options_that_differ),
        cmocka_unit_test(errors_at_start),
        cmocka_unit_test(a_clean_stop_hands_over),
        cmocka_unit_test(the_program_gets_the_log),
    };

    hedge_process_setup();
    return cmocka_run_group_tests(tests, setup, teardown);
}
