/* SPDX-License-Identifier: Apache-2.0 */
/* The calls of moe_tkg_io.h: arguments, models that are none, files in directories, progress, packings;
 * and that one layer in several layouts is one layer. */
#define _GNU_SOURCE 1
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <moe_tkg_io.h>

#include "fixture.h"
#include "model_files.h"

enum { T = 3, K = 2, PATH = 1024 };

static char folder[64];

static const char qwen_config[] =
    "{\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
    "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 96, \"num_experts\": 3}";

#define L "model.layers.0."
static const char *const qwen_lines[] = {L "mlp.gate.weight BF16 E,H",
                                         L "mlp.experts.{e}.gate_proj.weight BF16 I,H",
                                         L "mlp.experts.{e}.up_proj.weight BF16 I,H",
                                         L "mlp.experts.{e}.down_proj.weight BF16 H,I", NULL};

static const char *in_folder(const char *name)
{
    static char path[PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static const char *fixture(const char *name)
{
    static char path[PATH];
    return fixture_own(name, path, sizeof path);
}

static void check(moe_status status)
{
    if (status != MOE_OK) fail_msg("%s: %s", moe_status_name(status), moe_io_last_error());
}

static void refused(moe_status status, moe_status expected, const char *part)
{
    if (status != expected || !strstr(moe_io_last_error(), part))
        fail_msg("status %d: %s; expected %d: %s", (int)status, moe_io_last_error(), (int)expected,
                 part);
}

static moe_model *opened(const char *path)
{
    moe_model *model;
    check(moe_model_open(path, NULL, &model));
    return model;
}

static void write_text(const char *name, const char *text)
{
    FILE *file = fopen(in_folder(name), "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* ---- arguments ------------------------------------------------------------------------------- */

static void arguments(void **state)
{
    (void)state;
    const char *path = fixture("mixtral_bf16");
    moe_model *model = NULL;
    moe_layer *layer = NULL;
    moe_model_options options = moe_model_options_init();
    moe_load_options load = moe_load_options_init();
    moe_model_info about = {.struct_size = sizeof about};
    moe_layer_info info = {.struct_size = sizeof info};
    moe_block_args args;
    refused(moe_model_open(NULL, NULL, &model), MOE_E_NULL_ARG, "path");
    refused(moe_model_open(path, NULL, NULL), MOE_E_NULL_ARG, "model");
    options.struct_size--;
    refused(moe_model_open(path, &options, &model), MOE_E_ABI, "moe_model_options");
    assert_null(model);
    model = opened(path);
    refused(moe_model_describe(NULL, &about), MOE_E_NULL_ARG, "model");
    refused(moe_model_describe(model, NULL), MOE_E_NULL_ARG, "info");
    about.struct_size = 0;
    refused(moe_model_describe(model, &about), MOE_E_ABI, "moe_model_info");
    refused(moe_model_layer(NULL, 0, &info), MOE_E_NULL_ARG, "model");
    refused(moe_model_layer(model, 0, NULL), MOE_E_NULL_ARG, "info");
    refused(moe_model_layer(model, -1, &info), MOE_E_VALUE, "i = -1");
    refused(moe_model_layer(model, 2, &info), MOE_E_VALUE, "[0, 2)");
    info.struct_size = 5000;
    refused(moe_model_layer(model, 0, &info), MOE_E_ABI, "moe_layer_info");
    refused(moe_model_load(model, 0, NULL, NULL, NULL), MOE_E_NULL_ARG, "loaded");
    refused(moe_model_load(NULL, 0, NULL, NULL, &layer), MOE_E_NULL_ARG, "model");
    refused(moe_model_load(model, 7, NULL, NULL, &layer), MOE_E_VALUE, "layer = 7");
    load.packing = (moe_packing)2;
    refused(moe_model_load(model, 0, NULL, &load, &layer), MOE_E_BAD_ENUM, "packing = 2");
    load.struct_size = 8;
    refused(moe_model_load(model, 0, NULL, &load, &layer), MOE_E_ABI, "moe_load_options");
    assert_null(layer);
    check(moe_model_load(model, 0, NULL, NULL, &layer));
    refused(moe_layer_args(NULL, &args), MOE_E_NULL_ARG, "layer");
    refused(moe_layer_args(layer, NULL), MOE_E_NULL_ARG, "args");
    refused(moe_layer_describe(NULL, &info), MOE_E_NULL_ARG, "layer");
    refused(moe_layer_describe(layer, NULL), MOE_E_NULL_ARG, "info");
    refused(moe_layer_describe(layer, &info), MOE_E_ABI, "moe_layer_info");
    info.struct_size = sizeof info;
    check(moe_layer_describe(layer, &info));
    assert_int_equal(info.struct_size, sizeof info);
    assert_int_equal(info.layer, 0);
    moe_model_close(model);
    moe_model_close(NULL);
    check(moe_layer_free(layer));
    check(moe_layer_free(NULL));
}

/* The empty path is nothing: neither the root nor the folder that the process is in. */
static void empty_paths(void **state)
{
    (void)state;
    moe_model *model;
    moe_layer *layer;
    moe_model_options options = moe_model_options_init();
    refused(moe_model_open("", NULL, &model), MOE_E_OPEN, "path = \"\"");
    assert_null(model);
    options.config = "";
    refused(moe_model_open(fixture("mixtral_bf16"), &options, &model), MOE_E_OPEN, "config = \"\"");
    assert_null(model);
    model = opened(fixture("mixtral_bf16"));
    check(moe_model_load(model, 0, NULL, NULL, &layer));
    refused(moe_layer_save(layer, ""), MOE_E_WRITE, "directory = \"\"");
    check(moe_layer_free(layer));
    moe_model_close(model);
}

/* Whatever a path is, a message is one line that does not drive a terminal. */
static void control_bytes(void **state)
{
    (void)state;
    char path[PATH], file[2 * PATH];
    moe_layer *layer;
    moe_model *model = opened(fixture("mixtral_bf16"));
    snprintf(path, sizeof path, "%s/pa\nck\x1b[2Jed\xc2\x85", folder);
    snprintf(file, sizeof file, "%s/layer-00000.moe", path);
    check(moe_model_load(model, 0, NULL, NULL, &layer));
    check(moe_layer_save(layer, path));
    check(moe_layer_free(layer));
    moe_model_close(model);
    model = opened(path);
    refused(moe_model_matches(model, model), MOE_E_UNSUPPORTED, "/pa?ck?[2Jed??: is packed itself");
    refused(moe_model_load(model, 7, NULL, NULL, &layer), MOE_E_VALUE, "/pa?ck?[2Jed??");
    moe_model_close(model);
    unlink(file);
    rmdir(path);
}

/* ---- what is no model ------------------------------------------------------------------------ */

static void malformed_line(char *line)
{
    enum { FILE_, EXPECT, STAGE, CONFIG, COLUMNS };
    char *column[COLUMNS] = {line}, path[PATH], config[PATH];
    for (int i = 1; i < COLUMNS; i++) {
        column[i] = strchr(column[i - 1], '\t');
        if (!column[i]) return;
        *column[i]++ = '\0';
    }
    column[CONFIG][strcspn(column[CONFIG], "\t\n")] = '\0';
    if (strcmp(column[STAGE], "model") != 0) return;
    snprintf(path, sizeof path, "%s/tests/data/malformed/%.400s", MOE_SOURCE_DIR, column[FILE_]);
    snprintf(config, sizeof config, "%s/tests/data/malformed/%.400s", MOE_SOURCE_DIR,
             column[CONFIG]);
    moe_model_options options = moe_model_options_init();
    if (column[CONFIG][0] != '\0') options.config = config;
    moe_model *model;
    moe_layer *layer = NULL;
    check(moe_model_open(path, &options, &model));
    moe_status s = moe_model_load(model, 0, NULL, NULL, &layer);
    if (strcmp(column[EXPECT], "accept") == 0)
        check(s);
    else
        refused(s, MOE_E_MODEL, "tensor \"");
    moe_model_close(model);
    check(moe_layer_free(layer));
}

static void malformed(void **state)
{
    (void)state;
    char line[512];
    FILE *list = fopen(MOE_SOURCE_DIR "/tests/data/malformed/malformed.tsv", "r");
    assert_non_null(list);
    while (fgets(line, sizeof line, list)) malformed_line(line);
    fclose(list);
}

static void no_model(void **state)
{
    (void)state;
    static const struct {
        const char *config, *says;
    } cases[] = {
        {"{}", "neither model_type nor architectures"},
        {"{\"model_type\": \"\"}", "model_type is \"\""},
        {"{\"model_type\": \"mixtral MixtralForCausalLM\"}", "\"mixtral MixtralForCausalLM\""},
        {"{\"architectures\": [\"\"]}", "model_type is \"\""},
        {"{\"model_type\": \"bert\"}", "model_type is \"bert\"; known are gpt-oss, qwen2-moe"},
        {"{\"model_type\": \"qwen3\", \"architectures\": [\"Qwen3ForCausalLM\"]}", "\"qwen3\""},
        {"{\"model_type\": \"mixtral\"}", "num_hidden_layers: is missing"},
        {"{\"model_type\": \"mixtral\", \"num_hidden_layers\": -1}", "num_hidden_layers: must be"},
        {"{\"model_type\": \"mixtral\", \"num_hidden_layers\": 65537}", "from 0 to 65536"},
        {"{\"model_type\": \"mixtral\", \"num_hidden_layers\": 0, \"hidden_size\": 1, "
         "\"intermediate_size\": 1, \"num_local_experts\": 1, \"num_experts_per_tok\": 1}",
         "layers: 0: must be at least 1"},
        {"{\"model_type\": \"mixtral\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"intermediate_size\": 96, \"num_local_experts\": 3, \"num_experts_per_tok\": 4}",
         "4 experts of a token: 3 are there"},
        {"{\"model_type\": \"gpt_oss\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"intermediate_size\": 96, \"num_local_experts\": 3, \"num_experts_per_tok\": 2}",
         "such as model.layers.0.mlp.experts.down_proj_blocks and"},
        {"{\"model_type\": \"mixtral\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"hidden_act\": \"mish\", \"intermediate_size\": 96, \"num_local_experts\": 3, "
         "\"num_experts_per_tok\": 2}",
         "hidden_act: \"mish\" is not known here"},
        {"{\"model_type\": \"mixtral\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"hidden_act\": \"\", \"intermediate_size\": 96, \"num_local_experts\": 3, "
         "\"num_experts_per_tok\": 2}",
         "hidden_act: \"\" is not known here"},
        {"{\"model_type\": \"deepseek_v3\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"moe_intermediate_size\": 96, \"n_routed_experts\": 3, \"n_shared_experts\": 0, "
         "\"num_experts_per_tok\": 2, \"n_group\": 2, \"topk_group\": 1}",
         "1 of 2 groups: 2 experts of a token out of 3 do not fit"},
        {"{\"model_type\": \"deepseek_v3\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"moe_intermediate_size\": 96, \"n_routed_experts\": 3, \"n_shared_experts\": 0, "
         "\"num_experts_per_tok\": 2, \"scoring_func\": \"tanh\"}",
         "scoring_func: \"tanh\""},
        {"{\"model_type\": \"gpt_oss\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"intermediate_size\": 96, \"num_local_experts\": 3, \"num_experts_per_tok\": 2, "
         "\"swiglu_limit\": 1e300}",
         "swiglu_limit: must be a number of at most 3.4"},
        {"{\"model_type\": \"deepseek_v3\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"moe_intermediate_size\": 96, \"n_routed_experts\": 3, \"num_experts_per_tok\": 2, "
         "\"routed_scaling_factor\": -1e39}",
         "routed_scaling_factor: must be a number of at most 3.4"},
        {"{\"model_type\": \"nemotron_h\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"moe_intermediate_size\": 96, \"n_routed_experts\": 3, \"num_experts_per_tok\": 2, "
         "\"moe_latent_size\": 64}",
         "moe_latent_size"},
        {"{\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"moe_intermediate_size\": 96, \"num_experts\": 3, \"num_experts_per_tok\": 2, "
         "\"norm_topk_prob\": 1}",
         "norm_topk_prob: must be true or false"},
        {"{\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
         "\"moe_intermediate_size\": 96, \"num_experts\": 3, \"num_experts_per_tok\": 2, "
         "\"quantization_config\": {\"weight_block_size\": [128, 64]}}",
         "weight_block_size: must be [rows, 128] or [1, 32]"},
    };
    model_files f;
    moe_model *model;
    model_files_make(&f, qwen_lines, 1);
    model_files_write(&f, folder, NULL, f.count);
    refused(moe_model_open(folder, NULL, &model), MOE_E_MODEL, "no model without its config.json");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_text("config.json", cases[i].config);
        refused(moe_model_open(folder, NULL, &model), MOE_E_MODEL, cases[i].says);
        assert_null(model);
    }
    write_text("config.json", "{\"model_type\": ");
    refused(moe_model_open(folder, NULL, &model), MOE_E_FORMAT, "config.json");
    refused(moe_model_open(in_folder("absent"), NULL, &model), MOE_E_OPEN, "absent");
    moe_model_options options = moe_model_options_init();
    options.config = "/absent.json";
    refused(moe_model_open(folder, &options, &model), MOE_E_OPEN, "/absent.json");
    model_files_free(&f);
}

/* ---- directories ----------------------------------------------------------------------------- */

/* Copies a file; the tensor that is called `lacks` is called otherwise in the copy. */
static void copy_without(const char *from, const char *name, const char *lacks)
{
    static char bytes[1 << 20];
    FILE *in = fopen(from, "rb"), *out;
    assert_non_null(in);
    size_t n = fread(bytes, 1, sizeof bytes, in);
    fclose(in);
    if (lacks) {
        char *at = memmem(bytes, n, lacks, strlen(lacks));
        assert_non_null(at);
        at[0] = '?';
    }
    out = fopen(in_folder(name), "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, n, out), n);
    assert_int_equal(fclose(out), 0);
}

static void copy(const char *from, const char *name)
{
    copy_without(from, name, NULL);
}

/* Keys or other tensors say that there is one: it is not left out because a tensor of it lacks. */
static void shared_expert_that_lacks(void **state)
{
    (void)state;
    static const char *const gguf[] = {"blk.1.ffn_up_shexp.weight", "blk.1.ffn_gate_shexp.weight",
                                       "blk.1.ffn_down_shexp.weight"};
    static const char *const parts[] = {"model.layers.0.mlp.shared_experts.up_proj.weight",
                                        "model.layers.0.mlp.shared_experts.gate_proj.weight",
                                        "model.layers.0.mlp.shared_experts.down_proj.weight"};
    static const char *const lines[] = {L "mlp.gate.weight BF16 E,H",
                                        L "mlp.gate.e_score_correction_bias F32 E",
                                        L "mlp.experts.{e}.gate_proj.weight BF16 I,H",
                                        L "mlp.experts.{e}.up_proj.weight BF16 I,H",
                                        L "mlp.experts.{e}.down_proj.weight BF16 H,I",
                                        L "mlp.shared_experts.up_proj.weight BF16 S,H",
                                        L "mlp.shared_experts.gate_proj.weight BF16 S,H",
                                        L "mlp.shared_experts.down_proj.weight BF16 H,S",
                                        NULL};
    static const char config[] =
        "{\"model_type\": \"deepseek_v3\", \"num_hidden_layers\": 1, \"n_group\": 1, \"topk_group\": 1, \"hidden_size\": 160, "
        "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 96, \"n_routed_experts\": 3}";
    char from[PATH];
    moe_layer_info info = {.struct_size = sizeof info};
    snprintf(from, sizeof from, "%.400s/model.gguf", fixture("gguf_glm4moe_bf16"));
    for (size_t i = 0; i < 3; i++) {
        copy_without(from, "lacks.gguf", gguf[i]);
        moe_model *model = opened(in_folder("lacks.gguf"));
        refused(moe_model_layer(model, 0, &info), MOE_E_MODEL, gguf[i]);
        moe_model_close(model);
    }
    unlink(in_folder("lacks.gguf"));
    model_files f; /* no key says how large it is */
    model_files_make(&f, lines, 4);
    for (size_t i = 0; i < 4; i++) {
        model_files_write(&f, folder, config, f.count - i);
        moe_model *model = opened(folder);
        moe_status s = moe_model_layer(model, 0, &info);
        if (i == 0) {
            check(s);
            assert_int_equal(info.shared_I, FILES_S);
        } else {
            refused(s, MOE_E_MODEL, parts[3 - i]);
        }
        moe_model_close(model);
    }
    model_files_free(&f);
}

static void directories(void **state)
{
    (void)state;
    char mixtral[PATH], gguf[PATH], config[PATH];
    moe_model *model;
    snprintf(mixtral, sizeof mixtral, "%.400s/model.safetensors", fixture("mixtral_bf16"));
    snprintf(config, sizeof config, "%.400s/config.json", fixture("mixtral_bf16"));
    snprintf(gguf, sizeof gguf, "%.400s/model.gguf", fixture("gguf_glm4moe_bf16"));
    unlink(in_folder("model.safetensors"));
    unlink(in_folder("config.json"));
    refused(moe_model_open(folder, NULL, &model), MOE_E_OPEN, "no model: looked for");
    assert_int_equal(symlink("nowhere", in_folder("some")), 0);
    refused(moe_model_open(folder, NULL, &model), MOE_E_OPEN, "no model: looked for");
    unlink(in_folder("some"));
    assert_int_equal(symlink("nowhere", in_folder("model.safetensors")), 0);
    refused(moe_model_open(folder, NULL, &model), MOE_E_OPEN,
            "model.safetensors: cannot be opened");
    unlink(in_folder("model.safetensors"));
    assert_int_equal(mkfifo(in_folder("model.gguf"), 0600), 0);
    refused(moe_model_open(folder, NULL, &model), MOE_E_OPEN, "model.gguf: is no regular file");
    unlink(in_folder("model.gguf"));
    copy(gguf, "anything");
    moe_model_close(opened(folder)); /* the only one */
    copy(gguf, "else");
    refused(moe_model_open(folder, NULL, &model), MOE_E_MODEL, "more than one model");
    copy(config, "config.json");
    copy(mixtral, "a.bin");
    refused(moe_model_open(folder, NULL, &model), MOE_E_MODEL, "1 safetensors and 2 GGUF files");
    copy(mixtral, "model.safetensors");
    moe_model_close(opened(folder)); /* by its name */
    unlink(in_folder("anything"));
    unlink(in_folder("else"));
    unlink(in_folder("model.safetensors"));
    moe_model_close(opened(folder));
    unlink(in_folder("a.bin"));
    copy(mixtral, "m-00001-of-00002.safetensors");
    refused(moe_model_open(folder, NULL, &model), MOE_E_OPEN,
            "m-00002-of-00002.safetensors is missing: 1 of 2 parts are there");
    write_text("model.safetensors.index.json",
               "{\"weight_map\": {\"model.layers.0.block_sparse_moe.gate.weight\": \"absent\"}}");
    model = opened(folder); /* its files are opened when they are needed */
    moe_layer_info info = {.struct_size = sizeof info};
    refused(moe_model_layer(model, 0, &info), MOE_E_MODEL, "w1.weight\" is missing");
    moe_model_close(model);
    unlink(in_folder("model.safetensors.index.json"));
    unlink(in_folder("m-00001-of-00002.safetensors"));
    unlink(in_folder("config.json"));
}

/* Parts without an index are a model when all are there. */
static void parts(void **state)
{
    (void)state;
    enum { ALL = 3 };
    static const char *const names[ALL] = {"p-00001-of-00003.safetensors",
                                           "p-00002-of-00003.safetensors",
                                           "p-00003-of-00003.safetensors"};
    model_files f;
    moe_model *model;
    model_files_make(&f, qwen_lines, 3);
    write_text("config.json", qwen_config);
    for (size_t lacks = 0; lacks <= ALL; lacks++) {
        size_t first = 0, each = f.count / ALL;
        for (size_t i = 0; i < ALL; i++, first += each) {
            io_error error;
            size_t n = i == ALL - 1 ? f.count - first : each;
            if (i != lacks &&
                st_write(in_folder(names[i]), &f.tensor[first], (const void *const *)&f.data[first],
                         n, NULL, NULL, 0, &error) != IO_OK)
                fail_msg("%s", error.text);
        }
        if (lacks < ALL)
            refused(moe_model_open(folder, NULL, &model), MOE_E_OPEN, names[lacks]);
        else
            moe_model_close(opened(folder));
        for (size_t i = 0; i < ALL; i++) unlink(in_folder(names[i]));
    }
    io_error error; /* no part, though called like one */
    if (st_write(in_folder("p-00004-of-00003.safetensors"), f.tensor, (const void *const *)f.data,
                 f.count, NULL, NULL, 0, &error) != IO_OK)
        fail_msg("%s", error.text);
    moe_model_close(opened(folder));
    unlink(in_folder("p-00004-of-00003.safetensors"));
    unlink(in_folder("config.json"));
    model_files_free(&f);
}

/* ---- loading --------------------------------------------------------------------------------- */

static float *run(const moe_layer *layer)
{
    moe_block_args block;
    check(moe_layer_args(layer, &block));
    float *hidden = malloc(T * FILES_H * sizeof *hidden),
          *output = malloc(T * FILES_H * sizeof *output);
    int32_t ids[T * K] = {0, 1, 2, 0, 1, 2};
    float weights[T * K] = {0.5f, 0.25f, 1.0f, 0.75f, 0.5f, 0.5f};
    for (int i = 0; i < T * FILES_H; i++) hidden[i] = (float)(i % 17 - 8) / 8;
    moe_tensor x = moe_tensor_2d(hidden, MOE_F32, T, FILES_H),
               index = moe_tensor_2d(ids, MOE_I32, T, K), w = moe_tensor_2d(weights, MOE_F32, T, K);
    block.experts.hidden_input = &x;
    block.experts.expert_index = &index;
    block.experts.expert_affinities_eager = &w;
    if (moe_tkg(NULL, &block.experts, output, T * FILES_H * sizeof *output) != MOE_OK)
        fail_msg("%s", moe_last_error());
    free(hidden);
    return output;
}

static float *run_folder(moe_packing packing)
{
    moe_model *model = opened(folder);
    moe_layer *layer;
    moe_load_options options = moe_load_options_init();
    options.packing = packing;
    check(moe_model_load(model, 0, NULL, &options, &layer));
    moe_model_close(model); /* the layer lives on */
    float *output = run(layer);
    check(moe_layer_free(layer));
    return output;
}

/* Element [r, c] of tensor `from`, of two bytes, to where `to` has it. */
static void put(model_files *f, size_t to, size_t at, const model_files *g, size_t from, size_t r,
                size_t c)
{
    size_t columns = (size_t)g->tensor[from].shape[1];
    memcpy(f->data[to] + 2 * at, g->data[from] + 2 * (r * columns + c), 2);
}

/* The experts of g, one by one, in the tensors of all of f: transposed or not. */
static void fuse(model_files *f, const model_files *g, bool transposed)
{
    enum { I = FILES_I, H = FILES_H };
    for (size_t e = 0; e < FILES_E; e++) {
        for (size_t r = 0; r < I; r++) {
            for (size_t c = 0; c < H; c++) {
                size_t base = e * 2 * I * H, gate = transposed ? c * 2 * I + r : r * H + c,
                       up = transposed ? c * 2 * I + I + r : (I + r) * H + c;
                put(f, 1, base + gate, g, 1 + e, r, c);
                put(f, 1, base + up, g, 1 + FILES_E + e, r, c);
                put(f, 2, e * H * I + (transposed ? r * H + c : c * I + r), g, 1 + 2 * FILES_E + e,
                    c, r);
            }
        }
    }
}

static void one_layer_in_all_layouts(void **state)
{
    (void)state;
    static const char *const fused[2][4] = {
        {L "mlp.gate.weight BF16 E,H", L "mlp.experts.gate_up_proj BF16 E,2I,H",
         L "mlp.experts.down_proj BF16 E,H,I", NULL},
        {L "mlp.gate.weight BF16 E,H", L "mlp.experts.gate_up_proj BF16 E,H,2I",
         L "mlp.experts.down_proj BF16 E,I,H", NULL}};
    model_files g;
    model_files_make(&g, qwen_lines, 5);
    model_files_write(&g, folder, qwen_config, g.count);
    float *expected = run_folder(MOE_PACK_PLAIN);
    for (int t = 0; t < 2; t++) {
        model_files f;
        model_files_make(&f, fused[t], 5);
        fuse(&f, &g, t == 1);
        model_files_write(&f, folder, qwen_config, f.count);
        float *got = run_folder(t == 1 ? MOE_PACK_LOSSLESS : MOE_PACK_PLAIN);
        assert_memory_equal(got, expected, T * FILES_H * sizeof *got);
        free(got);
        model_files_free(&f);
    }
    free(expected);
    model_files_free(&g);
}

static int64_t model_layers(const moe_model *model)
{
    moe_model_info about = {.struct_size = sizeof about};
    check(moe_model_describe(model, &about));
    return about.moe_layers;
}

typedef struct watch {
    uint64_t done, all, stop_at;
    int calls;
} watch;

static int report(void *user, uint64_t done, uint64_t all)
{
    watch *w = user;
    assert_true(done > w->done && done <= all);
    assert_true(w->calls == 0 || all == w->all);
    w->done = done;
    w->all = all;
    w->calls++;
    return w->stop_at > 0 && done >= w->stop_at;
}

static void progress(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int packings;
    } cases[] = {{"qwen2_moe_bf16", 2}, {"kimi_k2_int4", 1}, {"gguf_glm4moe_bf16", 2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        moe_model *model = opened(fixture(cases[i].name));
        moe_layer_info info = {.struct_size = sizeof info};
        check(moe_model_layer(model, model_layers(model) - 1, &info)); /* that is layer 1 */
        for (int packing = 0; packing < cases[i].packings; packing++) {
            watch w = {0};
            moe_layer *layer;
            moe_load_options options = moe_load_options_init();
            options.packing = (moe_packing)packing;
            options.progress = report;
            options.user = &w;
            check(moe_model_load(model, 1, NULL, &options, &layer));
            check(moe_layer_free(layer));
            assert_true(w.done == w.all);
            if (packing == MOE_PACK_PLAIN) assert_true(w.all == info.bytes);
            w = (watch){.stop_at = w.all / 2};
            refused(moe_model_load(model, 1, NULL, &options, &layer), MOE_E_READ,
                    "stopped by the caller");
            assert_null(layer);
        }
        moe_model_close(model);
    }
}

/* Only bf16 can be packed without loss. */
static void lossless_of_others(void **state)
{
    (void)state;
    moe_model *model = opened(fixture("olmoe_f16"));
    moe_layer *layer;
    moe_load_options options = moe_load_options_init();
    options.packing = MOE_PACK_LOSSLESS;
    refused(moe_model_load(model, 1, NULL, &options, &layer), MOE_E_UNSUPPORTED, "LOSSLESS");
    moe_model_close(model);
}

/* ---- several threads ------------------------------------------------------------------------- */

enum { LOADERS = 6 };

typedef struct loader {
    const moe_model *model;
    pthread_barrier_t *start;
    float *output;
} loader;

static void *load_and_run(void *arg)
{
    loader *l = arg;
    moe_layer *layer = NULL;
    pthread_barrier_wait(l->start);
    if (moe_model_load(l->model, 0, NULL, NULL, &layer) == MOE_OK) l->output = run(layer);
    moe_layer_free(layer);
    return NULL;
}

/* Threads that load from one index at once, none of whose files is open yet. */
static void loads_at_once(void **state)
{
    (void)state;
    model_files f;
    char map[8192], *at = map;
    const char *end = map + sizeof map;
    model_files_make(&f, qwen_lines, 7);
    model_files_write(&f, folder, qwen_config, f.count);
    float *expected = run_folder(MOE_PACK_PLAIN);
    at += snprintf(at, (size_t)(end - at), "{\"weight_map\": {");
    for (size_t i = 0; i < f.count; i++) {
        char name[32];
        io_error error;
        snprintf(name, sizeof name, "part-%zu", i);
        if (st_write(in_folder(name), &f.tensor[i], (const void *const *)&f.data[i], 1, NULL, NULL,
                     0, &error) != IO_OK)
            fail_msg("%s", error.text);
        at += snprintf(at, (size_t)(end - at), "%s\"%s\": \"%s\"", i > 0 ? ", " : "", f.name[i],
                       name);
    }
    snprintf(at, (size_t)(end - at), "}}");
    write_text("model.safetensors.index.json", map);
    for (int round = 0; round < 20; round++) {
        pthread_barrier_t start;
        pthread_t thread[LOADERS];
        loader l[LOADERS];
        moe_model *model = opened(folder);
        pthread_barrier_init(&start, NULL, LOADERS);
        for (int i = 0; i < LOADERS; i++) {
            l[i] = (loader){.model = model, .start = &start};
            assert_int_equal(pthread_create(&thread[i], NULL, load_and_run, &l[i]), 0);
        }
        for (int i = 0; i < LOADERS; i++) pthread_join(thread[i], NULL);
        pthread_barrier_destroy(&start);
        for (int i = 0; i < LOADERS; i++) {
            assert_non_null(l[i].output);
            assert_memory_equal(l[i].output, expected, T * FILES_H * sizeof *expected);
            free(l[i].output);
        }
        moe_model_close(model);
    }
    for (size_t i = 0; i < f.count; i++) {
        char name[32];
        snprintf(name, sizeof name, "part-%zu", i);
        unlink(in_folder(name));
    }
    unlink(in_folder("model.safetensors.index.json"));
    free(expected);
    model_files_free(&f);
}

/* Layers with experts far from each other, and names that are none of a layer's. */
static void far_layers(void **state)
{
    (void)state;
    static const char config[] =
        "{\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 65536, \"hidden_size\": 160, "
        "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 96, \"num_experts\": 3}";
    static const char *const lines[] = {
        "model.layers.65535.mlp.gate.weight BF16 E,H",
        "model.layers.12.mlp.experts.{e}.gate_proj.weight BF16 I,H",
        "model.layers.65536.mlp.gate.weight BF16 E,H",
        "model.layers.7.mlp.down_proj.weight BF16 H,I",
        "model.layers.99999999999999999999.mlp.gate.weight BF16 E,H",
        "model.layers.-1.mlp.gate.weight BF16 E,H",
        "model.layers.x.mlp.gate.weight BF16 E,H",
        "model.layers.3 U8 1",
        NULL};
    model_files f;
    moe_model_info about = {.struct_size = sizeof about};
    moe_layer *layer;
    model_files_make(&f, lines, 9);
    model_files_write(&f, folder, config, f.count);
    moe_model *model = opened(folder);
    check(moe_model_describe(model, &about));
    assert_int_equal(about.layers, 65536);
    assert_int_equal(about.moe_layers, 2);
    refused(moe_model_load(model, 65535, NULL, NULL, &layer), MOE_E_MODEL, "is missing");
    refused(moe_model_load(model, 12, NULL, NULL, &layer), MOE_E_MODEL, "is missing");
    refused(moe_model_load(model, 7, NULL, NULL, &layer), MOE_E_VALUE, "layer = 7");
    moe_model_close(model);
    model_files_free(&f);
}

/* What packed integers say of their shape must be so. */
static void weight_shape(void **state)
{
    (void)state;
    static const char config[] =
        "{\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 1, \"hidden_size\": 160, "
        "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 96, \"num_experts\": 3}";
    static const char *const lines[] = {L "mlp.gate.weight BF16 E,H",
                                        L "mlp.experts.{e}.gate_proj.weight_packed I32 I,H/8",
                                        L "mlp.experts.{e}.up_proj.weight_packed I32 I,H/8",
                                        L "mlp.experts.{e}.down_proj.weight_packed I32 H,I/8",
                                        L "mlp.experts.{e}.gate_proj.weight_scale BF16 I,H/32",
                                        L "mlp.experts.{e}.up_proj.weight_scale BF16 I,H/32",
                                        L "mlp.experts.{e}.down_proj.weight_scale BF16 H,I/32",
                                        L "mlp.experts.{e}.up_proj.weight_shape I64 2",
                                        NULL};
    model_files f;
    moe_layer *layer;
    model_files_make(&f, lines, 9);
    model_files_write(&f, folder, config, f.count);
    moe_model *model = opened(folder);
    check(moe_model_load(model, 0, NULL, NULL, &layer));
    check(moe_layer_free(layer));
    moe_model_close(model);
    f.data[f.count - 1][8]++;
    model_files_write(&f, folder, config, f.count);
    model = opened(folder);
    refused(moe_model_load(model, 0, NULL, NULL, &layer), MOE_E_MODEL,
            "experts.2.up_proj.weight_shape\": says [96, 161] and must say [96, 160]");
    moe_model_close(model);
    for (size_t e = 0; e < FILES_E; e++) { /* all or none */
        char name[64];
        snprintf(name, sizeof name, "experts.%zu.up_proj.weight_shape\" is missing", e);
        model_files_write(&f, folder, config, f.count - FILES_E + e);
        model = opened(folder);
        refused(moe_model_load(model, 0, NULL, NULL, &layer), MOE_E_MODEL, name);
        moe_model_close(model);
    }
    model_files_free(&f);
}

static int make_folder(void **state)
{
    (void)state;
    model_files_make_folder(folder, sizeof folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    model_files_remove_folder(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arguments),
        cmocka_unit_test(empty_paths),
        cmocka_unit_test(control_bytes),
        cmocka_unit_test(malformed),
        cmocka_unit_test(no_model),
        cmocka_unit_test(directories),
        cmocka_unit_test(parts),
        cmocka_unit_test(progress),
        cmocka_unit_test(one_layer_in_all_layouts),
        cmocka_unit_test(lossless_of_others),
        cmocka_unit_test(far_layers),
        cmocka_unit_test(weight_shape),
        cmocka_unit_test(shared_expert_that_lacks),
        cmocka_unit_test(loads_at_once),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
