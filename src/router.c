/* SPDX-License-Identifier: Apache-2.0 */
/* router.c - logits, scores, the best experts of each token and their weights: docs/numerics.md
 * section 9.
 *
 * Owns the order of the sums that are not a kernel's, and selection.  What can be wrong was refused
 * by validate_router.c.  Two loops for each ROUTER_TOKENS tokens: over rows of the weights, for all
 * tokens, and over tokens. */
#include "router.h"

#include "checked.h"
#include "numeric.h"
#include "sizes.h"

/* ---- sums ------------------------------------------------------------------------------------ */

/* The sum of KERNEL_LANES lanes: lane l and lane l + 8, then l + 4, ... */
static float tree(const float *lane)
{
    float s[KERNEL_LANES];
    memcpy(s, lane, sizeof s);
    for (size_t width = KERNEL_LANES / 2; width > 0; width /= 2)
        for (size_t l = 0; l < width; l++) s[l] = s[l] + s[l + width];
    return s[0];
}

/* The same of n values, dealt out to the lanes. */
static float sum_of(const float *v, size_t n)
{
    float lane[KERNEL_LANES] = {0};
    for (size_t i = 0; i < n; i++) lane[i % KERNEL_LANES] = lane[i % KERNEL_LANES] + v[i];
    return tree(lane);
}

size_t router_row(size_t H)
{
    return size_round_up(H, KERNEL_LANES);
}

float router_dot(const kernel_table *kernels, const float *x, const float *w, size_t row)
{
    float acc[1][KERNEL_ROUTE][KERNEL_LANES] = {{{0}}};
    kernels->route(&(kernel_route){.w = w,
                                   .w_stride = row,
                                   .rows = 1,
                                   .x = x,
                                   .x_stride = row,
                                   .tokens = 1,
                                   .k = row,
                                   .acc = acc});
    return tree(acc[0][0]);
}

/* ---- elements -------------------------------------------------------------------------------- */

static float element(const void *at, moe_dtype dtype)
{
    uint16_t half;
    float f;
    if (dtype == MOE_F32) {
        memcpy(&f, at, sizeof f);
        return f;
    }
    memcpy(&half, at, sizeof half);
    return dtype == MOE_BF16 ? num_from_bf16(half) : num_from_f16(half);
}

float router_element(const moe_array *a, size_t row, size_t column)
{
    const char *at = (const char *)a->data + row * (size_t)a->row_stride;
    return element(at + column * (size_t)a->column_stride, a->dtype);
}

void router_widen(const kernel_table *kernels, const void *v, moe_dtype dtype, size_t stride,
                  size_t n, float *out, size_t row)
{
    if (stride == moe_dtype_size(dtype))
        kernels->widen(v, dtype, n, out);
    else
        for (size_t i = 0; i < n; i++) out[i] = element((const char *)v + i * stride, dtype);
    for (size_t i = n; i < row; i++) out[i] = 0.0f;
}

/* ---- scratch --------------------------------------------------------------------------------- */

bool router_size(const router *r, size_t T, router_scratch *s)
{
    s->tokens = size_smaller(T, ROUTER_TOKENS);
    s->row = router_row(r->H);
    s->score = size_round_up(r->E, KERNEL_LANES);
    s->bytes = 0;
    size_t rows, scores;
    return checked_mul(s->tokens, s->row * sizeof(float), &rows) &&
           checked_mul(s->tokens, s->score * sizeof(float), &scores) &&
           checked_place(rows, KERNEL_ALIGN, &s->bytes, &s->rows) &&
           checked_place(scores, KERNEL_ALIGN, &s->bytes, &s->logits) &&
           checked_place(scores, KERNEL_ALIGN, &s->bytes, &s->scores);
}

/* One chunk of tokens on its way. */
typedef struct routing {
    const router *r;
    const router_scratch *s;
    const kernel_table *kernels;
    const float *rows;
    float *logits, *scores;
    size_t first, tokens;
    const moe_router_output *out[2];
} routing;

/* ---- logits ---------------------------------------------------------------------------------- */

/* Item: KERNEL_ROUTE rows of the weights, for all tokens. */
static void rows_of_logits(void *arg, size_t item)
{
    const routing *a = arg;
    const moe_router_args *args = a->r->args;
    const moe_array *w = &args->weights;
    const size_t first = item * KERNEL_ROUTE, n = size_smaller(a->r->E - first, KERNEL_ROUTE),
                 H = a->r->H;
    float acc[ROUTER_TOKENS][KERNEL_ROUTE][KERNEL_LANES], row[KERNEL_ROUTE][KERNEL_PLAIN];
    memset(acc, 0, a->tokens * sizeof acc[0]);
    for (size_t k = 0; k < a->s->row; k += KERNEL_PLAIN) {
        const size_t terms = size_smaller(a->s->row - k, KERNEL_PLAIN);
        for (size_t r = 0; r < n; r++)
            router_widen(a->kernels,
                         (const char *)w->data + (first + r) * (size_t)w->row_stride +
                             k * (size_t)w->column_stride,
                         w->dtype, (size_t)w->column_stride, size_smaller(H - k, terms), row[r],
                         terms);
        a->kernels->route(&(kernel_route){.w = row[0],
                                          .w_stride = KERNEL_PLAIN,
                                          .rows = n,
                                          .x = a->rows + k,
                                          .x_stride = a->s->row,
                                          .tokens = a->tokens,
                                          .k = terms,
                                          .acc = acc});
    }
    for (size_t r = 0; r < n; r++) {
        const bool biased = args->bias.dtype != MOE_DTYPE_NONE;
        const float bias = biased ? router_element(&args->bias, first + r, 0) : 0.0f;
        for (size_t t = 0; t < a->tokens; t++) {
            float logit = tree(acc[t][r]);
            if (biased) logit = logit + bias;
            a->logits[t * a->s->score + first + r] = num_to_f32(logit);
        }
    }
}

/* ---- selection ------------------------------------------------------------------------------- */

/* The best of a list, in descending order; of equal ones the first that came, NaN last. */
typedef struct best {
    size_t n, most;
    uint16_t *index;
    float *key;
} best;

static bool is_better(float a, float b)
{
    return a > b || (num_is_nan(b) && !num_is_nan(a));
}

static void offer(best *b, size_t index, float key)
{
    if (b->n == b->most && !is_better(key, b->key[b->n - 1])) return;
    size_t at = b->n < b->most ? b->n++ : b->n - 1;
    for (; at > 0 && is_better(key, b->key[at - 1]); at--) {
        b->index[at] = b->index[at - 1];
        b->key[at] = b->key[at - 1];
    }
    b->index[at] = (uint16_t)index;
    b->key[at] = key;
}

/* A group's rank: its best, or the sum of its two best, the larger first. */
static float rank_of(const float *rank_key, size_t n, bool best_alone)
{
    float high = rank_key[0], low = n > 1 ? rank_key[1] : 0.0f;
    if (n == 1) return high;
    if (is_better(low, high)) {
        float swap = high;
        high = low;
        low = swap;
    }
    for (size_t i = 2; i < n; i++)
        if (is_better(rank_key[i], high)) {
            low = high;
            high = rank_key[i];
        } else if (is_better(rank_key[i], low)) {
            low = rank_key[i];
        }
    return best_alone ? high : high + low;
}

/* Which groups are chosen from. */
static void keep_groups(const router *r, const float *rank_key, bool *kept)
{
    uint16_t index[ROUTER_MOST_E];
    float key[ROUTER_MOST_E];
    best groups = {0, r->kept, index, key};
    const size_t n = r->E / r->groups;
    const bool best_alone = r->args->group_rank == MOE_GROUP_BEST;
    for (size_t g = 0; g < r->groups; g++) {
        kept[g] = r->groups == 1;
        if (r->groups > 1) offer(&groups, g, rank_of(rank_key + g * n, n, best_alone));
    }
    for (size_t i = 0; i < groups.n; i++) kept[groups.index[i]] = true;
}

/* The K experts with the largest key, of the groups with the best ranks. */
static void choose(const router *r, const float *key, const float *rank_key, best *chosen)
{
    bool kept[ROUTER_MOST_E];
    const size_t n = r->E / r->groups;
    keep_groups(r, rank_key, kept);
    for (size_t g = 0; g < r->groups; g++)
        for (size_t e = g * n; kept[g] && e < (g + 1) * n; e++) offer(chosen, e, key[e]);
}

/* ---- scores and weights ---------------------------------------------------------------------- */

/* exp(logit - the largest) / their sum; NaN is not the largest. */
static void softmax(const kernel_table *kernels, const float *logit, size_t n, float *out)
{
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++) largest = logit[i] > largest ? logit[i] : largest;
    kernels->scores(&(kernel_scores){MOE_SCORE_SOFTMAX, logit, largest, n, out});
    float sum = sum_of(out, n);
    for (size_t i = 0; i < n; i++) out[i] = out[i] / sum;
}

static void all_scores(const routing *a, const float *logit, float *score)
{
    const moe_router_score kind = a->r->args->score;
    const size_t E = a->r->E;
    if (kind == MOE_SCORE_TOPK_SOFTMAX) return;
    if (kind == MOE_SCORE_SOFTMAX)
        softmax(a->kernels, logit, E, score);
    else
        a->kernels->scores(&(kernel_scores){kind, logit, 0.0f, E, score});
    for (size_t e = 0; e < E; e++) score[e] = num_to_f32(score[e]);
}

/* The chosen experts' weights. */
static void weigh(const routing *a, const best *chosen, const float *logit, const float *score,
                  float *weight)
{
    const moe_router_args *args = a->r->args;
    const size_t K = a->r->K;
    const bool topk = args->score == MOE_SCORE_TOPK_SOFTMAX;
    float sum = 1.0f, of_chosen[ROUTER_MOST_K];
    for (size_t k = 0; k < K; k++) of_chosen[k] = (topk ? logit : score)[chosen->index[k]];
    if (topk)
        softmax(a->kernels, of_chosen, K, weight);
    else
        memcpy(weight, of_chosen, K * sizeof *weight);
    if (args->normalize && !topk) sum = sum_of(weight, K) + args->normalize_epsilon;
    for (size_t k = 0; k < K; k++) weight[k] = num_to_f32(weight[k] / sum * args->scale);
}

/* Puts one token's results where they are wanted. */
static void give(const routing *a, const moe_router_output *out, size_t t, const best *chosen,
                 const float *logit, const float *score, const float *weight)
{
    const size_t E = a->r->E, K = a->r->K;
    const bool topk = a->r->args->score == MOE_SCORE_TOPK_SOFTMAX;
    float *rows[] = {out->affinities, topk ? out->scores : NULL};
    for (size_t k = 0; out->index != NULL && k < K; k++)
        out->index[t * K + k] = (int32_t)chosen->index[k];
    if (out->weights != NULL) memcpy(out->weights + t * K, weight, K * sizeof *weight);
    if (out->logits != NULL) memcpy(out->logits + t * E, logit, E * sizeof *logit);
    if (out->scores != NULL && !topk) memcpy(out->scores + t * E, score, E * sizeof *score);
    for (size_t i = 0; i < 2; i++) {
        if (rows[i] == NULL) continue;
        memset(rows[i] + t * E, 0, E * sizeof(float));
        for (size_t k = 0; k < K; k++) rows[i][t * E + chosen->index[k]] = weight[k];
    }
}

/* Item: one token. */
static void route_token(void *arg, size_t i)
{
    const routing *a = arg;
    const moe_router_args *args = a->r->args;
    const float *logit = a->logits + i * a->s->score;
    float *score = a->scores + i * a->s->score;
    const bool biased = args->selection_bias.dtype != MOE_DTYPE_NONE;
    uint16_t index[ROUTER_MOST_K];
    float key[ROUTER_MOST_K], weight[ROUTER_MOST_K], choice[ROUTER_MOST_E];
    best chosen = {0, a->r->K, index, key};
    all_scores(a, logit, score);
    if (biased)
        for (size_t e = 0; e < a->r->E; e++)
            choice[e] = score[e] + router_element(&args->selection_bias, e, 0);
    /* Without a bias the logits are in the scores' order, and rounding makes fewer of them equal. */
    choose(a->r, biased ? choice : logit,
           biased                                  ? choice
           : args->score == MOE_SCORE_TOPK_SOFTMAX ? logit
                                                   : score,
           &chosen);
    weigh(a, &chosen, logit, score, weight);
    for (size_t n = 0; n < 2; n++)
        if (a->out[n] != NULL) give(a, a->out[n], a->first + i, &chosen, logit, score, weight);
}

void router_run(const router *r, const router_scratch *s, const kernel_table *kernels,
                threads *team, uint8_t *memory, size_t first, size_t tokens,
                const moe_router_output *own, const moe_router_output *out)
{
    routing a = {.r = r,
                 .s = s,
                 .kernels = kernels,
                 .rows = (const float *)(const void *)(memory + s->rows),
                 .logits = (float *)(void *)(memory + s->logits),
                 .scores = (float *)(void *)(memory + s->scores),
                 .first = first,
                 .tokens = tokens,
                 .out = {own, out}};
    threads_loop(team, size_pieces(r->E, KERNEL_ROUTE), rows_of_logits, &a);
    threads_loop(team, tokens, route_token, &a);
}
