/* semaphore_internal.h - what the files of the semaphores' core share: its
 * objects, and the parts that calls are made of. */
#ifndef CLUSTER_SEMAPHORE_INTERNAL_H
#define CLUSTER_SEMAPHORE_INTERNAL_H

#include "cluster/locks/semaphore.h"

#include "store/base/error.h"
#include "store/base/mem.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SEM_BUCKETS 1024u

enum claim_state { CLAIM_WAITING, CLAIM_GRANTED, CLAIM_ENDED };

struct semaphore {
    struct list link, by_name;
    struct list pump; /* On the list of those to look at, or alone. */
    char name[SEMAPHORE_NAME_SIZE];
    uint32_t limit;
    uint64_t used;
    struct list grants, waiters;
    size_t n_grants, n_waiters, n_claims; /* The last: with those ended. */
};

struct holder {
    struct list link, by_id;
    uint64_t id, lease_ms, deadline_ms;
    struct list claims, watchers;
    uint64_t revoked_at; /* `at` of the last loss of a grant. */
    char name[SEMAPHORE_HOLDER_SIZE];
};

struct claim {
    struct list of_semaphore;
    struct list of_holder; /* Or of the detached. */
    struct list by_key;
    struct list dirty, flight;
    struct semaphore *semaphore;
    struct holder *holder; /* NULL: detached, or ended. */
    enum claim_state state;
    uint64_t session, request, lease_ms, ttl_ms;
    uint32_t permits, attempt;
    uint64_t order_term, order;
    uint64_t deadline_ms; /* Waiting: to wait; revoked, detached: its end. */
    uint64_t token;       /* 0: its row is not on disk yet. */
    /* `at` when it was granted, and when it got its token; 0: before all was
     * read. */
    uint64_t granted_at, held_at;
    bool revoked;
    bool try_only; /* Does not wait. */
    bool has_row;  /* As of the last append that is known. */
    struct list calls;
    char name[SEMAPHORE_HOLDER_SIZE];
};

enum state { STATE_IDLE, STATE_LOADING, STATE_SERVING };

struct semaphores {
    struct semaphore_options o;
    enum state state;
    uint64_t now_ms;
    uint64_t term, at, order;
    uint64_t next_id;   /* Of appends and loads. */
    uint64_t load_id;   /* Asked for, 0 = none. */
    uint64_t append_id; /* In progress, 0 = none. */
    uint64_t reload_ms; /* Load then; SEMAPHORE_NEVER. */
    unsigned failures;
    uint64_t grant_from_ms;
    uint64_t retry_ms; /* An append could not be made for want of memory. */
    uint64_t sweep_ms; /* The earliest deadline there may be. */
    struct list all, holders, detached;
    struct list pumps;
    struct list dirty, flight;
    struct list dirty_calls, flight_calls;
    struct list early; /* Calls that came while it was loading. */
    size_t n_claims, n_holders;
    struct semaphore_actions *out;
    struct list by_name[SEM_BUCKETS], by_id[SEM_BUCKETS], by_key[SEM_BUCKETS];
};

#define SEM_EXPIRED_TEXT "the session has expired"

/* --- semaphore.c --- */
void sem_answer(struct semaphores *s, struct semaphore_call *c, int status,
                const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* When everything that has changed so far is on disk. */
void sem_answer_durably(struct semaphores *s, struct semaphore_call *c);
struct semaphore *sem_find_semaphore(struct semaphores *s, const char *name);
/* Nobody holds it or waits for it: as good as not there. */
bool sem_is_forgotten(const struct semaphore *m);
struct holder *sem_find_holder(struct semaphores *s, uint64_t id);
struct claim *sem_find_claim(struct semaphores *s, uint64_t session,
                             uint64_t request);
/* There is something to be done then. */
void sem_due(struct semaphores *s, uint64_t at_ms);
uint64_t sem_after(uint64_t now_ms, uint64_t ms);
/* Find or make; NULL: no room. The limit is the caller's to compare. */
struct semaphore *sem_get_semaphore(struct semaphores *s, const char *name,
                                    uint32_t limit);
void sem_drop_semaphore(struct semaphore *m); /* If it has no claims. */
struct holder *sem_get_holder(struct semaphores *s, uint64_t id,
                              uint64_t lease_ms, const char *name);
struct claim *sem_new_claim(struct semaphores *s, struct semaphore *m,
                            uint64_t session, uint64_t request);
/* Its row is not what is on disk. */
void sem_touch(struct semaphores *s, struct claim *c);
/* In the order of their numbers; mostly at the end. */
void sem_stand_in_line(struct semaphores *s, struct claim *c);
/* Whoever still waits for it is told `status`. It may be gone then. */
void sem_end_claim(struct semaphores *s, struct claim *c, int status,
                   const char *text);
void sem_wake_watchers(struct semaphores *s, struct holder *h, int status,
                       const char *text);
void sem_end_holder(struct semaphores *s, struct holder *h, int status,
                    const char *text);
/* Grant what can be granted. */
void sem_pump(struct semaphores *s);

/* --- semaphore_calls.c --- */
void sem_take_call(struct semaphores *s, struct semaphore_call *c);

#endif
