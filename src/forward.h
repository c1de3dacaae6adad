/* SPDX-License-Identifier: Apache-2.0 */
/* forward.h - the data path of one call. */
#ifndef MOE_FORWARD_H
#define MOE_FORWARD_H

#include "plan.h"
#include "threads.h"

/* Computes the block into output.  scratch: plan->scratch.bytes at KERNEL_ALIGN.  team may be
 * NULL.  The calling thread is in the canonical floating-point environment.  Reads hidden_input
 * whole before it writes output. */
void forward_run(call_plan *plan, const kernel_table *kernels, threads *team, uint8_t *scratch,
                 void *output);

#endif
