#include "cluster/foreign/line_put.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <string.h>

/* Walks over one text, from behind its opening quote; the place behind the
 * closing one, or NULL. */
static const char *skip_text(const char *p, const char *end)
{
    while (p < end && *p != '"') {
        if (*p == '\0' ||
            (*p == '\\' && end - p > 5 && memcmp(p, "\\u0000", 6) == 0)) {
            return NULL;
        }
        p += *p == '\\' ? 2 : 1;
    }
    return p < end ? p + 1 : NULL;
}

static bool is_small(const char *p, const char *end)
{
    unsigned n = 0;

    while (p < end) {
        char c = *p++;

        if (c == '"') {
            p = skip_text(p, end);
        }
        if (p == NULL || c == '\0') {
            return false;
        }
        n += c == ',' || c == '[' || c == '{';
    }
    return n <= LINE_PUT_MEMBERS_MAX;
}

static cJSON *parse_whole(const char *text, size_t len)
{
    const char *end = NULL;
    cJSON *root = cJSON_ParseWithLengthOpts(text, len, &end, 0);

    while (root != NULL && end < text + len &&
           strchr(" \t\r\n", *end) != NULL) {
        end++;
    }
    if (root != NULL && end < text + len) {
        cJSON_Delete(root);
        root = NULL;
    }
    return root;
}

int line_put_parse(const void *json, size_t len, struct line_put *out,
                   struct hedge_error *e)
{
    const char *text = json;
    const cJSON *key = NULL, *value = NULL;
    cJSON *root = NULL;

    memset(out, 0, sizeof *out);
    if (len > 0 && is_small(text, text + len)) {
        root = parse_whole(text, len);
        key = cJSON_GetObjectItem(root, "key");
        value = cJSON_GetObjectItem(root, "value");
    }
    if (!cJSON_IsString(key) || !cJSON_IsString(value)) {
        cJSON_Delete(root);
        return error_set(e, HEDGE_EINVAL,
                         "the payload is not JSON of a key and a value, or "
                         "holds a NUL");
    }
    out->key = key->valuestring;
    out->value = value->valuestring;
    out->impl = root;
    return 0;
}

void line_put_release(struct line_put *p)
{
    cJSON_Delete(p->impl);
    p->impl = NULL;
}
