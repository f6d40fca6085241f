/* A peer that takes connections and says nothing: how long puts wait for it. */
#include "cluster/peer/peer_internal.h"
#include "cluster/rpc/rpc.h"
#include "store/base/clock.h"

#include "tests/lib/peer_node.h"

#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SILENT_MS 4000u

static struct far_node far;
static struct tier *tier;
static struct move first, second;

/* A peer that has a block, is stopped with the next one on its way to it, and
 * has left the list of members. */
static int begin(void **state)
{
    struct peer_info info;
    int status;

    (void)state;
    far_node_start(&far);
    info = far_node_info(&far);
    tier = peer_test_tier(PEER_TEST_BLOCK, NULL, 0);
    peer_tier_update(tier, &info, 1);
    move_init(&first, 100, 0, PEER_TEST_BLOCK);
    assert_int_equal(move_there(tier, &first), 0);
    move_release(&first);
    assert_int_equal(kill(far.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(far.pid, &status, WUNTRACED), far.pid);
    move_init(&first, 100, 1, PEER_TEST_BLOCK);
    move_init(&second, 100, 2, PEER_TEST_BLOCK);
    move_put(tier, &first);
    clock_sleep_ms(200);
    peer_tier_update(tier, NULL, 0);
    clock_sleep_ms(PEER_STALL_MS + 500);
    assert_int_equal(atomic_load(&first.ended), 0); /* It may go on. */
    return 0;
}

static int end(void **state)
{
    (void)state;
    tier_free(tier);
    far_node_stop(&far);
    move_release(&first);
    move_release(&second);
    peer_put_silent_ms = 30000;
    return 0;
}

static int begin_short(void **state)
{
    peer_put_silent_ms = SILENT_MS;
    return begin(state);
}

/* It is killed before it was heard of again, and never is. */
static void waited_for_once(void **state)
{
    uint64_t start;

    (void)state;
    far_node_stop(&far);
    assert_int_equal(move_wait(&first), HEDGE_EREFUSED);
    start = clock_mono_ms();
    assert_int_equal(move_there(tier, &second), HEDGE_EREFUSED);
    assert_true(clock_mono_ms() - start < SILENT_MS);
    far_node_start(&far); /* For who ends it. */
}

/* A node that stops leaves it. */
static void not_when_in_a_hurry(void **state)
{
    uint64_t start = clock_mono_ms();

    (void)state;
    tier_hurry(tier);
    assert_int_equal(move_wait(&first), HEDGE_EREFUSED);
    assert_int_equal(move_there(tier, &second), HEDGE_EREFUSED);
    assert_true(clock_mono_ms() - start < 10000);
}

/* --- a network that is out --------------------------------------------------
 */

/* Nobody takes connections from its line, and there is no place left in it:
 * who connects hears nothing, as over a cut cable. */
static void dead_end(char target[64], int fds[4])
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;

    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fds[0], (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(fds[0], 0), 0);
    assert_int_equal(getsockname(fds[0], (struct sockaddr *)&a, &len), 0);
    for (int i = 1; i < 4; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        (void)connect(fds[i], (struct sockaddr *)&a, len);
    }
    (void)snprintf(target, 64, "ipv4:127.0.0.1:%u", ntohs(a.sin_port));
}

/* It has left the list of members as well, and is waited for all the same. */
static void waited_for_who_cannot_be_reached(void **state)
{
    struct peer_info info = {
        .id = "out", .incarnation = 1, .mem_free = (uint64_t)1 << 40};
    char target[64];
    int fds[4];

    (void)state;
    dead_end(target, fds);
    info.target = target;
    tier = peer_test_tier(PEER_TEST_BLOCK, NULL, 0);
    peer_tier_update(tier, &info, 1);
    move_init(&first, 100, 0, PEER_TEST_BLOCK);
    move_put(tier, &first);
    clock_sleep_ms(PEER_STALL_MS + 1000);
    peer_tier_update(tier, NULL, 0);
    clock_sleep_ms(PEER_STALL_MS + 1500); /* The next attempt is over, too. */
    assert_int_equal(atomic_load(&first.ended), 0);
    tier_hurry(tier);
    assert_int_equal(move_wait(&first), HEDGE_EREFUSED);
    tier_free(tier);
    move_release(&first);
    for (int i = 0; i < 4; i++) {
        close(fds[i]);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(waited_for_once, begin_short, end),
        cmocka_unit_test_setup_teardown(not_when_in_a_hurry, begin, end),
        cmocka_unit_test(waited_for_who_cannot_be_reached)};

    far_node_role(argc, argv);
    rpc_process_setup();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
