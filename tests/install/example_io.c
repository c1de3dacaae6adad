/* SPDX-License-Identifier: Apache-2.0 */
/* A model that is not there: C11 and C++ alike. */
#include <moe_tkg_io.h>
#include <stdio.h>

int main(void)
{
    moe_model *model;
    moe_block_args args;
    moe_status status = moe_model_open("/no such model", NULL, &model);
    if (status != MOE_E_OPEN || moe_layer_args(NULL, &args) != MOE_E_NULL_ARG) {
        printf("%s: %s\n", moe_version(), moe_io_last_error());
        return 1;
    }
    moe_model_close(model);
    return 0;
}
