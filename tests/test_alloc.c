/* SPDX-License-Identifier: Apache-2.0 */
/* test_alloc.c - memory and threads that the system does not give: every allocation fails in
 * turn, once or from then on; in calls and in packing.
 *
 * Linked with -Wl,--wrap=aligned_alloc,--wrap=mmap,--wrap=pthread_create, which are all that the
 * library takes from the system. */
#define _POSIX_C_SOURCE 200809L
#include "expect.h"
#include "source.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>

/* ---- failures -------------------------------------------------------------------------------- */

/* When a kind of request fails: request number `at` (1 is the first, 0: none), and all later
 * ones if sticky. */
typedef struct failures {
    unsigned at, requests;
    bool sticky;
    unsigned failed;
} failures;

static bool fails(failures *f)
{
    f->requests++;
    bool now = f->at != 0 && (f->sticky ? f->requests >= f->at : f->requests == f->at);
    f->failed += now;
    return now;
}

static failures heap, maps, threads;

/* Weak, so that a program linked without the options fails its first test and not its link. */
void *__real_aligned_alloc(size_t alignment, size_t bytes) __attribute__((weak));
void *__real_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
    __attribute__((weak));
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *arg) __attribute__((weak));
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *arg);

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fails(&heap) ? NULL : __real_aligned_alloc(alignment, bytes);
}

void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    if (!fails(&maps)) return __real_mmap(at, bytes, protection, flags, fd, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *arg)
{
    return fails(&threads) ? EAGAIN : __real_pthread_create(thread, attributes, run, arg);
}

static void nothing_fails(void)
{
    memset(&heap, 0, sizeof heap);
    memset(&maps, 0, sizeof maps);
    memset(&threads, 0, sizeof threads);
}

/* ---- an allocator that keeps books ----------------------------------------------------------- */

enum { BLOCKS = 64 };

typedef struct books {
    failures failures;
    struct {
        void *memory;
        size_t bytes;
    } live[BLOCKS];
    bool wrong; /* a release that does not fit its allocation, an alignment that is none */
} books;

static void *book_allocate(size_t bytes, size_t alignment, void *user)
{
    books *b = user;
    void *memory = NULL;
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || bytes == 0) b->wrong = true;
    if (fails(&b->failures)) return NULL;
    if (posix_memalign(&memory, alignment < sizeof(void *) ? sizeof(void *) : alignment, bytes) !=
        0)
        return NULL;
    for (size_t i = 0; i < BLOCKS; i++)
        if (b->live[i].memory == NULL) {
            memset(memory, 0xA5, bytes); /* not zeros by luck */
            b->live[i].memory = memory;
            b->live[i].bytes = bytes;
            return memory;
        }
    abort();
}

static void book_release(void *memory, size_t bytes, void *user)
{
    books *b = user;
    for (size_t i = 0; i < BLOCKS; i++)
        if (b->live[i].memory == memory && memory != NULL) {
            b->wrong |= b->live[i].bytes != bytes;
            b->live[i].memory = NULL;
            free(memory);
            return;
        }
    b->wrong = true;
}

static void expect_all_released(const books *b)
{
    assert_false(b->wrong);
    for (size_t i = 0; i < BLOCKS; i++) assert_null(b->live[i].memory);
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* The second needs more scratch than the first, the third less. */
static const layer_spec SPECS[] = {
    {.hidden = MOE_BF16,
     .weights = MOE_BF16,
     .T = 9,
     .H = 40,
     .I = 24,
     .E_L = 4,
     .K = 2,
     .scaling = MOE_POST_SCALE},
    {.hidden = MOE_F32,
     .weights = MOE_MXFP4_X4,
     .T = 20,
     .H = 512,
     .I = 70,
     .E_L = 3,
     .all_expert = true,
     .gate_up_bias = true},
    {.hidden = MOE_F16, .weights = MOE_F32, .T = 1, .H = 8, .I = 3, .E_L = 2, .K = 2},
};

typedef struct workload {
    layer layer[COUNT(SPECS)];
    unsigned char *expected[COUNT(SPECS)], *got;
    size_t bytes[COUNT(SPECS)], most;
} workload;

static void workload_make(workload *w)
{
    nothing_fails();
    w->most = 0;
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer_make(&w->layer[i], &SPECS[i]);
        w->expected[i] = layer_run(NULL, &w->layer[i], &w->bytes[i]);
        if (w->bytes[i] > w->most) w->most = w->bytes[i];
    }
    w->got = malloc(w->most);
    assert_non_null(w->got);
}

static void workload_free(workload *w)
{
    for (size_t i = 0; i < COUNT(SPECS); i++) {
        layer_free(&w->layer[i]);
        free(w->expected[i]);
    }
    free(w->got);
    nothing_fails();
}

/* Runs layer i: right bits, or MOE_E_NOMEM and an output as it was. */
static moe_status run(workload *w, size_t i, moe_context *context)
{
    memset(w->got, 0xA5, w->most);
    moe_status status = moe_tkg(context, &w->layer[i].args, w->got, w->bytes[i]);
    if (status == MOE_OK) {
        assert_memory_equal(w->got, w->expected[i], w->bytes[i]);
        return status;
    }
    assert_int_equal(status, MOE_E_NOMEM);
    assert_non_null(strstr(moe_last_error(), "memory"));
    for (size_t b = 0; b < w->most; b++) assert_int_equal(w->got[b], 0xA5);
    return status;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_is_wrapped(void **state)
{
    (void)state;
    assert_non_null(&__real_aligned_alloc);
    assert_non_null(&__real_mmap);
    assert_non_null(&__real_pthread_create);
    workload w;
    workload_make(&w);
    assert_true(heap.requests > 0);
    workload_free(&w);
}

/* The life of a context and three calls on it, with request number n failing; true if it came to
 * that. */
static bool life_with_failure(workload *w, unsigned n, bool sticky)
{
    books b;
    memset(&b, 0, sizeof b);
    b.failures.at = n;
    b.failures.sticky = sticky;
    moe_context_options options = moe_context_options_init();
    options.threads = 3;
    options.allocate = book_allocate;
    options.release = book_release;
    options.user = &b;
    moe_context *context;
    moe_status status = moe_context_create(&options, &context);
    if (status != MOE_OK) {
        assert_int_equal(status, MOE_E_NOMEM);
        assert_null(context);
    }
    for (size_t i = 0; status == MOE_OK && i < COUNT(SPECS); i++) {
        if (run(w, i, context) == MOE_OK) continue;
        b.failures.at = 0; /* and there is memory again */
        assert_int_equal(run(w, i, context), MOE_OK);
    }
    if (status == MOE_OK) assert_int_equal(moe_context_destroy(context), MOE_OK);
    expect_all_released(&b);
    return b.failures.failed > 0;
}

static void test_hooks_fail(void **state)
{
    (void)state;
    workload w;
    workload_make(&w);
    nothing_fails();
    for (int sticky = 0; sticky <= 1; sticky++) {
        unsigned n = 1;
        while (life_with_failure(&w, n, sticky)) n++;
        assert_true(n > 3); /* a context, its threads, scratch */
    }
    assert_int_equal(heap.requests, 0); /* with hooks nothing comes from elsewhere */
    workload_free(&w);
}

static void test_heap_fails(void **state)
{
    (void)state;
    workload w;
    workload_make(&w);
    for (unsigned n = 1, failed = 1; failed; n++) {
        nothing_fails();
        heap.at = n;
        moe_context *context;
        moe_status status = moe_context_create(NULL, &context);
        if (status != MOE_OK) assert_int_equal(status, MOE_E_NOMEM);
        for (size_t i = 0; status == MOE_OK && i < COUNT(SPECS); i++)
            if (run(&w, i, context) != MOE_OK) assert_int_equal(run(&w, i, context), MOE_OK);
        failed = heap.failed;
        assert_int_equal(moe_context_destroy(context), MOE_OK);
    }
    workload_free(&w);
}

static void test_no_context(void **state)
{
    (void)state;
    workload w;
    workload_make(&w);
    for (size_t i = 0; i < COUNT(SPECS); i++)
        for (unsigned n = 1, failed = 1; failed; n++) {
            nothing_fails();
            heap.at = n;
            moe_status status = run(&w, i, NULL);
            failed = heap.failed;
            assert_int_equal(status, failed ? MOE_E_NOMEM : MOE_OK);
        }
    workload_free(&w);
}

static void test_map_fails(void **state)
{
    (void)state;
    nothing_fails();
    moe_context *context;
    for (unsigned n = 1, failed = 1; failed; n++) {
        nothing_fails();
        maps.at = n;
        moe_status status = moe_context_create(NULL, &context);
        failed = maps.failed;
        assert_int_equal(status, failed ? MOE_E_NOMEM : MOE_OK);
        assert_int_equal(context == NULL, failed);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
    }
    nothing_fails();
}

/* A call like one before asks for nothing, whatever ran in between. */
static void test_steady_state(void **state)
{
    (void)state;
    workload w;
    workload_make(&w);
    books b;
    memset(&b, 0, sizeof b);
    moe_context_options options = moe_context_options_init();
    options.threads = 2;
    options.allocate = book_allocate;
    options.release = book_release;
    options.user = &b;
    moe_context *context;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    for (size_t i = 0; i < COUNT(SPECS); i++) run(&w, i, context);
    nothing_fails();
    unsigned before = b.failures.requests;
    b.failures.at = 1;
    b.failures.sticky = true;
    for (size_t i = 0; i < 3 * COUNT(SPECS); i++)
        assert_int_equal(run(&w, i % COUNT(SPECS), context), MOE_OK);
    assert_int_equal(b.failures.requests, before);
    assert_int_equal(heap.requests + maps.requests + threads.requests, 0);
    assert_int_equal(moe_context_destroy(context), MOE_OK);
    expect_all_released(&b);
    workload_free(&w);
}

/* Thread number n is refused: the context has those before it, says so, and computes the same
 * bits. */
static void test_threads_fail(void **state)
{
    (void)state;
    enum { THREADS = 5 };
    workload w;
    workload_make(&w);
    for (unsigned n = 1; n <= THREADS; n++) {
        nothing_fails();
        threads.at = n;
        moe_context_options options = moe_context_options_init();
        options.threads = THREADS;
        moe_context *context;
        assert_int_equal(moe_context_create(&options, &context), MOE_OK);
        assert_int_equal(moe_context_threads(context), n);
        for (size_t i = 0; i < COUNT(SPECS); i++) assert_int_equal(run(&w, i, context), MOE_OK);
        assert_int_equal(moe_context_destroy(context), MOE_OK);
    }
    workload_free(&w);
}

/* ---- packed experts -------------------------------------------------------------------------- */

static const source_spec PACKED[] = {
    {.gate_up = MOE_F16, .down = MOE_BF16, .E_L = 3, .H = 40, .I = 24, .bias = MOE_F32},
    {.gate_up = MOE_BF16,
     .down = MOE_BF16,
     .E_L = 2,
     .H = 40,
     .I = 24,
     .packing = MOE_PACK_LOSSLESS},
    /* large enough to be mapped */
    {.gate_up = MOE_F32, .down = MOE_F32, .E_L = 1, .H = 1024, .I = 512},
    {.gate_up = MOE_BF16,
     .down = MOE_BF16,
     .E_L = 1,
     .H = 1024,
     .I = 1024,
     .packing = MOE_PACK_LOSSLESS},
};

/* Packs, or says MOE_E_NOMEM; true if it could. */
static bool pack(moe_context *context, const moe_experts_args *args)
{
    moe_experts *x;
    moe_status status = moe_experts_create(context, args, &x);
    if (status == MOE_OK) {
        assert_non_null(x);
        assert_int_equal(moe_experts_destroy(x), MOE_OK);
        return true;
    }
    assert_int_equal(status, MOE_E_NOMEM);
    assert_null(x);
    assert_non_null(strstr(moe_last_error(), "memory"));
    return false;
}

static void test_packing_hooks_fail(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(PACKED); i++)
        for (int sticky = 0; sticky <= 1; sticky++)
            for (unsigned n = 1, failed = 1; failed; n++) {
                books b;
                source s;
                moe_context *context;
                moe_context_options options = moe_context_options_init();
                memset(&b, 0, sizeof b);
                options.threads = 2;
                options.allocate = book_allocate;
                options.release = book_release;
                options.user = &b;
                source_make(&s, &PACKED[i]);
                assert_int_equal(moe_context_create(&options, &context), MOE_OK);
                nothing_fails();
                b.failures = (failures){.at = n, .sticky = sticky};
                bool packed = pack(context, &s.args);
                failed = b.failures.failed;
                assert_int_equal(packed, !failed);
                assert_int_equal(heap.requests + maps.requests, 0);
                b.failures.at = 0;
                assert_true(pack(context, &s.args));
                assert_int_equal(moe_context_destroy(context), MOE_OK);
                expect_all_released(&b);
                source_free(&s);
                assert_true(failed || n > 2); /* working memory, and the experts */
            }
    nothing_fails();
}

static void test_packing_fails(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(PACKED); i++)
        for (int large = 0; large <= 1; large++) {
            unsigned n = 0;
            for (unsigned failed = 1; failed;) {
                source s;
                source_make(&s, &PACKED[i]);
                nothing_fails();
                *(large ? &maps : &heap) = (failures){.at = ++n};
                bool packed = pack(NULL, &s.args);
                failed = (large ? &maps : &heap)->failed;
                assert_int_equal(packed, !failed);
                nothing_fails();
                assert_true(pack(NULL, &s.args));
                source_free(&s);
            }
            assert_int_equal(n - 1, i < 2 ? (large ? 0 : 2) : 1);
        }
    nothing_fails();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_is_wrapped),    cmocka_unit_test(test_hooks_fail),
        cmocka_unit_test(test_heap_fails),    cmocka_unit_test(test_no_context),
        cmocka_unit_test(test_map_fails),     cmocka_unit_test(test_steady_state),
        cmocka_unit_test(test_threads_fail),  cmocka_unit_test(test_packing_hooks_fail),
        cmocka_unit_test(test_packing_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
