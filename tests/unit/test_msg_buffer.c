/* The budget that messages share, and what waits outside of it. */
#include "cluster/messages/msg_buffer.h"

#include "store/base/error.h"
#include "tests/lib/check.h"

#define LIMIT 4096u

static void budget_has_a_limit(void **state)
{
    struct msg_budget *b;
    struct hedge_error e;

    (void)state;
    assert_int_equal(msg_budget_new(LIMIT, &b), 0);
    assert_int_equal(msg_budget_take(b, LIMIT - 1, 0, &e), 0);
    assert_int_equal(msg_budget_take(b, 2, 0, &e), HEDGE_EEXHAUSTED);
    assert_int_equal(msg_budget_take(b, LIMIT + 1, 60000, &e),
                     HEDGE_EEXHAUSTED); /* At once. */
    assert_int_equal(msg_budget_take(b, 1, 0, &e), 0);
    msg_budget_give(b, LIMIT);
    msg_budget_unref(b);
}

static void a_quarter_may_wait_for_room(void **state)
{
    struct msg_budget *b;
    struct hedge_error e;

    (void)state;
    assert_int_equal(msg_budget_new(LIMIT, &b), 0);
    msg_budget_force(b, LIMIT); /* That has nothing to do with it. */
    assert_int_equal(msg_budget_hold(b, LIMIT / 8, &e), 0);
    assert_int_equal(msg_budget_hold(b, LIMIT / 8, &e), 0);
    assert_int_equal(msg_budget_hold(b, 1, &e), HEDGE_EEXHAUSTED);
    msg_budget_unhold(b, LIMIT / 8);
    assert_int_equal(msg_budget_hold(b, LIMIT / 8 + 1, &e), HEDGE_EEXHAUSTED);
    msg_budget_unhold(b, LIMIT / 8);
    /* One alone may be larger. */
    assert_int_equal(msg_budget_hold(b, LIMIT, &e), 0);
    assert_int_equal(msg_budget_hold(b, 1, &e), HEDGE_EEXHAUSTED);
    msg_budget_unhold(b, LIMIT);
    msg_budget_give(b, LIMIT);
    msg_budget_unref(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budget_has_a_limit),
        cmocka_unit_test(a_quarter_may_wait_for_room),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
