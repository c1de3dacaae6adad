/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_abi.c - what a caller of another version meets: struct_size, names and sizes of
 * enumerators, the version, the error text of each thread; and the options of a context. */
#define _POSIX_C_SOURCE 200809L
#include "expect.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static const layer_spec SPEC = {
    .hidden = MOE_BF16, .weights = MOE_BF16, .T = 2, .H = 8, .I = 4, .E_L = 2, .K = 1};

/* ---- struct_size ----------------------------------------------------------------------------- */

enum { ROOM = 4096 + 64 };

static void test_args_size(void **state)
{
    (void)state;
    layer l;
    layer_make(&l, &SPEC);
    size_t bytes;
    unsigned char *expected = layer_run(NULL, &l, &bytes), *got = malloc(bytes);
    /* exactly as large as it says, so that ASan sees a step past the end */
    const size_t small[] = {0, 1, sizeof(size_t), sizeof l.args / 2, sizeof l.args - 1};
    for (size_t i = 0; i < COUNT(small); i++) {
        moe_tkg_args *args = malloc(small[i] < sizeof(size_t) ? sizeof(size_t) : small[i]);
        assert_non_null(args);
        memcpy(args, &l.args, small[i] < sizeof(size_t) ? 0 : small[i]);
        memcpy(args, &small[i], sizeof(size_t));
        char value[32];
        snprintf(value, sizeof value, "= %zu:", small[i]);
        expect_refused(args, STATUS(MOE_E_ABI), BY_SHAPE, "struct_size", value);
        free(args);
    }
    for (size_t extra = 1; extra <= 64; extra++) {
        unsigned char *args = calloc(1, sizeof l.args + extra);
        assert_true(args != NULL && got != NULL);
        l.args.struct_size = sizeof l.args + extra;
        memcpy(args, &l.args, sizeof l.args);
        memset(got, 0xA5, bytes);
        assert_int_equal(moe_tkg(NULL, (moe_tkg_args *)(void *)args, got, bytes), MOE_OK);
        assert_memory_equal(got, expected, bytes);
        for (size_t i = 0; i < extra; i++) {
            args[sizeof l.args + i] = 1;
            expect_refused((moe_tkg_args *)(void *)args, STATUS(MOE_E_ABI), BY_SHAPE, "struct_size",
                           NULL);
            args[sizeof l.args + i] = 0;
        }
        free(args);
    }
    const size_t none[] = {SIZE_MAX, SIZE_MAX / 2, (size_t)1 << 32, 1 << 20, ROOM};
    static unsigned char large[ROOM];
    for (size_t i = 0; i < COUNT(none); i++) {
        l.args.struct_size = none[i];
        memcpy(large, &l.args, sizeof l.args);
        expect_refused((moe_tkg_args *)(void *)large, STATUS(MOE_E_ABI), BY_SHAPE, "struct_size",
                       NULL);
    }
    free(got);
    free(expected);
    layer_free(&l);
}

/* ---- contexts -------------------------------------------------------------------------------- */

static void *no_memory(size_t bytes, size_t alignment, void *user)
{
    (void)bytes;
    (void)alignment;
    (void)user;
    return NULL;
}

static void no_release(void *memory, size_t bytes, void *user)
{
    (void)memory;
    (void)bytes;
    (void)user;
}

static void expect_no_context(const moe_context_options *options, moe_status status,
                              const char *name)
{
    moe_context *context = (moe_context *)(uintptr_t)1;
    assert_int_equal(moe_context_create(options, &context), status);
    assert_null(context);
    assert_non_null(strstr(moe_last_error(), name));
}

static void test_context_options(void **state)
{
    (void)state;
    moe_context_options options = moe_context_options_init();
    assert_int_equal(moe_context_create(&options, NULL), MOE_E_NULL_ARG);
    assert_non_null(strstr(moe_last_error(), "context"));
    static const int32_t threads[] = {-1, 1025, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < COUNT(threads); i++) {
        options.threads = threads[i];
        expect_no_context(&options, MOE_E_VALUE, "threads");
    }
    options.threads = 1;
    options.isa = "no such level";
    expect_no_context(&options, MOE_E_ISA, "no such level");
    options.isa = NULL;
    options.allocate = no_memory;
    expect_no_context(&options, MOE_E_NULL_ARG, "release");
    options.release = no_release;
    expect_no_context(&options, MOE_E_NOMEM, "memory");
    options.allocate = NULL;
    expect_no_context(&options, MOE_E_NULL_ARG, "allocate");
    options.release = NULL;

    const size_t sizes[] = {0, sizeof(size_t), sizeof options - 1, ROOM, SIZE_MAX};
    static unsigned char large[ROOM];
    for (size_t i = 0; i < COUNT(sizes); i++) {
        options.struct_size = sizes[i];
        memcpy(large, &options, sizeof options);
        expect_no_context((moe_context_options *)(void *)large, MOE_E_ABI, "struct_size");
    }
    options.struct_size = sizeof options + 8;
    memcpy(large, &options, sizeof options);
    large[sizeof options + 7] = 1;
    expect_no_context((moe_context_options *)(void *)large, MOE_E_ABI, "struct_size");
    large[sizeof options + 7] = 0;
    moe_context *context;
    assert_int_equal(moe_context_create((moe_context_options *)(void *)large, &context), MOE_OK);
    assert_int_equal(moe_context_threads(context), 1);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
}

/* What the options leave open, the environment may say. */
static void test_environment(void **state)
{
    (void)state;
    static const char *const none[] = {"0", "1025", "-1", "two", "3x", "99999999999999999999"};
    moe_context *context;
    for (size_t i = 0; i < COUNT(none); i++) {
        setenv("MOE_NUM_THREADS", none[i], 1);
        expect_no_context(NULL, MOE_E_VALUE, none[i]);
    }
    setenv("MOE_NUM_THREADS", "3", 1);
    assert_int_equal(moe_context_create(NULL, &context), MOE_OK);
    assert_int_equal(moe_context_threads(context), 3);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
    setenv("MOE_NUM_THREADS", "", 1);
    assert_int_equal(moe_context_create(NULL, &context), MOE_OK);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
    unsetenv("MOE_NUM_THREADS");

    const char *isa = getenv("MOE_ISA");
    char before[64] = "";
    if (isa != NULL) snprintf(before, sizeof before, "%s", isa);
    setenv("MOE_ISA", "no such level", 1);
    expect_no_context(NULL, MOE_E_ISA, "MOE_ISA = no such level");
    setenv("MOE_ISA", "scalar", 1);
    assert_int_equal(moe_context_create(NULL, &context), MOE_OK);
    assert_string_equal(moe_context_isa(context), "scalar");
    assert_int_equal(moe_context_destroy(context), MOE_OK);
    if (isa != NULL)
        setenv("MOE_ISA", before, 1);
    else
        unsetenv("MOE_ISA");
}

/* One context for each level of the machine, weakest first; the best is the default. */
static void test_isa_levels(void **state)
{
    (void)state;
    moe_context *context;
    const char *best = NULL;
    assert_string_equal(moe_isa_level(0), "scalar");
    for (size_t i = 0; moe_isa_level(i) != NULL; i++) {
        best = moe_isa_level(i);
        moe_context_options options = moe_context_options_init();
        options.isa = best;
        assert_int_equal(moe_context_create(&options, &context), MOE_OK);
        assert_string_equal(moe_context_isa(context), best);
        assert_true(moe_context_threads(context) >= 1);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
    }
    assert_null(moe_isa_level(SIZE_MAX));
    assert_int_equal(moe_context_threads(NULL), 1);
    assert_int_equal(moe_context_destroy(NULL), MOE_OK);
    if (getenv("MOE_ISA") == NULL) assert_string_equal(moe_context_isa(NULL), best);
}

/* ---- names ----------------------------------------------------------------------------------- */

static void test_status_names(void **state)
{
    (void)state;
    static const char *const names[] = {
        "MOE_OK",           "MOE_E_NULL_ARG",    "MOE_E_ABI",      "MOE_E_BAD_ENUM",
        "MOE_E_VALUE",      "MOE_E_DIM",         "MOE_E_SHAPE",    "MOE_E_DTYPE",
        "MOE_E_LAYOUT",     "MOE_E_UNSUPPORTED", "MOE_E_OVERFLOW", "MOE_E_EXPERT_INDEX",
        "MOE_E_RANK_RANGE", "MOE_E_ALIGN",       "MOE_E_ALIAS",    "MOE_E_NOMEM",
        "MOE_E_ISA",        "MOE_E_BUSY",        "MOE_E_OPEN",     "MOE_E_READ",
        "MOE_E_WRITE",      "MOE_E_FORMAT",      "MOE_E_MODEL",    "MOE_E_STALE"};
    assert_int_equal(COUNT(names), MOE_E_STALE + 1);
    for (size_t i = 0; i < COUNT(names); i++)
        assert_string_equal(moe_status_name((moe_status)i), names[i]);
    static const int none[] = {-1, MOE_E_STALE + 1, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < COUNT(none); i++)
        assert_string_equal(moe_status_name((moe_status)none[i]), "unknown moe_status");
}

static void test_dtype_names(void **state)
{
    (void)state;
    static const struct {
        moe_dtype dtype;
        const char *name;
        size_t size, k;
    } dtypes[] = {
        {MOE_BF16, "bf16", 2, 1},
        {MOE_F16, "f16", 2, 1},
        {MOE_F32, "f32", 4, 1},
        {MOE_E4M3_IEEE, "e4m3_ieee", 1, 1},
        {MOE_E4M3FN, "e4m3fn", 1, 1},
        {MOE_E8M0, "e8m0", 1, 1},
        {MOE_MXFP4_X4, "mxfp4_x4", 2, 4},
        {MOE_MXFP8_X4, "mxfp8_x4", 4, 4},
        {MOE_I32, "i32", 4, 1},
        {MOE_U32, "u32", 4, 1},
        {MOE_I64, "i64", 8, 1},
        {MOE_E2M1_X2, "e2m1_x2", 1, 2},
        {MOE_INT4_X2, "int4_x2", 1, 2},
        {MOE_Q8_0, "q8_0", 34, 32},
        {MOE_Q4_0, "q4_0", 18, 32},
        {MOE_Q4_K, "q4_k", 144, 256},
        {MOE_Q5_K, "q5_k", 176, 256},
        {MOE_Q6_K, "q6_k", 210, 256},
        {MOE_GGML_MXFP4, "ggml_mxfp4", 17, 32},
        {MOE_GGML_NVFP4, "ggml_nvfp4", 36, 64},
    };
    assert_int_equal(COUNT(dtypes) + 1, MOE_DTYPE_COUNT);
    for (size_t i = 0; i < COUNT(dtypes); i++) {
        assert_string_equal(moe_dtype_name(dtypes[i].dtype), dtypes[i].name);
        assert_int_equal(moe_dtype_size(dtypes[i].dtype), dtypes[i].size);
        assert_int_equal(moe_dtype_k(dtypes[i].dtype), dtypes[i].k);
    }
    static const int none[] = {-1, MOE_DTYPE_NONE, MOE_DTYPE_COUNT, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < COUNT(none); i++) {
        assert_int_equal(moe_dtype_size((moe_dtype)none[i]), 0);
        assert_int_equal(moe_dtype_k((moe_dtype)none[i]), 0);
        assert_non_null(moe_dtype_name((moe_dtype)none[i]));
        if (none[i] != MOE_DTYPE_NONE)
            assert_string_equal(moe_dtype_name((moe_dtype)none[i]), "unknown");
    }
}

static void test_version(void **state)
{
    (void)state;
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", MOE_VERSION_MAJOR, MOE_VERSION_MINOR,
             MOE_VERSION_PATCH);
    assert_string_equal(moe_version(), version);
    assert_int_equal(moe_version_number(), MOE_VERSION_NUMBER);
}

/* ---- errors of threads ----------------------------------------------------------------------- */

typedef struct elsewhere {
    char before[512], after[512];
    moe_status status;
} elsewhere;

static void *fail_elsewhere(void *arg)
{
    elsewhere *there = arg;
    strcpy(there->before, moe_last_error());
    there->status = moe_tkg(NULL, NULL, NULL, 0);
    strcpy(there->after, moe_last_error());
    return NULL;
}

static void test_error_of_thread(void **state)
{
    (void)state;
    layer l;
    layer_make(&l, &SPEC);
    l.args.activation_fn = (moe_activation)7;
    expect_refused(&l.args, STATUS(MOE_E_BAD_ENUM), BY_SHAPE, "activation_fn", "= 7");
    char here[512];
    strcpy(here, moe_last_error());
    pthread_t thread;
    elsewhere there;
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &there), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(moe_last_error(), here);
    assert_string_equal(there.before, "");
    assert_int_equal(there.status, MOE_E_NULL_ARG);
    assert_non_null(strstr(there.after, "args"));
    layer_free(&l);
}

/* The text of the last failure stays through calls that succeed: it is of "the last call that
 * failed". */
static void test_error_stays(void **state)
{
    (void)state;
    layer l;
    layer_make(&l, &SPEC);
    assert_int_equal(moe_tkg(NULL, NULL, NULL, 0), MOE_E_NULL_ARG);
    expect_runs(&l);
    assert_non_null(strstr(moe_last_error(), "args"));
    assert_null(strchr(moe_last_error(), '\n'));
    layer_free(&l);
}

/* ---- moe_tkg_output -------------------------------------------------------------------------- */

/* It describes what moe_tkg writes, which differs by layout and type, and reads no data. */
static void test_output_description(void **state)
{
    (void)state;
    static const struct {
        layer_place place;
        bool in_sbuf;
        int rank;
        int64_t shape[3];
    } cases[] = {
        {LAYER_HBM, false, 2, {3, 512, 0}},      {LAYER_HBM_BSH, false, 2, {3, 512, 0}},
        {LAYER_SBUF, false, 2, {3, 512, 0}},     {LAYER_SBUF, true, 3, {128, 3, 4}},
        {LAYER_PREQUANT, false, 2, {3, 512, 0}}, {LAYER_PREQUANT, true, 3, {128, 3, 4}},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int output = MOE_DTYPE_NONE; output <= MOE_F32; output++) {
            layer l;
            layer_make(&l, &(layer_spec){.hidden = MOE_F16,
                                         .weights = MOE_MXFP4_X4,
                                         .T = 3,
                                         .H = 512,
                                         .I = 8,
                                         .E_L = 1,
                                         .place = cases[i].place,
                                         .all_expert = true,
                                         .output = (moe_dtype)output,
                                         .output_in_sbuf = cases[i].in_sbuf});
            for (int which = 0; which < LAYER_TENSORS; which++) l.tensor[which].data = NULL;
            moe_tensor shape;
            size_t bytes;
            assert_int_equal(moe_tkg_output(&l.args, &shape, &bytes), MOE_OK);
            moe_dtype natural = cases[i].place == LAYER_PREQUANT ? MOE_BF16 : MOE_F16;
            moe_dtype dtype = output != MOE_DTYPE_NONE ? (moe_dtype)output : natural;
            assert_int_equal(shape.dtype, dtype);
            assert_int_equal(shape.layout, cases[i].in_sbuf ? MOE_LAYOUT_SBUF : MOE_LAYOUT_HBM);
            assert_int_equal(shape.rank, cases[i].rank);
            assert_null(shape.data);
            assert_memory_equal(shape.shape, cases[i].shape, sizeof(int64_t) * (size_t)shape.rank);
            assert_int_equal(bytes, 3 * 512 * moe_dtype_size(dtype));
            layer_free(&l);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_args_size),    cmocka_unit_test(test_context_options),
        cmocka_unit_test(test_environment),  cmocka_unit_test(test_isa_levels),
        cmocka_unit_test(test_status_names), cmocka_unit_test(test_dtype_names),
        cmocka_unit_test(test_version),      cmocka_unit_test(test_error_of_thread),
        cmocka_unit_test(test_error_stays),  cmocka_unit_test(test_output_description),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
