/* SPDX-License-Identifier: Apache-2.0 */
/* loaded_layer_of.c - the part of loaded_layer.h that knows models, whose names clash with layer.h's. */
#include "io/model.h"
#include "loaded_layer.h"

#include <stdio.h>
#include <stdlib.h>

moe_layer *loaded_layer_of(const moe_model *model, int64_t i)
{
    moe_layer *l = loaded_layer_make(2, i);
    layer_plan plan;
    layer_place place = model_place(model, i);
    origin_free(&l->origin);
    if (layer_resolve(&place, &plan) != MOE_OK || origin_of(&plan, false, &l->origin) != MOE_OK) {
        fprintf(stderr, "loaded_layer_of: %s\n", moe_io_last_error());
        abort();
    }
    l->info = plan.info;
    layer_plan_free(&plan);
    l->layers = model->rules.layers;
    snprintf(l->family, sizeof l->family, "%s", model->rules.family);
    size_t H = (size_t)l->info.H, E = (size_t)l->info.E;
    l->router = moe_array_dense(calloc(E * H, 2), MOE_BF16, l->info.E, l->info.H);
    l->shared_gate = moe_array_dense(calloc(H, 2), MOE_BF16, l->info.H, 1);
    return l;
}
