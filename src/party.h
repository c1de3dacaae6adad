/* SPDX-License-Identifier: Apache-2.0 */
/* party.h - threads of the caller's that come together for one call, without a barrier of their
 * own. */
#ifndef MOE_PARTY_H
#define MOE_PARTY_H

#include "threads.h"

#include <moe_tkg.h>

typedef struct party party;

/* Zeros of this size at any cache line are a party that nobody has come to. */
size_t party_bytes(void);

/* Thread 0 of nth, before the call: the team for its loops. */
threads *party_open(party *p, int nth, int processors);

/* Thread 0, after the call: waits until all have come, gives them status and this thread's last
 * error, and returns status. */
moe_status party_close(party *p, int nth, moe_status status);

/* Thread ith > 0: works on the loops of thread 0's call until that is closed; its status, and its
 * error is this thread's too. */
moe_status party_join(party *p, int ith);

#endif
