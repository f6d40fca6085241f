/* api_semaphore.c - the public face of semaphores. */
#include "cluster/locks/lock_list.h"
#include "cluster/locks/locks.h"
#include "cluster/node_internal.h"
#include "cluster/locks/sem_session.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <stdio.h>
#include <string.h>

#define CLOSE_MS 5000

struct hedge_semaphore {
    struct hedge_node *node;
    uint32_t limit;
    char name[SEMAPHORE_NAME_SIZE];
};

static int check(const char *name, struct hedge_error *e)
{
    return units_check_name(name, strlen(name), e);
}

HEDGE_API int hedge_semaphore_open(struct hedge_node *node, const char *name,
                                   uint32_t limit, uint64_t timeout_ms,
                                   struct hedge_semaphore **out,
                                   struct hedge_error *e)
{
    struct hedge_semaphore *s;
    struct lock_call c;
    int rv = check(name, e);

    *out = NULL;
    if (rv != 0) {
        return rv;
    }
    lock_call_init(&c, SEMAPHORE_CHECK, timeout_ms);
    (void)lock_call_name(&c, name);
    c.call.limit = limit;
    rv = locks_call(node, &c, e);
    lock_call_release(&c);
    if (rv != 0) {
        return rv;
    }
    s = mem_calloc(1, sizeof *s);
    if (s == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a semaphore");
    }
    s->node = node;
    s->limit = limit;
    (void)snprintf(s->name, sizeof s->name, "%s", name);
    *out = s;
    return 0;
}

HEDGE_API int hedge_semaphore_acquire(struct hedge_semaphore *s,
                                      uint32_t permits, uint64_t timeout_ms,
                                      uint64_t *token, struct hedge_error *e)
{
    return sem_session_acquire(s->node->session, s, s->name, s->limit, permits,
                               false, timeout_ms, token, e);
}

HEDGE_API int hedge_semaphore_try_acquire(struct hedge_semaphore *s,
                                          uint32_t permits, uint64_t timeout_ms,
                                          uint64_t *token,
                                          struct hedge_error *e)
{
    return sem_session_acquire(s->node->session, s, s->name, s->limit, permits,
                               true, timeout_ms, token, e);
}

HEDGE_API int hedge_semaphore_release(struct hedge_semaphore *s, uint64_t token,
                                      uint64_t timeout_ms,
                                      struct hedge_error *e)
{
    return sem_session_release(s->node->session, s->name, token, timeout_ms, e);
}

HEDGE_API uint64_t hedge_semaphore_remaining_ms(struct hedge_semaphore *s,
                                                uint64_t token)
{
    return sem_session_remaining_ms(s->node->session, s->name, token);
}

HEDGE_API void hedge_semaphore_close(struct hedge_semaphore *s)
{
    if (s != NULL) {
        sem_session_release_all(s->node->session, s, CLOSE_MS);
        mem_free(s);
    }
}

/* One page; the next call of it is the one behind. */
static int list_page(struct hedge_node *n, const char *name,
                     uint64_t timeout_ms, struct lock_call *c,
                     struct lock_pages *pages, struct hedge_error *e)
{
    struct lock_call before = *c;
    int rv;

    lock_call_init(c, SEMAPHORE_LIST, timeout_ms);
    (void)lock_call_name(c, name);
    c->call.limit = SEMAPHORE_PAGE_MAX;
    memcpy(c->call.holder, before.call.holder, sizeof c->call.holder);
    c->call.permits = before.call.permits;
    c->call.order_term = before.call.order_term;
    c->call.order = before.call.order;
    c->call.term = before.call.term;
    c->call.at = before.call.at;
    rv = locks_call(n, c, e);
    if (rv == 0 && lock_pages_add(pages, c->call.list) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the list");
    }
    return rv;
}

HEDGE_API int hedge_semaphores(struct hedge_node *node, const char *name,
                               uint64_t timeout_ms,
                               struct hedge_semaphores **out,
                               struct hedge_error *e)
{
    uint64_t start = clock_boot_ms(), spent = 0;
    struct lock_pages pages = {0};
    struct lock_call c = {0};
    int rv = name != NULL ? check(name, e) : 0;

    *out = NULL;
    do {
        rv = rv != 0 ? rv
                     : list_page(node, name != NULL ? name : "",
                                 timeout_ms > spent ? timeout_ms - spent : 0,
                                 &c, &pages, e);
        spent = clock_boot_ms() - start;
    } while (rv == 0 && c.call.more);
    if (rv == 0 && lock_pages_join(&pages, out) != 0) {
        rv = error_set(e, HEDGE_ENOMEM, "no memory for the list");
    }
    lock_pages_release(&pages);
    return rv;
}

HEDGE_API void hedge_semaphores_free(struct hedge_semaphores *s)
{
    mem_free(s);
}

HEDGE_API int hedge_semaphore_revoke(struct hedge_node *node, const char *name,
                                     uint64_t token, uint64_t timeout_ms,
                                     struct hedge_error *e)
{
    struct lock_call c;
    int rv = check(name, e);

    if (rv != 0) {
        return rv;
    }
    lock_call_init(&c, SEMAPHORE_REVOKE, timeout_ms);
    (void)lock_call_name(&c, name);
    c.call.token = token;
    return locks_call(node, &c, e);
}
