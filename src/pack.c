/* SPDX-License-Identifier: Apache-2.0 */
/* pack.c - from the operator's tensors to panels: the only writer of the packed layout (kernel.h).
 *
 * Every source is read as src[base(k) + column(row)]: the layouts of the operator differ only in these two.  Codes are moved, never
 * decoded. */
#include "pack.h"

#include "axis.h"
#include "checked.h"

/* A matrix as a panel sees it: KERNEL_ROWS columns of the source, AXIS_PAD for a row that has none. */
typedef struct columns {
    size_t at[KERNEL_ROWS];
} columns;

/* Where the k-th term lies: element base + column, bits shift and up of it. */
typedef struct term {
    size_t base;
    unsigned shift;
} term;

typedef struct source {
    const problem *p;
    size_t e, g; /* expert; 0 gate, 1 up */
    bool down;
} source;

static term source_term(const source *s, size_t k)
{
    const problem *p = s->p;
    if (!p->mx) {
        size_t base = s->down ? (s->e * p->I + k) * p->H : ((s->e * p->H + k) * 2 + s->g) * p->I;
        return (term){base, 0};
    }
    unsigned bits = (unsigned)kernel_bits(s->down ? p->down : p->gate_up);
    axis_place a = axis_place_of(k, s->down ? p->lanes_p : 128);
    size_t base = s->down ? ((s->e * p->lanes_p + a.partition) * p->tiles_i + a.tile) * p->H
                          : (((s->e * 128 + a.partition) * 2 + s->g) * p->tiles_h + a.tile) * p->I;
    return (term){base, (unsigned)a.q * bits};
}

/* Base of the scale bytes of the block whose first term is k. */
static size_t source_scale(const source *s, size_t k)
{
    const problem *p = s->p;
    axis_place a = axis_place_of(k, s->down ? p->lanes_p : 128);
    size_t b = a.partition / 8;
    if (s->down) return ((s->e * (p->lanes_p / 8) + b) * p->tiles_i + a.tile) * p->H;
    return (((s->e * 16 + b) * 2 + s->g) * p->tiles_h + a.tile) * p->I;
}

/* Rows 16 panel .. of the intermediate are columns i of gate and up; those of the output columns h of down. */
static columns gate_up_columns(const problem *p, size_t panel)
{
    columns c;
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        size_t row = panel * KERNEL_ROWS + r;
        if (p->mx)
            c.at[r] = axis_i(p, axis_place_of(row, p->lanes_p));
        else
            c.at[r] = row < p->I ? row : AXIS_PAD;
    }
    return c;
}

static columns down_columns(const problem *p, size_t panel)
{
    columns c;
    for (size_t r = 0; r < KERNEL_ROWS; r++) {
        size_t row = panel * KERNEL_ROWS + r;
        c.at[r] = row < p->H ? row : AXIS_PAD;
    }
    return c;
}

/* ---- lines ----------------------------------------------------------------------------------------------------------- */

/* The code of bits bits at element i of src; x4: elements are words of four codes. */
static inline uint32_t load(const void *src, size_t i, unsigned bits, bool x4, unsigned shift)
{
    unsigned width = x4 ? 4 * bits : bits;
    uint32_t word = width == 8    ? ((const uint8_t *)src)[i]
                    : width == 16 ? ((const uint16_t *)src)[i]
                                  : ((const uint32_t *)src)[i];
    return bits == 32 ? word : word >> shift & ((1u << bits) - 1);
}

/* Where term k lies in the 32 bits that a row has in a line. */
static inline unsigned place(size_t k, unsigned bits)
{
    if (bits == 4) return (unsigned)(k & 1) * 16 + (unsigned)(k >> 1 & 3) * 4;
    return (unsigned)k * bits % 32;
}

/* Terms [k0, k1) of one matrix, and a zero term if they are odd in number, as lines at dst, dst + stride, ... */
static inline void write_lines(const source *s, const void *src, const columns *c, size_t k0,
                               size_t k1, unsigned bits, bool x4, uint8_t *dst, size_t stride)
{
    const size_t line_k = 32 / bits, even = k1 + (k1 - k0) % 2;
    for (size_t k = k0; k < even; dst += stride) {
        uint32_t line[KERNEL_ROWS] = {0};
        for (size_t n = 0; n < line_k; n++, k++) {
            if (k >= k1) continue;
            term t = source_term(s, k);
            unsigned at = place(n, bits);
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                if (c->at[r] != AXIS_PAD)
                    line[r] |= load(src, t.base + c->at[r], bits, x4, t.shift) << at;
        }
        memcpy(dst, line, sizeof line);
    }
}

static void write_format(const source *s, const void *src, const columns *c, size_t k0, size_t k1,
                         kernel_format f, uint8_t *dst, size_t stride)
{
    switch (f) {
    case FORMAT_F32: write_lines(s, src, c, k0, k1, 32, false, dst, stride); break;
    case FORMAT_BF16:
    case FORMAT_F16: write_lines(s, src, c, k0, k1, 16, false, dst, stride); break;
    case FORMAT_E4M3_IEEE:
    case FORMAT_E4M3FN: write_lines(s, src, c, k0, k1, 8, false, dst, stride); break;
    case FORMAT_MXFP8: write_lines(s, src, c, k0, k1, 8, true, dst, stride); break;
    default: write_lines(s, src, c, k0, k1, 4, true, dst, stride); break;
    }
}

/* The stream of a panel of `matrices` sources that differ in g alone. */
static void write_panel(source s, const moe_tensor *weights, const moe_tensor *scales,
                        const columns *c, kernel_format f, size_t matrices, size_t k,
                        uint8_t *panel)
{
    if (!kernel_is_mx(f)) {
        for (s.g = 0; s.g < matrices; s.g++)
            write_format(&s, weights->data, c, 0, k, f, panel + s.g * KERNEL_LINE,
                         matrices * KERNEL_LINE);
        return;
    }
    size_t blocks = k / KERNEL_BLOCK, group = kernel_group(matrices);
    for (size_t n = 0; n < blocks; n++) {
        uint8_t *lines = panel + kernel_block_at(f, matrices, n);
        uint8_t *scale = panel + kernel_scale_at(f, matrices, n);
        if (n % group == 0) memset(scale, 127, KERNEL_LINE);
        for (s.g = 0; s.g < matrices; s.g++) {
            write_format(&s, weights->data, c, n * KERNEL_BLOCK, (n + 1) * KERNEL_BLOCK, f,
                         lines + s.g * KERNEL_LINE, matrices * KERNEL_LINE);
            const uint8_t *bytes =
                (const uint8_t *)scales->data + source_scale(&s, n * KERNEL_BLOCK);
            for (size_t r = 0; r < KERNEL_ROWS; r++)
                if (c->at[r] != AXIS_PAD) scale[s.g * KERNEL_ROWS + r] = bytes[c->at[r]];
        }
    }
}

/* ---- f32 rows -------------------------------------------------------------------------------------------------------- */

static bool has_row_scale(const problem *p)
{
    return !p->mx && p->args->expert_gate_up_weights_scale != NULL;
}

/* One row of `count` floats: element base + column, or base if the scale is static; zero for padding. */
static float *write_row(float *dst, const moe_tensor *t, size_t base, const columns *c, bool one)
{
    for (size_t r = 0; r < KERNEL_ROWS; r++)
        dst[r] = c->at[r] == AXIS_PAD ? 0.0f : problem_float(t, base + (one ? 0 : c->at[r]));
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

void pack_down(const problem *p, const pack_layout *l, size_t e, size_t panel, uint8_t *expert)
{
    const moe_tkg_args *a = p->args;
    const moe_tensor *scale = a->expert_down_weights_scale;
    columns c = down_columns(p, panel);
    uint8_t *dst = expert + l->down_at + panel * l->down_bytes;
    write_panel((source){p, e, 0, true}, a->expert_down_weights, scale, &c, p->down, 1,
                p->mx ? pack_mid_k(p, l, e) : p->I, dst);
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

/* ---- sizes ----------------------------------------------------------------------------------------------------------- */

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
