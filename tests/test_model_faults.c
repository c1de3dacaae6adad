/* SPDX-License-Identifier: Apache-2.0 */
/* Models and layers when memory runs out, or a file cannot be opened or read: an error, nothing left
 * behind, and the same call works afterwards. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <moe_tkg_io.h>

#include "faults.h"
#include "fixture.h"

/* One in one file, one in a GGUF file; both small. */
static const char *const names[] = {"glm4_moe_fp8_channel", "gguf_glm4moe_bf16"};

enum { NAMES = sizeof names / sizeof names[0] };

static moe_status open_and_load(const char *path)
{
    moe_model *model;
    moe_layer *layer = NULL;
    moe_layer_info info = {.struct_size = sizeof info};
    moe_status s = moe_model_open(path, NULL, &model);
    if (s == MOE_OK) s = moe_model_layer(model, 0, &info);
    if (s == MOE_OK) s = moe_model_load(model, 1, NULL, NULL, &layer);
    assert_true((s == MOE_OK) == (layer != NULL));
    assert_int_equal(moe_layer_free(layer), MOE_OK);
    moe_model_close(model);
    return s;
}

/* Lets the first, second, ... call of a kind fail until all succeed.  (What is not freed then, the
 * address sanitizer finds: packed experts come from calls that faults.h does not count.) */
static void each_failure(call what, int cause, const moe_status *expected, size_t n)
{
    for (size_t i = 0; i < NAMES; i++) {
        char path[1024];
        fixture_own(names[i], path, sizeof path);
        assert_int_equal(open_and_load(path), MOE_OK);
        for (int successes = 0;; successes++) {
            int files = descriptors;
            plan_fault(what, successes, cause);
            moe_status s = open_and_load(path);
            bool came = fault_came();
            plan_fault(NONE, 0, 0);
            assert_int_equal(descriptors, files);
            if (!came) {
                assert_int_equal(s, MOE_OK);
                assert_true(successes > 2);
                break;
            }
            bool known = false;
            for (size_t e = 0; e < n; e++) known |= s == expected[e];
            if (!known)
                fail_msg("%s, call %d: status %d: %s", names[i], successes, (int)s,
                         moe_io_last_error());
            assert_true(strlen(moe_io_last_error()) > 0);
        }
    }
}

static void memory(void **state)
{
    (void)state;
    each_failure(ALLOC, 0, (const moe_status[]){MOE_E_NOMEM}, 1);
}

static void reading(void **state)
{
    (void)state;
    each_failure(PREAD, EIO, (const moe_status[]){MOE_E_READ}, 1);
    each_failure(PREAD, 0, (const moe_status[]){MOE_E_READ}, 1); /* the file has shrunk */
}

/* A file that cannot be opened while a directory is searched is none of the model's; all that is
 * found may then be too little. */
static void opening(void **state)
{
    (void)state;
    each_failure(OPEN, EMFILE, (const moe_status[]){MOE_E_OPEN, MOE_E_MODEL, MOE_OK}, 3);
}

/* Reads of one byte at a time give the same layer. */
static void short_reads(void **state)
{
    (void)state;
    char path[1024];
    fixture_own(names[1], path, sizeof path);
    plan.short_moves = true;
    assert_int_equal(open_and_load(path), MOE_OK);
    plan.short_moves = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(memory), cmocka_unit_test(reading),
                                       cmocka_unit_test(opening), cmocka_unit_test(short_reads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
