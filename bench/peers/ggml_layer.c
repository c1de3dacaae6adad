/* SPDX-License-Identifier: Apache-2.0 */
/* ggml_layer.c - the layer in ggml.  The graph of the last prepared layer lives in the pool. */
#define _GNU_SOURCE
#include "ggml_layer.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { NODES = 256 };

struct ggml_pool {
    struct ggml_threadpool *threadpool;
    cpu_set_t cpus;
    int threads;
    ggml_gallocr_t memory;
    struct ggml_context *context; /* of the graph */
    struct ggml_cgraph *graph;
    struct ggml_tensor *output;
    struct ggml_cplan plan;
    size_t work_bytes;
    void *work;
};

struct ggml_layer {
    ggml_pool *pool;
    const peers_shape *shape;
    struct ggml_context *weights_context, *bias_context;
    ggml_backend_buffer_t weights_buffer, bias_buffer;
    struct ggml_tensor *gate, *up, *down, *gate_bias, *up_bias, *down_bias;
};

static struct ggml_context *new_context(size_t tensors, bool graph)
{
    return ggml_init((struct ggml_init_params){
        .mem_size = tensors * ggml_tensor_overhead() +
                    (graph ? ggml_graph_overhead_custom(NODES, false) : 0),
        .no_alloc = true,
    });
}

/* ---- threads ------------------------------------------------------------------------------- */

static void only_problems(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

ggml_pool *ggml_pool_create(int threads)
{
    ggml_log_set(only_problems, NULL);
    ggml_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    struct ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    sched_getaffinity(0, sizeof pool->cpus, &pool->cpus);
    for (int cpu = 0; cpu < GGML_MAX_N_THREADS && cpu < CPU_SETSIZE; cpu++)
        params.cpumask[cpu] = CPU_ISSET(cpu, &pool->cpus);
    params.strict_cpu = true;
    pool->threads = threads;
    pool->threadpool = ggml_threadpool_new(&params);
    pool->memory = ggml_gallocr_new(ggml_backend_cpu_buffer_type());
    if (pool->threadpool && pool->memory) return pool;
    ggml_pool_destroy(pool);
    return NULL;
}

void ggml_pool_destroy(ggml_pool *pool)
{
    if (!pool) return;
    if (pool->threadpool) ggml_threadpool_free(pool->threadpool);
    if (pool->memory) ggml_gallocr_free(pool->memory);
    ggml_free(pool->context);
    free(pool->work);
    free(pool);
}

void ggml_pool_pause(ggml_pool *pool)
{
    ggml_threadpool_pause(pool->threadpool);
    sched_setaffinity(0, sizeof pool->cpus, &pool->cpus);
}

/* ---- weights ------------------------------------------------------------------------------- */

static enum ggml_type type_of(const char *weights)
{
    if (strcmp(weights, "mxfp4") == 0) return GGML_TYPE_MXFP4;
    if (strcmp(weights, "q8_0") == 0) return GGML_TYPE_Q8_0;
    if (strcmp(weights, "q4_0") == 0) return GGML_TYPE_Q4_0;
    return GGML_TYPE_BF16;
}

/* A block of ours to a block of ggml's: scale first, then element j in the low and j + 16 in the
 * high nibble of byte j. */
static void convert_mxfp4(const uint8_t code[16], uint8_t scale, uint8_t block[17])
{
    block[0] = scale;
    for (int j = 0; j < 16; j++) {
        const int low = code[j / 2] >> 4 * (j % 2) & 15, high = code[8 + j / 2] >> 4 * (j % 2) & 15;
        block[1 + j] = (uint8_t)(low | high << 4);
    }
}

static void convert_expert(const peers_matrix *m, size_t e, enum ggml_type type, float *values,
                           char *to)
{
    const size_t n = m->rows * m->k;
    if (type == GGML_TYPE_BF16) {
        memcpy(to, m->bf16 + e * n, n * sizeof *m->bf16);
    } else if (type == GGML_TYPE_MXFP4) {
        for (size_t b = 0; b < n / 32; b++)
            convert_mxfp4(m->codes + e * n / 2 + b * 16, m->scale[e * n / 32 + b],
                          (uint8_t *)to + b * 17);
    } else {
        for (size_t row = 0; row < m->rows; row++) peers_row(m, e, row, values + row * m->k);
        ggml_quantize_chunk(type, values, to, 0, (int64_t)m->rows, (int64_t)m->k, NULL);
    }
}

/* The whole tensor at once: a buffer that rearranges takes it no other way. */
static bool fill(struct ggml_tensor *tensor, const peers_matrix *m, size_t experts)
{
    const size_t bytes = ggml_nbytes(tensor);
    char *data = malloc(bytes);
    float *values = malloc(m->rows * m->k * sizeof *values);
    const bool enough = data && values;
    if (enough) {
        for (size_t e = 0; e < experts; e++)
            convert_expert(m, e, tensor->type, values, data + bytes / experts * e);
        ggml_backend_tensor_set(tensor, data, 0, bytes);
    }
    free(values);
    free(data);
    return enough;
}

/* The first buffer type of the CPU backend's own that takes mul_mat_id of such weights, found as
 * llama.cpp's loader finds it: by asking about an operator whose weights are in an empty buffer
 * of that type. */
static ggml_backend_buffer_type_t repack_type(const peers_shape *shape, enum ggml_type type)
{
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_dev_get_extra_bufts_t list =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    struct ggml_context *context = new_context(4, false);
    ggml_backend_buffer_type_t found = NULL;
    struct ggml_tensor *weights =
        ggml_new_tensor_3d(context, type, (int64_t)shape->H, (int64_t)shape->I, (int64_t)shape->E);
    struct ggml_tensor *x = ggml_new_tensor_3d(context, GGML_TYPE_F32, (int64_t)shape->H, 1, 512);
    struct ggml_tensor *ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, (int64_t)shape->K, 512);
    struct ggml_tensor *product = ggml_mul_mat_id(context, weights, x, ids);
    for (ggml_backend_buffer_type_t *type_of_buffer = list ? list(device) : NULL;
         type_of_buffer && *type_of_buffer && !found; type_of_buffer++) {
        weights->buffer = ggml_backend_buft_alloc_buffer(*type_of_buffer, 0);
        if (ggml_backend_dev_supports_op(device, product)) found = *type_of_buffer;
        ggml_backend_buffer_free(weights->buffer);
        weights->buffer = NULL;
    }
    ggml_free(context);
    return found;
}

bool ggml_layer_can_repack(const peers_shape *shape, const char *weights)
{
    return repack_type(shape, type_of(weights)) != NULL;
}

static struct ggml_tensor *new_bias(ggml_layer *layer, const peers_matrix *m)
{
    return m->bias ? ggml_new_tensor_2d(layer->bias_context, GGML_TYPE_F32, (int64_t)m->rows,
                                        (int64_t)layer->shape->E)
                   : NULL;
}

static void fill_bias(struct ggml_tensor *tensor, const peers_matrix *m)
{
    if (tensor) ggml_backend_tensor_set(tensor, m->bias, 0, ggml_nbytes(tensor));
}

/* Before they are written; the system may decline.  Our weights have them too. */
static void ask_for_huge_pages(ggml_backend_buffer_t buffer)
{
    enum { HUGE_PAGE = 2 << 20 };
    char *base = ggml_backend_buffer_get_base(buffer);
    const size_t skip = -(uintptr_t)base % HUGE_PAGE, bytes = ggml_backend_buffer_get_size(buffer);
    if (bytes >= skip + HUGE_PAGE)
        madvise(base + skip, (bytes - skip) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
}

static bool create(ggml_layer *layer, const peers_layer *raw, enum ggml_type type, bool repack)
{
    const int64_t H = (int64_t)raw->shape->H, I = (int64_t)raw->shape->I,
                  E = (int64_t)raw->shape->E;
    ggml_backend_buffer_type_t where =
        repack ? repack_type(raw->shape, type) : ggml_backend_cpu_buffer_type();
    if (!where) return false;
    layer->weights_context = new_context(3, false);
    layer->up = ggml_new_tensor_3d(layer->weights_context, type, H, I, E);
    layer->gate = ggml_new_tensor_3d(layer->weights_context, type, H, I, E);
    layer->down = ggml_new_tensor_3d(layer->weights_context, type, I, H, E);
    layer->weights_buffer = ggml_backend_alloc_ctx_tensors_from_buft(layer->weights_context, where);
    if (!layer->weights_buffer) return false;
    ask_for_huge_pages(layer->weights_buffer);
    ggml_backend_buffer_set_usage(layer->weights_buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    const size_t experts = raw->shape->E;
    if (!fill(layer->up, &raw->up, experts) || !fill(layer->gate, &raw->gate, experts) ||
        !fill(layer->down, &raw->down, experts))
        return false;
    if (!raw->shape->oai) return true;

    layer->bias_context = new_context(3, false);
    layer->up_bias = new_bias(layer, &raw->up);
    layer->gate_bias = new_bias(layer, &raw->gate);
    layer->down_bias = new_bias(layer, &raw->down);
    layer->bias_buffer = ggml_backend_alloc_ctx_tensors_from_buft(layer->bias_context,
                                                                  ggml_backend_cpu_buffer_type());
    if (!layer->bias_buffer) return false;
    fill_bias(layer->up_bias, &raw->up);
    fill_bias(layer->gate_bias, &raw->gate);
    fill_bias(layer->down_bias, &raw->down);
    return true;
}

ggml_layer *ggml_layer_create(ggml_pool *pool, const peers_layer *raw, const char *weights,
                              bool repack)
{
    ggml_layer *layer = calloc(1, sizeof *layer);
    if (layer) {
        layer->pool = pool;
        layer->shape = raw->shape;
        if (create(layer, raw, type_of(weights), repack)) return layer;
    }
    fprintf(stderr, "ggml: no memory for the layer, or no such layout of it\n");
    ggml_layer_destroy(layer);
    return NULL;
}

void ggml_layer_destroy(ggml_layer *layer)
{
    if (!layer) return;
    ggml_backend_buffer_free(layer->weights_buffer);
    ggml_backend_buffer_free(layer->bias_buffer);
    ggml_free(layer->weights_context);
    ggml_free(layer->bias_context);
    free(layer);
}

/* ---- the graph ----------------------------------------------------------------------------- */

static struct ggml_tensor *multiply(struct ggml_context *c, struct ggml_tensor *weights,
                                    struct ggml_tensor *bias, struct ggml_tensor *x,
                                    struct ggml_tensor *ids)
{
    struct ggml_tensor *y = ggml_mul_mat_id(c, weights, x, ids);
    return bias ? ggml_add_id(c, y, bias, ids) : y;
}

/* build_moe_ffn from the selected experts and their weights on. */
static struct ggml_tensor *build(const ggml_layer *l, struct ggml_context *c,
                                 struct ggml_cgraph *graph, struct ggml_tensor *x,
                                 struct ggml_tensor *ids, struct ggml_tensor *affinity)
{
    x = ggml_reshape_3d(c, x, x->ne[0], 1, x->ne[1]);
    struct ggml_tensor *up = multiply(c, l->up, l->up_bias, x, ids);
    struct ggml_tensor *gate = multiply(c, l->gate, l->gate_bias, x, ids);
    struct ggml_tensor *m =
        l->shape->oai ? ggml_swiglu_oai(c, gate, up, 1.702f, 7.0f) : ggml_swiglu_split(c, gate, up);
    struct ggml_tensor *experts = multiply(c, l->down, l->down_bias, m, ids); /* [H, K, T] */
    experts = ggml_mul(c, experts, affinity);
    ggml_build_forward_expand(graph, experts);

    struct ggml_tensor *sum = NULL;
    for (size_t k = 0; k < l->shape->K; k++) {
        struct ggml_tensor *one = ggml_view_2d(c, experts, experts->ne[0], experts->ne[2],
                                               experts->nb[2], k * experts->nb[1]);
        ggml_build_forward_expand(graph, one);
        sum = sum ? ggml_add(c, sum, one) : one;
        ggml_build_forward_expand(graph, sum);
    }
    return sum;
}

static struct ggml_tensor *input(struct ggml_context *c, enum ggml_type type, size_t d0, size_t d1,
                                 size_t d2)
{
    struct ggml_tensor *t = ggml_new_tensor_3d(c, type, (int64_t)d0, (int64_t)d1, (int64_t)d2);
    ggml_set_input(t);
    return t;
}

void ggml_layer_prepare(ggml_layer *layer, const peers_batch *batch)
{
    ggml_pool *pool = layer->pool;
    const peers_shape *s = layer->shape;
    ggml_free(pool->context);
    struct ggml_context *c = pool->context = new_context(NODES, true);
    pool->graph = ggml_new_graph_custom(c, NODES, false);
    struct ggml_tensor *x = input(c, GGML_TYPE_F32, s->H, batch->T, 1);
    struct ggml_tensor *ids = input(c, GGML_TYPE_I32, s->K, batch->T, 1);
    struct ggml_tensor *affinity = input(c, GGML_TYPE_F32, 1, s->K, batch->T);
    pool->output = build(layer, c, pool->graph, x, ids, affinity);
    ggml_set_output(pool->output);
    if (!ggml_gallocr_alloc_graph(pool->memory, pool->graph)) abort();
    memcpy(x->data, batch->x, ggml_nbytes(x));
    memcpy(ids->data, batch->chosen, ggml_nbytes(ids));
    memcpy(affinity->data, batch->affinity, ggml_nbytes(affinity));

    pool->plan = ggml_graph_plan(pool->graph, pool->threads, pool->threadpool);
    if (pool->plan.work_size > pool->work_bytes) {
        free(pool->work);
        pool->work_bytes = pool->plan.work_size;
        pool->work = aligned_alloc(64, (pool->work_bytes + 63) / 64 * 64);
        if (!pool->work) abort();
    }
    pool->plan.work_data = pool->work;
}

bool ggml_layer_run(ggml_layer *layer)
{
    return ggml_graph_compute(layer->pool->graph, &layer->pool->plan) == GGML_STATUS_SUCCESS;
}

const float *ggml_layer_output(const ggml_layer *layer)
{
    return layer->pool->output->data;
}

const char *ggml_layer_version(void)
{
    return ggml_version();
}
