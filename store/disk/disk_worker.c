/* The disk tier's worker: one thread for what is slow. In order of urgency:
 * ends operations that never began, grows extents for puts that wait, unlinks
 * and punches what was dropped, and gives back what idle stores hold. */
#include "store/disk/disk_internal.h"

#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Locked, lets go in between. */
static void reap_extent(struct disk *d, struct disk_extent *x)
{
    char name[DISK_NAME_MAX];

    assert(x->refs == 0 && x->busy == 0 && x->dead == NULL);
    list_remove(&x->idle_link);
    if (x->fd >= 0) {
        d->n_open--;
    }
    d->fs_free_at_ms = 0;
    pthread_mutex_unlock(&d->lock);
    disk_extent_name(x->generation, x->unit, name);
    if (unlinkat(d->dir_fd, name, 0) != 0 && errno != ENOENT) {
        log_warn("disk", "%s/%s cannot be removed: %s", d->dir, name,
                 strerror(errno));
    }
    if (x->fd >= 0) {
        close(x->fd);
    }
    mem_free(x);
    pthread_mutex_lock(&d->lock);
}

/* Not locked. 0 or an errno. */
static int punch(int fd, const struct disk_dead *dead)
{
    for (unsigned i = 0; i < dead->n; i++) {
        int rv = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                           (off_t)dead->range[i].from,
                           (off_t)(dead->range[i].to - dead->range[i].from));
        if (rv != 0 && errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

/* Locked, lets go in between. */
static void punch_extent(struct disk *d, struct disk_extent *x)
{
    struct disk_dead *dead = x->dead;
    int fd, err = 0;

    assert(dead != NULL);
    x->dead = NULL;
    list_remove(&x->dead_link);
    x->refs++;
    fd = disk_fd_get(d, x);
    if (fd >= 0) {
        pthread_mutex_unlock(&d->lock);
        err = punch(fd, dead);
        pthread_mutex_lock(&d->lock);
        disk_fd_put(d, x);
    }
    if (err != 0 && !d->punch_refused) {
        d->punch_refused = true;
        log_warn("disk",
                 "%s: punching holes: %s; space comes back only when whole "
                 "extents are given back",
                 d->dir, strerror(err));
    }
    d->fs_free_at_ms = 0;
    mem_free(dead);
    disk_extent_unref(d, x);
}

/* Locked, lets go in between. Give back what is allocated beyond the tail. */
static void trim_extent(struct disk *d, struct disk_extent *x)
{
    uint64_t tail = x->tail;
    int fd, rv = 0;

    list_remove(&x->slack_link);
    if (!x->doomed && !x->closed && x->live == 0 && x->refs == 0) {
        disk_extent_close(d, x);
        return;
    }
    if (x->doomed || disk_slack(x) == 0) {
        return;
    }
    disk_set_allocated(d, x, tail);
    x->refs++;
    fd = disk_fd_get(d, x);
    if (fd >= 0) {
        pthread_mutex_unlock(&d->lock);
        rv = ftruncate(fd, (off_t)tail);
        pthread_mutex_lock(&d->lock);
        disk_fd_put(d, x);
    }
    if (rv != 0) {
        log_debug("disk", "%s: an extent could not be trimmed", d->dir);
    }
    d->fs_free_at_ms = 0;
    disk_extent_unref(d, x);
}

static bool is_idle(struct disk_extent *x)
{
    bool idle = x->tail == x->tail_seen || x->closed;

    x->tail_seen = x->tail;
    return idle;
}

/* Locked, lets go in between. All but those of `keep`, and only idle ones
 * where `idle_only`. */
static bool trim(struct disk *d, const struct disk_store *keep, bool idle_only)
{
    struct list round, *item;
    bool any = false;

    list_init(&round);
    list_splice(&round, &d->slacking);
    while ((item = list_pop(&round)) != NULL) {
        struct disk_extent *x =
            container_of(item, struct disk_extent, slack_link);
        bool kept = keep != NULL && x->store == keep;
        if (kept || (idle_only && !is_idle(x))) {
            list_push(&d->slacking, item);
            continue;
        }
        trim_extent(d, x);
        any = true;
    }
    return any;
}

/* Locked, lets go in between. */
static bool reap_and_punch(struct disk *d)
{
    bool any = false;

    while (!list_empty(&d->reap) || !list_empty(&d->dead)) {
        struct list *item = list_pop(&d->reap);
        if (item != NULL) {
            reap_extent(d, container_of(item, struct disk_extent, store_link));
        } else {
            punch_extent(
                d, container_of(d->dead.next, struct disk_extent, dead_link));
        }
        any = true;
    }
    return any;
}

bool disk_reclaim(struct disk *d, const struct disk_store *keep)
{
    bool any = reap_and_punch(d);

    any = trim(d, keep, false) || any;
    any = reap_and_punch(d) || any;
    return any;
}

/* Locked. Milliseconds until something is due by its age; 0: now. */
static uint64_t due_in(const struct list *items, uint64_t at, uint64_t now)
{
    if (list_empty(items)) {
        return UINT64_MAX;
    }
    return at > now ? at - now : 0;
}

static uint64_t punch_at(const struct disk *d)
{
    const struct disk_extent *x;

    if (list_empty(&d->dead)) {
        return 0;
    }
    x = container_of(d->dead.next, struct disk_extent, dead_link);
    return x->dead->since_ms == 0 ? 0 : x->dead->since_ms + DISK_PUNCH_DELAY_MS;
}

/* Locked, lets go in between. */
static void refuse(struct disk *d, struct tier_req *req)
{
    bool warn = disk_note(d, req, DISK_ROOM);

    pthread_mutex_unlock(&d->lock);
    if (warn) {
        disk_warn(req);
    }
    disk_req_end(d, req);
    pthread_mutex_lock(&d->lock);
}

/* Locked, lets go in between. Do one thing; false: there was none. */
static bool work_once(struct disk *d)
{
    struct list *item;

    if ((item = list_pop(&d->unstarted)) != NULL) {
        struct disk_op *op = container_of(item, struct disk_op, link);
        pthread_mutex_unlock(&d->lock);
        disk_op_end(op, op->result);
        pthread_mutex_lock(&d->lock);
    } else if ((item = list_pop(&d->refused)) != NULL) {
        refuse(d, container_of(item, struct tier_req, link));
    } else if ((item = list_pop(&d->grow)) != NULL) {
        disk_grow(d, container_of(item, struct disk_store, grow_link));
    } else if ((item = list_pop(&d->reap)) != NULL) {
        reap_extent(d, container_of(item, struct disk_extent, store_link));
    } else {
        return false;
    }
    return true;
}

/* Locked, lets go in between. What is due by its age, or a wait for it. */
static void work_or_wait(struct disk *d)
{
    uint64_t now = clock_mono_ms();
    uint64_t punch_ms = due_in(&d->dead, punch_at(d), now);
    uint64_t trim_ms = due_in(&d->slacking, d->trim_at_ms, now);
    uint64_t ms = punch_ms < trim_ms ? punch_ms : trim_ms;
    struct timespec until;

    if (punch_ms == 0) {
        punch_extent(d,
                     container_of(d->dead.next, struct disk_extent, dead_link));
    } else if (trim_ms == 0) {
        d->trim_at_ms = now + DISK_TRIM_EVERY_MS;
        (void)trim(d, NULL, true);
    } else if (ms == UINT64_MAX) {
        pthread_cond_wait(&d->worker_wake, &d->lock);
    } else {
        until.tv_sec = (time_t)((now + ms) / 1000);
        until.tv_nsec = (long)((now + ms) % 1000) * 1000000;
        pthread_cond_timedwait(&d->worker_wake, &d->lock, &until);
    }
}

static void *worker(void *arg)
{
    struct disk *d = arg;

    pthread_mutex_lock(&d->lock);
    for (;;) {
        if (work_once(d)) {
            continue;
        }
        if (d->worker_stop) {
            break;
        }
        work_or_wait(d);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

int disk_worker_start(struct disk *d)
{
    if (pthread_create(&d->worker, NULL, worker, d) != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(d->worker, "disk-work");
    d->worker_running = true;
    return 0;
}

void disk_worker_stop(struct disk *d)
{
    if (!d->worker_running) {
        return;
    }
    pthread_mutex_lock(&d->lock);
    d->worker_stop = true;
    pthread_cond_signal(&d->worker_wake);
    pthread_mutex_unlock(&d->lock);
    pthread_join(d->worker, NULL);
    d->worker_running = false;
    assert(list_empty(&d->reap) && list_empty(&d->dead));
}
