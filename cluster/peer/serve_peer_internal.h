/* serve_peer_internal.h - what the files of the block service share.
 *
 * A fence is how an owner makes sure that nothing comes after it has given up a
 * Put stream and dropped what was on its way: a stream whose number is not
 * above the fence stores nothing any more, and what it is storing is dropped as
 * soon as it is stored.
 *
 * Ownership: streams are on their handler's stack or heap; the service lists
 *            them while they run.
 * Threads:   one lock for the service and its streams; never held while rpc or
 *            the store is called.
 * Errors:    hedge codes.
 * Units:     bytes, milliseconds.
 * Limits:    PEER_WINDOW blocks per stream; OWNERS_MAX owners with fences. */
#ifndef CLUSTER_SERVE_PEER_INTERNAL_H
#define CLUSTER_SERVE_PEER_INTERNAL_H

#include "cluster/peer/peer_tier.h"
#include "cluster/peer/serve_peer.h"

#include <pthread.h>

#define OWNERS_MAX 1024
#define OWNER_ID_MAX 512
#define STORE_NAME_MAX 255
#define DROP_COUNT_MAX 4096
#define REPLY_HEAD_MAX 1024
#define REPLY_TEXT_MAX 300
/* A client that takes so long to read a reply is given up. */
#define REPLY_SEND_MS 10000
#define POLL_MS 200

struct peer_service {
    struct sos *sos;
    uint64_t lease_ms, incarnation;
    uint64_t reply_send_ms; /* REPLY_SEND_MS, if not a test. */
    pthread_mutex_t lock;
    pthread_cond_t returned; /* `out` has become smaller. */
    struct list puts;        /* Put streams that run. */
    struct list owners;      /* With fences. */
    unsigned n_owners;
    unsigned out; /* Blocks the transport has a reference to. */
};

struct put_stream;

/* A block that is being stored. */
struct incoming {
    struct put_stream *stream;
    struct list link; /* put_stream.idle or .done. */
    uint64_t number;
    bool storing;  /* With the store. */
    bool unwanted; /* Dropped before it was stored. */
    struct sos_lend_req req;
};

struct put_stream {
    struct list link;
    struct peer_service *service;
    struct rpc_stream *rpc;
    struct sos_owner owner;
    char owner_id[OWNER_ID_MAX];
    uint64_t number;
    pthread_t handler, sender;
    bool has_sender;
    pthread_cond_t changed;
    struct list idle, done;
    unsigned n_busy;
    bool sending, ending;
    int failed; /* Replies cannot be sent any more. */
    struct incoming incoming[PEER_WINDOW];
};

/* Is the call meant for this life of the node? */
int service_check_incarnation(const struct peer_service *p, uint64_t wanted,
                              struct hedge_error *e);
/* Lock held: 0 for none. */
uint64_t service_fence(struct peer_service *p, const struct sos_owner *owner);
int service_check_owner(const char *id, struct hedge_error *e);
/* Threads of streams: all signals blocked, small stacks. */
int service_thread(pthread_t *out, void *(*fn)(void *), void *arg,
                   const char *name);
/* Wait up to POLL_MS. */
void service_wait(struct peer_service *p, pthread_cond_t *c);
/* A text as fits into a reply. */
void service_text(const struct hedge_error *e, int code,
                  char out[REPLY_TEXT_MAX]);

#endif
