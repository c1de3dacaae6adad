/* SPDX-License-Identifier: Apache-2.0 */
/* test_tool_models.c - moe-tkg inspect, bench and pack on tiny models. */
#define _GNU_SOURCE 1

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "layer_call.h"
#include "safetensors_bytes.h"
#include "tiny_model.h"
#include "tool_call.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char folder[64];  /* of the test that runs */
static char packed[128]; /* in it, not there yet */

static int make_folder(void **state)
{
    (void)state;
    tool_folder(folder);
    snprintf(packed, sizeof packed, "%s/packed", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    tool_folder_remove(folder);
    return 0;
}

static int64_t integer(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value)) fail_msg("%s is no integer", key);
    return json_integer_value(value);
}

static double real(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) fail_msg("%s is no number", key);
    return json_number_value(value);
}

static const char *text(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) fail_msg("%s is no string", key);
    return json_string_value(value);
}

static void write_text(const char *name, const char *content)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(content, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* ---- inspect --------------------------------------------------------------------------------- */

enum { EXPERT_BYTES = 3 * FILES_H * FILES_I * 2, ROUTER_BYTES = FILES_E * FILES_H * 2 };

static void test_inspect(void **state)
{
    (void)state;
    tiny_model_write(TINY_QWEN3, folder, -1);
    json_t *o = tool_json(0, "inspect --bandwidth 10 %s", folder);
    assert_string_equal(text(o, "family"), "qwen3-moe");
    assert_string_equal(text(o, "container"), "safetensors");
    assert_int_equal(integer(o, "layers"), 3);
    const json_t *layers = json_object_get(o, "moe_layers");
    assert_int_equal(json_array_size(layers), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *l = json_array_get(layers, i);
        assert_int_equal(integer(l, "layer"), i);
        assert_int_equal(integer(l, "H"), FILES_H);
        assert_int_equal(integer(l, "I"), FILES_I);
        assert_int_equal(integer(l, "E"), FILES_E);
        assert_int_equal(integer(l, "K"), 2);
        assert_string_equal(text(l, "gate_up_format"), "bf16");
        assert_string_equal(text(json_object_get(l, "activation"), "name"), "silu");
        assert_string_equal(text(json_object_get(l, "router"), "score"), "softmax");
        assert_true(json_is_true(json_object_get(json_object_get(l, "router"), "normalize")));
        assert_true(json_is_null(json_object_get(l, "shared")));
        assert_int_equal(integer(l, "expert_bytes"), EXPERT_BYTES);
        assert_int_equal(integer(l, "bytes"), FILES_E * EXPERT_BYTES + ROUTER_BYTES);
    }
    double token = 3.0 * (2 * EXPERT_BYTES + ROUTER_BYTES);
    assert_true(real(o, "token_expert_bytes") == 3.0 * 2 * EXPERT_BYTES);
    assert_true(real(o, "token_bytes") == token);
    assert_true(real(o, "read_gbps") == 10);
    assert_true(json_is_false(json_object_get(o, "measured")));
    assert_true(fabs(real(o, "tokens_per_second") * token / 1e10 - 1) < 1e-12);
    json_decref(o);
    o = tool_json(0, "inspect --threads 1 %s/model.safetensors", folder);
    assert_true(json_is_true(json_object_get(o, "measured")));
    assert_true(fabs(real(o, "tokens_per_second") * token / real(o, "read_gbps") / 1e9 - 1) < 1e-9);
    json_decref(o);
    o = tool_json(0, "inspect --no-measure %s", folder);
    assert_true(json_is_null(json_object_get(o, "read_gbps")));
    assert_true(json_is_null(json_object_get(o, "tokens_per_second")));
    json_decref(o);
}

/* Layers of which the same is to be said are one row. */
static void test_rows(void **state)
{
    (void)state;
    tiny_model_write(TINY_QWEN3, folder, -1);
    tool_result r = tool_call("inspect --no-measure %s", folder);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "qwen3-moe, safetensors: 3 layers, 3 of them with experts"));
    assert_non_null(strstr(r.out, "\n| 0-2 "));
    assert_non_null(strstr(r.out, "| softmax, top 2, normalised |"));
    assert_null(strstr(r.out, "tokens/s"));
    tool_free(&r);
    tiny_model_write(TINY_SPARSE, folder, -1);
    r = tool_call("inspect --bandwidth 1 %s", folder);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "5 layers, 2 of them with experts"));
    assert_non_null(strstr(r.out, "\n| 1-3 by 2 "));
    assert_non_null(strstr(r.out, "| softmax, top 2 |"));
    assert_non_null(strstr(r.out, "At 1.0 GB/s: at most "));
    tool_free(&r);
    tiny_model_write(TINY_LLAMA4, folder, -1);
    r = tool_call("inspect --no-measure %s", folder);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "| sigmoid, top 1, on the input | I 96, bf16 "));
    tool_free(&r);
    tiny_model_write(TINY_PHIMOE, folder, -1);
    r = tool_call("inspect --no-measure %s", folder);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "\n| 0 "));
    assert_non_null(strstr(r.out, "| sparsemixer (not this library's) |"));
    tool_free(&r);
}

static void test_inspect_refused(void **state)
{
    (void)state;
    tool_expect(2, "needs one PATH", "inspect");
    tool_expect(2, "needs one PATH", "inspect a b");
    tool_expect(2, "--tensors takes no --config", "inspect --tensors --config a b");
    static const char *const RATES[] = {"0", "-1", "x", "1x", "nan", "inf", "1e999"};
    for (size_t i = 0; i < sizeof RATES / sizeof RATES[0]; i++)
        tool_expect(2, "--bandwidth", "inspect --bandwidth %s a", RATES[i]);
    tool_expect(2, "/missing", "inspect /missing");
    tool_expect(2, "/missing", "inspect --tensors /missing");
    tool_expect(2, folder, "inspect --tensors %s", folder); /* empty */
    write_text("text", "neither");
    tool_expect(2, "text", "inspect %s/text", folder);
    tool_expect(2, "text", "inspect --tensors %s/text", folder);
    tool_expect(2, "/dev/null", "inspect --tensors /dev/null");
    tiny_model_write(TINY_QWEN3, folder, 3);
    tool_expect(3, "experts", "inspect --no-measure %s", folder);
    tool_expect(0, NULL, "inspect --tensors %s", folder);
    tiny_model_write(TINY_QWEN3, folder, -1);
    tool_expect(2, "/missing", "inspect --config /missing %s", folder);
    tool_expect(0, NULL, "inspect --no-measure --config %s/config.json %s", folder, folder);
    write_text("config.json", "{");
    tool_expect(2, "config.json", "inspect %s", folder);
    write_text("config.json", "{\"model_type\": \"wonder\\u001b[2J\"}");
    tool_expect(3, "wonder", "inspect %s", folder);
    write_text("config.json", "{}");
    tool_expect(3, "config.json", "inspect %s", folder);
}

/* With --json, failures are results too. */
static void expect_failure(json_t *o, int code, const char *words)
{
    assert_true(json_is_false(json_object_get(o, "pass")));
    assert_true(json_boolean_value(json_object_get(o, "refused")) == (code == 3));
    assert_true(json_boolean_value(json_object_get(o, "unreadable")) == (code == 2));
    assert_non_null(strstr(text(o, "message"), words));
    json_decref(o);
}

static void test_failures_as_json(void **state)
{
    (void)state;
    expect_failure(tool_json(2, "inspect /missing"), 2, "/missing");
    expect_failure(tool_json(2, "inspect --tensors /missing"), 2, "/missing");
    expect_failure(tool_json(2, "pack /missing --out %s", packed), 2, "/missing");
    expect_failure(tool_json(2, "bench --model /missing --layer 0"), 2, "/missing");
    expect_failure(tool_json(2, "run --model /missing --layer 0 --hidden x --out y"), 2,
                   "/missing");
    tiny_model_write(TINY_QWEN3, folder, -1);
    expect_failure(tool_json(3, "pack --layer 8 %s --out %s", folder, packed), 3, "layer 8");
    expect_failure(tool_json(1, "pack %s --out /none/x", folder), 1, "/none");
    expect_failure(tool_json(3, "bench --model %s --layer 0 --act int8", folder), 3, "INT8");
    json_decref(tool_json(0, "pack %s --out %s", folder, packed));
    expect_failure(tool_json(3, "inspect --tensors %s", packed), 3, "has packed layers");
    tiny_model_write(TINY_QWEN3, folder, 3);
    expect_failure(tool_json(3, "inspect --no-measure %s", folder), 3, "experts");
}

static void test_tensors(void **state)
{
    (void)state;
    tiny_model_write(TINY_QWEN3, folder, -1);
    json_t *o = tool_json(0, "inspect --tensors %s", folder);
    assert_int_equal(integer(o, "files"), 1);
    const json_t *tensors = json_object_get(o, "tensors");
    assert_int_equal(json_array_size(tensors), 30);
    const json_t *t = json_array_get(tensors, 0);
    assert_string_equal(text(t, "name"), "model.layers.0.mlp.experts.0.down_proj.weight");
    assert_string_equal(text(t, "type"), "BF16");
    assert_string_equal(text(t, "file"), "model.safetensors");
    assert_int_equal(integer(t, "bytes"), 2 * FILES_H * FILES_I);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(t, "shape"), 0)), FILES_H);
    json_decref(o);
    tool_result r = tool_call("inspect --tensors %s/model.safetensors", folder);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "| model.layers.2.mlp.gate.weight"));
    assert_non_null(strstr(r.out, "| BF16 | [3, 160]  |   960 | model.safetensors |"));
    assert_non_null(strstr(r.out, "\n30 tensors, "));
    tool_free(&r);
}

static void test_index(void **state)
{
    (void)state;
    tiny_model_write(TINY_QWEN3, folder, -1);
    write_text("model.safetensors.index.json",
               "{\"weight_map\": {\"model.layers.0.mlp.gate.weight\": \"model.safetensors\"}}");
    json_t *o = tool_json(0, "inspect --tensors %s/model.safetensors.index.json", folder);
    assert_int_equal(json_array_size(json_object_get(o, "tensors")), 30);
    json_decref(o);
    write_text("model.safetensors.index.json",
               "{\"weight_map\": {\"lost\": \"model.safetensors\"}}");
    tool_expect(2, "has no tensor \"lost\"", "inspect --tensors %s", folder);
    write_text("model.safetensors.index.json",
               "{\"weight_map\": {\"lost\": \"lost.safetensors\"}}");
    tool_result r = tool_call("inspect --tensors %s/", folder);
    assert_int_equal(r.code, 2);
    assert_non_null(strstr(r.err, "/lost.safetensors"));
    assert_null(strstr(r.err, "//"));
    tool_free(&r);
    r = tool_call("inspect --no-measure %s/", folder);
    assert_int_equal(r.code, 3);
    assert_null(strstr(r.err, "//"));
    tool_free(&r);
    write_text("model.safetensors.index.json", "{\"weight_map\": {\"a\": \"../a\"}}");
    tool_expect(2, "index.json", "inspect --tensors %s", folder);
    write_text("model.safetensors.index.json", "{}");
    tool_expect(2, "index.json", "inspect --tensors %s", folder);
}

/* A name cannot drive the terminal, nor turn its text. */
static void test_foreign_names(void **state)
{
    (void)state;
    static const char NAME[] = "a\x1b[2J-\xc2\x85-\xe2\x80\xae-\x7f-\xc3\xa9";
    char path[128];
    io_error error;
    snprintf(path, sizeof path, "%s/names", folder);
    st_tensor t = {.name = NAME, .dtype = ST_U8, .rank = 1, .shape = {1}, .bytes = 1};
    assert_int_equal(st_write(path, &t, (const void *[]){"x"}, 1, NULL, NULL, 0, &error), IO_OK);
    tool_result r = tool_call("inspect --tensors %s", path);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "| a?[2J-?-?-?-\xc3\xa9 | U8   | [1]   |     1 | names |"));
    tool_free(&r);
    json_t *o = tool_json(0, "inspect --tensors %s", path);
    const json_t *first = json_array_get(json_object_get(o, "tensors"), 0);
    assert_string_equal(text(first, "name"), NAME);
    json_decref(o);
}

/* ---- bench ----------------------------------------------------------------------------------- */

static void test_bench(void **state)
{
    (void)state;
    tiny_model_write(TINY_QWEN3, folder, -1);
    json_t *o = tool_json(0,
                          "bench --model %s --layer 1 --tokens 1,3 --repetitions 2 "
                          "--working-set 128K --threads 1",
                          folder);
    const json_t *model = json_object_get(o, "model"), *layer = json_object_get(model, "layer");
    assert_string_equal(text(model, "path"), folder);
    assert_int_equal(integer(layer, "layer"), 1);
    const json_t *shape = json_object_get(o, "shape");
    assert_string_equal(text(shape, "name"), "qwen3-moe layer 1");
    assert_string_equal(text(shape, "activation"), "silu");
    assert_int_equal(integer(shape, "E"), FILES_E);
    const json_t *copies = json_array_get(json_object_get(o, "layers"), 0);
    assert_string_equal(text(copies, "weights"), "bf16");
    assert_true(integer(copies, "copies") * integer(copies, "bytes") >= 128 << 10);
    const json_t *results = json_object_get(o, "results");
    assert_int_equal(json_array_size(results), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *row = json_array_get(results, i);
        double tokens = (double)integer(row, "tokens");
        double macs = tokens * 2 * 3 * FILES_H * FILES_I;
        assert_true(tokens == (i ? 3 : 1));
        assert_true(fabs(real(row, "gmacs") * real(row, "median_us") * 1e3 / macs - 1) < 1e-9);
        assert_true(real(row, "roofline") > 0);
    }
    json_decref(o);
    tiny_model_write(TINY_LLAMA4, folder, -1);
    tool_result r = tool_call("bench --model %s --layer 0 --tokens 2 --repetitions 1 "
                              "--working-set 64K",
                              folder);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "llama4 layer 0: H 160, I 96, E 3, K 1, silu; act exact"));
    assert_non_null(strstr(r.out, "| bf16 "));
    assert_non_null(strstr(r.out, "loading took"));
    tool_free(&r);
}

static void test_bench_refused(void **state)
{
    (void)state;
    tool_expect(2, "--model needs --layer N", "bench --model x");
    tool_expect(2, "--layer needs --model", "bench --layer 1");
    tool_expect(2, "--config needs --model", "bench --config x");
    tool_expect(2, "--layer x", "bench --model x --layer x");
    tool_expect(2, "takes no --shape", "bench --model x --layer 0 --shape mixtral-8x7b");
    tool_expect(2, "takes no --weights", "bench --model x --layer 0 --weights bf16");
    tool_expect(2, "takes no --experts", "bench --model x --layer 0 --experts 4");
    tool_expect(2, "/missing", "bench --model /missing --layer 0");
    tiny_model_write(TINY_QWEN3, folder, -1);
    tool_expect(3, "layer 7", "bench --model %s --layer 7", folder);
    tool_expect(3, "act_mode = INT8", "bench --model %s --layer 0 --act int8 --working-set 64K",
                folder);
    tiny_model_write(TINY_QWEN3, folder, 2);
    tool_expect(3, "experts", "bench --model %s --layer 0 --working-set 64K", folder);
}

/* ---- pack ------------------------------------------------------------------------------------ */

/* The output of a run, as bytes. */
static file_bytes run_bytes(const char *model, int64_t layer)
{
    char hidden[128], out[128];
    snprintf(hidden, sizeof hidden, "%s/hidden", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    tiny_hidden_write(hidden, 3, 2, 5);
    tool_expect(0, NULL, "run --model %s --layer %lld --hidden %s --out %s", model,
                (long long)layer, hidden, out);
    return bytes_of_file(out);
}

static void expect_same_run(int64_t layer)
{
    file_bytes a = run_bytes(folder, layer), b = run_bytes(packed, layer);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.bytes, b.bytes, a.size);
    free(a.bytes);
    free(b.bytes);
}

static void test_pack(void **state)
{
    (void)state;
    tiny_model_write(TINY_QWEN3, folder, -1);
    json_t *o = tool_json(0, "pack %s --out %s", folder, packed);
    assert_string_equal(text(o, "family"), "qwen3-moe");
    const json_t *layers = json_object_get(o, "layers");
    assert_int_equal(json_array_size(layers), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *l = json_array_get(layers, i);
        assert_int_equal(integer(l, "layer"), i);
        assert_int_equal(integer(l, "bytes"), FILES_E * EXPERT_BYTES + ROUTER_BYTES);
        assert_true(integer(l, "packed_bytes") >= FILES_E * EXPERT_BYTES);
        assert_true(real(l, "load_seconds") > 0 && real(l, "save_seconds") > 0);
    }
    assert_int_equal(integer(o, "bytes"), 3 * (FILES_E * EXPERT_BYTES + ROUTER_BYTES));
    json_decref(o);
    for (int64_t layer = 0; layer < 3; layer++) expect_same_run(layer);
    tool_expect(3, "has packed layers", "inspect --tensors %s", packed);
    tool_expect(2, "a packed layer, without tensors", "inspect --tensors %s/layer-00001.moe",
                packed);
    tool_expect(3, "one packed layer: the folder", "inspect %s/layer-00001.moe", packed);
    o = tool_json(0, "inspect --no-measure %s", packed);
    assert_string_equal(text(o, "container"), "packed");
    assert_string_equal(text(o, "family"), "qwen3-moe");
    assert_int_equal(json_array_size(json_object_get(o, "moe_layers")), 3);
    json_decref(o);
    tool_expect(0, NULL, "bench --model %s --layer 2 --tokens 1 --repetitions 1 --working-set 64K",
                packed);
}

static void test_pack_one(void **state)
{
    (void)state;
    tiny_model_write(TINY_QWEN3, folder, -1);
    tool_result r = tool_call("pack --layer 1 --lossless --threads 2 %s --out %s", folder, packed);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "\n|     1 |"));
    assert_non_null(strstr(r.out, "\n|   all |"));
    tool_free(&r);
    json_t *o = tool_json(0, "inspect --no-measure %s", packed);
    assert_int_equal(json_array_size(json_object_get(o, "moe_layers")), 1);
    json_decref(o);
    expect_same_run(1);
    tool_expect(3, "layer 0", "bench --model %s --layer 0", packed);
}

static void test_pack_refused(void **state)
{
    (void)state;
    tool_expect(2, "needs one PATH and --out DIR", "pack");
    tool_expect(2, "needs one PATH and --out DIR", "pack x");
    tool_expect(2, "needs one PATH and --out DIR", "pack --out x");
    tool_expect(2, "needs one PATH and --out DIR", "pack x y --out z");
    tool_expect(2, "--layer some: must be a number from 0 to 2147483647, or all",
                "pack x --out y --layer some");
    tool_expect(2, "/missing", "pack /missing --out %s", packed);
    tiny_model_write(TINY_QWEN3, folder, -1);
    tool_expect(3, "layer 8", "pack %s --out %s --layer 8", folder, packed);
    tool_expect(1, "config.json", "pack %s --out %s/config.json", folder, folder);
    tool_expect(1, "/none", "pack %s --out /none/x", folder);
    tiny_model_write(TINY_QWEN3, folder, 4);
    tool_expect(3, "experts", "pack %s --out %s", folder, packed);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_inspect),  IN_FOLDER(test_rows),          IN_FOLDER(test_inspect_refused),
        IN_FOLDER(test_tensors),  IN_FOLDER(test_index),         IN_FOLDER(test_foreign_names),
        IN_FOLDER(test_bench),    IN_FOLDER(test_bench_refused), IN_FOLDER(test_pack),
        IN_FOLDER(test_pack_one), IN_FOLDER(test_pack_refused),  IN_FOLDER(test_failures_as_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
