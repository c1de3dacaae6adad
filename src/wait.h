/* SPDX-License-Identifier: Apache-2.0 */
/* wait.h - how a thread waits for another: it spins for as long as a wake-up would take, then
 * sleeps on a futex.
 *
 * Owns no state.  A file that includes it defines _GNU_SOURCE. */
#ifndef MOE_WAIT_H
#define MOE_WAIT_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline void wait_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* How long a thread spins: about what it takes to wake one (a virtual machine's idle processor
 * included), so that a wait costs at most twice what the better choice would have. */
enum { WAIT_NS = 50000 };

static inline int64_t wait_clock(void) /* ns */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* One wait, all zeros at its start: `while (!done) if (!wait_spin(&w)) sleep`. */
typedef struct wait_budget {
    unsigned turns;
    int64_t end;
} wait_budget;

/* Lets a moment pass; false once the wait has lasted WAIT_NS. */
static inline bool wait_spin(wait_budget *w)
{
    enum { TURNS = 32 }; /* some hundred ns to some us from one look at the clock to the next */
    wait_relax();
    if (++w->turns % TURNS != 0) return true;
    int64_t now = wait_clock();
    if (w->end == 0) w->end = now + WAIT_NS;
    return now < w->end;
}

/* A word on which threads of both kinds may sleep: those that look for work, and the one that
 * waits for them. */
typedef enum wait_kind { WAIT_WORKER = 1, WAIT_CALLER = 2 } wait_kind;

_Static_assert(sizeof(atomic_uint) == sizeof(uint32_t), "a futex is 32 bits");

/* Sleeps until woken, or not at all unless *word == value; may return for no reason. */
static inline void wait_sleep(atomic_uint *word, unsigned value, wait_kind kind)
{
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value, NULL, NULL, (unsigned)kind);
}

static inline void wait_wake(atomic_uint *word, unsigned most, wait_kind kind)
{
    syscall(SYS_futex, word, FUTEX_WAKE_BITSET_PRIVATE, most < INT_MAX ? most : INT_MAX, NULL, NULL,
            (unsigned)kind);
}

#endif
