/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_tmpl.h - the vector kernels, written once over the vocabulary of an instruction set
 * (src/isa/vec_*.h).
 *
 * Included by src/isa/<isa>.c after its vocabulary.  A vec holds KERNEL_ROWS f32, one for each
 * output row of a panel, so that a sum over k is never split: every width of register gives the
 * same bits.  The loops:
 *
 *     for each chunk of 32 k
 *         for gate, up (or down)
 *             widen the chunk's weights to lines of pairs (2j, 2j+1), once for all tokens
 *             for each tile of tokens
 *                 16 steps: one line of weights, a broadcast operand for each token of the tile
 *                 MX: scale the chunk's dot into the sum;  plain: carry it on, to 512 k
 *
 * Vocabulary: vec, line (64 bytes), ivec (16 int32) and the v_, l_, i_ words used below;
 * VEC_WIDTH, the widest tile whose accumulators stay in registers; VEC_BF16 where the word for
 * OPERAND_BF16 exists. */
#include "kernel.h"
#include "numeric.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    CHUNK = KERNEL_BLOCK,
    CHUNK_PAIRS = CHUNK / 2,
    AHEAD = 4096 /* bytes that the panel is prefetched ahead: docs/performance.md */
};

/* The sums of a panel and, for plain weights, the dot of the block of 512 that is under way:
 * [matrix][token]. */
typedef struct panel_state {
    float sum[2][KERNEL_TOKENS][KERNEL_ROWS];
    float acc[2][KERNEL_TOKENS][KERNEL_ROWS];
} panel_state;

/* The weights of one matrix in a chunk: lines `stride` bytes apart, in the form of a format. */
typedef struct chunk {
    const uint8_t *lines;
    size_t stride, pairs;
} chunk;

/* ---- weights --------------------------------------------------------------------------------- */

/* Line j (terms 2j and 2j+1 of every row) of a chunk as pairs of bf16. */
INLINE line pair_line(const chunk *w, size_t j, kernel_format f)
{
    switch (f) {
    case FORMAT_BF16: return l_load(w->lines + j * w->stride);
    case FORMAT_MXFP4: return l_e2m1(l_load(w->lines + j / 4 * w->stride), (int)(j % 4));
    case FORMAT_E4M3_IEEE: return l_e4m3(l_load(w->lines + j / 2 * w->stride), (int)(j % 2), 1);
    default: return l_e4m3(l_load(w->lines + j / 2 * w->stride), (int)(j % 2), 0);
    }
}

/* The same as two vectors of f32, any format. */
INLINE void pair_f32(const chunk *w, size_t j, kernel_format f, vec *even, vec *odd)
{
    if (f == FORMAT_F32) {
        *even = v_load((const float *)(const void *)(w->lines + 2 * j * w->stride));
        *odd = v_load((const float *)(const void *)(w->lines + (2 * j + 1) * w->stride));
    } else if (f == FORMAT_F16) {
        v_from_f16(l_load(w->lines + j * w->stride), even, odd);
    } else {
        line pair = pair_line(w, j, f);
        *even = v_even(pair);
        *odd = v_odd(pair);
    }
}

/* ---- the dot of a chunk and a tile ----------------------------------------------------------- */

/* acc[t] = fma(x[2j], w[2j], fma(x[2j+1], w[2j+1], acc[t])) for pair j of the chunk; x: the
 * tile's words of the chunk. */
INLINE void dot_pair(const chunk *w, size_t j, const uint8_t *x, size_t width, kernel_format f,
                     kernel_operand o, vec *acc)
{
#ifdef VEC_BF16
    if (o == OPERAND_BF16) {
        line pair = pair_line(w, j, f);
        for (size_t t = 0; t < width; t++)
            acc[t] = v_dot_bf16(acc[t], pair, x + (j * width + t) * sizeof(uint32_t));
        return;
    }
#endif
    const float *xf = (const float *)(const void *)x + 2 * j * width;
    vec even, odd;
    pair_f32(w, j, f, &even, &odd);
    for (size_t t = 0; t < width; t++) {
        acc[t] = v_fma(v_set1(xf[width + t]), odd, acc[t]);
        acc[t] = v_fma(v_set1(xf[t]), even, acc[t]);
    }
    (void)o;
}

/* All pairs of the chunk, four at a time, which is the most that a line holds: places in a line
 * are then constants. */
INLINE void dot(const chunk *w, const uint8_t *x, size_t width, kernel_format f, kernel_operand o,
                vec *acc)
{
    size_t j = 0, pairs = w->pairs;
    if (pairs > CHUNK_PAIRS) __builtin_unreachable();
    for (; j + 4 <= pairs; j += 4) {
        dot_pair(w, j, x, width, f, o, acc);
        dot_pair(w, j + 1, x, width, f, o, acc);
        dot_pair(w, j + 2, x, width, f, o, acc);
        dot_pair(w, j + 3, x, width, f, o, acc);
    }
    for (; j < pairs; j++) dot_pair(w, j, x, width, f, o, acc);
}

/* How a chunk's dot goes on: into the sum by the block's scales (MX), or from and to the block
 * of 512 (plain). */
typedef struct chunk_end {
    float (*sum)[KERNEL_ROWS]; /* [token of the tile] */
    float (*acc)[KERNEL_ROWS];
    const uint8_t *scale; /* MX: a byte for each row; plain: NULL */
    int first, last;      /* plain: the chunk begins, ends a block of 512 */
} chunk_end;

INLINE void tile(const chunk *w, const uint8_t *x, size_t width, kernel_format f, kernel_operand o,
                 const chunk_end *end)
{
    vec acc[KERNEL_WIDTH];
    for (size_t t = 0; t < width; t++)
        acc[t] = end->scale != NULL || end->first ? v_zero() : v_load(end->acc[t]);
    dot(w, x, width, f, o, acc);
    if (end->scale != NULL) {
        vec power = v_e8m0(end->scale);
        if (l_has_zero(end->scale))
            for (size_t t = 0; t < width; t++) acc[t] = v_mul(acc[t], v_e8m0_low(end->scale));
        for (size_t t = 0; t < width; t++)
            v_store(end->sum[t], v_fma(acc[t], power, v_load(end->sum[t])));
    } else if (end->last) {
        for (size_t t = 0; t < width; t++) v_store(end->sum[t], v_add(v_load(end->sum[t]), acc[t]));
    } else {
        for (size_t t = 0; t < width; t++) v_store(end->acc[t], acc[t]);
    }
}

/* tile() for a width known at run time: an instance for each. */
typedef void tile_fn(const chunk *w, const uint8_t *x, size_t width, const chunk_end *end);

#if VEC_WIDTH > 4
#define WIDE_CASES(call)                                                                           \
    case 5: call(5); break;                                                                        \
    case 6: call(6); break;                                                                        \
    case 7: call(7); break;                                                                        \
    case 8: call(8); break;                                                                        \
    case 9: call(9); break;                                                                        \
    case 10: call(10); break;                                                                      \
    case 11: call(11); break;                                                                      \
    case 12:                                                                                       \
        call(12);                                                                                  \
        break;
#else
#define WIDE_CASES(call)
#endif

#define SWITCH_WIDTH(width, call)                                                                  \
    switch (width) {                                                                               \
    case 1: call(1); break;                                                                        \
    case 2: call(2); break;                                                                        \
    case 3: call(3); break;                                                                        \
    case 4:                                                                                        \
        call(4);                                                                                   \
        break;                                                                                     \
        WIDE_CASES(call)                                                                           \
    default: __builtin_unreachable();                                                              \
    }

#define TILE(name)                                                                                 \
    static void tile_##name(const chunk *w, const uint8_t *x, size_t width, const chunk_end *end)  \
    {                                                                                              \
        SWITCH_WIDTH(width, TILE_##name)                                                           \
    }

#define TILE_f32(n)  tile(w, x, n, FORMAT_F32, OPERAND_F32, end)
#define TILE_f16(n)  tile(w, x, n, FORMAT_F16, OPERAND_F32, end)
#define TILE_wide(n) tile(w, x, n, FORMAT_BF16, OPERAND_F32, end)
TILE(f32)
TILE(f16)
TILE(wide)
#ifdef VEC_BF16
#define TILE_wide_bf16(n) tile(w, x, n, FORMAT_BF16, OPERAND_BF16, end)
TILE(wide_bf16)
#endif

INLINE tile_fn *tile_for(kernel_format f, kernel_operand o)
{
#ifdef VEC_BF16
    if (o == OPERAND_BF16) return tile_wide_bf16;
#endif
    (void)o;
    return f == FORMAT_F32 ? tile_f32 : f == FORMAT_F16 ? tile_f16 : tile_wide;
}

/* ---- a panel --------------------------------------------------------------------------------- */

/* Every tile against one chunk of one matrix.  One or two tokens take the weights from the
 * panel; more share them, widened to bf16 once. */
INLINE void chunk_tiles(const chunk *w, const kernel_tiles *tiles, size_t word, kernel_format f,
                        kernel_operand o, chunk_end *end)
{
    const uint8_t *x = tiles->x;
    if (tiles->tokens == 1) {
        tile(w, x + word * sizeof(uint32_t), 1, f, o, end);
        return;
    }
    if (tiles->tokens == 2) {
        tile(w, x + word * 2 * sizeof(uint32_t), 2, f, o, end);
        return;
    }
    uint8_t wide[CHUNK_PAIRS * KERNEL_LINE] __attribute__((aligned(KERNEL_ALIGN)));
    chunk ready = *w;
    if (f != FORMAT_F16 && f != FORMAT_F32 && f != FORMAT_BF16) {
        for (size_t j = 0; j < w->pairs; j++) l_store(wide + j * KERNEL_LINE, pair_line(w, j, f));
        ready = (chunk){wide, KERNEL_LINE, w->pairs};
    }
    for (size_t t = 0; t < tiles->tokens; t += tiles->width, x += tiles->tile_bytes) {
        size_t width = tiles->tokens - t < tiles->width ? tiles->tokens - t : tiles->width;
        tile_for(f, o)(&ready, x + word * width * sizeof(uint32_t), width, end);
        end->sum += width;
        end->acc += width;
    }
}

INLINE void panel_sums(const uint8_t *panel, size_t matrices, size_t k, const kernel_tiles *tiles,
                       kernel_format f, kernel_operand o, panel_state *s)
{
    const int mx = kernel_is_mx(f);
    const size_t line_k = kernel_line_k(f), words = o == OPERAND_BF16 ? CHUNK / 2 : CHUNK;
    const size_t per_block = KERNEL_PLAIN / CHUNK;
    for (size_t m = 0; m < matrices; m++) memset(s->sum[m], 0, tiles->tokens * sizeof s->sum[m][0]);
    for (size_t c = 0; c * CHUNK < k; c++) {
        size_t left = k - c * CHUNK, n = left < CHUNK ? left : CHUNK;
        const uint8_t *lines = panel + (mx ? kernel_block_at(f, matrices, c)
                                           : c * CHUNK / line_k * matrices * KERNEL_LINE);
        for (size_t b = 0; b < CHUNK / line_k * matrices; b++)
            l_prefetch(lines + AHEAD + b * KERNEL_LINE);
        for (size_t m = 0; m < matrices; m++) {
            chunk w = {lines + m * KERNEL_LINE, matrices * KERNEL_LINE, mx ? CHUNK_PAIRS : n / 2};
            chunk_end end = {s->sum[m], s->acc[m], NULL, c % per_block == 0,
                             left <= CHUNK || c % per_block == per_block - 1};
            if (mx) end.scale = panel + kernel_scale_at(f, matrices, c) + m * KERNEL_ROWS;
            chunk_tiles(&w, tiles, c * words, f, o, &end);
        }
    }
}

/* ---- int8 operands, MXFP4 weights ------------------------------------------------------------ */

/* What a block of a tile has beside its codes, [token]: half its scale and -12 times its codes'
 * sum. */
typedef struct int8_block {
    const uint8_t *codes;
    const float *half_scale;
    const int32_t *offset;
} int8_block;

INLINE int8_block int8_block_of(const uint8_t *tile, size_t k, size_t c, size_t width)
{
    const uint32_t *word = (const uint32_t *)(const void *)tile;
    const uint32_t *scale = word + (k / 4 + c) * width, *offset = scale + k / CHUNK * width;
    return (int8_block){(const uint8_t *)(word + c * (CHUNK / 4) * width),
                        (const float *)(const void *)scale, (const int32_t *)(const void *)offset};
}

/* The exact dots of a block as int32: weights are taken as 12 + twice the e2m1 value, which the
 * offset takes back.  A chunk's lines are those of the panel, or, ready, bytes in lines of 4 k. */
INLINE void int8_tile(const chunk *w, int ready, const int8_block *b, size_t width,
                      const chunk_end *end)
{
    ivec acc[KERNEL_WIDTH];
    for (size_t t = 0; t < width; t++) acc[t] = i_set1(b->offset[t]);
    for (size_t j = 0; j < CHUNK / 8; j++) {
        line low, high;
        if (ready) {
            low = l_load(w->lines + 2 * j * KERNEL_LINE);
            high = l_load(w->lines + (2 * j + 1) * KERNEL_LINE);
        } else {
            l_e2m1_bytes(l_load(w->lines + j * w->stride), &low, &high);
        }
        const uint8_t *x = b->codes + 2 * j * width * sizeof(uint32_t);
        for (size_t t = 0; t < width; t++) {
            acc[t] = i_dot(acc[t], low, x + t * sizeof(uint32_t));
            acc[t] = i_dot(acc[t], high, x + (width + t) * sizeof(uint32_t));
        }
    }
    vec power = v_e8m0(end->scale), low = v_e8m0_low(end->scale);
    int zero = l_has_zero(end->scale);
    for (size_t t = 0; t < width; t++) {
        vec half = v_set1(b->half_scale[t]);
        vec scale = v_mul(zero ? v_mul(half, low) : half, power);
        v_store(end->sum[t], v_fma(v_from_int(acc[t]), scale, v_load(end->sum[t])));
    }
}

static void int8_tile_ready(const chunk *w, const int8_block *b, size_t width,
                            const chunk_end *end){
#define TILE_int8(n) int8_tile(w, 1, b, n, end)
    SWITCH_WIDTH(width, TILE_int8)}

INLINE void int8_chunk_tiles(const chunk *w, const kernel_tiles *tiles, size_t k, size_t c,
                             chunk_end *end)
{
    const uint8_t *x = tiles->x;
    if (tiles->tokens == 1) {
        int8_block b = int8_block_of(x, k, c, 1);
        int8_tile(w, 0, &b, 1, end);
        return;
    }
    uint8_t wide[CHUNK / 4 * KERNEL_LINE] __attribute__((aligned(KERNEL_ALIGN)));
    for (size_t j = 0; j < CHUNK / 8; j++) {
        line low, high;
        l_e2m1_bytes(l_load(w->lines + j * w->stride), &low, &high);
        l_store(wide + 2 * j * KERNEL_LINE, low);
        l_store(wide + (2 * j + 1) * KERNEL_LINE, high);
    }
    const chunk ready = {wide, KERNEL_LINE, CHUNK_PAIRS};
    for (size_t t = 0; t < tiles->tokens; t += tiles->width, x += tiles->tile_bytes) {
        size_t width = tiles->tokens - t < tiles->width ? tiles->tokens - t : tiles->width;
        int8_block b = int8_block_of(x, k, c, width);
        int8_tile_ready(&ready, &b, width, end);
        end->sum += width;
    }
}

INLINE void int8_sums(const uint8_t *panel, size_t matrices, size_t k, const kernel_tiles *tiles,
                      panel_state *s)
{
    for (size_t m = 0; m < matrices; m++) memset(s->sum[m], 0, tiles->tokens * sizeof s->sum[m][0]);
    for (size_t c = 0; c < k / CHUNK; c++) {
        const uint8_t *lines = panel + kernel_block_at(FORMAT_MXFP4, matrices, c);
        const uint8_t *scale = panel + kernel_scale_at(FORMAT_MXFP4, matrices, c);
        for (size_t b = 0; b < CHUNK / 8 * matrices; b++)
            l_prefetch(lines + AHEAD + b * KERNEL_LINE);
        for (size_t m = 0; m < matrices; m++) {
            chunk w = {lines + m * KERNEL_LINE, matrices * KERNEL_LINE, CHUNK_PAIRS};
            chunk_end end = {s->sum[m], NULL, scale + m * KERNEL_ROWS, 0, 0};
            int8_chunk_tiles(&w, tiles, k, c, &end);
        }
    }
}

/* ---- elementary functions: the sequences of numeric.h ---------------------------------------- */

INLINE vec v_c(float x)
{
    return v_set1(x);
}

INLINE vec exp_vec(vec hi, vec lo)
{
    const vec magic = v_c(0x1.8p+23f);
    vec z = v_if_gt(hi, v_c(110.0f), v_c(110.0f), hi);
    z = v_if_gt(v_c(-110.0f), z, v_c(-110.0f), z);
    vec e = v_if_eq(z, hi, lo, v_zero());
    vec t = v_fma(z, v_c(0x1.715476p+0f), magic), n = v_sub(t, magic);
    vec r = v_add(v_fma(n, v_c(-0x1.7f7d1cp-20f), v_fma(n, v_c(-0x1.62e4p-1f), z)), e);
    vec p = v_fma(r, v_c(0x1.6a234cp-10f), v_c(0x1.123a6cp-7f));
    p = v_fma(r, p, v_c(0x1.5558f4p-5f));
    p = v_fma(r, p, v_c(0x1.55549p-3f));
    p = v_fma(r, p, v_c(0x1.fffffcp-2f));
    p = v_add(v_fma(v_mul(r, r), p, r), v_c(1.0f));
    return v_scale(p, t, magic);
}

INLINE vec swish_vec(vec g, vec alpha)
{
    vec z = v_mul(alpha, g);
    return v_div(g, v_add(v_c(1.0f), exp_vec(v_neg(z), v_neg(v_fma(alpha, g, v_neg(z))))));
}

INLINE vec gelu_vec(vec g)
{
    vec a = v_abs(g);
    a = v_if_gt(a, v_c(20.0f), v_c(20.0f), a);
    vec q = v_div(v_sub(a, v_c(4.0f)), v_add(a, v_c(4.0f)));
    static const float coefficient[] = {0x1.b4dd1p-16f,  -0x1.9bef06p-15f, -0x1.87cadap-13f,
                                        0x1.4fa0a6p-11f, 0x1.0a22aep-11f,  -0x1.1646dp-7f,
                                        0x1.f9b052p-6f,  -0x1.25b6a6p-4f,  0x1.fd751ap-4f,
                                        -0x1.5cf97cp-3f, 0x1.82b4bcp-4f};
    vec p = v_c(0x1.09556cp-17f);
    for (size_t i = 0; i < sizeof coefficient / sizeof coefficient[0]; i++)
        p = v_fma(q, p, v_c(coefficient[i]));
    vec s = v_mul(a, a), low = v_fma(a, a, v_neg(s)), half = v_c(-0.5f);
    vec tail = v_mul(exp_vec(v_mul(half, s), v_mul(half, low)), p);
    return v_if_gt(v_zero(), g, v_mul(g, tail), v_fma(v_neg(a), tail, g));
}

INLINE vec gelu_tanh_vec(vec g)
{
    vec w = v_fma(v_c(0x1.2444f2p-4f), v_mul(g, g), v_c(0x1.988454p+0f));
    return v_div(g, v_add(v_c(1.0f), exp_vec(v_neg(v_mul(g, w)), v_zero())));
}

INLINE vec activate_vec(const kernel_point *p, vec g)
{
    switch (p->activation) {
    case MOE_GELU: return gelu_vec(g);
    case MOE_GELU_TANH: return gelu_tanh_vec(g);
    case MOE_RELU: return v_add(v_if_gt(v_zero(), g, v_zero(), g), v_zero());
    default: return swish_vec(g, v_c(p->alpha));
    }
}

/* ---- from the sums to the rows --------------------------------------------------------------- */

INLINE vec affine_vec(vec v, const kernel_rows *rows)
{
    if (rows->scale != NULL) v = v_mul(v, v_load(rows->scale));
    if (rows->bias != NULL) v = v_add(v, v_load(rows->bias));
    return v;
}

INLINE vec clamp_vec(vec v, float upper, float lower)
{
    v = v_if_gt(v, v_c(upper), v_c(upper), v);
    return v_if_gt(v_c(lower), v, v_c(lower), v);
}

static void finish_gate_up(const kernel_gate_up *a, const panel_state *s)
{
    const kernel_point *p = a->point;
    for (size_t t = 0; t < a->tiles.tokens; t++) {
        vec g = clamp_vec(affine_vec(v_load(s->sum[0][t]), &a->gate), p->gate_upper, p->gate_lower);
        vec u = clamp_vec(affine_vec(v_load(s->sum[1][t]), &a->up), p->up_upper, p->up_lower);
        v_store(a->mid + t * a->mid_stride, v_mul(activate_vec(p, g), v_add(u, v_c(p->up_offset))));
    }
}

static void finish_down(const kernel_down *a, const panel_state *s)
{
    for (size_t t = 0; t < a->tiles.tokens; t++)
        v_store(a->y + t * a->y_stride, affine_vec(v_load(s->sum[0][t]), &a->down));
}

/* ---- the table ------------------------------------------------------------------------------- */

#define KERNEL_PAIR(name, format, operand)                                                         \
    static void gate_up_##name(const kernel_gate_up *a)                                            \
    {                                                                                              \
        panel_state s;                                                                             \
        panel_sums(a->panel, 2, a->k, &a->tiles, format, operand, &s);                             \
        finish_gate_up(a, &s);                                                                     \
    }                                                                                              \
    static void down_##name(const kernel_down *a)                                                  \
    {                                                                                              \
        panel_state s;                                                                             \
        panel_sums(a->panel, 1, a->k, &a->tiles, format, operand, &s);                             \
        finish_down(a, &s);                                                                        \
    }

KERNEL_PAIR(bf16, FORMAT_BF16, OPERAND_F32)
KERNEL_PAIR(f16, FORMAT_F16, OPERAND_F32)
KERNEL_PAIR(f32, FORMAT_F32, OPERAND_F32)
KERNEL_PAIR(e4m3_ieee, FORMAT_E4M3_IEEE, OPERAND_F32)
KERNEL_PAIR(e4m3fn, FORMAT_E4M3FN, OPERAND_F32)
KERNEL_PAIR(mxfp8, FORMAT_MXFP8, OPERAND_F32)
KERNEL_PAIR(mxfp4, FORMAT_MXFP4, OPERAND_F32)

#ifdef VEC_BF16
KERNEL_PAIR(bf16_bf16, FORMAT_BF16, OPERAND_BF16)
KERNEL_PAIR(e4m3_ieee_bf16, FORMAT_E4M3_IEEE, OPERAND_BF16)
KERNEL_PAIR(e4m3fn_bf16, FORMAT_E4M3FN, OPERAND_BF16)
KERNEL_PAIR(mxfp8_bf16, FORMAT_MXFP8, OPERAND_BF16)
KERNEL_PAIR(mxfp4_bf16, FORMAT_MXFP4, OPERAND_BF16)
#define BF16_SLOT(kind, name) [OPERAND_BF16] = kind##_##name##_bf16
#else
#define BF16_SLOT(kind, name) [OPERAND_BF16] = NULL
#endif

static void gate_up_mxfp4_int8(const kernel_gate_up *a)
{
    panel_state s;
    int8_sums(a->panel, 2, a->k, &a->tiles, &s);
    finish_gate_up(a, &s);
}

static void down_mxfp4_int8(const kernel_down *a)
{
    panel_state s;
    int8_sums(a->panel, 1, a->k, &a->tiles, &s);
    finish_down(a, &s);
}

#define SLOTS(kind)                                                                                \
    {                                                                                              \
        [FORMAT_BF16] = {[OPERAND_F32] = kind##_bf16, BF16_SLOT(kind, bf16)},                      \
        [FORMAT_F16] = {[OPERAND_F32] = kind##_f16}, [FORMAT_F32] = {[OPERAND_F32] = kind##_f32},  \
        [FORMAT_E4M3_IEEE] = {[OPERAND_F32] = kind##_e4m3_ieee, BF16_SLOT(kind, e4m3_ieee)},       \
        [FORMAT_E4M3FN] = {[OPERAND_F32] = kind##_e4m3fn, BF16_SLOT(kind, e4m3fn)},                \
        [FORMAT_MXFP8] = {[OPERAND_F32] = kind##_mxfp8, BF16_SLOT(kind, mxfp8)},                   \
        [FORMAT_MXFP4] = {[OPERAND_F32] = kind##_mxfp4,                                            \
                          BF16_SLOT(kind, mxfp4),                                                  \
                          [OPERAND_INT8] = kind##_mxfp4_int8},                                     \
    }
