/* SPDX-License-Identifier: Apache-2.0 */
/* party.c - who belongs to which call, when threads come and go at different times.
 *
 * A call ends when all its threads have come and its work is done.  So nobody can come to the
 * next call before all have come to this one, and its number, read on arrival, is that of the
 * thread's own call.  A thread that is still leaving call n reads its result while others may be in
 * the next calls, which need not wait for him otherwise: the next result is written when all have
 * read the last. */
#define _GNU_SOURCE
#include "party.h"

#include "error.h"
#include "fpenv.h"
#include "wait.h"

#include <string.h>

enum { CACHE_LINE = 64 };

/* A word that thread 0 waits for has a number, and this. */
#define WAITING 0x80000000u /* thread 0 sleeps until the number is the one it waits for */

struct party {
    _Alignas(CACHE_LINE) atomic_uint call; /* number of the call */
    atomic_uint come;                      /* threads that have come to it, but for thread 0 */
    atomic_uint leaving; /* threads that have yet to read the last call's result, which is: */
    moe_status status;
    char text[512]; /* of the error */
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

static void await(atomic_uint *word, unsigned number)
{
    unsigned a = atomic_load(word);
    for (wait_budget w = {0, 0}; (a & ~WAITING) != number;) {
        if (!wait_spin(&w) &&
            ((a & WAITING) != 0 || atomic_compare_exchange_strong(word, &a, a | WAITING)))
            wait_sleep(word, a | WAITING, WAIT_CALLER);
        a = atomic_load(word);
    }
}

/* Adds to a word that thread 0 may wait for. */
static void add(atomic_uint *word, unsigned change)
{
    if ((atomic_fetch_add(word, change) & WAITING) != 0) wait_wake(word, 1, WAIT_CALLER);
}

moe_status party_close(party *p, int nth, moe_status status)
{
    unsigned others = (unsigned)nth - 1;
    await(&p->come, others);
    await(&p->leaving, 0);
    p->status = status;
    strncpy(p->text, status == MOE_OK ? "" : moe_last_error(), sizeof p->text - 1);
    atomic_store(&p->come, 0);
    atomic_store(&p->leaving, others);
    threads_release(team_of(p), &p->call, atomic_load(&p->call) + 1);
    return status;
}

moe_status party_join(party *p, int ith)
{
    unsigned call = atomic_load(&p->call);
    add(&p->come, 1);
    fpenv saved = fpenv_enter();
    threads_join(team_of(p), (size_t)ith, &p->call, call);
    fpenv_leave(saved);
    moe_status status = p->status == MOE_OK ? MOE_OK : error_set(p->status, "%s", p->text);
    add(&p->leaving, UINT_MAX); /* - 1 */
    return status;
}
