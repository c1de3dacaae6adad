/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_run.c - moe-tkg run: computes a case and writes its output.
 *
 * Owns the file: the bits that the operator returned, as one tensor without metadata, so that equal
 * results are equal files. */
#include "case.h"
#include "cli.h"
#include "paths.h"

#include <stdio.h>
#include <stdlib.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg run [options] CASE --out OUT\n"
    "\n"
    "Computes the case (a safetensors file: tensors by parameter name, scalars in the metadata)\n"
    "and writes a safetensors file with one tensor, 'output', in the output_dtype and layout that\n"
    "the case asks for, and no metadata.  OUT appears whole or not at all.\n"
    "\n"
    "      --out OUT        the file to write\n"
    "      --path PATH      packed (default): all experts are packed first, and kept; raw: the call\n"
    "                       packs what it reads.  Either gives the same bits\n"
    CLI_HELP_COMPUTE
    CLI_HELP_PLAIN
    "\n"
    CLI_EXIT_CODES
    "\n"
    "Example: moe-tkg run --threads 1 case.safetensors --out output.safetensors\n";
/* clang-format on */

enum { OPT_OUT = CLI_OPT_OWN, OPT_PATH };

static const struct option OPTIONS[] = {
    CLI_OPTIONS_PLAIN,
    CLI_OPTIONS_COMPUTE,
    {"out", required_argument, NULL, OPT_OUT},
    {"path", required_argument, NULL, OPT_PATH},
    {NULL, 0, NULL, 0},
};

static st_dtype stored_as(moe_dtype dtype)
{
    return dtype == MOE_BF16 ? ST_BF16 : dtype == MOE_F16 ? ST_F16 : ST_F32;
}

/* What is computed, and how. */
typedef struct job {
    const char *file, *out;
    compute_path path;
} job;

/* A line on stderr, and the same as a result if --json asks for one. */
static int failed(const cli *c, int code, const char *file, const char *message)
{
    cli_failure(c, "%s", message);
    if (!c->json) return code;
    cli_print_json(c, json_pack("{s:o, s:b, s:b, s:b, s:o}",     //
                                "file", cli_json_text(file),     //
                                "pass", 0,                       //
                                "refused", code == CLI_REFUSED,  //
                                "unreadable", code == CLI_USAGE, //
                                "message", cli_json_text(message)));
    return code;
}

static int refused(const cli *c, const moe_case *m, const char *file, moe_status status)
{
    char reason[512], message[1024];
    if (status == MOE_E_NOMEM) return failed(c, CLI_FAILED, file, "out of memory");
    case_refusal(m, status, reason, sizeof reason);
    snprintf(message, sizeof message, "%.480s: refused: %s", file, reason);
    return failed(c, CLI_REFUSED, file, message);
}

static int write_output(const cli *c, const char *file, const char *path, const moe_tensor *output,
                        size_t bytes)
{
    io_error error;
    st_tensor t = {
        .name = "output", .dtype = stored_as(output->dtype), .rank = output->rank, .bytes = bytes};
    for (int d = 0; d < output->rank; d++) t.shape[d] = output->shape[d];
    if (st_write(path, &t, &output->data, 1, NULL, NULL, 0, &error) != IO_OK)
        return failed(c, CLI_FAILED, file, error.text);
    return CLI_OK;
}

static int print_result(const cli *c, const moe_context *context, const moe_tkg_args *args,
                        const job *j, const moe_tensor *output)
{
    json_t *shape = json_array();
    for (int d = 0; d < output->rank; d++)
        json_array_append_new(shape, json_integer(output->shape[d]));
    json_t *object = json_pack("{s:o, s:o, s:s, s:s, s:i, s:s, s:s, s:o, s:b, s:b, s:b, s:s}", //
                               "file", cli_json_text(j->file),                                 //
                               "out", cli_json_text(j->out),                                   //
                               "path", path_name(j->path),                                     //
                               "isa", moe_context_isa(context),                                //
                               "threads", (int)moe_context_threads(context),                   //
                               "act", case_act_name(case_act_in_use(args)),                    //
                               "dtype", moe_dtype_name(output->dtype),                         //
                               "shape", shape,                                                 //
                               "pass", 1,                                                      //
                               "refused", 0,                                                   //
                               "unreadable", 0,                                                //
                               "message", "");
    return cli_print_json(c, object);
}

static int compute(const cli *c, moe_context *context, const moe_case *m, const job *j)
{
    moe_tensor output;
    size_t bytes;
    moe_status status = path_compute(j->path, context, &m->args, &output, &bytes);
    if (status != MOE_OK) return refused(c, m, j->file, status);
    int code = write_output(c, j->file, j->out, &output, bytes);
    if (code == CLI_OK && c->json) code = print_result(c, context, &m->args, j, &output);
    free((void *)output.data);
    return code;
}

static int run_file(cli *c, moe_context *context, const job *j)
{
    moe_case m;
    io_error error;
    int code;
    if (case_load(j->file, &m, &error) == IO_OK) {
        if (c->act != MOE_ACT_DEFAULT) m.args.act_mode = c->act;
        code = compute(c, context, &m, j);
    } else {
        code = failed(c, CLI_USAGE, j->file, error.text);
    }
    case_free(&m);
    return code;
}

static int parse(cli *c, job *j)
{
    for (int opt; (opt = cli_next(c)) != CLI_END;) {
        switch (opt) {
        case OPT_OUT: j->out = optarg; break;
        case OPT_PATH:
            if (!path_from_name(optarg, &j->path))
                return cli_usage_error(c, "--path %s: must be raw or packed", optarg);
            break;
        default: return CLI_STOP;
        }
    }
    if (c->argc - optind != 1 || !j->out) return cli_usage_error(c, "needs one CASE and --out OUT");
    j->file = c->argv[optind];
    return CLI_END;
}

int cmd_run(int argc, char **argv)
{
    cli c = {.command = "run", .help = HELP, .options = OPTIONS, .argc = argc, .argv = argv};
    job j = {.path = PATH_PACKED};
    if (parse(&c, &j) == CLI_STOP) return c.exit_code;
    moe_context *context = NULL;
    int code = cli_context(&c, &context);
    if (code == CLI_OK) code = run_file(&c, context, &j);
    moe_context_destroy(context);
    return code;
}
