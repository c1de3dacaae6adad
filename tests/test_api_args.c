/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_args.c - every argument of moe_tkg, one at a time: missing, of a wrong type, rank,
 * layout or dimension; enumerators, flags and numbers out of range.  Each refusal has its
 * status, names the argument and its value, and touches no output. */
#include "expect.h"

#include <math.h>
#include <stdio.h>

/* ---- layers to spoil ------------------------------------------------------------------------- */

static const struct {
    const char *name;
    layer_spec spec;
} BASES[] = {
    {"plain selective",
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
      .scales = LAYER_ROW}},
    {"plain selective, eager",
     {.hidden = MOE_F16,
      .weights = MOE_E4M3FN,
      .T = 3,
      .H = 24,
      .I = 10,
      .E_L = 4,
      .K = 2,
      .scaling = MOE_POST_SCALE,
      .eager = true,
      .scales = LAYER_STATIC}},
    {"plain all-expert, masked",
     {.hidden = MOE_F32,
      .weights = MOE_F16,
      .down = MOE_F32,
      .T = 3,
      .H = 24,
      .I = 10,
      .E_L = 2,
      .E = 6,
      .K = 2,
      .all_expert = true,
      .scaling = MOE_POST_SCALE,
      .rank = 1,
      .mask = true}},
    {"plain selective in SBUF",
     {.hidden = MOE_BF16,
      .weights = MOE_F32,
      .T = 3,
      .H = 256,
      .I = 10,
      .E_L = 4,
      .K = 2,
      .place = LAYER_SBUF,
      .scaling = MOE_POST_SCALE,
      .output_in_sbuf = true}},
    {"plain selective, three dimensions",
     {.hidden = MOE_BF16,
      .weights = MOE_E4M3_IEEE,
      .T = 3,
      .H = 24,
      .I = 10,
      .E_L = 4,
      .K = 2,
      .place = LAYER_HBM_BSH,
      .scaling = MOE_POST_SCALE}},
    {"MX selective",
     {.hidden = MOE_F16,
      .weights = MOE_MXFP8_X4,
      .T = 3,
      .H = 512,
      .I = 40,
      .E_L = 4,
      .K = 2,
      .scaling = MOE_POST_SCALE,
      .gate_up_bias = true,
      .down_bias = true}},
    {"MX all-expert, pre-quantised",
     {.hidden = MOE_BF16,
      .weights = MOE_MXFP4_X4,
      .T = 3,
      .H = 1024,
      .I = 520,
      .E_L = 2,
      .E = 6,
      .K = 2,
      .place = LAYER_PREQUANT,
      .all_expert = true,
      .scaling = MOE_POST_SCALE,
      .mask = true}},
};

/* An entry of the table of tests: calls spoil on each given tensor of each base, whose args are
 * restored after. */
typedef void (*spoiler)(layer *l, layer_tensor which);
#define each_tensor_test(spoil)                                                                    \
    {                                                                                              \
#spoil, each_tensor, NULL, NULL, &(spoiler)                                                \
        {                                                                                          \
            spoil                                                                                  \
        }                                                                                          \
    }

static void each_tensor(void **state)
{
    spoiler spoil = *(spoiler *)*state;
    for (size_t b = 0; b < COUNT(BASES); b++) {
        layer l;
        layer_make(&l, &BASES[b].spec);
        expect_runs(&l);
        for (int which = 0; which < LAYER_TENSORS; which++) {
            if (l.bytes[which] == 0) continue;
            moe_tensor before = l.tensor[which];
            spoil(&l, (layer_tensor)which);
            l.tensor[which] = before;
            *layer_tensor_slot(&l.args, (layer_tensor)which) = &l.tensor[which];
        }
        expect_runs(&l);
        layer_free(&l);
    }
}

static const char *number(int64_t value)
{
    static char text[32];
    snprintf(text, sizeof text, "= %lld", (long long)value);
    return text;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static void spoil_pointer(layer *l, layer_tensor which)
{
    const char *name = layer_tensor_name(which);
    l->tensor[which].data = NULL;
    expect_refused(&l->args, STATUS(MOE_E_NULL_ARG), BY_DATA, name, "NULL");
    *layer_tensor_slot(&l->args, which) = NULL;
    bool is_bias = which == LAYER_GATE_UP_BIAS || which == LAYER_DOWN_BIAS;
    if (is_bias) {
        expect_accepted(&l->args);
        return;
    }
    /* Without the eager affinities expert_affinities are missing. */
    expect_refused(&l->args, STATUS(MOE_E_NULL_ARG), BY_SHAPE,
                   which == LAYER_EAGER ? "expert_affinities" : name, "NULL");
}

/* The element types that a parameter takes in some call. */
static bool takes(layer_tensor which, moe_dtype dtype)
{
    bool is_float = dtype == MOE_BF16 || dtype == MOE_F16 || dtype == MOE_F32;
    switch (which) {
    case LAYER_HIDDEN: return is_float || dtype == MOE_MXFP8_X4;
    case LAYER_GATE_UP:
    case LAYER_DOWN:
        return is_float || dtype == MOE_E4M3_IEEE || dtype == MOE_E4M3FN || dtype == MOE_MXFP4_X4 ||
               dtype == MOE_MXFP8_X4;
    case LAYER_INDEX:
    case LAYER_RANK: return dtype == MOE_I32 || dtype == MOE_U32 || dtype == MOE_I64;
    case LAYER_GATE_UP_SCALE:
    case LAYER_DOWN_SCALE: return dtype == MOE_F32 || dtype == MOE_E8M0;
    case LAYER_HIDDEN_SCALE: return dtype == MOE_E8M0;
    default: return is_float;
    }
}

static void spoil_dtype(layer *l, layer_tensor which)
{
    static const int no_dtype[] = {-1, MOE_DTYPE_NONE, MOE_DTYPE_COUNT, INT32_MAX, INT32_MIN};
    moe_tensor *t = &l->tensor[which];
    const char *name = layer_tensor_name(which);
    for (size_t i = 0; i < COUNT(no_dtype); i++) {
        t->dtype = (moe_dtype)no_dtype[i];
        expect_refused(&l->args, STATUS(MOE_E_BAD_ENUM), BY_SHAPE, name, number(no_dtype[i]));
    }
    for (int d = MOE_BF16; d < MOE_DTYPE_COUNT; d++) {
        t->dtype = (moe_dtype)d;
        if (!takes(which, t->dtype))
            expect_refused(&l->args, STATUS(MOE_E_DTYPE), BY_SHAPE, name, moe_dtype_name(t->dtype));
    }
}

/* A type of the right set in the wrong place: scales of the other kind, weights of which one is
 * MX. */
static void test_dtypes_together(void **state)
{
    (void)state;
    enum { PLAIN = 0, SELECTIVE_MX = 5 };
    static const struct {
        size_t base;
        layer_tensor which;
        moe_dtype dtype;
    } cases[] = {
        {PLAIN, LAYER_GATE_UP_SCALE, MOE_E8M0},
        {PLAIN, LAYER_DOWN_SCALE, MOE_E8M0},
        {PLAIN, LAYER_DOWN, MOE_MXFP4_X4},
        {SELECTIVE_MX, LAYER_DOWN, MOE_BF16},
        {SELECTIVE_MX, LAYER_GATE_UP_SCALE, MOE_F32},
        {SELECTIVE_MX, LAYER_DOWN_SCALE, MOE_F32},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        layer l;
        layer_make(&l, &BASES[cases[i].base].spec);
        l.tensor[cases[i].which].dtype = cases[i].dtype;
        expect_refused(&l.args, STATUS(MOE_E_DTYPE), BY_SHAPE, layer_tensor_name(cases[i].which),
                       moe_dtype_name(cases[i].dtype));
        layer_free(&l);
    }
}

static void spoil_layout(layer *l, layer_tensor which)
{
    moe_tensor *t = &l->tensor[which];
    const char *name = layer_tensor_name(which);
    for (int layout = -1; layout <= 2; layout += 3) {
        t->layout = (moe_layout)layout;
        expect_refused(&l->args, STATUS(MOE_E_BAD_ENUM), BY_SHAPE, name, number(layout));
    }
    t->layout = MOE_LAYOUT_SBUF;
    if (which != LAYER_HIDDEN && which != LAYER_HIDDEN_SCALE)
        expect_refused(&l->args, STATUS(MOE_E_LAYOUT), BY_SHAPE, name, "SBUF");
    t->layout = MOE_LAYOUT_HBM;
    if (which == LAYER_HIDDEN && t->dtype == MOE_MXFP8_X4)
        expect_refused(&l->args, STATUS(MOE_E_LAYOUT), BY_SHAPE, name, "HBM");
}

/* Ranks that no tensor has, and one more or fewer dimension than this one. */
static void spoil_rank(layer *l, layer_tensor which)
{
    moe_tensor *t = &l->tensor[which];
    const char *name = layer_tensor_name(which);
    const int32_t right = t->rank, none[] = {INT32_MIN, -1, 0, 6, INT32_MAX};
    for (size_t i = 0; i < COUNT(none); i++) {
        t->rank = none[i];
        expect_refused(&l->args, STATUS(MOE_E_DIM), BY_SHAPE, name, number(none[i]));
    }
    t->rank = right - 1;
    bool is_two_of_three = which == LAYER_HIDDEN && t->layout == MOE_LAYOUT_HBM && right == 3;
    if (!is_two_of_three) expect_refused(&l->args, STATUS(MOE_E_DIM), BY_SHAPE, name, NULL);
    if (right == MOE_MAX_RANK) return;
    t->rank = right + 1;
    t->shape[right] = 1;
    bool is_three_of_two = which == LAYER_HIDDEN && t->layout == MOE_LAYOUT_HBM && right == 2;
    if (!is_three_of_two) expect_refused(&l->args, STATUS(MOE_E_DIM), BY_SHAPE, name, NULL);
}

/* Dimensions that one tensor alone decides, as far as the other tensors agree: E and a K without
 * eager affinities. */
static bool is_free(const layer *l, layer_tensor which, int d, int64_t value)
{
    if (d != 1) return false;
    if (which == LAYER_AFFINITIES) return value >= l->spec.E_L;
    return which == LAYER_INDEX && !l->spec.eager && value >= 1;
}

/* Dimensions that define a size: another tensor is blamed if they are wrong. */
static bool defines(const layer *l, layer_tensor which, int d)
{
    const moe_tensor *t = &l->tensor[which];
    if (which == LAYER_HIDDEN) return t->layout == MOE_LAYOUT_HBM || d > 0;
    if (which == LAYER_DOWN && layer_is_mx(l)) return d == 1;
    if (which == LAYER_INDEX || which == LAYER_EAGER) return d == 1;
    return which == LAYER_GATE_UP && (d == 0 || d == t->rank - 1);
}

static void spoil_dimension(layer *l, layer_tensor which)
{
    moe_tensor *t = &l->tensor[which];
    const char *name = layer_tensor_name(which);
    for (int d = 0; d < t->rank; d++) {
        const int64_t right = t->shape[d];
        const int64_t wrong[] = {right + 1, right - 1, 0, -1, INT64_MIN};
        for (size_t i = 0; i < COUNT(wrong); i++) {
            t->shape[d] = wrong[i];
            if (wrong[i] < 0)
                expect_refused(&l->args, STATUS(MOE_E_DIM), BY_SHAPE, name, number(wrong[i]));
            else if (is_free(l, which, d, wrong[i]))
                expect_accepted(&l->args);
            else
                expect_refused(&l->args,
                               STATUS(MOE_E_SHAPE) | (wrong[i] == 0 ? STATUS(MOE_E_DIM) : 0),
                               BY_SHAPE, defines(l, which, d) ? NULL : name, NULL);
        }
        t->shape[d] = right;
    }
}

/* ---- scalars --------------------------------------------------------------------------------- */

static void test_enumerators(void **state)
{
    (void)state;
#define FIELD(field, past)                                                                         \
    {                                                                                              \
#field, offsetof(moe_tkg_args, field), past                                                \
    }
    static const struct {
        const char *name;
        size_t offset;
        int past; /* the first value that is none */
    } fields[] = {
        FIELD(is_all_expert, 2),
        FIELD(mask_unselected_experts, 2),
        FIELD(output_in_sbuf, 2),
        FIELD(is_all_expert_dynamic, 2),
        FIELD(skip_invalid_experts, 2),
        FIELD(gate_clamp_upper_limit.given, 2),
        FIELD(gate_clamp_lower_limit.given, 2),
        FIELD(up_clamp_upper_limit.given, 2),
        FIELD(up_clamp_lower_limit.given, 2),
        FIELD(block_size.given, 2),
        FIELD(swiglu_alpha.given, 2),
        FIELD(swiglu_up_offset.given, 2),
        FIELD(act_clamp_upper_limit.given, 2),
        FIELD(expert_affinities_scaling_mode, MOE_INPUT_SCALE + 1),
        FIELD(activation_fn, MOE_RELU2 + 1),
        FIELD(act_mode, MOE_ACT_INT8 + 1),
        FIELD(output_dtype, MOE_DTYPE_COUNT),
    };
#undef FIELD
    layer l;
    layer_make(&l, &BASES[0].spec);
    for (size_t i = 0; i < COUNT(fields); i++) {
        const int wrong[] = {-1, fields[i].past, INT32_MAX, INT32_MIN};
        char *field = (char *)&l.args + fields[i].offset;
        int right;
        memcpy(&right, field, sizeof right);
        for (size_t w = 0; w < COUNT(wrong); w++) {
            memcpy(field, &wrong[w], sizeof wrong[w]);
            expect_refused(&l.args, STATUS(MOE_E_BAD_ENUM), BY_SHAPE, fields[i].name,
                           number(wrong[w]));
        }
        memcpy(field, &right, sizeof right);
    }
    expect_runs(&l);
    layer_free(&l);
}

static void test_output_dtype(void **state)
{
    (void)state;
    layer l;
    for (size_t b = 0; b < COUNT(BASES); b++) {
        layer_make(&l, &BASES[b].spec);
        for (int d = MOE_DTYPE_NONE; d < MOE_DTYPE_COUNT; d++) {
            l.args.output_dtype = (moe_dtype)d;
            if (d > MOE_F32) {
                expect_refused(&l.args, STATUS(MOE_E_DTYPE), BY_SHAPE, "output_dtype",
                               moe_dtype_name((moe_dtype)d));
                continue;
            }
            moe_tensor shape;
            size_t bytes;
            assert_int_equal(moe_tkg_output(&l.args, &shape, &bytes), MOE_OK);
            assert_int_equal(shape.dtype,
                             d != MOE_DTYPE_NONE ? (moe_dtype)d : BASES[b].spec.hidden);
            assert_int_equal(bytes, moe_dtype_size(shape.dtype) * (size_t)(l.spec.T * l.spec.H));
        }
        layer_free(&l);
    }
}

static void test_limits(void **state)
{
    (void)state;
    layer l;
    layer_make(&l, &BASES[0].spec);
    const struct {
        const char *name;
        moe_optional_float *field;
    } limits[] = {
        {"gate_clamp_upper_limit", &l.args.gate_clamp_upper_limit},
        {"gate_clamp_lower_limit", &l.args.gate_clamp_lower_limit},
        {"up_clamp_upper_limit", &l.args.up_clamp_upper_limit},
        {"up_clamp_lower_limit", &l.args.up_clamp_lower_limit},
        {"act_clamp_upper_limit", &l.args.act_clamp_upper_limit},
    };
    for (size_t i = 0; i < COUNT(limits); i++) {
        static const float legal[] = {0.0f, -0.0f, 1e-45f, -3e38f, INFINITY, -INFINITY};
        for (size_t v = 0; v < COUNT(legal); v++) {
            *limits[i].field = moe_given_float(legal[v]);
            expect_runs(&l);
        }
        *limits[i].field = moe_given_float(NAN);
        expect_refused(&l.args, STATUS(MOE_E_VALUE), BY_SHAPE, limits[i].name, "nan");
        limits[i].field->given = 0;
        expect_runs(&l);
    }
    layer_free(&l);
}

static void test_swiglu(void **state)
{
    (void)state;
    layer l;
    layer_make(&l, &BASES[0].spec);
    const struct {
        const char *name;
        moe_optional_float *field;
    } parameters[] = {{"swiglu_alpha", &l.args.swiglu_alpha},
                      {"swiglu_up_offset", &l.args.swiglu_up_offset}};
    for (size_t i = 0; i < COUNT(parameters); i++) {
        l.args.activation_fn = MOE_SWIGLU;
        l.args.swiglu_alpha = l.args.swiglu_up_offset = moe_given_float(1.0f);
        expect_runs(&l);
        *parameters[i].field = moe_given_float(NAN);
        expect_refused(&l.args, STATUS(MOE_E_VALUE), BY_SHAPE, parameters[i].name, "nan");
        *parameters[i].field = moe_given_float(-INFINITY);
        expect_refused(&l.args, STATUS(MOE_E_VALUE), BY_SHAPE, parameters[i].name, "-inf");
        parameters[i].field->given = 0;
        expect_refused(&l.args, STATUS(MOE_E_NULL_ARG), BY_SHAPE, parameters[i].name, "not given");
        l.args.swiglu_alpha.given = l.args.swiglu_up_offset.given = 0;
        *parameters[i].field = moe_given_float(0.0f);
        for (int activation = MOE_SILU; activation <= MOE_RELU2; activation++) {
            if (activation == MOE_SWIGLU) continue;
            l.args.activation_fn = (moe_activation)activation;
            expect_refused(&l.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, parameters[i].name, "= 0");
        }
        parameters[i].field->given = 0;
        expect_runs(&l);
    }
    layer_free(&l);
}

static void test_missing_args(void **state)
{
    (void)state;
    moe_tensor shape;
    size_t bytes;
    expect_refused(NULL, STATUS(MOE_E_NULL_ARG), BY_SHAPE, "args", "NULL");
    layer l;
    layer_make(&l, &BASES[0].spec);
    assert_int_equal(moe_tkg(NULL, &l.args, NULL, SIZE_MAX), MOE_E_NULL_ARG);
    assert_non_null(strstr(moe_last_error(), "output = NULL"));
    assert_int_equal(moe_tkg_output(&l.args, NULL, &bytes), MOE_E_NULL_ARG);
    assert_non_null(strstr(moe_last_error(), "output = NULL"));
    assert_int_equal(moe_tkg_output(&l.args, &shape, NULL), MOE_E_NULL_ARG);
    assert_non_null(strstr(moe_last_error(), "bytes = NULL"));
    layer_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        each_tensor_test(spoil_pointer),        each_tensor_test(spoil_dtype),
        cmocka_unit_test(test_dtypes_together), each_tensor_test(spoil_layout),
        each_tensor_test(spoil_rank),           each_tensor_test(spoil_dimension),
        cmocka_unit_test(test_enumerators),     cmocka_unit_test(test_output_dtype),
        cmocka_unit_test(test_limits),          cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_missing_args),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
