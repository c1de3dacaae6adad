/* SPDX-License-Identifier: Apache-2.0 */
/* pack.c - from the operator's tensors to panels: the only writer of the packed layout
 * (kernel.h).
 *
 * Every source is read as src[base(k) + column(row)]: the layouts of the operator differ only in
 * these two.  Codes are moved, never decoded. */
#include "pack.h"

#include "axis.h"
#include "checked.h"

/* A matrix as a panel sees it: the column of the source for each row, with mask 0 (and column 0)
 * for a row that has none. */
typedef struct columns {
    size_t at[KERNEL_ROWS];
    uint32_t mask[KERNEL_ROWS];
} columns;

typedef struct source {
    const problem *p;
    size_t e, g; /* expert; 0 gate, 1 up */
    bool down;
} source;

/* Element (term k, column 0) of plain weights. */
static size_t plain_base(const source *s, size_t k)
{
    const problem *p = s->p;
    return s->down ? (s->e * p->I + k) * p->H : ((s->e * p->H + k) * 2 + s->g) * p->I;
}

/* Word (partition of a block's first term, column 0) of MX weights, and the words from one
 * partition to the next. */
static size_t mx_base(const source *s, axis_place a, size_t *stride)
{
    const problem *p = s->p;
    *stride = s->down ? p->tiles_i * p->H : 2 * p->tiles_h * p->I;
    if (s->down) return ((s->e * p->lanes_p + a.partition) * p->tiles_i + a.tile) * p->H;
    return (((s->e * 128 + a.partition) * 2 + s->g) * p->tiles_h + a.tile) * p->I;
}

/* Base of the scale bytes of a block. */
static size_t scale_base(const source *s, axis_place a)
{
    const problem *p = s->p;
    size_t b = a.partition / 8;
    if (s->down) return ((s->e * (p->lanes_p / 8) + b) * p->tiles_i + a.tile) * p->H;
    return (((s->e * 16 + b) * 2 + s->g) * p->tiles_h + a.tile) * p->I;
}

static void set_column(columns *c, size_t r, size_t at)
{
    c->at[r] = at == AXIS_PAD ? 0 : at;
    c->mask[r] = at == AXIS_PAD ? 0 : UINT32_MAX;
}

/* Rows 16 panel .. of the intermediate are columns i of gate and up; those of the output columns
 * h of down. */
static columns gate_up_columns(const problem *p, size_t panel)
{
    columns c;
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        size_t row = panel * KERNEL_ROWS + r;
        size_t i = row < p->I ? row : AXIS_PAD;
        set_column(&c, r, p->mx ? axis_i(p, axis_place_of(row, p->lanes_p)) : i);
    }
    return c;
}

static columns down_columns(const problem *p, size_t panel)
{
    columns c;
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        size_t row = panel * KERNEL_ROWS + r;
        set_column(&c, r, row < p->H ? row : AXIS_PAD);
    }
    return c;
}

/* ---- lines ----------------------------------------------------------------------------------- */

static inline uint32_t load(const void *src, size_t i, unsigned bits)
{
    return bits == 8    ? ((const uint8_t *)src)[i]
           : bits == 16 ? ((const uint16_t *)src)[i]
                        : ((const uint32_t *)src)[i];
}

/* Where term k lies in the 32 bits that a row has in a line. */
static inline unsigned place(size_t k, unsigned bits)
{
    return bits == 32 ? 0 : (unsigned)(k & 1) * 16 + (unsigned)(k >> 1) * bits;
}

/* The k terms of one plain matrix, and a zero term if they are odd in number, as lines at dst,
 * dst + stride, ... */
static inline void write_plain(const source *s, const void *src, const columns *c, size_t k,
                               unsigned bits, uint8_t *dst, size_t stride)
{
    for (size_t first = 0; first < k + k % 2; first += 32 / bits, dst += stride) {
        uint32_t line[KERNEL_ROWS] = {0};
        for (size_t n = 0; n < 32 / bits && first + n < k; n++) {
            size_t base = plain_base(s, first + n);
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                line[r] |= (load(src, base + c->at[r], bits) & c->mask[r]) << place(n, bits);
        }
        memcpy(dst, line, sizeof line);
    }
}

/* One block of one MX matrix: 8 partitions of words of four codes.  Term k = 8 q + partition is
 * at position q of its word. */
static inline void write_block(const source *s, const void *src, const columns *c, axis_place first,
                               unsigned bits, uint8_t *dst, size_t stride)
{
    size_t words, base = mx_base(s, first, &words);
    uint32_t word[8][KERNEL_ROWS];
    for (size_t n = 0; n < 8; n++, base += words)
        for (size_t r = 0; r < KERNEL_ROWS; r++)
            word[n][r] = load(src, base + c->at[r], 4 * bits) & c->mask[r];
    const size_t line_k = 32 / bits;
    for (size_t k = 0; k < KERNEL_BLOCK; k += line_k, dst += stride) {
        uint32_t line[KERNEL_ROWS] = {0};
        unsigned shift = (unsigned)(k / 8) * bits;
        for (size_t n = 0; n < line_k; n++)
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                line[r] |= (word[k % 8 + n][r] >> shift & ((1u << bits) - 1)) << place(n, bits);
        memcpy(dst, line, sizeof line);
    }
}

static void write_plain_matrix(const source *s, const void *src, const columns *c, size_t k,
                               kernel_format f, uint8_t *dst, size_t stride)
{
    switch (kernel_bits(f)) {
    case 8: write_plain(s, src, c, k, 8, dst, stride); break;
    case 16: write_plain(s, src, c, k, 16, dst, stride); break;
    default: write_plain(s, src, c, k, 32, dst, stride); break;
    }
}

/* The stream of a panel of `matrices` sources that differ in g alone. */
static void write_panel(source s, const moe_tensor *weights, const moe_tensor *scales,
                        const columns *c, kernel_format f, size_t matrices, size_t k,
                        uint8_t *panel)
{
    size_t stride = matrices * KERNEL_LINE;
    if (!kernel_is_mx(f)) {
        for (s.g = 0; s.g < matrices; s.g++)
            write_plain_matrix(&s, weights->data, c, k, f, panel + s.g * KERNEL_LINE, stride);
        return;
    }
    for (size_t n = 0; n < k / KERNEL_BLOCK; n++) {
        axis_place first = axis_place_of(n * KERNEL_BLOCK, s.down ? s.p->lanes_p : 128);
        uint8_t *scale = panel + kernel_scale_at(f, matrices, n);
        if (n % kernel_group(matrices) == 0) memset(scale, 127, KERNEL_LINE);
        for (s.g = 0; s.g < matrices; s.g++, scale += KERNEL_ROWS) {
            uint8_t *lines = panel + kernel_block_at(f, matrices, n) + s.g * KERNEL_LINE;
            if (f == FORMAT_MXFP4)
                write_block(&s, weights->data, c, first, 4, lines, stride);
            else
                write_block(&s, weights->data, c, first, 8, lines, stride);
            const uint8_t *bytes = (const uint8_t *)scales->data + scale_base(&s, first);
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                if (c->mask[r] != 0) scale[r] = bytes[c->at[r]];
        }
    }
}

/* ---- f32 rows -------------------------------------------------------------------------------- */

static bool has_row_scale(const problem *p)
{
    return !p->mx && p->args->expert_gate_up_weights_scale != NULL;
}

/* One row of `count` floats: element base + column, or base if the scale is static; zero for
 * padding. */
static float *write_row(float *dst, const moe_tensor *t, size_t base, const columns *c, bool one)
{
    for (size_t r = 0; r < KERNEL_ROWS; r++)
        dst[r] = c->mask[r] == 0 ? 0.0f : problem_float(t, base + (one ? 0 : c->at[r]));
    return dst + KERNEL_ROWS;
}

/* The bias of every lane, pads included. */
static float *write_lane_bias(float *dst, const problem *p, size_t e, size_t g, size_t panel)
{
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        axis_place a = axis_place_of(panel * KERNEL_ROWS + r, p->lanes_p);
        size_t at = (((e * p->lanes_p + a.partition) * 2 + g) * p->tiles_i + a.tile) * 4 + a.q;
        dst[r] = problem_float(p->args->expert_gate_up_bias, at);
    }
    return dst + KERNEL_ROWS;
}

void pack_gate_up(const problem *p, const pack_layout *l, size_t e, size_t panel, uint8_t *expert)
{
    const moe_tkg_args *a = p->args;
    const moe_tensor *scale = a->expert_gate_up_weights_scale;
    columns c = gate_up_columns(p, panel);
    uint8_t *dst = expert + panel * l->gate_up_bytes;
    write_panel((source){p, e, 0, false}, a->expert_gate_up_weights, scale, &c, p->gate_up, 2, p->H,
                dst);
    float *row = (float *)(void *)(dst + l->gate_up_rows_at);
    bool one = has_row_scale(p) && scale->shape[2] == 1;
    for (size_t g = 0; has_row_scale(p) && g < 2; g++)
        row = write_row(row, scale, (e * 2 + g) * (one ? 1 : p->I), &c, one);
    for (size_t g = 0; a->expert_gate_up_bias != NULL && g < 2; g++)
        row = p->mx ? write_lane_bias(row, p, e, g, panel)
                    : write_row(row, a->expert_gate_up_bias, (e * 2 + g) * p->I, &c, false);
}

void pack_down(const problem *p, const pack_layout *l, size_t e, size_t panel, size_t mid_k,
               uint8_t *expert)
{
    const moe_tkg_args *a = p->args;
    const moe_tensor *scale = a->expert_down_weights_scale;
    columns c = down_columns(p, panel);
    uint8_t *dst = expert + l->down_at + panel * l->down_bytes;
    write_panel((source){p, e, 0, true}, a->expert_down_weights, scale, &c, p->down, 1,
                p->mx ? mid_k : p->I, dst);
    float *row = (float *)(void *)(dst + l->down_rows_at);
    bool one = has_row_scale(p) && scale->shape[1] == 1;
    if (has_row_scale(p)) row = write_row(row, scale, e * (one ? 1 : p->H), &c, one);
    if (a->expert_down_bias != NULL) write_row(row, a->expert_down_bias, e * p->H, &c, false);
}

static kernel_rows rows(const problem *p, const moe_tensor *bias, const float *first,
                        size_t matrices, size_t g)
{
    kernel_rows r = {NULL, NULL};
    if (has_row_scale(p)) {
        r.scale = first + g * KERNEL_ROWS;
        first += matrices * KERNEL_ROWS;
    }
    if (bias != NULL) r.bias = first + g * KERNEL_ROWS;
    return r;
}

kernel_rows pack_gate_rows(const problem *p, const pack_layout *l, const uint8_t *panel)
{
    const float *first = (const float *)(const void *)(panel + l->gate_up_rows_at);
    return rows(p, p->args->expert_gate_up_bias, first, 2, 0);
}

kernel_rows pack_up_rows(const problem *p, const pack_layout *l, const uint8_t *panel)
{
    const float *first = (const float *)(const void *)(panel + l->gate_up_rows_at);
    return rows(p, p->args->expert_gate_up_bias, first, 2, 1);
}

kernel_rows pack_down_rows(const problem *p, const pack_layout *l, const uint8_t *panel)
{
    const float *first = (const float *)(const void *)(panel + l->down_rows_at);
    return rows(p, p->args->expert_down_bias, first, 1, 0);
}

uint32_t pack_pad_rows(const problem *p, size_t panel)
{
    uint32_t pads = 0;
    if (!p->mx) return 0;
    columns c = gate_up_columns(p, panel);
    for (size_t r = 0; r < KERNEL_ROWS; r++) pads |= (c.mask[r] == 0 ? 1u : 0u) << r;
    return pads;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

size_t pack_mid_k(const problem *p, const pack_layout *l, size_t e)
{
    size_t k = l->mid_k;
    if (!p->mx) return k;
    const moe_tensor *w = p->args->expert_down_weights;
    bool fp4 = p->down == FORMAT_MXFP4;
    size_t width = axis_tile_width(p, p->tiles_i - 1);
    for (; k > 0; k -= KERNEL_BLOCK) {
        axis_place a = axis_place_of(k - KERNEL_BLOCK, p->lanes_p);
        if (a.tile != p->tiles_i - 1 || a.partition < width) return k;
        for (size_t partition = a.partition; partition < a.partition + 8; partition++) {
            size_t base = ((e * p->lanes_p + partition) * p->tiles_i + a.tile) * p->H;
            for (size_t h = 0; h < p->H; h++) {
                uint32_t word = fp4 ? ((const uint16_t *)w->data)[base + h] & 0x7777u
                                    : ((const uint32_t *)w->data)[base + h] & 0x7F7F7F7Fu;
                if (word != 0) return k;
            }
        }
    }
    return k;
}

/* A panel has at most 2 * 64 bytes for each k, so that its bytes fit. */
#define LARGEST_K ((size_t)PTRDIFF_MAX >> 10)

bool pack_layout_of(const problem *p, pack_layout *l)
{
    if (p->H > LARGEST_K || p->I > LARGEST_K) return false;
    size_t line = KERNEL_ROWS * sizeof(float), scales = has_row_scale(p) ? 1 : 0;
    size_t gate_up_rows = 2 * (scales + (p->args->expert_gate_up_bias != NULL));
    size_t down_rows = scales + (p->args->expert_down_bias != NULL);
    l->hidden_k = p->H + p->H % 2;
    l->mid_k = p->mx ? p->tiles_i * p->lanes_p * 4 : p->I + p->I % 2;
    l->gate_up_panels = (l->mid_k + KERNEL_ROWS - 1) / KERNEL_ROWS;
    l->down_panels = (p->H + KERNEL_ROWS - 1) / KERNEL_ROWS;
    l->gate_up_rows_at = kernel_panel_bytes(p->gate_up, 2, l->hidden_k);
    l->down_rows_at = kernel_panel_bytes(p->down, 1, l->mid_k);
    l->gate_up_bytes = l->gate_up_rows_at + gate_up_rows * line;
    l->down_bytes = l->down_rows_at + down_rows * line;
    size_t down;
    return checked_mul(l->gate_up_panels, l->gate_up_bytes, &l->down_at) &&
           checked_mul(l->down_panels, l->down_bytes, &down) &&
           checked_add(l->down_at, down, &l->bytes) && l->bytes <= PTRDIFF_MAX;
}
