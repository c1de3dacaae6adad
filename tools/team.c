/* SPDX-License-Identifier: Apache-2.0 */
/* team.c - pinned threads that start together.
 *
 * Sleeps on a condition variable between runs, so that it takes nothing from what is measured in
 * between; a run begins at a spinning barrier, so that no thread's waking is measured. */
#define _GNU_SOURCE 1

#include "team.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* ---- pinning ------------------------------------------------------------------------------- */

static bool pin(int task, int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    return sched_setaffinity(task, sizeof set, &set) == 0;
}

void team_tasks_now(team_tasks *t)
{
    t->n = 0;
    DIR *folder = opendir("/proc/self/task");
    for (struct dirent *e; folder && (e = readdir(folder)) != NULL;) {
        int id = atoi(e->d_name);
        if (id > 0 && t->n < sizeof t->id / sizeof t->id[0]) t->id[t->n++] = id;
    }
    if (folder) closedir(folder);
}

static bool has(const team_tasks *t, int id)
{
    for (size_t i = 0; i < t->n; i++)
        if (t->id[i] == id) return true;
    return false;
}

bool team_pin(const team_tasks *before, const int *cpu, size_t cpus)
{
    team_tasks now;
    size_t fresh = 0;
    team_tasks_now(&now);
    for (size_t i = 0; i < now.n; i++) fresh += !has(before, now.id[i]);
    if (fresh + 1 > cpus) return false;
    bool done = pin(0, cpu[0]);
    fresh = 0;
    for (size_t i = 0; i < now.n; i++)
        if (!has(before, now.id[i])) done = pin(now.id[i], cpu[++fresh]) && done;
    return done;
}

double team_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- the threads --------------------------------------------------------------------------- */

typedef struct member {
    team *team;
    size_t number;
    int cpu; /* -1: any */
    pthread_t thread;
} member;

struct team {
    size_t n; /* the caller included */
    pthread_mutex_t lock;
    pthread_cond_t start, finished;
    unsigned round; /* changes when a run starts */
    size_t running;
    bool stop;
    void (*body)(void *arg, size_t i);
    void *arg;
    atomic_size_t arrived;
    member member[];
};

/* Waits until all have come.  Where there are fewer CPUs than threads the others must get theirs. */
static void meet(team *t)
{
    enum { SPINS = 1000 };
    atomic_fetch_add(&t->arrived, 1);
    for (int i = 0; atomic_load(&t->arrived) < t->n; i++)
        if (i >= SPINS) sched_yield();
}

static void *work(void *arg)
{
    const member *m = arg;
    team *t = m->team;
    unsigned seen = 0;
    if (m->cpu >= 0) pin(0, m->cpu);
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (t->round == seen && !t->stop) pthread_cond_wait(&t->start, &t->lock);
        if (t->stop) break;
        seen = t->round;
        pthread_mutex_unlock(&t->lock);
        meet(t);
        t->body(t->arg, m->number);
        pthread_mutex_lock(&t->lock);
        if (--t->running == 0) pthread_cond_signal(&t->finished);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

team *team_create(size_t n, const int *cpu, size_t cpus)
{
    team *t = calloc(1, sizeof *t + n * sizeof t->member[0]);
    if (!t) return NULL;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->start, NULL);
    pthread_cond_init(&t->finished, NULL);
    for (t->n = 1; t->n < n; t->n++) {
        member *m = &t->member[t->n];
        *m = (member){.team = t, .number = t->n, .cpu = n <= cpus ? cpu[t->n] : -1};
        if (pthread_create(&m->thread, NULL, work, m) != 0) break;
    }
    return t;
}

void team_destroy(team *t)
{
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->start);
    pthread_mutex_unlock(&t->lock);
    for (size_t i = 1; i < t->n; i++) pthread_join(t->member[i].thread, NULL);
    pthread_cond_destroy(&t->start);
    pthread_cond_destroy(&t->finished);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

size_t team_size(const team *t)
{
    return t->n;
}

void team_run(team *t, void (*body)(void *arg, size_t i), void *arg)
{
    pthread_mutex_lock(&t->lock);
    t->body = body;
    t->arg = arg;
    t->running = t->n - 1;
    atomic_store(&t->arrived, 0);
    t->round++;
    pthread_cond_broadcast(&t->start);
    pthread_mutex_unlock(&t->lock);
    meet(t);
    body(arg, 0);
    pthread_mutex_lock(&t->lock);
    while (t->running > 0) pthread_cond_wait(&t->finished, &t->lock);
    pthread_mutex_unlock(&t->lock);
}
