/* guard.h - the process between hedgectl and a command that holds permits: it
 * ends the command before somebody else can get them, whatever has become of
 * hedgectl.
 *
 * hedgectl runs itself once more as the guard, which starts the command in a
 * process group of its own and waits. Through a pipe hedgectl tells until when
 * the permits are held; when that moment comes and no later one has been told,
 * because hedgectl was killed or stopped or hears of no leader, the guard ends
 * the group, by SIGTERM a little before and by SIGKILL in time. It is the
 * subreaper of what the command leaves behind, and so finds children that have
 * left the group, too. The command dies with the guard.
 *
 * Messages are structs through pipes between two runs of one program. */
#ifndef TOOLS_GUARD_H
#define TOOLS_GUARD_H

#include <stdint.h>

#define GUARD_WORD "__guard"

/* To the guard. */
enum guard_order {
    GUARD_UNTIL,  /* Held until `until_ms` of CLOCK_BOOTTIME. */
    GUARD_END,    /* End the command now; SIGKILL at until_ms at the latest. */
    GUARD_SIGNAL, /* Pass `signal` on to the command's group. */
};
struct guard_message {
    uint32_t order;
    int32_t signal;
    uint64_t until_ms;
};

/* From it. */
enum guard_news {
    GUARD_STARTED, /* value: the command's process and group. */
    GUARD_FAILED,  /* value: errno; there is no command. */
    GUARD_STOPPED, /* By a signal, as on ^Z. */
    GUARD_EXITED,  /* value: its exit status. */
    GUARD_KILLED,  /* value: by this signal. */
};
struct guard_report {
    uint32_t news;
    int32_t value;
};

/* How long before the end SIGTERM comes, for a lease of so long. */
uint64_t guard_grace_ms(uint64_t lease_ms);

/* "LEASE_MS FOREGROUND CMD...": orders on descriptor GUARD_IN, reports on
 * GUARD_OUT. */
#define GUARD_IN 3
#define GUARD_OUT 4
int guard_main(int argc, char **argv);

#endif
