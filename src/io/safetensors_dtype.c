/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors_dtype.c - the element types: names, widths, sizes of tensors. */
#include "checked.h"
#include "io/safetensors.h"

/* clang-format off */
static const struct { const char *name; size_t bits; } dtypes[ST_DTYPE_COUNT] = {
    [ST_BOOL] = {"BOOL", 8},
    [ST_U8] = {"U8", 8},     [ST_I8] = {"I8", 8},
    [ST_I16] = {"I16", 16},  [ST_U16] = {"U16", 16},
    [ST_F16] = {"F16", 16},  [ST_BF16] = {"BF16", 16},
    [ST_I32] = {"I32", 32},  [ST_U32] = {"U32", 32},  [ST_F32] = {"F32", 32},
    [ST_F64] = {"F64", 64},  [ST_I64] = {"I64", 64},  [ST_U64] = {"U64", 64},
    [ST_C64] = {"C64", 64},
    [ST_F8_E4M3] = {"F8_E4M3", 8},         [ST_F8_E5M2] = {"F8_E5M2", 8},
    [ST_F8_E8M0] = {"F8_E8M0", 8},
    [ST_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8}, [ST_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [ST_F4] = {"F4", 4},
    [ST_F6_E2M3] = {"F6_E2M3", 6},         [ST_F6_E3M2] = {"F6_E3M2", 6},
};
/* clang-format on */

static bool is_dtype(st_dtype dtype)
{
    return (unsigned)dtype < ST_DTYPE_COUNT;
}

const char *st_dtype_name(st_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].name : NULL;
}

size_t st_dtype_bits(st_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].bits : 0;
}

bool st_shape_bytes(st_dtype dtype, const int64_t *shape, int rank, size_t *bytes)
{
    size_t bits;
    if (!is_dtype(dtype) || !checked_shape(shape, (size_t)rank, dtypes[dtype].bits, &bits))
        return false;
    *bytes = bits / 8;
    return bits % 8 == 0;
}
