/* SPDX-License-Identifier: Apache-2.0 */
/* threads.c - fork and join over an index range, for loops of microseconds.
 *
 * A loop is open from its publication until the caller finds nothing left to take.  Who enters it
 * counts himself in, in the same word that says that it is open; the caller closes it and waits
 * until all who entered have left.  So a thread that wakes late finds a closed loop or the next
 * one, and can neither be waited for nor see a loop that has ended.
 *
 * Threads without a loop spin for a moment (wait.h), then sleep.  Owns no barrier but the end of
 * a loop, and no order of indices: bits do not depend on who runs what. */
#define _GNU_SOURCE
#include "threads.h"

#include "fpenv.h"
#include "wait.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

enum { CACHE_LINE = 64 };

/* The entry word: threads inside; then these. */
enum {
    INSIDE = 0x7FF,  /* at most THREADS_MOST */
    OPEN = 0x800,    /* may be entered */
    WAITING = 0x1000 /* the caller sleeps until all have left */
};
#define ROUND 0x2000u /* counts loops, modulo 2^19, in the bits from here up */

_Static_assert((THREADS_MOST & INSIDE) == THREADS_MOST, "a team must fit");

/* Bytes of weights that are worth waking threads for; less is too in calls that follow one another
 * so closely that threads stay awake in between.  A wake-up takes some tens of us, and a virtual
 * machine may first put the woken thread on the caller's own processor: on one of 2 processors, idle
 * for 1 ms before each call, two threads broke even with one at 3 MB and took half at 6 MB. */
enum { WORTH_WAKING = 1 << 22 };

/* Indices beyond this many are taken in runs, so that both ends of a range fit in one word. */
enum { MOST_ITEMS = 1 << 20 };

typedef struct loop {
    void (*body)(void *arg, size_t i);
    void *arg;
    size_t n, grain; /* indices; those of one item */
    size_t parts;    /* ranges */
} loop;

/* A participant's range of items, and its thread if the team made one. */
typedef struct seat {
    _Alignas(CACHE_LINE) _Atomic uint64_t range; /* end << 32 | begin; only shrinks while open */
    threads *team;
    pthread_t thread;
} seat;

struct threads {
    /* What a thread looks at to work; loop is written while nobody is inside. */
    _Alignas(CACHE_LINE) atomic_uint entry;
    atomic_uint sleepers;
    atomic_uint spare; /* sleepers to leave asleep: threads beyond the processors */
    atomic_uint stop;
    loop loop;

    _Alignas(CACHE_LINE) atomic_flag taken;
    bool wakes;    /* this call wakes sleepers */
    int64_t given; /* when the last call ended */
    int64_t woken; /* when sleepers were last woken */
    int count;     /* participants */
    int workers;   /* threads that were created */
    threads_for *run;
    void *user;
    size_t bytes;

    seat seat[];
};

/* ---- items ----------------------------------------------------------------------------------- */

static uint64_t range_make(size_t begin, size_t end)
{
    return (uint64_t)end << 32 | (uint64_t)begin;
}

/* Takes the first or last item of a range.  Ranges carry no data, hence relaxed: what bodies read
 * and wrote is ordered by the entry word. */
static bool range_take(_Atomic uint64_t *range, bool first, size_t *item)
{
    uint64_t r = atomic_load_explicit(range, memory_order_relaxed), rest;
    do {
        size_t begin = (uint32_t)r, end = (size_t)(r >> 32);
        if (begin >= end) return false;
        *item = first ? begin : end - 1;
        rest = first ? range_make(begin + 1, end) : range_make(begin, end - 1);
    } while (!atomic_compare_exchange_weak_explicit(range, &r, rest, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

static void run_item(const loop *l, size_t item)
{
    size_t i = item * l->grain, end = l->n - i < l->grain ? l->n : i + l->grain;
    for (; i < end; i++) l->body(l->arg, i);
}

/* All items that participant w can get.  Ranges only shrink, so that one look at each is enough. */
static void run_items(threads *t, size_t w)
{
    const loop l = t->loop;
    size_t own = w % l.parts, item;
    while (range_take(&t->seat[own].range, true, &item)) run_item(&l, item);
    for (size_t k = 1; k < l.parts; k++)
        while (range_take(&t->seat[(own + k) % l.parts].range, false, &item)) run_item(&l, item);
}

static void set_loop(threads *t, size_t n, void (*body)(void *arg, size_t i), void *arg)
{
    size_t grain = n / MOST_ITEMS + 1, items = n / grain + (n % grain != 0),
           parts = items < (size_t)t->count ? items : (size_t)t->count;
    t->loop = (loop){body, arg, n, grain, parts};
    for (size_t w = 0; w < parts; w++)
        atomic_store_explicit(&t->seat[w].range,
                              range_make(items * w / parts, items * (w + 1) / parts),
                              memory_order_relaxed);
}

/* ---- the loop's caller ----------------------------------------------------------------------- */

/* No thread is inside, and none can enter: the word is the caller's, but for the rounds that a
 * release adds late; that one of them is lost here is no loss. */
static unsigned next_round(const threads *t)
{
    return (atomic_load_explicit(&t->entry, memory_order_relaxed) & ~(ROUND - 1)) + ROUND;
}

/* Begins another round and wakes who sleeps on an older one: once in the time that it takes them to
 * come, until when they still count as asleep. */
static void publish(threads *t, unsigned entry)
{
    atomic_store(&t->entry, entry);
    unsigned asleep = atomic_load(&t->sleepers), spare = atomic_load(&t->spare);
    if (!t->wakes || asleep <= spare) return;
    int64_t now = wait_clock();
    if (now - t->woken < WAIT_NS) return;
    t->woken = now;
    wait_wake(&t->entry, asleep - spare, WAIT_WORKER);
}

static void close_loop(threads *t)
{
    unsigned e = atomic_fetch_and_explicit(&t->entry, ~(unsigned)OPEN, memory_order_acquire) &
                 ~(unsigned)OPEN;
    for (wait_budget w = {0, 0}; (e & INSIDE) != 0;) {
        if (!wait_spin(&w) &&
            ((e & WAITING) != 0 || atomic_compare_exchange_strong(&t->entry, &e, e | WAITING)))
            wait_sleep(&t->entry, e | WAITING, WAIT_CALLER);
        e = atomic_load_explicit(&t->entry, memory_order_acquire);
    }
}

static void borrowed_part(void *arg, size_t w)
{
    fpenv saved = fpenv_enter();
    run_items(arg, w);
    fpenv_leave(saved);
}

void threads_loop(threads *t, size_t n, void (*body)(void *arg, size_t i), void *arg)
{
    if (t == NULL || t->count < 2 || n < 2) {
        for (size_t i = 0; i < n; i++) body(arg, i);
        return;
    }
    set_loop(t, n, body, arg);
    if (t->run != NULL) {
        t->run(borrowed_part, t, t->loop.parts, t->user);
        return;
    }
    publish(t, next_round(t) | OPEN);
    run_items(t, 0);
    close_loop(t);
}

/* ---- the others ------------------------------------------------------------------------------ */

static void leave_loop(threads *t)
{
    unsigned e = atomic_fetch_sub_explicit(&t->entry, 1, memory_order_release);
    if ((e & WAITING) != 0 && (e & INSIDE) == 1) wait_wake(&t->entry, 1, WAIT_CALLER);
}

/* Counted before the last look at the entry word, and its publisher looks at the count after he
 * has written it: one of the two sees the other. */
static void sleep_at(threads *t, unsigned entry)
{
    atomic_fetch_add(&t->sleepers, 1);
    if (atomic_load(&t->entry) == entry) wait_sleep(&t->entry, entry, WAIT_WORKER);
    atomic_fetch_sub(&t->sleepers, 1);
}

void threads_join(threads *t, size_t w, const atomic_uint *word, unsigned value)
{
    unsigned seen = 0; /* the round that held nothing more for this thread, with OPEN */
    wait_budget budget = {0, 0};
    for (;;) {
        unsigned e = atomic_load(&t->entry); /* before *word: see threads_release */
        if (atomic_load(word) != value) return;
        if ((e & OPEN) != 0 && (e & ~(unsigned)(INSIDE | WAITING)) != seen) {
            if (!atomic_compare_exchange_strong_explicit(&t->entry, &e, e + 1, memory_order_acquire,
                                                         memory_order_relaxed))
                continue;
            seen = e & ~(unsigned)(INSIDE | WAITING);
            run_items(t, w);
            leave_loop(t);
        } else if (atomic_load(&t->sleepers) >= atomic_load(&t->spare) && wait_spin(&budget)) {
            continue;
        } else {
            sleep_at(t, e);
        }
        budget = (wait_budget){0, 0};
    }
}

/* The word first, then a new round: who sees the round sees the word, and who slept on the old
 * round is woken.  Who sees the word may already be the caller of the next loop: the entry word is
 * his then, so that the round is added to it and what else it says stays. */
void threads_release(threads *t, atomic_uint *word, unsigned value)
{
    atomic_store(word, value);
    atomic_fetch_add(&t->entry, ROUND);
    if (atomic_load(&t->sleepers) > 0) wait_wake(&t->entry, INT_MAX, WAIT_WORKER);
}

size_t threads_bytes(void)
{
    return sizeof(threads) + THREADS_MOST * sizeof(seat);
}

static void set_count(threads *t, int count, int processors)
{
    int awake = processors < 2 ? 2 : processors; /* the caller and one more in any case */
    t->count = count;
    atomic_store(&t->spare, count > awake ? (unsigned)(count - awake) : 0);
}

void threads_gather(threads *t, int count, int processors)
{
    set_count(t, count, processors);
    t->wakes = true;
}

/* ---- a team with threads of its own ---------------------------------------------------------- */

static void *worker(void *arg)
{
    const seat *s = arg;
    threads *t = s->team;
    fpenv_enter();
    threads_join(t, (size_t)(s - t->seat), &t->stop, 0);
    return NULL;
}

static threads *allocate(int count, const allocator *m)
{
    size_t bytes = sizeof(threads) + (size_t)count * sizeof(seat);
    threads *t = m->allocate(bytes, CACHE_LINE, m->user);
    if (t == NULL) return NULL;
    memset(t, 0, bytes);
    atomic_flag_clear(&t->taken);
    t->bytes = bytes;
    t->count = count;
    return t;
}

threads *threads_borrow(int count, threads_for *run, void *user, const allocator *m)
{
    threads *t = allocate(count, m);
    if (t == NULL) return NULL;
    t->run = run;
    t->user = user;
    return t;
}

threads *threads_create(int count, int processors, const allocator *m)
{
    threads *t = allocate(count, m);
    if (t == NULL) return NULL;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (t->workers < count - 1) {
        seat *s = &t->seat[t->workers + 1];
        s->team = t;
        if (pthread_create(&s->thread, NULL, worker, s) != 0) break;
        t->workers++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    set_count(t, t->workers + 1, processors);
    return t;
}

void threads_destroy(threads *t, const allocator *m)
{
    threads_release(t, &t->stop, 1);
    for (int w = 1; w <= t->workers; w++) pthread_join(t->seat[w].thread, NULL);
    m->release(t, t->bytes, m->user);
}

void threads_forget(threads *t, const allocator *m)
{
    m->release(t, t->bytes, m->user);
}

int threads_count(const threads *t)
{
    return t->count;
}

bool threads_take(threads *t, size_t bytes)
{
    if (atomic_flag_test_and_set_explicit(&t->taken, memory_order_acquire)) return false;
    t->wakes = bytes >= WORTH_WAKING || wait_clock() - t->given < WAIT_NS;
    publish(t, next_round(t)); /* without a loop as yet */
    return true;
}

void threads_give(threads *t)
{
    t->given = wait_clock();
    atomic_flag_clear_explicit(&t->taken, memory_order_release);
}
