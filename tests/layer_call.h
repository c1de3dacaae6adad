/* SPDX-License-Identifier: Apache-2.0 */
/* layer_call.h - tensors in files, and what the library's own calls make of them with a model's
 * layer: what moe-tkg run is held against. */
#ifndef MOE_TEST_LAYER_CALL_H
#define MOE_TEST_LAYER_CALL_H

#include "io/safetensors.h"

#include <moe_tkg.h>

/* A tensor read whole: data to be freed; without its name. */
typedef struct whole {
    st_tensor tensor;
    void *data;
} whole;

whole read_whole(const char *path, const char *name);

typedef struct wanted {
    moe_dtype hidden, output; /* hidden: f32 or bf16, what the f32 of the file become first */
    moe_act_mode act;
    bool experts_only;
} wanted;

/* The layer on hidden (f32), topk_ids (i32) and topk_weights (f32) of the file, in one call for each
 * token, which gives the bits of any other splitting.  To be freed. */
void *layer_compute(const char *model, int64_t layer, const char *hidden, const wanted *w,
                    size_t *bytes);

#endif
