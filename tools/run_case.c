/* SPDX-License-Identifier: Apache-2.0 */
/* run_case.c - computes a case and writes its output.
 *
 * Owns the file: the bits that the operator returned. */
#include "case.h"
#include "run.h"

#include <stdio.h>
#include <stdlib.h>

/* A line on stderr, and the same as a result if --json asks for one. */
static int failed(const cli *c, int code, const char *file, const char *message)
{
    cli_say(c, message);
    if (!c->json) return code;
    json_t *object = json_pack("{s:o}", "file", cli_json_text(file));
    json_object_update_new(object, cli_json_verdict(code, message));
    cli_print_json(c, object);
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

static int print_result(const cli *c, const moe_context *context, const moe_tkg_args *args,
                        const run_job *j, const moe_tensor *output)
{
    json_t *object = json_pack("{s:o, s:o, s:s, s:s, s:i, s:s, s:s, s:o}",   //
                               "file", cli_json_text(j->file),               //
                               "out", cli_json_text(j->out),                 //
                               "path", path_name(j->path),                   //
                               "isa", moe_context_isa(context),              //
                               "threads", (int)moe_context_threads(context), //
                               "act", case_act_name(case_act_in_use(args)),  //
                               "dtype", moe_dtype_name(output->dtype),       //
                               "shape", run_shape(output));
    json_object_update_new(object, cli_json_verdict(CLI_OK, ""));
    return cli_print_json(c, object);
}

static int compute(const cli *c, moe_context *context, const moe_case *m, const run_job *j)
{
    moe_tensor output;
    io_error error;
    size_t bytes;
    moe_status status = path_compute(j->path, context, &m->args, &output, &bytes);
    if (status != MOE_OK) return refused(c, m, j->file, status);
    int code = CLI_OK;
    if (run_write(j->out, &output, bytes, &error) != IO_OK)
        code = failed(c, CLI_FAILED, j->file, error.text);
    else if (c->json)
        code = print_result(c, context, &m->args, j, &output);
    free((void *)output.data);
    return code;
}

int run_case(const cli *c, moe_context *context, const run_job *j)
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
