/* SPDX-License-Identifier: Apache-2.0 */
/* test_rejections.c - tests/golden/rejections.txt: parameter combinations that must be refused
 * or accepted.
 *
 * A line is `id | base case | change | upstream verdict | our verdict | reason`.  The base cases
 * are described below, so that a change of a size reaches every tensor; where the files are at
 * hand the descriptions are compared with them. */
#include "expect.h"
#include "golden.h"

#include "../tools/case.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

enum { RULES = 48, LINE = 512 };

static const struct {
    const char *name;
    layer_spec spec;
} BASES[] = {
    {"bf16_all_none_gelu_t3",
     {.hidden = MOE_BF16,
      .weights = MOE_BF16,
      .T = 3,
      .H = 256,
      .I = 128,
      .E_L = 4,
      .K = 4,
      .all_expert = true,
      .activation = MOE_GELU}},
    {"bf16_all_post_silu_t1",
     {.hidden = MOE_BF16,
      .weights = MOE_BF16,
      .T = 1,
      .H = 256,
      .I = 128,
      .E_L = 4,
      .K = 4,
      .all_expert = true,
      .scaling = MOE_POST_SCALE}},
    {"bf16_sel_post_silu_k1_t2",
     {.hidden = MOE_BF16,
      .weights = MOE_BF16,
      .T = 2,
      .H = 256,
      .I = 128,
      .E_L = 4,
      .K = 1,
      .scaling = MOE_POST_SCALE}},
    {"fp8row_bf16_all_none_gelu_t16",
     {.hidden = MOE_BF16,
      .weights = MOE_E4M3_IEEE,
      .T = 16,
      .H = 512,
      .I = 64,
      .E_L = 4,
      .K = 4,
      .all_expert = true,
      .scales = LAYER_ROW,
      .activation = MOE_GELU}},
    {"mxfp4_all_post_swish_bias_clamp_i512_t32",
     {.hidden = MOE_BF16,
      .weights = MOE_MXFP4_X4,
      .T = 32,
      .H = 512,
      .I = 512,
      .E_L = 1,
      .K = 1,
      .all_expert = true,
      .scaling = MOE_POST_SCALE,
      .gate_up_bias = true,
      .down_bias = true,
      .clamp = true,
      .activation = MOE_SWISH}},
    {"mxfp4_sel_post_swish_bias_clamp_i96_k2_t4",
     {.hidden = MOE_BF16,
      .weights = MOE_MXFP4_X4,
      .T = 4,
      .H = 512,
      .I = 96,
      .E_L = 8,
      .K = 2,
      .scaling = MOE_POST_SCALE,
      .gate_up_bias = true,
      .down_bias = true,
      .clamp = true,
      .activation = MOE_SWISH}},
    {"spec_mxfp4_all_dynamic_t32_b8_n3",
     {.hidden = MOE_BF16,
      .weights = MOE_MXFP4_X4,
      .T = 32,
      .H = 512,
      .I = 64,
      .E_L = 1,
      .K = 1,
      .all_expert = true,
      .scaling = MOE_POST_SCALE,
      .gate_up_bias = true,
      .down_bias = true,
      .activation = MOE_SWISH}},
    {"spec_mxfp4_all_prequant_t4",
     {.hidden = MOE_BF16,
      .weights = MOE_MXFP4_X4,
      .T = 4,
      .H = 1024,
      .I = 128,
      .E_L = 2,
      .K = 2,
      .place = LAYER_PREQUANT,
      .all_expert = true,
      .scaling = MOE_POST_SCALE,
      .gate_up_bias = true,
      .down_bias = true,
      .activation = MOE_SWISH}},
    {"spec_mxfp4_sel_sbuf_in_t3",
     {.hidden = MOE_BF16,
      .weights = MOE_MXFP4_X4,
      .T = 3,
      .H = 1024,
      .I = 64,
      .E_L = 4,
      .K = 2,
      .place = LAYER_SBUF,
      .scaling = MOE_POST_SCALE,
      .gate_up_bias = true,
      .down_bias = true}},
};

static const char DYNAMIC[] = "spec_mxfp4_all_dynamic_t32_b8_n3";

static layer_spec base(const char *name)
{
    for (size_t i = 0; i < COUNT(BASES); i++)
        if (strcmp(BASES[i].name, name) == 0) return BASES[i].spec;
    fail_msg("no base case %s", name);
    abort();
}

/* The layer of a case: like the files it has index and affinities even where they are not read. */
static void make_case(layer *l, const char *name, const layer_spec *spec)
{
    layer_make(l, spec);
    if (l->bytes[LAYER_INDEX] == 0) layer_add(l, LAYER_INDEX);
    if (l->bytes[LAYER_AFFINITIES] == 0) layer_add(l, LAYER_AFFINITIES);
    if (strcmp(name, DYNAMIC) != 0) return;
    l->args.is_all_expert_dynamic = 1;
    l->args.block_size = moe_given_int(8);
}

/* ---- changes: of the description, then of the layer ------------------------------------------ */

static bool is_text(const json_t *v, const char *text)
{
    return json_is_string(v) && strcmp(json_string_value(v), text) == 0;
}

static bool change_spec(layer_spec *s, const char *key, const json_t *v)
{
    static const char *const modes[] = {"NO_SCALE", "POST_SCALE", "PRE_SCALE", "PRE_SCALE_DELAYED"};
    int64_t number = json_integer_value(v);
    if (strcmp(key, "T") == 0)
        s->T = number;
    else if (strcmp(key, "H") == 0)
        s->H = number;
    else if (strcmp(key, "E_L") == 0)
        s->E_L = number;
    else if (strcmp(key, "is_all_expert") == 0)
        s->all_expert = number;
    else if (strcmp(key, "rank_id") == 0 && json_is_integer(v))
        s->rank = (uint32_t)number;
    else if (strcmp(key, "mask_unselected_experts") == 0)
        s->mask = number;
    else if (strcmp(key, "output_in_sbuf") == 0)
        s->output_in_sbuf = number;
    else if (strcmp(key, "hidden_dtype") == 0 && is_text(v, "f32"))
        s->hidden = MOE_F32;
    else if (strcmp(key, "hidden_input") == 0 && is_text(v, "bf16 with scale kept"))
        s->place = LAYER_SBUF;
    else if (strcmp(key, "expert_affinities_scaling_mode") == 0) {
        for (size_t i = 0; i < COUNT(modes); i++)
            if (is_text(v, modes[i])) s->scaling = (moe_affinity_scale)i;
    } else
        return false;
    return true;
}

static bool change_layer(layer *l, const char *key, const json_t *v)
{
    for (int which = 0; which < LAYER_TENSORS; which++) {
        if (strcmp(key, layer_tensor_name((layer_tensor)which)) != 0) continue;
        if (is_text(v, "absent"))
            layer_drop(l, (layer_tensor)which);
        else if (is_text(v, "present") || is_text(v, "f32[T,K]") || is_text(v, "f32[E_L,1]"))
            layer_add(l, (layer_tensor)which);
        else if (is_text(v, "bf16 with scale kept"))
            layer_add(l, LAYER_HIDDEN_SCALE);
        else if (is_text(v, "contains E_L"))
            ((int32_t *)l->data[which])[0] = (int32_t)l->spec.E_L;
        else if (is_text(v, "contains -1"))
            ((int32_t *)l->data[which])[0] = -1;
        else if (is_text(v, "H differs from the weights' H"))
            l->tensor[which].shape[1] /= 2;
        else
            return json_is_integer(v);
        return true;
    }
    if (strcmp(key, "hidden_input_location") == 0)
        l->tensor[LAYER_HIDDEN].layout = MOE_LAYOUT_HBM;
    else if (strcmp(key, "is_all_expert_dynamic") == 0)
        l->args.is_all_expert_dynamic = (int32_t)json_integer_value(v);
    else if (strcmp(key, "block_size") == 0 && is_text(v, "absent"))
        l->args.block_size.given = 0;
    else if (strcmp(key, "block_size") == 0)
        l->args.block_size = moe_given_int(json_integer_value(v));
    else if (strcmp(key, "gate_clamp_upper_limit") == 0)
        l->args.gate_clamp_upper_limit = moe_given_float((float)json_number_value(v));
    else if (strcmp(key, "gate_clamp_lower_limit") == 0)
        l->args.gate_clamp_lower_limit = moe_given_float((float)json_number_value(v));
    else
        return false;
    return true;
}

/* ---- rules ----------------------------------------------------------------------------------- */

static void rule(const char *id, const char *name, const char *change, const char *verdict)
{
    json_error_t error;
    json_t *changes = json_loads(change, 0, &error);
    if (changes == NULL) fail_msg("%s: %s", id, error.text);
    const char *key;
    json_t *value;
    layer_spec spec = base(name);
    json_object_foreach(changes, key, value) change_spec(&spec, key, value);
    layer l;
    make_case(&l, name, &spec);
    json_object_foreach(changes, key, value)
    {
        layer_spec copy = spec;
        if (!change_layer(&l, key, value) && !change_spec(&copy, key, value))
            fail_msg("%s: no change %s", id, key);
    }
    moe_tensor shape;
    size_t bytes;
    moe_status status = moe_tkg_output(&l.args, &shape, &bytes);
    if (strcmp(verdict, "accept") == 0) {
        if (status != MOE_OK) fail_msg("%s: refused: %s", id, moe_last_error());
        free(layer_run(NULL, &l, NULL));
    } else {
        assert_string_equal(verdict, "reject");
        expect_refused(&l.args, ~STATUS(MOE_OK), status == MOE_OK ? BY_DATA : BY_SHAPE, NULL, NULL);
    }
    json_decref(changes);
    layer_free(&l);
}

static void test_rules(void **state)
{
    (void)state;
    FILE *file = fopen(MOE_SOURCE_DIR "/tests/golden/rejections.txt", "r");
    assert_non_null(file);
    unsigned rules = 0;
    for (char line[LINE]; fgets(line, sizeof line, file) != NULL; rules++) {
        char *field[6], *rest = line;
        for (size_t i = 0; i < COUNT(field); i++) {
            field[i] = rest;
            rest = strchr(rest, i + 1 < COUNT(field) ? '|' : '\n');
            assert_non_null(rest);
            *rest++ = '\0';
        }
        rule(field[0], field[1], field[2], field[4]);
    }
    fclose(file);
    assert_int_equal(rules, RULES);
}

/* Unchanged, every base is accepted and has the shapes of its file. */
static void test_bases(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(BASES); i++) {
        layer l;
        make_case(&l, BASES[i].name, &BASES[i].spec);
        expect_runs(&l);
        char name[128], path[1024];
        snprintf(name, sizeof name, "moe_tkg/%s.safetensors", BASES[i].name);
        if (golden_shared(name, path, sizeof path) != NULL) {
            moe_case c;
            io_error error;
            if (case_load(path, &c, &error) != IO_OK) fail_msg("%s", error.text);
            for (int which = 0; which < LAYER_TENSORS; which++) {
                const moe_tensor *ours = *layer_tensor_slot(&l.args, (layer_tensor)which);
                const moe_tensor *theirs = *layer_tensor_slot(&c.args, (layer_tensor)which);
                assert_int_equal(ours != NULL, theirs != NULL);
                if (ours == NULL) continue;
                assert_int_equal(ours->rank, theirs->rank);
                assert_int_equal(ours->layout, theirs->layout);
                assert_memory_equal(ours->shape, theirs->shape,
                                    sizeof(int64_t) * (size_t)ours->rank);
            }
            assert_int_equal(l.args.activation_fn, c.args.activation_fn);
            assert_int_equal(l.args.is_all_expert, c.args.is_all_expert);
            assert_int_equal(l.args.expert_affinities_scaling_mode,
                             c.args.expert_affinities_scaling_mode);
            assert_int_equal(l.args.is_all_expert_dynamic, c.args.is_all_expert_dynamic);
            assert_int_equal(l.args.block_size.value, c.args.block_size.value);
            case_free(&c);
        }
        layer_free(&l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bases),
        cmocka_unit_test(test_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
