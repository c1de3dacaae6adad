/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_tensor.h - number formats and the elements of tensors, straight from their definitions.
 *
 * All values are float64, and as the operator sees its operands: what is below 2^-126 is zero. */
#ifndef MOE_ORACLE_TENSOR_H
#define MOE_ORACLE_TENSOR_H

#include <moe_tkg.h>

#include <stdbool.h>

#define ORACLE_MAX_FLOAT 0x1.fffffep+127 /* the largest finite f32 */
#define ORACLE_MIN_FLOAT 0x1p-126        /* the smallest normal one */

/* bf16, f16, f32, either e4m3, e8m0; of an x4 dtype one of the four codes.  NaN for any other. */
double oracle_decode(moe_dtype dtype, uint32_t code);
double oracle_stored(moe_dtype dtype, uint32_t code); /* as it is: subnormals too */

/* x rounded to 24 significant bits, or as dtype has them, to nearest, ties to even; too large:
 * infinite.  oracle_f32 makes zero of what is then below 2^-126, as every f32 operation does;
 * oracle_round keeps subnormals. */
double oracle_f32(double x);
double oracle_round(double x, moe_dtype dtype);

/* Half of the distance between two neighbours in dtype, at x. */
double oracle_half_unit(double x, moe_dtype dtype);

/* x, or 0 if |x| < 2^-126. */
double oracle_flush(double x);

/* Element n of a tensor: a number, an integer; of an x4 dtype code q of word n. */
double oracle_at(const moe_tensor *t, size_t n);
double oracle_stored_at(const moe_tensor *t, size_t n); /* the same, subnormals too */
int64_t oracle_integer_at(const moe_tensor *t, size_t n);
double oracle_code_at(const moe_tensor *t, size_t n, size_t q);

/* For runs of neighbours: the values of all codes of a format of up to 16 bits, computed once. */
typedef struct oracle_decoder {
    moe_dtype dtype;
    double *table; /* NULL for f32 */
} oracle_decoder;

bool oracle_decoder_make(oracle_decoder *d, moe_dtype dtype); /* false: no memory */
void oracle_decoder_free(oracle_decoder *d);

/* row[c] = element first + c, of an x4 dtype its code q.  Returns whether all are finite. */
bool oracle_decode_row(const oracle_decoder *d, const moe_tensor *t, size_t first, size_t n,
                       size_t q, double *row);

bool oracle_is_float(const moe_tensor *t);
bool oracle_is_integer(const moe_tensor *t);
bool oracle_is_mx(const moe_tensor *t);

/* Whether t is given, has data, exactly these dimensions, and a size that memory can have. */
bool oracle_has_shape(const moe_tensor *t, size_t rank, const size_t *dims);

#endif
