/* SPDX-License-Identifier: Apache-2.0 */
/* test_tool_run.c - moe-tkg run on a layer of a model: the file that it writes holds the bits that
 * the library's own calls give, and what it refuses it refuses with one line and the right code. */
#define _GNU_SOURCE 1

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <moe_tkg_io.h>

#include "io/safetensors.h"
#include "tiny_model.h"
#include "tool_call.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64]; /* of the test that runs */

static int make_folder(void **state)
{
    (void)state;
    tool_folder(folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    tool_folder_remove(folder);
    return 0;
}

/* ---- files ----------------------------------------------------------------------------------- */

/* A tensor read whole: data to be freed. */
typedef struct whole {
    st_tensor tensor;
    void *data;
} whole;

static whole read_whole(const char *path, const char *name)
{
    io_error error;
    st_file *file;
    if (st_open(path, &file, &error) != IO_OK) fail_msg("%s", error.text);
    const st_tensor *t = st_find(file, name);
    if (!t) fail_msg("%s has no %s", path, name);
    whole w = {.tensor = *t, .data = malloc(t->bytes + 1)};
    assert_int_equal(st_read(file, t, w.data, &error), IO_OK);
    st_close(file);
    w.tensor.name = NULL;
    return w;
}

static void write_tensors(const char *path, const st_tensor *tensor, const void *const *data,
                          size_t n)
{
    io_error error;
    if (st_write(path, tensor, data, n, NULL, NULL, 0, &error) != IO_OK) fail_msg("%s", error.text);
}

/* ---- what the library gives ------------------------------------------------------------------ */

typedef struct wanted {
    moe_dtype hidden, output; /* hidden: what the f32 of the file become first */
    moe_act_mode act;
    bool experts_only;
} wanted;

/* To the nearest, ties to even, by comparing the two neighbours. */
static uint16_t nearest_bf16(float value)
{
    uint32_t bits, up;
    float low, high;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0xffff0000u;
    up = bits + 0x10000u;
    memcpy(&low, &bits, sizeof low);
    memcpy(&high, &up, sizeof high);
    double below = fabs((double)value - (double)low), above = fabs((double)high - (double)value);
    bool takes_high = above < below || (above == below && (up >> 16 & 1) == 0);
    return (uint16_t)((takes_high ? up : bits) >> 16);
}

static void convert(void *data, size_t n, moe_dtype dtype)
{
    if (dtype == MOE_F32) return;
    for (size_t i = 0; i < n; i++) {
        float value;
        memcpy(&value, (char *)data + 4 * i, sizeof value);
        uint16_t half = nearest_bf16(value);
        memcpy((char *)data + 2 * i, &half, sizeof half);
    }
}

/* One call for each token, which gives the bits of any other splitting. */
static void *compute(const char *model_path, int64_t layer, const char *hidden_path,
                     const wanted *w, size_t *bytes)
{
    moe_model *model;
    moe_layer *loaded;
    moe_block_args args;
    moe_layer_info info = {.struct_size = sizeof info};
    whole hidden = read_whole(hidden_path, "hidden"), ids = {0}, weights = {0};
    int64_t T = hidden.tensor.shape[0], H = hidden.tensor.shape[1];
    assert_int_equal(moe_model_open(model_path, NULL, &model), MOE_OK);
    assert_int_equal(moe_model_load(model, layer, NULL, NULL, &loaded), MOE_OK);
    moe_model_close(model);
    assert_int_equal(moe_layer_args(loaded, &args), MOE_OK);
    assert_int_equal(moe_layer_describe(loaded, &info), MOE_OK);
    if (w->experts_only) ids = read_whole(hidden_path, "topk_ids");
    if (w->experts_only) weights = read_whole(hidden_path, "topk_weights");
    convert(hidden.data, (size_t)(T * H), w->hidden);
    size_t row = moe_dtype_size(w->output) * (size_t)H, from = moe_dtype_size(w->hidden);
    char *output = malloc((size_t)T * row + 1);
    for (int64_t t = 0; t < T; t++) {
        moe_tensor x = moe_tensor_2d((char *)hidden.data + (size_t)(t * H) * from, w->hidden, 1, H);
        moe_tensor index = moe_tensor_2d((int32_t *)ids.data + t * info.K, MOE_I32, 1, info.K);
        moe_tensor affinity = moe_tensor_2d((float *)weights.data + t * info.K, MOE_F32, 1, info.K);
        moe_block_args one = args;
        one.experts.hidden_input = &x;
        one.experts.output_dtype = w->output;
        one.experts.act_mode = w->act;
        one.experts.expert_affinities_scaling_mode = info.scaling;
        if (w->experts_only) one.experts.expert_index = &index;
        if (w->experts_only) one.experts.expert_affinities_eager = &affinity;
        char *at = output + (size_t)t * row;
        moe_status status =
            w->experts_only ? moe_tkg(NULL, &one.experts, at, row) : moe_block(NULL, &one, at, row);
        if (status != MOE_OK) fail_msg("%s", moe_last_error());
    }
    assert_int_equal(moe_layer_free(loaded), MOE_OK);
    free(hidden.data);
    free(ids.data);
    free(weights.data);
    *bytes = (size_t)T * row;
    return output;
}

static void expect_output(const char *path, moe_dtype dtype, const void *bits, size_t bytes)
{
    whole out = read_whole(path, "output");
    st_dtype stored = dtype == MOE_F32 ? ST_F32 : dtype == MOE_F16 ? ST_F16 : ST_BF16;
    assert_int_equal(out.tensor.dtype, stored);
    assert_int_equal(out.tensor.rank, 2);
    assert_int_equal(out.tensor.bytes, bytes);
    assert_memory_equal(out.data, bits, bytes);
    free(out.data);
}

/* ---- the same bits --------------------------------------------------------------------------- */

static void expect_same(const char *model, int64_t layer, const char *hidden, const wanted *w,
                        const char *options)
{
    size_t bytes;
    char out[128];
    void *bits = compute(model, layer, hidden, w, &bytes);
    snprintf(out, sizeof out, "%s/out.safetensors", folder);
    tool_expect(0, NULL, "run --model %s --layer %lld --hidden %s --out %s%s %s", model,
                (long long)layer, hidden, out, w->experts_only ? " --experts-only" : "", options);
    expect_output(out, w->output, bits, bytes);
    free(bits);
    unlink(out);
}

static void test_same_bits(void **state)
{
    (void)state;
    static const int64_t TOKENS[] = {1, 5, 128, 129, 300};
    char hidden[128];
    snprintf(hidden, sizeof hidden, "%s/hidden.safetensors", folder);
    for (tiny_family family = TINY_QWEN3; family <= TINY_PHIMOE; family++) {
        tiny_model_write(family, folder, -1);
        for (size_t i = 0; i < sizeof TOKENS / sizeof TOKENS[0]; i++) {
            int64_t layer = (int64_t)i % tiny_layers(family);
            tiny_hidden_write(hidden, TOKENS[i], TINY_H, tiny_K(family), TINY_E, i);
            wanted w = {.hidden = MOE_F32, .output = MOE_F32, .experts_only = true};
            expect_same(folder, layer, hidden, &w, "");
            w.experts_only = false;
            if (family != TINY_PHIMOE) expect_same(folder, layer, hidden, &w, "--threads 2");
        }
    }
}

static void test_dtypes(void **state)
{
    (void)state;
    char hidden[128];
    tiny_model_write(TINY_QWEN3, folder, -1);
    snprintf(hidden, sizeof hidden, "%s/hidden.safetensors", folder);
    tiny_hidden_write(hidden, 7, TINY_H, 2, TINY_E, 3);
    for (int only = 0; only < 2; only++) {
        wanted w = {.hidden = MOE_BF16, .output = MOE_F32, .experts_only = only != 0};
        expect_same(folder, 1, hidden, &w, "--hidden-dtype bf16");
        w.output = MOE_BF16;
        expect_same(folder, 1, hidden, &w, "--hidden-dtype bf16 --output-dtype bf16");
        w.hidden = MOE_F32;
        expect_same(folder, 1, hidden, &w, "--output-dtype bf16 --act exact --isa scalar");
        w.output = MOE_F16;
        expect_same(folder, 1, hidden, &w, "--output-dtype f16 --hidden-dtype f32");
        expect_same(folder, 1, hidden, &w, "--output-dtype fp16 --threads 1");
    }
}

static void expect_equal_outputs(const char *first, const char *second)
{
    whole a = read_whole(first, "output"), b = read_whole(second, "output");
    assert_int_equal(a.tensor.bytes, b.tensor.bytes);
    assert_memory_equal(a.data, b.data, a.tensor.bytes);
    free(a.data);
    free(b.data);
}

/* Files whose tensors are of other types that hold the same numbers give the same bits. */
static void test_types_in_files(void **state)
{
    (void)state;
    char hidden[128], other[128], first[128], second[128];
    enum { T = 9, K = 2 };
    static const int64_t SHAPE[] = {T, TINY_H}, ROUTES[] = {T, K};
    static const st_dtype IDS[] = {ST_I32, ST_I64, ST_U32}, FLOATS[] = {ST_F32, ST_BF16, ST_F16};
    snprintf(hidden, sizeof hidden, "%s/hidden.safetensors", folder);
    snprintf(other, sizeof other, "%s/other.safetensors", folder);
    snprintf(first, sizeof first, "%s/first", folder);
    snprintf(second, sizeof second, "%s/second", folder);
    tiny_model_write(TINY_QWEN3, folder, -1);
    for (size_t i = 0; i < 3; i++) {
        float x[T * TINY_H], weights[T * K];
        uint16_t x_half[T * TINY_H], weights_half[T * K];
        int64_t ids64[T * K];
        int32_t ids32[T * K];
        for (size_t n = 0; n < T * TINY_H; n++) { /* small integers: exact in all three */
            x[n] = (float)(int)(n % 7) - 3;
            uint32_t bits;
            memcpy(&bits, &x[n], sizeof bits);
            static const uint16_t F16[] = {0xc200, 0xc000, 0xbc00, 0, 0x3c00, 0x4000, 0x4200};
            x_half[n] = FLOATS[i] == ST_F16 ? F16[n % 7] : (uint16_t)(bits >> 16);
        }
        for (size_t n = 0; n < T * K; n++) {
            ids64[n] = ids32[n] = (int32_t)(n % K * 2 + n % 3 % 2);
            weights[n] = n % 2 ? 0.5f : 1.0f;
            weights_half[n] =
                FLOATS[i] == ST_F16 ? (n % 2 ? 0x3800 : 0x3c00) : (n % 2 ? 0x3f00 : 0x3f80);
        }
        bool half = FLOATS[i] != ST_F32;
        st_tensor t[] = {
            {.name = "hidden", .dtype = ST_F32, .rank = 2, .bytes = sizeof x},
            {.name = "topk_ids", .dtype = ST_I32, .rank = 2, .bytes = sizeof ids32},
            {.name = "topk_weights", .dtype = ST_F32, .rank = 2, .bytes = sizeof weights},
        };
        for (int n = 0; n < 3; n++) memcpy(t[n].shape, n ? ROUTES : SHAPE, sizeof SHAPE);
        write_tensors(hidden, t, (const void *[]){x, ids32, weights}, 3);
        t[0].dtype = t[2].dtype = FLOATS[i];
        t[1].dtype = IDS[i];
        if (half) t[0].bytes /= 2, t[2].bytes /= 2;
        if (IDS[i] == ST_I64) t[1].bytes *= 2;
        write_tensors(other, t,
                      (const void *[]){half ? (void *)x_half : (void *)x,
                                       IDS[i] == ST_I64 ? (void *)ids64 : (void *)ids32,
                                       half ? (void *)weights_half : (void *)weights},
                      3);
        static const char *const DTYPES[] = {"f32", "bf16", "f16"};
        const char *run = "run --model %s --layer 0 --experts-only --hidden %s --out %s %s %s";
        for (int back = 0; back < 2; back++) {
            tool_expect(0, NULL, run, folder, hidden, first, "--hidden-dtype",
                        back ? "f32" : DTYPES[i]);
            tool_expect(0, NULL, run, folder, other, second, back ? "--hidden-dtype" : "",
                        back ? "f32" : "");
            expect_equal_outputs(first, second);
        }
    }
}

/* ---- refusals -------------------------------------------------------------------------------- */

/* A file with the one tensor. */
static void write_one(const char *path, const char *name, st_dtype dtype, int rank,
                      const int64_t *shape)
{
    st_tensor t = {.name = name, .dtype = dtype, .rank = rank};
    memcpy(t.shape, shape, (size_t)rank * sizeof *shape);
    assert_true(st_shape_bytes(dtype, shape, rank, &t.bytes));
    void *zeros = calloc(t.bytes + 1, 1);
    write_tensors(path, &t, (const void *const *)&zeros, 1);
    free(zeros);
}

static void test_hidden_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        st_dtype dtype;
        int rank;
        int64_t shape[3];
        const char *words;
    } CASES[] = {
        {"x", ST_F32, 2, {5, 64}, "has no tensor 'hidden': its one matrix is called 'x'"},
        {"x\x1b[31m", ST_F32, 2, {5, 64}, "its one matrix is called 'x?[31m'"},
        {"x", ST_I32, 2, {5, 64}, "has no tensor 'hidden'"},
        {"x", ST_F32, 1, {64}, "has no tensor 'hidden'"},
        {"hidden", ST_F32, 2, {5, 63}, "hidden is [5, 63]: must be [T, H], and here [T, 64]"},
        {"hidden", ST_F32, 1, {64}, "hidden is [64]: must be [T, H]"},
        {"hidden", ST_F32, 3, {1, 5, 64}, "hidden is [1, 5, 64]: must be [T, H]"},
        {"hidden", ST_F64, 2, {5, 64}, "hidden is F64: must be F32, F16 or BF16"},
        {"hidden", ST_U8, 2, {5, 64}, "hidden is U8: must be F32, F16 or BF16"},
    };
    char path[128], out[128];
    snprintf(path, sizeof path, "%s/h.safetensors", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    tiny_model_write(TINY_QWEN3, folder, -1);
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        write_one(path, CASES[i].name, CASES[i].dtype, CASES[i].rank, CASES[i].shape);
        tool_expect(3, CASES[i].words, "run --model %s --layer 0 --hidden %s --out %s", folder,
                    path, out);
    }
    assert_int_equal(access(out, F_OK), -1);
}

/* One of the tensors of a call of the experts alone is not as it should be. */
static void test_routes_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        st_dtype dtype;
        int64_t shape[2];
        int first; /* its first value as an integer */
        const char *words;
    } CASES[] = {
        {"topk_id", ST_I32, {5, 2}, 0, "has no tensor 'topk_ids'"},
        {"topk_weight", ST_F32, {5, 2}, 0, "has no tensor 'topk_weights'"},
        {"topk_ids", ST_I32, {5, 3}, 0, "topk_ids is [5, 3]: must be [T, K], and here [5, 2]"},
        {"topk_ids", ST_I32, {4, 2}, 0, "topk_ids is [4, 2]: must be [T, K], and here [5, 2]"},
        {"topk_weights", ST_F32, {5, 1}, 0, "topk_weights is [5, 1]: must be [T, K]"},
        {"topk_weights", ST_F32, {6, 2}, 0, "topk_weights is [6, 2]: must be [T, K]"},
        {"topk_ids", ST_F32, {5, 2}, 0, "topk_ids is F32: must be I32, I64 or U32"},
        {"topk_ids", ST_U8, {5, 2}, 0, "topk_ids is U8: must be I32, I64 or U32"},
        {"topk_weights", ST_F64, {5, 2}, 0, "topk_weights is F64: must be F32, F16 or BF16"},
        {"topk_ids", ST_I32, {5, 2}, 4, "refused: expert_index[0][0] = 4"},
        {"topk_ids", ST_I32, {5, 2}, -1, "refused: expert_index[0][0] = -1"},
    };
    char path[128], out[128];
    snprintf(path, sizeof path, "%s/h.safetensors", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    tiny_model_write(TINY_QWEN3, folder, -1);
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        st_tensor t[] = {
            {.name = "hidden", .dtype = ST_F32, .rank = 2, .shape = {5, 64}},
            {.name = "topk_ids", .dtype = ST_I32, .rank = 2, .shape = {5, 2}},
            {.name = "topk_weights", .dtype = ST_F32, .rank = 2, .shape = {5, 2}},
        };
        int which = strncmp(CASES[i].name, "topk_id", 7) == 0 ? 1 : 2;
        void *data[3];
        t[which].name = CASES[i].name;
        t[which].dtype = CASES[i].dtype;
        memcpy(t[which].shape, CASES[i].shape, sizeof CASES[i].shape);
        for (int n = 0; n < 3; n++) {
            assert_true(st_shape_bytes(t[n].dtype, t[n].shape, 2, &t[n].bytes));
            data[n] = calloc(t[n].bytes + 4, 1);
        }
        memcpy(data[which], &CASES[i].first, sizeof CASES[i].first);
        write_tensors(path, t, (const void *const *)data, 3);
        for (int n = 0; n < 3; n++) free(data[n]);
        tool_expect(3, CASES[i].words,
                    "run --model %s --layer 0 --experts-only --hidden %s --out %s", folder, path,
                    out);
    }
    assert_int_equal(access(out, F_OK), -1);
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void test_models_refused(void **state)
{
    (void)state;
    char hidden[128], bad[128], out[128];
    snprintf(hidden, sizeof hidden, "%s/hidden.safetensors", folder);
    snprintf(bad, sizeof bad, "%s/bad", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    tiny_hidden_write(hidden, 2, TINY_H, 2, TINY_E, 1);
    write_file(bad, "no container");
#define RUN(model, layer)                                                                          \
    "run --model %s --layer " layer " --hidden %s --out %s", model, hidden, out
    tool_expect(2, "/missing", RUN("/missing", "0"));
    tool_expect(2, bad, RUN(bad, "0"));
    tool_expect(3, hidden, RUN(hidden, "0")); /* sound, and no model */
    tiny_model_write(TINY_QWEN3, folder, 5);
    tool_expect(3, "layers.0.mlp.experts", RUN(folder, "0"));
    tiny_model_write(TINY_QWEN3, folder, -1);
    tool_expect(0, NULL, RUN(folder, "2"));
    tool_expect(3, "layer 3", RUN(folder, "3"));
    unlink(out);
    tool_expect(2, "/missing", "run --model %s --layer 0 --hidden /missing --out %s", folder, out);
    tool_expect(2, bad, "run --model %s --layer 0 --hidden %s --out %s", folder, bad, out);
    tool_expect(2, folder, "run --model %s --layer 0 --hidden %s --out %s", folder, folder, out);
    tool_expect(2, "/missing", "run --model %s --layer 0 --hidden %s --out %s --config /missing",
                folder, hidden, out);
    tool_expect(3, "act_mode = INT8", "run --model %s --layer 0 --hidden %s --out %s --act int8",
                folder, hidden, out);
    tool_expect(1, "/none/out", "run --model %s --layer 0 --hidden %s --out /none/out", folder,
                hidden);
    tiny_model_write(TINY_PHIMOE, folder, -1);
    tool_expect(3, "sparsemixer", RUN(folder, "0"));
    assert_int_equal(access(out, F_OK), -1);
#undef RUN
}

static void test_command_lines(void **state)
{
    (void)state;
    tool_expect(2, "needs one CASE and --out OUT, or --model", "run");
    tool_expect(2, "--model needs --layer N, --hidden HIDDEN and --out OUT", "run --model x");
    tool_expect(2, "--model needs", "run --model x --layer 0 --hidden y");
    tool_expect(2, "--model needs", "run --model x --layer 0 --out y");
    tool_expect(2, "--model needs", "run --model x --hidden y --out z");
    tool_expect(2, "takes no CASE", "run --model x --layer 0 --hidden y --out z case");
    tool_expect(2, "takes no --path", "run --model x --layer 0 --hidden y --out z --path raw");
    tool_expect(2, "--layer needs --model", "run case --out y --layer 0");
    tool_expect(2, "--experts-only needs --model", "run case --out y --experts-only");
    tool_expect(2, "--config needs --model", "run case --out y --config z");
    static const char *const LAYERS[] = {"-1", "x", "1x", "99999999999"};
    for (size_t i = 0; i < sizeof LAYERS / sizeof LAYERS[0]; i++)
        tool_expect(2, "--layer", "run --model x --hidden y --out z --layer %s", LAYERS[i]);
    tool_expect(2, "--hidden-dtype fp8: must be", "run --model x --hidden-dtype fp8");
    tool_expect(2, "--output-dtype BF16: must be", "run --model x --output-dtype BF16");
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void expect_verdict(json_t *object, int code)
{
    assert_int_equal(json_is_true(json_object_get(object, "pass")), code == 0);
    assert_int_equal(json_is_true(json_object_get(object, "refused")), code == 3);
    assert_int_equal(json_is_true(json_object_get(object, "unreadable")), code == 2);
    assert_int_equal(json_string_length(json_object_get(object, "message")) == 0, code == 0);
    json_decref(object);
}

static void test_json(void **state)
{
    (void)state;
    char hidden[128], out[128];
    snprintf(hidden, sizeof hidden, "%s/hidden.safetensors", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    tiny_hidden_write(hidden, 2, TINY_H, 2, TINY_E, 1);
    tiny_model_write(TINY_QWEN3, folder, -1);
    json_t *o = tool_json(0, "run --model %s --layer 1 --hidden %s --out %s --hidden-dtype fp16",
                          folder, hidden, out);
    assert_int_equal(json_integer_value(json_object_get(o, "layer")), 1);
    assert_string_equal(json_string_value(json_object_get(o, "dtype")), "f32");
    assert_string_equal(json_string_value(json_object_get(o, "act")), "exact");
    assert_int_equal(json_array_size(json_object_get(o, "shape")), 2);
    expect_verdict(o, 0);
    expect_verdict(
        tool_json(3, "run --model %s --layer 9 --hidden %s --out %s", folder, hidden, out), 3);
    expect_verdict(tool_json(2, "run --model /no --layer 9 --hidden %s --out %s", hidden, out), 2);
    expect_verdict(
        tool_json(1, "run --model %s --layer 0 --hidden %s --out /none/out", folder, hidden), 1);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_same_bits),
        IN_FOLDER(test_dtypes),
        IN_FOLDER(test_types_in_files),
        IN_FOLDER(test_hidden_refused),
        IN_FOLDER(test_routes_refused),
        IN_FOLDER(test_models_refused),
        cmocka_unit_test(test_command_lines),
        IN_FOLDER(test_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
