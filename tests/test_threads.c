/* SPDX-License-Identifier: Apache-2.0 */
/* test_threads.c - contexts: shared by threads, counted, forked, idle, destroyed too early. */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "expect.h"
#include "jobs.h"

/* ---- layers with their outputs --------------------------------------------------------------- */

static moe_context *make_context(int32_t threads)
{
    moe_context *context = NULL;
    moe_context_options options = moe_context_options_init();
    options.threads = threads;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    assert_non_null(context);
    return context;
}

static void run_all_jobs(moe_context *context)
{
    for (unsigned i = 0; i < JOBS; i++) assert_true(run_job(context, i));
}

static void end_context(moe_context *context)
{
    assert_int_equal(moe_context_destroy(context), MOE_OK);
}

/* ---- callers at the same time ---------------------------------------------------------------- */

typedef struct caller {
    pthread_t thread;
    moe_context *context;
    unsigned first, count;   /* jobs */
    const atomic_bool *stop; /* if given, in place of count */
    bool ok;
} caller;

static void *call(void *arg)
{
    caller *c = arg;
    c->ok = true;
    for (unsigned i = 0; c->stop ? !atomic_load(c->stop) : i < c->count; i++)
        c->ok = run_job(c->context, c->first + i) && c->ok;
    return NULL;
}

static void test_many_callers_of_one_context(void **state)
{
    (void)state;
    static const unsigned callers[] = {2, 3, 8, 16};
    for (size_t n = 0; n < COUNT(callers); n++) {
        moe_context *context = make_context(1 + (int32_t)n);
        caller c[16];
        for (unsigned i = 0; i < callers[n]; i++) {
            c[i] = (caller){.context = context, .first = i * 5, .count = 2 * JOBS};
            assert_int_equal(pthread_create(&c[i].thread, NULL, call, &c[i]), 0);
        }
        for (unsigned i = 0; i < callers[n]; i++) {
            pthread_join(c[i].thread, NULL);
            assert_true(c[i].ok);
        }
        end_context(context);
    }
}

static void test_many_contexts(void **state)
{
    (void)state;
    moe_context *contexts[24];
    for (size_t i = 0; i < COUNT(contexts); i++) contexts[i] = make_context(1 + (int32_t)i % 4);
    for (unsigned i = 0; i < 3 * COUNT(contexts); i++)
        assert_true(run_job(contexts[i % COUNT(contexts)], i));
    for (size_t i = 0; i < COUNT(contexts); i++) end_context(contexts[i]);
}

static void test_short_lives(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 200; i++) {
        moe_context *context = make_context(1 + (int32_t)i % 8);
        if (i % 3 == 0) assert_true(run_job(context, i));
        end_context(context);
    }
}

static void test_more_threads_than_processors(void **state)
{
    (void)state;
    moe_context *context = make_context(64);
    run_all_jobs(context);
    end_context(context);
}

/* ---- destroyed too early --------------------------------------------------------------------- */

typedef struct gate { /* an allocator that stops a call inside the library */
    bool closed;
    sem_t reached, opened;
} gate;

static void *allocate_at_gate(size_t bytes, size_t alignment, void *user)
{
    gate *g = user;
    if (g->closed) {
        sem_post(&g->reached);
        sem_wait(&g->opened);
    }
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void release_at_gate(void *memory, size_t bytes, void *user)
{
    (void)bytes;
    (void)user;
    free(memory);
}

static void test_destroy_during_a_call(void **state)
{
    (void)state;
    gate g = {.closed = false};
    sem_init(&g.reached, 0, 0);
    sem_init(&g.opened, 0, 0);
    moe_context_options options = moe_context_options_init();
    options.threads = 2;
    options.allocate = allocate_at_gate;
    options.release = release_at_gate;
    options.user = &g;
    moe_context *context;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    g.closed = true;
    caller c = {.context = context, .count = 1};
    assert_int_equal(pthread_create(&c.thread, NULL, call, &c), 0);
    sem_wait(&g.reached);
    for (int i = 0; i < 3; i++) assert_int_equal(moe_context_destroy(context), MOE_E_BUSY);
    assert_non_null(strstr(moe_last_error(), "context"));
    g.closed = false;
    sem_post(&g.opened);
    pthread_join(c.thread, NULL);
    assert_true(c.ok);
    run_all_jobs(context);
    end_context(context);
    sem_destroy(&g.reached);
    sem_destroy(&g.opened);
}

static void test_nothing_to_destroy(void **state)
{
    (void)state;
    assert_int_equal(moe_context_destroy(NULL), MOE_OK);
}

/* ---- fork ------------------------------------------------------------------------------------ */

/* A child runs a job on its copy of context and destroys it, within 10 s. */
static void expect_child_works(moe_context *context, unsigned i)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(10);
        bool ok =
            moe_context_threads(context) == 1 && run_job(context, i) && run_job(context, i + 1);
        _exit(ok && moe_context_destroy(context) == MOE_OK ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) fail_msg("fork %u: the child ended by signal %d", i, WTERMSIG(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_fork_while_idle(void **state)
{
    (void)state;
    moe_context *context = make_context(3);
    expect_child_works(context, 0);
    run_all_jobs(context);
    for (unsigned i = 0; i < 20; i++) expect_child_works(context, i);
    run_all_jobs(context);
    end_context(context);
}

/* AddressSanitizer's allocator may be locked by another thread at the fork, and its lock then stays
 * so in the child (LLVM 17 is the first to look after it): the child may not even allocate. */
#if defined(__SANITIZE_ADDRESS__)
#define FORK_DURING_CALLS 0
#elif defined(__has_feature)
#define FORK_DURING_CALLS !__has_feature(address_sanitizer)
#else
#define FORK_DURING_CALLS 1
#endif

static void test_fork_during_calls(void **state)
{
    (void)state;
    if (!FORK_DURING_CALLS) skip();
    moe_context *context = make_context(2);
    atomic_bool stop = false;
    caller c[2];
    for (unsigned i = 0; i < COUNT(c); i++) {
        c[i] = (caller){.context = context, .first = i, .stop = &stop};
        assert_int_equal(pthread_create(&c[i].thread, NULL, call, &c[i]), 0);
    }
    for (unsigned i = 0; i < 100; i++) expect_child_works(context, i);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < COUNT(c); i++) {
        pthread_join(c[i].thread, NULL);
        assert_true(c[i].ok);
    }
    end_context(context);
}

/* ---- manners --------------------------------------------------------------------------------- */

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_idle_threads_sleep(void **state)
{
    (void)state;
    moe_context *context = make_context(8);
    run_all_jobs(context);
    double before = cpu_seconds();
    nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    assert_true(cpu_seconds() - before < 0.05);
    end_context(context);
}

/* A signal to the process is left to the program's own threads: here the only one has it blocked,
 * so that it stays pending. */
static void test_signals_are_not_taken(void **state)
{
    (void)state;
    sigset_t usr1, old, pending;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    moe_context *context = make_context(4);
    run_all_jobs(context);
    pthread_sigmask(SIG_BLOCK, &usr1, &old);
    kill(getpid(), SIGUSR1);
    run_all_jobs(context);
    sigpending(&pending);
    assert_true(sigismember(&pending, SIGUSR1));
    int number;
    sigwait(&usr1, &number);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    end_context(context);
}

/* ---- options and environment ----------------------------------------------------------------- */

/* Makes a context; its threads, or 0 if it is refused with status (and then *context is NULL). */
static int32_t threads_given(const moe_context_options *options, moe_status expected)
{
    moe_context *context = (moe_context *)(void *)&jobs; /* to see it set */
    moe_status status = moe_context_create(options, &context);
    assert_int_equal(status, expected);
    if (status != MOE_OK) {
        assert_null(context);
        assert_true(moe_last_error()[0] != '\0');
        return 0;
    }
    int32_t threads = moe_context_threads(context);
    assert_true(run_job(context, 0));
    end_context(context);
    return threads;
}

static void test_thread_counts(void **state)
{
    (void)state;
    moe_context_options options = moe_context_options_init();
    assert_int_equal(moe_context_threads(NULL), 1);
    assert_in_range(threads_given(NULL, MOE_OK), 1, 1024);
    assert_in_range(threads_given(&options, MOE_OK), 1, 1024);
    static const int32_t good[] = {1, 2, 17}, bad[] = {-1, INT32_MIN, 1025, 10000, INT32_MAX};
    for (size_t i = 0; i < COUNT(good); i++) {
        options.threads = good[i];
        assert_int_equal(threads_given(&options, MOE_OK), good[i]);
    }
    options.threads = 1024; /* or as many as the system gives */
    assert_in_range(threads_given(&options, MOE_OK), 1, 1024);
    for (size_t i = 0; i < COUNT(bad); i++) {
        options.threads = bad[i];
        threads_given(&options, MOE_E_VALUE);
        assert_non_null(strstr(moe_last_error(), "threads"));
    }
}

static void test_number_of_threads_in_environment(void **state)
{
    (void)state;
    moe_context_options options = moe_context_options_init();
    setenv("MOE_NUM_THREADS", "3", 1);
    assert_int_equal(threads_given(NULL, MOE_OK), 3);
    assert_int_equal(threads_given(&options, MOE_OK), 3);
    options.threads = 2;
    assert_int_equal(threads_given(&options, MOE_OK), 2);
    static const char *const bad[] = {"0", "-2", "1025", "3x", "many", "99999999999999999999"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        setenv("MOE_NUM_THREADS", bad[i], 1);
        threads_given(NULL, MOE_E_VALUE);
        assert_non_null(strstr(moe_last_error(), "MOE_NUM_THREADS"));
    }
    setenv("MOE_NUM_THREADS", "", 1);
    assert_in_range(threads_given(NULL, MOE_OK), 1, 1024);
    unsetenv("MOE_NUM_THREADS");
}

static void test_isa_levels(void **state)
{
    (void)state;
    size_t levels = 0;
    assert_string_equal(moe_isa_level(0), "scalar");
    for (; moe_isa_level(levels); levels++) {
        moe_context_options options = moe_context_options_init();
        moe_context *context;
        options.threads = 2;
        options.isa = moe_isa_level(levels);
        setenv("MOE_ISA", "no such level", 1); /* the option comes first */
        assert_int_equal(moe_context_create(&options, &context), MOE_OK);
        assert_string_equal(moe_context_isa(context), options.isa);
        run_all_jobs(context);
        end_context(context);
        setenv("MOE_ISA", options.isa, 1);
        context = make_context(1);
        assert_string_equal(moe_context_isa(context), options.isa);
        end_context(context);
    }
    unsetenv("MOE_ISA");
    assert_string_equal(moe_context_isa(NULL), moe_isa_level(levels - 1));
    assert_null(moe_isa_level(levels + 1000));
}

static void test_unknown_isa_level(void **state)
{
    (void)state;
    static const char *const bad[] = {"avx1024", "SCALAR", "scalar "};
    for (size_t i = 0; i < COUNT(bad); i++) {
        moe_context_options options = moe_context_options_init();
        options.isa = bad[i];
        threads_given(&options, MOE_E_ISA);
        assert_non_null(strstr(moe_last_error(), bad[i]));
        setenv("MOE_ISA", bad[i], 1);
        threads_given(NULL, MOE_E_ISA);
        assert_non_null(strstr(moe_last_error(), "MOE_ISA"));
        unsetenv("MOE_ISA");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_callers_of_one_context),
        cmocka_unit_test(test_many_contexts),
        cmocka_unit_test(test_short_lives),
        cmocka_unit_test(test_more_threads_than_processors),
        cmocka_unit_test(test_destroy_during_a_call),
        cmocka_unit_test(test_nothing_to_destroy),
        cmocka_unit_test(test_fork_while_idle),
        cmocka_unit_test(test_fork_during_calls),
        cmocka_unit_test(test_idle_threads_sleep),
        cmocka_unit_test(test_signals_are_not_taken),
        cmocka_unit_test(test_thread_counts),
        cmocka_unit_test(test_number_of_threads_in_environment),
        cmocka_unit_test(test_isa_levels),
        cmocka_unit_test(test_unknown_isa_level),
    };
    unsetenv("MOE_ISA");
    unsetenv("MOE_NUM_THREADS");
    return cmocka_run_group_tests_name("threads", tests, make_jobs, free_jobs);
}
