/* Put requests, taken apart where they lie: puts within the bytes given, and
 * no more of them than may be. */
#include "cluster/log/kv.h"
#include "cluster/log/log_request.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void check_within(const uint8_t *data, size_t size, const void *p,
                         size_t len)
{
    const uint8_t *at = p;

    check(len == 0 || (at >= data && len <= (size_t)(data + size - at)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct engine_put puts[KV_BATCH_PUTS];
    struct log_request r;

    if (log_request_parse(data, size, &r, NULL) != 0) {
        return 0;
    }
    check(r.n_puts > 0 && r.n_puts <= KV_BATCH_PUTS);
    if (log_request_puts(data, size, &r, puts, NULL) != 0) {
        return 0;
    }
    for (size_t i = 0; i < r.n_puts; i++) {
        check_within(data, size, puts[i].key, puts[i].key_len);
        check_within(data, size, puts[i].value, puts[i].value_len);
    }
    return 0;
}
