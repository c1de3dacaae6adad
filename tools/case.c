/* SPDX-License-Identifier: Apache-2.0 */
/* case.c - reads one call of the operator from a safetensors file.
 *
 * Owns the mapping from names (of tensors, metadata keys, element types, enumerators) to
 * moe_tkg_args.  Refuses what cannot be said in moe_tkg_args at all: numbers that do not parse,
 * element sizes that disagree, a file without hidden_input or weights.  Everything that can be said
 * goes to the operator, which judges it; what it refuses by its description alone is not read. */
#define _GNU_SOURCE 1

#include "case.h"

#include "checked.h"
#include "io/io_error.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ALIGNMENT = 64 };

typedef struct name_value {
    const char *name;
    int value;
} name_value;

static const name_value DTYPES[] = {
    {"bf16", MOE_BF16},
    {"f16", MOE_F16},
    {"fp16", MOE_F16},
    {"f32", MOE_F32},
    {"fp32", MOE_F32},
    {"fp8_e4m3", MOE_E4M3_IEEE},
    {"e4m3_ieee", MOE_E4M3_IEEE},
    {"fp8_e4m3fn", MOE_E4M3FN},
    {"e4m3fn", MOE_E4M3FN},
    {"e8m0", MOE_E8M0},
    {"mxfp4_x4", MOE_MXFP4_X4},
    {"mxfp8_x4", MOE_MXFP8_X4},
    {"i32", MOE_I32},
    {"u32", MOE_U32},
    {"i64", MOE_I64},
    {NULL, 0},
};

static const name_value SCALINGS[] = {
    {"NO_SCALE", MOE_NO_SCALE},       {"POST_SCALE", MOE_POST_SCALE},
    {"PRE_SCALE", MOE_PRE_SCALE},     {"PRE_SCALE_DELAYED", MOE_PRE_SCALE_DELAYED},
    {"INPUT_SCALE", MOE_INPUT_SCALE}, {NULL, 0},
};

static const name_value ACTIVATIONS[] = {
    {"silu", MOE_SILU}, {"gelu", MOE_GELU},     {"gelu_tanh", MOE_GELU_TANH}, {"swish", MOE_SWISH},
    {"relu", MOE_RELU}, {"swiglu", MOE_SWIGLU}, {"relu2", MOE_RELU2},         {NULL, 0},
};

static const name_value ACT_MODES[] = {
    {"default", MOE_ACT_DEFAULT},
    {"exact", MOE_ACT_EXACT},
    {"mxfp8", MOE_ACT_MXFP8},
    {"int8", MOE_ACT_INT8},
    {NULL, 0},
};

static int value_of(const name_value *table, const char *name)
{
    for (; table->name; table++)
        if (strcmp(table->name, name) == 0) return table->value;
    return CASE_FOREIGN;
}

/* Where each parameter of the operator lives in moe_tkg_args. */
typedef struct parameter {
    const char *name;
    size_t offset;
} parameter;

#define PARAMETER(name)                                                                            \
    {                                                                                              \
#name, offsetof(moe_tkg_args, name)                                                        \
    }

static const parameter TENSORS[CASE_MAX_TENSORS] = {
    PARAMETER(hidden_input), /* the first REQUIRED_TENSORS must be in every file */
    PARAMETER(expert_gate_up_weights),
    PARAMETER(expert_down_weights),
    PARAMETER(expert_affinities),
    PARAMETER(expert_index),
    PARAMETER(rank_id),
    PARAMETER(expert_gate_up_bias),
    PARAMETER(expert_down_bias),
    PARAMETER(expert_gate_up_weights_scale),
    PARAMETER(expert_down_weights_scale),
    PARAMETER(hidden_input_scale),
    PARAMETER(gate_up_input_scale),
    PARAMETER(down_input_scale),
    PARAMETER(expert_affinities_eager),
};

enum { REQUIRED_TENSORS = 3 };

static const parameter FLAGS[] = {
    PARAMETER(is_all_expert),         PARAMETER(mask_unselected_experts), PARAMETER(output_in_sbuf),
    PARAMETER(is_all_expert_dynamic), PARAMETER(skip_invalid_experts),
};

static const parameter FLOATS[] = {
    PARAMETER(gate_clamp_upper_limit), PARAMETER(gate_clamp_lower_limit),
    PARAMETER(up_clamp_upper_limit),   PARAMETER(up_clamp_lower_limit),
    PARAMETER(swiglu_alpha),           PARAMETER(swiglu_up_offset),
    PARAMETER(act_clamp_upper_limit),
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A file on its way into a case. */
typedef struct loader {
    const char *path; /* for messages */
    const st_file *file;
    moe_case *c;
    io_error *error;
} loader;

__attribute__((format(printf, 2, 3))) static bool unreadable(loader *l, const char *format, ...)
{
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    io_fail(l->error, IO_E_FORMAT, l->path, "%s", text);
    return false;
}

static bool out_of_memory(loader *l, size_t bytes)
{
    io_fail(l->error, IO_E_NOMEM, l->path, "no memory for %zu bytes of tensors", bytes);
    return false;
}

static void *field(loader *l, size_t offset)
{
    return (char *)&l->c->args + offset;
}

/* ---- scalars ------------------------------------------------------------------------------- */

static bool not_parsed(loader *l, const char *key, const char *text, const char *wanted)
{
    return unreadable(l, "metadata %s = \"%.80s\": must be %s", key, text, wanted);
}

/* strtod and its kin skip leading space and accept an empty string; a value of ours has neither. */
static bool parsed(const char *text, const char *end)
{
    return *text && !strchr(" \t\n\v\f\r", *text) && *end == '\0' && errno != ERANGE;
}

static bool read_whole(loader *l, const char *key, const char *text, long long *value)
{
    char *end;
    errno = 0;
    *value = strtoll(text, &end, 10);
    return parsed(text, end) || not_parsed(l, key, text, "an integer");
}

/* That a flag is 0 or 1 is for the operator to say; what does not fit stays what it is: neither. */
static bool read_flag(loader *l, const char *key, int32_t *flag)
{
    const char *text = st_metadata(l->file, key);
    long long value;
    if (!text) return true;
    if (!read_whole(l, key, text, &value)) return false;
    *flag = value < INT32_MIN ? INT32_MIN : value > INT32_MAX ? INT32_MAX : (int32_t)value;
    return true;
}

/* NaN and infinities parse: whether a parameter takes them is for the operator to say. */
static bool read_float(loader *l, const char *key, moe_optional_float *value)
{
    const char *text = st_metadata(l->file, key);
    if (!text) return true;
    char *end;
    errno = 0;
    float f = strtof(text, &end);
    if (errno == ERANGE && fabsf(f) < 1.0f) errno = 0; /* too small for a float is not too wild */
    if (!parsed(text, end)) return not_parsed(l, key, text, "a number that fits in a float");
    *value = moe_given_float(f);
    return true;
}

static bool read_int(loader *l, const char *key, moe_optional_int *value)
{
    const char *text = st_metadata(l->file, key);
    if (!text) return true;
    long long i;
    if (!read_whole(l, key, text, &i)) return false;
    *value = moe_given_int(i);
    return true;
}

/* A tolerance decides over pass and fail, so one that would let everything pass is no tolerance. */
static bool read_tolerance(loader *l, const char *key, double *value)
{
    const char *text = st_metadata(l->file, key);
    *value = (double)NAN;
    if (!text) return true;
    char *end;
    errno = 0;
    double d = strtod(text, &end);
    if (!parsed(text, end) || !isfinite(d) || d < 0)
        return not_parsed(l, key, text, "a finite number >= 0");
    *value = d;
    return true;
}

static int read_name(loader *l, const char *key, const name_value *table, int absent)
{
    const char *text = st_metadata(l->file, key);
    if (!text) return absent;
    int value = value_of(table, text);
    if (value == CASE_FOREIGN && !l->c->foreign[0])
        snprintf(l->c->foreign, sizeof l->c->foreign, "%s = %.40s", key, text);
    return value;
}

static bool read_scalars(loader *l)
{
    moe_case *c = l->c;
    moe_tkg_args *a = &c->args;
    /* The only scalar without a default: either mode could run on the tensors of the other. */
    if (!st_metadata(l->file, "is_all_expert"))
        return unreadable(l, "metadata is_all_expert is missing");
    for (size_t i = 0; i < COUNT(FLAGS); i++)
        if (!read_flag(l, FLAGS[i].name, field(l, FLAGS[i].offset))) return false;
    for (size_t i = 0; i < COUNT(FLOATS); i++)
        if (!read_float(l, FLOATS[i].name, field(l, FLOATS[i].offset))) return false;
    a->expert_affinities_scaling_mode =
        (moe_affinity_scale)read_name(l, "expert_affinities_scaling_mode", SCALINGS, MOE_NO_SCALE);
    a->activation_fn = (moe_activation)read_name(l, "activation_fn", ACTIVATIONS, MOE_SILU);
    a->output_dtype = (moe_dtype)read_name(l, "output_dtype", DTYPES, MOE_DTYPE_NONE);
    a->act_mode = (moe_act_mode)read_name(l, "act_mode", ACT_MODES, MOE_ACT_DEFAULT);
    return read_int(l, "block_size", &a->block_size) && read_tolerance(l, "atol", &c->atol) &&
           read_tolerance(l, "rtol_tight", &c->rtol_tight) &&
           read_tolerance(l, "rtol_strict", &c->rtol_strict) &&
           read_tolerance(l, "rtol_upstream", &c->rtol_upstream);
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* What a stored type is when no metadata says otherwise.  Raw bytes are taken for a scale only
 * where only a scale fits. */
static int stored_dtype(const st_tensor *t)
{
    size_t length = strlen(t->name);
    bool scale = length > 6 && strcmp(t->name + length - 6, "_scale") == 0;
    switch (t->dtype) {
    case ST_BF16: return MOE_BF16;
    case ST_F16: return MOE_F16;
    case ST_F32: return MOE_F32;
    case ST_F8_E4M3: return MOE_E4M3FN;
    case ST_F8_E8M0: return MOE_E8M0;
    case ST_U8: return scale ? MOE_E8M0 : CASE_FOREIGN;
    case ST_I32: return MOE_I32;
    case ST_U32: return MOE_U32;
    case ST_I64: return MOE_I64;
    default: return CASE_FOREIGN;
    }
}

static bool find_dtype(loader *l, const st_tensor *t, moe_dtype *dtype)
{
    char key[64];
    snprintf(key, sizeof key, "dtype.%s", t->name);
    *dtype = (moe_dtype)read_name(l, key, DTYPES, stored_dtype(t));
    if ((int)*dtype == CASE_FOREIGN) {
        if (!l->c->foreign[0])
            snprintf(l->c->foreign, sizeof l->c->foreign, "%s stored as %s", t->name,
                     st_dtype_name(t->dtype));
        return true;
    }
    size_t bits = moe_dtype_size(*dtype) * 8;
    if (bits == st_dtype_bits(t->dtype)) return true;
    return unreadable(l, "metadata %s: elements of %zu bits, but they are stored as %s", key, bits,
                      st_dtype_name(t->dtype));
}

static void *read_bytes(loader *l, const st_tensor *t)
{
    size_t size;
    void *data = NULL;
    if (checked_round_up(t->bytes ? t->bytes : 1, ALIGNMENT, &size))
        data = aligned_alloc(ALIGNMENT, size);
    if (!data) {
        out_of_memory(l, t->bytes);
        return NULL;
    }
    if (st_read(l->file, t, data, l->error) == IO_OK) return data;
    free(data);
    return NULL;
}

/* All of a parameter but its data. */
static bool describe_tensor(loader *l, size_t i)
{
    const st_tensor *t = st_find(l->file, TENSORS[i].name);
    if (!t) return true;
    moe_tensor *tensor = &l->c->tensor[i];
    if (!find_dtype(l, t, &tensor->dtype)) return false;
    tensor->rank = t->rank; /* a rank past MOE_MAX_RANK is the operator's to refuse */
    for (int d = 0; d < t->rank && d < MOE_MAX_RANK; d++) tensor->shape[d] = t->shape[d];
    const moe_tensor **parameter_slot = field(l, TENSORS[i].offset);
    *parameter_slot = tensor;
    return true;
}

static bool describe_expected(loader *l)
{
    const st_tensor *t = st_find(l->file, "expected");
    if (!t) return true;
    if (t->dtype != ST_F32)
        return unreadable(l, "tensor expected is %s: must be F32", st_dtype_name(t->dtype));
    l->c->expected_count = t->bytes / sizeof(float);
    l->c->expected_rank = t->rank;
    memcpy(l->c->expected_shape, t->shape, sizeof t->shape);
    return true;
}

static bool describe(loader *l)
{
    int32_t layout = MOE_LAYOUT_HBM;
    for (size_t i = 0; i < REQUIRED_TENSORS; i++)
        if (!st_find(l->file, TENSORS[i].name))
            return unreadable(l, "tensor %s is missing", TENSORS[i].name);
    for (size_t i = 0; i < COUNT(TENSORS); i++)
        if (!describe_tensor(l, i)) return false;
    if (!describe_expected(l) || !read_flag(l, "input_in_sbuf", &layout)) return false;
    l->c->tensor[0].layout = (moe_layout)layout;
    return true;
}

/* Whether the operator refuses the call whatever the data are, in every mode that the caller may
 * yet ask for. */
static bool is_refused(const moe_case *c)
{
    moe_tkg_args args = c->args;
    moe_tensor output;
    size_t bytes;
    args.act_mode = MOE_ACT_DEFAULT;
    return moe_tkg_output(&args, &output, &bytes) != MOE_OK;
}

/* A sparse file may claim more than the machine has; Linux would promise the memory and kill us
 * on touching it. */
static bool fits_in_memory(loader *l)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    size_t total = 0, machine;
    if (pages <= 0 || page <= 0 || !checked_mul((size_t)pages, (size_t)page, &machine)) return true;
    for (size_t i = 0; i <= COUNT(TENSORS); i++) {
        const char *name = i < COUNT(TENSORS) ? TENSORS[i].name : "expected";
        const st_tensor *t = st_find(l->file, name);
        if (t && !checked_add(total, t->bytes, &total)) return out_of_memory(l, SIZE_MAX);
    }
    return total <= machine || out_of_memory(l, total);
}

static bool read_data(loader *l)
{
    moe_case *c = l->c;
    for (size_t i = 0; i < COUNT(TENSORS); i++) {
        const st_tensor *t = st_find(l->file, TENSORS[i].name);
        if (!t) continue;
        c->tensor[i].data = c->data[i] = read_bytes(l, t);
        if (!c->data[i]) return false;
        c->bytes[i] = t->bytes;
    }
    const st_tensor *t = st_find(l->file, "expected");
    if (t) c->expected = read_bytes(l, t);
    return !t || c->expected;
}

static io_status load(loader *l)
{
    l->c->args = moe_tkg_args_init();
    bool ok = read_scalars(l) && describe(l);
    if (ok && !is_refused(l->c)) ok = fits_in_memory(l) && read_data(l);
    return ok ? IO_OK : l->error->status;
}

io_status case_load(const char *path, moe_case *c, io_error *error)
{
    st_file *file;
    memset(c, 0, sizeof *c);
    io_status status = st_open(path, &file, error);
    if (status == IO_OK) status = load(&(loader){path, file, c, error});
    st_close(file);
    return status;
}

io_status case_load_memory(const void *bytes, size_t size, moe_case *c, io_error *error)
{
    st_file *file;
    memset(c, 0, sizeof *c);
    io_status status = st_open_memory(bytes, size, &file, error);
    if (status == IO_OK) status = load(&(loader){"(memory)", file, c, error});
    st_close(file);
    return status;
}

void case_free(moe_case *c)
{
    for (size_t i = 0; i < CASE_MAX_TENSORS; i++) free(c->data[i]);
    free(c->expected);
    memset(c, 0, sizeof *c);
}

/* ---- what a case asks for ------------------------------------------------------------------ */

bool case_is_mx(const moe_tkg_args *args)
{
    moe_dtype dtype = args->expert_gate_up_weights->dtype;
    return dtype == MOE_MXFP4_X4 || dtype == MOE_MXFP8_X4;
}

bool case_expects_shape(const moe_case *c, const moe_tensor *output)
{
    bool same = c->expected_rank == output->rank;
    for (int d = 0; same && d < output->rank; d++) same = c->expected_shape[d] == output->shape[d];
    return same;
}

void case_refusal(const moe_case *c, moe_status status, char *text, size_t size)
{
    if (status == MOE_E_BAD_ENUM && c->foreign[0])
        snprintf(text, size, "%s: not one the operator takes", c->foreign);
    else
        snprintf(text, size, "%s", moe_last_error());
}

bool case_act_from_name(const char *text, moe_act_mode *mode)
{
    int value = value_of(ACT_MODES, text);
    if (value == CASE_FOREIGN) return false;
    *mode = (moe_act_mode)value;
    return true;
}

const char *case_act_name(moe_act_mode mode)
{
    for (const name_value *m = ACT_MODES; m->name; m++)
        if (m->value == (int)mode) return m->name;
    return "unknown";
}

moe_act_mode case_act_in_use(const moe_tkg_args *args)
{
    if (args->act_mode != MOE_ACT_DEFAULT) return args->act_mode;
    return case_is_mx(args) ? MOE_ACT_MXFP8 : MOE_ACT_EXACT;
}

moe_status case_compute(moe_context *context, const moe_tkg_args *args, moe_tensor *output,
                        size_t *bytes)
{
    memset(output, 0, sizeof *output);
    moe_status status = moe_tkg_output(args, output, bytes);
    if (status != MOE_OK) return status;
    size_t size;
    void *data = NULL;
    if (checked_round_up(*bytes ? *bytes : 1, ALIGNMENT, &size))
        data = aligned_alloc(ALIGNMENT, size);
    if (!data) return MOE_E_NOMEM;
    status = moe_tkg(context, args, data, *bytes);
    if (status == MOE_OK)
        output->data = data;
    else
        free(data);
    return status;
}
