/* SPDX-License-Identifier: Apache-2.0 */
/* pack_blocks.c - lines and scales from matrices of blocks with their own scales, as GGUF files have
 * them.
 *
 * A row's codes go to a stage in their order of k, 4 bits as pairs and else a byte each, and from
 * there to lines as any row's do; its scales go to a stage too, row beside row. */
#include "pack_lines.h"
#include "shuffle.h"
#include "sizes.h"

enum {
    STAGE_BYTES = PACK_LINES * 4, /* of a row's codes */
    STAGE_RUNS = 32,              /* of terms with a scale of their own: Q6_K and NVFP4 have most */
    STAGE_BLOCKS = 2              /* with a d of their own */
};

typedef struct stage {
    uint8_t code[KERNEL_ROWS][STAGE_BYTES];
    uint8_t scale[STAGE_RUNS][KERNEL_ROWS * sizeof(uint16_t)]; /* the codes of the rows' scales */
    uint8_t minimum[STAGE_RUNS][KERNEL_ROWS];
    uint8_t d[STAGE_BLOCKS][KERNEL_ROWS * sizeof(uint16_t)],
        dmin[STAGE_BLOCKS][KERNEL_ROWS * sizeof(uint16_t)];
} stage;

/* One row's place in a stage, from its n-th block on. */
typedef struct place {
    stage *s;
    size_t row;
    uint8_t *code;
} place;

static inline void put_half(uint8_t *rows, size_t row, const uint8_t *f16)
{
    memcpy(rows + row * sizeof(uint16_t), f16, sizeof(uint16_t));
}

/* 16 bytes of two codes each: pairs of the low ones, then pairs of the high ones. */
static inline u8x16 pair_nibbles(u8x16 v)
{
    u16x8 x = (u16x8)v, low = (x & 0x000Fu) | (x >> 4 & 0x00F0u),
          high = (x >> 4 & 0x000Fu) | (x >> 8 & 0x00F0u);
    return shuffle_even8((u8x16)low, (u8x16)high);
}

/* ---- 32 terms -------------------------------------------------------------------------------- */

/* f16 d; codes k and k + 16 in byte k. */
static inline void stage_q4_0(place p, size_t n, const uint8_t *b)
{
    put_half(p.s->scale[n], p.row, b);
    shuffle_store(p.code + n * 16, pair_nibbles(shuffle_load(b + 2)));
}

/* e8m0; codes as those of Q4_0. */
static inline void stage_mxfp4(place p, size_t n, const uint8_t *b)
{
    p.s->scale[n][p.row] = b[0];
    shuffle_store(p.code + n * 16, pair_nibbles(shuffle_load(b + 1)));
}

/* f16 d; int8 codes. */
static inline void stage_q8_0(place p, size_t n, const uint8_t *b)
{
    put_half(p.s->scale[n], p.row, b);
    memcpy(p.code + n * 32, b + 2, 32);
}

/* ---- 64 terms -------------------------------------------------------------------------------- */

/* Unsigned e4m3 scales of 16 terms each: their sign is not looked at, and 0x7F is zero, not NaN.
 * Codes k and k + 8 of 16 in byte k. */
static inline void stage_nvfp4(place p, size_t n, const uint8_t *b)
{
    for (size_t i = 0; i < 4; i++) {
        uint8_t scale = b[i] & 0x7F;
        p.s->scale[4 * n + i][p.row] = scale == 0x7F ? 0 : scale;
    }
    for (size_t i = 0; i < 2; i++) {
        u32x4 v = (u32x4)pair_nibbles(shuffle_load(b + 4 + 16 * i));
        shuffle_store(p.code + n * 32 + 16 * i, (u8x16)SHUFFLE(u32x4, v, v, 0, 2, 1, 3));
    }
}

/* ---- 256 terms ------------------------------------------------------------------------------- */

/* f16 d, f16 dmin, then 12 bytes of 8 scales and 8 minima of 6 bits. */
static inline void stage_k_scales(place p, size_t n, const uint8_t *b)
{
    uint32_t a[3];
    uint8_t scale[8], minimum[8];
    put_half(p.s->d[n], p.row, b);
    put_half(p.s->dmin[n], p.row, b + 2);
    memcpy(a, b + 4, sizeof a);
    const uint32_t words[4] = {
        a[0] & 0x3F3F3F3Fu,
        (a[2] & 0x0F0F0F0Fu) | (a[0] >> 2 & 0x30303030u),
        a[1] & 0x3F3F3F3Fu,
        (a[2] >> 4 & 0x0F0F0F0Fu) | (a[1] >> 2 & 0x30303030u),
    };
    memcpy(scale, words, sizeof scale);
    memcpy(minimum, words + 2, sizeof minimum);
    for (size_t i = 0; i < 8; i++) {
        p.s->scale[8 * n + i][p.row] = scale[i];
        p.s->minimum[8 * n + i][p.row] = minimum[i];
    }
}

/* Of each 64 terms, k and k + 32 in byte k of 32. */
static inline void stage_q4_k(place p, size_t n, const uint8_t *b)
{
    stage_k_scales(p, n, b);
    for (size_t i = 0; i < 4; i++) {
        u8x16 first = pair_nibbles(shuffle_load(b + 16 + 32 * i)),
              second = pair_nibbles(shuffle_load(b + 32 + 32 * i));
        uint8_t *code = p.code + n * 128 + 32 * i;
        shuffle_store(code, shuffle_low64(first, second));
        shuffle_store(code + 16, shuffle_high64(first, second));
    }
}

/* 32 bytes of the terms' fifth bits, bit 2 i and 2 i + 1 for those of the i-th 64; then as Q4_K. */
static inline void stage_q5_k(place p, size_t n, const uint8_t *b)
{
    stage_k_scales(p, n, b);
    for (size_t l = 0; l < 32; l += 16) {
        u8x16 fifth = shuffle_load(b + 16 + l);
        for (size_t i = 0; i < 4; i++, fifth >>= 2) {
            u8x16 v = shuffle_load(b + 48 + 32 * i + l);
            uint8_t *code = p.code + n * 256 + 64 * i + l;
            shuffle_store(code, (v & 0x0F) | (fifth << 4 & 0x10));
            shuffle_store(code + 32, v >> 4 | (fifth << 3 & 0x10));
        }
    }
}

/* Of each 128 terms: 64 bytes of the lower four bits, then of all the upper two; 16 int8 scales; d
 * last. */
static inline void stage_q6_k(place p, size_t n, const uint8_t *b)
{
    put_half(p.s->d[n], p.row, b + 208);
    for (size_t i = 0; i < 16; i++) p.s->scale[16 * n + i][p.row] = b[192 + i];
    for (size_t part = 0; part < 2; part++)
        for (size_t l = 0; l < 32; l += 16) {
            const uint8_t *lower = b + 64 * part + l;
            u8x16 first = shuffle_load(lower), second = shuffle_load(lower + 32),
                  upper = shuffle_load(b + 128 + 32 * part + l);
            uint8_t *code = p.code + n * 256 + 128 * part + l;
            shuffle_store(code, ((first & 0x0F) | (upper << 4 & 0x30)) - 32);
            shuffle_store(code + 32, ((second & 0x0F) | (upper << 2 & 0x30)) - 32);
            shuffle_store(code + 64, (first >> 4 | (upper & 0x30)) - 32);
            shuffle_store(code + 96, (second >> 4 | (upper >> 2 & 0x30)) - 32);
        }
}

/* ---- spans ----------------------------------------------------------------------------------- */

bool pack_is_blocks(const moe_matrix *m)
{
    return m->weights.dtype >= MOE_Q8_0 && m->weights.dtype <= MOE_GGML_NVFP4;
}

/* The blocks of one row; block is a constant in each copy. */
static inline void stage_blocks(place p, const uint8_t *src, size_t stride, size_t blocks,
                                void (*block)(place p, size_t n, const uint8_t *b))
{
    for (size_t n = 0; n < blocks; n++) block(p, n, src + n * stride);
}

static void stage_row(moe_dtype dtype, place p, const uint8_t *src, size_t stride, size_t blocks)
{
    switch (dtype) {
    case MOE_Q8_0: stage_blocks(p, src, stride, blocks, stage_q8_0); break;
    case MOE_Q4_0: stage_blocks(p, src, stride, blocks, stage_q4_0); break;
    case MOE_Q4_K: stage_blocks(p, src, stride, blocks, stage_q4_k); break;
    case MOE_Q5_K: stage_blocks(p, src, stride, blocks, stage_q5_k); break;
    case MOE_Q6_K: stage_blocks(p, src, stride, blocks, stage_q6_k); break;
    case MOE_GGML_MXFP4: stage_blocks(p, src, stride, blocks, stage_mxfp4); break;
    default: stage_blocks(p, src, stride, blocks, stage_nvfp4); break;
    }
}

/* The rows of a stage that no block fills. */
static void stage_no_rows(kernel_format f, size_t first, stage *s)
{
    size_t bytes = kernel_scale_bytes(f);
    int scale = kernel_is_mx(f) ? 127 : 0;
    if (first == KERNEL_ROWS) return;
    memset(s->code[first], 0, (KERNEL_ROWS - first) * STAGE_BYTES);
    for (size_t n = 0; n < STAGE_RUNS; n++) {
        memset(s->scale[n] + first * bytes, scale, (KERNEL_ROWS - first) * bytes);
        memset(s->minimum[n] + first, 0, KERNEL_ROWS - first);
    }
    for (size_t n = 0; n < STAGE_BLOCKS; n++) {
        memset(s->d[n] + first * sizeof(uint16_t), 0, (KERNEL_ROWS - first) * sizeof(uint16_t));
        memset(s->dmin[n] + first * sizeof(uint16_t), 0, (KERNEL_ROWS - first) * sizeof(uint16_t));
    }
}

static void write_scales(const pack_run *r, size_t half, const stage *s, size_t k, size_t n)
{
    const kernel_info *i = &kernel_formats[r->format];
    size_t first = k / i->scale_k, runs = n / i->scale_k, chunks = size_pieces(n, i->chunk);
    size_t bytes = KERNEL_ROWS * kernel_scale_bytes(r->format), d = KERNEL_ROWS * sizeof(uint16_t);
    for (size_t run = 0; run < runs; run++) {
        memcpy(pack_scale(r, half, PART_SCALE, first + run), s->scale[run], bytes);
        if (i->minima)
            memcpy(pack_scale(r, half, PART_MINIMUM, first + run), s->minimum[run], KERNEL_ROWS);
    }
    for (size_t c = 0; kernel_d_bytes(r->format, 1) > 0 && c < chunks; c++) {
        size_t run = first + c * kernel_runs(r->format);
        memcpy(pack_scale(r, half, PART_D, run), s->d[c], d);
        if (i->minima) memcpy(pack_scale(r, half, PART_DMIN, run), s->dmin[c], d);
    }
}

void pack_block_span(const pack_run *r, size_t k, size_t n, const size_t *at)
{
    stage s;
    const moe_array *w = &r->s->matrix[r->matrix].weights;
    size_t rows = r->matrix == PACK_DOWN ? r->s->axis.H : r->s->axis.I,
           block_k = moe_dtype_k(w->dtype), lines = n / kernel_line_k(r->format);
    for (size_t half = 0; half < r->halves; half++) {
        size_t row = r->row + half * KERNEL_ROWS,
               count = row < rows ? size_smaller(rows - row, KERNEL_ROWS) : 0;
        for (size_t i = 0; i < count; i++)
            stage_row(w->dtype, (place){&s, i, s.code[i]},
                      pack_element(w, r->e, row + i, k / block_k), (size_t)w->column_stride,
                      n / block_k);
        stage_no_rows(r->format, count, &s);
        pack_row_lines(s.code[0], STAGE_BYTES, r->format, lines, r->dst[half], at);
        write_scales(r, half, &s, k, n);
    }
}
