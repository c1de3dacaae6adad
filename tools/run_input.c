/* SPDX-License-Identifier: Apache-2.0 */
/* run_input.c - reads and converts.
 *
 * Owns what the tensors must be called and look like.  Whether ids are in range the operator says. */
#include "run_input.h"

#include "numeric.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct reader {
    st_file *file;
    const char *path;
    cli_error *error;
} reader;

/* ---- messages -------------------------------------------------------------------------------- */

static int unreadable(const reader *r, io_status status, const io_error *error)
{
    return cli_fail(r->error, status == IO_E_NOMEM ? CLI_FAILED : CLI_USAGE, "%s", error->text);
}

static int no_memory(const reader *r)
{
    return cli_fail(r->error, CLI_FAILED, "out of memory");
}

static bool is_float(st_dtype dtype)
{
    return dtype == ST_F32 || dtype == ST_F16 || dtype == ST_BF16;
}

/* The only matrix of floats in the file, which may be what was meant; NULL if there are several. */
static const st_tensor *only_matrix(const st_file *file)
{
    const st_tensor *found = NULL;
    for (size_t i = 0; i < st_count(file); i++) {
        const st_tensor *t = st_at(file, i);
        if (t->rank != 2 || !is_float(t->dtype)) continue;
        if (found) return NULL;
        found = t;
    }
    return found;
}

static int missing(const reader *r, const char *name)
{
    const st_tensor *other = strcmp(name, "hidden") == 0 ? only_matrix(r->file) : NULL;
    if (other)
        cli_fail(r->error, CLI_REFUSED,
                 "%.480s: has no tensor 'hidden': its one matrix is called '%.100s'", r->path,
                 other->name);
    else
        cli_fail(r->error, CLI_REFUSED, "%.480s: has no tensor '%s'", r->path, name);
    return CLI_REFUSED;
}

/* "[5, 64]". */
static void shape_text(const st_tensor *t, char *text, size_t size)
{
    size_t n = (size_t)snprintf(text, size, "[");
    for (int d = 0; d < t->rank && n < size; d++)
        n += (size_t)snprintf(text + n, size - n, "%s%lld", d ? ", " : "", (long long)t->shape[d]);
    if (n < size) snprintf(text + n, size - n, "]");
}

/* ---- one tensor ------------------------------------------------------------------------------ */

/* Finds [rows, columns]; rows < 0: any number.  symbols: "[T, H]". */
static int find(const reader *r, const char *name, int64_t rows, int64_t columns,
                const char *symbols, const st_tensor **found)
{
    char shape[200];
    const st_tensor *t = st_find(r->file, name);
    if (!t) return missing(r, name);
    *found = t;
    if (t->rank == 2 && (rows < 0 || t->shape[0] == rows) && t->shape[1] == columns) return CLI_OK;
    shape_text(t, shape, sizeof shape);
    if (rows < 0)
        return cli_fail(r->error, CLI_REFUSED, "%.480s: %s is %s: must be %s, and here [T, %lld]",
                        r->path, name, shape, symbols, (long long)columns);
    return cli_fail(r->error, CLI_REFUSED, "%.480s: %s is %s: must be %s, and here [%lld, %lld]",
                    r->path, name, shape, symbols, (long long)rows, (long long)columns);
}

static int wrong_type(const reader *r, const st_tensor *t, const char *types)
{
    return cli_fail(r->error, CLI_REFUSED, "%.480s: %s is %s: must be %s", r->path, t->name,
                    st_dtype_name(t->dtype), types);
}

/* Reads t into *tensor as dtype, which has its element's size. */
static int read_tensor(const reader *r, const st_tensor *t, moe_dtype dtype, moe_tensor *tensor,
                       void **data)
{
    io_error error;
    *data = malloc(t->bytes + 1);
    if (!*data) return no_memory(r);
    io_status status = st_read(r->file, t, *data, &error);
    if (status != IO_OK) return unreadable(r, status, &error);
    *tensor = moe_tensor_2d(*data, dtype, t->shape[0], t->shape[1]);
    return CLI_OK;
}

static moe_dtype float_of(st_dtype dtype)
{
    return dtype == ST_F32 ? MOE_F32 : dtype == ST_F16 ? MOE_F16 : MOE_BF16;
}

static int read_floats(const reader *r, const st_tensor *t, moe_tensor *tensor, void **data)
{
    if (!is_float(t->dtype)) return wrong_type(r, t, "F32, F16 or BF16");
    return read_tensor(r, t, float_of(t->dtype), tensor, data);
}

static int read_ids(const reader *r, const st_tensor *t, moe_tensor *tensor, void **data)
{
    moe_dtype dtype = t->dtype == ST_I32   ? MOE_I32
                      : t->dtype == ST_I64 ? MOE_I64
                      : t->dtype == ST_U32 ? MOE_U32
                                           : MOE_DTYPE_NONE;
    if (dtype == MOE_DTYPE_NONE) return wrong_type(r, t, "I32, I64 or U32");
    return read_tensor(r, t, dtype, tensor, data);
}

/* ---- conversion ------------------------------------------------------------------------------ */

static float to_f32(const char *from, moe_dtype dtype)
{
    uint16_t half;
    float value;
    if (dtype == MOE_F32) return memcpy(&value, from, sizeof value), value;
    memcpy(&half, from, sizeof half);
    return dtype == MOE_F16 ? num_from_f16(half) : num_from_bf16(half);
}

/* Rounds to nearest, ties to even. */
static void from_f32(float value, moe_dtype dtype, char *to)
{
    if (dtype == MOE_F32) {
        memcpy(to, &value, sizeof value);
        return;
    }
    uint16_t half = dtype == MOE_F16 ? num_to_f16(value) : num_to_bf16(value);
    memcpy(to, &half, sizeof half);
}

static int convert(const reader *r, moe_dtype dtype, moe_tensor *tensor, void **data)
{
    if (dtype == MOE_DTYPE_NONE || dtype == tensor->dtype) return CLI_OK;
    size_t n = (size_t)tensor->shape[0] * (size_t)tensor->shape[1];
    size_t from = moe_dtype_size(tensor->dtype), to = moe_dtype_size(dtype);
    char *converted = n < SIZE_MAX / to ? malloc(n * to + 1) : NULL;
    if (!converted) return no_memory(r);
    for (size_t i = 0; i < n; i++)
        from_f32(to_f32((const char *)*data + i * from, tensor->dtype), dtype, converted + i * to);
    free(*data);
    *data = converted;
    tensor->data = converted;
    tensor->dtype = dtype;
    return CLI_OK;
}

/* ---- the file -------------------------------------------------------------------------------- */

static int read_file(const reader *r, const run_job *job, const moe_layer_info *layer,
                     run_input *in)
{
    const st_tensor *hidden = NULL, *ids = NULL, *weights = NULL;
    int code = find(r, "hidden", -1, layer->H, "[T, H]", &hidden);
    if (code == CLI_OK && job->experts_only) {
        int64_t T = hidden->shape[0];
        code = find(r, "topk_ids", T, layer->K, "[T, K]", &ids);
        if (code == CLI_OK) code = find(r, "topk_weights", T, layer->K, "[T, K]", &weights);
        if (code == CLI_OK) code = read_ids(r, ids, &in->ids, &in->data[1]);
        if (code == CLI_OK) code = read_floats(r, weights, &in->weights, &in->data[2]);
    }
    if (code == CLI_OK) code = read_floats(r, hidden, &in->hidden, &in->data[0]);
    return code == CLI_OK ? convert(r, job->hidden_dtype, &in->hidden, &in->data[0]) : code;
}

int run_input_read(const run_job *job, const moe_layer_info *layer, run_input *in, cli_error *error)
{
    io_error why;
    reader r = {.path = job->hidden, .error = error};
    io_status status = st_open(job->hidden, &r.file, &why);
    if (status != IO_OK) return unreadable(&r, status, &why);
    int code = read_file(&r, job, layer, in);
    st_close(r.file);
    return code;
}

void run_input_free(run_input *in)
{
    for (size_t i = 0; i < sizeof in->data / sizeof in->data[0]; i++) free(in->data[i]);
    *in = (run_input){0};
}
