/* The election core on the lmdb engine, in processes that are killed, stopped
 * and asked to end, on the real clock. Also the smallest driver there is. */
#include "cluster/group/election.h"
#include "store/base/clock.h"

#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define NODES 4
#define LEASE 1200u

struct view {
    _Atomic uint64_t token, until_ms; /* Of struct election_hold. */
    _Atomic uint64_t leader_token;    /* Of the leader it knows. */
    _Atomic uint64_t wins;
};

static struct view *views;
/* In memory where that can be had: the promised times are not the disk's. */
static char top[64] = "/dev/shm/hedge-test-failover-XXXXXX";
static pid_t pids[NODES];
static volatile sig_atomic_t asked_to_stop;

static void on_term(int sig)
{
    (void)sig;
    asked_to_stop = 1;
}

static int perform(const struct engine *g, const struct election *e,
                   const struct election_actions *act,
                   struct election_event *result, struct engine_lease *lease)
{
    const struct engine_holder who = {e->id, e->address, e->o.incarnation};

    result->lease = lease;
    switch (act->op) {
    case ELECTION_OP_LOOK:
        return engine_look(g, lease, NULL);
    case ELECTION_OP_ACQUIRE:
        return engine_acquire(g, &who, e->o.lease_ms, &result->token, lease,
                              NULL);
    case ELECTION_OP_RENEW:
        return engine_renew(g, act->op_token, e->o.lease_ms, NULL);
    default:
        return engine_release(g, act->op_token, NULL);
    }
}

static void run_node(unsigned i)
{
    char id[16], url[96];
    struct election_options o = {.lease_ms = LEASE,
                                 .seed = i,
                                 .id = id,
                                 .address = "",
                                 .incarnation = (uint64_t)getpid()};
    struct election_event ev = {.type = ELECTION_START};
    struct election_actions act = {0};
    struct engine_lease lease;
    struct election e;
    struct engine g;

    (void)snprintf(id, sizeof id, "n%u", i);
    (void)snprintf(url, sizeof url, "lmdb:%s/engine", top);
    if (engine_open(url, "g", &g, NULL) != 0) {
        _exit(9);
    }
    election_init(&e, &o);
    while (!act.stopped) {
        struct election_hold hold;

        election_step(&e, &ev, clock_boot_ms(), &act);
        hold = election_hold(&e);
        views[i].until_ms = hold.until_ms;
        views[i].token = hold.token;
        views[i].leader_token =
            election_leader(&e)->id[0] != '\0' ? election_leader(&e)->token : 0;
        views[i].wins += act.won;
        memset(&ev, 0, sizeof ev);
        if (act.op != ELECTION_OP_NONE) {
            ev.type = ELECTION_RESULT;
            ev.op_id = act.op_id;
            ev.started_ms = clock_boot_ms();
            ev.status = perform(&g, &e, &act, &ev, &lease);
            continue;
        }
        ev.type = ELECTION_TICK;
        for (uint64_t now = clock_boot_ms();
             now < act.wake_ms && !asked_to_stop; now = clock_boot_ms()) {
            /* A signal ends the sleep. */
            (void)usleep((useconds_t)(act.wake_ms - now) * 1000u);
        }
        ev.type = asked_to_stop ? ELECTION_STOP : ELECTION_TICK;
    }
    engine_close(&g);
    _exit(0);
}

static void spawn(unsigned i)
{
    memset(&views[i], 0, sizeof views[i]);
    pids[i] = fork();
    assert_true(pids[i] >= 0);
    if (pids[i] == 0) {
        const struct sigaction sa = {.sa_handler = on_term};
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)sigaction(SIGTERM, &sa, NULL);
        run_node(i);
    }
}

static bool leads(int i)
{
    struct election_hold h = {.token = views[i].token};

    h.until_ms = views[i].until_ms;
    return pids[i] != 0 && election_hold_valid(&h, clock_boot_ms());
}

/* The leader on the shared clock; -1 when there is none. */
static int leader(void)
{
    int found = -1;

    for (int i = 0; i < NODES; i++) {
        if (!leads(i)) {
            continue;
        }
        /* The one found first may have ceased since. */
        assert_false(found >= 0 && leads(found));
        found = i;
    }
    return found;
}

/* A leader with a token above `above`, which all but `except` know. */
static int await_leader(uint64_t above, int except, uint64_t limit_ms)
{
    uint64_t start = clock_boot_ms();

    for (;;) {
        int l = leader();
        unsigned know = 0, alive = 0;
        for (int i = 0; i < NODES && l >= 0 && views[l].token > above; i++) {
            if (i != except && pids[i] != 0) {
                alive++;
                know += views[i].leader_token == views[l].token;
            }
        }
        if (alive > 0 && know == alive) {
            print_message("%llu ms\n",
                          (unsigned long long)(clock_boot_ms() - start));
            return l;
        }
        assert_true(clock_boot_ms() - start <= limit_ms);
        clock_sleep_ms(1);
    }
}

static void end(int i, int sig)
{
    assert_int_equal(kill(pids[i], sig), 0);
    assert_int_equal(waitpid(pids[i], NULL, 0), pids[i]);
    pids[i] = 0;
}

static void test_failover(void **state)
{
    uint64_t token;
    int l;

    (void)state;
    for (unsigned i = 0; i < NODES; i++) {
        spawn(i);
    }
    l = await_leader(0, -1, 3000);
    for (unsigned round = 0; round < 3; round++) {
        token = views[l].token;
        end(l, SIGKILL);
        spawn((unsigned)l); /* Its next life waits like the others. */
        l = await_leader(token, -1, LEASE + 1000);

        token = views[l].token;
        views[l].token = 0; /* It is not to be seen as leading on. */
        end(l, SIGTERM);
        spawn((unsigned)l);
        l = await_leader(token, -1, 500);

        token = views[l].token;
        {
            int stopped = l;
            assert_int_equal(kill(pids[l], SIGSTOP), 0);
            l = await_leader(token, l, LEASE + 1000);
            assert_int_not_equal(l, stopped);
            assert_int_equal(kill(pids[stopped], SIGCONT), 0);
            (void)await_leader(token, -1, 500);
            assert_int_equal(views[stopped].token, 0);
        }
    }
    for (int i = 0; i < NODES; i++) {
        end(i, SIGTERM);
    }
}

/* A follower costs well under a hundredth of a core. */
static void test_idle_cost(void **state)
{
    struct rusage before, after;
    double used;

    (void)state;
    spawn(0);
    (void)await_leader(0, -1, 3000);
    spawn(1);
    clock_sleep_ms(3000);
    end(0, SIGTERM);
    getrusage(RUSAGE_CHILDREN, &before);
    end(1, SIGKILL);
    getrusage(RUSAGE_CHILDREN, &after);
    used = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec +
                    after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
           (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec +
                    after.ru_stime.tv_usec - before.ru_stime.tv_usec) /
               1e6;
    print_message("%.2f %% of a core\n", used / 3 * 100);
#if !defined(__SANITIZE_ADDRESS__) && !defined(HEDGE_TSAN)
    assert_true(used / 3 < 0.01);
#endif
}

static int remove_entry(const char *path, const struct stat *st, int type,
                        struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failover),
        cmocka_unit_test(test_idle_cost),
    };
    int failed;

    alarm(200);
    views = mmap(NULL, NODES * sizeof *views, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (access("/dev/shm", W_OK) != 0) {
        (void)snprintf(top, sizeof top, "/tmp/hedge-test-failover-XXXXXX");
    }
    if (views == MAP_FAILED || mkdtemp(top) == NULL) {
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)nftw(top, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return failed;
}
