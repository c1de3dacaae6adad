/* SPDX-License-Identifier: Apache-2.0 */
/* load_read.c - from tensors in files to packed experts.
 *
 * moe_experts_create asks for some experts at a time; their bytes are read into one buffer, in which each
 * expert's pieces lie behind each other.  What comes next is announced to the system before the present
 * is packed, so that disk and processors work at once. */
#include "io/load_read.h"

#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "io/model_error.h"
#include "sizes.h"

enum { BUFFER_ALIGN = 64, BUFFER_MOST = 32 << 20, BUFFER_SHARE = 16 };

moe_status load_advance(load_progress *p, uint64_t bytes)
{
    p->done += bytes;
    if (!p->report || p->report(p->user, p->done, p->all) == 0) return MOE_OK;
    return model_fail(MOE_E_READ, p->path, "stopped by the caller after %llu of %llu bytes",
                      (unsigned long long)p->done, (unsigned long long)p->all);
}

/* ---- pieces ---------------------------------------------------------------------------------- */

typedef struct loader {
    const layer_experts *x;
    load_progress *progress;
    unsigned char *buffer;
    size_t stride;     /* from expert to expert in it */
    moe_status failed; /* of fetch: its message is kept already */
} loader;

static const ck_tensor *tensor_of(const layer_piece *p, size_t e, size_t *from)
{
    *from = p->each ? 0 : e * p->file_bytes;
    return &p->tensors[p->each ? e : 0];
}

/* n e8m0 bytes to f32, in place: `bytes` is the end of `values`, so that none is overwritten before it
 * is read.  2^(s-127): 255 is NaN, and 0 is 2^-127, which f32 has as a subnormal number. */
static void widen_e8m0(unsigned char *values, const unsigned char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t s = bytes[i];
        uint32_t bits = s == 255 ? 0x7FC00000u : s == 0 ? 0x00400000u : s << 23;
        memcpy(values + i * sizeof bits, &bits, sizeof bits);
    }
}

static void take_reciprocals(unsigned char *values, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float value;
        memcpy(&value, values + i * sizeof value, sizeof value);
        value = 1.0f / value;
        memcpy(values + i * sizeof value, &value, sizeof value);
    }
}

static moe_status read_piece(const layer_piece *p, size_t e, unsigned char *expert)
{
    io_error error;
    size_t from;
    const ck_tensor *t = tensor_of(p, e, &from);
    unsigned char *at = expert + p->at, *raw = at + (p->bytes - p->file_bytes);
    if (ck_read(t, from, p->file_bytes, raw, &error) != IO_OK) return model_reader(&error);
    if (p->conversion == LAYER_E8M0_TO_F32) widen_e8m0(at, raw, p->file_bytes);
    if (p->conversion == LAYER_F32_RECIPROCAL) take_reciprocals(at, p->bytes / sizeof(float));
    return MOE_OK;
}

static void announce(const loader *l, size_t first, size_t count)
{
    const layer_experts *x = l->x;
    for (size_t e = first; e < first + count && e < (size_t)x->E; e++) {
        for (int i = 0; i < x->piece_count; i++) {
            size_t from;
            const ck_tensor *t = tensor_of(&x->pieces[i], e, &from);
            ck_will_need(t, from, x->pieces[i].file_bytes);
        }
    }
}

/* ---- experts --------------------------------------------------------------------------------- */

enum { ARRAYS = 4 };

static void arrays_of(moe_matrix *m, moe_array *arrays[ARRAYS])
{
    arrays[0] = &m->weights;
    arrays[1] = &m->scale;
    arrays[2] = &m->bias;
    arrays[3] = &m->row_scale;
}

static const layer_array *place_of(const layer_matrix *m, int i)
{
    const layer_array *const places[ARRAYS] = {&m->weights, &m->scale, &m->bias, &m->row_scale};
    return places[i];
}

static void describe_matrix(const layer_experts *x, const layer_matrix *from,
                            const unsigned char *buffer, size_t stride, moe_matrix *to)
{
    moe_array *arrays[ARRAYS];
    arrays_of(to, arrays);
    for (int i = 0; i < ARRAYS; i++) {
        const layer_array *a = place_of(from, i);
        if (a->dtype == MOE_DTYPE_NONE) continue;
        arrays[i]->dtype = a->dtype;
        arrays[i]->row_stride = a->row_stride;
        arrays[i]->column_stride = a->column_stride;
        if (!buffer) continue;
        arrays[i]->data = buffer + x->pieces[a->piece].at + a->offset;
        arrays[i]->expert_stride = (int64_t)stride;
    }
    to->scale_k = from->scale_k;
    to->scale_rows = from->scale_rows;
}

void load_describe(const layer_experts *x, const unsigned char *buffer, size_t stride,
                   moe_experts_args *args)
{
    describe_matrix(x, &x->gate, buffer, stride, &args->gate);
    describe_matrix(x, &x->up, buffer, stride, &args->up);
    describe_matrix(x, &x->down, buffer, stride, &args->down);
}

moe_status load_read_expert(const layer_experts *x, size_t e, unsigned char *buffer)
{
    moe_status s = MOE_OK;
    for (int i = 0; s == MOE_OK && i < x->piece_count; i++)
        s = read_piece(&x->pieces[i], e, buffer);
    return s;
}

static moe_status read_experts(loader *l, size_t first, size_t count)
{
    announce(l, first + count, count);
    for (size_t e = 0; e < count; e++) {
        moe_status s = load_read_expert(l->x, first + e, l->buffer + e * l->stride);
        if (s != MOE_OK) return s;
    }
    return load_advance(l->progress, count * l->x->expert_file_bytes);
}

static moe_status fetch(void *user, int64_t first, int64_t count, moe_experts_args *part)
{
    loader *l = user;
    l->failed = read_experts(l, (size_t)first, (size_t)count);
    if (l->failed != MOE_OK) return l->failed;
    load_describe(l->x, l->buffer, l->stride, part);
    return MOE_OK;
}

static moe_status no_memory(const load_progress *progress)
{
    return model_fail(MOE_E_NOMEM, progress->path, "out of memory");
}

/* How many experts the buffer holds; its size. */
static bool buffer_size(loader *l, size_t *count, size_t *bytes)
{
    size_t most = size_smaller(l->x->file_bytes / BUFFER_SHARE, BUFFER_MOST);
    if (!checked_round_up(l->x->expert_bytes, BUFFER_ALIGN, &l->stride)) return false;
    *count = size_smaller(most / l->stride, (size_t)l->x->E);
    if (*count == 0) *count = 1;
    return checked_mul(*count, l->stride, bytes);
}

moe_status load_experts(const layer_experts *x, moe_context *context, moe_packing packing,
                        load_progress *progress, moe_experts **experts)
{
    loader l = {.x = x, .progress = progress};
    size_t count, bytes;
    if (!buffer_size(&l, &count, &bytes)) return no_memory(progress);
    l.buffer = malloc(bytes);
    if (!l.buffer) return no_memory(progress);
    moe_experts_args args = moe_experts_args_init();
    args.E_L = x->E;
    args.H = x->H;
    args.I = x->I;
    load_describe(x, NULL, 0, &args);
    args.fetch = fetch;
    args.fetch_user = &l;
    args.fetch_count = (int64_t)count;
    args.packing = packing;
    announce(&l, 0, count);
    moe_status s = moe_experts_create(context, &args, experts);
    free(l.buffer);
    return s == MOE_OK || l.failed != MOE_OK ? s : model_core(s, progress->path);
}

/* ---- the rest -------------------------------------------------------------------------------- */

static moe_status check_shape(const layer_place *place, const layer_shape *shape, size_t e)
{
    io_error error;
    const ck_tensor *t = &shape->tensors[shape->each ? e : 0];
    size_t element = t->type == CK_I64 ? sizeof(int64_t) : sizeof(int32_t);
    unsigned char bytes[2 * sizeof(int64_t)] = {0};
    int64_t numbers[2] = {0, 0};
    if (ck_read(t, shape->each ? 0 : e * 2 * element, 2 * element, bytes, &error) != IO_OK)
        return model_reader(&error);
    for (size_t i = 0; i < 2; i++) memcpy(&numbers[i], bytes + i * element, element);
    if (numbers[0] == shape->rows && numbers[1] == shape->k) return MOE_OK;
    return layer_refuse(place, t, "says [%lld, %lld] and must say [%lld, %lld]",
                        (long long)numbers[0], (long long)numbers[1], (long long)shape->rows,
                        (long long)shape->k);
}

moe_status load_check_shapes(const layer_place *place, const layer_experts *x,
                             load_progress *progress)
{
    moe_status s = MOE_OK;
    for (int i = 0; s == MOE_OK && i < x->shape_count; i++) {
        const layer_shape *shape = &x->shapes[i];
        for (size_t e = 0; s == MOE_OK && e < (size_t)x->E; e++) s = check_shape(place, shape, e);
        if (s == MOE_OK)
            s = load_advance(progress, shape->tensors[0].bytes * (shape->each ? (size_t)x->E : 1));
    }
    return s;
}

moe_status load_vector(const layer_vector *v, load_progress *progress, void **data)
{
    io_error error;
    *data = NULL;
    if (!v->given) return MOE_OK;
    void *bytes = malloc(v->tensor.bytes);
    if (!bytes) return no_memory(progress);
    if (ck_read(&v->tensor, 0, v->tensor.bytes, bytes, &error) != IO_OK) {
        free(bytes);
        return model_reader(&error);
    }
    *data = bytes;
    return load_advance(progress, v->tensor.bytes);
}
