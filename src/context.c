/* SPDX-License-Identifier: Apache-2.0 */
/* context.c - threads and scratch that calls share.
 *
 * Scratch that a call gives back is kept for the next, so that equal calls allocate once.  After
 * a fork a child has neither the pool's threads nor any say over a lock that was held: its calls
 * use neither, and allocate. */
#define _GNU_SOURCE
#include "context.h"

#include "checked.h"
#include "cpu.h"
#include "error.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_THREADS = 1024 };

/* Head of a piece of scratch while no call has it. */
typedef struct piece {
    struct piece *next;
    size_t bytes;
} piece;

struct moe_context {
    allocator memory;
    const kernel_table *kernels;
    threads *pool;
    atomic_int calls;     /* running */
    pthread_mutex_t lock; /* of idle */
    piece *idle;
    volatile int *home; /* a page that a fork wipes: 1 where the context was made, 0 in a child */
    pid_t pid;          /* that process, where the kernel cannot wipe; else 0 */
};

/* ---- fork ------------------------------------------------------------------------------------ */

static bool is_child(const moe_context *c)
{
    return c->pid != 0 ? getpid() != c->pid : *c->home == 0;
}

static bool mark_home(moe_context *c)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *mark = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mark == MAP_FAILED) return false;
    c->home = mark;
    *c->home = 1;
    c->pid = madvise(mark, page, MADV_WIPEONFORK) == 0 ? 0 : getpid();
    return true;
}

static void unmark_home(moe_context *c)
{
    munmap((void *)(uintptr_t)c->home, (size_t)sysconf(_SC_PAGESIZE));
}

/* ---- options --------------------------------------------------------------------------------- */

static moe_status check_options(const moe_context_options *o)
{
    moe_status s = error_struct_size(o, sizeof *o, "moe_context_options");
    if (s != MOE_OK) return s;
    if ((o->allocate == NULL) != (o->release == NULL))
        return error_set(MOE_E_NULL_ARG, "%s = NULL: allocate and release come together",
                         o->allocate == NULL ? "allocate" : "release");
    return MOE_OK;
}

static moe_status choose_threads(int32_t asked, int *count)
{
    const char *text = getenv("MOE_NUM_THREADS");
    *count = asked;
    if (asked < 0 || asked > MAX_THREADS)
        return error_set(MOE_E_VALUE, "threads = %d: must be in [0, %d]", (int)asked, MAX_THREADS);
    if (asked != 0) return MOE_OK;
    if (text == NULL || *text == '\0') {
        *count = cpu_count();
        if (*count > MAX_THREADS) *count = MAX_THREADS;
        return MOE_OK;
    }
    char *end;
    long n = strtol(text, &end, 10);
    if (*end != '\0' || n < 1 || n > MAX_THREADS)
        return error_set(MOE_E_VALUE, "MOE_NUM_THREADS = %.40s: must be in [1, %d]", text,
                         MAX_THREADS);
    *count = (int)n;
    return MOE_OK;
}

static moe_status choose_isa(const char *asked, const kernel_table **kernels)
{
    const char *name = "isa", *text = asked;
    if (text == NULL) {
        name = "MOE_ISA";
        text = getenv(name);
    }
    *kernels = cpu_best();
    if (text == NULL || *text == '\0') return MOE_OK;
    char levels[128] = "";
    for (size_t i = 0; cpu_level(i) != NULL; i++) {
        const char *level = cpu_level(i)->isa;
        *kernels = cpu_level(i);
        if (strcmp(level, text) == 0) return MOE_OK;
        size_t n = strlen(levels);
        if (n + strlen(level) + 2 < sizeof levels) {
            if (n > 0) levels[n++] = ' ';
            strcpy(levels + n, level);
        }
    }
    return error_set(MOE_E_ISA, "%s = %.40s: this machine and build have: %s", name, text, levels);
}

/* ---- create, destroy ------------------------------------------------------------------------- */

static void release_idle(moe_context *c)
{
    for (piece *next; c->idle != NULL; c->idle = next) {
        next = c->idle->next;
        c->memory.release(c->idle, c->idle->bytes, c->memory.user);
    }
}

static moe_status create(const moe_context_options *options, moe_context **context)
{
    moe_context_options defaults = moe_context_options_init();
    const moe_context_options *o = options != NULL ? options : &defaults;
    const kernel_table *kernels;
    int count;
    moe_status s = check_options(o);
    if (s == MOE_OK) s = choose_threads(o->threads, &count);
    if (s == MOE_OK) s = choose_isa(o->isa, &kernels);
    if (s != MOE_OK) return s;

    allocator memory =
        o->allocate != NULL ? (allocator){o->allocate, o->release, o->user} : memory_default;
    moe_context *c = memory.allocate(sizeof *c, KERNEL_ALIGN, memory.user);
    if (c == NULL) return error_set(MOE_E_NOMEM, "no memory for a context");
    memset(c, 0, sizeof *c);
    c->memory = memory;
    c->kernels = kernels;
    if (mark_home(c)) {
        c->pool = threads_create(count, &c->memory);
        if (c->pool != NULL) {
            pthread_mutex_init(&c->lock, NULL);
            *context = c;
            return MOE_OK;
        }
        unmark_home(c);
    }
    memory.release(c, sizeof *c, memory.user);
    return error_set(MOE_E_NOMEM, "no memory for a context of %d threads", count);
}

moe_status moe_context_create(const moe_context_options *options, moe_context **context)
{
    int cancel;
    if (context == NULL) return error_set(MOE_E_NULL_ARG, "context = NULL: required");
    *context = NULL;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel); /* files are open, memory is held */
    moe_status s = create(options, context);
    pthread_setcancelstate(cancel, NULL);
    return s;
}

moe_status moe_context_destroy(moe_context *context)
{
    if (context == NULL) return MOE_OK;
    bool child = is_child(context);
    int idle = 0;
    if (!child && !atomic_compare_exchange_strong(&context->calls, &idle, INT_MIN))
        return error_set(MOE_E_BUSY, "context: %d calls are running on it", idle);
    if (child)
        threads_forget(context->pool, &context->memory);
    else
        threads_destroy(context->pool, &context->memory);
    if (!child) pthread_mutex_destroy(&context->lock);
    release_idle(context);
    unmark_home(context);
    context->memory.release(context, sizeof *context, context->memory.user);
    return MOE_OK;
}

int32_t moe_context_threads(const moe_context *context)
{
    return context == NULL || is_child(context) ? 1 : threads_count(context->pool);
}

const char *moe_context_isa(const moe_context *context)
{
    return context_kernels(context)->isa;
}

const char *moe_isa_level(size_t i)
{
    const kernel_table *level = cpu_level(i);
    return level != NULL ? level->isa : NULL;
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* An idle piece of at least `bytes`; if all are smaller, *small is one that a larger one shall
 * replace. */
static piece *take_idle(moe_context *c, size_t bytes, piece **small)
{
    *small = NULL;
    pthread_mutex_lock(&c->lock);
    piece **at = &c->idle;
    while (*at != NULL && (*at)->bytes < bytes) at = &(*at)->next;
    if (*at == NULL) at = &c->idle;
    piece *taken = *at;
    if (taken != NULL) *at = taken->next;
    pthread_mutex_unlock(&c->lock);
    if (taken == NULL || taken->bytes >= bytes) return taken;
    *small = taken;
    return NULL;
}

const kernel_table *context_kernels(const moe_context *context)
{
    return context == NULL ? cpu_best() : context->kernels;
}

const allocator *context_memory(const moe_context *context)
{
    bool own = context != NULL && context->memory.allocate != memory_default.allocate;
    return own ? &context->memory : &memory_large;
}

bool context_enter(moe_context *context, size_t bytes, context_call *call)
{
    const allocator *m = context != NULL ? &context->memory : &memory_default;
    bool shares = context != NULL && !is_child(context);
    *call = (context_call){NULL, NULL, bytes};
    if (shares) {
        atomic_fetch_add(&context->calls, 1);
        piece *small;
        call->scratch = (uint8_t *)take_idle(context, bytes, &small);
        if (call->scratch != NULL) call->bytes = ((piece *)(void *)call->scratch)->bytes;
        if (small != NULL) m->release(small, small->bytes, m->user);
    }
    if (call->scratch == NULL) call->scratch = m->allocate(bytes, KERNEL_ALIGN, m->user);
    if (call->scratch == NULL) {
        if (shares) atomic_fetch_sub(&context->calls, 1);
        return false;
    }
    if (shares && threads_take(context->pool)) call->pool = context->pool;
    return true;
}

void context_leave(moe_context *context, context_call *call)
{
    if (context == NULL || is_child(context)) {
        const allocator *m = context != NULL ? &context->memory : &memory_default;
        m->release(call->scratch, call->bytes, m->user);
        return;
    }
    if (call->pool != NULL) threads_give(call->pool);
    piece *p = (piece *)(void *)call->scratch;
    p->bytes = call->bytes;
    pthread_mutex_lock(&context->lock);
    p->next = context->idle;
    context->idle = p;
    pthread_mutex_unlock(&context->lock);
    atomic_fetch_sub(&context->calls, 1);
}
