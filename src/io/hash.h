/* SPDX-License-Identifier: Apache-2.0 */
/* hash.h - XXH3-64, which says whether bytes are those that were written.  No secret and no
 * signature: whoever writes bytes can write their hash. */
#ifndef MOE_IO_HASH_H
#define MOE_IO_HASH_H

#include <stddef.h>
#include <stdint.h>

/* Of one piece in memory; at the speed of memory where the processor has AVX2 or NEON. */
uint64_t io_hash(const void *data, size_t bytes);

/* The same for each processor; io_hash chooses. */
uint64_t io_hash_any(const void *data, size_t bytes);
#if defined(__x86_64__)
uint64_t io_hash_avx2(const void *data, size_t bytes);
#endif

#endif
