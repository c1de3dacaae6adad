/* SPDX-License-Identifier: Apache-2.0 */
/* cache_record.c - one walk over a layer's fields, which writes them or reads and judges them.
 *
 * A record comes from anywhere: every count and every enumerator is looked at before it is used, and
 * sizes of arrays follow from numbers that were looked at. */
#define _POSIX_C_SOURCE 200809L

#include "io/cache_record.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

enum { EXPERTS_MOST = 4096, CHOSEN_MOST = 128, LAYERS_MOST = 1 << 20, FILES_MOST = 1 << 16 };

typedef struct codec {
    bool writes;
    unsigned char *out; /* written, in `room` bytes */
    const unsigned char *in;
    size_t at, bytes, room; /* bytes: to read */
    const char *rule;       /* the first that was broken; nothing is done then */
    bool no_memory;
} codec;

/* ---- fields ---------------------------------------------------------------------------------- */

static bool goes_on(const codec *c)
{
    return c->rule == NULL && !c->no_memory;
}

/* Fails unless the field that was read is right. */
static void must(codec *c, bool holds, const char *rule)
{
    if (!c->writes && goes_on(c) && !holds) c->rule = rule;
}

static bool grow(codec *c, size_t n)
{
    size_t end, room;
    if (!checked_add(c->at, n, &end)) return false;
    if (end <= c->room) return true;
    if (!checked_add(end, end / 2 + 1024, &room)) return false;
    unsigned char *wider = realloc(c->out, room);
    if (wider == NULL) return false;
    c->out = wider;
    c->room = room;
    return true;
}

static void raw(codec *c, void *field, size_t n)
{
    if (!goes_on(c) || n == 0) return;
    if (!c->writes) {
        must(c, n <= c->bytes - c->at, "what is said about the layer is cut off");
        if (!goes_on(c)) return;
        memcpy(field, c->in + c->at, n);
    } else if (grow(c, n)) {
        memcpy(c->out + c->at, field, n);
    } else {
        c->no_memory = true;
        return;
    }
    c->at += n;
}

static void number(codec *c, int64_t *field, int64_t least, int64_t most)
{
    raw(c, field, sizeof *field);
    must(c, *field >= least && *field <= most, "a number is out of range");
}

/* A flag, or an enumerator. */
static int choice(codec *c, int value, int most)
{
    int32_t v = value;
    raw(c, &v, sizeof v);
    must(c, v >= 0 && v <= most, "a choice is out of range");
    return goes_on(c) ? v : 0;
}

static void real(codec *c, float *field)
{
    raw(c, field, sizeof *field);
    must(c, *field >= -FLT_MAX && *field <= FLT_MAX, "a number is not finite");
}

static void optional(codec *c, moe_optional_float *field)
{
    field->given = choice(c, field->given, 1);
    real(c, &field->value);
}

/* Printable ASCII, a NUL, and NULs. */
static void text(codec *c, char *field, size_t room)
{
    raw(c, field, room);
    size_t n = 0;
    while (n < room && field[n] >= 0x20 && field[n] < 0x7F) n++;
    must(c, n < room, "a text has no end");
    while (n < room && field[n] == '\0') n++;
    must(c, n == room, "a text has bytes that are none");
}

/* A name of a file: any bytes, a NUL, and NULs. */
static void file_name(codec *c, char *field, size_t room)
{
    raw(c, field, room);
    size_t n = strnlen(field, room);
    must(c, n > 0 && n < room, "a name has no end");
    while (n < room && field[n] == '\0') n++;
    must(c, n == room, "a name goes on behind its end");
}

/* A dense array [rows, columns] of floats, or none. */
static void array(codec *c, moe_array *a, int64_t rows, int64_t columns, bool given)
{
    size_t bytes;
    moe_dtype dtype = (moe_dtype)choice(c, (int)a->dtype, MOE_F32);
    must(c, (dtype != MOE_DTYPE_NONE) == given, "an array is there or not, other than is said");
    if (!goes_on(c) || dtype == MOE_DTYPE_NONE) return;
    must(c,
         checked_shape((int64_t[]){rows, columns}, 2, moe_dtype_size(dtype), &bytes) &&
             bytes <= c->bytes - c->at,
         "an array is cut off");
    if (!goes_on(c)) return;
    if (c->writes) {
        bytes = (size_t)rows * (size_t)columns * moe_dtype_size(dtype);
        raw(c, (void *)(uintptr_t)a->data, bytes);
        return;
    }
    void *data = malloc(bytes); /* not 0: rows and columns are 1 or more */
    c->no_memory = data == NULL;
    raw(c, data, bytes);
    if (data != NULL) *a = moe_array_dense(data, dtype, rows, columns);
}

/* ---- parts ----------------------------------------------------------------------------------- */

static void experts(codec *c, moe_layer_info *i)
{
    number(c, &i->H, 1, INT32_MAX);
    number(c, &i->I, 1, INT32_MAX);
    number(c, &i->E, 1, EXPERTS_MOST);
    number(c, &i->K, 1, CHOSEN_MOST);
    must(c, i->K <= i->E, "K is more than E");
    text(c, i->gate_up_format, sizeof i->gate_up_format);
    text(c, i->down_format, sizeof i->down_format);
    i->activation = (moe_activation)choice(c, (int)i->activation, MOE_RELU2);
    optional(c, &i->swiglu_alpha);
    optional(c, &i->swiglu_up_offset);
    optional(c, &i->gate_clamp_upper_limit);
    optional(c, &i->up_clamp_upper_limit);
    optional(c, &i->up_clamp_lower_limit);
    optional(c, &i->act_clamp_upper_limit);
    i->has_gate = choice(c, i->has_gate, 1);
    i->has_bias = choice(c, i->has_bias, 1);
    i->scaling = (moe_affinity_scale)choice(c, (int)i->scaling, MOE_INPUT_SCALE);
    must(c, i->scaling == MOE_POST_SCALE || i->scaling == MOE_INPUT_SCALE,
         "a choice is out of range");
}

static void router(codec *c, moe_layer *layer)
{
    moe_layer_info *i = &layer->info;
    int64_t groups[] = {i->n_group, i->topk_group};
    char foreign[LOADED_TEXT] = "";
    if (i->foreign_router != NULL) strncpy(foreign, i->foreign_router, sizeof foreign - 1);
    text(c, foreign, sizeof foreign);
    i->score = (moe_router_score)choice(c, (int)i->score, MOE_SCORE_SQRT_SOFTPLUS);
    i->normalize = choice(c, i->normalize, 1);
    number(c, &groups[0], 0, i->E);
    number(c, &groups[1], 0, groups[0]);
    i->group_rank = (moe_group_rank)choice(c, (int)i->group_rank, MOE_GROUP_BEST);
    i->has_router_bias = choice(c, i->has_router_bias, 1);
    i->has_selection_bias = choice(c, i->has_selection_bias, 1);
    real(c, &i->normalize_epsilon);
    real(c, &i->scale);
    if (c->writes || !goes_on(c)) return;
    i->n_group = (int32_t)groups[0];
    i->topk_group = (int32_t)groups[1];
    memcpy(layer->foreign_router, foreign, sizeof foreign);
    i->foreign_router = foreign[0] != '\0' ? layer->foreign_router : NULL;
}

static void shared(codec *c, moe_layer_info *i)
{
    number(c, &i->shared_I, 0, INT32_MAX);
    text(c, i->shared_format, sizeof i->shared_format);
    i->has_shared_gate = choice(c, i->has_shared_gate, 1);
    raw(c, &i->bytes, sizeof i->bytes);
    raw(c, &i->expert_bytes, sizeof i->expert_bytes);
}

static void files(codec *c, origin *o)
{
    int64_t count = (int64_t)o->count;
    number(c, &count, 0, FILES_MOST);
    /* each takes its size of the record, so that no more is taken than is there */
    must(c, (size_t)count <= (c->bytes - c->at) / sizeof *o->files, "the files are cut off");
    if (!goes_on(c)) return;
    if (!c->writes) {
        o->files = calloc(count > 0 ? (size_t)count : 1, sizeof *o->files);
        c->no_memory = o->files == NULL;
        if (c->no_memory) return;
        o->count = (size_t)count;
    }
    for (size_t n = 0; n < o->count; n++) {
        origin_file *f = &o->files[n];
        file_name(c, f->name, sizeof f->name);
        raw(c, &f->size, sizeof f->size);
        raw(c, &f->seconds, sizeof f->seconds);
        raw(c, &f->nanoseconds, sizeof f->nanoseconds);
        raw(c, &f->headers, sizeof f->headers);
    }
}

static void walk(codec *c, moe_layer *layer, cache_images *images)
{
    moe_layer_info *i = &layer->info;
    text(c, layer->family, sizeof layer->family);
    number(c, &layer->layers, 1, LAYERS_MOST);
    number(c, &i->layer, 0, layer->layers - 1);
    experts(c, i);
    router(c, layer);
    shared(c, i);
    files(c, &layer->origin);
    raw(c, &images->experts, sizeof images->experts);
    raw(c, &images->shared, sizeof images->shared);
    must(c, images->experts > 0 && (images->shared > 0) == (i->shared_I > 0),
         "an image is there or not, other than is said");
    bool has_router = c->writes ? layer->router.dtype != MOE_DTYPE_NONE : i->foreign_router == NULL;
    has_router = choice(c, has_router, 1);
    must(c, has_router || i->foreign_router != NULL, "there is no router");
    array(c, &layer->router, i->E, i->H, has_router);
    array(c, &layer->router_bias, i->E, 1, i->has_router_bias);
    array(c, &layer->selection_bias, i->E, 1, i->has_selection_bias);
    array(c, &layer->shared_gate, i->H, 1, i->has_shared_gate);
}

/* ---- the record ------------------------------------------------------------------------------ */

unsigned char *cache_encode(const moe_layer *layer, const cache_images *images, size_t *bytes)
{
    codec c = {.writes = true};
    moe_layer copy = *layer; /* whose arrays are not written to */
    cache_images sizes = *images;
    walk(&c, &copy, &sizes);
    *bytes = c.at;
    if (!c.no_memory) return c.out;
    free(c.out);
    return NULL;
}

cache_verdict cache_decode(const void *data, size_t bytes, moe_layer *layer, cache_images *images,
                           const char **rule, size_t *at)
{
    codec c = {.in = data, .bytes = bytes};
    walk(&c, layer, images);
    must(&c, c.at == bytes, "more is said about the layer than there is to say");
    *rule = c.rule;
    *at = c.at;
    return c.no_memory ? CACHE_NO_MEMORY : c.rule != NULL ? CACHE_UNSOUND : CACHE_SOUND;
}
