/* SPDX-License-Identifier: Apache-2.0 */
/* paths.h - the two ways from a case's tensors to its output, which give the same bits. */
#ifndef MOE_PATHS_H
#define MOE_PATHS_H

#include <moe_tkg.h>
#include <stdbool.h>

typedef enum compute_path {
    PATH_RAW,    /* the call packs the experts that it reads */
    PATH_PACKED, /* all experts are packed first, and kept for the call */
    PATH_BOTH    /* of verify: one after the other */
} compute_path;

const char *path_name(compute_path path); /* "raw", "packed", "both" */

/* "raw" or "packed"; false if text is neither. */
bool path_from_name(const char *text, compute_path *path);

/* The weights, scales and biases of a call, to be packed; the call with packed experts in their
 * place. */
moe_experts_args path_experts_args(const moe_tkg_args *args);
moe_tkg_args path_with_experts(const moe_tkg_args *args, const moe_experts *experts);

/* case_compute by one of the two. */
moe_status path_compute(compute_path path, moe_context *context, const moe_tkg_args *args,
                        moe_tensor *output, size_t *bytes);

#endif
