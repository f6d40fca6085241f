/* api.c - the public calls that only look, and the public face of stores. */
#include "cluster/node_internal.h"
#include "cluster/stores/store_link.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/reader.h"
#include "store/writer.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define OPEN_MS 15000

HEDGE_API int hedge_node_joined(struct hedge_node *n, struct hedge_error *e)
{
    struct hedge_error refused;
    bool joined;

    pthread_mutex_lock(&n->pub_lock);
    joined = n->joined;
    refused = n->refused;
    pthread_mutex_unlock(&n->pub_lock);
    if (refused.code != 0) {
        return error_set(e, refused.code, "not in group \"%.64s\": %.400s",
                         n->group, refused.text);
    }
    return joined ? 0
                  : error_set(e, HEDGE_EAGAIN, "group \"%.64s\" not met yet",
                              n->group);
}

HEDGE_API const char *hedge_node_name(const struct hedge_node *node)
{
    return node->id;
}

HEDGE_API const char *hedge_node_grpc_address(const struct hedge_node *node)
{
    return node->grpc_address;
}

HEDGE_API bool hedge_node_is_running(const struct hedge_node *node)
{
    return !atomic_load(&node->closing);
}

HEDGE_API int hedge_node_describe(struct hedge_node *node, char *out,
                                  size_t size)
{
    struct hedge_leader leader;
    uint64_t token;

    if (hedge_has_lock(node, &token)) {
        return snprintf(out, size,
                        "node %s of group %s: leads with token %" PRIu64,
                        node->id, node->group, token);
    }
    if (hedge_leader(node, &leader) == 0) {
        return snprintf(out, size,
                        "node %s of group %s: follows %s with token %" PRIu64,
                        node->id, node->group, leader.id, leader.token);
    }
    return snprintf(out, size, "node %s of group %s: knows no leader", node->id,
                    node->group);
}

HEDGE_API int hedge_node_run(const struct hedge_options *o,
                             const volatile bool *stop, struct hedge_node **out,
                             struct hedge_error *e)
{
    const struct timespec tick = {.tv_nsec = 100000000};
    struct hedge_node *node;
    int rv = hedge_node_start(o, &node, e);

    if (out != NULL) {
        *out = node;
    }
    if (rv != 0) {
        return rv;
    }
    while (!*stop) {
        (void)nanosleep(&tick, NULL);
    }
    hedge_node_stop(node);
    if (out != NULL) {
        *out = NULL;
    }
    return 0;
}

HEDGE_API uint64_t hedge_lease_ms(const struct hedge_node *node)
{
    return node->o.lease_ms;
}

HEDGE_API bool hedge_has_lock(struct hedge_node *node, uint64_t *token)
{
    struct election_hold hold;
    bool leads;

    pthread_mutex_lock(&node->pub_lock);
    hold = node->hold;
    pthread_mutex_unlock(&node->pub_lock);
    leads = election_hold_valid(&hold, clock_boot_ms());
    if (token != NULL) {
        *token = leads ? hold.token : 0;
    }
    return leads;
}

HEDGE_API int hedge_leader(struct hedge_node *node, struct hedge_leader *out)
{
    struct election_leader l;

    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&node->pub_lock);
    l = node->leader;
    pthread_mutex_unlock(&node->pub_lock);
    if (l.id[0] == '\0') {
        return HEDGE_ENOLEADER;
    }
    (void)snprintf(out->id, sizeof out->id, "%s", l.id);
    (void)snprintf(out->grpc_address, sizeof out->grpc_address, "%s",
                   l.address);
    out->token = l.token;
    return 0;
}

HEDGE_API uint64_t hedge_election_rounds(struct hedge_node *node)
{
    uint64_t rounds;

    pthread_mutex_lock(&node->pub_lock);
    rounds = node->rounds;
    pthread_mutex_unlock(&node->pub_lock);
    return rounds;
}

HEDGE_API struct hedge_members *hedge_members(struct hedge_node *node)
{
    struct view *v = node_view(node);
    size_t n = v != NULL ? v->n : 0;
    struct hedge_members *m =
        mem_calloc(1, sizeof *m + n * sizeof m->member[0]);

    for (size_t i = 0; m != NULL && i < n; i++) {
        const struct member *from = &v->members[i];
        struct hedge_member *to = &m->member[i];

        (void)snprintf(to->id, sizeof to->id, "%s", from->id);
        (void)snprintf(to->grpc_address, sizeof to->grpc_address, "%s",
                       from->grpc_address);
        to->incarnation = from->incarnation;
        to->leader = from->leader;
        to->mem_free = from->mem_free;
        to->disk_free = from->disk_free;
    }
    if (m != NULL && v != NULL) {
        m->n = n;
        m->version = v->version;
    }
    view_unref(v);
    return m;
}

HEDGE_API void hedge_members_free(struct hedge_members *m)
{
    mem_free(m);
}

/* --- stores --- */

struct hedge_sos {
    struct hedge_node *node;
    char *name;
    struct sos_store *local;      /* NULL: it is elsewhere. */
    struct kept_channel *channel; /* To there. */
};

struct hedge_sos_writer {
    struct sink *sink;
    bool remote;
    struct writer writer;
};

struct hedge_sos_reader {
    struct reader reader;
};

HEDGE_API void hedge_sos_options_init(struct hedge_sos_options *o)
{
    memset(o, 0, sizeof *o);
    o->ttl_ms = 30000;
    o->replicas = 1;
}

HEDGE_API int hedge_sos_open(struct hedge_node *node, const char *name,
                             const struct hedge_sos_options *options,
                             uint64_t timeout_ms, struct hedge_sos **out,
                             struct hedge_error *e)
{
    struct hedge_sos *sos = mem_calloc(1, sizeof *sos);
    struct sos_store_options o;
    struct store_place p;
    int rv;

    *out = NULL;
    if (sos != NULL) {
        sos->name = mem_strdup(name);
    }
    if (sos == NULL || sos->name == NULL) {
        mem_free(sos);
        return error_set(e, HEDGE_ENOMEM, "no memory for a store");
    }
    if (options != NULL) {
        o = (struct sos_store_options){
            .mem_limit = options->mem_limit,
            .disk_limit = options->disk_limit,
            .ttl_ms = options->ttl_ms,
            .replicas = options->replicas,
            .compression = (enum sos_compression)options->compression,
            .level = options->compression_level};
    }
    sos->node = node;
    rv = stores_open(node, name, options != NULL ? &o : NULL, false, timeout_ms,
                     &p, e);
    if (rv == 0) {
        sos->local = p.local;
        sos->channel = p.local == NULL ? node_channel(node, p.target) : NULL;
        if (sos->local == NULL && sos->channel == NULL) {
            rv = error_set(e, HEDGE_ENOMEM, "no memory for a channel");
        }
    }
    if (rv != 0) {
        hedge_sos_close(sos);
        return rv;
    }
    *out = sos;
    return 0;
}

HEDGE_API void hedge_sos_close(struct hedge_sos *sos)
{
    if (sos == NULL) {
        return;
    }
    if (sos->local != NULL) {
        sos_store_unref(sos->local);
    }
    if (sos->channel != NULL) {
        node_channel_put(sos->node, sos->channel);
    }
    mem_free(sos->name);
    mem_free(sos);
}

HEDGE_API int hedge_sos_remove(struct hedge_node *node, const char *name,
                               uint64_t timeout_ms, struct hedge_error *e)
{
    return stores_remove(node, name, timeout_ms, e);
}

HEDGE_API int hedge_sos_writer_open(struct hedge_sos *sos,
                                    struct hedge_sos_writer **out,
                                    struct hedge_error *e)
{
    struct hedge_sos_writer *w = mem_calloc(1, sizeof *w);
    struct store_link_open o = {
        .name = sos->name, .append = true, .existing = true};
    struct store_link_opened opened;
    int rv;

    *out = NULL;
    if (w == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a writer");
    }
    if (sos->local != NULL) {
        rv = sos_sink_open(sos->local, &w->sink, e);
    } else {
        w->remote = true;
        rv = remote_sink_open(kept_channel_rpc(sos->channel), &o, OPEN_MS,
                              &w->sink, &opened, e);
        if (rv == 0 && w->sink == NULL) {
            rv = error_set(e, HEDGE_ENOTFOUND,
                           "store \"%s\" has moved or ended", sos->name);
        }
    }
    if (rv != 0) {
        mem_free(w);
        return rv;
    }
    writer_init(&w->writer, w->sink);
    *out = w;
    return 0;
}

HEDGE_API int hedge_sos_write(struct hedge_sos_writer *w, const void *data,
                              size_t len)
{
    return writer_write(&w->writer, len > 0 ? data : "", len);
}

HEDGE_API int hedge_sos_flush(struct hedge_sos_writer *w)
{
    return writer_flush(&w->writer);
}

HEDGE_API const char *hedge_sos_writer_error(const struct hedge_sos_writer *w)
{
    return w->writer.error.text;
}

HEDGE_API int hedge_sos_writer_close(struct hedge_sos_writer *w,
                                     struct hedge_manifest *out,
                                     struct hedge_error *e)
{
    struct manifest counted, kept;
    int status = writer_finish(&w->writer, &counted), rv;

    if (w->remote) {
        rv = remote_sink_close(w->sink, &counted, &kept, NULL, e);
    } else {
        rv = sos_sink_close(w->sink, status == 0 ? &counted : NULL, &kept, e);
    }
    if (rv == 0 && status == HEDGE_EFULL) {
        rv = error_set(e, status, "%s", w->writer.error.text);
    }
    if (out != NULL) {
        out->records = kept.records;
        out->bytes = kept.bytes;
        pb_digest(&kept.digest, out->digest);
    }
    mem_free(w);
    return rv;
}

HEDGE_API void hedge_sos_writer_abort(struct hedge_sos_writer *w)
{
    if (w == NULL) {
        return;
    }
    writer_drop(&w->writer);
    if (w->remote) {
        remote_sink_abort(w->sink);
    } else {
        sos_sink_abort(w->sink);
    }
    mem_free(w);
}

HEDGE_API int hedge_sos_reader_open(struct hedge_sos *sos, unsigned flags,
                                    struct hedge_sos_reader **out,
                                    struct hedge_error *e)
{
    struct sos_read_options o = {.follow = (flags & HEDGE_SOS_FOLLOW) != 0,
                                 .discard = (flags & HEDGE_SOS_DISCARD) != 0};
    struct hedge_sos_reader *r = mem_calloc(1, sizeof *r);
    struct source *source;
    int rv;

    *out = NULL;
    if (r == NULL) {
        return error_set(e, HEDGE_ENOMEM, "no memory for a reader");
    }
    if (sos->local != NULL) {
        rv = sos_source_open(sos->local, &o, &source, e);
    } else {
        struct remote_read far = {
            .name = sos->name, .follow = o.follow, .discard = o.discard};

        rv = remote_source_open(kept_channel_rpc(sos->channel), &far, OPEN_MS,
                                &source, NULL, e);
    }
    if (rv == 0) {
        rv = reader_init(&r->reader, source);
    }
    if (rv != 0) {
        mem_free(r);
        return rv;
    }
    *out = r;
    return 0;
}

HEDGE_API int hedge_sos_next(struct hedge_sos_reader *r, uint64_t timeout_ms,
                             struct hedge_piece *out)
{
    struct piece p;
    int rv = reader_next(&r->reader, timeout_ms, &p);

    *out = (struct hedge_piece){
        .data = p.data, .len = p.len, .first = p.first, .last = p.last};
    return rv;
}

HEDGE_API const char *hedge_sos_reader_error(const struct hedge_sos_reader *r)
{
    return r->reader.error.text;
}

HEDGE_API void hedge_sos_reader_close(struct hedge_sos_reader *r)
{
    if (r != NULL) {
        reader_release(&r->reader);
        mem_free(r);
    }
}
