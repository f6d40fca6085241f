/* keeper.h - hedgectl as the owner of a session: waits in line, renews through
 * whatever node answers, and knows until when its grant is held.
 *
 * Three threads: one waits in line, one renews, one is told when the grant is
 * taken away. keeper_state() is what they know, and `event` is readable when it
 * has changed.
 */
#ifndef TOOLS_KEEPER_H
#define TOOLS_KEEPER_H

#include "tools/ctl.h"

#include <stdbool.h>
#include <stdint.h>

struct keeper;

struct keeper_request {
    const char *name;
    uint32_t limit, permits;
    uint64_t wait_ms; /* UINT64_MAX: without end; 0: not at all. */
    uint64_t lease_ms;
};

struct keeper_state {
    bool granted; /* There is a token. */
    uint64_t token;
    uint64_t until_ms; /* On CLOCK_BOOTTIME; only grows, while not `lost`. */
    bool lost;         /* Taken away; still held until until_ms. */
    bool failed;       /* Not granted, and not in line: `error`. */
    struct hedge_error error;
};

/* Opens the session; an exit status that is not 0 after saying why. */
int keeper_start(const struct ctl *ctl, const struct keeper_request *r,
                 struct keeper **out);
int keeper_event(const struct keeper *k); /* For poll(); cleared by _state. */
struct keeper_state keeper_state(struct keeper *k);
/* Gives back, waits for it a moment. false: it was not heard. */
bool keeper_stop(struct keeper *k);

/* Who hedgectl is, for people: "host:pid". */
void keeper_name(char *out, size_t size);
uint64_t keeper_random(void);

#endif
