/* LogPutRequest as protobuf-c writes it, and as nobody should. */
#include "cluster/log/kv.h"
#include "cluster/log/log_request.h"
#include "cluster/pb.h"
#include "proto/log.pb-c.h"
#include "store/base/mem.h"

#include "tests/lib/check.h"

#include <stdlib.h>
#include <string.h>

static struct hedge_error err;

static void set(ProtobufCBinaryData *b, const char *text)
{
    b->data = (unsigned char *)(uintptr_t)text;
    b->len = strlen(text);
}

static void as_it_was_written(void **state)
{
    Hedge__V1__LogPutRequest m = HEDGE__V1__LOG_PUT_REQUEST__INIT;
    Hedge__V1__LogPut a = HEDGE__V1__LOG_PUT__INIT, b = a, c = a;
    Hedge__V1__LogPut *puts[] = {&a, &b, &c};
    struct engine_put got[3];
    struct log_request r;
    struct pb_buf buf;

    (void)state;
    set(&a.key, "key");
    set(&a.value, "value");
    set(&a.request, "0123456789abcdef");
    set(&b.key, "other");
    b.no_append = true;
    m.n_puts = 3;
    m.puts = puts;
    m.leader_only = true;
    m.timeout_ms = 1234567;
    assert_int_equal(pb_pack(&m.base, &buf), 0);
    assert_int_equal(log_request_parse(buf.data, buf.len, &r, &err), 0);
    assert_int_equal(r.n_puts, 3);
    assert_int_equal(r.timeout_ms, 1234567);
    assert_true(r.leader_only);
    assert_int_equal(log_request_puts(buf.data, buf.len, &r, got, &err), 0);
    assert_int_equal(got[0].key_len, 3);
    assert_memory_equal(got[0].key, "key", 3);
    assert_int_equal(got[0].value_len, 5);
    assert_memory_equal(got[0].value, "value", 5);
    assert_memory_equal(got[0].request, "0123456789abcdef", 16);
    assert_int_equal(got[0].flags, 0);
    assert_memory_equal(got[1].key, "other", 5);
    assert_int_equal(got[1].value_len, 0);
    assert_int_equal(got[1].flags, ENGINE_REPLACE);
    assert_int_equal(got[2].key_len, 0); /* For kv_check_put() to refuse. */
    for (size_t len = 0; len < buf.len; len++) { /* Cut anywhere. */
        if (log_request_parse(buf.data, len, &r, &err) == 0) {
            (void)log_request_puts(buf.data, len, &r, got, &err);
        }
    }
    mem_free(buf.data);
}

static int puts_of(const char *bytes, size_t len)
{
    struct engine_put got[2];
    struct log_request r;
    int rv = log_request_parse(bytes, len, &r, &err);

    return rv != 0 ? rv : log_request_puts(bytes, len, &r, got, &err);
}

static void refused(void **state)
{
    (void)state;
    assert_int_equal(puts_of("", 0), HEDGE_EINVAL);
    assert_int_equal(puts_of("\x08\x01", 2), HEDGE_EPROTO);
    assert_int_equal(puts_of("\x0a\x02\x0a", 3), HEDGE_EPROTO);
    assert_int_equal(puts_of("\x0a\x02\x08\x01", 4), HEDGE_EPROTO);
    assert_int_equal(puts_of("\x0a\x02\x1a\x00", 4), HEDGE_EPROTO);
    assert_int_equal(puts_of("\x0a\x02\x0a\x05", 4), HEDGE_EPROTO);
    assert_int_equal(puts_of("\x0a\x03\x22\x01x", 5), HEDGE_EINVAL);
    assert_non_null(strstr(err.text, "request id of 1 bytes"));
    assert_int_equal(puts_of("\x0a\x02\x7a\x00", 4), 0); /* Not known yet. */
}

/* Two bytes each: as objects they would take a hundred times as much. */
static void many_empty_puts(void **state)
{
    size_t n = 1000000;
    char *bytes = malloc(2 * n);
    struct log_request r;

    (void)state;
    assert_non_null(bytes);
    for (size_t i = 0; i < n; i++) {
        bytes[2 * i] = 0x0a;
        bytes[2 * i + 1] = 0;
    }
    assert_int_equal(log_request_parse(bytes, 2 * n, &r, &err), HEDGE_EINVAL);
    assert_non_null(strstr(err.text, "1000000 puts"));
    assert_int_equal(
        log_request_parse(bytes, (size_t)2 * KV_BATCH_PUTS, &r, &err), 0);
    assert_int_equal(r.n_puts, KV_BATCH_PUTS);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_it_was_written),
                                       cmocka_unit_test(refused),
                                       cmocka_unit_test(many_empty_puts)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
