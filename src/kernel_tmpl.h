/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_tmpl.h - the vector kernels, written once over the vocabulary of an instruction set
 * (src/isa/vec_*.h).
 *
 * Included by src/isa/<isa>.c after its vocabulary; kernel_dot.h, kernel_act.h and kernel_route.h
 * are parts of it.
 * A vec holds KERNEL_ROWS f32, one for each output row of half a panel, so that a sum over k is
 * never split: every width of register gives the same bits.  The loops:
 *
 *     for each span of 512 k of the panel
 *         for each tile of tokens                       (one instance for each width of tile)
 *             for each unit of lines                    (prefetched AHEAD bytes before)
 *                 for each pair of k: decode a line of weights of both halves, in registers
 *                     for each token: one broadcast operand, a dot with each half
 *             MX: every 32 k the scales take the dots into the sums;  plain: once a span
 *
 * Weights are decoded in registers for each tile: a tile of some tokens hides it behind its dots,
 * and no buffer lies between (docs/performance.md).
 *
 * Vocabulary: vec, line (64 bytes), ivec (16 int32) and the v_, l_, i_ words used below;
 * VEC_WIDTH and VEC_WIDTH_MX, the widest tiles with plain and with MX weights; VEC_SUMS, how many
 * vec accumulators stay in registers; VEC_FEW where registers are so few that halves take turns
 * within a pair of k; VEC_BF16 where the word for OPERAND_BF16 exists; VEC_MATRIX where
 * words exist for the int8 dots of two tokens at once; VEC_AHEAD, if another distance than the one
 * below suits the prefetches of a single tile. */
#include "kernel_dot.h"

#include "kernel_act.h"
#include "kernel_route.h"
#include "kernel_scaled.h"
#include "quantize_block.h"

/* ---- a tile and a span ----------------------------------------------------------------------- */

/* Plain weights: a span is one block of 512, its dot from +0. */
INLINE void plain_tile(const span *s, size_t m, const uint8_t *x, size_t width, kernel_format f,
                       kernel_operand o, tile_sums sum)
{
    const shape n = shape_of(width, f, o);
    accs acc;
    accs_clear(n, acc);
    if (f == FORMAT_BF12)
        dot_bf12(s, m, x, n, o, acc);
    else
        dot_terms(s->lines + m * s->second, s, s->end - s->first, x, n, f, o, NULL, acc);
    UNROLL
    for (size_t i = 0; i < n.halves; i++) UNROLL
    for (size_t t = 0; t < width; t++) {
        float *at = sum[(m + i) * KERNEL_TOKENS + t];
        v_store(at, v_add(v_load(at), acc[0][i][t]));
    }
}

INLINE void tile_of_width(const span *s, const uint8_t *tile, size_t width, kernel_format f,
                          kernel_operand o, tile_sums sum)
{
    const uint8_t *x = tile + s->first / 2 * pair_bytes(width, o);
    const size_t halves = shape_of(width, f, o).halves;
    for (size_t m = 0; m < 2; m += halves) {
        if (kernel_is_mx(f))
            mx_tile(s, m, tile, width, f, o, sum);
        else if (kernel_is_scaled(f))
            scaled_tile(s, m, tile, width, f, o, sum);
        else
            plain_tile(s, m, x, width, f, o, sum);
        if (s->second == 0) break;
    }
}

/* A tile for a width known at run time: an instance for each. */
typedef void tile_fn(const span *s, const uint8_t *tile, size_t width, tile_sums sum);

#if VEC_WIDTH > 4
#define WIDE_CASES(call)                                                                           \
    case 5: call(5); break;                                                                        \
    case 6: call(6); break;                                                                        \
    case 7: call(7); break;                                                                        \
    case 8:                                                                                        \
        call(8);                                                                                   \
        break;
#else
#define WIDE_CASES(call)
#endif
#if VEC_WIDTH > 8
#define WIDEST_CASES(call)                                                                         \
    case 9: call(9); break;                                                                        \
    case 10: call(10); break;                                                                      \
    case 11: call(11); break;                                                                      \
    case 12:                                                                                       \
        call(12);                                                                                  \
        break;
#else
#define WIDEST_CASES(call)
#endif

#define SWITCH_WIDTH(width, call, more_cases)                                                      \
    switch (width) {                                                                               \
    case 1: call(1); break;                                                                        \
    case 2: call(2); break;                                                                        \
    case 3: call(3); break;                                                                        \
    case 4:                                                                                        \
        call(4);                                                                                   \
        break;                                                                                     \
        WIDE_CASES(call)                                                                           \
        more_cases(call) default : __builtin_unreachable();                                        \
    }
#define NO_CASES(call)

#define TILE(name, more_cases)                                                                     \
    static void tile_##name(const span *s, const uint8_t *tile, size_t width, tile_sums sum)       \
    {                                                                                              \
        SWITCH_WIDTH(width, TILE_##name, more_cases)                                               \
    }

#define TILE_bf16(n)       tile_of_width(s, tile, n, FORMAT_BF16, OPERAND_F32, sum)
#define TILE_f16(n)        tile_of_width(s, tile, n, FORMAT_F16, OPERAND_F32, sum)
#define TILE_f32(n)        tile_of_width(s, tile, n, FORMAT_F32, OPERAND_F32, sum)
#define TILE_e4m3_ieee(n)  tile_of_width(s, tile, n, FORMAT_E4M3_IEEE, OPERAND_F32, sum)
#define TILE_e4m3fn(n)     tile_of_width(s, tile, n, FORMAT_E4M3FN, OPERAND_F32, sum)
#define TILE_mxfp8(n)      tile_of_width(s, tile, n, FORMAT_MXFP8, OPERAND_F32, sum)
#define TILE_mxfp4(n)      tile_of_width(s, tile, n, FORMAT_MXFP4, OPERAND_F32, sum)
#define TILE_bf12(n)       tile_of_width(s, tile, n, FORMAT_BF12, OPERAND_F32, sum)
#define TILE_mxfp4_int8(n) tile_of_width(s, tile, n, FORMAT_MXFP4, OPERAND_INT8, sum)
TILE(bf16, WIDEST_CASES)
TILE(f16, WIDEST_CASES)
TILE(f32, WIDEST_CASES)
TILE(e4m3_ieee, WIDEST_CASES)
TILE(e4m3fn, WIDEST_CASES)
TILE(mxfp8, NO_CASES)
TILE(mxfp4, NO_CASES)
TILE(bf12, WIDEST_CASES)
TILE(mxfp4_int8, NO_CASES)
/* Each for all scaled formats with such elements. */
#define TILE_fp8(n)         tile_of_width(s, tile, n, FORMAT_FP8_BLOCK, OPERAND_F32, sum)
#define TILE_nibble(n)      tile_of_width(s, tile, n, FORMAT_INT4_F16_32, OPERAND_F32, sum)
#define TILE_nibble_int8(n) tile_of_width(s, tile, n, FORMAT_INT4_F16_32, OPERAND_INT8, sum)
#define TILE_int8(n)        tile_of_width(s, tile, n, FORMAT_Q8_0, OPERAND_F32, sum)
#define TILE_int8_int8(n)   tile_of_width(s, tile, n, FORMAT_Q8_0, OPERAND_INT8, sum)
TILE(fp8, NO_CASES)
TILE(nibble, NO_CASES)
TILE(nibble_int8, NO_CASES)
TILE(int8, NO_CASES)
TILE(int8_int8, NO_CASES)
#ifdef VEC_BF16
#define TILE_bf16_bf16(n)      tile_of_width(s, tile, n, FORMAT_BF16, OPERAND_BF16, sum)
#define TILE_e4m3_ieee_bf16(n) tile_of_width(s, tile, n, FORMAT_E4M3_IEEE, OPERAND_BF16, sum)
#define TILE_e4m3fn_bf16(n)    tile_of_width(s, tile, n, FORMAT_E4M3FN, OPERAND_BF16, sum)
#define TILE_mxfp8_bf16(n)     tile_of_width(s, tile, n, FORMAT_MXFP8, OPERAND_BF16, sum)
#define TILE_mxfp4_bf16(n)     tile_of_width(s, tile, n, FORMAT_MXFP4, OPERAND_BF16, sum)
#define TILE_bf12_bf16(n)      tile_of_width(s, tile, n, FORMAT_BF12, OPERAND_BF16, sum)
TILE(bf16_bf16, WIDEST_CASES)
TILE(e4m3_ieee_bf16, WIDEST_CASES)
TILE(e4m3fn_bf16, WIDEST_CASES)
TILE(mxfp8_bf16, NO_CASES)
TILE(mxfp4_bf16, NO_CASES)
TILE(bf12_bf16, WIDEST_CASES)
#define TILE_fp8_bf16(n)    tile_of_width(s, tile, n, FORMAT_FP8_BLOCK, OPERAND_BF16, sum)
#define TILE_nibble_bf16(n) tile_of_width(s, tile, n, FORMAT_INT4_F16_32, OPERAND_BF16, sum)
TILE(fp8_bf16, NO_CASES)
#define TILE_int8_bf16(n) tile_of_width(s, tile, n, FORMAT_Q8_0, OPERAND_BF16, sum)
TILE(nibble_bf16, NO_CASES)
TILE(int8_bf16, NO_CASES)
#endif

/* ---- a panel --------------------------------------------------------------------------------- */

static const kernel_bf12_escape *bf12_escapes(const kernel_panel *p)
{
    const kernel_bf12_head *head = (const kernel_bf12_head *)(const void *)p->stream;
    return (const kernel_bf12_escape *)(const void *)(p->stream + head->escapes_at);
}

/* Escapes of the chunks of terms [first, end). */
static size_t bf12_count(const kernel_panel *p, size_t first, size_t end)
{
    const uint8_t *counts = p->stream + sizeof(kernel_bf12_head);
    size_t n = 0;
    for (size_t c = first / KERNEL_BLOCK; c * KERNEL_BLOCK < end; c++) n += counts[c];
    return n;
}

/* One tile alone prefetches VEC_AHEAD bytes ahead.  Of several tiles each prefetches its part of
 * the next span, so that memory works while they all compute. */
INLINE void span_ahead(span *s, size_t tile, size_t tiles, size_t bytes)
{
    s->gap = KERNEL_LINE / tiles;
    s->ahead = s->lines + (tiles == 1 ? VEC_AHEAD : bytes + bytes / tiles * tile);
}

INLINE void panel_run(const kernel_panel *p, const kernel_tiles *tiles, kernel_format f,
                      tile_fn *run, panel_sums sum)
{
    const size_t stride = p->halves * KERNEL_LINE;
    const size_t bytes = kernel_panel_bytes(p->format, p->halves, KERNEL_PLAIN);
    const size_t n = (tiles->tokens + tiles->width - 1) / tiles->width;
    span s = {.panel = p,
              .lines = p->stream,
              .stride = stride,
              .second = stride - KERNEL_LINE,
              .block = p->halves * kernel_step_bytes(p->format)};
    if (f == FORMAT_BF12) {
        s.lines += ((const kernel_bf12_head *)(const void *)p->stream)->lines_at;
        s.escapes = bf12_escapes(p);
    }
    for (size_t m = 0; m < 2; m++) memset(sum[m], 0, tiles->tokens * sizeof sum[m][0]);
    for (; s.first < p->k; s.first = s.end) {
        s.end = p->k - s.first < KERNEL_PLAIN ? p->k : s.first + KERNEL_PLAIN;
        for (size_t i = 0; i < n; i++) {
            size_t t = i * tiles->width, left = tiles->tokens - t;
            span_ahead(&s, i, n, bytes);
            run(&s, tiles->x + i * tiles->tile_bytes, left < tiles->width ? left : tiles->width,
                &sum[0][t]);
        }
        if (f == FORMAT_BF12) s.escapes += bf12_count(p, s.first, s.end);
        s.lines += bytes;
    }
}

/* ---- from the sums to the rows --------------------------------------------------------------- */

INLINE vec projection_vec(const kernel_gate_up *a, panel_sums sum, size_t half, size_t t)
{
    vec v = v_load(sum[half][t]);
    if (a->factor != NULL) v = v_mul(v, v_c(a->factor[t]));
    return affine_vec(v, &a->panel.rows[half]);
}

static void finish_ungated(const kernel_gate_up *a, panel_sums sum)
{
    const kernel_point *p = a->point;
    for (size_t t = 0; t < a->tiles.tokens; t++)
        for (size_t m = 0; m < a->panel.halves; m++)
            v_store(
                a->mid + t * a->mid_stride + m * KERNEL_ROWS,
                activate_vec(p, clamp_vec(projection_vec(a, sum, m, t), p->up_upper, p->up_lower)));
}

static void finish_gate_up(const kernel_gate_up *a, panel_sums sum)
{
    const kernel_point *p = a->point;
    if (p->ungated) {
        finish_ungated(a, sum);
        return;
    }
    for (size_t t = 0; t < a->tiles.tokens; t++) {
        vec g = clamp_vec(projection_vec(a, sum, 0, t), p->gate_upper, p->gate_lower);
        vec u = clamp_vec(projection_vec(a, sum, 1, t), p->up_upper, p->up_lower);
        v_store(a->mid + t * a->mid_stride, v_mul(activate_vec(p, g), v_add(u, v_c(p->up_offset))));
    }
}

static void finish_down(const kernel_down *a, panel_sums sum)
{
    for (size_t t = 0; t < a->tiles.tokens; t++)
        for (size_t m = 0; m < a->panel.halves; m++)
            v_store(a->y + t * a->y_stride + m * KERNEL_ROWS,
                    affine_vec(v_load(sum[m][t]), &a->panel.rows[m]));
}

/* ---- the table ------------------------------------------------------------------------------- */

#define KERNEL_PAIR(name, format)                                                                  \
    static void gate_up_##name(const kernel_gate_up *a)                                            \
    {                                                                                              \
        panel_sums sum;                                                                            \
        panel_run(&a->panel, &a->tiles, format, tile_##name, sum);                                 \
        finish_gate_up(a, sum);                                                                    \
    }                                                                                              \
    static void down_##name(const kernel_down *a)                                                  \
    {                                                                                              \
        panel_sums sum;                                                                            \
        panel_run(&a->panel, &a->tiles, format, tile_##name, sum);                                 \
        finish_down(a, sum);                                                                       \
    }

KERNEL_PAIR(bf16, FORMAT_BF16)
KERNEL_PAIR(f16, FORMAT_F16)
KERNEL_PAIR(f32, FORMAT_F32)
KERNEL_PAIR(e4m3_ieee, FORMAT_E4M3_IEEE)
KERNEL_PAIR(e4m3fn, FORMAT_E4M3FN)
KERNEL_PAIR(mxfp8, FORMAT_MXFP8)
KERNEL_PAIR(mxfp4, FORMAT_MXFP4)
KERNEL_PAIR(mxfp4_int8, FORMAT_MXFP4)
KERNEL_PAIR(bf12, FORMAT_BF12)
KERNEL_PAIR(fp8, FORMAT_FP8_BLOCK)
KERNEL_PAIR(nibble, FORMAT_INT4_F16_32)
KERNEL_PAIR(nibble_int8, FORMAT_INT4_F16_32)
KERNEL_PAIR(int8, FORMAT_Q8_0)
KERNEL_PAIR(int8_int8, FORMAT_Q8_0)

#ifdef VEC_BF16
KERNEL_PAIR(bf16_bf16, FORMAT_BF16)
KERNEL_PAIR(e4m3_ieee_bf16, FORMAT_E4M3_IEEE)
KERNEL_PAIR(e4m3fn_bf16, FORMAT_E4M3FN)
KERNEL_PAIR(mxfp8_bf16, FORMAT_MXFP8)
KERNEL_PAIR(mxfp4_bf16, FORMAT_MXFP4)
KERNEL_PAIR(bf12_bf16, FORMAT_BF12)
KERNEL_PAIR(fp8_bf16, FORMAT_FP8_BLOCK)
KERNEL_PAIR(nibble_bf16, FORMAT_INT4_F16_32)
KERNEL_PAIR(int8_bf16, FORMAT_Q8_0)
#define SUMS_SLOT(kind, name) [OPERAND_BF16_SUMS] = kind##_##name##_bf16
#define BF16_SLOT(kind, name) [OPERAND_BF16] = kind##_##name##_bf16
#else
#define BF16_SLOT(kind, name) [OPERAND_BF16] = NULL
#define SUMS_SLOT(kind, name) [OPERAND_BF16_SUMS] = NULL
#endif

/* Of weights with elements `name`: without and with minima. */
#define SCALED(kind, name)                                                                         \
    {                                                                                              \
        [OPERAND_F32] = kind##_##name,                                                             \
        BF16_SLOT(kind, name), [OPERAND_INT8] = kind##_##name##_int8                               \
    }
#define MINIMA(kind, name)                                                                         \
    {                                                                                              \
        [OPERAND_SUMS] = kind##_##name,                                                            \
        SUMS_SLOT(kind, name), [OPERAND_INT8] = kind##_##name##_int8                               \
    }

#define SLOTS(kind)                                                                                \
    {                                                                                              \
        [FORMAT_BF16] = {[OPERAND_F32] = kind##_bf16, BF16_SLOT(kind, bf16)},                      \
        [FORMAT_F16] = {[OPERAND_F32] = kind##_f16}, [FORMAT_F32] = {[OPERAND_F32] = kind##_f32},  \
        [FORMAT_E4M3_IEEE] = {[OPERAND_F32] = kind##_e4m3_ieee, BF16_SLOT(kind, e4m3_ieee)},       \
        [FORMAT_E4M3FN] = {[OPERAND_F32] = kind##_e4m3fn, BF16_SLOT(kind, e4m3fn)},                \
        [FORMAT_MXFP8] = {[OPERAND_F32] = kind##_mxfp8, BF16_SLOT(kind, mxfp8)},                   \
        [FORMAT_MXFP4] = {[OPERAND_F32] = kind##_mxfp4,                                            \
                          BF16_SLOT(kind, mxfp4),                                                  \
                          [OPERAND_INT8] = kind##_mxfp4_int8},                                     \
        [FORMAT_BF12] = {[OPERAND_F32] = kind##_bf12, BF16_SLOT(kind, bf12)},                      \
        [FORMAT_FP8_BLOCK] = {[OPERAND_F32] = kind##_fp8, BF16_SLOT(kind, fp8)},                   \
        [FORMAT_INT4_BF16_32] = SCALED(kind, nibble),                                              \
        [FORMAT_INT4_BF16_64] = SCALED(kind, nibble),                                              \
        [FORMAT_INT4_BF16_128] = SCALED(kind, nibble),                                             \
        [FORMAT_INT4_F16_32] = SCALED(kind, nibble), [FORMAT_INT4_F16_64] = SCALED(kind, nibble),  \
        [FORMAT_INT4_F16_128] = SCALED(kind, nibble), [FORMAT_NVFP4] = SCALED(kind, nibble),       \
        [FORMAT_Q8_0] = SCALED(kind, int8), [FORMAT_Q6_K] = SCALED(kind, int8),                    \
        [FORMAT_Q4_K] = MINIMA(kind, nibble), [FORMAT_Q5_K] = MINIMA(kind, int8),                  \
    }

#define KERNEL_TABLE(name)                                                                         \
    {                                                                                              \
        name, {VEC_WIDTH, VEC_WIDTH_MX}, SLOTS(gate_up), SLOTS(down), quantize_tokens,             \
            reduce_terms, route_dots, route_scores, route_widen                                    \
    }
