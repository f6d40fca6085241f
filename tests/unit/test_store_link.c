/* Stores on other nodes, with a far end that does not do what it should. */
#include "cluster/stores/store_link.h"

#include "cluster/rpc/wire.h"
#include "store/base/hash.h"
#include "store/base/mem.h"

#include "tests/lib/check.h"

#include <stdio.h>
#include <string.h>

#define SMALL ((size_t)BLOCK_SIZE_MIN)
#define LARGE ((size_t)BLOCK_SIZE_MAX)
#define WAIT_MS 5000

enum manner {
    OPENED_TWICE,
    END_FIRST,
    LEAVES_AT_ONCE,
    TIMES_OUT,
    FLIPS_A_BIT,
};

struct far_end {
    struct rpc_server *server;
    struct rpc_channel *channel;
    enum manner manner;
    size_t bit; /* FLIPS_A_BIT: of the second block. */
};

static void send_opened(struct rpc_stream *s, size_t block_size)
{
    Hedge__V1__ReadReply m = HEDGE__V1__READ_REPLY__INIT;

    m.opened = true;
    m.owner = (char *)(uintptr_t) "node-a";
    m.block_size = (uint32_t)block_size;
    (void)pb_send(s, &m.base, WAIT_MS);
}

#define NO_BIT SIZE_MAX

/* One record that fills a block of this size, with one wrong bit. */
static void send_block(struct rpc_stream *s, size_t size, uint64_t sequence,
                       size_t bit)
{
    unsigned char *p = mem_calloc(1, size);
    unsigned char head[64];
    uint32_t len = (uint32_t)(size - BLOCK_HEADER_SIZE);
    struct block_header h = {.id = {.generation = 1, .sequence = sequence},
                             .records = 1,
                             .raw_len = len,
                             .stored_len = len};
    Hedge__V1__ReadReply m = HEDGE__V1__READ_REPLY__INIT;
    struct rpc_out out = {.head = head, .body = p, .body_len = size};

    for (unsigned i = 0; i < BLOCK_FRAME_SIZE; i++) {
        p[BLOCK_HEADER_SIZE + i] =
            (unsigned char)((len - BLOCK_FRAME_SIZE) >> (8 * i));
    }
    h.raw_sum = h.stored_sum = hash64(block_payload(p), len);
    block_header_encode(&h, p);
    if (bit != NO_BIT) {
        p[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    m.stop = len;
    out.head_len = hedge__v1__read_reply__pack(&m, head);
    out.head_len += wire_body_tag(size, head + out.head_len);
    out.release = mem_free;
    out.release_arg = p;
    (void)rpc_stream_send(s, &out, WAIT_MS);
}

static int serve(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    const struct far_end *f = ctx;
    Hedge__V1__ReadReply m = HEDGE__V1__READ_REPLY__INIT;
    Hedge__V1__ReadEnd end = HEDGE__V1__READ_END__INIT;
    struct rpc_msg msg;

    if (f->manner == LEAVES_AT_ONCE) {
        return 0;
    }
    if (f->manner == END_FIRST) {
        m.end = &end;
        (void)pb_send(s, &m.base, WAIT_MS);
    } else {
        send_opened(s, SMALL);
        send_block(s, SMALL, 0, NO_BIT);
    }
    if (f->manner == OPENED_TWICE) {
        send_opened(s, LARGE);
        send_block(s, LARGE, 1, NO_BIT);
    }
    if (f->manner == FLIPS_A_BIT) {
        send_block(s, SMALL, 1, f->bit);
    }
    if (f->manner == TIMES_OUT) {
        return error_set(e, HEDGE_ETIMEDOUT, "the disk is slow");
    }
    while (rpc_stream_recv(s, WAIT_MS, &msg, NULL) == 0) {
        rpc_msg_release(&msg);
    }
    return 0;
}

static void far_start(struct far_end *f, enum manner manner)
{
    static const struct rpc_method methods[] = {
        {"/hedge.v1.Store/Read", NULL, serve, 0}};
    const char *address = "ipv4:127.0.0.1:0";
    struct rpc_server_options o = {.addresses = &address,
                                   .n_addresses = 1,
                                   .methods = methods,
                                   .n_methods = 1,
                                   .ctx = f};
    char target[64];

    f->manner = manner;
    assert_int_equal(rpc_server_new(&o, &f->server, NULL), 0);
    (void)snprintf(target, sizeof target, "ipv4:127.0.0.1:%u",
                   rpc_server_port(f->server, 0));
    assert_int_equal(rpc_channel_new(target, &f->channel), 0);
}

static void far_stop(struct far_end *f)
{
    rpc_channel_free(f->channel);
    rpc_server_free(f->server, 0);
}

static int open_it(struct far_end *f, struct source **source,
                   struct hedge_error *e)
{
    struct remote_read o = {.name = "x"};

    return remote_source_open(f->channel, &o, WAIT_MS, source, NULL, e);
}

/* The buffer had the first size. */
static void a_second_block_size(void **state)
{
    struct hedge_error e = {0};
    struct source *source;
    struct segment seg;
    struct far_end f;

    (void)state;
    far_start(&f, OPENED_TWICE);
    assert_int_equal(open_it(&f, &source, &e), 0);
    assert_int_equal(source->ops->next(source, WAIT_MS, &seg, &e), 0);
    assert_int_equal(source->ops->next(source, WAIT_MS, &seg, &e),
                     HEDGE_EPROTO);
    source->ops->free(source);
    far_stop(&f);
}

/* Not opened is an error, never the end of the data. */
static void an_end_before_the_beginning(void **state)
{
    static const enum manner manners[] = {END_FIRST, LEAVES_AT_ONCE};

    (void)state;
    for (unsigned i = 0; i < sizeof manners / sizeof manners[0]; i++) {
        struct hedge_error e = {0};
        struct source *source;
        struct far_end f;

        far_start(&f, manners[i]);
        assert_int_equal(open_it(&f, &source, &e), HEDGE_EPROTO);
        assert_null(source);
        assert_true(e.text[0] != '\0');
        far_stop(&f);
    }
}

/* Once the stream has ended so, "nothing yet" would be said for ever. */
static void a_time_out_over_there(void **state)
{
    struct hedge_error e = {0};
    struct source *source;
    struct segment seg;
    struct far_end f;

    (void)state;
    far_start(&f, TIMES_OUT);
    assert_int_equal(open_it(&f, &source, &e), 0);
    assert_int_equal(source->ops->next(source, WAIT_MS, &seg, &e), 0);
    assert_int_equal(source->ops->next(source, WAIT_MS, &seg, &e),
                     HEDGE_EUNAVAILABLE);
    assert_int_equal(source->ops->next(source, 0, &seg, &e),
                     HEDGE_EUNAVAILABLE);
    source->ops->free(source);
    far_stop(&f);
}

/* Between the owner and a reader, in a header or a payload: an error that says
 * which block of which store, and from where. */
static void a_bit_flipped_on_the_way(void **state)
{
    (void)state;
    for (size_t bit = 0; bit < 8 * SMALL; bit += bit < 512 ? 7 : 60013) {
        struct hedge_error e = {0};
        struct source *source;
        struct segment seg;
        struct far_end f;
        int rv;

        f.bit = bit;
        far_start(&f, FLIPS_A_BIT);
        assert_int_equal(open_it(&f, &source, &e), 0);
        assert_int_equal(source->ops->next(source, WAIT_MS, &seg, &e), 0);
        rv = source->ops->next(source, WAIT_MS, &seg, &e);
        assert_int_equal(rv, HEDGE_ECORRUPT);
        assert_non_null(strstr(e.text, "store \"x\""));
        assert_non_null(strstr(e.text, "block number 1"));
        assert_non_null(strstr(e.text, "node-a"));
        source->ops->free(source);
        far_stop(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_block_size),
        cmocka_unit_test(an_end_before_the_beginning),
        cmocka_unit_test(a_time_out_over_there),
        cmocka_unit_test(a_bit_flipped_on_the_way),
    };
    int rv;

    rpc_process_setup();
    if (rpc_init() != 0) {
        return 1;
    }
    rv = cmocka_run_group_tests(tests, NULL, NULL);
    rpc_shutdown();
    return rv;
}
