#include "tests/lib/sos_box.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "tests/lib/check.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned files_found;

static int visit(const char *path, const struct stat *st, int kind,
                 struct FTW *at)
{
    (void)st;
    (void)at;
    /* The catalog's two are emptied at the next start. */
    if (kind == FTW_F && strstr(path, "/catalog/") == NULL) {
        (void)fprintf(stderr, "left behind: %s\n", path);
        files_found++;
    }
    (void)remove(path);
    return 0;
}

void box_clean(struct box *b)
{
    files_found = 0;
    (void)nftw(b->dir, visit, 16, FTW_DEPTH | FTW_PHYS);
    assert_int_equal(files_found, 0);
}

static void on_expired(void *ctx, const char *name, uint64_t generation)
{
    struct box *b = ctx;

    (void)generation;
    b->n_expired++;
    (void)snprintf(b->expired, sizeof b->expired, "%s", name);
}

int box_try_open(struct box *b, const struct box_options *o,
                 struct hedge_error *e)
{
    unsigned blocks = o->blocks != 0 ? o->blocks : 16;
    struct sos_options so = {.node = "here",
                             .data_dir = b->dir,
                             .disk_limit = o->disk,
                             .disk_reserve = 1 << 20,
                             .drain_ms = o->drain_ms,
                             .lend_mem = o->lend_mem,
                             .lend_disk = o->lend_disk,
                             .io = o->io,
                             .disk_fault = disk_fault_hook,
                             .disk_fault_ctx = &b->fault,
                             .on_expired = on_expired,
                             .on_expired_ctx = b};
    int rv;

    memset(b, 0, sizeof *b);
    b->block_size = o->block_size != 0 ? o->block_size : BOX_BLOCK;
    so.block_size = b->block_size;
    so.mem_limit = blocks * (uint64_t)b->block_size;
    (void)snprintf(b->dir, sizeof b->dir, "/tmp/hedge-box-XXXXXX");
    assert_non_null(mkdtemp(b->dir));
    rv = sos_new(&so, &b->sos, e);
    if (rv == 0 && o->nodes > 0) {
        b->remote = fake_tier_new(
            o->nodes, o->node_limit != 0 ? o->node_limit : (uint64_t)1 << 30);
        fake_tier_report(b->remote, &b->at_end);
        sos_set_remote(b->sos, fake_tier_base(b->remote));
    }
    return rv;
}

void box_open(struct box *b, const struct box_options *o)
{
    struct hedge_error e = {0};

    if (box_try_open(b, o, &e) != 0) {
        fail_msg("sos_new: %s", e.text);
    }
}

void box_close(struct box *b)
{
    sos_free(b->sos);
    assert_int_equal(arena_abandoned(), 0);
    b->sos = NULL;
    assert_int_equal(b->at_end.misuse, 0);
    assert_int_equal(b->at_end.blocks, 0);
    box_clean(b);
}

struct sos_store_options box_defaults(void)
{
    return (struct sos_store_options){
        .replicas = 1, .ttl_ms = 3600000, .compression = SOS_COMPRESS_NONE};
}

struct sos_store *box_store(struct box *b, const char *name,
                            const struct sos_store_options *o)
{
    struct sos_store_options own = box_defaults();
    struct hedge_error e = {0};
    struct sos_store *store;

    if (sos_create(b->sos, name, 100 + b->next_generation++,
                   o != NULL ? o : &own, &store, &e) != 0) {
        fail_msg("sos_create: %s", e.text);
    }
    return store;
}

struct box_result box_write(struct sos_store *store,
                            const struct record_shape *shape, uint64_t n)
{
    struct box_result r = {.accepted = 0};
    struct manifest claimed;
    struct writer w;
    struct sink *sink;
    void *buf = malloc(shape->max + 1);

    r.status = sos_sink_open(store, &sink, &r.error);
    r.closed = r.status;
    if (r.status == 0) {
        uint32_t id = sink->writer;

        writer_init(&w, sink);
        for (; r.accepted < n && r.status == 0; r.accepted += r.status == 0) {
            r.status = record_write(shape, &w, id, r.accepted, buf);
        }
        (void)writer_finish(&w, &claimed);
        r.closed = sos_sink_close(sink, &claimed, &r.manifest, &r.error);
    }
    free(buf);
    return r;
}

struct reader *box_reader(struct sos_store *store,
                          const struct sos_read_options *o)
{
    static const struct sos_read_options plain;
    struct reader *r = malloc(sizeof *r);
    struct hedge_error e = {0};
    struct source *source;

    assert_non_null(r);
    if (sos_source_open(store, o != NULL ? o : &plain, &source, &e) != 0) {
        fail_msg("sos_source_open: %s", e.text);
    }
    assert_int_equal(reader_init(r, source), 0);
    return r;
}

void box_reader_free(struct reader *r)
{
    reader_release(r);
    free(r);
}

int box_read(struct sos_store *store, const struct record_shape *shape,
             const struct sos_read_options *o, const struct manifest *m,
             struct hedge_error *e)
{
    static const struct sos_read_options plain;
    struct reader *r = malloc(sizeof *r);
    struct record_check c;
    struct source *source;
    int rv;

    assert_non_null(r);
    memset(r, 0, sizeof *r);
    rv = sos_source_open(store, o != NULL ? o : &plain, &source, &r->error);
    rv = rv != 0 ? rv : reader_init(r, source);
    record_check_init(&c, shape);
    rv = rv != 0 ? rv : record_check_all(&c, r, 20000);
    if (e != NULL) {
        *e = r->error;
    }
    if (rv != HEDGE_EEND && e == NULL) {
        fail_msg("reading ended with %s: %s", hedge_errname(rv), r->error.text);
    }
    if (m != NULL && rv == HEDGE_EEND) {
        assert_int_equal(c.records, m->records);
        assert_int_equal(c.bytes, m->bytes);
        assert_true(manifest_equal(&r->seen, m));
    }
    box_reader_free(r);
    return rv;
}

void box_expect(struct sos_store *store, const struct record_shape *shape,
                const struct manifest *m)
{
    assert_int_equal(box_read(store, shape, NULL, m, NULL), HEDGE_EEND);
}

static bool is_empty(struct box *b)
{
    struct sos_usage u;
    bool empty = true;

    sos_usage(b->sos, &u);
    for (unsigned i = 0; i < ARENA_CLASSES; i++) {
        empty = empty && u.arena.by_class[i] == 0;
    }
    return empty && u.disk.used == 0 &&
           (b->remote == NULL || fake_tier_counts(b->remote).blocks == 0);
}

void box_expect_empty(struct box *b)
{
    uint64_t until = clock_mono_ms() + 10000;

    while (!is_empty(b) && clock_mono_ms() < until) {
        clock_sleep_ms(5);
    }
    assert_true(is_empty(b));
}

uint64_t box_used(struct sos_store *store, const char *tier)
{
    struct sos_info info;
    uint64_t sum = 0;

    assert_int_equal(sos_store_info(store, &info), 0);
    for (unsigned i = 0; i < info.n_uses; i++) {
        bool here = strcmp(info.uses[i].node, "here") == 0;

        if (tier == NULL ? !here
                         : here && strcmp(info.uses[i].tier, tier) == 0) {
            sum += info.uses[i].stored_bytes;
        }
    }
    mem_free(info.uses);
    return sum;
}

void box_flip_on_disk(struct box *b, off_t at)
{
    char dir[128], path[400] = "";
    struct dirent *d;
    unsigned char c;
    DIR *open_dir;
    int fd;

    (void)snprintf(dir, sizeof dir, "%s/blocks", b->dir);
    open_dir = opendir(dir);
    assert_non_null(open_dir);
    while ((d = readdir(open_dir)) != NULL) {
        char name[400];
        off_t size;

        (void)snprintf(name, sizeof name, "%s/%s", dir, d->d_name);
        fd = open(name, O_RDONLY);
        size = fd >= 0 && d->d_name[0] != '.' ? lseek(fd, 0, SEEK_END) : -1;
        if (fd >= 0) {
            (void)close(fd);
        }
        if (size > at) {
            (void)snprintf(path, sizeof path, "%s", name);
        }
    }
    (void)closedir(open_dir);
    fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &c, 1, at), 1);
    c ^= 4;
    assert_int_equal(pwrite(fd, &c, 1, at), 1);
    assert_int_equal(fsync(fd), 0);
    (void)close(fd);
}
