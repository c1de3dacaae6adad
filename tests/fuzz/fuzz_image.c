/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_image.c - libFuzzer: any bytes as an image of packed experts.
 *
 * The input is an image, or says a small layer whose image it then changes.  An image that is read
 * gives experts that compute, each time on two levels, without a step outside their block (ASan), and that
 * are written as an image of the same head; one that is refused leaves nothing. */
#include "fuzz_input.h"

#include "image.h"
#include "layer.h"
#include "source.h"

#include <stdlib.h>

enum { MOST_LEVELS = 16, HEAD_NUMBERS = 22 };

/* ---- images ---------------------------------------------------------------------------------- */

/* Exponents fall off as those of a normal distribution do; one weight in 16 is any. */
static uint32_t gaussian(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    uint64_t r = layer_random(s->seed + matrix, e << 32 | row, k);
    uint32_t low = (uint32_t)__builtin_ctzll(r >> 20 | 1ull << 40);
    return r >> 60 == 0 ? (uint32_t)(r & 0xFFFF) : (uint32_t)(r & 0x807F) | (124 - low) << 7;
}

/* Nothing past lane 32: trailing lanes are left out. */
static uint32_t few_lanes(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    return matrix == SOURCE_DOWN && k >= 32 ? 0 : gaussian(s, matrix, e, row, k) & 0x7F;
}

static image make(input *in)
{
    static const moe_dtype plain[] = {MOE_BF16, MOE_F16, MOE_F32, MOE_E4M3_IEEE, MOE_E4M3FN},
                           blocks[] = {MOE_E2M1_X2, MOE_E4M3FN},
                           runs[] = {MOE_Q8_0,       MOE_Q4_0,    MOE_Q4_K,
                                     MOE_Q5_K,       MOE_Q6_K,    MOE_GGML_MXFP4,
                                     MOE_GGML_NVFP4, MOE_INT4_X2, MOE_E2M1_X2},
                           words[] = {MOE_MXFP4_X4, MOE_MXFP8_X4};
    source_spec spec = {.seed = next(in)};
    size_t kind = pick(in, 5), gate_up = next(in), down = next(in), rows = next(in);
    spec.E_L = 1 + (int64_t)pick(in, 3);
    spec.H = 1 + (int64_t)pick(in, 90);
    spec.I = 1 + (int64_t)pick(in, 90);
    if (rows & 1) spec.bias = MOE_F32;
    if (rows & 2 && kind < 2) spec.scale = MOE_F32;
    spec.ungated = rows & 16 && kind != 4;
    switch (kind) {
    case 0:
        spec.gate_up = plain[gate_up % COUNT(plain)];
        spec.down = plain[down % COUNT(plain)];
        break;
    case 1:
        spec.gate_up = spec.down = MOE_BF16;
        spec.packing = MOE_PACK_LOSSLESS;
        spec.code = gaussian;
        break;
    case 2:
        spec.mx = true;
        spec.gate_up = blocks[gate_up % COUNT(blocks)];
        spec.down = blocks[down % COUNT(blocks)];
        spec.H = (spec.H + 31) / 32 * 32;
        spec.I = (spec.I + 31) / 32 * 32;
        break;
    case 3:
        spec.gate_up = runs[gate_up % COUNT(runs)];
        spec.down = runs[down % COUNT(runs)];
        spec.block_scale = rows & 4 ? MOE_F16 : MOE_BF16;
        spec.scale_k = 32 << rows / 32 % 3;
        if (rows & 2) spec.row_scale = MOE_F32;
        spec.H = (spec.H + 255) / 256 * 256;
        spec.I = (spec.I + 255) / 256 * 256;
        break;
    default:
        spec.mx = true;
        spec.layout = SOURCE_OPERATOR;
        spec.gate_up = words[gate_up % COUNT(words)];
        spec.down = words[down % COUNT(words)];
        spec.H = 512;
        spec.lanes_p = (spec.I + 31) / 32 * 8 + (rows & 4 ? 16 : 0);
        if (rows & 8) spec.code = few_lanes;
    }
    source s;
    moe_experts *x;
    source_make(&s, &spec);
    MUST(moe_experts_create(NULL, &s.args, &x) == MOE_OK);
    source_free(&s);
    image i = image_of(x);
    MUST(moe_experts_destroy(x) == MOE_OK);
    return i;
}

/* A byte anywhere or near the front, or a number of the head or of the tables. */
static void change(image *i, input *in)
{
    uint8_t how = next(in), value = next(in);
    size_t at = next(in) | (size_t)next(in) << 8;
    static const uint64_t edges[] = {0, 1, UINT64_MAX, INT64_MAX, 1ull << 32, 1ull << 62, 512, 31};
    if (how & 1) {
        i->data[(how & 2 ? at * 7 : at) % i->bytes] ^= value;
        return;
    }
    uint64_t number;
    at = 8 * (at % (how & 2 ? HEAD_NUMBERS : i->bytes / 8));
    memcpy(&number, i->data + at, sizeof number);
    number = how & 4 ? edges[value % COUNT(edges)] : number + (uint64_t)(int64_t)(int8_t)value;
    memcpy(i->data + at, &number, sizeof number);
}

/* ---- properties ------------------------------------------------------------------------------ */

static void compute(const moe_experts *x, uint64_t seed)
{
    static moe_context *context[MOST_LEVELS];
    size_t levels = 0;
    while (levels < MOST_LEVELS && moe_isa_level(levels) != NULL) levels++;
    /* the first, which ASan watches most closely, and one of all */
    for (size_t turn = 0, n = 0; turn < 2; turn++, n = seed % levels) {
        moe_context_options options = moe_context_options_init();
        options.threads = 1;
        options.isa = moe_isa_level(n);
        if (context[n] == NULL) MUST(moe_context_create(&options, &context[n]) == MOE_OK);
        moe_act_mode mode = (moe_act_mode)((seed + n) % (MOE_ACT_INT8 + 1));
        size_t bytes;
        free(image_run(context[n], x, (moe_activation)(seed % (MOE_RELU + 1)), mode, seed, &bytes));
    }
}

static void use(const unsigned char *data, size_t bytes, uint64_t seed)
{
    enum { HEAD = 8 * HEAD_NUMBERS };
    moe_experts *x = (moe_experts *)(uintptr_t)64;
    moe_status s = image_read(NULL, data, bytes, &x);
    if (s != MOE_OK) {
        MUST((s == MOE_E_FORMAT || s == MOE_E_STALE) && x == NULL);
        return;
    }
    image again = image_of(x);
    MUST(again.bytes == bytes && memcmp(again.data, data, HEAD) == 0);
    free(again.data);
    compute(x, seed);
    MUST(moe_experts_destroy(x) == MOE_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    uint8_t what = next(&in);
    if (what & 1) {
        use(in.data, in.left, what >> 1);
        return 0;
    }
    image i = make(&in);
    while (in.left >= 4) change(&i, &in);
    if (what & 2) i.bytes -= next(&in);
    unsigned char *exact = malloc(i.bytes); /* so that ASan sees a read past the end */
    MUST(exact != NULL);
    memcpy(exact, i.data, i.bytes);
    free(i.data);
    use(exact, i.bytes, what >> 2);
    free(exact);
    return 0;
}
