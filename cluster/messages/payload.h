/* payload.h - message hedgeproto.Payload: taken apart where it lies, so that a
 * message of many small fields is never much memory, and put together.
 *
 * Ownership: a payload points into the bytes it was made of, which stay the
 *            caller's; keys and values of its meta are its own.
 * Threads:   one at a time.
 * Errors:    HEDGE_EPROTO: no such message, or a NUL in its meta;
 *            HEDGE_ETOOBIG: more meta than there may be.
 * Units:     bytes.
 * Limits:    PAYLOAD_META_MAX entries, PAYLOAD_TEXT_MAX bytes of keys and
 *            values together, terminators included. */
#ifndef CLUSTER_PAYLOAD_H
#define CLUSTER_PAYLOAD_H

#include "cluster/hedge.h"

#define PAYLOAD_META_MAX 32
#define PAYLOAD_TEXT_MAX 4096

struct payload {
    const void *data;
    size_t len;
    size_t n_meta;
    struct hedge_meta meta[PAYLOAD_META_MAX];
    size_t n_text;
    char text[PAYLOAD_TEXT_MAX];
};

int payload_parse(const void *bytes, size_t len, struct payload *out);
/* The last value of a key; NULL: none. */
const char *payload_get(const struct payload *p, const char *key);

/* A new buffer, to mem_free(). HEDGE_ETOOBIG, HEDGE_ENOMEM. */
int payload_pack(const struct hedge_message *m, unsigned char **out,
                 size_t *len);

#endif
