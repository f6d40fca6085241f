#include "tests/lib/peer_node.h"

#include "store/base/clock.h"
#include "store/base/hash.h"
#include "store/base/log.h"
#include "tests/lib/rpc_service.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

const struct tier_store peer_test_store = {.name = "test"};

/* --- nodes ---------------------------------------------------------------- */

static int on_put(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct peer_node *n = ctx;

    return n->put != NULL ? n->put(s, n->ctx, e)
                          : peer_service_put(n->service, s, e);
}

static int on_get(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct peer_node *n = ctx;

    return n->get != NULL ? n->get(s, n->ctx, e)
                          : peer_service_get(n->service, s, e);
}

static void on_drop(struct rpc_call *c, void *ctx, const void *request,
                    size_t len)
{
    struct peer_node *n = ctx;

    if (n->drop != NULL) {
        n->drop(c, n->ctx, request, len);
    } else {
        peer_service_drop(n->service, c, request, len);
    }
}

static void on_renew(struct rpc_call *c, void *ctx, const void *request,
                     size_t len)
{
    struct peer_node *n = ctx;

    peer_service_renew(n->service, c, request, len);
}

void peer_node_unmute(struct peer_node *n)
{
    static const struct rpc_method methods[] = {
        {"/hedge.v1.Peer/Put", NULL, on_put, 0},
        {"/hedge.v1.Peer/Get", NULL, on_get, 0},
        {"/hedge.v1.Peer/Drop", on_drop, NULL, 0},
        {"/hedge.v1.Peer/Renew", on_renew, NULL, 0},
    };
    const char *address = n->address;
    struct rpc_server_options o = {.addresses = &address,
                                   .n_addresses = 1,
                                   .methods = methods,
                                   .n_methods = 4,
                                   .ctx = n};
    struct hedge_error e = {.code = 0};

    if (rpc_server_new(&o, &n->server, &e) != 0) {
        fail_msg("%s", e.text);
    }
}

void peer_node_mute(struct peer_node *n)
{
    rpc_server_free(n->server, 0);
    n->server = NULL;
}

void peer_node_start(struct peer_node *n, const char *id, uint64_t incarnation,
                     struct sos_options o)
{
    const char *tmp = getenv("TMPDIR");
    struct peer_service_options so = {.block_lease_ms = PEER_TEST_LEASE_MS};
    struct hedge_error e = {.code = 0};

    memset(n, 0, sizeof *n);
    (void)snprintf(n->dir, sizeof n->dir, "%s/hedge-peer-XXXXXX",
                   tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(n->dir));
    (void)snprintf(n->address, sizeof n->address, "unix:%s/socket", n->dir);
    n->id = id;
    n->incarnation = incarnation;
    o.node = id;
    o.data_dir = n->dir;
    o.block_size = o.block_size != 0 ? o.block_size : PEER_TEST_BLOCK;
    o.mem_limit = o.mem_limit != 0 ? o.mem_limit : 64 * o.block_size;
    o.lend_mem = o.lend_mem != 0 ? o.lend_mem : SOS_UNLIMITED;
    o.lend_disk = o.lend_disk != 0 ? o.lend_disk : SOS_UNLIMITED;
    n->block_size = o.block_size;
    if (sos_new(&o, &n->sos, &e) != 0) {
        fail_msg("%s", e.text);
    }
    so.sos = n->sos;
    so.incarnation = incarnation;
    assert_int_equal(peer_service_new(&so, &n->service), 0);
    peer_node_unmute(n);
}

void peer_node_stop(struct peer_node *n)
{
    char cmd[300];

    peer_node_mute(n);
    peer_service_free(n->service);
    sos_free(n->sos);
    (void)snprintf(cmd, sizeof cmd, "rm -rf %s", n->dir);
    assert_int_equal(system(cmd), 0);
}

struct peer_info peer_node_info(const struct peer_node *n)
{
    struct sos_usage u;

    sos_usage(n->sos, &u);
    return (struct peer_info){.id = n->id,
                              .incarnation = n->incarnation,
                              .target = n->address,
                              .mem_free = u.mem_lendable,
                              .disk_free = u.disk_lendable};
}

uint64_t peer_node_lent(const struct peer_node *n)
{
    struct sos_usage u;

    sos_usage(n->sos, &u);
    return u.mem_lent + u.disk_lent;
}

void peer_node_await_empty(const struct peer_node *n)
{
    uint64_t until = clock_mono_ms() + PEER_TEST_WAIT_MS;

    while (peer_node_lent(n) != 0 && clock_mono_ms() < until) {
        clock_sleep_ms(5);
    }
    assert_int_equal(peer_node_lent(n), 0);
}

/* --- in another process -----------------------------------------------------
 */

#define FAR_ROLE "peer-node"

void far_node_role(int argc, char **argv)
{
    struct peer_node n;
    char c;

    if (argc != 3 || strcmp(argv[1], FAR_ROLE) != 0) {
        return;
    }
    /* A stopped one does not outlive a test that was killed. */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    log_set_level(LOG_ERROR);
    rpc_process_setup();
    peer_node_start(&n, "far", 1, (struct sos_options){.mem_limit = 0});
    (void)printf("%s\n", n.address);
    (void)fflush(stdout);
    while (read(STDIN_FILENO, &c, 1) > 0) {
    }
    exit(0);
}

void far_node_start(struct far_node *n)
{
    n->pid = service_spawn(FAR_ROLE, "", n->address, sizeof n->address);
    assert_int_equal(strncmp(n->address, "unix:/", 6), 0);
}

void far_node_stop(struct far_node *n)
{
    char cmd[400];
    char *last = strrchr(n->address, '/');

    service_kill(n->pid);
    assert_non_null(last);
    (void)snprintf(cmd, sizeof cmd, "rm -rf %.*s", (int)(last - n->address - 5),
                   n->address + 5);
    assert_int_equal(system(cmd), 0);
}

struct peer_info far_node_info(const struct far_node *n)
{
    return (struct peer_info){.id = "far",
                              .incarnation = 1,
                              .target = n->address,
                              .mem_free = (uint64_t)1 << 40};
}

/* --- the tier ------------------------------------------------------------- */

#define NODES_MAX 8

void peer_test_tell(struct tier *t, struct peer_node *const *nodes, size_t n)
{
    struct peer_info infos[NODES_MAX];

    assert_true(n <= NODES_MAX);
    for (size_t i = 0; i < n; i++) {
        infos[i] = peer_node_info(nodes[i]);
    }
    peer_tier_update(t, infos, n);
}

struct tier *peer_test_tier(size_t block_size, struct peer_node *const *nodes,
                            size_t n)
{
    static uint64_t lives = 7;
    struct peer_tier_options o = {.self_id = "self",
                                  .incarnation = lives++,
                                  .block_size = block_size,
                                  .block_lease_ms = PEER_TEST_LEASE_MS};
    struct tier *t;

    assert_int_equal(peer_tier_new(&o, &t), 0);
    peer_test_tell(t, nodes, n);
    return t;
}

/* --- moves ---------------------------------------------------------------- */

static size_t room_of(size_t len)
{
    return (len + 4095) & ~(size_t)4095;
}

static void on_end(struct tier_req *req)
{
    struct move *m = req->ctx;

    if (m->poison) {
        memset(req->data, 0xdd, req->len);
    }
    atomic_fetch_add(&m->ended, 1);
}

void move_init(struct move *m, uint64_t generation, uint64_t sequence,
               size_t size)
{
    struct block_header h = {.id = {generation, sequence, 3}, .records = 1};
    unsigned char *payload;

    memset(m, 0, sizeof *m);
    assert_true(size > BLOCK_HEADER_SIZE + 8);
    m->bytes = malloc(size);
    m->req.data = aligned_alloc(4096, room_of(size));
    assert_non_null(m->bytes);
    assert_non_null(m->req.data);
    payload = m->bytes + BLOCK_HEADER_SIZE;
    h.raw_len = h.stored_len = (uint32_t)(size - BLOCK_HEADER_SIZE);
    for (uint32_t i = 0; i < h.raw_len; i++) {
        payload[i] = (unsigned char)(sequence * 131 + i * 7 + (i >> 8));
    }
    h.raw_sum = h.stored_sum = hash64(payload, h.raw_len);
    block_header_encode(&h, m->bytes);
    memcpy(m->req.data, m->bytes, size);
    m->req.id = h.id;
    m->req.len = size;
    m->req.store = &peer_test_store;
    m->req.cb = on_end;
    m->req.ctx = m;
}

void move_release(struct move *m)
{
    free(m->bytes);
    free(m->req.data);
}

void move_put(struct tier *t, struct move *m)
{
    atomic_store(&m->ended, 0);
    memcpy(m->req.data, m->bytes, m->req.len);
    assert_int_equal(tier_put(t, &m->req), 0);
}

void move_get(struct tier *t, struct move *m)
{
    atomic_store(&m->ended, 0);
    m->poison = false;
    memset(m->req.data, 0xee, m->req.len);
    assert_int_equal(tier_get(t, &m->req), 0);
}

int move_wait(struct move *m)
{
    uint64_t until = clock_mono_ms() + PEER_TEST_WAIT_MS;

    while (atomic_load(&m->ended) == 0 && clock_mono_ms() < until) {
        clock_sleep_ms(1);
    }
    assert_int_equal(atomic_load(&m->ended), 1);
    return m->req.status;
}

int move_there(struct tier *t, struct move *m)
{
    move_put(t, m);
    return move_wait(m);
}

int move_back(struct tier *t, struct move *m)
{
    move_get(t, m);
    return move_wait(m);
}

void move_check(struct tier *t, struct move *m)
{
    if (move_back(t, m) != 0) {
        fail_msg("%s", m->req.error.text);
    }
    assert_memory_equal(m->req.data, m->bytes, m->req.len);
}

void move_drop(struct tier *t, struct move *m)
{
    tier_drop(t, &m->req.id, &m->req.place, m->req.len);
}
