/* SPDX-License-Identifier: Apache-2.0 */
/* layer.c - one layer: its experts, its shared expert, its router.  Refuses layers that are not whole.
 * Formats of single matrices are in layer_forms.c. */
#include "io/layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/layer_pieces.h"
#include "io/model_error.h"

/* ---- names ----------------------------------------------------------------------------------- */

static const char *before_number(const layout *l)
{
    return l->layer ? l->layer : "layers.";
}

int64_t layer_number(const char *name, const layout *l, const char *prefix)
{
    const char *layer = before_number(l);
    size_t a = strlen(prefix), b = strlen(layer);
    int64_t number = 0;
    if (strncmp(name, prefix, a) != 0 || strncmp(name + a, layer, b) != 0) return -1;
    name += a + b;
    size_t digits = strspn(name, "0123456789");
    if (digits == 0 || digits > 9 || name[digits] != '.') return -1;
    for (size_t i = 0; i < digits; i++) number = 10 * number + (name[i] - '0');
    return number;
}

void layer_name(const layer_place *place, const char *stem, int64_t e, const char *suffix,
                char name[LAYER_NAME_BYTES])
{
    const char *layer = before_number(place->layout);
    const char *number = strstr(stem, "{e}");
    int head = number ? (int)(number - stem) : (int)strlen(stem);
    int used = snprintf(name, LAYER_NAME_BYTES, "%s%s%lld.%.*s", place->prefix, layer,
                        (long long)place->number, head, stem);
    if (number)
        used += snprintf(name + used, LAYER_NAME_BYTES - (size_t)used, "%lld%s", (long long)e,
                         number + 3);
    snprintf(name + used, LAYER_NAME_BYTES - (size_t)used, "%s", suffix);
}

/* One of a list of whole names, separated by spaces: the first that is there, else its first. */
static void vector_name(const layer_place *place, const char *names, char name[LAYER_NAME_BYTES])
{
    char first[64];
    for (const char *at = names;;) {
        size_t n = strcspn(at, " ");
        snprintf(first, sizeof first, "%.*s", (int)n, at);
        layer_name(place, first, 0, "", name);
        if (ck_has(place->ck, name) || at[n] == '\0') break;
        at += n + 1;
    }
    if (ck_has(place->ck, name)) return;
    snprintf(first, sizeof first, "%.*s", (int)strcspn(names, " "), names);
    layer_name(place, first, 0, "", name);
}

static bool has_vector(const layer_place *place, const char *names)
{
    char name[LAYER_NAME_BYTES];
    if (!names) return false;
    vector_name(place, names, name);
    return ck_has(place->ck, name);
}

/* How much of a layout a layer has: 3 gate or up, which no two layouts share, 2 down, 1 the router. */
static int layout_rank(const layer_place *place)
{
    const layout *l = place->layout;
    if (layer_has_weights(place, l->gate_up ? l->gate_up : l->up) ||
        layer_has_weights(place, l->gate))
        return 3;
    return layer_has_weights(place, l->down) ? 2 : has_vector(place, l->router) ? 1 : 0;
}

const layout *layer_layout(const checkpoint *ck, const family_rules *rules, const char *prefix,
                           int64_t number)
{
    const layout *best = NULL;
    int most = 0;
    for (int i = 0; i < FAMILY_LAYOUTS && rules->layouts[i]; i++) {
        const layer_place place = {ck, rules, rules->layouts[i], prefix, number};
        int rank = layout_rank(&place);
        if (rank > most) {
            most = rank;
            best = place.layout;
        }
    }
    return best;
}

/* ---- experts --------------------------------------------------------------------------------- */

static bool is_dense(const ck_tensor *t)
{
    return t->type == CK_BF16 || t->type == CK_F16 || t->type == CK_F32 || t->type == CK_E4M3;
}

/* 1: [E, rows, k]; -1: [E, k, rows]; 0: both or neither. */
static int orientation(const ck_tensor *t, const layer_search *search)
{
    int64_t rows = search->rows, k = search->k;
    if (!is_dense(t) || t->rank != 3 || t->shape[0] != search->experts->E) return 0;
    return (t->shape[1] == rows && t->shape[2] == k) - (t->shape[1] == k && t->shape[2] == rows);
}

/* Whether tensors of all experts hold [H, 2I] and [I, H] instead of [2I, H] and [H, I].  Of square
 * ones the other tells: 2I = H and I = H are never both. */
static moe_status find_orientation(const layer_search *gate_up, const layer_search *down,
                                   bool *transposed)
{
    ck_tensor g, d;
    bool has_g, has_d;
    *transposed = false;
    moe_status s = layer_weights_shape(gate_up, &g, &has_g);
    if (s == MOE_OK) s = layer_weights_shape(down, &d, &has_d);
    if (s != MOE_OK) return s;
    int of_g = has_g ? orientation(&g, gate_up) : 0, of_d = has_d ? orientation(&d, down) : 0;
    *transposed = (of_g != 0 ? of_g : of_d) < 0;
    return MOE_OK;
}

/* Of rows that hold gate and up in turns, or gate before up: every second, or the first and last I. */
static void take_half(layer_array *gate, layer_array *up, bool interleaved, int64_t I)
{
    if (gate->dtype == MOE_DTYPE_NONE) return;
    *up = *gate;
    up->offset += (size_t)(interleaved ? gate->row_stride : I * gate->row_stride);
    if (interleaved) gate->row_stride = up->row_stride = 2 * gate->row_stride;
}

static moe_status split(const layer_search *search, bool interleaved)
{
    layer_experts *x = search->experts;
    layer_matrix *gate = &x->gate, *up = &x->up;
    int64_t rows = gate->scale_rows > 0 ? gate->scale_rows : 1;
    if ((interleaved && rows > 1) || x->I % rows != 0)
        return layer_refuse(search->place, &x->pieces[gate->scale.piece].tensors[0],
                            "a block of %lld rows holds rows of both gate and up", (long long)rows);
    *up = *gate;
    take_half(&gate->weights, &up->weights, interleaved, x->I);
    take_half(&gate->scale, &up->scale, interleaved, x->I / rows);
    take_half(&gate->bias, &up->bias, interleaved, x->I);
    take_half(&gate->row_scale, &up->row_scale, interleaved, x->I);
    return MOE_OK;
}

typedef struct stems {
    const char *gate, *up, *down, *gate_up;
    bool interleaved;
} stems;

/* All matrices of x, whose E, H and I are known. */
static moe_status find_experts(const layer_place *place, const stems *n, bool stacked,
                               layer_experts *x)
{
    const char *first = n->gate_up ? n->gate_up : n->up;
    stacked = stacked && !strstr(first, "{e}");
    layer_search one = {
        .place = place, .experts = x, .stacked = stacked, .stem = n->up, .rows = x->I, .k = x->H};
    layer_search both = one, down = one;
    both.stem = n->gate_up;
    both.rows = 2 * x->I;
    down.stem = n->down;
    down.rows = x->H;
    down.k = x->I;
    moe_status s = MOE_OK;
    if (n->gate_up) {
        if (stacked) s = find_orientation(&both, &down, &both.transposed);
        down.transposed = both.transposed;
        if (s == MOE_OK) s = layer_find_matrix(&both, &x->gate);
        if (s == MOE_OK) s = split(&both, n->interleaved);
    } else {
        layer_search gate = one;
        gate.stem = n->gate;
        if (n->gate) s = layer_find_matrix(&gate, &x->gate);
        if (s == MOE_OK) s = layer_find_matrix(&one, &x->up);
    }
    if (s == MOE_OK) s = layer_find_matrix(&down, &x->down);
    if (s != MOE_OK || x->gate.weights.dtype == MOE_DTYPE_NONE) return s;
    const ck_tensor *t = &x->pieces[x->up.weights.piece].tensors[0];
    if (strcmp(x->gate.format, x->up.format) != 0)
        return layer_refuse(place, t, "is %s, and the gate's %s", x->up.format, x->gate.format);
    if (x->gate.bias.dtype != x->up.bias.dtype || x->gate.scale.dtype != x->up.scale.dtype ||
        x->gate.row_scale.dtype != x->up.row_scale.dtype)
        return layer_refuse(place, t,
                            "has a bias or scales that the gate's has not, or of another "
                            "type, or the other way round");
    return MOE_OK;
}

static moe_status find_routed(const layer_place *place, layer_plan *plan)
{
    const layout *l = place->layout;
    const stems n = {l->gate, l->up, l->down, l->gate_up, l->interleaved};
    layer_experts *x = &plan->experts;
    x->E = plan->info.E;
    x->H = plan->info.H;
    x->I = plan->info.I;
    moe_status s = find_experts(place, &n, true, x);
    if (s != MOE_OK || !(place->rules->needs & FAMILY_NEEDS_EXPERT_BIAS)) return s;
    for (int i = 0; i < 2; i++) {
        const layer_matrix *m = i == 0 ? &x->up : &x->down;
        if (m->bias.dtype == MOE_DTYPE_NONE)
            return layer_refuse(place, &x->pieces[m->weights.piece].tensors[0],
                                "its bias is missing");
    }
    return MOE_OK;
}

/* There is no shared expert: unless there must be one, or a part of one is there. */
static moe_status no_shared(const layer_search *first, const stems *n)
{
    const layer_place *place = first->place;
    bool needed = place->rules->needs & (FAMILY_NEEDS_SHARED | FAMILY_NEEDS_SHARED_GATE);
    if (!needed && !layer_has_weights(place, n->gate) && !layer_has_weights(place, n->down))
        return MOE_OK;
    return piece_missing(first, ".weight", 0);
}

static moe_status find_shared(const layer_place *place, layer_plan *plan)
{
    const layout *l = place->layout;
    const stems n = {l->shared_gate, l->shared_up, l->shared_down, l->shared_gate_up, false};
    layer_experts *x = &plan->shared;
    int64_t I = place->rules->shared_I;
    if (!l->shared_down || I == 0) return MOE_OK;
    x->E = 1;
    x->H = plan->info.H;
    layer_search search = {.place = place, .experts = x};
    search.stem = n.gate_up ? n.gate_up : n.up;
    if (I < 0) {
        ck_tensor t;
        bool found;
        moe_status s = layer_weights_shape(&search, &t, &found);
        I = s == MOE_OK && found && t.rank > 0 ? t.shape[0] / (n.gate_up ? 2 : 1) : 0;
        if (s != MOE_OK || !found) {
            x->E = 0;
            return s == MOE_OK ? no_shared(&search, &n) : s;
        }
        if (I < 1 || I > INT32_MAX)
            return layer_refuse(place, &t, "%lld rows are none of a shared expert", (long long)I);
    }
    x->I = I;
    return find_experts(place, &n, false, x);
}

/* ---- router ---------------------------------------------------------------------------------- */

/* *v = a tensor of floats with `rank` dimensions; a missing one only if it is not needed. */
static moe_status find_vector(const layer_place *place, const char *names, bool needed, int rank,
                              const int64_t *shape, layer_vector *v)
{
    char name[LAYER_NAME_BYTES];
    if (!names) return MOE_OK;
    vector_name(place, names, name);
    moe_status s = ck_find(place->ck, name, &v->tensor, &v->given);
    if (s != MOE_OK || (!v->given && !needed)) return s;
    if (!v->given)
        return model_fail(MOE_E_MODEL, ck_path(place->ck), "tensor \"%s\" is missing", name);
    v->dtype = v->tensor.type == CK_F32    ? MOE_F32
               : v->tensor.type == CK_F16  ? MOE_F16
               : v->tensor.type == CK_BF16 ? MOE_BF16
                                           : MOE_DTYPE_NONE;
    if (v->dtype == MOE_DTYPE_NONE)
        return layer_refuse(place, &v->tensor, "elements of type %s are not read here",
                            v->tensor.type_name);
    return layer_shape_is(place, &v->tensor, rank, shape);
}

static moe_status find_router(const layer_place *place, layer_plan *plan)
{
    const layout *l = place->layout;
    moe_layer_info *info = &plan->info;
    unsigned needs = place->rules->needs;
    if (has_vector(place, l->token_table)) info->foreign_router = "experts chosen by the token";
    if (info->foreign_router) return MOE_OK;
    int64_t shape[2] = {info->E, info->H};
    moe_status s = find_vector(place, l->router, true, 2, shape, &plan->router);
    if (s == MOE_OK)
        s = find_vector(place, l->router_bias, needs & FAMILY_NEEDS_ROUTER_BIAS, 1, shape,
                        &plan->router_bias);
    if (s == MOE_OK)
        s = find_vector(place, l->selection_bias, needs & FAMILY_NEEDS_SELECTION_BIAS, 1, shape,
                        &plan->selection_bias);
    return s;
}

/* [H], or [1, H]. */
static moe_status find_shared_gate(const layer_place *place, layer_plan *plan)
{
    char name[LAYER_NAME_BYTES];
    const layout *l = place->layout;
    int64_t shape[2] = {1, plan->info.H};
    ck_tensor t;
    bool found = false;
    if (plan->shared.E == 0 || !l->shared_gate_weight) return MOE_OK;
    vector_name(place, l->shared_gate_weight, name);
    moe_status s = ck_find(place->ck, name, &t, &found);
    if (s != MOE_OK) return s;
    bool flat = found && t.rank == 1;
    return find_vector(place, l->shared_gate_weight, place->rules->needs & FAMILY_NEEDS_SHARED_GATE,
                       flat ? 1 : 2, flat ? shape + 1 : shape, &plan->shared_gate);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static uint64_t vector_bytes(const layer_vector *v)
{
    return v->given ? v->tensor.bytes : 0;
}

static void describe(layer_plan *plan)
{
    moe_layer_info *info = &plan->info;
    const layer_experts *x = &plan->experts, *shared = &plan->shared;
    memcpy(info->gate_up_format, x->up.format, sizeof info->gate_up_format);
    memcpy(info->down_format, x->down.format, sizeof info->down_format);
    info->has_gate = x->gate.weights.dtype != MOE_DTYPE_NONE;
    info->has_bias = x->up.bias.dtype != MOE_DTYPE_NONE || x->down.bias.dtype != MOE_DTYPE_NONE;
    info->has_router_bias = plan->router_bias.given;
    info->has_selection_bias = plan->selection_bias.given;
    if (shared->E > 0) {
        info->shared_I = shared->I;
        memcpy(info->shared_format, shared->up.format, sizeof info->shared_format);
    }
    info->has_shared_gate = plan->shared_gate.given;
    info->bytes = x->file_bytes + shared->file_bytes + vector_bytes(&plan->router) +
                  vector_bytes(&plan->router_bias) + vector_bytes(&plan->selection_bias) +
                  vector_bytes(&plan->shared_gate);
    info->expert_bytes = x->expert_file_bytes;
}

moe_status layer_resolve(const layer_place *place, layer_plan *plan)
{
    memset(plan, 0, sizeof *plan);
    plan->info = place->rules->info;
    plan->info.layer = place->number;
    const checkpoint *ck = place->ck;
    moe_status s = find_routed(place, plan);
    if (s == MOE_OK) s = find_shared(place, plan);
    if (s == MOE_OK) s = find_shared_gate(place, plan);
    if (s == MOE_OK && ck_gguf(ck))
        s = family_gguf_layer(ck_gguf(ck), ck_path(ck), place->rules, place->number,
                              plan->shared.E > 0, &plan->info);
    if (s == MOE_OK) s = find_router(place, plan);
    if (s == MOE_OK) describe(plan);
    return s;
}

static void free_experts(layer_experts *x)
{
    for (int i = 0; i < x->piece_count; i++) free(x->pieces[i].tensors);
    for (int i = 0; i < x->shape_count; i++) free(x->shapes[i].tensors);
}

void layer_plan_free(layer_plan *plan)
{
    free_experts(&plan->experts);
    free_experts(&plan->shared);
}
