/* output.h - results on standard output: aligned tables for people, one JSON
 * object a line for programs.
 *
 * Ownership: texts are copied; output_json() frees the object.
 * Threads:   one.
 * Errors:    out of memory ends the program with a line on stderr: nothing
 *            incomplete is ever printed as if it were whole.
 * Units:     as the names say.
 * Limits:    TABLE_COLUMNS_MAX columns. */
#ifndef TOOLS_OUTPUT_H
#define TOOLS_OUTPUT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* First: makes cJSON use our memory and end the program when there is none. */
void output_init(void);

/* --- JSON ------------------------------------------------------------------
 */

cJSON *output_object(void);
/* Exact beyond 2^53, where a double is not. */
void output_add_u64(cJSON *object, const char *name, uint64_t n);
/* A number as text, for identifiers that programs must not round. */
void output_add_id(cJSON *object, const char *name, uint64_t n);
/* RFC 3339; null for 0. */
void output_add_time(cJSON *object, const char *name, uint64_t wall_ms);
/* `name` as text, null where the bytes are not UTF-8 or hold a zero, and
 * `name`_base64 as they are. */
void output_add_bytes(cJSON *object, const char *name, const void *bytes,
                      size_t len);
void output_add_text(cJSON *object, const char *name, const char *text);
void output_add_null(cJSON *object, const char *name);
void output_add_bool(cJSON *object, const char *name, bool on);
cJSON *output_add_array(cJSON *object, const char *name);
void output_append(cJSON *array, cJSON *item);
/* Print on one line, flush, free. */
void output_json(cJSON *object);

/* Behind bytes that were printed as they are, of which `last` was the last: a
 * terminal's next prompt begins a line. Files and pipes get nothing more. */
void output_end_line(char last);

/* --- tables ----------------------------------------------------------------
 */

#define TABLE_COLUMNS_MAX 12

struct table;

/* `columns`: "NAME|OWNER|>BYTES"; '>' aligns to the right. */
struct table *table_new(const char *columns);
/* The next cell, row by row. */
void table_text(struct table *t, const char *text);
void table_u64(struct table *t, uint64_t n);
void table_size(struct table *t, uint64_t bytes);
/* Prints the header and the rows, flushes, frees. */
void table_print(struct table *t);

#endif
