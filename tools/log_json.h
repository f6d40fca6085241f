/* log_json.h - versions of the log as lines of JSON, and back.
 *
 * Keys and values are bytes: each is printed as text, null where it is not
 * UTF-8, and in base64 always. A line that is read may have either; with both
 * they must agree.
 *
 * Ownership: what a parse hands out is ended by log_line_release().
 * Threads:   one.
 * Errors:    false, and a phrase that says what is wrong with the line.
 * Units:     bytes.
 * Limits:    values nested 64 deep are refused, wherever they stand. */
#ifndef TOOLS_LOG_JSON_H
#define TOOLS_LOG_JSON_H

#include "proto/log.pb-c.h"
#include "store/base/strbuf.h"

#include <stdbool.h>
#include <stddef.h>

/* The entry as an object and a newline. */
void log_json_entry(struct strbuf *out, const Hedge__V1__LogEntry *entry);
/* "name":"text" or null, and "name_base64":"..". */
void log_json_bytes(struct strbuf *out, const char *name, const void *data,
                    size_t len);
bool log_is_utf8(const void *data, size_t len);

struct log_line {
    unsigned char *key, *value; /* NULL: not there. */
    size_t key_len, value_len;
};

#define LOG_LINE_WHY 160
bool log_line_parse(const char *text, size_t len, struct log_line *out,
                    char why[LOG_LINE_WHY]);
void log_line_release(struct log_line *l);

#endif
