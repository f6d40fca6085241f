#include "tools/store_info.h"

#include "cluster/stores/store_json.h"

#include "store/base/clock.h"
#include "store/base/units.h"
#include "tools/output.h"

#include <inttypes.h>
#include <stdio.h>

void store_info_json(const Hedge__V1__StoreInfo *s)
{
    output_json(store_json(s)); /* There is memory, or the program has ended. */
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
           o->replicas != 0 ? o->replicas : 1, store_compression_text(o, d));
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
    if (s->writers_ever > 1) {
        printf("%-10s to, by %u writers in all\n", "appended", s->writers_ever);
    }
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

struct table *store_info_table(void)
{
    return table_new("NAME|OWNER|STATE|>RECORDS|>BYTES|EXPIRES");
}

void store_info_row(struct table *t, const Hedge__V1__StoreInfo *s)
{
    char when[CLOCK_RFC3339_SIZE];

    table_text(t, s->name);
    table_text(t, s->owner);
    table_text(t, s->state);
    table_u64(t, s->records);
    table_size(t, s->bytes);
    table_text(t, expiry_text(s, when));
}
