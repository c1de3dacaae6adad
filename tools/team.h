/* SPDX-License-Identifier: Apache-2.0 */
/* team.h - threads of the tool itself, each on a CPU of its own, and the pinning of others. */
#ifndef MOE_TEAM_H
#define MOE_TEAM_H

#include <stdbool.h>
#include <stddef.h>

/* The threads that the process has at a moment. */
typedef struct team_tasks {
    size_t n;
    int id[1024];
} team_tasks;

void team_tasks_now(team_tasks *t);

/* Pins the caller to cpu[0] and the threads that have come since `before` to cpu[1], cpu[2], ...
 * True if there were CPUs for all and the system did it. */
bool team_pin(const team_tasks *before, const int *cpu, size_t cpus);

typedef struct team team;

/* n threads, the caller as the first of them; number i runs on cpu[i] if there are n CPUs.  Fewer
 * if the system gives fewer.  NULL: no memory. */
team *team_create(size_t n, const int *cpu, size_t cpus);
void team_destroy(team *t); /* NULL is fine */
size_t team_size(const team *t);

/* Calls body(arg, i) on every thread i, all starting together, and returns when all are done. */
void team_run(team *t, void (*body)(void *arg, size_t i), void *arg);

double team_seconds(void); /* a steady clock */

#endif
