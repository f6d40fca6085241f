#include "tools/ctl.h"

#include "store/base/units.h"

#include <assert.h>
#include <string.h>

/* The codes whose exit status is not CLI_FAILED. */
static const struct {
    int code, status;
} statuses[] = {
    {HEDGE_EINVAL, CLI_USAGE},        {HEDGE_ETOOBIG, CLI_USAGE},
    {HEDGE_ENOTFOUND, CLI_NOT_FOUND}, {HEDGE_EEXPIRED, CLI_NOT_FOUND},
    {HEDGE_EFENCED, CLI_NOT_FOUND},
};

int ctl_status(int code)
{
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        if (statuses[i].code == code) {
            return statuses[i].status;
        }
    }
    return code == 0 ? CLI_DONE : CLI_FAILED;
}

static void add_codes(struct strbuf *out, int status)
{
    const char *between = "";

    strbuf_addf(out, " (");
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        if (statuses[i].status == status) {
            strbuf_addf(out, "%s%s", between, hedge_errname(statuses[i].code));
            between = ", ";
        }
    }
    strbuf_addf(out, ")");
}

void ctl_describe_statuses(struct strbuf *out)
{
    strbuf_addf(out,
                "Exit status: %d done; %d failed; %d wrong usage, or a value "
                "that the cluster refuses",
                CLI_DONE, CLI_FAILED, CLI_USAGE);
    add_codes(out, CLI_USAGE);
    strbuf_addf(out, "; %d what was named is not there, or not any more",
                CLI_NOT_FOUND);
    add_codes(out, CLI_NOT_FOUND);
    strbuf_addf(out,
                ". `sem run` and `lock run` exit as their command does; "
                "whatever fails before that, usage too, is %d.",
                CLI_RUN_FAILED);
}

int ctl_error(const struct hedge_error *e)
{
    assert(e->code != 0);
    (void)cli_fail("%s",
                   e->text[0] != '\0' ? e->text : hedge_strerror(e->code));
    return ctl_status(e->code);
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
