/* hedge.h - the public interface of libhedge: a node in your program.
 *
 * Ownership: what a _new or _open function hands out is ended by the matching
 *            _free or _close. Strings and options are copied. Pointers that a
 *            call hands out say how long they live.
 * Threads:   a node may be used by any thread; a writer or a reader by one
 *            thread at a time. Callbacks run on a thread of the node and must
 *            not block it for long.
 * Errors:    0 or a negative HEDGE_E... code (hedge/errors.h); where there is
 *            a struct hedge_error, it holds a sentence for people. It may be
 *            NULL.
 * Units:     bytes, milliseconds (_ms).
 * Limits:    records of 0 bytes to 1 GiB; store names of 1 to 255 bytes.
 *
 * A program that embeds a node calls hedge_process_setup() first in main(). */
#ifndef HEDGE_H
#define HEDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(HEDGE_BUILD)
#include "store/base/errors.h"
#else
#include <hedge/errors.h>
#endif

#define HEDGE_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* What belongs to the process and not to a library: malloc thresholds that
 * keep network buffers warm, and SIGPIPE ignored. */
HEDGE_API void hedge_process_setup(void);

HEDGE_API const char *hedge_version(void);

/* --- a node ----------------------------------------------------------------
 */

enum hedge_io { HEDGE_IO_AUTO, HEDGE_IO_URING, HEDGE_IO_THREADS };

#define HEDGE_UNLIMITED UINT64_MAX

enum hedge_log_level {
    HEDGE_LOG_AS_IS, /* As another node of the process has set it: info. */
    HEDGE_LOG_DEBUG,
    HEDGE_LOG_INFO,
    HEDGE_LOG_WARN,
    HEDGE_LOG_ERROR,
    HEDGE_LOG_OFF
};
/* One line, without its end; from any thread. `area` is the part that speaks.
 */
typedef void (*hedge_log_fn)(void *data, enum hedge_log_level level,
                             const char *area, const char *text);

/* hedge_options_init() fills in the defaults. */
struct hedge_options {
    const char *listen;       /* "host:port", the node's id. */
    const char *grpc_address; /* NULL: the same host, port + 1. */
    const char *group;        /* "default" */
    const char *engine;       /* "lmdb:DIR"; NULL: a directory of the user's. */
    const char *data_dir;     /* NULL: a directory of the user's. */
    uint64_t mem_limit;       /* 0: a quarter of what there is. */
    uint64_t disk_limit;      /* 10 GiB; 0: no disk tier. */
    uint64_t disk_reserve;    /* Left free; HEDGE_UNLIMITED: by itself. */
    uint64_t lend_mem, lend_disk; /* For other nodes; all of it. */
    uint64_t message_limit;       /* 64 MiB */
    size_t block_size;            /* 1 MiB; one for the whole group. */
    uint64_t lease_ms;            /* 10,000 */
    uint64_t sync_interval_ms;    /* 2,000; at least 100. */
    uint64_t block_lease_ms;      /* 0: two leases. */
    enum hedge_io io;
    /* The log is one for the process, on stderr unless there is `log`, which
     * must stay callable when the node has ended. */
    enum hedge_log_level log_level;
    hedge_log_fn log;
    void *log_data;

    /* Called when this node starts or stops to lead. */
    void (*on_leader)(void *data, bool is_leader, uint64_t token);
    /* Called on every node for each join and leave. */
    void (*on_member)(void *data, bool joined, const char *id);
    void *data;
};

struct hedge_node;

HEDGE_API void hedge_options_init(struct hedge_options *o);
/* Could a node start with these, as far as that can be said without touching
 * anything? */
HEDGE_API int hedge_options_check(const struct hedge_options *o,
                                  struct hedge_error *e);

/* Check the options, claim the data directory, bind the addresses and serve.
 * When it returns 0 the node runs; it may not have met a leader yet. */
HEDGE_API int hedge_node_start(const struct hedge_options *o,
                               struct hedge_node **out, struct hedge_error *e);
/* Leave the group, stop serving, free everything. Writers and readers must be
 * closed. NULL is fine. */
HEDGE_API void hedge_node_stop(struct hedge_node *node);

/* Is the node in its group? HEDGE_EAGAIN: it has not met it yet. Otherwise the
 * leader has refused it for what it is, such as a block size or a version that
 * differ: it stays outside. */
HEDGE_API int hedge_node_joined(struct hedge_node *node, struct hedge_error *e);

/* Live as long as the node. */
HEDGE_API const char *hedge_node_name(const struct hedge_node *node);
HEDGE_API const char *hedge_node_grpc_address(const struct hedge_node *node);

/* --- the cluster ------------------------------------------------------------
 */

/* Is this node the leader now? *token (may be NULL) is the fencing token. */
HEDGE_API bool hedge_has_lock(struct hedge_node *node, uint64_t *token);

struct hedge_leader {
    char id[264];
    char grpc_address[264];
    uint64_t token;
};
/* HEDGE_ENOLEADER when none is known. */
HEDGE_API int hedge_leader(struct hedge_node *node, struct hedge_leader *out);
HEDGE_API uint64_t hedge_lease_ms(const struct hedge_node *node);
HEDGE_API uint64_t hedge_election_rounds(struct hedge_node *node);

struct hedge_member {
    char id[264];
    char grpc_address[264];
    uint64_t incarnation;
    bool leader;
    uint64_t mem_free, disk_free; /* What other nodes may still use. */
};
struct hedge_members {
    size_t n;
    uint64_t version;
    struct hedge_member member[];
};
/* A snapshot, to be freed. NULL: no memory. */
HEDGE_API struct hedge_members *hedge_members(struct hedge_node *node);
HEDGE_API void hedge_members_free(struct hedge_members *m);

/* --- SoS, the spill-over store
 * ------------------------------------------------ */

enum hedge_compression {
    HEDGE_COMPRESS_AUTO,
    HEDGE_COMPRESS_NONE,
    HEDGE_COMPRESS_ZSTD
};

struct hedge_sos_options {
    uint64_t mem_limit, disk_limit; /* Per node; 0: none of its own. */
    uint64_t ttl_ms;   /* Kept this long after the last use; 30,000. */
    unsigned replicas; /* Copies, on as many nodes; 1. They guard against the
                        * loss of other nodes; with this one the store goes. */
    enum hedge_compression compression;
    int compression_level; /* zstd's; 0: its default here. */
};
HEDGE_API void hedge_sos_options_init(struct hedge_sos_options *o);

struct hedge_manifest {
    uint64_t records, bytes;
    unsigned char digest[16];
};

struct hedge_sos;
struct hedge_sos_writer;
struct hedge_sos_reader;

/* Open the store of this name: the one there is, wherever its owner is, or a
 * new one owned by this node. `options` may be NULL (defaults for a new store,
 * whatever it has for an existing one); others than an existing store has are
 * HEDGE_EINVAL with the difference. */
HEDGE_API int hedge_sos_open(struct hedge_node *node, const char *name,
                             const struct hedge_sos_options *options,
                             uint64_t timeout_ms, struct hedge_sos **out,
                             struct hedge_error *e);
/* The store itself stays until its TTL has passed. */
HEDGE_API void hedge_sos_close(struct hedge_sos *sos);
/* End a store now, wherever it is. */
HEDGE_API int hedge_sos_remove(struct hedge_node *node, const char *name,
                               uint64_t timeout_ms, struct hedge_error *e);

HEDGE_API int hedge_sos_writer_open(struct hedge_sos *sos,
                                    struct hedge_sos_writer **out,
                                    struct hedge_error *e);
/* Append one record, copied. Waits while everything is busy; HEDGE_EFULL when
 * no node has room: this record is not stored, all before it are. */
HEDGE_API int hedge_sos_write(struct hedge_sos_writer *w, const void *data,
                              size_t len);
/* Let readers see what has been written so far. */
HEDGE_API int hedge_sos_flush(struct hedge_sos_writer *w);
/* The text of the last error. Lives as long as the writer. */
HEDGE_API const char *hedge_sos_writer_error(const struct hedge_sos_writer *w);
/* Wait until all is stored, and end the writer. The manifest tells what is
 * kept, also after HEDGE_EFULL. `out` may be NULL. */
HEDGE_API int hedge_sos_writer_close(struct hedge_sos_writer *w,
                                     struct hedge_manifest *out,
                                     struct hedge_error *e);

enum { HEDGE_SOS_FOLLOW = 1, HEDGE_SOS_DISCARD = 2 };

/* A record, or a part of one: `data` lives until the next call. */
struct hedge_piece {
    const void *data;
    size_t len;
    bool first, last;
};

HEDGE_API int hedge_sos_reader_open(struct hedge_sos *sos, unsigned flags,
                                    struct hedge_sos_reader **out,
                                    struct hedge_error *e);
/* The next piece. HEDGE_EEND: all of it was read and matches the manifest;
 * HEDGE_ETIMEDOUT: nothing yet (follow); any other error means that data are
 * missing or wrong, never just the end. */
HEDGE_API int hedge_sos_next(struct hedge_sos_reader *r, uint64_t timeout_ms,
                             struct hedge_piece *out);
HEDGE_API const char *hedge_sos_reader_error(const struct hedge_sos_reader *r);
HEDGE_API void hedge_sos_reader_close(struct hedge_sos_reader *r);

#ifdef __cplusplus
}
#endif

#endif
