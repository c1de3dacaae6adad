/* SPDX-License-Identifier: Apache-2.0 */
/* inspect.c - a model's layers with experts, as a table and as JSON.
 *
 * Layers that follow each other at one distance, and of which the same is to be said, are one row. */
#include "inspect.h"

#include "table.h"

#include <stdio.h>
#include <stdlib.h>

int inspect_open(inspection *in, const char *config, cli_error *error)
{
    int code = cli_model_open(in->path, config, &in->model, error);
    if (code != CLI_OK) return code;
    code = cli_model_layers(in->model, &in->info, &in->layer, error);
    if (code != CLI_OK) inspect_close(in);
    return code;
}

void inspect_close(inspection *in)
{
    free(in->layer);
    moe_model_close(in->model);
    in->layer = NULL;
    in->model = NULL;
}

/* ---- sums ------------------------------------------------------------------------------------ */

typedef struct sums {
    double bytes, token_expert_bytes, token_bytes; /* of all layers */
    double tokens_per_second;                      /* 0: not known */
} sums;

static sums sum_up(const inspection *in)
{
    sums s = {0};
    for (int64_t i = 0; i < in->info.moe_layers; i++) {
        s.bytes += (double)in->layer[i].bytes;
        s.token_expert_bytes += cli_model_token_expert_bytes(&in->layer[i]);
        s.token_bytes += cli_model_token_bytes(&in->layer[i]);
    }
    if (in->gbps > 0 && s.token_bytes > 0) s.tokens_per_second = 1e9 * in->gbps / s.token_bytes;
    return s;
}

/* ---- the table ------------------------------------------------------------------------------- */

static const char *const TITLES[] = {
    "<layers",
    ">H",
    ">I",
    ">E",
    ">K",
    "<experts",
    "<activation",
    "<router",
    "<shared expert",
    ">MB",
    ">MB an expert",
    ">MB of experts a token",
};

enum { COLUMNS = sizeof TITLES / sizeof TITLES[0] };

/* Layers first, first + step, ... last. */
static void add_row(table *t, const moe_layer_info *l, int64_t last, int64_t step)
{
    char words[CLI_MODEL_WORDS];
    if (last == l->layer)
        table_cell(t, "%lld", (long long)last);
    else if (step == 1)
        table_cell(t, "%lld-%lld", (long long)l->layer, (long long)last);
    else
        table_cell(t, "%lld-%lld by %lld", (long long)l->layer, (long long)last, (long long)step);
    table_cell(t, "%lld", (long long)l->H);
    table_cell(t, "%lld", (long long)l->I);
    table_cell(t, "%lld", (long long)l->E);
    table_cell(t, "%lld", (long long)l->K);
    cli_model_format_words(l, words);
    table_cell(t, "%s%s", words, l->has_bias ? ", biases" : "");
    cli_model_activation_words(l, words);
    table_cell(t, "%s", words);
    cli_model_router_words(l, words);
    table_cell(t, "%s", words);
    cli_model_shared_words(l, words);
    table_cell(t, "%s", words);
    table_megabytes(t, (double)l->bytes);
    table_megabytes(t, (double)l->expert_bytes);
    table_megabytes(t, cli_model_token_expert_bytes(l));
}

/* Whether the same is said of two layers but for their numbers. */
static bool alike(const moe_layer_info *a, const moe_layer_info *b)
{
    moe_layer_info renumbered = *b;
    renumbered.layer = a->layer;
    json_t *x = cli_model_layer_json(a), *y = cli_model_layer_json(&renumbered);
    bool same = json_equal(x, y);
    json_decref(x);
    json_decref(y);
    return same;
}

static void add_rows(table *t, const inspection *in)
{
    for (int64_t i = 0, next; i < in->info.moe_layers; i = next) {
        int64_t step = 0;
        for (next = i + 1; next < in->info.moe_layers; next++) {
            int64_t distance = in->layer[next].layer - in->layer[next - 1].layer;
            if ((step != 0 && distance != step) || !alike(&in->layer[i], &in->layer[next])) break;
            step = distance;
        }
        add_row(t, &in->layer[i], in->layer[next - 1].layer, step);
    }
}

static void print_rate(const inspection *in, const sums *s)
{
    double shared = s->token_bytes - s->token_expert_bytes;
    printf("\nA token reads %.1f MB of experts", 1e-6 * s->token_expert_bytes);
    if (shared > 0) printf(", and %.1f MB of routers and shared experts", 1e-6 * shared);
    printf(", in %lld layer%s.\n", (long long)in->info.moe_layers,
           in->info.moe_layers == 1 ? "" : "s");
    if (s->tokens_per_second == 0) return;
    printf("%s %.1f GB/s: at most %.1f tokens/s for all of them, one token at a time.\n",
           in->measured ? "This machine's memory is read at" : "At", in->gbps,
           s->tokens_per_second);
}

int inspect_print(const inspection *in, const cli *c)
{
    sums s = sum_up(in);
    table t = {.titles = TITLES, .columns = COLUMNS};
    printf("%s, %s: %lld layers, %lld of them with experts, %.1f MB\n\n", in->info.family,
           in->info.container, (long long)in->info.layers, (long long)in->info.moe_layers,
           1e-6 * s.bytes);
    add_rows(&t, in);
    bool printed = table_print(&t);
    table_free(&t);
    if (!printed) return cli_failure(c, "out of memory");
    print_rate(in, &s);
    return CLI_OK;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

int inspect_print_json(const inspection *in, const cli *c)
{
    sums s = sum_up(in);
    json_t *layers = json_array();
    for (int64_t i = 0; i < in->info.moe_layers; i++)
        json_array_append_new(layers, cli_model_layer_json(&in->layer[i]));
    json_t *gbps = in->gbps > 0 ? cli_json_real(in->gbps) : json_null();
    json_t *rate = s.tokens_per_second > 0 ? cli_json_real(s.tokens_per_second) : json_null();
    return cli_print_json(c, json_pack("{s:o, s:s, s:s, s:I, s:o, s:o, s:o, s:o, s:o, s:b, s:o}", //
                                       "path", cli_json_text(in->path),                           //
                                       "family", in->info.family,                                 //
                                       "container", in->info.container,                           //
                                       "layers", (json_int_t)in->info.layers,                     //
                                       "moe_layers", layers,                                      //
                                       "bytes", cli_json_real(s.bytes),                           //
                                       "token_expert_bytes", cli_json_real(s.token_expert_bytes), //
                                       "token_bytes", cli_json_real(s.token_bytes),               //
                                       "read_gbps", gbps,                                         //
                                       "measured", in->measured,                                  //
                                       "tokens_per_second", rate));
}
