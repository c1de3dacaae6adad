/* SPDX-License-Identifier: Apache-2.0 */
/* pack_words.c - lines from the operator's tensors of x4 words.
 *
 * A block is 8 neighbouring partitions of words of four codes; term k = 8 q + partition is at
 * position q of its word.  Rows come in runs of 8 neighbouring words, and runs without a pad are
 * taken whole. */
#include "pack_lines.h"
#include "shuffle.h"

enum { PARTITIONS = 8, RUN = 8 };

void pack_words_of(const pack_run *r, pack_words *w)
{
    const axis *a = &r->s->axis;
    for (size_t i = 0; i < r->halves * KERNEL_ROWS; i++) {
        size_t row = r->row + i;
        w->column[i / KERNEL_ROWS][i % KERNEL_ROWS] =
            r->matrix != PACK_DOWN ? axis_i(a, axis_place_of(row, a->lanes_p))
            : row < a->H           ? row
                                   : AXIS_PAD;
    }
}

/* Word 0 of a block's first partition, and the words from one partition to the next. */
static size_t block_base(const pack_run *r, size_t block, size_t *stride)
{
    const axis *a = &r->s->axis;
    bool down = r->matrix == PACK_DOWN;
    axis_place p = axis_place_of(block * KERNEL_BLOCK, down ? a->lanes_p : 128);
    *stride = down ? a->tiles_i * a->H : 2 * a->tiles_h * a->I;
    if (down) return ((r->e * a->lanes_p + p.partition) * a->tiles_i + p.tile) * a->H;
    return (((r->e * 128 + p.partition) * 2 + r->matrix) * a->tiles_h + p.tile) * a->I;
}

static size_t scale_base(const pack_run *r, size_t block)
{
    const axis *a = &r->s->axis;
    bool down = r->matrix == PACK_DOWN;
    axis_place p = axis_place_of(block * KERNEL_BLOCK, down ? a->lanes_p : 128);
    size_t b = p.partition / 8;
    if (down) return ((r->e * (a->lanes_p / 8) + b) * a->tiles_i + p.tile) * a->H;
    return (((r->e * 16 + b) * 2 + r->matrix) * a->tiles_h + p.tile) * a->I;
}

/* ---- runs of 8 rows -------------------------------------------------------------------------- */

/* out[q] nibble m = in[m] nibble q, in each 16 bits */
static inline void transpose_nibbles(u16x8 v[4])
{
    for (size_t i = 0; i < 2; i++) {
        u16x8 t = (v[i] >> 8 ^ v[i + 2]) & 0x00FFu;
        v[i + 2] ^= t;
        v[i] ^= t << 8;
    }
    for (size_t i = 0; i < 4; i += 2) {
        u16x8 t = (v[i] >> 4 ^ v[i + 1]) & 0x0F0Fu;
        v[i + 1] ^= t;
        v[i] ^= t << 4;
    }
}

/* Words of 4 bits: line q is position q.  src: 8 words of partition 0. */
static inline void run_lines4(const uint8_t *src, size_t stride, uint8_t *dst, const size_t *at)
{
    u16x8 even[4], odd[4];
    for (size_t i = 0; i < 4; i++) {
        even[i] = (u16x8)shuffle_load(src + 2 * i * stride);
        odd[i] = (u16x8)shuffle_load(src + (2 * i + 1) * stride);
    }
    transpose_nibbles(even);
    transpose_nibbles(odd);
    for (size_t q = 0; q < 4; q++) {
        shuffle_store(dst + at[q], shuffle_low16((u8x16)even[q], (u8x16)odd[q]));
        shuffle_store(dst + at[q] + 16, shuffle_high16((u8x16)even[q], (u8x16)odd[q]));
    }
}

/* out[q / 2] = the bytes at q of a and b, in pairs, of 4 rows; then those at q + 1 */
static inline void pair_bytes(u8x16 a, u8x16 b, u8x16 out[2])
{
    u8x16 low = shuffle_low8(a, b), high = shuffle_high8(a, b);
    u8x16 even = shuffle_low16(low, high), odd = shuffle_high16(low, high);
    out[0] = shuffle_low16(even, odd);
    out[1] = shuffle_high16(even, odd);
}

/* Words of 8 bits: lines 2 q and 2 q + 1 are position q of partitions 0..3 and 4..7. */
static inline void run_lines8(const uint8_t *src, size_t stride, uint8_t *dst, const size_t *at)
{
    for (size_t rows = 0; rows < 2; rows++, src += 16, dst += 16)
        for (size_t half = 0; half < 2; half++) {
            const uint8_t *s = src + 4 * half * stride;
            u8x16 first[2], last[2];
            pair_bytes(shuffle_load(s), shuffle_load(s + stride), first);
            pair_bytes(shuffle_load(s + 2 * stride), shuffle_load(s + 3 * stride), last);
            for (size_t q = 0; q < 4; q += 2) {
                shuffle_store(dst + at[2 * q + half], shuffle_low64(first[q / 2], last[q / 2]));
                shuffle_store(dst + at[2 * q + 2 + half],
                              shuffle_high64(first[q / 2], last[q / 2]));
            }
        }
}

/* ---- rows one by one ------------------------------------------------------------------------- */

static uint32_t word(const uint8_t *src, size_t i, size_t bytes)
{
    uint32_t w = 0;
    memcpy(&w, src + i * bytes, bytes);
    return w;
}

static void any_lines(const uint8_t *src, size_t stride, const size_t *column, kernel_format f,
                      uint8_t *dst, const size_t *at)
{
    size_t bits = kernel_bits(f), line_k = kernel_line_k(f);
    for (size_t j = 0; j < KERNEL_BLOCK / line_k; j++) {
        uint32_t line[KERNEL_LINE / 4] = {0};
        for (size_t k = 0; k < line_k; k++) {
            size_t partition = (j * line_k + k) % PARTITIONS, q = (j * line_k + k) / PARTITIONS;
            for (size_t i = 0; i < RUN; i++) {
                if (column[i] == AXIS_PAD) continue;
                uint32_t w = word(src + partition * stride, column[i], bits / 2);
                size_t bit = kernel_bit_at(f, i, k);
                line[bit / 32] |= (w >> q * bits & ((1u << bits) - 1)) << bit % 32;
            }
        }
        memcpy(dst + at[j], line, RUN * 4);
    }
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* Without a pad, and so neighbours. */
static bool is_whole(const size_t *column)
{
    for (size_t i = 0; i < RUN; i++)
        if (column[i] == AXIS_PAD) return false;
    return true;
}

void pack_word_lines(const pack_run *r, const pack_words *w, size_t block, const size_t *at)
{
    size_t stride, base = block_base(r, block, &stride), bytes = kernel_bits(r->format) / 2;
    const uint8_t *src = (const uint8_t *)r->s->words[r->matrix == PACK_DOWN]->data + base * bytes;
    stride *= bytes;
    for (size_t n = 0; n < r->halves; n++)
        for (size_t i = 0; i < KERNEL_ROWS; i += RUN) {
            const size_t *column = w->column[n] + i;
            uint8_t *dst = r->dst[n] + 4 * i;
            if (!is_whole(column))
                any_lines(src, stride, column, r->format, dst, at);
            else if (r->format == FORMAT_MXFP4)
                run_lines4(src + column[0] * bytes, stride, dst, at);
            else
                run_lines8(src + column[0] * bytes, stride, dst, at);
        }
}

void pack_word_scales(const pack_run *r, const pack_words *w, size_t block)
{
    const uint8_t *src =
        (const uint8_t *)r->s->word_scale[r->matrix == PACK_DOWN]->data + scale_base(r, block);
    for (size_t n = 0; n < r->halves; n++) {
        uint8_t *dst = pack_scale(r, n, PART_SCALE, block);
        for (size_t i = 0; i < KERNEL_ROWS; i++)
            if (w->column[n][i] != AXIS_PAD) dst[i] = src[w->column[n][i]];
    }
}
