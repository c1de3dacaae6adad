/* SPDX-License-Identifier: Apache-2.0 */
/* image_head.c - the head of an image: written, and judged when it comes from anywhere.
 *
 * It has some independent numbers; all others in it follow from these, and the whole head must be
 * the one that this library writes for them. */
#include "image_head.h"

#include "checked.h"
#include "error.h"
#include "sizes.h"

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

_Static_assert(sizeof(image_head) == (1 + 2 + 1 + 4 + 3 + 11) * 8, "a head has no padding");

image_head image_head_of(const moe_experts *x, size_t panel_bytes)
{
    const pack_layout *l = &x->layout;
    image_head h;
    memset(&h, 0, sizeof h);
    memcpy(h.name, IMAGE_NAME, sizeof h.name);
    h.order = IMAGE_ORDER;
    h.version = EXPERTS_VERSION;
    h.canon = EXPERTS_CANON;
    h.word = sizeof(size_t);
    h.panel_bytes = panel_bytes;
    h.bytes = sizeof h + image_tables(x) + panel_bytes;
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

/* ---- judging ---------------------------------------------------------------------------------- */

moe_status image_damaged(size_t byte, const char *rule)
{
    return error_set(MOE_E_FORMAT, "image of packed experts: %s at byte %zu", rule, byte);
}

#define REFUSE(field, rule) image_damaged(offsetof(image_head, field), rule)

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

moe_status image_head_check(const image_head *h, size_t bytes, moe_experts *said)
{
    moe_status s = check_kind(h);
    if (s == MOE_OK) s = check_numbers(h);
    if (s != MOE_OK) return s;
    if (!derive(h, said)) return REFUSE(E_L, "E_L, H, I: the bytes do not fit in size_t");
    size_t panels = image_is_coded(said) ? (size_t)h->panel_bytes : said->E_L * said->layout.bytes;
    size_t before = sizeof *h + image_tables(said);
    if (before > bytes || panels != bytes - before)
        return error_set(MOE_E_FORMAT,
                         "image of packed experts: %zu bytes: its head says %zu and panels of %zu",
                         bytes, before, panels);
    image_head must = image_head_of(said, panels);
    for (size_t i = 0; i < sizeof must; i++)
        if (((const char *)&must)[i] != ((const char *)h)[i])
            return image_damaged(i, "a number that does not follow from the others");
    return MOE_OK;
}
