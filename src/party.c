/* SPDX-License-Identifier: Apache-2.0 */
/* party.c - who belongs to which call, when threads come and go at different times.
 *
 * A call ends when all its threads have come and its work is done.  So nobody can come to the
 * next call before all have come to this one, and its number, read on arrival, is that of the
 * thread's own call.  A thread that is still leaving call n reads its result while the others may
 * be in call n + 1, but not beyond, because that waits for him: two results are enough. */
#define _GNU_SOURCE
#include "party.h"

#include "error.h"
#include "fpenv.h"
#include "wait.h"

#include <string.h>

enum { CACHE_LINE = 64 };

/* The arrivals word: threads that have come, but for thread 0; and this. */
#define WAITING 0x80000000u /* thread 0 sleeps until the last has come */

typedef struct result {
    moe_status status;
    char text[512]; /* of the error */
} result;

struct party {
    _Alignas(CACHE_LINE) atomic_uint call; /* number of the call */
    atomic_uint arrivals;
    result result[2]; /* of even calls and odd ones */
};

static threads *team_of(party *p)
{
    return (threads *)(void *)(p + 1);
}

size_t party_bytes(void)
{
    return sizeof(party) + threads_bytes();
}

threads *party_open(party *p, int nth, int processors)
{
    threads *team = team_of(p);
    threads_gather(team, nth, processors);
    return team;
}

static void await_arrivals(party *p, unsigned others)
{
    unsigned a = atomic_load(&p->arrivals);
    for (wait_budget w = {0, 0}; (a & ~WAITING) != others;) {
        if (!wait_spin(&w) &&
            ((a & WAITING) != 0 || atomic_compare_exchange_strong(&p->arrivals, &a, a | WAITING)))
            wait_sleep(&p->arrivals, a | WAITING, WAIT_CALLER);
        a = atomic_load(&p->arrivals);
    }
    atomic_store(&p->arrivals, 0);
}

moe_status party_close(party *p, int nth, moe_status status)
{
    unsigned call = atomic_load(&p->call);
    result *r = &p->result[call % 2];
    r->status = status;
    strncpy(r->text, status == MOE_OK ? "" : moe_last_error(), sizeof r->text - 1);
    await_arrivals(p, (unsigned)nth - 1);
    threads_release(team_of(p), &p->call, call + 1);
    return status;
}

moe_status party_join(party *p, int ith)
{
    unsigned call = atomic_load(&p->call);
    if ((atomic_fetch_add(&p->arrivals, 1) & WAITING) != 0) wait_wake(&p->arrivals, 1, WAIT_CALLER);
    fpenv saved = fpenv_enter();
    threads_join(team_of(p), (size_t)ith, &p->call, call);
    fpenv_leave(saved);
    const result *r = &p->result[call % 2];
    return r->status == MOE_OK ? MOE_OK : error_set(r->status, "%s", r->text);
}
