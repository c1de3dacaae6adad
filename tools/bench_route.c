/* SPDX-License-Identifier: Apache-2.0 */
/* bench_route.c - draws tokens.
 *
 * Owns their distribution: hidden rows are Gaussian, affinities the softmax of Gaussian logits.
 * Refuses a routing file that names an expert that is not there, or one twice for a token. */
#define _GNU_SOURCE 1

#include "bench_route.h"

#include "rng.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STREAM_ROUTER = 1, STREAM_TOKENS = 2, MAX_LINES = 1 << 24 };

static const char *const KINDS[] = {"uniform", "zipf", "one", "file"};

bool route_from_name(const char *text, route_kind *kind)
{
    for (size_t i = 0; i < sizeof KINDS / sizeof KINDS[0]; i++) {
        if (strcmp(text, KINDS[i]) != 0) continue;
        *kind = (route_kind)i;
        return true;
    }
    return false;
}

const char *route_name(route_kind kind)
{
    return KINDS[kind];
}

/* ---- drawing ------------------------------------------------------------------------------- */

/* K of the E numbers in order[], each set as likely: the first of a shuffle. */
static void draw_uniform(router *r, int32_t *chosen)
{
    for (int64_t k = 0; k < r->K; k++) {
        int64_t other = k + (int64_t)rng_below(&r->state, (uint64_t)(r->E - k));
        int32_t expert = r->order[other];
        r->order[other] = r->order[k];
        r->order[k] = chosen[k] = expert;
    }
}

/* One after another with the weights of those that are left: the K smallest of E waiting times with
 * these rates. */
static void draw_weighted(router *r, int32_t *chosen)
{
    for (int64_t e = 0; e < r->E; e++) r->key[e] = -log(rng_unit(&r->state)) / r->weight[e];
    for (int64_t k = 0; k < r->K; k++) {
        int64_t first = 0;
        for (int64_t e = 1; e < r->E; e++)
            if (r->key[e] < r->key[first]) first = e;
        r->key[first] = (double)INFINITY;
        chosen[k] = (int32_t)first;
    }
}

static void draw(router *r, size_t t, const int32_t *previous, int32_t *chosen)
{
    size_t bytes = (size_t)r->K * sizeof *chosen;
    switch (r->kind) {
    case ROUTE_ZIPF: draw_weighted(r, chosen); break;
    case ROUTE_FILE:
        memcpy(chosen, r->line + r->next * (size_t)r->K, bytes);
        r->next = (r->next + 1) % r->lines;
        break;
    case ROUTE_ONE:
        if (t > 0) {
            memcpy(chosen, previous, bytes);
            break;
        }
        draw_uniform(r, chosen);
        break;
    default: draw_uniform(r, chosen);
    }
}

/* ---- routing files ------------------------------------------------------------------------- */

/* The K experts of a line. */
static bool parse_line(const router *r, const char *text, int32_t *chosen, char *why, size_t size)
{
    int64_t n = 0;
    for (const char *p = text;;) {
        char *end;
        p += strspn(p, " \t,\r\n");
        if (*p == '\0') break;
        errno = 0;
        long long expert = strtoll(p, &end, 10);
        if (end == p || errno || (*end && !strchr(" \t,\r\n", *end))) {
            snprintf(why, size, "not a number: %.20s", p);
            return false;
        }
        if (expert < 0 || expert >= r->E) {
            snprintf(why, size, "expert %lld: must be 0 to %lld", expert, (long long)r->E - 1);
            return false;
        }
        for (int64_t k = 0; k < n && k < r->K; k++) {
            if (chosen[k] != expert) continue;
            snprintf(why, size, "expert %lld twice", expert);
            return false;
        }
        if (n < r->K) chosen[n] = (int32_t)expert;
        n++;
        p = end;
    }
    if (n == r->K) return true;
    snprintf(why, size, "%lld experts: must be K = %lld", (long long)n, (long long)r->K);
    return false;
}

static bool read_lines(router *r, FILE *file, const char *path, char *message, size_t size)
{
    char *text = NULL, why[96];
    size_t capacity = 0, room = 0, number = 0;
    bool good = true;
    while (good && getline(&text, &capacity, file) >= 0) {
        number++;
        size_t blank = strspn(text, " \t\r\n");
        if (text[blank] == '\0' || text[blank] == '#') continue;
        if (r->lines == room) {
            room = room ? 2 * room : 1024;
            int32_t *more =
                room > MAX_LINES ? NULL : realloc(r->line, room * (size_t)r->K * sizeof *more);
            if (!more) {
                snprintf(message, size, "%s: no memory for so many lines", path);
                free(text);
                return false;
            }
            r->line = more;
        }
        good = parse_line(r, text, r->line + r->lines * (size_t)r->K, why, sizeof why);
        if (!good) snprintf(message, size, "%s: line %zu: %s", path, number, why);
        r->lines++;
    }
    free(text);
    if (good && ferror(file)) {
        snprintf(message, size, "%s: cannot be read: %s", path, strerror(errno));
        return false;
    }
    if (good && r->lines == 0) snprintf(message, size, "%s: has no line of experts", path);
    return good && r->lines > 0;
}

static bool read_file(router *r, const char *path, char *message, size_t size)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        snprintf(message, size, "%s: cannot be opened: %s", path, strerror(errno));
        return false;
    }
    bool good = read_lines(r, file, path, message, size);
    fclose(file);
    return good;
}

/* ---- the router ---------------------------------------------------------------------------- */

/* Ranks by a random permutation. */
static void make_weights(router *r)
{
    for (int64_t e = r->E - 1; e > 0; e--) {
        int64_t other = (int64_t)rng_below(&r->state, (uint64_t)e + 1);
        int32_t expert = r->order[e];
        r->order[e] = r->order[other];
        r->order[other] = expert;
    }
    for (int64_t rank = 0; rank < r->E; rank++) r->weight[r->order[rank]] = 1 / (double)(rank + 1);
}

bool router_open(router *r, route_kind kind, const shape *s, uint64_t seed, const char *path,
                 char *message, size_t size)
{
    size_t E = (size_t)s->E;
    *r = (router){.kind = kind, .E = s->E, .K = s->K, .state = rng_stream(seed, STREAM_ROUTER)};
    r->weight = malloc(E * sizeof *r->weight);
    r->key = malloc(E * sizeof *r->key);
    r->order = malloc(E * sizeof *r->order);
    if (!r->weight || !r->key || !r->order) {
        snprintf(message, size, "out of memory");
        router_close(r);
        return false;
    }
    for (size_t e = 0; e < E; e++) r->order[e] = (int32_t)e;
    if (kind == ROUTE_ZIPF) make_weights(r);
    if (kind != ROUTE_FILE || read_file(r, path, message, size)) return true;
    router_close(r);
    return false;
}

void router_close(router *r)
{
    free(r->weight);
    free(r->key);
    free(r->order);
    free(r->line);
    *r = (router){0};
}

/* ---- batches ------------------------------------------------------------------------------- */

bool bench_batch_open(bench_batch *b, const shape *s, uint64_t seed)
{
    size_t H = (size_t)s->H, K = (size_t)s->K;
    *b = (bench_batch){0};
    b->x = malloc(BENCH_MAX_T * H * sizeof *b->x);
    b->chosen = malloc(BENCH_MAX_T * K * sizeof *b->chosen);
    b->affinity = malloc(BENCH_MAX_T * K * sizeof *b->affinity);
    b->seen = malloc((size_t)s->E);
    b->output = malloc(BENCH_MAX_T * H * sizeof *b->output);
    if (!b->x || !b->chosen || !b->affinity || !b->seen || !b->output) {
        bench_batch_close(b);
        return false;
    }
    uint64_t state = rng_stream(seed, STREAM_TOKENS);
    for (size_t i = 0; i < BENCH_MAX_T * H; i++) {
        float value = (float)rng_normal(&state);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        b->x[i] = (uint16_t)(bits >> 16);
    }
    memset(b->output, 0, BENCH_MAX_T * H * sizeof *b->output);
    b->hidden = moe_tensor_2d(b->x, MOE_BF16, 0, s->H);
    b->index = moe_tensor_2d(b->chosen, MOE_I32, 0, s->K);
    b->affinities = moe_tensor_2d(b->affinity, MOE_F32, 0, s->K);
    return true;
}

void bench_batch_close(bench_batch *b)
{
    free(b->x);
    free(b->chosen);
    free(b->affinity);
    free(b->seen);
    free(b->output);
    *b = (bench_batch){0};
}

void bench_batch_route(bench_batch *b, router *r, size_t T)
{
    size_t K = (size_t)r->K;
    memset(b->seen, 0, (size_t)r->E);
    b->T = T;
    b->experts = 0;
    for (size_t t = 0; t < T; t++) {
        int32_t *chosen = b->chosen + t * K;
        float *affinity = b->affinity + t * K, sum = 0;
        draw(r, t, b->chosen, chosen);
        for (size_t k = 0; k < K; k++) {
            b->experts += !b->seen[chosen[k]];
            b->seen[chosen[k]] = 1;
            sum += affinity[k] = expf((float)rng_normal(&r->state));
        }
        for (size_t k = 0; k < K; k++) affinity[k] /= sum;
    }
    b->hidden.shape[0] = b->index.shape[0] = b->affinities.shape[0] = (int64_t)T;
}

moe_tkg_args bench_batch_args(const bench_batch *b, const moe_tkg_args *call,
                              const moe_experts *experts, moe_act_mode act)
{
    moe_tkg_args args = *call;
    args.hidden_input = &b->hidden;
    args.expert_index = &b->index;
    args.expert_affinities_eager = &b->affinities;
    args.act_mode = act;
    args.experts = experts;
    return args;
}
