/* mem.h - the one door to the heap.
 *
 * Ownership: the caller owns what is returned and ends it with mem_free().
 * Threads:   any thread.
 * Errors:    NULL when there is no memory, or when a test asked for it.
 * Units:     bytes.
 * Limits:    the block data of stores never comes from here (see arena.h). */
#ifndef STORE_BASE_MEM_H
#define STORE_BASE_MEM_H

#include <stddef.h>

void *mem_alloc(size_t size);
void *mem_calloc(size_t n, size_t size);
/* On failure `p` stays as it was, still owned by the caller. */
void *mem_realloc(void *p, size_t size);
char *mem_strdup(const char *s);
/* `s` need not be terminated; the copy is. */
char *mem_strndup(const char *s, size_t len);
void mem_free(void *p);

/* Tests: let `n` allocations succeed, then fail all that follow; a negative n
 * switches failing off. Counts over all threads. */
void mem_fail_after(long n);

#endif
