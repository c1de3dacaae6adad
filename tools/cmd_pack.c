/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_pack.c - moe-tkg pack: writes a model's layers as they are packed, to be read back quickly.
 *
 * Owns the order: one layer at a time is in memory, and each that was written stays whatever comes
 * of the next. */
#include "cli_model.h"
#include "table.h"
#include "team.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg pack [options] PATH --out DIR\n"
    "\n"
    "Packs the layers with experts of a model and writes each to a file of its own in the folder DIR,\n"
    "which the other commands then take as a model.  A file appears whole or not at all.  Prints\n"
    "bytes and rates.  PATH: a folder, an index, a safetensors or GGUF file.\n"
    "\n"
    "      --out DIR        the folder, not a checkpoint's; made if it is not there\n"
    "      --layer N        one layer, by its number (default: all)\n"
    "      --lossless       bf16 experts in about 12 bits a weight, without loss\n"
    CLI_MODEL_HELP
    "      --threads N      threads; 0, the default: as many as the process may use\n"
    CLI_HELP_PLAIN
    "\n"
    CLI_EXIT_CODES
    "\n"
    "Example: moe-tkg pack path/to/model --out packed\n"
    "         moe-tkg inspect packed\n";
/* clang-format on */

enum { OPT_OUT = CLI_OPT_OWN, OPT_LAYER, OPT_LOSSLESS, OPT_CONFIG };

static const struct option OPTIONS[] = {
    CLI_OPTIONS_PLAIN,
    {"threads", required_argument, NULL, CLI_OPT_THREADS},
    {"out", required_argument, NULL, OPT_OUT},
    {"layer", required_argument, NULL, OPT_LAYER},
    {"lossless", no_argument, NULL, OPT_LOSSLESS},
    {"config", required_argument, NULL, OPT_CONFIG},
    {NULL, 0, NULL, 0},
};

/* One layer that was written. */
typedef struct packed {
    moe_layer_info info;
    double bytes; /* packed */
    double load_seconds, save_seconds;
} packed;

typedef struct command {
    cli cli;
    const char *path, *out, *config;
    long long layer; /* -1: all */
    moe_packing packing;
    moe_context *context;
    moe_model *model;
    moe_model_info info;
    moe_layer_info *all; /* [info.moe_layers] */
    packed *done;
    size_t n;
    cli_error error;
} command;

static int parse(command *m)
{
    cli *c = &m->cli;
    for (int opt; (opt = cli_next(c)) != CLI_END;) {
        switch (opt) {
        case OPT_OUT: m->out = optarg; break;
        case OPT_CONFIG: m->config = optarg; break;
        case OPT_LOSSLESS: m->packing = MOE_PACK_LOSSLESS; break;
        case OPT_LAYER:
            m->layer = -1;
            if (strcmp(optarg, "all") == 0) break;
            if (!cli_number(optarg, 0, INT32_MAX, &m->layer))
                return cli_usage_error(c, "--layer %s: must be a number from 0 to %d, or all",
                                       optarg, INT32_MAX);
            break;
        default: return CLI_STOP;
        }
    }
    if (c->argc - optind != 1 || !m->out) return cli_usage_error(c, "needs one PATH and --out DIR");
    m->path = c->argv[optind];
    return CLI_END;
}

/* ---- packing --------------------------------------------------------------------------------- */

static double packed_bytes(const moe_experts *experts)
{
    moe_experts_info info = {.struct_size = sizeof info};
    return experts && moe_experts_describe(experts, &info) == MOE_OK ? (double)info.bytes : 0;
}

static int save(command *m, const moe_layer *layer, packed *p)
{
    moe_block_args args;
    double begin = team_seconds();
    moe_status status = moe_layer_save(layer, m->out);
    p->save_seconds = team_seconds() - begin;
    if (status == MOE_OK) status = moe_layer_args(layer, &args);
    if (status != MOE_OK) return cli_model_failure(&m->error, status);
    p->bytes = packed_bytes(args.experts.experts) + packed_bytes(args.shared);
    return CLI_OK;
}

static int pack_layer(command *m, const moe_layer_info *info)
{
    moe_layer *layer;
    packed *p = &m->done[m->n];
    *p = (packed){.info = *info};
    double begin = team_seconds();
    int code = cli_model_load(m->model, info->layer, m->packing, m->context, &layer, &m->error);
    if (code != CLI_OK) return code;
    p->load_seconds = team_seconds() - begin;
    code = save(m, layer, p);
    moe_layer_free(layer);
    m->n += code == CLI_OK;
    return code;
}

static int pack(command *m)
{
    int code = cli_model_open(m->path, m->config, &m->model, &m->error);
    if (code == CLI_OK) code = cli_model_layers(m->model, &m->info, &m->all, &m->error);
    if (code != CLI_OK) return code;
    m->done = calloc((size_t)m->info.moe_layers + 1, sizeof *m->done);
    if (!m->done) return cli_fail(&m->error, CLI_FAILED, "out of memory");
    moe_layer_info one;
    if (m->layer >= 0) {
        code = cli_model_find(m->model, m->layer, &one, &m->error);
        return code == CLI_OK ? pack_layer(m, &one) : code;
    }
    for (int64_t i = 0; code == CLI_OK && i < m->info.moe_layers; i++)
        code = pack_layer(m, &m->all[i]);
    return code;
}

/* ---- printing -------------------------------------------------------------------------------- */

static packed sum_up(const command *m)
{
    packed s = {0};
    for (size_t i = 0; i < m->n; i++) {
        s.info.bytes += m->done[i].info.bytes;
        s.bytes += m->done[i].bytes;
        s.load_seconds += m->done[i].load_seconds;
        s.save_seconds += m->done[i].save_seconds;
    }
    return s;
}

static double rate(double bytes, double seconds)
{
    return 1e-9 * bytes / seconds;
}

static void add_row(table *t, const packed *p)
{
    table_megabytes(t, (double)p->info.bytes);
    table_megabytes(t, p->bytes);
    table_cell(t, "%.3f", p->load_seconds);
    table_cell(t, "%.2f", rate((double)p->info.bytes, p->load_seconds));
    table_cell(t, "%.3f", p->save_seconds);
    table_cell(t, "%.2f", rate(p->bytes, p->save_seconds));
}

static int print(const command *m)
{
    static const char *const TITLES[] = {">layer", ">MB in files", ">MB packed", ">load s",
                                         ">GB/s",  ">save s",      ">GB/s"};
    table t = {.titles = TITLES, .columns = sizeof TITLES / sizeof TITLES[0]};
    packed sum = sum_up(m);
    for (size_t i = 0; i < m->n; i++) {
        table_cell(&t, "%lld", (long long)m->done[i].info.layer);
        add_row(&t, &m->done[i]);
    }
    table_cell(&t, "all");
    add_row(&t, &sum);
    bool printed = table_print(&t);
    table_free(&t);
    return printed ? CLI_OK : cli_failure(&m->cli, "out of memory");
}

static json_t *packed_json(const packed *p)
{
    return json_pack("{s:I, s:I, s:I, s:o, s:o}",                    //
                     "layer", (json_int_t)p->info.layer,             //
                     "bytes", (json_int_t)p->info.bytes,             //
                     "packed_bytes", (json_int_t)p->bytes,           //
                     "load_seconds", cli_json_real(p->load_seconds), //
                     "save_seconds", cli_json_real(p->save_seconds));
}

static int print_json(const command *m)
{
    json_t *layers = json_array();
    packed sum = sum_up(m);
    for (size_t i = 0; i < m->n; i++) json_array_append_new(layers, packed_json(&m->done[i]));
    return cli_print_json(&m->cli, json_pack("{s:o, s:o, s:s, s:b, s:i, s:o, s:I, s:I}",      //
                                             "path", cli_json_text(m->path),                  //
                                             "out", cli_json_text(m->out),                    //
                                             "family", m->info.family,                        //
                                             "lossless", m->packing == MOE_PACK_LOSSLESS,     //
                                             "threads", (int)moe_context_threads(m->context), //
                                             "layers", layers,                                //
                                             "bytes", (json_int_t)sum.info.bytes,             //
                                             "packed_bytes", (json_int_t)sum.bytes));
}

int cmd_pack(int argc, char **argv)
{
    command m = {
        .cli = {.command = "pack",
                .help = HELP,
                .options = OPTIONS,
                .operand = "PATH",
                .argc = argc,
                .argv = argv},
        .layer = -1,
    };
    if (parse(&m) == CLI_STOP) return m.cli.exit_code;
    int code = cli_context(&m.cli, &m.context);
    if (code != CLI_OK) return code;
    code = pack(&m) == CLI_OK ? (m.cli.json ? print_json(&m) : print(&m))
                              : cli_report(&m.cli, &m.error);
    free(m.done);
    free(m.all);
    moe_model_close(m.model);
    moe_context_destroy(m.context);
    return code;
}
