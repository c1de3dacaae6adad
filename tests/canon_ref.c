/* SPDX-License-Identifier: Apache-2.0 */
/* canon_ref.c - canon 1, slowly.  The section numbers are those of docs/numerics.md. */
#include "canon_ref.h"

#include <stdlib.h>

#include "numeric.h"

/* ---- section 1: the environment -------------------------------------------------------------- */

#if defined(__x86_64__)
unsigned long canon_enter(void)
{
    unsigned saved = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x9FC0); /* FTZ, nearest, all exceptions masked, DAZ */
    return saved;
}

void canon_leave(unsigned long saved)
{
    __builtin_ia32_ldmxcsr((unsigned)saved);
}
#else /* AArch64 */
unsigned long canon_enter(void)
{
    unsigned long saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" ::"r"(1ul << 24)); /* FZ */
    return saved;
}

void canon_leave(unsigned long saved)
{
    __asm__ volatile("msr fpcr, %0" ::"r"(saved));
}
#endif

/* ---- section 2: elements of tensors ---------------------------------------------------------- */

static uint32_t word_at(const void *at, moe_dtype dtype)
{
    uint32_t w = 0;
    memcpy(&w, at, moe_dtype_size(dtype));
    return w;
}

static uint32_t word(const moe_tensor *t, size_t n)
{
    return word_at((const unsigned char *)t->data + n * moe_dtype_size(t->dtype), t->dtype);
}

static float decoded(uint32_t w, moe_dtype dtype)
{
    switch (dtype) {
    case MOE_BF16: return num_from_bf16((uint16_t)w);
    case MOE_F16: return num_from_f16((uint16_t)w);
    case MOE_E4M3_IEEE: return num_from_e4m3_ieee((uint8_t)w);
    case MOE_E4M3FN: return num_from_e4m3fn((uint8_t)w);
    default: return num_float(w);
    }
}

static float number(const moe_tensor *t, size_t n)
{
    return decoded(word(t, n), t->dtype);
}

/* Of an array: the element of expert e at (row, column). */
static uint32_t array_word(const moe_array *a, size_t e, size_t row, size_t column)
{
    const unsigned char *at = a->data;
    if (at == NULL)
        at = a->experts[e];
    else
        at += (int64_t)e * a->expert_stride;
    return word_at(at + (int64_t)row * a->row_stride + (int64_t)column * a->column_stride,
                   a->dtype);
}

static float array_number(const moe_array *a, size_t e, size_t row)
{
    return decoded(array_word(a, e, row, 0), a->dtype);
}

static int64_t integer(const moe_tensor *t, size_t n)
{
    if (t->dtype != MOE_I64) return t->dtype == MOE_U32 ? (int64_t)word(t, n) : (int32_t)word(t, n);
    int64_t v;
    memcpy(&v, (const unsigned char *)t->data + n * sizeof v, sizeof v);
    return v;
}

static void store(moe_dtype dtype, void *output, size_t n, float v)
{
    if (dtype == MOE_F32)
        ((float *)output)[n] = num_to_f32(v);
    else
        ((uint16_t *)output)[n] = dtype == MOE_BF16 ? num_to_bf16(v) : num_to_f16(v);
}

/* ---- the call as the formulas see it --------------------------------------------------------- */

typedef enum matrix { GATE, UP, DOWN } matrix;

typedef struct call {
    const moe_tkg_args *a;
    const moe_experts_args *rows; /* the weights as row-major matrices, or NULL */
    bool mx, prequantised;
    bool strided; /* the operator's MX tensors */
    moe_act_mode mode;
    size_t T, H, I, E_L, I_p, nI, nH; /* I_p, nI, nH: strided only */
    size_t lanes;                     /* of the intermediate: I; strided nI * I_p * 4 */
} call;

/* What one token brings to a product: values, or integers with a scale for each block (INT8). */
typedef struct operands {
    float *value;
    int *integer;
    float *scale;
} operands;

static size_t tokens_of(const moe_tensor *x)
{
    if (x->layout != MOE_LAYOUT_HBM) return (size_t)x->shape[x->dtype == MOE_MXFP8_X4 ? 2 : 1];
    return (size_t)(x->rank == 3 ? x->shape[0] * x->shape[1] : x->shape[0]);
}

static call describe_rows(const moe_tkg_args *a, const moe_experts_args *rows)
{
    call c = {.a = a, .rows = rows, .mode = a->act_mode, .E_L = (size_t)rows->E_L};
    c.mx = rows->up.scale.dtype == MOE_E8M0;
    if (c.mode == MOE_ACT_DEFAULT) c.mode = MOE_ACT_EXACT;
    c.H = (size_t)rows->H;
    c.I = c.lanes = (size_t)rows->I;
    c.T = tokens_of(a->hidden_input);
    return c;
}

static call describe(const moe_tkg_args *a)
{
    const moe_tensor *x = a->hidden_input, *up = a->expert_gate_up_weights;
    const moe_tensor *down = a->expert_down_weights;
    call c = {.a = a, .mode = a->act_mode, .E_L = (size_t)up->shape[0]};
    c.mx = c.strided = up->dtype == MOE_MXFP4_X4 || up->dtype == MOE_MXFP8_X4;
    c.prequantised = x->dtype == MOE_MXFP8_X4;
    if (c.mode == MOE_ACT_DEFAULT) c.mode = c.mx ? MOE_ACT_MXFP8 : MOE_ACT_EXACT;
    c.H = (size_t)down->shape[down->rank - 1];
    c.I = (size_t)up->shape[up->rank - 1];
    c.T = tokens_of(x);
    c.lanes = c.I;
    if (c.strided) {
        c.nH = c.H / 512;
        c.I_p = (size_t)down->shape[1];
        c.nI = (size_t)down->shape[2];
        c.lanes = c.nI * c.I_p * 4;
    }
    return c;
}

/* ---- section 3: the k axis ------------------------------------------------------------------- */

/* k is h for gate and up, i for down; strided for down the lane (tile * I_p + p) * 4 + q. */
typedef struct block {
    size_t n, k[512];
} block;

typedef struct place {
    size_t tile, p, q;
} place;

static place place_of(const call *c, matrix m, size_t k)
{
    if (m == DOWN) return (place){k / 4 / c->I_p, k / 4 % c->I_p, k % 4};
    return (place){k % (c->H / 4) / 128, k % 128, k / (c->H / 4)};
}

static size_t block_rows(const call *c, matrix m) /* blocks of a tile, strided */
{
    return m == DOWN ? c->I_p / 8 : 16;
}

static size_t block_count(const call *c, matrix m)
{
    if (c->strided) return block_rows(c, m) * (m == DOWN ? c->nI : c->nH);
    size_t n = c->mx ? 32 : 512;
    return ((m == DOWN ? c->I : c->H) + n - 1) / n;
}

static block block_at(const call *c, matrix m, size_t index)
{
    block b = {.n = 32};
    if (!c->strided) {
        size_t n = c->mx ? 32 : 512, left = (m == DOWN ? c->I : c->H) - index * n;
        b.n = left < n ? left : n;
        for (size_t j = 0; j < b.n; j++) b.k[j] = index * n + j;
        return b;
    }
    size_t tile = index / block_rows(c, m), p = index % block_rows(c, m) * 8;
    for (size_t q = 0; q < 4; q++)
        for (size_t r = 0; r < 8; r++)
            b.k[q * 8 + r] =
                m == DOWN ? (tile * c->I_p + p + r) * 4 + q : q * (c->H / 4) + tile * 128 + p + r;
    return b;
}

static size_t tile_width(const call *c, size_t tile)
{
    size_t rest = c->I - tile * 512;
    return rest >= 512 ? 128 : (rest + 7) / 8 * 8 / 4;
}

static const moe_matrix *rows_of(const call *c, matrix m)
{
    return m == GATE ? &c->rows->gate : m == UP ? &c->rows->up : &c->rows->down;
}

/* Row-major: y[row] = sum over k of x[k] w[row][k]; of e2m1_x2 the even k in the low 4 bits. */
static float row_weight(const call *c, matrix m, size_t e, size_t k, size_t row, unsigned *code)
{
    const moe_array *w = &rows_of(c, m)->weights;
    *code = 0;
    if (w->dtype != MOE_E2M1_X2) return decoded(array_word(w, e, row, k), w->dtype);
    *code = array_word(w, e, row, k / 2) >> 4 * (k % 2) & 15;
    return num_from_e2m1(*code);
}

/* The weight of term k for output column; MXFP4, and MX of the operator: its code in *code. */
static float weight(const call *c, matrix m, size_t e, size_t k, size_t column, unsigned *code)
{
    if (c->rows) return row_weight(c, m, e, k, column, code);
    const moe_tensor *w = m == DOWN ? c->a->expert_down_weights : c->a->expert_gate_up_weights;
    *code = 0;
    if (!c->mx)
        return number(w, m == DOWN ? (e * c->I + k) * c->H + column
                                   : ((e * c->H + k) * 2 + m) * c->I + column);
    place at = place_of(c, m, k);
    uint32_t x4 =
        word(w, m == DOWN ? ((e * c->I_p + at.p) * c->nI + at.tile) * c->H + column
                          : (((e * 128 + at.p) * 2 + m) * c->nH + at.tile) * c->I + column);
    bool fp4 = w->dtype == MOE_MXFP4_X4;
    *code = fp4 ? x4 >> 4 * at.q & 15 : x4 >> 8 * at.q & 255;
    return fp4 ? num_from_e2m1(*code) : num_from_e4m3fn((uint8_t)*code);
}

/* The scale byte of block index for output column. */
static uint8_t scale_byte(const call *c, matrix m, size_t e, size_t index, size_t column)
{
    if (c->rows) return (uint8_t)array_word(&rows_of(c, m)->scale, e, column, index);
    size_t rows = block_rows(c, m), b = index % rows, tile = index / rows;
    if (m == DOWN)
        return (uint8_t)word(c->a->expert_down_weights_scale,
                             ((e * rows + b) * c->nI + tile) * c->H + column);
    return (uint8_t)word(c->a->expert_gate_up_weights_scale,
                         (((e * rows + b) * 2 + m) * c->nH + tile) * c->I + column);
}

/* How many down blocks take part: all but trailing ones of pad lanes whose codes are zeros. */
static size_t down_blocks(const call *c, size_t e)
{
    size_t n = block_count(c, DOWN), rows = block_rows(c, DOWN);
    if (!c->strided) return n;
    for (; (n - 1) % rows * 8 >= tile_width(c, c->nI - 1); n--) {
        block b = block_at(c, DOWN, n - 1);
        unsigned code;
        for (size_t j = 0; j < b.n; j++)
            for (size_t h = 0; h < c->H; h++)
                if (weight(c, DOWN, e, b.k[j], h, &code) != 0) return n;
    }
    return n;
}

/* ---- section 6: operands --------------------------------------------------------------------- */

static float dequantised(uint8_t code, uint8_t s)
{
    return num_from_e4m3fn(code) * num_e8m0_low(s) * num_e8m0(s);
}

static void quantise_mxfp8(const block *b, float *v)
{
    uint32_t be = 8;
    for (size_t j = 0; j < b->n; j++) {
        uint32_t exponent = num_bits(v[b->k[j]]) >> 23 & 255;
        be = exponent > be ? exponent : be;
    }
    for (size_t j = 0; j < b->n; j++) {
        float *x = &v[b->k[j]];
        if (be == 255) {
            *x = dequantised(0x7F, 255);
            continue;
        }
        float y = *x * num_pow2(135 - (int)be);
        y = y > 448 ? 448 : y < -448 ? -448 : y;
        *x = dequantised(num_to_e4m3fn(y), (uint8_t)(be - 8));
    }
}

static void quantise_int8(const block *b, size_t index, operands *o)
{
    float amax = 0;
    bool finite = true;
    for (size_t j = 0; j < b->n; j++) {
        float v = fabsf(o->value[b->k[j]]);
        amax = v > amax ? v : amax;
        finite = finite && num_bits(v) < NUM_INF_BITS;
    }
    float scale = amax / 127.0f;
    o->scale[index] = finite ? scale : num_nan();
    for (size_t j = 0; j < b->n; j++) {
        size_t k = b->k[j];
        o->integer[k] = finite && scale != 0 ? (int)rintf(o->value[k] / scale) : 0;
    }
}

static void quantise(const call *c, matrix m, operands *o)
{
    for (size_t index = 0; index < block_count(c, m); index++) {
        block b = block_at(c, m, index);
        if (c->mode == MOE_ACT_MXFP8) quantise_mxfp8(&b, o->value);
        if (c->mode == MOE_ACT_INT8) quantise_int8(&b, index, o);
    }
}

static float hidden(const call *c, size_t t, size_t h)
{
    const moe_tensor *x = c->a->hidden_input;
    if (c->prequantised) {
        place at = place_of(c, GATE, h);
        size_t b = at.p / 8, sparse = 32 * (b / 4) + b % 4;
        uint32_t x4 = word(x, (at.p * c->nH + at.tile) * c->T + t);
        uint32_t s = word(c->a->hidden_input_scale, (sparse * c->nH + at.tile) * c->T + t);
        return dequantised((uint8_t)(x4 >> 8 * at.q), (uint8_t)s);
    }
    if (x->layout == MOE_LAYOUT_HBM) return number(x, t * c->H + h);
    size_t J = c->H / 128, p = c->strided ? h % 128 : h / J, j = c->strided ? h / 128 : h % J;
    return number(x, (p * c->T + t) * J + j);
}

/* ---- section 4: dot products ----------------------------------------------------------------- */

static float pairs(const call *c, matrix m, size_t e, size_t column, const block *b, const float *x)
{
    float acc = 0;
    unsigned code;
    for (size_t j = 0; j < b->n; j += 2) {
        float x1 = 0, w1 = 0;
        if (j + 1 < b->n) {
            x1 = x[b->k[j + 1]];
            w1 = weight(c, m, e, b->k[j + 1], column, &code);
        }
        acc = fmaf(x1, w1, acc);
        acc = fmaf(x[b->k[j]], weight(c, m, e, b->k[j], column, &code), acc);
    }
    return acc;
}

static float integers(const call *c, matrix m, size_t e, size_t column, const block *b,
                      const int *x)
{
    int dot = 0;
    unsigned code;
    for (size_t j = 0; j < b->n; j++) {
        weight(c, m, e, b->k[j], column, &code);
        dot += x[b->k[j]] * num_e2m1_doubled(code);
    }
    return (float)dot;
}

static float product(const call *c, matrix m, size_t e, size_t column, size_t blocks,
                     const operands *x)
{
    float sum = 0;
    for (size_t index = 0; index < blocks; index++) {
        block b = block_at(c, m, index);
        if (!c->mx) {
            sum = sum + pairs(c, m, e, column, &b, x->value);
            continue;
        }
        uint8_t s = scale_byte(c, m, e, index, column);
        if (c->mode == MOE_ACT_INT8) {
            float scale = x->scale[index] * (s == 0 ? 0.25f : 0.5f) * num_e8m0(s);
            sum = fmaf(integers(c, m, e, column, &b, x->integer), scale, sum);
        } else {
            float dot = pairs(c, m, e, column, &b, x->value);
            sum = fmaf(dot * num_e8m0_low(s), num_e8m0(s), sum);
        }
    }
    return sum;
}

/* ---- section 5: from the sums to the output -------------------------------------------------- */

static float clamp(float v, const moe_optional_float *upper, const moe_optional_float *lower)
{
    if (upper->given) v = v > upper->value ? upper->value : v;
    if (lower->given) v = v < lower->value ? lower->value : v;
    return v;
}

static float act(const moe_tkg_args *a, float g)
{
    switch (a->activation_fn) {
    case MOE_SILU: return num_swish(g, 1.0f);
    case MOE_GELU: return num_gelu(g);
    case MOE_GELU_TANH: return num_gelu_tanh(g);
    case MOE_SWISH: return num_swish(g, 1.702f);
    case MOE_RELU: return num_is_nan(g) ? g : g > 0 ? g : 0;
    case MOE_RELU2: return num_is_nan(g) ? g : g > 0 ? g * g : 0;
    default: return num_swish(g, a->swiglu_alpha.value);
    }
}

static float activation(const moe_tkg_args *a, float g)
{
    float v = act(a, g);
    return a->act_clamp_upper_limit.given && v > a->act_clamp_upper_limit.value
               ? a->act_clamp_upper_limit.value
               : v;
}

/* The f32 row scale and the bias of a sum. */
static float affine(const call *c, matrix m, size_t e, size_t row, size_t bias, float v)
{
    const moe_tkg_args *a = c->a;
    if (c->rows) {
        const moe_matrix *r = rows_of(c, m);
        if (!c->mx && r->scale.dtype != MOE_DTYPE_NONE) v = v * array_number(&r->scale, e, row);
        if (r->bias.dtype != MOE_DTYPE_NONE) v = v + array_number(&r->bias, e, row);
        return v;
    }
    const moe_tensor *scale =
        m == DOWN ? a->expert_down_weights_scale : a->expert_gate_up_weights_scale;
    const moe_tensor *b = m == DOWN ? a->expert_down_bias : a->expert_gate_up_bias;
    if (!c->mx && scale) {
        size_t n = (size_t)scale->shape[scale->rank - 1], of = m == DOWN ? e : e * 2 + m;
        v = v * number(scale, n == 1 ? of : of * n + row);
    }
    return b ? v + number(b, bias) : v;
}

/* The projection of lane to gate or up, with its factor, scale, bias and limits. */
static float projection(const call *c, matrix m, size_t e, size_t lane, const float *factor,
                        const operands *x)
{
    const moe_tkg_args *a = c->a;
    size_t i = lane, bias = (e * 2 + m) * c->I + i;
    bool pad = false;
    if (c->strided) {
        place at = place_of(c, DOWN, lane);
        size_t w = tile_width(c, at.tile);
        i = at.tile * 512 + at.q * w + at.p;
        pad = at.p >= w || i >= c->I;
        bias = (((e * c->I_p + at.p) * 2 + m) * c->nI + at.tile) * 4 + at.q;
    }
    float v = pad ? 0 : product(c, m, e, i, block_count(c, m), x);
    if (factor && !pad) v = v * *factor;
    v = affine(c, m, e, i, bias, v);
    return m == GATE ? clamp(v, &a->gate_clamp_upper_limit, &a->gate_clamp_lower_limit)
                     : clamp(v, &a->up_clamp_upper_limit, &a->up_clamp_lower_limit);
}

static void intermediate(const call *c, size_t e, const float *factor, const operands *x,
                         operands *m)
{
    const moe_tkg_args *a = c->a;
    moe_dtype down = c->rows ? c->rows->down.weights.dtype : a->expert_down_weights->dtype;
    bool rounded = c->mode == MOE_ACT_EXACT && a->hidden_input->dtype == MOE_BF16 &&
                   down != MOE_F16 && down != MOE_F32;
    for (size_t lane = 0; lane < c->lanes; lane++) {
        float u = projection(c, UP, e, lane, factor, x), v = 0;
        if (a->activation_fn == MOE_SWIGLU) u = u + a->swiglu_up_offset.value;
        if (c->rows && c->rows->gate.weights.dtype == MOE_DTYPE_NONE)
            v = activation(a, u);
        else
            v = activation(a, projection(c, GATE, e, lane, factor, x)) * u;
        m->value[lane] = rounded ? num_from_bf16(num_to_bf16(v)) : v;
    }
    quantise(c, DOWN, m);
}

/* Adds expert e's term of one token to out. */
static void add_expert(const call *c, size_t e, float affinity, const operands *x, operands *m,
                       float *out)
{
    const moe_tkg_args *a = c->a;
    bool scaling = a->expert_affinities_scaling_mode != MOE_NO_SCALE,
         input = a->expert_affinities_scaling_mode == MOE_INPUT_SCALE;
    if (scaling && fabsf(affinity) < num_pow2(-126)) return;
    intermediate(c, e, input ? &affinity : NULL, x, m);
    size_t blocks = down_blocks(c, e);
    for (size_t h = 0; h < c->H; h++) {
        float y = affine(c, DOWN, e, h, e * c->H + h, product(c, DOWN, e, h, blocks, m));
        out[h] = scaling && !input ? fmaf(affinity, y, out[h]) : out[h] + y;
    }
}

static float at(const moe_tensor *t, size_t row, size_t column)
{
    return number(t, row * (size_t)t->shape[1] + column);
}

static void all_experts(const call *c, size_t t, const operands *x, operands *m, float *out)
{
    const moe_tkg_args *a = c->a;
    for (size_t e = 0; e < c->E_L; e++) {
        float affinity = 1;
        if (a->expert_affinities_scaling_mode != MOE_NO_SCALE) {
            int64_t global = integer(a->rank_id, 0) * (int64_t)c->E_L + (int64_t)e;
            affinity = at(a->expert_affinities, t, (size_t)global);
            bool selected = !a->mask_unselected_experts;
            size_t K = selected ? 0 : (size_t)a->expert_index->shape[1];
            for (size_t k = 0; k < K; k++)
                selected = selected || integer(a->expert_index, t * K + k) == global;
            if (!selected) affinity = 0;
        }
        add_expert(c, e, affinity, x, m, out);
    }
}

static void selected_experts(const call *c, size_t t, const operands *x, operands *m, float *out)
{
    const moe_tkg_args *a = c->a;
    size_t K = (size_t)a->expert_index->shape[1];
    for (size_t k = 0; k < K; k++) {
        int64_t e = integer(a->expert_index, t * K + k);
        if (e < 0 || e >= (int64_t)c->E_L) continue; /* skip_invalid_experts */
        float affinity = 1;
        if (a->expert_affinities_scaling_mode != MOE_NO_SCALE)
            affinity = a->expert_affinities_eager ? at(a->expert_affinities_eager, t, k)
                                                  : at(a->expert_affinities, t, (size_t)e);
        add_expert(c, (size_t)e, affinity, x, m, out);
    }
}

static void *zeroed(size_t n, size_t size)
{
    void *p = calloc(n, size);
    if (!p) abort();
    return p;
}

static operands operands_new(size_t n, size_t blocks)
{
    return (operands){zeroed(n, sizeof(float)), zeroed(n, sizeof(int)),
                      zeroed(blocks, sizeof(float))};
}

static void operands_free(operands *o)
{
    free(o->value);
    free(o->integer);
    free(o->scale);
}

static void run(const call *c, void *output)
{
    const moe_tkg_args *a = c->a;
    moe_dtype dtype = a->output_dtype;
    if (dtype == MOE_DTYPE_NONE) dtype = c->prequantised ? MOE_BF16 : a->hidden_input->dtype;
    operands x = operands_new(c->H, block_count(c, GATE));
    operands m = operands_new(c->lanes, block_count(c, DOWN));
    float *out = zeroed(c->H, sizeof *out);
    for (size_t t = 0; t < c->T; t++) {
        memset(out, 0, c->H * sizeof *out);
        for (size_t h = 0; h < c->H; h++) x.value[h] = hidden(c, t, h);
        if (!c->prequantised || c->mode == MOE_ACT_INT8) quantise(c, GATE, &x);
        if (a->is_all_expert)
            all_experts(c, t, &x, &m, out);
        else
            selected_experts(c, t, &x, &m, out);
        for (size_t h = 0; h < c->H; h++) {
            size_t J = c->H / 128, n = t * c->H + h;
            if (a->output_in_sbuf)
                n = c->strided ? (h % 128 * c->T + t) * J + h / 128
                               : (h / J * c->T + t) * J + h % J;
            store(dtype, output, n, out[h]);
        }
    }
    free(out);
    operands_free(&m);
    operands_free(&x);
}

void canon_run(const moe_tkg_args *args, void *output)
{
    call c = describe(args);
    unsigned long saved = canon_enter();
    run(&c, output);
    canon_leave(saved);
}

void canon_run_rows(const moe_tkg_args *args, const moe_experts_args *rows, void *output)
{
    call c = describe_rows(args, rows);
    unsigned long saved = canon_enter();
    run(&c, output);
    canon_leave(saved);
}
