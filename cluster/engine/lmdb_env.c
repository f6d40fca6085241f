#include "cluster/engine/lmdb_env.h"

#include "store/base/clock.h"
#include "store/base/list.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define DIR_MODE 0700
#define FILE_MODE 0600
#define NAMESPACE_WAIT_MS 2000u
#define NAMESPACE_TEXT 128
#define POLL_MS_MAX 2u
/* Of writer.lock. */
#define TURN_BYTE 0    /* Locked by the writer. */
#define WAITING_BYTE 1 /* Shared by those who wait for it. */

/* Life: OPENING (private to the opener) -> in `table`, refs > 0 -> removed
 * from it and closed. Lock order: table_lock, then env->lock; neither is held
 * while a transaction runs: `writing` is what a writer owns. */
struct lmdb_env {
    struct list link;
    unsigned refs;
    dev_t dev;
    ino_t ino;
    pid_t pid; /* Whose it is: a child after fork() must not use it. */
    char path[PATH_MAX];
    MDB_env *mdb;
    MDB_dbi main;
    int writer_fd;    /* POSIX locks on its bytes, which know their pid. */
    int namespace_fd; /* An open-file lock on it is a user. */
    pthread_mutex_t lock;
    pthread_cond_t idle;
    bool writing;
    atomic_bool broken;     /* MDB_PANIC was seen. */
    uint64_t turn_ended_ms; /* Of `writing`'s owner. */
};

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list table = {&table, &table};

/* --- codes ------------------------------------------------------------------
 */

static const struct {
    int mdb, hedge;
} codes[] = {
    {MDB_KEYEXIST, HEDGE_EEXISTS},
    {MDB_NOTFOUND, HEDGE_ENOTFOUND},
    {MDB_PAGE_NOTFOUND, HEDGE_ECORRUPT},
    {MDB_CORRUPTED, HEDGE_ECORRUPT},
    {MDB_PANIC, HEDGE_EIO},
    {MDB_VERSION_MISMATCH, HEDGE_EVERSION},
    {MDB_INVALID, HEDGE_ECORRUPT},
    {MDB_MAP_FULL, HEDGE_ENOSPC},
    {MDB_DBS_FULL, HEDGE_EINTERNAL},
    {MDB_READERS_FULL, HEDGE_EBUSY},
    {MDB_TLS_FULL, HEDGE_EINTERNAL},
    {MDB_TXN_FULL, HEDGE_ETOOBIG},
    {MDB_CURSOR_FULL, HEDGE_EINTERNAL},
    {MDB_PAGE_FULL, HEDGE_EINTERNAL},
    {MDB_MAP_RESIZED, HEDGE_EBUSY},
    {MDB_INCOMPATIBLE, HEDGE_ECORRUPT},
    {MDB_BAD_RSLOT, HEDGE_EINTERNAL},
    {MDB_BAD_TXN, HEDGE_EINTERNAL},
    {MDB_BAD_VALSIZE, HEDGE_ETOOBIG},
    {MDB_BAD_DBI, HEDGE_EINTERNAL},
};

int lmdb_error(struct hedge_error *e, int rc, const char *what)
{
    assert(rc != 0);
    if (rc > 0) {
        return error_set_errno(e, rc, "%s", what);
    }
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        if (codes[i].mdb == rc) {
            return error_set(e, codes[i].hedge, "%s: %s", what,
                             mdb_strerror(rc));
        }
    }
    return error_set(e, HEDGE_EINTERNAL, "%s: LMDB code %d", what, rc);
}

/* --- where it may live ------------------------------------------------------
 */

static const struct {
    unsigned long type;
    const char *name;
} network_fs[] = {
    {0x6969, "NFS"},        {0xff534d42, "CIFS"},  {0xfe534d42, "SMB"},
    {0x517b, "SMB"},        {0x65735546, "FUSE"},  {0x01021997, "9p"},
    {0x00c36400, "Ceph"},   {0x5346414f, "AFS"},   {0x0bd00bd0, "Lustre"},
    {0x47504653, "GPFS"},   {0x7461636f, "OCFS2"}, {0x01161970, "GFS2"},
    {0x19830326, "BeeGFS"}, {0x73757245, "Coda"},
};

const char *lmdb_network_fs(unsigned long f_type)
{
    for (size_t i = 0; i < sizeof network_fs / sizeof network_fs[0]; i++) {
        if (network_fs[i].type == (f_type & 0xffffffffu)) {
            return network_fs[i].name;
        }
    }
    return NULL;
}

static int make_directory(const char *path, struct hedge_error *e)
{
    char part[PATH_MAX];
    struct stat st;
    size_t len = strlen(path);

    if (len == 0 || len >= sizeof part) {
        return error_set(e, HEDGE_EINVAL,
                         "the engine's directory has %zu bytes", len);
    }
    for (size_t i = 1; i <= len; i++) {
        if (path[i] != '/' && path[i] != '\0') {
            continue;
        }
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, DIR_MODE) != 0 && errno != EEXIST && errno != EISDIR) {
            int err = errno;
            /* A parent on a read-only or foreign place may well exist. */
            if (stat(part, &st) != 0) {
                return error_set_errno(e, err, "mkdir %s", part);
            }
        }
    }
    if (stat(path, &st) != 0) {
        return error_set_errno(e, errno, "%s", path);
    }
    if (!S_ISDIR(st.st_mode)) {
        return error_set(e, HEDGE_EINVAL, "%s is not a directory", path);
    }
    return 0;
}

static int check_fs(const char *path, struct hedge_error *e)
{
    struct statfs fs;
    const char *name;

    if (statfs(path, &fs) != 0) {
        return error_set_errno(e, errno, "statfs %s", path);
    }
    name = lmdb_network_fs((unsigned long)fs.f_type);
    if (name != NULL) {
        return error_set(e, HEDGE_ENOTSUP,
                         "%s is on %s: the lmdb engine needs a local disk, "
                         "where memory maps and locks are shared between "
                         "processes; name one with --engine lmdb:DIR",
                         path, name);
    }
    return 0;
}

/* --- namespaces -------------------------------------------------------------
 */

static int file_lock(int fd, int cmd, short type, off_t byte)
{
    struct flock fl = {
        .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, cmd, &fl) == 0 ? 0 : errno;
}

/* The process whose lock stands in the way of a write lock, 0 if none. */
static pid_t file_locker(int fd, off_t byte)
{
    struct flock fl = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_GETLK, &fl) == 0 && fl.l_type != F_UNLCK ? fl.l_pid : 0;
}

/* LMDB finds dead readers by pid, robust mutexes know their owner by thread
 * id, and leases are on this clock: all are per namespace. */
static void own_namespaces(char out[NAMESPACE_TEXT])
{
    char pid[48], time_ns[48];
    ssize_t n = readlink("/proc/self/ns/pid", pid, sizeof pid - 1);
    ssize_t m = readlink("/proc/self/ns/time", time_ns, sizeof time_ns - 1);

    pid[n > 0 ? n : 0] = '\0';
    time_ns[m > 0 ? m : 0] = '\0';
    (void)snprintf(out, NAMESPACE_TEXT, "%s %s\n", pid, time_ns);
}

/* One try: 0 done, EAGAIN when somebody is just writing it, another errno;
 * `found` is what the users of the directory live in. */
static int namespace_try(int fd, const char *own, char found[NAMESPACE_TEXT])
{
    ssize_t n;
    int rc;

    memset(found, 0, NAMESPACE_TEXT);
    rc = file_lock(fd, F_OFD_SETLK, F_WRLCK, 0);
    if (rc == 0) { /* Nobody else is here: it is ours to say. */
        size_t len = strlen(own);
        if (ftruncate(fd, 0) != 0 || pwrite(fd, own, len, 0) != (ssize_t)len) {
            return errno != 0 ? errno : EIO;
        }
        memcpy(found, own, len + 1);
        return file_lock(fd, F_OFD_SETLK, F_RDLCK, 0);
    }
    if (rc != EAGAIN && rc != EACCES) {
        return rc;
    }
    rc = file_lock(fd, F_OFD_SETLK, F_RDLCK, 0);
    if (rc != 0) {
        return rc == EACCES ? EAGAIN : rc;
    }
    n = pread(fd, found, NAMESPACE_TEXT - 1, 0);
    if (n > 0) {
        return 0;
    }
    (void)file_lock(fd, F_OFD_SETLK, F_UNLCK, 0);
    return n < 0 ? errno : EAGAIN;
}

static int namespace_enter(struct lmdb_env *env, struct hedge_error *e)
{
    char own[NAMESPACE_TEXT], found[NAMESPACE_TEXT], path[PATH_MAX + 16];
    uint64_t until = clock_mono_ms() + NAMESPACE_WAIT_MS;
    int rc;

    (void)snprintf(path, sizeof path, "%s/namespace", env->path);
    env->namespace_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, FILE_MODE);
    if (env->namespace_fd < 0) {
        return error_set_errno(e, errno, "%s", path);
    }
    own_namespaces(own);
    for (;;) {
        rc = namespace_try(env->namespace_fd, own, found);
        if (rc != EAGAIN || clock_mono_ms() > until) {
            break;
        }
        clock_sleep_ms(2);
    }
    if (rc != 0) {
        return error_set_errno(e, rc, "locking %s", path);
    }
    if (strcmp(own, found) != 0) {
        found[strcspn(found, "\n")] = '\0';
        own[strcspn(own, "\n")] = '\0';
        return error_set(e, HEDGE_ENOTSUP,
                         "%s is in use in another PID or time namespace (%s; "
                         "here %s): run the nodes in one (--pid=host)",
                         env->path, found, own);
    }
    return 0;
}

/* --- opening and closing ----------------------------------------------------
 */

static void env_free(struct lmdb_env *env)
{
    if (env->mdb != NULL) {
        mdb_env_close(env->mdb);
    }
    if (env->writer_fd >= 0) {
        close(env->writer_fd);
    }
    if (env->namespace_fd >= 0) {
        close(env->namespace_fd);
    }
    pthread_cond_destroy(&env->idle);
    pthread_mutex_destroy(&env->lock);
    mem_free(env);
}

static int env_new(const char *path, struct lmdb_env **out)
{
    struct lmdb_env *env = mem_calloc(1, sizeof *env);
    pthread_condattr_t attr;

    *out = NULL;
    if (env == NULL) {
        return HEDGE_ENOMEM;
    }
    env->refs = 1;
    env->pid = getpid();
    env->writer_fd = env->namespace_fd = -1;
    (void)snprintf(env->path, sizeof env->path, "%s", path);
    pthread_mutex_init(&env->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&env->idle, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&env->link);
    *out = env;
    return 0;
}

/* A file cut short would be a SIGBUS at the first page that is missing. Pages
 * that were never written may be missing at its end in good order, so it is
 * made long enough: LMDB reports a page of zeros as corrupted. fallocate()
 * never shrinks what another process has just made longer. */
static int check_length(struct lmdb_env *env, struct hedge_error *e)
{
    MDB_envinfo info;
    MDB_stat env_stat;
    struct stat st;
    mdb_filehandle_t fd;
    uint64_t want;

    (void)mdb_env_info(env->mdb, &info);
    (void)mdb_env_stat(env->mdb, &env_stat);
    if (mdb_env_get_fd(env->mdb, &fd) != 0 || fstat(fd, &st) != 0) {
        return error_set_errno(e, errno, "%s/data.mdb", env->path);
    }
    if (info.me_last_pgno >= info.me_mapsize / env_stat.ms_psize) {
        return error_set(e, HEDGE_ECORRUPT,
                         "%s/data.mdb: its last page lies beyond its map",
                         env->path);
    }
    want = (info.me_last_pgno + 1) * (uint64_t)env_stat.ms_psize;
    if ((uint64_t)st.st_size < want &&
        fallocate(fd, 0, st.st_size, (off_t)want - st.st_size) != 0) {
        return error_set(e, HEDGE_ECORRUPT,
                         "%s/data.mdb has %lld bytes of %llu", env->path,
                         (long long)st.st_size, (unsigned long long)want);
    }
    return 0;
}

static void reserve(struct lmdb_env *env, uint64_t bytes)
{
    mdb_filehandle_t fd;

    if (bytes > 0 && mdb_env_get_fd(env->mdb, &fd) == 0 &&
        fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) != 0) {
        log_debug("engine", "%s/data.mdb: nothing reserved: %s", env->path,
                  strerror(errno));
    }
}

static int open_main(struct lmdb_env *env)
{
    MDB_txn *txn;
    int dead;
    int rc = mdb_reader_check(env->mdb, &dead);

    if (rc == 0) {
        rc = mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, &txn);
    }
    if (rc != 0) {
        return rc;
    }
    rc = mdb_dbi_open(txn, NULL, 0, &env->main);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return rc;
    }
    return mdb_txn_commit(txn);
}

static int open_files(struct lmdb_env *env, const struct lmdb_env_options *o,
                      struct hedge_error *e)
{
    char path[PATH_MAX + 16];
    int rc;

    (void)snprintf(path, sizeof path, "%s/writer.lock", env->path);
    env->writer_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, FILE_MODE);
    if (env->writer_fd < 0) {
        return error_set_errno(e, errno, "%s", path);
    }
    rc = mdb_env_create(&env->mdb);
    if (rc != 0) {
        env->mdb = NULL;
        return lmdb_error(e, rc, env->path);
    }
    rc = mdb_env_set_mapsize(env->mdb, o->map_bytes);
    if (rc == 0) {
        rc = mdb_env_set_maxreaders(env->mdb, LMDB_READERS_MAX);
    }
    if (rc == 0 && o->databases > 0) {
        rc = mdb_env_set_maxdbs(env->mdb, o->databases);
    }
    if (rc == 0) {
        rc = mdb_env_open(env->mdb, env->path, MDB_NOTLS, FILE_MODE);
    }
    if (rc != 0) {
        return lmdb_error(e, rc, env->path);
    }
    rc = check_length(env, e);
    if (rc != 0) {
        return rc;
    }
    reserve(env, o->reserve_bytes);
    rc = open_main(env);
    return rc != 0 ? lmdb_error(e, rc, env->path) : 0;
}

static struct lmdb_env *find(const struct stat *st)
{
    struct list *pos;

    list_foreach (pos, &table) {
        struct lmdb_env *env = container_of(pos, struct lmdb_env, link);
        if (env->dev == st->st_dev && env->ino == st->st_ino &&
            env->pid == getpid()) {
            return env;
        }
    }
    return NULL;
}

static int open_locked(const char *path, const struct lmdb_env_options *o,
                       struct lmdb_env **out, struct hedge_error *e)
{
    struct lmdb_env *env;
    struct stat st;
    int rv;

    if (stat(path, &st) != 0) {
        return error_set_errno(e, errno, "%s", path);
    }
    env = find(&st);
    if (env != NULL && atomic_load(&env->broken)) {
        return error_set(e, HEDGE_EBUSY,
                         "%s: writing has failed, and others of this process "
                         "are not done with it",
                         path);
    }
    if (env != NULL) {
        env->refs++;
        *out = env;
        return 0;
    }
    rv = env_new(path, &env);
    if (rv != 0) {
        return error_set(e, rv, "%s", hedge_strerror(rv));
    }
    env->dev = st.st_dev;
    env->ino = st.st_ino;
    rv = namespace_enter(env, e);
    if (rv == 0) {
        rv = open_files(env, o, e);
    }
    if (rv != 0) {
        env_free(env);
        return rv;
    }
    list_push(&table, &env->link);
    *out = env;
    return 0;
}

int lmdb_env_open(const char *dir, const char *name,
                  const struct lmdb_env_options *o, struct lmdb_env **out,
                  struct hedge_error *e)
{
    char path[PATH_MAX];
    int n, rv;

    assert(dir != NULL && name != NULL && o->map_bytes > 0);
    *out = NULL;
    n = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= sizeof path - 16 || dir[0] == '\0') {
        return error_set(e, HEDGE_EINVAL,
                         "the engine's directory is empty or too long");
    }
    rv = make_directory(path, e);
    if (rv == 0) {
        rv = check_fs(path, e);
    }
    if (rv != 0) {
        return rv;
    }
    pthread_mutex_lock(&table_lock);
    rv = open_locked(path, o, out, e);
    pthread_mutex_unlock(&table_lock);
    return rv;
}

void lmdb_env_close(struct lmdb_env *env)
{
    if (env == NULL) {
        return;
    }
    /* Closed under the lock: opened again meanwhile, the file locks of the new
     * one would go with the descriptors of the old one. */
    pthread_mutex_lock(&table_lock);
    assert(env->refs > 0);
    if (--env->refs == 0) {
        assert(!env->writing);
        list_remove(&env->link);
        env_free(env);
    }
    pthread_mutex_unlock(&table_lock);
}

MDB_env *lmdb_env_handle(struct lmdb_env *env)
{
    return env->mdb;
}

MDB_dbi lmdb_env_main(const struct lmdb_env *env)
{
    return env->main;
}

const char *lmdb_env_path(const struct lmdb_env *env)
{
    return env->path;
}

bool lmdb_env_is_broken(struct lmdb_env *env)
{
    return atomic_load(&env->broken);
}

/* LMDB's code of a transaction that could not begin. */
static int begin_error(struct lmdb_env *env, int rc, struct hedge_error *e)
{
    if (rc == MDB_PANIC) {
        atomic_store(&env->broken, true);
    }
    return lmdb_error(e, rc, env->path);
}

/* --- transactions -----------------------------------------------------------
 */

static uint64_t last_txn(struct lmdb_env *env)
{
    MDB_envinfo info;

    (void)mdb_env_info(env->mdb, &info);
    return info.me_last_txnid;
}

static int stuck(struct lmdb_env *env, uint64_t waited_ms, uint64_t txn_before,
                 struct hedge_error *e)
{
    long pid = (long)file_locker(env->writer_fd, TURN_BYTE);
    bool moves = last_txn(env) != txn_before;

    if (pid == 0) {
        pid = (long)getpid();
    }
    return error_set(e, HEDGE_ETIMEDOUT,
                     "%s: no turn to write within %llu ms, process %ld is at "
                     "it%s",
                     env->path, (unsigned long long)waited_ms, pid,
                     moves ? ""
                           : " and does not get on; if it is stopped, let it "
                             "go on (kill -CONT) or kill it");
}

/* The turn of this process's threads. */
static bool wait_idle(struct lmdb_env *env, uint64_t until_ms)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ms / 1000),
                          .tv_nsec = (long)(until_ms % 1000) * 1000000L};
    int rc = 0;
    bool mine;

    pthread_mutex_lock(&env->lock);
    while (env->writing && rc == 0) {
        rc = pthread_cond_timedwait(&env->idle, &env->lock, &ts);
    }
    mine = !env->writing;
    if (mine) {
        env->writing = true;
    }
    pthread_mutex_unlock(&env->lock);
    return mine;
}

static void give_up_turn(struct lmdb_env *env)
{
    (void)file_lock(env->writer_fd, F_SETLK, F_UNLCK, TURN_BYTE);
    env->turn_ended_ms = clock_mono_ms();
    pthread_mutex_lock(&env->lock);
    assert(env->writing);
    env->writing = false;
    pthread_cond_signal(&env->idle);
    pthread_mutex_unlock(&env->lock);
}

/* The turn among the processes. Those who wait show it by a shared lock, and
 * who has just had a turn lets them go first: they poll, and would hardly ever
 * find it free beside one that writes again and again. */
static int wait_file_lock(struct lmdb_env *env, uint64_t until_ms)
{
    uint64_t pause_ms = 1;
    int fd = env->writer_fd, rc;

    if (clock_mono_ms() <= env->turn_ended_ms + POLL_MS_MAX &&
        file_locker(fd, WAITING_BYTE) != 0) {
        clock_sleep_ms(POLL_MS_MAX + 1);
    }
    rc = file_lock(fd, F_SETLK, F_WRLCK, TURN_BYTE);
    if (rc != EAGAIN && rc != EACCES) {
        return rc;
    }
    (void)file_lock(fd, F_SETLK, F_RDLCK, WAITING_BYTE);
    while ((rc == EAGAIN || rc == EACCES) && clock_mono_ms() < until_ms) {
        clock_sleep_ms(pause_ms);
        pause_ms = pause_ms * 2 < POLL_MS_MAX ? pause_ms * 2 : POLL_MS_MAX;
        rc = file_lock(fd, F_SETLK, F_WRLCK, TURN_BYTE);
    }
    (void)file_lock(fd, F_SETLK, F_UNLCK, WAITING_BYTE);
    return rc == EAGAIN || rc == EACCES ? ETIMEDOUT : rc;
}

int lmdb_write_begin(struct lmdb_env *env, uint64_t timeout_ms, MDB_txn **out,
                     struct hedge_error *e)
{
    uint64_t until_ms = clock_mono_ms() + timeout_ms;
    uint64_t txn_before = last_txn(env);
    int rc;

    assert(env->pid == getpid());
    *out = NULL;
    if (!wait_idle(env, until_ms)) {
        return stuck(env, timeout_ms, txn_before, e);
    }
    rc = wait_file_lock(env, until_ms);
    if (rc != 0) {
        int rv = rc == ETIMEDOUT
                     ? stuck(env, timeout_ms, txn_before, e)
                     : error_set_errno(e, rc, "%s/writer.lock", env->path);
        give_up_turn(env);
        return rv;
    }
    rc = mdb_txn_begin(env->mdb, NULL, 0, out);
    if (rc != 0) {
        *out = NULL;
        give_up_turn(env);
        return begin_error(env, rc, e);
    }
    return 0;
}

int lmdb_write_commit(struct lmdb_env *env, MDB_txn *txn, struct hedge_error *e)
{
    int rc = mdb_txn_commit(txn);

    give_up_turn(env);
    return rc != 0 ? lmdb_error(e, rc, env->path) : 0;
}

void lmdb_write_abort(struct lmdb_env *env, MDB_txn *txn)
{
    mdb_txn_abort(txn);
    give_up_turn(env);
}

int lmdb_read_begin(struct lmdb_env *env, MDB_txn **txn, struct hedge_error *e)
{
    int dead, rc;

    /* env->pid is not compared here: getpid() costs as much as all else. */
    if (*txn != NULL) {
        rc = mdb_txn_renew(*txn);
        if (rc == 0) {
            return 0;
        }
        mdb_txn_abort(*txn);
        *txn = NULL;
    }
    rc = mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, txn);
    if (rc == MDB_READERS_FULL && mdb_reader_check(env->mdb, &dead) == 0) {
        rc = mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, txn);
    }
    if (rc != 0) {
        *txn = NULL;
        return begin_error(env, rc, e);
    }
    return 0;
}

void lmdb_read_end(MDB_txn *txn)
{
    mdb_txn_reset(txn);
}
