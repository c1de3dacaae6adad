/* SPDX-License-Identifier: Apache-2.0 */
/* model_bound.h - how far a layer of a checkpoint, computed in f32 from f32 input, may be from the
 * result in real numbers: the tight bound of docs/bounds.md for every output, from the weights as they
 * are in the files.
 *
 * The depth of a sum is taken as its number of terms and a few more, which no order of summation that
 * docs/numerics.md has exceeds. */
#ifndef MOE_TEST_MODEL_BOUND_H
#define MOE_TEST_MODEL_BOUND_H

#include "fixture.h"
#include "io/model.h"

typedef struct model_bounds {
    double *experts, *block; /* [T, H] */
} model_bounds;

/* Of layer i of the model, for the case.  block is NULL where the router is not this library's. */
void model_bounds_make(const moe_model *model, int64_t i, const fixture_case *c, model_bounds *b);
void model_bounds_free(model_bounds *b);

/* Fails the test unless all T * H results lie within their bounds, and these are small enough to see a
 * mistake. */
void model_within(const char *what, const fixture_case *c, const float *got, const double *expected,
                  const double *bound);

#endif
