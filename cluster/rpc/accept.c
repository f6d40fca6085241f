/* Core's listener ends for good with the first accept() that fails, as it does
 * when the process has no descriptors left: connections wait in its socket's
 * line from then on, and nobody comes. So a thread looks after these sockets,
 * and once somebody has waited for long, it takes in all who come. Should core
 * be there still, both do: it does not matter who is faster. */
#include "cluster/rpc/rpc_internal.h"

#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LOOK_MS 1000
#define LOOKS 2 /* Somebody waits at that many of them: core has gone. */
#define PAUSE_MS 100
#define LISTENERS_MAX 8

struct rpc_acceptor {
    grpc_server *server;
    pthread_t thread;
    struct pollfd wake;
    struct pollfd listener[LISTENERS_MAX]; /* Core's sockets once more. */
    unsigned waited[LISTENERS_MAX];
    nfds_t n;
};

static bool is_listener(int fd, const char *address, unsigned port)
{
    struct sockaddr_storage sa = {.ss_family = AF_UNSPEC};
    const struct sockaddr_un *un = (const struct sockaddr_un *)&sa;
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)&sa;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&sa;
    socklen_t len = sizeof sa - 1, size = sizeof(int);
    int listens = 0;

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 ||
        listens == 0 || getsockname(fd, (struct sockaddr *)&sa, &len) != 0) {
        return false;
    }
    switch (sa.ss_family) {
    case AF_UNIX:
        return strncmp(address, "unix:", 5) == 0 &&
               strcmp(un->sun_path, address + 5) == 0;
    case AF_INET:
        return port != 0 && ntohs(v4->sin_port) == port;
    case AF_INET6:
        return port != 0 && ntohs(v6->sin6_port) == port;
    default:
        return false;
    }
}

/* The sockets that core has made for an address. */
static void find_listeners(struct rpc_acceptor *a, const char *address,
                           unsigned port)
{
    DIR *d = opendir("/proc/self/fd");
    struct dirent *entry;

    while (d != NULL && a->n < LISTENERS_MAX && (entry = readdir(d)) != NULL) {
        int fd = (int)strtol(entry->d_name, NULL, 10);

        if (entry->d_name[0] == '.' || !is_listener(fd, address, port)) {
            continue;
        }
        fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (fd >= 0) {
            a->listener[a->n++] = (struct pollfd){.fd = fd, .events = POLLIN};
        }
    }
    if (d != NULL) {
        (void)closedir(d);
    }
}

static bool must_end(struct rpc_acceptor *a, int timeout_ms)
{
    return poll(&a->wake, 1, timeout_ms) > 0;
}

/* False: not for want of somebody who waits. */
static bool take_one(struct rpc_acceptor *a, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    grpc_server_credentials *creds;
    int one = 1;

    if (fd < 0) {
        return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    creds = grpc_insecure_server_credentials_create();
    grpc_server_add_channel_from_fd(a->server, fd, creds);
    grpc_server_credentials_release(creds);
    return true;
}

static void look(struct rpc_acceptor *a)
{
    (void)poll(a->listener, a->n, 0);
    for (nfds_t i = 0; i < a->n; i++) {
        if (a->waited[i] >= LOOKS) {
            continue;
        }
        a->waited[i] = a->listener[i].revents != 0 ? a->waited[i] + 1 : 0;
        if (a->waited[i] == LOOKS) {
            log_warn("rpc", "connections are not accepted any more: "
                            "going on without core's listener");
        }
    }
}

/* Once core has gone: until somebody comes, or it is time to look again. */
static void take_all(struct rpc_acceptor *a)
{
    struct pollfd p[LISTENERS_MAX + 1] = {a->wake};
    nfds_t n = 1;
    bool ok = true;

    for (nfds_t i = 0; i < a->n; i++) {
        if (a->waited[i] >= LOOKS) {
            p[n++] = a->listener[i];
        }
    }
    (void)poll(p, n, LOOK_MS);
    for (nfds_t i = 1; i < n; i++) {
        if (p[i].revents != 0) {
            ok = take_one(a, p[i].fd) && ok;
        }
    }
    if (!ok) {
        (void)must_end(a, PAUSE_MS);
    }
}

static bool core_has_gone(const struct rpc_acceptor *a)
{
    for (nfds_t i = 0; i < a->n; i++) {
        if (a->waited[i] >= LOOKS) {
            return true;
        }
    }
    return false;
}

static void *acceptor_main(void *arg)
{
    struct rpc_acceptor *a = arg;

    while (!must_end(a, core_has_gone(a) ? 0 : LOOK_MS)) {
        if (core_has_gone(a)) {
            take_all(a);
        }
        look(a);
    }
    return NULL;
}

static void acceptor_close(struct rpc_acceptor *a)
{
    for (nfds_t i = 0; i < a->n; i++) {
        close(a->listener[i].fd);
    }
    if (a->wake.fd >= 0) {
        close(a->wake.fd);
    }
    mem_free(a);
}

int rpc_acceptor_new(grpc_server *server, const char *const *addresses,
                     const unsigned *ports, unsigned n,
                     struct rpc_acceptor **out)
{
    struct rpc_acceptor *a = mem_calloc(1, sizeof *a);
    sigset_t old;
    int rc;

    *out = NULL;
    if (a == NULL) {
        return HEDGE_ENOMEM;
    }
    a->server = server;
    for (unsigned i = 0; i < n; i++) {
        find_listeners(a, addresses[i], ports[i]);
    }
    a->wake = (struct pollfd){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                              .events = POLLIN};
    rpc_signals_block(&old);
    rc = a->wake.fd >= 0 ? pthread_create(&a->thread, NULL, acceptor_main, a)
                         : errno;
    rpc_signals_restore(&old);
    if (rc != 0) {
        acceptor_close(a);
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(a->thread, "hedge-accept");
    *out = a;
    return 0;
}

void rpc_acceptor_free(struct rpc_acceptor *a)
{
    uint64_t one = 1;

    if (a == NULL) {
        return;
    }
    while (write(a->wake.fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
    pthread_join(a->thread, NULL);
    acceptor_close(a);
}
