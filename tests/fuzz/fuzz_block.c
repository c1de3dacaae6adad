/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_block.c - libFuzzer: any router, norm and shared expert of moe_block, and moe_router_topk.
 *
 * The first bytes of the input describe a valid block; the rest are changes to it, four bytes each,
 * of any field.  Every array then has exactly the bytes that its description spans, in a block of
 * its own, so that ASan sees a read outside.  A call that fails must leave its outputs alone; one
 * that succeeds must give the bits of the document, on one thread and on two. */
#include "fuzz_input.h"

#include "block_ref.h"
#include "checked.h"
#include "layer.h"
#include "router_ref.h"
#include "source.h"

#include <math.h>

enum { ARRAYS = 5, MOST_BYTES = 1 << 16, MOST_PRODUCTS = 1 << 16, MOST_TOKENS = 6 };

typedef struct subject {
    layer layer;
    moe_block_args args;
    source source;
    moe_experts *shared;
    void *array[ARRAYS];
    void *routed[5];
    size_t routed_bytes[5];
} subject;

static moe_array *array_of(subject *s, size_t i)
{
    moe_array *arrays[ARRAYS] = {&s->args.gamma, &s->args.router.weights, &s->args.router.bias,
                                 &s->args.router.selection_bias, &s->args.shared_gate};
    return arrays[i];
}

/* ---- a valid block --------------------------------------------------------------------------- */

static moe_dtype float_type(input *in)
{
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32};
    return types[pick(in, COUNT(types))];
}

static layer_spec read_spec(input *in)
{
    static const moe_dtype weights[] = {MOE_BF16, MOE_F16, MOE_F32, MOE_E4M3FN, MOE_MXFP4_X4};
    static const moe_affinity_scale scaling[] = {MOE_NO_SCALE, MOE_POST_SCALE, MOE_INPUT_SCALE};
    layer_spec s = {.seed = next(in), .hidden = float_type(in)};
    s.weights = weights[pick(in, COUNT(weights))];
    s.T = (int64_t)pick(in, MOST_TOKENS);
    s.H = s.weights == MOE_MXFP4_X4 ? 512 : 1 + (int64_t)pick(in, 40);
    s.I = 1 + (int64_t)pick(in, 20);
    s.E_L = 1 + (int64_t)pick(in, 4);
    s.E = s.E_L * (1 + (int64_t)pick(in, 2));
    s.all_expert = pick(in, 2);
    s.rank = (uint32_t)pick(in, (size_t)(s.E / s.E_L));
    s.scaling = scaling[pick(in, COUNT(scaling))];
    s.activation = (moe_activation)pick(in, MOE_RELU2 + 1);
    s.output = (moe_dtype)pick(in, MOE_F32 + 1);
    s.wild = next(in) & (LAYER_WILD_SPECIAL | LAYER_WILD_WIDE | LAYER_WILD_ZERO_RUNS);
    return s;
}

static void read_arrays(subject *s, input *in)
{
    const int64_t E = s->args.router.E, H = s->layer.spec.H;
    const uint8_t given = next(in) | 2;
    for (size_t i = 0; i < ARRAYS; i++) {
        moe_array *a = array_of(s, i);
        if ((given >> i & 1) == 0) continue;
        if (i == 4 && s->shared == NULL) continue;
        *a = moe_array_dense(NULL, float_type(in),
                             i == 1             ? E
                             : i == 0 || i == 4 ? H
                                                : E,
                             i == 1 ? H : 1);
        if (i == 1 && pick(in, 2)) {
            a->row_stride = a->column_stride;
            a->column_stride *= E;
        }
    }
    if (s->args.router.score == MOE_SCORE_TOPK_SOFTMAX)
        s->args.router.selection_bias.dtype = MOE_DTYPE_NONE;
}

static void read_subject(subject *s, input *in)
{
    layer_spec spec = read_spec(in);
    memset(s, 0, sizeof *s);
    layer_make(&s->layer, &spec);
    layer_drop(&s->layer, LAYER_INDEX);
    layer_drop(&s->layer, LAYER_AFFINITIES);
    if (spec.all_expert && s->layer.args.rank_id == NULL) layer_add(&s->layer, LAYER_RANK);
    s->args = moe_block_args_init();
    s->args.experts = s->layer.args;
    s->args.norm_epsilon = 1e-6f;
    moe_router_args *r = &s->args.router;
    r->E = spec.all_expert ? spec.E : spec.E_L;
    r->K = 1 + (int64_t)pick(in, (size_t)r->E);
    r->score = (moe_router_score)pick(in, MOE_SCORE_SQRT_SOFTPLUS + 1);
    r->normalize = (int32_t)pick(in, 2);
    if (pick(in, 2) && spec.activation != MOE_SWIGLU) {
        source_spec shared = {.seed = spec.seed,
                              .gate_up = float_type(in),
                              .E_L = 1,
                              .H = spec.H,
                              .I = 1 + (int64_t)pick(in, 9)};
        shared.down = shared.gate_up;
        source_make(&s->source, &shared);
        MUST(moe_experts_create(NULL, &s->source.args, &s->shared) == MOE_OK);
        s->args.shared = s->shared;
    }
    read_arrays(s, in);
}

/* ---- changes --------------------------------------------------------------------------------- */

static int64_t read_number(input *in)
{
    static const int64_t edges[] = {INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN,
                                    4096,      4097,      129,       (int64_t)1 << 62};
    uint8_t kind = next(in), value = next(in);
    return kind % 4 == 3 ? edges[value % COUNT(edges)] : (int8_t)value;
}

static void change_array(moe_array *a, input *in)
{
    size_t field = pick(in, 4);
    int64_t number = read_number(in);
    switch (field) {
    case 0: a->dtype = (moe_dtype)number; break;
    case 1: a->row_stride = (int64_t)((uint64_t)number * 2); break;
    case 2: a->column_stride = (int64_t)((uint64_t)number * 2); break;
    default: a->row_stride = number;
    }
}

static void change_scalar(subject *s, input *in)
{
    static const float floats[] = {0, -1, NAN, INFINITY, 1e-20f, 3e38f, -0.0f, 0.5f};
    moe_router_args *r = &s->args.router;
    size_t field = pick(in, 13);
    int64_t number = read_number(in);
    const float f = floats[(uint64_t)number % COUNT(floats)];
    switch (field) {
    case 0: r->E = number; break;
    case 1: r->K = number; break;
    case 2: r->score = (moe_router_score)number; break;
    case 3: r->normalize = (int32_t)number; break;
    case 4: r->normalize_epsilon = f; break;
    case 5: r->scale = f; break;
    case 6: r->n_group = (int32_t)number; break;
    case 7: r->topk_group = (int32_t)number; break;
    case 8: s->args.norm_epsilon = f; break;
    case 9: s->args.norm_H = number; break;
    case 10: r->group_rank = (moe_group_rank)number; break;
    case 11: s->args.experts.skip_invalid_experts = (int32_t)number; break;
    default: s->args.shared = NULL;
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Whether every call refuses an array [rows, columns] without a look at its data.  One of columns 0,
 * a vector, has no use for column_stride. */
static bool refused(const moe_array *a, int64_t rows, int64_t columns)
{
    return a->dtype < MOE_BF16 || a->dtype > MOE_F32 || rows < 1 || rows > 4096 ||
           a->row_stride < 0 || (columns > 0 && a->column_stride < 0);
}

/* The bytes that an array spans which is not refused; false if they are more than it can have here. */
static bool span_of(const moe_array *a, int64_t rows, int64_t columns, size_t *bytes)
{
    size_t row, column = 0, element = moe_dtype_size(a->dtype);
    return checked_mul((size_t)rows - 1, (size_t)a->row_stride, &row) &&
           (columns == 0 || checked_mul((size_t)columns - 1, (size_t)a->column_stride, &column)) &&
           checked_add(row, column, bytes) && checked_add(*bytes, element, bytes) &&
           *bytes <= MOST_BYTES;
}

/* Gives every array its bytes.  False if one is too large: then no call may be made. */
static bool fit_arrays(subject *s, uint8_t seed)
{
    const int64_t E = s->args.router.E, H = s->layer.spec.H;
    for (size_t i = 0; i < ARRAYS; i++) {
        moe_array *a = array_of(s, i);
        const int64_t rows = i == 0 || i == 4 ? H : E, columns = i == 1 ? H : 0;
        size_t bytes = 16;
        if (!refused(a, rows, columns) && !span_of(a, rows, columns, &bytes)) return false;
        uint8_t *memory = malloc(bytes);
        MUST(memory != NULL);
        for (size_t n = 0; n < bytes; n++)
            memory[n] = (uint8_t)(layer_random(seed, i, n) >> 9) & (n % 4 == 3 ? 0xBF : 0xFF);
        a->data = s->array[i] = memory;
    }
    return true;
}

static void give_outputs(subject *s, uint8_t which)
{
    const size_t T = (size_t)s->layer.spec.T, E = (size_t)s->args.router.E,
                 K = (size_t)s->args.router.K;
    const bool sane = s->args.router.E > 0 && s->args.router.E <= 4096 && s->args.router.K > 0 &&
                      s->args.router.K <= s->args.router.E;
    for (size_t i = 0; i < 5; i++) {
        s->routed_bytes[i] = sane ? T * (i < 2 ? K : E) * sizeof(float) : 0;
        s->routed[i] = malloc(s->routed_bytes[i] + 1);
        MUST(s->routed[i] != NULL);
        memset(s->routed[i], 0xA5, s->routed_bytes[i] + 1);
    }
    s->args.routed =
        (moe_router_output){which & 1 ? s->routed[0] : NULL, which & 2 ? s->routed[1] : NULL,
                            which & 4 ? s->routed[2] : NULL, which & 8 ? s->routed[3] : NULL,
                            which & 16 ? s->routed[4] : NULL};
}

/* ---- properties ------------------------------------------------------------------------------ */

static void expect_untouched(const subject *s)
{
    for (size_t i = 0; i < 5; i++)
        for (size_t n = 0; n <= s->routed_bytes[i]; n++) MUST(((uint8_t *)s->routed[i])[n] == 0xA5);
}

static moe_context *two_threads(void)
{
    static moe_context *context;
    moe_context_options options = moe_context_options_init();
    options.threads = 2;
    if (context == NULL) MUST(moe_context_create(&options, &context) == MOE_OK);
    return context;
}

static void call_block(subject *s)
{
    const layer_spec *l = &s->layer.spec;
    const moe_dtype type = l->output != MOE_DTYPE_NONE ? l->output : l->hidden;
    const size_t bytes = (size_t)(l->T * l->H) * moe_dtype_size(type);
    uint8_t *first = malloc(bytes + 1), *second = malloc(bytes + 1), *want = malloc(bytes + 1);
    MUST(first != NULL && second != NULL && want != NULL);
    memset(first, 0xA5, bytes + 1);
    memset(second, 0x5A, bytes + 1);
    moe_status status = moe_block(NULL, &s->args, first, bytes);
    if (status != MOE_OK) expect_untouched(s);
    MUST(moe_block(two_threads(), &s->args, second, bytes) == status);
    if (status == MOE_OK) {
        MUST(memcmp(first, second, bytes) == 0);
        if (s->layer.spec.T > 0 && l->T * l->H * l->I * l->E_L < MOST_PRODUCTS) {
            block_ref(&s->args, NULL, s->args.shared != NULL ? &s->source.args : NULL, want);
            MUST(memcmp(first, want, bytes) == 0);
        }
    } else {
        for (size_t i = 0; i < bytes; i++) MUST(first[i] == 0xA5 && second[i] == 0x5A);
        MUST(moe_last_error()[0] != '\0');
        expect_untouched(s);
    }
    MUST(first[bytes] == 0xA5 && second[bytes] == 0x5A);
    free(first);
    free(second);
    free(want);
}

static void call_router(subject *s)
{
    moe_router_args r = s->args.router;
    r.x = s->args.experts.hidden_input;
    for (size_t i = 0; i < 5; i++) memset(s->routed[i], 0xA5, s->routed_bytes[i] + 1);
    if (moe_router_topk(two_threads(), &r, &s->args.routed) != MOE_OK) {
        MUST(moe_last_error()[0] != '\0');
        expect_untouched(s);
        return;
    }
    for (size_t i = 0; i < 5; i++) {
        void *want = malloc(s->routed_bytes[i] + 1);
        MUST(want != NULL);
        moe_router_output out = {0};
        if (i == 0) out.index = want;
        if (i == 1) out.weights = want;
        if (i == 2) out.logits = want;
        if (i == 3) out.affinities = want;
        if (i == 4) out.scores = want;
        const void *given[] = {s->args.routed.index, s->args.routed.weights, s->args.routed.logits,
                               s->args.routed.affinities, s->args.routed.scores};
        router_ref(&r, &out);
        if (given[i] != NULL) MUST(memcmp(want, s->routed[i], s->routed_bytes[i]) == 0);
        free(want);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    subject s;
    read_subject(&s, &in);
    const uint8_t seed = next(&in), outputs = next(&in);
    while (in.left > 0) {
        size_t kind = pick(&in, 3);
        if (kind == 0)
            change_array(array_of(&s, pick(&in, ARRAYS)), &in);
        else
            change_scalar(&s, &in);
    }
    give_outputs(&s, outputs);
    if (fit_arrays(&s, seed)) {
        call_block(&s);
        call_router(&s);
    }
    for (size_t i = 0; i < ARRAYS; i++) free(s.array[i]);
    for (size_t i = 0; i < 5; i++) free(s.routed[i]);
    if (s.shared != NULL) {
        MUST(moe_experts_destroy(s.shared) == MOE_OK);
        source_free(&s.source);
    }
    layer_free(&s.layer);
    return 0;
}
