#include "cluster/foreign/descriptors.h"

#include "tests/lib/check.h"

#include <string.h>

static void by_symbol(void **state)
{
    static const char *const symbols[] = {
        "hedge.v1.Store",        "hedge.v1.Store.Write",
        "hedge.v1.WriteRequest", "hedge.v1.WriteRequest.block",
        "hedge.v1.Compression",  "hedge.v1.Compression.COMPRESSION_ZSTD",
    };
    struct descriptor_file file, named;

    (void)state;
    assert_true(descriptors_file("hedge.proto", &named));
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        assert_true(descriptors_file_of(symbols[i], &file));
        assert_ptr_equal(file.data, named.data);
        assert_int_equal(file.len, named.len);
    }
    assert_true(descriptors_file_of(
        "grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING", &file));
    assert_true(file.data != named.data);
}

static void not_there(void **state)
{
    static const char *const symbols[] = {
        "",      ".",         "hedge",           "hedge.v1",
        "Store", "hedge.v1.", "hedge.v1.Stor",   "hedge.v1.Storee",
        "x",     "hedge.v2",  "hedge.v1.Store.", "hedge.v1.Store.Write.x",
    };
    struct descriptor_file file;

    (void)state;
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        assert_false(descriptors_file_of(symbols[i], &file));
    }
    assert_false(descriptors_file("", &file));
    assert_false(descriptors_file("hedge.prot", &file));
    assert_true(descriptors_has_message("hedge.v1.Member"));
    assert_false(descriptors_has_message("hedge.v1.Store"));
    assert_true(descriptors_has_service("hedge.v1.Store"));
    assert_false(descriptors_has_service("hedge.v1.Member"));
    assert_false(descriptors_has_service("hedge.v1.Store2"));
}

static void lists(void **state)
{
    char name[DESCRIPTORS_NAME_MAX];
    struct descriptor_file file, files[DESCRIPTORS_FILES_MAX];
    size_t services = 0, methods = 0;

    (void)state;
    while (descriptors_service(services, name)) {
        assert_true(descriptors_has_service(name));
        assert_true(descriptors_file_of(name, &file));
        assert_int_equal(descriptors_closure(&file, files), 1);
        assert_ptr_equal(files[0].data, file.data);
        services++;
    }
    while (descriptors_method(methods, name)) {
        assert_int_equal(name[0], '/');
        *strrchr(name, '/') = '.';
        assert_true(descriptors_file_of(name + 1, &file));
        methods++;
    }
    assert_true(services >= 6 && methods > services);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_symbol),
        cmocka_unit_test(not_there),
        cmocka_unit_test(lists),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
