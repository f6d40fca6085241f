/* sem_box.h - the semaphores' core with calls, a clock that is set by hand and
 * an engine that answers when it is told to.
 *
 *   struct sem_box f;
 *   sem_box_fresh(&f);
 *   i = sem_box_acquire(&f, 1, 10, 1, 1, 1000);
 *   sem_box_settle(&f);
 *   assert_answer(&f, i, 0);
 *
 * Ownership: sem_box_fresh() / sem_box_done_with().
 * Threads:   one.
 * Errors:    cmocka's assertions.
 * Units:     milliseconds.
 * Limits:    CALLS calls, and 64 rows of an append. */
#ifndef TESTS_LIB_SEM_BOX_H
#define TESTS_LIB_SEM_BOX_H

#include "cluster/locks/semaphore.h"

#define LEASE 15000u
#define REQUEUE 500u
#define CALLS 64

struct sem_box {
    struct semaphores *s;
    struct semaphore_actions out;
    uint64_t now, term, revision;
    struct semaphore_call calls[CALLS];
    bool done[CALLS];
    unsigned n;
    bool deposed;
    uint64_t append_id;
    size_t n_rows;
    struct semaphore_row rows[64];
};

/* Do what `out` says. */
void sem_box_take_actions(struct sem_box *f);
void sem_box_step(struct sem_box *f, struct semaphore_event ev);
void sem_box_tick(struct sem_box *f, uint64_t ms);
/* The next term, with these rows on the disk. */
void sem_box_lead(struct sem_box *f, const struct semaphore_row *rows,
                  size_t n);
/* Leads, and grants. */
void sem_box_fresh(struct sem_box *f);
void sem_box_done_with(struct sem_box *f);
/* The append in progress has ended. */
void sem_box_appended(struct sem_box *f, int status);
/* Until all is on disk. */
void sem_box_settle(struct sem_box *f);
/* These give the number of the call. */
unsigned sem_box_submit(struct sem_box *f, struct semaphore_call c);
unsigned sem_box_acquire(struct sem_box *f, uint64_t session, uint64_t request,
                         uint32_t limit, uint32_t permits, uint64_t wait);
/* Granted, and on disk; its token. */
uint64_t sem_box_take(struct sem_box *f, uint64_t session, uint64_t request,
                      uint32_t limit, uint32_t permits);
unsigned sem_box_release(struct sem_box *f, uint64_t session, uint64_t token);
unsigned sem_box_with(struct sem_box *f, enum semaphore_op op, uint64_t session,
                      uint64_t token);
void sem_box_assert(const struct sem_box *f, unsigned i, int status);

#define assert_pending(f, i) assert_false((f)->done[i])
#define assert_answer sem_box_assert

#endif
