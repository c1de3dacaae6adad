/* SPDX-License-Identifier: Apache-2.0 */
/* compare.c - times one layer in ggml and in this library, side by side, and holds their results
 * against each other.
 *
 * In a round every side has one turn, with the same tokens, in an order that rotates.  A turn is
 * two calls, on two layers; only the second is timed, so that a side's threads are awake as they
 * are between the layers of a model.  Its weights are cold: before a turn something else fills
 * the caches, and the first call reads the other layer. */
#define _GNU_SOURCE
#include <getopt.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ggml_layer.h"
#include "our_layer.h"

#ifndef PEERS_GGML_FROM
#define PEERS_GGML_FROM ""
#endif
#ifndef PEERS_GGML_OPENMP
#define PEERS_GGML_OPENMP "unknown"
#endif

enum { MAX_SIDES = 8, MAX_LIST = 32, CACHE_TIMES = 8 };
enum { WAKING, TIMED, LAYERS }; /* the layers of a turn */
enum { EXIT_NONSENSE = 1, EXIT_USAGE = 2, EXIT_FAILED = 3 };

/* What a result may be off by: root mean square of the difference over that of the result in
 * double.  Seen: 0.2 % with bf16 operands, 1.4 % with int8 activations or q8_0, 7 % with MXFP8
 * activations, 15 % with q4_0; and 8 % for a forgotten bias of down, 11 % for a forgotten slot of 8,
 * 70 % for gate and up exchanged. */
static double tolerance(const char *weights, moe_act_mode act)
{
    if (strcmp(weights, "q4_0") == 0) return 0.3;
    if (strcmp(weights, "bf16") == 0) return 0.01;
    return act == MOE_ACT_MXFP8 ? 0.15 : 0.03;
}

typedef struct options {
    const char *shapes[MAX_LIST], *weights, *ggml[MAX_LIST], *acts[MAX_LIST];
    size_t tokens[MAX_LIST];
    size_t shape_count, ggml_count, act_count, token_count, repetitions;
    int threads;
    uint64_t seed;
    bool json;
} options;

typedef struct side {
    char name[24];
    bool ours, repack;
    moe_act_mode act;
    void *layer[LAYERS];
    double *us;   /* [repetitions] */
    float *y;     /* [T, H], of the check */
    double error; /* against double, of one token */
} side;

typedef struct comparison {
    const options *o;
    const peers_shape *shape;
    const char *weights;
    side side[MAX_SIDES];
    size_t sides;
    peers_layer raw; /* of layer TIMED, for the check */
    peers_batch batch;
    uint64_t state;
    ggml_pool *ggml;
    our_pool *ours;
    unsigned char *other; /* what fills the caches */
    size_t other_bytes;
} comparison;

static const char *const ACTS[] = {"default", "exact", "mxfp8", "int8"}; /* by moe_act_mode */

_Noreturn static void stop(int code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fflush(stdout);
    fputs("compare: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    exit(code);
}

/* ---- options ------------------------------------------------------------------------------- */

static void usage(FILE *to)
{
    fputs("  --shape LIST        gpt-oss-20b, gpt-oss-120b, qwen3-30b-a3b, granite-3.1-1b-a400m\n"
          "                      (gpt-oss-20b)\n"
          "  --weights FORMAT    bf16, mxfp4; q8_0, q4_0: ggml alone (as the model is published)\n"
          "  --tokens LIST       tokens in a call, 1 to 128 (1,2,4,8,16,32,64,128)\n"
          "  --threads N         threads of each side (as many as there are CPUs)\n"
          "  --repetitions N     timed rounds (9)\n"
          "  --ggml LIST         plain: weights as they lie in a file; repack: rearranged, as\n"
          "                      llama.cpp loads them where ggml can (both)\n"
          "  --act LIST          our activations: default, exact, mxfp8, int8\n"
          "                      (exact; for mxfp4 exact,int8)\n"
          "  --seed N            of layers, tokens and routing (1)\n"
          "  --json              JSON with every sample in place of the table\n",
          to);
}

static size_t split(char *list, const char **item)
{
    size_t n = 0;
    for (char *word = strtok(list, ","); word; word = strtok(NULL, ",")) {
        if (n == MAX_LIST) stop(EXIT_USAGE, "a list has more than %d items", MAX_LIST);
        item[n++] = word;
    }
    return n;
}

static unsigned long long number(const char *name, const char *text, unsigned long long least,
                                 unsigned long long most)
{
    char *end;
    const unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || value < least || value > most)
        stop(EXIT_USAGE, "%s %s: must be a number from %llu to %llu", name, text, least, most);
    return value;
}

static size_t find(const char *name, const char *word, const char *const *known, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(word, known[i]) == 0) return i;
    stop(EXIT_USAGE, "%s %s: unknown; --help says what there is", name, word);
}

static const peers_shape *find_shape(const char *name)
{
    for (const peers_shape *s = peers_shapes; s->name; s++)
        if (strcmp(s->name, name) == 0) return s;
    stop(EXIT_USAGE, "--shape %s: unknown; --help says what there is", name);
}

static options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"shape", 1, 0, 's'},
        {"weights", 1, 0, 'w'},
        {"tokens", 1, 0, 'T'},
        {"threads", 1, 0, 't'},
        {"repetitions", 1, 0, 'r'},
        {"ggml", 1, 0, 'g'},
        {"act", 1, 0, 'a'},
        {"seed", 1, 0, 'S'},
        {"json", 0, 0, 'j'},
        {"help", 0, 0, 'h'},
        {0, 0, 0, 0},
    };
    static char tokens[] = "1,2,4,8,16,32,64,128", ggml[] = "plain,repack";
    char *token_list = tokens, *ggml_list = ggml;
    options o = {.shapes = {"gpt-oss-20b"}, .shape_count = 1, .repetitions = 9, .seed = 1};
    for (int c; (c = getopt_long(argc, argv, "t:r:h", known, NULL)) != -1;) {
        switch (c) {
        case 's': o.shape_count = split(optarg, o.shapes); break;
        case 'w': o.weights = optarg; break;
        case 'T': token_list = optarg; break;
        case 't': o.threads = (int)number("--threads", optarg, 1, 512); break;
        case 'r': o.repetitions = number("--repetitions", optarg, 1, 100000); break;
        case 'g': ggml_list = optarg; break;
        case 'a': o.act_count = split(optarg, o.acts); break;
        case 'S': o.seed = number("--seed", optarg, 0, UINT64_MAX); break;
        case 'j': o.json = true; break;
        case 'h': usage(stdout); exit(0);
        default: exit(EXIT_USAGE);
        }
    }
    if (optind < argc) stop(EXIT_USAGE, "%s: no such argument", argv[optind]);
    if (o.weights)
        find("--weights", o.weights, (const char *const[]){"bf16", "mxfp4", "q8_0", "q4_0"}, 4);
    const char *item[MAX_LIST];
    o.token_count = split(token_list, item);
    for (size_t i = 0; i < o.token_count; i++)
        o.tokens[i] = number("--tokens", item[i], 1, PEERS_MAX_T);
    o.ggml_count = split(ggml_list, o.ggml);
    for (size_t i = 0; i < o.ggml_count; i++)
        find("--ggml", o.ggml[i], (const char *const[]){"plain", "repack"}, 2);
    for (size_t i = 0; i < o.act_count; i++) find("--act", o.acts[i], ACTS, 4);
    for (size_t i = 0; i < o.shape_count; i++) find_shape(o.shapes[i]);
    if (!o.token_count || !o.ggml_count || !o.shape_count) stop(EXIT_USAGE, "an empty list");
    if (o.ggml_count + o.act_count > MAX_SIDES) stop(EXIT_USAGE, "more than %d sides", MAX_SIDES);
    return o;
}

/* ---- the machine --------------------------------------------------------------------------- */

/* Keeps the process, and so the threads of every side, on the first `threads` of the CPUs that
 * it may use; 0: on all. How many these are. */
static int choose_cpus(int threads)
{
    cpu_set_t all, chosen;
    CPU_ZERO(&chosen);
    if (sched_getaffinity(0, sizeof all, &all)) stop(EXIT_FAILED, "no affinity mask");
    if (threads > CPU_COUNT(&all))
        stop(EXIT_USAGE, "--threads %d: this process may use %d CPUs", threads, CPU_COUNT(&all));
    if (!threads) threads = CPU_COUNT(&all);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&chosen) < threads; cpu++)
        if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &chosen);
    if (sched_setaffinity(0, sizeof chosen, &chosen))
        stop(EXIT_FAILED, "cannot set the affinity mask");
    return threads;
}

/* The last-level cache that a CPU sees.  The C library's answer may be that of all sockets
 * together, and counts only where the system has none. */
static size_t cache_bytes(void)
{
    for (int level = 3; level >= 2; level--) {
        char path[80];
        unsigned long kilobytes = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", level);
        FILE *file = fopen(path, "r");
        const bool found = file && fscanf(file, "%luK", &kilobytes) == 1 && kilobytes > 0;
        if (file) fclose(file);
        if (found) return (size_t)kilobytes << 10;
    }
    const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return l3 > 0 ? (size_t)l3 : (size_t)32 << 20;
}

static void cpu_name(char *name, size_t size)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(name, size, "unknown");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "model name", 10) != 0 || !strchr(line, ':')) continue;
        snprintf(name, size, "%s", strchr(line, ':') + 2);
        name[strcspn(name, "\n\"\\")] = 0;
        break;
    }
    if (file) fclose(file);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

/* ---- sides --------------------------------------------------------------------------------- */

static side *add_side(comparison *c, bool ours, const char *kind)
{
    side *s = &c->side[c->sides++];
    snprintf(s->name, sizeof s->name, "%s %s", ours ? "ours" : "ggml", kind);
    s->ours = ours;
    s->act = MOE_ACT_INT8; /* ggml's, and set for ours */
    s->us = calloc(c->o->repetitions, sizeof *s->us);
    s->y = malloc(PEERS_MAX_T * c->shape->H * sizeof *s->y);
    if (!s->us || !s->y) stop(EXIT_FAILED, "no memory");
    return s;
}

static void add_sides(comparison *c)
{
    const options *o = c->o;
    for (size_t i = 0; i < o->ggml_count; i++) {
        const bool repack = strcmp(o->ggml[i], "repack") == 0;
        if (repack && !ggml_layer_can_repack(c->shape, c->weights)) {
            if (o->ggml_count == 1) stop(EXIT_FAILED, "ggml cannot repack %s here", c->weights);
            continue;
        }
        add_side(c, false, o->ggml[i])->repack = repack;
    }
    if (c->weights[0] == 'q') return; /* no format of ours */
    const bool mx = strcmp(c->weights, "mxfp4") == 0;
    const char *const usual[] = {"exact", "int8"};
    const size_t n = o->act_count ? o->act_count : mx ? 2 : 1;
    for (size_t i = 0; i < n; i++) {
        const char *act = o->act_count ? o->acts[i] : usual[i];
        add_side(c, true, act)->act = (moe_act_mode)find("--act", act, ACTS, 4);
    }
}

/* Layer number n on every side.  Our sides differ by the call alone: they share it. */
static void make_layer(comparison *c, size_t n)
{
    const peers_format format = strcmp(c->weights, "mxfp4") == 0 ? PEERS_MXFP4 : PEERS_BF16;
    peers_layer raw;
    void *ours = NULL;
    if (!peers_layer_make(&raw, c->shape, format, c->o->seed + n))
        stop(EXIT_FAILED, "no memory for the layer");
    for (size_t i = 0; i < c->sides; i++) {
        side *s = &c->side[i];
        if (s->ours && !ours && !(ours = our_layer_create(c->ours, &raw))) exit(EXIT_FAILED);
        s->layer[n] = s->ours ? ours : ggml_layer_create(c->ggml, &raw, c->weights, s->repack);
        if (!s->layer[n]) exit(EXIT_FAILED);
    }
    if (n == TIMED)
        c->raw = raw;
    else
        peers_layer_free(&raw);
}

static double call(comparison *c, side *s, size_t layer)
{
    bool good;
    double start, end;
    if (s->ours) {
        our_layer_prepare(s->layer[layer], &c->batch, s->act);
        start = now_us();
        good = our_layer_run(s->layer[layer]);
        end = now_us();
    } else {
        ggml_layer_prepare(s->layer[layer], &c->batch);
        start = now_us();
        good = ggml_layer_run(s->layer[layer]);
        end = now_us();
    }
    if (!good) stop(EXIT_FAILED, "%s: the call failed", s->name);
    return end - start;
}

/* Both sides' threads sleep between turns: they would poll during another's. */
static void put_to_sleep(const comparison *c, const side *s)
{
    if (s->ours)
        our_pool_pause(c->ours);
    else
        ggml_pool_pause(c->ggml);
}

/* ---- the check ----------------------------------------------------------------------------- */

static void keep_output(const comparison *c, side *s)
{
    const void *layer = s->layer[TIMED];
    const float *y = s->ours ? our_layer_output(layer) : ggml_layer_output(layer);
    memcpy(s->y, y, c->batch.T * c->shape->H * sizeof *y);
}

/* rms(a - b) / rms(b) */
static double difference(const float *a, const float *b, size_t n)
{
    double off = 0, size = 0;
    for (size_t i = 0; i < n; i++) off += pow((double)a[i] - b[i], 2), size += pow(b[i], 2);
    return sqrt(off / size);
}

/* Every side on the same tokens and layer: against double (the last token), and against each
 * other.  The largest difference of two sides. */
static double check(comparison *c, size_t T)
{
    const size_t H = c->shape->H;
    double *exact = malloc(H * sizeof *exact), largest = 0;
    float *rounded = malloc(H * sizeof *rounded);
    if (!exact || !rounded) stop(EXIT_FAILED, "no memory");
    peers_batch_draw(&c->batch, c->shape, T, &c->state);
    if (!peers_reference(&c->raw, &c->batch, T - 1, exact)) stop(EXIT_FAILED, "no memory");
    for (size_t h = 0; h < H; h++) rounded[h] = (float)exact[h];
    for (size_t i = 0; i < c->sides; i++) {
        side *s = &c->side[i];
        call(c, s, TIMED);
        put_to_sleep(c, s);
        keep_output(c, s);
        s->error = difference(s->y + (T - 1) * H, rounded, H);
        if (!(s->error <= tolerance(c->weights, s->act)))
            stop(
                EXIT_NONSENSE,
                "%s, T = %zu: the result is off by %.3g of its size, more than rounding (limit %.3g)",
                s->name, T, s->error, tolerance(c->weights, s->act));
        for (size_t j = 0; j < i; j++) {
            const double d = difference(s->y, c->side[j].y, T * H);
            const double limit =
                tolerance(c->weights, s->act) + tolerance(c->weights, c->side[j].act);
            if (!(d <= limit))
                stop(EXIT_NONSENSE,
                     "%s and %s, T = %zu: results differ by %.3g of their size (limit %.3g)",
                     s->name, c->side[j].name, T, d, limit);
            if (d > largest) largest = d;
        }
    }
    free(exact);
    free(rounded);
    return largest;
}

/* ---- timing -------------------------------------------------------------------------------- */

static void fill_caches(const comparison *c)
{
    unsigned sum = 0;
    for (size_t i = 0; i < c->other_bytes; i += 64) sum += c->other[i];
    __asm__ volatile("" : : "r"(sum));
}

/* One round: the experts that its timed calls read.  The tokens of a turn come from the round's
 * own seed, so that all sides see the same. */
static size_t round_of_turns(comparison *c, size_t T, size_t n)
{
    const uint64_t round_state = c->state;
    for (size_t i = 0; i < c->sides; i++) {
        side *s = &c->side[(n + i) % c->sides];
        c->state = round_state;
        fill_caches(c);
        peers_batch_draw(&c->batch, c->shape, T, &c->state);
        call(c, s, WAKING);
        peers_batch_draw(&c->batch, c->shape, T, &c->state);
        s->us[n] = call(c, s, TIMED);
        put_to_sleep(c, s);
    }
    return c->batch.experts;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The q-quantile of n numbers, between two of them where it falls there. */
static double quantile(const double *values, size_t n, double q)
{
    double *sorted = malloc(n * sizeof *sorted);
    if (!sorted) stop(EXIT_FAILED, "no memory");
    memcpy(sorted, values, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, ascending);
    const double at = q * (double)(n - 1);
    const size_t i = (size_t)at;
    const double value =
        i + 1 < n ? sorted[i] + (at - (double)i) * (sorted[i + 1] - sorted[i]) : sorted[i];
    free(sorted);
    return value;
}

static const side *best_ggml(const comparison *c)
{
    const size_t n = c->o->repetitions;
    const side *best = NULL;
    for (size_t i = 0; i < c->sides; i++) {
        const side *s = &c->side[i];
        if (!s->ours && (!best || quantile(s->us, n, 0.5) < quantile(best->us, n, 0.5))) best = s;
    }
    return best;
}

/* The median over the rounds of ggml's time in ours. */
static double ratio(const comparison *c, const side *ours)
{
    const size_t n = c->o->repetitions;
    const side *ggml = best_ggml(c);
    double *each = malloc(n * sizeof *each);
    if (!each) stop(EXIT_FAILED, "no memory");
    for (size_t i = 0; i < n; i++) each[i] = ggml->us[i] / ours->us[i];
    const double median = quantile(each, n, 0.5);
    free(each);
    return median;
}

/* ---- what is printed ----------------------------------------------------------------------- */

static void print_head(const comparison *c)
{
    printf("| shape | weights | threads | T | experts read |");
    for (size_t i = 0; i < c->sides; i++) printf(" %s ms |", c->side[i].name);
    for (size_t i = 0; i < c->sides; i++)
        if (c->side[i].ours) printf(" ggml / %s |", c->side[i].name);
    printf(" difference |\n|---|---|--:|--:|--:|");
    for (size_t i = 0; i < c->sides; i++) printf(c->side[i].ours ? "--:|--:|" : "--:|");
    printf("--:|\n");
}

static void print_row(const comparison *c, size_t T, double experts, double differ)
{
    printf("| %s | %s | %d | %zu | %.1f |", c->shape->name, c->weights, c->o->threads, T, experts);
    for (size_t i = 0; i < c->sides; i++)
        printf(" %.2f |", quantile(c->side[i].us, c->o->repetitions, 0.5) / 1e3);
    for (size_t i = 0; i < c->sides; i++)
        if (c->side[i].ours) printf(" %.2f |", ratio(c, &c->side[i]));
    printf(" %.1e |\n", differ);
    fflush(stdout);
}

static void print_machine(const options *o, const moe_context *context)
{
    char cpu[128];
    cpu_name(cpu, sizeof cpu);
    if (!o->json) {
        printf(
            "%s, %d threads.  ggml %s%s%s, OpenMP %s; moe_tkg %s, %s.  Medians of %zu rounds.\n\n",
            cpu, o->threads, ggml_layer_version(), *PEERS_GGML_FROM ? " of " : "", PEERS_GGML_FROM,
            PEERS_GGML_OPENMP, moe_version(), moe_context_isa(context), o->repetitions);
        return;
    }
    printf(
        "{\n  \"machine\": {\"cpu\": \"%s\", \"threads\": %d, \"last_level_cache_bytes\": %zu, \"ggml\": \"%s\", "
        "\"ggml_from\": \"%s\", \"ggml_openmp\": \"%s\", \"moe_tkg\": \"%s\", \"isa\": \"%s\", \"seed\": %llu},\n"
        "  \"results\": [",
        cpu, o->threads, cache_bytes(), ggml_layer_version(), PEERS_GGML_FROM, PEERS_GGML_OPENMP,
        moe_version(), moe_context_isa(context), (unsigned long long)o->seed);
}

static void print_json(const comparison *c, size_t T, double experts, double differ, bool first)
{
    const size_t n = c->o->repetitions;
    printf("%s\n    {\"shape\": \"%s\", \"weights\": \"%s\", \"threads\": %d, \"tokens\": %zu, "
           "\"experts_read\": %.2f, \"difference\": %.3g,\n     \"sides\": [",
           first ? "" : ",", c->shape->name, c->weights, c->o->threads, T, experts, differ);
    for (size_t i = 0; i < c->sides; i++) {
        const side *s = &c->side[i];
        printf(
            "%s\n       {\"name\": \"%s\", \"median_us\": %.1f, \"min_us\": %.1f, \"p95_us\": %.1f, \"error\": %.3g",
            i ? "," : "", s->name, quantile(s->us, n, 0.5), quantile(s->us, n, 0),
            quantile(s->us, n, 0.95), s->error);
        if (s->ours) printf(", \"ggml_ratio\": %.3f", ratio(c, s));
        printf(", \"samples_us\": [");
        for (size_t r = 0; r < n; r++) printf("%s%.1f", r ? ", " : "", s->us[r]);
        printf("]}");
    }
    printf("\n     ]}");
    fflush(stdout);
}

/* ---- a shape ------------------------------------------------------------------------------- */

static void compare_shape(const options *o, const peers_shape *shape, ggml_pool *ggml,
                          our_pool *ours, bool first_shape)
{
    comparison *c = calloc(1, sizeof *c);
    if (!c) stop(EXIT_FAILED, "no memory");
    c->o = o;
    c->shape = shape;
    c->weights = o->weights ? o->weights : shape->weights;
    c->ggml = ggml;
    c->ours = ours;
    c->state = o->seed * 0x9e3779b97f4a7c15u + 1;
    c->other_bytes = CACHE_TIMES * cache_bytes();
    c->other = malloc(c->other_bytes);
    if (!c->other || !peers_batch_init(&c->batch, shape)) stop(EXIT_FAILED, "no memory");
    memset(c->other, 1, c->other_bytes); /* pages never written are all one and the same */
    add_sides(c);
    for (size_t n = 0; n < LAYERS; n++) make_layer(c, n);

    if (!o->json) print_head(c);
    for (size_t i = 0; i < o->token_count; i++) {
        const size_t T = o->tokens[i];
        size_t experts = 0;
        const double differ = check(c, T);
        for (size_t n = 0; n < o->repetitions; n++) experts += round_of_turns(c, T, n);
        const double mean = (double)experts / (double)o->repetitions;
        if (o->json)
            print_json(c, T, mean, differ, first_shape && i == 0);
        else
            print_row(c, T, mean, differ);
    }
    if (!o->json) putchar('\n');

    for (size_t i = c->sides; i-- > 0;) {
        const bool shared = i > 0 && c->side[i].ours && c->side[i - 1].ours;
        for (size_t n = 0; n < LAYERS; n++) {
            if (!c->side[i].ours)
                ggml_layer_destroy(c->side[i].layer[n]);
            else if (!shared)
                our_layer_destroy(c->side[i].layer[n]);
        }
        free(c->side[i].us);
        free(c->side[i].y);
    }
    free(c->other);
    peers_layer_free(&c->raw);
    peers_batch_free(&c->batch);
    free(c);
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    o.threads = choose_cpus(o.threads);
    our_pool *ours = our_pool_create(o.threads);
    ggml_pool *ggml = ggml_pool_create(o.threads);
    if (!ours || !ggml) stop(EXIT_FAILED, "no threads");
    ggml_pool_pause(ggml);

    print_machine(&o, our_pool_context(ours));
    for (size_t i = 0; i < o.shape_count; i++)
        compare_shape(&o, find_shape(o.shapes[i]), ggml, ours, i == 0);
    if (o.json) printf("\n  ]\n}\n");
    ggml_pool_destroy(ggml);
    our_pool_destroy(ours);
    if (fflush(stdout) || ferror(stdout)) stop(EXIT_FAILED, "cannot write the output");
    return 0;
}
