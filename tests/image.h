/* SPDX-License-Identifier: Apache-2.0 */
/* image.h - images of packed experts in memory, and calls to compare. */
#ifndef MOE_TEST_IMAGE_H
#define MOE_TEST_IMAGE_H

#include <moe_tkg.h>

typedef struct image {
    unsigned char *data; /* of malloc, exactly `bytes` */
    size_t bytes;
} image;

/* What moe_experts_write gives; aborts if it refuses. */
image image_of(const moe_experts *experts);

/* moe_experts_read of these bytes; a read past them is MOE_E_READ. */
moe_status image_read(moe_context *context, const unsigned char *data, size_t bytes,
                      moe_experts **experts);

/* f32 rows of three tokens through two experts each, in a block of malloc; NULL if the library
 * refuses with MOE_E_UNSUPPORTED (aborts on all else).  Tokens are random numbers of `seed`. */
float *image_run(moe_context *context, const moe_experts *experts, moe_activation activation,
                 moe_act_mode mode, uint64_t seed, size_t *bytes);

#endif
