/* SPDX-License-Identifier: Apache-2.0 */
#include "io/hash.h"

#define XXH_INLINE_ALL /* no library at run time */
#include <xxhash.h>

uint64_t io_hash_any(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

uint64_t io_hash(const void *data, size_t bytes)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return io_hash_avx2(data, bytes);
#endif
    return io_hash_any(data, bytes);
}
