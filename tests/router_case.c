/* SPDX-License-Identifier: Apache-2.0 */
/* router_case.c - see router_case.h. */
#include "router_case.h"

#include <math.h>
#include <stdlib.h>

#include "expect.h"
#include "numeric.h"

static uint64_t dice(uint64_t seed, uint64_t n)
{
    return layer_random(seed, n, 0x707);
}

static float drawn(uint64_t seed, size_t which, size_t n, unsigned wild)
{
    uint64_t r = layer_random(seed, which, n);
    static const float special[] = {0.0f, -0.0f,     INFINITY, -INFINITY,
                                    NAN,  0x1p-130f, 3e38f,    -3e38f};
    if (wild && r % wild == 0) return special[r >> 40 & 7];
    if (wild && r % 5 == 1) return (float)((int)(r >> 33 & 3) - 2); /* ties */
    return ((float)(r >> 40) * 0x1p-24f - 0.5f) * 4;
}

void router_case_store(moe_dtype dtype, void *at, float v)
{
    uint16_t half = dtype == MOE_BF16 ? num_to_bf16(v) : num_to_f16(v);
    if (dtype == MOE_F32)
        memcpy(at, &v, sizeof v);
    else
        memcpy(at, &half, sizeof half);
}

/* An array [rows, columns] somewhere in exactly as much memory as it spans. */
moe_array router_case_array(void **memory, moe_dtype dtype, size_t rows, size_t columns,
                            uint64_t draw, uint64_t seed, size_t which, unsigned wild)
{
    const size_t size = moe_dtype_size(dtype), gap = draw % 3;
    const bool transposed = draw >> 4 & 1;
    moe_array a = {.dtype = dtype};
    a.row_stride = (int64_t)(size * (transposed ? 1 + gap : columns + gap));
    a.column_stride = (int64_t)(size * (transposed ? rows * (1 + gap) : 1));
    size_t bytes =
        (rows - 1) * (size_t)a.row_stride + (columns - 1) * (size_t)a.column_stride + size;
    char *data = malloc(bytes);
    assert_non_null(data);
    memset(data, 0xC3, bytes);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++)
            router_case_store(dtype, data + r * (size_t)a.row_stride + c * (size_t)a.column_stride,
                              drawn(seed, which, r * columns + c, wild));
    a.data = *memory = data;
    return a;
}

void router_case_make(router_case *s, uint64_t seed, size_t T)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32};
    static const int64_t E[] = {1, 2, 3, 8, 16, 17, 24, 60, 64, 128, 160, 256, 384};
    static const int64_t H[] = {1, 7, 15, 16, 17, 64, 100, 511, 512, 513, 528, 1040};
    const uint64_t d = dice(seed, 0), f = dice(seed, 1);
    const unsigned wild = d >> 60 & 1 ? 40 : 0;
    memset(s, 0, sizeof *s);
    s->args = moe_router_args_init();
    moe_router_args *a = &s->args;
    a->E = E[d % COUNT(E)];
    a->K = 1 + (int64_t)((d >> 8) % 10);
    if (a->K > a->E) a->K = a->E;
    a->score = (moe_router_score)(d >> 16 & 3);
    a->normalize = d >> 18 & 1;
    a->normalize_epsilon = d >> 19 & 1 ? 1e-20f : d >> 20 & 1 ? 0.25f : 0.0f;
    if (d >> 21 & 1) a->scale = 2.5f;
    const int64_t groups = (int64_t)(2 + (d >> 24) % 7), h = H[(d >> 32) % COUNT(H)];
    if ((d >> 40 & 1) && a->E % groups == 0) {
        a->n_group = (int32_t)groups;
        a->topk_group = (int32_t)(1 + (d >> 44) % (uint64_t)groups);
        a->group_rank = d >> 56 & 1 ? MOE_GROUP_BEST : MOE_GROUP_TWO_BEST;
        int64_t open = a->topk_group * (a->E / groups);
        if (a->K > open) a->K = open;
    }
    s->memory[0] = malloc(T * (size_t)h * 4 + 1);
    assert_non_null(s->memory[0]);
    moe_dtype type = types[f % 3];
    for (size_t n = 0; n < T * (size_t)h; n++)
        router_case_store(type, (char *)s->memory[0] + n * moe_dtype_size(type),
                          drawn(seed, 1, n, wild ? wild * 7 : 0));
    s->x = moe_tensor_2d(s->memory[0], type, (int64_t)T, h);
    if (f >> 40 & 1) s->x = moe_tensor_nd(s->memory[0], type, 3, (int64_t[]){1, (int64_t)T, h});
    a->x = &s->x;
    a->weights = router_case_array(&s->memory[1], types[(f >> 4) % 3], (size_t)a->E, (size_t)h,
                                   f >> 8, seed, 2, wild ? wild * 300 : 0);
    if (f >> 20 & 1)
        a->bias = router_case_array(&s->memory[2], types[(f >> 24) % 3], (size_t)a->E, 1, f >> 28,
                                    seed, 3, wild);
    if ((f >> 32 & 1) && a->score != MOE_SCORE_TOPK_SOFTMAX)
        a->selection_bias = router_case_array(&s->memory[3], types[(f >> 36) % 3], (size_t)a->E, 1,
                                              f >> 44, seed, 4, wild);
}

void router_case_free(router_case *s)
{
    for (size_t i = 0; i < COUNT(s->memory); i++) free(s->memory[i]);
}
