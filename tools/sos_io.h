/* sos_io.h - `sos write` and `sos read`: bytes into a store and out of it.
 *
 * Ownership: the arguments are the caller's and stay valid during the call.
 * Threads:   called from the main thread, once.
 * Errors:    reported on stderr; the result is the exit status.
 * Units:     bytes, milliseconds.
 * Limits:    SOS_RECORD_CUT: longer lines are cut into records of that size. */
#ifndef TOOLS_SOS_IO_H
#define TOOLS_SOS_IO_H

#include "tools/ctl.h"

#define SOS_RECORD_CUT ((size_t)64 << 20)

struct sos_compress {
    Hedge__V1__Compression mode;
    int level; /* 0: zstd's default here. */
};

struct sos_write_args {
    const struct ctl *ctl;
    const char *name; /* Checked. */
    const char *file; /* NULL: standard input. */
    bool append;
    uint64_t mem_limit, disk_limit; /* 0: none of its own. */
    uint64_t ttl_ms;
    uint64_t replicas;
    struct sos_compress compress;
    /* Any of the five above stands on the command line; with `append` alone,
     * a store keeps the options it has. */
    bool options_given;
    uint64_t record_size; /* 0: records end with `delimiter`. */
    unsigned char delimiter;
};

struct sos_read_args {
    const struct ctl *ctl;
    const char *name; /* Checked. */
    bool follow;
    bool discard;
};

int sos_write_run(const struct sos_write_args *args);
int sos_read_run(const struct sos_read_args *args);

#endif
