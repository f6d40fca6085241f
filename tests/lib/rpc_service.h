/* rpc_service.h - a server for tests of rpc.h, in this process or in another
 * one that can be killed.
 *
 * Ownership: service_start() makes, service_stop() ends; a service may be
 *            looked at until then.
 * Threads:   the counters are atomic.
 * Errors:    what goes wrong here fails the test.
 * Units:     milliseconds.
 * Limits:    one service per struct. */
#ifndef TESTS_LIB_RPC_SERVICE_H
#define TESTS_LIB_RPC_SERVICE_H

#include "cluster/rpc/rpc.h"

#include <stdatomic.h>
#include <sys/types.h>

#define SERVICE_WAIT_MS 20000u

/* Unary: the request comes back. */
#define UNARY_ECHO "/t.Unary/Echo"
#define UNARY_INLINE "/t.Unary/EchoInline"
/* "CODE text": fails so. */
#define UNARY_FAIL "/t.Unary/Fail"
/* "MS": answers after that time, from another thread than the handler's. */
#define UNARY_LATER "/t.Unary/Later"
/* "MS": the handler itself takes that time. */
#define UNARY_SLEEP "/t.Unary/Sleep"
/* "BYTES": a reply of that size. */
#define UNARY_BIG "/t.Unary/Big"
#define UNARY_PEER "/t.Unary/Peer"

/* Streams. Each leaves its last code in `last`, and counts in `ended`. */
#define STREAM_ECHO "/t.Stream/Echo"
/* Takes one message and fails with EFENCED. */
#define STREAM_FAIL "/t.Stream/Fail"
/* Receives all, counts bytes in `bytes`. */
#define STREAM_SINK "/t.Stream/Sink"
/* Sends messages of "BYTES" until that fails, or `pump_max` of them. */
#define STREAM_PUMP "/t.Stream/Pump"
/* Neither sends nor receives until it is cancelled. */
#define STREAM_IDLE "/t.Stream/Idle"
/* Takes one message and cancels. */
#define STREAM_CANCEL "/t.Stream/Cancel"
/* Ends at once, in good order. */
#define STREAM_LEAVE "/t.Stream/Leave"

struct service {
    struct rpc_server *server;
    struct rpc_channel *channel; /* To the first address. */
    char address[128];
    atomic_int last, started, ended, released, pump_max;
    atomic_int lent; /* Sends whose release is due; service_stop() waits. */
    atomic_size_t bytes;
};

/* `address` NULL: a free TCP port of the loopback. */
void service_start(struct service *s, const char *address,
                   unsigned streams_max);
int service_try(struct service *s, const char *address, unsigned streams_max,
                struct hedge_error *e);
void service_stop(struct service *s, uint64_t grace_ms);

/* Wait until *v is `want`, at most SERVICE_WAIT_MS. */
bool service_await(atomic_int *v, int want);

/* This program again, as `role` with `arg`; what it prints is in *out. */
pid_t service_spawn(const char *role, const char *arg, char *out,
                    size_t out_size);
/* In main(): run the role if this is such a process, else return. */
void service_roles(int argc, char **argv);
void service_kill(pid_t pid);

#endif
