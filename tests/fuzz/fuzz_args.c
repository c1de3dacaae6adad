/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_args.c - libFuzzer: any arguments of moe_tkg.
 *
 * The first bytes of the input describe a valid layer; the rest are changes to it, five bytes
 * each, of any field of any tensor or parameter, or of an index.  Every tensor then has exactly
 * the bytes that it declares, in a block of its own, so that ASan sees a read outside.  A call
 * that fails must leave the output alone; one that succeeds must write all of it, twice the
 * same, and within the bounds of the float64 oracle. */
#include "fuzz_input.h"

#include "checked.h"
#include "layer.h"

#include "../../tools/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_BYTES = 1 << 20, MOST_PRODUCTS = 1 << 21, MOST_JUDGED = 1 << 14, MOST_ARGS = 8192 };
enum { FILLER = 0x3C };

/* ---- a valid layer --------------------------------------------------------------------------- */

static layer_spec read_spec(input *in)
{
    static const moe_dtype hidden[] = {MOE_BF16, MOE_F16, MOE_F32};
    static const moe_dtype plain[] = {MOE_BF16, MOE_F16, MOE_F32, MOE_E4M3_IEEE, MOE_E4M3FN};
    static const moe_dtype mx[] = {MOE_MXFP4_X4, MOE_MXFP8_X4},
                           index[] = {MOE_I32, MOE_U32, MOE_I64};
    static const moe_affinity_scale scaling[] = {MOE_NO_SCALE, MOE_POST_SCALE, MOE_INPUT_SCALE};
    layer_spec s = {.seed = next(in)};
    bool is_mx = pick(in, 4) == 3;
    s.hidden = hidden[pick(in, COUNT(hidden))];
    s.weights = is_mx ? mx[pick(in, COUNT(mx))] : plain[pick(in, COUNT(plain))];
    s.down = is_mx ? mx[pick(in, COUNT(mx))] : plain[pick(in, COUNT(plain))];
    s.all_expert = pick(in, 2);
    s.place = (layer_place)pick(in, is_mx && s.all_expert ? 4 : 3);
    s.T = (int64_t)pick(in, 6);
    s.H = is_mx ? 512 : s.place == LAYER_SBUF ? 128 : 1 + (int64_t)pick(in, 40);
    s.I = 1 + (int64_t)pick(in, 40);
    s.E_L = 1 + (int64_t)pick(in, 3);
    s.K = 1 + (int64_t)pick(in, 3);
    s.E = s.E_L * (1 + (int64_t)pick(in, 3));
    s.scaling = scaling[pick(in, COUNT(scaling))];
    s.rank = (uint32_t)pick(in, (size_t)(s.E / s.E_L));
    s.scales = (layer_scales)pick(in, 3);
    uint8_t flags = next(in);
    s.mask = flags & 1;
    s.eager = !s.all_expert && s.scaling != MOE_NO_SCALE && (flags & 2);
    s.gate_up_bias = flags & 4;
    s.down_bias = flags & 8;
    s.clamp = flags & 16;
    s.output_in_sbuf = s.place >= LAYER_SBUF && (flags & 32);
    s.activation = (moe_activation)pick(in, MOE_RELU2 + 1);
    s.act_mode = (moe_act_mode)pick(in, is_mx ? MOE_ACT_MXFP8 + 1 : MOE_ACT_EXACT + 1);
    if (s.weights == MOE_MXFP4_X4 && s.down == MOE_MXFP4_X4 && (flags & 64))
        s.act_mode = MOE_ACT_INT8;
    s.output = (moe_dtype)pick(in, MOE_F32 + 1);
    s.index_type = index[pick(in, COUNT(index))];
    s.affinity_type = hidden[pick(in, COUNT(hidden))];
    s.wild = next(in);
    return s;
}

/* ---- changes --------------------------------------------------------------------------------- */

/* A small number of either sign, or one at which something may wrap. */
static int64_t read_number(input *in)
{
    static const int64_t edges[] = {0,
                                    -1,
                                    INT32_MAX,
                                    (int64_t)INT32_MAX + 1,
                                    UINT32_MAX,
                                    (int64_t)UINT32_MAX + 1,
                                    INT64_MAX,
                                    INT64_MIN,
                                    (int64_t)1 << 62,
                                    INT64_MAX / 512 + 1,
                                    INT32_MIN,
                                    128,
                                    129,
                                    512,
                                    1024,
                                    4096};
    uint8_t kind = next(in), value = next(in);
    return kind % 4 == 3 ? edges[value % COUNT(edges)] : (int8_t)value;
}

static void change_tensor(layer *l, input *in)
{
    layer_tensor which = (layer_tensor)pick(in, LAYER_TENSORS);
    const moe_tensor **slot = layer_tensor_slot(&l->args, which);
    moe_tensor *t = &l->tensor[which];
    uint8_t field = next(in);
    int64_t number = read_number(in);
    switch (field % 12) {
    case 0: *slot = NULL; break;
    case 1:
        if (l->bytes[which] == 0) layer_add(l, which);
        break;
    case 2: *slot = &l->tensor[(uint64_t)number % LAYER_TENSORS]; break;
    case 3: t->dtype = (moe_dtype)number; break;
    case 4: t->layout = (moe_layout)number; break;
    case 5: t->rank = (int32_t)number; break;
    default: t->shape[field / 12 % MOE_MAX_RANK] = number; break;
    }
}

static void change_index(layer *l, input *in)
{
    layer_tensor which = pick(in, 4) == 3 ? LAYER_RANK : LAYER_INDEX;
    size_t element = moe_dtype_size(l->spec.index_type), n = l->bytes[which] / element,
           i = next(in);
    int64_t number = read_number(in);
    uint32_t word = (uint32_t)number;
    if (n > 0)
        memcpy((char *)l->data[which] + i % n * element, element == 8 ? (void *)&number : &word,
               element);
}

static void change_scalar(moe_tkg_args *a, input *in)
{
    uint8_t field = next(in);
    int64_t number = read_number(in);
    static const float floats[] = {0.0f,     -0.0f,     1.0f,   -1.0f, NAN,
                                   INFINITY, -INFINITY, 1e-40f, 3e38f};
    moe_optional_float value = {number == 2 ? 2 : number != 0,
                                floats[(uint64_t)number % COUNT(floats)]};
    switch (field % 19) {
    case 0: a->struct_size = sizeof *a - 64 + (size_t)number; break;
    case 1: a->is_all_expert = (int32_t)number; break;
    case 2: a->mask_unselected_experts = (int32_t)number; break;
    case 3: a->expert_affinities_scaling_mode = (moe_affinity_scale)number; break;
    case 4: a->activation_fn = (moe_activation)number; break;
    case 5: a->output_dtype = (moe_dtype)number; break;
    case 6: a->gate_clamp_upper_limit = value; break;
    case 7: a->gate_clamp_lower_limit = value; break;
    case 8: a->up_clamp_upper_limit = value; break;
    case 9: a->up_clamp_lower_limit = value; break;
    case 10: a->output_in_sbuf = (int32_t)number; break;
    case 11: a->is_all_expert_dynamic = (int32_t)number; break;
    case 12: a->block_size = moe_given_int(number); break;
    case 13: a->block_size.given = (int32_t)number; break;
    case 14: a->act_mode = (moe_act_mode)number; break;
    case 15: a->swiglu_alpha = value; break;
    case 16: a->swiglu_up_offset = value; break;
    default: a->skip_invalid_experts = (int32_t)number; break;
    }
}

/* Gives every tensor exactly its declared bytes, the old ones first.  False if that is too much,
 * or a call would take too long: then no data may be touched. */
static bool fit_data(layer *l)
{
    size_t declared[LAYER_TENSORS], total = 0;
    for (int which = 0; which < LAYER_TENSORS; which++) {
        const moe_tensor *t = &l->tensor[which];
        bool is_sound =
            t->rank >= 1 && t->rank <= MOE_MAX_RANK &&
            checked_shape(t->shape, (size_t)t->rank, moe_dtype_size(t->dtype), &declared[which]);
        if (!is_sound) declared[which] = l->bytes[which];
        if (!checked_add(total, declared[which], &total) || total > MOST_BYTES) return false;
    }
    if (declared[LAYER_HIDDEN] / (size_t)l->spec.H * declared[LAYER_GATE_UP] > MOST_PRODUCTS)
        return false;
    for (int which = 0; which < LAYER_TENSORS; which++) {
        size_t n = declared[which], old = l->bytes[which];
        unsigned char *memory = NULL;
        if (n > 0) {
            memory = malloc(n);
            MUST(memory != NULL);
            memset(memory, FILLER, n);
            if (old > 0) memcpy(memory, l->data[which], n < old ? n : old);
        }
        free(l->data[which]);
        l->tensor[which].data = l->data[which] = memory;
        l->bytes[which] = n;
    }
    return true;
}

/* ---- properties ------------------------------------------------------------------------------ */

static void judge(const moe_tkg_args *args, moe_tensor *shape, const void *output)
{
    const moe_tensor *w = args->expert_gate_up_weights;
    uint64_t products = (uint64_t)shape->shape[0] * (uint64_t)shape->shape[shape->rank - 2];
    for (int d = 0; d < w->rank; d++) products *= (uint64_t)w->shape[d];
    if (products > MOST_JUDGED) return;
    oracle_rows rows;
    oracle_status status = oracle_run(args, NULL, 0, &rows);
    MUST(status == ORACLE_OK);
    oracle_verdict verdict = oracle_judge(&rows, shape, output);
    MUST(verdict.outside == 0);
    oracle_free(&rows);
}

/* Calls moe_tkg on args, which moe_tkg_output has judged with `expected`. */
static void call(const moe_tkg_args *args, moe_status expected, moe_tensor *shape, size_t bytes)
{
    static moe_context *context;
    moe_context_options options = moe_context_options_init();
    options.threads = 2;
    if (context == NULL) MUST(moe_context_create(&options, &context) == MOE_OK);
    enum { REFUSED_BYTES = 64 };
    size_t n = expected == MOE_OK ? bytes : REFUSED_BYTES;
    unsigned char *first = malloc(n + 1), *second = malloc(n + 1);
    MUST(first != NULL && second != NULL);
    memset(first, 0xA5, n + 1);
    memset(second, 0x5A, n + 1);
    moe_status status = moe_tkg(NULL, args, first, n);
    MUST(expected == MOE_OK || status == expected);
    MUST(moe_tkg(context, args, second, n) == status);
    if (status == MOE_OK) {
        MUST(memcmp(first, second, n) == 0); /* so that all of it was written */
        if (bytes > 0) judge(args, shape, first);
    } else {
        for (size_t i = 0; i < n; i++) MUST(first[i] == 0xA5 && second[i] == 0x5A);
        MUST(moe_last_error()[0] != '\0');
    }
    MUST(first[n] == 0xA5 && second[n] == 0x5A);
    free(first);
    free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    layer l;
    layer_spec spec = read_spec(&in);
    layer_make(&l, &spec);
    while (in.left > 0) {
        size_t kind = pick(&in, 4);
        if (kind == 0)
            change_tensor(&l, &in);
        else if (kind == 1)
            change_scalar(&l.args, &in);
        else
            change_index(&l, &in);
    }
    bool has_data = fit_data(&l);

    /* args too lie in a block of the size that they say, if that is a size at all */
    size_t room = l.args.struct_size, known = sizeof l.args;
    if (room < sizeof room || room > MOST_ARGS) room = MOST_ARGS;
    moe_tkg_args *args = calloc(1, room);
    MUST(args != NULL);
    memcpy(args, &l.args, known < room ? known : room);
    moe_tensor shape;
    size_t bytes = 0;
    moe_status status = moe_tkg_output(args, &shape, &bytes);
    MUST(moe_tkg_output(args, &shape, &bytes) == status);
    if (has_data) call(args, status, &shape, bytes);
    free(args);
    layer_free(&l);
    return 0;
}
