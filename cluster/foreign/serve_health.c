/* serve_health.c - the standard service grpc.health.v1.Health. A node serves
 * while it is in its group and does not stop. */
#include "cluster/foreign/descriptors.h"
#include "cluster/node_internal.h"
#include "proto/health.pb-c.h"

#include "store/base/clock.h"

#include <string.h>

#define SEND_MS 10000
#define STEP_MS 500
#define REQUEST_MS 10000

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus status_code;
#define STATUS(name) \
    GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

bool node_is_serving(struct hedge_node *n)
{
    return atomic_load(&n->in_group) && !atomic_load(&n->closing);
}

static bool is_ours(const char *service)
{
    return service[0] == '\0' || descriptors_has_service(service);
}

static status_code status_of(struct hedge_node *n, bool known)
{
    return !known               ? STATUS(SERVICE_UNKNOWN)
           : node_is_serving(n) ? STATUS(SERVING)
                                : STATUS(NOT_SERVING);
}

void serve_health_check(struct rpc_call *call, void *ctx, const void *req,
                        size_t len)
{
    Grpc__Health__V1__HealthCheckRequest *m = pb_unpack(
        &grpc__health__v1__health_check_request__descriptor, req, len);
    Grpc__Health__V1__HealthCheckResponse reply =
        GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "not a HealthCheckRequest");
    } else if (!is_ours(m->service)) {
        rpc_fail(call, HEDGE_ENOTFOUND, "there is no such service here");
    } else {
        reply.status = status_of(ctx, true);
        pb_reply(call, &reply.base);
    }
    pb_free(m);
}

/* Something has changed, or a step has passed. */
static void await_change(struct hedge_node *n, bool serving)
{
    uint64_t until = clock_mono_ns() + (uint64_t)STEP_MS * 1000000u;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
                          .tv_nsec = (long)(until % 1000000000u)};

    pthread_mutex_lock(&n->pub_lock);
    if (node_is_serving(n) == serving) {
        (void)pthread_cond_timedwait(&n->pub_changed, &n->pub_lock, &ts);
    }
    pthread_mutex_unlock(&n->pub_lock);
}

static int send_status(struct rpc_stream *s, status_code status)
{
    Grpc__Health__V1__HealthCheckResponse m =
        GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    m.status = status;
    return pb_send(s, &m.base, SEND_MS);
}

static int watch(struct hedge_node *n, struct rpc_stream *s, bool known)
{
    status_code told = status_of(n, known), now;
    int rv = send_status(s, told);

    while (rv == 0 && !rpc_stream_is_cancelled(s)) {
        if (atomic_load(&n->closing) && told != STATUS(SERVING)) {
            return 0; /* There will be no more to tell. */
        }
        await_change(n, known ? told == STATUS(SERVING) : node_is_serving(n));
        now = status_of(n, known);
        if (now != told) {
            told = now;
            rv = send_status(s, told);
        }
    }
    return rv;
}

int serve_health_watch(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    Grpc__Health__V1__HealthCheckRequest *m;
    struct hedge_node *n = ctx;
    struct rpc_msg msg;
    bool known;
    int rv = rpc_stream_recv(s, REQUEST_MS, &msg, e);

    if (rv != 0) {
        return rv;
    }
    m = pb_from_msg(&grpc__health__v1__health_check_request__descriptor, &msg,
                    e);
    if (m == NULL) {
        return HEDGE_EPROTO;
    }
    known = is_ours(m->service);
    pb_free(m);
    rv = serve_enter(s, &n->looking, SERVE_LOOKING_MAX, "onlookers", e);
    if (rv == 0) {
        rv = watch(n, s, known);
        atomic_fetch_sub(&n->looking, 1);
    }
    return rv;
}
