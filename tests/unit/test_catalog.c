/* The catalog against a model that keeps the same in an array. */
#include "store/catalog/catalog.h"
#include "store/catalog/catalog_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/lib/check.h"

static char root[256], dir[300];

static int setup(void **state)
{
    const char *base = getenv("TMPDIR");

    (void)state;
    (void)snprintf(root, sizeof root, "%s/hedge-catalog-XXXXXX",
                   base != NULL ? base : "/tmp");
    assert_non_null(mkdtemp(root));
    (void)snprintf(dir, sizeof dir, "%s/catalog", root);
    log_set_level(LOG_OFF);
    return 0;
}

static int teardown(void **state)
{
    char command[400];

    (void)state;
    (void)umount2(dir, MNT_DETACH); /* Left by a test that failed. */
    (void)snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command) == 0 ? 0 : 1;
}

static struct catalog *open_catalog(void)
{
    struct hedge_error e;
    struct catalog *c;
    int rv = catalog_new(dir, &c, &e);

    if (rv != 0) {
        print_error("%s\n", e.text);
    }
    assert_int_equal(rv, 0);
    return c;
}

static uint64_t random_next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static struct catalog_entry entry_of(uint64_t generation, uint32_t writer,
                                     uint64_t sequence, uint64_t ordinal,
                                     uint64_t version)
{
    struct catalog_entry e;

    memset(&e, 0, sizeof e);
    e.id.generation = generation;
    e.id.writer = writer;
    e.id.sequence = sequence;
    e.ordinal = ordinal;
    e.raw_sum = generation * 1000003 + writer * 10007 + sequence;
    e.stored_sum = version;
    e.raw_len = (uint32_t)(version % 1000);
    e.stored_len = 17;
    e.records = 3;
    e.first = 5;
    e.flags = 1;
    e.codec = 1;
    e.n_copies = (uint8_t)(version % (CATALOG_COPIES_MAX + 1));
    for (unsigned i = 0; i < e.n_copies; i++) {
        e.copies[i].place.addr = version * 7 + i;
        e.copies[i].place.unit = i + 1;
        e.copies[i].place.kind = i + 2;
        e.copies[i].where = 1 + i % 3;
    }
    return e;
}

static void assert_entry(const struct catalog_entry *want,
                         const struct catalog_entry *got)
{
    assert_true(block_id_equal(&want->id, &got->id));
    assert_int_equal(want->ordinal, got->ordinal);
    assert_int_equal(want->raw_sum, got->raw_sum);
    assert_int_equal(want->stored_sum, got->stored_sum);
    assert_int_equal(want->raw_len, got->raw_len);
    assert_int_equal(want->stored_len, got->stored_len);
    assert_int_equal(want->records, got->records);
    assert_int_equal(want->first, got->first);
    assert_int_equal(want->flags, got->flags);
    assert_int_equal(want->codec, got->codec);
    assert_int_equal(want->n_copies, got->n_copies);
    assert_memory_equal(want->copies, got->copies, sizeof want->copies);
}

/* --- rows ------------------------------------------------------------------
 */

static void test_rows(void **state)
{
    unsigned char row[CATALOG_ENTRY_MAX + 1], key[CATALOG_KEY_SIZE];
    struct catalog_entry e, back;
    struct block_id id;

    (void)state;
    for (unsigned v = 0; v <= CATALOG_COPIES_MAX; v++) {
        size_t n;
        e = entry_of(1, 2, 3, 4, v);
        n = catalog_entry_encode(&e, row);
        assert_int_equal(n, CATALOG_ENTRY_HEAD + v * CATALOG_COPY_SIZE);
        assert_int_equal(catalog_entry_decode(row, n, &back), 0);
        back.id = e.id;
        assert_entry(&e, &back);
        for (size_t len = 0; len <= n + 1; len++) {
            int want = len == n ? 0 : HEDGE_ECORRUPT;
            assert_int_equal(catalog_entry_decode(row, len, &back), want);
        }
    }
    row[43] = CATALOG_COPIES_MAX + 1;
    assert_int_equal(catalog_entry_decode(row, sizeof row, &back),
                     HEDGE_ECORRUPT);
    row[43] = 1;
    row[CATALOG_ENTRY_HEAD + 16] = CATALOG_PEER + 1;
    assert_int_equal(catalog_entry_decode(
                         row, CATALOG_ENTRY_HEAD + CATALOG_COPY_SIZE, &back),
                     HEDGE_ECORRUPT);
    catalog_key_encode(&e.id, key);
    assert_int_equal(catalog_key_decode(key, sizeof key, &id), 0);
    assert_true(block_id_equal(&id, &e.id));
    assert_int_equal(catalog_key_decode(key, 19, &id), HEDGE_ECORRUPT);
}

/* --- the model --------------------------------------------------------------
 */

#define GENERATIONS 4
#define WRITERS 2
#define SEQUENCES 400

struct model {
    struct catalog *c;
    uint64_t seed, version;
    uint64_t next_ordinal[GENERATIONS];
    bool there[GENERATIONS][WRITERS][SEQUENCES];
    struct catalog_entry entries[GENERATIONS][WRITERS][SEQUENCES];
};

static const struct catalog_entry *model_next(const struct model *m, unsigned g,
                                              uint64_t from)
{
    const struct catalog_entry *best = NULL;

    for (unsigned w = 0; w < WRITERS; w++) {
        for (unsigned s = 0; s < SEQUENCES; s++) {
            const struct catalog_entry *e = &m->entries[g][w][s];
            if (m->there[g][w][s] && e->ordinal != CATALOG_ORDINAL_NONE &&
                e->ordinal >= from &&
                (best == NULL || e->ordinal < best->ordinal)) {
                best = e;
            }
        }
    }
    return best;
}

static void model_put(struct model *m, unsigned g, unsigned w, unsigned s)
{
    struct catalog_entry *e = &m->entries[g][w][s];
    bool keep = m->there[g][w][s] && random_next(&m->seed) % 4 != 0;
    uint64_t ordinal = e->ordinal;

    if (!keep) {
        /* With gaps, so that walks have something to pass over. */
        ordinal = m->next_ordinal[g];
        m->next_ordinal[g] += 1 + random_next(&m->seed) % 3;
        if (random_next(&m->seed) % 10 == 0) {
            ordinal = CATALOG_ORDINAL_NONE;
        }
    }
    *e = entry_of(g, w, s, ordinal, ++m->version);
    m->there[g][w][s] = true;
    assert_int_equal(catalog_put(m->c, e), 0);
}

static void model_check(struct model *m, unsigned g, unsigned w, unsigned s)
{
    const struct catalog_entry *want = &m->entries[g][w][s], *next;
    uint64_t from = random_next(&m->seed) % (m->next_ordinal[g] + 2);
    struct catalog_entry got;
    struct block_id id = {.generation = g, .writer = w, .sequence = s};
    int rv = catalog_get(m->c, &id, &got);

    assert_int_equal(rv, m->there[g][w][s] ? 0 : HEDGE_ENOTFOUND);
    if (rv == 0) {
        assert_entry(want, &got);
    }
    next = model_next(m, g, from);
    rv = catalog_next(m->c, g, from, &got);
    assert_int_equal(rv, next != NULL ? 0 : HEDGE_ENOTFOUND);
    if (rv == 0) {
        assert_entry(next, &got);
    }
    rv = catalog_get_ordinal(m->c, g, from, &got);
    assert_int_equal(
        rv, next != NULL && next->ordinal == from ? 0 : HEDGE_ENOTFOUND);
    if (rv == 0) {
        assert_entry(next, &got);
    }
}

static void model_remove_store(struct model *m, unsigned g)
{
    assert_int_equal(catalog_remove_store(m->c, g), 0);
    memset(m->there[g], 0, sizeof m->there[g]);
}

static void model_step(struct model *m)
{
    unsigned g = (unsigned)(random_next(&m->seed) % GENERATIONS);
    unsigned w = (unsigned)(random_next(&m->seed) % WRITERS);
    unsigned s = (unsigned)(random_next(&m->seed) % SEQUENCES);
    uint64_t what = random_next(&m->seed) % 10000;

    if (what < 4500) {
        model_put(m, g, w, s);
    } else if (what < 7500) {
        struct block_id id = {.generation = g, .writer = w, .sequence = s};
        assert_int_equal(catalog_remove(m->c, &id), 0);
        m->there[g][w][s] = false;
    } else if (what < 9950) {
        model_check(m, g, w, s);
    } else if (what < 9990) {
        assert_int_equal(catalog_flush(m->c), 0);
    } else {
        model_remove_store(m, g);
    }
}

static void model_walk(struct model *m, unsigned g)
{
    const struct catalog_entry *want;
    struct catalog_entry got;
    uint64_t at = 0;

    while ((want = model_next(m, g, at)) != NULL) {
        assert_int_equal(catalog_next(m->c, g, at, &got), 0);
        assert_entry(want, &got);
        at = got.ordinal + 1;
    }
    assert_int_equal(catalog_next(m->c, g, at, &got), HEDGE_ENOTFOUND);
}

static void test_model(void **state)
{
    struct model *m = calloc(1, sizeof *m);
    const char *seed = getenv("HEDGE_SEED");

    (void)state;
    m->seed = seed != NULL ? strtoull(seed, NULL, 0) : clock_mono_ns() | 1;
    print_message("HEDGE_SEED=%llu\n", (unsigned long long)m->seed);
    m->c = open_catalog();
    for (unsigned i = 0; i < 60000; i++) {
        model_step(m);
        if (i % 5000 == 0) {
            model_walk(m, i / 5000 % GENERATIONS);
        }
    }
    for (unsigned g = 0; g < GENERATIONS; g++) {
        model_walk(m, g);
    }
    assert_int_equal(catalog_flush(m->c), 0);
    for (unsigned g = 0; g < GENERATIONS; g++) {
        model_walk(m, g);
    }
    catalog_free(m->c);
    free(m);
}

/* --- readers beside the writer -----------------------------------------------
 */

/* Even sequences stay for good and gain versions; odd ones come and go. */
#define BESIDE_N 3000
#define BESIDE_READERS 3

static struct {
    struct catalog *c;
    atomic_bool stop;
    atomic_ullong version[BESIDE_N];
    atomic_ullong reads;
} beside;

static void beside_check(const struct catalog_entry *e, uint64_t at_least)
{
    struct catalog_entry want =
        entry_of(9, 1, e->id.sequence, e->id.sequence, e->stored_sum);

    assert_entry(&want, e);
    assert_true(e->stored_sum >= at_least);
}

static void beside_walk(void)
{
    struct catalog_entry e;
    uint64_t at = 0, evens = 0;

    while (catalog_next(beside.c, 9, at, &e) == 0) {
        assert_true(e.ordinal >= at);
        evens += e.ordinal % 2 == 0;
        beside_check(&e, 0);
        at = e.ordinal + 1;
    }
    assert_int_equal(evens, BESIDE_N / 2);
}

static void *beside_reader(void *arg)
{
    uint64_t seed = (uint64_t)(uintptr_t)arg * 77777 + 1;

    while (!atomic_load(&beside.stop)) {
        uint64_t i = random_next(&seed) % BESIDE_N;
        struct block_id id = {.generation = 9, .writer = 1, .sequence = i};
        uint64_t known = atomic_load(&beside.version[i]);
        struct catalog_entry e;
        int rv = random_next(&seed) % 2 != 0
                     ? catalog_get(beside.c, &id, &e)
                     : catalog_get_ordinal(beside.c, 9, i, &e);
        if (rv == 0) {
            beside_check(&e, known);
        } else {
            assert_int_equal(rv, HEDGE_ENOTFOUND);
            assert_int_equal(i % 2, 1);
        }
        atomic_fetch_add(&beside.reads, 1);
        if (random_next(&seed) % 2000 == 0) {
            beside_walk();
        }
    }
    return NULL;
}

/* Commits as often as can be: each one is a chance for a lookup to see a
 * change in neither place. */
static void *beside_flusher(void *arg)
{
    while (!atomic_load(&beside.stop)) {
        assert_int_equal(catalog_flush(beside.c), 0);
    }
    return arg;
}

static void beside_put(uint64_t i, uint64_t version)
{
    struct catalog_entry e = entry_of(9, 1, i, i, version);

    assert_int_equal(catalog_put(beside.c, &e), 0);
    atomic_store(&beside.version[i], version);
}

static void beside_other_store(uint64_t generation)
{
    struct catalog_entry got;

    for (uint64_t i = 0; i < 5000; i++) {
        struct catalog_entry e = entry_of(generation, 2, i, i, i);
        assert_int_equal(catalog_put(beside.c, &e), 0);
    }
    assert_int_equal(catalog_remove_store(beside.c, generation), 0);
    assert_int_equal(catalog_next(beside.c, generation, 0, &got),
                     HEDGE_ENOTFOUND);
}

static void test_readers_beside_writer(void **state)
{
    pthread_t threads[BESIDE_READERS], flusher;
    uint64_t seed = 4711, until = clock_mono_ms() + 2500, version = 1;

    (void)state;
    memset(&beside, 0, sizeof beside);
    beside.c = open_catalog();
    for (uint64_t i = 0; i < BESIDE_N; i++) {
        beside_put(i, 1);
    }
    for (uintptr_t i = 0; i < BESIDE_READERS; i++) {
        pthread_create(&threads[i], NULL, beside_reader, (void *)i);
    }
    pthread_create(&flusher, NULL, beside_flusher, NULL);
    while (clock_mono_ms() < until) {
        uint64_t i = random_next(&seed) % BESIDE_N;
        struct block_id id = {.generation = 9, .writer = 1, .sequence = i};
        if (i % 2 == 1 && random_next(&seed) % 2 == 0) {
            assert_int_equal(catalog_remove(beside.c, &id), 0);
        } else {
            beside_put(i, ++version);
        }
        if (version % 3000 == 0) {
            beside_other_store(100 + version);
            version++;
        }
    }
    atomic_store(&beside.stop, true);
    for (unsigned i = 0; i < BESIDE_READERS; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_join(flusher, NULL);
    assert_true(atomic_load(&beside.reads) > 0);
    catalog_free(beside.c);
}

/* --- what is new and what is just gone ------------------------------------ */

/* Entries come in at the front, with gaps, and go at the back: all that a
 * reader asks for is in the middle of being written. */
#define GAP 10
#define TRAIL 50

static struct {
    struct catalog *c;
    atomic_bool stop;
    atomic_ullong last, removed;
} front;

static void *front_reader(void *arg)
{
    while (!atomic_load(&front.stop)) {
        uint64_t last = atomic_load(&front.last);
        uint64_t removed = atomic_load(&front.removed);
        struct catalog_entry e;

        assert_int_equal(catalog_next(front.c, 3, last * GAP - GAP / 2, &e), 0);
        if (atomic_load(&front.last) < last + TRAIL) {
            assert_int_equal(e.ordinal, last * GAP); /* Not removed yet. */
        }
        assert_int_equal(catalog_get_ordinal(front.c, 3, removed * GAP, &e),
                         HEDGE_ENOTFOUND);
        assert_int_equal(catalog_next(front.c, 3, removed * GAP, &e), 0);
        assert_true(e.ordinal > removed * GAP);
    }
    return arg;
}

static void *front_flusher(void *arg)
{
    while (!atomic_load(&front.stop)) {
        assert_int_equal(catalog_flush(front.c), 0);
    }
    return arg;
}

static void test_front_and_back(void **state)
{
    pthread_t readers[2], flusher;
    uint64_t until = clock_mono_ms() + 2500;

    (void)state;
    memset(&front, 0, sizeof front);
    front.c = open_catalog();
    for (uint64_t k = 1; clock_mono_ms() < until; k++) {
        struct catalog_entry e = entry_of(3, 0, k, k * GAP, k);
        assert_int_equal(catalog_put(front.c, &e), 0);
        atomic_store(&front.last, k);
        if (k > TRAIL) {
            e.id.sequence = k - TRAIL;
            assert_int_equal(catalog_remove(front.c, &e.id), 0);
            atomic_store(&front.removed, k - TRAIL);
        }
        if (k == TRAIL + 1) {
            pthread_create(&readers[0], NULL, front_reader, NULL);
            pthread_create(&readers[1], NULL, front_reader, NULL);
            pthread_create(&flusher, NULL, front_flusher, NULL);
        }
        if (k % 8 == 0) {
            sched_yield();
        }
    }
    atomic_store(&front.stop, true);
    pthread_join(readers[0], NULL);
    pthread_join(readers[1], NULL);
    pthread_join(flusher, NULL);
    catalog_free(front.c);
}

/* --- files
 * -------------------------------------------------------------------- */

static off_t data_size(void)
{
    char path[400];
    struct stat st;

    (void)snprintf(path, sizeof path, "%s/data.mdb", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    return st.st_blocks * 512;
}

static void test_reopening_empties(void **state)
{
    struct catalog_entry e = entry_of(1, 1, 1, 0, 1), got;
    char path[400];
    struct catalog *c = open_catalog();
    int fd;

    (void)state;
    assert_int_equal(catalog_put(c, &e), 0);
    assert_int_equal(catalog_flush(c), 0);
    assert_int_equal(catalog_get(c, &e.id, &got), 0);
    catalog_free(c);
    (void)snprintf(path, sizeof path, "%s/foreign", dir);
    fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    c = open_catalog();
    assert_int_equal(catalog_get(c, &e.id, &got), HEDGE_ENOTFOUND);
    assert_int_equal(catalog_next(c, 1, 0, &got), HEDGE_ENOTFOUND);
    assert_int_equal(access(path, F_OK), 0);
    catalog_free(c);
}

static void test_growth_is_bounded(void **state)
{
    struct catalog *c = open_catalog();
    const uint64_t n = 1000000, window = 2000;
    struct catalog_entry got;

    (void)state;
    for (uint64_t i = 0; i < n; i++) {
        struct catalog_entry e = entry_of(5, 0, i, i, i);
        assert_int_equal(catalog_put(c, &e), 0);
        if (i >= window) {
            struct block_id id = {.generation = 5, .sequence = i - window};
            assert_int_equal(catalog_remove(c, &id), 0);
        }
    }
    assert_int_equal(catalog_flush(c), 0);
    assert_int_equal(catalog_next(c, 5, 0, &got), 0);
    assert_int_equal(got.ordinal, n - window);
    print_message("after 1M puts and removes: %lld KiB\n",
                  (long long)data_size() >> 10);
    assert_true(data_size() < (off_t)16 << 20);
    catalog_free(c);
}

static void test_removing_a_store(void **state)
{
    struct catalog *c = open_catalog();
    struct catalog_entry got;
    struct block_id id = {.generation = 2, .sequence = 3};

    (void)state;
    for (uint64_t i = 0; i < 20000; i++) {
        for (uint64_t g = 1; g <= 3; g++) {
            struct catalog_entry e =
                entry_of(g, 0, i, i % 100 == 0 ? CATALOG_ORDINAL_NONE : i, i);
            assert_int_equal(catalog_put(c, &e), 0);
        }
    }
    assert_int_equal(catalog_remove_store(c, 2), 0);
    assert_int_equal(catalog_get(c, &id, &got), HEDGE_ENOTFOUND);
    assert_int_equal(catalog_flush(c), 0);
    assert_int_equal(catalog_get(c, &id, &got), HEDGE_ENOTFOUND);
    id.sequence = 100;
    assert_int_equal(catalog_get(c, &id, &got), HEDGE_ENOTFOUND);
    assert_int_equal(catalog_next(c, 2, 0, &got), HEDGE_ENOTFOUND);
    id.generation = 1;
    assert_int_equal(catalog_get(c, &id, &got), 0);
    assert_int_equal(catalog_next(c, 3, 19999, &got), 0);
    /* The generation may be used again. */
    id.generation = 2;
    got = entry_of(2, 0, 100, 0, 1);
    assert_int_equal(catalog_put(c, &got), 0);
    assert_int_equal(catalog_get(c, &id, &got), 0);
    catalog_free(c);
}

static bool mount_small(const char *size)
{
    char options[64];

    assert_int_equal(mkdir(dir, 0700), 0);
    (void)snprintf(options, sizeof options, "size=%s", size);
    if (mount("tmpfs", dir, "tmpfs", 0, options) != 0) {
        print_message("skipped: mounting a tmpfs: %s\n", strerror(errno));
        return false;
    }
    return true;
}

/* Nothing that was accepted is lost, nothing else is there, and when there is
 * room again it goes on. */
static void test_full_disk(void **state)
{
    struct catalog_entry got;
    struct catalog *c;
    uint64_t n = 0;
    int rv = 0, last;

    (void)state;
    if (!mount_small("3m")) {
        skip();
    }
    c = open_catalog();
    while (rv == 0) {
        struct catalog_entry e = entry_of(6, 0, n, n, n);
        rv = catalog_put(c, &e);
        n += rv == 0;
        assert_true(n < 1000000);
    }
    assert_int_equal(rv, HEDGE_ENOSPC);
    assert_int_equal(catalog_flush(c), HEDGE_ENOSPC);
    for (uint64_t i = 0; i < n; i++) {
        struct catalog_entry want = entry_of(6, 0, i, i, i);
        assert_int_equal(catalog_next(c, 6, i, &got), 0);
        assert_entry(&want, &got);
        assert_int_equal(catalog_get(c, &want.id, &got), 0);
        assert_entry(&want, &got);
    }
    assert_int_equal(catalog_next(c, 6, n, &got), HEDGE_ENOTFOUND);
    assert_int_equal(mount("tmpfs", dir, "tmpfs", MS_REMOUNT, "size=64m"), 0);
    do {
        last = catalog_flush(c);
    } while (last == HEDGE_ENOSPC);
    assert_int_equal(last, 0);
    for (uint64_t i = 0; i < n; i++) {
        struct catalog_entry want = entry_of(6, 0, i, i, i);
        assert_int_equal(catalog_next(c, 6, i, &got), 0);
        assert_entry(&want, &got);
    }
    assert_int_equal(catalog_remove_store(c, 6), 0);
    catalog_free(c);
    assert_int_equal(umount(dir), 0);
}

/* On a disk that stays full, removing makes room again. */
static void test_full_disk_recovers_by_removal(void **state)
{
    struct catalog *c;
    struct catalog_entry e;
    uint64_t n = 0;
    int rv = 0;

    (void)state;
    if (!mount_small("3m")) {
        skip();
    }
    c = open_catalog();
    while (rv == 0) {
        e = entry_of(n % 2, 0, n, n, n);
        rv = catalog_put(c, &e);
        n += rv == 0;
    }
    assert_int_equal(rv, HEDGE_ENOSPC);
    assert_int_equal(catalog_remove_store(c, 0), 0);
    assert_int_equal(catalog_flush(c), 0);
    e = entry_of(1, 0, n, n, n);
    assert_int_equal(catalog_put(c, &e), 0);
    catalog_free(c);
    assert_int_equal(umount(dir), 0);
}

static void test_allocation_failures(void **state)
{
    struct hedge_error e;
    struct catalog *c;
    int rv, n = 0;

    (void)state;
    do {
        mem_fail_after(n);
        rv = catalog_new(dir, &c, &e);
        mem_fail_after(-1);
        if (rv != 0) {
            assert_int_equal(rv, HEDGE_ENOMEM);
            assert_null(c);
            n++;
        }
    } while (rv != 0);
    assert_true(n >= 3);
    catalog_free(c);
    assert_int_equal(catalog_new("/proc/nowhere/catalog", &c, &e),
                     HEDGE_ENOTFOUND);
    assert_null(c);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_rows),
        T(test_model),
        T(test_readers_beside_writer),
        T(test_front_and_back),
        T(test_reopening_empties),
        T(test_growth_is_bounded),
        T(test_removing_a_store),
        T(test_full_disk),
        T(test_full_disk_recovers_by_removal),
        T(test_allocation_failures),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
