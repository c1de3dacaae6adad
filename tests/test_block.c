/* SPDX-License-Identifier: Apache-2.0 */
/* test_block.c - moe_block: golden cases, the document's bits for random blocks of every kind on
 * whatever runs them, memory, and what is refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../tools/paths.h"
#include "block_case.h"
#include "block_ref.h"
#include "canon_ref.h"
#include "golden.h"
#include "io/safetensors.h"
#include "numeric.h"
#include "random_layer.h"

static moe_context *context_of(const char *isa, int32_t threads)
{
    moe_context_options options = moe_context_options_init();
    moe_context *context;
    options.isa = isa;
    options.threads = threads;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    return context;
}

/* ---- golden cases ---------------------------------------------------------------------------- */

enum { FILE_TENSORS = 16 };

typedef struct golden_block {
    st_file *file;
    size_t n;
    moe_tensor tensor[FILE_TENSORS];
} golden_block;

static moe_dtype stored_dtype(const golden_block *g, const st_tensor *t)
{
    char key[80];
    snprintf(key, sizeof key, "dtype.%s", t->name);
    const char *name = st_metadata(g->file, key);
    if (name != NULL && strcmp(name, "mxfp4_x4") == 0) return MOE_MXFP4_X4;
    switch (t->dtype) {
    case ST_BF16: return MOE_BF16;
    case ST_F16: return MOE_F16;
    case ST_F8_E8M0: return MOE_E8M0;
    default: return MOE_F32;
    }
}

/* NULL if the file has none. */
static const moe_tensor *tensor_of(golden_block *g, const char *name)
{
    const st_tensor *t = st_find(g->file, name);
    if (t == NULL) return NULL;
    void *data = malloc(t->bytes);
    assert_non_null(data);
    assert_int_equal(st_read(g->file, t, data, NULL), IO_OK);
    assert_true(g->n < FILE_TENSORS);
    moe_tensor *to = &g->tensor[g->n++];
    *to = moe_tensor_nd(data, stored_dtype(g, t), t->rank, t->shape);
    return to;
}

static double number_of(const golden_block *g, const char *key)
{
    const char *text = st_metadata(g->file, key);
    return text != NULL ? strtod(text, NULL) : 0;
}

static moe_optional_float limit_of(const golden_block *g, const char *key)
{
    if (st_metadata(g->file, key) == NULL) return (moe_optional_float){0, 0};
    return moe_given_float((float)number_of(g, key));
}

static bool says(const golden_block *g, const char *key, const char *value)
{
    return strcmp(st_metadata(g->file, key), value) == 0;
}

static moe_array vector_of(const moe_tensor *t)
{
    if (t == NULL) return (moe_array){.dtype = MOE_DTYPE_NONE};
    return (moe_array){
        .dtype = t->dtype, .data = t->data, .row_stride = (int64_t)moe_dtype_size(t->dtype)};
}

static void describe_router(golden_block *g, moe_block_args *a)
{
    const moe_tensor *w = tensor_of(g, "router_weights");
    const int64_t size = (int64_t)moe_dtype_size(w->dtype);
    const bool before = number_of(g, "router_pre_norm") == 1;
    a->router.E = (int64_t)number_of(g, "E");
    a->router.K = (int64_t)number_of(g, "top_k");
    a->router.weights = (moe_array){.dtype = w->dtype,
                                    .data = w->data,
                                    .row_stride = size,
                                    .column_stride = size * w->shape[1]};
    a->router.bias = vector_of(tensor_of(g, "router_bias"));
    a->router.score = says(g, "router_act_fn", "SIGMOID") ? MOE_SCORE_SIGMOID
                      : before                            ? MOE_SCORE_SOFTMAX
                                                          : MOE_SCORE_TOPK_SOFTMAX;
    a->router.normalize = number_of(g, "norm_topk_prob") == 1;
}

static void expect_near(const char *path, const golden_block *g, const char *what,
                        const moe_tensor *expected, const float *got)
{
    size_t n = 1;
    double most = 0;
    const float *want = expected->data;
    for (int d = 0; d < expected->rank; d++) n *= (size_t)expected->shape[d];
    for (size_t i = 0; i < n; i++)
        most = most < fabs((double)want[i]) ? fabs((double)want[i]) : most;
    const double limit = number_of(g, "atol") + number_of(g, "rtol") * most;
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)want[i] - (double)got[i]);
        if (!(error <= limit)) fail_msg("%s: %s: error %g, limit %g", path, what, error, limit);
    }
}

static void golden_case(const char *path)
{
    golden_block g = {.n = 0};
    assert_int_equal(st_open(path, &g.file, NULL), IO_OK);
    const size_t T = (size_t)(number_of(&g, "B") * number_of(&g, "S")),
                 H = (size_t)number_of(&g, "H"), E = (size_t)number_of(&g, "E");
    uint32_t rank = strstr(path, "rank1") != NULL;
    moe_tensor rank_id = moe_tensor_2d(&rank, MOE_U32, 1, 1);
    moe_block_args a = moe_block_args_init();
    moe_tkg_args *e = &a.experts;
    e->hidden_input = tensor_of(&g, "inp");
    e->expert_gate_up_weights = tensor_of(&g, "expert_gate_up_weights");
    e->expert_down_weights = tensor_of(&g, "expert_down_weights");
    e->expert_gate_up_bias = tensor_of(&g, "expert_gate_up_bias");
    e->expert_down_bias = tensor_of(&g, "expert_down_bias");
    e->expert_gate_up_weights_scale = tensor_of(&g, "expert_gate_up_weights_scale");
    e->expert_down_weights_scale = tensor_of(&g, "expert_down_weights_scale");
    e->is_all_expert = number_of(&g, "is_all_expert") == 1;
    if (e->is_all_expert) e->rank_id = &rank_id;
    e->activation_fn = says(&g, "activation_fn", "swish") ? MOE_SWISH : MOE_SILU;
    e->gate_clamp_upper_limit = limit_of(&g, "gate_clamp_upper_limit");
    e->up_clamp_upper_limit = limit_of(&g, "up_clamp_upper_limit");
    e->up_clamp_lower_limit = limit_of(&g, "up_clamp_lower_limit");
    e->output_dtype = MOE_F32;
    a.gamma = vector_of(tensor_of(&g, "gamma"));
    a.norm_epsilon = (float)number_of(&g, "eps");
    a.norm_H = (int64_t)number_of(&g, "hidden_actual");
    describe_router(&g, &a);
    float *output = malloc(T * H * sizeof *output), *logits = malloc(T * E * sizeof *logits);
    assert_non_null(output);
    assert_non_null(logits);
    a.routed.logits = logits;
    for (size_t i = 0; moe_isa_level(i) != NULL; i++) {
        moe_context *context = context_of(moe_isa_level(i), 2);
        moe_status s = moe_block(context, &a, output, T * H * sizeof *output);
        if (s != MOE_OK) fail_msg("%s: %s", path, moe_last_error());
        expect_near(path, &g, "output", tensor_of(&g, "expected"), output);
        expect_near(path, &g, "logits", tensor_of(&g, "expected_router_logits"), logits);
        for (size_t n = 0; n < 2; n++) free((void *)(uintptr_t)g.tensor[--g.n].data);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
    }
    while (g.n > 0) free((void *)(uintptr_t)g.tensor[--g.n].data);
    free(output);
    free(logits);
    st_close(g.file);
}

static void test_golden(void **state)
{
    (void)state;
    assert_true(golden_each("moe_block", golden_case) >= 4);
}

/* ---- the document ---------------------------------------------------------------------------- */

static void *reference(const block_case *b, size_t bytes)
{
    void *expected = malloc(bytes + 1);
    assert_non_null(expected);
    block_ref(&b->args, NULL, b->shared != NULL ? &b->source.args : NULL, expected);
    return expected;
}

static void expect_run(const void *expected, moe_context *context, const moe_block_args *args,
                       const char *what)
{
    size_t bytes;
    void *got = block_case_run(context, args, &bytes);
    random_expect_bits(expected, got, bytes, what);
}

/* On every level, with threads and without, with experts packed and not. */
static void equals_the_document(layer_spec spec)
{
    static moe_context *context[16][2];
    block_case b;
    size_t bytes;
    block_case_make(&b, block_case_spec(spec));
    void *first = block_case_run(NULL, &b.args, &bytes), *expected = reference(&b, bytes);
    moe_experts *experts = layer_pack(NULL, &b.layer, MOE_PACK_PLAIN);
    moe_block_args packed = b.args;
    packed.experts = path_with_experts(&b.args.experts, experts);
    random_expect_bits(expected, first, bytes, "not what docs/numerics.md says");
    for (size_t i = 0; moe_isa_level(i) != NULL; i++)
        for (size_t n = 0; n < 2; n++) {
            if (context[i][n] == NULL) context[i][n] = context_of(moe_isa_level(i), n == 0 ? 1 : 3);
            expect_run(expected, context[i][n], &b.args, moe_isa_level(i));
            expect_run(expected, context[i][n], &packed, "packed");
        }
    assert_int_equal(moe_experts_destroy(experts), MOE_OK);
    free(expected);
    block_case_free(&b);
}

/* A token alone has the bits that it has among others, whatever these are. */
static void tokens_are_alone(layer_spec spec)
{
    block_case b;
    size_t bytes;
    spec.wild |= LAYER_WILD_SPECIAL;
    spec.T += 3;
    block_case_make(&b, block_case_spec(spec));
    char *all = block_case_run(NULL, &b.args, &bytes);
    const size_t T = (size_t)b.layer.spec.T, row = bytes / T,
                 x_row = b.layer.bytes[LAYER_HIDDEN] / T;
    moe_tensor x = *b.args.experts.hidden_input;
    moe_block_args part = b.args;
    for (size_t t = 0, n; t < T; t += n) {
        n = t == 0 ? 1 : t + 2 <= T ? 2 : 1;
        char *memory = malloc(n * x_row + 16), what[60];
        assert_non_null(memory);
        const size_t shift = t % 2 * moe_dtype_size(x.dtype);
        memcpy(memory + shift, (char *)b.layer.data[LAYER_HIDDEN] + t * x_row, n * x_row);
        moe_tensor some = moe_tensor_2d(memory + shift, x.dtype, (int64_t)n, b.layer.spec.H);
        part.experts.hidden_input = &some;
        snprintf(what, sizeof what, "tokens %zu and %zu of %zu", t, n, T);
        expect_run(all + t * row, NULL, &part, what);
        free(memory);
    }
    free(all);
    block_case_free(&b);
}

static void backwards(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user)
{
    (void)user;
    for (size_t i = n; i-- > 0;) body(arg, i);
}

/* In place, and on a caller's threads. */
static void in_place_and_elsewhere(layer_spec spec)
{
    static moe_context *context;
    moe_context_options options = moe_context_options_init();
    options.threads = 4;
    options.parallel_for = backwards;
    if (context == NULL) assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    block_case b;
    size_t bytes;
    spec = block_case_spec(spec);
    block_case_make(&b, spec);
    void *expected = block_case_run(NULL, &b.args, &bytes);
    expect_run(expected, context, &b.args, "parallel_for");
    if (bytes == b.layer.bytes[LAYER_HIDDEN]) {
        assert_int_equal(moe_block(context, &b.args, b.layer.data[LAYER_HIDDEN], bytes), MOE_OK);
        assert_memory_equal(expected, b.layer.data[LAYER_HIDDEN], bytes);
    }
    free(expected);
    block_case_free(&b);
}

/* What the router of a block gives is what it gives by itself for the normalised rows: here those
 * that a norm leaves as they are. */
static void test_routed(void **state)
{
    (void)state;
    block_case b;
    for (unsigned v = 0; v < 12; v++) {
        layer_spec spec = block_case_spec(random_layer(v % 3, v));
        block_case_make(&b, spec);
        b.args.gamma.dtype = MOE_DTYPE_NONE;
        b.args.norm_epsilon = 0;
        b.args.norm_H = 0;
        const size_t T = (size_t)b.layer.spec.T, E = (size_t)b.args.router.E,
                     K = (size_t)b.args.router.K;
        float *memory[2];
        for (size_t i = 0; i < 2; i++) {
            memory[i] = calloc(T * (2 * K + 3 * E), sizeof(float));
            assert_non_null(memory[i]);
            float *at = memory[i] + T * K;
            moe_router_output out = {(int32_t *)(void *)memory[i], at, at + T * K, at + T * (K + E),
                                     at + T * (K + 2 * E)};
            if (i == 0) {
                b.args.routed = out;
                free(block_case_run(NULL, &b.args, NULL));
                continue;
            }
            moe_router_args router = b.args.router;
            router.x = b.args.experts.hidden_input;
            assert_int_equal(moe_router_topk(NULL, &router, &out), MOE_OK);
        }
        assert_memory_equal(memory[0], memory[1], T * (2 * K + 3 * E) * sizeof(float));
        for (size_t i = 0; i < 2; i++) free(memory[i]);
        block_case_free(&b);
    }
}

/* More tokens than the router takes at a time; all-expert mode has no limit of its own. */
static void test_many_tokens(void **state)
{
    (void)state;
    block_case b;
    size_t bytes;
    layer_spec spec = {.seed = 3,
                       .hidden = MOE_BF16,
                       .weights = MOE_BF16,
                       .T = 301,
                       .H = 40,
                       .I = 9,
                       .E_L = 2,
                       .E = 4,
                       .rank = 1,
                       .all_expert = true,
                       .scaling = MOE_POST_SCALE};
    block_case_make(&b, spec);
    void *got = block_case_run(NULL, &b.args, &bytes), *expected = reference(&b, bytes);
    assert_memory_equal(expected, got, bytes);
    free(got);
    free(expected);
    block_case_free(&b);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void refused(const moe_block_args *a, moe_status status, const char *text)
{
    static unsigned char output[4096];
    memset(output, 0xA5, sizeof output);
    moe_status s = moe_block(NULL, a, output, sizeof output);
    if (s != status || strstr(moe_last_error(), text) == NULL)
        fail_msg("%s (%s): %s: \"%s\"", moe_status_name(status), text, moe_status_name(s),
                 moe_last_error());
    for (size_t i = 0; i < sizeof output; i++) assert_int_equal(output[i], 0xA5);
}

#define REFUSED(change, status, text)                                                              \
    a = good;                                                                                      \
    change;                                                                                        \
    refused(&a, status, text)

static layer_spec small_spec(bool all_expert)
{
    return (layer_spec){.seed = 6,
                        .hidden = MOE_F32,
                        .weights = MOE_F32,
                        .T = 2,
                        .H = 8,
                        .I = 4,
                        .E_L = 3,
                        .K = 2,
                        .all_expert = all_expert,
                        .scaling = MOE_POST_SCALE};
}

/* A block with every part: gamma, gate and shared expert. */
static void small_block(block_case *b, bool all_expert, float *vector)
{
    block_case_make(b, small_spec(all_expert));
    const moe_array row = {.dtype = MOE_F32, .data = vector, .row_stride = 4};
    if (b->shared == NULL) {
        source_make(
            &b->source,
            &(source_spec){.gate_up = MOE_BF16, .down = MOE_BF16, .E_L = 1, .H = 8, .I = 5});
        assert_int_equal(moe_experts_create(NULL, &b->source.args, &b->shared), MOE_OK);
        b->args.shared = b->shared;
    }
    b->args.gamma = b->args.shared_gate = row;
    b->args.norm_epsilon = 1e-6f;
    b->args.norm_H = 0;
    b->args.experts.skip_invalid_experts = 0;
    b->args.router.E = 3;
    b->args.router.K = 2;
    b->args.router.bias.dtype = b->args.router.selection_bias.dtype = MOE_DTYPE_NONE;
}

static moe_experts *packed_experts(int64_t E_L, int64_t H)
{
    source s;
    moe_experts *x;
    source_make(&s,
                &(source_spec){.gate_up = MOE_BF16, .down = MOE_BF16, .E_L = E_L, .H = H, .I = 5});
    assert_int_equal(moe_experts_create(NULL, &s.args, &x), MOE_OK);
    source_free(&s);
    return x;
}

static void test_refused(void **state)
{
    (void)state;
    static float vector[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    block_case b;
    small_block(&b, false, vector);
    moe_block_args good = b.args, a;
    moe_tensor any = moe_tensor_2d(vector, MOE_F32, 2, 2);
    moe_experts *two = packed_experts(2, 8), *wide = packed_experts(1, 9);
    free(block_case_run(NULL, &good, NULL));
    assert_int_equal(moe_block(NULL, NULL, NULL, 0), MOE_E_NULL_ARG);
    REFUSED(a.struct_size = 1, MOE_E_ABI, "moe_block_args");
    REFUSED(a.experts.struct_size = 1, MOE_E_ABI, "moe_tkg_args");
    REFUSED(a.router.struct_size = 1, MOE_E_ABI, "moe_router_args");
    REFUSED(a.experts.expert_index = &any, MOE_E_UNSUPPORTED, "experts.expert_index");
    REFUSED(a.experts.expert_affinities = &any, MOE_E_UNSUPPORTED, "expert_affinities is given");
    REFUSED(a.experts.expert_affinities_eager = &any, MOE_E_UNSUPPORTED, "eager");
    REFUSED(a.experts.mask_unselected_experts = 1, MOE_E_UNSUPPORTED, "mask");
    REFUSED(a.experts.mask_unselected_experts = 2, MOE_E_BAD_ENUM, "mask");
    REFUSED(a.router.x = &any, MOE_E_UNSUPPORTED, "router.x");
    REFUSED(a.router.E = 2, MOE_E_SHAPE, "router.E = 2");
    REFUSED(a.router.E = 4, MOE_E_SHAPE, "must be E_L = 3");
    REFUSED((a.router.E = 2, a.experts.skip_invalid_experts = 1), MOE_E_SHAPE, "router.E");
    REFUSED(a.router.weights.dtype = MOE_E4M3FN, MOE_E_DTYPE, "router.weights");
    REFUSED(a.router.weights.data = NULL, MOE_E_NULL_ARG, "router.weights");
    REFUSED(a.experts.hidden_input = NULL, MOE_E_NULL_ARG, "hidden_input");
    REFUSED(a.experts.expert_down_weights = NULL, MOE_E_NULL_ARG, "expert_down_weights");
    REFUSED(a.experts.expert_affinities_scaling_mode = MOE_PRE_SCALE, MOE_E_UNSUPPORTED,
            "PRE_SCALE");
    REFUSED(a.experts.activation_fn = MOE_SWIGLU, MOE_E_NULL_ARG, "swiglu_alpha");
    REFUSED(a.experts.is_all_expert = 1, MOE_E_NULL_ARG, "rank_id");
    REFUSED(a.gamma.dtype = MOE_I32, MOE_E_DTYPE, "gamma");
    REFUSED(a.gamma.data = NULL, MOE_E_NULL_ARG, "gamma");
    REFUSED(a.gamma.row_stride = 2, MOE_E_ALIGN, "gamma");
    REFUSED(a.norm_epsilon = NAN, MOE_E_VALUE, "norm_epsilon");
    REFUSED(a.norm_epsilon = -1, MOE_E_VALUE, "norm_epsilon");
    REFUSED(a.norm_H = -1, MOE_E_VALUE, "norm_H = -1");
    REFUSED((a.norm_H = 8, a.gamma.dtype = MOE_DTYPE_NONE), MOE_E_VALUE, "norm_H = 8");
    REFUSED(a.shared = NULL, MOE_E_NULL_ARG, "shared = NULL");
    REFUSED(a.shared = two, MOE_E_SHAPE, "E_L = 2");
    REFUSED(a.shared = wide, MOE_E_SHAPE, "H = 9");
    REFUSED(a.shared = (const moe_experts *)(const void *)&good, MOE_E_ABI, "experts");
    REFUSED(a.shared_gate.data = (char *)vector + 1, MOE_E_ALIGN, "shared_gate");
    REFUSED(a.routed.logits = vector, MOE_E_ALIAS, "routed.logits");
    REFUSED(a.routed.index = b.layer.data[LAYER_HIDDEN], MOE_E_ALIAS, "routed.index");
    REFUSED(a.routed.weights = b.layer.data[LAYER_GATE_UP], MOE_E_ALIAS, "tensor of experts");
    assert_int_equal(moe_block(NULL, &good, NULL, 1000), MOE_E_NULL_ARG);
    assert_int_equal(moe_block(NULL, &good, vector, 8), MOE_E_OVERFLOW);
    assert_int_equal(moe_block(NULL, &good, b.layer.data[LAYER_DOWN], 64), MOE_E_ALIAS);
    assert_int_equal(moe_block(NULL, &good, (void *)(uintptr_t)b.args.router.weights.data, 64),
                     MOE_E_ALIAS);
    assert_int_equal(moe_experts_destroy(two), MOE_OK);
    assert_int_equal(moe_experts_destroy(wide), MOE_OK);
    block_case_free(&b);
}

/* A layer of a wider H in SBUF, which is refused for its layout alone. */
static void test_layout(void **state)
{
    (void)state;
    block_case b;
    layer_spec spec = small_spec(false);
    spec.H = 128;
    spec.place = LAYER_SBUF;
    block_case_make(&b, spec);
    b.args.experts.skip_invalid_experts = 1;
    refused(&b.args, MOE_E_LAYOUT, "must be HBM");
    block_case_free(&b);
}

static void test_no_tokens(void **state)
{
    (void)state;
    block_case b;
    static float vector[8];
    small_block(&b, false, vector);
    moe_tensor none = moe_tensor_2d(NULL, MOE_F32, 0, 8);
    b.args.experts.hidden_input = &none;
    assert_int_equal(moe_block(NULL, &b.args, NULL, 0), MOE_OK);
    block_case_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),       RANDOM_LAYER_TEST(equals_the_document),
        RANDOM_LAYER_TEST(tokens_are_alone), RANDOM_LAYER_TEST(in_place_and_elsewhere),
        cmocka_unit_test(test_routed),       cmocka_unit_test(test_many_tokens),
        cmocka_unit_test(test_refused),      cmocka_unit_test(test_layout),
        cmocka_unit_test(test_no_tokens),
    };
    return cmocka_run_group_tests_name("block", tests, NULL, NULL);
}
