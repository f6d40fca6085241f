/* What the disk tier finds at start: leftovers, and what may be used. */
#include "store/disk/disk_internal.h"

#include "store/base/log.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define ALIGN_MIN 512u

/* --- the directory -------------------------------------------------------- */

static int empty_dir(struct disk *d, DIR *dir, struct hedge_error *e)
{
    unsigned n_ours = 0, n_foreign = 0;
    char foreign[256] = "";
    struct dirent *entry;

    while ((entry = readdir(dir)) != NULL) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
            continue;
        }
        if (!disk_is_extent_name(name)) {
            n_foreign++;
            (void)snprintf(foreign, sizeof foreign, "%s", name);
            continue;
        }
        n_ours++;
        if (unlinkat(d->dir_fd, name, 0) != 0) {
            return error_set_errno(e, errno, "%s/%s, left by an earlier run",
                                   d->dir, name);
        }
    }
    if (n_ours > 0) {
        log_info("disk", "%s: removed %u files left by an earlier run", d->dir,
                 n_ours);
    }
    if (n_foreign > 0) {
        log_warn("disk", "%s: %u files are not ours and stay, such as %s",
                 d->dir, n_foreign, foreign);
    }
    return 0;
}

int disk_dir_open(struct disk *d, struct hedge_error *e)
{
    DIR *dir;
    int fd, rv;

    if (mkdir(d->dir, 0700) != 0 && errno != EEXIST) {
        return error_set_errno(e, errno, "making the directory %s", d->dir);
    }
    d->dir_fd = open(d->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->dir_fd < 0) {
        return error_set_errno(e, errno, "opening the directory %s", d->dir);
    }
    if (flock(d->dir_fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        return error_set(e, HEDGE_EBUSY, "%s is in use by another node",
                         d->dir);
    }
    fd = openat(d->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dir = fd < 0 ? NULL : fdopendir(fd);
    if (dir == NULL) {
        rv = error_set_errno(e, errno, "reading the directory %s", d->dir);
        if (fd >= 0) {
            close(fd);
        }
        return rv;
    }
    rv = empty_dir(d, dir, e);
    closedir(dir);
    return rv;
}

/* --- files ---------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void say(char out[160],
                                                      const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(out, 160, fmt, ap);
    va_end(ap);
}

/* The file system's block: what a hole must cover, and what keeps writes of
 * neighbours apart. */
static size_t block_alignment(int fd)
{
    struct stat st;
    size_t a = ALIGN_MIN;

    if (fstat(fd, &st) != 0 || st.st_blksize <= 0) {
        return DISK_BUFFER_ALIGN;
    }
    while (a < (size_t)st.st_blksize && a < DISK_BUFFER_ALIGN) {
        a *= 2;
    }
    return a;
}

/* What direct I/O asks for; 0 where the kernel does not say. */
static size_t direct_alignment(int fd, bool *refused)
{
    size_t a = 0;

    *refused = false;
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) != 0) {
        a = stx.stx_dio_offset_align > stx.stx_dio_mem_align
                ? stx.stx_dio_offset_align
                : stx.stx_dio_mem_align;
        *refused = stx.stx_dio_offset_align == 0;
    }
#else
    (void)fd;
#endif
    return a;
}

static bool try_write(int fd, size_t len)
{
    _Alignas(DISK_BUFFER_ALIGN) static const char zeros[DISK_BUFFER_ALIGN];
    ssize_t n;

    assert(len <= sizeof zeros);
    do {
        n = pwrite(fd, zeros, len, 0);
    } while (n < 0 && errno == EINTR);
    /* A full disk says nothing about the way of writing. */
    return n >= 0 || errno == ENOSPC || errno == EDQUOT;
}

static void probe_direct(struct disk *d, const char *name)
{
    struct disk_features *f = &d->features;
    size_t align;
    bool refused;
    int fd = openat(d->dir_fd, name, O_RDWR | O_CLOEXEC | O_DIRECT);

    if (fd < 0) {
        say(f->direct_detail,
            "the file system refuses O_DIRECT (%s): writes go through the "
            "page cache",
            strerror(errno));
        return;
    }
    align = direct_alignment(fd, &refused);
    align = align == 0 ? DISK_BUFFER_ALIGN : align;
    if (align > DISK_BUFFER_ALIGN) {
        say(f->direct_detail,
            "O_DIRECT wants %zu-byte alignment here: writes go through the "
            "page cache",
            align);
    } else if (refused || !try_write(fd, DISK_BUFFER_ALIGN)) {
        say(f->direct_detail,
            "O_DIRECT does not work here: writes go through the page cache");
    } else {
        f->direct = true;
        f->alignment = align > f->alignment ? align : f->alignment;
    }
    close(fd);
}

static void probe_fallocate(struct disk *d, int fd)
{
    struct disk_features *f = &d->features;
    int rv = fallocate(fd, 0, 0, DISK_BUFFER_ALIGN);

    f->fallocate =
        rv == 0 || errno == ENOSPC || errno == EDQUOT || errno == EINTR;
    if (!f->fallocate) {
        say(f->fallocate_detail, "%s", DISK_NO_FALLOCATE);
    }
}

int disk_probe(struct disk *d, struct hedge_error *e)
{
    struct disk_features *f = &d->features;
    char name[DISK_NAME_MAX];
    int fd;

    disk_extent_name(0, d->next_unit++, name);
    fd = openat(d->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return error_set_errno(e, errno, "making a file in %s", d->dir);
    }
    f->alignment = block_alignment(fd);
    probe_direct(d, name);
    probe_fallocate(d, fd);
    close(fd);
    (void)unlinkat(d->dir_fd, name, 0);
    assert(f->alignment <= DISK_BUFFER_ALIGN);
    assert((f->alignment & (f->alignment - 1)) == 0);
    if (!f->direct) {
        log_warn("disk", "%s: %s", d->dir, f->direct_detail);
    }
    if (!f->fallocate) {
        log_warn("disk", "%s: %s", d->dir, f->fallocate_detail);
    }
    return 0;
}

/* --- the backend ---------------------------------------------------------- */

/* The sysctl: 0 allowed, 1 for a group only, 2 for nobody; -1 unknown. */
static int uring_disabled(void)
{
    char c = '\0';
    int fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, &c, 1);

    if (fd >= 0) {
        close(fd);
    }
    return n == 1 && c >= '0' && c <= '2' ? c - '0' : -1;
}

static const char *uring_advice(int code)
{
    switch (uring_disabled()) {
    case 1:
        return "sysctl kernel.io_uring_disabled is 1: set it to 0, or join "
               "kernel.io_uring_group";
    case 2:
        return "sysctl kernel.io_uring_disabled is 2: set it to 0";
    default:
        break;
    }
    switch (code) {
    case HEDGE_EPERM:
        return "allow io_uring_* in the container's seccomp profile";
    case HEDGE_ENOMEM:
        return "raise the limit of locked memory (ulimit -l)";
    default:
        return "a kernel from 5.6 on has it";
    }
}

int disk_backend_start(struct disk *d, enum disk_io io, struct hedge_error *e)
{
    struct disk_features *f = &d->features;
    struct hedge_error why;
    int rv = HEDGE_ENOTSUP;

    if (io != DISK_IO_THREADS) {
        d->backend = &disk_uring;
        rv = disk_uring.start(d, &why);
    }
    if (rv == 0) {
        f->uring = true;
        return 0;
    }
    d->backend = NULL;
    if (io == DISK_IO_THREADS) {
        say(f->uring_detail, "not asked for: I/O by threads was chosen");
    } else {
        say(f->uring_detail, "%.70s: %s", why.text, uring_advice(rv));
    }
    if (io == DISK_IO_URING) {
        return error_set(e, rv, "%s", f->uring_detail);
    }
    if (io == DISK_IO_AUTO) {
        log_warn("disk", "%s; threads do the I/O meanwhile", f->uring_detail);
    }
    rv = disk_threads.start(d, e);
    d->backend = rv == 0 ? &disk_threads : NULL;
    return rv;
}
