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
#include "quantize_block.h"

/* ---- a tile and a span ----------------------------------------------------------------------- */

/* Sums of a tile, [half][token][row]: sum + half * KERNEL_TOKENS + token. */
typedef float (*tile_sums)[KERNEL_ROWS];

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

/* What the blocks of a group have: scale bytes of the first block's half m, from half to half and
 * from block to block; whether one of the group's bytes is 0 or 255. */
typedef struct scales {
    const uint8_t *at;
    size_t half, block;
    int special;
} scales;

/* sum = fma(acc * low(s), 2^(max(s,1)-127), sum). */
INLINE void mx_scale(const scales *c, shape n, size_t m, accs acc, tile_sums sum)
{
    UNROLL
    for (size_t b = 0; b < n.blocks; b++) UNROLL
    for (size_t i = 0; i < n.halves; i++) {
        const uint8_t *scale = c->at + b * c->block + i * c->half;
        vec power = v_e8m0_normal(scale);
        if (__builtin_expect(c->special, 0)) {
            vec low = v_e8m0_low(scale);
            power = v_e8m0(scale);
            UNROLL
            for (size_t t = 0; t < n.width; t++) acc[b][i][t] = v_mul(acc[b][i][t], low);
        }
        UNROLL
        for (size_t t = 0; t < n.width; t++) {
            float *to = sum[(m + i) * KERNEL_TOKENS + t];
            v_store(to, v_fma(acc[b][i][t], power, v_load(to)));
        }
    }
}

/* n.blocks blocks of MX weights, their lines at `at`: the dot of each from +0, scaled into the
 * sums by one fma. */
INLINE void mx_blocks(const span *s, const uint8_t *at, const scales *c, size_t m, const uint8_t *x,
                      shape n, kernel_format f, kernel_operand o, tile_sums sum)
{
    accs acc;
    accs_clear(n, acc);
    dot_terms(at + m * s->second, s, KERNEL_BLOCK, x, n, f, o, NULL, acc);
    mx_scale(c, n, m, acc, sum);
}

/* An int8 tile: the words of its codes, half scales and offsets. */
typedef struct int8_words {
    const uint8_t *codes;
    const float *half;
    const int32_t *offset;
} int8_words;

/* sum[t] = fma((float)acc[t], (half[t] * low) * power, sum[t]). */
INLINE void int8_scale(const ivec *acc, vec low, vec power, const float *half, size_t width,
                       int has_low, tile_sums sum)
{
    UNROLL
    for (size_t t = 0; t < width; t++) {
        vec scale = v_set1(half[t]);
        if (has_low) scale = v_mul(scale, low);
        scale = v_mul(scale, power);
        v_store(sum[t], v_fma(v_from_int(acc[t]), scale, v_load(sum[t])));
    }
}

#ifdef VEC_MATRIX
/* The sums of each two tokens, side by side as i_matrix has them (paired 1), and back. */
INLINE void int8_pairs(shape n, int paired, ivec acc[2][2][KERNEL_WIDTH])
{
    UNROLL
    for (size_t b = 0; b < n.blocks; b++) UNROLL
    for (size_t i = 0; i < n.halves; i++) UNROLL
    for (size_t t = 0; t + 1 < n.width; t += 2)
        if (paired)
            i_pair(&acc[b][i][t], &acc[b][i][t + 1]);
        else
            i_unpair(&acc[b][i][t], &acc[b][i][t + 1]);
}
#endif

/* The same of MXFP4 weights and int8 operands: exact dots as int32, weights taken as 12 + twice
 * the e2m1 value, which the offset takes back. */
INLINE void int8_blocks(const span *s, const uint8_t *at, const scales *c, size_t m, int8_words x,
                        shape n, tile_sums sum)
{
    const size_t word = n.width * sizeof(uint32_t), x_block = KERNEL_BLOCK / 4 * word;
    ivec acc[2][2][KERNEL_WIDTH];
    const uint8_t *ahead = ahead_of(s, at);
    at += m * s->second;
    UNROLL
    for (size_t b = 0; b < n.blocks; b++) UNROLL
    for (size_t t = 0; t < n.width; t++) UNROLL
    for (size_t i = 0; i < n.halves; i++) acc[b][i][t] = i_set1(x.offset[b * n.width + t]);
#ifdef VEC_MATRIX
    if (n.width % 2 == 0) int8_pairs(n, 1, acc);
#endif
    for (size_t j = 0; j < KERNEL_BLOCK / 8; j++, at += s->stride, x.codes += 2 * word) UNROLL
    for (size_t b = 0; b < n.blocks; b++) {
        const uint8_t *lines = at + b * s->block;
        line codes[2], w[2][2]; /* [half][nibble] */
        ahead = prefetch_lines(ahead, s->gap, 2);
        UNROLL
        for (size_t i = 0; i < n.halves; i++) codes[i] = l_load(lines + i * s->second);
#ifdef VEC_MATRIX
        if (n.width % 2 == 0) {
            UNROLL
            for (size_t t = 0; t < n.width; t += 2) UNROLL
            for (size_t i = 0; i < n.halves; i++)
                i_matrix(&acc[b][i][t], &acc[b][i][t + 1], codes[i],
                         x.codes + b * x_block + t * sizeof(uint32_t), word);
            continue;
        }
#endif
        UNROLL
        for (size_t i = 0; i < n.halves; i++) {
            w[i][0] = l_e2m1_bytes(codes[i], 0);
            w[i][1] = l_e2m1_bytes(codes[i], 1);
        }
        UNROLL
        for (size_t t = 0; t < n.width; t++) {
            const uint8_t *q = x.codes + b * x_block + t * sizeof(uint32_t);
            line low = l_word(q), high = l_word(q + word);
            UNROLL
            for (size_t i = 0; i < n.halves; i++)
                acc[b][i][t] = i_dot2(acc[b][i][t], w[i][0], low, w[i][1], high);
        }
    }
#ifdef VEC_MATRIX
    if (n.width % 2 == 0) int8_pairs(n, 0, acc);
#endif
    UNROLL
    for (size_t b = 0; b < n.blocks; b++) UNROLL
    for (size_t i = 0; i < n.halves; i++) {
        const uint8_t *scale = c->at + b * c->block + i * c->half;
        const float *half = x.half + b * n.width;
        tile_sums to = sum + (m + i) * KERNEL_TOKENS;
        if (__builtin_expect(c->special, 0))
            int8_scale(acc[b][i], v_e8m0_low(scale), v_e8m0(scale), half, n.width, 1, to);
        else
            int8_scale(acc[b][i], v_zero(), v_e8m0_normal(scale), half, n.width, 0, to);
    }
}

/* The groups of a span of MX weights. */
INLINE void mx_tile(const span *s, size_t m, const uint8_t *tile, size_t width, kernel_format f,
                    kernel_operand o, tile_sums sum)
{
    const shape many = shape_of(width, f, o), one = {width, many.halves, 1};
    const size_t in_panel = s->second == 0 ? 1 : 2, group = s->second == 0 ? 4 : 2;
    const size_t block_x = KERNEL_BLOCK / 2 * pair_bytes(width, o),
                 all = s->panel->k / KERNEL_BLOCK;
    const uint8_t *at = s->lines;
    for (size_t g = s->first / KERNEL_BLOCK; g < s->end / KERNEL_BLOCK; g += group) {
        const size_t end = s->end / KERNEL_BLOCK - g;
        scales c = {at + m * KERNEL_ROWS, KERNEL_ROWS * (in_panel - 1), KERNEL_ROWS * in_panel,
                    l_has_special(l_load(at))};
        l_prefetch(ahead_of(s, at));
        at += KERNEL_LINE;
        for (size_t b = 0; b < group && b < end;) {
            const int both = many.blocks == 2 && b + 2 <= end;
            const size_t n = both ? 2 : 1;
            if (o == OPERAND_INT8) {
                const uint32_t *word = (const uint32_t *)(const void *)tile;
                const uint32_t *half = word + (all * (KERNEL_BLOCK / 4) + g + b) * width;
                int8_words x = {(const uint8_t *)(word + (g + b) * (KERNEL_BLOCK / 4) * width),
                                (const float *)(const void *)half,
                                (const int32_t *)(const void *)(half + all * width)};
                if (both)
                    int8_blocks(s, at, &c, m, x, many, sum);
                else
                    int8_blocks(s, at, &c, m, x, one, sum);
            } else if (both) {
                mx_blocks(s, at, &c, m, tile + (g + b) * block_x, many, f, o, sum);
            } else {
                mx_blocks(s, at, &c, m, tile + (g + b) * block_x, one, f, o, sum);
            }
            b += n;
            c.at += n * c.block;
            at += n * s->block;
        }
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
    const size_t bytes = kernel_is_mx(f)
                             ? kernel_panel_bytes(f, p->halves, KERNEL_PLAIN)
                             : KERNEL_PLAIN / (2 * unit_pairs(f)) * unit_lines(f) * stride;
    const size_t n = (tiles->tokens + tiles->width - 1) / tiles->width;
    span s = {.panel = p,
              .lines = p->stream,
              .stride = stride,
              .second = stride - KERNEL_LINE,
              .block = p->halves * kernel_block_bytes(f)};
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

#ifdef VEC_BF16
KERNEL_PAIR(bf16_bf16, FORMAT_BF16)
KERNEL_PAIR(e4m3_ieee_bf16, FORMAT_E4M3_IEEE)
KERNEL_PAIR(e4m3fn_bf16, FORMAT_E4M3FN)
KERNEL_PAIR(mxfp8_bf16, FORMAT_MXFP8)
KERNEL_PAIR(mxfp4_bf16, FORMAT_MXFP4)
KERNEL_PAIR(bf12_bf16, FORMAT_BF12)
#define BF16_SLOT(kind, name) [OPERAND_BF16] = kind##_##name##_bf16
#else
#define BF16_SLOT(kind, name) [OPERAND_BF16] = NULL
#endif

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
    }

#define KERNEL_TABLE(name)                                                                         \
    {                                                                                              \
        name, {VEC_WIDTH, VEC_WIDTH_MX}, SLOTS(gate_up), SLOTS(down), quantize_tokens,             \
            reduce_terms, route_dots, route_scores, route_widen                                    \
    }
