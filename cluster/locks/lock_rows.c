#include "cluster/locks/lock_rows.h"

#include "cluster/pb.h"
#include "proto/locks.pb-c.h"
#include "store/base/mem.h"
#include "store/base/units.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ROW_VERSION 1u
#define ID_DIGITS ((size_t)16)

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

int lock_row_put(const struct semaphore_row *row, struct engine_put *out)
{
    Hedge__V1__LockRow m = HEDGE__V1__LOCK_ROW__INIT;
    size_t size =
        sizeof LOCK_ROWS_PREFIX + strlen(row->name) + 1 + 2 * ID_DIGITS;
    struct pb_buf buf = {0};
    char *key;

    memset(out, 0, sizeof *out);
    key = mem_alloc(size);
    if (key == NULL) {
        return HEDGE_ENOMEM;
    }
    (void)snprintf(key, size, LOCK_ROWS_PREFIX "%s/%016" PRIx64 "%016" PRIx64,
                   row->name, row->session, row->request);
    m.version = ROW_VERSION;
    m.limit = row->limit;
    m.permits = row->permits;
    m.lease_ms = row->lease_ms;
    m.ttl_ms = row->ttl_ms;
    m.token = row->token;
    m.revoked = row->revoked;
    m.holder = unconst(row->holder);
    if (!row->deleted && pb_pack(&m.base, &buf) != 0) {
        mem_free(key);
        return HEDGE_ENOMEM;
    }
    out->key = key;
    out->key_len = size - 1;
    out->value = buf.data;
    out->value_len = buf.len;
    /* One version of each: what it was before is nobody's business. */
    out->flags = row->deleted ? ENGINE_DELETE : ENGINE_REPLACE;
    return 0;
}

void lock_row_release(struct engine_put *put)
{
    union {
        const void *in;
        void *out;
    } key = {.in = put->key}, value = {.in = put->value};

    mem_free(key.out);
    mem_free(value.out);
}

static bool parse_id(const char *digits, uint64_t *out)
{
    *out = 0;
    for (size_t i = 0; i < ID_DIGITS; i++) {
        char c = digits[i];
        unsigned d;

        if (c >= '0' && c <= '9') {
            d = (unsigned)(c - '0');
        } else if (c >= 'a' && c <= 'f') {
            d = (unsigned)(c - 'a') + 10;
        } else {
            return false;
        }
        *out = *out << 4 | d;
    }
    return *out != 0;
}

static bool parse_key(const char *key, size_t len, struct semaphore_row *out)
{
    const size_t prefix = sizeof LOCK_ROWS_PREFIX - 1;
    const size_t tail = 1 + 2 * ID_DIGITS;
    size_t name;

    if (len <= prefix + tail || memcmp(key, LOCK_ROWS_PREFIX, prefix) != 0) {
        return false;
    }
    name = len - prefix - tail;
    if (name >= sizeof out->name || key[prefix + name] != '/' ||
        units_check_name(key + prefix, name, NULL) != 0) {
        return false;
    }
    memcpy(out->name, key + prefix, name);
    out->name[name] = '\0';
    key += prefix + name + 1;
    return parse_id(key, &out->session) &&
           parse_id(key + ID_DIGITS, &out->request);
}

static bool parse_value(const Hedge__V1__LockRow *m, struct semaphore_row *out)
{
    out->limit = m->limit;
    out->permits = m->permits;
    out->lease_ms = m->lease_ms;
    out->ttl_ms = m->ttl_ms;
    out->token = m->token;
    out->revoked = m->revoked;
    return m->version == ROW_VERSION && m->limit >= 1 &&
           m->limit <= SEMAPHORE_LIMIT_MAX && m->permits >= 1 &&
           m->permits <= m->limit && m->lease_ms >= SEMAPHORE_LEASE_MIN_MS &&
           m->lease_ms <= SEMAPHORE_LEASE_MAX_MS &&
           m->ttl_ms <= SEMAPHORE_TTL_MAX_MS &&
           strlen(m->holder) < sizeof out->holder &&
           snprintf(out->holder, sizeof out->holder, "%s", m->holder) >= 0;
}

int lock_row_parse(const void *key, size_t key_len, const void *value,
                   size_t value_len, uint64_t revision,
                   struct semaphore_row *out)
{
    Hedge__V1__LockRow *m;
    bool good;

    memset(out, 0, sizeof *out);
    if (!parse_key(key, key_len, out)) {
        return HEDGE_ECORRUPT;
    }
    m = pb_unpack(&hedge__v1__lock_row__descriptor, value, value_len);
    good = m != NULL && parse_value(m, out);
    pb_free(m);
    if (out->token == 0) {
        out->token = revision;
    }
    return good && out->token != 0 ? 0 : HEDGE_ECORRUPT;
}
