/* semaphore.h - the group's semaphores, as their leader keeps them: a pure core
 * that decides who holds permits, who waits in line, and what must be on disk
 * before anybody is told.
 *
 * A holder is a session: an id its owner has chosen, and a lease that each
 * renewal starts anew. A claim is one request of a session for permits of one
 * semaphore; it waits in line (strictly first come, first served), is granted,
 * and ends: released, revoked, or with its session. Claims are known by
 * (session, request), so that a request sent again, also to another leader, is
 * the same claim.
 *
 * What is granted exists as a row in the engine before it is answered; its
 * token is the revision of that row. One append is in progress at a time and
 * takes all changes there are. When an append fails for another reason than
 * fencing, nobody knows whether it has happened: all is read again. A new
 * leader reads the rows, gives every session a whole lease of its own clock,
 * and grants nothing for a moment, so that those who waited can come back to
 * their places: an order number (term, n) is told to whoever stands in line.
 *
 * What a holder may believe is in sem_view.h.
 *
 * Ownership: a struct semaphore_call is the core's from SEMAPHORE_CALL until it
 *            is among the answers of a step, or until the caller removes its
 *            link from whatever list it is on. Rows among the actions are the
 *            caller's, to mem_free().
 * Threads:   one at a time (the loop).
 * Errors:    every call is answered with 0 or a hedge code and a text; a step
 *            itself does not fail. HEDGE_ENOTLEADER: ask whoever leads.
 * Units:     milliseconds on one clock, CLOCK_BOOTTIME in a node.
 * Limits:    no clock, socket, file, random source or thread in here;
 *            SEMAPHORE_CLAIMS_MAX claims and SEMAPHORE_SESSIONS_MAX sessions,
 *            then HEDGE_EEXHAUSTED. With one claim, and to watch one session,
 *            SEMAPHORE_CALLS_EACH calls wait: the oldest, whose caller may long
 *            have gone, makes place for the next with HEDGE_EEXHAUSTED. */
#ifndef CLUSTER_SEMAPHORE_H
#define CLUSTER_SEMAPHORE_H

#include "cluster/hedge.h"
#include "store/base/list.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEMAPHORE_NEVER UINT64_MAX
#define SEMAPHORE_NAME_SIZE 256
#define SEMAPHORE_HOLDER_SIZE 264
#define SEMAPHORE_LIMIT_MAX 2147483647u
#define SEMAPHORE_LEASE_MS 15000u
#define SEMAPHORE_LEASE_MIN_MS 1000u
#define SEMAPHORE_LEASE_MAX_MS 3600000u
#define SEMAPHORE_TTL_MAX_MS 2592000000u /* 30 days. */
#define SEMAPHORE_CLAIMS_MAX 16384u      /* With their calls about 30 MiB. */
#define SEMAPHORE_SESSIONS_MAX 16384u
#define SEMAPHORE_CALLS_EACH 16u
#define SEMAPHORE_PAGE_MAX 512u  /* Claims of a list: 290 KiB. */
#define SEMAPHORE_BATCH_MAX 512u /* Rows of one append. */

enum semaphore_op {
    SEMAPHORE_OPEN,  /* session, lease_ms, holder: make or renew a session. */
    SEMAPHORE_RENEW, /* session; HEDGE_ENOTFOUND: it has expired. */
    SEMAPHORE_CLOSE, /* session: ends all its claims. */
    SEMAPHORE_WATCH, /* session, term, at, wait_ms: answered when a grant is
                        taken from it after that, or HEDGE_ETIMEDOUT. */
    /* session, lease_ms, holder, request, attempt, name, limit, permits,
     * wait_ms, ttl_ms, order: answered when granted or HEDGE_ETIMEDOUT;
     * wait_ms 0: HEDGE_EBUSY. Makes the session if need be. */
    SEMAPHORE_ACQUIRE,
    /* session, request, attempt: nobody waits for this claim any more. Nothing
     * happens when a later attempt has been made (0: in any case). */
    SEMAPHORE_CANCEL,
    SEMAPHORE_RELEASE, /* name, token; session may be 0. Without a token: the
                          oldest grant of that session. */
    SEMAPHORE_REVOKE,  /* name, token */
    SEMAPHORE_CHECK,   /* name, limit: HEDGE_EINVAL when it has another. */
    /* name, or "": all; limit: how many claims, at most SEMAPHORE_PAGE_MAX, or
     * 0: all, or HEDGE_EEXHAUSTED. What comes behind (holder, permits,
     * order_term, order), which say a place in a list that began at (term, at);
     * zeros: its beginning. Answered with those to go on from when there is
     * `more`. */
    SEMAPHORE_LIST,
    SEMAPHORE_OPS
};

struct semaphore_held {
    uint64_t token, request;
};

struct semaphore_call {
    struct list link; /* The core's, then of the answers. */
    enum semaphore_op op;
    unsigned kind; /* The caller's own mark. */
    char name[SEMAPHORE_NAME_SIZE];
    char holder[SEMAPHORE_HOLDER_SIZE]; /* For people. */
    uint32_t limit, permits, attempt;
    uint64_t session, request; /* Not 0, chosen at random or counted. */
    uint64_t lease_ms;         /* 0: what it has, or SEMAPHORE_LEASE_MS. */
    uint64_t wait_ms;
    uint64_t ttl_ms; /* Not 0: the grant leaves the session and lasts so long,
                        renewed by nobody. */
    uint64_t token;
    /* In: the place in line that an earlier leader gave, or zeros. Out, from
     * the step with this call on: the place it has. */
    uint64_t order_term, order;
    bool queued; /* Out: it stands in line. */

    /* The answer. For RENEW and OPEN also `lease_ms`, for ACQUIRE `token`. */
    int status;
    char text[384];
    /* When it was true: answers with a greater (term, at) are newer. In, for
     * WATCH: of the last renewal. */
    uint64_t term, at;
    struct semaphore_held *held; /* RENEW, OPEN: all of it; mem_free(). */
    size_t n_held;
    struct hedge_semaphores *list; /* LIST; mem_free(). */
    bool more;                     /* LIST */
};

/* A grant, as it is on disk. */
struct semaphore_row {
    char name[SEMAPHORE_NAME_SIZE];
    char holder[SEMAPHORE_HOLDER_SIZE];
    uint64_t session, request;
    uint64_t lease_ms, ttl_ms;
    uint64_t token; /* 0: the revision of this very row. */
    uint32_t limit, permits;
    bool revoked;
    bool deleted; /* To be appended as a deletion; never loaded. */
};

enum semaphore_event_type {
    SEMAPHORE_LEAD,   /* `term` */
    SEMAPHORE_LOST,   /* Another leads, or nobody. */
    SEMAPHORE_LOADED, /* `id`, `status`, `rows` in the order of their tokens */
    SEMAPHORE_APPENDED, /* `id`, `status`, `revisions`: one for each row */
    SEMAPHORE_CALL,     /* `call` */
    SEMAPHORE_TICK      /* Harmless at any time. */
};

struct semaphore_event {
    enum semaphore_event_type type;
    bool leads; /* This node leads with the term of SEMAPHORE_LEAD, as its own
                   deadline tells at this very moment. */
    uint64_t term;
    uint64_t id;
    int status;
    const struct semaphore_row *rows;
    size_t n_rows;
    const uint64_t *revisions;
    struct semaphore_call *call;
};

struct semaphore_actions {
    struct list answers; /* Calls that are done. */
    /* Raise the term with an empty append, behind all appends before it, then
     * read all rows: SEMAPHORE_LOADED with this id. 0: do not. */
    uint64_t load_id;
    /* Append these under the term: SEMAPHORE_APPENDED with this id. */
    uint64_t append_id;
    struct semaphore_row *rows;
    size_t n_rows;
    uint64_t wake_ms; /* Step with SEMAPHORE_TICK then, if not before. */
};

struct semaphore_options {
    uint64_t requeue_ms; /* A new leader grants nothing for so long. */
};

struct semaphores;

int semaphores_new(const struct semaphore_options *o, struct semaphores **out);
/* Calls it still has are forgotten. */
void semaphores_free(struct semaphores *s);

/* Handle one event; *out is overwritten. */
void semaphores_step(struct semaphores *s, const struct semaphore_event *ev,
                     uint64_t now_ms, struct semaphore_actions *out);

struct semaphores_use {
    size_t claims, sessions;
};
void semaphores_use(const struct semaphores *s, struct semaphores_use *out);

/* For tests: NULL, or a sentence about what must never be. */
const char *semaphores_check(struct semaphores *s, uint64_t now_ms);

#endif
