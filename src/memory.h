/* SPDX-License-Identifier: Apache-2.0 */
/* memory.h - where the library's memory comes from: the caller's hooks, or the C library. */
#ifndef MOE_MEMORY_H
#define MOE_MEMORY_H

#include <stddef.h>

typedef struct allocator {
    void *(*allocate)(size_t bytes, size_t alignment, void *user);
    void (*release)(void *block, size_t bytes, void *user);
    void *user;
} allocator;

extern const allocator memory_default; /* aligned_alloc and free */

/* Small blocks as above; large ones are mapped, and of huge pages where the system gives them. */
extern const allocator memory_large;

#endif
