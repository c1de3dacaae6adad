/* SPDX-License-Identifier: Apache-2.0 */
/* validate.h - the parts of problem_shape(), and the description of experts that are packed. */
#ifndef MOE_VALIDATE_H
#define MOE_VALIDATE_H

#include "problem.h"

#define VALIDATE_BIT(dtype) (1u << (dtype))
enum {
    VALIDATE_FLOATS = VALIDATE_BIT(MOE_BF16) | VALIDATE_BIT(MOE_F16) | VALIDATE_BIT(MOE_F32),
    VALIDATE_X4 = VALIDATE_BIT(MOE_MXFP4_X4) | VALIDATE_BIT(MOE_MXFP8_X4),
    VALIDATE_LAST_DTYPE = MOE_DTYPE_COUNT - 1
};

/* The tensors of an expert's parameters, by the operator's names. */
typedef struct operator_weights {
    const moe_tensor *gate_up, *down, *gate_up_bias, *down_bias, *gate_up_scale, *down_scale;
} operator_weights;

/* Every tensor alone: required ones are there, enumerators known, element type and layout such
 * as its parameter takes, rank and dimensions sane, bytes that fit. */
moe_status validate_tensors(const moe_tkg_args *args);
moe_status validate_operator_tensors(const operator_weights *w);

/* The tensors together, each fine alone: fills the dimensions, kinds and formats of *p, whose
 * modes are set. */
moe_status validate_shapes(const moe_tkg_args *args, problem *p);

/* An expert's parameters together, each fine alone: fills *s.  H: what it has to be, 0 if the
 * tensors say it. */
moe_status validate_operator_weights(const operator_weights *w, size_t H, pack_source *s);

/* args->experts, if given, is a handle, and nothing that is packed in it is given beside it. */
moe_status validate_handle(const moe_tkg_args *args);

/* Fills *p, whose T and H are hidden_input's, with what args->experts says. */
moe_status validate_packed(const moe_tkg_args *args, problem *p);

/* What is to be packed: all that can be checked without reading data fills *s, then what the
 * pointers point to. */
moe_status validate_experts(const moe_experts_args *args, pack_source *s);
moe_status validate_experts_data(const moe_experts_args *args, const pack_source *s);

/* Its row-major description.  strides: false where they are not said yet.  Fills *s. */
moe_status validate_matrices(const moe_experts_args *args, bool strides, pack_source *s);
moe_status validate_matrices_data(const moe_experts_args *args, size_t E_L);

/* No array says where it lies. */
moe_status validate_matrices_no_data(const moe_experts_args *args);

/* The first array of the row-major description that is given, by its name in text[VALIDATE_TEXT];
 * false if none is. */
bool validate_given_array(const moe_experts_args *args, char *text);

/* What a matrix with sound element types and scales is packed to. */
kernel_format validate_matrix_format(const moe_matrix *m);

/* What fetch said of count experts: as args describes them, in places that can be read.  Fills *s. */
moe_status validate_fetched(const moe_experts_args *args, size_t count,
                            const moe_experts_args *part, pack_source *s);

/* One tensor that is read: there, aligned, and apart from the output [out, out + out_bytes), or
 * with in_place the same. */
moe_status validate_pointer(const char *name, const moe_tensor *t, uintptr_t out, size_t out_bytes,
                            bool in_place);

/* What any tensor must be: known enumerators, an element type of the set, a sane rank, dimensions
 * whose bytes fit. */
moe_status validate_tensor(const char *name, const moe_tensor *t, unsigned dtypes, bool sbuf);

/* T and H of rows [T, H] or [B, S, H]; then, that they are sizes which are taken. */
moe_status validate_rows(const char *name, const moe_tensor *x, size_t *T, size_t *H);
moe_status validate_rows_sizes(const char *name, size_t T, size_t H);

/* The bytes [at, at + bytes) are apart from the output. */
moe_status validate_apart(const char *name, const void *at, size_t bytes, uintptr_t out,
                          size_t out_bytes);

/* ---- words of the validate_*.c --------------------------------------------------------------- */

enum { VALIDATE_TEXT = 160 };

/* "[2, 3]" in text[VALIDATE_TEXT]. */
const char *validate_shape_text(const int64_t *shape, int rank, char *text);

/* t's shape must be want[0..rank); meaning spells it in letters. */
moe_status validate_shape_is(const char *name, const moe_tensor *t, int rank, const int64_t *want,
                             const char *meaning);

moe_status validate_at_least_one(const char *name, const char *dimension, int64_t value);

/* value is an enumerator in [first, last]. */
moe_status validate_enumerator(const char *name, int value, int first, int last);

static inline bool validate_is_x4(moe_dtype dtype)
{
    return (VALIDATE_BIT(dtype) & VALIDATE_X4) != 0;
}

#endif
