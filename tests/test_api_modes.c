/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_modes.c - which parameters go together: full cross products against a second
 * statement of the rules.
 *
 * The rules are written down here from the operator's specification (docs/operator.md), one by
 * one and without order: the library refuses a combination if and only if a rule is broken, with
 * the status of one of the broken rules. */
#include "expect.h"

#include <stdlib.h>

typedef struct combination {
    bool mx, all_expert, dynamic, mask, rank, eager, affinities, index;
    moe_affinity_scale scaling;
    bool gate_up_scale, down_scale, gate_up_input_scale, down_input_scale;
    bool has_block_size;
    int64_t block_size, T;
    layer_place place;
    bool hidden_scale, output_in_sbuf;
    moe_dtype hidden, weights; /* second product only */
    moe_act_mode act_mode;
} combination;

static bool is_block_size(int64_t b, int64_t T)
{
    if (b <= 0 || T % b != 0 || b > T / 2) return false;
    return (b < 32 && b % 8 == 0) || (b >= 32 && b < 128 && b % 32 == 0) ||
           (b >= 128 && b % 128 == 0);
}

/* The statuses of the rules that c breaks; 0: c is legal. */
static unsigned broken_rules(const combination *c)
{
    bool selective = !c->all_expert,
         scaled = c->scaling == MOE_POST_SCALE || c->scaling == MOE_INPUT_SCALE;
    bool prequantised = c->place == LAYER_PREQUANT;
    const struct {
        bool broken;
        moe_status status;
    } rules[] = {
        {c->all_expert && scaled && !c->rank, MOE_E_NULL_ARG},
        {c->scaling == MOE_PRE_SCALE || c->scaling == MOE_PRE_SCALE_DELAYED, MOE_E_UNSUPPORTED},
        {c->gate_up_input_scale || c->down_input_scale, MOE_E_UNSUPPORTED},
        {c->mx && !(c->gate_up_scale && c->down_scale), MOE_E_NULL_ARG},
        {!c->mx && c->gate_up_scale != c->down_scale, MOE_E_NULL_ARG},
        {c->all_expert && c->eager, MOE_E_UNSUPPORTED},
        {selective && c->T > 128, MOE_E_UNSUPPORTED},
        {selective && c->dynamic, MOE_E_UNSUPPORTED},
        {c->has_block_size && !is_block_size(c->block_size, c->T), MOE_E_VALUE},
        {selective && !c->index, MOE_E_NULL_ARG},
        {scaled && !c->affinities && !c->eager, MOE_E_NULL_ARG},
        {scaled && c->all_expert && c->mask && !c->index, MOE_E_NULL_ARG},
        {c->hidden_scale && !(c->mx && c->all_expert), MOE_E_UNSUPPORTED},
        {prequantised && !(c->mx && c->all_expert), MOE_E_UNSUPPORTED},
        {c->hidden_scale && !prequantised, MOE_E_UNSUPPORTED},
        {!c->hidden_scale && prequantised, MOE_E_NULL_ARG},
        {c->output_in_sbuf && c->place < LAYER_SBUF, MOE_E_UNSUPPORTED},
        {c->act_mode == MOE_ACT_MXFP8 && !c->mx, MOE_E_UNSUPPORTED},
        {c->act_mode == MOE_ACT_INT8 && c->weights != MOE_MXFP4_X4, MOE_E_UNSUPPORTED},
    };
    unsigned statuses = 0;
    for (size_t i = 0; i < COUNT(rules); i++)
        if (rules[i].broken) statuses |= STATUS(rules[i].status);
    return statuses;
}

/* Sets args to c with the tensors of l, which has all of them. */
static moe_tkg_args args_of(const layer *l, const combination *c)
{
    moe_tkg_args args = moe_tkg_args_init();
    const struct {
        layer_tensor which;
        bool given;
    } given[] = {
        {LAYER_HIDDEN, true},
        {LAYER_GATE_UP, true},
        {LAYER_DOWN, true},
        {LAYER_AFFINITIES, c->affinities},
        {LAYER_INDEX, c->index},
        {LAYER_RANK, c->rank},
        {LAYER_EAGER, c->eager},
        {LAYER_GATE_UP_SCALE, c->gate_up_scale},
        {LAYER_DOWN_SCALE, c->down_scale},
        {LAYER_HIDDEN_SCALE, c->hidden_scale},
        {LAYER_GATE_UP_INPUT_SCALE, c->gate_up_input_scale},
        {LAYER_DOWN_INPUT_SCALE, c->down_input_scale},
    };
    for (size_t i = 0; i < COUNT(given); i++)
        if (given[i].given) *layer_tensor_slot(&args, given[i].which) = &l->tensor[given[i].which];
    args.is_all_expert = c->all_expert;
    args.is_all_expert_dynamic = c->dynamic;
    args.mask_unselected_experts = c->mask;
    args.expert_affinities_scaling_mode = c->scaling;
    args.output_in_sbuf = c->output_in_sbuf;
    args.act_mode = c->act_mode;
    if (c->has_block_size) args.block_size = moe_given_int(c->block_size);
    return args;
}

static void make_layer(layer *l, const combination *c)
{
    bool wide = c->mx || c->place >= LAYER_SBUF;
    layer_make(l, &(layer_spec){.hidden = c->hidden,
                                .weights = c->weights,
                                .T = c->T,
                                .H = wide ? 512 : 6,
                                .I = 5,
                                .E_L = 2,
                                .K = 2,
                                .place = c->place});
    for (int which = 0; which < LAYER_TENSORS; which++)
        if (l->bytes[which] == 0) layer_add(l, (layer_tensor)which);
}

/* Judges c; runs it too if asked. */
static bool judge(const layer *l, const combination *c, bool run)
{
    moe_tkg_args args = args_of(l, c);
    unsigned broken = broken_rules(c);
    moe_tensor shape;
    size_t bytes;
    moe_status status = moe_tkg_output(&args, &shape, &bytes);
    bool is_right = broken == 0 ? status == MOE_OK : (STATUS(status) & broken) != 0;
    if (!is_right)
        fail_msg("%s: %s, want one of 0x%x\n"
                 "mx %d all %d dynamic %d mask %d rank %d eager %d affinities %d index %d\n"
                 "scaling %d scales %d %d input scales %d %d block size %d %lld T %lld\n"
                 "place %d scale %d sbuf out %d hidden %d weights %d act %d",
                 moe_status_name(status), status ? moe_last_error() : "", broken, c->mx,
                 c->all_expert, c->dynamic, c->mask, c->rank, c->eager, c->affinities, c->index,
                 (int)c->scaling, c->gate_up_scale, c->down_scale, c->gate_up_input_scale,
                 c->down_input_scale, c->has_block_size, (long long)c->block_size, (long long)c->T,
                 (int)c->place, c->hidden_scale, c->output_in_sbuf, (int)c->hidden, (int)c->weights,
                 (int)c->act_mode);
    if (status == MOE_OK && run) {
        void *output = malloc(bytes);
        assert_non_null(output);
        if (moe_tkg(NULL, &args, output, bytes) != MOE_OK) fail_msg("%s", moe_last_error());
        free(output);
    } else if (run) {
        expect_refused(&args, broken, BY_SHAPE, NULL, NULL);
    }
    return broken == 0;
}

/* Takes the next of n values from a mixed-radix number. */
static unsigned take(unsigned *number, unsigned n)
{
    unsigned value = *number % n;
    *number /= n;
    return value;
}

static void test_mode_flags(void **state)
{
    (void)state;
    static const int64_t tokens[] = {1, 16, 32, 129}, block_sizes[] = {0, 5, 8, 16};
    enum { PRODUCT = 2 * 2 * 2 * 2 * 2 * 2 * 2 * 5 * 4 * 3 * 5 };
    unsigned legal = 0, sample = 0;
    for (size_t i = 0; i < 2 * COUNT(tokens); i++) {
        combination c = {.mx = i % 2 == 1, .T = tokens[i / 2], .hidden = MOE_BF16};
        c.weights = c.mx ? MOE_MXFP4_X4 : MOE_E4M3FN;
        layer l;
        make_layer(&l, &c);
        for (unsigned n = 0; n < PRODUCT; n++) {
            unsigned rest = n;
            c.all_expert = take(&rest, 2);
            c.dynamic = take(&rest, 2);
            c.mask = take(&rest, 2);
            c.rank = take(&rest, 2);
            c.eager = take(&rest, 2);
            c.affinities = take(&rest, 2);
            c.index = take(&rest, 2);
            c.scaling = (moe_affinity_scale)take(&rest, 5);
            unsigned scales = take(&rest, 4), input_scales = take(&rest, 3), block = take(&rest, 5);
            c.gate_up_scale = scales & 1;
            c.down_scale = scales & 2;
            c.gate_up_input_scale = input_scales == 1;
            c.down_input_scale = input_scales == 2;
            c.has_block_size = block < COUNT(block_sizes);
            c.block_size = c.has_block_size ? block_sizes[block] : 0;
            bool is_legal = broken_rules(&c) == 0;
            judge(&l, &c, is_legal ? sample++ % (c.mx ? 41 : 5) == 0 : n % 23 == 0);
            legal += is_legal;
        }
        layer_free(&l);
    }
    assert_true(legal > 1000);
}

static void test_places_and_types(void **state)
{
    (void)state;
    static const moe_dtype hidden[] = {MOE_BF16, MOE_F16, MOE_F32};
    static const moe_dtype weights[] = {MOE_BF16,   MOE_F16,      MOE_F32,     MOE_E4M3_IEEE,
                                        MOE_E4M3FN, MOE_MXFP4_X4, MOE_MXFP8_X4};
    static const moe_affinity_scale scalings[] = {MOE_NO_SCALE, MOE_POST_SCALE, MOE_INPUT_SCALE};
    unsigned legal = 0;
    for (unsigned n = 0; n < COUNT(hidden) * COUNT(weights) * 4; n++) {
        unsigned rest = n;
        combination c = {.rank = true, .affinities = true, .index = true, .T = 3};
        c.hidden = hidden[take(&rest, COUNT(hidden))];
        c.weights = weights[take(&rest, COUNT(weights))];
        c.place = (layer_place)take(&rest, 4);
        c.mx = c.weights == MOE_MXFP4_X4 || c.weights == MOE_MXFP8_X4;
        layer l;
        make_layer(&l, &c);
        for (unsigned m = 0; m < 2 * 3 * 2 * 2 * 2 * 4; m++) {
            rest = m;
            c.all_expert = take(&rest, 2);
            c.scaling = scalings[take(&rest, COUNT(scalings))];
            c.hidden_scale = take(&rest, 2);
            c.output_in_sbuf = take(&rest, 2);
            c.gate_up_scale = c.down_scale = take(&rest, 2);
            c.act_mode = (moe_act_mode)take(&rest, 4);
            legal += judge(&l, &c, (n + m) % 11 == 0);
        }
        layer_free(&l);
    }
    assert_true(legal > 1000);
}

/* Every block size up to 300 for some T, and those that no T has. */
static void test_block_sizes(void **state)
{
    (void)state;
    static const int64_t tokens[] = {0,   1,   15,  16,  32,  48,  64, 96,
                                     128, 160, 256, 384, 512, 640, 768};
    static const int64_t none[] = {
        -8, -1, INT64_MIN, INT64_MAX, (int64_t)1 << 32, ((int64_t)1 << 32) + 8};
    for (size_t i = 0; i < COUNT(tokens); i++) {
        combination c = {
            .all_expert = true, .dynamic = true, .has_block_size = true, .T = tokens[i]};
        c.hidden = c.weights = MOE_F32;
        layer l;
        make_layer(&l, &c);
        for (c.block_size = 0; c.block_size <= 400; c.block_size++) {
            moe_tkg_args args = args_of(&l, &c);
            bool is_legal = c.T == 0 ? is_block_size(c.block_size, c.block_size * 2)
                                     : is_block_size(c.block_size, c.T);
            if (is_legal)
                expect_accepted(&args);
            else
                expect_refused(&args, STATUS(MOE_E_VALUE), BY_SHAPE, "block_size", NULL);
        }
        for (size_t n = 0; n < COUNT(none) && c.T > 0; n++) {
            c.block_size = none[n];
            moe_tkg_args args = args_of(&l, &c);
            expect_refused(&args, STATUS(MOE_E_VALUE), BY_SHAPE, "block_size", NULL);
        }
        layer_free(&l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mode_flags),
        cmocka_unit_test(test_places_and_types),
        cmocka_unit_test(test_block_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
