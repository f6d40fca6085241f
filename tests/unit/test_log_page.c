/* Entries gathered for a caller: given away as they lie, and bounded. */
#include "cluster/log/log_page.h"

#include "tests/lib/check.h"

#include <stdio.h>
#include <string.h>

#define MANY 1000u

static int add(struct log_page *p, uint64_t revision, const char *value,
               const char *leader)
{
    char key[16];
    struct engine_entry e = {.key = key,
                             .value = value,
                             .value_len = strlen(value),
                             .revision = revision,
                             .timestamp_ms = 2 * revision,
                             .token = (uint64_t)leader[0],
                             .leader = leader};

    e.key_len = (size_t)snprintf(key, sizeof key, "k%llu",
                                 (unsigned long long)revision);
    return log_page_entry(p, &e);
}

static void check(const struct hedge_entry *x, uint64_t revision,
                  const char *value, const char *leader)
{
    char key[16];
    size_t len = (size_t)snprintf(key, sizeof key, "k%llu",
                                  (unsigned long long)revision);

    assert_int_equal(x->key_len, len);
    assert_memory_equal(x->key, key, len);
    assert_int_equal(x->value_len, strlen(value));
    assert_memory_equal(x->value, value, x->value_len);
    assert_int_equal(x->revision, revision);
    assert_int_equal(x->timestamp_ms, 2 * revision);
    assert_string_equal(x->leader, leader);
}

static void given_away(void **state)
{
    struct hedge_entries *all;
    struct hedge_entry first;
    struct log_page p;

    (void)state;
    log_page_init(&p, (size_t)1 << 20);
    for (uint64_t i = 1; i <= MANY; i++) {
        assert_int_equal(add(&p, i, i % 2 == 0 ? "" : "value",
                             i <= MANY / 2 ? "one" : "two"),
                         ENGINE_GO_ON);
    }
    log_page_at(&p, 0, &first);
    check(&first, 1, "value", "one");
    all = log_page_give(&p);
    assert_non_null(all);
    /* What was gathered and nothing else: it has not been copied. */
    assert_ptr_equal(all->entry[0].key, first.key);
    assert_int_equal(all->n, MANY);
    for (uint64_t i = 1; i <= MANY; i++) {
        check(&all->entry[i - 1], i, i % 2 == 0 ? "" : "value",
              i <= MANY / 2 ? "one" : "two");
    }
    assert_int_equal(p.n, 0);
    assert_null(log_page_give(&p)); /* There is nothing left. */
    log_page_release(&p);
    log_entries_free(all);
    log_entries_free(NULL);
}

static void one_by_itself(void **state)
{
    struct engine_entry e = {.key = "k7",
                             .key_len = 2,
                             .value = "v",
                             .value_len = 1,
                             .revision = 7,
                             .timestamp_ms = 14,
                             .leader = "leader"};
    struct hedge_entries *one = log_entries_one(&e);

    (void)state;
    assert_non_null(one);
    assert_int_equal(one->n, 1);
    check(&one->entry[0], 7, "v", "leader");
    log_entries_free(one);
}

/* Versions without a value take room, too: 64 MiB of them would be gigabytes.
 */
static void entries_count(void **state)
{
    struct log_page p;
    uint64_t n = 0;

    (void)state;
    log_page_init(&p, 100 * sizeof(struct hedge_entry));
    while (!p.full) {
        n++;
        (void)add(&p, n, "", "l");
    }
    assert_in_range(n, 50, 100);
    assert_int_equal(p.n, n - 1);
    log_page_release(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(given_away),
                                       cmocka_unit_test(one_by_itself),
                                       cmocka_unit_test(entries_count)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
