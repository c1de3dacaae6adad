/* SPDX-License-Identifier: Apache-2.0 */
/* load_read.h - reads some experts of a layer at a time, for moe_experts_create to pack. */
#ifndef MOE_IO_LOAD_READ_H
#define MOE_IO_LOAD_READ_H

#include "io/layer.h"

/* How far a load is, and whom to tell. */
typedef struct load_progress {
    int (*report)(void *user, uint64_t done, uint64_t all); /* NULL: nobody */
    void *user;
    uint64_t done, all;
    const char *path; /* of the model, for messages */
} load_progress;

/* Counts bytes as read.  MOE_E_READ: the caller wants no more. */
moe_status load_advance(load_progress *progress, uint64_t bytes);

/* Reads expert e into a buffer of x->expert_bytes bytes, aligned as memory of malloc is, ... */
moe_status load_read_expert(const layer_experts *x, size_t e, unsigned char *buffer);

/* ... and what moe_experts_create is told of experts that lie in one, stride bytes apart: all but their
 * number.  buffer NULL: not where they lie. */
void load_describe(const layer_experts *x, const unsigned char *buffer, size_t stride,
                   moe_experts_args *args);

/* Packs the experts on context's threads.  Beside the result it takes memory for one expert, or for as
 * many as make up a sixteenth of them (at most 32 MiB). */
moe_status load_experts(const layer_experts *x, moe_context *context, moe_packing packing,
                        load_progress *progress, moe_experts **experts);

/* Checks what packed integers say of their own shape. */
moe_status load_check_shapes(const layer_place *place, const layer_experts *x,
                             load_progress *progress);

/* Reads a vector into memory of its own, which the caller frees. */
moe_status load_vector(const layer_vector *v, load_progress *progress, void **data);

#endif
