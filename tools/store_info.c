#include "tools/store_info.h"

#include "store/base/clock.h"
#include "store/base/units.h"
#include "tools/output.h"

#include <inttypes.h>
#include <stdio.h>

/* As `sos write --compress` takes it. */
static const char *compression_text(const Hedge__V1__StoreOptions *o,
                                    char out[32])
{
    switch (o->compression) {
    case HEDGE__V1__COMPRESSION__COMPRESSION_NONE:
        return "none";
    case HEDGE__V1__COMPRESSION__COMPRESSION_ZSTD:
        (void)snprintf(out, 32, o->compression_level != 0 ? "zstd:%d" : "zstd",
                       o->compression_level);
        return out;
    default:
        return "auto";
    }
}

static void add_options(cJSON *object, const Hedge__V1__StoreOptions *s)
{
    cJSON *o = output_object();
    char text[32];

    output_add_u64(o, "mem_limit", s->mem_limit);
    output_add_u64(o, "disk_limit", s->disk_limit);
    output_add_u64(o, "ttl_ms", s->ttl_ms);
    output_add_u64(o, "replicas", s->replicas != 0 ? s->replicas : 1);
    output_add_text(o, "compress", compression_text(s, text));
    (void)cJSON_AddItemToObject(object, "options", o);
}

void store_info_json(const Hedge__V1__StoreInfo *s)
{
    cJSON *o = output_object(), *tiers, *t;

    output_add_text(o, "name", s->name);
    output_add_text(o, "owner", s->owner);
    output_add_id(o, "generation", s->generation);
    output_add_u64(o, "records", s->records);
    output_add_u64(o, "bytes", s->bytes);
    output_add_hex(o, "digest", s->digest.data, s->digest.len);
    output_add_text(o, "state", s->state);
    output_add_time(o, "expires_at", s->expires_at_ms);
    output_add_u64(o, "writers", s->writers);
    output_add_u64(o, "readers", s->readers);
    output_add_u64(o, "missing_copies", s->missing_copies);
    output_add_u64(o, "discarded_blocks", s->discarded_blocks);
    output_add_u64(o, "discarded_bytes", s->discarded_bytes);
    tiers = output_add_array(o, "tiers");
    for (size_t i = 0; i < s->n_tiers; i++) {
        t = output_object();
        output_add_text(t, "node", s->tiers[i]->node);
        output_add_text(t, "tier", s->tiers[i]->tier);
        output_add_u64(t, "blocks", s->tiers[i]->blocks);
        output_add_u64(t, "bytes", s->tiers[i]->bytes);
        output_add_u64(t, "stored_bytes", s->tiers[i]->stored_bytes);
        output_append(tiers, t);
    }
    if (s->options != NULL) {
        add_options(o, s->options);
    }
    output_json(o);
}

static const char *expiry_text(const Hedge__V1__StoreInfo *s,
                               char out[CLOCK_RFC3339_SIZE])
{
    if (s->expires_at_ms == 0) {
        return "in use";
    }
    clock_format(s->expires_at_ms, out);
    return out;
}

static void print_options(const Hedge__V1__StoreOptions *o)
{
    char a[UNITS_SIZE_TEXT], b[UNITS_SIZE_TEXT], c[UNITS_SIZE_TEXT], d[32];

    printf("%-10s ttl %s, replicas %u, compress %s", "options",
           units_format_duration(o->ttl_ms, a),
           o->replicas != 0 ? o->replicas : 1, compression_text(o, d));
    if (o->mem_limit != 0) {
        printf(", memory %s a node", units_format_size(o->mem_limit, b));
    }
    if (o->disk_limit != 0) {
        printf(", disk %s a node", units_format_size(o->disk_limit, c));
    }
    (void)putchar('\n');
}

/* What is not there: lost or not yet made, and what readers have freed. */
static void print_absent(const Hedge__V1__StoreInfo *s)
{
    uint32_t replicas = s->options != NULL ? s->options->replicas : 1;
    char a[UNITS_SIZE_TEXT];

    if (s->missing_copies > 0 && replicas > 1) {
        printf("%-10s %u of each block are wanted; %" PRIu64 " are missing\n",
               "copies", replicas, s->missing_copies);
    } else if (s->missing_copies > 0) {
        printf("%-10s %" PRIu64 " blocks, with the nodes that held them\n",
               "lost", s->missing_copies);
    }
    if (s->discarded_blocks > 0) {
        printf("%-10s %" PRIu64 " blocks (%s), by readers\n", "discarded",
               s->discarded_blocks, units_format_size(s->discarded_bytes, a));
    }
}

void store_info_text(const Hedge__V1__StoreInfo *s)
{
    char a[UNITS_SIZE_TEXT], when[CLOCK_RFC3339_SIZE];
    struct table *t = table_new("NODE|TIER|>BLOCKS|>BYTES|>STORED");

    printf("%-10s %s\n", "name", s->name);
    printf("%-10s %s\n", "owner", s->owner);
    printf("%-10s %" PRIu64 "\n", "generation", s->generation);
    printf("%-10s %s (%u writing, %u reading)\n", "state", s->state, s->writers,
           s->readers);
    printf("%-10s %" PRIu64 "\n", "records", s->records);
    printf("%-10s %" PRIu64 " (%s)\n", "bytes", s->bytes,
           units_format_size(s->bytes, a));
    printf("%-10s ", "digest");
    for (size_t i = 0; i < s->digest.len; i++) {
        printf("%02x", s->digest.data[i]);
    }
    printf("\n%-10s %s\n", "expires", expiry_text(s, when));
    if (s->options != NULL) {
        print_options(s->options);
    }
    print_absent(s);
    (void)putchar('\n');
    for (size_t i = 0; i < s->n_tiers; i++) {
        table_text(t, s->tiers[i]->node);
        table_text(t, s->tiers[i]->tier);
        table_u64(t, s->tiers[i]->blocks);
        table_size(t, s->tiers[i]->bytes);
        table_size(t, s->tiers[i]->stored_bytes);
    }
    table_print(t);
}

void store_info_list(Hedge__V1__StoreInfo *const *stores, size_t n)
{
    struct table *t = table_new("NAME|OWNER|STATE|>RECORDS|>BYTES|EXPIRES");
    char when[CLOCK_RFC3339_SIZE];

    for (size_t i = 0; i < n; i++) {
        table_text(t, stores[i]->name);
        table_text(t, stores[i]->owner);
        table_text(t, stores[i]->state);
        table_u64(t, stores[i]->records);
        table_size(t, stores[i]->bytes);
        table_text(t, expiry_text(stores[i], when));
    }
    table_print(t);
}
