/* SPDX-License-Identifier: Apache-2.0 */
/* crew.h - the threads that calls and probes are timed on: a context and a team, pinned. */
#ifndef MOE_CREW_H
#define MOE_CREW_H

#include "cli.h"
#include "machine.h"
#include "team.h"

typedef struct crew {
    moe_context *context;
    team *team; /* as many threads as the context's */
    int cpu[MACHINE_MAX_CPUS];
    size_t cpus, llc; /* llc: bytes of the last-level caches of these CPUs */
    bool pinned;
} crew;

/* What --isa and --threads ask for, on CPUs of their own where there are enough.  CLI_OK, or a
 * message and its exit code.  crew_close in either case. */
int crew_open(crew *w, cli *c);
void crew_close(crew *w); /* fine if it did not open, or is all zero */

/* Bytes that no cache holds a part of. */
size_t crew_cold_bytes(const crew *w);

#endif
