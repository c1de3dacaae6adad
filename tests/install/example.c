/* SPDX-License-Identifier: Apache-2.0 */
/* One expert, one token: C11 and C++ alike. */
#include <moe_tkg.h>
#include <stdio.h>

int main(void)
{
    const float x[] = {1, 2, 3}, w_gate_up[] = {1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1},
                w_down[] = {1, 0, 1, 0, 1, 1};
    const int32_t slot[] = {0};
    moe_tensor hidden = moe_tensor_2d(x, MOE_F32, 1, 3), index = moe_tensor_2d(slot, MOE_I32, 1, 1);
    moe_tensor gate_up = {w_gate_up, MOE_F32, MOE_LAYOUT_HBM, 4, {1, 3, 2, 2}};
    moe_tensor down = {w_down, MOE_F32, MOE_LAYOUT_HBM, 3, {1, 2, 3}};
    moe_tkg_args args = moe_tkg_args_init();
    float y[3] = {0, 0, 0};

    args.hidden_input = &hidden;
    args.expert_index = &index;
    args.expert_gate_up_weights = &gate_up;
    args.expert_down_weights = &down;
    args.activation_fn = MOE_RELU;
    if (moe_version_number() != MOE_VERSION_NUMBER || moe_tkg(NULL, &args, y, sizeof y) != MOE_OK) {
        printf("%s: %s\n", moe_version(), moe_last_error());
        return 1;
    }
    return y[0] == 5 && y[1] == 8 && y[2] == 13 ? 0 : 2;
}
