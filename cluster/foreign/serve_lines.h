/* serve_lines.h - the reference's line protocol on a node's listen address: a
 * thread accepts, each connection has one of its own, and its requests are
 * answered one after the other, in the order in which they came.
 *
 * Requests do what our own calls do: the same handlers, the same log, the same
 * semaphores. What is said about members is answered and believed by nobody.
 *
 * Ownership: the listening socket stays the node's.
 * Threads:   one starts and stops it.
 * Errors:    HEDGE_ENOMEM.
 * Units:     milliseconds.
 * Limits:    LINES_CONNECTIONS_MAX connections; the one that has been idle for
 *            the longest makes way for a new one, else the one that has been
 *            at a line for the longest. A line takes LINES_LINE_MS,
 *            a request LINES_CALL_MS, a reply LINES_REPLY_MS at most. */
#ifndef CLUSTER_SERVE_LINES_H
#define CLUSTER_SERVE_LINES_H

#include "cluster/foreign/lines.h"

#define LINES_CONNECTIONS_MAX 128u
#define LINES_IDLE_MS 120000u
#define LINES_LINE_MS 60000u
#define LINES_CALL_MS 15000u
#define LINES_REPLY_MS 60000u
#define LINES_PATIENCE_MS 5000u /* With a slow line while others wait. */
#define LINES_ROOM_MS 20000u    /* Waiting for room for a payload. */
#define LINES_TURN_MS 300u      /* Until the last of those who wait gives up. */

struct hedge_node;
struct lines_server;

/* Not `speak`: whoever connects is hung up on. */
int lines_server_new(struct hedge_node *n, int listen_fd, bool speak,
                     struct lines_server **out);
/* Hangs up on who is idle, lets the others go on for grace_ms. NULL is fine. */
void lines_server_free(struct lines_server *s, uint64_t grace_ms);

struct lines_use {
    unsigned connections;
    uint64_t accepted, refused, evicted;
    uint64_t requests[LINE_VERBS + 1], errors;
};
void lines_server_use(struct lines_server *s, struct lines_use *out);

#endif
