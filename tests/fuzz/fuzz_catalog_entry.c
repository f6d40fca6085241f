/* The catalog's rows: what decodes must encode to the same bytes. */
#include "store/catalog/catalog_internal.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned char row[CATALOG_ENTRY_MAX], key[CATALOG_KEY_SIZE];
    struct catalog_entry entry;
    struct block_id id;

    if (catalog_entry_decode(data, size, &entry) == 0) {
        assert(entry.n_copies <= CATALOG_COPIES_MAX);
        assert(catalog_entry_encode(&entry, row) == size);
        assert(memcmp(row, data, size) == 0);
    }
    if (catalog_key_decode(data, size, &id) == 0) {
        catalog_key_encode(&id, key);
        assert(size == sizeof key && memcmp(key, data, size) == 0);
    }
    return 0;
}
