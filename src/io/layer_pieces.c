/* SPDX-License-Identifier: Apache-2.0 */
/* layer_pieces.c - tensors of all experts.  Refuses experts that differ in type or shape. */
#include "io/layer_pieces.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "io/io_error.h"
#include "io/model_error.h"

enum { BUFFER_ALIGN = 64 };

/* ---- messages -------------------------------------------------------------------------------- */

static void shape_text(char *text, size_t room, int rank, const int64_t *shape)
{
    size_t used = (size_t)snprintf(text, room, "[");
    for (int i = 0; i < rank && used < room; i++)
        used += (size_t)snprintf(text + used, room - used, "%s%lld", i > 0 ? ", " : "",
                                 (long long)shape[i]);
    if (used < room) snprintf(text + used, room - used, "]");
}

moe_status layer_refuse(const layer_place *place, const ck_tensor *t, const char *format, ...)
{
    char text[256];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    return model_fail(MOE_E_MODEL, ck_path(place->ck), "tensor \"%.*s\": %s", io_clip(t->name),
                      t->name, text);
}

static moe_status refuse_shape(const layer_place *place, const ck_tensor *t, int rank,
                               const int64_t *shape)
{
    char is[112], must[64];
    shape_text(is, sizeof is, t->rank, t->shape);
    shape_text(must, sizeof must, rank, shape);
    return layer_refuse(place, t, "its shape is %s and must be %s", is, must);
}

moe_status layer_shape_is(const layer_place *place, const ck_tensor *t, int rank,
                          const int64_t *shape)
{
    if (t->rank == rank && memcmp(t->shape, shape, (size_t)rank * sizeof *shape) == 0)
        return MOE_OK;
    return refuse_shape(place, t, rank, shape);
}

moe_status piece_refuse_shape(const layer_search *search, const ck_tensor *t, int rank,
                              const int64_t *shape)
{
    int64_t all[ST_MAX_RANK];
    int lead = search->stacked;
    if (lead) all[0] = search->experts->E;
    memcpy(all + lead, shape, (size_t)rank * sizeof *shape);
    return refuse_shape(search->place, t, lead + rank, all);
}

moe_status piece_missing(const layer_search *search, const char *suffix, int64_t e)
{
    char name[LAYER_NAME_BYTES];
    layer_name(search->place, search->stem, e, suffix, name);
    return model_fail(MOE_E_MODEL, ck_path(search->place->ck), "tensor \"%s\" is missing", name);
}

static moe_status no_memory(const layer_search *search)
{
    return model_fail(MOE_E_NOMEM, ck_path(search->place->ck), "out of memory");
}

/* ---- tensors --------------------------------------------------------------------------------- */

moe_status piece_find(const layer_search *search, const char *suffix, int64_t e, ck_tensor *t,
                      bool *found)
{
    char name[LAYER_NAME_BYTES];
    layer_name(search->place, search->stem, e, suffix, name);
    return ck_find(search->place->ck, name, t, found);
}

bool piece_fits(const layer_search *search, const ck_tensor *t, int rank, const int64_t *shape)
{
    int lead = search->stacked;
    if (t->rank != lead + rank || (lead && t->shape[0] != search->experts->E)) return false;
    for (int i = 0; i < rank; i++)
        if (t->shape[lead + i] != shape[i]) return false;
    return true;
}

static bool alike(const ck_tensor *a, const ck_tensor *b)
{
    return a->type == b->type && a->blocks == b->blocks && a->rank == b->rank &&
           memcmp(a->shape, b->shape, (size_t)a->rank * sizeof a->shape[0]) == 0;
}

/* The tensors of all experts, of which t is the first: *each says whether there is one for each. */
static moe_status gather(const layer_search *search, const char *suffix, const ck_tensor *t,
                         ck_tensor **tensors, bool *each)
{
    *each = !search->stacked && search->experts->E > 1;
    size_t count = *each ? (size_t)search->experts->E : 1;
    *tensors = calloc(count, sizeof *t);
    if (!*tensors) return no_memory(search);
    (*tensors)[0] = *t;
    search->experts->file_bytes += t->bytes;
    for (size_t e = 1; e < count; e++) {
        bool found;
        ck_tensor *other = &(*tensors)[e];
        moe_status s = piece_find(search, suffix, (int64_t)e, other, &found);
        if (s != MOE_OK) return s;
        if (!found) return piece_missing(search, suffix, (int64_t)e);
        if (!alike(t, other)) {
            if (t->type != other->type || t->blocks != other->blocks)
                return layer_refuse(search->place, other, "is of type %s, and expert 0's of %s",
                                    other->type_name, t->type_name);
            return refuse_shape(search->place, other, t->rank, t->shape);
        }
        search->experts->file_bytes += other->bytes;
    }
    return MOE_OK;
}

moe_status piece_add(const layer_search *search, const char *suffix, const ck_tensor *t,
                     layer_conversion conversion, layer_array *a)
{
    layer_experts *x = search->experts;
    layer_piece *p = &x->pieces[x->piece_count];
    a->piece = x->piece_count++;
    p->conversion = conversion;
    moe_status s = gather(search, suffix, t, &p->tensors, &p->each);
    if (s != MOE_OK) return s;
    p->file_bytes = t->bytes / (search->stacked ? (size_t)x->E : 1);
    p->bytes = p->file_bytes;
    if (conversion == LAYER_E8M0_TO_F32 && !checked_mul(p->bytes, sizeof(float), &p->bytes))
        return no_memory(search);
    if (!checked_round_up(x->expert_bytes, BUFFER_ALIGN, &p->at) ||
        !checked_add(p->at, p->bytes, &x->expert_bytes))
        return no_memory(search);
    x->expert_file_bytes += p->file_bytes;
    return MOE_OK;
}

/* There is none of expert 0: then there must be none of any. */
static moe_status no_shape(const layer_search *search, const char *suffix)
{
    for (int64_t e = 1; !search->stacked && e < search->experts->E; e++) {
        ck_tensor t;
        bool found;
        moe_status s = piece_find(search, suffix, e, &t, &found);
        if (s != MOE_OK) return s;
        if (found) return piece_missing(search, suffix, 0);
    }
    return MOE_OK;
}

moe_status piece_add_shape(const layer_search *search, const char *suffix)
{
    layer_experts *x = search->experts;
    ck_tensor t;
    bool found;
    moe_status s = piece_find(search, suffix, 0, &t, &found);
    if (s != MOE_OK) return s;
    if (!found) return no_shape(search, suffix);
    layer_shape *shape = &x->shapes[x->shape_count];
    if (t.type != CK_I64 && t.type != CK_I32)
        return layer_refuse(search->place, &t, "elements of type %s are not read here",
                            t.type_name);
    if (!piece_fits(search, &t, 1, (int64_t[]){2}))
        return piece_refuse_shape(search, &t, 1, (int64_t[]){2});
    x->shape_count++;
    shape->rows = search->rows;
    shape->k = search->k;
    return gather(search, suffix, &t, &shape->tensors, &shape->each);
}
