/* SPDX-License-Identifier: Apache-2.0 */
/* ceiling.c - measures the machine's ceilings with the kernels of its architecture.
 *
 * Owns how they are measured: threads start together, take pieces as they can, and the last one
 * to finish ends the time, as in a call of the library.  Everything is tried several ways and the
 * best counts: a ceiling that a naive loop reaches would flatter whatever is held against it. */
#define _GNU_SOURCE 1

#include "ceiling.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { HUGE_PAGE = 2 << 20, MAX_TASK = 2 << 20, MAX_STREAMS = 8, PIECES = 4 };

/* The time of a run: from the first start to the last end. */
typedef struct span {
    _Atomic double begin, end;
} span;

static void span_begin(span *s, double now)
{
    double old = atomic_load(&s->begin);
    while (now < old && !atomic_compare_exchange_weak(&s->begin, &old, now)) {}
}

static void span_end(span *s, double now)
{
    double old = atomic_load(&s->end);
    while (now > old && !atomic_compare_exchange_weak(&s->end, &old, now)) {}
}

/* ---- reading ------------------------------------------------------------------------------- */

typedef struct read_job {
    ceiling_read_fn *read;
    const uint8_t *p;
    size_t tasks, task; /* how many, and bytes of each */
    const ceiling_way *way;
    atomic_size_t next;
    span span;
} read_job;

static void read_tasks(void *arg, size_t i)
{
    read_job *j = arg;
    (void)i;
    span_begin(&j->span, team_seconds());
    for (size_t n; (n = atomic_fetch_add(&j->next, 1)) < j->tasks;)
        j->read(j->p + n * j->task, j->task, j->way->streams, j->way->ahead);
    span_end(&j->span, team_seconds());
}

/* Reads the next `piece` bytes, or those at the start if the end is near. */
static double read_piece(ceiling_reader *r, ceiling_way *way)
{
    if (r->next + r->piece > r->bytes) r->next = 0;
    /* At least eight tasks a thread, so that all end at nearly the same time. */
    size_t task = MAX_TASK;
    while (task > MAX_STREAMS * CEILING_PAGE && r->piece / task < 8 * team_size(r->team)) task /= 2;
    read_job j = {.read = ceiling_best_read(),
                  .p = r->buffer + r->next,
                  .tasks = r->piece / task,
                  .task = task,
                  .way = way,
                  .span = {.begin = 1e300}};
    r->next += r->piece;
    team_run(r->team, read_tasks, &j);
    double gbps = 1e-9 * (double)(j.tasks * task) / (j.span.end - j.span.begin);
    if (gbps > way->gbps) way->gbps = gbps;
    if (gbps > r->best) r->best = gbps;
    return gbps;
}

static int better_way(const void *a, const void *b)
{
    const ceiling_way *x = a, *y = b;
    return (x->gbps < y->gbps) - (x->gbps > y->gbps);
}

static void find_ways(ceiling_reader *r)
{
    static const size_t STREAMS[] = {1, 2, 4, MAX_STREAMS},
                        AHEAD[] = {0, 512, 1024, 2048, 4096, 8192};
    enum { WAYS = COUNT(STREAMS) * COUNT(AHEAD), TIMES = 3 };
    ceiling_way way[WAYS];
    for (size_t i = 0; i < WAYS; i++)
        way[i] = (ceiling_way){STREAMS[i / COUNT(AHEAD)], AHEAD[i % COUNT(AHEAD)], 0};
    for (int time = 0; time < TIMES; time++)
        for (size_t i = 0; i < WAYS; i++) read_piece(r, &way[i]);
    qsort(way, WAYS, sizeof way[0], better_way);
    memcpy(r->way, way, sizeof r->way);
}

/* Touches a part of the buffer on each thread. */
static void fill(void *arg, size_t i)
{
    ceiling_reader *r = arg;
    size_t part = r->bytes / team_size(r->team) + 1, from = i * part;
    if (from < r->bytes)
        memset(r->buffer + from, 1, from + part < r->bytes ? part : r->bytes - from);
}

bool ceiling_reader_open(ceiling_reader *r, team *t, size_t bytes)
{
    size_t step = PIECES * MAX_STREAMS * CEILING_PAGE;
    *r = (ceiling_reader){.team = t};
    if (bytes > SIZE_MAX / 4) return false;
    r->bytes = (bytes + step - 1) / step * step;
    r->piece = r->bytes / PIECES;
    void *p = mmap(NULL, r->bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    if (p == MAP_FAILED) return false;
    r->mapped = p;
    uintptr_t at = ((uintptr_t)p + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    r->buffer = (uint8_t *)p + (at - (uintptr_t)p);
    r->huge_pages = madvise(r->buffer, r->bytes, MADV_HUGEPAGE) == 0;
    team_run(t, fill, r);
    find_ways(r);
    return true;
}

void ceiling_reader_close(ceiling_reader *r)
{
    if (r->mapped) munmap(r->mapped, r->bytes + HUGE_PAGE);
    r->mapped = NULL;
}

double ceiling_read(ceiling_reader *r)
{
    return read_piece(r, &r->way[r->turn++ % CEILING_WAYS]);
}

/* ---- multiply-accumulates ------------------------------------------------------------------ */

typedef struct dot_job {
    ceiling_dot_fn *run;
    uint64_t rounds;
    atomic_uint_fast64_t runs;
    span span;
} dot_job;

static void dot_rounds(void *arg, size_t i)
{
    dot_job *j = arg;
    (void)i;
    span_begin(&j->span, team_seconds());
    atomic_fetch_add(&j->runs, j->run(j->rounds));
    span_end(&j->span, team_seconds());
}

/* GMAC/s; the time that it took in *seconds. */
static double run_dots(team *t, const ceiling_dot_kind *kind, int variant, uint64_t rounds,
                       double *seconds)
{
    dot_job j = {.run = kind->run[variant], .rounds = rounds, .span = {.begin = 1e300}};
    team_run(t, dot_rounds, &j);
    *seconds = j.span.end - j.span.begin;
    return 1e-9 * (double)j.runs * kind->macs / *seconds;
}

/* Doubles the rounds until they take the time. */
static double dots_for(team *t, const ceiling_dot_kind *kind, int variant, double seconds)
{
    double took = 0, rate = 0;
    for (uint64_t rounds = 1000; took < seconds; rounds *= 2) {
        double r = run_dots(t, kind, variant, rounds, &took);
        if (r > rate) rate = r;
    }
    return rate;
}

double ceiling_dot(team *t, const ceiling_dot_kind *kind, double seconds, int *variant)
{
    if (*variant >= 0) return dots_for(t, kind, *variant, seconds);
    double best = 0;
    for (int v = 0; v < CEILING_VARIANTS && kind->run[v]; v++) {
        double rate = dots_for(t, kind, v, seconds);
        if (rate <= best) continue;
        best = rate;
        *variant = v;
    }
    return best;
}

/* ---- C ------------------------------------------------------------------------------------- */

/* What a level without vectors of its own does: as many of the baseline's as the compiler makes. */
static uint64_t plain_fma(uint64_t rounds)
{
    enum { N = 32 };
    float a[N] = {0}, x = 0.999f, y = 1e-9f;
    __asm__ volatile("" : "+r"(rounds));
    for (uint64_t r = 0; r < rounds; r++)
        for (int i = 0; i < N; i++) a[i] = a[i] * x + y;
    __asm__ volatile("" : : "r"(a) : "memory");
    return rounds * N;
}

const ceiling_dot_kind ceiling_dot_plain = {"C, fp32 multiply and add", 1, {plain_fma}};
