/* Semaphores by the public interface: two nodes embedded in one process. */
#include "cluster/hedge.h"
#include "cluster/locks/semaphore.h"

#include "tests/lib/check.h"

#include <arpa/inet.h>
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NODES 2
#define WAIT_MS 60000

struct cluster {
    char dir[64];
    struct hedge_node *node[NODES]; /* The first one leads. */
};

static atomic_uint losses;
static atomic_uint_fast64_t lost_token;

static void on_lost(void *data, const char *semaphore, uint64_t token)
{
    (void)data;
    assert_string_equal(semaphore, "s");
    atomic_store(&lost_token, token);
    atomic_fetch_add(&losses, 1);
}

/* In place of the C library's: how long the machine has slept, as its only
 * clock sees it that goes on meanwhile. */
static atomic_uint slept_s;

int clock_gettime(clockid_t id, struct timespec *ts)
{
    int rc = (int)syscall(SYS_clock_gettime, id, ts);

    if (id == CLOCK_BOOTTIME) {
        ts->tv_sec += (time_t)atomic_load(&slept_s);
    }
    return rc;
}

static void nap(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000,
                          .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&ts, NULL);
}

static bool is_free(unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bool ok;

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a.sin_port = htons((uint16_t)port);
    ok = bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
    close(fd);
    return ok;
}

static unsigned free_ports(void)
{
    static unsigned at;

    at = at == 0 ? 10000 + (unsigned)getpid() % 10000 : at + 2;
    while (!is_free(at) || !is_free(at + 1)) {
        at += 2;
    }
    return at;
}

static void start(struct cluster *c, unsigned i)
{
    char listen[64], engine[128], data[128];
    struct hedge_options o;
    struct hedge_error e = {0};

    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%u", free_ports());
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", c->dir);
    (void)snprintf(data, sizeof data, "%s/n%u", c->dir, i);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = data;
    o.mem_limit = (uint64_t)2 << 20;
    o.disk_limit = (uint64_t)1 << 20;
    o.block_size = (size_t)64 << 10;
    o.lease_ms = 2000;
    o.sync_interval_ms = 200;
    o.on_lost = on_lost;
    if (hedge_node_start(&o, &c->node[i], &e) != 0) {
        fail_msg("%s", e.text);
    }
}

static int setup(void **state)
{
    static struct cluster c;
    struct hedge_node *first;

    memset(&c, 0, sizeof c);
    atomic_store(&losses, 0);
    (void)snprintf(c.dir, sizeof c.dir, "/tmp/hedge-test-XXXXXX");
    assert_non_null(mkdtemp(c.dir));
    for (unsigned i = 0; i < NODES; i++) {
        start(&c, i);
    }
    while (!hedge_has_lock(c.node[0], NULL) &&
           !hedge_has_lock(c.node[1], NULL)) {
        nap(10);
    }
    if (!hedge_has_lock(c.node[0], NULL)) {
        first = c.node[0];
        c.node[0] = c.node[1];
        c.node[1] = first;
    }
    *state = &c;
    return 0;
}

static int unlink_any(const char *path, const struct stat *st, int flag,
                      struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static int teardown(void **state)
{
    struct cluster *c = *state;

    for (unsigned i = 0; i < NODES; i++) {
        hedge_node_stop(c->node[i]);
    }
    return nftw(c->dir, unlink_any, 16, FTW_DEPTH | FTW_PHYS);
}

static struct hedge_semaphore *open_one(struct hedge_node *n, const char *name,
                                        uint32_t limit)
{
    struct hedge_semaphore *s;
    struct hedge_error e = {0};

    if (hedge_semaphore_open(n, name, limit, WAIT_MS, &s, &e) != 0) {
        fail_msg("%s", e.text);
    }
    return s;
}

static uint64_t take(struct hedge_semaphore *s, uint32_t permits)
{
    struct hedge_error e = {0};
    uint64_t token;

    if (hedge_semaphore_acquire(s, permits, WAIT_MS, &token, &e) != 0) {
        fail_msg("%s", e.text);
    }
    return token;
}

struct taker {
    struct hedge_semaphore *s;
    uint64_t token;
};

static void *take_one(void *arg)
{
    struct taker *t = arg;

    t->token = take(t->s, 1);
    return NULL;
}

/* --- tests --- */

static void permits_go_from_node_to_node(void **state)
{
    struct cluster *c = *state;
    struct hedge_semaphore *a = open_one(c->node[0], "s", 3);
    struct hedge_semaphore *b = open_one(c->node[1], "s", 3);
    struct taker t = {.s = b};
    struct hedge_error e = {0};
    uint64_t first, second, token;
    pthread_t thread;

    first = take(a, 2);
    second = take(b, 1);
    assert_true(second > first);
    assert_in_range(hedge_semaphore_remaining_ms(a, first), 1, 15000);
    assert_in_range(hedge_semaphore_remaining_ms(b, second), 1, 15000);
    assert_int_equal(hedge_semaphore_remaining_ms(b, first), 0);
    assert_int_equal(hedge_semaphore_try_acquire(b, 1, WAIT_MS, &token, &e),
                     HEDGE_EBUSY);
    assert_int_equal(token, 0);
    assert_int_equal(hedge_semaphore_acquire(b, 1, 50, &token, &e),
                     HEDGE_ETIMEDOUT);
    assert_int_equal(pthread_create(&thread, NULL, take_one, &t), 0);
    assert_int_equal(hedge_semaphore_release(a, first, WAIT_MS, &e), 0);
    pthread_join(thread, NULL);
    assert_true(t.token > second);
    assert_int_equal(hedge_semaphore_release(a, first, WAIT_MS, &e),
                     HEDGE_EFENCED);
    assert_int_equal(hedge_semaphore_remaining_ms(a, first), 0);
    hedge_semaphore_close(b); /* Gives back both. */
    token = take(a, 3);
    assert_true(token > t.token);
    hedge_semaphore_close(a);
    assert_int_equal(losses, 0); /* What is given back is not lost. */
}

static void limits_differ(void **state)
{
    struct cluster *c = *state;
    struct hedge_semaphore *a = open_one(c->node[1], "s", 3), *other;
    struct hedge_error e = {0};
    uint64_t token = take(a, 1);

    assert_int_equal(
        hedge_semaphore_open(c->node[0], "s", 4, WAIT_MS, &other, &e),
        HEDGE_EINVAL);
    assert_null(other);
    assert_non_null(strstr(e.text, "3"));
    assert_non_null(strstr(e.text, "4"));
    assert_int_equal(
        hedge_semaphore_open(c->node[0], "a/b", 4, WAIT_MS, &other, &e),
        HEDGE_EINVAL);
    assert_int_equal(
        hedge_semaphore_open(c->node[0], "x", 0, WAIT_MS, &other, &e),
        HEDGE_EINVAL);
    assert_int_equal(hedge_semaphore_acquire(a, 4, WAIT_MS, &token, &e),
                     HEDGE_EINVAL);
    hedge_semaphore_close(a);
}

static void listed_and_revoked(void **state)
{
    struct cluster *c = *state;
    struct hedge_semaphore *a = open_one(c->node[1], "s", 1);
    struct hedge_semaphores *list;
    struct hedge_error e = {0};
    uint64_t token = take(a, 1);

    assert_int_equal(hedge_semaphores(c->node[1], "s", WAIT_MS, &list, &e), 0);
    assert_int_equal(list->n, 1);
    assert_int_equal(list->semaphore[0].limit, 1);
    assert_int_equal(list->semaphore[0].n_holders, 1);
    assert_int_equal(list->semaphore[0].holders[0].token, token);
    assert_string_equal(list->semaphore[0].holders[0].holder,
                        hedge_node_name(c->node[1]));
    hedge_semaphores_free(list);
    assert_int_equal(
        hedge_semaphore_revoke(c->node[0], "s", token + 1, WAIT_MS, &e),
        HEDGE_ENOTFOUND);
    assert_int_equal(
        hedge_semaphore_revoke(c->node[0], "s", token, WAIT_MS, &e), 0);
    /* Its node hears of it with the next renewal. */
    while (losses == 0) {
        nap(20);
    }
    assert_true(lost_token == token);
    assert_int_equal(hedge_semaphore_remaining_ms(a, token), 0);
    /* Given up, it is free before the lease would have ended. */
    assert_int_equal(hedge_semaphore_release(a, token, WAIT_MS, &e), 0);
    token = take(a, 1);
    hedge_semaphore_close(a);
    assert_int_equal(hedge_semaphores(c->node[0], NULL, WAIT_MS, &list, &e), 0);
    assert_int_equal(list->n, 0);
    hedge_semaphores_free(list);
    assert_int_equal(losses, 1);
}

static void grants_outlive_the_leader(void **state)
{
    struct cluster *c = *state;
    struct hedge_semaphore *a = open_one(c->node[1], "s", 2);
    struct hedge_error e = {0};
    uint64_t token = take(a, 1), more;

    hedge_node_stop(c->node[0]);
    c->node[0] = NULL;
    more = take(a, 1);
    assert_true(more > token);
    assert_true(hedge_semaphore_remaining_ms(a, token) > 0);
    assert_int_equal(hedge_semaphore_release(a, token, WAIT_MS, &e), 0);
    hedge_semaphore_close(a);
    start(c, 0);
}

/* Who cannot renew for the length of the lease is told, although the next
 * leader, which counts from its own beginning, still lists the grant. */
static void lost_by_time(void **state)
{
    struct cluster *c = *state;
    struct hedge_semaphore *a = open_one(c->node[1], "s", 2);
    struct hedge_error e = {0};
    uint64_t token = take(a, 1), more;

    assert_true(hedge_semaphore_remaining_ms(a, token) > 0);
    atomic_fetch_add(&slept_s, SEMAPHORE_LEASE_MS / 1000);
    assert_int_equal(hedge_semaphore_remaining_ms(a, token), 0);
    while (losses == 0) {
        nap(20);
    }
    assert_true(lost_token == token);
    more = take(a, 1); /* There is a leader again, and a renewal. */
    assert_true(more > token);
    assert_true(hedge_semaphore_remaining_ms(a, more) > 0);
    assert_int_equal(hedge_semaphore_remaining_ms(a, token), 0);
    (void)hedge_semaphore_release(a, token, WAIT_MS, &e);
    assert_int_equal(hedge_semaphore_release(a, token, WAIT_MS, &e),
                     HEDGE_EFENCED);
    hedge_semaphore_close(a);
    assert_int_equal(losses, 1);
}

struct counter {
    struct hedge_semaphore *s;
    /* Atomic for the sanitizer, which does not see the order that the grants
     * give across nodes. */
    atomic_int *inside, *sum;
    unsigned rounds;
};

static void *count_up(void *arg)
{
    struct counter *k = arg;
    struct hedge_error e;

    for (unsigned i = 0; i < k->rounds; i++) {
        uint64_t token = take(k->s, 1);
        int alone = atomic_fetch_add(k->inside, 1) + 1;
        int sum = atomic_load(k->sum);

        atomic_store(k->sum, sum + 1); /* Not one step: it takes the lock. */
        atomic_fetch_sub(k->inside, 1);
        if (alone != 1 ||
            hedge_semaphore_release(k->s, token, WAIT_MS, &e) != 0) {
            return arg;
        }
    }
    return NULL;
}

static void one_at_a_time(void **state)
{
    struct cluster *c = *state;
    struct counter k[6];
    pthread_t threads[6];
    atomic_int inside = 0, sum = 0;
    void *wrong;

    for (unsigned i = 0; i < 6; i++) {
        k[i] = (struct counter){.s = open_one(c->node[i % NODES], "s", 1),
                                .inside = &inside,
                                .sum = &sum,
                                .rounds = 20};
        assert_int_equal(pthread_create(&threads[i], NULL, count_up, &k[i]), 0);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(threads[i], &wrong);
        assert_null(wrong);
    }
    for (unsigned i = 0; i < 6; i++) {
        hedge_semaphore_close(k[i].s);
    }
    assert_int_equal(sum, 120);
}

/* More than one page has, by way of the leader and of the other node. */
static void long_list_is_whole(void **state)
{
    struct cluster *c = *state;
    const unsigned many = SEMAPHORE_PAGE_MAX + 100;
    struct hedge_semaphore *s = open_one(c->node[1], "long", many);
    struct hedge_semaphores *list;
    struct hedge_error e;
    uint64_t last;

    for (unsigned i = 0; i < many; i++) {
        (void)take(s, 1);
    }
    for (unsigned i = 0; i < NODES; i++) {
        assert_int_equal(
            hedge_semaphores(c->node[i], "long", WAIT_MS, &list, &e), 0);
        assert_int_equal(list->n, 1);
        assert_int_equal(list->semaphore[0].n_holders, many);
        assert_int_equal(list->semaphore[0].n_waiters, 0);
        last = 0;
        for (unsigned k = 0; k < many; k++) {
            assert_true(list->semaphore[0].holders[k].token > last);
            last = list->semaphore[0].holders[k].token;
        }
        hedge_semaphores_free(list);
    }
    hedge_semaphore_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(permits_go_from_node_to_node, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(limits_differ, setup, teardown),
        cmocka_unit_test_setup_teardown(listed_and_revoked, setup, teardown),
        cmocka_unit_test_setup_teardown(lost_by_time, setup, teardown),
        cmocka_unit_test_setup_teardown(long_list_is_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(grants_outlive_the_leader, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(one_at_a_time, setup, teardown),
    };

    hedge_process_setup();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
