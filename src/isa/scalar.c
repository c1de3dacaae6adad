/* SPDX-License-Identifier: Apache-2.0 */
/* scalar.c - the kernels of canon 1 in plain C: with numeric.h and quantize_block.h the normative text
 * of docs/numerics.md.
 *
 * Every other instruction set's kernels equal these bit for bit.  Written to be read: a block of
 * weights is widened to f32, and each token's dot products with it are taken in canonical order. */
#include "quantize_block.h"
#include "route_block.h"

/* The widened weights of one block, [matrix][k][row], and the sums, [matrix][token][row]. */
typedef float block_weights[2][KERNEL_PLAIN][KERNEL_ROWS];
typedef float panel_sums[2][KERNEL_TOKENS][KERNEL_ROWS];

/* ---- weights --------------------------------------------------------------------------------- */

/* The code of row r and term k of a line. */
static inline uint32_t code_of(const uint8_t *line, size_t r, size_t k, kernel_format f)
{
    size_t at = kernel_bit_at(f, r, k), bits = kernel_bits(f);
    uint32_t word;
    memcpy(&word, line + at / 32 * 4, sizeof word);
    return bits == 32 ? word : word >> at % 32 & ((1u << bits) - 1);
}

/* The integer that a code is; of e2m1 twice the value. */
static inline int integer_of(uint32_t code, kernel_format f)
{
    switch (kernel_formats[f].element) {
    case ELEMENT_E2M1: return num_e2m1_doubled(code);
    case ELEMENT_INT4: return (int)code - 8;
    case ELEMENT_INT8: return (int8_t)code;
    default: return (int)code; /* ELEMENT_UINT4 */
    }
}

static inline float value_of(uint32_t code, kernel_format f)
{
    switch (kernel_formats[f].element) {
    case ELEMENT_BF16: return num_from_bf16((uint16_t)code);
    case ELEMENT_F16: return num_from_f16((uint16_t)code);
    case ELEMENT_F32: return num_float(code);
    case ELEMENT_E4M3_IEEE: return num_from_e4m3_ieee((uint8_t)code);
    case ELEMENT_E4M3FN: return num_from_e4m3fn((uint8_t)code);
    case ELEMENT_E2M1: return num_from_e2m1(code);
    default: return (float)integer_of(code, f);
    }
}

/* w[k][r] of k terms from the lines of one half, stride bytes apart. */
static inline void widen(const uint8_t *lines, size_t stride, size_t k, kernel_format f,
                         float w[][KERNEL_ROWS])
{
    for (size_t i = 0; i < k; i++)
        for (size_t r = 0; r < KERNEL_ROWS; r++)
            w[i][r] = value_of(code_of(lines + kernel_line_of(f, i) * stride, r, i, f), f);
}

/* The bf16 of row r and term k of a bf12 panel's half, `lines`; escapes: those of the term's
 * chunk. */
static uint16_t bf12_weight(const kernel_bf12_head *head, const uint8_t *lines, size_t stride,
                            size_t half, size_t r, size_t k, const kernel_bf12_escape *escapes,
                            size_t count)
{
    const uint8_t *unit = lines + k / 8 * 3 * stride;
    uint32_t code = code_of(unit, r, k % 8, FORMAT_BF12);
    uint16_t rest;
    if (code == 15) {
        size_t place = (half * KERNEL_BLOCK + k % KERNEL_BLOCK) * KERNEL_ROWS + r;
        for (size_t i = 0; i < count; i++)
            if (escapes[i].place == place) return escapes[i].value;
    }
    memcpy(&rest, unit + (1 + k % 8 / 4) * stride + 4 * r + 2 * (k % 2), sizeof rest);
    if (k % 4 > 1) rest = (uint16_t)(rest << 8 | rest >> 8);
    return (uint16_t)((rest & 0x807F) | head->exponent[code] << 7);
}

/* w[half][k][r] of n terms from term first (a multiple of KERNEL_BLOCK) on of a bf12 panel. */
static void widen_bf12(const kernel_panel *p, size_t first, size_t n, block_weights w)
{
    const kernel_bf12_head *head = (const kernel_bf12_head *)(const void *)p->stream;
    const uint8_t *counts = p->stream + sizeof *head;
    const kernel_bf12_escape *escapes =
        (const kernel_bf12_escape *)(const void *)(p->stream + head->escapes_at);
    size_t stride = p->halves * KERNEL_LINE;
    for (size_t c = 0; c < first / KERNEL_BLOCK; c++) escapes += counts[c];
    for (size_t i = 0; i < n; i++) {
        size_t k = first + i, chunk = k / KERNEL_BLOCK;
        if (i > 0 && k % KERNEL_BLOCK == 0) escapes += counts[chunk - 1];
        for (size_t m = 0; m < p->halves; m++)
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                w[m][i][r] =
                    num_from_bf16(bf12_weight(head, p->stream + head->lines_at + m * KERNEL_LINE,
                                              stride, m, r, k, escapes, counts[chunk]));
    }
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* Of the run that a step belongs to, for each row: an acc becomes acc * low * scale, and minimum is
 * taken off for every unit of x. */
typedef struct step_scales {
    float low[KERNEL_ROWS], scale[KERNEL_ROWS], minimum[KERNEL_ROWS];
} step_scales;

static inline float float_of_f16(const uint8_t *at, size_t r)
{
    uint16_t half;
    memcpy(&half, at + r * sizeof half, sizeof half);
    return num_from_f16(half);
}

static inline float float_of_bf16(const uint8_t *at, size_t r)
{
    uint16_t half;
    memcpy(&half, at + r * sizeof half, sizeof half);
    return num_from_bf16(half);
}

static inline float float_of_f32(const uint8_t *at, size_t r)
{
    float x;
    memcpy(&x, at + r * sizeof x, sizeof x);
    return x;
}

/* d * sc and dmin * m are exact. */
static void scales_of(const kernel_panel *p, size_t m, size_t k, step_scales *s)
{
    const kernel_info *info = &kernel_formats[p->format];
    size_t run = k / info->scale_k;
    const uint8_t *part[4]; /* a kernel_part each */
    for (int i = 0; i < 4; i++)
        part[i] = p->stream + kernel_scale_at(p->format, p->halves, m, (kernel_part)i, run);
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        const uint8_t *scale = part[PART_SCALE], c = scale[r];
        s->low[r] = 1.0f;
        s->minimum[r] = info->minima ? float_of_f16(part[PART_DMIN], r) * part[PART_MINIMUM][r] : 0;
        switch (info->scale) {
        case SCALE_E8M0:
            s->low[r] = num_e8m0_low(c);
            s->scale[r] = num_e8m0(c);
            break;
        case SCALE_E4M3: s->scale[r] = num_from_e4m3fn(c); break;
        case SCALE_BF16: s->scale[r] = float_of_bf16(scale, r); break;
        case SCALE_F16: s->scale[r] = float_of_f16(scale, r); break;
        case SCALE_K_U8: s->scale[r] = float_of_f16(part[PART_D], r) * c; break;
        case SCALE_K_I8: s->scale[r] = float_of_f16(part[PART_D], r) * (int8_t)c; break;
        default: s->scale[r] = float_of_f32(scale, r);
        }
    }
}

/* ---- dot products ---------------------------------------------------------------------------- */

/* Tiles are one token wide here: a tile is a row. */
static inline const void *row_of(const kernel_tiles *tiles, size_t t)
{
    return tiles->x + t * tiles->tile_bytes;
}

/* acc[r] = sum over k (even) of x[k] w[k][r]: the odd term of a pair first. */
static inline void block_dot(const float *x, size_t k, float w[][KERNEL_ROWS], float *acc)
{
    for (size_t r = 0; r < KERNEL_ROWS; r++) acc[r] = 0.0f;
    for (size_t i = 0; i < k; i += 2)
        for (size_t r = 0; r < KERNEL_ROWS; r++) {
            acc[r] = fmaf(x[i + 1], w[i + 1][r], acc[r]);
            acc[r] = fmaf(x[i], w[i][r], acc[r]);
        }
}

/* Plain weights: blocks of 512, each block's dot from +0, added left to right. */
static inline void plain_sums(const kernel_panel *p, const kernel_tiles *tiles, kernel_format f,
                              block_weights w, panel_sums sum)
{
    size_t stride = p->halves * KERNEL_LINE;
    for (size_t first = 0; first < p->k; first += KERNEL_PLAIN) {
        size_t n = p->k - first < KERNEL_PLAIN ? p->k - first : KERNEL_PLAIN;
        const uint8_t *lines = p->stream + first / kernel_line_k(f) * stride;
        if (f == FORMAT_BF12) widen_bf12(p, first, n, w);
        for (size_t m = 0; m < p->halves; m++) {
            if (f != FORMAT_BF12) widen(lines + m * KERNEL_LINE, stride, n, f, w[m]);
            for (size_t t = 0; t < tiles->tokens; t++) {
                float acc[KERNEL_ROWS];
                block_dot((const float *)row_of(tiles, t) + first, n, w[m], acc);
                for (size_t r = 0; r < KERNEL_ROWS; r++) sum[m][t][r] += acc[r];
            }
        }
    }
}

/* The lines of a half from term k on, which is the first of a step. */
static inline const uint8_t *lines_at(const kernel_panel *p, size_t m, size_t k)
{
    return p->stream + kernel_line_at(p->format, p->halves, m, kernel_line_of(p->format, k));
}

/* Scaled weights: the dot of each step from +0, scaled into the sum by one fma; what minima take
 * off by another.  f: any format with the panel's elements. */
static inline void scaled_sums(const kernel_panel *p, const kernel_tiles *tiles, kernel_format f,
                               block_weights w, panel_sums sum)
{
    const kernel_info *info = &kernel_formats[p->format];
    size_t stride = p->halves * KERNEL_LINE, n = info->step;
    for (size_t k = 0; k < p->k; k += n)
        for (size_t m = 0; m < p->halves; m++) {
            step_scales s;
            scales_of(p, m, k, &s);
            widen(lines_at(p, m, k), stride, n, f, w[m]);
            for (size_t t = 0; t < tiles->tokens; t++) {
                const float *x = row_of(tiles, t);
                float acc[KERNEL_ROWS], *to = sum[m][t];
                block_dot(x + k, n, w[m], acc);
                for (size_t r = 0; r < KERNEL_ROWS; r++)
                    to[r] = fmaf(acc[r] * s.low[r], s.scale[r], to[r]);
                for (size_t r = 0; info->minima && r < KERNEL_ROWS; r++)
                    to[r] = fmaf(x[p->k + k / KERNEL_BLOCK], -s.minimum[r], to[r]);
            }
        }
}

/* dot[r] = the exact sum over a step of q w, both in the order that kernel.h gives for int8. */
static inline void int8_dot(const int8_t *q, const int *w, size_t n, int *dot)
{
    *dot = 0;
    for (size_t i = 0; i < n; i++) *dot += q[i] * w[i / 8 * 8 + kernel_int8_k(i % 8)];
}

/* Scaled weights and int8 operands: each step's dot is an exact integer, with e2m1 of twice the
 * values, for which half the operand's scale makes up. */
static inline void int8_sums(const kernel_panel *p, const kernel_tiles *tiles, kernel_format f,
                             panel_sums sum)
{
    const kernel_info *info = &kernel_formats[p->format];
    const float unit = info->element == ELEMENT_E2M1 ? 0.5f : 1.0f;
    size_t stride = p->halves * KERNEL_LINE, n = info->step, blocks = p->k / KERNEL_BLOCK;
    for (size_t k = 0; k < p->k; k += n)
        for (size_t m = 0; m < p->halves; m++) {
            const uint8_t *lines = lines_at(p, m, k);
            step_scales s;
            scales_of(p, m, k, &s);
            for (size_t r = 0; r < KERNEL_ROWS; r++) {
                int w[KERNEL_BLOCK], dot;
                for (size_t i = 0; i < n; i++)
                    w[i] = integer_of(code_of(lines + kernel_line_of(f, i) * stride, r, i, f), f);
                for (size_t t = 0; t < tiles->tokens; t++) {
                    const int8_t *q = row_of(tiles, t);
                    const float *sx = (const float *)row_of(tiles, t) + p->k / 4;
                    const int32_t *codes = (const int32_t *)row_of(tiles, t) + p->k / 4 + blocks;
                    float scale = sx[k / KERNEL_BLOCK], *to = &sum[m][t][r];
                    int8_dot(q + k, w, n, &dot);
                    *to = fmaf((float)dot, scale * unit * s.low[r] * s.scale[r], *to);
                    if (info->minima)
                        *to = fmaf((float)codes[k / KERNEL_BLOCK], -(scale * s.minimum[r]), *to);
                }
            }
        }
}

static inline void sums(const kernel_panel *p, const kernel_tiles *tiles, kernel_format f,
                        kernel_operand o, panel_sums sum)
{
    block_weights w;
    for (size_t m = 0; m < 2; m++) memset(sum[m], 0, tiles->tokens * sizeof sum[m][0]);
    if (o == OPERAND_INT8)
        int8_sums(p, tiles, f, sum);
    else if (kernel_is_scaled(f))
        scaled_sums(p, tiles, f, w, sum);
    else
        plain_sums(p, tiles, f, w, sum);
}

/* ---- from the sums to the rows --------------------------------------------------------------- */

/* v * scale + bias, each only if it is there. */
static inline float affine(float v, const kernel_rows *rows, size_t r)
{
    if (rows->scale != NULL) v = v * rows->scale[r];
    if (rows->bias != NULL) v = v + rows->bias[r];
    return v;
}

/* NaN passes; if the limits cross the lower one wins. */
static inline float clamp(float v, float upper, float lower)
{
    v = v > upper ? upper : v;
    return v < lower ? lower : v;
}

static inline float activation_of(const kernel_point *p, float g)
{
    switch (p->activation) {
    case MOE_GELU: return num_gelu(g);
    case MOE_GELU_TANH: return num_gelu_tanh(g);
    case MOE_RELU: return num_relu(g);
    case MOE_RELU2: return num_relu(g) * num_relu(g);
    default: return num_swish(g, p->alpha);
    }
}

/* At most the limit; NaN passes. */
static inline float activate(const kernel_point *p, float g)
{
    float v = activation_of(p, g);
    return v > p->act_upper ? p->act_upper : v;
}

/* Row r of a half for token t: its sum, times the token's factor, before the limits. */
static inline float projection(const kernel_gate_up *a, panel_sums sum, size_t half, size_t t,
                               size_t r)
{
    float v = sum[half][t][r];
    if (a->factor != NULL) v = v * a->factor[t];
    return affine(v, &a->panel.rows[half], r);
}

static inline void gate_up(const kernel_gate_up *a, kernel_format f, kernel_operand o)
{
    const kernel_point *p = a->point;
    panel_sums sum;
    sums(&a->panel, &a->tiles, f, o, sum);
    for (size_t t = 0; t < a->tiles.tokens; t++) {
        float *mid = a->mid + t * a->mid_stride;
        for (size_t m = 0; p->ungated && m < a->panel.halves; m++)
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                mid[m * KERNEL_ROWS + r] =
                    activate(p, clamp(projection(a, sum, m, t, r), p->up_upper, p->up_lower));
        for (size_t r = 0; !p->ungated && r < KERNEL_ROWS; r++) {
            float g = clamp(projection(a, sum, 0, t, r), p->gate_upper, p->gate_lower);
            float u = clamp(projection(a, sum, 1, t, r), p->up_upper, p->up_lower);
            mid[r] = activate(p, g) * (u + p->up_offset);
        }
    }
}

static inline void down(const kernel_down *a, kernel_format f, kernel_operand o)
{
    panel_sums sum;
    sums(&a->panel, &a->tiles, f, o, sum);
    for (size_t t = 0; t < a->tiles.tokens; t++)
        for (size_t m = 0; m < a->panel.halves; m++)
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                a->y[t * a->y_stride + m * KERNEL_ROWS + r] =
                    affine(sum[m][t][r], &a->panel.rows[m], r);
}

/* ---- the router ------------------------------------------------------------------------------ */

static void route_dots(const kernel_route *a)
{
    for (size_t t = 0; t < a->tokens; t++)
        for (size_t r = 0; r < a->rows; r++)
            for (size_t k = 0; k < a->k; k++) {
                float *lane = &a->acc[t][r][k % KERNEL_LANES];
                *lane = fmaf(a->x[t * a->x_stride + k], a->w[r * a->w_stride + k], *lane);
            }
}

static void route_widen(const void *v, moe_dtype dtype, size_t n, float *out)
{
    const uint16_t *half = v;
    switch (dtype) {
    case MOE_BF16: route_widen_bf16(half, n, out); break;
    case MOE_F16:
        for (size_t i = 0; i < n; i++) out[i] = num_from_f16(half[i]);
        break;
    default: memcpy(out, v, n * sizeof *out);
    }
}

/* ---- the table ------------------------------------------------------------------------------- */

#define KERNEL_PAIR(name, format, operand)                                                         \
    static void gate_up_##name(const kernel_gate_up *a)                                            \
    {                                                                                              \
        gate_up(a, format, operand);                                                               \
    }                                                                                              \
    static void down_##name(const kernel_down *a)                                                  \
    {                                                                                              \
        down(a, format, operand);                                                                  \
    }

KERNEL_PAIR(bf16, FORMAT_BF16, OPERAND_F32)
KERNEL_PAIR(f16, FORMAT_F16, OPERAND_F32)
KERNEL_PAIR(f32, FORMAT_F32, OPERAND_F32)
KERNEL_PAIR(e4m3_ieee, FORMAT_E4M3_IEEE, OPERAND_F32)
KERNEL_PAIR(e4m3fn, FORMAT_E4M3FN, OPERAND_F32)
KERNEL_PAIR(bf12, FORMAT_BF12, OPERAND_F32)
/* One for all formats with the same elements. */
KERNEL_PAIR(fp8, FORMAT_MXFP8, OPERAND_F32)
KERNEL_PAIR(fp4, FORMAT_MXFP4, OPERAND_F32)
KERNEL_PAIR(fp4_int8, FORMAT_MXFP4, OPERAND_INT8)
KERNEL_PAIR(int4, FORMAT_INT4_F16_32, OPERAND_F32)
KERNEL_PAIR(int4_int8, FORMAT_INT4_F16_32, OPERAND_INT8)
KERNEL_PAIR(uint4, FORMAT_Q4_K, OPERAND_SUMS)
KERNEL_PAIR(uint4_int8, FORMAT_Q4_K, OPERAND_INT8)
KERNEL_PAIR(int8, FORMAT_Q8_0, OPERAND_F32)
KERNEL_PAIR(int8_int8, FORMAT_Q8_0, OPERAND_INT8)

#define BOTH(name)                                                                                 \
    {                                                                                              \
        [OPERAND_F32] = name, [OPERAND_INT8] = name##_int8                                         \
    }
#define SUMS(name)                                                                                 \
    {                                                                                              \
        [OPERAND_SUMS] = name, [OPERAND_INT8] = name##_int8                                        \
    }

#define SLOTS(kind)                                                                                \
    {                                                                                              \
        [FORMAT_BF16] = {kind##_bf16}, [FORMAT_F16] = {kind##_f16}, [FORMAT_F32] = {kind##_f32},   \
        [FORMAT_E4M3_IEEE] = {kind##_e4m3_ieee}, [FORMAT_E4M3FN] = {kind##_e4m3fn},                \
        [FORMAT_MXFP8] = {kind##_fp8}, [FORMAT_MXFP4] = BOTH(kind##_fp4),                          \
        [FORMAT_BF12] = {kind##_bf12}, [FORMAT_FP8_BLOCK] = {kind##_fp8},                          \
        [FORMAT_INT4_BF16_32] = BOTH(kind##_int4), [FORMAT_INT4_BF16_64] = BOTH(kind##_int4),      \
        [FORMAT_INT4_BF16_128] = BOTH(kind##_int4), [FORMAT_INT4_F16_32] = BOTH(kind##_int4),      \
        [FORMAT_INT4_F16_64] = BOTH(kind##_int4), [FORMAT_INT4_F16_128] = BOTH(kind##_int4),       \
        [FORMAT_Q8_0] = BOTH(kind##_int8), [FORMAT_Q4_K] = SUMS(kind##_uint4),                     \
        [FORMAT_Q5_K] = SUMS(kind##_int8), [FORMAT_Q6_K] = BOTH(kind##_int8),                      \
        [FORMAT_NVFP4] = BOTH(kind##_fp4),                                                         \
    }

const kernel_table kernel_table_scalar = {"scalar",    {1, 1},          SLOTS(gate_up),
                                          SLOTS(down), quantize_tokens, reduce_terms,
                                          route_dots,  route_scores,    route_widen};
