/* SPDX-License-Identifier: Apache-2.0 */
/* experts.c - packed experts that are kept: their one block of memory, from arguments to handle.
 *
 * The block is the handle, its tables, and the panels: of a layout all experts share or, coded, as
 * long as each panel comes out, which a first pass over the weights says.  Panels are written by
 * the thread that will read them (a share of every expert), so that their pages are near it. */
#define _POSIX_C_SOURCE 200809L
#include "experts.h"

#include "checked.h"
#include "context.h"
#include "error.h"
#include "pack_bf12.h"
#include "sizes.h"
#include "validate.h"

#include <limits.h>
#include <pthread.h>

#define MARK_NAME 0x7472657078656F6Dull /* "moexpert" */
#define MARK_NOW  (MARK_NAME ^ EXPERTS_VERSION)

/* One packing, from its arguments to its end. */
typedef struct packing {
    const moe_experts_args *args;
    size_t E_L;
    pack_source source; /* of all experts, or with fetch of the slice from `first` on */
    size_t first;
    pack_layout layout;
    size_t panels;            /* of an expert */
    size_t shares;            /* participants of a loop */
    pack_bf12_coding *coding; /* lossless: [E_L][panels], while it is packed */
    moe_experts *experts;
} packing;

/* ---- runs of panels -------------------------------------------------------------------------- */

/* Panels are numbered through an expert: gate_up, then down.  The longest run from `first` on
 * inside [first, end). */
static pack_bf12_run run_of(const packing *p, size_t e, size_t first, size_t end)
{
    const pack_layout *l = &p->layout;
    bool down = first >= l->gate_up_panels;
    pack_bf12_run r = {.s = &p->source, .e = e, .down = down};
    r.first = down ? first - l->gate_up_panels : first;
    r.k = down ? l->mid_k : l->hidden_k;
    r.halves = pack_halves(l, down, r.first);
    r.count = pack_run_length(l, down, r.first, end - first);
    return r;
}

/* Calls run for a participant's share of one expert of the slice: of the gate_up panels, then of
 * the down panels.  number: of the run's first panel, through all experts. */
static void for_share(const packing *p, size_t i,
                      void (*run)(const packing *p, const pack_bf12_run *r, size_t number))
{
    size_t share = i / p->source.E_L, e = i % p->source.E_L, gate_up = p->layout.gate_up_panels;
    const size_t first[] = {0, gate_up}, count[] = {gate_up, p->layout.down_panels};
    for (size_t part = 0; part < 2; part++) {
        size_t n = first[part] + count[part] * share / p->shares,
               end = first[part] + count[part] * (share + 1) / p->shares;
        while (n < end) {
            pack_bf12_run r = run_of(p, e, n, end);
            run(p, &r, (p->first + e) * p->panels + n);
            n += r.count;
        }
    }
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* Bytes of panel number n (through all experts) with its rows. */
static size_t panel_bytes(const packing *p, size_t n)
{
    pack_bf12_run r = run_of(p, n / p->panels, n % p->panels, n % p->panels + 1);
    return pack_bf12_bytes(&p->coding[n], r.halves, r.k) +
           pack_rows_bytes(&p->layout, r.down, r.halves);
}

static bool place(size_t count, size_t unit, size_t alignment, size_t *end, size_t *at)
{
    size_t bytes;
    return checked_round_up(*end, alignment, at) && checked_mul(count, unit, &bytes) &&
           checked_add(*at, bytes, end);
}

bool experts_block_of(size_t E_L, size_t panels, bool coded, size_t bytes, experts_block *b)
{
    size_t all, end = sizeof(moe_experts);
    memset(b, 0, sizeof *b);
    if (!checked_mul(E_L, panels, &all) ||
        !place(1, sizeof(atomic_int), sizeof(atomic_int), &end, &b->uses) ||
        !place(E_L, sizeof(size_t), sizeof(size_t), &end, &b->mid_k))
        return false;
    if (coded && (!place(all, sizeof(size_t), sizeof(size_t), &end, &b->panel_at) ||
                  !place(all, 1, 1, &end, &b->panel_format)))
        return false;
    if (!place(1, bytes, KERNEL_ALIGN, &end, &b->base)) return false;
    b->bytes = end;
    return b->bytes <= PTRDIFF_MAX;
}

static bool block_of(const packing *p, experts_block *b)
{
    size_t E_L = p->E_L, bytes = 0;
    bool coded = p->args->packing == MOE_PACK_LOSSLESS;
    if (coded) /* of codings at most as large as bf16, which fit */
        for (size_t n = 0; n < E_L * p->panels; n++) bytes += panel_bytes(p, n);
    else if (!checked_mul(E_L, p->layout.bytes, &bytes))
        return false;
    return experts_block_of(E_L, p->panels, coded, bytes, b);
}

/* ---- passes ---------------------------------------------------------------------------------- */

static void choose_run(const packing *p, const pack_bf12_run *r, size_t number)
{
    pack_bf12_choose(r, p->coding + number);
}

static void choose_share(void *arg, size_t i)
{
    for_share(arg, i, choose_run);
}

static void code_run(const packing *p, const pack_bf12_run *r, size_t number)
{
    const moe_experts *x = p->experts;
    uint8_t *stream[PACK_RUN];
    for (size_t n = 0; n < r->count; n++) {
        const pack_bf12_coding *c = &p->coding[number + n];
        stream[n] = (uint8_t *)(uintptr_t)x->base + x->panel_at[number + n];
        uint8_t *rows = stream[n] + pack_bf12_bytes(c, r->halves, r->k);
        if (r->down)
            pack_down_rows(r->s, &p->layout, r->e, r->first + n, rows);
        else
            pack_gate_up_rows(r->s, &p->layout, r->e, r->first + n, rows);
    }
    pack_bf12_write(r, p->coding + number, stream);
}

static void code_share(void *arg, size_t i)
{
    for_share(arg, i, code_run);
}

static void pack_run_of(const packing *p, const pack_bf12_run *r, size_t number)
{
    const moe_experts *x = p->experts;
    size_t e = number / p->panels, mid_k = x->mid_k[e];
    uint8_t *expert = (uint8_t *)(uintptr_t)x->base + e * p->layout.bytes;
    if (r->down) {
        pack_down(r->s, &p->layout, r->e, r->first, r->count, mid_k, expert);
        return;
    }
    size_t used = pack_gate_up_panels(&p->layout, mid_k); /* lanes past mid_k are never read */
    if (r->first < used)
        pack_gate_up(r->s, &p->layout, r->e, r->first,
                     used - r->first < r->count ? used - r->first : r->count, expert);
}

static void pack_share(void *arg, size_t i)
{
    for_share(arg, i, pack_run_of);
}

/* ---- create ---------------------------------------------------------------------------------- */

/* Fills all of *p that the arguments say.  Sizes are judged before the first pointer is followed:
 * there may be as many of these as experts. */
static moe_status prepare(const moe_experts_args *args, bool reads, packing *p)
{
    memset(p, 0, sizeof *p);
    p->args = args;
    moe_status s = validate_experts(args, &p->source);
    if (s != MOE_OK) return s;
    p->E_L = p->source.E_L;
    size_t all;
    if (!pack_layout_of(&p->source, &p->layout) ||
        !checked_mul(p->layout.bytes, p->source.E_L, &all) || all > PTRDIFF_MAX / 2)
        return error_set(
            MOE_E_OVERFLOW,
            "E_L = %zu, H = %zu, I = %zu: the packed experts' bytes do not fit in size_t",
            p->source.E_L, p->source.axis.H, p->source.axis.I);
    p->panels = p->layout.gate_up_panels + p->layout.down_panels;
    reads |= args->packing == MOE_PACK_LOSSLESS;
    return reads && args->fetch == NULL ? validate_experts_data(args, &p->source) : MOE_OK;
}

/* Bytes of working memory: the codings.  Smaller than the panels, whose bytes fit. */
static size_t scratch_bytes(const packing *p)
{
    if (p->args->packing != MOE_PACK_LOSSLESS) return KERNEL_ALIGN;
    return p->E_L * p->panels * sizeof(pack_bf12_coding);
}

static size_t mean_bytes(const moe_experts *x)
{
    const pack_layout *l = &x->layout;
    size_t sum = 0;
    if (x->panel_at != NULL) return (x->bytes - (size_t)(x->base - (const uint8_t *)x)) / x->E_L;
    for (size_t e = 0; e < x->E_L; e++) {
        size_t panels = l->gate_up_panels - pack_gate_up_panels(l, x->mid_k[e]);
        sum += l->bytes - panels * l->gate_up_bytes;
        for (size_t n = 0; n < l->down_panels; n++) {
            size_t halves = pack_halves(l, true, n);
            sum -= kernel_panel_bytes(l->down, halves, l->mid_k) -
                   kernel_panel_bytes(l->down, halves, x->mid_k[e]);
        }
    }
    return sum / x->E_L;
}

moe_experts *experts_begin(const experts_block *b, const allocator *m)
{
    uint8_t *memory = m->allocate(b->bytes, KERNEL_ALIGN, m->user);
    if (memory == NULL) {
        error_set(MOE_E_NOMEM, "no memory for %zu bytes of packed experts", b->bytes);
        return NULL;
    }
    memset(memory, 0, b->base);
    moe_experts *x = (moe_experts *)(void *)memory;
    x->bytes = b->bytes;
    x->memory = *m;
    x->uses = (atomic_int *)(void *)(memory + b->uses);
    atomic_init(x->uses, 0);
    x->mid_k = (size_t *)(void *)(memory + b->mid_k);
    if (b->panel_at != 0) {
        x->panel_at = (size_t *)(void *)(memory + b->panel_at);
        x->panel_format = memory + b->panel_format;
    }
    x->base = memory + b->base;
    return x;
}

void experts_end(moe_experts *x)
{
    x->expert_bytes = mean_bytes(x);
    x->mark = MARK_NOW;
}

void experts_free(moe_experts *x)
{
    allocator m = x->memory;
    x->mark = 0;
    m.release(x, x->bytes, m.user);
}

/* The handle and its tables, before the panels are there. */
static void fill_handle(const packing *p, moe_experts *x)
{
    const moe_experts_args *a = p->args;
    x->E_L = p->E_L;
    x->axis = p->source.axis;
    x->layout = p->layout;
    x->gate_up =
        a->expert_gate_up_weights == NULL ? a->up.weights.dtype : a->expert_gate_up_weights->dtype;
    x->down =
        a->expert_gate_up_weights == NULL ? a->down.weights.dtype : a->expert_down_weights->dtype;
    x->packing = a->packing;
    size_t *mid_k = (size_t *)(uintptr_t)x->mid_k, *at = (size_t *)(uintptr_t)x->panel_at, end = 0;
    uint8_t *format = (uint8_t *)(uintptr_t)x->panel_format;
    for (size_t e = 0; e < x->E_L; e++) mid_k[e] = pack_mid_k(&p->source, &p->layout, e);
    for (size_t n = 0; at != NULL && n < x->E_L * p->panels; n++) {
        at[n] = end;
        format[n] = (uint8_t)p->coding[n].format;
        end += panel_bytes(p, n);
    }
}

/* Asks for the next `count` experts from p->first on, of which p->source then is. */
static moe_status fetch(packing *p, size_t count)
{
    moe_experts_args part = *p->args;
    unsigned errors = error_count();
    part.E_L = (int64_t)count;
    moe_status s = p->args->fetch(p->args->fetch_user, (int64_t)p->first, (int64_t)count, &part);
    if (s != MOE_OK && error_count() == errors) error_set(s, "%s", moe_status_name(s));
    if (s == MOE_OK) s = validate_fetched(p->args, count, &part, &p->source);
    if (s == MOE_OK) return s;
    error_prefix("fetch: experts [%zu, %zu): ", p->first, p->first + count);
    return s;
}

/* Runs a pass over all experts, in as many slices as they are fetched. */
static moe_status pass(packing *p, const context_call *call, void (*share)(void *arg, size_t i))
{
    size_t most = p->args->fetch != NULL ? (size_t)p->args->fetch_count : p->E_L, count;
    for (p->first = 0; p->first < p->E_L; p->first += count) {
        count = size_smaller(p->E_L - p->first, most);
        moe_status s = p->args->fetch != NULL ? fetch(p, count) : MOE_OK;
        if (s != MOE_OK) return s;
        threads_loop(call->team, p->shares * count, share, p);
    }
    return MOE_OK;
}

/* What is done with the context's threads and scratch: reads the weights if the size depends on
 * them, and with experts not NULL packs. */
static moe_status work(moe_context *context, packing *p, const context_call *call, size_t *bytes,
                       moe_experts **experts)
{
    experts_block b;
    moe_status s = MOE_OK;
    bool coded = p->args->packing == MOE_PACK_LOSSLESS;
    p->shares = call->team == NULL ? 1 : (size_t)threads_count(call->team);
    if (coded) {
        p->coding = (pack_bf12_coding *)(void *)call->scratch;
        s = pass(p, call, choose_share);
        if (s != MOE_OK) return s;
    }
    if (!block_of(p, &b))
        return error_set(MOE_E_OVERFLOW,
                         "E_L = %zu: the packed experts' bytes do not fit in size_t", p->E_L);
    *bytes = b.bytes;
    if (experts == NULL) return MOE_OK;
    p->experts = experts_begin(&b, context_memory(context));
    if (p->experts == NULL) return MOE_E_NOMEM;
    fill_handle(p, p->experts);
    s = pass(p, call, coded ? code_share : pack_share);
    if (s != MOE_OK) {
        experts_free(p->experts);
        return s;
    }
    experts_end(p->experts);
    *experts = p->experts;
    return MOE_OK;
}

/* A thread that is cancelled inside would leave its context without an owner. */
static moe_status with_context(moe_context *context, packing *p, size_t *bytes,
                               moe_experts **experts)
{
    context_call call;
    int cancel;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    moe_status s = MOE_E_NOMEM;
    if (context_enter(context, NULL, scratch_bytes(p), p->E_L * p->layout.bytes, &call)) {
        s = work(context, p, &call, bytes, experts);
        context_leave(context, &call);
    } else {
        error_set(s, "no memory for %zu bytes of scratch", scratch_bytes(p));
    }
    pthread_setcancelstate(cancel, NULL);
    return s;
}

moe_status moe_experts_bytes(moe_context *context, const moe_experts_args *args, size_t *bytes)
{
    packing p;
    if (bytes == NULL) return error_set(MOE_E_NULL_ARG, "bytes = NULL: required");
    moe_status s = prepare(args, false, &p);
    if (s != MOE_OK) return s;
    if (args->packing == MOE_PACK_LOSSLESS) return with_context(context, &p, bytes, NULL);
    experts_block b;
    if (!block_of(&p, &b))
        return error_set(MOE_E_OVERFLOW,
                         "E_L = %zu: the packed experts' bytes do not fit in size_t", p.E_L);
    *bytes = b.bytes;
    return MOE_OK;
}

moe_status moe_experts_create(moe_context *context, const moe_experts_args *args,
                              moe_experts **experts)
{
    packing p;
    size_t bytes;
    if (experts == NULL) return error_set(MOE_E_NULL_ARG, "experts = NULL: required");
    *experts = NULL;
    moe_status s = prepare(args, true, &p);
    return s != MOE_OK ? s : with_context(context, &p, &bytes, experts);
}

/* ---- handles --------------------------------------------------------------------------------- */

moe_status experts_check(const moe_experts *x)
{
    uint64_t mark = 0;
    if ((uintptr_t)x % KERNEL_ALIGN == 0) memcpy(&mark, &x->mark, sizeof mark);
    if (mark == MARK_NOW) return MOE_OK;
    if ((mark ^ MARK_NAME) < 1u << 16)
        return error_set(MOE_E_ABI,
                         "experts: packed in layout %u: this library (version %s) reads %u",
                         (unsigned)(mark ^ MARK_NAME), moe_version(), EXPERTS_VERSION);
    return error_set(MOE_E_ABI, "experts = %p: not of moe_experts_create", (const void *)x);
}

moe_status experts_enter(const moe_experts *x)
{
    moe_status s = experts_check(x);
    if (s == MOE_OK) atomic_fetch_add(x->uses, 1);
    return s;
}

void experts_leave(const moe_experts *x)
{
    atomic_fetch_sub(x->uses, 1);
}

moe_status moe_experts_destroy(moe_experts *experts)
{
    if (experts == NULL) return MOE_OK;
    int uses = 0;
    moe_status s = experts_check(experts);
    if (s != MOE_OK) return s;
    if (!atomic_compare_exchange_strong(experts->uses, &uses, INT_MIN))
        return error_set(MOE_E_BUSY, "experts: %d calls are using them", uses);
    experts_free(experts);
    return MOE_OK;
}

moe_status moe_experts_describe(const moe_experts *experts, moe_experts_info *info)
{
    if (experts == NULL) return error_set(MOE_E_NULL_ARG, "experts = NULL: required");
    if (info == NULL) return error_set(MOE_E_NULL_ARG, "info = NULL: required");
    moe_status s = error_struct_size(info, sizeof *info, "moe_experts_info");
    if (s == MOE_OK) s = experts_check(experts);
    if (s != MOE_OK) return s;
    info->E_L = (int64_t)experts->E_L;
    info->H = (int64_t)experts->axis.H;
    info->I = (int64_t)experts->axis.I;
    info->gate_up = experts->gate_up;
    info->down = experts->down;
    info->has_gate = !experts->layout.ungated;
    info->packing = experts->packing;
    info->bytes = experts->bytes;
    info->expert_bytes = experts->expert_bytes;
    return MOE_OK;
}

/* ---- panels ---------------------------------------------------------------------------------- */

/* A panel of lossless packing. */
static kernel_panel coded(const moe_experts *x, size_t number, kernel_panel p, bool scale,
                          bool bias)
{
    p.stream = x->base + x->panel_at[number];
    p.format = (kernel_format)x->panel_format[number];
    size_t bytes = kernel_panel_bytes(p.format, p.halves, p.k);
    if (p.format == FORMAT_BF12)
        bytes += ((const kernel_bf12_head *)(const void *)p.stream)->lines_at;
    pack_set_rows(&p, p.stream + bytes, scale, bias);
    return p;
}

kernel_panel experts_gate_up(const moe_experts *x, size_t e, size_t panel)
{
    const pack_layout *l = &x->layout;
    if (x->panel_at == NULL) return pack_gate_up_panel(l, x->base + e * l->bytes, panel);
    return coded(x, e * (l->gate_up_panels + l->down_panels) + panel,
                 (kernel_panel){.k = l->hidden_k, .halves = pack_halves(l, false, panel)},
                 l->gate_up_scale, l->gate_up_bias);
}

kernel_panel experts_down(const moe_experts *x, size_t e, size_t panel)
{
    const pack_layout *l = &x->layout;
    if (x->panel_at == NULL) return pack_down_panel(l, x->base + e * l->bytes, panel, x->mid_k[e]);
    return coded(x, e * (l->gate_up_panels + l->down_panels) + l->gate_up_panels + panel,
                 (kernel_panel){.k = l->mid_k, .halves = pack_halves(l, true, panel)},
                 l->down_scale, l->down_bias);
}
