/* SPDX-License-Identifier: Apache-2.0 */
/* pack.h - one expert's weights, scales and biases as panels (kernel.h). */
#ifndef MOE_PACK_H
#define MOE_PACK_H

#include "problem.h"

/* Where an expert's panels lie in its memory; the same for every expert of a call.  A panel is
 * its stream of lines, then the f32 rows that the call has: gate scale, up scale, gate bias, up
 * bias; down scale, down bias. */
typedef struct pack_layout {
    size_t hidden_k; /* k of the gate and up products: H, padded to even */
    /* k of the down product: I padded to even, or all lanes; one expert may have fewer */
    size_t mid_k;
    size_t gate_up_panels; /* ceil(mid_k / KERNEL_ROWS) */
    size_t down_panels;    /* ceil(H / KERNEL_ROWS) */
    size_t gate_up_bytes;  /* of one panel with its rows */
    size_t down_bytes;
    size_t gate_up_rows_at; /* offset of the f32 rows in a panel */
    size_t down_rows_at;
    size_t down_at; /* offset of the first down panel */
    size_t bytes;   /* of one expert */
} pack_layout;

/* False if a size does not fit. */
bool pack_layout_of(const problem *p, pack_layout *l);

/* k of expert e's down product and rows of its intermediate: trailing lane blocks of pads with
 * zero down weights are left out. */
size_t pack_mid_k(const problem *p, const pack_layout *l, size_t e);

/* Fill panel number `panel` of expert e; expert: its memory, l->bytes at KERNEL_ALIGN. */
void pack_gate_up(const problem *p, const pack_layout *l, size_t e, size_t panel, uint8_t *expert);
void pack_down(const problem *p, const pack_layout *l, size_t e, size_t panel, size_t mid_k,
               uint8_t *expert);

/* Bit r: row r of gate_up panel number `panel` is a pad lane. */
uint32_t pack_pad_rows(const problem *p, size_t panel);

/* The f32 rows of a packed panel: KERNEL_ROWS floats each, NULL where the call has none. */
kernel_rows pack_gate_rows(const problem *p, const pack_layout *l, const uint8_t *panel);
kernel_rows pack_up_rows(const problem *p, const pack_layout *l, const uint8_t *panel);
kernel_rows pack_down_rows(const problem *p, const pack_layout *l, const uint8_t *panel);

#endif
