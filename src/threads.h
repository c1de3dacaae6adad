/* SPDX-License-Identifier: Apache-2.0 */
/* threads.h - a pool of threads that runs loops. */
#ifndef MOE_THREADS_H
#define MOE_THREADS_H

#include "memory.h"

#include <stdbool.h>

typedef struct threads threads;

/* A pool in which `count` threads work, the caller of a loop among them; fewer if the system
 * gives fewer.  NULL: no memory. */
threads *threads_create(int count, const allocator *m);

/* Joins and frees.  No loop may be running. */
void threads_destroy(threads *t, const allocator *m);

/* Frees a pool whose threads a fork has left behind. */
void threads_forget(threads *t, const allocator *m);

int threads_count(const threads *t);

/* Takes the pool for this caller's loops until threads_give; false if another caller has it. */
bool threads_take(threads *t);
void threads_give(threads *t);

/* Calls body(arg, i) for every i < n, each once, on the pool's threads and the caller's, in any
 * order, and returns when all are done.  t NULL: on the caller's alone. */
void threads_loop(threads *t, size_t n, void (*body)(void *arg, size_t i), void *arg);

#endif
