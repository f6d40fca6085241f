/* Calls of other nodes as they are taken apart on arrival, one after the other
 * into a core that leads, with appends that take effect at once, later, or
 * fail; and rows as they are read from the disk. The first byte says which of
 * the two; of calls, a byte of length comes before each, whose top bits say
 * what happens beside it. */
#include "cluster/locks/lock_rows.h"
#include "cluster/locks/locks_internal.h"
#include "store/base/mem.h"

#include <stdlib.h>
#include <string.h>

#define CALLS_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct semaphores *core;
static uint64_t now, revision, pending;
static size_t n_pending;
static struct semaphore_call *calls[CALLS_MAX];
static unsigned n_calls;

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void step(struct semaphore_event ev)
{
    struct semaphore_actions a;

    ev.leads = true;
    semaphores_step(core, &ev, now, &a);
    while (list_pop(&a.answers) != NULL) {
    }
    if (a.append_id != 0) {
        check(pending == 0);
        pending = a.append_id;
        n_pending = a.n_rows;
        for (size_t i = 0; i < a.n_rows; i++) {
            check(a.rows[i].permits >= 1 &&
                  a.rows[i].permits <= SEMAPHORE_LIMIT_MAX);
        }
        mem_free(a.rows);
    }
    check(semaphores_check(core, now) == NULL);
    if (a.load_id != 0) {
        step((struct semaphore_event){.type = SEMAPHORE_LOADED,
                                      .id = a.load_id});
    }
}

static void append(int status)
{
    uint64_t revisions[SEMAPHORE_BATCH_MAX], id = pending;

    for (size_t i = 0; i < n_pending; i++) {
        revisions[i] = ++revision;
    }
    pending = 0;
    if (id != 0) {
        step((struct semaphore_event){.type = SEMAPHORE_APPENDED,
                                      .id = id,
                                      .status = status,
                                      .revisions = revisions});
    }
}

static void take_call(const uint8_t *data, size_t size)
{
    Hedge__V1__LockCall *m =
        pb_unpack(&hedge__v1__lock_call__descriptor, data, size);
    struct semaphore_call *c = m != NULL ? mem_calloc(1, sizeof *c) : NULL;

    if (c != NULL && lock_wire_to_call(m, c)) {
        calls[n_calls++] = c;
        step((struct semaphore_event){.type = SEMAPHORE_CALL, .call = c});
    } else {
        mem_free(c);
    }
    pb_free(m);
}

static void take_calls(const uint8_t *data, size_t size)
{
    const struct semaphore_options o = {.requeue_ms = 100};

    now = 1000;
    revision = pending = 0;
    n_calls = 0;
    check(semaphores_new(&o, &core) == 0);
    step((struct semaphore_event){.type = SEMAPHORE_LEAD, .term = 1});
    while (size > 0 && n_calls < CALLS_MAX) {
        size_t len = data[0] & 63u;
        unsigned what = data[0] >> 6;

        data++;
        size--;
        len = len < size ? len : size;
        take_call(data, len);
        data += len;
        size -= len;
        now += what == 1 ? 600 : what == 2 ? 20000 : 1;
        if (what != 3) {
            append(what == 2 && (len & 1u) != 0 ? HEDGE_EIO : 0);
        }
        step((struct semaphore_event){.type = SEMAPHORE_TICK});
    }
    append(0);
    semaphores_free(core);
    for (unsigned i = 0; i < n_calls; i++) {
        mem_free(calls[i]->held);
        mem_free(calls[i]->list);
        mem_free(calls[i]);
    }
}

static void take_row(const uint8_t *data, size_t size)
{
    struct semaphore_row row;
    size_t key = size > 0 ? data[0] : 0;

    if (size < 1 + key || lock_row_parse(data + 1, key, data + 1 + key,
                                         size - 1 - key, 1, &row) != 0) {
        return;
    }
    check(row.permits >= 1 && row.permits <= row.limit && row.token != 0 &&
          row.session != 0 && strlen(row.name) < sizeof row.name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && data[0] % 2 == 0) {
        take_calls(data + 1, size - 1);
    } else if (size > 0) {
        take_row(data + 1, size - 1);
    }
    return 0;
}
