/* serve_reflection.c - the standard service grpc.reflection, v1 and v1alpha:
 * their messages are the same but for the package's name. */
#include "cluster/foreign/descriptors.h"
#include "cluster/node_internal.h"
#include "proto/reflection.pb-c.h"

#include "store/base/mem.h"

#include <string.h>

#define SEND_MS 10000
#define IDLE_MS 600000
#define STATUS_INVALID_ARGUMENT 3
#define STATUS_NOT_FOUND 5
#define SERVICES_MAX 64

typedef Grpc__Reflection__V1__ServerReflectionRequest request;
typedef Grpc__Reflection__V1__ServerReflectionResponse response;
#define ASKS(name) \
    GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name
#define ANSWERS(name) \
    GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name

static char *unconst(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};

    return u.out;
}

static int answer_error(struct rpc_stream *s, response *r, int32_t code,
                        const char *text)
{
    Grpc__Reflection__V1__ErrorResponse m =
        GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;

    m.error_code = code;
    m.error_message = unconst(text);
    r->error_response = &m;
    r->message_response_case = ANSWERS(ERROR_RESPONSE);
    return pb_send(s, &r->base, SEND_MS);
}

static int answer_file(struct rpc_stream *s, response *r, bool found,
                       const struct descriptor_file *file)
{
    Grpc__Reflection__V1__FileDescriptorResponse m =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    struct descriptor_file files[DESCRIPTORS_FILES_MAX];
    ProtobufCBinaryData bytes[DESCRIPTORS_FILES_MAX];

    if (!found) {
        return answer_error(s, r, STATUS_NOT_FOUND, "not found");
    }
    m.n_file_descriptor_proto = descriptors_closure(file, files);
    for (size_t i = 0; i < m.n_file_descriptor_proto; i++) {
        bytes[i].len = files[i].len;
        bytes[i].data = (uint8_t *)(void *)unconst((const char *)files[i].data);
    }
    m.file_descriptor_proto = bytes;
    r->file_descriptor_response = &m;
    r->message_response_case = ANSWERS(FILE_DESCRIPTOR_RESPONSE);
    return pb_send(s, &r->base, SEND_MS);
}

static int answer_services(struct rpc_stream *s, response *r)
{
    Grpc__Reflection__V1__ListServiceResponse m =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    Grpc__Reflection__V1__ServiceResponse table[SERVICES_MAX];
    Grpc__Reflection__V1__ServiceResponse *pointers[SERVICES_MAX];
    char(*names)[DESCRIPTORS_NAME_MAX] =
        mem_alloc(sizeof *names * SERVICES_MAX);
    int rv;

    if (names == NULL) {
        return HEDGE_ENOMEM;
    }
    while (m.n_service < SERVICES_MAX &&
           descriptors_service(m.n_service, names[m.n_service])) {
        Grpc__Reflection__V1__ServiceResponse *one = &table[m.n_service];

        grpc__reflection__v1__service_response__init(one);
        one->name = names[m.n_service];
        pointers[m.n_service++] = one;
    }
    m.service = pointers;
    r->list_services_response = &m;
    r->message_response_case = ANSWERS(LIST_SERVICES_RESPONSE);
    rv = pb_send(s, &r->base, SEND_MS);
    mem_free(names);
    return rv;
}

/* Nothing here has extensions. */
static int answer_extensions(struct rpc_stream *s, response *r, char *type)
{
    Grpc__Reflection__V1__ExtensionNumberResponse m =
        GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;

    if (!descriptors_has_message(type)) {
        return answer_error(s, r, STATUS_NOT_FOUND, "not found");
    }
    m.base_type_name = type;
    r->all_extension_numbers_response = &m;
    r->message_response_case = ANSWERS(ALL_EXTENSION_NUMBERS_RESPONSE);
    return pb_send(s, &r->base, SEND_MS);
}

static int answer(struct rpc_stream *s, request *q)
{
    response r = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    struct descriptor_file file = {.data = NULL};
    bool found;

    r.valid_host = q->host;
    r.original_request = q;
    switch (q->message_request_case) {
    case ASKS(FILE_BY_FILENAME):
        found = descriptors_file(q->file_by_filename, &file);
        return answer_file(s, &r, found, &file);
    case ASKS(FILE_CONTAINING_SYMBOL):
        found = descriptors_file_of(q->file_containing_symbol, &file);
        return answer_file(s, &r, found, &file);
    case ASKS(FILE_CONTAINING_EXTENSION):
        return answer_error(s, &r, STATUS_NOT_FOUND, "not found");
    case ASKS(ALL_EXTENSION_NUMBERS_OF_TYPE):
        return answer_extensions(s, &r, q->all_extension_numbers_of_type);
    case ASKS(LIST_SERVICES):
        return answer_services(s, &r);
    default:
        return answer_error(s, &r, STATUS_INVALID_ARGUMENT,
                            "the request asks for nothing known here");
    }
}

static int reflect(struct rpc_stream *s, struct hedge_error *e)
{
    int rv = 0;

    while (rv == 0) {
        struct rpc_msg msg;
        request *q;

        rv = rpc_stream_recv(s, IDLE_MS, &msg, e);
        if (rv != 0) {
            return rv;
        }
        q = pb_from_msg_lean(
            &grpc__reflection__v1__server_reflection_request__descriptor, &msg,
            e);
        rv = q != NULL ? answer(s, q) : HEDGE_EPROTO;
        pb_free(q);
    }
    return rv;
}

int serve_reflection(struct rpc_stream *s, void *ctx, struct hedge_error *e)
{
    struct hedge_node *n = ctx;
    int rv = serve_enter(s, &n->looking, SERVE_LOOKING_MAX, "onlookers", e);

    if (rv == 0) {
        rv = reflect(s, e);
        atomic_fetch_sub(&n->looking, 1);
    }
    return rv;
}
