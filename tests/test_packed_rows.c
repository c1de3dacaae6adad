/* SPDX-License-Identifier: Apache-2.0 */
/* test_packed_rows.c - equal bits: experts packed from row-major matrices, however they lie in
 * memory.  Plain ones are the operator's weights in another order and give its bits; OCP MXFP4 and
 * MXFP8, which the operator cannot say, give those of docs/numerics.md (canon_ref.h). */
#include <stdio.h>
#include <stdlib.h>

#include "../tools/paths.h"
#include "canon_ref.h"
#include "random_layer.h"
#include "source.h"

enum { LEVELS = 8 };
static moe_context *contexts[LEVELS]; /* of each ISA level, with 1, 2, 3, 1 ... threads */
static size_t levels;

static int start_contexts(void **state)
{
    (void)state;
    for (; moe_isa_level(levels) != NULL && levels < LEVELS; levels++) {
        moe_context_options options = moe_context_options_init();
        options.threads = 1 + (int32_t)levels % 3;
        options.isa = moe_isa_level(levels);
        if (moe_context_create(&options, &contexts[levels]) != MOE_OK) return -1;
    }
    return 0;
}

static int end_contexts(void **state)
{
    (void)state;
    for (size_t i = 0; i < levels; i++)
        if (moe_context_destroy(contexts[i]) != MOE_OK) return -1;
    return 0;
}

static moe_experts *create(moe_context *context, const moe_experts_args *args)
{
    moe_experts *experts;
    if (moe_experts_create(context, args, &experts) != MOE_OK) fail_msg("%s", moe_last_error());
    return experts;
}

/* ---- plain: the operator's tensors, row by row ----------------------------------------------- */

static const layer *current; /* whose elements the next source has */

static uint32_t element(const moe_tensor *t, size_t n)
{
    uint32_t w = 0;
    size_t size = moe_dtype_size(t->dtype);
    memcpy(&w, (const char *)t->data + n * size, size);
    return w;
}

static uint32_t code_of_layer(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    size_t H = (size_t)s->H, I = (size_t)s->I;
    if (matrix == SOURCE_DOWN) return element(&current->tensor[LAYER_DOWN], (e * I + k) * H + row);
    return element(&current->tensor[LAYER_GATE_UP], ((e * H + k) * 2 + matrix) * I + row);
}

/* The rows of matrix in a tensor [E_L, 2, n] or [E_L, n]. */
static moe_array rows_of(const layer *l, layer_tensor which, size_t matrix)
{
    moe_array a;
    memset(&a, 0, sizeof a);
    if (l->bytes[which] == 0) return a;
    const moe_tensor *t = &l->tensor[which];
    size_t size = moe_dtype_size(t->dtype), n = (size_t)t->shape[t->rank - 1];
    bool down = matrix == SOURCE_DOWN;
    a.dtype = t->dtype;
    a.data = (const char *)t->data + (down ? 0 : matrix * n * size);
    a.expert_stride = (int64_t)((down ? 1 : 2) * n * size);
    a.row_stride = n == 1 ? 0 : (int64_t)size;
    return a;
}

static void add_rows(const layer *l, moe_experts_args *a, bool scales)
{
    moe_matrix *const matrix[] = {&a->gate, &a->up, &a->down};
    for (size_t m = 0; m < 3; m++) {
        bool down = m == SOURCE_DOWN;
        matrix[m]->bias = rows_of(l, down ? LAYER_DOWN_BIAS : LAYER_GATE_UP_BIAS, m);
        if (scales) matrix[m]->scale = rows_of(l, down ? LAYER_DOWN_SCALE : LAYER_GATE_UP_SCALE, m);
    }
}

/* From three layouts of each layer. */
static void plain_rows(layer_spec s)
{
    if (s.weights == MOE_MXFP4_X4 || s.weights == MOE_MXFP8_X4) return;
    layer l;
    size_t bytes;
    layer_make(&l, &s);
    void *expected = layer_run(contexts[0], &l, &bytes), *document = malloc(bytes);
    assert_non_null(document);
    for (unsigned n = 0; n < 3; n++) {
        source_layout layout = (source_layout)((s.seed + n * 3) % SOURCE_OPERATOR);
        moe_packing packing = s.weights == MOE_BF16 && s.down == MOE_BF16 && n == 2
                                  ? MOE_PACK_LOSSLESS
                                  : MOE_PACK_PLAIN;
        source rows;
        current = &l;
        source_make(&rows, &(source_spec){.gate_up = s.weights,
                                          .down = s.down,
                                          .layout = layout,
                                          .E_L = s.E_L,
                                          .H = s.H,
                                          .I = s.I,
                                          .packing = packing,
                                          .code = code_of_layer});
        add_rows(&l, &rows.args, true);
        moe_experts *experts = create(contexts[(s.seed + n) % levels], &rows.args);
        moe_tkg_args args = path_with_experts(&l.args, NULL);
        if (n == 0) {
            canon_run_rows(&args, &rows.args, document);
            assert_memory_equal(expected, document, bytes);
        }
        source_free(&rows);
        for (size_t i = 0; i < levels; i++)
            random_expect_packed(expected, contexts[i], &l, experts, bytes, "from rows");
        assert_int_equal(moe_experts_destroy(experts), MOE_OK);
    }
    free(document);
    free(expected);
    layer_free(&l);
}

/* ---- MX: blocks of 32 neighbours ------------------------------------------------------------- */

static bool wild_codes;

/* Where numbers that are not finite leave others alone: few rows of down, and the last expert. */
static bool may_spoil(const source_spec *s, size_t matrix, size_t e, size_t row)
{
    if (!wild_codes) return false;
    return matrix == SOURCE_DOWN ? row % 16 == 7 : s->E_L > 1 && e + 1 == (size_t)s->E_L;
}

/* A NaN of e4m3fn only there, and rarely. */
static uint32_t mx_code(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    uint64_t r = layer_random(s->seed + matrix, e << 32 | row, k);
    uint32_t code = (uint32_t)(r >> 20 & 255);
    moe_dtype dtype = matrix == SOURCE_DOWN ? s->down : s->gate_up;
    if (dtype == MOE_E2M1_X2) return code & 15;
    bool nan = (code & 127) == 127;
    return nan && !(may_spoil(s, matrix, e, row) && (r >> 40) % 8 == 0) ? code ^ 8 : code;
}

static uint8_t *byte_at(const moe_array *a, size_t e, size_t row, size_t column)
{
    const char *base =
        a->experts != NULL ? a->experts[e] : (const char *)a->data + (int64_t)e * a->expert_stride;
    return (uint8_t *)(uintptr_t)(base + (int64_t)row * a->row_stride +
                                  (int64_t)column * a->column_stride);
}

/* Scale bytes around 1; in wild layers 0 and 1 too, or 254 and 255. */
static void fill_scale(const source_spec *s, size_t matrix, const moe_array *a, size_t rows,
                       size_t blocks)
{
    for (size_t e = 0; e < (size_t)s->E_L; e++)
        for (size_t row = 0; row < rows; row++)
            for (size_t n = 0; n < blocks; n++) {
                uint64_t r = layer_random(s->seed + 17 + matrix, e << 32 | row, n);
                uint8_t byte = (uint8_t)(118 + (r >> 16) % 6), odd = r >> 8 & 1;
                if (wild_codes && row % 8 == 3 && r % 4 == 0) byte = odd;
                if (may_spoil(s, matrix, e, row) && r % 16 == 0) byte = odd ? 254 : 255;
                *byte_at(a, e, row, n) = byte;
            }
}

typedef struct mx_kind {
    moe_dtype gate_up, down;
    moe_act_mode mode;
} mx_kind;

/* A random layer without weights of its own, with MX matrices of its sizes. */
static void mx_rows(const mx_kind *kind, unsigned v)
{
    static const int64_t H[] = {32, 64, 96, 160, 512, 544, 1056, 128}, I[] = {32, 64, 96, 160, 544};
    layer_spec s = random_layer(0, v);
    uint64_t draw = layer_random(s.seed, v, kind->mode * 16 + kind->gate_up);
    s.H = H[draw % COUNT(H)];
    s.I = I[(draw >> 8) % COUNT(I)];
    s.scales = LAYER_UNSCALED;
    s.act_mode = kind->mode;
    if (s.place == LAYER_SBUF) s.place = LAYER_HBM; /* refused with row-major MX */
    s.output_in_sbuf = false;
    s.hidden = (moe_dtype[]){MOE_BF16, MOE_F16, MOE_F32}[v % 3];
    layer_spec plain = s;
    plain.act_mode = MOE_ACT_DEFAULT;
    layer l;
    source rows;
    layer_make(&l, &plain);
    l.args.act_mode = kind->mode;
    wild_codes = draw >> 16 & 1;
    source_spec spec = {.seed = s.seed,
                        .gate_up = kind->gate_up,
                        .down = kind->down,
                        .mx = true,
                        .layout = (source_layout)((draw >> 24) % SOURCE_OPERATOR),
                        .E_L = s.E_L,
                        .H = s.H,
                        .I = s.I,
                        .code = mx_code};
    source_make(&rows, &spec);
    size_t h = (size_t)s.H, i = (size_t)s.I;
    fill_scale(&spec, SOURCE_GATE, &rows.args.gate.scale, i, h / 32);
    fill_scale(&spec, SOURCE_UP, &rows.args.up.scale, i, h / 32);
    fill_scale(&spec, SOURCE_DOWN, &rows.args.down.scale, h, i / 32);
    add_rows(&l, &rows.args, false);

    moe_tensor shape;
    size_t bytes;
    moe_experts *experts = create(contexts[draw % levels], &rows.args);
    moe_tkg_args args = path_with_experts(&l.args, experts);
    if (moe_tkg_output(&args, &shape, &bytes) != MOE_OK) fail_msg("%s", moe_last_error());
    void *document = malloc(bytes);
    assert_non_null(document);
    canon_run_rows(&args, &rows.args, document);
    source_free(&rows);
    for (size_t level = 0; level < levels; level++) {
        char what[120];
        snprintf(what, sizeof what, "%s and %s rows, mode %d, H %d, I %d, variant %u, %s",
                 moe_dtype_name(kind->gate_up), moe_dtype_name(kind->down), kind->mode, (int)s.H,
                 (int)s.I, v, moe_isa_level(level));
        random_expect_packed(document, contexts[level], &l, experts, bytes, what);
    }
    free(document);
    assert_int_equal(moe_experts_destroy(experts), MOE_OK);
    layer_free(&l);
}

static void test_mx_rows(void **state)
{
    (void)state;
    static const mx_kind kinds[] = {
        {MOE_E2M1_X2, MOE_E2M1_X2, MOE_ACT_DEFAULT}, {MOE_E2M1_X2, MOE_E2M1_X2, MOE_ACT_EXACT},
        {MOE_E2M1_X2, MOE_E2M1_X2, MOE_ACT_MXFP8},   {MOE_E2M1_X2, MOE_E2M1_X2, MOE_ACT_INT8},
        {MOE_E4M3FN, MOE_E4M3FN, MOE_ACT_DEFAULT},   {MOE_E4M3FN, MOE_E4M3FN, MOE_ACT_EXACT},
        {MOE_E4M3FN, MOE_E4M3FN, MOE_ACT_MXFP8},     {MOE_E2M1_X2, MOE_E4M3FN, MOE_ACT_MXFP8},
        {MOE_E4M3FN, MOE_E2M1_X2, MOE_ACT_EXACT}};
    const char *quick = getenv("MOE_QUICK"), *exhaustive = getenv("MOE_EXHAUSTIVE");
    unsigned variants = quick ? 8 : exhaustive ? 1000 : 16;
    for (size_t kind = 0; kind < COUNT(kinds); kind++)
        for (unsigned v = 0; v < variants; v++) mx_rows(&kinds[kind], v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RANDOM_LAYER_TEST(plain_rows),
        cmocka_unit_test(test_mx_rows),
    };
    return cmocka_run_group_tests_name("packed_rows", tests, start_contexts, end_contexts);
}
