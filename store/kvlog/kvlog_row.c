#include "store/kvlog/kvlog_internal.h"

#include "store/base/bytes.h"
#include "store/base/hash.h"

#include <assert.h>
#include <string.h>

static_assert(ROW_TOKEN + 8 == ROW_HEAD, "the row's layout");
static_assert(KVLOG_ROW_KEY_MAX <= 511, "LMDB's longest key");

#define TERMINATOR 2
#define VALUE_SUM 8
/* Makes a row that has got to another place a damaged one. */
#define PLACE 0x9e3779b97f4a7c15u

bool kvlog_is_reserved(const void *key, size_t len)
{
    static const char prefix[] = KVLOG_RESERVED_PREFIX;
    const unsigned char *p = key;

    return (len > 0 && p[0] == 0) ||
           (len >= sizeof prefix - 1 &&
            memcmp(key, prefix, sizeof prefix - 1) == 0);
}

/* --- keys -------------------------------------------------------------------
 */

size_t kvlog_key_cost(const void *key, size_t len)
{
    const unsigned char *p = key;
    size_t cost = len;

    for (size_t i = 0; i < len; i++) {
        cost += p[i] == 0;
    }
    return cost;
}

size_t kvlog_escape(const void *key, size_t len, unsigned char *out)
{
    const unsigned char *p = key;
    size_t n = 0;

    assert(kvlog_key_cost(key, len) <= KVLOG_KEY_MAX);
    if (len > 0 && memchr(key, 0, len) == NULL) {
        memcpy(out, key, len);
        return len;
    }
    for (size_t i = 0; i < len; i++) {
        out[n++] = p[i];
        if (p[i] == 0) {
            out[n++] = 0xff;
        }
    }
    return n;
}

size_t kvlog_index_key(const void *key, size_t len, uint64_t revision,
                       unsigned char out[KVLOG_ROW_KEY_MAX])
{
    size_t n = kvlog_escape(key, len, out);

    memset(out + n, 0, TERMINATOR);
    put_be64(out + n + TERMINATOR, revision);
    return n + TERMINATOR + 8;
}

size_t kvlog_index_split(const void *row_key, size_t len, uint64_t *revision)
{
    const unsigned char *p = row_key;

    if (len < 1 + TERMINATOR + 8 || len > KVLOG_ROW_KEY_MAX ||
        p[len - 9] != 0 || p[len - 10] != 0) {
        return 0;
    }
    *revision = get_be64(p + len - 8);
    return len - 8;
}

/* --- rows of the index ------------------------------------------------------
 */

static uint64_t index_sum(const void *row_key, size_t len, uint64_t hidden_by)
{
    unsigned char copy[KVLOG_ROW_KEY_MAX + 8];

    assert(len <= KVLOG_ROW_KEY_MAX);
    memcpy(copy, row_key, len);
    put_le64(copy + len, hidden_by);
    return hash64(copy, len + 8);
}

void kvlog_index_value(const void *row_key, size_t len, uint64_t hidden_by,
                       unsigned char out[INDEX_VALUE])
{
    put_le64(out, hidden_by);
    put_le64(out + 8, index_sum(row_key, len, hidden_by));
}

bool kvlog_index_decode(const MDB_val *key, const MDB_val *val,
                        uint64_t *hidden_by)
{
    uint64_t revision;

    if (val->mv_size != INDEX_VALUE ||
        kvlog_index_split(key->mv_data, key->mv_size, &revision) == 0) {
        return false;
    }
    *hidden_by = get_le64(val->mv_data);
    return get_le64((const char *)val->mv_data + 8) ==
           index_sum(key->mv_data, key->mv_size, *hidden_by);
}

/* --- rows of the log --------------------------------------------------------
 */

size_t kvlog_row_size(const struct kvlog_put *p)
{
    return ROW_HEAD + p->key_len + p->value_len +
           (p->value_len > KVLOG_APART ? VALUE_SUM : 0);
}

/* What the first sum is over, from ROW_FORMAT on. */
static size_t summed(size_t key_len, size_t value_len, bool apart)
{
    return ROW_HEAD - ROW_FORMAT + key_len + (apart ? 0 : value_len);
}

void kvlog_row_encode(const struct kvlog_put *p, uint64_t token,
                      unsigned char *out)
{
    unsigned char *value = out + ROW_HEAD + p->key_len;
    bool apart = p->value_len > KVLOG_APART;

    assert(p->key_len > 0 && p->key_len <= KVLOG_KEY_MAX);
    assert(p->value_len <= KVLOG_VALUE_MAX);
    out[ROW_FORMAT] = ROW_FORMAT_1;
    out[ROW_FLAGS] = apart ? ROW_APART : 0;
    put_le16(out + ROW_KEY_LEN, (uint16_t)p->key_len);
    put_le32(out + ROW_VALUE_LEN, (uint32_t)p->value_len);
    put_le64(out + ROW_TIMESTAMP, p->timestamp_ms);
    put_le64(out + ROW_TOKEN, token);
    memcpy(out + ROW_HEAD, p->key, p->key_len);
    if (p->value_len > 0) {
        memcpy(value, p->value, p->value_len);
    }
    if (apart) {
        put_le64(value + p->value_len, hash64(value, p->value_len));
    }
    put_le64(out + ROW_SUM,
             hash64(out + ROW_FORMAT, summed(p->key_len, p->value_len, apart)) +
                 p->revision * PLACE);
}

bool kvlog_row_decode(const void *data, size_t size, uint64_t revision,
                      struct kvlog_row *out)
{
    const unsigned char *p = data;

    if (size < ROW_HEAD || p[ROW_FORMAT] != ROW_FORMAT_1) {
        return false;
    }
    out->key_len = get_le16(p + ROW_KEY_LEN);
    out->value_len = get_le32(p + ROW_VALUE_LEN);
    out->apart = out->value_len > KVLOG_APART;
    if (out->key_len == 0 || out->key_len > KVLOG_KEY_MAX ||
        out->value_len > KVLOG_VALUE_MAX ||
        p[ROW_FLAGS] != (out->apart ? ROW_APART : 0) ||
        size != ROW_HEAD + out->key_len + out->value_len +
                    (out->apart ? VALUE_SUM : 0) ||
        get_le64(p + ROW_SUM) !=
            hash64(p + ROW_FORMAT,
                   summed(out->key_len, out->value_len, out->apart)) +
                revision * PLACE) {
        return false;
    }
    out->key = p + ROW_HEAD;
    out->value = out->key + out->key_len;
    out->revision = revision;
    out->timestamp_ms = get_le64(p + ROW_TIMESTAMP);
    out->token = get_le64(p + ROW_TOKEN);
    return true;
}

bool kvlog_row_check(const struct kvlog_row *row)
{
    return !row->apart || get_le64(row->value + row->value_len) ==
                              hash64(row->value, row->value_len);
}

size_t kvlog_leader_encode(const char *name,
                           unsigned char out[LEADER_SUM + KVLOG_LEADER_MAX + 1])
{
    size_t len = strlen(name) + 1;

    assert(len <= KVLOG_LEADER_MAX + 1);
    memcpy(out + LEADER_SUM, name, len);
    put_le64(out, hash64(out + LEADER_SUM, len));
    return LEADER_SUM + len;
}

const char *kvlog_leader_decode(const void *data, size_t size)
{
    const char *p = data;

    if (size <= LEADER_SUM || size > LEADER_SUM + KVLOG_LEADER_MAX + 1 ||
        p[size - 1] != '\0' ||
        get_le64(p) != hash64(p + LEADER_SUM, size - LEADER_SUM)) {
        return NULL;
    }
    return p + LEADER_SUM;
}

/* --- the small ones ---------------------------------------------------------
 */

void kvlog_state_encode(const struct kvlog_state *s,
                        unsigned char out[STATE_VALUE])
{
    put_le64(out, s->revision);
    put_le64(out + 8, s->timestamp_ms);
    put_le64(out + 16, s->floor);
    put_le64(out + 24, s->term);
    put_le64(out + 32, s->purged);
    put_le64(out + 40, s->indexed);
    put_le64(out + 48, s->tail_bytes);
    put_le64(out + 56, s->floor_ms);
    put_le64(out + 64, hash64(out, 64));
}

bool kvlog_state_decode(const void *data, size_t size, struct kvlog_state *out)
{
    const unsigned char *p = data;

    if ((size != STATE_VALUE && size != STATE_VALUE_7 &&
         size != STATE_VALUE_5) ||
        get_le64(p + size - 8) != hash64(p, size - 8)) {
        return false;
    }
    out->revision = get_le64(p);
    out->timestamp_ms = get_le64(p + 8);
    out->floor = get_le64(p + 16);
    out->term = get_le64(p + 24);
    out->purged = get_le64(p + 32);
    out->indexed = size > STATE_VALUE_5 ? get_le64(p + 40) : out->revision;
    out->tail_bytes = size > STATE_VALUE_5 ? get_le64(p + 48) : 0;
    out->floor_ms = size > STATE_VALUE_7 ? get_le64(p + 56)
                    : out->floor > 0     ? UINT64_MAX /* Unknown. */
                                         : 0;
    return out->indexed <= out->revision;
}

void kvlog_age_encode(const struct kvlog_age *a, unsigned char out[AGE_VALUE])
{
    put_le64(out, a->age_ms);
    put_le64(out + 8, a->boot_ms);
    put_le64(out + 16, a->boot);
    put_le64(out + 24, hash64(out, 24));
}

bool kvlog_age_decode(const void *data, size_t size, struct kvlog_age *out)
{
    const unsigned char *p = data;

    if (size != AGE_VALUE || get_le64(p + 24) != hash64(p, 24)) {
        return false;
    }
    out->age_ms = get_le64(p);
    out->boot_ms = get_le64(p + 8);
    out->boot = get_le64(p + 16);
    return true;
}

static uint64_t request_sum(const unsigned char *id, const unsigned char *value)
{
    unsigned char copy[KVLOG_REQUEST_SIZE + 16];

    memcpy(copy, id, KVLOG_REQUEST_SIZE);
    memcpy(copy + KVLOG_REQUEST_SIZE, value, 16);
    return hash64(copy, sizeof copy);
}

void kvlog_request_encode(const unsigned char *id, uint64_t revision,
                          uint64_t timestamp_ms,
                          unsigned char out[REQUEST_VALUE])
{
    put_le64(out, revision);
    put_le64(out + 8, timestamp_ms);
    put_le64(out + 16, request_sum(id, out));
}

bool kvlog_request_decode(const unsigned char *id, const MDB_val *val,
                          uint64_t *revision, uint64_t *timestamp_ms)
{
    const unsigned char *p = val->mv_data;

    if (val->mv_size != REQUEST_VALUE ||
        get_le64(p + 16) != request_sum(id, p)) {
        return false;
    }
    *revision = get_le64(p);
    *timestamp_ms = get_le64(p + 8);
    return true;
}
