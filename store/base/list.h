/* list.h - an intrusive doubly linked list, also used as a queue.
 *
 * Ownership: links live in the caller's objects; the list owns nothing.
 * Threads:   none of its own; the caller's lock guards a list.
 * Errors:    none.
 * Units:     none.
 * Limits:    an object is on one list per link at a time. */
#ifndef STORE_BASE_LIST_H
#define STORE_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *next, *prev;
};

#define container_of(ptr, type, member) \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define list_foreach(pos, head) \
    for ((pos) = (head)->next; (pos) != (head); (pos) = (pos)->next)

/* `pos` may be removed inside the loop. */
#define list_foreach_safe(pos, tmp, head)                            \
    for ((pos) = (head)->next, (tmp) = (pos)->next; (pos) != (head); \
         (pos) = (tmp), (tmp) = (pos)->next)

static inline void list_init(struct list *l)
{
    l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
    return l->next == l;
}

static inline void list_push(struct list *head, struct list *item)
{
    item->prev = head->prev;
    item->next = head;
    head->prev->next = item;
    head->prev = item;
}

static inline void list_push_front(struct list *head, struct list *item)
{
    item->next = head->next;
    item->prev = head;
    head->next->prev = item;
    head->next = item;
}

/* The item is left initialised, so that removing it again does nothing. */
static inline void list_remove(struct list *item)
{
    item->prev->next = item->next;
    item->next->prev = item->prev;
    list_init(item);
}

static inline struct list *list_pop(struct list *head)
{
    struct list *item = head->next;

    if (item == head) {
        return NULL;
    }
    list_remove(item);
    return item;
}

/* Move everything from `from` to the end of `to`; `from` is left empty. */
static inline void list_splice(struct list *to, struct list *from)
{
    if (list_empty(from)) {
        return;
    }
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#endif
