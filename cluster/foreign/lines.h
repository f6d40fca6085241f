/* lines.h - the line protocol of the reference, hedge for Go: taking requests
 * apart as their bytes come in, and putting replies together. No sockets.
 *
 * A request is a verb, words, and for some verbs a payload in base64, which is
 * handed on decoded, piece by piece, and never kept here.
 *
 * Ownership: a parser is a value; the line it shows is its own and lives until
 *            the next lines_feed().
 * Threads:   one at a time.
 * Errors:    a line that is wrong is a line with an error: it is to be
 *            answered with that, and the next one is read. HEDGE_ETOOBIG: it is
 *            too long to be skipped; the connection is to end.
 * Units:     bytes.
 * Limits:    LINE_SMALL_MAX bytes beside the payload; payloads as the table of
 *            verbs says, decoded. */
#ifndef CLUSTER_LINES_H
#define CLUSTER_LINES_H

#include "cluster/foreign/base64.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LINE_SMALL_MAX 1024
#define LINE_WORDS_MAX 3
#define LINE_PAYLOAD_MAX ((size_t)64 << 20)
/* A value of 16 MiB as JSON, some of it escaped. */
#define LINE_PUT_MAX ((size_t)24 << 20)
#define LINE_MEMBERS_MAX ((size_t)1 << 20)
#define LINE_TEXT_MAX 256

enum line_verb {
    LINE_LDR,
    LINE_PUT,
    LINE_SND,
    LINE_ALL,
    LINE_HEY,
    LINE_MEM,
    LINE_SEM,
    LINE_SEA,
    LINE_SER,
    LINE_VERBS,
};
/* "LDR"; for LINE_VERBS "other". */
const char *line_verb_name(enum line_verb verb);

struct line {
    enum line_verb verb; /* LINE_VERBS: none of them. */
    unsigned n_words;
    const char *words[LINE_WORDS_MAX]; /* Without control characters. */
    int error;                         /* 0, or why it cannot be done. */
    char text[LINE_TEXT_MAX];
};

/* Takes a piece of the payload; other than 0 refuses the line with that error.
 */
typedef int (*line_payload_fn)(void *ctx, enum line_verb verb, const void *data,
                               size_t len);

enum line_state {
    LINE_IN_VERB,
    LINE_IN_PAYLOAD,
    LINE_IN_WORDS,
    LINE_SKIPPING, /* What is left of a wrong line. */
};

struct line_parser {
    line_payload_fn payload;
    void *ctx;
    enum line_state state;
    struct line line;
    struct base64_decoder decoder;
    uint64_t length;  /* Of the line so far. */
    size_t n_payload; /* Decoded. */
    bool has_payload, done, carriage_return;
    size_t n_small;
    char small[LINE_SMALL_MAX + 1];
};

void lines_init(struct line_parser *p, line_payload_fn payload, void *ctx);
/* Has a line been begun? */
bool lines_is_within(const struct line_parser *p);
/* Read on. 0: a line is complete, p->line, and *used bytes belong to it or to
 * what was before. HEDGE_EAGAIN: all bytes are used, and more are needed.
 * HEDGE_ETOOBIG: as above; p->line has the text. */
int lines_feed(struct line_parser *p, const void *data, size_t len,
               size_t *used);

/* A reply: "ACK" or not, a body in base64 or not. */
struct line_reply {
    bool ack;
    bool has_body;
    const void *body;
    size_t len;
};
#define LINE_REPLY_PIECE                                \
    ((size_t)12 << 10) /* Of the body, before encoding. \
                        */
#define LINE_REPLY_MAX (BASE64_ENCODED(LINE_REPLY_PIECE) + 8)
/* The next piece of the reply from *at on (0 at first), with the end of the
 * line in the last one; 0 when there is no more. */
size_t lines_reply(const struct line_reply *r, size_t *at,
                   char out[LINE_REPLY_MAX]);

#endif
