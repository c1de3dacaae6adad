/* SPDX-License-Identifier: Apache-2.0 */
/* model_bound.c - see model_bound.h. */
#include "model_bound.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/load_read.h"
#include "weights_ref.h"

#define U   0x1.00001p-24 /* a rounding of f32, and what this file's own arithmetic loses */
#define ETA 0x1p-126      /* of a result that becomes zero */

/* What n roundings of random signs come to, but for 3e-8 of all sums: lambda = 6. */
static double gamma_of(double n)
{
    return 6 * sqrt(n) * U + n * U * U;
}

static void *room(size_t n, size_t unit)
{
    void *p = calloc(n > 0 ? n : 1, unit);
    assert_non_null(p);
    return p;
}

/* ---- weights --------------------------------------------------------------------------------- */

/* A matrix as numbers: what a weight is, and the magnitude of what it is summed from. */
typedef struct numbers {
    size_t rows, k;
    double *value, *size; /* [rows, k], row scales included */
    double *bias;         /* [rows] */
} numbers;

static double row_number(const moe_array *a, size_t row, double none)
{
    if (a->dtype == MOE_DTYPE_NONE) return none;
    return weights_ref_number((const char *)a->data + (int64_t)row * a->row_stride, a->dtype);
}

/* The minimum that is taken off weight [row, k]: the weight with the codes of its block all 0. */
static double minimum(const moe_matrix *m, size_t row, size_t k)
{
    unsigned char block[176];
    size_t bytes = m->weights.dtype == MOE_Q4_K ? 144 : m->weights.dtype == MOE_Q5_K ? 176 : 0;
    if (bytes == 0) return 0;
    const char *at = (const char *)m->weights.data + (int64_t)row * m->weights.row_stride +
                     (int64_t)(k / 256) * m->weights.column_stride;
    memcpy(block, at, bytes);
    memset(block + 16, 0, bytes - 16);
    moe_matrix one = *m;
    one.weights.data = block;
    return weights_ref_value(&one, 0, 0, k % 256);
}

static numbers numbers_of(const moe_matrix *m, size_t rows, size_t k)
{
    numbers n = {rows, k, NULL, NULL, NULL};
    if (m->weights.dtype == MOE_DTYPE_NONE) return n;
    n.value = room(rows * k, sizeof(double));
    n.size = room(rows * k, sizeof(double));
    n.bias = room(rows, sizeof(double));
    for (size_t r = 0; r < rows; r++) {
        double factor = row_number(&m->row_scale, r, 1.0);
        if (m->scale_k == 0) factor *= row_number(&m->scale, r, 1.0);
        n.bias[r] = row_number(&m->bias, r, 0.0);
        for (size_t c = 0; c < k; c++) {
            double value = weights_ref_value(m, 0, r, c), off = minimum(m, r, c);
            n.value[r * k + c] = factor * value;
            n.size[r * k + c] = fabs(factor) * (fabs(value - off) + fabs(off));
        }
    }
    return n;
}

static void numbers_free(numbers *n)
{
    free(n->value);
    free(n->size);
    free(n->bias);
}

/* ---- numbers with their errors --------------------------------------------------------------- */

typedef struct near {
    double v, e;
} near;

/* x . row of w, times `factor` (an input scale), plus its bias. */
static near dot(const numbers *w, size_t row, const near *x, near factor)
{
    double sum = 0, size = 0, carried = 0, n = (double)w->k + 40;
    for (size_t c = 0; c < w->k; c++) {
        sum += x[c].v * w->value[row * w->k + c];
        size += (fabs(x[c].v) + x[c].e) * w->size[row * w->k + c];
        carried += x[c].e * w->size[row * w->k + c];
    }
    double e = gamma_of(n) * (fabs(factor.v) * size + fabs(w->bias[row])) +
               fabs(factor.v) * carried + fabs(sum) * factor.e + n * ETA;
    return (near){factor.v * sum + w->bias[row], e};
}

static near limited(near a, moe_optional_float lower, moe_optional_float upper)
{
    if (upper.given && a.v > (double)upper.value) a.v = (double)upper.value;
    if (lower.given && a.v < (double)lower.value) a.v = (double)lower.value;
    return a;
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static near activate(const moe_layer_info *info, near g)
{
    double v = g.v, slope = 1.13; /* of SiLU and GELU, in both forms: the largest */
    switch (info->activation) {
    case MOE_SILU: v = g.v * sigmoid(g.v); break;
    case MOE_SWIGLU: v = g.v * sigmoid((double)info->swiglu_alpha.value * g.v); break;
    case MOE_GELU: v = g.v * 0.5 * (1 + erf(g.v / sqrt(2))); break;
    case MOE_GELU_TANH:
        v = g.v * 0.5 * (1 + tanh(0.7978845608028654 * (g.v + 0.044715 * g.v * g.v * g.v)));
        break;
    case MOE_RELU2:
        v = g.v > 0 ? g.v * g.v : 0;
        slope = 2 * (fabs(g.v) + g.e);
        break;
    default: v = g.v > 0 ? g.v : 0; break;
    }
    return (near){v, slope * g.e + 8 * U * (fabs(v) + slope * g.e) + ETA};
}

static near times(near a, near b)
{
    double e = fabs(a.v) * b.e + fabs(b.v) * a.e + a.e * b.e;
    return (near){a.v * b.v, e + U * (fabs(a.v * b.v) + e) + ETA};
}

/* ---- one expert ------------------------------------------------------------------------------ */

typedef struct expert {
    numbers gate, up, down;
} expert;

static expert read_expert(const layer_experts *x, size_t e)
{
    unsigned char *buffer = malloc(x->expert_bytes);
    moe_experts_args args = moe_experts_args_init();
    assert_non_null(buffer);
    assert_int_equal(load_read_expert(x, e, buffer), MOE_OK);
    load_describe(x, buffer, 0, &args);
    size_t H = (size_t)x->H, I = (size_t)x->I;
    expert one = {numbers_of(&args.gate, I, H), numbers_of(&args.up, I, H),
                  numbers_of(&args.down, H, I)};
    free(buffer);
    return one;
}

static void expert_free(expert *x)
{
    numbers_free(&x->gate);
    numbers_free(&x->up);
    numbers_free(&x->down);
}

/* y[H]. */
static void run_expert(const expert *x, const moe_layer_info *info, const near *hidden, near factor,
                       near *y)
{
    size_t I = x->up.rows;
    near *m = room(I, sizeof *m);
    moe_optional_float none = {0, 0};
    for (size_t i = 0; i < I; i++) {
        near u = limited(dot(&x->up, i, hidden, factor), info->up_clamp_lower_limit,
                         info->up_clamp_upper_limit);
        if (x->gate.value == NULL) {
            m[i] = activate(info, u);
            continue;
        }
        near g = limited(dot(&x->gate, i, hidden, factor), none, info->gate_clamp_upper_limit);
        near a = limited(activate(info, g), none, info->act_clamp_upper_limit);
        if (info->swiglu_up_offset.given) {
            u.v += (double)info->swiglu_up_offset.value;
            u.e += U * (fabs(u.v) + u.e);
        }
        m[i] = times(a, u);
    }
    for (size_t h = 0; h < x->down.rows; h++) y[h] = dot(&x->down, h, m, (near){1, 0});
    free(m);
}

/* ---- the layer ------------------------------------------------------------------------------- */

/* How far, relatively, a routing weight may be off: that of the exponentials of logits. */
static double router_error(const layer_plan *plan, const fixture_case *c, int64_t t)
{
    const layer_vector *v = &plan->router;
    size_t element = moe_dtype_size(v->dtype), H = (size_t)c->H;
    double worst = 0;
    void *data;
    load_progress progress = {NULL, NULL, 0, 0, ""};
    assert_int_equal(load_vector(v, &progress, &data), MOE_OK);
    for (size_t e = 0; e < (size_t)c->E; e++) {
        double size = 0;
        for (size_t h = 0; h < H; h++)
            size += fabs((double)c->hidden[(size_t)t * H + h] *
                         weights_ref_number((char *)data + (e * H + h) * element, v->dtype));
        size += fabs((double)c->logits[(size_t)(t * c->E) + e]);
        worst = fmax(worst, gamma_of((double)H + 40) * size);
    }
    free(data);
    return 2.1 * worst + 64 * U;
}

/* The gate of the shared expert. */
static near shared_gate(const layer_plan *plan, const near *hidden, size_t H)
{
    const layer_vector *v = &plan->shared_gate;
    if (!v->given) return (near){1, 0};
    double sum = 0, size = 0;
    void *data;
    load_progress progress = {NULL, NULL, 0, 0, ""};
    assert_int_equal(load_vector(v, &progress, &data), MOE_OK);
    for (size_t h = 0; h < H; h++) {
        double product =
            hidden[h].v * weights_ref_number((char *)data + h * moe_dtype_size(v->dtype), v->dtype);
        sum += product;
        size += fabs(product);
    }
    free(data);
    return (near){sigmoid(sum), 0.25 * gamma_of((double)H + 40) * size + 8 * U};
}

/* Adds a row of an expert, times its weight, to a token's. */
static void add(near *out, const near *y, size_t H, near weight)
{
    for (size_t h = 0; h < H; h++) {
        near one = times(y[h], weight);
        out[h].v += fabs(one.v); /* magnitudes: what the sum's own roundings are bounded by */
        out[h].e += one.e;
    }
}

static void bound_token(const layer_plan *plan, const fixture_case *c, int64_t t,
                        const expert *experts, const expert *shared, model_bounds *b)
{
    size_t H = (size_t)c->H, K = (size_t)c->K;
    const moe_layer_info *info = &plan->info;
    near *x = room(H, sizeof *x), *y = room(H, sizeof *y), *routed = room(H, sizeof *routed),
         *block = room(H, sizeof *block);
    bool input = info->scaling == MOE_INPUT_SCALE, own = info->foreign_router == NULL;
    double off = own ? router_error(plan, c, t) : 0;
    for (size_t h = 0; h < H; h++) x[h].v = (double)c->hidden[(size_t)t * H + h];
    for (size_t k = 0; k < K; k++) {
        size_t slot = (size_t)t * K + k;
        double w = (double)c->weights[slot];
        const expert *e = &experts[c->ids[slot]];
        run_expert(e, info, x, (near){input ? w : 1, 0}, y);
        add(routed, y, H, (near){input ? 1 : w, 0});
        if (input) run_expert(e, info, x, (near){w, off * fabs(w)}, y);
        add(block, y, H, (near){input ? 1 : w, input ? 0 : off * fabs(w)});
    }
    if (shared) {
        run_expert(shared, info, x, (near){1, 0}, y);
        add(block, y, H, shared_gate(plan, x, H));
    }
    double n = (double)K + 4;
    for (size_t h = 0; h < H; h++) {
        b->experts[(size_t)t * H + h] = routed[h].e + gamma_of(n) * (routed[h].v + routed[h].e);
        b->block[(size_t)t * H + h] = block[h].e + gamma_of(n) * (block[h].v + block[h].e);
    }
    free(x);
    free(y);
    free(routed);
    free(block);
}

void model_bounds_make(const moe_model *model, int64_t i, const fixture_case *c, model_bounds *b)
{
    layer_place place = model_place(model, i);
    layer_plan plan;
    size_t cells = (size_t)(c->T * c->H);
    assert_int_equal(layer_resolve(&place, &plan), MOE_OK);
    b->experts = room(cells, sizeof(double));
    b->block = room(cells, sizeof(double));
    expert *experts = room((size_t)c->E, sizeof *experts), shared;
    for (size_t e = 0; e < (size_t)c->E; e++) experts[e] = read_expert(&plan.experts, e);
    if (plan.shared.E > 0) shared = read_expert(&plan.shared, 0);
    for (int64_t t = 0; t < c->T; t++)
        bound_token(&plan, c, t, experts, plan.shared.E > 0 ? &shared : NULL, b);
    for (size_t e = 0; e < (size_t)c->E; e++) expert_free(&experts[e]);
    if (plan.shared.E > 0) expert_free(&shared);
    free(experts);
    layer_plan_free(&plan);
}

void model_bounds_free(model_bounds *b)
{
    free(b->experts);
    free(b->block);
}

void model_within(const char *what, const fixture_case *c, const float *got, const double *expected,
                  const double *bound)
{
    double worst = 0, largest = 0, widest = 0;
    for (size_t i = 0; i < (size_t)(c->T * c->H); i++) {
        /* ... and the rounding of the output itself */
        double limit = bound[i] + 0x1p-24 * fabs(expected[i]);
        double error = fabs((double)got[i] - expected[i]) / limit;
        worst = error > worst || isnan(error) ? error : worst;
        largest = fmax(largest, fabs(expected[i]));
        widest = fmax(widest, bound[i]);
    }
    if (!(worst <= 1)) fail_msg("%s, T = %lld: %g times the bound", what, (long long)c->T, worst);
    /* Mistakes are larger than 0.08 (tests/fixtures/README.md): a bound that forgave one would be none. */
    if (!(widest < 5e-3 * largest)) fail_msg("%s: a bound of %g", what, widest / largest);
}
