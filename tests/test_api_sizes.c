/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_sizes.c - dimensions of zero, huge dimensions, and the sizes in between at which a
 * rule turns. */
#include "expect.h"

#include <stdlib.h>

static const layer_spec SPECS[] = {
    {.hidden = MOE_BF16,
     .weights = MOE_BF16,
     .T = 3,
     .H = 8,
     .I = 5,
     .E_L = 2,
     .E = 4,
     .K = 2,
     .scaling = MOE_POST_SCALE,
     .gate_up_bias = true,
     .down_bias = true,
     .scales = LAYER_ROW,
     .output = MOE_F32},
    {.hidden = MOE_F32,
     .weights = MOE_F16,
     .T = 3,
     .H = 8,
     .I = 5,
     .E_L = 2,
     .E = 4,
     .K = 2,
     .scaling = MOE_POST_SCALE,
     .all_expert = true,
     .mask = true},
    {.hidden = MOE_F16,
     .weights = MOE_F32,
     .T = 3,
     .H = 256,
     .I = 5,
     .E_L = 2,
     .E = 4,
     .K = 2,
     .place = LAYER_SBUF,
     .scaling = MOE_POST_SCALE,
     .output_in_sbuf = true},
    {.hidden = MOE_F16,
     .weights = MOE_MXFP8_X4,
     .T = 3,
     .H = 512,
     .I = 40,
     .E_L = 2,
     .E = 4,
     .K = 2,
     .scaling = MOE_POST_SCALE,
     .gate_up_bias = true,
     .down_bias = true},
    {.weights = MOE_MXFP4_X4,
     .T = 3,
     .H = 1024,
     .I = 520,
     .E_L = 2,
     .E = 4,
     .K = 2,
     .place = LAYER_PREQUANT,
     .scaling = MOE_POST_SCALE,
     .all_expert = true,
     .mask = true},
};

/* ---- descriptions without data --------------------------------------------------------------- */

/* Gives the tensors of l the shapes that they would have in shapes, whatever the memory behind. */
static void reshape(layer *l, const layer_spec *shapes)
{
    const layer_spec defaults = l->spec;
    l->spec.T = shapes->T;
    l->spec.H = shapes->H;
    l->spec.I = shapes->I;
    l->spec.E_L = shapes->E_L;
    l->spec.E = shapes->E;
    l->spec.K = shapes->K;
    for (int which = 0; which < LAYER_TENSORS; which++) {
        if (l->bytes[which] == 0) continue;
        l->tensor[which] = layer_shape(l, (layer_tensor)which);
        l->tensor[which].data = l->data[which];
    }
    l->spec = defaults;
}

static int64_t *dimension(layer_spec *s, size_t d)
{
    int64_t *const dimensions[] = {&s->T, &s->H, &s->I, &s->E_L, &s->E, &s->K};
    return dimensions[d];
}

enum { TOKENS = 0, ROUTING_DIMENSION = 4 /* E and K alone may be huge */, DIMENSIONS = 6 };

/* ---- zero ------------------------------------------------------------------------------------ */

static void test_zero_dimensions(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer l;
        layer_make(&l, &SPECS[i]);
        for (size_t d = TOKENS + 1; d < DIMENSIONS; d++)
            for (int64_t T = 0; T <= 3; T += 3) {
                layer_spec shapes = SPECS[i];
                shapes.T = T;
                *dimension(&shapes, d) = 0;
                reshape(&l, &shapes);
                expect_refused(&l.args, STATUS(MOE_E_DIM), BY_SHAPE, NULL, "= 0");
            }
        layer_free(&l);
    }
}

/* No tokens: nothing is read or written, so that no pointer need be there. */
static void test_no_tokens(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer l;
        layer_spec shapes = SPECS[i];
        shapes.T = 0;
        layer_make(&l, &SPECS[i]);
        reshape(&l, &shapes);
        for (int which = 0; which < LAYER_TENSORS; which++) l.tensor[which].data = NULL;
        expect_accepted(&l.args);
        moe_context *context;
        assert_int_equal(moe_context_create(NULL, &context), MOE_OK);
        unsigned char byte = 0xA5;
        assert_int_equal(moe_tkg(NULL, &l.args, NULL, 0), MOE_OK);
        assert_int_equal(moe_tkg(NULL, &l.args, &byte, 1), MOE_OK);
        assert_int_equal(moe_tkg(context, &l.args, NULL, 0), MOE_OK);
        assert_int_equal(byte, 0xA5);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
        layer_free(&l);
    }
}

/* T = 0 is no excuse for the rest. */
static void test_no_tokens_and_wrong(void **state)
{
    (void)state;
    layer l;
    layer_spec shapes = SPECS[0];
    shapes.T = 0;
    layer_make(&l, &SPECS[0]);
    reshape(&l, &shapes);
    l.tensor[LAYER_DOWN].shape[1]++;
    expect_refused(&l.args, STATUS(MOE_E_SHAPE), BY_SHAPE, "expert_down_weights", NULL);
    layer_free(&l);
}

/* ---- huge ------------------------------------------------------------------------------------ */

static const int64_t LARGE[] = {
    INT32_MAX,
    (int64_t)INT32_MAX + 1,
    (int64_t)INT32_MAX + 2,
    UINT32_MAX,
    1 + (int64_t)UINT32_MAX,
    2 + (int64_t)UINT32_MAX,
    INT64_MAX,
    (int64_t)1 << 62,
    INT64_MAX / 2,
    INT64_MAX / 4 + 1,
    INT64_MAX / 128 + 1,
    INT64_MAX / 512 + 1,
    ((int64_t)1 << 54),
    3037000500, /* the first whose square is past 2^63 */
    0,          /* which excuses no other dimension */
};

enum { TOO_LARGE = STATUS(MOE_E_OVERFLOW) | STATUS(MOE_E_SHAPE) | STATUS(MOE_E_DIM) };

/* Whether the bytes of t fit in PTRDIFF_MAX, zero dimensions left out. */
static bool fits(const moe_tensor *t)
{
    int64_t most = PTRDIFF_MAX / (int64_t)moe_dtype_size(t->dtype);
    for (int d = 0; d < t->rank; d++)
        if (t->shape[d] > 0) most /= t->shape[d];
    return most > 0;
}

static bool all_fit(const layer *l)
{
    for (int which = 0; which < LAYER_TENSORS; which++)
        if (l->bytes[which] > 0 && !fits(&l->tensor[which])) return false;
    return true;
}

/* One tensor with one or two huge dimensions: it fits with nothing else, and no byte is asked
 * for or read. */
static void test_huge_tensors(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer l;
        layer_make(&l, &SPECS[i]);
        for (int which = 0; which < LAYER_TENSORS; which++) {
            moe_tensor *t = &l.tensor[which], before = *t;
            if (l.bytes[which] == 0) continue;
            for (int a = 0; a < t->rank; a++)
                for (int b = a; b < t->rank; b++)
                    for (size_t v = 0; v < COUNT(LARGE); v++) {
                        t->shape[a] = LARGE[v];
                        t->shape[b] = LARGE[(v * 5 + 3) % COUNT(LARGE)];
                        /* E and K alone may be as large as they like. */
                        bool is_free = (which == LAYER_AFFINITIES || which == LAYER_INDEX) &&
                                       a == 1 && t->shape[1] > 0;
                        if (!fits(t))
                            expect_refused(&l.args, STATUS(MOE_E_OVERFLOW), BY_SHAPE,
                                           layer_tensor_name((layer_tensor)which), NULL);
                        else if (is_free)
                            expect_accepted(&l.args);
                        else
                            expect_refused(&l.args, TOO_LARGE, BY_SHAPE, NULL, NULL);
                        *t = before;
                    }
        }
        layer_free(&l);
    }
}

/* Whole problems with two huge dimensions, each tensor in agreement with the others.  Some can
 * be described (their output is below 2^63 bytes); such a call is given no output, so that it
 * must stop before it reads anything. */
static void test_huge_problems(void **state)
{
    (void)state;
    static _Alignas(64) unsigned char output[64];
    unsigned described = 0, refused = 0;
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer l;
        layer_make(&l, &SPECS[i]);
        for (size_t pair = 0; pair < DIMENSIONS * DIMENSIONS; pair++)
            for (size_t v = 0; v < COUNT(LARGE) * COUNT(LARGE); v++) {
                layer_spec shapes = SPECS[i];
                *dimension(&shapes, pair % DIMENSIONS) = LARGE[v % COUNT(LARGE)];
                *dimension(&shapes, pair / DIMENSIONS) = LARGE[v / COUNT(LARGE)];
                if (shapes.I > INT64_MAX - 511) shapes.I = INT64_MAX - 511; /* layer.c rounds up */
                reshape(&l, &shapes);
                moe_tensor shape;
                size_t bytes;
                moe_status status = moe_tkg_output(&l.args, &shape, &bytes);
                if (!all_fit(&l)) {
                    assert_int_equal(status, MOE_E_OVERFLOW);
                } else if (status == MOE_OK && shapes.T > 0) {
                    assert_true(fits(&shape));
                    assert_int_equal(moe_tkg(NULL, &l.args, output, bytes - 1), MOE_E_OVERFLOW);
                } else if (status == MOE_OK) {
                    assert_int_equal(moe_tkg(NULL, &l.args, NULL, 0), MOE_OK);
                } else if ((STATUS(status) & (TOO_LARGE | STATUS(MOE_E_UNSUPPORTED))) == 0) {
                    fail_msg("%s: %s", moe_status_name(status), moe_last_error());
                }
                described += status == MOE_OK;
                refused += status != MOE_OK;
            }
        layer_free(&l);
    }
    assert_true(described > 0 && refused > 0);
}

/* Refusals come before memory is asked for. */
static void *count_allocations(size_t bytes, size_t alignment, void *user)
{
    ++*(unsigned *)user;
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void release(void *memory, size_t bytes, void *user)
{
    (void)bytes;
    (void)user;
    free(memory);
}

static void test_refusals_allocate_nothing(void **state)
{
    (void)state;
    unsigned allocations = 0;
    moe_context_options options = moe_context_options_init();
    options.threads = 1;
    options.allocate = count_allocations;
    options.release = release;
    options.user = &allocations;
    moe_context *context;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    unsigned before = allocations;
    static _Alignas(64) unsigned char output[64];
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer l;
        layer_make(&l, &SPECS[i]);
        for (size_t d = 0; d < ROUTING_DIMENSION; d++) {
            layer_spec shapes = SPECS[i];
            *dimension(&shapes, d) = INT64_MAX / 512 + 1;
            reshape(&l, &shapes);
            assert_int_not_equal(moe_tkg(context, &l.args, output, sizeof output), MOE_OK);
        }
        layer_free(&l);
    }
    assert_int_equal(allocations, before);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
}

/* ---- in between ------------------------------------------------------------------------------ */

static void test_token_limit(void **state)
{
    (void)state;
    for (int64_t T = 127; T <= 129; T++)
        for (int all_expert = 0; all_expert <= 1; all_expert++) {
            layer l;
            layer_make(&l, &(layer_spec){.hidden = MOE_F32,
                                         .weights = MOE_F32,
                                         .T = T,
                                         .H = 2,
                                         .I = 2,
                                         .E_L = 2,
                                         .all_expert = all_expert});
            if (T <= 128 || all_expert)
                expect_runs(&l);
            else
                expect_refused(&l.args, STATUS(MOE_E_UNSUPPORTED), BY_SHAPE, "T", "129");
            layer_free(&l);
        }
}

/* In all-expert mode T ends where an int32 does. */
static void test_most_tokens(void **state)
{
    (void)state;
    layer l;
    layer_make(&l, &SPECS[1]);
    layer_spec shapes = SPECS[1];
    shapes.T = INT32_MAX;
    reshape(&l, &shapes);
    expect_accepted(&l.args);
    shapes.T++;
    reshape(&l, &shapes);
    expect_refused(&l.args, STATUS(MOE_E_OVERFLOW), BY_SHAPE, "T", "= 2147483648");
    layer_free(&l);
}

/* I_p of the down weights: enough for the last tile, a multiple of 8, at most 128. */
static void test_partitions(void **state)
{
    (void)state;
    static const struct {
        int64_t I, least;
    } cases[] = {{1, 8},    {8, 8},     {32, 8},    {33, 16},   {90, 24},   {96, 24},
                 {360, 96}, {480, 120}, {481, 128}, {512, 128}, {513, 128}, {1024, 128}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        layer l;
        layer_make(&l, &(layer_spec){.hidden = MOE_BF16,
                                     .weights = MOE_MXFP4_X4,
                                     .T = 1,
                                     .H = 512,
                                     .I = cases[i].I,
                                     .E_L = 1,
                                     .gate_up_bias = true});
        assert_int_equal(l.tensor[LAYER_DOWN].shape[1], cases[i].least);
        for (int64_t I_p = 0; I_p <= 136; I_p++) {
            l.tensor[LAYER_DOWN].shape[1] = l.tensor[LAYER_GATE_UP_BIAS].shape[1] = I_p;
            l.tensor[LAYER_DOWN_SCALE].shape[1] = I_p / 8;
            if (I_p >= cases[i].least && I_p <= 128 && I_p % 8 == 0)
                expect_accepted(&l.args);
            else
                expect_refused(&l.args, STATUS(MOE_E_SHAPE) | STATUS(MOE_E_DIM), BY_SHAPE,
                               "expert_down_weights", NULL);
        }
        layer_free(&l);
    }
}

/* H of MX weights is a multiple of 512; in SBUF of 128; else free. */
static void test_hidden_sizes(void **state)
{
    (void)state;
    layer mx, plain;
    layer_make(&mx, &SPECS[3]);
    layer_make(&plain, &SPECS[0]);
    for (int64_t H = 1; H <= 1100; H++) {
        layer_spec shapes = SPECS[3];
        shapes.H = H;
        reshape(&mx, &shapes);
        if (H % 512 == 0)
            expect_accepted(&mx.args);
        else
            expect_refused(&mx.args, STATUS(MOE_E_SHAPE), BY_SHAPE, "H", "512");
        shapes = SPECS[0];
        shapes.H = H;
        reshape(&plain, &shapes);
        expect_accepted(&plain.args);
    }
    layer_free(&mx);
    layer_free(&plain);
}

static void test_batches(void **state)
{
    (void)state;
    layer l;
    layer_spec spec = SPECS[0];
    spec.T = 6;
    layer_make(&l, &spec);
    size_t bytes;
    unsigned char *expected = layer_run(NULL, &l, &bytes);
    for (int64_t B = 1; B <= 6; B++) {
        moe_tensor *x = &l.tensor[LAYER_HIDDEN];
        x->rank = 3;
        x->shape[0] = B;
        x->shape[1] = 6 / B;
        x->shape[2] = spec.H;
        if (6 % B != 0) {
            expect_refused(&l.args, STATUS(MOE_E_SHAPE), BY_SHAPE, "expert_", "shape[0] = 6");
            continue;
        }
        unsigned char *got = layer_run(NULL, &l, NULL);
        assert_memory_equal(got, expected, bytes);
        free(got);
    }
    free(expected);
    layer_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_dimensions),
        cmocka_unit_test(test_no_tokens),
        cmocka_unit_test(test_no_tokens_and_wrong),
        cmocka_unit_test(test_huge_tensors),
        cmocka_unit_test(test_huge_problems),
        cmocka_unit_test(test_refusals_allocate_nothing),
        cmocka_unit_test(test_token_limit),
        cmocka_unit_test(test_most_tokens),
        cmocka_unit_test(test_partitions),
        cmocka_unit_test(test_hidden_sizes),
        cmocka_unit_test(test_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
