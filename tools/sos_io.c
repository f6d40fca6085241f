#include "tools/sos_io.h"

int sos_write_run(const struct sos_write_args *args)
{
    return cli_fail("writing to '%s' is not built yet", args->name);
}

int sos_read_run(const struct sos_read_args *args)
{
    return cli_fail("reading '%s' is not built yet", args->name);
}
