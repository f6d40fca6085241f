/* log.h - log lines: a level, an area, a sentence.
 *
 * Ownership: arguments are used during the call only.
 * Threads:   any thread; a line is written whole. Configure before the
 *            threads start.
 * Errors:    a line that cannot be written is dropped.
 * Units:     none.
 * Limits:    a line is cut at 2 KiB. */
#ifndef STORE_BASE_LOG_H
#define STORE_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

typedef void (*log_fn)(void *data, enum log_level level, const char *area,
                       const char *text);

void log_set_level(enum log_level level);
void log_set_json(bool json);
/* NULL puts the lines on stderr again. */
void log_set_fn(log_fn fn, void *data);
/* "debug", "info", "warn", "error", "off"; false for anything else. */
bool log_level_parse(const char *s, enum log_level *out);

void log_line(enum log_level level, const char *area, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_debug(area, ...) log_line(LOG_DEBUG, area, __VA_ARGS__)
#define log_info(area, ...) log_line(LOG_INFO, area, __VA_ARGS__)
#define log_warn(area, ...) log_line(LOG_WARN, area, __VA_ARGS__)
#define log_error(area, ...) log_line(LOG_ERROR, area, __VA_ARGS__)

#endif
