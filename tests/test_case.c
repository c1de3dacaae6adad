/* SPDX-License-Identifier: Apache-2.0 */
/* test_case.c - the case loader: what a file may say, what makes it unreadable, and what goes on
 * to the operator. */
#define _GNU_SOURCE 1

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../tools/case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The smallest case: T = 1, H = 2, I = 1, one expert, all bf16. */
#define HIDDEN "\"hidden_input\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[0,4]}"
#define GATE_UP                                                                                    \
    "\"expert_gate_up_weights\":{\"dtype\":\"BF16\",\"shape\":[1,2,2,1],\"data_offsets\":[4,12]}"
#define DOWN                                                                                       \
    "\"expert_down_weights\":{\"dtype\":\"BF16\",\"shape\":[1,1,2],\"data_offsets\":[12,16]}"
#define TENSORS HIDDEN "," GATE_UP "," DOWN

enum { TENSOR_BYTES = 16 };

/* Loads a file of this header, less its braces, and `bytes` bytes of data, byte i being i. */
static io_status load(moe_case *c, io_error *error, const char *header, size_t bytes)
{
    size_t length = strlen(header) + 2;
    uint8_t *file = malloc(8 + length + bytes);
    assert_non_null(file);
    for (size_t i = 0; i < 8; i++) file[i] = (uint8_t)(length >> 8 * i);
    file[8] = '{';
    memcpy(file + 9, header, length - 2);
    file[8 + length - 1] = '}';
    for (size_t i = 0; i < bytes; i++) file[8 + length + i] = (uint8_t)i;
    io_status status = case_load_memory(file, 8 + length + bytes, c, error);
    free(file); /* the case keeps copies */
    return status;
}

/* The smallest case with these metadata (pairs, with a comma before them) besides is_all_expert. */
static io_status load_with(moe_case *c, io_error *error, const char *metadata)
{
    char header[2048];
    snprintf(header, sizeof header, "\"__metadata__\":{\"is_all_expert\":\"1\"%s},%s", metadata,
             TENSORS);
    return load(c, error, header, TENSOR_BYTES);
}

static void expect_unreadable_header(const char *header, size_t bytes, const char *reason)
{
    moe_case c;
    io_error error;
    assert_int_equal(load(&c, &error, header, bytes), IO_E_FORMAT);
    if (!strstr(error.text, reason)) fail_msg("\"%s\" does not say \"%s\"", error.text, reason);
    case_free(&c);
}

static void expect_unreadable(const char *metadata, const char *reason)
{
    char header[2048];
    snprintf(header, sizeof header, "\"__metadata__\":{\"is_all_expert\":\"1\"%s},%s", metadata,
             TENSORS);
    expect_unreadable_header(header, TENSOR_BYTES, reason);
}

/* ---- what is read ---------------------------------------------------------------------------- */

static void test_defaults(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(load_with(&c, &error, ""), IO_OK);
    moe_tkg_args none = moe_tkg_args_init(), args = c.args;
    assert_ptr_equal(args.hidden_input, &c.tensor[0]);
    assert_int_equal(args.is_all_expert, 1);
    args.hidden_input = args.expert_gate_up_weights = args.expert_down_weights = NULL;
    args.is_all_expert = 0;
    assert_memory_equal(&args, &none, sizeof none);
    assert_null(c.expected);
    assert_true(isnan(c.atol) && isnan(c.rtol_tight) && isnan(c.rtol_strict) &&
                isnan(c.rtol_upstream));
    assert_string_equal(c.foreign, "");
    case_free(&c);
}

static void test_every_scalar(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(
        load_with(
            &c, &error,
            ",\"mask_unselected_experts\":\"1\",\"expert_affinities_scaling_mode\":\"POST_SCALE\","
            "\"activation_fn\":\"swiglu\",\"output_dtype\":\"fp16\","
            "\"gate_clamp_upper_limit\":\"7.0\","
            "\"gate_clamp_lower_limit\":\"-0\",\"up_clamp_upper_limit\":\"1e-3\","
            "\"up_clamp_lower_limit\":\"-inf\",\"output_in_sbuf\":\"1\","
            "\"is_all_expert_dynamic\":\"1\","
            "\"block_size\":\"-8\",\"act_mode\":\"int8\",\"swiglu_alpha\":\"1.702\","
            "\"swiglu_up_offset\":\"nan\",\"skip_invalid_experts\":\"1\",\"input_in_sbuf\":\"1\","
            "\"atol\":\"0\",\"rtol_tight\":\"1e-5\",\"rtol_strict\":\"0.01\","
            "\"rtol_upstream\":\"5e-2\""),
        IO_OK);
    const moe_tkg_args *a = &c.args;
    assert_int_equal(a->mask_unselected_experts, 1);
    assert_int_equal(a->expert_affinities_scaling_mode, MOE_POST_SCALE);
    assert_int_equal(a->activation_fn, MOE_SWIGLU);
    assert_int_equal(a->output_dtype, MOE_F16);
    assert_true(a->gate_clamp_upper_limit.given && a->gate_clamp_upper_limit.value == 7.0f);
    assert_true(a->gate_clamp_lower_limit.given && signbit(a->gate_clamp_lower_limit.value));
    assert_true(a->up_clamp_upper_limit.given && a->up_clamp_upper_limit.value == 1e-3f);
    assert_true(a->up_clamp_lower_limit.given && isinf(a->up_clamp_lower_limit.value));
    assert_int_equal(a->output_in_sbuf, 1);
    assert_int_equal(a->is_all_expert_dynamic, 1);
    assert_true(a->block_size.given && a->block_size.value == -8);
    assert_int_equal(a->act_mode, MOE_ACT_INT8);
    assert_true(a->swiglu_alpha.given && a->swiglu_alpha.value == 1.702f);
    assert_true(a->swiglu_up_offset.given && isnan(a->swiglu_up_offset.value));
    assert_int_equal(a->skip_invalid_experts, 1);
    assert_int_equal(a->hidden_input->layout, MOE_LAYOUT_SBUF);
    assert_int_equal(a->expert_down_weights->layout, MOE_LAYOUT_HBM);
    assert_true(c.atol == 0 && c.rtol_tight == 1e-5 && c.rtol_strict == 0.01 &&
                c.rtol_upstream == 5e-2);
    case_free(&c);
}

static void test_tensors_are_aligned_copies(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(load_with(&c, &error, ""), IO_OK);
    const moe_tensor *w = c.args.expert_gate_up_weights;
    assert_int_equal(w->dtype, MOE_BF16);
    assert_int_equal(w->rank, 4);
    assert_true(w->shape[0] == 1 && w->shape[1] == 2 && w->shape[2] == 2 && w->shape[3] == 1);
    assert_int_equal((uintptr_t)w->data % 64, 0);
    for (size_t i = 0; i < 8; i++) assert_int_equal(((const uint8_t *)w->data)[i], 4 + i);
    assert_int_equal(c.bytes[1], 8);
    case_free(&c);
}

static void test_ignored(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(
        load_with(&c, &error,
                  ",\"T\":\"many\",\"H\":\"-1\",\"I\":\"\",\"E\":\"x\",\"E_L\":\"y\",\"K\":\"z\","
                  "\"quantization\":\"NONE\",\"dtype.expert_index\":\"nonsense\",\"dtype.\":\"\""),
        IO_OK);
    assert_string_equal(c.foreign, "");
    case_free(&c);
}

/* ---- element types --------------------------------------------------------------------------- */

/* Loads the smallest case with one more tensor [n] at the end, stored as `stored`, and says what
 * it became. */
static moe_dtype dtype_of(const char *name, const char *stored, size_t bytes, const char *said)
{
    moe_case c;
    io_error error;
    char header[2048], key[128] = "";
    if (said) snprintf(key, sizeof key, ",\"dtype.%s\":\"%s\"", name, said);
    snprintf(
        header, sizeof header,
        "\"__metadata__\":{\"is_all_expert\":\"1\"%s},%s,\"%s\":{\"dtype\":\"%s\",\"shape\":[2],"
        "\"data_offsets\":[16,%zu]}",
        key, TENSORS, name, stored, 16 + bytes);
    io_status status = load(&c, &error, header, TENSOR_BYTES + bytes);
    moe_dtype dtype = MOE_DTYPE_NONE; /* unreadable */
    for (size_t i = 3; status == IO_OK && i < CASE_MAX_TENSORS; i++)
        if (c.tensor[i].rank) dtype = c.tensor[i].dtype; /* the data of a refused call stay away */
    assert_int_equal((int)dtype == CASE_FOREIGN, c.foreign[0] != '\0');
    case_free(&c);
    return dtype;
}

static void test_stored_types(void **state)
{
    (void)state;
    const char *bias = "expert_down_bias", *scale = "hidden_input_scale";
    assert_int_equal(dtype_of(bias, "BF16", 4, NULL), MOE_BF16);
    assert_int_equal(dtype_of(bias, "F16", 4, NULL), MOE_F16);
    assert_int_equal(dtype_of(bias, "F32", 8, NULL), MOE_F32);
    assert_int_equal(dtype_of(bias, "F8_E4M3", 2, NULL), MOE_E4M3FN);
    assert_int_equal(dtype_of(scale, "F8_E8M0", 2, NULL), MOE_E8M0);
    assert_int_equal(dtype_of(scale, "U8", 2, NULL), MOE_E8M0);
    assert_int_equal(dtype_of(bias, "U8", 2, NULL), CASE_FOREIGN);
    assert_int_equal(dtype_of("expert_index", "I32", 8, NULL), MOE_I32);
    assert_int_equal(dtype_of("expert_index", "U32", 8, NULL), MOE_U32);
    assert_int_equal(dtype_of("expert_index", "I64", 16, NULL), MOE_I64);
    assert_int_equal(dtype_of("expert_affinities", "F64", 16, NULL), CASE_FOREIGN);
    assert_int_equal(dtype_of("expert_affinities", "F4", 1, NULL), CASE_FOREIGN);
}

static void test_said_types(void **state)
{
    (void)state;
    const char *bias = "expert_down_bias";
    assert_int_equal(dtype_of(bias, "U8", 2, "fp8_e4m3"), MOE_E4M3_IEEE);
    assert_int_equal(dtype_of(bias, "U8", 2, "e8m0"), MOE_E8M0);
    assert_int_equal(dtype_of(bias, "U16", 4, "mxfp4_x4"), MOE_MXFP4_X4);
    assert_int_equal(dtype_of(bias, "U32", 8, "mxfp8_x4"), MOE_MXFP8_X4);
    assert_int_equal(dtype_of(bias, "U16", 4, "bf16"), MOE_BF16);
    assert_int_equal(dtype_of(bias, "U8", 2, "fp8_e5m2"), CASE_FOREIGN);
    /* Element sizes that disagree. */
    assert_int_equal(dtype_of(bias, "U8", 2, "mxfp4_x4"), MOE_DTYPE_NONE);
    assert_int_equal(dtype_of(bias, "U32", 8, "mxfp4_x4"), MOE_DTYPE_NONE);
    assert_int_equal(dtype_of(bias, "BF16", 4, "f32"), MOE_DTYPE_NONE);
    assert_int_equal(dtype_of(bias, "F4", 1, "fp8_e4m3"), MOE_DTYPE_NONE);
}

static void test_expected(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(
        load(&c, &error,
             "\"__metadata__\":{\"is_all_expert\":\"1\"}," TENSORS
             ",\"expected\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[16,24]}",
             TENSOR_BYTES + 8),
        IO_OK);
    assert_non_null(c.expected);
    assert_int_equal(c.expected_count, 2);
    moe_tensor output = moe_tensor_2d(NULL, MOE_BF16, 1, 2);
    assert_true(case_expects_shape(&c, &output));
    output.shape[0] = 2;
    output.shape[1] = 1;
    assert_false(case_expects_shape(&c, &output));
    output.rank = 1;
    assert_false(case_expects_shape(&c, &output));
    case_free(&c);
    expect_unreadable_header(
        "\"__metadata__\":{\"is_all_expert\":\"0\"}," TENSORS
        ",\"expected\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[16,24]}",
        TENSOR_BYTES + 8, "expected is F64");
}

/* A tensor of a rank that moe_tensor cannot hold is the operator's to refuse, and nothing is
 * written past shape. */
static void test_rank_past_the_limit(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(
        load(&c, &error,
             "\"__metadata__\":{\"is_all_expert\":\"0\"}," HIDDEN "," DOWN
             ",\"expert_gate_up_weights\":{\"dtype\":\"BF16\",\"shape\":[1,1,1,1,1,1,2,2],"
             "\"data_offsets\":[4,12]}",
             TENSOR_BYTES),
        IO_OK);
    moe_tensor output;
    size_t bytes;
    assert_int_equal(c.args.expert_gate_up_weights->rank, 8);
    assert_int_not_equal(moe_tkg_output(&c.args, &output, &bytes), MOE_OK);
    case_free(&c);
}

/* ---- what goes to the operator, and what does not -------------------------------------------- */

static void test_unknown_names_are_the_operators(void **state)
{
    (void)state;
    static const char *const KEYS[] = {"activation_fn", "expert_affinities_scaling_mode",
                                       "output_dtype", "act_mode"};
    for (size_t i = 0; i < sizeof KEYS / sizeof KEYS[0]; i++) {
        moe_case c;
        io_error error;
        moe_tensor output;
        size_t bytes;
        char metadata[128], said[128];
        snprintf(metadata, sizeof metadata, ",\"%s\":\"mish\"", KEYS[i]);
        snprintf(said, sizeof said, "%s = mish", KEYS[i]);
        assert_int_equal(load_with(&c, &error, metadata), IO_OK);
        assert_string_equal(c.foreign, said);
        assert_int_not_equal(moe_tkg_output(&c.args, &output, &bytes), MOE_OK);
        assert_non_null(strstr(moe_last_error(), KEYS[i]));
        strcat(said, ": not one the operator takes");
        case_refusal(&c, MOE_E_BAD_ENUM, metadata, sizeof metadata);
        assert_string_equal(metadata, said);
        case_refusal(&c, MOE_E_DTYPE, metadata, sizeof metadata); /* not for its name */
        assert_string_equal(metadata, moe_last_error());
        case_free(&c);
    }
}

static void test_refused_names_are_known(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(
        load_with(&c, &error, ",\"expert_affinities_scaling_mode\":\"PRE_SCALE_DELAYED\""), IO_OK);
    assert_int_equal(c.args.expert_affinities_scaling_mode, MOE_PRE_SCALE_DELAYED);
    assert_string_equal(c.foreign, "");
    case_free(&c);
}

static void test_unreadable_flags(void **state)
{
    (void)state;
    expect_unreadable(",\"mask_unselected_experts\":\"2x\"", "mask_unselected_experts = \"2x\"");
    expect_unreadable(",\"mask_unselected_experts\":\"\"", "must be an integer");
    expect_unreadable(",\"output_in_sbuf\":\"true\"", "output_in_sbuf");
    expect_unreadable(",\"input_in_sbuf\":\"1.\"", "input_in_sbuf");
    expect_unreadable(",\"is_all_expert_dynamic\":\" 1\"", "is_all_expert_dynamic");
    expect_unreadable(",\"skip_invalid_experts\":\"9223372036854775808\"", "skip_invalid_experts");
}

/* Integers that are no flag are refused by name, not taken for one by losing their high bits. */
static void test_other_flags_are_the_operators(void **state)
{
    (void)state;
    static const struct {
        const char *metadata, *reason;
    } FLAGS[] = {
        {"\"mask_unselected_experts\":\"2\"", "mask_unselected_experts = 2: must be 0 or 1"},
        {"\"output_in_sbuf\":\"-1\"", "output_in_sbuf = -1: must be 0 or 1"},
        {"\"skip_invalid_experts\":\"4294967297\"", "skip_invalid_experts = 2147483647"},
        {"\"is_all_expert_dynamic\":\"-4294967295\"", "is_all_expert_dynamic = -2147483648"},
        {"\"input_in_sbuf\":\"2\"", "hidden_input: layout = 2: must be 0 or 1"},
    };
    for (size_t i = 0; i < sizeof FLAGS / sizeof FLAGS[0]; i++) {
        moe_case c;
        io_error error;
        moe_tensor output;
        size_t bytes;
        char metadata[128];
        snprintf(metadata, sizeof metadata, ",%s", FLAGS[i].metadata);
        assert_int_equal(load_with(&c, &error, metadata), IO_OK);
        assert_int_equal(moe_tkg_output(&c.args, &output, &bytes), MOE_E_BAD_ENUM);
        if (!strstr(moe_last_error(), FLAGS[i].reason)) fail_msg("%s", moe_last_error());
        case_free(&c);
    }
}

/* Data are read only of a call that some mode accepts; and a file that is both unreadable and
 * refused is unreadable. */
static void test_refused_is_not_read(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(load_with(&c, &error, ",\"act_mode\":\"int8\""), IO_OK);
    assert_non_null(c.data[0]); /* --act may ask for another mode */
    case_free(&c);
    assert_int_equal(load_with(&c, &error, ",\"output_in_sbuf\":\"1\""), IO_OK);
    for (size_t i = 0; i < CASE_MAX_TENSORS; i++) assert_null(c.data[i]);
    assert_null(c.args.hidden_input->data);
    assert_int_equal(c.args.hidden_input->rank, 2);
    case_free(&c);
    expect_unreadable_header(
        "\"__metadata__\":{\"is_all_expert\":\"1\",\"output_in_sbuf\":\"1\"}," TENSORS
        ",\"expected\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[16,24]}",
        TENSOR_BYTES + 8, "expected is F64");
    expect_unreadable_header("\"__metadata__\":{\"is_all_expert\":\"2\"}," HIDDEN "," GATE_UP, 12,
                             "expert_down_weights is missing");
}

static void test_unreadable_numbers(void **state)
{
    (void)state;
    expect_unreadable(",\"gate_clamp_upper_limit\":\"\"", "gate_clamp_upper_limit");
    expect_unreadable(",\"gate_clamp_upper_limit\":\"None\"", "gate_clamp_upper_limit");
    expect_unreadable(",\"gate_clamp_lower_limit\":\"1.0f\"", "gate_clamp_lower_limit");
    expect_unreadable(",\"up_clamp_upper_limit\":\" 1\"", "up_clamp_upper_limit");
    expect_unreadable(",\"up_clamp_lower_limit\":\"1e40\"", "fits in a float");
    expect_unreadable(",\"swiglu_alpha\":\"1,5\"", "swiglu_alpha");
    expect_unreadable(",\"block_size\":\"8.0\"", "block_size");
    expect_unreadable(",\"block_size\":\"0x8\"", "block_size");
    expect_unreadable(",\"block_size\":\"9223372036854775808\"", "block_size");
    expect_unreadable(",\"atol\":\"-1e-5\"", "atol");
    expect_unreadable(",\"rtol_strict\":\"inf\"", "rtol_strict");
    expect_unreadable(",\"rtol_tight\":\"nan\"", "rtol_tight");
    expect_unreadable(",\"rtol_upstream\":\"1e999\"", "rtol_upstream");
}

static void test_missing(void **state)
{
    (void)state;
    expect_unreadable_header(TENSORS, TENSOR_BYTES, "is_all_expert is missing");
    expect_unreadable_header("\"__metadata__\":{\"is_all_expert\":\"1\"}," HIDDEN "," GATE_UP, 12,
                             "expert_down_weights is missing");
    expect_unreadable_header("\"__metadata__\":{\"is_all_expert\":\"1\"}", 0,
                             "hidden_input is missing");
}

static void test_bad_containers(void **state)
{
    (void)state;
    moe_case c;
    io_error error;
    assert_int_equal(case_load_memory("", 0, &c, &error), IO_E_FORMAT);
    case_free(&c);
    assert_int_equal(case_load("/nonexistent/case.safetensors", &c, &error), IO_E_OPEN);
    assert_non_null(strstr(error.text, "/nonexistent/case.safetensors"));
    case_free(&c);
    assert_int_equal(case_load("/dev/null", &c, &error), IO_E_OPEN);
    case_free(&c);
}

/* A sparse file costs nothing to make; loading it must not be tried. */
static void test_more_than_memory(void **state)
{
    (void)state;
    const char *header =
        "{\"__metadata__\":{\"is_all_expert\":\"1\"}," TENSORS ",\"expected\":{\"dtype\":\"F32\","
        "\"shape\":[1,549755813888],\"data_offsets\":[16,2199023255568]}}";
    char path[] = "/tmp/moe-test-case-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    uint64_t length = strlen(header);
    assert_int_equal(write(fd, &length, 8), 8);
    assert_int_equal(write(fd, header, length), (ssize_t)length);
    int grown = ftruncate(fd, (off_t)(8 + length + 2199023255568));
    close(fd);
    moe_case c;
    io_error error;
    io_status status = grown == 0 ? case_load(path, &c, &error) : IO_E_NOMEM;
    unlink(path);
    assert_int_equal(status, IO_E_NOMEM);
    if (grown == 0) case_free(&c);
}

/* ---- modes ----------------------------------------------------------------------------------- */

static void test_act_names(void **state)
{
    (void)state;
    for (int mode = MOE_ACT_DEFAULT; mode <= MOE_ACT_INT8; mode++) {
        moe_act_mode back = MOE_ACT_DEFAULT;
        assert_true(case_act_from_name(case_act_name((moe_act_mode)mode), &back));
        assert_int_equal(back, mode);
    }
    moe_act_mode untouched = MOE_ACT_INT8;
    assert_false(case_act_from_name("fp8", &untouched));
    assert_int_equal(untouched, MOE_ACT_INT8);
    assert_string_equal(case_act_name((moe_act_mode)CASE_FOREIGN), "unknown");
}

static void test_act_in_use(void **state)
{
    (void)state;
    moe_tensor weights = moe_tensor_2d(NULL, MOE_MXFP8_X4, 1, 1);
    moe_tkg_args args = moe_tkg_args_init();
    args.expert_gate_up_weights = &weights;
    assert_int_equal(case_act_in_use(&args), MOE_ACT_MXFP8);
    args.act_mode = MOE_ACT_EXACT;
    assert_int_equal(case_act_in_use(&args), MOE_ACT_EXACT);
    weights.dtype = MOE_E4M3FN;
    args.act_mode = MOE_ACT_DEFAULT;
    assert_int_equal(case_act_in_use(&args), MOE_ACT_EXACT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_scalar),
        cmocka_unit_test(test_tensors_are_aligned_copies),
        cmocka_unit_test(test_ignored),
        cmocka_unit_test(test_stored_types),
        cmocka_unit_test(test_said_types),
        cmocka_unit_test(test_expected),
        cmocka_unit_test(test_rank_past_the_limit),
        cmocka_unit_test(test_unknown_names_are_the_operators),
        cmocka_unit_test(test_refused_names_are_known),
        cmocka_unit_test(test_unreadable_flags),
        cmocka_unit_test(test_other_flags_are_the_operators),
        cmocka_unit_test(test_refused_is_not_read),
        cmocka_unit_test(test_unreadable_numbers),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_bad_containers),
        cmocka_unit_test(test_more_than_memory),
        cmocka_unit_test(test_act_names),
        cmocka_unit_test(test_act_in_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
