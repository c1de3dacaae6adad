/* SPDX-License-Identifier: Apache-2.0 */
/* test_same.c - equal bits: different ways to ask for the same thing.  Every pair is tried on
 * random layers of every kind (random_layer.h), changed so far that the question makes sense. */
#include <math.h>
#include <stdlib.h>

#include "numeric.h"
#include "random_layer.h"
#include "tokens.h"

static bool is_mx(layer_spec s)
{
    return s.weights == MOE_MXFP4_X4 || s.weights == MOE_MXFP8_X4;
}

/* Two layers: made from their descriptions, run, compared and freed by one expect_same(). */
typedef struct pair {
    layer a, b;
} pair;

static pair *pair_make(layer_spec a, layer_spec b)
{
    pair *p = malloc(sizeof *p);
    assert_non_null(p);
    layer_make(&p->a, &a);
    layer_make(&p->b, &b);
    return p;
}

static void expect_same(pair *p, const char *what)
{
    size_t bytes;
    void *output = layer_run(NULL, &p->a, &bytes);
    random_expect_run(output, NULL, &p->b, bytes, what);
    free(output);
    layer_free(&p->b);
    layer_free(&p->a);
    free(p);
}

/* ---- layouts and types ----------------------------------------------------------------------- */

static void index_types(layer_spec s)
{
    static const moe_dtype types[] = {MOE_U32, MOE_I64};
    if (s.all_expert && !s.mask) return;
    s.index_type = MOE_I32;
    for (size_t i = 0; i < COUNT(types); i++) {
        layer_spec other = s;
        other.index_type = types[i];
        pair *p = pair_make(s, other);
        for (size_t n = 0; n < (size_t)(s.T * s.K); n++) /* a u32 -1 is no expert either */
            tokens_set_index(&p->b, n, tokens_index(&p->a, n));
        expect_same(p, "index type");
    }
}

static void hidden_in_sbuf(layer_spec s)
{
    layer_spec sbuf = s, three = s;
    s.H = sbuf.H = three.H = (s.H + 127) / 128 * 128;
    s.place = LAYER_HBM;
    sbuf.place = LAYER_SBUF;
    three.place = LAYER_HBM_BSH;
    s.output_in_sbuf = sbuf.output_in_sbuf = three.output_in_sbuf = false;
    expect_same(pair_make(s, sbuf), "SBUF hidden");
    expect_same(pair_make(s, three), "[B, S, H] hidden");
}

/* Element (p, t, j) of an SBUF output is h = p * H/128 + j, with MX weights j * 128 + p. */
static void output_in_sbuf(layer_spec s)
{
    s.H = (s.H + 127) / 128 * 128;
    s.place = LAYER_SBUF;
    s.output_in_sbuf = false;
    s.output = s.seed % 2 ? MOE_F16 : MOE_F32;
    size_t T = (size_t)s.T, H = (size_t)s.H, J = H / 128, size = moe_dtype_size(s.output), bytes;
    layer l;
    layer_make(&l, &s);
    char *rows = layer_run(NULL, &l, &bytes), *permuted = malloc(bytes);
    assert_non_null(permuted);
    for (size_t t = 0; t < T; t++)
        for (size_t h = 0; h < H; h++) {
            size_t p = is_mx(s) ? h % 128 : h / J, j = is_mx(s) ? h / 128 : h % J;
            memcpy(permuted + ((p * T + t) * J + j) * size, rows + (t * H + h) * size, size);
        }
    l.args.output_in_sbuf = 1;
    random_expect_run(permuted, NULL, &l, bytes, "SBUF output");
    free(permuted);
    free(rows);
    layer_free(&l);
}

/* ---- quantised forms ------------------------------------------------------------------------- */

/* docs/numerics.md section 6 for one block: 32 floats to their codes; returns the scale byte. */
static uint8_t quantise(const float *v, uint8_t *codes)
{
    uint32_t be = 8;
    for (size_t i = 0; i < 32; i++) {
        uint32_t exponent = num_bits(v[i]) >> 23 & 255;
        be = exponent > be ? exponent : be;
    }
    for (size_t i = 0; i < 32; i++) {
        double y = be == 255 ? 0 : ldexp((double)v[i], 135 - (int)be);
        codes[i] = be == 255 ? 0x7F : num_to_e4m3fn((float)fmax(-448, fmin(448, y)));
    }
    return be == 255 ? 255 : (uint8_t)(be - 8);
}

/* Block b of 8 partitions of tile n, pre-quantised: a row of f32 to words and scale. */
static void prequantise_block(const layer *from, layer *to, size_t t, size_t n, size_t b)
{
    size_t T = (size_t)from->spec.T, H = (size_t)from->spec.H, nH = H / 512;
    const float *row = (const float *)from->data[LAYER_HIDDEN] + t * H;
    uint8_t codes[32], *words = to->data[LAYER_HIDDEN], *scales = to->data[LAYER_HIDDEN_SCALE];
    float v[32];
    for (size_t q = 0; q < 4; q++)
        for (size_t r = 0; r < 8; r++) v[q * 8 + r] = row[q * (H / 4) + n * 128 + 8 * b + r];
    scales[((32 * (b / 4) + b % 4) * nH + n) * T + t] = quantise(v, codes);
    for (size_t q = 0; q < 4; q++)
        for (size_t r = 0; r < 8; r++)
            words[(((8 * b + r) * nH + n) * T + t) * 4 + q] = codes[q * 8 + r];
}

static void prequantised_hidden(layer_spec s)
{
    if (!is_mx(s) || !s.all_expert) return;
    s.hidden = MOE_F32;
    s.act_mode = MOE_ACT_MXFP8;
    s.place = LAYER_HBM;
    s.output_in_sbuf = false;
    if (s.output == MOE_DTYPE_NONE) s.output = MOE_F32;
    layer_spec quantised = s;
    quantised.place = LAYER_PREQUANT;
    pair *p = pair_make(s, quantised);
    for (size_t t = 0; t < (size_t)s.T; t++)
        for (size_t n = 0; n < (size_t)s.H / 512; n++)
            for (size_t b = 0; b < 16; b++) prequantise_block(&p->a, &p->b, t, n, b);
    expect_same(p, "pre-quantised hidden");
}

/* A static scale is a row scale that is the same in every row. */
static void static_scales(layer_spec s)
{
    if (is_mx(s)) return;
    layer_spec row = s;
    s.scales = LAYER_STATIC;
    row.scales = LAYER_ROW;
    pair *p = pair_make(s, row);
    static const layer_tensor scales[] = {LAYER_GATE_UP_SCALE, LAYER_DOWN_SCALE};
    for (size_t i = 0; i < COUNT(scales); i++) {
        const float *one = p->a.data[scales[i]];
        float *each = p->b.data[scales[i]];
        size_t n = p->b.bytes[scales[i]] / sizeof(float),
               columns = n * sizeof(float) / p->a.bytes[scales[i]];
        for (size_t j = 0; j < n; j++) each[j] = one[j / columns];
    }
    expect_same(p, "static scales");
}

/* ---- modes ----------------------------------------------------------------------------------- */

/* Ascending distinct experts: slot order is expert order. */
static void masked_all_expert(layer_spec s)
{
    if (s.place == LAYER_PREQUANT) s.place = LAYER_HBM;
    s.output_in_sbuf = s.output_in_sbuf && s.place == LAYER_SBUF;
    s.scaling = MOE_POST_SCALE;
    s.all_expert = s.mask = s.eager = false;
    s.E = s.E_L;
    s.rank = 0;
    if (s.K > s.E_L) s.K = s.E_L;
    layer_spec masked = s;
    masked.all_expert = masked.mask = true;
    pair *p = pair_make(s, masked);
    for (int64_t t = 0; t < s.T; t++)
        for (int64_t k = 0; k < s.K; k++) {
            int64_t e = k + t % (s.E_L - s.K + 1);
            tokens_set_index(&p->a, (size_t)(t * s.K + k), e);
            tokens_set_index(&p->b, (size_t)(t * s.K + k), e);
        }
    expect_same(p, "masked all-expert");
}

static void eager_affinities(layer_spec s)
{
    if (s.place == LAYER_PREQUANT) return;
    s.all_expert = s.mask = s.eager = false;
    s.E = s.E_L;
    s.scaling = MOE_POST_SCALE;
    layer_spec eager = s;
    eager.eager = true;
    pair *p = pair_make(s, eager);
    size_t size = moe_dtype_size(s.affinity_type);
    for (size_t n = 0; n < (size_t)(s.T * s.K); n++) {
        size_t column = (size_t)tokens_index(&p->a, n), t = n / (size_t)s.K;
        memcpy((char *)p->b.data[LAYER_EAGER] + n * size,
               (char *)p->a.data[LAYER_AFFINITIES] + (t * (size_t)s.E + column) * size, size);
    }
    expect_same(p, "eager affinities");
}

static void dynamic_mode(layer_spec s)
{
    if (!s.all_expert) return;
    bool blocks = s.seed % 8 == 0;
    if (blocks) s.T = 32;
    pair *p = pair_make(s, s);
    p->b.args.is_all_expert_dynamic = 1;
    if (blocks) p->b.args.block_size = moe_given_int(s.seed % 16 ? 8 : 16);
    expect_same(p, "dynamic");
}

static void skipped_slots(layer_spec s)
{
    if (s.all_expert) return;
    s.K = 2;
    layer_spec more = s;
    more.K = 5; /* slots 1, 3 and 4 name nobody */
    pair *p = pair_make(s, more);
    static const int64_t nobody[] = {-1, INT32_MAX};
    size_t size = moe_dtype_size(s.affinity_type);
    for (size_t n = 0; n < 5 * (size_t)s.T; n++) {
        size_t slot = n % 5, same = n / 5 * 2 + slot / 2;
        bool named = slot == 0 || slot == 2;
        tokens_set_index(&p->b, n, named ? tokens_index(&p->a, same) : nobody[n % 2]);
        if (named && s.eager)
            memcpy((char *)p->b.data[LAYER_EAGER] + n * size,
                   (char *)p->a.data[LAYER_EAGER] + same * size, size);
    }
    p->b.args.skip_invalid_experts = 1;
    expect_same(p, "skipped slots");
}

static void swiglu_is_silu_or_swish(layer_spec s)
{
    layer_spec gated = s;
    s.activation = s.seed % 2 ? MOE_SILU : MOE_SWISH;
    gated.activation = MOE_SWIGLU;
    pair *p = pair_make(s, gated);
    p->b.args.swiglu_alpha = moe_given_float(s.seed % 2 ? 1.0f : 1.702f);
    p->b.args.swiglu_up_offset = moe_given_float(0.0f);
    expect_same(p, "SwiGLU");
}

static void infinite_limits(layer_spec s)
{
    s.clamp = false;
    pair *p = pair_make(s, s);
    p->b.args.gate_clamp_upper_limit = p->b.args.up_clamp_upper_limit = moe_given_float(INFINITY);
    p->b.args.gate_clamp_lower_limit = p->b.args.up_clamp_lower_limit = moe_given_float(-INFINITY);
    expect_same(p, "infinite limits");
}

static void numerics_mode_by_default(layer_spec s)
{
    layer_spec named = s;
    s.act_mode = MOE_ACT_DEFAULT;
    named.act_mode = is_mx(s) ? MOE_ACT_MXFP8 : MOE_ACT_EXACT;
    expect_same(pair_make(s, named), "default mode");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RANDOM_LAYER_TEST(index_types),      RANDOM_LAYER_TEST(hidden_in_sbuf),
        RANDOM_LAYER_TEST(output_in_sbuf),   RANDOM_LAYER_TEST(prequantised_hidden),
        RANDOM_LAYER_TEST(static_scales),    RANDOM_LAYER_TEST(masked_all_expert),
        RANDOM_LAYER_TEST(eager_affinities), RANDOM_LAYER_TEST(dynamic_mode),
        RANDOM_LAYER_TEST(skipped_slots),    RANDOM_LAYER_TEST(swiglu_is_silu_or_swish),
        RANDOM_LAYER_TEST(infinite_limits),  RANDOM_LAYER_TEST(numerics_mode_by_default),
    };
    return cmocka_run_group_tests_name("same", tests, NULL, NULL);
}
