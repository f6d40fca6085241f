/* The main thread of `sem run`: waits for the grant, has the guard run the
 * command, tells it until when the permits are held, passes signals on, and
 * looks after the terminal. Signals come through a descriptor and are blocked
 * in all threads; the guard and the command get the mask there was. */
#include "tools/sem_run.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "tools/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

struct run {
    struct keeper *keeper;
    const struct keeper_request *r;
    char *const *command;
    sigset_t old_mask;
    int signals, tty; /* tty -1: not in the foreground of one. */
    pid_t guard, group;
    int to_guard, from_guard;
    uint64_t told_ms; /* The last deadline given to the guard. */
    bool ended;       /* It was told to end the command. */
    bool lost;
    bool has_status;
    int status; /* For exit(). */
};

/* --- signals ----------------------------------------------------------------
 */

static int block_signals(struct run *x)
{
    static const int caught[] = {SIGINT,  SIGTERM, SIGHUP,  SIGQUIT,
                                 SIGUSR1, SIGUSR2, SIGCHLD, SIGCONT};
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < sizeof caught / sizeof caught[0]; i++) {
        sigaddset(&set, caught[i]);
    }
    (void)pthread_sigmask(SIG_BLOCK, &set, &x->old_mask);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGTTOU, SIG_IGN);
    x->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return x->signals;
}

/* As the signal would have ended us. */
static void die_of(int signo)
{
    sigset_t set;

    (void)fflush(NULL);
    (void)signal(signo, SIG_DFL);
    sigemptyset(&set);
    sigaddset(&set, signo);
    (void)raise(signo);
    (void)pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    _exit(128 + signo);
}

/* --- the terminal -----------------------------------------------------------
 */

static void find_terminal(struct run *x)
{
    x->tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
    if (x->tty >= 0 && tcgetpgrp(x->tty) != getpgrp()) {
        close(x->tty);
        x->tty = -1;
    }
}

static void give_terminal(const struct run *x, pid_t group)
{
    if (x->tty >= 0) {
        (void)tcsetpgrp(x->tty, group);
    }
}

static void order(struct run *x, enum guard_order what, int signo,
                  uint64_t until_ms)
{
    const struct guard_message m = {
        .order = what, .signal = signo, .until_ms = until_ms};

    while (x->to_guard >= 0 && write(x->to_guard, &m, sizeof m) < 0 &&
           errno == EINTR) {
    }
}

/* ^Z stopped the command: the shell must see its job stopped. Nothing renews
 * meanwhile, so the permits last as long as they last. */
static void stop_with_command(struct run *x)
{
    uint64_t now = clock_boot_ms();

    if (x->tty < 0) {
        return;
    }
    give_terminal(x, getpgrp());
    fprintf(
        stderr,
        "hedgectl: stopped; unless it goes on within %llu s the permits "
        "are lost and the command is ended\n",
        (unsigned long long)(x->told_ms > now ? (x->told_ms - now) / 1000 : 0));
    (void)raise(SIGSTOP);
    if (tcgetpgrp(x->tty) == getpgrp()) {
        give_terminal(x, x->group);
    }
    order(x, GUARD_SIGNAL, SIGCONT, 0);
}

/* --- the guard --------------------------------------------------------------
 */

static int set_environment(const struct keeper_state *s)
{
    char token[24];

    (void)snprintf(token, sizeof token, "%llu", (unsigned long long)s->token);
    return setenv("HEDGE_FENCE_TOKEN", token, 1);
}

static int spawn_with(struct run *x, const int to[2], const int from[2],
                      char **argv)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t defaults;
    int err;

    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    sigaddset(&defaults, SIGTTOU);
    (void)posix_spawn_file_actions_init(&files);
    (void)posix_spawnattr_init(&attr);
    (void)posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP |
                                              POSIX_SPAWN_SETSIGMASK |
                                              POSIX_SPAWN_SETSIGDEF);
    (void)posix_spawnattr_setpgroup(&attr, 0);
    (void)posix_spawnattr_setsigmask(&attr, &x->old_mask);
    (void)posix_spawnattr_setsigdefault(&attr, &defaults);
    (void)posix_spawn_file_actions_adddup2(&files, to[0], GUARD_IN);
    (void)posix_spawn_file_actions_adddup2(&files, from[1], GUARD_OUT);
    err =
        posix_spawn(&x->guard, "/proc/self/exe", &files, &attr, argv, environ);
    (void)posix_spawn_file_actions_destroy(&files);
    (void)posix_spawnattr_destroy(&attr);
    return err;
}

/* Above the numbers the guard's own descriptors get. */
static int make_pipe(int ends[2])
{
    int low[2];

    if (pipe2(low, O_CLOEXEC) != 0) {
        return errno;
    }
    for (unsigned i = 0; i < 2; i++) {
        ends[i] = fcntl(low[i], F_DUPFD_CLOEXEC, GUARD_OUT + 1);
        close(low[i]);
    }
    return ends[0] < 0 || ends[1] < 0 ? EMFILE : 0;
}

static int start_guard(struct run *x, const struct keeper_state *s)
{
    char self[] = "hedgectl", word[] = GUARD_WORD, lease[24];
    char foreground[2] = {x->tty >= 0 ? '1' : '0', '\0'};
    int to[2], from[2], err;
    unsigned n = 0;
    char **argv;

    while (x->command[n] != NULL) {
        n++;
    }
    argv = mem_calloc(n + 5, sizeof *argv);
    if (argv == NULL || set_environment(s) != 0 || make_pipe(to) != 0 ||
        make_pipe(from) != 0) {
        return cli_fail("no memory or descriptors to run a command");
    }
    (void)snprintf(lease, sizeof lease, "%llu",
                   (unsigned long long)x->r->lease_ms);
    argv[0] = self;
    argv[1] = word;
    argv[2] = lease;
    argv[3] = foreground;
    memcpy(argv + 4, x->command, n * sizeof *argv);
    x->to_guard = to[1];
    x->from_guard = from[0];
    err = spawn_with(x, to, from, argv);
    mem_free(argv);
    close(to[0]);
    close(from[1]);
    if (err != 0) {
        return cli_fail("cannot run myself: %s", strerror(err));
    }
    x->told_ms = s->until_ms;
    order(x, GUARD_UNTIL, 0, s->until_ms);
    return 0;
}

static void set_status(struct run *x, int status)
{
    if (!x->has_status) {
        x->has_status = true;
        x->status = status;
    }
}

static void not_run(struct run *x, int err)
{
    fprintf(stderr, "hedgectl: %s: %s\n", x->command[0], strerror(err));
    set_status(x, err == ENOENT ? CLI_RUN_NOT_FOUND : CLI_RUN_NOT_RUNNABLE);
}

static void read_reports(struct run *x)
{
    struct guard_report r;

    while (read(x->from_guard, &r, sizeof r) == (ssize_t)sizeof r) {
        switch ((enum guard_news)r.news) {
        case GUARD_STARTED:
            x->group = r.value;
            break;
        case GUARD_FAILED:
            not_run(x, r.value);
            break;
        case GUARD_STOPPED:
            stop_with_command(x);
            break;
        case GUARD_EXITED:
            set_status(x, r.value);
            break;
        case GUARD_KILLED:
            set_status(x, 128 + r.value);
            break;
        }
    }
}

/* --- the run ----------------------------------------------------------------
 */

/* The next signal, 0: none. */
static int next_signal(const struct run *x)
{
    struct signalfd_siginfo info;

    return read(x->signals, &info, sizeof info) == (ssize_t)sizeof info
               ? (int)info.ssi_signo
               : 0;
}

static int not_granted(const struct run *x, const struct hedge_error *e)
{
    if (e->code != HEDGE_EBUSY && e->code != HEDGE_ETIMEDOUT) {
        return ctl_error(e);
    }
    return cli_fail("semaphore \"%s\": %s (hedgectl sem ls %s shows who has "
                    "it)",
                    x->r->name, e->text, x->r->name);
}

static int wait_for_grant(struct run *x, struct keeper_state *s)
{
    struct pollfd fds[2] = {{.fd = x->signals, .events = POLLIN},
                            {.fd = keeper_event(x->keeper), .events = POLLIN}};
    int signo;

    for (;;) {
        *s = keeper_state(x->keeper);
        if (s->failed) {
            return not_granted(x, &s->error);
        }
        if (s->granted &&
            (s->lost || (s->until_ms != 0 && clock_boot_ms() >= s->until_ms))) {
            return cli_fail("the permits were lost before the command began");
        }
        if (s->granted && s->until_ms != 0) {
            return 0;
        }
        (void)poll(fds, 2, -1);
        while ((signo = next_signal(x)) != 0) {
            if (signo == SIGINT || signo == SIGTERM || signo == SIGHUP ||
                signo == SIGQUIT) {
                (void)keeper_stop(x->keeper);
                die_of(signo);
            }
        }
    }
}

static void look_at_lease(struct run *x)
{
    struct keeper_state s = keeper_state(x->keeper);

    if (s.lost && !x->ended) {
        fprintf(stderr,
                "hedgectl: the permits of \"%s\" were taken away: the "
                "command is ended\n",
                x->r->name);
        x->ended = x->lost = true;
        order(x, GUARD_END, 0, s.until_ms);
    } else if (s.until_ms > x->told_ms) {
        x->told_ms = s.until_ms;
        order(x, GUARD_UNTIL, 0, s.until_ms);
    }
}

static void pass_signals(struct run *x)
{
    int signo;

    while ((signo = next_signal(x)) != 0) {
        if (signo != SIGCHLD && signo != SIGCONT) {
            order(x, GUARD_SIGNAL, signo, 0);
        }
    }
}

/* Whatever the guard does: this is the last line. */
static void check_deadline(struct run *x)
{
    uint64_t now = clock_boot_ms();

    if (now + guard_grace_ms(x->r->lease_ms) >= x->told_ms && !x->lost) {
        fprintf(stderr,
                "hedgectl: no leader has renewed the permits of \"%s\" "
                "in time: the command is ended\n",
                x->r->name);
        x->lost = true;
    }
    if (now >= x->told_ms && x->group > 0) {
        (void)kill(-x->group, SIGKILL);
    }
}

static int poll_ms(const struct run *x)
{
    uint64_t now = clock_boot_ms(), grace = guard_grace_ms(x->r->lease_ms);
    uint64_t at = x->lost              ? x->told_ms
                  : x->told_ms > grace ? x->told_ms - grace
                                       : 0;

    if (at <= now) {
        return x->lost ? 50 : 1;
    }
    return at - now < 60000 ? (int)(at - now) : 60000;
}

static void oversee(struct run *x)
{
    struct pollfd fds[3] = {{.fd = x->signals, .events = POLLIN},
                            {.fd = keeper_event(x->keeper), .events = POLLIN},
                            {.fd = x->from_guard, .events = POLLIN}};
    bool gone = false;
    int status;

    (void)fcntl(x->from_guard, F_SETFL, O_NONBLOCK);
    while (!gone) {
        (void)poll(fds, 3, poll_ms(x));
        pass_signals(x);
        read_reports(x);
        look_at_lease(x);
        check_deadline(x);
        gone = waitpid(x->guard, &status, WNOHANG) == x->guard;
    }
    read_reports(x);
    if (!x->has_status) { /* Killed itself: its command goes with it. */
        if (x->group > 0) {
            (void)kill(-x->group, SIGKILL);
        }
        fprintf(stderr, "hedgectl: the command's guard was killed\n");
        set_status(x, CLI_RUN_FAILED);
    }
    give_terminal(x, getpgrp());
}

int sem_run(const struct ctl *ctl, const struct keeper_request *r,
            char *const *command)
{
    struct run x = {.r = r, .command = command, .tty = -1, .to_guard = -1};
    struct keeper_state s;
    uint64_t now, left_ms;

    if (block_signals(&x) < 0) {
        return cli_fail("no descriptor for signals"), CLI_RUN_FAILED;
    }
    if (keeper_start(ctl, r, &x.keeper) != 0) {
        return CLI_RUN_FAILED;
    }
    if (wait_for_grant(&x, &s) != 0) {
        (void)keeper_stop(x.keeper);
        return CLI_RUN_FAILED;
    }
    find_terminal(&x);
    if (start_guard(&x, &s) != 0) {
        (void)keeper_stop(x.keeper);
        return CLI_RUN_FAILED;
    }
    oversee(&x);
    if (!keeper_stop(x.keeper) && !x.lost) {
        now = clock_boot_ms();
        left_ms = x.told_ms > now ? x.told_ms - now : 0;
        fprintf(stderr,
                "hedgectl: the permits of \"%s\" could not be given back; they "
                "are free in %llu s at the latest\n",
                r->name, (unsigned long long)left_ms / 1000 + 1);
    }
    return x.lost ? CLI_RUN_FAILED : x.status;
}
