/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_scaled.h - a part of kernel_tmpl.h: a tile and a span of weights that have scales, from
 * panels of chunks (kernel.h) to the tile's sums.
 *
 * Two loops.  MX weights keep their scales in bytes until they are used, for they are no more than
 * a shift.  All others have theirs widened to f32 a chunk at a time, into a buffer that stays in the
 * first-level cache, so that their loop has instances by element and operand only: what scale a
 * format has, its steps and minima are known at run time. */
#ifndef MOE_KERNEL_SCALED_H
#define MOE_KERNEL_SCALED_H

#include "kernel_dot.h"

/* Sums of a tile, [half][token][row]: sum + half * KERNEL_TOKENS + token. */
typedef float (*tile_sums)[KERNEL_ROWS];

/* ---- 4-bit codes ----------------------------------------------------------------------------- */

/* e2m1, int4 and uint4, in the order of kernel_element: as bf16; as bytes; what of those is zero. */
static const uint16_t nibble_words[3][16] = {
    {0, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0,
     0xC000, 0xC040, 0xC080, 0xC0C0},
    {0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80, 0, 0x3F80, 0x4000, 0x4040,
     0x4080, 0x40A0, 0x40C0, 0x40E0},
    {0, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110, 0x4120, 0x4130,
     0x4140, 0x4150, 0x4160, 0x4170},
};
static const uint8_t nibble_bytes[3][16] = {
    {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0}, /* twice the value */
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
};
static const uint8_t nibble_zero[3] = {12, 8, 0};

/* ---- int8 operands --------------------------------------------------------------------------- */

INLINE int is_int8(kernel_format f)
{
    return kernel_formats[f].element == ELEMENT_INT8;
}

/* The bytes of a unit's 8 terms that go with the first and with the second word of an operand. */
INLINE void unit_bytes(const uint8_t *at, size_t stride, kernel_format f, const l_bytes *table,
                       line w[2])
{
    line a = l_load(at);
    w[0] = is_int8(f) ? l_int8(a) : l_nibble_bytes(a, 0, table);
    w[1] = is_int8(f) ? l_int8(l_load(at + stride)) : l_nibble_bytes(a, 1, table);
}

/* An int8 tile: the words of its codes, scales and sums of codes. */
typedef struct int8_words {
    const uint8_t *codes;
    const float *scale;
    const int32_t *sum, *first; /* of 32 codes, of the first 16 */
} int8_words;

/* From term k on, which begins a block. */
INLINE int8_words int8_words_of(const span *s, const uint8_t *tile, size_t width, size_t k)
{
    const size_t all = s->panel->k / KERNEL_BLOCK * width;
    const uint8_t *scale = tile + ((s->panel->k / 4 + k / KERNEL_BLOCK) * width) * 4;
    const int32_t *sum = (const int32_t *)(const void *)scale + all;
    return (int8_words){tile + k * width, (const float *)(const void *)scale, sum, sum + all};
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

/* acc += the dots of `units` times 8 terms of each block, which are exact, of the codes' bytes; at:
 * the first block's lines, those of half m. */
INLINE void int8_units(const uint8_t *at, const uint8_t *ahead, const span *s, size_t units,
                       const uint8_t *x, size_t x_block, shape n, kernel_format f,
                       const l_bytes *table, ivec acc[2][2][KERNEL_WIDTH])
{
    const size_t word = n.width * sizeof(uint32_t), lines = unit_lines(f);
    for (size_t j = 0; j < units; j++, at += lines * s->stride, x += 2 * word) UNROLL
    for (size_t b = 0; b < n.blocks; b++) {
        line w[2][2]; /* [half], the first and the second word's */
        ahead = prefetch_lines(ahead, s->gap, 2 * lines);
        UNROLL
        for (size_t i = 0; i < n.halves; i++)
            unit_bytes(at + b * s->block + i * s->second, s->stride, f, table, w[i]);
#ifdef VEC_MATRIX
        if (n.width % 2 == 0) {
            UNROLL
            for (size_t t = 0; t < n.width; t += 2) UNROLL
            for (size_t i = 0; i < n.halves; i++)
                i_matrix(&acc[b][i][t], &acc[b][i][t + 1], w[i][0], w[i][1],
                         x + b * x_block + t * sizeof(uint32_t), word);
            continue;
        }
#endif
        UNROLL
        for (size_t t = 0; t < n.width; t++) {
            const uint8_t *q = x + b * x_block + t * sizeof(uint32_t);
            line first = l_word(q), second = l_word(q + word);
            UNROLL
            for (size_t i = 0; i < n.halves; i++)
                acc[b][i][t] = is_int8(f)
                                   ? i_dot2_int8(acc[b][i][t], w[i][0], first, w[i][1], second)
                                   : i_dot2(acc[b][i][t], w[i][0], first, w[i][1], second);
        }
    }
}

/* ---- e8m0 scales ----------------------------------------------------------------------------- */

/* What the blocks of a chunk have: scale bytes of the first block's half m, from half to half and
 * from block to block; whether one of the chunk's bytes is 0 or 255. */
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

/* sum[t] = fma((float)acc[t], (sx[t] / 2 * low) * power, sum[t]). */
INLINE void int8_scale(const ivec *acc, vec low, vec power, const float *sx, size_t width,
                       int has_low, tile_sums sum)
{
    UNROLL
    for (size_t t = 0; t < width; t++) {
        vec scale = v_mul(v_set1(sx[t]), v_set1(0.5f));
        if (has_low) scale = v_mul(scale, low);
        scale = v_mul(scale, power);
        v_store(sum[t], v_fma(v_from_int(acc[t]), scale, v_load(sum[t])));
    }
}

/* The same of MXFP4 weights and int8 operands: exact dots as int32, weights taken as 12 + twice the
 * e2m1 value, which -12 times the sum of the codes takes back. */
INLINE void mx_int8_blocks(const span *s, const uint8_t *at, const scales *c, size_t m,
                           int8_words x, shape n, tile_sums sum)
{
    const size_t x_block = KERNEL_BLOCK / 4 * n.width * sizeof(uint32_t);
    const l_bytes table = l_bytes_table(nibble_bytes[0]);
    ivec acc[2][2][KERNEL_WIDTH];
    UNROLL
    for (size_t b = 0; b < n.blocks; b++) UNROLL
    for (size_t t = 0; t < n.width; t++) {
        const ivec zero = i_mul(i_set1(x.sum[b * n.width + t]), i_set1(-12));
        UNROLL
        for (size_t i = 0; i < n.halves; i++) acc[b][i][t] = zero;
    }
#ifdef VEC_MATRIX
    if (n.width % 2 == 0) int8_pairs(n, 1, acc);
#endif
    int8_units(at + m * s->second, ahead_of(s, at), s, KERNEL_BLOCK / 8, x.codes, x_block, n,
               FORMAT_MXFP4, &table, acc);
#ifdef VEC_MATRIX
    if (n.width % 2 == 0) int8_pairs(n, 0, acc);
#endif
    UNROLL
    for (size_t b = 0; b < n.blocks; b++) UNROLL
    for (size_t i = 0; i < n.halves; i++) {
        const uint8_t *scale = c->at + b * c->block + i * c->half;
        const float *sx = x.scale + b * n.width;
        tile_sums to = sum + (m + i) * KERNEL_TOKENS;
        if (__builtin_expect(c->special, 0))
            int8_scale(acc[b][i], v_e8m0_low(scale), v_e8m0(scale), sx, n.width, 1, to);
        else
            int8_scale(acc[b][i], v_zero(), v_e8m0_normal(scale), sx, n.width, 0, to);
    }
}

/* The chunks of a span of MX weights. */
INLINE void mx_tile(const span *s, size_t m, const uint8_t *tile, size_t width, kernel_format f,
                    kernel_operand o, tile_sums sum)
{
    const shape many = shape_of(width, f, o), one = {width, many.halves, 1};
    const size_t in_panel = s->second == 0 ? 1 : 2, group = kernel_runs(f);
    const size_t block_x = KERNEL_BLOCK / 2 * pair_bytes(width, o);
    const uint8_t *at = s->lines;
    for (size_t g = s->first / KERNEL_BLOCK; g < s->end / KERNEL_BLOCK; g += group) {
        const size_t end = s->end / KERNEL_BLOCK - g;
        scales c = {at + m * KERNEL_ROWS, KERNEL_ROWS * (in_panel - 1), KERNEL_ROWS * in_panel,
                    l_has_special(l_load(at))};
        l_prefetch(ahead_of(s, at));
        at += KERNEL_LINE;
        ONCE
        for (size_t b = 0; b < group && b < end;) {
            const int both = many.blocks == 2 && b + 2 <= end;
            const size_t n = both ? 2 : 1;
            if (o == OPERAND_INT8) {
                const int8_words x = int8_words_of(s, tile, width, (g + b) * KERNEL_BLOCK);
                if (both)
                    mx_int8_blocks(s, at, &c, m, x, many, sum);
                else
                    mx_int8_blocks(s, at, &c, m, x, one, sum);
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

/* ---- all other scales ------------------------------------------------------------------------ */

enum { SCALED_STEPS = 16 }; /* of a chunk, at most */

/* A chunk's scales, and its minima with the sign turned, [step][half][row]; a panel of one half has
 * both halves' places taken by it.  SCALED_STEPS: of a chunk, at most. */
typedef struct chunk_scales {
    float scale[SCALED_STEPS][2][KERNEL_ROWS];
    float minus[SCALED_STEPS][2][KERNEL_ROWS];
} __attribute__((aligned(KERNEL_ALIGN))) chunk_scales;

INLINE vec widen_scales(kernel_scale kind, const uint8_t *at)
{
    switch (kind) {
    case SCALE_F16: return v_from_f16(at);
    case SCALE_BF16: return v_from_bf16(at);
    case SCALE_F32: return v_load((const float *)(const void *)at);
    case SCALE_E4M3: return v_from_e4m3(at);
    case SCALE_K_I8: return v_from_i8(at);
    default: return v_from_u8(at);
    }
}

/* Those of a chunk of `steps` steps whose section is at `at`; kind is a constant in each copy. */
INLINE void widen_chunk(const kernel_panel *p, const uint8_t *at, size_t steps, kernel_scale kind,
                        chunk_scales *c)
{
    const kernel_info *info = &kernel_formats[p->format];
    const size_t copies = info->scale_k / info->step;
    const size_t halves = p->halves, row = KERNEL_ROWS * kernel_scale_bytes(p->format);
    const int k = kind == SCALE_K_U8 || kind == SCALE_K_I8, minima = kind == SCALE_K_U8;
    const size_t d_bytes = k ? kernel_d_bytes(p->format, halves) : 0;
    const uint8_t *scale = at + d_bytes * (minima ? 2 : 1);
    const uint8_t *minimum = scale + kernel_runs(p->format) * halves * row;
    for (size_t half = 0; half < 2; half++) {
        const size_t from = half < halves ? half : 0, d_row = KERNEL_ROWS * sizeof(uint16_t);
        const vec d = k ? v_from_f16(at + from * d_row) : v_zero();
        const vec dmin = minima ? v_neg(v_from_f16(at + d_bytes + from * d_row)) : v_zero();
        const uint8_t *next = scale + from * row, *next_minimum = minimum + from * row;
        for (size_t n = 0; n < steps; next += halves * row, next_minimum += halves * row) {
            vec v = widen_scales(kind, next);
            if (k) v = v_mul(d, v);
            if (minima) v_store(c->minus[n][half], v_mul(dmin, v_from_u8(next_minimum)));
            for (size_t i = 0; i < copies; i++) v_store(c->scale[n++][half], v);
        }
    }
}

static __attribute__((noinline)) void widen_any_chunk(const kernel_panel *p, const uint8_t *at,
                                                      size_t steps, chunk_scales *c)
{
    switch (kernel_formats[p->format].scale) {
    case SCALE_F16: widen_chunk(p, at, steps, SCALE_F16, c); break;
    case SCALE_BF16: widen_chunk(p, at, steps, SCALE_BF16, c); break;
    case SCALE_F32: widen_chunk(p, at, steps, SCALE_F32, c); break;
    case SCALE_E4M3: widen_chunk(p, at, steps, SCALE_E4M3, c); break;
    case SCALE_K_I8: widen_chunk(p, at, steps, SCALE_K_I8, c); break;
    default: widen_chunk(p, at, steps, SCALE_K_U8, c);
    }
}

/* A step's scales, [half][row], and the half from which on they are taken. */
typedef struct step_scales {
    const float (*scale)[KERNEL_ROWS], (*minus)[KERNEL_ROWS];
    size_t m;
    int minima;
} step_scales;

/* `steps` (1 or 2) steps of `terms` terms, their lines at `at`; x: the tile's words of the first term,
 * sums: the sums that go with minima, which only a single step has. */
INLINE void scaled_steps(const span *s, const uint8_t *at, const step_scales *c, size_t steps,
                         size_t terms, const uint8_t *x, const float *sums, shape n,
                         kernel_format f, kernel_operand o, const l_table *table, tile_sums sum)
{
    accs acc[2];
    UNROLL
    for (size_t j = 0; j < steps; j++) {
        const uint8_t *lines = at + j * s->block;
        accs_clear(n, acc[j]);
        dot_units(lines + c->m * s->second, ahead_of(s, lines), s, terms / 2 / unit_pairs(f),
                  x + j * (terms / 2 * pair_bytes(n.width, o)), 0, n, f, o, table, acc[j]);
    }
    UNROLL
    for (size_t i = 0; i < n.halves; i++) {
        const float(*scale)[KERNEL_ROWS] = c->scale + c->m + i;
        tile_sums to = sum + (c->m + i) * KERNEL_TOKENS;
        UNROLL
        for (size_t t = 0; t < n.width; t++) {
            vec v = v_load(to[t]);
            UNROLL
            for (size_t j = 0; j < steps; j++) v = v_fma(acc[j][0][i][t], v_load(scale[2 * j]), v);
            if (steps == 1 && c->minima) v = v_fma(v_set1(sums[t]), v_load(c->minus[c->m + i]), v);
            v_store(to[t], v);
        }
    }
}

/* What a format's codes are to int8 operands: what byte is zero, what one is worth. */
typedef struct int8_code {
    const l_bytes *table;
    int32_t zero;
    float unit;
} int8_code;

/* The sum of token t's codes of a step, which begins at term `skip` of the block. */
INLINE int32_t step_codes(const int8_words *x, size_t t, size_t terms, size_t skip)
{
    if (terms == KERNEL_BLOCK) return x->sum[t];
    return skip == 0 ? x->first[t] : x->sum[t] - x->first[t];
}

/* The same with int8 operands, x those of the step's block. */
INLINE void scaled_int8_step(const span *s, const uint8_t *at, const step_scales *c, size_t terms,
                             int8_words x, size_t skip, shape n, kernel_format f,
                             const int8_code *code, tile_sums sum)
{
    ivec acc[2][2][KERNEL_WIDTH];
    UNROLL
    for (size_t t = 0; t < n.width; t++) {
        const ivec zero = i_set1(-code->zero * step_codes(&x, t, terms, skip));
        UNROLL
        for (size_t i = 0; i < n.halves; i++) acc[0][i][t] = zero;
    }
#ifdef VEC_MATRIX
    if (n.width % 2 == 0) int8_pairs(n, 1, acc);
#endif
    int8_units(at + c->m * s->second, ahead_of(s, at), s, terms / 8, x.codes + skip * n.width, 0, n,
               f, code->table, acc);
#ifdef VEC_MATRIX
    if (n.width % 2 == 0) int8_pairs(n, 0, acc);
#endif
    UNROLL
    for (size_t i = 0; i < n.halves; i++) {
        const vec scale = v_load(c->scale[c->m + i]);
        tile_sums to = sum + (c->m + i) * KERNEL_TOKENS;
        UNROLL
        for (size_t t = 0; t < n.width; t++) {
            const vec by = v_mul(v_set1(x.scale[t] * code->unit), scale);
            v_store(to[t], v_fma(v_from_int(acc[0][i][t]), by, v_load(to[t])));
        }
    }
    if (!c->minima) return;
    UNROLL
    for (size_t i = 0; i < n.halves; i++) {
        const vec minus = v_load(c->minus[c->m + i]);
        tile_sums to = sum + (c->m + i) * KERNEL_TOKENS;
        for (size_t t = 0; t < n.width; t++) {
            const vec by = v_mul(v_set1(x.scale[t]), minus);
            v_store(to[t], v_fma(v_set1((float)x.sum[t]), by, v_load(to[t])));
        }
    }
}

/* The chunks of a span. */
INLINE void scaled_tile(const span *s, size_t m, const uint8_t *tile, size_t width, kernel_format f,
                        kernel_operand o, tile_sums sum)
{
    const kernel_format format = s->panel->format;
    const kernel_info *info = &kernel_formats[format];
    const shape n = shape_of(width, f, o);
    const size_t section = kernel_section_bytes(format, s->panel->halves), terms = info->step;
    const size_t nibble = info->bits == 4 ? info->element - ELEMENT_E2M1 : 0;
    const l_table table = l_words_table(nibble_words[nibble]);
    const l_bytes bytes = l_bytes_table(nibble_bytes[nibble]);
    const int8_code code = {&bytes, is_int8(f) ? VEC_INT8_ZERO : nibble_zero[nibble],
                            info->element == ELEMENT_E2M1 ? 0.5f : 1.0f};
    const float *sums =
        (const float *)(const void *)(tile + s->panel->k / 2 * pair_bytes(width, o));
    const uint8_t *at = s->lines;
    chunk_scales c;
    for (size_t k = s->first; k < s->end;) {
        const size_t left = s->end - k < info->chunk ? s->end - k : info->chunk;
        step_scales step = {c.scale[0], c.minus[0], m, info->minima};
        widen_any_chunk(s->panel, at, left / terms, &c);
        for (size_t i = 0; i < section; i += KERNEL_LINE) l_prefetch(ahead_of(s, at + i));
        at += section;
        for (const size_t end = k + left; k < end; k += terms, at += s->block) {
            const size_t skip = k % KERNEL_BLOCK;
            if (o == OPERAND_INT8) {
                scaled_int8_step(s, at, &step, terms, int8_words_of(s, tile, width, k - skip), skip,
                                 n, f, &code, sum);
            } else if (width <= 2 && terms < KERNEL_BLOCK) { /* short ones would wait for sums */
                scaled_steps(s, at, &step, 2, KERNEL_BLOCK / 2, tile + k / 2 * pair_bytes(width, o),
                             NULL, n, f, o, &table, sum);
                step.scale += 2;
                k += terms;
                at += s->block;
            } else {
                scaled_steps(s, at, &step, 1, terms, tile + k / 2 * pair_bytes(width, o),
                             sums + k / KERNEL_BLOCK * width, n, f, o, &table, sum);
            }
            step.scale += 2;
            step.minus += 2;
        }
    }
}

#endif
