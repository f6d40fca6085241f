#include "store/base/units.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define VALUE_MAX ((uint64_t)INT64_MAX)

struct suffix {
    const char *text;
    uint64_t factor;
};

/* A number with one of the suffixes; fractions only where they make sense. */
static bool parse_with_suffix(const char *s, const struct suffix *table,
                              uint64_t *out)
{
    char *end;
    double value;

    if (!isdigit((unsigned char)s[0])) {
        return false; /* No sign, no space, no "inf", no ".5". */
    }
    if (strspn(s, "0123456789.") < 1 || s[1] == 'x' || s[1] == 'X') {
        return false;
    }
    errno = 0;
    value = strtod(s, &end);
    if (errno != 0 || (size_t)(end - s) != strspn(s, "0123456789.")) {
        return false;
    }
    for (; table->text != NULL; table++) {
        if (strcasecmp(end, table->text) != 0) {
            continue;
        }
        if (memchr(s, '.', (size_t)(end - s)) == NULL) {
            uint64_t n = strtoull(s, NULL, 10);
            if (errno != 0 || n > VALUE_MAX / table->factor) {
                return false;
            }
            *out = n * table->factor;
            return true;
        }
        value *= (double)table->factor;
        if (table->factor == 1 || value >= 9.2e18) {
            return false;
        }
        *out = (uint64_t)llround(value);
        return true;
    }
    return false;
}

bool units_parse_size(const char *s, uint64_t *out)
{
    static const struct suffix suffixes[] = {{"", 1},
                                             {"B", 1},
                                             {"K", 1u << 10},
                                             {"KiB", 1u << 10},
                                             {"KB", 1u << 10},
                                             {"M", 1u << 20},
                                             {"MiB", 1u << 20},
                                             {"MB", 1u << 20},
                                             {"G", 1u << 30},
                                             {"GiB", 1u << 30},
                                             {"GB", 1u << 30},
                                             {"T", (uint64_t)1 << 40},
                                             {"TiB", (uint64_t)1 << 40},
                                             {"TB", (uint64_t)1 << 40},
                                             {NULL, 0}};

    return parse_with_suffix(s, suffixes, out);
}

bool units_parse_duration_ms(const char *s, uint64_t *out)
{
    static const struct suffix suffixes[] = {
        {"ms", 1},      {"s", 1000},     {"m", 60000}, {"min", 60000},
        {"h", 3600000}, {"d", 86400000}, {NULL, 0}};

    if (strcmp(s, "0") == 0) {
        *out = 0;
        return true;
    }
    return parse_with_suffix(s, suffixes, out);
}

bool units_parse_u64(const char *s, uint64_t *out)
{
    static const struct suffix suffixes[] = {{"", 1}, {NULL, 0}};

    return parse_with_suffix(s, suffixes, out);
}

char *units_format_size(uint64_t bytes, char out[UNITS_SIZE_TEXT])
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    unsigned i = 0;

    while (v >= 1024 && i + 1 < sizeof names / sizeof names[0]) {
        v /= 1024;
        i++;
    }
    (void)snprintf(out, UNITS_SIZE_TEXT, i == 0 ? "%.0f %s" : "%.1f %s", v,
                   names[i]);
    return out;
}

char *units_format_duration(uint64_t ms, char out[UNITS_SIZE_TEXT])
{
    if (ms < 1000) {
        (void)snprintf(out, UNITS_SIZE_TEXT, "%u ms", (unsigned)ms);
    } else if (ms < 120000) {
        (void)snprintf(out, UNITS_SIZE_TEXT, "%.3g s", (double)ms / 1000);
    } else if (ms < 7200000) {
        (void)snprintf(out, UNITS_SIZE_TEXT, "%.3g min", (double)ms / 60000);
    } else {
        (void)snprintf(out, UNITS_SIZE_TEXT, "%.4g h", (double)ms / 3600000);
    }
    return out;
}

bool units_parse_address(const char *s, bool zero_ok, char host[UNITS_HOST_MAX],
                         uint16_t *port)
{
    const char *colon = strrchr(s, ':');
    uint64_t n;
    size_t len;

    if (colon == NULL || !units_parse_u64(colon + 1, &n) || n > 65535 ||
        (n == 0 && !zero_ok)) {
        return false;
    }
    len = (size_t)(colon - s);
    if (len >= UNITS_HOST_MAX) {
        return false;
    }
    if (len >= 2 && s[0] == '[' && s[len - 1] == ']') {
        s++;
        len -= 2;
    } else if (memchr(s, ':', len) != NULL) {
        return false; /* IPv6 without brackets is ambiguous. */
    }
    for (size_t i = 0; i < len; i++) {
        if (!isalnum((unsigned char)s[i]) && strchr(".-_:%", s[i]) == NULL) {
            return false;
        }
    }
    memcpy(host, s, len);
    host[len] = '\0';
    *port = (uint16_t)n;
    return true;
}

size_t units_utf8_len(const unsigned char *p, size_t left)
{
    size_t n = p[0] < 0x80   ? 1
               : p[0] < 0xc2 ? 0
               : p[0] < 0xe0 ? 2
               : p[0] < 0xf0 ? 3
               : p[0] < 0xf5 ? 4
                             : 0;

    if (n == 0 || n > left) {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)) {
        return 0;
    }
    return n;
}

bool units_is_text(const void *data, size_t len)
{
    const unsigned char *p = data;

    for (size_t i = 0, n; i < len; i += n) {
        n = p[i] != 0 ? units_utf8_len(p + i, len - i) : 0;
        if (n == 0) {
            return false;
        }
    }
    return true;
}

int units_check_name(const char *name, size_t len, struct hedge_error *e)
{
    const unsigned char *p = (const unsigned char *)name;
    size_t step;

    if (len == 0) {
        return error_set(e, HEDGE_EINVAL, "the name is empty");
    }
    if (len > UNITS_NAME_MAX) {
        return error_set(e, HEDGE_EINVAL,
                         "the name has %zu bytes, at most %d are allowed", len,
                         UNITS_NAME_MAX);
    }
    if ((len == 1 && p[0] == '.') || (len == 2 && memcmp(p, "..", 2) == 0)) {
        return error_set(e, HEDGE_EINVAL, "the name may not be '.' or '..'");
    }
    for (size_t i = 0; i < len; i += step) {
        step = units_utf8_len(p + i, len - i);
        if (step == 0) {
            return error_set(e, HEDGE_EINVAL,
                             "the name is not valid UTF-8 at byte %zu", i + 1);
        }
        if (p[i] == '/' || p[i] < 0x20 || p[i] == 0x7f) {
            return error_set(e, HEDGE_EINVAL,
                             "the name has a '/' or a control character at "
                             "byte %zu; neither is allowed",
                             i + 1);
        }
    }
    return 0;
}
