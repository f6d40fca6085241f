/* wire_split() with any bytes, in any number of slices: what it accepts, put
 * together again, is what it was given. */
#include "cluster/rpc/rpc_internal.h"
#include "cluster/rpc/wire.h"
#include "store/base/mem.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len);

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len)
{
    unsigned char *head, *copy;
    size_t head_len, body_len;
    struct hedge_error e;
    struct rpc_msg msg;
    bool has_body;
    size_t slices;

    if (len == 0) {
        return 0;
    }
    slices = 1u + data[0] % 16u;
    data++;
    len--;
    if (rpc_msg_from_bytes(data, len, slices, &msg) != 0) {
        return 0;
    }
    if (wire_split(&msg, &head, &head_len, &has_body, &body_len, &e) == 0) {
        copy = malloc(body_len + 1);
        if (copy == NULL || rpc_msg_left(&msg) != (has_body ? body_len : 0) ||
            memcmp(head, data, head_len) != 0) {
            abort();
        }
        rpc_msg_read(&msg, copy, body_len);
        if (memcmp(copy, data + len - body_len, body_len) != 0) {
            abort();
        }
        free(copy);
        mem_free(head);
    }
    rpc_msg_release(&msg);
    return 0;
}
