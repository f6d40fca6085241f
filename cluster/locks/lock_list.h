/* lock_list.h - lists of semaphores as messages, and pages of them put
 * together.
 *
 * Ownership: what _message() makes points into the call and is for _release();
 *            lists are for mem_free(). Pages belong to the struct lock_pages.
 * Threads:   one at a time for each object.
 * Errors:    HEDGE_ENOMEM.
 * Units:     -
 * Limits:    a page has SEMAPHORE_PAGE_MAX claims at most. */
#ifndef CLUSTER_LOCK_LIST_H
#define CLUSTER_LOCK_LIST_H

#include "cluster/locks/semaphore.h"
#include "proto/locks.pb-c.h"

/* The answer to a SEMAPHORE_LIST. */
int lock_list_message(const struct semaphore_call *c,
                      Hedge__V1__LockList **out);
void lock_list_release(Hedge__V1__LockList *m);
/* NULL: an empty list. */
int lock_list_from(const Hedge__V1__LockList *m, struct hedge_semaphores **out);
/* Where a call goes on; NULL: at the beginning. false: it does not fit. */
bool lock_list_place(const Hedge__V1__LockPlace *m, struct semaphore_call *out);
/* The same from the answer before; false: that was all. */
bool lock_list_next(const Hedge__V1__LockList *m, struct semaphore_call *out);

struct lock_pages {
    struct hedge_semaphores **page;
    size_t n, cap;
};

/* Takes the page in any case. */
int lock_pages_add(struct lock_pages *p, struct hedge_semaphores *page);
int lock_pages_join(const struct lock_pages *p, struct hedge_semaphores **out);
void lock_pages_release(struct lock_pages *p);

#endif
