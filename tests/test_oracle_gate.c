/* SPDX-License-Identifier: Apache-2.0 */
/* test_oracle_gate.c - the oracle's intervals as a gate: bugs planted into the operator's input
 * must be caught, and whatever is computed in integers must be right to the bit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tools/oracle.h"
#include "numeric.h"
#include "random_layer.h"

/* ---- planted bugs: input changed so that the right operator computes what a wrong one would -- */

enum { T = 4, H = 512, I = 96, EXPERTS = 4, K = 2, LAST_LANE = 23 /* I - 1 is position 3 there */ };

static const layer_spec VARIANTS[] = {
    {.weights = MOE_BF16},
    {.weights = MOE_E4M3_IEEE, .scales = LAYER_ROW},
    {.weights = MOE_MXFP4_X4, .act_mode = MOE_ACT_EXACT},
    {.weights = MOE_MXFP4_X4, .act_mode = MOE_ACT_MXFP8},
    {.weights = MOE_MXFP4_X4, .act_mode = MOE_ACT_INT8},
};

static void make_variant(layer *l, size_t v, unsigned seed)
{
    layer_spec s = VARIANTS[v];
    s.seed = seed;
    s.hidden = MOE_BF16;
    s.output = MOE_F32;
    s.T = T, s.H = H, s.I = I, s.E_L = EXPERTS, s.K = K;
    s.scaling = MOE_POST_SCALE;
    s.no_zero_affinity = s.gate_up_bias = s.down_bias = true;
    layer_make(l, &s);
    /* Far inside the spread of g and u, so that a large part of them lies outside. */
    l->args.gate_clamp_upper_limit = l->args.up_clamp_upper_limit = moe_given_float(0.5f);
    l->args.gate_clamp_lower_limit = l->args.up_clamp_lower_limit = moe_given_float(-0.75f);
}

/* Zeroes position 3 of n words (MXFP4), or n elements. */
static void zero_run(layer *l, layer_tensor which, size_t first, size_t n)
{
    size_t element = moe_dtype_size(l->tensor[which].dtype);
    uint8_t *at = (uint8_t *)l->data[which] + first * element;
    for (size_t b = 0; b < n * element; b++)
        if (!layer_is_mx(l))
            at[b] = 0;
        else if (b % 2 == 1)
            at[b] &= 0x0F;
}

static void drop_last_h(layer *l)
{
    for (size_t e = 0; e < EXPERTS; e++)
        if (layer_is_mx(l))
            zero_run(l, LAYER_GATE_UP, (e * 128 + 127) * 2 * I, 2 * I);
        else
            zero_run(l, LAYER_GATE_UP, (e * H + H - 1) * 2 * I, 2 * I);
}

static void drop_last_i(layer *l)
{
    for (size_t e = 0; e < EXPERTS; e++)
        zero_run(l, LAYER_DOWN, layer_is_mx(l) ? (e * 24 + LAST_LANE) * H : (e * I + I - 1) * H, H);
}

/* Swaps the two halves of every run of 2 * half bytes. */
static void swap_halves(uint8_t *data, size_t bytes, size_t half)
{
    for (size_t n = 0; n < bytes; n++) {
        if (n / half % 2 != 0) continue;
        uint8_t kept = data[n];
        data[n] = data[n + half];
        data[n + half] = kept;
    }
}

/* Plain [..., 2, I], MX [..., 2, nH or nI = 1, I or 4]. */
static void swap_gate_and_up(layer *l)
{
    const layer_tensor tensors[] = {LAYER_GATE_UP, LAYER_GATE_UP_SCALE, LAYER_GATE_UP_BIAS};
    for (size_t i = 0; i < COUNT(tensors); i++) {
        const moe_tensor *t = &l->tensor[tensors[i]];
        if (l->bytes[tensors[i]] == 0) continue;
        size_t half = (size_t)t->shape[t->rank - 1] * moe_dtype_size(t->dtype);
        swap_halves(l->data[tensors[i]], l->bytes[tensors[i]], half);
    }
}

static void take_gelu(layer *l)
{
    l->args.activation_fn = MOE_GELU;
}

/* Column 5 of the first block (MX), or all of column 5, of the expert in slot 0 of token 0. */
static void double_scale(layer *l, layer_tensor which, size_t of_expert)
{
    size_t e = (size_t)((const int32_t *)l->data[LAYER_INDEX])[0], at = e * of_expert + 5;
    if (layer_is_mx(l))
        ((uint8_t *)l->data[which])[at]++;
    else
        ((float *)l->data[which])[at] *= 2;
}

static void double_gate_scale(layer *l)
{
    double_scale(l, LAYER_GATE_UP_SCALE, layer_is_mx(l) ? 16 * 2 * I : 2 * I);
}

static void double_down_scale(layer *l)
{
    double_scale(l, LAYER_DOWN_SCALE, layer_is_mx(l) ? 3 * H : H);
}

static void forget_gate_clamp(layer *l)
{
    l->args.gate_clamp_upper_limit.given = l->args.gate_clamp_lower_limit.given = 0;
}

static void forget_up_clamp(layer *l)
{
    l->args.up_clamp_upper_limit.given = l->args.up_clamp_lower_limit.given = 0;
}

/* Each token's two experts get one another's affinity. */
static void swap_slots(layer *l)
{
    const int32_t *index = l->data[LAYER_INDEX];
    float *affinity = l->data[LAYER_AFFINITIES];
    for (size_t t = 0; t < T; t++) {
        float *a = &affinity[t * EXPERTS + (size_t)index[t * K]];
        float *b = &affinity[t * EXPERTS + (size_t)index[t * K + 1]], kept = *a;
        *a = *b;
        *b = kept;
    }
}

static const struct {
    const char *name;
    void (*plant)(layer *);
    bool needs_scales;
} BUGS[] = {
    {"nothing", NULL, false},
    {"last h dropped", drop_last_h, false},
    {"last i dropped", drop_last_i, false},
    {"gate and up swapped", swap_gate_and_up, false},
    {"GELU for SiLU", take_gelu, false},
    {"one gate scale doubled", double_gate_scale, true},
    {"one down scale doubled", double_down_scale, true},
    {"no gate clamp", forget_gate_clamp, false},
    {"no up clamp", forget_up_clamp, false},
    {"affinity of the wrong slot", swap_slots, false},
};

static oracle_verdict verdict_on(const oracle_rows *rows, const layer *l)
{
    moe_tensor output;
    size_t bytes;
    void *got = layer_run(NULL, l, &bytes);
    assert_int_equal(moe_tkg_output(&l->args, &output, &bytes), MOE_OK);
    oracle_verdict v = oracle_judge(rows, &output, got);
    free(got);
    return v;
}

static void test_planted_bugs(void **state)
{
    (void)state;
    for (size_t v = 0; v < COUNT(VARIANTS); v++)
        for (size_t b = 0; b < COUNT(BUGS); b++) {
            if (BUGS[b].needs_scales && VARIANTS[v].weights == MOE_BF16) continue;
            size_t caught = 0, seeds = 4, outside = 0, close = 0;
            for (unsigned seed = 0; seed < seeds; seed++) {
                layer l;
                oracle_rows rows;
                make_variant(&l, v, seed);
                assert_int_equal(oracle_run(&l.args, NULL, 0, &rows), ORACLE_OK);
                if (BUGS[b].plant) BUGS[b].plant(&l);
                oracle_verdict verdict = verdict_on(&rows, &l);
                assert_int_equal(verdict.cells, T * H);
                outside += verdict.outside;
                close += verdict.outside_tight;
                caught += verdict.outside > 0;
                oracle_free(&rows);
                layer_free(&l);
            }
            print_message("%-9s mode %d  %-27s outside %5.1f %%, of the tight interval %5.1f %%\n",
                          moe_dtype_name(VARIANTS[v].weights), (int)VARIANTS[v].act_mode,
                          BUGS[b].name, 100.0 * (double)outside / (double)(seeds * T * H),
                          100.0 * (double)(outside + close) / (double)(seeds * T * H));
            if (BUGS[b].plant)
                assert_int_equal(caught, seeds);
            else
                assert_int_equal(outside + close, 0);
        }
}

/* ---- integers: every sum is exact in any order, so that nothing may be off at all ------------ */

/* Element n of a tensor, in MX position q of its word n: a small integer, or a power of two. */
static void put(layer *l, layer_tensor which, size_t n, size_t q, float v)
{
    uint8_t *data = l->data[which];
    uint32_t bits = num_bits(v);
    uint16_t half = num_to_f16(v), brain = (uint16_t)(bits >> 16);
    unsigned code = v == 0 ? 0 : v > 0 ? 2 : 10; /* of e2m1: +-1 */
    switch (l->tensor[which].dtype) {
    case MOE_BF16: memcpy(data + 2 * n, &brain, 2); break;
    case MOE_F16: memcpy(data + 2 * n, &half, 2); break;
    case MOE_F32: memcpy(data + 4 * n, &v, 4); break;
    case MOE_MXFP8_X4: data[4 * n + q] = num_to_e4m3fn(v); break;
    case MOE_MXFP4_X4:
        data[2 * n + q / 2] &= q % 2 ? 0x0F : 0xF0;
        data[2 * n + q / 2] |= (uint8_t)(q % 2 ? code << 4 : code);
        break;
    default: data[n] = num_to_e4m3fn(v); break;
    }
}

/* Fills a tensor: one element in `rarity` is a non-zero integer of at most that magnitude. */
static void fill_integers(layer *l, layer_tensor which, unsigned rarity, unsigned largest)
{
    bool x4 = l->tensor[which].dtype == MOE_MXFP4_X4 || l->tensor[which].dtype == MOE_MXFP8_X4;
    size_t words = l->bytes[which] / moe_dtype_size(l->tensor[which].dtype);
    for (size_t n = 0; n < words; n++)
        for (size_t q = 0; q < (x4 ? 4 : 1); q++) {
            uint64_t random = layer_random((uint64_t)which, n, q);
            float v = random % rarity == 0 ? (float)(1 + (random >> 16) % largest) : 0.0f;
            put(l, which, n, q, random >> 63 ? -v : v);
        }
}

/* Powers of two from 1/2 to 2, of either sign where the type has one. */
static void fill_powers(layer *l, layer_tensor which)
{
    size_t bytes = l->bytes[which], element = moe_dtype_size(l->tensor[which].dtype);
    for (size_t n = 0; n < bytes / element; n++) {
        uint64_t random = layer_random((uint64_t)which, n, 9);
        int power = (int)(random % 3) - 1;
        if (element == 1)
            ((uint8_t *)l->data[which])[n] = (uint8_t)(127 + power);
        else
            put(l, which, n, 0, (random >> 63 ? -1.0f : 1.0f) * num_pow2(power));
    }
}

/* |relu(g) u| is some 100 at most, an integer of bf16's 8 bits after any power of two; the sums
 * stay below 2^24. */
static void check_integers(moe_dtype hidden, moe_dtype weights, layer_scales scales)
{
    layer l;
    oracle_rows rows;
    layer_spec s = {.hidden = hidden,
                    .weights = weights,
                    .scales = scales,
                    .T = 5,
                    .H = 1024,
                    .I = 200,
                    .E_L = 4,
                    .K = 3,
                    .scaling = MOE_POST_SCALE,
                    .activation = MOE_RELU,
                    .act_mode = MOE_ACT_EXACT,
                    .output = MOE_F32};
    layer_make(&l, &s);
    fill_integers(&l, LAYER_HIDDEN, 2, 2);
    fill_integers(&l, LAYER_GATE_UP, (unsigned)s.H / 8, 1);
    fill_integers(&l, LAYER_DOWN, 3, 1);
    fill_powers(&l, LAYER_AFFINITIES);
    if (l.bytes[LAYER_GATE_UP_SCALE]) {
        fill_powers(&l, LAYER_GATE_UP_SCALE);
        fill_powers(&l, LAYER_DOWN_SCALE);
    }
    float *got = layer_run(NULL, &l, NULL);
    assert_int_equal(oracle_run(&l.args, NULL, 0, &rows), ORACLE_OK);
    size_t zeros = 0;
    for (size_t n = 0; n < rows.n * rows.H; n++) {
        if ((double)got[n] != rows.value[n])
            fail_msg("%s, %s: %.9g is not %.17g", moe_dtype_name(hidden), moe_dtype_name(weights),
                     (double)got[n], rows.value[n]);
        zeros += got[n] == 0;
    }
    assert_true(zeros < rows.n * rows.H / 4);
    oracle_free(&rows);
    free(got);
    layer_free(&l);
}

static void test_integers_are_exact(void **state)
{
    (void)state;
    static const moe_dtype hidden[] = {MOE_BF16, MOE_F16, MOE_F32},
                           weights[] = {MOE_BF16,   MOE_F16,      MOE_F32,     MOE_E4M3_IEEE,
                                        MOE_E4M3FN, MOE_MXFP4_X4, MOE_MXFP8_X4};
    for (size_t h = 0; h < COUNT(hidden); h++)
        for (size_t w = 0; w < COUNT(weights); w++)
            check_integers(hidden[h], weights[w],
                           weights[w] == MOE_E4M3_IEEE ? LAYER_ROW : LAYER_UNSCALED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_planted_bugs),
        cmocka_unit_test(test_integers_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
