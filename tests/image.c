/* SPDX-License-Identifier: Apache-2.0 */
#include "image.h"

#include "layer.h"

#include <stdio.h>
#include <stdlib.h>

static void *must(void *memory)
{
    if (memory == NULL) abort();
    return memory;
}

static moe_status append(void *user, const void *data, size_t bytes)
{
    image *i = user;
    i->data = must(realloc(i->data, i->bytes + bytes));
    memcpy(i->data + i->bytes, data, bytes);
    i->bytes += bytes;
    return MOE_OK;
}

image image_of(const moe_experts *experts)
{
    image i = {NULL, 0};
    if (moe_experts_write(experts, append, &i) != MOE_OK) {
        fprintf(stderr, "image_of: %s\n", moe_last_error());
        abort();
    }
    return i;
}

typedef struct cursor {
    const unsigned char *at;
    size_t left;
} cursor;

static moe_status take(void *user, void *data, size_t bytes)
{
    cursor *c = user;
    if (bytes > c->left) return MOE_E_READ;
    memcpy(data, c->at, bytes);
    c->at += bytes;
    c->left -= bytes;
    return MOE_OK;
}

moe_status image_read(moe_context *context, const unsigned char *data, size_t bytes,
                      moe_experts **experts)
{
    cursor c = {data, bytes};
    return moe_experts_read(context, take, &c, bytes, experts);
}

float *image_run(moe_context *context, const moe_experts *experts, moe_activation activation,
                 moe_act_mode mode, uint64_t seed, size_t *bytes)
{
    enum { T = 3, K = 2 };
    moe_experts_info info = {.struct_size = sizeof info};
    if (moe_experts_describe(experts, &info) != MOE_OK) abort();
    size_t values = T * (size_t)info.H;
    uint16_t *x = must(malloc(values * sizeof *x));
    for (size_t i = 0; i < values; i++) {
        uint64_t r = layer_random(seed, 1, i); /* bf16 in [2^-7, 2) of either sign */
        x[i] = (uint16_t)((r & 0x807F) | (120 + (r >> 20 & 7)) << 7);
    }
    int32_t ids[T * K];
    for (size_t i = 0; i < T * K; i++)
        ids[i] = (int32_t)(layer_random(seed, 2, i) % (uint64_t)info.E_L);
    moe_tensor hidden = moe_tensor_2d(x, MOE_BF16, T, info.H),
               index = moe_tensor_2d(ids, MOE_I32, T, K);
    moe_tkg_args args = moe_tkg_args_init();
    args.hidden_input = &hidden;
    args.expert_index = &index;
    args.output_dtype = MOE_F32;
    args.experts = experts;
    args.activation_fn = activation;
    args.act_mode = mode;
    *bytes = values * sizeof(float);
    float *y = must(malloc(*bytes));
    memset(y, 0xA5, *bytes);
    moe_status s = moe_tkg(context, &args, y, *bytes);
    free(x);
    if (s == MOE_OK) return y;
    if (s != MOE_E_UNSUPPORTED) {
        fprintf(stderr, "image_run: %s\n", moe_last_error());
        abort();
    }
    free(y);
    return NULL;
}
