/* client.h - a program that is no node talks to one: find a node that answers,
 * call it.
 *
 * Ownership: client_new() / client_free(). Replies are the caller's, ended
 *            with the message's own __free_unpacked().
 * Threads:   one thread at a time uses a client; its channel has no such rule.
 * Errors:    hedge codes with the text the node gave. Nobody answers:
 *            HEDGE_EUNAVAILABLE, or HEDGE_ETIMEDOUT when someone might have.
 *            No replies are cached and no call is repeated.
 * Units:     milliseconds.
 * Limits:    CLIENT_NODES_MAX addresses; one deadline over all unary calls,
 *            that starts with client_new(). */
#ifndef CLUSTER_CLIENT_H
#define CLUSTER_CLIENT_H

#include "cluster/rpc/rpc.h"
#include "proto/hedge.pb-c.h"

#define CLIENT_NODES_MAX 64
#define CLIENT_TARGET_MAX 320
#define CLIENT_DEFAULT_NODE "127.0.0.1:8080"

struct client;

/* `nodes`: "host:port[,host:port...]", each the id of a node or its gRPC
 * address. NULL or "": $HEDGE_NODE, and without that CLIENT_DEFAULT_NODE.
 * Dials nothing. HEDGE_EINVAL: not such a list. */
int client_new(const char *nodes, uint64_t timeout_ms, struct client **out,
               struct hedge_error *e);
void client_free(struct client *c);

/* Find the first node of the list that answers; of each, the port after the
 * one given is tried first. */
int client_connect(struct client *c, struct hedge_error *e);

/* Leave that node for the one at this gRPC address, which a node has named. */
int client_redirect(struct client *c, const char *grpc_address,
                    struct hedge_error *e);

/* The rest is for connected clients. */

/* The address in use, as a person writes it. */
const char *client_address(const struct client *c);
/* For streams; lives as long as the client is not redirected. */
struct rpc_channel *client_channel(struct client *c);
/* The same for streams of blocks to the node: over the node's Unix socket where
 * it is on this machine and may be used, which costs less than TCP. */
struct rpc_channel *client_bulk_channel(struct client *c);
/* What is left of the deadline, at least 1. */
uint64_t client_left_ms(const struct client *c);
/* Give what is called from now on at least so long. */
void client_allow_ms(struct client *c, uint64_t ms);

int client_members(struct client *c, Hedge__V1__MembersReply **out,
                   struct hedge_error *e);
int client_leader(struct client *c, Hedge__V1__LeaderReply **out,
                  struct hedge_error *e);
int client_status(struct client *c, Hedge__V1__StatusReply **out,
                  struct hedge_error *e);
int client_store_stat(struct client *c, const char *name,
                      Hedge__V1__StoreInfo **out, struct hedge_error *e);
/* A page; `after` (NULL: the first one) is the `next` of the one before. */
int client_store_list(struct client *c, Hedge__V1__ListPlace *after,
                      Hedge__V1__ListReply **out, struct hedge_error *e);
int client_store_remove(struct client *c, const char *name,
                        struct hedge_error *e);

/* Calls `fn` with the list as it is now and after every change, without a
 * deadline, until `fn` returns other than 0 or the stream breaks. */
typedef int (*client_members_fn)(void *ctx, const Hedge__V1__MembersReply *m);
int client_watch_members(struct client *c, client_members_fn fn, void *ctx,
                         struct hedge_error *e);

/* A whole message in one piece; mem_free() it. Releases `m` in any case. */
int client_message_bytes(struct rpc_msg *m, unsigned char **out, size_t *len);

/* "host:port" as an rpc target: "ipv4:...", "ipv6:..." or "dns:..."; no host
 * means loopback. false: not an address. */
bool client_target(const char *address, char out[CLIENT_TARGET_MAX]);

#endif
