/* Channels over a socket that is ours: core would not let go of what it is
 * writing to a peer that neither reads nor goes away, whatever is cancelled or
 * destroyed, because it waits for the write first. A descriptor of our own can
 * shut the connection down under it. */
#include "cluster/rpc/rpc_internal.h"

#include "store/base/clock.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ADDRESS_MAX 512

static int unreachable(struct hedge_error *e, const char *target, int err)
{
    return error_set(e, HEDGE_EUNAVAILABLE, "cannot connect to %s: %s", target,
                     strerrordesc_np(err));
}

/* Wait for a connect that is under way. 0 or an errno. */
static int connect_settle(int fd, uint64_t until_ns)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    socklen_t len = sizeof(int);
    uint64_t now;
    int rc, err = 0;

    do {
        now = clock_mono_ns();
        rc = now >= until_ns
                 ? 0
                 : poll(&p, 1, (int)((until_ns - now) / 1000000) + 1);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0) {
        return ETIMEDOUT;
    }
    if (rc < 0 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0) {
        return errno;
    }
    return err;
}

/* A Unix socket takes 208 KiB by default, so that a block is sent in many
 * pieces with a change of threads after each; a TCP socket grows by itself. */
#define UNIX_BUFFER (2 << 20)

/* 0 and a connected socket, or an errno. */
static int connect_to(const struct sockaddr *sa, socklen_t len,
                      uint64_t until_ns, int *out)
{
    int one = 1, space = UNIX_BUFFER, err = 0;
    int fd =
        socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return errno;
    }
    if (sa->sa_family != AF_UNIX) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    } else {
        /* As much as the system allows. */
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &space, sizeof space);
    }
    if (connect(fd, sa, len) != 0) {
        err = errno == EINPROGRESS ? connect_settle(fd, until_ns) : errno;
    }
    if (err != 0) {
        close(fd);
        return err;
    }
    *out = fd;
    return 0;
}

static int connect_unix(const char *path, uint64_t until_ns, int *out)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    size_t len = strlen(path);

    if (len == 0 || len >= sizeof sun.sun_path) {
        return ENAMETOOLONG;
    }
    memcpy(sun.sun_path, path, len + 1);
    return connect_to((const struct sockaddr *)&sun, sizeof sun, until_ns, out);
}

/* "host:port" with whatever the host is: an address, one in brackets, or a
 * name. */
static int connect_ip(const char *address, uint64_t until_ns, int *out)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *a;
    char host[ADDRESS_MAX];
    char *port;
    int err = EHOSTUNREACH;

    (void)snprintf(host, sizeof host, "%s", address);
    port = strrchr(host, ':');
    if (port == NULL) {
        return EINVAL;
    }
    *port++ = '\0';
    if (host[0] == '[' && port[-2] == ']') {
        port[-2] = '\0';
        memmove(host, host + 1, strlen(host));
    }
    if (getaddrinfo(host, port, &hints, &found) != 0) {
        return EHOSTUNREACH;
    }
    for (a = found; a != NULL && err != 0; a = a->ai_next) {
        err = connect_to(a->ai_addr, a->ai_addrlen, until_ns, out);
    }
    freeaddrinfo(found);
    return err;
}

int rpc_connect(const char *target, uint64_t until_ns, int *out,
                struct hedge_error *e)
{
    static const char *const schemes[] = {"ipv4:", "ipv6:", "dns:"};
    int err = EINVAL;

    *out = -1;
    if (strncmp(target, "unix:", 5) == 0) {
        err = connect_unix(target + 5, until_ns, out);
        return err == 0 ? 0 : unreachable(e, target, err);
    }
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        size_t n = strlen(schemes[i]);

        if (strncmp(target, schemes[i], n) == 0) {
            err = connect_ip(target + n, until_ns, out);
            break;
        }
    }
    return err == 0 ? 0 : unreachable(e, target, err);
}
