/* The line protocol: whatever the bytes are and however they are cut into
 * pieces, the same lines come out, and none is longer than it may be. The first
 * byte says how it is cut. */
#include "cluster/foreign/lines.h"
#include "store/base/errors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seen {
    uint64_t hash, payload;
};

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void add(uint64_t *hash, const void *data, size_t len)
{
    const unsigned char *p = data;

    for (size_t i = 0; i < len; i++) {
        *hash = (*hash ^ p[i]) * 0x100000001b3u;
    }
}

static int take(void *ctx, enum line_verb verb, const void *data, size_t len)
{
    struct seen *s = ctx;

    check(verb < LINE_VERBS && len > 0);
    add(&s->payload, data, len);
    return 0;
}

static void look_at(struct seen *s, const struct line *l)
{
    add(&s->hash, &l->verb, sizeof l->verb);
    add(&s->hash, &l->error, sizeof l->error);
    check((l->error != 0) == (l->text[0] != '\0'));
    check(l->verb < LINE_VERBS || l->error != 0);
    check(l->n_words <= LINE_WORDS_MAX);
    for (unsigned i = 0; l->error == 0 && i < l->n_words; i++) {
        size_t n = strlen(l->words[i]);

        check(n > 0 && n <= LINE_SMALL_MAX && strchr(l->words[i], ' ') == NULL);
        add(&s->hash, l->words[i], n + 1);
    }
    if (l->error == 0) { /* Of others it depends on the pieces. */
        add(&s->hash, &s->payload, sizeof s->payload);
    }
    s->payload = 1;
}

static struct seen run(const uint8_t *data, size_t size, size_t step)
{
    struct line_parser p;
    struct seen s = {.hash = 1, .payload = 1};

    lines_init(&p, take, &s);
    for (size_t at = 0; at < size;) {
        size_t n = size - at < step ? size - at : step, used;
        int rv = lines_feed(&p, data + at, n, &used);

        check(used <= n && (rv != HEDGE_EAGAIN || used == n));
        at += used;
        if (rv != HEDGE_EAGAIN) {
            look_at(&s, &p.line);
        }
        if (rv == HEDGE_ETOOBIG) {
            break;
        }
        check(rv == 0 || rv == HEDGE_EAGAIN);
    }
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0) {
        struct seen whole = run(data + 1, size - 1, size);
        struct seen cut = run(data + 1, size - 1, (size_t)data[0] % 16 + 1);

        check(whole.hash == cut.hash);
    }
    return 0;
}
