/* descriptors.h - the schemas of proto/ as they were when this was built: which
 * file defines what, for server reflection and for the list of services.
 *
 * Ownership: everything points into bytes that are part of the program.
 * Threads:   any.
 * Errors:    false or NULL: there is no such thing.
 * Units:     bytes.
 * Limits:    a file imports DESCRIPTORS_FILES_MAX others at most, all told. */
#ifndef CLUSTER_DESCRIPTORS_H
#define CLUSTER_DESCRIPTORS_H

#include <stdbool.h>
#include <stddef.h>

#define DESCRIPTORS_FILES_MAX 16
#define DESCRIPTORS_NAME_MAX 256

/* A serialized FileDescriptorProto. */
struct descriptor_file {
    const unsigned char *data;
    size_t len;
};

/* By its name, "hedge.proto". */
bool descriptors_file(const char *name, struct descriptor_file *out);
/* The file that defines a service, method, message, field, enum or value, by
 * its full name: "hedge.v1.Store", "hedge.v1.Store.Read". */
bool descriptors_file_of(const char *symbol, struct descriptor_file *out);
/* Is it the full name of a message? */
bool descriptors_has_message(const char *name);
/* The file, then all it imports, each once; how many they are. */
size_t descriptors_closure(const struct descriptor_file *file,
                           struct descriptor_file out[DESCRIPTORS_FILES_MAX]);
/* The full name of the i-th service, in the order of the files. */
bool descriptors_service(size_t i, char out[DESCRIPTORS_NAME_MAX]);
bool descriptors_has_service(const char *name);
/* The i-th method of them all as it is called: "/hedge.v1.Store/Read". */
bool descriptors_method(size_t i, char out[DESCRIPTORS_NAME_MAX]);

#endif
