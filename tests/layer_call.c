/* SPDX-License-Identifier: Apache-2.0 */
#include "layer_call.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <moe_tkg_io.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

whole read_whole(const char *path, const char *name)
{
    io_error error;
    st_file *file;
    if (st_open(path, &file, &error) != IO_OK) fail_msg("%s", error.text);
    const st_tensor *t = st_find(file, name);
    if (!t) fail_msg("%s has no %s", path, name);
    whole w = {.tensor = *t, .data = malloc(t->bytes + 1)};
    assert_int_equal(st_read(file, t, w.data, &error), IO_OK);
    st_close(file);
    w.tensor.name = NULL;
    return w;
}

/* ---- what the library gives ------------------------------------------------------------------ */

/* To the nearest, ties to even, by comparing the two neighbours. */
static uint16_t nearest_bf16(float value)
{
    uint32_t bits, up;
    float low, high;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0xffff0000u;
    up = bits + 0x10000u;
    memcpy(&low, &bits, sizeof low);
    memcpy(&high, &up, sizeof high);
    double below = fabs((double)value - (double)low), above = fabs((double)high - (double)value);
    bool takes_high = above < below || (above == below && (up >> 16 & 1) == 0);
    return (uint16_t)((takes_high ? up : bits) >> 16);
}

static void convert(void *data, size_t n, moe_dtype dtype)
{
    if (dtype == MOE_F32) return;
    for (size_t i = 0; i < n; i++) {
        float value;
        memcpy(&value, (char *)data + 4 * i, sizeof value);
        uint16_t half = nearest_bf16(value);
        memcpy((char *)data + 2 * i, &half, sizeof half);
    }
}

static moe_layer *load(const char *path, int64_t layer, moe_block_args *args, moe_layer_info *info)
{
    moe_model *model;
    moe_layer *loaded = NULL;
    *info = (moe_layer_info){.struct_size = sizeof *info};
    if (moe_model_open(path, NULL, &model) != MOE_OK ||
        moe_model_load(model, layer, NULL, NULL, &loaded) != MOE_OK)
        fail_msg("%s", moe_io_last_error());
    moe_model_close(model);
    assert_int_equal(moe_layer_args(loaded, args), MOE_OK);
    assert_int_equal(moe_layer_describe(loaded, info), MOE_OK);
    return loaded;
}

void *layer_compute(const char *model, int64_t layer, const char *path, const wanted *w,
                    size_t *bytes)
{
    moe_block_args args;
    moe_layer_info info;
    moe_layer *loaded = load(model, layer, &args, &info);
    whole hidden = read_whole(path, "hidden"), ids = {0}, weights = {0};
    if (w->experts_only) ids = read_whole(path, "topk_ids");
    if (w->experts_only) weights = read_whole(path, "topk_weights");
    int64_t T = hidden.tensor.shape[0], H = hidden.tensor.shape[1], K = info.K;
    convert(hidden.data, (size_t)(T * H), w->hidden);
    size_t row = moe_dtype_size(w->output) * (size_t)H;
    size_t hidden_row = moe_dtype_size(w->hidden) * (size_t)H;
    char *output = malloc((size_t)T * row + 1);
    args.experts.output_dtype = w->output;
    args.experts.act_mode = w->act;
    for (int64_t t = 0; t < T; t++) {
        char *at = output + (size_t)t * row, *from = (char *)hidden.data + (size_t)t * hidden_row;
        moe_tensor x = moe_tensor_2d(from, w->hidden, 1, H), index, affinity;
        args.experts.hidden_input = &x;
        if (w->experts_only) {
            index = moe_tensor_2d((int32_t *)ids.data + t * K, MOE_I32, 1, K);
            affinity = moe_tensor_2d((float *)weights.data + t * K, MOE_F32, 1, K);
            args.experts.expert_index = &index;
            args.experts.expert_affinities_eager = &affinity;
        }
        moe_status status = w->experts_only ? moe_tkg(NULL, &args.experts, at, row)
                                            : moe_block(NULL, &args, at, row);
        if (status != MOE_OK) fail_msg("%s", moe_last_error());
    }
    assert_int_equal(moe_layer_free(loaded), MOE_OK);
    free(hidden.data);
    free(ids.data);
    free(weights.data);
    *bytes = (size_t)T * row;
    return output;
}
