/* SPDX-License-Identifier: Apache-2.0 */
/* router_ref.c - see router_ref.h. */
#include "router_ref.h"

#include <stdbool.h>
#include <stdlib.h>

#include "canon_ref.h"
#include "numeric.h"

static float decoded(const void *at, moe_dtype dtype)
{
    uint16_t half;
    float f;
    memcpy(&half, at, sizeof half);
    if (dtype == MOE_BF16) return num_from_bf16(half);
    if (dtype == MOE_F16) return num_from_f16(half);
    memcpy(&f, at, sizeof f);
    return f;
}

float router_ref_element(const moe_array *a, size_t row, size_t column)
{
    const char *at = a->data;
    return decoded(at + (int64_t)row * a->row_stride + (int64_t)column * a->column_stride,
                   a->dtype);
}

/* ((l0 + l8) + (l4 + l12)) + ((l2 + l10) + (l6 + l14)), then the odd ones likewise, and their sum. */
static float lanes(const float *l, size_t first, size_t step)
{
    if (step == 16) return l[first];
    return lanes(l, first, 2 * step) + lanes(l, first + step, 2 * step);
}

float router_ref_dot(const float *x, const float *w, size_t n)
{
    float lane[16] = {0};
    for (size_t k = 0; k < (n + 15) / 16 * 16; k++)
        lane[k % 16] = fmaf(k < n ? x[k] : 0, k < n ? w[k] : 0, lane[k % 16]);
    return lanes(lane, 0, 1);
}

static float total(const float *v, size_t n)
{
    float lane[16] = {0};
    for (size_t i = 0; i < n; i++) lane[i % 16] += v[i];
    return lanes(lane, 0, 1);
}

/* Whether a comes before b: the larger, numbers before NaN. */
static bool before(float a, float b)
{
    if (num_is_nan(a)) return false;
    return num_is_nan(b) || a > b;
}

/* The indices of the n largest of key[0 .. count) that are `open`, one after the other. */
static void largest(const float *key, const bool *open, size_t count, size_t n, size_t *index)
{
    bool *taken = calloc(count, sizeof *taken);
    if (taken == NULL) abort();
    for (size_t i = 0; i < n; i++) {
        size_t at = count;
        for (size_t e = 0; e < count; e++)
            if (open[e] && !taken[e] && (at == count || before(key[e], key[at]))) at = e;
        index[i] = at;
        taken[at] = true;
    }
    free(taken);
}

static void softmax(const float *v, size_t n, float *out)
{
    float most = -INFINITY;
    for (size_t i = 0; i < n; i++)
        if (v[i] > most) most = v[i];
    for (size_t i = 0; i < n; i++) {
        float d = v[i] - most, back = d + most;
        out[i] = num_exp(d, (v[i] - back) - (most - (back - d)));
    }
    float sum = total(out, n);
    for (size_t i = 0; i < n; i++) out[i] = out[i] / sum;
}

static void route(const moe_router_args *a, const float *logit, float *score, size_t *index,
                  float *weight)
{
    size_t E = (size_t)a->E, K = (size_t)a->K, groups = a->n_group > 1 ? (size_t)a->n_group : 1;
    size_t size = E / groups;
    bool topk = a->score == MOE_SCORE_TOPK_SOFTMAX,
         biased = a->selection_bias.dtype != MOE_DTYPE_NONE, open[4096], all[4096];
    float ranked[4096], rank[4096], chosen[128], sum = 1;
    size_t kept[4096];
    if (a->score == MOE_SCORE_SOFTMAX) softmax(logit, E, score);
    for (size_t e = 0; e < E; e++) {
        all[e] = true;
        open[e] = groups == 1;
        if (a->score == MOE_SCORE_SIGMOID) score[e] = 1 / (1 + num_exp(-logit[e], 0));
        if (a->score == MOE_SCORE_SQRT_SOFTPLUS) score[e] = num_sqrt_softplus(logit[e]);
        if (topk) score[e] = 0;
        ranked[e] = topk ? logit[e] : score[e];
        if (biased) ranked[e] = score[e] + router_ref_element(&a->selection_bias, e, 0);
    }
    for (size_t g = 0; groups > 1 && g < groups; g++) {
        size_t two[2];
        largest(ranked + g * size, all, size, size < 2 ? 1 : 2, two);
        rank[g] = ranked[g * size + two[0]];
        if (size > 1 && a->group_rank == MOE_GROUP_TWO_BEST) rank[g] += ranked[g * size + two[1]];
    }
    if (groups > 1) largest(rank, all, groups, (size_t)a->topk_group, kept);
    for (size_t i = 0; groups > 1 && i < (size_t)a->topk_group; i++)
        for (size_t e = 0; e < size; e++) open[kept[i] * size + e] = true;
    largest(biased ? ranked : logit, open, E, K, index);
    for (size_t k = 0; k < K; k++) chosen[k] = topk ? logit[index[k]] : score[index[k]];
    if (topk)
        softmax(chosen, K, weight);
    else
        memcpy(weight, chosen, K * sizeof *weight);
    if (a->normalize && !topk) sum = total(weight, K) + a->normalize_epsilon;
    for (size_t k = 0; k < K; k++) {
        if (a->normalize && !topk) weight[k] = weight[k] / sum;
        weight[k] = num_to_f32(weight[k] * a->scale);
        if (topk) score[index[k]] = weight[k];
    }
}

static void *allocated(size_t n)
{
    void *p = malloc(n * sizeof(float));
    if (p == NULL) abort();
    return p;
}

void router_ref(const moe_router_args *a, const moe_router_output *out)
{
    const moe_tensor *x = a->x;
    size_t H = (size_t)x->shape[x->rank - 1], E = (size_t)a->E, K = (size_t)a->K;
    size_t T = (size_t)(x->rank == 3 ? x->shape[0] * x->shape[1] : x->shape[0]), index[128];
    float *row = allocated(H), *w = allocated(H), *logit = allocated(E), *score = allocated(E),
          *weight = allocated(K);
    unsigned long saved = canon_enter();
    for (size_t t = 0; t < T; t++) {
        size_t size = moe_dtype_size(x->dtype);
        for (size_t h = 0; h < H; h++)
            row[h] = decoded((const char *)x->data + (t * H + h) * size, x->dtype);
        for (size_t e = 0; e < E; e++) {
            for (size_t h = 0; h < H; h++) w[h] = router_ref_element(&a->weights, e, h);
            logit[e] = router_ref_dot(row, w, H);
            if (a->bias.dtype != MOE_DTYPE_NONE)
                logit[e] = logit[e] + router_ref_element(&a->bias, e, 0);
            logit[e] = num_to_f32(logit[e]);
        }
        route(a, logit, score, index, weight);
        for (size_t e = 0; e < E; e++) {
            if (out->logits) out->logits[t * E + e] = logit[e];
            if (out->scores) out->scores[t * E + e] = num_to_f32(score[e]);
            if (out->affinities) out->affinities[t * E + e] = 0;
        }
        for (size_t k = 0; k < K; k++) {
            if (out->index) out->index[t * K + k] = (int32_t)index[k];
            if (out->weights) out->weights[t * K + k] = weight[k];
            if (out->affinities) out->affinities[t * E + index[k]] = weight[k];
        }
    }
    canon_leave(saved);
    free(row);
    free(w);
    free(logit);
    free(score);
    free(weight);
}
