/* SPDX-License-Identifier: Apache-2.0 */
/* Whole blocks of tiny checkpoints in published layouts: router, experts and shared expert from the input
 * alone, within the bound that f32 allows, and the experts that were expected. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "fixture.h"
#include "model_bound.h"

enum { TESTED = 1 }; /* the layer that the cases are of */

static void check(moe_status status)
{
    if (status != MOE_OK) fail_msg("%s: %s", moe_status_name(status), moe_io_last_error());
}

static void run_block(const char *name, const moe_layer *layer, const fixture_case *c,
                      const model_bounds *b)
{
    moe_block_args args;
    check(moe_layer_args(layer, &args));
    moe_tensor hidden = moe_tensor_2d(c->hidden, MOE_F32, c->T, c->H);
    size_t bytes = (size_t)(c->T * c->H) * sizeof(float);
    float *output = malloc(bytes);
    int32_t *ids = malloc((size_t)(c->T * c->K) * sizeof *ids);
    args.experts.hidden_input = &hidden;
    args.experts.act_mode = MOE_ACT_EXACT;
    args.routed.index = ids;
    moe_status s = moe_block(NULL, &args, output, bytes);
    if (s != MOE_OK) fail_msg("%s: %s", name, moe_last_error());
    assert_memory_equal(ids, c->ids, (size_t)(c->T * c->K) * sizeof *ids);
    model_within(name, c, output, c->block, b->block);
    free(ids);
    free(output);
}

static void compute(const char *name, const char *folder)
{
    moe_model *model;
    moe_layer *layer;
    fixture_case c;
    int64_t i = 0;
    check(moe_model_open(folder, NULL, &model));
    check(moe_model_load(model, TESTED, NULL, NULL, &layer));
    while (model->layers[i].number != TESTED) i++;
    for (size_t n = 0; fixture_read(folder, n, &c); n++) {
        model_bounds b;
        model_bounds_make(model, i, &c, &b);
        run_block(name, layer, &c, &b);
        model_bounds_free(&b);
        fixture_free(&c);
    }
    moe_model_close(model);
    check(moe_layer_free(layer));
}

static void computed(void **state)
{
    (void)state;
    assert_true(fixture_each(compute) >= 13);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(computed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
