#include "cluster/peer/serve_peer_internal.h"

#include "cluster/pb.h"
#include "store/base/clock.h"
#include "store/base/log.h"
#include "store/base/mem.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#if defined(HEDGE_TSAN) || defined(__SANITIZE_ADDRESS__)
#define STACK ((size_t)4 << 20)
#else
#define STACK ((size_t)256 << 10)
#endif
/* How long _free() waits for the transport to let go of blocks. */
#define RETURN_MS 30000

struct owner {
    struct list link;
    uint64_t incarnation, fence;
    char id[];
};

/* --- help for the streams --------------------------------------------------
 */

int service_check_incarnation(const struct peer_service *p, uint64_t wanted,
                              struct hedge_error *e)
{
    if (wanted == 0 || p->incarnation == 0 || wanted == p->incarnation) {
        return 0;
    }
    return error_set(e, HEDGE_ELOST,
                     "the node has started again: incarnation %llu is asked "
                     "for, this is %llu",
                     (unsigned long long)wanted,
                     (unsigned long long)p->incarnation);
}

int service_check_owner(const char *id, struct hedge_error *e)
{
    if (id[0] == '\0' || strlen(id) >= OWNER_ID_MAX) {
        return error_set(e, HEDGE_EPROTO,
                         "an owner's id has 1 to %d bytes, not %zu",
                         OWNER_ID_MAX - 1, strlen(id));
    }
    return 0;
}

int service_thread(pthread_t *out, void *(*fn)(void *), void *arg,
                   const char *name)
{
    pthread_attr_t attr;
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_attr_init(&attr);
    (void)pthread_attr_setstacksize(&attr, STACK);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(out, &attr, fn, arg);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (rc != 0) {
        return HEDGE_ENOMEM;
    }
    (void)pthread_setname_np(*out, name);
    return 0;
}

static void wait_ms(struct peer_service *p, pthread_cond_t *c, uint64_t ms)
{
    uint64_t until = clock_mono_ms() + ms;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000),
                          .tv_nsec = (long)(until % 1000) * 1000000};

    (void)pthread_cond_timedwait(c, &p->lock, &ts);
}

void service_wait(struct peer_service *p, pthread_cond_t *c)
{
    wait_ms(p, c, POLL_MS);
}

void service_text(const struct hedge_error *e, int code,
                  char out[REPLY_TEXT_MAX])
{
    (void)snprintf(out, REPLY_TEXT_MAX, "%.*s", REPLY_TEXT_MAX - 1,
                   e->code == code ? e->text : hedge_strerror(code));
}

/* --- fences ----------------------------------------------------------------
 */

/* All of these: lock held. */

static struct owner *owner_find(struct peer_service *p,
                                const struct sos_owner *owner)
{
    struct list *l;

    list_foreach (l, &p->owners) {
        struct owner *o = container_of(l, struct owner, link);

        if (strcmp(o->id, owner->id) == 0) {
            return o;
        }
    }
    return NULL;
}

uint64_t service_fence(struct peer_service *p, const struct sos_owner *owner)
{
    const struct owner *o = owner_find(p, owner);

    return o != NULL && o->incarnation == owner->incarnation ? o->fence : 0;
}

static void owner_forget_one(struct peer_service *p)
{
    struct list *l = list_pop(&p->owners);

    assert(l != NULL);
    mem_free(container_of(l, struct owner, link));
    p->n_owners--;
}

static struct owner *owner_add(struct peer_service *p,
                               const struct sos_owner *owner)
{
    size_t len = strlen(owner->id) + 1;
    struct owner *o = mem_calloc(1, sizeof *o + len);

    if (o == NULL) {
        return NULL;
    }
    if (p->n_owners == OWNERS_MAX) {
        owner_forget_one(p);
    }
    memcpy(o->id, owner->id, len);
    list_push(&p->owners, &o->link);
    p->n_owners++;
    return o;
}

static int fence_raise(struct peer_service *p, const struct sos_owner *owner,
                       uint64_t fence)
{
    struct owner *o = owner_find(p, owner);

    if (o == NULL) {
        o = owner_add(p, owner);
    }
    if (o == NULL) {
        return HEDGE_ENOMEM;
    }
    if (o->incarnation < owner->incarnation) {
        o->incarnation = owner->incarnation;
        o->fence = 0;
    }
    if (o->incarnation == owner->incarnation && o->fence < fence) {
        o->fence = fence;
    }
    return 0;
}

/* --- dropping --------------------------------------------------------------
 */

static bool is_meant(const Hedge__V1__DropRequest *m, uint64_t count,
                     const struct block_id *id)
{
    if (m->generation == 0) {
        return true;
    }
    if (m->generation != id->generation) {
        return false;
    }
    return !m->one_block ||
           (id->writer == m->writer && id->sequence >= m->sequence &&
            id->sequence - m->sequence < count);
}

/* Lock held. What is with the store just now is not found there yet. */
static void mark_unwanted(struct peer_service *p, const struct sos_owner *owner,
                          const Hedge__V1__DropRequest *m, uint64_t count)
{
    struct list *l;

    list_foreach (l, &p->puts) {
        struct put_stream *s = container_of(l, struct put_stream, link);

        if (s->number > m->fence || strcmp(s->owner_id, owner->id) != 0 ||
            s->owner.incarnation > owner->incarnation) {
            continue;
        }
        for (unsigned i = 0; i < PEER_WINDOW; i++) {
            struct incoming *in = &s->incoming[i];

            if (in->storing && is_meant(m, count, &in->req.header.id)) {
                in->unwanted = true;
            }
        }
    }
}

static int do_drop(struct peer_service *p, const Hedge__V1__DropRequest *m,
                   struct hedge_error *e)
{
    uint64_t count = m->count == 0 ? 1 : m->count;
    struct sos_owner owner;
    int rv = 0;

    if (m->owner == NULL) {
        return error_set(e, HEDGE_EPROTO, "a drop names its owner");
    }
    rv = service_check_owner(m->owner->id, e);
    rv = rv != 0 ? rv : service_check_incarnation(p, m->peer_incarnation, e);
    if (rv != 0) {
        return rv;
    }
    if (count > DROP_COUNT_MAX || m->sequence > UINT64_MAX - count ||
        (m->one_block && m->generation == 0)) {
        return error_set(e, HEDGE_EPROTO,
                         "a drop names a generation and at most %d blocks of "
                         "it",
                         DROP_COUNT_MAX);
    }
    owner.id = m->owner->id;
    owner.incarnation = m->owner->incarnation;
    if (m->fence != 0) {
        pthread_mutex_lock(&p->lock);
        rv = fence_raise(p, &owner, m->fence);
        if (rv == 0) {
            mark_unwanted(p, &owner, m, count);
        }
        pthread_mutex_unlock(&p->lock);
        if (rv != 0) {
            return error_set(e, rv, "no memory to drop blocks");
        }
    }
    if (!m->one_block) {
        sos_lend_drop(p->sos, &owner, m->generation, NULL);
        return 0;
    }
    for (uint64_t i = 0; i < count; i++) {
        struct block_id id = {.generation = m->generation,
                              .writer = m->writer,
                              .sequence = m->sequence + i};

        sos_lend_drop(p->sos, &owner, m->generation, &id);
    }
    return 0;
}

void peer_service_drop(struct peer_service *p, struct rpc_call *call,
                       const void *request, size_t len)
{
    struct hedge_error e = {.code = 0};
    Hedge__V1__DropRequest *m =
        pb_unpack(&hedge__v1__drop_request__descriptor, request, len);
    int rv;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "the request cannot be read");
        return;
    }
    rv = do_drop(p, m, &e);
    pb_free(m);
    if (rv == 0) {
        rpc_reply(call, "", 0);
    } else {
        rpc_fail(call, rv, e.text);
    }
}

/* --- renewing --------------------------------------------------------------
 */

static int do_renew(struct peer_service *p, const Hedge__V1__RenewRequest *m,
                    struct hedge_error *e)
{
    struct sos_owner owner;
    int rv;

    if (m->owner == NULL) {
        return error_set(e, HEDGE_EPROTO, "a renewal names its owner");
    }
    rv = service_check_owner(m->owner->id, e);
    rv = rv != 0 ? rv : service_check_incarnation(p, m->peer_incarnation, e);
    if (rv == 0) {
        owner.id = m->owner->id;
        owner.incarnation = m->owner->incarnation;
        sos_lend_renew(p->sos, &owner, p->lease_ms);
    }
    return rv;
}

void peer_service_renew(struct peer_service *p, struct rpc_call *call,
                        const void *request, size_t len)
{
    struct hedge_error e = {.code = 0};
    Hedge__V1__RenewRequest *m =
        pb_unpack(&hedge__v1__renew_request__descriptor, request, len);
    int rv;

    if (m == NULL) {
        rpc_fail(call, HEDGE_EPROTO, "the request cannot be read");
        return;
    }
    rv = do_renew(p, m, &e);
    pb_free(m);
    if (rv == 0) {
        rpc_reply(call, "", 0);
    } else {
        rpc_fail(call, rv, e.text);
    }
}

/* --- life ------------------------------------------------------------------
 */

int peer_service_new(const struct peer_service_options *o,
                     struct peer_service **out)
{
    struct peer_service *p = mem_calloc(1, sizeof *p);
    pthread_condattr_t attr;

    *out = p;
    if (p == NULL) {
        return HEDGE_ENOMEM;
    }
    assert(o->sos != NULL && o->block_lease_ms > 0);
    p->sos = o->sos;
    p->lease_ms = o->block_lease_ms;
    p->incarnation = o->incarnation;
    p->reply_send_ms = REPLY_SEND_MS;
    list_init(&p->puts);
    list_init(&p->owners);
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->returned, &attr);
    pthread_condattr_destroy(&attr);
    return 0;
}

void peer_service_free(struct peer_service *p)
{
    uint64_t until = clock_mono_ms() + RETURN_MS;

    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    assert(list_empty(&p->puts));
    while (p->out > 0 && clock_mono_ms() < until) {
        service_wait(p, &p->returned);
    }
    if (p->out > 0) {
        /* They would come back to freed memory. */
        log_error("peer", "%u blocks are still being sent", p->out);
        pthread_mutex_unlock(&p->lock);
        return;
    }
    while (p->n_owners > 0) {
        owner_forget_one(p);
    }
    pthread_mutex_unlock(&p->lock);
    pthread_cond_destroy(&p->returned);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}
