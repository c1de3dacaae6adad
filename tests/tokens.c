/* SPDX-License-Identifier: Apache-2.0 */
/* tokens.c - a tensor is [outer, T, inner bytes]; where T stands depends on the tensor and its
 * layout. */
#include "tokens.h"

#include <stdlib.h>

typedef struct rows {
    size_t outer, T, inner;
} rows;

static rows rows_of(const moe_tensor *t, int32_t axis)
{
    rows r = {1, (size_t)t->shape[axis], moe_dtype_size(t->dtype)};
    for (int32_t d = 0; d < t->rank; d++) {
        if (d < axis) r.outer *= (size_t)t->shape[d];
        if (d > axis) r.inner *= (size_t)t->shape[d];
    }
    return r;
}

/* False if the tensor has no rows of tokens. */
static bool token_rows(layer_tensor which, const moe_tensor *t, rows *r)
{
    switch (which) {
    case LAYER_HIDDEN:
        *r = rows_of(t, t->layout == MOE_LAYOUT_HBM ? 0 : t->dtype == MOE_MXFP8_X4 ? 2 : 1);
        return true;
    case LAYER_HIDDEN_SCALE: *r = rows_of(t, 2); return true;
    case LAYER_AFFINITIES:
    case LAYER_INDEX:
    case LAYER_EAGER: *r = rows_of(t, 0); return true;
    default: return false;
    }
}

static void copy_rows(void *to, const void *from, rows r, const size_t *order, size_t n)
{
    for (size_t o = 0; o < r.outer; o++)
        for (size_t t = 0; t < n; t++)
            memcpy((char *)to + (o * n + t) * r.inner,
                   (const char *)from + (o * r.T + order[t]) * r.inner, r.inner);
}

void tokens_gather(layer *to, const layer *from, const size_t *order, size_t n)
{
    layer_spec spec = from->spec;
    spec.T = (int64_t)n;
    layer_make(to, &spec);
    to->args = from->args;
    for (int which = 0; which < LAYER_TENSORS; which++) {
        if (from->bytes[which] == 0) continue;
        rows r;
        *layer_tensor_slot(&to->args, (layer_tensor)which) = &to->tensor[which];
        if (token_rows((layer_tensor)which, &from->tensor[which], &r))
            copy_rows(to->data[which], from->data[which], r, order, n);
        else
            memcpy(to->data[which], from->data[which], from->bytes[which]);
    }
}

void *tokens_gather_output(const layer *from, const void *output, const size_t *order, size_t n)
{
    moe_tensor t;
    size_t bytes;
    if (moe_tkg_output(&from->args, &t, &bytes) != MOE_OK) abort();
    rows r = rows_of(&t, t.layout == MOE_LAYOUT_SBUF ? 1 : 0);
    void *gathered = malloc(r.outer * n * r.inner + 1);
    if (gathered == NULL) abort();
    copy_rows(gathered, output, r, order, n);
    return gathered;
}

void tokens_spoil(layer *l, layer_tensor which, size_t t, int byte)
{
    rows r;
    if (l->bytes[which] == 0 || !token_rows(which, &l->tensor[which], &r)) return;
    for (size_t o = 0; o < r.outer; o++)
        memset((char *)l->data[which] + (o * r.T + t) * r.inner, byte, r.inner);
}

void tokens_spoil_expert(layer *l, size_t e, int byte)
{
    static const layer_tensor slices[] = {LAYER_GATE_UP,   LAYER_DOWN,          LAYER_GATE_UP_BIAS,
                                          LAYER_DOWN_BIAS, LAYER_GATE_UP_SCALE, LAYER_DOWN_SCALE};
    for (size_t i = 0; i < sizeof slices / sizeof *slices; i++) {
        size_t bytes = l->bytes[slices[i]] / (size_t)l->spec.E_L;
        if (bytes > 0) memset((char *)l->data[slices[i]] + e * bytes, byte, bytes);
    }
}

int64_t tokens_index(const layer *l, size_t n)
{
    const void *data = l->data[LAYER_INDEX];
    switch (l->tensor[LAYER_INDEX].dtype) {
    case MOE_I64: return ((const int64_t *)data)[n];
    case MOE_U32: return ((const uint32_t *)data)[n];
    default: return ((const int32_t *)data)[n];
    }
}

void tokens_set_index(layer *l, size_t n, int64_t v)
{
    void *data = l->data[LAYER_INDEX];
    if (l->tensor[LAYER_INDEX].dtype == MOE_I64)
        ((int64_t *)data)[n] = v;
    else
        ((uint32_t *)data)[n] = (uint32_t)v;
}
