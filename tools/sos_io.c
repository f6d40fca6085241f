#include "tools/sos_io.h"

#include "cluster/stores/store_link.h"
#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/units.h"
#include "store/reader.h"
#include "store/writer.h"
#include "tools/output.h"
#include "tools/store_info.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* So little that it is still in the cache when it is cut into records. */
#define READ_CHUNK ((size_t)256 << 10)
#define OUT_BUFFER ((size_t)256 << 10)
/* Of a pipe we write to, where the system lets us: with the usual 64 KiB, this
 * program and the one behind it wait for each other at every 64 KiB. */
#define OUT_PIPE (1 << 20)
#define PROGRESS_MS 250
#define ASK_MS 1000
#define FOLLOW_STEP_MS 1000
#define OPEN_RETRY_MS 200
#define IDLE_FLUSH_MS 200

/* --- progress, on a terminal --- */

struct progress {
    bool on;
    struct client *client;
    const char *name;
    uint64_t started_ms, shown_ms, asked_ms;
    char tiers[160]; /* Where the store lay when the node was asked. */
};

static void progress_start(struct progress *p, struct client *c,
                           const char *name)
{
    memset(p, 0, sizeof *p);
    p->on = isatty(STDERR_FILENO) != 0;
    p->client = c;
    p->name = name;
    p->started_ms = p->shown_ms = p->asked_ms = clock_mono_ms();
}

/* The owner's tiers, then those of all others together. */
static void tiers_text(const Hedge__V1__StoreInfo *info, char *out, size_t size)
{
    static const char *const names[] = {"memory", "disk", "peers' memory",
                                        "peers' disk"};
    uint64_t bytes[4] = {0};
    size_t at = 0;

    for (size_t i = 0; i < info->n_tiers; i++) {
        const Hedge__V1__TierUse *t = info->tiers[i];

        bytes[(strcmp(t->node, info->owner) != 0 ? 2 : 0) +
              (strcmp(t->tier, "disk") == 0 ? 1 : 0)] += t->stored_bytes;
    }
    out[0] = '\0';
    for (unsigned i = 0; i < 4 && at < size; i++) {
        char text[UNITS_SIZE_TEXT];

        if (bytes[i] > 0) {
            at += (size_t)snprintf(out + at, size - at, ", %s %s", names[i],
                                   units_format_size(bytes[i], text));
        }
    }
}

static void progress_ask(struct progress *p, uint64_t now_ms)
{
    Hedge__V1__StoreInfo *info;
    struct hedge_error e;

    if (now_ms < p->asked_ms + ASK_MS) {
        return;
    }
    p->asked_ms = now_ms;
    client_allow_ms(p->client, ASK_MS);
    if (client_store_stat(p->client, p->name, &info, &e) == 0) {
        tiers_text(info, p->tiers, sizeof p->tiers);
        pb_free(info);
    }
}

static void progress_show(struct progress *p, uint64_t bytes, uint64_t records)
{
    char size[UNITS_SIZE_TEXT], rate[UNITS_SIZE_TEXT];
    uint64_t now;

    if (!p->on || (now = clock_mono_ms()) < p->shown_ms + PROGRESS_MS) {
        return;
    }
    p->shown_ms = now;
    progress_ask(p, now);
    fprintf(stderr, "\r%s, %llu records, %s/s%s\033[K",
            units_format_size(bytes, size), (unsigned long long)records,
            units_format_size(bytes * 1000 / (now - p->started_ms + 1), rate),
            p->tiers);
}

static void progress_end(struct progress *p)
{
    if (p->on) {
        fputs("\r\033[K", stderr);
    }
}

/* --- sos write --- */

/* Input that is being cut into records: bytes [from, to) of the buffer have
 * been read and not yet written. */
struct input {
    int fd;
    unsigned char *buffer;
    size_t cap, from, to;
    bool at_end;
};

/* Read more behind what is there, making room first. */
static int input_fill(struct input *in, struct hedge_error *e)
{
    ssize_t n;

    if (in->from > 0) {
        memmove(in->buffer, in->buffer + in->from, in->to - in->from);
        in->to -= in->from;
        in->from = 0;
    }
    if (in->cap - in->to < READ_CHUNK) {
        size_t cap = in->cap == 0 ? 2 * READ_CHUNK : in->cap * 2;
        unsigned char *more = mem_realloc(in->buffer, cap);

        if (more == NULL) {
            return error_set(e, HEDGE_ENOMEM, "no memory for the input");
        }
        in->buffer = more;
        in->cap = cap;
    }
    do {
        n = read(in->fd, in->buffer + in->to, READ_CHUNK);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return error_set_errno(e, errno, "reading the input");
    }
    in->to += (size_t)n;
    in->at_end = n == 0;
    return 0;
}

/* Input that comes slowly is to be seen by readers that follow: when none has
 * come for a while, what there is becomes a block. */
static int flush_when_idle(const struct input *in, struct writer *w)
{
    struct pollfd p = {.fd = in->fd, .events = POLLIN};

    if (w->payload == NULL || poll(&p, 1, IDLE_FLUSH_MS) != 0) {
        return 0;
    }
    return writer_flush(w);
}

/* The length of the next record in the buffer; 0: more input is needed. Its
 * first `scanned` bytes hold no delimiter. */
static size_t next_record(const struct sos_write_args *a,
                          const struct input *in, size_t scanned)
{
    size_t len = in->to - in->from;
    const unsigned char *p, *end;

    if (len == 0) {
        return 0; /* There may be no buffer yet. */
    }
    p = in->buffer + in->from;
    if (a->record_size != 0) {
        if (len >= a->record_size) {
            return (size_t)a->record_size;
        }
    } else {
        end = memchr(p + scanned, a->delimiter, len - scanned);
        if (end != NULL && (size_t)(end - p) < SOS_RECORD_CUT) {
            return (size_t)(end - p) + 1;
        }
        if (len >= SOS_RECORD_CUT) {
            return SOS_RECORD_CUT;
        }
    }
    return in->at_end ? len : 0;
}

static int copy_in(const struct sos_write_args *a, struct client *c,
                   struct input *in, struct writer *w, struct hedge_error *e)
{
    struct progress progress;
    uint64_t records = 0, bytes = 0;
    size_t scanned = 0;
    int rv = 0;

    progress_start(&progress, c, a->name);
    while (rv == 0) {
        size_t len;

        while (rv == 0 && (len = next_record(a, in, scanned)) != 0) {
            rv = writer_write(w, in->buffer + in->from, len);
            if (rv == 0) {
                in->from += len;
                bytes += len;
                records++;
            }
            scanned = 0;
        }
        scanned = in->to - in->from;
        rv = rv != 0 || in->at_end ? rv : flush_when_idle(in, w);
        if (rv != 0) {
            *e = w->error;
        } else if (in->at_end) {
            break;
        } else {
            rv = input_fill(in, e);
            progress_show(&progress, bytes, records);
        }
    }
    progress_end(&progress);
    return rv;
}

static void say_until_when(const Hedge__V1__StoreInfo *info, uint64_t ttl_ms)
{
    char when[CLOCK_RFC3339_SIZE], ttl[UNITS_SIZE_TEXT];

    clock_format(clock_wall_ms() + ttl_ms, when);
    fprintf(stderr,
            "store \"%s\" is kept until %s, and for %s after each use\n",
            info->name, when, units_format_duration(ttl_ms, ttl));
}

/* Open the store, following the node's word to its owner. `again`: it has been
 * made, but there was no block for a writer. */
static int open_sink(const struct sos_write_args *a, struct client *c,
                     bool again, struct sink **sink,
                     struct store_link_opened *opened, struct hedge_error *e)
{
    struct sos_store_options options = {
        .mem_limit = a->mem_limit,
        .disk_limit = a->disk_limit,
        .ttl_ms = a->ttl_ms,
        .replicas = (unsigned)a->replicas,
        .compression = (enum sos_compression)a->compress.mode,
        .level = a->compress.level};
    struct store_link_open o = {
        .name = a->name,
        .options = a->append && !a->options_given ? NULL : &options,
        .append = a->append || again};
    int rv = remote_sink_open(client_bulk_channel(c), &o, client_left_ms(c),
                              sink, opened, e);

    if (rv == 0 && *sink == NULL) {
        rv = client_redirect(c, opened->redirect, e);
        if (rv == 0) {
            rv = remote_sink_open(client_bulk_channel(c), &o, client_left_ms(c),
                                  sink, opened, e);
        }
        if (rv == 0 && *sink == NULL) {
            rv = error_set(e, HEDGE_EPROTO,
                           "store \"%s\": sent from node to node", a->name);
        }
    }
    return rv;
}

static int cannot_open(const struct sos_write_args *a,
                       const struct hedge_error *e)
{
    if (e->code != HEDGE_EEXISTS) {
        return ctl_error(e);
    }
    (void)cli_fail("%s: --append, or hedgectl sos rm %s", e->text, a->name);
    return ctl_status(e->code);
}

static int write_all(const struct sos_write_args *a, struct client *c,
                     struct input *in)
{
    struct store_link_opened opened;
    Hedge__V1__StoreInfo *info = NULL;
    struct hedge_error e = {0}, close_error = {0};
    struct manifest counted, kept;
    struct writer w;
    struct sink *sink;
    int rv = open_sink(a, c, false, &sink, &opened, &e), closed;

    while (rv == HEDGE_EBUSY && client_left_ms(c) > OPEN_RETRY_MS) {
        clock_sleep_ms(OPEN_RETRY_MS);
        rv = open_sink(a, c, true, &sink, &opened, &e);
    }
    if (rv != 0) {
        return cannot_open(a, &e);
    }
    writer_init(&w, sink);
    rv = copy_in(a, c, in, &w, &e);
    if (rv != 0 && rv != HEDGE_EFULL) {
        writer_drop(&w);
        remote_sink_abort(sink);
        return ctl_error(&e);
    }
    (void)writer_finish(&w, &counted);
    closed = remote_sink_close(sink, &counted, &kept, &info, &close_error);
    if (info != NULL && (closed == 0 || closed == HEDGE_EFULL)) {
        if (a->ctl->output == CTL_JSON) {
            store_info_json(info);
        } else {
            store_info_text(info);
        }
        say_until_when(info, opened.ttl_ms);
    }
    pb_free(info);
    if (closed == 0 && rv != 0) {
        return ctl_error(&e);
    }
    return closed == 0 ? 0 : ctl_error(&close_error);
}

/* A directory can be opened but not read: that is said before a store is made.
 */
static int open_input(const struct sos_write_args *a, struct input *in)
{
    const char *name = a->file != NULL ? a->file : "standard input";
    struct stat st;

    if (a->file != NULL) {
        in->fd = open(a->file, O_RDONLY | O_CLOEXEC);
        if (in->fd < 0) {
            return cli_fail("%s: %s", name, strerror(errno));
        }
    }
    if (fstat(in->fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        return cli_fail("%s: %s", name, strerror(EISDIR));
    }
    return 0;
}

int sos_write_run(const struct sos_write_args *a)
{
    struct input in = {.fd = STDIN_FILENO};
    struct client *c;
    int rv = open_input(a, &in);

    rv = rv != 0 ? rv : ctl_connect(a->ctl, &c);
    if (rv == 0) {
        rv = write_all(a, c, &in);
        client_free(c);
    }
    mem_free(in.buffer);
    if (a->file != NULL && in.fd >= 0) {
        close(in.fd);
    }
    return rv;
}

/* --- sos read --- */

struct output {
    unsigned char *buffer;
    size_t len;
};

static int put_all(const unsigned char *p, size_t len)
{
    while (len > 0) {
        ssize_t n = write(STDOUT_FILENO, p, len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno;
        }
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int output_flush(struct output *o)
{
    int err = put_all(o->buffer, o->len);

    o->len = 0;
    return err;
}

static int output_add(struct output *o, const void *data, size_t len)
{
    int err = 0;

    if (len > OUT_BUFFER - o->len) {
        err = output_flush(o);
    }
    if (err == 0 && len >= OUT_BUFFER) {
        return put_all(data, len);
    }
    if (err == 0) {
        memcpy(o->buffer + o->len, data, len);
        o->len += len;
    }
    return err;
}

static int copy_out(const struct sos_read_args *a, struct client *c,
                    struct reader *r, struct output *o)
{
    struct progress progress;
    int rv = 0, err = 0;

    progress_start(&progress, c, a->name);
    while (err == 0) {
        struct piece p;

        /* What there is goes out before more is waited for. */
        rv = reader_next(r,
                         !a->follow   ? RPC_NO_TIMEOUT
                         : o->len > 0 ? 0
                                      : FOLLOW_STEP_MS,
                         &p);
        if (rv == 0) {
            err = output_add(o, p.data, p.len);
        } else if (rv == HEDGE_ETIMEDOUT) {
            err = output_flush(o);
        } else {
            break;
        }
        progress_show(&progress, r->seen.bytes, r->seen.records);
    }
    progress_end(&progress);
    if (err == 0) {
        err = output_flush(o);
    }
    if (err != 0) {
        return cli_fail("writing the output: %s", strerror(err));
    }
    if (rv != HEDGE_EEND) {
        r->error.code = rv;
        return ctl_error(&r->error);
    }
    if (r->seg.state == STORE_OPEN) {
        fprintf(stderr,
                "store \"%s\" is still being written; this is what was there "
                "(--follow waits for the rest)\n",
                a->name);
    }
    return 0;
}

/* Open the store, following the node's word to its owner. */
static int open_source(const struct sos_read_args *a, struct client *c,
                       struct source **source, struct hedge_error *e)
{
    struct remote_read o = {
        .name = a->name, .follow = a->follow, .discard = a->discard};
    struct store_link_opened there;
    /* Over TCP: what a node sends into a Unix socket goes in pieces of 208 KiB,
     * which only the end that connects can change for itself. */
    int rv = remote_source_open(client_channel(c), &o, client_left_ms(c),
                                source, &there, e);

    if (rv == 0 && *source == NULL) {
        rv = client_redirect(c, there.redirect, e);
        /* From there on it is passed on, should it have moved meanwhile. */
        if (rv == 0) {
            rv = remote_source_open(client_channel(c), &o, client_left_ms(c),
                                    source, NULL, e);
        }
    }
    return rv;
}

/* A follower may come before the first writer, and a node may be out of blocks
 * for one more reader. */
static int await_source(const struct sos_read_args *a, struct client *c,
                        struct source **source, struct hedge_error *e)
{
    bool told = isatty(STDERR_FILENO) == 0;
    int rv;

    for (;;) {
        rv = open_source(a, c, source, e);
        if ((rv != HEDGE_EBUSY && (rv != HEDGE_ENOTFOUND || !a->follow)) ||
            client_left_ms(c) <= OPEN_RETRY_MS) {
            return rv;
        }
        if (!told) {
            fprintf(stderr,
                    rv == HEDGE_EBUSY
                        ? "waiting for blocks to read \"%s\" with\n"
                        : "waiting for store \"%s\" to be made\n",
                    a->name);
            told = true;
        }
        clock_sleep_ms(OPEN_RETRY_MS);
    }
}

int sos_read_run(const struct sos_read_args *a)
{
    struct output o = {.buffer = mem_alloc(OUT_BUFFER)};
    struct hedge_error e = {0};
    struct source *source;
    struct reader r;
    struct client *c;
    int rv;

    if (o.buffer == NULL) {
        return cli_fail("no memory");
    }
    (void)fcntl(STDOUT_FILENO, F_SETPIPE_SZ, OUT_PIPE);
    rv = ctl_connect(a->ctl, &c);
    if (rv != 0) {
        mem_free(o.buffer);
        return rv;
    }
    if (await_source(a, c, &source, &e) != 0) {
        rv = ctl_error(&e);
    } else if (reader_init(&r, source) != 0) {
        rv = cli_fail("no memory");
    } else {
        rv = copy_out(a, c, &r, &o);
        reader_release(&r);
    }
    client_free(c);
    mem_free(o.buffer);
    return rv;
}
