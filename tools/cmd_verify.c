/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_verify.c - moe-tkg verify: judges what we compute for cases, or what a candidate did.
 *
 * Owns which reference a result is held against and what the exit code says.  Refuses nothing
 * itself: a file is unreadable because the loader says so, refused because the operator says so. */
#include "cli.h"
#include "judge.h"
#include "paths.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg verify [options] FILE...\n"
    "\n"
    "Computes each case (a safetensors file: tensors by parameter name, scalars in the metadata)\n"
    "and compares the output with the tensor 'expected'.  One line per case: ok, FAIL, REFUSED\n"
    "or UNREADABLE, the name, the error, the gate and its limit, and which path was taken.\n"
    "\n"
    "      --gate GATE      tight, strict (default) or upstream: the tolerances of the file, with\n"
    "                       max|got - expected| <= atol + rtol * max|expected|;\n"
    "                       bound: every element inside the interval that a float64 oracle\n"
    "                       proves for it; one without a finite interval fails.  Error and limit\n"
    "                       are where error / limit is largest; the limit is that of the tight\n"
    "                       interval, which rounding errors of random sign leave next to never:\n"
    "                       elements between it and the proven one pass, and are counted\n"
    "      --candidate OUT  judge tensor 'output' (bf16, f16, f32, or f64, rounded to f32) of the\n"
    "                       safetensors file OUT instead of computing; takes exactly one FILE,\n"
    "                       and also says what the oracle's interval says of it\n"
    "      --path PATH      raw: the call packs the experts that it reads; packed: all are packed\n"
    "                       first, and kept.  Default: both, which must give the same bits\n"
    CLI_HELP_COMPUTE
    "                       (other than the case's own: judged by the oracle's interval)\n"
    CLI_HELP_PLAIN
    "\n"
    CLI_EXIT_CODES
    "With several files, 2 comes before 3 and 3 before 1.\n"
    "\n"
    "Example: moe-tkg verify --gate tight tests/golden/moe_tkg/*.safetensors\n";
/* clang-format on */

enum { OPT_GATE = CLI_OPT_OWN, OPT_CANDIDATE, OPT_PATH };

static const struct option OPTIONS[] = {
    CLI_OPTIONS_PLAIN,
    CLI_OPTIONS_COMPUTE,
    {"gate", required_argument, NULL, OPT_GATE},
    {"candidate", required_argument, NULL, OPT_CANDIDATE},
    {"path", required_argument, NULL, OPT_PATH},
    {NULL, 0, NULL, 0},
};

typedef enum outcome { PASSED, FAILED, REFUSED, UNREADABLE } outcome;

static const char *const WORDS[] = {"ok", "FAIL", "REFUSED", "UNREADABLE"};

/* One file's line. */
typedef struct report {
    const char *file;
    outcome outcome;
    compute_path path; /* taken; PATH_BOTH: they agree */
    moe_act_mode act;
    judge_gate gate;
    bool judged;
    judge_verdict verdict; /* if judged */
    char message[sizeof((io_error *)0)->text + 128];
    bool has_interval; /* the oracle judged it */
    judge_verdict interval;
} report;

typedef struct verify {
    cli cli;
    judge_gate gate;
    compute_path path;
    const char *candidate;
    moe_context *context;
    json_t *cases;
    size_t count[4]; /* of each outcome */
} verify;

/* ---- one file ------------------------------------------------------------------------------ */

__attribute__((format(printf, 3, 4))) static void end(report *r, outcome what, const char *format,
                                                      ...)
{
    va_list list;
    va_start(list, format);
    r->outcome = what;
    vsnprintf(r->message, sizeof r->message, format, list);
    va_end(list);
}

static void end_refused(report *r, const moe_case *c, moe_status status)
{
    if (status == MOE_E_NOMEM) {
        end(r, FAILED, "out of memory");
        return;
    }
    r->outcome = REFUSED;
    case_refusal(c, status, r->message, sizeof r->message);
}

static bool same_shape(const st_tensor *t, const moe_tensor *output)
{
    bool same = t->rank == output->rank;
    for (int d = 0; same && d < t->rank; d++) same = t->shape[d] == output->shape[d];
    return same;
}

static bool take_dtype(const st_tensor *t, moe_tensor *output)
{
    switch (t->dtype) {
    case ST_BF16: output->dtype = MOE_BF16; return true;
    case ST_F16: output->dtype = MOE_F16; return true;
    case ST_F32:
    case ST_F64: output->dtype = MOE_F32; return true;
    default: return false;
    }
}

/* float64 elements become f32, in place.  Rounding keeps the order of numbers, so what lies in an
 * interval lies in the rounded one. */
static void narrow(void *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double wide;
        memcpy(&wide, (char *)data + 8 * i, sizeof wide);
        float value = (float)wide;
        memcpy((char *)data + 4 * i, &value, sizeof value);
    }
}

/* Reads tensor 'output' into *output, which says what shape it must have.  The caller frees. */
static void read_output(const st_file *file, report *r, moe_tensor *output)
{
    io_error error;
    const st_tensor *t = st_find(file, "output");
    if (!t) {
        end(r, UNREADABLE, "candidate: tensor output is missing");
    } else if (!same_shape(t, output)) {
        end(r, FAILED, "candidate: output has not the shape of the operator's output");
    } else if (!take_dtype(t, output)) {
        end(r, FAILED, "candidate: output is %s: must be BF16, F16, F32 or F64",
            st_dtype_name(t->dtype));
    } else if (!(output->data = malloc(t->bytes ? t->bytes : 1))) {
        end(r, FAILED, "out of memory");
    } else if (st_read(file, t, (void *)output->data, &error) != IO_OK) {
        end(r, UNREADABLE, "candidate: %s", error.text);
    } else if (t->dtype == ST_F64) {
        narrow((void *)output->data, t->bytes / sizeof(double));
    }
}

static bool read_candidate(const char *path, report *r, moe_tensor *output)
{
    io_error error;
    st_file *file;
    if (st_open(path, &file, &error) != IO_OK) {
        end(r, UNREADABLE, "candidate: %s", error.text);
        return false;
    }
    read_output(file, r, output);
    st_close(file);
    return !r->message[0];
}

/* Computed for a candidate too: only so does the operator judge the case's own values. */
static bool get_output(const verify *v, const moe_case *c, report *r, moe_tensor *output,
                       size_t *bytes)
{
    r->path = v->path == PATH_BOTH ? PATH_RAW : v->path;
    moe_status status = path_compute(r->path, v->context, &c->args, output, bytes);
    if (status != MOE_OK) {
        end_refused(r, c, status);
        return false;
    }
    if (!v->candidate) return true;
    free((void *)output->data);
    output->data = NULL;
    return read_candidate(v->candidate, r, output);
}

/* False if the oracle cannot judge; the report then says why. */
static bool get_interval(const moe_case *c, const moe_tensor *output, report *r,
                         judge_verdict *verdict)
{
    oracle_status status = judge_bound(&c->args, NULL, 0, output, verdict);
    if (status == ORACLE_OK) return true;
    end(r, FAILED,
        status == ORACLE_E_NOMEM ? "out of memory"
                                 : "the oracle refuses what the operator accepts");
    return false;
}

static void judge(const verify *v, const moe_case *c, const moe_tensor *output, report *r)
{
    if (r->gate != JUDGE_BOUND && !c->expected) {
        end(r, UNREADABLE, "tensor expected is missing");
        return;
    }
    if (r->gate != JUDGE_BOUND && !case_expects_shape(c, output)) {
        end(r, UNREADABLE, "tensor expected has not the shape of the operator's output");
        return;
    }
    if (v->candidate || r->gate == JUDGE_BOUND) {
        if (!get_interval(c, output, r, &r->interval)) return;
        r->has_interval = true;
    }
    r->verdict = r->gate == JUDGE_BOUND ? r->interval : judge_expected(c, r->gate, output);
    r->judged = true;
    end(r, r->verdict.pass ? PASSED : FAILED, "%s", r->verdict.note);
}

/* The other path must give the same bits as *output, which has passed. */
static void compare_paths(const verify *v, const moe_case *c, const moe_tensor *output,
                          size_t bytes, report *r)
{
    moe_tensor other = {0};
    size_t other_bytes;
    r->path = PATH_PACKED;
    moe_status status = path_compute(PATH_PACKED, v->context, &c->args, &other, &other_bytes);
    if (status != MOE_OK) {
        end_refused(r, c, status);
        r->judged = r->has_interval = false;
    } else if (other_bytes != bytes || memcmp(other.data, output->data, bytes) != 0) {
        end(r, FAILED, "packed experts give other bits than the raw tensors");
    } else {
        r->path = PATH_BOTH;
    }
    free((void *)other.data);
}

static void verify_file(const verify *v, const char *file, report *r)
{
    moe_case c;
    io_error error;
    moe_tensor output = {0};
    size_t bytes;
    *r = (report){.file = file, .path = v->path, .act = v->cli.act, .gate = v->gate};
    if (case_load(file, &c, &error) != IO_OK) {
        end(r, UNREADABLE, "%s", error.text);
        case_free(&c);
        return;
    }
    /* What the file expects was computed in its own mode; in another only the oracle knows. */
    moe_act_mode own = case_act_in_use(&c.args);
    if (v->cli.act != MOE_ACT_DEFAULT) c.args.act_mode = v->cli.act;
    r->act = case_act_in_use(&c.args);
    if (r->act != own) r->gate = JUDGE_BOUND;
    if (get_output(v, &c, r, &output, &bytes)) judge(v, &c, &output, r);
    if (v->path == PATH_BOTH && r->outcome == PASSED) compare_paths(v, &c, &output, bytes, r);
    free((void *)output.data);
    case_free(&c);
}

/* ---- what is said of it -------------------------------------------------------------------- */

static void print_name(const char *file)
{
    static const char SUFFIX[] = ".safetensors";
    char name[256];
    const char *slash = strrchr(file, '/');
    snprintf(name, sizeof name, "%s", slash && slash[1] ? slash + 1 : file);
    size_t length = strlen(name), cut = sizeof SUFFIX - 1;
    if (length > cut && strcmp(name + length - cut, SUFFIX) == 0) name[length - cut] = '\0';
    cli_print_text(name);
    for (length = strlen(name); length < 44; length++) putchar(' ');
}

static const char *interval_word(const judge_verdict *v)
{
    return v->pass ? "inside" : v->outside ? "OUTSIDE" : "NOT JUDGED";
}

static void print_report(const report *r, bool of_candidate)
{
    printf("%-10s ", WORDS[r->outcome]);
    print_name(r->file);
    if (r->judged)
        printf("  error %9.3e  %s %9.3e  %s", r->verdict.error, judge_gate_name(r->gate),
               r->verdict.limit, path_name(r->path));
    if (r->message[0]) fputs("  ", stdout);
    cli_print_text(r->message);
    putchar('\n');
    if (r->has_interval && of_candidate)
        printf("interval   %s: error %.3e, limit %.3e%s%s\n", interval_word(&r->interval),
               r->interval.error, r->interval.limit, r->interval.note[0] ? "; " : "",
               r->interval.note);
}

static json_t *interval_json(const judge_verdict *v)
{
    return json_pack("{s:b, s:o, s:o, s:I, s:I, s:I, s:I, s:s}", //
                     "pass", v->pass,                            //
                     "error", cli_json_real(v->error),           //
                     "limit", cli_json_real(v->limit),           //
                     "cells", (json_int_t)v->cells,              //
                     "outside", (json_int_t)v->outside,          //
                     "between", (json_int_t)v->between,          //
                     "unbounded", (json_int_t)v->unbounded,      //
                     "message", v->note);
}

/* NULL if memory ran out. */
static json_t *report_json(const verify *v, const report *r)
{
    json_t *o = json_pack("{s:o, s:s, s:s, s:i, s:s, s:s, s:o, s:o, s:b, s:b, s:b, s:o}",     //
                          "file", cli_json_text(r->file),                                     //
                          "path", path_name(r->path),                                         //
                          "isa", moe_context_isa(v->context),                                 //
                          "threads", (int)moe_context_threads(v->context),                    //
                          "act", case_act_name(r->act),                                       //
                          "gate", judge_gate_name(r->gate),                                   //
                          "error", r->judged ? cli_json_real(r->verdict.error) : json_null(), //
                          "limit", r->judged ? cli_json_real(r->verdict.limit) : json_null(), //
                          "pass", r->outcome == PASSED,                                       //
                          "refused", r->outcome == REFUSED,                                   //
                          "unreadable", r->outcome == UNREADABLE,                             //
                          "message", cli_json_text(r->message));
    if (o && r->has_interval &&
        json_object_set_new(o, "interval", interval_json(&r->interval)) != 0) {
        json_decref(o);
        return NULL;
    }
    return o;
}

/* ---- all files ----------------------------------------------------------------------------- */

static int exit_code(const verify *v)
{
    if (v->count[UNREADABLE]) return CLI_USAGE;
    if (v->count[REFUSED]) return CLI_REFUSED;
    return v->count[FAILED] ? CLI_FAILED : CLI_OK;
}

static int verify_all(verify *v, char **files, size_t n)
{
    report r;
    for (size_t i = 0; i < n; i++) {
        verify_file(v, files[i], &r);
        v->count[r.outcome]++;
        if (v->cli.json) {
            if (json_array_append_new(v->cases, report_json(v, &r)) != 0)
                return cli_failure(&v->cli, "out of memory");
            continue;
        }
        print_report(&r, v->candidate != NULL);
        if (!cli_flush()) return CLI_FAILED; /* nobody reads on */
    }
    size_t failed = n - v->count[PASSED];
    if (!v->cli.json) {
        printf("%zu passed, %zu failed\n", v->count[PASSED], failed);
        return exit_code(v);
    }
    int code = cli_print_json(&v->cli, json_pack("{s:O, s:I, s:I}", "cases", v->cases, "passed",
                                                 (json_int_t)v->count[PASSED], "failed",
                                                 (json_int_t)failed));
    return code ? code : exit_code(v);
}

static int parse(verify *v)
{
    for (int opt; (opt = cli_next(&v->cli)) != CLI_END;) {
        switch (opt) {
        case OPT_GATE:
            if (!judge_gate_from_name(optarg, &v->gate))
                return cli_usage_error(
                    &v->cli, "--gate %s: must be tight, strict, upstream or bound", optarg);
            break;
        case OPT_CANDIDATE: v->candidate = optarg; break;
        case OPT_PATH:
            if (!path_from_name(optarg, &v->path))
                return cli_usage_error(&v->cli, "--path %s: must be raw or packed", optarg);
            break;
        default: return CLI_STOP;
        }
    }
    if (optind == v->cli.argc) return cli_usage_error(&v->cli, "no FILE given");
    if (v->candidate && v->cli.argc - optind != 1)
        return cli_usage_error(&v->cli, "--candidate takes exactly one FILE");
    if (v->candidate && v->path == PATH_BOTH) v->path = PATH_RAW; /* its own result is not used */
    return CLI_END;
}

int cmd_verify(int argc, char **argv)
{
    verify v = {
        .cli = {.command = "verify",
                .help = HELP,
                .options = OPTIONS,
                .operand = "FILE",
                .argc = argc,
                .argv = argv},
        .gate = JUDGE_STRICT,
        .path = PATH_BOTH,
    };
    if (parse(&v) == CLI_STOP) return v.cli.exit_code;
    int code = cli_context(&v.cli, &v.context);
    if (code != CLI_OK) return code;
    v.cases = json_array();
    code = v.cases ? verify_all(&v, argv + optind, (size_t)(argc - optind))
                   : cli_failure(&v.cli, "out of memory");
    json_decref(v.cases);
    moe_context_destroy(v.context);
    return code;
}
