/* A peer that takes connections and says nothing: how long puts wait for it. */
#include "cluster/peer/peer_internal.h"
#include "cluster/rpc/rpc.h"
#include "store/base/clock.h"

#include "tests/lib/peer_node.h"

#include <signal.h>
#include <sys/wait.h>

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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(waited_for_once, begin_short, end),
        cmocka_unit_test_setup_teardown(not_when_in_a_hurry, begin, end)};

    far_node_role(argc, argv);
    rpc_process_setup();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
