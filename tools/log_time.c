/* log_time.c - points in time as people write them. */
#include "store/base/clock.h"
#include "store/base/units.h"
#include "tools/log_io.h"

#include <string.h>
#include <time.h>

/* `n` digits. */
static bool number(const char **p, unsigned n, int low, int high, int *out)
{
    int v = 0;

    for (unsigned i = 0; i < n; i++) {
        if ((*p)[i] < '0' || (*p)[i] > '9') {
            return false;
        }
        v = v * 10 + ((*p)[i] - '0');
    }
    *p += n;
    *out = v;
    return v >= low && v <= high;
}

static bool one_of(const char **p, const char *set)
{
    if (**p == '\0' || strchr(set, **p) == NULL) {
        return false;
    }
    (*p)++;
    return true;
}

/* ".123456": milliseconds, the rest is cut. */
static bool fraction(const char **p, int *ms)
{
    int scale = 100;

    *ms = 0;
    if (!one_of(p, ".,")) {
        return true;
    }
    if (**p < '0' || **p > '9') {
        return false;
    }
    for (; **p >= '0' && **p <= '9'; (*p)++) {
        *ms += scale * (**p - '0');
        scale /= 10;
    }
    return true;
}

/* "Z" or "+02:00", in seconds east. */
static bool offset(const char **p, long *seconds)
{
    bool west = **p == '-';
    int h, m;

    *seconds = 0;
    if (one_of(p, "Zz")) {
        return true;
    }
    if (!one_of(p, "+-") || !number(p, 2, 0, 23, &h) || !one_of(p, ":") ||
        !number(p, 2, 0, 59, &m)) {
        return false;
    }
    *seconds = (west ? -1L : 1L) * (h * 3600L + m * 60L);
    return true;
}

static bool parse_rfc3339(const char *p, uint64_t *wall_ms)
{
    struct tm tm, back;
    long east;
    int ms;
    time_t t;

    memset(&tm, 0, sizeof tm);
    if (!number(&p, 4, 1970, 9999, &tm.tm_year) || !one_of(&p, "-") ||
        !number(&p, 2, 1, 12, &tm.tm_mon) || !one_of(&p, "-") ||
        !number(&p, 2, 1, 31, &tm.tm_mday) || !one_of(&p, "Tt ") ||
        !number(&p, 2, 0, 23, &tm.tm_hour) || !one_of(&p, ":") ||
        !number(&p, 2, 0, 59, &tm.tm_min) || !one_of(&p, ":") ||
        !number(&p, 2, 0, 60, &tm.tm_sec) || !fraction(&p, &ms) ||
        !offset(&p, &east) || *p != '\0') {
        return false;
    }
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    back = tm;
    t = timegm(&tm);
    if (tm.tm_mday != back.tm_mday && back.tm_sec < 60) {
        return false; /* The 31st of February. */
    }
    t -= east;
    if (t < 0) {
        return false;
    }
    *wall_ms = (uint64_t)t * 1000 + (uint64_t)ms;
    return true;
}

bool log_parse_time(const char *text, uint64_t *wall_ms)
{
    uint64_t ago, now = clock_wall_ms();

    if (units_parse_duration_ms(text, &ago)) {
        *wall_ms = ago < now ? now - ago : 1;
        return true;
    }
    return parse_rfc3339(text, wall_ms);
}
