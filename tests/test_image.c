/* SPDX-License-Identifier: Apache-2.0 */
/* test_image.c - packed experts written and read: the same bits come out, and an image that this
 * library would not have written is refused, or at least is no way out of its memory (ASan). */
#include "expect.h"

#include "experts.h"
#include "image.h"
#include "source.h"

#include <stdio.h>
#include <stdlib.h>

/* Offsets in an image; a new layout shifts them. */
enum { HEAD = 176, AT_VERSION = 12, AT_BYTES = 24 };

/* ---- layers ---------------------------------------------------------------------------------- */

/* Exponents fall off as those of a normal distribution do, and one in 64 is any. */
static uint32_t gaussian(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    uint64_t r = layer_random(s->seed * 31 + matrix, e << 32 | row, k);
    uint32_t low = (uint32_t)__builtin_ctzll(r >> 20 | 1ull << 40);
    return r >> 58 == 0 ? (uint32_t)(r & 0xFFFF) : (uint32_t)(r & 0x807F) | (124 - low) << 7;
}

/* Only lanes that are there have weights, so that trailing blocks of pads are left out. */
static uint32_t no_pads(const source_spec *s, size_t matrix, size_t e, size_t row, size_t k)
{
    bool pad = matrix == SOURCE_DOWN && k >= 64 && e != 1;
    return pad ? 0 : (uint32_t)layer_random(s->seed, e << 32 | row, k * 3 + matrix) & 0x7F;
}

#define BOTH(type)     .gate_up = type, .down = type
#define SIZES(e, h, i) .E_L = e, .H = h, .I = i
static const source_spec specs[] = {
    {BOTH(MOE_BF16), SIZES(3, 40, 24), .scale = MOE_F32, .bias = MOE_F16},
    {BOTH(MOE_BF16), SIZES(1, 1, 1)},
    {.gate_up = MOE_F16, .down = MOE_F32, SIZES(2, 33, 47), .bias = MOE_F32},
    {.gate_up = MOE_F32, .down = MOE_BF16, SIZES(2, 64, 16), .scale = MOE_BF16},
    {.gate_up = MOE_E4M3FN, .down = MOE_E4M3_IEEE, SIZES(2, 66, 31), .layout = SOURCE_OPERATOR},
    {.gate_up = MOE_E2M1_X2, .down = MOE_E4M3FN, SIZES(2, 64, 96), .mx = true, .bias = MOE_BF16},
    {BOTH(MOE_E2M1_X2), SIZES(3, 96, 32), .mx = true},
    {.gate_up = MOE_MXFP4_X4,
     .down = MOE_MXFP8_X4,
     SIZES(2, 512, 40),
     .mx = true,
     .layout = SOURCE_OPERATOR,
     .lanes_p = 16,
     .bias = MOE_F32},
    {BOTH(MOE_MXFP4_X4), SIZES(2, 1024, 600), .mx = true, .layout = SOURCE_OPERATOR,
     .lanes_p = 128},
    {BOTH(MOE_MXFP8_X4), SIZES(4, 512, 40), .mx = true, .layout = SOURCE_OPERATOR, .lanes_p = 64,
     .code = no_pads, .bias = MOE_BF16},
    {BOTH(MOE_BF16), SIZES(3, 100, 70), .packing = MOE_PACK_LOSSLESS, .code = gaussian,
     .bias = MOE_F32},
    {BOTH(MOE_BF16), SIZES(2, 40, 24), .packing = MOE_PACK_LOSSLESS, .code = gaussian,
     .scale = MOE_F32, .layout = SOURCE_OPERATOR},
    {BOTH(MOE_BF16), SIZES(2, 40, 24), .packing = MOE_PACK_LOSSLESS}, /* any bits: stays bf16 */
    {BOTH(MOE_E4M3FN), SIZES(2, 200, 130), .block_scale = MOE_F32, .scale_k = 128,
     .scale_rows = 128},
    {BOTH(MOE_INT4_X2), SIZES(2, 64, 96), .block_scale = MOE_BF16, .scale_k = 32, .bias = MOE_F32},
    {BOTH(MOE_INT4_X2), SIZES(2, 128, 64), .block_scale = MOE_F16, .scale_k = 64},
    {BOTH(MOE_INT4_X2), SIZES(2, 128, 256), .block_scale = MOE_F16, .scale_k = 128},
    {.gate_up = MOE_Q8_0, .down = MOE_Q4_0, SIZES(2, 96, 64)},
    {.gate_up = MOE_Q4_K, .down = MOE_Q6_K, SIZES(2, 256, 256)},
    {.gate_up = MOE_Q5_K, .down = MOE_BF16, SIZES(2, 512, 40)},
    {BOTH(MOE_E2M1_X2), SIZES(2, 80, 48), .row_scale = MOE_F32}, /* NVFP4 */
    {BOTH(MOE_BF16), SIZES(2, 48, 70), .ungated = true, .bias = MOE_F32},
    {.gate_up = MOE_GGML_MXFP4, .down = MOE_GGML_NVFP4, SIZES(2, 64, 64)},
};
enum { SHORT = 9, CODED = 10, CODED_END = 13 };

static moe_experts *pack(moe_context *context, const source_spec *spec)
{
    source s;
    moe_experts *x;
    source_make(&s, spec);
    moe_status status = moe_experts_create(context, &s.args, &x);
    if (status != MOE_OK) fail_msg("%s: %s", moe_status_name(status), moe_last_error());
    source_free(&s);
    return x;
}

static moe_experts *read_again(const image *i)
{
    moe_experts *x;
    moe_status status = image_read(NULL, i->data, i->bytes, &x);
    if (status != MOE_OK) fail_msg("%s: %s", moe_status_name(status), moe_last_error());
    return x;
}

/* ---- what is written is read ----------------------------------------------------------------- */

static void expect_same_calls(const moe_experts *a, const moe_experts *b)
{
    for (size_t level = 0; moe_isa_level(level) != NULL; level++) {
        moe_context *context;
        moe_context_options options = moe_context_options_init();
        options.threads = 1;
        options.isa = moe_isa_level(level);
        assert_int_equal(moe_context_create(&options, &context), MOE_OK);
        for (int mode = MOE_ACT_EXACT; mode <= MOE_ACT_INT8; mode++) {
            size_t bytes;
            float *x = image_run(context, a, MOE_SILU, (moe_act_mode)mode, level, &bytes),
                  *y = image_run(context, b, MOE_SILU, (moe_act_mode)mode, level, &bytes);
            assert_int_equal(x == NULL, y == NULL);
            if (x != NULL) assert_memory_equal(x, y, bytes);
            free(x);
            free(y);
        }
        moe_context_destroy(context);
    }
}

static void the_same_experts_come_back(void **state)
{
    (void)state;
    for (size_t n = 0; n < COUNT(specs); n++) {
        moe_experts *x = pack(NULL, &specs[n]);
        image i = image_of(x);
        moe_experts *y = read_again(&i);
        moe_experts_info was = {.struct_size = sizeof was}, is = was;
        assert_int_equal(moe_experts_describe(x, &was), MOE_OK);
        assert_int_equal(moe_experts_describe(y, &is), MOE_OK);
        assert_memory_equal(&was, &is, sizeof is);
        image again = image_of(y);
        assert_int_equal(again.bytes, i.bytes);
        assert_memory_equal(again.data, i.data, i.bytes);
        expect_same_calls(x, y);
        free(again.data);
        free(i.data);
        assert_int_equal(moe_experts_destroy(x), MOE_OK);
        assert_int_equal(moe_experts_destroy(y), MOE_OK);
    }
}

/* ---- an allocator that fills, counts and fails ------------------------------------------------ */

typedef struct heap {
    int fill;
    size_t live, largest;
    int successes; /* before all fails; negative: never */
} heap;

static void *heap_allocate(size_t bytes, size_t alignment, void *user)
{
    heap *h = user;
    if (h->successes == 0) return NULL;
    h->successes -= h->successes > 0;
    void *memory = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    assert_non_null(memory);
    memset(memory, h->fill, bytes);
    h->live++;
    if (bytes > h->largest) h->largest = bytes;
    return memory;
}

static void heap_release(void *memory, size_t bytes, void *user)
{
    (void)bytes;
    ((heap *)user)->live--;
    free(memory);
}

static moe_context *context_on(heap *h, int threads)
{
    moe_context *context;
    moe_context_options options = moe_context_options_init();
    options.threads = threads;
    options.allocate = heap_allocate;
    options.release = heap_release;
    options.user = h;
    assert_int_equal(moe_context_create(&options, &context), MOE_OK);
    return context;
}

/* Whatever memory held before, and on any number of threads. */
static void an_image_depends_on_the_experts_alone(void **state)
{
    (void)state;
    for (size_t n = 0; n < COUNT(specs); n++) {
        image first = {NULL, 0};
        for (int turn = 0; turn < 3; turn++) {
            heap h = {.fill = 0xA5 + turn * 31, .successes = -1};
            moe_context *context = context_on(&h, 1 + turn);
            moe_experts *x = pack(context, &specs[n]), *y;
            image i = image_of(x);
            if (turn == 0) first = i;
            assert_int_equal(i.bytes, first.bytes);
            assert_memory_equal(i.data, first.data, i.bytes);
            assert_int_equal(image_read(context, i.data, i.bytes, &y), MOE_OK);
            image again = image_of(y);
            assert_memory_equal(again.data, first.data, i.bytes);
            moe_experts_destroy(x);
            moe_experts_destroy(y);
            moe_context_destroy(context);
            assert_int_equal(h.live, 0);
            free(again.data);
            if (turn > 0) free(i.data);
        }
        free(first.data);
    }
}

static void memory_that_is_not_given(void **state)
{
    (void)state;
    for (size_t n = 0; n < COUNT(specs); n++) {
        moe_experts *x = pack(NULL, &specs[n]), *y;
        image i = image_of(x);
        heap h = {.fill = 1, .successes = -1};
        moe_context *context = context_on(&h, 1);
        size_t live = h.live;
        moe_status s = MOE_E_NOMEM;
        int site = 0;
        for (; s != MOE_OK; site++) {
            h.successes = site;
            s = image_read(context, i.data, i.bytes, &y);
            assert_true(s == MOE_OK || s == MOE_E_NOMEM);
            if (s == MOE_OK) break;
            assert_null(y);
            assert_int_equal(h.live, live);
        }
        assert_in_range(site, 1, 2); /* the block; lossless: scratch of the check */
        moe_experts_destroy(x);
        moe_experts_destroy(y);
        moe_context_destroy(context);
        free(i.data);
    }
}

/* ---- images that are refused ------------------------------------------------------------------ */

/* Refused with one of statuses and a text with `text`, without a trace in the heap; nothing larger
 * than the image was taken. */
static void expect_refused_image(const image *i, size_t bytes, unsigned statuses, const char *text)
{
    static heap h = {.fill = 0x77, .successes = -1};
    static moe_context *context;
    if (context == NULL) context = context_on(&h, 1);
    size_t live = h.live;
    moe_experts *x = (moe_experts *)(uintptr_t)64;
    h.largest = 0;
    moe_status s = image_read(context, i->data, bytes, &x);
    if ((STATUS(s) & statuses) == 0 || strstr(moe_last_error(), text) == NULL)
        fail_msg("%s, \"%s\": not \"%s\"", moe_status_name(s), moe_last_error(), text);
    assert_null(x);
    assert_true(h.largest <= bytes + sizeof(moe_experts) + 256);
    assert_true(h.live <= live + 1); /* scratch that the context keeps */
}

#define FORMAT STATUS(MOE_E_FORMAT)
#define STALE  STATUS(MOE_E_STALE)

/* Other experts of the same sizes, such as I = 41 in place of 40 in padded lanes: whole in itself. */
static bool is_of_others(const image *i)
{
    moe_experts *x;
    if (image_read(NULL, i->data, i->bytes, &x) != MOE_OK) return false;
    image again = image_of(x);
    assert_int_equal(again.bytes, i->bytes);
    assert_memory_equal(again.data, i->data, HEAD);
    free(again.data);
    size_t bytes;
    free(image_run(NULL, x, MOE_SILU, MOE_ACT_DEFAULT, 1, &bytes));
    moe_experts_destroy(x);
    return true;
}

static void every_bit_of_a_head(void **state)
{
    (void)state;
    size_t of_others = 0;
    for (size_t n = 0; n < COUNT(specs); n++) {
        moe_experts *x = pack(NULL, &specs[n]);
        image i = image_of(x);
        assert_int_equal(*(uint64_t *)(void *)(i.data + AT_BYTES), i.bytes);
        for (size_t bit = 0; bit < HEAD * 8; bit++) {
            i.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
            bool stale = bit / 8 >= AT_VERSION && bit / 8 < AT_BYTES;
            if (is_of_others(&i))
                of_others++;
            else
                expect_refused_image(&i, i.bytes, stale ? STALE : FORMAT,
                                     "image of packed experts");
            i.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        }
        moe_experts_destroy(x);
        free(i.data);
    }
    assert_in_range(of_others, 1, 2 * COUNT(specs));
}

static void of_another_machine(void **state)
{
    (void)state;
    moe_experts *x = pack(NULL, &specs[0]);
    image i = image_of(x);
    for (size_t n = 0; n < 2; n++) {
        unsigned char low = i.data[8 + n];
        i.data[8 + n] = i.data[11 - n];
        i.data[11 - n] = low;
    }
    expect_refused_image(&i, i.bytes, STALE, "another byte order");
    moe_experts_destroy(x);
    free(i.data);
}

/* At every length: the callback would fail, but nothing of the sort is asked of it. */
static void every_truncation(void **state)
{
    (void)state;
    const size_t some[] = {1, SHORT, CODED, CODED + 1};
    for (size_t n = 0; n < COUNT(some); n++) {
        moe_experts *x = pack(NULL, &specs[some[n]]);
        image i = image_of(x);
        size_t step = i.bytes > 20000 ? 61 : 1;
        for (size_t bytes = 0; bytes < i.bytes; bytes += bytes < 2 * HEAD ? 1 : step)
            expect_refused_image(&i, bytes, FORMAT, bytes < HEAD ? "ends in its head" : "says");
        expect_refused_image(&i, i.bytes - 1, FORMAT, "says");
        i.data = realloc(i.data, i.bytes + 64);
        assert_non_null(i.data);
        memset(i.data + i.bytes, 0, 64);
        expect_refused_image(&i, i.bytes + 1, FORMAT, "says");
        expect_refused_image(&i, i.bytes + 64, FORMAT, "says");
        moe_experts_destroy(x);
        free(i.data);
    }
}

/* Writes value over `bytes` bytes at `at`, expects the refusal, and puts back what was there. */
static void spoil(image *i, size_t at, uint64_t value, size_t bytes, const char *text)
{
    unsigned char was[8];
    memcpy(was, i->data + at, bytes);
    if (memcmp(was, &value, bytes) == 0) return;
    memcpy(i->data + at, &value, bytes);
    expect_refused_image(i, i->bytes, FORMAT, text);
    memcpy(i->data + at, was, bytes);
}

static uint64_t number_at(const image *i, size_t at)
{
    uint64_t v;
    memcpy(&v, i->data + at, sizeof v);
    return v;
}

static void spoilt_lanes(void **state)
{
    (void)state;
    for (size_t n = 0; n < COUNT(specs); n++) {
        moe_experts *x = pack(NULL, &specs[n]);
        image i = image_of(x);
        for (size_t e = 0; e < x->E_L; e++) {
            size_t at = HEAD + 8 * e, k = (size_t)number_at(&i, at);
            const uint64_t bad[] = {0,
                                    k + 1,
                                    k - 1,
                                    x->layout.mid_k + 32,
                                    k + 16,
                                    UINT64_MAX,
                                    (uint64_t)1 << 63,
                                    k | (uint64_t)1 << 32};
            for (size_t v = 0; v < COUNT(bad); v++) spoil(&i, at, bad[v], 8, "mid_k out of range");
        }
        moe_experts_destroy(x);
        free(i.data);
    }
    moe_experts *x = pack(NULL, &specs[SHORT]); /* 40 values in 64 partitions: 2 blocks or more */
    assert_int_equal(x->mid_k[0], 64);
    assert_int_equal(x->mid_k[1], x->layout.mid_k);
    image i = image_of(x);
    spoil(&i, HEAD, 32, 8, "mid_k out of range");
    moe_experts_destroy(x);
    free(i.data);
}

static void spoilt_panel_tables(void **state)
{
    (void)state;
    for (size_t n = CODED; n < CODED_END; n++) {
        moe_experts *x = pack(NULL, &specs[n]);
        image i = image_of(x);
        size_t panels = x->E_L * (x->layout.gate_up_panels + x->layout.down_panels);
        for (size_t p = 0; p < panels; p++) {
            size_t at = HEAD + 8 * (x->E_L + p), was = (size_t)number_at(&i, at);
            const uint64_t bad[] = {was + 1,  was + 32,   was + 4096,        was + 64,
                                    was - 64, UINT64_MAX, (uint64_t)1 << 63, i.bytes};
            for (size_t v = 0; v < COUNT(bad); v++) {
                if (p == 0 || bad[v] % 64 != 0)
                    spoil(&i, at, bad[v], 8, "panel_at out of order");
                else
                    spoil(&i, at, bad[v], 8, "");
            }
            size_t format = HEAD + 8 * (x->E_L + panels) + p;
            for (int v = 0; v < 256; v++)
                spoil(&i, format, (uint64_t)v, 1,
                      v == FORMAT_BF16 || v == FORMAT_BF12 ? "no sound panel" : "no format");
        }
        moe_experts_destroy(x);
        free(i.data);
    }
}

/* Every byte before the lines of every coded panel but its exponents and what escapes stand for. */
static void spoilt_coded_panels(void **state)
{
    (void)state;
    for (size_t n = CODED; n < CODED + 2; n++) {
        moe_experts *x = pack(NULL, &specs[n]);
        image i = image_of(x);
        size_t panels = x->E_L * (x->layout.gate_up_panels + x->layout.down_panels), coded = 0;
        size_t base = HEAD + 8 * x->E_L + 9 * panels;
        for (size_t p = 0; p < panels; p++) {
            size_t at = base + x->panel_at[p];
            kernel_bf12_head head;
            if (x->panel_format[p] != FORMAT_BF12) continue;
            coded++;
            memcpy(&head, i.data + at, sizeof head);
            const uint32_t moved[] = {0, 1, 4, 64, UINT32_MAX, 1u << 31};
            for (size_t v = 0; v < COUNT(moved); v++) {
                spoil(&i, at + 16, head.lines_at + moved[v], 4, "no sound panel");
                spoil(&i, at + 20, head.escapes_at + moved[v], 4, "no sound panel");
            }
            bool down = p % (panels / x->E_L) >= x->layout.gate_up_panels;
            size_t k = down ? x->layout.mid_k : x->layout.hidden_k, list = at + head.escapes_at;
            for (size_t c = 0; c < (k + 31) / 32; c++) {
                unsigned char *count = i.data + at + sizeof head + c;
                /* a count that leaves the list where it is would only rename its escapes */
                if (*count + 17 <= 255)
                    spoil(&i, at + sizeof head + c, *count + 17u, 1, "no sound panel");
                for (size_t e = 0; e < *count; e++, list += 4) {
                    uint16_t place = (uint16_t)(i.data[list] | i.data[list + 1] << 8);
                    spoil(&i, list, 1024, 2, "no sound panel");
                    spoil(&i, list, 0xFFFF, 2, "no sound panel");
                    if (e > 0)
                        spoil(&i, list, (uint64_t)(i.data[list - 4] | i.data[list - 3] << 8), 2,
                              "no sound panel");
                    if (c + 1 == (k + 31) / 32 && k % 32 != 0)
                        spoil(&i, list, place % 512u / 512 * 512 + 31 * 16, 2, "no sound panel");
                }
            }
        }
        assert_true(coded > 0);
        moe_experts_destroy(x);
        free(i.data);
    }
}

/* Sizes that would take all memory, or none: judged before anything is taken. */
static void sizes_that_do_not_fit(void **state)
{
    (void)state;
    enum { AT_E_L = 32, AT_H = 40, AT_I = 48 };
    const size_t fields[] = {AT_E_L, AT_H, AT_I};
    const uint64_t values[] = {0,
                               UINT64_MAX,
                               INT64_MAX,
                               (uint64_t)1 << 63,
                               (uint64_t)1 << 62,
                               (uint64_t)1 << 40,
                               (uint64_t)1 << 33,
                               INT64_MAX - 511};
    for (size_t n = 0; n < COUNT(specs); n++) {
        moe_experts *x = pack(NULL, &specs[n]);
        image i = image_of(x);
        for (size_t f = 0; f < COUNT(fields); f++)
            for (size_t v = 0; v < COUNT(values); v++) spoil(&i, fields[f], values[v], 8, "");
        moe_experts_destroy(x);
        free(i.data);
    }
}

/* What is not seen to be wrong computes something, on every level, and stays inside. */
static void random_damage(void **state)
{
    (void)state;
    size_t refused = 0, run = 0;
    for (size_t n = 0; n < COUNT(specs); n++) {
        moe_experts *x = pack(NULL, &specs[n]), *y;
        image i = image_of(x);
        size_t rounds = i.bytes > 500000 ? 20 : 120;
        for (size_t r = 0; r < rounds; r++) {
            uint64_t at = layer_random(n, 7, r);
            unsigned char was[4];
            /* half of them where numbers are, not weights */
            size_t area = r % 2 ? i.bytes - 4 : i.bytes < 1200 ? i.bytes - 4 : 1200;
            at = HEAD + at % (area - HEAD);
            memcpy(was, i.data + at, 4);
            uint64_t junk = layer_random(n, 8, r);
            memcpy(i.data + at, &junk, 1 + r % 4);
            if (image_read(NULL, i.data, i.bytes, &y) == MOE_OK) {
                size_t bytes;
                for (int mode = MOE_ACT_EXACT; mode <= MOE_ACT_INT8; mode++)
                    free(image_run(NULL, y, MOE_GELU, (moe_act_mode)mode, r, &bytes));
                moe_experts_destroy(y);
                run++;
            } else {
                refused++;
            }
            memcpy(i.data + at, was, 4);
        }
        moe_experts_destroy(x);
        free(i.data);
    }
    if (run < 100 || refused < 20) fail_msg("%zu run, %zu refused", run, refused);
}

/* ---- callbacks ------------------------------------------------------------------------------- */

typedef struct stop {
    int calls, fail_at;
    moe_status status;
    moe_experts *experts;
} stop;

static moe_status stop_writing(void *user, const void *data, size_t bytes)
{
    stop *s = user;
    assert_non_null(data);
    assert_true(bytes > 0);
    if (s->experts != NULL) assert_int_equal(moe_experts_destroy(s->experts), MOE_E_BUSY);
    return s->calls++ == s->fail_at ? s->status : MOE_OK;
}

typedef struct stop_source {
    stop stop;
    const unsigned char *at;
} stop_source;

static moe_status stop_reading(void *user, void *data, size_t bytes)
{
    stop_source *s = user;
    if (s->stop.calls++ == s->stop.fail_at) return s->stop.status;
    memcpy(data, s->at, bytes);
    s->at += bytes;
    return MOE_OK;
}

static void a_callback_may_end_it(void **state)
{
    (void)state;
    for (size_t n = 0; n < COUNT(specs); n++) {
        moe_experts *x = pack(NULL, &specs[n]), *y;
        stop all = {.fail_at = -1, .experts = x};
        assert_int_equal(moe_experts_write(x, stop_writing, &all), MOE_OK);
        for (int at = 0; at < all.calls && at < 40; at++) {
            stop s = {.fail_at = at, .status = MOE_E_WRITE};
            assert_int_equal(moe_experts_write(x, stop_writing, &s), MOE_E_WRITE);
            assert_int_equal(s.calls, at + 1);
            assert_non_null(strstr(moe_last_error(), "write: gave"));
        }
        image i = image_of(x);
        stop_source whole = {{.fail_at = -1}, i.data};
        assert_int_equal(moe_experts_read(NULL, stop_reading, &whole, i.bytes, &y), MOE_OK);
        moe_experts_destroy(y);
        assert_in_range(whole.stop.calls, 3, 5);
        for (int at = 0; at < whole.stop.calls; at++) {
            stop_source s = {{.fail_at = at, .status = MOE_E_BUSY}, i.data};
            assert_int_equal(moe_experts_read(NULL, stop_reading, &s, i.bytes, &y), MOE_E_BUSY);
            assert_null(y);
            assert_int_equal(s.stop.calls, at + 1);
            assert_non_null(strstr(moe_last_error(), "MOE_E_BUSY"));
        }
        assert_int_equal(moe_experts_destroy(x), MOE_OK);
        free(i.data);
    }
}

static void arguments_that_are_required(void **state)
{
    (void)state;
    stop s = {.fail_at = 0};
    stop_source r = {.stop = s};
    moe_experts *x = pack(NULL, &specs[0]), *y = x;
    static const _Alignas(KERNEL_ALIGN) unsigned char nothing[sizeof(moe_experts)];
    assert_int_equal(moe_experts_write(NULL, stop_writing, &s), MOE_E_NULL_ARG);
    assert_int_equal(moe_experts_write(x, NULL, &s), MOE_E_NULL_ARG);
    assert_int_equal(
        moe_experts_write((const moe_experts *)(const void *)nothing, stop_writing, &s), MOE_E_ABI);
    assert_int_equal(moe_experts_read(NULL, NULL, &r, 1000, &y), MOE_E_NULL_ARG);
    assert_null(y);
    assert_int_equal(moe_experts_read(NULL, stop_reading, &r, 1000, NULL), MOE_E_NULL_ARG);
    assert_int_equal(s.calls + r.stop.calls, 0);
    assert_int_equal(moe_experts_destroy(x), MOE_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_experts_come_back),
        cmocka_unit_test(an_image_depends_on_the_experts_alone),
        cmocka_unit_test(memory_that_is_not_given),
        cmocka_unit_test(every_bit_of_a_head),
        cmocka_unit_test(of_another_machine),
        cmocka_unit_test(every_truncation),
        cmocka_unit_test(spoilt_lanes),
        cmocka_unit_test(spoilt_panel_tables),
        cmocka_unit_test(spoilt_coded_panels),
        cmocka_unit_test(sizes_that_do_not_fit),
        cmocka_unit_test(random_damage),
        cmocka_unit_test(a_callback_may_end_it),
        cmocka_unit_test(arguments_that_are_required),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
