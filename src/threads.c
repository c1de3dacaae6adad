/* SPDX-License-Identifier: Apache-2.0 */
/* threads.c - fork and join over an index range: one loop at a time, indices dealt out one by
 * one.
 *
 * Workers sleep on a condition variable between loops, block every signal, and run in the
 * canonical floating-point environment for life. */
#define _POSIX_C_SOURCE 200809L
#include "threads.h"

#include "fpenv.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

struct threads {
    pthread_mutex_t lock;
    pthread_cond_t start, finished;
    atomic_flag taken;
    int workers; /* threads that were created */
    size_t bytes;
    bool stop;

    /* The loop; written under lock while no worker runs. */
    unsigned round; /* changes when a loop starts */
    int running;    /* workers that have not finished the round */
    size_t n;
    void (*body)(void *arg, size_t i);
    void *arg;
    atomic_size_t next;

    pthread_t thread[];
};

static void run_indices(threads *t)
{
    for (;;) {
        size_t i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (i >= t->n) return;
        t->body(t->arg, i);
    }
}

static void *worker(void *arg)
{
    threads *t = arg;
    unsigned seen = 0;
    fpenv_enter();
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (t->round == seen && !t->stop) pthread_cond_wait(&t->start, &t->lock);
        if (t->stop) break;
        seen = t->round;
        pthread_mutex_unlock(&t->lock);
        run_indices(t);
        pthread_mutex_lock(&t->lock);
        if (--t->running == 0) pthread_cond_signal(&t->finished);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

threads *threads_create(int count, const allocator *m)
{
    size_t bytes = sizeof(threads) + (size_t)(count - 1) * sizeof(pthread_t);
    threads *t = m->allocate(bytes, _Alignof(max_align_t), m->user);
    if (t == NULL) return NULL;
    memset(t, 0, bytes);
    t->bytes = bytes;
    atomic_flag_clear(&t->taken);
    pthread_mutex_init(&t->lock,
                       NULL); /* these three cannot fail with default attributes on Linux */
    pthread_cond_init(&t->start, NULL);
    pthread_cond_init(&t->finished, NULL);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (t->workers < count - 1 && pthread_create(&t->thread[t->workers], NULL, worker, t) == 0)
        t->workers++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return t;
}

void threads_destroy(threads *t, const allocator *m)
{
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->start);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->workers; i++) pthread_join(t->thread[i], NULL);
    pthread_cond_destroy(&t->finished);
    pthread_cond_destroy(&t->start);
    pthread_mutex_destroy(&t->lock);
    m->release(t, t->bytes, m->user);
}

void threads_forget(threads *t, const allocator *m)
{
    m->release(t, t->bytes, m->user);
}

int threads_count(const threads *t)
{
    return t->workers + 1;
}

bool threads_take(threads *t)
{
    return !atomic_flag_test_and_set_explicit(&t->taken, memory_order_acquire);
}

void threads_give(threads *t)
{
    atomic_flag_clear_explicit(&t->taken, memory_order_release);
}

void threads_loop(threads *t, size_t n, void (*body)(void *arg, size_t i), void *arg)
{
    if (t == NULL || t->workers == 0 || n < 2) {
        for (size_t i = 0; i < n; i++) body(arg, i);
        return;
    }
    pthread_mutex_lock(&t->lock);
    t->n = n;
    t->body = body;
    t->arg = arg;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    t->running = t->workers;
    t->round++;
    pthread_cond_broadcast(&t->start);
    pthread_mutex_unlock(&t->lock);
    run_indices(t);
    pthread_mutex_lock(&t->lock);
    while (t->running > 0) pthread_cond_wait(&t->finished, &t->lock);
    pthread_mutex_unlock(&t->lock);
}
