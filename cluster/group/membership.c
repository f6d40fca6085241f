#include "cluster/group/membership.h"

#include "store/base/mem.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOMBSTONES 64u
#define TOMBSTONE_MS 60000u
#define RETRY_MS_MIN 50u
#define REPUBLISH_INTERVALS 3u
#define REFUSED_INTERVALS 5u

struct entry {
    struct member m;
    /* Of the leader: */
    uint64_t session; /* 0: no stream. */
    uint64_t heard_ms;
    bool pending; /* Known from before this leader's time only. */
    bool dialing;
};

/* Lives that are over, so that a late message does not bring them back. */
struct tombstone {
    char id[MEMBER_ID_SIZE];
    uint64_t incarnation;
    uint64_t at_ms;
    bool left;
};

struct membership {
    struct membership_options o;
    bool leading;
    uint64_t now_ms;
    struct entry *entries; /* Sorted by id; this node is always in it. */
    size_t n, cap;
    uint64_t list_token, list_version;
    struct membership_leader leader;
    struct tombstone tombstones[TOMBSTONES];
    unsigned next_tombstone;
    /* Leader. */
    bool dirty; /* Figures have changed since the list was sent. */
    uint64_t publish_at_ms, republish_at_ms;
    uint64_t grace_ms; /* Not settled before. */
    bool settled;
    /* Member. */
    bool linked;
    bool heard; /* A list from the leader, since the link was made. */
    uint64_t connect_at_ms, report_at_ms;
    uint64_t retry_ms;
};

bool member_set_text(char *dst, size_t size, const char *src)
{
    size_t len = src != NULL ? strlen(src) : size;

    if (len >= size) {
        dst[0] = '\0';
        return false;
    }
    memset(dst, 0, size);
    memcpy(dst, src, len);
    return true;
}

const char *membership_reason_text(enum membership_reason reason)
{
    static const char *const texts[] = {
        [MEMBERSHIP_NO_REASON] = "",
        [MEMBERSHIP_LEFT] = "left",
        [MEMBERSHIP_UNREACHABLE] = "cannot be reached",
        [MEMBERSHIP_SILENT] = "silent for three intervals",
        [MEMBERSHIP_REPLACED] = "replaced by a newer incarnation",
    };

    return texts[reason];
}

/* --- the table --------------------------------------------------------------
 */

/* The index of `id`, or where it belongs. */
static bool find(const struct membership *m, const char *id, size_t *at)
{
    size_t lo = 0, hi = m->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(m->entries[mid].m.id, id);
        if (c == 0) {
            *at = mid;
            return true;
        }
        if (c < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    *at = lo;
    return false;
}

static struct entry *self_entry(const struct membership *m)
{
    size_t at;
    bool found = find(m, m->o.self.id, &at);

    assert(found);
    return &m->entries[at];
}

static bool is_self(const struct membership *m, const struct entry *en)
{
    return strcmp(en->m.id, m->o.self.id) == 0;
}

/* Room was made by reserve(). */
static struct entry *insert(struct membership *m, size_t at,
                            const struct member *member)
{
    assert(m->n < m->cap && at <= m->n);
    memmove(&m->entries[at + 1], &m->entries[at],
            (m->n - at) * sizeof m->entries[0]);
    m->n++;
    memset(&m->entries[at], 0, sizeof m->entries[at]);
    m->entries[at].m = *member;
    m->entries[at].m.leader = false;
    return &m->entries[at];
}

static int reserve_entries(struct membership *m, size_t want)
{
    size_t cap = m->cap == 0 ? 8 : m->cap;
    struct entry *p;

    while (cap < want) {
        cap *= 2;
    }
    if (cap == m->cap) {
        return 0;
    }
    p = mem_realloc(m->entries, cap * sizeof *p);
    if (p == NULL) {
        return HEDGE_ENOMEM;
    }
    m->entries = p;
    m->cap = cap;
    return 0;
}

/* So that no step fails half-way. */
static int reserve_actions(struct membership_actions *a, size_t want)
{
    size_t cap = a->cap == 0 ? 16 : a->cap;
    void *p;

    while (cap < want) {
        cap *= 2;
    }
    if (cap == a->cap) {
        return 0;
    }
    p = mem_realloc(a->changes, cap * sizeof *a->changes);
    if (p == NULL) {
        return HEDGE_ENOMEM;
    }
    a->changes = p;
    p = mem_realloc(a->dials, cap * sizeof *a->dials);
    if (p == NULL) {
        return HEDGE_ENOMEM;
    }
    a->dials = p;
    p = mem_realloc(a->closes, cap * sizeof *a->closes);
    if (p == NULL) {
        return HEDGE_ENOMEM;
    }
    a->closes = p;
    a->cap = cap;
    return 0;
}

void membership_actions_release(struct membership_actions *a)
{
    mem_free(a->changes);
    mem_free(a->dials);
    mem_free(a->closes);
    memset(a, 0, sizeof *a);
}

static void actions_clear(struct membership_actions *a)
{
    struct membership_actions keep = *a;

    memset(a, 0, sizeof *a);
    a->changes = keep.changes;
    a->dials = keep.dials;
    a->closes = keep.closes;
    a->cap = keep.cap;
}

static void add_change(struct membership_actions *out,
                       enum membership_change_type type, const char *id,
                       uint64_t incarnation, enum membership_reason reason)
{
    struct membership_change *c = &out->changes[out->n_changes];

    assert(out->n_changes < out->cap);
    memset(c, 0, sizeof *c);
    c->type = type;
    c->reason = reason;
    c->incarnation = incarnation;
    (void)snprintf(c->id, sizeof c->id, "%s", id);
    out->n_changes++;
}

static void add_dial(struct membership_actions *out, struct entry *en)
{
    struct membership_dial *d = &out->dials[out->n_dials];

    assert(out->n_dials < out->cap);
    (void)snprintf(d->id, sizeof d->id, "%s", en->m.id);
    (void)snprintf(d->address, sizeof d->address, "%s", en->m.grpc_address);
    d->incarnation = en->m.incarnation;
    en->dialing = true;
    out->n_dials++;
}

static void add_close(struct membership_actions *out, struct entry *en)
{
    if (en->session != 0) {
        assert(out->n_closes < out->cap);
        out->closes[out->n_closes++] = en->session;
        en->session = 0;
    }
}

/* --- lives that are over ----------------------------------------------------
 */

static void bury(struct membership *m, const struct member *member, bool left)
{
    struct tombstone *t = &m->tombstones[m->next_tombstone++ % TOMBSTONES];

    memcpy(t->id, member->id, sizeof t->id);
    t->incarnation = member->incarnation;
    t->at_ms = m->now_ms;
    t->left = left;
}

static bool is_over(const struct membership *m, const struct member *member)
{
    for (size_t i = 0; i < TOMBSTONES; i++) {
        const struct tombstone *t = &m->tombstones[i];
        bool counts = t->id[0] != '\0' && m->now_ms - t->at_ms < TOMBSTONE_MS &&
                      strcmp(t->id, member->id) == 0;
        if (counts && (member->incarnation < t->incarnation ||
                       (t->left && member->incarnation == t->incarnation))) {
            return true;
        }
    }
    return false;
}

/* --- both roles -------------------------------------------------------------
 */

static void set_leader(struct membership *m, const char *id,
                       const char *address, uint64_t incarnation,
                       uint64_t token, struct membership_actions *out)
{
    struct membership_leader *l = &m->leader;
    /* A leader that is first heard of by hearsay has no incarnation yet. */
    bool changed =
        strcmp(l->id, id) != 0 || (id[0] != '\0' && l->token != token);

    (void)snprintf(l->id, sizeof l->id, "%s", id);
    (void)snprintf(l->address, sizeof l->address, "%s", address);
    l->incarnation = incarnation;
    /* The token of a leader that is gone stays, to know its lists by. */
    l->token = id[0] != '\0' || token > l->token ? token : l->token;
    for (size_t i = 0; i < m->n; i++) {
        struct member *e = &m->entries[i].m;
        e->leader = id[0] != '\0' && strcmp(e->id, id) == 0;
    }
    if (changed) {
        add_change(out, MEMBERSHIP_LEADER, id, incarnation,
                   MEMBERSHIP_NO_REASON);
        out->changes[out->n_changes - 1].token = token;
    }
}

static void take_self(struct membership *m, const struct member *member)
{
    struct entry *en = self_entry(m);
    bool leader = en->m.leader;

    assert(strcmp(member->id, m->o.self.id) == 0 &&
           member->incarnation == m->o.self.incarnation);
    m->o.self = *member;
    en->m = *member;
    en->m.leader = leader;
    m->dirty = true;
}

static bool member_ok(const struct member *member)
{
    return member->id[0] != '\0' && member->grpc_address[0] != '\0' &&
           member->incarnation != 0;
}

/* --- the leader -------------------------------------------------------------
 */

static void changed(struct membership *m, struct membership_actions *out)
{
    m->list_version++;
    m->dirty = false;
    m->publish_at_ms = m->now_ms + m->o.interval_ms;
    m->republish_at_ms = m->now_ms + REPUBLISH_INTERVALS * m->o.interval_ms;
    out->publish = true;
}

static void drop(struct membership *m, size_t at, enum membership_reason why,
                 struct membership_actions *out)
{
    struct entry *en = &m->entries[at];

    assert(m->leading && !is_self(m, en));
    add_close(out, en);
    add_change(out, MEMBERSHIP_LEAVE, en->m.id, en->m.incarnation, why);
    bury(m, &en->m, why == MEMBERSHIP_LEFT);
    m->n--;
    memmove(en, en + 1, (m->n - at) * sizeof *en);
    changed(m, out);
}

static void take_lead(struct membership *m, const struct membership_event *ev,
                      struct membership_actions *out)
{
    uint64_t silence = MEMBERSHIP_SILENT_INTERVALS * m->o.interval_ms;
    /* Have I the list of the last leader, or may there be others? */
    bool knows = m->list_token != 0 && m->list_token >= m->leader.token;
    bool alone = ev->idle_ms >= silence && ev->idle_ms >= 2000;

    assert(ev->token > 0);
    m->leading = true;
    m->linked = false;
    m->settled = false;
    m->grace_ms = knows || alone ? m->now_ms : m->now_ms + silence;
    m->list_token = ev->token;
    m->list_version = 0;
    for (size_t i = 0; i < m->n; i++) {
        struct entry *en = &m->entries[i];
        en->session = 0;
        en->dialing = false;
        en->heard_ms = m->now_ms;
        en->pending = !is_self(m, en);
        if (en->pending) {
            add_dial(out, en);
        }
    }
    set_leader(m, m->o.self.id, m->o.self.grpc_address, m->o.self.incarnation,
               ev->token, out);
    changed(m, out);
}

__attribute__((format(printf, 3, 4))) static void
refuse(struct membership_actions *out, int code, const char *fmt, ...)
{
    va_list ap;

    assert(code < 0);
    out->verdict = code;
    va_start(ap, fmt);
    (void)vsnprintf(out->verdict_text, sizeof out->verdict_text, fmt, ap);
    va_end(ap);
}

static bool versions_fit(const struct membership *m,
                         const struct membership_report *r,
                         struct membership_actions *out)
{
    const char *id = r->self.id;

    if (r->wire_version != m->o.wire_version) {
        refuse(out, HEDGE_EVERSION,
               "%s speaks wire version %u, leader %s speaks %u", id,
               r->wire_version, m->o.self.id, m->o.wire_version);
    } else if (r->block_version != m->o.block_version) {
        refuse(out, HEDGE_EVERSION,
               "%s writes block headers of version %u, leader %s of version %u",
               id, r->block_version, m->o.self.id, m->o.block_version);
    } else if (r->block_size != m->o.block_size) {
        refuse(out, HEDGE_EREFUSED,
               "%s has --block-size %u, leader %s has %u: a group has one size",
               id, r->block_size, m->o.self.id, m->o.block_size);
    }
    return out->verdict == 0;
}

static bool may_report(const struct membership *m,
                       const struct membership_report *r,
                       struct membership_actions *out)
{
    if (!m->leading) {
        refuse(out, HEDGE_ENOTLEADER, "%s is not the leader%s%s", m->o.self.id,
               m->leader.id[0] != '\0' ? ", it is " : "", m->leader.id);
        return false;
    }
    if (!member_ok(&r->self)) {
        refuse(out, HEDGE_EPROTO,
               "a report without id, incarnation or address");
        return false;
    }
    if (strcmp(r->self.id, m->o.self.id) == 0) {
        refuse(out, HEDGE_EEXISTS, "the id %s is that of the leader itself",
               r->self.id);
        return false;
    }
    if (is_over(m, &r->self)) {
        refuse(out, HEDGE_EREFUSED,
               "incarnation %llu of %s has left or has been replaced",
               (unsigned long long)r->self.incarnation, r->self.id);
        return false;
    }
    return versions_fit(m, r, out);
}

static bool same_figures(const struct member *a, const struct member *b)
{
    return a->mem_free == b->mem_free && a->mem_limit == b->mem_limit &&
           a->mem_used == b->mem_used && a->mem_lent == b->mem_lent &&
           a->disk_free == b->disk_free && a->disk_limit == b->disk_limit &&
           a->disk_used == b->disk_used && a->disk_lent == b->disk_lent &&
           strcmp(a->grpc_address, b->grpc_address) == 0 &&
           strcmp(a->boot_id, b->boot_id) == 0 &&
           strcmp(a->socket, b->socket) == 0 &&
           strcmp(a->version, b->version) == 0;
}

static void heard(struct membership *m, struct entry *en,
                  const struct membership_event *ev,
                  struct membership_actions *out)
{
    const struct member *now = &ev->report->self;

    if (ev->session < en->session) {
        refuse(out, HEDGE_ECLOSED, "a later stream of %s is open", now->id);
        return;
    }
    if (ev->session > en->session) {
        add_close(out, en);
        en->session = ev->session;
        out->welcome = true;
    }
    m->dirty = m->dirty || !same_figures(&en->m, now);
    en->m = *now;
    en->m.leader = false;
    en->heard_ms = m->now_ms;
    en->pending = false;
    en->dialing = false;
}

static void take_report(struct membership *m, const struct membership_event *ev,
                        struct membership_actions *out)
{
    const struct membership_report *r = ev->report;
    const struct member *who = &r->self;
    struct entry *en;
    size_t at;
    bool found;

    assert(ev->session != 0);
    if (!may_report(m, r, out)) {
        return;
    }
    found = find(m, who->id, &at);
    en = &m->entries[at];
    if (found && who->incarnation < en->m.incarnation) {
        refuse(out, HEDGE_EREFUSED,
               "incarnation %llu of %s is older than %llu, which is a member",
               (unsigned long long)who->incarnation, who->id,
               (unsigned long long)en->m.incarnation);
        return;
    }
    if (found && who->incarnation > en->m.incarnation) {
        drop(m, at, MEMBERSHIP_REPLACED, out);
        found = false;
    }
    if (r->leaving) {
        if (found) {
            drop(m, at, MEMBERSHIP_LEFT, out);
        } else {
            bury(m, who, true);
        }
        return;
    }
    if (!found && m->n >= MEMBERSHIP_MAX) {
        refuse(out, HEDGE_EBUSY, "the group has %u members, its limit",
               MEMBERSHIP_MAX);
        return;
    }
    if (!found) {
        en = insert(m, at, who);
        add_change(out, MEMBERSHIP_JOIN, who->id, who->incarnation,
                   MEMBERSHIP_NO_REASON);
        changed(m, out);
    }
    heard(m, en, ev, out);
}

static void take_broken(struct membership *m, uint64_t session,
                        struct membership_actions *out)
{
    for (size_t i = 0; m->leading && session != 0 && i < m->n; i++) {
        struct entry *en = &m->entries[i];
        if (en->session == session) {
            en->session = 0;
            add_dial(out, en);
            return;
        }
    }
}

static void take_dialed(struct membership *m, const struct membership_event *ev,
                        struct membership_actions *out)
{
    size_t at;

    if (!m->leading || !find(m, ev->id, &at) || !m->entries[at].dialing ||
        m->entries[at].m.incarnation != ev->incarnation) {
        return; /* It has reported meanwhile, or is gone. */
    }
    m->entries[at].dialing = false;
    if (!ev->ok) {
        drop(m, at, MEMBERSHIP_UNREACHABLE, out);
    }
}

/* A leader that was not running heard nobody, and holds it against nobody. It
 * asks to be woken twice per interval, so a whole one is such a gap. */
static void forgive_gap(struct membership *m, uint64_t gap_ms)
{
    if (!m->leading || gap_ms <= m->o.interval_ms) {
        return;
    }
    for (size_t i = 0; i < m->n; i++) {
        m->entries[i].heard_ms += gap_ms;
    }
}

static void lead(struct membership *m, struct membership_actions *out)
{
    uint64_t silence = MEMBERSHIP_SILENT_INTERVALS * m->o.interval_ms;
    bool settled = m->now_ms >= m->grace_ms;

    for (size_t i = 0; i < m->n;) {
        struct entry *en = &m->entries[i];
        if (!is_self(m, en) && m->now_ms >= en->heard_ms + silence) {
            drop(m, i, MEMBERSHIP_SILENT, out);
            continue;
        }
        settled = settled && !en->pending;
        i++;
    }
    if (m->dirty && m->now_ms >= m->publish_at_ms) {
        changed(m, out);
    }
    if (m->now_ms >= m->republish_at_ms) {
        m->republish_at_ms = m->now_ms + REPUBLISH_INTERVALS * m->o.interval_ms;
        out->publish = true;
    }
    out->settled = settled && !m->settled;
    m->settled = m->settled || settled;
}

static uint64_t lead_wake(const struct membership *m)
{
    uint64_t silence = MEMBERSHIP_SILENT_INTERVALS * m->o.interval_ms;
    uint64_t at = m->now_ms + m->o.interval_ms / 2; /* See forgive_gap(). */

    for (size_t i = 0; i < m->n; i++) {
        const struct entry *en = &m->entries[i];
        if (!is_self(m, en) && en->heard_ms + silence < at) {
            at = en->heard_ms + silence;
        }
    }
    if (m->dirty && m->publish_at_ms < at) {
        at = m->publish_at_ms;
    }
    if (!m->settled && m->grace_ms > m->now_ms && m->grace_ms < at) {
        at = m->grace_ms;
    }
    return at;
}

/* --- a member ---------------------------------------------------------------
 */

static void take_follow(struct membership *m, const struct membership_event *ev,
                        struct membership_actions *out)
{
    bool same = strcmp(m->leader.id, ev->id) == 0 &&
                m->leader.token == ev->token && !m->leading;

    for (size_t i = 0; i < m->n; i++) {
        add_close(out, &m->entries[i]);
        m->entries[i].pending = false;
        m->entries[i].dialing = false;
    }
    m->leading = false;
    m->settled = false;
    m->dirty = false;
    set_leader(m, ev->id, ev->address, ev->incarnation, ev->token, out);
    m->heard = m->heard && same;
    if (ev->id[0] == '\0') {
        m->linked = m->heard = false;
        m->connect_at_ms = MEMBERSHIP_NEVER;
    } else if (!same || !m->linked) {
        m->linked = false;
        m->connect_at_ms = m->now_ms;
        m->retry_ms = RETRY_MS_MIN;
    }
}

static void take_link_down(struct membership *m,
                           const struct membership_event *ev)
{
    bool refused = ev->status == HEDGE_EVERSION || ev->status == HEDGE_EREFUSED;

    if (m->leading || ev->token != m->leader.token || m->leader.id[0] == '\0') {
        return; /* The link to an earlier leader. */
    }
    m->linked = m->heard = false;
    m->connect_at_ms =
        m->now_ms +
        (refused ? REFUSED_INTERVALS * m->o.interval_ms : m->retry_ms);
    m->retry_ms *= 2;
    if (m->retry_ms > m->o.interval_ms) {
        m->retry_ms = m->o.interval_ms;
    }
}

static void follow(struct membership *m, struct membership_actions *out)
{
    if (!m->linked && m->now_ms >= m->connect_at_ms) {
        m->linked = true;
        m->connect_at_ms = MEMBERSHIP_NEVER;
        m->report_at_ms = m->now_ms;
        out->connect = true;
    }
    if (m->linked && m->now_ms >= m->report_at_ms) {
        m->report_at_ms = m->now_ms + m->o.interval_ms;
        out->report = true;
    }
}

static int by_id(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    return strcmp(x->m.id, y->m.id);
}

/* The list as a table of its own, with this node as it knows itself; NULL and
 * *rv when that cannot be. */
static struct entry *list_table(struct membership *m,
                                const struct membership_list *list, size_t *n,
                                struct membership_actions *out, int *rv)
{
    struct entry *table = NULL;
    bool listed = false;

    *n = 0;
    *rv = HEDGE_EPROTO;
    if (list->n_members > MEMBERSHIP_MAX) {
        return NULL;
    }
    table = mem_calloc(list->n_members + 1, sizeof *table);
    if (table == NULL) {
        *rv = HEDGE_ENOMEM;
        return NULL;
    }
    for (size_t i = 0; i < list->n_members; i++) {
        const struct member *member = &list->members[i];
        if (!member_ok(member)) {
            goto err;
        }
        table[*n].m = *member;
        if (strcmp(member->id, m->o.self.id) == 0) {
            listed = member->incarnation == m->o.self.incarnation;
            out->superseded = member->incarnation > m->o.self.incarnation;
            continue;
        }
        (*n)++;
    }
    table[(*n)++].m = m->o.self;
    qsort(table, *n, sizeof *table, by_id);
    for (size_t i = 1; i < *n; i++) {
        if (strcmp(table[i - 1].m.id, table[i].m.id) == 0) {
            goto err;
        }
    }
    if (!listed && m->linked) { /* Dropped: say that it lives. */
        m->report_at_ms = m->now_ms;
    }
    *rv = 0;
    return table;

err:
    out->superseded = false;
    mem_free(table);
    return NULL;
}

static void diff(struct membership *m, const struct entry *table, size_t n,
                 struct membership_actions *out)
{
    size_t i = 0, k = 0;

    while (i < m->n || k < n) {
        const struct member *old = i < m->n ? &m->entries[i].m : NULL;
        const struct member *new = k < n ? &table[k].m : NULL;
        int c = old == NULL ? 1 : new == NULL ? -1 : strcmp(old->id, new->id);
        bool replaced = c == 0 && old->incarnation != new->incarnation;

        if (c < 0 || replaced) {
            add_change(out, MEMBERSHIP_LEAVE, old->id, old->incarnation,
                       replaced ? MEMBERSHIP_REPLACED : MEMBERSHIP_NO_REASON);
            bury(m, old, false);
        }
        if (c > 0 || replaced) {
            add_change(out, MEMBERSHIP_JOIN, new->id, new->incarnation,
                       MEMBERSHIP_NO_REASON);
        }
        i += c <= 0;
        k += c >= 0;
    }
}

static int take_list(struct membership *m, const struct membership_list *list,
                     struct membership_actions *out)
{
    struct entry *table;
    size_t n;
    int rv;
    bool newer =
        list->token > m->list_token ||
        (list->token == m->list_token && list->version > m->list_version);

    m->heard = m->heard || (!m->leading && m->leader.id[0] != '\0' &&
                            list->token == m->leader.token);
    if (m->leading || !newer || list->token < m->leader.token) {
        return 0;
    }
    table = list_table(m, list, &n, out, &rv);
    if (table == NULL) {
        return rv;
    }
    diff(m, table, n, out);
    mem_free(m->entries);
    m->entries = table;
    m->n = n;
    m->cap = list->n_members + 1;
    m->list_token = list->token;
    m->list_version = list->version;
    m->retry_ms = RETRY_MS_MIN;
    for (size_t i = 0; i < n; i++) {
        table[i].m.leader =
            m->leader.id[0] != '\0' && strcmp(table[i].m.id, m->leader.id) == 0;
    }
    return 0;
}

/* --- the step ---------------------------------------------------------------
 */

static int dispatch(struct membership *m, const struct membership_event *ev,
                    struct membership_actions *out)
{
    switch (ev->type) {
    case MEMBERSHIP_TICK:
        break;
    case MEMBERSHIP_SELF:
        take_self(m, ev->member);
        break;
    case MEMBERSHIP_LEAD:
        take_lead(m, ev, out);
        break;
    case MEMBERSHIP_FOLLOW:
        take_follow(m, ev, out);
        break;
    case MEMBERSHIP_REPORT:
        take_report(m, ev, out);
        break;
    case MEMBERSHIP_STREAM_BROKEN:
        take_broken(m, ev->session, out);
        break;
    case MEMBERSHIP_DIALED:
        take_dialed(m, ev, out);
        break;
    case MEMBERSHIP_LIST:
        return take_list(m, ev->list, out);
    case MEMBERSHIP_LINK_DOWN:
        take_link_down(m, ev);
        break;
    }
    return 0;
}

int membership_step(struct membership *m, const struct membership_event *ev,
                    uint64_t now_ms, struct membership_actions *out)
{
    size_t listed = ev->type == MEMBERSHIP_LIST ? ev->list->n_members : 0;
    uint64_t gap_ms = now_ms > m->now_ms ? now_ms - m->now_ms : 0;
    int rv;

    actions_clear(out);
    if (listed > MEMBERSHIP_MAX) {
        return HEDGE_EPROTO;
    }
    rv = reserve_actions(out, 2 * m->n + listed + 8);
    if (rv == 0) {
        rv = reserve_entries(m, m->n + 1);
    }
    if (rv != 0) {
        return rv;
    }
    m->now_ms += gap_ms;
    forgive_gap(m, gap_ms);
    rv = dispatch(m, ev, out);
    if (m->leading) {
        lead(m, out);
        out->wake_ms = lead_wake(m);
    } else {
        follow(m, out);
        out->wake_ms = m->linked ? m->report_at_ms : m->connect_at_ms;
    }
    return rv;
}

int membership_new(const struct membership_options *o, struct membership **out)
{
    struct membership *m = mem_calloc(1, sizeof *m);

    *out = NULL;
    assert(member_ok(&o->self) && o->interval_ms > 0 && o->block_size > 0);
    if (m == NULL) {
        return HEDGE_ENOMEM;
    }
    m->o = *o;
    m->connect_at_ms = MEMBERSHIP_NEVER;
    m->retry_ms = RETRY_MS_MIN;
    if (reserve_entries(m, 1) != 0) {
        mem_free(m);
        return HEDGE_ENOMEM;
    }
    (void)insert(m, 0, &o->self);
    *out = m;
    return 0;
}

void membership_free(struct membership *m)
{
    if (m != NULL) {
        mem_free(m->entries);
        mem_free(m);
    }
}

size_t membership_count(const struct membership *m)
{
    return m->n;
}

const struct member *membership_at(const struct membership *m, size_t i)
{
    assert(i < m->n);
    return &m->entries[i].m;
}

const struct member *membership_find(const struct membership *m, const char *id)
{
    size_t at;

    return find(m, id, &at) ? &m->entries[at].m : NULL;
}

const struct member *membership_self(const struct membership *m)
{
    return &self_entry(m)->m;
}

uint64_t membership_version(const struct membership *m, uint64_t *token)
{
    if (token != NULL) {
        *token = m->list_token;
    }
    return m->list_version;
}

const struct membership_leader *membership_leader(const struct membership *m)
{
    return &m->leader;
}

bool membership_is_in_group(const struct membership *m)
{
    return m->leading || m->heard;
}

bool membership_is_settled(const struct membership *m)
{
    return m->leading && m->settled;
}
