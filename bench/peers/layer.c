/* SPDX-License-Identifier: Apache-2.0 */
/* layer.c - random layers and tokens, and their result in double. */
#include "layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const peers_shape peers_shapes[] = {
    {"gpt-oss-20b", 2880, 2880, 32, 4, true, "mxfp4"},
    {"gpt-oss-120b", 2880, 2880, 128, 4, true, "mxfp4"},
    {"qwen3-30b-a3b", 2048, 768, 128, 8, false, "bf16"},
    {"granite-3.1-1b-a400m", 1024, 512, 32, 8, false, "bf16"},
    {NULL, 0, 0, 0, 0, false, NULL},
};

/* ---- numbers ------------------------------------------------------------------------------- */

uint64_t peers_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Nearly normal, mean 0, variance 1: four uniform numbers, added. */
static float normal(uint64_t *state)
{
    uint64_t r = peers_random(state);
    uint64_t sum = (r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48);
    return ((float)sum - 131070.0f) / 65536.0f * 1.7320508f;
}

static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- the layer ----------------------------------------------------------------------------- */

static void matrix_free(peers_matrix *m)
{
    free(m->bf16);
    free(m->codes);
    free(m->scale);
    free(m->bias);
}

/* Products with a row come out near `size` for inputs near 1.  With MXFP4 the scales of a row's
 * blocks are 2^low, 2^(low + 1) or 2^(low + 2), where the codes alone would give 2.9 sqrt(k). */
static bool matrix_make(peers_matrix *m, const peers_shape *shape, size_t rows, size_t k,
                        peers_format format, float size, uint64_t *state)
{
    const size_t n = shape->E * rows * k;
    *m = (peers_matrix){.rows = rows, .k = k};
    if (format == PEERS_BF16) {
        const float scale = size / sqrtf((float)k);
        if (!(m->bf16 = malloc(n * sizeof *m->bf16))) return false;
        for (size_t i = 0; i < n; i++) m->bf16[i] = to_bf16(scale * normal(state));
    } else {
        const int low = (int)floorf(log2f(size / (2.9f * sqrtf((float)k)))) - 1;
        if (!(m->codes = malloc(n / 2)) || !(m->scale = malloc(n / PEERS_BLOCK))) return false;
        for (size_t i = 0; i < n / 2; i += 16)
            for (size_t j = 0; j < 16; j += 8)
                memcpy(m->codes + i + j, &(uint64_t){peers_random(state)}, 8);
        for (size_t i = 0; i < n / PEERS_BLOCK; i++)
            m->scale[i] = (uint8_t)(127 + low + (int)(peers_random(state) % 3));
    }
    if (!shape->oai) return true;
    if (!(m->bias = malloc(shape->E * rows * sizeof *m->bias))) return false;
    for (size_t i = 0; i < shape->E * rows; i++)
        m->bias[i] = from_bf16(to_bf16(0.5f * normal(state)));
    return true;
}

bool peers_layer_make(peers_layer *layer, const peers_shape *shape, peers_format format,
                      uint64_t seed)
{
    uint64_t state = seed;
    *layer = (peers_layer){.shape = shape, .format = format};
    if (matrix_make(&layer->gate, shape, shape->I, shape->H, format, 3, &state) &&
        matrix_make(&layer->up, shape, shape->I, shape->H, format, 3, &state) &&
        matrix_make(&layer->down, shape, shape->H, shape->I, format, 1, &state))
        return true;
    peers_layer_free(layer);
    return false;
}

void peers_layer_free(peers_layer *layer)
{
    matrix_free(&layer->gate);
    matrix_free(&layer->up);
    matrix_free(&layer->down);
    *layer = (peers_layer){0};
}

void peers_row(const peers_matrix *m, size_t e, size_t row, float *values)
{
    static const float e2m1[16] = {0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                   -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    const size_t at = (e * m->rows + row) * m->k;
    if (m->bf16) {
        for (size_t i = 0; i < m->k; i++) values[i] = from_bf16(m->bf16[at + i]);
        return;
    }
    for (size_t b = 0; b < m->k / PEERS_BLOCK; b++) {
        const uint8_t *code = m->codes + at / 2 + b * PEERS_BLOCK / 2;
        const float scale = ldexpf(1, m->scale[at / PEERS_BLOCK + b] - 127);
        for (size_t i = 0; i < PEERS_BLOCK; i++)
            values[b * PEERS_BLOCK + i] = scale * e2m1[code[i / 2] >> 4 * (i % 2) & 15];
    }
}

/* ---- tokens -------------------------------------------------------------------------------- */

bool peers_batch_init(peers_batch *batch, const peers_shape *shape)
{
    *batch = (peers_batch){
        .bf16 = malloc(PEERS_MAX_T * shape->H * sizeof *batch->bf16),
        .x = malloc(PEERS_MAX_T * shape->H * sizeof *batch->x),
        .chosen = malloc(PEERS_MAX_T * shape->K * sizeof *batch->chosen),
        .affinity = malloc(PEERS_MAX_T * shape->K * sizeof *batch->affinity),
    };
    if (batch->bf16 && batch->x && batch->chosen && batch->affinity) return true;
    peers_batch_free(batch);
    return false;
}

void peers_batch_free(peers_batch *batch)
{
    free(batch->bf16);
    free(batch->x);
    free(batch->chosen);
    free(batch->affinity);
    *batch = (peers_batch){0};
}

static void route(int32_t *chosen, float *affinity, const peers_shape *shape, uint64_t *state)
{
    float sum = 0;
    for (size_t k = 0; k < shape->K;) {
        const int32_t e = (int32_t)(peers_random(state) % shape->E);
        bool taken = false;
        for (size_t j = 0; j < k; j++) taken |= chosen[j] == e;
        if (taken) continue;
        chosen[k] = e;
        affinity[k] = expf(normal(state));
        sum += affinity[k++];
    }
    for (size_t k = 0; k < shape->K; k++) affinity[k] /= sum;
}

void peers_batch_draw(peers_batch *batch, const peers_shape *shape, size_t T, uint64_t *state)
{
    batch->T = T;
    batch->experts = 0;
    for (size_t i = 0; i < T * shape->H; i++) {
        batch->bf16[i] = to_bf16(normal(state));
        batch->x[i] = from_bf16(batch->bf16[i]);
    }
    for (size_t t = 0; t < T; t++)
        route(batch->chosen + t * shape->K, batch->affinity + t * shape->K, shape, state);
    for (size_t e = 0; e < shape->E; e++) {
        bool drawn = false;
        for (size_t i = 0; i < T * shape->K; i++) drawn |= batch->chosen[i] == (int32_t)e;
        batch->experts += drawn;
    }
}

/* ---- the result ---------------------------------------------------------------------------- */

static double product(const peers_matrix *m, size_t e, size_t row, const double *x, float *values)
{
    double sum = 0;
    peers_row(m, e, row, values);
    for (size_t i = 0; i < m->k; i++) sum += values[i] * x[i];
    return m->bias ? sum + m->bias[e * m->rows + row] : sum;
}

static double activate(const peers_shape *shape, double g, double u)
{
    if (!shape->oai) return g / (1 + exp(-g)) * u;
    g = fmin(g, 7);
    u = fmax(fmin(u, 7), -7);
    return g / (1 + exp(-1.702 * g)) * (u + 1);
}

bool peers_reference(const peers_layer *layer, const peers_batch *batch, size_t t, double *y)
{
    const peers_shape *s = layer->shape;
    const size_t longest = s->H > s->I ? s->H : s->I;
    double *x = malloc(s->H * sizeof *x), *m = malloc(s->I * sizeof *m);
    float *row = malloc(longest * sizeof *row);
    const bool enough = x && m && row;
    if (enough) {
        for (size_t h = 0; h < s->H; h++) x[h] = batch->x[t * s->H + h], y[h] = 0;
        for (size_t k = 0; k < s->K; k++) {
            const size_t e = (size_t)batch->chosen[t * s->K + k];
            for (size_t i = 0; i < s->I; i++)
                m[i] = activate(s, product(&layer->gate, e, i, x, row),
                                product(&layer->up, e, i, x, row));
            for (size_t h = 0; h < s->H; h++)
                y[h] += batch->affinity[t * s->K + k] * product(&layer->down, e, h, m, row);
        }
    }
    free(x);
    free(m);
    free(row);
    return enough;
}
