/* SPDX-License-Identifier: Apache-2.0 */
/* test_tool_run.c - moe-tkg run on a layer of a model: the file that it writes holds the bits that
 * the library's own calls give, and what it refuses it refuses with one line and the right code. */
#define _GNU_SOURCE 1

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "io/safetensors.h"
#include "layer_call.h"
#include "tiny_model.h"
#include "tool_call.h"

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

static void write_tensors(const char *path, const st_tensor *tensor, const void *const *data,
                          size_t n)
{
    io_error error;
    if (st_write(path, tensor, data, n, NULL, NULL, 0, &error) != IO_OK) fail_msg("%s", error.text);
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
    void *bits = layer_compute(model, layer, hidden, w, &bytes);
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
            tiny_hidden_write(hidden, TOKENS[i], tiny_K(family), i);
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
    tiny_hidden_write(hidden, 7, 2, 3);
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
    static const int64_t SHAPE[] = {T, FILES_H}, ROUTES[] = {T, K};
    static const st_dtype IDS[] = {ST_I32, ST_I64, ST_U32}, FLOATS[] = {ST_F32, ST_BF16, ST_F16};
    snprintf(hidden, sizeof hidden, "%s/hidden.safetensors", folder);
    snprintf(other, sizeof other, "%s/other.safetensors", folder);
    snprintf(first, sizeof first, "%s/first", folder);
    snprintf(second, sizeof second, "%s/second", folder);
    tiny_model_write(TINY_QWEN3, folder, -1);
    for (size_t i = 0; i < 3; i++) {
        float x[T * FILES_H], weights[T * K];
        uint16_t x_half[T * FILES_H], weights_half[T * K];
        int64_t ids64[T * K];
        int32_t ids32[T * K];
        for (size_t n = 0; n < T * FILES_H; n++) { /* small integers: exact in all three */
            x[n] = (float)(int)(n % 7) - 3;
            uint32_t bits;
            memcpy(&bits, &x[n], sizeof bits);
            static const uint16_t F16[] = {0xc200, 0xc000, 0xbc00, 0, 0x3c00, 0x4000, 0x4200};
            x_half[n] = FLOATS[i] == ST_F16 ? F16[n % 7] : (uint16_t)(bits >> 16);
        }
        for (size_t n = 0; n < T * K; n++) {
            ids64[n] = ids32[n] = (int32_t)((n / K + n % K) % FILES_E);
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
        {"x", ST_F32, 2, {5, 160}, "has no tensor 'hidden': its one matrix is called 'x'"},
        {"x\x1b[31m", ST_F32, 2, {5, 160}, "its one matrix is called 'x?[31m'"},
        {"x", ST_I32, 2, {5, 160}, "has no tensor 'hidden'"},
        {"x", ST_F32, 1, {160}, "has no tensor 'hidden'"},
        {"hidden", ST_F32, 2, {5, 159}, "hidden is [5, 159]: must be [T, H], and here [T, 160]"},
        {"hidden", ST_F32, 1, {160}, "hidden is [160]: must be [T, H]"},
        {"hidden", ST_F32, 3, {1, 5, 160}, "hidden is [1, 5, 160]: must be [T, H]"},
        {"hidden", ST_F64, 2, {5, 160}, "hidden is F64: must be F32, F16 or BF16"},
        {"hidden", ST_U8, 2, {5, 160}, "hidden is U8: must be F32, F16 or BF16"},
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
        {"topk_ids", ST_I32, {5, 2}, 3, "refused: expert_index[0][0] = 3"},
        {"topk_ids", ST_I32, {5, 2}, -1, "refused: expert_index[0][0] = -1"},
    };
    char path[128], out[128];
    snprintf(path, sizeof path, "%s/h.safetensors", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    tiny_model_write(TINY_QWEN3, folder, -1);
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        st_tensor t[] = {
            {.name = "hidden", .dtype = ST_F32, .rank = 2, .shape = {5, 160}},
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

/* Many tokens are several calls: the message says from where on it counts. */
static void test_row_of_many(void **state)
{
    (void)state;
    enum { T = 300, H = 160, K = 2 };
    static const float hidden[T * H], weights[T * K];
    int32_t ids[T * K] = {[260 * K + 1] = 7};
    const st_tensor t[] = {
        {.name = "hidden", .dtype = ST_F32, .rank = 2, .shape = {T, H}, .bytes = sizeof hidden},
        {.name = "topk_ids", .dtype = ST_I32, .rank = 2, .shape = {T, K}, .bytes = sizeof ids},
        {.name = "topk_weights",
         .dtype = ST_F32,
         .rank = 2,
         .shape = {T, K},
         .bytes = sizeof weights},
    };
    char path[128], out[128];
    snprintf(path, sizeof path, "%s/h.safetensors", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    tiny_model_write(TINY_QWEN3, folder, -1);
    write_tensors(path, t, (const void *[]){hidden, ids, weights}, 3);
    tool_expect(3, "expert_index[4][1] = 7: must be in [0, 3) (rows counted from token 256)",
                "run --model %s --layer 0 --experts-only --hidden %s --out %s", folder, path, out);
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
    tiny_hidden_write(hidden, 2, 2, 1);
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
        tool_expect(2, "must be a number from 0 to 2147483647",
                    "run --model x --hidden y --out z --layer %s", LAYERS[i]);
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
    tiny_hidden_write(hidden, 2, 2, 1);
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
        IN_FOLDER(test_same_bits),      IN_FOLDER(test_dtypes),
        IN_FOLDER(test_types_in_files), IN_FOLDER(test_hidden_refused),
        IN_FOLDER(test_routes_refused), IN_FOLDER(test_row_of_many),
        IN_FOLDER(test_models_refused), cmocka_unit_test(test_command_lines),
        IN_FOLDER(test_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
