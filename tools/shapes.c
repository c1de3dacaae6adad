/* SPDX-License-Identifier: Apache-2.0 */
/* shapes.c - the table of models, and the finding of one by a name that is nearly right.
 *
 * Owns the numbers, which are those of the models' published configurations: the routed experts
 * alone, without routers and shared experts.  Refuses no model: what the operator lacks is said by
 * shape_is_supported. */
#include "shapes.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

typedef struct model {
    const char *name, *aliases; /* aliases: with spaces between */
    int H, I, E, K;
    shape_activation activation;
} model;

static const model MODELS[] = {
    {"gpt-oss-20b", "", 2880, 2880, 32, 4, SHAPE_SWIGLU_OAI},
    {"gpt-oss-120b", "", 2880, 2880, 128, 4, SHAPE_SWIGLU_OAI},
    {"mixtral-8x7b", "", 4096, 14336, 8, 2, SHAPE_SILU},
    {"mixtral-8x22b", "", 6144, 16384, 8, 2, SHAPE_SILU},
    {"qwen1.5-moe-a2.7b", "", 2048, 1408, 60, 4, SHAPE_SILU},
    {"qwen2-57b-a14b", "", 3584, 2560, 64, 8, SHAPE_SILU},
    {"qwen3-30b-a3b", "", 2048, 768, 128, 8, SHAPE_SILU},
    {"qwen3-235b-a22b", "", 4096, 1536, 128, 8, SHAPE_SILU},
    {"qwen3-coder-480b-a35b", "", 6144, 2560, 160, 8, SHAPE_SILU},
    {"qwen3-next-80b-a3b", "", 2048, 512, 512, 10, SHAPE_SILU},
    {"qwen3.5-35b-a3b", "qwen3.6-35b-a3b", 2048, 512, 256, 8, SHAPE_SILU},
    {"deepseek-v2-lite", "", 2048, 1408, 64, 6, SHAPE_SILU},
    {"deepseek-v3", "deepseek-r1 deepseek-v3.1", 7168, 2048, 256, 8, SHAPE_SILU},
    {"deepseek-v4-flash", "", 4096, 2048, 256, 6, SHAPE_SILU_CLAMPED},
    {"kimi-k2", "kimi-k2-thinking kimi-k2.5", 7168, 2048, 384, 8, SHAPE_SILU},
    {"kimi-linear-48b-a3b", "", 2304, 1024, 256, 8, SHAPE_SILU},
    {"glm-4.5", "glm-4.6 glm-4.7", 5120, 1536, 160, 8, SHAPE_SILU},
    {"glm-4.5-air", "", 4096, 1408, 128, 8, SHAPE_SILU},
    {"glm-5", "glm-5.1 glm-5.x", 6144, 2048, 256, 8, SHAPE_SILU},
    {"minimax-m2", "minimax-m2.1 minimax-m2.5 minimax-m2.x", 3072, 1536, 256, 8, SHAPE_SILU},
    {"llama-4-scout", "", 5120, 8192, 16, 1, SHAPE_SILU},
    {"llama-4-maverick", "", 5120, 8192, 128, 1, SHAPE_SILU},
    {"gemma-4-26b-a4b", "", 2816, 704, 128, 8, SHAPE_GELU_TANH},
    {"nemotron-3-nano-30b-a3b", "", 2688, 1856, 128, 6, SHAPE_RELU2},
    {"granite-4.0-h-small", "", 4096, 768, 72, 10, SHAPE_SILU},
    {"granite-3.1-3b-a800m", "", 1536, 512, 40, 8, SHAPE_SILU},
    {"granite-3.1-1b-a400m", "", 1024, 512, 32, 8, SHAPE_SILU},
    {"olmoe-1b-7b", "", 2048, 1024, 64, 8, SHAPE_SILU},
    {"phi-3.5-moe", "", 4096, 6400, 16, 2, SHAPE_SILU},
    {"dbrx", "", 6144, 10752, 16, 4, SHAPE_SILU},
};

bool shape_at(size_t i, shape *s, const char **aliases)
{
    if (i >= COUNT(MODELS)) return false;
    const model *m = &MODELS[i];
    *s = (shape){.H = m->H, .I = m->I, .E = m->E, .K = m->K, .activation = m->activation};
    s->bias = m->activation == SHAPE_SWIGLU_OAI;
    s->no_gate = m->activation == SHAPE_RELU2;
    snprintf(s->name, sizeof s->name, "%s", m->name);
    *aliases = m->aliases;
    return true;
}

/* ---- names --------------------------------------------------------------------------------- */

/* The letters and digits of the n characters at text, in small letters. */
static void plain_name(const char *text, size_t n, char plain[SHAPE_NAME])
{
    size_t length = 0;
    for (size_t i = 0; i < n && length < SHAPE_NAME - 1; i++)
        if (isalnum((unsigned char)text[i]))
            plain[length++] = (char)tolower((unsigned char)text[i]);
    plain[length] = '\0';
}

/* How many characters must be put in, left out or changed to make b of a. */
static size_t distance(const char *a, const char *b)
{
    size_t row[SHAPE_NAME], n = strlen(b);
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

/* 0: the same name; the more, the less alike.  A part of the name is near it. */
static size_t unlikeness(const char *wanted, const char *name, size_t n)
{
    char plain[SHAPE_NAME];
    plain_name(name, n, plain);
    size_t d = distance(wanted, plain);
    return d > 1 && strlen(wanted) > 1 && strstr(plain, wanted) ? 1 : d;
}

/* Of the model's names the nearest. */
static size_t model_unlikeness(const char *wanted, const model *m)
{
    size_t best = unlikeness(wanted, m->name, strlen(m->name));
    for (const char *p = m->aliases; *p;) {
        size_t n = strcspn(p, " "), d = unlikeness(wanted, p, n);
        if (d < best) best = d;
        p += n + strspn(p + n, " ");
    }
    return best;
}

/* "; near it: a, b" with up to four models that are near; nothing if none is. */
static void suggest(const char *wanted, char *message, size_t size)
{
    enum { MOST = 4, FAR = 4 };
    size_t found = 0, length = strlen(message), far = strlen(wanted) / 3;
    if (far > FAR) far = FAR;
    for (size_t d = 1; d <= far && found < MOST; d++)
        for (size_t i = 0; i < COUNT(MODELS) && found < MOST && length < size; i++) {
            if (model_unlikeness(wanted, &MODELS[i]) != d) continue;
            length += (size_t)snprintf(message + length, size - length, "%s%s",
                                       found++ ? ", " : "; near it: ", MODELS[i].name);
        }
}

/* ---- H,I,E,K ------------------------------------------------------------------------------- */

static bool parse_sizes(const char *text, shape *s, char *message, size_t size)
{
    static const char *const NAMES[] = {"H", "I", "E", "K"};
    const long long most[] = {SHAPE_MAX_SIZE, SHAPE_MAX_SIZE, SHAPE_MAX_E, SHAPE_MAX_E};
    long long value[4];
    const char *p = text;
    for (size_t i = 0; i < 4; i++) {
        char *end;
        errno = 0;
        value[i] = strtoll(p, &end, 10);
        if (!isdigit((unsigned char)*p) || *end != (i < 3 ? ',' : '\0')) {
            snprintf(message, size, "must be a name or four numbers H,I,E,K");
            return false;
        }
        if (errno || value[i] < 1 || value[i] > most[i]) {
            snprintf(message, size, "%s must be 1 to %lld", NAMES[i], most[i]);
            return false;
        }
        p = end + 1;
    }
    if (value[3] > value[2]) {
        snprintf(message, size, "K = %lld must be at most E = %lld", value[3], value[2]);
        return false;
    }
    *s = (shape){.H = value[0], .I = value[1], .E = value[2], .K = value[3]};
    snprintf(s->name, sizeof s->name, "%lld,%lld,%lld,%lld", value[0], value[1], value[2],
             value[3]);
    return true;
}

bool shape_parse(const char *text, shape *s, char *message, size_t size)
{
    char wanted[SHAPE_NAME];
    if (isdigit((unsigned char)*text)) return parse_sizes(text, s, message, size);
    plain_name(text, strlen(text), wanted);
    for (size_t i = 0; wanted[0] && i < COUNT(MODELS); i++) {
        const char *aliases;
        if (model_unlikeness(wanted, &MODELS[i]) == 0) return shape_at(i, s, &aliases);
    }
    snprintf(message, size, "no such shape");
    suggest(wanted, message, size);
    return false;
}

/* ---- activations --------------------------------------------------------------------------- */

bool shape_is_supported(const shape *s)
{
    return s->activation != SHAPE_RELU2;
}

const char *shape_activation_name(shape_activation a)
{
    switch (a) {
    case SHAPE_SILU: return "silu";
    case SHAPE_SILU_CLAMPED: return "silu, limit 10";
    case SHAPE_SWIGLU_OAI: return "swiglu 1.702, limit 7";
    case SHAPE_GELU_TANH: return "gelu_tanh";
    default: return "relu2, no gate";
    }
}

static void clamp(moe_tkg_args *args, float limit)
{
    args->gate_clamp_upper_limit = moe_given_float(limit);
    args->up_clamp_upper_limit = moe_given_float(limit);
    args->up_clamp_lower_limit = moe_given_float(-limit);
}

void shape_set_activation(const shape *s, moe_tkg_args *args)
{
    args->activation_fn = s->activation == SHAPE_SWIGLU_OAI  ? MOE_SWIGLU
                          : s->activation == SHAPE_GELU_TANH ? MOE_GELU_TANH
                                                             : MOE_SILU;
    if (s->activation == SHAPE_SILU_CLAMPED) clamp(args, 10);
    if (s->activation != SHAPE_SWIGLU_OAI) return;
    clamp(args, 7);
    args->swiglu_alpha = moe_given_float(1.702f);
    args->swiglu_up_offset = moe_given_float(1);
}
