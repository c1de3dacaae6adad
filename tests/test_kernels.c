/* SPDX-License-Identifier: Apache-2.0 */
/* test_kernels.c - every kernel of every instruction set that this machine has gives the bits of
 * kernel_table_scalar, touches nothing beside what the contract gives it and leaves the
 * floating-point environment alone.
 *
 *     test_kernels                     the tests; MOE_SEED, MOE_QUICK, MOE_EXHAUSTIVE as in
 *                                      random_layer.h
 *     test_kernels --bench [FORMAT]    the time of every kernel (kernel_bench.h)
 *
 * Of two NaNs the payloads may differ. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cpu.h"
#include "expect.h"
#include "fpenv.h"
#include "kernel_bench.h"
#include "kernel_case.h"
#include "kernel_ref.h"
#include "numeric.h"

/* ---- what is compared ------------------------------------------------------------------------ */

static char current[256];

static void on_fault(int number)
{
    (void)number;
    static const char text[] = "a step outside, or a trap: ";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(2);
    if (write(STDERR_FILENO, current, strlen(current)) < 0) _exit(2);
    _exit(1);
}

static void describe(const kernel_case *c, const char *what, const char *isa, size_t width)
{
    snprintf(current, sizeof current,
             "%s %s: %s weights, %s operands, data %d, k %zu, halves %zu, tokens %zu, width %zu, "
             "seed %llu, scale %d, bias %d, flush with the %s\n",
             isa, what, case_format_name(c->format), case_operand_name(c->operand), c->data, c->k,
             c->halves, c->tokens, width, (unsigned long long)c->seed, c->scale, c->bias,
             c->at_end ? "end" : "start");
}

/* NaNs are alike; canaries are NaNs too, so that a float that was not to be written is compared
 * apart. */
static void expect_floats(const float *expected, const float *got, size_t rows, size_t columns,
                          size_t stride)
{
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < (row + 1 < rows ? stride : columns); i++) {
            float a = expected[row * columns + i], b = got[row * stride + i];
            if (i >= columns) {
                if (num_bits(b) != 0xC3C3C3C3u) fail_msg("wrote beside its rows: %s", current);
            } else if (num_bits(a) != num_bits(b) && !(isnan(a) && isnan(b))) {
                fail_msg("token %zu row %zu: %a, not %a: %s", row, i, (double)b, (double)a,
                         current);
            }
        }
}

/* The control bits; a kernel may raise flags. */
static unsigned long control(void)
{
#if defined(__x86_64__)
    return _mm_getcsr() & ~0x3Fu;
#else
    unsigned long e;
    __asm__ volatile("mrs %0, fpcr" : "=r"(e));
    return e;
#endif
}

/* ---- panels ---------------------------------------------------------------------------------- */

/* Limits and offsets: none; gpt-oss; crossed ones; one behind the activation. */
enum { KINDS = 7, LIMITS = 4 };

static kernel_point point_of(uint64_t n)
{
    static const struct {
        moe_activation activation;
        float alpha;
    } kinds[] = {{MOE_SWISH, 1.0f}, {MOE_SWISH, 1.702f}, {MOE_GELU, 0.0f}, {MOE_GELU_TANH, 0.0f},
                 {MOE_RELU, 0.0f},  {MOE_SWISH, -0.5f},  {MOE_RELU2, 0.0f}};
    kernel_point p = {.activation = kinds[n % KINDS].activation,
                      .alpha = kinds[n % KINDS].alpha,
                      .up_offset = -0.0f,
                      .gate_upper = INFINITY,
                      .gate_lower = -INFINITY,
                      .up_upper = INFINITY,
                      .up_lower = -INFINITY,
                      .act_upper = INFINITY};
    switch (n / KINDS % LIMITS) {
    case 1: p.gate_upper = p.up_upper = 7, p.up_lower = -7, p.up_offset = 1; break;
    case 2: p.gate_upper = -1, p.gate_lower = 0.25f, p.up_upper = 0, p.up_lower = 0; break;
    case 3: p.act_upper = n & 1 ? 0.75f : -0.0625f; break;
    default: break;
    }
    return p;
}

/* Like a wild operand: tokens of four kinds. */
static float wild_float(uint64_t seed, size_t row, size_t i)
{
    uint64_t r = layer_random(seed, row, i);
    uint32_t exponent = 120 + (uint32_t)(r >> 40) % 8, mantissa = (uint32_t)r & 0x7FFFFF;
    switch ((row + seed) % 6) {
    case 1: exponent = (uint32_t)(r >> 48) % 255; break;
    case 2: exponent = r >> 48 & 1 ? 0 : 1; break;
    case 3: return 0.0f;
    case 4: exponent = i == seed % 32 ? 255 : exponent; break;
    case 5: mantissa &= 0x780000 | (uint32_t)(r >> 48 & 1); break; /* ties */
    default: break;
    }
    return num_float((uint32_t)(r >> 63) << 31 | exponent << 23 | mantissa);
}

/* Runs the kernel into rows of stride floats. */
static void run(const kernel_table *table, const kernel_case *c, bool down,
                const kernel_point *point, kernel_tiles tiles, float *out, size_t stride)
{
    kernel_operand o = c->operand;
    if (table == &kernel_table_scalar && o == OPERAND_BF16) o = OPERAND_F32;
    if (table == &kernel_table_scalar && o == OPERAND_BF16_SUMS) o = OPERAND_SUMS;
    fpenv saved = fpenv_enter();
    unsigned long before = control();
    if (down)
        table->down[c->format][o](&(kernel_down){c->panel, tiles, out, stride});
    else
        table->gate_up[c->format][o](
            &(kernel_gate_up){c->panel, tiles, point, c->factor, out, stride});
    unsigned long after = control();
    fpenv_leave(saved);
    if (before != after) fail_msg("floating-point environment: %s", current);
}

static bool has(const kernel_table *table, const kernel_case *c, bool down)
{
    return down ? table->down[c->format][c->operand] != NULL
                : table->gate_up[c->format][c->operand] != NULL;
}

static guarded output_memory;

/* One case on every table that has a kernel for it; turn: which width of tile. */
static void expect_case(kernel_case *c, bool down, const kernel_point *point, size_t turn)
{
    static float expected[KERNEL_TOKENS * 2 * KERNEL_ROWS];
    size_t columns = down || point->ungated ? c->halves * KERNEL_ROWS : KERNEL_ROWS;
    bool made = false;
    for (size_t i = 1; cpu_level(i) != NULL; i++) {
        const kernel_table *table = cpu_level(i);
        if (!has(table, c, down)) continue;
        if (!made) {
            describe(c, down ? "down" : "gate_up", "scalar", 1);
            case_make(c);
            run(&kernel_table_scalar, c, down, point, case_tiles(c, 1, true), expected, columns);
            made = true;
        }
        size_t width = 1 + turn % table->width[kernel_is_scaled(c->format)];
        size_t stride = columns + turn % 3 * 16;
        describe(c, down ? "down" : "gate_up", table->isa, width);
        float *out = guarded_at(&output_memory, ((c->tokens - 1) * stride + columns) * sizeof *out,
                                c->at_end);
        run(table, c, down, point, case_tiles(c, width, false), out, stride);
        expect_floats(expected, out, c->tokens, columns, stride);
    }
}

static bool is_set(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] == '1';
}

static uint64_t first_seed(void)
{
    const char *environment = getenv("MOE_SEED");
    return environment ? strtoull(environment, NULL, 0) : 0;
}

/* All tokens by all k by gate_up, down, down of one half and gate_up without gate of one half or
 * two; each time another width, data, f32 rows and activation. */
static void each_shape(kernel_format f, kernel_operand o)
{
    static const size_t plain_k[] = {2, 4, 6, 8, 30, 32, 34, 64, 510, 512, 514, 1030, 1024, 1570};
    static const size_t scaled_k[] = {0, 32, 64, 96, 128, 160, 480, 512, 544, 1056, 1088};
    static const size_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 24, 31, 128};
    const size_t count = kernel_is_scaled(f) ? COUNT(scaled_k) : COUNT(plain_k);
    const bool like_another = f >= FORMAT_INT4_BF16_64 && f <= FORMAT_INT4_F16_128;
    const size_t rounds = is_set("MOE_EXHAUSTIVE") ? 50
                          : like_another           ? 1
                                                   : 3,
                 step = is_set("MOE_QUICK") ? 16 : 1;
    for (size_t n = 0; n < rounds * COUNT(tokens) * count * 4; n += step) {
        uint64_t seed = first_seed() + n * 64 + f * 8 + o, draw = case_random(seed, 0);
        size_t shape = n / 4;
        kernel_case c = {.seed = draw >> 8,
                         .format = f,
                         .operand = o,
                         .data = (case_data)(draw % CASE_DATA),
                         .k =
                             kernel_is_scaled(f) ? scaled_k[shape % count] : plain_k[shape % count],
                         .halves = n % 4 == 2 || (n % 4 == 3 && draw >> 37 & 1) ? 1 : 2,
                         .tokens = tokens[shape / count % COUNT(tokens)],
                         .scale = draw >> 32 & 1,
                         .bias = draw >> 33 & 1,
                         .at_end = draw >> 34 & 1};
        if (c.tokens > 12 && c.k > 64 && (is_set("MOE_QUICK") || (draw >> 35 & 3) != 0))
            c.tokens = 14 + draw % 8; /* all of them would take long */
        kernel_point point = point_of(draw >> 40);
        static float factor[KERNEL_TOKENS];
        for (size_t t = 0; t < KERNEL_TOKENS; t++) factor[t] = wild_float(draw, t, t);
        if (draw >> 36 & 1) c.factor = factor;
        point.ungated = n % 4 == 3;
        expect_case(&c, n % 4 == 1 || n % 4 == 2, &point, (size_t)(draw >> 50));
    }
}

static void each_entry(void (*each)(kernel_format f, kernel_operand o))
{
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    signal(SIGFPE, on_fault);
    signal(SIGILL, on_fault);
    for (int f = 0; f < FORMAT_COUNT; f++)
        for (int o = 0; o < OPERAND_COUNT; o++) each((kernel_format)f, (kernel_operand)o);
}

static void test_shapes(void **state)
{
    (void)state;
    each_entry(each_shape);
}

/* Every width with every number of tokens that are left. */
static void each_width(kernel_format f, kernel_operand o)
{
    for (size_t width = 0; width < KERNEL_WIDTH; width++)
        for (size_t tokens = 1; tokens <= 2 * KERNEL_WIDTH; tokens++) {
            kernel_case c = {.seed = first_seed() + 1000 + width * 100 + tokens,
                             .format = f,
                             .operand = o,
                             .data = (case_data)(tokens % CASE_DATA),
                             .k = kernel_is_scaled(f) ? 96 : 38,
                             .halves = 2,
                             .tokens = tokens,
                             .at_end = tokens % 2};
            expect_case(&c, true, NULL, width);
        }
}

static void test_widths(void **state)
{
    (void)state;
    each_entry(each_width);
}

/* ---- all codes ------------------------------------------------------------------------------- */

/* Code number first + (half, row) in even or in odd k, zeros in the others. */
typedef struct codes {
    uint8_t exponent[16]; /* the table of bf12 */
    uint32_t first, place;
} codes;

static uint32_t numbered_code(const kernel_case *c, size_t half, size_t row, size_t k)
{
    const codes *u = c->user;
    uint32_t code = u->first + (uint32_t)(half * KERNEL_ROWS + row);
    if (c->format == FORMAT_F32) code = code << 16 | (uint32_t)(c->seed * 40503 & 0xFFFF);
    return k % 2 == u->place ? code : 0;
}

/* x of wild tokens times every code there is (f32: every upper half). */
static void each_code(kernel_format f, kernel_operand o)
{
    size_t bits = f == FORMAT_BF12 ? 16 : kernel_bits(f);
    uint32_t count = bits == 4 ? 16 : bits == 8 ? 256 : 65536;
    uint32_t step = is_set("MOE_QUICK") && count > 256 ? 544 : 32;
    for (uint32_t first = 0; first < count; first += step)
        for (uint32_t place = 0; place < 2; place++) {
            codes u = {{0}, first, place};
            for (unsigned i = 0; i < 16; i++) u.exponent[i] = (uint8_t)((first >> 7) + i - 3);
            kernel_case c = {.seed = first + place,
                             .format = f,
                             .operand = o,
                             .data = CASE_WILD,
                             .k = kernel_is_scaled(f) ? 32 : 2,
                             .halves = 2,
                             .tokens = 4,
                             .code = numbered_code,
                             .user = &u};
            expect_case(&c, true, NULL, first / 32);
        }
}

static void test_codes(void **state)
{
    (void)state;
    each_entry(each_code);
}

/* ---- the document ---------------------------------------------------------------------------- */

/* Scaled weights: the scalar kernels against kernel_ref.c. */
static void each_reference(kernel_format f, kernel_operand o)
{
    static const size_t k[] = {32, 64, 96, 160, 256, 288, 544};
    static float expected[KERNEL_TOKENS * 2 * KERNEL_ROWS], out[KERNEL_TOKENS * 2 * KERNEL_ROWS];
    if (!kernel_is_scaled(f) || kernel_table_scalar.down[f][o] == NULL) return;
    for (uint64_t seed = first_seed(); seed < first_seed() + (is_set("MOE_QUICK") ? 20 : 100);
         seed++) {
        uint64_t draw = case_random(seed, f * 8 + o);
        kernel_case c = {.seed = draw >> 8,
                         .format = f,
                         .operand = o,
                         .data = (case_data)(draw % CASE_DATA),
                         .k = k[(draw >> 2) % COUNT(k)],
                         .halves = 1 + (draw >> 6 & 1),
                         .tokens = 1 + seed % 5};
        size_t columns = c.halves * KERNEL_ROWS;
        describe(&c, "reference", "scalar", 1);
        case_make(&c);
        fpenv saved = fpenv_enter();
        kernel_ref_sums(&c, expected);
        fpenv_leave(saved);
        run(&kernel_table_scalar, &c, true, NULL, case_tiles(&c, 1, true), out, columns);
        expect_floats(expected, out, c.tokens, columns, columns);
    }
}

static void test_reference(void **state)
{
    (void)state;
    each_entry(each_reference);
}

/* ---- activations ----------------------------------------------------------------------------- */

/* Gate and up of k = 0: the product is what the bias says.  All upper halves of floats. */
static void test_activations(void **state)
{
    (void)state;
    uint32_t step = is_set("MOE_QUICK") ? 272 : 16;
    for (uint32_t first = 0; first < 65536; first += step)
        for (uint64_t n = 0; n < (uint64_t)KINDS * LIMITS; n += 1 + first / step % 3) {
            static float bias[2][KERNEL_ROWS] __attribute__((aligned(64)));
            static uint32_t x[32] __attribute__((aligned(64)));
            float expected[KERNEL_ROWS], out[KERNEL_ROWS] __attribute__((aligned(64)));
            for (uint32_t r = 0; r < KERNEL_ROWS; r++) {
                uint64_t draw = case_random(first, n * 16 + r);
                bias[0][r] = num_float((first + r) << 16 | (uint32_t)(draw >> 48));
                bias[1][r] = n < KINDS ? 1.0f : num_float((uint32_t)draw);
            }
            kernel_case c = {.format = FORMAT_MXFP4,
                             .halves = 2,
                             .tokens = 1,
                             .panel = {.stream = (const uint8_t *)x,
                                       .format = FORMAT_MXFP4,
                                       .halves = 2,
                                       .rows = {{.bias = bias[0]}, {.bias = bias[1]}}}};
            kernel_tiles tiles = {(const uint8_t *)x, 1, 1, 64};
            kernel_point point = point_of(n);
            run(&kernel_table_scalar, &c, false, &point, tiles, expected, KERNEL_ROWS);
            for (size_t i = 1; cpu_level(i) != NULL; i++) {
                describe(&c, "activation", cpu_level(i)->isa, (size_t)n);
                run(cpu_level(i), &c, false, &point, tiles, out, KERNEL_ROWS);
                expect_floats(expected, out, 1, KERNEL_ROWS, KERNEL_ROWS);
            }
        }
}

/* ---- quantize and reduce --------------------------------------------------------------------- */

static void quantize_case(uint64_t seed, kernel_rounding r, kernel_operand o)
{
    static guarded values, tiles[2];
    uint64_t draw = case_random(seed, 0);
    bool blocks = r == ROUND_MXFP8 || r == ROUND_INT8 || o >= OPERAND_SUMS, at_end = draw >> 9 & 1;
    size_t tokens = 1 + draw % 12, before = draw >> 4 & 3,
           width = before + tokens + (draw >> 6 & 3);
    size_t n = 1 + (draw >> 10) % 4, block = (draw >> 14) % n, k = n * 32;
    size_t terms = blocks || block + 1 < n ? 32 : 2 + (draw >> 18) % 16 * 2;
    if (!blocks) k -= 32 - terms;
    size_t stride = terms + (draw >> 24) % 40;
    size_t words = kernel_operand_words(o, k);
    if (values.first == NULL) {
        values = guarded_new(12 * 80 * sizeof(float));
        for (int i = 0; i < 2; i++) tiles[i] = guarded_new(18 * 170 * sizeof(float));
    }
    float *v = guarded_at(&values, ((tokens - 1) * stride + terms) * sizeof *v, at_end);
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < terms; i++) {
            float x = wild_float(seed, t, i);
            v[t * stride + i] = (o == OPERAND_BF16 || o == OPERAND_BF16_SUMS) && r == ROUND_NONE
                                    ? num_from_bf16(num_to_bf16(x))
                                    : x;
        }
    size_t bytes = words * width * sizeof(uint32_t);
    uint32_t *expected = guarded_at(&tiles[0], bytes, at_end),
             *got = guarded_at(&tiles[1], bytes, at_end);
    kernel_quantize a = {v, stride, tokens, terms, block, k, expected + before, width};
    fpenv saved = fpenv_enter();
    kernel_table_scalar.quantize(&a, r, o);
    for (size_t i = 1; cpu_level(i) != NULL; i++) {
        snprintf(
            current, sizeof current,
            "%s quantize: rounding %d, operand %d, seed %llu, tokens %zu, terms %zu, block %zu "
            "of %zu\n",
            cpu_level(i)->isa, r, o, (unsigned long long)seed, tokens, terms, block, n);
        memset(got, 0xC3, bytes);
        a.tile = got + before;
        unsigned long before_call = control();
        cpu_level(i)->quantize(&a, r, o);
        unsigned long after = control();
        if (before_call != after || memcmp(expected, got, bytes) != 0) {
            fpenv_leave(saved);
            fail_msg("other words or environment: %s", current);
        }
    }
    fpenv_leave(saved);
}

static void test_quantize(void **state)
{
    (void)state;
    static const struct {
        kernel_rounding rounding;
        kernel_operand operand;
    } pairs[] = {{ROUND_NONE, OPERAND_F32},       {ROUND_NONE, OPERAND_BF16},
                 {ROUND_BF16, OPERAND_F32},       {ROUND_BF16, OPERAND_BF16},
                 {ROUND_MXFP8, OPERAND_F32},      {ROUND_MXFP8, OPERAND_BF16},
                 {ROUND_NONE, OPERAND_SUMS},      {ROUND_BF16, OPERAND_SUMS},
                 {ROUND_NONE, OPERAND_BF16_SUMS}, {ROUND_BF16, OPERAND_BF16_SUMS},
                 {ROUND_INT8, OPERAND_INT8}};
    unsigned rounds = is_set("MOE_EXHAUSTIVE") ? 200000 : is_set("MOE_QUICK") ? 500 : 4000;
    for (unsigned n = 0; n < rounds; n++)
        for (size_t i = 0; i < COUNT(pairs); i++)
            quantize_case(first_seed() + n, pairs[i].rounding, pairs[i].operand);
}

static void test_reduce(void **state)
{
    (void)state;
    enum { TERMS = 9, N = 600 };
    static float expected[N], affinity[TERMS];
    static guarded rows;
    if (rows.first == NULL) rows = guarded_new(TERMS * N * sizeof(float));
    for (uint64_t seed = first_seed(); seed < first_seed() + 500; seed++) {
        uint64_t draw = case_random(seed, 0);
        size_t terms = draw % (TERMS + 1), n = 1 + (draw >> 8) % N;
        bool at_end = draw >> 20 & 1, scaled = draw >> 21 & 1;
        const float *y[TERMS];
        float *row = guarded_at(&rows, terms * n * sizeof *row, at_end), *out;
        for (size_t i = 0; i < terms; i++) {
            y[i] = row + i * n;
            affinity[i] = wild_float(seed, 77 + i % 5, i);
            for (size_t j = 0; j < n; j++) row[i * n + j] = wild_float(seed, j, i);
        }
        for (size_t level = 0; cpu_level(level) != NULL; level++) {
            snprintf(current, sizeof current, "%s reduce: seed %llu, terms %zu, n %zu\n",
                     cpu_level(level)->isa, (unsigned long long)seed, terms, n);
            out = guarded_at(&output_memory, n * sizeof *out, at_end);
            for (size_t j = 0; j < n; j++) out[j] = j % 3 ? 0.0f : wild_float(seed, 3 * j, 99);
            fpenv saved = fpenv_enter();
            cpu_level(level)->reduce(&(kernel_reduce){y, scaled ? affinity : NULL, terms, n, out});
            fpenv_leave(saved);
            if (level == 0)
                memcpy(expected, out, n * sizeof *out);
            else
                expect_floats(expected, out, 1, n, n);
        }
    }
}

int main(int argc, char **argv)
{
    output_memory = guarded_new(KERNEL_TOKENS * 4 * KERNEL_ROWS * sizeof(float));
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) return kernel_bench(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),      cmocka_unit_test(test_widths),
        cmocka_unit_test(test_codes),       cmocka_unit_test(test_reference),
        cmocka_unit_test(test_activations), cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_reduce),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
