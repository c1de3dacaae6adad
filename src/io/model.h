/* SPDX-License-Identifier: Apache-2.0 */
/* model.h - an open model: its files, its rules, its layers. */
#ifndef MOE_IO_MODEL_H
#define MOE_IO_MODEL_H

#include "io/layer.h"

typedef struct model_layer {
    int64_t number;
    const layout *layout;
} model_layer;

struct moe_model {
    struct cache *cache; /* packed layers, and nothing else; or NULL */
    checkpoint *ck;
    family_rules rules;
    const char *prefix;
    model_layer *layers; /* those with experts, in ascending order */
    int64_t count;
};

/* Where layer i of model->count is. */
layer_place model_place(const moe_model *model, int64_t i);

/* MOE_E_ABI unless the structure that starts with a struct_size is one that is known. */
moe_status model_struct_size(const void *structure, size_t known, const char *name);

#endif
