/* SPDX-License-Identifier: Apache-2.0 */
/* model.c - opens and describes models.  Refuses those that no family knows, and those of a known family
 * without a layer of experts. */
#include "io/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/cache.h"
#include "io/checkpoint_files.h"
#include "io/model_error.h"

/* Before "layers.": the language model by itself, or inside one that also sees; Nemotron's; none. */
static const char *const prefixes[] = {"model.", "model.language_model.", "language_model.model.",
                                       "backbone.", ""};

enum { PREFIXES = sizeof prefixes / sizeof prefixes[0] };

moe_status model_struct_size(const void *structure, size_t known, const char *name)
{
    enum { LARGEST = 4096 }; /* beyond any version to come: the field is not what it should be */
    const unsigned char *bytes = structure;
    size_t size;
    memcpy(&size, bytes, sizeof size);
    if (size < known || size > LARGEST)
        return model_argument(MOE_E_ABI, "struct_size = %zu: must be %zu (%s_init sets it)", size,
                              known, name);
    for (size_t i = known; i < size; i++)
        if (bytes[i] != 0)
            return model_argument(MOE_E_ABI,
                                  "struct_size = %zu: a field of %s past byte %zu is set that this "
                                  "library (version %s) does not know",
                                  size, name, known, moe_version());
    return MOE_OK;
}

/* ---- opening --------------------------------------------------------------------------------- */

static moe_status read_config(moe_model *m, const char *given)
{
    io_error error;
    cfg_file *config;
    char *beside = given ? NULL : files_join(ck_folder(m->ck), "config.json");
    const char *path = given ? given : beside;
    if (!path) return model_fail(MOE_E_NOMEM, ck_path(m->ck), "out of memory");
    moe_status s = MOE_OK;
    if (cfg_open(path, &config, &error) != IO_OK) {
        s = model_reader(&error);
        if (!given && s == MOE_E_OPEN)
            s = model_fail(MOE_E_MODEL, ck_path(m->ck),
                           "no model without its config.json, which is not beside it");
    } else {
        s = family_of_config(config, path, &m->rules);
        cfg_close(config);
    }
    free(beside);
    return s;
}

static moe_status no_layers(const moe_model *m)
{
    char first[LAYER_NAME_BYTES], router[LAYER_NAME_BYTES];
    const layout *l = m->rules.layouts[0];
    const layer_place place = {m->ck, &m->rules, l, ck_gguf(m->ck) ? "" : prefixes[0], 0};
    layer_name(&place, l->down, 0, l->suffix, first);
    layer_name(&place, l->router, 0, "", router);
    return model_fail(
        MOE_E_MODEL, ck_path(m->ck),
        "no layer of experts as %s has them: looked in all %lld layers for tensors such "
        "as %s and %s",
        m->rules.family, (long long)m->rules.layers, first, router);
}

typedef struct seen {
    const moe_model *model;
    bool *layers; /* [rules.layers]: which have tensors */
} seen;

static void see_name(void *user, const char *name)
{
    const seen *s = user;
    const family_rules *rules = &s->model->rules;
    for (int i = 0; i < FAMILY_LAYOUTS && rules->layouts[i]; i++) {
        int64_t number = layer_number(name, rules->layouts[i], s->model->prefix);
        if (number >= 0 && number < rules->layers) s->layers[number] = true;
    }
}

/* Looks only at layers that have tensors: a configuration may say that there are many more. */
static void list_seen(moe_model *m, bool *layers)
{
    seen s = {m, layers};
    memset(layers, 0, (size_t)m->rules.layers * sizeof *layers);
    ck_names(m->ck, see_name, &s);
    for (int64_t n = 0; n < m->rules.layers; n++) {
        const layout *l = layers[n] ? layer_layout(m->ck, &m->rules, m->prefix, n) : NULL;
        if (l) m->layers[m->count++] = (model_layer){n, l};
    }
}

static moe_status list_layers(moe_model *m)
{
    bool *layers = malloc((size_t)m->rules.layers * sizeof *layers);
    m->layers = calloc((size_t)m->rules.layers, sizeof *m->layers);
    if (!m->layers || !layers) {
        free(layers);
        return model_fail(MOE_E_NOMEM, ck_path(m->ck), "out of memory");
    }
    for (int i = ck_gguf(m->ck) ? PREFIXES - 1 : 0; i < PREFIXES && m->count == 0; i++) {
        m->prefix = prefixes[i];
        list_seen(m, layers);
    }
    free(layers);
    return m->count > 0 ? MOE_OK : no_layers(m);
}

static moe_status open_model(moe_model *m, const char *path, const char *config)
{
    moe_status s = cache_open(path, &m->cache);
    if (s != MOE_OK || m->cache) return s;
    s = ck_open(path, &m->ck);
    if (s != MOE_OK) return s;
    s = ck_gguf(m->ck) ? family_of_gguf(ck_gguf(m->ck), path, &m->rules) : read_config(m, config);
    return s == MOE_OK ? list_layers(m) : s;
}

moe_status moe_model_open(const char *path, const moe_model_options *options, moe_model **model)
{
    if (model == NULL) return model_argument(MOE_E_NULL_ARG, "model = NULL: required");
    *model = NULL;
    if (path == NULL) return model_argument(MOE_E_NULL_ARG, "path = NULL: required");
    if (*path == '\0') return model_argument(MOE_E_OPEN, "path = \"\": must name a model");
    moe_status s = MOE_OK;
    if (options) s = model_struct_size(options, sizeof *options, "moe_model_options");
    if (s != MOE_OK) return s;
    if (options && options->config && *options->config == '\0')
        return model_argument(MOE_E_OPEN, "config = \"\": must name a file, or be NULL");
    moe_model *m = calloc(1, sizeof *m);
    if (!m) return model_fail(MOE_E_NOMEM, path, "out of memory");
    s = open_model(m, path, options ? options->config : NULL);
    if (s == MOE_OK)
        *model = m;
    else
        moe_model_close(m);
    return s;
}

void moe_model_close(moe_model *model)
{
    if (!model) return;
    cache_close(model->cache);
    ck_close(model->ck);
    free(model->layers);
    free(model);
}

/* ---- describing ------------------------------------------------------------------------------ */

moe_status moe_model_describe(const moe_model *model, moe_model_info *info)
{
    if (model == NULL) return model_argument(MOE_E_NULL_ARG, "model = NULL: required");
    if (info == NULL) return model_argument(MOE_E_NULL_ARG, "info = NULL: required");
    moe_status s = model_struct_size(info, sizeof *info, "moe_model_info");
    if (s != MOE_OK) return s;
    if (model->cache) {
        cache_describe(model->cache, info);
        return MOE_OK;
    }
    info->family = model->rules.family;
    info->container = ck_gguf(model->ck) ? "gguf" : "safetensors";
    info->layers = model->rules.layers;
    info->moe_layers = model->count;
    return MOE_OK;
}

layer_place model_place(const moe_model *model, int64_t i)
{
    return (layer_place){model->ck, &model->rules, model->layers[i].layout, model->prefix,
                         model->layers[i].number};
}

moe_status moe_model_layer(const moe_model *model, int64_t i, moe_layer_info *info)
{
    if (model == NULL) return model_argument(MOE_E_NULL_ARG, "model = NULL: required");
    if (info == NULL) return model_argument(MOE_E_NULL_ARG, "info = NULL: required");
    moe_status s = model_struct_size(info, sizeof *info, "moe_layer_info");
    if (s != MOE_OK) return s;
    int64_t count = model->cache ? cache_count(model->cache) : model->count;
    if (i < 0 || i >= count)
        return model_argument(MOE_E_VALUE, "i = %lld: must be in [0, %lld)", (long long)i,
                              (long long)count);
    if (model->cache) {
        cache_layer(model->cache, i, info);
        return MOE_OK;
    }
    layer_place place = model_place(model, i);
    layer_plan plan;
    s = layer_resolve(&place, &plan);
    if (s == MOE_OK) {
        plan.info.struct_size = info->struct_size;
        *info = plan.info;
    }
    layer_plan_free(&plan);
    return s;
}
