/* membership.h - who is in the group: a pure core for both roles.
 *
 * Members keep a control stream to the leader and report themselves on it once
 * per interval; the leader keeps the list and sends it out, numbered by
 * (fencing token, version). Whoever holds the list, leader or member, turns
 * its changes into events with ids.
 *
 * The leader drops a member at once when it says that it leaves, or when its
 * stream breaks and dialling it fails; and after three intervals of silence.
 * A newer incarnation of an id replaces the older one; an older one is
 * refused. A new leader goes on from the list it had as a member: its entries
 * are `pending` until they report, are dialled at once, and fall to the same
 * two rules, so a change of leader looks like no leave and no join. When
 * nobody is pending any more the list is settled: who is not in it is gone.
 *
 * Ownership: the core owns its table; pointers into it (members, leader) are
 *            valid until the next step. Arrays in struct membership_actions
 *            belong to it and are reused by the next step.
 * Threads:   one at a time (the loop).
 * Errors:    HEDGE_ENOMEM and HEDGE_EPROTO (a malformed list) leave the state
 *            as it was. Refusals of a report are in the actions.
 * Units:     milliseconds on one clock, bytes.
 * Limits:    MEMBERSHIP_MAX members; no clock, socket or thread in here. */
#ifndef CLUSTER_MEMBERSHIP_H
#define CLUSTER_MEMBERSHIP_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMBERSHIP_MAX 1024u
#define MEMBERSHIP_NEVER UINT64_MAX
#define MEMBERSHIP_SILENT_INTERVALS 3u

#define MEMBER_ID_SIZE 264
#define MEMBER_BOOT_ID_SIZE 40
#define MEMBER_SOCKET_SIZE 112
#define MEMBER_VERSION_SIZE 32

/* What a node says of itself (message Member of the proto). */
struct member {
    char id[MEMBER_ID_SIZE];
    uint64_t incarnation; /* Of one life of the node; not 0; grows. */
    char grpc_address[MEMBER_ID_SIZE];
    char boot_id[MEMBER_BOOT_ID_SIZE];
    char socket[MEMBER_SOCKET_SIZE];
    char version[MEMBER_VERSION_SIZE];
    bool leader; /* Set by the core. */
    uint64_t mem_free, mem_limit, mem_used, mem_lent;
    uint64_t disk_free, disk_limit, disk_used, disk_lent;
};

/* Fill a text field; false when `src` does not fit (or is NULL). */
bool member_set_text(char *dst, size_t size, const char *src);

struct membership_options {
    struct member self;
    uint64_t interval_ms;   /* --sync-interval */
    uint32_t wire_version;  /* Of the protocol between nodes. */
    uint32_t block_version; /* Of the block header. */
    uint32_t block_size;    /* Bytes; one for the whole group. */
};

struct membership_report {
    struct member self;
    uint32_t wire_version, block_version, block_size;
    bool leaving;
};

enum membership_event_type {
    MEMBERSHIP_TICK, /* Harmless at any time. */
    MEMBERSHIP_SELF, /* `member`: this node's own figures. */
    /* From the election. */
    MEMBERSHIP_LEAD,   /* This node leads with `token`; `idle_ms` as won. */
    MEMBERSHIP_FOLLOW, /* Another leads, or nobody (id ""). */
    /* On the leader. */
    MEMBERSHIP_REPORT,        /* `report` on stream `session`. */
    MEMBERSHIP_STREAM_BROKEN, /* Stream `session` ended without a leave. */
    MEMBERSHIP_DIALED,        /* The outcome `ok` of a dial. */
    /* On a member. */
    MEMBERSHIP_LIST,     /* `list` came from a leader. */
    MEMBERSHIP_LINK_DOWN /* The stream to the leader of `token` has ended or
                            could not be opened, with `status`. */
};

struct membership_list {
    uint64_t token, version;
    const struct member *members;
    size_t n_members;
};

struct membership_event {
    enum membership_event_type type;
    const char *id;      /* FOLLOW, DIALED */
    const char *address; /* FOLLOW */
    uint64_t incarnation;
    uint64_t token;
    uint64_t idle_ms;
    /* Streams are numbered by the driver, later ones higher, from 1. */
    uint64_t session;
    bool ok;
    int status;
    const struct member *member;
    const struct membership_report *report;
    const struct membership_list *list;
};

enum membership_change_type {
    MEMBERSHIP_JOIN,
    MEMBERSHIP_LEAVE,
    MEMBERSHIP_LEADER /* The leader is now `id`, or nobody (""). */
};

enum membership_reason {
    MEMBERSHIP_NO_REASON, /* Joins; and leaves heard of from the list. */
    MEMBERSHIP_LEFT,
    MEMBERSHIP_UNREACHABLE,
    MEMBERSHIP_SILENT,
    MEMBERSHIP_REPLACED /* By a newer incarnation, whose join follows. */
};

struct membership_change {
    enum membership_change_type type;
    enum membership_reason reason;
    uint64_t incarnation;
    uint64_t token; /* LEADER */
    char id[MEMBER_ID_SIZE];
};

struct membership_dial {
    char id[MEMBER_ID_SIZE];
    char address[MEMBER_ID_SIZE];
    uint64_t incarnation;
};

/* Start it all zeros; membership_actions_release() at the end. */
struct membership_actions {
    /* For the application, in this order. */
    struct membership_change *changes;
    size_t n_changes;
    /* Try to reach these nodes (by announcing this leader to them) and feed
     * MEMBERSHIP_DIALED with the id and incarnation, exactly once each. */
    struct membership_dial *dials;
    size_t n_dials;
    /* Streams to end: their nodes are gone, replaced, or led by another. */
    uint64_t *closes;
    size_t n_closes;

    /* Answer to a REPORT: 0, or end its stream with this code and text. */
    int verdict;
    char verdict_text[HEDGE_ERROR_TEXT_MAX];

    bool publish;    /* Leader: send the list on all streams. */
    bool welcome;    /* Leader: send it on the stream of this REPORT. */
    bool settled;    /* Leader: has just become settled. */
    bool connect;    /* Member: open a stream to membership_leader(). */
    bool report;     /* Member: send membership_self() on the stream. */
    bool superseded; /* Another node lives under this id: stop. */

    uint64_t wake_ms;

    size_t cap; /* Of each of the arrays. */
};

struct membership;

int membership_new(const struct membership_options *o, struct membership **out);
/* NULL is fine. */
void membership_free(struct membership *m);
void membership_actions_release(struct membership_actions *a);

int membership_step(struct membership *m, const struct membership_event *ev,
                    uint64_t now_ms, struct membership_actions *out);

/* The list, this node included, sorted by id. */
size_t membership_count(const struct membership *m);
const struct member *membership_at(const struct membership *m, size_t i);
/* NULL when there is no such member. */
const struct member *membership_find(const struct membership *m,
                                     const char *id);
const struct member *membership_self(const struct membership *m);
uint64_t membership_version(const struct membership *m, uint64_t *token);

struct membership_leader {
    char id[MEMBER_ID_SIZE]; /* Empty: none is known. */
    char address[MEMBER_ID_SIZE];
    uint64_t incarnation, token;
};
const struct membership_leader *membership_leader(const struct membership *m);

/* In touch with a leader: it leads, or has the leader's list, and the link to
 * the leader has not broken since. */
bool membership_is_in_group(const struct membership *m);

/* On the leader: everybody the previous leader may have known has reported or
 * is gone. Always false on a member. */
bool membership_is_settled(const struct membership *m);

const char *membership_reason_text(enum membership_reason reason);

#endif
