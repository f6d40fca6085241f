/* units.h - sizes, durations, addresses and names as people write them.
 *
 * Ownership: nothing is kept.
 * Threads:   any.
 * Errors:    false (or HEDGE_EINVAL with a text) and *out unchanged.
 * Units:     sizes in bytes, durations in milliseconds.
 * Limits:    values that do not fit 63 bits are refused. */
#ifndef STORE_BASE_UNITS_H
#define STORE_BASE_UNITS_H

#include "store/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "4096", "64K", "64KiB", "1g": 1024-based, any case, also "1.5G". */
bool units_parse_size(const char *s, uint64_t *out);
/* "250ms", "10s", "5m", "1h"; a bare number is refused, except "0". */
bool units_parse_duration_ms(const char *s, uint64_t *out);
bool units_parse_u64(const char *s, uint64_t *out);

#define UNITS_SIZE_TEXT 24
/* "1.5 GiB"; returns `out`. */
char *units_format_size(uint64_t bytes, char out[UNITS_SIZE_TEXT]);
/* "12 s", "3 min", "250 ms"; returns `out`. */
char *units_format_duration(uint64_t ms, char out[UNITS_SIZE_TEXT]);

#define UNITS_HOST_MAX 256
/* Split "host:port", ":port" (host becomes "") or "[v6]:port". Port 1-65535,
 * 0 too where `zero_ok`. */
bool units_parse_address(const char *s, bool zero_ok, char host[UNITS_HOST_MAX],
                         uint16_t *port);

/* Length of the UTF-8 sequence at p (1 to 4), or 0 if it is not one: overlong
 * forms, surrogates and what lies beyond U+10FFFF are none (RFC 3629). */
size_t units_utf8_len(const unsigned char *p, size_t left);
/* UTF-8 without a zero byte: what a C string can hold and a protobuf `string`
 * may hold. */
bool units_is_text(const void *data, size_t len);

/* Store names: 1 to 255 bytes of UTF-8, no '/', no control characters, not
 * "." or "..". Returns 0 or HEDGE_EINVAL with the reason in `e`. */
#define UNITS_NAME_MAX 255
int units_check_name(const char *name, size_t len, struct hedge_error *e);

#endif
