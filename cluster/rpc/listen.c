#include "cluster/rpc/rpc_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <grpc/grpc_security.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int busy(struct hedge_error *e, const char *address)
{
    return error_set(e, HEDGE_EBUSY,
                     "cannot listen on %s: the address is in use", address);
}

/* Core unlinks whatever socket file is at the path, also one that a living
 * process listens on, and also does so when it stops. So: a file on which
 * nobody answers was left by a dead process and goes; one that answers, or is
 * no socket, is an error. */
static int unix_prepare(const char *address, const char *path,
                        struct hedge_error *e)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    struct stat st;
    int fd, rc, err;

    if (len == 0 || len >= sizeof sun.sun_path) {
        return error_set(e, HEDGE_EINVAL,
                         "cannot listen on %s: a socket's path has 1 to %zu "
                         "bytes",
                         address, sizeof sun.sun_path - 1);
    }
    if (lstat(path, &st) != 0) {
        return 0;
    }
    if (!S_ISSOCK(st.st_mode)) {
        return error_set(e, HEDGE_EEXISTS,
                         "cannot listen on %s: there is a file that is not a "
                         "socket",
                         address);
    }
    memcpy(sun.sun_path, path, len + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return error_set_errno(e, errno, "cannot listen on %s", address);
    }
    rc = connect(fd, (const struct sockaddr *)&sun, sizeof sun);
    err = errno;
    close(fd);
    if (rc == 0 || err != ECONNREFUSED) {
        return busy(e, address);
    }
    if (unlink(path) != 0 && errno != ENOENT) {
        return error_set_errno(e, errno, "cannot remove the stale socket %s",
                               path);
    }
    return 0;
}

/* "1.2.3.4:5" or "[::1]:5" as a socket address; its size, 0 if it is neither.
 */
static socklen_t parse_ip(const char *s, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    const char *colon = strrchr(s, ':');
    char host[64];
    size_t len;

    memset(out, 0, sizeof *out);
    if (colon == NULL || colon == s || (size_t)(colon - s) >= sizeof host) {
        return 0;
    }
    len = (size_t)(colon - s);
    if (s[0] == '[' && s[len - 1] == ']') {
        s++;
        len -= 2;
    }
    memcpy(host, s, len);
    host[len] = '\0';
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
        return sizeof *v4;
    }
    if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
        return sizeof *v6;
    }
    return 0;
}

/* Core's servers, unlike its clients, know no "ipv4:" before an address. */
static const char *host_port(const char *address)
{
    static const char *const schemes[] = {"ipv4:", "ipv6:", "dns:"};

    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        size_t n = strlen(schemes[i]);
        if (strncmp(address, schemes[i], n) == 0) {
            return address + n;
        }
    }
    return address;
}

/* Core only says that it could not bind. Try it here to learn why. */
static int bind_error(const char *address, struct hedge_error *e)
{
    struct sockaddr_storage sa;
    socklen_t len = parse_ip(host_port(address), &sa);
    int fd, one = 1, err = 0;

    fd = len > 0 ? socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    if (fd >= 0) {
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        err = bind(fd, (const struct sockaddr *)&sa, len) == 0 &&
                      listen(fd, 1) == 0
                  ? 0
                  : errno;
        close(fd);
    }
    if (err == EADDRINUSE) {
        return busy(e, address);
    }
    if (err != 0) {
        return error_set_errno(e, err, "cannot listen on %s", address);
    }
    return error_set(e, HEDGE_EIO, "cannot listen on %s", address);
}

int rpc_listen(grpc_server *server, const char *address, unsigned *port,
               struct hedge_error *e)
{
    bool is_unix = strncmp(address, "unix:", 5) == 0;
    grpc_server_credentials *creds;
    int bound, rv;

    *port = 0;
    if (is_unix) {
        rv = unix_prepare(address, address + 5, e);
        if (rv != 0) {
            return rv;
        }
    }
    creds = grpc_insecure_server_credentials_create();
    bound = grpc_server_add_http2_port(
        server, is_unix ? address : host_port(address), creds);
    grpc_server_credentials_release(creds);
    if (bound <= 0) {
        return bind_error(address, e);
    }
    *port = is_unix ? 0 : (unsigned)bound;
    return 0;
}
