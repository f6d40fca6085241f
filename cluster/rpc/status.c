#include "cluster/rpc/rpc_internal.h"

#include "store/base/units.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* What clients other than ours see: the nearest gRPC status of each code. Ours
 * read the code's name from the trailing metadata. */
grpc_status_code rpc_status_from_code(int code)
{
    switch (code) {
    case HEDGE_OK:
        return GRPC_STATUS_OK;
    case HEDGE_EINVAL:
        return GRPC_STATUS_INVALID_ARGUMENT;
    case HEDGE_ENOMEM:
    case HEDGE_ENOSPC:
    case HEDGE_EFULL:
    case HEDGE_EBUSY:
    case HEDGE_EEXHAUSTED:
        return GRPC_STATUS_RESOURCE_EXHAUSTED;
    case HEDGE_ECANCELED:
        return GRPC_STATUS_CANCELLED;
    case HEDGE_ETIMEDOUT:
        return GRPC_STATUS_DEADLINE_EXCEEDED;
    case HEDGE_ENOTFOUND:
    case HEDGE_EEXPIRED:
        return GRPC_STATUS_NOT_FOUND;
    case HEDGE_EEXISTS:
        return GRPC_STATUS_ALREADY_EXISTS;
    case HEDGE_ECORRUPT:
    case HEDGE_ELOST:
        return GRPC_STATUS_DATA_LOSS;
    case HEDGE_EABORTED:
    case HEDGE_EFENCED:
        return GRPC_STATUS_ABORTED;
    case HEDGE_ENOLEADER:
    case HEDGE_EUNAVAILABLE:
        return GRPC_STATUS_UNAVAILABLE;
    case HEDGE_ENOTLEADER:
    case HEDGE_EREFUSED:
    case HEDGE_EVERSION:
    case HEDGE_ECLOSED:
        return GRPC_STATUS_FAILED_PRECONDITION;
    case HEDGE_EPROTO:
    case HEDGE_ETOOBIG:
        return GRPC_STATUS_INVALID_ARGUMENT;
    case HEDGE_ENOTSUP:
    case HEDGE_ENOHANDLER:
        return GRPC_STATUS_UNIMPLEMENTED;
    case HEDGE_EPERM:
        return GRPC_STATUS_PERMISSION_DENIED;
    case HEDGE_EEND:
        return GRPC_STATUS_OUT_OF_RANGE;
    case HEDGE_EHANDLER:
        return GRPC_STATUS_UNKNOWN;
    default:
        return GRPC_STATUS_INTERNAL;
    }
}

/* Used where there is no `hedge-error`: the status was made by gRPC itself or
 * by a server that is not ours. */
static int code_from_status(grpc_status_code status, const char *text)
{
    switch (status) {
    case GRPC_STATUS_OK:
        return 0;
    case GRPC_STATUS_CANCELLED:
        return HEDGE_ECANCELED;
    case GRPC_STATUS_INVALID_ARGUMENT:
    case GRPC_STATUS_OUT_OF_RANGE:
        return HEDGE_EINVAL;
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return HEDGE_ETIMEDOUT;
    case GRPC_STATUS_NOT_FOUND:
        return HEDGE_ENOTFOUND;
    case GRPC_STATUS_ALREADY_EXISTS:
        return HEDGE_EEXISTS;
    case GRPC_STATUS_PERMISSION_DENIED:
    case GRPC_STATUS_UNAUTHENTICATED:
        return HEDGE_EPERM;
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        /* Core uses one status for a message over the limit and for a quota
         * that is used up. */
        return strstr(text, "larger than max") != NULL ? HEDGE_ETOOBIG
                                                       : HEDGE_EEXHAUSTED;
    case GRPC_STATUS_FAILED_PRECONDITION:
        return HEDGE_EREFUSED;
    case GRPC_STATUS_ABORTED:
        return HEDGE_EABORTED;
    case GRPC_STATUS_UNIMPLEMENTED:
        return HEDGE_ENOTSUP;
    case GRPC_STATUS_UNAVAILABLE:
        return HEDGE_EUNAVAILABLE;
    case GRPC_STATUS_DATA_LOSS:
        return HEDGE_ECORRUPT;
    case GRPC_STATUS_UNKNOWN:
        return HEDGE_EHANDLER;
    default:
        return HEDGE_EINTERNAL;
    }
}

int rpc_code_from_name(const char *name, size_t len)
{
#define X(code, value, text)                                        \
    if (len == sizeof #code - 1 && memcmp(name, #code, len) == 0) { \
        return -(value);                                            \
    }
    HEDGE_ERROR_MAP(X)
#undef X
    return 0;
}

void rpc_text_clean(const char *text, size_t len,
                    char out[HEDGE_ERROR_TEXT_MAX])
{
    const unsigned char *p = (const unsigned char *)text;
    size_t used = 0;

    while (len > 0) {
        size_t n = units_utf8_len(p, len);
        size_t take = n > 0 ? n : 1;
        if (used + take >= HEDGE_ERROR_TEXT_MAX) {
            break;
        }
        if (n == 0) {
            out[used] = '?';
        } else if (n == 1 && (*p < 0x20 || *p == 0x7f)) {
            out[used] = ' ';
        } else {
            memcpy(out + used, p, n);
        }
        used += take;
        p += take;
        len -= take;
    }
    out[used] = '\0';
}

int rpc_status_read(grpc_status_code status, const grpc_slice *details,
                    const grpc_metadata_array *md, struct hedge_error *e)
{
    char text[HEDGE_ERROR_TEXT_MAX];
    int code = 0;

    rpc_text_clean((const char *)GRPC_SLICE_START_PTR(*details),
                   GRPC_SLICE_LENGTH(*details), text);
    if (status == GRPC_STATUS_OK) {
        error_clear(e);
        return 0;
    }
    for (size_t i = 0; i < md->count && code == 0; i++) {
        const grpc_metadata *m = &md->metadata[i];
        if (grpc_slice_str_cmp(m->key, RPC_ERROR_KEY) == 0) {
            code =
                rpc_code_from_name((const char *)GRPC_SLICE_START_PTR(m->value),
                                   GRPC_SLICE_LENGTH(m->value));
        }
    }
    if (code == 0) {
        code = code_from_status(status, text);
    }
    return error_set(e, code, "%s",
                     text[0] != '\0' ? text : hedge_strerror(code));
}

void rpc_status_op_init(struct rpc_status_op *st, grpc_op *op, int code,
                        const char *text)
{
    char clean[HEDGE_ERROR_TEXT_MAX];

    memset(st, 0, sizeof *st);
    memset(op, 0, sizeof *op);
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status = rpc_status_from_code(code);
    st->details = grpc_empty_slice();
    if (code == 0) {
        return;
    }
    if (text == NULL || text[0] == '\0') {
        text = hedge_strerror(code);
    }
    rpc_text_clean(text, strlen(text), clean);
    st->details = grpc_slice_from_copied_string(clean);
    st->md.key = grpc_slice_from_static_string(RPC_ERROR_KEY);
    st->md.value = grpc_slice_from_static_string(hedge_errname(code));
    op->data.send_status_from_server.status_details = &st->details;
    op->data.send_status_from_server.trailing_metadata = &st->md;
    op->data.send_status_from_server.trailing_metadata_count = 1;
}

void rpc_status_op_release(struct rpc_status_op *st)
{
    grpc_slice_unref(st->details);
}
