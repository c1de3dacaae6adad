/* SPDX-License-Identifier: Apache-2.0 */
/* cli_model_words.c - a layer in words and as JSON.
 *
 * Owns the names: keys of the JSON stay what they are, since others read them. */
#include "cli_model.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Appends to a text of CLI_MODEL_WORDS bytes, as much as fits. */
__attribute__((format(printf, 2, 3))) static void add(char *text, const char *format, ...)
{
    size_t n = strlen(text);
    va_list list;
    va_start(list, format);
    vsnprintf(text + n, CLI_MODEL_WORDS - n, format, list);
    va_end(list);
}

static const char *activation_name(moe_activation a)
{
    static const char *const NAMES[] = {"silu", "gelu",   "gelu_tanh", "swish",
                                        "relu", "swiglu", "relu2"};
    return (size_t)a < sizeof NAMES / sizeof NAMES[0] ? NAMES[a] : "unknown";
}

static const char *score_name(moe_router_score s)
{
    static const char *const NAMES[] = {"softmax", "topk_softmax", "sigmoid", "sqrt_softplus"};
    return (size_t)s < sizeof NAMES / sizeof NAMES[0] ? NAMES[s] : "unknown";
}

void cli_model_format_words(const moe_layer_info *l, char text[CLI_MODEL_WORDS])
{
    text[0] = '\0';
    add(text, "%s", l->gate_up_format);
    if (strcmp(l->gate_up_format, l->down_format) != 0) add(text, "/%s", l->down_format);
}

void cli_model_activation_words(const moe_layer_info *l, char text[CLI_MODEL_WORDS])
{
    text[0] = '\0';
    add(text, "%s", activation_name(l->activation));
    if (l->swiglu_alpha.given) add(text, " %g", (double)l->swiglu_alpha.value);
    if (l->swiglu_up_offset.given) add(text, ", up + %g", (double)l->swiglu_up_offset.value);
    if (!l->has_gate) add(text, ", no gate");
    if (l->gate_clamp_upper_limit.given)
        add(text, ", gate <= %g", (double)l->gate_clamp_upper_limit.value);
    if (l->up_clamp_lower_limit.given && l->up_clamp_upper_limit.given)
        add(text, ", %g <= up <= %g", (double)l->up_clamp_lower_limit.value,
            (double)l->up_clamp_upper_limit.value);
    else if (l->up_clamp_upper_limit.given)
        add(text, ", up <= %g", (double)l->up_clamp_upper_limit.value);
    else if (l->up_clamp_lower_limit.given)
        add(text, ", up >= %g", (double)l->up_clamp_lower_limit.value);
    if (l->act_clamp_upper_limit.given)
        add(text, ", activated <= %g", (double)l->act_clamp_upper_limit.value);
}

void cli_model_router_words(const moe_layer_info *l, char text[CLI_MODEL_WORDS])
{
    text[0] = '\0';
    if (l->foreign_router) {
        add(text, "%s (not this library's)", l->foreign_router);
        return;
    }
    if (l->score == MOE_SCORE_TOPK_SOFTMAX)
        add(text, "softmax of the top %lld", (long long)l->K);
    else
        add(text, "%s",
            l->score == MOE_SCORE_SQRT_SOFTPLUS ? "sqrt(softplus)" : score_name(l->score));
    if (l->has_router_bias) add(text, ", bias");
    if (l->has_selection_bias) add(text, " + selection bias");
    if (l->n_group > 1)
        add(text, ", best %d of %d groups%s", (int)l->topk_group, (int)l->n_group,
            l->group_rank == MOE_GROUP_BEST ? " by one expert each" : "");
    if (l->score != MOE_SCORE_TOPK_SOFTMAX) {
        add(text, ", top %lld", (long long)l->K);
        if (l->normalize) add(text, ", normalised");
    }
    if (l->scale != 1.0f) add(text, ", x %g", (double)l->scale);
    if (l->scaling == MOE_INPUT_SCALE) add(text, ", on the input");
}

void cli_model_shared_words(const moe_layer_info *l, char text[CLI_MODEL_WORDS])
{
    text[0] = '\0';
    if (l->shared_I == 0) {
        add(text, "-");
        return;
    }
    add(text, "I %lld, %s", (long long)l->shared_I, l->shared_format);
    if (l->has_shared_gate) add(text, ", gated");
}

static json_t *optional(moe_optional_float number)
{
    return number.given ? cli_json_real((double)number.value) : json_null();
}

static json_t *router_json(const moe_layer_info *l)
{
    if (l->foreign_router) return json_pack("{s:o}", "foreign", cli_json_text(l->foreign_router));
    return json_pack("{s:s, s:b, s:o, s:o, s:i, s:i, s:s, s:b, s:b}",                     //
                     "score", score_name(l->score),                                       //
                     "normalize", l->normalize,                                           //
                     "epsilon", cli_json_real((double)l->normalize_epsilon),              //
                     "scale", cli_json_real((double)l->scale),                            //
                     "n_group", (int)l->n_group,                                          //
                     "topk_group", (int)l->topk_group,                                    //
                     "group_rank", l->group_rank == MOE_GROUP_BEST ? "best" : "two_best", //
                     "bias", l->has_router_bias,                                          //
                     "selection_bias", l->has_selection_bias);
}

json_t *cli_model_layer_json(const moe_layer_info *l)
{
    json_t *shared = l->shared_I == 0 ? json_null()
                                      : json_pack("{s:I, s:s, s:b}",            //
                                                  "I", (json_int_t)l->shared_I, //
                                                  "format", l->shared_format,   //
                                                  "gate", l->has_shared_gate);
    json_t *activation = json_pack("{s:s, s:b, s:b, s:o, s:o, s:o, s:o, s:o, s:o}",         //
                                   "name", activation_name(l->activation),                  //
                                   "gate", l->has_gate,                                     //
                                   "biases", l->has_bias,                                   //
                                   "swiglu_alpha", optional(l->swiglu_alpha),               //
                                   "swiglu_up_offset", optional(l->swiglu_up_offset),       //
                                   "gate_upper_limit", optional(l->gate_clamp_upper_limit), //
                                   "up_upper_limit", optional(l->up_clamp_upper_limit),     //
                                   "up_lower_limit", optional(l->up_clamp_lower_limit),     //
                                   "act_upper_limit", optional(l->act_clamp_upper_limit));
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:o, s:s, s:o, s:o, s:I, s:I, s:o, s:o}", //
        "layer", (json_int_t)l->layer,                                                 //
        "H", (json_int_t)l->H,                                                         //
        "I", (json_int_t)l->I,                                                         //
        "E", (json_int_t)l->E,                                                         //
        "K", (json_int_t)l->K,                                                         //
        "gate_up_format", l->gate_up_format,                                           //
        "down_format", l->down_format,                                                 //
        "activation", activation,                                                      //
        "weights_on", l->scaling == MOE_INPUT_SCALE ? "input" : "output",              //
        "router", router_json(l),                                                      //
        "shared", shared,                                                              //
        "bytes", (json_int_t)l->bytes,                                                 //
        "expert_bytes", (json_int_t)l->expert_bytes,                                   //
        "token_expert_bytes", cli_json_real(cli_model_token_expert_bytes(l)),          //
        "token_bytes", cli_json_real(cli_model_token_bytes(l)));
}

double cli_model_token_expert_bytes(const moe_layer_info *l)
{
    return (double)l->K * (double)l->expert_bytes;
}

double cli_model_token_bytes(const moe_layer_info *l)
{
    double others = (double)l->bytes - (double)l->E * (double)l->expert_bytes;
    return cli_model_token_expert_bytes(l) + (others > 0 ? others : 0);
}
