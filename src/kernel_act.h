/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_act.h - a part of kernel_tmpl.h: the elementary functions of numeric.h over vectors, and
 * what happens to a sum: row scale, bias, limits, activation. */
#ifndef MOE_KERNEL_ACT_H
#define MOE_KERNEL_ACT_H

#include "kernel_dot.h"

/* ---- elementary functions: the sequences of numeric.h ---------------------------------------- */

INLINE vec v_c(float x)
{
    return v_set1(x);
}

INLINE vec exp_vec(vec hi, vec lo)
{
    const vec magic = v_c(0x1.8p+23f);
    vec z = v_if_gt(hi, v_c(110.0f), v_c(110.0f), hi);
    z = v_if_gt(v_c(-110.0f), z, v_c(-110.0f), z);
    vec e = v_if_eq(z, hi, lo, v_zero());
    vec t = v_fma(z, v_c(0x1.715476p+0f), magic), n = v_sub(t, magic);
    vec r = v_add(v_fma(n, v_c(-0x1.7f7d1cp-20f), v_fma(n, v_c(-0x1.62e4p-1f), z)), e);
    vec p = v_fma(r, v_c(0x1.6a234cp-10f), v_c(0x1.123a6cp-7f));
    p = v_fma(r, p, v_c(0x1.5558f4p-5f));
    p = v_fma(r, p, v_c(0x1.55549p-3f));
    p = v_fma(r, p, v_c(0x1.fffffcp-2f));
    p = v_add(v_fma(v_mul(r, r), p, r), v_c(1.0f));
    return v_scale(p, t, magic);
}

INLINE vec swish_vec(vec g, vec alpha)
{
    vec z = v_mul(alpha, g);
    return v_div(g, v_add(v_c(1.0f), exp_vec(v_neg(z), v_neg(v_fma(alpha, g, v_neg(z))))));
}

INLINE vec gelu_vec(vec g)
{
    vec a = v_abs(g);
    a = v_if_gt(a, v_c(20.0f), v_c(20.0f), a);
    vec q = v_div(v_sub(a, v_c(4.0f)), v_add(a, v_c(4.0f)));
    static const float coefficient[] = {0x1.b4dd1p-16f,  -0x1.9bef06p-15f, -0x1.87cadap-13f,
                                        0x1.4fa0a6p-11f, 0x1.0a22aep-11f,  -0x1.1646dp-7f,
                                        0x1.f9b052p-6f,  -0x1.25b6a6p-4f,  0x1.fd751ap-4f,
                                        -0x1.5cf97cp-3f, 0x1.82b4bcp-4f};
    vec p = v_c(0x1.09556cp-17f);
    for (size_t i = 0; i < sizeof coefficient / sizeof coefficient[0]; i++)
        p = v_fma(q, p, v_c(coefficient[i]));
    vec s = v_mul(a, a), low = v_fma(a, a, v_neg(s)), half = v_c(-0.5f);
    vec tail = v_mul(exp_vec(v_mul(half, s), v_mul(half, low)), p);
    return v_if_gt(v_zero(), g, v_mul(g, tail), v_fma(v_neg(a), tail, g));
}

INLINE vec gelu_tanh_vec(vec g)
{
    vec w = v_fma(v_c(0x1.2444f2p-4f), v_mul(g, g), v_c(0x1.988454p+0f));
    return v_div(g, v_add(v_c(1.0f), exp_vec(v_neg(v_mul(g, w)), v_zero())));
}

INLINE vec relu_vec(vec g)
{
    return v_add(v_if_gt(v_zero(), g, v_zero(), g), v_zero());
}

INLINE vec activation_vec(const kernel_point *p, vec g)
{
    switch (p->activation) {
    case MOE_GELU: return gelu_vec(g);
    case MOE_GELU_TANH: return gelu_tanh_vec(g);
    case MOE_RELU: return relu_vec(g);
    case MOE_RELU2: return v_mul(relu_vec(g), relu_vec(g));
    default: return swish_vec(g, v_c(p->alpha));
    }
}

INLINE vec activate_vec(const kernel_point *p, vec g)
{
    vec v = activation_vec(p, g), upper = v_c(p->act_upper);
    return v_if_gt(v, upper, upper, v);
}

/* ---- from the sums to the rows --------------------------------------------------------------- */

INLINE vec affine_vec(vec v, const kernel_rows *rows)
{
    if (rows->scale != NULL) v = v_mul(v, v_load(rows->scale));
    if (rows->bias != NULL) v = v_add(v, v_load(rows->bias));
    return v;
}

INLINE vec clamp_vec(vec v, float upper, float lower)
{
    v = v_if_gt(v, v_c(upper), v_c(upper), v);
    return v_if_gt(v_c(lower), v, v_c(lower), v);
}

#endif
