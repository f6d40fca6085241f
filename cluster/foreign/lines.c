#include "cluster/foreign/lines.h"

#include "store/base/errors.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define VERB_LENGTH 3
#define PIECE ((size_t)4 << 10) /* Of a payload, in characters. */

static const struct verb {
    char name[VERB_LENGTH + 1];
    size_t payload_max; /* 0: has none. */
    unsigned words_min, words_max;
    const char *usage;
} verbs[LINE_VERBS] = {
    [LINE_LDR] = {"LDR", 0, 0, 0, "LDR"},
    [LINE_PUT] = {"PUT", LINE_PUT_MAX, 0, 1, "PUT <base64> [noappend]"},
    [LINE_SND] = {"SND", LINE_PAYLOAD_MAX, 0, 0, "SND <base64>"},
    [LINE_ALL] = {"ALL", LINE_PAYLOAD_MAX, 0, 0, "ALL <base64>"},
    [LINE_HEY] = {"HEY", 0, 0, 1, "HEY [id]"},
    [LINE_MEM] = {"MEM", LINE_MEMBERS_MAX, 0, 0, "MEM <base64>"},
    [LINE_SEM] = {"SEM", 0, 3, 3, "SEM <name> <limit> <caller>"},
    [LINE_SEA] = {"SEA", 0, 2, 2, "SEA <name> <caller>"},
    [LINE_SER] = {"SER", 0, 2, 2, "SER <name> <caller>"},
};

const char *line_verb_name(enum line_verb verb)
{
    return verb < LINE_VERBS ? verbs[verb].name : "other";
}

static void begin_line(struct line_parser *p)
{
    memset(&p->line, 0, sizeof p->line);
    p->line.verb = LINE_VERBS;
    p->state = LINE_IN_VERB;
    p->length = 0;
    p->n_payload = p->n_small = 0;
    p->has_payload = p->done = p->carriage_return = false;
    base64_init(&p->decoder);
}

void lines_init(struct line_parser *p, line_payload_fn payload, void *ctx)
{
    p->payload = payload;
    p->ctx = ctx;
    begin_line(p);
}

bool lines_is_within(const struct line_parser *p)
{
    return p->length > 0 && !p->done;
}

static void refuse(struct line_parser *p, int error, const char *text)
{
    p->line.error = error;
    (void)snprintf(p->line.text, sizeof p->line.text, "%s", text);
    p->state = LINE_SKIPPING;
}

static void refuse_usage(struct line_parser *p)
{
    char text[LINE_TEXT_MAX];

    (void)snprintf(text, sizeof text, "wanted: %s", verbs[p->line.verb].usage);
    refuse(p, HEDGE_EINVAL, text);
}

/* Until how many bytes a wrong line is skipped. */
static uint64_t skip_max(const struct line_parser *p)
{
    size_t payload =
        p->line.verb < LINE_VERBS ? verbs[p->line.verb].payload_max : 0;

    return LINE_SMALL_MAX + BASE64_ENCODED(payload);
}

/* --- verb, words --- */

static void find_verb(struct line_parser *p)
{
    for (unsigned i = 0; i < LINE_VERBS; i++) {
        if (p->n_small == VERB_LENGTH &&
            memcmp(p->small, verbs[i].name, VERB_LENGTH) == 0) {
            p->line.verb = (enum line_verb)i;
        }
    }
    if (p->line.verb == LINE_VERBS) {
        refuse(p, HEDGE_ENOTSUP, "unknown request");
    }
    p->n_small = 0;
}

static void end_verb(struct line_parser *p)
{
    find_verb(p);
    if (p->state != LINE_SKIPPING) {
        p->has_payload = verbs[p->line.verb].payload_max > 0;
        p->state = p->has_payload ? LINE_IN_PAYLOAD : LINE_IN_WORDS;
    }
}

/* The words lie in `small`, as they came. */
static void split_words(struct line_parser *p)
{
    const struct verb *v = &verbs[p->line.verb];
    char *at = p->small, *end = p->small + p->n_small;

    *end = '\0';
    while (at < end) {
        size_t n = strcspn(at, " ");
        bool last = at + n == end;

        if (n == 0 || (!last && at + n + 1 == end) ||
            p->line.n_words == v->words_max) {
            refuse_usage(p);
            return;
        }
        at[n] = '\0';
        p->line.words[p->line.n_words++] = at;
        at += n + !last;
    }
    if (p->line.n_words < v->words_min) {
        refuse_usage(p);
    }
}

static void take_small(struct line_parser *p, char c)
{
    assert(p->n_small < LINE_SMALL_MAX);
    p->small[p->n_small++] = c;
    if ((unsigned char)c < 0x20 || c == 0x7f) {
        refuse(p, HEDGE_EINVAL, "a control character in a request");
    }
}

/* --- payload --- */

static void take_payload(struct line_parser *p, const char *text, size_t len)
{
    unsigned char bytes[PIECE / 4 * 3 + 3];
    long n;
    int rv;

    assert(len <= PIECE);
    n = base64_decode(&p->decoder, text, len, bytes);
    if (n < 0) {
        refuse(p, HEDGE_EINVAL, "the payload is not base64");
        return;
    }
    p->n_payload += (size_t)n;
    if (p->n_payload > verbs[p->line.verb].payload_max) {
        refuse(p, HEDGE_ETOOBIG, "the payload is too large");
        return;
    }
    rv = n > 0 ? p->payload(p->ctx, p->line.verb, bytes, (size_t)n) : 0;
    if (rv != 0) {
        refuse(p, rv, hedge_strerror(rv));
    }
}

/* All characters up to the end of the payload, or as many as there are. */
static size_t feed_payload(struct line_parser *p, const char *at, size_t len)
{
    size_t n = 0;

    while (n < len && n < PIECE && at[n] != ' ' && at[n] != '\n' &&
           at[n] != '\r') {
        n++;
    }
    take_payload(p, at, n);
    if (n < len && at[n] == ' ' && p->state == LINE_IN_PAYLOAD) {
        p->state = LINE_IN_WORDS;
        n++;
    }
    return n;
}

/* --- lines --- */

static void end_line(struct line_parser *p)
{
    bool bare = p->state == LINE_IN_VERB;

    if (bare) {
        end_verb(p);
    }
    if (p->state == LINE_SKIPPING) {
        return;
    }
    if (p->has_payload && bare) {
        refuse_usage(p);
    } else if (p->has_payload && !base64_is_whole(&p->decoder)) {
        refuse(p, HEDGE_EINVAL, "the payload is cut");
    } else {
        split_words(p);
    }
}

static size_t feed_some(struct line_parser *p, const char *at, size_t len)
{
    /* A carriage return is the end of a line only. */
    if (p->carriage_return) {
        refuse(p, HEDGE_EINVAL, "a control character in a request");
    }
    p->carriage_return = p->state != LINE_SKIPPING && *at == '\r';
    if (p->carriage_return || p->state == LINE_SKIPPING) {
        return 1;
    }
    if (p->state == LINE_IN_PAYLOAD) {
        return feed_payload(p, at, len);
    }
    if (p->state == LINE_IN_VERB && *at == ' ') {
        end_verb(p);
    } else if (p->n_small == LINE_SMALL_MAX) {
        refuse(p, HEDGE_ETOOBIG, "the request is too long");
    } else {
        take_small(p, *at);
    }
    return 1;
}

int lines_feed(struct line_parser *p, const void *data, size_t len,
               size_t *used)
{
    const char *at = data;

    if (p->done) {
        begin_line(p);
    }
    for (*used = 0; *used < len;) {
        size_t n;

        if (at[*used] == '\n') {
            (*used)++;
            end_line(p);
            p->done = true;
            return 0;
        }
        n = feed_some(p, at + *used, len - *used);
        *used += n;
        p->length += n;
        if (p->state == LINE_SKIPPING &&
            (p->length > skip_max(p) || p->line.error == HEDGE_ETOOBIG)) {
            p->done = true;
            return HEDGE_ETOOBIG;
        }
    }
    return HEDGE_EAGAIN;
}

/* --- replies --- */

size_t lines_reply(const struct line_reply *r, size_t *at,
                   char out[LINE_REPLY_MAX])
{
    size_t n = 0, piece, left;

    if (*at == SIZE_MAX) {
        return 0;
    }
    assert(*at <= r->len);
    left = r->has_body ? r->len - *at : 0;
    piece = left < LINE_REPLY_PIECE ? left : LINE_REPLY_PIECE;
    if (*at == 0 && r->ack) {
        n = (size_t)snprintf(out, LINE_REPLY_MAX, "ACK%s",
                             r->has_body ? " " : "");
    }
    if (piece > 0) {
        n += base64_encode((const char *)r->body + *at, piece, out + n);
        *at += piece;
    }
    if (piece == left) {
        out[n++] = '\n';
        *at = SIZE_MAX;
    }
    return n;
}
