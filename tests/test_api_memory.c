/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_memory.c - pointers: any element-aligned address gives the same bits and any other is
 * refused; the output may be hidden_input itself and may overlap nothing else; its buffer must
 * be large enough. */
#include "expect.h"

#include <stdio.h>
#include <stdlib.h>

static const layer_spec SPECS[] = {
    {.hidden = MOE_BF16,
     .weights = MOE_BF16,
     .T = 3,
     .H = 24,
     .I = 10,
     .E_L = 4,
     .K = 2,
     .scaling = MOE_POST_SCALE,
     .gate_up_bias = true,
     .down_bias = true,
     .scales = LAYER_ROW},
    {.hidden = MOE_F32,
     .weights = MOE_E4M3FN,
     .T = 3,
     .H = 24,
     .I = 10,
     .E_L = 4,
     .K = 2,
     .scaling = MOE_POST_SCALE,
     .eager = true,
     .index_type = MOE_I64},
    {.hidden = MOE_F16,
     .weights = MOE_F32,
     .T = 3,
     .H = 256,
     .I = 10,
     .E_L = 2,
     .E = 4,
     .K = 2,
     .place = LAYER_SBUF,
     .all_expert = true,
     .scaling = MOE_POST_SCALE,
     .rank = 1,
     .mask = true,
     .output_in_sbuf = true},
    {.hidden = MOE_BF16,
     .weights = MOE_MXFP8_X4,
     .T = 3,
     .H = 512,
     .I = 40,
     .E_L = 3,
     .K = 2,
     .place = LAYER_SBUF,
     .scaling = MOE_POST_SCALE,
     .gate_up_bias = true,
     .down_bias = true},
    {.weights = MOE_MXFP4_X4,
     .T = 3,
     .H = 512,
     .I = 40,
     .E_L = 3,
     .K = 2,
     .place = LAYER_PREQUANT,
     .all_expert = true,
     .scaling = MOE_POST_SCALE},
};

/* ---- alignment ------------------------------------------------------------------------------- */

/* What an address must be a multiple of; 16-bit words of MXFP4, 32-bit words of MXFP8. */
static size_t alignment(const moe_tensor *t)
{
    return moe_dtype_size(t->dtype);
}

/* Each tensor at each of 64 addresses, the others where they were. */
static void test_tensor_alignment(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer l;
        layer_make(&l, &SPECS[i]);
        size_t bytes;
        unsigned char *expected = layer_run(NULL, &l, &bytes);
        for (int which = 0; which < LAYER_TENSORS; which++) {
            moe_tensor *t = &l.tensor[which];
            if (l.bytes[which] == 0) continue;
            for (size_t offset = 0; offset < 64; offset++) {
                unsigned char *memory = aligned_alloc(64, (l.bytes[which] + 127) / 64 * 64);
                assert_non_null(memory);
                memcpy(memory + offset, l.data[which], l.bytes[which]);
                t->data = memory + offset;
                if (offset % alignment(t) != 0) {
                    expect_refused(&l.args, STATUS(MOE_E_ALIGN), BY_DATA,
                                   layer_tensor_name((layer_tensor)which), "0x");
                } else {
                    unsigned char *got = layer_run(NULL, &l, NULL);
                    assert_memory_equal(got, expected, bytes);
                    free(got);
                }
                free(memory);
                t->data = l.data[which];
            }
        }
        free(expected);
        layer_free(&l);
    }
}

static void test_output_alignment(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(SPECS); i++)
        for (int dtype = MOE_BF16; dtype <= MOE_F32; dtype++) {
            layer l;
            layer_make(&l, &SPECS[i]);
            l.args.output_dtype = (moe_dtype)dtype;
            size_t bytes, element = moe_dtype_size((moe_dtype)dtype);
            unsigned char *expected = layer_run(NULL, &l, &bytes);
            unsigned char *memory = aligned_alloc(64, (bytes + 191) / 64 * 64),
                          *canary = malloc(bytes + 128);
            assert_true(memory != NULL && canary != NULL);
            for (size_t offset = 0; offset < 64; offset++) {
                memset(memory, 0xA5, bytes + 128);
                memset(canary, 0xA5, bytes + 128);
                moe_status status = moe_tkg(NULL, &l.args, memory + offset, bytes);
                if (offset % element == 0)
                    memcpy(canary + offset, expected, bytes);
                else
                    assert_non_null(strstr(moe_last_error(), "output"));
                assert_int_equal(status, offset % element == 0 ? MOE_OK : MOE_E_ALIGN);
                assert_memory_equal(memory, canary, bytes + 128);
            }
            free(memory);
            free(canary);
            free(expected);
            layer_free(&l);
        }
}

/* ---- size of the output ---------------------------------------------------------------------- */

static void test_output_bytes(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer l;
        layer_make(&l, &SPECS[i]);
        size_t bytes;
        unsigned char *expected = layer_run(NULL, &l, &bytes), *got = malloc(bytes + 64),
                      *canary = malloc(bytes + 64);
        assert_true(got != NULL && canary != NULL);
        const size_t small[] = {0, 1, bytes / 2, bytes - 1},
                     large[] = {bytes, bytes + 1, bytes + 64, SIZE_MAX};
        memset(got, 0xA5, bytes + 64);
        memset(canary, 0xA5, bytes + 64);
        for (size_t n = 0; n < COUNT(small); n++) {
            char value[48];
            snprintf(value, sizeof value, "output_bytes = %zu", small[n]);
            assert_int_equal(moe_tkg(NULL, &l.args, got, small[n]), MOE_E_OVERFLOW);
            assert_non_null(strstr(moe_last_error(), value));
            assert_memory_equal(got, canary, bytes + 64);
        }
        memcpy(canary, expected, bytes);
        for (size_t n = 0; n < COUNT(large); n++) {
            memset(got, 0xA5, bytes + 64);
            assert_int_equal(moe_tkg(NULL, &l.args, got, large[n]), MOE_OK);
            assert_memory_equal(got, canary, bytes + 64);
        }
        free(got);
        free(canary);
        free(expected);
        layer_free(&l);
    }
}

/* Tensors that can be and scratch for them that cannot: known from the shapes, and nothing behind
 * the pointers is touched. */
static void test_scratch_too_large(void **state)
{
    (void)state;
    const int64_t T = INT32_MAX, H = (int64_t)1 << 29;
    static _Alignas(64) unsigned char row[64];
    void *const low = (void *)(uintptr_t)64; /* below row, which is hidden and output in one */
    moe_tensor hidden = moe_tensor_2d(row, MOE_F32, T, H);
    moe_tensor gate_up = {low, MOE_F32, MOE_LAYOUT_HBM, 4, {1, H, 2, 1}};
    moe_tensor down = {low, MOE_F32, MOE_LAYOUT_HBM, 3, {1, 1, H}};
    moe_tkg_args args = moe_tkg_args_init();
    args.hidden_input = &hidden;
    args.expert_gate_up_weights = &gate_up;
    args.expert_down_weights = &down;
    args.is_all_expert = 1;
    moe_tensor output;
    size_t bytes;
    assert_int_equal(moe_tkg_output(&args, &output, &bytes), MOE_E_OVERFLOW);
    assert_int_equal(moe_tkg(NULL, &args, row, SIZE_MAX), MOE_E_OVERFLOW);
    assert_non_null(strstr(moe_last_error(), "H = 536870912"));
}

/* ---- aliasing -------------------------------------------------------------------------------- */

/* The output may be hidden_input's memory: of every layout, as long as both have one size. */
static void test_in_place(void **state)
{
    (void)state;
    static const layer_spec specs[] = {
        {.hidden = MOE_BF16,
         .weights = MOE_BF16,
         .T = 37,
         .H = 24,
         .I = 10,
         .E_L = 4,
         .K = 2,
         .scaling = MOE_POST_SCALE},
        {.hidden = MOE_BF16,
         .weights = MOE_BF16,
         .output = MOE_F16,
         .T = 128,
         .H = 24,
         .I = 10,
         .E_L = 4,
         .K = 2},
        {.hidden = MOE_F32,
         .weights = MOE_F32,
         .T = 5,
         .H = 24,
         .I = 10,
         .E_L = 4,
         .K = 2,
         .place = LAYER_HBM_BSH},
        {.hidden = MOE_F16,
         .weights = MOE_E4M3FN,
         .T = 130,
         .H = 256,
         .I = 10,
         .E_L = 2,
         .place = LAYER_SBUF,
         .all_expert = true},
        {.hidden = MOE_F16,
         .weights = MOE_E4M3FN,
         .T = 130,
         .H = 256,
         .I = 10,
         .E_L = 2,
         .place = LAYER_SBUF,
         .all_expert = true,
         .output_in_sbuf = true},
        {.hidden = MOE_F32,
         .weights = MOE_MXFP4_X4,
         .T = 20,
         .H = 512,
         .I = 40,
         .E_L = 2,
         .K = 2,
         .place = LAYER_SBUF},
        {.hidden = MOE_F32,
         .weights = MOE_MXFP8_X4,
         .T = 20,
         .H = 512,
         .I = 40,
         .E_L = 2,
         .K = 2,
         .act_mode = MOE_ACT_EXACT},
    };
    moe_context_options options = moe_context_options_init();
    options.threads = 4;
    moe_context *context;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    for (size_t i = 0; i < COUNT(specs); i++) {
        layer l;
        layer_make(&l, &specs[i]);
        size_t bytes;
        unsigned char *expected = layer_run(NULL, &l, &bytes);
        for (int threads = 0; threads <= 1; threads++) {
            layer_fill(&l, LAYER_HIDDEN);
            assert_int_equal(bytes, l.bytes[LAYER_HIDDEN]);
            assert_int_equal(
                moe_tkg(threads ? context : NULL, &l.args, l.data[LAYER_HIDDEN], bytes), MOE_OK);
            assert_memory_equal(l.data[LAYER_HIDDEN], expected, bytes);
        }
        free(expected);
        layer_free(&l);
    }
    assert_int_equal(moe_context_destroy(context), MOE_OK);
}

/* Two pieces of one block: the tensor at a fixed place, the output at `at`; both as they were if
 * refused. */
static void overlap_case(layer *l, layer_tensor which, size_t output_bytes, size_t step)
{
    moe_tensor *t = &l->tensor[which];
    const size_t bytes = l->bytes[which], place = (output_bytes + 127) / 64 * 64,
                 room = place * 2 + bytes + 64;
    unsigned char *block = aligned_alloc(64, (room + 63) / 64 * 64), *before = malloc(room);
    assert_true(block != NULL && before != NULL);
    memset(block, 0xA5, room);
    memcpy(block + place, l->data[which], bytes);
    memcpy(before, block, room);
    t->data = block + place;
    for (size_t at = 0; at + output_bytes <= room; at += step) {
        bool apart = at + output_bytes <= place || at >= place + bytes;
        bool same = which == LAYER_HIDDEN && at == place && output_bytes == bytes;
        moe_status status = moe_tkg(NULL, &l->args, block + at, output_bytes);
        if (apart || same) {
            assert_int_equal(status, MOE_OK);
            if (!same) assert_memory_equal(block + place, before + place, bytes);
        } else {
            assert_int_equal(status, MOE_E_ALIAS);
            assert_non_null(strstr(moe_last_error(), layer_tensor_name(which)));
            assert_memory_equal(block, before, room);
        }
        memcpy(block, before, room);
    }
    t->data = l->data[which];
    free(block);
    free(before);
}

static void test_overlaps(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer l;
        layer_make(&l, &SPECS[i]);
        for (int dtype = MOE_BF16; dtype <= MOE_F32; dtype += MOE_F32 - MOE_BF16) {
            l.args.output_dtype = (moe_dtype)dtype;
            moe_tensor shape;
            size_t bytes;
            assert_int_equal(moe_tkg_output(&l.args, &shape, &bytes), MOE_OK);
            size_t element = moe_dtype_size(shape.dtype);
            for (int which = 0; which < LAYER_TENSORS; which++)
                if (l.bytes[which] > 0)
                    overlap_case(&l, (layer_tensor)which, bytes,
                                 l.bytes[which] < 256 && bytes < 512 ? element : 64);
        }
        layer_free(&l);
    }
}

/* A tensor that a call does not read may lie anywhere. */
static void test_unread_tensors(void **state)
{
    (void)state;
    layer l;
    layer_make(&l, &(layer_spec){.hidden = MOE_F32,
                                 .weights = MOE_F32,
                                 .T = 2,
                                 .H = 8,
                                 .I = 4,
                                 .E_L = 2,
                                 .all_expert = true});
    const layer_tensor unread[] = {LAYER_AFFINITIES, LAYER_INDEX, LAYER_RANK};
    for (size_t i = 0; i < COUNT(unread); i++) layer_add(&l, unread[i]);
    size_t bytes;
    unsigned char *expected = layer_run(NULL, &l, &bytes), *got = malloc(bytes);
    assert_non_null(got);
    for (size_t i = 0; i < COUNT(unread); i++) {
        l.tensor[unread[i]].data = got + 1; /* not even aligned */
        assert_int_equal(moe_tkg(NULL, &l.args, got, bytes), MOE_OK);
        assert_memory_equal(got, expected, bytes);
    }
    free(got);
    free(expected);
    layer_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensor_alignment), cmocka_unit_test(test_output_alignment),
        cmocka_unit_test(test_output_bytes),     cmocka_unit_test(test_scratch_too_large),
        cmocka_unit_test(test_in_place),         cmocka_unit_test(test_overlaps),
        cmocka_unit_test(test_unread_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
