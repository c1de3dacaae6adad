/* SPDX-License-Identifier: Apache-2.0 */
/* experts_image.c - packed experts as bytes, and back.
 *
 * An image is a head, the tables mid_k and (lossless) panel_at and panel_format, and the panels as
 * they are in memory; what packing leaves unwritten, because no call reads it, is zeros.
 *
 * It may come from anywhere.  A head has some independent numbers; all others in it follow from
 * these, and the whole head must be the one that this library writes for them.  Then every number
 * that a call makes an address of is judged: the tables, and the heads of coded panels.  Weights,
 * scales and biases are values, whatever they are. */
#define _POSIX_C_SOURCE 200809L
#include "checked.h"
#include "context.h"
#include "error.h"
#include "experts.h"
#include "pack_bf12.h"
#include "sizes.h"

#include <pthread.h>

#define IMAGE_NAME "moeimage"

enum {
    IMAGE_ORDER = 0x01020304, /* as this machine writes it */
    LANES_MOST = 128,
    TILE = 512 /* lanes of an intermediate tile, hidden values of a strided one */
};

/* Which f32 rows there are, the order of k, experts without a gate. */
enum {
    GATE_UP_SCALE = 1,
    DOWN_SCALE = 2,
    GATE_UP_BIAS = 4,
    DOWN_BIAS = 8,
    STRIDED = 16,
    UNGATED = 32,
    FLAGS = 63
};

typedef struct image_head {
    char name[8];
    uint32_t order, version, canon, word; /* word: sizeof(size_t) */
    uint64_t bytes;                       /* of the image */
    uint64_t E_L, H, I, lanes_p;
    uint32_t gate_up, down, gate_up_dtype, down_dtype, packing, flags;
    /* what follows from the above, but for panel_bytes with lossless packing */
    uint64_t tiles_h, tiles_i, hidden_k, mid_k, gate_up_panels, down_panels;
    uint64_t gate_up_bytes, down_bytes, down_at, expert_bytes, panel_bytes;
} image_head;

_Static_assert(sizeof(image_head) == (1 + 2 + 1 + 4 + 3 + 11) * 8, "a head has no padding");

typedef moe_status write_fn(void *user, const void *data, size_t bytes);
typedef moe_status read_fn(void *user, void *data, size_t bytes);

/* ---- sizes ----------------------------------------------------------------------------------- */

static size_t panels_of(const moe_experts *x)
{
    return x->layout.gate_up_panels + x->layout.down_panels;
}

static bool is_coded(const moe_experts *x)
{
    return x->packing == MOE_PACK_LOSSLESS;
}

/* Fits if the experts' bytes do: a panel has 64 or more. */
static size_t table_bytes(const moe_experts *x)
{
    size_t panels = is_coded(x) ? x->E_L * panels_of(x) : 0;
    return (x->E_L + panels) * sizeof(size_t) + panels;
}

/* Bytes of a handle's panels. */
static size_t panel_bytes(const moe_experts *x)
{
    return x->bytes - (size_t)(x->base - (const uint8_t *)x);
}

/* Of x's E_L, axis, layout and kinds. */
static image_head head_of(const moe_experts *x, size_t bytes_of_panels)
{
    const pack_layout *l = &x->layout;
    image_head h;
    memset(&h, 0, sizeof h);
    memcpy(h.name, IMAGE_NAME, sizeof h.name);
    h.order = IMAGE_ORDER;
    h.version = EXPERTS_VERSION;
    h.canon = EXPERTS_CANON;
    h.word = sizeof(size_t);
    h.panel_bytes = bytes_of_panels;
    h.bytes = sizeof h + table_bytes(x) + bytes_of_panels;
    h.E_L = x->E_L;
    h.H = x->axis.H;
    h.I = x->axis.I;
    h.lanes_p = x->axis.lanes_p;
    h.gate_up = (uint32_t)l->gate_up;
    h.down = (uint32_t)l->down;
    h.gate_up_dtype = (uint32_t)x->gate_up;
    h.down_dtype = (uint32_t)x->down;
    h.packing = (uint32_t)x->packing;
    h.flags = (l->gate_up_scale ? GATE_UP_SCALE : 0u) | (l->down_scale ? DOWN_SCALE : 0u) |
              (l->gate_up_bias ? GATE_UP_BIAS : 0u) | (l->down_bias ? DOWN_BIAS : 0u) |
              (x->axis.strided ? STRIDED : 0u) | (l->ungated ? UNGATED : 0u);
    h.tiles_h = x->axis.tiles_h;
    h.tiles_i = x->axis.tiles_i;
    h.hidden_k = l->hidden_k;
    h.mid_k = l->mid_k;
    h.gate_up_panels = l->gate_up_panels;
    h.down_panels = l->down_panels;
    h.gate_up_bytes = l->gate_up_bytes;
    h.down_bytes = l->down_bytes;
    h.down_at = l->down_at;
    h.expert_bytes = l->bytes;
    return h;
}

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct sink {
    write_fn *write;
    void *user;
    moe_status status;
} sink;

static void put(sink *s, const void *data, size_t bytes)
{
    if (s->status != MOE_OK || bytes == 0) return;
    s->status = s->write(s->user, data, bytes);
    if (s->status != MOE_OK)
        error_set(s->status, "write: gave %s for %zu bytes", moe_status_name(s->status), bytes);
}

static void put_zeros(sink *s, size_t bytes)
{
    static const uint8_t zeros[4096];
    for (size_t n; bytes > 0; bytes -= n) {
        n = size_smaller(bytes, sizeof zeros);
        put(s, zeros, n);
    }
}

/* An expert with fewer lanes: without the panels and ends of panels that are not written. */
static void put_short_expert(sink *s, const pack_layout *l, const uint8_t *at, size_t mid_k)
{
    size_t used = pack_gate_up_panels(l, mid_k) * l->gate_up_bytes;
    put(s, at, used);
    put_zeros(s, l->down_at - used);
    at += l->down_at;
    for (size_t n = 0; n < l->down_panels; n++) {
        size_t halves = pack_halves(l, true, n), rows = pack_rows_bytes(l, true, halves);
        size_t lines = kernel_panel_bytes(l->down, halves, l->mid_k);
        size_t written = kernel_panel_bytes(l->down, halves, mid_k);
        put(s, at, written);
        put_zeros(s, lines - written);
        put(s, at + lines, rows);
        at += lines + rows;
    }
}

static moe_status write_image(const moe_experts *x, write_fn *write, void *user)
{
    sink s = {write, user, MOE_OK};
    image_head head = head_of(x, panel_bytes(x));
    size_t all = x->E_L * panels_of(x);
    put(&s, &head, sizeof head);
    put(&s, x->mid_k, x->E_L * sizeof *x->mid_k);
    if (is_coded(x)) {
        put(&s, x->panel_at, all * sizeof *x->panel_at);
        put(&s, x->panel_format, all);
        put(&s, x->base, panel_bytes(x));
        return s.status;
    }
    for (size_t e = 0, n; e < x->E_L; e += n) { /* whole experts together */
        const uint8_t *at = x->base + e * x->layout.bytes;
        for (n = 0; e + n < x->E_L && x->mid_k[e + n] == x->layout.mid_k;) n++;
        put(&s, at, n * x->layout.bytes);
        if (n > 0) continue;
        put_short_expert(&s, &x->layout, at, x->mid_k[e]);
        n = 1;
    }
    return s.status;
}

moe_status moe_experts_write(const moe_experts *experts, write_fn *write, void *user)
{
    if (experts == NULL) return error_set(MOE_E_NULL_ARG, "experts = NULL: required");
    if (write == NULL) return error_set(MOE_E_NULL_ARG, "write = NULL: required");
    int cancel; /* a thread that is cancelled in write would use the experts for ever */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    moe_status s = experts_enter(experts);
    if (s == MOE_OK) {
        s = write_image(experts, write, user);
        experts_leave(experts);
    }
    pthread_setcancelstate(cancel, NULL);
    return s;
}

/* ---- the head of an image -------------------------------------------------------------------- */

static moe_status damaged(size_t byte, const char *rule)
{
    return error_set(MOE_E_FORMAT, "image of packed experts: %s at byte %zu", rule, byte);
}

#define REFUSE(field, rule) damaged(offsetof(image_head, field), rule)

/* Whether it is an image, and of what this library reads. */
static moe_status check_kind(const image_head *h)
{
    if (memcmp(h->name, IMAGE_NAME, sizeof h->name) != 0) return REFUSE(name, "no image");
    if (h->order == __builtin_bswap32(IMAGE_ORDER))
        return error_set(MOE_E_STALE, "image of packed experts: of a machine with another byte "
                                      "order");
    if (h->order != IMAGE_ORDER) return REFUSE(order, "no byte order");
    if (h->version != EXPERTS_VERSION)
        return error_set(MOE_E_STALE,
                         "image of packed experts: layout %u: this library (version %s) reads %u",
                         (unsigned)h->version, moe_version(), EXPERTS_VERSION);
    if (h->canon != EXPERTS_CANON)
        return error_set(MOE_E_STALE, "image of packed experts: canon %u: this library reads %u",
                         (unsigned)h->canon, EXPERTS_CANON);
    if (h->word != sizeof(size_t))
        return error_set(MOE_E_STALE,
                         "image of packed experts: %u bytes a word: this machine has %zu",
                         (unsigned)h->word, sizeof(size_t));
    return MOE_OK;
}

/* The formats that weights of an element type are packed to. */
static uint32_t formats_of(uint32_t dtype, bool strided)
{
    const uint32_t int4 = (1u << (FORMAT_INT4_F16_128 + 1)) - (1u << FORMAT_INT4_BF16_32);
    if (strided)
        return dtype == MOE_MXFP4_X4   ? 1u << FORMAT_MXFP4
               : dtype == MOE_MXFP8_X4 ? 1u << FORMAT_MXFP8
                                       : 0;
    switch ((moe_dtype)dtype) {
    case MOE_BF16: return 1u << FORMAT_BF16;
    case MOE_F16: return 1u << FORMAT_F16;
    case MOE_F32: return 1u << FORMAT_F32;
    case MOE_E4M3_IEEE: return 1u << FORMAT_E4M3_IEEE;
    case MOE_E4M3FN: return 1u << FORMAT_E4M3FN | 1u << FORMAT_MXFP8 | 1u << FORMAT_FP8_BLOCK;
    case MOE_E2M1_X2: return 1u << FORMAT_MXFP4 | 1u << FORMAT_NVFP4;
    case MOE_INT4_X2: return int4;
    case MOE_Q8_0: return 1u << FORMAT_Q8_0;
    case MOE_Q4_0: return 1u << FORMAT_INT4_F16_32;
    case MOE_Q4_K: return 1u << FORMAT_Q4_K;
    case MOE_Q5_K: return 1u << FORMAT_Q5_K;
    case MOE_Q6_K: return 1u << FORMAT_Q6_K;
    case MOE_GGML_MXFP4: return 1u << FORMAT_MXFP4;
    case MOE_GGML_NVFP4: return 1u << FORMAT_NVFP4;
    default: return 0;
    }
}

static bool is_format_of(uint32_t format, uint32_t dtype, bool strided)
{
    return format < FORMAT_COUNT && (formats_of(dtype, strided) >> format & 1) != 0;
}

/* What a row's k is a multiple of. */
static uint64_t k_step(uint32_t format, uint32_t dtype)
{
    const kernel_info *f = &kernel_formats[format];
    uint64_t run = format == FORMAT_FP8_BLOCK || f->scale_k == 0 ? 1 : f->scale_k;
    uint64_t element = moe_dtype_k((moe_dtype)dtype);
    return run > element ? run : element;
}

static bool is_size(uint64_t n, uint64_t step)
{
    return n >= 1 && n <= INT64_MAX && n % step == 0;
}

/* The independent numbers, each and together. */
static moe_status check_numbers(const image_head *h)
{
    bool strided = (h->flags & STRIDED) != 0;
    if ((h->flags & ~(uint32_t)FLAGS) != 0) return REFUSE(flags, "unknown flags");
    if (strided && (h->flags & (GATE_UP_SCALE | DOWN_SCALE | UNGATED)) != 0)
        return REFUSE(flags, "flags of rows in the operator's own order");
    if (!is_format_of(h->gate_up, h->gate_up_dtype, strided))
        return REFUSE(gate_up, "gate_up has no format of its element type");
    if (!is_format_of(h->down, h->down_dtype, strided))
        return REFUSE(down, "down has no format of its element type");
    if (h->packing > MOE_PACK_LOSSLESS ||
        (h->packing == MOE_PACK_LOSSLESS && (h->gate_up != FORMAT_BF16 || h->down != FORMAT_BF16)))
        return REFUSE(packing, "no packing of these formats");
    if (!is_size(h->E_L, 1)) return REFUSE(E_L, "E_L out of range");
    if (!is_size(h->H, strided ? TILE : k_step(h->gate_up, h->gate_up_dtype)))
        return REFUSE(H, "H out of range");
    if (!is_size(h->I, strided ? 1 : k_step(h->down, h->down_dtype)))
        return REFUSE(I, "I out of range");
    uint64_t least = h->I > TILE ? LANES_MOST : (h->I + 7) / 8 * 2;
    if (strided ? h->lanes_p < least || h->lanes_p > LANES_MOST || h->lanes_p % 8 != 0
                : h->lanes_p != 0)
        return REFUSE(lanes_p, "lanes_p out of range");
    return MOE_OK;
}

/* x->axis and layout, from the numbers; false if a size does not fit. */
static bool derive(const image_head *h, moe_experts *x)
{
    pack_layout *l = &x->layout;
    size_t all;
    memset(x, 0, sizeof *x);
    x->E_L = (size_t)h->E_L;
    x->axis = (axis){.H = (size_t)h->H, .I = (size_t)h->I, .strided = (h->flags & STRIDED) != 0};
    if (x->axis.strided) {
        x->axis.tiles_h = x->axis.H / TILE;
        x->axis.tiles_i = size_pieces(x->axis.I, TILE);
        x->axis.lanes_p = (size_t)h->lanes_p;
    }
    l->gate_up = (kernel_format)h->gate_up;
    l->down = (kernel_format)h->down;
    l->ungated = (h->flags & UNGATED) != 0;
    l->gate_up_scale = (h->flags & GATE_UP_SCALE) != 0;
    l->down_scale = (h->flags & DOWN_SCALE) != 0;
    l->gate_up_bias = (h->flags & GATE_UP_BIAS) != 0;
    l->down_bias = (h->flags & DOWN_BIAS) != 0;
    x->gate_up = (moe_dtype)h->gate_up_dtype;
    x->down = (moe_dtype)h->down_dtype;
    x->packing = (moe_packing)h->packing;
    return pack_layout_sizes(&x->axis, l) && checked_mul(l->bytes, x->E_L, &all) &&
           all <= PTRDIFF_MAX / 2;
}

/* ---- tables and panels ----------------------------------------------------------------------- */

static moe_status check_tables(const moe_experts *x)
{
    const pack_layout *l = &x->layout;
    size_t least = pack_least_mid_k(&x->axis, l), all = x->E_L * panels_of(x), end = 0;
    for (size_t e = 0; e < x->E_L; e++) {
        size_t k = x->mid_k[e];
        if (k < least || k > l->mid_k || (l->mid_k - k) % KERNEL_BLOCK != 0)
            return damaged(sizeof(image_head) + e * sizeof k, "mid_k out of range");
    }
    for (size_t n = 0; is_coded(x) && n < all; n++) {
        size_t at = x->panel_at[n];
        if (at % KERNEL_ALIGN != 0 || (n == 0 ? at != 0 : at <= end) || at >= panel_bytes(x))
            return damaged(sizeof(image_head) + (x->E_L + n) * sizeof at, "panel_at out of order");
        if (x->panel_format[n] != FORMAT_BF16 && x->panel_format[n] != FORMAT_BF12)
            return damaged(sizeof(image_head) + (x->E_L + all) * sizeof at + n,
                           "no format of a panel");
        end = at;
    }
    return MOE_OK;
}

/* Lossless: whether panel `number`, of all experts, is what its place holds, no more and no less. */
static bool is_sound(const moe_experts *x, size_t number)
{
    const pack_layout *l = &x->layout;
    size_t panel = number % panels_of(x), at = x->panel_at[number];
    size_t end = number + 1 < x->E_L * panels_of(x) ? x->panel_at[number + 1] : panel_bytes(x);
    bool down = panel >= l->gate_up_panels;
    size_t halves = pack_halves(l, down, down ? panel - l->gate_up_panels : panel);
    size_t k = down ? l->mid_k : l->hidden_k, rows = pack_rows_bytes(l, down, halves);
    size_t bytes = x->panel_format[number] == FORMAT_BF16
                       ? kernel_panel_bytes(FORMAT_BF16, halves, k)
                       : pack_bf12_sound(x->base + at, end - at, halves, k);
    return bytes != 0 && bytes + rows == end - at;
}

typedef struct checking {
    const moe_experts *x;
    _Atomic size_t bad; /* the first panel that is not sound, or more than there are */
} checking;

static void check_expert(void *arg, size_t e)
{
    checking *c = arg;
    size_t panels = panels_of(c->x), n = e * panels;
    while (n < (e + 1) * panels && is_sound(c->x, n)) n++;
    if (n == (e + 1) * panels) return;
    for (size_t bad = atomic_load(&c->bad); n < bad;)
        if (atomic_compare_exchange_weak(&c->bad, &bad, n)) break;
}

static moe_status check_panels(moe_context *context, const moe_experts *x)
{
    checking c = {.x = x, .bad = SIZE_MAX};
    context_call call;
    if (!is_coded(x)) return MOE_OK;
    if (!context_enter(context, NULL, KERNEL_ALIGN, panel_bytes(x), &call))
        return error_set(MOE_E_NOMEM, "no memory for %d bytes of scratch", KERNEL_ALIGN);
    threads_loop(call.team, x->E_L, check_expert, &c);
    context_leave(context, &call);
    size_t bad = atomic_load(&c.bad);
    if (bad == SIZE_MAX) return MOE_OK;
    return damaged(sizeof(image_head) + table_bytes(x) + x->panel_at[bad], "no sound panel");
}

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct source {
    read_fn *read;
    void *user;
} source;

static moe_status get(const source *r, const void *data, size_t bytes)
{
    moe_status s = bytes > 0 ? r->read(r->user, (void *)(uintptr_t)data, bytes) : MOE_OK;
    if (s != MOE_OK) error_set(s, "read: gave %s for %zu bytes", moe_status_name(s), bytes);
    return s;
}

/* x, whose tables and panels are not there yet. */
static moe_status read_body(moe_context *context, const source *r, moe_experts *x)
{
    size_t all = x->E_L * panels_of(x);
    moe_status s = get(r, x->mid_k, x->E_L * sizeof *x->mid_k);
    if (is_coded(x)) {
        if (s == MOE_OK) s = get(r, x->panel_at, all * sizeof *x->panel_at);
        if (s == MOE_OK) s = get(r, x->panel_format, all);
    }
    if (s == MOE_OK) s = check_tables(x);
    if (s == MOE_OK) s = get(r, x->base, panel_bytes(x));
    return s == MOE_OK ? check_panels(context, x) : s;
}

/* *said: what the head says, and nothing else in it. */
static moe_status check_head(const image_head *h, size_t bytes, moe_experts *said)
{
    moe_status s = check_kind(h);
    if (s == MOE_OK) s = check_numbers(h);
    if (s != MOE_OK) return s;
    if (!derive(h, said)) return REFUSE(E_L, "E_L, H, I: the bytes do not fit in size_t");
    size_t panels = is_coded(said) ? (size_t)h->panel_bytes : said->E_L * said->layout.bytes;
    size_t before = sizeof *h + table_bytes(said);
    if (before > bytes || panels != bytes - before)
        return error_set(MOE_E_FORMAT,
                         "image of packed experts: %zu bytes: its head says %zu and panels of %zu",
                         bytes, before, panels);
    image_head must = head_of(said, panels);
    for (size_t i = 0; i < sizeof must; i++)
        if (((const char *)&must)[i] != ((const char *)h)[i])
            return damaged(i, "a number that does not follow from the others");
    return MOE_OK;
}

static moe_status read_image(moe_context *context, const source *r, size_t bytes,
                             moe_experts **experts)
{
    image_head head;
    moe_experts said;
    experts_block b;
    if (bytes < sizeof head) return damaged(bytes, "the image ends in its head,");
    moe_status s = get(r, &head, sizeof head);
    if (s == MOE_OK) s = check_head(&head, bytes, &said);
    if (s != MOE_OK) return s;
    if (!experts_block_of(said.E_L, panels_of(&said), is_coded(&said), head.panel_bytes, &b))
        return REFUSE(E_L, "E_L, H, I: the bytes do not fit in size_t");
    moe_experts *x = experts_begin(&b, context_memory(context));
    if (x == NULL) return MOE_E_NOMEM;
    x->E_L = said.E_L;
    x->axis = said.axis;
    x->layout = said.layout;
    x->gate_up = said.gate_up;
    x->down = said.down;
    x->packing = said.packing;
    s = read_body(context, r, x);
    if (s != MOE_OK) {
        experts_free(x);
        return s;
    }
    experts_end(x);
    *experts = x;
    return MOE_OK;
}

moe_status moe_experts_read(moe_context *context, read_fn *read, void *user, size_t bytes,
                            moe_experts **experts)
{
    if (experts == NULL) return error_set(MOE_E_NULL_ARG, "experts = NULL: required");
    *experts = NULL;
    if (read == NULL) return error_set(MOE_E_NULL_ARG, "read = NULL: required");
    int cancel; /* a thread that is cancelled in read would leave the block to nobody */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    moe_status s = read_image(context, &(source){read, user}, bytes, experts);
    pthread_setcancelstate(cancel, NULL);
    return s;
}
