/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench.c - moe-tkg bench: how fast, and how fast this machine could be at best.
 *
 * Owns the command line.  Refuses what the operator would refuse, before anything is made. */
#define _GNU_SOURCE 1

#include "bench_out.h"
#include "case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg bench [options]\n"
    "       moe-tkg bench [options] --model PATH --layer N\n"
    "\n"
    "Times calls on one layer of packed experts, with random weights or a model's, and the machine's\n"
    "ceilings beside them: bytes read per second, and multiply-accumulates per second of the instruction\n"
    "that the kernels use.  Prints a line for each batch size and format: tokens, experts read,\n"
    "median, least and 95th percentile of the time, what was reached, what the ceilings allow, and\n"
    "the roofline: the median of (least possible time / time).  Every call has new routing and\n"
    "weights that no cache holds, and runs on pinned threads that are awake, as an engine's are\n"
    "(moe_tkg_part).\n"
    "\n"
    "      --shape SHAPE    a model's layer by name, or H,I,E,K (default gpt-oss-20b)\n"
    "      --list-shapes    print the models, and end\n"
    "      --model PATH     a model: a folder, an index, a safetensors or GGUF file, or what moe-tkg\n"
    "                       pack wrote; --layer N: of it the layer of this number\n"
    CLI_MODEL_HELP
    "      --experts N      hold N of the E experts; at least K\n"
    "      --weights LIST   of bf16, bf16-lossless, fp16 (or f16), fp8-row (or fp8), fp8-static,\n"
    "                       fp8-channel, fp8-block, mxfp8, mxfp4, nvfp4, int4-g32, int4-g64,\n"
    "                       int4-g128, q8_0, q4_0, q4_k, q5_k and q6_k (default: mxfp4 for gpt-oss,\n"
    "                       else bf16)\n"
    "      --act MODE       exact (default), mxfp8 (with mxfp8 and mxfp4) or int8 (with 4-bit and\n"
    "                       integer weights): what activations are rounded to\n"
    "      --tokens LIST    batch sizes, 1 to 128 (default 1,2,4,8,16,32,64,128; up to 8 if the\n"
    "                       kernels are scalar)\n"
    "      --routing KIND   uniform (default); zipf: expert weights 1, 1/2, 1/3, ...; one: all\n"
    "                       tokens of a call take the same experts; file\n"
    "      --routing-file F a token's K experts a line, numbers with blanks or commas between;\n"
    "                       used in order, over and over\n"
    "      --repetitions N  calls a line, in as many rounds (default 20)\n"
    "      --working-set N  bytes (or with K, M, G) of packed layers, and of memory for the probe\n"
    "                       of the ceiling, used in turn (default 8 times the last-level cache;\n"
    "                       below 4 times, weights are not cold)\n"
    "      --seed N         other weights, tokens and routing (default 1)\n"
    "      --isa NAME       highest ISA level to use (moe-tkg info lists them)\n"
    "      --threads N      threads per call; 0, the default: as many as the process may use\n"
    CLI_HELP_PLAIN
    "\n"
    CLI_EXIT_CODES
    "\n"
    "Example: moe-tkg bench --shape gpt-oss-20b --tokens 1,8,64\n"
    "         moe-tkg bench --shape qwen3-30b-a3b --weights bf16,bf16-lossless,fp8 --tokens 1,4\n"
    "         moe-tkg bench --shape deepseek-v3 --experts 32 --weights mxfp4 --act int8\n"
    "         moe-tkg bench --shape 4096,1024,64,8 --routing zipf --json >result.json\n"
    "         moe-tkg bench --model path/to/model --layer 3 --tokens 1,8\n";
/* clang-format on */

enum {
    OPT_SHAPE = CLI_OPT_OWN,
    OPT_LIST,
    OPT_EXPERTS,
    OPT_WEIGHTS,
    OPT_TOKENS,
    OPT_ROUTING,
    OPT_FILE,
    OPT_REPETITIONS,
    OPT_WORKING_SET,
    OPT_SEED,
    OPT_MODEL,
    OPT_LAYER,
    OPT_CONFIG
};

static const struct option OPTIONS[] = {
    CLI_OPTIONS_PLAIN,
    CLI_OPTIONS_COMPUTE,
    {"shape", required_argument, NULL, OPT_SHAPE},
    {"list-shapes", no_argument, NULL, OPT_LIST},
    {"experts", required_argument, NULL, OPT_EXPERTS},
    {"weights", required_argument, NULL, OPT_WEIGHTS},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"routing", required_argument, NULL, OPT_ROUTING},
    {"routing-file", required_argument, NULL, OPT_FILE},
    {"repetitions", required_argument, NULL, OPT_REPETITIONS},
    {"working-set", required_argument, NULL, OPT_WORKING_SET},
    {"seed", required_argument, NULL, OPT_SEED},
    {"model", required_argument, NULL, OPT_MODEL},
    {"layer", required_argument, NULL, OPT_LAYER},
    {"config", required_argument, NULL, OPT_CONFIG},
    {NULL, 0, NULL, 0},
};

typedef struct command {
    cli cli;
    bench_plan plan;
    const char *shape, *routing; /* as they were given, or NULL */
    const char *config, *of_random;
    long long experts, layer; /* experts 0: all; layer -1: not given */
    moe_model *model;
    bool list;
} command;

/* ---- options ------------------------------------------------------------------------------- */

/* "64M" in bytes. */
static bool parse_bytes(const char *text, long long low, long long high, size_t *bytes)
{
    static const char UNITS[] = "KMG";
    char number[32];
    size_t length = strlen(text);
    long long value, unit = 1;
    if (length == 0 || length >= sizeof number) return false;
    const char *letter = strchr(UNITS, text[length - 1]);
    if (letter) unit = 1LL << 10 * (letter - UNITS + 1);
    snprintf(number, sizeof number, "%.*s", (int)(letter ? length - 1 : length), text);
    if (!cli_number(number, 1, high / unit, &value) || value * unit < low) return false;
    *bytes = (size_t)(value * unit);
    return true;
}

static int parse_weights(command *m, char *list)
{
    bench_plan *p = &m->plan;
    p->n_formats = 0;
    for (char *item; (item = strsep(&list, ",")) != NULL;) {
        bench_format format;
        if (!bench_format_from_name(item, &format))
            return cli_usage_error(&m->cli,
                                   "--weights %s: must be of bf16, bf16-lossless, fp16, fp8-row, "
                                   "fp8-static, fp8-channel, fp8-block, mxfp8, mxfp4, nvfp4, "
                                   "int4-g32, int4-g64, int4-g128, q8_0, q4_0, q4_k, q5_k, q6_k",
                                   item);
        for (size_t i = 0; i < p->n_formats; i++)
            if (p->formats[i] == format)
                return cli_usage_error(&m->cli, "--weights: %s twice", bench_format_name(format));
        p->formats[p->n_formats++] = format;
    }
    return CLI_END;
}

/* Options that belong to random weights, or to a model. */
static int parse_layer_option(command *m, int opt)
{
    cli *c = &m->cli;
    switch (opt) {
    case OPT_MODEL: m->plan.model_path = optarg; return CLI_END;
    case OPT_CONFIG: m->config = optarg; return CLI_END;
    case OPT_LAYER:
        if (cli_number(optarg, 0, INT32_MAX, &m->layer)) return CLI_END;
        return cli_usage_error(c, "--layer %s: must be a number from 0 to %d", optarg, INT32_MAX);
    case OPT_SHAPE:
        m->of_random = "--shape";
        m->shape = optarg;
        return CLI_END;
    case OPT_EXPERTS:
        m->of_random = "--experts";
        if (cli_number(optarg, 1, SHAPE_MAX_E, &m->experts)) return CLI_END;
        return cli_usage_error(c, "--experts %s: must be 1 to %d", optarg, SHAPE_MAX_E);
    case OPT_WEIGHTS: m->of_random = "--weights"; return parse_weights(m, optarg);
    default: return CLI_STOP;
    }
}

static int parse_option(command *m, int opt)
{
    enum { LEAST_SET = 1 << 16 };
    cli *c = &m->cli;
    long long number;
    switch (opt) {
    case OPT_LIST: m->list = true; break;
    case OPT_TOKENS:
        if (!cli_numbers(optarg, 1, BENCH_MAX_T, m->plan.tokens, BENCH_MAX_BATCHES,
                         &m->plan.n_tokens))
            return cli_usage_error(
                c, "--tokens %s: must be up to %d numbers from 1 to %d, with commas", optarg,
                BENCH_MAX_BATCHES, BENCH_MAX_T);
        break;
    case OPT_ROUTING:
        m->routing = optarg;
        if (!route_from_name(optarg, &m->plan.routing))
            return cli_usage_error(c, "--routing %s: must be uniform, zipf, one or file", optarg);
        break;
    case OPT_FILE: m->plan.routing_file = optarg; break;
    case OPT_REPETITIONS:
        if (!cli_number(optarg, 1, BENCH_MAX_REPETITIONS, &number))
            return cli_usage_error(c, "--repetitions %s: must be 1 to %d", optarg,
                                   BENCH_MAX_REPETITIONS);
        m->plan.repetitions = (size_t)number;
        break;
    case OPT_WORKING_SET:
        if (!parse_bytes(optarg, LEAST_SET, 1LL << 40, &m->plan.working_set))
            return cli_usage_error(c, "--working-set %s: must be 64K to 1024G", optarg);
        break;
    case OPT_SEED:
        if (!cli_number(optarg, 0, INT64_MAX, &number))
            return cli_usage_error(c, "--seed %s: must be an integer >= 0", optarg);
        m->plan.seed = (uint64_t)number;
        break;
    default: return parse_layer_option(m, opt);
    }
    return CLI_END;
}

/* ---- what belongs together ----------------------------------------------------------------- */

/* A model's layer has its own shape and weights. */
static int check_model(command *m)
{
    cli *c = &m->cli;
    if (m->of_random) return cli_usage_error(c, "--model takes no %s", m->of_random);
    if (m->layer < 0) return cli_usage_error(c, "--model needs --layer N");
    m->plan.n_formats = 1;
    return CLI_END;
}

static int check_shape(command *m)
{
    cli *c = &m->cli;
    shape *s = &m->plan.shape;
    char message[256];
    if (m->layer >= 0 || m->config)
        return cli_usage_error(c, "%s needs --model", m->config ? "--config" : "--layer");
    if (!m->shape) m->shape = "gpt-oss-20b";
    if (!shape_parse(m->shape, s, message, sizeof message))
        return cli_usage_error(c, "--shape %s: %s%s", m->shape, message,
                               strncmp(message, "no such", 7) == 0 ? "; --list-shapes has all"
                                                                   : "");
    if (!shape_is_supported(s))
        return cli_usage_error(c, "--shape %s: its activation (%s) is not the operator's", s->name,
                               shape_activation_name(s->activation));
    if (m->experts == 0) return CLI_END;
    if (m->experts < s->K || m->experts > s->E)
        return cli_usage_error(c, "--experts %lld: must be %lld (K) to %lld (E) with this shape",
                               m->experts, (long long)s->K, (long long)s->E);
    s->E = m->experts;
    return CLI_END;
}

static int check_routing(command *m)
{
    bench_plan *p = &m->plan;
    if (p->routing_file && !m->routing) p->routing = ROUTE_FILE;
    if (p->routing_file && p->routing != ROUTE_FILE)
        return cli_usage_error(&m->cli, "--routing-file needs --routing file");
    if (!p->routing_file && p->routing == ROUTE_FILE)
        return cli_usage_error(&m->cli, "--routing file needs --routing-file");
    return CLI_END;
}

static int check_weights(command *m)
{
    bench_plan *p = &m->plan;
    if (p->n_formats == 0)
        p->formats[p->n_formats++] =
            p->shape.activation == SHAPE_SWIGLU_OAI ? BENCH_MXFP4 : BENCH_BF16;
    for (size_t f = 0; f < p->n_formats; f++) {
        const char *why = bench_refusal(&p->shape, p->formats[f], p->act);
        if (why)
            return cli_usage_error(&m->cli, "--weights %s: %s", bench_format_name(p->formats[f]),
                                   why);
    }
    return CLI_END;
}

static int parse(command *m)
{
    for (int opt; (opt = cli_next(&m->cli)) != CLI_END;)
        if (parse_option(m, opt) == CLI_STOP) return CLI_STOP;
    if (optind != m->cli.argc) return cli_usage_error(&m->cli, "takes no argument");
    if (m->list) return CLI_END;
    m->plan.act = m->cli.act == MOE_ACT_DEFAULT ? MOE_ACT_EXACT : m->cli.act;
    if (check_routing(m) == CLI_STOP) return CLI_STOP;
    if (m->plan.model_path) return check_model(m);
    return check_shape(m) == CLI_STOP ? CLI_STOP : check_weights(m);
}

/* ---- the command --------------------------------------------------------------------------- */

static int list_shapes(const command *m)
{
    if (m->cli.json) return cli_print_json(&m->cli, bench_shapes_json());
    bench_print_shapes();
    return CLI_OK;
}

/* The shape of the layer that is asked for. */
static int open_model(command *m)
{
    bench_plan *p = &m->plan;
    moe_model_info info = {.struct_size = sizeof info};
    cli_error error;
    int code = cli_model_open(p->model_path, m->config, &m->model, &error);
    if (code == CLI_OK) code = cli_model_find(m->model, m->layer, &p->layer, &error);
    if (code != CLI_OK) return cli_report(&m->cli, &error);
    p->model = m->model;
    const moe_layer_info *l = &p->layer;
    p->shape = (shape){.H = l->H, .I = l->I, .E = l->E, .K = l->K};
    p->shape.bias = l->has_bias;
    p->shape.no_gate = !l->has_gate;
    moe_model_describe(m->model, &info);
    snprintf(p->shape.name, sizeof p->shape.name, "%.40s layer %lld",
             info.family ? info.family : "model", (long long)l->layer);
    return CLI_OK;
}

static int run(command *m, bench *b)
{
    int code = m->plan.model_path ? open_model(m) : CLI_OK;
    if (code != CLI_OK) return code;
    code = bench_open(b, &m->cli, &m->plan, 0);
    if (code != CLI_OK) return code;
    bench_source_free(&b->source);
    code = bench_measure(b);
    if (code != CLI_OK) return code;
    if (m->cli.json) return cli_print_json(&m->cli, bench_json(b));
    bench_print_head(b);
    bench_print_rows(b);
    bench_print_foot(b);
    return CLI_OK;
}

int cmd_bench(int argc, char **argv)
{
    command m = {
        .cli = {.command = "bench", .help = HELP, .options = OPTIONS, .argc = argc, .argv = argv},
        .plan = {.repetitions = 20, .seed = 1},
        .layer = -1,
    };
    if (parse(&m) == CLI_STOP) return m.cli.exit_code;
    if (m.list) return list_shapes(&m);
    bench *b = calloc(1, sizeof *b);
    if (!b) return cli_failure(&m.cli, "out of memory");
    int code = run(&m, b);
    cli_progress_end();
    bench_close(b);
    moe_model_close(m.model);
    free(b);
    return code;
}
