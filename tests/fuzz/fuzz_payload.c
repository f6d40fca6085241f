/* Messages of the reference's gRPC service: what was parsed is packed and
 * parsed again, and is the same. */
#include "cluster/messages/payload.h"
#include "store/base/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct payload p, again;
    struct hedge_message m = {0};
    unsigned char *bytes;
    size_t len;

    if (payload_parse(data, size, &p) != 0) {
        return 0;
    }
    check(p.n_meta <= PAYLOAD_META_MAX && p.n_text <= PAYLOAD_TEXT_MAX);
    m.data = p.data;
    m.len = p.len;
    m.meta = p.meta;
    m.n_meta = p.n_meta;
    check(payload_pack(&m, &bytes, &len) == 0);
    check(payload_parse(bytes, len, &again) == 0);
    check(again.n_meta == p.n_meta && again.len == p.len);
    check(memcmp(again.data, p.data, p.len) == 0);
    for (size_t i = 0; i < p.n_meta; i++) {
        check(strcmp(again.meta[i].key, p.meta[i].key) == 0);
        check(strcmp(again.meta[i].value, p.meta[i].value) == 0);
    }
    mem_free(bytes);
    return 0;
}
