/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_run.c - moe-tkg run: computes a case, or a layer of a model, and writes the output.
 *
 * Owns the command line, which --model tells apart, and the file that is written: one tensor
 * without metadata, so that equal results are equal files. */
#include "cli_model.h"
#include "run.h"

#include <stdio.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg run [options] CASE --out OUT\n"
    "       moe-tkg run [options] --model PATH --layer N --hidden HIDDEN --out OUT\n"
    "\n"
    "Computes a case of the operator (a safetensors file: tensors by parameter name, scalars in the\n"
    "metadata), or a layer of a model on given hidden states, and writes a safetensors file with one\n"
    "tensor, 'output', and no metadata.  OUT appears whole or not at all.\n"
    "\n"
    "      --out OUT        the file to write\n"
    "\n"
    "A case: output in the output_dtype and layout that it asks for.\n"
    "\n"
    "      --path PATH      packed (default): all experts are packed first, and kept; raw: the call\n"
    "                       packs what it reads.  Either gives the same bits\n"
    "\n"
    "A layer of a model: router, experts and shared expert on the tensor 'hidden' [T, H] of a\n"
    "safetensors file (f32, f16 or bf16; after the layer's norm); output [T, H].\n"
    "\n"
    "      --model PATH     a folder, an index, a safetensors or GGUF file, or what moe-tkg pack wrote\n"
    "      --layer N        its number; moe-tkg inspect lists those with experts\n"
    "      --hidden HIDDEN  the file with the hidden states\n"
    "      --experts-only   the experts alone, as 'topk_ids' [T, K] (i32, i64 or u32) and\n"
    "                       'topk_weights' [T, K] (f32, f16 or bf16) of the same file say\n"
    "      --hidden-dtype D compute on hidden rounded to bf16, fp16 (or f16) or f32 (default: as the\n"
    "                       file has it).  The intermediate is rounded likewise\n"
    "      --output-dtype D bf16, fp16 (or f16) or f32 (default)\n"
    CLI_MODEL_HELP
    "\n"
    "Both:\n"
    "\n"
    CLI_HELP_COMPUTE
    CLI_HELP_PLAIN
    "\n"
    CLI_EXIT_CODES
    "\n"
    "Example: moe-tkg run --threads 1 case.safetensors --out output.safetensors\n"
    "         moe-tkg run --model path/to/model --layer 3 --hidden x.safetensors --out y.safetensors\n";
/* clang-format on */

enum {
    OPT_OUT = CLI_OPT_OWN,
    OPT_PATH,
    OPT_MODEL,
    OPT_LAYER,
    OPT_HIDDEN,
    OPT_EXPERTS_ONLY,
    OPT_HIDDEN_DTYPE,
    OPT_OUTPUT_DTYPE,
    OPT_CONFIG
};

static const struct option OPTIONS[] = {
    CLI_OPTIONS_PLAIN,
    CLI_OPTIONS_COMPUTE,
    {"out", required_argument, NULL, OPT_OUT},
    {"path", required_argument, NULL, OPT_PATH},
    {"model", required_argument, NULL, OPT_MODEL},
    {"layer", required_argument, NULL, OPT_LAYER},
    {"hidden", required_argument, NULL, OPT_HIDDEN},
    {"experts-only", no_argument, NULL, OPT_EXPERTS_ONLY},
    {"hidden-dtype", required_argument, NULL, OPT_HIDDEN_DTYPE},
    {"output-dtype", required_argument, NULL, OPT_OUTPUT_DTYPE},
    {"config", required_argument, NULL, OPT_CONFIG},
    {NULL, 0, NULL, 0},
};

/* ---- what both forms write ------------------------------------------------------------------- */

static st_dtype stored_as(moe_dtype dtype)
{
    return dtype == MOE_BF16 ? ST_BF16 : dtype == MOE_F16 ? ST_F16 : ST_F32;
}

io_status run_write(const char *path, const moe_tensor *output, size_t bytes, io_error *error)
{
    st_tensor t = {
        .name = "output", .dtype = stored_as(output->dtype), .rank = output->rank, .bytes = bytes};
    for (int d = 0; d < output->rank; d++) t.shape[d] = output->shape[d];
    return st_write(path, &t, &output->data, 1, NULL, NULL, 0, error);
}

json_t *run_shape(const moe_tensor *output)
{
    json_t *shape = json_array();
    for (int d = 0; d < output->rank; d++)
        json_array_append_new(shape, json_integer(output->shape[d]));
    return shape;
}

/* ---- the command ----------------------------------------------------------------------------- */

typedef struct command {
    cli cli;
    run_job job;
    const char *of_case, *of_model; /* the last option that belongs to one form alone */
} command;

static int parse_dtype(command *m, const char *option, moe_dtype *dtype)
{
    if (cli_dtype(optarg, dtype)) return CLI_END;
    return cli_usage_error(&m->cli, "%s %s: must be bf16, fp16 (or f16) or f32", option, optarg);
}

static int parse_option(command *m, int opt)
{
    run_job *j = &m->job;
    long long number;
    switch (opt) {
    case OPT_OUT: j->out = optarg; return CLI_END;
    case OPT_MODEL: j->model = optarg; return CLI_END;
    case OPT_PATH:
        m->of_case = "--path";
        if (path_from_name(optarg, &j->path)) return CLI_END;
        return cli_usage_error(&m->cli, "--path %s: must be raw or packed", optarg);
    case OPT_LAYER:
        m->of_model = "--layer";
        if (!cli_number(optarg, 0, INT32_MAX, &number))
            return cli_usage_error(&m->cli, "--layer %s: must be a number from 0 to %d", optarg,
                                   INT32_MAX);
        j->layer = number;
        return CLI_END;
    case OPT_HIDDEN:
        m->of_model = "--hidden";
        j->hidden = optarg;
        return CLI_END;
    case OPT_EXPERTS_ONLY:
        m->of_model = "--experts-only";
        j->experts_only = true;
        return CLI_END;
    case OPT_CONFIG:
        m->of_model = "--config";
        j->config = optarg;
        return CLI_END;
    case OPT_HIDDEN_DTYPE:
        m->of_model = "--hidden-dtype";
        return parse_dtype(m, "--hidden-dtype", &j->hidden_dtype);
    case OPT_OUTPUT_DTYPE:
        m->of_model = "--output-dtype";
        return parse_dtype(m, "--output-dtype", &j->output_dtype);
    default: return CLI_STOP;
    }
}

static int parse(command *m)
{
    cli *c = &m->cli;
    run_job *j = &m->job;
    for (int opt; (opt = cli_next(c)) != CLI_END;)
        if (parse_option(m, opt) == CLI_STOP) return CLI_STOP;
    int files = c->argc - optind;
    if (j->model) {
        if (files > 0) return cli_usage_error(c, "--model takes no CASE");
        if (m->of_case) return cli_usage_error(c, "--model takes no %s", m->of_case);
        if (j->layer >= 0 && j->hidden && j->out) return CLI_END;
        return cli_usage_error(c, "--model needs --layer N, --hidden HIDDEN and --out OUT");
    }
    if (m->of_model) return cli_usage_error(c, "%s needs --model", m->of_model);
    if (files != 1 || !j->out)
        return cli_usage_error(c, "needs one CASE and --out OUT, or --model");
    j->file = c->argv[optind];
    return CLI_END;
}

int cmd_run(int argc, char **argv)
{
    command m = {
        .cli = {.command = "run",
                .help = HELP,
                .options = OPTIONS,
                .operand = "CASE",
                .argc = argc,
                .argv = argv},
        .job = {.path = PATH_PACKED, .layer = -1, .output_dtype = MOE_F32},
    };
    if (parse(&m) == CLI_STOP) return m.cli.exit_code;
    moe_context *context = NULL;
    int code = cli_context(&m.cli, &context);
    if (code == CLI_OK)
        code = m.job.model ? run_model(&m.cli, context, &m.job) : run_case(&m.cli, context, &m.job);
    moe_context_destroy(context);
    return code;
}
