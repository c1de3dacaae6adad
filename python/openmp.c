/* SPDX-License-Identifier: Apache-2.0 */
/* openmp.c - a context's loops on the threads of an OpenMP that the process has loaded already,
 * PyTorch's for one.  Needs no OpenMP to be built: the functions come from the caller, and are those
 * that GCC's code for a `parallel` calls. */
#include <stddef.h>

typedef struct openmp {
    void (*parallel)(void (*region)(void *arg), void *arg, unsigned threads, unsigned flags);
    int (*thread)(void);  /* this thread's number in the region */
    int (*threads)(void); /* fewer than were asked for, inside another region */
} openmp;

typedef struct openmp_loop {
    const openmp *with;
    void (*body)(void *arg, size_t i);
    void *arg;
    size_t n;
} openmp_loop;

static void openmp_region(void *arg)
{
    const openmp_loop *loop = arg;
    const size_t step = (size_t)loop->with->threads();
    for (size_t i = (size_t)loop->with->thread(); i < loop->n; i += step) loop->body(loop->arg, i);
}

__attribute__((visibility("default"))) void moe_python_openmp(void (*body)(void *arg, size_t i),
                                                              void *arg, size_t n, void *user);

/* A moe_context_options.parallel_for; parallel_user is an openmp. */
void moe_python_openmp(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user)
{
    openmp_loop loop = {user, body, arg, n};
    loop.with->parallel(openmp_region, &loop, (unsigned)n, 0);
}
