/* log_page.h - entries of the log gathered from a scan: as a LogPage for the
 * wire, or as an array for callers in this process.
 *
 * Ownership: _init / _release; a page owns its bytes. _clear keeps the memory.
 * Threads:   one at a time.
 * Errors:    HEDGE_ENOMEM is remembered in `failed`, and ends the scan.
 * Units:     bytes.
 * Limits:    `max_bytes`, which only a page's first entry may exceed. */
#ifndef CLUSTER_LOG_PAGE_H
#define CLUSTER_LOG_PAGE_H

#include "cluster/engine/engine.h"
#include "cluster/hedge.h"

#include <stddef.h>

/* --- for the wire --- */

struct log_encoder {
    unsigned char *data; /* Encoded fields of a LogPage. */
    size_t len, cap;
    size_t max_bytes;
    size_t n; /* Entries. */
    bool failed;
    bool full; /* It has no room for the next entry. */
    /* Values that are longer than this are cut, and their entry is alone in
     * its page; 0: none is. */
    size_t cut_bytes;
    size_t room;  /* The longest value that may be held, when cut, */
    size_t wants; /* and that of the entry which was refused for that; 0. */
    unsigned char *rest; /* What was cut off. */
    size_t rest_len, rest_cap;
};

void log_encoder_init(struct log_encoder *p, size_t max_bytes,
                      size_t cut_bytes);
void log_encoder_clear(struct log_encoder *p);
void log_encoder_release(struct log_encoder *p);
/* An engine_entry_fn; ctx is the encoder. */
int log_encode_entry(void *ctx, const struct engine_entry *entry);
void log_encode_resume(struct log_encoder *p, const void *data, size_t len);
/* Begin anew with a piece of `rest`, from `at` on; returns its end. */
size_t log_encode_rest(struct log_encoder *p, size_t at, size_t piece);

/* --- for callers --- */

/* What stands before the first entry of a page: where its bytes are, and the
 * number that begins a struct hedge_entries. So a page can be given away as it
 * is: what it holds is not there twice. */
#define LOG_PAGE_HEAD (sizeof(void *) + offsetof(struct hedge_entries, entry))

struct log_page {
    struct hedge_entry *entries; /* With offsets into bytes, behind the head. */
    size_t n, cap;
    unsigned char *bytes;
    size_t len, bytes_cap;
    size_t leader;    /* Where the last one's name is. */
    size_t max_bytes; /* Of bytes and entries. */
    bool failed;
    bool full; /* It has no room for the next entry. */
};

void log_page_init(struct log_page *p, size_t max_bytes);
void log_page_clear(struct log_page *p);
void log_page_release(struct log_page *p);
int log_page_entry(void *ctx, const struct engine_entry *entry);
/* The i-th; it lives until the page changes. */
void log_page_at(const struct log_page *p, size_t i, struct hedge_entry *out);
/* All of them, which the page then no longer has; NULL: it is empty. */
struct hedge_entries *log_page_give(struct log_page *p);
/* An entry by itself; NULL: no memory. */
struct hedge_entries *log_entries_one(const struct engine_entry *e);
void log_entries_free(struct hedge_entries *entries);

#endif
