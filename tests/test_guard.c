/* SPDX-License-Identifier: Apache-2.0 */
/* test_guard.c - the operator touches no byte outside its tensors and writes none of its inputs.
 *
 * Every tensor lies between two pages that cannot be touched, flush with the one or with the
 * other; inputs cannot be written. A step outside ends the program with the layer's description. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "expect.h"
#include "random_layer.h"

/* ---- memory between guard pages -------------------------------------------------------------- */

static size_t page;

/* Where in its pages a tensor lies. */
typedef enum flush { FLUSH_END, FLUSH_START } flush;

static size_t pages_of(size_t bytes)
{
    return (bytes + page - 1) / page * page;
}

static void *take_guarded(size_t bytes, size_t element, void *user)
{
    (void)element; /* bytes is a multiple of it, so that both ends are aligned */
    size_t inner = pages_of(bytes);
    char *p = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, inner, PROT_READ | PROT_WRITE) != 0) return NULL;
    memset(p + page, 0xC3, inner);
    return p + page + (*(flush *)user == FLUSH_END ? inner - bytes : 0);
}

static char *pages_at(void *memory)
{
    return (char *)memory - (uintptr_t)memory % page;
}

static void give_guarded(void *memory, size_t bytes, void *user)
{
    (void)user;
    munmap(pages_at(memory) - page, pages_of(bytes) + 2 * page);
}

static void protect(void *memory, size_t bytes)
{
    if (bytes > 0) assert_int_equal(mprotect(pages_at(memory), pages_of(bytes), PROT_READ), 0);
}

/* The bytes of its pages beside a guarded block are as they were. */
static bool is_margin_whole(void *memory, size_t bytes)
{
    const unsigned char *start = (unsigned char *)pages_at(memory), *block = memory;
    for (const unsigned char *p = start; p < start + pages_of(bytes); p++)
        if ((p < block || p >= block + bytes) && *p != 0xC3) return false;
    return true;
}

/* ---- one layer ------------------------------------------------------------------------------- */

enum { MAX_LEVELS = 8 };
static moe_context *contexts[MAX_LEVELS]; /* of two threads, for each ISA level */
static size_t context_count;
static char current[200];

static void on_fault(int number)
{
    (void)number;
    static const char text[] = "a step outside a tensor, or into an input: ";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(2);
    if (write(STDERR_FILENO, current, strlen(current)) < 0) _exit(2);
    _exit(1);
}

/* What to say if the next layer leads outside; cmocka has its own handlers at the start of every
 * test. */
static void describe(const layer_spec *s, flush where)
{
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    snprintf(
        current, sizeof current,
        "%s hidden, %s and %s weights, T %d, H %d, I %d, E_L %d, K %d, all-expert %d, place %d, "
        "mode %d, flush with the %s\n",
        moe_dtype_name(s->hidden), moe_dtype_name(s->weights), moe_dtype_name(s->down), (int)s->T,
        (int)s->H, (int)s->I, (int)s->E_L, (int)s->K, s->all_expert, (int)s->place,
        (int)s->act_mode, where == FLUSH_END ? "end" : "start");
}

static void run_guarded(const layer_spec *s, flush where)
{
    layer l;
    moe_tensor shape;
    size_t bytes;
    layer_memory guarded = {take_guarded, give_guarded, &where};
    describe(s, where);
    layer_make_in(&l, s, &guarded);
    for (int which = 0; which < LAYER_TENSORS; which++) protect(l.data[which], l.bytes[which]);
    assert_int_equal(moe_tkg_output(&l.args, &shape, &bytes), MOE_OK);
    void *first = take_guarded(bytes, moe_dtype_size(shape.dtype), &where);
    assert_non_null(first);
    assert_int_equal(moe_tkg(NULL, &l.args, first, bytes), MOE_OK);
    if (!is_margin_whole(first, bytes)) fail_msg("wrote beside the output: %s", current);
    for (size_t i = 0; i < context_count; i++) {
        void *output = take_guarded(bytes, moe_dtype_size(shape.dtype), &where);
        assert_non_null(output);
        assert_int_equal(moe_tkg(contexts[i], &l.args, output, bytes), MOE_OK);
        const char *isa = moe_context_isa(contexts[i]);
        if (!is_margin_whole(output, bytes))
            fail_msg("%s wrote beside the output: %s", isa, current);
        if (memcmp(first, output, bytes) != 0) fail_msg("%s differs: %s", isa, current);
        give_guarded(output, bytes, NULL);
    }
    give_guarded(first, bytes, NULL);
    layer_free(&l);
}

static void run_both(const layer_spec *s)
{
    run_guarded(s, FLUSH_END);
    run_guarded(s, FLUSH_START);
}

/* ---- tails ----------------------------------------------------------------------------------- */

/* Sizes that reach every residue of the steps in use (16 rows, 2 to 8 k a line, 64 bytes), and
 * those around one or two plain blocks of 512. */
static int64_t plain_size(unsigned i)
{
    static const int64_t big[] = {126, 127, 128, 129, 510,  511,  512, 513,
                                  514, 575, 576, 577, 1023, 1024, 1025};
    return i < 65 ? i + 1 : big[(i - 65) % COUNT(big)];
}

enum { PLAIN_SIZES = 80 };

static void test_plain_tails(void **state)
{
    (void)state;
    static const moe_dtype types[] = {MOE_BF16, MOE_F16, MOE_F32, MOE_E4M3_IEEE, MOE_E4M3FN};
    for (size_t type = 0; type < COUNT(types); type++)
        for (unsigned i = 0; i < PLAIN_SIZES; i++)
            for (unsigned turn = 0; turn < 2; turn++) { /* H through all sizes, then I */
                int64_t other = plain_size((i * 7 + (unsigned)type) % 65);
                layer_spec s = {.hidden = types[(i + type) % 3],
                                .weights = types[type],
                                .T = 1 + i % 5,
                                .H = turn ? other : plain_size(i),
                                .I = turn ? plain_size(i) : other,
                                .E_L = 2,
                                .K = 1 + i % 2,
                                .all_expert = i / 2 % 2,
                                .scaling = i % 3 ? MOE_POST_SCALE : MOE_NO_SCALE,
                                .scales = i % 4 == 3 ? LAYER_ROW : LAYER_UNSCALED,
                                .gate_up_bias = i % 3 == 1,
                                .down_bias = i % 3 == 2};
                run_both(&s);
            }
}

static void test_mx_tails(void **state)
{
    (void)state;
    static const struct {
        moe_dtype weights;
        moe_act_mode mode;
    } kinds[] = {{MOE_MXFP4_X4, MOE_ACT_MXFP8},
                 {MOE_MXFP4_X4, MOE_ACT_INT8},
                 {MOE_MXFP4_X4, MOE_ACT_EXACT},
                 {MOE_MXFP8_X4, MOE_ACT_MXFP8},
                 {MOE_MXFP8_X4, MOE_ACT_EXACT}};
    static const int64_t around_a_tile[] = {505, 511, 512, 513, 519, 520, 521, 544, 545, 600};
    static const layer_place places[] = {LAYER_HBM, LAYER_SBUF, LAYER_PREQUANT};
    for (size_t kind = 0; kind < COUNT(kinds); kind++)
        for (unsigned i = 0; i < 100 + COUNT(around_a_tile); i++) {
            layer_spec s = {.hidden = i % 2 ? MOE_BF16 : MOE_F32,
                            .weights = kinds[kind].weights,
                            .act_mode = kinds[kind].mode,
                            .T = 1 + i % 5,
                            .H = i % 16 == 15 ? 1024 : 512,
                            .I = i < 100 ? i + 1 : around_a_tile[i - 100],
                            .E_L = 1 + i % 2,
                            .all_expert = true,
                            .place = places[i % 3],
                            .gate_up_bias = i % 2 == 0,
                            .down_bias = i % 4 == 0};
            s.output_in_sbuf = s.place != LAYER_HBM && i % 2;
            if (i % 5 == 4 && s.place != LAYER_PREQUANT) {
                s.all_expert = false;
                s.scaling = MOE_POST_SCALE;
                s.eager = i % 2;
            }
            run_guarded(&s, (i + kind) % 2 ? FLUSH_START : FLUSH_END);
        }
}

/* All that random_layer.h thinks of, masks, ranks and types of indices among it. */
static void random_layers_stay_inside(layer_spec s)
{
    run_both(&s);
}

/* output == hidden_input: the one input that may be written. */
static void in_place_stays_inside(layer_spec s)
{
    if (s.place == LAYER_PREQUANT) return;
    s.output = s.hidden;
    s.output_in_sbuf = s.place == LAYER_SBUF;
    flush where = s.seed % 2 ? FLUSH_START : FLUSH_END;
    layer l;
    layer_memory guarded = {take_guarded, give_guarded, &where};
    describe(&s, where);
    layer_make_in(&l, &s, &guarded);
    for (int which = LAYER_HIDDEN + 1; which < LAYER_TENSORS; which++)
        protect(l.data[which], l.bytes[which]);
    void *both = l.data[LAYER_HIDDEN];
    assert_int_equal(
        moe_tkg(contexts[s.seed % context_count], &l.args, both, l.bytes[LAYER_HIDDEN]), MOE_OK);
    if (!is_margin_whole(both, l.bytes[LAYER_HIDDEN]))
        fail_msg("wrote beside the output: %s", current);
    layer_free(&l);
}

static int prepare(void **state)
{
    (void)state;
    page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; moe_isa_level(i) != NULL && i < MAX_LEVELS; i++) {
        moe_context_options options = moe_context_options_init();
        options.threads = 2;
        options.isa = moe_isa_level(i);
        if (moe_context_create(&options, &contexts[context_count++]) != MOE_OK) return -1;
    }
    return 0;
}

static int finish(void **state)
{
    (void)state;
    for (size_t i = 0; i < context_count; i++)
        if (moe_context_destroy(contexts[i]) != MOE_OK) return -1;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_tails),
        cmocka_unit_test(test_mx_tails),
        RANDOM_LAYER_TEST(random_layers_stay_inside),
        RANDOM_LAYER_TEST(in_place_stays_inside),
    };
    return cmocka_run_group_tests_name("guard", tests, prepare, finish);
}
