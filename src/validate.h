/* SPDX-License-Identifier: Apache-2.0 */
/* validate.h - the parts of problem_shape(). */
#ifndef MOE_VALIDATE_H
#define MOE_VALIDATE_H

#include "problem.h"

/* Every tensor alone: required ones are there, enumerators known, element type and layout such
 * as its parameter takes, rank and dimensions sane, bytes that fit. */
moe_status validate_tensors(const moe_tkg_args *args);

/* The tensors together, each fine alone: fills the dimensions, kinds and formats of *p, whose
 * modes are set. */
moe_status validate_shapes(const moe_tkg_args *args, problem *p);

#endif
