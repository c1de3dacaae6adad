/* SPDX-License-Identifier: Apache-2.0 */
/* memory.c - the allocators of a caller who brings none. */
#define _GNU_SOURCE
#include "memory.h"

#include "checked.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

static void *allocate(size_t bytes, size_t alignment, void *user)
{
    (void)user;
    return checked_round_up(bytes, alignment, &bytes) ? aligned_alloc(alignment, bytes) : NULL;
}

static void release(void *block, size_t bytes, void *user)
{
    (void)bytes;
    (void)user;
    free(block);
}

const allocator memory_default = {allocate, release, NULL};

/* ---- large blocks ---------------------------------------------------------------------------- */

enum {
    PAGE = 64 << 10, /* a multiple of the pages of every machine: Arm's may be 4, 16 or 64 KB */
    HUGE_PAGE = 2 << 20,
    LARGE = 2 * HUGE_PAGE
};

/* A block that begins with a huge page; what the mapping has before and after it is given back. */
static void *map(size_t bytes)
{
    size_t mapped, whole;
    if (!checked_round_up(bytes, PAGE, &bytes) || !checked_add(bytes, HUGE_PAGE, &mapped))
        return NULL;
    char *at = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)at % HUGE_PAGE) % HUGE_PAGE;
    if (before > 0) munmap(at, before);
    if (before < HUGE_PAGE) munmap(at + before + bytes, HUGE_PAGE - before);
    whole = bytes / HUGE_PAGE * HUGE_PAGE;
    madvise(at + before, whole, MADV_HUGEPAGE); /* small pages do as well */
    return at + before;
}

static void *allocate_large(size_t bytes, size_t alignment, void *user)
{
    return bytes < LARGE ? allocate(bytes, alignment, user) : map(bytes);
}

static void release_large(void *block, size_t bytes, void *user)
{
    if (bytes < LARGE) {
        release(block, bytes, user);
        return;
    }
    checked_round_up(bytes, PAGE, &bytes); /* as map did */
    munmap(block, bytes);
}

const allocator memory_large = {allocate_large, release_large, NULL};
