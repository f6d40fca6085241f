/* sem_run.h - `sem run` and `lock run`: a command under permits. */
#ifndef TOOLS_SEM_RUN_H
#define TOOLS_SEM_RUN_H

#include "tools/keeper.h"

#define SEM_RUN_FAILED 125
#define SEM_RUN_NOT_RUNNABLE 126
#define SEM_RUN_NOT_FOUND 127

/* The exit status; only permits is looked at before. */
int sem_run(const struct ctl *ctl, const struct keeper_request *r,
            char *const *command);

#endif
