/* SPDX-License-Identifier: Apache-2.0 */
/* pack.h - experts' weights, scales and biases as panels (kernel.h). */
#ifndef MOE_PACK_H
#define MOE_PACK_H

#include "axis.h"

/* What is packed, checked: the weights of a layer in one of their descriptions. */
typedef struct pack_source {
    kernel_format gate_up, down; /* of the elements; never FORMAT_BF12 */
    bool ungated;                /* experts without a gate: gate_up is of up alone */
    size_t E_L;
    axis axis;
    /* axis.strided: the operator's MX tensors of x4 words, [0] gate and up, [1] down; no bias:
     * NULL. */
    const moe_tensor *words[2], *word_scale[2], *word_bias[2];
    moe_matrix matrix[3]; /* else: gate (unless ungated), up, down */
} pack_source;

/* Where an expert's panels lie in its memory; the same for every expert of a layer.  A panel is
 * its stream of lines, then the f32 rows that there are: gate scale, up scale, gate bias, up
 * bias; or, of neighbouring rows, their scale and their bias, as many rows as the panel has. */
typedef struct pack_layout {
    kernel_format gate_up, down;
    bool ungated; /* experts without a gate: gate_up panels are of up alone */
    size_t H;
    size_t hidden_k; /* k of the gate and up products: H, padded as kernel_panel.k is */
    /* k of the down product: I padded likewise, or all lanes; one expert may have fewer */
    size_t mid_k;
    size_t gate_up_panels; /* pack_gate_up_panels(mid_k) */
    size_t down_panels;    /* ceil(H / (2 * KERNEL_ROWS)) */
    /* which f32 rows there are */
    bool gate_up_scale, down_scale, gate_up_bias, down_bias;
    size_t gate_up_bytes; /* of one whole panel with its rows */
    size_t down_bytes;    /* of one whole panel with its rows */
    size_t down_at;       /* offset of the first down panel */
    size_t bytes;         /* of one expert */
} pack_layout;

/* False if a size does not fit. */
bool pack_layout_of(const pack_source *s, pack_layout *l);

/* The sizes of *l from its formats, whether there is a gate, and what rows there are. */
bool pack_layout_sizes(const axis *a, pack_layout *l);

/* Panels that make mid_k rows of the intermediate. */
size_t pack_gate_up_panels(const pack_layout *l, size_t mid_k);

/* Halves of a panel, and of `count` panels, how many from the first on can be one run: at most
 * PACK_RUN, with the same number of halves. */
size_t pack_halves(const pack_layout *l, bool down, size_t panel);
size_t pack_run_length(const pack_layout *l, bool down, size_t first, size_t count);

/* k of expert e's down product and rows of its intermediate: trailing lane blocks of pads with
 * zero down weights are left out. */
size_t pack_mid_k(const pack_source *s, const pack_layout *l, size_t e);

/* What that is if all of them are. */
size_t pack_least_mid_k(const axis *a, const pack_layout *l);

/* Fill the panels [first, first + count) of expert e; expert: its memory, l->bytes at
 * KERNEL_ALIGN.  Neighbouring panels may share lines of the source, which are then read once:
 * PACK_RUN of them are a good count. */
enum { PACK_RUN = 8 };
void pack_gate_up(const pack_source *s, const pack_layout *l, size_t e, size_t first, size_t count,
                  uint8_t *expert);
void pack_down(const pack_source *s, const pack_layout *l, size_t e, size_t first, size_t count,
               size_t mid_k, uint8_t *expert);

/* Bytes of the f32 rows of a panel. */
size_t pack_rows_bytes(const pack_layout *l, bool down, size_t halves);

/* Panels of one packed expert, as kernels take them. */
kernel_panel pack_gate_up_panel(const pack_layout *l, const uint8_t *expert, size_t panel);
kernel_panel pack_down_panel(const pack_layout *l, const uint8_t *expert, size_t panel,
                             size_t mid_k);

/* Bit r < rows (at most 32): row first + r of the intermediate is a pad lane, or past I. */
uint32_t pack_pad_rows(const axis *a, size_t first, size_t rows);

#endif
