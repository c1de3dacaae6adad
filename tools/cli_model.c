/* SPDX-License-Identifier: Apache-2.0 */
/* cli_model.c - opens and loads, with messages and a progress bar. */
#include "cli_model.h"

#include <stdio.h>
#include <stdlib.h>

int cli_model_failure(cli_error *error, moe_status status)
{
    if (status == MOE_E_NOMEM) return cli_fail(error, CLI_FAILED, "out of memory");
    return cli_fail(error, cli_exit_code(status), "%s", moe_io_last_error());
}

int cli_model_open(const char *path, const char *config, moe_model **model, cli_error *error)
{
    moe_model_options options = moe_model_options_init();
    options.config = config;
    moe_status status = moe_model_open(path, &options, model);
    return status == MOE_OK ? CLI_OK : cli_model_failure(error, status);
}

int cli_model_layers(const moe_model *model, moe_model_info *info, moe_layer_info **layer,
                     cli_error *error)
{
    *info = (moe_model_info){.struct_size = sizeof *info};
    *layer = NULL;
    moe_status status = moe_model_describe(model, info);
    if (status != MOE_OK) return cli_model_failure(error, status);
    *layer = calloc((size_t)info->moe_layers + 1, sizeof **layer);
    if (!*layer) return cli_model_failure(error, MOE_E_NOMEM);
    for (int64_t i = 0; status == MOE_OK && i < info->moe_layers; i++) {
        (*layer)[i].struct_size = sizeof **layer;
        status = moe_model_layer(model, i, &(*layer)[i]);
    }
    if (status == MOE_OK) return CLI_OK;
    free(*layer);
    *layer = NULL;
    return cli_model_failure(error, status);
}

int cli_model_find(const moe_model *model, int64_t layer, moe_layer_info *info, cli_error *error)
{
    moe_model_info m;
    moe_layer_info *all;
    int code = cli_model_layers(model, &m, &all, error);
    if (!all) return code;
    code = CLI_REFUSED;
    for (int64_t i = 0; code != CLI_OK && i < m.moe_layers; i++) {
        *info = all[i];
        if (info->layer == layer) code = CLI_OK;
    }
    const moe_layer_info *last = &all[m.moe_layers > 0 ? m.moe_layers - 1 : 0];
    if (code != CLI_OK)
        cli_fail(error, code,
                 "layer %lld is none with experts: %lld of the %lld layers are, in %lld to %lld",
                 (long long)layer, (long long)m.moe_layers, (long long)m.layers,
                 (long long)all->layer, (long long)last->layer);
    free(all);
    return code;
}

static int show_progress(void *user, uint64_t done, uint64_t all)
{
    cli_progress(all > 0 ? (double)done / (double)all : 0, user);
    return 0;
}

int cli_model_load(const moe_model *model, int64_t layer, moe_packing packing, moe_context *context,
                   moe_layer **loaded, cli_error *error)
{
    char what[40];
    moe_load_options options = moe_load_options_init();
    snprintf(what, sizeof what, "loading layer %lld", (long long)layer);
    options.packing = packing;
    options.progress = show_progress;
    options.user = what;
    moe_status status = moe_model_load(model, layer, context, &options, loaded);
    cli_progress_end();
    return status == MOE_OK ? CLI_OK : cli_model_failure(error, status);
}
