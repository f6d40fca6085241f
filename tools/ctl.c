#include "tools/ctl.h"

#include "store/base/units.h"

#include <assert.h>
#include <string.h>

int ctl_error(const struct hedge_error *e)
{
    assert(e->code != 0);
    (void)cli_fail("%s",
                   e->text[0] != '\0' ? e->text : hedge_strerror(e->code));
    return e->code == HEDGE_ENOTFOUND || e->code == HEDGE_EEXPIRED
               ? CLI_NOT_FOUND
               : CLI_FAILED;
}

int ctl_connect(const struct ctl *ctl, struct client **out)
{
    struct hedge_error e;

    error_clear(&e);
    if (client_new(ctl->nodes, ctl->timeout_ms, out, &e) != 0) {
        return e.code == HEDGE_EINVAL
                   ? cli_usage("%s: %s",
                               ctl->nodes != NULL ? "-n" : "$HEDGE_NODE",
                               e.text)
                   : ctl_error(&e);
    }
    if (client_connect(*out, &e) != 0) {
        client_free(*out);
        *out = NULL;
        return ctl_error(&e);
    }
    return CLI_DONE;
}

int ctl_check_name(const char *name)
{
    struct hedge_error e;

    if (units_check_name(name, strlen(name), &e) != 0) {
        return cli_usage("%s", e.text);
    }
    return 0;
}
