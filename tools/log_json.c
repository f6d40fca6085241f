#include "tools/log_json.h"

#include "store/base/clock.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DEPTH_MAX 64

bool log_is_utf8(const void *data, size_t len)
{
    const unsigned char *p = data;
    size_t n;

    for (size_t i = 0; i < len; i += n) {
        n = units_utf8_len(p + i, len - i);
        if (n == 0) {
            return false;
        }
    }
    return true;
}

/* --- writing ----------------------------------------------------------------
 */

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuv"
                             "wxyz0123456789+/";

static void add_base64(struct strbuf *out, const unsigned char *p, size_t len)
{
    char piece[1024];
    size_t n = 0;

    for (size_t i = 0; i < len; i += 3) {
        size_t left = len - i;
        unsigned v = (unsigned)p[i] << 16 |
                     (left > 1 ? (unsigned)p[i + 1] << 8 : 0) |
                     (left > 2 ? p[i + 2] : 0);

        piece[n++] = digits[v >> 18];
        piece[n++] = digits[v >> 12 & 63];
        piece[n++] = left > 1 ? digits[v >> 6 & 63] : '=';
        piece[n++] = left > 2 ? digits[v & 63] : '=';
        if (n == sizeof piece) {
            strbuf_add(out, piece, n);
            n = 0;
        }
    }
    strbuf_add(out, piece, n);
}

static void add_escape(struct strbuf *out, unsigned char c)
{
    static const char plain[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    const char *at = c != 0 ? strchr(plain, c) : NULL;

    if (at != NULL) {
        strbuf_addf(out, "\\%c", names[at - plain]);
    } else {
        strbuf_addf(out, "\\u%04x", c);
    }
}

static void add_string(struct strbuf *out, const char *text, size_t len)
{
    size_t from = 0;

    strbuf_add(out, "\"", 1);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];

        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) {
            continue;
        }
        strbuf_add(out, text + from, i - from);
        add_escape(out, c);
        from = i + 1;
    }
    strbuf_add(out, text + from, len - from);
    strbuf_add(out, "\"", 1);
}

void log_json_bytes(struct strbuf *out, const char *name, const void *data,
                    size_t len)
{
    const char *text = len > 0 ? data : "";

    strbuf_addf(out, "\"%s\":", name);
    if (log_is_utf8(text, len)) {
        add_string(out, text, len);
    } else {
        strbuf_add(out, "null", 4);
    }
    strbuf_addf(out, ",\"%s_base64\":\"", name);
    add_base64(out, (const unsigned char *)text, len);
    strbuf_add(out, "\"", 1);
}

void log_json_entry(struct strbuf *out, const Hedge__V1__LogEntry *e)
{
    char when[CLOCK_RFC3339_SIZE];

    clock_format(e->timestamp_ms, when);
    strbuf_addf(out, "{\"revision\":%" PRIu64 ",\"timestamp\":\"%s\",",
                e->revision, when);
    log_json_bytes(out, "key", e->key.data, e->key.len);
    strbuf_add(out, ",", 1);
    log_json_bytes(out, "value", e->value.data, e->value.len);
    strbuf_add(out, ",\"leader\":", 10);
    add_string(out, e->leader, strlen(e->leader));
    strbuf_addf(out, ",\"token\":%" PRIu64 "}\n", e->token);
}

/* --- reading ----------------------------------------------------------------
 */

struct parser {
    const char *at, *end;
    char *why;
};

static bool fail(struct parser *p, const char *what)
{
    if (p->why[0] == '\0') {
        (void)snprintf(p->why, LOG_LINE_WHY, "%s", what);
    }
    return false;
}

static void skip_space(struct parser *p)
{
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' ||
                              *p->at == '\r' || *p->at == '\n')) {
        p->at++;
    }
}

static bool take_char(struct parser *p, char c)
{
    skip_space(p);
    if (p->at < p->end && *p->at == c) {
        p->at++;
        return true;
    }
    return false;
}

static bool take_word(struct parser *p, const char *word)
{
    size_t len = strlen(word);

    if ((size_t)(p->end - p->at) < len || memcmp(p->at, word, len) != 0) {
        return false;
    }
    p->at += len;
    return true;
}

static bool take_hex(struct parser *p, unsigned *out)
{
    *out = 0;
    for (unsigned i = 0; i < 4; i++) {
        static const char hex[] = "0123456789abcdef0123456789ABCDEF";
        const char *at =
            p->at < p->end && *p->at != '\0' ? strchr(hex, *p->at) : NULL;

        if (at == NULL) {
            return fail(p, "a \\u without four hexadecimal digits");
        }
        *out = *out << 4 | ((unsigned)(at - hex) & 15);
        p->at++;
    }
    return true;
}

static size_t put_utf8(unsigned c, unsigned char *out)
{
    if (c < 0x80) {
        out[0] = (unsigned char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (unsigned char)(0xc0 | c >> 6);
        out[1] = (unsigned char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (unsigned char)(0xe0 | c >> 12);
        out[1] = (unsigned char)(0x80 | (c >> 6 & 63));
        out[2] = (unsigned char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (unsigned char)(0xf0 | c >> 18);
    out[1] = (unsigned char)(0x80 | (c >> 12 & 63));
    out[2] = (unsigned char)(0x80 | (c >> 6 & 63));
    out[3] = (unsigned char)(0x80 | (c & 63));
    return 4;
}

/* What follows "\u". */
static bool take_unicode(struct parser *p, unsigned char *out, size_t *n)
{
    unsigned c, low;

    if (!take_hex(p, &c)) {
        return false;
    }
    if (c >= 0xd800 && c < 0xdc00) {
        if (!take_word(p, "\\u") || !take_hex(p, &low) || low < 0xdc00 ||
            low > 0xdfff) {
            p->why[0] = '\0';
            return fail(p, "half of a surrogate pair");
        }
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    } else if (c >= 0xdc00 && c < 0xe000) {
        return fail(p, "half of a surrogate pair");
    }
    *n += put_utf8(c, out + *n);
    return true;
}

static bool take_escape(struct parser *p, unsigned char *out, size_t *n)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *at;
    char c = p->at < p->end ? *p->at++ : '\0';

    if (c == 'u') {
        return take_unicode(p, out, n);
    }
    at = c != '\0' ? strchr(names, c) : NULL;
    if (at == NULL) {
        return fail(p, "an unknown escape in a string");
    }
    out[(*n)++] = (unsigned char)values[at - names];
    return true;
}

/* A string's bytes in a new buffer; never longer than it is written. */
static bool take_string(struct parser *p, unsigned char **out, size_t *len)
{
    unsigned char *bytes;
    size_t n = 0;
    bool ok = true;

    *out = NULL;
    *len = 0;
    if (!take_char(p, '"')) {
        return fail(p, "a string was expected");
    }
    bytes = mem_alloc((size_t)(p->end - p->at) + 1);
    if (bytes == NULL) {
        return fail(p, "out of memory");
    }
    while (ok && p->at < p->end && *p->at != '"') {
        unsigned char c = (unsigned char)*p->at;
        size_t step;

        if (c == '\\') {
            p->at++;
            ok = take_escape(p, bytes, &n);
            continue;
        }
        step = units_utf8_len((const unsigned char *)p->at,
                              (size_t)(p->end - p->at));
        if (step == 0 || c < 0x20) {
            ok = fail(p, step == 0 ? "it is not UTF-8"
                                   : "a control character in a string");
            break;
        }
        memcpy(bytes + n, p->at, step);
        n += step;
        p->at += step;
    }
    if (ok && p->at == p->end) {
        ok = fail(p, "a string without an end");
    }
    if (!ok) {
        mem_free(bytes);
        return false;
    }
    p->at++;
    *out = bytes;
    *len = n;
    return true;
}

static bool skip_number(struct parser *p)
{
    const char *from = p->at;

    while (p->at < p->end && *p->at != '\0' &&
           strchr("+-0123456789.eE", *p->at) != NULL) {
        p->at++;
    }
    return p->at > from || fail(p, "a value was expected");
}

static bool skip_value(struct parser *p, unsigned depth);

/* The inside of an object or array, up to its `close`. */
static bool skip_members(struct parser *p, char close, unsigned depth)
{
    unsigned char *name;
    size_t len;

    if (take_char(p, close)) {
        return true;
    }
    do {
        if (close == '}') {
            if (!take_string(p, &name, &len)) {
                return false;
            }
            mem_free(name);
            if (!take_char(p, ':')) {
                return fail(p, "a ':' was expected");
            }
        }
        if (!skip_value(p, depth + 1)) {
            return false;
        }
    } while (take_char(p, ','));
    return take_char(p, close) || fail(p, "a bracket without an end");
}

static bool skip_value(struct parser *p, unsigned depth)
{
    unsigned char *text;
    size_t len;

    skip_space(p);
    if (depth > DEPTH_MAX) {
        return fail(p, "it is nested too deep");
    }
    if (p->at < p->end && *p->at == '"') {
        if (!take_string(p, &text, &len)) {
            return false;
        }
        mem_free(text);
        return true;
    }
    if (take_char(p, '{')) {
        return skip_members(p, '}', depth);
    }
    if (take_char(p, '[')) {
        return skip_members(p, ']', depth);
    }
    return take_word(p, "null") || take_word(p, "true") ||
           take_word(p, "false") || skip_number(p);
}

static int digit(unsigned char c)
{
    const char *at = c != '\0' ? strchr(digits, c) : NULL;

    return at != NULL ? (int)(at - digits) : -1;
}

/* In place; strict: padded, and no stray bits. */
static bool decode_base64(unsigned char *p, size_t *len)
{
    size_t n = *len, out = 0;

    if (n % 4 != 0) {
        return false;
    }
    for (size_t i = 0; i < n; i += 4) {
        bool last = i + 4 == n;
        unsigned pad = last && p[i + 3] == '=' ? 1 + (p[i + 2] == '=') : 0;
        unsigned v = 0;

        for (unsigned k = 0; k < 4; k++) {
            int d = k >= 4 - pad ? 0 : digit(p[i + k]);

            if (d < 0) {
                return false;
            }
            v = v << 6 | (unsigned)d;
        }
        if (pad > 0 && (v & ((1u << 8 * pad) - 1)) != 0) {
            return false;
        }
        p[out++] = (unsigned char)(v >> 16);
        if (pad < 2) {
            p[out++] = (unsigned char)(v >> 8);
        }
        if (pad < 1) {
            p[out++] = (unsigned char)v;
        }
    }
    *len = out;
    return true;
}

/* A field that was read. */
struct field {
    const char *name;
    bool base64;
    unsigned char *data;
    size_t len;
};

static bool take_field(struct parser *p, struct field *f)
{
    if (f->data != NULL) {
        (void)snprintf(p->why, LOG_LINE_WHY, "\"%s\" stands there twice",
                       f->name);
        return false;
    }
    skip_space(p);
    if (take_word(p, "null")) {
        return true;
    }
    if (!take_string(p, &f->data, &f->len)) {
        p->why[0] = p->why[0] == '\0' ? '?' : p->why[0];
        return false;
    }
    if (f->base64 && !decode_base64(f->data, &f->len)) {
        (void)snprintf(p->why, LOG_LINE_WHY, "\"%s\" is not base64", f->name);
        return false;
    }
    return true;
}

static bool take_member(struct parser *p, struct field *fields, unsigned n)
{
    unsigned char *name;
    size_t len;
    struct field *f = NULL;

    if (!take_string(p, &name, &len)) {
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        if (strlen(fields[i].name) == len &&
            memcmp(fields[i].name, name, len) == 0) {
            f = &fields[i];
        }
    }
    mem_free(name);
    if (!take_char(p, ':')) {
        return fail(p, "a ':' was expected");
    }
    return f != NULL ? take_field(p, f) : skip_value(p, 0);
}

static bool take_object(struct parser *p, struct field *fields, unsigned n)
{
    if (!take_char(p, '{')) {
        return fail(p, "it is not a JSON object");
    }
    if (!take_char(p, '}')) {
        do {
            if (!take_member(p, fields, n)) {
                return false;
            }
        } while (take_char(p, ','));
        if (!take_char(p, '}')) {
            return fail(p, "the object has no end");
        }
    }
    skip_space(p);
    return p->at == p->end || fail(p, "something stands behind the object");
}

/* One of text and base64, which are to agree. */
static bool choose(struct parser *p, struct field *text, struct field *base64,
                   unsigned char **out, size_t *len)
{
    struct field *from = base64->data != NULL ? base64 : text;

    if (text->data != NULL && base64->data != NULL &&
        (text->len != base64->len ||
         memcmp(text->data, base64->data, text->len) != 0)) {
        (void)snprintf(p->why, LOG_LINE_WHY, "\"%s\" and \"%s\" differ",
                       text->name, base64->name);
        return false;
    }
    if (from->data == NULL) {
        (void)snprintf(p->why, LOG_LINE_WHY, "it has neither \"%s\" nor \"%s\"",
                       text->name, base64->name);
        return false;
    }
    *out = from->data;
    *len = from->len;
    from->data = NULL;
    return true;
}

bool log_line_parse(const char *text, size_t len, struct log_line *out,
                    char why[LOG_LINE_WHY])
{
    struct field fields[] = {{.name = "key"},
                             {.name = "key_base64", .base64 = true},
                             {.name = "value"},
                             {.name = "value_base64", .base64 = true}};
    struct parser p = {.at = text, .end = text + len, .why = why};
    bool ok;

    memset(out, 0, sizeof *out);
    why[0] = '\0';
    ok = take_object(&p, fields, 4) &&
         choose(&p, &fields[0], &fields[1], &out->key, &out->key_len) &&
         choose(&p, &fields[2], &fields[3], &out->value, &out->value_len);
    for (unsigned i = 0; i < 4; i++) {
        mem_free(fields[i].data);
    }
    if (!ok) {
        log_line_release(out);
    }
    return ok;
}

void log_line_release(struct log_line *l)
{
    mem_free(l->key);
    mem_free(l->value);
    memset(l, 0, sizeof *l);
}
