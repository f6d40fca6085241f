#include "cluster/messages/payload.h"

#include "cluster/fields.h"
#include "cluster/rpc/rpc.h"

#include "store/base/mem.h"
#include "store/base/units.h"

#include <assert.h>
#include <string.h>

enum { META = 1, DATA = 2, META_KEY = 1, META_VALUE = 2 };

/* --- parsing --- */

static int keep_text(struct payload *p, const struct field *f, const char **out)
{
    if (f->len >= sizeof p->text - p->n_text) {
        return HEDGE_ETOOBIG;
    }
    if (!units_is_text(f->data, f->len)) {
        return HEDGE_EPROTO;
    }
    *out = p->text + p->n_text;
    if (f->len > 0) {
        memcpy(p->text + p->n_text, f->data, f->len);
    }
    p->n_text += f->len;
    p->text[p->n_text++] = '\0';
    return 0;
}

static int parse_meta(struct payload *p, const struct field *entry)
{
    struct fields fields = fields_of(entry->data, entry->len);
    struct hedge_meta *m = &p->meta[p->n_meta];
    struct field f;
    int rv;

    if (p->n_meta == PAYLOAD_META_MAX) {
        return HEDGE_ETOOBIG;
    }
    m->key = m->value = "";
    while ((rv = fields_next(&fields, &f)) == 0) {
        if (field_is(&f, META_KEY)) {
            rv = keep_text(p, &f, &m->key);
        } else if (field_is(&f, META_VALUE)) {
            rv = keep_text(p, &f, &m->value);
        }
        if (rv != 0) {
            return rv;
        }
    }
    p->n_meta++;
    return rv == HEDGE_EEND ? 0 : rv;
}

int payload_parse(const void *bytes, size_t len, struct payload *out)
{
    struct fields fields = fields_of(bytes, len);
    struct field f;
    int rv;

    out->data = "";
    out->len = out->n_meta = out->n_text = 0;
    while ((rv = fields_next(&fields, &f)) == 0) {
        if (field_is(&f, META)) {
            rv = parse_meta(out, &f);
        } else if (field_is(&f, DATA)) {
            out->data = f.data;
            out->len = f.len;
        }
        if (rv != 0) {
            return rv;
        }
    }
    return rv == HEDGE_EEND ? 0 : rv;
}

const char *payload_get(const struct payload *p, const char *key)
{
    const char *found = NULL;

    for (size_t i = 0; i < p->n_meta; i++) {
        if (strcmp(p->meta[i].key, key) == 0) {
            found = p->meta[i].value;
        }
    }
    return found;
}

/* --- packing --- */

static size_t field_size(uint32_t number, size_t len)
{
    unsigned char head[FIELD_HEAD_MAX];

    return field_head(number, len, head) + len;
}

static unsigned char *put_field(unsigned char *at, uint32_t number,
                                const void *data, size_t len)
{
    at += field_head(number, len, at);
    if (len > 0) {
        memcpy(at, data, len);
    }
    return at + len;
}

static size_t entry_size(const struct hedge_meta *m)
{
    return field_size(META_KEY, strlen(m->key)) +
           field_size(META_VALUE, strlen(m->value));
}

int payload_pack(const struct hedge_message *m, unsigned char **out,
                 size_t *len)
{
    size_t size = m->len > 0 ? field_size(DATA, m->len) : 0;
    unsigned char *at;

    *out = NULL;
    for (size_t i = 0; i < m->n_meta; i++) {
        size += field_size(META, entry_size(&m->meta[i]));
    }
    if (size > RPC_MESSAGE_MAX) {
        return HEDGE_ETOOBIG;
    }
    /* The head of an entry is written before what is in it is measured. */
    *out = at = mem_alloc(size + FIELD_HEAD_MAX);
    if (at == NULL) {
        return HEDGE_ENOMEM;
    }
    for (size_t i = 0; i < m->n_meta; i++) {
        const struct hedge_meta *e = &m->meta[i];

        at += field_head(META, entry_size(e), at);
        at = put_field(at, META_KEY, e->key, strlen(e->key));
        at = put_field(at, META_VALUE, e->value, strlen(e->value));
    }
    if (m->len > 0) {
        at = put_field(at, DATA, m->data, m->len);
    }
    *len = (size_t)(at - *out);
    assert(*len == size);
    return 0;
}
