/* SPDX-License-Identifier: Apache-2.0 */
/* shapes.h - the MoE layers of known models: sizes and activation, by name. */
#ifndef MOE_SHAPES_H
#define MOE_SHAPES_H

#include <moe_tkg.h>
#include <stdbool.h>
#include <stdint.h>

enum { SHAPE_MAX_SIZE = 1 << 20, SHAPE_MAX_E = 1 << 14, SHAPE_NAME = 64 };

/* How a model gets m from g and u. */
typedef enum shape_activation {
    SHAPE_SILU,
    SHAPE_SILU_CLAMPED, /* g at most 10, u within +-10 */
    SHAPE_SWIGLU_OAI,   /* alpha 1.702, u + 1; g at most 7, u within +-7 */
    SHAPE_GELU_TANH,
    SHAPE_RELU2, /* max(g, 0)^2 and no u: the operator has no such thing */
} shape_activation;

typedef struct shape {
    char name[SHAPE_NAME];
    int64_t H, I, E, K;
    shape_activation activation;
    bool bias, no_gate;
} shape;

/* Number i of the table; false past the last.  aliases: other names it goes by, "" if none. */
bool shape_at(size_t i, shape *s, const char **aliases);

/* text: a name of the table (case and punctuation ignored), or "H,I,E,K".  False if it is neither;
 * message then says why, with names that are near. */
bool shape_parse(const char *text, shape *s, char *message, size_t size);

/* Whether the operator has the shape's activation. */
bool shape_is_supported(const shape *s);

/* "silu", "silu, limit 10", ... */
const char *shape_activation_name(shape_activation a);

/* Sets activation, its numbers and the clamps of args. */
void shape_set_activation(const shape *s, moe_tkg_args *args);

#endif
