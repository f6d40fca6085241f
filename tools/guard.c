#include "tools/guard.h"

#include "store/base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE_MS_MIN 40u
#define KILL_ROUNDS                                                         \
    1000               /* Of 5 ms: what does not die then is in the kernel. \
                        */
#define POLITE_MS 5000 /* Between the signals where there is time. */

struct guard {
    pid_t command;
    uint64_t grace_ms, until_ms, kill_ms;
    bool told;  /* SIGTERM has been sent. */
    bool alone; /* hedgectl is gone. */
    int signals, timer;
    sigset_t old_mask;
};

uint64_t guard_grace_ms(uint64_t lease_ms)
{
    uint64_t ms = lease_ms / 16;

    return ms < GRACE_MS_MIN ? GRACE_MS_MIN : ms;
}

static void report(enum guard_news news, int value)
{
    const struct guard_report r = {.news = news, .value = value};

    /* Where nobody listens any more nothing is lost. */
    while (write(GUARD_OUT, &r, sizeof r) < 0 && errno == EINTR) {
    }
}

/* --- starting it ------------------------------------------------------------
 */

static void take_terminal(void)
{
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
    sigset_t out;

    sigemptyset(&out);
    sigaddset(&out, SIGTTOU);
    (void)sigprocmask(SIG_BLOCK, &out, NULL);
    if (tty >= 0) {
        (void)tcsetpgrp(tty, getpid());
        close(tty);
    }
}

static void run_command(const struct guard *g, pid_t guard, int failed,
                        bool foreground, char **argv)
{
    int err;

    (void)setpgid(0, 0);
    if (foreground) {
        take_terminal();
    }
    /* Cleared by a set-user-id program: see the help. */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == guard) {
        (void)signal(SIGPIPE, SIG_DFL);
        (void)sigprocmask(SIG_SETMASK, &g->old_mask, NULL);
        (void)execvp(argv[0], argv);
    }
    err = errno;
    while (write(failed, &err, sizeof err) < 0 && errno == EINTR) {
    }
    _exit(127);
}

/* 0, or what went wrong. */
static int start(struct guard *g, bool foreground, char **argv)
{
    pid_t self = getpid();
    int failed[2], err = 0;
    ssize_t got;

    if (pipe2(failed, O_CLOEXEC) != 0) {
        return errno;
    }
    g->command = fork(); /* One thread, and no gRPC in it. */
    if (g->command == 0) {
        close(failed[0]);
        run_command(g, self, failed[1], foreground, argv);
    }
    close(failed[1]);
    if (g->command < 0) {
        close(failed[0]);
        return errno;
    }
    (void)setpgid(g->command, g->command);
    do {
        got = read(failed[0], &err, sizeof err);
    } while (got < 0 && errno == EINTR);
    close(failed[0]);
    if (got == (ssize_t)sizeof err) {
        (void)waitpid(g->command, NULL, 0);
        return err != 0 ? err : EIO;
    }
    return 0;
}

/* --- ending it --------------------------------------------------------------
 */

/* Whoever has the guard for a parent: the command, and what it has left
 * behind, also outside its group. */
static bool kill_children(void)
{
    char path[64], digits[16];
    bool any = false;
    FILE *f;

    (void)snprintf(path, sizeof path, "/proc/self/task/%d/children",
                   (int)getpid());
    f = fopen(path, "re");
    while (f != NULL && fscanf(f, "%15s", digits) == 1) {
        long pid = strtol(digits, NULL, 10);
        if (pid > 1) {
            (void)kill((pid_t)pid, SIGKILL);
            any = true;
        }
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    return any;
}

static void say_how(int status)
{
    if (WIFEXITED(status)) {
        report(GUARD_EXITED, WEXITSTATUS(status));
    } else {
        report(GUARD_KILLED, WTERMSIG(status));
    }
}

/* As parents die their children come to be ours, until there are none. */
static void kill_all(const struct guard *g)
{
    int status, last = 0;
    bool known = false;

    for (unsigned i = 0; i < KILL_ROUNDS; i++) {
        pid_t pid;
        bool any;

        (void)kill(-g->command, SIGKILL);
        any = kill_children();
        while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
            last = pid == g->command ? status : last;
            known = known || pid == g->command;
        }
        if (!any && pid < 0) {
            break;
        }
        clock_sleep_ms(5);
    }
    if (known) {
        say_how(last);
    } else {
        report(GUARD_KILLED, SIGKILL);
    }
}

static void tell(struct guard *g, uint64_t now)
{
    uint64_t polite = now + POLITE_MS;

    g->told = true;
    g->kill_ms = g->until_ms < polite ? g->until_ms : polite;
    (void)kill(-g->command, SIGTERM);
    (void)kill(-g->command, SIGCONT); /* One that is stopped hears nothing. */
}

static void set_timer(const struct guard *g)
{
    uint64_t at = g->told                     ? g->kill_ms
                  : g->until_ms > g->grace_ms ? g->until_ms - g->grace_ms
                                              : 1;
    struct itimerspec t = {
        .it_value = {.tv_sec = (time_t)(at / 1000),
                     .tv_nsec = (long)(at % 1000) * 1000000 + 1}};

    (void)timerfd_settime(g->timer, TFD_TIMER_ABSTIME, &t, NULL);
}

/* --- the watch --------------------------------------------------------------
 */

static void on_parent_gone(struct guard *g)
{
    if (!g->alone) {
        g->alone = true;
        if (!g->told) {
            tell(g, clock_boot_ms());
        }
    }
}

static void take_order(struct guard *g)
{
    struct guard_message m;
    ssize_t got = read(GUARD_IN, &m, sizeof m);

    if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
        return;
    }
    if (got != (ssize_t)sizeof m) {
        on_parent_gone(g);
        return;
    }
    if (m.order == GUARD_SIGNAL) {
        (void)kill(-g->command, m.signal);
        return;
    }
    g->until_ms = m.until_ms;
    if (m.order == GUARD_END && !g->told) {
        tell(g, clock_boot_ms());
    }
}

/* true: the command has ended, and it was said how. */
static bool on_child(struct guard *g)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
        if (pid != g->command) {
            continue; /* Left behind by the command, and done. */
        }
        if (WIFSTOPPED(status)) {
            report(GUARD_STOPPED, WSTOPSIG(status));
            continue;
        }
        if (g->told) {
            kill_all(g); /* The rest of it may still be at work. */
        }
        say_how(status);
        return true;
    }
    return false;
}

static bool on_signal(struct guard *g)
{
    struct signalfd_siginfo info;
    bool ended = false;

    while (read(g->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD) {
            ended = on_child(g) || ended;
        } else if (info.ssi_signo == SIGTERM) {
            on_parent_gone(g); /* Its death signal; nobody else knows us. */
        }
    }
    return ended;
}

static void watch(struct guard *g)
{
    struct pollfd fds[3] = {{.fd = g->signals, .events = POLLIN},
                            {.fd = g->timer, .events = POLLIN},
                            {.fd = GUARD_IN, .events = POLLIN}};
    uint64_t ticks, now;

    for (;;) {
        set_timer(g);
        if (poll(fds, g->alone ? 2 : 3, -1) < 0 && errno != EINTR) {
            break;
        }
        (void)!read(g->timer, &ticks, sizeof ticks);
        if (!g->alone && fds[2].revents != 0) {
            take_order(g);
        }
        if (on_signal(g)) {
            return;
        }
        now = clock_boot_ms();
        if (now >= g->until_ms || (g->told && now >= g->kill_ms)) {
            break;
        }
        if (!g->told && now + g->grace_ms >= g->until_ms) {
            tell(g, now);
        }
    }
    kill_all(g);
}

int guard_main(int argc, char **argv)
{
    static const int caught[] = {SIGCHLD, SIGTERM, SIGINT,  SIGHUP, SIGQUIT,
                                 SIGTSTP, SIGTTIN, SIGTTOU, SIGPIPE};
    struct guard g = {.until_ms = UINT64_MAX};
    struct guard_message first;
    pid_t parent = getppid();
    sigset_t set;
    int err;

    if (argc < 3 ||
        read(GUARD_IN, &first, sizeof first) != (ssize_t)sizeof first) {
        return 125;
    }
    g.until_ms = first.until_ms;
    g.grace_ms = guard_grace_ms(strtoull(argv[0], NULL, 10));
    (void)fcntl(GUARD_IN, F_SETFD, FD_CLOEXEC);
    (void)fcntl(GUARD_OUT, F_SETFD, FD_CLOEXEC);
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof caught / sizeof caught[0]; i++) {
        sigaddset(&set, caught[i]);
    }
    (void)sigprocmask(SIG_BLOCK, &set, &g.old_mask);
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    g.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    g.timer = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (g.signals < 0 || g.timer < 0 || getppid() != parent) {
        report(GUARD_FAILED, errno != 0 ? errno : ESRCH);
        return 125;
    }
    err = start(&g, strcmp(argv[1], "1") == 0, argv + 2);
    if (err != 0) {
        report(GUARD_FAILED, err);
        return 125;
    }
    report(GUARD_STARTED, g.command);
    watch(&g);
    return 0;
}
