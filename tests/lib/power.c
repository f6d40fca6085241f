#include "tests/lib/power.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512
#define FAILED ((ssize_t)(-1)) /* As the C library says it. */

struct write {
    uint64_t at;
    size_t len;
    unsigned char *data;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static ino_t watched;
static dev_t watched_dev;
static unsigned char *image; /* What is on the disk for sure. */
static size_t image_len;
static struct write pending[POWER_WRITES_MAX];
static unsigned n_pending;
static void (*on_sync)(void *ctx);
static void *on_sync_ctx;
static long operations, fail_at, fail_times;
static int fail_errno;

static void forget_pending(void)
{
    for (unsigned i = 0; i < n_pending; i++) {
        free(pending[i].data);
    }
    n_pending = 0;
}

void power_watch(const char *path)
{
    struct stat st;
    int fd;

    pthread_mutex_lock(&lock);
    forget_pending();
    free(image);
    image = NULL;
    watched = 0;
    on_sync = NULL;
    fail_times = 0;
    operations = 0;
    if (path != NULL) {
        fd = open(path, O_RDONLY | O_CLOEXEC);
        assert(fd >= 0 && fstat(fd, &st) == 0);
        assert((size_t)st.st_size < POWER_FILE_MAX);
        image = calloc(1, POWER_FILE_MAX);
        assert(image != NULL);
        assert(pread(fd, image, POWER_FILE_MAX, 0) == st.st_size);
        image_len = (size_t)st.st_size;
        close(fd);
        watched_dev = st.st_dev;
        watched = st.st_ino;
    }
    pthread_mutex_unlock(&lock);
}

void power_on_sync(void (*fn)(void *ctx), void *ctx)
{
    on_sync = fn;
    on_sync_ctx = ctx;
}

void power_fail_after(long n, long times, int err)
{
    pthread_mutex_lock(&lock);
    fail_at = operations + n;
    fail_times = times;
    fail_errno = err;
    pthread_mutex_unlock(&lock);
}

long power_operations(void)
{
    return operations;
}

/* --- the file ---------------------------------------------------------------
 */

static bool is_watched(int fd)
{
    struct stat st;

    return watched != 0 && fstat(fd, &st) == 0 && st.st_ino == watched &&
           st.st_dev == watched_dev;
}

static void to_image(uint64_t at, const void *data, size_t len)
{
    assert(at + len <= POWER_FILE_MAX);
    memcpy(image + at, data, len);
    image_len = at + len > image_len ? at + len : image_len;
}

static void note(int fd, uint64_t at, const void *data, size_t len)
{
    struct write *w;

    if ((fcntl(fd, F_GETFL) & O_DSYNC) != 0) {
        to_image(at, data, len);
        return;
    }
    assert(n_pending < POWER_WRITES_MAX);
    w = &pending[n_pending++];
    w->at = at;
    w->len = len;
    w->data = malloc(len);
    assert(w->data != NULL);
    memcpy(w->data, data, len);
}

/* 0: go on; 1: fail, errno is set; 2: only half of it. */
static int fault(void)
{
    operations++;
    if (fail_times > 0 && operations >= fail_at) {
        fail_times--;
        errno = fail_errno;
        return fail_errno != 0 ? 1 : 2;
    }
    return 0;
}

static ssize_t write_at(int fd, const void *data, size_t len, off_t at)
{
    ssize_t n;
    int how;

    pthread_mutex_lock(&lock);
    how = fault();
    if (how == 1) {
        pthread_mutex_unlock(&lock);
        return FAILED;
    }
    n = syscall(SYS_pwrite64, fd, data, how == 2 ? len / 2 : len, at);
    if (n > 0) {
        note(fd, (uint64_t)at, data, (size_t)n);
    }
    pthread_mutex_unlock(&lock);
    return n;
}

/* Seen by the libraries, which are to call these. */
#define OURS __attribute__((visibility("default")))

OURS ssize_t pwrite(int fd, const void *data, size_t len, off_t at);
OURS ssize_t pwrite(int fd, const void *data, size_t len, off_t at)
{
    return is_watched(fd) ? write_at(fd, data, len, at)
                          : syscall(SYS_pwrite64, fd, data, len, at);
}

OURS ssize_t writev(int fd, const struct iovec *iov, int n)
{
    off_t at;
    ssize_t sum = 0;

    if (!is_watched(fd)) {
        return syscall(SYS_writev, fd, iov, n);
    }
    at = lseek(fd, 0, SEEK_CUR);
    for (int i = 0; i < n; i++) {
        ssize_t done = write_at(fd, iov[i].iov_base, iov[i].iov_len, at + sum);

        if (done < 0) {
            return sum > 0 ? sum : done;
        }
        sum += done;
        if ((size_t)done < iov[i].iov_len) {
            break;
        }
    }
    (void)lseek(fd, at + sum, SEEK_SET);
    return sum;
}

OURS int fdatasync(int fd)
{
    int how;

    if (!is_watched(fd)) {
        return (int)syscall(SYS_fdatasync, fd);
    }
    if (on_sync != NULL) {
        on_sync(on_sync_ctx);
    }
    pthread_mutex_lock(&lock);
    how = fault();
    for (unsigned i = 0; how != 1 && i < n_pending; i++) {
        to_image(pending[i].at, pending[i].data, pending[i].len);
    }
    if (how != 1) {
        forget_pending();
    }
    pthread_mutex_unlock(&lock);
    if (on_sync != NULL) {
        on_sync(on_sync_ctx);
    }
    return how == 1 ? (int)FAILED : 0;
}

/* --- the cut ----------------------------------------------------------------
 */

static uint64_t next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed * 0x9e3779b97f4a7c15u >> 32;
}

static void apply_torn(const struct write *w, unsigned char *to, uint64_t *seed)
{
    for (size_t at = 0; at < w->len; at += SECTOR) {
        size_t n = w->len - at < SECTOR ? w->len - at : SECTOR;

        switch (next(seed) % 3) {
        case 0:
            memcpy(to + w->at + at, w->data + at, n);
            break;
        case 1:
            memset(to + w->at + at, (int)(next(seed) & 0xff), n);
            break;
        default:
            break;
        }
    }
}

void power_cut(const char *path, uint64_t *seed)
{
    unsigned char *copy = malloc(POWER_FILE_MAX);
    size_t len;
    int fd;

    assert(copy != NULL);
    pthread_mutex_lock(&lock);
    len = image_len;
    memcpy(copy, image, len);
    memset(copy + len, 0, POWER_FILE_MAX - len);
    for (unsigned i = 0; i < n_pending; i++) {
        const struct write *w = &pending[i];
        uint64_t how = next(seed) % 3;

        if (how == 0) {
            memcpy(copy + w->at, w->data, w->len);
        } else if (how == 1) {
            apply_torn(w, copy, seed);
        } else {
            continue;
        }
        len = w->at + w->len > len ? w->at + w->len : len;
    }
    pthread_mutex_unlock(&lock);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert(fd >= 0);
    assert(write(fd, copy, len) == (ssize_t)len);
    close(fd);
    free(copy);
}
