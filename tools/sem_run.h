/* sem_run.h - `sem run` and `lock run`: a command under permits. */
#ifndef TOOLS_SEM_RUN_H
#define TOOLS_SEM_RUN_H

#include "tools/keeper.h"

/* The exit status. */
int sem_run(const struct ctl *ctl, const struct keeper_request *r,
            char *const *command);

#endif
