/* Compression: it changes the size of blocks and nothing else. */
#include "store/encode.h"

#include "store/base/clock.h"

#include "tests/lib/check.h"
#include "tests/lib/sos_box.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINES 20000

/* Text that shrinks, a line each. */
static size_t line_of(unsigned k, char *out, size_t size)
{
    int n = snprintf(out, size,
                     "Package: library-%u\nVersion: 1.%u-2+b%u\n"
                     "Depends: libc6 (>= 2.%u), libgcc-s1\n",
                     k, k % 90, k % 7, k % 40);

    assert_true(n > 0 && (size_t)n < size);
    return (size_t)n;
}

static struct manifest write_text(struct sos_store *store, size_t big_record)
{
    struct hedge_error e = {0};
    struct manifest m;
    struct writer w;
    struct sink *sink;
    char line[256];
    char *big = calloc(1, big_record + 1);

    assert_int_equal(sos_sink_open(store, &sink, &e), 0);
    writer_init(&w, sink);
    for (unsigned k = 0; k < LINES; k++) {
        assert_int_equal(writer_write(&w, line, line_of(k, line, sizeof line)),
                         0);
    }
    /* Blocks that a record spans are compressed, too. */
    assert_int_equal(writer_write(&w, big, big_record), 0);
    assert_int_equal(writer_finish(&w, &m), 0);
    if (sos_sink_close(sink, &m, &m, &e) != 0) {
        fail_msg("%s", e.text);
    }
    free(big);
    return m;
}

static void read_text(struct sos_store *store, size_t big_record)
{
    struct sos_read_options o = {.follow = false};
    struct hedge_error e = {0};
    struct source *source;
    struct reader r;
    struct piece p;
    char line[256];
    unsigned k = 0;
    size_t big = 0;
    int rv;

    assert_int_equal(sos_source_open(store, &o, &source, &e), 0);
    assert_int_equal(reader_init(&r, source), 0);
    while ((rv = reader_next(&r, 5000, &p)) == 0) {
        if (k < LINES) {
            size_t len = line_of(k, line, sizeof line);

            assert_true(p.first && p.last);
            assert_int_equal(p.len, len);
            assert_memory_equal(p.data, line, len);
        } else {
            big += p.len;
        }
        k += p.last;
    }
    if (rv != HEDGE_EEND) {
        fail_msg("%s", r.error.text);
    }
    assert_int_equal(k, LINES + 1);
    assert_int_equal(big, big_record);
    reader_release(&r);
}

static uint64_t stored_bytes(struct sos_store *store)
{
    struct sos_info info;
    uint64_t n = 0;

    assert_int_equal(sos_store_info(store, &info), 0);
    for (unsigned i = 0; i < info.n_uses; i++) {
        n += info.uses[i].stored_bytes;
    }
    free(info.uses);
    return n;
}

static void end_store(struct sos_store *store)
{
    sos_remove(store);
    sos_store_unref(store);
}

/* Over memory, disk and another node: the digest does not change, and every
 * tier holds less. */
static void zstd_changes_only_the_size(void **state)
{
    const size_t big = 300000;
    struct sos_store_options o = box_defaults();
    struct sos_store *plain, *packed;
    struct manifest a, b;
    struct box box;

    (void)state;
    box_open(&box, &(struct box_options){
                       .blocks = 24, .disk = 20 * BOX_BLOCK, .nodes = 1});
    o.compression = SOS_COMPRESS_NONE;
    plain = box_store(&box, "plain", &o);
    a = write_text(plain, big);
    o.compression = SOS_COMPRESS_ZSTD;
    o.level = 3;
    packed = box_store(&box, "packed", &o);
    b = write_text(packed, big);
    assert_int_equal(a.records, b.records);
    assert_int_equal(a.bytes, b.bytes);
    /* Generations differ, and are not part of it. */
    assert_int_equal(a.digest.lo, b.digest.lo);
    assert_int_equal(a.digest.hi, b.digest.hi);
    assert_true(stored_bytes(packed) < stored_bytes(plain) / 2);
    read_text(plain, big);
    read_text(packed, big);
    end_store(plain);
    end_store(packed);
    box_close(&box);
}

/* What has room in memory is left alone; what leaves for a slow node is not. */
static void auto_compresses_what_is_slow(void **state)
{
    struct sos_store_options o = box_defaults();
    struct sos_store *store;
    struct fake_unit u;
    struct box box;
    unsigned rounds = 0;

    (void)state;
    o.compression = SOS_COMPRESS_AUTO;
    box_open(&box, &(struct box_options){.blocks = 128, .nodes = 1});
    store = box_store(&box, "roomy", &o);
    (void)write_text(store, 1000);
    assert_true(stored_bytes(store) > (uint64_t)LINES * 70);
    end_store(store);
    box_close(&box);

    box_open(&box, &(struct box_options){.nodes = 1});
    u = fake_tier_unit(box.remote, 0);
    u.delay_ms = 3; /* 64 KiB each 3 ms: 20 MB/s. */
    fake_tier_set(box.remote, 0, &u);
    do {
        /* The rate is known after 16 MiB. */
        store = box_store(&box, "slow", &o);
        (void)write_text(store, 4000000);
        read_text(store, 4000000);
        /* What left before the writer had to wait is as it was. */
        if (stored_bytes(store) < ((uint64_t)LINES * 70 + 4000000) / 4) {
            rounds = 100;
        }
        end_store(store);
        box_expect_empty(&box);
    } while (++rounds < 30);
    assert_true(rounds > 100);
    box_close(&box);
}

static void noise_is_left_alone(void **state)
{
    const uint64_t second = 1000000000u;
    unsigned char noise[60000];
    struct encoders *e;
    uint64_t seed = 1;

    (void)state;
    for (size_t i = 0; i < sizeof noise; i++) {
        noise[i] = (unsigned char)(random_next(&seed) >> 24);
    }
    assert_int_equal(encoders_new(BOX_BLOCK, &e), 0);
    assert_false(encoders_pay(e, noise, sizeof noise, 1e6, second));
    memset(noise, 'x', sizeof noise);
    assert_true(encoders_pay(e, noise, sizeof noise, 1e6, second));
    assert_false(encoders_pay(e, noise, sizeof noise, 1e12, second));
    assert_false(encoders_pay(e, noise, sizeof noise, 0, second));
    /* A writer that need not wait for the tier. */
    assert_false(encoders_pay(e, noise, sizeof noise, 1e6, 0));
    assert_false(encoders_pay(e, noise, sizeof noise, 1e6, second / 1000000));
    encoders_free(e);
}

static void a_meter_counts_busy_time_only(void **state)
{
    struct meter m;

    (void)state;
    meter_init(&m);
    assert_true(meter_rate(&m) == 0);
    for (unsigned i = 0; i < 20; i++) {
        meter_begin(&m);
        clock_sleep_ms(2);
        meter_end(&m, (size_t)1 << 20);
        clock_sleep_ms(10); /* Nothing is on its way. */
    }
    /* 1 MiB in at least 2 ms, and idle time is not in it. */
    assert_true(meter_rate(&m) > 0);
    assert_true(meter_rate(&m) < 600e6);
    meter_release(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zstd_changes_only_the_size),
        cmocka_unit_test(auto_compresses_what_is_slow),
        cmocka_unit_test(noise_is_left_alone),
        cmocka_unit_test(a_meter_counts_busy_time_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
