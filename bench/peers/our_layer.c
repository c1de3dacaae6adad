/* SPDX-License-Identifier: Apache-2.0 */
/* our_layer.c - the layer in this library: experts packed once from the row-major matrices, calls
 * by moe_tkg_part on threads that poll between them, as ggml's do. */
#define _GNU_SOURCE
#include "our_layer.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- threads ------------------------------------------------------------------------------- */

typedef struct worker {
    our_pool *pool;
    int number; /* 0: the caller */
    int cpu;
    pthread_t thread;
} worker;

struct our_pool {
    moe_context *context;
    cpu_set_t cpus; /* all that the process may use */
    int threads, started;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_bool asleep;
    atomic_uint round; /* changes when a call starts */
    atomic_int inside; /* workers that have not returned from it */
    bool stop;
    our_layer *layer; /* whose call it is */
    worker worker[];
};

struct our_layer {
    our_pool *pool;
    const peers_shape *shape;
    moe_experts *experts;
    float *output;
    moe_tensor hidden, index, affinities;
    moe_tkg_args args;
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void pin(int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

static moe_status run_part(const our_pool *pool, int number)
{
    our_layer *l = pool->layer;
    return moe_tkg_part(pool->context, number, pool->threads, &l->args, l->output,
                        PEERS_MAX_T * l->shape->H * sizeof *l->output);
}

static void wait_for_round(our_pool *pool, unsigned seen)
{
    while (atomic_load_explicit(&pool->round, memory_order_acquire) == seen) {
        if (!atomic_load_explicit(&pool->asleep, memory_order_relaxed)) {
            relax();
            continue;
        }
        pthread_mutex_lock(&pool->lock);
        while (pool->asleep) pthread_cond_wait(&pool->wake, &pool->lock);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void *work(void *arg)
{
    const worker *w = arg;
    our_pool *pool = w->pool;
    pin(w->cpu);
    for (unsigned seen = 0;; seen++) {
        wait_for_round(pool, seen);
        if (pool->stop) return NULL;
        run_part(pool, w->number);
        atomic_fetch_sub(&pool->inside, 1);
    }
}

static void set_asleep(our_pool *pool, bool asleep)
{
    pthread_mutex_lock(&pool->lock);
    pool->asleep = asleep;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

/* Lets the workers go; what they read was written before. */
static void start_round(our_pool *pool)
{
    atomic_store(&pool->inside, pool->started);
    atomic_fetch_add(&pool->round, 1);
    if (pool->asleep) set_asleep(pool, false);
}

our_pool *our_pool_create(int threads)
{
    our_pool *pool = calloc(1, sizeof *pool + (size_t)threads * sizeof pool->worker[0]);
    if (!pool) return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->asleep = true;
    pool->threads = threads;
    sched_getaffinity(0, sizeof pool->cpus, &pool->cpus);
    for (int cpu = 0, n = 0; cpu < CPU_SETSIZE && n < threads; cpu++)
        if (CPU_ISSET((size_t)cpu, &pool->cpus))
            pool->worker[n] = (worker){.pool = pool, .number = n, .cpu = cpu}, n++;

    moe_context_options options = moe_context_options_init();
    options.threads = 1;
    if (moe_context_create(&options, &pool->context) != MOE_OK)
        fprintf(stderr, "moe_tkg: %s\n", moe_last_error());
    for (int n = 1; pool->context && n < threads; n++) {
        if (pthread_create(&pool->worker[n].thread, NULL, work, &pool->worker[n]) != 0) break;
        pool->started = n;
    }
    if (pool->context && pool->started == threads - 1) return pool;
    fprintf(stderr, "moe_tkg: no threads\n");
    our_pool_destroy(pool);
    return NULL;
}

void our_pool_destroy(our_pool *pool)
{
    if (!pool) return;
    pool->stop = true;
    start_round(pool);
    for (int n = 1; n <= pool->started; n++) pthread_join(pool->worker[n].thread, NULL);
    moe_context_destroy(pool->context);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void our_pool_pause(our_pool *pool)
{
    set_asleep(pool, true);
    sched_setaffinity(0, sizeof pool->cpus, &pool->cpus);
}

moe_context *our_pool_context(const our_pool *pool)
{
    return pool->context;
}

/* ---- weights ------------------------------------------------------------------------------- */

static moe_matrix describe(const peers_matrix *m)
{
    const int64_t rows = (int64_t)m->rows, k = (int64_t)m->k;
    moe_matrix d = {0};
    if (m->bf16) {
        d.weights = moe_array_dense(m->bf16, MOE_BF16, rows, k);
    } else {
        d.weights = moe_array_dense(m->codes, MOE_E2M1_X2, rows, k);
        d.scale = moe_array_dense(m->scale, MOE_E8M0, rows, k / PEERS_BLOCK);
    }
    if (m->bias) d.bias = moe_array_dense(m->bias, MOE_F32, rows, 1);
    return d;
}

our_layer *our_layer_create(our_pool *pool, const peers_layer *raw)
{
    our_layer *l = calloc(1, sizeof *l);
    if (!l || !(l->output = malloc(PEERS_MAX_T * raw->shape->H * sizeof *l->output))) {
        fprintf(stderr, "moe_tkg: no memory for the layer\n");
        our_layer_destroy(l);
        return NULL;
    }
    l->pool = pool;
    l->shape = raw->shape;
    moe_experts_args args = moe_experts_args_init();
    args.E_L = (int64_t)raw->shape->E;
    args.H = (int64_t)raw->shape->H;
    args.I = (int64_t)raw->shape->I;
    args.gate = describe(&raw->gate);
    args.up = describe(&raw->up);
    args.down = describe(&raw->down);
    if (moe_experts_create(pool->context, &args, &l->experts) == MOE_OK) return l;
    fprintf(stderr, "moe_tkg: %s\n", moe_last_error());
    our_layer_destroy(l);
    return NULL;
}

void our_layer_destroy(our_layer *l)
{
    if (!l) return;
    moe_experts_destroy(l->experts);
    free(l->output);
    free(l);
}

/* ---- calls --------------------------------------------------------------------------------- */

void our_layer_prepare(our_layer *l, const peers_batch *batch, moe_act_mode act)
{
    const int64_t T = (int64_t)batch->T, K = (int64_t)l->shape->K;
    l->hidden = moe_tensor_2d(batch->bf16, MOE_BF16, T, (int64_t)l->shape->H);
    l->index = moe_tensor_2d(batch->chosen, MOE_I32, T, K);
    l->affinities = moe_tensor_2d(batch->affinity, MOE_F32, T, K);

    l->args = moe_tkg_args_init();
    l->args.hidden_input = &l->hidden;
    l->args.experts = l->experts;
    l->args.expert_index = &l->index;
    l->args.expert_affinities_eager = &l->affinities;
    l->args.expert_affinities_scaling_mode = MOE_POST_SCALE;
    l->args.output_dtype = MOE_F32;
    l->args.act_mode = act;
    l->args.activation_fn = MOE_SILU;
    if (l->shape->oai) {
        l->args.activation_fn = MOE_SWIGLU;
        l->args.swiglu_alpha = moe_given_float(1.702f);
        l->args.swiglu_up_offset = moe_given_float(1.0f);
        l->args.gate_clamp_upper_limit = moe_given_float(7.0f);
        l->args.up_clamp_upper_limit = moe_given_float(7.0f);
        l->args.up_clamp_lower_limit = moe_given_float(-7.0f);
    }
    l->pool->layer = l;
    pin(l->pool->worker[0].cpu);
}

/* The arguments are the workers' until the last has returned. */
bool our_layer_run(our_layer *l)
{
    our_pool *pool = l->pool;
    start_round(pool);
    const moe_status status = run_part(pool, 0);
    while (atomic_load(&pool->inside) > 0) relax();
    if (status == MOE_OK) return true;
    fprintf(stderr, "moe_tkg: %s\n", moe_last_error());
    return false;
}

const float *our_layer_output(const our_layer *l)
{
    return l->output;
}
