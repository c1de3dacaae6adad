/* SPDX-License-Identifier: Apache-2.0 */
/* cache.c - packed layers on disk: saved, listed, loaded, held against the checkpoint they are of.
 *
 * A layer is one file, DIRECTORY/layer-NNNNN.moe, that says everything about itself; which layer it
 * is, it says too.  The payload is the image of its experts and that of its shared expert, whose
 * rules are moe_experts_read's. */
#define _POSIX_C_SOURCE 200809L

#include "io/cache.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checked.h"
#include "io/cache_record.h"
#include "io/checkpoint_files.h"
#include "io/io_error.h"
#include "io/model.h"
#include "io/model_error.h"

static const char name_head[] = "layer-", name_tail[] = ".moe";

typedef struct entry {
    char *path;
    moe_layer said; /* without arrays */
} entry;

struct cache {
    char *path;
    entry *entries; /* in ascending order of their layers */
    size_t count;
};

static moe_status no_memory(const char *path)
{
    return model_fail(MOE_E_NOMEM, path, "out of memory");
}

/* No checkpoint lies in the folder: which of them to open, nobody could say. */
static moe_status check_alone(const char *path, const char *folder)
{
    files_list list;
    if (files_search(folder, &list) != MOE_OK) return MOE_OK;
    files_free(&list);
    return model_fail(MOE_E_MODEL, path,
                      "packed layers and a checkpoint: they cannot be in one directory");
}

/* ---- saving ---------------------------------------------------------------------------------- */

static moe_status add_up(void *user, const void *data, size_t bytes)
{
    (void)data;
    *(uint64_t *)user += bytes;
    return MOE_OK;
}

static moe_status emit(const void *from, packed_put *put, void *to)
{
    const moe_layer *layer = from;
    moe_status s = moe_experts_write(layer->experts, put, to);
    if (s == MOE_OK && layer->shared) s = moe_experts_write(layer->shared, put, to);
    return s;
}

static moe_status write_layer(const moe_layer *layer, const char *path)
{
    cache_images images = {0, 0};
    io_error error;
    size_t bytes;
    moe_status s = moe_experts_write(layer->experts, add_up, &images.experts), given;
    if (s == MOE_OK && layer->shared) s = moe_experts_write(layer->shared, add_up, &images.shared);
    if (s != MOE_OK) return model_core(s, path);
    unsigned char *about = cache_encode(layer, &images, &bytes);
    if (!about) return no_memory(path);
    io_status written = packed_write(path, about, bytes, emit, layer, &given, &error);
    free(about);
    if (written == IO_OK) return MOE_OK;
    s = model_reader(&error);
    return given != MOE_OK ? given : s;
}

moe_status moe_layer_save(const moe_layer *layer, const char *directory)
{
    char name[64];
    if (layer == NULL) return model_argument(MOE_E_NULL_ARG, "layer = NULL: required");
    if (directory == NULL) return model_argument(MOE_E_NULL_ARG, "directory = NULL: required");
    if (*directory == '\0')
        return model_argument(MOE_E_WRITE, "directory = \"\": must name a folder");
    snprintf(name, sizeof name, "%s%05lld%s", name_head, (long long)layer->info.layer, name_tail);
    char *folder = files_inside(directory), *path = folder ? files_join(folder, name) : NULL;
    moe_status s = path ? MOE_OK : no_memory(directory);
    if (s == MOE_OK && mkdir(directory, 0777) != 0 && errno != EEXIST) {
        io_error error;
        io_fail_errno(&error, IO_E_WRITE, directory, "cannot be made", errno);
        s = model_reader(&error);
    }
    if (s == MOE_OK) s = check_alone(directory, folder);
    if (s == MOE_OK) s = write_layer(layer, path);
    free(folder);
    free(path);
    return s;
}

/* ---- reading what a file says ---------------------------------------------------------------- */

/* *said: all but the experts.  To be freed (loaded_forget) in any case. */
static moe_status read_about(const packed_file *f, moe_layer *said, cache_images *images)
{
    const char *rule;
    size_t bytes, at, payload;
    const void *about = packed_about(f, &bytes);
    switch (cache_decode(about, bytes, said, images, &rule, &at)) {
    case CACHE_NO_MEMORY: return no_memory(packed_path(f));
    case CACHE_UNSOUND:
        return model_fail(MOE_E_FORMAT, packed_path(f), "%s at byte %zu", rule, PACKED_HEAD + at);
    default: break;
    }
    if (!checked_add(images->experts, images->shared, &payload) || payload != packed_bytes(f))
        return model_fail(MOE_E_FORMAT, packed_path(f),
                          "images of %llu and %llu bytes in a payload of %zu at byte %zu",
                          (unsigned long long)images->experts, (unsigned long long)images->shared,
                          packed_bytes(f), PACKED_HEAD + bytes);
    return MOE_OK;
}

static moe_status open_packed(const char *path, packed_file **f)
{
    io_error error;
    return packed_open(path, f, &error) == IO_OK ? MOE_OK : model_reader(&error);
}

/* Keeps what the file at path says; takes over path. */
static moe_status add_entry(cache *c, char *path)
{
    packed_file *f;
    cache_images images;
    entry *wider = realloc(c->entries, (c->count + 1) * sizeof *wider);
    if (!wider) {
        free(path);
        return no_memory(c->path);
    }
    c->entries = wider;
    entry *e = &wider[c->count++];
    memset(e, 0, sizeof *e);
    e->path = path;
    moe_status s = open_packed(path, &f);
    if (s != MOE_OK) return s;
    s = read_about(f, &e->said, &images);
    loaded_drop_arrays(&e->said);
    packed_close(f);
    return s;
}

/* ---- a directory ----------------------------------------------------------------------------- */

static bool is_name(const char *name)
{
    size_t n = strlen(name), head = sizeof name_head - 1, tail = sizeof name_tail - 1;
    return n > head + tail && memcmp(name, name_head, head) == 0 &&
           strcmp(name + n - tail, name_tail) == 0;
}

static moe_status add_entries(cache *c, const char *folder, DIR *directory)
{
    moe_status s = MOE_OK;
    const struct dirent *d;
    while (s == MOE_OK && (d = readdir(directory)) != NULL) {
        if (!is_name(d->d_name)) continue;
        char *path = files_join(folder, d->d_name);
        s = path ? add_entry(c, path) : no_memory(c->path);
    }
    return s;
}

static int compare(const void *a, const void *b)
{
    int64_t x = ((const entry *)a)->said.info.layer, y = ((const entry *)b)->said.info.layer;
    return (x > y) - (x < y);
}

static moe_status check_together(cache *c)
{
    for (size_t i = 0; i < c->count; i++) { /* what these point to was moved */
        moe_layer *said = &c->entries[i].said;
        said->info.foreign_router = said->foreign_router[0] ? said->foreign_router : NULL;
    }
    for (size_t i = 1; i < c->count; i++) {
        const entry *a = &c->entries[i - 1], *b = &c->entries[i];
        if (a->said.info.layer == b->said.info.layer)
            return model_fail(MOE_E_MODEL, b->path, "is layer %lld, as %s is",
                              (long long)b->said.info.layer, files_last(a->path));
        if (strcmp(a->said.family, b->said.family) != 0 || a->said.layers != b->said.layers)
            return model_fail(MOE_E_MODEL, b->path,
                              "is of another model (%s, %lld layers) than %s (%s, %lld layers)",
                              b->said.family, (long long)b->said.layers, files_last(a->path),
                              a->said.family, (long long)a->said.layers);
    }
    return MOE_OK;
}

static moe_status open_directory(cache *c, const char *folder)
{
    DIR *directory = opendir(folder);
    if (!directory) return MOE_OK; /* who reads checkpoints says why */
    moe_status s = add_entries(c, folder, directory);
    closedir(directory);
    if (s != MOE_OK || c->count == 0) return s;
    qsort(c->entries, c->count, sizeof *c->entries, compare);
    s = check_together(c);
    return s == MOE_OK ? check_alone(c->path, folder) : s;
}

moe_status cache_open(const char *path, cache **out)
{
    *out = NULL;
    cache *c = calloc(1, sizeof *c);
    char *folder = files_inside(path);
    if (c) c->path = files_join(path, "");
    moe_status s = c && folder && c->path ? open_directory(c, folder) : no_memory(path);
    free(folder);
    if (s == MOE_OK && c->count > 0)
        *out = c;
    else
        cache_close(c);
    return s;
}

void cache_close(cache *c)
{
    if (!c) return;
    for (size_t i = 0; i < c->count; i++) {
        loaded_forget(&c->entries[i].said);
        free(c->entries[i].path);
    }
    free(c->entries);
    free(c->path);
    free(c);
}

/* ---- describing ------------------------------------------------------------------------------ */

int64_t cache_count(const cache *c)
{
    return (int64_t)c->count;
}

void cache_describe(const cache *c, moe_model_info *info)
{
    info->family = c->entries[0].said.family;
    info->container = "packed";
    info->layers = c->entries[0].said.layers;
    info->moe_layers = cache_count(c);
}

void cache_layer(const cache *c, int64_t i, moe_layer_info *info)
{
    size_t size = info->struct_size;
    *info = c->entries[i].said.info;
    info->struct_size = size;
}

/* ---- loading --------------------------------------------------------------------------------- */

static moe_status take(void *user, void *data, size_t bytes)
{
    return packed_read(user, data, bytes) ? MOE_OK : MOE_E_READ;
}

/* The next image of the stream, which must be of these sizes. */
static moe_status read_experts(packed_stream *stream, moe_context *context, uint64_t bytes,
                               const moe_layer_info *said, bool shared, moe_experts **experts)
{
    const char *path = packed_path(stream->file);
    moe_experts_info info = {.struct_size = sizeof info};
    moe_status s = moe_experts_read(context, take, stream, bytes, experts);
    if (s != MOE_OK)
        return stream->error.status != IO_OK ? model_reader(&stream->error) : model_core(s, path);
    s = moe_experts_describe(*experts, &info);
    if (s != MOE_OK) return model_core(s, path);
    int64_t E = shared ? 1 : said->E, I = shared ? said->shared_I : said->I;
    if (info.E_L == E && info.H == said->H && info.I == I) return MOE_OK;
    return model_fail(MOE_E_FORMAT, path,
                      "%s of E = %lld, H = %lld, I = %lld: must be %lld, %lld, %lld as is said",
                      shared ? "a shared expert" : "experts", (long long)info.E_L,
                      (long long)info.H, (long long)info.I, (long long)E, (long long)said->H,
                      (long long)I);
}

/* What was packed plain is not packed anew. */
static moe_status check_packing(const moe_experts *experts, moe_packing wanted, const char *path)
{
    moe_experts_info info = {.struct_size = sizeof info};
    moe_status s = moe_experts_describe(experts, &info);
    if (s != MOE_OK) return model_core(s, path);
    if (wanted != MOE_PACK_LOSSLESS || info.packing == wanted) return MOE_OK;
    return model_fail(MOE_E_UNSUPPORTED, path, "packing = LOSSLESS: the layer was packed plain");
}

moe_status cache_read(const packed_file *f, moe_context *context, const moe_load_options *options,
                      moe_layer *layer)
{
    cache_images images;
    moe_status s = read_about(f, layer, &images);
    packed_stream stream = {.file = f,
                            .threads = moe_context_threads(context),
                            .progress = options->progress,
                            .user = options->user};
    if (s == MOE_OK)
        s = read_experts(&stream, context, images.experts, &layer->info, false, &layer->experts);
    if (s == MOE_OK) s = check_packing(layer->experts, options->packing, packed_path(f));
    if (s == MOE_OK && images.shared > 0)
        s = read_experts(&stream, context, images.shared, &layer->info, true, &layer->shared);
    packed_stream_end(&stream);
    return s;
}

static moe_status load_entry(const entry *e, moe_context *context, const moe_load_options *options,
                             moe_layer **loaded)
{
    packed_file *f;
    moe_status s = open_packed(e->path, &f);
    if (s != MOE_OK) return s;
    moe_layer *layer = calloc(1, sizeof *layer);
    s = layer ? cache_read(f, context, options, layer) : no_memory(e->path);
    packed_close(f);
    if (s == MOE_OK && layer->info.layer != e->said.info.layer)
        s = model_fail(MOE_E_STALE, e->path, "is layer %lld by now, and was %lld",
                       (long long)layer->info.layer, (long long)e->said.info.layer);
    if (s == MOE_OK)
        *loaded = layer;
    else
        moe_layer_free(layer);
    return s;
}

moe_status cache_load(const cache *c, int64_t layer, moe_context *context,
                      const moe_load_options *options, moe_layer **loaded)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->entries[i].said.info.layer == layer)
            return load_entry(&c->entries[i], context, options, loaded);
    return model_argument(MOE_E_VALUE, "layer = %lld: is not among the %lld that are packed in %s",
                          (long long)layer, (long long)c->count, c->path);
}

/* ---- what a cache is of ---------------------------------------------------------------------- */

static bool same_optional(const moe_optional_float *a, const moe_optional_float *b)
{
    return a->given == b->given && memcmp(&a->value, &b->value, sizeof a->value) == 0;
}

/* Whether a configuration says the same as one did. */
static bool same_info(const moe_layer_info *a, const moe_layer_info *b)
{
    const char *x = a->foreign_router ? a->foreign_router : "",
               *y = b->foreign_router ? b->foreign_router : "";
    return a->H == b->H && a->I == b->I && a->E == b->E && a->K == b->K &&
           strcmp(a->gate_up_format, b->gate_up_format) == 0 &&
           strcmp(a->down_format, b->down_format) == 0 && a->activation == b->activation &&
           same_optional(&a->swiglu_alpha, &b->swiglu_alpha) &&
           same_optional(&a->swiglu_up_offset, &b->swiglu_up_offset) &&
           same_optional(&a->gate_clamp_upper_limit, &b->gate_clamp_upper_limit) &&
           same_optional(&a->up_clamp_upper_limit, &b->up_clamp_upper_limit) &&
           same_optional(&a->up_clamp_lower_limit, &b->up_clamp_lower_limit) &&
           same_optional(&a->act_clamp_upper_limit, &b->act_clamp_upper_limit) &&
           a->has_gate == b->has_gate && a->has_bias == b->has_bias && a->scaling == b->scaling &&
           strncmp(x, y, LOADED_TEXT - 1) == 0 && a->score == b->score &&
           a->normalize == b->normalize && a->n_group == b->n_group &&
           a->topk_group == b->topk_group && a->group_rank == b->group_rank &&
           a->has_router_bias == b->has_router_bias &&
           a->has_selection_bias == b->has_selection_bias &&
           a->normalize_epsilon == b->normalize_epsilon && a->scale == b->scale &&
           a->shared_I == b->shared_I && strcmp(a->shared_format, b->shared_format) == 0 &&
           a->has_shared_gate == b->has_shared_gate && a->bytes == b->bytes;
}

static moe_status matches(const entry *e, const moe_model *model)
{
    layer_plan plan;
    origin now = {NULL, 0};
    int64_t i = 0;
    while (i < model->count && model->layers[i].number != e->said.info.layer) i++;
    if (i == model->count || strncmp(e->said.family, model->rules.family, LOADED_TEXT - 1) != 0)
        return model_fail(MOE_E_STALE, e->path, "layer %lld of a %s: %s has none",
                          (long long)e->said.info.layer, e->said.family, ck_path(model->ck));
    layer_place place = model_place(model, i);
    moe_status s = layer_resolve(&place, &plan);
    if (s == MOE_OK) s = origin_of(&plan, true, &now);
    if (s == MOE_OK) {
        const origin_file *other = origin_differs(&e->said.origin, &now);
        if (other)
            s = model_fail(MOE_E_STALE, e->path, "%s is not as it was when this was packed",
                           other->name);
        else if (!same_info(&e->said.info, &plan.info))
            s = model_fail(MOE_E_STALE, e->path, "%s is described otherwise by now",
                           ck_path(model->ck));
    }
    origin_free(&now);
    layer_plan_free(&plan);
    return s;
}

moe_status moe_model_matches(const moe_model *packed, const moe_model *model)
{
    if (packed == NULL) return model_argument(MOE_E_NULL_ARG, "cache = NULL: required");
    if (model == NULL) return model_argument(MOE_E_NULL_ARG, "model = NULL: required");
    const cache *c = packed->cache;
    if (!c)
        return model_argument(MOE_E_UNSUPPORTED, "cache: %s: is not packed", ck_path(packed->ck));
    if (model->cache)
        return model_argument(MOE_E_UNSUPPORTED, "model: %s: is packed itself", model->cache->path);
    moe_status s = MOE_OK;
    for (size_t i = 0; s == MOE_OK && i < c->count; i++) s = matches(&c->entries[i], model);
    return s;
}
