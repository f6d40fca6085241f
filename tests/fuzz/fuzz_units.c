#include "store/base/units.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    char text[256], host[UNITS_HOST_MAX];
    uint64_t n;
    uint16_t port;

    size = size < sizeof text ? size : sizeof text - 1;
    memcpy(text, data, size);
    text[size] = '\0';
    (void)units_parse_size(text, &n);
    (void)units_parse_duration_ms(text, &n);
    (void)units_parse_address(text, true, host, &port);
    (void)units_check_name(text, size, NULL);
    return 0;
}
