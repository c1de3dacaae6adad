/* SPDX-License-Identifier: Apache-2.0 */
/* context.h - what a call borrows from its context: threads and scratch. */
#ifndef MOE_CONTEXT_H
#define MOE_CONTEXT_H

#include "kernel.h"
#include "threads.h"

typedef struct context_call {
    threads *team; /* NULL: the calling thread alone */
    bool taken;    /* the team is the context's */
    uint8_t *scratch;
    size_t bytes; /* of the memory that scratch is part of */
} context_call;

/* The kernels of a context, or for NULL the machine's best. */
const kernel_table *context_kernels(const moe_context *context);

/* Where what outlives a call comes from: the context's own allocator, or large blocks. */
const allocator *context_memory(const moe_context *context);

/* Borrows for one call that reads `weights` bytes, with `bytes` of scratch at KERNEL_ALIGN;
 * context may be NULL.  team: whose threads it runs on, or NULL for the context's if no other call
 * has them.  False if there is no memory, and then nothing is borrowed. */
bool context_enter(moe_context *context, threads *team, size_t bytes, size_t weights,
                   context_call *call);
void context_leave(moe_context *context, context_call *call);

/* A call in nth parts (party.h): around the call in thread 0; what the others do instead. */
threads *context_open(moe_context *context, int nth);
moe_status context_close(moe_context *context, int nth, moe_status status);
moe_status context_join(moe_context *context, int ith);

#endif
