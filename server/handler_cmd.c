#include "server/handler_cmd.h"

#include "cluster/messages/handlers.h"
#include "store/base/error.h"
#include "store/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STEP_MS 50
#define STREAM_MESSAGE_MS 60000 /* For the reply to one of a stream. */
#define CHUNK ((size_t)64 << 10)
#define LINE_MAX_BYTES 400

/* --- the command ------------------------------------------------------------
 */

/* One word from *p to `out`, which has room for all of the line. False: a
 * quote is not closed. */
static bool take_word(const char **p, char *out)
{
    char quote = '\0';
    const char *s = *p;

    for (; *s != '\0' && (quote != '\0' || strchr(" \t\n", *s) == NULL); s++) {
        if (quote == '\0' && (*s == '"' || *s == '\'')) {
            quote = *s;
        } else if (quote != '\0' && *s == quote) {
            quote = '\0';
        } else if (*s == '\\' && quote != '\'' && s[1] != '\0') {
            *out++ = *++s;
        } else {
            *out++ = *s;
        }
    }
    *out = '\0';
    *p = s;
    return quote == '\0';
}

static int split(struct cmd *c, const char *flag, const char *line,
                 struct hedge_error *e)
{
    char *word = mem_alloc(strlen(line) + 1);
    int rv = word != NULL ? 0 : HEDGE_ENOMEM;

    line += strspn(line, " \t\n");
    while (rv == 0 && *line != '\0') {
        if (!take_word(&line, word)) {
            rv = error_set(e, HEDGE_EINVAL, "%s: a quote is not closed", flag);
        } else if (c->n == CMD_ARGS_MAX) {
            rv = error_set(e, HEDGE_EINVAL, "%s: more than %d words", flag,
                           CMD_ARGS_MAX);
        } else {
            c->words[c->n] = mem_strdup(word);
            rv = c->words[c->n++] != NULL ? 0 : HEDGE_ENOMEM;
        }
        line += strspn(line, " \t\n");
    }
    mem_free(word);
    if (rv == HEDGE_ENOMEM) {
        return error_set(e, rv, "no memory for a command");
    }
    return rv == 0 && c->n == 0
               ? error_set(e, HEDGE_EINVAL, "%s: the command is empty", flag)
               : rv;
}

static bool is_program(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
           access(path, X_OK) == 0;
}

/* Its path; NULL: there is none. */
static char *find_program(const char *name)
{
    const char *dirs = getenv("PATH");
    char path[4096];
    size_t len;

    if (strchr(name, '/') != NULL) {
        return is_program(name) ? mem_strdup(name) : NULL;
    }
    for (dirs = dirs != NULL ? dirs : "/usr/bin:/bin";; dirs += len + 1) {
        len = strcspn(dirs, ":");
        (void)snprintf(path, sizeof path, "%.*s/%s", len > 0 ? (int)len : 1,
                       len > 0 ? dirs : ".", name);
        if (is_program(path)) {
            return mem_strdup(path);
        }
        if (dirs[len] == '\0') {
            return NULL;
        }
    }
}

int cmd_parse(struct cmd *c, const char *flag, const char *line,
              struct hedge_error *e)
{
    int rv;

    memset(c, 0, sizeof *c);
    rv = split(c, flag, line, e);
    if (rv == 0) {
        c->path = find_program(c->words[0]);
        if (c->path == NULL) {
            rv = error_set(e, HEDGE_EINVAL,
                           "%s: there is no program \"%s\" that can be run",
                           flag, c->words[0]);
        }
    }
    if (rv != 0) {
        cmd_release(c);
    }
    return rv;
}

void cmd_release(struct cmd *c)
{
    mem_free(c->path);
    for (unsigned i = 0; i < c->n; i++) {
        mem_free(c->words[i]);
    }
    memset(c, 0, sizeof *c);
}

/* --- running it -------------------------------------------------------------
 */

enum { IN, OUT, ERR, EXIT, FDS };

struct run {
    const struct cmd *cmd;
    const struct hedge_message *message;
    struct hedge_answer *answer;
    pid_t pid;
    int fd[FDS]; /* Ours; -1: closed. */
    size_t sent;
    int failed;                    /* Of the reply. */
    char last[LINE_MAX_BYTES + 1]; /* The last line of its stderr. */
    size_t last_len;
    bool line_over;
};

static void close_one(struct run *r, int i)
{
    if (r->fd[i] >= 0) {
        close(r->fd[i]);
        r->fd[i] = -1;
    }
}

static int make_pipes(struct run *r, int theirs[3])
{
    int pair[2];

    for (int i = IN; i <= ERR; i++) {
        if (pipe2(pair, O_CLOEXEC) != 0) {
            return errno;
        }
        r->fd[i] = pair[i == IN ? 1 : 0];
        theirs[i] = pair[i == IN ? 0 : 1];
        (void)fcntl(r->fd[i], F_SETFL, O_NONBLOCK);
    }
    return 0;
}

/* The environment and HEDGE_FROM, in one piece of memory. */
static char **make_environment(const char *from)
{
    size_t n = 0, text = strlen(from) + sizeof "HEDGE_FROM=";
    char **env;

    while (environ[n] != NULL) {
        n++;
    }
    env = mem_alloc((n + 2) * sizeof(char *) + text);
    if (env != NULL) {
        memcpy(env + 1, environ, (n + 1) * sizeof(char *));
        env[0] = (char *)(env + n + 2);
        (void)snprintf(env[0], text, "HEDGE_FROM=%s", from);
    }
    return env;
}

static int spawn(struct run *r, const int theirs[3])
{
    const short flags =
        POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    char **env = make_environment(r->message->from);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;
    int rc = env != NULL ? 0 : ENOMEM;

    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawnattr_init(&attr);
    (void)posix_spawnattr_setflags(&attr, flags);
    (void)posix_spawnattr_setsigmask(&attr, &none);
    (void)posix_spawnattr_setsigdefault(&attr, &all);
    for (int i = 0; rc == 0 && i < 3; i++) {
        rc = posix_spawn_file_actions_adddup2(&actions, theirs[i], i);
    }
    if (rc == 0) { /* Libraries may have some that are not close-on-exec. */
        rc = posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    }
    if (rc == 0) {
        rc = posix_spawn(&r->pid, r->cmd->path, &actions, &attr, r->cmd->words,
                         env);
    }
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    mem_free(env);
    return rc;
}

static int start(struct run *r, struct hedge_error *e)
{
    int theirs[3] = {-1, -1, -1};
    int rc = make_pipes(r, theirs);

    rc = rc != 0 ? rc : spawn(r, theirs);
    for (int i = 0; i < 3; i++) {
        if (theirs[i] >= 0) {
            close(theirs[i]);
        }
    }
    if (rc != 0) {
        for (int i = 0; i < FDS; i++) {
            close_one(r, i);
        }
        return error_set_errno(e, rc, "%s cannot be run", r->cmd->path);
    }
    r->fd[EXIT] = pidfd_open(r->pid, 0); /* Else it is asked now and then. */
    return 0;
}

static void feed(struct run *r)
{
    const char *data = r->message->data;
    size_t left = r->message->len - r->sent;
    ssize_t n = left > 0 ? write(r->fd[IN], data + r->sent, left) : 0;

    if (n > 0) {
        r->sent += (size_t)n;
    }
    /* A program need not read what it is given. */
    if (r->sent == r->message->len || (n < 0 && errno != EAGAIN)) {
        close_one(r, IN);
    }
}

/* Keeps the last line that is not empty. */
static void note(struct run *r, const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\n') {
            r->line_over = true;
            continue;
        }
        if (r->line_over) {
            r->line_over = false;
            r->last_len = 0;
        }
        if (r->last_len < LINE_MAX_BYTES) {
            r->last[r->last_len++] = text[i];
        }
    }
    r->last[r->last_len] = '\0';
}

/* False: there is no more for now. */
static bool take(struct run *r, int i)
{
    char chunk[CHUNK];
    ssize_t n = read(r->fd[i], chunk, sizeof chunk);

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return errno == EINTR;
    }
    if (n <= 0) {
        close_one(r, i);
        return false;
    }
    if (i == ERR) {
        note(r, chunk, (size_t)n);
    } else if (r->failed == 0) {
        r->failed = hedge_answer_write(r->answer, chunk, (size_t)n);
    }
    return true;
}

/* Without reaping it, so that its number stays its own. */
static bool has_ended(const struct run *r)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)r->pid, &info, WEXITED | WNOHANG | WNOWAIT) !=
               0 ||
           info.si_pid == r->pid;
}

static void wait_a_step(struct run *r)
{
    struct pollfd p[FDS];

    for (int i = 0; i < FDS; i++) {
        p[i] = (struct pollfd){.fd = r->fd[i],
                               .events = i == IN ? POLLOUT : POLLIN};
    }
    if (poll(p, FDS, STEP_MS) <= 0) {
        return;
    }
    if (p[IN].revents != 0) {
        feed(r);
    }
    if (p[OUT].revents != 0) {
        (void)take(r, OUT);
    }
    if (p[ERR].revents != 0) {
        (void)take(r, ERR);
    }
}

/* What it has left in a pipe; not what somebody who has got away from it goes
 * on to write. */
static void drain(struct run *r, int i)
{
    int left = 0;

    if (r->fd[i] >= 0 && ioctl(r->fd[i], FIONREAD, &left) != 0) {
        left = 0;
    }
    for (; left > 0 && r->failed == 0 && take(r, i); left -= (int)CHUNK) {
    }
}

/* Kill what is left of it; how it ended. */
static int end(struct run *r)
{
    int status, rc;

    (void)kill(-r->pid, SIGKILL);
    do {
        rc = waitpid(r->pid, &status, 0);
    } while (rc < 0 && errno == EINTR);
    for (int i = 0; i < FDS; i++) {
        close_one(r, i);
    }
    return rc == r->pid ? status : W_EXITCODE(0xff, 0);
}

static int judge(const struct run *r, int status, struct hedge_error *e)
{
    if (r->failed != 0) {
        return error_set(e, r->failed, "the reply of %s is too long",
                         r->cmd->path);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return 0;
    }
    if (r->last_len > 0) {
        return error_set(e, HEDGE_EHANDLER, "%s", r->last);
    }
    return WIFSIGNALED(status)
               ? error_set(e, HEDGE_EHANDLER, "%s was ended by signal %d",
                           r->cmd->path, WTERMSIG(status))
               : error_set(e, HEDGE_EHANDLER, "%s ended with status %d",
                           r->cmd->path, WEXITSTATUS(status));
}

int cmd_run(const struct cmd *c, const struct hedge_message *m,
            struct hedge_answer *a, struct hedge_error *e)
{
    struct run r = {.cmd = c,
                    .message = m,
                    .answer = a,
                    .fd = {-1, -1, -1, -1},
                    .line_over = true};
    bool cancelled = false;
    int rv = start(&r, e), status;

    if (rv != 0) {
        return rv;
    }
    while (!cancelled && r.failed == 0 && !has_ended(&r)) {
        wait_a_step(&r);
        cancelled = hedge_answer_is_cancelled(a);
    }
    if (!cancelled && r.failed == 0) {
        drain(&r, OUT);
        drain(&r, ERR);
    }
    status = end(&r);
    return cancelled ? error_set(e, HEDGE_EHANDLER,
                                 "%s was killed: nobody waits for it any more",
                                 c->path)
                     : judge(&r, status, e);
}

/* --- the daemon's -----------------------------------------------------------
 */

#define NAME_TRIES 20

/* With the lock held; a second at most. */
static void wait_for_name(struct daemon_handlers *d)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec++;
    (void)pthread_cond_timedwait(&d->named, &d->lock, &ts);
}

/* Messages may come before the node's own start has returned, and that may
 * fail. */
static bool await_name(struct daemon_handlers *d)
{
    bool named;

    pthread_mutex_lock(&d->lock);
    for (int i = 0; i < NAME_TRIES && d->id[0] == '\0'; i++) {
        wait_for_name(d);
    }
    named = d->id[0] != '\0';
    pthread_mutex_unlock(&d->lock);
    return named;
}

static int say(struct daemon_handlers *d, const struct hedge_message *m,
               struct hedge_answer *a)
{
    int rv;

    if (!await_name(d)) {
        return HEDGE_ECLOSED;
    }
    rv = hedge_answer_write(a, d->id, strlen(d->id));
    rv = rv != 0 ? rv : hedge_answer_write(a, ": ", 2);
    return rv != 0 ? rv : hedge_answer_write(a, m->data, m->len);
}

static int on_leader(void *data, const struct hedge_message *m,
                     struct hedge_answer *a, struct hedge_error *e)
{
    struct daemon_handlers *d = data;

    return d->leader.n > 0 ? cmd_run(&d->leader, m, a, e) : say(d, m, a);
}

static int on_broadcast(void *data, const struct hedge_message *m,
                        struct hedge_answer *a, struct hedge_error *e)
{
    struct daemon_handlers *d = data;

    return d->broadcast.n > 0 ? cmd_run(&d->broadcast, m, a, e) : say(d, m, a);
}

/* Each message of a stream is answered as one that came by itself. */
static int answer_stream(struct daemon_handlers *d, enum handler_kind kind,
                         struct hedge_stream *s, struct hedge_error *e)
{
    struct hedge_reply *reply;
    struct hedge_message m;
    int rv = await_name(d) ? 0 : HEDGE_ECLOSED;

    while (rv == 0 &&
           (rv = hedge_stream_recv(s, HEDGE_UNLIMITED, &m, e)) == 0) {
        rv = handlers_run(node_handlers(d->node), kind, m.data, m.len, m.from,
                          STREAM_MESSAGE_MS, &reply, e);
        if (rv == 0) {
            m.data = reply->data;
            m.len = reply->len;
            rv = hedge_stream_send(s, &m, HEDGE_UNLIMITED);
            hedge_reply_free(reply);
        }
    }
    return rv;
}

static int on_leader_stream(void *data, struct hedge_stream *s,
                            struct hedge_error *e)
{
    return answer_stream(data, HANDLER_LEADER, s, e);
}

static int on_broadcast_stream(void *data, struct hedge_stream *s,
                               struct hedge_error *e)
{
    return answer_stream(data, HANDLER_BROADCAST, s, e);
}

int daemon_handlers_init(struct daemon_handlers *d, const char *leader_cmd,
                         const char *broadcast_cmd, struct hedge_error *e)
{
    int rv = 0;

    memset(d, 0, sizeof *d);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->named, NULL);
    if (leader_cmd != NULL) {
        rv = cmd_parse(&d->leader, "--leader-handler", leader_cmd, e);
    }
    if (rv == 0 && broadcast_cmd != NULL) {
        rv = cmd_parse(&d->broadcast, "--broadcast-handler", broadcast_cmd, e);
    }
    if (rv != 0) {
        daemon_handlers_release(d);
    }
    return rv;
}

void daemon_handlers_install(struct daemon_handlers *d, struct hedge_options *o)
{
    o->data = d;
    o->leader_handler = on_leader;
    o->broadcast_handler = on_broadcast;
    o->leader_stream_handler = on_leader_stream;
    o->broadcast_stream_handler = on_broadcast_stream;
}

void daemon_handlers_start(struct daemon_handlers *d, struct hedge_node *node)
{
    pthread_mutex_lock(&d->lock);
    d->node = node;
    (void)snprintf(d->id, sizeof d->id, "%s", hedge_node_name(node));
    pthread_cond_broadcast(&d->named);
    pthread_mutex_unlock(&d->lock);
}

void daemon_handlers_release(struct daemon_handlers *d)
{
    cmd_release(&d->leader);
    cmd_release(&d->broadcast);
    pthread_cond_destroy(&d->named);
    pthread_mutex_destroy(&d->lock);
}
