#include "store/base/pool.h"

#include "store/base/errors.h"
#include "store/base/mem.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct list queue;
    bool closing;
    unsigned queued, busy;
    unsigned n_threads;
    pthread_t threads[];
};

static void *worker(void *arg)
{
    struct pool *p = arg;

    pthread_mutex_lock(&p->lock);
    for (;;) {
        struct list *item = list_pop(&p->queue);
        struct work *w;

        if (item == NULL && p->closing) {
            break;
        }
        if (item == NULL) {
            pthread_cond_wait(&p->wake, &p->lock);
            continue;
        }
        p->queued--;
        p->busy++;
        pthread_mutex_unlock(&p->lock);
        w = container_of(item, struct work, link);
        w->fn(w);
        pthread_mutex_lock(&p->lock);
        p->busy--;
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int pool_new(unsigned n_threads, const char *name, struct pool **out)
{
    struct pool *p;
    char short_name[16];

    assert(n_threads > 0);
    *out = NULL;
    p = mem_calloc(1, sizeof *p + n_threads * sizeof p->threads[0]);
    if (p == NULL) {
        return HEDGE_ENOMEM;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    list_init(&p->queue);
    (void)snprintf(short_name, sizeof short_name, "%s", name);
    for (; p->n_threads < n_threads; p->n_threads++) {
        pthread_t *t = &p->threads[p->n_threads];
        if (pthread_create(t, NULL, worker, p) != 0) {
            pool_free(p);
            return HEDGE_ENOMEM;
        }
        (void)pthread_setname_np(*t, short_name);
    }
    *out = p;
    return 0;
}

int pool_submit(struct pool *p, struct work *w, work_fn fn)
{
    int rv = 0;

    w->fn = fn;
    pthread_mutex_lock(&p->lock);
    if (p->closing) {
        rv = HEDGE_ECLOSED;
    } else {
        list_push(&p->queue, &w->link);
        p->queued++;
        pthread_cond_signal(&p->wake);
    }
    pthread_mutex_unlock(&p->lock);
    return rv;
}

void pool_use(struct pool *p, struct pool_use *out)
{
    pthread_mutex_lock(&p->lock);
    *out = (struct pool_use){
        .threads = p->n_threads, .busy = p->busy, .queued = p->queued};
    pthread_mutex_unlock(&p->lock);
}

void pool_free(struct pool *p)
{
    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_threads; i++) {
        pthread_join(p->threads[i], NULL);
    }
    assert(list_empty(&p->queue));
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}
