/* SPDX-License-Identifier: Apache-2.0 */
/* family_check.c - refuses rules that contradict themselves, wherever they come from. */
#include "io/family.h"
#include "io/model_error.h"

static moe_status check_sizes(const char *path, const family_rules *rules)
{
    const moe_layer_info *info = &rules->info;
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"layers", rules->layers},
                 {"hidden size", info->H},
                 {"intermediate size", info->I},
                 {"experts", info->E},
                 {"experts of a token", info->K}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].value < 1)
            return model_fail(MOE_E_MODEL, path, "%s: %lld: must be at least 1", sizes[i].name,
                              (long long)sizes[i].value);
    if (info->K > info->E || info->K > FAMILY_TOPK_MOST)
        return model_fail(MOE_E_MODEL, path, "%lld experts of a token: %lld are there, %d the most",
                          (long long)info->K, (long long)info->E, FAMILY_TOPK_MOST);
    return MOE_OK;
}

moe_status family_check(const char *path, const family_rules *rules)
{
    const moe_layer_info *info = &rules->info;
    moe_status s = check_sizes(path, rules);
    if (s != MOE_OK || info->foreign_router) return s;
    int64_t n = info->n_group, kept = info->topk_group;
    if (n > 0 && (info->E % n != 0 || kept < 1 || kept > n || info->K > kept * (info->E / n)))
        return model_fail(MOE_E_MODEL, path,
                          "%lld of %lld groups: %lld experts of a token out of %lld do not fit",
                          (long long)kept, (long long)n, (long long)info->K, (long long)info->E);
    return MOE_OK;
}
