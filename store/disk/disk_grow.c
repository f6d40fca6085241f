/* The worker's making of room: extents are created and allocated here, and
 * puts that waited get their places.
 *
 * A store begins with DISK_GROW_MIN and doubles what it has, to a whole file
 * at a time; what it does not use is trimmed when it rests. fallocate waits
 * for the writes to its file and stops new ones (growing in steps of 8 MiB
 * cost a sixth of the speed of the disk), so a file that is being written
 * does not grow: the next one is made instead, before the first is full. Only
 * near a limit, where files would become tiny, it grows all the same. */
#include "store/disk/disk_internal.h"

#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* What to do about a store that wants room. */
struct plan {
    struct disk_extent *extent;
    uint64_t need; /* Bytes without which the first waiting put cannot go. */
    uint64_t want; /* Bytes to allocate, if they can be had. */
};

uint64_t disk_fs_free(const struct disk *d)
{
    struct statvfs st;

    if (fstatvfs(d->dir_fd, &st) != 0) {
        return 0;
    }
    return (uint64_t)st.f_bavail * (uint64_t)st.f_frsize;
}

/* --- files ---------------------------------------------------------------- */

static struct disk_extent *extent_new(struct disk *d, uint64_t generation)
{
    struct disk_extent *x = mem_calloc(1, sizeof *x);

    if (x == NULL) {
        return NULL;
    }
    x->generation = generation;
    x->unit = d->next_unit++;
    x->fd = -1;
    x->refs = 1; /* The worker's. */
    list_init(&x->link);
    list_init(&x->store_link);
    list_init(&x->idle_link);
    list_init(&x->slack_link);
    list_init(&x->dead_link);
    return x;
}

/* Not locked. 0 or an errno. */
static int extent_create(struct disk *d, struct disk_extent *x)
{
    int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC |
                (d->features.direct ? O_DIRECT : 0);
    char name[DISK_NAME_MAX];

    disk_extent_name(x->generation, x->unit, name);
    x->fd = openat(d->dir_fd, name, flags, 0600);
    return x->fd < 0 ? errno : 0;
}

/* Not locked. 0 or an errno; then the file is as long as it was. */
static int allocate(struct disk *d, struct disk_extent *x, uint64_t bytes)
{
    off_t from = (off_t)x->allocated;
    int err = 0, rv;

    if (d->fault != NULL) {
        rv = d->fault(d->fault_ctx, 'a', (size_t)bytes);
        if (rv < 0) {
            return -rv;
        }
    }
    do {
        rv = d->features.fallocate ? fallocate(x->fd, 0, from, (off_t)bytes)
                                   : ftruncate(x->fd, from + (off_t)bytes);
        err = rv == 0 ? 0 : errno;
    } while (err == EINTR);
    if (err != 0) {
        /* What it got before it failed. */
        (void)!ftruncate(x->fd, from);
    }
    return err;
}

/* Not locked. The file system turns out to refuse what it promised. */
static void use_ftruncate(struct disk *d)
{
    pthread_mutex_lock(&d->lock);
    d->features.fallocate = false;
    (void)snprintf(d->features.fallocate_detail,
                   sizeof d->features.fallocate_detail, "%s",
                   DISK_NO_FALLOCATE);
    pthread_mutex_unlock(&d->lock);
    log_warn("disk", "%s: %s", d->dir, DISK_NO_FALLOCATE);
}

/* Not locked. Allocate *want bytes, or fewer but not less than `need` (and
 * then some) when there is not that much; *want is what it has become. */
static int allocate_some(struct disk *d, struct disk_extent *x, uint64_t need,
                         uint64_t fs_free, uint64_t *want)
{
    uint64_t room;
    int err;

    room = fs_free > d->reserve ? fs_free - d->reserve : 0;
    for (;;) {
        if (*want > room) {
            *want = disk_align_down(d, room);
        }
        if (*want < need || *want == 0) {
            return ENOSPC;
        }
        err = allocate(d, x, *want);
        if (err == EOPNOTSUPP && d->features.fallocate) {
            use_ftruncate(d);
            continue;
        }
        if (error_from_errno(err == 0 ? EIO : err) != HEDGE_ENOSPC ||
            *want == need) {
            return err;
        }
        *want = disk_align_down(d, *want / 2);
        if (*want < need) {
            *want = need;
        }
    }
}

/* --- one store ------------------------------------------------------------ */

static struct tier_req *first_waiting(struct disk_store *s)
{
    return list_empty(&s->waiting)
               ? NULL
               : container_of(s->waiting.next, struct tier_req, link);
}

/* Locked. Bytes that may still be taken, as far as is known. */
static uint64_t budget(const struct disk *d)
{
    uint64_t room = d->fs_free > d->reserve ? d->fs_free - d->reserve : 0;
    uint64_t left = d->limit - d->used;

    return left < room ? left : room;
}

/* Locked. Which extent grows; NULL: a new one. */
static struct disk_extent *choose(const struct disk *d,
                                  const struct disk_store *s, uint64_t padded)
{
    struct disk_extent *x = s->cur;
    bool can_grow = x != NULL && x->tail + padded <= DISK_EXTENT_MAX &&
                    x->allocated < DISK_EXTENT_MAX;

    if (can_grow && s->next == NULL &&
        (x->refs == 0 || budget(d) < DISK_GROW_STEP)) {
        return x;
    }
    return s->next;
}

/* Locked. How much a store should get that needs this much now. */
static uint64_t fair_share(const struct disk *d, const struct disk_store *s,
                           uint64_t need, uint64_t others)
{
    uint64_t step = s->cur != NULL ? 2 * s->cur->allocated : DISK_GROW_MIN;
    uint64_t most = need + others + (d->limit - d->used);

    step = step < DISK_GROW_MIN ? DISK_GROW_MIN : step;
    step = step < most ? step : most;
    return step < need ? need : step;
}

/* Locked. False: there is nothing to do. */
static bool make_plan(struct disk *d, struct disk_store *s, struct plan *p)
{
    struct tier_req *req = first_waiting(s);
    uint64_t padded = req != NULL ? disk_align(d, req->len) : 0;
    uint64_t slack, most;

    if (req == NULL && (!disk_wants_ahead(s) || budget(d) < DISK_GROW_STEP)) {
        return false;
    }
    p->extent = choose(d, s, padded);
    slack = p->extent != NULL ? disk_slack(p->extent) : 0;
    most = DISK_EXTENT_MAX - (p->extent != NULL ? p->extent->allocated : 0);
    p->need = padded > slack ? padded - slack : 0;
    p->want = fair_share(d, s, p->need, s->waiting_bytes - padded);
    p->want = disk_align_down(d, p->want < most ? p->want : most);
    assert(p->want >= p->need);
    return p->want > 0;
}

/* Locked. */
static void serve_waiting(struct disk *d, struct disk_store *s)
{
    struct tier_req *req;

    while ((req = first_waiting(s)) != NULL && disk_place(d, s, req)) {
        list_remove(&req->link);
        s->waiting_bytes -= disk_align(d, req->len);
        list_push(&d->queue[DISK_WRITE], &req->link);
    }
}

/* Locked. */
static void refuse_first(struct disk *d, struct disk_store *s, int err)
{
    struct tier_req *req = first_waiting(s);
    uint64_t padded;
    int code = error_from_errno(err);

    if (req == NULL) {
        s->ahead_failed = true;
        return;
    }
    padded = disk_align(d, req->len);
    list_remove(&req->link);
    s->waiting_bytes -= padded;
    d->used -= padded;
    req->status = error_set(
        &req->error,
        code == HEDGE_ENOSPC || code == HEDGE_ENOMEM ? code : HEDGE_EIO,
        "no room for %zu bytes in %s (%llu bytes are kept free): %s", req->len,
        d->dir, (unsigned long long)d->reserve, strerror(err));
    list_push(&d->refused, &req->link);
}

/* Locked. The new extent joins its store, or nothing is left of it. */
static void admit(struct disk *d, struct disk_store *s, struct disk_extent *x)
{
    list_push(&d->extents[x->unit % DISK_EXTENT_BUCKETS], &x->link);
    if (x->fd >= 0) {
        d->n_open++;
        list_push(&d->idle, &x->idle_link);
    }
    if (s->dropped || x->allocated == 0) {
        x->doomed = true;
        return;
    }
    x->store = s;
    list_push(&s->extents, &x->store_link);
    assert(s->next == NULL);
    s->next = x;
}

/* Locked, lets go in between. 0 or an errno. */
static int carry_out(struct disk *d, struct disk_store *s, struct plan *p)
{
    struct disk_extent *x = p->extent;
    bool fresh = x == NULL;
    uint64_t want = p->want, fs_free = d->fs_free;
    int err = 0;

    if (fresh) {
        x = extent_new(d, s->generation);
        if (x == NULL) {
            return ENOMEM;
        }
    } else {
        x->refs++;
        err = disk_fd_get(d, x);
        err = err < 0 ? -err : 0;
    }
    if (err == 0) {
        disk_run(d);
        pthread_mutex_unlock(&d->lock);
        fs_free = disk_fs_free(d);
        err = fresh ? extent_create(d, x) : 0;
        if (err == 0) {
            err = allocate_some(d, x, p->need, fs_free, &want);
        }
        pthread_mutex_lock(&d->lock);
        if (!fresh) {
            disk_fd_put(d, x);
        }
    }
    d->fs_free = fs_free;
    if (err == 0) {
        disk_set_allocated(d, x, x->allocated + want);
        d->fs_free -= want < fs_free ? want : fs_free;
    }
    if (fresh) {
        admit(d, s, x);
    }
    disk_extent_unref(d, x);
    return err;
}

/* Locked, lets go in between. One step; false: nothing is left to do. */
static bool grow_once(struct disk *d, struct disk_store *s, bool *reclaimed)
{
    struct plan p;
    int err;

    serve_waiting(d, s);
    if (!make_plan(d, s, &p)) {
        return false;
    }
    err = carry_out(d, s, &p);
    if (s->dropped) {
        return false;
    }
    if (err == 0) {
        s->ahead_failed = false;
        d->trouble[DISK_ROOM].now = false;
        *reclaimed = false;
    } else if (p.need > 0 && !*reclaimed) {
        *reclaimed = disk_reclaim(d, s);
        if (!*reclaimed && !s->dropped) {
            refuse_first(d, s, err);
        }
    } else {
        refuse_first(d, s, err);
    }
    return !s->dropped && !list_empty(&s->waiting);
}

void disk_grow(struct disk *d, struct disk_store *s)
{
    bool reclaimed = false;

    assert(!s->growing && !s->dropped);
    s->growing = true;
    while (grow_once(d, s, &reclaimed)) {
    }
    s->growing = false;
    disk_store_settle(d, s);
    disk_run(d);
}
