/* SPDX-License-Identifier: Apache-2.0 */
/* experts_image.c - packed experts as bytes, and back.
 *
 * An image is a head, the tables mid_k and (lossless) panel_at and panel_format, and the panels as
 * they are in memory; what packing leaves unwritten, because no call reads it, is zeros.
 *
 * It may come from anywhere.  Its head is judged in image_head.c, and here every other number that
 * a call makes an address of: the tables, and the heads of coded panels.  Weights, scales and biases
 * are values, whatever they are. */
#define _POSIX_C_SOURCE 200809L
#include "context.h"
#include "error.h"
#include "image_head.h"
#include "pack_bf12.h"
#include "sizes.h"

#include <pthread.h>

typedef moe_status write_fn(void *user, const void *data, size_t bytes);
typedef moe_status read_fn(void *user, void *data, size_t bytes);

/* Bytes of a handle's panels. */
static size_t panel_bytes(const moe_experts *x)
{
    return x->bytes - (size_t)(x->base - (const uint8_t *)x);
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
    image_head head = image_head_of(x, panel_bytes(x));
    size_t all = x->E_L * image_panels(x);
    put(&s, &head, sizeof head);
    put(&s, x->mid_k, x->E_L * sizeof *x->mid_k);
    if (image_is_coded(x)) {
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

/* ---- tables and panels ----------------------------------------------------------------------- */

static moe_status check_tables(const moe_experts *x)
{
    const pack_layout *l = &x->layout;
    size_t least = pack_least_mid_k(&x->axis, l), all = x->E_L * image_panels(x), end = 0;
    for (size_t e = 0; e < x->E_L; e++) {
        size_t k = x->mid_k[e];
        if (k < least || k > l->mid_k || (l->mid_k - k) % KERNEL_BLOCK != 0)
            return image_damaged(sizeof(image_head) + e * sizeof k, "mid_k out of range");
    }
    for (size_t n = 0; image_is_coded(x) && n < all; n++) {
        size_t at = x->panel_at[n];
        if (at % KERNEL_ALIGN != 0 || (n == 0 ? at != 0 : at <= end) || at >= panel_bytes(x))
            return image_damaged(sizeof(image_head) + (x->E_L + n) * sizeof at,
                                 "panel_at out of order");
        if (x->panel_format[n] != FORMAT_BF16 && x->panel_format[n] != FORMAT_BF12)
            return image_damaged(sizeof(image_head) + (x->E_L + all) * sizeof at + n,
                                 "no format of a panel");
        end = at;
    }
    return MOE_OK;
}

/* Lossless: whether panel `number`, of all experts, is what its place holds, no more and no less. */
static bool is_sound(const moe_experts *x, size_t number)
{
    const pack_layout *l = &x->layout;
    size_t panel = number % image_panels(x), at = x->panel_at[number];
    size_t end = number + 1 < x->E_L * image_panels(x) ? x->panel_at[number + 1] : panel_bytes(x);
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
    size_t panels = image_panels(c->x), n = e * panels;
    while (n < (e + 1) * panels && is_sound(c->x, n)) n++;
    if (n == (e + 1) * panels) return;
    for (size_t bad = atomic_load(&c->bad); n < bad;)
        if (atomic_compare_exchange_weak(&c->bad, &bad, n)) break;
}

static moe_status check_panels(moe_context *context, const moe_experts *x)
{
    checking c = {.x = x, .bad = SIZE_MAX};
    context_call call;
    if (!image_is_coded(x)) return MOE_OK;
    if (!context_enter(context, NULL, KERNEL_ALIGN, panel_bytes(x), &call))
        return error_set(MOE_E_NOMEM, "no memory for %d bytes of scratch", KERNEL_ALIGN);
    threads_loop(call.team, x->E_L, check_expert, &c);
    context_leave(context, &call);
    size_t bad = atomic_load(&c.bad);
    if (bad == SIZE_MAX) return MOE_OK;
    return image_damaged(sizeof(image_head) + image_tables(x) + x->panel_at[bad], "no sound panel");
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
    size_t all = x->E_L * image_panels(x);
    moe_status s = get(r, x->mid_k, x->E_L * sizeof *x->mid_k);
    if (image_is_coded(x)) {
        if (s == MOE_OK) s = get(r, x->panel_at, all * sizeof *x->panel_at);
        if (s == MOE_OK) s = get(r, x->panel_format, all);
    }
    if (s == MOE_OK) s = check_tables(x);
    if (s == MOE_OK) s = get(r, x->base, panel_bytes(x));
    return s == MOE_OK ? check_panels(context, x) : s;
}

static moe_status read_image(moe_context *context, const source *r, size_t bytes,
                             moe_experts **experts)
{
    image_head head;
    moe_experts said;
    experts_block b;
    if (bytes < sizeof head) return image_damaged(bytes, "the image ends in its head,");
    moe_status s = get(r, &head, sizeof head);
    if (s == MOE_OK) s = image_head_check(&head, bytes, &said);
    if (s != MOE_OK) return s;
    if (!experts_block_of(said.E_L, image_panels(&said), image_is_coded(&said), head.panel_bytes,
                          &b))
        return error_set(MOE_E_OVERFLOW, "%zu bytes of packed experts do not fit in size_t", bytes);
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
