/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_tmpl.h - the vector kernels, written once over the vocabulary of an instruction set
 * (src/isa/vec_*.h).
 *
 * Included by src/isa/<isa>.c after its vocabulary.  A vec holds KERNEL_ROWS f32, one for each
 * output row of half a panel, so that a sum over k is never split: every width of register gives
 * the same bits.  The loops:
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
 * words exist for the int8 dots of two tokens at once. */
#include "kernel.h"
#include "numeric.h"
#include "quantize_block.h"

#define INLINE static inline __attribute__((always_inline))

/* Before a loop over what is kept in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#pragma clang diagnostic ignored "-Wpass-failed" /* where a bound is known only after inlining */
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#ifndef VEC_AHEAD
#define VEC_AHEAD 8704 /* bytes that a panel is prefetched ahead: docs/performance.md */
#endif

/* The sums of a panel, [half][token][row]. */
typedef float panel_sums[2][KERNEL_TOKENS][KERNEL_ROWS];

/* Terms [first, end) of a panel's k and the lines that hold them. */
typedef struct span {
    const kernel_panel *panel;
    const uint8_t *lines;  /* of half 0, term first; MX: the group's scale bytes */
    size_t stride, second; /* bytes from line to line of a half; from half 0 to half 1, 0 if none */
    size_t block;          /* MX: bytes from block to block of a group */
    const uint8_t *ahead;  /* what is prefetched while the first line is used, and how far on when */
    size_t gap;            /* the next line is */
    size_t first, end;
    const kernel_bf12_escape *escapes; /* bf12: of the span's first chunk */
} span;

/* ---- units of weights: the lines that are decoded together ----------------------------------- */

INLINE size_t unit_pairs(kernel_format f)
{
    return f == FORMAT_MXFP4 || f == FORMAT_BF12                                     ? 4
           : f == FORMAT_E4M3_IEEE || f == FORMAT_E4M3FN || f == FORMAT_MXFP8 ? 2
                                                                                     : 1;
}

INLINE size_t unit_lines(kernel_format f)
{
    return f == FORMAT_BF12 ? 3 : f == FORMAT_F32 ? 2 : 1;
}

typedef struct unit {
    const uint8_t *at;
    line a, b, c;
} unit;

INLINE unit unit_load(const uint8_t *at, size_t stride, kernel_format f)
{
    unit u;
    u.at = at;
    switch (f) {
    case FORMAT_F32:
    case FORMAT_F16: break;
    case FORMAT_E4M3_IEEE: l_e4m3(l_load(at), 1, &u.a, &u.b); break;
    case FORMAT_E4M3FN:
    case FORMAT_MXFP8: l_e4m3(l_load(at), 0, &u.a, &u.b); break;
    case FORMAT_BF12: u.c = l_load(at + 2 * stride); u.b = l_load(at + stride); /* fall through */
    default: u.a = l_load(at);
    }
    return u;
}

/* Pair j (terms 2j and 2j+1 of every row) of a unit as bf16. */
INLINE line unit_pair(const unit *u, size_t j, kernel_format f, const l_table *table)
{
    switch (f) {
    case FORMAT_BF16: return u->a;
    case FORMAT_MXFP4: return l_e2m1(u->a, (int)j);
    case FORMAT_BF12: return l_bf12(u->a, j < 2 ? u->b : u->c, (int)j, table);
    default: return l_e4m3_pair(u->a, u->b, (int)j);
    }
}

/* The same as two vectors of f32, any format. */
INLINE void unit_f32(const unit *u, size_t j, size_t stride, kernel_format f, const l_table *table,
                     vec *even, vec *odd)
{
    if (f == FORMAT_F32) {
        *even = v_load((const float *)(const void *)u->at);
        *odd = v_load((const float *)(const void *)(u->at + stride));
    } else if (f == FORMAT_F16) {
        *even = v_from_f16(u->at);
        *odd = v_from_f16(u->at + KERNEL_LINE / 2);
    } else {
        line pair = unit_pair(u, j, f, table);
        *even = v_even(pair);
        *odd = v_odd(pair);
    }
}

/* ---- dots ------------------------------------------------------------------------------------ */

/* What a tile keeps in registers: the dots of so many tokens, halves and blocks. */
typedef struct shape {
    size_t width, halves, blocks;
} shape;

typedef vec accs[2][2][KERNEL_WIDTH]; /* [block][half][token] */

/* Both halves at once if they fit.  Of MX weights also two blocks, whose dots do not wait for each
 * other, if what decoding takes fits beside them; one or two tokens wait for memory instead, which
 * likes lines in order (docs/performance.md). */
INLINE shape shape_of(size_t width, kernel_format f, kernel_operand o)
{
    const size_t halves = 2 * width <= VEC_SUMS ? 2 : 1;
    const size_t room = f == FORMAT_MXFP8      ? VEC_SUMS / 3
                        : o == OPERAND_INT8 ? VEC_SUMS * 2 / 3
                                               : VEC_SUMS;
    const int both = kernel_is_mx(f) && width > 2 && 2 * halves * width <= room;
    return (shape){width, halves, both ? 2 : 1};
}

INLINE void accs_clear(shape n, accs acc)
{
    UNROLL for (size_t b = 0; b < n.blocks; b++)
        UNROLL for (size_t m = 0; m < n.halves; m++)
            UNROLL for (size_t t = 0; t < n.width; t++) acc[b][m][t] = v_zero();
}

INLINE size_t pair_bytes(size_t width, kernel_operand o)
{
    return width * (o == OPERAND_BF16 ? 1 : 2) * sizeof(uint32_t);
}

/* acc[t] = fma(x[2j], w[2j], fma(x[2j+1], w[2j+1], acc[t])) for both halves of a pair of one
 * block. */
INLINE void dot_pair(const unit *u, size_t j, size_t stride, const uint8_t *x, shape n,
                     kernel_format f, kernel_operand o, const l_table *table,
                     vec acc[2][KERNEL_WIDTH])
{
#ifdef VEC_BF16
    if (o == OPERAND_BF16) {
        line w[2];
        UNROLL for (size_t m = 0; m < n.halves; m++) w[m] = unit_pair(&u[m], j, f, table);
        UNROLL for (size_t t = 0; t < n.width; t++) {
            line pair = l_word(x + t * sizeof(uint32_t));
            UNROLL for (size_t m = 0; m < n.halves; m++)
                acc[m][t] = v_dot_bf16(acc[m][t], w[m], pair);
        }
        return;
    }
#endif
    const float *xf = (const float *)(const void *)x;
    vec even[2], odd[2];
#ifdef VEC_FEW
    UNROLL for (size_t m = 0; m < n.halves; m++) {
        unit_f32(&u[m], j, stride, f, table, &even[m], &odd[m]);
        UNROLL for (size_t t = 0; t < n.width; t++)
            acc[m][t] = v_fma(v_set1(xf[t]), even[m],
                              v_fma(v_set1(xf[n.width + t]), odd[m], acc[m][t]));
    }
#else
    UNROLL for (size_t m = 0; m < n.halves; m++)
        unit_f32(&u[m], j, stride, f, table, &even[m], &odd[m]);
    UNROLL for (size_t t = 0; t < n.width; t++) {
        vec x1 = v_set1(xf[n.width + t]), x0 = v_set1(xf[t]);
        UNROLL for (size_t m = 0; m < n.halves; m++)
            acc[m][t] = v_fma(x0, even[m], v_fma(x1, odd[m], acc[m][t]));
    }
#endif
    (void)o;
}

/* The first `pairs` pairs of a unit of each block; x: the tile's words of its first pair, x_block
 * bytes from block to block. */
INLINE void dot_unit(const uint8_t *at, const span *s, size_t pairs, const uint8_t *x,
                     size_t x_block, shape n, kernel_format f, kernel_operand o,
                     const l_table *table, accs acc)
{
    unit u[2][2];
    UNROLL for (size_t b = 0; b < n.blocks; b++)
        UNROLL for (size_t m = 0; m < n.halves; m++)
            u[b][m] = unit_load(at + b * s->block + m * s->second, s->stride, f);
    UNROLL for (size_t j = 0; j < unit_pairs(f); j++) {
        if (j >= pairs) break;
        UNROLL for (size_t b = 0; b < n.blocks; b++)
            dot_pair(u[b], j, s->stride, x + b * x_block + j * pair_bytes(n.width, o), n, f, o,
                     table, acc[b]);
    }
}

/* What is prefetched while the line at `at` is used: in the order of addresses, whatever that of
 * use is. */
INLINE const uint8_t *ahead_of(const span *s, const uint8_t *at)
{
    return s->ahead + (size_t)(at - s->lines) / KERNEL_LINE * s->gap;
}

INLINE const uint8_t *prefetch_lines(const uint8_t *ahead, size_t gap, size_t lines)
{
    UNROLL for (size_t i = 0; i < lines; i++, ahead += gap) l_prefetch(ahead);
    return ahead;
}

/* All pairs of `terms` terms of each block; at: the first block's lines. */
INLINE void dot_terms(const uint8_t *at, const span *s, size_t terms, const uint8_t *x, shape n,
                      kernel_format f, kernel_operand o, const l_table *table, accs acc)
{
    const size_t lines = unit_lines(f), per = unit_pairs(f);
    const size_t x_block = terms / 2 * pair_bytes(n.width, o);
    size_t pairs = terms / 2;
    const uint8_t *ahead = ahead_of(s, at);
    for (; pairs >= per; pairs -= per) {
        ahead = prefetch_lines(ahead, s->gap, 2 * lines * n.blocks);
        dot_unit(at, s, per, x, x_block, n, f, o, table, acc);
        at += lines * s->stride;
        x += per * pair_bytes(n.width, o);
    }
    if (per > 1 && pairs > 0) dot_unit(at, s, pairs, x, x_block, n, f, o, table, acc);
}

/* ---- bf12: chunks with escapes --------------------------------------------------------------- */

/* The chunk's lines as those of a bf16 panel, escapes in their places. */
static void bf12_patch(const uint8_t *at, const span *s, size_t terms,
                       const kernel_bf12_escape *escapes, size_t count, const l_table *table,
                       uint8_t *wide)
{
    for (size_t j = 0; j < terms / 2; j++)
        for (size_t m = 0; m < 2; m++) {
            unit u = unit_load(at + j / 4 * 3 * s->stride + m * s->second, s->stride, FORMAT_BF12);
            line pair = j % 4 == 0   ? unit_pair(&u, 0, FORMAT_BF12, table)
                        : j % 4 == 1 ? unit_pair(&u, 1, FORMAT_BF12, table)
                        : j % 4 == 2 ? unit_pair(&u, 2, FORMAT_BF12, table)
                                     : unit_pair(&u, 3, FORMAT_BF12, table);
            l_store(wide + (2 * j + m) * KERNEL_LINE, pair);
        }
    for (size_t i = 0; i < count; i++) {
        size_t row = escapes[i].place % KERNEL_ROWS, k = escapes[i].place / KERNEL_ROWS;
        size_t m = k / KERNEL_BLOCK, at_line = 2 * (k % KERNEL_BLOCK / 2) + m;
        memcpy(wide + at_line * KERNEL_LINE + 4 * row + 2 * (k % 2), &escapes[i].value,
               sizeof escapes[i].value);
    }
}

INLINE void dot_bf12(const span *s, size_t m, const uint8_t *x, shape n, kernel_operand o, accs acc)
{
    const kernel_bf12_head *head = (const kernel_bf12_head *)(const void *)s->panel->stream;
    const uint8_t *counts = s->panel->stream + sizeof *head + s->first / KERNEL_BLOCK;
    const uint8_t *at = s->lines;
    const kernel_bf12_escape *escapes = s->escapes;
    const l_table table = l_bf12_table(head->exponent);
    for (size_t k = s->first; k < s->end; k += KERNEL_BLOCK, counts++) {
        size_t terms = s->end - k < KERNEL_BLOCK ? s->end - k : KERNEL_BLOCK;
        if (__builtin_expect(*counts != 0, 0)) {
            uint8_t wide[KERNEL_BLOCK * KERNEL_LINE] __attribute__((aligned(KERNEL_ALIGN)));
            const span ready = {.panel = s->panel,
                                .lines = wide,
                                .stride = 2 * KERNEL_LINE,
                                .second = KERNEL_LINE,
                                .ahead = ahead_of(s, at),
                                .gap = s->gap};
            bf12_patch(at, s, terms, escapes, *counts, &table, wide);
            dot_terms(wide + m * KERNEL_LINE, &ready, terms, x, n, FORMAT_BF16, o, NULL, acc);
            escapes += *counts;
        } else {
            dot_terms(at + m * s->second, s, terms, x, n, FORMAT_BF12, o, &table, acc);
        }
        at += KERNEL_BLOCK / 8 * 3 * s->stride;
        x += KERNEL_BLOCK / 2 * pair_bytes(n.width, o);
    }
}

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
    UNROLL for (size_t i = 0; i < n.halves; i++)
        UNROLL for (size_t t = 0; t < width; t++) {
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
    UNROLL for (size_t b = 0; b < n.blocks; b++)
        UNROLL for (size_t i = 0; i < n.halves; i++) {
            const uint8_t *scale = c->at + b * c->block + i * c->half;
            vec power = v_e8m0_normal(scale);
            if (__builtin_expect(c->special, 0)) {
                vec low = v_e8m0_low(scale);
                power = v_e8m0(scale);
                UNROLL for (size_t t = 0; t < n.width; t++)
                    acc[b][i][t] = v_mul(acc[b][i][t], low);
            }
            UNROLL for (size_t t = 0; t < n.width; t++) {
                float *to = sum[(m + i) * KERNEL_TOKENS + t];
                v_store(to, v_fma(acc[b][i][t], power, v_load(to)));
            }
        }
}

/* n.blocks blocks of MX weights, their lines at `at`: the dot of each from +0, scaled into the
 * sums by one fma. */
INLINE void mx_blocks(const span *s, const uint8_t *at, const scales *c, size_t m,
                      const uint8_t *x, shape n, kernel_format f, kernel_operand o, tile_sums sum)
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
    UNROLL for (size_t t = 0; t < width; t++) {
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
    UNROLL for (size_t b = 0; b < n.blocks; b++)
        UNROLL for (size_t i = 0; i < n.halves; i++)
            UNROLL for (size_t t = 0; t + 1 < n.width; t += 2)
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
    UNROLL for (size_t b = 0; b < n.blocks; b++)
        UNROLL for (size_t t = 0; t < n.width; t++)
            UNROLL for (size_t i = 0; i < n.halves; i++)
                acc[b][i][t] = i_set1(x.offset[b * n.width + t]);
#ifdef VEC_MATRIX
    if (n.width % 2 == 0) int8_pairs(n, 1, acc);
#endif
    for (size_t j = 0; j < KERNEL_BLOCK / 8; j++, at += s->stride, x.codes += 2 * word)
        UNROLL for (size_t b = 0; b < n.blocks; b++) {
            const uint8_t *lines = at + b * s->block;
            line codes[2], w[2][2]; /* [half][nibble] */
            ahead = prefetch_lines(ahead, s->gap, 2);
            UNROLL for (size_t i = 0; i < n.halves; i++) codes[i] = l_load(lines + i * s->second);
#ifdef VEC_MATRIX
            if (n.width % 2 == 0) {
                UNROLL for (size_t t = 0; t < n.width; t += 2)
                    UNROLL for (size_t i = 0; i < n.halves; i++)
                        i_matrix(&acc[b][i][t], &acc[b][i][t + 1], codes[i],
                                 x.codes + b * x_block + t * sizeof(uint32_t), word);
                continue;
            }
#endif
            UNROLL for (size_t i = 0; i < n.halves; i++) {
                w[i][0] = l_e2m1_bytes(codes[i], 0);
                w[i][1] = l_e2m1_bytes(codes[i], 1);
            }
            UNROLL for (size_t t = 0; t < n.width; t++) {
                const uint8_t *q = x.codes + b * x_block + t * sizeof(uint32_t);
                line low = l_word(q), high = l_word(q + word);
                UNROLL for (size_t i = 0; i < n.halves; i++)
                    acc[b][i][t] = i_dot2(acc[b][i][t], w[i][0], low, w[i][1], high);
            }
        }
#ifdef VEC_MATRIX
    if (n.width % 2 == 0) int8_pairs(n, 0, acc);
#endif
    UNROLL for (size_t b = 0; b < n.blocks; b++)
        UNROLL for (size_t i = 0; i < n.halves; i++) {
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
    const size_t block_x = KERNEL_BLOCK / 2 * pair_bytes(width, o), all = s->panel->k / KERNEL_BLOCK;
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
        more_cases(call)                                                                           \
    default: __builtin_unreachable();                                                              \
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

/* ---- elementary functions: the sequences of numeric.h ---------------------------------------- */

INLINE vec v_c(float x)
{
    return v_set1(x);
}

INLINE vec exp_vec(vec hi, vec lo)
{
    const vec magic = v_c(0x1.8p+23f);
    vec z = v_if_gt(hi, v_c(110.0f), v_c(110.0f), hi);
    z = v_if_gt(v_c(-110.0f), z, v_c(-110.0f), z);
    vec e = v_if_eq(z, hi, lo, v_zero());
    vec t = v_fma(z, v_c(0x1.715476p+0f), magic), n = v_sub(t, magic);
    vec r = v_add(v_fma(n, v_c(-0x1.7f7d1cp-20f), v_fma(n, v_c(-0x1.62e4p-1f), z)), e);
    vec p = v_fma(r, v_c(0x1.6a234cp-10f), v_c(0x1.123a6cp-7f));
    p = v_fma(r, p, v_c(0x1.5558f4p-5f));
    p = v_fma(r, p, v_c(0x1.55549p-3f));
    p = v_fma(r, p, v_c(0x1.fffffcp-2f));
    p = v_add(v_fma(v_mul(r, r), p, r), v_c(1.0f));
    return v_scale(p, t, magic);
}

INLINE vec swish_vec(vec g, vec alpha)
{
    vec z = v_mul(alpha, g);
    return v_div(g, v_add(v_c(1.0f), exp_vec(v_neg(z), v_neg(v_fma(alpha, g, v_neg(z))))));
}

INLINE vec gelu_vec(vec g)
{
    vec a = v_abs(g);
    a = v_if_gt(a, v_c(20.0f), v_c(20.0f), a);
    vec q = v_div(v_sub(a, v_c(4.0f)), v_add(a, v_c(4.0f)));
    static const float coefficient[] = {0x1.b4dd1p-16f,  -0x1.9bef06p-15f, -0x1.87cadap-13f,
                                        0x1.4fa0a6p-11f, 0x1.0a22aep-11f,  -0x1.1646dp-7f,
                                        0x1.f9b052p-6f,  -0x1.25b6a6p-4f,  0x1.fd751ap-4f,
                                        -0x1.5cf97cp-3f, 0x1.82b4bcp-4f};
    vec p = v_c(0x1.09556cp-17f);
    for (size_t i = 0; i < sizeof coefficient / sizeof coefficient[0]; i++)
        p = v_fma(q, p, v_c(coefficient[i]));
    vec s = v_mul(a, a), low = v_fma(a, a, v_neg(s)), half = v_c(-0.5f);
    vec tail = v_mul(exp_vec(v_mul(half, s), v_mul(half, low)), p);
    return v_if_gt(v_zero(), g, v_mul(g, tail), v_fma(v_neg(a), tail, g));
}

INLINE vec gelu_tanh_vec(vec g)
{
    vec w = v_fma(v_c(0x1.2444f2p-4f), v_mul(g, g), v_c(0x1.988454p+0f));
    return v_div(g, v_add(v_c(1.0f), exp_vec(v_neg(v_mul(g, w)), v_zero())));
}

INLINE vec activate_vec(const kernel_point *p, vec g)
{
    switch (p->activation) {
    case MOE_GELU: return gelu_vec(g);
    case MOE_GELU_TANH: return gelu_tanh_vec(g);
    case MOE_RELU: return v_add(v_if_gt(v_zero(), g, v_zero(), g), v_zero());
    default: return swish_vec(g, v_c(p->alpha));
    }
}

/* ---- from the sums to the rows --------------------------------------------------------------- */

INLINE vec affine_vec(vec v, const kernel_rows *rows)
{
    if (rows->scale != NULL) v = v_mul(v, v_load(rows->scale));
    if (rows->bias != NULL) v = v_add(v, v_load(rows->bias));
    return v;
}

INLINE vec clamp_vec(vec v, float upper, float lower)
{
    v = v_if_gt(v, v_c(upper), v_c(upper), v);
    return v_if_gt(v_c(lower), v, v_c(lower), v);
}

static void finish_gate_up(const kernel_gate_up *a, panel_sums sum)
{
    const kernel_point *p = a->point;
    const kernel_rows *rows = a->panel.rows;
    for (size_t t = 0; t < a->tiles.tokens; t++) {
        vec g = clamp_vec(affine_vec(v_load(sum[0][t]), &rows[0]), p->gate_upper, p->gate_lower);
        vec u = clamp_vec(affine_vec(v_load(sum[1][t]), &rows[1]), p->up_upper, p->up_lower);
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
        name, {VEC_WIDTH, VEC_WIDTH_MX}, SLOTS(gate_up), SLOTS(down), quantize_tokens, reduce_terms                \
    }
