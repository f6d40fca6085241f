/* The JSON of the line protocol's PUT. */
#include "cluster/foreign/line_put.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct line_put p;

    if (line_put_parse(data, size, &p, NULL) == 0 &&
        strlen(p.key) + strlen(p.value) > size) {
        abort(); /* No text of JSON is shorter than what it stands for. */
    }
    line_put_release(&p);
    return 0;
}
