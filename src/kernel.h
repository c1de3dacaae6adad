/* SPDX-License-Identifier: Apache-2.0 */
/* kernel.h - THE CONTRACT between the data path and the kernels: packed panels, operands, kernel
 * tables.
 *
 * pack.c and the pack_*.c beside it are the only writers of panels, the kernels' quantize functions
 * and quantize_tile, which interleaves rows, the only writers of operands, src/isa/ holds the only
 * readers.  A kernel gives the bits that docs/numerics.md defines; src/isa/scalar.c is that
 * definition in C.
 *
 * PANELS.  A panel is two halves of KERNEL_ROWS output rows each and their whole k axis: one
 * stream of 64-byte lines, read once from front to back.  A gate_up panel holds rows of gate and
 * the same rows of up, or, of experts without a gate, 2 * KERNEL_ROWS neighbouring rows of up; a
 * down panel 2 * KERNEL_ROWS neighbouring rows.  The last panel of neighbouring rows is a single
 * half where no more rows are left.  Lines of the halves alternate, so that an operand is read
 * once for both.  Terms past the last have codes of value zero (int4: 8, else 0); rows past the
 * last codes 0, and scales whose bytes are 0 (e8m0: 127).
 *
 *   line of a half     row r (0..15), term k of the line
 *   f32       1 k      32 bits at byte 4 r
 *   f16       2 k      16 bits at byte 32 k + 2 r
 *   bf16      2 k      16 bits at byte 4 r + 2 k
 *   e4m3      4 k      byte 16 (r / 4) + 8 (k / 2) + 2 (r % 4) + k % 2
 *   int8      4 k      two lines hold 8 k: line k / 2 % 2, byte 4 r + 2 (k % 2) + k / 4
 *   4 bits    8 k      bits 16 (k % 2) + 4 (k / 2) and up of the 32 at byte 4 r
 *   bf12      8 k      three lines: the codes as 4-bit elements; then two lines, for k 0..3 and
 *                      4..7, of sign and mantissa: of bf16 term k the sign at bit 15 and the
 *                      mantissa at bits 0..6 of the 16 bits at byte 4 r + 2 (k % 2), for k % 4 > 1
 *                      with the two bytes exchanged
 *
 *   plain panel      lines j = 0, 1, ...: half 0 line j, half 1 line j.  kernel_line_of says which
 *                    line of a half has term k, kernel_line_at where in the stream it is,
 *                    kernel_bit_at at which of its bits row r has the term
 *   scaled panel     chunks of kernel_formats[f].chunk terms; the last may have fewer.  A chunk is a
 *                    section of scales, whole also in the last one, then the chunk's lines as in a
 *                    plain panel.  k is a multiple of KERNEL_BLOCK
 *   bf12 panel       a head (kernel_bf12_head, whole lines), then lines as a plain panel (of 8 k:
 *                    codes, codes of half 1, k 0..3, those of half 1, k 4..7, those of half 1),
 *                    padded to 8 k with any codes that are no escape
 *
 *   section of scales, rounded up to whole lines; kernel_scale_at finds each array of it
 *     Q4_K, Q5_K, Q6_K    d: an f16 for each half and row
 *     Q4_K, Q5_K          dmin: likewise
 *     all                 the scales: for each run of scale_k terms of the chunk, half and row, one
 *                         e8m0, e4m3fn, bf16, f16 or f32, or (K) u8 or i8 by which d is multiplied
 *     Q4_K, Q5_K          minima: for each run, half and row a u8 by which dmin is multiplied
 *   Of runs past the last, and between the arrays' end and the section's, all bytes are 127 with
 *   e8m0 scales, else 0.
 *
 * A STEP is the terms, 32 or 16, whose dot is taken from +0 and scaled into the sum: of one run, or
 * a part of it.  k, blocks and steps are those of docs/numerics.md section 3, in its order.
 *
 * OPERANDS.  The rows x of one token (or of one token and expert, for the down product) are made
 * of 32-bit words:
 *   OPERAND_F32    k floats, k even, zero past the last
 *   OPERAND_BF16   k / 2 words: k = 2j in the low half, 2j+1 in the high half
 *   OPERAND_INT8   k / 4 words of codes, in each 8 k the words k0 k4 k1 k5 and k2 k6 k3 k7 as the
 *                  nibbles of a 4-bit line and the bytes of two int8 lines lie; k / 32 floats, the
 *                  blocks' scales; k / 32 int32, the sums of the blocks' codes; k / 32 int32, those
 *                  of the first 16 codes of each block
 *   OPERAND_SUMS, OPERAND_BF16_SUMS
 *                  as OPERAND_F32 or OPERAND_BF16 (k a multiple of 32); k / 32 floats, the sums of
 *                  32 neighbours in the order of docs/numerics.md section 4
 * A tile is the rows of `width` tokens, word by word: word n of token t is at [n * width + t].
 * KERNEL_ALIGN-aligned. */
#ifndef MOE_KERNEL_H
#define MOE_KERNEL_H

#include <moe_tkg.h>
#include <stdbool.h>

enum {
    KERNEL_ROWS = 16,    /* output rows of half a panel */
    KERNEL_LINE = 64,    /* bytes of a line: 4 for each row */
    KERNEL_ALIGN = 64,   /* of panels, operands and f32 rows */
    KERNEL_BLOCK = 32,   /* k of a block of operands; a multiple of every step */
    KERNEL_PLAIN = 512,  /* k of a plain block */
    KERNEL_TOKENS = 128, /* tokens that one kernel call takes at most */
    KERNEL_WIDTH = 12,   /* tokens of the widest tile */
    KERNEL_LANES = 16,   /* sums that a router's dot is kept in */
    KERNEL_ROUTE = 4     /* rows of a router that one call takes at most */
};

/* Formats of weights. */
typedef enum kernel_format {
    FORMAT_BF16,
    FORMAT_F16,
    FORMAT_F32,
    FORMAT_E4M3_IEEE,
    FORMAT_E4M3FN,
    FORMAT_MXFP8,
    FORMAT_MXFP4,
    FORMAT_BF12,      /* bf16, its exponents coded */
    FORMAT_FP8_BLOCK, /* e4m3fn, an f32 scale for each row and 128 k */
    FORMAT_INT4_BF16_32,
    FORMAT_INT4_BF16_64,
    FORMAT_INT4_BF16_128,
    FORMAT_INT4_F16_32, /* also Q4_0 */
    FORMAT_INT4_F16_64,
    FORMAT_INT4_F16_128,
    FORMAT_Q8_0,
    FORMAT_Q4_K,
    FORMAT_Q5_K,
    FORMAT_Q6_K,
    FORMAT_NVFP4,
    FORMAT_COUNT
} kernel_format;

/* What a code of a line is. */
typedef enum kernel_element {
    ELEMENT_BF16,
    ELEMENT_F16,
    ELEMENT_F32,
    ELEMENT_E4M3_IEEE,
    ELEMENT_E4M3FN,
    ELEMENT_E2M1,
    ELEMENT_INT4,  /* code - 8 */
    ELEMENT_UINT4, /* the code */
    ELEMENT_INT8,  /* two's complement; Q5_K has 0..31, Q6_K -32..31 */
    ELEMENT_BF12
} kernel_element;

typedef enum kernel_scale {
    SCALE_NONE,
    SCALE_E8M0,
    SCALE_E4M3, /* e4m3fn, NaN included */
    SCALE_BF16,
    SCALE_F16,
    SCALE_F32,
    SCALE_K_U8, /* d * u8 */
    SCALE_K_I8  /* d * i8 */
} kernel_scale;

typedef struct kernel_info {
    uint8_t bits; /* of an element of a line (bf12: of its line of codes) */
    kernel_element element;
    kernel_scale scale;
    uint16_t scale_k; /* terms of a run, which share a scale; 0: none */
    uint16_t chunk;   /* terms of a chunk; plain: of a block */
    uint16_t step;    /* terms whose dot is taken from +0 */
    bool minima;
} kernel_info;

static const kernel_info kernel_formats[FORMAT_COUNT] = {
    [FORMAT_BF16] = {16, ELEMENT_BF16, SCALE_NONE, 0, 512, 512, false},
    [FORMAT_F16] = {16, ELEMENT_F16, SCALE_NONE, 0, 512, 512, false},
    [FORMAT_F32] = {32, ELEMENT_F32, SCALE_NONE, 0, 512, 512, false},
    [FORMAT_E4M3_IEEE] = {8, ELEMENT_E4M3_IEEE, SCALE_NONE, 0, 512, 512, false},
    [FORMAT_E4M3FN] = {8, ELEMENT_E4M3FN, SCALE_NONE, 0, 512, 512, false},
    [FORMAT_MXFP8] = {8, ELEMENT_E4M3FN, SCALE_E8M0, 32, 64, 32, false},
    [FORMAT_MXFP4] = {4, ELEMENT_E2M1, SCALE_E8M0, 32, 64, 32, false},
    [FORMAT_BF12] = {4, ELEMENT_BF12, SCALE_NONE, 0, 512, 512, false},
    [FORMAT_FP8_BLOCK] = {8, ELEMENT_E4M3FN, SCALE_F32, 128, 128, 32, false},
    [FORMAT_INT4_BF16_32] = {4, ELEMENT_INT4, SCALE_BF16, 32, 64, 32, false},
    [FORMAT_INT4_BF16_64] = {4, ELEMENT_INT4, SCALE_BF16, 64, 64, 32, false},
    [FORMAT_INT4_BF16_128] = {4, ELEMENT_INT4, SCALE_BF16, 128, 128, 32, false},
    [FORMAT_INT4_F16_32] = {4, ELEMENT_INT4, SCALE_F16, 32, 64, 32, false},
    [FORMAT_INT4_F16_64] = {4, ELEMENT_INT4, SCALE_F16, 64, 64, 32, false},
    [FORMAT_INT4_F16_128] = {4, ELEMENT_INT4, SCALE_F16, 128, 128, 32, false},
    [FORMAT_Q8_0] = {8, ELEMENT_INT8, SCALE_F16, 32, 64, 32, false},
    [FORMAT_Q4_K] = {4, ELEMENT_UINT4, SCALE_K_U8, 32, 256, 32, true},
    [FORMAT_Q5_K] = {8, ELEMENT_INT8, SCALE_K_U8, 32, 256, 32, true},
    [FORMAT_Q6_K] = {8, ELEMENT_INT8, SCALE_K_I8, 16, 256, 16, false},
    [FORMAT_NVFP4] = {4, ELEMENT_E2M1, SCALE_E4M3, 16, 64, 16, false},
};

/* The arrays of a section of scales. */
typedef enum kernel_part {
    PART_SCALE,
    PART_MINIMUM,
    PART_D,   /* SCALE_K_...: of the chunk */
    PART_DMIN /* with minima: of the chunk */
} kernel_part;

/* A format's kernels take OPERAND_F32 and on some machines OPERAND_BF16, or with minima the same with
 * sums; and OPERAND_INT8 where kernel_takes_int8. */
typedef enum kernel_operand {
    OPERAND_F32,
    OPERAND_BF16,
    OPERAND_INT8,
    OPERAND_SUMS,
    OPERAND_BF16_SUMS,
    OPERAND_COUNT
} kernel_operand;

/* What values are rounded to on their way into an operand (docs/numerics.md section 6). */
typedef enum kernel_rounding {
    ROUND_NONE,  /* all but OPERAND_INT8; OPERAND_BF16... if every value is a bf16 */
    ROUND_BF16,  /* all but OPERAND_INT8 */
    ROUND_MXFP8, /* OPERAND_F32, OPERAND_BF16 */
    ROUND_INT8   /* OPERAND_INT8 */
} kernel_rounding;

/* Head of a bf12 panel.  A weight's exponent is exponent[code]; code 15 is an escape: the weight
 * is in the list.  A chunk is KERNEL_BLOCK k of both halves; chunk n's escapes follow those of
 * chunk n - 1.  After the head: a byte for each chunk, how many escapes it has; the escapes, in
 * order, at the next multiple of 4; the lines begin at lines_at. */
typedef struct kernel_bf12_head {
    uint8_t exponent[16];
    uint32_t lines_at;   /* bytes from the head, whole lines */
    uint32_t escapes_at; /* bytes from the head */
} kernel_bf12_head;

typedef struct kernel_bf12_escape {
    uint16_t place; /* (half * KERNEL_BLOCK + k % KERNEL_BLOCK) * KERNEL_ROWS + row */
    uint16_t value; /* the bf16 */
} kernel_bf12_escape;

/* The operands of the tokens of one expert: tiles of `width` tokens, the last of what is left,
 * each tile_bytes after the one before. */
typedef struct kernel_tiles {
    const uint8_t *x;
    size_t tokens; /* 1 .. KERNEL_TOKENS */
    size_t width;  /* 1 .. KERNEL_WIDTH */
    size_t tile_bytes;
} kernel_tiles;

/* What happens between the sums and m.  Limits that are not given are infinite; up_offset -0
 * adds nothing. */
typedef struct kernel_point {
    moe_activation activation; /* SILU and SWIGLU arrive as SWISH with their alpha */
    float alpha, up_offset;
    float gate_upper, gate_lower, up_upper, up_lower;
    float act_upper; /* of act's value */
    int ungated;     /* 1: gate_up panels hold rows of up alone, m = act(u) */
} kernel_point;

/* The f32 values beside a half's rows, KERNEL_ROWS of each; NULL: none. */
typedef struct kernel_rows {
    const float *scale, *bias;
} kernel_rows;

/* One packed panel. */
typedef struct kernel_panel {
    const uint8_t *stream;
    kernel_format format;
    size_t k;      /* plain: padded to even; scaled: to a multiple of KERNEL_BLOCK */
    size_t halves; /* 2; 1 for a last panel of neighbouring rows */
    kernel_rows rows[2];
} kernel_panel;

/* mid[n][r] = act(gate[r] . x[n]) * (up[r] . x[n])     for n < tokens, r < KERNEL_ROWS
 * ungated:    act(up[r] . x[n])                        for n < tokens, r < halves * KERNEL_ROWS */
typedef struct kernel_gate_up {
    kernel_panel panel;
    kernel_tiles tiles;
    const kernel_point *point;
    const float *factor; /* of each token: times its sums; NULL: none */
    float *mid;          /* row n at mid + n * mid_stride */
    size_t mid_stride;   /* floats */
} kernel_gate_up;

/* y[n][r] = down[r] . x[n]                             for n < tokens, r < halves * KERNEL_ROWS */
typedef struct kernel_down {
    kernel_panel panel;
    kernel_tiles tiles;
    float *y;
    size_t y_stride;
} kernel_down;

/* tile[operand words of block `block`][t] = rounded v[t]     for t < tokens
 *
 * One block of `terms` (even, at most KERNEL_BLOCK; KERNEL_BLOCK with ROUND_MXFP8, ROUND_INT8 and
 * OPERAND_..._SUMS) neighbouring terms of each token's row, row t at v + t * stride floats; neighbouring
 * tokens of a tile that is `width` wide. */
typedef struct kernel_quantize {
    const float *v;
    size_t stride, tokens, terms;
    size_t block, k; /* of the row: number of the block, terms in all */
    uint32_t *tile;  /* of the first of these tokens */
    size_t width;
} kernel_quantize;

/* out[h] = term 0 + term 1 + ... for h < n, each fma(affinity, y[h], out[h]), or out[h] + y[h]
 * with affinity NULL; from what out holds. */
typedef struct kernel_reduce {
    const float *const *y;
    const float *affinity;
    size_t terms, n;
    float *out;
} kernel_reduce;

/* acc[t][r][l] = fma(x[t][k], w[r][k], acc[t][r][l]), l = k % KERNEL_LANES, for ascending k. */
typedef struct kernel_route {
    const float *w; /* row r at w + r * w_stride */
    size_t w_stride, rows;
    const float *x; /* row t at x + t * x_stride */
    size_t x_stride, tokens;
    size_t k; /* a multiple of KERNEL_LANES */
    float (*acc)[KERNEL_ROUTE][KERNEL_LANES];
} kernel_route;

/* score_of[i] of logit[i]; softmax: exp(logit[i] - largest). */
typedef struct kernel_scores {
    moe_router_score score;
    const float *logit;
    float largest;
    size_t n;
    float *score_of;
} kernel_scores;

/* Kernels read panels and operands only inside what k says and write KERNEL_ROWS floats for each
 * token and half.  They run in the canonical floating-point environment, allocate nothing and
 * cannot fail.  A slot is NULL where no mode needs it. */
typedef void kernel_gate_up_fn(const kernel_gate_up *a);
typedef void kernel_down_fn(const kernel_down *a);
typedef void kernel_quantize_fn(const kernel_quantize *a, kernel_rounding r, kernel_operand o);
typedef void kernel_reduce_fn(const kernel_reduce *a);
typedef void kernel_route_fn(const kernel_route *a);
typedef void kernel_scores_fn(const kernel_scores *a);
/* out[i] = v[i], n neighbours of bf16, f16 or f32 */
typedef void kernel_widen_fn(const void *v, moe_dtype dtype, size_t n, float *out);

typedef struct kernel_table {
    const char *isa;
    /* of the widest tiles: with plain, with scaled weights (which is not the wider); at most
     * KERNEL_WIDTH */
    size_t width[2];
    kernel_gate_up_fn *gate_up[FORMAT_COUNT][OPERAND_COUNT];
    kernel_down_fn *down[FORMAT_COUNT][OPERAND_COUNT];
    kernel_quantize_fn *quantize;
    kernel_reduce_fn *reduce;
    kernel_route_fn *route;
    kernel_scores_fn *scores;
    kernel_widen_fn *widen;
} kernel_table;

extern const kernel_table kernel_table_scalar;
#if defined(__x86_64__)
extern const kernel_table kernel_table_avx2, kernel_table_avx512, kernel_table_avx512vnni,
    kernel_table_avx512bf16;
#elif defined(__aarch64__)
extern const kernel_table kernel_table_neon, kernel_table_neon_dotprod, kernel_table_neon_i8mm;
#endif

static inline bool kernel_is_mx(kernel_format f)
{
    return kernel_formats[f].scale == SCALE_E8M0;
}

static inline bool kernel_is_scaled(kernel_format f)
{
    return kernel_formats[f].scale != SCALE_NONE;
}

static inline bool kernel_takes_int8(kernel_format f)
{
    kernel_element e = kernel_formats[f].element;
    return kernel_is_scaled(f) && e != ELEMENT_E4M3FN;
}

/* Words of an operand row of k terms. */
static inline size_t kernel_operand_words(kernel_operand o, size_t k)
{
    switch (o) {
    case OPERAND_BF16: return k / 2;
    case OPERAND_INT8: return k / 4 + k / KERNEL_BLOCK * 3;
    case OPERAND_SUMS: return k + k / KERNEL_BLOCK;
    case OPERAND_BF16_SUMS: return k / 2 + k / KERNEL_BLOCK;
    default: return k;
    }
}

/* Which of 8 neighbouring k is code number i of an OPERAND_INT8 row. */
static inline size_t kernel_int8_k(size_t i)
{
    return (i & 1) * 4 + (i >> 1 & 1) + (i >> 2 & 1) * 2;
}

static inline size_t kernel_bits(kernel_format f)
{
    return kernel_formats[f].bits;
}

/* k of one line. */
static inline size_t kernel_line_k(kernel_format f)
{
    return 32 / kernel_bits(f);
}

/* Which line of a half has term k. */
static inline size_t kernel_line_of(kernel_format f, size_t k)
{
    if (kernel_formats[f].element == ELEMENT_INT8) return k / 8 * 2 + k / 2 % 2;
    return k / kernel_line_k(f);
}

/* Where that line (bf12: its line of codes) has the term of row r: the bit. */
static inline size_t kernel_bit_at(kernel_format f, size_t r, size_t k)
{
    if (kernel_formats[f].element == ELEMENT_INT8) return 32 * r + 16 * (k % 2) + k / 4 % 2 * 8;
    k %= kernel_line_k(f);
    switch (kernel_bits(f)) {
    case 32: return 32 * r;
    case 16: return f == FORMAT_F16 ? 256 * k + 16 * r : 32 * r + 16 * k;
    case 8: return 128 * (r / 4) + 64 * (k / 2) + 16 * (r % 4) + 8 * (k % 2);
    default: return 32 * r + 16 * (k % 2) + 4 * (k / 2);
    }
}

/* Bytes of a code of PART_SCALE. */
static inline size_t kernel_scale_bytes(kernel_format f)
{
    kernel_scale s = kernel_formats[f].scale;
    return s == SCALE_F32 ? 4 : s == SCALE_F16 || s == SCALE_BF16 ? 2 : 1;
}

/* Runs of terms of a chunk, each with scales of its own; 0 with plain formats. */
static inline size_t kernel_runs(kernel_format f)
{
    return kernel_is_scaled(f) ? (size_t)(kernel_formats[f].chunk / kernel_formats[f].scale_k) : 0;
}

/* Bytes of one array d or dmin; 0: there is none. */
static inline size_t kernel_d_bytes(kernel_format f, size_t halves)
{
    kernel_scale s = kernel_formats[f].scale;
    return s == SCALE_K_U8 || s == SCALE_K_I8 ? halves * KERNEL_ROWS * sizeof(uint16_t) : 0;
}

/* Bytes of the section of scales of a chunk; 0 with plain formats. */
static inline size_t kernel_section_bytes(kernel_format f, size_t halves)
{
    size_t scales = kernel_runs(f) * halves * KERNEL_ROWS * kernel_scale_bytes(f);
    size_t bytes = (kernel_d_bytes(f, halves) + scales) * (kernel_formats[f].minima ? 2 : 1);
    return (bytes + KERNEL_LINE - 1) / KERNEL_LINE * KERNEL_LINE;
}

/* Bytes of one half's lines of a step. */
static inline size_t kernel_step_bytes(kernel_format f)
{
    return kernel_formats[f].step / kernel_line_k(f) * KERNEL_LINE;
}

/* Where a panel's stream (but for bf12) has line number n of a half. */
static inline size_t kernel_line_at(kernel_format f, size_t halves, size_t half, size_t n)
{
    size_t chunk = n / (kernel_formats[f].chunk / kernel_line_k(f));
    return (chunk + 1) * kernel_section_bytes(f, halves) + (n * halves + half) * KERNEL_LINE;
}

/* Where a scaled panel has the codes of run n (terms n * scale_k and up) of a half, those of all
 * rows one after the other: PART_SCALE and PART_MINIMUM.  PART_D and PART_DMIN: of its chunk. */
static inline size_t kernel_scale_at(kernel_format f, size_t halves, size_t half, kernel_part part,
                                     size_t n)
{
    size_t runs = kernel_runs(f), d = kernel_d_bytes(f, halves);
    size_t chunk_lines = kernel_formats[f].chunk / kernel_line_k(f);
    size_t at =
        kernel_line_at(f, halves, 0, n / runs * chunk_lines) - kernel_section_bytes(f, halves);
    size_t scales = at + (kernel_formats[f].minima ? 2 : 1) * d, row = KERNEL_ROWS;
    switch (part) {
    case PART_D: return at + half * d / halves;
    case PART_DMIN: return at + d + half * d / halves;
    case PART_MINIMUM: scales += runs * halves * row; /* u8 as the scales */ /* fall through */
    default: return scales + (n % runs * halves + half) * row * kernel_scale_bytes(f);
    }
}

/* Bytes of a panel's stream for k terms; of a bf12 panel, the lines. */
static inline size_t kernel_panel_bytes(kernel_format f, size_t halves, size_t k)
{
    size_t lines = (k + kernel_line_k(f) - 1) / kernel_line_k(f), chunk = kernel_formats[f].chunk;
    return (k + chunk - 1) / chunk * kernel_section_bytes(f, halves) +
           lines * (f == FORMAT_BF12 ? 3 : 1) * halves * KERNEL_LINE;
}

#endif
