/* What travels between the peer tier and the block service, as it is taken
 * apart on arrival: fields and body, the block's header, the body's length. The
 * first byte says which message it is to be and into how many slices it is
 * cut. */
#include "cluster/rpc/rpc_internal.h"
#include "cluster/rpc/wire.h"
#include "proto/hedge.pb-c.h"
#include "store/base/mem.h"
#include "store/block.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK BLOCK_SIZE_MIN

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void put_request(const unsigned char *head, size_t len,
                        struct rpc_msg *m, size_t body_len)
{
    Hedge__V1__PutRequest *r = hedge__v1__put_request__unpack(NULL, len, head);
    unsigned char block[BLOCK_HEADER_SIZE];
    struct block_header h;

    if (r != NULL && body_len >= sizeof block) {
        rpc_msg_read(m, block, sizeof block);
        if (block_header_decode(block, body_len, BLOCK, &h, NULL) == 0) {
            check(h.stored_len <= BLOCK - BLOCK_HEADER_SIZE);
        }
    }
    hedge__v1__put_request__free_unpacked(r, NULL);
}

static void get_reply(const unsigned char *head, size_t len, struct rpc_msg *m,
                      size_t body_len)
{
    static unsigned char block[BLOCK];
    Hedge__V1__GetReply *r = hedge__v1__get_reply__unpack(NULL, len, head);

    if (r != NULL && body_len <= sizeof block) {
        rpc_msg_read(m, block, body_len);
        check(rpc_msg_left(m) == 0);
    }
    hedge__v1__get_reply__free_unpacked(r, NULL);
}

static void small_messages(const uint8_t *data, size_t size)
{
    hedge__v1__put_reply__free_unpacked(
        hedge__v1__put_reply__unpack(NULL, size, data), NULL);
    hedge__v1__get_request__free_unpacked(
        hedge__v1__get_request__unpack(NULL, size, data), NULL);
    hedge__v1__drop_request__free_unpacked(
        hedge__v1__drop_request__unpack(NULL, size, data), NULL);
    hedge__v1__renew_request__free_unpacked(
        hedge__v1__renew_request__unpack(NULL, size, data), NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t head_len, body_len;
    unsigned char *head;
    struct rpc_msg m;
    bool has_body;

    if (size < 2) {
        return 0;
    }
    small_messages(data + 1, size - 1);
    if (rpc_msg_from_bytes(data + 1, size - 1, 1 + data[0] / 2 % 8, &m) != 0) {
        return 0;
    }
    if (wire_split(&m, &head, &head_len, &has_body, &body_len, NULL) == 0) {
        check(rpc_msg_left(&m) == body_len);
        if (data[0] % 2 == 0) {
            put_request(head, head_len, &m, body_len);
        } else {
            get_reply(head, head_len, &m, body_len);
        }
        mem_free(head);
    }
    rpc_msg_release(&m);
    return 0;
}
