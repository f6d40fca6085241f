/* spill.c - embed a node, stream numbers through a store, and add them up.
 *
 *   spill DIRECTORY PORT
 */
#include <hedge/hedge.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define NUMBERS 1000000u

static int fail(const struct hedge_error *e)
{
    fprintf(stderr, "spill: %s\n", e->text);
    return 1;
}

static int write_numbers(struct hedge_sos *sos, struct hedge_error *e)
{
    struct hedge_sos_writer *w;
    int rv = hedge_sos_writer_open(sos, &w, e);

    if (rv != 0) {
        return rv;
    }
    for (uint32_t i = 0; i < NUMBERS; i++) {
        if (hedge_sos_write(w, &i, sizeof i) != 0) {
            break; /* Closing says why. */
        }
    }
    return hedge_sos_writer_close(w, NULL, e);
}

static int add_up(struct hedge_sos *sos, uint64_t *sum, struct hedge_error *e)
{
    struct hedge_sos_reader *r;
    struct hedge_piece p;
    uint32_t n;
    int rv = hedge_sos_reader_open(sos, HEDGE_SOS_DISCARD, &r, e);

    if (rv != 0) {
        return rv;
    }
    *sum = 0;
    while ((rv = hedge_sos_next(r, 10000, &p)) == 0) {
        memcpy(&n, p.data, sizeof n); /* Short records come in one piece. */
        *sum += n;
    }
    if (rv != HEDGE_EEND) {
        (void)snprintf(e->text, sizeof e->text, "%s",
                       hedge_sos_reader_error(r));
    }
    hedge_sos_reader_close(r);
    return rv == HEDGE_EEND ? 0 : rv;
}

int main(int argc, char **argv)
{
    char listen[64], engine[512], data[512];
    struct hedge_error e = {0};
    struct hedge_options o;
    struct hedge_node *node;
    struct hedge_sos *sos;
    uint64_t sum = 0;
    int rv;

    if (argc != 3) {
        fprintf(stderr, "usage: spill DIRECTORY PORT\n");
        return 2;
    }
    hedge_process_setup();
    hedge_options_init(&o);
    (void)snprintf(listen, sizeof listen, "127.0.0.1:%s", argv[2]);
    (void)snprintf(engine, sizeof engine, "lmdb:%s/engine", argv[1]);
    (void)snprintf(data, sizeof data, "%s/data", argv[1]);
    o.listen = listen;
    o.engine = engine;
    o.data_dir = data;
    o.mem_limit = (uint64_t)32 << 20;
    rv = hedge_node_start(&o, &node, &e);
    if (rv != 0) {
        return fail(&e);
    }
    rv = hedge_sos_open(node, "numbers", NULL, 10000, &sos, &e);
    if (rv == 0) {
        rv = write_numbers(sos, &e);
        rv = rv != 0 ? rv : add_up(sos, &sum, &e);
        hedge_sos_close(sos);
    }
    hedge_node_stop(node);
    if (rv != 0) {
        return fail(&e);
    }
    printf("%" PRIu64 "\n", sum);
    return sum == (uint64_t)NUMBERS * (NUMBERS - 1) / 2 ? 0 : 1;
}
