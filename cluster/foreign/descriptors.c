#include "cluster/foreign/descriptors.h"

#include "cluster/fields.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* A FileDescriptorSet; the build makes it from proto/. */
extern const unsigned char proto_descriptors[];
extern const size_t proto_descriptors_len;

/* Field numbers of google/protobuf/descriptor.proto. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_DEPENDENCY = 3,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    ANY_NAME = 1, /* Of messages, enums, services and what is in them. */
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    ENUM_VALUE = 2,
    SERVICE_METHOD = 2,
};

static struct fields all_files(void)
{
    return fields_of(proto_descriptors, proto_descriptors_len);
}

/* The next field of this number. */
static bool next(struct fields *f, uint32_t number, struct field *out)
{
    while (fields_next(f, out) == 0) {
        if (field_is(out, number)) {
            return true;
        }
    }
    return false;
}

static struct fields within(const struct field *f)
{
    return fields_of(f->data, f->len);
}

/* The first string of this number; empty if there is none. */
static struct field text_of(const struct field *in, uint32_t number)
{
    struct fields f = within(in);
    struct field out;

    return next(&f, number, &out) ? out : (struct field){.data = in->data};
}

static bool equals(const struct field *text, const char *s, size_t len)
{
    return text->len == len && memcmp(text->data, s, len) == 0;
}

/* --- symbols --- */

/* What is left of a symbol behind "NAME.", or "" of "NAME" itself; NULL: it
 * begins otherwise. */
static const char *strip(const char *symbol, const struct field *name)
{
    if (name->len == 0 ||
        strncmp(symbol, (const char *)name->data, name->len) != 0) {
        return NULL;
    }
    symbol += name->len;
    if (symbol[0] == '.' && symbol[1] != '\0') {
        return symbol + 1;
    }
    return symbol[0] == '\0' ? symbol : NULL;
}

/* Does one of the children of this kind have the name? */
static bool has_child(const struct field *in, uint32_t kind, const char *name)
{
    struct fields f = within(in);
    struct field child;

    while (next(&f, kind, &child)) {
        struct field n = text_of(&child, ANY_NAME);

        if (equals(&n, name, strlen(name))) {
            return true;
        }
    }
    return false;
}

/* A kind of definition and what may be in it. */
struct kind {
    uint32_t number;  /* In its file. */
    uint32_t members; /* Of it. */
};
static const struct kind kinds[] = {{FILE_MESSAGE, MESSAGE_FIELD},
                                    {FILE_ENUM, ENUM_VALUE},
                                    {FILE_SERVICE, SERVICE_METHOD}};
static const struct kind nested_kinds[] = {{MESSAGE_NESTED, MESSAGE_FIELD},
                                           {MESSAGE_ENUM, ENUM_VALUE}};

static bool defines(const struct field *in, const struct kind *table, size_t n,
                    const char *symbol);

static bool definition_has(const struct field *d, const struct kind *kind,
                           const char *rest)
{
    bool is_message =
        kind->members == MESSAGE_FIELD &&
        (kind->number == FILE_MESSAGE || kind->number == MESSAGE_NESTED);

    return rest[0] == '\0' || has_child(d, kind->members, rest) ||
           (is_message &&
            defines(d, nested_kinds,
                    sizeof nested_kinds / sizeof nested_kinds[0], rest));
}

static bool defines(const struct field *in, const struct kind *table, size_t n,
                    const char *symbol)
{
    for (size_t i = 0; i < n; i++) {
        struct fields f = within(in);
        struct field d;

        while (next(&f, table[i].number, &d)) {
            struct field name = text_of(&d, ANY_NAME);
            const char *rest = strip(symbol, &name);

            if (rest != NULL && definition_has(&d, &table[i], rest)) {
                return true;
            }
        }
    }
    return false;
}

/* What is left of the symbol without the file's package; NULL: another's. */
static const char *in_package(const struct field *file, const char *symbol)
{
    struct field package = text_of(file, FILE_PACKAGE);

    return package.len == 0 ? symbol : strip(symbol, &package);
}

static bool find_file(const char *symbol, const struct kind *table, size_t n,
                      struct descriptor_file *out)
{
    struct fields set = all_files();
    struct field file;

    while (next(&set, SET_FILE, &file)) {
        const char *rest = in_package(&file, symbol);

        if (rest != NULL && rest[0] != '\0' && defines(&file, table, n, rest)) {
            *out = (struct descriptor_file){file.data, file.len};
            return true;
        }
    }
    return false;
}

bool descriptors_file_of(const char *symbol, struct descriptor_file *out)
{
    return find_file(symbol, kinds, sizeof kinds / sizeof kinds[0], out);
}

bool descriptors_has_message(const char *name)
{
    struct kind message = {FILE_MESSAGE, MESSAGE_NESTED};
    struct descriptor_file unused;

    return find_file(name, &message, 1, &unused);
}

/* --- files --- */

static bool find_by_name(const char *name, size_t len,
                         struct descriptor_file *out)
{
    struct fields set = all_files();
    struct field file;

    while (next(&set, SET_FILE, &file)) {
        struct field n = text_of(&file, FILE_NAME);

        if (equals(&n, name, len)) {
            *out = (struct descriptor_file){file.data, file.len};
            return true;
        }
    }
    return false;
}

bool descriptors_file(const char *name, struct descriptor_file *out)
{
    return find_by_name(name, strlen(name), out);
}

static bool is_among(const struct descriptor_file *files, size_t n,
                     const struct descriptor_file *one)
{
    for (size_t i = 0; i < n; i++) {
        if (files[i].data == one->data) {
            return true;
        }
    }
    return false;
}

size_t descriptors_closure(const struct descriptor_file *file,
                           struct descriptor_file out[DESCRIPTORS_FILES_MAX])
{
    size_t n = 1;

    out[0] = *file;
    for (size_t i = 0; i < n; i++) {
        struct fields f = fields_of(out[i].data, out[i].len);
        struct descriptor_file import;
        struct field d;

        while (n < DESCRIPTORS_FILES_MAX && next(&f, FILE_DEPENDENCY, &d)) {
            if (find_by_name((const char *)d.data, d.len, &import) &&
                !is_among(out, n, &import)) {
                out[n++] = import;
            }
        }
    }
    return n;
}

/* --- services --- */

/* Service by service, method by method; `method` NULL: services only. */
struct walk {
    struct fields set, file, service;
    struct field package, name;
};

static bool next_service(struct walk *w)
{
    struct field file, service;

    while (!next(&w->file, FILE_SERVICE, &service)) {
        if (!next(&w->set, SET_FILE, &file)) {
            return false;
        }
        w->file = within(&file);
        w->package = text_of(&file, FILE_PACKAGE);
    }
    w->service = within(&service);
    w->name = text_of(&service, ANY_NAME);
    return true;
}

static void full_name(const struct walk *w, const char *before,
                      const struct field *method,
                      char out[DESCRIPTORS_NAME_MAX])
{
    int n = snprintf(out, DESCRIPTORS_NAME_MAX, "%s%.*s%s%.*s%s%.*s", before,
                     (int)w->package.len, w->package.data,
                     w->package.len > 0 ? "." : "", (int)w->name.len,
                     w->name.data, method != NULL ? "/" : "",
                     method != NULL ? (int)method->len : 0,
                     method != NULL ? method->data : w->name.data);

    assert(n > 0 && n < DESCRIPTORS_NAME_MAX);
}

bool descriptors_service(size_t i, char out[DESCRIPTORS_NAME_MAX])
{
    struct walk w = {.set = all_files()};

    w.file = fields_of("", 0);
    do {
        if (!next_service(&w)) {
            return false;
        }
    } while (i-- > 0);
    full_name(&w, "", NULL, out);
    return true;
}

bool descriptors_has_service(const char *name)
{
    char one[DESCRIPTORS_NAME_MAX];

    for (size_t i = 0; descriptors_service(i, one); i++) {
        if (strcmp(one, name) == 0) {
            return true;
        }
    }
    return false;
}

bool descriptors_method(size_t i, char out[DESCRIPTORS_NAME_MAX])
{
    struct walk w = {.set = all_files()};

    w.file = fields_of("", 0);
    while (next_service(&w)) {
        struct field d, name;

        while (next(&w.service, SERVICE_METHOD, &d)) {
            if (i-- == 0) {
                name = text_of(&d, ANY_NAME);
                full_name(&w, "/", &name, out);
                return true;
            }
        }
    }
    return false;
}
