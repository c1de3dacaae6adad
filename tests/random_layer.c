/* SPDX-License-Identifier: Apache-2.0 */
/* random_layer.c - the kinds of layers and the dice. */
#include "random_layer.h"

#include <stdio.h>
#include <stdlib.h>

static const struct {
    const char *name;
    moe_dtype weights, down;
    layer_scales scales;
} KINDS[RANDOM_KINDS] = {
    {"bf16", MOE_BF16, MOE_BF16, LAYER_UNSCALED},
    {"f16", MOE_F16, MOE_F16, LAYER_UNSCALED},
    {"f32", MOE_F32, MOE_F32, LAYER_UNSCALED},
    {"e4m3_ieee, row scales", MOE_E4M3_IEEE, MOE_E4M3_IEEE, LAYER_ROW},
    {"e4m3fn", MOE_E4M3FN, MOE_E4M3FN, LAYER_UNSCALED},
    {"e4m3fn, row scales", MOE_E4M3FN, MOE_E4M3FN, LAYER_ROW},
    {"e4m3fn, static scales", MOE_E4M3FN, MOE_E4M3FN, LAYER_STATIC},
    {"bf16, row scales", MOE_BF16, MOE_BF16, LAYER_ROW},
    {"f32 and e4m3_ieee", MOE_F32, MOE_E4M3_IEEE, LAYER_UNSCALED},
    {"e4m3fn and f16", MOE_E4M3FN, MOE_F16, LAYER_STATIC},
    {"mxfp4", MOE_MXFP4_X4, MOE_MXFP4_X4, LAYER_UNSCALED},
    {"mxfp8", MOE_MXFP8_X4, MOE_MXFP8_X4, LAYER_UNSCALED},
    {"mxfp4 and mxfp8", MOE_MXFP4_X4, MOE_MXFP8_X4, LAYER_UNSCALED},
};

typedef struct dice {
    uint64_t seed, thrown;
} dice;

/* 0 .. n - 1 */
static unsigned throw_die(dice *d, unsigned n)
{
    return (unsigned)(layer_random(d->seed, d->thrown++, 0) >> 20) % n;
}

static bool one_in(dice *d, unsigned n)
{
    return throw_die(d, n) == 0;
}

static moe_dtype float_type(dice *d)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32};
    return types[throw_die(d, 3)];
}

static void draw_shape(layer_spec *s, dice *d, bool mx)
{
    static const int64_t H[] = {1, 2, 5, 63, 128, 130, 256, 384, 511, 512, 514, 640, 1025};
    static const int64_t I[] = {1, 3, 8, 17, 31, 32, 33, 64, 90, 100, 129, 180};
    static const int64_t big_I[] = {511, 512, 513, 520, 600, 1025};
    s->T = 1 + throw_die(d, 5);
    s->H = mx ? (one_in(d, 6) ? 1024 : 512) : H[throw_die(d, sizeof H / sizeof *H)];
    s->I = I[throw_die(d, sizeof I / sizeof *I)];
    if (one_in(d, 12)) s->I = big_I[throw_die(d, sizeof big_I / sizeof *big_I)];
    s->E_L = 1 + throw_die(d, 3);
    s->K = 1 + throw_die(d, 3);
}

static void draw_routing(layer_spec *s, dice *d)
{
    static const moe_dtype index_types[] = {MOE_I32, MOE_U32, MOE_I64};
    unsigned ranks = 1 + throw_die(d, 3);
    s->all_expert = one_in(d, 2);
    s->scaling = one_in(d, 3) ? MOE_NO_SCALE : one_in(d, 3) ? MOE_INPUT_SCALE : MOE_POST_SCALE;
    s->index_type = index_types[throw_die(d, 3)];
    s->affinity_type = float_type(d);
    s->no_zero_affinity = one_in(d, 2);
    if (s->all_expert) {
        s->E = s->E_L * ranks;
        s->rank = throw_die(d, ranks);
        s->mask = s->scaling != MOE_NO_SCALE && one_in(d, 2);
    } else {
        s->eager = s->scaling != MOE_NO_SCALE && one_in(d, 4);
    }
}

static layer_place draw_place(const layer_spec *s, dice *d, bool mx)
{
    unsigned face = throw_die(d, 4);
    if (face == 0 && mx && s->all_expert) return LAYER_PREQUANT;
    if (face == 1 && s->H % 128 == 0) return LAYER_SBUF;
    return face == 2 ? LAYER_HBM_BSH : LAYER_HBM;
}

layer_spec random_layer(size_t kind, unsigned v)
{
    static const moe_dtype hidden[] = {MOE_BF16, MOE_F16, MOE_F32};
    static const moe_act_mode modes[] = {MOE_ACT_DEFAULT, MOE_ACT_EXACT, MOE_ACT_MXFP8,
                                         MOE_ACT_INT8};
    const char *environment = getenv("MOE_SEED");
    uint64_t seed = environment ? strtoull(environment, NULL, 0) : 0;
    dice d = {layer_random(seed, kind, v), 0};
    layer_spec s = {.seed = d.seed, .weights = KINDS[kind].weights, .down = KINDS[kind].down};
    bool mx = s.weights == MOE_MXFP4_X4 || s.weights == MOE_MXFP8_X4;
    unsigned mode_count = !mx ? 2 : s.weights == MOE_MXFP4_X4 && s.down == s.weights ? 4 : 3;
    s.scales = KINDS[kind].scales;
    s.hidden = hidden[v % 3];
    s.act_mode = modes[v / 3 % mode_count];
    draw_shape(&s, &d, mx);
    draw_routing(&s, &d);
    s.place = draw_place(&s, &d, mx);
    s.output_in_sbuf = s.place >= LAYER_SBUF && one_in(&d, 2);
    s.gate_up_bias = one_in(&d, 2);
    s.down_bias = one_in(&d, 2);
    s.clamp = one_in(&d, 2);
    s.act_clamp = one_in(&d, 4);
    s.activation = (moe_activation)throw_die(&d, MOE_RELU2 + 1);
    s.output = one_in(&d, 2) ? MOE_DTYPE_NONE : float_type(&d);
    for (unsigned bit = LAYER_WILD_SPECIAL; bit <= LAYER_WILD_ROUTING; bit *= 2)
        if (one_in(&d, 4)) s.wild |= bit;
    return s;
}

/* ---- properties ------------------------------------------------------------------------------ */

static const char *current_kind = "";
static unsigned current_variant;

static bool is_set(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] == '1';
}

void random_layer_each(void **state)
{
    const bool quick = is_set("MOE_QUICK");
    unsigned variants = quick ? 4 : is_set("MOE_EXHAUSTIVE") ? 1200 : 12;
    random_property holds = *(random_property *)*state;
    for (size_t kind = 0; kind < RANDOM_KINDS; kind++)
        for (unsigned i = 0; i < variants; i++) {
            current_kind = KINDS[kind].name;
            current_variant = !quick ? i : i < 3 ? 4 * i : 6 + i;
            holds(random_layer(kind, current_variant));
        }
}

void random_expect_bits(const void *expected, void *got, size_t bytes, const char *what)
{
    size_t i = 0;
    while (i < bytes && ((const char *)expected)[i] == ((const char *)got)[i]) i++;
    if (i < bytes)
        fail_msg("%s, layer %u: %s: byte %zu of %zu differs", current_kind, current_variant, what,
                 i, bytes);
    free(got);
}

static void expect_output(const void *expected, void *got, size_t bytes, size_t got_bytes,
                          const char *what)
{
    if (got_bytes != bytes)
        fail_msg("%s, layer %u: %s: %zu bytes", current_kind, current_variant, what, got_bytes);
    random_expect_bits(expected, got, bytes, what);
}

void random_expect_packed(const void *expected, moe_context *context, const layer *l,
                          const moe_experts *experts, size_t bytes, const char *what)
{
    char text[100];
    size_t got_bytes;
    void *got = layer_run_packed(context, l, experts, &got_bytes);
    snprintf(text, sizeof text, "packed, %s", what);
    expect_output(expected, got, bytes, got_bytes, text);
}

void random_expect_run(const void *expected, moe_context *context, const layer *l, size_t bytes,
                       const char *what)
{
    size_t got_bytes;
    void *got = layer_run(context, l, &got_bytes);
    expect_output(expected, got, bytes, got_bytes, what);
    moe_experts *experts = layer_pack(context, l, MOE_PACK_PLAIN);
    random_expect_packed(expected, context, l, experts, bytes, what);
    assert_int_equal(moe_experts_destroy(experts), MOE_OK);
}
