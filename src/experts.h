/* SPDX-License-Identifier: Apache-2.0 */
/* experts.h - packed experts that are kept: what a moe_experts is inside. */
#ifndef MOE_EXPERTS_H
#define MOE_EXPERTS_H

#include "memory.h"
#include "pack.h"

#include <stdatomic.h>

struct moe_experts {
    uint64_t mark; /* says that this is one, of the layout that this library reads */
    size_t bytes;  /* of this block and everything in it */
    allocator memory;
    /* calls that use it, negative once it is being destroyed; written through a const handle */
    atomic_int *uses;
    size_t E_L;
    axis axis;
    pack_layout layout;
    moe_dtype gate_up, down; /* of the elements that were given */
    moe_packing packing;
    size_t expert_bytes; /* that a call reads for one expert; the mean */
    const size_t *mid_k; /* of each expert */
    /* MOE_PACK_LOSSLESS: where each panel begins, from base, and its format; [E_L][gate_up_panels +
     * down_panels].  Else NULL: expert e at base + e * layout.bytes. */
    const size_t *panel_at;
    const uint8_t *panel_format;
    const uint8_t *base;
};

/* Whether x is a handle of this library's layout; else the error says what it is. */
moe_status experts_check(const moe_experts *x);

/* experts_check, then counts a use of it, so that it cannot be destroyed. */
moe_status experts_enter(const moe_experts *x);
void experts_leave(const moe_experts *x);

kernel_panel experts_gate_up(const moe_experts *x, size_t e, size_t panel);
kernel_panel experts_down(const moe_experts *x, size_t e, size_t panel);

#endif
