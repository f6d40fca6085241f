#include "cluster/log/log_request.h"

#include "cluster/fields.h"
#include "cluster/log/kv.h"

#include <assert.h>
#include <string.h>

/* Field numbers of log.proto. */
enum {
    REQUEST_PUTS = 1,
    REQUEST_LEADER_ONLY = 2,
    REQUEST_TIMEOUT = 3,
    PUT_KEY = 1,
    PUT_VALUE = 2,
    PUT_NO_APPEND = 3,
    PUT_REQUEST = 4
};

static int not_one(struct hedge_error *e)
{
    return error_set(e, HEDGE_EPROTO, "not a LogPutRequest");
}

/* A field of the request; false: it has another type. */
static bool take_field(const struct field *f, struct log_request *r)
{
    switch (f->number) {
    case REQUEST_PUTS:
        r->n_puts++;
        return f->type == FIELD_BYTES;
    case REQUEST_LEADER_ONLY:
        r->leader_only = f->value != 0;
        return f->type == FIELD_VARINT;
    case REQUEST_TIMEOUT:
        r->timeout_ms = f->value;
        return f->type == FIELD_VARINT;
    default:
        return true;
    }
}

int log_request_parse(const void *data, size_t len, struct log_request *out,
                      struct hedge_error *e)
{
    struct fields all = fields_of(data, len);
    struct field f;
    int rv;

    *out = (struct log_request){.n_puts = 0};
    while ((rv = fields_next(&all, &f)) == 0) {
        if (!take_field(&f, out)) {
            return not_one(e);
        }
    }
    if (rv != HEDGE_EEND) {
        return not_one(e);
    }
    if (out->n_puts == 0 || out->n_puts > KV_BATCH_PUTS) {
        return error_set(e, HEDGE_EINVAL,
                         "a request of %zu puts: 1 to %u are possible",
                         out->n_puts, KV_BATCH_PUTS);
    }
    return 0;
}

static int take_id(const struct field *f, struct engine_put *out,
                   struct hedge_error *e)
{
    if (f->len != 0 && f->len != ENGINE_REQUEST_SIZE) {
        return error_set(e, HEDGE_EINVAL,
                         "a request id of %zu bytes: %d are possible, or none",
                         f->len, ENGINE_REQUEST_SIZE);
    }
    memset(out->request, 0, sizeof out->request);
    memcpy(out->request, f->data, f->len);
    return 0;
}

static int parse_put(const struct field *put, struct engine_put *out,
                     struct hedge_error *e)
{
    struct fields all = fields_of(put->data, put->len);
    struct field f;
    int rv;

    *out = (struct engine_put){.key = ""};
    while ((rv = fields_next(&all, &f)) == 0) {
        if (f.number >= PUT_KEY && f.number <= PUT_REQUEST &&
            f.type !=
                (f.number == PUT_NO_APPEND ? FIELD_VARINT : FIELD_BYTES)) {
            return not_one(e);
        }
        if (f.number == PUT_KEY) {
            out->key = f.data;
            out->key_len = f.len;
        } else if (f.number == PUT_VALUE) {
            out->value = f.data;
            out->value_len = f.len;
        } else if (f.number == PUT_NO_APPEND) {
            out->flags = f.value != 0 ? ENGINE_REPLACE : 0;
        } else if (f.number == PUT_REQUEST && take_id(&f, out, e) != 0) {
            return HEDGE_EINVAL;
        }
    }
    return rv == HEDGE_EEND ? 0 : not_one(e);
}

int log_request_puts(const void *data, size_t len, const struct log_request *r,
                     struct engine_put *puts, struct hedge_error *e)
{
    struct fields all = fields_of(data, len);
    struct field f;
    size_t n = 0;
    int rv = 0;

    while (rv == 0 && fields_next(&all, &f) == 0) {
        if (field_is(&f, REQUEST_PUTS)) {
            assert(n < r->n_puts);
            rv = parse_put(&f, &puts[n++], e);
        }
    }
    if (rv != 0 && r->n_puts > 1 && e != NULL) {
        (void)error_prefix(e, "put %zu", n - 1);
    }
    assert(rv != 0 || n == r->n_puts);
    return rv;
}
