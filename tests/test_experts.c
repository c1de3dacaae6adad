/* SPDX-License-Identifier: Apache-2.0 */
/* test_experts.c - moe_experts_*: what is refused and how, sizes, what a handle says of itself,
 * packing on several threads at once. */
#define _POSIX_C_SOURCE 200809L
#include "expect.h"

#include "experts.h"
#include "source.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- arguments to spoil ---------------------------------------------------------------------- */

enum { ROWS, POINTERS, MX_ROWS, FP8_ROWS, TENSORS, WORDS, LOSSLESS, BASES };

static const source_spec BASE[BASES] = {
    [ROWS] = {.gate_up = MOE_BF16,
              .down = MOE_F32,
              .E_L = 3,
              .H = 40,
              .I = 24,
              .scale = MOE_F32,
              .bias = MOE_F16},
    [POINTERS] = {.gate_up = MOE_F16,
                  .down = MOE_F16,
                  .layout = SOURCE_POINTERS,
                  .E_L = 3,
                  .H = 40,
                  .I = 24,
                  .scale = MOE_BF16,
                  .bias = MOE_F32},
    [MX_ROWS] = {.gate_up = MOE_E2M1_X2,
                 .down = MOE_E4M3FN,
                 .mx = true,
                 .layout = SOURCE_INTERLEAVED,
                 .E_L = 2,
                 .H = 64,
                 .I = 96,
                 .bias = MOE_BF16},
    [FP8_ROWS] = {.gate_up = MOE_E4M3FN, .down = MOE_E4M3_IEEE, .E_L = 2, .H = 64, .I = 32},
    [TENSORS] = {.gate_up = MOE_BF16,
                 .down = MOE_E4M3FN,
                 .layout = SOURCE_OPERATOR,
                 .E_L = 2,
                 .H = 40,
                 .I = 24,
                 .scale = MOE_F32,
                 .bias = MOE_F32},
    [WORDS] = {.gate_up = MOE_MXFP4_X4,
               .down = MOE_MXFP8_X4,
               .mx = true,
               .layout = SOURCE_OPERATOR,
               .E_L = 2,
               .H = 512,
               .I = 40,
               .lanes_p = 16,
               .bias = MOE_F32},
    [LOSSLESS] = {.gate_up = MOE_BF16,
                  .down = MOE_BF16,
                  .E_L = 2,
                  .H = 40,
                  .I = 24,
                  .packing = MOE_PACK_LOSSLESS},
};

static void expect_text(const char *call, moe_status got, moe_status want, const char *name,
                        const char *value)
{
    const char *text = moe_last_error();
    if (got != want || strstr(text, name) == NULL || strstr(text, value) == NULL)
        fail_msg("%s: %s, not %s with \"%s\" and \"%s\": %s", call, moe_status_name(got),
                 moe_status_name(want), name, value, text);
}

/* Neither gives a handle nor bytes; moe_experts_bytes reads data only if it must. */
static void expect_no_experts(const moe_experts_args *args, moe_status want, refusal by,
                              const char *name, const char *value)
{
    moe_experts *x = (moe_experts *)(uintptr_t)64;
    size_t bytes = 77;
    expect_text("create", moe_experts_create(NULL, args, &x), want, name, value);
    assert_null(x);
    moe_status status = moe_experts_bytes(NULL, args, &bytes);
    if (by == BY_DATA && args->packing == MOE_PACK_PLAIN) {
        assert_int_equal(status, MOE_OK);
        return;
    }
    expect_text("bytes", status, want, name, value);
    assert_int_equal(bytes, 77);
}

static void expect_packs(const moe_experts_args *args)
{
    moe_experts *x;
    size_t bytes = 0;
    moe_status s = moe_experts_create(NULL, args, &x);
    if (s == MOE_OK) s = moe_experts_bytes(NULL, args, &bytes);
    if (s != MOE_OK) fail_msg("%s: %s", moe_status_name(s), moe_last_error());
    assert_int_equal(x->bytes, bytes);
    assert_int_equal(moe_experts_destroy(x), MOE_OK);
}

/* ---- one field at a time --------------------------------------------------------------------- */

static const struct spoilt {
    int base;
    const char *name; /* in the message, as is value */
    size_t offset, bytes;
    int64_t set;
    moe_status status;
    refusal by;
    const char *value;
} FIELDS[] = {
#define NAMED(base, name, field, set, status, by, value)                                           \
    {                                                                                              \
        base, name, offsetof(moe_experts_args, field), sizeof(((moe_experts_args *)0)->field),     \
            set, status, by, value                                                                 \
    }
#define FIELD(base, field, set, status, by, value)                                                 \
    NAMED(base, #field, field, set, status, by, value)
    FIELD(ROWS, struct_size, 8, MOE_E_ABI, BY_SHAPE, "= 8:"),
    FIELD(ROWS, struct_size, sizeof(moe_experts_args) - 1, MOE_E_ABI, BY_SHAPE, "_init"),
    FIELD(ROWS, struct_size, 5000, MOE_E_ABI, BY_SHAPE, "= 5000:"),
    FIELD(ROWS, packing, -1, MOE_E_BAD_ENUM, BY_SHAPE, "= -1: must be in [0, 1]"),
    FIELD(ROWS, packing, 2, MOE_E_BAD_ENUM, BY_SHAPE, "= 2: must be in [0, 1]"),
    FIELD(ROWS, packing, 1, MOE_E_UNSUPPORTED, BY_SHAPE, "bf16 weights, not f32"),
    FIELD(POINTERS, packing, 1, MOE_E_UNSUPPORTED, BY_SHAPE, "bf16 weights, not f16"),
    FIELD(MX_ROWS, packing, 1, MOE_E_UNSUPPORTED, BY_SHAPE, "bf16 weights, not e2m1_x2"),
    FIELD(TENSORS, packing, 1, MOE_E_UNSUPPORTED, BY_SHAPE, "bf16 weights, not e4m3fn"),
    FIELD(WORDS, packing, 1, MOE_E_UNSUPPORTED, BY_SHAPE, "bf16 weights, not mxfp4_x4"),

    FIELD(ROWS, E_L, 0, MOE_E_DIM, BY_SHAPE, "= 0: must be at least 1"),
    FIELD(ROWS, E_L, -1, MOE_E_DIM, BY_SHAPE, "= -1:"),
    FIELD(ROWS, H, 0, MOE_E_DIM, BY_SHAPE, "= 0:"),
    FIELD(ROWS, H, INT64_MIN, MOE_E_DIM, BY_SHAPE, "must be at least 1"),
    FIELD(ROWS, I, -5, MOE_E_DIM, BY_SHAPE, "= -5:"),
    FIELD(MX_ROWS, H, 72, MOE_E_SHAPE, BY_SHAPE, "= 72: must be a multiple of 32"),
    FIELD(MX_ROWS, I, 100, MOE_E_SHAPE, BY_SHAPE, "= 100: must be a multiple of 32"),
    NAMED(ROWS, "weights", E_L, INT64_MAX, MOE_E_OVERFLOW, BY_SHAPE, "do not fit"),
    NAMED(ROWS, "weights", H, INT64_MAX, MOE_E_OVERFLOW, BY_SHAPE, "do not fit"),
    NAMED(ROWS, "weights", I, INT64_MAX, MOE_E_OVERFLOW, BY_SHAPE, "do not fit"),
    NAMED(POINTERS, "packed experts", E_L, INT64_MAX, MOE_E_OVERFLOW, BY_SHAPE, "E_L = 92"),
    FIELD(TENSORS, E_L, 2, MOE_E_UNSUPPORTED, BY_SHAPE, "= 2: must be 0"),
    FIELD(TENSORS, H, 40, MOE_E_UNSUPPORTED, BY_SHAPE, "= 40: must be 0"),
    FIELD(WORDS, I, -1, MOE_E_UNSUPPORTED, BY_SHAPE, "= -1: must be 0"),

    FIELD(ROWS, gate.weights.dtype, -1, MOE_E_BAD_ENUM, BY_SHAPE, "= -1: must be in [0, 20]"),
    FIELD(ROWS, up.weights.dtype, 21, MOE_E_BAD_ENUM, BY_SHAPE, "= 21:"),
    FIELD(ROWS, down.bias.dtype, INT32_MAX, MOE_E_BAD_ENUM, BY_SHAPE, "= 2147483647:"),
    FIELD(ROWS, gate.scale.dtype, INT32_MIN, MOE_E_BAD_ENUM, BY_SHAPE, "= -2147483648:"),
    FIELD(ROWS, gate.weights.dtype, MOE_DTYPE_NONE, MOE_E_NULL_ARG, BY_SHAPE, "none: required"),
    FIELD(ROWS, up.weights.dtype, MOE_DTYPE_NONE, MOE_E_NULL_ARG, BY_SHAPE, "none: required"),
    FIELD(ROWS, down.weights.dtype, MOE_DTYPE_NONE, MOE_E_NULL_ARG, BY_SHAPE, "none: required"),
    FIELD(ROWS, gate.weights.dtype, MOE_E8M0, MOE_E_DTYPE, BY_SHAPE, "e8m0"),
    FIELD(ROWS, gate.weights.dtype, MOE_MXFP4_X4, MOE_E_DTYPE, BY_SHAPE, "mxfp4_x4"),
    FIELD(ROWS, down.weights.dtype, MOE_I32, MOE_E_DTYPE, BY_SHAPE, "i32"),
    FIELD(ROWS, up.weights.dtype, MOE_F16, MOE_E_DTYPE, BY_SHAPE, "f16: must be gate's bf16"),
    FIELD(ROWS, up.scale.dtype, MOE_DTYPE_NONE, MOE_E_NULL_ARG, BY_SHAPE, "or neither"),
    FIELD(ROWS, gate.bias.dtype, MOE_DTYPE_NONE, MOE_E_NULL_ARG, BY_SHAPE, "or neither"),
    FIELD(ROWS, gate.scale.dtype, MOE_E8M0, MOE_E_DTYPE, BY_SHAPE, "or f32 with bf16"),
    FIELD(ROWS, down.scale.dtype, MOE_E4M3FN, MOE_E_DTYPE, BY_SHAPE, "e4m3fn"),
    FIELD(ROWS, down.bias.dtype, MOE_E8M0, MOE_E_DTYPE, BY_SHAPE, "e8m0"),
    FIELD(MX_ROWS, gate.scale.dtype, MOE_DTYPE_NONE, MOE_E_NULL_ARG, BY_SHAPE, "e4m3fn or e8m0"),
    FIELD(MX_ROWS, gate.scale.dtype, MOE_F32, MOE_E_DTYPE, BY_SHAPE, "e4m3fn or e8m0"),
    FIELD(FP8_ROWS, down.scale.dtype, MOE_E8M0, MOE_E_DTYPE, BY_SHAPE, "with e4m3_ieee"),
    NAMED(FP8_ROWS, "down.scale.dtype", down.weights.dtype, MOE_E2M1_X2, MOE_E_NULL_ARG, BY_SHAPE,
          "e8m0"),

    FIELD(ROWS, gate.weights.expert_stride, -2, MOE_E_VALUE, BY_SHAPE, "= -2:"),
    FIELD(ROWS, gate.weights.row_stride, -80, MOE_E_VALUE, BY_SHAPE, "= -80:"),
    FIELD(ROWS, gate.weights.row_stride, 0, MOE_E_VALUE, BY_SHAPE, "= 0: must be at least 2"),
    FIELD(ROWS, up.weights.column_stride, 0, MOE_E_VALUE, BY_SHAPE, "= 0: must be at least 2"),
    FIELD(ROWS, down.weights.column_stride, 2, MOE_E_VALUE, BY_SHAPE, "= 2: must be at least 4"),
    FIELD(ROWS, gate.weights.row_stride, 81, MOE_E_ALIGN, BY_SHAPE, "= 81: must be a multiple"),
    FIELD(ROWS, up.weights.expert_stride, 1, MOE_E_ALIGN, BY_SHAPE, "= 1: must be a multiple"),
    FIELD(ROWS, down.weights.column_stride, 6, MOE_E_ALIGN, BY_SHAPE, "element's 4 bytes"),
    FIELD(ROWS, gate.scale.row_stride, -4, MOE_E_VALUE, BY_SHAPE, "= -4:"),
    FIELD(ROWS, down.bias.row_stride, 3, MOE_E_ALIGN, BY_SHAPE, "= 3:"),
    FIELD(MX_ROWS, gate.weights.column_stride, 2, MOE_E_VALUE, BY_SHAPE, "must be 1 with e2m1_x2"),
    FIELD(MX_ROWS, up.scale.column_stride, 0, MOE_E_VALUE, BY_SHAPE, "= 0: must be at least 1"),
    FIELD(MX_ROWS, up.scale.row_stride, 0, MOE_E_VALUE, BY_SHAPE, "= 0: must be at least 1"),
    NAMED(ROWS, "gate.weights", gate.weights.expert_stride, INT64_MAX - 1, MOE_E_OVERFLOW, BY_SHAPE,
          "do not fit"),
    NAMED(ROWS, "gate.weights", gate.weights.expert_stride, (int64_t)1 << 62, MOE_E_OVERFLOW,
          BY_SHAPE, "do not fit"),
    NAMED(ROWS, "gate.weights", gate.weights.row_stride, INT64_MAX - 1, MOE_E_OVERFLOW, BY_SHAPE,
          "do not fit"),
    NAMED(ROWS, "down.weights", down.weights.column_stride, (int64_t)1 << 62, MOE_E_OVERFLOW,
          BY_SHAPE, "do not fit"),
    NAMED(ROWS, "up.bias", up.bias.row_stride, (int64_t)1 << 62, MOE_E_OVERFLOW, BY_SHAPE,
          "do not fit"),

    FIELD(ROWS, gate.weights.data, 0, MOE_E_NULL_ARG, BY_DATA, "= NULL"),
    FIELD(ROWS, down.scale.data, 0, MOE_E_NULL_ARG, BY_DATA, "= NULL"),
    FIELD(ROWS, up.bias.data, 0, MOE_E_NULL_ARG, BY_DATA, "= NULL"),
    FIELD(LOSSLESS, up.weights.data, 0, MOE_E_NULL_ARG, BY_DATA, "= NULL"),
    FIELD(ROWS, down.weights.data, 4098, MOE_E_ALIGN, BY_DATA, "aligned to 4 bytes"),
    FIELD(ROWS, gate.weights.data, 4097, MOE_E_ALIGN, BY_DATA, "aligned to 2 bytes"),
    NAMED(ROWS, "gate.weights.data", gate.weights.experts, 64, MOE_E_UNSUPPORTED, BY_DATA,
          "gate.weights.experts"),
    NAMED(POINTERS, "down.bias.data", down.bias.experts, 0, MOE_E_NULL_ARG, BY_DATA, "= NULL"),

    FIELD(TENSORS, expert_gate_up_weights, 0, MOE_E_NULL_ARG, BY_SHAPE, "= NULL: required"),
    FIELD(TENSORS, expert_down_weights, 0, MOE_E_NULL_ARG, BY_SHAPE, "= NULL: required"),
    FIELD(TENSORS, expert_down_weights_scale, 0, MOE_E_NULL_ARG, BY_SHAPE, "or neither"),
    FIELD(WORDS, expert_gate_up_weights_scale, 0, MOE_E_NULL_ARG, BY_SHAPE, "MX weights require"),
    FIELD(TENSORS, gate.weights.dtype, MOE_BF16, MOE_E_UNSUPPORTED, BY_SHAPE, "together"),
    NAMED(TENSORS, "down.bias", down.bias.dtype, MOE_F32, MOE_E_UNSUPPORTED, BY_SHAPE, "together"),
    NAMED(WORDS, "up.scale", up.scale.dtype, MOE_E8M0, MOE_E_UNSUPPORTED, BY_SHAPE, "together"),
#undef FIELD
#undef NAMED
};

static void test_fields(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(FIELDS); i++) {
        const struct spoilt *f = &FIELDS[i];
        source s;
        source_make(&s, &BASE[f->base]);
        expect_packs(&s.args);
        memcpy((char *)&s.args + f->offset, &f->set, f->bytes);
        char name[64]; /* a field of the name's last part is called as the message calls it */
        snprintf(name, sizeof name, "%s", f->name);
        char *dtype = strstr(name, ".dtype");
        if (dtype != NULL && strcmp(f->value, "together") == 0) *dtype = '\0';
        expect_no_experts(&s.args, f->status, f->by, name, f->value);
        source_free(&s);
    }
}

static void test_descriptions(void **state)
{
    source s;
    (void)state;
    moe_experts_args none = moe_experts_args_init();
    expect_no_experts(&none, MOE_E_NULL_ARG, BY_SHAPE, "up.weights", "expert_gate_up_weights");
    expect_no_experts(NULL, MOE_E_NULL_ARG, BY_SHAPE, "args", "NULL");
    source_make(&s, &BASE[ROWS]);
    expect_text("create", moe_experts_create(NULL, &s.args, NULL), MOE_E_NULL_ARG, "experts",
                "NULL");
    expect_text("bytes", moe_experts_bytes(NULL, &s.args, NULL), MOE_E_NULL_ARG, "bytes", "NULL");
    s.args.expert_down_bias = &s.tensor[0];
    expect_no_experts(&s.args, MOE_E_UNSUPPORTED, BY_SHAPE, "gate.weights", "together");
    source_free(&s);

    source_make(&s, &BASE[POINTERS]);
    const void *experts[3] = {s.args.up.weights.experts[0], NULL, s.args.up.weights.experts[2]};
    s.args.up.weights.experts = experts;
    expect_no_experts(&s.args, MOE_E_NULL_ARG, BY_DATA, "up.weights.experts[1]", "= NULL");
    experts[1] = (const char *)experts[0] + 1;
    expect_no_experts(&s.args, MOE_E_ALIGN, BY_DATA, "up.weights.experts[1]", "2 bytes");
    source_free(&s);

    /* tensors: as moe_tkg judges them */
    source_make(&s, &BASE[TENSORS]);
    s.tensor[1].shape[2] = 41;
    expect_no_experts(&s.args, MOE_E_SHAPE, BY_SHAPE, "expert_down_weights", "[2, 24, 40]");
    s.tensor[1].shape[2] = 40;
    s.tensor[0].dtype = MOE_E2M1_X2;
    expect_no_experts(&s.args, MOE_E_DTYPE, BY_SHAPE, "expert_gate_up_weights", "e2m1_x2");
    s.tensor[0].dtype = MOE_BF16;
    s.tensor[0].data = NULL;
    expect_no_experts(&s.args, MOE_E_NULL_ARG, BY_DATA, "expert_gate_up_weights", "NULL");
    s.tensor[0].data = (const char *)64 + 1;
    expect_no_experts(&s.args, MOE_E_ALIGN, BY_DATA, "expert_gate_up_weights", "2 bytes");
    source_free(&s);

    source_make(&s, &BASE[WORDS]);
    s.tensor[0].shape[3] = 0;
    expect_no_experts(&s.args, MOE_E_DIM, BY_SHAPE, "expert_gate_up_weights", "H = 0");
    source_free(&s);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* All pointers NULL: sizes are known from the shapes. */
static size_t bytes_of_rows(moe_dtype gate_up, moe_dtype down, bool mx, int64_t E_L, int64_t H,
                            int64_t I, size_t *given)
{
    moe_experts_args a = moe_experts_args_init();
    moe_matrix *m[] = {&a.gate, &a.up, &a.down};
    size_t bytes;
    a.E_L = E_L;
    a.H = H;
    a.I = I;
    *given = 0;
    for (size_t i = 0; i < 3; i++) {
        int64_t rows = i == 2 ? H : I, k = i == 2 ? I : H;
        m[i]->weights = moe_array_dense(NULL, i == 2 ? down : gate_up, rows, k);
        m[i]->bias = moe_array_dense(NULL, MOE_BF16, rows, 1);
        if (mx) m[i]->scale = moe_array_dense(NULL, MOE_E8M0, rows, k / 32);
        *given += (size_t)(E_L * (m[i]->weights.expert_stride +
                                  (mx ? m[i]->scale.expert_stride : 0) + 2 * rows));
    }
    if (moe_experts_bytes(NULL, &a, &bytes) != MOE_OK) fail_msg("%s", moe_last_error());
    return bytes;
}

static void test_sizes(void **state)
{
    static const struct {
        int64_t H, I;
    } shapes[] = {{2880, 2880}, {2048, 768}, {7168, 2048}, {2816, 704}, {2688, 1856}, {4096, 1536}};
    static const struct {
        moe_dtype dtype;
        bool mx;
    } types[] = {{MOE_BF16, false},   {MOE_F16, false},   {MOE_F32, false},
                 {MOE_E4M3FN, false}, {MOE_E4M3FN, true}, {MOE_E2M1_X2, true}};
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++)
        for (size_t t = 0; t < COUNT(types); t++) {
            size_t given, bytes = bytes_of_rows(types[t].dtype, types[t].dtype, types[t].mx, 8,
                                                shapes[i].H, shapes[i].I, &given);
            assert_true((double)bytes <= 1.02 * (double)given);
        }
}

/* What moe_array_dense makes of dimensions that do not fit is an error, and no small array. */
static void test_dense_too_large(void **state)
{
    static const int64_t large[] = {INT64_MAX, INT64_MAX - 31, (int64_t)1 << 62, (int64_t)1 << 61,
                                    (int64_t)1 << 32};
    static const moe_dtype types[] = {MOE_BF16, MOE_F32, MOE_E4M3FN};
    (void)state;
    for (size_t i = 0; i < COUNT(large) * COUNT(large); i++)
        for (size_t t = 0; t < COUNT(types); t++) {
            moe_experts_args a = moe_experts_args_init();
            size_t bytes = 1;
            a.E_L = 2;
            a.H = large[i / COUNT(large)];
            a.I = large[i % COUNT(large)];
            a.gate.weights = moe_array_dense(&a, types[t], a.I, a.H);
            a.up.weights = moe_array_dense(&a, types[t], a.I, a.H);
            a.down.weights = moe_array_dense(&a, types[t], a.H, a.I);
            assert_int_not_equal(moe_experts_bytes(NULL, &a, &bytes), MOE_OK);
            assert_int_equal(bytes, 1);
        }
}

/* Exactly what is allocated and given back. */
typedef struct counts {
    size_t allocated[16], released[16];
    size_t allocations, releases;
} counts;

static void *counting_allocate(size_t bytes, size_t alignment, void *user)
{
    counts *c = user;
    if (c->allocations < COUNT(c->allocated)) c->allocated[c->allocations++] = bytes;
    void *memory = NULL;
    return posix_memalign(&memory, alignment, bytes) == 0 ? memset(memory, 0xA5, bytes) : NULL;
}

static void counting_release(void *memory, size_t bytes, void *user)
{
    counts *c = user;
    if (c->releases < COUNT(c->released)) c->released[c->releases++] = bytes;
    free(memory);
}

static moe_context *counting_context(counts *c, int threads)
{
    moe_context *context;
    moe_context_options options = moe_context_options_init();
    memset(c, 0, sizeof *c);
    options.threads = threads;
    options.allocate = counting_allocate;
    options.release = counting_release;
    options.user = c;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    return context;
}

static void test_bytes_are_exact(void **state)
{
    (void)state;
    for (size_t base = 0; base < BASES; base++) {
        counts c;
        source s;
        size_t bytes;
        moe_experts *x;
        moe_context *context = counting_context(&c, 2);
        source_make(&s, &BASE[base]);
        assert_int_equal(moe_experts_bytes(context, &s.args, &bytes), MOE_OK);
        c.allocations = c.releases = 0;
        assert_int_equal(moe_experts_create(context, &s.args, &x), MOE_OK);
        size_t last = c.allocations - 1; /* after working memory, if any */
        assert_true(c.allocations <= 2 && c.releases <= 1);
        assert_int_equal(c.allocated[last], bytes);
        moe_experts_info info = {.struct_size = sizeof info};
        assert_int_equal(moe_experts_describe(x, &info), MOE_OK);
        assert_int_equal(info.bytes, bytes);
        assert_int_equal(moe_context_destroy(context), MOE_OK); /* the experts live on */
        c.releases = 0;
        assert_int_equal(moe_experts_destroy(x), MOE_OK);
        assert_int_equal(c.releases, 1);
        assert_int_equal(c.released[0], bytes);
        source_free(&s);
    }
}

/* ---- descriptions of handles ----------------------------------------------------------------- */

static void test_describe(void **state)
{
    (void)state;
    for (size_t base = 0; base < BASES; base++) {
        source s;
        moe_experts *x;
        source_make(&s, &BASE[base]);
        assert_int_equal(moe_experts_create(NULL, &s.args, &x), MOE_OK);
        moe_experts_info info = {.struct_size = sizeof info};
        assert_int_equal(moe_experts_describe(x, &info), MOE_OK);
        assert_int_equal(info.struct_size, sizeof info);
        assert_int_equal(info.E_L, BASE[base].E_L);
        assert_int_equal(info.H, BASE[base].H);
        assert_int_equal(info.I, BASE[base].I);
        assert_int_equal(info.gate_up, BASE[base].gate_up);
        assert_int_equal(info.down, BASE[base].down);
        assert_int_equal(info.packing, BASE[base].packing);
        assert_int_equal(info.has_gate, 1);
        assert_true(info.expert_bytes > 0 &&
                    info.expert_bytes * (size_t)info.E_L <= info.bytes - sizeof *x);

        moe_experts_info before = info;
        info.struct_size = sizeof info - 1;
        expect_text("describe", moe_experts_describe(x, &info), MOE_E_ABI, "struct_size",
                    "at least");
        before.struct_size = info.struct_size;
        assert_memory_equal(&info, &before, sizeof info);
        expect_text("describe", moe_experts_describe(NULL, &info), MOE_E_NULL_ARG, "experts",
                    "NULL");
        expect_text("describe", moe_experts_describe(x, NULL), MOE_E_NULL_ARG, "info", "NULL");
        assert_int_equal(moe_experts_destroy(x), MOE_OK);
        source_free(&s);
    }
    assert_int_equal(moe_experts_destroy(NULL), MOE_OK);
}

/* ---- packing at the same time ---------------------------------------------------------------- */

typedef struct packer {
    moe_context *context;
    const moe_experts_args *args;
    moe_experts *experts;
} packer;

static void *pack_again(void *arg)
{
    packer *p = arg;
    for (int i = 0; i < 20; i++) {
        if (moe_experts_destroy(p->experts) != MOE_OK ||
            moe_experts_create(p->context, p->args, &p->experts) != MOE_OK)
            return p;
    }
    return NULL;
}

/* All panels of all experts; what lies in none is not looked at. */
static void expect_same_panels(const moe_experts *a, const moe_experts *b)
{
    assert_int_equal(a->bytes, b->bytes);
    for (size_t e = 0; e < a->E_L; e++)
        for (size_t i = 0; i < a->layout.gate_up_panels + a->layout.down_panels; i++) {
            bool down = i >= a->layout.gate_up_panels;
            size_t n = down ? i - a->layout.gate_up_panels : i;
            kernel_panel p = down ? experts_down(a, e, n) : experts_gate_up(a, e, n),
                         q = down ? experts_down(b, e, n) : experts_gate_up(b, e, n);
            assert_int_equal(p.format, q.format);
            assert_memory_equal(p.stream, q.stream, kernel_panel_bytes(p.format, p.halves, p.k));
        }
}

static void test_at_once(void **state)
{
    enum { THREADS = 4 };
    (void)state;
    for (size_t base = 0; base < BASES; base++) {
        source s;
        moe_context *context;
        moe_context_options options = moe_context_options_init();
        pthread_t thread[THREADS];
        packer p[THREADS];
        moe_experts *alone;
        options.threads = 3;
        assert_int_equal(moe_context_create(&options, &context), MOE_OK);
        source_make(&s, &BASE[base]);
        assert_int_equal(moe_experts_create(NULL, &s.args, &alone), MOE_OK);
        for (size_t i = 0; i < THREADS; i++) {
            p[i] = (packer){context, &s.args, NULL};
            assert_int_equal(pthread_create(&thread[i], NULL, pack_again, &p[i]), 0);
        }
        for (size_t i = 0; i < THREADS; i++) {
            void *failed;
            assert_int_equal(pthread_join(thread[i], &failed), 0);
            assert_null(failed);
            expect_same_panels(alone, p[i].experts);
            assert_int_equal(moe_experts_destroy(p[i].experts), MOE_OK);
        }
        assert_int_equal(moe_experts_destroy(alone), MOE_OK);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
        source_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),   cmocka_unit_test(test_descriptions),
        cmocka_unit_test(test_sizes),    cmocka_unit_test(test_bytes_are_exact),
        cmocka_unit_test(test_describe), cmocka_unit_test(test_dense_too_large),
        cmocka_unit_test(test_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
