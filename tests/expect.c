/* SPDX-License-Identifier: Apache-2.0 */
/* expect.c - see expect.h. */
#include "expect.h"

#include <stdlib.h>

enum { CANARY = 0xA5, OUTPUT_BYTES = 1 << 16 };

static void expect_status(const char *call, moe_status status, unsigned statuses, const char *name,
                          const char *value)
{
    const char *text = moe_last_error();
    if (status == MOE_OK || (STATUS(status) & statuses) == 0)
        fail_msg("%s: %s, not one of 0x%x (%s %s): %s", call, moe_status_name(status), statuses,
                 name ? name : "", value ? value : "", text);
    if (name != NULL && strstr(text, name) == NULL)
        fail_msg("%s: no \"%s\" in: %s", call, name, text);
    if (value != NULL && strstr(text, value) == NULL)
        fail_msg("%s: no \"%s\" in: %s", call, value, text);
}

void expect_refused(const moe_tkg_args *args, unsigned statuses, refusal by, const char *name,
                    const char *value)
{
    static _Alignas(64) unsigned char output[OUTPUT_BYTES], canary[OUTPUT_BYTES];
    memset(output, CANARY, sizeof output);
    memset(canary, CANARY, sizeof canary);
    expect_status("moe_tkg", moe_tkg(NULL, args, output, sizeof output), statuses, name, value);
    assert_memory_equal(output, canary, sizeof canary);
    if (by == BY_DATA) {
        expect_accepted(args);
        return;
    }
    moe_tensor shape;
    size_t bytes;
    expect_status("moe_tkg_output", moe_tkg_output(args, &shape, &bytes), statuses, name, value);
}

void expect_accepted(const moe_tkg_args *args)
{
    moe_tensor shape;
    size_t bytes;
    moe_status status = moe_tkg_output(args, &shape, &bytes);
    if (status != MOE_OK) fail_msg("%s: %s", moe_status_name(status), moe_last_error());
    assert_null(shape.data);
    size_t product = moe_dtype_size(shape.dtype);
    for (int d = 0; d < shape.rank; d++) product *= (size_t)shape.shape[d];
    assert_int_equal(product, bytes);
}

void expect_runs(const layer *l)
{
    expect_accepted(&l->args);
    free(layer_run(NULL, l, NULL));
}
