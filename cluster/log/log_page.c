#include "cluster/log/log_page.h"

#include "store/base/mem.h"

#include <assert.h>
#include <string.h>

#define FIRST_CAP ((size_t)4 << 10)
#define VARINT_MAX 10
#define WIRE_BYTES 2
#define REST_HEAD ((size_t)2 + (size_t)2 * VARINT_MAX)

/* Field numbers of log.proto. */
enum {
    PAGE_ENTRIES = 1,
    PAGE_RESUME = 2,
    PAGE_PARTIAL = 3,
    PAGE_REST = 4,
    ENTRY_REVISION = 1,
    ENTRY_TIMESTAMP = 2,
    ENTRY_TOKEN = 3,
    ENTRY_KEY = 4,
    ENTRY_VALUE = 5,
    ENTRY_LEADER = 6
};

static bool grow(unsigned char **data, size_t *cap, size_t need)
{
    size_t want = *cap == 0 ? FIRST_CAP : *cap;
    unsigned char *more;

    while (want < need) {
        want *= 2;
    }
    if (want == *cap) {
        return true;
    }
    more = mem_realloc(*data, want);
    if (more == NULL) {
        return false;
    }
    *data = more;
    *cap = want;
    return true;
}

/* --- the wire ---------------------------------------------------------------
 */

void log_encoder_init(struct log_encoder *p, size_t max_bytes, size_t cut_bytes)
{
    memset(p, 0, sizeof *p);
    p->max_bytes = max_bytes;
    p->cut_bytes = cut_bytes;
}

void log_encoder_clear(struct log_encoder *p)
{
    p->len = p->n = p->rest_len = p->wants = 0;
    p->failed = p->full = false;
}

void log_encoder_release(struct log_encoder *p)
{
    mem_free(p->data);
    mem_free(p->rest);
    memset(p, 0, sizeof *p);
}

static size_t varint_size(uint64_t v)
{
    size_t n = 1;

    for (; v >= 0x80; v >>= 7) {
        n++;
    }
    return n;
}

static unsigned char *put_varint(unsigned char *at, uint64_t v)
{
    for (; v >= 0x80; v >>= 7) {
        *at++ = (unsigned char)(v | 0x80);
    }
    *at++ = (unsigned char)v;
    return at;
}

static size_t number_size(uint64_t v)
{
    return v == 0 ? 0 : 1 + varint_size(v);
}

static unsigned char *put_number(unsigned char *at, unsigned field, uint64_t v)
{
    if (v == 0) {
        return at;
    }
    *at++ = (unsigned char)(field << 3);
    return put_varint(at, v);
}

static size_t bytes_size(size_t len)
{
    return len == 0 ? 0 : 1 + varint_size(len) + len;
}

static unsigned char *put_bytes(unsigned char *at, unsigned field,
                                const void *data, size_t len)
{
    if (len == 0) {
        return at;
    }
    *at++ = (unsigned char)(field << 3 | WIRE_BYTES);
    at = put_varint(at, len);
    memcpy(at, data, len);
    return at + len;
}

/* Keep what a page cannot hold of a value; how much it can. */
static size_t cut(struct log_encoder *p, const struct engine_entry *e)
{
    const unsigned char *value = e->value;
    size_t rest;

    if (p->cut_bytes == 0 || e->value_len <= p->cut_bytes) {
        return e->value_len;
    }
    rest = e->value_len - p->cut_bytes;
    if (!grow(&p->rest, &p->rest_cap, rest)) {
        p->failed = true;
        return 0;
    }
    memcpy(p->rest, value + p->cut_bytes, rest);
    p->rest_len = rest;
    return p->cut_bytes;
}

static void encode(struct log_encoder *p, const struct engine_entry *e,
                   size_t value_len, size_t leader, size_t size)
{
    unsigned char *at = p->data + p->len;

    *at++ = PAGE_ENTRIES << 3 | WIRE_BYTES;
    at = put_varint(at, size);
    at = put_number(at, ENTRY_REVISION, e->revision);
    at = put_number(at, ENTRY_TIMESTAMP, e->timestamp_ms);
    at = put_number(at, ENTRY_TOKEN, e->token);
    at = put_bytes(at, ENTRY_KEY, e->key, e->key_len);
    at = put_bytes(at, ENTRY_VALUE, e->value, value_len);
    at = put_bytes(at, ENTRY_LEADER, e->leader, leader);
    if (p->rest_len > 0) {
        at = put_number(at, PAGE_PARTIAL, 1);
    }
    p->len = (size_t)(at - p->data);
    p->n++;
}

int log_encode_entry(void *ctx, const struct engine_entry *e)
{
    struct log_encoder *p = ctx;
    size_t leader = strlen(e->leader), size, need, value_len;
    bool large = p->cut_bytes != 0 && e->value_len > p->cut_bytes;

    if (p->n > 0 && large) {
        p->full = true;
        return ENGINE_REFUSE;
    }
    if (large && e->value_len > p->room) {
        p->wants = e->value_len;
        return ENGINE_REFUSE;
    }
    value_len = large ? p->cut_bytes : e->value_len;
    size = number_size(e->revision) + number_size(e->timestamp_ms) +
           number_size(e->token) + bytes_size(e->key_len) +
           bytes_size(value_len) + bytes_size(leader);
    need = p->len + 1 + VARINT_MAX + size + 2;
    if (p->n > 0 && need > p->max_bytes) {
        p->full = true;
        return ENGINE_REFUSE;
    }
    if (!grow(&p->data, &p->cap, need) || cut(p, e) != value_len) {
        p->failed = true;
        return ENGINE_REFUSE;
    }
    encode(p, e, value_len, leader, size);
    assert(p->len <= need);
    return large || p->len >= p->max_bytes ? ENGINE_END : ENGINE_GO_ON;
}

size_t log_encode_rest(struct log_encoder *p, size_t at, size_t piece)
{
    size_t len = p->rest_len - at < piece ? p->rest_len - at : piece;
    unsigned char *to;

    assert(at < p->rest_len);
    p->len = 0;
    if (!grow(&p->data, &p->cap, len + REST_HEAD)) {
        p->failed = true;
        return at;
    }
    to = put_bytes(p->data, PAGE_REST, p->rest + at, len);
    to = put_number(to, PAGE_PARTIAL, at + len < p->rest_len);
    p->len = (size_t)(to - p->data);
    return at + len;
}

void log_encode_resume(struct log_encoder *p, const void *data, size_t len)
{
    unsigned char *at;

    if (!grow(&p->data, &p->cap, p->len + 1 + VARINT_MAX + len)) {
        p->failed = true;
        return;
    }
    at = put_bytes(p->data + p->len, PAGE_RESUME, data, len);
    p->len = (size_t)(at - p->data);
}

/* --- arrays -----------------------------------------------------------------
 */

void log_page_init(struct log_page *p, size_t max_bytes)
{
    memset(p, 0, sizeof *p);
    p->max_bytes = max_bytes;
}

void log_page_clear(struct log_page *p)
{
    p->n = p->len = 0;
    p->failed = p->full = false;
}

/* Where the memory of entries begins; NULL for none. */
static unsigned char *head_of(struct hedge_entry *entries)
{
    return entries == NULL ? NULL : (unsigned char *)entries - LOG_PAGE_HEAD;
}

void log_page_release(struct log_page *p)
{
    mem_free(head_of(p->entries));
    mem_free(p->bytes);
    memset(p, 0, sizeof *p);
}

static bool more_entries(struct log_page *p)
{
    size_t cap = p->cap == 0 ? 16 : 2 * p->cap;
    unsigned char *more = mem_realloc(
        head_of(p->entries), LOG_PAGE_HEAD + cap * sizeof(struct hedge_entry));

    if (more == NULL) {
        return false;
    }
    p->entries = (struct hedge_entry *)(void *)(more + LOG_PAGE_HEAD);
    p->cap = cap;
    return true;
}

/* In a page pointers are offsets: the bytes may still move. */
static void *offset(size_t at)
{
    return (void *)(uintptr_t)at;
}

/* The leader's name; mostly that of the entry before. A token has one. */
static bool page_leader(struct log_page *p, const struct engine_entry *e)
{
    size_t len;

    if (p->n > 0 && p->entries[p->n - 1].token == e->token) {
        return true;
    }
    len = strlen(e->leader) + 1;
    if (!grow(&p->bytes, &p->bytes_cap, p->len + len)) {
        return false;
    }
    memcpy(p->bytes + p->len, e->leader, len);
    p->leader = p->len;
    p->len += len;
    return true;
}

static bool page_bytes(struct log_page *p, const struct engine_entry *e)
{
    const char *key = e->key;
    size_t len = e->key_len + e->value_len;
    unsigned char *at;

    if (!grow(&p->bytes, &p->bytes_cap, p->len + len)) {
        return false;
    }
    at = p->bytes + p->len;
    if (e->value == key + e->key_len) { /* As rows have them. */
        memcpy(at, key, len);
    } else {
        memcpy(at, key, e->key_len);
        if (e->value_len > 0) {
            memcpy(at + e->key_len, e->value, e->value_len);
        }
    }
    p->len += len;
    return true;
}

static size_t used(const struct log_page *p)
{
    return p->len + p->n * sizeof *p->entries;
}

int log_page_entry(void *ctx, const struct engine_entry *e)
{
    struct log_page *p = ctx;
    size_t at;

    if (p->n > 0 && used(p) + sizeof *p->entries + e->key_len + e->value_len >
                        p->max_bytes) {
        p->full = true;
        return ENGINE_REFUSE;
    }
    if ((p->n == p->cap && !more_entries(p)) || !page_leader(p, e) ||
        !page_bytes(p, e)) {
        p->failed = true;
        return ENGINE_REFUSE;
    }
    at = p->len - e->key_len - e->value_len;
    p->entries[p->n++] = (struct hedge_entry){.key = offset(at),
                                              .key_len = e->key_len,
                                              .value = offset(at + e->key_len),
                                              .value_len = e->value_len,
                                              .revision = e->revision,
                                              .timestamp_ms = e->timestamp_ms,
                                              .token = e->token,
                                              .leader = offset(p->leader)};
    return used(p) >= p->max_bytes ? ENGINE_END : ENGINE_GO_ON;
}

void log_page_at(const struct log_page *p, size_t i, struct hedge_entry *out)
{
    const char *base = (const char *)p->bytes;

    assert(i < p->n);
    *out = p->entries[i];
    out->key = base + (uintptr_t)out->key;
    out->value = base + (uintptr_t)out->value;
    out->leader = base + (uintptr_t)out->leader;
}

/* --- given away -------------------------------------------------------------
 */

/* `entries`: with their head before them. */
static struct hedge_entries *give(unsigned char *head, unsigned char *bytes,
                                  size_t n)
{
    struct hedge_entries *out = (void *)(head + sizeof bytes);

    memcpy(head, &bytes, sizeof bytes);
    out->n = n;
    return out;
}

struct hedge_entries *log_page_give(struct log_page *p)
{
    struct hedge_entries *out;

    if (p->n == 0) {
        return NULL;
    }
    for (size_t i = 0; i < p->n; i++) {
        log_page_at(p, i, &p->entries[i]);
    }
    out = give(head_of(p->entries), p->bytes, p->n);
    p->entries = NULL;
    p->bytes = NULL;
    log_page_release(p);
    return out;
}

struct hedge_entries *log_entries_one(const struct engine_entry *e)
{
    size_t leader = strlen(e->leader) + 1;
    unsigned char *head = mem_alloc(LOG_PAGE_HEAD + sizeof(struct hedge_entry) +
                                    e->key_len + e->value_len + leader);
    struct hedge_entries *out;
    unsigned char *at;

    if (head == NULL) {
        return NULL;
    }
    out = give(head, NULL, 1);
    at = (unsigned char *)&out->entry[1];
    out->entry[0] =
        (struct hedge_entry){.key = at,
                             .key_len = e->key_len,
                             .value = at + e->key_len,
                             .value_len = e->value_len,
                             .revision = e->revision,
                             .timestamp_ms = e->timestamp_ms,
                             .token = e->token,
                             .leader = (char *)at + e->key_len + e->value_len};
    memcpy(at, e->key, e->key_len);
    if (e->value_len > 0) {
        memcpy(at + e->key_len, e->value, e->value_len);
    }
    memcpy(at + e->key_len + e->value_len, e->leader, leader);
    return out;
}

void log_entries_free(struct hedge_entries *entries)
{
    unsigned char *head, *bytes;

    if (entries != NULL) {
        head = (unsigned char *)entries - sizeof bytes;
        memcpy(&bytes, head, sizeof bytes);
        mem_free(bytes);
        mem_free(head);
    }
}
