/* SPDX-License-Identifier: Apache-2.0 */
/* test_experts_calls.c - calls with packed experts: what does not go with them is refused, what is
 * no handle is seen, and they cannot be destroyed meanwhile. */
#define _POSIX_C_SOURCE 200809L
#include "expect.h"

#include "experts.h"
#include "problem.h"
#include "source.h"

#include <stdlib.h>
#include <string.h>

static void expect_text(const char *call, moe_status got, moe_status want, const char *name,
                        const char *value)
{
    const char *text = moe_last_error();
    if (got != want || strstr(text, name) == NULL || strstr(text, value) == NULL)
        fail_msg("%s: %s, not %s with \"%s\" and \"%s\": %s", call, moe_status_name(got),
                 moe_status_name(want), name, value, text);
}

/* A layer's call, and its experts packed: from the layer's own tensors, or from rows. */
typedef struct packed_call {
    layer layer;
    source source;
    moe_experts *experts;
} packed_call;

static void take_weights(moe_tkg_args *a)
{
    a->expert_gate_up_weights = a->expert_down_weights = NULL;
    a->expert_gate_up_bias = a->expert_down_bias = NULL;
    a->expert_gate_up_weights_scale = a->expert_down_weights_scale = NULL;
}

static void call_make(packed_call *c, const layer_spec *call, const source_spec *rows)
{
    layer_make(&c->layer, call);
    moe_tkg_args *a = &c->layer.args;
    if (rows == NULL) {
        memset(&c->source, 0, sizeof c->source);
        c->source.args = moe_experts_args_init();
        c->source.args.expert_gate_up_weights = a->expert_gate_up_weights;
        c->source.args.expert_down_weights = a->expert_down_weights;
        c->source.args.expert_gate_up_bias = a->expert_gate_up_bias;
        c->source.args.expert_down_bias = a->expert_down_bias;
        c->source.args.expert_gate_up_weights_scale = a->expert_gate_up_weights_scale;
        c->source.args.expert_down_weights_scale = a->expert_down_weights_scale;
    } else {
        source_make(&c->source, rows);
    }
    if (moe_experts_create(NULL, &c->source.args, &c->experts) != MOE_OK)
        fail_msg("%s", moe_last_error());
    take_weights(a);
    a->experts = c->experts;
}

static void call_free(packed_call *c)
{
    assert_int_equal(*c->experts->uses, 0);
    assert_int_equal(moe_experts_destroy(c->experts), MOE_OK);
    source_free(&c->source);
    layer_free(&c->layer);
}

static const layer_spec PLAIN = {.hidden = MOE_BF16,
                                 .weights = MOE_BF16,
                                 .T = 3,
                                 .H = 40,
                                 .I = 24,
                                 .E_L = 3,
                                 .K = 2,
                                 .scaling = MOE_POST_SCALE,
                                 .gate_up_bias = true,
                                 .down_bias = true,
                                 .scales = LAYER_ROW};
static const layer_spec STRIDED = {
    .hidden = MOE_BF16, .weights = MOE_MXFP4_X4, .T = 3, .H = 512, .I = 24, .E_L = 2, .K = 2};
static const source_spec MX4 = {
    .gate_up = MOE_E2M1_X2, .down = MOE_E2M1_X2, .mx = true, .E_L = 2, .H = 512, .I = 32};
static const source_spec MX8 = {
    .gate_up = MOE_E2M1_X2, .down = MOE_E4M3FN, .mx = true, .E_L = 2, .H = 512, .I = 32};

static void test_call_with_tensors(void **state)
{
    static const layer_tensor packed[] = {LAYER_GATE_UP,   LAYER_DOWN,          LAYER_GATE_UP_BIAS,
                                          LAYER_DOWN_BIAS, LAYER_GATE_UP_SCALE, LAYER_DOWN_SCALE};
    packed_call c;
    (void)state;
    call_make(&c, &PLAIN, NULL);
    expect_accepted(&c.layer.args);
    for (size_t i = 0; i < COUNT(packed); i++) {
        *layer_tensor_slot(&c.layer.args, packed[i]) = &c.layer.tensor[packed[i]];
        expect_refused(&c.layer.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE,
                       layer_tensor_name(packed[i]), "not together with experts");
        *layer_tensor_slot(&c.layer.args, packed[i]) = NULL;
    }
    expect_accepted(&c.layer.args);
    c.layer.args.experts = NULL;
    expect_refused(&c.layer.args, STATUS(MOE_E_NULL_ARG), BY_SHAPE, "expert_gate_up_weights",
                   "required");
    call_free(&c);
}

static void test_call_shapes(void **state)
{
    packed_call c;
    (void)state;
    call_make(&c, &PLAIN, NULL);
    c.layer.tensor[LAYER_HIDDEN].shape[1] = 39;
    expect_refused(&c.layer.args, STATUS(MOE_E_SHAPE), BY_SHAPE, "H = 39", "must be 40");
    c.layer.tensor[LAYER_HIDDEN].shape[1] = 40;
    c.layer.tensor[LAYER_AFFINITIES].shape[1] = 2;
    expect_refused(&c.layer.args, STATUS(MOE_E_SHAPE), BY_SHAPE, "E = 2", "E_L = 3");
    c.layer.tensor[LAYER_AFFINITIES].shape[1] = 3;
    int32_t *index = c.layer.data[LAYER_INDEX], before = index[3];
    index[3] = 3;
    expect_refused(&c.layer.args, STATUS(MOE_E_EXPERT_INDEX), BY_DATA, "expert_index[1][1] = 3",
                   "[0, 3)");
    index[3] = before;
    c.layer.args.act_mode = MOE_ACT_MXFP8;
    expect_refused(&c.layer.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, "act_mode = MXFP8", "bf16");
    c.layer.args.act_mode = MOE_ACT_INT8;
    expect_refused(&c.layer.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, "act_mode = INT8",
                   "bf16 and bf16");
    c.layer.args.act_mode = MOE_ACT_EXACT;
    expect_accepted(&c.layer.args);

    /* no tokens: nothing is read */
    for (int i = 0; i < LAYER_TENSORS; i++) c.layer.tensor[i].data = NULL;
    c.layer.tensor[LAYER_HIDDEN].shape[0] = c.layer.tensor[LAYER_INDEX].shape[0] =
        c.layer.tensor[LAYER_AFFINITIES].shape[0] = 0;
    assert_int_equal(moe_tkg(NULL, &c.layer.args, NULL, 0), MOE_OK);
    call_free(&c);
}

/* What is particular to the operator's own MX layout is refused with row-major MX experts. */
static void test_call_mx(void **state)
{
    packed_call c;
    layer_spec spec = STRIDED;
    (void)state;
    for (int place = LAYER_HBM; place <= LAYER_PREQUANT; place++) {
        spec.place = (layer_place)place;
        spec.all_expert = place == LAYER_PREQUANT;
        call_make(&c, &spec, NULL);
        for (int act = MOE_ACT_DEFAULT; act <= MOE_ACT_INT8; act++) {
            c.layer.args.act_mode = (moe_act_mode)act;
            expect_accepted(&c.layer.args);
        }
        call_free(&c);
        call_make(&c, &spec, &MX4);
        if (place == LAYER_SBUF || place == LAYER_PREQUANT)
            expect_refused(&c.layer.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, "hidden_input",
                           "operator's own layout");
        else
            expect_accepted(&c.layer.args);
        call_free(&c);
    }
    for (int fp8 = 0; fp8 <= 1; fp8++) {
        spec.place = LAYER_HBM;
        spec.all_expert = false;
        call_make(&c, &spec, fp8 ? &MX8 : &MX4);
        for (int act = MOE_ACT_DEFAULT; act <= MOE_ACT_INT8; act++) {
            c.layer.args.act_mode = (moe_act_mode)act;
            if (fp8 && act == MOE_ACT_INT8)
                expect_refused(&c.layer.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, "INT8",
                               "e2m1_x2 and e4m3fn");
            else
                expect_accepted(&c.layer.args);
        }
        problem p;
        c.layer.args.act_mode = MOE_ACT_DEFAULT;
        assert_int_equal(problem_shape(&c.layer.args, &p), MOE_OK);
        assert_int_equal(p.act, MOE_ACT_EXACT);
        assert_true(kernel_is_mx(p.gate_up) && p.experts == c.experts);
        call_free(&c);
    }
    call_make(&c, &STRIDED, NULL);
    problem p;
    assert_int_equal(problem_shape(&c.layer.args, &p), MOE_OK);
    assert_int_equal(p.act, MOE_ACT_MXFP8);
    call_free(&c);
}

static void test_no_handle(void **state)
{
    static _Alignas(64) unsigned char nothing[sizeof(moe_experts)];
    static const uint64_t bits[] = {1, 1ull << 8, 1ull << 16, 1ull << 63};
    packed_call c;
    moe_experts_info info = {.struct_size = sizeof info};
    (void)state;
    call_make(&c, &PLAIN, NULL);
    const moe_experts *none[] = {(const moe_experts *)(const void *)nothing,
                                 (const moe_experts *)(const void *)(nothing + 8)};
    for (size_t i = 0; i < COUNT(none); i++) {
        c.layer.args.experts = none[i];
        expect_refused(&c.layer.args, STATUS(MOE_E_ABI), BY_SHAPE, "experts", "moe_experts_create");
        expect_text("describe", moe_experts_describe(none[i], &info), MOE_E_ABI, "experts", "");
        expect_text("destroy", moe_experts_destroy((moe_experts *)(uintptr_t)none[i]), MOE_E_ABI,
                    "experts", "");
    }
    c.layer.args.experts = c.experts;
    for (size_t i = 0; i < COUNT(bits); i++) { /* another version, another mark */
        c.experts->mark ^= bits[i];
        expect_refused(&c.layer.args, STATUS(MOE_E_ABI), BY_SHAPE, "experts",
                       bits[i] < 1 << 16 ? "layout" : "moe_experts_create");
        c.experts->mark ^= bits[i];
    }
    expect_accepted(&c.layer.args);
    call_free(&c);
}

static void test_output_overlaps(void **state)
{
    packed_call c;
    size_t bytes;
    moe_tensor shape;
    (void)state;
    call_make(&c, &PLAIN, NULL);
    assert_int_equal(moe_tkg_output(&c.layer.args, &shape, &bytes), MOE_OK);
    unsigned char *copy = malloc(c.experts->bytes);
    assert_non_null(copy);
    memcpy(copy, c.experts, c.experts->bytes);
    const uintptr_t first = (uintptr_t)c.experts, end = first + c.experts->bytes;
    const uintptr_t at[] = {
        first, first + 2 - bytes, first + 64, (uintptr_t)c.experts->base, end - bytes, end - 2};
    for (size_t i = 0; i < COUNT(at); i++)
        expect_text("moe_tkg", moe_tkg(NULL, &c.layer.args, (void *)at[i], bytes), MOE_E_ALIAS,
                    "overlap experts", "output");
    assert_memory_equal(copy, c.experts, c.experts->bytes);
    free(copy);
    call_free(&c);
}

/* An allocator that tries to destroy experts at every request. */
typedef struct destroyer {
    moe_experts *experts;
    moe_status answer;
} destroyer;

static void *destroying_allocate(size_t bytes, size_t alignment, void *user)
{
    destroyer *d = user;
    void *memory = NULL;
    if (d->experts != NULL) d->answer = moe_experts_destroy(d->experts);
    return posix_memalign(&memory, alignment, bytes) == 0 ? memory : NULL;
}

static void plain_release(void *memory, size_t bytes, void *user)
{
    (void)bytes, (void)user;
    free(memory);
}

/* While a call has them: seen from inside one, in its context's allocator. */
static void test_busy(void **state)
{
    packed_call c;
    destroyer d = {.experts = NULL};
    size_t bytes;
    moe_tensor shape;
    (void)state;
    call_make(&c, &PLAIN, NULL);
    moe_context *context;
    moe_context_options options = moe_context_options_init();
    options.threads = 1;
    options.allocate = destroying_allocate;
    options.release = plain_release;
    options.user = &d;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    assert_int_equal(moe_tkg_output(&c.layer.args, &shape, &bytes), MOE_OK);
    void *output = malloc(bytes);
    d.experts = c.experts;
    assert_int_equal(moe_tkg(context, &c.layer.args, output, bytes), MOE_OK);
    assert_int_equal(d.answer, MOE_E_BUSY);
    d.experts = NULL;
    assert_int_equal(experts_enter(c.experts), MOE_OK);
    assert_int_equal(experts_enter(c.experts), MOE_OK);
    expect_text("destroy", moe_experts_destroy(c.experts), MOE_E_BUSY, "experts", "2 calls");
    experts_leave(c.experts);
    experts_leave(c.experts);
    free(output);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
    call_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_call_with_tensors), cmocka_unit_test(test_call_shapes),
        cmocka_unit_test(test_call_mx),           cmocka_unit_test(test_no_handle),
        cmocka_unit_test(test_output_overlaps),   cmocka_unit_test(test_busy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
