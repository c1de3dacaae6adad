/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_experts.c - libFuzzer: any arguments of moe_experts_bytes and moe_experts_create.
 *
 * The first bytes of the input describe valid arguments, row-major matrices of any strides or the
 * operator's tensors; the rest are changes to them.  Every array then has exactly the bytes that
 * its description claims, in a block of its own, so that ASan sees a read outside; one that claims
 * too much has no data.  What is refused leaves no handle; what is packed computes the bits of the
 * same values packed from dense rows, or of the operator's tensors themselves. */
#include "fuzz_input.h"

#include "checked.h"
#include "layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MATRICES = 3, PARTS = 4, ARRAYS = MATRICES * PARTS, TENSORS = 6 };
enum { WEIGHTS, SCALE, BIAS, ROW_SCALE };
enum { MOST_BYTES = 1 << 21, MOST_PACKED = 1 << 22, MOST_POINTERS = 64, MOST_ARGS = 8192 };
enum { BLOCKS = 1024, MX_BLOCK = 32 };

/* ---- input ----------------------------------------------------------------------------------- */

/* A small number of either sign, or one at which something may wrap. */
static int64_t read_number(input *in)
{
    static const int64_t edges[] = {0,
                                    -1,
                                    INT32_MAX,
                                    INT32_MIN,
                                    UINT32_MAX,
                                    (int64_t)UINT32_MAX + 1,
                                    INT64_MAX,
                                    INT64_MAX - 3,
                                    INT64_MIN,
                                    (int64_t)1 << 62,
                                    (int64_t)1 << 61,
                                    (int64_t)1 << 40,
                                    INT64_MAX / 64 + 1,
                                    512,
                                    4096,
                                    1 << 20};
    uint8_t kind = next(in), value = next(in);
    return kind % 4 == 3 ? edges[value % COUNT(edges)] : (int8_t)value;
}

/* ---- arguments to pack ----------------------------------------------------------------------- */

typedef enum memory_kind {
    ONE_BLOCK,
    POINTERS,
    ONE_POINTER_NULL,
    BLOCK_AND_POINTERS,
    NO_MEMORY,
    MEMORY_KINDS
} memory_kind;

typedef struct subject {
    moe_experts_args args;
    moe_tensor tensor[TENSORS];
    struct {
        memory_kind kind;
        size_t shift; /* bytes that its memory is off */
    } array[ARRAYS], of_tensor[TENSORS];
    uint8_t seed;
    moe_activation activation; /* of the call */
    moe_act_mode act_mode;
    bool claims_too_much; /* so that nothing has data */
    bool fetched;         /* packed once more, slice by slice */
    size_t blocks;
    void *block[BLOCKS];
} subject;

static moe_matrix *matrix_of(moe_experts_args *a, size_t i)
{
    return i / PARTS == 0 ? &a->gate : i / PARTS == 1 ? &a->up : &a->down;
}

static moe_array *array_of(moe_experts_args *a, size_t i)
{
    moe_matrix *m = matrix_of(a, i);
    moe_array *const arrays[PARTS] = {&m->weights, &m->scale, &m->bias, &m->row_scale};
    return arrays[i % PARTS];
}

static bool is_pairs(moe_dtype dtype)
{
    return dtype == MOE_E2M1_X2 || dtype == MOE_INT4_X2;
}

static const moe_tensor **slot_of(moe_experts_args *a, size_t i)
{
    const moe_tensor **const slots[TENSORS] = {
        &a->expert_gate_up_weights,       &a->expert_down_weights,
        &a->expert_gate_up_bias,          &a->expert_down_bias,
        &a->expert_gate_up_weights_scale, &a->expert_down_weights_scale};
    return slots[i];
}

/* An array's rows and columns; columns 0: an array [rows]. */
static void shape_of(moe_experts_args *a, size_t i, size_t *rows, size_t *columns)
{
    bool down = i / PARTS == 2;
    const moe_matrix *m = matrix_of(a, i);
    size_t k = (size_t)(down ? a->I : a->H), of = moe_dtype_k(m->weights.dtype),
           scale_k = m->scale.dtype == MOE_E8M0 ? MX_BLOCK : (size_t)m->scale_k;
    *rows = (size_t)(down ? a->H : a->I);
    *columns = 0;
    if (i % PARTS == WEIGHTS) *columns = of > 1 ? k / of : k;
    if (i % PARTS != SCALE) return;
    if (m->scale_k > 0 || m->scale.dtype == MOE_E8M0) *columns = (k - 1) / scale_k + 1;
    if (m->scale_rows > 0) *rows = (*rows - 1) / (size_t)m->scale_rows + 1;
}

/* Valid strides: dense, transposed, padded, between others, one for all experts or rows. */
static void lay_out(moe_experts_args *args, size_t i, size_t layout)
{
    moe_array *a = array_of(args, i);
    size_t rows, columns, unit = moe_dtype_size(a->dtype);
    shape_of(args, i, &rows, &columns);
    size_t k = columns == 0 ? 1 : columns, row = k, column = 1, expert = rows * k;
    bool pairs = is_pairs(a->dtype);
    switch (layout) {
    case 1: /* transposed, where pairs of codes allow that */
        if (!pairs) column = rows, row = 1;
        break;
    case 2: /* odd gaps everywhere */
        column = pairs ? 1 : 3;
        row = k * column + 5;
        expert = rows * row + 7;
        break;
    case 3: row = 2 * k, expert = 2 * rows * k; break;      /* interleaved */
    case 4: expert = 2 * rows * k; break;                   /* fused */
    case 5: expert = 0; break;                              /* every expert the same */
    case 6: row = columns == 0 ? 0 : row; break;            /* one value */
    case 7: expert = k, row = k * (size_t)args->E_L; break; /* experts inside rows */
    default: break;
    }
    a->expert_stride = (int64_t)(expert * unit);
    a->row_stride = (int64_t)(row * unit);
    a->column_stride = (int64_t)(column * unit);
}

/* Weights with scales of blocks. */
typedef struct scaled {
    moe_dtype weights, scale;
    int32_t scale_k, scale_rows;
    int64_t k; /* what H or I is a multiple of */
} scaled;

static const scaled SCALED[] = {
    {MOE_E2M1_X2, MOE_E8M0, 0, 0, 32},          {MOE_E4M3FN, MOE_E8M0, 32, 0, 32},
    {MOE_E4M3FN, MOE_F32, 128, 128, 1},         {MOE_E4M3FN, MOE_BF16, 128, 5, 1},
    {MOE_E2M1_X2, MOE_E4M3FN, 16, 0, 16},       {MOE_INT4_X2, MOE_BF16, 32, 0, 32},
    {MOE_INT4_X2, MOE_F16, 64, 0, 64},          {MOE_INT4_X2, MOE_BF16, 128, 0, 128},
    {MOE_Q8_0, MOE_DTYPE_NONE, 0, 0, 32},       {MOE_Q4_0, MOE_DTYPE_NONE, 0, 0, 32},
    {MOE_Q4_K, MOE_DTYPE_NONE, 0, 0, 256},      {MOE_Q5_K, MOE_DTYPE_NONE, 0, 0, 256},
    {MOE_Q6_K, MOE_DTYPE_NONE, 0, 0, 256},      {MOE_GGML_MXFP4, MOE_DTYPE_NONE, 0, 0, 32},
    {MOE_GGML_NVFP4, MOE_DTYPE_NONE, 0, 0, 64},
};

/* H or I that a matrix of these weights takes. */
static int64_t size_of(input *in, bool is_scaled, size_t which)
{
    int64_t k = is_scaled ? SCALED[which % COUNT(SCALED)].k : 1;
    return k == 1 ? 1 + (int64_t)pick(in, 72) : k * (1 + (int64_t)pick(in, 3));
}

static void make_matrices(subject *s, input *in, bool is_scaled, bool ungated, bool row_scale)
{
    static const moe_dtype floats[] = {MOE_BF16, MOE_F16, MOE_F32},
                           plain[] = {MOE_BF16, MOE_F16, MOE_F32, MOE_E4M3_IEEE, MOE_E4M3FN};
    moe_experts_args *a = &s->args;
    size_t gate_up = next(in), down = next(in), scale = next(in), bias = next(in);
    bool down_scaled = is_scaled && down < 192;
    a->E_L = 1 + (int64_t)pick(in, 4);
    a->H = size_of(in, is_scaled, gate_up);
    a->I = size_of(in, down_scaled, down);
    size_t layout = next(in), pointers = next(in);
    for (size_t i = ungated ? PARTS : 0; i < ARRAYS; i++) {
        bool is_down = i / PARTS == 2, blocks = is_down ? down_scaled : is_scaled;
        size_t m = is_down ? down : gate_up;
        const scaled *of = &SCALED[m % COUNT(SCALED)];
        moe_array *array = array_of(a, i);
        if (i % PARTS == WEIGHTS) {
            array->dtype = blocks ? of->weights : plain[m % COUNT(plain)];
            matrix_of(a, i)->scale_k = blocks ? of->scale_k : 0;
            matrix_of(a, i)->scale_rows = blocks ? of->scale_rows : 0;
        } else if (i % PARTS == SCALE && blocks) {
            array->dtype = of->scale;
        } else if (i % PARTS == ROW_SCALE) {
            if (blocks && row_scale) array->dtype = floats[scale % COUNT(floats)];
        } else if (i % PARTS == SCALE ? scale % 4 > 0 : bias % 4 > 0) {
            array->dtype = floats[(i % PARTS == SCALE ? scale : bias) % 4 - 1];
        }
        if (array->dtype == MOE_DTYPE_NONE) continue;
        /* one layout for all, or one for each */
        lay_out(a, i, layout % 16 < 8 ? layout % 8 : (layout / 16 + i) % 8);
        s->array[i].kind = pointers >> (i % 8) & 1 ? POINTERS : ONE_BLOCK;
    }
}

static void make_tensors(subject *s, input *in, bool mx)
{
    static const moe_dtype floats[] = {MOE_BF16, MOE_F16, MOE_F32},
                           plain[] = {MOE_BF16, MOE_F16, MOE_F32, MOE_E4M3_IEEE, MOE_E4M3FN},
                           words[] = {MOE_MXFP4_X4, MOE_MXFP8_X4};
    size_t gate_up = next(in), down = next(in), scale = next(in), bias = next(in);
    int64_t E = 1 + (int64_t)pick(in, 3), H = 1 + (int64_t)pick(in, 72),
            I = 1 + (int64_t)pick(in, 72);
    moe_dtype b = floats[bias % COUNT(floats)];
    moe_tensor *t = s->tensor;
    if (mx) {
        int64_t P = (I + 31) / 32 * 8 + (bias & 32 ? 8 : 0);
        moe_dtype w = words[gate_up % COUNT(words)], d = words[down % COUNT(words)];
        H = 512;
        t[0] = moe_tensor_nd(NULL, w, 5, (int64_t[]){E, 128, 2, 1, I});
        t[1] = moe_tensor_nd(NULL, d, 4, (int64_t[]){E, P, 1, H});
        t[2] = moe_tensor_nd(NULL, b, 5, (int64_t[]){E, P, 2, 1, 4});
        t[4] = moe_tensor_nd(NULL, MOE_E8M0, 5, (int64_t[]){E, 16, 2, 1, I});
        t[5] = moe_tensor_nd(NULL, MOE_E8M0, 4, (int64_t[]){E, P / 8, 1, H});
    } else {
        bool one = scale & 2;
        t[0] = moe_tensor_nd(NULL, plain[gate_up % COUNT(plain)], 4, (int64_t[]){E, H, 2, I});
        t[1] = moe_tensor_nd(NULL, plain[down % COUNT(plain)], 3, (int64_t[]){E, I, H});
        t[2] = moe_tensor_nd(NULL, b, 3, (int64_t[]){E, 2, I});
        t[4] = moe_tensor_nd(NULL, MOE_F32, 3, (int64_t[]){E, 2, one ? 1 : I});
        t[5] = moe_tensor_2d(NULL, MOE_F32, E, one ? 1 : H);
    }
    t[3] = moe_tensor_2d(NULL, b, E, H);
    for (size_t i = 0; i < TENSORS; i++) {
        bool given = i < 2 || (i < 4 ? bias & 16 : mx || scale & 1);
        *slot_of(&s->args, i) = given ? &t[i] : NULL;
    }
}

static void make_subject(subject *s, input *in)
{
    memset(s, 0, sizeof *s);
    s->args = moe_experts_args_init();
    uint8_t what = next(in);
    s->seed = next(in);
    static const moe_activation activations[] = {MOE_SILU,  MOE_GELU, MOE_GELU_TANH,
                                                 MOE_SWISH, MOE_RELU, MOE_RELU2};
    s->activation = activations[pick(in, COUNT(activations))];
    s->act_mode = (moe_act_mode)pick(in, MOE_ACT_INT8 + 1);
    if (what & 4) s->args.packing = MOE_PACK_LOSSLESS;
    if (what & 1)
        make_tensors(s, in, what & 2);
    else
        make_matrices(s, in, what & 2, what & 8, what & 16);
    s->fetched = what & 32;
}

/* ---- changes --------------------------------------------------------------------------------- */

static void change_array(subject *s, input *in)
{
    size_t i = pick(in, ARRAYS);
    moe_array *a = array_of(&s->args, i);
    uint8_t field = next(in);
    int64_t number = read_number(in);
    switch (field % 8) {
    case 0: a->dtype = (moe_dtype)number; break;
    case 1: a->expert_stride = number; break;
    case 2: a->row_stride = number; break;
    case 3: a->column_stride = number; break;
    case 4: s->array[i].kind = (memory_kind)((uint64_t)number % MEMORY_KINDS); break;
    case 5: s->array[i].shift = (uint64_t)number % 8; break;
    default: lay_out(&s->args, i, (uint64_t)number % 8); break;
    }
}

static void change_tensor(subject *s, input *in)
{
    size_t i = pick(in, TENSORS);
    moe_tensor *t = &s->tensor[i];
    uint8_t field = next(in);
    int64_t number = read_number(in);
    switch (field % 12) {
    case 0: *slot_of(&s->args, i) = NULL; break;
    case 1: *slot_of(&s->args, i) = &s->tensor[(uint64_t)number % TENSORS]; break;
    case 2: t->dtype = (moe_dtype)number; break;
    case 3: t->layout = (moe_layout)number; break;
    case 4: t->rank = (int32_t)number; break;
    case 5: s->of_tensor[i].kind = number % 2 != 0 ? NO_MEMORY : ONE_BLOCK; break;
    case 6: s->of_tensor[i].shift = (uint64_t)number % 8; break;
    default: t->shape[field / 12 % MOE_MAX_RANK] = number; break;
    }
}

static void change_scalar(moe_experts_args *a, input *in)
{
    uint8_t field = next(in);
    int64_t number = read_number(in);
    moe_matrix *m = matrix_of(a, field / 16 % MATRICES * PARTS);
    switch (field % 10) {
    case 8: m->scale_k = (int32_t)number; break;
    case 9: m->scale_rows = (int32_t)number; break;
    case 0: a->struct_size = sizeof *a + (size_t)number; break;
    case 1: a->packing = (moe_packing)number; break;
    case 2:
    case 3: a->E_L = number; break;
    case 4:
    case 5: a->H = number; break;
    default: a->I = number; break;
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* A block of n bytes that starts `shift` bytes into what malloc gives and ends where that ends. */
static unsigned char *take(subject *s, size_t n, size_t shift, bool calm)
{
    unsigned char *memory = malloc(n + shift);
    MUST(memory != NULL && s->blocks < BLOCKS);
    uint64_t state = s->seed + s->blocks * 77u;
    s->block[s->blocks++] = memory;
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint8_t byte = (uint8_t)(state >> 56);
        /* the sign and exponent of moderate numbers in wider types */
        memory[shift + i] = calm && i % 2 == 1 ? 0x3C | (byte & 0x81) : byte;
    }
    return memory + shift;
}

/* Bytes from the first element to the end of the last, of one expert or of all; false if the array
 * does not say so. */
static bool extent(subject *s, size_t i, bool all, size_t *bytes)
{
    const moe_array *a = array_of(&s->args, i);
    size_t rows, columns, n[3];
    shape_of(&s->args, i, &rows, &columns);
    if (s->args.E_L < 1 || s->args.H < 1 || s->args.I < 1) return false;
    if ((all && a->expert_stride < 0) || a->row_stride < 0 || (columns > 0 && a->column_stride < 0))
        return false;
    *bytes = moe_dtype_size(a->dtype);
    return checked_mul(all ? (size_t)s->args.E_L - 1 : 0, (size_t)a->expert_stride, &n[0]) &&
           checked_mul(rows - 1, (size_t)a->row_stride, &n[1]) &&
           checked_mul(columns == 0 ? 0 : columns - 1, (size_t)a->column_stride, &n[2]) &&
           checked_add(*bytes, n[0], bytes) && checked_add(*bytes, n[1], bytes) &&
           checked_add(*bytes, n[2], bytes) && *bytes <= PTRDIFF_MAX;
}

static bool fill_array(subject *s, size_t i, size_t *left)
{
    moe_array *a = array_of(&s->args, i);
    memory_kind kind = s->array[i].kind;
    bool all = kind == ONE_BLOCK || kind == BLOCK_AND_POINTERS, pointers = kind != ONE_BLOCK;
    size_t bytes, shift = s->array[i].shift, total;
    bool calm = s->seed & 1;
    if (kind == NO_MEMORY || a->dtype == MOE_DTYPE_NONE) return true;
    if (!extent(s, i, all, &bytes)) bytes = 1; /* to be refused, or ASan tells */
    if (pointers && (s->args.E_L < 1 || s->args.E_L > MOST_POINTERS)) return false;
    if (!checked_mul(bytes, pointers ? (size_t)s->args.E_L : 1, &total) || total > *left)
        return false;
    *left -= total;
    if (all) a->data = take(s, bytes, shift, calm);
    if (!pointers) return true;
    size_t E_L = (size_t)s->args.E_L;
    const void **experts = (const void **)(void *)take(s, E_L * sizeof *experts, 0, false);
    for (size_t e = 0; e < E_L; e++) experts[e] = take(s, bytes, shift, calm);
    if (kind == ONE_POINTER_NULL) experts[s->seed % E_L] = NULL;
    a->experts = experts;
    return true;
}

static bool fill_tensor(subject *s, size_t i, size_t *left)
{
    moe_tensor *t = &s->tensor[i];
    size_t bytes;
    if (s->of_tensor[i].kind == NO_MEMORY) return true;
    if (t->rank < 1 || t->rank > MOE_MAX_RANK ||
        !checked_shape(t->shape, (size_t)t->rank, moe_dtype_size(t->dtype), &bytes))
        bytes = 1;
    if (bytes > *left) return false;
    *left -= bytes;
    t->data = take(s, bytes, s->of_tensor[i].shift, s->seed & 1);
    return true;
}

/* Data for all that is described, or for nothing where that, or its packing, is too much. */
static void fill(subject *s)
{
    moe_experts_args plain = s->args;
    size_t left = MOST_BYTES, packed;
    plain.packing = MOE_PACK_PLAIN;
    plain.struct_size = sizeof plain;
    bool fits = moe_experts_bytes(NULL, &plain, &packed) != MOE_OK || packed <= MOST_PACKED;
    for (size_t i = 0; i < ARRAYS && fits; i++) fits = fill_array(s, i, &left);
    for (size_t i = 0; i < TENSORS && fits; i++) fits = fill_tensor(s, i, &left);
    s->claims_too_much = !fits;
    for (size_t i = 0; i < ARRAYS && !fits; i++)
        array_of(&s->args, i)->data = array_of(&s->args, i)->experts = NULL;
    for (size_t i = 0; i < TENSORS && !fits; i++) s->tensor[i].data = NULL;
}

static bool is_aligned(const void *at, moe_dtype dtype)
{
    bool blocks = dtype >= MOE_Q8_0 && dtype <= MOE_GGML_NVFP4;
    return at != NULL && (uintptr_t)at % (blocks ? 1 : moe_dtype_size(dtype)) == 0;
}

/* Of arguments that moe_experts_bytes takes: whether their pointers are all good. */
static bool has_good_pointers(moe_experts_args *a)
{
    for (size_t i = 0; i < TENSORS; i++) {
        const moe_tensor *t = *slot_of(a, i);
        if (t != NULL && !is_aligned(t->data, t->dtype)) return false;
    }
    for (size_t i = 0; i < ARRAYS; i++) {
        const moe_array *array = array_of(a, i);
        if (array->dtype == MOE_DTYPE_NONE) continue;
        if ((array->data != NULL) == (array->experts != NULL)) return false;
        if (array->data != NULL && !is_aligned(array->data, array->dtype)) return false;
        for (int64_t e = 0; array->experts != NULL && e < a->E_L; e++)
            if (!is_aligned(array->experts[e], array->dtype)) return false;
    }
    return true;
}

/* ---- properties ------------------------------------------------------------------------------ */

static moe_context *two_threads(void)
{
    static moe_context *context;
    moe_context_options options = moe_context_options_init();
    options.threads = 2;
    if (context == NULL) MUST(moe_context_create(&options, &context) == MOE_OK);
    return context;
}

/* The same values in dense rows, packed plainly. */
static moe_experts *pack_dense(subject *s)
{
    moe_experts_args dense = s->args;
    moe_experts *experts;
    dense.packing = MOE_PACK_PLAIN;
    dense.struct_size = sizeof dense;
    for (size_t i = 0; i < ARRAYS; i++) {
        const moe_array *from = array_of(&s->args, i);
        moe_array *to = array_of(&dense, i);
        size_t rows, columns, unit = moe_dtype_size(from->dtype), E_L = (size_t)dense.E_L;
        if (from->dtype == MOE_DTYPE_NONE) continue;
        shape_of(&dense, i, &rows, &columns);
        if (columns == 0) columns = 1;
        unsigned char *at = take(s, E_L * rows * columns * unit, 0, false);
        *to = (moe_array){.dtype = from->dtype,
                          .data = at,
                          .expert_stride = (int64_t)(rows * columns * unit),
                          .row_stride = (int64_t)(columns * unit),
                          .column_stride = (int64_t)unit};
        for (size_t n = 0; n < E_L * rows * columns; n++, at += unit) {
            size_t e = n / columns / rows;
            const char *base = from->experts != NULL
                                   ? from->experts[e]
                                   : (const char *)from->data + e * (size_t)from->expert_stride;
            base += n / columns % rows * (size_t)from->row_stride;
            if (columns > 1) base += n % columns * (size_t)from->column_stride;
            memcpy(at, base, unit);
        }
    }
    MUST(moe_experts_create(NULL, &dense, &experts) == MOE_OK);
    return experts;
}

/* A call through the handle, on one thread and on two, and through `other` or, without that, with
 * the operator's tensors. */
static void call(subject *s, const moe_experts *experts, const moe_experts *other)
{
    enum { T = 3, K = 2 };
    moe_experts_info info = {.struct_size = sizeof info};
    MUST(moe_experts_describe(experts, &info) == MOE_OK);
    size_t bytes = (size_t)(T * info.H) * sizeof(float);
    int32_t ids[T * K];
    for (size_t i = 0; i < T * K; i++) ids[i] = (int32_t)((int64_t)(i + s->seed) % info.E_L);
    moe_tensor hidden = moe_tensor_2d(take(s, bytes / 2, 0, true), MOE_BF16, T, info.H),
               index = moe_tensor_2d(ids, MOE_I32, T, K);
    moe_tkg_args args = moe_tkg_args_init();
    args.hidden_input = &hidden;
    args.expert_index = &index;
    args.output_dtype = MOE_F32;
    args.experts = experts;
    args.activation_fn = s->activation;
    args.act_mode = s->act_mode;
    unsigned char *out = malloc(bytes), *again = malloc(bytes);
    MUST(out != NULL && again != NULL);
    memset(out, 0xA5, bytes);
    memset(again, 0x5A, bytes);
    moe_status status = moe_tkg(NULL, &args, out, bytes);
    MUST(status == MOE_OK || (status == MOE_E_UNSUPPORTED && args.act_mode > MOE_ACT_EXACT));
    MUST(moe_tkg(two_threads(), &args, again, bytes) == status);
    if (status == MOE_OK) {
        MUST(memcmp(out, again, bytes) == 0); /* so that all of it was written */
        memset(again, 0x5A, bytes);
        args.experts = other;
        if (other == NULL) {
            args.expert_gate_up_weights = s->args.expert_gate_up_weights;
            args.expert_down_weights = s->args.expert_down_weights;
            args.expert_gate_up_bias = s->args.expert_gate_up_bias;
            args.expert_down_bias = s->args.expert_down_bias;
            args.expert_gate_up_weights_scale = s->args.expert_gate_up_weights_scale;
            args.expert_down_weights_scale = s->args.expert_down_weights_scale;
        }
        MUST(moe_tkg(NULL, &args, again, bytes) == MOE_OK);
        MUST(memcmp(out, again, bytes) == 0);
    }
    free(out);
    free(again);
}

/* Where the experts from first on are. */
static moe_status fetch(void *user, int64_t first, int64_t count, moe_experts_args *part)
{
    subject *s = user;
    MUST(part->E_L == count && count >= 1 && first + count <= s->args.E_L);
    for (size_t i = 0; i < ARRAYS; i++) {
        moe_array *to = array_of(part, i);
        *to = *array_of(&s->args, i);
        if (to->experts != NULL) to->experts += first;
        if (to->data != NULL)
            to->data = (const char *)to->data + (size_t)first * (size_t)to->expert_stride;
    }
    return MOE_OK;
}

static moe_experts *pack_fetched(subject *s)
{
    moe_experts_args args = s->args;
    moe_experts *experts;
    args.struct_size = sizeof args;
    for (size_t i = 0; i < ARRAYS; i++)
        array_of(&args, i)->data = array_of(&args, i)->experts = NULL;
    args.fetch = fetch;
    args.fetch_user = s;
    args.fetch_count = 1 + s->seed % 3;
    MUST(moe_experts_create(two_threads(), &args, &experts) == MOE_OK);
    return experts;
}

static void use(subject *s, moe_experts *experts, size_t bytes)
{
    moe_experts_info info = {.struct_size = sizeof info};
    bool rows = s->args.expert_gate_up_weights == NULL;
    MUST(moe_experts_describe(experts, &info) == MOE_OK);
    MUST(info.bytes == bytes && info.packing == s->args.packing && info.E_L > 0);
    MUST(info.expert_bytes <= bytes / (size_t)info.E_L);
    if (rows) MUST(info.E_L == s->args.E_L && info.H == s->args.H && info.I == s->args.I);
    for (size_t i = 0, claimed; i < ARRAYS && rows; i++)
        if (array_of(&s->args, i)->dtype != MOE_DTYPE_NONE)
            MUST(extent(s, i, array_of(&s->args, i)->data != NULL, &claimed));
    moe_experts *dense = !rows ? NULL : s->fetched ? pack_fetched(s) : pack_dense(s);
    call(s, experts, dense);
    MUST(moe_experts_destroy(dense) == MOE_OK);
}

static void pack(subject *s, const moe_experts_args *args)
{
    moe_experts *experts = (moe_experts *)(uintptr_t)64, *second;
    size_t bytes = 77, same = 77;
    bool lossless = s->args.packing == MOE_PACK_LOSSLESS;
    moe_status status = moe_experts_bytes(NULL, args, &bytes);
    MUST(moe_experts_bytes(two_threads(), args, &same) == status && same == bytes);
    MUST(status != MOE_E_NOMEM &&
         (status == MOE_OK || (bytes == 77 && moe_last_error()[0] != '\0')));
    moe_status created = moe_experts_create(two_threads(), args, &experts);
    MUST((created == MOE_OK) == (experts != NULL));
    if (status == MOE_OK && !has_good_pointers(&s->args))
        MUST(!lossless &&
             (created == MOE_E_NULL_ARG || created == MOE_E_ALIGN || created == MOE_E_UNSUPPORTED));
    else
        MUST(created == status);
    MUST(moe_experts_create(NULL, args, &second) == created);
    if (created == MOE_OK) {
        MUST(!s->claims_too_much);
        use(s, experts, bytes);
    }
    MUST(moe_experts_destroy(experts) == MOE_OK && moe_experts_destroy(second) == MOE_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    static subject s;
    make_subject(&s, &in);
    while (in.left > 0) {
        size_t kind = pick(&in, 4);
        if (kind == 0)
            change_scalar(&s.args, &in);
        else if (kind == 1)
            change_tensor(&s, &in);
        else
            change_array(&s, &in);
    }
    fill(&s);

    /* args too lie in a block of the size that they say, if that is a size at all */
    size_t room = s.args.struct_size, known = sizeof s.args;
    if (room < sizeof room || room > MOST_ARGS) room = MOST_ARGS;
    moe_experts_args *args = calloc(1, room);
    MUST(args != NULL);
    memcpy(args, &s.args, known < room ? known : room);
    pack(&s, args);
    free(args);
    while (s.blocks > 0) free(s.block[--s.blocks]);
    return 0;
}
