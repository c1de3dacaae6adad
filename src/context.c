/* SPDX-License-Identifier: Apache-2.0 */
/* context.c - threads and scratch that calls share.
 *
 * Scratch that a call gives back is kept for the next, so that equal calls allocate once.  After
 * a fork a child has neither the team's threads nor any say over a lock that was held: its calls
 * use neither, and allocate. */
#define _GNU_SOURCE
#include "context.h"

#include "checked.h"
#include "cpu.h"
#include "error.h"
#include "party.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Head of a piece of scratch while no call has it. */
typedef struct piece {
    struct piece *next;
    size_t bytes;
} piece;

struct moe_context {
    allocator memory;
    const kernel_table *kernels;
    threads *team;
    int processors;       /* that the process may use */
    atomic_int calls;     /* running, each part of moe_tkg_part by itself */
    pthread_mutex_t lock; /* of idle */
    piece *idle;
    /* Memory that a fork wipes: 1 where the context was made, 0 in a child; and from HOME_PARTY on
     * the party, which in a child is thereby one that nobody has come to. */
    volatile int *home;
    pid_t pid; /* of that process, where the kernel cannot wipe; else 0 */
};

enum { HOME_PARTY = KERNEL_ALIGN };

/* ---- fork ------------------------------------------------------------------------------------ */

static bool is_child(const moe_context *c)
{
    return c->pid != 0 ? getpid() != c->pid : *c->home == 0;
}

/* Pages that nobody touches cost nothing, and most parties are small. */
static size_t home_bytes(void)
{
    return HOME_PARTY + party_bytes();
}

static bool mark_home(moe_context *c)
{
    void *home =
        mmap(NULL, home_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (home == MAP_FAILED) return false;
    c->home = home;
    *c->home = 1;
    c->pid = madvise(home, home_bytes(), MADV_WIPEONFORK) == 0 ? 0 : getpid();
    return true;
}

static void unmark_home(moe_context *c)
{
    munmap((void *)(uintptr_t)c->home, home_bytes());
}

static party *party_of(moe_context *c)
{
    return (party *)((uintptr_t)c->home + HOME_PARTY);
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
    if (asked < 0 || asked > THREADS_MOST)
        return error_set(MOE_E_VALUE, "threads = %d: must be in [0, %d]", (int)asked, THREADS_MOST);
    if (asked != 0) return MOE_OK;
    if (text == NULL || *text == '\0') {
        *count = cpu_count();
        if (*count > THREADS_MOST) *count = THREADS_MOST;
        return MOE_OK;
    }
    char *end;
    long n = strtol(text, &end, 10);
    if (*end != '\0' || n < 1 || n > THREADS_MOST)
        return error_set(MOE_E_VALUE, "MOE_NUM_THREADS = %.40s: must be in [1, %d]", text,
                         THREADS_MOST);
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
    c->processors = cpu_count();
    if (mark_home(c)) {
        c->team = o->parallel_for != NULL
                      ? threads_borrow(count, o->parallel_for, o->parallel_user, &c->memory)
                      : threads_create(count, c->processors, &c->memory);
        if (c->team != NULL) {
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
        threads_forget(context->team, &context->memory);
    else
        threads_destroy(context->team, &context->memory);
    if (!child) pthread_mutex_destroy(&context->lock);
    release_idle(context);
    unmark_home(context);
    context->memory.release(context, sizeof *context, context->memory.user);
    return MOE_OK;
}

int32_t moe_context_threads(const moe_context *context)
{
    return context == NULL || is_child(context) ? 1 : threads_count(context->team);
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

bool context_enter(moe_context *context, threads *team, size_t bytes, size_t weights,
                   context_call *call)
{
    const allocator *m = context != NULL ? &context->memory : &memory_default;
    bool shares = context != NULL && !is_child(context);
    *call = (context_call){team, false, NULL, bytes};
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
    call->taken = shares && team == NULL && threads_take(context->team, weights);
    if (call->taken) call->team = context->team;
    return true;
}

void context_leave(moe_context *context, context_call *call)
{
    if (context == NULL || is_child(context)) {
        const allocator *m = context != NULL ? &context->memory : &memory_default;
        m->release(call->scratch, call->bytes, m->user);
        return;
    }
    if (call->taken) threads_give(call->team);
    piece *p = (piece *)(void *)call->scratch;
    p->bytes = call->bytes;
    pthread_mutex_lock(&context->lock);
    p->next = context->idle;
    context->idle = p;
    pthread_mutex_unlock(&context->lock);
    atomic_fetch_sub(&context->calls, 1);
}

/* A child knows nothing of the calls that ran at the fork, and counts none. */
static void count_part(moe_context *c, int change)
{
    if (!is_child(c)) atomic_fetch_add(&c->calls, change);
}

threads *context_open(moe_context *context, int nth)
{
    count_part(context, 1);
    return party_open(party_of(context), nth, context->processors);
}

moe_status context_close(moe_context *context, int nth, moe_status status)
{
    party_close(party_of(context), nth, status);
    count_part(context, -1);
    return status;
}

moe_status context_join(moe_context *context, int ith)
{
    count_part(context, 1);
    moe_status status = party_join(party_of(context), ith);
    count_part(context, -1);
    return status;
}
