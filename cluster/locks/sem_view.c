#include "cluster/locks/sem_view.h"

#define MARGIN_MS_MIN 30u

uint64_t sem_view_margin_ms(uint64_t lease_ms)
{
    uint64_t ms = lease_ms / 32;

    return ms < MARGIN_MS_MIN ? MARGIN_MS_MIN : ms;
}

uint64_t sem_view_renew_ms(uint64_t lease_ms)
{
    return lease_ms / 5;
}

static bool newer(uint64_t term_a, uint64_t at_a, uint64_t term_b,
                  uint64_t at_b)
{
    return term_a != term_b ? term_a > term_b : at_a > at_b;
}

bool sem_view_renewed(struct sem_view *v, uint64_t start_ms, uint64_t lease_ms,
                      uint64_t term, uint64_t at)
{
    uint64_t until_ms = start_ms + lease_ms - sem_view_margin_ms(lease_ms);

    if (!newer(term, at, v->term, v->at)) {
        return false;
    }
    v->term = term;
    v->at = at;
    v->until_ms = until_ms > v->until_ms ? until_ms : v->until_ms;
    return true;
}

uint64_t sem_view_granted(const struct sem_view *v, uint64_t term, uint64_t at)
{
    return newer(term, at, v->term, v->at) ? v->until_ms : 0;
}
