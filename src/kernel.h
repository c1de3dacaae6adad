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
 * the same rows of up; a down panel 2 * KERNEL_ROWS neighbouring rows, and the last one a single
 * half where no more rows are left.  The gate_up panels of experts without a gate hold rows of up
 * as a down panel holds its own.  Lines of the halves alternate, so that an operand is read
 * once for both.  Rows past the last and k past the last are zero codes.
 *
 *   line of a half     row r (0..15), term k of the line
 *   f32       1 k      32 bits at byte 4 r
 *   f16       2 k      16 bits at byte 32 k + 2 r
 *   bf16      2 k      16 bits at byte 4 r + 2 k
 *   8 bits    4 k      byte 16 (r / 4) + 8 (k / 2) + 2 (r % 4) + k % 2
 *   4 bits    8 k      bits 16 (k % 2) + 4 (k / 2) and up of the 32 at byte 4 r
 *   bf12      8 k      three lines: the codes as 4-bit elements; then two lines, for k 0..3 and
 *                      4..7, of sign and mantissa: of bf16 term k the sign at bit 15 and the
 *                      mantissa at bits 0..6 of the 16 bits at byte 4 r + 2 (k % 2), for k % 4 > 1
 *                      with the two bytes exchanged
 *
 *   plain panel      lines j = 0, 1, ...: half 0 line j, half 1 line j
 *   MX panel         groups of 2 (one half: 4) blocks: a line of scale bytes (block, half, row;
 *                    127 for blocks past the last), then the blocks' lines, halves alternating
 *   bf12 panel       a head (kernel_bf12_head, whole lines), then lines as a plain panel (of 8 k:
 *                    codes, codes of half 1, k 0..3, those of half 1, k 4..7, those of half 1),
 *                    padded to 8 k with any codes that are no escape
 *
 * k and the blocks are those of docs/numerics.md section 3, in its order.
 *
 * OPERANDS.  The rows x of one token (or of one token and expert, for the down product) are made
 * of 32-bit words:
 *   OPERAND_F32    k floats, k even, zero past the last
 *   OPERAND_BF16   k / 2 words: k = 2j in the low half, 2j+1 in the high half
 *   OPERAND_INT8   k / 4 words of codes, in each 8 k the words k0 k4 k1 k5 and k2 k6 k3 k7 as the
 *                  nibbles of a 4-bit line lie; k / 32 floats, half the block's scale; k / 32
 *                  int32, -12 times the sum of the block's codes
 * A tile is the rows of `width` tokens, word by word: word n of token t is at [n * width + t].
 * KERNEL_ALIGN-aligned. */
#ifndef MOE_KERNEL_H
#define MOE_KERNEL_H

#include <moe_tkg.h>

enum {
    KERNEL_ROWS = 16,    /* output rows of half a panel */
    KERNEL_LINE = 64,    /* bytes of a line: 4 for each row */
    KERNEL_ALIGN = 64,   /* of panels, operands and f32 rows */
    KERNEL_BLOCK = 32,   /* k of an MX block */
    KERNEL_PLAIN = 512,  /* k of a plain block */
    KERNEL_TOKENS = 128, /* tokens that one kernel call takes at most */
    KERNEL_WIDTH = 12,   /* tokens of the widest tile */
    KERNEL_LANES = 16,   /* sums that a router's dot is kept in */
    KERNEL_ROUTE = 4     /* rows of a router that one call takes at most */
};

/* Element formats.  MX ones have an e8m0 scale for each KERNEL_BLOCK k of a row. */
typedef enum kernel_format {
    FORMAT_BF16,
    FORMAT_F16,
    FORMAT_F32,
    FORMAT_E4M3_IEEE,
    FORMAT_E4M3FN,
    FORMAT_MXFP8,
    FORMAT_MXFP4,
    FORMAT_BF12, /* bf16, its exponents coded */
    FORMAT_COUNT
} kernel_format;

typedef enum kernel_operand {
    OPERAND_F32,
    OPERAND_BF16,
    OPERAND_INT8,
    OPERAND_COUNT
} kernel_operand;

/* What values are rounded to on their way into an operand (docs/numerics.md section 6). */
typedef enum kernel_rounding {
    ROUND_NONE,  /* OPERAND_F32; OPERAND_BF16 if every value is a bf16 */
    ROUND_BF16,  /* OPERAND_F32, OPERAND_BF16 */
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
    size_t k;      /* plain: padded to even; MX: a multiple of KERNEL_BLOCK */
    size_t halves; /* 2; 1 for a last down panel */
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
 * One block of `terms` (even, at most KERNEL_BLOCK; ROUND_MXFP8 and ROUND_INT8: KERNEL_BLOCK)
 * neighbouring terms of each token's row, row t at v + t * stride floats; neighbouring tokens of a
 * tile that is `width` wide. */
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
    size_t width[2]; /* of the widest tiles: with plain, with MX weights; at most KERNEL_WIDTH */
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

static inline int kernel_is_mx(kernel_format f)
{
    return f == FORMAT_MXFP8 || f == FORMAT_MXFP4;
}

/* Which of 8 neighbouring k is code number i of an OPERAND_INT8 row. */
static inline size_t kernel_int8_k(size_t i)
{
    return (i & 1) * 4 + (i >> 1 & 1) + (i >> 2 & 1) * 2;
}

/* Bits of one element of a line (bf12: of its line of codes). */
static inline size_t kernel_bits(kernel_format f)
{
    return f == FORMAT_F32                         ? 32
           : f == FORMAT_BF16 || f == FORMAT_F16   ? 16
           : f == FORMAT_MXFP4 || f == FORMAT_BF12 ? 4
                                                   : 8;
}

/* k of one line. */
static inline size_t kernel_line_k(kernel_format f)
{
    return 32 / kernel_bits(f);
}

/* Where a line of f's elements (bf12: of its codes) has term k of row r: the bit. */
static inline size_t kernel_bit_at(kernel_format f, size_t r, size_t k)
{
    switch (kernel_bits(f)) {
    case 32: return 32 * r;
    case 16: return f == FORMAT_F16 ? 256 * k + 16 * r : 32 * r + 16 * k;
    case 8: return 128 * (r / 4) + 64 * (k / 2) + 16 * (r % 4) + 8 * (k % 2);
    default: return 32 * r + 16 * (k % 2) + 4 * (k / 2);
    }
}

/* Bytes of the lines of one MX block and one half. */
static inline size_t kernel_block_bytes(kernel_format f)
{
    return KERNEL_ROWS * KERNEL_BLOCK * kernel_bits(f) / 8;
}

/* Blocks that share a line of scale bytes. */
static inline size_t kernel_group(size_t halves)
{
    return KERNEL_LINE / (KERNEL_ROWS * halves);
}

/* Where an MX panel has the lines of block n (halves alternating), and its scale bytes
 * [half][row]. */
static inline size_t kernel_block_at(kernel_format f, size_t halves, size_t n)
{
    return (n / kernel_group(halves) + 1) * KERNEL_LINE + n * halves * kernel_block_bytes(f);
}

static inline size_t kernel_scale_at(kernel_format f, size_t halves, size_t n)
{
    size_t first = n - n % kernel_group(halves);
    return kernel_block_at(f, halves, first) - KERNEL_LINE + (n - first) * halves * KERNEL_ROWS;
}

/* Bytes of a panel's stream for k terms; of a bf12 panel, the lines. */
static inline size_t kernel_panel_bytes(kernel_format f, size_t halves, size_t k)
{
    size_t lines = f == FORMAT_BF12 ? 3 : 1;
    if (!kernel_is_mx(f))
        return (k + kernel_line_k(f) - 1) / kernel_line_k(f) * lines * halves * KERNEL_LINE;
    size_t blocks = k / KERNEL_BLOCK, group = kernel_group(halves);
    return (blocks + group - 1) / group * KERNEL_LINE + blocks * halves * kernel_block_bytes(f);
}

#endif
