#include "tests/lib/disk_fixture.h"

#include "store/base/clock.h"
#include "store/base/log.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

char root[256];
char dir[300];

/* --- requests ------------------------------------------------------------- */

static void on_end(struct tier_req *req)
{
    struct call *c = req->ctx;

    atomic_fetch_add(&c->ended, 1);
}

static size_t room_of(size_t len)
{
    return (len + 4095) & ~(size_t)4095;
}

/* Bytes that depend on block and position. */
void fill(void *data, size_t len, uint64_t seed)
{
    unsigned char *p = data;

    for (size_t i = 0; i < len; i++) {
        p[i] = (unsigned char)((seed * 131 + i * 7 + (i >> 8)) & 0xff);
    }
}

void call_init(struct call *c, uint64_t generation, uint64_t sequence,
               size_t len)
{
    memset(c, 0, sizeof *c);
    c->req.id.generation = generation;
    c->req.id.sequence = sequence;
    c->req.len = len;
    c->req.cb = on_end;
    c->req.ctx = c;
    c->req.data = aligned_alloc(4096, room_of(len));
    assert_non_null(c->req.data);
    memset(c->req.data, 0xee, room_of(len));
}

void call_release(struct call *c)
{
    free(c->req.data);
    c->req.data = NULL;
}

int call_wait(struct call *c)
{
    uint64_t until = clock_mono_ms() + 60000;

    while (atomic_load(&c->ended) == 0) {
        assert_true(clock_mono_ms() < until);
        sched_yield();
    }
    assert_int_equal(atomic_load(&c->ended), 1);
    return c->req.status;
}

/* Submit and wait: the outcome, however it was told. */
int put_wait(struct tier *t, struct call *c)
{
    int rv = tier_put(t, &c->req);

    if (rv != 0) {
        assert_int_equal(atomic_load(&c->ended), 0);
        return rv;
    }
    return call_wait(c);
}

int get_wait(struct tier *t, struct call *c)
{
    int rv = tier_get(t, &c->req);

    return rv != 0 ? rv : call_wait(c);
}

void call_again(struct call *c)
{
    atomic_store(&c->ended, 0);
    memset(c->req.data, 0xee, room_of(c->req.len));
}

void check_bytes(const struct call *c, uint64_t seed)
{
    unsigned char *want = malloc(c->req.len);

    assert_non_null(want);
    fill(want, c->req.len, seed);
    assert_memory_equal(want, c->req.data, c->req.len);
    free(want);
}

void check_back(struct tier *t, struct call *c, uint64_t seed)
{
    size_t padded = disk_padded(t, c->req.len);

    call_again(c);
    assert_int_equal(get_wait(t, c), 0);
    check_bytes(c, seed);
    for (size_t i = c->req.len; i < padded; i++) {
        assert_int_equal(((const char *)c->req.data)[i], 0);
    }
}

/* --- directories ---------------------------------------------------------- */

int disk_setup(void **state)
{
    const char *base = getenv("TMPDIR");

    (void)state;
    (void)snprintf(root, sizeof root, "%s/hedge-disk-XXXXXX",
                   base != NULL ? base : "/tmp");
    assert_non_null(mkdtemp(root));
    (void)snprintf(dir, sizeof dir, "%s/tier", root);
    log_set_level(LOG_OFF);
    return 0;
}

int disk_teardown(void **state)
{
    char command[400];

    (void)state;
    (void)umount2(dir, MNT_DETACH); /* Left by a test that failed. */
    (void)snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command) == 0 ? 0 : 1;
}

unsigned count_files(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *entry;
    unsigned n = 0;

    assert_non_null(d);
    while ((entry = readdir(d)) != NULL) {
        n += entry->d_name[0] != '.';
    }
    closedir(d);
    return n;
}

struct tier *tier_with(struct disk_options o)
{
    struct hedge_error e;
    struct tier *t;
    int rv;

    o.dir = o.dir != NULL ? o.dir : dir;
    o.limit = o.limit != 0 ? o.limit : PLENTY;
    rv = disk_new(&o, &t, &e);
    if (rv != 0) {
        print_error("%s\n", e.text);
    }
    assert_int_equal(rv, 0);
    return t;
}

uint64_t used(struct tier *t)
{
    struct tier_use u;

    tier_use(t, &u);
    return u.used;
}

bool within_ms(uint64_t ms, bool (*is_so)(void *), void *ctx)
{
    uint64_t until = clock_mono_ms() + ms;

    while (!is_so(ctx)) {
        if (clock_mono_ms() > until) {
            return false;
        }
        clock_sleep_ms(5);
    }
    return true;
}

/* What the files below `dir` take. */
uint64_t disk_bytes(void)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    uint64_t sum = 0;

    assert_non_null(d);
    while ((entry = readdir(d)) != NULL) {
        struct stat st;
        if (entry->d_name[0] != '.' &&
            fstatat(dirfd(d), entry->d_name, &st, 0) == 0) {
            sum += (uint64_t)st.st_blocks * 512;
        }
    }
    closedir(d);
    return sum;
}

bool takes_at_most(void *ctx)
{
    return disk_bytes() <= *(uint64_t *)ctx;
}

bool dir_is_empty(void *ctx)
{
    (void)ctx;
    return count_files(dir) == 0;
}

struct batch batch_new(unsigned n, uint64_t generation, size_t len)
{
    struct batch b = {.calls = calloc(n, sizeof *b.calls), .n = n};

    assert_non_null(b.calls);
    for (unsigned i = 0; i < n; i++) {
        call_init(&b.calls[i], generation, i, len);
        fill(b.calls[i].req.data, len, i);
    }
    return b;
}

void batch_free(struct batch *b)
{
    for (unsigned i = 0; i < b->n; i++) {
        call_release(&b->calls[i]);
    }
    free(b->calls);
}

void batch_put(struct tier *t, struct batch *b)
{
    for (unsigned i = 0; i < b->n; i++) {
        assert_int_equal(tier_put(t, &b->calls[i].req), 0);
    }
}

void batch_wait_ok(struct batch *b)
{
    for (unsigned i = 0; i < b->n; i++) {
        if (call_wait(&b->calls[i]) != 0) {
            print_error("%u: %s\n", i, b->calls[i].req.error.text);
        }
        assert_int_equal(b->calls[i].req.status, 0);
    }
}

void drop_one(struct tier *t, struct call *c)
{
    tier_drop(t, &c->req.id, &c->req.place, c->req.len);
}

bool mount_small(const char *size)
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
