/* SPDX-License-Identifier: Apache-2.0 */
/* random_layer.h - random small layers of every kind that the operator takes, and properties that
 * must hold for all.
 *
 * Layer v of a kind is the same everywhere; neighbouring v go through all hidden types and
 * numerics modes, the rest is drawn. MOE_SEED=n in the environment gives other layers,
 * MOE_EXHAUSTIVE=1 a hundred times as many, MOE_QUICK=1 half of them: one for each numerics mode,
 * and all of INT8, which one kind alone has. */
#ifndef MOE_TEST_RANDOM_LAYER_H
#define MOE_TEST_RANDOM_LAYER_H

#include "expect.h"

enum { RANDOM_KINDS = 13 };

layer_spec random_layer(size_t kind, unsigned v);

/* An entry of a table of cmocka tests: property, a void function of a layer_spec, holds for
 * random layers of every kind. */
#define RANDOM_LAYER_TEST(property)                                                                \
    {                                                                                              \
        .name = #property, .test_func = random_layer_each, .initial_state = &(random_property)     \
        {                                                                                          \
            property                                                                               \
        }                                                                                          \
    }
typedef void (*random_property)(layer_spec);
void random_layer_each(void **state);

/* Fails, naming the layer of the property that runs and what, unless the bytes are equal; frees
 * got. */
void random_expect_bits(const void *expected, void *got, size_t bytes, const char *what);

/* The same, for what l gives on context with these experts packed. */
void random_expect_packed(const void *expected, moe_context *context, const layer *l,
                          const moe_experts *experts, size_t bytes, const char *what);

/* The same, for what l gives on context, as it is and then with its experts packed. */
void random_expect_run(const void *expected, moe_context *context, const layer *l, size_t bytes,
                       const char *what);

#endif
