/* SPDX-License-Identifier: Apache-2.0 */
/* loaded.h - a layer in memory, from a checkpoint or from a packed cache. */
#ifndef MOE_IO_LOADED_H
#define MOE_IO_LOADED_H

#include <moe_tkg_io.h>

#include "io/origin.h"

enum { LOADED_TEXT = 64 };

struct moe_layer {
    moe_layer_info info;
    moe_experts *experts, *shared;
    moe_array router, router_bias, selection_bias, shared_gate; /* data: the layer's own, dense */
    /* what a packed file of it says besides */
    char family[LOADED_TEXT];
    int64_t layers; /* of the model */
    origin origin;
    char foreign_router[LOADED_TEXT]; /* info's, if it came from a packed file */
};

/* Frees what a layer has besides its experts, or its arrays alone. */
void loaded_forget(moe_layer *layer);
void loaded_drop_arrays(moe_layer *layer);

#endif
