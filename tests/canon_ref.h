/* SPDX-License-Identifier: Apache-2.0 */
/* canon_ref.h - canon 1 written down a second time, from docs/numerics.md alone.
 *
 * Shares with the library only src/numeric.h (conversions and elementary functions, which are the
 * document's own text) and the public header: no packing, no tasks, no skipping of work; every
 * element is found by the formulas of the operator's specification.  The library must equal it
 * bit for bit. */
#ifndef MOE_CANON_REF_H
#define MOE_CANON_REF_H

#include <moe_tkg.h>

/* Writes to output what moe_tkg(context, args, output, ...) writes, for args that moe_tkg
 * accepts. */
void canon_run(const moe_tkg_args *args, void *output);

/* The same with the experts of `rows` (row-major matrices, of elements or MX) packed; args has no
 * weights.  An MX block is then 32 consecutive k, and the default mode EXACT. */
void canon_run_rows(const moe_tkg_args *args, const moe_experts_args *rows, void *output);

/* Sets the canonical floating-point environment (nearest even, subnormals are zero, no traps) for
 * the calling thread and returns what to hand to canon_leave. */
unsigned long canon_enter(void);
void canon_leave(unsigned long saved);

#endif
