/* SPDX-License-Identifier: Apache-2.0 */
/* experts.h - packed experts that are kept: what a moe_experts is inside. */
#ifndef MOE_EXPERTS_H
#define MOE_EXPERTS_H

#include "experts_version.h"
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

/* ---- making one ------------------------------------------------------------------------------ */

/* Where things are in the block of memory that a handle and all of its own are. */
typedef struct experts_block {
    size_t uses, mid_k, panel_at, panel_format, base, bytes;
} experts_block;

/* The block of E_L experts of `panels` panels each, in `bytes` together; coded: each panel of a
 * length of its own.  False if it does not fit. */
bool experts_block_of(size_t E_L, size_t panels, bool coded, size_t bytes, experts_block *b);

/* A block in memory of m's, its tables zero, or NULL, and then the error says it.  What it holds is
 * written by who makes it: layout and kinds, tables, panels.  experts_end makes it a handle. */
moe_experts *experts_begin(const experts_block *b, const allocator *m);
void experts_end(moe_experts *x);
void experts_free(moe_experts *x);

/* ---- using one ------------------------------------------------------------------------------- */

/* Whether x is a handle of this library's layout; else the error says what it is. */
moe_status experts_check(const moe_experts *x);

/* experts_check, then counts a use of it, so that it cannot be destroyed. */
moe_status experts_enter(const moe_experts *x);
void experts_leave(const moe_experts *x);

kernel_panel experts_gate_up(const moe_experts *x, size_t e, size_t panel);
kernel_panel experts_down(const moe_experts *x, size_t e, size_t panel);

#endif
