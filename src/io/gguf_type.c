/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_type.c - the types of tensors: names, blocks, sizes. */
#include "checked.h"
#include "io/gguf_file.h"

/* By ggml's numbers; those that are missing were removed and mean nothing any more. */
/* clang-format off */
static const struct { const char *name; uint16_t k, bytes; } types[] = {
    [GG_F32] = {"F32", 1, 4},       [GG_F16] = {"F16", 1, 2},       [GG_BF16] = {"BF16", 1, 2},
    [28] = {"F64", 1, 8},
    [24] = {"I8", 1, 1},            [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},           [27] = {"I64", 1, 8},
    [GG_Q4_0] = {"Q4_0", 32, 18},   [3] = {"Q4_1", 32, 20},
    [6] = {"Q5_0", 32, 22},         [7] = {"Q5_1", 32, 24},
    [GG_Q8_0] = {"Q8_0", 32, 34},   [9] = {"Q8_1", 32, 36},
    [10] = {"Q2_K", 256, 84},       [11] = {"Q3_K", 256, 110},      [GG_Q4_K] = {"Q4_K", 256, 144},
    [GG_Q5_K] = {"Q5_K", 256, 176}, [GG_Q6_K] = {"Q6_K", 256, 210}, [15] = {"Q8_K", 256, 292},
    [16] = {"IQ2_XXS", 256, 66},    [17] = {"IQ2_XS", 256, 74},     [22] = {"IQ2_S", 256, 82},
    [18] = {"IQ3_XXS", 256, 98},    [21] = {"IQ3_S", 256, 110},
    [19] = {"IQ1_S", 256, 50},      [29] = {"IQ1_M", 256, 56},
    [20] = {"IQ4_NL", 32, 18},      [23] = {"IQ4_XS", 256, 136},
    [34] = {"TQ1_0", 256, 54},      [35] = {"TQ2_0", 256, 66},
    [GG_MXFP4] = {"MXFP4", 32, 17}, [GG_NVFP4] = {"NVFP4", 64, 36}, [41] = {"Q1_0", 128, 18},
};
/* clang-format on */

enum { TYPES = sizeof types / sizeof *types };

const char *gg_type_name(uint32_t type)
{
    return type < TYPES ? types[type].name : NULL;
}

void gg_type_block(uint32_t type, size_t *k, size_t *bytes)
{
    *k = type < TYPES ? types[type].k : 0;
    *bytes = type < TYPES ? types[type].bytes : 0;
}

bool gg_tensor_bytes(uint32_t type, const uint64_t ne[GG_MAX_RANK], size_t *bytes)
{
    size_t k, block, elements;
    int64_t shape[GG_MAX_RANK];
    gg_type_block(type, &k, &block);
    for (int i = 0; i < GG_MAX_RANK; i++) {
        if (ne[i] > INT64_MAX) return false;
        shape[i] = (int64_t)ne[i];
    }
    if (k == 0 || ne[0] % k != 0 || !checked_shape(shape, GG_MAX_RANK, 1, &elements)) return false;
    shape[0] /= (int64_t)k;
    return checked_shape(shape, GG_MAX_RANK, block, bytes);
}
