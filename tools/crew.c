/* SPDX-License-Identifier: Apache-2.0 */
/* crew.c - makes threads and puts them on CPUs. */
#include "crew.h"

/* Caches of a quarter of what is read in turn still serve a tenth of it; of an eighth, nothing. */
enum { CACHES = 8 };

int crew_open(crew *w, cli *c)
{
    team_tasks before;
    *w = (crew){0};
    team_tasks_now(&before);
    w->cpus = machine_cpus(w->cpu, MACHINE_MAX_CPUS);
    if (w->cpus > MACHINE_MAX_CPUS) w->cpus = MACHINE_MAX_CPUS;
    int code = cli_context(c, &w->context);
    if (code != CLI_OK) return code;
    size_t n = (size_t)moe_context_threads(w->context);
    w->llc = machine_llc(w->cpu, w->cpus);
    w->pinned = n <= w->cpus && team_pin(&before, w->cpu, w->cpus);
    w->team = team_create(n, w->cpu, w->pinned ? w->cpus : 0);
    return w->team ? CLI_OK : cli_failure(c, "out of memory");
}

void crew_close(crew *w)
{
    team_destroy(w->team);
    moe_context_destroy(w->context);
    *w = (crew){0};
}

size_t crew_cold_bytes(const crew *w)
{
    return CACHES * w->llc;
}
