#include "tools/output.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/strbuf.h"
#include "store/base/units.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define U64_TEXT 24

static void *must_have(void *p)
{
    if (p == NULL) {
        (void)fputs("hedgectl: out of memory\n", stderr);
        _exit(1);
    }
    return p;
}

static void *alloc_or_exit(size_t size)
{
    return must_have(mem_alloc(size));
}

void output_init(void)
{
    cJSON_Hooks hooks = {.malloc_fn = alloc_or_exit, .free_fn = mem_free};

    cJSON_InitHooks(&hooks);
}

/* --- JSON ------------------------------------------------------------------
 */

cJSON *output_object(void)
{
    return must_have(cJSON_CreateObject());
}

void output_add_u64(cJSON *object, const char *name, uint64_t n)
{
    char text[U64_TEXT];

    (void)snprintf(text, sizeof text, "%" PRIu64, n);
    (void)must_have(cJSON_AddRawToObject(object, name, text));
}

void output_add_id(cJSON *object, const char *name, uint64_t n)
{
    char text[U64_TEXT];

    (void)snprintf(text, sizeof text, "%" PRIu64, n);
    output_add_text(object, name, text);
}

void output_add_time(cJSON *object, const char *name, uint64_t wall_ms)
{
    char text[CLOCK_RFC3339_SIZE];

    if (wall_ms == 0) {
        (void)must_have(cJSON_AddNullToObject(object, name));
        return;
    }
    clock_format(wall_ms, text);
    output_add_text(object, name, text);
}

static char *base64(const unsigned char *p, size_t len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "abcdefghijklmnopqrstuvwxyz0123456789+/";
    char *text = must_have(mem_alloc((len + 2) / 3 * 4 + 1)), *out = text;

    for (size_t i = 0; i < len; i += 3) {
        unsigned v = (unsigned)p[i] << 16;

        v |= i + 1 < len ? (unsigned)p[i + 1] << 8 : 0;
        v |= i + 2 < len ? p[i + 2] : 0;
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = i + 1 < len ? digits[v >> 6 & 63] : '=';
        *out++ = i + 2 < len ? digits[v & 63] : '=';
    }
    *out = '\0';
    return text;
}

void output_add_bytes(cJSON *object, const char *name, const void *bytes,
                      size_t len)
{
    char key[64], *text;

    if (units_is_text(bytes, len)) {
        text = must_have(mem_strndup(bytes, len));
        output_add_text(object, name, text);
        mem_free(text);
    } else {
        (void)must_have(cJSON_AddNullToObject(object, name));
    }
    (void)snprintf(key, sizeof key, "%s_base64", name);
    text = base64(bytes, len);
    output_add_text(object, key, text);
    mem_free(text);
}

void output_add_text(cJSON *object, const char *name, const char *text)
{
    (void)must_have(cJSON_AddStringToObject(object, name, text));
}

void output_add_null(cJSON *object, const char *name)
{
    (void)must_have(cJSON_AddNullToObject(object, name));
}

void output_add_bool(cJSON *object, const char *name, bool on)
{
    (void)must_have(cJSON_AddBoolToObject(object, name, on));
}

cJSON *output_add_array(cJSON *object, const char *name)
{
    return must_have(cJSON_AddArrayToObject(object, name));
}

void output_append(cJSON *array, cJSON *item)
{
    (void)cJSON_AddItemToArray(array, item);
}

void output_json(cJSON *object)
{
    char *text = must_have(cJSON_PrintUnformatted(object));

    (void)puts(text);
    (void)fflush(stdout);
    cJSON_free(text);
    cJSON_Delete(object);
}

void output_end_line(char last)
{
    if (last != '\n' && isatty(STDOUT_FILENO) != 0) {
        (void)putchar('\n');
    }
}

/* --- tables ----------------------------------------------------------------
 */

struct table {
    unsigned n_columns;
    bool right[TABLE_COLUMNS_MAX];
    size_t width[TABLE_COLUMNS_MAX]; /* In characters, not bytes. */
    char **cells;
    size_t n_cells, cap;
};

/* Columns of valid UTF-8, wide characters counted as one. */
static size_t text_width(const char *text)
{
    size_t n = 0;

    for (; *text != '\0'; text++) {
        n += ((unsigned char)*text & 0xc0) != 0x80;
    }
    return n;
}

void table_text(struct table *t, const char *text)
{
    size_t column = t->n_cells % t->n_columns;
    size_t width = text_width(text);

    if (t->n_cells == t->cap) {
        t->cap = t->cap == 0 ? 64 : 2 * t->cap;
        t->cells = must_have(mem_realloc(t->cells, t->cap * sizeof *t->cells));
    }
    t->cells[t->n_cells++] = must_have(mem_strdup(text));
    if (width > t->width[column]) {
        t->width[column] = width;
    }
}

struct table *table_new(const char *columns)
{
    struct table *t = must_have(mem_calloc(1, sizeof *t));
    char name[64];

    t->n_columns = 1;
    for (const char *p = columns; *p != '\0'; p++) {
        t->n_columns += *p == '|';
    }
    assert(t->n_columns <= TABLE_COLUMNS_MAX);
    for (unsigned i = 0; i < t->n_columns; i++) {
        size_t len = strcspn(columns, "|");

        t->right[i] = columns[0] == '>';
        (void)snprintf(name, sizeof name, "%.*s", (int)len - t->right[i],
                       columns + t->right[i]);
        table_text(t, name);
        columns += len + 1;
    }
    return t;
}

void table_u64(struct table *t, uint64_t n)
{
    char text[U64_TEXT];

    (void)snprintf(text, sizeof text, "%" PRIu64, n);
    table_text(t, text);
}

void table_size(struct table *t, uint64_t bytes)
{
    char text[UNITS_SIZE_TEXT];

    table_text(t, units_format_size(bytes, text));
}

static void print_cell(const struct table *t, size_t i)
{
    unsigned column = (unsigned)(i % t->n_columns);
    bool last = column + 1 == t->n_columns;
    int pad = (int)(t->width[column] - text_width(t->cells[i]));

    if (t->right[column]) {
        printf("%*s%s", pad, "", t->cells[i]);
    } else {
        printf("%s%*s", t->cells[i], last ? 0 : pad, "");
    }
    (void)fputs(last ? "\n" : "  ", stdout);
}

void table_print(struct table *t)
{
    assert(t->n_cells % t->n_columns == 0);
    for (size_t i = 0; i < t->n_cells; i++) {
        print_cell(t, i);
        mem_free(t->cells[i]);
    }
    (void)fflush(stdout);
    mem_free(t->cells);
    mem_free(t);
}
