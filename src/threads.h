/* SPDX-License-Identifier: Apache-2.0 */
/* threads.h - a team of threads that runs loops: the team's own, threads that join it, or those
 * behind a caller's parallel_for. */
#ifndef MOE_THREADS_H
#define MOE_THREADS_H

#include "memory.h"

#include <stdatomic.h>
#include <stdbool.h>

enum { THREADS_MOST = 1024 };

typedef struct threads threads;

/* Runs body(arg, i) for every i < n, each once, and returns when all have returned. */
typedef void threads_for(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user);

/* A team in which `count` threads work, the caller of a loop among them; fewer if the system
 * gives fewer.  At most `processors` of them are kept awake.  NULL: no memory. */
threads *threads_create(int count, int processors, const allocator *m);

/* A team of `count` without threads of its own: each loop is one call of run. */
threads *threads_borrow(int count, threads_for *run, void *user, const allocator *m);

/* Joins and frees.  No loop may be running. */
void threads_destroy(threads *t, const allocator *m);

/* Frees a team whose threads a fork has left behind. */
void threads_forget(threads *t, const allocator *m);

int threads_count(const threads *t);

/* Takes the team for this caller's loops until threads_give; false if another caller has it.
 * Sleeping threads are woken if `bytes`, which the loops will read, are worth it; those still
 * awake take part in any case. */
bool threads_take(threads *t, size_t bytes);
void threads_give(threads *t);

/* Calls body(arg, i) for every i < n, each once, on the team's threads and the caller's, in any
 * order, and returns when all are done.  Participant w of p begins with [n * w / p, n * (w + 1) /
 * p), front to back, so that equal loops touch the same memory from the same threads; whoever is
 * done takes from the others' backs.  No thread is waited for that has not begun.  t NULL: on the
 * caller's alone. */
void threads_loop(threads *t, size_t n, void (*body)(void *arg, size_t i), void *arg);

/* ---- a team of threads that join it ---------------------------------------------------------- */

/* Zeros of this size at any cache line are a team of up to THREADS_MOST without threads. */
size_t threads_bytes(void);

/* Before the loops of a caller who has `count` - 1 threads with him, which threads_join. */
void threads_gather(threads *t, int count, int processors);

/* Works as participant w on the loops of t until *word is not `value` any more. */
void threads_join(threads *t, size_t w, const atomic_uint *word, unsigned value);

/* Sets *word to `value` and makes everyone who has joined look at it.  No loop may be running. */
void threads_release(threads *t, atomic_uint *word, unsigned value);

#endif
