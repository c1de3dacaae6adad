/* SPDX-License-Identifier: Apache-2.0 */
/* image_head.h - the head of an image of packed experts (experts_image.c). */
#ifndef MOE_IMAGE_HEAD_H
#define MOE_IMAGE_HEAD_H

#include "experts.h"

typedef struct image_head {
    char name[8];
    uint32_t order, version, canon, word; /* word: sizeof(size_t) */
    uint64_t bytes;                       /* of the image */
    uint64_t E_L, H, I, lanes_p;
    uint32_t gate_up, down, gate_up_dtype, down_dtype, packing, flags;
    /* what follows from the above, but for panel_bytes with lossless packing */
    uint64_t tiles_h, tiles_i, hidden_k, mid_k, gate_up_panels, down_panels;
    uint64_t gate_up_bytes, down_bytes, down_at, expert_bytes, panel_bytes;
} image_head;

/* Of x's E_L, axis, layout and kinds. */
image_head image_head_of(const moe_experts *x, size_t panel_bytes);

/* Judges the head of an image of `bytes` bytes.  *said: what it says, and nothing else in it. */
moe_status image_head_check(const image_head *h, size_t bytes, moe_experts *said);

/* MOE_E_FORMAT: a rule of the image is broken at a byte of it. */
moe_status image_damaged(size_t byte, const char *rule);

static inline size_t image_panels(const moe_experts *x)
{
    return x->layout.gate_up_panels + x->layout.down_panels;
}

static inline bool image_is_coded(const moe_experts *x)
{
    return x->packing == MOE_PACK_LOSSLESS;
}

/* Fits if the experts' bytes do: a panel has 64 or more. */
static inline size_t image_tables(const moe_experts *x)
{
    size_t panels = image_is_coded(x) ? x->E_L * image_panels(x) : 0;
    return (x->E_L + panels) * sizeof(size_t) + panels;
}

#endif
