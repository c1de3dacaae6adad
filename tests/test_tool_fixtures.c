/* SPDX-License-Identifier: Apache-2.0 */
/* test_tool_fixtures.c - tiny checkpoints in published layouts through moe-tkg run: within the proven
 * bound of f32, and the bits of the library's own calls; and files that are not sound through
 * moe-tkg inspect. */
#define _GNU_SOURCE 1

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"
#include "layer_call.h"
#include "model_bound.h"
#include "tool_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TESTED = 1 }; /* the layer that the cases are of */

static char folder[64]; /* of the test that runs */

static int make_folder(void **state)
{
    (void)state;
    tool_folder(folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    tool_folder_remove(folder);
    return 0;
}

static void write_case(const char *path, const fixture_case *c)
{
    io_error error;
    st_tensor t[] = {
        {.name = "hidden", .dtype = ST_F32, .rank = 2, .shape = {c->T, c->H}},
        {.name = "topk_ids", .dtype = ST_I32, .rank = 2, .shape = {c->T, c->K}},
        {.name = "topk_weights", .dtype = ST_F32, .rank = 2, .shape = {c->T, c->K}},
    };
    for (size_t i = 0; i < 3; i++) t[i].bytes = (size_t)(t[i].shape[0] * t[i].shape[1]) * 4;
    if (st_write(path, t, (const void *[]){c->hidden, c->ids, c->weights}, 3, NULL, NULL, 0,
                 &error) != IO_OK)
        fail_msg("%s", error.text);
}

static void expect_run(const char *name, const char *model, const fixture_case *c,
                       const model_bounds *b, bool experts_only)
{
    char hidden[128], out[128];
    size_t bytes;
    wanted w = {.hidden = MOE_F32, .output = MOE_F32, .experts_only = experts_only};
    snprintf(hidden, sizeof hidden, "%s/hidden", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    write_case(hidden, c);
    tool_expect(0, NULL, "run --model %s --layer %d --hidden %s --out %s%s", model, TESTED, hidden,
                out, experts_only ? " --experts-only" : "");
    whole got = read_whole(out, "output");
    assert_int_equal(got.tensor.dtype, ST_F32);
    assert_true(got.tensor.shape[0] == c->T && got.tensor.shape[1] == c->H);
    model_within(name, c, got.data, experts_only ? c->experts : c->block,
                 experts_only ? b->experts : b->block);
    void *bits = layer_compute(model, TESTED, hidden, &w, &bytes);
    assert_int_equal(got.tensor.bytes, bytes);
    assert_memory_equal(got.data, bits, bytes);
    free(bits);
    free(got.data);
}

static void run(const char *name, const char *path)
{
    moe_model *model;
    fixture_case c;
    int64_t i = 0;
    assert_int_equal(moe_model_open(path, NULL, &model), MOE_OK);
    while (model->layers[i].number != TESTED) i++;
    for (size_t n = 0; fixture_read(path, n, &c); n++) {
        model_bounds b;
        model_bounds_make(model, i, &c, &b);
        expect_run(name, path, &c, &b, true);
        expect_run(name, path, &c, &b, false);
        model_bounds_free(&b);
        fixture_free(&c);
    }
    moe_model_close(model);
}

static void test_run(void **state)
{
    (void)state;
    assert_true(fixture_each(run) >= 13);
}

static void inspect(const char *name, const char *path)
{
    (void)name;
    json_decref(tool_json(0, "inspect --no-measure %s", path));
    json_t *o = tool_json(0, "inspect --tensors %s", path);
    assert_true(json_array_size(json_object_get(o, "tensors")) > 0);
    json_decref(o);
}

static void test_inspect(void **state)
{
    (void)state;
    assert_true(fixture_each(inspect) >= 13);
}

/* ---- files that are not sound ---------------------------------------------------------------- */

/* A line of malformed.tsv: what is wrong shows at the container or at the model. */
static void judge(const char *root, char *line)
{
    const char *path = strsep(&line, "\t"), *expect = strsep(&line, "\t");
    const char *stage = strsep(&line, "\t"), *config = strsep(&line, "\t");
    bool reject = strcmp(expect, "reject") == 0, container = strcmp(stage, "container") == 0;
    char option[1200] = "";
    if (*config) snprintf(option, sizeof option, "--config %s/%s", root, config);
    int listed = reject && container ? 2 : 0, opened = !reject && !container ? 0
                                                       : container           ? 2
                                                                             : 3;
    if (!reject && container) opened = 3; /* sound, and no model */
    tool_expect(listed, listed ? path : NULL, "inspect --tensors %s/%s", root, path);
    tool_expect(opened, NULL, "inspect --no-measure %s %s/%s", option, root, path);
}

/* Judges the files below root; false if there are none. */
static bool judge_all(const char *root)
{
    char path[1100], line[1024];
    snprintf(path, sizeof path, "%s/malformed.tsv", root);
    FILE *list = fopen(path, "r");
    if (!list) return false;
    assert_non_null(fgets(line, sizeof line, list)); /* the titles */
    while (fgets(line, sizeof line, list)) judge(root, line);
    fclose(list);
    return true;
}

static void test_malformed(void **state)
{
    (void)state;
    char shared[1024];
    const char *root = getenv("MOE_SHARED_DIR");
    assert_true(judge_all(MOE_SOURCE_DIR "/tests/data/malformed"));
    snprintf(shared, sizeof shared, "%s/fixtures/malformed",
             root ? root : MOE_SOURCE_DIR "/../shared");
    judge_all(shared);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_run, make_folder, remove_folder),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_malformed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
