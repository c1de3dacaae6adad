/* SPDX-License-Identifier: Apache-2.0 */
/* block_ref.c - see block_ref.h. */
#include "block_ref.h"

#include <stdbool.h>
#include <stdlib.h>

#include "canon_ref.h"
#include "numeric.h"
#include "router_ref.h"

static void *allocated(size_t n, size_t size)
{
    void *p = calloc(n + 1, size);
    if (p == NULL) abort();
    return p;
}

static float read_at(moe_dtype dtype, const void *data, size_t n)
{
    if (dtype == MOE_F32) return ((const float *)data)[n];
    uint16_t half = ((const uint16_t *)data)[n];
    return dtype == MOE_BF16 ? num_from_bf16(half) : num_from_f16(half);
}

static void write_at(moe_dtype dtype, void *data, size_t n, float v)
{
    if (dtype == MOE_F32)
        ((float *)data)[n] = num_to_f32(v);
    else
        ((uint16_t *)data)[n] = dtype == MOE_BF16 ? num_to_bf16(v) : num_to_f16(v);
}

static void normalise(const moe_block_args *a, const void *x, moe_dtype dtype, size_t T, size_t H,
                      void *n)
{
    float *row = allocated(H, sizeof *row);
    float count = (float)(a->norm_H > 0 ? a->norm_H : (int64_t)H);
    for (size_t t = 0; t < T; t++) {
        for (size_t h = 0; h < H; h++) row[h] = read_at(dtype, x, t * H + h);
        float root = sqrtf(router_ref_dot(row, row, H) / count + a->norm_epsilon);
        for (size_t h = 0; h < H; h++) {
            float v = row[h] / root;
            write_at(dtype, n, t * H + h, v * router_ref_element(&a->gamma, h, 0));
        }
    }
    free(row);
}

static float gate_of(const moe_block_args *a, const void *n, moe_dtype dtype, size_t t, size_t H)
{
    float *row = allocated(H, sizeof *row), *w = allocated(H, sizeof *w);
    for (size_t h = 0; h < H; h++) {
        row[h] = read_at(dtype, n, t * H + h);
        w[h] = router_ref_element(&a->shared_gate, h, 0);
    }
    float v = router_ref_dot(row, w, H);
    free(row);
    free(w);
    return 1.0f / (1.0f + num_exp(-v, 0.0f));
}

/* The shared expert's arguments are those of the experts without what is about routing. */
static moe_tkg_args shared_args(const moe_tkg_args *e, const moe_experts_args *shared)
{
    moe_tkg_args s = *e;
    s.is_all_expert = 1;
    s.expert_index = s.expert_affinities = s.expert_affinities_eager = NULL;
    s.expert_affinities_scaling_mode = MOE_NO_SCALE;
    bool mx = shared->up.scale.dtype == MOE_E8M0;
    bool fp4 = shared->up.weights.dtype == MOE_E2M1_X2 && shared->down.weights.dtype == MOE_E2M1_X2;
    if ((s.act_mode == MOE_ACT_MXFP8 && !mx) || (s.act_mode == MOE_ACT_INT8 && !fp4))
        s.act_mode = MOE_ACT_EXACT;
    return s;
}

void block_ref(const moe_block_args *a, const moe_experts_args *rows,
               const moe_experts_args *shared, void *output)
{
    const moe_tensor *x = a->experts.hidden_input;
    const size_t H = (size_t)x->shape[x->rank - 1], K = (size_t)a->router.K,
                 E = (size_t)a->router.E;
    const size_t T = (size_t)(x->rank == 3 ? x->shape[0] * x->shape[1] : x->shape[0]);
    moe_dtype dtype =
        a->experts.output_dtype != MOE_DTYPE_NONE ? a->experts.output_dtype : x->dtype;
    void *n = allocated(T * H, sizeof(float));
    int32_t *index = allocated(T * K, sizeof *index);
    float *weights = allocated(T * K, sizeof *weights),
          *affinities = allocated(T * E, sizeof(float)), *sum = allocated(T * H, sizeof *sum),
          *extra = allocated(T * H, sizeof *extra);
    moe_tensor hidden = moe_tensor_2d(n, x->dtype, (int64_t)T, (int64_t)H),
               index_tensor = moe_tensor_2d(index, MOE_I32, (int64_t)T, (int64_t)K),
               weights_tensor = moe_tensor_2d(weights, MOE_F32, (int64_t)T, (int64_t)K),
               affinities_tensor = moe_tensor_2d(affinities, MOE_F32, (int64_t)T, (int64_t)E);
    unsigned long saved = canon_enter();
    if (a->gamma.dtype != MOE_DTYPE_NONE)
        normalise(a, x->data, x->dtype, T, H, n);
    else
        memcpy(n, x->data, T * H * moe_dtype_size(x->dtype));
    canon_leave(saved);

    moe_router_args router = a->router;
    router.x = &hidden;
    router_ref(&router, &(moe_router_output){index, weights, NULL, affinities, NULL});

    moe_tkg_args e = a->experts;
    e.hidden_input = &hidden;
    e.output_dtype = MOE_F32;
    if (e.expert_affinities_scaling_mode == MOE_NO_SCALE)
        e.expert_affinities_scaling_mode = MOE_POST_SCALE;
    e.expert_index = &index_tensor;
    if (e.is_all_expert)
        e.expert_affinities = &affinities_tensor;
    else
        e.expert_affinities_eager = &weights_tensor;
    e.mask_unselected_experts = e.is_all_expert;
    if (rows != NULL)
        canon_run_rows(&e, rows, sum);
    else
        canon_run(&e, sum);
    if (shared != NULL) {
        moe_tkg_args s = shared_args(&e, shared);
        canon_run_rows(&s, shared, extra);
    }
    saved = canon_enter();
    for (size_t t = 0; t < T; t++) {
        bool gated = a->shared_gate.dtype != MOE_DTYPE_NONE;
        float gate = gated ? gate_of(a, n, x->dtype, t, H) : 1;
        for (size_t i = t * H; i < (t + 1) * H; i++) {
            float v = sum[i];
            if (shared != NULL) v = gated ? fmaf(gate, extra[i], v) : v + extra[i];
            write_at(dtype, output, i, v);
        }
    }
    canon_leave(saved);
    free(n);
    free(index);
    free(weights);
    free(affinities);
    free(sum);
    free(extra);
}
