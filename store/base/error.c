#include "store/base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

__attribute__((visibility("default"))) const char *hedge_strerror(int code)
{
    switch (code) {
    case HEDGE_OK:
        return "success";
#define X(name, value, text) \
    case -(value):           \
        return text;
        HEDGE_ERROR_MAP(X)
#undef X
    default:
        return "unknown error";
    }
}

__attribute__((visibility("default"))) const char *hedge_errname(int code)
{
    switch (code) {
    case HEDGE_OK:
        return "OK";
#define X(name, value, text) \
    case -(value):           \
        return #name;
        HEDGE_ERROR_MAP(X)
#undef X
    default:
        return "UNKNOWN";
    }
}

int error_set(struct hedge_error *e, int code, const char *fmt, ...)
{
    va_list ap;

    assert(code < 0);
    if (e != NULL) {
        e->code = code;
        va_start(ap, fmt);
        (void)vsnprintf(e->text, sizeof e->text, fmt, ap);
        va_end(ap);
    }
    return code;
}

int error_prefix(struct hedge_error *e, const char *fmt, ...)
{
    char old[HEDGE_ERROR_TEXT_MAX];
    va_list ap;
    int n;

    if (e == NULL) {
        return HEDGE_EINTERNAL;
    }
    memcpy(old, e->text, sizeof old);
    va_start(ap, fmt);
    n = vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->text) {
        (void)snprintf(e->text + n, sizeof e->text - (size_t)n, ": %s", old);
    }
    return e->code;
}

void error_clear(struct hedge_error *e)
{
    if (e != NULL) {
        e->code = 0;
        e->text[0] = '\0';
    }
}

int error_from_errno(int err)
{
    assert(err > 0);
    switch (err) {
    case ENOMEM:
        return HEDGE_ENOMEM;
    case EINVAL:
        return HEDGE_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return HEDGE_ENOSPC;
    case EACCES:
    case EPERM:
    case EROFS:
        return HEDGE_EPERM;
    case ENOENT:
        return HEDGE_ENOTFOUND;
    case EEXIST:
        return HEDGE_EEXISTS;
    case EBUSY:
    case EAGAIN:
        return HEDGE_EBUSY;
    case EOPNOTSUPP:
    case ENOSYS:
        return HEDGE_ENOTSUP;
    case ECANCELED:
        return HEDGE_ECANCELED;
    case ETIMEDOUT:
        return HEDGE_ETIMEDOUT;
    default:
        return HEDGE_EIO;
    }
}

int error_set_errno(struct hedge_error *e, int err, const char *fmt, ...)
{
    char what[HEDGE_ERROR_TEXT_MAX / 2];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return error_set(e, error_from_errno(err), "%s: %s", what, strerror(err));
}
