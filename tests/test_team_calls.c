/* SPDX-License-Identifier: Apache-2.0 */
/* test_team_calls.c - calls on threads of the caller's own: moe_tkg_part and parallel_for. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "expect.h"
#include "jobs.h"

/* ---- layers with their outputs --------------------------------------------------------------- */

enum { MOST = 5 };

static moe_context *make_context(const moe_context_options *options)
{
    moe_context *context = NULL;
    assert_int_equal(moe_context_create(options, &context), MOE_OK);
    return context;
}

static moe_context *make_plain_context(int32_t threads)
{
    moe_context_options options = moe_context_options_init();
    options.threads = threads;
    return make_context(&options);
}

static void end_context(moe_context *context)
{
    assert_int_equal(moe_context_destroy(context), MOE_OK);
}

/* What fesetround(rounding) does to the arithmetic of this thread.  fegetround() would not do: it
 * may look at a part of the floating-point environment that SSE does not have. */
static bool rounds(int rounding)
{
    volatile float one = 1, tiny = 1e-10f;
    bool up = one + tiny > one, down = one - tiny < one;
    return up == (rounding == FE_UPWARD) && down == (rounding == FE_DOWNWARD);
}

static int count_tasks(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    if (d == NULL) return 0;
    while (readdir(d) != NULL) n++;
    closedir(d);
    return n;
}

/* ---- parts ----------------------------------------------------------------------------------- */

enum { ROUNDS = 4, CALLS = ROUNDS * JOBS };

typedef struct group { /* of threads that make calls together */
    moe_context *context;
    int32_t nth;
    bool late; /* threads dawdle between calls */
    unsigned char *output[CALLS];
} group;

typedef struct part {
    pthread_t thread;
    group *g;
    int32_t ith;
    unsigned wrong;
} part;

/* All calls one after the other, with no barrier between; every thread finds each output complete
 * and its own rounding mode as it was. */
static void *run_parts(void *arg)
{
    part *p = arg;
    group *g = p->g;
    fesetround(FE_UPWARD);
    for (unsigned i = 0; i < CALLS; i++) {
        const job *j = &jobs[i % JOBS];
        uint64_t random = layer_random(3, i, (uint64_t)p->ith);
        if (g->late && random % 4 == 0)
            nanosleep(&(struct timespec){.tv_nsec = (long)(random >> 8 & 0x1FFFF)}, NULL);
        p->wrong +=
            moe_tkg_part(g->context, p->ith, g->nth, &j->l.args, g->output[i], j->bytes) != MOE_OK;
        p->wrong += memcmp(g->output[i], j->expected, j->bytes) != 0;
        p->wrong += !rounds(FE_UPWARD);
    }
    fesetround(FE_TONEAREST);
    return NULL;
}

static void group_make(group *g, moe_context *context, int32_t nth, bool late)
{
    *g = (group){.context = context, .nth = nth, .late = late};
    for (unsigned i = 0; i < CALLS; i++) {
        g->output[i] = malloc(jobs[i % JOBS].bytes);
        assert_non_null(g->output[i]);
    }
}

static void start_parts(group *g, part parts[MOST])
{
    for (int32_t i = 0; i < g->nth; i++) {
        parts[i] = (part){.g = g, .ith = i};
        assert_int_equal(pthread_create(&parts[i].thread, NULL, run_parts, &parts[i]), 0);
    }
}

static void finish_parts(group *g, part parts[MOST])
{
    for (int32_t i = 0; i < g->nth; i++) {
        pthread_join(parts[i].thread, NULL);
        assert_int_equal(parts[i].wrong, 0);
    }
    for (unsigned i = 0; i < CALLS; i++) free(g->output[i]);
}

static const int32_t NTH[] = {1, 2, 3, 5};

static void test_parts_give_the_same_bits(void **state)
{
    (void)state;
    moe_context *context = make_plain_context(1); /* one for all nth */
    for (int late = 0; late <= 1; late++)
        for (size_t n = 0; n < COUNT(NTH); n++) {
            group g;
            part parts[MOST];
            group_make(&g, context, NTH[n], late != 0);
            start_parts(&g, parts);
            finish_parts(&g, parts);
        }
    end_context(context);
}

/* Two groups on contexts of their own, and calls of moe_tkg beside one of them. */
static void test_parts_beside_others(void **state)
{
    (void)state;
    group g[2];
    part parts[2][MOST];
    for (int k = 0; k < 2; k++) {
        group_make(&g[k], make_plain_context(2), 2 + k, false);
        start_parts(&g[k], parts[k]);
    }
    for (unsigned i = 0; i < CALLS; i++) assert_true(run_job(g[0].context, i));
    for (int k = 0; k < 2; k++) {
        finish_parts(&g[k], parts[k]);
        end_context(g[k].context);
    }
}

static void test_parts_make_no_threads(void **state)
{
    (void)state;
    int before = count_tasks();
    moe_context *context = make_plain_context(1);
    unsigned char *output = malloc(jobs[0].bytes);
    assert_int_equal(moe_tkg_part(context, 0, 1, &jobs[0].l.args, output, jobs[0].bytes), MOE_OK);
    assert_memory_equal(output, jobs[0].expected, jobs[0].bytes);
    assert_int_equal(count_tasks(), before);
    free(output);
    end_context(context);
}

/* ---- threads that change places -------------------------------------------------------------- */

/* Calls of 1 to MOST parts, by threads that have another part in each call or none; every other
 * call is an error.  The next call begins as soon as one part of this one has returned. */
enum { SWAPS = 600 };

typedef struct swap {
    pthread_t thread;
    moe_context *context;
    atomic_uint *returned; /* calls that a part has returned from */
    unsigned char **output;
    unsigned number, wrong;
} swap;

static void *run_swaps(void *arg)
{
    swap *s = arg;
    for (unsigned i = 0; i < SWAPS; i++) {
        const job *j = &jobs[i / 2 % JOBS];
        int32_t nth = (int32_t)(layer_random(5, i, 0) % MOST + 1),
                ith = (int32_t)((s->number + layer_random(6, i, 0)) % MOST);
        moe_tkg_args args = j->l.args;
        if (i % 2 == 0) args.hidden_input = NULL;
        while (atomic_load(s->returned) < i) sched_yield();
        if (ith >= nth) continue;
        moe_status status = moe_tkg_part(s->context, ith, nth, &args, s->output[i], j->bytes);
        s->wrong +=
            i % 2 == 0
                ? status != MOE_E_NULL_ARG || strstr(moe_last_error(), "hidden_input") == NULL
                : status != MOE_OK || memcmp(s->output[i], j->expected, j->bytes) != 0;
        unsigned seen = atomic_load(s->returned);
        while (seen <= i && !atomic_compare_exchange_weak(s->returned, &seen, i + 1)) continue;
    }
    return NULL;
}

static void test_parts_change_places(void **state)
{
    (void)state;
    swap s[MOST];
    atomic_uint returned = 0;
    unsigned char *output[SWAPS];
    moe_context *context = make_plain_context(1);
    for (unsigned i = 0; i < SWAPS; i++) {
        output[i] = malloc(jobs[i / 2 % JOBS].bytes);
        assert_non_null(output[i]);
    }
    for (unsigned n = 0; n < MOST; n++) {
        s[n] = (swap){.context = context, .returned = &returned, .output = output, .number = n};
        assert_int_equal(pthread_create(&s[n].thread, NULL, run_swaps, &s[n]), 0);
    }
    for (unsigned n = 0; n < MOST; n++) {
        pthread_join(s[n].thread, NULL);
        assert_int_equal(s[n].wrong, 0);
    }
    for (unsigned i = 0; i < SWAPS; i++) free(output[i]);
    end_context(context);
}

/* ---- errors of parts ------------------------------------------------------------------------- */

typedef struct lone_part { /* one thread's part of one call */
    pthread_t thread;
    moe_context *context;
    int32_t ith, nth;
    const moe_tkg_args *args;
    void *output;
    size_t bytes;
    moe_status status;
    char error[512];
} lone_part;

static void *run_part(void *arg)
{
    lone_part *p = arg;
    p->status = moe_tkg_part(p->context, p->ith, p->nth, p->args, p->output, p->bytes);
    snprintf(p->error, sizeof p->error, "%s", moe_last_error());
    return NULL;
}

/* A call of three threads on context: every one returns status with text in its error. */
static void expect_parts(moe_context *context, const moe_tkg_args *args, void *output, size_t bytes,
                         moe_status status, const char *text)
{
    lone_part p[3];
    for (int32_t i = 0; i < 3; i++) {
        p[i] = (lone_part){.context = context, .ith = i, .nth = 3, .args = args};
        p[i].output = output;
        p[i].bytes = bytes;
        assert_int_equal(pthread_create(&p[i].thread, NULL, run_part, &p[i]), 0);
    }
    for (int32_t i = 0; i < 3; i++) {
        pthread_join(p[i].thread, NULL);
        assert_int_equal(p[i].status, status);
        if (strstr(p[i].error, text) == NULL || (p[i].error[0] == '\0') != (status == MOE_OK))
            fail_msg("part %d: no \"%s\" in: %s", (int)i, text, p[i].error);
    }
}

static void *no_scratch(size_t bytes, size_t alignment, void *user)
{
    return *(bool *)user
               ? NULL
               : aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void give_back(void *block, size_t bytes, void *user)
{
    (void)bytes;
    (void)user;
    free(block);
}

static void test_all_parts_see_the_error(void **state)
{
    (void)state;
    bool empty = false;
    moe_context_options options = moe_context_options_init();
    options.threads = 1;
    options.allocate = no_scratch;
    options.release = give_back;
    options.user = &empty;
    moe_context *context = make_context(&options);
    const job *j = &jobs[0];
    unsigned char *output = malloc(j->bytes);
    moe_tkg_args args = j->l.args;
    args.hidden_input = NULL;
    for (int k = 0; k < 20; k++) {
        memset(output, 0xA5, j->bytes);
        expect_parts(context, &args, output, j->bytes, MOE_E_NULL_ARG, "hidden_input");
        expect_parts(context, NULL, output, j->bytes, MOE_E_NULL_ARG, "args");
        empty = true;
        if (k == 0) expect_parts(context, &j->l.args, output, j->bytes, MOE_E_NOMEM, "memory");
        empty = false;
        for (size_t b = 0; b < j->bytes; b++) assert_int_equal(output[b], 0xA5);
        expect_parts(context, &j->l.args, output, j->bytes, MOE_OK, "");
        assert_memory_equal(output, j->expected, j->bytes);
    }
    free(output);
    end_context(context);
}

static void test_bad_part_numbers(void **state)
{
    (void)state;
    static const struct {
        int32_t ith, nth;
        const char *text;
    } bad[] = {{0, 0, "nth = 0:"},    {0, -1, "nth = -1:"},  {0, 1025, "nth = 1025:"},
               {-1, 2, "ith = -1:"},  {2, 2, "ith = 2:"},    {1, 1, "ith = 1:"},
               {INT32_MIN, 1, "ith"}, {INT32_MAX, 2, "ith"}, {0, INT32_MAX, "nth"}};
    const job *j = &jobs[0];
    unsigned char *output = malloc(j->bytes);
    moe_context *context = make_plain_context(1);
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_int_equal(
            moe_tkg_part(context, bad[i].ith, bad[i].nth, &j->l.args, output, j->bytes),
            MOE_E_VALUE);
        assert_non_null(strstr(moe_last_error(), bad[i].text));
    }
    assert_int_equal(moe_tkg_part(NULL, 0, 1, &j->l.args, output, j->bytes), MOE_E_NULL_ARG);
    assert_non_null(strstr(moe_last_error(), "context"));
    free(output);
    end_context(context);
}

/* ---- while a part waits ---------------------------------------------------------------------- */

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The others sleep until thread 0 comes; the context cannot be destroyed meanwhile; and a child
 * that is forked now can use its copy. */
static void test_waiting_parts(void **state)
{
    (void)state;
    const job *j = &jobs[0];
    moe_context *context = make_plain_context(1);
    unsigned char *output = malloc(j->bytes);
    lone_part p[3];
    for (int32_t i = 0; i < 3; i++)
        p[i] = (lone_part){.context = context,
                           .ith = i,
                           .nth = 3,
                           .args = &j->l.args,
                           .output = output,
                           .bytes = j->bytes};
    for (int32_t i = 1; i < 3; i++)
        assert_int_equal(pthread_create(&p[i].thread, NULL, run_part, &p[i]), 0);
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL); /* they have come, and sleep */
    double before = cpu_seconds();
    nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    assert_true(cpu_seconds() - before < 0.05);
    assert_int_equal(moe_context_destroy(context), MOE_E_BUSY);
    assert_non_null(strstr(moe_last_error(), "2 calls"));
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        p[0].nth = 1;
        run_part(&p[0]);
        bool ok = p[0].status == MOE_OK && memcmp(output, j->expected, j->bytes) == 0;
        _exit(ok && moe_context_destroy(context) == MOE_OK ? 0 : 1);
    }
    int ended;
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    run_part(&p[0]);
    for (int32_t i = 1; i < 3; i++) pthread_join(p[i].thread, NULL);
    for (int32_t i = 0; i < 3; i++) assert_int_equal(p[i].status, MOE_OK);
    assert_memory_equal(output, j->expected, j->bytes);
    free(output);
    end_context(context);
}

/* ---- parallel_for ---------------------------------------------------------------------------- */

typedef struct pool { /* a caller's, of the simplest kind */
    int threads;
    bool reverse;
    size_t loops, most; /* calls of it; the largest n */
    atomic_uint wrong;
} pool;

typedef struct pool_item {
    pthread_t thread;
    pool *pool;
    void (*body)(void *arg, size_t i);
    void *arg;
    size_t i;
} pool_item;

static void *run_pool_item(void *arg)
{
    pool_item *item = arg;
    fesetround(FE_DOWNWARD);
    item->body(item->arg, item->i);
    if (!rounds(FE_DOWNWARD)) atomic_fetch_add(&item->pool->wrong, 1);
    fesetround(FE_TONEAREST);
    return NULL;
}

static void count_loop(pool *p, size_t n)
{
    p->loops++;
    if (n > p->most) p->most = n;
    if (n < 2) atomic_fetch_add(&p->wrong, 1);
}

static void for_on_threads(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user)
{
    pool *p = user;
    pool_item items[MOST];
    count_loop(p, n);
    for (size_t i = 0; i < n; i++) {
        items[i] = (pool_item){.pool = p, .body = body, .arg = arg, .i = i};
        if (i > 0 && pthread_create(&items[i].thread, NULL, run_pool_item, &items[i]) != 0) abort();
    }
    run_pool_item(&items[0]);
    for (size_t i = 1; i < n; i++) pthread_join(items[i].thread, NULL);
}

static void for_alone(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user)
{
    pool *p = user;
    count_loop(p, n);
    for (size_t i = 0; i < n; i++) {
        pool_item item = {.pool = p, .body = body, .arg = arg, .i = p->reverse ? n - 1 - i : i};
        run_pool_item(&item);
    }
}

static moe_context *make_pool_context(pool *p,
                                      void (*run)(void (*)(void *, size_t), void *, size_t, void *))
{
    int before = count_tasks();
    moe_context_options options = moe_context_options_init();
    options.threads = p->threads;
    options.parallel_for = run;
    options.parallel_user = p;
    moe_context *context = make_context(&options);
    assert_int_equal(count_tasks(), before);
    assert_int_equal(moe_context_threads(context), p->threads);
    return context;
}

static void test_parallel_for_gives_the_same_bits(void **state)
{
    (void)state;
    for (size_t n = 0; n < COUNT(NTH); n++)
        for (int kind = 0; kind < 3; kind++) {
            pool p = {.threads = NTH[n], .reverse = kind == 1};
            moe_context *context = make_pool_context(&p, kind == 2 ? for_on_threads : for_alone);
            for (unsigned i = 0; i < JOBS; i++) assert_true(run_job(context, i));
            assert_int_equal(atomic_load(&p.wrong), 0);
            assert_int_equal(p.most, NTH[n] > 1 ? NTH[n] : 0);
            end_context(context);
        }
}

typedef struct caller {
    pthread_t thread;
    moe_context *context;
    bool ok;
} caller;

static void *run_jobs(void *arg)
{
    caller *c = arg;
    c->ok = true;
    for (unsigned i = 0; i < 2 * JOBS; i++) c->ok = run_job(c->context, i) && c->ok;
    return NULL;
}

/* parallel_for counts its loops without a lock: one call at a time has it. */
static void test_parallel_for_with_many_callers(void **state)
{
    (void)state;
    pool p = {.threads = 3};
    moe_context *context = make_pool_context(&p, for_on_threads);
    caller c[4];
    for (size_t i = 0; i < COUNT(c); i++) {
        c[i] = (caller){.context = context};
        assert_int_equal(pthread_create(&c[i].thread, NULL, run_jobs, &c[i]), 0);
    }
    for (size_t i = 0; i < COUNT(c); i++) {
        pthread_join(c[i].thread, NULL);
        assert_true(c[i].ok);
    }
    assert_true(p.loops > 0);
    assert_int_equal(atomic_load(&p.wrong), 0);
    end_context(context);
}

static void test_parallel_for_in_a_child(void **state)
{
    (void)state;
    pool p = {.threads = 3};
    moe_context *context = make_pool_context(&p, for_on_threads);
    assert_true(run_job(context, 0));
    pid_t child = fork();
    if (child == 0) { /* the caller's threads were left behind */
        alarm(10);
        size_t before = p.loops;
        bool ok = moe_context_threads(context) == 1 && run_job(context, 1) && p.loops == before;
        _exit(ok && moe_context_destroy(context) == MOE_OK ? 0 : 1);
    }
    int ended;
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    assert_true(run_job(context, 2));
    end_context(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_give_the_same_bits),
        cmocka_unit_test(test_parts_beside_others),
        cmocka_unit_test(test_parts_make_no_threads),
        cmocka_unit_test(test_parts_change_places),
        cmocka_unit_test(test_all_parts_see_the_error),
        cmocka_unit_test(test_bad_part_numbers),
        cmocka_unit_test(test_waiting_parts),
        cmocka_unit_test(test_parallel_for_gives_the_same_bits),
        cmocka_unit_test(test_parallel_for_with_many_callers),
        cmocka_unit_test(test_parallel_for_in_a_child),
    };
    unsetenv("MOE_ISA");
    unsetenv("MOE_NUM_THREADS");
    return cmocka_run_group_tests_name("team_calls", tests, make_jobs, free_jobs);
}
