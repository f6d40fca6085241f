/* Writers and readers of several stores at once, with random sizes, limits,
 * discards, tiers and faults, against what each writer knows it has written.
 *
 *   test_sos_model [SEED [ROUNDS]]     replays what a failure printed */
#include "store/base/clock.h"
#include "store/base/log.h"
#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STORES 2
#define WRITERS 3
#define READERS 3
#define SECONDS_MAX 120

struct model {
    struct box box;
    uint64_t seed;
    bool read_faults;
};

struct written { /* What a writer's close said, by the writer's number. */
    bool ended, aborted;
    uint64_t records;
};

struct case_store {
    struct model *model;
    struct sos_store *store;
    struct record_shape shape;
    pthread_mutex_t lock;
    struct written by[RECORD_WRITERS];
    bool discarded;
    atomic_bool removed, aborted;
    atomic_uint threads, opened; /* Writing; sinks ever opened. */
    unsigned replicas;
};

struct task {
    struct case_store *cs;
    uint64_t random;
    unsigned idle;
    pthread_t thread;
};

#define MUST(what)                                                            \
    do {                                                                      \
        if (!(what)) {                                                        \
            (void)fprintf(stderr, "%s:%d: seed %llu: not so: %s\n", __FILE__, \
                          __LINE__, (unsigned long long)t->cs->model->seed,   \
                          #what);                                             \
            abort();                                                          \
        }                                                                     \
    } while (0)

static uint64_t below(struct task *t, uint64_t n)
{
    return random_next(&t->random) % n;
}

/* --- writers --- */

static struct sink *open_sink(struct task *t)
{
    struct hedge_error e = {0};
    struct sink *sink;
    int rv, tries = 50;

    /* Full memory may have used up what new writers are to have. */
    while ((rv = sos_sink_open(t->cs->store, &sink, &e)) == HEDGE_EBUSY &&
           tries-- > 0) {
        clock_sleep_ms(1);
    }
    MUST(rv == 0 || rv == HEDGE_EBUSY ||
         (rv == HEDGE_ENOTFOUND && t->cs->removed));
    return rv == 0 ? sink : NULL;
}

static void end_writer(struct task *t, struct writer *w, struct sink *sink,
                       uint64_t accepted)
{
    struct written *mine = &t->cs->by[sink->writer];
    struct manifest claimed, m;
    struct hedge_error e = {0};
    bool abort_it = below(t, 12) == 0;
    int rv = 0, status;

    if (abort_it) {
        writer_drop(w);
        pthread_mutex_lock(&t->cs->lock);
        t->cs->aborted = mine->aborted = true;
        pthread_mutex_unlock(&t->cs->lock);
        sos_sink_abort(sink);
        return;
    }
    status = writer_finish(w, &claimed);
    pthread_mutex_lock(&t->cs->lock);
    mine->ended = true;
    mine->records = claimed.records;
    pthread_mutex_unlock(&t->cs->lock);
    rv = sos_sink_close(sink, &claimed, &m, &e);
    if (rv == HEDGE_ENOTFOUND) {
        MUST(t->cs->removed);
        return;
    }
    if (rv != 0 && rv != HEDGE_EFULL) {
        (void)fprintf(stderr, "close: %s\n", e.text);
    }
    MUST(rv == 0 || rv == HEDGE_EFULL);
    MUST(status == 0 || rv == status);
    MUST(manifest_equal(&claimed, &m));
    /* The last accepted ones may be in the block that did not fit. */
    MUST(rv == HEDGE_EFULL || m.records == accepted);
    MUST(m.records <= accepted + 1);
}

static void *writer_main(void *arg)
{
    struct task *t = arg;
    struct case_store *cs = t->cs;
    void *buf = malloc(cs->shape.max + 1);

    for (unsigned round = 0; round < 2; round++) {
        struct sink *sink = open_sink(t);
        uint64_t n = below(t, 400), i;
        struct writer w;
        int rv = 0;

        if (sink == NULL) {
            break;
        }
        cs->opened++;
        writer_init(&w, sink);
        for (i = 0; i < n && rv == 0; i += rv == 0) {
            rv = record_write(&cs->shape, &w, sink->writer, i, buf);
            if (rv == 0 && below(t, 50) == 0) {
                rv = writer_flush(&w);
                i += rv != 0; /* The record was taken, the flush failed. */
            }
            if (below(t, 200) == 0) {
                clock_sleep_ms(1);
            }
        }
        MUST(rv == 0 || rv == HEDGE_EFULL ||
             (rv == HEDGE_ENOTFOUND && cs->removed));
        end_writer(t, &w, sink, i);
    }
    free(buf);
    cs->threads--;
    return NULL;
}

/* --- readers --- */

/* Following, nothing came for a second. Is it to be waited for? */
static bool still_to_come(struct task *t, const struct sos_read_options *o)
{
    static const unsigned long_enough = 20;

    MUST(o->follow);
    if (t->cs->threads > 0) {
        t->idle = 0;
        return true;
    }
    /* With no writer ever there is no last one to close. */
    MUST(t->idle++ < long_enough || t->cs->opened == 0);
    return t->cs->opened > 0;
}

static void check_complete(struct task *t, const struct record_check *c,
                           bool all)
{
    struct case_store *cs = t->cs;

    pthread_mutex_lock(&cs->lock);
    for (unsigned i = 0; i < RECORD_WRITERS; i++) {
        if (cs->by[i].ended && all) {
            MUST(c->next[i] == cs->by[i].records);
        } else if (cs->by[i].ended) {
            MUST(c->next[i] <= cs->by[i].records);
        }
    }
    pthread_mutex_unlock(&cs->lock);
}

static void check_end(struct task *t, int rv, const struct reader *r)
{
    bool ok = rv == HEDGE_EEND || (rv == HEDGE_EABORTED && t->cs->aborted) ||
              (rv == HEDGE_ENOTFOUND && (t->cs->removed || t->cs->discarded)) ||
              (rv == HEDGE_EIO && t->cs->model->read_faults);

    if (!ok) {
        struct sos_usage u;

        sos_usage(t->cs->model->box.sos, &u);
        for (unsigned i = 0; i < ARENA_CLASSES; i++) {
            (void)fprintf(stderr, "class %u: %llu blocks\n", i,
                          (unsigned long long)u.arena.by_class[i] / BOX_BLOCK);
        }
        (void)fprintf(stderr, "a reader ended with %s: %s\n", hedge_errname(rv),
                      r->error.text);
    }
    MUST(ok);
}

static void read_some(struct task *t, struct reader *r, struct record_check *c)
{
    uint64_t n = below(t, 300);
    struct piece p;

    while (n-- > 0 && reader_next(r, 1000, &p) == 0) {
        record_check_piece(c, &p);
    }
}

static void *reader_main(void *arg)
{
    struct task *t = arg;
    struct case_store *cs = t->cs;
    struct reader *abandoned = NULL;

    for (unsigned round = 0; round < 4; round++) {
        struct sos_read_options o = {.follow = below(t, 2) == 0,
                                     .discard =
                                         cs->discarded && below(t, 3) == 0};
        struct hedge_error e = {0};
        struct record_check c;
        struct source *source;
        struct reader *r;
        int rv = sos_source_open(cs->store, &o, &source, &e);

        if (rv == HEDGE_EBUSY) {
            clock_sleep_ms(2);
            continue;
        }
        MUST(rv == 0);
        r = malloc(sizeof *r);
        MUST(reader_init(r, source) == 0);
        record_check_init(&c, &cs->shape);
        if (abandoned == NULL && below(t, 3) == 0) {
            read_some(t, r, &c);
            abandoned = r; /* And never again. */
            continue;
        }
        do {
            rv = record_check_all(&c, r, 1000);
        } while (rv == HEDGE_ETIMEDOUT && still_to_come(t, &o));
        if (rv != HEDGE_ETIMEDOUT) {
            check_end(t, rv, r);
            check_complete(t, &c, false);
        }
        box_reader_free(r);
    }
    if (abandoned != NULL) {
        box_reader_free(abandoned);
    }
    return NULL;
}

/* --- a round --- */

static void read_after(struct task *t)
{
    struct reader *r = box_reader(t->cs->store, NULL);
    struct record_check c;
    int rv;

    record_check_init(&c, &t->cs->shape);
    rv = record_check_all(&c, r, 1000);
    check_end(t, rv, r);
    if (rv == HEDGE_EEND || rv == HEDGE_EABORTED) {
        check_complete(t, &c, !t->cs->discarded);
    }
    if (rv == HEDGE_EEND && !t->cs->discarded) {
        MUST(manifest_equal(&r->seen, &r->seg.manifest));
    }
    box_reader_free(r);
}

static void set_up_store(struct model *m, struct case_store *cs, unsigned i,
                         uint64_t *random, unsigned nodes)
{
    static const size_t longest[] = {300, 5000, 70000, 400000};
    struct sos_store_options o = box_defaults();
    char name[8];

    memset(cs, 0, sizeof *cs);
    pthread_mutex_init(&cs->lock, NULL);
    cs->model = m;
    cs->shape = (struct record_shape){.seed = random_next(random),
                                      .min = RECORD_NAMED,
                                      .max = longest[random_next(random) % 4]};
    if (random_next(random) % 3 == 0) {
        o.mem_limit = (random_next(random) % 8) * BOX_BLOCK;
    }
    if (random_next(random) % 3 == 0) {
        o.disk_limit = 1 + (random_next(random) % 20) * BOX_BLOCK;
    }
    if (nodes > 0 && random_next(random) % 3 == 0) {
        o.replicas = 2;
    }
    cs->replicas = o.replicas;
    cs->threads = WRITERS;
    cs->discarded = random_next(random) % 2 == 0;
    (void)snprintf(name, sizeof name, "s%u", i);
    cs->store = box_store(&m->box, name, &o);
}

static void set_up_faults(struct model *m, unsigned nodes, uint64_t *random)
{
    static const int how[] = {-ENOSPC, -EIO, 4096};

    switch (random_next(random) % 4) {
    case 0:
        disk_fault_arm(&m->box.fault, random_next(random) % 2 == 0 ? 'w' : 'a',
                       1 + (long)(random_next(random) % 30),
                       how[random_next(random) % 3],
                       random_next(random) % 2 == 0);
        break;
    case 1:
        m->read_faults = true;
        disk_fault_arm(&m->box.fault, 'r', 1 + (long)(random_next(random) % 60),
                       -EIO, false);
        break;
    default:
        break;
    }
    for (unsigned i = 0; i < nodes; i++) {
        struct fake_unit u = fake_tier_unit(m->box.remote, i);

        u.delay_ms = random_next(random) % 3 == 0 ? 2 : 0;
        u.put_status = random_next(random) % 8 == 0 ? HEDGE_EUNAVAILABLE : 0;
        u.refuse = random_next(random) % 8 == 0;
        fake_tier_set(m->box.remote, i, &u);
    }
}

static void run_round(uint64_t seed)
{
    static const uint64_t disks[] = {0, 1 << 20, 4 << 20, 256 << 20};
    struct model m = {.seed = seed};
    struct case_store stores[STORES];
    struct task tasks[STORES][WRITERS + READERS];
    uint64_t random = seed;
    unsigned nodes = (unsigned)(random_next(&random) % 3);
    struct box_options o = {
        .blocks = 16 + (unsigned)(random_next(&random) % 24),
        .disk = disks[random_next(&random) % 4],
        .nodes = nodes,
        .drain_ms = 30,
        .node_limit = random_next(&random) % 2 == 0 ? (uint64_t)2 << 20
                                                    : (uint64_t)1 << 30};

    alarm(SECONDS_MAX);
    box_open(&m.box, &o);
    (void)fprintf(stderr, "%u blocks, disk %llu, %u nodes of %llu\n", o.blocks,
                  (unsigned long long)o.disk, o.nodes,
                  (unsigned long long)o.node_limit);
    set_up_faults(&m, nodes, &random);
    for (unsigned i = 0; i < STORES; i++) {
        set_up_store(&m, &stores[i], i, &random, nodes);
    }
    for (unsigned i = 0; i < STORES; i++) {
        for (unsigned k = 0; k < WRITERS + READERS; k++) {
            struct task *t = &tasks[i][k];

            *t =
                (struct task){.cs = &stores[i], .random = random_next(&random)};
            assert_int_equal(
                pthread_create(&t->thread, NULL,
                               k < WRITERS ? writer_main : reader_main, t),
                0);
        }
    }
    if (random_next(&random) % 4 == 0) {
        clock_sleep_ms(random_next(&random) % 20);
        stores[0].removed = true;
        sos_remove(stores[0].store);
    }
    for (unsigned i = 0; i < STORES; i++) {
        for (unsigned k = 0; k < WRITERS + READERS; k++) {
            pthread_join(tasks[i][k].thread, NULL);
        }
    }
    for (unsigned i = 0; i < STORES; i++) {
        read_after(&tasks[i][0]);
        sos_remove(stores[i].store);
        sos_store_unref(stores[i].store);
        pthread_mutex_destroy(&stores[i].lock);
    }
    box_expect_empty(&m.box);
    box_close(&m.box);
}

static uint64_t first_seed;
static unsigned rounds = 40;

static void many_at_once(void **state)
{
    (void)state;
    for (unsigned i = 0; i < rounds; i++) {
        (void)fprintf(stderr, "seed %llu\n",
                      (unsigned long long)(first_seed + i));
        run_round(first_seed + i);
    }
    alarm(0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(many_at_once)};

    first_seed = argc > 1 ? strtoull(argv[1], NULL, 10) : clock_wall_ms();
    rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : rounds;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
